"""The best student on the validation split, kept beside the last one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.engine import distributed as dist
from limbeck.engine.bench import Bench
from limbeck.grammar.evaluator import Evaluator, main_metric
from limbeck.grammar.method import Method
from limbeck.grammar.signal import evaluating
from limbeck.storage import store


class Best:
    """The best student on the validation split, kept beside the last one and marked as such."""

    def __init__(self, bench: Bench, method: Method, evaluator: Evaluator, folder: Path) -> None:
        self.bench, self.method, self.evaluator, self.folder = bench, method, evaluator, folder / "best"
        # an interrupted run goes on with what it had found
        self.known: dict[str, Any] | None = store.load_tree(self.folder) if store.is_complete(self.folder) else None

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics on the validation split of what the method would deliver now; kept where it is better than all before."""
        made = self.method.artifact()
        with evaluating(role.module for role in self.method.roles.values()):
            values = self.evaluator.score(made, self.bench, "valid")
        primary, higher = main_metric(self.evaluator, self.bench.task)
        score = values.get(primary, math.nan)
        known = math.nan if self.known is None else float(self.known["score"])
        if not math.isnan(score) and (math.isnan(known) or (score > known if higher else score < known)):
            # every process gathers a sharded student, the first one writes
            state = _whole(made.state())
            self.known = {"score": score, "step": step, "valid": values}
            if dist.rank() == 0:
                store.save_tree(self.folder, {**self.known, "state": state})
        return values

    @property
    def step(self) -> int | None:
        """The step of the best evaluation; ``None`` before the first."""
        return None if self.known is None else int(self.known["step"])

    @property
    def metrics(self) -> dict[str, float]:
        """What the best one scored on the validation split, and at which step; empty where nothing was evaluated."""
        if self.known is None:
            return {}
        return {f"valid/{k}": v for k, v in self.known["valid"].items()} | {"step": float(self.known["step"])}


def _whole(state: Any) -> Any:
    """A tree of modules and tensors as tensors, the pieces of sharded ones joined."""
    if isinstance(state, dict):
        return {k: _whole(v) for k, v in state.items()}
    return dist.whole_state(state) if isinstance(state, nn.Module) else dist.gathered(state)
