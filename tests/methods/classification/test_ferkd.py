"""FerKD: crops are sorted by how sure the teacher was, their labels calibrated, and mixed within an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cache import build_cache
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.functional.boxes import iou
from limbeck.parts.stored_crops import corners
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import Tiny, tree_of
from tests.tiny import shared_tiny as tiny


def begun(folder: Path, *words: str) -> tuple[Any, Any, Any]:
    """A method whose crops are labelled and sorted, its context of a step, and the first batch, replayed."""
    made: Tiny = tiny("ferkd", folder, *words)
    method: Any = made.method
    made.engine.prepare(method)
    *before, distil = made.engine.stages
    for stage in before:
        made.engine.run_items(method, stage, RunContext(made.engine, method, stage, made.engine.device))
        if stage.finish is not None:
            stage.finish(RunContext(made.engine, method, stage, made.engine.device))
    ctx = RunContext(made.engine, method, distil, made.engine.device).at(0)
    shown = method.shown(ctx)
    items = torch.arange(6)
    batch = {**shown.fetch(items), "item": items, "view": torch.zeros_like(items)}
    (replay,) = distil.queries
    from limbeck.grammar.role import cast

    cast(method.roles, tuple(distil.optim))
    return method, ctx, replay(batch, ctx)


def everything(method: Any, ctx: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the teacher said of all crops [N, M, C], half precision aside, and their treatment [N, M]."""
    n, m = len(method.task.train), method.plan.crops
    rows = method.rows_of(ctx).rows(torch.arange(n).repeat_interleave(m), torch.arange(m).repeat(n))
    mined = ctx.recorded("mine").fetch(torch.arange(n))["treatment"]
    return method.plan.labels(rows, 10).view(n, m, 10), mined


@pytest.mark.parametrize("confidence", ["max", "target"])
def test_crops_are_sorted_as_the_rule_says(confidence: str, tmp_path: Path) -> None:
    words = ("discard_below=0.12", "calibrate_below=0.2", "discard_above=0.4", "num_crops=1", "mix=none")
    method, ctx, _ = begun(
        tmp_path, f"method.confidence={confidence}", *(f"method.{w}" for w in words), "teach.steps=60"
    )
    p, treatment = everything(method, ctx)
    y = method.task.train.y
    met = set()
    for i in range(len(p)):
        c = p[i].amax(1) if confidence == "max" else p[i, :, y[i]]
        rule = [0 if v < 0.12 or v > 0.4 else 1 if v < 0.2 else 2 for v in c.tolist()]
        if any(rule):
            assert treatment[i].tolist() == rule
            met |= set(rule)
        else:  # the nearest to a threshold came back
            assert treatment[i].count_nonzero() == 1
    assert met == {0, 1, 2}
    found = method.measures()
    assert found["discarded"] + found["softened"] + found["kept"] == pytest.approx(1)
    assert found["discarded"] == pytest.approx(float((treatment == 0).double().mean()))


def test_labels_are_the_teachers_or_softened_as_the_crop_is_treated(tmp_path: Path) -> None:
    method, ctx, batch = begun(tmp_path, "method.discard_below=0", "method.calibrate_below=0.2", "teach.steps=60")
    y = method.targets(batch)
    p, treatment = everything(method, ctx)
    assert set(batch["treatment"].tolist()) == {1, 2}
    for i, (item, crop) in enumerate(zip(batch["item"].tolist(), batch["view"].tolist(), strict=True)):
        assert int(treatment[item, crop]) == int(batch["treatment"][i])
        want = p[item, crop]
        if treatment[item, crop] == 1:
            want = torch.full((10,), 0.1 / 9)
            want[method.task.train.y[item]] = 0.9
        torch.testing.assert_close(y[i], want)
    torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
    method.hard_region = "teacher"
    assert torch.equal(method.targets(batch), method.plan.labels(batch, 10))
    method.labels = "hard"
    assert torch.equal(method.targets(batch).argmax(1), batch["y"]) and method.targets(batch).max(1).values.eq(1).all()


def test_dropped_regions_are_never_shown(tmp_path: Path) -> None:
    words = ("method.hard_region=drop", "method.discard_above=1", "teach.steps=60", "method.calibrate_below=0.2")
    method, ctx, batch = begun(tmp_path, *words)
    p, treatment = everything(method, ctx)
    low = p.amax(2) < 0.2
    back = treatment.ne(0) & low
    assert bool(low.any()) and method.measures()["taken_back"] == pytest.approx(float(back.double().mean()))
    assert method.measures()["softened"] == 0
    assert torch.equal(method.targets(batch), method.plan.labels(batch, 10))
    for row in range(len(p)):
        assert bool(back[row].any()) == (int((~low[row]).sum()) < 2)  # taken back for want of two others alone


def test_the_loss_is_cross_entropy_to_these_labels_and_moves_the_student_alone(tmp_path: Path) -> None:
    method, ctx, batch = begun(tmp_path, "method.mix=none", "method.temperature=2", "method.discard_below=0")
    term = method.step(batch, ctx)["soft"]
    z = ctx.signal("student", batch).logits
    y = method.targets(batch)
    q = (z / 2).exp() / (z / 2).exp().sum(1, keepdim=True)
    torch.testing.assert_close(term.values, -(y * q.log()).sum(1))
    assert term.values.shape == (12,) and term.to == ("student",)
    for role in method.roles.values():
        role.module.zero_grad(set_to_none=True)
    term.total().backward()
    assert all(p.grad is not None and p.grad.any() for p in method.roles["student"].module.parameters())
    assert all(p.grad is None for p in method.roles["teacher"].module.parameters())


