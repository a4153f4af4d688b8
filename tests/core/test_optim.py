"""Optimisers: which form is taken, and that layouts never decide what is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.method import Batch, Context, Method, Terms
from limbeck.core.optim import Optim, lay_out
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
