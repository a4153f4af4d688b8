"""Adapter of Mirage's vectors: computation trees, sets that are frequent, and the forests they are drawn out as."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from limbeck.functional.trees import branching, canonical, computation_trees, frequent_sets, unroll


def mirage(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x, owner, y = arrays["x"], arrays["node_graph"], arrays["y"]
    rows, label = np.unique(x, axis=0, return_inverse=True)
    bonds, bond = np.unique(arrays["edge_attr"], axis=0, return_inverse=True)
    first = np.searchsorted(owner, np.arange(int(owner.max(initial=-1)) + 1))
    edges = arrays["edge_index"] + first[arrays["edge_graph"]]
    labels, kinds = _texts(rows, bonds, hyper)
    trees, code = computation_trees(
        torch.from_numpy(label.reshape(-1)),
        torch.from_numpy(np.ascontiguousarray(edges.T)),
        int(hyper["hops"]),
        torch.from_numpy(bond.reshape(-1)),
    )
    _compare(trees, code, labels, kinds, owner, y, hyper)
    found = {"mapped": code.numpy()}
    for name in sorted(n.removesuffix("_items") for n in arrays if n.endswith("_items")):
        items = torch.from_numpy(arrays[f"{name}_items"])
        forest = unroll(trees, items[branching(trees)[items]], labels, kinds)  # trees of a single node are left out
        found |= {
            f"{name}_x": rows[forest.label.numpy()],
            f"{name}_edge_index": forest.edges.numpy().T,
            f"{name}_edge_attr": bonds[forest.edge.numpy()],
            f"{name}_roots": forest.root.numpy().astype(np.float32),
        }
    return found


def _texts(rows: np.ndarray, bonds: np.ndarray, hyper: Any) -> tuple[list[str], list[str]]:
    """What the recorded canonical labels call node and edge labels: numbers in the order of a Python set."""
    if "node_label_map" in (hyper.peek("side") or {}):
        side = hyper["side"]
        short, full, bond = (side[n] for n in ("node_label_map", "node_label_map_full", "edge_label_map"))
    else:
        whole = [tuple(r) for r in rows.tolist()]
        short = {str(v): i for i, v in enumerate({r[0] for r in whole})}
        full = {str(v): i for i, v in enumerate(set(whole))}
        bond = {str(v): i for i, v in enumerate({tuple(b) for b in bonds.tolist()})}
    labels = [f"{short[str(r[0])]} {full[str(tuple(r))]}" for r in rows.tolist()]
    return labels, [str(bond[str(tuple(b))]) for b in bonds.tolist()]


def _compare(
    trees: Any, code: torch.Tensor, labels: list[str], kinds: list[str], owner: Any, y: Any, hyper: Any
) -> None:
    """What was recorded beside the arrays: canonical labels, and the sets that are frequent in each class."""
    thresholds = hyper["thresholds"]
    for name in thresholds:
        mine = torch.from_numpy(y[owner] == int(name))
        sets = frequent_sets(torch.from_numpy(owner)[mine], code[mine], int(thresholds[name]))
        if "exact_patterns" in (hyper.peek("side") or {}):
            known = sorted((tuple(s), n) for s, n in hyper["side"]["exact_patterns"][name])
            if known != sorted(sets.listed()):
                hyper.doubt(f"other sets are frequent in class {name}")
    if "canonical" not in (hyper.peek("side") or {}):
        return
    side = hyper["side"]
    side.prose("pretty", "tree_ids", "official_patterns")  # the last is known to lack sets
    texts = canonical(trees, labels, kinds)[-1]
    if [texts[i] for i in code.tolist()] != [text for graph in side["canonical"] for text in graph]:
        hyper.doubt("other canonical labels")


ADAPTERS = {"mirage:ogbg-molbace/data_utils.py:computation_trees+itemsets+reconstruct": mirage}
