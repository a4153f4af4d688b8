"""Language models: text in, the next token out, on transformers' causal models."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.core.errors import (
    CacheMismatch,
    CheckpointCorrupt,
    ConfigError,
    DataError,
    ShapeError,
    StorageError,
    TeacherMismatch,
    require,
)
from limbeck.core.method import Batch, Built, Data, Term
from limbeck.core.signal import Signal, device_of, evaluating
from limbeck.core.task import Model, Task
from limbeck.functional._common import expect
from limbeck.tasks.text import Document, PythonHelp, Texts, TextSource

log = logging.getLogger("limbeck.data")

IGNORE = -100
"""The label of a position that does not count. It lives in batches only; inside limbeck it is a mask at once."""

CELLS = 1 << 24
"""Tokens times vocabulary that may be held at a time when judging."""


class Language(Task):
    """Text, whose every next token is to be predicted.

    Without ``tokenizer`` the models' own is used; for models from scratch a byte-level BPE of ``vocab_size`` tokens is
    trained on the training split, and remembered.

    Args:
        data: where the text comes from.
        tokenizer: a Hub id or local folder; ``null`` takes the models' own, or trains one.
        vocab_size: size of a trained tokenizer.
        length: tokens in a training sequence.
        packing: lay documents end to end and cut sequences from them (``pack``), or one document a sequence, cut off
            or padded (``pad``); ``auto`` pads prompts with responses and packs the rest.
        loss_on: ``all`` tokens, or ``response``: those after the prompt.
        template: how a prompt is written: as the tokenizer's ``chat`` template says, ``plain`` with a line break after
            it, or ``auto``: by the chat template where there is one.
        student_documents: size of the student's training set, drawn by the seed; all if ``null``. The teacher learns
            from all.
        valid_fraction: share of the text set aside for choosing, where the data names no such split.
        test_fraction: share of the text set aside for judging, where the data names no such split.
        eval_batch: sequences at a time when judging.
        eval_sequences: how many sequences of the valid and test splits are judged, spread evenly; all if ``null``.
    """

    primary = "cross_entropy"
    higher_is_better = False
    kind_of_target = "token"
    onnx_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        data: TextSource = PythonHelp(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        length: int = 128,
        packing: Literal["auto", "pack", "pad"] = "auto",
        loss_on: Literal["all", "response"] = "all",
        template: Literal["auto", "chat", "plain"] = "auto",
        student_documents: int | None = None,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.1,
        eval_batch: int = 32,
        eval_sequences: int | None = None,
    ) -> None:
        if vocab_size < 258:
            raise ValueError("vocab_size must be 258 or more: the 256 bytes, an end and a padding token")
        if length < 2:
            raise ValueError("length must be 2 or more: one token to read and one to predict")
        if student_documents is not None and student_documents < 1:
            raise ValueError("student_documents must be 1 or more, or null for all")
        for name, share in (("valid_fraction", valid_fraction), ("test_fraction", test_fraction)):
            if not 0 < share < 1:
                raise ValueError(f"{name} must lie between 0 and 1")
        if valid_fraction + test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction together must leave something to train on")
        if eval_batch < 1:
            raise ValueError("eval_batch must be 1 or more")
        if eval_sequences is not None and eval_sequences < 1:
            raise ValueError("eval_sequences must be 1 or more, or null for all")
        self.data, self.tokenizer_name, self.vocab_size, self.length = data, tokenizer, vocab_size, length
        self.packing, self.loss_on, self.template = packing, loss_on, template
        self.student_documents, self.eval_sequences = student_documents, eval_sequences
        self.valid_fraction, self.test_fraction, self.eval_batch = valid_fraction, test_fraction, eval_batch
        self.notes: list[str] = []
        self.columns: int | None = None
        self._texts: Texts | None = None
        self._tokenizer: Any = None
        self._whose = ""
        self._seed: int | None = None

    # ------------------------------------------------------------------------------------------------ data

    def load(self, seed: int | None = None) -> None:
        """Read the text, deal it, choose the student's documents by ``seed``. Tokens are made when first asked for.

        Raises:
            DataError: nothing to read, or something that cannot be read.
        """
        if self._texts is None:
            self._texts = self.data.deal(self.valid_fraction, self.test_fraction)
            self.notes.extend(self._texts.notes)
            self.teacher_train: TokenData = TokenData(self, self._texts.train, "train")
            self.valid: TokenData = TokenData(self, self._texts.valid, "valid", self.eval_sequences)
            self.test: TokenData = TokenData(self, self._texts.test, "test", self.eval_sequences)
            self.train: TokenData = self.teacher_train
        seed = (self._seed or 0) if seed is None else seed
        if self._seed == seed:
            return
        documents = self._texts.train
        if self.student_documents is not None:
            if self.student_documents > len(documents):
                raise DataError(
                    "task.student_documents",
                    given=self.student_documents,
                    expected=f"at most the {len(documents)} training documents",
                )
            order = sorted(documents, key=lambda d: hashlib.blake2b(f"{seed} {d.key}".encode()).digest())
            chosen = set(map(id, order[: self.student_documents]))
            self.train = TokenData(self, [d for d in documents if id(d) in chosen], "student")
        self._seed = seed

    @property
    def texts(self) -> Texts:
        """The documents, dealt."""
        if self._texts is None:
            self.load()
        assert self._texts is not None
        return self._texts

    @property
    def packed(self) -> bool:
        """Whether documents are laid end to end."""
        return self.packing == "pack" or (self.packing == "auto" and not self.texts.pairs)

    # ------------------------------------------------------------------------------------------------ tokens

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: the named one, else that of the first pretrained model, else one trained on this text."""
        if self._tokenizer is None:
            if self.tokenizer_name is not None:
                self._tokenizer, self._whose = load_tokenizer(self.tokenizer_name), "task.tokenizer"
            else:
                self._tokenizer = byte_pairs(self.texts, self.vocab_size)
                self._whose = "the tokenizer trained on this text"
        return self._tokenizer

    def adopt(self, tokenizer: Any, name: str) -> None:
        """A pretrained model brings its tokenizer: it becomes the task's, or must agree with it.

        Raises:
            TeacherMismatch: text gets other token ids from it than from the task's tokenizer.
        """
        if self._tokenizer is None and self.tokenizer_name is None:
            self._tokenizer, self._whose = tokenizer, f"hf:{name}"
            return
        own = self.tokenizer
        if own is tokenizer:
            return
        try:
            shared_ids(own, tokenizer, self._whose, f"hf:{name}", self._probes())
        except TeacherMismatch:
            if self.tokenizer_name is not None or self._whose.startswith("hf:"):
                raise
            raise TeacherMismatch(
                "task.tokenizer",
                f"a model from scratch would learn other tokens than hf:{name} knows",
                remedy=f"set task.tokenizer={name}, so that both use it",
            ) from None

    def _probes(self) -> list[str]:
        return [document.text[:300] for document in self.texts.train[:10]]

    @property
    def size(self) -> int:
        """How many token ids there are (the largest and one)."""
        return _ids_of(self.tokenizer)

    def match(self, student: Built, teacher: Built) -> None:
        """Check that both models speak one vocabulary; cut the outputs to what they share, and say so.

        Tokenizers are compared, not sizes: outputs beyond the tokenizer's ids are padding.

        Raises:
            TeacherMismatch: the ids differ; methods that work across tokenizers are named.
        """
        self.columns = None
        one, two = (getattr(b.model, "tokenizer", None) or self.tokenizer for b in (student, teacher))
        shared = _ids_of(one) if one is two else shared_ids(one, two, "the student", "the teacher", self._probes())
        sizes = {"student": output_size(student.module), "teacher": output_size(teacher.module)}
        known = {name: size for name, size in sizes.items() if size is not None}
        if not known:
            return
        least = min(known.values())
        if least < shared:
            # tokenizers may know tokens that their model never learnt; that matters only where a text holds one
            used = max(int(data._rows()[0].max()) for data in (self.teacher_train, self.valid, self.test)) + 1
            if least < used:
                name = min(known, key=lambda n: known[n])
                raise TeacherMismatch(
                    name,
                    f"it answers with {least} values, and this text has {used} token ids in the shared tokenizer",
                    remedy="resize its embeddings with resize_token_embeddings, or name the tokenizer it was made with",
                )
        padded = _ids_of(one) == _ids_of(two) == shared or least < shared
        width = least if padded else shared
        if any(size != width for size in known.values()):
            self.columns = width
            said = " and ".join(f"the {name}'s {size}" for name, size in known.items())
            why = "padding beyond the tokenizer" if padded else "tokens that only one of them has"
            note = f"vocabularies cut to the {width} outputs they share ({said}): the rest is {why}"
            self.notes.append(note)
            log.warning(note)

    # ------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Tensor:
        """Token ids into a model; its logits ``[N, T, V]``, cut to the shared vocabulary where there is one."""
        logits = Signal(run(module, batch)).logits
        return logits if self.columns is None else logits[..., : self.columns]

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Cross-entropy of each next token, ``[N, T-1]``, where its label counts."""
        logits, labels, where = shifted(signal.logits, batch)
        return Term(F.cross_entropy(logits, labels, where=where), where=where)

    def counts(self, batch: Batch) -> Tensor:
        """How many next tokens count."""
        counted: Tensor = (batch["labels"][:, 1:] != IGNORE).sum()
        return counted

    # ------------------------------------------------------------------------------------------------ judging

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> dict[str, float]:
        """Metrics of a model on a split, in one pass, without gradients and in evaluation mode.

        cross_entropy (nats a token), perplexity, bits_per_byte (cross-entropy in bits times tokens over bytes of the
        split: comparable between tokenizers), accuracy (of the likeliest next token), entropy (of the predictions).
        With a teacher: kl (teacher || student), agreement (share of equal likeliest tokens) and teacher_entropy.
        """
        device = device or device_of(built.module)
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), dtype=torch.float64)
        watched = [b.module for b in (built, teacher) if b is not None]
        with torch.no_grad(), evaluating(watched):
            for ids in torch.split(torch.arange(len(data)), self.eval_batch):
                batch = {k: v.to(device) for k, v in data.fetch(ids).items()}
                batch.update(item=ids.to(device), view=torch.zeros_like(ids, device=device))
                logits, labels, where = shifted(self._show(built, batch), batch)
                theirs = None
                if teacher is not None:
                    try:
                        theirs = self._show(teacher, batch)[:, :-1]
                    except CacheMismatch:  # a recorded teacher knows its training items only
                        teacher = None
                rows = where.flatten().nonzero()[:, 0]
                for part in torch.split(rows, max(1, CELLS // logits.shape[-1])):
                    z, y = logits.flatten(0, 1)[part], labels.flatten()[part]
                    for name, value in _judge(z, y, None if theirs is None else theirs.flatten(0, 1)[part]).items():
                        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().sum().cpu()
                count += len(rows)
        if not count:
            raise DataError("data", "no position of this split counts", remedy="see task.loss_on and task.length")
        found = {name: float(total / count) for name, total in sums.items()}
        found["perplexity"] = math.exp(min(found["cross_entropy"], 700.0))
        density = getattr(data, "tokens_per_byte", None)
        if density is not None:
            found["bits_per_byte"] = found["cross_entropy"] / math.log(2) * density
        return found

    def _show(self, built: Built, batch: Batch) -> Tensor:
        if hasattr(built.module, "answer"):
            signal: Signal = built.module.answer(batch, ())
            return signal.logits
        return Signal(built.contract.outputs(self.feed(built.module, batch))).logits

    def default_student(self) -> dict[str, Any]:
        """Two layers of width 64."""
        return {"use": "causal-lm", "layers": 2, "width": 64}

    def default_teacher(self) -> dict[str, Any]:
        """Four layers of width 128."""
        return {"use": "causal-lm", "layers": 4, "width": 128}

    def cache_bytes(self) -> float:
        """A recorded teacher keeps some 50 likeliest tokens (id and half precision logit) a position, and the tail."""
        return self.length * (50 * 6.0 + 4.0)


def _judge(z: Tensor, y: Tensor, theirs: Tensor | None) -> dict[str, Tensor]:
    """Per-token values for rows of logits ``[n, V]``."""
    log_q = z.float().log_softmax(-1)
    guess = z.argmax(-1)
    found = {
        "cross_entropy": -log_q.gather(-1, y.unsqueeze(-1)).squeeze(-1),
        "accuracy": guess == y,
        "entropy": -expect(log_q.exp(), log_q),
    }
    if theirs is not None:
        log_p = theirs.float().log_softmax(-1)
        p = log_p.exp()
        found["kl"] = expect(p, log_p - log_q).clamp(min=0.0)
        found["agreement"] = guess == theirs.argmax(-1)
        found["teacher_entropy"] = -expect(p, log_p)
    return found


def run(module: Any, batch: Batch) -> Any:
    """Call a causal model on a batch: transformers models with mask and without cache, others on the ids alone."""
    if hasattr(module, "config") or hasattr(getattr(module, "_orig_mod", None), "config"):
        return module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return module(batch["input_ids"])


def shifted(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[N, T-1, V]`` of positions that predict, the tokens they should predict, and which of these count."""
    labels = batch["labels"][:, 1:]
    if logits.ndim != 3 or logits.shape[:2] != batch["labels"].shape:
        expected = f"logits [N, T, V] for token ids {list(batch['labels'].shape)}"
        raise ShapeError("student", "the model is no language model", given=list(logits.shape), expected=expected)
    return logits[:, :-1], labels, labels != IGNORE


