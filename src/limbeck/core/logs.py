"""What a run says while it works: logs in files and trackers, and progress on the terminal.

A log is a sequence of rows ``{stage, step, wall, name: value...}``. ``wall`` is the clock (seconds since 1970) and is
the only field that may differ between an interrupted and an uninterrupted run. Nothing leaves the machine unless a
tracker is named.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, Self

from limbeck.core.errors import ConfigError, StorageError, require

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

RESERVED: Final = ("stage", "step", "wall")
"""The fields of a row that are not values. A value with such a name is written with a trailing underscore."""

TRACKERS: Final = ("mlflow", "trackio", "wandb")
KNOWN: Final = ("csv", "jsonl", "tensorboard", *TRACKERS)


class Logger(Protocol):
    """Something that keeps what a run measures."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step. Steps of a stage come in rising order."""

    def resume(self, stage: str, step: int) -> None:
        """The stage goes on at ``step``: forget what was kept of it at or after that step."""

    def summary(self, result: Mapping[str, Any]) -> None:
        """Keep the result of the run (the content of ``result.json``)."""

    def close(self) -> None:
        """Write what is pending and let go. Idempotent."""


def process_rank() -> int:
    """The rank of this process: 0 unless a launcher or torch.distributed says otherwise."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdigit() else 0


def _number(value: Any) -> float | int:
    if isinstance(value, bool):
        return int(value)
    return value if type(value) is int else float(value)


def _row(stage: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": stage, "step": int(step), "wall": round(time.time(), 3)}
    for name, value in values.items():
        row[f"{name}_" if name in RESERVED else name] = _number(value)
    return row


class _RowFile:
    """A file of rows that can be appended to, and from which the tail of a stage can be taken back."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: IO[bytes] | None = None
        self._seen: set[str] = set()  # stages whose tail has been settled since opening
        self._rows: list[tuple[str, int, Any]] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            old = self.path.read_bytes() if self.path.exists() else b""
            rows, kept = self._parse(old)
            if kept != len(old):
                os.truncate(self.path, kept)
            self._rows = rows
            self._file = open(self.path, "ab")  # noqa: SIM115 - stays open for the whole run
        except OSError as error:
            raise StorageError(str(self.path), f"the log cannot be opened: {error.strerror or error}") from None

    def _parse(self, data: bytes) -> tuple[list[tuple[str, int, Any]], int]:
        """The intact rows, and how many bytes of the file to keep (a damaged end is cut off)."""
        raise TypeError(f"{type(self).__name__} must define _parse")

    def _encode(self, row: dict[str, Any]) -> bytes:
        raise TypeError(f"{type(self).__name__} must define _encode")

    def _join(self, rows: Iterable[tuple[str, int, Any]]) -> bytes:
        """The whole file made of these rows."""
        raise TypeError(f"{type(self).__name__} must define _join")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Append a row. The first row of a stage since opening takes back what lay at or after its step."""
        if stage not in self._seen:
            self.resume(stage, step)
        self._append(self._encode(_row(stage, step, values)))

    def resume(self, stage: str, step: int) -> None:
        """Drop the rows of this stage at or after ``step``."""
        self._seen.add(stage)
        rows = self._read() if self._rows is None else self._rows
        kept = [row for row in rows if row[0] != stage or row[1] < step]
        if len(kept) != len(rows):
            self._replace(self._join(kept))
        self._rows = kept

    def summary(self, result: Mapping[str, Any]) -> None:
        """Nothing: ``result.json`` lies beside this file."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[tuple[str, int, Any]]:
        return self._parse(self.path.read_bytes())[0]

    def _append(self, data: bytes) -> None:
        if self._file is None:
            raise StorageError(str(self.path), "this log is closed")
        self._rows = None  # what was read at opening is out of date
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise StorageError(
                str(self.path),
                f"the log cannot be written: {error.strerror or error}",
                remedy="free some space and run the same command again: it goes on from the last checkpoint",
            ) from None

    def _replace(self, data: bytes) -> None:
        from limbeck.core.disk import atomic_write

        if self._file is not None:
            self._file.close()
        atomic_write(self.path, data)
        self._file = open(self.path, "ab")  # noqa: SIM115


