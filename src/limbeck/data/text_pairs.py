"""Pairs of texts that belong together: a description and its function, a function and the same in another language."""

from __future__ import annotations

import ast
import hashlib
import keyword
import re
import sysconfig
import textwrap
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from limbeck.data.hub import hub_columns, hub_parts
from limbeck.data.items import as_path
from limbeck.data.labelled_text import table_columns
from limbeck.data.names import counted, is_blank, split_of
from limbeck.data.text import grouped
from limbeck.errors import DataError, nearest
from limbeck.grammar.component import Component
from limbeck.grammar.settings import Count, settings

NAMES = {
    "source": {"pair-table": "PairTable", "pair-hf": "PairHub", "python-functions": "PythonFunctions"},
    "source for PairSource": {"csv": "PairTable", "jsonl": "PairTable", "parquet": "PairTable", "hf": "PairHub"},
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Side = Literal["text", "code"]
"""What a query is: a description in words, or code."""


@dataclass(frozen=True)
class Pair:
    """A query and the code that answers it.

    Attributes:
        query, code: the two texts.
        kind: whether the query is text or code.
        languages: programming language of the query (empty for text) and of the code.
        group: the repository or file that the code comes from; empty where that is not known.
        place: where it was read, for messages.
    """

    query: str
    code: str
    kind: Side = "text"
    languages: tuple[str, str] = ("", "")
    group: str = ""
    place: tuple[str, int] = field(default=("", 0), compare=False)


@dataclass
class Pairs:
    """Pairs in three splits, and what is to be said of them."""

    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]
    notes: list[str] = field(default_factory=list)


class PairSource(Component):
    """Base of the sources of pairs: a subclass defines ``read``."""

    kind: ClassVar[str] = "source"
    paths: ClassVar[tuple[str, ...]] = ("path",)

    def read(self) -> tuple[dict[str, list[Pair]], list[str]]:
        """The pairs by split (``train``, ``valid``, ``test``, else ``all``), and notes."""
        raise TypeError(f"{type(self).__name__} must define read")

    def deal(self, valid: float, test: float, again: int = 0) -> Pairs:
        """The pairs in three splits. Those that the data names are kept; others take whole repositories out of train.

        Args:
            valid, test: shares of the pairs that are set aside where the data names none.
            again: deal anew, by another draw for each number above 0.

        Raises:
            DataError: there is too little.
        """
        found, notes = self.read()
        splits = {name: list(found.get(name, [])) for name in ("train", "valid", "test")}
        pool = [*splits["train"], *found.get("all", [])]
        if again:
            shares = [len(splits[n]) / max(1, sum(map(len, splits.values()))) for n in ("valid", "test")]
            valid, test = (own or given for own, given in zip(shares, (valid, test), strict=True))
            pool, splits = [*pool, *splits["valid"], *splits["test"]], {"train": [], "valid": [], "test": []}
        wanted = [(n, share) for n, share in (("test", test), ("valid", valid)) if not splits[n]]
        whole = len(pool)
        order = sorted({self._unit(p) for p in pool}, key=lambda u: hashlib.blake2b(f"{again} {u}".encode()).digest())
        for name, share in wanted:
            taken: set[str] = set()
            size = 0
            members: dict[str, int] = {}
            for p in pool:
                members[self._unit(p)] = members.get(self._unit(p), 0) + 1
            while order and size < share * whole:
                taken.add(order[0])
                size += members.get(order.pop(0), 0)
            splits[name] = [p for p in pool if self._unit(p) in taken]
            pool = [p for p in pool if self._unit(p) not in taken]
            notes.append(
                f"no {name} split: {len(splits[name])} of {whole} pairs set aside (task.{name}_fraction={share:g})"
            )
        splits["train"] = pool
        short = [n for n, pairs in splits.items() if len(pairs) < 2]
        if short:
            raise DataError(
                "task.data",
                f"{' and '.join(short)} would have fewer than two pairs, of {whole}",
                expected="pairs from several repositories, or a split column",
            )
        known = {p.code for p in splits["train"]}
        both = sum(p.code in known for p in splits["test"])
        if both:
            notes.append(f"{both} of {len(splits['test'])} test pairs have code that is a training pair's too")
        return Pairs(splits["train"], splits["valid"], splits["test"], notes)

    def _unit(self, pair: Pair) -> str:
        """What stays together when pairs are dealt."""
        return pair.group or f"{pair.query}\x1f{pair.code}"


