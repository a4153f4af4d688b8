"""Answers that a teacher wrote, and sentences that are paraphrases."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.data.answers import STATUS, parse_answer, parse_density, survivors
from limbeck.data.paraphrases import PairFilters, joined_digits, rouge_l
from limbeck.errors import ConfigError, ShapeError


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ('{"reason": "r", "answer": " A  b\\n"}', "kept", "A b"),
        ('{"answer": [1, "x"]}', "kept", '[1, "x"]'),
        ('{"answer": {"a": true}}', "kept", '{"a": true}'),
        ('{"answer": 0}', "kept", "0"),
        ('{"answer": " "}', "empty", ""),
        ('{"answer": null}', "missing_key", ""),
        ('{"other": 1}', "missing_key", ""),
        ("[1]", "unparsable", ""),
        ("6", "unparsable", ""),
        ('{"answer": 6', "unparsable", ""),
        ("", "unparsable", ""),
        ("[" * 100_000, "unparsable", ""),
    ],
)
def test_answers(text: str, status: str, said: str) -> None:
    found = parse_answer(text, "answer")
    assert (found.status, found.text) == (status, said)


def test_the_first_cause_counts_and_gold_ignores_capitals() -> None:
    text = 'Sure: {"answer": "Yes"} done'
    assert parse_answer(text, "answer").status == "unparsable"
    assert parse_answer(text, "answer", tolerant=True, gold="yes").status == "kept"
    assert parse_answer(text, "answer", tolerant=True, gold="no").status == "disagrees"
    assert parse_answer("}{", "answer", finished=False, tolerant=True).status == "not_finished"
    assert parse_answer("}{", "answer", tolerant=True).status == "unparsable"


def test_chains_of_density_end_with_the_last_summary_that_is_there() -> None:
    text = '[{"Denser_Summary": "one"}, {"Denser_Summary": "two words"}, {"Missing_Entities": "x"}, 3]'
    found = parse_density(text)
    assert (found.text, found.version, found.fallback) == ("two words", 1, True)
    assert parse_density(text, max_words=1).status == "over_long"
    assert parse_density("[3]").status == "missing_key"
    assert parse_density("[]").status == "empty"
    assert parse_density("{}").status == "unparsable"


def test_counts_refuse_small_and_bad_sets() -> None:
    statuses = ["kept"] * 70 + ["disagrees"] * 20 + ["unparsable"] * 10
    found = survivors(statuses)
    assert sum(found.by_status) == 100 and found.kept == tuple(range(70))
    assert found.success_ratio == pytest.approx(0.9) and found.accepted
    assert not survivors(statuses, min_records=71).accepted
    assert not survivors(statuses, min_success_ratio=0.95).accepted
    assert not survivors([]).accepted
    with pytest.raises(ConfigError, match="statuses"):
        survivors(["fine"])
    with pytest.raises(ConfigError, match="min_success_ratio"):
        survivors(["kept"], min_success_ratio=2)
    assert STATUS[0] == "kept"


def certain(texts: list[str], groups: list[int]) -> np.ndarray:
    """A critic that is sure: sentences of one group entail each other, others are neutral."""
    same = np.equal.outer(groups, groups)
    table = np.zeros((len(texts), len(texts), 3))
    table[..., 1], table[..., 2] = same * 0.9, 1 - same * 0.9
    return table


def test_numbers_must_agree_both_ways_unless_released() -> None:
    texts = ["Twelve of 14 people were there on Monday.", "On Monday there were twelve of those people."]
    nli = certain(texts, [0, 0])
    assert PairFilters().mine(texts, nli) == []
    (pair,) = PairFilters(strict_numbers=False).mine(texts, nli)
    assert (pair.original, pair.new) == (0, 1)
    assert PairFilters(strict_numbers=False).mine(texts[::-1], nli) == []  # a number that the original lacks


def test_one_pair_of_each_meaning_stays_and_copies_never_do() -> None:
    texts = [
        "The cat sat on the mat.",
        "On the mat there sat a cat.",
        "A cat was sitting on a mat.",
        "It rains a lot today.",
    ]
    nli = certain(texts, [0, 0, 0, 1])
    nli[2, 0, 1] = 0.8  # less entailed: preferred
    found = PairFilters().mine(texts, nli)
    assert [(p.original, p.new) for p in found] == [(0, 2)]
    assert PairFilters().best([texts[0], texts[0]], certain(["", ""], [0, 0])) is None
    assert PairFilters().best(texts[:1], certain(texts[:1], [0])) is None
    assert PairFilters().mine([], np.zeros((0, 0, 3))) == []


@pytest.mark.parametrize("name", ["entails", "entailed"])
def test_a_higher_threshold_never_lets_more_through(name: str) -> None:
    draw = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa"]
    texts = [" ".join(draw.permutation(words)[:5]) + "." for _ in range(8)]
    nli = draw.dirichlet([0.5, 4, 0.5], (8, 8))
    counts = [
        len(list(PairFilters(**{name: t})._entailed(texts, [(i, j) for i in range(8) for j in range(i)], nli)))
        for t in (0.5, 0.7, 0.9)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_bad_tables_are_rejected() -> None:
    with pytest.raises(ShapeError, match="nli"):
        PairFilters().mine(["a", "b"], np.zeros((2, 2)))


def test_rouge_l_and_digits() -> None:
    assert rouge_l("a b c d", "a x c d") == pytest.approx(0.75)
    assert rouge_l("", "a") == 0 and rouge_l("A b!", "a B") == 1
    assert joined_digits("1 2 of 3 4 , 5") == "12 of 34 , 5"
