"""Features with their channels last, as Swin shows them, are told by the sides of the image."""

from __future__ import annotations

import pytest
import torch

from limbeck.grammar.signal import Signal
from limbeck.networks.shows import channels_first, picture_of, pooled
from limbeck.objectives.feature import AttentionTransfer, FeatureMatch


@pytest.mark.parametrize("picture", [(32, 32), (180, 240), (33, 47)])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_channels_are_found_by_the_sides_of_the_picture(picture: tuple[int, int], stride: int) -> None:
    h, w = (-(-n // stride) for n in picture)
    first = torch.randn(2, 300, h, w)
    assert channels_first(first, picture) is first
    assert torch.equal(channels_first(first.movedim(1, -1), picture), first)
    torch.testing.assert_close(pooled(first.movedim(1, -1), picture), pooled(first))


def test_what_leaves_a_doubt_is_left_as_it_is() -> None:
    for f in (torch.zeros(2, 8, 8, 8), torch.zeros(2, 5), torch.zeros(2, 7, 5), torch.zeros(2, 1, 1, 1)):
        assert channels_first(f, (32, 32)) is f
    f = torch.zeros(2, 8, 8, 96)
    assert channels_first(f) is f and picture_of({"x": torch.zeros(3, 5)}) == ()


@pytest.mark.parametrize("objective", [FeatureMatch("a", "a"), AttentionTransfer("a", "a")])
def test_objectives_compare_the_same_places(objective: FeatureMatch | AttentionTransfer) -> None:
    f, batch = torch.randn(2, 6, 4, 4), {"x": torch.zeros(2, 3, 16, 16)}
    one, other = Signal(f, {"a": f}), Signal(f, {"a": f.movedim(1, -1)})
    assert objective.prepare(one, other, batch) is None
    assert float(objective(one, other, batch, None).values.abs().max()) < 1e-6  # type: ignore[arg-type]
