"""Names from anywhere cannot steer a terminal, and crash files keep secrets."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limbeck import cli
from limbeck.engine.progress import Progress
from limbeck.engine.terminal import careful
from limbeck.errors import ConfigError, visible, without_secrets

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.\u2066\x7f\r"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain, naïve 東京 🙂 ±\t\n", "plain, naïve 東京 🙂 ±\t\n"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x08", "a\\rb\\x08"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_would_steer_is_escaped(text: str, said: str) -> None:
    assert visible(text) == said


def test_errors_are_visible() -> None:
    assert not STEERING.search(ConfigError(EVIL, EVIL, expected=EVIL, remedy=EVIL).line())


def test_rich_keeps_its_colours_and_shows_names_as_escapes() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = careful(Console(file=out, force_terminal=True, width=200, color_system="standard"))
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(Text(EVIL, style="red"))
    console.print(table)
    console.print(EVIL, markup=False)
    text = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert "\x1b[31m" in out.getvalue() and "\\x1b" in text and not STEERING.search(text)


def test_progress_shows_names_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_PROGRESS", raising=False)
    out = io.StringIO()
    progress = Progress(file=out)
    progress.say(f"class {EVIL}")
    assert "\\x1b" in out.getvalue() and not STEERING.search(out.getvalue())


SHORT = ["train.steps=1", "teach.steps=1", "student=mlp:[2]", "teacher=mlp:[2]", "engine.device=cpu", "loggers=[]"]


def birds(folder: Path, names: tuple[str, str]) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (4, 4), (20 * i, 9, 9)).save(folder / name / f"{i}.png")
    return folder


def test_hostile_names_of_classes_and_files(tmp_path: Path, capsys: Any) -> None:
    evil = EVIL.replace("/", "")
    data = birds(tmp_path / "data", ("a", f"b{evil}"))
    for words in (["run", "kd"], ["plan", "kd"], ["plan", "kd", "--json"]):
        more = ["--out", str(tmp_path / "o")] if words[0] == "run" else []
        assert cli.main([*words, *SHORT, f"task.data=folder:{data}", *more]) == 0
        out, err = capsys.readouterr()
        assert not STEERING.search(out + err), words
        if "--json" in words:
            json.loads(out)
    (data / "a" / f"x{evil}.png").write_bytes(b"no image")
    assert cli.main(["run", "kd", *SHORT, f"task.data=folder:{data}", "--out", str(tmp_path / "p")]) == 2
    out, err = capsys.readouterr()
    assert not STEERING.search(out + err) and "\\x1b" in err


def test_hostile_headers_of_tables(tmp_path: Path, capsys: Any) -> None:
    for label in ("label", "lebal"):
        (tmp_path / "t.csv").write_text(
            f'"x{EVIL[:-1]}",{label}\n' + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(40))
        )
        cli.main(["plan", "kd", *SHORT, f"task.data=csv:{tmp_path / 't.csv'}"])
        out, err = capsys.readouterr()
        assert not STEERING.search(out + err)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("password=hunter2", "password=***"),
        ("options={api_key: hunter2, a: 1}", "options={api_key: ***, a: 1}"),
        ("'token': 'hunter2'", "'token': ***"),
        ("http://me:hunter2@host/x?key=hunter2", "http://***@host/x?key=***"),
        ("Authorization: Bearer hunter2", "Authorization: *** hunter2"),
        ("lr=0.1 seed=3", "lr=0.1 seed=3"),
    ],
)
def test_secrets_are_left_out(text: str, said: str) -> None:
    found = without_secrets(text)
    assert found == said or ("hunter2" not in found and "Bearer" in text)


def test_a_crash_file_is_private_and_not_to_be_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("http://me:hunter2@host \x1b[2J")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("limbeck.commands.plan.main", fail)
    before = os.umask(0)
    try:
        for _ in range(2):
            assert (
                cli.main(["plan", "kd", "teacher=remote:http://me:hunter2@host", "student.options={password: hunter2}"])
                == 1
            )
    finally:
        os.umask(before)
    err = capsys.readouterr().err
    files = sorted(tmp_path.glob("limbeck-crash-*.txt"))
    assert len(files) == 2 and all(str(f) in err for f in files) and "hunter2" not in err and "\x1b" not in err
    assert len({f.name[-12:] for f in files}) == 2
    for file in files:
        text = file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "hunter2" not in text and "Traceback" in text and "command: limbeck 'plan' 'kd'" in text


def test_a_crash_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    monkeypatch.setattr("limbeck.commands.plan.main", fail)
    assert cli.main(["plan", "kd"]) == 1
    assert "could not be written" in capsys.readouterr().err
