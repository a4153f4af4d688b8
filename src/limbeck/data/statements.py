"""Statements about concepts, as dictionaries and docstrings have them; and corrupted copies, for training critics."""

from __future__ import annotations

import os
import random
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, get_args

from limbeck.data.items import as_path
from limbeck.data.labelled_text import TABLES, table_columns
from limbeck.data.names import some, split_of
from limbeck.data.text import Document, TextSource, grouped
from limbeck.data.text_files import find
from limbeck.errors import DataError, nearest
from limbeck.grammar.random import key_of

NAMES = {
    "source": {"glosses": "Glosses", "python-uses": "PythonUses"},
    "source for StatementSource": {"csv": "Glosses", "jsonl": "Glosses", "parquet": "Glosses"},
}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

ADVERBS = ("", "Generally,", "Typically,", "Usually,")
"""What a general statement may begin with."""

Corruption = Literal["swap", "shuffle", "replace", "cut", "repeat"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)


@dataclass(frozen=True, slots=True)
class Statement(Document):
    """A sentence that says something of a concept.

    Attributes:
        concept: what it is about, as it stands in the sentence (``steam chest``).
        head: how it begins, up to what is said of the concept (``A steam chest is``).
        article: ``a``, ``an``, or nothing for what is not counted.
        related: a concept that belongs to it (``chamber``); may be empty.
        spelt: the concept keeps its spelling at the beginning of a sentence, as a name of code does.
    """

    concept: str = ""
    head: str = ""
    article: str = ""
    related: str = ""
    spelt: bool = False

    @property
    def said(self) -> list[str]:
        """The words after the head, without the full stop."""
        return self.text.removeprefix(self.head).strip().rstrip(".").split()


def begun(adverb: str, subject: str, relation: str, spelt: bool = False) -> str:
    """The beginning of a statement: ``Usually, a bird can``; ``spelt``: without a capital where it stands first.

    Example:
        >>> begun("", "a bird", "can"), begun("Usually,", "a bird", "can")
        ('A bird can', 'Usually, a bird can')
    """
    if not adverb and not spelt:
        subject = subject[:1].upper() + subject[1:]
    return f"{adverb} {subject} {relation}".strip()


