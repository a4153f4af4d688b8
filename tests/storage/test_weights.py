"""State dicts, foreign checkpoints, strict loading, fingerprints."""

from __future__ import annotations

import copy
import errno
import io
import json
import logging
import os
import pickle
import sys
import warnings
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


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "m.safetensors"
    save_state_dict(path, model.state_dict())
    assert sorted(safetensors.torch.load_file(path)) == ["embed.weight", "norm.bias", "norm.weight"]
    state = load_state_dict(path)
    assert state["head.weight"] is state["embed.weight"]
    assert load_metadata(path) == {"format": "pt", "head.weight": "embed.weight"}
    by_us, by_library, from_library = Tied(), Tied(), Tied()
    load_strict(by_us, state)
    safetensors.torch.load_model(by_library, path)  # the library alone, strictly
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"))
    load_strict(from_library, load_foreign(tmp_path / "theirs.safetensors"))
    for other in (by_us, by_library, from_library):
        assert equal(other.state_dict(), model.state_dict())
        assert other.head.weight is other.embed.weight


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


# ------------------------------------------------------------------------------------------- foreign checkpoints
def test_every_usual_file_and_folder_is_read(tmp_path: Path) -> None:
    state = {k: v.detach() for k, v in net().state_dict().items()}
    for name in ("a.pt", "a.pth", "a.ckpt", "a.bin", "a.tar"):
        torch.save(net_state := dict(state), tmp_path / name)
        assert equal(load_foreign(tmp_path / name), net_state)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert equal(load_foreign(tmp_path / "old.pt"), state)
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors", "only-one.safetensors"):
        folder = tmp_path / name.removesuffix(".safetensors")
        folder.mkdir()
        safetensors.torch.save_file(state, folder / name)
        (folder / "config.json").write_text("{}")
        assert equal(load_foreign(folder), state)
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    assert equal(load_foreign(tmp_path / "bin"), state)
    link = tmp_path / "snapshot"  # as in a Hub cache
    link.mkdir()
    (link / "model.safetensors").symlink_to(tmp_path / "model" / "model.safetensors")
    assert equal(load_foreign(link), state)


def test_sharded_folders(tmp_path: Path) -> None:
    state = {k: v.detach() for k, v in net().state_dict().items()}
    names = list(state)
    parts = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for part, keys in parts.items():
        safetensors.torch.save_file({k: state[k] for k in keys}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    places = {k: part for part, keys in parts.items() for k in keys}
    index.write_text(json.dumps({"weight_map": places}))
    assert equal(load_foreign(tmp_path), state)
    assert equal(load_foreign(index), state)
    for bad in ("../model-1.safetensors", "/etc/passwd", "", "..", "a\\b"):
        index.write_text(json.dumps({"weight_map": {**places, names[0]: bad}}))
        with pytest.raises(CheckpointCorrupt, match="outside its folder"):
            load_foreign(tmp_path)
    index.write_text(json.dumps({"weight_map": {**places, "extra": "model-1.safetensors"}}))
    with pytest.raises(CheckpointCorrupt, match="lists tensors that its files lack: extra"):
        load_foreign(tmp_path)
    index.write_text(json.dumps({"weight_map": {**places, "extra": "model-3.safetensors"}}))
    with pytest.raises(CheckpointCorrupt, match=r"model-3\.safetensors: is missing"):
        load_foreign(tmp_path)
    for text in ("{}", "[]", "{", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(CheckpointCorrupt, match="no index of weights"):
            load_foreign(tmp_path)


def test_folders_without_one_clear_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match="holds no weights"):
        load_foreign(tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointCorrupt, match=r"several weight files: a\.pt, b\.pt.*; name the file"):
        load_foreign(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(CheckpointCorrupt, match=r"of an unknown kind, expected \.safetensors"):
        load_foreign(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}}, ["its entry 'state_dict'"]),
        (lambda s: {"model": s}, ["its entry 'model'"]),
        (lambda s: {"model": {"state_dict": s}}, ["its entry 'model'", "its entry 'state_dict'"]),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, ["the prefix 'module.'"]),
        (lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}, ["'_orig_mod.'", "'module.'"]),
        (lambda s: {"model": s, "model_ema": s}, ["it also holds 'model_ema', choose with key="]),
        (lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
         ["average of weights", "'module.'"]),
        (lambda s: {**s, "version": 3, "name": "x"}, ["left out, because they are no tensors: version, name"]),
        (lambda s: OrderedDict(s), []),
        (lambda s: {k: nn.Parameter(v, v.is_floating_point()) for k, v in s.items()}, []),
    ],
)  # fmt: skip
def test_wrappers_and_prefixes_come_off_and_are_said(tmp_path: Path, wrap: Any, said: list[str]) -> None:
    state = {k: v.detach() for k, v in net().state_dict().items()}
    torch.save(wrap(state), tmp_path / "a.pt")
    heard: list[str] = []
    loaded = load_foreign(tmp_path / "a.pt", say=heard.append)
    assert equal(loaded, state)
    assert not any(v.requires_grad for v in loaded.values())
    assert len(heard) == len(said)
    assert all(part in line for part, line in zip(said, heard, strict=True))


