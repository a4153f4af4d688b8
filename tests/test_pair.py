"""The pair of processes that the battery asks: what takes too long over one method is gone for the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.two_processes import TwoProcesses


@pytest.mark.expensive
def test_a_pair_that_takes_too_long_is_replaced(tmp_path: Path) -> None:
    pair = TwoProcesses(tmp_path)
    try:
        with pytest.raises(AssertionError, match=r"took more than 0\.5 s over kd"):
            pair.state("kd", most=0.5)
        assert pair.pair is None
        assert "student" in pair.state("kd")["roles"]
        kept = pair.pair
        assert "student" in pair.state("mtt")["roles"] and pair.pair is kept
    finally:
        pair.close()
