"""Adapters as views: the network stays as it is, the view learns, and peft opens what is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Context, Method, Setup, Term, Terms
from limbeck.networks.lora import Lora, LoraView
from tests.toy import CLASSES, WIDTH, bound, engine, learnt, network


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.q_proj, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
        self.mean_type = "eps"

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.q_proj(self.conv(x).mean((2, 3))).relu())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def moved(view: LoraView) -> LoraView:
    with torch.no_grad():
        for p in view.parameters():
            p.normal_(std=0.3)
    return view


def test_a_view_acts_and_the_network_does_not(net: Net) -> None:
    x, before = torch.randn(2, 3, 8, 8), {k: v.clone() for k, v in net.state_dict().items()}
    plain = net(x)
    view = Lora(rank=2).view(net)
    assert torch.equal(view(x), plain), "a fresh adapter changes nothing"
    moved(view)
    assert not torch.allclose(view(x), plain) and torch.equal(net(x), plain)
    assert net.state_dict().keys() == before.keys() and view.mean_type == "eps"
    assert sorted(view.state_dict()) == sorted(f"{s}.{n}" for s in ("down", "up") for n in ("conv", "out", "q_proj"))
    torch.testing.assert_close(view.merged()(x), view(x))
    assert torch.equal(net(x), plain) and not view.merged().conv._forward_hooks


def test_two_views_of_one_network(net: Net) -> None:
    x = torch.randn(2, 3, 8, 8)
    one, two = moved(Lora(rank=1).view(net)), moved(Lora(rank=3, targets="q_proj").view(net))
    assert two.names == ["q_proj"] and not torch.allclose(one(x), two(x))
    torch.testing.assert_close(two.merged()(x), two(x))
    assert Lora(targets=["q_proj", "conv"]).aims(net) == ["conv", "q_proj"]
    with pytest.raises(ConfigError, match="q_proj"):
        Lora(targets="k_proj").view(net)


def test_peft_opens_what_is_written(net: Net, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    x, view = torch.randn(2, 3, 8, 8), moved(Lora(rank=2, alpha=3.0).view(net))
    want = view(x)
    view.save(tmp_path)
    twin = Net()
    twin.load_state_dict(net.state_dict())
    opened = peft.PeftModel.from_pretrained(twin, str(tmp_path))
    torch.testing.assert_close(opened(x), want)


class Adapted(Method):
    """The student learns with the help of an adapter on the teacher's own module."""

    learners = ("student", "fake")

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.new("fake", like="teacher", adapter=Lora(rank=2))

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z, t, f = (ctx.signal(r, batch).logits for r in ("student", "teacher", "fake"))
        assert not t.requires_grad and f.requires_grad
        return Terms(kl=Term(F.kl(z, t)), fake=Term(F.cross_entropy(f, batch["y"]), to="fake"))


def test_a_copy_of_a_view_shares_the_network(net: Net) -> None:
    x = torch.randn(2, 3, 8, 8)
    one = moved(Lora(rank=2).view(net))
    two = copy.deepcopy(one)
    assert two.base is net and torch.equal(one(x), two(x))
    plain, before = net(x), one(x)
    moved(two)
    assert torch.equal(net(x), plain) and torch.equal(one(x), before) and not torch.allclose(two(x), before)
    torch.testing.assert_close(two.merged()(x), two(x))
    whole, view = copy.deepcopy((net, one))  # together: a view of the copy
    assert view.base is whole and whole is not net and torch.equal(view(x), before)
    with torch.no_grad():
        net.out.bias.add_(1.0)
    assert torch.equal(view(x), before) and not torch.equal(one(x), before)


class Averaged(Method):
    """An average of the student and of a view of the teacher, in one verb each."""

    learners = ("student", "fake")

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.new("mean", like="student", decay=0.5)
        self.new("fake", like="teacher", adapter=Lora(rank=2))
        self.new("slow", like="fake", decay=lambda step, total: step / (step + 1))
        self.seen: list[list[Tensor]] = []

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z, f = ctx.signal("student", batch).logits, ctx.signal("fake", batch).logits
        m, s = ctx.signal("mean", batch).logits, ctx.signal("slow", batch).logits
        assert not m.requires_grad and not s.requires_grad
        return Terms(a=Term(F.kl(z, s)), b=Term(F.kl(f, m), to="fake"))

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        self.seen.append([p.detach().clone() for p in self.roles["fake"].module.parameters()])


def test_averages_are_made_in_one_verb() -> None:
    method: Any = bound(Averaged(), steps=3)
    first = {n: [p.clone() for p in method.roles[n].module.parameters()] for n in ("student", "fake")}
    engine().run(method)
    mean, slow = method.roles["mean"], method.roles["slow"]
    assert mean.of == "student" and slow.of == "fake" and slow.module.base is method.roles["teacher"].module
    assert any(not torch.equal(a, b) for a, b in zip(mean.module.parameters(), first["student"], strict=True))
    for i, p in enumerate(slow.module.parameters()):  # decays 0, 1/2, 2/3: the plain mean of what it followed
        torch.testing.assert_close(p, torch.stack([s[i] for s in method.seen]).mean(0))
    with pytest.raises(ValueError, match="by a function, or like another"):
        method.new("bad", lambda: nn.Linear(1, 1), decay=0.9)
    with pytest.raises(ValueError, match="an average or a view"):
        method.new("bad", like="teacher", adapter=Lora(rank=1), decay=0.9)
    with pytest.raises(ConfigError, match="studnet"):
        method.new("bad", like="studnet", decay=0.9)


def test_an_adapter_is_a_role_on_a_frozen_teacher(tmp_path: Path) -> None:
    teacher = network(7, seed=1)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    whole: Any = bound(Adapted(), teacher=teacher)
    engine(tmp_path / "whole").run(whole)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    fake = whole.roles["fake"].module
    assert float(fake.up["0"].detach().abs().sum()) > 0 and len(fake.state_dict()) == 4
    x = torch.randn(3, WIDTH)
    assert torch.equal(teacher(x), whole.roles["teacher"].module(x)) and fake(x).shape == (3, CLASSES)
    assert not torch.allclose(fake(x), teacher(x))
    again: Any = bound(Adapted(), teacher=network(7, seed=1))
    engine(tmp_path / "again").run(again)
    ours, theirs = learnt(whole)["roles"]["fake"], learnt(again)["roles"]["fake"]
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
