"""What a run made, in a format that runs elsewhere: written, checked against torch, and its price reported.

``safetensors``: the student alone. ``hub``: the folder its library reads (transformers, diffusers, timm). ``onnx``: a graph
with a free batch axis, compared with torch through onnxruntime as it is written. ``onnx-int8``: the same, quantised with
the run's own training items. Data sets export as ``images``, ``parquet`` or ``safetensors``,
tables as ``csv`` or ``parquet``. Preprocessing and the label list lie beside the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.errors import ConfigError, require
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.random import own_generators
from limbeck.storage.store import atomic_write, check_writable

if TYPE_CHECKING:
    from limbeck.grammar.task import Task
    from limbeck.run.restoring import Restored

FORMATS = ("safetensors", "hub", "onnx", "onnx-int8", "images", "parquet", "csv")


@own_generators()
def export(
    run_folder: Path,
    format: str = "safetensors",
    out: Path | None = None,
    checkpoint: Path | int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write what a run made in another format.

    Args:
        run_folder: a run's folder, finished or interrupted.
        format: see the module.
        out: where to; ``RUN/export/FORMAT`` when not given.
        checkpoint: a checkpoint's folder or number, instead of the newest.
        say: told what the export is worth, where that is measured.

    Returns:
        The folder that was written. Facts about it (bytes, accuracy, latency, error against torch) are added to the
        run's ``result.json`` and report.

    Raises:
        ConfigError: an unknown format, or one that this kind of artifact does not have.
        MissingExtra: onnx and onnxruntime are not installed.
    """
    from limbeck.run import restore

    if format not in FORMATS:
        raise ConfigError.unknown("--format", format, FORMATS, "format")
    run_folder = Path(run_folder)
    restored = restore(run_folder, _number(run_folder, checkpoint))
    artifact, bench = restored.artifact, restored.bench
    check_format(format, bench.task)
    out = Path(out) if out is not None else run_folder / "export" / format
    check_writable(out)
    facts: dict[str, Any]
    if format.startswith("onnx"):
        from limbeck.export.onnx import write_onnx

        assert isinstance(artifact, NetworkArtifact)
        facts = write_onnx(artifact, bench, out, int8=format == "onnx-int8")
    elif format == "hub":
        assert isinstance(artifact, NetworkArtifact)
        facts = _write_hub(artifact, out)
    else:
        final = checkpoint is None and restored.finished
        facts = {
            **_write_native(artifact, format, out),
            **_scored(restored, format, out, run_folder if final else None),
        }
    facts = {"path": str(out), **facts}
    if "note" in facts:
        say(f"{format}: {facts['note']}")
    if checkpoint is None and restored.finished:
        _report(run_folder, format, facts)
    return out


def check_format(format: str, task: Task, argument: str = "--format") -> None:
    """Whether a student of this task can be written so, asked before anything is trained.

    Raises:
        ConfigError: an unknown format, or one that this kind of student does not have.
        MissingExtra: what writes it is not installed.
    """
    if format not in FORMATS:
        raise ConfigError.unknown(argument, format, FORMATS, "format")
    if format not in task.formats:
        name = task.config.get("use", type(task).__name__)
        raise ConfigError(
            argument, f"a student of the task {name} is not written so", given=format, expected=", ".join(task.formats)
        )
    if format.startswith("onnx"):
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, "export", "writing ONNX")


def _number(run_folder: Path, checkpoint: Path | int | None) -> int | None:
    if checkpoint is None or isinstance(checkpoint, int):
        return checkpoint
    digits = Path(checkpoint).name.removeprefix("step-")
    own = Path(checkpoint).parent in (Path(), Path("checkpoints")) or (
        Path(checkpoint).resolve().parent == (run_folder / "checkpoints").resolve()
    )
    if not digits.isdigit() or not own:
        raise ConfigError(
            "--checkpoint", given=str(checkpoint), expected="a folder checkpoints/step-NUMBER of the run, or a number"
        )
    return int(digits)


def _timm(module: Any) -> bool:
    return hasattr(module, "pretrained_cfg") and type(module).__module__.startswith("timm.")


def _write_native(artifact: Artifact, format: str, out: Path) -> dict[str, Any]:
    if isinstance(artifact, NetworkArtifact) or not hasattr(artifact, "export"):
        artifact.save(out)
    else:
        artifact.export(format, out)
    return {"bytes": _bytes(out)}


def _write_hub(artifact: NetworkArtifact, out: Path) -> dict[str, Any]:
    module, model = artifact.built.module, artifact.built.model
    if _timm(module):
        from timm.models import save_for_hf

        config = {"label_names": artifact.built.labels} if artifact.built.labels else {}
        save_for_hf(module, str(out), model_config=config, safe_serialization=True)
    else:
        model.save(module, out, artifact.built.labels)
    about(artifact, out)
    return {"bytes": _bytes(out)}


def about(artifact: NetworkArtifact, out: Path) -> None:
    """Labels and preprocessing beside an exported network."""
    atomic_write(out / "student.json", json.dumps(artifact.about(), indent=2).encode())


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _scored(restored: Restored, format: str, out: Path, run_folder: Path | None) -> dict[str, Any]:
    """What an export is worth as it lies there, beside what it was worth as it was made; nothing where it is not read back.

    Args:
        restored: the run.
        format, out: of the export.
        run_folder: of a finished run, whose own score is taken; ``None`` scores what was made again.
    """
    from limbeck.grammar.evaluator import main_metric
    from limbeck.report.metrics import metric_of
    from limbeck.run import read_result
    from limbeck.run.rows import evaluator_of

    artifact, bench = restored.artifact, restored.bench
    found = artifact.opened(format, out)
    if found is None:
        return {}
    mine, theirs = artifact.state(), found.state()
    if mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine):
        return {"note": "read back: every value is as it was made"}
    evaluator = evaluator_of(restored.recipe)
    name, _ = main_metric(evaluator, bench.task)
    said = read_result(run_folder / "result.json")["metrics"]["student"] if run_folder is not None else {}
    made = said[name] if name in said else evaluator.score(artifact, bench)[name]
    now = evaluator.score(found, bench)[name]
    metric, lost = metric_of(name), artifact.lost(format)
    told = f"scored as it lies there: {metric.label} {metric.value(now)}, as it was made {metric.value(made)}"
    return {**lost, name: now, f"{name}_as_made": made, "note": "; ".join(filter(None, [told, lost.get("note")]))}


def _report(run_folder: Path, format: str, facts: dict[str, Any]) -> None:
    path = run_folder / "result.json"
    if not path.is_file():
        return
    from limbeck.run import read_result

    result = read_result(path)
    result.setdefault("exports", {})[format] = facts
    atomic_write(path, (json.dumps(result, indent=2) + "\n").encode())
    from limbeck.report import write_report

    write_report(run_folder)


__all__ = ["FORMATS", "about", "check_format", "export"]
