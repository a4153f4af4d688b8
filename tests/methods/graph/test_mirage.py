"""Mirage: what is mined, that trees stand for nodes exactly, what a set is drawn as and saved as, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.grammar.method import Setup
from limbeck.methods.graph.mirage import Mirage
from limbeck.networks.gnn import KINDS, Gnn, GraphHead
from limbeck.recipe.recipe import check, load_tree
from limbeck.run.running import run
from limbeck.tasks.graph_set import GraphSet, sizes_of, tree_error
from limbeck.tasks.graphs import GraphCondensation, auc
from tests.tiny import tiny, tree_of


@pytest.fixture(scope="module")
def task() -> GraphCondensation:
    from limbeck.data.graphs import DrawnGraphs

    made = GraphCondensation(data=DrawnGraphs(graphs=48, classes=3))
    made.load(0)
    return made


def mined(task: GraphCondensation, **settings: Any) -> GraphSet:
    """The set by these settings, without a run."""
    from limbeck.models.gnn import GnnModel

    method = Mirage(**settings)
    method.bind(Setup(task, GnnModel(hidden=8).build(task), None, train=None))  # type: ignore[arg-type]
    return method.artifact()


def sets_of(made: GraphSet) -> dict[tuple[int, tuple[str, ...]], int]:
    """(class, canonical texts of a set's trees) -> support."""
    from limbeck.functional.trees import canonical

    m = made.mined
    texts = canonical(m.trees, [f"n{i}" for i in range(99)], [f"e{i}" for i in range(99)])[-1]
    ptr, items = m.ptr.tolist(), m.items.tolist()
    spans = zip(ptr[:-1], ptr[1:], m.y.tolist(), m.support.tolist(), strict=True)
    return {(c, tuple(sorted(texts[i] for i in items[a:b]))): n for a, b, c, n in spans}


def counted(task: GraphCondensation, hops: int) -> list[tuple[int, dict[str, int]]]:
    """Every training graph's class and how often it holds each tree, drawn out naively."""
    data, found = task.graphs(), []
    for g in range(len(data)):
        b = data.take(torch.tensor([g]))
        edges = list(zip(b.edges.tolist(), b.edge_label.tolist(), strict=True))  # type: ignore[union-attr]

        def text(v: int, depth: int, b: Any = b, edges: Any = edges) -> str:
            below = sorted(f"e{k} {text(a, depth - 1)}" for (a, z), k in edges if z == v) if depth else []
            return " ".join([f"n{b.label[v]}", *below, "$"])

        trees = [text(v, hops) for v in range(len(b.label))]
        found.append((int(b.y), {t: trees.count(t) for t in trees}))
    return found


@pytest.mark.parametrize("hops", [1, pytest.param(2, marks=pytest.mark.expensive)])
def test_sets_and_supports_are_those_of_every_pair_counted(task: GraphCondensation, hops: int) -> None:
    made = sets_of(mined(task, hops=hops, share=0.3, max_size=2))
    graphs = counted(task, hops)
    expected = {}
    for c in range(3):
        held = [set(trees) for y, trees in graphs if y == c]
        least = max(2, -(-3 * len(held) // 10))
        for size in (1, 2):
            for s in itertools.combinations(sorted(set().union(*held)), size):
                n = sum(set(s) <= h for h in held)
                if n >= least:
                    expected[c, s] = n
    assert made == expected and len({c for c, _ in made}) == 3


def test_multiplicity_asks_for_as_many_as_there_are(task: GraphCondensation) -> None:
    made = sets_of(mined(task, hops=1, share=0.4, max_size=1, multiplicity=True))
    graphs = counted(task, 1)
    assert any(len(s) > 1 and len(set(s)) == 1 for _, s in made)
    for (c, s), n in made.items():
        assert n == sum(y == c and trees.get(s[0], 0) >= len(s) for y, trees in graphs)


def test_top_and_budget_find_the_lowest_support_that_fits(task: GraphCondensation) -> None:
    made = mined(task, top=6)
    per_class = torch.bincount(made.mined.y)
    assert bool((per_class <= 6).all()) and bool((per_class > 0).all())
    least = [int(made.mined.support[made.mined.y == c].min()) for c in range(3)]
    for c in range(3):  # one less and there would be too many
        lower = [max(2, t) for t in least]
        lower[c] = least[c] - 1
        while lower[c] >= 2:
            more = mined(task, theta=lower)
            if int((more.mined.y == c).sum()) > int(per_class[c]):
                assert int((more.mined.y == c).sum()) > 6
                break
            lower[c] -= 1
    assert set(sets_of(made)) == set(sets_of(mined(task, theta=least)))
    small, large = mined(task, budget=150), mined(task, budget=900)
    assert small.size()["items"] < large.size()["items"] and small.size()["bytes"] <= 150 < large.size()["bytes"] <= 900


def test_sets_of_several_classes_can_be_dropped(task: GraphCondensation) -> None:
    kept, dropped = (sets_of(mined(task, hops=1, share=0.3, shared=s)) for s in ("keep", "drop"))  # type: ignore[arg-type]
    classes: dict[tuple[str, ...], int] = {}
    for _, s in kept:
        classes[s] = classes.get(s, 0) + 1
    assert dropped == {k: n for k, n in kept.items() if classes[k[1]] == 1} and dropped != kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edges", [True, False])
def test_a_nodes_embedding_is_its_trees_roots(task: GraphCondensation, kind: str, edges: bool) -> None:
    data = task.graphs() if edges else task.graphs().without_edge_labels()
    torch.manual_seed(0)
    for layers in (1, 3):
        module = GraphHead(Gnn(kind, data.shape[0], 16, layers, data.edge_width, heads=2), 16, 3)
        error = tree_error(module, data, layers)
        if kind == "gcn":
            assert error > 0.01  # it looks at the degrees of neighbours, which leaves do not keep
        else:
            assert error < 3e-6
            assert layers == 1 or tree_error(module, data, layers - 1) > 1e-3  # too shallow


def test_a_graph_is_the_sum_of_its_trees(task: GraphCondensation) -> None:
    """With every tree of a graph as often as it is there, a network says of the forest what it says of the graph."""
    from limbeck.functional.trees import computation_trees
    from limbeck.tasks.graph_set import Mined, feed

    data = task.graphs().take(torch.tensor([0, 3]))
    trees, code = computation_trees(data.label, data.global_edges(), 2, data.edge_label)
    one = torch.ones(2, dtype=torch.long)
    made = GraphSet(Mined(trees, data.ptr, code, one, data.y, one), data.alphabet, ["a", "b", "c"])
    for pooling in ("sum", "mean"):
        module = GraphHead(Gnn("gat", data.shape[0], 8, 2, data.edge_width), 8, 3, pooling).eval()
        with torch.no_grad():
            whole, forest = (feed(module, d.fetch(torch.arange(2))) for d in (data, made.data))
        torch.testing.assert_close(whole, forest)
    assert made.size()["nodes"] == float(len(made.data.fetch(torch.arange(2))["x"]))
    assert int(sizes_of(trees)[code[0]]) == int((made.data.trees.owner == code[0]).sum())


def test_frequent_sets_are_drawn_more_often(task: GraphCondensation) -> None:
    made = mined(task, top=6)
    (query,) = made.queries

    class Ctx:
        from limbeck.grammar.random import Draws

        draws = Draws(0, ("x",))

    n = 20_000
    batch = {"item": torch.arange(n), "view": torch.zeros(n, dtype=torch.long)}
    assert query.edges[-1] == made.mined.support.sum()  # type: ignore[attr-defined]
    seen = torch.bincount(query(batch, Ctx())["y"], minlength=3) / n  # type: ignore[arg-type]
    expected = torch.zeros(3).index_add(0, made.mined.y, made.mined.support.float())
    torch.testing.assert_close(seen, expected / expected.sum(), atol=0.02, rtol=0)
    even = mined(task, top=6, weighting="class").weights
    assert even is not None
    shares = torch.zeros(3, dtype=torch.float64).index_add(0, made.mined.y, even)
    torch.testing.assert_close(shares, made.mined.graphs.double())
    assert not mined(task, top=6, variant="released").queries and not mined(task, top=6, weighting="none").queries


def test_a_run_leaves_the_set_its_picture_and_what_it_found(tmp_path: Path) -> None:
    result = run(tree_of("mirage"), tmp_path / "run", quiet=True)
    assert list(result["metrics"]["rows"]) == ["student", "teacher", "random"] and result["primary"] == "auc"
    folder = tmp_path / "run"
    (picture,) = result["pictures"]
    assert (folder / picture["file"]).read_bytes().startswith(b"\x89PNG")
    assert any("agree within" in note for note in result["notes"])
    made = GraphSet.load(folder)
    assert made.facts["tree_error"] < 1e-5 and made.size() == result["sizes"]["student"]
    assert result["measures"]["tree_error"] == made.facts["tree_error"]
    assert result["sizes"]["teacher"]["items"] == 43  # all real graphs
    assert 0 < result["sizes"]["random"]["bytes"] < 3 * result["sizes"]["student"]["bytes"]
    (first, *_) = made.to_pyg()
    assert first.x.shape == (first.num_nodes, len(made.alphabet.nodes)) and int(first.root.sum()) >= 1
    from limbeck.grammar.optim import Optim

    net = GraphHead(Gnn("sage", first.x.shape[1], 8, 1), 8, 2)
    built = made.train(net, Optim(steps=2, batch_size=4))
    assert built.module is net
    (folder / "student.json").write_text("{}")
    with pytest.raises(LimbeckError, match="holds no set of graphs"):
        GraphSet.load(folder)


def test_any_module_that_embeds_nodes_by_its_path(tmp_path: Path) -> None:
    student = "student={use: gnn-import, function: 'torch_geometric.nn:GraphSAGE', options: {hidden_channels: 8, num_layers: 2}}"
    made = tiny("mirage", tmp_path, student).run()
    method: Any = made.method
    assert method.depth == 2 and method.artifact().facts["tree_error"] < 1e-5
    for words, said in (
        ("{use: gnn-import, function: 'torch.nn:Identity'}", "fails on three nodes"),
        ("{use: gnn-import, function: 'torch_geometric.nn:GIN', options: {hidden_channels: x}}", "failed"),
        ("{use: gnn-import, function: 'tests.methods.graph.test_mirage:whole_graph'}", "row for each node"),
        ("{use: gnn-import, function: 'tests.methods.graph.test_mirage:nodes'}", "method.hops"),
        ("mlp", "needs networks for graphs"),
    ):
        with pytest.raises(LimbeckError, match=said):
            tiny("mirage", tmp_path, f"student={words}")


class whole_graph(torch.nn.Module):
    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True)


class nodes(torch.nn.Module):
    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return x


def test_what_is_not_exact_is_told(tmp_path: Path) -> None:
    notes = tiny("mirage", tmp_path / "a", "student={use: gnn, kind: gcn}").run().method.notes  # type: ignore[attr-defined]
    assert any("not exact for the student: gcn normalises by degrees" in n for n in notes)
    notes = tiny("mirage", tmp_path / "b", "student.layers=3", "method.hops=1").run().method.notes  # type: ignore[attr-defined]
    assert any("3 layers and the trees a depth of 1" in n for n in notes)


def test_baselines_are_as_large_as_what_was_made(task: GraphCondensation) -> None:
    made = mined(task, top=6)
    for measure in ("bytes", "nodes"):
        task.measure = measure  # type: ignore[assignment]
        for how in ("random", "herding"):
            real = task.real(how, 0, made)  # type: ignore[arg-type]
            budget, got = made.size()[measure], real.size()[measure]
            assert set(real.data.y.tolist()) == {0, 1, 2}
            assert got == pytest.approx(budget, abs=3 * float(task.graphs().bytes_each().max() + 30))
    task.measure = "bytes"
    whole = task.whole()
    assert len(whole.data) == len(task.train) and whole.size()["bytes"] > made.size()["bytes"]
    assert auc(torch.tensor([[3.0, 0], [2, 0], [0, 1]]), torch.tensor([0, 0, 1])) == 1.0
    assert auc(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), torch.tensor([0, 1, 2])) == 1.0
    assert np.isnan(auc(torch.zeros(2, 2), torch.tensor([1, 1])))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.theta=1", "method.top=null"], "theta: must be 2 or more"),
        (["method.theta=5"], "theta: and top both"),
        (["method.theta=[5, 5, 5]", "method.top=null"], "one for each of 2 classes"),
        (["method.theta=500", "method.top=null"], "class 'class 0' has 22 graphs"),
        (["method.share=1", "method.top=null"], "between 0|below 1"),
        (["method.share=0.99", "method.top=null", "method.hops=3"], "largest support of a tree there"),
        (["method.theta=2", "method.top=null", "method.max_itemsets=50"], "more than 50 sets"),
        (["method.max_itemsets=1"], "method.max_itemsets=1 sets"),
        (["method.budget=8", "method.top=null"], "take .* bytes"),
        (["task.data=digits"], "items are no graphs"),
        (["task=graphs"], "GraphCondensation|graph-condensation"),
        (["student.kind=gnn"], "kind"),
        (["student.layers=0"], "layers"),
        (["evaluator.baselines=[kmeans]"], "kmeans"),
        (["evaluator=direct"], "makes data sets"),
        (["task.size=8"], "size: is a side of images"),
        (["task.data={use: drawn-graphs, graphs: 5}"], "graphs: must be 10"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        made = tiny("mirage", tmp_path, *words)
        made.run().method.artifact()


@pytest.mark.expensive
def test_networks_for_graphs_are_distilled_too(tmp_path: Path) -> None:
    tree = check(
        load_tree(
            "kd",
            [
                *("engine.device=cpu", "loggers=[]", "task={use: graphs, data: {use: drawn-graphs, graphs: 60}}"),
                *("teacher={use: gnn, hidden: 16}", "student={use: gnn, kind: sage, hidden: 8}"),
                *("train.steps=3", "train.batch_size=8", "teach.steps=3", "teach.batch_size=8", "engine.accumulate=2"),
            ],
            0,
        )
    )
    result = run(tree, tmp_path, quiet=True)
    assert set(result["metrics"]["rows"]) == {"student", "teacher", "alone"} and "auc" in result["metrics"]["student"]
