"""MVTec's folders, arrays and textures, and what is refused of them; the task that evaluates on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from limbeck.data.anomalies import AnomalyArrays, AnomalyFolder, AnomalySource, Photographs, Textures
from limbeck.errors import DataError
from limbeck.grammar.method import Built
from limbeck.tasks.anomaly import Anomaly


def picture(path: Path, value: int = 90, size: tuple[int, int] = (40, 32), mask: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.full((*size, 3), value, np.uint8)
    if mask:
        x = np.zeros(size, np.uint8)
        x[4:8, 4:8] = 255
    Image.fromarray(x).save(path)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "carpet"
    for i in range(12):
        picture(root / f"train/good/{i:03}.png", 80 + i)
    for i in range(3):
        picture(root / f"test/good/{i:03}.png")
        picture(root / f"test/hole/{i:03}.png")
        picture(root / f"ground_truth/hole/{i:03}_mask.png", mask=True)
    return root


def test_mvtecs_folders(mvtec: Path) -> None:
    found = AnomalyFolder(str(mvtec)).anomalies(32)
    assert found.test is not None and len(found.train) == 12 and found.test.y.sum() == 3
    batch = found.test.fetch(torch.arange(6))
    assert batch["x"].shape == (6, 3, 32, 32) and batch["mask"].shape == (6, 32, 32)
    assert torch.equal(batch["mask"].flatten(1).any(1).long(), batch["y"])
    task = Anomaly(AnomalyFolder(str(mvtec)), size=32)
    task.load(0)
    assert (len(task.train), len(task.valid), len(task.test)) == (11, 1, 6)
    assert not task.valid.fetch(torch.arange(1))["y"].any()


def test_without_masks_pictures_alone_are_judged(mvtec: Path) -> None:
    import shutil

    shutil.rmtree(mvtec / "ground_truth")
    task = Anomaly(AnomalyFolder(str(mvtec)))
    task.load(0)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True)

    found = task.evaluate(Built(Mean()), task.test)
    assert "pixel_auroc" not in found and found["image_auroc"] == 0.5


def test_folders_that_cannot_be_used_are_refused(mvtec: Path, tmp_path: Path) -> None:
    source = AnomalyFolder(str(mvtec))
    picture(mvtec / "train/hole/0.png")
    with pytest.raises(DataError, match="train/good alone"):
        source.anomalies()
    (mvtec / "train/hole/0.png").unlink()
    picture(mvtec / "test/hole/9.png")
    with pytest.raises(DataError, match="without a mask"):
        source.anomalies()
    (mvtec / "test/hole/9.png").unlink()
    picture(mvtec / "test/good/7.png", size=(8, 8))
    with pytest.raises(DataError, match="size"):
        source.anomalies()
    with pytest.raises(DataError, match="train/good"):
        AnomalyFolder(str(tmp_path / "nowhere")).anomalies()
    (mvtec / "test/good/7.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"7\.png"):
        source.anomalies()


def arrays(root: Path, **test: np.ndarray) -> AnomalySource:
    rng = np.random.default_rng(0)
    np.savez(root / "train.npz", x=rng.integers(0, 256, (12, 16, 16), dtype=np.uint8))
    np.savez(root / "test.npz", **test)
    return AnomalyArrays(str(root))


def test_arrays(tmp_path: Path) -> None:
    x, mask = np.zeros((4, 16, 16), np.uint8), np.zeros((4, 16, 16), np.uint8)
    mask[1, 3:5] = 1
    found = arrays(tmp_path, x=x, mask=mask).anomalies()
    assert found.test is not None and found.test.y.tolist() == [0, 1, 0, 0] and found.train.shape == (1, 16, 16)
    for bad, said in [
        ({"x": x}, "mask or y"),
        ({"x": x, "mask": mask[:, :8]}, "mask is"),
        ({"x": x, "y": np.zeros(3)}, "y is"),
        ({"x": x.astype(np.float32) - 1, "y": np.zeros(4)}, "outside"),
        ({"x": np.zeros((4, 5, 16, 16), np.uint8), "y": np.zeros(4)}, "images"),
    ]:
        with pytest.raises(DataError, match=said):
            arrays(tmp_path, **bad).anomalies()
    with pytest.raises(DataError, match="all 4 test items are anomalous, so no false alarm"):
        Anomaly(arrays(tmp_path, x=x, y=np.ones(4))).load(0)
    np.savez(tmp_path / "train.npz", x=x, y=np.array([0, 1, 0, 0]))
    with pytest.raises(DataError, match="1 anomalous item"):
        AnomalyArrays(str(tmp_path)).anomalies()


def test_textures_are_the_same_each_time_and_defects_lie_where_the_mask_says() -> None:
    source = Textures(train=["grass"], items=4, test_items=8, side=32)
    first, again = source.anomalies(), source.anomalies()
    assert first.test is not None and again.test is not None
    assert first.test.fingerprint == again.test.fingerprint
    assert first.test.y.tolist() == [0, 1] * 4
    other = Textures(train=["grass"], test=["gravel"], items=4, test_items=8, side=32).anomalies()
    assert other.test is not None and other.train.fingerprint == first.train.fingerprint
    with pytest.raises(ValueError, match="each once"):
        Textures(train=["grass", "grass"])


def test_photographs_are_crops_with_their_number() -> None:
    data = Photographs((3, 32, 48), 40)
    batch = data.fetch(torch.arange(26))
    assert batch["x"].shape == (26, 3, 32, 48) and batch["y"].unique().numel() == 13
    assert torch.equal(data.fetch(torch.tensor([7]))["x"][0], batch["x"][7])


def test_thresholds_come_from_normal_validation_items() -> None:
    task = Anomaly(Textures(items=30, test_items=10, side=32), valid_fraction=0.5, quantile=1.0)
    task.load(0)

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    found = task.evaluate(Built(Bright()), task.test)
    largest = task.valid.fetch(torch.arange(len(task.valid)))["x"].max()
    assert found["threshold"] == pytest.approx(float(largest))
    assert task.evaluate(Built(Bright()), task.valid).keys() == {"score"}


def test_where_no_defect_was_seen_yet_false_alarms_are_told_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (6, 16, 16), dtype=np.uint8)
    task = Anomaly(arrays(tmp_path, x=x, y=np.zeros(6)), valid_fraction=0.25)
    task.load(0)
    assert (task.primary, task.higher_is_better) == ("false_alarms", False)
    assert any("6 test items are normal" in note and "not defined" in note for note in task.notes)
    found = task.evaluate(task._pixels(torch.device("cpu")).built, task.test)  # type: ignore[attr-defined]
    assert set(found) == {"false_alarms", "threshold"} and 0 <= found["false_alarms"] <= 1
    assert set(task.evaluate(task._pixels(torch.device("cpu")).built, task.valid)) == {"score"}  # type: ignore[attr-defined]
