"""Progress says how far a run is without getting in the way."""

from __future__ import annotations

import io
import math

import pytest

from limbeck.engine import progress as shown
from limbeck.engine.progress import Progress, format_seconds, format_value


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_PROGRESS", raising=False)
    monkeypatch.delenv("RANK", raising=False)


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(shown.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_few_and_the_last_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    progress = Progress(file=out)
    progress.stage("distil", 100)
    for _ in range(100):
        clock.now += 0.125
        progress.advance(1, loss=0.5)
    clock.now += 50  # evaluation is not the stage's time
    progress.say("judging")
    progress.close()
    lines = out.getvalue().splitlines()
    assert 6 <= len(lines) <= 9
    assert lines[0] == "distil  8/100  8%  8/s  0:12 left  loss 0.5000"
    assert lines[-2] == "distil  100 in 12.5 s, 8/s  loss 0.5000"
    assert lines[-1] == "judging"


def test_lines_become_rare_in_long_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    with Progress(file=out) as progress:
        progress.stage("distil", 36000)
        for _ in range(36000):
            clock.now += 1.0
            progress.advance()
    assert len(out.getvalue().splitlines()) < 800


def test_metrics_are_read_only_when_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensorlike:
        reads = 0

        def __float__(self) -> float:
            Tensorlike.reads += 1
            return 0.25

    clock, out = Clock(monkeypatch), io.StringIO()
    progress = Progress(file=out)
    progress.stage("distil", None)
    for _ in range(1000):
        progress.advance(1, loss=Tensorlike())
    assert Tensorlike.reads == 0
    clock.now += 2
    progress.advance()
    progress.close()
    assert "loss 0.2500" in out.getvalue() and Tensorlike.reads == 2


def test_a_resumed_stage_counts_from_where_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    with Progress(file=out) as progress:
        progress.stage("distil", 100, done=60)
        for _ in range(20):
            clock.now += 0.5
            progress.advance()
    assert out.getvalue().splitlines()[0] == "distil  62/100  62%  2/s  0:19 left"
    assert out.getvalue().splitlines()[-1] == "distil  80/100 in 10.0 s, 2/s"


@pytest.mark.parametrize("how", ["disabled", "rank", "environment"])
def test_quiet(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), Terminal()
    if how == "environment":
        monkeypatch.setenv("LIMBECK_PROGRESS", "0")
    with Progress(enabled=how != "disabled", file=out, rank=1 if how == "rank" else 0) as progress:
        progress.say("hello")
        progress.stage("distil", 10)
        clock.now += 5
        progress.advance(10)
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("LIMBECK_PROGRESS", raising=False)
    out = Terminal()
    with Progress(file=out) as progress:
        progress.say("teacher: [reused]")
        progress.stage("distil", 4)
        progress.advance(2, kd=0.5)
        progress.say("half way")
        progress.advance(2, kd=0.25)
    text = out.getvalue()
    assert "teacher: [reused]" in text and "half way" in text and "━" in text
    assert "distil  4 in 0." in text and "kd 0.2500" in text
    assert text.rstrip("\r").endswith("\x1b[?25h")  # the cursor is given back


def test_plain_lines_may_be_asked_for_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_PROGRESS", "plain")
    out = Terminal()
    with Progress(file=out) as progress:
        progress.stage("distil", 1)
        progress.advance()
    assert "\x1b" not in out.getvalue() and out.getvalue().startswith("distil  1 in")


def test_nobody_listening_is_no_reason_to_stop() -> None:
    out = io.StringIO()
    progress = Progress(file=out)
    out.close()
    progress.stage("distil", 1)
    progress.advance()
    progress.close()


def test_format_seconds_and_values() -> None:
    assert [format_seconds(x) for x in (0.4, 61, 3 * 3600 + 130, math.inf)] == ["0:00", "1:01", "3:02:10", "?"]
    assert [format_value(x) for x in (0.0, 7, 1234.25, 1e-9, math.nan)] == ["0", "7", "1234", "1.000e-09", "nan"]


def test_a_notebook_gets_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cell:
        def __init__(self, text: str) -> None:
            self.shown = [text]

        def update(self, data: dict[str, str], raw: bool) -> None:
            self.shown.append(data["text/plain"])

    clock, cells = Clock(monkeypatch), list[Cell]()
    monkeypatch.setattr(shown, "in_notebook", lambda: True)
    monkeypatch.setattr(shown, "_display", lambda text: cells.append(Cell(text)) or cells[-1])
    progress = Progress()
    progress.say("a note")
    for name in ("teacher", "distil\x1b[2J"):
        progress.stage(name, 8)
        for _ in range(8):
            clock.now += 0.25
            progress.advance(1, loss=0.5)
    progress.close()
    first, second = cells
    assert first.shown[0].startswith("░" * 24) and first.shown[4].startswith(
        "█" * 12 + "░" * 12 + "  teacher  4/8  50%"
    )
    assert first.shown[-1] == "teacher  8 in 2.0 s, 4/s  loss 0.5000" and "\x1b" not in "".join(second.shown)
    said = capsys.readouterr()
    assert said.out == "a note\n" and said.err == "", "what goes to stderr looks like an error there"


def test_no_notebook_is_seen_where_there_is_none() -> None:
    assert not shown.in_notebook()
