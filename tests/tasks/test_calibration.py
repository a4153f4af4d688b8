"""The bins of a reliability diagram add up to the calibration error."""

from __future__ import annotations

import pytest
import torch

from limbeck.functional.metrics import calibration_error, calibration_table
from limbeck.tasks.classification import calibration_bins


@pytest.mark.parametrize("n", [1, 7, 500])
def test_bins_add_up_to_the_error(n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    table = calibration_table(2 * torch.randn(n, 4, generator=draw), torch.randint(0, 4, (n,), generator=draw))
    bins = calibration_bins(table)
    assert sum(bins["count"]) == n and all(c > 0 for c in bins["count"])
    gap = sum(k * abs(a - c) for c, a, k in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True)) / n
    assert gap == pytest.approx(calibration_error(table), abs=1e-9)


def test_ends_belong_to_the_outer_bins() -> None:
    table = calibration_table(torch.tensor([[0.0, 0.0], [500.0, 0.0]]), torch.tensor([0, 1]), bins=2)
    assert calibration_bins(table) == {"confidence": [0.5, 1.0], "accuracy": [1.0, 0.0], "count": [1, 1]}