@settings
class PairTable(PairSource):
    """Pairs from a table: CSV, TSV, JSON lines or parquet.

    Args:
        path: the file.
        query: the column of what is asked: a description, or code (``query_language``).
        answer: the column of the code that answers.
        other: a column with the same code in another language: then each row is two pairs, description to code and code to
            code; ``null``: none.
        group: the column that names the repository or file of the code; ``null``: none, and no context can be told.
        split: the column that names the split (train, valid, test); ``null``: none.
        label: a column of 0 and 1: rows with 0 are no pairs and left out; ``null``: every row is one.
        language, other_language: programming languages, for the instruction before the code.
        query_language: the language of ``query``, where that is code; empty: it is a description.
        encoding: of text files.
        bad_rows: ``error`` names every row without query or code and stops; ``skip`` leaves them out and says so.
    """

    path: str
    query: str = "query"
    answer: str = "code"
    other: str | None = None
    group: str | None = None
    split: str | None = None
    label: str | None = None
    language: str = "Python"
    other_language: str = ""
    query_language: str = ""
    encoding: str = "utf-8"
    bad_rows: Literal["error", "skip"] = "error"

    def read(self) -> tuple[dict[str, list[Pair]], list[str]]:
        """The rows.

        Raises:
            DataError: no such file or column, rows without query or code, an unknown split.
        """
        told, columns, splits, notes = self._table()
        for name in filter(None, (self.query, self.answer, self.other, self.group, self.split, self.label)):
            if name not in columns:
                close = nearest(name, columns)
                known = f"one of {', '.join(map(str, columns))}"
                raise DataError(
                    told,
                    f"it has no column {name!r}",
                    expected=known,
                    remedy=f"did you mean {close[0]}?" if close else "",
                )
        found: dict[str, list[Pair]] = {}
        bad: list[tuple[str, int]] = []
        left = 0
        kind: Side = "code" if self.query_language else "text"
        for i in range(len(columns[self.answer])):
            place = (f"{told} row", i + 1)
            if self.label is not None and str(columns[self.label][i]) not in ("1", "1.0", "True", "true"):
                left += 1
                continue
            one, two = columns[self.query][i], columns[self.answer][i]
            three = columns[self.other][i] if self.other else None
            texts = [one, two, *([three] if self.other else [])]
            if any(not isinstance(t, str) or is_blank(t) for t in texts):
                bad.append(place)
                continue
            where = splits[i] if splits else "all"
            if self.split is not None:
                where = split_of(str(columns[self.split][i])) or str(columns[self.split][i])
            if where not in ("train", "valid", "test", "all"):
                raise DataError(
                    " ".join(map(str, place)), "unknown split", given=where, expected="train, valid or test"
                )
            group = str(columns[self.group][i]) if self.group else ""
            made = [Pair(one, two, kind, (self.query_language, self.language), group, place)]
            if three is not None:
                made.append(Pair(two, three, "code", (self.language, self.other_language), group, place))
            found.setdefault(where, []).extend(made)
        if bad and self.bad_rows == "error":
            raise DataError(
                told,
                f"{counted(len(bad), 'row')} without query or code: {grouped(bad, 10)}",
                remedy="mend them, or leave them out with task.data.bad_rows=skip",
            )
        if bad:
            notes.append(f"{counted(len(bad), 'row')} without query or code left out: {grouped(bad, 10)}")
        if left:
            notes.append(f"{counted(left, 'row')} whose {self.label} is not 1 left out")
        if not any(found.values()):
            raise DataError(told, "there are no pairs in it")
        return found, notes

    def _table(self) -> tuple[str, Mapping[str, Sequence[Any]], list[str], list[str]]:
        """What the table is called, its columns, the split of each row where files or data sets say it, and notes."""
        file = as_path(self.path, "path")
        if not file.is_file():
            raise DataError("task.data.path", "there is no such file", given=str(file), expected="a table of pairs")
        return file.name, table_columns(file, self.encoding), [], []


