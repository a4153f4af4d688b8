"""Word-level distillation: at every position of a text the student matches the teacher's next-token distribution.

    L = (1 - r) LM + r mean over tokens of D(p, q),     p = softmax(z_p / T), q = softmax(z_s / T)

D is the cross-entropy to p as in the paper, or one of the divergences that later papers put in its place; each is written
out in ``limbeck.functional``. The learned temperature of CTKD is a role of its own, whose gradient is reversed.

z_s, z_p: logits of student and teacher [N, T, V];  LM: cross-entropy to the text;  T: temperature
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.functional.schedule import cosine
from limbeck.grammar.card import Card
from limbeck.grammar.method import Context, Setup
from limbeck.grammar.settings import NonNegative, Positive, settings
from limbeck.parts.across_tokenizers import AcrossTokenizers
from limbeck.parts.next_tokens import Tokens

CARD = Card(
    number=None,
    slug="token-kd",
    title="Sequence-Level Knowledge Distillation",
    year=2016,
    venue="EMNLP 2016",
    arxiv="1606.07947",
    family="language",
    methods={"token-kd": "TokenKd"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "word-level distillation": "paper, section 3.1; its sequence-level form needs the teacher's texts as data and is not here",
        "divergences": "the baselines of TAID's code, checked against recorded vectors",
        "adaptive KL": "its paper; variant=released repeats the code, which does not sort its head mask back",
        "CTKD": "its paper: the temperature climbs, the more the later; variant=released has the code's signs",
        "ULD": "its paper (2402.12030); positions are paired by bytes, where the paper takes them in order",
        "samplers": "papers of GKD and DistiLLM; drawn by key, so that a resumed run writes the same texts",
    },
    claim="A small language model gains from the next-token distributions of a teacher that has read more.",
    recipe="token-kd",
    at_equality={"kd": "gradient"},
    baseline={"token-kd": ("method.distil_ratio=0",)},
    notes="The baseline of language methods. The paper's default, forward as a cross-entropy, ends at the teacher's entropy; "
    "value=kl has the same gradient and ends at zero.",
)

Divergence = Literal["forward", "reverse", "js", "skew-forward", "skew-reverse", "tv", "adaptive", "dkd", "ctkd", "uld"]


@settings
class TokenKd(AcrossTokenizers):
    """Word-level knowledge distillation of language models (Kim and Rush 2016), under any token-level divergence.

    Args:
        divergence: ``forward`` KL(p || q); ``reverse`` KL(q || p); ``js``, the generalised Jensen-Shannon (GKD);
            ``skew-forward``, ``skew-reverse`` (DistiLLM); ``tv``, total variation; ``adaptive``: forward on the teacher's
            head, reverse on its tail; ``dkd``, decoupled; ``ctkd``: forward under a learned temperature; ``uld``: the distance
            of the sorted probabilities, for any two vocabularies (universal logit distillation).
        value: ``forward`` and ``ctkd`` as ``cross_entropy`` (the papers) or as ``kl``: equal gradients in the student.
        temperature: softens both distributions; values are multiplied by its square.
        mix: the teacher's share in ``js``; the skew of the ``skew`` kinds.
        head: mass of the teacher's head in ``adaptive``.
        dkd_alpha: weight of the target part of ``dkd``.
        dkd_beta: weight of its non-target part.
        variant: ``paper``, or ``released`` for what the published code of TAID does in ``adaptive`` and ``ctkd``.
    """

    divergence: Divergence = "forward"
    value: Literal["cross_entropy", "kl"] = "cross_entropy"
    temperature: Positive = 1.0
    mix: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    head: Annotated[float, Interval(gt=0, le=1)] = 0.5
    dkd_alpha: NonNegative = 1.0
    dkd_beta: NonNegative = 0.5
    variant: Literal["paper", "released"] = "paper"

    term = "kd"

    def bind(self, setup: Setup) -> None:
        """Take the participants; CTKD's temperature is a role that learns."""
        super().bind(setup)
        if self.divergence == "ctkd":
            self.new("temperature", Number)
            self.learners = ("student", "temperature")

    def compared(self, tokens: Tokens, ctx: Context) -> Tensor:
        """The divergence of every position [N, T-1]."""
        raw = ctx.call("temperature") if self.divergence == "ctkd" else None

        def values(z_s: Tensor, z_p: Tensor, labels: Tensor, where: Tensor | None) -> Tensor:
            return self.dense(z_s, z_p, labels, where, raw, self.strength(ctx))

        return tokens.compare(values, self.closed_form()) if raw is None else tokens.compare_with(values)

    def dense(
        self,
        z_s: Tensor,
        z_p: Tensor,
        labels: Tensor,
        where: Tensor | None = None,
        raw: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Values [...] from logits [..., V]; ``raw``: CTKD's number before the sigmoid, ``strength`` of its reversal."""
        heat: dict[str, Any] = {"temperature": self.temperature, "where": where}
        forward = F.kl if self.value == "kl" else F.soft_cross_entropy
        table: dict[Divergence, Callable[[], Tensor]] = {
            "forward": lambda: forward(z_s, z_p, **heat),
            "reverse": lambda: F.kl(z_s, z_p, direction="reverse", **heat),
            "js": lambda: F.jensen_shannon(z_s, z_p, beta=self.mix, **heat),
            "skew-forward": lambda: F.skew_kl(z_s, z_p, direction="forward", mix=self.mix, **heat),
            "skew-reverse": lambda: F.skew_kl(z_s, z_p, direction="reverse", mix=self.mix, **heat),
            "tv": lambda: F.total_variation(z_s, z_p, **heat),
            "adaptive": lambda: F.adaptive_kl(z_s, z_p, head_threshold=self.head, variant=self.variant, **heat),
            "dkd": lambda: torch.stack(F.dkd(z_s, z_p, labels, alpha=self.dkd_alpha, beta=self.dkd_beta, **heat)).sum(
                0
            ),
            "uld": lambda: F.uld(z_s, z_p, **heat),
            "ctkd": lambda: F.ctkd(z_s, z_p, raw, strength=strength, value=self.value, where=where),  # type: ignore[arg-type]
        }
        return table[self.divergence]()

    def any_vocabulary(self) -> bool:
        """Sorted probabilities know no tokens."""
        return self.divergence == "uld"

    def reads_labels(self) -> bool:
        """Decoupled distillation takes the token that comes apart."""
        return self.divergence == "dkd"

    def closed_form(self) -> dict[str, Any] | None:
        """The arguments with which `chunked_divergence` computes it, or ``None`` where it has no closed form."""
        table: dict[Divergence, dict[str, Any]] = {
            "forward": {"kind": "forward" if self.value == "kl" else "soft_cross_entropy"},
            "reverse": {"kind": "reverse"},
            "js": {"kind": "jensen_shannon", "beta": self.mix},
            "skew-forward": {"kind": "skew_forward", "mix": self.mix},
            "skew-reverse": {"kind": "skew_reverse", "mix": self.mix},
            "tv": {"kind": "total_variation"},
        }
        found = table.get(self.divergence)
        return None if found is None else {**found, "temperature": self.temperature}

    def strength(self, ctx: Context) -> float:
        """CTKD's gradient reversal: from 0 to 1 along the run; the released code has the other sign and direction."""
        if self.variant == "released":
            return -cosine(ctx.step, ctx.total, start=1.0, end=0.0)
        return cosine(ctx.step, ctx.total, start=0.0, end=1.0)


class Number(nn.Module):
    """CTKD's learned number before the sigmoid, 1 at first as in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        """The number, a scalar."""
        return self.raw
