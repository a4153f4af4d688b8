"""Splits, targets, losses and metrics of classification, and the data it refuses before training."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from limbeck.data import items
from limbeck.data.classes import match_classes
from limbeck.data.columns import Target
from limbeck.data.items import ArrayData, Kind, Part, Splits, choose, divide
from limbeck.data.sources import Source
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal
from limbeck.tasks.classification import Classification


class Held(Source):
    """Arrays held in memory."""

    def __init__(self, x: Any, y: Any, kind: Kind = "label", labels: list[str] | None = None, test: Any = None) -> None:
        self.x, self.y, self.of, self.labels, self.test = x, y, kind, labels, test

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        y = torch.as_tensor(self.y)
        labels = self.labels or [str(i) for i in range(int(y.max()) + 1 if y.ndim == 1 else y.shape[1])]
        test = ArrayData(*self.test) if self.test is not None else None
        return Splits(ArrayData(torch.as_tensor(self.x), y), None, test, labels, self.of)


def held(n: int = 60, classes: int = 3, kind: Kind = "label", seed: int = 0) -> Classification:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 4, 4, generator=draw)
    y: Tensor = torch.arange(n) % classes
    if kind == "labels":
        y = (torch.rand(n, classes, generator=draw) < 0.4).float()
    elif kind == "number":
        y = torch.randn(n, classes, generator=draw) * torch.tensor([3.0, 100.0, 0.01][:classes]) + 7
    return Classification(Held(x, y, kind), valid_fraction=0.2)


class Fixed(nn.Module):
    """Answers from a table: the item is written into its first pixel."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.table[(x[:, 0, 0, 0] * 1000).round().long()])


def numbered(n: int) -> Tensor:
    x = torch.zeros(n, 1, 2, 2)
    x[:, 0, 0, 0] = torch.arange(n) / 1000
    return x


# ---------------------------------------------------------------------------------------------------------- choosing
@pytest.mark.parametrize("counts", [[10, 10, 10], [1, 5, 94], [1, 1, 1], [50, 0, 3]])
@pytest.mark.parametrize("share", [0.1, 0.34, 0.9])
def test_a_choice_is_stratified(counts: list[int], share: float) -> None:
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    count = max(1, round(share * len(y)))
    ids = choose(y, count, "key")
    assert len(ids) == count == len(ids.unique()) and torch.equal(ids, ids.sort().values)
    got = torch.bincount(y[ids], minlength=3)
    present = torch.tensor(counts) > 0
    if count >= int(present.sum()):
        assert bool((got[present] > 0).all())
    fair = torch.tensor(counts) * (count / len(y))
    assert bool(((got - fair).abs() < 1 + present.sum()).all())
    assert torch.equal(ids, choose(y, count, "key"))
    assert count == len(y) or len({tuple(choose(y, count, seed).tolist()) for seed in range(9)}) > 1


def quotas_one_by_one(room: Tensor, sizes: Tensor, count: int) -> Tensor:
    """The obvious way: look at all classes for every single item."""
    count = min(count, int(room.sum()))
    least = (room > 0).long() if count >= int((room > 0).sum()) else torch.zeros_like(room)
    share = sizes.double() * (count / max(1, int(sizes.sum())))
    quota = share.floor().long().clamp(min=least, max=room)
    while int(quota.sum()) < count:
        quota[int(torch.where(quota < room, share - quota, torch.full_like(share, -torch.inf)).argmax())] += 1
    while int(quota.sum()) > count:
        quota[int(torch.where(quota > least, quota - share, torch.full_like(share, -torch.inf)).argmax())] -= 1
    return quota


