"""TAID: the student follows a target that moves from its own prediction to the teacher's as fast as it can follow.

    p_t = softmax((1 - t) stop(z_s) + t z_p)
    J   = - mean over tokens of sum_v p_t(v) log q(v),    L = (1 - r) LM + r J
    m  <- beta m + (1 - beta) (J_previous - J) / J_previous
    t  <- min(t_end, max(t_linear, t + alpha sigmoid(m) (1 - t)))

t moves once an optimiser step, by the mean of J over all tokens of all processes. The divergences that the paper compares
with are those of ``token-kd``.

z_s, z_p: logits of student and teacher [N, T, V];  q, p: their softmax;  LM: cross-entropy to the text;  m: momentum
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from torch import Tensor

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.schedule import TaidState, taid_alpha, taid_check, taid_update
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Setup, Terms
from limbeck.grammar.settings import Positive, settings
from limbeck.parts.across_tokenizers import AcrossTokenizers
from limbeck.parts.next_tokens import Tokens

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
        "objective, schedule of t": "code, checked against recorded vectors",
        "value of J": "the code's cross-entropy; value=kl is the paper's formula, with the same gradient",
        "when t moves": "ours: once an optimiser step, from global means; the code moves it in every forward pass",
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


@settings
class Taid(AcrossTokenizers):
    """Temporally adaptive interpolated distillation.

    Args:
        schedule: of t: ``adaptive``, ``linear``, or ``constant`` (t_end throughout).
        t_start: the first interpolation; 0 is the student itself.
        t_end: the last; 1 is the teacher.
        alpha: rate of the adaptive part; ``auto`` is 7.8 / steps.
        beta: decay of the momentum.
        value: J as ``cross_entropy`` (the published code) or ``kl`` (the paper): equal gradients, another path of t.
        space: interpolate ``logits`` (the paper) or ``probabilities``.
        detach_student: the student is a constant inside the target; off is the ablation.
        temperature: softens both distributions; values are multiplied by its square.
    """

    schedule: Literal["adaptive", "linear", "constant"] = "adaptive"
    t_start: float = 0.4
    t_end: float = 1.0
    alpha: float | Literal["auto"] = 5e-4
    beta: float = 0.99
    value: Literal["cross_entropy", "kl"] = "cross_entropy"
    space: Literal["logits", "probabilities"] = "logits"
    detach_student: bool = True
    temperature: Positive = 1.0

    def validate(self) -> None:
        """t can rise from t_start to t_end."""
        super().validate()
        rate = 0.0 if isinstance(self.alpha, str) else self.alpha
        try:
            taid_check(t_start=self.t_start, t_end=self.t_end, alpha=rate, beta=self.beta, total=1)
        except ConfigError as error:
            raise ValueError(error.line()) from None
        self.notes: list[str] = []

    def bind(self, setup: Setup) -> None:
        """Take the participants; check the schedule against the number of steps."""
        super().bind(setup)
        steps = setup.train.steps
        self.rate = taid_alpha(max(1, steps)) if isinstance(self.alpha, str) else self.alpha
        if self.schedule == "adaptive" and self.rate * steps < 2 and self.t_start < self.t_end:
            note = (
                f"alpha * steps = {self.rate * steps:.3g} is below 2: t follows the linear schedule throughout; "
                f"set method.alpha=auto ({taid_alpha(max(1, steps)):.2g})"
            )
            self.notes.append(note)
            log.warning(note)
        self.state |= TaidState(t=self.t_end if self.schedule == "constant" else self.t_start)._asdict()

    def compared(self, tokens: Tokens, ctx: Context) -> Tensor:
        """J of every position [N, T-1]."""
        t, heat = self.state["t"], {"value": self.value, "temperature": self.temperature}

        def J(z_s: Tensor, z_p: Tensor, labels: Tensor, where: Tensor | None) -> Tensor:
            return F.taid(z_s, z_p, t, space=self.space, detach_student=self.detach_student, where=where, **heat)  # type: ignore[arg-type]

        plain = self.space == "logits" and self.detach_student
        closed: dict[str, Any] | None = {"kind": "taid", "t": t, **heat} if plain else None
        return tokens.compare(J, closed)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The terms, and t beside them."""
        terms = super().step(batch, ctx)
        if "J" in terms:
            terms.metrics["t"] = (self.state["t"], 1)
        return terms

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Move t by the mean of J."""
        super().observe(seen, ctx)
        if "J" in seen and self.schedule != "constant":
            now = taid_update(
                TaidState(**{name: self.state[name] for name in TaidState._fields}),
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
