"""What is not finite never updates anything, whether the answer comes at once or late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import guard
from limbeck.errors import NonFinite
from limbeck.grammar.method import Batch, Context, Method, Term, Terms
from limbeck.storage import store
from tests.tiny import differences
from tests.toy import Toy, bound, engine, network


class Plain(Method):
    """The task's loss alone: nothing moves beside the optimiser."""

    def step(self, batch: Batch, ctx: Context) -> Terms:
        return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Answers come late on the CPU too, two steps after they were asked for. Yields the steps at which they were read."""
    monkeypatch.setattr(guard, "LATE_ON", ("cpu",))
    read: list[int] = []
    real = guard.Guard.found

    def found(self: guard.Guard, wait: bool = False) -> int | None:
        asked = getattr(self, "asked", 0)
        self.asked = asked + 1  # type: ignore[attr-defined]
        if not wait and asked % 3:
            return None
        answer = real(self, wait)
        if answer is not None:
            read.append(answer)
        return answer

    monkeypatch.setattr(guard.Guard, "found", found)
    yield read


def spoilt(item: int = 13, method: Method | None = None, optimizer: str = "adamw", **options: Any) -> Method:
    made = bound(method or Plain(), steps=12, lr=0.01, optimizer=optimizer, options=options)
    task: Any = made.task
    if item >= 0:
        task.train.x[item] = float("nan")
    return made


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_late_answer_keeps_the_weights_of_the_step_and_describes_it(
    optimizer: str, accumulate: int, late: list[int], tmp_path: Path
) -> None:
    said = []
    kept = []
    for name, options in (("late", {}), ("now", {"foreach": True})):
        method = spoilt(optimizer=optimizer, **options)
        with pytest.raises(NonFinite) as caught:
            engine(tmp_path / name, accumulate=accumulate, log_every=100).run(method)
        said.append(str(caught.value).replace(str(tmp_path / name), ""))
        kept.append(store.load_tree(tmp_path / name / "failure"))
        weights = dict(method.roles["student"].module.state_dict())
        assert not differences(kept[-1]["roles"]["student"], weights)
    assert said[0] == said[1] and "term ce" in said[0]
    assert len(late) == 1
    assert kept[0]["step"] == kept[1]["step"] == late[0]
    assert not differences(kept[0]["roles"], kept[1]["roles"], tolerance=1e-6)


@pytest.mark.parametrize("answer", ["late", "now"])
def test_of_several_phases_the_earlier_ones_are_told(
    answer: str, late: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a phase has updated stays: it was finite, and the next ones stand on it."""

    class Twice(Plain):
        def step(self, batch: Batch, ctx: Context) -> Iterator[Terms]:  # type: ignore[override]
            yield Terms(first=self.task.supervised(ctx.signal("student", batch), batch))
            term = self.task.supervised(ctx.signal("student", batch), batch)
            term.values = term.values * (float("nan") if ctx.step == 4 else 1.0)
            yield Terms(second=term)

    if answer == "now":
        monkeypatch.setattr(guard, "LATE_ON", ())
    with pytest.raises(NonFinite, match="by this phase; 1 before it in the same step had updated") as caught:
        method = spoilt(-1, Twice())
        engine(tmp_path, log_every=100).run(method)
    assert "term second" in str(caught.value)
    kept = store.load_tree(tmp_path / "failure")
    assert kept["earlier_phases"] == 1 and kept["step"] == 4
    assert not differences(kept["roles"]["student"], dict(method.roles["student"].module.state_dict()))


def test_a_finite_run_is_the_same_either_way(late: list[int]) -> None:
    now, then = spoilt(-1), spoilt(-1)
    engine(log_every=100).run(then)
    guard.LATE_ON = ()
    engine(log_every=100).run(now)
    assert not differences(
        dict(now.roles["student"].module.state_dict()), dict(then.roles["student"].module.state_dict())
    )
    assert late == []