class JsonlLogger(_RowFile):
    """One JSON object a line: ``{"stage", "step", "wall", name: value...}``; the report draws its curves from it.

    Values that JSON cannot hold are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``; :func:`read_log` turns
    them back into numbers.

    Args:
        path: the file, ``log.jsonl`` in a run folder.
    """

    def _parse(self, data: bytes) -> tuple[list[tuple[str, int, Any]], int]:
        rows, kept, at = [], 0, 0
        for line in data.splitlines(keepends=True):
            at += len(line)
            row = _json_row(line) if line.endswith(b"\n") else None
            if row is not None:
                rows.append((row["stage"], row["step"], line))
                kept = at
        return rows, kept

    def _encode(self, row: dict[str, Any]) -> bytes:
        safe = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in row.items()}
        return (json.dumps(safe, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def _join(self, rows: Iterable[tuple[str, int, Any]]) -> bytes:
        return b"".join(row[2] for row in rows)


def _json_row(line: bytes | str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or type(row.get("step")) is not int:
        return None
    return row


class CsvLogger(_RowFile):
    """One table for all stages: ``stage,step,wall,`` and a column for each value that ever appeared.

    A value that first appears later gets a new last column; rows that lack a value leave its cell empty.

    Args:
        path: the file, ``metrics.csv`` in a run folder.
    """

    _columns: list[str]

    def _parse(self, data: bytes) -> tuple[list[tuple[str, int, Any]], int]:
        whole = data[: data.rfind(b"\n") + 1]
        lines = list(csv.reader(io.StringIO(whole.decode("utf-8", "replace"), newline="")))
        columns = lines[0] if lines else []
        if columns[:3] != list(RESERVED):
            if columns:
                raise StorageError(
                    str(self.path),
                    "a table of something else lies where the log goes",
                    remedy="move it, or choose --out",
                )
            self._columns = []
            return [], 0
        self._columns = columns[3:]
        rows: list[tuple[str, int, Any]] = []
        for cells in lines[1:]:
            if len(cells) == len(columns) and cells[1].lstrip("-").isdigit():
                rows.append((cells[0], int(cells[1]), cells))
        return rows, len(whole)

    def _encode(self, row: dict[str, Any]) -> bytes:
        new = [name for name in row if name not in RESERVED and name not in self._columns]
        if new or not self._columns:
            rows = self._read() if self._columns else []
            self._columns += new
            self._replace(self._join(rows, shrink=False))
        cells = [row["stage"], row["step"], row["wall"], *(row.get(name, "") for name in self._columns)]
        return _csv_bytes([cells])

    def _join(self, rows: Iterable[tuple[str, int, Any]], shrink: bool = True) -> bytes:
        rows = list(rows)
        if shrink:
            # a column that only the dropped rows filled will come back in its turn, as in an uninterrupted run
            last = max((i for _, _, cells in rows for i, cell in enumerate(cells) if cell != ""), default=2)
            self._columns = self._columns[: last - 2]
        width = 3 + len(self._columns)
        padded = [(list(cells) + [""] * width)[:width] for _, _, cells in rows]
        return _csv_bytes([[*RESERVED, *self._columns], *padded]) if padded or self._columns else b""


def _csv_bytes(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``log.jsonl`` or ``metrics.csv``, or of a run folder that holds either; damaged lines are left out.

    Returns:
        Rows ``{"stage": str, "step": int, "wall": float, name: float...}`` in the order of the file; ``[]`` without
        one.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("log.jsonl", "metrics.csv"):
            if (path / name).exists():
                return read_log(path / name)
        return []
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            for cells in csv.DictReader(file):
                try:
                    row: dict[str, Any] = {"stage": cells["stage"], "step": int(cells["step"])}
                    row.update({k: float(v) for k, v in cells.items() if k not in ("stage", "step") and v})
                except (KeyError, TypeError, ValueError):
                    continue
                rows.append(row)
        return rows
    for line in path.read_bytes().splitlines():
        found = _json_row(line)
        if found is not None:
            special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
            rows.append({k: special.get(v, v) if isinstance(v, str) and k != "stage" else v for k, v in found.items()})
    return rows


class TensorboardLogger:
    """TensorBoard event files, one TensorBoard run a stage (so every stage has its own steps).

    Reading event files needs ``tensorboard``; writing them does not. A resumed stage tells TensorBoard to hide what an
    interrupted run had written at or after the step where it goes on.

    Args:
        folder: where the event files go, ``tensorboard/`` in a run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._writers: dict[str, Any] = {}
        self._make = require("tensorboardX", "tracking", "the logger 'tensorboard'").SummaryWriter

    def resume(self, stage: str, step: int) -> None:
        """Open the stage's writer, with what lies at or after ``step`` purged."""
        if stage in self._writers:
            self._writers.pop(stage).close()
        folder = self.folder / _file_name(stage)
        before = len(list(folder.iterdir())) if folder.exists() else 0
        # event files are named by the second: two within one second would overwrite each other
        suffix = f".{before}" if before else ""
        purge = step if before else None
        try:
            self._writers[stage] = self._make(str(folder), purge_step=purge, flush_secs=5, filename_suffix=suffix)
        except OSError as error:
            raise StorageError(str(folder), f"TensorBoard files cannot be written: {error.strerror or error}") from None

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each value."""
        if stage not in self._writers:
            self.resume(stage, step)
        wall = time.time()
        for name, value in values.items():
            self._writers[stage].add_scalar(name, float(value), step, walltime=wall)

    def summary(self, result: Mapping[str, Any]) -> None:
        """Add the final metrics as scalars of the run ``result`` (``student/accuracy``, ``teacher/accuracy``...)."""
        metrics = {k: v for k, v in flatten(result.get("metrics") or {}).items() if isinstance(v, (int, float))}
        if metrics:
            self.log("result", 0, metrics)

    def close(self) -> None:
        """Flush and close every writer."""
        while self._writers:
            self._writers.popitem()[1].close()


def _file_name(stage: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in stage) or "_"


def flatten(tree: Mapping[str, Any], above: str = "", separator: str = "/") -> dict[str, Any]:
    """A nested mapping as one level of ``a/b/c`` names; lists become text, ``None`` stays.

    Example:
        >>> flatten({"task": {"use": "digits"}, "seed": 0})
        {'task/use': 'digits', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{separator}{key}" if above else str(key)
        if isinstance(value, Mapping):
            flat.update(flatten(value, name, separator))
        elif value is None or isinstance(value, (bool, int, float, str)):
            flat[name] = value
        else:
            flat[name] = str(value)
    return flat


class TrackerLogger:
    """A tracker of ``accelerate.tracking``: ``wandb``, ``mlflow`` or ``trackio``. Only used when it is named.

    The tracker's own settings come from its own environment variables (``WANDB_MODE=offline``,
    ``MLFLOW_TRACKING_URI=...``; without the latter MLflow writes to ``mlruns/`` beside the run folder). The run's id is
    kept in ``trackers.json``, so a resumed run goes on in the same place. A tracker that fails while the run is under
    way (no network) says so once and is left out from then on: it must not cost the run.

    Args:
        name: ``wandb``, ``mlflow`` or ``trackio``.
        folder: the run folder; its name is the name of the run.
        config: the resolved recipe, stored with the run.
        project: the project or experiment.
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], project: str = "limbeck") -> None:
        require(name, "tracking", f"the logger {name!r}")
        self._module = require("accelerate.tracking", "tracking", f"the logger {name!r}")
        self.name, self.folder, self.project = name, Path(folder), project
        self._config = flatten(config)
        self._tracker: Any = None
        self._failed = False
        self._stages: set[str] = set()
        torch = sys.modules.get("torch")
        launched = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
        if not launched or (torch is not None and torch.distributed.is_initialized()):
            # otherwise accelerate would open a process group of its own: wait until the engine has opened it
            self._start()

    def _start(self) -> None:
        ids = self.folder / "trackers.json"
        try:
            known = json.loads(ids.read_text()) if ids.exists() else {}
        except ValueError:
            known = {}
        run = known.get(self.name)
        try:
            with _same_threads():
                tracker, run = self._open(run)
                tracker.store_init_configuration(self._config)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                "loggers",
                f"{self.name} could not start: {said}",
                remedy="set it up by its own means (for wandb without network: WANDB_MODE=offline), "
                f"or leave {self.name} out of loggers",
            ) from None
        self._tracker = tracker
        if known.get(self.name) != run:
            from limbeck.core.disk import atomic_write

            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(ids, json.dumps({**known, self.name: run}, indent=2, sort_keys=True).encode())

    def _open(self, run: str | None) -> tuple[Any, str]:
        from accelerate import PartialState

        PartialState()
        if self.name == "wandb":
            import uuid

            run = run or uuid.uuid4().hex[:12]
            tracker = self._module.WandBTracker(
                self.project, id=run, name=self.folder.name, resume="allow", dir=str(self.folder)
            )
            tracker.start()
        elif self.name == "mlflow":
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                # its default is a data base that mlflow-skinny cannot open: files beside the runs need no more packages
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
                require("mlflow", "tracking", "the logger 'mlflow'").set_tracking_uri(
                    (self.folder.resolve().parent / "mlruns").as_uri()
                )
            tracker = self._module.MLflowTracker(self.project, run_id=run, run_name=self.folder.name)
            tracker.start()
            run = str(tracker.tracker.info.run_id)
        else:
            run = run or self.folder.name
            tracker = self._module.TrackioTracker(self.project, name=run, resume="allow")
            tracker.start()
        return tracker, run

    def _guarded(self, values: dict[str, Any], step: int | None, stage: str = "") -> None:
        if self._failed:
            return
        if self._tracker is None:
            self._start()
        try:
            if self.name == "wandb" and stage and stage not in self._stages:
                self._stages.add(stage)
                self._tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._tracker.log(values, step=step)
        except Exception as error:
            self._failed = True
            print(f"limbeck: {self.name} failed ({error}); the run goes on without it", file=sys.stderr)

    def resume(self, stage: str, step: int) -> None:
        """Nothing: trackers keep what they were given, with its step."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send the values as ``stage/name``."""
        sent: dict[str, Any] = {f"{stage}/{name}": _number(value) for name, value in values.items()}
        if self.name == "wandb":
            # wandb has one ever-growing step a run, stages each have their own: the step is sent as a value
            self._guarded({**sent, f"{stage}/step": int(step)}, None, stage)
        else:
            self._guarded(sent, int(step))

    def summary(self, result: Mapping[str, Any]) -> None:
        """Send the final metrics as ``result/student/accuracy`` and the like."""
        metrics = flatten(result.get("metrics") or {}, "result")
        metrics["result/wall_seconds"] = result.get("wall_seconds")
        sent = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        if sent:
            self._guarded(sent, None if self.name == "wandb" else 0)

    def close(self) -> None:
        """End the run at the tracker."""
        if self._tracker is not None:
            try:
                self._tracker.finish()
            except Exception as error:
                print(f"limbeck: {self.name} could not finish ({error})", file=sys.stderr)
            self._tracker = None
            self._failed = True


class _same_threads:
    """Keeps torch's thread count: accelerate sets it, and sums would come out with other last bits."""

    def __enter__(self) -> None:
        import torch

        self.count = torch.get_num_threads()

    def __exit__(self, *error: object) -> None:
        import torch

        if torch.get_num_threads() != self.count:
            torch.set_num_threads(self.count)


class Loggers:
    """Several loggers as one.

    Args:
        loggers: the loggers; none is fine.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.loggers = list(loggers)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step in every logger."""
        for logger in self.loggers:
            logger.log(stage, step, values)

    def resume(self, stage: str, step: int) -> None:
        """The stage goes on at ``step``: what was kept of it at or after that step is forgotten."""
        for logger in self.loggers:
            logger.resume(stage, step)

    def summary(self, result: Mapping[str, Any]) -> None:
        """Keep the result of the run."""
        for logger in self.loggers:
            logger.summary(result)

    def close(self) -> None:
        """Close every logger."""
        for logger in self.loggers:
            logger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def make_loggers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Loggers:
    """The loggers of a run, by name. Ranks other than 0 get none.

    Args:
        names: any of ``csv``, ``jsonl``, ``tensorboard`` (files in the run folder), ``wandb``, ``mlflow``, ``trackio``.
        folder: the run folder.
        config: the resolved recipe, stored with trackers.

    Raises:
        ConfigError: a name is unknown, or a tracker cannot start.
        MissingExtra: a named tracker is not installed.
        StorageError: a file cannot be opened.
    """
    for name in names:
        if name not in KNOWN:
            raise ConfigError.unknown("loggers", name, KNOWN, "logger")
    if process_rank() != 0:
        return Loggers()
    made: list[Logger] = []
    try:
        for name in dict.fromkeys(names):
            if name == "csv":
                made.append(CsvLogger(folder / "metrics.csv"))
            elif name == "jsonl":
                made.append(JsonlLogger(folder / "log.jsonl"))
            elif name == "tensorboard":
                made.append(TensorboardLogger(folder / "tensorboard"))
            else:
                made.append(TrackerLogger(name, folder, config))
    except BaseException:
        Loggers(made).close()
        raise
    return Loggers(made)


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


class Progress:
    """Progress on stderr: a live bar on a terminal, otherwise plain lines, at most one a second, and the last.

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
        else:
            self._next = now + min(60.0, max(1.0, (now - self._began) / 50))
            self._line(now)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._finished is not None:
            self._end()
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
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
        text = f"{name}  {counted} in {f'{took:.1f} s' if took < 60 else format_seconds(took)}{rate}"
        text += f"  {shown}" if shown else ""
        if self._rich is not None and self._task is not None:
            self._rich.remove_task(self._task)
            self._rich.refresh()
            self._task = None
        if self._live:
            self._console().print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def _shown(self) -> str:
        return "  ".join(f"{name} {format_value(value)}" for name, value in self._metrics.items())

    def _line(self, now: float) -> None:
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
        self._write("  ".join([*parts, shown] if shown else parts))

    def _write(self, text: str) -> None:
        try:
            self._file.write(text + "\n")
            self._file.flush()
        except (OSError, ValueError):
            self.quiet = True  # nobody listens any more; that is no reason to stop a run

    def _console(self) -> Any:
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            console = Console(file=self._file)
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
