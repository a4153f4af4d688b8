"""What the student is for: data, how a batch is fed to a model, the supervised loss, the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.answers import Answer
from limbeck.grammar.component import Component
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Form, Items, Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal

if TYPE_CHECKING:
    from limbeck.grammar.artifact import Artifact
    from limbeck.grammar.evaluator import Bench, Rows
    from limbeck.grammar.optim import Optim


Check = Literal["on", "off"]
"""Whether a ready teacher is tried on labelled items before anything is trained."""

DENSE_OUTPUTS = 2048
"""Up to so many outputs a position of a text is recorded whole; above, its likeliest tokens."""


DEEPEST = 10_000
"""Layers that a network of our own may be asked to have."""

Depth = Annotated[int, Interval(ge=1, le=DEEPEST)]
"""A number of layers."""


class Task(Component):
    """A family of uses. One file per family under ``limbeck.tasks``.

    Attributes:
        primary: name of the main metric.
        higher_is_better: its direction.
        train: the student's training data; ``teacher_train`` the teacher's (often more); ``valid`` chooses; ``test``
            only evaluates.
        labels: class names in the task's order, or ``None``.
        onnx_names: the tensors of a batch that are inputs of an exported graph.
        notes: sentences about what was read and what was not, a line each, for the screen, the plan, the report and
            ``result.json``.
        class_sizes: how many items of each class the splits have, by split; empty where there are no classes.
        baseline: the row that a student is held against, of those in `baselines`.
        called: row -> what a report calls it, where its own name does not say it.
        judging: settings that only judge: a teacher trained under other values of them is the same teacher.
    """

    kind: ClassVar[str] = "task"
    primary: str = "loss"
    higher_is_better: bool = False
    baseline: str = "alone"
    called: Mapping[str, str] = MappingProxyType({})
    labels: list[str] | None = None
    onnx_names: tuple[str, ...] = ("x",)
    judging: tuple[str, ...] = ()
    notes: Sequence[str] = ()
    class_sizes: Mapping[str, Sequence[int]] = MappingProxyType({})
    train: Data
    teacher_train: Data
    valid: Data
    test: Data

    @property
    def formats(self) -> tuple[str, ...]:
        """What a student of this task can be exported as."""
        from limbeck.grammar.artifact import NetworkArtifact

        return NetworkArtifact.formats

    def load(self, seed: int | None = None) -> None:
        """Read and check the data. Idempotent.

        ``seed`` chooses subsets, never the test split; ``None`` keeps those of an earlier call (0 at the first).
        """
        raise TypeError(f"{type(self).__name__} must define load")

    @property
    def needs(self) -> Needs:
        """What a network must give, which models build for; known once the data are read."""
        raise ConfigError(
            "task",
            f"{type(self).__name__} does not say what it needs of a network",
            expected="a property needs -> Needs(inputs, outputs, form)",
            remedy="define it, or name a model that was made for this task",
        )

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel (or feature), for networks that come without; empty for none."""
        return (), ()

    def feed(self, module: Any, batch: Batch) -> Any:
        """How a batch goes into a model, and how its outputs are shown: the classes last."""
        return module(batch["x"])

    def shown(self, module: Any, batch: Batch) -> Any:
        """What a role shows of a batch in training: as `feed`, or what logits that are too large to hold are made of."""
        return self.feed(module, batch)

    def specimen(self) -> Mapping[str, Any] | None:
        """A training example as people read it, shown before training: ``title`` and ``parts``, each a text and whether
        it is learnt; ``None`` where there is nothing to be shown."""
        return None

    def plainly(self, module: Any, batch: Batch) -> Any:
        """How inputs go into a model where nothing is learnt or judged: in an exported graph. By default as `feed`."""
        return self.feed(module, batch)

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two items through a network just built: what does not fit is said now, not at the first step.

        Raises:
            ConfigError, ShapeError, TeacherMismatch: it fails on them, or answers with another shape.
        """

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """The loss against the data's own labels, per item; of several parts, a `Bundle`."""
        raise TypeError(f"{type(self).__name__} must define supervised")

    masks_unlabelled: ClassVar[bool] = False
    """Whether its loss leaves out items that ``batch["labelled"]`` does not mark."""

    def counted(self, batch: Batch) -> Tensor | None:
        """Which values of the supervised term count, where the batch alone tells it; ``None``: one an item does.

        Asked twice of a batch, it answers with the same tensor: terms under this very mask are known to the engine before
        the forward pass, so that it can free each micro-batch's graph at once.
        """
        return None

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> dict[str, float]:
        """Metrics of a network on a split; agreement with the teacher where one is given."""
        raise TypeError(f"{type(self).__name__} must define evaluate")

    def default_student(self) -> dict[str, Any]:
        """The recipe node of the student when none is named."""
        raise TypeError(f"{type(self).__name__} has no default student: name one")

    def default_teacher(self) -> dict[str, Any]:
        """The recipe node of the teacher when none is named."""
        raise TypeError(f"{type(self).__name__} has no default teacher: name one")

    def check_teacher(self, teacher: Built, device: torch.device | None = None) -> None:
        """Try a ready teacher on some labelled items, before anything is trained; what is found goes into its notes.

        Raises:
            TeacherMismatch: it does no better than guessing; the likely cause is named.
        """

    def match(self, student: Built, teacher: Built) -> None:
        """Check that teacher and student speak of the same thing; raise TeacherMismatch, or adapt and say so."""

    def describe(self) -> dict[str, Any]:
        """Plain facts that travel with a network (in ``student.json``), so that its answers can be read elsewhere."""
        return {}

    # -- a trained network's answers for somebody's own items ------------------------------------------------------------

    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """Know again what a network was made for, from what `describe` said of it.

        Args:
            about: ``student.json``, what it says of the task on the same level.
            bare: no data are read at all; otherwise `load` still reads them, coded as those of the network were.

        Raises:
            ConfigError: networks of this task are not opened so.
        """
        raise ConfigError("RUN", f"networks of the task {type(self).__name__} give no answers for single items")

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """What somebody hands over (paths, arrays, texts, a DataFrame) as items without targets (`limbeck.data.asked.Asked`).

        Args:
            given: see `limbeck.predict.Loaded.predict`.
            preprocessing: what ``student.json`` says of it.

        Raises:
            DataError: what cannot be read, or is of another kind than the network takes.
        """
        raise ConfigError("RUN", f"networks of the task {type(self).__name__} give no answers for single items")

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """What a network answers for a batch of such items, one each, without a graph and in evaluation mode.

        Args:
            built: the network, in its contract.
            batch: of ``asked``, on the network's device.
            asked: all of the items.
            items: which of them the batch holds.
            **options: what the task offers beside.
        """
        raise ConfigError("RUN", f"networks of the task {type(self).__name__} give no answers for single items")

    def picture_of(self, answer: Answer, asked: Any, item: int) -> Tensor | None:
        """An item with its answer as an image, uint8 [3, H, W]; ``None`` where there is nothing to draw."""
        return None

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """How somebody's own file becomes what a network of this task takes, as plain values (in ``student.json``).

        ``kind`` says what goes in: ``image``, ``row``, ``text``, or ``other``. ``mean``, ``std``, ``size`` and ``channels``
        are those of the contract.
        """
        return {"kind": "other", **contract.as_config()}

    def part(self, name: str) -> Task:
        """A part of the task that a participant may be for (the hands of a body, the validity of a sentence).

        Raises:
            ConfigError: the task has no such part.
        """
        raise ConfigError("task", f"{type(self).__name__} has no part {name!r}")

    def default_evaluator(self) -> dict[str, Any]:
        """The recipe node of the evaluator when none is named: one forward pass over the split."""
        return {"use": "direct"}

    def baselines(self, bench: Bench) -> Rows:
        """What a student is held against, by name: by default ``alone``, the student trained by `supervised` at its budget.

        A task without such a loss (pre-training, anomalies) names others, or none. They run when their turn comes, and a
        recipe's ``baselines`` chooses among them.
        """
        from limbeck.grammar.artifact import NetworkArtifact

        return {"alone": lambda: NetworkArtifact(self, bench.alone())}

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """Further entries of ``result.json`` (calibration bins), for the report; ``rows`` are what was scored, by name."""
        return {}

    def cache_bytes(self) -> float:
        """Bytes a recorded teacher takes per training item: two for each output value; 0 where none can be recorded."""
        return 2.0 * len(self.labels or [0])

    def example(self, n: int = 2) -> Batch:
        """A few training items as a batch, for dry runs and exports."""
        ids = torch.arange(min(n, len(self.train)))
        return {**self.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}

    @property
    def fingerprint(self) -> str:
        """A content hash of the data a student or teacher is trained on."""
        return self.train.fingerprint


