"""Where in a text each token ends, in bytes; and which tokens of two tokenizers are the same text.

Ends are counted in quarters of a byte, so that an end that no other tokenizer can share has a place of its own: 4 b for a
token that ends at byte b, and a little more for one that ends inside a character or inside what a chat template wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.text import Document
from limbeck.errors import TeacherMismatch

BYTE = 4
"""Quarters of a byte."""

Rest = Literal["prefix", "other", "drop"]


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


def prompt_size(document: Document) -> int:
    """Bytes that a prompt takes: its own and a line break, however a template writes it; 0 without a prompt."""
    return size_of(document.prompt) + 1 if document.prompt else 0


def extent(document: Document) -> int:
    """Bytes that a document takes, whoever spells it: its prompt, its text, and one for its end."""
    return prompt_size(document) + size_of(document.text) + 1


class Ends:
    """Token ids of texts, and where each token ends.

    Args:
        tokenizer: a fast tokenizer of transformers.
        whose: who it belongs to, for the error.
        odd: 1 for the student, 2 for the teacher: what an end that cannot be shared is told apart by.

    Raises:
        TeacherMismatch: the tokenizer does not say where its tokens lie.
    """

    def __init__(self, tokenizer: Any, whose: str, odd: int) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TeacherMismatch(
                "method.alignment",
                f"the tokenizer of {whose} ({type(tokenizer).__name__}) does not say where in a text its tokens lie",
                expected="a fast tokenizer (a folder with tokenizer.json)",
            )
        self.tokenizer, self.odd = tokenizer, odd
        self.sizes = _byte_sizes(tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Of each text the ids, and the ends int64 ``[n]`` in quarters of a byte from its beginning, never falling."""
        if not texts:
            return []
        made = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            (ids, self._ends(text, ids, offsets))
            for text, ids, offsets in zip(texts, made["input_ids"], made["offset_mapping"], strict=True)
        ]

    def _ends(self, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> np.ndarray:
        if not ids:
            return np.zeros(0, np.int64)
        if self.sizes is not None:  # each token is a row of bytes: exact inside characters too
            ends: np.ndarray = self.sizes[np.asarray(ids)].cumsum()
            if int(ends[-1]) == size_of(text):
                return ends * BYTE
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
        at = np.concatenate([[0], width.cumsum()])
        spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        last = np.maximum.accumulate(spans[:, 1])
        inside = np.zeros(len(ids), dtype=bool)
        inside[:-1] = spans[1:, 0] < last[:-1]  # the next token begins before this one ends: they share a character
        ends = at[last] * BYTE
        whole = np.where(inside, 0, ends)
        return np.where(inside, np.maximum.accumulate(whole) + self.odd, ends)


def _alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as (GPT-2): those that can be seen stand for themselves."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _alphabet()


def _byte_level(tokenizer: Any) -> bool:
    return "ByteLevel" in repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))


def _byte_sizes(tokenizer: Any) -> np.ndarray | None:
    """Bytes of each token of a byte-level tokenizer; ``None`` for others."""
    if not _byte_level(tokenizer):
        return None
    vocabulary = tokenizer.get_vocab()
    sizes = np.zeros(max(vocabulary.values()) + 1, np.int64)
    added = set(tokenizer.get_added_vocab())
    for token, i in vocabulary.items():
        sizes[i] = size_of(token) if token in added else len(token)
    return sizes


def token_texts(tokenizer: Any) -> dict[int, bytes]:
    """The bytes that each token stands for, special tokens left out: marks of byte-level BPE and sentencepiece resolved."""
    special = set(tokenizer.all_special_ids)
    added = set(tokenizer.get_added_vocab())
    level = _byte_level(tokenizer)
    found = {}
    for token, i in tokenizer.get_vocab().items():
        if i in special:
            continue
        if not level and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[i] = bytes([int(token[3:5], 16)])
        elif token in added:
            found[i] = token.encode("utf-8", "surrogatepass")
        elif level and all(c in _BYTES for c in token):
            found[i] = bytes(_BYTES[c] for c in token)
        else:
            found[i] = token.replace("▁", " ").encode("utf-8", "surrogatepass")
    return found


