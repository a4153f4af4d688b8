"""Choosing one variant of each group within budgets: exactly (a grouped knapsack), greedily, at random, all alike.

    minimise  sum_ij score_ij x_ij     over x_ij in {0, 1}
    with      sum_j x_ij = 1  for every group i,     sum_ij cost_ij x_ij <= limit   for every budget
    and, of further solutions,  sum_ij x_ij y_ij <= alpha * groups   for every earlier solution y

Groups are layers, or channels that must fall together; variants that a group lacks have the score nan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLACK = 1e-9
"""Share of a limit by which a sum may miss it through rounding."""

GAP = 1e-4
"""Share of the best score that is proven to be beyond reach: the solver stops there."""


@dataclass
class Choice:
    """One variant of each group.

    Attributes:
        index: the variant of each group ``[L]``.
        score: the sum of their scores: what the choice is estimated to cost in quality.
        costs: the sum of their costs, by budget.
        gap: the share by which a better choice could be better at most, as the solver has proven.
    """

    index: Ints
    score: float
    costs: dict[str, float] = field(default_factory=dict)
    gap: float = 0.0


class Infeasible(DataError):
    """No choice keeps within the budgets.

    Attributes:
        least: by budget, the smallest value that any choice reaches within the other ones.
    """

    least: Mapping[str, float]


class Knapsack:
    """A table of scores and costs, and what is asked of it.

    Args:
        score: lower is better ``[L, K]``; nan or infinite where a group has no such variant, which is never chosen.
        costs: by name ``[L, K]``.
        limits: by name, those that a choice must keep.
        names: how a setting is called in errors, by the names of limits.

    Raises:
        ConfigError: tables of different shapes, a limit without its table or that is no number.
        DataError: a group without any variant; a cost that is not finite.

    Example:
        >>> table = Knapsack(np.array([[0.0, 1.0], [0.0, 5.0]]), {"size": np.array([[4.0, 1.0], [4.0, 1.0]])}, {"size": 5.0})
        >>> table.exact().index.tolist()
        [1, 0]
    """

    def __init__(
        self,
        score: Any,
        costs: Mapping[str, Any],
        limits: Mapping[str, float],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.score: Floats = np.asarray(score, dtype=np.float64)
        self.costs: dict[str, Floats] = {n: np.asarray(c, dtype=np.float64) for n, c in costs.items()}
        self.limits = {n: float(v) for n, v in limits.items()}
        self.names = dict(names or {})
        if self.score.ndim != 2 or not self.score.size:
            raise ConfigError("score", given=list(self.score.shape), expected="[groups, variants]")
        for name, table in self.costs.items():
            if table.shape != self.score.shape:
                raise ConfigError(name, given=list(table.shape), expected=f"a cost for each of {self.score.shape}")
        for name, limit in self.limits.items():
            if name not in self.costs:
                raise ConfigError.unknown(self._called(name), name, self.costs, "table of costs")
            if not np.isfinite(limit):
                raise ConfigError(self._called(name), given=limit, expected="a finite number")
        self._gap = 0.0
        self.known = np.isfinite(self.score)
        bare = np.flatnonzero(~self.known.any(1))
        if len(bare):
            raise DataError("scores", f"groups {bare.tolist()} have no variant with a finite score")
        for name, table in self.costs.items():
            if not np.isfinite(table[self.known]).all():
                raise DataError(name, "some costs are not finite", expected="a number for every variant")

    # ------------------------------------------------------------------------------------------------------- ways to choose
    def exact(
        self, earlier: Sequence[Choice] = (), *, alpha: float = 0.8, seconds: float = 60.0, score: Floats | None = None
    ) -> Choice:
        """The best choice, by integer programming (HiGHS).

        Args:
            earlier: choices that it must differ from.
            alpha: share of the groups at most in which it may agree with an earlier one.
            seconds: that the solver may take; the best that it has found by then is returned with its ``gap``.
            score: in place of the table's own.

        Raises:
            Infeasible: no choice keeps within the limits.
            ConfigError: the solver's time was over before it had found any.
        """
        if not earlier:
            self.check()
        value = self.score if score is None else score
        rows = [self.costs[n][self.known] for n in self.limits]
        tops = [self.limits[n] + SLACK * abs(self.limits[n]) for n in self.limits]
        for other in earlier:
            own = np.zeros(self.score.shape)
            own[np.arange(len(own)), other.index] = 1.0
            rows.append(own[self.known])
            tops.append(float(np.floor(alpha * len(own) + SLACK)))
        found = self._solve(value[self.known], rows, tops, seconds)
        if found is None:
            if earlier:
                raise Infeasible("alpha", f"no further choice agrees in so few groups with {len(earlier)} earlier ones",
                                 given=alpha, remedy="raise it, or ask for fewer")  # fmt: skip
            raise self.refused()
        choice = self.told(found)
        choice.gap = self._gap
        return choice

    def greedy(self) -> Choice:
        """From the best variant of every group, the swap that costs least quality for what it saves, until all limits hold."""
        self.check()
        score = np.where(self.known, self.score, np.inf)
        index = score.argmin(1)
        groups = np.arange(len(index))
        while True:
            sums = {n: self._sum(n, index) for n in self.limits}
            broken = self._excess(sums)
            if broken <= 0:
                return self.told(index)
            # what each swap would save of what is too much, every budget in shares of its limit
            after = self._excess(
                {n: sums[n] + self.costs[n] - self.costs[n][groups, index][:, None] for n in self.limits}
            )
            saved = broken - after
            loss = score - score[groups, index][:, None]
            price = np.where((saved > SLACK) & self.known, np.maximum(loss, 0.0) / np.maximum(saved, SLACK), np.inf)
            i, j = np.unravel_index(int(price.argmin()), price.shape)
            if not np.isfinite(price[i, j]):  # no single swap helps any more: the exact way alone goes on
                return self.exact()
            index[i] = j

    def _excess(self, sums: Mapping[str, Any]) -> Any:
        """By how much sums are beyond their limits, in shares of these, together."""
        gaps = [
            np.maximum(total - limit - SLACK * abs(limit), 0.0) / (abs(limit) or 1.0)
            for limit, total in zip(self.limits.values(), sums.values(), strict=True)
        ]
        return sum(gaps)

    def random(self, rng: np.random.Generator, tries: int = 1000) -> Choice:
        """Variants drawn evenly, group by group in random order, among those that leave the rest enough."""
        self.check()
        least = {n: np.where(self.known, self.costs[n], np.inf).min(1) for n in self.limits}
        for _ in range(tries):
            index = np.zeros(len(self.score), dtype=np.int64)
            left = {n: limit - least[n].sum() for n, limit in self.limits.items()}
            for i in rng.permutation(len(index)):
                fits = self.known[i].copy()
                for n in self.limits:
                    fits &= self.costs[n][i] - least[n][i] <= left[n] + SLACK * abs(self.limits[n])
                if not fits.any():
                    break
                index[i] = rng.choice(np.flatnonzero(fits))
                for n in self.limits:
                    left[n] -= self.costs[n][i, index[i]] - least[n][i]
            else:
                return self.told(index)
        return self.exact(score=rng.random(self.score.shape))

    def uniform(self) -> Choice:
        """The same variant in every group: the best that keeps within the limits.

        Raises:
            Infeasible: none does.
        """
        self.check()
        columns = [
            j
            for j in np.flatnonzero(self.known.all(0))
            if all(self.costs[n][:, j].sum() <= v + SLACK * abs(v) for n, v in self.limits.items())
        ]
        if not columns:
            raise Infeasible("search", "no variant keeps within the limits in every group alike", given="uniform",
                             remedy="set search=mip, or a larger budget")  # fmt: skip
        best = min(columns, key=lambda j: float(self.score[:, j].sum()))
        return self.told(np.full(len(self.score), best, dtype=np.int64))

    def largest(self, name: str) -> Choice:
        """The choice that uses most of one cost within the limits, whatever its scores."""
        return self.told(self.exact(score=-self.costs[name]).index)

    # ------------------------------------------------------------------------------------------------------------- what holds
    def least(self, name: str) -> float | None:
        """The smallest sum of one cost that any choice within the *other* limits has; ``None`` if there is no such choice."""
        others = [n for n in self.limits if n != name]
        rows = [self.costs[n][self.known] for n in others]
        found = self._solve(self.costs[name][self.known], rows, [self.limits[n] for n in others], 60.0)
        return None if found is None else self._sum(name, found)

    def check(self) -> None:
        """Refuse limits below what the cheapest variants need.

        Raises:
            Infeasible: each such limit with the smallest that can be met.
        """
        for name, limit in self.limits.items():
            cheapest = float(np.where(self.known, self.costs[name], np.inf).min(1).sum())
            if cheapest > limit + SLACK * abs(limit):
                raise self.refused()

    def refused(self) -> Infeasible:
        """The error for limits that no choice keeps."""
        alone = {n: float(np.where(self.known, self.costs[n], np.inf).min(1).sum()) for n in self.limits}
        short = [n for n, v in self.limits.items() if alone[n] > v + SLACK * abs(v)]
        least = {n: alone[n] for n in short} or {n: v for n in self.limits if (v := self.least(n)) is not None}
        name = next(iter(least), next(iter(self.limits)))
        together = "" if short else f" within the other limits ({', '.join(self._called(n) for n in self.limits)})"
        told = "; ".join(f"{self._called(n)} can be met from {_number(v)} on{together}" for n, v in least.items())
        error = Infeasible(
            self._called(name),
            f"no architecture of this search space is as small: {told}",
            given=_number(self.limits[name]),
            expected=f"{_number(least.get(name, float('nan')))} or more",
            remedy=f"set {self._called(name)}={_number(least.get(name, float('nan')), up=True)}, or add smaller variants",
        )
        error.least = least
        return error

    def told(self, index: Any) -> Choice:
        """A choice with its sums."""
        index = np.asarray(index, dtype=np.int64)
        return Choice(
            index, float(self.score[np.arange(len(index)), index].sum()), {n: self._sum(n, index) for n in self.costs}
        )

    def _sum(self, name: str, index: Ints) -> float:
        return float(self.costs[name][np.arange(len(index)), index].sum())

    def _called(self, name: str) -> str:
        return self.names.get(name, name)

    def _solve(self, value: Floats, rows: list[Floats], tops: list[float], seconds: float) -> Ints | None:
        """The variants that make the value least; ``None`` where there is no choice."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        group, variant = np.nonzero(self.known)
        one = csr_array((np.ones(len(group)), (group, np.arange(len(group)))), shape=(len(self.score), len(group)))
        rules = [LinearConstraint(one, 1.0, 1.0)]
        if rows:
            # each limit is 1, so that bytes and milliseconds weigh alike in the solver's tolerances
            unit = np.array([abs(t) or 1.0 for t in tops])
            rules.append(LinearConstraint(np.stack(rows) / unit[:, None], -np.inf, np.array(tops) / unit))
        options = {"mip_rel_gap": GAP, "time_limit": seconds}
        # the solver also stops within 1e-6 of the best: scores of a few millionths must not all seem alike to it
        largest = float(np.abs(value).max()) or 1.0
        found = milp(
            value * (1e3 / largest),
            constraints=rules,
            bounds=Bounds(0, 1),
            integrality=np.ones(len(group)),
            options=options,
        )
        if found.x is None:
            if found.status == 1:
                raise ConfigError(
                    "search", f"the solver found no choice in {seconds:g} seconds", remedy="set search=greedy"
                )
            return None
        self._gap = float(found.mip_gap or 0.0)
        index = np.zeros(len(self.score), dtype=np.int64)
        taken = found.x > 0.5
        index[group[taken]] = variant[taken]
        return index


def _number(value: float, up: bool = False) -> str:
    """A number as it can be typed: whole ones whole, others to six digits, upwards where it is a limit."""
    if value == int(value) if np.isfinite(value) else False:
        return str(int(value))
    if up and np.isfinite(value):
        digits = 5 - int(np.floor(np.log10(abs(value)))) if value else 0
        value = float(np.ceil(value * 10.0**digits) / 10.0**digits)
    return f"{value:.6g}"


__all__ = ["Choice", "Infeasible", "Knapsack"]
