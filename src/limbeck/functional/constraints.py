"""Lexical constraints of decoding: clauses over phrases followed token by token, beam selection by clauses, word counts.

A constraint is a conjunction of clauses (Lu et al. 2021, NeuroLogic decoding, arXiv 2010.12884): a positive clause lists
phrases of which one must appear, a negative one names a phrase that must not. Rows of a state are followed together:
of every phrase it is kept which of its beginnings the text ends with, so several may be started at once.

Beside clauses, ``word_table`` follows how many words of a class a text has, on decoded, lower-cased whole words: limits
such as I2D2's "at most one function word" (arXiv 2212.09246).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._common import in_range

Literal = tuple[Sequence[int], bool]
NEG_INF = float("-inf")


class Clauses(NamedTuple):
    """Clauses as tables, made by ``compile_clauses``.

    Attributes:
        tokens: of the P phrases, filled with -1, ``[P, L]``.
        length: of the phrases, ``[P]``.
        owner: which positive clause a phrase serves, -1 for one that must not appear, ``[P]``.
        number: where the C positive clauses stood in what was given, ``[C]``.
    """

    tokens: Tensor
    length: Tensor
    owner: Tensor
    number: Tensor

    def to(self, device: torch.device | str) -> Clauses:
        """The tables on a device."""
        return Clauses(*(x.to(device) for x in self))


class ClauseState(NamedTuple):
    """How far N texts are.

    Attributes:
        started: whether a text ends with the first d + 1 tokens of a phrase that is not yet complete, ``[N, P, L]``.
        met: whether a positive clause is satisfied, ``[N, C]``.
    """

    started: Tensor
    met: Tensor

    @property
    def num_met(self) -> Tensor:
        """Satisfied positive clauses, ``[N]``."""
        return self.met.sum(1)

    @property
    def num_needed(self) -> Tensor:
        """Positive clauses still to be satisfied, ``[N]``."""
        return (~self.met).sum(1)

    @property
    def finished(self) -> Tensor:
        """Whether all positive clauses are satisfied, ``[N]``."""
        return self.met.all(1)

    def take(self, rows: Tensor) -> ClauseState:
        """The states of some rows, in their order; a row may be taken more than once."""
        return ClauseState(self.started[rows], self.met[rows])


def compile_clauses(clauses: Sequence[Sequence[Literal]], *, argument: str = "clauses") -> Clauses:
    """Tables of clauses, each a list of (token phrase, positive?) literals.

    A clause is either all positive (one of its phrases must appear) or a single negative literal (the phrase must not).

    Args:
        clauses: the conjunction; may be empty.
        argument: what messages call it.

    Raises:
        ConfigError: an empty clause or phrase, literals of both signs or several negative ones in a clause, or a clause
            that only a phrase with a banned one inside could satisfy.

    Example:
        >>> c = compile_clauses([[([5], True), ([7, 8], True)], [([9], False)]])
        >>> c.tokens.tolist(), c.owner.tolist()
        ([[5, -1], [7, 8], [9, -1]], [0, 0, -1])
    """
    phrases: list[tuple[int, ...]] = []
    owner: list[int] = []
    number: list[int] = []
    for at, clause in enumerate(clauses):
        signs = [bool(positive) for _, positive in clause]
        whole = [tuple(int(t) for t in phrase) for phrase, _ in clause]
        if not whole or not all(whole) or any(t < 0 for p in whole for t in p):
            raise ConfigError(argument, given=clause, expected="phrases of at least one token each")
        if not all(signs) and len(signs) > 1:
            raise ConfigError(
                argument,
                given=clause,
                expected="positive literals only, or one negative literal",
                remedy="write every banned phrase as a clause of its own",
            )
        phrases += whole
        owner += [len(number) if signs[0] else -1] * len(whole)
        number += [at] if signs[0] else []
    banned = [p for p, o in zip(phrases, owner, strict=True) if o < 0]
    for c, at in enumerate(number):
        mine = [p for p, o in zip(phrases, owner, strict=True) if o == c]
        if all(any(_inside(b, p) for b in banned) for p in mine):
            raise ConfigError(
                argument,
                f"clause {at} asks for {list(mine[0])}, which is banned",
                remedy="drop the ban or give an alternative phrase without it",
            )
    longest = max((len(p) for p in phrases), default=1)
    rows = [[*p, *([-1] * (longest - len(p)))] for p in phrases]
    return Clauses(
        torch.tensor(rows, dtype=torch.long).view(len(rows), longest),
        torch.tensor([len(p) for p in phrases], dtype=torch.long),
        torch.tensor(owner, dtype=torch.long),
        torch.tensor(number, dtype=torch.long),
    )


def _inside(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def begin_clauses(clauses: Clauses, rows: int = 1) -> ClauseState:
    """The state of ``rows`` texts of which nothing is written.

    Example:
        >>> begin_clauses(compile_clauses([[([5], True)]]), 2).num_needed.tolist()
        [1, 1]
    """
    started = torch.zeros(rows, *clauses.tokens.shape, dtype=torch.bool, device=clauses.tokens.device)
    return ClauseState(started, started.new_zeros(rows, len(clauses.number)))


def advance_clauses(clauses: Clauses, state: ClauseState, token: Tensor) -> ClauseState:
    """The state after each row has written one token.

    Every started phrase is extended or dropped, and phrases may start anew. Once a clause is satisfied its phrases leave
    the pool.

    Args:
        clauses: P phrases of up to L tokens.
        state: of N texts.
        token: written by each, ``[N]``.

    Example:
        >>> c = compile_clauses([[([5], True)], [([7, 8], True)]])
        >>> s = begin_clauses(c)
        >>> for t in (7, 7, 8):
        ...     s = advance_clauses(c, s, torch.tensor([t]))
        >>> s.met.tolist()
        [[False, True]]
    """
    if token.shape != state.met.shape[:1]:
        raise ShapeError("token", given=tuple(token.shape), expected=f"one token a row, ({len(state.met)},)")
    fits = token.view(-1, 1, 1) == clauses.tokens  # [N, P, L]
    before = torch.cat([torch.ones_like(fits[..., :1]), state.started[..., :-1]], -1)
    reached = before & fits & _alive(clauses, state.met).unsqueeze(-1)
    last = torch.arange(clauses.tokens.shape[1], device=token.device) == clauses.length.unsqueeze(1) - 1  # [P, L]
    complete = (reached & last).any(-1)  # [N, P]
    serves = clauses.owner.unsqueeze(1) == torch.arange(len(clauses.number), device=token.device)  # [P, C]
    met = state.met | (complete.unsqueeze(-1) & serves).any(1)
    return ClauseState(reached & ~last & _alive(clauses, met).unsqueeze(-1), met)


def _alive(clauses: Clauses, met: Tensor) -> Tensor:
    """Whether a phrase is still followed, [N, P]: banned ones always, others until their clause is satisfied."""
    negative = clauses.owner < 0
    if met.shape[1] == 0:
        return negative.expand(len(met), -1)
    return negative | ~met[:, clauses.owner.clamp(min=0)]


def _next(clauses: Clauses, state: ClauseState) -> Tensor:
    """Whether a phrase's token at a place may come next, [N, P, L]."""
    before = torch.cat([torch.ones_like(state.started[..., :1]), state.started[..., :-1]], -1)
    return before & (clauses.tokens >= 0)


