"""What tasks share whose items come from a source: read and divided, fed to a network, its outputs held against theirs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from limbeck.data.asked import AskedPictures, asked_rows
from limbeck.data.classes import match_classes
from limbeck.data.items import Items, Kind, Nothing, Part, Splits, choose, renumbered
from limbeck.data.sources import Digits, PictureSource, Source
from limbeck.data.splits import Sizes, sizes_of
from limbeck.data.unlabelled import Unlabelled, overlap, read_unlabelled
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Natural, settings
from limbeck.grammar.signal import Signal, device_of
from limbeck.grammar.task import Task
from limbeck.tasks.first_pass import first_pass

log = logging.getLogger("limbeck.data")

Fit = Literal["cover", "stretch", "contain"]
"""How an image is brought to a size."""

Part01 = Annotated[float, Gt(0), Lt(1)]
"""A share above 0 and below 1."""


@settings
class SourceTask(Task):
    """Base of tasks whose items come from a source, which reads and divides them.

    The teacher learns from all training items; the student from ``student_items`` of them, where the task has that setting.

    Args:
        data: the source of the items.
        valid_fraction: share of the training items used for validation, if the source has no validation split. Test items
            are never used for this.
        test_fraction: share of the items used for testing, if the source has no test split.
        size: resize images to this side length; ``null`` keeps their size.
        eval_batch: batch size for evaluation.
        deal: how items are split into training, validation and test items. 0 uses the splits of the data, if it has any;
            any other number splits all items anew, with the same sizes.
        unlabelled: a second source of items without labels (such as images from the web), for methods that can use them.
            They are converted to the size and channels of the task; labels in this source are not used.

    Attributes:
        takes_unlabelled: whether such a source makes sense of the task's items.
        unlabelled_items: its items, once the data are read; ``None`` where no such source is named.
        notes: sentences about how the data was read.
        class_sizes: how many items of each class the splits have, by split.
        column_names: of rows: what each number is, where the source names it.
    """

    data: Source = Digits()
    valid_fraction: Part01 = 0.1
    test_fraction: Part01 = 0.2
    size: Count | None = None
    eval_batch: Count = 256
    deal: Natural = 0
    unlabelled: Source | None = None

    takes_unlabelled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unlabelled is not None and not self.takes_unlabelled:
            raise ConfigError(
                "task.unlabelled",
                f"{type(self).__name__.lower()} has no use for a second source",
                expected="a task of images, or of rows that are all numbers",
                remedy="leave it out",
            )
        self.unlabelled_items: Unlabelled | None = None
        self.notes: list[str] = []
        self.class_sizes: Sizes = {}
        self.column_names: list[str] = []
        self._pool: Items | None = None
        self._seed: int | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self.recalled: Mapping[str, Any] = {}

    # ---------------------------------------------------------------------------------------- answers for other items
    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """Class names, targets and shape of the items that a network was made for.

        Raises:
            DataError: ``about`` does not say them.
        """
        try:
            shape = tuple(int(n) for n in about["input"])
            names = about.get("classes") or about.get("labels")
            self.recalled = {**about, "classes": [str(n) for n in names] if names else []}
            self._recall(self.recalled)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("student.json", f"does not say what its network was made for: {error!r}") from None
        if bare:
            self.labels = list(self.recalled["classes"]) or None
            none = Nothing(shape, torch.zeros(0, dtype=torch.int64))
            self._pool = self.train = self.teacher_train = self.valid = self.test = none
            self._seed = 0

    def _recall(self, about: Mapping[str, Any]) -> None:
        """What else is to be known of it."""

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Images, or rows of numbers."""
        shape = tuple(self.recalled.get("input") or self.shape)
        if len(shape) == 3:
            return AskedPictures(given, shape, preprocessing)
        return asked_rows(given, shape[0], list(preprocessing.get("columns") or ()))

    def read(self) -> Splits:
        """The items in three splits. Override it to ask the source for others than items with one class each."""
        return self.data.divided("label", self.size, self.valid_fraction, self.test_fraction, deal=self.deal)

    def load(self, seed: int | None = None) -> None:
        """Read and check the data, divide what the source does not divide, choose the student's items by ``seed``.

        Raises:
            DataError: nothing to learn from, or something that cannot be read, before any training.
        """
        if self._pool is None:
            self._read()
        seed = (self._seed or 0) if seed is None else seed
        if self._seed == seed:
            return
        assert self._pool is not None
        self.teacher_train: Items = self._pool
        self.train: Items = self._pool
        few: int | None = getattr(self, "student_items", None)
        if few is not None:
            if few > len(self._pool):
                raise DataError(
                    "task.student_items",
                    given=few,
                    expected=f"at most the {len(self._pool)} training items",
                    remedy="choose fewer, or all with task.student_items=null",
                )
            self.train = Part(self._pool, choose(self._pool.y, few, "student", seed))
            said = f"the student learns from {len(self.train)} of the {len(self._pool)} training items"
            if said not in self.notes:
                self.notes.append(said)
        self._seed = seed

    def _read(self) -> None:
        splits = self.read()
        if self.recalled.get("classes"):
            splits = renumbered(splits, self.recalled["classes"])
        self.labels = list(splits.labels)
        self.notes, self.class_sizes = list(splits.notes), sizes_of(splits)
        self.check_splits(splits)
        assert splits.valid is not None and splits.test is not None
        self._pool, self.valid, self.test = splits.train, splits.valid, splits.test
        self.column_names = list(splits.columns)
        if self.unlabelled is not None:
            self._read_unlabelled(self.unlabelled, splits)
        for note in self.notes:
            log.info(note)

    def _read_unlabelled(self, source: Source, splits: Splits) -> None:
        """The second source, and what is to be said of it."""
        self.unlabelled_items = pool = read_unlabelled(source, self.shape, self.labels or [])
        self.notes += pool.notes
        for name, items in (("training", splits.train), ("test", splits.test)):
            same = overlap(pool, items) if items is not None else 0
            if same:
                self.notes.append(f"unlabelled: {same} of {len(pool)} are {name} items of the task, to the last pixel")

    def check_splits(self, splits: Splits) -> None:
        """Refuse items that the task is not for, as soon as they are read.

        Raises:
            DataError: what they are, and what is expected.
        """

    def loaded(self) -> Items:
        """The training items, read where that is still to be done."""
        if self._pool is None:
            self.load()
        assert self._pool is not None
        return self._pool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, height, width) or (features,)."""
        return self.loaded().shape

    @property
    def outputs(self) -> int:
        """How many values a model answers with: one a class, or a number."""
        self.loaded()
        return len(self.labels or [])

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel (or feature) over up to 2,048 of the teacher's items."""
        if self._statistics is not None:
            return self._statistics
        pool = self.loaded()
        ids = choose(pool.y, min(2048, len(pool)), "statistics")
        width = pool.shape[0]
        total, square, shift = (torch.zeros(width, dtype=torch.float64) for _ in range(3))
        count = 0
        for part in ids.split(256):
            x = pool.fetch(part)["x"].double()
            x = x.transpose(0, 1).reshape(x.shape[1], -1)
            if count == 0:
                shift = x.mean(1)  # sums of squares of what is left do not cancel
            x = x - shift[:, None]
            total, square, count = total + x.sum(1), square + x.square().sum(1), count + x.shape[1]
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        mean = mean + shift
        std = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))
        self._statistics = tuple(mean.float().tolist()), tuple(std.float().tolist())
        return self._statistics

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """Images are brought to the size of the training images as the source brings them; rows are taken as they are."""
        shape = self.shape
        if len(shape) == 3:
            return picture_steps(contract, shape, data=self.data)
        return {"kind": "row", "columns": self.column_names, **contract.as_config(), "input": list(shape)}


