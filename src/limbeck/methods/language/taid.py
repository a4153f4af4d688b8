"""TAID: the student follows a target that moves from its own prediction to the teacher's as fast as it can follow.

    p_t = softmax((1 - t) stop(z_s) + t z_p)
    J   = - mean over tokens of sum_v p_t(v) log q(v),    L = (1 - r) LM + r J
    m  <- beta m + (1 - beta) (J_previous - J) / J_previous
    t  <- min(t_end, max(t_linear, t + alpha sigmoid(m) (1 - t)))

t moves once an optimiser step, by the mean of J over all tokens of all processes. The baselines that the paper compares
with are the other values of ``divergence``: each takes J's place, and t stands still.

z_s, z_p: logits of student and teacher [N, T, V];  q, p: their softmax;  LM: cross-entropy to the text;  m: momentum
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, DataError
from limbeck.functional.chunked import Backend
from limbeck.functional.schedule import TaidState, cosine, taid_alpha, taid_check, taid_update
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Query, Setup, Stage, Term, Terms
from limbeck.grammar.role import Role
from limbeck.grammar.task import Task
from limbeck.objectives.sampling import OnPolicy
from limbeck.objectives.tokens import Kind, Reader, TokenDivergence
from limbeck.tasks.language import Language

CARD = Card(
    number=25,
    slug="taid",
    title="TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
    year=2025,
    venue="ICLR 2025",
    arxiv="2501.16937",
    repository="SakanaAI/TAID",
    licence="Apache-2.0",
    family="language",
    methods={"taid": "Taid"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "objective, schedule of t, baselines": "code, checked against recorded vectors",
        "value of J": "the code's cross-entropy; value=kl is the paper's formula, with the same gradient",
        "when t moves": "ours: once an optimiser step, from global means; the code moves it in every forward pass",
        "adaptive KL": "paper; variant=released repeats the code, which does not sort its head mask back",
        "CTKD": "paper: the temperature climbs, the more the later; variant=released has the code's signs",
        "samplers": "papers of GKD and DistiLLM; drawn by key, so that a resumed run writes the same texts",
        "alpha=auto": "ours: 7.8 / steps, the strength of the published runs",
    },
    claim="For a small student and teachers of growing size TAID's loss is at least as low as forward and reverse KL's "
    "at equal steps; adaptive >= linear >= constant t = 1.",
    recipe="taid",
    at_equality={"J": "gradient"},
    baseline={"taid": ("method.distil_ratio=0",)},
    notes="In runs of fewer than 2 / alpha steps the adaptive part never outruns the linear schedule: use alpha=auto.",
)

log = logging.getLogger("limbeck.methods")


class Taid(Method):
    """Temporally adaptive interpolated distillation, and the token-level baselines it is compared with.

    Args:
        divergence: ``taid``, or a baseline in its place: ``forward``, ``reverse``, ``js``, ``skew-forward``,
            ``skew-reverse``, ``tv``, ``adaptive``, ``dkd``, ``ctkd``.
        schedule: of t: ``adaptive``, ``linear``, or ``constant`` (t_end throughout).
        t_start: the first interpolation; 0 is the student itself.
        t_end: the last; 1 is the teacher.
        alpha: rate of the adaptive part; ``auto`` is 7.8 / steps.
        beta: decay of the momentum.
        distil_ratio: weight r of J; the loss on the text has 1 - r. 0 is the student alone, bit for bit.
        value: J as ``cross_entropy`` (the published code) or ``kl`` (the paper): equal gradients, another path of t.
        space: interpolate ``logits`` (the paper) or ``probabilities``.
        detach_student: the student is a constant inside the target; off is the ablation.
        temperature: softens both distributions; values are multiplied by its square.
        mix: the teacher's share in ``js``; the skew of the ``skew`` kinds.
        head: mass of the teacher's head in ``adaptive``.
        dkd_alpha: weight of the target part of ``dkd``.
        dkd_beta: weight of its non-target part.
        variant: ``paper``, or ``released`` for what the published code does in ``adaptive`` and ``ctkd``.
        sampler: ``on-policy`` or ``replay`` let the student write some of the texts.
        chunk: tokens whose logits exist at a time; ``auto`` computes in chunks where logits are large; 0 never does.
        backend: of the losses with a closed form: ``torch``, ``triton`` kernels, or ``auto``: the kernels where they can run.
    """

    def __init__(
        self,
        divergence: Kind = "taid",
        schedule: Literal["adaptive", "linear", "constant"] = "adaptive",
        t_start: float = 0.4,
        t_end: float = 1.0,
        alpha: float | Literal["auto"] = 5e-4,
        beta: float = 0.99,
        distil_ratio: float = 1.0,
        value: Literal["cross_entropy", "kl"] = "cross_entropy",
        space: Literal["logits", "probabilities"] = "logits",
        detach_student: bool = True,
        temperature: float = 1.0,
        mix: float = 0.1,
        head: float = 0.5,
        dkd_alpha: float = 1.0,
        dkd_beta: float = 0.5,
        variant: Literal["paper", "released"] = "paper",
        sampler: Query | None = None,
        chunk: int | Literal["auto"] = "auto",
        backend: Backend = "torch",
    ) -> None:
        try:
            rate = 0.0 if isinstance(alpha, str) else alpha
            taid_check(t_start=t_start, t_end=t_end, alpha=rate, beta=beta, total=1)
        except ConfigError as error:
            raise ValueError(error.line()) from None
        if not 0.0 <= distil_ratio <= 1.0:
            raise ValueError("distil_ratio must lie between 0 and 1")
        if not temperature > 0:
            raise ValueError("temperature must be above 0")
        if not 0.0 < mix < 1.0:
            raise ValueError("mix must lie strictly between 0 and 1")
        if not 0.0 < head <= 1.0:
            raise ValueError("head must lie in (0, 1]")
        if min(dkd_alpha, dkd_beta) < 0:
            raise ValueError("dkd_alpha and dkd_beta must be 0 or more")
        if not isinstance(chunk, str) and chunk < 0:
            raise ValueError("chunk must be 'auto', 0 for never, or a number of tokens")
        if sampler is not None and not isinstance(sampler, OnPolicy):
            raise ValueError("sampler must be on-policy or replay; other queries belong under queries")
        self.schedule: Literal["adaptive", "linear", "constant"] = schedule
        self.t_start, self.t_end, self.beta = t_start, t_end, beta
        self.alpha, self.distil_ratio = alpha, distil_ratio
        self.sampler, self.chunk, self.backend = sampler, chunk, backend
        self.divergence = TokenDivergence(
            divergence,
            value=value,
            temperature=temperature,
            mix=mix,
            head=head,
            target=dkd_alpha,
            nontarget=dkd_beta,
            space=space,
            detach=detach_student,
            variant=variant,
        )
        self.notes: list[str] = []

    def accept(self, task: Task) -> None:
        """Next tokens belong to the language task."""
        if not isinstance(task, Language):
            raise ConfigError("task", "TAID compares next tokens", given=type(task).__name__, remedy="task=language")

    def bind(self, setup: Setup) -> None:
        """Take the participants; check the schedule against the number of steps."""
        super().bind(setup)
        kind, steps = self.divergence.kind, setup.train.steps
        self.rate = taid_alpha(max(1, steps)) if isinstance(self.alpha, str) else self.alpha
        if kind == "taid" and self.schedule == "adaptive" and self.rate * steps < 2 and self.t_start < self.t_end:
            note = (
                f"alpha * steps = {self.rate * steps:.3g} is below 2: t follows the linear schedule throughout; "
                f"set method.alpha=auto ({taid_alpha(max(1, steps)):.2g})"
            )
            self.notes.append(note)
            log.warning(note)
        first = self.t_end if self.schedule == "constant" else self.t_start
        self.state = TaidState(t=first)._asdict()
        if kind == "ctkd":
            self.roles["temperature"] = Role(_Number())
            self.learners = ("student", "temperature")
        if self.sampler is not None:
            self.sampler.bind(self)
        dense = "ctkd learns a temperature, which the chunked losses do not" if kind == "ctkd" else ""
        if setup.objectives:
            dense = "add-on objectives read the logits"
        self.reader = Reader(self, self.chunk, dense, self.backend)

    def stages(self) -> list[Stage]:
        """One stage, on the data or on what the sampler makes of it."""
        (stage,) = super().stages()
        if self.sampler is not None:
            stage.queries, stage.begin = [self.sampler], self.sampler.begin
        return [stage]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """J and the loss on the text, over the tokens that count."""
        if self.distil_ratio == 0:
            return Terms(lm=self.task.supervised(ctx.signal("student", batch), batch))
        tokens = self.reader.read(batch, ctx)
        to: tuple[str, ...] = ("student",)
        extra: dict[str, Any] = {}
        if self.divergence.kind == "ctkd":
            to, extra = ("student", "temperature"), {"raw": ctx.call("temperature"), "strength": self.strength(ctx)}
        J = self.divergence(tokens, t=self.state["t"], **extra)  # [N, T-1]
        terms = Terms({"t": (self.state["t"], 1), "tokens": (tokens.where.sum(), 1)})
        terms["J"] = Term(J, to, weight=self.distil_ratio, where=tokens.where)
        if self.distil_ratio < 1:
            terms["lm"] = Term(tokens.cross_entropy(), weight=1 - self.distil_ratio, where=tokens.where)
        return terms

    def strength(self, ctx: Context) -> float:
        """CTKD's gradient reversal: from 0 to 1 along the run; the released code has the other sign and direction."""
        if self.divergence.variant == "released":
            return -cosine(ctx.step, ctx.total, start=1.0, end=0.0)
        return cosine(ctx.step, ctx.total, start=0.0, end=1.0)

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Move t by the mean of J."""
        if "J" in seen and not seen["tokens"]:
            raise DataError("data", f"no token of step {ctx.step} counts", remedy="see task.loss_on and task.length")
        if "J" in seen and self.divergence.kind == "taid" and self.schedule != "constant":
            now = TaidState(**{name: self.state[name] for name in TaidState._fields})
            now = taid_update(
                now,
                seen["J"],
                ctx.step,
                ctx.total,
                t_start=self.t_start,
                t_end=self.t_end,
                alpha=self.rate,
                beta=self.beta,
                adaptive=self.schedule == "adaptive",
            )
            self.state.update(now._asdict())
        if self.sampler is not None:
            self.sampler.observe(ctx)


class _Number(nn.Module):
    """CTKD's learned number before the sigmoid, 1 at first as in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        return self.raw
