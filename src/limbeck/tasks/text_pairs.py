"""Retrieval of code: of many functions the one is found that a description, or the same function elsewhere, belongs to.

A sentence is laid out as ``[SEP] instruction [SEP] text [CLS]`` and padded on the left, so that it ends with [CLS]
(ModularStarEncoder, arXiv 2503.03008). Networks answer it with a vector; what is near by the cosine belongs together.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.asked import asked_texts
from limbeck.data.items import digest
from limbeck.data.splits import check_shares
from limbeck.data.text_pairs import WORD, Pair, Pairs, PairSource, PythonFunctions, renamed
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError
from limbeck.functional.contrast import paired_info_nce
from limbeck.functional.feature import unit
from limbeck.grammar.answers import Answer
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.tokenized import Tokenized
from limbeck.tasks.tokenizers import pad_id

NAMES = {"task": {"text-pairs": "TextPairs"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

FOR_TEXT = "Represent this code description for retrieving supporting snippets of code:"
FOR_CODE = "Represent this {language} code snippet for retrieval:"
"""Instructions, as ModularStarEncoder's model card has them."""

AT = (1, 5, 10)
"""Ranks at which recall is told."""


class TextPairs(Tokenized, Task):
    """Code retrieval. The supervised loss is symmetric InfoNCE: each query names its code among the batch's, and back.

    Metrics over all code of the split as candidates: ``mrr`` (mean reciprocal rank), ``recall1``, ``recall5``, ``recall10``,
    ``ndcg10``; ``mrr_text`` and ``mrr_code`` where queries are of both kinds.

    Args:
        data: where the pairs come from.
        tokenizer: a Hub id or local folder; ``null`` trains one on the text.
        vocab_size: size of a trained tokenizer (byte-level BPE).
        length: tokens in a row, at most; what is longer is cut off at the end of the text.
        instruct: put an instruction before each text that says what it is.
        scale: multiplies the cosines in the loss (the inverse of a temperature).
        valid_fraction, test_fraction: shares of the pairs that are set aside where the data names no such split; whole
            repositories where these are known.
        student_pairs: size of the student's training set, drawn by the seed; all if ``null``.
        eval_batch: texts at a time in evaluation.
        deal: which division into training, validation and test pairs: 0 is the data's own, where it names splits.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)

    primary = "mrr"
    higher_is_better = True
    kind_of_target = "pair"
    onnx_names = ("input_ids",)
    judging = ("eval_batch",)

    def __init__(
        self,
        data: PairSource = PythonFunctions(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        length: int | None = None,
        instruct: bool = True,
        scale: float = 10.0,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        student_pairs: int | None = None,
        eval_batch: int = 64,
        deal: int = 0,
    ) -> None:
        # written out: the setting "tokenizer" has the name of the tokenizer that comes of it
        self._tokens(tokenizer, vocab_size, length)
        check_shares(valid_fraction, test_fraction)
        if not scale > 0:
            raise ValueError("scale must be above 0: it multiplies the cosines (10 is a temperature of 0.1)")
        if student_pairs is not None and student_pairs < 2:
            raise ValueError("student_pairs must be 2 or more, or null for all")
        if eval_batch < 1 or deal < 0:
            raise ValueError("eval_batch must be 1 or more, deal 0 or more")
        self.data, self.instruct, self.scale = data, instruct, scale
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.student_pairs, self.eval_batch, self.deal = student_pairs, eval_batch, deal
        self.notes: list[str] = []
        self._pairs: Pairs | None = None
        self._seed: int | None = None

    # -------------------------------------------------------------------------------------------------------------- data
    def load(self, seed: int | None = None) -> None:
        """Read and deal the pairs; choose the student's by ``seed``. Rows are made when first asked for.

        Raises:
            DataError: nothing to read, or something that cannot be read.
        """
        if self._pairs is None:
            self._pairs = found = self.data.deal(self.valid_fraction, self.test_fraction, self.deal)
            self.notes.extend(found.notes)
            self.teacher_train: PairRows = PairRows(self, found.train, True)
            self.valid: PairRows = PairRows(self, found.valid)
            self.test: PairRows = PairRows(self, found.test)
            self.train: PairRows = self.teacher_train
            same = len(found.train) - len({p.code for p in found.train})
            if same:
                self.note(
                    f"{same} training pairs have code that another one has too: in one batch they are told apart though equal"
                )
        seed = (self._seed or 0) if seed is None else seed
        if self._seed == seed:
            return
        if self.student_pairs is not None:
            whole = self._pairs.train
            if self.student_pairs > len(whole):
                raise DataError(
                    "task.student_pairs", given=self.student_pairs, expected=f"at most the {len(whole)} training pairs"
                )
            chosen = (
                Draws(seed, ("student-pairs",)).permutation("which", len(whole))[: self.student_pairs].sort().values
            )
            self.train = PairRows(self, [whole[i] for i in chosen.tolist()], True)
            self.note(f"the student learns from {len(chosen)} of the {len(whole)} training pairs")
        self._seed = seed

    def sample(self, most: int | None = None) -> list[str]:
        """The first training texts, queries and code."""
        self.load()
        assert self._pairs is not None
        texts = [text for p in self._pairs.train[:most] for text in (p.query, p.code)]
        return [t[: 300 if most else None] for t in texts] + ([] if most else [FOR_TEXT, FOR_CODE])

    def forget(self) -> None:
        """Make the rows anew: the length has changed."""
        if self._pairs is not None:
            for rows in (self.train, self.teacher_train, self.valid, self.test):
                rows.forget()

    @property
    def needs(self) -> Needs:
        """A vector a text."""
        return Needs((self.length,), 0, "vector", target="number", tokens=self)

    def marks(self) -> tuple[int, int]:
        """The ids of [CLS] and [SEP].

        Raises:
            ConfigError: the tokenizer has no such tokens.
        """
        found = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        if None in found:
            raise ConfigError(
                "task.tokenizer",
                "it has no [CLS] or no [SEP], which sentences are laid out with",
                given=self._whose,
                remedy="take an encoder's tokenizer, or leave task.tokenizer out to train one",
            )
        return found

    def sentences(self, texts: Sequence[str], languages: Sequence[str | None]) -> list[list[int]]:
        """Rows of ids ``[SEP] instruction [SEP] text [CLS]``.

        Args:
            texts: descriptions, or code.
            languages: of each the programming language; ``None`` for descriptions.
        """
        cls, sep = self.marks()
        heads: dict[str | None, list[int]] = {}
        for language in set(languages):
            said = FOR_TEXT if language is None else " ".join(FOR_CODE.format(language=language).split())
            heads[language] = [sep, *self.plain_ids([said])[0]] if self.instruct else []
        found = []
        for ids, language in zip(self.plain_ids(texts), languages, strict=True):
            head = heads[language][: self.length // 2]
            found.append([*head, sep, *ids[: self.length - len(head) - 2], cls])
        return found

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without marks."""
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return found

    # ---------------------------------------------------------------------------------------------------------- training
    def feed(self, module: Any, batch: Batch) -> Any:
        """Vectors of queries and of their code [N, 2, D]; of a batch that holds texts alone [N, D]."""
        if "key" not in batch:
            return module(batch["x"])
        return torch.stack([module(batch["x"]), module(batch["key"])], 1)

    def plainly(self, module: Any, batch: Batch) -> Any:
        """Vectors of texts [N, D]."""
        return module(batch["x"])

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Symmetric InfoNCE among the pairs at hand [N]; of a batch that is cut, among those of each part.

        Raises:
            ShapeError: one pair has nothing to be told from.
        """
        both = signal.output
        return Term(paired_info_nce(both[:, 0], both[:, 1], scale=self.scale))

    # ----------------------------------------------------------------------------------------------------------- evaluation
    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Ranks of each query's own code among all code of the split. Equal code is one candidate's worth: any copy counts."""
        device, pad = device or device_of(built.module), pad_id(self.tokenizer)
        queries, keys, kinds = [], [], []
        known: dict[bytes, int] = {}  # code -> its number
        numbers: list[int] = []
        with torch.no_grad(), evaluating([built.module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device(dict(data.fetch(ids)), device)
                queries.append(unit(self._embed(built, batch["x"])))
                keys.append(unit(self._embed(built, batch["key"])))
                kinds.append(batch["kind"].cpu())
                for row in batch["key"].cpu():
                    numbers.append(known.setdefault(row[row != pad].numpy().tobytes(), len(known)))
        q, k, kind = torch.cat(queries), torch.cat(keys), torch.cat(kinds)
        code = torch.tensor(numbers)
        parts = zip(q.split(512), code.split(512), strict=True)
        rank = torch.cat([ranks(part @ k.T, own[:, None] == code) for part, own in parts])
        each = {"mrr": 1 / rank, **{f"recall{n}": (rank <= n).double() for n in AT}}
        each["ndcg10"] = torch.where(rank <= 10, 1 / torch.log2(1 + rank), 0.0)
        found = {name: float(values.mean()) for name, values in each.items()}
        for i, name in enumerate(("text", "code")):
            if len(kind.unique()) > 1:
                found[f"mrr_{name}"] = float(each["mrr"][kind == i].mean())
        return Scores(found, each)

    def _embed(self, built: Built, ids: Tensor) -> Tensor:
        if hasattr(built.module, "answer"):
            return Signal(built.module.answer({"x": ids}, ()).out).output.float()
        out: Tensor = built.module(ids)
        return out.float()

    # ----------------------------------------------------------------------------------------------------------- answers
    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """The length of rows."""
        if about.get("length"):
            self.length = int(about["length"])
        if bare:
            self._pairs = Pairs([], [], [])
            self.train = self.teacher_train = self.valid = self.test = PairRows(self, [])
            self._seed = 0

    def describe(self) -> dict[str, Any]:
        """What must be known to feed a network elsewhere."""
        return {"form": "vector", "target": "number", "length": self.length}

    def preprocessing(self, contract: Any) -> dict[str, Any]:
        """How a text becomes a row of ids: sentences end with [CLS], and are padded on the left."""
        from limbeck.tasks.tokenizers import text_steps

        found = text_steps(self.tokenizer, self.length, contract)
        found["tokenizer"] |= {"folder": "tokenizer", "padding_side": "left"}
        layout = f"[SEP] {FOR_TEXT} [SEP] text [CLS]" if self.instruct else "[SEP] text [CLS]"
        return {**found, "layout": layout, "of_code": f"[SEP] {FOR_CODE} [SEP] code [CLS]"}

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Texts, a row each, taken as descriptions; what is longer is cut off at the end."""
        documents, names = asked_texts(given)
        twin = copy.copy(self)
        rows = PairRows(twin, [Pair(d.text, d.text) for d in documents])
        rows.names = names
        return rows

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """A text's vector, of length one: what belongs to it lies near."""
        vectors = unit(self._embed(built, batch["x"])).cpu()
        return [
            Answer({"text": asked.pairs[i].query, "vector": v.tolist()}, {"vector": v})
            for i, v in zip(items.tolist(), vectors, strict=True)
        ]

    def default_student(self) -> dict[str, Any]:
        """Four layers of width 64, an exit behind each."""
        return {"use": "exit-encoder", "layers": 4, "width": 64}


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """The rank [Q] of the best right candidate, from 1; wrong ones with the same score count half before it.

    Args:
        scores: of the candidates [Q, K].
        right: which of them are right, bool [Q, K]; one at least.

    Example:
        >>> ranks(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[False, False, True]]))
        tensor([2.], dtype=torch.float64)
    """
    right = right.to(scores.device)
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    above, level = ((scores > best) & ~right).sum(1), ((scores == best) & ~right).sum(1)
    return (1 + above + level / 2).double().cpu()


class Left:
    """Rows of ids padded on the left, trimmed to the longest of a batch (to a multiple of 8).

    Args:
        rows: ids of each.
        pad: what they are filled up with.
    """

    def __init__(self, rows: Sequence[Sequence[int]], pad: int) -> None:
        self.sizes = torch.tensor([len(r) for r in rows], dtype=torch.long)
        width = int(self.sizes.max()) if rows else 0
        self.ids = torch.full((len(rows), width), pad, dtype=torch.int32)
        for i, row in enumerate(rows):
            self.ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int32)

    def fetch(self, items: Tensor) -> Tensor:
        """Ids int64 [n, T]."""
        width = min(self.ids.shape[1], -(-int(self.sizes[items].max()) // 8) * 8)
        return self.ids[items, self.ids.shape[1] - width :].long()


class PairRows:
    """Pairs as rows of ids, made by the task's tokenizer when they are first asked for.

    A batch holds ``x`` [n, T], the queries; ``key`` [n, S], their code; of training pairs ``renamed`` [n, R], the code with
    other names in it; and ``kind`` [n]: 0 where the query is a description, 1 where it is code.

    Args:
        task: whose tokenizer and length they are made with.
        pairs: the texts.
        trains: make the renamed code too.
    """

    def __init__(self, task: TextPairs, pairs: Sequence[Pair], trains: bool = False) -> None:
        self.task: TextPairs | None = task
        self.pairs, self.trains = list(pairs), trains
        self.names: list[str] = []
        self._made: tuple[Left, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        self.rows()  # loader processes get the rows, not the tokenizer
        return {**self.__dict__, "task": None, "pairs": self.pairs}

    def forget(self) -> None:
        """Make the rows anew when they are next asked for."""
        self._made = None

    def rows(self) -> tuple[Left, ...]:
        """Queries, code, and renamed code."""
        if self._made is None:
            task = self.task
            assert task is not None
            pad = pad_id(task.tokenizer)
            asked = [None if p.kind == "text" else p.languages[0] for p in self.pairs]
            of_code = [p.languages[1] for p in self.pairs]
            codes = [p.code for p in self.pairs]
            texts: list[tuple[Sequence[str], Sequence[str | None]]] = [
                ([p.query for p in self.pairs], asked),
                (codes, of_code),
            ]
            if self.trains:
                words = sorted({w for code in codes for w in WORD.findall(code)}) or ["x"]
                draws = Draws(0, ("renamed",)).numpy("names")
                texts.append(([renamed(c, words, lambda n: int(draws.integers(n))) for c in codes], of_code))
            self._made = tuple(Left(task.sentences(t, languages), pad) for t, languages in texts)
        return self._made

    def __len__(self) -> int:
        return len(self.pairs)

    def fetch(self, items: Tensor) -> Batch:
        """The pairs as one batch."""
        made = dict(zip(("x", "key", "renamed"), (rows.fetch(items) for rows in self.rows()), strict=False))
        return {**made, "kind": torch.tensor([int(self.pairs[i].kind == "code") for i in items.tolist()])}

    @property
    def fingerprint(self) -> str:
        """A content hash of the rows."""
        return digest(*(t for rows in self.rows() for t in (rows.ids, rows.sizes)))


__all__ = ["Left", "PairRows", "TextPairs", "ranks"]
