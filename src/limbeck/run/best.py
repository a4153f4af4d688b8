"""The best student on the validation split, kept beside the last one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.engine import distributed as dist
from limbeck.engine.bench import Bench
from limbeck.grammar.method import Method
from limbeck.grammar.signal import evaluating
from limbeck.storage import store


class Best:
    """The best student on the validation split, kept beside the last one and marked as such."""

    def __init__(self, bench: Bench, method: Method, folder: Path) -> None:
        self.bench, self.method, self.folder = bench, method, folder / "best"
        # an interrupted run goes on with what it had found
        self.known: dict[str, Any] | None = store.load_tree(self.folder) if store.is_complete(self.folder) else None

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics on the validation split; the student is kept where it is better than all before."""
        task, student = self.bench.task, self.bench.student
        if not isinstance(student.module, nn.Module):
            return {}
        with evaluating([student.module]):
            values = task.evaluate(student, task.valid, device=self.bench.device)
        score = values.get(task.primary, math.nan)
        known = math.nan if self.known is None else float(self.known["score"])
        if not math.isnan(score) and (math.isnan(known) or (score > known if task.higher_is_better else score < known)):
            # every process gathers a sharded student, the first one writes
            state = dist.whole_state(student.module)
            self.known = {"score": score, "step": step, "valid": values}
            if dist.rank() == 0:
                store.save_tree(self.folder, {**self.known, "state": state})
        return values

    @property
    def metrics(self) -> dict[str, float]:
        """What the best one scored on the validation split, and at which step; empty where nothing was judged."""
        if self.known is None:
            return {}
        return {f"valid/{k}": v for k, v in self.known["valid"].items()} | {"step": float(self.known["step"])}