class Model(Component):
    """A way to get a network: a library's, the user's, an earlier run's.

    Attributes:
        forms: what its networks can answer with; tasks that need another form are refused (`limbeck.models.forms.meet`).
        takes: what can go into them; empty where that is not told.
        checkpoint: weights to load, or ``None``.
        role: who it is to be (``teacher``, ``student``), set before it is built; empty when it is built by hand.
        check: whether it is tried on labelled items before it teaches, where its weights are ready (`Task.check_teacher`).
        held: whether it is a module that the caller holds: then one that only guesses is refused only where the cause is
            known, for who writes a program may mean it.
    """

    kind: ClassVar[str] = "model"
    forms: ClassVar[tuple[Form, ...]] = ()
    takes: ClassVar[tuple[Items, ...]] = ()
    paths: ClassVar[tuple[str, ...]] = ("path", "checkpoint", "labels")
    checkpoint: str | None = None
    role: str = ""
    check: Check = "on"
    held: ClassVar[bool] = False

    def setting(self, name: str) -> str:
        """One of its settings as it is typed: ``teacher.strip``."""
        return f"{self.role}.{name}" if self.role else name

    def build(self, task: Task) -> Built:
        """The network for a task, weights loaded where a checkpoint or pretrained weights are named."""
        raise TypeError(f"{type(self).__name__} must define build")

    @property
    def trained(self) -> bool:
        """Whether ``build`` returns trained weights (then no teacher stage is needed). Asked after ``build``."""
        return self.checkpoint is not None

    @property
    def brings_tokenizer(self) -> bool:
        """Whether it reads texts by a tokenizer of its own. Whoever does is built first, and the task takes it over."""
        return False

    @property
    def takes_tokenizer(self) -> bool:
        """Whether one that another network brings can serve it: it has none, or no weights that know its own."""
        return False

    def teach(self, bench: Bench, optim: Optim) -> Built:
        """A teacher without trained weights, trained on the task's own labels: a remembered stage."""
        return bench.train_network(self, bench.task.teacher_train, optim, bench.name)

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """Write the network alone in its own native format: by default ``student.safetensors``."""
        from pathlib import Path

        from limbeck.storage.store import save_state_dict

        save_state_dict(Path(folder) / "student.safetensors", module.state_dict())
