"""MiniLM: a student of any depth and width repeats how the teacher's last layer relates its tokens to each other.

    A = softmax(Q K^T / sqrt(d)),  VR = softmax(V V^T / sqrt(d))            per head, [T, T]
    L = mean KL(A_t || A_s) + mean KL(VR_t || VR_s)                         over heads, real tokens, and items

Version 2 lays the heads side by side, cuts them anew into A_r relation heads in both models, so that these need not have
as many heads, and sums w KL over the relations of queries, keys, values with themselves. Version 1 is v2 with the models'
own heads and the relations qk and vv. With an assistant (teacher's depth, student's width) the teacher teaches the
assistant first, and the assistant the student.

Q, K, V: vectors of one layer [N, A, T, d];  A: attention;  VR: value relation;  T: tokens, of which `where` are real
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.functional.attention import Measure, relation, relation_divergence
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.settings import Natural, settings
from limbeck.parts.attention import Projections, Qkv, attentions_of, projections
from limbeck.tasks.tokenized import encode, trunk

CARD = Card(
    number=60,
    slug="minilm",
    title="MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
    year=2020,
    venue="NeurIPS 2020",
    arxiv="2002.10957",
    repository="microsoft/unilm",
    licence="MIT",
    family="language",
    methods={"minilm": "MiniLm"},
    optimised="network weights",
    signals=("queries, keys and values of one layer",),
    provenance={
        "attention and value relation": "paper, equations 4 to 7; the authors released weights alone. Checked against vectors "
        "of third parties: Alibaba's xdpx (v1), Bloomberg's minilmv2.bb (v2)",
        "relation heads": "MiniLMv2 (arXiv 2012.15828)",
        "assistant": "paper, section 3.3: for a student of at most half the depth and half the width",
        "released": "variant=released halves the sum of v1's two terms, as xdpx does; the paper sums them",
        "values by mse, hidden states, all layers": "the ablations of the paper's tables; their projection is one learned "
        "linear map [reconstructed]",
    },
    claim="With the same unlabelled text and steps, attention and value relations of the last layer give a better fine-tuned "
    "student than attention alone, than hidden states through a projection, and than masked words from scratch.",
    recipe="minilm",
    at_equality={"qk": "value", "vv": "value"},
    exceptions={
        "moves": "what lies above the tapped projections (the last layer's output, the head) is not reached, as in the "
        "paper; fine-tuning trains it"
    },
    notes="The student is an ordinary transformers folder. method.version=v2 where teacher and student have different heads.",
)

RELATIONS: dict[str, dict[str, float]] = {"v1": {"qk": 1.0, "vv": 1.0}, "v2": {"qq": 1.0, "kk": 1.0, "vv": 1.0}}

MOST = 32
"""Tokens that an image of relations shows."""


def relation_values(
    student: Qkv,
    teacher: Qkv,
    relations: Mapping[str, float],
    *,
    where: Tensor | None = None,
    heads: int = 0,
    measure: Measure = "kl",
    causal: bool = False,
) -> dict[str, Tensor]:
    """Each relation's values [N, A]: per item and head the mean over its real tokens.

    Args:
        student, teacher: vectors of one layer, of any width.
        relations: which, by two letters of q, k and v each.
        where: the real tokens [N, T].
        heads: relation heads; 0 takes the models' own.
        measure: how rows are compared.
        causal: rows see no later tokens.
    """
    s, t = student.joined(heads), teacher.joined(heads)
    return {
        name: relation_divergence(s.pair(name), t.pair(name), where=where, measure=measure, causal=causal)
        for name in relations
    }


@settings
class MiniLm(Method):
    """Deep self-attention distillation, versions 1 and 2.

    Args:
        version: ``v1``: attention and value relation over the models' own heads; ``v2``: relations of queries, keys and
            values with themselves over ``relation_heads``.
        relations: in place of the version's: weights by two letters (``{qk: 1, vv: 1}``).
        relation_heads: how many heads both models are cut into; 0 takes their own for v1, and 48 for v2.
        values: what stands beside the other relations: the value ``relation``; ``mse`` of values, or ``hidden`` states of
            the layer, each through a learned projection; or ``off``.
        attention: off leaves ``qk`` out.
        layers: ``last``: one layer of each; ``uniform``: every layer of the student repeats the teacher's at its height.
        layer: the teacher's layer, from the end or from 0: -1 is the last; large teachers teach better from one below it.
        student_layer: the student's.
        measure: ``kl`` (the paper), ``js`` or ``mse`` of the rows.
        initial: ``random``, or ``copy``: embeddings and evenly spread layers of the teacher, where widths agree.
        assistant: teach an assistant first (``participants.assistant``), and the student by it.
        variant: ``paper``, or ``released``: v1's terms are averaged, not summed.
    """

    version: Literal["v1", "v2"] = "v1"
    relations: dict[str, Annotated[float, Ge(0)]] | None = None
    relation_heads: Natural = 0
    values: Literal["relation", "mse", "hidden", "off"] = "relation"
    attention: bool = True
    layers: Literal["last", "uniform"] = "last"
    layer: int = -1
    student_layer: int = -1
    measure: Measure = "kl"
    initial: Literal["random", "copy"] = "random"
    assistant: bool = False
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """Relations are pairs of letters, and something must be left to match."""
        given = dict(RELATIONS[self.version] if self.relations is None else self.relations)
        odd = [n for n in given if len(n) != 2 or set(n) - set("qkv")]
        if odd:
            raise ValueError(f"relations must be named by two letters of q, k and v (qk, vv), not {', '.join(odd)}")
        if self.values != "relation":
            given.pop("vv", None)
        if not self.attention:
            given.pop("qk", None)
        self.wanted = {n: w for n, w in given.items() if w > 0}
        if not self.wanted and self.values in ("relation", "off"):
            raise ValueError(
                "relations must leave something to match: turn attention or values on, or give weights above 0"
            )
        if self.layers == "uniform" and (self.layer, self.student_layer) != (-1, -1):
            raise ValueError("layers=uniform matches all layers: leave layer and student_layer out")
        self.heads = self.relation_heads or (48 if self.version == "v2" else 0)
        if self.assistant:
            self.participants = {"teacher": Participant(), "assistant": Participant(like="student", taught=False)}

    def bind(self, setup: Setup) -> None:
        """Find the projections of both, check that they can be compared, make projectors where they are asked for."""
        super().bind(setup)
        pairs = [("assistant", "teacher"), ("student", "assistant")] if self.assistant else [("student", "teacher")]
        self.where: dict[tuple[str, str], list[tuple[Projections, Projections]]] = {}
        for learner, master in pairs:
            self.where[learner, master] = self.matched(learner, master)
        if self.initial == "copy":
            copied(self.roles["student"].module, self.roles["teacher"].module)
        for learner, master in pairs if self.values in ("mse", "hidden") else []:
            for i, (s, t) in enumerate(self.where[learner, master]):
                widths = self.width(s, learner), self.width(t, master)
                self.new(f"projection:{learner}:{i}", partial(nn.Linear, *widths))
        for role in ("student", *self.participants):
            if not self.roles[role].shard and hasattr(self.roles[role].module, "base_model"):
                self.roles[role].feed = body  # the head is not asked

    def width(self, p: Projections, role: str) -> int:
        """Columns of what a projection reads or gives: values, or hidden states."""
        config: Any = getattr(self.roles[role].module, "config", None)
        return int(config.hidden_size) if self.values == "hidden" and hasattr(config, "hidden_size") else p.width

    def matched(self, learner: str, master: str) -> list[tuple[Projections, Projections]]:
        """Layers of the learner, each with the master's that it repeats.

        Raises:
            ConfigError: a layer is not there, or the heads cannot be compared.
        """
        small, large = (self.roles[n].module for n in (learner, master))
        if self.layers == "uniform":
            m, n = (len(attentions_of(x)) for x in (small, large))
            found = [
                (projections(small, i, learner), projections(large, (i + 1) * n // m - 1, master)) for i in range(m)
            ]
        else:
            # an assistant stands in for the teacher: of it, and by it, the last layer is matched
            below = self.layer if master == "teacher" else -1
            mine = self.student_layer if learner == "student" else -1
            found = [(projections(small, mine, "method.student_layer"), projections(large, below, "method.layer"))]
        for s, t in found:
            if not self.heads and s.heads != t.heads and self.wanted:
                raise ConfigError(
                    "method.relation_heads",
                    f"{learner} has {s.heads} heads and {master} {t.heads}, and v1 compares head by head",
                    expected="equal numbers of heads, or relation heads that both are cut into",
                    remedy=f"set method.version=v2 method.relation_heads={shared_heads(s.width, t.width)}, "
                    f"or give the {learner} {t.heads} heads",
                )
            for name, p in ((learner, s), (master, t)):
                if self.heads and p.width % self.heads:
                    raise ConfigError(
                        "method.relation_heads",
                        f"the {name}'s {p.width} columns cannot be cut into so many heads",
                        given=self.heads,
                        expected=f"a number that divides {s.width} and {t.width}",
                        remedy=f"set method.relation_heads={shared_heads(s.width, t.width)}",
                    )
        return found

    def stages(self) -> list[Stage]:
        """The student's stage; with an assistant one before it, which every run with the same assistant shares."""
        (stage,) = super().stages()
        projected = [n for n in self.roles if n.startswith("projection:student")]
        stage.optim = dict.fromkeys(["student", *projected], self.setup.train)
        if not self.assistant:
            return [stage]
        stage.step = lambda batch, ctx: self.compare("student", "assistant", batch, ctx)
        if self.setup.built["assistant"].model.trained:
            return [stage]
        learners = ["assistant", *(n for n in self.roles if n.startswith("projection:assistant"))]
        first = Stage(
            "assist",
            steps=stage.steps,
            data=stage.data,
            batch_size=stage.batch_size,
            optim=dict.fromkeys(learners, self.setup.train),
            step=lambda batch, ctx: self.compare("assistant", "teacher", batch, ctx),
            remember=[self.wanted, self.heads, self.values, self.measure, self.layers, self.layer, self.variant],
            roles=[*learners, "teacher"],
            judged=False,
        )
        return [first, stage]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The student's relations against the teacher's."""
        return self.compare("student", "teacher", batch, ctx)

    def compare(self, learner: str, master: str, batch: Batch, ctx: Context) -> Terms:
        """A term for each relation, over all pairs of layers."""
        pairs = self.where[learner, master]
        hidden = self.values == "hidden"
        taps_s, taps_t = (
            [path for pair in pairs for path in ((*pair[i].taps, pair[i].block) if hidden else pair[i].taps)]
            for i in (0, 1)
        )
        acts_s = ctx.signal(learner, batch, taps_s).acts
        acts_t = ctx.signal(master, batch, taps_t).acts
        where = batch.get("attention_mask")  # [N, T], of texts
        found: dict[str, list[Tensor]] = {}
        for i, (at_s, at_t) in enumerate(pairs):
            s, t = at_s.read(acts_s, self.roles[learner].module), at_t.read(acts_t, self.roles[master].module)
            shown = relation_values(
                s, t, self.wanted, where=where, heads=self.heads, measure=self.measure, causal=at_s.causal
            )  # each [N, A]
            if self.values in ("mse", "hidden"):
                a, b = (
                    (acts_s[at_s.block], acts_t[at_t.block]) if hidden else (s.joined(1).v[:, 0], t.joined(1).v[:, 0])
                )
                shown[self.values] = mean_squares(ctx.call(f"projection:{learner}:{i}", a), b, where)  # [N]
            for name, values in shown.items():
                found.setdefault(name, []).append(values)
        share = 0.5 if self.variant == "released" and self.version == "v1" else 1.0
        to = (learner,)
        return Terms(
            {},
            **{
                name: Term(
                    torch.stack(values),
                    (learner, *(f"projection:{learner}:{i}" for i in range(len(pairs)))) if name == self.values else to,
                    weight=share * self.wanted.get(name, 1.0),
                )
                for name, values in found.items()
            },
        )

    def extras(self) -> dict[str, Any]:
        """The relations of one training text in both models, the mean over heads, of its first tokens."""
        (at_s, at_t), *_ = self.where["student", "assistant" if self.assistant else "teacher"]
        rows, names = [], []
        for name, relation_name in (("attention", "qk"), ("value relation", "vv")):
            row = []
            for role, at in (("teacher" if not self.assistant else "assistant", at_t), ("student", at_s)):
                shown = at.read(self.dry(role, at.taps, 1).acts, self.roles[role].module)
                where = self.task.example(1).get("attention_mask")
                x, y = (v.cpu() for v in shown.pair(relation_name))
                p = relation(x, y, where=where, causal=at.causal).mean(1)[0, :MOST, :MOST]
                row.append([(255 * (p / p.max()).clamp(0, 1)).round().int().tolist()])
            rows.append(row)
            names.append(name)
        title = "Relations of the tokens of one text (bright is large)"
        caption = f"Rows: {' and '.join(names)}; left {'assistant' if self.assistant else 'teacher'}, right student."
        return {"pictures": [{"title": title, "caption": caption, "pixels": rows}]}


def body(module: Any, batch: Batch) -> Any:
    """Whole rows through the encoder alone, without what stands on top of it."""
    ids = batch.get("input_ids", batch.get("x"))
    assert isinstance(ids, Tensor)
    return encode(trunk(module), ids, batch) if not ids.is_floating_point() else module(ids)


def mean_squares(a: Tensor, b: Tensor, where: Tensor | None) -> Tensor:
    """Squared distance of vectors [N, T, D], the mean over columns and real tokens: [N]."""
    gap = (a.float() - b.detach().float()).square().mean(-1)
    if where is None:
        return gap.mean(1)
    return torch.where(where.bool(), gap, torch.zeros_like(gap)).sum(1) / where.sum(1).clamp_min(1)


def shared_heads(a: int, b: int) -> int:
    """The largest number up to 48 that divides both widths."""
    return max(n for n in range(1, 49) if a % n == 0 and b % n == 0)


def copied(student: nn.Module, teacher: nn.Module) -> None:
    """Give the student's encoder the teacher's embeddings, and its layers evenly spread ones of the teacher's.

    Raises:
        ConfigError: the two have other widths or vocabularies.
    """
    small, large = trunk(student), trunk(teacher)
    mine, theirs = (attentions_of(m) for m in (small, large))
    blocks = [[projections(m, i).block for i in range(len(n))] for m, n in ((small, mine), (large, theirs))]
    source = large.state_dict()
    taken: dict[str, Tensor] = {}
    for name, own in small.state_dict().items():
        at = next((i for i, b in enumerate(blocks[0]) if name.startswith(f"{b}.")), None)
        path = name if at is None else blocks[1][(at + 1) * len(theirs) // len(mine) - 1] + name[len(blocks[0][at]) :]
        if path in source and source[path].shape == own.shape:
            taken[name] = source[path].clone()
        elif "pooler" not in name:
            given = list(source[path].shape) if path in source else "nothing"
            raise ConfigError(
                "method.initial",
                f"the student's {name} is {list(own.shape)}, and the teacher has {given}",
                given="copy",
                expected="a student of the teacher's width, inner width, positions and vocabulary",
                remedy="give the student these, or set method.initial=random",
            )
    small.load_state_dict(taken, strict=False)
