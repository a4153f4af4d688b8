"""Recipes times seeds on one task: finished runs reused, one table, paired differences, cost. ``limbeck compare``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from limbeck.compare.items import difference
from limbeck.engine import interrupt
from limbeck.engine.terminal import say
from limbeck.errors import ConfigError, LimbeckError, Stopped, require
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.recipe.trust import is_trusting
from limbeck.run.fitting import PROCESS
from limbeck.run.folder import read_result
from limbeck.run.per_item import load_items
from limbeck.storage.memory import need
from limbeck.storage.store import RunLock, atomic_write, check_writable, safe_name

MOST = 10_000
"""Seeds of a comparison."""

Job = tuple[str, int, Path]
"""A recipe's name, a seed, and the run's folder."""


def compare(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    seeds: int = 3,
    out: Path = Path("runs/compare"),
    engine: Literal["process", "ray"] = "process",
    workers: int = 1,
    force: bool = False,
    first_seed: int = 0,
    quiet: bool = False,
    teachers: int = 1,
    redeal: bool = False,
) -> dict[str, Any]:
    """Run every recipe for every seed and put them side by side.

    Args:
        names: recipes, YAML files or run folders, each with settings of its own behind it where it has some
            (``"kd method.temperature=2"``); all on one task.
        overrides: ``key=value`` settings that apply to every recipe.
        seeds: how many seeds, from ``first_seed`` on.
        out: the comparison's folder: ``comparison.json``, ``report.html``, a run folder for each recipe and seed.
        engine: ``process``: here, or in ``workers`` processes; ``ray``: over a Ray cluster (the running one that
            ``RAY_ADDRESS`` names, else one on this machine) that shares the folder.
        workers: runs at a time.
        force: repeat finished runs.
        first_seed: the first seed.
        quiet: print nothing.
        teachers: how many teachers are trained, each from a seed of its own and dealt to the seeds in turn; one by default,
            which all runs share. With as many as seeds the interval covers other teachers, too.
        redeal: deal the data anew for each seed (``task.deal``): the interval then covers other training and test items,
            too.

    Returns:
        The comparison (see ``limbeck.report.summary``; ``with_items`` holds differences whose interval covers other test
        items too) with ``folder``, ``report`` and ``runs`` (label -> run folders).

    Raises:
        ConfigError: recipes of different tasks, or one that is wrong; ``teachers`` of a recipe whose teacher is not trained
            here, ``redeal`` of a task that cannot deal its data anew.
        Stopped: a signal asked to stop; finished runs are kept.
    """
    if not 1 <= seeds <= MOST:
        raise ConfigError("--seeds", given=seeds, expected=f"a whole number from 1 to {MOST:,}")
    need(workers * PROCESS, "--workers", f"{workers:,} processes at a time", "lower --workers")
    trees = {}
    for name in names:
        tree = check(load_tree(name, overrides))
        build(tree)
        if tree["name"] in trees:
            raise ConfigError(
                "RECIPE", f"two recipes are called {tree['name']!r}", remedy="give one another name: in its YAML"
            )
        trees[tree["name"]] = (name, tree)
    _same_task({label: tree for label, (_, tree) in trees.items()})
    _check_varied({label: tree for label, (_, tree) in trees.items()}, teachers, redeal)
    if not quiet:
        _say_students({label: tree for label, (_, tree) in trees.items()})
    check_writable(out)
    with RunLock(out):
        jobs = [
            (label, seed, out / f"{safe_name(label)}-seed{seed}")
            for seed in range(first_seed, first_seed + seeds)
            for label in trees
        ]
        given = {label: name for label, (name, _) in trees.items()}

        def words(job: Job) -> list[str]:
            """The settings of one run: those of all, and what goes with its seed."""
            _, seed, _ = job
            dealt = [f"task.deal={seed + 1}"] if redeal else []
            return [*overrides, *dealt, *([f"teacher_seed={seed % teachers}"] if teachers > 1 else [])]

        def tree_of(job: Job) -> dict[str, Any]:
            return check(load_tree(given[job[0]], words(job), job[1]))

        todo = [j for j in jobs if force or not _finished(j, tree_of(j))]
        failed: dict[str, dict[str, str]] = {}
        several = any(tree["engine"]["devices"] > 1 for _, tree in trees.values())
        run = _runner(engine, workers, given, words, tree_of, force, quiet, several)
        for (label, seed, _), problem in run(todo):
            if problem:
                failed.setdefault(label, {})[str(seed)] = problem
        found = _collect(jobs, failed, out, {label: tree for label, (_, tree) in trees.items()}, teachers, redeal)
        if not any(found["rows"].values()):
            first = next(iter(next(iter(failed.values())).values()))
            raise ConfigError("compare", f"no run finished: {first}")
        atomic_write(out / "comparison.json", (json.dumps(found, indent=2) + "\n").encode())
        from limbeck.report import write_report

        report = write_report(out)
    runs = {label: [str(f) for name, _, f in jobs if name == label] for label in trees}
    return {**found, "folder": str(out), "report": str(report), "runs": runs}


def _same_task(trees: dict[str, dict[str, Any]]) -> None:
    first, *others = trees
    for label in others:
        a, b = trees[first]["task"], trees[label]["task"]
        if a != b:
            differing = sorted(k for k in {*a, *b} if a.get(k) != b.get(k))
            raise ConfigError(
                f"{label}.task",
                f"{label} and {first} are not on the same task: {', '.join('task.' + k for k in differing)} differ",
                remedy="set them alike on the command line",
            )


def _check_varied(trees: dict[str, dict[str, Any]], teachers: int, redeal: bool) -> None:
    """Whether teachers and data can differ from seed to seed."""
    if teachers < 1:
        raise ConfigError("teachers", given=teachers, expected="1 or more")
    for label, tree in trees.items():
        if redeal and "deal" not in tree["task"]:
            raise ConfigError("redeal", f"{label}'s task {tree['task']['use']!r} cannot deal its data anew")
        checkpoint = (tree.get("teacher") or {}).get("checkpoint")
        if teachers > 1 and checkpoint:
            raise ConfigError(
                "teachers",
                f"{label}'s teacher is loaded from {checkpoint}, so that all seeds have the same",
                given=teachers,
                remedy=f"leave --teachers out, or name recipes with a teacher that is trained; {label} has teacher.checkpoint",
            )


def _say_students(trees: dict[str, dict[str, Any]]) -> None:
    """Say before anything is trained that the students differ: who meant otherwise need not wait for the table."""
    from limbeck.report.students import Student, remedy, said

    students: list[Student] = []
    for label, tree in trees.items():
        student = next((s for s in students if s.model == tree["student"]), None)
        if student is None:
            students.append(student := Student([], tree["student"]))
        student.rows.append(label)
    if len(students) > 1:
        say(f"-- {said(students)} {remedy(students)}".rstrip(), error=True)


def _finished(job: Job, tree: dict[str, Any]) -> bool:
    """Whether the job's folder holds its own finished run, of this very recipe."""
    folder = job[2]
    if not (folder / "result.json").is_file() or not (folder / "config.yaml").is_file():
        return False
    try:
        return check(load_tree(folder / "config.yaml")) == tree
    except LimbeckError:
        return False


