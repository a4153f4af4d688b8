"""Distillation of guided diffusion: one network for every guidance weight, then half the steps, again and again.

Stage one, ``guide``: the student takes w as an input and learns the guided teacher, two network calls, in one:

    x^w(z) = (1 + w) x_c(z) - w x_u(z)          L = max(SNR, 1) |x_student(z, w) - x^w(z)|^2,   w ~ U[w_min, w_max]

Stage two, ``halveN``: the student of before takes two DDIM steps (2N in all), the student learns to arrive there in one:

    z -> z_m -> z_s     x_target = (z_s - (s_s/s_u) z) / (a_s - (s_s/s_u) a_u)     L = max(|dx|^2, |deps|^2) per sample

x: clean sample in [-1, 1];  z = a x + s eps at time u, all [N, C, H, W];  w, u, logsnr: [N];  c: class [N]
N: the student's number of steps;  u = (i + 1)/N for i ~ U{0..N-1};  z_m half a step below u, z_s a whole one
"""

from __future__ import annotations

import copy
import re
import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Predict, Weight, XEps
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Role
from limbeck.grammar.task import Task
from limbeck.tasks.generation import Generation, fresh_ids
from limbeck.tasks.sampler import SamplerArtifact, Students, classifier_free, conditional, reading

CARD = Card(
    number=57,
    slug="guided-diffusion",
    title="On Distillation of Guided Diffusion Models",
    year=2023,
    venue="CVPR 2023",
    arxiv="2210.03142",
    repository="google-research/google-research/diffusion_distillation (the unguided second stage)",
    licence="Apache-2.0",
    family="diffusion",
    methods={"guided-diffusion": "GuidedDiffusion"},
    optimised="network weights",
    signals=("denoised prediction",),
    provenance={
        "stage one": "paper; no code was published",
        "stage two": "code of progressive distillation, checked against recorded vectors, with w added",
        "loss and its truncation": "code: the larger of two errors per sample, before the mean",
        "stochastic sampler": "paper; its training at the edge u = 1/N is reconstructed (the plain target of the N-step student)",
        "encoder": "paper; the start at u = 0 is reconstructed",
        "guidance input": "diffusers' embedding, scale - 1 times 1000",
    },
    claim="In 1, 2 and 4 steps, with half the network calls a guided step, the student ends nearer to the many-step guided teacher "
    "than DDIM with guidance does: at most half its squared error, for each guidance weight, with one network for all.",
    recipe="guided-diffusion",
    exceptions={"at_equality": "the student takes a guidance weight that the teacher does not"},
    notes="w is 0 for plain conditional; the libraries' scale is 1 + w (convention=s). Clipping x changes the target and the "
    "guided teacher, so nothing is clipped while training.",
)

# what takes the guidance weight (``weight.`` in the residual MLP), and every embedding beside it
GUIDANCE = r"^weight\.|guid|cond_proj"
EMBEDDINGS = GUIDANCE + r"|^(time|label)\.|time_emb|class_emb|timestep_embedder|class_embedder"


class Guide(NamedTuple):
    """Whom a round learns from: a role that takes w (or needs none), or the teacher under classifier-free guidance."""

    role: str
    twice: bool


