"""Texts spelled twice, by the tokenizers of a student and of a teacher, their positions paired by the byte they end at."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.errors import DataError
from limbeck.grammar.method import Batch
from limbeck.storage.memory import need
from limbeck.tasks.spelling import spell
from limbeck.tasks.tokenizers import pad_id
from limbeck.tasks.tokens import IGNORE, Lines, TokenData

if TYPE_CHECKING:
    from limbeck.tasks.language import Language

LEAST = 0.01
"""Share of positions below which nothing can be learnt from the teacher."""


class AlignedRows:
    """The student's rows, and beside each the teacher's tokens of the same piece of text.

    A position of the student and one of the teacher are a pair where both have read up to the same byte; if a start token
    or nothing visible stands there, the last of several. Pairs are found once for all rows. A batch holds what the
    student's rows hold, and ``teacher_ids``, ``teacher_mask`` int64 ``[N, W]`` and ``pair`` int64 ``[N, T]``: the position
    in ``teacher_ids`` that each of the student's positions is paired with, -1 for none.

    Args:
        data: the student's rows; their task must have been told to mark ends (`Language.mark_ends`).
        teacher: the same texts as the teacher reads them (``task.part("teacher")``), likewise.

    Attributes:
        counted: how many positions count, ``paired``: how many of these have a partner.
        cut: how many rows are longer in the teacher's tokens than it has positions.
        width: tokens W of the longest row of the teacher, and one for padding.

    Raises:
        DataError: next to nothing can be paired.
    """

    def __init__(self, data: TokenData, teacher: Language) -> None:
        self.data = data
        places = data.places
        lines = Lines(data.documents, spell(teacher, data.documents, teacher.ends))
        self.ids, self.pad = lines.ids.int(), pad_id(teacher.tokenizer)
        ends = places.ends
        real = ends >= 0
        last = torch.where(real, ends, -1).amax(1)
        fresh = places.before < 0
        begins = torch.searchsorted(lines.ends, places.before.clamp_min(0), right=True)
        self.start = torch.where(fresh, lines.starts[places.document], begins)
        stop = torch.searchsorted(lines.ends, last, right=True)
        limit = teacher.positions
        self.size = (stop - self.start).clamp_min(0)
        self.cut = 0 if limit is None else int((self.size > limit).sum())
        if limit is not None:
            self.size = self.size.clamp_max(limit)
        self.width = int(self.size.max()) + 1
        need(8 * ends.numel(), "task.length", f"{len(ends):,} rows of pairs", "lower task.length")
        partner = torch.searchsorted(lines.ends, ends.clamp_min(0), right=True) - 1
        same = real & (partner >= 0) & (lines.ends[partner.clamp_min(0)] == ends)
        same[:, :-1] &= ends[:, 1:] != ends[:, :-1]  # of several that end at one byte the last is meant
        at = partner - self.start.unsqueeze(1)
        same &= (at >= 0) & (at < self.size.unsqueeze(1))
        self.pair = torch.where(same, at, -1).int()
        self.counted = self.paired = 0
        for items in torch.arange(len(ends)).split(4096):
            counts = data.fetch(items)["labels"][:, 1:] != IGNORE
            self.counted += int(counts.sum())
            self.paired += int((counts & same[items, :-1]).sum())
        if self.paired < max(1.0, LEAST * self.counted):
            raise DataError(
                "method.alignment",
                f"{self.paired} of {self.counted} positions of student and teacher end at the same byte",
                expected=f"at least {100 * LEAST:g} %",
                remedy="look at what the two tokenizers make of this text; if the teacher has few positions, lower task.length",
            )

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """The rows as a batch."""
        at = torch.arange(self.width)
        inside = at < self.size[items].unsqueeze(1)
        where = (self.start[items].unsqueeze(1) + at).clamp_max(max(0, len(self.ids) - 1))
        ids = torch.where(inside, self.ids[where].long(), self.pad)
        more = {"teacher_ids": ids, "teacher_mask": inside.long(), "pair": self.pair[items].long()}
        return {**self.data.fetch(items), **more}

    def told(self) -> str:
        """How much was paired, in a sentence."""
        share = 100 * self.paired / max(1, self.counted)
        said = (
            f"{self.paired:,} of {self.counted:,} positions ({share:.1f} %) have one of the teacher's that ends at the same "
            f"byte; the others learn from the text alone"
        )
        if self.cut:
            said += (
                f"; {self.cut:,} of {len(self):,} rows are longer than the teacher's positions and are not seen whole"
            )
        return said

    @property
    def fingerprint(self) -> str:
        """A content hash of both spellings and of the pairs."""
        digest = hashlib.blake2b(self.data.fingerprint.encode(), digest_size=16)
        for tensor in (self.ids, self.start, self.size, self.pair):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


__all__ = ["AlignedRows"]
