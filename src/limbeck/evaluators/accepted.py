"""Texts that a generator writes, unfiltered, evaluated by a critic that took no part in making them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.evaluators.direct import Direct
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows, participants
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, Fraction, settings

NAMES = {"evaluator": {"accepted": "Accepted"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@dataclass
class Unfiltered:
    """What a generator wrote about the concepts of a split.

    Attributes:
        texts: all of them.
        complete: which came to their end.
        prompts: how many were given.
        accepted: the held-out critic's probabilities [N].
    """

    texts: list[str]
    complete: list[bool]
    prompts: int
    accepted: Tensor


@runtime_checkable
class Writes(Protocol):
    """A method whose generators write."""

    def unfiltered(self, artifact: NetworkArtifact, split: str, concepts: int, texts: int, draws: Draws) -> Unfiltered:
        """Texts about so many concepts of a split, so many a prompt, by the generator of an artifact, with probabilities."""


@settings
class Accepted(Evaluator):
    """Unfiltered texts about a split's concepts, evaluated by the participant ``held-out``.

    ``accepted``: the share of texts that the held-out critic takes for valid; ``distinct_accepted``: different accepted texts a
    prompt; ``novel``: the share of accepted texts that are no training statements; ``complete``: the share that came to an
    end; ``words``: in a text. Critics have rows of their own: how well they tell real test statements from corrupted ones.

    Args:
        threshold: probability from which a text is accepted.
        concepts: of the split, at most; evenly spread.
        texts: for each prompt.
    """

    threshold: Fraction = 0.5
    concepts: Count = 60
    texts: Count = 4

    primary = "accepted"
    higher_is_better = True
    even = False

    def accept(self, task: Any) -> None:
        """Refuse a task without concepts."""
        if not hasattr(task, "concepts"):
            raise ConfigError(
                "evaluator",
                f"it evaluates texts about concepts, and {type(task).__name__} has none",
                expected="task=statements",
            )

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of a generator, or of a critic on its part of the task."""
        if not isinstance(artifact, NetworkArtifact):
            raise TypeError(f"this evaluator scores generators, and this is a {artifact.kind}")
        task: Any = bench.task
        if artifact.part:
            return Direct().score(artifact, bench, split)  # a critic
        if not isinstance(bench.method, Writes):
            raise ConfigError("evaluator", "the method writes no texts", given=type(bench.method).__name__)
        draws = Draws(0, ("evaluated", split), bench.device)
        made = bench.method.unfiltered(artifact, split, self.concepts, self.texts, draws)
        hits = made.accepted >= self.threshold
        real = {_same(s.text) for s in task.statements("train")}
        kept = {_same(t) for t, hit in zip(made.texts, hits.tolist(), strict=True) if hit}
        count = max(1, len(made.texts))
        scores = {
            "accepted": float(hits.double().mean()) if len(hits) else 0.0,
            "distinct_accepted": len(kept) / max(1, made.prompts),
            "novel": sum(t not in real for t in kept) / max(1, len(kept)),
            "complete": sum(made.complete) / count,
            "words": sum(len(t.split()) for t in made.texts) / count,
        }
        return Scores(scores, {"accepted": hits.double()})

    def rows(self, bench: Bench) -> Rows:
        """Who takes part, critics too, and the task's baselines."""
        return {**participants(bench), **bench.task.baselines(bench)}


def _same(text: str) -> str:
    return " ".join(text.lower().split())


__all__ = ["Accepted", "Unfiltered", "Writes"]
