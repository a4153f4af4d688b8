"""One forward pass over a split: for networks."""

from __future__ import annotations

from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows

NAMES = {"evaluator": {"direct": "Direct"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Direct(Evaluator):
    """The task's own metrics of a network. Rows: the teacher, and the student trained alone.

    On the test split they include the agreement with the teacher, where there is one that answers for it.
    """

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics of a network on a split."""
        if not isinstance(artifact, NetworkArtifact):
            raise TypeError(f"the direct evaluator scores networks, and this is a {artifact.kind}")
        teacher = bench.teacher if split == "test" else None
        if teacher is not None and teacher.module is artifact.built.module:
            teacher = None
        return bench.task.evaluate(artifact.built, getattr(bench.task, split), teacher, device=bench.device)

    def rows(self, bench: Bench) -> Rows:
        """``teacher`` (what a recording says of its own, where it is one) and ``alone``."""
        found: dict[str, object] = {}
        teacher = bench.teacher
        if teacher is not None:
            # a cache knows its training items only, and what its teacher scored
            recorded = getattr(teacher.module, "metrics", None)
            known = dict(recorded) if isinstance(recorded, dict) else None
            found["teacher"] = lambda: known if known is not None else NetworkArtifact(bench.task, teacher)
        found["alone"] = lambda: NetworkArtifact(bench.task, bench.alone())
        return found  # type: ignore[return-value]
