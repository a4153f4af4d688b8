"""How things are measured here, and how results are kept.

Time is CPU time of this process (`time.process_time`), in interleaved rounds: every round runs every variant once, in an
order of its own, and only ratios (or differences) within one round are compared. So a machine that is busy with other
things, or that gets slower as it gets warm, moves both sides alike. Medians over the rounds decide; the raw rounds are
kept. Memory is the growth of the peak of resident memory, each measurement in a process of its own, in which the C library
gives every larger block back as soon as it is freed: so the peak is what is held at a time, not how blocks happened to lie.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import peers

if TYPE_CHECKING:
    from limbeck.recipe.recipe import Recipe

Say = Callable[[str], None]
ROOT = Path(__file__).parents[1]


def quiet(text: str) -> None:
    """Say nothing."""


@dataclass
class Row:
    """One line of a table: who, its numbers by column, and a remark."""

    name: str
    cells: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass
class Check:
    """A promise with its number.

    Attributes:
        what: the promise in words.
        value: what was measured; ``None`` where it could not be (a peer is missing).
        limit: the bound.
        at_least: the value must not lie below the bound; otherwise not above it.
        why: why it could not be measured.
    """

    what: str
    value: float | None
    limit: float
    at_least: bool = False
    why: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the promise held; ``None`` where nothing was measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def said(self) -> str:
        """The promise and what came of it, in one line."""
        bound = f"{'at least' if self.at_least else 'at most'} {number(self.limit)}"
        if self.value is None:
            return f"{self.what}: {bound}, NOT MEASURED ({self.why})"
        return f"{self.what}: {bound}, measured {number(self.value)}: {'PASS' if self.passed else 'FAIL'}"


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        name: of the benchmark.
        title: what it compares, in one line.
        settings: sizes and repetitions.
        rows: the table.
        checks: the promises.
        raw: every round of every variant.
        notes: what a reader must know to read the numbers right.
    """

    name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool | None:
        """``False`` if a promise was broken, ``None`` if none was broken but one not measured, else ``True``."""
        states = [check.passed for check in self.checks]
        return False if False in states else None if None in states else True

    @contextmanager
    def peer(self, name: str, **cells: Any) -> Iterator[None]:
        """A peer that is missing, or does not run, becomes a row that says so."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's deprecations are not our subject
                yield
        except peers.Missing as missing:
            self.rows.append(Row(name, dict(cells), str(missing)))
        except Exception as error:
            self.rows.append(Row(name, dict(cells), f"failed: {peers.brief(error)}"))

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "benchmark": self.name,
            "title": self.title,
            "passed": self.passed,
            "checks": [
                {
                    "what": c.what,
                    "value": c.value,
                    "limit": c.limit,
                    "at_least": c.at_least,
                    "passed": c.passed,
                    "said": c.said(),
                }
                for c in self.checks
            ],
            "rows": [{"name": r.name, **r.cells, "note": r.note} for r in self.rows],
            "settings": self.settings,
            "notes": self.notes,
            "raw": self.raw,
        }


def number(value: Any) -> str:
    """A number for a table: three significant digits, or what else it is."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


# ------------------------------------------------------------------------------------------------------- time


def cpu_seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """CPU seconds of one call, over ``repeats`` calls."""
    began = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - began) / repeats


def interleave(
    variants: Mapping[str, Callable[[], float]], rounds: int, say: Say = quiet, warm: bool = True
) -> dict[str, list[float]]:
    """Every variant once a round, in an order that changes; each returns its own CPU seconds.

    Args:
        variants: by name, a function that works once and returns what it measured.
        rounds: how many.
        say: told how far it is.
        warm: run every variant once before, unmeasured.

    Returns:
        The measured seconds of every round, by name.
    """
    order = list(variants)
    found: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(0)
    if warm:
        for name in order:
            variants[name]()
    for number_ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            found[name].append(variants[name]())
        say(f"round {number_ + 1} of {rounds}")
    return found


