"""Text without labels for encoders: some words are hidden, and told from what stands around them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from limbeck import functional as F
from limbeck.data.asked import asked_texts
from limbeck.data.items import digest
from limbeck.data.splits import check_shares
from limbeck.data.text import Document, PythonHelp, Texts, TextSource, few, places_of
from limbeck.engine.batches import to_device
from limbeck.errors import CacheMismatch, ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.grammar.answers import Answer
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.causal import output_size
from limbeck.tasks.tokenized import LazyRows, Rows, Tokenized, encode, hidden, trunk
from limbeck.tasks.tokenizers import pad_id, shared_ids, vocabulary_size

NAMES = {"task": {"masked-words": "MaskedWords"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class MaskedWords(Tokenized, Task):
    """Text for encoders. The supervised loss is that of masked language models: some tokens are hidden, and to be told.

    What is hidden is drawn by the item's number and by how often it was seen, so that it is the same whoever asks, and new
    in each epoch. A batch holds the whole text: methods that compare representations read it as it is.

    Args:
        data: where the text comes from.
        tokenizer: a Hub id or local folder; ``null`` takes the models' own, or trains one.
        vocab_size: size of a trained tokenizer (byte-level BPE).
        length: tokens in a row, at most; ``null``: 128, or as many as the models have positions for, if fewer. Longer
            texts become several rows.
        packing: ``pad``: rows of one document each; ``pack``: documents laid end to end and cut into full rows.
        share: of the tokens that are hidden: of ten such eight become the mask, one another token, one stays.
        student_documents: size of the student's training set, drawn by the seed; all if ``null``.
        valid_fraction: share of the text set aside for choosing, where the data names no such split.
        test_fraction: share of the text set aside for evaluation, where the data names no such split.
        eval_batch: rows at a time in evaluation.
        deal: which division into training, validation and test texts: 0 is the data's own, where it names splits.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)

    primary = "cross_entropy"
    higher_is_better = False
    kind_of_target = "token"
    onnx_names = ("input_ids", "attention_mask")
    judging = ("eval_batch",)

    def __init__(
        self,
        data: TextSource = PythonHelp(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        length: int | None = None,
        packing: Literal["pad", "pack"] = "pad",
        share: float = 0.15,
        student_documents: int | None = None,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.1,
        eval_batch: int = 64,
        deal: int = 0,
    ) -> None:
        # written out: the setting "tokenizer" has the name of the tokenizer that comes of it
        self._tokens(tokenizer, vocab_size, length)
        if not 0 < share < 1:
            raise ValueError("share must lie between 0 and 1: 0.15 hides every seventh token or so")
        if student_documents is not None and student_documents < 1:
            raise ValueError("student_documents must be 1 or more, or null for all")
        check_shares(valid_fraction, test_fraction)
        if eval_batch < 1 or deal < 0:
            raise ValueError("eval_batch must be 1 or more, deal 0 or more")
        self.data, self.packing, self.share, self.deal = data, packing, share, deal
        self.student_documents, self.eval_batch = student_documents, eval_batch
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.notes: list[str] = []
        self.columns: int | None = None
        self._texts: Texts | None = None
        self._seed: int | None = None

    # ------------------------------------------------------------------------------------------------ answers

    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """The length of rows, and how many outputs are read."""
        if about.get("length"):
            self.length = int(about["length"])
        self.columns = int(about["outputs"]) if about.get("outputs") else None
        if bare:
            self._texts = Texts([], [], [], False, [])
            self.train = self.teacher_train = self.valid = self.test = TextRows(self, [], "asked")
            self._seed = 0

    def describe(self) -> dict[str, Any]:
        """What must be known to feed a network elsewhere."""
        return {"form": "hidden-tokens", "target": "token", "length": self.length, "outputs": self.columns}

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Texts, a row each; what is longer is cut off at the end."""
        documents, names = asked_texts(given)
        twin = copy.copy(self)
        twin.packing, twin.notes = "pad", []
        rows = AskedText(twin, documents, "given")
        rows.names = names
        return rows

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """The likeliest words in the place of every mask; of a text without a mask its embedding, the mean over its tokens."""
        ids, mask = batch["input_ids"], self.tokenizer.mask_token_id
        out = self._ask(built, ids, batch)
        inner = hidden_states(built, ids, batch) if not _answers(out) else None
        top, found = int(options.get("top") or 5), []
        for i, item in enumerate(items.tolist()):
            at = (ids[i] == mask).nonzero()[:, 0].tolist() if mask is not None else []
            row: dict[str, Any] = {"text": _text(asked.documents[item])}
            if at and not _answers(out):
                raise _headless()
            if at:
                p = Signal(out).logits[i, at].float().softmax(-1).cpu()
                best = p.topk(min(top, p.shape[-1]), -1)
                row["fills"] = [
                    {self.tokenizer.decode([t]).strip(): float(v) for t, v in zip(ts, vs, strict=True)}
                    for ts, vs in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ]
                row["label"], row["score"] = next(iter(row["fills"][0].items()))
                found.append(Answer(row, {"fills": p}))
                continue
            states = inner if inner is not None else hidden_states(built, ids, batch)
            real = batch["attention_mask"][i].bool()
            vector = states[i][real].float().mean(0).cpu()
            found.append(Answer({**row, "vector": vector.tolist()}, {"vector": vector}))
        return found

    def _ask(self, built: Built, ids: Tensor, batch: Batch) -> Any:
        """A network, or a graph of one, on rows of ids as they are."""
        if hasattr(built.module, "answer"):
            return built.module.answer({**batch, "input_ids": ids}, ()).out
        out = encode(built.module, ids, batch)
        if self.columns is None or not _answers(out):
            return out
        return Signal(out).logits[..., : self.columns]

    # ------------------------------------------------------------------------------------------------ data

    def load(self, seed: int | None = None) -> None:
        """Read the text, deal it, choose the student's documents by ``seed``. Rows are made when first asked for.

        Raises:
            DataError: nothing to read, or something that cannot be read.
        """
        if self._texts is None:
            self._texts = self.data.deal(self.valid_fraction, self.test_fraction, self.deal)
            self.notes.extend(self._texts.notes)
            self.teacher_train: TextRows = TextRows(self, self._texts.train, "train")
            self.valid: TextRows = TextRows(self, self._texts.valid, "valid")
            self.test: TextRows = TextRows(self, self._texts.test, "test")
            self.train: TextRows = self.teacher_train
        seed = (self._seed or 0) if seed is None else seed
        if self._seed == seed:
            return
        if self.student_documents is not None:
            chosen, said = few(self._texts.train, self.student_documents, seed)
            self.train = TextRows(self, chosen, "student")
            self.note(said)
        self._seed = seed

    def sample(self, most: int | None = None) -> list[str]:
        """The first training texts."""
        self.load()
        assert self._texts is not None
        return [_text(d)[: 300 if most else None] for d in self._texts.train[:most]]

    def forget(self) -> None:
        """Make the rows anew: the length has changed."""
        if self._texts is not None:
            for data in (self.train, self.teacher_train, self.valid, self.test):
                data.forget()

    @property
    def needs(self) -> Needs:
        """A row of values over the vocabulary at every token."""
        return Needs((self.length,), 0, "hidden-tokens", target="token", tokens=self)

    # ------------------------------------------------------------------------------------------------ training

    def hide(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids [N, T] with some hidden, and which tokens these are, bool [N, T]; the same tensors for the same batch.

        Raises:
            ConfigError: the tokenizer has no mask.
        """
        ids: Tensor = batch["input_ids"]
        if ids in _HIDDEN:
            return _HIDDEN[ids]
        mask = self.tokenizer.mask_token_id
        if mask is None:
            raise ConfigError(
                "task.tokenizer",
                "it has no mask token, so no word can be hidden",
                given=self._whose,
                remedy="take an encoder's tokenizer (BERT, RoBERTa), or leave task.tokenizer out to train one",
            )
        special = torch.tensor(sorted(set(self.tokenizer.all_special_ids)), device=ids.device)
        words = batch["where"] & ~torch.isin(ids, special)
        draws = Draws(self._seed or 0, ("masked-words",), ids.device)
        key = batch["item"] + (batch["view"] << 40)
        u = draws.rand("which", key, ids.shape[1:]).masked_fill(~words, 2.0)
        which = (u < self.share) | ((u == u.amin(1, keepdim=True)) & words)  # one a row at least
        how = draws.rand("how", key, ids.shape[1:])
        other = draws.randint("other", key, self.vocabulary, ids.shape[1:])
        shown = torch.where(which & (how < 0.8), torch.full_like(ids, mask), ids)
        shown = torch.where(which & (how >= 0.9), other, shown)
        _HIDDEN[ids] = shown, which
        return shown, which

    def feed(self, module: Any, batch: Batch) -> Any:
        """The text with hidden words into a model: logits [N, T, V], or what an encoder alone returns."""
        out = encode(module, self.hide(batch)[0], batch)
        if self.columns is None or not _answers(out):
            return out
        return Signal(out).logits[..., : self.columns]

    def plainly(self, module: Any, batch: Batch) -> Any:
        """The text as it stands, no word hidden."""
        out = encode(module, batch["input_ids"], batch)
        return out if self.columns is None or not _answers(out) else Signal(out).logits[..., : self.columns]

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Cross-entropy of the hidden tokens, [N, T]."""
        if not _answers(signal.out):
            raise _headless()
        logits, where = signal.logits, self.hide(batch)[1]
        if logits.ndim != 3 or logits.shape[:2] != where.shape:
            raise ShapeError("student", given=list(logits.shape), expected=f"logits {[*where.shape, 'V']}, one a token")
        return Term(F.cross_entropy(logits, batch["input_ids"], where=where), where=where)

    def counted(self, batch: Batch) -> Tensor:
        """Which tokens count, [N, T]: the hidden ones."""
        return self.hide(batch)[1]

    def match(self, student: Built, teacher: Built) -> None:
        """Both models must have one vocabulary; outputs are cut to what they share.

        Raises:
            TeacherMismatch: the ids differ.
        """
        one, two = (getattr(b.model, "tokenizer", None) or self.tokenizer for b in (student, teacher))
        if one is not two:
            shared = shared_ids(one, two, "the student", "the teacher", self.sample(10))
            if shared < vocabulary_size(one):
                raise TeacherMismatch("tokenizer", f"the teacher knows {shared} of the student's token ids")
        sizes = [n for b in (student, teacher) if (n := output_size(b.module)) is not None]
        self.columns = min(sizes) if len(set(sizes)) > 1 else None

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a model on a split: cross_entropy (nats a hidden token), perplexity, accuracy; with a teacher that
        answers with words, kl (teacher || student) and agreement.

        Raises:
            ConfigError: the model is an encoder alone.
        """
        device = device or device_of(built.module)
        sums: dict[str, Tensor] = {}
        losses, tokens = [], []
        with torch.no_grad(), evaluating([b.module for b in (built, teacher) if b is not None]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                where = self.hide(batch)[1]
                out = self._ask(built, self.hide(batch)[0], batch)
                if not _answers(out):
                    raise _headless()
                log_q = Signal(out).logits[where].float().log_softmax(-1)
                y = batch["input_ids"][where]
                loss = -log_q.gather(-1, y[:, None])[:, 0]
                found = {"cross_entropy": loss, "accuracy": log_q.argmax(-1) == y}
                theirs = self._theirs(teacher, batch)
                if theirs is None:
                    teacher = None
                else:
                    log_p = theirs[where].float().log_softmax(-1)
                    found["kl"] = (log_p.exp() * (log_p - log_q)).sum(-1)
                    found["agreement"] = log_q.argmax(-1) == log_p.argmax(-1)
                for name, value in found.items():
                    sums[name] = sums.get(name, torch.zeros(())) + value.double().sum().cpu()
                losses.append(
                    torch.zeros(where.shape, dtype=torch.float64)
                    .masked_scatter_(where.cpu(), loss.double().cpu())
                    .sum(1)
                )
                tokens.append(where.sum(1).double().cpu())
        count = float(torch.cat(tokens).sum())
        metrics = {name: float(total) / max(count, 1.0) for name, total in sums.items()}
        metrics["perplexity"] = math.exp(min(metrics["cross_entropy"], 700.0))
        return Scores(metrics, {"cross_entropy": torch.cat(losses)}, torch.cat(tokens))

    def _theirs(self, teacher: Built | None, batch: Batch) -> Tensor | None:
        if teacher is None:
            return None
        try:
            out = (
                teacher.module.answer(batch, ()).out
                if hasattr(teacher.module, "answer")
                else self.feed(teacher.module, batch)
            )
        except CacheMismatch:
            return None
        return Signal(out).logits if _answers(out) else None

    def default_student(self) -> dict[str, Any]:
        """Two layers of width 48."""
        return {"use": "encoder", "layers": 2, "width": 48}

    def default_teacher(self) -> dict[str, Any]:
        """Four layers of width 96."""
        return {"use": "encoder", "layers": 4, "width": 96}

    def cache_bytes(self) -> float:
        """None: what is hidden changes in each epoch."""
        return 0.0


_HIDDEN: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Ids of a batch -> what is shown of them, and what is hidden."""


def _answers(out: Any) -> bool:
    """Whether an output is words (logits) and no hidden states."""
    return isinstance(out, Tensor) or hasattr(out, "logits")


def _headless() -> ConfigError:
    return ConfigError(
        "student",
        "it is an encoder alone, which tells no words",
        expected="a model with a head for masked words",
        remedy="evaluate encoders by what they are worth elsewhere (evaluator=probe with evaluator.on), or take a folder that "
        "holds a ...ForMaskedLM",
    )


def hidden_states(built: Built, ids: Tensor, batch: Batch) -> Tensor:
    """Last hidden states [N, T, D] of an encoder, with or without a head.

    Raises:
        ConfigError: it is a graph, which shows its outputs alone.
    """
    if hasattr(built.module, "answer"):
        raise ConfigError(
            "inputs", "a text without a mask is answered by its embedding, which an ONNX file of words does not show",
            remedy="put the tokenizer's mask where a word is to be told, or name the run",
        )  # fmt: skip
    return hidden(encode(trunk(built.module), ids, batch))


def _text(document: Document) -> str:
    return f"{document.prompt}\n{document.text}" if document.prompt else document.text


class TextRows(LazyRows[MaskedWords]):
    """Documents as rows of token ids, marks included; long ones become several rows.

    A batch holds ``input_ids`` int64 [n, T], ``attention_mask`` int64 [n, T], and ``where`` bool [n, T]: the real tokens.
    """

    def __init__(self, task: MaskedWords, documents: list[Document], name: str) -> None:
        super().__init__(task, documents)
        self.name = name

    def make(self, task: MaskedWords) -> Rows:
        """One row a document, or several; or all of them end to end.

        Raises:
            DataError: no text has a token.
        """
        texts = [_text(d) for d in self.documents]
        texts = ["\n".join(texts)] if task.packing == "pack" else texts
        cut = task.tokenizer(
            texts, truncation=True, max_length=task.length, return_overflowing_tokens=True, verbose=False
        )
        marks = len(task.tokenizer("", verbose=False)["input_ids"])
        rows = [row for row in cut["input_ids"] if len(row) > marks]
        whose = set(cut["overflow_to_sample_mapping"])
        empty = [d for i, d in enumerate(self.documents) if i not in whose] if task.packing == "pad" else []
        if not rows:
            raise DataError("data", f"no text of the {self.name} split has a token", given=places_of(empty, 5))
        if len(rows) > len(texts) and task.packing == "pad":
            task.note(
                f"{self.name}: {len(texts)} documents in {len(rows)} rows of at most {task.length} tokens (task.length)"
            )
        return Rows(rows, None, pad_id(task.tokenizer))

    def fetch(self, items: Tensor) -> Batch:
        """The rows as a batch."""
        ids, real, _ = self.rows().fetch(items)
        return {"input_ids": ids, "attention_mask": real, "where": real.bool()}

    @property
    def fingerprint(self) -> str:
        """A content hash of the rows."""
        made = self.rows()
        return digest(made.ids, made.sizes)


class AskedText(TextRows):
    """Texts that somebody asks about, a row each.

    Attributes:
        names: how they are called.
    """

    names: list[str]

    def make(self, task: MaskedWords) -> Rows:
        """A row a text."""
        texts = [_text(d) for d in self.documents]
        cut = task.tokenizer(texts, truncation=True, max_length=task.length, verbose=False)
        return Rows(cut["input_ids"], None, pad_id(task.tokenizer))
