"""The Gaussian renderer by tiles beside the dense form, which lays every Gaussian over every pixel: forward and backward."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.harness import Check, Report, Row, Say, cpu_seconds, interleave, number, quiet, ratios, spread
from limbeck.functional import splatting


@dataclass(frozen=True)
class Settings:
    """Sizes: Gaussians and pixels along a side; the first pair is the promise's."""

    sizes: tuple[tuple[int, int], ...] = ((1_000, 64), (300, 32), (3_000, 64), (1_000, 128))
    dense_up_to: int = 5_000_000
    rounds: int = 7


TOY = Settings(sizes=((20, 16),), rounds=1)


def scene(count: int, side: int) -> dict[str, Any]:
    """A cloud of Gaussians that fills the image, its parameters with a graph."""
    g = torch.Generator().manual_seed(0)
    way = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    made = {
        "means": 0.5 * way * torch.rand(count, 1, generator=g) ** (1 / 3),
        "quats": torch.randn(count, 4, generator=g),
        "scales": torch.full((count, 3), 0.5 * (4.2 / count) ** (1 / 3) * 0.5),
        "opacities": torch.rand(count, generator=g) * 0.9,
        "colors": torch.rand(count, 3, generator=g),
    }
    view = splatting.look_at(torch.tensor([[1.3, 0.0, 0.3]]), torch.zeros(3))
    K = splatting.intrinsics(torch.tensor([50.0]), side, side)
    return {
        **{k: v.requires_grad_() for k, v in made.items()},
        "viewmats": view,
        "Ks": K,
        "width": side,
        "height": side,
    }


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """One camera, three colours, float32."""
    settings = settings or Settings()
    report = Report(
        "splatting", "Gaussians drawn by tiles and densely, forward and backward (CPU time)", asdict(settings)
    )
    for at, (count, side) in enumerate(settings.sizes):
        given = scene(count, side)

        def draw(dense: bool, given: dict[str, Any] = given) -> Callable[[], float]:
            def work() -> None:
                splatting.rasterization(**given, dense=dense, backend="torch")[0].sum().backward()

            return lambda: cpu_seconds(work)

        variants = {"tiles": draw(False)}
        if count * side * side <= settings.dense_up_to:
            variants["dense"] = draw(True)
        name = f"{count:,} Gaussians, {side}x{side}"
        raw = interleave(variants, settings.rounds, say)
        report.raw[name] = raw
        for who, seconds in raw.items():
            cells = {"ms": number(1000 * statistics.median(seconds))}
            if who == "tiles" and "dense" in raw:
                over = ratios(raw, "tiles", "dense")
                cells["of dense"] = spread(over)
                if at == 0:
                    report.checks.append(Check(f"tiles over dense, {name}", statistics.median(over), 0.5))
            report.rows.append(Row(f"limbeck's {who}, {name}", cells))
    return report