@pytest.mark.parametrize("leave", [0, 1, 3])
def test_quotas_are_those_of_looking_at_all_classes_for_each_item(leave: int) -> None:
    g = torch.Generator().manual_seed(leave)
    for classes, most in ((1, 9), (7, 2), (7, 40), (40, 3), (40, 400)):
        sizes = torch.randint(0, most, (classes,), generator=g)
        room = (sizes - leave).clamp_min(0)
        for count in {0, 1, classes // 2, classes, int(sizes.sum()) // 3, int(sizes.sum())}:
            assert torch.equal(items._quotas(room, sizes, count), quotas_one_by_one(room, sizes, count))


def test_many_classes_cost_as_many_times_more() -> None:
    """100,000 classes of two items each, and one class that must give all the others lack."""
    many = torch.arange(200_000) % 100_000
    lopsided = torch.cat([torch.arange(50_000), torch.zeros(150_000, dtype=torch.long)])
    began = time.process_time()
    for y in (many, lopsided):
        rest, part = divide(ArrayData(torch.zeros(len(y), 1), y), 0.3, "test")
        assert len(part) == 60_000 and len(rest.y.unique()) == len(y.unique())
    assert time.process_time() - began < 5.0  # a second or less; with a look at all classes for each, many minutes


def test_a_source_with_many_classes_is_read_at_once() -> None:
    y = torch.arange(200_000) % 100_000
    task = Classification(Held(torch.zeros(len(y), 2), y))
    began = time.process_time()
    task.load()
    assert time.process_time() - began < 8.0
    assert not any("no training item" in note for note in task.notes)


def test_dividing_leaves_each_class_an_item() -> None:
    y = torch.tensor([0] * 20 + [1] * 2 + [2])
    data = ArrayData(torch.arange(23.0)[:, None], y)
    rest, part = divide(data, 0.5, "test")
    assert len(rest) + len(part) == 23 and set(rest.y.tolist()) == {0, 1, 2} and 2 not in part.y
    seen = torch.cat([s.fetch(torch.arange(len(s)))["x"][:, 0] for s in (rest, part)])
    assert torch.equal(seen.sort().values, torch.arange(23.0))


def test_parts_of_parts_look_up_once() -> None:
    data = ArrayData(torch.arange(10.0)[:, None], torch.arange(10))
    inner = Part(Part(data, torch.tensor([9, 7, 5, 3])), torch.tensor([2, 0]))
    assert inner.data is data and inner.fetch(torch.tensor([1, 0]))["x"].tolist() == [[9.0], [5.0]]
    assert inner.y.tolist() == [5, 9] and inner.fingerprint != Part(data, torch.tensor([5])).fingerprint


# ---------------------------------------------------------------------------------------------------------- splits
def test_nothing_is_in_two_splits_and_the_test_split_never_moves() -> None:
    n = 200
    seen = {}
    for seed in (0, 1):
        task = Classification(Held(numbered(n), torch.arange(n) % 4), student_items=20)
        task.load(seed)
        ids = {
            name: {round(v * 1000) for v in split.fetch(torch.arange(len(split)))["x"][:, 0, 0, 0].tolist()}
            for name, split in (
                ("teacher", task.teacher_train),
                ("valid", task.valid),
                ("test", task.test),
                ("train", task.train),
            )
        }
        assert ids["teacher"] | ids["valid"] | ids["test"] == set(range(n))
        assert len(ids["teacher"]) + len(ids["valid"]) + len(ids["test"]) == n
        assert ids["train"] < ids["teacher"] and len(ids["train"]) == 20
        assert torch.bincount(task.train.y).tolist() == [5] * 4
        seen[seed] = ids
    assert all(seen[0][k] == seen[1][k] for k in ("teacher", "valid", "test")) and seen[0]["train"] != seen[1]["train"]


def test_a_given_test_split_is_whole_and_validation_comes_from_train() -> None:
    task = Classification(Held(numbered(50), torch.arange(50) % 2, test=(numbered(9), torch.arange(9) % 2)))
    task.load()
    assert (len(task.train), len(task.valid), len(task.test)) == (45, 5, 9)
    task.load(3)
    assert task.train is task.teacher_train


def values(items: Any) -> list[int]:
    """Which of the numbered items a split holds."""
    x = items.fetch(torch.arange(len(items)))["x"]
    return (1000 * x[:, 0, 0, 0]).round().long().tolist()


def test_another_deal_draws_other_items_into_splits_of_the_same_sizes() -> None:
    y, y_test = torch.arange(60) % 3, torch.arange(30) % 3
    more = numbered(90)[60:]
    splits = {}
    for deal in (0, 1, 2):
        task = Classification(Held(numbered(60), y, test=(more, y_test)), valid_fraction=0.2, deal=deal)
        task.load()
        splits[deal] = {name: values(getattr(task, name)) for name in ("teacher_train", "valid", "test")}
        assert [len(s) for s in splits[deal].values()] == [48, 12, 30]
        assert sorted(i for s in splits[deal].values() for i in s) == list(range(90)), "nothing is lost, nothing twice"
        assert torch.bincount(task.test.y).tolist() == [10, 10, 10]
        # what is fetched belongs together, across the sets that were joined, in the order that is asked for
        batch = task.test.fetch(torch.tensor([29, 0, 15]))
        where = [splits[deal]["test"][i] for i in (29, 0, 15)]
        assert (1000 * batch["x"][:, 0, 0, 0]).round().long().tolist() == where
        assert batch["y"].tolist() == [i % 3 for i in where]
    assert set(splits[0]["test"]) == set(range(60, 90)), "the data's own"
    assert len({tuple(s["test"]) for s in splits.values()}) == 3
    prints = set()
    for deal in (0, 1, 2):
        task = Classification(Held(numbered(60), y, test=(more, y_test)), deal=deal)
        task.load()
        prints.add((task.teacher_train.fingerprint, task.test.fingerprint))
    assert len(prints) == 3
    # a set without splits of its own is divided anew, too; and parts of one whole are looked up once
    undivided = [Classification(Held(numbered(60), y), deal=deal) for deal in (0, 1)]
    for task in undivided:
        task.load()
    assert values(undivided[0].test) != values(undivided[1].test)
    digits = Classification(deal=1)
    digits.load()
    assert isinstance(digits.test.data, ArrayData) and len(digits.test) == 700  # type: ignore[attr-defined]


def test_what_is_wrong_is_told_of_the_split_that_the_user_knows() -> None:
    bad = torch.full((6, 1, 2, 2), torch.nan)
    task = Classification(Held(numbered(60), torch.arange(60) % 3, test=(bad, torch.arange(6) % 3)), deal=1)
    with pytest.raises(DataError, match=r"data \(test\).*NaN"):
        task.load()


def test_too_many_items_for_the_student() -> None:
    task = Classification(student_items=5000)
    with pytest.raises(DataError, match=r"student_items.*987"):
        task.load()


@pytest.mark.parametrize(
    "settings",
    [
        {"student_items": 0},
        {"deal": -1},
        {"valid_fraction": 0.0},
        {"test_fraction": 1.0},
        {"size": 0},
        {"eval_batch": 0},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Classification(**settings)


NAN = torch.full((6, 1, 2, 2), 0.5)
NAN[3, 0, 1, 1] = float("nan")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Held(torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.long), labels=["a", "b"]), "no training items"),
        (Held(torch.zeros(9, 1, 2, 2), torch.zeros(9, dtype=torch.long), labels=["a", "b"]), "one class only: 'a'"),
        (Held(torch.zeros(2, 1, 2, 2), torch.arange(2)), "cannot be divided"),
        (Held(torch.zeros(9, 1, 2, 2), torch.tensor([0, 1, 5] * 3), labels=["a", "b"]), r"outside 0\.\.1"),
        (Held(torch.zeros(9, 1, 2, 2), torch.tensor([0, 1, -100] * 3), labels=["a", "b"]), r"outside 0\.\.1"),
        (Held(NAN, torch.arange(6) % 2), "NaN or infinity"),
        (Held(torch.full((6, 3, 2, 2), 200.0), torch.arange(6) % 2), r"from 200 to 200.*scale=255"),
        (Held(torch.zeros(9, 3), torch.full((9, 1), float("inf")), "number"), "not finite"),
        (Held(torch.zeros(9, 3), torch.full((9, 1), 2.0), "number"), "one value only"),
        (Held(torch.zeros(9, 3), torch.full((9, 2), 2.0), "labels"), r"outside 0\.\.1"),
        (
            Held(torch.zeros(9, 1, 2, 2), torch.arange(9) % 2, test=(torch.zeros(2, 1, 3, 3), torch.arange(2))),
            "task.size",
        ),
    ],
)
def test_bad_data_is_refused_before_training(source: Source, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Classification(source).load()


# ------------------------------------------------------------------------------------------------------ supervised loss
def test_losses_per_item() -> None:
    z = torch.randn(5, 3, dtype=torch.float64)
    task = held()
    task.load()
    y = torch.tensor([0, 2, 1, 1, 0])
    wanted = nn.functional.cross_entropy(z, y, reduction="none")
    assert torch.allclose(task.supervised(Signal(z), {"y": y}).values, wanted)
    soft = torch.softmax(torch.randn(5, 3, dtype=torch.float64), -1)
    wanted = nn.functional.cross_entropy(z, soft, reduction="none")
    assert torch.allclose(task.supervised(Signal(z), {"y": soft}).values, wanted)
    several = held(kind="labels")
    several.load()
    yes = torch.randint(0, 2, (5, 3)).double()
    wanted = -(yes * z.sigmoid().log() + (1 - yes) * (1 - z.sigmoid()).log()).sum(1)
    assert torch.allclose(several.supervised(Signal(z), {"y": yes}).values, wanted)
    assert (several.primary, several.higher_is_better, several.kind_of_target) == ("f1", True, "labels")


def test_numbers_are_learnt_with_mean_0_and_deviation_1() -> None:
    task = held(300, kind="number")
    task.load()
    y = task.train.y
    standard = task.standardise(y)
    assert torch.allclose(standard.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(standard.std(0, correction=0), torch.ones(3), atol=1e-4)
    term = task.supervised(Signal(standard), {"y": y})
    assert term.values.shape == (len(y),) and term.values.abs().max() < 1e-8
    assert torch.allclose(task.supervised(Signal(standard + 2), {"y": y}).values, torch.full((len(y),), 12.0))
    assert (task.primary, task.higher_is_better) == ("rmse", False)


# ---------------------------------------------------------------------------------------------------------- evaluation
def fixed(n: int, table: Tensor, y: Tensor, kind: Kind) -> tuple[Classification, ArrayData, Built]:
    task = Classification(Held(numbered(n), y, kind), eval_batch=7)
    task.load()
    return task, ArrayData(numbered(n), y), Built(Fixed(table))


def test_metrics_of_one_label_against_scikit_learn() -> None:
    n, c = 90, 12
    draw = torch.Generator().manual_seed(1)
    y = torch.cat([torch.arange(c), torch.randint(0, c, (n - c,), generator=draw) ** 2 // c])
    z = torch.randn(n, c, generator=draw) + 2 * nn.functional.one_hot(y, c)
    task, data, built = fixed(n, z, y, "label")
    t = torch.randn(n, c, generator=draw) + z
    found = task.evaluate(built, data, Built(Fixed(t)))
    p = z.double().softmax(-1).numpy()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, p.argmax(1)))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, p.argmax(1)))
    assert found["nll"] == pytest.approx(metrics.log_loss(y, p, labels=range(c)), rel=1e-6)
    assert found["top5"] == pytest.approx(metrics.top_k_accuracy_score(y, p, k=5, labels=range(c)))
    assert found["agreement"] == pytest.approx((z.argmax(1) == t.argmax(1)).float().mean().item())
    sure, right = p.max(1), p.argmax(1) == y.numpy()
    ece = sum(
        abs(right[b].mean() - sure[b].mean()) * b.mean()
        for k in range(15)
        if (b := (sure > k / 15) & (sure <= (k + 1) / 15)).any()
    )
    assert found["ece"] == pytest.approx(ece, rel=1e-5)
    # the single items whose means these are, in the split's order
    assert found.per_item["accuracy"].tolist() == right.tolist() and found.weights is None
    assert found.per_item["nll"].numpy() == pytest.approx(-np.log(p[range(n), y]), rel=1e-5)


