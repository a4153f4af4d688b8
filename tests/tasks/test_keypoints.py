"""The keypoints task: what networks answer, what is not labelled, its metrics and its image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.data.figures import DrawnFigures
from limbeck.data.keypoints import KeypointSet
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.functional import pose_metrics as P
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.signal import Signal
from limbeck.models.libraries import Timm
from limbeck.models.small import ConvNetModel, MlpModel
from limbeck.tasks.keypoints import Keypoints


@pytest.fixture(scope="module")
def task() -> Keypoints:
    made = Keypoints(data=DrawnFigures(items=24, test_items=6, side=32, parts=["body"]), pck=0.2)
    made.load(0)
    return made


class Told(nn.Module):
    """Answers with what it was given, whatever it sees."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points, self.at = nn.Parameter(points), 0

    def forward(self, x: Tensor) -> Tensor:
        found = self.points[self.at : self.at + len(x)]
        self.at = (self.at + len(x)) % len(self.points)
        return found.flatten(1)


def test_units_and_metrics(task: Keypoints) -> None:
    batch = task.test.fetch(torch.arange(6))
    true = batch["points"]
    torch.testing.assert_close(task.in_pixels(task.normalised(true)), true)
    right = task.evaluate(Built(Told(task.normalised(true))), task.test)
    assert right["pck"] == 1 and right["nme"] < 1e-5 and right["failure"] == 0 and right["auc"] > 0.999
    off = true + torch.tensor([3.0, 4.0])
    teacher = Built(Told(task.normalised(true)))
    found = task.evaluate(Built(Told(task.normalised(off))), task.test, teacher)
    sizes = P.pose_sizes(true)
    assert found["pixels"] == pytest.approx(5.0, rel=1e-5) and found["nme"] == pytest.approx(
        float((5 / sizes).mean()), rel=1e-5
    )
    assert found["failure"] == float((5 / sizes > 0.1).float().mean()) and found["gap"] == pytest.approx(found["nme"])
    assert found["pck"] == float((0.2 * sizes >= 5).float().mean())
    assert found.per_item["nme"].shape == (6,)


@pytest.mark.parametrize("loss", ["l2", "l1", "smooth_l1"])
def test_what_is_not_labelled_has_no_loss(loss: Any) -> None:
    task = Keypoints(data=DrawnFigures(items=6, test_items=2, side=32, parts=["body"]), loss=loss)
    task.load(0)
    batch = task.example(2)
    batch["where"][:, 3] = False
    batch["points"][:, 3] = torch.nan
    z = task.normalised(batch["points"]).nan_to_num(0.3) + 0.1
    z.requires_grad_()
    term = task.supervised(Signal(z), batch)
    assert float((term.total() / term.n()).detach()) == pytest.approx(
        {"l2": 0.01, "l1": 0.1, "smooth_l1": 0.095}[loss], rel=1e-4
    )
    (slope,) = torch.autograd.grad(term.total(), z)
    assert bool((slope[:, 3] == 0).all()) and bool((slope[:, 4] != 0).all())


@pytest.mark.parametrize("model", [ConvNetModel(width=4), MlpModel([8]), Timm("test_resnet")])
def test_classifiers_answer_with_points(task: Keypoints, model: Any) -> None:
    built = model.build(task)
    z = task.signal(built, task.example(2)).logits
    assert z.shape == (2, 13, 2)


def test_networks_that_do_not_fit(task: Keypoints) -> None:
    with pytest.raises(ShapeError, match=r"\[2, 26\]"):
        task.rehearse(Built(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))))
    other = Built(nn.Flatten(), labels=["a", "b"])
    with pytest.raises(TeacherMismatch, match="another order"):
        task.by_name(other)
    from limbeck.models.unet import UNetModel

    with pytest.raises(ConfigError, match="points"):
        UNetModel().build(task)


def test_one_pose_a_picture(tmp_path: Path) -> None:
    data = DrawnFigures(items=12, test_items=4, side=40, most=2, parts=["hand"])
    with pytest.raises(DataError, match=r"several poses.*crop"):
        Keypoints(data=data).load(0)
    task = Keypoints(data=data, crop=1.5, size=24)
    task.load(0)
    items: Any = task.teacher_train
    whole = data.poses().train
    figures = int(whole.y.shape[0])
    assert figures == 12 and len(task.teacher_train) + len(task.valid) > 24 and task.shape == (3, 24, 24)
    batch = items.fetch(torch.arange(4))
    side = P.pose_sizes(batch["points"])
    assert bool((side > 10).all()) and bool((side < 24).all())  # the pose fills its square
    assert float(batch["points"].min()) > 0 and float(batch["points"].max()) < 24
    with pytest.raises(ConfigError, match="hand"):
        Keypoints(data=data, crop=1.5, size=24, instances="face").load(0)
    with pytest.raises(ValueError, match="size"):
        Keypoints(data=data, crop=1.5)


def test_measured_by_a_pair(tmp_path: Path) -> None:
    at = np.tile(np.array([[2, 2], [8, 10], [5, 5]], np.float32), (10, 1, 1)) + np.arange(10)[:, None, None]
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 32, 32), np.uint8), keypoints=at.astype(np.float32))
    task = Keypoints(data=KeypointSet(str(tmp_path), pair=[0, 1]))
    task.load(0)
    assert bool((task.test.fetch(torch.arange(2))["extent"] == 10).all())
    assert any("point 0 and point 1" in n for n in task.notes)


def test_a_teacher_that_guesses_is_refused(task: Keypoints) -> None:
    model = MlpModel([8])
    model.checkpoint, model.role = "somewhere", "teacher"
    bad = Built(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 26)), model=model)
    nn.init.normal_(bad.module[1].weight, std=0.3)
    with pytest.raises(TeacherMismatch, match="only guesses"):
        task.try_out(bad)
    true = task.teacher_train.fetch(torch.arange(len(task.teacher_train)))["points"]
    good = Built(Told(task.normalised(true)), model=model)
    task.try_out(good)
    assert "points 0.00 pixels off" in good.notes[0]


def test_the_picture(task: Keypoints, tmp_path: Path) -> None:
    class Here:
        folder, device = tmp_path, torch.device("cpu")

    row = NetworkArtifact(task, ConvNetModel(width=4).build(task))
    (entry,) = task.extras({"student": row}, Here())["pictures"]  # type: ignore[arg-type]
    from PIL import Image

    with Image.open(tmp_path / entry["file"]) as image:
        assert image.size == (6 * 192, 2 * 192)
        shown = torch.from_numpy(np.array(image)).long()
    blue = (shown - torch.tensor([0, 191, 255])).abs().sum(-1) < 30
    assert int(blue[:192].sum()) > 500  # limbs of the true poses
