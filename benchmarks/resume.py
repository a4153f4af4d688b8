"""Killed and run again: does the same come out, bit for bit?

The same command runs twice: once undisturbed, once killed (SIGKILL: nothing can be saved any more) at some moment of its
training, typed again, killed again. Each has a workspace of its own. In the end the student's file and every metric must
be equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Check, Report, Row, Say, quiet


@dataclass(frozen=True)
class Settings:
    """Which recipe, how it is shrunk, and after which logged steps it is killed."""

    recipe: str = "nkd"
    overrides: tuple[str, ...] = ("train.steps=1200", "teach.steps=200")
    save_every: int = 100
    kills: tuple[int, ...] = (330, 810)


TOY = Settings(overrides=("train.steps=60", "teach.steps=3"), save_every=10, kills=(30,))


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """One recipe, with and without being killed."""
    settings = settings or Settings()
    report = Report("resume", "Killed and typed again, beside undisturbed", asdict(settings))
    with tempfile.TemporaryDirectory() as place:
        _measure(settings, Path(place), report, say)
    return report


def _measure(settings: Settings, place: Path, report: Report, say: Say) -> None:
    found: dict[str, dict[str, Any]] = {}
    for name, kills in (("undisturbed", ()), ("killed", settings.kills)):
        began, killed_at, started = time.perf_counter(), [], 0
        folder = place / name / "run"
        for kill in (*kills, None):
            say(f"{name}, process {started + 1} of {len(kills) + 1}")
            started += 1
            killed_at += _process(settings, place / name, folder, kill)
        result = json.loads((folder / "result.json").read_text())
        found[name] = {"student": _hash(folder / "student.safetensors"), "metrics": result["metrics"]}
        cells = {
            "processes": started,
            "killed after step": ", ".join(map(str, killed_at)),
            "seconds": time.perf_counter() - began,
        }
        report.rows.append(Row(name, {**cells, "student": found[name]["student"][:16]}))
        report.raw[name] = {"killed_at": killed_at, **found[name]}
    a, b = found["undisturbed"], found["killed"]
    names = {(who, n) for side in (a, b) for who, values in side["metrics"].items() for n in values}
    other = [k for k in names if a["metrics"].get(k[0], {}).get(k[1]) != b["metrics"].get(k[0], {}).get(k[1])]
    report.checks.append(Check("files of the student that differ", float(a["student"] != b["student"]), 0))
    report.checks.append(Check(f"metrics that differ, of {len(names)}", float(len(other)), 0))
    kills_done = len(report.raw["killed"]["killed_at"])
    report.checks.append(Check("kills that met the run at work", kills_done, len(settings.kills), at_least=True))


def command(settings: Settings, folder: Path) -> list[str]:
    """What is typed."""
    engine = ["engine.device=cpu", f"engine.save_every={settings.save_every}", "engine.log_every=2", "loggers=[jsonl]"]
    run_it = [sys.executable, "-m", "limbeck", "run", settings.recipe, "--out", str(folder)]
    return [*run_it, *settings.overrides, *engine]


def _process(settings: Settings, home: Path, folder: Path, kill: int | None) -> list[int]:
    """Run the command; kill it once it has logged a step. Returns the last step it had logged, if it was killed."""
    env = {**os.environ, "LIMBECK_WORKSPACE": str(home / "workspace"), "LIMBECK_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    home.mkdir(parents=True, exist_ok=True)
    line = command(settings, folder)
    with open(home / "said.txt", "w") as said, subprocess.Popen(line, env=env, stdout=said, stderr=said) as process:
        while kill is not None and process.poll() is None:
            step = _logged(folder / "log.jsonl")
            if step >= kill:
                process.kill()
                process.wait()
                return [step]
            time.sleep(0.002)
        if process.wait():
            raise RuntimeError(f"the run ended with {process.returncode}: {(home / 'said.txt').read_text()[-400:]}")
    return []


def _logged(path: Path) -> int:
    """The last step in a log."""
    try:
        lines = path.read_bytes()[-400:].split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


__all__ = ["TOY", "Settings", "run"]