def test_metrics_of_several_labels_against_scikit_learn() -> None:
    n, c = 60, 4
    draw = torch.Generator().manual_seed(2)
    y = (torch.rand(n, c, generator=draw) < 0.3).float()
    z = torch.randn(n, c, generator=draw) + 2 * y - 1
    task, data, built = fixed(n, z, y, "labels")
    found = task.evaluate(built, data, built)
    yes = (z > 0).numpy()
    assert found["f1"] == pytest.approx(metrics.f1_score(y, yes, average="macro"))
    assert found["f1_micro"] == pytest.approx(metrics.f1_score(y, yes, average="micro"))
    assert found["exact"] == pytest.approx(metrics.accuracy_score(y, yes))
    assert found["accuracy"] == pytest.approx(1 - metrics.hamming_loss(y, yes))
    assert found["agreement"] == 1.0
    assert set(found.per_item) == {"exact", "accuracy", "nll"}
    assert all(float(v.double().mean()) == pytest.approx(found[k]) for k, v in found.per_item.items())


def test_metrics_of_numbers_against_scikit_learn() -> None:
    n = 50
    draw = torch.Generator().manual_seed(3)
    y = torch.randn(n, 2, generator=draw) * torch.tensor([5.0, 0.1]) + 3
    task, data, built = fixed(n, torch.zeros(n, 2), y, "number")
    z = task.standardise(y) + 0.3 * torch.randn(n, 2, generator=draw)
    built.module.table.data = z
    real = (z * task.number_std + task.number_mean).double()
    found = task.evaluate(built, data, Built(Fixed(task.standardise(y))))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, real), rel=1e-5)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, real), rel=1e-5)
    assert found["r2"] == pytest.approx(metrics.r2_score(y, real), rel=1e-5)
    assert found["r2_teacher"] == pytest.approx(found["r2"], rel=1e-4)
    assert found.per_item["mae"].mean().item() == pytest.approx(found["mae"])


