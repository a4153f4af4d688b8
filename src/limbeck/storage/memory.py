"""How much memory there is, asked before it is taken. This module imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from limbeck.errors import LimbeckError, OutOfMemory, human

SMALLER = (
    "lower train.batch_size (teach.batch_size of a teacher, task.eval_batch where it is evaluated), raise engine.accumulate, "
    "or choose a smaller network"
)
"""What to do where nothing says which part of a run ran out of memory."""

_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use, and what of the use can be given back, of the container we are in (version 2, version 1)."""


def available() -> int | None:
    """Bytes that this process can still take without driving the machine, or its container, out of memory.

    ``None`` where the system does not say.
    """
    found = [n for n in (_machine(), *map(_container, *zip(*_GROUPS, strict=True)), _process()) if n is not None]
    return min(found) if found else None


def need(count: float, argument: str, what: str, remedy: str) -> None:
    """Refuse what cannot fit, before it is tried.

    Args:
        count: bytes.
        argument: the setting that asks for them.
        what: what they are for: "1,000 images of 9,000 x 9,000 pixels".
        remedy: what to do.

    Raises:
        OutOfMemory: there are fewer.
    """
    free = available()
    if free is not None and count > free:
        raise OutOfMemory(argument, f"{what} need {human(count, 'B')}, and {human(free, 'B')} are free", remedy=remedy)


def exhausted(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, of the host or of a device, whoever raised it."""
    if isinstance(error, LimbeckError):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        said in text
        for said in (
            "can't allocate memory",
            "out of memory",
            "Storage size calculation overflowed",
            "invalid buffer size",
            "allocate memory",
        )
    )


def _machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        pass
    try:  # macOS and others: all there is, for want of better
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container(limit: str, used: str, stat: str) -> int | None:
    try:
        most = int(Path(limit).read_text(encoding="ascii"))  # "max": no limit
        now = int(Path(used).read_text(encoding="ascii"))
        told = dict(line.split() for line in Path(stat).read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return max(0, most - now + int(told.get("inactive_file", told.get("total_inactive_file", 0))))


def _process() -> int | None:
    """What ``ulimit -v`` leaves."""
    if sys.platform == "win32":
        return None
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    try:
        now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
    return max(0, most - now)
