"""Mirage: a set of graphs in the place of which stand the computation trees that its classes' graphs have in common.

    T_v      the tree of node v to depth L: its label, and below it, for each of its edges, the neighbour's tree to depth L - 1
    D_G    = { T_v : v in G }                                a graph as the set of its distinct trees
    S      : |{ G in class c : S subset of D_G }| >= theta_c  the sets of trees that are frequent in class c, all of them

Nothing is trained. What a network of L layers says of a node is a function of the node's tree, so a pooled graph is a sum
over its trees; each frequent set, drawn out as a forest whose roots alone are pooled, stands for graphs of its class, and is
drawn as often as graphs hold it. This is exact for GIN, SAGE, GraphConv and GAT, not for a GCN that normalises by degrees.

L: hops;  theta_c: graphs of class c that must hold a set;  support: graphs that do
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.data.graphs import GraphData
from limbeck.errors import ConfigError, DataError
from limbeck.functional.trees import (
    FrequentSets,
    Level,
    TooManySets,
    Trees,
    branching,
    computation_trees,
    frequent_sets,
    reachable,
)
from limbeck.grammar.card import Card
from limbeck.grammar.method import Context, Method, Participant, Setup, Stage
from limbeck.grammar.settings import Count, Share, settings
from limbeck.tasks.graph_set import GraphSet, Mined, tree_error
from limbeck.tasks.graphs import GraphCondensation

CARD = Card(
    number=45,
    slug="mirage",
    title="Mirage: Model-Agnostic Graph Distillation for Graph Classification",
    year=2024,
    venue="ICLR 2024",
    arxiv="2310.09486",
    repository="frigategnn/Mirage",
    family="graph",
    methods={"mirage": "Mirage"},
    optimised="nothing: trees are mined",
    signals=("frequency of computation trees",),
    provenance={
        "trees, transactions, reconstruction": "paper and code, checked against recorded vectors",
        "itemsets": "exact; the library that the code calls (pyfpgrowth) loses some, often the most frequent single trees",
        "sampling by frequency": "paper; the code draws the sample and then overwrites it by the plain list (variant=released)",
        "sets frequent in several classes": "kept, as the C++ code does; shared=drop as the Python code",
        "top, budget, multiplicity, class weighting": "ours",
        "canonical labels": "ours, by sorting; the code's text runs digits of several labels together",
    },
    claim="Trees that graphs of a class have in common teach fresh networks about as well as real graphs of the same size, for "
    "the cost of counting.",
    recipe="mirage",
    exceptions={
        "terms": "nothing is trained, so there are no terms",
        "at_equality": "the student is a data set: there is no teacher network it could equal",
    },
    notes="Labels of nodes must be discrete. Trees to depth L are exact for networks of up to L layers.",
)

Miner = Callable[[int, int | None], FrequentSets]
"""(support, sets at most) -> the frequent sets of a class."""


@settings
class Mirage(Method[GraphCondensation]):
    """Frequent sets of computation trees.

    One of ``theta``, ``share``, ``top`` and ``budget`` says how frequent a set must be; without any it is ``top: 20``.

    Args:
        hops: depth of the trees; ``null`` takes the student's layers.
        theta: graphs of a class that must hold a set: one number for all classes, or one for each in order; 2 or more.
        share: likewise, as a share of the class's graphs.
        top: the most frequent sets of each class, so many at most (all that are as frequent as the last, or none of these).
        budget: bytes of the whole set at most, divided among the classes by their graphs.
        weighting: how often a set is learnt from: by ``frequency``; by frequency within a ``class``, and each class as
            often as it has graphs; or ``none``, all alike.
        shared: ``keep`` or ``drop`` sets that are frequent in more than one class.
        multiplicity: count how often a graph holds a tree: a set may then ask for several of one tree.
        max_size: trees of a set at most.
        max_itemsets: sets of a class at most; more stop the run, for they grow as 2 to the trees that always come together.
        single_nodes: ``skip`` trees of a single node, or ``keep`` them.
        variant: ``released`` learns from all sets alike.
    """

    hops: Count | None = None
    theta: int | list[int] | None = None
    share: Share | None = None
    top: Count | None = None
    budget: Count | None = None
    weighting: Literal["frequency", "class", "none"] = "frequency"
    shared: Literal["keep", "drop"] = "keep"
    multiplicity: bool = False
    max_size: Count | None = None
    max_itemsets: Annotated[int, Ge(1)] = 10_000
    single_nodes: Literal["skip", "keep"] = "skip"
    variant: Literal["paper", "released"] = "paper"

    participants = MappingProxyType[str, Participant]({})

    def validate(self) -> None:
        """One way to say how frequent, and nothing that would take every graph's own trees."""
        given = [n for n in ("theta", "share", "top", "budget") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say how frequent a set must be: give one")
        thetas = self.theta if isinstance(self.theta, list) else [] if self.theta is None else [self.theta]
        if any(t < 2 for t in thetas):
            raise ValueError(
                "theta must be 2 or more each: below that every set of trees of a single graph is frequent"
            )
        if self.share is not None and self.share <= 0:
            raise ValueError("share must be above 0")
        self.notes: list[str] = []

    def bind(self, setup: Setup) -> None:
        """Take the network that the set is made for: its layers are the trees' depth."""
        super().bind(setup)
        self.notes = []
        model: Any = setup.student.model
        layers = getattr(model, "layers", None)
        if self.hops is None and layers is None:
            raise ConfigError(
                "method.hops",
                "the student does not tell how many layers it has",
                remedy="set method.hops, or student.layers",
            )
        self.depth = self.hops or int(layers or 1)
        if layers is not None and layers > self.depth:
            self.notes.append(
                f"the student has {layers} layers and the trees a depth of {self.depth}: what it says of a tree's root is not "
                "what it says of the node (method.hops)"
            )
        if getattr(model, "inexact", ""):
            self.notes.append(f"not exact for the student: {model.inexact}; gin, sage, graphconv and gat are")
        classes = self.task.outputs
        if isinstance(self.theta, list) and len(self.theta) != classes:
            raise ConfigError(
                "method.theta", given=self.theta, expected=f"a number, or one for each of {classes} classes"
            )

    def stages(self) -> list[Stage]:
        """Trees of all training graphs, then the frequent sets of each class."""
        return [
            Stage("trees", items=lambda ctx: ["trees"], work=lambda item, ctx: self.grow()),
            Stage(
                "mine",
                items=lambda ctx: [f"class{c}" for c in range(self.task.outputs)],
                work=lambda item, ctx: self.mine(int(item[5:]), ctx.artifact("trees", "trees")),
                finish=self.gather,
            ),
        ]

    def grow(self) -> dict[str, Any]:
        """The table of trees and each node's tree."""
        data = self.task.graphs()
        trees, code = computation_trees(data.label, data.global_edges(), self.depth, data.edge_label)
        return {"trees": [tuple(level) for level in trees], "code": code}

    def mine(self, c: int, grown: dict[str, Any]) -> dict[str, Tensor]:
        """The frequent sets of one class: ``items``, ``ptr``, ``support``; a tree asked for k times stands there k times."""
        data, trees, code = self.task.graphs(), _table(grown), grown["code"]
        nodes = data.y[data.owner] == c
        if self.single_nodes == "skip":
            nodes &= branching(trees)[code]
        owner, tree = data.owner[nodes], code[nodes]
        graphs = int((data.y == c).sum())
        times, group = torch.ones_like(tree), None
        if self.multiplicity:  # the k-th node of a graph with a tree is the item "k of it or more"
            order = (owner * len(trees[-1].label) + tree).argsort(stable=True)
            owner, tree = owner[order], tree[order]
            same = torch.cat([tree.new_zeros(1, dtype=torch.bool), (owner[1:] == owner[:-1]) & (tree[1:] == tree[:-1])])
            first = torch.where(same, 0, torch.arange(len(tree))).cummax(0).values
            times = torch.arange(len(tree)) - first + 1
        width = int(times.max()) + 1 if len(times) else 1
        item = tree * width + times
        if self.multiplicity:
            group = torch.arange(len(trees[-1].label) * width) // width

        def miner(support: int, most: int | None) -> FrequentSets:
            return frequent_sets(owner, item, support, self.max_size, most, group)

        largest = (
            int(torch.bincount(item.unique(return_inverse=True)[1][_firsts(owner, item)]).max()) if len(item) else 0
        )
        found = self.chosen(c, graphs, largest, miner, trees, width)
        wanted = found.items // width
        count = found.items % width
        owner_of = torch.repeat_interleave(torch.arange(len(found.support)), found.ptr.diff())
        sizes = torch.zeros(len(found.support), dtype=torch.long).index_add(0, owner_of, count)
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return {"items": torch.repeat_interleave(wanted, count), "ptr": ptr, "support": found.support}

    def chosen(self, c: int, graphs: int, largest: int, miner: Miner, trees: Trees, width: int) -> FrequentSets:
        """The sets of class c at the support that is asked for.

        Args:
            c: the class.
            graphs: how many it has.
            largest: the largest support of a tree.
            miner: finds sets by a support.
            trees, width: what items are.
        """
        label = (self.task.labels or [])[c]
        if self.theta is not None or self.share is not None:
            theta = self.theta[c] if isinstance(self.theta, list) else self.theta
            support = theta if theta is not None else max(2, math.ceil((self.share or 0) * graphs))
            name = "method.theta" if theta is not None else "method.share"
            if support > graphs:
                raise ConfigError(
                    name, f"class {label!r} has {graphs} graphs", given=support, expected=f"2 to {graphs}"
                )
            if support > largest:
                raise _nothing(name, label, support, largest, graphs)
            try:
                return miner(support, self.max_itemsets)
            except TooManySets as error:
                raise _too_many(name, label, error, support, self.max_itemsets) from None
        if largest < 2:
            raise _nothing("method.top" if self.budget is None else "method.budget", label, 2, largest, graphs)
        part = None if self.budget is None else self.budget * graphs / len(self.task.graphs())
        top = min(self.top or (20 if part is None else self.max_itemsets), self.max_itemsets)

        def fits(support: int) -> FrequentSets | None:
            try:
                found = miner(support, top)
            except TooManySets:
                return None
            return found if part is None or _bytes(found, trees, width, support) <= part else None

        low, high, best = 2, largest, None
        while low <= high:  # the lowest support at which they fit
            middle = (low + high) // 2
            found = fits(middle)
            low, high = (middle + 1, high) if found is None else (low, middle - 1)
            best = best if found is None else found
        if best is None:
            try:
                smallest = miner(largest, self.max_itemsets)
            except TooManySets as error:
                raise _too_many("method.max_itemsets", label, error, self.max_itemsets, self.max_itemsets) from None
            if part is None:
                return _first(smallest, top)
            raise ConfigError(
                "method.budget",
                f"the most frequent trees of class {label!r} alone take {_bytes(smallest, trees, width, largest):,} bytes, and its "
                f"part is {int(part):,}",
                given=self.budget,
                remedy="raise it",
            )
        return best

    def gather(self, ctx: Context) -> None:
        """The classes' sets as one, and what is to be said of it."""
        each = [ctx.artifact("mine", f"class{c}") for c in range(self.task.outputs)]
        self.state["set"] = self.joined(ctx.artifact("trees", "trees"), each).state()
        self.state["error"] = tree_error(self.roles["student"].module, self.task.graphs(), self.depth)

    def joined(self, grown: dict[str, Any], each: list[dict[str, Tensor]]) -> Mined:
        """The sets of all classes with the part of the table that they need."""
        data, trees = self.task.graphs(), _table(grown)
        sets: list[tuple[int, tuple[int, ...], int]] = []
        for c, found in enumerate(each):
            ptr, items = found["ptr"].tolist(), found["items"].tolist()
            spans = zip(ptr[:-1], ptr[1:], found["support"].tolist(), strict=True)
            sets += [(c, tuple(items[a:b]), n) for a, b, n in spans]
        if self.shared == "drop":
            of: dict[tuple[int, ...], set[int]] = {}
            for c, held, _ in sets:
                of.setdefault(held, set()).add(c)
            sets = [s for s in sets if len(of[s[1]]) == 1]
            for c in set(range(len(each))) - {c for c, _, _ in sets}:
                label = (self.task.labels or [])[c]
                raise ConfigError(
                    "method.shared", f"every set of class {label!r} is frequent in another class too", given="drop",
                    remedy="lower method.theta (or raise method.top), or set method.shared=keep",
                )  # fmt: skip
        needed, place = reachable(trees, torch.tensor([i for _, s, _ in sets for i in s]))
        return Mined(
            needed,
            torch.tensor([0, *(len(s) for _, s, _ in sets)]).cumsum(0),
            place,
            torch.tensor([n for _, _, n in sets]),
            torch.tensor([c for c, _, _ in sets]),
            torch.bincount(data.y, minlength=len(each)),
        )

    def measures(self) -> dict[str, float]:
        """``tree_error``: how far the student's embeddings of nodes are from those of their trees' roots."""
        error = float(self.state.get("error", math.nan))
        return {} if math.isnan(error) else {"tree_error": error}

    def artifact(self) -> GraphSet:
        """The sets; mined on the spot where no stage has run yet."""
        if "set" not in self.state:
            grown = self.grow()
            mined = self.joined(grown, [self.mine(c, grown) for c in range(self.task.outputs)])
        else:
            mined = Mined.of(self.state["set"])
        weighting = "none" if self.variant == "released" else self.weighting
        data: GraphData = self.task.graphs()
        facts: dict[str, Any] = {}
        error = self.state.get("error", float("nan"))
        if not math.isnan(error):
            facts["tree_error"] = error
            exact = f"a node's embedding and its tree's root's agree within {error:.1e} of the largest in the student network"
            if exact not in self.notes:
                self.notes.append(exact)
        return GraphSet(mined, data.alphabet, list(self.task.labels or []), weighting, facts)


def _table(grown: dict[str, Any]) -> Trees:
    return tuple(Level(*level) for level in grown["trees"])


def _firsts(owner: Tensor, item: Tensor) -> Tensor:
    """A place of each distinct pair."""
    key = owner * (int(item.max()) + 1) + item
    order = key.argsort(stable=True)
    new = torch.cat([key.new_ones(1, dtype=torch.bool), key[order].diff() != 0])
    return order[new]


def _first(found: FrequentSets, count: int) -> FrequentSets:
    """The first sets: of those that are equally frequent, the smaller ones."""
    ptr = found.ptr[: count + 1]
    return FrequentSets(found.items[: int(ptr[-1])], ptr, found.support[:count])


def _bytes(found: FrequentSets, trees: Trees, width: int, support: int) -> int:
    """Bytes of a class's sets by themselves."""
    needed, place = reachable(trees, found.items // width)
    none = torch.zeros(len(found.support), dtype=torch.long)
    return Mined(needed, found.ptr, place, found.support, none, none[:1]).bytes()


def _too_many(name: str, label: str, error: TooManySets, given: int, most: int) -> ConfigError:
    return ConfigError(
        name,
        f"class {label!r}: {error}",
        given=given,
        expected=f"at most method.max_itemsets={most:,} sets",
        remedy="raise it, or set method.max_size, or method.top",
    )


def _nothing(name: str, label: str, support: int, largest: int, graphs: int) -> DataError:
    return DataError(
        name,
        f"no tree of class {label!r} is in {support} of its {graphs} graphs: it would be empty",
        expected=f"at most {largest}, the largest support of a tree there",
        remedy=f"lower it to {largest} or less" if largest >= 2 else "lower method.hops",
    )
