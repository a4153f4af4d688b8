"""Texts, or pairs of texts, answered with one class, several classes, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.data.asked import asked_texts
from limbeck.data.columns import Target
from limbeck.data.items import Items, Part, Splits, digest
from limbeck.data.labelled_text import Chapters, LabelledSource
from limbeck.data.splits import EmptyClasses, ready
from limbeck.data.text import Document, places_of
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.method import Batch
from limbeck.grammar.needs import Needs
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, Natural, Share
from limbeck.tasks.classification import Classification
from limbeck.tasks.tokenized import LazyRows, Rows, Tokenized, encode
from limbeck.tasks.tokenizers import pad_id

NAMES = {"task": {"text-classes": "TextClasses"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Metric = Literal["accuracy", "balanced_accuracy", "mcc", "f1"]


class TextClasses(Tokenized, Classification):
    """Texts, or pairs of texts, answered with classes or numbers. What classification methods do, they do with texts.

    A batch holds ``x``, token ids int64 [N, T], padded at the right; ``attention_mask`` [N, T]; of pairs
    ``token_type_ids`` [N, T]; and ``y``.

    Args:
        data: where the texts come from.
        tokenizer: a Hub id or local folder; ``null`` takes the models' own, or trains one on the training texts.
        vocab_size: size of a trained tokenizer (byte-level BPE).
        length: tokens in a row, at most; ``null``: 128, or as many as the models have positions for, if fewer. What is
            longer is cut off at the end, of a pair the longer text first.
        metric: what decides, of one class an item: ``accuracy``, ``balanced_accuracy``, or with two classes ``mcc``
            (Matthews' correlation) or ``f1`` of the second class.
        target: ``label``, ``labels``, ``number``, or ``auto``: as the data says.
        student_items: size of the student's training set, each class in proportion, drawn by the seed; all if ``null``.
        valid_fraction: share of the training items set aside for choosing, where the source has no such split.
        test_fraction: share of the items set aside for evaluation, where the source has no test split.
        empty_classes: ``error``, or ``keep`` classes that the data names and has no item of.
        eval_batch: items at a time in evaluation.
        label_smoothing: share of each label that is spread evenly over all classes in the loss to labels.
        class_weights: weights of the classes in this loss: ``balanced``, or a number per class; ``null``: all alike.
        deal: which division into training, validation and test items: 0 is the data's own, where it names splits.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)
    onnx_names = ("input_ids", "attention_mask")

    data: LabelledSource  # type: ignore[assignment]

    def __init__(
        self,
        data: LabelledSource = Chapters(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        length: int | None = None,
        metric: Metric = "accuracy",
        target: Target = "auto",
        student_items: Count | None = None,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        empty_classes: EmptyClasses = "error",
        eval_batch: Count = 128,
        deal: Natural = 0,
        label_smoothing: Share = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
    ) -> None:
        # written out: the setting "tokenizer" has the name of the tokenizer that comes of it
        self._tokens(tokenizer, vocab_size, length)
        self.data, self.metric = data, metric
        self.target, self.student_items, self.empty_classes = target, student_items, empty_classes
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.size, self.eval_batch, self.deal = None, eval_batch, deal
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self._all: list[LabelledRows] = []
        self.__post_init__()

    def _recall(self, about: Mapping[str, Any]) -> None:
        super()._recall(about)
        if about.get("length"):
            self.asked_length = self.length = int(about["length"])

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Texts, pairs of texts, files of them."""
        documents, names = asked_texts(given)
        rows = LabelledRows(self, documents, torch.zeros(len(documents), dtype=torch.int64))
        rows.names = names
        return rows

    def _look(self) -> None:
        super()._look()
        if self.kind_of_target == "label":
            self.primary = self.metric

    # ------------------------------------------------------------------------------------------------ data

    def read(self) -> Splits:
        """The texts in three splits.

        Raises:
            DataError: there is nothing to learn from, or rows that cannot be read.
            ConfigError: the metric is told of other classes.
        """
        found = self.data.read(self.target)
        parts: dict[str, Items] = {}
        names = ["train" if s == "all" else s for s in found.splits]
        whole = LabelledRows(self, found.documents, found.y)
        self._all = [whole]
        for split in ("train", "valid", "test"):
            ids = torch.tensor([i for i, s in enumerate(names) if s == split], dtype=torch.long)
            if len(ids):
                parts[split] = Part(whole, ids)
        if "train" not in parts:
            raise DataError("task.data", "there are no training texts", remedy="name a file of them as task.data.path")
        splits = Splits(parts["train"], parts.get("valid"), parts.get("test"), found.labels, found.kind, found.notes)
        if splits.kind == "label" and self.metric in ("mcc", "f1") and len(found.labels) != 2:
            raise ConfigError(
                "task.metric",
                f"{self.metric} is told of two classes, and there are {len(found.labels)}",
                given=self.metric,
                expected="accuracy or balanced_accuracy",
            )
        return ready(splits, self.valid_fraction, self.test_fraction, self.empty_classes, self.deal)

    def sample(self, most: int | None = None) -> list[str]:
        """Training texts, of pairs both."""
        pool = self.loaded()
        assert isinstance(pool, Part) and isinstance(pool.data, LabelledRows)
        documents = [pool.data.documents[i] for i in pool.ids[:most].tolist()]
        return [text[: 300 if most else None] for d in documents for text in (d.prompt, d.text) if text]

    def forget(self) -> None:
        """Make the rows anew: the length has changed."""
        for rows in self._all:
            rows.forget()

    @property
    def shape(self) -> tuple[int, ...]:
        """A row of so many tokens, at most."""
        self.loaded()
        return (self.length,)

    @property
    def needs(self) -> Needs:
        """One row of values a text."""
        return super().needs.with_(tokens=self)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """None: token ids are not normalised."""
        return (), ()

    # ------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Any:
        """Ids, mask and segments into the model."""
        return encode(module, batch["x"], batch)

    def _judge_label(self, z: Tensor, y: Tensor, t: Tensor | None) -> Scores:
        found = super()._judge_label(z, y, t)
        if z.shape[1] == 2:
            hard = y.argmax(-1) if y.is_floating_point() else y
            guess = z.argmax(-1)
            tp, fp = float((guess & hard).sum()), float((guess & (1 - hard)).sum())
            fn, tn = float(((1 - guess) & hard).sum()), float(((1 - guess) & (1 - hard)).sum())
            spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
            found["mcc"] = (tp * tn - fp * fn) / spread**0.5 if spread else 0.0
            found["f1"] = 2 * tp / max(2 * tp + fp + fn, 1.0)
        return found

    def describe(self) -> dict[str, Any]:
        """What must travel with a network so that its answers can be read elsewhere."""
        return {**super().describe(), "input": [], "length": self.length}

    def default_student(self) -> dict[str, Any]:
        """Two layers of width 48."""
        return {"use": "encoder", "layers": 2, "width": 48}

    def default_teacher(self) -> dict[str, Any]:
        """Four layers of width 96."""
        return {"use": "encoder", "layers": 4, "width": 96}


class LabelledRows(LazyRows[TextClasses]):
    """Texts or pairs as rows of token ids with targets, made by the task's tokenizer when first asked for."""

    def __init__(self, task: TextClasses, documents: Sequence[Document], y: Tensor) -> None:
        super().__init__(task, documents)
        self.y = y
        self.names: list[str] = []  # of texts without targets, how they are called
        self.shape: tuple[int, ...] = ()  # batches are as wide as their longest row

    def make(self, task: TextClasses) -> Rows:
        """A row a text, or a pair.

        Raises:
            DataError: texts without a token.
        """
        pairs = any(d.prompt for d in self.documents)
        texts = [d.prompt if pairs else d.text for d in self.documents]
        second = [d.text for d in self.documents] if pairs else None
        cut = task.tokenizer(
            texts,
            second,
            truncation=True,
            max_length=task.length,
            return_token_type_ids=pairs or None,
            verbose=False,
        )
        rows = cut["input_ids"]
        marks = len(task.tokenizer("", verbose=False)["input_ids"])
        empty = [d for d, row in zip(self.documents, rows, strict=True) if len(row) <= marks]
        if empty:
            raise DataError(
                "task.data",
                f"{len(empty)} texts have no token in this tokenizer",
                given=places_of(empty, 5),
                remedy="leave them out, or take another tokenizer",
            )
        full = sum(len(row) >= task.length for row in rows)
        if full:
            task.note(
                f"{full} of {len(rows)} texts fill {task.length} tokens; what is longer was cut off (task.length)"
            )
        types = cut.get("token_type_ids") if pairs else None
        return Rows(rows, types, pad_id(task.tokenizer))

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch."""
        ids, real, types = self.rows().fetch(items)
        more: Mapping[str, Tensor] = {} if types is None else {"token_type_ids": types}
        return {"x": ids, "attention_mask": real, **more, "y": self.y.index_select(0, items)}

    @property
    def fingerprint(self) -> str:
        """Hash of rows and targets."""
        made = self.rows()
        return digest(made.ids, made.sizes, *([] if made.types is None else [made.types]), self.y)