# ---------------------------------------------------------------------------------------------------- token data


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
            self.pad = _pad_id(task.tokenizer)
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


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What stands before and after a document: the start token if the tokenizer sets one itself, and the end token."""
    own = tokenizer("", verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    return ([bos] if bos is not None and own[:1] == [bos] and bos != eos else []), ([eos] if eos is not None else [])


def _pad_id(tokenizer: Any) -> int:
    return int(next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0))


def _ids_of(tokenizer: Any) -> int:
    return int(max(tokenizer.get_vocab().values())) + 1


# ---------------------------------------------------------------------------------------------------- tokenizers


def load_tokenizer(name: str, **options: Any) -> Any:
    """A tokenizer of the Hub or of a local folder, with a readable error where there is none."""
    transformers = _transformers("tokenizers of the Hugging Face Hub")
    try:
        return transformers.AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "task.tokenizer",
            f"transformers cannot load it: {_first_line(error)}",
            given=name,
            remedy="give a Hub id or a folder with tokenizer.json; offline, the id must be in the local cache",
        ) from None


def byte_pairs(texts: Texts, vocab_size: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) trained on the training split, kept in the workspace.

    It ends documents with ``<|end|>`` (id 0) and pads with ``<|pad|>`` (id 1); every text has a spelling in it.
    """
    transformers = _transformers("language models")
    tokenizers = require("tokenizers", "language", "training a tokenizer")
    from limbeck.core import store
    from limbeck.run import workspace

    digest = hashlib.blake2b(f"byte pairs 1 {vocab_size}".encode(), digest_size=10)
    for document in texts.train:
        digest.update(document.key.encode())
    folder = workspace() / f"tokenizer-{digest.hexdigest()}"
    try:
        core = tokenizers.Tokenizer.from_str(store.load_tree(folder)["tokenizer"])
    except (CheckpointCorrupt, StorageError):  # not there yet, or damaged: it is made (again)
        level = tokenizers.pre_tokenizers.ByteLevel
        core = tokenizers.Tokenizer(tokenizers.models.BPE())
        core.pre_tokenizer = level(add_prefix_space=False)
        core.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|end|>", "<|pad|>"],
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        core.train_from_iterator([f"{d.prompt}\n{d.text}" if d.prompt else d.text for d in texts.train], trainer)
        store.save_tree(folder, {"tokenizer": core.to_str()})
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


