"""DisWOT's metrics as add-ons: against plain formulas, who learns, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.relation import channel_correlation
from limbeck.grammar.signal import Signal
from limbeck.objectives import ChannelCorrelation, Semantic
from tests.tiny import tiny

X = {"x": torch.rand(5, 1, 8, 8), "y": torch.tensor([0, 1, 2, 1, 0])}


def signal(width: int, seed: int, path: str = "fc:in") -> tuple[Signal, torch.nn.Linear]:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(width, 3)
    f = torch.randn(5, width, requires_grad=True)
    return Signal(layer(f), {path: f}), layer


def test_semantic_is_the_distance_of_the_classifiers_gradients() -> None:
    (s, a), (t, b) = signal(4, 0), signal(4, 1)
    objective = Semantic(student="fc:in", teacher="fc:in", weight=2.0)
    assert objective.prepare(s, t, X) is None
    term = objective(s, t, X, None)  # type: ignore[arg-type]
    grads = [torch.autograd.grad(torch.nn.functional.cross_entropy(n(x.acts["fc:in"]), X["y"]), n.weight)[0]
             for n, x in ((a, s), (b, t))]  # fmt: skip
    torch.testing.assert_close(term.values, channel_correlation(*grads))
    assert term.values.shape == (3,) and term.weight == 2.0
    assert float(objective(t, t, X, None).values.detach().abs().max()) == 0.0  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(term.total(), [s.acts["fc:in"]])
    assert bool(found.any())


def test_channels_that_move_together() -> None:
    f, g = (torch.randn(5, 4, n, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2))
    s, t = Signal(f, {"map": f}), Signal(g, {"map": g})
    objective = ChannelCorrelation("map", "map")
    objective.prepare(s, t, X)
    torch.testing.assert_close(objective(s, t, X, None).values, channel_correlation(f, g))  # type: ignore[arg-type]
    tokens = [Signal(x, {"map": x.flatten(2).transpose(1, 2)}) for x in (f, g)]
    torch.testing.assert_close(objective(*tokens, X, None).values, channel_correlation(f, g))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "node", ["{use: semantic}", "{use: channel-correlation, student: features.0, teacher: features}"]
)  # fmt: skip
def test_they_attach_to_a_search_and_to_what_it_found(node: str, tmp_path: Path) -> None:
    made = tiny("diswot", tmp_path, f"objectives={{extra: {node}}}", "teach.steps=1", "train.steps=2")
    before = {n: p.clone() for n, p in made.method.roles["teacher"].module.named_parameters()}  # type: ignore[union-attr]
    method: Any = made.run().method
    projector = method.roles.get("projector:extra")
    assert (projector is not None) == ("never" in node)
    assert all(torch.equal(p, before[n]) for n, p in method.roles["teacher"].module.named_parameters())


def test_a_projector_for_another_width_than_that_found_is_refused(tmp_path: Path) -> None:
    add_on = "objectives={extra: {use: channel-correlation, student: features.0, teacher: features}}"
    space = "method.space={width: [6], activation: null, norm: null}"
    with pytest.raises(ConfigError, match=r"objectives\.extra: its projector was made for the hand-picked student"):
        tiny("diswot", tmp_path, add_on, space, "method.metrics=[relation]", "student.width=3", "teach.steps=0").run()


def test_bad_input_is_refused() -> None:
    (s, _), (t, _) = signal(4, 0), signal(6, 1)
    objective = Semantic(student="fc:in", teacher="fc:in", project="never")
    with pytest.raises(ShapeError, match="4 and 6 channels"):
        objective.prepare(s, t, X)
    with pytest.raises(ConfigError, match="not at hand"):
        Semantic().look(torch.nn.Linear(2, 2), None)
    with pytest.raises(ShapeError, match="shows no places"):
        ChannelCorrelation("fc:in", "fc:in").prepare(s, t, X)
    maps = Signal(s.out, {"fc:in": torch.zeros(5, 4, 2, 2)})
    with pytest.raises(ShapeError, match="no row of features"):
        Semantic(student="fc:in", teacher="fc:in").prepare(maps, t, X)
