"""Trackers of runs, when they are named: Weights & Biases, MLflow, Trackio."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.engine.logs import flatten, number
from limbeck.engine.terminal import say
from limbeck.errors import ConfigError, first_line, require
from limbeck.storage.disk import atomic_write
from limbeck.storage.plain import read_json


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
            known = read_json(ids) if ids.is_file() else {}
        except (OSError, ValueError):
            known = {}
        run = known.get(self.name)
        try:
            with _same_threads():
                tracker, run = self._open(run)
                tracker.store_init_configuration(self._config)
        except Exception as error:
            raise ConfigError(
                "loggers",
                f"{self.name} could not start: {first_line(error)}",
                remedy="set it up by its own means (for wandb without network: WANDB_MODE=offline), "
                f"or leave {self.name} out of loggers",
            ) from None
        self._tracker = tracker
        if known.get(self.name) != run:
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
            say(f"limbeck: {self.name} failed ({error}); the run goes on without it", error=True)

    def resume(self, stage: str, step: int) -> None:
        """Nothing: trackers keep what they were given, with its step."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send the values as ``stage/name``."""
        sent: dict[str, Any] = {f"{stage}/{name}": number(value) for name, value in values.items()}
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
                say(f"limbeck: {self.name} could not finish ({error})", error=True)
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