def _scatter(clauses: Clauses, which: Tensor, size: int) -> Tensor:
    tokens = clauses.tokens.clamp(min=0).expand_as(which).flatten(1)
    counts = torch.zeros(len(which), size, dtype=torch.int32, device=which.device)
    return counts.scatter_add_(1, tokens, which.flatten(1).int()) > 0


def helpful_tokens(clauses: Clauses, state: ClauseState, size: int) -> Tensor:
    """Tokens that begin or extend a phrase of an unsatisfied clause, bool ``[N, V]``.

    Args:
        clauses: whose tokens are all below ``size``.
        state: of N texts.
        size: of the vocabulary, V.

    Example:
        >>> c = compile_clauses([[([1, 2], True)]])
        >>> helpful_tokens(c, advance_clauses(c, begin_clauses(c), torch.tensor([1])), 4).nonzero()[:, 1].tolist()
        [1, 2]
    """
    _fits_in(clauses, size)
    wanted = _alive(clauses, state.met) & (clauses.owner >= 0)
    return _scatter(clauses, _next(clauses, state) & wanted.unsqueeze(-1), size)


def banned_tokens(clauses: Clauses, state: ClauseState, size: int, where: Tensor | None = None) -> Tensor:
    """Tokens that would complete a banned phrase, bool ``[N, V]``.

    Args:
        clauses: whose tokens are all below ``size``.
        state: of N texts.
        size: of the vocabulary, V.
        where: which phrases hold for which text, bool ``[N, P]``; ``None``: all for all.

    Example:
        >>> c = compile_clauses([[([1, 2], False)], [([3], False)]])
        >>> banned_tokens(c, advance_clauses(c, begin_clauses(c), torch.tensor([1])), 4).nonzero()[:, 1].tolist()
        [2, 3]
    """
    _fits_in(clauses, size)
    last = torch.arange(clauses.tokens.shape[1], device=clauses.length.device) == clauses.length.unsqueeze(1) - 1
    never = last & (clauses.owner < 0).unsqueeze(-1)
    which = _next(clauses, state) & never
    return _scatter(clauses, which if where is None else which & where.unsqueeze(-1), size)


