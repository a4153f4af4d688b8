"""One convention, and the factor that leads from each other library's to it: the numbers of docs/conventions.md.

The other libraries' formulas are written out here from their behaviour, as measured on these very logits with the
released packages (values to seven digits); they are not installed.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as nf

from limbeck import functional as F

ROOT = Path(__file__).parents[2]
T, N, C = 4.0, 64, 100


def logits() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    student, teacher = (3.0 * torch.randn(N, C, generator=g) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, C, (N,), generator=g)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# name: (value and gradient norm measured, the library's formula, the same thing in limbeck)
TABLE: dict[str, tuple[float, float, Loss, Loss]] = {
    "limbeck, RepDistiller, mdistiller, modelopt 'batchmean', torchdistill alpha=1e-9": (
        8.881399,
        0.060918,
        lambda s, t, y: nf.kl_div((s / T).log_softmax(1), (t / T).softmax(1), reduction="sum") * T**2 / len(s),
        lambda s, t, y: F.kl(s, t, temperature=T).mean(),
    ),
    "torchdistill alpha=0, TRL GKD beta=0, Liger JSD beta=0, DistillKit, DD-Ranking": (
        0.555087,
        0.003807,
        lambda s, t, y: nf.kl_div(
            (s / T).log_softmax(1), (t / T).log_softmax(1), log_target=True, reduction="batchmean"
        ),
        lambda s, t, y: F.kl(s, t, temperature=T, scale_t2=False).mean(),
    ),
    "modelopt LogitsDistillationLoss default": (
        0.088814,
        0.000609,
        lambda s, t, y: nf.kl_div((s / T).log_softmax(1), (t / T).softmax(1), reduction="none").mean() * T**2,
        lambda s, t, y: F.kl(s, t, temperature=T).mean() / C,
    ),
    "TextBrewer kd_ce_loss, torchtune ForwardKLLoss": (
        4.882762,
        0.003807,
        lambda s, t, y: -((t / T).softmax(1) * (s / T).log_softmax(1)).sum(1).mean(),
        lambda s, t, y: F.soft_cross_entropy(s, t, temperature=T, scale_t2=False).mean(),
    ),
    "Liger JSD default weights": (
        4.812753,
        0.072192,
        lambda s, t, y: (
            0.5 * nf.cross_entropy(s, y)
            + 0.5 * nf.kl_div((s / T).log_softmax(1), (t / T).softmax(1), reduction="batchmean")
        ),
        lambda s, t, y: 0.5 * F.cross_entropy(s, y).mean() + 0.5 * F.kl(s, t, temperature=T, scale_t2=False).mean(),
    ),
    "KD-Lib VanillaKD default": (
        0.002375,
        0.000039,
        lambda s, t, y: T**2 * nf.mse_loss((s / T).softmax(1), (t / T).softmax(1)),
        lambda s, t, y: T**2 * F.squared_error((s / T).softmax(1), (t / T).softmax(1)).mean() / C,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_other_libraries_convert(name: str) -> None:
    value, norm, theirs, ours = TABLE[name]
    student, teacher, labels = logits()
    for loss in (theirs, ours):
        got = loss(student, teacher, labels)
        assert got.item() == pytest.approx(value, abs=1.5e-6)
        slope = torch.autograd.grad(got, student)[0].norm().item()
        assert slope == pytest.approx(norm, abs=1e-6)


def test_the_definition() -> None:
    student, teacher, _ = logits()
    p, q = (x.detach().double().div(T).softmax(1) for x in (teacher, student))
    want = (p * (p.log() - q.log())).sum(1).mean()
    assert want.item() == pytest.approx(0.555087, abs=1e-6)
    got = F.kl(student, teacher, temperature=T).mean()
    assert got.item() == pytest.approx(T * T * want.item(), rel=1e-6)


def test_probabilities_where_log_probabilities_belong() -> None:
    """What KD-Lib computes when handed nn.KLDivLoss(): negative, so no divergence; nothing here converts to it."""
    student, teacher, _ = logits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = T**2 * nf.kl_div((teacher / T).softmax(1), (student / T).softmax(1), reduction="mean")
    assert value.item() == pytest.approx(-0.692751, abs=1e-6)
    assert torch.autograd.grad(value, student)[0].norm().item() == pytest.approx(0.000631, abs=1e-6)


def test_the_same_knob_spans_three_orders_of_magnitude() -> None:
    norms = [row[1] for row in TABLE.values() if "Liger JSD default" not in str(row)]
    assert max(n for n in norms if n < 0.07) / min(norms) == pytest.approx(1560, rel=0.02)


def test_jensen_shannon_in_the_other_parametrisations() -> None:
    student, teacher, _ = logits()
    p, q = teacher.softmax(1), student.softmax(1)
    for beta in (0.1, 0.5, 0.9):
        # TRL and Liger: mixture (1 - beta) student + beta teacher, value beta KL(p||m) + (1 - beta) KL(q||m)
        m = (1 - beta) * q + beta * p
        value = beta * (p * (p / m).log()).sum(1) + (1 - beta) * (q * (q / m).log()).sum(1)
        torch.testing.assert_close(F.jensen_shannon(student, teacher, beta=beta), value, rtol=1e-5, atol=1e-6)


def test_the_page_states_these_numbers() -> None:
    page = ROOT / "docs" / "conventions.md"
    if not page.is_file():
        pytest.skip("the documentation is not beside the tests")
    text = page.read_text(encoding="utf-8")
    for value, norm, _, _ in TABLE.values():
        assert f"{value:.6f}" in text and f"{norm:.6f}" in text


def test_nothing_here_divides_by_the_number_of_classes() -> None:
    """torch's kl_div means 'over all elements' by default, and by 'mean': neither may occur in limbeck."""
    calls = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if not re.search(r"kl_div|KLDivLoss", source):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("kl_div", "KLDivLoss"):
                reduction = {k.arg: ast.unparse(k.value) for k in node.keywords}.get("reduction")
                calls.append((file.relative_to(ROOT).as_posix(), node.lineno, reduction))
    bad = [call for call in calls if call[2] != "'none'"]
    assert not bad, f"use limbeck.functional.kl, or reduction='none': {bad}"