def ratios(raw: Mapping[str, Sequence[float]], name: str, floor: str) -> list[float]:
    """What ``name`` took over what ``floor`` took, round by round."""
    return [a / b for a, b in zip(raw[name], raw[floor], strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median and range: ``1.03 (0.98 to 1.08)``."""
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


class Ticks:
    """A progress display that notes the CPU time at every step: the engine's loop is measured from the inside.

    Args:
        first: the step after which the clock starts.
        last: the step after which it stops.
        only: the stage whose steps count; by default those of all.
    """

    def __init__(self, first: int, last: int, only: str | None = None) -> None:
        from limbeck.engine.progress import Progress

        # plain lines, as in a batch job, into nothing: what showing progress costs is part of a step
        self._null = open(os.devnull, "w")  # noqa: SIM115 - closed in close
        self._shown = Progress(file=self._null, rank=0)
        self.first, self.last, self.done = first, last, 0
        self.began = self.ended = 0.0
        self.only, self.counts = only, only is None

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """A stage begins."""
        self.counts = self.only in (None, name)
        self._shown.stage(name, total, done)

    def advance(self, n: int = 1, **metrics: Any) -> None:
        """A step is done."""
        if not self.counts:
            return
        self._shown.advance(n, **metrics)
        if n:
            self.done += n
            if self.done == self.first:
                self.began = time.process_time()
            elif self.done == self.last:
                self.ended = time.process_time()

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Let the null device go."""
        self._shown.close()
        self._null.close()

    @property
    def seconds(self) -> float:
        """CPU seconds of one step."""
        return (self.ended - self.began) / (self.last - self.first)


class Between:
    """A progress display that takes other people's steps between two of the engine's, and times each by this thread's CPU.

    So every variant meets the same moment of the machine, step by step; who comes first changes from step to step.

    Args:
        others: by name, a function that takes one step.
        warm: steps that are not counted.

    Attributes:
        seconds: CPU seconds of every step, by name; the engine's is ``engine``.
    """

    def __init__(self, others: Mapping[str, Callable[[], Any]], warm: int) -> None:
        from limbeck.engine.progress import Progress

        self._null = open(os.devnull, "w")  # noqa: SIM115 - closed in close
        self._shown = Progress(file=self._null, rank=0)
        self.others, self.warm, self.done, self._began = dict(others), warm, 0, 0.0
        self.seconds: dict[str, list[float]] = {name: [] for name in ("engine", *others)}

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """A stage begins."""
        self._shown.stage(name, total, done)

    def advance(self, n: int = 1, **metrics: Any) -> None:
        """The engine has taken a step: now the others take theirs."""
        self._shown.advance(n, **metrics)
        if not n:
            return
        counted = self.done >= self.warm
        if counted:
            self.seconds["engine"].append(time.thread_time() - self._began)
        names = list(self.others)
        turn = self.done % len(names) if names else 0
        for name in names[turn:] + names[:turn]:
            began = time.thread_time()
            self.others[name]()
            if counted:
                self.seconds[name].append(time.thread_time() - began)
        self.done += 1
        self._began = time.thread_time()

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Let the null device go."""
        self._shown.close()
        self._null.close()


# ----------------------------------------------------------------------------------------------------- memory


def peak_growth(function: str, **arguments: Any) -> float:
    """MB by which the peak of resident memory grows while something runs, in a process of its own.

    Args:
        function: ``package.module:name`` of a function that prepares inputs and returns the work.
        **arguments: its arguments, as JSON has them.

    Raises:
        peers.Missing: the function needs a peer that is not installed.
        RuntimeError: the process failed.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env["MALLOC_MMAP_THRESHOLD_"] = (
        "65536"  # glibc: freed blocks above this go back at once; repeats agree within 0.1 MB
    )
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks.memory", function, json.dumps(arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{function} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    found = json.loads(lines[-1])
    if "missing" in found:
        raise peers.Missing(found["missing"])
    return float(found["mb"])


# ------------------------------------------------------------------------------------------------ what is kept


def machine() -> dict[str, Any]:
    """The machine, as far as it matters for a figure; nothing that names it."""
    import torch

    from limbeck.run.measures import processor

    found: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    try:
        found["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
        found["load"] = round(os.getloadavg()[0], 2)
    except (AttributeError, OSError, ValueError):
        pass
    return found


def write(report: Report, folder: Path, seconds: float, before: dict[str, Any]) -> Path:
    """Keep a report as ``NAME.json``."""
    from limbeck.run.measures import versions
    from limbeck.storage.store import atomic_write

    found = machine()
    loads = {"load_before": before.get("load"), "load_after": found.pop("load", None)}
    about = {
        "seconds": round(seconds, 1),
        "machine": {**found, **loads},
        "versions": {**versions(), **peers.versions()},
    }
    # one of it is this benchmark itself
    if max(loads["load_before"] or 0.0, (loads["load_after"] or 0.0) - 1.0) > 0.75 * (found["cores"] or 1):
        report.notes.append(
            "other jobs were running on this machine: ratios within a round hold, absolute times do not"
        )
    path = folder / f"{report.name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps({**report.as_json(), **about}, indent=1) + "\n").encode())
    return path


def loop_seconds(step: Callable[[Any], Any], batches: Iterator[Any], warm: int, steps: int) -> Callable[[], float]:
    """A variant for `interleave`: CPU seconds of a step in somebody's own loop.

    Args:
        step: one step, given a batch.
        batches: without end; each call goes on where the last one was.
        warm: steps that are not measured, each time.
        steps: how many are; their batches are drawn before.
    """

    def block() -> float:
        for batch in itertools.islice(batches, warm):
            step(batch)
        taken = list(itertools.islice(batches, steps))
        return cpu_seconds(lambda: [step(batch) for batch in taken]) / steps

    return block


def engine_seconds(recipe: Recipe, folder: Path, warm: int, steps: int, stage: str | None = None) -> float:
    """CPU seconds of a step of a prepared recipe in limbeck's engine, as ``limbeck run`` runs it: guard, logs and progress.

    Args:
        recipe: `limbeck.run.prepare` has been given it.
        folder: where the run's folder may lie meanwhile.
        warm: steps before the clock starts.
        steps: how many are measured.
        stage: whose steps count; by default those of all.
    """
    from limbeck.engine.engine import Engine
    from limbeck.engine.logs import make_loggers

    ticks = Ticks(warm, warm + steps, stage)
    with tempfile.TemporaryDirectory(dir=folder) as place:  # noqa: SIM117
        with make_loggers(["csv", "jsonl", "tensorboard"], Path(place), {}) as logs:
            Engine(recipe.engine, recipe.seed, Path(place), None, logs, ticks).run(recipe.method)
    ticks.close()
    return ticks.seconds


__all__ = [
    "Check",
    "Report",
    "Row",
    "Ticks",
    "cpu_seconds",
    "engine_seconds",
    "interleave",
    "loop_seconds",
    "machine",
    "number",
    "peak_growth",
    "quiet",
    "ratios",
    "spread",
    "write",
]
