"""What may be concluded from differences over seeds: equivalence, ratios, several checks at once, what n can detect.

``statistics`` says how large a difference is; this says what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from limbeck.report.statistics import Estimate, deviation, mean

if TYPE_CHECKING:
    import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for being several, so that all verdicts together are wrong with at most the level's probability.

    Holm's step-down procedure (Holm, 1979): the smallest of m is multiplied by m, the next by m - 1, and so on, none
    below one before it. It asks nothing of how the tests depend on each other.

    Args:
        p_values: each in [0, 1], or NaN for a test that could not be made; that one counts for nothing and stays NaN.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    found, least = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        if not 0 <= p <= 1:
            raise ValueError(f"a p value lies in [0, 1], got {p}")
        least = max(least, min(1.0, p * (len(known) - rank)))
        found[i] = least
    return found


def one_sided(differences: Sequence[float]) -> float:
    """p of Student's t test against "the mean is 0 or less"; NaN below two values.

    Values without any spread give 0 or 1 (1/2 where all are zero).
    """
    n = len(differences)
    if n < 2:
        return math.nan
    centre, spread = mean(differences), deviation(differences)
    if spread == 0:
        return 0.5 if centre == 0 else float(centre < 0)
    from scipy.special import stdtr

    return float(stdtr(n - 1, -centre * math.sqrt(n) / spread))


def equivalence(differences: Sequence[float], margin: float) -> float:
    """p of the equivalence test "the mean lies within +-margin": two one-sided tests, the larger p (Schuirmann, 1987).

    Below 0.05 exactly where the 90 % interval lies within the margin. NaN below two values.

    Args:
        differences: one a seed.
        margin: what counts as no difference, above 0, in the differences' unit.

    Example:
        >>> equivalence([0.001, -0.001, 0.0005], 0.01) < 0.05
        True
    """
    if not margin > 0:
        raise ValueError(f"the margin must be above 0, got {margin}")
    return max(one_sided([margin + d for d in differences]), one_sided([margin - d for d in differences]))


def detectable(differences: Sequence[float], power: float = 0.8, level: float = 0.95) -> float:
    """The true mean difference that as many seeds with this spread would have shown with probability ``power``.

    Of the two-sided paired t test, by the noncentral t distribution. What is smaller may be there unseen: "not shown"
    says nothing of it. NaN below two values.

    Args:
        differences: one a seed; only their number and standard deviation count.
        power: probability of an interval that excludes 0.
        level: of the interval.

    Example:
        >>> round(detectable([0.0, 1.0] * 5), 3)  # ten of standard deviation 0.527
        0.525
    """
    n = len(differences)
    if n < 2:
        return math.nan
    from scipy.special import nctdtrinc, stdtrit

    # the chance of an interval on the wrong side is left out: it is below 1e-4 from three values on
    noncentrality = float(nctdtrinc(n - 1, 1 - power, float(stdtrit(n - 1, 0.5 + level / 2))))
    return noncentrality * deviation(differences) / math.sqrt(n)


def ratio(one: Sequence[float], other: Sequence[float], level: float = 0.95) -> Estimate:
    """The ratio of two means, paired by seed, with Fieller's interval (Fieller, 1954).

    It holds exactly the ratios r for which the paired t test does not refuse ``mean(one - r * other) = 0``; where the
    denominator may be zero it is unbounded.

    Args:
        one, other: one value a seed, in the same order; ``other`` with a mean that is not zero.
        level: the probability that the interval covers.

    Example:
        >>> e = ratio([1.0, 1.1, 0.9], [2.0, 2.0, 2.0])
        >>> round(e.mean, 2), round(e.low, 2), round(e.high, 2)
        (0.5, 0.38, 0.62)
    """
    n = len(one)
    if n != len(other) or n < 1:
        raise ValueError(f"as many values of both are needed, got {n} and {len(other)}")
    a, b = mean(one), mean(other)
    if b == 0:
        raise ValueError("the denominator's mean is zero")
    if n < 2:
        return Estimate(a / b, a / b, a / b, n)
    from scipy.special import stdtrit

    def covariance(x: Sequence[float], y: Sequence[float]) -> float:
        mx, my = mean(x), mean(y)
        return math.fsum((u - mx) * (v - my) for u, v in zip(x, y, strict=True)) / (n - 1)

    # (a - r b)^2 <= t^2 (s_aa - 2 r s_ab + r^2 s_bb) / n, a quadratic in r
    t2 = float(stdtrit(n - 1, 0.5 + level / 2)) ** 2 / n
    square = b * b - t2 * covariance(other, other)
    middle = a * b - t2 * covariance(one, other)
    rest = a * a - t2 * covariance(one, one)
    if square <= 0:
        return Estimate(a / b, -math.inf, math.inf, n, "seeds")
    reach = math.sqrt(max(0.0, middle * middle - square * rest))
    return Estimate(a / b, (middle - reach) / square, (middle + reach) / square, n, "seeds")


def over_seeds_and_items(
    values: np.ndarray, weights: np.ndarray | None = None, level: float = 0.95, draws: int = 2000
) -> Estimate:
    """The mean over seeds and test items, with an interval for other seeds *and* other test items.

    Its half is the root of two squares: of the half over seeds (as in ``t_interval``) and of that over items (by a
    bootstrap: items are drawn anew with replacement, the same for all seeds). It is never narrower than over seeds alone;
    what is random in single items of single seeds counts in both, which makes it mildly too wide. The draws are always the
    same.

    Args:
        values: [S, N]: for each seed and each test item a difference, or whatever is to be averaged; of tokens in a
            sequence, their sum.
        weights: [N]: how much an item counts (the number of its tokens); 1 each when not given. The mean is the sum of
            the values over the sum of the weights.
        level: the probability that the interval covers.
        draws: of the bootstrap.

    Example:
        >>> import numpy as np
        >>> e = over_seeds_and_items(np.tile([0.0, 1.0], (4, 50)))
        >>> round(e.mean, 2), round(e.low, 1), round(e.high, 1)
        (0.5, 0.4, 0.6)
    """
    import numpy as np
    from scipy.special import ndtri, stdtrit

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"values must be [seeds, items], got {list(values.shape)}")
    seeds, items = values.shape
    weight = np.ones(items) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != (items,) or not weight.sum() > 0:
        raise ValueError(f"weights must be [{items}] with a sum above 0, got {list(weight.shape)}")
    whole = float(values.sum() / seeds / weight.sum())
    if seeds < 2 or items < 2:
        return Estimate(whole, whole, whole, seeds)
    rng, total = np.random.default_rng(0), values.mean(0)
    means = []
    for start in range(0, draws, 100):  # a hundred at a time: [100, N] counts in memory
        counts = rng.multinomial(items, np.full(items, 1 / items), size=min(100, draws - start))
        means.append((counts @ total) / np.maximum(counts @ weight, 1e-300))
    of_items = float(np.var(np.concatenate(means), ddof=1))
    of_seeds = deviation((values.sum(1) / weight.sum()).tolist()) ** 2 / seeds
    if of_items + of_seeds == 0:
        return Estimate(whole, whole, whole, seeds, "seeds and items")
    student, normal = float(stdtrit(seeds - 1, 0.5 + level / 2)), float(ndtri(0.5 + level / 2))
    reach = math.hypot(student * math.sqrt(of_seeds), normal * math.sqrt(of_items))
    return Estimate(whole, whole - reach, whole + reach, seeds, "seeds and items")


__all__ = ["detectable", "equivalence", "holm", "one_sided", "over_seeds_and_items", "ratio"]