def test_it_is_said_to_the_logger_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO, "limbeck"):
        load_foreign(tmp_path / "a.pt")
    assert "its entry 'model'" in caplog.text


def test_entry_and_prefix_can_be_chosen(tmp_path: Path) -> None:
    state, average = {"model.w": torch.ones(2)}, {"model.w": torch.zeros(2)}
    torch.save({"state_dict": state, "ema": average}, tmp_path / "a.ckpt")
    assert load_foreign(tmp_path / "a.ckpt", strip="model.")["w"].tolist() == [1, 1]
    assert load_foreign(tmp_path / "a.ckpt", key="ema", strip="model.")["w"].tolist() == [0, 0]
    with pytest.raises(CheckpointCorrupt, match="did you mean 'ema'"):
        load_foreign(tmp_path / "a.ckpt", key="em")
    with pytest.raises(CheckpointCorrupt, match=r"prefix 'net\.' is not on every name: model\.w"):
        load_foreign(tmp_path / "a.ckpt", strip="net.")


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch should-not-exist",)


def hostile(kind: str, path: Path) -> None:
    if kind == "module":
        torch.save(net(), path)
    elif kind == "evil":
        torch.save({"state_dict": {"w": torch.ones(2)}, "x": Evil()}, path)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "old format":
        torch.save(Evil(), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("kind", ["module", "evil", "bare pickle", "old format"])
def test_pickled_objects_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    hostile(kind, tmp_path / "a.pt")
    with pytest.raises(CheckpointCorrupt, match=r"a\.pt: .*pickled objects.*refused; if you trust its origin, convert"):
        load_foreign(tmp_path / "a.pt")
    assert os.listdir(tmp_path) == ["a.pt"]


def test_the_advice_for_pickled_models_works(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "OLD.pt")
    with pytest.raises(CheckpointCorrupt) as caught:
        load_foreign(tmp_path / "OLD.pt")
    code = caught.value.remedy.split('python -c "')[1].rsplit('"', 1)[0]
    exec(code.replace("OLD.pt", str(tmp_path / "OLD.pt")).replace("weights.pt", str(tmp_path / "weights.pt")), {})
    load_strict(net(), load_foreign(tmp_path / "weights.pt"))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch makes no TorchScript there")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates what users still have on their disks
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointCorrupt, match="TorchScript program"):
        load_foreign(tmp_path / "a.pt")


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    good = io.BytesIO()
    torch.save({"w": torch.ones(100)}, good)
    data = good.getvalue()
    path = tmp_path / "a.pt"
    for content in (b"", data[:50], data[:-50], data[: len(data) // 2], b"<html>404</html>", b"\x80", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(CheckpointCorrupt, match=r"a\.pt"):
            load_foreign(path)
    for value in ({}, {"epoch": 3}, [1, 2], 3, torch.ones(2), {"model": {}}):
        torch.save(value, path)
        with pytest.raises(CheckpointCorrupt, match="holds no weights but"):
            load_foreign(path)


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
    with pytest.raises(CheckpointCorrupt, match=r"take it off with strip='backbone\.net\.'"):
        load_strict(net(), state)


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
