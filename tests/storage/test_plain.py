"""Pipes, sockets, devices and links to them: refused or left out wherever a folder is read, and never waited for."""

from __future__ import annotations

import faulthandler
import gzip
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck import cli
from limbeck.data.arrays import open_npy, open_npz, read_names
from limbeck.data.items import as_path
from limbeck.data.sources import Arrays, Folder
from limbeck.data.tables import HuggingFaceSet, Jsonl, Parquet, Table
from limbeck.data.text_files import TextFiles, TextJsonl, TextParquet
from limbeck.engine.logs import read_log
from limbeck.errors import DataError, LimbeckError
from limbeck.storage.foreign import load_foreign
from limbeck.storage.plain import NotPlain, check_folder, opened, read_bytes, read_json, read_text, special

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = {"pipe": pipe, "link to a pipe": link_to_pipe, "socket": listening, "endless device": zeros}
each_kind = pytest.mark.parametrize("put", KINDS.values(), ids=KINDS.keys())


@contextmanager
def in_time(seconds: float = 20.0) -> Iterator[None]:
    """Ends the test session's wait: a reader that hangs must not hang the tests."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@each_kind
def test_files_are_plain_or_refused(put: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x"
    put(path)
    with in_time():
        assert special(path) in ("a pipe", "a socket", "a device")
        for read in (opened, read_bytes, read_text, read_json):
            with pytest.raises(NotPlain, match="no plain file"):
                read(path)
        with pytest.raises(DataError, match=f"x is {special(path)}"):
            check_folder(tmp_path, "task.data")
        with pytest.raises(DataError, match=f"task.data.path: is {special(path)}"):
            as_path(path, "task.data.path")


def test_plain_files_are_read_behind_links_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('\ufeff{"a": 1}', encoding="utf-8")
    (tmp_path / "y").symlink_to("x")
    (tmp_path / "loop").symlink_to("loop")
    assert read_json(tmp_path / "y") == {"a": 1} and special(tmp_path / "y") == ""
    check_folder(tmp_path, "x")
    check_folder(tmp_path / "not there", "x")
    with pytest.raises(OSError, match="has 11 bytes, more than the 10"):
        read_bytes(tmp_path / "x", 10)
    with pytest.raises(NotPlain, match="a folder"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "not there")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        read_json(tmp_path / "deep")


def test_what_takes_a_files_place_at_the_last_moment_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(tmp_path / "x")
    monkeypatch.setattr("limbeck.storage.plain.check_plain", lambda path: None)
    with in_time(), pytest.raises(NotPlain, match="a pipe"):
        opened(tmp_path / "x")


# ------------------------------------------------------------------------------------------------- every reader
def pictures(folder: Path) -> None:
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(folder / name / f"{i}.png")


def rows(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.csv").write_text("x,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(8)))


def objects(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"x": i, "label": "ab"[i % 2]}) + "\n" for i in range(8)))


def arrays(folder: Path) -> None:
    folder.mkdir()
    np.savez(folder / "train.npz", x=np.zeros((4, 8, 8, 1), np.uint8), y=np.arange(4) % 2)


def loose(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "x.npy", np.zeros((4, 3), np.float32))
    np.save(folder / "y.npy", np.arange(4) % 2)


def texts(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.txt").write_text("words " * 50)


READERS: dict[str, tuple[Callable[[Path], None], str, Callable[[Path], Any]]] = {
    "folder": (pictures, "a/x.png", lambda f: Folder(str(f)).read()),
    "csv": (rows, "test.csv", lambda f: Table(str(f)).read()),
    "csv, one file": (rows, "x.csv", lambda f: Table(str(f / "x.csv")).read()),
    "jsonl": (objects, "test.jsonl", lambda f: Jsonl(str(f)).read()),
    "npz": (arrays, "test.npz", lambda f: Arrays(str(f)).read()),
    "npy": (loose, "z.npy", lambda f: Arrays(str(f)).read()),
    "class names": (arrays, "names.json", lambda f: Arrays(str(f / "train.npz"), classes=str(f / "names.json")).read()),
    "text": (texts, "b.txt", lambda f: TextFiles(str(f)).read()),
    "text, packed": (texts, "b.txt.gz", lambda f: TextFiles(str(f)).read()),
    "text-jsonl": (texts, "b.jsonl", lambda f: TextJsonl(str(f)).read()),
    "text, one file": (texts, "b.txt", lambda f: TextFiles(str(f / "b.txt")).read()),
    "weights": (texts, "w.safetensors", lambda f: load_foreign(f / "w.safetensors")),
    "torch weights": (texts, "w.pt", lambda f: load_foreign(f / "w.pt")),
    "a tar": (texts, "a.tar", lambda f: Folder(str(f / "a.tar")).read()),
}


@each_kind
@pytest.mark.parametrize(("make", "name", "read"), READERS.values(), ids=READERS.keys())
def test_readers_refuse_what_is_no_plain_file(
    make: Callable[[Path], None], name: str, read: Callable[[Path], Any], put: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    make(folder)
    put(folder / name)
    with in_time(), pytest.raises(LimbeckError) as caught:
        read(folder)
    assert Path(name).name in str(caught.value)


@each_kind
def test_a_picture_that_is_none_can_be_left_out(put: Callable[[Path], None], tmp_path: Path) -> None:
    pictures(tmp_path / "data")
    put(tmp_path / "data" / "a" / "x.png")
    with in_time():
        with pytest.raises(DataError, match=r"1 of 9 images cannot be read: a/x\.png: is a \w+, no plain file"):
            Folder(str(tmp_path / "data")).read()
        splits = Folder(str(tmp_path / "data"), bad_files="skip").read()
    assert len(splits.train) == 8 and any("a/x.png" in note for note in splits.notes)


@each_kind
def test_parquet_and_the_hubs_folders(put: Callable[[Path], None], tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"x": [1.0, 2.0], "label": ["a", "b"], "text": ["c", "d"]})
    parquet.write_table(table, tmp_path / "train.parquet")
    put(tmp_path / "test.parquet")
    for read in (
        Parquet(str(tmp_path)).read,
        TextParquet(str(tmp_path)).read,
        HuggingFaceSet(str(tmp_path / "test.parquet")).read,
    ):
        with in_time(), pytest.raises(LimbeckError, match=r"test\.parquet"):
            read()


@pytest.mark.parametrize("put", [link_to_pipe, zeros])
@pytest.mark.parametrize("name", ["result.json", "config.yaml", "log.jsonl", "comparison.json"])
def test_commands_on_a_run_folder(name: str, put: Callable[[Path], None], tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: classification\nmethod: kd\nname: kd\n")
    (run / "result.json").write_text("{}")
    (run / name).unlink(missing_ok=True)
    put(run / name)
    with in_time():
        for words in (["report", str(run)], ["export", str(run)], ["run", "kd", "--out", str(run)]):
            status = cli.main(words)
            out, err = capsys.readouterr()
            assert status == 2 and "defect" not in out + err, (words, err)


@each_kind
def test_a_log_that_is_no_file(put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path / "metrics.csv")
    with in_time(), pytest.raises(NotPlain):
        read_log(tmp_path / "metrics.csv")


@each_kind
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folders_that_libraries_read(name: str, put: Callable[[Path], None], tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    words = ["run", "taid", "--out", str(tmp_path / "o")]
    with in_time(60.0):
        assert cli.main([*words, f"teacher=hf:{folder}"]) == 2
        assert f"{name} is a" in capsys.readouterr().err
        assert cli.main([*words, f"task.tokenizer={folder}"]) == 2
        assert f"{name} is a" in capsys.readouterr().err


def test_names_that_are_no_file(tmp_path: Path) -> None:
    pipe(tmp_path / "names.txt")
    for read in (read_names, open_npy, open_npz):
        with in_time(), pytest.raises(DataError, match="is a pipe"):
            read(tmp_path / "names.txt")


# ----------------------------------------------------------------------------------------- what unpacks to too much
def test_a_text_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("word " * 100_000)
    assert len(TextFiles(str(tmp_path)).read()["all"][0].text) == 500_000
    monkeypatch.setattr("limbeck.data.text_files.available", lambda: 400_000)
    with pytest.raises(LimbeckError, match=r"a\.txt\.gz unpacks to more than 200 kB, half of the memory"):
        TextFiles(str(tmp_path)).read()


def test_arrays_that_unpack_to_more_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100, 1000)), y=np.zeros(100))
    np.save(tmp_path / "a.npy", np.zeros((100, 1000)))
    assert open_npz(tmp_path / "a.npz")["x"].shape == open_npy(tmp_path / "a.npy").shape
    monkeypatch.setattr("limbeck.storage.memory.available", lambda: 400_000)
    for read, name in ((open_npz, "a.npz"), (open_npy, "a.npy")):
        with pytest.raises(LimbeckError, match=rf"task\.data\.path: .*{name} need 80\d kB, and 400 kB are free"):
            read(tmp_path / name)


def test_a_table_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"x": np.zeros(200_000), "label": ["a", "b"] * 100_000}), tmp_path / "a.parquet")
    assert len(Parquet(str(tmp_path / "a.parquet")).read().train) == 200_000
    monkeypatch.setattr("limbeck.storage.memory.available", lambda: 400_000)
    with pytest.raises(LimbeckError, match=r"the 200,000 rows of .*a\.parquet need 3\.20 MB, and 400 kB are free"):
        Parquet(str(tmp_path / "a.parquet")).read()


def test_reading_waits_for_nobody(tmp_path: Path) -> None:
    """A pipe to which somebody writes for ever is not read either."""
    pipe(tmp_path / "x")
    stop = threading.Event()

    def write() -> None:
        handle = os.open(tmp_path / "x", os.O_RDWR | os.O_NONBLOCK)
        while not stop.is_set():
            try:
                os.write(handle, b"x" * 1000)
            except BlockingIOError:
                stop.wait(0.01)
        os.close(handle)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with in_time(), pytest.raises(NotPlain):
            read_bytes(tmp_path / "x")
    finally:
        stop.set()
        writer.join()
