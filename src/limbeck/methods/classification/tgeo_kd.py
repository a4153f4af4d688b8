"""TGeo-KD: how much of each item is learnt from the teacher, and how much from its label, is told by a small network.

    student     L(theta, alpha) = mean_n [ alpha_n tau^2 KL(q_n || p_n) + (1 - alpha_n) CE_n ],    alpha constant
    ratio       alpha_n = f_w(S, T, G, O, (O-S)^2, (G-S)^2, (T-S)^2, (T-G)^2, (O-G)^2)             S constant
    controller  min_w CE of theta' on held-out items,    theta' = theta - eta grad_theta L(theta, alpha_w)

S, T: probabilities of student and teacher [C];  G: the label, one-hot;  O: mean of T over the training items of the class
f_w: 9C -> 32 -> 16 -> 1, sigmoid;  theta': one step of gradient descent on the batch, with its graph

The released script computes alpha without a gradient, and its held-out loss does not depend on the controller: there the
controller never learns, and the cross-entropy is taken of probabilities (``variant=released``). An older script learns the
ratio on the training loss (``unroll=0``); that it multiplies [N, 1] by [N], so that no item has a ratio of its own, is left
out. The held-out update is the paper's; its one step with a graph is [reconstructed] from a third party's.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import limbeck.functional as F
from limbeck.data.items import divide
from limbeck.errors import ConfigError, DataError
from limbeck.functional.feature import class_means
from limbeck.functional.matching import flat_parameters, unflatten
from limbeck.functional.trilateral import Edges, adaptive_weight, fused, trilateral_state, wls_weight
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Gather, Method, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.settings import Count, Fraction, Natural, Positive, Share, settings
from limbeck.grammar.signal import Signal, evaluating
from limbeck.grammar.task import Task
from limbeck.objectives.queries import Cutmix, Mixup
from limbeck.tasks.classification import Labelled, one_label

CARD = Card(
    number=44,
    slug="tgeo-kd",
    title="Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation",
    year=2024,
    venue="ICLR",
    arxiv="2312.15112",
    repository="Chengming0501/TGeo-KD",
    licence="none stated",
    family="classification",
    methods={"tgeo-kd": "TgeoKd"},
    optimised="the student's weights, and a controller of the ratio on held-out items",
    signals=("logits",),
    provenance={
        "state, controller, fused loss, ratio of WLS": "code, checked against recorded vectors",
        "learning the controller on held-out items": "paper; the released code does not do it (variant=released)",
        "one step with its graph": "reconstructed, after a third party's",
        "linear annealing, ADA, a ratio of its own for each item": "the paper's baselines; how the last one learns is reconstructed",
        "gradients of the whole batch": "ours: gathered over micro-batches and processes",
    },
    claim="TGeo-KD's student is more accurate than one distilled with the same ratio for all items, where the teacher is weak; and "
    "items that the teacher gets wrong have a lower ratio than the others.",
    recipe="tgeo-kd",
    at_equality={"kd": "value", "outer": "it is the held-out items' loss"},
    baseline={"tgeo-kd": ("method.ratio=fixed", "method.alpha=0")},
    notes="Wide and deep networks with an embedding a column (the paper's for clicks) are not here: a perceptron takes columns "
    "one-hot.",
)

HELD = 512 * 2**20
"""Bytes of held-out items that are kept on the device; of more, those that are drawn are read in each step."""


class Controller(nn.Module):
    """The ratio [N] of states [N, D]: a perceptron with a sigmoid."""

    def __init__(self, width: int, hidden: list[int], activation: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), nn.LeakyReLU(0.01) if activation == "leaky-relu" else nn.ReLU()]
            width = units
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, state: Tensor) -> Tensor:
        """Ratios [N] in (0, 1)."""
        return self.net(state)[:, 0].sigmoid()


class Ratios(nn.Module):
    """A ratio of its own for each training item, first 1/2."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(items))

    def forward(self, items: Tensor) -> Tensor:
        """Ratios [N] of items int64 [N]."""
        return self.raw[items].sigmoid()


