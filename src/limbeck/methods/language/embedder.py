"""A smaller sentence embedder: its vectors follow the teacher's, and so do the similarities between texts.

    L = w_v | u(s) - u(B t) |^2  +  w_r mean over texts j of ( cos(s, s_j) - cos(t, t_j) )^2  +  w_l (labels)

The teacher's vectors of the training texts are recorded once. Where the student's have fewer dimensions, B is the basis in
which they keep most of their dot products (the leading eigenvectors of T^T T), and a new dense layer of the student begins
with it; or a learned layer brings the student's vectors to the teacher's dimensions, and is thrown away. Neither term needs
labels, nor a common tokenizer: both networks read the texts for themselves.

s, t: vectors of student [N, K, d] and teacher [N, K, D] of the K texts of a row;  u: length one
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.embedding import principal_basis, similarity_distance
from limbeck.functional.feature import unit
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Gather, Method, Setup, Stage, Term, Terms
from limbeck.grammar.settings import NonNegative, settings
from limbeck.networks.embedder import Embedder as Network
from limbeck.tasks.embedding import Embedding

CARD = Card(
    number=None,
    slug="embedder",
    title="Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
    year=2020,
    venue="EMNLP 2020",
    arxiv="2004.09813",
    repository="huggingface/sentence-transformers",
    licence="Apache-2.0",
    family="language",
    methods={"embedder": "Embedder"},
    optimised="network weights",
    signals=("vectors", "similarities"),
    provenance={
        "distance to the teacher's vectors": "paper, section 2; of vectors of length one, where similarities are cosines",
        "fewer layers, fewer dimensions by principal components": "the distillation examples of the authors' library",
        "the basis": "ours: of the second moment, not of the covariance, for cosines are measured from the origin",
        "similarities": "Tung and Mori 2019 (arXiv 1907.09682), of cosines",
        "not here": "translated texts, whose vectors the paper brings to those of the originals",
    },
    claim="A student of half the layers keeps most of a sentence embedder's correlation with people's judgements, and keeps more "
    "of it than the same student trained on the labels alone.",
    recipe="embedder",
    at_equality={"vectors": "value", "similarities": "value"},
    exceptions={
        "moves": "a few steps show few of the tokens",
        "processes": "a teacher from scratch is taught by InfoNCE among a process's part of the batch",
    },
    notes="Student and teacher are folders of sentence-transformers (st:FOLDER), and so is what is delivered.",
)


@settings
class Embedder(Method[Embedding]):
    """Distillation of a sentence embedder.

    Args:
        vectors: weight of the distance between the vectors themselves.
        similarities: weight of the distance between the similarities of all texts in a batch.
        labels: weight of the task's own loss, where the data have scores or pairs that belong together.
        reduce: where the student's vectors have other dimensions than the teacher's: ``basis`` brings the teacher's to the
            student's fewer ones; ``learned`` brings the student's to the teacher's by a layer that learns along.
    """

    vectors: NonNegative = 1.0
    similarities: NonNegative = 1.0
    labels: NonNegative = 0.0
    reduce: Literal["basis", "learned"] = "basis"

    stage_names = ("record", "basis")

    def validate(self) -> None:
        """Something is to be learnt."""
        if not self.vectors + self.similarities + self.labels:
            raise ValueError("vectors, similarities and labels are all 0: nothing would be learnt")

    def bind(self, setup: Setup) -> None:
        """Take the participants; look at their dimensions.

        Raises:
            ConfigError: labels are wanted that the data do not have; more dimensions than the teacher's with ``basis``.
        """
        super().bind(setup)
        self.d, self.D = (self.dry(name).output.shape[-1] for name in ("student", "teacher"))
        self.basis: Tensor | None = None
        if self.labels and self.task.texts_each < 2:
            raise ConfigError("method.labels", "single texts have no labels", given=self.labels, expected="0")
        if not self.vectors or self.d == self.D:
            return
        if self.reduce == "learned":
            self.new("projector", lambda: nn.Linear(self.d, self.D, bias=False))
            self.learners = ("student", "projector")
        elif self.d > self.D:
            raise ConfigError(
                "student.dimensions",
                "the student's vectors have more dimensions than the teacher's",
                given=self.d,
                expected=f"at most {self.D}",
                remedy="or set method.reduce=learned",
            )

    @property
    def reduces(self) -> bool:
        """Whether the teacher's vectors are brought to fewer dimensions."""
        return bool(self.vectors) and self.d < self.D and self.reduce == "basis"

    def stages(self) -> list[Stage]:
        """The teacher's vectors, the basis, then the student."""
        train, data = self.setup.train, self.task.train
        known: dict[str, Any] = {"remember": ["embedder"], "roles": ["teacher"]}
        found = [Stage("record", data=data, batch_size=self.task.eval_batch, record=self.record, **known)]
        if self.reduces:
            found.append(Stage("basis", items=lambda ctx: ["basis"], work=self.find_basis))
        optim = dict.fromkeys(self.learners, train)
        last = Stage("distil", data=data, steps=train.steps, batch_size=train.batch_size, optim=optim)
        last.setup, last.begin = self.take_basis, self.begin_with_basis
        return [*found, last]

    def record(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """The teacher's vectors [N, K, D]."""
        return {"vectors": ctx.signal("teacher", batch).output.float()}

    def find_basis(self, item: str, ctx: Context) -> dict[str, Tensor]:
        """The basis [d, D] of the recorded vectors."""
        moment = torch.zeros(self.D, self.D, dtype=torch.float64)
        for ids in torch.arange(len(self.task.train)).split(4096):
            t = self.targets(ctx, ids).double().flatten(0, 1)
            moment += t.T @ t
        kept = principal_basis(moment, self.d)
        share = (kept @ moment @ kept.T).trace() / moment.trace()
        return {"basis": kept.float(), "share": share.float()}

    def targets(self, ctx: Context, items: Tensor) -> Tensor:
        """Recorded vectors [n, K, D], of length one where similarities are cosines."""
        t = ctx.recorded("record").fetch(items.cpu())["vectors"]
        return unit(t) if self.task.similarity == "cosine" else t

    def take_basis(self, ctx: Context) -> None:
        """Read the basis back."""
        if self.reduces:
            found = ctx.artifact("basis", "basis")
            self.basis, self.share = found["basis"].to(ctx.device), float(found["share"])

    def begin_with_basis(self, ctx: Context) -> None:
        """A new dense layer of the student begins with the basis, where it stands on as many dimensions as the teacher has."""
        module = self.roles["student"].module
        if self.basis is None or not isinstance(module, Network) or not len(module.dense):
            return
        weight: Any = module.dense[-1].linear.weight  # type: ignore[union-attr]
        if weight.shape == self.basis.shape:
            weight.data.copy_(self.basis)

    def measures(self) -> dict[str, float]:
        """How much of the teacher's vectors the basis holds: its share of their squared length."""
        return {"basis_share": self.share} if self.basis is not None else {}

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Gather]:
        """The distance of vectors, that of similarities, and the labels."""
        student = ctx.signal("student", batch)
        s, t, cosine = student.output, self.targets(ctx, batch["item"]).to(ctx.device), self.task.similarity == "cosine"
        found: dict[str, Term] = {}
        if self.vectors:
            to: tuple[str, ...] = ("student",)
            u, v = s, t
            if "projector" in self.roles and s.shape[-1] != t.shape[-1]:
                u, to = ctx.call("projector", s), ("student", "projector")
            elif self.basis is not None and s.shape[-1] != t.shape[-1]:
                v = t @ self.basis.T
            gap = (unit(u) - unit(v)).square().sum(-1) if cosine else (u - v).square().mean(-1)
            found["vectors"] = Term(gap.mean(1), to, self.vectors)  # [N]
        if self.similarities:
            rows: Any = yield Gather(s=s, t=t)
            each = similarity_distance(
                s.flatten(0, 1),
                t.flatten(0, 1),
                students=rows["s"].flatten(0, 1),
                teachers=rows["t"].flatten(0, 1),
                cosine=cosine,
            )
            found["similarities"] = Term(each.view(s.shape[:2]).mean(1), "student", self.similarities)
        if self.labels:
            found["labels"] = self.task.supervised(student, batch)
            found["labels"].weight = self.labels
        yield Terms(**found)
