"""Making new samples of a class by diffusion: how a denoiser is fed and trained.

Images are [N, C, H, W] in [0, 1] outside and [-1, 1] where noise is added. ``z = alpha x + sigma eps``; the log-SNR
``lambda`` says how noisy z is (``limbeck.functional.diffusion``). How denoisers are spoken to is said in
``limbeck.tasks.sampler``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.items import Items, Splits
from limbeck.data.sources import Digits, Source
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError, TeacherMismatch
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Kind, Schedule, Weight
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal
from limbeck.tasks.items import SourceTask
from limbeck.tasks.sampler import (
    SamplerArtifact,
    classifier_free,
    conditional,
    reading,
)
from limbeck.tasks.schedules import describe_schedule, make_schedule

NAMES = {"task": {"generation": "Generation"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@dataclass
class Prediction:
    """A denoiser's output with what is needed to read it.

    Attributes:
        sample: the raw output.
        mean_type: what it means.
        z, logsnr: what it was asked, [N, C, H, W] and [N].
        x, eps: the clean sample and the noise in z, where they are known.
    """

    sample: Tensor
    mean_type: Kind
    z: Tensor
    logsnr: Tensor
    x: Tensor | None = None
    eps: Tensor | None = None


class Generation(SourceTask):
    """New samples of a class, by a denoiser and a sampler.

    A teacher without a checkpoint is trained from scratch by the denoising loss, its class dropped now and then so that
    it can be guided. Samplers are scored by the recipe's ``evaluator``.

    Args:
        schedule: ``cosine`` (log-SNR clipped to +-20), ``linear`` (continuous), or the 1,000 steps of a diffusers
            scheduler: ``ddpm``, ``scaled-linear`` (Stable Diffusion), ``squaredcos``, or the folder or file of a
            ``scheduler_config.json``.
        zero_terminal_snr: rescale a diffusers schedule so that its last step is pure noise.
        weight: the denoising loss: ``constant`` (error of x), ``snr`` (of eps), ``snr_trunc`` (the larger of the two)
            or ``v_mse``.
        drop_condition: share of items whose class is replaced by the null condition while a teacher is trained.
        clip: clamp every predicted x to the data's range while sampling. It changes a guided teacher.
    """

    primary = "denoising_loss"
    higher_is_better = False
    onnx_names = ("z", "logsnr", "y", "w")
    judging = ("clip", "eval_batch")
    takes_unlabelled = False
    bounded = True

    def __init__(
        self,
        data: Source = Digits(),  # noqa: B008 (a description of where data lies; nothing is read)
        schedule: str = "cosine",
        zero_terminal_snr: bool = False,
        weight: Weight = "v_mse",
        drop_condition: float = 0.1,
        clip: bool = False,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.4,
        size: int | None = None,
        eval_batch: int = 500,
        deal: int = 0,
    ) -> None:
        # written out: the setting "schedule" has the name of the schedule that comes of it
        if not 0 <= drop_condition < 1:
            raise ValueError("drop_condition must lie in [0, 1)")
        super().__init__(data, valid_fraction, test_fraction, size, eval_batch, deal)
        self.schedule_name, self.zero_terminal_snr = schedule, zero_terminal_snr
        self.weight: Weight = weight
        self.drop_condition, self.clip = drop_condition, clip
        self._schedule: Schedule | None = None

    # -- data ---------------------------------------------------------------------------------------------------------

    @property
    def formats(self) -> tuple[str, ...]:
        """What a sampler can be exported as."""
        return SamplerArtifact.formats

    @property
    def needs(self) -> Needs:
        """A denoiser of the task's images that knows their classes."""
        return Needs(self.shape, self.classes, "denoiser", tuple(self.labels or ()), schedule=self.schedule)

    def load(self, seed: int | None = None) -> None:
        """Read and check the data and the schedule.

        Raises:
            DataError: no images, or fewer than two classes. ConfigError: the schedule cannot be read.
        """
        super().load(seed)
        if self._schedule is None:
            self._schedule = make_schedule(self.schedule_name, self.zero_terminal_snr)
            diffusion.check_terminal_snr(self._schedule)

    def check_splits(self, splits: Splits) -> None:
        """Refuse what are no images."""
        if len(splits.train.shape) != 3:
            raise DataError("data", given=list(splits.train.shape), expected="images [channels, height, width]")

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        if self._schedule is None:
            self.load()
        assert self._schedule is not None
        return self._schedule

    @property
    def classes(self) -> int:
        """Number of classes, the null condition not counted."""
        return self.outputs

    @property
    def conditions(self) -> Data:
        """What samples are asked for, without a picture: ``y`` of each training item."""
        return Conditions(self.train)

    def signed(self, x: Tensor) -> Tensor:
        """Images in [0, 1] as noise is added to them: [-1, 1]."""
        return x * 2.0 - 1.0

    def cache_bytes(self) -> float:
        """A denoiser's answers depend on fresh noise: nothing can be recorded once for each item."""
        return 0.0

    def example(self, n: int = 2) -> Batch:
        """A few training items, noised to the middle of the schedule, as a denoiser is fed."""
        batch = super().example(n)
        x = self.signed(batch["x"])
        logsnr = self.schedule.logsnr(torch.full((len(x),), 0.5)).float()
        eps = Draws(0, ("example",)).randn("eps", batch["item"], x.shape[1:])
        return {**batch, "z": diffusion.diffuse(x, eps, logsnr), "logsnr": logsnr, "w": torch.zeros(len(x))}

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """Noise goes in, and a class."""
        return {"kind": "noise", **contract.as_config()}

    def describe(self) -> dict[str, Any]:
        """What must be known to use a denoiser elsewhere: shape, range of values, schedule, classes."""
        return {
            "shape": list(self.shape),
            "range": [-1.0, 1.0],
            "schedule": describe_schedule(self.schedule),
            "classes": self.labels,
        }

    # -- training without a teacher -----------------------------------------------------------------------------------

    def noised(self, batch: Batch, stream: str = "denoise") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(x, eps, logsnr, z, drop) of a batch: a pure function of ``item`` and ``view``, fresh in every epoch.

        Shapes: x, eps, z [N, C, H, W]; logsnr [N]; drop [N], true where the class is to be dropped.
        """
        x = self.signed(batch["x"])
        draws, ids = Draws(0, (stream,), x.device), fresh_ids(batch)
        logsnr = self.schedule.logsnr(draws.rand("u", ids)).float()
        eps = draws.randn("eps", ids, x.shape[1:])
        drop = draws.rand("drop", ids) < self.drop_condition
        return x, eps, logsnr, diffusion.diffuse(x, eps, logsnr), drop

    def feed(self, module: Any, batch: Batch) -> Prediction:
        """A batch as a denoiser takes it. Plain images are noised first, and lose their class now and then in training.

        ``batch``: either ``z``, ``logsnr``, ``y`` (and ``w``), or images ``x`` with ``y``, ``item`` and ``view``.
        """
        said = reading(module)
        x = eps = None
        y = batch["y"]
        if "z" in batch:
            z, logsnr = batch["z"], batch["logsnr"]
        else:
            x, eps, logsnr, z, drop = self.noised(batch)
            if module.training and said.null_condition is not None:
                y = torch.where(drop, said.null_condition, y)
        args = [z, logsnr, y]
        if said.guided:
            args.append(batch["w"] if "w" in batch else torch.zeros_like(logsnr))
        return Prediction(module(*args), said.mean_type, z, logsnr, x, eps)

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """The denoising loss, one value an item (``weight`` says which error counts)."""
        out: Prediction = signal.out
        if out.x is None or out.eps is None:
            raise DataError("batch", "the denoising loss needs images, and this batch holds noised ones only")
        predicted = diffusion.to_x_eps(out.sample, out.z, out.logsnr, out.mean_type)
        errors = diffusion.prediction_errors(predicted, diffusion.XEps(out.x, out.eps), out.logsnr)
        return Term(diffusion.select_error(errors, self.weight))

    # -- evaluation a network --------------------------------------------------------------------------------------------

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> dict[str, float]:
        """``denoising_loss`` of a network on a split, with fixed noise; ``agreement_mse`` to a teacher's x."""
        if not isinstance(built.module, nn.Module):  # an exported graph does not say what its output means
            return {}
        device = device or next(built.module.parameters()).device
        was = built.module.training
        built.module.eval()
        totals = {"denoising_loss": 0.0} | ({"agreement_mse": 0.0} if teacher is not None else {})
        with torch.no_grad():
            for ids in torch.arange(len(data)).split(self.eval_batch):
                views = torch.full_like(ids, 1 << 20)
                batch = to_device({**data.fetch(ids), "item": ids, "view": views}, device)
                out = self.feed(built.module, batch)
                totals["denoising_loss"] += float(self.supervised(Signal(out), batch).values.sum())
                if teacher is not None:
                    other = self.feed(teacher.module, batch)
                    a, b = (diffusion.to_x_eps(p.sample, p.z, p.logsnr, p.mean_type).x for p in (out, other))
                    totals["agreement_mse"] += float((a - b).square().flatten(1).mean(1).sum())
        built.module.train(was)
        return {name: total / len(data) for name, total in totals.items()}

    # -- participants -------------------------------------------------------------------------------------------------

    def check_teacher(self, teacher: Built, device: torch.device | None = None) -> None:
        """Try a ready denoiser on noised pictures: whether its output is what it is taken to be."""
        from limbeck.tasks import denoiser_check

        model = teacher.model
        if model is None or not model.trained or not isinstance(teacher.module, nn.Module):
            return
        if model.check == "on":
            denoiser_check.check(self, teacher, device)
        else:
            teacher.notes.append(f"not tried on pictures: {model.setting('check')} is off")

    def match(self, student: Built, teacher: Built) -> None:
        """Both must make samples of the same shape and know the same classes."""
        reading(student.module, "student")
        reading(teacher.module, "teacher")
        if student.labels is not None and teacher.labels is not None and student.labels != teacher.labels:
            raise TeacherMismatch(
                "teacher",
                "its classes are not the student's",
                given=teacher.labels,
                expected=f"the classes {student.labels} in this order",
                remedy="train the teacher on this data, or name its classes in this order",
            )

    def _small(self) -> bool:
        return self.shape[-1] * self.shape[-2] <= 16 * 16

    def default_student(self) -> dict[str, Any]:
        """A residual MLP up to 16x16 pixels, a small UNet above; with an input for the guidance weight."""
        if self._small():
            return {"use": "denoiser", "guided": True}
        return {"use": "diffusers", "guidance": "auto"}

    def default_teacher(self) -> dict[str, Any]:
        """The same without that input."""
        if self._small():
            return {"use": "denoiser", "guided": False}
        return {"use": "diffusers", "guidance": "none"}

    def default_evaluator(self) -> dict[str, Any]:
        """Samplers, evaluated for several guidance weights and numbers of steps."""
        return {"use": "sampler"}


