"""Batches of token ids: documents as rows, which position predicts which token, and which of these count."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.data.text import Document
from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.grammar.method import Batch
from limbeck.tasks.tokenizers import pad_id, special_ids

if TYPE_CHECKING:
    from limbeck.tasks.language import Language

log = logging.getLogger("limbeck.data")

IGNORE = -100
"""The label of a position that does not count. It lives in batches only; inside limbeck it is a mask at once."""


def make_batch(rows: Tensor, sizes: Tensor, prompts: Tensor, begins: Tensor) -> Batch:
    """Right-padded rows ``[N, T]`` as a batch.

    Args:
        rows: token ids ``[N, T]``.
        sizes: how many of them are no padding ``[N]``.
        prompts: how many of these are prompt ``[N]``.
        begins: from which position on tokens count ``[N]``.
    """
    at = torch.arange(rows.shape[1], device=rows.device)
    real = at < sizes.unsqueeze(1)
    counted = real & (at >= begins.unsqueeze(1))
    labels = torch.where(counted, rows, torch.full_like(rows, IGNORE))
    where = torch.zeros_like(real)
    where[:, :-1] = counted[:, 1:]
    return {"input_ids": rows, "attention_mask": real.long(), "labels": labels, "where": where, "prompt": prompts}


def shifted(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[N, T-1, V]`` of positions that predict, the tokens they should predict, and which of these count."""
    labels = batch["labels"][:, 1:]
    if logits.ndim != 3 or logits.shape[:2] != batch["labels"].shape:
        expected = f"logits [N, T, V] for token ids {list(batch['labels'].shape)}"
        raise ShapeError("student", "the model is no language model", given=list(logits.shape), expected=expected)
    return logits[:, :-1], labels, labels != IGNORE


