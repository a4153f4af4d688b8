"""How soon the command line answers: CPU time of whole processes, also beside 55 further papers.

Each command is a process of its own. The further papers are copies of a shipped one in a copy of the package, under names of
their own: what the catalogue costs when many have moved in.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import limbeck
from benchmarks.harness import Check, Report, Row, Say, quiet


@dataclass(frozen=True)
class Settings:
    """How many further papers, and how often each command is typed."""

    papers: int = 55
    rounds: int = 9


TOY = Settings(papers=2, rounds=1)

COMMANDS = {"limbeck --help": ["--help"], "limbeck methods": ["methods"], "limbeck run --help": ["run", "--help"]}
LIMITS = {"limbeck --help": 0.5, "limbeck methods": 1.0}
"""Seconds."""


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """What each command takes, with the papers that are there and with further ones."""
    settings = settings or Settings()
    report = Report("start", "Commands that must answer at once (CPU time of a process)", asdict(settings))
    with tempfile.TemporaryDirectory() as place:
        shipped = Path(limbeck.__file__).parent
        more = crowd(shipped, Path(place), settings.papers)
        where = {"as shipped": shipped.parent, f"with {settings.papers} further papers": more.parent}
        raw: dict[str, list[float]] = {f"{c}, {w}": [] for c in COMMANDS for w in where}
        for i in range(settings.rounds):
            say(f"round {i + 1} of {settings.rounds}")
            for name, words in COMMANDS.items():
                for kind, root in where.items():
                    raw[f"{name}, {kind}"].append(seconds(words, root))
    for name, values in raw.items():
        report.rows.append(Row(name, {"seconds": statistics.median(values), "most": max(values)}))
    report.raw["seconds"] = raw
    for name, limit in LIMITS.items():
        for kind in where:
            value = statistics.median(raw[f"{name}, {kind}"])
            report.checks.append(Check(f"{name}, {kind}, CPU seconds", value, limit))
    return report


def crowd(package: Path, place: Path, papers: int) -> Path:
    """A copy of the package with so many further papers, each a copy of a shipped one under another name."""
    made = place / package.name
    shutil.copytree(package, made, ignore=shutil.ignore_patterns("__pycache__"))
    folder = made / "methods" / "classification"
    method, recipe = (folder / "bd_kd.py").read_text(), (folder / "bd-kd.yaml").read_text()
    for i in range(papers):
        slug = f"further-{i:02d}"
        text = method.replace('"bd-kd"', f'"{slug}"')
        text = re.sub(r"number=\d+", f"number={1000 + i}", text, count=1)
        (folder / f"{slug.replace('-', '_')}.py").write_text(text)
        (folder / f"{slug}.yaml").write_text(recipe.replace("bd-kd", slug))
    return made


def seconds(words: list[str], root: Path) -> float:
    """CPU seconds of a command, its process from start to end."""
    env = {**os.environ, "PYTHONPATH": str(root)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", *words], env=env, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"limbeck {' '.join(words)} ended with {done.returncode}: {done.stderr[-400:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


__all__ = ["TOY", "Settings", "crowd", "run"]
