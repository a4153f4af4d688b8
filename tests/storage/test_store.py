"""Trees, checkpoints and their hashes: exact round trips, every damage noticed, no fault loses an earlier one."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt, ConfigError, StorageError
from limbeck.storage import disk, store, weights
from limbeck.storage.disk import atomic_folder
from limbeck.storage.store import Checkpoints, hash_tree, load_tree, remembered, save_tree


@pytest.fixture(autouse=True, scope="module")
def fast_disk() -> Iterator[None]:
    """Syncing is tested in test_disk.py; here it would only cost time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


def same(a: Any, b: Any) -> bool:
    """Equal in every type and every bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.layout is not torch.strided:
            a, b = a.to_sparse_coo().coalesce(), b.to_sparse_coo().coalesce()
            return same(a.indices(), b.indices()) and same(a.values(), b.values()) and a.shape == b.shape
        facts = a.dtype == b.dtype and a.shape == b.shape and (a.stride() == b.stride() or a.numel() == 0)
        return facts and bytes(weights.bytes_of(a)) == bytes(weights.bytes_of(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(ka, kb) and same(a[ka], b[kb]) for ka, kb in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return bool(a == b)


# ---------------------------------------------------------------------------------------------------------- round trips
DTYPES = [d for d in store._DTYPES.values() if d in weights._CODES or d in (torch.complex128, torch.float8_e8m0fnu)]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype is torch.bool:
        data = bytes(b & 1 for b in data)
    raw = torch.tensor(list(data), dtype=torch.uint8)
    value = raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    view = draw(st.sampled_from(["plain", "transposed", "expanded", "step", "parameter"]))
    if view == "transposed" and value.dim() > 1:
        value = value.transpose(0, -1)
    elif view == "expanded":
        value = value.unsqueeze(0).expand(3, *value.shape)
    elif view == "step" and value.dim():
        value = value[..., ::2]
    elif view == "parameter" and value.is_floating_point():
        value = nn.Parameter(value)
    return value


TEXTS = st.text(st.characters(codec=None), max_size=5)
KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
NUMBERS = st.sampled_from(
    [np.float32(1.5), np.int64(-3), np.bool_(True), np.float64("nan"), np.str_("é"), np.str_(""), np.complex64(1j)]
)
ARRAYS = st.sampled_from(
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.array(["a", "bc"]),
        np.zeros((0, 2), np.float16),
        np.array(3, ">i4"),
        np.array(["2020-01-01"], "datetime64[D]"),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | TEXTS
    | st.binary(max_size=4)
    | NUMBERS
    | ARRAYS
    | tensors()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES)
def test_any_tree_comes_back_equal_in_every_bit(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    place = tmp_path_factory.getbasetemp() / "any-tree"
    save_tree(place, tree)
    assert same(tree, load_tree(place))
    assert same(tree, load_tree(place, verify=False))


def test_state_of_a_run_comes_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    state = {
        "weights": {"tied": weight, "head": weight, "part": weight[1:], "turned": weight.t()},
        "optimiser": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": weight.bfloat16()}}, "groups": [{"lr": 0.1}]},
        ("data", 1, None): (1, (2.0, "x"), -0.0, float("inf"), float("-inf"), float("nan"), 10**5_000, -(2**53)),
        True: b"bytes",
        "image": torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last),
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.randn(2, dtype=torch.complex128).conj(),
        "$tensor": {"$int": "0x1"},
        "ordered": nn.Linear(2, 2).state_dict(),
        "shape": torch.Size([2, 3]),
        "numbers": [np.float32(0.1), np.datetime64("2020-01-01"), np.arange(3)],
    }
    place = tmp_path / "x"
    save_tree(place, state)
    back = load_tree(place)
    expected = {**state, "complex": state["complex"].resolve_conj(), "shape": (2, 3)}
    expected["ordered"] = dict(expected["ordered"])
    assert same(expected, back)
    assert back["weights"]["tied"] is back["weights"]["head"]
    assert back["weights"]["part"] is not back["weights"]["tied"]
    assert sorted(os.listdir(place)) == ["manifest.json", "tensors.safetensors", "tree.json"]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_sparse_layouts(tmp_path: Path) -> None:
    coo = torch.sparse_coo_tensor(torch.tensor([[0, 0, 2]]), torch.tensor([1.0, 2.0, 3.0]), (4,), check_invariants=True)
    assert not coo.is_coalesced()
    csr = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse_csr()
    save_tree(tmp_path / "x", [coo, coo.coalesce(), csr])
    back = load_tree(tmp_path / "x")
    assert [b.layout for b in back] == [torch.sparse_coo, torch.sparse_coo, torch.sparse_csr]
    assert [back[0].is_coalesced(), back[1].is_coalesced()] == [False, True]
    assert torch.equal(back[0].to_dense(), coo.to_dense())
    assert torch.equal(back[2].to_dense(), csr.to_dense())


def test_loaded_tensors_are_aligned_and_free(tmp_path: Path) -> None:
    tree = [torch.randn(n) for n in range(1, 40)] + [torch.randn(3, n).t() for n in range(1, 9)]
    save_tree(tmp_path / "x", tree)
    back = load_tree(tmp_path / "x")
    assert all(t.data_ptr() % 64 == 0 for t in back)
    back[0].zero_()  # its own memory, not the file's
    assert same(load_tree(tmp_path / "x")[0], tree[0])


def test_expanded_and_unfolded_views_cost_no_more_than_their_base(tmp_path: Path) -> None:
    base = torch.arange(1000.0)
    tree = [base.expand(500, 1000), base.unfold(0, 100, 1), torch.tensor(1.0).expand(1000, 1000)]
    save_tree(tmp_path / "x", tree)
    assert (tmp_path / "x" / "tensors.safetensors").stat().st_size < 10_000
    back = load_tree(tmp_path / "x")
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(tree, back, strict=True))


def test_tensors_are_readable_by_the_safetensors_library(tmp_path: Path) -> None:
    tree = {"a": torch.randn(2, 3), "b": [torch.tensor(True), torch.randn(3).bfloat16()], "odd": torch.randn(5).half()}
    save_tree(tmp_path / "x", tree)
    plain = safetensors.torch.load_file(tmp_path / "x" / "tensors.safetensors")
    assert sorted(plain) == ["a", "b.0", "b.1", "odd"]
    assert torch.equal(plain["a"], tree["a"])


def test_names_that_look_alike_do_not_collide(tmp_path: Path) -> None:
    tree = {
        "a": {"b": torch.tensor(1)},
        "a.b": torch.tensor(2),
        "a.b#2": torch.tensor(3),
        "__metadata__": torch.tensor(4),
    }
    save_tree(tmp_path / "x", tree)
    assert same(tree, load_tree(tmp_path / "x"))


def test_freed_memory_is_not_taken_for_shared(tmp_path: Path) -> None:
    class Fresh(dict[str, Any]):
        """Makes a new tensor at each look, so that addresses recur."""

        def items(self) -> Any:
            return ((str(i), torch.full((256,), float(i))) for i in range(20))

        def __iter__(self) -> Iterator[str]:
            return iter([str(i) for i in range(20)])

    save_tree(tmp_path / "x", Fresh())
    assert [t[0].item() for t in load_tree(tmp_path / "x").values()] == list(range(20))


@dataclass
class Unknown:
    x: int = 1


def contains_itself() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"a": [Unknown()]}, r"a\.0: a .*Unknown cannot be saved"),
        ({"a": {1, 2}}, r"a: a builtins\.set cannot be saved"),
        ({"f": print}, r"f: a .*builtin_function_or_method"),
        ({Unknown: 1}, "has a key of type type"),
        ({(1, frozenset()): 1}, "has a key of type frozenset"),
        (contains_itself(), "more than 100 levels deep"),
        ({"m": torch.empty(2, device="meta")}, "m: a tensor on meta"),
        ({"o": np.array([None])}, r"o: a numpy\.ndarray"),
        ({"r": np.zeros(2, [("x", "f4")])}, r"r: a numpy\.ndarray"),
        ({"t": struct}, "t: a builtins.module"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, tree: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        save_tree(tmp_path / "x", tree)
    assert os.listdir(tmp_path) == []


def test_returned_hash_is_of_the_content(tmp_path: Path) -> None:
    one = save_tree(tmp_path / "x", {"a": torch.ones(2)})
    assert save_tree(tmp_path / "y", {"a": torch.ones(2)}) == one
    assert save_tree(tmp_path / "x", {"a": torch.ones(3)}) != one


@pytest.mark.parametrize("kind", ["lbfgs", "adam"])
def test_an_optimiser_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
        if kind == "adam":
            return net, torch.optim.Adam(net.parameters(), amsgrad=True)
        return net, torch.optim.LBFGS(net.parameters(), lr=0.3, max_iter=3)

    def steps(net: nn.Module, opt: torch.optim.Optimizer, count: int) -> None:
        x = torch.linspace(-1, 1, 77).reshape(11, 7)

        def closure() -> Tensor:
            opt.zero_grad()
            loss = net(x).square().sum()
            loss.backward()
            return loss

        for _ in range(count):
            opt.step(closure)  # type: ignore[arg-type]

    net, opt = start()
    steps(net, opt, 3)
    save_tree(tmp_path / "x", {"net": net.state_dict(), "opt": opt.state_dict()})
    steps(net, opt, 3)
    other, other_opt = start()
    back = load_tree(tmp_path / "x")
    other.load_state_dict(back["net"])
    other_opt.load_state_dict(back["opt"])
    steps(other, other_opt, 3)
    assert same(dict(net.state_dict()), dict(other.state_dict()))


# -------------------------------------------------------------------------------------------------------------- damages
SMALL = {"step": 7, "w": torch.arange(12.0).reshape(3, 4), "name": "x", ("t", 1): [None, 2.5, float("inf")]}


def damaged(place: Path) -> bool:
    try:
        load_tree(place)
    except CheckpointCorrupt as error:
        assert str(place) in str(error), "the file is not named"
        assert error.remedy, "no remedy is given"
        return True
    return False


def test_a_thousand_bit_flips_are_all_noticed(tmp_path: Path) -> None:
    place = tmp_path / "x"
    save_tree(place, SMALL)
    files = {p: p.read_bytes() for p in place.iterdir()}
    bits = [(p, i) for p, data in files.items() for i in range(8 * len(data))]
    missed = []
    for path, bit in random.Random(0).sample(bits, 1000):
        with path.open("r+b", buffering=0) as file:
            whole = files[path][bit // 8]
            os.pwrite(file.fileno(), bytes([whole ^ 1 << bit % 8]), bit // 8)
            if not damaged(place):
                missed.append((path.name, bit))
            os.pwrite(file.fileno(), bytes([whole]), bit // 8)
    assert not missed
    assert same(load_tree(place), SMALL)


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors", "tree.json"])
def test_truncated_longer_missing_and_linked_files_are_noticed(tmp_path: Path, name: str) -> None:
    place = tmp_path / "x"
    save_tree(place, SMALL)
    path = place / name
    data = path.read_bytes()
    for length in sorted({0, 1, 7, 8, 9, len(data) // 2, len(data) - 1}):
        path.write_bytes(data[:length])
        assert damaged(place), length
    path.write_bytes(data + b" ")
    assert damaged(place)
    path.unlink()
    assert damaged(place)
    path.mkdir()
    assert damaged(place)
    path.rmdir()
    (tmp_path / "same").write_bytes(data)
    path.symlink_to(tmp_path / "same")
    assert damaged(place)
    path.unlink()
    path.write_bytes(data)
    (place / "foreign.pt").write_bytes(b"")
    assert damaged(place)


def test_a_folder_that_is_none_or_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "other") as folder:
        (folder / "a").write_text("a")
    for name, says in [
        ("none", "is missing"),
        ("file", "is not a folder"),
        ("empty", "manifest.json: is missing"),
        ("other", "is not a saved state: it lists a"),
    ]:
        with pytest.raises(CheckpointCorrupt, match=says):
            load_tree(tmp_path / name)


def test_a_replacement_killed_half_way_gives_the_old_one(tmp_path: Path) -> None:
    save_tree(tmp_path / "x", SMALL)
    os.rename(tmp_path / "x", tmp_path / f".x.old-{disk._host()}-4194305-1-0123abcd")
    assert same(load_tree(tmp_path / "x"), SMALL)


# -------------------------------------------------------------------------------------------- content with sound hashes
def forge(place: Path, tensors: bytes | None = None, tree: Any = None) -> Path:
    """What an attacker would make: hostile content under a manifest that fits it."""
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    good = len(header).to_bytes(8, "little") + header + bytes(8)
    index = [{"name": "w", "dtype": "float32", "shape": [2]}]
    whole = {"format": "limbeck-tree", "version": 1, "tensors": index, "tree": {"$tensor": 0}}
    whole = {**whole, **tree} if isinstance(tree, dict) else whole
    with atomic_folder(place) as folder:
        (folder / "tensors.safetensors").write_bytes(good if tensors is None else tensors)
        (folder / "tree.json").write_bytes(tree if isinstance(tree, bytes) else json.dumps(whole).encode())
    return place


def header(text: str, data: int = 8) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + bytes(data)


def entry(name: str = "w", begin: int = 0, end: int = 8, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch should-not-exist",)


def pickled() -> bytes:
    import pickle

    return pickle.dumps(Evil())


def test_the_forged_base_is_sound(tmp_path: Path) -> None:
    assert torch.equal(load_tree(forge(tmp_path / "x")), torch.zeros(2))


@pytest.mark.parametrize(
    "tensors",
    [
        b"",
        b"\x00" * 8,
        pickled(),
        (1 << 62).to_bytes(8, "little") + b"{}",
        (200_000_000).to_bytes(8, "little") + b"{}",
        header("[]"),
        header("{"),
        header("[" * 100_000),
        header("\ud800".encode("utf-16", "surrogatepass").decode("latin-1")),
        header("{" + entry() + "," + entry() + "}"),
        header("{" + entry() + "}", 4),
        header("{" + entry() + "}", 12),
        header("{" + entry(begin=8, end=16) + "}", 16),
        header("{" + entry(begin=-8, end=0) + "}"),
        header("{" + entry() + "," + entry("v") + "}"),
        header("{" + entry(shape="[3]") + "}"),
        header("{" + entry(shape="[-2]") + "}"),
        header("{" + entry(shape="[-1,-2]") + "}"),
        header("{" + entry(shape="[1e30]") + "}"),
        header("{" + entry(shape="[4611686018427387904,4,0]", end=0) + "}", 0),
        header("{" + entry(shape="2") + "}"),
        header("{" + entry(dtype="F99") + "}"),
        header('{"__metadata__":{"a":1},' + entry() + "}"),
        header('{"w":{}}'),
        header('{"w":1}'),
        header("{" + entry("v") + "}"),
    ],
)
def test_hostile_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    assert damaged(forge(tmp_path / "x", tensors=tensors))
    assert os.listdir(tmp_path) == ["x"]


W = {"name": "w", "dtype": "float32", "shape": [2]}


@pytest.mark.parametrize(
    "tree",
    [
        b"",
        b"null",
        pickled(),
        b'{"format": ' + b"[" * 100_000,
        {"format": "other"},
        {"version": 99},
        {"tree": {"$tensor": 1}},
        {"tree": {"$tensor": -1}},
        {"tree": {"$tensor": True}},
        {"tree": {"$tensor": "w"}},
        {"tree": {"$python": "os.system"}},
        {"tree": {"$int": "0xg"}},
        {"tree": {"$float": "00"}},
        {"tree": {"$bytes": 3}},
        {"tree": {"$tuple": 3}},
        {"tree": {"$dict": [[[], 1]]}},
        {"tree": {"$dict": [[1]]}},
        {"tree": {"$numpy": ["O", "00"]}},
        {"tree": {"$numpy": ["V8,O", "00"]}},
        {"tree": {"$numpy": ["<f4", "00"]}},
        {"tensors": []},
        {"tensors": [{**W, "name": "v"}]},
        {"tensors": [{**W, "dtype": "float64"}]},
        {"tensors": [{**W, "dtype": "load"}]},
        {"tensors": [{**W, "shape": [3]}]},
        {"tensors": [{**W, "stride": [1, 1]}]},
        {"tensors": [{**W, "stride": [-1]}]},
        {"tensors": [{**W, "stride": [10**15]}]},
        {"tensors": [{**W, "stride": [10**30]}]},
        {"tensors": [{**W, "stride": [1000], "overlapping": True}]},
        {"tensors": [{"name": "w", "numpy": "O", "shape": [2], "fortran": False}]},
        {"tensors": [{"name": "w", "numpy": "<f4", "shape": [10**12], "fortran": False}]},
        {"tensors": [W, {"sparse": "coo", "coalesced": True, "shape": [2], "parts": {"indices": 1, "values": 0}}],
         "tree": {"$tensor": 1}},
    ],
)  # fmt: skip
def test_hostile_structures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert damaged(forge(tmp_path / "x", tree=tree))
    assert os.listdir(tmp_path) == ["x"]


def test_no_file_of_ours_is_a_pickle(tmp_path: Path) -> None:
    save_tree(tmp_path / "x", SMALL)
    for path in (tmp_path / "x").iterdir():
        start = path.read_bytes()[:2]
        assert start[:1] != b"\x80", path
        assert start != b"PK", path


# ---------------------------------------------------------------------------------------------------------- checkpoints
def state(step: int) -> dict[str, Any]:
    return {"step": step, "w": torch.full((3, 2), float(step)), "b": torch.arange(4) + step}


def test_retention(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=30)
    for step in range(0, 101, 10):
        path = checkpoints.save(step, state(step))
        assert path.is_dir()
    assert checkpoints.steps() == [0, 30, 60, 90, 100]
    assert same(checkpoints.load(30), state(30))
    assert sorted(os.listdir(tmp_path)) == [f"step-{s:08d}" for s in (0, 30, 60, 90, 100)]


def test_none_yet(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").latest() is None
    assert Checkpoints(tmp_path / "none").steps() == []
    with pytest.raises(CheckpointCorrupt, match="is missing"):
        Checkpoints(tmp_path).load(3)


@pytest.mark.parametrize("bad", [{"keep": 0}, {"keep_every": 0}])
def test_bad_settings(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Checkpoints(tmp_path, **bad)
    with pytest.raises(ConfigError, match="step"):
        Checkpoints(tmp_path).save(-1, {})


def spoil(path: Path) -> None:
    data = bytearray((path / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(data)


def test_a_damaged_newest_one_is_passed_over_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=3, warn=said.append)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 30
    assert not said
    spoil(checkpoints.path(30))
    (checkpoints.path(20) / "tree.json").unlink()
    found = checkpoints.latest()
    assert found is not None
    assert same(found, (10, state(10)))
    assert len(said) == 1
    for part in ("going on from step 10", "tensors.safetensors", "step-00000020"):
        assert part in said[0]
    checkpoints.save(15, state(15))  # the run goes on: what it gave up is in nobody's way
    assert checkpoints.steps() == [10, 15]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, warn=pytest.fail)
    for step in (10, 20):
        checkpoints.save(step, state(step))
        spoil(checkpoints.path(step))
    with pytest.raises(
        CheckpointCorrupt, match=r"all 2 checkpoints are damaged: .*; delete \S+ to start from the beginning"
    ):
        checkpoints.latest()


def test_a_checkpoint_deleted_while_it_is_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, warn=pytest.fail)
    checkpoints.save(10, state(10))
    checkpoints.save(20, state(20))
    real = store.load_tree

    def meanwhile(folder: Path, **kwargs: Any) -> Any:
        if folder == checkpoints.path(20):
            disk.remove_folder(folder)
        return real(folder, **kwargs)

    monkeypatch.setattr(store, "load_tree", meanwhile)
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 10


def test_an_old_one_that_cannot_be_deleted_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=1, warn=said.append)
    checkpoints.save(10, state(10))

    def refuse(path: Path) -> None:
        raise StorageError(str(path), "could not be deleted")

    monkeypatch.setattr(store, "remove_folder", refuse)
    checkpoints.save(20, state(20))
    assert checkpoints.steps() == [10, 20]
    assert "an old checkpoint stays" in said[0]


# --------------------------------------------------------------------------------------------------------------- faults
CALLS = ["open", "write", "fsync", "close", "rename", "replace", "mkdir", "unlink", "rmdir", "scandir", "lstat"]


class Killed(BaseException):
    """Stands for SIGKILL: raised at one system call, and at each one after it, since a dead process does no more."""


class Faults:
    """Counts system calls and makes the k-th fail."""

    def __init__(self, patched: pytest.MonkeyPatch, swaps: bool) -> None:
        self.count = 0
        self.at: int | None = None
        self.error: BaseException = Killed()
        for name in CALLS:
            patched.setattr(os, name, self._wrap(getattr(os, name)))
        patched.setattr(disk, "_swap", self._wrap(disk._swap) if swaps else lambda *_: False)

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            dead = isinstance(self.error, Killed)
            if self.at is not None and (self.count == self.at or (self.count > self.at and dead)):
                raise self.error
            return call(*args, **kwargs)

        return counted


ERRORS: dict[str, Callable[[], BaseException]] = {
    "no space": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "input/output": lambda: OSError(errno.EIO, "Input/output error"),
    "killed": Killed,
}


@pytest.mark.parametrize("error", list(ERRORS))
@pytest.mark.parametrize("place", ["new step", "same step, swapped", "same step, moved"])
def test_no_fault_loses_an_earlier_checkpoint(tmp_path: Path, error: str, place: str) -> None:
    """Every system call of a save fails once: 350 faults over the nine cases."""
    step, swaps = (20 if place == "new step" else 10), place != "same step, moved"
    new = {**state(20), "new": True}

    def scene(folder: Path, at: int | None) -> tuple[int, BaseException | None]:
        checkpoints = Checkpoints(folder, keep=1, warn=lambda said: None)  # an old one may stay
        checkpoints.save(10, state(10))
        with pytest.MonkeyPatch.context() as patched:
            faults = Faults(patched, swaps)
            faults.at, faults.error = at, ERRORS[error]()
            try:
                checkpoints.save(step, new)
                return faults.count, None
            except (StorageError, Killed) as caught:
                return faults.count, caught

    calls, _ = scene(tmp_path / "count", None)
    assert calls > 20
    failed = 0
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        _, caught = scene(folder, at)
        failed += caught is not None
        found = Checkpoints(folder, warn=pytest.fail).latest()  # a warning would mean that half of one was visible
        assert found is not None
        assert same(found, (step, new)) or same(found, (10, state(10))), at
        if caught is None:
            assert same(found, (step, new)), at
        Checkpoints(folder, keep=1).save(30, state(30))  # the next one succeeds and leaves no litter
        assert os.listdir(folder) == ["step-00000030"], at
    assert failed > 15


LOOP = """
import os, sys, time
import torch
from limbeck.storage.store import Checkpoints, hash_tree
os.fsync = lambda handle: None  # what a killed process wrote is not lost, only what a machine without power did
print(hash_tree({"b": [1, 2.5, None], "a": {"x": True, 3: "e"}, "s": {"p", "q", "r"}}), flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        checkpoints = Checkpoints(sys.argv[1], keep=2)
        found = checkpoints.latest()
        step, tree = found or (0, {"w": torch.zeros(300_000)})
        while True:
            step += 1
            tree = {"w": tree["w"] + 1, "step": step}
            checkpoints.save(step, tree)
    time.sleep(float(line))
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    print("killed", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigkill_while_saving_never_leaves_a_damaged_checkpoint(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LOOP, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with child.stdin, child.stdout:
            told = child.stdout.readline().strip()  # another process, another seed of Python's own hashes
            assert told == hash_tree({"s": {"r", "q", "p"}, "a": {3: "e", "x": True}, "b": [1, 2.5, None]})
            rng, last = random.Random(1), 0
            for kills in range(1, 61):  # 15, and more where the machine is too busy to save three times meanwhile
                child.stdin.write(f"{rng.uniform(0.02, 0.3)}\n")
                child.stdin.flush()
                assert child.stdout.readline() == "killed\n"
                found = Checkpoints(tmp_path, warn=pytest.fail).latest()
                step = 0 if found is None else found[0]
                assert step >= last
                if found is not None:
                    assert found[1]["step"] == step
                    assert bool((found[1]["w"] == step).all())
                last = step
                if kills >= 15 and last >= 3:
                    break
            assert last >= 3
            child.stdin.close()
            assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()


# --------------------------------------------------------------------------------------------------------------- hashes
@dataclass
class Config:
    lr: float = 0.1
    names: tuple[str, ...] = ("a", "b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        (Path("a/b"), "a/b"),
        ({1, 2, 3}, {3, 2, 1}),
        (Config(), {"lr": 0.1, "names": ["a", "b"]}),
        (np.float64(0.5), 0.5),
        (torch.ones(2, 3).t(), torch.ones(3, 2)),
        (np.arange(3, dtype=">i4"), np.arange(3, dtype="<i4")),
        (float("nan"), float("nan")),
        (nn.Parameter(torch.ones(2)), torch.ones(2)),
    ],
)
def test_equal_values_hash_equal(one: Any, other: Any) -> None:
    assert hash_tree(one) == hash_tree(other)


def test_different_values_hash_differently() -> None:
    values = [
        1, 1.0, True, "1", None, "None", [], {}, "", [1], {"1": 1}, {1: 1}, {1.0: 1}, {True: 1}, {None: 1}, -0.0, 0.0,
        0, float("inf"), float("nan"), [[1], 2], [1, [2]], b"1", {1, 2}, {"a": {"b": 1}}, {"a.b": 1}, 10**30,
        10**30 + 1, torch.zeros(2), torch.zeros(3), torch.zeros(2).half(), torch.zeros(2, 1), np.zeros(2, np.float32),
        {"$set": [1, 2]}, {"$int": "0x1"}, (1, (2, 3)), Config(0.2),
    ]  # fmt: skip
    assert len({hash_tree(v) for v in values}) == len(values)


@pytest.mark.parametrize("value", [object(), [print], {"a": contains_itself()}, {frozenset(): 1}])
def test_what_has_no_hash_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        hash_tree(value)


# ---------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("name", ["a", "vit_tiny.augreg-in21k", "Step_10", "x" * 64])
def test_harmless_names_stay(name: str) -> None:
    assert store.safe_name(name) == name


def test_other_names_become_harmless_and_stay_apart(tmp_path: Path) -> None:
    names = [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "a:b",
        "a b",
        ".hidden",
        "end.",
        "x" * 65,
        "x" * 66,
        "é",
        "è",
        "\x00",
        "con\n",
    ]
    made = [store.safe_name(n) for n in names]
    assert len(set(made)) == len(names)
    for name in made:
        assert store.safe_name(name) == name
        (tmp_path / name).mkdir()


def test_complete_folders_and_cleared_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert not store.is_complete(tmp_path)
    assert store.is_complete(checkpoints.save(10, state(10)))
    checkpoints.save(20, state(20))
    checkpoints.clear()
    assert os.listdir(tmp_path) == []


def test_values_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "w"))
    calls = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return {"x": torch.ones(2)}

    a = remembered("thing", {"k": 1}, make)
    b = remembered("thing", {"k": 1}, make)
    remembered("thing", {"k": 2}, make)
    assert torch.equal(a["x"], b["x"]) and len(calls) == 2
    for folder in (tmp_path / "w").iterdir():  # damaged ones are made again
        (folder / "tree.json").write_text("{")
    assert torch.equal(remembered("thing", {"k": 1}, make)["x"], a["x"]) and len(calls) == 3
