"""Weights of foreign origin: every usual file, its wrappings off and said, nothing in it executed."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt
from limbeck.storage.foreign import find_weights, load_foreign
from limbeck.storage.weights import load_strict


def net() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 2)))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


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
        (lambda s: {"model": {"state_dict": s}}, ["its entry 'model.state_dict'"]),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, ["prefix 'module.'"]),
        (lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}, ["'_orig_mod.'", "'module.'"]),
        (lambda s: {"model": s, "model_ema": s}, ["its entry 'model'", "it also holds 'model_ema': entry=model_ema takes"]),
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
    assert load_foreign(tmp_path / "a.ckpt", entry="ema", strip="model.")["w"].tolist() == [0, 0]
    with pytest.raises(CheckpointCorrupt, match="did you mean 'ema'"):
        load_foreign(tmp_path / "a.ckpt", entry="em")
    with pytest.raises(CheckpointCorrupt, match=r"strip: no name in .* begins with it .*'net\.'.*expected model\."):
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


# ------------------------------------------------------------------------------------- brought to a network's own names
def weights(model: nn.Module, shift: float = 0.0) -> dict[str, Tensor]:
    return {k: v.detach() + (shift if v.is_floating_point() else 0) for k, v in model.state_dict().items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


LIGHTNING = {"pytorch-lightning_version": "2.5.0", "epoch": 7}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, []),
        (lambda s: under("module._orig_mod.", s), ["'_orig_mod.' taken off every name", "prefix 'module.'"]),
        (lambda s: under("model.", s), ["prefix 'model.' taken off"]),
        (lambda s: under("module.model._forward_module.", s), ["prefix 'module.model._forward_module.'"]),
        (lambda s: {k.replace("conv.", "conv._orig_mod."): v for k, v in s.items()}, ["taken off 2 of 9 names"]),
        (lambda s: {"n_averaged": torch.tensor(3), **under("module.", s)}, ["n_averaged is left out", "'module.'"]),
        (lambda s: {**LIGHTNING, "state_dict": {**under("net.", s), "loss.weight": torch.ones(2)}},
         ["entry 'state_dict'", "prefix 'net.'", "left out: loss.weight"]),
        # a generator and its critic: the one that fits, whatever it is called
        (lambda s: {"critic": {"w": torch.ones(3)}, "gen": s, "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
         ["entry 'gen'"]),
        # a tensor beside the entries is no state dict
        (lambda s: {"rng_state": torch.zeros(4), "model": s}, ["entry 'model'"]),
        (lambda s: {"step": 3, "ema": s}, ["entry 'ema'"]),
    ],
)  # fmt: skip
def test_weights_are_brought_to_the_network_s_names(tmp_path: Path, wrap: Any, said: list[str]) -> None:
    state, other = weights(net()), net()
    torch.save(wrap(state), tmp_path / "a.pt")
    found = find_weights(tmp_path / "a.pt", other.state_dict(), role="teacher")
    load_strict(other, found.state)
    assert equal(weights(other), state)
    assert len(found.said) == len(said) and all(p in line for p, line in zip(said, found.said, strict=True)), found.said
    extra = any("left out: loss" in line for line in found.said)
    assert str(found).startswith(f"loaded 9 of {9 + extra} tensors of {tmp_path / 'a.pt'}") or "n_averaged" in str(
        found
    )


def test_of_several_models_it_is_said_which_was_taken_and_how_to_take_the_other(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "a.pt"
    plain, average = weights(model), weights(model, 1.0)
    for both, other in (
        ({"model": plain, "ema": average}, {"entry": "ema"}),
        ({"ema": average, "model": plain}, {"entry": "ema"}),
        ({"state_dict": plain, "state_dict_ema": average}, {"entry": "state_dict_ema"}),
        ({"ema": {"module": average}, "model": plain}, {"entry": "ema.module"}),
        ({"ema": {"state_dict": average}, "model": {"state_dict": plain}}, {"entry": "ema.state_dict"}),
        (under("model.", plain) | under("ema_model.", average), {"strip": "ema_model."}),
        (plain | under("ema.", average), {"strip": "ema."}),
        # an average of parameters alone is another model too
        ({"model": plain, "ema": {k: v for k, v in average.items() if "running" not in k}}, {"entry": "ema"}),
    ):
        torch.save(both, path)
        found = find_weights(path, model.state_dict(), role="teacher")
        assert equal(found.state, plain)
        ((name, value),) = other.items()
        assert f"teacher.{name}={value} takes " in str(found)
        again = find_weights(path, model.state_dict(), role="teacher", **other)
        assert all(torch.equal(v, average[k]) for k, v in again.state.items()) and len(again.state) >= 7
        assert "instead" not in str(again)
    assert equal(find_weights(path, model.state_dict(), entry="model").state, plain)


def test_a_prefix_of_nobody_s_is_the_user_s_to_take_off(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "a.pt"
    torch.save(under("encoder.", weights(model)), path)
    with pytest.raises(
        CheckpointCorrupt, match=r"'encoder\.' before .*encoder\.conv.*set teacher\.strip=encoder\. to take"
    ):
        find_weights(path, model.state_dict(), role="teacher")
    for typed in ("encoder.", "encoder"):
        assert equal(find_weights(path, model.state_dict(), strip=typed).state, weights(model))
    # a student and its teacher in one file: neither is guessed
    torch.save(
        {**LIGHTNING, "state_dict": under("student.", weights(model)) | under("teacher.", weights(model, 1.0))}, path
    )
    with pytest.raises(CheckpointCorrupt, match=r"set student\.strip=student\. or student\.strip=teacher\."):
        find_weights(path, model.state_dict(), role="student")
    assert equal(find_weights(path, model.state_dict(), strip="teacher.").state, weights(model, 1.0))
    # one of them has the shapes
    small = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 3), norm=nn.BatchNorm2d(2), head=nn.Linear(2, 2)))
    torch.save({**LIGHTNING, "state_dict": under("student.", weights(small)) | under("teacher.", weights(model))}, path)
    assert equal(find_weights(path, small.state_dict()).state, weights(small))


def test_what_does_not_belong_to_the_network_stays_to_be_refused(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "a.pt"
    for state in (
        {**weights(model), "extra.weight": torch.ones(1)},
        {**under("module.", weights(model)), "extra.weight": torch.ones(1)},
        {k: v for k, v in under("module.", weights(model)).items() if k != "module.head.bias"},
    ):
        torch.save(state, path)
        with pytest.raises(
            CheckpointCorrupt, match=r"missing head\.bias$|unexpected extra\.weight; use|missing head\.bias; use"
        ):
            load_strict(net(), find_weights(path, model.state_dict()).state)
    assert len(find_weights(path, model.state_dict(), strip="module.").state) == 8


def test_tied_weights_under_one_of_their_names_and_a_prefix(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    model, other = Tied(), Tied()
    torch.save({**LIGHTNING, "state_dict": {"body.a.weight": model.a.weight.detach()}}, tmp_path / "a.ckpt")
    load_strict(other, find_weights(tmp_path / "a.ckpt", other.state_dict()).state)
    assert torch.equal(other.b.weight, model.a.weight) and other.b.weight is other.a.weight


def test_several_sets_of_weights_and_nothing_to_go_by(tmp_path: Path) -> None:
    torch.save({"gen": {"w": torch.ones(1)}, "critic": {"v": torch.ones(1)}}, tmp_path / "a.pt")
    for own in (None, net().state_dict()):
        with pytest.raises(
            CheckpointCorrupt, match=r"several sets of weights: 'gen', 'critic'; choose .*teacher\.entry=NAME"
        ):
            find_weights(tmp_path / "a.pt", own, role="teacher")
    with pytest.raises(CheckpointCorrupt, match=r"teacher\.entry: .*did you mean 'critic'"):
        find_weights(tmp_path / "a.pt", None, entry="critik", role="teacher")
