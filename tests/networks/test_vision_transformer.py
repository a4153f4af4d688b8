"""Plain vision transformers: the token at the end, pools, maps and pyramids of the right sides, projections of every block."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.pretraining import random_masking
from limbeck.networks.two_stage import pyramid_detector
from limbeck.networks.vision_transformer import (
    SimplePyramid,
    UperHead,
    VisionTransformer,
    VitClassifier,
    VitDetector,
    VitMaps,
    encoder_of,
    first_stage,
)


def encoder(size: int | tuple[int, int] = 16, patch: int = 4, depth: int = 2) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(size, patch, 3, 16, depth, 2).eval()


def test_the_distillation_token_stands_at_the_end_and_both_heads_answer() -> None:
    net, x = VitClassifier(encoder(), 5, token=True).eval(), torch.randn(2, 3, 16, 16)
    torch.nn.init.normal_(net.dist_token)
    tokens = net.encoder.encode(x, last=net.dist_token + net.dist_pos_embed)
    assert tokens.shape == (2, 18, 16)
    torch.testing.assert_close(net(x), (net.head(tokens[:, 0]) + net.token_head(tokens[:, -1])) / 2)
    plain = VitClassifier(net.encoder, 5)
    torch.testing.assert_close(plain(x), plain.head(net.encoder.encode(x)[:, 0]))
    mean = VitClassifier(net.encoder, 5, pool="mean", token=True)
    mean.load_state_dict(net.state_dict())
    raw = net.encoder.encode(x, norm=False, last=net.dist_token + net.dist_pos_embed)
    want = (mean.head(net.encoder.norm(raw[:, 1:17].mean(1))) + mean.token_head(tokens[:, -1])) / 2
    torch.testing.assert_close(mean(x), want)  # the token is no patch
    masking = random_masking(torch.rand(2, 16))
    assert net.encode(x, masking).shape == (2, 5, 16)  # nor is it there while patches are hidden


def test_projections_are_what_attention_sees() -> None:
    net, x, masking = encoder(), torch.randn(2, 3, 16, 16), random_masking(torch.rand(2, 16))
    shown = []
    for block in net.blocks:
        block.attn.qkv.register_forward_hook(lambda m, i, o: shown.append(o))  # type: ignore[union-attr]
    found = net.projections(x, masking)
    assert found.shape == (2, 3, 2, 5, 16)
    again = len(shown)
    net.encode(x, masking)
    for layer in range(2):
        torch.testing.assert_close(torch.cat(list(found[layer]), -1), shown[again + layer])


@pytest.mark.parametrize(("size", "patch"), [(16, 4), ((24, 32), 8), ((15, 20), 5), (8, 2), (4, 1)])
def test_maps_are_as_fine_as_patches_allow(size: int | tuple[int, int], patch: int) -> None:
    net = VitMaps(encoder(size, patch), 3, 8).eval()
    high, wide = net.encoder.size
    x = torch.randn(2, 3, high, wide)
    out = net(x)
    times = min(4, 1 << (patch.bit_length() - 1))
    assert out.shape == (2, 3, high // patch * times, wide // patch * times)
    torch.testing.assert_close(net(x[:1]), out[:1])  # an image's answer does not depend on its batch
    assert net.layers == [1, 1, 2, 2] and VitMaps(encoder(depth=12), 3).layers == [3, 6, 9, 12]
    layers = net.encoder.between(x, [1, 2])
    tokens = net.encoder.encode(x, norm=False)
    torch.testing.assert_close(layers[1].flatten(2).transpose(1, 2), tokens[:, 1:])


def test_every_level_reaches_the_map() -> None:
    head = UperHead([4, 4, 4], 2, 8)
    levels = [torch.randn(1, 4, s, s, requires_grad=True) for s in (8, 4, 2)]
    head(levels).sum().backward()
    assert all(f.grad is not None and bool(f.grad.abs().sum() > 0) for f in levels)


def test_a_detector_s_pyramid_has_strides_from_four() -> None:
    for patch, levels in ((4, 2), (8, 3), (16, 2), (2, 1)):
        body = SimplePyramid(encoder(32, patch), 8, levels)
        maps = body(torch.randn(1, 3, 32, 32))
        assert [tuple(f.shape) for f in maps.values()] == [(1, 8, 8 >> i, 8 >> i) for i in range(levels)]
    with pytest.raises(ConfigError, match="power of two"):
        SimplePyramid(encoder(24, 6), 8)
    with pytest.raises(ConfigError, match="stride of 64"):
        SimplePyramid(encoder(32, 4), 8, 5)


def test_the_first_stage_alone_says_what_it_says_within_the_detector() -> None:
    body = SimplePyramid(encoder(32, 4), 8, 3)
    net = VitDetector(
        pyramid_detector(body, 2, (32, 32), levels=3, width=8, proposals=4, pool=2, masks=False, channels=3)
    )
    net.eval()
    x, seen = torch.rand(2, 3, 32, 32), []
    net.rpn.head.cls_logits.register_forward_hook(lambda m, i, o: seen.append(o))
    found = first_stage(net, x)
    assert [f.shape[2] for f in found["features"]] == [8, 4, 2] and found["objectness"][0].shape[1] == 3
    again = len(seen)
    assert {"boxes", "scores", "labels", "where"} <= set(net(x))
    for a, b in zip(found["objectness"], seen[again:], strict=True):
        torch.testing.assert_close(a, b)
    place = encoder_of(net)
    assert place is not None and place[0] == "backbone.encoder" and encoder_of(torch.nn.Linear(1, 1)) is None
    torch.testing.assert_close(net.encode(x), place[1].encode(x))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch"):
        encoder((16, 18))
    with pytest.raises(ConfigError, match="heads"):
        VisionTransformer(16, 4, 3, 16, 1, 3)
    with pytest.raises(ShapeError, match="images"):
        encoder((16, 24)).encode(torch.zeros(1, 3, 24, 16))
    with pytest.raises(ShapeError, match="same patches"):
        encoder().encode(torch.zeros(1, 3, 16, 16), random_masking(torch.rand(1, 9)))
