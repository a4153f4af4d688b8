"""Paraphrases of held-out sentences, unfiltered, measured by a critic that took no part in making them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from limbeck.data.paraphrases import rouge_l
from limbeck.errors import ConfigError
from limbeck.evaluators.direct import Direct
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows, participants
from limbeck.grammar.random import Draws
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings

NAMES = {"evaluator": {"paraphrased": "Paraphrased"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@dataclass
class Rewritten:
    """What a network wrote for sentences.

    Attributes:
        originals: the sentences.
        texts: one for each.
        passed: which the held-out critic and the other filters let pass.
        entails, entailed: the held-out critic's probabilities, original to new and back.
    """

    originals: list[str]
    texts: list[str]
    passed: list[bool]
    entails: list[float]
    entailed: list[float]


@runtime_checkable
class Rewrites(Protocol):
    """A method whose networks rewrite sentences."""

    def rewritten(self, artifact: NetworkArtifact, split: str, sentences: int, texts: int, draws: Draws) -> Rewritten:
        """So many texts for so many held-out sentences of a split."""


@settings
class Paraphrased(Evaluator):
    """What networks write for held-out sentences, before any filter.

    ``passed``: the share that the held-out critic finds entailed both ways (of summaries forward), reworded, of a fitting
    length and with the same numbers; ``distinct_passed``: different texts among those that passed, a written text; ``distinct_2``:
    different pairs of words among all that were written; ``overlap``: ROUGE-L with the original; ``length_ratio``: the length as
    a share of the original's; ``entails`` and ``entailed``: mean probabilities of the critic.

    Args:
        sentences: of the split, at most.
        texts: for each.
    """

    sentences: Count = 60
    texts: Count = 2

    primary = "passed"
    higher_is_better = True
    even = False

    def accept(self, task: Any) -> None:
        """Refuse a task without sentences."""
        if not hasattr(task, "half"):
            raise ConfigError(
                "evaluator",
                f"it measures rewritten sentences, and {type(task).__name__} has none",
                expected="task=sentences",
            )

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of a network, or of a critic on its part of the task."""
        if not isinstance(artifact, NetworkArtifact):
            raise TypeError(f"this evaluator scores networks that write, and this is a {artifact.kind}")
        if artifact.part:
            return Direct().score(artifact, bench, split)  # a critic
        if not isinstance(bench.method, Rewrites):
            raise ConfigError("evaluator", "the method's networks rewrite nothing", given=type(bench.method).__name__)
        draws = Draws(0, ("rewritten", split), bench.device)
        made = bench.method.rewritten(artifact, split, self.sentences, self.texts, draws)
        n = max(1, len(made.texts))
        words = [re.findall(r"[a-z0-9]+", t.lower()) for t in made.texts]
        runs = [pair for w in words for pair in itertools.pairwise(w)]
        good = {" ".join(t.lower().split()) for t, fine in zip(made.texts, made.passed, strict=True) if fine}
        each = torch.tensor(made.passed, dtype=torch.float64)
        sizes = [len(t) / max(1, len(o)) for t, o in zip(made.texts, made.originals, strict=True)]
        found = {
            "passed": float(each.mean()) if len(each) else 0.0,
            "distinct_passed": len(good) / n,
            "distinct_2": len(set(runs)) / max(1, len(runs)),
            "overlap": sum(rouge_l(o, t) for o, t in zip(made.originals, made.texts, strict=True)) / n,
            "length_ratio": sum(sizes) / n,
            "entails": sum(made.entails) / n,
            "entailed": sum(made.entailed) / n,
        }
        return Scores(found, {"passed": each})

    def rows(self, bench: Bench) -> Rows:
        """Who takes part, critics too, and the task's baselines."""
        return {**participants(bench), **bench.task.baselines(bench)}


__all__ = ["Paraphrased", "Rewrites", "Rewritten"]
