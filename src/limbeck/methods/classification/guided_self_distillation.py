"""Guided self-distillation: a network learns from the labels and from its own previous fit, several times over.

    step 1:      L = D(f, y) + rho R(theta)
    step t > 1:  L = alpha_t D(f, y) + (1 - alpha_t) D(f, f_{t-1}) + rho R(theta),        f_t from fresh weights

alpha_t weighs the LABELS. For kernel ridge regression all steps have a closed form (`limbeck.SelfDistilledClassifier`):
without labels (alpha 0) each step amplifies the regularisation until nothing is left; with them it ends at the plain
regression of the penalty rho / alpha. The fit of step t is linear in alpha_t, u at 1 and v at 0, so the best weight is

    alpha_t* = < Y - v, u - v > / |u - v|^2,  clipped to [0, 1]        (Y, u, v on validation items)

For networks u is the first step's, v that of a network trained by alpha = 0: two trainings a step in place of a grid.

f: class probabilities (or outputs) [N, C];  y: labels, one-hot [N, C];  D: mean square over N and C;  theta: all parameters
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

import limbeck.functional as F
from limbeck.functional.kernel_ridge import optimal_weight
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Setup, Stage, Term, Terms
from limbeck.grammar.settings import Fraction, NonNegative, settings
from limbeck.objectives.queries import soft
from limbeck.parts.generations import Generations

CARD = Card(
    number=33,
    slug="guided-self-distillation",
    title="Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation",
    year=2021,
    venue="NeurIPS 2021",
    arxiv="2102.13088",
    repository="Kennethborup/self_distillation",
    licence="none stated",
    family="classification",
    methods={"guided-self-distillation": "GuidedSelfDistillation"},
    optimised="the weights of one network per step",
    signals=("class probabilities",),
    provenance={
        "loss, weights, fresh weights each step, the last epoch's network teaches": "code, checked against recorded vectors",
        "no weight on the labels in step 1": "code",
        "penalty": "the paper speaks of the squared norm; variant=released sums the norms of all parameter tensors, as the code does",
        "kernel theory, its limit": "paper and code, checked against recorded vectors (limbeck.SelfDistilledClassifier)",
        "alpha_t*": "reconstructed: the paper states a closed form; this one is derived, and checked on a grid",
        "alpha_t* for networks": "reconstructed from the paper's idea: one further training per step, with alpha 0",
        "limit": "reconstructed: the theory's limit, one fit with the penalty rho / alpha, applied to a network",
        "validation": "the released script takes the test items for it; here they are the validation items",
    },
    claim="On wrongly labelled items several steps with estimated weights lose nothing against the first fit, and nothing against "
    "distillation without labels.",
    recipe="guided-self-distillation",
    notes="alpha is the weight of the labels, not of the teacher. The weights are estimated on validation items, whose labels must "
    "be right. The student alone has as many steps as one of the trainings. The theory itself, for kernels, is "
    "limbeck.SelfDistilledClassifier and SelfDistilledRegressor.",
)


@settings
class GuidedSelfDistillation(Generations):
    """Repeated self-distillation with labels, each step's weight constant, given, estimated or searched.

    Args:
        steps: how many networks are trained one after another; 1 is the plain fit.
        weights: of the labels in steps 2 and later: ``estimated`` by the closed form, ``constant`` (``alpha``), ``given``
            (``alphas``), or the best of a ``grid`` on the validation items, by trying each.
        alpha: the constant weight.
        alphas: one weight for each of steps 2, 3, ...
        grid: the weights to try.
        compare: what is matched: ``probabilities`` (squared distance, as released), ``outputs`` of the last layer (squared
            distance to one-hot labels, as in the theory), or ``cross-entropy`` (and KL divergence from the previous network).
        rho: weight of the penalty on the parameters.
        variant: ``paper`` penalises the sum of squares, ``released`` the sum of the (unsquared) norms of all tensors.
        start: each step from ``fresh`` weights, or from those of the ``previous`` network.
        teach: which network teaches the next step: of the ``last`` epoch, or of the ``best`` epoch on the validation items.
        stop: train no further step once one is not better on the validation items than the best before it.
        deliver: the ``last`` step's network, or the ``best`` on the validation items.
        limit: one fit in place of all steps, with the penalty rho / alpha, to which they tend in the theory.
    """

    steps: Annotated[int, Ge(1)] = 3
    weights: Literal["estimated", "constant", "given", "grid"] = "estimated"
    alpha: Fraction = 0.6
    alphas: list[Fraction] | None = None
    grid: Annotated[list[Fraction], MinLen(1)] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]  # noqa: RUF012
    compare: Literal["probabilities", "outputs", "cross-entropy"] = "probabilities"
    rho: NonNegative = 1e-4
    variant: Literal["paper", "released"] = "paper"
    start: Literal["fresh", "previous"] = "fresh"
    teach: Literal["last", "best"] = "last"
    stop: bool = False
    deliver: Literal["last", "best"] = "last"
    limit: bool = False

    def validate(self) -> None:
        """Weights are there for each step, and the limit exists."""
        if (self.alphas is not None) != (self.weights == "given"):
            raise ValueError("alphas must be set together with weights=given, and only then")
        if self.alphas is not None and len(self.alphas) != self.steps - 1:
            raise ValueError(f"alphas must be {self.steps - 1} numbers, one for each of steps 2 to {self.steps}")
        if self.limit and (self.weights != "constant" or self.alpha == 0):
            raise ValueError(
                "limit needs weights=constant and alpha above 0: with alpha 0 nothing is left in the limit"
            )
        if len(set(self.grid)) != len(self.grid):
            raise ValueError("grid must hold each weight once")
        self.count = 1 if self.limit else self.steps

    def bind(self, setup: Setup) -> None:
        """One network a step; one for pure distillation or for the grid; one that keeps the best epoch."""
        super().bind(setup)
        self.grow(setup, self.count)
        later = self.count > 1
        for setting, wanted in (
            ("weights", later and self.weights in ("estimated", "grid")),
            ("teach", later and self.teach == "best"),
            ("stop", self.stop),
            ("deliver", self.deliver == "best"),
        ):
            if wanted:
                self.held_out(f"method.{setting}")
        if later and self.weights in ("estimated", "grid"):
            self.new("trial", like="student")
        if later and self.teach == "best":
            self.new("kept", like="student")
        self.state = {
            "alphas": {},
            "losses": [],
            "now": 0,
            "stopped": False,
            "least": float("inf"),
            "kept": float("inf"),
        }

    # ------------------------------------------------------------------------------------------------ stages
    def stages(self) -> list[Stage]:
        """Each step, before it the networks that its weight is estimated from."""
        found = [self._stage("step1", "student" if self.count == 1 else "step1", 0, 1.0)]
        for t in range(1, self.count):
            if self.weights == "estimated":
                found.append(self._stage(f"pure{t + 1}", "trial", t, 0.0))
            if self.weights == "grid":
                found += [self._stage(f"grid{t + 1}-{a:g}", "trial", t, a) for a in self.grid]
                continue
            found.append(self._stage(f"step{t + 1}", self.names[t], t, None))
        return found

    def _stage(self, name: str, role: str, t: int, alpha: float | None) -> Stage:
        """One training of step t (from 0). Those of one step begin alike and see the same batches."""
        train = self.setup.train
        return Stage(
            name,
            steps=(lambda ctx: 0 if self.state["stopped"] else train.steps) if self.stop and t else train.steps,
            data=self.task.train,
            batch_size=train.batch_size,
            optim={role: train},
            scope=f"step{t + 1}",
            begin=partial(self._begin, role, t),
            step=partial(self.learn, role, t, alpha),
            every={"epoch": partial(self._keep, role)} if self.teach == "best" and role != "trial" else {},
            finish=partial(self._finish, role, t, alpha),
        )

    def _begin(self, role: str, t: int, ctx: Context) -> None:
        """First weights; the teacher takes its place."""
        if self.state["stopped"]:
            return
        self.state["now"] = t
        if t:
            self.hand_over("previous", self.names[t - 1] if self.teach == "last" else "kept")
        if self.start == "fresh":
            self.afresh(role, t)
        elif t:
            self.hand_over(role, self.names[t - 1])
        if role != "trial":
            self.state["kept"] = float("inf")

    def _keep(self, role: str, ctx: Context) -> None:
        """Keep the network of this epoch if none of this step was better on the validation items."""
        loss = self.loss(role, ctx)
        if loss < self.state["kept"]:
            self.state["kept"] = loss
            if "kept" in self.roles:
                self.hand_over("kept", role)

    def _finish(self, role: str, t: int, alpha: float | None, ctx: Context) -> None:
        """What the training was for: a weight, a trial of the grid, or the step's network."""
        if self.state["stopped"]:
            return
        if role == "trial" and self.weights == "estimated":
            self._estimate(t, ctx)
            return
        if role == "trial":
            assert alpha is not None
            loss = self.loss(role, ctx)
            if alpha == self.grid[0] or loss < self.state["least"]:
                self.state["least"], self.state["alphas"][str(t + 1)] = loss, alpha
                self.hand_over(self.names[t], role)
            if alpha != self.grid[-1]:
                return
        if self.teach == "best":
            self._keep(self.names[t], ctx)
        if len(self.task.valid):
            loss = self.loss(self.names[t], ctx)
            self.state["stopped"] |= self.stop and t > 0 and loss >= min(self.state["losses"])
            self.state["losses"].append(loss)

    def _estimate(self, t: int, ctx: Context) -> None:
        """alpha_t* on the validation items; where both networks agree everywhere nothing more can be gained."""
        valid = self.task.valid
        u, y = self.answers("step1", valid, ctx)
        v, _ = self.answers("trial", valid, ctx)
        found = optimal_weight(soft(y, u.shape[1]).double(), self.values(u).double(), self.values(v).double())
        if found is None:
            self.state["stopped"] = self.stop
            found = self.state["alphas"].get(str(t), 1.0)
        self.state["alphas"][str(t + 1)] = found

    # ------------------------------------------------------------------------------------------------ a step
    def learn(self, role: str, t: int, alpha: float | None, batch: Batch, ctx: Context) -> Terms:
        """The labels' part, the previous network's part, and the penalty."""
        z = ctx.signal(role, batch).logits  # [N, C]
        terms = Terms()
        if t == 0:
            terms["labels"] = Term(self.distance(z, batch["y"]), role)
        else:
            weight = self.weight_of(t) if alpha is None else alpha
            if weight > 0:
                terms["labels"] = Term(self.distance(z, batch["y"]), role, weight=weight)
            if weight < 1:
                z_t = ctx.signal("previous", batch).logits
                terms["previous"] = Term(self.distance(z, z_t, labels=False), role, weight=1 - weight)
        if self.rho:
            rho = self.rho / self.alpha if self.limit else self.rho
            terms["penalty"] = Term(self.penalty(role), role, weight=rho, count=1)
        return terms

    def weight_of(self, t: int) -> float:
        """The weight of the labels in step t (from 0)."""
        if self.alphas is not None:
            return self.alphas[t - 1]
        if self.weights == "constant":
            return self.alpha
        return float(self.state["alphas"].get(str(t + 1), self.alpha))  # a step that is only timed has none yet

    def values(self, z: Tensor) -> Tensor:
        """f: the function values that the loss compares [N, C]."""
        return z if self.compare == "outputs" else z.softmax(-1)

    def distance(self, z: Tensor, target: Tensor, labels: bool = True) -> Tensor:
        """D per item [N]: to labels, or to another network's logits."""
        if self.compare == "cross-entropy":
            return F.cross_entropy(z, target) if labels else F.kl(z, target)
        wanted = soft(target, z.shape[1]).to(z.dtype) if labels else self.values(target)
        return F.squared_error(self.values(z), wanted) / z.shape[1]

    def penalty(self, role: str) -> Tensor:
        """R: the sum of squares of all parameters that learn, or of their tensors' norms."""
        params = self.roles[role].parameters().values()
        return torch.stack(
            [p.float().square().sum() if self.variant == "paper" else p.float().norm() for p in params]
        ).sum()

    # ------------------------------------------------------------------------------------------------ results
    def loss(self, role: str, ctx: Context) -> float:
        """The mean of D to the labels over the validation items."""
        z, y = self.answers(role, self.task.valid, ctx)
        return float(self.distance(z.double(), y).mean())

    @property
    def chosen(self) -> int:
        """Which step's network is delivered, from 0."""
        losses = self.state["losses"]
        return losses.index(min(losses)) if self.deliver == "best" and losses else int(self.state["now"])

    def artifact(self) -> Artifact:
        """The network of the last step that was trained, or of the best one."""
        return self.network(self.names[self.chosen])

    def rows(self) -> dict[str, Artifact]:
        """The networks of the other steps."""
        return self.steps_as_rows(int(self.state["now"]) + 1, self.names[self.chosen])

    def measures(self) -> dict[str, float]:
        """The weights, and each step's loss on the validation items."""
        return dict(self._measured())

    def _measured(self) -> Iterator[tuple[str, float]]:
        for t in range(1, self.count):
            if self.weights in ("constant", "given") or str(t + 1) in self.state["alphas"]:
                yield f"alpha{t + 1}", self.weight_of(t)
        for t, loss in enumerate(self.state["losses"], 1):
            yield f"valid_loss{t}", loss