def test_a_picture_is_mixed_with_itself(tmp_path: Path) -> None:
    method, ctx, batch = begun(tmp_path, "method.num_crops=3", "method.discard_below=0")
    y = torch.randn(18, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    own = torch.arange(18)
    shifts = set()
    for step in range(12):
        here = ctx.at(step)
        partner = method.partners(batch, here)
        assert torch.equal(batch["item"][partner], batch["item"]) and bool((partner != own).all())
        assert sorted(partner.tolist()) == own.tolist()
        shifts.add(int(partner[0]) // 6)
        for kind in ("mixup", "cutmix", "switch"):
            method.mixing = kind
            x, mixed = method.mixed(batch["x"], y, batch, here)
            spread = (mixed - y[partner]) / (y - y[partner])
            share = float(spread[(y - y[partner]).abs() > 1e-2].median())
            torch.testing.assert_close(mixed, share * y + (1 - share) * y[partner], rtol=1e-3, atol=1e-5)
            if kind == "mixup":
                want = share * batch["x"] + (1 - share) * batch["x"][partner]
                torch.testing.assert_close(x, want, rtol=1e-3, atol=1e-4)
            elif kind == "cutmix":  # the label's share is that of the area, cut off at the border
                from_other = (x != batch["x"]).any(0).any(0).double().mean()
                assert from_other <= 1 - share + 1e-5
                assert bool(((x == batch["x"]) | (x == batch["x"][partner])).all())
    assert shifts == {1, 2}
    same = batch["x"][:6].repeat(3, 1, 1, 1)
    labels = y[:6].repeat(3, 1)
    for step in range(4):
        x, mixed = method.mixed(same, labels, batch, ctx.at(step))
        torch.testing.assert_close((x, mixed), (same, labels))
    method.pairing = "overlap"
    partner = method.partners(batch, ctx)
    each = corners(batch["box"].float())
    for i in range(18):
        rivals = [j for j in range(18) if batch["item"][j] == batch["item"][i] and j != i]
        values = {j: float(iou(each[i][None], each[j][None])) for j in rivals}
        assert int(partner[i]) in rivals and values[int(partner[i])] == max(values.values())


def test_a_whole_batch_is_mixed_for_comparison(tmp_path: Path) -> None:
    method, ctx, batch = begun(tmp_path, "method.mix=batch", "method.num_crops=1")
    assert method.coupled
    partner = method.partners(batch, ctx)
    assert sorted(partner.tolist()) == list(range(6)) and bool((batch["item"][partner] != batch["item"]).any())
    method.mix_probability = 0.0
    assert method.mixed(batch["x"], method.targets(batch), batch, ctx)[0] is batch["x"]


def test_fkd_is_a_preset_without_sorting_or_mixing(tmp_path: Path) -> None:
    tree = load_tree("ferkd", [], preset="fkd")
    method: Any = build(check(tree)).method
    assert not method.sorts and method.mix == "none"
    off = ("method.discard_below=0", "method.calibrate_below=0", "method.discard_above=1", "method.store.form=hard")
    made, _, batch = begun(tmp_path, *off)
    assert made.measures() == {"discarded": 0.0, "softened": 0.0, "kept": 1.0, "taken_back": 0.0}
    assert torch.equal(made.targets(batch), made.plan.labels(batch, 10))
    assert made.targets(batch).max(1).values.eq(1).all()


def test_a_shortage_names_the_pictures(tmp_path: Path) -> None:
    words = ("method.discard_below=0.9", "method.calibrate_below=0.9", "method.discard_above=0.91", "teach.steps=2")
    with pytest.raises(ConfigError, match=r"too few of 6 crops .* item 0 \(0 left\).*\n?"):
        begun(tmp_path / "a", *words, "method.shortage=raise")
    method, _, _ = begun(tmp_path / "b", *words)
    assert method.measures()["taken_back"] == pytest.approx(2 / 6) and method.measures()["discarded"] == pytest.approx(
        4 / 6
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.discard_below=0.4"], "calibrate_below"),
        (["method.discard_above=0.2"], "discard_above"),
        (["method.num_crops=1"], "num_crops"),
        (["method.num_crops=7"], "at most 6"),
        (["method.store.form=hard"], "how sure the teacher was"),
        (["method.store.crops=0"], "crops"),
        (["method.store.form=top5"], "form"),
        (["method.smoothing=1.5"], "smoothing"),
        (["queries.flip=flip"], "which nothing may move"),
        (["queries.mixup=mixup"], "which nothing may move"),
        (["task.data=scikit-learn:wine"], "crops of images"),
        (["task.target=number"], "one class each"),
    ],
)
def test_bad_input_is_refused_before_training(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny("ferkd", tmp_path, *words)


def test_a_recording_of_whole_pictures_is_refused_and_another_plan_is_told(tmp_path: Path) -> None:
    kd = ("task.student_items=24", "teacher={use: mlp, hidden: [16]}", "teach.steps=20")
    build_cache(tree_of("kd", *kd), tmp_path / "whole", yes=True)
    with pytest.raises(ConfigError, match="no crops"):
        tiny("ferkd", tmp_path / "a", f"teacher=cached:{tmp_path / 'whole'}")
    build_cache(tree_of("kd", *kd), tmp_path / "crops", yes=True, crops=3, k=2)
    made: Any = tiny("ferkd", tmp_path / "b", f"teacher=cached:{tmp_path / 'crops'}")
    (note,) = made.method.notes
    assert "crops 3 in place of 6" in note and "top 2 in place of 5" in note
    made.run()
