"""What is in files, looked at once: hashes and the like, remembered in the workspace by a file's place, size and times.

So a folder of 150 GB is read once and not at every start. A file counts as unchanged while its size, its number on the
disk and both its times (of content and of status, which a copied time stamp does not deceive) are what they were. What was
written moments ago is not remembered: it could be written again within the grain of its time stamp.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from limbeck.storage.disk import StrPath, workspace

_GRAIN = 2.0  # seconds; file systems stamp times in steps of up to so much
_PATIENCE = 2.0  # seconds that another process's write is waited for
_TABLE = (
    "CREATE TABLE IF NOT EXISTS seen (place TEXT, what TEXT, stamp TEXT, answer TEXT, PRIMARY KEY (place, what)) "
    "WITHOUT ROWID"
)

_here: dict[tuple[str, str], tuple[str, Any]] = {}  # of this process
_lock = threading.Lock()


class Seen:
    """What was found in files, asked for many of them: ``with Seen() as seen: seen.ask(path, "sha256", look)``.

    The workspace's record is opened once and written once, at the end. Where it cannot be (a read-only place, a file system
    without locks), files are looked at as if for the first time. Threads may ask.
    """

    def __init__(self) -> None:
        self._found: list[tuple[str, str, str, str]] = []
        self._base: sqlite3.Connection | None = None
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._base is not None:
            self._base.close()
            self._base = None
        if not self._found:
            return
        place = _place()
        with contextlib.suppress(sqlite3.Error, OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(place, timeout=_PATIENCE)) as base, base:
                base.execute(_TABLE)
                base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", self._found)
        self._found = []

    def ask(self, path: StrPath, what: str, look: Callable[[], Any]) -> Any:
        """What ``look`` finds in a file, a plain value; not looked for where the file is known and unchanged.

        Args:
            path: the file.
            what: what is looked for, with all settings that the answer depends on.
            look: reads the file; whatever it raises is passed on, and nothing is remembered.
        """
        place = os.path.realpath(path)
        stamp = _stamp(place)
        if stamp is None:
            return look()
        name = (place, what)
        known = _here.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        stored = self._stored(name)
        if stored is not None and stored[0] == stamp:
            answer = json.loads(stored[1])
            _here[name] = (stamp, answer)
            return answer
        answer = look()
        if _stamp(place) == stamp and _settled(place):
            _here[name] = (stamp, answer)
            with _lock:
                self._found.append((*name, stamp, json.dumps(answer)))
        return answer

    def _stored(self, name: tuple[str, str]) -> tuple[str, str] | None:
        if not self._open:
            return None
        try:
            with _lock:
                if self._base is None:
                    self._base = sqlite3.connect(
                        f"{_place().as_uri()}?mode=ro", timeout=_PATIENCE, uri=True, check_same_thread=False
                    )
                row = self._base.execute("SELECT stamp, answer FROM seen WHERE place = ? AND what = ?", name).fetchone()
        except (sqlite3.Error, OSError):  # not there yet, not ours, or damaged: it is only a memory
            self._open = False
            return None
        return None if row is None else (str(row[0]), str(row[1]))


def digest(path: StrPath, seen: Seen | None = None) -> str:
    """The SHA-256 of a file's content.

    Args:
        path: the file.
        seen: where it is remembered; by default in this process alone.

    Raises:
        OSError: it cannot be read.
    """

    def look() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return str((seen or Seen()).ask(path, "sha256", look))


def _stamp(place: str) -> str | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"


def _settled(place: str) -> bool:
    try:
        found = os.stat(place)
    except OSError:
        return False
    return time.time() - max(found.st_mtime, found.st_ctime) > _GRAIN


def _place() -> Path:
    return workspace().absolute() / "files.sqlite"


__all__ = ["Seen", "digest"]
