"""Settings that are written once: constructor, ranges, inheritance, documentation, recipe."""

from __future__ import annotations

import inspect
import math
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt, Lt

from limbeck.errors import ConfigError
from limbeck.grammar.component import Settings
from limbeck.grammar.method import Method
from limbeck.grammar.settings import Count, Fraction, NonEmpty, Positive, Share, settings
from limbeck.recipe.hints import Mismatch, leaf, words
from limbeck.recipe.schema import schema


@settings
class Base(Method):
    """A method.

    Args:
        rate: how fast.
        sizes: how large, one or more.
        inner: settings inside.
    """

    rate: Positive = 0.5
    sizes: Annotated[list[Count], NonEmpty] = [1, 2]  # noqa: RUF012
    kind: Literal["a", "b"] = "a"
    floor: Positive | None = None

    def validate(self) -> None:
        if self.floor is not None and self.floor > self.rate:
            raise ValueError(f"floor must be rate ({self.rate:g}) or less")


@settings
class Child(Base):
    """Another default, and one more setting.

    Args:
        share: of the whole.
    """

    rate: Positive = 2.0
    share: Share = 0.0


def test_attributes_are_the_constructor() -> None:
    assert list(inspect.signature(Base).parameters) == ["rate", "sizes", "kind", "floor"]
    made = Child(share=0.25)
    assert (made.rate, made.share, made.sizes) == (2.0, 0.25, [1, 2]) and made.given == ((), {"share": 0.25})
    assert Child().sizes is not Child().sizes, "a default that can be changed belongs to one instance"
    assert Child() != Child(), "components are compared by identity"
    hash(made)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": math.nan}, "rate must be above 0"),
        ({"rate": math.inf}, "rate must be above 0"),
        ({"sizes": []}, "sizes must be given"),
        ({"sizes": [3, 0]}, "sizes must be 1 or more each"),
        ({"floor": -1.0}, "floor must be above 0"),
        ({"floor": 3.0}, "floor must be rate"),
        ({"share": 1.0}, "share must be 0 or more and below 1"),
    ],
)
def test_ranges_are_kept(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Child(**given)
    assert Base(rate=1e-9).rate == 1e-9 and Child(share=0).share == 0


def test_the_schema_knows_ranges_and_inherited_documentation() -> None:
    found = schema(Child)
    assert found["rate"].doc == "how fast." and found["share"].doc == "of the whole."
    assert (found["rate"].words, found["rate"].default) == ("number above 0", 2.0)
    assert found["floor"].words == "number above 0 or null" and found["sizes"].default == [1, 2]


def test_a_recipe_refuses_what_lies_outside_before_anything_is_made() -> None:
    assert leaf(Fraction, 1) == 1.0 and leaf(Count, 2.0) == 2 and leaf(Positive | None, None) is None
    for hint, value, expected in (
        (Fraction, 1.5, "number between 0 and 1"),
        (Count, 0, "whole number 1 or more"),
        (Annotated[float, Gt(0), Lt(1)], 1, "number above 0 and below 1"),
    ):
        with pytest.raises(Mismatch, match=expected):
            leaf(hint, value)
        assert words(hint) == expected
    from limbeck.recipe.recipe import check

    with pytest.raises(ConfigError, match="expected number between 0 and 1"):
        check({"task": "classification", "method": {"use": "kd", "alpha": 2}})


def test_groups_of_settings_are_written_alike() -> None:
    @settings
    class Group(Settings):
        """A group.

        Args:
            rounds: how many.
        """

        rounds: Count = 2

    assert Group(3).rounds == 3 and schema(Group)["rounds"].doc == "how many."
    with pytest.raises(ValueError, match="rounds must be 1 or more"):
        Group(0)
