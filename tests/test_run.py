"""Remembered stages between runs: who makes them, who waits, and how waiting ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.core import interrupt, store
from limbeck.core.errors import CheckpointCorrupt, ConfigError, Stopped
from limbeck.run import _turn, read_result, run
from tests.bench import tree_of


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    interrupt.clear()
    yield
    interrupt.clear()


def test_a_stage_is_made_once_and_then_taken(tmp_path: Path) -> None:
    folder = tmp_path / "teacher-1"
    turn = _turn(folder, folder / "network", print, "teacher")
    assert turn is not None
    with turn:
        store.save_tree(folder / "network", {"w": 1})
    assert _turn(folder, folder / "network", print, "teacher") is None
    store.RunLock(folder).acquire().release()


def test_whoever_comes_second_waits_and_takes_it(tmp_path: Path) -> None:
    folder, said = tmp_path / "teacher-2", []
    lock = store.RunLock(folder).acquire()

    def finish() -> None:
        time.sleep(0.2)
        store.save_tree(folder / "network", {"w": 1})
        lock.release()

    maker = threading.Thread(target=finish)
    maker.start()
    try:
        assert _turn(folder, folder / "network", said.append, "teacher") is None
    finally:
        maker.join()
    assert said == ["teacher: another run is making it; waiting"]


def test_waiting_ends_where_a_signal_asks_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "teacher-3"
    with store.RunLock(folder):
        interrupt.request(2)
        with pytest.raises(Stopped) as stopped:
            _turn(folder, folder / "network", lambda text: None, "teacher")
    assert stopped.value.signum == 2


def test_exports_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        run(tree_of("kd", "export=[onxx]"), tmp_path / "o", quiet=True)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_damaged_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CheckpointCorrupt, match=r"result\.json.*--force"):
        read_result(tmp_path / "result.json")
