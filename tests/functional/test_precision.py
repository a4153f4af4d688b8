"""Nothing is cast to float64 where there is none."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from limbeck.cache import checksum, rounding
from limbeck.engine.batches import to_device
from limbeck.functional import diffusion, metrics, zca
from limbeck.functional.precision import widest
from tests.no_float64 import no_float64

F64 = torch.float64
Boxes = namedtuple("Boxes", "corners ids")


def test_the_device_of_these_tests_refuses_float64() -> None:
    with no_float64() as device:
        x = torch.ones(2, device=device)
        assert widest(device) == torch.float32 and x.cpu().double().dtype == F64
        for wrong in (
            lambda: x.double(),
            lambda: torch.ones(1, dtype=F64).to(device),
        ):
            with pytest.raises(TypeError, match="no float64"):
                wrong()
    assert widest(torch.device("cpu")) == F64 and widest(torch.device("mps")) == torch.float32


def wavy(z: Tensor, logsnr: Tensor) -> Tensor:
    return torch.tanh(z) * logsnr.reshape(-1, 1)


SCHEDULES = [
    diffusion.CosineSchedule(),
    diffusion.LinearSchedule(),
    diffusion.DiscreteSchedule.from_alphas_cumprod([0.9, 0.5, 0.1]),
]


def target(z: Tensor, schedule: diffusion.Schedule) -> Any:
    times = diffusion.halving_times(torch.zeros(3, dtype=torch.long, device=z.device), 2)
    return diffusion.two_step_target(wavy, z, times, schedule, "v")


DIFFUSION: dict[str, Callable[[Tensor, diffusion.Schedule], Any]] = {
    "ddim": lambda z, s: diffusion.ddim_sample(wavy, z, 2, s, "v"),
    "encode": lambda z, s: diffusion.encode(wavy, z, 2, s, "eps"),
    "stochastic": lambda z, s: diffusion.stochastic_sample(wavy, z, 2, s, "x", lambda j, shape: torch.ones_like(z)),
    "target": target,
    "embedding": lambda z, s: diffusion.guidance_embedding(z[:, 0], 8),
    "guided": lambda z, s: diffusion.guided_x(z, -z, z, s.logsnr(z[:, 0].abs()), "v", w=z[:, 1]),
    "errors": lambda z, s: diffusion.prediction_errors(diffusion.XEps(z, z), diffusion.XEps(z, -z), s.logsnr(z[:, 0])),
    "weight": lambda z, s: diffusion.loss_weight(s.logsnr(z[:, 0]), "snr_trunc"),
    "time": lambda z, s: s.time(z[:, 0]),
}


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_diffusion(name: str, schedule: diffusion.Schedule) -> None:
    with no_float64() as device:
        DIFFUSION[name](torch.randn(3, 4, device=device), schedule)


def test_metrics_and_whitening() -> None:
    with no_float64() as device:
        z, y = torch.randn(3, 4, device=device), torch.zeros(3, dtype=torch.long, device=device)
        for metric in (metrics.accuracy, metrics.negative_log_likelihood, metrics.brier):
            assert all(part.dtype == torch.float32 for part in metric(z, y))
        metrics.agreement(z, z)
        metrics.calibration_table(z, y)
        metrics.moments(z, where=y == 0)
        zca.ZCA(*(torch.ones(n, 4, device=device) for n in (1, 4, 4))).apply(z)


def test_batches_are_cast_before_they_are_moved() -> None:
    with no_float64() as device:
        x, y = torch.ones(2, 3, dtype=F64), torch.zeros(2, dtype=torch.long)
        got = to_device({"x": x, "y": y, "name": "as it was"}, device)
        assert got["x"].dtype == torch.float32 and got["x"].device == got["y"].device == device
        assert got["y"].dtype == torch.long and got["name"] == "as it was"
        nested = to_device({"parts": [x, {"deep": (x, 1)}], "boxes": Boxes(x, y)}, device)
        assert nested["parts"][0].device == nested["parts"][1]["deep"][0].device == nested["boxes"].ids.device == device
        assert nested["parts"][1]["deep"][1] == 1 and isinstance(nested["boxes"], Boxes)
    assert to_device({"x": x}, torch.device("cpu"))["x"] is x


def test_a_cache_takes_its_sums_on_the_cpu() -> None:
    with no_float64() as device:
        assert checksum({"x": torch.ones(2, 3, device=device)}).dtype == F64
    z = torch.tensor([[0.1, 2.7], [-3.3, 1.9]])
    p = z.double().softmax(1)
    want = (p * (p.log() - z.half().double().log_softmax(1))).sum().item()
    assert rounding(z) == pytest.approx(want, rel=1e-12) and want > 0


def test_sums_over_tokens() -> None:
    from limbeck.tasks.language import _judge

    g = torch.Generator().manual_seed(0)
    z, t, y = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g), torch.tensor([0, 1, 2, 3, 6])
    got, _ = _judge(z, y, t)
    log_q, p = z.double().log_softmax(1), t.double().softmax(1)
    assert got["cross_entropy"] == pytest.approx(-log_q[range(5), y].sum().item(), rel=1e-6)
    assert got["kl"] == pytest.approx((p * (p.log() - log_q)).sum().item(), rel=1e-5)
    assert got["accuracy"] == (z.argmax(1) == y).sum() and got["agreement"] == (z.argmax(1) == t.argmax(1)).sum()
    with no_float64() as device, pytest.raises(DataDependentOutputException):  # only reading is left, which it cannot
        _judge(torch.randn(5, 7, device=device), torch.zeros(5, dtype=torch.long, device=device), None)
