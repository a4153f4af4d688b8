"""Texts that a language model writes under lexical constraints: keyed sampling under bans, and beams that meet clauses.

I2D2 (Bhagavatula et al. 2023, arXiv 2212.09246) writes its statements this way; beams as in NeuroLogic decoding (Lu et
al. 2021, arXiv 2010.12884). Constraints hold for what is written, not for the prompt. Where clauses need no word, the
sampler is far cheaper: bans and word counts are a mask on the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional.constraints import (
    Clauses,
    ClauseState,
    Literal,
    WordTable,
    advance_clauses,
    banned_tokens,
    begin_clauses,
    compile_clauses,
    excess_words,
    follow_words,
    select_by_clauses,
    word_table,
)
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import evaluating

FUNCTION_WORDS = (
    "in",
    "on",
    "at",
    "of",
    "for",
    "to",
    "with",
    "from",
    "by",
    "into",
    "about",
    "as",
    "over",
    "under",
    "through",
    "during",
)
"""Prepositions, of which an I2D2 statement has at most one. [reconstructed]"""

CONNECTIVES = (
    "and",
    "or",
    "but",
    "because",
    "so",
    "while",
    "although",
    "if",
    "when",
    "which",
    "that",
    "who",
    "however",
    "therefore",
    "then",
)
"""Words that join sentences, of which an I2D2 statement has none. [reconstructed]"""


def token_texts(tokenizer: Any, size: int | None = None) -> list[str]:
    """What each of V tokens adds to a text, with the space it brings, ``size`` of them (all by default).

    Args:
        tokenizer: with ``__len__``, ``encode`` and ``batch_decode``, as those of transformers.
        size: of the model's vocabulary; numbers that the tokenizer does not know add nothing.
    """
    known = len(tokenizer)
    anchor = list(tokenizer.encode("x", add_special_tokens=False))  # some tokenizers drop a space that begins a text
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = len(tokenizer.batch_decode([anchor], **settings)[0])
    count = known if size is None else min(size, known)
    texts = tokenizer.batch_decode([[*anchor, i] for i in range(count)], **settings)
    return [t[before:] for t in texts] + [""] * ((size or count) - count)


def end_tokens(texts: Sequence[str], eos: int | Sequence[int] | None = None) -> list[int]:
    """Tokens with which a statement ends: a lone full stop, and the model's own end. [reconstructed]"""
    own = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return sorted({i for i, t in enumerate(texts) if t.strip() == "."} | {int(e) for e in own})


