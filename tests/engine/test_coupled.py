"""What networks do with a batch as a whole: what is found, what is said of it, and a batch of one item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.coupled import as_in_training, by_mathematics, layers, tried
from limbeck.engine.inner import fit
from limbeck.engine.unaided import Unaided
from limbeck.errors import ConfigError
from limbeck.grammar.method import Method
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Role
from limbeck.objectives import Flip, Kl, Mixup, Relation
from tests.toy import Toy, bound, data, engine, learnt, network


class OwnNorm(nn.Module):
    """Somebody's own normalisation over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class OwnDropout(nn.Module):
    """Somebody's own dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


class Codes(nn.Module):
    """A codebook that follows what passes by, and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.codes.lerp_(x.detach().mean(0), 0.1)
        return x


def with_(part: nn.Module, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 6), part, nn.Linear(6, 3)).train()


@pytest.mark.parametrize(
    ("part", "statistics", "draws", "mixes", "varies", "moves"),
    [
        (nn.Identity, [], [], False, False, []),
        (lambda: nn.LayerNorm(6), [], [], False, False, []),
        (lambda: nn.BatchNorm1d(6), ["BatchNorm1d"], [], True, False, []),
        (lambda: nn.BatchNorm1d(6, track_running_stats=False), ["BatchNorm1d"], [], True, False, []),
        (lambda: nn.Dropout(0.5), [], ["Dropout"], False, True, []),
        (lambda: nn.Dropout(0.0), [], [], False, False, []),
        (nn.RReLU, [], ["RReLU"], False, True, []),
        (OwnNorm, [], [], True, False, []),
        (OwnDropout, [], [], False, True, []),
        (Codes, [], [], False, False, ["1.codes"]),
    ],
)
def test_layers_that_look_at_the_batch_or_draw_are_found(
    part: Callable[[], nn.Module],
    statistics: list[str],
    draws: list[str],
    mixes: bool,
    varies: bool,
    moves: list[str],
) -> None:
    net = with_(part())
    found = tried(net, lambda b: net(b["x"]), {"x": torch.randn(2, 6), "name": "batch"})
    assert (list(found.statistics), list(found.draws)) == (statistics, draws)
    assert (found.mixes, found.varies, found.moves) == (mixes, varies, moves)


def test_what_is_not_in_training_mode_couples_nothing() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.MultiheadAttention(4, 2, dropout=0.1))
    found = layers(net.train())
    assert found.statistics == {"BatchNorm1d": ["0"]} and found.draws == {"Dropout": ["1"], "MultiheadAttention": ["2"]}
    net[0].eval()
    assert not layers(net).statistics
    assert not layers(net.eval()).draws


def test_a_role_is_as_it_was_when_it_was_looked_at() -> None:
    net = network(norm=True).eval()
    net[1].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with as_in_training(Role(net)):
        assert net.training
        net(torch.randn(8, 6))
    assert not any(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (nn.Identity, []),
        (
            lambda: nn.BatchNorm1d(6),
            [
                "student: BatchNorm1d (1 layer) normalises each micro-batch by itself, so with engine.accumulate=2 it learns otherwise "
                "than from the whole batch at once"
            ],
        ),
        (
            lambda: nn.Dropout(0.5),
            ["student: Dropout (1 layer) draws at random for each part of a batch, so engine.accumulate=2"],
        ),
        (
            OwnNorm,
            ["student: what it says of an item depends on the other items of the batch, so with engine.accumulate=2"],
        ),
        (OwnDropout, ["student: the network draws at random for each part of a batch"]),
        (Codes, ["student: every pass moves 1.codes, so engine.accumulate=2 moves them 2 times a step"]),
    ],
)
def test_what_couples_is_said_where_batches_are_cut(part: Callable[[], nn.Module], said: list[str]) -> None:
    run = engine(accumulate=2)
    method = bound(Unaided(), student=with_(part()))
    before = learnt(method)["roles"]["student"]
    run.rehearse(method)
    found = run.coupling(method)
    assert len(found) == len(said) and all(f.startswith(s) for f, s in zip(found, said, strict=True)), found
    assert all(torch.equal(v, before[k]) for k, v in learnt(method)["roles"]["student"].items())
    whole = engine()
    whole.rehearse(method)
    assert whole.coupling(method) == []


