from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import diffusion as D
from limbeck.networks import ResidualMLP


def small(**more: object) -> ResidualMLP:
    torch.manual_seed(0)
    net = ResidualMLP(**{"width": 16, "blocks": 2, "classes": 3, "size": 4, **more})  # type: ignore[arg-type]
    with torch.no_grad():
        for block in net.blocks:  # fresh blocks pass their input on: stir them
            block.down.weight.normal_(std=0.2)
    return net


def inputs(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 4, 4, generator=generator), torch.linspace(-15, 15, n), torch.arange(n) % 4


def test_the_default_has_the_size_of_the_miniature() -> None:
    assert 1.25e6 < sum(p.numel() for p in ResidualMLP().parameters()) < 1.35e6


@pytest.mark.parametrize("kind", D.KINDS)
def test_output_fits_its_kind(kind: D.Kind) -> None:
    z, lam, y = inputs()
    out = small(kind=kind)(z, lam, y)
    x, eps = D.to_x_eps(out, z, lam, kind)
    assert x.shape == eps.shape == z.shape


def test_every_input_matters() -> None:
    net, (z, lam, y) = small(), inputs()
    base = net(z, lam, y)
    for changed in (net(z + 0.1, lam, y), net(z, lam + 1.0, y), net(z, lam, (y + 1) % 4)):
        assert ((changed - base).flatten(1).abs().amax(1) > 1e-5).all()


def test_no_label_is_the_null_class() -> None:
    net, (z, lam, _) = small(), inputs()
    null = torch.full((4,), net.null_class)
    assert torch.equal(net(z, lam), net(z, lam, null))
    assert not torch.equal(net(z, lam), net(z, lam, torch.zeros(4, dtype=torch.long)))


def test_samples_do_not_see_each_other() -> None:
    net, (z, lam, y) = small(), inputs()
    torch.testing.assert_close(net(z, lam, y)[1:2], net(z[1:2], lam[1:2], y[1:2]))


def test_a_guided_student_starts_as_its_teacher() -> None:
    teacher, (z, lam, y) = small(), inputs()
    student = teacher.with_guidance()
    for w in (torch.zeros(4), torch.tensor([0.5, 1.0, 2.0, 4.0])):
        assert torch.equal(student(z, lam, y, w), teacher(z, lam, y))
    assert student.weight is not None and student.config == {**teacher.config, "guidance": True}
    student(z, lam, y, torch.ones(4)).square().sum().backward()
    assert student.weight.weight.grad is not None and student.weight.weight.grad.abs().sum() > 0
    with torch.no_grad():
        student.weight.weight.normal_()
    assert not torch.equal(student(z, lam, y, torch.zeros(4)), student(z, lam, y, torch.ones(4)))
    assert torch.equal(student.with_guidance()(z, lam, y, torch.ones(4)), student(z, lam, y, torch.ones(4)))
    before = teacher.read.weight.clone()
    with torch.no_grad():
        student.read.weight.add_(1.0)
    assert torch.equal(teacher.read.weight, before)


def test_config_is_json_and_weights_load_strictly() -> None:
    net, (z, lam, y) = small(kind="both", guidance=True, hidden=24), inputs()
    again = ResidualMLP(**json.loads(json.dumps(net.config)))
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(net.state_dict())), strict=True)
    assert torch.equal(net(z, lam, y, torch.ones(4)), again(z, lam, y, torch.ones(4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    net, (z, lam, y) = small().to(dtype), inputs()
    assert net(z.to(dtype), lam, y).dtype == dtype
    assert net.with_guidance().read.weight.dtype == dtype


def test_unconditional() -> None:
    net, (z, lam, y) = small(classes=0), inputs()
    assert net.null_class is None and not net.conditional and small().conditional
    assert torch.equal(net(z, lam), net(z, lam, y)), "classes are not looked at"


def test_it_learns_to_denoise() -> None:
    """Two point masses: the network must find the posterior mean, which a linear map cannot."""
    torch.manual_seed(0)
    net = ResidualMLP(width=24, blocks=1, classes=2, size=2, kind="x")
    x = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        pick = torch.randint(0, 2, (64,))
        lam = torch.empty(64).uniform_(-6, 6)
        z = D.diffuse(x[pick], torch.randn(64, 1, 2, 2), lam)
        loss = (net(z, lam, pick) - x[pick]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.02  # the label tells everything


def test_the_door() -> None:
    net, (z, lam, y) = small(), inputs()
    with pytest.raises(ConfigError, match="no guidance input"):
        net(z, lam, y, torch.ones(4))
    with pytest.raises(ConfigError, match="needs a guidance weight"):
        net.with_guidance()(z, lam, y)
    with pytest.raises(ShapeError, match=r"\[B, 1, 4, 4\]"):
        net(torch.zeros(2, 1, 8, 8), lam[:2], y[:2])
    with pytest.raises(ConfigError, match="parameterisation"):
        small(kind="score")
    with pytest.raises(ConfigError, match="width"):
        small(width=0)
    with pytest.raises(ConfigError, match="classes"):
        small(classes=-1)