@dataclass(frozen=True)
class Constraints:
    """What a text must and must not have.

    Attributes:
        clauses: phrases that must appear or must not.
        classes: of words, each with the number a text may have; 0 bans it.
    """

    clauses: Clauses = field(default_factory=lambda: compile_clauses([]))
    classes: tuple[tuple[WordTable, int], ...] = ()

    @classmethod
    def from_words(
        cls,
        tokenizer: Any,
        *,
        must: Sequence[Sequence[str]] = (),
        ban: Sequence[str] = (),
        at_most: Mapping[str, tuple[Sequence[str], int]] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Constraints:
        """Constraints of words: every phrase with and without a space before it.

        Args:
            tokenizer: as for ``token_texts``.
            must: for each clause the phrases of which one must appear, as tokens: also inside a longer word.
            ban: words (whole ones, in any spelling of tokens and capitals) and phrases of several words that must not.
            at_most: classes of words with the number a text may have, such as ``{"function_words": (words, 1)}``.
            texts: of the tokens, where they are known.

        Raises:
            ConfigError: a phrase without tokens, a negative number, or a clause that only banned words could satisfy.

        Example:
            ``Constraints.from_words(tok, ban=["bird"], at_most={"function_words": (FUNCTION_WORDS, 1)})``
        """
        at_most = at_most or {}
        for name, (_, most) in at_most.items():
            if most < 0:
                raise ConfigError(f"at_most.{name}", given=most, expected="a number of words, 0 or more")
        never = {w.lower().strip() for w in ban} | {
            w.lower() for words, most in at_most.values() if most == 0 for w in words
        }
        for clause in must:
            if clause and all(never & set(p.lower().split()) or p.lower().strip() in never for p in clause):
                raise ConfigError("must", f"{clause[0]!r} must appear and is banned", remedy="drop one of the two")
        clauses: list[list[Literal]] = [[(p, True) for w in c for p in _forms(tokenizer, w)] for c in must]
        clauses += [[(p, False)] for w in ban if " " in w.strip() for p in _forms(tokenizer, w)]
        texts = token_texts(tokenizer) if texts is None else texts
        groups = [(words, most) for words, most in at_most.values()]
        single = [w for w in ban if " " not in w.strip()]
        groups += [(single, 0)] if single else []
        return cls(compile_clauses(clauses, argument="must"), tuple((word_table(texts, w), n) for w, n in groups))

    def to(self, device: torch.device | str) -> Constraints:
        """The same with its tables on a device."""
        return Constraints(self.clauses.to(device), tuple((t.to(device), n) for t, n in self.classes))

    def forbidden(self, ids: Tensor, state: ClauseState, size: int) -> Tensor:
        """Tokens that texts ``[N, T]`` in a state may not go on with, bool ``[N, V]``."""
        out = banned_tokens(self.clauses, state, size)
        for table, most in self.classes:
            known = min(size, table.next.shape[1])
            out[:, :known] |= excess_words(table, *follow_words(table, ids), most)[:, :size]
        return out

    def counts(self, ids: Tensor) -> list[Tensor]:
        """How many words of each class texts ``[N, T]`` have, ``[N]`` each."""
        found = [(t, *follow_words(t, ids)) for t, _ in self.classes]
        return [done + t.standing[at] for t, at, done in found]


class RowConstraints:
    """Bans and word counts of texts that have each their own; what all of them share is looked at once.

    Phrases that must appear are not met, as in sampling.

    Args:
        each: of N texts; the same object may stand for several.
    """

    def __init__(self, each: Sequence[Constraints]) -> None:
        kinds = {id(c): c for c in each}
        number = {key: i for i, key in enumerate(kinds)}
        self.row = torch.tensor([number[id(c)] for c in each], dtype=torch.long)  # [N]
        found = list(kinds.values())
        shared = [pair for pair in found[0].classes if all(any(pair[0] is t for t, _ in c.classes) for c in found)]
        self.shared = Constraints(classes=tuple(shared))
        own = [[pair for pair in c.classes if all(pair[0] is not t for t, _ in shared)] for c in found]
        self.own = [_Stack([c[k] if k < len(c) else None for c in own]) for k in range(max(map(len, own)))]
        # of all clauses those that ban, each for the texts that it is of
        phrases, owner = [], []
        for g, c in enumerate(found):
            for tokens, length, who in zip(
                c.clauses.tokens.tolist(), c.clauses.length.tolist(), c.clauses.owner, strict=True
            ):
                if who < 0:
                    phrases.append(tokens[:length])
                    owner.append(g)
        self.clauses = compile_clauses([[(p, False)] for p in phrases])
        self.holds = torch.tensor(owner, dtype=torch.long).view(1, -1) == self.row.view(-1, 1)  # [N, P]

    def to(self, device: torch.device | str) -> RowConstraints:
        """The same with its tables on a device."""
        self.shared, self.clauses = self.shared.to(device), self.clauses.to(device)
        self.own = [stack.to(device) for stack in self.own]
        self.row, self.holds = self.row.to(device), self.holds.to(device)
        return self

    def forbidden(self, ids: Tensor, state: ClauseState, size: int) -> Tensor:
        """Tokens that texts ``[N, T]`` in a state may not go on with, bool ``[N, V]``."""
        out = banned_tokens(self.clauses, state, size, self.holds)
        out |= self.shared.forbidden(ids, begin_clauses(self.shared.clauses, len(ids)), size)
        for stack in self.own:
            out |= stack.excess(ids, self.row, size)
        return out


class _Stack:
    """Word tables of G groups as one, [G, K, V]; a group without a table may write every word."""

    def __init__(self, each: Sequence[tuple[WordTable, int] | None]) -> None:
        first = next(t for t in each if t is not None)[0]
        states = max(len(t[0].standing) for t in each if t is not None)
        shape = (len(each), states, first.next.shape[1])
        self.next = torch.zeros(shape, dtype=first.next.dtype)
        self.complete = torch.zeros(shape, dtype=first.complete.dtype)
        self.standing = torch.zeros(shape[:2], dtype=torch.long)
        self.most = torch.full(shape[:1], 1 << 30)
        for g, pair in enumerate(each):
            if pair is not None:
                k = len(pair[0].standing)
                self.next[g, :k], self.complete[g, :k], self.standing[g, :k] = (x.cpu() for x in pair[0])
                self.most[g] = pair[1]

    def to(self, device: torch.device | str) -> _Stack:
        for name in ("next", "complete", "standing", "most"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def excess(self, ids: Tensor, row: Tensor, size: int) -> Tensor:
        """As ``excess_words`` after ``follow_words``, of each text ``[N, T]`` by the table of its group ``row`` [N]."""
        state, done = torch.zeros_like(row), torch.zeros_like(row)
        for token in ids.unbind(1):
            done = done + self.complete[row, state, token]
            state = self.next[row, state, token].long()
        after = self.next[row, state].long()  # [N, V]
        total = done.unsqueeze(1) + self.complete[row, state] + self.standing[row.unsqueeze(1), after]
        out = torch.zeros(len(row), size, dtype=torch.bool, device=ids.device)
        known = min(size, after.shape[1])
        out[:, :known] = (total > self.most[row].unsqueeze(1))[:, :known]
        return out


def _forms(tokenizer: Any, phrase: str) -> list[list[int]]:
    bare = phrase.strip()
    forms = [list(tokenizer.encode(p, add_special_tokens=False)) for p in (bare, f" {bare}")]
    if not bare or not all(forms):
        raise ConfigError(
            "phrase", given=phrase, expected="a phrase that has tokens, with and without a space before it"
        )
    return [p for k, p in enumerate(forms) if p not in forms[:k]]


class Forbid:
    """A logits processor of transformers' ``generate``: bans and counts of words as a mask.

    Clauses that need a phrase are not met by it: ``constrained_beams`` does that.

    Args:
        constraints: on the model's device; of all texts, or of each its own.
        start: where the prompt ends.
        ends: tokens that are not written before
        shortest: tokens stand there.
    """

    def __init__(
        self, constraints: Constraints | RowConstraints, start: int, ends: Sequence[int] = (), shortest: int = 0
    ) -> None:
        self.constraints, self.start, self.ends, self.shortest = constraints, start, list(ends), shortest

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[N, V]`` with minus infinity at what ``input_ids`` [N, T] may not go on with."""
        ids = input_ids[:, self.start :]
        state = begin_clauses(self.constraints.clauses, len(ids))
        for token in ids.unbind(1):
            state = advance_clauses(self.constraints.clauses, state, token)
        never = self.constraints.forbidden(ids, state, scores.shape[1])
        if ids.shape[1] < self.shortest:
            never[:, self.ends] = True
        if bool(never.all(1).any()):  # the text would go on with some banned word
            raise ConfigError("constraints", "no token may be written", remedy="ban fewer words, or end texts earlier")
        return scores.masked_fill(never, float("-inf"))


def constrained_samples(
    module: Any,
    prompts: Tensor,
    mask: Tensor,
    constraints: Constraints | Sequence[Constraints],
    draws: Draws,
    key: Tensor,
    *,
    ends: Sequence[int],
    shortest: int = 1,
    longest: int = 32,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Continuations drawn by key under bans and word counts, ``[N, <= longest]``; after its end a text is filled with it.

    Args:
        module: a transformers causal model.
        prompts: filled on the left, ``[N, T]``.
        mask: of their tokens, ``[N, T]``.
        constraints: of all texts, or one for each; clauses that need a phrase are not met, only bans and counts.
        draws: where words are drawn from; the same draws and keys write the same texts in any batch.
        key: of each text, ``[N]``.
        ends: tokens that end a text (``end_tokens``); the first fills.
        shortest: tokens before an end.
        longest: tokens at most.
        temperature: of the words; 0 takes the likeliest.
        top_k: only the k likeliest words; 0 for all.
        top_p: only the likeliest words that make up this mass.

    Raises:
        ConfigError: no end, an end that is banned, or ``shortest`` above ``longest``.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    from .writing import _Words

    start = prompts.shape[1]
    held: Constraints | RowConstraints
    if isinstance(constraints, Constraints):
        held = constraints.to(prompts.device)
        _check(held, ends, shortest, longest)
    else:
        if len(constraints) != len(prompts):
            raise ConfigError(
                "constraints", given=len(constraints), expected=f"one, or one for each of {len(prompts)} texts"
            )
        for one in {id(c): c for c in constraints}.values():
            _check(one, ends, shortest, longest)
        held = RowConstraints(constraints).to(prompts.device)
    config = GenerationConfig(
        max_new_tokens=longest, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0], use_cache=True
    )
    words = _Words(draws, key, start, temperature, top_k, top_p, None)
    with torch.no_grad(), evaluating([module]):
        out: Tensor = module.generate(
            input_ids=prompts,
            attention_mask=mask.long(),
            generation_config=config,
            logits_processor=LogitsProcessorList([Forbid(held, start, ends, shortest), words]),
        )
    return out[:, start:]


@dataclass(frozen=True)
class Beam:
    """A text that ``constrained_beams`` found.

    Attributes:
        ids: of what was written, the end included, ``[T]``.
        score: sum of log-probabilities over length ** penalty.
        met: satisfied clauses.
        complete: whether all are, and the text ended.
    """

    ids: Tensor
    score: float
    met: int
    complete: bool


def constrained_beams(
    module: Any,
    prompt: Tensor,
    constraints: Constraints,
    *,
    ends: Sequence[int],
    beam: int = 20,
    shortest: int = 5,
    longest: int = 32,
    ngram: int = 3,
    penalty: float = 0.2,
    prune: float = 5e5,
    tolerance: int = 2,
    beta: float = 1.25,
    early_stop: float | None = 10.0,
) -> list[Beam]:
    """Continuations of one prompt by NeuroLogic's beam search, best first: complete ones, else the best there are.

    A text ends only where all clauses are satisfied. Nothing is drawn: the same model writes the same texts.

    Args:
        module: a causal model of transformers, called with ``input_ids``, its cache and ``use_cache``.
        prompt: token ids, ``[T]``.
        constraints: clauses, bans and word counts for what is written.
        ends: tokens that end a text (``end_tokens``).
        beam: texts that are followed.
        shortest: tokens before an end.
        longest: tokens at most.
        ngram: runs of this many tokens are not written twice; 0 allows them.
        penalty: power of the length that scores are divided by.
        prune: as the rest, see ``select_by_clauses``.
        tolerance: satisfied clauses fewer than the most that are still followed.
        beta: weight of the bonus for started phrases.
        early_stop: multiple of the beam within which an end token ends a satisfied text.

    Raises:
        ConfigError: no end or a banned one, ``longest`` below ``shortest`` or a required phrase, no token left to write.
    """
    device = prompt.device
    constraints = constraints.to(device)
    clauses = constraints.clauses
    _check(constraints, ends, shortest, longest)
    for c in range(len(clauses.number)):
        need = int(clauses.length[clauses.owner == c].min())
        if need >= longest:
            raise ConfigError(
                "longest",
                given=longest,
                expected=f"more than the {need} tokens of a required phrase",
                remedy="raise it",
            )
    end = torch.tensor(list(ends), device=device)
    state = begin_clauses(clauses)
    ids = prompt.new_zeros(1, 0)  # [rows, t]
    sums = torch.zeros(1, device=device)
    name, feed, past = _cache_name(), prompt.unsqueeze(0), None
    found: list[Beam] = []
    with torch.no_grad(), evaluating([module]):
        for step in range(longest):
            out = module(input_ids=feed, use_cache=True, **({name: past} if past is not None else {}))
            past = out[name]
            logp = out.logits[:, -1].float().log_softmax(-1)  # [rows, V]
            never = constraints.forbidden(ids, state, logp.shape[1])
            rows = torch.ones(len(ids), dtype=torch.bool, device=device) if step < shortest else ~state.finished
            never[:, end] |= rows.unsqueeze(1)
            never |= _repeats(ids, ngram, logp.shape[1])
            scores = sums.unsqueeze(1) + logp.masked_fill(never, float("-inf"))
            if not bool((scores > float("-inf")).any()):
                break
            got = select_by_clauses(
                scores,
                clauses,
                state,
                step=step,
                ends=ends,
                beam=beam,
                prune=prune,
                tolerance=tolerance,
                beta=beta,
                early_stop=early_stop,
            )
            texts = torch.cat([ids[got.row], got.token.unsqueeze(1)], 1)
            over = got.valid & got.ended
            for k in over.nonzero()[:, 0].tolist():
                score = float(got.score[k]) / (step + 1) ** penalty
                found.append(Beam(texts[k], score, int(got.state.num_met[k]), True))
            keep = (got.valid & ~got.ended).nonzero()[:, 0][:beam]
            if len(found) >= beam or len(keep) == 0:
                break
            ids, sums, state, feed = texts[keep], got.score[keep], got.state.take(keep), texts[keep, -1:]
            past.reorder_cache(got.row[keep])
    if not found:
        if ids.shape[1] == 0:
            raise ConfigError("constraints", "no token may be written", remedy="ban fewer words")
        found = [
            Beam(t, float(s) / len(t) ** penalty, int(m), False)
            for t, s, m in zip(ids, sums, state.num_met, strict=True)
        ]
    return sorted(found, key=lambda b: (-b.met, -b.score))[:beam]


def _cache_name() -> str:
    """What this version of transformers calls the keys and values of what was read."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"


def _check(constraints: Constraints, ends: Sequence[int], shortest: int, longest: int) -> None:
    if not ends:
        raise ConfigError("ends", "no token ends a text", remedy="name the model's end token or a full stop")
    if not 0 <= shortest < longest:
        raise ConfigError("longest", given=longest, expected=f"more than shortest, {shortest}")
    alone = constraints.clauses.tokens[(constraints.clauses.length == 1) & (constraints.clauses.owner < 0)]
    if set(ends) <= {int(t) for t in alone.flatten()}:
        raise ConfigError("ends", given=list(ends), expected="an end token that is not banned", remedy="drop its ban")


def _repeats(ids: Tensor, n: int, size: int) -> Tensor:
    """Tokens that would repeat a run of n, bool [N, V]."""
    out = torch.zeros(len(ids), size, dtype=torch.bool, device=ids.device)
    if n < 1 or ids.shape[1] < n:
        return out
    runs = ids.unfold(1, n, 1)  # [N, t - n + 1, n]
    tail = ids[:, ids.shape[1] - n + 1 :].unsqueeze(1)  # [N, 1, n - 1]
    same = (runs[..., :-1] == tail).all(-1)  # [N, t - n + 1]
    return torch.zeros_like(out, dtype=torch.int32).scatter_add_(1, runs[..., -1], same.int()) > 0


__all__ = [
    "CONNECTIVES",
    "FUNCTION_WORDS",
    "Beam",
    "Constraints",
    "Forbid",
    "RowConstraints",
    "constrained_beams",
    "constrained_samples",
    "end_tokens",
    "token_texts",
]
