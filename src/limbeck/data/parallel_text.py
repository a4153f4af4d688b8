"""The same labelled texts in several languages: from a table, or in made-up languages on every machine."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from limbeck.data.columns import Target
from limbeck.data.items import as_path
from limbeck.data.labelled_text import Chapters, Labelled, LabelledSource, table_columns
from limbeck.data.names import is_blank, some, split_of
from limbeck.data.targets import read_targets
from limbeck.data.text import Document
from limbeck.errors import ConfigError, DataError, nearest
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import settings

NAMES = {
    "source": {"parallel-text": "ParallelText", "made-up-languages": "MadeUpLanguages"},
    "source for LanguagesSource": {"csv": "ParallelText", "jsonl": "ParallelText", "parquet": "ParallelText"},
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@dataclass
class InLanguages(Labelled):
    """Texts with labels and languages.

    Attributes:
        languages: of each text.
        groups: of each text: those of one group are translations of each other.
    """

    languages: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


class LanguagesSource(LabelledSource):
    """Base of the sources of labelled texts in several languages: ``read`` gives `InLanguages`."""

    def read(self, target: Target = "auto") -> InLanguages:
        """The texts."""
        raise TypeError(f"{type(self).__name__} must define read")


@settings
class ParallelText(LanguagesSource):
    """A table with a text, its label, its language, and a number that translations share (SIB-200's, say).

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.
        languages: which languages are read; all if ``null``.
        text: the column of the text.
        label: of the label.
        language: of the language.
        group: of what translations share.
        split: of the split: train, valid (dev) or test.
        encoding: of text files.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    languages: list[str] | None = None
    text: str = "text"
    label: str = "category"
    language: str = "lang"
    group: str = "index_id"
    split: str = "split"
    encoding: str = "utf-8"

    def read(self, target: Target = "auto") -> InLanguages:
        """The texts.

        Raises:
            DataError: no such file, column or language; blank texts; splits that are called otherwise.
        """
        file = as_path(self.path, "task.data.path")
        if not file.is_file():
            raise DataError(
                "task.data.path", "is no file", given=self.path, expected="a table of texts in several languages"
            )
        columns = table_columns(Path(file), self.encoding)
        wanted = [self.text, self.label, self.language, self.group, self.split]
        for argument, name in zip(("text", "label", "language", "group", "split"), wanted, strict=True):
            if name not in columns:
                close = nearest(name, list(columns))
                raise DataError(
                    f"task.data.{argument}",
                    f"{file.name} has no column {name!r}",
                    expected=f"one of {', '.join(map(repr, columns))}",
                    remedy=f"did you mean {close[0]!r}?" if close else f"name it: task.data.{argument}=NAME",
                )
        texts, labels, languages, groups, splits = (columns[name] for name in wanted)
        known = dict.fromkeys(map(str, languages))
        unknown = [n for n in self.languages or () if n not in known]
        if unknown:
            raise DataError(
                "task.data.languages",
                f"{file.name} has no {some(unknown, 5)}",
                expected=f"some of {some(list(known), 12)}",
            )
        keep = [i for i, n in enumerate(languages) if self.languages is None or n in self.languages]
        blank = [i + 1 for i in keep if not isinstance(texts[i], str) or is_blank(texts[i])]
        odd = sorted({str(splits[i]) for i in keep if not split_of(str(splits[i]))})
        if blank or odd:
            fault = (
                f"rows {some(list(map(str, blank)), 8)} hold no text" if blank else f"splits are called {some(odd, 5)}"
            )
            raise DataError("task.data.path", f"{file.name}: {fault}", expected="texts, in train, valid (dev) or test")
        documents = [Document(texts[i], source=f"{file.name} row", number=i + 1) for i in keep]
        y, names, kind = read_targets({self.label: [labels[i] for i in keep]}, "label", lambda i: documents[i].place)
        own = [split_of(str(splits[i])) for i in keep]
        return InLanguages(
            documents, own, y, names, kind, [], [str(languages[i]) for i in keep], [str(groups[i]) for i in keep]
        )


@settings
class MadeUpLanguages(LanguagesSource):
    """Sentences of Python's language reference, by chapter, in English and in languages made of it: real text, no translation.

    In each made-up language every letter stands for another one, by a permutation of its own, so that sentences are
    translations word by word. It shows what a method does where nothing real is at hand: real languages are harder.

    Args:
        languages: how many are made up; they are called ``made-1``, ``made-2``...
        chapters: so many of the largest topics are the classes.
        each: at most so many sentences of a chapter.
    """

    languages: Annotated[int, Interval(ge=1, le=50)] = 3
    chapters: Annotated[int, Interval(ge=2, le=30)] = 6
    each: Annotated[int, Interval(ge=10, le=1000)] = 200

    def read(self, target: Target = "auto") -> InLanguages:
        """The sentences: of each chapter seven in ten for training, one for choosing, two for evaluation."""
        found = Chapters(chapters=self.chapters, each=self.each).read(target)
        seen = [0] * len(found.labels)
        own = []
        for label in found.y.tolist():
            own.append("valid" if seen[label] % 10 == 7 else "test" if seen[label] % 10 > 7 else "train")
            seen[label] += 1
        documents, splits, languages, groups, numbers = [], [], [], [], []
        for n in range(self.languages + 1):
            table = letters(n)
            for i, (document, split) in enumerate(zip(found.documents, own, strict=True)):
                documents.append(
                    Document(document.text.translate(table), source=document.source, number=document.number)
                )
                splits.append(split)
                languages.append(f"made-{n}" if n else "english")
                groups.append(str(i))
                numbers.append(i)
        return InLanguages(
            documents, splits, found.y[torch.tensor(numbers)], found.labels, found.kind, found.notes, languages, groups
        )


def letters(n: int) -> dict[int, int]:
    """What each letter becomes in the n-th made-up language; itself in the 0-th."""
    order = Draws(n, ("letters",)).permutation("letters", 26).tolist() if n else list(range(26))
    small, large = string.ascii_lowercase, string.ascii_uppercase
    return {ord(a): ord(alphabet[b]) for alphabet in (small, large) for a, b in zip(alphabet, order, strict=True)}


def in_languages(source: LabelledSource, target: Target = "auto") -> InLanguages:
    """What a source gives, where it gives languages.

    Raises:
        ConfigError: it does not.
    """
    found = source.read(target)
    if not isinstance(found, InLanguages):
        raise ConfigError(
            "task.data",
            f"{type(source).__name__} does not say which language a text is in",
            expected="parallel-text:FILE, or made-up-languages",
        )
    return found


def part_of(found: InLanguages, splits: str, language: str | None) -> Tensor:
    """The numbers of the texts in a split, in one language or in all of them."""
    own = [
        i
        for i, (split, name) in enumerate(zip(found.splits, found.languages, strict=True))
        if split == splits and (language is None or name == language)
    ]
    return torch.tensor(own, dtype=torch.long)


__all__ = ["InLanguages", "LanguagesSource", "MadeUpLanguages", "ParallelText", "in_languages", "letters", "part_of"]
