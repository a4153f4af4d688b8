"""DCGLR: an encoder of point clouds learns without labels, from large and small pieces of the same object.

    L_KD = 1/#pairs sum_{q in large} sum_{v != q} - P_q . log S_v,   P_q = softmax((t_q - c) / tau_t),  S_v = softmax(s_v / tau_s)
    L_C  = 1/2 [ CE(z_s^a . Z_t^b / tau) + CE(z_s^b . Z_t^a / tau) ]                          Z_t: of all objects, and a queue's
    L    = L_KD + lambda L_C;     c <- 0.9 c + 0.1 mean t;     teacher <- m teacher + (1 - m) student,  m: 0.996 -> 1

The teacher is the student's moving average and sees the two large pieces; the student sees all. What the teacher says of one
piece is asked of every other (global shape to local structure), and each object is to be told from the others of the batch.

t, s: logits of K prototypes [V, N, K] behind a head;  z: its bottleneck [2, N, D];  c: centre [K];  a, b: the large pieces
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.pretraining import cross_view_contrast, moved_centre, multicrop_cross_entropy, n_pair, queued
from limbeck.functional.schedule import ramp, warm_cosine
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Gather, Gathered, Method, Setup, Share, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, Positive, settings
from limbeck.grammar.signal import evaluating
from limbeck.networks.heads import PrototypeHead
from limbeck.parts.crops import CloudViews, Crops, sketch
from limbeck.tasks.clouds import CloudFeatures

CARD = Card(
    number=18,
    slug="dcglr",
    title="Distillation with Contrast is All You Need for Self-Supervised Point Cloud Representation Learning",
    year=2022,
    arxiv="2202.04241",
    family="pretraining",
    methods={"dcglr": "Dcglr"},
    optimised="an encoder's weights",
    signals=("logits over prototypes", "embeddings"),
    provenance={
        "averaged teacher, large and small pieces, both losses": "the abstract; no code was published",
        "distillation loss, centre, schedules, head": "DINO, checked against vectors recorded from its code",
        "pieces, their completion, sizes, sizes of the 3D-ViT": "POS-BERT, a later method by the same first author, checked "
        "against vectors recorded from its code",
        "contrast as InfoNCE of the head's bottleneck, weight 1, temperature 0.07, queue, projector": "reconstructed; "
        "contrast_form=npair is POS-BERT's",
        "positions by a perceptron of the centre": "reconstructed",
    },
    claim="A linear classifier on frozen features tells more with both losses than with distillation alone, and more than on "
    "the same encoder untrained, whichever encoder it is.",
    recipe="dcglr",
    exceptions={"batch_of_one": "a single object has no other that it could be told from: refused"},
    notes="The paper's tables are not known to us. That both losses beat the contrast alone was not seen in small experiments.",
)


@settings
class Dcglr(Method[CloudFeatures]):
    """Distillation with contrast for point clouds.

    Args:
        loss: ``distill``, ``contrast`` or ``both``.
        views: which pieces are seen, and how they are changed.
        prototypes: K.
        hidden, bottleneck: widths of the head.
        student_temperature: tau_s.
        teacher_temperature: tau_t; not below tau_s, everything ends in one answer.
        teacher_temperature_start: where it begins; ``null``: where it ends.
        teacher_warmup: epochs until it ends.
        centering: take the centre from the teacher's logits; off, everything may end in one answer.
        centre_momentum: share of the centre that stays at each step.
        momentum, momentum_end: share of the teacher that stays at each step, along half a cosine.
        teacher_statistics: batch norm of the teacher goes by the ``batch``, or by the ``student``'s running statistics.
        contrast_form: ``infonce``, or ``npair`` of the teacher's distributions with the student's logits.
        contrast_weight: lambda; ``null``: 1, and 0.01 for ``npair``.
        contrast_temperature: tau.
        contrast_scale: of ``npair``.
        embedding: what is contrasted: the head's ``bottleneck``, or what a ``projector`` of two layers makes of the feature.
        queue: embeddings of earlier objects, which the batch's are told from too.
        freeze: epochs in which the prototypes stay as they were drawn.
        deliver: the ``student``, or its averaged ``teacher``. Both have a row in the report.
    """

    participants = {}  # noqa: RUF012 (the teacher is the student's average)

    loss: Literal["distill", "contrast", "both"] = "both"
    views: CloudViews = CloudViews()
    prototypes: Annotated[int, Ge(2)] = 512
    hidden: Count = 2048
    bottleneck: Count = 256
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = 0.04
    teacher_temperature_start: Positive | None = None
    teacher_warmup: Natural = 0
    centering: bool = True
    centre_momentum: Fraction = 0.9
    momentum: Fraction = 0.996
    momentum_end: Fraction = 1.0
    teacher_statistics: Literal["batch", "student"] = "batch"
    contrast_form: Literal["infonce", "npair"] = "infonce"
    contrast_weight: NonNegative | None = None
    contrast_temperature: Positive = 0.07
    contrast_scale: Positive = 64.0
    embedding: Literal["bottleneck", "projector"] = "bottleneck"
    queue: Natural = 0
    freeze: Natural = 1
    deliver: Literal["student", "teacher"] = "student"

    def validate(self) -> None:
        """What one form of contrast has, the other has not."""
        npair = self.contrast_form == "npair"
        if npair and (self.queue or self.embedding == "projector"):
            raise ValueError("contrast_form=npair compares logits: it has no queue, and no embedding but the head's")
        if self.queue and self.loss == "distill":
            raise ValueError("queue is of the contrast, and loss=distill has none")
        given = self.contrast_weight
        self.weight = 0.0 if self.loss == "distill" else (0.01 if npair else 1.0) if given is None else given
        if self.loss == "contrast" and not self.weight:
            raise ValueError("contrast_weight is 0, and loss=contrast has no other term")
        self.distils = self.loss != "contrast"
        self.compares = self.distils or (npair and self.weight > 0)  # whether prototypes are asked for
        self.heads = self.compares or self.embedding == "bottleneck"
        self.projects = bool(self.weight) and self.embedding == "projector"

    def bind(self, setup: Setup) -> None:
        """Add the heads and the averages, once a few clouds have gone through the encoder in every size."""
        super().bind(setup)
        points = self.task.shape[0]
        self.views.check(points)
        if self.weight and setup.train.batch_size < 2:
            raise ConfigError(
                "train.batch_size",
                "the contrast tells an object from the others of the batch",
                given=1,
                expected="2 or more",
                remedy="raise it, or set method.loss=distill",
            )
        width = self._width(points)
        kept = partial(warm_cosine, start=self.momentum, end=self.momentum_end)
        pairs = {"student": "teacher"}
        if self.heads:
            made = self.new("head", lambda: PrototypeHead(width, self.prototypes, self.hidden, self.bottleneck))
            if not self.compares:
                made.module.last_layer.requires_grad_(False)
            pairs["head"] = "teacher_head"
        if self.projects:
            sizes = width, self.bottleneck
            self.new("projector", lambda: nn.Sequential(nn.Linear(sizes[0], sizes[0]), nn.ReLU(), nn.Linear(*sizes)))
            pairs["projector"] = "teacher_projector"
        for role, average in pairs.items():
            self.new(average, like=role, decay=kept).batch_stats = self.teacher_statistics == "batch"
        self.learners = tuple(pairs)
        self.state = {"centre": torch.zeros(self.prototypes), "queue": torch.zeros(0, self.bottleneck)}
        self.next: dict[str, Any] = {}
        self.notes = list(self._warned())

    def _warned(self) -> Iterator[str]:
        """What is probably not meant."""
        if self.distils and self.teacher_temperature >= self.student_temperature:
            yield (
                f"method.teacher_temperature={self.teacher_temperature:g} is not below student_temperature="
                f"{self.student_temperature:g}: such a teacher leads to one answer for everything"
            )
        if self.distils and not self.centering:
            yield "method.centering is off: one prototype may become the answer to everything"

    def _width(self, points: int) -> int:
        """The encoder's own width; it is tried on views of every size.

        Raises:
            ConfigError: it takes no clouds of some size, or answers with no feature each.
        """
        module, cloud, width = self.roles["student"].module, self.task.example(2)["x"], 0
        at = {"global_points": 0, "local_points": 1} if self.views.local else {"global_points": 0}
        for i, n in enumerate(self.views.sizes(points)):
            name = next((k for k, place in at.items() if place == i), "resolutions")
            x = cloud[:, torch.arange(n) % points].to(next(module.parameters()).device)
            try:
                with torch.no_grad(), evaluating([module]):
                    out = self.task.feed(module, {"x": x})
            except (LimbeckError, RuntimeError, ValueError, IndexError) as error:
                text = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"method.views.{name}",
                    f"the student fails on clouds of {n} points: {text}",
                    given=getattr(self.views, name),
                    expected="views with as many points as the network asks for",
                    remedy=f"set method.views.{name}, or another student",
                ) from None
            width = out.shape[1]
        return width

    def stages(self) -> list[Stage]:
        """One, in which biases and norms do not decay (the recipe's ``train`` has the paper's decay and clipping)."""
        train, data = self.setup.train, self.task.train
        optim = {role: self._optim(train, self.roles[role].module) for role in self.learners}
        return [Stage("distil", steps=train.steps, data=data, batch_size=train.batch_size, optim=optim)]

    def _optim(self, train: Optim, module: nn.Module) -> Optim:
        named = module.named_parameters()
        flat: dict[str, Any] = {n: {"weight_decay": 0.0} for n, p in named if p.requires_grad and p.ndim < 2}
        return train.with_(groups={**flat, **train.groups})

    # --------------------------------------------------------------------------------------------------------- a step
    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
        """The teacher first: its centre and its embeddings are those of the whole batch, however that is cut."""
        crops = self.views.cut(batch["x"], batch["item"] + (batch["view"] << 40), ctx.draws)
        n = len(batch["item"])
        z_t, t = self.asked("teacher", [crops.large], batch, ctx)  # [2, n, D], [2, n, K]
        centre = self.state["centre"].to(ctx.device)
        if self.compares and self.centering:
            sums = yield Share(t=t.float().sum((0, 1)), n=torch.tensor(float(2 * n), device=ctx.device))
            assert sums is not None
            self.next["centre"] = moved_centre(centre, (sums["t"] / sums["n"]).unsqueeze(0), self.centre_momentum)
        keys: Any = None
        if self.weight and self.contrast_form == "infonce":
            keys = yield Gather(z=z_t.detach().float().transpose(0, 1))  # [N, 2, D] of the whole batch
        z_s, s = self.asked("student", [crops.large, *crops.others], batch, ctx)
        terms: dict[str, Term] = {}
        tau_t = ramp(
            ctx.epoch,
            self.teacher_warmup,
            start=self.teacher_temperature_start or self.teacher_temperature,
            end=self.teacher_temperature,
        )
        if self.distils:
            values = multicrop_cross_entropy(
                s, t, centre, student_temperature=self.student_temperature, teacher_temperature=tau_t
            )
            terms["distil"] = Term(values, to=("student", "head"))
        if keys is not None:
            queue = self.state["queue"].to(ctx.device)
            values = cross_view_contrast(
                z_s[:2],
                keys["z"].transpose(0, 1),
                queue if len(queue) else None,
                own=keys.numbers("z"),
                temperature=self.contrast_temperature,
            )
            terms["contrast"] = Term(
                values, to=("student", "projector" if self.projects else "head"), weight=self.weight
            )
            if self.queue:
                self.next["queue"] = queued(queue, keys["z"].transpose(0, 1).flatten(0, 1), self.queue)
        elif self.weight:
            rows = yield Gather(s=(s / self.student_temperature).transpose(0, 1))  # [N, V, K], with graph
            p = ((t - centre) / tau_t).softmax(-1)
            assert rows is not None
            values = self._named(rows, p)
            terms["contrast"] = Term(values, to=("student", "head"), weight=self.weight)
        entropy = {} if not self.compares else {"teacher_entropy": (_entropy(t, centre, tau_t).sum(), 2 * n)}
        yield Terms(entropy, **terms)

    def asked(self, who: str, groups: list[Tensor], batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """What teacher or student say of groups of views [V, n, P, 3]: embeddings [V, n, D], logits [V, n, K].

        Logits are empty where there is no head of prototypes.
        """
        add, found = ("teacher_", []) if who == "teacher" else ("", [])
        for group in groups:
            out = ctx.signal(who, {**batch, "x": group.flatten(0, 1)}).output
            found.append(out.unflatten(0, group.shape[:2]))
        y = torch.cat(found)
        z = logits = y.new_zeros(0)
        if self.heads:
            z = ctx.call(f"{add}head", y if self.compares else y[:2], by="embed")
        if self.compares:
            logits = ctx.call(f"{add}head", z, still=ctx.epoch < self.freeze, by="compare")
        if self.projects:
            z = ctx.call(f"{add}projector", y[:2])
        return z, logits

    def _named(self, rows: Gathered, p: Tensor) -> Tensor:
        """The n-pair contrast [n]: each large piece's distribution names the object among all logits to other pieces.

        Which other pieces, and the mean over both large ones, are [reconstructed]; so is a queue that holds both views.
        """
        s = rows["s"].transpose(0, 1)  # [V, N, K]
        views = torch.arange(len(s), device=s.device)
        both = [n_pair(s[views != q], p[q], own=rows.numbers("s"), scale=self.contrast_scale) for q in range(len(p))]
        return torch.stack(both).mean(0)

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """The centre and the queue move, once a step."""
        self.state.update(self.next)
        self.next = {}

    # --------------------------------------------------------------------------------------------------- what is left
    def artifact(self) -> Artifact:
        """The encoder, without its head."""
        return self.network(self.deliver)

    def rows(self) -> dict[str, Artifact]:
        """The other one."""
        other = "teacher" if self.deliver == "student" else "student"
        return {"average" if other == "teacher" else "learner": self.network(other)}

    def extras(self) -> dict[str, Any]:
        """``pictures``: some training clouds, and pieces of them as they are seen."""
        batch = self.task.example(4)
        crops: Crops = self.views.cut(batch["x"], batch["item"], Draws(self.setup.seed, ("pictures",)))
        columns = [batch["x"], *crops.large, *(group[i] for group in crops.others for i in range(min(3, len(group))))]
        caption = (
            "Training clouds, one a row, seen from the front, near points bright. First the whole cloud; then the two large "
            "pieces, which teacher and student see; then small ones, which the student alone sees."
        )
        pixels = [[sketch(column[i]) for column in columns] for i in range(len(batch["x"]))]
        return {"pictures": [{"title": "What is seen of a cloud", "caption": caption, "pixels": pixels}]}


def _entropy(t: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of the teacher's distributions [V, n]: near 0, or near log K for all, nothing is told apart."""
    log_p = ((t.float() - centre) / temperature).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
