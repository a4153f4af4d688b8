"""Queries: what is asked. Each draw is keyed by item and view, so any query can be replayed and resumed exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.augment import dsa, keyed_draw, strategy_names
from limbeck.functional.views import TRIES, crop_boxes, crop_each
from limbeck.grammar.method import Batch, Context, Objective, Query
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, Positive, settings
from limbeck.grammar.task import Task
from limbeck.recipe.imports import imported

NAMES = {
    "query": {
        "flip": "Flip",
        "crop": "Crop",
        "resized-crop": "ResizedCrop",
        "mixup": "Mixup",
        "cutmix": "Cutmix",
        "noise": "Noise",
        "dsa": "Augment",
        "import": "ImportedQuery",
    }
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


def accept_all(queries: Mapping[str, Query | Objective], task: Task, place: str = "queries") -> None:
    """Every query (or objective) of a recipe asked whether it is for this task; ``place`` is where the recipe names them.

    Raises:
        ConfigError: one is not; the error names it as the recipe does.
    """
    for name, query in queries.items():
        try:
            query.accept(task)
        except LimbeckError as error:  # a query does not know what the recipe calls it
            inner = "" if error.argument.startswith(f"{place}.") else f".{error.argument}"
            error.argument = f"{place}.{name}{inner}"
            raise


def _key(batch: Batch) -> Tensor:
    """One number per item and view."""
    return batch["item"] * 1_000_003 + batch["view"]


def key_of_view(batch: Batch, views: int = 0) -> Tensor:
    """One number per item and view; views repeat after ``views``, where that is not 0."""
    return _key(_viewed(batch, views))


def images_of(batch: Batch, name: str) -> Tensor:
    """The images [N, C, H, W] of a batch; ``name`` is the query's.

    Raises:
        ConfigError: it holds none.
    """
    x = batch.get("x")
    if not isinstance(x, Tensor) or x.ndim != 4:
        raise ConfigError(
            f"queries.{name}",
            given=None if x is None else list(x.shape),
            expected="batches of images [N, C, H, W]",
            remedy="leave it out: it is for images",
        )
    return x


def soft(y: Tensor, classes: int) -> Tensor:
    """Labels as probabilities [N, C]; soft labels pass."""
    return y if y.is_floating_point() else nn.functional.one_hot(y, classes).float()


def _check_labels(task: Task, name: str, classes: int | None) -> None:
    """Refuse items without a label that can be mixed, and a number of classes that is not the task's.

    Raises:
        ConfigError: which of the two.
    """
    example = task.example(1)
    images_of(example, name)
    # where the label is no answer but a condition (a denoiser's), the network takes class ids alone
    answered = getattr(task, "kind_of_target", None) is not None and not over_pixels(example)
    if task.labels is None or not answered or not isinstance(example.get("y"), Tensor):
        raise ConfigError(
            f"queries.{name}",
            f"{type(task).__name__} is not answered with labels that could be mixed",
            expected="task=classification",
            remedy="leave it out",
        )
    if classes is not None and classes != len(task.labels):
        raise ConfigError(
            "classes",
            given=classes,
            expected=f"{len(task.labels)}, the classes of this task",
            remedy="leave it out: it is then taken from the task",
        )


def _mixable(batch: Batch, ctx: Context, name: str, classes: int | None) -> Tensor:
    """A batch's labels as probabilities [N, C], of as many classes as are given, or as the task has."""
    if classes is None and not batch["y"].is_floating_point():
        labels = getattr(getattr(ctx, "task", None), "labels", None)
        if labels is None:  # a loop of one's own
            raise ConfigError(
                f"queries.{name}.classes", "there is no task that tells it", remedy="give the number of classes"
            )
        classes = len(labels)
    return soft(batch["y"], classes or 0)


def over_pixels(batch: Batch) -> list[str]:
    """The names of what lies over the pixels of a batch's images, and moves with them: a mask, and where it counts."""
    x, y = batch["x"], batch.get("y")
    if not isinstance(y, Tensor) or y.ndim != 3 or y.shape[1:] != x.shape[2:]:
        return []
    return [name for name in ("y", "valid", "where") if isinstance(batch.get(name), Tensor) and batch[name].ndim == 3]


