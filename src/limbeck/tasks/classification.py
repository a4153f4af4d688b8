"""Classification of images or rows of numbers: one class, several classes, or numbers (regression)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.data.columns import Target
from limbeck.data.items import Splits
from limbeck.data.splits import EmptyClasses
from limbeck.engine.batches import to_device
from limbeck.errors import CacheMismatch, ConfigError, DataError
from limbeck.functional.metrics import calibration_error, calibration_table, frequency_groups
from limbeck.grammar.answers import Answer
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, Share, settings
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.items import OutputTask

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"classification": "Classification"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Labelled(OutputTask):
    """What `Classification` and `Condensation` share: items with one class, several classes, or numbers."""

    label_smoothing: float = 0.0
    weights: Tensor | None = None

    def _recall(self, about: Mapping[str, Any]) -> None:
        super()._recall(about)
        if self.kind_of_target == "number":
            self.number_mean = torch.tensor([float(v) for v in about["number_mean"]])
            self.number_std = torch.tensor([float(v) for v in about["number_std"]])
        self._look()

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """The likeliest class with its probability; every label above a half; or numbers in the data's units."""
        z = self.signal(built, batch).logits.float().cpu()
        names = self.labels or [str(i) for i in range(z.shape[1])]
        if self.kind_of_target == "number":
            real = (z.double() * self.number_std.double() + self.number_mean.double()).float()
            return [Answer({"values": dict(zip(names, row.tolist(), strict=True))}, {"values": row}) for row in real]
        if self.kind_of_target == "labels":
            p = z.sigmoid()
            return [
                Answer(
                    {
                        "labels": [n for n, yes in zip(names, (z[i] > 0).tolist(), strict=True) if yes],
                        "scores": dict(zip(names, p[i].tolist(), strict=True)),
                    },
                    {"scores": p[i], "logits": z[i]},
                )
                for i in range(len(z))
            ]
        p, k = z.softmax(-1), min(int(options.get("top") or 1), z.shape[1])
        best = z.topk(k, -1).indices
        first = z.argmax(-1).tolist()
        found = []
        for i in range(len(z)):
            row: dict[str, Any] = {"label": names[first[i]], "score": float(p[i, first[i]])}
            if k > 1:
                row["top"] = {names[c]: float(p[i, c]) for c in best[i].tolist()}
            found.append(Answer(row, {"scores": p[i], "logits": z[i]}))
        return found

    def picture_of(self, answer: Answer, asked: Any, item: int) -> Tensor | None:
        """The image with the answer above it; nothing of rows."""
        from limbeck.tasks.drawing import captioned

        if not hasattr(asked, "original"):
            return None
        row = answer.row
        said = (
            f"{row['label']} {row['score']:.2f}" if "label" in row
            else ", ".join(row["labels"]) or "none" if "labels" in row
            else ", ".join(f"{n} {v:.4g}" for n, v in row["values"].items())
        )  # fmt: skip
        return captioned(asked.original(item), said)

    def check_splits(self, splits: Splits) -> None:
        """Refuse numbers that are all the same."""
        super().check_splits(splits)
        self._look()
        if splits.kind != "number":
            return
        self.number_mean = splits.train.y.double().mean(0).float()
        std = splits.train.y.double().std(0, correction=0).float()
        if (std == 0).any():
            names = [splits.labels[i] for i in (std == 0).nonzero()[:, 0].tolist()]
            raise DataError("data", f"the target {', '.join(names)} has one value only", expected="numbers that vary")
        self.number_std = std

    def try_out(self, teacher: Built, device: torch.device | None = None) -> None:
        """Try a ready teacher on up to 512 labelled items."""
        from limbeck.tasks import teacher_check

        teacher_check.check(self, teacher, device)

    def _look(self) -> None:
        kind = self.kind_of_target
        self.primary = {"label": "accuracy", "labels": "f1", "number": "rmse"}[kind]
        self.higher_is_better = kind != "number"

    @property
    def needs(self) -> Needs:
        """One row of values an item: logits of its classes, or numbers."""
        needs = super().needs
        if self.kind_of_target != "number":
            return needs
        return needs.with_(mean=tuple(self.number_mean.tolist()), std=tuple(self.number_std.tolist()))

    # ------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Any:
        """Inputs alone go into the model."""
        return module(batch["x"])

    masks_unlabelled: ClassVar[bool] = True

    def counted(self, batch: Batch) -> Tensor | None:
        """Which items have labels, where others stand beside them."""
        return batch.get("labelled")

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Cross-entropy to class ids or soft labels; binary cross-entropy summed over several labels; squared error of
        standardised numbers, summed over them. One value per item; unlabelled ones do not count."""
        z, y, where = signal.logits, batch["y"], self.counted(batch)
        if self.kind_of_target == "label":
            loss = F.cross_entropy(z, y, label_smoothing=self.label_smoothing)
            if self.weights is not None:
                weights = self.weights.to(z.device)
                loss = loss * (y.to(weights.dtype) @ weights if y.is_floating_point() else weights[y])
            return Term(loss, where=where)
        if self.kind_of_target == "labels":
            loss = nn.functional.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none")
            return Term(loss.sum(-1), where=where)
        return Term(F.squared_error(z, self.standardise(y).to(z.dtype)), where=where)

    def standardise(self, y: Tensor) -> Tensor:
        """Numbers [N, K] as models answer them: mean 0 and deviation 1 over the training items."""
        return (y - self.number_mean.to(y.device)) / self.number_std.to(y.device)

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a network on a split, in one pass, without gradients and in evaluation mode.

        One label: accuracy, balanced_accuracy, top5 (above 10 classes), nll, ece; where the largest training class has ten
        times the items of the smallest, head_accuracy, medium_accuracy and tail_accuracy, means over the classes of each
        third by training items (or as ``shots`` divides them). Several labels: f1 (macro), f1_micro,
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
        for name, classes in self.shares().items():
            if (mine := recall[classes][seen[classes] > 0]).numel():
                found[f"{name}_accuracy"] = mine.mean().item()
        if z.shape[1] > 10:
            found["top5"] = (z.topk(5).indices == hard[:, None]).any(1).double().mean().item()
        if t is not None:
            found["agreement"] = (guess == t.argmax(-1)).double().mean().item()
        return Scores(found, {"accuracy": guess == hard, "nll": loss})

    def shares(self) -> dict[str, Tensor]:
        """Numbers of the classes of the head, the middle and the tail, where training classes have a long tail."""
        sizes = self.class_sizes.get("train")
        if sizes is None or self.recalled:  # a network that is asked about other items knows its own training set alone
            return {}
        return frequency_groups(torch.tensor(sizes), getattr(self, "shots", None))

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
        """What the report draws from at most 5,000 test items, at even distances.

        Of one label an item: ``calibration``, the bins of a reliability diagram of every network among the rows, and
        ``confusion``, how many items [true class][predicted class], of up to 200 classes. Of several labels: ``by_label``,
        precision, recall and F1 of each. Of numbers: ``truth``, the student's answers and the true ones by target.
        """
        networks = {name: row.built for name, row in rows.items() if isinstance(row, NetworkArtifact)}
        told: dict[str, Any] = {}
        for name, built in networks.items():
            z, y = self._answers(built, bench.device)
            if self.kind_of_target == "label":
                told.setdefault("calibration", {})[name] = calibration_bins(calibration_table(z, y))
                if z.shape[1] <= 200:
                    pairs = y * z.shape[1] + z.argmax(-1)
                    table = torch.bincount(pairs, minlength=z.shape[1] ** 2).reshape(z.shape[1], -1)
                    told.setdefault("confusion", {})[name] = table.tolist()
            elif self.kind_of_target == "labels":
                told.setdefault("by_label", {})[name] = by_label(z > 0, y > 0.5, self.labels or [])
            elif name == "student":
                ids = torch.arange(0, len(y), max(1, -(-len(y) // 500)))
                real = z.double() * self.number_std.double() + self.number_mean.double()
                columns = self.labels or ["value"]
                told["truth"] = {
                    c: {"true": y[ids, k].tolist(), "predicted": real[ids, k].tolist()} for k, c in enumerate(columns)
                }
        return told

    def _answers(self, built: Built, device: torch.device, most: int = 5000) -> tuple[Tensor, Tensor]:
        """A network's answers [N, C], float32, and the targets of test items."""
        answers, targets = [], []
        ids = torch.arange(0, len(self.test), max(1, -(-len(self.test) // most)))
        with torch.no_grad(), evaluating([built.module]):
            for part in ids.split(self.eval_batch):
                batch = to_device({**self.test.fetch(part), "item": part, "view": torch.zeros_like(part)}, device)
                answers.append(self.signal(built, batch).logits.float().cpu())
                targets.append(batch["y"].cpu())
        return torch.cat(answers), torch.cat(targets)

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


@settings
class Classification(Labelled):
    """Classification of images or rows of numbers: one class, several classes, or numbers (regression).

    The teacher learns from all training items; the student from ``student_items`` of them. A teacher that knows more
    than the student's training set is the regime in which distillation helps most.

    Args:
        target: ``label`` (one class per item), ``labels`` (several, with sigmoids), ``number`` (regression), or ``auto`` to
            read it from the data.
        student_items: size of the student's training set, drawn with the run's seed and with the same share of each class;
            ``null`` uses all items.
        empty_classes: ``error`` rejects classes that are declared but have no items; ``keep`` accepts them.
        label_smoothing: share of each label that is spread evenly over all classes when networks are trained by labels
            (teacher, baseline and student alike); 0.1 is common.
        class_weights: weights of the classes in this loss: ``balanced`` (inversely proportional to the number of
            training items), or a number per class, in the order of the labels; they are scaled to a mean of 1 over the
            items. ``null`` weighs all items alike.
        shots: two numbers of training items, such as [20, 100]: accuracy is also reported over the classes with fewer than
            the first (tail), up to the second (medium) and more (head). ``null`` takes thirds of the classes, where the
            largest has ten times the items of the smallest.
    """

    neutral = ("label_smoothing", "class_weights", "shots")
    # none changes what a teacher learns; the student's own items are told apart by their content
    judging = ("student_items", "eval_batch", "shots")

    target: Target = "auto"
    student_items: Count | None = None
    empty_classes: EmptyClasses = "error"
    label_smoothing: Share = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    shots: list[Count] | None = None

    def validate(self) -> None:
        """Two bounds, in order."""
        super().validate()
        if self.shots is not None and (len(self.shots) != 2 or self.shots[0] > self.shots[1]):
            raise ValueError("shots must be two numbers in order, such as [20, 100]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target != "auto":
            self.kind_of_target = self.target
        self._look()

    def check_splits(self, splits: Splits) -> None:
        """Refuse class weights and label smoothing that do not fit the labels, and make the weights.

        Raises:
            ConfigError: labels are not one class an item, or the weights are not one number per class.
        """
        super().check_splits(splits)
        given = self.class_weights
        for name, on in (("label_smoothing", self.label_smoothing > 0), ("class_weights", given is not None)):
            if on and splits.kind != "label":
                raise ConfigError(
                    f"task.{name}",
                    f"the items have {'numbers' if splits.kind == 'number' else 'several labels each'}",
                    given=getattr(self, name),
                    expected="one class per item",
                )
        if given is None:
            return
        y, count = splits.train.y, len(splits.labels)
        if given == "balanced":
            weights = 1.0 / torch.bincount(y, minlength=count).double().clamp(min=1)
        else:
            weights = torch.tensor([float(w) for w in given], dtype=torch.float64)
            if len(weights) != count or not bool(weights.isfinite().all()) or bool((weights < 0).any()):
                raise ConfigError(
                    "task.class_weights",
                    given=given,
                    expected=f"{count} numbers of 0 or more, for {', '.join(map(str, splits.labels[:6]))}"
                    + ("..." if count > 6 else ""),
                )
        mean = weights[y].mean()
        if not mean > 0:
            raise ConfigError("task.class_weights", "all training items weigh nothing", given=given)
        self.weights = (weights / mean).float()

    def read(self) -> Splits:
        """The items in three splits, answered as ``target`` says."""
        fractions = self.valid_fraction, self.test_fraction
        return self.data.divided(self.target, self.size, *fractions, self.empty_classes, self.deal)


def by_label(said: Tensor, true: Tensor, labels: list[str]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of each label from booleans [N, L]; 0 where a label was never answered or never true."""
    right, answered, there = (t.sum(0).double() for t in (said & true, said, true))
    precision, recall = right / answered.clamp(min=1), right / there.clamp(min=1)
    f1 = 2 * right / (answered + there).clamp(min=1)
    names = labels if len(labels) == said.shape[1] else [str(i) for i in range(said.shape[1])]
    return {
        name: {"precision": p, "recall": r, "f1": f, "items": n}
        for name, p, r, f, n in zip(
            names, precision.tolist(), recall.tolist(), f1.tolist(), there.tolist(), strict=True
        )
    }


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
    """Refuse a task whose items do not have one class each.

    Raises:
        ConfigError: what the items have.
    """
    kind = task.kind_of_target if isinstance(task, Labelled) else type(task).__name__.lower()
    if kind != "label":
        raise ConfigError(
            "method",
            f"{method.config.get('use', type(method).__name__)} needs items that have one class each",
            given=kind,
            expected="a classification task with one label per item",
            remedy="use method=kd, which adapts",
        )