PROBES = (
    "Hello, world! It's 2025; isn't it?",
    "  indented\n\n\tand   spaced  text ",
    'def f(x: int) -> str:\n    return f"{x!r}"  # 1_000.5e-3',
    "naïve café, Straße, 東京, Ω≈3.14, 🙂🏽",
    "https://example.org/a?b=c&d=%20",
)


def shared_ids(one: Any, two: Any, whose: str, other: str, probes: Sequence[str] = ()) -> int:
    """How many token ids two tokenizers share, from 0 on: all, where they are the same; fewer, where one has more.

    Raises:
        TeacherMismatch: an id means two tokens, a token has two ids, or text is cut differently.
    """
    a, b = one.get_vocab(), two.get_vocab()
    names_a, names_b = ({i: t for t, i in v.items()} for v in (a, b))
    clash = next(((i, t, names_b[i]) for i, t in sorted(names_a.items()) if i in names_b and names_b[i] != t), None)
    moved = next(((t, i, b[t]) for t, i in a.items() if t in b and b[t] != i), None)
    if clash is not None or moved is not None:
        if clash is not None:
            said = f"id {clash[0]} is {clash[1]!r} for {whose} and {clash[2]!r} for {other}"
        else:
            assert moved is not None
            said = f"{moved[0]!r} is id {moved[1]} for {whose} and {moved[2]} for {other}"
        raise TeacherMismatch("tokenizer", f"{said} ({len(a)} and {len(b)} tokens)", remedy=_ACROSS)
    for probe in (*PROBES, *probes):
        cut = [t(probe, add_special_tokens=False, verbose=False)["input_ids"] for t in (one, two)]
        if cut[0] != cut[1]:
            raise TeacherMismatch(
                "tokenizer",
                f"{whose} and {other} have the same tokens, but cut text differently "
                f"({one.convert_ids_to_tokens(cut[0])[:6]} and {two.convert_ids_to_tokens(cut[1])[:6]})",
                given=probe[:60],
                remedy=_ACROSS,
            )
    both = names_a.keys() & names_b.keys()
    return next((i for i in range(len(both) + 1) if i not in both), 0) if both else 0


