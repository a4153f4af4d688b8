from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from limbeck.errors import ConfigError, ShapeError
from limbeck.networks import MLP, VGG11, AlexNet, ConvNet, LeNet, ResNet18, ResNet18AP

POOL: list[Any] = [MLP, LeNet, AlexNet, VGG11, ResNet18, ResNet18AP]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_the_published_size() -> None:
    assert sum(p.numel() for p in ConvNet().parameters()) == 320_010


@pytest.mark.parametrize(
    ("net", "count"),
    [
        # counted by hand from the published layer lists, 32 x 32 colour images and 10 classes
        (MLP(), 3072 * 128 + 128 + 128 * 128 + 128 + 1290),
        (LeNet(), 456 + 2416 + 400 * 120 + 120 + 120 * 84 + 84 + 850),
        (AlexNet(), 9728 + 614592 + 442624 + 442560 + 331968 + 192 * 16 * 10 + 10),
        (ResNet18(), 11_173_962),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_published_sizes_of_the_pool(net: nn.Module, count: int) -> None:
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("activation", ["relu", "leakyrelu", "sigmoid", "swish"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "instance", "group"])
@pytest.mark.parametrize("pooling", ["none", "max", "avg"])
def test_every_convnet_is_its_blocks_written_out(activation: str, norm: str, pooling: str) -> None:
    f = torch.nn.functional
    net = ConvNet(2, 3, width=4, depth=2, activation=activation, norm=norm, pooling=pooling, im_size=(8, 6)).double()
    x, weights = torch.randn(5, 2, 8, 6, dtype=torch.float64), [p.detach() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    got, h, taken = net(x), x, iter(weights)
    for _ in range(2):
        h = f.conv2d(h, next(taken), next(taken), padding=1)
        if norm != "none":
            gain, shift = next(taken), next(taken)
            if norm == "batch":
                mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), correction=0, keepdim=True)
                h = (h - mean) / torch.sqrt(var + 1e-5)
            elif norm == "layer":
                mean, var = h.mean((1, 2, 3), keepdim=True), h.var((1, 2, 3), correction=0, keepdim=True)
                h = (h - mean) / torch.sqrt(var + 1e-5)
            else:  # width 4 in 4 groups is instance normalisation too
                mean, var = h.mean((2, 3), keepdim=True), h.var((2, 3), correction=0, keepdim=True)
                h = (h - mean) / torch.sqrt(var + 1e-5)
            h = h * gain + shift if norm == "layer" else h * gain[:, None, None] + shift[:, None, None]
        h = {
            "relu": h.clamp_min(0),
            "leakyrelu": torch.where(h > 0, h, 0.01 * h),
            "sigmoid": 1 / (1 + torch.exp(-h)),
            "swish": h / (1 + torch.exp(-h)),
        }[activation]
        if pooling != "none":
            windows = h.unfold(2, 2, 2).unfold(3, 2, 2)
            h = windows.mean((-1, -2)) if pooling == "avg" else windows.amax((-1, -2))
    torch.testing.assert_close(net.embed(x), h.flatten(1))
    torch.testing.assert_close(got, h.flatten(1) @ next(taken).T + next(taken))


def test_published_names_of_options_are_understood() -> None:
    published = ConvNet(norm="instancenorm", pooling="avgpooling", width=8)
    assert published.config == ConvNet(width=8).config
    assert ConvNet(norm="none", pooling="none", width=8, depth=1, im_size=4).config["norm"] == "none"


def test_four_groups_are_not_instances() -> None:
    assert [m.num_groups for m in ConvNet(width=8, norm="group").modules() if isinstance(m, nn.GroupNorm)] == [4] * 3
    assert [m.num_groups for m in ConvNet(width=8).modules() if isinstance(m, nn.GroupNorm)] == [8] * 3


def test_one_channel_images_are_padded_by_three() -> None:
    assert ConvNet(channels=1, width=8, im_size=28).embed(torch.zeros(1, 1, 28, 28)).shape == (1, 8 * 16)
    assert ConvNet(channels=3, width=8, im_size=28).embed(torch.zeros(1, 3, 28, 28)).shape == (1, 8 * 9)


@pytest.mark.parametrize(
    ("channels", "im_size", "deepest"), [(1, 8, 3), (3, 8, 3), (3, 28, 4), (1, 28, 5), (3, (8, 4), 2), (3, 1, 0)]
)
def test_the_largest_depth_is_named(channels: int, im_size: Any, deepest: int) -> None:
    if deepest:
        net = ConvNet(channels, width=4, depth=deepest, im_size=im_size)
        h, w = net.im_size
        assert net(torch.randn(2, channels, h, w)).shape == (2, 10)
    with pytest.raises(ConfigError, match=f"at most {deepest}"):
        ConvNet(channels, width=4, depth=deepest + 1, im_size=im_size)
    ConvNet(channels, width=4, depth=deepest + 1, im_size=im_size, pooling="none")


def test_taps_on_a_normalisation_see_what_it_put_out() -> None:
    net, seen = ConvNet(width=4, depth=1, im_size=8), []
    net.features[1].register_forward_hook(lambda m, i, o: seen.append(o))
    net(torch.randn(2, 3, 8, 8))
    assert (seen[0] < 0).any()


@pytest.mark.parametrize("cls", [ConvNet, *POOL])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("im_size", [8, 12])
def test_small_images_give_features_that_differ_and_learn(cls: Any, channels: int, im_size: int) -> None:
    net = cls(channels=channels, classes=4, im_size=im_size)
    x = torch.randn(3, channels, im_size, im_size)
    features = net.embed(x)
    assert features.ndim == 2 and net.classifier.in_features == features.shape[1]
    assert features.std(0).max() > 1e-4  # a normalisation over one pixel would make them all equal
    net(x).square().sum().backward()
    first = next(net.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0
    torch.testing.assert_close(net(x), net.classifier(features))


@pytest.mark.parametrize("cls", [ConvNet, MLP, LeNet])
def test_config_is_json_and_weights_load_strictly(cls: Any) -> None:
    net = cls(channels=1, classes=4, im_size=8)
    again = cls(**json.loads(json.dumps(net.config)))
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(net.state_dict())), strict=True)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(net(x), again(x)) and again.config == net.config


