"""Graphs read from every form, ragged batches, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.graphs import DrawnGraphs, GraphArrays, PygImported, PygSet, Smiles, TuFolder, make_graphs, ragged
from limbeck.data.items import Part
from limbeck.errors import ConfigError, DataError, LimbeckError, MissingExtra


def two_triangles_and_a_path() -> dict[str, np.ndarray]:
    """Three graphs, the last of which is a path of two edges; node labels 5 and 7; bonds 1 and 2."""
    edges = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (6, 7), (7, 8)]
    kinds = [1, 1, 2, 1, 1, 2, 1, 1]
    return {
        "ptr": np.array([0, 3, 6, 9], np.int32),
        "node_label": np.array([5, 5, 7, 5, 5, 7, 7, 5, 7], np.uint8),
        "edge_index": np.array([*edges, *((b, a) for a, b in edges)]).T,
        "edge_label": np.array(kinds * 2),
        "y": np.array([-1, -1, 1], np.int64),
    }


def write_npz(folder: Path, **changes: Any) -> str:
    arrays = {**two_triangles_and_a_path(), **changes}
    np.savez(folder / "g.npz", **{k: v for k, v in arrays.items() if v is not None})
    return str(folder / "g.npz")


def write_tu(folder: Path, node_labels: bool = True) -> Path:
    raw = folder / "TRI" / "raw"
    raw.mkdir(parents=True)
    g = two_triangles_and_a_path()
    (raw / "TRI_A.txt").write_text("".join(f"{a + 1}, {b + 1}\n" for a, b in g["edge_index"].T))
    (raw / "TRI_graph_indicator.txt").write_text("".join(f"{i // 3 + 1}\n" for i in range(9)))
    (raw / "TRI_graph_labels.txt").write_text("-1\n-1\n1\n")
    (raw / "TRI_edge_labels.txt").write_text("".join(f"{k}\n" for k in g["edge_label"]))
    if node_labels:
        (raw / "TRI_node_labels.txt").write_text("".join(f"{k}\n" for k in g["node_label"]))
    return folder / "TRI"


def pyg_list(one_hot: bool = True, continuous: bool = False) -> list[Any]:
    """The same graphs as torch_geometric's Data (called by path too)."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.data import Data

    g, found = two_triangles_and_a_path(), []
    for k in range(3):
        at = (g["edge_index"][0] // 3) == k
        label = torch.tensor(g["node_label"][3 * k : 3 * k + 3].astype(np.int64))
        x = torch.nn.functional.one_hot(label).float() if one_hot else label[:, None]
        if continuous:
            x = x + 0.25
        edges = torch.tensor(g["edge_index"][:, at] - 3 * k)
        y = torch.tensor([int(g["y"][k])])
        found.append(Data(x=x, edge_index=edges, edge_attr=torch.tensor(g["edge_label"][at]), y=y))
    return found


def same(a: Any, b: Any) -> bool:
    """Equal graphs, up to what labels are called."""
    batch, other = (d.fetch(torch.arange(3)) for d in (a, b))
    return set(batch) == set(other) and all(torch.equal(batch[k], other[k]) for k in batch)


def test_every_form_holds_the_same_graphs(tmp_path: Path) -> None:
    arrays, labels, notes, test = GraphArrays(write_npz(tmp_path)).collected()
    assert labels == ["-1", "1"] and test is None and arrays.y.tolist() == [0, 0, 1]
    assert "3 graphs of 3 to 3 nodes (3 nodes and 2.67 edges on average), 2 node labels, 2 edge labels" in notes
    tu = TuFolder(str(write_tu(tmp_path))).collected()
    assert tu[1] == labels and same(arrays, tu[0])
    for path in (tmp_path / "TRI" / "raw",):
        assert same(arrays, TuFolder(str(path)).collected()[0])
    made = PygImported("tests.data.test_graphs:pyg_list").collected()
    assert made[1] == labels and same(arrays, made[0])
    plain = PygImported("tests.data.test_graphs:pyg_list", {"one_hot": False}).collected()[0]
    assert same(arrays, plain)
    batch = arrays.fetch(torch.tensor([2, 0]))
    assert batch["x"].shape == (6, 2) and batch["owner"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["edges"].tolist()[:4] == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert int(batch["edges"][4:].min()) == 3 and batch["edge_attr"].shape == (10, 2)


def test_a_data_set_of_the_library_is_read_from_its_raw_files_and_never_fetched_unasked(tmp_path: Path) -> None:
    write_tu(tmp_path)
    data, labels, _, _ = PygSet("TUDataset", str(tmp_path), {"name": "TRI"}).collected()
    arrays = GraphArrays(write_npz(tmp_path)).collected()[0]
    assert len(labels) == 2 and data.y.tolist() == [0, 0, 1] and same(arrays, data)
    again = PygSet("TUDataset", str(tmp_path), {"name": "TRI"}).collected()[0]  # from what the library keeps
    assert again.fingerprint == data.fingerprint
    with pytest.raises(DataError, match="is not there"):
        PygSet("TUDataset", str(tmp_path), {"name": "OTHER"}).collected()
    with pytest.raises(ConfigError, match="TUDataset"):
        PygSet("TUDatset", str(tmp_path)).collected()


def test_without_labels_degrees_stand_for_them(tmp_path: Path) -> None:
    data, _, notes, _ = TuFolder(str(write_tu(tmp_path, node_labels=False))).collected()
    assert data.alphabet.nodes.tolist() == [[1], [2]] and "their degrees stand for these" in notes[0]


def test_parts_and_taken_graphs_are_those_that_were_asked_for() -> None:
    data = DrawnGraphs(graphs=30).collected()[0]
    ids = torch.tensor([4, 17, 9])
    a, b, c = data.fetch(ids), data.take(ids).fetch(torch.arange(3)), Part(data, ids).fetch(torch.arange(3))
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)
    assert data.take(ids).bytes_each().tolist() == data.bytes_each()[ids].tolist()
    rows, owner, begins = ragged(torch.tensor([0, 2, 2, 5]), torch.tensor([2, 1, 0]))
    assert rows.tolist() == [2, 3, 4, 0, 1] and owner.tolist() == [0, 0, 0, 2, 2] and begins.tolist() == [0, 3, 3]
    assert DrawnGraphs(graphs=30).collected()[0].fingerprint == data.fingerprint
    assert DrawnGraphs(graphs=30, seed=1).collected()[0].fingerprint != data.fingerprint
    assert set(data.fetch(ids)) > set(data.without_edge_labels().fetch(ids))


def test_tests_of_a_file_judge(tmp_path: Path) -> None:
    splits = GraphArrays(write_npz(tmp_path, test_fold1=np.array([1]))).read()
    assert len(splits.train) == 2 and splits.test is not None and len(splits.test) == 1


def test_one_way_edges_are_mirrored_where_asked(tmp_path: Path) -> None:
    g = two_triangles_and_a_path()
    path = write_npz(tmp_path, edge_index=g["edge_index"][:, :-1], edge_label=g["edge_label"][:-1])
    with pytest.raises(DataError, match="1 graph with edges that lead one way only, or have another label that way: 2"):
        GraphArrays(path).collected()
    data = GraphArrays(path, directed="mirror").collected()[0]
    assert same(
        data,
        make_graphs(
            g["node_label"][:, None],
            np.arange(9) // 3,
            g["edge_index"].T,
            np.array([0, 0, 1]),
            g["edge_label"][:, None],
        )[0],
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": None}, "lacks y"),
        ({"node_label": np.linspace(0, 1, 9)}, "labels are not discrete.*quantise"),
        ({"ptr": np.array([0, 3, 6, 8])}, "ptr does not divide"),
        ({"y": np.array([0, 1])}, "3 graphs and 2 classes"),
        ({"y": np.array([0.5, 1, 2])}, "no classes"),
        ({"edge_index": np.array([[0, 3], [3, 0]]), "edge_label": None}, "from one graph into another"),
        ({"edge_index": np.array([[0], [9]]), "edge_label": None}, "outside of 0..8"),
        ({"edge_index": np.zeros((2, 0), int), "edge_label": None}, "no graph has an edge"),
        ({"edge_index": np.zeros((3, 2), int), "edge_label": None}, "another shape"),
        ({"test": np.array([7])}, "not told apart"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        GraphArrays(write_npz(tmp_path, **changes)).read()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    for source, said in (
        (GraphArrays(str(tmp_path / "none.npz")), "no such file"),
        (GraphArrays(str(tmp_path / "broken.npz")), "cannot be read as .npz"),
        (TuFolder(str(tmp_path)), "no NAME_graph_indicator.txt"),
        (TuFolder(str(tmp_path / "none")), "no such folder"),
        (PygImported("tests.data.test_graphs:pyg_list", {"continuous": True}), "labels are not discrete"),
        (PygImported("tests.data.test_graphs:pyg_list", {"more": 1}), "failed: TypeError"),
        (PygImported("tests.data.test_graphs:no_such"), "has no 'no_such'"),
    ):
        with pytest.raises(LimbeckError, match=said):
            source.collected()
    folder = write_tu(tmp_path) / "raw"
    (folder / "TRI_node_labels.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="2 rows for 9 nodes"):
        TuFolder(str(folder)).collected()
    (folder / "TRI_A.txt").write_text("1, x\n")
    with pytest.raises(DataError, match="cannot be read"):
        TuFolder(str(folder)).collected()


def test_molecules_where_rdkit_is_there(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("smiles,label\nCCO,1\nc1ccccc1O,0\nno molecule,1\nCC(=O)N,1\n")
    source = Smiles(str(tmp_path / "m.csv"))
    try:
        data, labels, notes, _ = source.collected()
    except MissingExtra as error:
        assert "limbeck[molecules]" in str(error)
        pytest.skip("rdkit is not installed")
    assert labels == ["0", "1"] and data.ptr.diff().tolist() == [3, 7, 4] and "lines 4" in notes[-1]
    with pytest.raises(ConfigError, match="column"):
        Smiles(str(tmp_path / "m.csv"), label="y").collected()
