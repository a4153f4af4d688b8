"""Clauses against a reading of the whole text, selection against lists, counts of words against regular expressions."""

from __future__ import annotations

import itertools
import math
import random
import re
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.constraints import (
    advance_clauses,
    banned_tokens,
    begin_clauses,
    compile_clauses,
    count_words,
    excess_words,
    follow_words,
    helpful_tokens,
    select_by_clauses,
    started_fraction,
    word_table,
)

SIZE = 7


class Slow:
    """One text, read anew at every question."""

    def __init__(self, clauses: list[Any]) -> None:
        self.wanted = [[p for p, _ in c] for c in clauses if c[0][1]]
        self.never = [c[0][0] for c in clauses if not c[0][1]]
        self.text: list[int] = []
        self.met: set[int] = set()

    def write(self, token: int) -> Slow:
        new = Slow([])
        new.wanted, new.never, new.text = self.wanted, self.never, [*self.text, token]
        ends = {i for i, c in enumerate(new.wanted) if any(new.text[-len(p) :] == p for p in c)}
        new.met = self.met | ends
        return new

    def starts(self, phrase: list[int]) -> list[int]:
        return [0] + [d for d in range(1, len(phrase)) if self.text[-d:] == phrase[:d]]

    def helpful(self) -> set[int]:
        return {p[d] for i, c in enumerate(self.wanted) if i not in self.met for p in c for d in self.starts(p)}

    def banned(self) -> set[int]:
        return {p[-1] for p in self.never if len(p) - 1 in self.starts(p)}

    def fraction(self) -> float:
        open_ = [p for i, c in enumerate(self.wanted) if i not in self.met for p in c]
        return max((d / len(p) for p in open_ for d in self.starts(p)), default=0.0)


def some_clauses(rng: random.Random, most: int = 3) -> list[Any]:
    """Positive clauses of up to three phrases and bans, in any order; none that is refused."""

    def phrase() -> list[int]:
        return [rng.randrange(1, SIZE) for _ in range(rng.randrange(1, 4))]

    while True:
        clauses: list[Any] = [
            [(phrase(), True) for _ in range(rng.randrange(1, 4))] for _ in range(rng.randrange(most))
        ]
        clauses += [[(phrase(), False)] for _ in range(rng.randrange(3))]
        rng.shuffle(clauses)
        try:
            compile_clauses(clauses)
        except ConfigError:
            continue
        return clauses


@pytest.mark.parametrize("seed", range(30))
def test_clauses_are_followed_as_if_the_text_were_read_anew(seed: int) -> None:
    rng = random.Random(seed)
    given = some_clauses(rng)
    clauses, n = compile_clauses(given), 4
    state, slow = begin_clauses(clauses, n), [Slow(given) for _ in range(n)]
    assert clauses.number.tolist() == [i for i, c in enumerate(given) if c[0][1]]
    for _ in range(12):
        helpful, banned = helpful_tokens(clauses, state, SIZE), banned_tokens(clauses, state, SIZE)
        part = started_fraction(clauses, state)
        for k, s in enumerate(slow):
            assert set(state.met[k].nonzero()[:, 0].tolist()) == s.met
            assert set(helpful[k].nonzero()[:, 0].tolist()) == s.helpful()
            assert set(banned[k].nonzero()[:, 0].tolist()) == s.banned()
            assert part[k].item() == pytest.approx(s.fraction())
        assert torch.equal(state.num_met + state.num_needed, torch.full((n,), len(clauses.number)))
        assert torch.equal(state.finished, state.num_needed == 0)
        tokens = [rng.randrange(SIZE) for _ in range(n)]
        state = advance_clauses(clauses, state, torch.tensor(tokens))
        slow = [s.write(t) for s, t in zip(slow, tokens, strict=True)]


def slow_selection(scores: list[list[float]], rows: list[Slow], **s: Any) -> list[tuple[int, int, bool]]:
    """The selection with lists: (row, token, ended)."""
    beam, fill, ends = s["beam"], s["fill"], s["ends"]
    flat = sorted({x for r in scores for x in r}, reverse=True)
    cells = sorted(((x, i, j) for i, r in enumerate(scores) for j, x in enumerate(r)), reverse=True)
    candidates = {(i, j) for _, i, j in cells[:beam]}
    over = set()
    for i, (row, text) in enumerate(zip(scores, rows, strict=True)):
        order = sorted(range(len(row)), key=lambda j: -row[j])
        candidates |= {(i, j) for j in order[:beam]} | {(i, j) for j in text.helpful()}
        whole = len(text.met) == len(text.wanted)
        candidates -= {(i, j) for j in ends if not whole and j != order[0]}
        candidates = {(a, b) for a, b in candidates if 1 + flat.index(scores[a][b]) < s["prune"]}
        if whole:
            over |= {(i, j) for j in order[: int(beam * s["early_stop"])] if j in ends}
            over |= {(i, j) for j in ends if (i, j) in candidates}
    score = {(i, j): x for x, i, j in cells}
    going = {c: rows[c[0]].write(c[1]) for c in candidates - over}
    most = max((len(t.met) for t in going.values()), default=0)
    rank = {}
    for c, text in going.items():
        if len(text.met) >= most - s["tolerance"]:
            part = text.fraction()
            rank[c] = score[c] / (s["step"] + 1) - (s["beta"] * math.log(part) if part else 0.0)
    groups: dict[frozenset[int], list[tuple[int, int]]] = {}
    for c in sorted(rank, key=lambda c: -rank[c]):
        groups.setdefault(frozenset(going[c].met), []).append(c)
    rounds = [[c for c in r if c] for r in itertools.zip_longest(*groups.values())]
    order_ = [c for r in rounds for c in sorted(r, key=lambda c: -rank[c])]
    first = sorted(over, key=lambda c: -score[c])[: min(beam, fill)]
    order_ = order_[: fill - len(first)]
    parts = [first, order_[:beam], order_[beam:]]
    return [(*c, c in over) for p in parts for c in sorted(p, key=lambda c: -score[c])]


