"""Reading files that somebody else made: plain files only, so that a pipe, a socket or a device hangs nobody.

Links are followed: users keep their data behind them. What a link leads to must be a plain file like any other.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any, BinaryIO

from limbeck.errors import DataError

StrPath = str | os.PathLike[str]

TEXT = 256 << 20
"""Bytes of a file that is read as one text; data sets are read by readers of their own."""

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


def special(path: StrPath) -> str:
    """What stands at a path, or at the end of the links there, if it is neither plain file nor folder; else ``""``.

    Example:
        >>> special(os.devnull), special(os.curdir)
        ('a device', '')
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISDIR(mode) else _kind(mode)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    return next((words for test, words in _KINDS if test(mode)), "no plain file")


class NotPlain(OSError):
    """Something else stands where a plain file was expected. Its ``strerror`` says what."""

    def __init__(self, path: StrPath, kind: str) -> None:
        super().__init__(errno.EINVAL, f"is {kind}, no plain file", os.fspath(path))


def check_plain(path: StrPath) -> None:
    """Refuse what would hang or flood whoever reads it, before a library opens it. What is missing is not our affair.

    Raises:
        NotPlain: it is a pipe, a socket or a device, or a link to one.
    """
    found = special(path)
    if found:
        raise NotPlain(path, found)


def check_folder(folder: StrPath, argument: str) -> None:
    """Refuse a folder in which, or below which, something else than plain files lies, before a library reads it.

    Raises:
        DataError: naming all such things.
    """
    found: list[str] = []
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda e: e.name)
        except OSError:  # who reads it says so
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not entry.is_file(follow_symlinks=False) and (kind := special(entry.path)):
                found.append(f"{os.path.relpath(entry.path, folder)} is {kind}")
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise DataError(
            argument,
            f"in {os.fspath(folder)}, {', '.join(found[:5])}{more}",
            expected="plain files",
            remedy="remove what is none",
        )


def opened(path: StrPath) -> BinaryIO:
    """A plain file, opened for reading; also when something else takes its place at this moment.

    Raises:
        OSError: it is something else (`NotPlain`), or cannot be opened.
    """
    # without waiting: a pipe that nobody writes to would keep the caller in `open` itself
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    check_plain(path)
    handle = os.open(path, flags)
    kind = _kind(os.fstat(handle).st_mode)
    if kind:
        os.close(handle)
        raise NotPlain(path, kind)
    return open(handle, "rb")


def read_bytes(path: StrPath, limit: int | None = None) -> bytes:
    """All of a plain file.

    Args:
        path: the file.
        limit: how many bytes it may have.

    Raises:
        OSError: it is no plain file, has more bytes, or cannot be read.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, more than the {limit:,} it may have", os.fspath(path))
        return file.read() if limit is None else file.read(limit)


def read_text(path: StrPath, encoding: str = "utf-8", limit: int = TEXT) -> str:
    """All of a plain file of text: a configuration, a result, a list of names.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is no text of this encoding.
    """
    return read_bytes(path, limit).decode(encoding)


def read_json(path: StrPath, limit: int = TEXT) -> Any:
    """What a plain JSON file holds.

    Raises:
        OSError: see `read_bytes`.
        ValueError: it is no JSON.
    """
    try:
        return json.loads(read_text(path, "utf-8-sig", limit))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
