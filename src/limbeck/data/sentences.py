"""Texts for sentence embedders: single texts, pairs with or without a score, triples of query, positive and negative."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from limbeck.data.cells import is_missing
from limbeck.data.labelled_text import TABLES, table_columns
from limbeck.data.names import counted, is_blank, split_of
from limbeck.data.text import grouped
from limbeck.data.text_files import find
from limbeck.data.text_pairs import PythonFunctions
from limbeck.errors import DataError, nearest
from limbeck.grammar.component import Component
from limbeck.grammar.random import key_of
from limbeck.grammar.settings import Count, settings

NAMES = {"source": {"sentence-table": "SentenceTable", "described-functions": "DescribedFunctions"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

FIRST = ("sentence1", "query", "anchor", "question", "premise", "text1", "sentence", "text")
"""What the column of the first text is usually called."""

SECOND = ("sentence2", "positive", "answer", "document", "passage", "hypothesis", "code", "text2")
NEGATIVE = ("negative", "hard_negative", "negative_1")
SCORE = ("score", "similarity", "similarity_score", "label")

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        texts: one text; two that are compared; or a query, a text that answers it, and one that does not.
        score: how alike the two are, in the data's own units; ``None``: they belong together.
        group: what must not be divided between splits; empty: the row itself.
        place: where it was read, for messages.
    """

    texts: tuple[str, ...]
    score: float | None = None
    group: str = ""
    place: tuple[str, int] = field(default=("", 0), compare=False)


@dataclass
class Examples:
    """Rows in three splits, and what is to be said of them."""

    train: list[Example]
    valid: list[Example]
    test: list[Example]
    notes: list[str] = field(default_factory=list)


class SentenceSource(Component):
    """Base of the sources of sentences: a subclass defines ``read``."""

    kind: ClassVar[str] = "source"
    paths: ClassVar[tuple[str, ...]] = ("path", "valid", "test")

    def read(self) -> tuple[dict[str, list[Example]], list[str]]:
        """The rows by split (``train``, ``valid``, ``test``, else ``all``), and notes."""
        raise TypeError(f"{type(self).__name__} must define read")

    def deal(self, valid: float, test: float, again: int = 0) -> Examples:
        """The rows in three splits: those that the data name, else shares of the training rows, whole groups at a time.

        Args:
            valid, test: shares that are set aside where the data name no such split.
            again: above 0, divide all rows anew, by another draw for each number.

        Raises:
            DataError: a split has fewer than two rows.
        """
        found, notes = self.read()
        splits = {name: list(found.get(name, [])) for name in SPLITS}
        pool = [*splits["train"], *found.get("all", [])]
        if again:
            pool, splits = [*pool, *splits["valid"], *splits["test"]], {name: [] for name in SPLITS}
        members: dict[str, list[Example]] = {}
        for e in pool:
            members.setdefault(e.group or "\x1f".join(e.texts), []).append(e)
        order, whole = sorted(members, key=lambda unit: key_of("sentences", again, unit)), len(pool)
        for name, share in (("test", test), ("valid", valid)):
            if splits[name]:
                continue
            while order and len(splits[name]) < share * whole:
                splits[name] += members.pop(order.pop(0))
            notes.append(
                f"no {name} split: {len(splits[name])} of {whole} rows set aside (task.{name}_fraction={share:g})"
            )
        splits["train"] = [e for own in members.values() for e in own]
        short = [name for name in SPLITS if len(splits[name]) < 2]
        if short:
            raise DataError(
                "task.data",
                f"{' and '.join(short)} would have fewer than two rows, of {whole}",
                expected="more rows, or several groups, or a column of splits",
            )
        return Examples(splits["train"], splits["valid"], splits["test"], notes)


