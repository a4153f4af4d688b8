"""Samplers evaluated for several guidance weights and numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from annotated_types import Ge
from torch import Tensor, nn

from limbeck.engine import identity
from limbeck.engine.inner import fit
from limbeck.errors import ConfigError, nearest
from limbeck.functional.metrics import frechet_distance, moments
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows
from limbeck.grammar.method import Batch, Data
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, NonEmpty, NonNegative, settings
from limbeck.grammar.task import Task
from limbeck.networks import FeatureNet
from limbeck.storage.memory import need
from limbeck.storage.store import remembered
from limbeck.storage.weights import fingerprint, load_strict
from limbeck.tasks.generation import Generation, sample_guided
from limbeck.tasks.sampler import SamplerArtifact, reading
from limbeck.tasks.schedules import describe_schedule

NAMES = {"evaluator": {"sampler": "Sampler"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@runtime_checkable
class Drawable(Protocol):
    """An artifact that samples can be drawn from."""

    def draw(self, w: float, steps: int, z: Tensor, labels: Tensor, batch: int = 256) -> tuple[Tensor, float] | None:
        """Samples in [0, 1] from noise z [N, C, H, W], and network calls a sample; ``None`` where it cannot."""


@settings
class Sampler(Evaluator):
    """Samplers at several guidance weights and numbers of steps, all from the same noise.

    Told are the Fréchet distance to unseen real images in a small classifier's features, the error to where the
    many-step guided teacher arrives, the share of samples of the class that was asked for, and network calls. Rows: the
    guided teacher in ``times_more`` times as many steps (``teacher``), and in just as many (``ddim``).

    Args:
        guidance: the guidance weights w at which samplers are evaluated (0 is plain conditional, scale = 1 + w).
        steps: the numbers of steps at which they are evaluated.
        samples: how many samples are evaluated at each.
        metric: what decides: ``endpoint_mse``, ``fid`` or ``class_accuracy``; or one of them at a weight and a number of
            steps that are evaluated (``fid_w1_n4``).
        times_more: the teacher's own row takes this many times the student's steps.
        reference_steps: steps of the guided teacher whose endpoints are the reference.
    """

    primary = "endpoint_mse"
    higher_is_better = False
    baseline = "ddim"
    even = False

    guidance: Annotated[list[NonNegative], NonEmpty] = [0.0, 1.0, 3.0]  # noqa: RUF012 (copied, never changed)
    steps: Annotated[list[Count], NonEmpty] = [1, 2, 4, 8]  # noqa: RUF012 (copied, never changed)
    samples: Annotated[int, Ge(2)] = 500
    times_more: Count = 16
    reference_steps: Count = 128
    metric: str = "endpoint_mse"

    def validate(self) -> None:
        """What decides is evaluated."""
        cells = [f"_w{w:g}_n{n}" for w in self.guidance for n in self.steps]
        known = [f"{name}{cell}" for name in ("endpoint_mse", "fid", "class_accuracy") for cell in ("", *cells)]
        if self.metric not in known:
            close = nearest(self.metric, known)
            raise ValueError(
                f"metric {self.metric!r} is not evaluated; "
                + (f"did you mean {close[0]}? " if close else "")
                + f"known: {', '.join(known[:40])}"
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.primary = self.metric
        self.higher_is_better = self.metric.startswith("class_accuracy")
        self.guidance, self.steps = sorted(set(self.guidance)), sorted(set(self.steps))
        self._features: dict[str, FeatureNet] = {}

    def rows(self, bench: Bench) -> Rows:
        """``teacher`` in many steps, and ``ddim``: the guided teacher without distillation in the student's steps."""
        if bench.teacher is None:
            return {}
        return {
            "teacher": lambda: GuidedTeacher(self, bench, self.times_more),
            "ddim": lambda: GuidedTeacher(self, bench),
        }

    def accept(self, task: Task) -> None:
        """Refuse more samples than there is memory for."""
        if isinstance(task, Generation):
            count = 8 * self.samples * math.prod(task.train.shape)  # noise and image
            need(count, "evaluator.samples", f"{self.samples:,} samples to be evaluated", "lower evaluator.samples")

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of a sampler for every guidance weight and number of steps, and their means.

        Of an unconditional teacher no class accuracy is told.

        ``fid_w1_n4``: Fréchet distance at w = 1 in 4 steps; ``endpoint_mse_...``: mean squared distance (in [-1, 1]) to
        where the guided teacher arrives from the same noise in ``reference_steps``; ``class_accuracy_...``; ``calls_...``:
        network calls a sample. Without a suffix: the mean over what was evaluated. ``fid_floor``: real against real.

        Raises:
            ConfigError: the sampler takes none of these steps and weights; there is no teacher.
        """
        if not isinstance(artifact, Drawable):
            raise TypeError(f"samplers are evaluated by what they draw, and this is a {artifact.kind}")
        task = _generation(bench)
        z, labels = self.probe(bench, split)
        net = self.features(task, bench.device)
        real, floor = self._real(net, bench, split)
        classes = bool(task.labels) and (bench.teacher is None or reading(bench.teacher.module, "teacher").conditional)
        found: dict[str, float] = {"fid_floor": floor}
        items: dict[str, Tensor] = {}
        cells: dict[str, list[float]] = {"fid": [], "endpoint_mse": [], "class_accuracy": [], "calls": []}
        for w in self.guidance:
            goal, _ = self.teacher(bench, w, self.reference_steps, split)
            for n in self.steps:
                made = artifact.draw(w, n, z, labels, task.eval_batch)
                if made is None:
                    continue
                x, calls = made
                errors = (task.signed(x) - task.signed(goal)).square().flatten(1).mean(1)
                items[f"endpoint_mse_w{w:g}_n{n}"] = errors
                values = {
                    "fid": _fid(net, x, real, task.eval_batch),
                    "endpoint_mse": float(errors.mean()),
                    "calls": calls,
                }
                if classes:
                    values["class_accuracy"] = _right(net, x, labels, task.eval_batch)
                for name, value in values.items():
                    cells[name].append(value)
                    found[f"{name}_w{w:g}_n{n}"] = value
        if not cells["fid"]:
            raise ConfigError(
                "evaluator.steps",
                "the sampler can take none of these numbers of steps at these guidance weights",
                given={"steps": self.steps, "guidance": self.guidance},
                remedy="set evaluator.steps and evaluator.guidance to what the student is distilled for",
            )
        if isinstance(artifact, SamplerArtifact):
            for n in sorted(artifact.students.stochastic):
                found.update(self._stochastic(artifact, n, bench, split))
        items["endpoint_mse"] = torch.stack(list(items.values())).mean(0)
        return Scores({name: sum(v) / len(v) for name, v in cells.items() if v} | found, items)

    def _stochastic(self, sampler: SamplerArtifact, steps: int, bench: Bench, split: str) -> dict[str, float]:
        """The stochastic sampler's Fréchet distance and class accuracy (it has no endpoint to be compared with)."""
        task = _generation(bench)
        _, labels = self.probe(bench, split)
        net = self.features(task, bench.device)
        real, _ = self._real(net, bench, split)
        found = {}
        for w in self.guidance:
            if sampler.w_range[0] <= w <= sampler.w_range[1]:
                x = sampler.sample(len(labels), labels, w, steps, 0, "stochastic", batch=task.eval_batch)
                found[f"fid_stochastic_w{w:g}_n{steps}"] = _fid(net, x, real, task.eval_batch)
                found[f"class_accuracy_stochastic_w{w:g}_n{steps}"] = _right(net, x, labels, task.eval_batch)
        return found

    def probe(self, bench: Bench, split: str = "test") -> tuple[Tensor, Tensor]:
        """Noise [n, C, H, W] and classes [n] that every sampler is evaluated with: the classes of the split."""
        task = _generation(bench)
        ids = torch.arange(self.samples, device=bench.device)
        z = Draws(0, ("probe",), bench.device).randn("z", ids, task.shape)
        y: Tensor = getattr(task, split).y
        # an even stride through the split: one sorted by class still gives every class its share
        pick = (
            (torch.arange(self.samples) * len(y) // self.samples)
            if self.samples < len(y)
            else torch.arange(self.samples) % len(y)
        )
        return z, y[pick].to(bench.device)

    def _real(self, net: FeatureNet, bench: Bench, split: str) -> tuple[Tensor, float]:
        """Features of the split, and the noise floor: as many training images as samples are evaluated."""
        task = _generation(bench)

        def embed(data: Data, n: int) -> Tensor:
            ids = torch.arange(len(data))
            ids = ids if n >= len(data) else ids[:: max(1, len(data) // n)][:n]
            with torch.no_grad():
                return torch.cat(
                    [net.embed(data.fetch(part)["x"].to(bench.device)) for part in ids.split(task.eval_batch)]
                )

        data: Data = getattr(task, split)
        real = embed(data, len(data))
        return real, frechet_distance(moments(embed(task.train, self.samples).cpu()), moments(real.cpu()))

    def features(self, task: Generation, device: torch.device | str = "cpu") -> FeatureNet:
        """The classifier whose features the Fréchet distance is taken in: trained on real images only, remembered."""
        key = str(device)
        if key not in self._features:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = FeatureNet(task.shape, task.classes)

            def loss(module: nn.Module, batch: Batch, _: Any) -> Tensor:
                return nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")

            def made() -> dict[str, Any]:
                optim = Optim(steps=600, batch_size=128, lr=3e-3)
                fit(net, task.teacher_train, loss, optim, seed=0, scope="features", device=device)
                return {"state": dict(net.state_dict())}

            parts = {"data": task.teacher_train.fingerprint, "shape": list(task.shape), "steps": 600}
            load_strict(net, remembered("features", parts, made)["state"], "the classifier of the Fréchet distance")
            self._features[key] = net.to(device).eval()
        return self._features[key]

    def teacher(self, bench: Bench, w: float, steps: int, split: str = "test") -> tuple[Tensor, float]:
        """Endpoints in [0, 1] of the guided teacher from the probe's noise, and its network calls. Remembered.

        Raises:
            ConfigError: there is no teacher.
        """
        if bench.teacher is None:
            raise ConfigError("teacher", "samplers are evaluated against a teacher", remedy="set teacher=NAME")
        task, module = _generation(bench), bench.teacher.module
        z, labels = self.probe(bench, split)

        def made() -> dict[str, Any]:
            return {
                "x": sample_guided(
                    module, z, labels, w, steps, task.schedule, task.clip, task.eval_batch, task.bounded
                ).cpu()
            }

        parts = {
            "teacher": identity.answers(module, bench.teacher.contract, bench.teacher.model),
            "format": identity.FORMAT,
            "reading": str(reading(module)),
            "schedule": describe_schedule(task.schedule),
            "probe": fingerprint([z.cpu(), labels.cpu()]),
            "w": w,
            "steps": steps,
            "clip": task.clip,
        }
        x = remembered("samples", parts, made)["x"].to(bench.device)
        return x, float(steps if w == 0 else 2 * steps)

    def extras(self, artifact: Artifact, bench: Bench) -> dict[str, Any]:
        """``samples.png`` in the run folder: rows of samples from the same noise, and what each row shows."""
        if not isinstance(artifact, Drawable) or bench.folder is None:
            return {}
        task = _generation(bench)
        w = min(self.guidance, key=lambda g: abs(g - 1.0))
        z, labels = self.probe(bench)
        first = [int((labels == c).nonzero()[0]) for c in range(min(task.classes, 12)) if bool((labels == c).any())]
        pick = torch.tensor(first, device=bench.device)
        drawn = {n: artifact.draw(w, n, z[pick], labels[pick]) for n in sorted(self.steps, reverse=True)}
        own = {n: made[0] for n, made in drawn.items() if made is not None}
        rows: list[tuple[str, Tensor]] = []
        if bench.teacher is not None:
            for n in [max(self.steps) * self.times_more, *own]:
                rows.append((f"teacher, {n} step{'s' if n > 1 else ''}", self.teacher(bench, w, n)[0][pick]))
        rows += [(f"student, {n} step{'s' if n > 1 else ''}", x) for n, x in own.items()]
        write_grid([x for _, x in rows], bench.folder / "samples.png")
        return {"pictures": [{"file": "samples.png", "title": f"samples at w = {w:g}", "rows": [t for t, _ in rows]}]}


class GuidedTeacher(Artifact):
    """The guided teacher as a sampler, from the evaluator's own noise.

    Args:
        evaluator, bench: whose noise, and whose teacher.
        times: it takes so many times the steps that it is asked for.
    """

    kind = "sampler"

    def __init__(self, evaluator: Sampler, bench: Bench, times: int = 1) -> None:
        self.evaluator, self.bench, self.times = evaluator, bench, times

    def draw(self, w: float, steps: int, z: Tensor, labels: Tensor, batch: int = 256) -> tuple[Tensor, float] | None:
        """Its remembered endpoints from that noise."""
        return self.evaluator.teacher(self.bench, w, steps * self.times)


def _generation(bench: Bench) -> Generation:
    if not isinstance(bench.task, Generation):
        raise ConfigError("evaluator", f"samplers are no students of {type(bench.task).__name__}", given="sampler")
    return bench.task


def _fid(net: FeatureNet, x: Tensor, real: Tensor, batch: int) -> float:
    with torch.no_grad():
        made = torch.cat([net.embed(part) for part in x.split(batch)])
    return frechet_distance(moments(made.cpu()), moments(real.cpu()))


def _right(net: FeatureNet, x: Tensor, labels: Tensor, batch: int) -> float:
    with torch.no_grad():
        guess = torch.cat([net(part).argmax(1) for part in x.split(batch)])
    return int((guess == labels).sum()) / len(labels)


def write_grid(rows: Sequence[Tensor], path: Path, least: int = 320) -> None:
    """Rows of images [n, C, H, W] in [0, 1] as one PNG, enlarged to at least ``least`` pixels in width."""
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