@dataclass
class Classes:
    """Classes of tokens that two vocabularies share.

    Attributes:
        student: the class of each of the student's tokens, int64 ``[V]``; -1 for one that takes no part.
        teacher: the same of the teacher's ``[U]``.
        count: how many classes there are.
        same: how many tokens are the same text in both.
        rule: what became of the others.
    """

    student: Tensor
    teacher: Tensor
    count: int
    same: int
    rule: Rest
    _on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def plain(self) -> bool:
        """Whether every token is a class of its own, and the same one in both."""
        own = torch.arange(self.count)
        return torch.equal(self.student, own) and torch.equal(self.teacher, own)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both maps on a device."""
        if device not in self._on:
            self._on[device] = (self.student.to(device), self.teacher.to(device))
        return self._on[device]


def classes_of(student: Any, teacher: Any, sizes: tuple[int, int], rest: Rest) -> Classes:
    """Classes over which a student's and a teacher's predictions are compared.

    Tokens of the same text are one class, as are those that end a text, begin one, or fill a row. What becomes of a token
    that only one of the two has: ``prefix`` adds it to the token of the other vocabulary with which its text begins, as the
    other tokenizer cuts it; ``other`` makes one class of all of them; ``drop`` leaves them out.

    Args:
        student, teacher: tokenizers.
        sizes: how many outputs student and teacher have. Outputs that no token belongs to (padding) are left out.
        rest: the rule.
    """
    one, two = student.get_vocab(), teacher.get_vocab()
    if one == two:  # ids mean the same, also where two of them are the same text
        count = min(len(one), *sizes) if max(one.values()) < len(one) else min(sizes)
        maps = [torch.where(torch.arange(size) < count, torch.arange(size), -1) for size in sizes]
        return Classes(maps[0], maps[1], count, count, rest)
    texts = token_texts(student), token_texts(teacher)
    ids: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
    for found, spelled, size in zip(ids, texts, sizes, strict=True):
        for i in sorted(spelled):
            if i < size:
                found.setdefault(spelled[i], i)
    pairs = [(i, ids[1][text]) for text, i in ids[0].items() if text in ids[1]]
    taken: tuple[set[int], set[int]] = (set(), set())
    special = [
        (getattr(student, name), getattr(teacher, name)) for name in ("eos_token_id", "bos_token_id", "pad_token_id")
    ]
    own, marks = set(student.all_special_ids), set(teacher.all_special_ids)
    special += [(i, two.get(token)) for token, i in one.items() if i in own]
    for i, j in special:
        if i is None or j not in marks or i in taken[0] or j in taken[1] or i >= sizes[0] or j >= sizes[1]:
            continue
        pairs.append((i, j))
        taken[0].add(i)
        taken[1].add(j)
    maps = [torch.full((size,), -1, dtype=torch.long) for size in sizes]
    # in the order of the student's ids, so that two equal vocabularies keep it
    for number, (i, j) in enumerate(sorted(pairs)):
        maps[0][i], maps[1][j] = number, number
    count = len(pairs)
    lonely = [
        [i for i in sorted(spelled) if i < size and at[i] < 0]
        for spelled, size, at in zip(texts, sizes, maps, strict=True)
    ]
    if rest == "other" and all(lonely):
        for at, alone in zip(maps, lonely, strict=True):
            at[alone] = count
        count += 1
    if rest == "prefix":
        count = _by_prefix((student, teacher), texts, maps, lonely, count)
    return Classes(maps[0], maps[1], count, len(pairs), rest)


def _by_prefix(
    tokenizers: tuple[Any, Any],
    texts: tuple[dict[int, bytes], dict[int, bytes]],
    maps: list[Tensor],
    lonely: list[list[int]],
    count: int,
) -> int:
    """Give each token that one vocabulary lacks to the token it begins with there; returns how many classes there are then."""
    lengths = [sorted({len(t) for t in spelled.values()}, reverse=True) for spelled in texts]
    known: list[dict[bytes, int]] = [{}, {}]
    for mine, spelled, at in zip(known, texts, maps, strict=True):
        for i in sorted(spelled, reverse=True):
            if i < len(at):
                mine[spelled[i]] = i
    nodes = len(maps[0])
    parent = list(range(nodes + len(maps[1])))

    def root(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    shared = {int(c): i for i, c in enumerate(maps[0].tolist()) if c >= 0}
    for j, c in enumerate(maps[1].tolist()):
        if c >= 0:
            parent[root(nodes + j)] = root(shared[c])
    joined: set[int] = set()
    for side, alone in enumerate(lonely):
        if not alone:
            continue
        # how the other tokenizer cuts the text, where it is one; bytes inside characters go by the longest token they begin with
        other, offset = 1 - side, (0, nodes)
        readable = [(i, t) for i in alone if (t := _decoded(texts[side].get(i, b""))) is not None]
        cuts = (
            tokenizers[other]([t for _, t in readable], add_special_tokens=False, verbose=False)["input_ids"]
            if readable
            else []
        )
        first = {
            i: cut[0]
            for (i, _), cut in zip(readable, cuts, strict=True)
            if cut and texts[side][i].startswith(texts[other].get(cut[0], b"\0\0")) and texts[other].get(cut[0])
        }
        for i in alone:
            text = texts[side].get(i, b"")
            target = first.get(i)
            if target is None or target >= len(maps[other]):
                target = next(
                    (
                        known[other][text[:n]]
                        for n in lengths[other]
                        if n <= len(text) and text[:n] in known[other] and n
                    ),
                    None,
                )
            if target is not None:
                parent[root(offset[side] + i)] = root(offset[other] + target)
                joined |= {offset[side] + i, offset[other] + target}
    inside = [i for i, c in enumerate([*maps[0].tolist(), *maps[1].tolist()]) if c >= 0 or i in joined]
    numbers: dict[int, int] = {}
    for i in inside:
        number = numbers.setdefault(root(i), len(numbers))
        (maps[0] if i < nodes else maps[1])[i if i < nodes else i - nodes] = number
    return len(numbers)


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode("utf-8") or None
    except UnicodeDecodeError:
        return None


__all__ = ["BYTE", "Classes", "Ends", "Rest", "classes_of", "extent", "prompt_size", "size_of", "token_texts"]
