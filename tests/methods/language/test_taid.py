"""TAID: its objective in numbers, the path of t, and what goes around it."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import limbeck.functional as F  # noqa: E402
from limbeck.engine.context import RunContext  # noqa: E402
from limbeck.engine.engine import Engine  # noqa: E402
from limbeck.engine.settings import EngineSettings  # noqa: E402
from limbeck.errors import ConfigError  # noqa: E402
from limbeck.functional.schedule import linear  # noqa: E402
from limbeck.grammar.method import Setup, Stage, Terms  # noqa: E402
from limbeck.methods.language.taid import Taid  # noqa: E402
from limbeck.parts.next_tokens import Tokens  # noqa: E402
from limbeck.recipe.overrides import presets_of  # noqa: E402
from tests.parts.texts import first, gradient, setup_of, start  # noqa: E402

Z_S, Z_P = torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[2.0, 1.0, 0.0]]])


def bound(setup: Setup | None = None, **changes: Any) -> tuple[Taid, RunContext, Engine]:
    return start(Taid(**changes), setup)


# ------------------------------------------------------------------------------------------------ the objective


@pytest.mark.parametrize(
    ("t", "loss", "grad"),
    [
        (0.0, 0.832396, [0.0, 0.0, 0.0]),
        (0.5, 1.407606, [-0.243303, -0.088605, 0.331908]),
        (1.0, 1.982816, [-0.575210, 0.0, 0.575210]),
    ],
)
def test_the_papers_objective_on_one_token(t: float, loss: float, grad: list[float]) -> None:
    z = Z_S.clone().requires_grad_()
    tokens = Tokens(z, Z_P, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    method = Taid()
    method.state = {"t": t}
    value = method.compared(tokens, ctx=None)  # type: ignore[arg-type]
    assert value.shape == (1, 1) and value.item() == pytest.approx(loss, abs=1e-6)
    (found,) = torch.autograd.grad(value.sum(), z)
    assert torch.allclose(found[0, 0], torch.tensor(grad), atol=1e-6)


def test_at_zero_no_gradient_and_at_one_that_of_forward_kl() -> None:
    method, ctx, _ = bound()
    method.state["t"] = 0.0
    _, terms = first(method, ctx)
    student = method.roles["student"].module
    assert max(float(g.abs().max()) for g in gradient(terms["J"], student)) < 1e-6
    method.state["t"] = 1.0
    batch, terms = first(method, ctx)
    with torch.no_grad():
        z_t = method.task.feed(method.roles["teacher"].module, batch)[:, :-1]
    z_s = method.task.feed(student, batch)[:, :-1]
    kl = F.kl(z_s, z_t, where=batch["where"][:, :-1]).sum()
    theirs = torch.autograd.grad(kl, list(student.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradient(terms["J"], student), theirs, strict=True))


def test_value_kl_has_the_same_gradient_and_is_zero_at_equality() -> None:
    found = {}
    for value in ("cross_entropy", "kl"):
        method, ctx, _ = bound(value=value)
        _, terms = first(method, ctx)
        found[value] = (terms["J"].total().item(), gradient(terms["J"], method.roles["student"].module))
    assert found["cross_entropy"][0] > found["kl"][0] > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found["kl"][1], found["cross_entropy"][1], strict=True))
    z = torch.randn(1, 3, 7)
    tokens = Tokens(z, z.clone(), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))
    method.state["t"] = 0.3
    assert method.compared(tokens, ctx).abs().max() < 1e-6


def test_interpolating_probabilities_and_the_ablation() -> None:
    plain, ctx, _ = bound()
    other, ctx_2, _ = bound(space="probabilities")
    free, ctx_3, _ = bound(detach_student=False)
    batch, a = first(plain, ctx)
    b, c = (first(m, x)[1]["J"].total() for m, x in ((other, ctx_2), (free, ctx_3)))
    with torch.no_grad():
        z_t = plain.task.feed(plain.roles["teacher"].module, batch)[:, :-1]
        z_s = plain.task.feed(plain.roles["student"].module, batch)[:, :-1]
        target = 0.6 * z_s.softmax(-1) + 0.4 * z_t.softmax(-1)
        expected = -(target * z_s.log_softmax(-1)).sum(-1)[batch["where"][:, :-1]].sum()
    assert torch.allclose(b, expected, rtol=1e-5) and not torch.allclose(a["J"].total(), b, rtol=1e-7)
    assert torch.allclose(a["J"].total(), c, rtol=1e-5)  # the same value, another gradient
    grads = [
        gradient(Terms(J=x)["J"], m.roles["student"].module)
        for x, m in ((a["J"], plain), (first(free, ctx_3)[1]["J"], free))
    ]
    assert any(not torch.allclose(x, y, atol=1e-6) for x, y in zip(*grads, strict=True))


def test_masks_and_chunks_leave_the_values_and_gradients_as_they_are() -> None:
    found = []
    for chunk in (0, 7):
        method, ctx, _ = bound(setup_of(pairs=True), distil_ratio=0.6, chunk=chunk)
        _, terms = first(method, ctx)
        found.append((terms["J"].values, gradient(terms["J"], method.roles["student"].module)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))
    where = torch.tensor([[True, False]])
    for space in ("logits", "probabilities"):
        method = Taid(space=space)  # type: ignore[arg-type]
        method.state = {"t": 0.6}
        z = torch.randn(1, 2, 9)
        spoilt = torch.where(where.unsqueeze(-1), z, torch.full_like(z, float("nan")))
        told = [
            Tokens(a, b, torch.zeros(1, 2, dtype=torch.long), where)
            for a, b in ((z, z.flip(-1)), (spoilt, spoilt.flip(-1)))
        ]
        one, two = (method.compared(t, ctx=None) for t in told)  # type: ignore[arg-type]
        assert torch.equal(one, two) and float(one[0, 1]) == 0 < float(one[0, 0])


# ------------------------------------------------------------------------------------------------ the path of t


def trace(method: Taid, losses: list[float], total: int) -> list[float]:
    ctx = RunContext(Engine(EngineSettings(device="cpu")), method, Stage("distil", steps=total), torch.device("cpu"))
    path = []
    for step, loss in enumerate(losses):
        method.observe({"J": loss, "tokens": 1.0}, ctx.at(step))
        path.append(method.state["t"])
    return path


def test_the_dossiers_schedule() -> None:
    method, _, _ = bound()
    assert method.state["t"] == 0.4
    path = trace(method, [3.0, 2.7, 2.8, 2.4], 10**9)
    assert path == pytest.approx([0.4, 0.40015007, 0.40030008, 0.40045016], abs=2e-8)
    assert method.state["momentum"] == pytest.approx(0.002042, abs=1e-6)


def test_t_never_falls_and_never_lags_the_line() -> None:
    method, _, _ = bound(alpha=0.2, t_start=0.2, t_end=0.9)
    losses = (torch.rand(60) * 3 + 0.1).tolist()
    path = trace(method, losses, 60)
    assert all(b >= a for a, b in itertools.pairwise(path)) and path[0] >= 0.2 and path[-1] <= 0.9
    assert all(t >= linear(s, 60, start=0.2, end=0.9) - 1e-12 for s, t in enumerate(path))
    assert max(t - linear(s, 60, start=0.2, end=0.9) for s, t in enumerate(path)) > 0.1


def test_linear_and_constant() -> None:
    method, _, _ = bound(schedule="linear", t_start=0.2)
    assert trace(method, [1.0] * 11, 10) == pytest.approx([0.2 + 0.08 * s for s in range(11)])
    method, _, _ = bound(schedule="constant", t_end=0.7)
    assert method.state["t"] == 0.7 and trace(method, [2.0, 1.0], 10) == [0.7, 0.7]


def test_t_moves_once_a_step_by_the_mean_over_all_micro_batches() -> None:
    states = []
    for accumulate in (1, 2):
        method = Taid(alpha="auto")
        method.bind(setup_of(pairs=True))
        Engine(EngineSettings(device="cpu", accumulate=accumulate)).run(method)
        states.append(dict(method.state))
    assert states[0]["t"] == pytest.approx(states[1]["t"], abs=1e-6) and states[0]["t"] > 0.4
    assert states[0]["previous"] == pytest.approx(states[1]["previous"], rel=1e-5)


def test_short_runs_are_warned_and_auto_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "limbeck"):
        method, _, _ = bound(setup_of(steps=100))
        assert "alpha=auto" in caplog.text and method.notes
        caplog.clear()
        for changes in ({"alpha": "auto"}, {"schedule": "linear"}):
            assert not bound(setup_of(steps=100), **changes)[0].notes
    assert not caplog.text
    assert bound(setup_of(steps=15600), alpha="auto")[0].rate == pytest.approx(5e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"t_start": 1.0}, {"t_end": 0.0}, {"t_start": 0.8, "t_end": 0.5}, {"alpha": 1.5}, {"alpha": -0.1}, {"beta": 1.0},
     {"distil_ratio": 1.1}, {"temperature": 0.0}, {"chunk": -1}],
)  # fmt: skip
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Taid(**wrong)


def test_another_task_is_refused() -> None:
    from limbeck.grammar.task import Task

    with pytest.raises(ConfigError, match="task=language"):
        Taid().accept(Task())
    Taid().accept(setup_of().task)


def test_a_preset_tells_the_papers_defaults() -> None:
    method = Taid()
    paper = presets_of("taid")["phi3-tinyllama"]["method"]
    assert (method.t_start, method.t_end, method.alpha, method.beta) == tuple(
        paper[k] for k in ("t_start", "t_end", "alpha", "beta")
    )
    assert method.distil_ratio == 1.0 and method.value == "cross_entropy"
