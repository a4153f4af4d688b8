"""Loggers keep what a run measures, whatever interrupts it."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.engine import logs
from limbeck.engine.logs import CsvLogger, JsonlLogger, make_loggers, read_log
from limbeck.errors import ConfigError, MissingExtra, StorageError


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_log(path)]


def run(logger: Any, first: int, last: int, stage: str = "distil", every: int = 10) -> None:
    """What an engine does: a line of losses every few steps, and now and then a line of validation metrics."""
    for done in range(first + 1, last + 1):
        if done % every == 0:
            logger.log(stage, done, {"lr": 0.1 / done, "kd": 1.0 / done})
        if done % 20 == 0:
            logger.log(stage, done, {"valid/accuracy": 1 - 1 / done})


@pytest.fixture(params=["log.jsonl", "metrics.csv"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def opened(path: Path) -> Any:
    return JsonlLogger(path) if path.suffix == ".jsonl" else CsvLogger(path)


def test_rows_come_back_as_they_went_in(path: Path) -> None:
    logger = opened(path)
    logger.log("teacher", 10, {"task": 0.1 + 0.2, "lr": 1e-3})
    logger.log("distil", 10, {"kd": math.inf, "nll": math.nan})
    logger.close()
    first, second = read_log(path)
    assert first["task"] == 0.1 + 0.2 and first["stage"] == "teacher" and first["step"] == 10 and first["wall"] > 1e9
    assert second["kd"] == math.inf and math.isnan(second["nll"])


def test_jsonl_is_strict_json(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "log.jsonl")
    logger.log("distil", 1, {"kd": math.nan, "step": 7.0})
    logger.close()

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    row = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert row["step"] == 1 and row["step_"] == 7.0 and row["kd"] == "nan"


@pytest.mark.parametrize("stop", [1, 9, 10, 25, 40, 59])
@pytest.mark.parametrize("overrun", [0, 1, 15])
def test_a_resumed_log_equals_an_uninterrupted_one(path: Path, stop: int, overrun: int) -> None:
    whole = opened(path.with_name("whole" + path.suffix))
    run(whole, 0, 40, "teacher")
    run(whole, 0, 60)
    whole.close()

    broken = opened(path)
    run(broken, 0, 40, "teacher")
    run(broken, 0, stop + overrun)  # the checkpoint is from `stop`; the process died later
    broken.close()
    resumed = opened(path)
    run(resumed, stop, 60)
    resumed.close()
    assert rows_of(path) == rows_of(whole.path)
    if path.suffix == ".csv":
        assert path.read_text().splitlines()[0] == whole.path.read_text().splitlines()[0]


def test_resume_by_name_drops_what_will_be_logged_again(path: Path) -> None:
    logger = opened(path)
    run(logger, 0, 40, "teacher")
    run(logger, 0, 40)
    logger.resume("distil", 21)
    logger.close()
    assert [(r["stage"], r["step"]) for r in rows_of(path)][-2:] == [("distil", 20), ("distil", 20)]
    assert sum(r["stage"] == "teacher" for r in rows_of(path)) == 6


def test_a_damaged_last_line_is_dropped(path: Path) -> None:
    logger = opened(path)
    run(logger, 0, 30)
    logger.close()
    good = path.read_bytes()
    last = good.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        path.write_bytes(good + last[:-cut])
        assert len(rows_of(path)) <= 5  # a reader never fails
        logger = opened(path)
        run(logger, 30, 40)
        logger.close()
        assert [r["step"] for r in rows_of(path)] == [10, 20, 20, 30, 40, 40]
    path.write_bytes(good + b"\0" * 40)
    opened(path).close()
    assert path.read_bytes() == good


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_can_be_opened_as_jsonl(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_bytes(data)
    logger = JsonlLogger(path)
    logger.log("distil", 1, {"kd": 1.0})
    logger.close()
    assert rows_of(path)[-1] == {"stage": "distil", "step": 1, "kd": 1.0}


def test_csv_takes_columns_that_appear_late(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "metrics.csv")
    logger.log("teacher", 1, {"task": 0.5})
    logger.log("distil", 1, {"kd": 0.25, "a,b": 2})
    logger.log("teacher", 2, {"task": 0.4})
    logger.close()
    table = list(csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_text())))
    assert [t["task"] for t in table] == ["0.5", "", "0.4"]
    assert [t["a,b"] for t in table] == ["", "2", ""]
    assert list(table[0]) == ["stage", "step", "wall", "task", "kd", "a,b"]
    again = CsvLogger(tmp_path / "metrics.csv")
    again.log("score", 1, {"psnr": 30.0})
    again.close()
    assert [r.get("psnr") for r in rows_of(tmp_path / "metrics.csv")] == [None, None, None, 30.0]


def test_csv_does_not_overwrite_a_foreign_table(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("name,price\nbread,2\n")
    with pytest.raises(StorageError, match="something else"):
        CsvLogger(tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_text() == "name,price\nbread,2\n"


def test_every_row_is_on_disk_at_once(path: Path) -> None:
    logger = opened(path)
    logger.log("distil", 1, {"kd": 1.0})
    assert len(rows_of(path)) == 1
    logger.close()
    logger.close()
    with pytest.raises(StorageError, match="closed"):
        logger.log("distil", 2, {"kd": 1.0})


def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = JsonlLogger(tmp_path / "log.jsonl")
    logger.log("distil", 1, {"kd": 1.0})

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    assert logger._file is not None
    logger._file.close()
    monkeypatch.setattr(logger, "_file", Full())
    with pytest.raises(StorageError, match="No space left"):
        logger.log("distil", 2, {"kd": 1.0})


def test_make_loggers_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_loggers(["csv", "jsonl", "csv"], tmp_path, {}) as made:
        assert len(made.loggers) == 2
        made.log("distil", 1, {"kd": 1.0})
        made.summary({"metrics": {}})
    assert rows_of(tmp_path / "log.jsonl") == rows_of(tmp_path / "metrics.csv") == rows_of(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'jsonl'"):
        make_loggers(["json"], tmp_path, {})
    monkeypatch.setenv("RANK", "1")
    assert make_loggers(["csv"], tmp_path / "other", {}).loggers == []
    assert not (tmp_path / "other").exists()


def test_a_missing_tracker_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtra, match=r"limbeck\[tracking\]"):
        make_loggers(["jsonl", "trackio"], tmp_path, {})


def test_tensorboard_keeps_stages_apart_and_purges_on_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    def events(stage: str) -> list[Event]:
        found = []
        for file in sorted((tmp_path / "tensorboard" / stage).iterdir(), key=lambda p: p.stat().st_mtime_ns):
            data, at = file.read_bytes(), 0
            while at < len(data):  # length (8), checksum (4), record, checksum (4)
                size = int.from_bytes(data[at : at + 8], "little")
                event = Event()
                event.ParseFromString(data[at + 12 : at + 12 + size])
                found.append(event)
                at += 16 + size
        return found

    for first in (0, 20):
        with make_loggers(["tensorboard"], tmp_path, {}) as made:
            run(made, first, 40)
            made.summary({"metrics": {"student": {"accuracy": 0.9}}})
    scalars = [(e.step, v.tag) for e in events("distil") for v in e.summary.value]
    assert (10, "kd") in scalars and (40, "valid/accuracy") in scalars
    assert 30 in [e.step for e in events("distil") if e.HasField("session_log")]
    assert next(v.tag for e in events("result") for v in e.summary.value) == "student/accuracy"


class FakeTracker:
    """Stands for a tracker of accelerate."""

    made: ClassVar[list[FakeTracker]] = []
    uris: ClassVar[list[str]] = []

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options = project, options
        self.rows: list[tuple[dict[str, Any], int | None]] = []
        self.broken = self.finished = False
        self.tracker = types.SimpleNamespace(
            info=types.SimpleNamespace(run_id=options.get("run_id") or "m1"), define_metric=lambda *a, **k: None
        )
        FakeTracker.made.append(self)

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self.rows.append((values, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> type[FakeTracker]:
    uris: list[str] = []
    accelerate = types.ModuleType("accelerate")
    accelerate.PartialState = lambda: None  # type: ignore[attr-defined]
    tracking = types.ModuleType("accelerate.tracking")
    for name in ("WandBTracker", "MLflowTracker", "TrackioTracker"):
        setattr(tracking, name, FakeTracker)
    monkeypatch.setitem(sys.modules, "accelerate", accelerate)
    monkeypatch.setitem(sys.modules, "accelerate.tracking", tracking)
    for name in logs.TRACKERS:
        module = types.ModuleType(name)
        module.set_tracking_uri = uris.append  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    FakeTracker.made, FakeTracker.uris = [], uris
    return FakeTracker


def test_trackers_get_rows_configuration_and_result(tmp_path: Path, trackers: type[FakeTracker]) -> None:
    config = {"task": {"use": "classification"}, "seed": 0}
    for _ in range(2):  # the second time is a resumed run: same identity
        made = make_loggers(["wandb", "mlflow", "trackio"], tmp_path, config)
        made.log("distil", 10, {"kd": 0.5})
        made.summary({"metrics": {"student": {"accuracy": 0.9}}, "wall_seconds": 3.0})
        made.close()
    wandb, mlflow, trackio, *again = trackers.made
    assert wandb.config == {"task/use": "classification", "seed": 0}
    assert wandb.rows[0] == ({"distil/kd": 0.5, "distil/step": 10}, None)
    assert mlflow.rows[0] == trackio.rows[0] == ({"distil/kd": 0.5}, 10)
    assert mlflow.rows[1] == ({"result/student/accuracy": 0.9, "result/wall_seconds": 3.0}, 0)
    assert all(t.finished for t in trackers.made)
    assert trackers.uris[0] == (tmp_path.parent / "mlruns").as_uri()  # nothing leaves the machine by default
    assert again[0].options["id"] == wandb.options["id"]
    assert again[1].options["run_id"] == "m1" and mlflow.options["run_id"] is None


def test_a_tracker_that_fails_does_not_cost_the_run(
    tmp_path: Path, trackers: type[FakeTracker], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_loggers(["trackio", "jsonl"], tmp_path, {})
    trackers.made[0].broken = True
    for step in range(3):
        made.log("distil", step, {"kd": 0.5})
    made.close()
    assert capsys.readouterr().err.count("the run goes on without it") == 1
    assert len(rows_of(tmp_path)) == 3


def test_a_tracker_that_cannot_start_is_refused_at_the_door(
    tmp_path: Path, trackers: type[FakeTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: FakeTracker) -> None:
        raise RuntimeError("no API key\nmore")

    monkeypatch.setattr(FakeTracker, "start", start)
    with pytest.raises(ConfigError, match=r"loggers: wandb could not start: no API key; .*WANDB_MODE=offline"):
        make_loggers(["wandb"], tmp_path, {})
