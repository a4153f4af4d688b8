"""Pictures, or rows of numbers, answered with one class, several classes, or numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.data.columns import Target
from limbeck.data.items import Items, Kind, Part, choose
from limbeck.data.names import composed
from limbeck.data.sources import Digits, Source
from limbeck.data.splits import EmptyClasses, Sizes, check_shares, sizes_of
from limbeck.engine.batches import to_device
from limbeck.errors import CacheMismatch, ConfigError, DataError, LimbeckError, ShapeError, TeacherMismatch
from limbeck.functional.metrics import calibration_error, calibration_table
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.scores import Scores
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"classification": "Classification"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

log = logging.getLogger("limbeck.data")


class Classification(Task):
    """Pictures, or rows of numbers, answered with one class, several classes, or numbers.

    The teacher learns from all training items; the student from ``student_items`` of them. A teacher that knows more
    than the student's training set is the regime in which distillation helps most.

    Args:
        data: where the items come from.
        target: ``label`` (one class an item), ``labels`` (several, by sigmoid), ``number`` (regression), or ``auto``:
            as the data says.
        student_items: size of the student's training set, each class in proportion, drawn by the seed; all if ``null``.
        valid_fraction: share of the training items set aside for choosing, where the source has no such split; never
            taken from the test items.
        test_fraction: share of the items set aside for judging, where the source has no test split.
        size: side length that pictures are brought to; ``null`` keeps theirs.
        empty_classes: ``error``, or ``keep`` classes that the data names and has no item of.
        eval_batch: items at a time when judging.
        deal: which division into training, validation and test items: 0 is the data's own, where it names splits; every
            other number deals all items anew, in splits of the same sizes.

    Attributes:
        kind_of_target: what the items are answered with: ``label``, ``labels`` or ``number``; known once the data is read.
        notes: sentences about how the data was read.
        class_sizes: how many items of each class the splits have, by split.
    """

    # neither changes what a teacher learns; the student's own items are told apart by their content
    judging: tuple[str, ...] = ("student_items", "eval_batch")

    def __init__(
        self,
        data: Source = Digits(),  # noqa: B008 (a description of where data lies; nothing is read)
        target: Target = "auto",
        student_items: int | None = None,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        size: int | None = None,
        empty_classes: EmptyClasses = "error",
        eval_batch: int = 256,
        deal: int = 0,
    ) -> None:
        if student_items is not None and student_items < 1:
            raise ValueError("student_items must be 1 or more, or null for all")
        check_shares(valid_fraction, test_fraction, size)
        if eval_batch < 1:
            raise ValueError("eval_batch must be 1 or more")
        if deal < 0:
            raise ValueError("deal must be 0 or more")
        self.data, self.asked, self.student_items = data, target, student_items
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.size, self.eval_batch, self.deal = size, eval_batch, deal
        self.empty_classes: EmptyClasses | None = empty_classes
        self.kind_of_target: Kind = "label" if target == "auto" else target
        self.notes: list[str] = []
        self.class_sizes: Sizes = {}
        self._pool: Items | None = None
        self._seed: int | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._look()

    def _look(self) -> None:
        kind = self.kind_of_target
        self.primary = {"label": "accuracy", "labels": "f1", "number": "rmse"}[kind]
        self.higher_is_better = kind != "number"

    # ------------------------------------------------------------------------------------------------ data

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
        if self.student_items is not None:
            if self.student_items > len(self._pool):
                raise DataError(
                    "task.student_items",
                    given=self.student_items,
                    expected=f"at most the {len(self._pool)} training items",
                    remedy="choose fewer, or all with task.student_items=null",
                )
            self.train = Part(self._pool, choose(self._pool.y, self.student_items, "student", seed))
            said = f"the student learns from {len(self.train)} of the {len(self._pool)} training items"
            if said not in self.notes:
                self.notes.append(said)
        self._seed = seed

    def _read(self) -> None:
        splits = self.data.divided(
            self.asked, self.size, self.valid_fraction, self.test_fraction, self.empty_classes, self.deal
        )
        self.kind_of_target, self.labels = splits.kind, list(splits.labels)
        self._look()
        self.notes, self.class_sizes = list(splits.notes), sizes_of(splits)
        if splits.kind == "number":
            self.number_mean = splits.train.y.double().mean(0).float()
            std = splits.train.y.double().std(0, correction=0).float()
            if (std == 0).any():
                names = [self.labels[i] for i in (std == 0).nonzero()[:, 0].tolist()]
                raise DataError(
                    "data", f"the target {', '.join(names)} has one value only", expected="numbers that vary"
                )
            self.number_std = std
        assert splits.valid is not None and splits.test is not None
        self._pool, self.valid, self.test = splits.train, splits.valid, splits.test
        for note in self.notes:
            log.info(note)

    @property
    def outputs(self) -> int:
        """How many values a model answers with."""
        assert self.labels is not None
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, height, width) or (features,)."""
        return self._loaded().shape

    def _loaded(self) -> Items:
        if self._pool is None:
            self.load()
        assert self._pool is not None
        return self._pool

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel (or feature) over up to 2,048 of the teacher's items."""
        if self._statistics is not None:
            return self._statistics
        pool = self._loaded()
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

    def match(self, student: Built, teacher: Built) -> None:
        """Both must answer with the task's classes, matched by name where their own are known.

        Raises:
            TeacherMismatch: classes are missing, or there are more or fewer of them than the task has.
        """
        for role, built in (("student", student), ("teacher", teacher)):
            if hasattr(built.module, "answer"):
                continue  # a recorded or remote teacher compares its own list
            self._by_name(built)
            if not getattr(built.model, "rehearsed", False):
                self.rehearse(built, role)

    def _by_name(self, built: Built) -> None:
        """A network's outputs matched to the task's classes, where its own names are known."""
        assert self.labels is not None
        if built.labels is not None and built.contract.classes is None:
            built.contract = built.contract.with_(classes=match_classes(built.labels, self.labels))

    def check_teacher(self, teacher: Built, device: torch.device | None = None) -> None:
        """Try what is ready of a teacher, each member of an ensemble by itself, on up to 512 labelled items."""
        from limbeck.tasks import teacher_check

        for one in teacher.members or [teacher]:
            if one.model is None or not one.model.trained:
                continue
            if not hasattr(one.module, "answer"):
                self._by_name(one)
                if not getattr(one.model, "rehearsed", False):
                    self.rehearse(one, "teacher")
            if one.model.check == "on":
                teacher_check.check(self, one, device)
            elif isinstance(one.module, nn.Module):
                one.notes.append(f"not tried on labelled items: {one.model.setting('check')} is off")

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two items through a network, in evaluation mode: what does not fit is said now, not at the first step.

        Raises:
            ConfigError: the network fails on them.
            TeacherMismatch, ShapeError: its outputs are no [N, C] with a value for each class.
        """
        held = built.model is None or getattr(built.model, "held", False)  # the caller's own module
        name = type(built.module if held else built.model).__name__
        ids = torch.arange(min(2, len(self.train)))
        device = device_of(built.module)
        batch: Batch = {**self.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
        batch = to_device(batch, device)
        try:
            with torch.no_grad(), evaluating([built.module]):
                z = self.signal(built, batch).logits
        except LimbeckError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ConfigError(
                role,
                f"{name} fails on the task's items {list(batch['x'].shape)}: {type(error).__name__}: {text}",
                expected="a network for inputs of that shape",
                remedy="set task.size, or choose another network",
            ) from None
        if z.ndim == 2 and len(z) == len(ids) and z.shape[1] == self.outputs:
            return
        wrong = TeacherMismatch if role == "teacher" else ShapeError
        raise wrong(
            role,
            f"{name} answers with another shape",
            given=list(z.shape),
            expected=f"[{len(ids)}, {self.outputs}], a value for each class",
            remedy="let it answer with one row of values for each item (pool its map)"
            if z.ndim > 2
            else "give its class names, so that they are matched"
            if role == "teacher"
            else "",
        )

    def describe(self) -> dict[str, Any]:
        """What must travel with a network so that its answers can be read elsewhere."""
        about: dict[str, Any] = {"target": self.kind_of_target, "input": list(self.shape), "outputs": self.outputs}
        if self.kind_of_target == "number":
            about["number_mean"], about["number_std"] = self.number_mean.tolist(), self.number_std.tolist()
        return about

    # ------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Any:
        """Inputs alone go into the model."""
        return module(batch["x"])

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Cross-entropy to class ids or soft labels; binary cross-entropy summed over several labels; squared error of
        standardised numbers, summed over them. One value per item."""
        z, y = signal.logits, batch["y"]
        if self.kind_of_target == "label":
            return Term(F.cross_entropy(z, y))
        if self.kind_of_target == "labels":
            loss = nn.functional.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none")
            return Term(loss.sum(-1))
        return Term(F.squared_error(z, self.standardise(y).to(z.dtype)))

    def standardise(self, y: Tensor) -> Tensor:
        """Numbers [N, K] as models answer them: mean 0 and deviation 1 over the training items."""
        return (y - self.number_mean.to(y.device)) / self.number_std.to(y.device)

    # ------------------------------------------------------------------------------------------------ judging

    def signal(self, built: Built, batch: Batch) -> Signal:
        """What a network shows for a batch, through its contract, in the task's class order."""
        if hasattr(built.module, "answer"):
            return built.module.answer(batch, ())
        out = self.feed(built.module, {**batch, "x": built.contract.inputs(batch["x"])})
        return Signal(built.contract.outputs(Signal(out).logits))

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a network on a split, in one pass, without gradients and in evaluation mode.

        One label: accuracy, balanced_accuracy, top5 (above 10 classes), nll, ece. Several labels: f1 (macro), f1_micro,
        exact (all labels right), accuracy (of single yes/no answers), nll, ece. Numbers: rmse, mae (root mean square
        and mean absolute error in the data's units, averaged over the numbers) and r2. With a teacher: agreement, the
        share of equal decisions; for numbers r2_teacher, the share of the teacher's variance that is explained.

        The modes of all modules are restored afterwards.
        """
        device = device or device_of(built.module)
        outs, theirs, ys = [], [], []
        watched = [b for b in (built, teacher) if b is not None]
        with torch.no_grad(), evaluating([b.module for b in watched]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                outs.append(self.signal(built, batch).logits.float().cpu())
                if teacher is not None:
                    try:
                        theirs.append(self.signal(teacher, batch).logits.float().cpu())
                    except CacheMismatch:  # a recorded teacher knows its training items only
                        teacher = None
                ys.append(batch["y"].cpu())
        z, y = torch.cat(outs), torch.cat(ys)
        t = torch.cat(theirs) if teacher is not None and theirs else None
        return {"label": self._judge_label, "labels": self._judge_labels, "number": self._judge_number}[
            self.kind_of_target
        ](z, y, t)

    def _judge_label(self, z: Tensor, y: Tensor, t: Tensor | None) -> Scores:
        hard = y.argmax(-1) if y.is_floating_point() else y
        guess = z.argmax(-1)
        right = (guess == hard).double()
        seen = torch.bincount(hard, minlength=z.shape[1]).double()
        recall = torch.bincount(hard, weights=right, minlength=z.shape[1]) / seen.clamp_min(1)
        loss = F.cross_entropy(z.double(), y)
        found = {
            "accuracy": right.mean().item(),
            "balanced_accuracy": recall[seen > 0].mean().item(),
            "nll": loss.mean().item(),
            "ece": calibration_error(calibration_table(z, y)),
        }
        if z.shape[1] > 10:
            found["top5"] = (z.topk(5).indices == hard[:, None]).any(1).double().mean().item()
        if t is not None:
            found["agreement"] = (guess == t.argmax(-1)).double().mean().item()
        return Scores(found, {"accuracy": guess == hard, "nll": loss})

    def _judge_labels(self, z: Tensor, y: Tensor, t: Tensor | None) -> Scores:
        yes, truth = z > 0, y > 0.5
        both = (yes & truth).sum(0).double()
        f1 = 2 * both / (yes.sum(0) + truth.sum(0)).clamp_min(1)
        known = (yes.sum(0) + truth.sum(0)) > 0  # a label that is neither there nor claimed says nothing
        loss = nn.functional.binary_cross_entropy_with_logits(z.double(), y.double(), reduction="none")
        pairs = torch.stack([torch.zeros_like(z), z], -1)  # yes or no: a choice of two classes with logits 0 and z
        right = (yes == truth).double()
        found = {
            "f1": f1[known].mean().item() if known.any() else 1.0,
            "f1_micro": (2 * both.sum() / (yes.sum() + truth.sum()).clamp_min(1)).item() if known.any() else 1.0,
            "exact": right.min(1).values.mean().item(),
            "accuracy": right.mean().item(),
            "nll": loss.sum(1).mean().item(),
            "ece": calibration_error(calibration_table(pairs, truth.long())),
        }
        if t is not None:
            found["agreement"] = (yes == (t > 0)).double().mean().item()
        return Scores(found, {"exact": right.min(1).values > 0, "accuracy": right.mean(1), "nll": loss.sum(1)})

    def _judge_number(self, z: Tensor, y: Tensor, t: Tensor | None) -> Scores:
        real = z.double() * self.number_std.double() + self.number_mean.double()
        error, spread = real - y.double(), y.double() - y.double().mean(0)
        found = {
            "rmse": error.square().mean(0).sqrt().mean().item(),
            "mae": error.abs().mean().item(),
            "r2": (1 - error.square().sum(0) / spread.square().sum(0).clamp_min(1e-30)).mean().item(),
        }
        if t is not None:
            rest, whole = (z - t).double().square().sum(0), (t - t.mean(0)).double().square().sum(0)
            found["r2_teacher"] = (1 - rest / whole.clamp_min(1e-30)).mean().item()
        return Scores(found, {"mae": error.abs().mean(1)})

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """``calibration``: the bins of a reliability diagram of every network among the rows (one label an item).

        Drawn from at most 5,000 test items, at even distances: a diagram needs no more.
        """
        if self.kind_of_target != "label":
            return {}
        networks = {name: row.built for name, row in rows.items() if isinstance(row, NetworkArtifact)}
        return {"calibration": {n: calibration_bins(self._table(built, bench.device)) for n, built in networks.items()}}

    def _table(self, built: Built, device: torch.device, most: int = 5000) -> Tensor:
        """Sums per bin of confidence [bins, 3] over test items."""
        tables = []
        ids = torch.arange(0, len(self.test), max(1, -(-len(self.test) // most)))
        with torch.no_grad(), evaluating([built.module]):
            for part in ids.split(self.eval_batch):
                batch = to_device({**self.test.fetch(part), "item": part, "view": torch.zeros_like(part)}, device)
                tables.append(calibration_table(self.signal(built, batch).logits.float(), batch["y"]))
        return torch.stack(tables).sum(0)

    # ------------------------------------------------------------------------------------------------ defaults

    def _small(self) -> bool:
        shape = self.shape
        return len(shape) == 1 or shape[-1] * shape[-2] <= 16 * 16

    def default_student(self) -> dict[str, Any]:
        """A tiny perceptron for rows and thumbnails, a small ConvNet up to 64 pixels, ResNet-18 above."""
        if self._small():
            return {"use": "mlp", "hidden": [8]}
        if self.shape[-1] <= 64:
            return {"use": "convnet", "width": 16}
        return {"use": "timm", "name": "resnet18"}

    def default_teacher(self) -> dict[str, Any]:
        """A larger network of the student's family."""
        if self._small():
            return {"use": "mlp", "hidden": [128]}
        if self.shape[-1] <= 64:
            return {"use": "convnet", "width": 128}
        return {"use": "timm", "name": "resnet50"}


def calibration_bins(table: Tensor) -> dict[str, list[float]]:
    """The bins of a reliability diagram that are not empty: mean confidence, share of right answers, and their count.

    Args:
        table: sums per bin [bins, 3], as ``limbeck.functional.calibration_table`` makes them.

    Example:
        >>> calibration_bins(torch.tensor([[2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
        {'confidence': [0.5], 'accuracy': [0.5], 'count': [2]}
    """
    kept = table[table[:, 0] > 0]
    mean = kept[:, 1:] / kept[:, :1]
    return {"confidence": mean[:, 0].tolist(), "accuracy": mean[:, 1].tolist(), "count": kept[:, 0].long().tolist()}


def one_label(method: Any, task: Task) -> None:
    """Refuse a task whose items have not one class each: for methods that set the target class apart.

    Raises:
        ConfigError: what the items have.
    """
    kind = task.kind_of_target if isinstance(task, Classification) else type(task).__name__.lower()
    if kind != "label":
        raise ConfigError(
            "method",
            f"{type(method).__name__} splits classes into one target and the rest; this task's items have no one class",
            given=kind,
            expected="a classification task with one label per item",
            remedy="use method=kd, which adapts",
        )


def match_classes(teacher: Sequence[str], task: Sequence[str]) -> tuple[int, ...] | None:
    """For each of the task's classes the teacher's own output, by name; ``None`` when the lists agree.

    Names are compared exactly; what is then still missing is compared without regard to case, spaces, hyphens and
    underscores, and by any one of a teacher's comma-separated synonyms, where that leaves no doubt.

    Raises:
        TeacherMismatch: the teacher lacks a class, or a name fits two of its classes.

    Example:
        >>> match_classes(["cat", "dog", "emu"], ["emu", "cat"])
        (2, 0)
    """
    if list(teacher) == list(task):
        return None
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    for i, name in enumerate(teacher):
        exact.setdefault(name, []).append(i)
        for form in {_plain(name), *(_plain(part) for part in name.split(","))}:
            loose.setdefault(form, []).append(i)
    index: list[int] = []
    missing: list[str] = []
    doubtful: list[str] = []
    for name in task:
        found = exact.get(name) or loose.get(_plain(name), [])
        if len(found) == 1:
            index.append(found[0])
        else:
            (doubtful if found else missing).append(name)
    if missing or doubtful or len(set(index)) < len(index):
        said = []
        if missing:
            said.append(f"the teacher has no class {_names(missing)}")
        if doubtful:
            said.append(f"more than one of the teacher's classes may be {_names(doubtful)}")
        if not said:
            said.append("two of the task's classes fit the same class of the teacher")
        raise TeacherMismatch(
            "teacher.labels",
            "; ".join(said),
            given=list(teacher),
            expected=f"a class for each of {_names(list(task))}",
            remedy="name the teacher's classes in order with teacher.labels=FILE, or train a teacher on this data",
        )
    return tuple(index)


def _plain(name: str) -> str:
    return " ".join(composed(name).casefold().replace("_", " ").replace("-", " ").split())


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