class TokenData:
    """Documents as rows of token ids. Rows are made when first asked for, by the task's tokenizer.

    A batch holds ``input_ids`` int64 ``[N, T]``; ``attention_mask`` int64 ``[N, T]``, 0 on padding, which is always on
    the right; ``labels`` int64 ``[N, T]``, -100 where they do not count; ``where`` bool ``[N, T]``: the positions whose
    next token counts; and ``prompt`` int64 ``[N]``: how many tokens of the row are prompt.

    Packed rows overlap by one token, so that every token but the first is predicted exactly once.
    """

    def __init__(self, task: Language, documents: list[Document], name: str, most: int | None = None) -> None:
        self.task: Language | None = task
        self.documents, self.name, self.most = documents, name, most
        self._made: tuple[Tensor, Tensor, Tensor, float] | None = None
        self._fingerprint = ""

    def __getstate__(self) -> dict[str, Any]:
        # loader processes get the rows, not the tokenizer
        self._rows()
        return {**self.__dict__, "task": None, "documents": [], "_prompts_count": self._prompts_count, "pad": self.pad}

    def _rows(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Ids int32 ``[n, T]``, size of each row ``[n]``, prompt tokens of each row ``[n]``, tokens per byte."""
        if self._made is None:
            assert self.task is not None
            task = self.task
            self._prompts_count = task.loss_on == "all"
            self.pad = pad_id(task.tokenizer)
            self._made = self._pack(task) if task.packed else self._pad(task)
            n = len(self._made[0])
            if self.most is not None and self.most < n:
                some = torch.arange(self.most) * n // self.most
                ids, sizes, prompts, density = self._made
                self._made = ids[some], sizes[some], prompts[some], density
            if n == 0:
                raise DataError(
                    "data",
                    f"the {self.name} split has too little text for one sequence",
                    remedy="add text, or lower task.length",
                )
        return self._made

    def _pack(self, task: Language) -> tuple[Tensor, Tensor, Tensor, float]:
        prompts, texts = encode(task, self.documents)
        bos, eos = special_ids(task.tokenizer)
        stream: list[int] = []
        for prompt, text in zip(prompts, texts, strict=True):
            stream += [*bos, *prompt, *text, *eos]
        n, step = len(stream), task.length - 1
        size = _bytes(self.documents)
        if n < 2:
            none = torch.zeros(0, dtype=torch.long)
            return torch.zeros(0, task.length, dtype=torch.int32), none, none, 1.0
        rows = -(-(n - 1) // step)
        flat = torch.full((rows * step + 1,), self.pad, dtype=torch.int32)
        flat[:n] = torch.tensor(stream, dtype=torch.int32)
        ids = flat.unfold(0, task.length, step).contiguous()
        sizes = torch.full((rows,), task.length)
        sizes[-1] = n - (rows - 1) * step
        return ids, sizes, torch.zeros(rows, dtype=torch.long), n / max(1, size)

    def _pad(self, task: Language) -> tuple[Tensor, Tensor, Tensor, float]:
        prompts, texts = encode(task, self.documents)
        bos, eos = special_ids(task.tokenizer)
        rows, begins, spent, size, hidden, cut = [], [], 0, 0, 0, 0
        for document, prompt, text in zip(self.documents, prompts, texts, strict=True):
            head = [*bos, *prompt]
            row = [*head, *text, *eos]
            if len(head) >= task.length or len(row) < 2:
                hidden += 1
                continue
            cut += len(row) > task.length
            spent += len(row) - (0 if self._prompts_count else len(head))
            size += len(document.text.encode("utf-8", "surrogatepass"))
            size += len(document.prompt.encode("utf-8", "surrogatepass")) if self._prompts_count else 0
            rows.append(row[: task.length])
            begins.append(len(head))
        for number, said in ((hidden, "left out: the prompt alone fills"), (cut, "cut off at the end: they exceed")):
            if number:
                note = f"{self.name}: {number} of {len(self.documents)} documents {said} {task.length} tokens"
                task.notes.append(note)
                log.warning(note)
        ids = torch.full((len(rows), task.length), self.pad, dtype=torch.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.long)
        return ids, sizes, torch.tensor(begins, dtype=torch.long), spent / max(1, size)

    def __len__(self) -> int:
        return len(self._rows()[0])

    def fetch(self, items: Tensor) -> Batch:
        """The rows ``items`` as a batch."""
        ids, sizes, prompts, _ = self._rows()
        begins = torch.zeros_like(prompts) if self._prompts_count else prompts
        return make_batch(ids[items].long(), sizes[items], prompts[items], begins[items])

    @property
    def largest_id(self) -> int:
        """The largest token id of the split."""
        return int(self._rows()[0].max())

    @property
    def tokens_per_byte(self) -> float:
        """Tokens that are predicted per byte of text, end tokens included, over the whole split."""
        return self._rows()[3]

    @property
    def fingerprint(self) -> str:
        """A content hash of the rows and of what counts in them."""
        if not self._fingerprint:
            ids, sizes, prompts, _ = self._rows()
            digest = hashlib.blake2b(repr((tuple(ids.shape), self._prompts_count)).encode(), digest_size=16)
            for tensor in (ids, sizes, prompts):
                digest.update(tensor.numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _bytes(documents: list[Document]) -> int:
    return sum(len((d.prompt + d.text).encode("utf-8", "surrogatepass")) for d in documents)


def encode(task: Language, documents: list[Document]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each document's prompt and text, without special tokens of the tokenizer's own."""
    tokenizer = task.tokenizer
    chat = task.template == "chat" or (task.template == "auto" and getattr(tokenizer, "chat_template", None))
    if chat and not getattr(tokenizer, "chat_template", None):
        raise ConfigError("task.template", "the tokenizer has no chat template", remedy="set task.template=plain")
    prompts = []
    for document in documents:
        if not document.prompt:
            prompts.append("")
        elif chat:
            turn = [{"role": "user", "content": document.prompt}]
            written = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            start = tokenizer.bos_token or ""
            prompts.append(written.removeprefix(start) if special_ids(tokenizer)[0] else written)
        else:
            prompts.append(document.prompt + "\n")
    return _ids(tokenizer, prompts), _ids(tokenizer, [document.text for document in documents])


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
