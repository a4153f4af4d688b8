"""What is said to a chat model and what comes back: messages, sampling, replies, and a cache of replies that resumes.

A teacher of texts is whoever has ``identity`` and ``chat``: a language model in this process, an endpoint, a Python function.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from limbeck.errors import ConfigError
from limbeck.storage.plain import check_plain

Messages = Sequence[tuple[str, str]]
"""A conversation so far: (role, content), roles ``system``, ``user`` and ``assistant``."""

CAUSES = ("stop", "length", "refused", "malformed")
"""Why a reply ended: by itself; cut off at its longest; the model declined; it came back in no readable form."""


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: only the likeliest words that make up this mass.
        longest: tokens of a reply, at most.
        seed: of the draws.
        number: which of several replies to the same question.
    """

    temperature: float = 0.2
    top_p: float = 0.1
    longest: int = 128
    seed: int = 0
    number: int = 0


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: what was said.
        cause: one of ``CAUSES``.
        asked: tokens of the question, as the teacher counts them.
        tokens: tokens of the reply.
    """

    text: str
    cause: str = "stop"
    asked: int = 0
    tokens: int = 0

    @property
    def finished(self) -> bool:
        """Whether it came to its end by itself."""
        return self.cause == "stop"


@runtime_checkable
class Teacher(Protocol):
    """Whoever answers in text."""

    @property
    def identity(self) -> str:
        """Which model it is: replies are cached under it."""

    def chat(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> Iterator[tuple[int, Reply]]:
        """Replies with the place of their question, in whatever order they come."""


class Function:
    """A Python function as a teacher.

    Args:
        fn: (messages, sampling) -> text, of one conversation; messages are mappings with ``role`` and ``content``.
        identity: under which its replies are cached.
    """

    def __init__(self, fn: Callable[[list[dict[str, str]], Sampling], str], identity: str = "function") -> None:
        self.fn, self.identity = fn, identity

    def chat(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> Iterator[tuple[int, Reply]]:
        """One after another."""
        for i, (messages, how) in enumerate(zip(asked, sampling, strict=True)):
            text = self.fn(as_mappings(messages), how)
            if not isinstance(text, str):
                raise ConfigError("teacher", "a function that teaches returns a text", given=type(text).__name__)
            yield i, Reply(text, "stop", sum(len(c.split()) for _, c in messages), len(text.split()))


def as_mappings(messages: Messages) -> list[dict[str, str]]:
    """Messages as JSON has them.

    Example:
        >>> as_mappings([("user", "Hello")])
        [{'role': 'user', 'content': 'Hello'}]
    """
    return [{"role": role, "content": content} for role, content in messages]


def collected(teacher: Teacher, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> list[Reply]:
    """All replies in the order of their questions."""
    found: dict[int, Reply] = dict(teacher.chat(asked, sampling))
    return [found[i] for i in range(len(asked))]


def key_of_reply(identity: str, messages: Messages, sampling: Sampling) -> str:
    """By what a reply is known again: the model, every message, and all of the sampling."""
    said = json.dumps([identity, [list(m) for m in messages], asdict(sampling)], ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class ReplyCache:
    """Replies in a file of JSON lines, one written and flushed as soon as it is there: whoever stops pays no reply twice.

    A last line that was cut off by a crash is passed over. Malformed replies are not kept, so that they are asked again.

    Args:
        path: the file; its folder is made.

    Attributes:
        torn: lines that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.torn = path, 0
        self.known: dict[str, Reply] = {}
        self._ends_well = True
        if path.is_file():
            check_plain(path)
            raw = path.read_text(encoding="utf-8", errors="replace")
            self._ends_well = not raw or raw.endswith("\n")
            for line in raw.split("\n"):
                if line.strip():
                    self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            known = {k: row[k] for k in ("text", "cause", "asked", "tokens")}
            fits = isinstance(known["text"], str) and known["cause"] in CAUSES and isinstance(row["key"], str)
            fits = fits and all(isinstance(known[n], int) for n in ("asked", "tokens"))
        except (ValueError, KeyError, TypeError, RecursionError):
            fits = False
        if fits:
            self.known[row["key"]] = Reply(**known)
        else:
            self.torn += 1

    def __len__(self) -> int:
        return len(self.known)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, on the disk before this returns."""
        if reply.cause == "malformed":
            return
        self.known[key] = reply
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = ("" if self._ends_well else "\n") + json.dumps({"key": key, **asdict(reply)}) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._ends_well = True


class Cached:
    """A teacher whose replies are kept: asked is only what was not answered before.

    Args:
        teacher: who answers.
        cache: where replies lie.

    Attributes:
        calls: questions that were really asked.
    """

    def __init__(self, teacher: Teacher, cache: ReplyCache) -> None:
        self.teacher, self.cache, self.calls = teacher, cache, 0
        self.identity = teacher.identity

    def missing(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> list[int]:
        """The places of questions that the cache does not know; of equal ones the first."""
        first: dict[str, int] = {}
        for i, (m, s) in enumerate(zip(asked, sampling, strict=True)):
            first.setdefault(key_of_reply(self.identity, m, s), i)
        return [i for key, i in first.items() if key not in self.cache.known]

    def chat(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> Iterator[tuple[int, Reply]]:
        """What is known at once, then the rest as it comes."""
        keys = [key_of_reply(self.identity, m, s) for m, s in zip(asked, sampling, strict=True)]
        places: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            places.setdefault(key, []).append(i)
            if key in self.cache.known:
                yield i, self.cache.known[key]
        new = self.missing(asked, sampling)
        for k, reply in self.teacher.chat([asked[i] for i in new], [sampling[i] for i in new]):
            self.calls += 1
            self.cache.put(keys[new[k]], reply)
            for i in places[keys[new[k]]]:
                yield i, reply


def conversation(teacher: Teacher, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> list[list[Reply]]:
    """Of each conversation a reply in the place of every turn of the assistant, in order; earlier replies stay in context.

    A conversation ends with the first reply that is cut, refused or empty.

    Args:
        teacher: who answers.
        asked: whole conversations; what the assistant said in them is replaced.
        sampling: of each.
    """
    spots = [[k for k, (role, _) in enumerate(m) if role == "assistant"] for m in asked]
    said: list[list[Reply]] = [[] for _ in asked]
    for turn in range(max(map(len, spots), default=0)):
        going = [
            i for i, s in enumerate(spots)
            if turn < len(s) and len(said[i]) == turn and all(r.finished and r.text.strip() for r in said[i])
        ]  # fmt: skip
        contexts = [_with(asked[i][: spots[i][turn]], [r.text for r in said[i]]) for i in going]
        for i, reply in zip(going, collected(teacher, contexts, [sampling[i] for i in going]), strict=True):
            said[i].append(reply)
    return said


def _with(messages: Messages, replies: Sequence[str]) -> list[tuple[str, str]]:
    own = iter(replies)
    return [(role, next(own)) if role == "assistant" else (role, content) for role, content in messages]


def replaced(messages: Messages, replies: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """A conversation up to its last answer, its answers replaced.

    Example:
        >>> replaced([("user", "a"), ("assistant", "b"), ("user", "c")], ["B"])
        (('user', 'a'), ('assistant', 'B'))
    """
    last = max(i for i, (role, _) in enumerate(messages) if role == "assistant")
    return tuple(_with(messages[: last + 1], replies))


def numbered(sampling: Sampling, count: int) -> list[Sampling]:
    """The sampling of so many replies to one question."""
    return [replace(sampling, number=k) for k in range(count)]


__all__ = [
    "CAUSES",
    "Cached",
    "Function",
    "Messages",
    "Reply",
    "ReplyCache",
    "Sampling",
    "Teacher",
    "as_mappings",
    "collected",
    "conversation",
    "key_of_reply",
    "numbered",
    "replaced",
]
