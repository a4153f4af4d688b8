"""Remembered stages between runs: who makes them, who waits, and how waiting ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.engine import interrupt
from limbeck.engine.turns import describe, place, take_turn, why_anew
from limbeck.errors import Stopped
from limbeck.storage import store


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    interrupt.clear()
    yield
    interrupt.clear()


def test_a_stage_is_made_once_and_then_taken(tmp_path: Path) -> None:
    folder = tmp_path / "teacher-1"
    turn = take_turn(folder, lambda: store.is_complete(folder / "network"), print, "teacher")
    assert turn is not None
    with turn:
        store.save_tree(folder / "network", {"w": 1})
    assert take_turn(folder, lambda: store.is_complete(folder / "network"), print, "teacher") is None
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
        assert take_turn(folder, lambda: store.is_complete(folder / "network"), said.append, "teacher") is None
    finally:
        maker.join()
    assert said == ["teacher: another run is making it; waiting"]


def test_waiting_ends_where_a_signal_asks_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "teacher-3"
    with store.RunLock(folder):
        interrupt.request(2)
        with pytest.raises(Stopped) as stopped:
            take_turn(folder, lambda: store.is_complete(folder / "network"), lambda text: None, "teacher")
    assert stopped.value.signum == 2


def test_what_is_made_anew_because_of_code_says_so(tmp_path: Path) -> None:
    def parts(code: str, lr: float = 0.1, structure: str = "relu") -> dict[str, object]:
        network = {"structure": structure, "state": structure, "trained": "t", "code": {"mynet.py": code, "b.py": "b"}}
        return {"network": network, "optim": {"lr": lr}}

    first = place(tmp_path, "teacher", parts("1"))
    first.mkdir()
    describe(first, parts("1"))
    now = parts("2", structure="sigmoid")
    assert place(tmp_path, "teacher", now) != first == place(tmp_path, "teacher", parts("1"))
    said = why_anew(place(tmp_path, "teacher", now), "teacher", now)
    assert said == ", anew because your code has changed since: mynet.py"
    for other in (parts("1"), parts("2", lr=0.2), parts("2") | {"more": 1}):
        assert why_anew(tmp_path / "teacher-x", "teacher", other) == ""
    (first / "identity.json").write_text("{")
    assert why_anew(tmp_path / "teacher-x", "teacher", now) == ""
