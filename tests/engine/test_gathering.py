"""Rows of the whole batch: a batch that is cut, or shared out, learns from them as a whole one does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.gathering import Rows
from limbeck.errors import MethodError
from limbeck.grammar.method import Batch, Context, Gather, Gathered, Method, Share, Term, Terms
from tests.engine.sharded import Contrast
from tests.tiny import differences
from tests.toy import bound, engine, learnt


def learn(method: Method | None = None, batch: int = 8, **settings: Any) -> Any:
    method = bound(method or Contrast(), batch_size=batch, clip=0.5)
    engine(**settings).run(method)
    return learnt(method)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_that_is_cut_learns_as_a_whole_one(parts: int) -> None:
    assert not differences(learn(), learn(accumulate=parts), tolerance=1e-5)


def test_gradients_reach_the_rows_of_other_micro_batches() -> None:
    """Without them a cut batch would learn something else: the test above can tell."""
    assert differences(learn(), learn(Contrast(detached=True)), tolerance=1e-4)
    assert not differences(learn(Contrast(detached=True)), learn(Contrast(detached=True), accumulate=2), tolerance=1e-5)


def test_rows_come_in_the_order_of_the_batch_whatever_they_are() -> None:
    seen: list[Any] = []

    class Look(Method):
        def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
            z = ctx.signal("student", batch).logits
            odd = batch["item"][batch["item"] % 2 == 1]
            rows = yield Gather(item=batch["item"], odd=odd, flag=batch["item"] > 3, z=z)
            assert torch.equal(rows["item"][rows.own["item"]], batch["item"])
            assert torch.equal(rows["item"][rows.numbers("item")], batch["item"])
            assert torch.equal(rows["odd"][rows.own["odd"]], odd) and rows["flag"].dtype == torch.bool
            assert torch.equal(rows["z"][rows.own["z"]], z)
            seen.append(rows)
            yield Terms(ce=self.task.supervised(ctx.signals["student"], batch))

    engine().run(bound(Look(), steps=1))
    engine(accumulate=3).run(bound(Look(), steps=1))
    for rows in seen[1:]:
        assert all(torch.equal(rows[n], seen[0][n]) for n in ("item", "odd", "flag"))
        assert torch.allclose(rows["z"], seen[0]["z"], atol=1e-6)


def test_rows_may_be_used_in_a_later_phase() -> None:
    class Later(Contrast):
        def bind(self, setup: Any) -> None:
            super().bind(setup)
            self.learners = ("student", "critic")
            self.new("critic", lambda: nn.Linear(3, 1))

        def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
            rest = super().step(batch, ctx)
            rows = yield next(rest)  # type: ignore[misc]
            yield Terms(critic=Term(ctx.call("critic", rows["e"].detach()).mean().expand(len(batch["item"])), "critic"))
            yield rest.send(rows)  # type: ignore[attr-defined]

    assert not differences(learn(Later()), learn(Later(), accumulate=4), tolerance=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_leak_through_rows_is_found(parts: int) -> None:
    class Leak(Contrast):
        def bind(self, setup: Any) -> None:
            super().bind(setup)
            self.learners = ("student", "critic")
            self.new("critic", lambda: nn.Linear(3, 1))

        def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
            e = ctx.signal("student", batch).logits
            rows: Gathered = yield Gather(e=e)
            yield Terms(
                ce=self.task.supervised(ctx.signals["student"], batch),
                critic=Term(ctx.call("critic", rows["e"]).mean().expand(len(e)), "critic"),
            )

    with pytest.raises(MethodError, match="also reaches 'student'"):
        learn(Leak(), accumulate=parts)


def test_micro_batches_that_gather_something_else_are_refused() -> None:
    with pytest.raises(MethodError, match="the same names"):
        Rows().gather([Gather(e=torch.ones(2, 3)), Gather(e=torch.ones(2, 4))])
    with pytest.raises(MethodError, match="the same names"):
        Rows().gather([Gather(e=torch.ones(2, 3)), Gather(f=torch.ones(2, 3))])