class GuidedDiffusion(Method):
    """Both stages of guided distillation.

    Args:
        w_min, w_max: the guidance weights the student learns; equal for a student of one weight.
        convention: how they are meant: ``w`` (0 is plain conditional) or ``s`` (the libraries' scale, 1 + w).
        guide: run stage one; off distils guidance and steps at once, from two teacher calls a step.
        times: of stage one: ``continuous`` in [0, 1], or ``discrete``: i/start_steps for a teacher of so many steps.
        start_steps: steps of the teacher of the first halving.
        end_steps: steps of the last student; ``start_steps`` is this times a power of two, or equal (no halving).
        round_steps: updates of each halving; ``null`` takes ``train.steps``.
        last_round_steps: updates of the halvings to 4 steps and fewer; ``null`` takes ``round_steps``.
        weight: which error counts in stage two: ``constant`` (of x), ``snr`` (of eps), ``snr_trunc`` (the larger of the
            two), ``v_mse``.
        guide_weight: the same in stage one; ``null`` takes ``weight``.
        init: where the student begins: the conditional ``teacher``'s weights, or ``random``.
        train_only: ``all`` weights, the ``embeddings`` of time, class and guidance, or a regular expression over
            parameter names.
        stochastic: numbers of steps to distil for the stochastic sampler, in rounds of their own.
        encoder_steps: steps of an encoder from data to noise, distilled in halvings of its own; 0 for none.
        keep: numbers of steps whose students are kept; ``null`` keeps those of 8 steps and fewer, and the first.
        clip: clamp the teacher's x in the targets. The published code does not; it biases them.
    """

    def __init__(
        self,
        w_min: float = 0.0,
        w_max: float = 4.0,
        convention: Literal["w", "s"] = "w",
        guide: bool = True,
        times: Literal["continuous", "discrete"] = "continuous",
        start_steps: int = 16,
        end_steps: int = 1,
        round_steps: int | None = None,
        last_round_steps: int | None = None,
        weight: Weight = "snr_trunc",
        guide_weight: Weight | None = None,
        init: Literal["teacher", "random"] = "teacher",
        train_only: str = "all",
        stochastic: list[int] | None = None,
        encoder_steps: int = 0,
        keep: list[int] | None = None,
        clip: bool = False,
    ) -> None:
        shift = 1.0 if convention == "s" else 0.0
        low, high = w_min - shift, w_max - shift
        if not 0 <= low <= high:
            least = "1 (the scale)" if convention == "s" else "0"
            raise ValueError(f"w_min must be at least {least} and at most w_max, got {w_min} to {w_max}")
        self.w_min, self.w_max = low, high
        self.guide, self.times = guide, times
        self.start_steps, self.end_steps = start_steps, end_steps
        self.rounds = _halvings("start_steps", start_steps, "end_steps", end_steps)
        if not guide and not self.rounds:
            raise ValueError("nothing to do: guide is off and start_steps equals end_steps")
        for name, value in (("round_steps", round_steps), ("last_round_steps", last_round_steps)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must be 0 or more")
        self.round_steps, self.last_round_steps = round_steps, last_round_steps
        self.weight: Weight = weight
        self.guide_weight: Weight = guide_weight or weight
        self.init, self.train_only = init, train_only
        try:
            self._trains = re.compile({"all": "", "embeddings": EMBEDDINGS}.get(train_only, train_only))
        except re.error as error:
            raise ValueError(f"train_only must be all, embeddings or a regular expression: {error}") from None
        made = ([start_steps] if guide else []) + self.rounds
        self.stochastic = sorted(set(stochastic or []), reverse=True)
        wrong = [n for n in self.stochastic if n not in made or n < 2]
        if wrong:
            raise ValueError(
                f"stochastic holds {wrong}; there are students of {[n for n in made if n > 1]} steps to learn from"
            )
        if encoder_steps < 0:
            raise ValueError("encoder_steps must be 0 or more")
        self.encoder_rounds = (
            _halvings("start_steps", start_steps, "encoder_steps", encoder_steps) if encoder_steps else []
        )
        if encoder_steps and not self.encoder_rounds:
            raise ValueError("encoder_steps must be below start_steps")
        if keep is not None and any(n not in made for n in keep):
            raise ValueError(f"keep holds {[n for n in keep if n not in made]}; there are students of {made} steps")
        wanted = set(keep) if keep is not None else {n for n in made if n <= 8 or n == made[0]}
        wanted |= set(self.stochastic) | ({start_steps} if self.encoder_rounds and guide else set())
        # the last student is the role 'student' itself; as a stochastic student's teacher it must be one that stands still
        self.kept = sorted((n for n in wanted if n != end_steps or n in self.stochastic), reverse=True)
        self.clip = clip

    # -- participants -------------------------------------------------------------------------------------------------

    def accept(self, task: Task) -> None:
        """Samplers belong to the generation task."""
        if not isinstance(task, Generation):
            raise ConfigError("task", given=type(task).__name__, expected="task=generation")

    def bind(self, setup: Setup) -> None:
        """Take the participants; add a role for each student that is kept, and those of the extra rounds.

        Raises:
            ConfigError: the student takes no guidance weight; the teacher has no null condition; eps in 1 or 2 steps.
            TeacherMismatch: the teacher's weights do not fit the student.
        """
        super().bind(setup)
        self.accept(setup.task)
        assert isinstance(setup.task, Generation)
        self.task_: Generation = setup.task
        student, teacher = setup.student.module, self.roles["teacher"].module
        self.reads, self.teacher_reads = reading(student, "student"), reading(teacher, "teacher")
        self._check(student)
        # how far the run has come: the student's present number of steps, and the extra students that have begun
        self.state = {"steps": self.start_steps, "stochastic": [], "encoder": 0}
        if self.init == "teacher":
            inherit(teacher, student, dry=True)
        chosen = [n for n, p in student.named_parameters() if self._trains.search(n)]
        if not chosen:
            raise ConfigError("method.train_only", "no parameter of the student has such a name", given=self.train_only)
        for name, p in student.named_parameters():
            p.requires_grad_(name in chosen)

        def copied() -> Role:
            return Role(copy.deepcopy(student), contract=setup.student.contract)

        for n in self.kept:
            self.roles[f"student@{n}"] = copied()
        if any(self._before(n).role == "previous" for n in self.rounds):
            self.roles["previous"] = copied()
        for n in self.stochastic:
            self.roles[f"stochastic@{n}"] = copied()
        if self.encoder_rounds:
            self.roles["encoder"] = copied()
            if len(self.encoder_rounds) > 1:
                self.roles["encoder-before"] = copied()

    def _check(self, student: nn.Module) -> None:
        guides = self.w_max > 0
        if guides and self.teacher_reads.null_condition is None:
            raise ConfigError(
                "teacher.null_condition",
                "guided distillation needs the null condition index; pass null_condition",
                remedy="teacher.null_condition=INDEX, or method.w_max=0 to distil without guidance",
            )
        if self.w_max > self.w_min and not self.reads.guided:
            way = (
                "time_cond_proj_dim is None" if hasattr(getattr(student, "net", None), "config") else "guided is false"
            )
            raise ConfigError(
                "student",
                f"student has no guidance input ({way})",
                remedy="student.guided=true (diffusers: student.guidance=auto), or one weight: method.w_min=method.w_max",
            )
        if self.teacher_reads.guided:
            raise ConfigError(
                "teacher",
                "the teacher takes a guidance weight: it is a student of stage one already",
                expected="a conditional network with a null condition",
            )
        if self.reads.mean_type == "eps" and self.end_steps <= 2:
            raise ConfigError(
                "student.mean_type",
                f"from pure noise eps says nothing about x, so it cannot be distilled to end_steps={self.end_steps}",
                given="eps",
                expected="v or x (stage one teaches an eps teacher's weights the new output)",
                remedy="student.mean_type=v, or method.end_steps=4",
            )
        alpha = float(self.task_.schedule.alpha(1.0))
        if self.reads.mean_type == "eps" and alpha < 1e-3:
            warnings.warn(
                f"student.mean_type: at u = 1 alpha is {alpha:.1e}, so x from eps is undetermined there; use v or x",
                UserWarning,
                stacklevel=2,
            )
        if self.encoder_rounds and self.reads.mean_type == "x":
            raise ConfigError(
                "method.encoder_steps",
                "from clean data x says nothing about the noise to arrive at",
                expected="a student that puts out v, eps or both",
                remedy="student.mean_type=v",
            )
        labels = self.task_.labels or []
        if self.setup.student.labels and list(self.setup.student.labels) != list(labels):
            raise TeacherMismatch("student", "its classes are not the task's", given=self.setup.student.labels)

    # -- stages -------------------------------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """``guide``, then ``halveN`` down to the last N; ``stochasticN``; ``encodeN``. Each has a fresh optimiser."""
        train = self.setup.train
        found = [self._stage("guide", train, "student", self._inherit, self.guide_step)] if self.guide else []
        for n in self.rounds:
            begin, step = partial(self._promote, n), partial(self.halve_step, n)
            found.append(self._stage(f"halve{n}", self._budget(n), "student", begin, step))
        for n in self.stochastic:
            begin, step = partial(self._begin_stochastic, n), partial(self.stochastic_step, n)
            found.append(self._stage(f"stochastic{n}", self._budget(n), f"stochastic@{n}", begin, step))
        for n in self.encoder_rounds:
            begin, step = partial(self._begin_encoder, n), partial(self.encode_step, n)
            found.append(self._stage(f"encode{n}", self._budget(n), "encoder", begin, step))
        return found

    def _stage(self, name: str, optim: Optim, role: str, begin: Any, step: Any) -> Stage:
        data = self.task.train
        return Stage(
            name, steps=optim.steps, data=data, batch_size=optim.batch_size, optim={role: optim}, begin=begin, step=step
        )

    def _budget(self, n: int) -> Optim:
        """A round's optimiser: the learning rate starts again and anneals over the round."""
        steps = self.round_steps if self.round_steps is not None else self.setup.train.steps
        if n <= 4 and self.last_round_steps is not None:
            steps = self.last_round_steps
        return self.setup.train.with_(steps=steps, warmup=min(self.setup.train.warmup, steps))

    def _before(self, n: int) -> Guide:
        """Whom the student of n steps learns from: the student of 2n."""
        if n == self.rounds[0] and not self.guide:
            return Guide("teacher", True)
        return Guide(f"student@{2 * n}" if 2 * n in self.kept else "previous", False)

    def _inherit(self, ctx: Context) -> None:
        if self.init == "teacher":
            inherit(self.roles["teacher"].module, self.roles["student"].module)

    def _promote(self, n: int, ctx: Context) -> None:
        """The student of 2n steps becomes the teacher of n."""
        self.state["steps"] = n
        guide = self._before(n)
        if guide.role == "teacher":
            self._inherit(ctx)
        else:
            self._copy("student", guide.role)

    def _begin_stochastic(self, n: int, ctx: Context) -> None:
        if n == self.end_steps:
            self._copy("student", f"student@{n}")
        self._copy(f"student@{n}", f"stochastic@{n}")
        self.state["stochastic"] = [*self.state["stochastic"], n]

    def _begin_encoder(self, n: int, ctx: Context) -> None:
        if n == self.encoder_rounds[0]:
            if self.guide:
                self._copy(self._first_student(), "encoder")
            elif self.init == "teacher":
                inherit(self.roles["teacher"].module, self.roles["encoder"].module)
        else:
            self._copy("encoder", "encoder-before")
        self.state["encoder"] = n

    def _first_student(self) -> str:
        return f"student@{self.start_steps}"

    def _copy(self, source: str, to: str) -> None:
        self.roles[to].module.load_state_dict(self.roles[source].module.state_dict())

    # -- steps --------------------------------------------------------------------------------------------------------

    def guide_step(self, batch: Batch, ctx: Context) -> Terms:
        """Stage one: the guided teacher, both calls in one batch, at any time and any guidance weight."""
        x, c, w, ids = self._query(batch, ctx)
        if self.times == "continuous":
            u = ctx.draws.rand("u", ids)
        else:
            u = (ctx.draws.randint("i", ids, self.start_steps) + 1) / self.start_steps
        logsnr = self.task_.schedule.logsnr(u)
        z = diffusion.diffuse(x, ctx.draws.randn("eps", ids, x.shape[1:]), logsnr)
        target = self.guided_target(ctx, z, logsnr, c, w)
        return Terms(guide=self._term("student", ctx, z, logsnr, c, w, target, self.guide_weight))

    def guided_target(self, ctx: Context, z: Tensor, logsnr: Tensor, c: Tensor, w: Tensor) -> XEps:
        """``x^w(z)`` and its eps, [N, C, H, W] each, without graph; one call of 2N rows, or of N where w is 0."""
        kind, null, lam = self.teacher_reads.mean_type, self.teacher_reads.null_condition, logsnr.to(z.dtype)
        if null is None or self.w_max == 0:
            out = ctx.call("teacher", z, lam, c)
            return diffusion.to_x_eps(out, z, logsnr, kind, clip_x=self.clip)
        both = ctx.call("teacher", torch.cat([z, z]), torch.cat([lam, lam]), torch.cat([c, torch.full_like(c, null)]))
        cond, uncond = both.chunk(2)
        return diffusion.guided_x(cond, uncond, z, logsnr, kind, w=w, clip_x=self.clip)

    def halve_step(self, n: int, batch: Batch, ctx: Context) -> Terms:
        """Stage two: two steps of the student before, in one."""
        x, c, w, ids = self._query(batch, ctx)
        times = diffusion.halving_times(ctx.draws.randint("i", ids, n), n)
        z, target, logsnr = self._two_steps(ctx, self._before(n), x, c, w, ids, times)
        return Terms(halve=self._term("student", ctx, z, logsnr, c, w, target, self.weight))

    def stochastic_step(self, n: int, batch: Batch, ctx: Context) -> Terms:
        """Steps of length 2/n from every i/n, taught by two steps of the n-step student; at i = 1 by its one step."""
        x, c, w, ids = self._query(batch, ctx)
        i = ctx.draws.randint("i", ids, n)
        times = diffusion.stochastic_times(i, n)
        guide = Guide(f"student@{n}", False)
        z, target, logsnr = self._two_steps(ctx, guide, x, c, w, ids, times, edge=i == 0)
        return Terms(stochastic=self._term(f"stochastic@{n}", ctx, z, logsnr, c, w, target, self.weight))

    def encode_step(self, n: int, batch: Batch, ctx: Context) -> Terms:
        """The same as a halving, towards more noise."""
        x, c, w, ids = self._query(batch, ctx)
        times = diffusion.halving_times(ctx.draws.randint("i", ids, n), n, reverse=True)
        first = Guide(self._first_student(), False) if self.guide else Guide("teacher", True)
        guide = first if n == self.encoder_rounds[0] else Guide("encoder-before", False)
        z, target, logsnr = self._two_steps(ctx, guide, x, c, w, ids, times)
        return Terms(encode=self._term("encoder", ctx, z, logsnr, c, w, target, self.weight))

    def _query(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x in [-1, 1], class, guidance weight, ids to draw by)."""
        ids = fresh_ids(batch)
        w = ctx.draws.rand("w", ids, low=self.w_min, high=self.w_max)
        return self.task_.signed(batch["x"]), batch["y"], w, ids

    def _two_steps(
        self,
        ctx: Context,
        guide: Guide,
        x: Tensor,
        c: Tensor,
        w: Tensor,
        ids: Tensor,
        times: tuple[Tensor, Tensor, Tensor],
        edge: Tensor | None = None,
    ) -> tuple[Tensor, XEps, Tensor]:
        """(z at u, what the student must predict there, log-SNR at u). ``edge`` [N]: rows whose target is one step."""
        schedule = self.task_.schedule
        z = diffusion.diffuse(x, ctx.draws.randn("eps", ids, x.shape[1:]), schedule.logsnr(times[0]))
        kind = self.teacher_reads.mean_type if guide.twice else self.reads.mean_type
        found = diffusion.two_step_target(self._predict(ctx, guide, c, w), z, times, schedule, kind, clip_x=self.clip)
        target = XEps(found.x, found.eps)
        if edge is not None:
            # what the first call said is where the first jump came from
            first = diffusion.invert_jump(z, found.z_mid, found.logsnr, found.logsnr_mid)
            rows = edge.view(-1, *([1] * (z.ndim - 1)))
            target = XEps(*(torch.where(rows, a, b) for a, b in zip(first, target, strict=True)))
        return z, target, found.logsnr

    def _predict(self, ctx: Context, guide: Guide, c: Tensor, w: Tensor) -> Predict:
        call = partial(ctx.call, guide.role, grad=False)
        if guide.twice:
            null = self.teacher_reads.null_condition
            return conditional(call, c) if null is None or self.w_max == 0 else classifier_free(call, c, null, w)
        return conditional(call, c, w if self.reads.guided else None)

    def _term(
        self, role: str, ctx: Context, z: Tensor, logsnr: Tensor, c: Tensor, w: Tensor, target: XEps, weight: Weight
    ) -> Term:
        more = (w,) if self.reads.guided else ()
        out = ctx.call(role, z, logsnr.to(z.dtype), c, *more)
        predicted = diffusion.to_x_eps(out, z, logsnr, self.reads.mean_type)
        errors = diffusion.prediction_errors(predicted, target, logsnr)
        return Term(diffusion.select_error(errors, weight), to=role)  # [N]

    # -- result -------------------------------------------------------------------------------------------------------

    def artifact(self) -> Artifact:
        """A sampler: the student of every number of steps that was kept, as far as the run has come."""
        now: int = self.state["steps"]
        steps = {n: self.roles[f"student@{n}"].module for n in self.kept if n > now}
        steps[now] = self.roles["student"].module
        encoder: int = self.state["encoder"]
        students = Students(
            steps,
            {n: self.roles[f"stochastic@{n}"].module for n in self.state["stochastic"]},
            {encoder: self.roles["encoder"].module} if encoder else {},
            self._many(now, steps),
        )
        task = self.task_
        built, w_range = self.setup.student, (self.w_min, self.w_max)
        return SamplerArtifact(task, built, students, task.schedule, w_range, task.shape, task.labels, task.clip)

    def _many(self, now: int, steps: dict[int, nn.Module]) -> int | None:
        """From how many steps on the first student may be used: it learnt the guided teacher at every time."""
        if not self.guide or self.times == "discrete" or self.start_steps not in steps:
            return None
        return 1 if now == self.start_steps else self.start_steps


def _halvings(start_name: str, start: int, end_name: str, end: int) -> list[int]:
    """The student's step counts; a ValueError that names both numbers where halving does not lead from one to the other."""
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


def inherit(teacher: nn.Module, student: nn.Module, dry: bool = False) -> None:
    """The teacher's weights into the student; what takes the guidance weight is the student's own and keeps its values.

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
