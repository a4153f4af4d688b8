"""Segmentation as a task: what counts, on which grid, how it is evaluated, and teachers of other libraries and forms."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.api import distill
from limbeck.data.masks import DigitScenes
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import Signal
from limbeck.models.ensemble import EnsembleOf
from limbeck.models.from_run import FromRun
from limbeck.models.libraries import Timm
from limbeck.models.unet import UNetModel
from limbeck.objectives.maps import MapCrop
from limbeck.objectives.queries import Flip
from limbeck.tasks.dense import Dense, palette
from tests.tiny import tiny

SMALL = DigitScenes(items=12, test_items=6, side=16, each=1)


def task_of(**more: object) -> Dense:
    task = Dense(SMALL, **more)  # type: ignore[arg-type]
    task.load(0)
    return task


class Truth(nn.Module):
    """Answers with the mask that it was given, as libraries answer: channels first, under a name."""

    def __init__(self, y: Tensor, classes: int) -> None:
        super().__init__()
        self.z = 9.0 * nn.functional.one_hot(y, classes).float().movedim(-1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.z[: len(x)], "aux": x}


def test_pixels_that_do_not_count_are_neither_learnt_nor_judged() -> None:
    task = task_of()
    batch = task.test.fetch(torch.arange(6))
    net = Truth(batch["y"], task.outputs)
    found = task.evaluate(Built(net), task.test)
    assert found["miou"] == found["accuracy"] == found["boundary_miou"] == 1.0 and found["nll"] < 0.01
    wrong = batch["y"].clone()
    wrong[:, :8] = (wrong[:, :8] + 1) % task.outputs
    half = task.evaluate(Built(Truth(wrong, task.outputs)), task.test)
    assert half["accuracy"] == pytest.approx(0.5)
    where = torch.zeros_like(batch["where"])
    where[:, 8:] = True
    data = type("D", (), {"fetch": lambda s, i: {**batch, "where": where}, "__len__": lambda s: 6})()
    assert task.evaluate(Built(Truth(wrong, task.outputs)), data)["accuracy"] == 1.0
    signal = Signal(task.feed(Truth(wrong, task.outputs), batch))
    term = task.supervised(signal, {**batch, "where": where})
    assert float(term.total() / term.n()) < 0.01 and term.where is where
    torch.testing.assert_close(term.values, F.cross_entropy(signal.logits, batch["y"]))


def test_outputs_that_are_no_map_or_of_other_classes_are_refused() -> None:
    task = task_of()
    for out, said in ((nn.Flatten(), r"a map \[N, C, h, w\]"), (nn.Conv2d(1, 3, 1), "the classes last")):
        with pytest.raises(ShapeError, match=said):
            task.rehearse(Built(out))
    with pytest.raises(TeacherMismatch, match="the classes last"):
        task.rehearse(Built(nn.Conv2d(1, 3, 1)), "teacher")


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_network_is_brought_to_one_grid(stride: int) -> None:
    task = task_of(stride=stride)
    assert task.grid == (-(-16 // stride),) * 2
    batch = task.train.fetch(torch.arange(4))
    assert batch["where"].shape == (4, *task.grid) and task.counted(batch).shape == (4, 16, 16)
    for model in (UNetModel(4, 2), UNetModel(4, 2, stride=4)):
        built = model.build(task)
        z = task.signal(built, batch).logits
        assert z.shape == (4, *task.grid, task.outputs)
        assert task.supervised(Signal(z), batch).values.shape == (4, 16, 16)
        assert 0 <= task.evaluate(built, task.valid)["miou"] <= 1


def test_flips_and_crops_move_picture_and_mask_together(tmp_path: Path) -> None:
    made = tiny("bpkd", tmp_path)
    ctx: Any = SimpleNamespace(draws=Draws(0, ("t",)), task=None)
    assert made.recipe.task
    y = torch.randint(0, 3, (40, 8, 8))
    batch = {"x": y[:, None].float(), "y": y, "where": y < 2, "item": torch.arange(40), "view": torch.zeros(40).long()}
    flipped = Flip()(batch, ctx)
    assert torch.equal(flipped["x"][:, 0].long(), flipped["y"]) and torch.equal(flipped["where"], flipped["y"] < 2)
    assert not torch.equal(flipped["y"], y)
    same = MapCrop(least=1.0, most=1.0)(batch, ctx)
    assert torch.equal(same["y"], y) and torch.equal(same["where"], batch["where"])
    cut = MapCrop(sides=[6, 10], least=0.5, most=2.0)(batch, ctx)
    assert cut["y"].shape == cut["where"].shape == (40, 6, 10) and cut["x"].shape == (40, 1, 6, 10)
    assert 0 < float(cut["where"].float().mean()) < float(batch["where"].float().mean())
    smooth = (cut["x"][:, 0] - cut["x"][:, 0].round()).abs() < 1e-3  # where nothing was interpolated
    agree = (cut["x"][:, 0].round().long() == cut["y"])[smooth & cut["where"]]
    assert float(agree.float().mean()) > 0.95
    for flags in ("queries.c={use: map-crop}", "queries.f=flip"):
        tiny("bpkd", tmp_path / flags[8], flags).run()


def test_kd_and_ensembles_work_on_maps(tmp_path: Path) -> None:
    task = task_of()
    batch = task.example(2)
    both = EnsembleOf([UNetModel(2, 1), UNetModel(4, 1)], average="logits").build(task)
    z = task.signal(both, batch).logits
    each = [task.signal(b, batch).logits for b in both.members]
    torch.testing.assert_close(z, (each[0] + each[1]) / 2)
    tiny("bpkd", tmp_path, "method=kd", "teacher={use: ensemble, members: [{use: unet, width: 2, depth: 1}]}").run()


def test_a_student_is_opened_again(tmp_path: Path) -> None:
    task = task_of()
    built = UNetModel(2, 1).build(task)
    NetworkArtifact(task, built).save(tmp_path)
    again = FromRun(str(tmp_path)).build(task)
    batch = task.example(2)
    assert torch.equal(task.signal(built, batch).logits, task.signal(again, batch).logits)
    from limbeck.tasks.classification import Classification

    with pytest.raises(TeacherMismatch, match=r"form 'map'.*needs 'classes'"):
        FromRun(str(tmp_path)).build(Classification())


def test_a_teacher_that_guesses_is_refused(tmp_path: Path) -> None:
    from limbeck.storage.store import save_state_dict

    task = task_of()
    state = {k: torch.zeros_like(v) for k, v in UNetModel(2, 1).build(task).module.state_dict().items()}
    save_state_dict(tmp_path / "a.safetensors", state)  # the same class everywhere
    built = UNetModel(2, 1, checkpoint=str(tmp_path / "a.safetensors")).build(task)
    with pytest.raises(TeacherMismatch, match="it only guesses: right on"):
        task.check_teacher(built)
    built.model.check = "off"
    task.check_teacher(built)
    assert "not tried" in built.notes[-1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sides": [8]}, "sides"),
        ({"sides": [8, 8], "size": 8}, "sides"),
        ({"band": 4}, "band"),
        ({"stride": 0}, "stride"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Dense(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"task\.stride"):
        task_of(stride=17)


def test_one_class_is_nothing_to_learn() -> None:
    x, y = torch.rand(9, 1, 8, 8), torch.zeros(9, 8, 8, dtype=torch.long)
    with pytest.raises(DataError, match="one class only"):
        distill(student="unet", teacher="unet", data=(x, y), method="bpkd", quiet=True)


def test_networks_that_resize_their_input_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.size=96"):
        Timm("test_resnet", size=96).build(task_of())


def test_colours_differ() -> None:
    assert len({tuple(c.tolist()) for c in palette(21)}) == 21