def corrupted(statement: Statement, how: Corruption, others: Sequence[Statement]) -> str:
    """A statement that is none: the same one in every run.

    Args:
        statement: a real one.
        how: ``swap``: what is said of another concept; ``shuffle``: its words in another order; ``replace``: a third of
            them drawn from other statements; ``cut``: it breaks off; ``repeat``: some words stand there three times.
        others: where words and swapped statements are drawn from.

    Example:
        >>> s = Statement("A bird is an animal that flies.", concept="bird", head="A bird is")
        >>> corrupted(s, "cut", [s])
        'A bird is an.'
    """
    draw = random.Random(key_of("corrupted", how, statement.key))
    words = list(statement.said)
    if how == "swap":
        words = list(_other(statement, others, draw).said) or words
    elif how == "shuffle":
        for _ in range(8):  # of few words many orders are the old one
            draw.shuffle(words)
            if words != statement.said:
                break
    elif how == "replace":
        for i in draw.sample(range(len(words)), -(-len(words) // 3)):
            words[i] = draw.choice(_other(statement, others, draw).said or words)
    elif how == "cut":
        words = words[: max(1, int(len(words) * draw.uniform(0.3, 0.6)))]
    else:
        size = min(len(words), draw.randint(1, 3))
        at = draw.randint(0, len(words) - size) if words else 0
        words[at : at + size] = words[at : at + size] * 3
    return f"{statement.head} {' '.join(words)}."


def _other(statement: Statement, others: Sequence[Statement], draw: random.Random) -> Statement:
    found = draw.choice(others)
    return found if found.key != statement.key else others[(others.index(found) + 1) % len(others)]


def _varied(text: str) -> str:
    """Which adverb a statement begins with: by its own content."""
    return ADVERBS[key_of("adverb", text) % len(ADVERBS)]


class StatementSource(TextSource):
    """Base of the sources of statements: a subclass defines ``read``, which gives `Statement` documents.

    Attributes:
        relations: how its statements begin what they say, as ``singular/plural``.
    """

    relations: ClassVar[tuple[str, ...]] = ()


class Glosses(StatementSource):
    """Entries of a dictionary as statements: ``A village is a settlement smaller than a town.``

    A concept has an article where its gloss has one. What a gloss says in brackets, and after a semicolon, is left out.

    Args:
        path: a ``.parquet``, ``.csv``, ``.tsv`` or ``.jsonl`` table, or a folder of such, of which those called train,
            valid and test are the splits; a column ``split`` says it of single rows.
        concept: the column of the concept; by default the first of ``concept``, ``lemma``, ``word`` and ``term``.
        gloss: the column of what it is; by default the first of ``gloss``, ``definition`` and ``text``.
        related: the column of a related concept; by default ``hypernym`` where there is one.
        longest: words of a gloss, at most; longer ones are left out.
        varied: begin three in four statements with ``Generally``, ``Typically`` or ``Usually``, so that a model that
            learns from nothing else knows such beginnings.
        encoding: of text files.
    """

    relations = ("is/are",)
    CONCEPTS: ClassVar[tuple[str, ...]] = ("concept", "lemma", "word", "term")
    GLOSSES: ClassVar[tuple[str, ...]] = ("gloss", "definition", "text")

    def __init__(
        self,
        path: str,
        concept: str | None = None,
        gloss: str | None = None,
        related: str | None = None,
        longest: int = 20,
        varied: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        if longest < 3:
            raise ValueError("longest must be 3 or more words")
        self.path, self.concept, self.gloss, self.related = path, concept, gloss, related
        self.longest, self.varied, self.encoding = longest, varied, encoding

    def read(self) -> dict[str, list[Document]]:
        """The statements by split.

        Raises:
            DataError: a file or a column is not there, or no row gives a statement.
        """
        as_path(self.path, "task.data.path")
        files, notes = find(self.path, TABLES)
        found: dict[str, list[Document]] = {}
        bad: list[tuple[str, int]] = []
        for split, name, file in files:
            columns = table_columns(file, self.encoding)
            concept = self._column(columns, "concept", self.concept, self.CONCEPTS, name)
            gloss = self._column(columns, "gloss", self.gloss, self.GLOSSES, name)
            related = self.related or ("hypernym" if "hypernym" in columns else "")
            if self.related:
                self._column(columns, "related", self.related, (), name)
            for number, (what, said) in enumerate(zip(columns[concept], columns[gloss], strict=True), 1):
                made = self._made(what, said, columns[related][number - 1] if related else "", f"{name} row", number)
                if made is None:
                    bad.append((f"{name} row", number))
                    continue
                own = split_of(str(columns["split"][number - 1])) if "split" in columns else ""
                found.setdefault(own or split, []).append(made)
        if not found:
            raise DataError("task.data.path", "no row gives a statement", given=self.path)
        if bad:
            notes = [*notes, f"{len(bad)} rows give no statement of 2 to {self.longest} words: {grouped(bad, 5)}"]
        self.notes = notes
        if "train" in found and "all" in found:
            found["train"] += found.pop("all")
        return found

    def _column(self, columns: object, setting: str, given: str | None, usual: Sequence[str], file: str) -> str:
        known = list(columns)  # type: ignore[call-overload]
        name = given if given in known else None if given else next((n for n in usual if n in known), None)
        if name is None:
            close = nearest(given, known) if given else []
            raise DataError(
                f"task.data.{setting}",
                f"{file} has no column " + (repr(given) if given else f"called {', '.join(usual)}"),
                expected=f"one of {some([repr(n) for n in known], 12)}",
                remedy=f"did you mean {close[0]!r}?" if close else f"name it: task.data.{setting}=NAME",
            )
        return name

    def _made(self, concept: object, gloss: object, related: object, source: str, number: int) -> Statement | None:
        if not isinstance(concept, str) or not isinstance(gloss, str):
            return None
        concept = " ".join(concept.replace("_", " ").split())
        said = " ".join(re.sub(r"\([^()]*\)", " ", gloss).split(";")[0].split()).strip(" .,:")
        if not concept or not 2 <= len(said.split()) <= self.longest:
            return None
        counted = re.match(r"(an?|one|someone|any)\b", said) is not None
        article = "" if not counted else "an" if concept[0].lower() in "aeiou" else "a"
        head = begun(_varied(said) if self.varied else "", f"{article} {concept}".strip(), "is")
        more = related.strip() if isinstance(related, str) else ""
        return Statement(f"{head} {said}.", "", (), source, number, concept, head, article, more)


class PythonUses(StatementSource):
    """What functions of Python's standard library are for, by their docstrings: on every machine, real English.

    ``shuffle is used to shuffle list x in place.`` A docstring gives a statement where its first line begins with a verb
    in the imperative, as the language's style guide asks. The library's files are read, not run.

    Args:
        modules: so many of the library's modules are read, those with most text first.
        longest: words of what is said, at most.
        varied: begin three in four statements with ``Generally``, ``Typically`` or ``Usually``.
    """

    relations = ("is used to/are used to",)

    def __init__(self, modules: int = 400, longest: int = 20, varied: bool = True) -> None:
        if modules < 1 or longest < 3:
            raise ValueError("modules must be 1 or more, longest 3 or more words")
        self.modules, self.longest, self.varied = modules, longest, varied

    def read(self) -> dict[str, list[Document]]:
        """The statements.

        Raises:
            DataError: this Python came without the sources of its library.
        """
        found: dict[str, Statement] = {}
        for module, name, line in _library(self.modules):
            made = self._made(name, line, module)
            if made is not None:
                found.setdefault(made.text.lower(), made)
        if not found:
            raise DataError(
                "data",
                "this Python was packaged without its library's sources",
                remedy="name a table: data=glosses:FILE",
            )
        return {"all": list(found.values())}

    def _made(self, name: str, line: str, module: str) -> Statement | None:
        said = " ".join(line.split()).rstrip(" .:")
        words = said.split()
        verb = words[0].lower() if words else ""
        plain = re.fullmatch(r"[A-Za-z0-9_/() ,'\-]+", said) is not None
        if not plain or not 3 <= len(words) <= self.longest or verb not in VERBS or len(name) < 3:
            return None
        said = verb + said[len(verb) :]
        head = begun(_varied(name + said) if self.varied else "", name, "is used to", spelt=True)
        return Statement(f"{head} {said}.", "", (), module, 0, name, head, spelt=True)


_VERBS = (
    "return create get set make add remove convert parse read write open close find check test compute calculate "
    "determine print format send receive start stop run call execute load save store copy move delete split join insert "
    "append extract handle process wait raise try generate build construct initialize register unregister encode decode "
    "compare sort replace update change clear reset list search match look turn install show display dump yield restore "
    "retrieve define represent generate apply put push pop draw issue quote unquote escape unescape select "
    "translate validate verify walk wrap flush seek shutdown connect bind accept listen fetch post login"
)
VERBS = frozenset(_VERBS.split())
"""Verbs with which docstrings say what a function does."""


_DOCSTRING = re.compile(
    r'^[ ]*(?:async )?def ([a-zA-Z]\w*)\([^)]*\)[^:\n]*:[ ]*\n\s*[rR]?"""[ ]*\n?(.+?)(?:\n\s*\n|""")',
    re.MULTILINE | re.DOTALL,
)
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "config"}


@lru_cache(maxsize=4)
def _library(modules: int) -> tuple[tuple[str, str, str], ...]:
    """Public functions of the largest modules, (module, name, first paragraph of the docstring); nothing is run or parsed."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in _LEFT_OUT]  # all that is installed lies in one of them: thousands
        files += [Path(place, n) for n in names if n.endswith(".py")]
    files = sorted(files, key=lambda p: (-p.stat().st_size, str(p)))[:modules]
    texts = [(p.stem, p.read_text(encoding="utf-8", errors="replace")) for p in files]
    return tuple((stem, m[1], m[2]) for stem, text in texts for m in _DOCSTRING.finditer(text))


__all__ = [
    "ADVERBS",
    "CORRUPTIONS",
    "Corruption",
    "Glosses",
    "PythonUses",
    "Statement",
    "StatementSource",
    "begun",
    "corrupted",
]