def test_judging_leaves_no_trace() -> None:
    n = 20
    task, data, built = fixed(n, torch.randn(n, 2), torch.arange(n) % 2, "label")
    built.module.train()
    built.module.drop.eval()
    first = task.evaluate(built, data)
    assert built.module.training and not built.module.drop.training and built.module.table.grad is None
    assert task.evaluate(built, data) == first  # dropout is off during evaluation


def test_a_recorded_teacher_that_lacks_the_test_items_says_no_agreement() -> None:
    from limbeck.errors import CacheMismatch

    class Recorded:
        def answer(self, batch: Any, taps: Any) -> Signal:
            raise CacheMismatch("cache", "item 0 is not in it")

    n = 20
    task, data, built = fixed(n, torch.randn(n, 2), torch.arange(n) % 2, "label")
    assert "agreement" not in task.evaluate(built, data, Built(Recorded()))


# ---------------------------------------------------------------------------------------------------- classes by name
@pytest.mark.parametrize(
    ("teacher", "task", "wanted"),
    [
        (["a", "b"], ["a", "b"], None),
        (["b", "a"], ["a", "b"], (1, 0)),
        (["c", "a", "x", "b"], ["a", "b", "c"], (1, 3, 0)),
        (["Golden_Retriever", "tabby  cat"], ["tabby-cat", "golden retriever"], (1, 0)),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["goldfish", "tench"], (1, 0)),
        (["Cat", "cat"], ["cat"], (1,)),
        (["1", "10", "2"], ["1", "2", "10"], (0, 2, 1)),
    ],
)
def test_classes_by_name(teacher: list[str], task: list[str], wanted: tuple[int, ...] | None) -> None:
    assert match_classes(teacher, task) == wanted