@pytest.mark.parametrize("seed", range(40))
def test_selection_by_lists(seed: int) -> None:
    rng = random.Random(seed)
    given, n = some_clauses(rng), rng.randrange(1, 5)
    clauses = compile_clauses(given)
    settings: dict[str, Any] = {"step": rng.randrange(5), "ends": [0] if rng.random() < 0.7 else [0, 3]}
    settings |= {"beam": rng.randrange(1, 5), "tolerance": rng.randrange(3), "beta": rng.choice([0.0, 1.25])}
    settings |= {"prune": rng.choice([5.0, 15.0, 5e5]), "early_stop": rng.choice([0.0, 1.0, 10.0])}
    settings["fill"] = settings["beam"] * 2
    state, slow = begin_clauses(clauses, n), [Slow(given) for _ in range(n)]
    for _ in range(rng.randrange(4)):
        tokens = [rng.randrange(SIZE) for _ in range(n)]
        state = advance_clauses(clauses, state, torch.tensor(tokens))
        slow = [s.write(t) for s, t in zip(slow, tokens, strict=True)]
    scores = torch.randn(n, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    expected = slow_selection(scores.tolist(), slow, **settings)
    if not expected:
        with pytest.raises(ConfigError, match="no token"):
            select_by_clauses(scores, clauses, state, **settings)
        return
    got = select_by_clauses(scores, clauses, state, **settings)
    mine = list(zip(got.row.tolist(), got.token.tolist(), got.ended.tolist(), strict=True))
    assert mine[: len(expected)] == expected and got.valid.tolist() == [k < len(expected) for k in range(len(mine))]
    assert all(m == expected[-1] for m in mine[len(expected) :])
    assert torch.equal(got.score, scores[got.row, got.token])
    assert got.state.num_met.tolist() == [len(slow[i].write(j).met) for i, j, _ in mine]


def test_without_clauses_it_is_ordinary_beam_search() -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = float("-inf")  # nothing may end
    clauses = compile_clauses([])
    got = select_by_clauses(scores, clauses, begin_clauses(clauses, 4), step=3, ends=[0])
    best = scores.flatten().topk(4)
    assert torch.equal(got.score[:4], best.values) and torch.equal(got.row[:4] * 50 + got.token[:4], best.indices)
    assert bool(got.valid.all()) and not bool((got.token == 0).any())


def test_what_cannot_be_is_refused() -> None:
    for wrong in (
        [[]],
        [[([], True)]],
        [[([1], True), ([2], False)]],
        [[([1], False), ([2], False)]],
        [[([-1], True)]],
    ):
        with pytest.raises(ConfigError, match="clauses"):
            compile_clauses(wrong)
    with pytest.raises(ConfigError, match="banned"):
        compile_clauses([[([1, 2, 3], True), ([2], True)], [([2], False)]])
    compile_clauses([[([1, 2, 3], True), ([4], True)], [([2], False)]])  # an alternative is left
    clauses = compile_clauses([[([9], True)]])
    state = begin_clauses(clauses, 2)
    with pytest.raises(ConfigError, match="below 5"):
        helpful_tokens(clauses, state, 5)
    with pytest.raises(ShapeError):
        advance_clauses(clauses, state, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError):
        select_by_clauses(torch.zeros(3, 12), clauses, state, step=0, ends=[0])
    scores = torch.zeros(2, 12)
    for settings in ({"beam": 0}, {"fill": 0}, {"tolerance": -1}, {"ends": []}, {"ends": [12]}, {"early_stop": -1.0}):
        with pytest.raises(ConfigError):
            select_by_clauses(scores, clauses, state, **({"step": 0, "ends": [0]} | settings))
    with pytest.raises(ConfigError, match="no token"):
        select_by_clauses(scores - math.inf, clauses, state, step=0, ends=[0])
    with pytest.raises(ConfigError, match="single words"):
        word_table(["a"], ["two words"])


PIECES = [" in", "in", " i", "n", "side", " of", "of", "f", " o", ".", ", ", " In of", "'", "", "-", "s to ", "to"]


@pytest.mark.parametrize("words", [["in"], ["in", "of", "to", "into", "inside"], ["n"], ["in's"]])
def test_words_are_counted_as_in_the_decoded_text(words: list[str]) -> None:
    table = word_table(PIECES, words)
    ids = torch.randint(0, len(PIECES), (4000, 9), generator=torch.Generator().manual_seed(len(words)))
    texts = ["".join(PIECES[i] for i in row) for row in ids.tolist()]
    expected = [sum(w in words for w in re.findall(r"[\w']+", t.lower())) for t in texts]
    assert count_words(table, ids).tolist() == expected and max(expected) > 0


@pytest.mark.parametrize("most", [0, 1, 2])
def test_limits_hold_whatever_is_drawn(most: int) -> None:
    words = ["in", "of", "to", "into", "inside"]
    table, g = word_table(PIECES, words), torch.Generator().manual_seed(most)
    ids = torch.zeros(300, 0, dtype=torch.long)
    for _ in range(12):
        never = excess_words(table, *follow_words(table, ids), most)
        for token in range(len(PIECES)):  # exactly those that would be too many
            longer = torch.cat([ids, torch.full((300, 1), token)], 1)
            assert torch.equal(never[:, token], count_words(table, longer) > most)
        ids = torch.cat([ids, (~never).double().multinomial(1, generator=g)], 1)
    counts = count_words(table, ids)
    assert int(counts.max()) == most