_ACROSS = (
    "token by token they cannot be compared: take two models of one family, train the student from scratch on the "
    "teacher's tokenizer (task.tokenizer=ID student=causal-lm), or use a method that works across tokenizers "
    "(sequence-level distillation on generated text, MiniPLM, ULD, DSKD)"
)


# ---------------------------------------------------------------------------------------------------- models


def _transformers(purpose: str) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked loader processes do not mix
    return require("transformers", "language", purpose)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def output_size(module: Any) -> int | None:
    """How many values a model gives for each position, if that can be told without running it."""
    head = head_of(module)
    if head is not None:
        return int(head.weight.shape[0])
    config = getattr(module, "config", None)
    size = getattr(config, "vocab_size", None)
    return int(size) if size is not None else None


def head_of(module: Any) -> nn.Linear | None:
    """The output layer of a transformers causal model if it is a plain linear layer whose output is the logits."""
    find = getattr(module, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if type(head) is nn.Linear else None


class CausalLm(Model):
    """A small decoder of the Llama architecture (transformers), trained from scratch.

    Args:
        layers: number of blocks.
        width: size of the hidden states, a multiple of ``heads``.
        heads: attention heads.
        kv_heads: heads of keys and values (grouped-query attention); ``null`` for as many as ``heads``.
        mlp: size of the gated layer; ``null`` for 8/3 of the width, rounded up to a multiple of 16.
        tied: use the input embedding as output layer.
        dropout: of the attention weights while training.
        checkpoint: weights to load, strictly: a ``.safetensors`` file, or a folder with ``model.safetensors``.
    """

    def __init__(
        self,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        kv_heads: int | None = None,
        mlp: int | None = None,
        tied: bool = True,
        dropout: float = 0.0,
        checkpoint: str | None = None,
    ) -> None:
        if layers < 1 or width < 1 or heads < 1:
            raise ValueError("layers, width and heads must be 1 or more")
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width must be an even multiple of heads: {width} over {heads} heads does not go")
        if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
            raise ValueError(f"kv_heads must divide heads ({heads})")
        if mlp is not None and mlp < 1:
            raise ValueError("mlp must be 1 or more, or null for 8/3 of the width")
        if not 0 <= dropout < 1:
            raise ValueError("dropout must lie in [0, 1)")
        self.layers, self.width, self.heads, self.kv_heads = layers, width, heads, kv_heads or heads
        self.mlp = mlp or -(-8 * width // 48) * 16
        self.tied, self.dropout, self.checkpoint = tied, dropout, checkpoint
        self.tokenizer: Any = None

    def build(self, task: Task) -> Built:
        """The network, with an output for every token of the task's tokenizer."""
        task = _language(task)
        transformers = _transformers("language models")
        self.tokenizer = task.tokenizer
        config = transformers.LlamaConfig(
            vocab_size=task.size,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=max(task.length, 512),
            tie_word_embeddings=self.tied,
            attention_dropout=self.dropout,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=None,
        )
        module = transformers.LlamaForCausalLM(config)
        if self.checkpoint is not None:
            from limbeck.core.store import load_state_dict, load_strict

            file = Path(self.checkpoint).expanduser()
            inside = [file / part for part in ("model.safetensors", "student/model.safetensors")]
            file = next((path for path in inside if path.is_file()), file)
            load_strict(module, load_state_dict(file), str(file))
        return Built(module, labels=None, model=self)

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The folder ``student/`` as transformers lays it out; ``from_pretrained`` reads it."""
        save_pretrained(module, self.tokenizer, Path(folder) / "student")


class HuggingFace(Model):
    """A causal language model of the Hugging Face Hub or of a local folder.

    Args:
        name: the Hub id, a folder that ``from_pretrained`` reads, or the folder of a run.
        dtype: of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` as they are stored.
        revision: branch, tag or commit on the Hub.
        gguf_file: name of a GGUF file in the folder or repository, whose weights are unpacked.
        pretrained: off, only the architecture is taken and the weights are drawn anew.
        lora: rank of low-rank adapters that are trained instead of the weights (peft); ``null`` trains the weights.
        lora_alpha: their scale; ``null`` for twice the rank.
        checkpoint: further weights to load, strictly: a ``.safetensors`` file.
    """

    def __init__(
        self,
        name: str,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
        revision: str | None = None,
        gguf_file: str | None = None,
        pretrained: bool = True,
        lora: int | None = None,
        lora_alpha: float | None = None,
        checkpoint: str | None = None,
    ) -> None:
        if lora is not None and lora < 1:
            raise ValueError("lora must be a rank of 1 or more, or null to train the weights themselves")
        if lora_alpha is not None and not lora_alpha > 0:
            raise ValueError("lora_alpha must be above 0, or null for twice the rank")
        self.name, self.dtype, self.revision, self.gguf_file = name, dtype, revision, gguf_file
        self.pretrained, self.lora, self.lora_alpha, self.checkpoint = pretrained, lora, lora_alpha, checkpoint
        self.tokenizer: Any = None

    @property
    def trained(self) -> bool:
        """Whether the weights are already good for something."""
        return self.pretrained or self.checkpoint is not None

    def build(self, task: Task) -> Built:
        """The network and its tokenizer, which becomes the task's or must agree with it.

        No code from the Hub is run, and weights are read as safetensors or with ``weights_only``.
        """
        task = _language(task)
        transformers = _transformers("models of the Hugging Face Hub")
        if self.gguf_file is not None and importlib.util.find_spec("gguf") is None:
            raise ConfigError(
                "hf.gguf_file",
                "reading GGUF files needs the package 'gguf'",
                given=self.gguf_file,
                remedy="pip install gguf",
            )
        place = self._place()
        options: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        if self.gguf_file is not None:
            options["gguf_file"] = self.gguf_file
        self.tokenizer = load_tokenizer(place, **options)
        task.adopt(self.tokenizer, self.name)
        try:
            if self.pretrained:
                with _quiet(transformers):
                    module = transformers.AutoModelForCausalLM.from_pretrained(
                        place, dtype=self.dtype if self.dtype == "auto" else getattr(torch, self.dtype), **options
                    )
            else:
                config = transformers.AutoConfig.from_pretrained(place, **options)
                module = transformers.AutoModelForCausalLM.from_config(config)
                module = module if self.dtype == "auto" else module.to(getattr(torch, self.dtype))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ConfigError(
                "hf.name",
                f"transformers cannot load it as a causal language model: {_first_line(error)}",
                given=self.name,
                remedy="give a Hub id or a folder with config.json; offline, the id must be in the local cache",
            ) from None
        if self.gguf_file is not None:
            # the weights are unpacked now: an ordinary model, which can be trained and saved as one
            module.hf_quantizer, module.is_quantized, module.quantization_method = None, False, None
            if hasattr(module.config, "quantization_config"):
                del module.config.quantization_config
        longest = getattr(module.config, "max_position_embeddings", None)
        if longest is not None and longest < task.length:
            raise ConfigError(
                "task.length", given=task.length, expected=f"at most the {longest} positions of hf:{self.name}"
            )
        if self.checkpoint is not None:
            from limbeck.core.store import load_state_dict, load_strict

            load_strict(module, load_state_dict(Path(self.checkpoint).expanduser()), self.checkpoint)
        if self.lora is not None:
            peft = require("peft", "language", "low-rank adapters")
            settings = peft.LoraConfig(
                r=self.lora,
                lora_alpha=self.lora_alpha or 2 * self.lora,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words that grow old
                module = peft.get_peft_model(module, settings)
        return Built(module, labels=None, model=self)

    def _place(self) -> str:
        folder = Path(self.name).expanduser()
        inside = folder / "student"
        if (inside / "config.json").is_file() and not (folder / "config.json").is_file():
            return str(inside)
        return str(folder) if folder.exists() else self.name

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The folder ``student/`` as transformers lays it out; adapters are merged in, and in ``adapter/`` besides."""
        save_pretrained(module, self.tokenizer, Path(folder) / "student")
        if self.lora is not None:
            from limbeck.core.store import atomic_folder

            with atomic_folder(Path(folder) / "adapter") as place:
                module.save_pretrained(place)  # type: ignore[operator]


def save_pretrained(module: nn.Module, tokenizer: Any, folder: Path) -> None:
    """A transformers model and its tokenizer as one folder, complete or not there at all."""
    from limbeck.core.store import atomic_folder

    transformers = _transformers("saving a language model")
    merge = getattr(module, "merge_and_unload", None)
    if callable(merge):
        module = copy.deepcopy(module).merge_and_unload()  # type: ignore[operator]
    with atomic_folder(folder) as place, _quiet(transformers):
        module.save_pretrained(place)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(place)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's own progress bars: ours is the one that is shown."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _language(task: Task) -> Language:
    if not isinstance(task, Language):
        raise ConfigError(
            "model",
            f"a causal language model cannot serve the task {type(task).__name__}",
            remedy="set task=language, or choose a model of that task",
        )
    return task


__all__ = [
    "CausalLm",
    "HuggingFace",
    "Language",
    "TokenData",
    "byte_pairs",
    "head_of",
    "make_batch",
    "output_size",
    "run",
    "shared_ids",
    "shifted",
]