@pytest.mark.parametrize(
    ("teacher", "task", "said"),
    [
        (["a", "b"], ["a", "b", "c"], "no class 'c'"),
        (["a", "b"], ["x", "y"], "no class 'x', 'y'"),
        (["crane, bird", "crane, machine"], ["crane"], "more than one"),
        (["Cat", "CAT"], ["cat"], "more than one"),
        (["a b"], ["a_b", "a-b"], "same class"),
    ],
)
def test_classes_that_do_not_match(teacher: list[str], task: list[str], said: str) -> None:
    with pytest.raises(TeacherMismatch, match=said):
        match_classes(teacher, task)


def test_a_teacher_is_mapped_into_the_task_s_order_or_refused() -> None:
    n = 12
    task = Classification(Held(numbered(n), torch.arange(n) % 3, labels=["ant", "bee", "cow"]))
    task.load()
    table = nn.functional.one_hot(torch.arange(n) % 3, 3).float() * 9
    own = Fixed(torch.cat([torch.zeros(n, 1), table[:, [2, 0, 1]]], 1))  # dog, cow, ant, bee
    student = Built(Fixed(table), labels=["ant", "bee", "cow"])
    teacher = Built(own, labels=["dog", "cow", "ant", "bee"])
    task.match(student, teacher)
    assert teacher.contract.classes == (2, 3, 1) and student.contract.classes is None
    assert task.evaluate(teacher, ArrayData(numbered(n), torch.arange(n) % 3))["accuracy"] == 1.0
    with pytest.raises(TeacherMismatch, match="'cow'"):
        task.match(student, Built(own, labels=["dog", "emu", "ant", "bee"]))
    with pytest.raises(TeacherMismatch, match=r"\[2, 4\].*\[2, 3\]"):
        task.match(student, Built(own))
    with pytest.raises(ShapeError):
        task.match(Built(own), teacher)


