"""Questions of a split, answered in text and graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from limbeck.data.kinds import KINDS
from limbeck.data.text import Document
from limbeck.errors import ConfigError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows, participants
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings

NAMES = {"evaluator": {"graded": "Graded"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@dataclass
class Written:
    """Answers to questions.

    Attributes:
        answers: as they were read; ``None`` where there is none.
        asked: tokens of each question, its prompt included.
        tokens: tokens of what was written.
        seconds: for all of them.
        judged: how a judge likes each beside the reference (1, 0.5, 0); ``None`` without a judge, or where a verdict can't be
            read.
    """

    answers: list[str | None]
    asked: list[int]
    tokens: list[int]
    seconds: float
    judged: list[float | None]


@runtime_checkable
class Answers(Protocol):
    """A method whose networks answer questions in text."""

    def answers(self, artifact: NetworkArtifact, split: str, documents: Sequence[Document]) -> Written:
        """The answers of an artifact's network."""


@settings
class Graded(Evaluator):
    """The share of right answers to a split's questions, graded as their kind is: numbers, choices, summaries, conversations.

    ``grade``: the mean grade, where what cannot be read counts as wrong; ``grade_error``: its standard error;
    ``unread``: the share of answers that cannot be read; ``asked_tokens`` and ``written_tokens``: of a question and its
    answer; ``answers_per_second``. Of summaries also ``rouge_l``, ``entity_density`` (entities a word) and ``words``; with a judge
    ``judged``: how often it prefers the answer to the reference, both orders shown, and ``unjudged``.

    Args:
        questions: of the split, at most; evenly spread.
    """

    questions: Count = 300

    primary = "grade"
    higher_is_better = True
    even = False

    def accept(self, task: Any) -> None:
        """Refuse a task without questions."""
        if not hasattr(task, "gold_of"):
            raise ConfigError(
                "evaluator",
                f"it grades answers to questions, and {type(task).__name__} has none",
                expected="task=questions",
            )

    def chosen(self, task: Any, split: str) -> list[Document]:
        """The questions that are asked."""
        found: list[Document] = getattr(task, split).documents
        n = len(found)
        return found if n <= self.questions else [found[i * n // self.questions] for i in range(self.questions)]

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of whoever answers."""
        if not isinstance(artifact, NetworkArtifact):
            raise TypeError(f"this evaluator scores networks that answer, and this is a {artifact.kind}")
        if not isinstance(bench.method, Answers):
            raise ConfigError(
                "evaluator", "the method's networks answer no questions", given=type(bench.method).__name__
            )
        task: Any = bench.task
        documents = self.chosen(task, split)
        made = bench.method.answers(artifact, split, documents)
        kind = KINDS[task.asks.name]
        grades = [
            dict.fromkeys(kind.grade("", ""), 0.0) if a is None else kind.grade(a, task.gold_of(d))
            for a, d in zip(made.answers, documents, strict=True)
        ]
        n = max(1, len(documents))
        names = {name: "grade" if name == "score" else name for name in grades[0]}
        found = {called: sum(g[name] for g in grades) / n for name, called in names.items()}
        each = torch.tensor([g["score"] for g in grades], dtype=torch.float64)
        found |= {
            "grade_error": float((each.var(correction=0) / n).sqrt()),  # of zeros and ones: the binomial error
            "unread": sum(a is None for a in made.answers) / n,
            "asked_tokens": sum(made.asked) / n,
            "written_tokens": sum(made.tokens) / n,
            "answers_per_second": n / max(1e-9, made.seconds),
        }
        verdicts = [v for v in made.judged if v is not None]
        if made.judged:
            found |= {
                "judged": sum(verdicts) / max(1, len(verdicts)),
                "unjudged": 1.0 - len(verdicts) / max(1, len(made.judged)),
            }
        return Scores(found, {"grade": each})

    def rows(self, bench: Bench) -> Rows:
        """Who takes part and is judged, and the task's baselines."""
        return {**participants(bench), **bench.task.baselines(bench)}


__all__ = ["Answers", "Graded", "Written"]