@settings
class SentenceTable(SentenceSource):
    """Texts, pairs or triples from tables: CSV, TSV, JSON lines or parquet.

    Args:
        path: a file; or a folder of such files, of which those called train, valid (dev, validation) and test are the splits.
        valid: a further file, for choosing; ``null``: what ``path`` names so, or a share of the training rows.
        test: a further file, for evaluation; likewise.
        first: the column of the text, or of the query; by default the first of ``sentence1``, ``query``, ``anchor``,
            ``question``, ``sentence``, ``text``.
        second: the column of the text that it is compared to; by default ``sentence2``, ``positive``, ``answer``,
            ``document``, ``code`` where there is one; ``none``: single texts.
        negative: the column of a text that does not answer the query; by default ``negative`` where there is one; ``none``.
        score: the column that says how alike the two are (0 and 1, or any numbers); by default ``score``, ``similarity``,
            ``label`` where there is one; ``none``: the two of every row belong together.
        group: the column of what must not be divided between splits (documents, repositories); ``null``: none.
        split: the column that names the split (train, valid, test); ``null``: none.
        encoding: of text files.
        bad_rows: ``error`` names every row that lacks a text or a score and stops; ``skip`` leaves them out and says so.
    """

    path: str
    valid: str | None = None
    test: str | None = None
    first: str | None = None
    second: str | None = None
    negative: str | None = None
    score: str | None = None
    group: str | None = None
    split: str | None = None
    encoding: str = "utf-8"
    bad_rows: Literal["error", "skip"] = "error"

    def read(self) -> tuple[dict[str, list[Example]], list[str]]:
        """The rows.

        Raises:
            DataError: no such file or column, rows without text or score, an unknown split, tables of different kinds.
        """
        files, notes = find(self.path, TABLES)
        for name, path in (("valid", self.valid), ("test", self.test)):
            if path is not None:
                files = [("train" if s == "all" else s, n, file) for s, n, file in files if s != name]
                files += [(name, n, file) for _, n, file in find(path, TABLES)[0]]
        found: dict[str, list[Example]] = {}
        bad: dict[str, list[tuple[str, int]]] = {}
        kinds: dict[tuple[int, bool], str] = {}
        for own, name, file in files:
            columns = table_columns(file, self.encoding)
            texts, score = self._columns(columns, name)
            kinds.setdefault((len(texts), score is not None), name)
            for i in range(len(columns[texts[0]])):
                place, cells = (f"{name} row", i + 1), [columns[c][i] for c in texts]
                fault = next(
                    (f"{c!r} holds no text" for c, t in zip(texts, cells, strict=True) if _empty(t)), ""
                ) or self._fault(columns, score, i)
                if fault:
                    bad.setdefault(fault, []).append(place)
                    continue
                made = Example(
                    tuple(cells),
                    None if score is None else float(columns[score][i]),
                    str(columns[self.group][i]) if self.group else "",
                    place,
                )
                found.setdefault(self._split(columns, i, place) or own, []).append(made)
        if len(kinds) > 1:
            raise DataError(
                "task.data",
                f"{' and '.join(kinds.values())} have other columns",
                expected="the same columns in all files",
            )
        if bad:
            said = "; ".join(f"{fault}: {grouped(places, 5)}" for fault, places in bad.items())
            count = counted(sum(map(len, bad.values())), "row")
            if self.bad_rows == "error":
                raise DataError(
                    "task.data",
                    f"{count} cannot be read: {said}",
                    remedy="mend them, leave them out with task.data.bad_rows=skip, or name other columns",
                )
            notes.append(f"{count} left out: {said}")
        if not any(found.values()):
            raise DataError("task.data.path", "there are no texts in it", given=self.path)
        return found, notes

    def _columns(self, columns: Mapping[str, Sequence[Any]], file: str) -> tuple[list[str], str | None]:
        """The columns of the texts, and of the score."""

        def named(argument: str, given: str | None, usual: Sequence[str], needed: bool = False) -> str | None:
            if given == "none" and not needed:
                return None
            found = given if given in columns else None if given else next((n for n in usual if n in columns), None)
            if found is None and (given or needed):
                close = nearest(given, list(columns)) if given else []
                raise DataError(
                    f"task.data.{argument}",
                    f"{file} has no column " + (repr(given) if given else f"called {', '.join(usual)}"),
                    expected=f"one of {', '.join(map(repr, list(columns)[:12]))}",
                    remedy=f"did you mean {close[0]!r}?" if close else f"name it: task.data.{argument}=NAME",
                )
            return found

        first = named("first", self.first, FIRST, True)
        assert first is not None
        second = named("second", self.second, [n for n in SECOND if n != first])
        negative = named("negative", self.negative, NEGATIVE) if second else None
        score = named("score", self.score, SCORE) if second and not negative else None
        for argument, column in (("group", self.group), ("split", self.split)):
            named(argument, column, ())
        return [c for c in (first, second, negative) if c], score

    @staticmethod
    def _fault(columns: Mapping[str, Sequence[Any]], score: str | None, i: int) -> str:
        if score is None:
            return ""
        cell = columns[score][i]
        try:
            number = float("nan") if is_missing(cell) else float(cell)
        except (TypeError, ValueError):
            number = float("nan")
        return "" if math.isfinite(number) else f"{score!r} holds no number"

    def _split(self, columns: Mapping[str, Sequence[Any]], i: int, place: tuple[str, int]) -> str:
        if self.split is None:
            return ""
        said = str(columns[self.split][i])
        if (split_of(said) or said) not in SPLITS:
            raise DataError(" ".join(map(str, place)), "unknown split", given=said, expected="train, valid or test")
        return split_of(said) or said


def _empty(cell: Any) -> bool:
    return not isinstance(cell, str) or is_blank(cell)


@settings
class DescribedFunctions(SentenceSource):
    """Descriptions and functions of Python's own standard library, pairs that belong together. On every machine.

    Whole files are set aside for evaluation.

    Args:
        files: at most so many files, the largest first.
        longest: characters of a function at most.
    """

    files: Annotated[int, Ge(6)] = 80
    longest: Count = 600

    def read(self) -> tuple[dict[str, list[Example]], list[str]]:
        """The pairs, without a split."""
        found, notes = PythonFunctions(self.files, longest=self.longest).read()
        return {"all": [Example((p.query, p.code), None, p.group, p.place) for p in found["all"]]}, notes


__all__ = ["DescribedFunctions", "Example", "Examples", "SentenceSource", "SentenceTable"]
