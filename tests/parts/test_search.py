"""The grouped knapsack: never worse than every choice there is, and what cannot be met is told with the least that can."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

from limbeck.errors import ConfigError, DataError
from limbeck.parts.search import Infeasible, Knapsack


def table(layers: int, variants: int, seed: int, share: float = 0.5) -> Knapsack:
    rng = np.random.default_rng(seed)
    size = np.sort(rng.random((layers, variants)), 1)[:, ::-1] * 1e9
    speed = np.sort(rng.random((layers, variants)), 1)[:, ::-1]
    score = np.sort(rng.random((layers, variants)) ** 3, 1)
    score[:, 0] = 0.0
    limits = {"size": share * size[:, 0].sum(), "speed": share * speed[:, 0].sum()}
    return Knapsack(score, {"size": size, "speed": speed}, limits, {"size": "method.parameters"})


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_choice_is_the_best_of_all(seed: int) -> None:
    t = table(4, 4, seed)
    every = [t.told(np.array(i)) for i in itertools.product(range(4), repeat=4)]
    fits = [c for c in every if all(c.costs[n] <= v for n, v in t.limits.items())]
    best = min(c.score for c in fits)
    assert t.exact().score == pytest.approx(best)
    rng = np.random.default_rng(seed)
    for other in (t.greedy(), *(t.random(rng) for _ in range(20)), t.largest("size")):
        assert other.score >= best - 1e-12
        assert all(other.costs[n] <= v * (1 + 1e-6) for n, v in t.limits.items())
    assert t.largest("size").costs["size"] == pytest.approx(max(c.costs["size"] for c in fits))


def test_further_choices_differ_and_a_missing_variant_is_never_taken() -> None:
    t = table(5, 4, 0)
    first = t.exact()
    second = t.exact([first], alpha=0.6)
    assert (first.index == second.index).sum() <= 3 and second.score >= first.score
    with pytest.raises(Infeasible, match="agrees in so few groups"):
        t.exact([t.told(np.full(5, j)) for j in range(4)], alpha=0.1)
    t.score[0, first.index[0]] = np.nan
    again = Knapsack(t.score, t.costs, t.limits)
    assert again.exact().index[0] != first.index[0]
    t.score[0] = np.inf
    with pytest.raises(DataError, match=r"groups \[0\] have no variant"):
        Knapsack(t.score, t.costs, t.limits)


def test_what_cannot_be_met_names_the_least_that_can() -> None:
    t = table(4, 3, 1)
    t.limits["size"] = 1.0
    least = t.costs["size"].min(1).sum()
    with pytest.raises(Infeasible, match=r"method\.parameters") as caught:
        t.exact()
    assert caught.value.least == {"size": pytest.approx(least)}
    # what the message says to type works
    t.limits["size"] = float(str(caught.value.remedy).split("=")[1].split(",")[0])
    t.limits["speed"] = 1e9
    assert t.exact().costs["size"] == pytest.approx(least)
    # each alone could be met, both cannot
    both = Knapsack([[0, 0]], {"a": [[1, 9]], "b": [[9, 1]]}, {"a": 2, "b": 2})
    with pytest.raises(Infeasible, match=r"within the other limits") as caught:
        both.exact()
    assert caught.value.least == {"a": 9.0, "b": 9.0}
    with pytest.raises(Infeasible):
        both.greedy()
    with pytest.raises(ConfigError):
        Knapsack([[0, 0]], {"a": [[1, 9]]}, {"c": 2})
    with pytest.raises(DataError, match="not finite"):
        Knapsack([[0, 0]], {"a": [[1, np.nan]]}, {"a": 2})


def test_the_uniform_choice_and_thirty_two_layers_of_fifty_four_variants() -> None:
    t = table(32, 54, 3)
    begin = time.process_time()
    best = t.exact()
    assert time.process_time() - begin < 20
    assert best.score <= min(t.greedy().score, t.uniform().score)
    assert len(set(t.uniform().index.tolist())) == 1


def test_scores_of_a_few_millionths_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    score = rng.random((6, 5)) * 1e-7
    score[:, 2] = 0.0
    table = Knapsack(score, {"size": np.ones((6, 5))}, {"size": 6.0})
    assert table.exact().index.tolist() == [2] * 6 and table.exact().gap <= 1e-4


def test_what_was_found_when_the_time_was_over_is_told_with_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    real = scipy.optimize.milp

    def hurried(*args: Any, **more: Any) -> Any:
        found = real(*args, **more)
        found.status, found.mip_gap = 1, 0.25
        return found

    monkeypatch.setattr(scipy.optimize, "milp", hurried)
    table = Knapsack(np.array([[0.0, 1.0], [0.0, 5.0]]), {"size": np.array([[4.0, 1.0], [4.0, 1.0]])}, {"size": 5.0})
    choice = table.exact()
    assert choice.index.tolist() == [1, 0] and choice.gap == 0.25