def _fits_in(clauses: Clauses, size: int) -> None:
    if clauses.tokens.numel() and int(clauses.tokens.max()) >= size:
        raise ConfigError(
            "clauses", given=int(clauses.tokens.max()), expected=f"token ids below {size}, the vocabulary"
        )


def started_fraction(clauses: Clauses, state: ClauseState) -> Tensor:
    """The largest share of a wanted phrase that a text ends with, ``[N]``; 0 where none is started.

    Example:
        >>> c = compile_clauses([[([1, 2, 3, 4], True), ([1, 5], True)]])
        >>> started_fraction(c, advance_clauses(c, begin_clauses(c), torch.tensor([1]))).tolist()
        [0.5]
    """
    if clauses.tokens.numel() == 0:
        return torch.zeros(len(state.met), device=state.met.device)
    done = torch.arange(1, clauses.tokens.shape[1] + 1, device=state.met.device)
    share = done / clauses.length.unsqueeze(1)  # [P, L]
    return torch.where(state.started & (clauses.owner >= 0).view(1, -1, 1), share, 0.0).amax((1, 2))


class Selected(NamedTuple):
    """What ``select_by_clauses`` chose, best part first.

    Attributes:
        score: as given, ``[K]``.
        row: which text is continued, ``[K]``.
        token: by what, ``[K]``.
        ended: whether it is a satisfied text with an end token, ``[K]``.
        valid: False where there were fewer candidates and the last is repeated, ``[K]``.
        state: after the token, of K texts.
    """

    score: Tensor
    row: Tensor
    token: Tensor
    ended: Tensor
    valid: Tensor
    state: ClauseState


