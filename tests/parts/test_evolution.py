"""Evolution over a space: what is drawn, who leaves, where it ends."""

from __future__ import annotations

import numpy as np

from limbeck.parts.evolution import Genes, Space, evolve, measured

RNG = np.random.default_rng


def ones(n: int = 12) -> Space:
    """Members are strings of bits."""
    return Space({f"b{i}": [0, 1] for i in range(n)})


def rate(values: list[float]) -> np.ndarray:
    return np.array(values)


def test_a_mutation_changes_one_setting_to_another_choice() -> None:
    space, rng = Space({"a": [1], "b": ["x", "y", "z"], "c": [1, 2, 3, 4]}), RNG(0)
    assert space.size == 12 and space.values((0, 2, 1)) == {"a": 1, "b": "z", "c": 2}
    seen = {space.mutate((0, 1, 2), rng) for _ in range(200)}
    assert seen == {(0, b, 2) for b in (0, 2)} | {(0, 1, c) for c in (0, 1, 3)}
    assert Space({"a": [1]}).mutate((0,), rng) == (0,)
    every = space.shuffled(RNG(1))
    assert len(set(every)) == 12 == len(every) and every != sorted(every)
    assert len(space.shuffled(RNG(1), 5)) == 5
    large = Space({f"s{i}": list(range(50)) for i in range(20)})
    assert len(set(large.shuffled(RNG(0), 30))) == 30


def test_it_finds_more_than_chance_does_and_measures_nothing_twice() -> None:
    best = {"evolution": [], "chance": []}  # type: ignore[var-annotated]
    for seed in range(10):
        asked: list[Genes] = []

        def count(genes: Genes, asked: list[Genes] = asked) -> float:
            asked.append(genes)
            return float(sum(genes))

        found = evolve(ones(20), count, rate, RNG(seed), population=10, tournament=4, cycles=100)
        assert len(asked) == len(set(asked)) == len(found.members) == 110 and not found.complete
        best["evolution"].append(max(r for _, r in found.members))
        chance = measured(ones(20).shuffled(RNG(seed), 110), lambda g: float(sum(g)))
        best["chance"].append(max(r for _, r in chance.members))
    assert np.mean(best["evolution"]) > np.mean(best["chance"]) + 1


def test_the_oldest_leaves_and_the_best_of_a_tournament_is_the_parent() -> None:
    space, order = ones(10), []

    def look(genes: Genes) -> float:
        order.append(genes)
        return float(-len(order))  # the first is the best, and must be forgotten all the same

    evolve(space, look, rate, RNG(0), population=3, tournament=3, cycles=40)
    for i in range(3, len(order)):  # the whole population is the tournament: its best is its oldest
        assert sum(a != b for a, b in zip(order[i], order[i - 3], strict=True)) == 1, i
    # the published script's choice: among the worst, here the youngest
    order.clear()
    evolve(space, look, rate, RNG(0), population=3, tournament=3, cycles=40, worst=1)
    for i in range(3, len(order)):
        assert sum(a != b for a, b in zip(order[i], order[i - 1], strict=True)) == 1, i


def test_limits_and_the_end_of_a_space() -> None:
    found = evolve(ones(4), lambda g: None if sum(g) > 2 else float(sum(g)), rate, RNG(0), population=5, cycles=1000)
    assert found.complete and found.refused == 5 and len(found.members) == 11
    assert all(sum(g) <= 2 for g, _ in found.members)
    none = evolve(ones(3), lambda g: None, rate, RNG(0))
    assert none.complete and none.refused == 8 and not none.members
    left = iter([True] * 4 + [False] * 9)
    assert len(evolve(ones(8), lambda g: 1.0, rate, RNG(0), population=3, go_on=lambda: next(left)).members) == 4
    assert len(measured(ones(3).shuffled(RNG(0)), lambda g: 1.0 if g[0] else None).members) == 4


def test_the_same_draws_give_the_same_search() -> None:
    runs = [evolve(ones(), lambda g: float(sum(g)), rate, RNG(7), population=6, cycles=20).members for _ in range(2)]
    assert runs[0] == runs[1]
