"""BPKD: its switches, what is left out at weight 0, pixels that do not count, and channel-wise distillation beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.dense import body_divergence, channel_divergence, edge_divergence, edge_masks
from limbeck.grammar.signal import Signal
from limbeck.methods.dense.bpkd import Bpkd
from limbeck.objectives.maps import ChannelWise
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import tiny, tree_of

G = torch.Generator().manual_seed(0)
Z_S, Z_T = (torch.randn(2, 8, 8, 3, generator=G) for _ in range(2))
Y = torch.randint(0, 3, (2, 4, 4), generator=G).repeat_interleave(4, 1).repeat_interleave(4, 2)  # [2, 16, 16]
WHERE = torch.rand(Y.shape, generator=G) > 0.1


def test_the_defaults_are_the_paper_s_form() -> None:
    method = Bpkd()
    M, valid = edge_masks(Y, 3, (8, 8), width=7, where=WHERE)
    found = method.matched(Z_S, Z_T, Y, WHERE)
    torch.testing.assert_close(found["edge"], edge_divergence(Z_S, Z_T, M, alpha=2.0))
    torch.testing.assert_close(found["body"], body_divergence(Z_S, Z_T, M, valid))
    assert (method.weight_body, method.weight_edge) == (20, 50)


@pytest.mark.parametrize(
    "switch",
    [
        {"temperature_edge": 4.0},
        {"temperature_body": 4.0},
        {"alpha": [1.0, 2.0, 3.0]},
        {"edge_width": 3},
        {"premask": False},
        {"postmask": False},
        {"mask": "hard"},
        {"per_class": False},
        {"edge_count": "mask_sum"},
        {"edge_count": "pixels"},
        {"body": "pixel"},
        {"exclude": True},
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()),
)
def test_every_switch_changes_its_term_which_is_nought_at_equality(switch: dict[str, Any]) -> None:
    plain, changed = Bpkd().matched(Z_S, Z_T, Y, WHERE), Bpkd(**switch).matched(Z_S, Z_T, Y, WHERE)
    differ = {n for n in plain if not torch.allclose(plain[n], changed[n])}
    both = {"edge_width", "mask", "per_class"} & set(switch)
    body = {"temperature_body", "body", "exclude"} & set(switch)
    assert differ == ({"edge", "body"} if both else {"body"} if body else {"edge"})
    same = Bpkd(**switch).matched(Z_T, Z_T, Y, WHERE)
    assert all(float(v.abs().max()) < 1e-4 for v in same.values())


def test_pixels_that_do_not_count_change_nothing() -> None:
    method = Bpkd()
    one = method.matched(Z_S, Z_T, Y, WHERE)
    other = method.matched(Z_S, Z_T, torch.where(WHERE, Y, 2 - Y), WHERE)
    assert all(torch.equal(one[n], other[n]) for n in one)
    gone = method.matched(Z_S.clone().requires_grad_(), Z_T, Y, torch.zeros_like(WHERE))
    assert all(not v.detach().any() for v in gone.values())
    sum(v.sum() for v in gone.values()).backward()  # type: ignore[union-attr]


def test_a_weight_of_nought_leaves_its_term_out(tmp_path: Path) -> None:
    made = tiny("bpkd", tmp_path, "method.weight_edge=0")
    made.run()
    assert set(Bpkd(weight_edge=0).matched(Z_S, Z_T, Y, WHERE)) == {"body"}


def test_channel_wise_distillation_attaches_to_any_method(tmp_path: Path) -> None:
    cwd = ChannelWise(weight=3.0, temperature=2.0)
    term = cwd(Signal(Z_S), Signal(Z_T), {}, None)  # type: ignore[arg-type]
    torch.testing.assert_close(term.values, channel_divergence(Z_S, Z_T, temperature=2.0).mean(-1))
    assert term.weight == 3.0
    coarse = F.dense.resized(Z_T, (4, 4))
    assert cwd(Signal(coarse), Signal(Z_T), {}, None).values.shape == (2,)  # type: ignore[arg-type]
    feature = ChannelWise(student="a", teacher="a")
    acts = Signal(Z_S, {"a": Z_S.movedim(-1, 1)}), Signal(Z_T, {"a": Z_T.movedim(-1, 1)})
    torch.testing.assert_close(
        feature(*acts, {}, None).values,  # type: ignore[arg-type]
        channel_divergence(Z_S, Z_T).mean(-1),
    )
    tiny("bpkd", tmp_path, "method={use: objectives, objectives: {ce: supervised, cwd: cwd}}").run()
    with pytest.raises(ConfigError, match=r"student: and teacher must be named together"):
        build(tree_of("bpkd", "objectives.cwd={use: cwd, student: head}"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.edge_width=4"], "edge_width: must be odd"),
        (["method.edge_width=1"], "3 or more"),
        (["method.edge_width=35"], r"edge_width.*at most the image's 16"),
        (["method.alpha=[1,2]"], "alpha.*2 numbers.*1, or 4"),
        (["method.alpha=-1"], "alpha"),
        (["method.edge_count=half"], "edge_count"),
        (["method.temperature_body=0"], "above 0"),
        (["task=classification"], "dense"),
        (["student=mlp"], r"needs maps.*unet"),
        (["queries.m=mixup"], "not answered with labels"),
        (["queries.c=crop"], "map-crop"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny("bpkd", tmp_path, *words)
    assert check(load_tree("bpkd", []))
