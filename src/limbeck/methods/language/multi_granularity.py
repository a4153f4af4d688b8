"""Multi-granularity revision: the student writes; the worst token is corrected, and it goes on from there; KL over the
teacher's dense classes; neighbours within phrases.

    y ~ q(. | x);   j = argmax over { i : y_i != t_i } of KL(p_i || q_i),  t_i ~ p_i;   y <- y_<j t_j, then ~ q again
    L = L_SFT + L_DAC + L_span
    L_DAC  = mean over tokens of KL(p' || q'),   p' = m p / sum m p,  q' = m q / sum m q,
             m_v = sigmoid((p_v - t_l) / tau) sigmoid((t_u - p_v) / tau), 1 for the teacher's first class
    L_span = mean over neighbours of one phrase of || p_i * p_{i+1} - q_i * q_{i+1} ||^2

The thresholds t_l, t_u are quantiles of the token's largest probabilities, at levels that a small network f_sub predicts from
what both models say; it learns with the student. The paper has no public code and its equations were read through its public
reviews: f_sub's form, its input and first values, renormalising, the guard, the squared norm, the direction of the difference
and which texts each loss sees are our reading [reconstructed].

p, q: next-token distributions of teacher and student;  y: the response written;  t: the teacher's tokens at its places
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import limbeck.functional as F
from limbeck.errors import DataError
from limbeck.functional.chunked import Backend
from limbeck.functional.revision import (
    ClipMask,
    Level,
    Relation,
    SpanNorm,
    clip_thresholds,
    clipped_kl,
    locate_and_repair,
    span_relation,
)
from limbeck.functional.schedule import exponential
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.heads import rows_of
from limbeck.grammar.method import Batch, Context, Method, Query, Setup, Stage, Term, Terms
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, Positive, settings
from limbeck.grammar.signal import device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.parts.next_tokens import Reader, Tokens
from limbeck.parts.privacy import Pieces
from limbeck.parts.spans import Chunker, Phrases, neighbours
from limbeck.parts.writing import OnPolicy, Writer, ends_of, kept_prompts, written
from limbeck.tasks.language import CELLS, Language
from limbeck.tasks.tokens import IGNORE, make_batch, shifted

CARD = Card(
    number=40,
    slug="multi-granularity",
    title="Multi-Granularity Semantic Revision for Large Language Model Distillation",
    year=2024,
    arxiv="2407.10068",
    family="language",
    methods={"multi-granularity": "MultiGranularity"},
    optimised="network weights",
    signals=("logits",),
    provenance={
        "three revisions, weights of 1, one round": "the paper's public reviews",
        "clip network, its input and first values": "reconstructed",
        "renormalising, guard, squared norm, direction of the difference": "reconstructed; each is a setting",
        "which texts each loss sees": "reconstructed: the loss on the text sees the data, the others all texts",
        "phrases": "ours: closed classes of words; the paper's source is uncertain, import takes a chunker of your own",
        "replay": "DistiLLM's; kept are the corrected texts (our reading)",
    },
    claim="The teacher finds corrected texts likelier than what the student wrote; at equal steps a student that learns from them "
    "comes at least as close to the teacher on held-out texts as one that learns from its raw texts; KL over the dense part is "
    "no worse than full forward KL for a far smaller student.",
    recipe="multi-granularity",
    at_equality={"dac": "value", "span": "value"},
    baseline={"multi-granularity": ("method.dac=0", "method.span=0")},
    exceptions={
        "moves": "the clip network's last layer begins at zero, so its first one has a slope from the second step on, which is "
        "too small to be seen in four steps"
    },
    notes="Our reading of public reviews: no code is published. A clip network that only lowers its loss soon lets both levels "
    "fall to 0; what is compared then is what min_mass and keep_target keep (kept_mass in the log).",
)

Place = Literal["forward_kl", "reverse_kl", "symmetric_kl", "jensen_shannon", "total_variation", "confidence", "random"]
Divergence = Literal["dac", "forward", "reverse", "symmetric", "js", "tv", "skew-forward", "skew-reverse"]
Show = Callable[[str, Batch], Tensor]
"""A role's logits of a batch, without a graph: (role, batch) -> [N, T, V]."""

