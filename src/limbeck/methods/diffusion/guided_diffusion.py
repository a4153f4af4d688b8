"""Distillation of guided diffusion: one network for every guidance weight, then half the steps, again and again.

Stage one, ``guide``: the student takes w as an input and learns the guided teacher, two network calls, in one:

    x^w(z) = (1 + w) x_c(z) - w x_u(z)          L = max(SNR, 1) |x_student(z, w) - x^w(z)|^2,   w ~ U[w_min, w_max]

Stage two, ``halveN``: the student of before takes two DDIM steps (2N in all), the student learns to arrive there in one:

    z -> z_m -> z_s     x_target = (z_s - (s_s/s_u) z) / (a_s - (s_s/s_u) a_u)     L = max(|dx|^2, |deps|^2) per sample

x: clean sample in [-1, 1];  z = a x + s eps at time u, all [N, C, H, W];  w, u, logsnr: [N];  c: class [N]
N: the student's number of steps;  u = (i + 1)/N for i ~ U{0..N-1};  z_m half a step below u, z_s a whole one
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Weight, XEps
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.settings import Natural, settings
from limbeck.parts.denoisers import Asked, Denoiser, halvings, inherit, parameters_named, sampler, train_only
from limbeck.tasks.generation import Generation

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


@settings
class GuidedDiffusion(Method[Generation]):
    """Both stages of guided distillation.

    Every round takes ``train.steps`` updates unless the recipe tunes its stage: ``stages.halve*.steps=800``. Stages are
    ``guide``, ``halveN`` down to the last N, ``stochasticN`` and ``encodeN``; the learning rate starts again in each.

    Args:
        w_min: the smallest guidance weight the student learns.
        w_max: the largest; equal to it for a student of one weight.
        convention: how they are meant: ``w`` (0 is plain conditional) or ``s`` (the libraries' scale, 1 + w).
        guide: run stage one; off distils guidance and steps at once, from two teacher calls a step.
        times: of stage one: ``continuous`` in [0, 1], or ``discrete``: i/start_steps for a teacher of so many steps.
        start_steps: steps of the teacher of the first halving.
        end_steps: steps of the last student; ``start_steps`` is this times a power of two, or equal (no halving).
        weight: which error counts in stage two: ``constant`` (x), ``snr`` (eps), ``snr_trunc`` (the larger), ``v_mse``.
        guide_weight: the same in stage one; ``null`` takes ``weight``.
        init: where the student begins: the conditional ``teacher``'s weights, or ``random``.
        train_only: ``all`` weights, the ``embeddings`` of time, class and guidance, or a pattern of parameter names.
        stochastic: numbers of steps to distil for the stochastic sampler, in rounds of their own.
        encoder_steps: steps of an encoder from data to noise, distilled in halvings of its own; 0 for none.
        keep: numbers of steps whose students are kept; ``null`` keeps those of 8 steps and fewer, and the first.
        clip: clamp the teacher's x in the targets. The published code does not; it biases them.
    """

    w_min: float = 0.0
    w_max: float = 4.0
    convention: Literal["w", "s"] = "w"
    guide: bool = True
    times: Literal["continuous", "discrete"] = "continuous"
    start_steps: int = 16
    end_steps: int = 1
    weight: Weight = "snr_trunc"
    guide_weight: Weight | None = None
    init: Literal["teacher", "random"] = "teacher"
    train_only: str = "all"
    stochastic: list[int] | None = None
    encoder_steps: Natural = 0
    keep: list[int] | None = None
    clip: bool = False

    def validate(self) -> None:
        """Which students there are: of every number of steps that was made, those that are kept."""
        shift = float(self.convention == "s")
        self.w_range = low, high = self.w_min - shift, self.w_max - shift
        if not 0 <= low <= high:
            least = "1 (the scale)" if shift else "0"
            raise ValueError(f"w_min must be at least {least} and at most w_max, got {self.w_min} to {self.w_max}")
        self.rounds = halvings("start_steps", self.start_steps, "end_steps", self.end_steps)
        if not self.guide and not self.rounds:
            raise ValueError("nothing to do: guide is off and start_steps equals end_steps")
        parameters_named(self.train_only)
        made = [self.start_steps] * self.guide + self.rounds
        self.stochastics = sorted(set(self.stochastic or []), reverse=True)
        for name, given, known in (
            ("stochastic", self.stochastics, [n for n in made if n > 1]),
            ("keep", self.keep, made),
        ):
            if wrong := [n for n in given or [] if n not in known]:
                raise ValueError(f"{name} holds {wrong}; there are students of {known} steps")
        encoder = self.encoder_steps or self.start_steps
        self.encoder_rounds = halvings("start_steps", self.start_steps, "encoder_steps", encoder)
        if self.encoder_steps and not self.encoder_rounds:
            raise ValueError("encoder_steps must be below start_steps")
        wanted = set(self.keep) if self.keep is not None else {n for n in made if n <= 8 or n == made[0]}
        wanted |= set(self.stochastics) | ({self.start_steps} if self.encoder_rounds and self.guide else set())
        # the last student is the role 'student' itself; as a stochastic student's teacher it must be one that stands still
        self.kept = sorted((n for n in wanted if n != self.end_steps or n in self.stochastics), reverse=True)

    def bind(self, setup: Setup) -> None:
        """Take the participants; add a role for each student that is kept, and those of the extra rounds."""
        super().bind(setup)
        self.accept(self.task)
        self.student = Denoiser.of(self, "student")
        self.teacher = Denoiser.of(self, "teacher", free=self.w_range[1] > 0, clip=self.clip)
        self._check()
        # how far the run has come: the student's present number of steps, and the extra students that have begun
        self.state = {"steps": self.start_steps, "stochastic": [], "encoder": 0}
        if self.init == "teacher":
            inherit(self.roles["teacher"].module, self.roles["student"].module, dry=True)
        train_only(self.roles["student"].module, self.train_only)
        previous = ["previous"] if any(self._before(n).role == "previous" for n in self.rounds) else []
        kept, random = [f"student@{n}" for n in self.kept], [f"stochastic@{n}" for n in self.stochastics]
        for name in [*kept, *previous, *random, *["encoder", "encoder-before"][: len(self.encoder_rounds)]]:
            self.new(name, like="student")

    def _check(self) -> None:
        self.student.takes(self.w_range)
        self.student.starts_from_noise(self.task.schedule, self.end_steps)
        if self.encoder_rounds and self.student.kind == "x":
            what = "from clean data x says nothing about the noise to arrive at"
            raise ConfigError("method.encoder_steps", what, expected="v, eps or both", remedy="student.mean_type=v")

    def _before(self, n: int) -> Denoiser:
        """Whom the student of n steps learns from: the student of 2n."""
        if n == self.rounds[0] and not self.guide:
            return self.teacher
        return self._like(f"student@{2 * n}" if 2 * n in self.kept else "previous")

    def _like(self, role: str) -> Denoiser:
        return Denoiser(role, self.student.said, clip=self.clip)

    def stages(self) -> list[Stage]:
        """``guide``, then ``halveN`` down to the last N; ``stochasticN``; ``encodeN``. Each has a fresh optimiser."""
        found: list[tuple[str, Optim, str, Any, Any]] = []
        if self.guide:
            found.append(("guide", self.setup.train, "student", self._inherit, self.guide_step))
        for kind, rounds, role, begin, step in (
            ("halve", self.rounds, "student", self._promote, self.halve_step),
            ("stochastic", self.stochastics, "stochastic@{}", self._begin_stochastic, self.stochastic_step),
            ("encode", self.encoder_rounds, "encoder", self._begin_encoder, self.encode_step),
        ):
            for n in rounds:
                found.append((f"{kind}{n}", self.setup.train, role.format(n), partial(begin, n), partial(step, n)))
        x = self.task.train
        return [Stage(n, o.steps, x, o.batch_size, optim={r: o}, begin=b, step=s) for n, o, r, b, s in found]

    def _inherit(self, ctx: Context, to: str = "student") -> None:
        if self.init == "teacher":
            inherit(self.roles["teacher"].module, self.roles[to].module)

    def _promote(self, n: int, ctx: Context) -> None:
        """The student of 2n steps becomes the teacher of n."""
        self.state["steps"] = n
        guide = self._before(n)
        self._inherit(ctx) if guide.role == "teacher" else self._copy("student", guide.role)

    def _begin_stochastic(self, n: int, ctx: Context) -> None:
        if n == self.end_steps:
            self._copy("student", f"student@{n}")
        self._copy(f"student@{n}", f"stochastic@{n}")
        self.state["stochastic"] = [*self.state["stochastic"], n]

    def _begin_encoder(self, n: int, ctx: Context) -> None:
        if n != self.encoder_rounds[0]:
            self._copy("encoder", "encoder-before")
        elif self.guide:
            self._copy(f"student@{self.start_steps}", "encoder")
        else:
            self._inherit(ctx, "encoder")
        self.state["encoder"] = n

    def _copy(self, source: str, to: str) -> None:
        self.roles[to].module.load_state_dict(self.roles[source].module.state_dict())

    def guide_step(self, batch: Batch, ctx: Context) -> Terms:
        """Stage one: the guided teacher, both calls in one batch, at any time and any guidance weight."""
        q = Asked.of(self.task, batch, ctx, self.w_range)
        N, discrete = self.start_steps, self.times == "discrete"
        u = (ctx.draws.randint("i", q.ids, N) + 1) / N if discrete else ctx.draws.rand("u", q.ids)
        logsnr = self.task.schedule.logsnr(u)
        z, _ = q.noised(ctx, logsnr)
        target = self.teacher.read(ctx, z, logsnr, q.c, q.w)  # x^w(z) and its eps
        return Terms(guide=self._term("student", ctx, q, z, logsnr, target, self.guide_weight or self.weight))

    def halve_step(self, n: int, batch: Batch, ctx: Context) -> Terms:
        """Stage two: two steps of the student before, in one."""
        q = Asked.of(self.task, batch, ctx, self.w_range)
        times = diffusion.halving_times(ctx.draws.randint("i", q.ids, n), n)
        z, target, logsnr = self._before(n).two_steps(ctx, q, times, self.task.schedule)
        return Terms(halve=self._term("student", ctx, q, z, logsnr, target, self.weight))

    def stochastic_step(self, n: int, batch: Batch, ctx: Context) -> Terms:
        """Steps of length 2/n from every i/n, taught by two steps of the n-step student; at i = 1 by its one step."""
        q = Asked.of(self.task, batch, ctx, self.w_range)
        i = ctx.draws.randint("i", q.ids, n)
        guide, times = self._like(f"student@{n}"), diffusion.stochastic_times(i, n)
        z, target, logsnr = guide.two_steps(ctx, q, times, self.task.schedule, one=i == 0)
        return Terms(stochastic=self._term(f"stochastic@{n}", ctx, q, z, logsnr, target, self.weight))

    def encode_step(self, n: int, batch: Batch, ctx: Context) -> Terms:
        """The same as a halving, towards more noise."""
        q = Asked.of(self.task, batch, ctx, self.w_range)
        times = diffusion.halving_times(ctx.draws.randint("i", q.ids, n), n, reverse=True)
        first = self._like(f"student@{self.start_steps}") if self.guide else self.teacher
        guide = first if n == self.encoder_rounds[0] else self._like("encoder-before")
        z, target, logsnr = guide.two_steps(ctx, q, times, self.task.schedule)
        return Terms(encode=self._term("encoder", ctx, q, z, logsnr, target, self.weight))

    def _term(self, role: str, ctx: Context, q: Asked, z: Tensor, logsnr: Tensor, target: XEps, weight: Weight) -> Term:
        return Term(Denoiser(role, self.student.said).errors(ctx, z, logsnr, q.c, target, weight, q.w), to=role)  # [N]

    def artifact(self) -> Artifact:
        """A sampler: the student of every number of steps that was kept, as far as the run has come."""
        now, encoder, start = self.state["steps"], self.state["encoder"], self.start_steps
        steps = {n: f"student@{n}" for n in self.kept if n > now} | {now: "student"}
        stochastic = {n: f"stochastic@{n}" for n in self.state["stochastic"]}
        # from how many steps on the first student may be used: it learnt the guided teacher at every time
        every = self.guide and self.times == "continuous" and start in steps
        many = (1 if now == start else start) if every else None
        return sampler(self, steps, stochastic, {encoder: "encoder"} if encoder else {}, self.w_range, many)
