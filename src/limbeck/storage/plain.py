"""Reading files that somebody else made: plain files only, so that a pipe, a socket or a device hangs nobody.

Links are followed: users keep their data behind them. What a link leads to must be a plain file like any other.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from limbeck.errors import DataError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


def special(path: Path) -> str:
    """What stands at a path, or at the end of the links there, if it is neither plain file nor folder; else ``""``.

    Example:
        >>> special(Path(os.devnull)), special(Path("."))
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


def check_plain(path: Path, argument: str) -> None:
    """Refuse what would hang or flood whoever reads it, before a library opens it. What is missing is not our affair.

    Raises:
        DataError: it is a pipe, a socket or a device, or a link to one.
    """
    found = special(path)
    if found:
        raise DataError(argument, f"{path} is {found}", expected="a plain file", remedy="save its content to a file")


def open_plain(path: Path, argument: str) -> BinaryIO:
    """A plain file, opened for reading; also when something else takes its place at this moment.

    Raises:
        DataError: it is something else, or cannot be read.
    """
    # a pipe that nobody writes to would otherwise keep the caller in `open` itself
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    check_plain(path, argument)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise DataError(argument, f"{path} cannot be read: {error.strerror}") from None
    kind = _kind(os.fstat(handle).st_mode)
    if kind:
        os.close(handle)
        raise DataError(argument, f"{path} is {kind}", expected="a plain file")
    return open(handle, "rb")


def read_plain(path: Path, argument: str, limit: int) -> bytes:
    """All of a plain file.

    Args:
        path: the file.
        argument: what errors call it.
        limit: how many bytes it may have.

    Raises:
        DataError: it is no plain file, has more bytes, or cannot be read.
    """
    with open_plain(path, argument) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise DataError(argument, f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise DataError(argument, f"{path} has more than {limit} bytes", expected="a smaller file")
    return data
