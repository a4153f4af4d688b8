"""The rows of a report: what was made, who it learnt from, the baselines, each scored by the same evaluator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.engine.bench import Bench
from limbeck.errors import ConfigError, MethodError
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.average import Average
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Method
from limbeck.recipe.recipe import Recipe, make


@dataclass
class Scored:
    """What was scored.

    Attributes:
        rows: the artifacts by name, but for those whose metrics were measured before.
        metrics: name -> metrics, in the order of the report.
        baseline: the row that the student is held against, or ``""``.
    """

    rows: dict[str, Artifact] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    baseline: str = ""

    def named(self) -> dict[str, dict[str, float]]:
        """Every row once: the baseline as ``alone``, the others by their own names."""
        return {"alone" if name == self.baseline else name: row for name, row in self.metrics.items()}

    def told(self) -> dict[str, Any]:
        """As ``result.json`` has it: ``teacher``, ``student``, ``alone`` (the baseline), and every row by its own name."""
        return {
            "teacher": self.metrics.get("teacher", {}),
            "student": self.metrics["student"],
            "alone": self.metrics.get(self.baseline, {}),
            "rows": self.metrics,
        }


def called(scored: Scored, *said: Mapping[str, str]) -> dict[str, str]:
    """What a report calls the teacher and the baseline (``names`` of a result), where their rows' names do not say it.

    Args:
        scored: the rows.
        said: what task, evaluator and method call rows; the last has the last word.
    """
    words = {row: name for one in said for row, name in one.items()}
    rows = {"teacher": "teacher", "alone": scored.baseline}
    return {role: words[row] for role, row in rows.items() if row in words and row in scored.metrics}


def merged(taken: Collection[str], **parts: Mapping[str, Any]) -> dict[str, Any]:
    """Further entries of a result from several sides: lists one after the other, mappings joined, nothing lost.

    Args:
        taken: entries that the result has itself.
        **parts: what each side adds, by who it is.

    Raises:
        MethodError: one has an entry of the result's own name, or both have one that cannot be joined.
    """
    found: dict[str, Any] = {}
    for who, entries in parts.items():
        for name, value in entries.items():
            held = found.get(name)
            if name in taken:
                raise MethodError(
                    f"{who}.extras", f"{name!r} is an entry that every result has", remedy="call it otherwise"
                )
            if isinstance(held, list) and isinstance(value, list):
                found[name] = [*held, *value]
            elif isinstance(held, Mapping) and isinstance(value, Mapping) and not set(held) & set(value):
                found[name] = {**held, **value}
            elif name in found:
                raise MethodError(f"{who}.extras", f"{name!r} is there already", remedy="call it otherwise")
            else:
                found[name] = value
    return found


def evaluator_of(recipe: Recipe) -> Evaluator:
    """The recipe's evaluator; the task's own where a recipe was made without one."""
    if recipe.evaluator is None:
        recipe.evaluator = make(Evaluator, recipe.task.default_evaluator(), "evaluator")
    return recipe.evaluator


def check_baselines(evaluator: Evaluator, bench: Bench, wanted: list[str] | None) -> None:
    """Refuse baselines that the evaluator does not offer."""
    known = [name for name in evaluator.rows(bench) if not _takes_part(name, bench)]
    for name in wanted or ():
        if name not in known:
            raise ConfigError.unknown("baselines", name, known, "baseline of this run")


def _takes_part(name: str, bench: Bench) -> bool:
    """Whether a row is a participant's, or stands for one, and no baseline."""
    return name == "teacher" or name in bench.built


def score_rows(
    evaluator: Evaluator,
    bench: Bench,
    method: Method,
    made: Artifact,
    baselines: list[str] | None,
    average: Average | None = None,
) -> Scored:
    """Every row scored on the test split: the student first, then what the method adds, who takes part, the baselines.

    A participant that the method has a row of its own for is scored as that one alone.

    Args:
        evaluator: scores all of them.
        bench: the run.
        method: adds rows of its own.
        made: what it delivers.
        baselines: which baselines are scored; ``None`` for all.
        average: of the student, which has a row of its own.
    """
    found = Scored(baseline=method.baseline or evaluator.baseline)
    bench.made = made
    own: dict[str, Artifact] = {"student": made, **method.rows()}
    if average is not None:
        title, role = average.row()
        own[title] = method.network(role)
    for name, artifact in own.items():
        found.rows[name] = artifact
        found.metrics[name] = evaluator.score(artifact, bench)
    for name, made_by in evaluator.rows(bench).items():
        if name in own and name in bench.built:
            continue
        if name in own:
            raise ValueError(f"the method and the evaluator both have a row {name!r}")
        if not _takes_part(name, bench) and baselines is not None and name not in baselines:
            continue
        row = made_by()
        if isinstance(row, Artifact):
            found.rows[name] = row
            found.metrics[name] = evaluator.score(row, bench)
        elif isinstance(row, Mapping):
            found.metrics[name] = dict(row)
    return found