def test_a_network_that_fails_on_the_items_is_refused_in_words() -> None:
    task = held()
    task.load()
    with pytest.raises(ConfigError, match=r"Linear fails on the task's items \[2, 1, 4, 4\].*RuntimeError"):
        task.rehearse(Built(nn.Linear(3, 3)), "teacher")


# ---------------------------------------------------------------------------------------------------------- statistics
def test_channel_statistics() -> None:
    x = (
        torch.rand(40, 3, 5, 5) * torch.tensor([1.0, 0.5, 0.0])[None, :, None, None]
        + torch.tensor([0, 0.2, 0.7])[None, :, None, None]
    )
    task = Classification(Held(x, torch.arange(40) % 2))
    task.load()
    own = task.teacher_train.fetch(torch.arange(len(task.teacher_train)))["x"].transpose(0, 1).flatten(1)
    mean, std = task.statistics()
    assert np.allclose(mean, own.mean(1), atol=1e-6) and np.allclose(std[:2], own.std(1, correction=0)[:2], atol=1e-5)
    assert std[2] == 1.0  # a channel that never varies is left as it is


def test_columns_of_very_different_sizes_are_normalised_by_the_contract() -> None:
    x = torch.randn(64, 2, dtype=torch.float64) * torch.tensor([1e-3, 1e6]) + torch.tensor([5.0, -1e7])
    task = Classification(Held(x.float(), torch.arange(64) % 2))
    task.load()
    mean, std = task.statistics()
    seen = Contract(mean=mean, std=std).inputs(task.teacher_train.fetch(torch.arange(len(task.teacher_train)))["x"])
    assert seen.mean(0).abs().max() < 1e-2 and (seen.std(0, correction=0) - 1).abs().max() < 1e-2
