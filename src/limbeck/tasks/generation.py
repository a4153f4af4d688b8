"""Making new samples of a class by diffusion: how a denoiser is trained, and how samplers are judged.

Pictures are [N, C, H, W] in [0, 1] outside and [-1, 1] where noise is added. ``z = alpha x + sigma eps``; the log-SNR
``lambda`` says how noisy z is (``limbeck.functional.diffusion``). How denoisers are spoken to is said in
``limbeck.tasks.sampler``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.data.items import Items
from limbeck.data.sources import Digits, Source
from limbeck.data.splits import Sizes, check_shares, sizes_of
from limbeck.engine import identity
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError, TeacherMismatch
from limbeck.functional import diffusion
from limbeck.functional.diffusion import Kind, Schedule, Weight
from limbeck.functional.metrics import frechet_distance, moments
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task
from limbeck.networks import FeatureNet
from limbeck.storage.store import remembered
from limbeck.storage.weights import fingerprint, load_strict
from limbeck.tasks.sampler import (
    SamplerArtifact,
    classifier_free,
    conditional,
    reading,
)
from limbeck.tasks.schedules import describe_schedule, make_schedule

if TYPE_CHECKING:
    from limbeck.engine.bench import Bench
    from limbeck.grammar.artifact import Artifact

Draw = Callable[[float, int, Tensor, Tensor], "tuple[Tensor, float] | None"]
"""(w, steps, z [N, C, H, W], labels [N]) -> samples in [0, 1] and network calls a sample, or ``None`` if it cannot."""


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


class Generation(Task):
    """New samples of a class, by a denoiser and a sampler.

    A teacher without a checkpoint is trained from scratch by the denoising loss, its class dropped now and then so that
    it can be guided. Samplers are judged for several guidance weights and numbers of steps: the Fréchet distance to
    unseen real pictures in a small classifier's features, the error to the many-step guided teacher from the same noise,
    the share of samples of the class that was asked for, network calls.

    Args:
        data: where the pictures come from; one class each.
        schedule: ``cosine`` (log-SNR clipped to +-20), ``linear`` (continuous), or the 1,000 steps of a diffusers
            scheduler: ``ddpm``, ``scaled-linear`` (Stable Diffusion), ``squaredcos``, or the folder or file of a
            ``scheduler_config.json``.
        zero_terminal_snr: rescale a diffusers schedule so that its last step is pure noise.
        weight: the denoising loss: ``constant`` (error of x), ``snr`` (of eps), ``snr_trunc`` (the larger of the two)
            or ``v_mse``.
        drop_condition: share of items whose class is replaced by the null condition while a teacher is trained.
        guidance: the guidance weights w at which samplers are judged (0 is plain conditional, scale = 1 + w).
        steps: the numbers of steps at which they are judged.
        samples: how many samples are judged at each.
        times_more: the teacher's own row takes this many times the student's steps.
        reference_steps: steps of the guided teacher whose endpoints are the reference.
        clip: clamp every predicted x to the data's range while sampling. It changes a guided teacher.
        valid_fraction: share of the training items set aside for choosing, where the source has no such split.
        test_fraction: share of the items set aside for judging, where the source has no test split.
        size: side length that pictures are brought to; ``null`` keeps theirs.
        eval_batch: samples at a time when judging.
    """

    primary = "endpoint_mse"
    higher_is_better = False
    onnx_names = ("z", "logsnr", "y", "w")
    judging = ("guidance", "steps", "samples", "times_more", "reference_steps", "clip", "eval_batch")

    def __init__(
        self,
        data: Source = Digits(),  # noqa: B008 (a description of where data lies; nothing is read)
        schedule: str = "cosine",
        zero_terminal_snr: bool = False,
        weight: Weight = "v_mse",
        drop_condition: float = 0.1,
        guidance: list[float] = [0.0, 1.0, 3.0],  # noqa: B006 (copied, never changed)
        steps: list[int] = [1, 2, 4, 8],  # noqa: B006 (copied, never changed)
        samples: int = 500,
        times_more: int = 16,
        reference_steps: int = 128,
        clip: bool = False,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.4,
        size: int | None = None,
        eval_batch: int = 500,
    ) -> None:
        if not 0 <= drop_condition < 1:
            raise ValueError("drop_condition must lie in [0, 1)")
        if not guidance or min(guidance) < 0:
            raise ValueError("guidance must hold weights of 0 or more (w = scale - 1)")
        if not steps or min(steps) < 1:
            raise ValueError("steps must hold numbers of 1 or more")
        for name, value, low in (
            ("samples", samples, 2),
            ("times_more", times_more, 1),
            ("reference_steps", reference_steps, 1),
            ("eval_batch", eval_batch, 1),
        ):
            if value < low:
                raise ValueError(f"{name} must be {low} or more")
        self.data, self.schedule_name, self.zero_terminal_snr = data, schedule, zero_terminal_snr
        self.weight: Weight = weight
        self.drop_condition = drop_condition
        self.guidance, self.steps, self.samples = sorted(set(guidance)), sorted(set(steps)), samples
        self.times_more, self.reference_steps, self.clip = times_more, reference_steps, clip
        self.eval_batch = eval_batch
        check_shares(valid_fraction, test_fraction, size)
        self.valid_fraction, self.test_fraction, self.size = valid_fraction, test_fraction, size
        self.notes: list[str] = []
        self.class_sizes: Sizes = {}
        self._schedule: Schedule | None = None
        self._features: dict[str, FeatureNet] = {}

    # -- data ---------------------------------------------------------------------------------------------------------

    @property
    def formats(self) -> tuple[str, ...]:
        """What a sampler can be exported as."""
        return SamplerArtifact.formats

    def load(self, seed: int | None = None) -> None:
        """Read and check the data and the schedule.

        Raises:
            DataError: no pictures, or fewer than two classes. ConfigError: the schedule cannot be read.
        """
        if self.labels is None:
            splits = self.data.divided("label", self.size, self.valid_fraction, self.test_fraction)
            if len(splits.train.shape) != 3:
                raise DataError("data", given=list(splits.train.shape), expected="pictures [channels, height, width]")
            assert splits.valid is not None and splits.test is not None
            self.train: Items = splits.train
            self.teacher_train: Items = splits.train
            self.valid: Items = splits.valid
            self.test: Items = splits.test
            self.labels, self.notes, self.class_sizes = list(splits.labels), list(splits.notes), sizes_of(splits)
        if self._schedule is None:
            self._schedule = make_schedule(self.schedule_name, self.zero_terminal_snr)
            diffusion.check_terminal_snr(self._schedule)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        if self._schedule is None:
            self.load()
        assert self._schedule is not None
        return self._schedule

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (channels, height, width)."""
        self.load()
        return self.train.shape

    @property
    def classes(self) -> int:
        """Number of classes, the null condition not counted."""
        self.load()
        return len(self.labels or [])

    def signed(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] as noise is added to them: [-1, 1]."""
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
        w = torch.full((len(x),), self.guidance[0])
        return {**batch, "z": diffusion.diffuse(x, eps, logsnr), "logsnr": logsnr, "w": w}

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
        """A batch as a denoiser takes it. Plain pictures are noised first, and lose their class now and then in training.

        ``batch``: either ``z``, ``logsnr``, ``y`` (and ``w``), or pictures ``x`` with ``y``, ``item`` and ``view``.
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
            raise DataError("batch", "the denoising loss needs pictures, and this batch holds noised ones only")
        predicted = diffusion.to_x_eps(out.sample, out.z, out.logsnr, out.mean_type)
        errors = diffusion.prediction_errors(predicted, diffusion.XEps(out.x, out.eps), out.logsnr)
        return Term(diffusion.select_error(errors, self.weight))

    def counts(self, batch: Batch) -> int:
        """Every item counts once."""
        return len(batch["item"])

    # -- judging a network --------------------------------------------------------------------------------------------

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

    # -- judging samplers ---------------------------------------------------------------------------------------------

    def teacher_metrics(self, bench: Bench) -> dict[str, float]:
        """The guided teacher at ``times_more`` times the student's steps."""
        return self.judge_sampler(lambda w, n, z, y: self._teacher(bench, w, n * self.times_more), bench)

    def alone(self, bench: Bench) -> dict[str, float]:
        """Without distillation: the guided teacher sampled by plain DDIM in the student's number of steps."""
        return self.judge_sampler(lambda w, n, z, y: self._teacher(bench, w, n), bench)

    def judge_sampler(self, draw: Draw, bench: Bench) -> dict[str, float]:
        """Metrics of a sampler for every guidance weight and number of steps, and their means.

        ``fid_w1_n4``: Fréchet distance at w = 1 in 4 steps; ``endpoint_mse_...``: mean squared distance (in [-1, 1]) to
        where the guided teacher arrives from the same noise in ``reference_steps``; ``class_accuracy_...``; ``calls_...``:
        network calls a sample. Without a suffix: the mean over what was judged. ``fid_floor``: real against real.
        """
        z, labels = self.probe(bench.device)
        net = self.features(bench.device)
        real = self._real(net, bench.device)
        found: dict[str, float] = {"fid_floor": real[1]}
        items: dict[str, Tensor] = {}
        rows: dict[str, list[float]] = {"fid": [], "endpoint_mse": [], "class_accuracy": [], "calls": []}
        for w in self.guidance:
            goal, _ = self._teacher(bench, w, self.reference_steps)
            for n in self.steps:
                made = draw(w, n, z, labels)
                if made is None:
                    continue
                x, calls = made
                errors = (self.signed(x) - self.signed(goal)).square().flatten(1).mean(1)
                items[f"endpoint_mse_w{w:g}_n{n}"] = errors
                values = {
                    "fid": self._fid(net, x, real[0]),
                    "endpoint_mse": float(errors.mean()),
                    "class_accuracy": self._right(net, x, labels),
                    "calls": calls,
                }
                for name, value in values.items():
                    rows[name].append(value)
                    found[f"{name}_w{w:g}_n{n}"] = value
        if not rows["fid"]:
            raise ConfigError(
                "task.steps",
                "the sampler can take none of these numbers of steps at these guidance weights",
                given={"steps": self.steps, "guidance": self.guidance},
                remedy="set task.steps and task.guidance to what the student is distilled for",
            )
        items["endpoint_mse"] = torch.stack(list(items.values())).mean(0)
        return Scores({name: sum(v) / len(v) for name, v in rows.items()} | found, items)

    def judge_stochastic(self, sampler: SamplerArtifact, steps: int, bench: Bench) -> dict[str, float]:
        """The stochastic sampler's Fréchet distance and class accuracy (it has no endpoint to be compared with)."""
        _, labels = self.probe(bench.device)
        net = self.features(bench.device)
        real, _ = self._real(net, bench.device)
        found = {}
        for w in self.guidance:
            if sampler.w_range[0] <= w <= sampler.w_range[1]:
                x = sampler.sample(len(labels), labels, w, steps, 0, "stochastic", batch=self.eval_batch)
                found[f"fid_stochastic_w{w:g}_n{steps}"] = self._fid(net, x, real)
                found[f"class_accuracy_stochastic_w{w:g}_n{steps}"] = self._right(net, x, labels)
        return found

    def probe(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Noise [n, C, H, W] and classes [n] that every sampler is judged with: the classes of the test split."""
        ids = torch.arange(self.samples, device=device)
        z = Draws(0, ("probe",), device).randn("z", ids, self.shape)
        y = self.test.y
        # an even stride through the test split: a split sorted by class still gives every class its share
        pick = (
            (torch.arange(self.samples) * len(y) // self.samples)
            if self.samples < len(y)
            else torch.arange(self.samples) % len(y)
        )
        return z, y[pick].to(device)

    def _fid(self, net: FeatureNet, x: Tensor, real: Tensor) -> float:
        with torch.no_grad():
            made = torch.cat([net.embed(part) for part in x.split(self.eval_batch)])
        return frechet_distance(moments(made.cpu()), moments(real.cpu()))

    def _right(self, net: FeatureNet, x: Tensor, labels: Tensor) -> float:
        with torch.no_grad():
            guess = torch.cat([net(part).argmax(1) for part in x.split(self.eval_batch)])
        return int((guess == labels).sum()) / len(labels)

    def _real(self, net: FeatureNet, device: torch.device) -> tuple[Tensor, float]:
        """Features of the test split, and the noise floor: as many training pictures as samples are judged."""

        def embed(data: Data, n: int) -> Tensor:
            ids = torch.arange(len(data))
            ids = ids if n >= len(data) else ids[:: max(1, len(data) // n)][:n]
            with torch.no_grad():
                return torch.cat([net.embed(data.fetch(part)["x"].to(device)) for part in ids.split(self.eval_batch)])

        real = embed(self.test, len(self.test))
        return real, frechet_distance(moments(embed(self.train, self.samples).cpu()), moments(real.cpu()))

    def features(self, device: torch.device | str = "cpu") -> FeatureNet:
        """The classifier whose features the Fréchet distance is taken in: trained on real pictures only, remembered."""
        from limbeck.engine.inner import fit

        key = str(device)
        if key not in self._features:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = FeatureNet(self.shape, self.classes)

            def loss(module: nn.Module, batch: Batch, _: Any) -> Tensor:
                return nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")

            def made() -> dict[str, Any]:
                optim = Optim(steps=600, batch_size=128, lr=3e-3)
                fit(net, self.teacher_train, loss, optim, seed=0, scope="features", device=device)
                return {"state": dict(net.state_dict())}

            parts = {"data": self.teacher_train.fingerprint, "shape": list(self.shape), "steps": 600}
            load_strict(net, remembered("features", parts, made)["state"], "the classifier of the Fréchet distance")
            self._features[key] = net.to(device).eval()
        return self._features[key]

    def _teacher(self, bench: Bench, w: float, steps: int) -> tuple[Tensor, float]:
        """Endpoints in [0, 1] of the guided teacher from the probe's noise, and its network calls. Remembered."""
        if bench.teacher is None:
            raise ConfigError("teacher", "samplers are judged against a teacher", remedy="set teacher=NAME")
        module = bench.teacher.module
        z, labels = self.probe(bench.device)

        def made() -> dict[str, Any]:
            return {"x": sample_guided(module, z, labels, w, steps, self.schedule, self.clip, self.eval_batch).cpu()}

        parts = {
            "teacher": identity.answers(module, bench.teacher.contract, bench.teacher.model),
            "reading": str(reading(module)),
            "schedule": describe_schedule(self.schedule),
            "probe": fingerprint([z.cpu(), labels.cpu()]),
            "w": w,
            "steps": steps,
            "clip": self.clip,
            "format": identity.FORMAT,
        }
        x = remembered("samples", parts, made)["x"].to(bench.device)
        return x, float(steps if w == 0 else 2 * steps)

    # -- participants -------------------------------------------------------------------------------------------------

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

    def extras(self, artifact: Artifact, bench: Bench) -> dict[str, Any]:
        """``samples.png`` in the run folder: rows of samples from the same noise, and what each row shows."""
        if not isinstance(artifact, SamplerArtifact) or bench.folder is None:
            return {}
        w = min(self.guidance, key=lambda g: abs(g - 1.0))
        z, labels = self.probe(bench.device)
        first = [int((labels == c).nonzero()[0]) for c in range(min(self.classes, 12)) if bool((labels == c).any())]
        pick = torch.tensor(first, device=bench.device)
        few = [n for n in sorted(self.steps, reverse=True) if artifact._has(n)]
        rows: list[tuple[str, Tensor]] = []
        if bench.teacher is not None:
            many = max(self.steps) * self.times_more
            for n in [many, *few]:
                rows.append((f"teacher, {n} steps", self._teacher(bench, w, n)[0][pick]))
        for n in few:
            made = artifact.sample(len(pick), labels[pick], w, n, z=z[pick])
            rows.append((f"student, {n} step{'s' if n > 1 else ''}", made))
        write_grid([x for _, x in rows], bench.folder / "samples.png")
        return {"pictures": [{"file": "samples.png", "title": f"samples at w = {w:g}", "rows": [t for t, _ in rows]}]}


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

    Returns:
        [N, C, H, W] in [0, 1].

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
    return ((torch.cat(parts) + 1.0) * 0.5).clamp(0.0, 1.0)


def write_grid(rows: Sequence[Tensor], path: Path, least: int = 320) -> None:
    """Rows of pictures [n, C, H, W] in [0, 1] as one PNG, enlarged to at least ``least`` pixels in width."""
    from PIL import Image

    gap = 1
    lines = []
    for row in rows:
        padded = nn.functional.pad(row.detach().float().cpu(), (gap, gap, gap, gap), value=1.0)
        lines.append(torch.cat(list(padded), 2))
    sheet = torch.cat(lines, 1)
    scale = max(1, -(-least // sheet.shape[2]))
    bytes_ = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    array = bytes_[:, :, :3].contiguous().numpy() if bytes_.shape[2] >= 3 else bytes_[:, :, 0].contiguous().numpy()
    picture = Image.fromarray(array)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