@dataclass(frozen=True)
class Conditions:
    """The classes of items, and nothing else of them."""

    items: Items

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, items: Tensor) -> Batch:
        """``y`` [n]."""
        return {"y": self.items.y[items]}

    @property
    def fingerprint(self) -> str:
        """Of their items."""
        return f"conditions-{self.items.fingerprint}"


# ---------------------------------------------------------------------------------------------------------- functions


def fresh_ids(batch: Batch) -> Tensor:
    """One id for each item and epoch, int64 [N]: draws keyed by it are new whenever an item comes round again."""
    ids: Tensor = batch["item"] + (batch["view"] << 40)
    return ids


def sample_guided(
    module: nn.Module,
    z: Tensor,
    labels: Tensor,
    w: float,
    steps: int,
    schedule: Schedule,
    clip: bool = False,
    batch: int = 256,
    bounded: bool = True,
) -> Tensor:
    """DDIM of a conditional denoiser under classifier-free guidance.

    Args:
        module: a denoiser.
        z: noise [N, C, H, W].
        labels: [N].
        w: guidance weight; 0 takes one call a step, anything else two.
        steps: number of steps.
        schedule: the noise schedule.
        clip: clamp every predicted (guided) x.
        batch: samples at a time.
        bounded: samples are images in [-1, 1], which are brought to [0, 1].

    Returns:
        [N, C, H, W] in [0, 1], where they are bounded.

    Raises:
        ConfigError: guidance without a null condition.
    """
    said = reading(module)
    if w != 0 and said.null_condition is None:
        raise ConfigError(
            "teacher.null_condition",
            "guidance needs the null condition's index, and the model has none",
            remedy="pass null_condition=INDEX to the model",
        )
    was = module.training
    module.eval()
    parts = []
    with torch.no_grad():
        for start, y in zip(z.split(batch), labels.split(batch), strict=True):
            weight = torch.full((len(y),), float(w), device=z.device)
            if w == 0 or said.null_condition is None:
                predict = conditional(module, y, weight * 0 if said.guided else None)
            else:
                predict = classifier_free(module, y, said.null_condition, weight)
            parts.append(diffusion.ddim_sample(predict, start, steps, schedule, said.mean_type, clip_x=clip))
    module.train(was)
    made = torch.cat(parts)
    return ((made + 1.0) * 0.5).clamp(0.0, 1.0) if bounded else made