def picture_steps(
    contract: Contract, shape: tuple[int, ...], how: Fit = "cover", data: Source | None = None
) -> dict[str, Any]:
    """How an image file becomes a network's input, as plain values.

    In this order: it is decoded, turned upright, what is transparent laid over white, converted to ``mode``; brought to
    ``resize``; cut to ``crop``; its values brought to ``range``; brought to the contract's ``channels`` and ``size``;
    normalised by ``mean`` and ``std``. What the network takes in the end is ``input``.

    Args:
        contract: of the network.
        shape: (channels, height, width) of the task's images.
        how: ``cover``: resized until it covers the size, and the middle cut out; ``stretch``: resized to it; ``contain``:
            resized until it fits, the rest at right and below filled with black.
        data: where they come from: of files, ``scale`` is what values of more than 8 bits are divided by.
    """
    channels, high, wide = shape
    end = contract.size or (high, wide)
    into = contract.channels or channels
    return {
        "kind": "image",
        "mode": "L" if 1 in (channels, into) else "RGB",
        "orientation": "exif",
        "transparent": "white",
        "scale": data.scale if isinstance(data, PictureSource) else None,
        "resize": [high, wide],
        "resize_mode": how,
        "interpolation": "bilinear",
        "antialias": True,
        "crop": [high, wide] if how == "cover" else None,
        "crop_mode": "center",
        **contract.as_config(),
        "input": [into, *end],
    }


