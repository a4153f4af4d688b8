"""TRG: a student follows the relations between image tokens: of neighbours, of all tokens, and within each image.

    L = CE(q, y) + kd L_KD + alpha L_inner + beta L_local + gamma L_global
    L_inner  = MSE of softmax(F F^T / sqrt(D)) of both networks                        within an image, all P tokens
    L_local  = mean_i KL( softmax_j A^S_ij || softmax_j A^T_ij )                       N = B m tokens drawn from the batch
               A_ij = exp(-|t_i - t_j|^2 / (2 sigma)) of the k nearest, 0 elsewhere
    L_global = mean_i -log exp(cos(g_S t^S_i, g_T t^T_i) / tau) / sum_j exp(cos(g_S t^S_i, g_T t^T_j) / tau)

F: tokens of one image [P, D], patches of the last feature map or of a vision transformer;  t: the drawn ones [N, D]
g: linear projections to a common width;  tau: falls over the epochs

Neither the paper's text nor code was at hand: the formulas come from public notes on it. What these leave open is
[reconstructed]: all weights and numbers, the kernel's width, the schedule of tau, projections without bias, pooling to one
grid.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any, Literal

import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.contrast import info_nce
from limbeck.functional.schedule import cosine, linear
from limbeck.functional.token_graph import (
    Axis,
    Direction,
    Over,
    context_distance,
    cut_tokens,
    local_relation,
    token_graph,
)
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Gather, Method, Setup, Share, Term, Terms
from limbeck.grammar.settings import Count, Natural, NonNegative, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task
from limbeck.networks.shows import channels_first, grid_of, last_linear, last_places, picture_of, pooled
from limbeck.networks.vision_transformer import VitClassifier
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=49,
    slug="trg",
    title="Knowledge Distillation via Token-level Relationship Graph",
    year=2023,
    arxiv="2306.12442",
    family="classification",
    methods={"trg": "Trg"},
    optimised="the student's weights and two projections",
    signals=("features", "logits"),
    provenance={
        "graph of neighbours, local, global and contextual loss, falling temperature": "the formulas of public notes; no code "
        "was published",
        "width of the kernel, axis of the neighbours, schedule, projections, weights, numbers": "reconstructed",
        "each loss divided by its first value": "reconstructed, so that a weight of 1 means the same for each",
        "tokens of the whole batch": "ours: gathered over micro-batches and processes",
        "long-tailed data": "the source long-tailed, after the sizes of CIFAR-LT; head, middle and tail are thirds of the classes",
    },
    claim="On long-tailed training data TRG's student has a higher balanced accuracy than one distilled by KD, and that one than "
    "one trained on labels; and a higher one than with relations between whole images.",
    recipe="trg",
    at_equality={
        "kd": "value",
        "inner": "value",
        "local": "value",
        "global": "it tells each token from the others, which are alike too",
    },
    baseline={"trg": ("method.kd=0", "method.alpha=0", "method.beta=0", "method.gamma=0")},
    notes="Both networks must show maps or tokens: ConvNets, ResNets and vision transformers, in any pairing. For long-tailed "
    "data: task.data={use: long-tailed, source: ..., ratio: 100}.",
)

log = logging.getLogger("limbeck.methods")

RELATIONS = ("inner", "local", "global")


@settings
class Trg(Method[Classification]):
    """Relations between tokens beside labels and KD.

    Args:
        temperature: of KD.
        kd: weight of KD.
        kd_direction: ``teacher_first`` is KL(teacher || student); ``student_first`` as the notes print it.
        scale_t2: multiply KD by the temperature squared, which the notes do not show.
        alpha: weight of the contextual loss, within each image.
        beta: weight of the local loss, between neighbours.
        gamma: weight of the global loss, between all drawn tokens.
        normalise: divide each of the three losses by its value at the first step.
        level: ``token``, or ``instance``: one pooled feature an image, which leaves the contextual loss out.
        tokens: m, drawn from each image in each step, the same places in both networks.
        patch: side of the patches that a feature map is cut into, a token each.
        unit: divide tokens by their length before the graph is made.
        k: neighbours of a token.
        sigma: width of the kernel; ``mean_knn`` is the mean squared distance of neighbours, in each network.
        axis: ``column``: column j of the graph holds the neighbours of token j; or ``row``.
        neighbours: each network's ``own``, or the ``teacher``'s in both.
        direction: ``student_first`` is KL(student || teacher) between rows of the graphs.
        over: the softmax of a row runs over ``all`` tokens, of which nearly all enter as 0, or over ``neighbours`` in either
            network.
        reduction: ``mean`` over tokens, or their ``sum``, of the local and the global loss.
        width: of the common space of the global loss.
        tau_start, tau_end: its temperature in the first epoch, and what it falls to.
        tau_schedule: ``cosine``, ``linear`` or ``constant`` (``tau_start``).
        student_tokens, teacher_tokens: modules that show maps or tokens; ``null`` takes the last ones that do.
        student_prefix, teacher_prefix: class tokens before those of the patches; ``null``: as many as do not fill a grid.
    """

    temperature: Positive = 4.0
    kd: NonNegative = 1.0
    kd_direction: Direction = "teacher_first"
    scale_t2: bool = True
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    normalise: bool = True
    level: Literal["token", "instance"] = "token"
    tokens: Count = 4
    patch: Count = 1
    unit: bool = False
    k: Count = 8
    sigma: Positive | Literal["mean_knn"] = "mean_knn"
    axis: Axis = "column"
    neighbours: Literal["own", "teacher"] = "own"
    direction: Direction = "student_first"
    over: Over = "all"
    reduction: Literal["mean", "sum"] = "mean"
    width: Count = 128
    tau_start: Positive = 0.5
    tau_end: Positive = 0.07
    tau_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    student_tokens: str | None = None
    teacher_tokens: str | None = None
    student_prefix: Natural | None = None
    teacher_prefix: Natural | None = None

    def validate(self) -> None:
        """Settings that would change nothing are refused."""
        if self.normalise and self.reduction == "sum":
            raise ValueError(
                "reduction changes nothing while losses are divided by their first values: set normalise=false"
            )
        if self.level == "instance" and self.patch > 1:
            raise ValueError("patch cuts maps into tokens, and level=instance pools them: leave it out")
        self.weights = {"inner": self.alpha, "local": self.beta, "global": self.gamma}
        if self.level == "instance":
            self.weights["inner"] = 0.0

    def accept(self, task: Task) -> None:
        """Items of one class each; for tokens, images."""
        super().accept(task)
        one_label(self, task)
        if self.level == "token" and len(task.shape) != 3:  # type: ignore[attr-defined]
            raise ConfigError(
                "task",
                "only images are made of tokens",
                given=f"items {list(task.shape)}",  # type: ignore[attr-defined]
                expected="pictures",
                remedy="set method.level=instance to relate whole items",
            )

    # ------------------------------------------------------------------------------------------------ networks
    def bind(self, setup: Setup) -> None:
        """Take the networks, find their tokens by a dry pass, make both projections."""
        super().bind(setup)
        self.state = {"tau": self.tau_start, **{f"first_{name}": 0.0 for name in RELATIONS}}
        self.next: dict[str, float] = {}
        if not any(self.weights.values()):
            return
        self.taps = {role: self._tap(role) for role in ("student", "teacher")}
        self.student_taps, self.teacher_taps = (self.taps["student"],), (self.taps["teacher"],)
        shown = {role: self.dry(role, [tap]) for role, tap in self.taps.items()}
        f_s, f_t = self.read(shown["student"], shown["teacher"], self.task.example(2))
        self._check(f_s.shape[1], setup)
        if self.weights["global"]:
            self.new("student_projection", lambda: nn.Linear(f_s.shape[2], self.width, bias=False))
            self.new("teacher_projection", lambda: nn.Linear(f_t.shape[2], self.width, bias=False))
            self.learners = ("student", "student_projection", "teacher_projection")

    def _tap(self, role: str) -> str:
        """Where a network shows its tokens, or for whole images its last feature."""
        named, module = getattr(self, f"{role}_tokens"), self.roles[role].module
        if named:
            return str(named)
        if hasattr(type(module), "answer") or not isinstance(module, nn.Module):
            raise ConfigError(
                f"method.{role}_tokens",
                f"the {role} is recorded or remote, so its modules are not known here",
                expected="the name of a recorded tap",
                remedy=f"set method.{role}_tokens=MODULE, as it was recorded",
            )
        if self.level == "instance":
            return last_linear(module)
        found = last_places(module, lambda: self.dry(role), self.task.shape[1:])
        if not found:
            raise ConfigError(
                f"method.{role}_tokens",
                f"no module of the {role} shows a map of several places, or tokens",
                given=type(module).__name__,
                expected="a ConvNet, a ResNet or a vision transformer",
                remedy=f"take another network, such as {role}=convnet, or set method.level=instance",
            )
        return found

    def _check(self, places: int, setup: Setup) -> None:
        """Refuse to draw more tokens, or to look for more neighbours, than there are."""
        if self.level == "token" and self.tokens > places:
            raise ConfigError(
                "method.tokens",
                "more tokens are to be drawn from an image than it has",
                given=self.tokens,
                expected=f"1 to {places}, the places that both networks show",
                remedy=f"set method.tokens={places}, or name modules with larger maps",
            )
        self.drawn = 1 if self.level == "instance" else self.tokens
        batch = setup.train.batch_size
        nodes = batch * self.drawn
        if self.weights["local"] and self.k >= nodes:
            raise ConfigError(
                "method.k",
                "a token cannot have as many neighbours",
                given=self.k,
                expected=f"fewer than the {nodes} drawn tokens: {batch} images, {self.drawn} of each",
                remedy="lower it, or raise method.tokens or train.batch_size",
            )
        if self.weights["global"] and nodes < 2:
            raise ConfigError(
                "train.batch_size", given=batch, expected="2 or more: a single token has nothing beside it"
            )
        if batch == 1:
            log.warning("train.batch_size is 1: the graph holds tokens of one image, and no relations between images")
        if places == 1 and self.weights["inner"]:
            log.warning("the tokens are one an image, so the contextual loss is always 0; it is left out")
            self.weights["inner"] = 0.0

    # ------------------------------------------------------------------------------------------------ tokens
    def read(self, student: Signal, teacher: Signal, batch: Batch) -> tuple[Tensor, Tensor]:
        """All tokens of both networks at the same places, float32: [B, P, D_s] and [B, P, D_t]."""
        picture = picture_of(batch)
        if self.level == "instance":
            found = [pooled(s.acts[self.taps[r]], picture) for r, s in (("student", student), ("teacher", teacher))]
            s, t = (f.flatten(1)[:, None].float() for f in found)
            return s, t
        maps = [self._grid(r, s.acts[self.taps[r]], picture) for r, s in (("student", student), ("teacher", teacher))]
        low = (min(f.shape[2] for f in maps), min(f.shape[3] for f in maps))
        s, t = (
            (f if f.shape[2:] == low else nn.functional.adaptive_avg_pool2d(f, low)).flatten(2).transpose(1, 2)
            for f in maps
        )
        return s, t

    def _grid(self, role: str, f: Any, picture: tuple[int, ...]) -> Tensor:
        """A network's tokens [B, D, h, w], of a map its patches, of a transformer without class tokens."""
        setting, tap = f"method.{role}_tokens", self.taps[role]
        if not isinstance(f, Tensor) or f.ndim not in (3, 4):
            shown = list(f.shape) if isinstance(f, Tensor) else type(f).__name__
            raise ConfigError(setting, f"{tap!r} shows {shown}", expected="a map [N, D, H, W] or tokens [N, L, D]")
        f = f.float()
        if f.ndim == 4:
            f = channels_first(f, picture)
            if f.shape[2] % self.patch or f.shape[3] % self.patch:
                raise ConfigError(
                    "method.patch",
                    f"patches must divide the {role}'s map",
                    given=self.patch,
                    expected=f"a divisor of {f.shape[2]} x {f.shape[3]}",
                )
            return cut_tokens(f, self.patch)
        high, wide = grid_of(f.shape[1], picture)
        rest = f.shape[1] - high * wide
        prefix = getattr(self, f"{role}_prefix")
        if prefix is None:
            module = self.roles[role].module
            own = isinstance(module, nn.Module) and any(isinstance(m, VitClassifier) for m in module.modules())
            prefix = min(rest, 1) if own else rest  # its distillation token stands at the end
        if not high or prefix > rest:
            raise ConfigError(
                f"method.{role}_prefix" if high else setting,
                f"{tap!r} shows {f.shape[1]} tokens, which fill no grid of the image's shape behind class tokens",
                given=prefix,
                expected=f"at most {rest} class tokens before {high} x {wide}" if high else "tokens of patches",
            )
        return f[:, prefix : prefix + high * wide].transpose(1, 2).unflatten(2, (high, wide))

    # ------------------------------------------------------------------------------------------------ steps
    def tau(self, ctx: Context) -> float:
        """Temperature of the global loss in this epoch."""
        if self.tau_schedule == "constant":
            return self.tau_start
        epochs = ctx.at(max(0, ctx.total - 1)).epoch + 1
        falls = cosine if self.tau_schedule == "cosine" else linear
        return falls(ctx.epoch, epochs, start=self.tau_start, end=self.tau_end)

    def step(self, batch: Batch, ctx: Context) -> Generator[Terms | Share | Gather, Any, None]:
        """Labels, KD and the three relations."""
        related = any(self.weights.values())
        student = ctx.signal("student", batch, self.student_taps if related else ())
        terms = {"ce": self.task.supervised(student, batch)}
        if not related and not self.kd:
            yield Terms({}, **terms)
            return
        teacher = ctx.signal("teacher", batch, self.teacher_taps if related else ())
        if self.kd:
            kind: Any = "forward" if self.kd_direction == "teacher_first" else "reverse"
            z_s, z_t = student.logits, teacher.logits
            kd = F.kl(z_s, z_t, temperature=self.temperature, direction=kind, scale_t2=self.scale_t2)
            terms["kd"] = Term(kd, weight=self.kd)
        found: dict[str, Term] = {}
        if related:
            found = yield from self.relations(student, teacher, batch, ctx)
        if self.normalise and found and not any(self.state[f"first_{name}"] for name in found):
            # all micro-batches and processes divide by the same
            parts = {name: term.values.detach() for name, term in found.items()}
            sums: Any = yield Share(
                **{name: v.sum() for name, v in parts.items()},
                **{f"n_{name}": torch.tensor(float(v.numel()), device=v.device) for name, v in parts.items()},
            )
            # two networks that agree have nothing to divide by
            means = {name: float(sums[name] / sums[f"n_{name}"]) for name in found}
            self.next.update({f"first_{name}": m if m > 1e-12 else 1.0 for name, m in means.items()})
        for name, term in found.items():
            if self.normalise:
                term.weight = self.weights[name] / (self.state[f"first_{name}"] or self.next[f"first_{name}"])
            terms[name] = term
        yield Terms({}, **terms)

    def relations(
        self, student: Signal, teacher: Signal, batch: Batch, ctx: Context
    ) -> Generator[Gather, Any, dict[str, Term]]:
        """The terms of tokens, each with its own weight."""
        f_s, f_t = self.read(student, teacher, batch)  # [B, P, D]
        found = {}
        if self.weights["inner"]:
            found["inner"] = Term(context_distance(f_s, f_t), weight=self.alpha)
        if not self.weights["local"] and not self.weights["global"]:
            return found
        m, places = self.drawn, f_s.shape[1]
        if m < places:
            order = ctx.draws.rand("tokens", batch["item"], (places,)).to(f_s.device).argsort(1)[:, :m, None]
            f_s, f_t = (f.gather(1, order.expand(-1, -1, f.shape[2])) for f in (f_s, f_t))
        rows: Any = yield Gather(s=f_s, t=f_t)  # [B, m, D] of the whole batch
        s, t = rows["s"].flatten(0, 1), rows["t"].flatten(0, 1)  # [N, D]
        own = (rows.numbers("s")[:, None] * m + torch.arange(m, device=s.device)).flatten()
        factor = len(s) if self.reduction == "sum" else 1
        if self.weights["local"]:
            how: dict[str, Any] = {"sigma": self.sigma, "axis": self.axis}
            a, b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) if self.unit else x for x in (s, t))
            theirs = token_graph(b.detach(), self.k, **how)
            ours = token_graph(a, self.k, **how, neighbours=theirs.neighbours if self.neighbours == "teacher" else None)
            values = local_relation(ours, theirs, direction=self.direction, over=self.over)[own]
            found["local"] = Term(values.unflatten(0, (-1, m)), weight=self.beta * factor)
        if self.weights["global"]:
            q = ctx.call("student_projection", f_s.flatten(0, 1))
            keys = ctx.call("teacher_projection", t.detach())
            tau = self.tau(ctx)
            self.next["tau"] = tau
            values = info_nce(q, keys, own, temperature=tau)
            to = ("student", "student_projection", "teacher_projection")
            found["global"] = Term(values.unflatten(0, (-1, m)), to=to, weight=self.gamma * factor)
        return found

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """The first values of the losses, and the temperature that was used."""
        self.state.update(self.next)
        self.next = {}

    def measures(self) -> dict[str, float]:
        """The temperature of the global loss, and by what the losses are divided."""
        found = {"tau": float(self.state["tau"])} if self.weights["global"] else {}
        shown = [n for n in RELATIONS if self.normalise and self.weights[n]]
        return found | {f"first_{n}": float(self.state[f"first_{n}"]) for n in shown}
