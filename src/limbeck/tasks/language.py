"""Language models: text in, the next token out, on transformers' causal models."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.data.asked import asked_texts
from limbeck.data.shards import Shards, Stream
from limbeck.data.splits import check_shares
from limbeck.data.text import PythonHelp, Texts, TextSource, few
from limbeck.engine.batches import to_device
from limbeck.errors import CacheMismatch, ConfigError, DataError, TeacherMismatch
from limbeck.functional._common import expect
from limbeck.functional.precision import widened
from limbeck.grammar.answers import Answer
from limbeck.grammar.heads import Head, Logits, answer, answered, cross_entropy, rows_of
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.scores import Scores
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import DENSE_OUTPUTS, Task
from limbeck.tasks.causal import call, output_size
from limbeck.tasks.offsets import Ends
from limbeck.tasks.specimen import specimen
from limbeck.tasks.streamed_tokens import StreamTokens
from limbeck.tasks.tokenizers import byte_pairs, load_tokenizer, shared_ids, special_ids, text_steps, vocabulary_size
from limbeck.tasks.tokens import TokenData, TooLong, next_counts, shifted

NAMES = {"task": {"language": "Language"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

log = logging.getLogger("limbeck.data")

CELLS = 1 << 24
"""Tokens times vocabulary that may be held at a time in evaluation."""


LEARNT_FROM = 20_000
"""Texts of a stream from which a tokenizer is trained."""

LENGTH = 128
"""Tokens in a sequence where neither a length was given nor a model has fewer positions."""


class Language(Task):
    """Text, whose every next token is to be predicted.

    Without ``tokenizer`` the models' own is used; for models from scratch a byte-level BPE of ``vocab_size`` tokens is
    trained on the training split, and remembered.

    Args:
        data: where the text comes from.
        tokenizer: a Hub id or local folder; ``null`` takes the models' own, or trains one.
        vocab_size: size of a trained tokenizer.
        length: tokens in a training sequence; ``null``: 128, or as many as the models have positions for, if fewer.
        packing: lay documents end to end and cut sequences from them (``pack``), or one document a sequence, cut off
            or padded (``pad``); ``auto`` pads prompts with responses and packs the rest.
        loss_on: (``task.loss`` for short) ``all`` tokens; ``assistant``, or ``response``: those after the prompt, of
            conversations all that the assistant says; ``last``: its last turn; ``auto``: ``assistant`` of conversations and
            of pairs that were told by their fields' names, else ``all``.
        long_prompts: what becomes of a prompt that leaves no room for its response: ``drop`` the pair, or ``cut`` the
            prompt at its left.
        template: how a prompt is written: as the tokenizer's ``chat`` template says, ``plain`` with a line break after
            it, or ``auto``: by the chat template where there is one.
        student_documents: size of the student's training set, drawn by the seed; all if ``null``. The teacher learns
            from all.
        valid_fraction: share of the text set aside for choosing, where the data names no such split.
        test_fraction: share of the text set aside for evaluation, where the data names no such split.
        eval_batch: sequences at a time in evaluation.
        eval_sequences: how many sequences of the valid and test splits are evaluated, spread evenly; all if ``null``.
        deal: which division into training, validation and test texts: 0 is the data's own, where it names splits; every
            other number deals all documents anew, into splits as long as they were.
        too_long: what becomes of a document longer than ``length``: ``cut-right`` leaves out its end, ``cut-left`` its
            beginning, ``drop`` all of it; ``refuse`` names them and stops. How many they are is noted.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)
    neutral = ("too_long",)

    primary = "cross_entropy"
    higher_is_better = False
    kind_of_target = "token"
    onnx_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        data: TextSource = PythonHelp(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        length: int | None = None,
        packing: Literal["auto", "pack", "pad"] = "auto",
        loss_on: Literal["auto", "all", "assistant", "response", "last"] = "auto",
        long_prompts: Literal["drop", "cut"] = "drop",
        template: Literal["auto", "chat", "plain"] = "auto",
        student_documents: int | None = None,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.1,
        eval_batch: int = 32,
        eval_sequences: int | None = None,
        deal: int = 0,
        too_long: TooLong = "cut-right",
    ) -> None:
        # written out: the setting "tokenizer" has the name of the tokenizer that comes of it
        if vocab_size < 258:
            raise ValueError("vocab_size must be 258 or more: the 256 bytes, an end and a padding token")
        if vocab_size > 1 << 22:
            raise ValueError(f"vocab_size must be at most {1 << 22:,}")
        if length is not None and length < 2:
            raise ValueError("length must be 2 or more: one token to read and one to predict")
        if student_documents is not None and student_documents < 1:
            raise ValueError("student_documents must be 1 or more, or null for all")
        check_shares(valid_fraction, test_fraction)
        if eval_batch < 1:
            raise ValueError("eval_batch must be 1 or more")
        if eval_sequences is not None and eval_sequences < 1:
            raise ValueError("eval_sequences must be 1 or more, or null for all")
        self.data, self.tokenizer_name, self.vocab_size = data, tokenizer, vocab_size
        self.asked_length, self.length = length, length or LENGTH
        self.loss_on = "response" if loss_on == "assistant" else loss_on
        self.packing, self.template, self.long_prompts, self.too_long = packing, template, long_prompts, too_long
        if deal < 0:
            raise ValueError("deal must be 0 or more")
        self.student_documents, self.eval_sequences, self.deal = student_documents, eval_sequences, deal
        self.valid_fraction, self.test_fraction, self.eval_batch = valid_fraction, test_fraction, eval_batch
        self.notes: list[str] = []
        self.columns: int | None = None
        self.positions: int | None = None
        self._marks = 0
        self._ends: Ends | None = None
        self._reader: tuple[int | None, Language] | None = None
        self._texts: Texts | None = None
        self._tokenizer: Any = None
        self._whose = ""
        self._seed: int | None = None

    # ------------------------------------------------------------------------------------------------ answers

    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """The length of rows, what counts in them, and how many outputs are read."""
        if about.get("length"):
            self.length = int(about["length"])
        self.columns = int(about["outputs"]) if about.get("outputs") else None
        if bare:
            self.loss_on = "all" if about.get("counts_prompts", True) else "response"
            self._texts = Texts([], [], [], bool(about.get("pairs")), [], answers=bool(about.get("answers")))
            none = TokenData(self, [], "asked")
            self.train = self.teacher_train = self.valid = self.test = none
            self._seed = 0
            self.asked_length = None

    def describe(self) -> dict[str, Any]:
        """What must be known to feed a network elsewhere."""
        return {
            "form": "tokens",
            "target": "token",
            "length": self.length,
            "outputs": self.columns,
            "counts_prompts": self.counts_prompts,
            "pairs": self.texts.pairs,
            **({"answers": True} if self.texts.answers else {}),
        }

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Texts, or prompts with what follows them, one a row; what is longer than a row is cut off at its end."""
        documents, names = asked_texts(given)
        twin = copy.copy(self)
        twin.packing, twin.notes = "pad", []
        twin._texts = Texts(documents, [], [], self.texts.pairs, [], answers=self.texts.answers)
        twin.long_prompts, twin.too_long = "cut", "cut-right"
        data = AskedTokens(twin, documents, "given")
        data.names = names
        if len(data) < len(documents):
            raise DataError(
                "inputs",
                f"{len(documents) - len(data)} texts are shorter than two tokens, or their prompt alone fills {self.length}",
                expected=f"texts of 2 to {self.length} tokens",
            )
        return data

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """How likely each text is (nats a token, as the report counts them), and how the network goes on, where it is to.

        With ``tokens=N`` it writes N tokens greedily after the text (after the prompt of a pair).
        """
        logits, labels, where = shifted(self._show(built, batch), batch)
        loss = torch.zeros(where.shape, dtype=torch.float64)
        right = torch.zeros(where.shape, dtype=torch.bool)
        for i in range(len(items)):  # one row at a time: a batch of logits in float32 would be twice as large
            log_q = rows_of(logits[i : i + 1], slice(None)).float().log_softmax(-1)
            loss[i] = -log_q.gather(-1, labels[i].clamp_min(0)[:, None])[:, 0].double().cpu()
            right[i] = (log_q.argmax(-1) == labels[i]).cpu()
        counts = where.cpu()
        total, n = (loss * counts).sum(1), counts.sum(1)
        written = self._written(built, batch, asked, items, int(options.get("tokens") or 0))
        found = []
        for i, item in enumerate(items.tolist()):
            tokens = int(n[i])
            mean = float(total[i]) / max(1, tokens)
            document = asked.documents[item]
            row: dict[str, Any] = {"text": document.prompt or document.text}
            if written:
                row["completion"] = written[i]
            row |= {
                "tokens": tokens,
                "cross_entropy": mean,
                "perplexity": math.exp(min(mean, 700.0)),
                "accuracy": float((right[i] & counts[i]).sum()) / max(1, tokens),
            }
            found.append(Answer(row))
        return found

    def _written(self, built: Built, batch: Batch, asked: Any, items: Tensor, tokens: int) -> list[str]:
        """What the network writes after each text, greedily."""
        if not tokens:
            return []
        tokenizer, made = self.tokenizer, []
        end = tokenizer.eos_token_id
        sizes = batch["attention_mask"].sum(1)
        for i, item in enumerate(items.tolist()):
            size = int(batch["prompt"][i]) if asked.documents[item].prompt else int(sizes[i])
            row = batch["input_ids"][i, :size].tolist()
            if not asked.documents[item].prompt and end is not None and row and row[-1] == end:
                row = row[:-1]  # a text that is to go on has not ended
            begun = len(row)
            for _ in range(tokens):
                ids = torch.tensor([row[-self.length :]], device=batch["input_ids"].device)
                fed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
                best = int(rows_of(self._show(built, fed)[:, -1:], slice(None)).argmax())
                if best == end:
                    break
                row.append(best)
            made.append(tokenizer.decode(row[begun:], skip_special_tokens=True))
        return made

    # ------------------------------------------------------------------------------------------------ data

    @property
    def needs(self) -> Needs:
        """A row of values at every token; how many is known with the tokenizer, which is a model's or the task's."""
        return Needs((self.length,), 0, "tokens", target="token", tokens=self)

    def load(self, seed: int | None = None) -> None:
        """Read the text, deal it, choose the student's documents by ``seed``. Tokens are made when first asked for.

        Raises:
            DataError: nothing to read, or something that cannot be read.
        """
        if self._texts is None:
            self._texts = self.dealt()
            self.notes.extend(self._texts.notes)
            if self.packing == "pack" and self.loss_on in ("response", "last"):
                raise ConfigError(
                    "task.packing",
                    f"documents laid end to end count whole, and task.loss_on={self.loss_on} counts responses",
                    remedy="set task.packing=pad, or task.loss_on=all",
                )
            if self.too_long != "cut-right" and self.packed:
                raise ConfigError(
                    "task.too_long",
                    "documents laid end to end are cut into sequences, and none is too long",
                    given=self.too_long,
                    remedy="set task.packing=pad, or leave task.too_long out",
                )
            if self.loss_on == "auto" and self._texts.pairs and self.counts_prompts:
                self.note("all tokens are learnt, those of prompts too; task.loss=assistant learns the responses alone")
            self.teacher_train: TokenData = self._whole(self._texts)
            self.valid: TokenData = TokenData(self, self._texts.valid, "valid", self.eval_sequences)
            self.test: TokenData = TokenData(self, self._texts.test, "test", self.eval_sequences)
            self.train: TokenData = self.teacher_train
        if self.student_documents is not None and isinstance(self._texts.train, Stream):
            raise ConfigError(
                "task.student_documents",
                "texts that are streamed are not chosen from",
                given=self.student_documents,
                remedy="name fewer shards, or leave it out",
            )
        seed = (self._seed or 0) if seed is None else seed
        if self._seed == seed:
            return
        apart = self._texts.teacher_only or self._texts.student_only
        if self.student_documents is not None or apart:
            chosen, said = few(self._texts.train, self.student_documents, seed)
            self.train = TokenData(self, [*chosen, *self._texts.student_only], "student")
            if said:
                self.note(said)
        self._seed = seed

    def _whole(self, texts: Texts) -> TokenData:
        """All training texts."""
        if isinstance(texts.train, Stream):
            if self.packing == "pack":
                raise ConfigError(
                    "task.packing",
                    "texts that are streamed have a row each",
                    given="pack",
                    remedy="leave it out, or read the files into memory (jsonl:, parquet:)",
                )
            return StreamTokens(self, texts.train, "train")
        return TokenData(self, [*texts.train, *texts.teacher_only], "train")

    def dealt(self) -> Texts:
        """The documents as the source deals them; a task that shows them in another form changes them here."""
        if type(self) is Language and isinstance(self.data, Shards) and not self.deal:
            return self.data.streaming()
        return self.data.deal(self.valid_fraction, self.test_fraction, self.deal)

    def note(self, text: str) -> None:
        """Say how data was read, once."""
        if text not in self.notes:
            self.notes.append(text)
            log.info(text)

    def limit(self, positions: int, name: str) -> None:
        """A model has so many positions: a length that nobody gave follows, one that was given must fit.

        Raises:
            ConfigError: ``task.length`` is larger.
        """
        self.positions = positions if self.positions is None else min(positions, self.positions)
        if positions >= self.length:
            if self.asked_length is None and not any(n.startswith("sequences of ") for n in self.notes):
                self.note(f"sequences of {self.length} tokens; {name} has positions for {positions:,} (task.length)")
            return
        if self.asked_length is not None:
            raise ConfigError(
                "task.length",
                given=self.asked_length,
                expected=f"at most the {positions} positions of {name}",
                remedy=f"set task.length={positions}, or task.length=null to take it from the models",
            )
        self.notes = [n for n in self.notes if not n.startswith("sequences of ")]
        self.length = positions
        self.note(f"sequences of {positions} tokens, as many as {name} has positions (task.length)")
        if self._texts is not None:
            for data in {id(d): d for d in (self.train, self.teacher_train, self.valid, self.test)}.values():
                data.forget()

    @property
    def counts_prompts(self) -> bool:
        """Whether every token counts, or only those of responses."""
        train: Any = self.texts.train
        seen = train.looked_at if isinstance(train, Stream) else train
        talks = self.texts.answers or any(document.turns for document in seen)
        return self.loss_on == "all" or (self.loss_on == "auto" and not talks)

    def specimen(self) -> dict[str, Any] | None:
        """A conversation, or a prompt with its answer, as it is learnt."""
        return specimen(self)

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
        auto = self.packing == "auto" and not isinstance(self.texts.train, Stream)
        return self.packing == "pack" or (auto and not self.texts.pairs)

    # ------------------------------------------------------------------------------------------------ two tokenizers

    def part(self, name: str) -> Task:
        """``teacher``: the same texts, for a model with a tokenizer of its own.

        Raises:
            ConfigError: the task has no such part.
        """
        if name != "teacher":
            return super().part(name)
        self.load()
        if self._reader is None or self._reader[0] != self._seed:
            twin = copy.copy(self)
            twin.notes, twin._tokenizer, twin._whose, twin.tokenizer_name = [], None, "", None
            twin.columns = twin.positions = twin.asked_length = twin._ends = twin._reader = None
            twin._marks = 0
            for split in ("train", "teacher_train", "valid", "test"):
                data: TokenData = getattr(self, split)
                setattr(twin, split, TokenData(twin, data.documents, data.name, data.most))
            self._reader = (self._seed, twin)
        return self._reader[1]

    def mark_ends(self, odd: int) -> None:
        """From now on rows know where in the text each token ends; ``odd``: 1 for the student's tokenizer, 2 for the teacher's."""
        if self._marks != odd:
            self._marks, self._ends = odd, None
            for data in {id(d): d for d in (self.train, self.teacher_train, self.valid, self.test)}.values():
                data.forget()

    @property
    def ends(self) -> Ends | None:
        """What tells where tokens end, where that is asked for."""
        if not self._marks:
            return None
        if self._ends is None or self._ends.tokenizer is not self.tokenizer:
            self._ends = Ends(self.tokenizer, ("", "the student", "the teacher")[self._marks], self._marks)
        return self._ends

    def cut_padding(self, built: Built, whose: str) -> None:
        """Outputs of a model beyond its tokenizer's ids are padding: they are cut off, which is said once.

        Raises:
            TeacherMismatch: a text holds tokens that the model has no output for.
        """
        size, known = output_size(built.module), self.vocabulary
        self.columns = None
        if size is None or size == known:
            return
        used = max(data.largest_id for data in (self.teacher_train, self.valid, self.test)) + 1
        if size < used:
            raise TeacherMismatch(
                whose,
                f"it answers with {size} values, and this text has {used} token ids in its tokenizer",
                remedy="resize its embeddings with resize_token_embeddings, or name the tokenizer it was made with",
            )
        if size > known:
            self.columns = known
            self.note(f"the {whose}'s {size} outputs are cut to the {known} of its tokenizer: the rest is padding")

    # ------------------------------------------------------------------------------------------------ tokens

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: the named one, else that of the first pretrained model, else one trained on this text."""
        if self._tokenizer is None:
            if self.tokenizer_name is not None:
                self._tokenizer, self._whose = load_tokenizer(self.tokenizer_name), "task.tokenizer"
            else:
                texts: Texts = self.texts
                if isinstance(texts.train, Stream):
                    texts = Texts(texts.train.first(LEARNT_FROM), [], [], texts.pairs)
                    self.note(f"the tokenizer is trained on the first {len(texts.train):,} texts of the stream")
                self._tokenizer = byte_pairs(texts, self.vocab_size)
                self._whose = "the tokenizer trained on this text"
        return self._tokenizer

    @property
    def adopted(self) -> bool:
        """Whether the tokenizer is that of a pretrained network: neither named by the recipe nor trained on the text."""
        return self._tokenizer is not None and self._whose not in (
            "task.tokenizer",
            "the tokenizer trained on this text",
        )

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
            self._one_template(own, tokenizer, name)
        except TeacherMismatch:
            if self.tokenizer_name is not None or self._whose.startswith("hf:"):
                raise
            raise TeacherMismatch(
                "task.tokenizer",
                f"a model from scratch would learn other tokens than hf:{name} knows",
                remedy=f"set task.tokenizer={name}, so that both use it",
            ) from None

    def _one_template(self, own: Any, tokenizer: Any, name: str) -> None:
        """The template by which conversations are written is saved with whoever learns from them."""
        ours, theirs = (getattr(t, "chat_template", None) for t in (own, tokenizer))
        if not self.texts.pairs or self.template == "plain" or ours == theirs:
            return
        if not theirs:
            tokenizer.chat_template = ours
            self.note(f"hf:{name} has no chat template: it is given that of {self._whose}")
        elif ours:
            self.note(
                f"the chat templates differ: conversations are written by that of {self._whose}, not of hf:{name}"
            )
        else:
            self.note(f"{self._whose} has no chat template; task.tokenizer={name} takes that of hf:{name}")

    @property
    def whose(self) -> str:
        """Whose the tokenizer is, for messages."""
        return self._whose

    def serves(self, tokenizer: Any) -> bool:
        """Whether there is a tokenizer already that means something else by its ids than this one."""
        if self._tokenizer is None and self.tokenizer_name is None:
            return False
        try:
            shared_ids(self.tokenizer, tokenizer, "", "")
        except TeacherMismatch:
            return True
        return False

    def _probes(self) -> list[str]:
        return [document.text[:300] for document in self.texts.train[:10]]

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """How texts become rows of ids, and which special tokens training documents stand between."""
        first, last = special_ids(self.tokenizer)
        return text_steps(self.tokenizer, self.length, contract) | {"before": first, "after": last}

    @property
    def vocabulary(self) -> int:
        """How many token ids there are (the largest and one)."""
        return vocabulary_size(self.tokenizer)

    def match(self, student: Built, teacher: Built) -> None:
        """Check that both models speak one vocabulary; cut the outputs to what they share, and say so.

        Tokenizers are compared, not sizes: outputs beyond the tokenizer's ids are padding.

        Raises:
            TeacherMismatch: the ids differ; methods that work across tokenizers are named.
        """
        self.columns = None
        one, two = (getattr(b.model, "tokenizer", None) or self.tokenizer for b in (student, teacher))
        shared = (
            vocabulary_size(one) if one is two else shared_ids(one, two, "the student", "the teacher", self._probes())
        )
        sizes = {"student": output_size(student.module), "teacher": output_size(teacher.module)}
        known = {name: size for name, size in sizes.items() if size is not None}
        if not known:
            return
        least = min(known.values())
        if least < shared:
            # tokenizers may know tokens that their model never learnt; that matters only where a text holds one
            used = max(data.largest_id for data in (self.teacher_train, self.valid, self.test)) + 1
            if least < used:
                name = min(known, key=lambda n: known[n])
                raise TeacherMismatch(
                    name,
                    f"it answers with {least} values, and this text has {used} token ids in the shared tokenizer",
                    remedy="resize its embeddings with resize_token_embeddings, or name the tokenizer it was made with",
                )
        padded = vocabulary_size(one) == vocabulary_size(two) == shared or least < shared
        width = least if padded else shared
        if any(size != width for size in known.values()):
            self.columns = width
            said = " and ".join(f"the {name}'s {size}" for name, size in known.items())
            why = "padding beyond the tokenizer" if padded else "tokens that only one of them has"
            note = f"vocabularies cut to the {width} outputs they share ({said}): the rest is {why}"
            self.note(note)

    # ------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Tensor:
        """Token ids into a model; its logits ``[N, T, V]``, cut to the shared vocabulary where there is one."""
        logits = Signal(call(module, batch)).logits
        return logits if self.columns is None else logits[..., : self.columns]

    def shown(self, module: Any, batch: Batch) -> Any:
        """The logits, or a `Head` where they would be large."""
        out = answer(module, lambda: call(module, batch))
        if isinstance(out, Head):
            return out.cut(self.columns)
        logits = Signal(out).logits
        return logits if self.columns is None else logits[..., : self.columns]

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Cross-entropy of each next token, ``[N, T-1]``, where its label counts."""
        if isinstance(signal.out, Head):
            short, labels, where = shifted(signal.out, batch)
            return Term(cross_entropy(short, labels, where), where=where)
        logits, labels, where = shifted(signal.logits, batch)
        return Term(F.cross_entropy(logits, labels, where=where), where=where)

    def counted(self, batch: Batch) -> Tensor:
        """Which next tokens count, ``[N, T-1]``."""
        return next_counts(batch)

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a model on a split, in one pass, without gradients and in evaluation mode.

        cross_entropy (nats a token), perplexity, bits_per_byte (cross-entropy in bits times tokens over bytes of the
        split: comparable between tokenizers), accuracy (of the likeliest next token), entropy (of the predictions).
        With a teacher: kl (teacher || student), agreement (share of equal likeliest tokens) and teacher_entropy.
        """
        device = device or device_of(built.module)
        sums: dict[str, float] = {}
        losses, tokens = [], []  # of each sequence: the sum of its tokens' cross-entropies, and their number
        count = 0
        watched = [b.module for b in (built, teacher) if b is not None]
        with torch.no_grad(), evaluating(watched):
            for ids in torch.split(torch.arange(len(data)), self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                logits, labels, where = shifted(self._show(built, batch), batch)
                theirs: Logits | None = None
                if teacher is not None:
                    try:
                        theirs = self._show(teacher, batch)[:, :-1]
                    except CacheMismatch:  # a recorded teacher knows its training items only
                        teacher = None
                rows = where.flatten().nonzero()[:, 0]
                tokens.append(where.sum(1).cpu().double())
                losses.append(torch.zeros(len(ids), dtype=torch.float64))
                for part in torch.split(rows, max(1, CELLS // logits.shape[-1])):
                    z, y = rows_of(logits, part), labels.flatten()[part]
                    totals, loss = _judge(z, y, None if theirs is None else rows_of(theirs, part))
                    losses[-1].index_add_(0, part.cpu() // where.shape[1], loss.cpu().double())
                    for name, total in totals.items():
                        sums[name] = sums.get(name, 0.0) + total
                count += len(rows)
        if not count:
            raise DataError("data", "no position of this split counts", remedy="see task.loss_on and task.length")
        found = {name: total / count for name, total in sums.items()}
        found["perplexity"] = math.exp(min(found["cross_entropy"], 700.0))
        density = getattr(data, "tokens_per_byte", None)
        if density is not None:
            found["bits_per_byte"] = found["cross_entropy"] / math.log(2) * density
        return Scores(found, {"cross_entropy": torch.cat(losses)}, torch.cat(tokens))

    def _show(self, built: Built, batch: Batch) -> Logits:
        if hasattr(built.module, "answer"):
            signal: Signal = built.module.answer(batch, ())
        else:
            signal = Signal(built.contract.outputs(self.shown(built.module, batch)))
        return answered(signal)

    def default_student(self) -> dict[str, Any]:
        """Two layers of width 64."""
        return {"use": "causal-lm", "layers": 2, "width": 64}

    def default_teacher(self) -> dict[str, Any]:
        """Four layers of width 128."""
        return {"use": "causal-lm", "layers": 4, "width": 128}

    def cache_bytes(self) -> float:
        """Of a large vocabulary a position keeps 50 likeliest tokens (id and half precision logit) and the tail."""
        return self.length * (50 * 6.0 + 4.0 if self.vocabulary > DENSE_OUTPUTS else 2.0 * self.vocabulary)


class AskedTokens(TokenData):
    """Texts that somebody asks about, as rows.

    Attributes:
        names: how they are called.
    """

    names: list[str]


def _judge(z: Tensor, y: Tensor, theirs: Tensor | None) -> tuple[dict[str, float], Tensor]:
    """Sums over tokens, and each token's cross-entropy ``[n]``, for rows of logits ``[n, V]``."""
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
    sums = torch.stack([widened(v).sum() for v in found.values()]).tolist()
    return dict(zip(found, sums, strict=True)), found["cross_entropy"]
