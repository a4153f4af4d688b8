"""Files are looked at once, and again when anything of them has changed."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from limbeck.storage import files
from limbeck.storage.files import Seen, digest


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(files, "_here", {})
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    monkeypatch.setattr(files, "_GRAIN", -1.0)  # what was written just now counts as settled


def look(path: Path, looks: list[str], seen: Seen) -> str:
    def read() -> str:
        looks.append(path.name)
        return path.read_text()

    return str(seen.ask(path, "text", read))


def test_a_file_is_looked_at_once_in_a_process_and_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, looks = tmp_path / "a", []  # type: Path, list[str]
    path.write_text("one")
    for _ in range(2):
        with Seen() as seen:
            assert [look(path, looks, seen) for _ in range(3)] == ["one"] * 3
        monkeypatch.setattr(files, "_here", {})  # as in a new process
    assert looks == ["a"]
    link = tmp_path / "link"
    link.symlink_to(path)
    with Seen() as seen:
        assert look(link, looks, seen) == "one" and looks == ["a"]


def test_anything_that_changes_is_seen(tmp_path: Path) -> None:
    path, looks = tmp_path / "a", []  # type: Path, list[str]

    def now() -> str:
        with Seen() as seen:
            return look(path, looks, seen)

    path.write_text("one")
    assert now() == "one"
    path.write_text("longer")
    assert now() == "longer"
    before = path.stat()
    path.write_text("LONGER")  # of the same size, its time of change set back
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert now() == "LONGER"
    other = tmp_path / "b"
    other.write_text("longer")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert now() == "longer"
    assert len(looks) == 4


def test_what_was_written_moments_ago_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_GRAIN", 2.0)
    path, looks = tmp_path / "a", []  # type: Path, list[str]
    path.write_text("one")
    with Seen() as seen:
        for _ in range(2):
            look(path, looks, seen)
    assert looks == ["a", "a"]
    monkeypatch.setattr(time, "time", lambda: path.stat().st_mtime + 10)
    with Seen() as seen:
        for _ in range(2):
            look(path, looks, seen)
    assert looks == ["a"] * 3


def test_another_question_is_another_answer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    with Seen() as seen:
        assert seen.ask(path, "size", lambda: 3) == 3 and seen.ask(path, "lines", lambda: [1, None]) == [1, None]
    with Seen() as seen:
        assert seen.ask(path, "lines", lambda: "again") == [1, None]


def test_a_look_that_fails_is_passed_on_and_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")

    def fail() -> str:
        raise ValueError("unreadable")

    with Seen() as seen:
        with pytest.raises(ValueError, match="unreadable"):
            seen.ask(path, "text", fail)
        assert seen.ask(path, "text", path.read_text) == "one"
    with pytest.raises(OSError, match="gone"):
        digest(tmp_path / "gone")


@pytest.mark.parametrize("spoilt", ["damaged", "a folder", "read-only", "locked"])
def test_a_memory_that_cannot_be_used_costs_nothing_but_time(spoilt: str, tmp_path: Path) -> None:
    place = tmp_path / "workspace" / "files.sqlite"
    place.parent.mkdir()
    path, looks = tmp_path / "a", []  # type: Path, list[str]
    path.write_text("one")
    if spoilt == "damaged":
        place.write_bytes(b"no database at all" * 100)
    elif spoilt == "a folder":
        place.mkdir()
    elif spoilt == "read-only":
        place.parent.chmod(0o500)
    held = None
    if spoilt == "locked":
        held = sqlite3.connect(place)
        held.execute("CREATE TABLE t (x)")
        held.execute("BEGIN EXCLUSIVE")
    with Seen() as seen:
        assert look(path, looks, seen) == "one"
    place.parent.chmod(0o700)
    if held is not None:
        held.close()


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert (
        digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2, appendix B.1
