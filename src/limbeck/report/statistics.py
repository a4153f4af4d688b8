"""The few statistics a report needs: means with intervals over seeds, paired differences, an interval for a single run.

What an interval covers must be said beside it: one over seeds covers initialisation, order of the data and whatever
else the seed draws, on one fixed test set; a binomial one covers the choice of the test items, for one trained network.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)
Kind = Literal["seeds", "items", "seeds and items", "none"]


@dataclass(frozen=True)
class Estimate:
    """A number, and how far it can be trusted.

    Attributes:
        mean: the value, or the mean over seeds.
        low, high: the ends of the interval; both equal to ``mean`` when there is none.
        n: how many runs.
        kind: what the interval covers: ``seeds`` (Student's t over runs), ``items`` (Wilson's score interval over the
            test items of one run), ``seeds and items`` (a bootstrap over both), ``none``.
    """

    mean: float
    low: float
    high: float
    n: int
    kind: Kind = "none"

    @property
    def half(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """+1 or -1 when the whole interval lies on one side of zero, otherwise 0 (also without an interval)."""
        if self.kind == "none":
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean, summed exactly.

    Raises:
        ValueError: there are no values.
    """
    values = list(values)
    if not values:
        raise ValueError("a mean needs at least one value")
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (divided by n - 1); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def t_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean with Student's t interval, for values that are independent and roughly normal: one per seed.

    Args:
        values: at least one; a single value has no interval, nor have values that are not finite.
        level: the probability that the interval covers.

    Example:
        >>> e = t_interval([0.90, 0.92, 0.94])
        >>> round(e.mean, 3), round(e.low, 3), round(e.high, 3)
        (0.92, 0.87, 0.97)
    """
    centre, n = mean(values), len(values)
    if n < 2 or not math.isfinite(centre):
        return Estimate(centre, centre, centre, n)
    from scipy.special import stdtrit

    reach = float(stdtrit(n - 1, 0.5 + _level(level) / 2)) * deviation(values) / math.sqrt(n)
    return Estimate(centre, centre - reach, centre + reach, n, "seeds")


def paired(one: Mapping[Key, float], other: Mapping[Key, float], level: float = 0.95) -> Estimate | None:
    """The mean difference ``one - other`` over the seeds both have, with the t interval of the differences.

    Pairing removes what a seed does to both. ``None`` when they share no seed.

    Example:
        >>> d = paired({0: 0.92, 1: 0.95}, {0: 0.90, 1: 0.92})
        >>> round(d.mean, 3), d.n
        (0.025, 2)
    """
    shared = [seed for seed in one if seed in other]
    return t_interval([one[s] - other[s] for s in shared], level) if shared else None


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test that the mean difference is zero; NaN below two values.

    All differences equal and not zero give 0; all zero give 1.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    centre, spread = mean(differences), deviation(differences)
    if spread == 0:
        return 1.0 if centre == 0 else 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(n - 1, -abs(centre) * math.sqrt(n) / spread))


def binomial_interval(rate: float, items: int, level: float = 0.95) -> Estimate:
    """A proportion of one run with Wilson's score interval (Wilson, 1927) over its test items.

    Args:
        rate: the proportion, in [0, 1].
        items: how many test items it was measured on, 1 or more.
        level: the probability that the interval covers.

    Example:
        >>> e = binomial_interval(0.95, 400)
        >>> round(e.low, 3), round(e.high, 3)
        (0.924, 0.967)
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"a proportion lies in [0, 1], got {rate}")
    if items < 1:
        raise ValueError(f"items must be 1 or more, got {items}")
    from scipy.special import ndtri

    z2 = float(ndtri(0.5 + _level(level) / 2)) ** 2
    centre = (rate + z2 / (2 * items)) / (1 + z2 / items)
    reach = math.sqrt(z2 * (rate * (1 - rate) / items + z2 / (4 * items**2))) / (1 + z2 / items)
    # at 0 and at 1 the interval reaches the end exactly; rounding must not push it past the value itself
    return Estimate(rate, min(rate, max(0.0, centre - reach)), max(rate, min(1.0, centre + reach)), 1, "items")


def estimate(
    values: Sequence[float], items: int | None = None, proportion: bool = False, level: float = 0.95
) -> Estimate:
    """The mean with the interval that fits.

    Over seeds from two runs on; for one run over its test items, where the value is a proportion of them; else none.
    """
    if len(values) == 1 and proportion and items and 0 <= values[0] <= 1:
        return binomial_interval(values[0], items, level)
    return t_interval(values, level)


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return level
