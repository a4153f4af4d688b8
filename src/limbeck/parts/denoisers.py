"""Denoisers as participants: asked in one way whatever they put out, guided or not; weights handed on; samplers delivered.

    z = a x + s eps at log-SNR lambda;  every output (eps, x, v, both) is read as the pair (x, eps)

x, eps, z: [N, C, H, W];  lambda, w: [N];  c: the condition of each item [N]
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Kind, Predict, Schedule, Weight, XEps
from limbeck.grammar.method import Batch, Context, Method
from limbeck.tasks.generation import Generation, fresh_ids
from limbeck.tasks.sampler import Reading, SamplerArtifact, Students, classifier_free, conditional, nothing, reading

GUIDANCE = r"^weight\.|guid|cond_proj"
"""Parameters that take the guidance weight (``weight.`` in the residual MLP)."""

EMBEDDINGS = GUIDANCE + r"|^(time|label)\.|time_emb|class_emb|timestep_embedder|class_embedder"
"""These, and every embedding beside them."""


@dataclass(frozen=True)
class Denoiser:
    """A role that predicts clean samples, and how it is asked.

    Attributes:
        role: its name; a view through an adapter, an average or a copy is asked like any other.
        said: what its output means, its null condition, and whether it takes w as an input.
        free: guide it classifier-free by the w it is given: both conditions in one call of twice the rows.
        clip: clamp the x that it predicts. In a training target it biases the target.
    """

    role: str
    said: Reading
    free: bool = False
    clip: bool = False

    @classmethod
    def of(
        cls,
        method: Method[Any],
        role: str,
        free: bool = False,
        clip: bool = False,
        plain: str = "method.w_max=0",
    ) -> Denoiser:
        """A method's role, once bound; ``plain`` is the setting that does without guidance, for messages.

        Raises:
            ConfigError: it does not say what its output means; it is to be guided and has no null condition, or is
                guided already. TeacherMismatch: a participant's classes are not the task's.
        """
        said = reading(method.roles[role].module, role)
        if free and said.guided:
            raise ConfigError(
                role,
                f"the {role} takes a guidance weight: it is a student of stage one already",
                expected="a conditional network with a null condition",
            )
        if free and not said.conditional:
            raise ConfigError(
                role,
                "it is unconditional, and guiding compares answers with and without a condition",
                expected=plain,
                remedy=f"distil without guidance: {plain}",
            )
        if free and said.null_condition is None:
            raise ConfigError(
                f"{role}.null_condition",
                "guided distillation needs the null condition index; pass null_condition",
                remedy=f"{role}.null_condition=INDEX, or distil without guidance ({plain})",
            )
        built, labels = method.setup.built.get(role), method.task.labels or []
        if built is not None and built.labels and list(built.labels) != list(labels):
            raise TeacherMismatch(role, "its classes are not the task's", given=built.labels)
        return cls(role, said, free, clip)

    @property
    def kind(self) -> Kind:
        """What its output means."""
        return self.said.mean_type

    def predict(self, ctx: Context, c: Tensor, w: Tensor | None = None, grad: bool | None = None) -> Predict:
        """The function (z, log-SNR) -> output, with condition and guidance weight closed over, for samplers and solvers."""
        call = partial(ctx.call, self.role, grad=grad)
        if self.free and w is not None:
            assert self.said.null_condition is not None
            return classifier_free(call, c, self.said.null_condition, w)
        return conditional(call, c, self._input(c, w))

    def read(
        self, ctx: Context, z: Tensor, logsnr: Tensor, c: Tensor, w: Tensor | None = None, grad: bool | None = None
    ) -> XEps:
        """What it predicts of z: (x, eps), [N, C, H, W] each. A role that learns builds a graph, others do not."""
        lam = logsnr.to(z.dtype)
        if self.free and w is not None:
            assert self.said.null_condition is not None
            c = torch.cat([c, nothing(c, self.said.null_condition)])
            both = ctx.call(self.role, torch.cat([z, z]), torch.cat([lam, lam]), c, grad=grad)
            cond, uncond = both.chunk(2)
            return diffusion.guided_x(cond, uncond, z, logsnr, self.kind, w=w, clip_x=self.clip)
        more = self._input(c, w)
        out = ctx.call(self.role, z, lam, c, *(() if more is None else (more,)), grad=grad)
        return diffusion.to_x_eps(out, z, logsnr, self.kind, clip_x=self.clip)

    def errors(
        self,
        ctx: Context,
        z: Tensor,
        logsnr: Tensor,
        c: Tensor,
        target: XEps,
        weight: Weight = "constant",
        w: Tensor | None = None,
    ) -> Tensor:
        """Squared error of its prediction, one value an item [N]; ``weight`` says of what (`diffusion.select_error`).

        A denoising loss has the clean sample and its noise as ``target``: how a score follows what a generator makes.
        """
        found = diffusion.prediction_errors(self.read(ctx, z, logsnr, c, w), target, logsnr)
        return diffusion.select_error(found, weight)

    def two_steps(
        self,
        ctx: Context,
        q: Asked,
        times: tuple[Tensor, Tensor, Tensor],
        schedule: Schedule,
        one: Tensor | None = None,
    ) -> tuple[Tensor, XEps, Tensor]:
        """What must be predicted at u to arrive in one DDIM step where this one arrives in two.

        Args:
            ctx: of the step.
            q: what is asked.
            times: (u, u_mid, u_s) [N] each, from `diffusion.halving_times` or `diffusion.stochastic_times`.
            schedule: of noise.
            one: rows [N] whose target is its first step alone.

        Returns:
            (z at u, the target there, log-SNR [N]), without a graph.
        """
        z, _ = q.noised(ctx, schedule.logsnr(times[0]))
        predict = self.predict(ctx, q.c, q.w, grad=False)
        found = diffusion.two_step_target(predict, z, times, schedule, self.kind, clip_x=self.clip)
        target = XEps(found.x, found.eps)
        if one is not None:
            # what the first call said is where the first jump came from
            first = diffusion.invert_jump(z, found.z_mid, found.logsnr, found.logsnr_mid)
            rows = one.view(-1, *([1] * (z.ndim - 1)))
            target = XEps(*(torch.where(rows, a, b) for a, b in zip(first, target, strict=True)))
        return z, target, found.logsnr

    def takes(self, w_range: tuple[float, float]) -> None:
        """Refuse a student of several guidance weights that is not told which.

        Raises:
            ConfigError: it has no input for the weight.
        """
        if w_range[1] > w_range[0] and not self.said.guided:
            way = f"{self.role}.guided is false; of diffusers' networks time_cond_proj_dim is None"
            raise ConfigError(
                self.role,
                f"{self.role} has no guidance input ({way})",
                remedy=f"{self.role}.guided=true (diffusers: {self.role}.guidance=auto), or one weight: "
                "method.w_min=method.w_max",
            )

    def starts_from_noise(self, schedule: Schedule, steps: int) -> None:
        """Refuse, or warn of, a student whose output says nothing about x where sampling begins.

        Raises:
            ConfigError: it puts out eps and is to sample in one or two steps.
        """
        if self.kind != "eps":
            return
        if steps <= 2:
            raise ConfigError(
                f"{self.role}.mean_type",
                f"from pure noise eps says nothing about x, so it cannot be distilled to end_steps={steps}",
                given="eps",
                expected="v or x (stage one teaches an eps teacher's weights the new output)",
                remedy=f"{self.role}.mean_type=v, or method.end_steps=4",
            )
        alpha = float(schedule.alpha(1.0))
        if alpha < 1e-3:
            told = (
                f"{self.role}.mean_type: at u = 1 alpha is {alpha:.1e}, so x from eps is undetermined there; use v or x"
            )
            warnings.warn(told, UserWarning, stacklevel=2)

    def _input(self, c: Tensor, w: Tensor | None) -> Tensor | None:
        if not self.said.guided:
            return None
        return torch.zeros(len(c), device=c.device) if w is None else w


@dataclass(frozen=True)
class Asked:
    """What denoisers are asked about a batch: x in [-1, 1] [N, C, H, W], class c [N], guidance weight w [N], ids [N].

    Every draw is keyed by the ids, which are new in every epoch.
    """

    x: Tensor
    c: Tensor
    w: Tensor
    ids: Tensor

    @classmethod
    def of(cls, task: Generation, batch: Batch, ctx: Context, w_range: tuple[float, float] = (0.0, 0.0)) -> Asked:
        """A batch of images, and guidance weights drawn uniformly."""
        ids = fresh_ids(batch)
        low, high = w_range
        return cls(task.signed(batch["x"]), batch["y"], ctx.draws.rand("w", ids, low=low, high=high), ids)

    def noised(self, ctx: Context, logsnr: Tensor, stream: str = "eps") -> tuple[Tensor, Tensor]:
        """(z, eps): x carried to a noise level."""
        eps = ctx.draws.randn(stream, self.ids, self.x.shape[1:])
        return diffusion.diffuse(self.x, eps, logsnr), eps


# ------------------------------------------------------------------------------------------------------------- weights


def inherit(teacher: nn.Module, student: nn.Module, dry: bool = False) -> None:
    """The teacher's weights into the student; what takes the guidance weight is the student's own and keeps its values.

    Args:
        teacher, student: denoisers of one architecture.
        dry: only check.

    Raises:
        TeacherMismatch: anything else differs; every such name is given, and nothing is changed.
    """
    theirs, mine = teacher.state_dict(), student.state_dict()
    new = [n for n in mine if n not in theirs]
    wrong = {
        "missing": [n for n in new if not re.search(GUIDANCE, n)],
        "unexpected": [n for n in theirs if n not in mine],
        "of other shapes": [n for n in mine if n in theirs and theirs[n].shape != mine[n].shape],
    }
    if any(wrong.values()):
        said = [f"{len(v)} {what} ({', '.join(v[:4])})" for what, v in wrong.items() if v]
        raise TeacherMismatch(
            "student",
            f"the teacher's weights do not fit it: {'; '.join(said)}",
            expected="the teacher's architecture with an input for the guidance weight",
            remedy="give the student the teacher's settings, or set method.init=random",
        )
    if not dry:
        student.load_state_dict(theirs, strict=False)


def check_adapters(module: nn.Module, role: str) -> None:
    """Refuse a network that carries adapters already: what is added beside them would be mixed up with them.

    Raises:
        ConfigError: which library's they are, and how they go into the weights.
    """
    found = [n for n, m in module.named_modules() if hasattr(m, "lora_A") or getattr(m, "peft_config", None)]
    if found:
        raise ConfigError(
            role,
            f"adapters are loaded in it already ({', '.join(found[:3])})",
            expected="plain weights",
            remedy="merge them first: pipeline.fuse_lora(), unload_lora_weights(), save_pretrained(...)",
        )


def parameters_named(which: str) -> re.Pattern[str]:
    """Which parameters learn: ``all``, ``embeddings`` (of time, class and guidance), or a regular expression.

    Raises:
        ValueError: it is none; the sentence begins with ``train_only``.
    """
    try:
        return re.compile({"all": "", "embeddings": EMBEDDINGS}.get(which, which))
    except re.error as error:
        raise ValueError(f"train_only must be all, embeddings or a regular expression: {error}") from None


def train_only(student: nn.Module, which: str) -> None:
    """Freeze every other parameter.

    Raises:
        ConfigError: there is no such parameter.
    """
    wanted = parameters_named(which)
    chosen = [n for n, _ in student.named_parameters() if wanted.search(n)]
    if not chosen:
        raise ConfigError("method.train_only", "no parameter of the student has such a name", given=which)
    for name, p in student.named_parameters():
        p.requires_grad_(name in chosen)


# -------------------------------------------------------------------------------------------------------- rounds, result


def halvings(start_name: str, start: int, end_name: str, end: int) -> list[int]:
    """The numbers of steps of rounds of halving, without the first teacher's; empty where there is nothing to halve.

    Raises:
        ValueError: halving does not lead from one to the other; both settings are named.
    """
    if end < 1 or start < end:
        raise ValueError(f"{end_name} ({end}) must lie between 1 and {start_name} ({start})")
    if start == end:
        return []
    try:
        return diffusion.halving_rounds(start, end)
    except ConfigError:
        raise ValueError(
            f"{start_name} must be {end_name} ({end}) times a power of two, which {start} is not"
        ) from None


def sampler(
    method: Method[Generation],
    steps: Mapping[int, str],
    stochastic: Mapping[int, str] | None = None,
    encoders: Mapping[int, str] | None = None,
    w_range: tuple[float, float] = (0.0, 0.0),
    many: int | None = None,
) -> SamplerArtifact:
    """The result of a method whose students make samples.

    Args:
        method: bound.
        steps: the role that samples in each number of steps.
        stochastic, encoders: the same for the stochastic sampler and from data to noise.
        w_range: the guidance weights that they learnt.
        many: see `Students`.
    """
    made, random, back = (
        {n: method.roles[r].module for n, r in (roles or {}).items()} for roles in (steps, stochastic, encoders)
    )
    task, built = method.task, method.setup.student
    first = made[min(made)]
    if first is not built.module:  # an average, or a student of its own
        built = replace(built, module=first)
    students = Students(made, random, back, many)
    return SamplerArtifact(
        task, built, students, task.schedule, w_range, task.shape, task.labels, task.clip, task.bounded
    )


__all__ = ["Asked", "Denoiser", "check_adapters", "halvings", "inherit", "parameters_named", "sampler", "train_only"]
