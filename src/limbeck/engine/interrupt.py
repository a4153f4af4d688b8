"""Signals as a flag: the loop finishes its step, saves and stops. Imports no torch.

SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 set the flag; whoever works polls `requested` between steps. A second
Ctrl-C leaves at once, with what was saved last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""The signals that ask for a stop, where the platform has them."""

_requested: int | None = None
_before: dict[int, Any] = {}


def _handle(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested is None:
        _requested = signum
        _say(f"{signal.Signals(signum).name}: finishing this step and saving; Ctrl-C again leaves at once")
    elif signum == signal.SIGINT:
        _say("leaving at once; the last checkpoint stays")
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        # a plain write: the interrupted code may hold the lock of sys.stderr
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nlimbeck: {text}\n".encode())


def install() -> None:
    """Let the signals set the flag. Does nothing outside the main thread, and leaves alone what is ignored (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in NAMES:
        signum = getattr(signal, name, None)
        if signum is None or signum in _before:
            continue
        current = signal.getsignal(signum)
        if current is signal.SIG_IGN or current is None:
            continue
        _before[signum] = signal.signal(signum, _handle)


def outlive_first(_number: int = 0) -> None:
    """For processes that fetch for this one: the first signal of each kind does nothing to them, the second ends them.

    Terminals and schedulers signal a whole group. Who works needs its helpers until it has saved, and ends them itself.
    """
    for name in NAMES:
        signum = getattr(signal, name, None)
        if signum is not None:
            signal.signal(signum, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def uninstall() -> None:
    """Put back what handled the signals before, and clear the flag."""
    for signum, handler in _before.items():
        signal.signal(signum, handler)
    _before.clear()
    clear()


def requested() -> int | None:
    """The number of the signal that asked for a stop; ``None`` when none did."""
    return _requested


def request(signum: int = signal.SIGTERM) -> None:
    """Ask for a stop as a signal would."""
    global _requested
    _requested = int(signum)


def clear() -> None:
    """Forget a request."""
    global _requested
    _requested = None
