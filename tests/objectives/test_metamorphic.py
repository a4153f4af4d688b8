"""Objectives do what their words say: positions, items and widths permuted, tokens masked, every setting changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.feature import attention_transfer
from limbeck.functional.relation import gram
from limbeck.grammar.method import Objective
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import Signal
from limbeck.objectives import AttentionTransfer, Divergence, FeatureMatch, Mixup, Relation
from limbeck.objectives.queries import Augment, Cutmix, Flip, Noise
from limbeck.tasks.language import Language


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def value(objective: Objective, s: Tensor, t: Tensor, **batch: Any) -> Tensor:
    """What an objective says of two features, after it has looked at their shapes."""
    objective.name = "look"
    signals = Signal(None, {"a": s}), Signal(None, {"b": t})
    assert objective.prepare(*signals, {}) is None
    term = objective(*signals, batch, None)  # type: ignore[arg-type]
    return term.values


def look(s: Tensor, t: Tensor, **batch: Any) -> Tensor:
    return value(AttentionTransfer("a", "b"), s, t, **batch)


def test_attention_of_tokens_compares_positions() -> None:
    s, t = draw(4, 7, 6), draw(4, 7, 5, seed=1)
    by_hand = []
    for x in (s, t):
        energy = x.square().sum(2)  # [N, L]
        by_hand.append(energy / energy.norm(dim=1, keepdim=True))
    torch.testing.assert_close(look(s, t), (by_hand[0] - by_hand[1]).square().sum(1))
    shuffled = t[:, [3, 1, 0, 6, 2, 5, 4]]
    assert ((look(s, shuffled) - look(s, t)).abs() > 1e-3).all()
    torch.testing.assert_close(look(s, t[:, :, [4, 2, 0, 1, 3]]), look(s, t))  # channels are summed over
    torch.testing.assert_close(look(3.0 * s, 0.1 * t), look(s, t))
    assert look(s, s).abs().max() < 1e-12
    torch.testing.assert_close(look(s[[2, 0]], t[[2, 0]]), look(s, t)[[2, 0]])


def test_attention_of_tokens_is_that_of_the_map_they_come_from() -> None:
    s, t = draw(2, 6, 3, 4), draw(2, 5, 3, 4, seed=1)
    tokens = [x.flatten(2).transpose(1, 2) for x in (s, t)]
    torch.testing.assert_close(look(*tokens), look(s, t))
    torch.testing.assert_close(look(tokens[0], t), look(s, t))


def test_attention_of_maps_averages_the_larger_one_down() -> None:
    s, t = draw(2, 6, 4, 4), draw(2, 5, 2, 2, seed=1)
    torch.testing.assert_close(look(s, t), attention_transfer(s, t))
    torch.testing.assert_close(look(t, s), look(s, t))


@pytest.mark.parametrize(
    ("s", "t"),
    [((2, 7, 4), (2, 9, 4)), ((2, 7, 4), (2, 4, 7, 2)), ((2, 4), (2, 4)), ((2, 4, 3, 3, 3), (2, 4, 3, 3, 3))],
    ids=str,
)
def test_places_that_nobody_can_match_are_refused(s: tuple[int, ...], t: tuple[int, ...]) -> None:
    objective = AttentionTransfer("a", "b")
    objective.name = "look"
    with pytest.raises(ShapeError, match=r"objectives\.look: student 'a' shows \[.*\], teacher 'b' shows \["):
        objective.prepare(Signal(None, {"a": draw(*s)}), Signal(None, {"b": draw(*t)}), {})


@pytest.mark.parametrize("make", [AttentionTransfer, Relation], ids=lambda c: c.__name__)
def test_tokens_that_do_not_count_change_nothing(make: Callable[..., Objective]) -> None:
    s, t = draw(3, 5, 4), draw(3, 5, 6, seed=1)
    where = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    plain = value(make("a", "b"), s, t, where=where)
    hurt = [torch.where(where[..., None], x, torch.nan) for x in (s, t)]
    torch.testing.assert_close(value(make("a", "b"), *hurt, where=where), plain, rtol=0, atol=0)
    assert not torch.allclose(plain, value(make("a", "b"), s, t))


def test_relation_compares_items() -> None:
    s, t = draw(5, 4), draw(5, 6, seed=1)
    relation = Relation("a", "b")
    plain = value(relation, s, t)
    torch.testing.assert_close(plain, gram(s, t))
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(value(relation, s[order], t[order]), plain[order])
    assert not torch.allclose(value(relation, s[order], t), plain)  # other neighbours
    torch.testing.assert_close(value(relation, 3.0 * s, t[:, [5, 4, 3, 2, 1, 0]]), plain)
    maps = draw(5, 3, 4, 4), draw(5, 3, 2, 2, seed=1)  # of different sizes, each compared as it is
    torch.testing.assert_close(value(relation, *maps), gram(*maps))
    with pytest.raises(ConfigError, match=r"one item alone; .*engine\.accumulate"):
        value(relation, s[:1], t[:1])


def test_what_couples_a_batch_says_so() -> None:
    assert all(part.coupled for part in (Relation, Mixup, Cutmix))
    assert not any(part.coupled for part in (AttentionTransfer, FeatureMatch, Divergence, Flip, Noise, Augment))


KINDS = [
    *("forward", "reverse", "jensen-shannon", "jeffreys", "total-variation", "skew-forward", "skew-reverse"),
    *("soft-cross-entropy", "binary", "squared"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("setting", "other"), [("temperature", 2.0), ("scale_t2", False), ("beta", 0.2), ("mix", 0.4)], ids=lambda x: str(x)
)
def test_a_setting_of_a_divergence_changes_it_or_is_refused(kind: Any, setting: str, other: Any) -> None:
    z_s, z_t = draw(4, 5), draw(4, 5, seed=1)
    base = {"temperature": 2.0} if setting == "scale_t2" and kind != "squared" else {}
    try:
        changed = Divergence(kind, **base, **{setting: other}).values(z_s, z_t)
    except ValueError as error:
        assert f"{setting} changes nothing" in str(error)
        assert kind == "squared" or setting in ("beta", "mix")
        return
    assert not torch.allclose(changed, Divergence(kind, **base).values(z_s, z_t))


class Ctx:
    draws = Draws(0, ("t", 0))


def test_settings_of_queries_change_something() -> None:
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = {"x": x, "y": torch.arange(6) % 3, "item": torch.arange(6), "view": torch.zeros(6, dtype=torch.long)}
    for one, other in (
        (Noise(0.1), Noise(0.2)),
        (Flip(0.2), Flip(0.8)),
        (Mixup(0.2, classes=3), Mixup(5.0, classes=3)),
        (Cutmix(1.0, classes=3), Cutmix(0.1, classes=3)),
        (Mixup(0.2, classes=3), Mixup(0.2, classes=4)),
        (Augment("color"), Augment("crop")),
        (Augment("rotate"), Augment("rotate", align_corners=False)),
    ):
        a, b = one(batch, Ctx()), other(batch, Ctx())  # type: ignore[arg-type]
        assert a["y"].shape != b["y"].shape or not torch.equal(a["x"], b["x"])
    assert torch.equal(Noise(0.0)(batch, Ctx())["x"], x)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", [Noise(), Augment()], ids=lambda q: type(q).__name__)
def test_a_query_for_numbers_refuses_texts_before_training(query: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    monkeypatch.setattr(Language, "example", lambda self, n=2: {"input_ids": ids})
    with pytest.raises(ConfigError, match=r"queries\.(noise|dsa).*leave it out"):
        query.accept(Language.__new__(Language))