def test_objectives_and_queries_that_couple_a_batch_are_named() -> None:
    method = bound(Unaided())
    method.setup.objectives = {"who": Relation("0", "0"), "kl": Kl()}
    method.setup.queries = {"mix": Mixup(), "turn": Flip()}
    end = ", so with engine.accumulate=2 it learns otherwise than from the whole batch at once"
    assert by_mathematics(method, method.setup.objectives, 2, 1) == [
        f"objectives.who: compares the items of a batch with each other{end}",
        f"queries.mix: mixes each item with another of the batch{end}",
    ]


def test_what_is_said_is_true() -> None:
    """Nothing is said of a network that accumulating does not change, and of each that it changes something is."""
    kinds: list[Callable[[], nn.Module]] = [nn.Identity, lambda: nn.LayerNorm(6), lambda: nn.BatchNorm1d(6), OwnNorm]
    for part in (*kinds, OwnDropout, nn.Dropout):
        found = []
        for accumulate in (1, 2):
            method = bound(Unaided(), student=with_(part()), optimizer="sgd", lr=0.1)
            run = engine(accumulate=accumulate)
            run.rehearse(method)
            said = run.coupling(method)
            run.run(method)
            found.append(learnt(method)["roles"]["student"]["2.weight"])
        changed = float((found[0] - found[1]).abs().max()) > 1e-5
        assert changed == bool(said), part


# --------------------------------------------------------------------------------------------------------- batch of one
@pytest.mark.parametrize(
    ("size", "accumulate", "said"),
    [
        (
            1,
            1,
            r"train\.batch_size=1 leaves parts of 1, expected two items or more in every part; set train\.batch_size=2;",
        ),
        (4, 4, r"cut by engine\.accumulate=4 leaves parts of 1.*set train\.batch_size=8, or engine\.accumulate=2;"),
        (7, 4, r"leaves parts of 1.*set train\.batch_size=8, or engine\.accumulate=3;"),
    ],
)
def test_a_batch_of_one_is_refused_before_anything_is_trained(size: int, accumulate: int, said: str) -> None:
    for made in (Toy(), Unaided()):
        method = bound(made, student=network(norm=True), batch_size=size)
        with pytest.raises(
            ConfigError, match=r"train\.batch_size: BatchNorm has a single item to normalise: .*" + said
        ):
            engine(accumulate=accumulate).rehearse(method)


def test_one_item_with_enough_values_a_channel_is_no_mistake() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x[:, None])[:, 0])  # type: ignore[no-any-return]

    engine().run(bound(Unaided(), student=Sequence(), batch_size=1))


def test_a_teacher_that_is_trained_names_its_own_setting() -> None:
    method = bound(Unaided(name="teacher"), student=network(norm=True), batch_size=1)
    with pytest.raises(ConfigError, match=r"set teach\.batch_size=2"):
        engine().rehearse(method)


def test_a_role_that_only_the_step_feeds_is_told_of_there() -> None:
    class Critic(Toy):
        def bind(self, setup: Any) -> None:
            super().bind(setup)
            self.roles["critic"] = Role(nn.BatchNorm1d(3))

        def step(self, batch: Any, ctx: Any) -> Any:
            ctx.call("critic", ctx.signal("student", batch).logits)
            return super().step(batch, ctx)

        def stages(self) -> Any:
            made = Method.stages(self)
            made[0].optim["critic"] = self.setup.train
            return made

    with pytest.raises(ConfigError, match=r"train\.batch_size: BatchNorm has a single item to normalise"):
        engine().run(bound(Critic(), batch_size=1))


def test_an_inner_loop_names_its_scope() -> None:
    def loss(net: nn.Module, batch: Any, ctx: Any) -> Tensor:
        return nn.functional.cross_entropy(net(batch["x"]), batch["y"], reduction="none")

    with pytest.raises(ConfigError, match="expert 3: BatchNorm has a single item"):
        fit(network(norm=True), data(), loss, Optim(steps=2, batch_size=1), seed=0, scope="expert 3")
