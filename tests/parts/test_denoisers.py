"""Denoisers asked in one way: outputs of every kind read alike, guidance in one call, a fake score that follows, errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.functional import diffusion
from limbeck.grammar.role import Role
from limbeck.parts.denoisers import Denoiser, halvings, sampler, train_only
from limbeck.tasks.generation import Generation


class Flat(nn.Module):
    """A denoiser whose x is its own number, plus a step where there is a condition; says it in any kind of output."""

    def __init__(self, kind: str, null: int | None = 3, guided: bool = False) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.mean_type, self.null_condition, self.guided = kind, null, guided

    def forward(self, z: Tensor, logsnr: Tensor, c: Tensor, w: Tensor | None = None) -> Tensor:
        step = torch.where(c == 3, 0.0, 0.25) + (0.0 if w is None else w)
        x = (self.level + step).view(-1, 1, 1, 1).expand_as(z)
        alpha, sigma = (v.view(-1, 1, 1, 1).to(z.dtype) for v in diffusion.alpha_sigma(logsnr))
        return diffusion.from_x_eps(x, (z - alpha * x) / sigma, logsnr, self.mean_type)  # type: ignore[arg-type]


def made(module: nn.Module, free: bool = False, labels: Any = None) -> tuple[Denoiser, Any, list[int]]:
    """A denoiser, a context that calls it, and the rows of every call."""
    rows: list[int] = []
    roles = {"net": Role(module)}

    def call(role: str, z: Tensor, *more: Any, grad: bool | None = None) -> Tensor:
        rows.append(len(z))
        return roles[role].module(z, *more)

    built = {"net": SimpleNamespace(labels=labels)}
    method: Any = SimpleNamespace(roles=roles, setup=SimpleNamespace(built=built), task=SimpleNamespace(labels=["a"]))
    return Denoiser.of(method, "net", free=free), SimpleNamespace(call=call), rows


Z, LAM, C = torch.randn(4, 1, 2, 2), torch.tensor([-2.0, 0.0, 1.0, 3.0]), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("kind", ["x", "eps", "v"])
def test_every_kind_of_output_is_read_alike(kind: str) -> None:
    net, ctx, _ = made(Flat(kind))
    found = net.read(ctx, Z, LAM, C)
    assert torch.allclose(found.x[:, 0, 0, 0], torch.tensor([0.75, 0.75, 0.75, 0.5]), atol=1e-4)
    alpha, sigma = (v.view(-1, 1, 1, 1).float() for v in diffusion.alpha_sigma(LAM))
    assert torch.allclose(alpha * found.x + sigma * found.eps, Z, atol=1e-4)


@pytest.mark.parametrize("kind", ["x", "eps", "v"])
def test_guidance_is_one_call_of_twice_the_rows_and_the_same_in_both_forms(kind: str) -> None:
    net, ctx, rows = made(Flat(kind), free=True)
    w = torch.tensor([0.0, 1.0, 2.0, 2.0])
    found = net.read(ctx, Z, LAM, C, w)
    assert rows == [8]
    assert torch.allclose(found.x[:, 0, 0, 0], torch.tensor([0.75, 1.0, 1.25, 0.5]), atol=1e-4)
    out = net.predict(ctx, C, w)(Z, LAM)
    assert torch.allclose(diffusion.to_x_eps(out, Z, LAM, net.kind).x, found.x, atol=1e-4)


def test_a_guidance_input_is_told_and_is_zero_where_none_is_asked() -> None:
    net, ctx, _ = made(Flat("x", guided=True))
    assert torch.allclose(net.read(ctx, Z, LAM, C).x[:3], torch.full((3, 1, 2, 2), 0.75))
    assert torch.allclose(net.read(ctx, Z, LAM, C, torch.ones(4)).x[:3], torch.full((3, 1, 2, 2), 1.75))


def test_a_fake_score_follows_what_it_is_shown() -> None:
    module = Flat("eps")
    net, ctx, _ = made(module)
    x, eps = torch.full((4, 1, 2, 2), 0.25), torch.randn(4, 1, 2, 2)
    z = diffusion.diffuse(x, eps, LAM)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(50):
        loss = net.errors(ctx, z, LAM, torch.full((4,), 3), diffusion.XEps(x, eps))
        assert loss.shape == (4,)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert abs(float(module.level.detach()) - 0.25) < 1e-3


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"net\.null_condition"):
        made(Flat("x", null=None), free=True)
    with pytest.raises(ConfigError, match="already"):
        made(Flat("x", guided=True), free=True)
    with pytest.raises(ConfigError, match=r"net\.mean_type"):
        made(nn.Identity())
    with pytest.raises(TeacherMismatch, match="classes"):
        made(Flat("x"), labels=["b"])
    with pytest.raises(ConfigError, match=r"net\.guided=true"):
        made(Flat("x"))[0].takes((0.0, 2.0))
    with pytest.raises(ConfigError, match="no parameter"):
        train_only(Flat("x"), "^body")
    with pytest.raises(ValueError, match=r"start \(12\)|start must be end"):
        halvings("start", 12, "end", 1)
    assert halvings("start", 8, "end", 2) == [4, 2] and halvings("start", 2, "end", 2) == []


def test_one_network_is_a_sampler_of_one_step() -> None:
    task = Generation()
    task.load()
    module = Flat("x")
    built = SimpleNamespace(module=module, labels=None)
    method: Any = SimpleNamespace(
        roles={"slow": Role(module)},
        task=task,
        setup=SimpleNamespace(student=built),
    )
    found = sampler(method, {1: "slow"})
    assert list(found.students.steps) == [1] and found.students.steps[1] is module and found.w_range == (0.0, 0.0)