def select_by_clauses(
    scores: Tensor,
    clauses: Clauses,
    state: ClauseState,
    *,
    step: int,
    ends: Sequence[int],
    beam: int | None = None,
    fill: int | None = None,
    prune: float = 5e5,
    tolerance: int = 2,
    beta: float = 1.25,
    early_stop: float | None = 10.0,
) -> Selected:
    r"""One step of NeuroLogic's beam selection.

    Candidates are the ``beam`` best of the table, each row's ``beam`` best, and tokens that begin or extend a phrase of
    an unsatisfied clause; all of dense rank below ``prune``. An end token is one only where all clauses are satisfied
    or where it is its row's best. Candidates with fewer than (most satisfied - ``tolerance``) clauses are dropped.
    They are ordered by

    .. math:: \frac{score}{step + 1} - \beta \log(\text{started fraction})

    (the bonus, without which nothing is started, is larger the smaller the fraction: so in the published engine), and
    chosen in rounds, of each set of satisfied clauses the best, then the second, and so on. Ended texts stand first,
    then the next ``beam``, then the rest; each part by score. Without clauses the first ``beam`` are ordinary beam
    search's.

    Args:
        scores: sums of log-probabilities, ``[B, V]``; minus infinity is never chosen.
        clauses: that hold for all rows.
        state: of the B texts.
        step: tokens written before this one.
        ends: tokens that end a text.
        beam: texts that are kept; B by default.
        fill: candidates that are returned, K; twice the beam by default.
        prune: dense rank from which a token is no candidate.
        tolerance: how many satisfied clauses fewer than the most are kept.
        beta: weight of the bonus for started phrases.
        early_stop: an end token among the ``beam * early_stop`` best of a satisfied row ends it; ``None``: only among
            the candidates. [reconstructed]

    Raises:
        ConfigError: a number out of its range, or nothing to choose from.
        ShapeError: scores and state of different numbers of rows.

    Source: Lu et al. 2021, arXiv 2010.12884.

    Example:
        >>> c = compile_clauses([[([2], True)]])
        >>> s = select_by_clauses(torch.tensor([[-1.0, -2.0, -9.0]]), c, begin_clauses(c), step=0, ends=[0], beam=2)
        >>> s.token.tolist(), s.state.num_met.tolist(), s.valid.tolist()
        ([0, 2, 1, 1], [0, 1, 0, 0], [True, True, True, False])
    """
    if scores.ndim != 2 or len(scores) != len(state.met):
        raise ShapeError("scores", given=tuple(scores.shape), expected=f"({len(state.met)}, vocabulary)")
    rows, size = scores.shape
    beam = rows if beam is None else beam
    fill = 2 * beam if fill is None else fill
    for name, value in (("beam", beam), ("fill", fill), ("prune", prune)):
        in_range(name, value, 1, float("inf"))
    for name, value in (("step", step), ("tolerance", tolerance), ("early_stop", early_stop or 0.0)):
        in_range(name, value, 0, float("inf"))
    if not ends or not all(0 <= e < size for e in ends):
        raise ConfigError("ends", given=list(ends), expected=f"at least one token id below {size}")
    device = scores.device
    end = torch.zeros(size, dtype=torch.bool, device=device)
    end[list(ends)] = True
    table = torch.zeros_like(scores, dtype=torch.bool)
    table.view(-1)[scores.reshape(-1).topk(min(beam, scores.numel())).indices] = True
    table.scatter_(1, scores.topk(min(beam, size), 1).indices, True)
    table |= helpful_tokens(clauses, state, size)
    best = torch.zeros_like(table).scatter_(1, scores.argmax(1, keepdim=True), True)
    done = state.finished.unsqueeze(1)
    table &= done | ~end | best
    if prune <= scores.numel():  # a rank above the number of tokens does not exist
        ascending, place = scores.unique(return_inverse=True)
        table &= len(ascending) - place < prune
    if early_stop is not None:
        few = min(int(beam * early_stop), size)
        table |= torch.zeros_like(table).scatter_(1, scores.topk(few, 1).indices, True) & end & done
    table &= scores > NEG_INF
    row, token = table.nonzero(as_tuple=True)  # [n]
    if len(row) == 0:
        raise ConfigError(
            "clauses", "no token may be written", remedy="ban fewer words, or end the text before this step"
        )
    score = scores[row, token]
    after = advance_clauses(clauses, state.take(row), token)
    ended = end[token] & done[row, 0]

    over = ended.nonzero()[:, 0]
    over = over[score[over].argsort(descending=True, stable=True)][: min(beam, fill)]
    going = (~ended).nonzero()[:, 0]
    if len(going):
        met = after.num_met[going]
        going = going[met >= met.max() - tolerance]
    fraction = started_fraction(clauses, after)[going].to(score.dtype)
    rank = score[going] / (step + 1) - beta * torch.where(fraction > 0, fraction, 1.0).log()
    going = going[rank.argsort(descending=True, stable=True)]
    if after.met.shape[1] and len(going):
        group = after.met[going].unique(dim=0, return_inverse=True)[1]
        turn = (group.unsqueeze(1) == group).tril(-1).sum(1)  # how many of its group stand before it
        going = going[turn.argsort(stable=True)]
    parts = [over, going[:beam], going[beam:]]
    room = fill
    for k, part in enumerate(parts):
        part = part[:room]
        room -= len(part)
        parts[k] = part[score[part].argsort(descending=True, stable=True)]
    chosen = torch.cat(parts)
    valid = torch.arange(fill, device=device) < len(chosen)
    chosen = torch.cat([chosen, chosen[-1:].expand(fill - len(chosen))])
    return Selected(score[chosen], row[chosen], token[chosen], ended[chosen], valid, after.take(chosen))


