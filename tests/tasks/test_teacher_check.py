"""A ready teacher is tried before anything is trained: who guesses is refused with the cause, who is weak is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.columns import Target
from limbeck.data.items import ArrayData, Kind, Splits
from limbeck.data.sources import Source
from limbeck.errors import TeacherMismatch
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.task import Model
from limbeck.tasks import guessing
from limbeck.tasks.classification import Classification

NAMES = ["1", "2", "3", "10", "11", "12"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------------- statistics
def binomial(k: int, n: int, p: float) -> float:
    """P(X <= k)."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@pytest.mark.parametrize(("n", "right"), [(40, 22), (60, 36), (100, 50), (100, 61), (30, 8)])
def test_p_values_are_those_of_the_binomial(n: int, right: int) -> None:
    """Two classes of equal size: how many are right is binomial under both questions."""
    truth = torch.arange(n) % 2
    guesses = truth.clone()
    wrong = torch.randperm(n, generator=generator())[: n - right]
    guesses[wrong] = 1 - guesses[wrong]
    trial = guessing.try_classes(guesses, truth)
    assert trial.chance == 0.5 and trial.items == n
    assert trial.useful == pytest.approx(binomial(round(trial.score * n), n, 0.75), abs=0.03)
    # shuffling keeps how often each is answered: hypergeometric, which the binomial is close to
    assert trial.lucky == pytest.approx(1 - binomial(right - 1, n, 0.5), abs=0.06)


def test_verdicts() -> None:
    truth = torch.arange(132) % 12
    chosen = torch.randint(0, 12, (132,), generator=generator(3))
    cases: dict[str, Tensor] = {
        "perfect": truth,
        "half": torch.where(torch.arange(132) % 3 > 0, truth, chosen),
        "random": chosen,
        "another order": (truth + 1) % 12,
        "one answer": torch.full_like(truth, 4),
        "a quarter": torch.where(torch.arange(132) % 4 == 0, truth, chosen),
    }
    trials = {name: guessing.try_classes(guesses, truth) for name, guesses in cases.items()}
    assert [n for n, t in trials.items() if t.guesses] == ["random", "another order", "one answer"]
    assert [n for n, t in trials.items() if not t.weak] == ["perfect", "half"]
    # so few items refuse nobody
    few = torch.arange(4) % 2
    assert not guessing.try_classes(1 - few, few).guesses and guessing.try_classes(few, few).weak


def test_rare_classes_do_not_make_a_teacher_of_a_constant_or_a_guesser_of_a_careful_one() -> None:
    truth = torch.tensor([0] * 480 + [1] * 20)
    assert guessing.try_classes(torch.zeros_like(truth), truth).guesses  # though right on 96 %
    careful = truth.clone()
    careful[:60] = 1  # right on 88 %: fewer than by always saying 0, and yet it knows
    assert not guessing.try_classes(careful, truth).weak


def test_items_are_spread_over_the_classes() -> None:
    y = torch.tensor([0] * 1000 + [1] * 3 + [2] * 50 + [5] * 1000)
    ids = guessing.spread(y, 200)
    assert len(ids) == len(ids.unique()) == 200 and torch.equal(ids, guessing.spread(y, 200))
    counts = torch.bincount(y[ids], minlength=6).tolist()
    assert counts[1] == 3 and counts[2] == 50 and abs(counts[0] - counts[5]) <= 1
    assert guessing.spread(y[:7], 200).tolist() == list(range(7))


def test_the_order_is_found_where_items_tell_it() -> None:
    truth = torch.arange(120) % 12
    order = torch.randperm(12, generator=generator())
    found, trial = guessing.best_order(order.argsort()[truth], truth, 12)
    assert found == order.tolist() and trial.score == pytest.approx(1.0)
    # of many classes and few items an order could be made up, which the other half then denies
    many = torch.randperm(300, generator=generator(1))
    _, trial = guessing.best_order(torch.randint(0, 300, (300,), generator=generator(2)), many, 300)
    assert trial.score < 0.05 and trial.weak


# --------------------------------------------------------------------------------------------------------- the check
class Items(Source):
    """Images of as many kinds as there are names, told apart by one pixel each."""

    def __init__(self, kind: Kind = "label", n: int = 120) -> None:
        self.of, self.n = kind, n

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        k = len(NAMES)
        code = torch.eye(k)[torch.arange(self.n) % k]
        if self.of == "labels":
            code = (torch.rand(self.n, k, generator=generator(4)) < 0.4).float()
        elif self.of == "number":
            code = torch.rand(self.n, k, generator=generator(4))
        x = 0.25 + 0.5 * code.view(self.n, 1, 2, 3)
        y = code if self.of != "label" else code.argmax(1)
        return Splits(ArrayData(x, y), None, None, list(NAMES), self.of)


class Ready(Model):
    """A teacher whose output i is pixel ``order[i]``."""

    def __init__(
        self,
        order: list[int] | None = None,
        shift: float = 0.0,
        check: Any = "on",
        labels: Any = None,
        mean: Any = None,
    ) -> None:
        self.order, self.shift, self.check, self.role = order or list(range(6)), shift, check, "teacher"

    @property
    def trained(self) -> bool:
        return True

    def build(self, task: Any) -> Built:
        model = self

        class Pixels(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1)[:, model.order] - model.shift

        return Built(Pixels(), Contract(), None, self)


