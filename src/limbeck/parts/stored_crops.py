"""Crops of images with a teacher's labels, written down once and shown again (FKD: Shen and Xing 2022, arXiv 2112.01528).

Of each of N images there are M crops. A crop is a row: where it lies (relative to the image), whether it is mirrored, and
the teacher's probabilities in a compressed form. The rows are made by `limbeck cache` (a folder that many runs read) or by a
stage of a run; both are read by image and number of the crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import torch
from annotated_types import Interval
from torch import Tensor

from limbeck.data.items import digest
from limbeck.errors import CheckpointCorrupt
from limbeck.functional.label_forms import DISCARDED, Form, compress_labels, recover_labels
from limbeck.functional.views import crop_each
from limbeck.grammar.component import Settings
from limbeck.grammar.method import Batch, Context, Data, Query
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, Positive, settings
from limbeck.objectives.queries import Flip, ResizedCrop

Share = Annotated[float, Interval(gt=0, le=1)]

PREFIX = "crop."
"""What the columns of stored crops are called by in a batch of pictures: ``crop.box`` [N, K, 4], ``crop.index`` ..."""


@settings
class CropPlan(Settings):
    """Which crops of each image are labelled, and how the labels are kept.

    Args:
        crops: how many of each image.
        lowest: the smallest share of the image's area.
        highest: the largest.
        flip: probability that a crop is mirrored.
        form: ``hard`` (the likeliest class alone), ``smoothing`` (with its probability), ``marginal_smoothing`` (the ``top``
            likeliest classes, the rest spread evenly over the others) or ``marginal_renorm`` (the rest left out).
        top: classes that the marginal forms keep; all where there are fewer.
        precision: of the probabilities; class ids are whole numbers in any case.
        temperature: at which the teacher's probabilities are taken.
    """

    crops: Count = 500
    lowest: Share = 0.08
    highest: Share = 1.0
    flip: Fraction = 0.5
    form: Form = "marginal_smoothing"
    top: Count = 5
    precision: Literal["float16", "float32"] = "float16"
    temperature: Positive = 1.0

    def validate(self) -> None:
        """A range."""
        if self.lowest > self.highest:
            raise ValueError(f"lowest ({self.lowest}) must not exceed highest ({self.highest})")

    def plain(self) -> dict[str, Any]:
        """All of it by name, as a recording keeps it."""
        return {name: getattr(self, name) for name in CropPlan.__annotations__}

    def changed(self, **values: Any) -> CropPlan:
        """The same with other values."""
        return CropPlan(**self.plain() | values)

    def queries(self) -> dict[str, Query]:
        """What makes a crop of a picture: drawn by the keys of image and crop, or as ``box`` and ``flip`` say.

        Any method's recipe may name these two (``resized-crop`` and ``flip``, with as many ``views``): with the same seed it
        sees the same crops.
        """
        crop = ResizedCrop(lowest=self.lowest, highest=self.highest, views=self.crops)
        return {"crop": crop, "flip": Flip(probability=self.flip, views=self.crops)}

    def show(self, batch: Batch, ctx: Any) -> Batch:
        """The crops ``view`` [N] of the images ``item`` [N]: ``x`` is the crop, ``box`` and ``flip`` say which."""
        for query in self.queries().values():
            batch = query(batch, ctx)
        return batch

    # ------------------------------------------------------------------------------------------------ rows
    def kept(self, classes: int) -> int:
        """Classes of a label that are kept."""
        return min(self.top, classes) if self.form.startswith("marginal") else 1

    def bytes(self, classes: int) -> int:
        """What an image's crops take: of each a checksum, a box, a mirror, and the label."""
        ids, values = 2 if classes <= 2**15 else 4, 2 if self.precision == "float16" else 4
        return self.crops * (8 + 16 + 1 + self.kept(classes) * (ids + values * (self.form != "hard")))

    def rows(self, batch: Batch, size: tuple[int, int], logits: Tensor) -> dict[str, Tensor]:
        """What is kept of crops that a teacher was asked about.

        Args:
            batch: as `show` gives it.
            size: height and width of the images.
            logits: the teacher's [N, C].

        Returns:
            ``box`` float32 [N, 4], shares of height and width; ``flip`` bool [N]; ``index`` int16 or int32 [N, k]; and, but
            for hard labels, ``value`` [N, k].
        """
        p = (logits.float() / self.temperature).softmax(-1)
        k = self.kept(p.shape[1])
        stored = compress_labels(p, self.form, k)
        scale = torch.tensor([*size, *size], dtype=torch.float32, device=batch["box"].device)
        found = {"box": batch["box"].float() / scale, "flip": batch["flip"]}
        whole = torch.int16 if p.shape[1] <= 2**15 else torch.int32
        if self.form == "hard":
            return found | {"index": stored[:, None].to(whole)}
        return found | {
            "index": stored[:, 0].reshape(-1, k).to(whole),
            "value": stored[:, 1].reshape(-1, k).to(getattr(torch, self.precision)),
        }

    def stored(self, rows: Mapping[str, Tensor]) -> Tensor:
        """The labels of rows, as `limbeck.functional.label_forms` takes them."""
        if self.form == "hard":
            return rows["index"][:, 0].long()
        both = torch.stack([rows["index"].float(), rows["value"].float()], 1)  # [N, 2, k]
        return both[..., 0] if self.form == "smoothing" else both

    def labels(self, rows: Mapping[str, Tensor], classes: int) -> Tensor:
        """The probabilities [N, C] that the labels of rows stand for."""
        return recover_labels(self.stored(rows), classes, self.form)

    def check(self, rows: Mapping[str, Tensor], classes: int, where: str) -> None:
        """Refuse rows that hold no labels of this form.

        Raises:
            CheckpointCorrupt: a column is missing, a class does not exist, or probabilities are none.
        """
        names = ["box", "flip", "index"] + ["value"] * (self.form != "hard")
        missing = [n for n in names if n not in rows]
        if missing:
            raise CheckpointCorrupt(
                where, f"its crops lack {', '.join(missing)}, which labels of form {self.form} have"
            )
        index = rows["index"]
        k = self.kept(classes)
        if index.ndim != 2 or index.shape[1] != k:
            raise CheckpointCorrupt(
                where,
                "its labels are of another form",
                given=f"{list(index.shape[1:])} classes a crop",
                expected=f"{k} of {classes} classes, as form {self.form} with top {self.top} keeps",
            )
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= classes):
            raise CheckpointCorrupt(
                where, "its labels name classes that do not exist", given=int(index.max()), expected=f"below {classes}"
            )
        if self.form != "hard":
            p = rows["value"].float()
            total = p.sum(1)
            bad = ~((p >= 0).all(1) & (total <= 1 + 5e-3))  # so that NaN is bad too; half precision rounds up
            if bool(bad.any()):
                raise CheckpointCorrupt(
                    where,
                    f"{int(bad.sum())} of its labels hold no probabilities",
                    given=[round(v, 4) for v in p[bad][0].tolist()],
                    expected="numbers from 0 to 1 whose sum is at most 1",
                )


