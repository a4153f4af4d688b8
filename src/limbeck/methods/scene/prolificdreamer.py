"""ProlificDreamer: scenes as samples, moved along the difference between what a diffusion model likes and what they look like.

    VSD   grad_theta = E[ w(t) (eps_pre(x_t, t, y) - eps_phi(x_t, t, c)) dg/dtheta ],   x_t = alpha g(theta, c) + sigma eps
    SDS   the same with eps_phi := eps;   eps_pre = e_u + s (e_c - e_u);   w(t) = sigma^2
    phi   min E ||eps_phi(alpha x' + sigma eps', t', c') - eps'||^2 on what is drawn now, c' = 0 one time in ten

n particles theta stand side by side and share phi, which is a low-rank adapter on the teacher and is told the camera. A step
moves particles first, with the phi of before, and then phi. Three stages are three runs: a scene by VSD (images, Gaussians,
small radiance fields, anything that `render(params, camera)` draws); a mesh taken out of a field, whose corners are moved by
SDS on its normals; the mesh painted by VSD. The teacher sees pixels, or latents of an autoencoder through which gradients go.

theta: particles;  g: drawing;  x: image or latents [B, C, H, W];  c: camera [B, 16];  t: noise level in (0, 1], logsnr [B]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from limbeck.artifacts.scene import SceneArtifact
from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Weighting
from limbeck.functional.schedule import piecewise
from limbeck.grammar.card import Card
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.settings import Count, Fraction, NonNegative, Positive, Share, settings
from limbeck.networks.lora import Lora
from limbeck.networks.posed import Posed, PosedLora
from limbeck.networks.residual_mlp import ResidualMLP
from limbeck.networks.scenes import Mesh, Pictures, check_scene, particles_of
from limbeck.parts.scores import Asked, asked, fitted, variational
from limbeck.tasks.sampler import reading
from limbeck.tasks.views import Views

CARD = Card(
    number=24,
    slug="prolificdreamer",
    title="ProlificDreamer: High-Fidelity and Diverse Text-to-3D Generation with Variational Score Distillation",
    year=2023,
    venue="NeurIPS 2023",
    arxiv="2305.16213",
    repository="thu-ml/prolificdreamer; threestudio-project/threestudio",
    licence="Apache-2.0",
    family="scene",
    methods={"prolificdreamer": "ProlificDreamer"},
    optimised="scenes: images, Gaussians, radiance fields",
    signals=("scores",),
    provenance={
        "gradients of SDS and VSD, loss of phi": "both published codes, checked against recorded vectors",
        "schedules": "threestudio's C, checked against recorded vectors",
        "Gaussian renderer": "gsplat's definitions, checked against recorded vectors",
        "phi": "low-rank adapter with the camera added to the embedding of time, as the official code; sizes are ours",
        "analytic phi": "ours: the exact score of the particles, for images alone",
        "radiance field": "a small perceptron in place of a hash grid; bump and hollow start as published",
        "view-dependent prompts": "the official code's sides; a class of images has one name that all cameras share",
        "latents": "the posterior's mean, where the codes draw from it",
        "mesh": "marching cubes, corners moved by offsets, a soft rasteriser and colours of corners, in place of DMTet, nvdiffrast "
        "and a texture field",
    },
    claim="With the same frozen teacher and as many particles, VSD is more diverse than SDS at guidance 1 and at 7.5, comes near "
    "to more different real images, and is no farther from the real ones.",
    recipe="prolificdreamer",
    exceptions={"at_equality": "the student is a scene: there is no teacher network it could equal"},
    notes="SDS is method.loss=sds (guidance_scale=100 as published). One particle with VSD is not SDS: phi then knows its views.",
)


@settings
class ProlificDreamer(Method[Views]):
    """VSD, SDS beside it.

    Args:
        loss: ``vsd``; ``sds``; ``frozen``: VSD with a phi that never learns (the teacher without guidance).
        guidance_scale: of the teacher, 1 is plain conditional; 7.5 for VSD and about 100 for SDS as published.
        phi_guidance_scale: of phi, between the camera and none.
        phi: ``lora`` on the teacher, a ``small`` network of its own, or ``analytic``: exact, for particles that are images.
        phi_output: what a small phi predicts; ``lora`` speaks as the teacher does.
        phi_train: how phi learns (its rate and warm-up; steps and batch are the run's).
        phi_steps: updates of phi for each of the particles.
        rank: of the adapter.
        width: of a small phi.
        scale: widening of an analytic phi's particles, in [-1, 1].
        camera_dropout: how often phi learns without the camera.
        t_min: least noise level, a share of the schedule.
        t_max: greatest; or a list that moves with the steps, ``[5000, 0.98, 0.5, 5001]``.
        same_t: one noise level for the whole batch (the official code), or one for each image (threestudio).
        weighting: w(t): ``sigma2`` or ``uniform``.
        grad_clamp: largest gradient of a value; ``null`` for none.
        random_background: how often a plain random colour stands behind the scene, without which it may dissolve into it.
        entropy: weight of the entropy of what covers each pixel, for scenes that know it.
        smooth: weight of the angles between neighbouring faces of a mesh (as published 5000 in the geometry stage).
        flat: weight of a mesh's Laplacian (as published 0.5).
        variant: ``released`` sets what is not finite in the gradient to 0 or the largest number, as the codes do; ``paper``
            stops the run.
    """

    loss: Literal["vsd", "sds", "frozen"] = "vsd"
    guidance_scale: NonNegative = 7.5
    phi_guidance_scale: NonNegative = 1.0
    phi: Literal["lora", "small", "analytic"] = "lora"
    phi_output: Literal["eps", "v"] = "v"
    phi_train: Optim = Optim(lr=1e-3, schedule="constant")
    phi_steps: Count = 1
    rank: Count = 4
    width: Count = 128
    scale: Positive = 0.15
    camera_dropout: Share = 0.1
    t_min: Annotated[float, Gt(0), Interval(lt=1)] = 0.02
    t_max: float | list[float] = 0.98
    same_t: bool = False
    weighting: Weighting = "sigma2"
    grad_clamp: Positive | None = None
    random_background: Fraction = 0.0
    entropy: Annotated[float, Ge(0)] = 0.0
    smooth: NonNegative = 0.0
    flat: NonNegative = 0.0
    variant: Literal["paper", "released"] = "paper"

    participants = {"teacher": Participant(task="pictures", judged=False)}  # noqa: RUF012

    def validate(self) -> None:
        """Noise levels rise from t_min to t_max, within the schedule."""
        try:
            ends = [self.highest(step) for step in (0, 10**9)]
        except ConfigError as error:
            raise ValueError(f"t_max: {error}") from None
        for end in ends:
            if not self.t_min < end <= 1:
                raise ValueError(f"t_max must lie above t_min ({self.t_min:g}) and be at most 1, got {end:g}")
        if self.same_t:
            self.coupled = ""

    def highest(self, step: int) -> float:
        """t_max as it stands; a recipe's list counts steps, whether they are written 5000 or 5000.0."""
        if isinstance(self.t_max, (int, float)):
            return float(self.t_max)
        return piecewise([int(v) if v == int(v) and v > 1 else v for v in self.t_max], step)

    def judged_by(self, evaluator: Evaluator) -> None:
        """What decides, for one particle may have nothing of it."""
        self.metric = evaluator.primary

    # ------------------------------------------------------------------------------------------------ what takes part

    def bind(self, setup: Setup) -> None:
        """Take scene and teacher; add phi.

        Raises:
            ConfigError: no such phi for this scene; no gradient to the scene; a single particle and a metric of several.
        """
        super().bind(setup)
        task, scene, teacher = self.task, setup.student.module, self.roles["teacher"].module
        if task.has_photos:
            raise ConfigError(
                "task.photos", "what a scene looks like is told by the teacher", remedy="set task.photos=null"
            )
        self.particles = particles_of(scene)
        if self.particles == 1 and getattr(self, "metric", "") in ("diversity", "distinct"):
            raise ConfigError(
                "student.particles",
                f"one particle has no {self.metric}",
                given=1,
                remedy="set student.particles=4, or evaluator.metric=energy",
            )
        self._check_scene(scene)
        self.moves_corners = isinstance(scene, Mesh) and scene.stage == "geometry"
        if (self.smooth or self.flat) and not self.moves_corners:
            raise ConfigError(
                "method.smooth", "is of a mesh whose corners move", expected="student={use: mesh, stage: geometry}"
            )
        self.poses = bool(getattr(scene, "cameras", True))
        said = reading(teacher, "teacher")
        if self.guidance_scale != 1 and said.null_condition is None:
            raise ConfigError(
                "teacher.null_condition",
                "guidance needs the null condition's index, and the model has none",
                remedy="teacher.null_condition=INDEX, or method.guidance_scale=1",
            )
        self.learns_phi = self.loss == "vsd" and self.phi != "analytic"
        self._add_phi(scene, teacher)

    def _check_scene(self, scene: nn.Module) -> None:
        """Two images with a graph, in [0, 1]."""
        batch = self.task.example(2)
        batch = {k: v.to(next(scene.parameters()).device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        check_camera(batch["camera"])
        with torch.enable_grad():
            made = self.task.feed(scene, batch)
        check_scene(made, self.task.shape, 2)
        if not made.requires_grad:
            raise ConfigError("student", "renderer output does not require grad", expected="a image with a graph")

    def _add_phi(self, scene: nn.Module, teacher: nn.Module) -> None:
        if self.loss == "sds" or (self.loss == "vsd" and self.phi == "analytic"):
            if self.loss == "vsd" and not isinstance(scene, Pictures):
                raise ConfigError(
                    "method.phi",
                    "the exact score is known of particles that are images",
                    given="analytic",
                    expected="lora or small for a scene that cameras see",
                )
            return
        if self.loss == "frozen":
            return
        if self.phi == "lora":
            if not any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in teacher.modules()):
                raise ConfigError(
                    "method.phi",
                    f"{type(teacher).__name__} has no layers that an adapter could act on",
                    given="lora",
                    remedy="set method.phi=small, or analytic for images",
                )
            make: Any = PosedLora if self.poses else Lora
            # of a pipeline the attention of its network, as published; its autoencoder is not asked
            targets = r"denoiser\..*\.to_(q|k|v|out\.0)" if hasattr(teacher, "encode") else "all"
            self.new("phi", like="teacher", adapter=make(rank=self.rank, alpha=float(self.rank), targets=targets))
            return
        channels, side, across = self.task.pictures.shape
        if side != across or side > 32:
            raise ConfigError(
                "method.phi", given="small", expected="lora, for images that are not square or above 32 pixels"
            )
        classes = self.task.pictures.classes

        def small() -> nn.Module:
            net = ResidualMLP(channels, side, classes, self.width, 2, kind=self.phi_output)
            return Posed(net) if self.poses else net

        self.new("phi", small)

    def stages(self) -> list[Stage]:
        """One stage: particles and phi learn in turn."""
        train = self.setup.train
        optim = {"student": train}
        if self.learns_phi:
            optim["phi"] = self.phi_train.with_(steps=train.steps, batch_size=train.batch_size)
        data = self.task.train
        # in the order of the cameras, so that a batch goes through the particles in turn
        return [Stage("distil", steps=train.steps, data=data, batch_size=train.batch_size, optim=optim, shuffle=False)]

    # ----------------------------------------------------------------------------------------------------------- a step

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms]:
        """The particles' update, and then phi's."""
        item = batch["item"]
        camera = batch["camera"].flatten(1)  # [B, 16]
        batch = {**batch, "particle": item % self.particles}
        drawn, cover = self.draw(batch, ctx)  # [B, C, H, W] in [0, 1]
        x = self.encode(drawn, ctx)
        y_c, y = self.task.conditions(batch["camera"])  # with the side for the teacher, without for phi
        logsnr = self.level("t", item, ctx)
        eps = ctx.draws.randn("eps", item, x.shape[1:])
        pre = asked(ctx, "teacher", y_c, self.guidance_scale)
        moved = variational(
            *(x, eps, logsnr, pre, self.other(y, camera, ctx)),
            weighting=self.weighting,
            clamp=self.grad_clamp,
            clean=self.variant == "released",
        )
        name = "sds" if self.loss == "sds" else "vsd"
        terms: dict[str, Term] = {name: Term(moved.values, show=moved.size)}
        if self.entropy and cover is not None:
            p = cover.float().clamp(1e-5, 1 - 1e-5)
            terms["entropy"] = Term(-(p * p.log() + (1 - p) * (1 - p).log()).flatten(1).mean(1), weight=self.entropy)
        if (self.smooth or self.flat) and self.moves_corners:
            for name, value in zip(("smooth", "flat"), ctx.call("student", by="roughness"), strict=True):
                terms[name] = Term(value, weight=getattr(self, name), count=1)
        yield Terms({}, **terms)
        for k in range(self.phi_steps if self.learns_phi else 0):
            logsnr, eps = self.level(f"t'{k}", item, ctx), ctx.draws.randn(f"eps'{k}", item, x.shape[1:])
            seen = camera
            if self.poses:
                drop = ctx.draws.rand(f"drop{k}", item) < self.camera_dropout
                seen = torch.where(drop[:, None], torch.zeros_like(camera), camera)
            yield Terms(phi=Term(fitted(x, eps, logsnr, self.ask_phi(y, seen, ctx)), "phi"))

    def draw(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor | None]:
        """The particles from their cameras, and their cover; now and then before a plain random colour."""
        if not (self.random_background or self.entropy):
            return ctx.signal("student", batch).out, None
        item = batch["item"]
        behind = ctx.draws.rand("behind", item, (self.task.shape[0],))
        view = [batch[k] for k in ("camera", "K", "particle")]
        picture, cover = ctx.call("student", *view, by="trace")
        if cover is None or not self.random_background:
            return picture, cover
        other, _ = ctx.call("student", *view, behind, by="trace")
        swap = ctx.draws.rand("swap", item) < self.random_background
        return torch.where(swap[:, None, None, None], other, picture), cover

    def encode(self, pictures: Tensor, ctx: Context) -> Tensor:
        """What the teacher is asked about [B, ...]: images in [-1, 1], or the latents of its autoencoder."""
        x = self.task.signed(pictures)
        if not hasattr(self.roles["teacher"].module, "encode"):
            return x
        with ctx.through("teacher") as teacher:
            latents: Tensor = teacher.encode(x)  # type: ignore[operator]
        return latents

    def level(self, stream: str, item: Tensor, ctx: Context) -> Tensor:
        """Log-SNR [B] of a noise level drawn from t_min to t_max as it stands."""
        high = self.highest(ctx.step)
        keys = torch.zeros_like(item) if self.same_t else item
        u = ctx.draws.rand(stream, keys, low=self.t_min, high=high)
        return self.task.pictures.schedule.logsnr(u).float()

    def other(self, y: Tensor, camera: Tensor, ctx: Context) -> Asked | None:
        """The model of what is drawn; ``None`` for the noise itself (SDS)."""
        if self.loss == "sds":
            return None
        if self.loss == "frozen":
            return asked(ctx, "teacher", y)
        if self.phi == "analytic":
            scene: Any = ctx.roles["student"].module
            samples = scene.pixels.detach()
            return Asked(lambda z, logsnr: diffusion.mixture_eps(z, logsnr, samples, self.scale), "eps")
        return self.ask_phi(y, camera, ctx, self.phi_guidance_scale)

    def ask_phi(self, y: Tensor, camera: Tensor, ctx: Context, scale: float = 1.0) -> Asked:
        """phi with its camera; under guidance between the camera and none."""
        if not self.poses:
            return asked(ctx, "phi", y)
        seen = asked(ctx, "phi", y, camera=camera)
        if scale == 1.0:
            return seen
        blind = asked(ctx, "phi", y, camera=torch.zeros_like(camera))

        def guided(z: Tensor, logsnr: Tensor) -> Tensor:
            return diffusion.guide(seen.predict(z, logsnr), blind.predict(z, logsnr), scale=scale)

        return Asked(guided, seen.kind)

    def artifact(self) -> SceneArtifact:
        """The particles."""
        from dataclasses import replace

        built = replace(self.setup.student, module=self.roles["student"].module)
        return SceneArtifact(self.task, built)


def check_camera(camera: Tensor) -> None:
    """Refuse cameras that are no matrices.

    Raises:
        ShapeError: what they are.
    """
    if camera.ndim < 2 or list(camera.shape[1:]) not in ([4, 4], [16]):
        raise ShapeError("camera", given=list(camera.shape), expected="[B, 4, 4] or [B, 16]")
