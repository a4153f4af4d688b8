"""A trained network evaluated on labelled data: its run's own, or others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.data.splits import judged_whole
from limbeck.errors import ConfigError
from limbeck.grammar.task import Task
from limbeck.recipe.overrides import apply
from limbeck.recipe.recipe import load_tree, make

if TYPE_CHECKING:
    from limbeck.predict import Loaded

SPLITS = ("train", "valid", "test")


def judge(loaded: Loaded, overrides: Sequence[str], split: str | None, progress: bool) -> dict[str, float]:
    """See `limbeck.predict.Loaded.evaluate`."""
    if split is not None and split not in SPLITS:
        raise ConfigError.unknown("--split", split, SPLITS, "split")
    if loaded.kind not in ("network", "detector") or loaded.task is None or _judged_otherwise(loaded):
        return _by_run(loaded, overrides, split)
    about = loaded.about
    node = _node(loaded, overrides)
    task = make(Task, node, "task")
    task.recall(about, bare=False)
    own: Any = loaded.task
    if getattr(own, "_tokenizer", None) is not None:
        task.tokenizer_name, task._tokenizer, task._whose = None, own._tokenizer, "the student"
        task.length = own.length
    other = any(token.startswith("task.data") for token in overrides)
    with judged_whole(other and split is None) as whole:
        task.load(_seed(loaded))
    built = loaded.built
    data = getattr(task, split or "test")
    metrics: Mapping[str, float] = task.evaluate(built, data, device=loaded.device)
    loaded.judged = {"items": len(data), "split": "all items" if whole else split or "test"}
    return dict(metrics)


def _judged_otherwise(loaded: Loaded) -> bool:
    """Whether a run's report tells what its evaluator makes of the student (a probe on its features), not what it answers."""
    if not loaded._place.run:
        return False
    node = load_tree(loaded.path / "config.yaml").get("evaluator")
    return (node.get("use") if isinstance(node, dict) else node) not in (None, "direct", "exposure")


def _seed(loaded: Loaded) -> int:
    return int(load_tree(loaded.path / "config.yaml").get("seed") or 0) if loaded._place.run else 0


def _node(loaded: Loaded, overrides: Sequence[str]) -> dict[str, Any]:
    """The task's settings, its data among them."""
    place = loaded._place
    bad = [t for t in overrides if not t.startswith("task.")]
    if bad:
        raise ConfigError(
            "command line", "only settings of the task change how a student is evaluated", given=bad[0],
            expected="task.data=..., task.eval_batch=...",
        )  # fmt: skip
    tree: dict[str, Any]
    if place.run:
        tree = {"task": load_tree(place.folder / "config.yaml")["task"]}
    else:
        assert loaded.task is not None
        tree = {"task": {**loaded.task.config}}
        tree["task"].pop("data", None)
    if not isinstance(tree["task"], dict):
        tree["task"] = {"use": tree["task"]}
    named = any(t.startswith("task.data=") for t in overrides)
    if named:  # settings of the data that are replaced are not settings of the others
        tree["task"].pop("data", None)
    elif not place.run:
        raise ConfigError(
            "task.data", "is missing: an export does not say where its data lie", expected="task.data=folder:photos"
        )
    for token in overrides:
        apply(tree, token)
    data = tree["task"].get("data")
    if isinstance(data, dict) and data.get("use") == "given":
        raise ConfigError(
            "task.data", "the run learnt from data that a program held", expected="task.data=folder:photos, or others"
        )
    node: dict[str, Any] = tree["task"]
    return node


def _by_run(loaded: Loaded, overrides: Sequence[str], split: str | None) -> dict[str, float]:
    """Samplers, sets, tables, scenes: by their run's own evaluator."""
    from limbeck.recipe.recipe import build, check
    from limbeck.run.preparing import prepare
    from limbeck.run.restoring import bring_back
    from limbeck.run.rows import evaluator_of

    if not loaded._place.run:
        raise ConfigError(
            "RUN", f"an exported {loaded.kind} is evaluated by its run's evaluator", given=str(loaded.path),
            remedy="name the run: limbeck evaluate RUN",
        )  # fmt: skip
    recipe = build(check(load_tree(loaded.path / "config.yaml", overrides)))
    bench = prepare(recipe, loaded.path, say=lambda text: None, check=False)
    found = bring_back(recipe, bench, loaded.path)
    loaded.judged = {"items": len(bench.task.test), "split": split or "test"}
    return dict(evaluator_of(recipe).score(found.artifact, bench, split or "test"))


__all__ = ["judge"]
