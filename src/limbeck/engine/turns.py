"""Remembered stages between runs: who makes one, and who waits for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.engine import distributed as dist
from limbeck.engine import interrupt
from limbeck.errors import Stopped, StorageError
from limbeck.storage import store


def take_turn(folder: Path, done: Path, say: Callable[[str], None], name: str) -> Any:
    """The lock under which a remembered stage is made; ``None`` once it is there.

    Another run that makes it at this moment is waited for: both want the same thing. Of several processes the first one
    looks and tells the others, so that all of them train or none.

    Raises:
        Stopped: a signal asked to stop while it was waited for.
    """
    if dist.rank() > 0 and dist.world() > 1:
        return contextlib.nullcontext() if dist.told_by_all(None)[0] else None
    turn = _first_turn(folder, done, say, name)
    dist.told_by_all(turn is not None)
    return turn


def _first_turn(folder: Path, done: Path, say: Callable[[str], None], name: str) -> Any:
    said = False
    while not store.is_complete(done):
        store.check_writable(folder)
        lock = store.RunLock(folder)
        try:
            lock.acquire()
        except StorageError:
            if not said:
                say(f"{name}: another run is making it; waiting")
                said = True
            asked = interrupt.requested()
            if asked is not None:
                raise Stopped(asked) from None
            time.sleep(0.5)
            continue
        if store.is_complete(done):
            lock.release()
            return None
        return contextlib.closing(_Held(lock))
    return None


class _Held:
    """A lock that is held already, for a ``with`` statement."""

    def __init__(self, lock: store.RunLock) -> None:
        self.lock = lock

    def close(self) -> None:
        """Let it go."""
        self.lock.release()
