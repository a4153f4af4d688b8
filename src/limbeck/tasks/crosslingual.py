"""Texts in several languages, answered with classes, of which labels are known in one language alone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.columns import Target
from limbeck.data.items import Part, Splits, digest
from limbeck.data.parallel_text import InLanguages, LanguagesSource, MadeUpLanguages, in_languages, part_of
from limbeck.data.splits import EmptyClasses, ready
from limbeck.data.text import Document, TextSource
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.method import Batch, Built, Data
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, Natural, Share
from limbeck.networks.stacked import StackedEncoder
from limbeck.tasks.text_classes import LabelledRows, Metric, TextClasses
from limbeck.tasks.tokenized import LazyRows, Rows
from limbeck.tasks.tokenizers import pad_id, word_tokenizer

NAMES = {"task": {"cross-lingual": "CrossLingual"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

LARGEST = 12
"""Test languages up to which each has a metric of its own."""


class CrossLingual(TextClasses):
    """Texts answered with classes, learnt in one language and evaluated in others.

    Labels are learnt from texts in the language ``source`` alone. The test split holds all languages: ``accuracy_source`` is
    that of the one, ``accuracy_others`` the mean over the rest, ``accuracy`` over all texts. Each text is in a batch twice,
    as tokens of a language model (``x``, ``attention_mask``) and of a translation encoder (``front_x``, ``front_mask``).

    Args:
        data: where the texts come from: ``parallel-text:FILE`` or ``made-up-languages``.
        source: the language of the labels; ``null`` takes the first.
        general: further texts in that language, without labels, for methods that read such.
        front_vocab: size of the tokenizer that is trained on the training texts of all languages.
        tokenizer, vocab_size, length, metric, target, student_items, valid_fraction, test_fraction, empty_classes,
            eval_batch, deal, label_smoothing, class_weights: see ``text-classes``; the tokenizer is the language model's.
    """

    def __init__(
        self,
        data: LanguagesSource = MadeUpLanguages(),  # noqa: B008 (a description of where data lies; nothing is read)
        source: str | None = None,
        general: TextSource | None = None,
        front_vocab: int = 2048,
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
        if not 300 <= front_vocab <= 1 << 22:
            raise ValueError(f"front_vocab must lie between 300 and {1 << 22:,}")
        self.source, self.general, self.front_vocab = source, general, front_vocab
        self.language_names: list[str] = []
        self._front: Any = None
        self._found: InLanguages | None = None
        super().__init__(
            data, tokenizer, vocab_size, length, metric, target, student_items, valid_fraction, test_fraction,
            empty_classes, eval_batch, deal, label_smoothing, class_weights,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ data
    def read(self) -> Splits:
        """Training and choosing in the source language, evaluation in all.

        Raises:
            ConfigError: there is no such language, or the data do not tell languages.
            DataError: one language only, or no training texts.
        """
        found = self._found = in_languages(self.data, self.target)
        self.language_names = list(dict.fromkeys(found.languages))
        source = self.source or self.language_names[0]
        if source not in self.language_names:
            raise ConfigError.unknown("task.source", source, self.language_names, "language of these texts")
        if len(self.language_names) < 2:
            raise DataError(
                "task.data", f"all texts are in {source}", expected="texts in another language to be evaluated by"
            )
        self.source_language = source
        numbers = {name: i for i, name in enumerate(self.language_names)}
        self.whole = BothRows(self, found.documents, found.y, torch.tensor([numbers[n] for n in found.languages]))
        self._all = [self.whole]
        parts = {
            split: part_of(found, split, None if split == "test" else source) for split in ("train", "valid", "test")
        }
        if not len(parts["train"]):
            raise DataError(
                "task.data", f"there are no training texts in {source}", remedy="choose another task.source"
            )
        own = {name: Part(self.whole, ids) if len(ids) else None for name, ids in parts.items()}
        train = own["train"]
        assert train is not None
        splits = Splits(train, own["valid"], own["test"], found.labels, found.kind, found.notes)
        others = sorted(set(found.languages) - {source})
        splits.notes.append(
            f"labels are learnt in {source}; the test texts are in it and in {len(others)} other "
            + ("language" if len(others) == 1 else "languages")
        )
        return ready(splits, self.valid_fraction, self.test_fraction, self.empty_classes, self.deal)

    @property
    def pairs(self) -> Pairs:
        """Training texts in other languages beside the same in the source language.

        Raises:
            DataError: there are none.
        """
        self.loaded()
        found = self._found
        assert found is not None
        mine = {found.groups[i]: i for i in part_of(found, "train", self.source_language).tolist()}
        both = [
            (i, mine[found.groups[i]])
            for i in part_of(found, "train", None).tolist()
            if found.languages[i] != self.source_language and found.groups[i] in mine
        ]
        if not both:
            raise DataError(
                "task.data", f"no training text is there in {self.source_language} and in another language",
                remedy="name a translation encoder that is trained: student.front.path=FOLDER",
            )  # fmt: skip
        return Pairs(self.whole, torch.tensor(both))

    def plain_texts(self) -> Data:
        """Texts in the source language that are read without their labels: ``general``, or the training texts."""
        if self.general is None:
            return self.teacher_train
        documents = [Document(d.text) for split in self.general.read().values() for d in split if d.text.strip()]
        if not documents:
            raise DataError("task.general", "there is no text in it")
        rows = BothRows(
            self, documents, torch.zeros(len(documents), dtype=torch.long), torch.zeros(len(documents)).long()
        )
        self._all.append(rows)
        return rows

    @property
    def front_tokenizer(self) -> Any:
        """The translation encoder's: its own, or one trained on the training texts of all languages."""
        if self._front is None:
            self.loaded()
            assert self._found is not None
            texts = [self._found.documents[i].text for i in part_of(self._found, "train", None).tolist()]
            self._front = word_tokenizer(texts, self.front_vocab)
        return self._front

    def adopt_front(self, tokenizer: Any) -> None:
        """A pretrained translation encoder brings its tokenizer."""
        self._front = tokenizer
        self.forget()

    def asked(self, given: Any, preprocessing: Any) -> Any:
        """Texts, files of them."""
        rows = super().asked(given, preprocessing)
        made = BothRows(self, rows.documents, rows.y, torch.zeros(len(rows.y), dtype=torch.long))
        made.names = rows.names
        return made

    def forget(self) -> None:
        """Make the rows anew."""
        super().forget()
        for rows in self._all:
            if isinstance(rows, BothRows):
                rows.front.forget()

    # ------------------------------------------------------------------------------------------------ use
    def feed(self, module: Any, batch: Batch) -> Any:
        """Tokens of the one kind or the other, with their mask."""
        inner = getattr(module, "_orig_mod", getattr(module, "base", module))
        if isinstance(inner, StackedEncoder):
            return module(batch["front_x"], batch["front_mask"])
        return super().feed(module, batch) if hasattr(inner, "config") else module(batch["x"], batch["attention_mask"])

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """As ``text-classes``; and by language where there are several."""
        found = super().evaluate(built, data, teacher, device)
        assert isinstance(found, Scores)
        if not (isinstance(data, Part) and isinstance(data.data, BothRows)):
            return found
        languages, right = data.data.languages[data.ids], found.per_item["accuracy"].double()
        there = languages.unique().tolist()
        if len(there) < 2:
            return found
        by = {self.language_names[i]: right[languages == i].mean().item() for i in there}
        others = [v for name, v in by.items() if name != self.source_language]
        if self.source_language in by:
            found["accuracy_source"] = by[self.source_language]
        found["accuracy_others"] = sum(others) / len(others)
        if len(by) <= LARGEST:
            found.update({f"accuracy_{name}": v for name, v in by.items()})
        return found

    @property
    def formats(self) -> tuple[str, ...]:
        """A stack reads tokens of its own kind, which no graph is written for."""
        return ("safetensors", "hub")

    def default_student(self) -> dict[str, Any]:
        """A small translation encoder under a small language model."""
        return {"use": "stacked"}

    def default_teacher(self) -> dict[str, Any]:
        """A small language model."""
        return {"use": "pooled-lm"}


