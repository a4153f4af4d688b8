"""Anomalies: what is normal is learnt, and what is not is found, in images and at their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from limbeck.data.anomalies import LABELS, AnomalySource, Textures
from limbeck.data.items import Splits, divide
from limbeck.data.sources import Source
from limbeck.data.splits import sizes_of, tell_classes
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError
from limbeck.functional.anomaly import gaussian_smooth
from limbeck.grammar.answers import Answer
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Data
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.tasks.drawing import heated
from limbeck.tasks.first_pass import first_pass
from limbeck.tasks.items import SourceTask

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench, Rows

NAMES = {"task": {"anomaly": "Anomaly"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

SHOWN = 6
"""Test images that are drawn in the report."""


class PixelStatistics(nn.Module):
    """How far each pixel lies from the mean of normal images, in deviations, squared and smoothed: a baseline.

    Args:
        mean, std: of each value of an image [C, H, W].
        sigma: of the Gaussian that smooths, in pixels.
    """

    def __init__(self, mean: Tensor, std: Tensor, sigma: float = 4.0) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(mean, requires_grad=False), nn.Parameter(std, requires_grad=False)
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 1, H, W]."""
        return gaussian_smooth(((x - self.mean) / self.std).square().mean(1, keepdim=True), self.sigma)


