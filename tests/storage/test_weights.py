"""State dicts, foreign checkpoints, strict loading, fingerprints."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt, ConfigError, ShapeError, StorageError
from limbeck.storage.store import (
    fingerprint,
    load_foreign,
    load_metadata,
    load_state_dict,
    load_strict,
    save_state_dict,
)


@pytest.fixture(autouse=True, scope="module")
def fast_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


class Tied(nn.Module):
    """An embedding that is also the head, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)))


def net() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 2)))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# -------------------------------------------------------------------------------------------------- state dicts
def test_state_dict_round_trip_and_the_librarys_view(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(3, 4),
        "turned": torch.randn(3, 4).t(),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.randn(1).expand(3),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "complex": torch.randn(2, dtype=torch.complex64).conj(),
        "eight": torch.randn(3).to(torch.float8_e4m3fn),
        "é.weight": torch.tensor([1, 2, 65535], dtype=torch.uint16),
    }
    path = tmp_path / "student.safetensors"
    save_state_dict(path, state, {"labels": ["cat", "dog"], "note": "plain text"})
    ours, theirs = load_state_dict(path), safetensors.torch.load_file(path)
    assert list(ours) == list(state)
    for k, v in state.items():
        assert ours[k].dtype == theirs[k].dtype == v.dtype
        assert torch.equal(ours[k].float() if k == "eight" else ours[k], v.float() if k == "eight" else v)
        assert torch.equal(theirs[k].view(torch.uint8) if k == "eight" else theirs[k],
                           ours[k].view(torch.uint8) if k == "eight" else ours[k])  # fmt: skip
        assert ours[k].data_ptr() % 64 == 0
    assert load_metadata(path) == {"format": "pt", "labels": '["cat", "dog"]', "note": "plain text"}
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["note"] == "plain text"


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    state = {f"{d}".removeprefix("torch."): torch.ones(3).to(d) for d in (torch.float64, torch.bfloat16, torch.int8)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", {"by": "the library"})
    assert equal(load_state_dict(tmp_path / "a.safetensors"), state)
    assert load_metadata(tmp_path / "a.safetensors") == {"by": "the library"}


class Viewed(nn.Module):
    """Buffers that are views of one another: the same cells, a part of them, and another shape of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        table = torch.arange(6.0)
        for name, view in {"table": table, "again": table, "part": table[:3], "turned": table.view(2, 3)}.items():
            self.register_buffer(name, view)


@pytest.mark.parametrize("make", [Tied, Viewed])
def test_what_is_saved_loads_with_the_lines_of_the_manual(tmp_path: Path, make: Any) -> None:
    """In ``docs/exports.md``: torch and safetensors alone, strictly."""
    model, path = make(), tmp_path / "m.safetensors"
    save_state_dict(path, model.state_dict())
    plain = make()
    for value in plain.state_dict().values():
        value.zero_()
    plain.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert equal(plain.state_dict(), model.state_dict())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "m.safetensors"
    save_state_dict(path, model.state_dict())
    state = load_state_dict(path)
    assert state["head.weight"] is state["embed.weight"]
    assert load_metadata(path) == {"format": "pt"}
    by_us, from_library = Tied(), Tied()
    load_strict(by_us, state)
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"))  # which stores one of the names alone
    theirs = load_foreign(tmp_path / "theirs.safetensors")
    assert theirs["head.weight"].data_ptr() == theirs["embed.weight"].data_ptr()
    load_strict(from_library, theirs)
    for other in (by_us, from_library):
        assert equal(other.state_dict(), model.state_dict())
        assert other.head.weight is other.embed.weight
    # a file in which somebody changed one of the two
    safetensors.torch.save_file(
        {"a": torch.ones(2), "b": torch.zeros(2)}, path, {"limbeck.tied": json.dumps({"b": "a"})}
    )
    assert load_state_dict(path)["b"].tolist() == [0, 0]


def test_overlapping_but_different_views_become_independent(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    save_state_dict(tmp_path / "a.safetensors", {"all": flat, "first": flat[:3]})
    state = load_state_dict(tmp_path / "a.safetensors")
    assert state["all"].tolist() == flat.tolist()
    assert state["first"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(2, dtype=torch.complex128), "w: safetensors has no torch.complex128; convert it"),
        (torch.zeros(2, device="meta"), "w: a tensor on meta"),
        (torch.eye(2).to_sparse(), "w: a tensor on cpu, torch.sparse_coo"),
        ("text", "w: a state dict holds tensors only"),
    ],
)
def test_what_safetensors_cannot_hold_is_named(tmp_path: Path, value: Any, says: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"old")
    with pytest.raises(ConfigError, match=says):
        save_state_dict(tmp_path / "a.safetensors", {"w": value})
    assert (tmp_path / "a.safetensors").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_state_dict(path, {"w": torch.ones(2)})

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match="no space is left"):
        save_state_dict(path, {"w": torch.zeros(2)})
    assert load_state_dict(path)["w"].tolist() == [1, 1]
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_truncated_safetensors(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.safetensors"
    save_state_dict(path, {"w": torch.ones(20)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointCorrupt, match=r"a\.safetensors"):
        load_foreign(path)


@pytest.mark.parametrize("tied", ["[]", '{"a": "nowhere"}', "{", "3"])
def test_a_hostile_list_of_tied_weights(tmp_path: Path, tied: str) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"limbeck.tied": tied})
    with pytest.raises(CheckpointCorrupt, match="unsound list of tied weights"):
        load_state_dict(path)


def test_missing_and_looping_files(tmp_path: Path) -> None:
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    for name in ("none.safetensors", "loop.safetensors"):
        for load in (load_state_dict, load_foreign, load_metadata):
            with pytest.raises(CheckpointCorrupt, match="check the path"):
                load(tmp_path / name)


# ------------------------------------------------------------------------------------------------ strict loading
def test_strict_loading_loads() -> None:
    one, other = net(), net()
    load_strict(other, one.state_dict())
    assert equal(one.state_dict(), other.state_dict())


def test_everything_that_does_not_fit_is_named_at_once_and_nothing_changes() -> None:
    model = net()
    before = fingerprint(model)
    state = copy.deepcopy(model.state_dict())
    state["conv.wieght"] = state.pop("conv.weight") + 1
    state["head.weight"] = torch.zeros(7, 4)
    del state["norm.running_mean"]
    state["more"] = torch.zeros(1)
    with pytest.raises(CheckpointCorrupt) as caught:
        load_strict(model, state, "teacher.pt")
    for part in (
        "teacher.pt: does not fit the model",
        "missing conv.weight (did you mean its conv.wieght?), norm.running_mean",
        "unexpected conv.wieght, more",
        "head.weight is [7, 4] and should be [2, 4]",
    ):
        assert part in str(caught.value)
    assert fingerprint(model) == before


def test_wrong_shapes_alone_are_a_shape_error() -> None:
    state = net().state_dict()
    state["head.weight"], state["head.bias"] = torch.zeros(9, 4), torch.zeros(9)
    with pytest.raises(ShapeError, match=r"head\.weight is \[9, 4\] .* \[2, 4\], head\.bias is \[9\] .* \[2\]"):
        load_strict(net(), state)


def test_a_common_prefix_is_found() -> None:
    state = {f"backbone.net.{k}": v for k, v in net().state_dict().items()}
    with pytest.raises(CheckpointCorrupt, match=r"take it off with teacher\.strip=backbone\.net\."):
        load_strict(net(), state, "a.pt", "teacher")


def test_long_lists_are_cut_and_counted() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(50)])
    with pytest.raises(CheckpointCorrupt, match=r"\.\.\. \(100 in all\)"):
        load_strict(model, {"x": torch.ones(1)})


def test_tied_names_fill_each_other() -> None:
    model = Tied()
    for name in ("embed.weight", "head.weight"):
        state = {k: v + 1 for k, v in model.state_dict().items() if k != name}
        other = Tied()
        load_strict(other, state)
        assert torch.equal(other.head.weight, model.head.weight + 1)


def test_old_layouts_that_torch_translates_are_accepted() -> None:
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    load_strict(net(), dict(state))  # BatchNorm before it counted
    new = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    old = {"weight_g": torch.ones(3, 1), "weight_v": torch.ones(3, 2), "bias": torch.zeros(3)}
    load_strict(new, old)
    assert torch.equal(new.parametrizations.weight.original1, torch.ones(3, 2))
    before = fingerprint(new)
    with pytest.raises(CheckpointCorrupt, match="missing bias"):
        load_strict(new, {k: v * 2 for k, v in old.items() if k != "bias"})
    assert fingerprint(new) == before  # torch had loaded part of it


# -------------------------------------------------------------------------------------------------- fingerprints
def test_fingerprint_notices_every_change() -> None:
    model = net().eval()
    seen = {fingerprint(model)}

    def changed() -> bool:
        now = fingerprint(model)
        new = now not in seen
        seen.add(now)
        return new

    model.conv.weight.data[0, 0, 0, 0] += 1e-6  # torch's version counter does not see this one
    assert changed()
    model.train()
    with torch.no_grad():
        model.norm(torch.randn(2, 4, 3, 3))
    assert changed()
    model.head.weight.data.neg_()  # only sign bits
    assert changed()
    model.head.bias.data = model.head.bias.data.flip(0) + 0
    assert changed()
    model.half()
    assert changed()
    model.register_buffer("extra", torch.zeros(1))
    assert changed()


def test_fingerprint_is_of_the_content_alone() -> None:
    model = net()
    told = fingerprint(model)
    model.eval().requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    assert fingerprint(model) == told
    assert fingerprint(model.to(memory_format=torch.channels_last)) == told
    assert fingerprint(dict(reversed(list(model.state_dict().items())))) == told
    assert fingerprint({f"_orig_mod.{k}": v for k, v in model.state_dict().items()}) == told
    assert fingerprint(copy.deepcopy(model)) == told
    model.register_buffer("cache", torch.zeros(3), persistent=False)  # recomputed at will, so no part of a teacher
    assert fingerprint(model) == told
    assert fingerprint([torch.ones(2)]) == fingerprint((torch.ones(2),)) != fingerprint([torch.ones(2, 1)])


def test_fingerprint_is_the_same_with_many_threads() -> None:
    tensors = [torch.randn(300_000) for _ in range(5)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fingerprint(tensors)
        torch.set_num_threads(4)
        assert fingerprint(tensors) == one
    finally:
        torch.set_num_threads(threads)


def test_sharded_modules_give_their_shards() -> None:
    class Shard:
        def __init__(self, local: Tensor) -> None:
            self.local = local

        def to_local(self) -> Tensor:
            return self.local

    assert fingerprint({"w": Shard(torch.ones(2))}) == fingerprint({"w": torch.ones(2)})  # type: ignore[dict-item]
