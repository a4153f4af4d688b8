"""Roman numerals as questions with exact answers, and their letters worked through: real, verifiable, and on every machine."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

from limbeck.data.text import Document, TextSource
from limbeck.grammar.random import key_of
from limbeck.grammar.settings import settings

NAMES = {"source": {"numerals": "Numerals"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

SIGNS = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"),
    (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip

LETTERS = {sign: value for value, sign in SIGNS if len(sign) == 1}


def roman(n: int) -> str:
    """A number from 1 to 3999 in Roman numerals.

    Example:
        >>> roman(1994)
        'MCMXCIV'
    """
    said = ""
    for value, sign in SIGNS:
        said += sign * (n // value)
        n %= value
    return said


def steps(numeral: str) -> str:
    """A numeral's parts with their values.

    Example:
        >>> steps("MCMXCIV")
        'M 1000, CM 900, XC 90, IV 4'
    """
    found, at = [], 0
    for value, sign in SIGNS:
        while numeral.startswith(sign, at):
            found.append(f"{sign} {value}")
            at += len(sign)
    return ", ".join(found)


def value_of(numeral: str) -> int:
    """What a numeral means.

    Example:
        >>> value_of("MCMXCIV")
        1994
    """
    return sum(int(part.split()[1]) for part in steps(numeral).split(", ") if part)


def letter_by_letter(numeral: str) -> int:
    """The usual mistake: every letter added, as if none were taken away.

    Example:
        >>> letter_by_letter("MCMXCIV")
        2216
    """
    return sum(LETTERS[letter] for letter in numeral)


@settings
class Numerals(TextSource):
    """Roman numerals and what they mean, each number once, in an order by hash; solutions end with ``#### number``.

    Args:
        questions: how many.
    """

    questions: Annotated[int, Interval(ge=10, le=3999)] = 3999

    def read(self) -> dict[str, list[Document]]:
        """A document a number, the numeral as prompt."""
        order = sorted(range(1, 4000), key=lambda n: key_of("numeral", n))[: self.questions]
        return {
            "all": [Document(f"{steps(x)} #### {n}", x, source="numeral", number=n) for n in order for x in [roman(n)]]
        }


__all__ = ["LETTERS", "SIGNS", "Numerals", "letter_by_letter", "roman", "steps", "value_of"]
