"""MIX-KD: how many items are mixed, the loss, the temperature around other methods, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as f

import limbeck.functional as F
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, LimbeckError
from limbeck.grammar.random import Draws
from limbeck.methods.classification.mixup_kd import MixupKd
from limbeck.objectives import PartialMixup
from tests.tiny import shared_tiny as tiny


class Ctx:
    """Draws, and how far training is."""

    def __init__(self, step: int = 0, total: int = 11) -> None:
        self.draws, self.step, self.total = Draws(0, ("t", step)), step, total


def batch(n: int = 100) -> dict[str, torch.Tensor]:
    x = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    return {"x": x, "y": torch.arange(n) % 5, "item": torch.arange(n), "view": torch.zeros(n, dtype=torch.long)}


def mixed(query: PartialMixup, step: int = 0) -> tuple[dict[str, Any], int]:
    """The mixed batch, and how many of its images are none of those given."""
    out = query(batch(), Ctx(step))  # type: ignore[arg-type]
    x = out["x"][:, 0, 0, 0]
    torch.testing.assert_close(out["y"].sum(1), torch.ones(100))
    return out, int((x != x.round()).sum())


def test_how_many_items_are_mixed() -> None:
    assert mixed(PartialMixup(0.9, classes=5))[1] in range(8, 11)  # one may be its own partner
    assert mixed(PartialMixup(0.0, classes=5))[1] >= 98
    assert mixed(PartialMixup(1.0, classes=5))[1] == 0
    hit = [mixed(PartialMixup(0.9, replacement=True, classes=5), step)[1] for step in range(20)]
    assert 36 < sum(hit) / 20 < 45, "with replacement about exp(-0.9) of the items stay mixed"


def test_the_share_of_unmixed_items_follows_its_schedule() -> None:
    query = PartialMixup(1.0, 0.0, classes=5)
    assert [mixed(query, step)[1] // 10 for step in (0, 5, 10)] == [0, 4, 9] or [
        mixed(query, step)[1] for step in (0, 5, 10)
    ] == pytest.approx([0, 50, 100], abs=3)


def test_images_and_labels_are_mixed_by_the_same_shares() -> None:
    out, _ = mixed(PartialMixup(0.0, classes=5))
    own = f.one_hot(batch()["y"], 5).float()
    # with its own item in its row, an item's label keeps at least the share that its image has
    assert torch.equal(out["item"], torch.arange(100))
    assert float(out["y"].gather(1, batch()["y"][:, None]).min()) >= 0 and not torch.equal(out["y"], own)
    one = PartialMixup(0.0, per_item=False, classes=5)(batch(), Ctx())["y"]  # type: ignore[arg-type]
    largest = one.amax(1)
    assert len(set(largest[largest < 1].tolist())) <= 2, "one share for the whole batch"


def test_independent_pairs_move_everything_with_the_first_item() -> None:
    out, _ = mixed(PartialMixup(1.0, partners="independent", classes=5))
    assert not torch.equal(out["item"], torch.arange(100))
    assert torch.equal(out["x"][:, 0, 0, 0].long(), out["item"])
    assert torch.equal(out["y"].argmax(1), out["item"] % 5)


def test_logits_divided_by_their_deviation() -> None:
    z = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = F.divide_by_std(z)
    torch.testing.assert_close(scaled, z / z.std(-1, keepdim=True))
    torch.testing.assert_close(F.divide_by_std(5 * z), scaled)
    torch.testing.assert_close(scaled.std(-1), torch.ones(6, dtype=torch.float64))
    assert torch.isfinite(F.divide_by_std(torch.zeros(1, 3))).all()
    gone = z.clone()
    gone[:, 0] = -torch.inf
    torch.testing.assert_close(F.divide_by_std(gone)[:, 1:], z[:, 1:] / z[:, 1:].std(-1, keepdim=True))


def first_terms(made: Any) -> tuple[Any, Any, Any]:
    from limbeck.grammar.role import cast

    method = made.method
    made.engine.prepare(method)
    stage = made.engine.stages[0]
    cast(method.roles, tuple(stage.optim))
    ctx = RunContext(made.engine, method, stage, made.engine.device).at(0)
    given = method.task.example(6)
    for query in [*method.setup.queries.values(), *stage.queries]:
        given = query(given, ctx)
    return method.step(given, ctx), given, ctx


def test_terms_are_the_equations(tmp_path: Path) -> None:
    terms, given, ctx = first_terms(tiny("mixup-kd", tmp_path, "method.mix=full"))
    z_s, z_t = (ctx.signals[n].logits.detach() for n in ("student", "teacher"))
    q, p = ((z / z.std(-1, keepdim=True)) for z in (z_s, z_t))
    want = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(terms["kl"].values.detach(), want)
    torch.testing.assert_close(terms["ce"].values.detach(), -(given["y"] * q.log_softmax(-1)).sum(-1))
    fixed, given, ctx = first_terms(tiny("mixup-kd", tmp_path, "method.mix=none", "method.temperature=4"))
    z_s, z_t = (ctx.signals[n].logits.detach() for n in ("student", "teacher"))
    torch.testing.assert_close(fixed["kl"].values.detach(), F.kl(z_s, z_t, temperature=4.0))
    assert given["y"].dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "words"),
    [("kd", []), ("nkd", []), ("bd-kd", []), ("nd-loss", []), ("uskd", [])],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_attaches_to_other_methods_by_recipe(name: str, words: list[str], tmp_path: Path) -> None:
    add = "queries.mix={use: partial-mixup, unmixed: 0.5, temperature: std}"
    made = tiny(name, tmp_path, add, *words, "train.steps=2")
    made.run()
    for role in ("student", "teacher"):
        if role in made.method.roles:
            assert made.method.roles[role].contract.by_std == "through"
    assert made.bench.student.contract.by_std == "", "evaluation sees the logits as they are"
    ctx = RunContext(made.engine, made.method, made.engine.stages[-1], made.engine.device)
    z = ctx.signal("student", made.method.task.example(3)).logits
    torch.testing.assert_close(z.std(-1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("mixup-kd", ["method.unmixed=2"], "unmixed"),
        ("mixup-kd", ["method.beta=0"], "beta"),
        ("mixup-kd", ["method.mix=full", "method.unmixed_end=0.5"], "unmixed_end"),
        ("mixup-kd", ["task.data=scikit-learn:breast-cancer"], "images"),
        ("mixup-kd", ["task.data=scikit-learn:breast-cancer", "method.mix=none"], "3 classes or more"),
        ("kd", ["queries.mix=partial-mixup", "queries.mix.classes=3"], "classes: got 3, expected 10"),
    ],
)
def test_what_cannot_be_is_refused(name: str, words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny(name, tmp_path, *words)


def test_settings_are_refused_by_name() -> None:
    with pytest.raises((ConfigError, ValueError), match="unmixed_end"):
        MixupKd(mix="full", unmixed_end=0.5)
