"""Documents of a stream as rows of token ids: read and spelled when a batch is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.data.items import digest
from limbeck.data.names import is_blank
from limbeck.data.shards import Stream
from limbeck.data.text import Document
from limbeck.errors import DataError
from limbeck.grammar.method import Batch
from limbeck.grammar.random import Draws
from limbeck.tasks.spelling import Spelled, spell
from limbeck.tasks.tokenizers import pad_id, special_ids, vocabulary_size
from limbeck.tasks.tokens import TokenData, make_batch

if TYPE_CHECKING:
    from limbeck.tasks.language import Language


class StreamTokens(TokenData):
    """The rows of a stream, one a document. What is in a row is a function of its number alone.

    In the place of a document that is not learnt (blank, unreadable, evaluated, too long) stands the next of its block that
    is. Which documents are too long is known of the first ones only, and is told of these.
    """

    def __init__(self, task: Language, stream: Stream, name: str) -> None:
        super().__init__(task, [], name)
        self.stream = stream
        self.documents = stream  # type: ignore[assignment]
        self._first: list[Spelled] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)  # loader processes spell what they read

    def __len__(self) -> int:
        if self._first is None:
            self._fits()
        return len(self.stream)

    def forget(self) -> None:
        """The task's length has changed."""
        self._first, self._fingerprint = None, ""

    def order(self, draws: Draws, epoch: int, low: int, high: int) -> Tensor:
        """Which rows stand from ``low`` to ``high`` in an epoch, int64."""
        self._looked()
        return self.stream.order(draws, epoch, low, high)

    def fetch(self, items: Tensor) -> Batch:
        """The rows as a batch."""
        assert self.task is not None
        task, self._prompts_count = self.task, self.task.counts_prompts
        documents = [self.stream[n] for n in items.tolist()]
        good = [i for i, d in enumerate(documents) if self._learnt(d)]
        spelled: dict[int, Spelled | None] = {
            i: self.fitted(row) for i, row in zip(good, spell(task, [documents[i] for i in good]), strict=True)
        }
        rows = [spelled.get(i) or self._instead(n) for i, n in enumerate(items.tolist())]
        ids = torch.full((len(rows), task.length), pad_id(task.tokenizer), dtype=torch.long)
        counts = torch.zeros(len(rows), task.length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            begin = 0 if self._prompts_count else row.prompt
            answers = row.answers if row.answers is not None and not self._prompts_count else None
            counts[i, : len(row.ids)] = (
                torch.tensor(answers) if answers is not None else torch.arange(len(row.ids)) >= begin
            )
        sizes = torch.tensor([len(row.ids) for row in rows])
        prompts = torch.tensor([row.prompt for row in rows])
        return make_batch(ids, sizes, prompts, torch.zeros_like(prompts), counts)

    def _learnt(self, document: Document) -> bool:
        return not is_blank(document.text) and document.key not in self.stream.held

    def fitted(self, row: Spelled) -> Spelled | None:
        """A row that fits; ``None`` for one that is not learnt.

        Raises:
            DataError: it is too long, and such are refused.
        """
        assert self.task is not None
        task = self.task
        keep = len(special_ids(task.tokenizer)[0])
        if len(row.ids) > task.length:
            if task.too_long == "refuse":
                raise DataError(
                    "task.too_long",
                    f"a document of the {self.name} split has {len(row.ids)} tokens, which exceeds {task.length}",
                    given="refuse",
                    remedy="raise task.length, or set task.too_long=cut-right, cut-left or drop",
                )
            if task.too_long == "drop":
                return None
            if task.too_long == "cut-left":
                row = row.without_beginning(task.length, keep)
            elif task.long_prompts == "cut" and row.prompt and row.answers is None:
                row = row.with_shorter_prompt(task.length, keep)
        return None if row.begins >= task.length or len(row.ids) < 2 else row.cut(task.length)

    def _instead(self, number: int) -> Spelled:
        """The next row of the block that is learnt."""
        assert self.task is not None
        at, inside = self.stream.place(number)
        count = self.stream.blocks[at].rows
        for step in range(1, count):
            document = self.stream.document(at, (inside + step) % count)
            if self._learnt(document):
                row = self.fitted(spell(self.task, [document])[0])
                if row is not None:
                    return row
        return self._fits()[0]

    def _looked(self) -> list[Spelled]:
        """The first documents as tokens; how many of them do not fit is told once."""
        assert self.task is not None
        if self._first is None:
            self._first = spell(self.task, self.stream.looked_at)
            task, rows = self.task, self._first
            long = sum(len(row.ids) > task.length for row in rows)
            if long:
                task.note(
                    f"{self.name}: of the first {len(rows)} documents of the stream {long} exceed {task.length} tokens "
                    f"(task.too_long={task.too_long}; the longest has {max(len(row.ids) for row in rows)})"
                )
        return self._first

    def _fits(self) -> list[Spelled]:
        found = [fit for row in self._looked() if (fit := self.fitted(row)) is not None]
        if not found:
            assert self.task is not None
            raise DataError(
                "task.length",
                f"none of the first {len(self._looked())} documents fits into {self.task.length} tokens",
                remedy="raise task.length, or set task.too_long=cut-right",
            )
        return found

    @property
    def largest_id(self) -> int:
        """The largest token id that the first documents hold."""
        return max(max(row.ids) for row in self._looked())

    @property
    def tokens_per_byte(self) -> float:
        """Tokens per byte of the first documents."""
        size = sum(len((d.prompt + d.text).encode("utf-8", "surrogatepass")) for d in self.stream.looked_at)
        return sum(len(row.ids) for row in self._looked()) / max(1, size)

    @property
    def fingerprint(self) -> str:
        """A hash of the shards' content and of how it becomes rows."""
        if not self._fingerprint:
            assert self.task is not None
            task = self.task
            self._fits()  # here is where a length that nothing fits into is refused
            about = (
                task.length,
                task.loss_on,
                task.template,
                task.too_long,
                task.long_prompts,
                vocabulary_size(task.tokenizer),
            )
            own = self.stream.source
            self._fingerprint = digest(
                "stream", self.stream.digest, repr(self.stream.columns), own.bad_rows, own.buffer, sorted(self.stream.held),
                repr(about), [row.ids for row in self._looked()],
            )  # fmt: skip
        return self._fingerprint


__all__ = ["StreamTokens"]
