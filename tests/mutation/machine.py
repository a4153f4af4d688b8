"""Apply one change to a copy of the package, run the tests that should notice, and tell whether one failed.

Each mutant lives in a forked child: torch and pytest are imported once, before the fork; limbeck is imported by the
child alone, from the changed copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "limbeck"


@dataclass(frozen=True)
class Mutant:
    """A change of one place of one file.

    Attributes:
        file: below the package, as ``functional/divergence.py``.
        old: text that occurs exactly once in it.
        new: what stands there instead.
        tests: what pytest is asked to run: files, and ``-k`` with an expression.
        why: the mistake in words.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str

    def apply(self, text: str) -> str:
        """The changed text.

        Raises:
            ValueError: the place is not there, or there are several, or nothing changes: the list must be mended.
        """
        found = text.count(self.old)
        if found != 1 or self.old == self.new:
            raise ValueError(f"{self.file}: {self.old!r} occurs {found} times")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What came of a run of tests.

    Attributes:
        verdict: ``killed`` (a test failed), ``survived`` (all passed), ``timeout`` (counts as killed), or ``broken``
            (no test ran).
        seconds: how long it took.
        by: the test that failed first.
    """

    verdict: str
    seconds: float
    by: str = ""

    @property
    def noticed(self) -> bool:
        """Whether the tests told the mutant from the original."""
        return self.verdict in ("killed", "timeout")


@contextlib.contextmanager
def package(mutant: Mutant | None) -> Iterator[Path]:
    """A folder with a changed copy of the package; without a mutant a true copy."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "limbeck"
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            path = copy / mutant.file
            path.write_text(mutant.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
        yield Path(folder)


def run(mutant: Mutant | None, tests: Sequence[str], limit: float = 300.0) -> Outcome:
    """Run tests against a copy of the package, until the first failure."""
    began = time.perf_counter()
    with package(mutant) as folder:
        log = folder / "log.txt"
        child = os.fork()
        if child == 0:
            _child(folder, log, tests)
        status: int | None = None
        while status is None:
            done, raw = os.waitpid(child, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(raw)
            elif time.perf_counter() - began > limit:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Outcome("timeout", time.perf_counter() - began)
            else:
                time.sleep(0.02)
        text = log.read_text(errors="replace") if log.exists() else ""
    seconds = time.perf_counter() - began
    failed = next((line.split()[1] for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))), "")
    if status == 0:
        return Outcome("survived", seconds)
    # 1: tests failed; 2: interrupted by an error of collection, which a mutant that cannot be imported causes
    if status in (1, 2) and failed:
        return Outcome("killed", seconds, failed)
    return Outcome("broken", seconds, text[-400:])


def _child(folder: Path, log: Path, tests: Sequence[str]) -> None:
    """Run pytest here and leave; never returns."""
    code = 70
    try:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(ROOT)
        for name in [n for n in sys.modules if n.split(".")[0] in ("limbeck", "tests", "conftest")]:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
        os.environ["LIMBECK_WORKSPACE"] = str(folder / "workspace")
        sys.dont_write_bytecode = True
        import pytest

        import limbeck

        if Path(limbeck.__file__).parent != folder / "limbeck":
            raise RuntimeError(f"limbeck came from {limbeck.__file__}")
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]))
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