@settings
class PairHub(PairTable):
    """Pairs of a data set of the Hugging Face Hub or a folder that ``datasets`` reads; its own splits are kept.

    Args:
        path: the id or folder.
        subset: the data set's own configuration name.
    """

    subset: str | None = None

    def _table(self) -> tuple[str, Mapping[str, Sequence[Any]], list[str], list[str]]:
        parts, notes = hub_parts(self.path, self.subset, {}, "task.data.path")
        columns: dict[str, list[Any]] = {}
        splits: list[str] = []
        for part in parts:
            found = hub_columns(part)
            columns = {n: [*columns.get(n, []), *cells] for n, cells in found.items() if n in columns or not splits}
            splits += ["all" if len(parts) == 1 else part.split] * len(part.rows)
        return self.path, columns, splits, notes


@settings
class PythonFunctions(PairSource):
    """Functions of Python's own standard library, each with the first paragraph of its docstring. On every machine.

    The docstring is taken out of the code; the file that a function stands in counts as its repository. Whole files are set
    aside for evaluation.

    Args:
        files: at most so many files, the largest first.
        shortest: words that a description has at least.
        longest: characters of a function at most.
    """

    files: Annotated[int, Ge(6)] = 80
    shortest: Count = 3
    longest: Count = 2000

    def read(self) -> tuple[dict[str, list[Pair]], list[str]]:
        """The functions, without a split."""
        folder = Path(sysconfig.get_paths()["stdlib"])
        found = _library(folder, self.files, self.shortest, self.longest)
        if not found:
            raise DataError("task.data", "Python's library is not there as source", given=str(folder))
        return {"all": list(found)}, []


@lru_cache(maxsize=4)
def _library(folder: Path, files: int, shortest: int, longest: int) -> tuple[Pair, ...]:
    """Different functions of the largest files, which are parsed once a process."""
    paths = sorted(folder.glob("*.py"), key=lambda p: (-p.stat().st_size, p.name))[:files]
    found = [pair for path in paths for pair in functions_of(path, shortest, longest)]
    return tuple({p.code: p for p in found}.values())


def functions_of(path: Path, shortest: int = 3, longest: int = 2000) -> list[Pair]:
    """The functions of a Python file that have a docstring, as pairs of its first paragraph and the code without it.

    Args:
        path: the file; one that cannot be parsed has none.
        shortest: words of a description at least.
        longest: characters of the code at most.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return []
    lines, found = text.splitlines(), []
    for node in _statements(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        doc = ast.get_docstring(node)
        if doc is None:
            continue
        said = " ".join(doc.split("\n\n")[0].split())
        first = node.body[0]
        kept = [*lines[node.lineno - 1 : first.lineno - 1], *lines[first.end_lineno : node.end_lineno]]
        code = without_indent(kept)
        if len(said.split()) >= shortest and len(code) <= longest:
            found.append(Pair(said, code, "text", ("", "Python"), path.stem, (f"{path.name} line", node.lineno)))
    return found


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """What `ast.walk` gives, in its order, without what lies inside of expressions: there is no function among it."""
    todo = deque([tree])
    while todo:
        node = todo.popleft()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                todo.extend(inner)


def without_indent(lines: Sequence[str]) -> str:
    """Lines without the blanks that all of them begin with."""
    return textwrap.dedent("\n".join(lines)).strip("\n")


WORD = re.compile(r"[A-Za-z_]\w*")
"""An identifier, or a word."""

OF_LANGUAGES = """self cls new public private static final void int long float double string bool boolean char var let const
function func this null true false throw throws catch try switch case default do end then"""
KEPT = frozenset(keyword.kwlist) | frozenset(OF_LANGUAGES.split())
"""Words of programming languages that stay as they are."""


def renamed(code: str, words: Sequence[str], choose: Callable[[int], int]) -> str:
    """Code in which every identifier that occurs twice or more has become another word, the same throughout.

    Args:
        code: the text.
        words: what names are replaced by.
        choose: draws a number below n.

    Example:
        >>> renamed("def area(r): return r * r", ["x"], lambda n: 0)
        'def area(x): return x * x'
    """
    seen = Counter(w for w in WORD.findall(code) if w.lower() not in KEPT)
    new = {w: words[choose(len(words))] for w, n in seen.items() if n > 1}
    return WORD.sub(lambda m: new.get(m[0], m[0]), code) if new else code


__all__ = ["Pair", "PairSource", "PairTable", "Pairs", "PythonFunctions", "functions_of", "renamed"]