log = logging.getLogger("limbeck.methods")

READ = 64
"""Training texts from whose prompts the trained student writes for the report, before and after correction."""


class ClipNet(nn.Module):
    """f_sub: from what both models say of a token to a lower and an upper level. [reconstructed]

    Args:
        k: how many of the teacher's likeliest classes it sees.
        hidden: its width.
        lower, upper: the levels that it begins with.
        classes: of the vocabulary.
    """

    def __init__(self, k: int, hidden: int, lower: float, upper: float, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * k, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        first, last = self.net[0], self.net[2]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            # logs are all negative: without this most units would see no token on the side where they have a slope
            first.bias.copy_(math.log(classes) * first.weight.sum(1))
            share = (upper - lower) / (1 - lower)
            last.bias.copy_(torch.tensor([math.log(lower / (1 - lower)), math.log(share / (1 - share))]))

    def forward(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper level ``[n]`` from the logs of both at the teacher's classes ``[n, k]``, likeliest first."""
        raw = self.net(torch.cat([log_p, log_q], -1).clamp_min(-30.0)).float()
        low = torch.sigmoid(raw[:, 0])
        return low, low + (1 - low) * torch.sigmoid(raw[:, 1])


@settings
class MultiGranularity(Method[Language]):
    """Sequence correction and re-generation, divergence-adaptive clipping, and relations within phrases.

    Without correction ``rounds=0``; without clipping ``divergence=forward``; without phrases ``span=0``; on the data alone
    ``sampler=null``.

    Args:
        sft: weight of the loss on the data's texts.
        dac: weight of the divergence of single tokens.
        span: weight of the relations within phrases.
        sampler: who writes: ``on-policy`` or ``replay``, whose buffer then keeps corrected texts; ``null`` for nobody.
        compare_on: the divergences see the texts written and the ``data``'s (``both``), or those ``written`` alone.
        rounds: corrections of each text; 0 trains on what the student wrote.
        error: by what the worst token is found; ``random`` takes any at which the teacher's token is another.
        teacher_token: what the teacher would write: ``sample`` from its distribution, or its likeliest, ``argmax``.
        divergence: ``dac``, the clipped forward KL, or a whole divergence in its place.
        mix: skew of the ``skew`` kinds, the teacher's share in ``js``.
        clip: levels are ``learned`` by a small network, or ``fixed``.
        lower: the lower level, or what it begins with.
        upper: the upper level, or what it begins with.
        level: a level is a quantile of the token's k largest probabilities, or a ``fraction_of_max``.
        k: how many of the teacher's largest probabilities are looked at; cut to the vocabulary.
        hidden: width of the small network.
        mask: ``soft``; or ``hard``, which gives levels no gradient.
        tau: width of the soft mask at first.
        tau_end: and from half of the steps on.
        keep_target: the teacher's likeliest class is always kept.
        renormalise: both parts are divided by their mass; off is the paper's formula as it stands, which may be negative.
        min_mass: the likeliest classes that make up this mass are always kept; 0 as in the paper.
        chunker: what phrases are.
        norm: of the difference of two relations; always summed over the vocabulary.
        relation: of neighbouring distributions.
        chunk: tokens whose logits exist at a time; ``auto`` computes in chunks where logits are large; 0 never does.
        backend: of the loss on the data's texts in chunks.
    """

    sft: NonNegative = 1.0
    dac: NonNegative = 1.0
    span: NonNegative = 1.0
    sampler: Query | None = OnPolicy(fraction=1.0)
    compare_on: Literal["both", "written"] = "both"
    rounds: Natural = 1
    error: Place = "forward_kl"
    teacher_token: Literal["sample", "argmax"] = "sample"
    divergence: Divergence = "dac"
    mix: Fraction = 0.1
    clip: Literal["learned", "fixed"] = "learned"
    lower: Fraction = 0.1
    upper: Fraction = 0.99
    level: Level = "value_quantile"
    k: Count = 64
    hidden: Count = 64
    mask: ClipMask = "soft"
    tau: Positive = 0.05
    tau_end: Positive = 0.001
    keep_target: bool = True
    renormalise: bool = True
    min_mass: Fraction = 0.0
    chunker: Chunker = Phrases()
    norm: SpanNorm = "squared_l2"
    relation: Relation = "hadamard"
    chunk: Natural | Literal["auto"] = "auto"
    backend: Backend = "torch"

    def validate(self) -> None:
        """Something is learnt, levels are in order, and a network that learns gets a gradient."""
        if self.sft == self.dac == self.span == 0:
            raise ValueError("sft, dac and span must not all be 0: nothing is left to learn")
        if self.sampler is not None and not isinstance(self.sampler, Writer):
            raise ValueError("sampler must be on-policy or replay; other queries belong under queries")
        if self.compare_on == "written" and self.sampler is None:
            raise ValueError("compare_on must be both where sampler=null: nothing is written")
        if self.lower > self.upper or (self.learns and not 0 < self.lower < self.upper < 1):
            raise ValueError(
                f"lower ({self.lower}) must be below upper ({self.upper}), and both between 0 and 1 where they are learned"
            )
        if self.learns and self.mask == "hard":
            raise ValueError("mask must be soft where levels are learned: set clip=fixed for a hard one")
        if self.divergence.startswith(("skew", "js")) and not 0 < self.mix < 1:
            raise ValueError("mix must lie between 0 and 1")
        if self.relation == "outer" and self.norm == "l1":
            raise ValueError("norm must be squared_l2 or l2 where relation=outer")
        if isinstance(self.sampler, Writer):  # it is told what to do with its texts: nobody else's
            self.sampler = copy.copy(self.sampler)
            self.sampler.validate()
        self.learners = ("student", "clip") if self.learns else ("student",)
        self.notes: list[str] = []

    @property
    def learns(self) -> bool:
        """Whether there is a clip network."""
        return self.dac > 0 and self.divergence == "dac" and self.clip == "learned"

    @property
    def compares(self) -> bool:
        """Whether anything but the loss on the data's texts is left."""
        return self.dac > 0 or self.span > 0

    # ---------------------------------------------------------------------------------------------- participants
    def bind(self, setup: Setup) -> None:
        """Take the participants; add the clip network, and let the sampler have its texts corrected."""
        super().bind(setup)
        name = str(self.chunker.config.get("use") or type(self.chunker).__name__)
        self.state |= {"chunker": f"{name} {self.chunker.version}", "raw": 0.0, "corrected": 0.0, "steps": 0}
        if self.learns:
            classes = self.task.columns or self.task.vocabulary
            self.top = min(self.k, classes)
            self.new("clip", lambda: ClipNet(self.top, self.hidden, self.lower, self.upper, classes))
        if isinstance(self.sampler, Writer) and self.compares:
            self.sampler.bind(self)
            self.sampler.revise = self.revise if self.rounds else None
            if self.sampler.temperature == 0 and self.teacher_token == "argmax":
                note = "sampler.temperature=0 and teacher_token=argmax write and correct the same texts in every epoch"
                self.notes.append(note)
                log.warning(note)
        self.reader = Reader(self, self.chunk, "", self.backend)
        self.pieces = Pieces(self.task.tokenizer) if self.span > 0 else None

    def stages(self) -> list[Stage]:
        """One stage, on the data and what the student writes."""
        (stage,) = super().stages()
        if self.compares:
            stage.queries = [Beside(self.sampler, self.compare_on)]
            if isinstance(self.sampler, Writer):
                stage.begin = self.sampler.begin
        return [stage]

    # ------------------------------------------------------------------------------------------------ sequences
    def revise(self, made: Batch, prompts: Tensor, limit: Tensor, ctx: Context) -> Batch:
        """Texts just written, corrected: what the sampler calls."""

        def show(role: str, batch: Batch) -> Tensor:
            return ctx.signal(role, batch, grad=False).logits

        with evaluating([self.roles["student"].module]):
            return self.corrected(made, prompts, limit, ctx.draws, show)

    @torch.no_grad()
    def corrected(self, made: Batch, prompts: Tensor, limit: Tensor, draws: Draws, show: Show) -> Batch:
        """Each text with its worst token replaced by the teacher's, and written on by the student; ``rounds`` times.

        Args:
            made: texts that the student wrote.
            prompts: tokens of each row before what it wrote ``[N]``.
            limit: tokens of each row at most ``[N]``.
            draws: of this step.
            show: a role's logits.

        Returns:
            The texts, and of each ``begun`` [N], where its response begins; ``raw`` and ``raw_tokens`` [N], the teacher's
            surprise at what was written at first, in nats, and its tokens; ``repaired`` [N], whether a token was replaced.
        """
        T, device = made["input_ids"].shape[1], made["input_ids"].device
        at = torch.arange(T, device=device)
        told = {"begun": prompts, "repaired": torch.zeros_like(prompts, dtype=torch.bool)}
        for r in range(self.rounds):
            here = draws.at("correct", r)
            keep, wrong = torch.zeros_like(prompts), torch.zeros_like(told["repaired"])
            rows = made["input_ids"].clone()
            raw = torch.zeros(len(rows), device=device)
            for part in torch.arange(len(rows), device=device).split(max(1, CELLS // (T * self.task.vocabulary))):
                sub = {k: v[part] if isinstance(v, Tensor) else v for k, v in made.items()}
                found, surprise, place = self._located(sub, prompts[part], here, show)
                wrong[part], keep[part], raw[part] = found.position >= 0, prompts[part] + found.keep_length, surprise
                here_now = (at >= prompts[part, None]) & (at < keep[part, None])
                index = (at - prompts[part, None]).clamp(0, place.shape[1] - 1)
                rows[part] = torch.where(here_now, found.prefix.gather(1, index), rows[part])
            if r == 0:
                told |= {"raw": raw, "raw_tokens": made["attention_mask"].sum(1) - prompts}
            told["repaired"] |= wrong
            begins = (made["labels"] == IGNORE).long().cumprod(1).sum(1)
            made = {**made, **make_batch(rows, keep, made["prompt"], begins)}
            student = self.roles["student"].module
            last = rows.gather(1, (keep - 1).unsqueeze(1)).squeeze(1)
            over = torch.isin(last, torch.tensor(ends_of(student), device=device, dtype=last.dtype))
            go = (wrong & ~over & (keep < limit)).nonzero().squeeze(1)
            if len(go):
                sub = {k: v[go] if isinstance(v, Tensor) else v for k, v in made.items()}
                assert isinstance(self.sampler, Writer)
                how = self.sampler.how(self.task)
                more = written(student, sub, here, prompts=keep[go], limit=limit[go], **how)
                for name in ("input_ids", "attention_mask", "labels", "where"):
                    made[name][go] = more[name]
        return {**made, **told}

    def _located(self, sub: Batch, prompts: Tensor, draws: Draws, show: Show) -> tuple[Any, Tensor, Tensor]:
        """Where some texts go wrong most, the teacher's surprise at each, and the places of their responses ``[n, R]``."""
        T, sizes = sub["input_ids"].shape[1], sub["attention_mask"].sum(1)
        place = torch.arange(int((sizes - prompts).max()), device=prompts.device).expand(len(prompts), -1)
        where = place < (sizes - prompts).unsqueeze(1)
        index = (prompts.unsqueeze(1) - 1 + place).clamp_max(T - 2)  # the prediction at t is of token t + 1
        z_s, z_t = (
            z.gather(1, index.unsqueeze(-1).expand(-1, -1, z.shape[-1]))
            for z in (shifted(show(role, sub), sub)[0] for role in ("student", "teacher"))
        )
        mine, key = sub["input_ids"].gather(1, index + 1), sub["item"] + (sub["view"] << 40)
        log_p = z_t.float().log_softmax(-1)
        if self.teacher_token == "argmax":
            theirs = log_p.argmax(-1)
        else:  # one number a token: the teacher's distribution function, inverted
            mass = log_p.exp().cumsum(-1)
            u = draws.rand("teacher", key, place.shape[1:]).to(mass.device)
            theirs = torch.searchsorted(mass, (u * mass[..., -1]).unsqueeze(-1), right=True).squeeze(-1)
            theirs = theirs.clamp_max(mass.shape[-1] - 1)
        random = self.error == "random"
        by: Any = draws.rand("place", key, place.shape[1:]).to(z_s.device) if random else self.error
        found = locate_and_repair(z_s, z_t, mine, theirs, where, difference=by, pad=0)
        said = log_p.gather(-1, mine.clamp_max(log_p.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
        return found, -torch.where(where, said, torch.zeros_like(said)).sum(1), place

    # -------------------------------------------------------------------------------------------- tokens, phrases
    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The loss on the data's texts, and both divergences on all texts."""
        if not self.compares:
            own = self.task.supervised(ctx.signal("student", batch), batch)
            own.weight = self.sft
            return Terms(sft=own)
        tokens = self.reader.read(batch, ctx)
        truth, on = tokens.where & batch["truth"].unsqueeze(1), tokens.where & batch["compared"].unsqueeze(1)
        pairs = torch.zeros_like(on)
        if self.pieces is not None:
            pairs = neighbours(self.chunker, self.pieces, batch["input_ids"], on)
        found = self.compared(tokens, on, pairs, ctx)
        count = on.sum()
        at = torch.arange(on.shape[1], device=on.device) + 1 >= batch["begun"].unsqueeze(1)
        fresh = on & at & (batch["raw_tokens"] > 0).unsqueeze(1)
        terms = Terms(
            {
                "tokens": (count, 1),
                "raw": (batch["raw"].sum(), batch["raw_tokens"].sum()),
                "corrected": ((found.surprise * fresh).sum(), fresh.sum()),
                "repaired": (batch["repaired"].sum(), (batch["raw_tokens"] > 0).sum()),
            }
        )
        if self.sft > 0:
            own_tokens = Tokens(tokens.student, None, tokens.labels, truth, tokens.chunk, tokens.backend)
            terms["sft"] = Term(own_tokens.cross_entropy(), weight=self.sft, where=truth)
        if self.dac > 0:
            terms["dac"] = Term(found.dac, self.learners, weight=self.dac, where=on)
        if self.span > 0:
            terms["span"] = Term(found.span, weight=self.span, where=pairs)
        if self.dac > 0 and self.divergence == "dac":
            kept = ("kept_mass", "lower", "upper")
            terms.metrics |= {n: ((getattr(found, n) * on).sum(), count) for n in kept}
        return terms

    def compared(self, tokens: Tokens, on: Tensor, pairs: Tensor, ctx: Context) -> Compared:
        """Both divergences of every position ``[N, T-1]``, in chunks of tokens where logits are large."""
        rows = on.flatten().nonzero().squeeze(1)  # neighbours that both count are neighbours here too
        both = pairs.flatten()[rows]
        student, teacher = tokens.student, tokens.teacher
        size = tokens.chunk or max(1, CELLS // student.shape[-1])

        def one(a: int) -> tuple[Tensor, ...]:
            at, own = rows[a : a + size + 1], both[a : a + size]
            with torch.no_grad():
                assert teacher is not None
                z_t = rows_of(teacher, at)
            return self.part(rows_of(student, at), z_t, tokens.labels.flatten()[at], own, ctx)

        parts: list[tuple[Tensor, ...]] = [
            # what a chunk needs for its gradient is computed again, so that one chunk's logits exist at a time
            checkpoint(one, a, use_reentrant=False) if len(rows) > size and torch.is_grad_enabled() else one(a)
            for a in range(0, len(rows), size)
        ]
        zero = torch.zeros(on.numel(), device=on.device)
        made = [torch.cat(field) for field in zip(*parts, strict=True)] or [zero[:0]] * len(fields(Compared))
        return Compared(*(zero.index_copy(0, rows, values).view(on.shape) for values in made))

    def part(self, z_s: Tensor, z_t: Tensor, labels: Tensor, pairs: Tensor, ctx: Context) -> tuple[Tensor, ...]:
        """The fields of `Compared` ``[n]`` of n tokens, from logits of these and the one behind them ``[n or n+1, V]``."""
        n = len(pairs)
        zeros = z_s.new_zeros(n)
        related, dac, mass, low, up = zeros, zeros, zeros, zeros, zeros
        if self.span > 0:
            i = pairs.nonzero().squeeze(1)
            values = span_relation(z_s, z_t, torch.stack([i, i + 1], 1), norm=self.norm, relation=self.relation)
            related = zeros.index_copy(0, i, values.to(zeros.dtype))
        z_s, z_t = z_s[:n], z_t[:n]
        log_p = z_t.float().log_softmax(-1)
        said = -log_p.gather(-1, labels[:n].clamp_min(0).unsqueeze(-1)).squeeze(-1)
        if self.dac > 0 and self.divergence == "dac":
            low, up = self.levels(log_p, z_s, ctx)
            cut = clip_thresholds(log_p.exp(), up, low, level=self.level, k=self.k)
            more: dict[str, Any] = {"keep_target": self.keep_target, "min_mass": self.min_mass}
            more |= {"mask": self.mask, "tau": self.width(ctx), "renormalise": self.renormalise}
            found = clipped_kl(z_s, z_t, cut.lower, cut.upper, **more)
            dac, mass = found.values, found.kept_mass.detach()
        elif self.dac > 0:
            dac = self.whole(z_s, z_t)
        return dac, related, said, mass, low.detach(), up.detach()

    def levels(self, log_p: Tensor, z_s: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Lower and upper level of each token ``[n]``."""
        if not self.learns:
            return tuple(log_p.new_full((len(log_p),), x) for x in (self.lower, self.upper))  # type: ignore[return-value]
        top = log_p.topk(self.top)
        log_q = z_s.detach().float().log_softmax(-1).gather(-1, top.indices)
        found: tuple[Tensor, Tensor] = ctx.call("clip", top.values, log_q)
        return found

    def width(self, ctx: Context) -> float:
        """Of the soft mask: by a constant factor a step to its end at half of the steps. [reconstructed: the factor]"""
        if self.mask == "hard":
            return self.tau
        return exponential(ctx.step, max(1, ctx.total // 2), start=self.tau, end=self.tau_end)

    def whole(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """A divergence over all classes ``[n]``."""
        table: dict[str, Callable[[], Tensor]] = {
            "forward": lambda: F.kl(z_s, z_t),
            "reverse": lambda: F.kl(z_s, z_t, direction="reverse"),
            "symmetric": lambda: F.jeffreys(z_s, z_t),
            "js": lambda: F.jensen_shannon(z_s, z_t, beta=self.mix),
            "tv": lambda: F.total_variation(z_s, z_t),
            "skew-forward": lambda: F.skew_kl(z_s, z_t, direction="forward", mix=self.mix),
            "skew-reverse": lambda: F.skew_kl(z_s, z_t, direction="reverse", mix=self.mix),
        }
        return table[self.divergence]()

    # -------------------------------------------------------------------------------------------- what is told
    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Refuse a step without tokens; keep in mind how likely the teacher finds texts; let the sampler keep them."""
        if "tokens" in seen and not seen["tokens"]:
            raise DataError("data", f"no token of step {ctx.step} counts", remedy="see task.loss_on and task.length")
        if seen.get("corrected", 0.0) > 0:
            self.state["steps"] += 1
            for name in ("raw", "corrected"):
                self.state[name] += seen[name]
        if isinstance(self.sampler, Writer) and self.compares:
            self.sampler.observe(ctx)

    def measures(self) -> dict[str, float]:
        """The teacher's nats a token of what the student wrote in training, before and after correction."""
        n = self.state["steps"]
        return {f"nats_{name}": self.state[name] / n for name in ("raw", "corrected")} if n else {}

    def extras(self) -> dict[str, Any]:
        """What the sampler tells of its texts."""
        return self.sampler.extras() if self.sampler is not None else {}

    def rows(self) -> dict[str, Artifact]:
        """The teacher as it reads what the trained student writes after training prompts, raw and corrected."""
        if not (isinstance(self.sampler, Writer) and self.rounds and self.compares):
            return {}
        raw, corrected = self.samples()
        return {
            name: Reading(self.task, self.setup.built["teacher"], batch)
            for name, batch in (("raw texts", raw), ("corrected texts", corrected))
        }

    called = {  # noqa: RUF012 (never changed)
        "raw texts": "the teacher reading what the student writes",
        "corrected texts": "the teacher reading the same, corrected",
    }

    def samples(self) -> tuple[Batch, Batch]:
        """What the student writes after prompts of the training data, raw and corrected; only what it wrote counts."""
        assert isinstance(self.sampler, Writer)
        items = torch.arange(min(READ, len(self.task.train)))
        device = device_of(self.roles["student"].module)
        fetched = self.task.train.fetch(items) | {"item": items, "view": torch.zeros_like(items)}
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in fetched.items()}
        prompts = kept_prompts(batch, self.sampler.prompt)
        limit = torch.full_like(prompts, batch["input_ids"].shape[1])
        draws = Draws(self.setup.seed, ("report",), device)

        def show(role: str, given: Batch) -> Tensor:
            own = self.roles[role]
            return own.contract.outputs(self.task.feed(own.module, own.contract.feed(given)))

        with evaluating([r.module for r in self.roles.values()]), torch.no_grad():
            module = self.roles["student"].module
            raw = written(module, batch, draws, prompts=prompts, limit=limit, **self.sampler.how(self.task))
            fixed = self.corrected(raw, prompts, limit, draws, show)
        answers = [make_batch(b["input_ids"], b["attention_mask"].sum(1), b["prompt"], prompts) for b in (raw, fixed)]
        return answers[0], answers[1]


@dataclass
class Compared:
    """What is seen of every position ``[N, T-1]``, 0 where it is not compared.

    Attributes:
        dac: the divergence of a token.
        span: of a pair, at its first token.
        surprise: the teacher's nats.
        kept_mass: what of the teacher's distribution is compared.
        lower, upper: the levels.
    """

    dac: Tensor
    span: Tensor
    surprise: Tensor
    kept_mass: Tensor
    lower: Tensor
    upper: Tensor


class Beside(Query):
    """The data's texts, and behind them those that the sampler makes of them, as one batch.

    ``truth`` [n] marks rows of the data, ``compared`` [n] those that the divergences see.

    Args:
        sampler: writes.
        compare_on: ``both`` or ``written``.
    """

    def __init__(self, sampler: Query | None, compare_on: str = "both") -> None:
        self.sampler, self.compare_on = sampler, compare_on

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The batch, twice as long in a step in which texts are written."""
        made = self.sampler(batch, ctx) if self.sampler is not None else batch
        n, device = len(batch["item"]), batch["item"].device
        if made is batch:
            yes = torch.ones(n, dtype=torch.bool, device=device)
            return {**batch, **_untold(n, device), "truth": yes, "compared": yes}
        told = {**_untold(n, device), **{k: made[k] for k in _untold(0, device) if k in made}}
        both = {k: torch.cat([v, made[k]]) for k, v in batch.items() if isinstance(v, Tensor)}
        both |= {k: torch.cat([v, told[k]]) for k, v in _untold(n, device).items()}
        first = torch.arange(2 * n, device=device) < n
        return {**batch, **both, "truth": first, "compared": ~first if self.compare_on == "written" else first | ~first}


def _untold(n: int, device: torch.device) -> Batch:
    """What is known of n texts that nobody corrected."""
    none = torch.zeros(n, dtype=torch.long, device=device)
    return {"begun": none, "repaired": none.bool(), "raw": none.float(), "raw_tokens": none}


class Reading(NetworkArtifact):
    """A network evaluated on texts of its own.

    Args:
        task: what it is for.
        built: the network.
        batch: the texts.
    """

    def __init__(self, task: Task, built: Any, batch: Batch) -> None:
        super().__init__(task, built)
        self.batch = {k: v.cpu() for k, v in batch.items()}

    def judge(self, task: Task) -> Task:
        """The task, with these texts as its test split."""
        twin: Any = copy.copy(task)
        twin.test = self
        return twin

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def fetch(self, items: Tensor) -> Batch:
        """Some of the texts."""
        return {k: v[items] for k, v in self.batch.items()}
