"""Adapters of I2D2's vectors: clauses followed token by token, and one step of the selection by clauses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from limbeck.functional.constraints import (
    Clauses,
    ClauseState,
    advance_clauses,
    banned_tokens,
    begin_clauses,
    compile_clauses,
    helpful_tokens,
    select_by_clauses,
)


def _clauses(hyper: Any) -> Clauses:
    return compile_clauses([[(phrase, bool(sign)) for phrase, sign in clause] for clause in hyper["constraints"]])


def _ids(mask: torch.Tensor) -> list[int]:
    return [int(i) for i in mask[0].nonzero()[:, 0]]


def advance(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    clauses, sequence = _clauses(hyper), torch.from_numpy(np.array(arrays["sequence"])).long()
    ends = [int(e) for e in np.atleast_1d(hyper["eos"])]
    largest = [int(x.max()) for x in (sequence, clauses.tokens) if x.numel()]
    size = max(*largest, *ends) + 1
    state = begin_clauses(clauses)
    states: list[ClauseState] = [state]
    for token in sequence:
        state = advance_clauses(clauses, state, token.view(1))
        states.append(state)
    if {"inputs", "expected"} == set(hyper._values.get("side", {})):  # looked at without reading: else it stays unknown
        side = hyper["side"]
        side["inputs"].same("constraints", hyper["constraints"])
        expected = side["expected"]
        for name, mine in (
            ("allowed", [_ids(helpful_tokens(clauses, s, size)) for s in states]),
            ("hard_avoid", [_ids(banned_tokens(clauses, s, size)) for s in states]),
            ("met_order", [[int(clauses.number[i]) for i in _ids(s.met)] for s in states]),
        ):
            if name in expected and [sorted(x) for x in expected[name]] != mine:
                hyper.doubt(f"other lists of {name}")
    return {
        "num_met": np.array([int(s.num_met) for s in states]),
        "num_needed": np.array([int(s.num_needed) for s in states]),
        "finished": np.array([int(s.finished) for s in states]),
    }


def select(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    clauses, scores = _clauses(hyper), torch.from_numpy(np.array(arrays["scores"]))
    hyper.same("vocab", scores.shape[1])
    first = torch.as_tensor(hyper["first_tokens"]).long()
    state = begin_clauses(clauses, len(scores))
    for token in first.view(len(scores), -1).unbind(1):
        state = advance_clauses(clauses, state, token)
    early = hyper["early_stop"]
    got = select_by_clauses(
        scores,
        clauses,
        state,
        step=int(hyper["timestep"]),
        ends=[int(e) for e in np.atleast_1d(hyper["eos"])],
        beam=int(hyper["beam"]),
        fill=int(hyper["num_fill"]),
        prune=float(hyper["prune_factor"]),
        tolerance=int(hyper["sat_tolerance"]),
        beta=float(hyper["beta"]),
        early_stop=None if early is None else float(early),
    )
    return {
        "select_scores": got.score.double().numpy()[None],
        "row": got.row.numpy()[None],
        "col": got.token.numpy()[None],
        "num_met": got.state.num_met.numpy()[None],
    }


ADAPTERS = {
    "i2d2:lexical_constraints.py:ConstrainedHypothesis.advance": advance,
    "i2d2:zero_shot/topK.py:topk_huggingface": select,
}
