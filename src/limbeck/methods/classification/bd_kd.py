"""BD-KD: networks learn together from scratch; each smaller one mixes both divergences by who is less certain.

    L_s = CE(z_s, y) + lambda T^2 mean( w_f KL(p_t || p_s) + w_r KL(p_s || p_t) ),     p = softmax(z / T)
    L_t = CE(z_t, y) + mu T^2 mean KL(p_s || p_t)
    (w_f, w_r) = (delta, 1) where H(p_t) > H(p_s), (1, delta) where H(p_t) < H(p_s), (1, 1) at a tie

What a network is taught with is detached: each term reaches one network. Of K networks, ordered by their parameters, each
takes the average of the first loss's divergence over the larger ones and of the second's over the smaller ones.

z_s, z_t: logits of student and larger network [N, C];  H: entropy [N];  w: weights [N], without gradient
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

import limbeck.functional as F
from limbeck.functional.balance import Rule, entropy_gap_weights
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Term, Terms
from limbeck.grammar.settings import NonNegative, Positive, settings
from limbeck.grammar.task import Task
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=30,
    slug="bd-kd",
    title="BD-KD: Balancing the Divergences for Online Knowledge Distillation",
    year=2022,
    arxiv="2212.12965",
    family="classification",
    methods={"bd-kd": "BdKd"},
    optimised="the weights of all networks",
    signals=("logits",),
    provenance={
        "both divergences, weighted by the entropy gap": "abstract and a public summary of the paper; no code was published",
        "hard rule, its direction, the tie": "a third party's implementation (ABKD's baseline); delta 2 is ours, 3 theirs",
        "soft rule": "reconstructed",
        "the larger network's divergence": "reconstructed: reverse by the summary's own naming; forward is the other reading",
        "K networks": "the abstract names them; their form is reconstructed",
    },
    claim="Online distillation is at least as accurate as the student alone, and no worse calibrated; balancing calibrates better "
    "than mutual learning.",
    recipe="bd-kd",
    at_equality={"balanced": "value", "mutual_teacher": "value"},
    notes="mode=offline takes a ready or taught teacher that stands still. Deep mutual learning is student_divergence=forward.",
)


@settings
class BdKd(Method[Classification]):
    """Balanced divergences, online.

    Args:
        delta: the larger weight, 1 or more; 1 is the plain sum of both divergences.
        rule: ``hard``, ``soft`` (a sigmoid of the gap) or ``constant`` (1 and 1) weights.
        sharpness: of the soft rule.
        weighting: by each item's own entropy gap, or by the ``batch``'s mean one.
        student_divergence: ``balanced``, or ``forward``, ``reverse``, ``jeffreys`` (their sum) alone.
        teacher_divergence: what the larger network adds: ``reverse`` is KL(student || teacher), ``forward`` is
            KL(teacher || student), ``none`` leaves it its labels.
        temperature: of both distributions.
        weight: of the student's divergence (the paper's lambda).
        mu: of the larger network's.
        mode: ``online`` trains all networks together; ``offline`` takes a teacher that stands still.
        updates: ``simultaneous``, or ``sequential``: the largest network first, each next one from what is new.
        networks: how many learn together besides the student: ``teacher``, ``peer2``, ``peer3``...
    """

    takes_unlabelled = "terms"

    delta: Annotated[float, Ge(1)] = 2.0
    rule: Rule = "hard"
    sharpness: Positive = 5.0
    weighting: Literal["item", "batch"] = "item"
    student_divergence: Literal["balanced", "forward", "reverse", "jeffreys"] = "balanced"
    teacher_divergence: Literal["reverse", "forward", "none"] = "reverse"
    temperature: Positive = 1.0
    weight: NonNegative = 1.0
    mu: NonNegative = 1.0
    mode: Literal["online", "offline"] = "online"
    updates: Literal["simultaneous", "sequential"] = "simultaneous"
    networks: Annotated[int, Ge(1)] = 1

    def validate(self) -> None:
        """Offline there is one teacher, which is taught by labels before."""
        if self.mode == "offline" and (self.networks > 1 or self.updates == "sequential"):
            raise ValueError("mode=offline has one network that learns: networks and updates must keep their defaults")
        online = self.mode == "online"
        names = ["teacher", *(f"peer{i}" for i in range(2, self.networks + 1))]
        self.participants = {n: Participant(taught=not online, like="" if n == "teacher" else "teacher") for n in names}
        self.learners = ("student", *names) if online else ("student",)
        if self.weighting == "batch":
            self.coupled = "the weights come from the batch's mean entropies"

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def bind(self, setup: Setup) -> None:
        """Take the networks, and order them by their parameters, largest first; of equals the student is the smallest."""
        super().bind(setup)
        size = {n: sum(p.numel() for p in setup.built[n].module.parameters()) for n in self.learners}
        self.order = sorted(self.learners, key=lambda n: (-size[n], n == "student"))
        if self.mode == "offline":
            self.order = ["teacher", "student"]

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms]:
        """Every network's terms: in one phase, or one after the other from fresh logits."""
        if self.updates == "simultaneous":
            shown = {n: ctx.signal(n, batch) for n in self.order}
            z = {n: s.logits for n, s in shown.items()}
            yield Terms({}, **{k: t for n in self.learners for k, t in self.terms(n, z, batch, ctx).items()})
            return
        for name in self.order:
            z = {n: ctx.signal(n, batch, grad=n == name).logits for n in self.order}
            yield Terms({}, **self.terms(name, z, batch, ctx))

    def terms(self, name: str, z: dict[str, Tensor], batch: Batch, ctx: Context) -> dict[str, Term]:
        """One network's terms; ``z``: logits [N, C] of every network, its own with a graph."""
        suffix = "" if name == "student" else f"_{name}"
        ce = self.task.supervised(ctx.signals[name], batch)
        ce.to = (name,)
        found = {f"ce{suffix}": ce}
        at = self.order.index(name)
        larger, smaller = self.order[:at], self.order[at + 1 :]
        others = len(larger) + len(smaller)
        if larger and self.weight:
            values = [self.balanced(z[name], z[n].detach()) for n in larger]
            found[f"balanced{suffix}"] = Term(sum(values), name, weight=self.weight / others)  # type: ignore[arg-type]
        if smaller and self.mu and self.teacher_divergence != "none":
            # the larger network is the one that moves, so that its "reverse" is the forward divergence to the smaller one
            way: Literal["forward", "reverse"] = "forward" if self.teacher_divergence == "reverse" else "reverse"
            values = [F.kl(z[name], z[n].detach(), direction=way, temperature=self.temperature) for n in smaller]
            found[f"mutual{suffix}"] = Term(sum(values), name, weight=self.mu / others)  # type: ignore[arg-type]
        return found

    def balanced(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """The divergence [N] of a network from a larger one, T squared included."""
        T = self.temperature
        forward = F.kl(z_s, z_t, temperature=T)  # [N]
        if self.student_divergence == "forward":
            return forward
        reverse = F.kl(z_s, z_t, direction="reverse", temperature=T)  # [N]
        if self.student_divergence == "reverse":
            return reverse
        if self.student_divergence == "jeffreys":
            return forward + reverse
        w = entropy_gap_weights(z_s, z_t, delta=self.delta, rule=self.rule, sharpness=self.sharpness, temperature=T)
        w_f, w_r = w.forward, w.reverse
        if self.weighting == "batch":
            gap = (w.teacher_entropy - w.student_entropy).mean()
            w_f = 1 + (self.delta - 1) * (gap > 0).to(gap.dtype)
            w_r = 1 + (self.delta - 1) * (gap < 0).to(gap.dtype)
        return w_f * forward + w_r * reverse

    def rows(self) -> dict[str, Artifact]:
        """Every further network that learnt."""
        return {name: self.network(name) for name in self.learners if name.startswith("peer")}
