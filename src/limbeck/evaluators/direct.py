"""One forward pass over a split: for networks."""

from __future__ import annotations

from typing import Any

from limbeck.errors import ConfigError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows, participants

NAMES = {"evaluator": {"direct": "Direct"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Direct(Evaluator):
    """The task's own metrics of a network. Rows: the participants, and the task's baselines (the student trained alone).

    On the test split they include the agreement with the teacher, where there is one that answers for it.
    """

    def accept(self, task: Any) -> None:
        """Refuse a task that makes data sets, or features."""
        if hasattr(task, "pool") and not getattr(task, "scores_networks", False):
            raise ConfigError(
                "evaluator",
                f"networks are evaluated directly, and {type(task).__name__} makes data sets",
                given="direct",
                expected="fresh",
                remedy="leave the evaluator out, and it is the task's own",
            )
        if getattr(task, "answers", "") == "vector":
            raise ConfigError(
                "evaluator",
                f"networks are evaluated directly, and those of {type(task).__name__} answer with features alone",
                given="direct",
                expected="probe",
                remedy="leave the evaluator out, and it is the task's own",
            )
        self.baseline = getattr(task, "baseline", "alone")

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of a network on a split."""
        if not isinstance(artifact, NetworkArtifact):
            raise TypeError(f"the direct evaluator scores networks, and this is a {artifact.kind}")
        teacher = bench.teacher if split == "test" and not artifact.part else None
        if teacher is not None and (teacher.module is artifact.built.module or _apart(bench)):
            teacher = None
        task = artifact.judge(bench.task)
        return task.evaluate(artifact.built, getattr(task, split), teacher, device=bench.device)

    def rows(self, bench: Bench) -> Rows:
        """Whoever takes part (``teacher``: what a recording says of its own, where it is one), and the task's baselines."""
        return {**participants(bench), **bench.task.baselines(bench)}


def _apart(bench: Bench) -> bool:
    """Whether the teacher answers a part of the task of its own (another tokenizer), item by item not the student's."""
    who = bench.method.participants.get("teacher") if bench.method is not None else None
    return who is not None and bool(who.task)
