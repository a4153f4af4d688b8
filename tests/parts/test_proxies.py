"""Untrained networks: their weights, what is read of them, and each distance against a plain computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import ConfigError
from limbeck.functional.relation import channel_correlation, classifier_gradient
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.networks.cifar_resnet import CifarResNet
from limbeck.parts.proxies import Reader, Shown, distance, initialise


class Pictures:
    """The little that a reader asks of a task."""

    def example(self, n: int) -> dict[str, Any]:
        return {"x": torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n)), "y": torch.arange(n) % 3}

    def feed(self, module: Any, batch: Any) -> Any:
        return module(batch["x"])


TASK: Any = Pictures()


def built(seed: int = 0, blocks: tuple[int, int, int] = (1, 1, 1), **contract: Any) -> Built:
    torch.manual_seed(seed)
    return Built(CifarResNet(classes=3, channels=1, width=4, blocks=blocks), Contract(**contract))


def read(seed: int = 0, blocks: tuple[int, int, int] = (1, 1, 1), wanted: tuple[str, ...] = ()) -> Shown:
    reader = Reader(built(seed, blocks), TASK, "student")
    torch.manual_seed(seed)
    initialise(reader.module)
    return reader.read(TASK.example(6), wanted)


def test_first_weights_are_standard_normal_and_norms_idle() -> None:
    net = CifarResNet(classes=100, width=32, blocks=(1, 1, 1))
    for p in net.parameters():
        p.data.fill_(3.0)
    net(torch.rand(4, 3, 8, 8))  # statistics that must not stay
    initialise(net)
    weights = torch.cat([m.weight.flatten() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))])
    assert abs(float(weights.detach().mean())) < 0.01 and abs(float(weights.detach().std()) - 1) < 0.01
    assert not net.linear.bias.any() and not net.bn1.running_mean.any()  # type: ignore[union-attr]
    assert (net.bn1.weight == 1).all() and not net.bn1.bias.any()
    initialise(net, "kaiming")
    inputs = net.layer3[0].conv2.weight[0].numel()  # type: ignore[union-attr, operator]
    assert abs(float(net.layer3[0].conv2.weight.detach().std()) - math.sqrt(2 / inputs)) < 0.1 * math.sqrt(2 / inputs)  # type: ignore[union-attr, operator]


def test_the_gradient_is_what_a_backward_pass_gives() -> None:
    found = built()
    reader = Reader(found, TASK, "student")
    assert reader.map == "layer3" and reader.head == "linear" and reader.width == 16
    batch = TASK.example(6)
    shown = reader.read(batch)
    net = found.module.train()
    net.requires_grad_(True)
    maps: list[torch.Tensor] = []
    net.layer3.register_forward_hook(lambda m, a, o: maps.append(o))
    torch.nn.functional.cross_entropy(net(batch["x"]), batch["y"]).backward()
    torch.testing.assert_close(shown.gradient, net.linear.weight.grad)
    torch.testing.assert_close(shown.feature, maps[0].detach())
    torch.testing.assert_close(shown.pooled, maps[0].detach().mean((2, 3)))
    # soft labels say the same where they are hard
    hard = torch.nn.functional.one_hot(batch["y"], 3).float()
    torch.testing.assert_close(classifier_gradient(shown.pooled, shown.logits, hard), shown.gradient)
    assert Reader(found, TASK, "student", "pooled").read(batch).feature.shape == (6, 16)


def test_classes_in_another_order_have_their_own_rows() -> None:
    plain, turned = built(), built(classes=(2, 0, 1))
    shown = [Reader(b, TASK, "teacher").read(TASK.example(6)) for b in (plain, turned)]
    torch.testing.assert_close(shown[1].logits, shown[0].logits[:, [2, 0, 1]])
    expected = classifier_gradient(shown[0].pooled, shown[0].logits[:, [2, 0, 1]], TASK.example(6)["y"])
    torch.testing.assert_close(shown[1].gradient, expected)


def test_distances_against_slow_ones() -> None:
    s, t = read(1), read(2, (2, 1, 1))
    rows = []
    for x in (s.feature, t.feature):
        g = torch.tensor([[float((a * b).sum()) for b in x] for a in x])
        rows.append(g / g.norm(dim=1, keepdim=True))
    assert distance("relation", s, t) == pytest.approx(float((rows[0] - rows[1]).square().sum()) / 36, rel=1e-4)
    total = 0.0
    for a, b in zip(s.gradient, t.gradient, strict=True):
        e, f = (torch.nn.functional.normalize(torch.outer(g, g), dim=1, eps=1e-12) for g in (a, b))
        total += float((e - f).square().sum()) / 16
    assert distance("semantic", s, t) == pytest.approx(total / 3, rel=1e-4)
    for name in ("relation", "semantic", "kd", "rkd", "at"):
        assert distance(name, s, s) == pytest.approx(0.0, abs=1e-6) and distance(name, s, t) > 0  # type: ignore[arg-type]
    # a class that is sure of everything has a gradient near nothing, which stays as small as it is
    faint = torch.stack([s.gradient[0] * 1e-9, s.gradient[1]])
    slow = [torch.nn.functional.normalize(torch.outer(g, g), dim=1, eps=1e-12) for g in (faint[0], t.gradient[0])]
    torch.testing.assert_close(
        channel_correlation(faint, t.gradient[:2])[0], (slow[0] - slow[1]).square().sum() / 16, rtol=1e-4, atol=1e-6
    )


def test_proxies_of_the_student_alone() -> None:
    wanted = ("nwot", "synflow")
    small, large = read(1, wanted=wanted), read(1, (3, 1, 1), wanted)
    assert distance("parameters", small, small) > distance("parameters", large, large)
    assert distance("synflow", small, small) > distance("synflow", large, large)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))
    reader = Reader(Built(net), TASK, "student")
    batch = TASK.example(4)
    shown = reader.read(batch, wanted)
    on = (net[1](batch["x"].flatten(1)) > 0).int()
    same = torch.tensor([[float((a == b).sum()) for b in on] for a in on], dtype=torch.float64)
    assert shown.alone["nwot"] == pytest.approx(-float(torch.logdet(same)))
    path = torch.ones(1, 64) @ net[1].weight.abs().T + net[1].bias.abs()
    flow = path @ net[3].weight.abs().T + net[3].bias.abs()
    by_weights = float((torch.ones(1, 64) @ net[1].weight.abs().T @ net[3].weight.abs().T).sum())
    by_bias = float((net[1].bias.abs() @ net[3].weight.abs().T).sum())
    expected = 2 * by_weights + 2 * by_bias + float(net[3].bias.abs().sum())  # each layer of a path counts it once
    assert shown.alone["synflow"] == pytest.approx(-math.log(expected), rel=1e-5) and float(flow.sum()) > 0


def test_networks_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        Reader(Built(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())), TASK, "teacher")
    with pytest.raises(ConfigError, match="not the output of its last linear layer"):
        Reader(Built(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1))), TASK, "student")
    with pytest.raises(ConfigError, match="a network at hand"):
        Reader(Built(object()), TASK, "teacher")
    silent = Reader(Built(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), TASK, "student")
    with pytest.raises(ConfigError, match="nwot counts ReLUs"):
        silent.read(TASK.example(4), ("nwot",))
