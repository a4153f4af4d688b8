"""Atomic files and folders, manifests, locks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import CheckpointCorrupt, StorageError
from limbeck.storage import disk
from limbeck.storage.disk import (
    HashingFile,
    RunLock,
    atomic_folder,
    atomic_write,
    check_writable,
    clean_leftovers,
    read_manifest,
    remove_folder,
    verify_folder,
)


def fill(path: Path, **files: str) -> Path:
    with atomic_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
    return path


def forge(path: Path, names: list[str]) -> None:
    """A manifest with sound hashes and the given names."""
    body = {
        "files": {n: {"sha256": "0" * 64, "size": 0} for n in names},
        "format": "limbeck-folder",
        "version": 1,
    }
    sha = disk.hashlib.sha256(disk._canonical(body)).hexdigest()
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_bytes(disk._canonical({"body": body, "sha256": sha}))


# ---------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("data", [b"\x00\xff", "naïve ≠", b"", lambda file: file.write(b"by a function")])
def test_atomic_write_replaces_the_whole_file(tmp_path: Path, data: Any) -> None:
    place = tmp_path / "a.json"
    place.write_bytes(b"old")
    atomic_write(place, data)
    expected = b"by a function" if callable(data) else data.encode() if isinstance(data, str) else data
    assert place.read_bytes() == expected
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_atomic_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    place = tmp_path / "a.json"
    place.write_bytes(b"old")

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=r"a\.json: could not be written: .*; .*earlier is untouched"):
            atomic_write(place, b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_files_are_synced_before_they_move_and_folders_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def note_sync(handle: int) -> None:
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def note_rename(old: Any, new: Any) -> None:
        seen.append(("move", Path(new).name))
        rename(old, new)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to see which file is synced")
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    with atomic_folder(tmp_path / "x") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        (folder / "b").write_text("b")
    moved = seen.index(("move", "x"))
    assert {name for what, name in seen[:moved] if what == "sync"} >= {"a", "b", "sub", "manifest.json", folder.name}
    assert ("sync", tmp_path.name) in seen[moved:]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, memoryview(data)[:7]))
    with HashingFile(tmp_path / "a") as file:
        file.write(b"x" * 100)
        file.write(memoryview(b"y" * 3_000))
        size, sha = file.finish()
    assert (tmp_path / "a").read_bytes() == b"x" * 100 + b"y" * 3_000
    assert size == 3_100
    assert sha == disk.hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_large_buffers_are_hashed_in_order(tmp_path: Path) -> None:
    parts = [os.urandom(n) for n in (10, 3 << 20, 0, 70_000, 20 << 20, 5)]
    with HashingFile(tmp_path / "a") as file:
        for part in parts:
            file.write(part)
        size, sha = file.finish()
    data = b"".join(parts)
    assert (size, sha) == (len(data), disk.hashlib.sha256(data).hexdigest())
    assert (tmp_path / "a").read_bytes() == data


# -------------------------------------------------------------------------------------------------------------- folders
@pytest.mark.parametrize("swaps", [True, False])
def test_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr(disk, "_swap", lambda *_: False)
    place = fill(tmp_path / "x", a="1", b="2")
    fill(place, c="3")
    assert sorted(os.listdir(place)) == ["c", "manifest.json"]
    assert os.listdir(tmp_path) == ["x"]
    assert list(verify_folder(place)) == ["c"]


def test_folder_appears_only_at_the_end_and_not_after_an_error(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "x"
    with pytest.raises(KeyError), atomic_folder(place) as folder:
        (folder / "a").write_text("a")
        assert not place.exists()
        raise KeyError("stop")
    assert os.listdir(tmp_path / "deep") == []


def test_folder_keeps_its_old_self_after_an_error(tmp_path: Path) -> None:
    place = fill(tmp_path / "x", a="1")
    with pytest.raises(StorageError, match="no space is left"), atomic_folder(place) as folder:
        (folder / "a").write_text("2")
        raise OSError(errno.ENOSPC, "full")
    assert (place / "a").read_text() == "1"
    with pytest.raises(FileNotFoundError), atomic_folder(place):  # not the disk's fault: the block's own error stays
        (tmp_path / "nowhere").read_text()
    verify_folder(place)


def test_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("precious")
    with pytest.raises(StorageError, match="is a file or a link"):
        fill(tmp_path / "x", a="1")
    assert (tmp_path / "x").read_text() == "precious"


def test_folder_refuses_links_and_its_own_manifest_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match="symbolic link"), atomic_folder(tmp_path / "x") as folder:
        (folder / "a").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="name of the manifest"), atomic_folder(tmp_path / "x") as folder:
        (folder / "manifest.json").write_text("{}")
    assert os.listdir(tmp_path) == []


def test_sub_folders_are_in_the_manifest(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "x") as folder:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.json").write_text("{}")
        (folder / "config.json").write_text("{}")
    assert sorted(read_manifest(tmp_path / "x")) == ["config.json", "tokenizer/vocab.json"]
    (tmp_path / "x" / "tokenizer" / "vocab.json").write_text("[]")
    with pytest.raises(CheckpointCorrupt, match=r"vocab\.json: is altered: .*; delete \S+/x and go on"):
        verify_folder(tmp_path / "x")


def test_every_wrong_file_is_named_at_once(tmp_path: Path) -> None:
    place = fill(tmp_path / "x", a="1", b="2", c="3")
    (place / "a").unlink()
    (place / "b").write_text("22")
    (place / "d").write_text("")
    with pytest.raises(CheckpointCorrupt) as caught:
        verify_folder(place)
    for part in ("a is missing", "b has 2 bytes instead of 1", "d does not belong here"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../../b", "a//b", "", ".", "..", "a\\b", "C:a", "a\x00b", "manifest.json", "a/."]
)
def test_names_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    forge(tmp_path / "x", [name])
    with pytest.raises(CheckpointCorrupt, match="outside the folder"):
        read_manifest(tmp_path / "x")


@pytest.mark.parametrize("name", ["a", "a.b", "..a", "a..", "sub/a", ".hidden", "a b"])
def test_ordinary_names_are_accepted(tmp_path: Path, name: str) -> None:
    forge(tmp_path / "x", [name])
    assert list(read_manifest(tmp_path / "x")) == [name]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"body": 1, "sha256": 2}', "[" * 5_000, "\x80", '{"body": {"files": []}}']
)
def test_foreign_manifests_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointCorrupt, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_plain_files_are_read(tmp_path: Path, kind: str) -> None:
    place = fill(tmp_path / "x", a="1")
    (place / "a").unlink()
    if kind == "link":
        (tmp_path / "same").write_text("1")
        (place / "a").symlink_to(tmp_path / "same")
    elif kind == "pipe":
        os.mkfifo(place / "a")
    else:
        (place / "a").mkdir()
    with pytest.raises(CheckpointCorrupt):
        verify_folder(place)
    if kind == "link":  # also where the listing was made before the link
        with pytest.raises(CheckpointCorrupt, match="symbolic link"):
            disk._hash_file(place / "a")


def test_removed_folder_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fill(tmp_path / "x", a="1")
    monkeypatch.setattr(disk.shutil, "rmtree", lambda *_, **__: None)
    remove_folder(place)
    assert not place.exists()
    monkeypatch.undo()
    assert len(clean_leftovers(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------ leftovers
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    host, me, dead = disk._host(), os.getpid(), dead_pid()
    gone = [f".x.tmp-{host}-{dead}-1-0123abcd", f".x.bin-{host}-{me}-{disk._start_ticks(me)}-0123abcd"]
    stay = [
        f".x.tmp-{host}-{os.getppid()}-{disk._start_ticks(os.getppid())}-0123abcd",
        f".x.tmp-elsewhere-{dead}-1-0123abcd",
        ".x.tmp",
        "x",
    ]
    for name in gone + stay:
        (tmp_path / name).mkdir()
    assert sorted(clean_leftovers(tmp_path)) == sorted(gone)
    assert sorted(os.listdir(tmp_path)) == sorted(stay)
    old = time.time() - 8 * 86400
    os.utime(tmp_path / stay[1], (old, old))
    assert clean_leftovers(tmp_path) == [stay[1]]
    assert clean_leftovers(tmp_path, exclusive=True) == [stay[0]]


def test_what_was_set_aside_comes_back(tmp_path: Path) -> None:
    fill(tmp_path / "x", a="1")
    os.rename(tmp_path / "x", tmp_path / f".x.old-{disk._host()}-{dead_pid()}-1-0123abcd")
    clean_leftovers(tmp_path)
    verify_folder(tmp_path / "x")
    assert clean_leftovers(tmp_path / "nowhere") == []


def test_own_unfinished_folder_is_not_a_leftover(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "x") as outer:
        with atomic_folder(tmp_path / "y"):
            pass
        assert outer.is_dir()
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


# ---------------------------------------------------------------------------------------------------------------- locks
HOLD = """
import os, sys, time
from limbeck.storage.disk import RunLock
lock = RunLock(sys.argv[1]).acquire()
if sys.argv[2] == "fork" and os.fork() == 0:
    print("child", flush=True)
    time.sleep(5)
    os._exit(0)
