"""Remembered stages between runs: where one lies, what it was made from, who makes it, and who waits for it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from limbeck.engine import distributed as dist
from limbeck.engine import identity, interrupt
from limbeck.errors import Stopped, StorageError
from limbeck.storage import store


def place(root: Path, name: str, parts: Mapping[str, Any]) -> Path:
    """Where something is remembered that was made of ``parts``."""
    return root / f"{store.safe_name(name)}-{identity.key(parts)}"


def describe(folder: Path, parts: Mapping[str, Any]) -> None:
    """Leave in a folder what it is remembered by, for people and for `why_anew`."""
    if dist.rank() == 0:
        text = json.dumps(parts, indent=1, sort_keys=True, default=store.hash_tree)
        store.atomic_write(folder / _ABOUT, text.encode())


def why_anew(folder: Path, name: str, parts: Mapping[str, Any]) -> str:
    """Why something is made anew that was made of the same settings before: by which changed code; else empty."""
    now = identity.without_code(json.loads(json.dumps(parts, default=store.hash_tree)))
    for other in sorted(folder.parent.glob(f"{store.safe_name(name)}-*/{_ABOUT}")):
        try:
            then = identity.without_code(json.loads(other.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
        changed = sorted(f for f in {*then[1], *now[1]} if then[1].get(f) != now[1].get(f))
        if then[0] == now[0] and changed:
            return f", anew because your code has changed since: {', '.join(changed)}"
    return ""


_ABOUT = "identity.json"


def take_turn(folder: Path, done: Callable[[], bool], say: Callable[[str], None], name: str) -> Any:
    """The lock under which a remembered stage is made; ``None`` once it is ``done``.

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


def _first_turn(folder: Path, done: Callable[[], bool], say: Callable[[str], None], name: str) -> Any:
    said = False
    while not done():
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
        if done():
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