def refuse_places(task: Task, name: str) -> None:
    """Refuse images whose boxes or points would stay where they are.

    Raises:
        ConfigError: which.
    """
    example = task.example(1)
    still = [k for k in example if k in ("boxes", "points") or k.startswith("pose:")]
    if still:
        raise ConfigError(
            f"queries.{name}",
            f"it moves images and leaves their {still[0].split(':')[0]}",
            remedy="use flip-poses, which mirrors both" if still[0] != "boxes" else "leave it out",
        )


@settings
class Flip(Query):
    """Mirror left to right, with probability one half; a mask with its image.

    ``flip`` bool [N] in the batch says which were mirrored. Where it is there already, it is done as it says
    (`limbeck.parts.stored_crops`).

    Args:
        probability: of mirroring.
        views: draws repeat after this many passes (so a cache can hold them); 0: never.
    """

    probability: Fraction = 0.5
    views: Natural = 0

    def accept(self, task: Task) -> None:
        """Images, whose boxes and points it does not move."""
        images_of(task.example(1), "flip")
        refuse_places(task, "flip")

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Mirrored images where the draw says so."""
        x = images_of(batch, "flip")
        flip = batch.get("flip")
        if flip is None:
            u = ctx.draws.anywhere().rand("flip", _key(_viewed(batch, self.views)))
            flip = (u < self.probability).to(x.device)
        turned = flip[:, None, None, None]
        maps = {n: torch.where(turned[:, 0], batch[n].flip(-1), batch[n]) for n in over_pixels(batch)}
        return {**batch, **maps, "x": torch.where(turned, x.flip(-1), x), "flip": flip}


@settings
class Crop(Query):
    """Shift by up to ``pad`` pixels, zeros outside: a random crop of the padded image.

    Args:
        pad: largest shift in pixels.
        views: draws repeat after this many passes; 0: never.
    """

    pad: Count = 4
    views: Natural = 0

    def accept(self, task: Task) -> None:
        """Images alone."""
        example = task.example(1)
        images_of(example, "crop")
        refuse_places(task, "crop")
        if over_pixels(example):
            raise ConfigError(
                "queries.crop", "it moves images and leaves their masks", remedy="use map-crop, which moves both"
            )

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Shifted images."""
        x = images_of(batch, "crop")
        n, _, h, w = x.shape
        shift = (
            ctx.draws.anywhere().randint("crop", _key(_viewed(batch, self.views)), 2 * self.pad + 1, (2,)).to(x.device)
        )
        padded = nn.functional.pad(x, (self.pad,) * 4)
        rows = shift[:, 0, None] + torch.arange(h, device=x.device)  # [N, H]
        cols = shift[:, 1, None] + torch.arange(w, device=x.device)  # [N, W]
        each = torch.arange(n, device=x.device)[:, None, None]
        return {**batch, "x": padded.permute(0, 2, 3, 1)[each, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)}


@settings
class ResizedCrop(Query):
    """A part of the image, of random size and shape, brought to the image's own size; which part is in the batch.

    ``box`` [N, 4] int64 is the part (top, left, height, width) in pixels. A stage that records boxes beside a teacher's answers
    (`Stage.record`) can show the same parts again: boxes that are already there are taken as they are.

    Args:
        lowest: the smallest share of the image's area.
        highest: the largest.
        views: draws repeat after this many passes (so a cache can hold them); 0: never.
    """

    lowest: Fraction = 0.08
    highest: Fraction = 1.0
    views: Natural = 0

    def validate(self) -> None:
        """A range."""
        if not 0 < self.lowest <= self.highest:
            raise ValueError("lowest must be above 0 and at most highest")

    def accept(self, task: Task) -> None:
        """Images alone."""
        example = task.example(1)
        images_of(example, "resized-crop")
        if over_pixels(example):
            raise ConfigError(
                "queries.resized-crop",
                "it moves images and leaves their masks",
                remedy="use map-crop, which moves both",
            )

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Parts of the images, and ``box``."""
        x = images_of(batch, "resized-crop")
        size = (x.shape[-2], x.shape[-1])
        boxes = batch.get("box")
        if boxes is None:
            u = ctx.draws.anywhere().rand("resized-crop", _key(_viewed(batch, self.views)), (TRIES, 4))
            boxes = crop_boxes(u, size, lowest=self.lowest, highest=self.highest).to(x.device)
        return {**batch, "x": crop_each(x, boxes, size), "box": boxes}


def _viewed(batch: Batch, views: int) -> Batch:
    return {**batch, "view": batch["view"] % views} if views else batch


@settings
class Mixup(Query):
    """Convex combinations of pairs of a batch, images and labels (Zhang et al. 2018).

    Args:
        alpha: of the Beta distribution of the weight.
        classes: number of classes, for the soft labels; ``null`` takes the task's.
    """

    changes_labels = True

    coupled = "mixes each item with another of the batch"

    alpha: Positive = 0.2
    classes: Annotated[int, Ge(2)] | None = None

    def accept(self, task: Task) -> None:
        """Images with labels, of as many classes as the task has."""
        _check_labels(task, "mixup", self.classes)

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Mixed images and soft labels."""
        x = images_of(batch, "mixup")
        y = _mixable(batch, ctx, "mixup", self.classes)
        rng = ctx.draws.numpy("mixup")
        lam = float(rng.beta(self.alpha, self.alpha))
        order = torch.as_tensor(rng.permutation(len(x)), device=x.device)
        return {**batch, "x": lam * x + (1 - lam) * x[order], "y": lam * y + (1 - lam) * y[order]}