def placed(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Relative boxes [..., 4] in whole pixels of an image of some size; at least one pixel, and within it.

    Example:
        >>> placed(torch.tensor([0.25, 0.5, 0.5, 0.5]), (8, 8)).tolist()
        [2, 4, 4, 4]
    """
    whole = torch.tensor([*size, *size], device=box.device)
    pixels = (box * whole).round().long()
    length = torch.minimum(pixels[..., 2:].clamp(min=1), whole[:2])
    return torch.cat([torch.minimum(pixels[..., :2].clamp(min=0), whole[:2] - length), length], -1)


def corners(box: Tensor) -> Tensor:
    """Boxes (top, left, height, width) [..., 4] as corners (first row, first column, last row, last column)."""
    return torch.cat([box[..., :2], box[..., :2] + box[..., 2:]], -1)


def cropped(batch: Batch) -> Batch:
    """Images ``x`` [N, ...] give way to the crops that relative ``box`` [N, 4] and ``flip`` [N] say.

    Made as `ResizedCrop` and `Flip` made them when they were labelled; ``box`` is then in pixels.
    """
    x = batch["x"]
    size = (x.shape[-2], x.shape[-1])
    box = placed(batch["box"], size)
    x = crop_each(x, box, size)
    return {**batch, "box": box, "x": torch.where(batch["flip"][:, None, None, None], x.flip(-1), x)}


# -------------------------------------------------------------------------------------------------------------- reading


class Store(Protocol):
    """Stored crops: a recording (`limbeck.cache.Cache`), or what a stage left (`StageStore`)."""

    def rows(self, items: Tensor, views: Tensor) -> dict[str, Tensor]:
        """The rows [n, ...] of crops ``views`` [n] of images ``items`` [n], on the CPU."""


class StageStore:
    """The crops that a stage recorded: row ``item * M + crop``."""

    def __init__(self, recorded: Data, crops: int) -> None:
        self.recorded, self.crops = recorded, crops

    def rows(self, items: Tensor, views: Tensor) -> dict[str, Tensor]:
        """See `Store`."""
        return self.recorded.fetch(items * self.crops + views)


def picked(batch: Batch, places: Tensor, count: int) -> Batch | None:
    """A batch of ``count`` items with its rows at some places [n], repeated as these are; ``None`` where it holds other things."""
    found: Batch = {}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            found[name] = value.index_select(0, places.to(value.device))
        elif type(value) in (list, tuple) and len(value) == count:
            found[name] = type(value)(value[i] for i in places.tolist())
        else:
            return None
    return found


class Repeated:
    """Data of which every item is asked about M times: item ``i * M + m`` is image i. An image is read once a batch."""

    def __init__(self, data: Data, crops: int) -> None:
        self.data, self.crops = data, crops

    def __len__(self) -> int:
        return len(self.data) * self.crops

    def fetch(self, items: Tensor) -> Batch:
        """The images of the items."""
        wanted = items // self.crops
        ids, places = wanted.unique(return_inverse=True)
        found = picked(self.data.fetch(ids), places, len(ids)) if len(ids) < len(items) else None
        return found if found is not None else self.data.fetch(wanted)

    @property
    def fingerprint(self) -> str:
        """Of the images, and how often."""
        return digest(self.data.fingerprint, "crops", self.crops)


class Shown:
    """Images with some of their stored crops, other ones at each pass; rows are read beside the images.

    Args:
        data: the images.
        store: their crops.
        treatments: of every image's M crops, int8 [M] in the column ``treatment``; those that are discarded are not shown.
        crops: M.
        shown: K, of each image; drawn without replacement.
        seed: of the draws.
    """

    def __init__(self, data: Data, store: Store, treatments: Data, crops: int, shown: int, seed: int) -> None:
        self.data, self.store, self.treatments = data, store, treatments
        self.crops, self.shown, self.seed = crops, shown, seed

    def __len__(self) -> int:
        return len(self.data)

    def choose(self, items: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Which crops of the items are shown at their passes, int64 [n, K], and how each is treated, int8 [n, K]."""
        treatment = self.treatments.fetch(items)["treatment"]  # [n, M]
        keys = items * 1_000_003 + views
        u = Draws(self.seed, ("stored-crops",)).rand("chosen", keys, (self.crops,))
        chosen = u.masked_fill(treatment == DISCARDED, -1.0).topk(self.shown, 1).indices
        return chosen, treatment.gather(1, chosen)

    def fetch_at(self, items: Tensor, views: Tensor) -> Batch:
        """The images at some pass: beside ``x`` and ``y`` columns ``crop.*`` [n, K, ...]."""
        chosen, treatment = self.choose(items, views)
        rows = self.store.rows(items.repeat_interleave(self.shown), chosen.flatten())
        columns = {n: v.unflatten(0, (len(items), self.shown)) for n, v in rows.items() if n != "check"}
        columns |= {"number": chosen, "treatment": treatment}
        return {**self.data.fetch(items), **{PREFIX + n: v for n, v in columns.items()}}

    def fetch(self, items: Tensor) -> Batch:
        """The images at the first pass."""
        return self.fetch_at(items, torch.zeros_like(items))

    @property
    def fingerprint(self) -> str:
        """Of the images, and which of their crops are shown."""
        return digest(self.data.fingerprint, self.treatments.fingerprint, self.crops, self.shown, self.seed)


@settings
class Replay(Query):
    """Each image of a batch [N] gives way to its K stored crops: [K N], the first crop of every image first.

    ``item`` and ``y`` are repeated, ``view`` is the number of the crop, ``box``, ``flip``, ``index``, ``value`` and
    ``treatment`` are its columns.
    """

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The crops."""
        n, k = batch[PREFIX + "box"].shape[:2]
        places = torch.arange(n, device=batch["x"].device).repeat(k)
        columns = {
            name.removeprefix(PREFIX): v.transpose(0, 1).flatten(0, 1)
            for name, v in batch.items()
            if name.startswith(PREFIX)
        }
        whole = picked({name: v for name, v in batch.items() if not name.startswith(PREFIX)}, places, n) or {}
        columns["view"] = columns.pop("number")
        return cropped({**whole, **columns})


__all__ = [
    "PREFIX",
    "CropPlan",
    "Repeated",
    "Replay",
    "Shown",
    "StageStore",
    "Store",
    "corners",
    "cropped",
    "picked",
    "placed",
]
