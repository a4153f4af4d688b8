"""Trials on the validation split, the hopeless ones stopped early, and one full run of the best."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.bench import Bench
from limbeck.engine.engine import Engine
from limbeck.engine.room import telling
from limbeck.errors import ConfigError, LimbeckError, Stopped, StorageError, require
from limbeck.grammar.evaluator import Evaluator, main_metric
from limbeck.grammar.random import own_generators
from limbeck.grammar.signal import evaluating
from limbeck.recipe.overrides import merge
from limbeck.recipe.recipe import build, check, dump, load_tree
from limbeck.run.preparing import prepare
from limbeck.run.rows import evaluator_of
from limbeck.search.space import Choice, Range, default_space, parse_space, value_at
from limbeck.storage import store
from limbeck.storage.disk import workspace
from limbeck.storage.memory import SMALLER
from limbeck.storage.plain import read_bytes

CHECKS = 4
"""Evaluations on the validation split in a trial: after each, a trial that lags behind the others is stopped."""


class Pruned(Exception):
    """A trial that lags behind."""


def search(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    space: Sequence[str] = (),
    trials: int = 40,
    minutes: float | None = None,
    share: float = 1.0,
    seed: int = 0,
    out: Path = Path("runs/search"),
    prune: bool = True,
    final: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Search settings, and methods where several recipes are named, on the validation split.

    Every trial trains a student with other settings (Optuna's tree-structured Parzen estimator), at ``share`` of the
    recipe's steps, and is scored on the validation split alone. The first trials are the recipes as they are. Trials below
    the median at the same step are stopped. In the end the best settings are run once in full, with baselines, and that run
    is scored on the test split.

    Args:
        names: recipes, YAML files or run folders, each with settings of its own behind it where it has some; all with one
            task and one deciding metric.
        overrides: ``key=value`` settings of all of them.
        space: what is varied (`parse_space`), for every recipe that has the setting; by default `default_space`.
        trials: how many trials, those of an earlier call in the same folder included.
        minutes: begin no further trial after so many minutes; ``None``: no limit.
        share: of the recipe's steps, for a trial.
        seed: of the search; trials use the recipe's own.
        out: the search's folder. The same search in the same folder goes on.
        prune: stop trials that lag behind.
        final: run the best settings in full.
        say: told what happens.

    Returns:
        ``metric``, ``higher_is_better``, ``trials`` (a row each: ``number``, ``recipe``, ``settings``, ``state``,
        ``score`` on validation, ``seconds``), ``best`` (the row), ``recipe`` (the path of the best recipe) and with
        ``final`` ``result`` (its run).

    Raises:
        ConfigError: a recipe or a setting that is wrong, recipes of different tasks, no trial that finished.
        Stopped: a signal asked to stop; finished trials are kept.
    """
    if trials < 1:
        raise ConfigError("--trials", given=trials, expected="1 or more")
    if minutes is not None and not minutes > 0:
        raise ConfigError("--minutes", given=minutes, expected="more than 0")
    if not 0 < share <= 1:
        raise ConfigError("--share", given=share, expected="a number above 0 and at most 1")
    optuna = require("optuna", "search", "searching settings")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plans = _plans(names, overrides, space)
    store.check_writable(out)
    with store.RunLock(out):
        about = {
            "recipes": {label: dump(p.tree) for label, p in plans.items()},
            "space": {label: {k: str(v) for k, v in p.space.items()} for label, p in plans.items()},
            "share": share,
            "seed": seed,
        }
        _same_search(out, about)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "trials.log")))
        first = build(next(iter(plans.values())).tree)
        metric, higher = main_metric(evaluator_of(first), first.task)
        study = optuna.create_study(
            study_name="search",
            storage=storage,
            load_if_exists=True,
            direction="maximize" if higher else "minimize",
            # a sampler of its own for each part of a search that was interrupted: what is drawn depends on what is known
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, 2 * len(plans))),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=max(4, len(plans))) if prune else optuna.pruners.NopPruner(),
        )  # fmt: skip
        searcher = _Searcher(optuna, study, plans, share, out, say)
        searcher.run(trials, minutes)
        rows = searcher.rows()
        finished = [r for r in rows if r["score"] is not None and r["state"] == "finished"]
        if not finished:
            problems = [r["problem"] for r in rows if r.get("problem")]
            raise ConfigError("search", "no trial finished" + (f": {problems[0]}" if problems else ""))
        best = (max if higher else min)(finished, key=lambda r: r["score"])
        plan = plans[best["recipe"]]
        tree = plan.tree_with(best["settings"])
        tree["name"] = f"{plan.tree['name']}-searched"
        recipe = out / "best.yaml"
        store.atomic_write(recipe, dump(tree).encode())
        found: dict[str, Any] = {
            "metric": metric,
            "higher_is_better": higher,
            "trials": rows,
            "best": best,
            "recipe": str(recipe),
        }
        if final:
            from limbeck.run import run

            say(f"best: {best['recipe']} {' '.join(_words(best['settings']))}: running it in full")
            found["result"] = run(tree, out / "best", force=not _goes_on(out / "best", tree))
        store.atomic_write(out / "search.json", (json.dumps(_plain(found), indent=2) + "\n").encode())
    return {**found, "folder": str(out)}


