"""A ready denoiser is tried on noised pictures: a misread output, or another noise schedule, is refused and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import TeacherMismatch
from limbeck.functional import diffusion
from limbeck.grammar.method import Built
from limbeck.grammar.task import Model
from limbeck.tasks.denoiser_check import ratios
from limbeck.tasks.generation import Generation
from limbeck.tasks.sampler import Reading
from limbeck.tasks.schedules import make_schedule


@pytest.fixture(scope="module")
def task() -> Generation:
    made = Generation()
    made.load(0)
    return made


class Nearest(nn.Module):
    """The best denoiser of the training images themselves: their mean, weighted by how likely each became z."""

    guided, null_condition = False, 10

    def __init__(self, task: Generation, kind: str, says: str) -> None:
        super().__init__()
        x = task.signed(task.teacher_train.fetch(torch.arange(len(task.teacher_train)))["x"])
        self.register_buffer("x", x.flatten(1))
        self.kind_, self.mean_type = kind, says

    def told(self, logsnr: Tensor) -> Tensor:
        return logsnr

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        alpha, sigma = (v.to(z) for v in diffusion.alpha_sigma(self.told(logsnr)[:, None]))
        far = torch.cdist(z.flatten(1) / alpha, self.x).square()
        x = ((-far * alpha.square() / sigma.square() / 2).softmax(1) @ self.x).view_as(z)
        alpha, sigma = (v.view(-1, 1, 1, 1).to(z) for v in diffusion.alpha_sigma(self.told(logsnr)))
        eps = (z - alpha * x) / sigma
        return {"x": x, "eps": eps, "v": alpha * eps - sigma * x}[self.kind_]


class Timed(Nearest):
    """Told a timestep of a schedule, like a network of diffusers."""

    def __init__(self, task: Generation, trained: str, told: str) -> None:
        super().__init__(task, "eps", "eps")
        self.trained, self.schedule = make_schedule(trained), make_schedule(told)

    def timestep(self, logsnr: Tensor) -> Tensor:
        return self.schedule.time(logsnr)

    def told(self, logsnr: Tensor) -> Tensor:
        return self.trained.logsnr(self.timestep(logsnr)).to(logsnr)


class Ready(Model):
    def __init__(self, check: Any = "on") -> None:
        self.check, self.role = check, "teacher"

    @property
    def trained(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["x", "eps", "v"])
def test_a_denoiser_is_read_as_it_says_or_refused(task: Generation, kind: Any) -> None:
    for says in ("x", "eps", "v"):
        made = Built(Nearest(task, kind, says), model=Ready())
        if says == kind:
            task.check_teacher(made)
            (note,) = made.notes
            assert "times that of a linear guess" in note and "weak" not in note
            continue
        with pytest.raises(TeacherMismatch) as caught:
            task.check_teacher(made)
        line = caught.value.line()
        assert f"read as {kind} it is" in line and f"set teacher.mean_type={kind}, or teacher.check=off" in line


def test_another_noise_schedule_is_found(task: Generation) -> None:
    made = Built(Timed(task, "cosine", "cosine"), model=Ready())
    task.check_teacher(made)
    assert len(made.notes) == 1
    with pytest.raises(TeacherMismatch, match=r"timesteps of the schedule linear it is.*set task\.schedule=linear"):
        task.check_teacher(Built(Timed(task, "linear", "cosine"), model=Ready()))


def test_who_knows_nothing_is_told(task: Generation) -> None:
    class Nothing(nn.Module):
        guided, null_condition, mean_type = False, 10, "v"

        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
            return torch.randn(z.shape, generator=torch.Generator().manual_seed(0))

    made = Built(Nothing(), model=Ready())
    task.check_teacher(made)
    assert "it is weak" in made.notes[0]
    off = Built(Nothing(), model=Ready(check="off"))
    task.check_teacher(off)
    assert off.notes == ["not tried on pictures: teacher.check is off"]


def test_the_linear_guess_is_the_mark(task: Generation) -> None:
    x = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.5, 1.0], [2.0, 0.1]])
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    class Wiener(nn.Module):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
            variance = x.var(0, correction=0)
            alpha, sigma = (v.view(-1, 1, 1, 1) for v in diffusion.alpha_sigma(logsnr))
            return x.mean(0) + alpha * variance / (alpha**2 * variance + sigma**2) * (z - alpha * x.mean(0))

    found = ratios(Wiener(), Reading("x", None, False), x, torch.zeros(len(x)), eps)
    assert found["x"] == pytest.approx(1.0, abs=0.03)
