"""A moving average of what a method delivers, which any recipe can switch on."""

from __future__ import annotations

from typing import Any

from limbeck.errors import ConfigError
from limbeck.grammar.component import Settings
from limbeck.grammar.method import Method

NAME = "average"
"""The role and the report's row."""


class Average(Settings):
    """A moving average of the student's weights over the steps in which it learns, evaluated beside it.

    Args:
        decay: share of the average that is kept each step.
        warmup: keep less at first, (1 + step) / (10 + step) up to ``decay``, so that the first weights are soon forgotten.
        deliver: the average is the run's result, and the student a row; otherwise the other way round.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True, deliver: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError("decay must be 0 or more and below 1")
        self.decay, self.warmup, self.deliver = decay, warmup, deliver

    def kept(self, step: int, total: int) -> float:
        """The share that is kept after a step."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def attach(self, method: Method[Any]) -> None:
        """Add the average to a bound method.

        Raises:
            ConfigError: what the method delivers is no network that learns by steps, or is an average already.
        """
        name = method.delivered
        if type(method).artifact is not Method.artifact:
            why = "puts its result together by itself"
        elif NAME in method.roles:
            why = f"has a role called {NAME!r}"
        elif method.roles[name].of is not None:
            why = "delivers a moving average already"
        elif not any(name in stage.optim and stage.items is None for stage in method.stages()):
            why = f"trains no {name} by steps"
        else:
            method.new(NAME, like=name, decay=self.kept)
            self.source = name
            if self.deliver:
                method.delivered = NAME
            return
        raise ConfigError("average", f"the method {why}", remedy="leave it out: average=null")

    def row(self) -> tuple[str, str]:
        """The report's further row and the role that it shows: the average, or the student where the average is delivered."""
        return ("learner", self.source) if self.deliver else (NAME, NAME)


__all__ = ["Average"]
