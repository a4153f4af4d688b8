"""Stored crops: rows hold what was asked, and the same crops are shown again."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from limbeck.data.items import ArrayData
from limbeck.errors import CheckpointCorrupt, ConfigError
from limbeck.functional.label_forms import Form, compress_labels, recover_labels, stored_confidence
from limbeck.functional.views import crop_all
from limbeck.grammar.random import Draws
from limbeck.parts.stored_crops import CropPlan, Repeated, Replay, Shown, corners, picked, placed

SIZE = (9, 7)


class Ctx:
    """What a query asks of a context."""

    def __init__(self, seed: int = 0) -> None:
        self.draws = Draws(seed, ("stage", 3))


def pictures(n: int = 5) -> ArrayData:
    g = torch.Generator().manual_seed(0)
    return ArrayData(torch.rand(n, 2, *SIZE, generator=g), torch.arange(n) % 3)


class Kept:
    """A store in memory: rows of all crops of all images, made by a plan."""

    def __init__(self, data: ArrayData, plan: CropPlan, classes: int = 6) -> None:
        m, self.plan = plan.crops, plan
        ids = torch.arange(len(data) * m)
        batch = {**Repeated(data, m).fetch(ids), "item": ids // m, "view": ids % m}
        self.shown = plan.show(batch, Ctx())
        self.logits = torch.randn(len(ids), classes, generator=torch.Generator().manual_seed(1))
        self.found = plan.rows(self.shown, SIZE, self.logits)

    def rows(self, items: Tensor, views: Tensor) -> dict[str, Tensor]:
        return {n: v[items * self.plan.crops + views] for n, v in self.found.items()}


class Treated:
    """How crops are treated, in memory."""

    fingerprint = "treated"

    def __init__(self, treatment: Tensor) -> None:
        self.treatment = treatment

    def fetch(self, items: Tensor) -> dict[str, Any]:
        return {"treatment": self.treatment[items]}


@pytest.mark.parametrize("form", get_args(Form))
def test_a_row_keeps_the_label_in_its_form(form: Form) -> None:
    plan = CropPlan(crops=4, form=form, top=3, precision="float32", temperature=2.0)
    kept = Kept(pictures(), plan)
    p = (kept.logits / 2).softmax(1)
    want = recover_labels(compress_labels(p, form, 3), 6, form)
    torch.testing.assert_close(plan.labels(kept.found, 6), want.float())
    plan.check(kept.found, 6, "here")
    assert kept.found["index"].dtype == torch.int16
    half = Kept(pictures(), plan.changed(precision="float16"))
    torch.testing.assert_close(plan.labels(half.found, 6), want.float(), rtol=0, atol=1e-3)
    if form == "hard":
        with pytest.raises(ConfigError, match="how sure"):
            stored_confidence(plan.stored(kept.found), 6, form)
    else:
        assert half.found["value"].dtype == torch.float16
        torch.testing.assert_close(stored_confidence(plan.stored(kept.found), 6, form), p.amax(1))


@pytest.mark.parametrize("form", ["smoothing", "marginal_smoothing"])
def test_the_confidence_of_the_true_class_is_that_of_the_recovered_label(form: Form) -> None:
    p = torch.randn(20, 7, generator=torch.Generator().manual_seed(3)).softmax(1)
    y = torch.arange(20) % 7
    stored = compress_labels(p, form, 3)
    want = recover_labels(stored, 7, form)[torch.arange(20), y]
    torch.testing.assert_close(stored_confidence(stored, 7, form, y), want)
    raw = stored_confidence(compress_labels(p, "marginal_renorm", 3), 7, "marginal_renorm", y)
    inside = (p.topk(3, 1).indices == y[:, None]).any(1)
    torch.testing.assert_close(raw, torch.where(inside, p[torch.arange(20), y], 0.0))


def test_probabilities_in_half_precision_leave_nothing_below_zero() -> None:
    p = torch.tensor([[0.3334, 0.3334, 0.3332, 0.0, 0.0, 0.0]])
    stored = compress_labels(p, k=3)
    stored[:, 1] *= 1.001  # as rounding may
    assert float(recover_labels(stored, 6).min()) >= 0


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (475, 475), (1, 3)])
def test_relative_boxes_come_back_to_the_pixel(size: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    lengths = torch.stack([torch.randint(1, s + 1, (500,), generator=g) for s in size], 1)
    first = (torch.rand(500, 2, generator=g) * (torch.tensor(size) - lengths + 1)).long()
    box = torch.cat([first, lengths], 1)
    assert torch.equal(placed(box.float() / torch.tensor([*size, *size]), size), box)
    other = placed(box.float() / torch.tensor([*size, *size]), (224, 200))  # of an image of another size
    assert bool((other[:, :2] >= 0).all() and (other[:, 2:] >= 1).all())
    assert bool((other[:, :2] + other[:, 2:] <= torch.tensor([224, 200])).all())
    assert torch.equal(corners(box)[:, 2:], first + lengths)


def test_a_replayed_crop_is_the_crop_that_was_labelled() -> None:
    data, plan = pictures(), CropPlan(crops=6, lowest=0.2)
    kept = Kept(data, plan)
    shown = Shown(data, kept, Treated(torch.full((5, 6), 2, dtype=torch.int8)), 6, 3, seed=4)
    items, views = torch.tensor([4, 0, 2]), torch.tensor([0, 1, 0])
    batch: Any = {**shown.fetch_at(items, views), "item": items, "view": views}
    found = Replay()(batch, Ctx(9))  # type: ignore[arg-type]
    assert found["item"].tolist() == [4, 0, 2] * 3  # the first crop of every image first
    assert torch.equal(found["y"], data.y[found["item"]])
    assert not any(name.startswith("crop.") for name in found)
    flips = set()
    for i in range(9):
        row = int(found["item"][i]) * 6 + int(found["view"][i])
        box = tuple(kept.shown["box"][row].tolist())
        want = crop_all(data.x[found["item"][i]][None], box, SIZE)[0]
        want = want.flip(-1) if bool(kept.shown["flip"][row]) else want
        flips.add(bool(kept.shown["flip"][row]))
        torch.testing.assert_close(found["x"][i], want, rtol=1e-4, atol=1e-5)
        assert torch.equal(found["x"][i], kept.shown["x"][row]) and found["box"][i].tolist() == list(box)
        assert torch.equal(found["index"][i], kept.found["index"][row])
    assert flips == {True, False}


def test_which_crops_are_shown_depends_on_picture_and_pass_alone() -> None:
    data, g = pictures(), torch.Generator().manual_seed(2)
    treatment = torch.randint(0, 3, (5, 12), generator=g, dtype=torch.int8)
    treatment[:, :4] = 1
    shown = Shown(data, Kept(data, CropPlan(crops=12)), Treated(treatment), 12, 4, seed=0)
    seen: dict[int, set[int]] = {i: set() for i in range(5)}
    for turn in range(40):
        chosen, how = shown.choose(torch.arange(5), torch.full((5,), turn))
        assert bool((how != 0).all()) and torch.equal(how, treatment.gather(1, chosen))
        assert all(len(set(row)) == 4 for row in chosen.tolist())  # without replacement
        again, _ = shown.choose(torch.tensor([3, 1]), torch.tensor([turn, turn]))
        assert torch.equal(again, chosen[[3, 1]])
        for i, row in enumerate(chosen.tolist()):
            seen[i] |= set(row)
    for i in range(5):
        assert seen[i] == set(treatment[i].nonzero()[:, 0].tolist())
    other = Shown(data, shown.store, shown.treatments, 12, 4, seed=1)
    assert not torch.equal(
        other.choose(torch.arange(5), torch.zeros(5))[0], shown.choose(torch.arange(5), torch.zeros(5))[0]
    )
    assert other.fingerprint != shown.fingerprint


def test_a_picture_is_read_once_for_all_of_its_crops() -> None:
    data = pictures()
    asked: list[int] = []

    class Counting:
        fingerprint = "counting"

        def __len__(self) -> int:
            return len(data)

        def fetch(self, items: Tensor) -> dict[str, Any]:
            asked.extend(items.tolist())
            return {**data.fetch(items), "names": [f"n{i}" for i in items.tolist()]}

    repeated = Repeated(Counting(), 3)  # type: ignore[arg-type]
    batch = repeated.fetch(torch.tensor([14, 0, 1, 12, 2]))
    assert sorted(asked) == [0, 4] and len(repeated) == 15
    assert torch.equal(batch["x"], data.x[[4, 0, 0, 4, 0]]) and batch["names"] == ["n4", "n0", "n0", "n4", "n0"]
    assert picked({"x": torch.zeros(3), "odd": {"a": 1}}, torch.tensor([0, 0]), 3) is None


def test_rows_that_hold_no_labels_are_refused() -> None:
    plan = CropPlan(crops=2, top=3)
    good = Kept(pictures(), plan).found
    for change, said in (
        ({"flip": None}, "lack flip"),
        ({"value": good["value"] * 3}, "no probabilities"),
        ({"value": -good["value"]}, "no probabilities"),
        ({"value": good["value"] * torch.nan}, "no probabilities"),
        ({"index": good["index"] + 4}, "classes that do not exist"),
        ({"index": good["index"][:, :2]}, "another form"),
    ):
        rows = {n: v for n, v in (good | change).items() if v is not None}
        with pytest.raises(CheckpointCorrupt, match=said):
            plan.check(rows, 6, "here")
    with pytest.raises(ConfigError, match="lowest"):
        from limbeck.recipe.recipe import check, load_tree

        check(load_tree("ferkd", ["method.store.lowest=0.9", "method.store.highest=0.5"]))
