"""What a run of diffusion distillation makes: a sampler that takes few steps.

A denoiser is a module ``(z [N, C, H, W], logsnr [N], labels [N]) -> output``, and with a fourth argument ``w [N]`` where
it takes the guidance weight as an input. Three attributes say how it is spoken to: ``mean_type`` (or ``kind``: what its
output means), ``null_condition`` (or ``null_class``: the index that stands for 'no condition', or ``None``) and
``guided`` (or ``guidance``: whether it takes w).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt, ConfigError, ShapeError
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Kind, Predict, Schedule
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.random import Draws
from limbeck.storage.plain import read_json
from limbeck.tasks.schedules import describe_schedule, read_schedule

if TYPE_CHECKING:
    from limbeck.tasks.generation import Generation

Sampler = Literal["deterministic", "stochastic"]


# ------------------------------------------------------------------------------------------------- how denoisers speak


@dataclass(frozen=True)
class Reading:
    """How a denoiser is spoken to.

    Attributes:
        mean_type: what its output means.
        null_condition: the label that stands for 'no condition', or what a text encoder makes of no text [L, D];
            ``None`` when it has none.
        guided: whether it takes the guidance weight as a fourth argument.
        conditional: whether it heeds the condition at all (attribute ``conditional``; yes where it does not say).
    """

    mean_type: Kind
    null_condition: int | Tensor | None
    guided: bool
    conditional: bool = True


def reading(module: Any, role: str = "model") -> Reading:
    """The three facts about a denoiser, read from its attributes.

    Raises:
        ConfigError: the module does not say what its output means.
    """
    kind = getattr(module, "mean_type", getattr(module, "kind", None))
    if kind not in diffusion.KINDS:
        raise ConfigError(
            f"{role}.mean_type",
            f"{type(module).__name__} does not say what its output means",
            given=kind,
            expected=" or ".join(map(repr, diffusion.KINDS)),
            remedy="set the attribute mean_type on the module, or use denoiser or diffusers:FOLDER",
        )
    null = getattr(module, "null_condition", getattr(module, "null_class", None))
    if null is not None and not isinstance(null, Tensor):
        null = int(null)
    guided = bool(getattr(module, "guided", getattr(module, "guidance", False)))
    return Reading(kind, null, guided, bool(getattr(module, "conditional", True)))


def nothing(labels: Tensor, null: int | Tensor) -> Tensor:
    """The null condition in the place of every condition: of classes [N], or of embeddings [N, L, D].

    Raises:
        ShapeError: embeddings of another shape than that of no text.

    Example:
        >>> nothing(torch.tensor([3, 1]), 10).tolist()
        [10, 10]
    """
    if not isinstance(null, Tensor):
        return torch.full_like(labels, null)
    if labels.shape[1:] != null.shape:
        raise ShapeError("labels", given=list(labels.shape), expected=f"[N, {', '.join(map(str, null.shape))}]")
    return null.to(labels).expand_as(labels)


def null_said(null: int | Tensor | None) -> int | dict[str, list[int]] | None:
    """A null condition as a plain value: of an embedding, which lies beside the weights, its shape."""
    return {"shape": list(null.shape)} if isinstance(null, Tensor) else null


def conditional(call: Callable[..., Tensor], labels: Tensor, w: Tensor | None = None) -> Predict:
    """A denoiser with its condition, and its guidance weight where it takes one, closed over."""

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        logsnr = logsnr.expand(len(z))
        return call(z, logsnr, labels) if w is None else call(z, logsnr, labels, w)

    return predict


def classifier_free(call: Callable[..., Tensor], labels: Tensor, null: int | Tensor, w: Tensor) -> Predict:
    """The guided teacher as one prediction: both conditions in one batch of 2N rows, combined by their weights.

    At a given z every parameterisation is affine in x and the two weights sum to one, so guiding raw outputs guides x.
    """

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        logsnr = logsnr.expand(len(z))
        both = call(torch.cat([z, z]), torch.cat([logsnr, logsnr]), torch.cat([labels, nothing(labels, null)]))
        cond, uncond = both.chunk(2)
        return diffusion.guide(cond, uncond, w=w)

    return predict


# -------------------------------------------------------------------------------------------------------- the artifact


@dataclass
class Students:
    """The networks of a sampler.

    Attributes:
        steps: the deterministic student of each number of steps.
        stochastic: the student of the stochastic sampler of each number of steps.
        encoders: the student that goes from data to noise, by number of steps.
        many: the student with the most steps may take any number from this on, for it learnt the guided teacher at every
            time; ``None`` when every student is for its own number of steps alone.
    """

    steps: dict[int, nn.Module]
    stochastic: dict[int, nn.Module] = field(default_factory=dict)
    encoders: dict[int, nn.Module] = field(default_factory=dict)
    many: int | None = None


class SamplerArtifact(NetworkArtifact):
    """A distilled sampler: one network per number of steps, all taking the guidance weight.

    Args:
        task: what is generated; ``None`` for a sampler loaded from a folder.
        built: the student with the fewest steps (the network that is measured and exported).
        students: every student that was kept.
        schedule: the noise schedule.
        w_range: the guidance weights it was trained for (0 is plain conditional).
        shape: shape of one sample, (channels, height, width).
        labels: class names.
        clip: clamp every predicted x to the data's range while sampling.
        bounded: samples are images, from [-1, 1] brought to [0, 1]; off for latents, which are left as they are.

    Example:
        >>> sampler = SamplerArtifact.load("runs/guided-diffusion-seed0")  # doctest: +SKIP
        >>> images = sampler.sample(8, labels=[3] * 8, w=1.0, steps=2)  # doctest: +SKIP
    """

    kind: ClassVar[str] = "sampler"
    formats: tuple[str, ...] = ("safetensors", "onnx", "hub")

    def __init__(
        self,
        task: Generation | None,
        built: Built,
        students: Students,
        schedule: Schedule,
        w_range: tuple[float, float],
        shape: Sequence[int],
        labels: Sequence[str] | None = None,
        clip: bool = False,
        bounded: bool = True,
    ) -> None:
        super().__init__(task, built)  # type: ignore[arg-type]
        self.students, self.schedule = students, schedule
        self.w_range, self.shape, self.clip, self.bounded = w_range, tuple(shape), clip, bounded
        self.labels = list(labels or [])

    # -- which network ------------------------------------------------------------------------------------------------

    def student_for(self, steps: int, sampler: Sampler = "deterministic") -> nn.Module:
        """The network that was trained to sample in this many steps.

        Raises:
            ConfigError: none was; the numbers of steps that there are are named.
        """
        if steps < 1:
            raise ConfigError("steps", given=steps, expected="at least 1")
        if sampler not in ("deterministic", "stochastic"):
            raise ConfigError.unknown("sampler", sampler, ["deterministic", "stochastic"], "sampler")
        found = self.students.stochastic if sampler == "stochastic" else self.students.steps
        if steps in found:
            return found[steps]
        many = self.students.many
        open_end = sampler == "deterministic" and many is not None and bool(found)
        if open_end and steps >= (many or 1):
            return found[max(found)]
        known = ", ".join(map(str, sorted(found))) or "none"
        more = f", or {many} and more" if open_end else ""
        raise ConfigError(
            "steps",
            f"no {sampler} student of this run samples in so many steps",
            given=steps,
            expected=f"one of {known}{more}",
            remedy="distil with method.stochastic=[N]" if sampler == "stochastic" else "choose one of those",
        )

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(self.built.module.parameters()).device

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        labels: Tensor | Sequence[int] | int | None = None,
        w: float | Tensor = 0.0,
        steps: int | None = None,
        seed: int = 0,
        sampler: Sampler = "deterministic",
        *,
        z: Tensor | None = None,
        batch: int = 256,
    ) -> Tensor:
        """New samples.

        Args:
            n: how many.
            labels: the class of each [n], or one for all; ``None`` goes through the classes in turn. Of a sampler that is
                asked in words: embeddings of prompts [n, L, D], or of one for all [1, L, D].
            w: guidance weight (0 is plain conditional; the libraries' scale is 1 + w), a number or [n].
            steps: network calls a sample; the fewest there are when ``None``.
            seed: of the noise; the i-th sample of a seed is the same whatever n and batch are.
            sampler: ``deterministic`` (DDIM) or ``stochastic`` (a double step, then half of it back).
            z: the noise [n, C, H, W] to start from, instead of the seed's.
            batch: samples at a time.

        Returns:
            [n, C, H, W]; for images in [0, 1].

        Raises:
            ConfigError: no student for this number of steps; a class that does not exist; a negative weight.
        """
        steps = min(self.students.steps) if steps is None else steps
        module = self.student_for(steps, sampler)
        y, weight = self._condition(n, labels, w)
        draws = self._draws(seed)
        ids = torch.arange(n, device=self.device)
        if z is not None:
            z = self._fits(z, n, "z")

        def some(part: Tensor) -> Tensor:
            start = draws.randn("z", part, self.shape) if z is None else z[part]
            predict = self._predict(module, y[part], weight[part])
            kind = reading(module).mean_type
            if sampler == "stochastic":
                noise = self._noise(draws, part)
                return diffusion.stochastic_sample(predict, start, steps, self.schedule, kind, noise, clip_x=self.clip)
            return diffusion.ddim_sample(predict, start, steps, self.schedule, kind, clip_x=self.clip)

        return self._run(module, ids, batch, some)

    def variations(
        self,
        x: Tensor,
        labels: Tensor | Sequence[int] | int | None = None,
        w: float | Tensor = 0.0,
        steps: int | None = None,
        strength: float = 0.5,
        seed: int = 0,
        *,
        batch: int = 256,
    ) -> Tensor:
        """Image to image: noise is added to ``x`` up to a level, and the distilled sampler goes on from there.

        Args:
            x: images [n, C, H, W] in [0, 1].
            labels, w, seed, batch: see :meth:`sample`.
            steps: the sampler's steps over the whole way; ``round(strength * steps)`` of them are taken.
            strength: 0 to 1, how much noise: 1 forgets the image.

        Source: Meng et al. 2022 (SDEdit, arXiv 2108.01073); with the distilled sampler Meng et al. 2023, section 5.3.

        Raises:
            ConfigError: a strength that is no step of this sampler.
        """
        steps = max(self.students.steps) if steps is None else steps
        first = round(strength * steps)
        if not 0 < strength <= 1 or first < 1:
            raise ConfigError(
                "strength",
                f"with {steps} steps it must be one of {', '.join(f'{i / steps:g}' for i in range(1, steps + 1))}",
                given=strength,
            )
        module, x = self.student_for(steps), self._fits(x, len(x), "x")
        y, weight = self._condition(len(x), labels, w)
        draws = self._draws(seed)

        def some(part: Tensor) -> Tensor:
            level = self.schedule.logsnr(torch.full((len(part),), first / steps, device=self.device))
            z = diffusion.diffuse(self._signed(x[part]), draws.randn("z", part, self.shape), level).float()
            predict = self._predict(module, y[part], weight[part])
            kind = reading(module).mean_type
            return diffusion.ddim_sample(predict, z, steps, self.schedule, kind, clip_x=self.clip, first=first)

        return self._run(module, torch.arange(len(x), device=self.device), batch, some)

    def inpaint(
        self,
        x: Tensor,
        known: Tensor,
        labels: Tensor | Sequence[int] | int | None = None,
        w: float | Tensor = 0.0,
        steps: int | None = None,
        seed: int = 0,
        *,
        batch: int = 256,
    ) -> Tensor:
        """Fill in what is not known: before each call the known region of z is replaced by the noised image.

        Args:
            x: images [n, C, H, W] in [0, 1].
            known: true where ``x`` is to be kept, broadcastable to [n, C, H, W].
            labels, w, steps, seed, batch: see :meth:`sample`; more steps join the regions better.

        Source: Meng et al. 2023, section 5.3 (the replacement); the kept region is returned unchanged.
        """
        steps = max(self.students.steps) if steps is None else steps
        module, x = self.student_for(steps), self._fits(x, len(x), "x")
        keep = known.to(self.device).bool().expand(x.shape)
        y, weight = self._condition(len(x), labels, w)
        draws = self._draws(seed)

        def some(part: Tensor) -> Tensor:
            clean, mask = self._signed(x[part]), keep[part]
            noise = draws.randn("known", part, self.shape)

            def constrain(z: Tensor, logsnr: Tensor) -> Tensor:
                return torch.where(mask, diffusion.diffuse(clean, noise, logsnr).to(z.dtype), z)

            made = diffusion.ddim_sample(
                self._predict(module, y[part], weight[part]),
                draws.randn("z", part, self.shape),
                steps,
                self.schedule,
                reading(module).mean_type,
                clip_x=self.clip,
                constrain=constrain,
            )
            return torch.where(mask, clean, made)

        return self._run(module, torch.arange(len(x), device=self.device), batch, some)

    def restyle(
        self,
        x: Tensor,
        labels: Tensor | Sequence[int] | int,
        to: Tensor | Sequence[int] | int,
        w: float | Tensor = 0.0,
        steps: int | None = None,
        *,
        batch: int = 256,
    ) -> Tensor:
        """Style transfer: encode ``x`` under its own class without guidance, decode the noise under another.

        Args:
            x: images [n, C, H, W] in [0, 1].
            labels: their classes; ``to``: the classes to arrive at.
            w: guidance of the decoding.
            steps: of encoder and decoder each. The encoder distilled for that number is used where there is one
                (``method.encoder_steps``), else the student of that many steps, run backwards.

        Source: Meng et al. 2023, sections 3.4 and 5.3.
        """
        steps = max(self.students.encoders or self.students.steps) if steps is None else steps
        decoder = self.student_for(steps)
        encoder = self.students.encoders.get(steps, decoder)
        x = self._fits(x, len(x), "x")
        own, nothing = self._condition(len(x), labels, max(0.0, self.w_range[0]))
        other, weight = self._condition(len(x), to, w)

        def some(part: Tensor) -> Tensor:
            z = diffusion.encode(
                self._predict(encoder, own[part], nothing[part]),
                self._signed(x[part]),
                steps,
                self.schedule,
                reading(encoder).mean_type,
            )
            predict = self._predict(decoder, other[part], weight[part])
            kind = reading(decoder).mean_type
            return diffusion.ddim_sample(predict, z.float(), steps, self.schedule, kind, clip_x=self.clip)

        return self._run(decoder, torch.arange(len(x), device=self.device), batch, some)

    def _run(self, module: nn.Module, ids: Tensor, batch: int, some: Callable[[Tensor], Tensor]) -> Tensor:
        was = module.training
        module.eval()
        try:
            with torch.no_grad():
                made = torch.cat([some(part) for part in ids.split(batch)]) if len(ids) else torch.empty(0, *self.shape)
        finally:
            module.train(was)
        return self._unsigned(made)

    def _predict(self, module: nn.Module, labels: Tensor, w: Tensor) -> Predict:
        return conditional(module, labels, w if reading(module).guided else None)

    def _condition(self, n: int, labels: Any, w: float | Tensor) -> tuple[Tensor, Tensor]:
        if n < 1:
            raise ConfigError("n", given=n, expected="at least one sample")
        count, null = len(self.labels), reading(self.built.module).null_condition
        if isinstance(null, Tensor):
            y = labels if isinstance(labels, Tensor) else torch.empty(0)
            if y.ndim != 3 or y.shape[1:] != null.shape or len(y) not in (1, n):
                expected = f"embeddings of prompts, a tensor [{n}, {', '.join(map(str, null.shape))}]"
                raise ConfigError("labels", given=list(y.shape), expected=expected)
            y, count = y.expand(n, *null.shape), 0
        elif labels is None:
            y = torch.arange(n) % max(1, count)
        else:
            y = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
            y = y.expand(n) if len(y) == 1 else y
        if len(y) != n:
            raise ConfigError("labels", f"{len(y)} labels for {n} samples", expected="one, or one a sample")
        if count and bool(((y < 0) | (y >= count)).any()):
            raise ConfigError("labels", given=y.tolist(), expected=f"class ids from 0 to {count - 1}")
        weight = torch.as_tensor(w, dtype=torch.float32).reshape(-1)
        if len(weight) not in (1, n):
            raise ConfigError("w", f"{len(weight)} guidance weights for {n} samples", expected="one, or one a sample")
        diffusion.check_guidance(weight, *self.w_range)
        return y.to(self.device), weight.expand(n).to(self.device)

    def _fits(self, x: Tensor, n: int, name: str) -> Tensor:
        if tuple(x.shape) != (n, *self.shape):
            raise ConfigError(name, given=tuple(x.shape), expected=f"[{n}, {', '.join(map(str, self.shape))}]")
        return x.to(self.device, torch.float32)

    def _draws(self, seed: int) -> Draws:
        return Draws(seed, ("sample",), self.device)

    def _noise(self, draws: Draws, part: Tensor) -> Callable[[int, torch.Size], Tensor]:
        return lambda j, shape: draws.randn(f"noise{j}", part, tuple(shape[1:]))

    def _signed(self, x: Tensor) -> Tensor:
        return x * 2.0 - 1.0 if self.bounded else x

    def _unsigned(self, x: Tensor) -> Tensor:
        return ((x + 1.0) * 0.5).clamp(0.0, 1.0) if self.bounded else x

    # -- keeping ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """The student with the fewest steps in its native format, the others under ``rounds/``, and ``sampler.json``.

        ``sampler.json`` says how to sample: schedule, what the output means, which network takes how many steps, the
        range of w, the classes. Nothing in the folder needs limbeck to be read where the network is a library's.
        """
        from limbeck.storage.store import atomic_write

        super().save(folder)
        model = self.built.model
        where: dict[str, dict[str, str]] = {"steps": {}, "stochastic": {}, "encoders": {}}
        for name, group in where.items():
            for steps, module in sorted(getattr(self.students, name).items()):
                if module is self.built.module:
                    group[str(steps)] = "."
                    continue
                place = f"rounds/{name}-{steps}"
                (folder / place).mkdir(parents=True, exist_ok=True)
                model.save(module, folder / place, self.labels)
                group[str(steps)] = place
        said = reading(self.built.module)
        about: dict[str, Any] = {
            "format": 1,
            "schedule": describe_schedule(self.schedule),
            "mean_type": said.mean_type,
            "null_condition": null_said(said.null_condition),
            "guided": said.guided,
            "w": {"convention": "w, where 0 is plain conditional and scale = 1 + w", "range": list(self.w_range)},
            "shape": list(self.shape),
            "range": [-1.0, 1.0] if self.bounded else None,
            "clip": self.clip,
            "labels": self.labels,
            "students": where,
            "many": self.students.many,
            "model": {"name": type(model).__name__, **model.describe(self.built.module)},
        }
        atomic_write(folder / "sampler.json", json.dumps(about, indent=2).encode())

    @classmethod
    def load(cls, folder: str | Path) -> SamplerArtifact:
        """A saved sampler, ready to sample.

        Raises:
            CheckpointCorrupt: ``sampler.json`` is missing or does not say what it should; weights that do not fit.
        """
        from limbeck.models.denoiser import opener

        folder = Path(folder)
        try:
            about = read_json(folder / "sampler.json")
            schedule = read_schedule(about["schedule"])
            opened = {
                name: {int(n): opener(about)(folder / place, about) for n, place in about["students"][name].items()}
                for name in ("steps", "stochastic", "encoders")
            }
            students = Students(**opened, many=about["many"])
            last = students.steps[min(students.steps)]
            w_low, w_high = about["w"]["range"]
            return cls(
                None,
                Built(last, labels=about["labels"]),
                students,
                schedule,
                (float(w_low), float(w_high)),
                about["shape"],
                about["labels"],
                bool(about["clip"]),
                about["range"] is not None,
            )
        except FileNotFoundError as error:
            raise CheckpointCorrupt(
                str(error.filename or folder), "a sampler's folder holds sampler.json and its networks; this is missing"
            ) from None
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointCorrupt(str(folder / "sampler.json"), f"it does not describe a sampler: {error}") from None

    def takes(self, steps: int) -> bool:
        """Whether there is a student that samples in so many steps."""
        try:
            self.student_for(steps)
        except ConfigError:
            return False
        return True

    def state(self) -> dict[str, Any]:
        """Every network, by its kind and number of steps."""
        groups = {n: getattr(self.students, n) for n in ("steps", "stochastic", "encoders")}
        return {n: {str(k): m for k, m in group.items()} for n, group in groups.items()}

    def draw(self, w: float, steps: int, z: Tensor, labels: Tensor, batch: int = 256) -> tuple[Tensor, float] | None:
        """Samples [N, C, H, W] in [0, 1] from noise z, and network calls a sample; ``None`` where it takes no such w or steps."""
        if not self.takes(steps) or not self.w_range[0] <= w <= self.w_range[1]:
            return None
        return self.sample(len(z), labels, w, steps, z=z, batch=batch), float(steps)
