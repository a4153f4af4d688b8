"""Swing distillation: soft targets that say less, the likelier a token is private.

    s_t in [0, 1]: privacy score of the token that comes;     T_t = T_min + (T_max - T_min) s_t
    p~_t = softmax(z_T,t / T_t + k_t e_t),   k_t = sigma s_t,   e_t standard normal, drawn anew in every step
    L = (1 - a) CE + a mean_t T_t^2 KL(p~_t || softmax(z_S,t / T_t))

The abstract names temperatures per token by the likelihood of private information and noise on soft targets; everything
beyond it is our reading [reconstructed]. An empirical defence, measured by the exposure of canaries: not differential privacy.

z_T, z_S: logits of teacher and student [N, T, V];  s: scores [N, T];  CE: cross-entropy to the text
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.functional.privacy import (
    NoiseSpace,
    Rise,
    memorisation_score,
    noise_scale,
    per_token_temperature,
    protected_target,
)
from limbeck.grammar.card import Card
from limbeck.grammar.heads import answered, by_parts
from limbeck.grammar.method import Batch, Context, Participant, Setup, Term, Terms
from limbeck.grammar.settings import Fraction, NonNegative, Positive, settings
from limbeck.parts.next_tokens import NextTokens, Tokens, log_probability
from limbeck.parts.privacy import Patterns, Pieces, PrivacyScorer
from limbeck.tasks.tokens import shifted

CARD = Card(
    number=54,
    slug="swing",
    title="Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework",
    year=2022,
    arxiv="2212.08349",
    family="language",
    methods={"swing": "Swing"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "temperatures per token, noise on targets": "the abstract names both; their formulas are reconstructed",
        "scorers, noise tied to the score, alpha": "reconstructed",
        "exposure of canaries": "Carlini et al. 2019, by exact rank",
        "not here": "a teacher trained by DP-SGD, and scrubbed texts, as further baselines",
    },
    claim="Exposure of canaries falls by 80 % against ordinary distillation, at competitive quality.",
    recipe="swing",
    at_equality={"swing": "its target is a flatter, noised one: zero only without scores and noise"},
    baseline={"swing": ("method.distil_ratio=0",)},
    notes="Empirical, not differential privacy: noise composes over steps, and tokens that the scorer misses leak as before. "
    "Measure with evaluator=exposure on data=canaries.",
)

log = logging.getLogger("limbeck.methods")


@settings
class Swing(NextTokens):
    """Privacy-aware distillation of language models.

    Ordinary distillation is ``t_max=1 sigma=0``; at a constant high temperature ``t_min=10 t_max=10 sigma=0``; noise alone
    ``t_max=1``.

    Args:
        scorer: which tokens may be private: ``patterns`` or ``token-classifier``; ``null`` where ``memorisation`` says so.
        second: a second scorer; a token takes the larger score.
        memorisation: score tokens too by how much better the teacher knows them than a reference model, the participant
            ``reference``, which is taught the student's texts.
        offset: gap in nats at which that score is one half.
        width: nats over which it rises.
        scores: ``found``; as controls ``none`` takes 0 for all, ``shuffled`` gives them to other tokens of the row.
        t_min: temperature of a token with score 0.
        t_max: with score 1.
        shape: how the temperature rises: ``linear`` or ``exp``.
        sigma: scale of the noise.
        tied: the noise's scale is sigma times the score.
        epsilon: a privacy budget instead: Laplace noise on probabilities of scale 2 / epsilon, untied.
        space: noise on ``logit`` (after dividing by the temperature) or on ``probability``.
        noise: ``normal`` or ``laplace`` draws.
        drop_hard_on_private: leave tokens with a score of 0.5 or more out of the loss on the text, where that is private too.
    """

    distil_ratio: Fraction = 0.5
    scorer: PrivacyScorer | None = Patterns()
    second: PrivacyScorer | None = None
    memorisation: bool = False
    offset: float = 2.0
    width: Positive = 1.0
    scores: Literal["found", "none", "shuffled"] = "found"
    t_min: Positive = 1.0
    t_max: Positive = 10.0
    shape: Rise = "linear"
    sigma: NonNegative = 0.5
    tied: bool = True
    epsilon: Positive | None = None
    space: NoiseSpace = "logit"
    noise: Literal["normal", "laplace"] = "normal"
    drop_hard_on_private: bool = False

    term = "swing"

    def validate(self) -> None:
        """Temperatures are in order, something scores, and a reference takes part where it is asked."""
        super().validate()
        if self.t_max < self.t_min:
            raise ValueError("t_max must be t_min or more")
        if self.scorer is None and self.second is None and not self.memorisation and self.scores != "none":
            raise ValueError(
                "scorer must not be null, or memorisation must be on: nothing says which tokens are private"
            )
        self.participants = {"teacher": Participant()}
        if self.memorisation:
            self.participants["reference"] = Participant(like="student", data="train")

    def bind(self, setup: Setup) -> None:
        """Take the participants, and the text of every token."""
        super().bind(setup)
        self.scorers = [s for s in (self.scorer, self.second) if s is not None]
        self.pieces = Pieces(self.task.tokenizer) if self.scorers else None
        names = ", ".join(f"{type(s).__name__} {s.version}" for s in self.scorers) or "memorisation"
        log.info("scored by %s; an empirical defence, not differential privacy", names)

    def privacy(self, tokens: Tokens, batch: Batch, ctx: Context) -> Tensor:
        """Scores of the tokens that come [N, T-1]."""
        like = tokens.where
        if self.scores == "none":
            return torch.zeros(like.shape, device=like.device)
        found = torch.zeros(like.shape, device=like.device)
        if self.pieces is not None:
            texts, offsets = self.pieces.read(batch["input_ids"])
            for scorer in self.scorers:
                found = torch.maximum(found, scorer.score(texts, offsets)[:, 1:].to(like.device))
        if self.memorisation:
            theirs = shifted(answered(ctx.signal("reference", batch)), batch)[0]
            assert tokens.teacher is not None
            p, r = (log_probability(z, tokens.labels) for z in (tokens.teacher, theirs))
            found = torch.maximum(found, memorisation_score(p, r, offset=self.offset, width=self.width))
        if self.scores == "shuffled":
            key = ctx.draws.rand("shuffled", batch["item"] + (batch["view"] << 40), found.shape[1:])
            found = found.gather(1, torch.where(like, key, key + 1).argsort(1))
        return torch.where(like, found, torch.zeros_like(found))

    def target(self, z_t: Tensor, T: Tensor, s: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Log-probabilities of the protected targets [N, T-1, V]."""
        scale = noise_scale(self.sigma, epsilon=self.epsilon, score=s, tied=self.tied)
        laplace = self.noise == "laplace" or self.epsilon is not None
        space: NoiseSpace = "probability" if self.epsilon is not None else self.space
        if self.epsilon is None and not self.sigma:
            return protected_target(z_t, T)
        key, shape = batch["item"] + (batch["view"] << 40), z_t.shape[1:]
        if laplace:
            u = ctx.draws.rand("noise", key, shape) - 0.5 + 2.0**-25
            e = -u.sign() * torch.log1p(-2 * u.abs())
        else:
            e = ctx.draws.randn("noise", key, shape)
        return protected_target(z_t, T, e.to(z_t.device), scale=scale, space=space)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The protected targets, and the loss on the text."""
        if self.distil_ratio == 0:
            return super().step(batch, ctx)
        tokens = self.reader.read(batch, ctx)
        where = tokens.where
        s = self.privacy(tokens, batch, ctx)  # [N, T-1]
        T = per_token_temperature(s, t_min=self.t_min, t_max=self.t_max, shape=self.shape)
        values = self.protected(tokens, T, s, batch, ctx)
        count = where.sum()
        terms = Terms({"tokens": (count, 1), "private": ((s * where).sum(), count)})
        terms["swing"] = Term(values, weight=self.distil_ratio, where=where)
        if self.distil_ratio < 1:
            public = where & (s < 0.5) if self.drop_hard_on_private else where
            own = replace(tokens, where=public).cross_entropy()
            terms["lm"] = Term(own, weight=1 - self.distil_ratio, where=public)
        return terms

    def protected(self, tokens: Tokens, T: Tensor, s: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """The divergence from the protected targets [N, T-1]; of large logits and their noise one text exists at a time."""
        where, (n, length) = tokens.where, tokens.where.shape

        def some(z_s: Tensor, z_t: Tensor, texts: Any) -> Tensor:
            keys = {name: batch[name][texts] for name in ("item", "view")}
            target = self.target(z_t, T[texts], s[texts], keys, ctx)
            return T[texts].square() * F.kl(z_s / T[texts].unsqueeze(-1), target, where=where[texts])

        if isinstance(tokens.student, Tensor):
            assert isinstance(tokens.teacher, Tensor)
            return some(tokens.student, tokens.teacher, slice(None))
        rows = torch.arange(n * length, device=where.device).view(n, length)
        parts = by_parts(
            tokens.student,
            tokens.teacher,
            list(rows),
            lambda z_s, z_t, at: some(z_s[None], z_t[None], at[:1] // length),
        )
        return torch.cat(parts)
