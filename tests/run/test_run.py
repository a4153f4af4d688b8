"""What a run says at its door, and of a folder that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.core.errors import CheckpointCorrupt, ConfigError
from limbeck.run import read_result, run
from tests.tiny import tree_of


def test_exports_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        run(tree_of("kd", "export=[onxx]"), tmp_path / "o", quiet=True)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_damaged_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CheckpointCorrupt, match=r"result\.json.*--force"):
        read_result(tmp_path / "result.json")
