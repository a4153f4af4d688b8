"""Matching of training trajectories: the memory and the time of a gradient through N inner steps.

``unrolled`` keeps the graph of all N steps, as MTT does. ``exact`` is the same gradient by the adjoint recursion, one
step's graph at a time; ``two-pass`` is TESLA's first-order gradient, which is another one. Memory is measured in a process
of its own for every line, time in interleaved rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Check, Report, Row, Say, cpu_seconds, interleave, peak_growth, quiet, ratios, spread
from limbeck.functional.matching import Trajectory, flat_parameters, flat_step_loss, syn_batches, trajectory_gradient
from limbeck.networks.convnet import ConvNet

MODES = {"unrolled": "unrolled", "exact": "exact", "two-pass": "first_order"}


@dataclass(frozen=True)
class Settings:
    """Sizes: a ConvNet of three blocks on 32x32 images in colour, 40 synthetic images, 20 in a step."""

    width: int = 32
    depth: int = 3
    size: int = 32
    images: int = 40
    batch: int = 20
    few: int = 5
    many: int = 50
    rounds: int = 5
    exact_steps: int = 20
    exact_width: int = 8


TOY = Settings(width=4, depth=1, size=8, images=6, batch=3, few=2, many=4, rounds=1, exact_steps=3, exact_width=4)


def problem(
    steps: int, width: int, depth: int, size: int, images: int, batch: int, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], Any]:
    """The arguments of ``trajectory_gradient``, and the network's loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet(3, 10, width, depth, im_size=size).to(dtype)
        x = torch.randn(images, 3, size, size, dtype=dtype)
        start = flat_parameters(net)
        target = start + 0.01 * torch.randn_like(start)
    draw = torch.Generator().manual_seed(1)
    batches = syn_batches(lambda k: torch.randperm(images, generator=draw), images, steps, batch)
    labels = torch.arange(images) % 10
    return {
        "start": start,
        "target": target,
        "images": x,
        "labels": labels,
        "batches": batches,
        "lr": 0.02,
    }, flat_step_loss(net)


def gradient(given: dict[str, Any], loss: Any, mode: str) -> Trajectory:
    """The loss and its gradients."""
    return trajectory_gradient(loss, mode=MODES[mode], **given)  # type: ignore[arg-type]


def memory_work(mode: str, steps: int, **sizes: int) -> Callable[[], Any]:
    """For ``peak_growth``: one gradient. A small one before warms the libraries up."""
    small: dict[str, Any] = {**sizes, "images": 2, "batch": 2}
    gradient(*problem(1, **small), mode)
    whole: dict[str, Any] = {**sizes}
    given, loss = problem(steps, **whole)
    return lambda: gradient(given, loss, mode)


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Memory, time and exactness."""
    settings = settings or Settings()
    report = Report("trajectory", "Gradient of a data set through a training trajectory", asdict(settings))
    sizes = {n: getattr(settings, n) for n in ("width", "depth", "size", "images", "batch")}
    few, many = settings.few, settings.many
    cells: dict[str, dict[str, Any]] = {mode: {} for mode in MODES}

    grown: dict[str, dict[int, float]] = {}
    for mode in MODES:
        for steps in (few, many):
            say(f"memory of {mode} at {steps} steps")
            mb = peak_growth("benchmarks.trajectory:memory_work", mode=mode, steps=steps, **sizes)
            grown.setdefault(mode, {})[steps] = mb
            cells[mode][f"MB, {steps} steps"] = mb
    report.raw["mb"] = grown
    for mode in ("exact", "two-pass"):
        more = grown[mode][many] / grown[mode][few]
        report.checks.append(Check(f"{mode}: memory at {many} steps over {few} steps", more, 1.2))

    given, loss = problem(many, **sizes)
    variants = {mode: lambda m=mode: cpu_seconds(lambda: gradient(given, loss, m)) for mode in MODES}
    raw = interleave(variants, settings.rounds, say)
    report.raw["seconds"] = raw
    for mode in MODES:
        cells[mode][f"seconds, {many} steps"] = statistics.median(raw[mode])
        cells[mode]["of unrolled"] = spread(ratios(raw, mode, "unrolled"))
        if mode != "unrolled":
            slower = statistics.median(ratios(raw, mode, "unrolled"))
            report.checks.append(Check(f"{mode}: time over unrolled at {many} steps", slower, 1.5))

    small = {**sizes, "width": settings.exact_width, "size": min(settings.size, 16)}
    given, loss = problem(settings.exact_steps, **small, dtype=torch.float64)
    found = {mode: gradient(given, loss, mode) for mode in MODES}
    truth = found["unrolled"]
    for mode, answer in found.items():
        off = max(_off(answer.grad_images, truth.grad_images), _off(answer.grad_lr, truth.grad_lr))
        cells[mode]["off, float64"] = off
        cells[mode]["cosine"] = float(
            torch.cosine_similarity(answer.grad_images.flatten(), truth.grad_images.flatten(), 0)
        )
    report.checks.append(
        Check("exact equals unrolled in float64, images and step size, relative", cells["exact"]["off, float64"], 1e-6)
    )
    report.rows = [Row(mode, cells[mode]) for mode in MODES]
    report.notes.append(
        f"'off' and 'cosine' compare with the unrolled gradient over {settings.exact_steps} steps of a smaller network"
    )
    return report


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


__all__ = ["TOY", "Settings", "memory_work", "run"]
