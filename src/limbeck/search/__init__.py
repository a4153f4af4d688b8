"""Search for settings and methods on the validation split, with Optuna.

``limbeck search kd nkd --trials 40 --minutes 30`` trains many short trials, stops the hopeless ones early, and runs the
best settings once in full: that run alone is scored on the test split.
"""

from __future__ import annotations

from limbeck.search.searching import search
from limbeck.search.space import Choice, Range, default_space, parse_space

__all__ = ["Choice", "Range", "default_space", "parse_space", "search"]
