"""Mirage's miner beside mlxtend's FP-growth on the same transactions, and distilling beside one epoch of training.

The transactions are those of each class: which computation trees each graph holds. mlxtend is given its table ready made, so
that what is compared is finding the sets. Graphs are NCI1's where LIMBECK_GRAPHS names its ``.npz`` (`graph-arrays`), else
as many drawn ones.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Check, Report, Row, Say, cpu_seconds, interleave, number, quiet, ratios, spread
from limbeck.data.graphs import DrawnGraphs, GraphArrays, GraphData
from limbeck.functional.trees import branching, computation_trees, frequent_sets


@dataclass(frozen=True)
class Settings:
    """Sizes: supports as shares of a class's graphs, trees of two hops."""

    graphs: int = 4_110
    hops: int = 2
    shares: tuple[float, ...] = (0.3, 0.15, 0.06)
    rounds: int = 9


TOY = Settings(graphs=40, shares=(0.3,), rounds=1)


def graphs(settings: Settings) -> tuple[GraphData, str]:
    """The graphs, and what they are."""
    path = os.environ.get("LIMBECK_GRAPHS", "")
    if path and settings.graphs > TOY.graphs:
        return GraphArrays(path).collected()[0], os.path.basename(path)
    return DrawnGraphs(graphs=settings.graphs).collected()[0], "drawn graphs"


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Sets of trees that are frequent in a class: ours, and mlxtend's."""
    settings = settings or Settings()
    data, what = graphs(settings)
    title = "Frequent sets of computation trees, and distilling beside one epoch of training (CPU time)"
    report = Report("mirage", title, {**asdict(settings), "data": what})
    trees, code = computation_trees(data.label, data.global_edges(), settings.hops, data.edge_label)
    kept = branching(trees)[code]
    owner, code = data.owner[kept], code[kept]
    same: list[bool] = []
    medians: list[float] = []
    for c in range(int(data.y.max()) + 1):
        mine = data.y[owner] == c
        transaction, item = owner[mine], code[mine]
        count = int((data.y == c).sum())
        for share in settings.shares:
            _compare(
                report,
                settings,
                say,
                f"class {c}, {share:g}",
                transaction,
                item,
                max(2, int(share * count)),
                same,
                medians,
            )
    missing = "mlxtend is not installed"
    worst = max(medians) if medians else None
    sums = float(all(same)) if same else None
    report.checks.append(Check("mlxtend finds the same sets and supports", sums, 1.0, at_least=True, why=missing))
    report.checks.append(Check("ours over mlxtend, the largest median", worst, 1.0, why=missing))
    _epoch(report, settings, data, say)
    return report


def _compare(
    report: Report,
    settings: Settings,
    say: Say,
    name: str,
    transaction: Tensor,
    item: Tensor,
    support: int,
    same: list[bool],
    medians: list[float],
) -> None:
    def ours() -> Any:
        return frequent_sets(transaction, item, support)

    found = ours()
    sets = len(found.support)
    variants = {"limbeck": lambda: cpu_seconds(ours, 5)}
    with report.peer(f"mlxtend, {name}"):
        fpgrowth = peers.load("mlxtend", "mlxtend.frequent_patterns").fpgrowth
        pandas = peers.load("pandas", "pandas")
        rows, row = np.unique(transaction.numpy(), return_inverse=True)
        names, column = np.unique(item.numpy(), return_inverse=True)
        table = np.zeros((len(rows), len(names)), bool)
        table[row, column] = True
        frame = pandas.DataFrame(table, columns=names)

        def theirs() -> Any:
            return fpgrowth(frame, min_support=support / len(rows), use_colnames=True)

        made = theirs()
        listed = {
            tuple(sorted(map(int, s))): round(n * len(rows))
            for s, n in zip(made["itemsets"], made["support"], strict=True)
        }
        same.append(listed == dict(found.listed()))
        variants["mlxtend"] = lambda: cpu_seconds(theirs, 1)
    raw = interleave(variants, settings.rounds, say)
    report.raw[name] = raw
    for who, seconds in raw.items():
        cells = {"sets": sets, "ms": number(1000 * statistics.median(seconds))}
        if who == "limbeck" and "mlxtend" in raw:
            over = ratios(raw, "limbeck", "mlxtend")
            medians.append(statistics.median(over))
            cells["of mlxtend's"] = spread(over)
        report.rows.append(Row(f"{who}, {name}", cells))


def _epoch(report: Report, settings: Settings, data: GraphData, say: Say) -> None:
    """Trees and sets of all classes, beside one pass of a GIN of as many layers over all graphs."""
    from limbeck.networks.gnn import Gnn, GraphHead
    from limbeck.tasks.graph_set import feed

    share = settings.shares[0]
    net = GraphHead(Gnn("gin", data.shape[0], 64, settings.hops, data.edge_width), 64, int(data.y.max()) + 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def epoch() -> None:
        for ids in torch.randperm(len(data)).split(64):
            batch = data.fetch(ids)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(feed(net, batch), batch["y"]).backward()
            optimizer.step()

    def distil() -> None:
        trees, code = computation_trees(data.label, data.global_edges(), settings.hops, data.edge_label)
        kept = branching(trees)[code]
        for c in range(int(data.y.max()) + 1):
            mine = kept & (data.y[data.owner] == c)
            frequent_sets(data.owner[mine], code[mine], max(2, int(share * int((data.y == c).sum()))))

    variants = {"one epoch": lambda: cpu_seconds(epoch), "distilling": lambda: cpu_seconds(distil)}
    raw = interleave(variants, min(3, settings.rounds), say)
    report.raw["epoch"] = raw
    over = ratios(raw, "distilling", "one epoch")
    for who, seconds in raw.items():
        report.rows.append(Row(who, {"ms": number(1000 * statistics.median(seconds))}))
    report.checks.append(Check("distilling over one epoch of training", statistics.median(over), 1.0))