class WordTable(NamedTuple):
    """An automaton that counts the words of a class, made by ``word_table``; states are beginnings of such words.

    Attributes:
        next: state after a token, ``[K, V]``; a text begins in state 0.
        complete: words of the class that a token completes, ``[K, V]``.
        standing: whether the text ends with a word of the class, which letters may still turn into another, ``[K]``.
    """

    next: Tensor
    complete: Tensor
    standing: Tensor

    def to(self, device: torch.device | str) -> WordTable:
        """The tables on a device."""
        return WordTable(*(x.to(device) for x in self))


_WORD = re.compile(r"[\w']+")
_Places = dict[str, list[int]]


def word_table(texts: Sequence[str], words: Sequence[str]) -> WordTable:
    """Tables by which words of a class are counted in what tokens decode to: whole words, in lower case.

    A word is a run of letters, digits, ``_`` and ``'``, however many tokens it takes and with or without a space before
    it. Characters that are split over tokens count as no letters, so words beside them may be counted that are none.

    Args:
        texts: of the V tokens, with the spaces they bring.
        words: of the class, a single word each.

    Raises:
        ConfigError: a word of the class is not a single word.

    Example:
        >>> t = word_table([" in", "side", " i", "n", "."], ["in"])
        >>> token = torch.tensor([2, 3, 4])
        >>> count_words(t, token.view(1, -1)).tolist(), count_words(t, torch.tensor([[0, 1, 4]])).tolist()
        ([1], [0])
    """
    known = {w.lower().strip() for w in words}
    odd = sorted(w for w in known if not _WORD.fullmatch(w))
    if odd:
        raise ConfigError(
            "words", given=odd[0], expected="single words", remedy="ban phrases of several words as clauses"
        )
    nodes = {"": 0, "\0": 1}  # the second: a word that is none of the class
    for w in sorted(known):
        for k in range(1, len(w) + 1):
            nodes.setdefault(w[:k], len(nodes))
    spelt, heads, tails, inside, empty = _split(tuple(texts))
    after = torch.ones(len(texts), dtype=torch.long)
    for v, at in nodes.items():
        after[tails.get(v, [])] = at
    inner = torch.zeros(len(texts), dtype=torch.long)
    for w in known & inside.keys():
        inner += torch.bincount(torch.tensor(inside[w]), minlength=len(texts))
    step = after.expand(len(nodes), -1).clone()  # [K, V]: a token of letters leads out of the class unless said below
    count = inner.expand(len(nodes), -1).clone()
    for v, at in nodes.items():
        for k in range(len(v)):
            if at != 1:
                step[nodes[v[:k]], spelt.get(v[k:], [])] = at
    for w in known:
        for k in range(len(w) + 1):
            count[nodes[w[:k]], heads.get(w[k:], [])] += 1
    for i in empty:
        step[:, i] = torch.arange(len(nodes))
    standing = torch.tensor([v in known for v in nodes])
    return WordTable(step.int(), count.to(torch.int16), standing)


