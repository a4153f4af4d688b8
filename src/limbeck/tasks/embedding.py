"""Vectors of texts: single texts, pairs that are alike or belong together, queries with a right and a wrong answer.

Texts are what the networks share: each reads them by a tokenizer of its own, so a batch holds them once for every one of these
readings. Similarities of vectors are compared with the data's scores, or rank the texts that belong together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor

from limbeck.data.asked import asked_texts
from limbeck.data.items import digest
from limbeck.data.sentences import DescribedFunctions, Example, Examples, SentenceSource
from limbeck.data.splits import check_shares
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError
from limbeck.functional.contrast import paired_info_nce
from limbeck.functional.embedding import correlation, similarities
from limbeck.functional.feature import unit
from limbeck.grammar.answers import Answer
from limbeck.grammar.evaluator import Bench, Rows
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.text_pairs import ranks
from limbeck.tasks.tokenized import Rows as TokenRows
from limbeck.tasks.tokenized import Tokenized
from limbeck.tasks.tokenizers import pad_id

NAMES = {"task": {"embedding": "Embedding"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Similarity = Literal["cosine", "dot"]
Metric = Literal["auto", "spearman", "pearson", "mrr", "teacher_similarity"]

COMPARED: Final = 1024
"""At most so many texts are held against each other where student and teacher are compared."""


@dataclass
class Reading:
    """How a network reads texts: its tokenizer, tokens in a row at most, whether in lower case, what stands before them."""

    tokenizer: Any
    length: int
    lower: bool = False
    prompt: str = ""

    def rows(self, texts: Sequence[str]) -> TokenRows:
        """A row a text."""
        said = [self.prompt + (t.lower() if self.lower else t) for t in texts]
        cut = self.tokenizer(said, truncation=True, max_length=self.length, verbose=False)["input_ids"] if said else []
        return TokenRows(cut, None, pad_id(self.tokenizer))

    @property
    def key(self) -> str:
        """A hash of what it makes of texts."""
        return digest(_content(self.tokenizer), self.length, self.lower, self.prompt)


def _content(tokenizer: Any) -> str:
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    found = json.loads(core.to_str())
    return json.dumps({k: v for k, v in found.items() if k not in ("truncation", "padding")}, sort_keys=True)


class Embedding(Tokenized, Task):
    """Vectors of texts. Where the data have scores, the similarity of two vectors is to follow them (``spearman``,
    ``pearson``); where two texts belong together, the second is to be found among all of the split (``mrr``, ``recall1``,
    ``recall10``). Scores that are 0 and 1 say both. ``teacher_similarity`` is the rank correlation of all similarities
    between the split's texts with the teacher's.

    The loss to the data themselves: symmetric InfoNCE of texts that belong together, or the squared distance of the cosine
    to the score, brought to 0 and 1. Single texts have none.

    Args:
        data: where the texts come from.
        tokenizer: of networks that have none of their own: a Hub id or local folder; ``null``: that of the first pretrained
            network, else one is trained on the texts.
        vocab_size: size of a trained tokenizer (byte-level BPE).
        length: tokens in a row, at most; ``null``: 128, or as many as a network reads, if fewer.
        similarity: by which vectors are compared: ``cosine``, or ``dot``.
        metric: what decides: ``spearman``, ``pearson``, ``mrr``, ``teacher_similarity``; ``auto``: Spearman's where there are
            scores, ``mrr`` where texts belong together.
        scale: multiplies the cosines in InfoNCE (the inverse of a temperature).
        valid_fraction, test_fraction: shares of the rows that are set aside where the data name no such split.
        student_items: size of the student's training set, drawn by the seed; all if ``null``.
        eval_batch: rows at a time in evaluation.
        deal: which division into training, validation and test rows: 0 is the data's own, where it names splits.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)

    higher_is_better = True
    kind_of_target = "number"
    judging = ("eval_batch", "metric")

    def __init__(
        self,
        data: SentenceSource = DescribedFunctions(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        length: int | None = None,
        similarity: Similarity = "cosine",
        metric: Metric = "auto",
        scale: float = 20.0,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        student_items: int | None = None,
        eval_batch: int = 128,
        deal: int = 0,
    ) -> None:
        # written out: the setting "tokenizer" has the name of the tokenizer that comes of it
        self._tokens(tokenizer, vocab_size, length)
        check_shares(valid_fraction, test_fraction)
        if not scale > 0:
            raise ValueError("scale must be above 0: it multiplies the cosines (20 is a temperature of 0.05)")
        if student_items is not None and student_items < 2:
            raise ValueError("student_items must be 2 or more, or null for all")
        if eval_batch < 1 or deal < 0:
            raise ValueError("eval_batch must be 1 or more, deal 0 or more")
        self.data, self.similarity, self.metric, self.scale = data, similarity, metric, scale
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.student_items, self.eval_batch, self.deal = student_items, eval_batch, deal
        self.notes: list[str] = []
        self.readings: list[Reading] = []
        self._known: dict[str, int] = {}
        self._examples: Examples | None = None
        self._seed: int | None = None
        self.primary = "mrr" if metric == "auto" else metric
        self.range = (0.0, 1.0)

    # -------------------------------------------------------------------------------------------------------------- data
    def load(self, seed: int | None = None) -> None:
        """Read and deal the rows; choose the student's by ``seed``.

        Raises:
            DataError: nothing to read, or something that cannot be read.
            ConfigError: a metric that the data give no truth for.
        """
        if self._examples is None:
            self._examples = found = self.data.deal(self.valid_fraction, self.test_fraction, self.deal)
            self.notes.extend(found.notes)
            self.teacher_train: TextRows = TextRows(self, found.train)
            self.valid: TextRows = TextRows(self, found.valid)
            self.test: TextRows = TextRows(self, found.test)
            self.train: TextRows = self.teacher_train
            scores = [e.score for e in found.train if e.score is not None]
            self.range = (min(scores), max(scores)) if scores else (0.0, 1.0)
            self._choose_metric()
        seed = (self._seed or 0) if seed is None else seed
        if self._seed == seed:
            return
        if self.student_items is not None:
            whole = self._examples.train
            if self.student_items > len(whole):
                raise DataError(
                    "task.student_items", given=self.student_items, expected=f"at most the {len(whole)} rows"
                )
            order = Draws(seed, ("student-items",)).permutation("which", len(whole))
            chosen = order[: self.student_items].sort().values.tolist()
            self.train = TextRows(self, [whole[i] for i in chosen])
            self.note(f"the student learns from {len(chosen)} of the {len(whole)} training rows")
        self._seed = seed

    def _choose_metric(self) -> None:
        known = ["teacher_similarity"]
        if self.texts_each > 1:
            known = [*(["spearman", "pearson"] if self.scored else []), *(["mrr"] if self.matches else []), *known]
        if self.metric == "auto":
            self.primary = known[0]
        elif self.metric not in known:
            raise ConfigError(
                "task.metric",
                "the data do not say it",
                given=self.metric,
                expected=f"auto, or one of {', '.join(known)}",
            )

    @property
    def loaded(self) -> Examples:
        """The rows in their splits."""
        self.load()
        assert self._examples is not None
        return self._examples

    @property
    def texts_each(self) -> int:
        """Texts in a row: 1, 2, or 3 (query, right answer, wrong answer)."""
        return len(self.loaded.train[0].texts)

    @property
    def scored(self) -> bool:
        """Whether rows say how alike their two texts are."""
        return self.loaded.train[0].score is not None

    @property
    def matches(self) -> bool:
        """Whether rows say which texts belong together."""
        return self.texts_each > 1 and (not self.scored or {e.score for e in self.loaded.train} <= {0.0, 1.0})

    def sample(self, most: int | None = None) -> list[str]:
        """The first training texts."""
        texts = [t for e in self.loaded.train[:most] for t in e.texts]
        return [t[: 300 if most else None] for t in texts]

    def forget(self) -> None:
        """Make the rows anew: the length has changed."""
        for rows in (self.train, self.teacher_train, self.valid, self.test):
            rows.forget()

    def adopt(self, tokenizer: Any, name: str) -> None:
        """The first pretrained network's tokenizer is that of networks without one; others read by their own."""
        if self._tokenizer is None and self.tokenizer_name is None:
            self._tokenizer, self._whose = tokenizer, name

    def reading(self, tokenizer: Any, length: int, lower: bool = False, prompt: str = "") -> int:
        """The number of the reading with this tokenizer, length, case and prompt: what a network's ``reads`` is set to."""
        made = Reading(tokenizer, length, lower, prompt)
        number = self._known.setdefault(made.key, len(self._known))
        if number == len(self.readings):
            self.readings.append(made)
        return number

    @property
    def needs(self) -> Needs:
        """A vector a text."""
        return Needs((self.length,), 0, "vector", target="number", tokens=self)

    # ---------------------------------------------------------------------------------------------------------- training
    def feed(self, module: Any, batch: Batch) -> Any:
        """Vectors [N, K, D] of the K texts of each row, read as the network reads."""
        number = int(getattr(getattr(module, "_orig_mod", module), "reads", 0))
        found = []
        for k in range(3):
            ids, mask = names_of(number, k)
            if ids in batch:
                found.append(module(batch[ids], batch[mask]))
        return torch.stack(found, 1)

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """InfoNCE of texts that belong together, among those at hand; or the squared distance to the scores [N].

        Raises:
            ConfigError: single texts have nothing to be compared to.
            ShapeError: one pair has nothing to be told from.
        """
        v = signal.output
        if v.shape[1] < 2:
            raise ConfigError("task.data", "single texts have no labels to learn from", expected="pairs of texts")
        if "score" in batch:
            low, high = self.range
            cosine = (unit(v[:, 0]) * unit(v[:, 1])).sum(-1)
            return Term((cosine - (batch["score"] - low) / max(high - low, 1e-12)).square())
        wrong = v[:, 2] if v.shape[1] > 2 else None
        return Term(paired_info_nce(v[:, 0], v[:, 1], scale=self.scale, others=wrong))

    def baselines(self, bench: Bench) -> Rows:
        """The student trained alone, where the data have something to train it by."""
        return super().baselines(bench) if self.texts_each > 1 else {}

    def match(self, student: Built, teacher: Built) -> None:
        """Both read texts for themselves.

        Raises:
            ConfigError: one is no embedder.
        """
        for who, built in (("student", student), ("teacher", teacher)):
            if isinstance(built.module, torch.nn.Module) and not hasattr(built.module, "reads"):
                raise ConfigError(
                    who, "is no sentence embedder", given=type(built.module).__name__, expected="st:FOLDER, or embedder"
                )

    # ----------------------------------------------------------------------------------------------------------- evaluation
    def vectors(self, built: Built, data: TextRows, device: torch.device | None = None) -> Tensor:
        """Vectors [N, K, D] of all rows, on the CPU, without a graph."""
        device, found = device or device_of(built.module), []
        with torch.no_grad(), evaluating([built.module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                found.append(self.feed(built.module, to_device(dict(data.fetch(ids)), device)).float().cpu())
        return torch.cat(found)

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Correlation with the scores, ranks of what belongs together, and how far similarities are those of the teacher."""
        assert isinstance(data, TextRows)
        v, cosine, rows = self.vectors(built, data, device), self.similarity == "cosine", data.examples
        found, each = dict[str, float](), dict[str, Tensor]()
        if self.scored:
            both = unit(v) if cosine else v
            alike, scores = (both[:, 0] * both[:, 1]).sum(-1), torch.tensor([e.score for e in rows])
            found = {n: correlation(alike, scores, ranked=n == "spearman") for n in ("spearman", "pearson")}
        right = [i for i, e in enumerate(rows) if e.score in (None, 1.0)] if self.matches else []
        if right:
            texts, numbers = list(dict.fromkeys(e.texts[1] for e in rows)), dict[str, int]()
            for t in texts:
                numbers[t] = len(numbers)
            first = {t: i for i, e in reversed(list(enumerate(rows))) for t in (e.texts[1],)}
            candidates = v[[first[t] for t in texts], 1]
            answers: dict[str, set[int]] = {}
            for i in right:  # a query may have several
                answers.setdefault(rows[i].texts[0], set()).add(numbers[rows[i].texts[1]])
            got = []
            for some in torch.tensor(right).split(512):
                own = torch.zeros(len(some), len(texts), dtype=torch.bool)
                for row, i in enumerate(some.tolist()):
                    own[row, list(answers[rows[i].texts[0]])] = True
                got.append(ranks(similarities(v[some, 0], candidates, cosine=cosine), own))
            rank = torch.cat(got)
            told = {"mrr": 1 / rank, "recall1": (rank <= 1).double(), "recall10": (rank <= 10).double()}
            found |= {n: float(values.mean()) for n, values in told.items()}
            each = told if len(right) == len(rows) else {}
        if teacher is not None and isinstance(teacher.module, torch.nn.Module) and hasattr(teacher.module, "reads"):
            theirs = self.vectors(teacher, data, device)
            found["teacher_similarity"] = same_similarities(v.flatten(0, 1), theirs.flatten(0, 1), cosine)
        return Scores(found, each)

    # ----------------------------------------------------------------------------------------------------------- answers
    @property
    def formats(self) -> tuple[str, ...]:
        """A folder of sentence-transformers."""
        return ("safetensors", "hub")

    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """The length of rows."""
        if about.get("length"):
            self.length = int(about["length"])
        if bare:
            self._examples, self._seed = Examples([Example(("",))], [], []), 0
            self.train = self.teacher_train = self.valid = self.test = TextRows(self, [])

    def describe(self) -> dict[str, Any]:
        """What must be known to feed a network elsewhere."""
        return {"form": "vector", "target": "number", "length": self.length}

    def preprocessing(self, contract: Any) -> dict[str, Any]:
        """How a text becomes a row of ids; the folder itself says the rest."""
        return {"kind": "text", "tokenizer": {"folder": "student", "max_length": self.length}, **contract.as_config()}

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Texts, a row each; of pairs both."""
        documents, names = asked_texts(given)
        rows = TextRows(self, [Example((d.prompt, d.text) if d.prompt else (d.text,)) for d in documents])
        if len({len(e.texts) for e in rows.examples}) > 1:
            raise DataError("inputs", "some are single texts and some are pairs", expected="one or the other")
        rows.names = names
        return rows

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """A text's vector; of a pair the similarity of its two."""
        v, found = self.feed(built.module, batch).float().cpu(), list[Answer]()
        for i, own in zip(items.tolist(), v, strict=True):
            texts = asked.examples[i].texts
            if len(texts) == 1:
                found.append(Answer({"text": texts[0], "vector": own[0].tolist()}, {"vector": own[0]}))
                continue
            alike = similarities(own[:1], own[1:], cosine=self.similarity == "cosine")
            found.append(Answer({"texts": list(texts), "similarity": float(alike)}, {"vectors": own}))
        return found

    def default_student(self) -> dict[str, Any]:
        """Two layers of width 64."""
        return {"use": "embedder", "layers": 2, "width": 64}

    def default_teacher(self) -> dict[str, Any]:
        """Four layers of width 128."""
        return {"use": "embedder", "layers": 4, "width": 128}


def names_of(reading: int, text: int) -> tuple[str, str]:
    """What a batch calls ids and mask of the k-th text of each row in a reading.

    Example:
        >>> names_of(0, 0), names_of(1, 2)
        (('x', 'mask'), ('x_r1_t2', 'mask_r1_t2'))
    """
    tail = f"_r{reading}_t{text}" if reading or text else ""
    return f"x{tail}", f"mask{tail}"


def same_similarities(student: Tensor, teacher: Tensor, cosine: bool = True) -> float:
    """Spearman's correlation of the similarities between texts in two networks, over pairs of the first `COMPARED` texts.

    Args:
        student, teacher: vectors [N, D] and [N, E] of the same texts.
        cosine: of cosines, or of dot products.
    """
    s, t = (similarities(v[:COMPARED], v[:COMPARED], cosine=cosine) for v in (student, teacher))
    above = torch.ones_like(s, dtype=torch.bool).triu(1)
    return correlation(s[above], t[above], ranked=True) if len(s) > 2 else 0.0


class TextRows:
    """Rows of texts, made into ids for every reading when they are first asked for.

    A batch holds ids [n, T] and mask of each text in each reading, by `names_of`, and ``score`` [n] where there is one.

    Args:
        task: whose readings they are made for.
        examples: the rows.
    """

    def __init__(self, task: Embedding, examples: Sequence[Example]) -> None:
        self.task: Embedding | None = task
        self.examples, self.names = list(examples), list[str]()
        self._made: dict[tuple[int, int], TokenRows] = {}
        scores = [e.score for e in self.examples]
        self.scores = torch.tensor(scores) if scores and None not in scores else None

    def __getstate__(self) -> dict[str, Any]:
        self.rows()  # loader processes get the rows, not the tokenizers
        return {**self.__dict__, "task": None}

    def forget(self) -> None:
        """Make the rows anew when they are next asked for."""
        self._made = {}

    def rows(self) -> dict[tuple[int, int], TokenRows]:
        """By reading and text."""
        if self.task is not None and self.examples:
            for r, reading in enumerate(self.task.readings):
                for k in range(len(self.examples[0].texts)):
                    if (r, k) not in self._made:
                        self._made[r, k] = reading.rows([e.texts[k] for e in self.examples])
        return self._made

    def __len__(self) -> int:
        return len(self.examples)

    def fetch(self, items: Tensor) -> Batch:
        """The rows as one batch."""
        found: Batch = {}
        for place, rows in self.rows().items():
            ids, mask = names_of(*place)
            found[ids], found[mask], _ = rows.fetch(items)
        if self.scores is not None:
            found["score"] = self.scores[items]
        return found

    @property
    def fingerprint(self) -> str:
        """A content hash of the texts and their scores: every network reads them in its own way."""
        return digest([(e.texts, e.score) for e in self.examples])


__all__ = ["Embedding", "Reading", "TextRows", "names_of", "same_similarities"]
