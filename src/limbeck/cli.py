"""The command line. The first word picks the command; only that command's parser and modules are loaded.

Exit status: 0; 1 a defect of limbeck (its traceback goes to a file); 2 something the user can mend, in one line;
128 + n stopped by signal n, with everything saved.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from limbeck.engine import interrupt
from limbeck.engine.terminal import heed_warnings
from limbeck.errors import (
    ConfigError,
    DataError,
    LimbeckError,
    OutOfMemory,
    Stopped,
    StorageError,
    masked,
    visible,
    without_secrets,
)
from limbeck.storage.memory import SMALLER, exhausted
from limbeck.storage.plain import NotPlain

COMMANDS: Final[dict[str, str]] = {
    "run": "run a recipe: distil, evaluate, report",
    "plan": "estimate the time and memory of a recipe",
    "compare": "compare methods over several seeds in one table",
    "search": "search settings and methods on the validation split",
    "methods": "list the methods",
    "show": "show one method: facts, claim, recipe, source",
    "cache": "record a teacher's outputs once, for many runs",
    "report": "write the report of a run again",
    "predict": "use a student on your own files",
    "evaluate": "evaluate a student on labelled data",
    "export": "export a student in another format",
    "push": "upload a student to the Hugging Face hub",
    "doctor": "show versions, devices, extras and folders",
    "demo": "distil a classifier on sample data in three minutes",
}

QUIET: Final[dict[str, str]] = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set, where the user has not, before any third-party import: no chatter, nothing sent anywhere."""


def usage() -> str:
    """What ``limbeck --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [
        "limbeck makes models smaller and faster by distillation.",
        "",
        "usage: limbeck COMMAND ...",
        "",
        *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
        "",
        "  limbeck run nkd                                a ready-made recipe on sample data",
        "  limbeck run nkd train.steps=200 --seed 1       change any setting as key=value",
        "  limbeck run nkd --help                         explain every setting of a recipe",
        "  limbeck compare kd nkd --seeds 5               one table with intervals",
        "",
        "limbeck COMMAND --help explains a command; limbeck --version prints the version.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the words after ``limbeck``; the process's own when not given.

    Returns:
        The exit status.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    words = list(sys.argv[1:] if argv is None else argv)
    _plain_streams()
    heed_warnings()
    rank = os.environ.get("RANK", "0")
    try:
        with _mute() if rank != "0" else contextlib.nullcontext():
            status = _command(words)
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # whoever read our output has left; what is still buffered must not fail at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except Stopped as stopped:
        how = stopped.resume or "everything is saved; type the same command again to go on"
        return _end(128 + stopped.signum, f"stopped by signal {stopped.signum}; {how}")
    except LimbeckError as error:
        return _end(2, error.line())
    except KeyboardInterrupt:
        return _end(130, "interrupted")
    except Exception as error:
        signum = interrupt.requested()
        if signum is not None:  # a scheduler signals the whole group: loader workers die while we save
            return _end(128 + signum, f"stopped by signal {signum}; type the same command again to go on")
        known = _known(error)
        if known is not None:
            return _end(2, known.line())
        return _end(1, _crash(error, words))


_PLAIN: Final[dict[str, str]] = {
    "\u00b1": "+-",
    "\u00d7": "x",
    "\u2013": "-",
    "\u2014": "-",
    "\u2018": "'",
    "\u2019": "'",
    "\u2026": "...",
    "\u2192": "->",
    "\u2264": "<=",
    "\u2265": ">=",
}
"""What stands for a sign on a terminal that does not have it."""


def _plain_streams() -> None:
    """Nothing that is printed can fail for want of a sign: a terminal that lacks one gets a likeness, or an escape."""
    codecs.register_error("limbeck", _likeness)
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
        if encoding != "utf8" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="limbeck")


def _likeness(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    name = words[0]
    if name in ("-V", "--version"):
        from limbeck import __version__

        print(f"limbeck {__version__}")
        return 0
    if name not in COMMANDS:
        if name.startswith("-"):
            raise ConfigError.unknown("COMMAND", name, ["--help", "--version"], "option")
        raise ConfigError.unknown("COMMAND", name, COMMANDS, "command")
    command = importlib.import_module(f"limbeck.commands.{name}")
    status: int = command.main(words[1:])
    return status


class _mute:
    """Sends standard output nowhere: of several processes only the first one speaks."""

    def __enter__(self) -> None:
        self.sink = open(os.devnull, "w")
        self.before, sys.stdout = sys.stdout, self.sink

    def __exit__(self, *exc: object) -> None:
        sys.stdout = self.before
        self.sink.close()


def _end(status: int, line: str) -> int:
    """Say one line on standard error and give the status back."""
    rank, folder = os.environ.get("RANK", "0"), os.environ.get("LIMBECK_STATUS")
    if folder:  # one of several processes that `run` started: it speaks for all of them, once
        with contextlib.suppress(OSError):
            Path(folder, f"{rank}.json").write_text(json.dumps({"status": status, "line": line}))
        return status
    with contextlib.suppress(OSError, ValueError):
        who = "limbeck" if rank == "0" else f"limbeck (process {rank})"
        text = f"{who}: {visible(masked(' '.join(line.split())))}"
        print(text.encode("utf-8", "backslashreplace").decode("utf-8"), file=sys.stderr, flush=True)
    return status


def _known(error: Exception) -> LimbeckError | None:
    """Failures of the machine that are the user's to mend, whoever raised them."""
    text = str(error)
    if "torchvision::nms does not exist" in text:
        return ConfigError(
            "torchvision",
            "does not fit the installed torch",
            remedy="reinstall both from one index: pip install --force-reinstall torch torchvision",
        )
    if exhausted(error):
        return OutOfMemory("memory", "is exhausted", remedy=SMALLER)
    if isinstance(error, NotPlain):
        return DataError(str(error.filename), error.strerror or "is no plain file", expected="a plain file")
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    ):
        return StorageError(
            str(error.filename or "disk"),
            error.strerror or text,
            remedy="free space, or choose another folder by --out",
        )
    return None


