"""What a network's output is taken for: one tensor, the classes last; anything that could be two things is refused."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.errors import ShapeError, TapError
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal
from limbeck.models.ensemble import Ensemble
from limbeck.objectives import Criterion, Divergence, Kl

Z, H = torch.randn(2, 3), torch.randn(2, 5)
Out = namedtuple("Out", "logits aux")


@pytest.mark.parametrize(
    "out",
    [
        Z,
        (Z,),
        [Z],
        (Z, None),
        (Z, object()),
        {"logits": Z, "hidden": H},
        {"sample": Z, "x": H},
        Out(Z, H),
        SimpleNamespace(logits=Z, hidden=H),
        SimpleNamespace(sample=Z),
        SimpleNamespace(logits=None, sample=Z),
    ],
    ids=lambda out: type(out).__name__,
)
def test_one_tensor_or_one_that_is_named(out: Any) -> None:
    assert Signal(out).logits is Z


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ((Z, H), r"2 tensors \(0: \[2, 3\], 1: \[2, 5\]\), and none called 'logits' or 'sample'"),
        ([H, None, Z], r"2 tensors \(0: \[2, 5\], 2: \[2, 3\]\)"),
        ({"out": Z, "aux": H}, r"2 tensors \(out: \[2, 3\], aux: \[2, 5\]\)"),
        ({"out": Z}, r"a tensor \(out: \[2, 3\]\) that is not called 'logits'"),
    ],
    ids=["tuple", "list", "mapping", "one of another name"],
)
def test_several_tensors_are_refused_with_how_to_name_one(out: Any, said: str) -> None:
    with pytest.raises(TapError, match=said) as caught:
        _ = Signal(out).logits
    assert "return the logits alone, or a dict: {'logits': ..., ...}" in caught.value.line()


def test_what_has_no_tensor_is_refused() -> None:
    for nothing in (None, "text", (), {}, (None,)):
        with pytest.raises(TapError, match="in which no logits were found"):
            _ = Signal(nothing).logits


def test_half_precision_logits_are_float32_and_outputs_are_not_touched() -> None:
    assert Signal(Z.half()).logits.dtype == torch.float32 and Signal(Z.half()).output.dtype == torch.float16
    assert Signal(Z.double()).logits.dtype == torch.float64


MAP = torch.randn(2, 3, 4, 5)  # [N, C, H, W]


def test_a_contract_refuses_maps_whose_classes_are_second() -> None:
    for contract in (Contract(width=3), Contract(width=3, classes=(2, 0))):
        with pytest.raises(ShapeError, match=r"\[\.\.\., 3\], the classes last.*movedim\(1, -1\)"):
            contract.outputs(MAP)
        with pytest.raises(ShapeError, match=r"classes last.*last layer"):
            contract.outputs(torch.randn(2, 7))
    last = MAP.movedim(1, -1)
    assert torch.equal(Contract(width=3, classes=(2, 0)).outputs(last), last[..., [2, 0]])
    named = {"logits": last, "hidden": H}
    assert Contract(width=3).outputs(named) is named


class Maps(nn.Module):
    """Answers [N, C, H, W], or the classes last."""

    def __init__(self, last: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(2, 3, 1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return z.movedim(1, -1) if self.last else z


X = torch.randn(2, 2, 4, 5)


def test_an_ensemble_averages_over_the_classes_of_maps() -> None:
    members = [Maps(True, 0), Maps(True, 1)]
    contracts = [Contract(width=3), Contract(width=3, classes=(2, 1, 0))]
    got = Ensemble(members, contracts, [1.0, 3.0])(X)
    a, b = members[0](X).softmax(-1), members[1](X)[..., [2, 1, 0]].softmax(-1)
    torch.testing.assert_close(got, (0.25 * a + 0.75 * b).log())
    with pytest.raises(ShapeError, match="classes last"):
        Ensemble([Maps(False, 0)], contracts[:1], [1.0])(X)


@pytest.mark.parametrize("make", [Kl, Divergence], ids=lambda c: c.__name__)
def test_objectives_take_classes_from_the_last_dimension_alone(make: Any) -> None:
    right = Criterion({"kl": make(classes=3)}, Maps(True, 0), Maps(True, 1), X)
    want = F.kl(Maps(True, 0)(X), Maps(True, 1)(X)).mean()
    torch.testing.assert_close(right(X), want)
    with pytest.raises(ShapeError, match=r"objectives\.kl: .*\[2, 3, 4, 5\].*movedim\(1, -1\)"):
        Criterion({"kl": make(classes=3)}, Maps(False, 0), Maps(False, 1), X)(X)
    with pytest.raises(ShapeError, match=r"objectives\.kl: nothing says which.*set classes=C"):
        Criterion({"kl": make()}, Maps(False, 0), Maps(False, 1), X)(X)
    squared = Criterion({"l2": Divergence("squared")}, Maps(False, 0), Maps(False, 1), X)
    assert squared(X) > 0  # numbers have no classes
