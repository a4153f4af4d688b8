"""What a run keeps of what it measures: rows in files, and in trackers (``limbeck.engine.trackers``).

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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol, Self

from limbeck.errors import ConfigError, StorageError, require
from limbeck.storage.plain import opened, read_bytes

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


def number(value: Any) -> float | int:
    """A value as a plain number: a one-element tensor is read."""
    if isinstance(value, bool):
        return int(value)
    return value if type(value) is int else float(value)


def _row(stage: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": stage, "step": int(step), "wall": round(time.time(), 3)}
    for name, value in values.items():
        row[f"{name}_" if name in RESERVED else name] = number(value)
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
            old = read_bytes(self.path) if self.path.exists() else b""
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
        return self._parse(read_bytes(self.path))[0]

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
        from limbeck.storage.disk import atomic_write

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
        with io.TextIOWrapper(opened(path), encoding="utf-8", errors="replace", newline="") as file:
            for cells in csv.DictReader(file):
                try:
                    row: dict[str, Any] = {"stage": cells["stage"], "step": int(cells["step"])}
                    row.update({k: float(v) for k, v in cells.items() if k not in ("stage", "step") and v})
                except (KeyError, TypeError, ValueError):
                    continue
                rows.append(row)
        return rows
    for line in read_bytes(path).splitlines():
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


def check_loggers(names: Sequence[str]) -> None:
    """Whether these loggers can be made, asked before anything is trained.

    Raises:
        ConfigError: a name is unknown.
        MissingExtra: a named tracker is not installed.
    """
    for name in names:
        if name not in KNOWN:
            raise ConfigError.unknown("loggers", name, KNOWN, "logger")
        if name in TRACKERS:
            for module in (name, "accelerate"):
                require(module, "tracking", f"loggers={name}")


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
    check_loggers(names)
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
                from limbeck.engine.trackers import TrackerLogger

                made.append(TrackerLogger(name, folder, config))
    except BaseException:
        Loggers(made).close()
        raise
    return Loggers(made)