def test_a_step_that_is_finite_when_taken_again_is_said(late: list[int]) -> None:
    class Once(Plain):
        spoil = True

        def step(self, batch: Batch, ctx: Context) -> Terms:
            terms = super().step(batch, ctx)
            if ctx.step == 4 and self.spoil:
                self.spoil = False
                terms["ce"].values = terms["ce"].values * float("nan")
            return terms

    with pytest.raises(NonFinite, match="step 4 was not finite, but is when it is taken again"):
        engine(log_every=100).run(spoilt(-1, Once()))


@pytest.mark.parametrize(
    ("method", "options"), [(Plain(), {"foreach": True}), (Toy(), {})], ids=["no optimiser that heeds", "averages move"]
)
def test_nobody_is_late_where_something_would_move(method: Method, options: dict[str, Any], late: list[int]) -> None:
    with pytest.raises(NonFinite, match="not finite"):
        engine(log_every=100).run(spoilt(method=method, **options))
    assert late == []


class Odd(Plain):
    """The task's loss, and a second term that a few items spoil in one way or another."""

    def __init__(self, how: str) -> None:
        self.how = how

    def step(self, batch: Batch, ctx: Context) -> Terms:
        terms = super().step(batch, ctx)
        z = ctx.signals["student"].logits
        odd = (batch["item"] % 20 == 13)[:, None]
        if self.how == "value":
            extra = Term(torch.where(odd, torch.nan, z).sum(1))
        elif self.how == "masked":  # a position that does not count may hold anything
            spoilt = torch.where(odd, torch.nan, z)
            spoilt[:, 2] = torch.nan
            extra = Term(spoilt, where=torch.tensor([True, False, False]))
        elif self.how == "gradient":  # the root of nothing: finite, and infinitely steep
            extra = Term(torch.where(odd, (z - z.detach()), z).abs().sqrt().sum(1))
        else:  # one number for all
            extra = Term(torch.where(odd, torch.nan, z).sum(), count=len(z))
        return Terms(None, **terms, extra=extra)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("how", ["value", "masked", "gradient"])
def test_the_items_to_blame_are_named(how: str, accumulate: int, tmp_path: Path) -> None:
    """Of a batch of all forty, the two that spoil it: by their values, or by their gradients alone."""
    method = bound(Odd(how), steps=1, lr=0.01, batch_size=40)
    weights = {k: v.clone() for k, v in method.roles["student"].module.state_dict().items()}
    with pytest.raises(NonFinite, match=r"; items 13, 33 \(2 of the batch's 40\); nothing was updated") as caught:
        engine(tmp_path, accumulate=accumulate).run(method)
    assert store.load_tree(tmp_path / "failure")["items"] == [13, 33]
    assert ("term extra" in str(caught.value)) == (how != "gradient")
    assert not differences(weights, dict(method.roles["student"].module.state_dict()))


def test_what_cannot_be_told_apart_is_said() -> None:
    with pytest.raises(NonFinite, match=r"which of its 40 items it was cannot be told \(.* and 24 more\)"):
        engine().run(bound(Odd("sum"), steps=1, batch_size=40))


def test_an_input_is_blamed_where_the_batch_s_statistics_carry_it_everywhere() -> None:
    method = bound(Plain(), steps=1, batch_size=40, student=network(norm=True))
    task: Any = method.task
    task.train.x[[5, 8], 2] = float("inf")
    with pytest.raises(NonFinite, match=r"not finite in \['x'\]; items 5, 8 \(2 of.*look at the inputs of those items"):
        engine().run(method)


def test_a_teacher_s_answer_is_blamed_on_its_item() -> None:
    """The student is fine and the batch is fine."""

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where((x == spoilt).all(1, keepdim=True), torch.nan, x[:, :3])

    class Both(Plain):
        def step(self, batch: Batch, ctx: Context) -> Terms:
            gap = ctx.signal("student", batch).logits - ctx.signal("teacher", batch).logits
            return Terms(super().step(batch, ctx).metrics, kd=Term(gap.square().sum(1)))

    method = bound(Both(), steps=1, batch_size=40, teacher=Broken())
    task: Any = method.task
    spoilt = task.train.x[21].clone()
    with pytest.raises(NonFinite, match=r"term kd.*; item 21 \(1 of the batch's 40\)"):
        engine().run(method)
