"""How far a run is, on the terminal."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from typing import IO, TYPE_CHECKING, Any, Self

from limbeck.engine.logs import process_rank
from limbeck.engine.terminal import careful
from limbeck.errors import masked, visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


def format_seconds(seconds: float) -> str:
    """A duration for people: ``0:07``, ``12:30``, ``3:02:10``.

    Example:
        >>> format_seconds(750.2)
        '12:30'
    """
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_value(value: Any) -> str:
    """A metric in four significant digits, in a width that hardly changes from line to line.

    Example:
        >>> format_value(0.123456), format_value(12345.6), format_value(3)
        ('0.1235', '1.235e+04', '3')
    """
    if isinstance(value, int):
        return str(value)
    number = float(value)
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    return f"{number:#.4g}".rstrip(".") if 1e-3 <= abs(number) < 1e4 else f"{number:.3e}"


BAR = 24
"""Characters of a bar in a notebook."""


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which shows displays that change."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _display(text: str) -> Any:
    """Show a text in a notebook; gives what changes it."""
    from IPython.display import display

    return display({"text/plain": text}, raw=True, display_id=True)


class Progress:
    """Progress on stderr: a live bar on a terminal or in a notebook, otherwise plain lines, ever more rarely, and the last.

    Plain lines come more rarely as a stage gets older (every fiftieth of its age, a minute at most), so a night's log
    stays readable. Other ranks than 0 are silent; so is everything with ``LIMBECK_PROGRESS=0``;
    ``LIMBECK_PROGRESS=plain`` asks for plain lines on a terminal.

    Args:
        enabled: ``False`` is silent.
        file: where to write; stderr.
        rank: this process's rank; asked of the environment by default.

    Example:
        >>> with Progress() as progress:  # doctest: +SKIP
        ...     progress.stage("distil", total=400)
        ...     progress.advance(1, loss=0.5)
    """

    RATE = 4  # redraws a second on a terminal
    WINDOW = 30.0  # seconds over which plain lines measure the rate

    def __init__(self, enabled: bool = True, file: IO[str] | None = None, rank: int | None = None) -> None:
        self._file = sys.stderr if file is None else file
        wish = os.environ.get("LIMBECK_PROGRESS", "1").strip().lower()
        silent = not enabled or wish in ("0", "no", "off", "false")
        self.quiet = silent or (process_rank() if rank is None else rank) != 0
        try:
            terminal = self._file is not None and self._file.isatty() and os.environ.get("TERM") != "dumb"
        except ValueError:  # a closed stream
            terminal, self.quiet = False, True
        self._live = terminal and wish != "plain" and not self.quiet
        self._notebook = file is None and not self.quiet and wish != "plain" and in_notebook()
        self._cell: Any = None  # of the notebook: what shows the current stage
        self.name = ""
        self.total: int | None = None
        self.done = 0
        self._metrics: dict[str, Any] = {}
        self._began = self._next = 0.0
        self._finished: float | None = None  # when the last step was done: what follows is not the stage's time
        self._from = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """Begin a stage (and end the one before): ``total`` steps or items, ``done`` of them by an earlier process."""
        self._end()
        self.name, self.total, self.done, self._from = name, total, done, done
        self._metrics = {}
        self._began = time.monotonic()
        self._finished = None
        self._next = self._began + (1.0 / self.RATE if self._live else 1.0)
        self._marks = deque([(self._began, done)])
        if self._live:
            self._draw()
        elif self._notebook:
            self._next = self._began + 1.0 / self.RATE
            self._cell = _display(self._bar(self._began))

    def advance(self, n: int = 1, **metrics: Any) -> None:
        """``n`` more are done. Metrics are numbers or one-element tensors; they are only read when they are shown."""
        self.done += n
        if metrics:
            self._metrics.update(metrics)
        if self.quiet:
            return
        now = time.monotonic()
        if self.done == self.total and self._finished is None:
            self._finished = now
            if self._live:
                self._draw()
        if now < self._next:
            return
        if self._live:
            self._next = now + 1.0 / self.RATE
            self._draw()
        elif self._cell is not None:
            self._next = now + 1.0 / self.RATE
            self._cell.update({"text/plain": self._bar(now)}, raw=True)
        else:
            self._next = now + min(60.0, max(2.0, (now - self._began) / 8))  # a log is read afterwards: few lines
            self._line(now)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._finished is not None:
            self._end()
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.console.print(masked(text), markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def close(self) -> None:
        """End the current stage and give the terminal back. Idempotent."""
        self._end()
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _end(self) -> None:
        if not self.name:
            return
        took = (self._finished or time.monotonic()) - self._began
        name, self.name, self._finished = self.name, "", None
        if self.quiet:
            return
        made = self.done - self._from
        counted = (
            f"{self.done:,}/{self.total:,}" if self.total is not None and self.done != self.total else f"{self.done:,}"
        )
        rate = f", {_rate(made / took)}" if made and took > 0 else ""
        shown = self._shown()
        long = f"{took:.1f} s" if took < 60 else format_seconds(took)
        uncounted = self.total is None and not self.done
        text = f"{name}  {long}" if uncounted else f"{name}  {counted} in {long}{rate}"
        text += f"  {shown}" if shown else ""
        if self._rich is not None and self._task is not None:
            self._rich.remove_task(self._task)
            self._rich.refresh()
            self._task = None
        if self._live:
            self._console().print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._cell is not None:
            self._cell.update({"text/plain": visible(masked(text))}, raw=True)
            self._cell = None
        else:
            self._write(text)

    def _shown(self) -> str:
        return "  ".join(f"{name} {format_value(value)}" for name, value in self._metrics.items())

    def _bar(self, now: float) -> str:
        """The current stage in one line, with a bar where its length is known."""
        if not self.total:
            return visible(masked(self._text(now)))
        filled = BAR * min(self.done, self.total) // self.total
        return visible(masked(f"{'█' * filled}{'░' * (BAR - filled)}  {self._text(now)}"))

    def _line(self, now: float) -> None:
        self._write(self._text(now))

    def _text(self, now: float) -> str:
        if self.total is None and not self.done:  # nothing is counted: only that it goes on
            return f"{self.name}  {format_seconds(now - self._began)}"
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[0][0] > self.WINDOW:
            self._marks.popleft()
        since, before = self._marks[0]
        rate = (self.done - before) / (now - since) if now > since else 0.0
        counted = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{self.name}  {counted}"]
        if self.total:
            parts.append(f"{100 * self.done // self.total}%")
        parts.append(_rate(rate))
        if self.total is not None and rate > 0:
            parts.append(f"{format_seconds((self.total - self.done) / rate)} left")
        shown = self._shown()
        return "  ".join([*parts, shown] if shown else parts)

    def _write(self, text: str) -> None:
        if self._notebook:
            print(visible(masked(text)))  # a notebook shows what goes to stderr as if it were an error
            return
        try:
            self._file.write(visible(masked(text)) + "\n")
            self._file.flush()
        except (OSError, ValueError):
            self.quiet = True  # nobody listens any more; that is no reason to stop a run

    def _console(self) -> Any:
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            console = careful(Console(file=self._file))
            self._rich = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[counted]}", justify="right"),
                TextColumn("[cyan]{task.fields[rate]}", justify="right"),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[shown]}"),
                console=console,
                refresh_per_second=self.RATE,
                transient=True,
            )
            self._rich.start()
        return self._rich.console

    def _draw(self) -> None:
        self._console()
        assert self._rich is not None
        counted = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        if self._task is None:
            self._task = self._rich.add_task(
                self.name, total=self.total, completed=self.done, counted=counted, rate="", shown=""
            )
            return
        speed = self._rich.tasks[self._rich.task_ids.index(self._task)].speed
        self._rich.update(
            self._task,
            completed=self.done,
            counted=counted,
            rate=_rate(speed) if speed else "",
            shown=_markup_free(self._shown()),
        )


def _markup_free(text: str) -> str:
    return text.replace("[", r"\[")


def _rate(rate: float) -> str:
    """Steps a second, or seconds a step when they are slow."""
    if rate <= 0:
        return "0/s"
    return f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
