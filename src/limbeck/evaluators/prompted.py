"""Samplers that are asked in words, where there are no pictures: held against the many-step teacher's own samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.evaluators.sampler import Sampler
from limbeck.functional.metrics import frechet_distance, moments
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.evaluator import Bench
from limbeck.grammar.random import Draws
from limbeck.tasks.generation import Generation, sample_guided

NAMES = {"evaluator": {"prompted": "Prompted"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Pooled(nn.Module):
    """Samples as their means over a grid: at most 256 numbers, with which a covariance can be estimated."""

    def embed(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D]."""
        side = max(1, min(x.shape[-1], math.isqrt(256 // x.shape[1])))
        return nn.functional.adaptive_avg_pool2d(x, side).flatten(1)


class Prompted(Sampler):
    """Samplers for prompts: ``fid`` is the Fréchet distance, over a grid of means, to the teacher's samples from other noise.

    ``fid_floor``: the teacher's own, from the noise that is evaluated. Rows and settings are those of `sampler`.
    """

    def probe(self, bench: Bench, split: str = "test") -> tuple[Tensor, Tensor]:
        """Noise [n, C, H, W] and embeddings [n, L, D] of the split's prompts, in turn."""
        task: Any = bench.task
        ids = torch.arange(self.samples)
        z = Draws(0, ("probe",), bench.device).randn("z", ids, task.shape)
        data = getattr(task, split)
        return z, data.fetch(ids % len(data))["y"].to(bench.device)

    def features(self, task: Generation, device: torch.device | str = "cpu") -> Any:
        """Means over a grid."""
        return Pooled()

    def _real(self, net: Any, bench: Bench, split: str) -> tuple[Tensor, float]:
        task: Any = bench.task
        assert bench.teacher is not None
        _, labels = self.probe(bench, split)
        ids = torch.arange(self.samples)
        z = Draws(0, ("other",), bench.device).randn("z", ids, task.shape)
        w, steps = max(self.guidance), self.reference_steps
        real = sample_guided(
            bench.teacher.module, z, labels, w, steps, task.schedule, task.clip, task.eval_batch, task.bounded
        )
        real = net.embed(real)
        own = net.embed(self.teacher(bench, w, steps, split)[0])
        return real, frechet_distance(moments(own.cpu()), moments(real.cpu()))

    def extras(self, artifact: Artifact, bench: Bench) -> dict[str, Any]:
        """Images, where samples are such: latents are not decoded."""
        task: Any = bench.task
        return super().extras(artifact, bench) if not task.latent and task.shape[0] in (1, 3) else {}


__all__ = ["Pooled", "Prompted"]