Runner = Callable[[list[Job]], Iterator[tuple[Job, str]]]


def _runner(
    engine: str,
    workers: int,
    given: dict[str, str],
    words: Callable[[Job], list[str]],
    tree_of: Callable[[Job], dict[str, Any]],
    force: bool,
    quiet: bool,
    several: bool,
) -> Runner:
    def command(job: Job) -> list[str]:
        label, seed, folder = job
        # an interrupted run goes on; another run's leftovers are replaced
        goes_on = not force and _goes_on(folder, tree_of(job))
        again = [] if goes_on else ["--force"]
        return [
            sys.executable,
            "-m",
            "limbeck",
            "run",
            given[label],
            *words(job),
            "--seed",
            str(seed),
            "--out",
            str(folder),
            *again,
            *(["--trust"] if is_trusting() else []),
        ]

    def here(jobs: list[Job]) -> Iterator[tuple[Job, str]]:
        from limbeck.run import run

        for label, seed, folder in jobs:
            if not quiet:
                say(f"-- {label}, seed {seed}", error=True)
            try:
                tree = tree_of((label, seed, folder))
                # an interrupted run goes on; another run's leftovers are replaced
                run(tree, folder, force or not _goes_on(folder, tree), quiet)
            except Stopped as stopped:
                stopped.resume = "type the same command again to go on; finished runs are kept"
                raise
            except LimbeckError as error:
                yield (label, seed, folder), error.line()
            else:
                yield (label, seed, folder), ""

    def processes(jobs: list[Job]) -> Iterator[tuple[Job, str]]:
        threads = max(1, (os.cpu_count() or 1) // workers)
        env = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "LIMBECK_PROGRESS": "0",
        }

        def one(job: Job, words: list[str]) -> tuple[Job, str]:
            if interrupt.requested() is not None:
                return job, "stopped"
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
            return job, "" if done.returncode == 0 else (
                done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            )[-1]

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, jobs, [command(job) for job in jobs])  # threads know nothing of --trust
        asked = interrupt.requested()
        if asked is not None:
            raise Stopped(asked, "type the same command again to go on; finished runs are kept")

    def cluster(jobs: list[Job]) -> Iterator[tuple[Job, str]]:
        ray = require("ray", "ray", "comparing over a cluster")
        own = not ray.is_initialized()
        if own:
            ray.init(
                num_cpus=None if os.environ.get("RAY_ADDRESS") else workers,
                include_dashboard=False,
                log_to_driver=False,
            )
        try:
            remote = ray.remote(num_cpus=1)(_in_a_process)
            waiting = {remote.remote(command((n, s, f.resolve()))): (n, s, f) for n, s, f in jobs}
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                for ref in done:
                    yield waiting.pop(ref), ray.get(ref)
        finally:
            if own:
                ray.shutdown()

    if engine == "ray":
        return cluster
    # a run over several devices starts its own processes
    return here if workers == 1 and not several else processes