@settings
class Cutmix(Query):
    """A rectangle of another image of the batch, labels by area (Yun et al. 2019).

    Args:
        alpha: of the Beta distribution of the kept area.
        classes: number of classes, for the soft labels; ``null`` takes the task's.
    """

    changes_labels = True

    coupled = "cuts a piece of another item of the batch into each"

    alpha: Positive = 1.0
    classes: Annotated[int, Ge(2)] | None = None

    def accept(self, task: Task) -> None:
        """Images with labels, of as many classes as the task has."""
        _check_labels(task, "cutmix", self.classes)

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Patched images and soft labels."""
        x = images_of(batch, "cutmix")
        y = _mixable(batch, ctx, "cutmix", self.classes)
        h, w = x.shape[-2:]
        rng = ctx.draws.numpy("cutmix")
        side = float((1 - rng.beta(self.alpha, self.alpha)) ** 0.5)
        cy, cx = int(rng.integers(h)), int(rng.integers(w))
        ry, rx = int(h * side) // 2, int(w * side) // 2
        y0, y1, x0, x1 = max(cy - ry, 0), min(cy + ry, h), max(cx - rx, 0), min(cx + rx, w)
        order = torch.as_tensor(rng.permutation(len(x)), device=x.device)
        mixed = x.clone()
        mixed[:, :, y0:y1, x0:x1] = x[order][:, :, y0:y1, x0:x1]
        lam = 1 - (y1 - y0) * (x1 - x0) / (h * w)
        return {**batch, "x": mixed, "y": lam * y + (1 - lam) * y[order]}


@settings
class Noise(Query):
    """Gaussian noise added to the input.

    Args:
        std: its standard deviation, in units of the pixel range [0, 1].
    """

    std: NonNegative = 0.1

    def accept(self, task: Task) -> None:
        """Inputs that are numbers."""
        x = task.example(1).get("x")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ConfigError(
                "queries.noise",
                f"the inputs of {type(task).__name__} are no numbers that noise could be added to",
                expected="images or rows of numbers",
                remedy="leave it out",
            )

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Noisy inputs."""
        x = batch["x"]
        return {**batch, "x": x + self.std * ctx.draws.randn("noise", _key(batch), tuple(x.shape[1:])).to(x.device)}


@settings
class Augment(Query):
    """Differentiable augmentation (Zhao and Bilen 2021), each item its own draw.

    Args:
        strategy: names joined by ``_``.
        align_corners: of rotations and scalings.
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"
    align_corners: bool = True

    def validate(self) -> None:
        """Known names."""
        strategy_names(self.strategy)

    def accept(self, task: Task) -> None:
        """Images alone."""
        images_of(task.example(1), "dsa")

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Augmented items."""
        draw = keyed_draw(ctx.draws, batch["item"])
        return {**batch, "x": dsa(batch["x"], self.strategy, draw, align_corners=self.align_corners)}


@settings
class ImportedQuery(Query):
    """The user's own query: a function (batch, context) -> batch. Naming it runs its module's code.

    Args:
        function: ``package.module:function``.
    """

    code: ClassVar[str] = "function"

    function: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.called = imported(self.function, "function")

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The user's batch."""
        made = self.called(batch, ctx)
        if not isinstance(made, dict):
            raise ConfigError("queries.import", given=type(made).__name__, expected="a batch (a dictionary of tensors)")
        return made