def test_resnet_strides_or_pools() -> None:
    strided = [m.stride for m in ResNet18().modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert len(strided) == 6
    pooled = list(ResNet18AP().modules())
    assert not [m for m in pooled if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert len([m for m in pooled if isinstance(m, nn.AvgPool2d)]) == 6
    assert ResNet18AP().classifier.in_features == 512 * 16
    assert ResNet18AP(channels=1, im_size=28).classifier.in_features == 512 * 9  # the published special case


def test_normalisation_of_the_large_ones_can_be_batch() -> None:
    for cls in (VGG11, ResNet18, ResNet18AP):
        net = cls(norm="batchnorm", im_size=8)
        assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
        assert not any(isinstance(m, nn.GroupNorm) for m in net.modules())


def test_the_door() -> None:
    with pytest.raises(ConfigError, match="did you mean 'instance'"):
        ConvNet(norm="instanse")
    with pytest.raises(ConfigError, match="activation"):
        ConvNet(activation="gelu")
    with pytest.raises(ConfigError, match="multiple of 4"):
        ConvNet(width=6, norm="group")
    with pytest.raises(ConfigError, match="width"):
        ConvNet(width=0)
    with pytest.raises(ConfigError, match="im_size"):
        ConvNet(im_size=(8, 8, 8))
    with pytest.raises(ConfigError, match="norm"):
        VGG11(norm="group")
    with pytest.raises(ConfigError, match="at least 4 pixels"):
        LeNet(im_size=3)
    with pytest.raises(ConfigError, match="at least 2 pixels"):
        ResNet18(im_size=1)
    with pytest.raises(ShapeError, match=r"\[N, 3, 8, 8\]"):
        ConvNet(depth=2, width=4, im_size=8)(torch.zeros(2, 1, 8, 8))