def _crash(error: Exception, words: list[str]) -> str:
    """Write the traceback to a file; what to say about it."""
    import platform
    import tempfile
    import traceback

    from limbeck import __version__

    what = f"{type(error).__name__}: {error}"
    what = what if len(what) <= 200 else what[:197] + "..."
    own = _own_code(error)
    text = [
        f"limbeck {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"command: limbeck {' '.join(repr(word) for word in words)}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    try:
        # made by nobody else, read by nobody else, and not to be guessed beforehand
        handle, path = tempfile.mkstemp(prefix=f"limbeck-crash-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(without_secrets("\n".join(text)))
    except OSError as failure:
        return f"a defect of limbeck: {what}; its traceback could not be written: {failure.strerror}"
    if own:
        return f"{own}: {what} (your own code; the whole traceback is in {path})"
    return f"a defect of limbeck: {what}; please report it with {path}"


def _own_code(error: BaseException) -> str:
    """The line of the user's own code that an error was raised in, or that called what raised it; empty for limbeck's.

    A library may stand between the two; but what limbeck itself raised below the user's line is limbeck's to explain.
    """
    import sysconfig
    import traceback

    libraries = {Path(p).resolve() for p in sysconfig.get_paths().values()}
    home = Path(__file__).resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_file():
            continue
        path = path.resolve()
        if path.is_relative_to(home):
            return ""
        if not any(path.is_relative_to(place) for place in libraries):
            return f"{frame.filename}:{frame.lineno}"
    return ""


def run_and_exit() -> Any:
    """Entry point of the ``limbeck`` command."""
    sys.exit(main())


if __name__ == "__main__":
    run_and_exit()
