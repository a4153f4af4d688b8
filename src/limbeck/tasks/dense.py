"""Semantic segmentation: images answered with a class at every pixel."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from limbeck import functional as F
from limbeck.data.asked import AskedPictures
from limbeck.data.items import Items, Splits
from limbeck.data.masks import DigitScenes
from limbeck.data.sources import Source
from limbeck.data.splits import ready
from limbeck.engine.batches import to_device
from limbeck.errors import CacheMismatch, ConfigError, DataError, TeacherMismatch
from limbeck.functional import dense
from limbeck.grammar.answers import Answer
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.signal import Signal, classes_last, device_of, evaluating
from limbeck.tasks import guessing
from limbeck.tasks.drawing import overlaid
from limbeck.tasks.items import OutputTask, picture_steps

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"dense": "Dense"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

SHOWN = 4
"""Test images that are drawn in the report."""


class Strided:
    """Maps of classes whose places that count are told at the grid of the outputs too.

    Args:
        data: items with ``y`` and ``where`` at every pixel.
        stride: pixels of the image for each place of the grid.
    """

    def __init__(self, data: Items, stride: int) -> None:
        self.data, self.stride, self.y, self.shape = data, stride, data.y, data.shape

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """``valid``: which pixels count; ``where``: places of the grid of which more than half do."""
        return strided(self.data.fetch(items), self.stride)

    @property
    def fingerprint(self) -> str:
        """Of the items, as they are."""
        return self.data.fingerprint


def grid_of(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The grid of outputs for images of (height, width)."""
    return -(-size[0] // stride), -(-size[1] // stride)


def strided(batch: Batch, stride: int) -> Batch:
    """A batch with ``where`` at the grid of the outputs, and ``valid`` at the pixels."""
    valid = batch["valid"] if "valid" in batch else batch["where"]
    if stride == 1:
        return {**batch, "where": valid}
    share = adaptive_avg_pool2d(valid.float().unsqueeze(1), grid_of(valid.shape[-2:], stride))[:, 0]
    return {**batch, "valid": valid, "where": share > 0.5}


@settings
class Dense(OutputTask):
    """Semantic segmentation.

    Every network's output is brought to one grid, [N, h, w, C], on which students and teachers are compared; labels are
    held against it at their own pixels, and so is everything evaluated.

    Args:
        data: where images and masks come from.
        sides: [height, width] that images and masks are resized to, in place of ``size``, which cuts a square out.
        stride: pixels of the image for each place of the grid: that of the networks, if they answer more coarsely.
        student_items: size of the student's training set, drawn by the seed; all if ``null``.
        band: width in pixels of the band along boundaries in which ``boundary_miou`` is taken; odd, 3 or more.
    """

    primary = "miou"
    higher_is_better = True
    judging = ("student_items", "eval_batch", "band")

    data: Source = DigitScenes()
    sides: list[Count] | None = None
    stride: Count = 1
    student_items: Count | None = None
    eval_batch: Count = 16
    band: Annotated[int, Ge(3)] = 3

    def validate(self) -> None:
        """Sides are two, and the band has a middle."""
        if self.sides is not None and (len(self.sides) != 2 or self.size is not None):
            raise ValueError("sides must be [height, width], and size then left out")
        if self.band % 2 == 0:
            raise ValueError("band must be odd")

    # ---------------------------------------------------------------------------------------------------------- data

    def read(self) -> Splits:
        """Images and masks in three splits."""
        maps: Any = getattr(self.data, "maps", None)
        if maps is None:
            raise DataError(
                "task.data",
                "its items have no masks",
                given=self.data.config.get("use", type(self.data).__name__),
                expected="a source of masks: mask-folder, mask-arrays, coco-masks or digit-scenes",
            )
        splits = maps(self.sides if self.sides is not None else self.size)
        splits = ready(splits, self.valid_fraction, self.test_fraction, "keep", self.deal)
        for name in ("train", "valid", "test"):
            setattr(splits, name, Strided(getattr(splits, name), self.stride))
        return splits

    def check_splits(self, splits: Splits) -> None:
        """Refuse less than two classes, and a grid that is coarser than the image is large."""
        self.kind_of_target = "label"
        present = splits.train.y.sum(0) > 0
        if int(present.sum()) < 2:
            only = [n for n, p in zip(splits.labels, present.tolist(), strict=True) if p]
            raise DataError("task.data", f"the training masks hold one class only: {only}", expected="at least two")
        if self.stride > min(splits.train.shape[1:]):
            raise ConfigError("task.stride", given=self.stride, expected=f"at most {min(splits.train.shape[1:])}")

    @property
    def needs(self) -> Needs:
        """A row of logits at every place."""
        return Needs(self.shape, self.outputs, "map", tuple(self.labels or ()))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) on which networks are compared."""
        return grid_of((self.shape[1], self.shape[2]), self.stride)

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """Images are resized to ``sides`` where those are given, else the middle is cut out."""
        return picture_steps(contract, self.shape, "stretch" if self.sides is not None else "cover", self.data)

    def cache_bytes(self) -> float:
        """Two bytes for each value of a map."""
        return 2.0 * self.outputs * self.grid[0] * self.grid[1]

    # ------------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Tensor:
        """The output of a network [N, C, h', w'] (itself, its ``out`` or ``logits``) on the task's grid, [N, h, w, C]."""
        high, wide = batch["x"].shape[-2:]
        return dense.resized(classes_last(module(batch["x"])), grid_of((high, wide), self.stride))

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Cross-entropy at every pixel that counts [N, H, W]; logits of a coarser grid are brought to the pixels."""
        z = dense.resized(signal.logits, tuple(batch["y"].shape[1:]))
        loss = nn.functional.cross_entropy(z.movedim(-1, 1), batch["y"], reduction="none")  # as the map lies in memory
        return Term(loss, where=self.counted(batch))

    def counted(self, batch: Batch) -> Tensor:
        """Which pixels count."""
        counts: Tensor = batch["valid" if "valid" in batch else "where"]
        return counts

    def answer_shape(self, z: Tensor, items: int) -> str:
        """[N, h, w, C]."""
        want = [items, *self.grid, self.outputs]
        return "" if list(z.shape) == want else f"{want}, the classes last"

    # ------------------------------------------------------------------------------------------------------- answers

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Images, resized to ``sides`` where the task has those, else with the middle cut out."""
        how = "stretch" if self.sides is not None else "cover"
        return AskedPictures(given, tuple(self.shape), {**preprocessing, "resize_mode": how})

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """The class at every pixel (``mask`` [H, W], as large as the network was fed), and each class's share of them."""
        shape = (batch["x"].shape[-2], batch["x"].shape[-1])
        guess = dense.resized(self.signal(built, batch).logits.float(), shape).argmax(-1).cpu()
        names = self.labels or [str(i) for i in range(self.outputs)]
        found = []
        for mask in guess:
            share = torch.bincount(mask.flatten(), minlength=len(names)).double() / mask.numel()
            row = {"classes": {n: float(v) for n, v in zip(names, share.tolist(), strict=True) if v > 0}}
            found.append(Answer(row, {"mask": mask}))
        return found

    def picture_of(self, answer: Answer, asked: Any, item: int) -> Tensor:
        """The image as it was fed, under the colours of its classes."""
        colours = palette(self.outputs)[answer.tensors["mask"]].movedim(-1, 0)
        return overlaid(asked.brought(asked.original(item)), colours)

    # ------------------------------------------------------------------------------------------------------- evaluation

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a network on a split, over all of its pixels that count.

        ``miou``: the mean over classes of intersection over union; ``boundary_miou``: the same in a band along the
        boundaries; ``accuracy``: of pixels; ``mean_accuracy``: of classes; ``nll``. With a teacher: ``agreement``, the share
        of equal decisions.
        """
        device = device or device_of(built.module)
        k = self.outputs
        table, edge = (torch.zeros(k, k, dtype=torch.long) for _ in range(2))
        right, counts, loss, same = [], [], 0.0, 0.0
        with torch.no_grad(), evaluating([b.module for b in (built, teacher) if b is not None]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                y, valid = batch["y"], self.counted(batch)
                z = dense.resized(self.signal(built, batch).logits.float(), tuple(y.shape[1:]))
                guess = z.argmax(-1)
                table += dense.confusion(guess, y, k, valid).cpu()
                band = dense.boundary_bands(y, k, width=self.band, where=valid, check=False).any(-1)
                edge += dense.confusion(guess, y, k, band & valid).cpu()
                right.append(((guess == y) & valid).sum((1, 2)).double().cpu())
                counts.append(valid.sum((1, 2)).double().cpu())
                loss += float(torch.where(valid, F.cross_entropy(z, y), 0.0).sum())
                if teacher is not None:
                    try:
                        t = dense.resized(self.signal(teacher, batch).logits.float(), tuple(y.shape[1:]))
                        same += float(((guess == t.argmax(-1)) & valid).sum())
                    except CacheMismatch:  # a recorded teacher knows its training items only
                        teacher = None
        correct, pixels = torch.cat(right), torch.cat(counts)
        n = float(pixels.sum().clamp_min(1))
        seen = table.sum(1) > 0
        found = {
            "miou": dense.mean_iou(table),
            "boundary_miou": dense.mean_iou(edge),
            "accuracy": float(correct.sum()) / n,
            "mean_accuracy": float((table.diag()[seen].double() / table.sum(1)[seen]).mean()),
            "nll": loss / n,
        }
        if teacher is not None:
            found["agreement"] = same / n
        return Scores(found, {"accuracy": correct}, pixels)

    def try_out(self, teacher: Built, device: torch.device | None = None) -> None:
        """Try a ready teacher on up to 512 labelled pixels of 16 images, as many of each class as there are."""
        place = device or device_of(teacher.module)
        if isinstance(teacher.module, nn.Module):
            teacher.module.to(place)
        ids = torch.arange(min(16, len(self.teacher_train)))
        with torch.no_grad(), evaluating([teacher.module]):
            batch = to_device({**self.teacher_train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, place)
            z = dense.resized(self.signal(teacher, batch).logits.float(), tuple(batch["y"].shape[1:]))
        valid = self.counted(batch)
        z, y = z[valid].cpu(), batch["y"][valid].cpu()
        setting = teacher.model.setting("check")
        if not bool(torch.isfinite(z).all()):
            raise TeacherMismatch(
                teacher.model.role or "teacher",
                "its answers are not finite (NaN or infinity) on labelled pixels",
                expected="trained weights, and inputs as they were trained",
                remedy=f"check the checkpoint, or set {setting}=off to go on all the same",
            )
        some = guessing.spread(y)
        trial = guessing.try_classes(z[some].argmax(-1), y[some])
        told = f"right on {100 * trial.score:.1f} % of {trial.items} labelled pixels (guessing: {100 * trial.chance:.1f} %)"
        if trial.guesses and not teacher.model.held:
            raise TeacherMismatch(
                teacher.model.role or "teacher",
                f"it only guesses: {told}",
                expected="weights for these classes, in this order, fed as they were trained",
                remedy=f"name its classes with {teacher.model.setting('labels')}, or set {setting}=off to go on all the same",
            )
        teacher.notes.append(
            told + (": weak, so its students learn little from it" if trial.score < trial.half else "")
        )

    # --------------------------------------------------------------------------------------------------------- report

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """``pictures``: test images, their masks, and those of every network among the rows, below one another."""
        networks = {n: r.built for n, r in rows.items() if isinstance(r, NetworkArtifact)}
        if bench.folder is None or not networks:
            return {}
        ids = torch.linspace(0, len(self.test) - 1, min(SHOWN, len(self.test))).long()
        drawn = self.drawn(networks, ids, bench.device)
        _write_png(drawn, bench.folder / "maps.png")
        caption = "Test images, their masks, and what the networks answer, row by row: " + ", ".join(
            ["image", "mask", *networks]
        )
        legend = [self.labels[c] for c in range(self.outputs)] if self.labels else []
        title = "Masks" + (f" ({', '.join(legend)})" if len(legend) <= 12 else "")
        return {
            "pictures": [{"title": title, "caption": caption, "file": "maps.png", "rows": ["image", "mask", *networks]}]
        }

    def drawn(self, networks: Mapping[str, Built], ids: Tensor, device: torch.device) -> Tensor:
        """Images, masks and answers of some test items as one image, uint8 [3, rows * H, items * W]."""
        colours = palette(self.outputs)
        batch = to_device({**self.test.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
        valid, shape = self.counted(batch).cpu(), tuple(batch["y"].shape[1:])
        x = batch["x"].cpu()[:, :3]
        lines = [x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]]
        truth = torch.where(valid.unsqueeze(-1), colours[batch["y"].cpu()], torch.zeros(3))
        lines.append(truth.movedim(-1, 1))
        with torch.no_grad(), evaluating([b.module for b in networks.values()]):
            for built in networks.values():
                try:
                    z = dense.resized(self.signal(built, batch).logits.float(), shape)
                except CacheMismatch:
                    continue
                lines.append(colours[z.argmax(-1).cpu()].movedim(-1, 1))
        whole = torch.cat([torch.cat(list(line), 2) for line in lines], 1)  # [3, rows * H, items * W]
        return (whole * 255).round().clamp(0, 255).to(torch.uint8)

    def default_student(self) -> dict[str, Any]:
        """A small U-Net."""
        return {"use": "unet", "width": 8, "depth": self._depth()}

    def default_teacher(self) -> dict[str, Any]:
        """A larger one."""
        return {"use": "unet", "width": 24, "depth": self._depth()}

    def _depth(self) -> int:
        side = min(self.shape[1:])
        return 2 if side <= 32 else 3 if side <= 96 else 4


def palette(n: int) -> Tensor:
    """A colour for each class [n, 3] in [0, 1]: the first dark grey, the others of hues that are far apart."""
    hues = [colorsys.hsv_to_rgb((0.13 + 0.618034 * c) % 1.0, 0.75, 0.95 - 0.3 * (c % 3) / 2) for c in range(n)]
    return torch.tensor([(0.25, 0.25, 0.25), *hues[1:]])


def _write_png(x: Tensor, path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(x.movedim(0, -1).contiguous().numpy())
    if image.width > 1600:
        image = image.resize((1600, round(image.height * 1600 / image.width)))
    image.save(path)
