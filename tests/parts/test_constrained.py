"""Texts under constraints: bans and counts hold in every drawn one, clauses are met, without clauses it is beam search."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from limbeck.errors import ConfigError  # noqa: E402
from limbeck.functional.constraints import compile_clauses  # noqa: E402
from limbeck.grammar.random import Draws  # noqa: E402
from limbeck.parts.constrained import (  # noqa: E402
    CONNECTIVES,
    FUNCTION_WORDS,
    Constraints,
    Forbid,
    constrained_beams,
    constrained_samples,
    end_tokens,
    token_texts,
)

WORDS = ["<end>", ".", " in", "in", " i", "n", " of", " bird", "bird", " fly", " can", " and", "side", " to", "x", " x"]
WORDS += ["can", "to", "c", "an"]


class Tokenizer:
    """Greedy longest match over a few pieces."""

    def __len__(self) -> int:
        return len(WORDS)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        found = []
        while text:
            fit = [w for w in WORDS if text.startswith(w)]
            if not fit:
                return []
            found.append(WORDS.index(max(fit, key=len)))
            text = text[len(max(fit, key=len)) :]
        return found

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return ["".join(WORDS[i] for i in row) for row in rows]


def model(seed: int = 0, size: int = len(WORDS)) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    made = transformers.GPT2LMHeadModel(config)
    made.lm_head.weight.data.mul_(6)  # far from uniform
    return made


def words_of(ids: Tensor) -> list[str]:
    return re.findall(r"[\w']+", "".join(WORDS[i] for i in ids.tolist() if i != 0).lower())


TOKENIZER = Tokenizer()
ENDS = end_tokens(token_texts(TOKENIZER), 0)


def test_bans_and_counts_hold_in_a_thousand_drawn_texts() -> None:
    classes = {"function_words": (FUNCTION_WORDS, 1), "connectives": (CONNECTIVES, 0)}
    constraints = Constraints.from_words(TOKENIZER, ban=["Bird", "can fly"], at_most=classes)
    prompts = torch.full((1000, 2), 9)
    draws, key = Draws(3, ("x", 0)), torch.arange(1000)

    def write(limits: Constraints, some: slice = slice(None)) -> Tensor:
        p = prompts[some]
        return constrained_samples(
            model(), p, torch.ones_like(p), limits, draws, key[some], ends=ENDS, shortest=2, longest=10
        )

    made = write(constraints)
    free = [words_of(row) for row in write(Constraints(), slice(150))]
    assert any("bird" in w for w in free) and any(sum(x in FUNCTION_WORDS for x in w) > 1 for w in free)
    for row in made:
        found = words_of(row)
        assert "bird" not in found and not set(found) & set(CONNECTIVES)
        assert sum(w in FUNCTION_WORDS for w in found) <= 1
        assert " can fly" not in "".join(WORDS[i] for i in row.tolist())
        assert row[0] not in (0, 1) and row[1] not in (0, 1)
    assert all(int(c.max()) <= n for c, (_, n) in zip(constraints.counts(made), constraints.classes, strict=True))
    assert len({tuple(r) for r in made.tolist()}) > 200
    alone = write(constraints, slice(7, 9))  # the same key writes the same text in any batch
    assert torch.equal(alone, made[7:9, : alone.shape[1]])


@pytest.mark.parametrize("seed", range(3))
def test_clauses_are_met_and_nothing_banned_is_written(seed: int) -> None:
    constraints = Constraints.from_words(
        TOKENIZER, must=[["bird"], ["can fly", "to"]], ban=["x"], at_most={"f": (["in", "of"], 0)}
    )
    found = constrained_beams(
        model(seed), torch.tensor([9, 10]), constraints, ends=ENDS, beam=6, shortest=3, longest=14
    )
    assert found and all(b.complete and b.met == 2 for b in found)
    for b in found:
        text, words = "".join(WORDS[i] for i in b.ids.tolist()), words_of(b.ids)
        assert "bird" in text and ("can fly" in text or "to" in text)
        assert not {"x", "in", "of"} & set(words)
        assert int(b.ids[-1]) in ENDS and 4 <= len(b.ids) <= 14 and not {0, 1} & set(b.ids[:-1].tolist())
        runs = [tuple(r) for r in b.ids.unfold(0, 3, 1).tolist()]
        assert len(runs) == len(set(runs))
    assert [b.score for b in found] == sorted((b.score for b in found), reverse=True)


def test_without_constraints_it_is_beam_search() -> None:
    network, prompt, beam = model(1).eval(), torch.tensor([4, 7, 9]), 3
    texts, sums = prompt.repeat(1, 1), torch.zeros(1)
    for _ in range(6):  # no cache, no end
        with torch.no_grad():
            logp = network(texts).logits[:, -1].log_softmax(-1)
        logp[:, ENDS] = float("-inf")
        sums, at = (sums.unsqueeze(1) + logp).flatten().topk(beam)
        texts = torch.cat([texts[at // len(WORDS)], (at % len(WORDS)).unsqueeze(1)], 1)
    # a clause that is out of reach keeps every text from ending
    never = Constraints(compile_clauses([[([12, 12, 12, 12, 12], True)]]))
    got = constrained_beams(
        network, prompt, never, ends=ENDS, beam=beam, shortest=5, longest=6, ngram=0, beta=0.0, penalty=0.0, tolerance=9
    )
    assert [b.ids.tolist() for b in got] == texts[:, 3:].tolist() and not any(b.complete for b in got)
    torch.testing.assert_close(torch.tensor([b.score for b in got]), sums)


def test_what_cannot_be_is_refused_before_writing() -> None:
    with pytest.raises(ConfigError, match="banned"):
        Constraints.from_words(TOKENIZER, must=[["bird"]], ban=["bird"])
    with pytest.raises(ConfigError, match="banned"):
        Constraints.from_words(TOKENIZER, must=[["bird in"]], at_most={"f": (["in"], 0)})
    with pytest.raises(ConfigError, match="phrase that has tokens"):
        Constraints.from_words(TOKENIZER, must=[["zebra"]])
    with pytest.raises(ConfigError, match=r"at_most\.f"):
        Constraints.from_words(TOKENIZER, at_most={"f": (["in"], -1)})
    prompt, free = torch.tensor([9]), Constraints()
    with pytest.raises(ConfigError, match="ends a text"):
        constrained_beams(model(), prompt, free, ends=[])
    with pytest.raises(ConfigError, match="shortest"):
        constrained_beams(model(), prompt, free, ends=ENDS, shortest=8, longest=8)
    with pytest.raises(ConfigError, match="required phrase"):
        constrained_beams(model(), prompt, Constraints(compile_clauses([[([9] * 9, True)]])), ends=ENDS, longest=8)
    closed = Constraints(compile_clauses([[([e], False)] for e in ENDS]))
    with pytest.raises(ConfigError, match="not banned"):
        constrained_beams(model(), prompt, closed, ends=ENDS)
    forbid = Forbid(Constraints(compile_clauses([[([i], False)] for i in range(2, len(WORDS))])), 1, ENDS, 2)
    with pytest.raises(ConfigError, match="no token"):
        forbid(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, len(WORDS)))
    with pytest.raises(ConfigError, match="no token"):
        constrained_beams(
            model(), prompt, Constraints(compile_clauses([[([i], False)] for i in range(2, len(WORDS))])), ends=ENDS
        )