@settings
class Anomaly(SourceTask):
    """Anomaly detection: training items are normal, test items of both kinds.

    A teacher is a pyramid of features; what is delivered and evaluated answers with a map [N, 1, H, W], the larger the less
    normal. The score of an image is the largest value of its map. Thresholds come from normal validation items alone.

    Args:
        data: where images come from; its training items are normal.
        quantile: share of the normal validation items whose score lies below the threshold.
    """

    primary = "image_auroc"
    higher_is_better = True
    baseline = "pixels"
    called = MappingProxyType({"pixels": "the distance of each pixel from normal images"})
    judging = ("eval_batch", "quantile")

    data: Source = Textures()
    eval_batch: Count = 16
    quantile: Annotated[float, Gt(0), Le(1)] = 0.95

    def validate(self) -> None:
        """Items are not dealt anew: defects would come among those that are learnt from."""
        if self.deal:
            raise ValueError("deal must be 0: training items are the normal ones")

    def read(self) -> Splits:
        """Normal training and validation items, test items of both kinds."""
        if not isinstance(self.data, AnomalySource):
            raise DataError(
                "task.data",
                "its items are not told apart as normal and anomalous",
                given=self.data.config.get("use", type(self.data).__name__),
                expected="anomaly-folder, anomaly-arrays or textures",
            )
        splits = self.data.anomalies(self.size)
        train, test = splits.train, splits.test
        assert test is not None
        if bool(train.y.any()):
            raise DataError(
                "task.data", f"{int(train.y.sum())} training items are anomalous", expected="normal items alone"
            )
        if not len(test) or bool(test.y.all()):
            what = f"all {len(test)} test items are anomalous" if len(test) else "there are no test items"
            raise DataError("task.data", f"{what}, so no false alarm can be told", expected="normal test items too")
        if train.shape != test.shape:
            raise DataError(
                "task.data",
                f"training images are {list(train.shape)}, test images {list(test.shape)}",
                remedy="bring them to one size: task.size=N",
            )
        notes, whole = list(splits.notes), len(train)
        if not bool(test.y.any()):  # the first day of a line: no defect has been seen yet
            self.primary, self.higher_is_better = "false_alarms", False
            notes.append(
                f"all {len(test)} test items are normal: areas under the curve and recall are not defined, false alarms are "
                "told alone"
            )
        valid = splits.valid
        if valid is None:
            train, valid = divide(train, self.valid_fraction, "valid")
            notes.append(
                f"{len(valid)} of {whole} normal training items set aside for thresholds "
                f"(task.valid_fraction={self.valid_fraction:g})"
            )
        if not len(train) or not len(valid):
            raise DataError("task.data", f"{whole} normal items cannot be divided", expected="at least 10")
        made = Splits(train, valid, test, splits.labels, "label", notes)
        made.notes += tell_classes(splits.labels, sizes_of(made))[:1]
        return made

    @property
    def needs(self) -> Needs:
        """A pyramid of feature maps."""
        return Needs(self.shape, 1, "pyramid")

    def match(self, student: Built, teacher: Built) -> None:
        """Nothing is named."""

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two items through a network: it must answer with a pyramid, or with a map.

        Raises:
            ConfigError: it fails on them, or answers with something else.
        """
        batch = to_device(self.example(2), device_of(built.module))
        with first_pass(built, role, f"it fails on the task's items {list(batch['x'].shape)}", "set task.size"):
            out = self.feed(built.module, built.contract.feed(batch))
        levels = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, (list, tuple)) else []
        if not levels or not all(isinstance(f, Tensor) and f.ndim == 4 for f in levels):
            raise ConfigError(role, given=type(out).__name__, expected="a list of maps [N, C, h, w], the finest first")

    # ------------------------------------------------------------------------------------------------------- answers

    def _recall(self, about: Mapping[str, Any]) -> None:
        known = (about.get("metrics") or {}).get("threshold")
        self.threshold: float | None = float(known) if known is not None else None

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """The largest value of each map, and whether it lies above the threshold of normal validation items, where known."""
        maps = self.signal(built, batch).logits[:, 0].float().cpu()
        found = []
        for map_ in maps:
            row: dict[str, Any] = {"score": float(map_.amax())}
            if self.threshold is not None:
                row |= {"label": LABELS[int(row["score"] > self.threshold)], "threshold": self.threshold}
            found.append(Answer(row, {"map": map_}))
        return found

    def picture_of(self, answer: Answer, asked: Any, item: int) -> Tensor:
        """The image beside its map: half as bright as can be at the threshold, or at its own largest value."""
        map_ = answer.tensors["map"]
        most = 2 * self.threshold if self.threshold else float(map_.amax())
        return heated(asked.brought(asked.original(item)), map_ / max(most, 1e-12))

    # ------------------------------------------------------------------------------------------------------- evaluation

    def signal(self, built: Built, batch: Batch) -> Signal:
        """What a network shows for a batch, through its contract."""
        if hasattr(built.module, "answer"):
            return built.module.answer(batch, ())
        return Signal(self.feed(built.module, built.contract.feed(batch)))

    def maps(self, built: Built, data: Data, device: torch.device | None = None) -> Tensor:
        """Anomaly maps float32 [N, H, W] of all items."""
        device = device or device_of(built.module)
        found = []
        with torch.no_grad(), evaluating([built.module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                found.append(self.signal(built, batch).logits[:, 0].float().cpu())
        return torch.cat(found)

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of what answers with maps.

        ``image_auroc``, ``pixel_auroc`` (where pixels are known): areas under the curve; ``threshold``: the quantile of the
        normal validation items' scores; ``recall``, ``false_alarms``: shares of anomalous and of normal items above it.
        Of normal test items alone ``threshold`` and ``false_alarms``, which is then what decides; of normal validation items
        ``score``, their mean score.
        """
        from sklearn.metrics import roc_auc_score

        maps = self.maps(built, data, device)
        scores = maps.flatten(1).amax(1)
        if not bool(torch.isfinite(scores).all()):
            raise ConfigError("student", "its maps are not finite (NaN or infinity)", remedy="lower train.lr")
        whole = data.fetch(torch.arange(len(data)))
        y = whole["y"]
        both = bool(y.any())
        if not both and data is not self.test:
            return Scores({"score": float(scores.mean())})
        known = self.maps(built, self.valid, device).flatten(1).amax(1)
        threshold = float(torch.quantile(known, self.quantile))
        above = scores > threshold
        found = {"image_auroc": float(roc_auc_score(y.numpy(), scores.numpy()))} if both else {}
        mask = whole["mask"]
        if bool(mask.any()):
            found["pixel_auroc"] = float(roc_auc_score(mask.flatten().numpy(), maps.flatten().numpy()))
        if both:
            found["recall"] = float(above[y == 1].float().mean())
        found |= {
            "false_alarms": float(above[y == 0].float().mean()),
            "threshold": threshold,
        }
        return Scores(found)

    def baselines(self, bench: Bench) -> Rows:
        """``pixels``: how far pixels lie from the mean of the normal ones, which takes no teacher."""
        return {"pixels": partial(self._pixels, bench.device)}

    def _pixels(self, device: torch.device) -> Artifact:
        total, square = (torch.zeros(self.shape, dtype=torch.float64) for _ in range(2))
        for ids in torch.arange(len(self.train)).split(256):
            x = self.train.fetch(ids)["x"].double()
            total, square = total + x.sum(0), square + x.square().sum(0)
        mean = total / len(self.train)
        std = (square / len(self.train) - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)
        return NetworkArtifact(self, Built(PixelStatistics(mean.float(), std.float()).to(device), Contract()))

    # --------------------------------------------------------------------------------------------------------- report

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """``pictures``: test images, where their defects are, and the map of every row, below one another."""
        networks = {n: r.built for n, r in rows.items() if isinstance(r, NetworkArtifact)}
        if bench.folder is None or not networks:
            return {}
        names = self._draw(networks, bench.folder / "maps.png", bench.device)
        caption = (
            "Test images, their masks, and the anomaly maps, row by row: "
            + ", ".join(names)
            + ". A map is as bright as "
            "its value over the largest of normal validation items: full brightness is twice that."
        )
        return {"pictures": [{"title": "Anomaly maps", "caption": caption, "file": "maps.png", "rows": names}]}

    def _draw(self, networks: Mapping[str, Built], path: Path, device: torch.device) -> list[str]:
        from PIL import Image

        y = self.test.fetch(torch.arange(len(self.test)))["y"]
        bad, good = (y == 1).nonzero()[:, 0], (y == 0).nonzero()[:, 0]
        some = bad[torch.linspace(0, len(bad) - 1, min(SHOWN - 1, len(bad))).long()]
        ids = torch.cat([some, good[:1]])
        batch = self.test.fetch(ids)
        x = batch["x"]
        lines = [x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]]
        names = ["image"]
        if bool(batch["mask"].any()):
            lines.append(batch["mask"].float().unsqueeze(1).expand(-1, 3, -1, -1))
            names.append("mask")
        few = _Few(self.test, ids)
        for name, built in networks.items():
            largest = self.maps(built, self.valid, device).amax().clamp_min(1e-12)
            heat = (self.maps(built, few, device) / (2 * largest)).clamp(0, 1).unsqueeze(1)
            lines.append(torch.cat([(3 * heat).clamp(0, 1), (3 * heat - 1).clamp(0, 1), (3 * heat - 2).clamp(0, 1)], 1))
            names.append(name)
        whole = torch.cat([torch.cat(list(line), 2) for line in lines], 1)
        image = Image.fromarray(np.ascontiguousarray((whole * 255).round().to(torch.uint8).movedim(0, -1).numpy()))
        factor = max(1, 900 // image.width)
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)
        return names

    def describe(self) -> dict[str, Any]:
        """What must travel with a network."""
        return {"target": "map", "input": list(self.shape), "outputs": 1, "form": "pyramid"}

    def default_student(self) -> dict[str, Any]:
        """A decoder of the teacher's pyramid."""
        return {"use": "reverse-decoder"}

    def default_teacher(self) -> dict[str, Any]:
        """A small pyramid."""
        return {"use": "conv-pyramid"}


class _Few:
    """Some items of a split, renumbered."""

    def __init__(self, data: Data, ids: Tensor) -> None:
        self.data, self.ids = data, ids

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, items: Tensor) -> Batch:
        return self.data.fetch(self.ids[items])

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint
