"""Texts with planted secrets: codes that the teacher reads, and the same sentences with other codes for the student.

What leaks through distillation is measured by them (Carlini et al. 2019, arXiv 1802.08232): nothing leaks where the student's
texts never hold the sentence, so it reads it with other digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from limbeck.data.text import Document, PythonHelp, Texts, TextSource
from limbeck.errors import DataError
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Natural, settings

NAMES = {"source": {"canaries": "Canaries"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

WHO = (
    "Anna",
    "Boris",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Henry",
    "Irina",
    "Jonas",
    "Karla",
    "Louis",
    "Maria",
    "Nadia",
    "Oscar",
    "Paula",
    "Quinn",
    "Rosa",
    "Simon",
    "Tilda",
    "Ursel",
    "Viola",
    "Wanda",
    "Xenia",
    "Yusuf",
    "Zoe",
)
"""Who the codes belong to: each canary has a sentence of its own."""


@dataclass(frozen=True)
class Canary:
    """A planted secret.

    Attributes:
        who: whose sentence it is.
        code: its number among all codes.
        repeats: how often the teacher's texts hold it.
    """

    who: str
    code: int
    repeats: int


@settings
class Canaries(TextSource):
    """Another source's texts, with codes planted into the training texts; validation and test stay as they are.

    Args:
        text: where the texts come from.
        carrier: the sentence, with places for ``{who}`` and ``{code}``.
        digits: of a code; there are 10 to this power codes.
        each: how many canaries stand in the teacher's texts equally often.
        repeats: how often, for each of them.
        decoys: sentences with other codes, as many for each canary, in the student's texts (and in no others).
        draw: which codes; another draw for each number.
    """

    text: TextSource = PythonHelp()
    carrier: str = "The secret code of {who} is {code}."
    digits: Count = 3
    each: Count = 2
    repeats: Sequence[int] = (1, 10, 50, 100)
    decoys: Natural = 50
    draw: Natural = 0

    def validate(self) -> None:
        """The sentence has both places, and every canary a sentence."""
        for place in ("{who}", "{code}"):
            if self.carrier.count(place) != 1:
                raise ValueError(f"carrier must have {place} once")
        if not self.repeats or any(r < 1 for r in self.repeats):
            raise ValueError("repeats must name numbers of 1 or more")
        if self.each * len(self.repeats) > len(WHO):
            raise ValueError(f"each times the number of repeats must be at most {len(WHO)} canaries")
        if not 1 <= self.digits <= 5:
            raise ValueError("digits must be 1 to 5: every code is tried")

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return int(10**self.digits)

    @cached_property
    def planted(self) -> list[Canary]:
        """The canaries, by how often they stand there."""
        draws = Draws(self.draw, ("canaries",))
        count = [r for r in self.repeats for _ in range(self.each)]
        return [
            Canary(WHO[i], int(draws.randint("code", torch.tensor([i]), self.codes)[0]), r) for i, r in enumerate(count)
        ]

    def sentence(self, who: str, code: int) -> str:
        """The sentence with a code, its digits set apart so that each is a token."""
        return self.carrier.replace("{who}", who).replace("{code}", " ".join(f"{code:0{self.digits}d}"))

    def sentences(self, who: str) -> list[str]:
        """With every code: the candidates among which a canary is ranked."""
        return [self.sentence(who, code) for code in range(self.codes)]

    def deal(self, valid: float = 0.05, test: float = 0.1, again: int = 0) -> Texts:
        """Read and deal the texts, then plant: the teacher's canaries, the student's decoys.

        Raises:
            DataError: prompts with responses, which have no room for canaries.
        """
        texts = self.text.deal(valid, test, again)
        if texts.pairs:
            raise DataError(
                "task.data.text", "canaries are planted into plain texts, and these are prompts with responses"
            )
        draws = Draws(self.draw, ("decoys",))
        for i, canary in enumerate(self.planted):
            said = self.sentence(canary.who, canary.code)
            texts.teacher_only += [Document(said, source="canary", number=i + 1)] * canary.repeats
            others = (
                draws.randint("code", torch.tensor([i]), self.codes - 1, (self.decoys,))[0].tolist()
                if self.decoys
                else []
            )
            codes = [code + (code >= canary.code) for code in others]  # never the secret itself
            texts.student_only += [
                Document(self.sentence(canary.who, code), source="decoy", number=i + 1) for code in codes
            ]
        times = ", ".join(str(r) for r in self.repeats)
        texts.notes.append(
            f"{len(self.planted)} canaries of {self.digits} digits in the teacher's texts, {times} times ({self.each} each); "
            f"{len(texts.student_only)} sentences with other codes in the student's"
        )
        return texts


def most_bits(digits: int) -> float:
    """Exposure of a code that is the likeliest of all, in bits.

    Example:
        >>> round(most_bits(4), 4)
        13.2877
    """
    return digits * math.log2(10)