class FrontRows(LazyRows[CrossLingual]):
    """Texts as tokens of the translation encoder."""

    def make(self, task: CrossLingual) -> Rows:
        """A row a text."""
        tokenizer = task.front_tokenizer
        cut = tokenizer([d.text for d in self.documents], truncation=True, max_length=task.length, verbose=False)
        return Rows(cut["input_ids"], None, pad_id(tokenizer))


class BothRows(LabelledRows):
    """Texts as tokens of both networks.

    Args:
        task: whose tokenizers and length.
        documents: the texts.
        y: classes.
        languages: of each, its number.
    """

    def __init__(self, task: CrossLingual, documents: Any, y: Tensor, languages: Tensor) -> None:
        super().__init__(task, documents, y)
        self.front, self.languages = FrontRows(task, documents), languages

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch."""
        ids, real, _ = self.front.rows().fetch(items)
        return super().fetch(items) | {"front_x": ids, "front_mask": real, "language": self.languages[items]}

    @property
    def fingerprint(self) -> str:
        """Of both kinds of rows."""
        return digest(super().fingerprint, self.front.rows().ids, self.languages)


class Pairs:
    """Translations: a text as ``front_x`` and the same in the source language as ``into_x``, with their masks.

    Args:
        rows: all texts.
        both: int64 ``[n, 2]``, the text and its translation.
    """

    def __init__(self, rows: BothRows, both: Tensor) -> None:
        self.rows, self.both = rows, both

    def __len__(self) -> int:
        return len(self.both)

    def fetch(self, items: Tensor) -> Batch:
        """Some pairs."""
        a, b = (self.rows.front.rows().fetch(self.both[items, i]) for i in (0, 1))
        return {"front_x": a[0], "front_mask": a[1], "into_x": b[0], "into_mask": b[1]}

    @property
    def fingerprint(self) -> str:
        """The texts', and which are paired."""
        made = self.rows.front.rows()
        return digest(made.ids, made.sizes, self.both)