@settings
class TgeoKd(Method[Labelled]):
    """A ratio between teacher and label for each item, learnt on held-out items.

    Args:
        ratio: ``learned`` by the controller; ``free`` (RW: a number of its own for each training item, learnt likewise);
            ``fixed`` (``alpha`` for all); ``anneal`` (ANL: from 1 in the first epoch in a line to 0 in the last); ``ada`` (how
            far the teacher's true class stands above the mean of the others); ``wls`` (1 - exp(-CE_student / CE_teacher)).
        alpha: of ``fixed``.
        temperature: of the divergence, which is multiplied by its square.
        edges: what the controller sees: ``all``; with ``angles``; ``intra``, without the class mean; ``vertices`` alone;
            ``edges`` alone.
        state_temperature: of the probabilities that it sees.
        hidden: widths of its layers.
        activation: between them.
        unroll: steps of the student that its update looks through: 1; more, on the same batch; or 0: the controller
            learns on the training loss with the student.
        eta: rate of these steps; ``null`` takes the student's own.
        every: the controller learns in every so-manieth step.
        held_out: share of the training items that is set aside for the controller; 0 takes the task's validation items.
        variant: ``paper``; or ``released``: the controller never learns, and cross-entropy is taken of probabilities.
    """

    ratio: Literal["learned", "free", "fixed", "anneal", "ada", "wls"] = "learned"
    alpha: Fraction = 0.5
    temperature: Positive = 1.5
    edges: Edges = "all"
    state_temperature: Positive = 1.0
    hidden: list[Count] = [32, 16]  # noqa: RUF012 (copied, never changed)
    activation: Literal["leaky-relu", "relu"] = "leaky-relu"
    unroll: Natural = 1
    eta: Positive | None = None
    every: Count = 1
    held_out: Share = 0.0
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """Settings that would change nothing are refused."""
        if self.variant == "released" and self.ratio != "learned":
            raise ValueError("variant=released has a controller: leave ratio at learned")
        if not self.hidden:
            raise ValueError("hidden must name a width at least")
        self.controlled = self.ratio in ("learned", "free")
        self.learns = self.controlled and self.variant == "paper"
        if self.learns:
            self.learners = ("student", "controller")
        if self.held_out and not (self.learns and self.unroll):
            raise ValueError("held_out sets items aside for a controller, and here none learns on them: leave it out")

    def accept(self, task: Task) -> None:
        """Items have one class each; held-out items are not the test items."""
        if not isinstance(task, Labelled):
            raise ConfigError(
                "task",
                f"the method is for items with labels, and the task is a {type(task).__name__}",
                expected="task=classification, or another one with classes, such as text-classes, table, clouds or graphs",
            )
        one_label(self, task)
        assert isinstance(task, Labelled)
        if not (self.learns and self.unroll) or self.held_out:
            return
        if not len(task.valid):
            raise DataError("task.data", "no validation items", expected="some", remedy="set method.held_out=0.1")
        if task.valid is task.test or task.valid.fingerprint == task.test.fingerprint:
            raise DataError(
                "task.data",
                "the validation items are the test items, and the controller would learn on them",
                expected="validation items of their own",
                remedy="set method.held_out=0.1 to set training items aside",
            )

    # ------------------------------------------------------------------------------------------------ networks
    def bind(self, setup: Setup) -> None:
        """Take the networks; divide the training items; make the controller, or a ratio for each item."""
        super().bind(setup)
        mixing = [name for name, query in setup.queries.items() if isinstance(query, (Mixup, Cutmix))]
        if mixing:
            raise _mixed(f"queries.{mixing[0]}")
        task, c = self.task, self.task.outputs
        self.data, self.valid = task.train, task.valid
        if self.held_out:
            self.data, self.valid = divide(task.train, self.held_out, "tgeo-kd", setup.seed)
            if not len(self.valid):
                raise DataError("method.held_out", given=self.held_out, expected="a share with an item at least")
        self.state = {"means": torch.full((c, c), 1 / c), "alpha": 0.0, "right": 0.0, "wrong": 0.0}
        self._valid: Batch | None = None
        parts = {"all": 9, "angles": 11, "intra": 6, "vertices": 4, "edges": 5}[self.edges]
        if self.ratio == "learned":
            self.new("controller", lambda: Controller(parts * c, list(self.hidden), self.activation))
        elif self.ratio == "free":
            self.new("controller", lambda: Ratios(len(self.data)))
        if self.learns and self.unroll:
            role = self.roles["student"]
            if role.shard or not isinstance(role.module, nn.Module):
                raise ConfigError(
                    "method.unroll",
                    "a student that is split over processes cannot be stepped with its graph",
                    remedy="set method.unroll=0, or do not shard it",
                )
        self.eta_used = self.eta if self.eta is not None else setup.train.lr

    def stages(self) -> list[Stage]:
        """One, in which the controller learns beside the student, by an optimiser of its own."""
        train = self.setup.train
        optim = {"student": train}
        if self.learns:
            optim["controller"] = Optim(lr=1e-2, optimizer="adam", schedule="constant")
        return [Stage("distil", steps=train.steps, data=self.data, batch_size=train.batch_size, optim=optim)]

    def begin(self, ctx: Context) -> None:
        """Mean of the teacher's probabilities over the training items of each class; uniform where a class has none."""
        if self.ratio != "learned":
            return
        c = self.task.outputs
        total = torch.zeros(c, c, dtype=torch.float64, device=ctx.device)
        count = total.new_zeros(c)
        for batch in ctx.over(self.data):
            p = (ctx.signal("teacher", batch).logits.double() / self.state_temperature).softmax(1)
            mean, n = class_means(p, batch["y"], c)
            total += mean * n[:, None]
            count += n
        means = torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), torch.full_like(total, 1 / c))
        self.state["means"] = means.float().cpu()

    # ------------------------------------------------------------------------------------------------ ratios
    def ratios(self, z_s: Tensor, z_t: Tensor, batch: Batch, ctx: Context, grad: bool = False) -> Tensor:
        """The teacher's share of each item [N]; no gradient goes to the student.

        Args:
            z_s, z_t: logits [N, C].
            batch: with labels and item numbers.
            ctx: of the step.
            grad: whether it is a function of the controller.
        """
        y, z_s = batch["y"], z_s.detach()
        if self.ratio == "free":
            return ctx.call("controller", batch["item"], grad=grad)
        if self.ratio == "learned":
            means = self._means(ctx)
            s, t = ((z / self.state_temperature).softmax(1) for z in (z_s, z_t))
            g = nn.functional.one_hot(y, z_s.shape[1]).to(s)
            return ctx.call("controller", trilateral_state(s, t, g, means[y], self.edges), grad=grad)
        if self.ratio == "ada":
            return adaptive_weight(z_t.softmax(1), y)
        if self.ratio == "wls":
            return wls_weight(z_s, z_t, y)
        alpha = self.alpha
        if self.ratio == "anneal":
            last = ctx.at(max(0, ctx.total - 1)).epoch
            alpha = (last - ctx.epoch) / last if last else 1.0
        return torch.full_like(z_s[:, 0], alpha)

    def _means(self, ctx: Context) -> Tensor:
        """The class means on the device."""
        means: Tensor = self.state["means"]
        if means.device != ctx.device:
            self.state["means"] = means = means.to(ctx.device)
        return means

    def _labelled(self, z: Tensor, batch: Batch) -> Term:
        """The labels' loss of logits; in the released code of probabilities, so that the softmax is taken twice."""
        if self.variant == "released":
            return Term(F.cross_entropy(z.softmax(1), batch["y"]))
        return self.task.supervised(Signal(z), batch)

    # ------------------------------------------------------------------------------------------------ steps
    def step(self, batch: Batch, ctx: Context) -> Generator[Terms | Gather, Any, None]:
        """The controller, by held-out items after a step of the student; then the student, by the ratio as it is now."""
        if batch["y"].is_floating_point():
            raise _mixed("queries")
        if self.ratio == "fixed" and not self.alpha:
            yield Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))
            return
        z_t = ctx.signal("teacher", batch).logits
        if self.learns and self.unroll and ctx.step % self.every == 0:
            values = yield from self.ahead(z_t, batch, ctx)
            yield Terms({}, outer=Term(values, to="controller"))
        z_s = ctx.signal("student", batch).logits
        joint = self.learns and not self.unroll
        alpha = self.ratios(z_s, z_t, batch, ctx, grad=joint)
        kd = self.temperature**2 * F.kl(z_s, z_t, temperature=self.temperature, scale_t2=False)
        ce = self._labelled(z_s, batch)
        to = ("student", "controller") if joint else ("student",)
        shown, right = alpha.detach(), z_t.argmax(1) == batch["y"]
        yield Terms(
            {
                "alpha": (shown.sum(), float(len(shown))),
                "alpha_right": ((shown * right).sum(), right.sum()),
                "alpha_wrong": ((shown * ~right).sum(), (~right).sum()),
            },
            ce=Term((1 - alpha) * ce.values, to=to),
            kd=Term(alpha * kd, to=to),
        )

    def ahead(self, z_t: Tensor, batch: Batch, ctx: Context) -> Generator[Gather, Any, Tensor]:
        """Loss [n] of held-out items after steps of the student on the whole batch, a function of the controller.

        The student itself is not changed: its weights are a vector here, its buffers (running statistics) copies.
        """
        role: Any = self.roles["student"]
        net = role.module
        if self.unroll > 1 and len(batch["item"]) != ctx.batch_size:
            raise ConfigError(
                "method.unroll",
                "several steps need the whole batch in one piece",
                given=self.unroll,
                expected="1 where a batch is cut",
                remedy="set engine.accumulate=1 and one process, or method.unroll=1",
            )
        start = flat_parameters(net)
        moved = torch.cat([torch.full_like(p, float(p.requires_grad)).flatten() for p in net.parameters()])
        buffers = {n: b.detach().clone() for n, b in net.named_buffers()}

        def answer(theta: Tensor, asked: Batch) -> Tensor:
            def run(*args: Any, **kwargs: Any) -> Any:
                return torch.func.functional_call(net, {**unflatten(theta, net), **buffers}, args, kwargs)

            out = (role.feed or self.task.feed)(run, role.contract.feed(asked))
            return role.contract.outputs(out).float()

        theta = start.requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            for _ in range(self.unroll):
                z = answer(theta, batch)
                alpha = self.ratios(z, z_t, batch, ctx, grad=True)
                kd = self.temperature**2 * F.kl(z, z_t, temperature=self.temperature, scale_t2=False)
                inner = fused(kd, self._labelled(z, batch).values, alpha).sum()
                (slope,) = torch.autograd.grad(inner, theta, create_graph=True)
                rows = yield Gather(slope=slope[None])  # of every micro-batch, with graph
                theta = theta - self.eta_used / ctx.batch_size * moved * rows["slope"].sum(0)
            others = self.drawn(batch["item"], ctx)
            with evaluating([net]):
                return self.task.supervised(Signal(answer(theta, others)), others).values

    def drawn(self, items: Tensor, ctx: Context) -> Batch:
        """As many held-out items as a batch has, drawn for each of its items."""
        pick = ctx.draws.randint("held-out", items, len(self.valid))
        if self._valid is None:
            one = self.valid.fetch(torch.zeros(1, dtype=torch.int64))
            size = sum(v.numel() * v.element_size() for v in one.values() if isinstance(v, Tensor))
            if size * len(self.valid) > HELD:
                return next(iter(ctx.over(self.valid, len(pick), pick)))
            parts = list(ctx.over(self.valid))
            self._valid = {k: torch.cat([p[k] for p in parts]) for k, v in parts[0].items() if isinstance(v, Tensor)}
        return {k: v[pick.to(v.device)] for k, v in self._valid.items()}

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Moving averages of the ratio: of all items, and of those that the teacher gets right or wrong."""
        for name, key in (("alpha", "alpha"), ("right", "alpha_right"), ("wrong", "alpha_wrong")):
            if key in seen and (seen[key] or name == "alpha"):  # no such item in this batch
                before = self.state[name]
                self.state[name] = seen[key] if not before else 0.95 * before + 0.05 * seen[key]

    def measures(self) -> dict[str, float]:
        """The ratio of late, and what it is where the teacher is right and where it is wrong."""
        names = {"alpha": "alpha", "right": "alpha_teacher_right", "wrong": "alpha_teacher_wrong"}
        return {label: float(self.state[name]) for name, label in names.items() if self.state[name]}


def _mixed(argument: str) -> ConfigError:
    """Labels of several classes have no ratio."""
    return ConfigError(
        argument,
        "the ratio is told by one class an item, and these labels are mixed",
        expected="class numbers",
        remedy="leave mixup and its like out",
    )