@lru_cache(maxsize=2)  # a vocabulary has many classes of words
def _split(texts: tuple[str, ...]) -> tuple[_Places, _Places, _Places, _Places, list[int]]:
    """Tokens of letters only by these; of the others by letters before the first end of a word, after the last, and by
    whole words inside (a token once for each); and tokens without text."""
    spelt: _Places = {}
    heads: _Places = {}
    tails: _Places = {}
    inside: _Places = {}
    empty: list[int] = []
    for i, text in enumerate(texts):
        s = text.lower()
        found = list(_WORD.finditer(s))
        if not s:
            empty.append(i)
        elif found and len(found[0][0]) == len(s):
            spelt.setdefault(s, []).append(i)
        else:
            head = found[0][0] if found and found[0].start() == 0 else ""
            tail = found[-1][0] if found and found[-1].end() == len(s) else ""
            heads.setdefault(head, []).append(i)
            tails.setdefault(tail, []).append(i)
            for m in found[bool(head) : len(found) - bool(tail)]:
                inside.setdefault(m[0], []).append(i)
    return spelt, heads, tails, inside, empty


def count_words(table: WordTable, ids: Tensor) -> Tensor:
    """Words of the class in texts, the one at the end included, ``[N]``.

    Args:
        table: of the class.
        ids: tokens of N texts, ``[N, T]``.

    Example:
        >>> count_words(word_table([" of", " to", " x"], ["of", "to"]), torch.tensor([[0, 2, 1], [2, 2, 2]])).tolist()
        [2, 0]
    """
    state, done = follow_words(table, ids)
    return done + table.standing[state]


def follow_words(table: WordTable, ids: Tensor) -> tuple[Tensor, Tensor]:
    """State of the automaton after N texts, and words of the class that are complete by then, both ``[N]``.

    Example:
        >>> follow_words(word_table([" of", "f"], ["of"]), torch.tensor([[0, 0]]))[1].tolist()
        [1]
    """
    state = ids.new_zeros(len(ids))
    done = ids.new_zeros(len(ids))
    for token in ids.unbind(1):
        done = done + table.complete[state, token]
        state = table.next[state, token].long()
    return state, done


def excess_words(table: WordTable, state: Tensor, done: Tensor, most: int) -> Tensor:
    """Tokens after which a text would have more than ``most`` words of the class, bool ``[N, V]``.

    Args:
        table: of the class.
        state: of N texts, ``[N]``, and
        done: their complete words, ``[N]``, both from ``follow_words``.
        most: words that a text may have; 0 bans the class.

    Example:
        >>> t = word_table([" of", " x"], ["of"])
        >>> excess_words(t, *follow_words(t, torch.tensor([[1], [0]])), most=1).tolist()
        [[False, False], [True, False]]
    """
    in_range("most", most, 0, float("inf"))
    total = done.unsqueeze(1) + table.complete[state] + table.standing[table.next[state].long()]
    return total > most


__all__ = [
    "ClauseState",
    "Clauses",
    "Selected",
    "WordTable",
    "advance_clauses",
    "banned_tokens",
    "begin_clauses",
    "compile_clauses",
    "count_words",
    "excess_words",
    "follow_words",
    "helpful_tokens",
    "select_by_clauses",
    "started_fraction",
    "word_table",
]