class _Plan:
    """A recipe of a search, with what is varied."""

    def __init__(self, name: str, tree: dict[str, Any], space: dict[str, Range | Choice]) -> None:
        self.name, self.tree, self.space = name, tree, space

    def tree_with(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The resolved recipe with other settings."""
        tree = copy.deepcopy(self.tree)
        merge(tree, _words(settings))
        return check(tree)


def _plans(names: Sequence[str], overrides: Sequence[str], words: Sequence[str]) -> dict[str, _Plan]:
    asked = parse_space(words)
    found: dict[str, _Plan] = {}
    task = None
    for name in names:
        tree = check(load_tree(name, overrides))
        recipe = build(tree)
        label = str(tree["name"])
        if label in found:
            raise ConfigError("RECIPE", f"two recipes are called {label!r}", remedy="name each recipe once")
        if task is not None and tree["task"] != task:
            differing = sorted(k for k in {*task, *tree["task"]} if task.get(k) != tree["task"].get(k))
            raise ConfigError(
                f"{label}.task", f"differs from the first recipe's: {', '.join(differing)}",
                remedy="set the task alike for all: task.KEY=VALUE",
            )  # fmt: skip
        task = tree["task"]
        space = dict(asked)
        if not asked:
            space = default_space(tree, type(recipe.method))
        elif len(names) > 1:  # of several recipes each is varied in what it has
            space = {k: v for k, v in asked.items() if not k.startswith("method.") or k.split(".")[1] in tree["method"]}
        for key in space:
            value_at(tree, key)
        if not space and len(names) == 1:
            raise ConfigError("--space", "nothing is varied", remedy="name a setting, as train.lr=1e-4..1e-2")
        found[label] = _Plan(name, tree, space)
    for key in asked:
        if not any(key in p.space for p in found.values()):
            raise ConfigError("--space", f"no recipe has {key}", remedy=f"known: {', '.join(list(found))}")
    return found


def _same_search(out: Path, about: Mapping[str, Any]) -> None:
    """Whether the folder holds this search, or none."""
    file = out / "about.json"
    if file.exists():
        before = json.loads(read_bytes(file))
        changed = [k for k in about if before.get(k) != json.loads(json.dumps(about[k]))]
        if changed:
            raise StorageError(
                str(out),
                f"holds another search ({', '.join(changed)} differ)",
                remedy="choose another folder with --out, or remove it",
            )
        return
    store.atomic_write(file, (json.dumps(about, indent=2) + "\n").encode())


class _Searcher:
    """The trials of a study, one after another."""

    def __init__(
        self, optuna: Any, study: Any, plans: dict[str, _Plan], share: float, out: Path, say: Callable[[str], None]
    ) -> None:
        self.optuna, self.study, self.plans = optuna, study, plans
        self.share, self.out, self.say = share, out, say

    def run(self, trials: int, minutes: float | None) -> None:
        """Trials until there are as many as asked for, or the time is over."""
        states = self.optuna.trial.TrialState
        began = time.monotonic()
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == states.RUNNING:  # interrupted: the same settings once more, from its last checkpoint
                self.study.tell(trial.number, state=states.FAIL)
                self.study.enqueue_trial(trial.params, user_attrs={"folder": trial.user_attrs.get("folder")})
        if not self.study.get_trials(deepcopy=False):
            for label, plan in self.plans.items():
                own = {f"{label}:{k}": value_at(plan.tree, k) for k, v in plan.space.items()}
                if all(plan.space[k.split(":", 1)[1]].holds(v) for k, v in own.items()):
                    self.study.enqueue_trial({"recipe": label, **own})
        while len([t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished() and not _cut(t)]) < trials:
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                self.say(f"time is over after {minutes:g} minutes")
                return
            self._one()

    def _one(self) -> None:
        trial = self.study.ask()
        label = trial.suggest_categorical("recipe", list(self.plans))
        plan = self.plans[label]
        settings = {k: neat(v.draw(trial, f"{label}:{k}")) for k, v in plan.space.items()}
        folder = trial.user_attrs.get("folder") or f"trial-{trial.number:04d}"
        trial.set_user_attr("folder", folder)
        began = time.monotonic()
        states = self.optuna.trial.TrialState
        try:
            score = self._score(plan, settings, self.out / "trials" / folder, trial)
        except Pruned:
            self.study.tell(trial, state=states.PRUNED)
            outcome = "stopped early"
        except Stopped as stopped:  # it stays as running: the next call goes on with it
            stopped.resume = "type the same command again to go on; finished trials are kept"
            raise
        except LimbeckError as error:
            trial.set_user_attr("problem", error.line())
            self.study.tell(trial, state=states.FAIL)
            outcome = error.line()
        else:
            trial.set_user_attr("seconds", time.monotonic() - began)
            if math.isfinite(score):
                self.study.tell(trial, score)
                outcome = f"{score:.5g}"
            else:
                trial.set_user_attr("problem", "the metric is not finite")
                self.study.tell(trial, state=states.FAIL)
                outcome = "the metric is not finite"
        shutil.rmtree(self.out / "trials" / folder, ignore_errors=True)
        self.say(f"trial {trial.number}: {label} {' '.join(_words(settings))}: {outcome}")

    @own_generators()
    def _score(self, plan: _Plan, settings: Mapping[str, Any], folder: Path, trial: Any) -> float:
        """A student trained with some settings, scored on the validation split."""
        tree = plan.tree_with(settings)
        steps = tree["train"]["steps"]
        short = max(1, round(self.share * steps))
        tree["train"] |= {"steps": short, "warmup": min(int(tree["train"]["warmup"]), short)}
        if tree["train"].get("epochs"):
            tree["train"]["epochs"] *= self.share
        tree["engine"]["eval_every"] = max(1, short // CHECKS)
        tree |= {"baselines": [], "loggers": [], "export": []}
        recipe = build(check(tree))
        with telling("memory", SMALLER):
            bench = prepare(recipe, folder, say=lambda text: None)
            evaluator = evaluator_of(recipe)
            metric, _ = main_metric(evaluator, recipe.task)
            watch = _Watch(bench, recipe.method, evaluator, metric, trial)
            Engine(
                recipe.engine, recipe.seed, folder, workspace(), evaluate=watch.evaluate,
                about={"recipe": {"search": dump(tree)}},
            ).run(recipe.method)  # fmt: skip
            return watch.last if watch.last is not None else watch.score()

    def rows(self) -> list[dict[str, Any]]:
        """The trials as a table."""
        names = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}
        found = []
        for t in self.study.get_trials(deepcopy=False):
            if t.state.name not in names or _cut(t):
                continue
            label = t.params.get("recipe", "")
            row = {
                "number": t.number,
                "recipe": label,
                "settings": {k.split(":", 1)[1]: neat(v) for k, v in t.params.items() if k.startswith(f"{label}:")},
                "state": names[t.state.name],
                "score": t.value if t.state.name == "COMPLETE" else None,
                "seconds": t.user_attrs.get("seconds"),
            }
            found.append(row | ({"problem": t.user_attrs["problem"]} if "problem" in t.user_attrs else {}))
        return found


class _Watch:
    """Scores of a trial on the validation split while it runs."""

    def __init__(self, bench: Bench, method: Any, evaluator: Evaluator, metric: str, trial: Any) -> None:
        self.bench, self.method, self.evaluator, self.metric, self.trial = bench, method, evaluator, metric, trial
        self.last: float | None = None
        self.seen = 0

    def score(self) -> float:
        """The deciding metric now."""
        made = self.method.artifact()
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluating(role.module for role in self.method.roles.values()))
            values = self.evaluator.score(made, self.bench, "valid")
        return float(values.get(self.metric, math.nan))

    def evaluate(self, step: int) -> dict[str, float]:
        """Called by the engine; stops a trial that lags behind."""
        self.last = self.score()
        self.seen += 1
        if math.isfinite(self.last):
            self.trial.report(self.last, step)
            if self.trial.should_prune():
                raise Pruned
        return {self.metric: self.last}


def neat(value: Any) -> Any:
    """A drawn number with four digits: what is tried is what is told."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _cut(trial: Any) -> bool:
    """Whether a trial was interrupted and is done once more under another number."""
    return trial.state.name == "FAIL" and "problem" not in trial.user_attrs


def _words(settings: Mapping[str, Any]) -> list[str]:
    return [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in settings.items()]


def _goes_on(folder: Path, tree: dict[str, Any]) -> bool:
    config = folder / "config.yaml"
    return config.is_file() and read_bytes(config) == dump(tree).encode()


def _plain(value: Any) -> Any:
    """A tree as strict JSON: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["neat", "search"]
