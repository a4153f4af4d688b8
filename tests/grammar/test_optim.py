"""Optimisers: which form is taken, and that layouts never decide what is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.checkpoints import optimiser_state, restore_optimiser
from limbeck.grammar.method import Batch, Context, Method, Terms
from limbeck.grammar.optim import Optim, lay_out, set_rate
from tests.toy import bound, engine


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_the_fused_form_is_taken_and_learns_the_same(name: str) -> None:
    built = []
    for options in ({}, {"foreach": True}, {"fused": True}):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(8, 2))
        opt = Optim(optimizer=name, lr=0.01, weight_decay=0.1, options=options).build(net.parameters())
        for _ in range(4):
            opt.zero_grad()
            net(torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)).square().sum().backward()
            opt.step()
        built.append((bool(opt.defaults.get("fused")), [p.detach() for p in net.parameters()]))
    assert [fused for fused, _ in built] == [True, False, True]
    for _, params in built[1:]:
        for a, b in zip(built[0][1], params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_a_parameter_may_get_its_first_gradient_later_than_others(name: str) -> None:
    learnt = []
    for options in ({}, {"foreach": True}):
        params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()))]
        opt = Optim(optimizer=name, lr=0.1, weight_decay=0.1, options=options).build(params)
        for step in range(4):
            params[0].grad = torch.arange(3.0) + step
            params[1].grad = torch.tensor(0.5) if step > 1 else None
            opt.step()
        learnt.append(params)
    for a, b in zip(*learnt, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_damped_momentum_begins_as_torch_says() -> None:
    p = nn.Parameter(torch.zeros(()))
    opt = Optim(optimizer="sgd", lr=1.0, momentum=0.5, options={"dampening": 0.5}).build([p])
    assert not opt.defaults["fused"]
    p.grad = torch.ones(())
    opt.step()
    assert p.item() == -1.0, "the first gradient is not damped"


def test_a_parameter_with_gaps_in_memory_is_updated_where_it_lies() -> None:
    """The fused kernels would walk over the gaps."""
    whole = torch.arange(32.0).reshape(4, 8)
    before = whole.clone()
    p = nn.Parameter(whole[:, ::2])
    opt = Optim(optimizer="sgd", lr=1.0, momentum=0.0).build([p])
    p.grad = torch.arange(16.0).reshape(4, 4)
    opt.step()
    assert torch.equal(whole[:, ::2], before[:, ::2] - torch.arange(16.0).reshape(4, 4))
    assert torch.equal(whole[:, 1::2], before[:, 1::2])


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adafactor"])
@pytest.mark.parametrize("waits", [True, False])
def test_restored_state_is_where_torch_makes_it(optimizer: str, waits: bool) -> None:
    """Counters wait on the CPU, except of fused and capturable optimisers; all else goes with its parameter."""
    here, there = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3, device="meta"))
    opt = Optim(optimizer=optimizer, options={"foreach": True}).build([here])
    here.grad = torch.ones(2, 3)
    opt.step()
    other = Optim(optimizer=optimizer, options={"foreach": True}).build([there])
    other.defaults[
        "fused"
    ] = not waits  # a fused optimiser refuses to be built for the device that stands for a GPU here
    restore_optimiser(other, optimiser_state(opt))
    assert other.state[there]
    for name, value in other.state[there].items():
        assert value.device.type == ("cpu" if name == "step" and waits else "meta"), name


@pytest.mark.parametrize("what", ["half the devices", "integers", "a subclass"])
def test_what_has_no_fused_form_takes_the_other(what: str) -> None:
    class Other(nn.Parameter):
        pass

    params: list[Any] = {
        "half the devices": [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))],
        "integers": [nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)],
        "a subclass": [Other(torch.zeros(2))],
    }[what]
    assert not Optim(optimizer="adamw").build(params).defaults["fused"]
    assert not Optim(optimizer="rmsprop").build([nn.Parameter(torch.zeros(2))]).defaults.get("fused")


def test_a_gradient_takes_its_parameters_layout() -> None:
    p = nn.Parameter(torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last))
    g = torch.randn(3, 4, 2, 2)
    laid = lay_out(p, g)
    assert laid.stride() == p.stride() and torch.equal(laid, g) and not laid.requires_grad
    assert lay_out(p, laid) is laid
    one = nn.Parameter(torch.randn(3, 4, 1, 1).contiguous(memory_format=torch.channels_last))
    same = torch.randn(3, 4, 1, 1)
    assert lay_out(one, same) is same, "a side of length one has no layout"


def test_a_foreign_layout_does_not_change_what_is_learnt() -> None:
    """torch's fused optimisers walk gradients in memory order: where autograd is overruled, the engine copies."""

    class Turned(Method):
        turn = False

        def step(self, batch: Batch, ctx: Context) -> Terms:
            return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))

    def learn(turn: bool) -> dict[str, Tensor]:
        method = bound(Turned(), steps=5, optimizer="adamw")
        first: nn.Linear = method.roles["student"].module[0]

        def hook(p: Tensor) -> None:
            assert p.grad is not None
            p.grad = p.grad.t().contiguous().t()

        if turn:
            first.weight.register_post_accumulate_grad_hook(hook)
        engine().run(method)
        return dict(method.roles["student"].module.state_dict())

    plain, turned = learn(False), learn(True)
    for name in plain:
        torch.testing.assert_close(plain[name], turned[name], rtol=1e-6, atol=1e-7)


def test_weight_decay_moves_along_a_cosine_but_for_groups_of_their_own() -> None:
    net = nn.Linear(2, 2)
    optim = Optim(
        optimizer="sgd",
        lr=1.0,
        momentum=0,
        weight_decay=0.1,
        weight_decay_end=0.5,
        groups={"bias": {"weight_decay": 0.0}},
    )
    assert [optim.decay(step, 4) for step in (0, 2, 4, 9)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert Optim(weight_decay=0.1).decay(3, 4) is None
    opt = optim.build(dict(net.named_parameters()))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    set_rate(opt, 1.0, optim.decay(2, 4))
    opt.step()
    torch.testing.assert_close(net.weight.detach(), 0.7 * before["weight"])
    assert torch.equal(net.bias, before["bias"])
    with pytest.raises(ValueError, match="weight_decay_end"):
        Optim(weight_decay_end=-1.0)


def test_gradients_are_clipped_together_or_each_by_itself() -> None:
    def grads() -> list[torch.Tensor]:
        return [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4]), torch.tensor([[0.0, 12.0]])]

    together, each, never = grads(), grads(), grads()
    Optim(clip=1.0).shorten(together, torch.tensor(13.01))
    torch.testing.assert_close(torch.cat([g.flatten() for g in together]).norm(), torch.tensor(1.0), atol=1e-3, rtol=0)
    Optim(clip=1.0, clip_by="parameter").shorten(each, torch.tensor(13.01))
    assert [float(g.norm()) for g in each] == pytest.approx([1.0, 0.5, 1.0], abs=1e-5)
    Optim().shorten(never, torch.tensor(13.01))
    assert all(torch.equal(a, b) for a, b in zip(never, grads(), strict=True))