def checked(built: Built, kind: Kind = "label", n: int = 120) -> str:
    task = Classification(Items(kind, n))
    task.load()
    task.check_teacher(built)
    return "; ".join(built.notes)


def test_a_good_teacher_is_told_and_passes() -> None:
    # 120 items less the fifth that evaluates
    assert checked(Ready().build(None)) == (
        "right on 100.0 % of 96 labelled training and validation items (guessing: 16.7 %; classes count alike)"
    )


def test_a_teacher_is_never_asked_about_no_items() -> None:
    """Enough training items leave none to be taken from the validation split; an endpoint may fail on an empty batch."""
    asked = []
    built = Ready().build(None)
    built.module.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    assert "right on 100.0 % of 512 labelled" in checked(built, n=1200)
    assert sum(asked) >= 512 and all(asked)


def test_another_order_is_refused_with_the_names_to_set() -> None:
    with pytest.raises(TeacherMismatch) as caught:
        checked(Ready([0, 3, 4, 5, 1, 2]).build(None))
    line = caught.value.line()
    assert line.startswith("teacher: it only guesses: right on 16.7 % of 96 labelled")
    assert "read as '1', '10', '11', '12', '2', '3' they are right on 100.0 %" in line
    assert "set teacher.labels=[1,10,11,12,2,3], or teacher.check=off to go on" in line
    # names that were given and are wrong: those of the outputs, in the outputs' own order
    built = Ready([0, 3, 4, 5, 1, 2]).build(None)
    built.labels = ["12", "11", "10", "3", "2", "1"]
    built.contract = Contract(classes=(5, 4, 3, 2, 1, 0))
    with pytest.raises(TeacherMismatch, match=r"set teacher\.labels=\[1,10,11,12,2,3\]"):
        checked(built)


def test_it_can_be_switched_off_and_that_is_told() -> None:
    assert checked(Ready([0, 3, 4, 5, 1, 2], check="off").build(None)).endswith("teacher.check is off")


def test_another_normalisation_is_found() -> None:
    class Signed(nn.Module):
        """Right on values from -1 to 1, and blind to others."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.amin((1, 2, 3), keepdim=True) < -0.4, x, torch.zeros_like(x)).flatten(1)

    with pytest.raises(TeacherMismatch) as caught:
        checked(Built(Signed(), Contract(), None, Ready()))
    assert "fed with values from -1 to 1 it is right on 100.0 %; set teacher.mean=[0.5] teacher.std=[0.5], or" in str(
        caught.value
    )


def test_one_answer_for_all_and_no_cause_at_all() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(6)[3].expand(len(x), 6)

    with pytest.raises(
        TeacherMismatch, match=r"answers '10' for nearly every item; check that its weights are trained"
    ):
        checked(Built(Same(), Contract(), None, Ready()))

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand(len(x), 6, generator=generator(7))

    with pytest.raises(TeacherMismatch, match=r"expected weights for these classes.*; set teacher\.check=off"):
        checked(Built(Noise(), Contract(), None, Ready()))


def test_a_weak_teacher_goes_on_and_is_told() -> None:
    class Weak(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1).clone()
            z[1::2] = torch.rand(len(z[1::2]), 6, generator=generator(5))
            z[::4] = torch.rand(len(z[::4]), 6, generator=generator(6))
            return z

    assert "weak, so its students learn little from it" in checked(Built(Weak(), Contract(), None, Ready()))
    # three of six classes stand in their place: not guessing, and still an order to tell
    note = checked(Ready([0, 1, 2, 4, 5, 3]).build(None))
    assert note.startswith("right on 50.0 %") and "(set teacher.labels=[1,2,3,11,12,10])" in note


def test_several_labels_and_numbers() -> None:
    for kind in ("labels", "number"):
        assert "weak" not in checked(Ready().build(None), kind)  # type: ignore[arg-type]
        with pytest.raises(TeacherMismatch, match="it only guesses"):
            checked(Ready([5, 4, 3, 2, 1, 0]).build(None), kind)  # type: ignore[arg-type]


def test_each_member_of_an_ensemble_is_tried() -> None:
    good, bad = Ready().build(None), Ready([1, 2, 3, 4, 5, 0]).build(None)
    bad.model.role = "teacher.members.1"
    both = Built(nn.Identity(), model=Ready(), members=[good, bad])
    with pytest.raises(TeacherMismatch, match=r"^teacher\.members\.1: .*teacher\.members\.1\.check=off"):
        checked(both)
    bad.model.order = list(range(6))
    good.notes.clear()
    checked(both)
    assert [told.split(" of ")[0] for told in both.told] == [f"member {i}: right on 100.0 %" for i in (0, 1)]


def test_a_module_that_the_caller_holds_is_refused_only_where_the_cause_is_known() -> None:
    class Held(Ready):
        held = True

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand(len(x), 6, generator=generator(7))

    assert "it only guesses" in checked(Built(Noise(), Contract(), None, Held()))
    with pytest.raises(TeacherMismatch, match=r"it only guesses: .* in another order"):
        checked(Held([5, 4, 3, 2, 1, 0]).build(None))
