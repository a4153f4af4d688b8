"""Scenes: unseen photographs, or how many different real images the particles come near to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.evaluators.sampler import Sampler, write_grid
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Natural, settings
from limbeck.grammar.signal import device_of
from limbeck.grammar.task import Task
from limbeck.networks.scenes import particles_of
from limbeck.tasks.generation import sample_guided
from limbeck.tasks.sampler import reading
from limbeck.tasks.views import Views

NAMES = {"evaluator": {"scenes": "Scenes"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Shown(Artifact):
    """Images in the place of particles: real ones, or a teacher's samples.

    Args:
        pictures: [n, C, H, W] in [0, 1].
    """

    kind = "pictures"

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures


@settings
class Scenes(Evaluator):
    """Scenes from cameras that they were not made with.

    With photographs ``psnr`` and ``ssim``. With a diffusion teacher of images the particles are held against the real
    images of their class: ``energy`` (the energy distance between both sets: small where they look alike and differ from
    each other as much; noise does not please it), ``diversity`` (mean distance between particles over that between real
    images), ``distinct`` (the share of particles whose nearest real image is no other's), ``nearest`` (distance to it,
    over the distance of unseen real images to theirs), ``class_accuracy`` in the eyes of a small classifier. Rows:
    ``real`` images, as many; the ``teacher``'s own samples under the same guidance. Where a teacher is told texts, no real
    images are known: ``spread`` is the mean distance between particles, for each value.

    Args:
        metric: what decides.
        classifier: train the small classifier (remembered), to tell ``class_accuracy``.
        teacher_steps: of the teacher's samples (DDIM); 0 for none.
        judged: at most so many real images of the class are compared with.
    """

    metric: Literal["energy", "spread", "diversity", "distinct", "nearest", "psnr", "ssim"] = "energy"
    classifier: bool = True
    teacher_steps: Natural = 64
    judged: Count = 2048

    even = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.primary = self.metric
        self.higher_is_better = self.metric not in ("nearest", "energy")
        self.baseline = {"psnr": "flat", "ssim": "flat", "spread": "start"}.get(self.metric, "real")
        self.called = {"flat": "the mean photograph everywhere", "start": "the scene before it was trained"}
        self._sampler = Sampler()

    def accept(self, task: Task) -> None:
        """Scenes alone; a metric that can be told."""
        if not isinstance(task, Views):
            raise ConfigError("evaluator", f"scenes are no students of {type(task).__name__}", given="scenes")
        with_photos, wants = task.photos is not None, self.metric in ("psnr", "ssim")
        if with_photos != wants or (task.prompt is not None) != (self.metric == "spread"):
            raise ConfigError(
                "evaluator.metric",
                given=self.metric,
                expected="psnr or ssim with photographs; spread with a prompt; else energy, diversity, distinct or nearest",
            )

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of a scene, or of images.

        Raises:
            ConfigError: one particle is asked for its diversity.
        """
        task = _views(bench)
        if task.has_photos:
            if isinstance(artifact, Shown):
                return _against(artifact.pictures, task, split)
            assert isinstance(artifact, NetworkArtifact)
            return task.evaluate(artifact.built, getattr(task, split), device=bench.device)
        made = artifact.pictures if isinstance(artifact, Shown) else self.pictures(artifact, task, split)
        if len(made) == 1 and self.metric in ("diversity", "distinct"):
            raise ConfigError(
                "evaluator.metric",
                "one particle has no diversity",
                given=self.metric,
                expected="several: student.particles=16",
                remedy="or set evaluator.metric=energy",
            )
        if task.prompt is not None:
            flat = made.cpu().flatten(1)
            return {"spread": _spread(flat) / flat.shape[1] ** 0.5}
        real, unseen = self._real(task, "train"), self._real(task, "test")
        flat, known = made.cpu().flatten(1), real.flatten(1)
        far = torch.cdist(flat, known)
        near, which = far.min(1)
        usual = torch.cdist(unseen.flatten(1), known).min(1).values.mean()
        found = {
            "energy": 2 * float(far.mean()) - _spread(flat) - _spread(known),
            "nearest": float(near.mean() / usual),
        }
        if len(made) > 1:
            found = {
                "diversity": _spread(flat) / _spread(known),
                "distinct": len(which.unique()) / len(made),
                **found,
            }
        if self.classifier:
            net = self._sampler.features(task.pictures, bench.device)
            with torch.no_grad():
                guess = net(made.to(bench.device)).argmax(1)
            found["class_accuracy"] = float((guess == task.wanted).float().mean())
        return found

    def pictures(self, artifact: Artifact, task: Views, split: str) -> Tensor:
        """A image of each particle [n, C, H, W], from the first camera of the split."""
        assert isinstance(artifact, NetworkArtifact)
        module = artifact.built.module
        device = device_of(module)
        first = {k: v[:1].to(device) for k, v in getattr(task, split).fetch(torch.arange(1)).items()}
        count = particles_of(module)
        batch = {k: v.expand(count, *v.shape[1:]) for k, v in first.items()}
        was = module.training
        module.eval()
        with torch.no_grad():
            made: Tensor = task.feed(module, {**batch, "particle": torch.arange(count, device=device)})
        module.train(was)
        return made.clamp(0, 1)

    def _real(self, task: Views, split: str) -> Tensor:
        """Real images of the class."""
        data: Any = getattr(task.pictures, split)
        ids = (data.y == task.wanted).nonzero()[:, 0][: self.judged]
        found: Tensor = data.fetch(ids)["x"]
        return found

    def rows(self, bench: Bench) -> Rows:
        """Real images, and the teacher's own samples."""
        task = _views(bench)
        if task.has_photos:
            return {"flat": lambda: _flat(task)}
        if task.prompt is not None:
            return {}
        count = max(2, particles_of(bench.student.module))

        def real() -> Artifact:
            pictures = self._real(task, "test")
            order = Draws(bench.seed, ("scenes",)).permutation("real", len(pictures))
            return Shown(pictures[order[:count]])

        def samples() -> Artifact | None:
            teacher = bench.teacher
            if teacher is None or not self.teacher_steps or not isinstance(teacher.module, torch.nn.Module):
                return None
            scale = float(getattr(bench.method, "guidance_scale", 1.0))
            ids = torch.arange(count, device=bench.device)
            z = Draws(bench.seed, ("scenes",), bench.device).randn("z", ids, task.shape)
            labels = torch.full_like(ids, task.wanted)
            w = 0.0 if reading(teacher.module).null_condition is None else max(scale - 1.0, 0.0)
            return Shown(sample_guided(teacher.module, z, labels, w, self.teacher_steps, task.pictures.schedule))

        return {"teacher": samples, "real": real}

    def extras(self, artifact: Artifact, bench: Bench) -> dict[str, Any]:
        """``scenes.png`` in the run folder: the particles beside real images, or the first of them all around."""
        if bench.folder is None or not isinstance(artifact, NetworkArtifact):
            return {}
        task = _views(bench)
        module: Any = artifact.built.module
        rows: list[tuple[str, Tensor]] = []
        if task.has_photos:
            real = task.test.fetch(torch.arange(min(8, len(task.test))))["x"]
            rows += [("photographs", real), ("the scene", task.look(module, task.test)[: len(real)])]
        else:
            made = self.pictures(artifact, task, "test")[:16]
            rows.append(("particles", made))
            if task.prompt is None:
                rows.append(("real images", self._real(task, "test")[: len(made)]))
            if getattr(module, "cameras", True):
                turn = [
                    task.look(module, task.turntable(len(made) if len(made) > 1 else 8), p)
                    for p in range(min(4, len(made)))
                ]
                rows = [(f"particle {p}, all around", t) for p, t in enumerate(turn)]
        write_grid([x for _, x in rows], Path(bench.folder) / "scenes.png")
        return {"pictures": [{"file": "scenes.png", "title": "scenes", "rows": [t for t, _ in rows]}]}


def _views(bench: Bench) -> Views:
    assert isinstance(bench.task, Views)
    return bench.task


def _spread(flat: Tensor) -> float:
    """Mean distance between two different rows."""
    n = len(flat)
    return float(torch.cdist(flat, flat).sum() / max(1, n * (n - 1)))


def _flat(task: Views) -> Artifact:
    """The mean photograph everywhere."""
    train: Any = task.train
    return Shown(train.pictures.mean(0, keepdim=True))


def _against(pictures: Tensor, task: Views, split: str) -> dict[str, float]:
    from limbeck.functional import splatting

    data: Any = getattr(task, split)
    real = data.pictures
    made = pictures.expand_as(real)
    return {"psnr": float(splatting.psnr(made, real).mean()), "ssim": float(splatting.ssim_map(made, real).mean())}