def _in_a_process(command: list[str]) -> str:
    """Run a command on a node of the cluster; what went wrong, or nothing."""
    done = subprocess.run(
        [sys.executable, *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LIMBECK_PROGRESS": "0"},
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _goes_on(folder: Path, tree: dict[str, Any]) -> bool:
    config = folder / "config.yaml"
    if not config.is_file():
        return not folder.exists() or not any(folder.iterdir())
    try:
        return check(load_tree(config)) == tree and not (folder / "result.json").is_file()
    except LimbeckError:
        return False


def _collect(
    jobs: list[Job],
    failed: dict[str, dict[str, str]],
    out: Path,
    trees: dict[str, dict[str, Any]],
    teachers: int,
    redeal: bool,
) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for label, seed, folder in jobs:
        row = rows.setdefault(label, {})
        path = folder / "result.json"
        if path.is_file() and str(seed) not in failed.get(label, {}):
            row[str(seed)] = {**read_result(path), "folder": os.path.relpath(folder, out)}
    results = [r for row in rows.values() for r in row.values()]
    first = results[0] if results else {}
    taught = next((r for r in results if r["metrics"].get("teacher")), None)
    found: dict[str, Any] = {
        "task": first.get("task", ""),
        "primary": first.get("primary", ""),
        "higher_is_better": first.get("higher_is_better", True),
        "seeds": sorted({seed for _, seed, _ in jobs}),
        "rows": rows,
        "settings": {
            label: {key: tree.get(key) for key in ("student", "teacher", "train", "teach")}
            for label, tree in trees.items()
        },
        "failed": failed,
        "teachers": teachers,
        "redeal": redeal,
        "notes": list(dict.fromkeys(n for r in results for n in r.get("notes", []))),
    }
    if taught is not None:
        found["teacher"] = {
            "metrics": taught["metrics"]["teacher"],
            "sizes": taught["sizes"].get("teacher", {}),
            "latency_ms": taught["latency_ms"].get("teacher", {}),
        }
    if "kd" in rows:
        found["reference"] = "kd"
    # dealt anew, no two seeds have the same test items; but then seeds are drawn together with items
    found["with_items"] = {} if redeal else _with_items(found, out)
    return found


def _with_items(found: dict[str, Any], out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each row the differences of the main metric over seeds and test items, where its runs recorded the items."""
    items = {
        label: {seed: load_items(out / result["folder"]) for seed, result in row.items()}
        for label, row in found["rows"].items()
    }
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for label in items:
        for over in ("alone", *([found["reference"]] if found.get("reference", label) != label else [])):
            e = difference(items, label, over, found["primary"])
            if e is not None and e.kind != "none":
                told.setdefault(label, {})[over] = {"mean": e.mean, "low": e.low, "high": e.high}
    return told


__all__ = ["compare"]