@settings
class OutputTask(SourceTask):
    """Base of tasks whose network answers an item with one tensor, the classes last: a row of values, or a map of them.

    Attributes:
        kind_of_target: what the items are answered with: ``label``, ``labels`` or ``number``; known once the data are read.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kind_of_target: Kind = "label"

    def _recall(self, about: Mapping[str, Any]) -> None:
        self.kind_of_target = about.get("target") or "label"

    def check_splits(self, splits: Splits) -> None:
        """Take what the items are answered with."""
        self.kind_of_target = splits.kind

    @property
    def needs(self) -> Needs:
        """One row of values an item, named by the classes."""
        return Needs(self.shape, self.outputs, "classes", tuple(self.labels or ()), self.kind_of_target)

    def answer_shape(self, z: Tensor, items: int) -> str:
        """What the outputs for so many items should be, in words, where they are not; empty where they are."""
        fits = z.ndim == 2 and len(z) == items and z.shape[1] == self.outputs
        return "" if fits else f"[{items}, {self.outputs}], a value for each class"

    def signal(self, built: Built, batch: Batch) -> Signal:
        """What a network shows for a batch, through its contract, in the task's class order."""
        if hasattr(built.module, "answer"):
            return built.module.answer(batch, ())
        out = self.feed(built.module, built.contract.feed(batch))
        return Signal(built.contract.outputs(Signal(out).logits))

    def match(self, student: Built, teacher: Built) -> None:
        """Both must answer with the task's classes, matched by name where their own are known.

        Raises:
            TeacherMismatch: classes are missing, or there are more or fewer of them than the task has.
        """
        for role, built in (("student", student), ("teacher", teacher)):
            if hasattr(built.module, "answer"):
                continue  # a recorded or remote teacher compares its own list
            self.by_name(built)
            if not getattr(built.model, "rehearsed", False):
                self.rehearse(built, role)

    def by_name(self, built: Built) -> None:
        """A network's outputs matched to the task's classes, where its own names are known."""
        assert self.labels is not None
        if built.labels is not None and built.contract.classes is None:
            built.contract = built.contract.with_(classes=match_classes(built.labels, self.labels))

    def check_teacher(self, teacher: Built, device: torch.device | None = None) -> None:
        """Try what is ready of a teacher, each member of an ensemble by itself, on labelled items."""
        for one in teacher.members or [teacher]:
            if one.model is None or not one.model.trained:
                continue
            if not hasattr(one.module, "answer"):
                self.by_name(one)
                if not getattr(one.model, "rehearsed", False):
                    self.rehearse(one, "teacher")
            if one.model.check == "on":
                self.try_out(one, device)
            elif isinstance(one.module, nn.Module):
                one.notes.append(f"not tried on labelled items: {one.model.setting('check')} is off")

    def try_out(self, teacher: Built, device: torch.device | None = None) -> None:
        """Hold a ready teacher's answers against labels, and refuse one that only guesses."""

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two items through a network, in evaluation mode: what does not fit is said now, not at the first step.

        Raises:
            ConfigError: the network fails on them.
            TeacherMismatch, ShapeError: its outputs have another shape, or their classes do not stand last.
        """
        if self.recalled and not len(self.train):
            return  # a network that is only asked for answers
        held = built.model is None or getattr(built.model, "held", False)  # the caller's own module
        name = type(built.module if held else built.model).__name__
        ids = torch.arange(min(2, len(self.train)))
        device = device_of(built.module)
        batch: Batch = {**self.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
        batch = to_device(batch, device)
        fails, expects = (
            f"{name} fails on the task's items {list(batch['x'].shape)}",
            "a network for inputs of that shape",
        )
        with first_pass(built, role, fails, "set task.size, or choose another network", expects):
            z = self.signal(built, batch).logits
        expected = self.answer_shape(z, len(ids))
        if not expected:
            return
        wrong = TeacherMismatch if role == "teacher" else ShapeError
        raise wrong(
            role,
            f"{name} answers with another shape",
            given=list(z.shape),
            expected=expected,
            remedy="let it answer with one row of values for each item (pool its map)"
            if z.ndim > 2 and self.needs.form == "classes"
            else "give its class names, so that they are matched"
            if role == "teacher"
            else "",
        )

    def describe(self) -> dict[str, Any]:
        """What must travel with a network so that its answers can be read elsewhere."""
        needs = self.needs
        about = {"target": needs.target, "input": list(needs.inputs), "outputs": needs.outputs, "form": needs.form}
        return about | ({"number_mean": list(needs.mean), "number_std": list(needs.std)} if needs.mean else {})


__all__ = ["Fit", "OutputTask", "SourceTask", "picture_steps"]
