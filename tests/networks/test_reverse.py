"""The decoder of reverse distillation: published sizes, switches, and what the masked convolution sees."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.networks.reverse import SSPCAB, ReverseDecoder, levels_of

WIDTHS = (64, 64, 128, 256)


@pytest.mark.parametrize(("shortcuts", "parameters"), [(True, 10_800_256), (False, 10_134_464)])
def test_it_has_the_published_size(shortcuts: bool, parameters: int) -> None:
    with torch.device("meta"):
        net = ReverseDecoder(WIDTHS, shortcuts=shortcuts)
        levels = [torch.empty(1, c, s, s) for c, s in zip(WIDTHS, (64, 64, 32, 16), strict=True)]
        out = net(levels)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert [f.shape for f in out] == [f.shape for f in levels]


@pytest.mark.parametrize("switches", [{}, {"attention": False}, {"sspcab": False}, {"shortcuts": False}])
def test_any_widths_and_oblong_pictures(switches: dict[str, bool]) -> None:
    levels = [torch.rand(2, c, *s) for c, s in zip((3, 5, 6, 7), ((16, 24), (16, 24), (8, 12), (4, 6)), strict=True)]
    out = ReverseDecoder((3, 5, 6, 7), **switches)(levels)
    assert [f.shape for f in out] == [f.shape for f in levels]


def test_a_masked_place_is_seen_by_its_four_diagonal_neighbours_alone() -> None:
    net = SSPCAB(2, reduction=1)
    for conv in (net.conv1, net.conv2, net.conv3, net.conv4):
        torch.nn.init.ones_(conv.weight)
    x = torch.zeros(1, 2, 9, 9, requires_grad=True)
    wide = torch.nn.functional.pad(x, [2] * 4)
    net.se = torch.nn.Identity()  # type: ignore[assignment]
    net(x + 1)[0, 0, 4, 4].backward()
    assert wide.shape[-1] == 13 and x.grad is not None
    assert x.grad[0, 0].nonzero().tolist() == [[2, 2], [2, 6], [6, 2], [6, 6]]


def test_levels_are_brought_to_the_decoders_sides_or_refused() -> None:
    first, *rest = [torch.rand(1, 4, s, s) for s in (32, 16, 8, 4, 2)]
    assert [f.shape[-1] for f in levels_of([first, *rest])] == [16, 16, 8, 4]
    assert [f.shape[-1] for f in levels_of([rest[0], *rest])] == [16, 16, 8, 4]
    with pytest.raises(ShapeError, match="four"):
        levels_of(rest[:3])
    with pytest.raises(ShapeError, match="halve"):
        levels_of([torch.rand(1, 4, s, s) for s in (30, 15, 8, 4)])
    with pytest.raises(ConfigError, match="widths"):
        ReverseDecoder((1, 2, 3))
