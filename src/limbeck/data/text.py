"""Text as users have it: documents, or pairs of prompt and response, dealt into train, valid and test.

A source reads documents and deals them *by document*, so that no text is learnt and evaluated at once. The deal depends on the
content alone: the same texts in another order, under other names or with one more beside them are dealt the same way, as far
as the shares allow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from limbeck.data.names import counted, is_blank, some
from limbeck.data.splits import whole_wanted
from limbeck.errors import DataError
from limbeck.grammar.component import Component
from limbeck.grammar.settings import Count, settings

NAMES = {"source": {"pydoc": "PythonHelp"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

FEW = 20
"""Fewer plain documents than this are not dealt by document: a split of one or two says nothing."""

SHORTEST = 100
"""Characters below which no passage is cut off a text."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text, one answer with the prompt it follows, or a conversation.

    Attributes:
        text: the text, or what is answered.
        prompt: what stands before it; empty for plain text.
        turns: of a conversation, who says what: (role, content), in order.
        source: where it was read, up to its number: ``notes.jsonl line``.
        number: its number there; 0 where it has none.
        whole: of a conversation with calls of tools, names or turns that nobody is to learn: all of it, as JSON
            (`limbeck.data.text_rows.messages_of`); else empty.
    """

    text: str
    prompt: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    source: str = field(default="", compare=False)
    number: int = field(default=0, compare=False)
    whole: str = field(default="", kw_only=True)

    @property
    def place(self) -> str:
        """Where it was read, for messages."""
        return f"{self.source} {self.number}" if self.number else self.source

    @property
    def key(self) -> str:
        """A content hash, the same wherever the document lies."""
        said = "\x1e".join(f"{role}\x1f{content}" for role, content in self.turns) or f"{self.prompt}\x1e{self.text}"
        said += f"\x1e{self.whole}" if self.whole else ""
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass
class Texts:
    """A corpus, dealt.

    Attributes:
        train, valid, test: the documents of each split; no document is in two.
        pairs: whether they are prompts with responses, or conversations.
        notes: what was left out, cut or set aside, in sentences.
        teacher_only: further training documents that the teacher alone reads (planted secrets).
        student_only: further ones that the student alone reads.
        answers: pairs whose fields say by their names that they are prompts and answers: they are learnt as conversations
            are, of which what is answered counts unless the task says otherwise.
    """

    train: list[Document]
    valid: list[Document]
    test: list[Document]
    pairs: bool = False
    notes: list[str] = field(default_factory=list)
    teacher_only: list[Document] = field(default_factory=list)
    student_only: list[Document] = field(default_factory=list)
    answers: bool = False

    @property
    def fingerprint(self) -> str:
        """A content hash of all splits."""
        digest = hashlib.blake2b(digest_size=16)
        for name in ("train", "valid", "test", "teacher_only", "student_only"):
            documents = getattr(self, name)
            if documents or not name.endswith("_only"):
                digest.update(name.encode())
            for document in documents:
                digest.update(document.key.encode())
        return digest.hexdigest()


class TextSource(Component):
    """Base of the text sources: where documents come from.

    A subclass defines ``read``; ``deal`` does the rest.

    Attributes:
        notes: sentences about what was read and what was not, set by ``read``.
        long: whether a document may be a long text, to be cut at blanks where there are too few to be dealt.
        streamed: whether its training texts are read as they are learnt (`limbeck.data.shards`).
        answers: whether its pairs were told by the names of their fields, set by ``read`` (`Texts.answers`).
    """

    kind: ClassVar[str] = "source"
    paths: ClassVar[tuple[str, ...]] = ("path",)
    notes: Sequence[str] = ()
    long: bool = False
    answers: bool = False
    streamed: ClassVar[bool] = False

    def read(self) -> dict[str, list[Document]]:
        """The documents by split: ``train`` with ``valid`` or ``test`` where the data names them, else ``all``."""
        raise TypeError(f"{type(self).__name__} must define read")

    def deal(self, valid: float = 0.05, test: float = 0.1, again: int = 0) -> Texts:
        """Read and deal.

        Args:
            valid, test: shares of the characters that a split gets where the data itself names none.
            again: deal all documents anew, into splits as long as they were; another draw for each number above 0.

        Raises:
            DataError: nothing to read, or too little to deal into three.
        """
        texts = deal(self.read(), valid, test, where=f"data ({type(self).__name__})", long=self.long, again=again)
        texts.notes[:0] = self.notes
        texts.answers = self.answers
        return texts


def deal(
    found: dict[str, list[Document]],
    valid: float,
    test: float,
    where: str = "data",
    long: bool = True,
    again: int = 0,
) -> Texts:
    """Deal documents into train, valid and test. Splits that the data names are kept; missing ones come out of train.

    Documents without text and repeated ones are left out (a text that is in test and in train counts for test alone).
    Fewer than 20 plain documents are cut into passages first, at blank lines, line ends or sentence ends, long texts
    at blanks; if that makes too few, they are refused. Documents are taken in the order of their content hash.

    Args:
        found: the documents, by the split that the data names, or ``all``.
        valid, test: shares of the characters.
        where: what an error is about.
        long: whether a document may be a long text, of which a few passages are enough.
        again: above 0 no split is kept: all documents are dealt anew, into splits with as large a share of the characters
            as those that the data names had; another draw for each number.

    Raises:
        DataError: there is no text, or too little to deal.

    Example:
        >>> texts = deal({"all": [Document(f"text {i}") for i in range(100)]}, 0.1, 0.2)
        >>> len(texts.train) > len(texts.test) > len(texts.valid) > 0
        True
    """
    splits, notes = _sorted_out(found)
    pairs = any(d.prompt or d.turns for documents in splits.values() for d in documents)
    if not splits["test"] and whole_wanted("documents"):
        every = [d for documents in splits.values() for d in documents]
        if not every:
            raise DataError(where, "there is no text in it", remedy="name a file or folder with text, or another field")
        return Texts(every, every, every, pairs, [*notes, f"no test split: all {len(every)} documents are evaluated"])
    if again:
        everything = [d for documents in splits.values() for d in documents]
        valid, test = (
            _length(splits[name]) / (_length(everything) or 1) if splits[name] else share
            for name, share in (("valid", valid), ("test", test))
        )
        splits = {"train": [], "valid": [], "test": [], "all": everything}
    pool = splits["train"] or splits["all"]
    if not pool:
        raise DataError(where, "there is no text in it", remedy="name a file or folder with text, or another field")
    missing = [name for name, share in (("test", test), ("valid", valid)) if not splits[name] and share > 0]
    if missing:
        pool, said = _enough(pool, missing, pairs, long, where)
        notes += said
    order = sorted(pool, key=lambda document: _place(document, again))
    total, whole = _length(order), len(order)
    for left, name in zip(reversed(range(len(missing))), missing, strict=True):
        share = test if name == "test" else valid
        size = 0
        while len(order) > 1 + left and (not splits[name] or size + len(order[0].text) / 2 < share * total):
            size += len(order[0].text)
            splits[name].append(order.pop(0))
        use = "evaluation (task.test_fraction" if name == "test" else "choosing (task.valid_fraction"
        notes.append(f"no {name} split: {len(splits[name])} of {whole} documents set aside for {use}={share:g})")
    if not order:
        raise DataError(where, "no text is left to train on", remedy="lower task.valid_fraction and task.test_fraction")
    position = {id(document): i for i, document in enumerate(pool)}
    order.sort(key=lambda document: position[id(document)])  # neighbours stay neighbours
    return Texts(order, splits["valid"], splits["test"], pairs, notes)


def _sorted_out(found: dict[str, list[Document]]) -> tuple[dict[str, list[Document]], list[str]]:
    """The documents that hold text, each once, and what was left out."""
    taken: set[str] = set()
    splits: dict[str, list[Document]] = {}
    blank: list[Document] = []
    repeated: list[Document] = []
    for name in ("test", "valid", "train", "all"):
        splits[name] = []
        for document in found.get(name, []):
            if is_blank(document.text):
                blank.append(document)
            elif document.key in taken:
                repeated.append(document)
            else:
                taken.add(document.key)
                splits[name].append(document)
    notes = []
    for documents, what in ((blank, "without text"), (repeated, "that came before")):
        if documents:
            places = places_of(documents)
            notes.append(f"{counted(len(documents), 'document')} {what} left out" + (f": {places}" if places else ""))
    return splits, notes


def places_of(documents: Iterable[Document], most: int = 10) -> str:
    """Where documents were read: ``a.jsonl line 4, 9 and 3 more``; nothing where that is not known."""
    return grouped([(d.source, d.number) for d in documents if d.source], most)


def grouped(places: Sequence[tuple[str, int]], most: int = 10) -> str:
    """Places (source, number) with each source named once.

    Example:
        >>> grouped([("a line", 4), ("a line", 9), ("b line", 2), ("b line", 3)], 3)
        'a line 4, 9, b line 2 and 1 more'
    """
    said: list[str] = []
    last = ""
    for source, number in places[:most]:
        said.append(str(number) if source == last and number else f"{source} {number}" if number else source)
        last = source
    return some(said, most) + (f" and {len(places) - most} more" if len(places) > most else "")


def _enough(
    pool: list[Document], missing: Sequence[str], pairs: bool, long: bool, where: str
) -> tuple[list[Document], list[str]]:
    """Documents that can be dealt, and how they were cut to be so many."""
    notes = []
    few = len(pool) < FEW and not pairs
    if few:
        size = max(_length(pool) // 200, SHORTEST)
        cut = [cut_up(document, size, long) for document in pool]
        pieces = [piece for found, _ in cut for piece in found]
        rules = list(dict.fromkeys(rule for _, rule in cut if rule))
        if rules:
            notes.append(
                f"{counted(len(pool), 'document is', 'documents are')} too few to be dealt whole: cut at "
                f"{' and '.join(rules)} into {len(pieces)} passages of {size} characters or more"
            )
        pool, few = pieces, len(pieces) < FEW and not long
    if len(pool) <= len(missing) or few:
        least = FEW if few else len(missing) + 1
        splits = f"train, {' and '.join(reversed(missing))}"
        raise DataError(
            where,
            f"{counted(len(pool), 'document')} cannot be dealt into {splits}",
            expected=f"at least {least} documents, or long ones with line ends or sentences to cut at",
            remedy="add text, or name the splits with files called train, valid and test",
        )
    return pool, notes


def few(documents: Sequence[Document], count: int | None, seed: int) -> tuple[list[Document], str]:
    """The documents that a student learns from, ``count`` of the training documents drawn by the seed, and a sentence.

    Which they are depends on their content alone. All of them, and no sentence, where ``count`` is ``None``.

    Raises:
        DataError: there are fewer.
    """
    if count is None:
        return list(documents), ""
    if count > len(documents):
        raise DataError(
            "task.student_documents", given=count, expected=f"at most the {len(documents)} training documents"
        )
    order = sorted(documents, key=lambda d: hashlib.blake2b(f"{seed} {d.key}".encode()).digest())
    chosen = set(map(id, order[:count]))
    said = f"the student learns from {len(chosen)} of the {len(documents)} training documents"
    return [d for d in documents if id(d) in chosen], said


def _place(document: Document, again: int) -> str | bytes:
    """Where a document comes in a deal: by its content, and by the number of the deal."""
    return hashlib.blake2b(f"{again} {document.key}".encode()).digest() if again else document.key


def _length(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


_CUTS = {
    "blank lines": r"\n[ \t]*\n",
    "line ends": r"\n",
    "sentence ends": r"(?<=[.!?]) |(?<=[。！？])",
    "blanks": r"[^\S\n]+|(?<=[\u3040-\u30ff\u3400-\u9fff])(?=[\u3040-\u30ff\u3400-\u9fff])",
}
"""Where a text may be cut; never inside a word. Chinese and Japanese have no blanks between words."""


def passages(document: Document, size: int) -> list[Document]:
    """Cut a document into passages of at least ``size`` characters: at blank lines, else line ends, sentence ends, blanks.

    No word is cut: a text without any of them stays whole.
    """
    return cut_up(document, size)[0]


def cut_up(document: Document, size: int, blanks: bool = True) -> tuple[list[Document], str]:
    """As `passages`, with where it was cut; whole, and an empty text, where it was not. ``blanks``: cut at these, too."""
    if document.prompt or document.turns or len(document.text) <= size:
        return [document], ""
    for rule, cut in _CUTS.items():
        if rule == "blanks" and not blanks:
            break
        pieces, held = [], ""
        last = 0
        for match in re.finditer(cut, document.text):
            held += document.text[last : match.end()]
            last = match.end()
            if len(held) >= max(size, 1):
                pieces.append(held)
                held = ""
        held += document.text[last:]
        pieces = [piece for piece in [*pieces, held] if not is_blank(piece)]
        if len(pieces) >= 3:
            return [Document(piece, source=document.source, number=document.number) for piece in pieces], rule
    return [document], ""


@settings
class PythonHelp(TextSource):
    """The language reference that Python ships (``pydoc_data.topics``): real English and code on every machine.

    About 370 thousand characters in 3.11. The help texts quote each other at length; a paragraph is kept only where it
    stands in the longest text, so that nothing that is evaluated was also learnt. A document is a section of a topic, long
    ones cut.

    Args:
        documents: so many of them, evenly spread; all by default.
    """

    long = True

    documents: Count | None = None

    def read(self) -> dict[str, list[Document]]:
        """The sections of all topics."""
        found = _help()
        wanted = min(self.documents or len(found), len(found))
        return {"all": [found[i * len(found) // wanted] for i in range(wanted)]}


@lru_cache(maxsize=1)
def _help() -> tuple[Document, ...]:
    """The sections of all topics, cut: once a process.

    Raises:
        DataError: this Python came without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "data", "this Python was packaged without pydoc_data", remedy="name your own text: data=text:FILE"
        ) from None
    seen: set[str] = set()
    sections = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        held: list[str] = []
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            words = " ".join(paragraph.split())
            if not words or words in seen:
                continue
            seen.add(words)
            heading = re.fullmatch(r"\s*[^\n]+\n([*=\-~^])\1{2,}\s*", paragraph)
            if heading and held:
                sections.append("\n\n".join(held))
                held = []
            held.append(paragraph.strip("\n"))
        if held:
            sections.append("\n\n".join(held))
    return tuple(piece for section in sections for piece in passages(Document(section + "\n"), 2000))


__all__ = ["Document", "PythonHelp", "TextSource", "Texts", "cut_up", "deal", "passages"]
