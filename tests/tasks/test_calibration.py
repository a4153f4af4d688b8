"""The bins of a reliability diagram add up to the calibration error."""

from __future__ import annotations

import pytest
import torch

from limbeck.tasks.classification import calibration_bins, calibration_error


@pytest.mark.parametrize("n", [1, 7, 500])
def test_bins_add_up_to_the_error(n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    confidence = torch.rand(n, generator=draw)
    right = (torch.rand(n, generator=draw) < 0.6).float()
    bins = calibration_bins(confidence, right)
    assert sum(bins["count"]) == n and all(c > 0 for c in bins["count"])
    gap = sum(k * abs(a - c) for c, a, k in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True)) / n
    assert gap == pytest.approx(calibration_error(confidence, right), abs=1e-9)


def test_ends_belong_to_the_outer_bins() -> None:
    bins = calibration_bins(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert bins == {"confidence": [0.0, 1.0], "accuracy": [1.0, 0.0], "count": [1, 1]}
