"""Filters and their survivors, kept texts as batches, critics: what rounds of write, keep, learn are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from limbeck.artifacts.corpus import Corpus
from limbeck.errors import ConfigError, DataError
from limbeck.functional.constraints import word_table
from limbeck.grammar.random import Draws
from limbeck.parts.constrained import Constraints, RowConstraints, constrained_samples, token_texts
from limbeck.parts.critics import mean_losses, quality, refuse_reversed
from limbeck.parts.rounds import (
    KeptTexts,
    Row,
    capped,
    complete,
    distinct,
    packed,
    scored,
    sift,
    unpacked,
)
from limbeck.storage.store import load_tree, save_tree
from tests.parts.test_constrained import ENDS, TOKENIZER, WORDS, model, words_of
from tests.parts.texts import setup_of


def rows() -> list[Row]:
    return [
        Row("A bird can fly.", "A bird can", "bird", score=0.9),
        Row("a  Bird can fly.", "A bird can", "bird", score=0.8),
        Row("A bird can sing well.", "A bird can", "bird", score=0.7),
        Row("A bird can swim in", "A bird can", "bird", complete=False, score=0.95),
        Row("A fish can swim.", "A fish can", "fish", score=0.2),
        Row("A fish can eat.", "A fish can", "fish"),
    ]


def test_survivors_are_counted_filter_by_filter() -> None:
    kept, told = sift(rows(), [complete(1), scored("critic", 0.5), distinct(), capped(1)])
    assert [r.text for r in kept] == ["A bird can fly.", "A fish can eat."]  # what nobody scored stays
    assert [(s.filter, s.given, s.left) for s in told] == [
        ("complete", 6, 5),
        ("critic", 5, 4),
        ("distinct", 4, 3),
        ("cap", 3, 2),
    ]
    assert [s.given for s in told[1:]] == [s.left for s in told[:-1]]


def test_distinct_looks_back_and_the_cap_takes_the_best() -> None:
    kept, _ = sift(rows(), [distinct(["a FISH can  swim."])])
    assert "A fish can swim." not in [r.text for r in kept]
    kept, _ = sift(rows(), [capped(2)])
    assert [r.score for r in kept if r.group == "bird"] == [0.9, 0.95]


def test_rows_survive_their_store(tmp_path: Path) -> None:
    save_tree(tmp_path / "x", packed(rows()))
    again = unpacked(load_tree(tmp_path / "x"))
    assert [r.text for r in again] == [r.text for r in rows()] and again[0].score == 0.9
    assert again[-1].score != again[-1].score


def test_kept_texts_are_spelt_as_the_task_spells_its_own() -> None:
    task = setup_of().task
    some: Any = KeptTexts(task, "statement")
    assert len(some) == 0
    document = task.texts.train[0].text  # type: ignore[attr-defined]
    prompt = " ".join(document.split()[:2])
    some.fill([Row(document, prompt), Row("red blue", "red")], [1.0, 0.25])
    mine = some.fetch(torch.tensor([0]))
    theirs = task.train.fetch(torch.tensor([0]))
    n = int(mine["attention_mask"].sum())
    assert torch.equal(mine["input_ids"][0, :n], theirs["input_ids"][0, :n])
    begins = int((mine["labels"][0] == -100).long().cumprod(0).sum())
    said = task.tokenizer.decode(mine["input_ids"][0, :begins])  # type: ignore[attr-defined]
    assert said == prompt and some.fetch(torch.tensor([1]))["weight"].tolist() == [0.25]
    whole = KeptTexts(task)  # type: ignore[arg-type]
    whole.fill([Row(document, prompt)])
    assert bool((whole.fetch(torch.tensor([0]))["labels"] != -100).all()) and whole.fingerprint != some.fingerprint


def test_a_corpus_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Corpus([{"text": "Vögel «können» fliegen.", "round": 1}, {"text": "b"}], [{"filter": "critic", "left": 2}])
    made.save(tmp_path)
    again = Corpus.load(tmp_path)
    assert again.rows == made.rows and again.survivors == made.survivors
    assert Corpus.unpacked(made.packed()).texts == made.texts and len(Corpus.unpacked(Corpus().packed())) == 0
    (tmp_path / "corpus.jsonl").write_text('{"text": "a"}\n["b"]\n')
    with pytest.raises(DataError, match="line 2"):
        Corpus.load(tmp_path)
    with pytest.raises(DataError, match="not there"):
        Corpus.load(tmp_path / "elsewhere")


def test_the_loss_of_a_text_is_that_of_the_task() -> None:
    setup = setup_of()
    task: Any = setup.task
    document = task.texts.train[3].text
    ids = torch.tensor([[*task.tokenizer(document)["input_ids"], task.tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = setup.student.module.eval()(input_ids=ids).logits[0]
    start = task.tokenizer.eos_token_id  # a text begins behind the end of another
    with torch.no_grad():
        logits = setup.student.module(input_ids=torch.cat([torch.tensor([[start]]), ids], 1)).logits[0, :-1]
    slow = -logits.log_softmax(-1).gather(1, ids[0, :, None]).mean()
    found = mean_losses(task, setup.student.module, ["x", document])
    assert float(found[1]) == pytest.approx(float(slow), rel=1e-5)


class Words:
    """Prefers texts with a word."""

    def prob_valid(self, texts: Any) -> torch.Tensor:
        return torch.tensor([0.9 if "good" in t else 0.1 for t in texts])


def test_critics_are_told_apart_from_reversed_ones() -> None:
    found = quality(Words(), ["good a", "good b", "c"], ["bad", "worse"], 0.5)
    assert found == pytest.approx({"auroc": 5 / 6, "average_precision": 13 / 15, "precision": 1.0, "recall": 2 / 3})
    refuse_reversed(found["auroc"], "critic")
    with pytest.raises(ConfigError, match=r"participants.critic.*reversed"):
        refuse_reversed(quality(Words(), ["bad"], ["good"], 0.5)["auroc"], "critic")


def test_rows_with_constraints_of_their_own_write_as_if_each_were_alone() -> None:
    texts = token_texts(TOKENIZER)
    shared = Constraints.from_words(TOKENIZER, at_most={"in": (["in"], 1)}, texts=texts)
    bans = [["bird"], ["fly", "can fly"], []]
    made = [Constraints.from_words(TOKENIZER, ban=b, texts=texts) for b in bans]
    each = [Constraints(c.clauses, shared.classes + c.classes) for c in made]
    prompt = torch.tensor([[7]]).expand(90, 1)
    net, draws, key = model(3), Draws(0, ("x",)), torch.arange(90)
    own = [each[i % 3] for i in range(90)]
    ones = torch.ones(90, 1, dtype=torch.long)
    together = constrained_samples(net, prompt, ones, own, draws, key, ends=ENDS, longest=10)
    for g, ban in enumerate(bans):
        rows_ = torch.arange(g, 90, 3)
        alone = constrained_samples(net, prompt[rows_], ones[rows_], each[g], draws, key[rows_], ends=ENDS, longest=10)
        for a, b in zip(together[rows_], alone, strict=True):
            n = min(len(a), len(b))
            assert torch.equal(a[:n], b[:n])
        for ids in together[rows_]:
            said = words_of(ids)
            assert not set(ban) & set(said) and said.count("in") <= 1
    with pytest.raises(ConfigError, match="one for each"):
        constrained_samples(net, prompt, ones, own[:2], draws, key, ends=ENDS)
    assert len(RowConstraints(own).shared.classes) == 1  # what all share is followed once
    assert word_table(WORDS, ["in"]).next.shape[1] == len(WORDS)
