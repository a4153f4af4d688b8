"""HARD: an augmentation model looks for images on which student and teacher disagree; the student learns to agree there.

    student:    L_S = (1 - alpha) CE(S(x), y) + alpha [ KL(T(x) || S(x)) + KL(T(x~) || S(x~)) ],    x~ = A(x), a constant
    augmentor:  L_A = -lambda_s min(KL(T(x~) || S(x~)), cap) + lambda_t KL(T(x) || T(x~)),   through S and T to A

Who learns in a step follows from m, the moving average of KL(T(x~) || S(x~)): the augmentor until m > l_max, the student
until m < l_min. With a host, the first two terms are that method's own: ``limbeck run hard method.host=nkd``.

Only the paper's abstract was readable: its structure is here, weights and thresholds are [reconstructed].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.adversarial import Switch, augmentor_loss, switch_mode
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Batch, Context, Gather, Method, Setup, Share, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, NonNegative, Positive, settings
from limbeck.grammar.settings import Share as Share01
from limbeck.grammar.task import Task
from limbeck.networks.augmentors import AffineAugmentor, AffineNet, DiffusersVae, ImageVae, LatentShift, PatchMixer
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=29,
    slug="hard",
    title="HARD: Hard Augmentations for Robust Distillation",
    year=2023,
    arxiv="2305.14890",
    family="classification",
    methods={"hard": "Hard"},
    optimised="the student's weights, and the augmentation model against it",
    signals=("logits",),
    provenance={
        "learned augmentations against the student, spatial and with a VAE": "abstract",
        "losses, switching by two thresholds, patches, all weights": "reconstructed: the paper's text was not readable and no code "
        "was published",
        "affine-net": "after TeachAugment's released code (arXiv 2202.12513), without its class input",
        "VAE": "ours: a small one trained on the task's images, or one of diffusers; the paper's is a very deep one",
    },
    claim="A student distilled from centred images by HARD recognises shifted images better than one distilled by KD.",
    recipe="hard",
    at_equality={"kl": "value", "hard": "value"},
    notes="Attaches to a classification method with a teacher at hand: method.host=nkd. A recorded teacher cannot be used.",
)


@settings
class Hard(Method[Classification]):
    """Learned hard augmentations, alone or around another method.

    Args:
        host: the method whose terms teach the student on the images as they are; ``null``: labels and KL divergence.
        augmentor: ``affine`` (six learned deviations), ``affine-net`` (transforms made of noise), ``mix`` (patches of two
            images) or ``vae`` (a shift and deviation of latents).
        learn: whether the augmentor learns; off, it draws random augmentations of its first ranges.
        sigma: first standard deviation of ``affine`` and ``vae``.
        sigmas: of ``affine``: six of them, a11 a12 tx a21 a22 ty; ``null`` takes ``sigma`` for each.
        patch: of ``mix``: side of a patch in pixels.
        vae: folder of a VAE of diffusers; ``null`` trains a small one on the task's images before (stage ``vae``).
        latents: of the small VAE: channels of its latents.
        temperature: of all divergences; T squared is multiplied in.
        alpha: share of the divergences against the labels; with a host the weight of the augmented images' term.
        clean: of no host: also the divergence on the images as they are.
        target: of augmented images: the ``teacher``'s answer, or the image's ``labels``.
        lambda_s: weight of the disagreement that the augmentor looks for.
        lambda_t: weight of the teacher keeping its answer.
        cap: the largest disagreement of one image that the augmentor is rewarded for.
        schedule: ``threshold`` as above, or ``ratio``: so many steps of each in turn.
        l_min, l_max: thresholds, in nats times T squared.
        decay: of the moving average.
        max_augment_steps: the longest that the augmentor learns in a row.
        augment_steps, student_steps: of ``ratio``.
        start: who learns first.
    """

    paths: ClassVar[tuple[str, ...]] = ("vae",)
    stage_names = ("vae",)  # the host's come before

    host: Method | None = None
    augmentor: Literal["affine", "affine-net", "mix", "vae"] = "affine"
    learn: bool = True
    sigma: Positive = math.exp(-3)
    sigmas: list[Positive] | None = None
    patch: Count = 2
    vae: str | None = None
    latents: Count = 8
    temperature: Positive = 1.0
    alpha: Fraction = 0.9
    clean: bool = True
    target: Literal["teacher", "labels"] = "teacher"
    lambda_s: Positive = 1.0
    lambda_t: NonNegative = 0.2
    cap: Positive = 20.0
    schedule: Literal["threshold", "ratio"] = "threshold"
    l_min: NonNegative = 0.3
    l_max: Positive = 1.0
    decay: Share01 = 0.9
    max_augment_steps: Annotated[int, Ge(1)] = 50
    augment_steps: Count = 1
    student_steps: Count = 4
    start: Literal["augment", "student"] = "augment"

    def validate(self) -> None:
        """Thresholds in order; as many deviations as there are."""
        if not self.l_min < self.l_max:
            raise ValueError("l_min must be below l_max")
        if self.sigmas is not None and (len(self.sigmas) != 6 or self.augmentor != "affine"):
            raise ValueError("sigmas must be six numbers of augmentor=affine: a11 a12 tx a21 a22 ty")
        if isinstance(self.host, Hard):
            raise ValueError("host must be another method than hard")
        self._own: dict[str, Any] = {}
        self._mine: dict[str, Any] = {}
        if self.host is not None:
            self.participants, self.coupled = self.host.participants, self.host.coupled
            self.objectives: dict[str, Any] = getattr(self.host, "objectives", {})
            self.stage_names = (*self.host.stage_names, "vae")  # type: ignore[assignment]  # longer by the host's
        if self.augmentor in ("mix", "affine-net"):
            self.coupled = self.coupled or "the augmentor sees the items of a batch together"

    # ------------------------------------------------------------------------------------------------ the host
    @property
    def state(self) -> dict[str, Any]:
        """Who learns, and the host's own state."""
        return {"hard": self._own, **({} if self.host is None else {"host": self.host.state})}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self._own = value.get("hard", {})
        if self.host is not None:
            self.host.state = value.get("host", {})

    def accept(self, task: Task) -> None:
        """Images of one class each, as the host takes them."""
        super().accept(task)
        if self.host is not None:
            self.host.accept(task)
        one_label(self, task)
        assert isinstance(task, Classification)
        if len(task.shape) != 3:
            raise ConfigError("task", "HARD changes images", given=f"items {list(task.shape)}", expected="images")
        if self.augmentor == "mix" and any(side % self.patch for side in task.shape[1:]):
            raise ConfigError(
                "method.patch",
                "patches must divide the image",
                given=self.patch,
                expected=f"a divisor of {list(task.shape[1:])}",
            )

    def judged_by(self, evaluator: Evaluator) -> None:
        """As the host says."""
        if self.host is not None:
            self.host.judged_by(evaluator)

    def bind(self, setup: Setup) -> None:
        """Take the host's roles; add the augmentor, and the VAE where there is one."""
        super().bind(setup)
        if self.host is not None:
            self.host.bind(setup)
            self.roles, self._copied = self.host.roles, self.host._copied
            self.student_taps, self.teacher_taps = self.host.student_taps, self.host.teacher_taps
        if "teacher" not in self.roles:
            raise ConfigError(
                "method.host", "HARD needs a teacher, and the host has none", remedy="choose another host"
            )
        teacher = self.roles["teacher"].module
        if not isinstance(teacher, nn.Module) or hasattr(type(teacher), "answer"):
            raise ConfigError(
                "teacher",
                "HARD needs gradients through the teacher to new images",
                given="a recorded or remote teacher",
                expected="a network",
            )
        if self.augmentor == "affine-net" and setup.train.batch_size < 2:
            raise ConfigError("train.batch_size", given=1, expected="2 or more for augmentor=affine-net")
        self._own = asdict(Switch(mode=self.start)) | {"mean": 0.0, "seen": 0, "switches": 0}
        channels, high, wide = self.task.shape
        first = self.sigmas or [self.sigma] * 6
        if self.augmentor == "vae":
            folder = self.vae
            self.new("vae", lambda: DiffusersVae(folder) if folder else ImageVae(channels, (high, wide), self.latents))
            with torch.no_grad():
                z = self.roles["vae"].module.eval().encode(torch.zeros(1, *self.task.shape))
            self.latent_shape = tuple(z.shape[1:])
        made: dict[str, Callable[[], nn.Module]] = {
            "affine": lambda: AffineAugmentor(first),
            "affine-net": AffineNet,
            "mix": lambda: PatchMixer(channels, self.patch),
            "vae": lambda: LatentShift(self.latent_shape[0], first[0]),
        }
        self.new("augmentor", made[self.augmentor])

    def stages(self) -> list[Stage]:
        """The VAE's training, once, and then the host's stages, in which the augmentor learns beside the student."""
        rate = 1e-2 if self.augmentor in ("affine", "vae") else 1e-3
        optim = Optim(lr=rate, optimizer="adam", schedule="constant")
        found: list[Stage] = []
        if self.augmentor == "vae" and self.vae is None:
            found.append(
                Stage(
                    "vae",
                    steps=2000,
                    data=self.task.teacher_train,
                    batch_size=64,
                    optim={"vae": Optim(lr=1e-3, optimizer="adam")},
                    step=self.vae_step,
                    remember=["hard", self.latents],
                    roles=["vae"],
                    judged=False,
                )
            )
        for stage in super().stages() if self.host is None else self.host.stages():
            if stage.items is None and "student" in stage.optim:
                self._mine[stage.name] = stage.step
                learners = {**stage.optim, "augmentor": optim} if self.learn else dict(stage.optim)
                stage = replace(stage, step=self.step, optim=learners)
            elif stage.items is None and stage.step is None and self.host is not None:
                stage = replace(stage, step=self.host.step)
            found.append(stage)
        return found

    def begin(self, ctx: Context) -> None:
        """As the host does."""
        if self.host is not None:
            self.host.begin(ctx)

    def rows(self) -> dict[str, Artifact]:
        """The host's."""
        return {} if self.host is None else self.host.rows()

    def artifact(self) -> Artifact:
        """The host's."""
        return self.network("student") if self.host is None else self.host.artifact()

    # ------------------------------------------------------------------------------------------------ steps
    def vae_step(self, batch: Batch, ctx: Context) -> Terms:
        """The VAE's own loss: squared error and a tenth of the divergence from N(0, 1)."""
        noise = ctx.draws.randn("vae", batch["item"], (math.prod(self.latent_shape),))
        error, kl = ctx.call("vae", batch["x"] * 2 - 1, noise)
        return Terms(reconstruction=Term(error, "vae"), prior=Term(kl, "vae", weight=0.1))

    def augment(self, batch: Batch, ctx: Context) -> Tensor:
        """Augmented images ``[N, C, H, W]``."""
        x = batch["x"]
        if self.augmentor == "mix":
            return ctx.call("augmentor", x, ctx.draws.permutation("hard", len(x)).to(x.device))
        if self.augmentor == "vae":
            z = ctx.call("vae", x * 2 - 1, by="encode", grad=False)
            noise = ctx.draws.randn("hard", batch["item"], self.latent_shape).to(z)
            back = ctx.call("vae", ctx.call("augmentor", z, noise), by="decode", grad=True)
            return ((back + 1) / 2).clamp(0, 1)
        noise = ctx.draws.randn("hard", batch["item"], (self.roles["augmentor"].module.noise,)).to(x)
        return ctx.call("augmentor", x, noise)

    def mode(self, ctx: Context) -> str:
        """Who learns in this step: ``augment`` or ``student``."""
        if not self.learn:
            return "student"
        if self.schedule == "ratio":
            return "augment" if ctx.step % (self.augment_steps + self.student_steps) < self.augment_steps else "student"
        return str(self._own["mode"])

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
        """One phase of the augmentor, or the phases of the host with the augmented images' term."""
        if self.mode(ctx) == "augment":
            yield self.against(batch, ctx)
            return
        inner = self._mine.get(ctx.stage) or (self.plain if self.host is None else self.host.step)
        made = inner(batch, ctx)
        if isinstance(made, Terms):
            made = iter([made])
        answer: Any = None
        added = False
        while True:
            try:
                found = made.send(answer) if hasattr(made, "send") else next(made)
            except StopIteration:
                return
            if isinstance(found, Terms) and not added and any("student" in t.to for t in found.values()):
                added = True
                self.agree(found, batch, ctx)
            answer = yield found

    def plain(self, batch: Batch, ctx: Context) -> Terms:
        """The terms on the images as they are, of no host."""
        student = ctx.signal("student", batch)
        ce = self.task.supervised(student, batch)
        ce.weight = 1 - self.alpha
        terms = Terms(ce=ce)
        if self.clean:
            z_t = ctx.signal("teacher", batch).logits
            terms["kl"] = Term(F.kl(student.logits, z_t, temperature=self.temperature), weight=self.alpha)
        return terms

    def agree(self, terms: Terms, batch: Batch, ctx: Context) -> None:
        """Add the augmented images' term; what the host has shown stays what add-ons see."""
        shown = dict(ctx.signals)
        with torch.no_grad():
            changed = {**batch, "x": self.augment(batch, ctx).detach()}
            z_t = ctx.signal("teacher", changed, grad=False).logits
        student = ctx.signal("student", changed)
        values = F.kl(student.logits, z_t, temperature=self.temperature)
        gap = values.detach()
        if self.target == "labels":
            term = self.task.supervised(student, changed)
            term.weight = self.alpha
        else:
            term = Term(values, weight=self.alpha)
        terms["hard"] = term
        terms.metrics["disagreement"] = (gap.sum(), float(len(gap)))
        ctx.signals.clear()
        ctx.signals.update(shown)

    def against(self, batch: Batch, ctx: Context) -> Terms:
        """The augmentor's term, with gradients through both networks to the images."""
        z_t = ctx.signal("teacher", batch, grad=False).logits
        with ctx.through("student"), ctx.through("teacher"):
            changed = {**batch, "x": self.augment(batch, ctx)}
            found = augmentor_loss(
                ctx.signal("student", changed, grad=True).logits,
                ctx.signal("teacher", changed, grad=True).logits,
                z_t,
                temperature=self.temperature,
                lambda_s=self.lambda_s,
                lambda_t=self.lambda_t,
                cap=self.cap,
            )
        ctx.signals.clear()  # add-ons are for the student's own steps
        gap = found.disagreement.detach()
        return Terms({"disagreement": (gap.sum(), float(len(gap)))}, augment=Term(found.loss, "augmentor"))

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        """Take the disagreement into the moving average, and decide who learns next."""
        if self.host is not None and self.mode(ctx) == "student":
            self.host.observe(seen, ctx)
        if "disagreement" not in seen:
            return
        own = self._own
        now = Switch(own["mode"], own["mean"] if own["seen"] else None, own["run"])
        then = switch_mode(
            now,
            float(seen["disagreement"]),
            l_min=self.l_min,
            l_max=self.l_max,
            decay=self.decay,
            max_augment_steps=self.max_augment_steps,
        )
        own.update(
            mode=then.mode, mean=then.mean, run=then.run, seen=1, switches=own["switches"] + (then.mode != now.mode)
        )

    # ------------------------------------------------------------------------------------------------ what is shown
    def measures(self) -> dict[str, float]:
        """The average disagreement, the switches, and the learned deviations."""
        found = {} if self.host is None else dict(self.host.measures())
        found |= {"disagreement_mean": float(self._own["mean"]), "switches": float(self._own["switches"])}
        if self.augmentor == "affine":
            sigma = self.roles["augmentor"].module.log_sigma.detach().exp().tolist()
            found |= {f"sigma_{n}": s for n, s in zip(("a11", "a12", "tx", "a21", "a22", "ty"), sigma, strict=True)}
        return found

    def extras(self) -> dict[str, Any]:
        """Training images above what the augmentor makes of them, for the report."""
        found = {} if self.host is None else dict(self.host.extras())
        data = self.task.train
        items = torch.arange(min(16, len(data)))
        x = data.fetch(items)["x"]
        if x.shape[1] not in (1, 3):
            return found
        net, draws = self.roles["augmentor"].module, Draws(self.setup.seed, ("hard", "shown"))
        device = next(net.parameters()).device
        x = x.to(device)
        with torch.no_grad():
            if self.augmentor == "mix":
                made = net(x, draws.permutation("hard", len(x)).to(device))
            elif self.augmentor == "vae":
                vae: Any = self.roles["vae"].module
                noise = draws.randn("hard", items, self.latent_shape).to(device)
                made = ((vae.decode(net(vae.encode(x * 2 - 1), noise)) + 1) / 2).clamp(0, 1)
            else:
                made = net(x, draws.randn("hard", items, (net.noise,)).to(device))
        rows = [v.clamp(0, 1).mul(255).round().long().tolist() for v in (x, made)]
        caption = "Upper row: training images; lower row: what the augmentation model makes of them after training."
        picture = {"title": "Learned augmentations", "caption": caption, "pixels": rows}
        return {**found, "pictures": [*found.get("pictures", []), picture]}
