"""SinKD: beside cross-entropy and KL, the batch of student predictions is transported onto the teacher's batch.

    p = softmax(z_t / tau), q = softmax(z_s / tau),     D_ij = ||q_i - p_j||_1 over rows i, j of a batch
    P: exp(-D / lambda), rows then columns divided by their sums, 20 times;     L_SD = c sum_ij P_ij D_ij
    L = alpha L_KD + (1 - alpha) CE + beta L_SD,     L_KD = - mean sum_c p log q at its own temperature

The plan is made in the log domain. Rows of a classifier are the items of the whole batch, however that is cut; rows of a
language model are neighbouring tokens of one text.

z_s, z_t: logits of student and teacher [N, C], of tokens [N, T, V];  tau: temperature;  lambda: eps;  c: scale
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

import limbeck.functional as F
from limbeck.functional.schedule import linear
from limbeck.functional.transport import ClassMetric, CostNorm, sinkhorn, sinkhorn_classes
from limbeck.grammar.card import Card
from limbeck.grammar.heads import by_parts
from limbeck.grammar.method import Batch, Context, Gather, Method, Setup, Term, Terms
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, Positive, settings
from limbeck.grammar.task import Task
from limbeck.parts.next_tokens import NextTokens, Tokens
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=43,
    slug="sinkd",
    title="Sinkhorn Distance Minimization for Knowledge Distillation",
    year=2024,
    venue="LREC-COLING 2024",
    arxiv="2402.17110",
    repository="2018cx/SinKD",
    family="language",
    methods={"sinkd": "Sinkd", "sinkd-tokens": "SinkdTokens"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "batch-wise transport, KD term, annealing": "paper and code, checked against recorded vectors",
        "rows of the whole batch": "ours: gathered over micro-batches and processes; the code takes each process's own",
        "sample-wise transport": "the paper's first form; its details are reconstructed",
        "rows of language models": "reconstructed: neighbouring tokens of one text, classes cut to the likeliest; the published "
        "T0 script normalises over the wrong dimensions, which functional.transport.sinkhorn(variant='released') repeats",
        "not here": "encoder-decoder models: there is no task for them yet",
    },
    claim="At equal steps cross-entropy + KL + Sinkhorn is at least as accurate as cross-entropy with KL, reverse KL or "
    "Jensen-Shannon, and its gradient does not fade when teacher and student have disjoint supports.",
    recipe="sinkd",
    at_equality={
        "kd": "gradient",
        "sinkhorn": "the entropic plan spreads mass over neighbours: equal batches cost a little, less with a smaller eps",
    },
    baseline={"sinkd": ("method.alpha=0", "method.beta=0"), "sinkd-tokens": ("method.distil_ratio=0",)},
    notes="The batch-wise term matches two sets: permuting the teacher's rows changes nothing, so it never stands alone. "
    "With reduction=sum, the paper's, it grows with the batch.",
)

log = logging.getLogger("limbeck.methods")

Soft = Literal["cross_entropy", "kl", "reverse", "js", "tv"]


@settings
class Transport:
    """What both forms of the method share.

    Args:
        transport: ``batch``: between the rows of a batch; ``sample``: inside each row, between its classes; ``off``.
        beta: weight of the transport.
        scale: factor c of the transport: 0.001 in the paper's BERT runs, 0.0008 for T0.
        reduction: ``sum`` over the rows of a batch, as the paper has it, or their mean (``batchmean``).
        temperature: tau, of both distributions in the transport.
        eps: entropic regularisation, the paper's lambda.
        iterations: of normalising rows and columns.
        norm: of the distance between two distributions.
        class_metric: cost between two classes with ``transport=sample``: ``zero_one``, or ``distance`` of ordered classes.
        detach_plan: the plan is a constant in the backward pass; off differentiates through all iterations, as the code does.
        divergence: the KD term: ``cross_entropy`` to the teacher (the code), or ``kl``, ``reverse``, ``js``, ``tv``, the
            paper's comparisons.
        kd_temperature: of the KD term, which is not multiplied by its square.
        anneal: the KD temperature falls in a line to 1 over the epochs.
    """

    transport: Literal["batch", "sample", "off"] = "batch"
    beta: NonNegative = 0.8
    scale: Positive = 1e-3
    reduction: Literal["sum", "batchmean"] = "sum"
    temperature: Positive = 2.0
    eps: Positive = 0.1
    iterations: Count = 20
    norm: CostNorm = "l1"
    class_metric: ClassMetric = "zero_one"
    detach_plan: bool = False
    divergence: Soft = "cross_entropy"
    kd_temperature: Annotated[float, Ge(1)] = 2.0
    anneal: bool = False

    @property
    def moves(self) -> bool:
        """Whether there is a transport term."""
        return self.transport != "off" and self.beta > 0

    def heat(self, ctx: Context) -> float:
        """The KD temperature of this step: T + e (1 - T) / (E - 1) in epoch e of E with ``anneal``."""
        if not self.anneal:
            return self.kd_temperature
        epochs = ctx.at(max(0, ctx.total - 1)).epoch + 1
        return linear(ctx.epoch, epochs - 1, start=self.kd_temperature, end=1.0) if epochs > 1 else self.kd_temperature

    def soft(self, z_s: Tensor, z_t: Tensor, T: float, where: Tensor | None = None) -> Tensor:
        """The KD term of each row [...]."""
        heat: dict[str, Any] = {"temperature": T, "scale_t2": False, "where": where}
        if self.divergence == "cross_entropy":
            return F.soft_cross_entropy(z_s, z_t, **heat)
        if self.divergence == "js":
            return F.jensen_shannon(z_s, z_t, **heat)
        if self.divergence == "tv":
            return F.total_variation(z_s, z_t, **heat)
        return F.kl(z_s, z_t, direction="reverse" if self.divergence == "reverse" else "forward", **heat)

    def between_rows(self, z_s: Tensor, z_t: Tensor, where: Tensor | None = None, top: int = 0) -> Tensor:
        """What moving each student row costs [..., B]; of a batch [..., B, C]."""
        how: dict[str, Any] = {"temperature": self.temperature, "eps": self.eps, "iterations": self.iterations}
        return sinkhorn(z_s, z_t, **how, norm=self.norm, top=top, detach_plan=self.detach_plan, where=where)

    def inside_rows(self, z_s: Tensor, z_t: Tensor, where: Tensor | None = None) -> Tensor:
        """What moving mass between the classes of each row costs [...]."""
        how: dict[str, Any] = {"temperature": self.temperature, "eps": self.eps, "iterations": self.iterations}
        return sinkhorn_classes(z_s, z_t, **how, metric=self.class_metric, detach_plan=self.detach_plan, where=where)


@settings
class Sinkd(Transport, Method[Classification]):
    """Sinkhorn distance beside KD, for classifiers of texts, images or rows.

    Args:
        alpha: weight of the KD term; the supervised term has 1 - alpha. With ``beta`` 0 too it is the student alone.
    """

    alpha: Fraction = 0.9

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def bind(self, setup: Setup) -> None:
        """Take the participants; say so where a batch has no neighbours."""
        super().bind(setup)
        if self.moves and self.transport == "batch" and setup.train.batch_size == 1:
            log.warning("train.batch_size is 1: the transport of one row is its L1 distance to the teacher's")

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Gather]:
        """The supervised term, KD, and the transport between the rows of the whole batch."""
        student = ctx.signal("student", batch)
        ce = self.task.supervised(student, batch)
        ce.weight = 1.0 - self.alpha
        if not self.alpha and not self.moves:
            yield Terms(ce=ce)
            return
        z_s, z_t = student.logits, ctx.signal("teacher", batch).logits  # [N, C]
        terms = {}
        if self.alpha:
            terms["kd"] = Term(self.soft(z_s, z_t, self.heat(ctx)), weight=self.alpha)
        if self.moves:
            count = ctx.batch_size
            if self.transport == "batch":
                rows: Any = yield Gather(s=z_s, t=z_t)
                count = len(rows["s"])
                values = self.between_rows(rows["s"], rows["t"])[rows.numbers("s")]
            else:
                values = self.inside_rows(z_s, z_t)
            weight = self.beta * self.scale * (count if self.reduction == "sum" else 1)
            terms["sinkhorn"] = Term(values, weight=weight)
        yield Terms(ce=ce, **terms)


@settings
class SinkdTokens(Transport, NextTokens):
    """Sinkhorn distance beside word-level KD, for decoder-only language models.

    Args:
        group: tokens of a text that are matched with each other; a longer text has several groups.
        classes: words compared in a group, those that any of its tokens finds likely, and one for the rest; 0 takes all.
    """

    distil_ratio: Fraction = 0.5
    scale: Positive = 8e-4
    beta: NonNegative = 0.5
    group: Annotated[int, Ge(2)] = 256
    classes: Natural = 64

    term = "kd"

    def compared(self, tokens: Tokens, ctx: Context) -> Tensor:
        """The KD term of every position [N, T-1]."""
        T = self.heat(ctx)
        kinds = {"cross_entropy": "soft_cross_entropy", "kl": "forward", "reverse": "reverse", "tv": "total_variation"}
        closed: dict[str, Any] = {"kind": kinds.get(self.divergence, "jensen_shannon"), "temperature": T}
        closed |= {"scale_t2": False} | ({"beta": 0.5} if self.divergence == "js" else {})
        return tokens.compare(lambda z_s, z_t, labels, where: self.soft(z_s, z_t, T, where), closed)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """KD, the loss on the text, and the transport between the tokens of each text."""
        if self.distil_ratio == 0 or not self.moves:
            return super().step(batch, ctx)
        tokens = self.reader.read(batch, ctx)
        r, where = self.distil_ratio, tokens.where
        terms = Terms({"tokens": (where.sum(), 1)})
        terms["kd"] = Term(self.compared(tokens, ctx), weight=r, where=where)
        if r < 1:
            terms["lm"] = Term(tokens.cross_entropy(), weight=1 - r, where=where)
        terms["sinkhorn"] = Term(self.carried(tokens), weight=self.beta * self.scale, where=where)
        return terms

    def carried(self, tokens: Tokens) -> Tensor:
        """The transport's value of every position [N, T-1], over tokens of one text at a time."""
        where = tokens.where
        if self.transport == "sample":
            return tokens.compare(lambda z_s, z_t, labels, where: self.inside_rows(z_s, z_t, where))
        z_s, z_t = tokens.student, tokens.teacher
        length = where.shape[1]
        size = min(self.group, length)
        if not isinstance(z_s, Tensor):  # one group's logits exist at a time
            numbers = torch.arange(where.numel(), device=where.device).view(where.shape)
            groups = [g for text in numbers for g in text.split(size)]

            def one(z_s: Tensor, z_t: Tensor, at: Tensor) -> Tensor:
                mask = where.flatten()[at]
                found = self.between_rows(z_s, z_t, mask, self.classes)
                return found * mask.sum() if self.reduction == "sum" else found

            return torch.cat(by_parts(z_s, z_t, groups, one)).view(where.shape)
        assert isinstance(z_t, Tensor)
        short = -length % size
        mask = torch.nn.functional.pad(where, (0, short)).unflatten(1, (-1, size))  # [N, G, size]
        z_s, z_t = (torch.nn.functional.pad(z, (0, 0, 0, short)).unflatten(1, (-1, size)) for z in (z_s, z_t))
        values = self.between_rows(z_s, z_t, mask, self.classes)
        if self.reduction == "sum":
            values = values * mask.sum(-1, keepdim=True)  # its mean over tokens is a mean over groups of their sums
        return values.flatten(1)[:, :length]
