"""CDA: what the curriculum shows, what is stored and replayed, what is delivered, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.artifacts.labelled_set import LabelledSet, StoredLabels, Views, draw_views
from limbeck.errors import ConfigError, LimbeckError, NonFinite
from limbeck.functional.packing import pack_logits, unpack_logits
from limbeck.functional.recovery import channel_moments, crop_floor, image_norm, image_variation, statistics_gap
from limbeck.functional.views import View, crop_all, crop_boxes, crop_each, take_view
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.parts.recover import StatisticsTap, Weights, batch_norms, plan_views, recover
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import tiny


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))
    return net.eval().requires_grad_(False)


def test_statistics_are_matched_exactly_by_the_batch_they_come_from() -> None:
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    mean, var = channel_moments(x)
    assert float(statistics_gap(x, mean, var)) < 1e-12
    x.requires_grad_()
    far = (torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda v: statistics_gap(v, *far, var_weight=2.0), x)
    assert torch.autograd.gradcheck(lambda v: image_variation(v).l2 + image_norm(v).sum(), x)
    assert float(image_variation(torch.ones(2, 1, 3, 3)).l2) == 0


def test_the_curriculum_begins_with_whole_images_and_ends_with_small_crops() -> None:
    for kind in ("step", "linear", "cosine"):
        floors = [crop_floor(t, 10, curriculum=kind, milestone=0.5) for t in range(10)]
        assert floors[0] == 1.0 and floors[5:] == [0.08] * 5
        assert all(a >= b for a, b in pairwise(floors))
        back = [crop_floor(t, 10, curriculum=kind, milestone=0.5, direction="local-to-global") for t in range(10)]
        assert back[0] == pytest.approx(0.08) and back[5:] == [1.0] * 5
    assert {crop_floor(t, 10, curriculum="none") for t in range(10)} == {0.08}
    assert crop_floor(0, 10, milestone=0.0) == 0.08
    views = plan_views(Draws(0), [crop_floor(t, 50) for t in range(50)], (32, 32), jitter=4)
    areas = [v.box[2] * v.box[3] for v in views]
    assert areas[0] == 32 * 32 and sum(areas[:10]) > 1.5 * sum(areas[-10:])
    assert max(max(v.roll) for v in views) == 4 and {v.flip for v in views} == {True, False}


def test_crops_lie_inside_and_have_the_area_and_ratio_that_were_asked_for() -> None:
    boxes = crop_boxes(Draws(1).rand("u", 500, (10, 4)), (40, 32), lowest=0.2, highest=0.5)
    top, left, h, w = boxes.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + h <= 40) & (left + w <= 32)).all())
    share, ratio = h * w / (40 * 32), w / h
    assert 0.17 < share.min() < 0.25 and 0.45 < share.max() < 0.53
    assert ratio.min() > 0.68 and ratio.max() < 1.45
    x = torch.rand(6, 2, 40, 32)
    each = crop_each(x, boxes[:6], (40, 32))
    for i in range(6):
        box = boxes[i].tolist()
        assert torch.allclose(
            each[i : i + 1], crop_all(x[i : i + 1], (box[0], box[1], box[2], box[3]), (40, 32)), atol=1e-4
        )
    assert torch.equal(take_view(x, View((0, 0, 40, 32), False, (0, 0))), x)


@pytest.mark.parametrize(("form", "within"), [("fp16", 2e-3), ("int8", 2e-2), ("top-k", 2e-2)])
def test_packed_labels_say_nearly_the_same_in_fewer_bytes(form: Any, within: float) -> None:
    z = 4 * torch.randn(7, 3, 100) + 1e5
    packed = pack_logits(z, form, k=60)
    assert float((unpack_logits(packed, 100).softmax(-1) - z.softmax(-1)).abs().max()) < within
    assert (
        unpack_logits(pack_logits(torch.zeros(2, 4), form), 4).softmax(-1).allclose(torch.full((2, 4), 0.25), atol=1e-3)
    )
    few = pack_logits(z, "top-k", 5)
    assert sum(t.numel() * t.element_size() for t in few.values()) == 21 * (4 * 5 + 2)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_views_are_the_same_alone_and_among_others(mix: Any) -> None:
    draws, images = Draws(0, ("relabel",)), torch.rand(6, 1, 8, 8)
    views = Views.joined([draw_views(draws, e, 6, (8, 8), mix=mix, batch=3) for e in range(3)])
    items, epochs = torch.tensor([4, 0, 5]), torch.tensor([2, 0, 1])
    together = views.show(images, items, epochs)
    for i in range(3):
        assert torch.equal(views.show(images, items[i : i + 1], epochs[i : i + 1])[0], together[i])
    again = Views.of(views.tensors())
    assert torch.equal(again.show(images, items, epochs), together)
    assert torch.equal(draw_views(draws, 2, 6, (8, 8), mix=mix, batch=3).boxes[0], views.boxes[2])


def test_recovery_lowers_its_loss_leaves_the_network_alone_and_keeps_to_the_pixels() -> None:
    net, start = small_net(), torch.randn(3, 1, 8, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optim = Optim(steps=40, lr=0.1, optimizer="adam", schedule="cosine")
    limits = (torch.tensor(-2.0), torch.tensor(2.0))
    views = plan_views(Draws(0), [1.0] * 40, (8, 8), flip=0)
    made = recover(net, start, torch.arange(3), optim, views, weights=Weights(bn=1.0, tv=1e-3, l2=1e-3), limits=limits)
    assert made.trace.shape == (40, 4) and bool((made.trace[-1, :2] < made.trace[0, :2]).all())
    assert float(made.images.abs().max()) <= 2.0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(NonFinite):
        recover(net, start * float("nan"), torch.arange(3), optim, views)
    with pytest.raises(ConfigError, match="training mode"):
        recover(net.train(), start, torch.arange(3), optim, views)


def test_statistics_are_seen_at_the_input_of_every_layer() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True), nn.BatchNorm2d(2)).eval()
    assert list(batch_norms(net)) == ["0", "2"]
    x = 3 + torch.randn(4, 2, 5, 5)
    with StatisticsTap(net) as tap:
        net(x)
        gaps = tap.take()
    assert gaps.shape == (2,) and torch.allclose(gaps[0], statistics_gap(x, torch.zeros(2), torch.ones(2)))
    net(x)
    assert not tap.gaps, "the hooks are gone"


def test_the_set_is_delivered_with_its_labels_and_their_bytes(tmp_path: Path) -> None:
    made = tiny("cda", tmp_path, "method.label_epochs=3", "method.form=int8", "method.mix=none").run()
    artifact: Any = made.method.artifact()
    assert isinstance(artifact, LabelledSet) and isinstance(artifact.source, StoredLabels)
    size = artifact.size()
    assert size["image_bytes"] == 10 * 64 and size["bytes"] == size["image_bytes"] + size["label_bytes"]
    # 10 classes and a span of 2 bytes; crops 8, flip 1, partner 4
    assert size["label_bytes"] == 3 * 10 * (10 + 2 + 8 + 1 + 4)
    # what is stored is what the teacher says of the view
    items, epochs = torch.arange(10), torch.full((10,), 2)
    x, z = artifact.source.ask(artifact.images, items, epochs)
    said: Any = made.method
    assert torch.allclose(z.softmax(-1), said.ask(x).softmax(-1), atol=0.01)
    artifact.export("safetensors", tmp_path)
    back: Any = artifact.opened("safetensors", tmp_path)
    assert torch.allclose(back.images, artifact.images, atol=1e-6) and torch.equal(
        back.source.ask(back.images, items, epochs)[1], z
    )
    artifact.export("images", tmp_path / "png")
    again: Any = artifact.opened("images", tmp_path / "png")
    assert torch.allclose(again.images, artifact.images, atol=1e-6) and again.source.epochs == 3
    with pytest.raises(ConfigError, match=r"4 epochs .* stored for 3"):
        artifact.train(nn.Flatten(), Optim(steps=4, batch_size=10), 0, "x", torch.device("cpu"))


@pytest.mark.parametrize("labels", ["fly", "hard"])
def test_other_labels(labels: str, tmp_path: Path) -> None:
    made = tiny("cda", tmp_path, f"method.labels={labels}", "method.initial=real", "method.encoding=jpeg").run()
    artifact: Any = made.method.artifact()
    assert isinstance(artifact, LabelledSet) == (labels == "fly")
    if labels == "fly":
        assert artifact.size()["label_bytes"] == 0
        net = made.bench.student_model.build(made.bench.task).module
        artifact.train(net, Optim(steps=3, batch_size=4), 0, "x", torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.milestone=1.5"], "milestone"),
        (["method.min_crop=0"], "min_crop"),
        (["method.min_crop=0.5", "method.max_crop=0.4"], "must not exceed"),
        (["method.curriculum=sine"], "curriculum"),
    ],
)
def test_settings_that_cannot_be_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        build(check(load_tree("cda", words)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["teacher.norm=instance"], "no BatchNorm2d layer"),
        (["train.batch_size=11"], "train.batch_size=10"),
        (["task.zca=true"], "zca"),
        (["method.jitter=8"], "less than the side"),
        (["method.label_epochs=1"], "are 3 epochs .* stored for 1"),
        (["task=classification"], "condensation"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny("cda", tmp_path, *words)


def test_without_statistics_no_batch_norm_is_needed(tmp_path: Path) -> None:
    tiny("cda", tmp_path, "teacher.norm=instance", "method.r_bn=0", "method.label_epochs=3").run()
