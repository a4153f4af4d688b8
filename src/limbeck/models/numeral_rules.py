"""A teacher made of rules, which reads Roman numerals: carelessly where it is asked plainly, well step by step."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from limbeck.data.chat import Messages, Reply, Sampling, key_of_reply
from limbeck.data.numerals import letter_by_letter, steps, value_of
from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.settings import Fraction, settings
from limbeck.grammar.task import Model, Task
from limbeck.models.forms import meet

NAMES = {"model": {"numeral-rules": "NumeralRules"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class NumeralRules(Model):
    """Answers what a Roman numeral means, by rules, in this process. Asked for steps it writes the JSON it is asked for.

    It stands for a large teacher in trials that must cost nothing. Its mistakes are drawn by key: of a question it is asked
    in the same way it makes the same one.

    Args:
        careless: share of plain answers in which every letter is added, as if none were taken away.
        slips: the same of answers step by step.
        broken: share of answers step by step whose JSON is not closed.
        cut: share of all answers that are cut off.
    """

    forms = ("tokens",)

    careless: Fraction = 0.8
    slips: Fraction = 0.02
    broken: Fraction = 0.03
    cut: Fraction = 0.02

    @property
    def trained(self) -> bool:
        """Rules need no training."""
        return True

    def build(self, task: Task) -> Built:
        """The rules."""
        meet(self, task)
        task.load()
        return Built(Rules(self.careless, self.slips, self.broken, self.cut), model=self)


class Rules:
    """The rules as a teacher of texts; see `NumeralRules`."""

    def __init__(self, careless: float = 0.8, slips: float = 0.02, broken: float = 0.03, cut: float = 0.02) -> None:
        self.careless, self.slips, self.broken, self.cut = careless, slips, broken, cut
        self.identity = f"numeral-rules:{careless:g}:{slips:g}:{broken:g}:{cut:g}"
        self.fingerprint = self.identity

    def to(self, device: torch.device) -> Rules:
        """They are anywhere."""
        return self

    def answer(self, batch: Batch, taps: Sequence[str] = ()) -> Any:
        """They have no logits.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("teacher", "it answers in text alone, and this method reads logits", given="numeral-rules")

    def chat(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> Iterator[tuple[int, Reply]]:
        """Replies, in order."""
        for i, (messages, how) in enumerate(zip(asked, sampling, strict=True)):
            yield i, self._reply(messages, how)

    def _reply(self, messages: Messages, how: Sampling) -> Reply:
        system = " ".join(c for role, c in messages if role == "system")
        question = next((c for role, c in reversed(messages) if role == "user"), "")
        draw = random.Random(key_of_reply(self.identity, messages, how))
        found = re.search(r"\b[MDCLXVI]+\b", question)
        size = sum(len(c.split()) for _, c in messages)
        if found is None:
            return Reply("I cannot help with that.", "refused", size, 6)
        numeral = found[0]
        reasons = "JSON" in system
        wrong = draw.random() < (self.slips if reasons else self.careless)
        n = letter_by_letter(numeral) if wrong else value_of(numeral)
        text = json.dumps({"reason": steps(numeral), "answer": n}) if reasons else str(n)
        if reasons and draw.random() < self.broken:
            text = text.rstrip("}")
        if draw.random() < self.cut:
            return Reply(text[: len(text) // 2], "length", size, len(text) // 2)
        return Reply(text, "stop", size, len(text))


__all__ = ["NumeralRules", "Rules"]
