"""SwiftBrush: a diffusion model becomes a generator of one step, without a picture: prompts and noise alone.

Two updates a step. The generator descends the difference of two scores of what it draws: the frozen teacher's, and that of
the teacher seen through an adapter, the fake score, which is then fitted to what the generator draws now.

    x_0 = (z - sigma_T f(z, T, c)) / alpha_T                       z ~ N(0, I), one call; for v and x outputs their own x
    L_vsd:   dL/dx_0 = sigma_t^2 (p - q) / numel,   p = p_u + g (p_c - p_u),  q likewise with the adapter, the same g
    L_fake = alpha_t'^2 |eps_fake(x_t', t', c') - eps'|^2          c' is the null condition for the whole batch, now and then;
                                                                   a network that predicts v or x is fitted by its error of v

f: student;  p, q: guided eps of teacher and fake score;  x_t = alpha_t x_0 + sigma_t eps, all [B, C, H, W];  t, t': [B]
c: class [B] or embeddings of prompts [B, L, D];  T: the noisiest time;  no gradient flows through x_t, p or q
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional import diffusion
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Batch, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.settings import Count, Fraction, Positive, Share, settings
from limbeck.networks.lora import Lora
from limbeck.parts.denoisers import Denoiser, check_adapters, inherit, sampler
from limbeck.tasks.generation import Generation, fresh_ids
from limbeck.tasks.sampler import nothing

CARD = Card(
    number=27,
    slug="swiftbrush",
    title="SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score Distillation",
    year=2024,
    venue="CVPR 2024",
    arxiv="2312.05239",
    repository="VinAIResearch/SwiftBrush",
    licence="CC-BY-NC-SA-4.0",
    family="diffusion",
    methods={"swiftbrush": "SwiftBrush"},
    optimised="network weights",
    signals=("score difference",),
    provenance={
        "both updates, their times and weights": "code, checked against recorded vectors",
        "guidance": "code: the same scale for both scores",
        "constants 0.0047 and 1 - 0.0047 at the noisiest time": "code (variant=released); by default the schedule's own",
        "teachers that predict v or x": "ours: every output is read as the pair (x, eps); the published code takes eps alone",
        "loss of a fake score that predicts v or x": "the error of v, as ProlificDreamer trains a network that predicts v; the "
        "published weight of eps would all but leave out the noisy times for v, and has no bound for x",
        "normalised difference (difference=dmd)": "Yin et al. 2024 (arXiv 2311.18828), with the teacher's x",
    },
    claim="From one teacher, at equal updates and without data, samples of one step are nearer to real ones (Fréchet distance) "
    "with the fake score than without it (SDS), and at most 0.3 as far as the teacher's own one-step samples.",
    recipe="swiftbrush",
    at_equality={
        "vsd": "gradient",
        "fake": "a denoising loss, which is not 0 for the best of denoisers",
    },
    exceptions={
        "terms": "before its first update the fake score is the teacher, so the first step moves nothing; tested beside"
    },
    notes="guidance_scale is the libraries' scale (1 is plain conditional). What is delivered is the average of the generator. "
    "Prompts alone are read by the task prompts.",
)

ABAR_T = 0.0047
"""alpha^2 at the noisiest time in the published code."""


@settings
class SwiftBrush(Method[Generation]):
    """Variational score distillation into a generator of one step.

    Args:
        guidance_scale: g of both scores; 1 asks neither without its condition, at half the calls.
        fake: the score of what is drawn: the teacher through an adapter (``lora``), a copy of it that learns whole
            (``full``), or the noise that was drawn (``none``: SDS, a teacher alone).
        rank: of the adapter.
        alpha: its update is multiplied by alpha / rank.
        targets: layers it acts on, by the end of their names, or ``all``.
        difference: how the difference of scores is weighed: ``sigma2``, ``uniform``, or ``dmd`` (of x, divided by the
            teacher's mean distance to what was drawn).
        t_min, t_max: the times at which scores are compared, as parts of the schedule.
        fake_loss: of what the fake score is fitted to: ``eps`` (the published error of eps, times alpha squared), ``v``, or
            ``auto``: eps for a network that predicts it, else v.
        p_null: how often the fake score learns without a condition, the whole batch at once.
        init: where the generator begins: the ``teacher``'s weights, or ``random``.
        ema: the share that the average keeps each step, once it has warmed up; ``null`` delivers the generator itself.
        variant: ``paper`` takes alpha and sigma at the noisiest time from the schedule, ``released`` the constants 0.0047
            and 1 - 0.0047, which fit Stable Diffusion's schedule alone.
    """

    guidance_scale: Annotated[float, Ge(1)] = 4.5
    fake: Literal["lora", "full", "none"] = "lora"
    rank: Count = 64
    alpha: Positive = 108.0
    targets: str | list[str] = ["to_q", "to_v"]  # noqa: RUF012 (copied for each instance)
    difference: Literal["sigma2", "uniform", "dmd"] = "sigma2"
    t_min: Share = 0.02
    t_max: Fraction = 0.981
    fake_loss: Literal["auto", "eps", "v"] = "auto"
    p_null: Fraction = 0.1
    init: Literal["teacher", "random"] = "teacher"
    ema: Share | None = 0.9999
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """Who learns, and w, the guidance weight that is the scale less one."""
        if not self.t_min < self.t_max:
            raise ValueError(f"t_min ({self.t_min}) must be below t_max ({self.t_max})")
        self.w = self.guidance_scale - 1.0
        self.learners = ("student",) if self.fake == "none" else ("student", "fake")
        self.abar_T = ABAR_T if self.variant == "released" else None

    def bind(self, setup: Setup) -> None:
        """The fake score beside teacher and student, and the student's average."""
        super().bind(setup)
        check_adapters(self.roles["teacher"].module, "teacher")
        guided = self.w > 0
        self.teacher = Denoiser.of(self, "teacher", free=guided, plain="method.guidance_scale=1")
        self.student = Denoiser.of(self, "student")
        self._check()
        if self.init == "teacher":
            inherit(self.roles["teacher"].module, self.roles["student"].module, dry=True)
        if self.fake == "lora":
            self.new("fake", like="teacher", adapter=self._adapter())
        elif self.fake == "full":
            self.new("fake", like="teacher")
        self.score = Denoiser("fake", self.teacher.said, free=guided)
        if self.ema is not None:
            self.new("ema", like="student", decay=self.decay)

    def _adapter(self) -> Lora:
        made = Lora(rank=self.rank, alpha=self.alpha, targets=self.targets)
        try:
            made.aims(self.roles["teacher"].module)
        except ConfigError as error:
            expected, remedy = error.expected, "method.targets=all, or the names of its layers"
            raise ConfigError("method.targets", given=self.targets, expected=expected, remedy=remedy) from None
        return made

    def _check(self) -> None:
        alpha = float(self.task.schedule.alpha(1.0))
        if self.abar_T is not None and abs(alpha**2 - self.abar_T) > 5e-4:
            raise ConfigError(
                "method.variant",
                f"the published constant {self.abar_T} is not this schedule's alpha^2 at its noisiest time, {alpha**2:.4f}",
                given="released",
                expected="the schedule of Stable Diffusion (task.schedule=scaled-linear)",
                remedy="method.variant=paper",
            )
        if self.student.kind == "eps" and alpha < 1e-3:
            raise ConfigError(
                "student.mean_type",
                f"at the noisiest time alpha is {alpha:.1e}: of pure noise eps says nothing about x",
                given="eps",
                expected="v or x there, or a schedule that ends before (task.schedule=ddpm or scaled-linear)",
                remedy="student.mean_type=v with method.init=random, or another task.schedule",
            )

    def judged_by(self, evaluator: Evaluator) -> None:
        """Refuse to evaluate a sampler of one step and one weight at others alone."""
        steps, weights = getattr(evaluator, "steps", [1]), getattr(evaluator, "guidance", [self.w])
        if 1 not in steps or self.w not in weights:
            raise ConfigError(
                "evaluator",
                "the generator samples in one step, for the guidance it was distilled with",
                given={"steps": steps, "guidance": weights},
                expected="1 among the steps, and guidance_scale - 1 among the weights",
                remedy=f"evaluator.steps=[1] evaluator.guidance=[{self.w:g}]",
            )

    def decay(self, step: int, total: int) -> float:
        """What the average keeps: 0 at first, then (1 + step) / (10 + step) up to ``ema``, as diffusers' averages do."""
        assert self.ema is not None
        return 0.0 if step == 0 else min(self.ema, (1 + step) / (10 + step))

    def stages(self) -> list[Stage]:
        """One stage that goes through conditions, and through no image."""
        train = self.setup.train
        optim = dict.fromkeys(self.learners, train)
        data = self.task.conditions
        return [Stage("distil", train.steps, data, train.batch_size, optim, begin=self._inherit, augmented=False)]

    def _inherit(self, ctx: Context) -> None:
        if self.init == "teacher":
            teacher = self.roles["teacher"].module
            for role in ("student", "ema") if self.ema is not None else ("student",):
                inherit(teacher, self.roles[role].module)

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms]:
        """The generator, then the fake score of what the generator drew before its update."""
        c, ids = batch["y"], fresh_ids(batch)
        shape, w = self.task.shape, torch.full((len(ids),), self.w, device=ctx.device)
        x_0 = self.generate(ctx, ctx.draws.randn("z", ids, shape), c, w)
        t, eps = self._times(ctx, "t", ids, self.t_min, self.t_max), ctx.draws.randn("eps", ids, shape)
        with torch.no_grad():
            x_t = diffusion.diffuse(x_0.detach(), eps, t)
            p = self.teacher.read(ctx, x_t, t, c, w)
            q = self.score.read(ctx, x_t, t, c, w, grad=False) if self.fake != "none" else diffusion.XEps(x_0, eps)
            if self.difference == "dmd":
                G = diffusion.normalised_difference(x_0, p.x, q.x)  # [B, C, H, W]
            else:
                G = diffusion.score_difference(p.eps, q.eps, t, weighting=self.difference)
        numel = x_0[0].numel()
        size = 0.5 * G.square().flatten(1).mean(1)  # 0.5 |x_0 - sg(x_0 - G)|^2, the loss whose gradient it is
        yield Terms(vsd=Term(diffusion.carry(x_0, G) / numel, show=size))
        if self.fake != "none":
            yield Terms(fake=Term(self.fitted(ctx, x_0.detach(), c, ids), to="fake"))

    def generate(self, ctx: Context, z: Tensor, c: Tensor, w: Tensor) -> Tensor:
        """What the student makes of noise z [B, C, H, W] in one call: x_0 [B, C, H, W], with a graph."""
        T = self.task.schedule.logsnr(torch.ones(len(z), device=z.device))
        if self.abar_T is None:
            return self.student.read(ctx, z, T, c, w).x
        said = ctx.call("student", z, T.to(z.dtype), c, *((w,) if self.student.said.guided else ()))
        constant = torch.full_like(T, self.abar_T)
        return diffusion.to_x_eps(said, z, torch.log(constant) - torch.log1p(-constant), self.student.kind).x

    def fitted(self, ctx: Context, x: Tensor, c: Tensor, ids: Tensor) -> Tensor:
        """How far the fake score is from the noise in what was drawn [B], with times and noise of its own."""
        t, eps = self._times(ctx, "fake-t", ids, 0.0, 1.0), ctx.draws.randn("fake-eps", ids, x.shape[1:])
        null = self.teacher.said.null_condition
        if null is not None and self.p_null > 0:
            coin = ctx.draws.rand("null", 1) < self.p_null  # one for the whole batch
            c = torch.where(coin.view(-1, *[1] * (c.ndim - 1)), nothing(c, null), c)
        seen = self.score.read(ctx, diffusion.diffuse(x, eps, t), t, c)
        errors = diffusion.prediction_errors(seen, diffusion.XEps(x, eps), t)
        if self.fake_loss == "v" or (self.fake_loss == "auto" and self.teacher.kind != "eps"):
            return errors.v
        return torch.sigmoid(t).to(errors.eps.dtype) * errors.eps  # alpha^2 of the variance-preserving pair

    def _times(self, ctx: Context, stream: str, ids: Tensor, low: float, high: float) -> Tensor:
        """Log-SNRs [B] of times drawn evenly between two parts of the schedule; of a discrete one, its timesteps."""
        schedule = self.task.schedule
        if isinstance(schedule, diffusion.DiscreteSchedule):
            T = schedule.timesteps
            t = ctx.draws.randint(stream, ids, max(round(high * T), round(low * T) + 1), low=round(low * T))
            return schedule.logsnr((t + 1) / T)
        return schedule.logsnr(ctx.draws.rand(stream, ids, low=low, high=high))

    def artifact(self) -> Artifact:
        """A sampler of one step: the average's."""
        return sampler(self, {1: "student" if self.ema is None else "ema"}, w_range=(self.w, self.w))

    def rows(self) -> dict[str, Artifact]:
        """The generator as it last was, beside its average."""
        last: dict[str, Any] = {"last": sampler(self, {1: "student"}, w_range=(self.w, self.w))}
        return last if self.ema is not None else {}
