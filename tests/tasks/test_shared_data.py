"""Real data through the ordinary paths. ``LIMBECK_SHARED_DATA``, or ``../shared/data``, must be there, else they skip."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.items import ArrayData, Part
from limbeck.data.sources import Arrays
from limbeck.data.tables import Parquet, Table
from limbeck.models.small import CifarResNetModel
from limbeck.tasks.classification import Classification

SHARED = Path(os.environ.get("LIMBECK_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not in {SHARED}: name the folder with LIMBECK_SHARED_DATA")
    return path


def test_fashion_mnist() -> None:
    task = Classification(Arrays(str(shared("fashion_mnist"))))
    task.load()
    assert task.labels is not None and task.labels[0] == "T-shirt/top" and task.shape == (1, 28, 28)
    assert (len(task.teacher_train), len(task.valid), len(task.test)) == (9000, 1000, 2000)
    assert torch.bincount(task.valid.y).tolist() == [100] * 10
    assert task.default_student()["use"] == "convnet"


def test_cifar_100_fine_and_coarse() -> None:
    path = str(shared("cifar100"))
    fine, coarse = (Arrays(path, y=y).read() for y in (None, "y_coarse"))
    assert (len(fine.labels), len(coarse.labels)) == (100, 20)
    apple = fine.train.y == fine.labels.index("apple")
    assert set(coarse.train.y[apple].tolist()) == {coarse.labels.index("fruit_and_vegetables")}


@pytest.mark.parametrize("depth", [20])
def test_the_shared_resnet_scores_what_it_is_known_to_score(depth: int) -> None:
    weights = shared(f"weights/cifar10_resnet/resnet{depth}.safetensors")
    data = shared("cifar10")
    task = Classification(Arrays(str(data)))
    task.load()
    model = CifarResNetModel(
        depth,
        checkpoint=str(weights),
        labels=str(data / "classes.json"),
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    built = model.build(task)
    assert sum(p.numel() for p in built.module.parameters()) == 269_722
    some = Part(task.test, torch.arange(0, 2000, 10))  # 92.35 % of all 2,000
    assert task.evaluate(built, some)["accuracy"] > 0.88


def test_pictures_in_an_archive_named_by_a_table() -> None:
    folder = shared("tiny_imagenet")
    source = Table(
        str(folder / "labels.csv"),
        label="class",
        root=str(folder / "images.tar"),
        classes=str(folder / "classes.json"),
        check="quick",
        memory_mb=1,
    )
    found = source.read()
    assert len(found.labels) == 200 and found.labels[0] == "goldfish, Carassius auratus"
    assert (len(found.train), len(found.test or [])) == (5000, 1000) and found.train.shape == (3, 64, 64)
    x = found.train.fetch(torch.arange(0, 5000, 1000))["x"]
    assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.1


def test_tables_of_numbers() -> None:
    nsl = Parquet(str(shared("nsl_kdd")), label="category").read()
    assert nsl.labels == ["dos", "normal", "probe", "r2l", "u2r"]
    assert (len(nsl.train), len(nsl.test or [])) == (25192, 22544)
    adult = shared("fair_tabular")
    found = Parquet(str(adult / "adult_train.parquet"), label="income", test=str(adult / "adult_test.parquet"))
    task = Classification(found)
    task.load()
    assert task.labels == ["0", "1"] and len(task.test) == 16281
    mean, std = task.statistics()
    assert np.isfinite(mean).all() and min(std) > 0 and task.default_student()["use"] == "mlp"


def test_landmarks_are_numbers() -> None:
    task = Classification(Arrays(str(shared("faces68")), y="keypoints"))
    task.load()
    assert task.kind_of_target == "number" and task.outputs == 136 and len(task.test) == 300
    assert isinstance(task.train, (Part, ArrayData)) and task.train.y.shape == (1350, 136)
