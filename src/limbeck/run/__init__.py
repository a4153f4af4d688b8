"""One run, end to end: what ``limbeck run``, ``plan`` and everything that reads a run folder stand on.

``preparing``: data read, models built, the teacher trained. ``running``: the baseline, distillation, evaluation, report.
``folder``: what a run leaves, and what it finds. ``restoring``: a run read back. ``planning``: what one will cost.
"""

from __future__ import annotations

from limbeck.engine.bench import Bench, build_model
from limbeck.run.folder import read_result
from limbeck.run.planning import plan
from limbeck.run.preparing import prepare
from limbeck.run.restoring import Restored, restore
from limbeck.run.running import run, run_recipe

__all__ = [
    "Bench",
    "Restored",
    "build_model",
    "plan",
    "prepare",
    "read_result",
    "restore",
    "run",
    "run_recipe",
]