print("held", os.getpid(), flush=True)
time.sleep(60)
"""


def hold(folder: Path, how: str = "plain") -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, str(folder), how], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(2 if how == "fork" else 1):
        assert child.stdout.readline()
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_second_run_is_told_who_has_the_folder(tmp_path: Path) -> None:
    child = hold(tmp_path)
    try:
        with pytest.raises(StorageError) as caught:
            RunLock(tmp_path).acquire()
        for part in (str(tmp_path), f"process {child.pid} on {disk.socket.gethostname()}", "--out DIR"):
            assert part in str(caught.value)
    finally:
        end(child)
    with RunLock(tmp_path) as lock:  # its holder was killed
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_orphaned_worker_does_not_hold_the_folder(tmp_path: Path) -> None:
    end(hold(tmp_path, "fork"))
    RunLock(tmp_path).acquire().release()


def test_lock_is_exclusive_within_a_process_and_can_be_taken_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "new" / "run")
    with lock:
        assert lock.acquire() is lock
        with pytest.raises(StorageError, match=f"process {os.getpid()}"):
            RunLock(lock.folder).acquire()
    lock.release()
    with lock:
        pass


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        ({}, True),
        ({"pid": "dead", "place": "here"}, True),
        ({"pid": "alive", "place": "here"}, False),
        ({"pid": "dead", "place": "elsewhere"}, False),
    ],
)
def test_without_the_systems_lock_the_process_number_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: dict[str, str], free: bool
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(disk.fcntl, "flock", unsupported)
    lock = RunLock(tmp_path)
    if owner:
        pid = dead_pid() if owner["pid"] == "dead" else os.getpid()
        place = disk._host() if owner["place"] == "here" else "elsewhere"
        ticks = disk._start_ticks(pid) if owner["pid"] == "alive" else "1"
        lock.path.write_text(json.dumps({"host": "h", "pid": pid, "place": place, "since": "s", "ticks": ticks}))
    if free:
        lock.acquire().release()
    else:
        with pytest.raises(StorageError, match="is in use by process"):
            lock.acquire()


def test_lock_file_with_nonsense_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_bytes(b"\xff{")
    RunLock(tmp_path).acquire().release()


# ---------------------------------------------------------------------------------------------------------- at the door
def test_check_writable_makes_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", need_bytes=10)
    assert os.listdir(tmp_path / "a" / "b") == []


def test_check_writable_refuses_files_and_full_disks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file, expected a folder; choose another one"):
        check_writable(tmp_path / "file")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        check_writable(tmp_path / "file" / "below")
    with pytest.raises(StorageError, match=r"too little space \(got '.* MB free'\), expected 1000000000000"):
        check_writable(tmp_path, need_bytes=10**18)


def test_check_writable_refuses_a_folder_without_permission() -> None:
    root = os.geteuid() == 0  # nothing is forbidden to root: be nobody for a moment
    folder = tempfile.mkdtemp()
    try:
        os.chmod(folder, 0o555)
        if root:
            os.seteuid(65534)
        with pytest.raises(StorageError, match="permission denied"):
            check_writable(folder)
    finally:
        if root:
            os.seteuid(0)
        os.rmdir(folder)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_check_writable_says_what_the_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(StorageError, match=r"could not be written: .*; .*--out DIR"):
        check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_this_module_needs_no_torch() -> None:
    code = "import sys, limbeck.storage.disk; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 0
