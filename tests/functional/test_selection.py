"""What is kept of a pool, against a slow definition; orders, ties and limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, LimbeckError, ShapeError
from limbeck.functional.selection import confidence_weights, select, student_share

G = torch.Generator().manual_seed(0)


def slow(z_t: Tensor, z_s: Tensor, beta: float, rule: str, agree: bool, **k: Any) -> list[int]:
    """The numbers of the items that are kept, item by item."""
    found = []
    for i in range(len(z_t)):
        p = (1 - beta) * z_t[i].softmax(0) + beta * z_s[i].softmax(0)
        if not agree or int(z_t[i].argmax()) == int(z_s[i].argmax()):
            found.append((-float(p.max()), i, int(p.argmax())))
    if rule == "threshold":
        return sorted(i for c, i, _ in found if -c >= k["threshold"])
    found.sort()
    if rule == "topk":
        return sorted(i for _, i, _ in found[: math.ceil(k["ratio"] * len(z_t))])
    return sorted(i for c in range(z_t.shape[1]) for _, i, _ in [f for f in found if f[2] == c][: k["per_class"]])


@pytest.mark.parametrize("agree", [False, True])
@pytest.mark.parametrize("rule", ["threshold", "topk", "topk_per_class"])
def test_equals_the_definition(rule: Any, agree: bool) -> None:
    for trial in range(6):
        z_t, z_s = (torch.randn(40, 4, generator=G, dtype=torch.float64).mul(2).round() for _ in range(2))  # with ties
        k: dict[str, Any] = {"threshold": 0.6, "ratio": 0.3, "per_class": trial}
        got = select(z_t, z_s, beta=0.3, rule=rule, require_agreement=agree, **k)
        assert got.kept.nonzero()[:, 0].tolist() == slow(z_t, z_s, 0.3, rule, agree, **k)
        assert not got.score.requires_grad


def test_the_order_of_the_pool_changes_nothing() -> None:
    z_t, z_s = (torch.randn(50, 5, generator=G) for _ in range(2))
    order = torch.randperm(50, generator=G)
    for rule in ("all", "threshold", "topk", "topk_per_class"):
        for score in ("msp", "entropy", "energy"):
            k: dict[str, Any] = {"rule": rule, "score": score, "beta": 0.5, "threshold": 0.4, "per_class": 3}
            assert torch.equal(select(z_t[order], z_s[order], **k).kept, select(z_t, z_s, **k).kept[order])


def test_scores() -> None:
    z = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]])
    even, sure = select(z, score="entropy").score.tolist()
    assert even == pytest.approx(0, abs=1e-6) and sure == pytest.approx(1)
    torch.testing.assert_close(select(z, score="energy").score, z.logsumexp(1))
    assert select(z, score="msp").score.tolist() == pytest.approx([1 / 3, 1])
    assert select(z, rule="topk", ratio=0).kept.sum() == 0 and select(z, rule="topk", ratio=1).kept.all()


def test_the_share_of_the_student() -> None:
    assert student_share(0, 10) == 0 and student_share(5, 10) == 0.5 and student_share(9, 10, most=0.3) == 0.3
    assert student_share(0, 10, ramp=0) == 0.5 and student_share(5, 10, ramp=1.0) == 0.25
    epochs = torch.arange(7)
    many = student_share(epochs, 7, ramp=0.7)
    assert isinstance(many, Tensor)
    assert many.tolist() == pytest.approx([student_share(int(e), 7, ramp=0.7) for e in epochs])


def test_weights() -> None:
    c = torch.rand(9, generator=G, requires_grad=True)
    assert not confidence_weights(c).requires_grad
    assert confidence_weights(c, c.mean()).mean().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("error", "said", "k"),
    [
        (ConfigError, "beta", {"beta": 1.5}),
        (ConfigError, "student", {"beta": 0.5}),
        (ConfigError, "student", {"require_agreement": True}),
        (ConfigError, "rule", {"rule": "best"}),
        (ConfigError, "score", {"score": "margin"}),
        (ConfigError, "ratio", {"ratio": math.nan}),
        (ConfigError, "per_class", {"per_class": -1}),
        (LimbeckError, "classes", {"student": torch.zeros(3, 4)}),
    ],
)
def test_what_cannot_be(error: type[Exception], said: str, k: dict[str, Any]) -> None:
    with pytest.raises(error, match=said):
        select(torch.zeros(3, 5), **k)


def test_a_pool_is_a_row_each() -> None:
    with pytest.raises(ShapeError, match="pool"):
        select(torch.zeros(3))
    with pytest.raises(ConfigError, match="ramp"):
        student_share(0, 1, ramp=2)
