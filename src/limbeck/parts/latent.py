"""What is inside two encoders, matched layer by layer: attention and hidden states (TinyBERT, arXiv 1909.10351; ERNIE-Tiny).

    L_att = sum over l of d( A^S_l, A^T_g(l) )       l = 1..L_S;  d: squared distance of scores or probabilities, or KL of relations
    L_hid = sum over l of MSE( H^S_l W, H^T_g(l) )   l = 0..L_S;  l = 0 is what goes into the first layer;  g(l) = l L_T / L_S

A: attention [N, A, T, T];  H: hidden states [N, T, D];  W: a projection to the teacher's width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.attention import relation, relation_divergence, score_distance
from limbeck.parts.attention import Projections, Qkv, attentions_of, projections

Kind = Literal["scores", "probabilities", "relations", "hidden"]

FAR = -1e4
"""The score of a token that is padding, as BERT has it."""


def uniform_map(student: int, teacher: int, name: str = "student") -> list[int]:
    """Which of the teacher's layers, from 1, each of the student's repeats: ``l * teacher / student``.

    Raises:
        ConfigError: the depth of one does not divide that of the other.

    Example:
        >>> uniform_map(2, 6)
        [3, 6]
    """
    if teacher % student:
        fits = [n for n in range(1, teacher + 1) if teacher % n == 0]
        raise ConfigError(
            f"{name}.layers",
            f"the teacher has {teacher} layers, which are not spread evenly over so many",
            given=student,
            expected=f"one of {', '.join(map(str, fits))}",
            remedy="or say which layers are repeated: method.layer_map=[...], one of the teacher's (from 1) for each",
        )
    return [(i + 1) * teacher // student for i in range(student)]


class Latent:
    """The latent loss of a student and one teacher.

    Args:
        student, teacher: the networks.
        kind: how attention is matched: pre-softmax ``scores`` or ``probabilities`` of mapped layers; ``relations`` of
            queries, keys and values of the last layers (MiniLMv2); ``hidden``: not at all.
        layer_map: layers of the teacher, from 1, one for each of the student's; ``None`` spreads them evenly.
        heads: relation heads.
        whole: means over padding too, as the released code of TinyBERT has them.

    Raises:
        ConfigError: layers or heads do not fit, or a network shows no attention.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        kind: Kind = "scores",
        layer_map: Sequence[int] | None = None,
        heads: int = 0,
        whole: bool = False,
        name: str = "teacher",
    ) -> None:
        self.kind, self.heads, self.whole = kind, heads, whole
        self.modules = (student, teacher)
        mine = [projections(student, i, "student") for i in range(max(1, len(attentions_of(student))))]
        theirs = [projections(teacher, i, name) for i in range(max(1, len(attentions_of(teacher))))]
        m, n = len(mine), len(theirs)
        self.map = list(layer_map) if layer_map is not None else uniform_map(m, n)
        if len(self.map) != m or any(not 1 <= g <= n for g in self.map):
            raise ConfigError(
                "method.layer_map",
                given=self.map,
                expected=f"{m} numbers from 1 to {n}: a layer of the teacher for each of the student's",
            )
        self.pairs: list[tuple[Projections, Projections]] = []
        if kind == "relations":
            self.pairs = [(mine[-1], theirs[-1])]
        elif kind != "hidden":
            self.pairs = [(p, theirs[g - 1]) for p, g in zip(mine, self.map, strict=True)]
        for s, t in self.pairs:
            if kind != "relations" and s.heads != t.heads:
                raise ConfigError(
                    "student.heads",
                    f"attention is matched head by head, and the {name} has {t.heads} heads",
                    given=s.heads,
                    expected=str(t.heads),
                    remedy="or set method.latent=relations, which needs no equal heads",
                )
            for whose, p in (("student", s), (name, t)):
                if kind == "relations" and heads and p.width % heads:
                    raise ConfigError(
                        "method.relation_heads",
                        f"the {whose}'s {p.width} columns cannot be cut into so many heads",
                        given=heads,
                        expected=f"a number that divides {s.width} and {t.width}",
                    )
        # what goes into the first layer, and what comes out of each mapped one
        self.hidden = (
            [f"{mine[0].block}:in", *(p.block for p in mine)],
            [f"{theirs[0].block}:in", *(theirs[g - 1].block for g in self.map)],
        )

    def taps(self, side: int) -> list[str]:
        """What is tapped of the student (0) or the teacher (1)."""
        own = [path for pair in self.pairs for path in pair[side].taps]
        return list(dict.fromkeys([*own, *self.hidden[side]]))

    def attention(self, acts: Sequence[Mapping[str, Any]], where: Tensor | None) -> Tensor | None:
        """L_att of each item, a mean over heads [N]; ``None`` where attention is not matched."""
        values = []
        for s, t in self.pairs:
            a, b = s.read(acts[0], self.modules[0]), t.read(acts[1], self.modules[1])
            values.append(self._pair(a, b, where).mean(-1))
        return torch.stack(values).sum(0) if values else None

    def _pair(self, a: Qkv, b: Qkv, where: Tensor | None) -> Tensor:
        if self.kind == "relations":
            a, b = a.joined(self.heads), b.joined(self.heads)
            each = [relation_divergence(a.pair(n), b.pair(n), where=where) for n in ("qq", "kk", "vv")]
            return torch.stack(each).sum(0)
        counts = None if self.whole else where
        if self.kind == "probabilities":
            p, q = (relation(x.q, x.k, where=where) for x in (a, b))
            return score_distance(p, q, masked=-1.0, where=counts)
        return score_distance(scores_of(a, where), scores_of(b, where), where=counts)

    def states(
        self, acts: Sequence[Mapping[str, Any]], project: Callable[[int, Tensor], Tensor], where: Tensor | None
    ) -> Tensor:
        """L_hid of each item [N].

        Args:
            acts: of student and teacher.
            project: the student's states [N, T, D_s] of the place l, from 0, at the teacher's width.
            where: the real tokens [N, T].
        """
        found = []
        for place, (s, t) in enumerate(zip(*self.hidden, strict=True)):
            gap = (project(place, first(acts[0][s])).float() - first(acts[1][t]).detach().float()).square().mean(-1)
            if where is None or self.whole:
                found.append(gap.mean(1))
            else:
                real = where.bool()
                found.append(gap.masked_fill(~real, 0).sum(1) / real.sum(1).clamp_min(1))
        return torch.stack(found).sum(0)


def scores_of(x: Qkv, where: Tensor | None) -> Tensor:
    """Attention scores before the softmax [N, A, T, T], those of padding far below."""
    z = x.q.float() @ x.k.float().transpose(-1, -2) / math.sqrt(x.q.shape[-1])
    return z if where is None else z.masked_fill(~where.bool()[:, None, None, :], FAR)


def first(states: Any) -> Tensor:
    """Hidden states of a module that returns them alone, or before other things."""
    found: Tensor = states if isinstance(states, Tensor) else states[0]
    return found


__all__ = ["Kind", "Latent", "scores_of", "uniform_map"]
