"""What a run made, in a format that runs elsewhere: written, checked against torch, and its price reported.

``safetensors``: the student alone. ``hub``: the folder its library reads (transformers, diffusers, timm), with a model card.
``onnx``: a graph with a free batch axis that takes plain pixels or rows, compared with torch through onnxruntime as it is
written. ``onnx-int8``: the same, quantised with the run's own training items. Data sets export as ``images``, ``parquet`` or
``safetensors``, tables as ``csv`` or ``parquet``. Beside each lie ``student.json`` (preprocessing, labels) and ``use.py``.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from limbeck.engine import interrupt
from limbeck.errors import ConfigError, Stopped, require
from limbeck.export import cost, use
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.random import own_generators
from limbeck.storage.store import atomic_write, check_writable

if TYPE_CHECKING:
    from limbeck.export.onnx import Normalise, Pixels
    from limbeck.grammar.task import Task
    from limbeck.run.restoring import Restored

FORMATS = ("safetensors", "hub", "onnx", "onnx-int8", "images", "parquet", "csv")

Say = Callable[[str], None]

Weights = Literal["best", "last"]


def silent(text: str) -> None:
    """Say nothing."""


@own_generators()
def export(
    run_folder: Path,
    format: str = "safetensors",
    out: Path | None = None,
    checkpoint: Weights | Path | int | None = None,
    say: Say = silent,
    normalise: Normalise = "inside",
    pixels: Pixels = "float",
    licence: str = "",
    progress: Any = None,
    teacher: bool = False,
    held: Restored | None = None,
) -> Path:
    """Write what a run made in another format.

    Args:
        run_folder: a run's folder, finished or interrupted.
        format: see the module.
        out: where to; ``RUN/export/FORMAT`` when not given.
        checkpoint: which weights: ``last`` (the newest, also when ``None``); ``best``, those that did best on the
            validation split while the run went (``engine.eval_every``); or a checkpoint's number or folder.
        say: told what the export costs, and warned where it is slower or does worse.
        normalise: whether an ONNX graph normalises its inputs itself.
        pixels: what an ONNX graph takes: ``float`` in [0, 1], or ``uint8``.
        licence: for the model card of ``hub``, as the hub calls it.
        progress: a `limbeck.engine.progress.Progress` that is told what is being done.
        teacher: time the teacher beside the ONNX graph, in torch and as a graph of its own.
        held: the run as its own process holds it; read back from its folder by default.

    Returns:
        The folder that was written. Facts about it (bytes, the task's metric and latency before and after, error against
        torch) are added to the run's ``result.json`` and report.

    Raises:
        ConfigError: an unknown format, or one that this kind of artifact does not have.
        MissingExtra: onnx and onnxruntime are not installed.
    """
    from limbeck.run import restore

    if format not in FORMATS:
        raise ConfigError.unknown("--format", format, FORMATS, "format")
    for name, given, usual in (("--normalise", normalise, "inside"), ("--input", pixels, "float")):
        if given != usual and not format.startswith("onnx"):
            raise ConfigError(name, "is about ONNX graphs", given=given, expected="--format onnx or onnx-int8")
    if teacher and not format.startswith("onnx"):
        raise ConfigError("--teacher", "is about ONNX graphs", expected="--format onnx or onnx-int8")
    run_folder = Path(run_folder)
    which = _which(run_folder, checkpoint)
    work = _Work(progress)
    if held is None:
        with work.doing("reading the run"):
            restored = restore(run_folder, which)
    else:
        restored = held
    artifact = restored.artifact
    check_format(format, restored.bench.task)
    _check_artifact(format, artifact)
    out = Path(out) if out is not None else run_folder / "export" / format
    check_writable(out)
    last = which in (None, "last") and restored.finished
    facts = _write(restored, format, out, run_folder if last else None, work, normalise, pixels, teacher)
    weights = _weights(restored, which)
    facts = {"path": str(out), **({} if last else {"weights": weights}), **facts}
    if format == "hub":
        _card(run_folder, restored, out, facts, "" if last else weights, licence)
    metric, higher = _metric(restored)
    if isinstance(artifact, NetworkArtifact):
        say(cost.told(format, facts, metric))
    if "note" in facts:
        say(f"{format}: {facts['note']}")
    facts["warnings"] = cost.warnings_of(format, facts, metric, higher)
    for warning in facts["warnings"]:
        say(f"warning: {warning}")
    if not facts["warnings"]:
        del facts["warnings"]
    if last or which == "best":
        _report(run_folder, format if last else f"{format} ({weights})", facts)
    return out


class _Work:
    """What an export is doing, shown while it does it.

    Args:
        progress: where it is shown; ``None`` shows nothing.
    """

    EVERY = 0.5  # seconds between signs of life

    def __init__(self, progress: Any) -> None:
        self.progress = progress

    @contextlib.contextmanager
    def doing(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show what is done inside, with a sign of life twice a second; gives a function that is told of items done.

        Raises:
            Stopped: somebody asked for that while items were counted, or before.
        """
        self.stop()
        if self.progress is None:
            yield self._count
            return
        self.progress.stage(what, total)
        done, lock = threading.Event(), threading.Lock()

        def alive() -> None:
            while not done.wait(self.EVERY):
                with lock:
                    self.progress.advance(0)

        def count(n: int) -> None:
            self.stop()
            with lock:
                self.progress.advance(n)

        thread = threading.Thread(target=alive, daemon=True)
        thread.start()
        try:
            yield count
        finally:
            done.set()
            thread.join()

    def _count(self, n: int) -> None:
        self.stop()

    @staticmethod
    def stop() -> None:
        """Leave where a signal asked for it: an export is written again as a whole."""
        signum = interrupt.requested()
        if signum is not None:
            raise Stopped(signum, "nothing of the run has changed; type the same command again")


def _write(
    restored: Restored,
    format: str,
    out: Path,
    run_folder: Path | None,
    work: _Work,
    normalise: Normalise,
    pixels: Pixels,
    teacher: bool,
) -> dict[str, Any]:
    """Write the format, its ``use.py``, and say what it costs."""
    artifact, task = restored.artifact, restored.bench.task
    if not isinstance(artifact, NetworkArtifact):
        with work.doing(f"writing {format}"):
            artifact.export(format, out) if hasattr(artifact, "export") else artifact.save(out)
            use.write_use(out, _script_of_data(format, out))
        with work.doing("scoring what was written"):
            return {"bytes": _bytes(out), **_scored(restored, format, out, run_folder)}
    known = _known(run_folder)
    metric, _ = _metric(restored)
    facts: dict[str, Any]
    if format.startswith("onnx"):
        from limbeck.export.onnx import write_onnx

        again = _onnx(artifact, out, format == "onnx-int8", normalise, pixels, work, write_onnx)
        made, facts = again
        total = len(artifact.judge(task).test)
        after: dict[str, float] = {}
        try:
            with work.doing("scoring the graph on the test split", total) as each:
                after = cost.score(made, task, each)
        except ConfigError as error:  # features, which say nothing by themselves
            facts["note"] = f"not scored: {error.problem}"
        before = {metric: known[metric]} if metric in known and metric in after else {}
        if metric in after and not before:
            with work.doing("scoring the network as it was made", total) as each:
                before = cost.score(artifact, task, each)
        timed = {"before": artifact, "now": made}
        with contextlib.ExitStack() as kept:
            if teacher:
                timed |= _teachers(restored, Path(kept.enter_context(tempfile.TemporaryDirectory())), work, write_onnx)
            with work.doing("timing them in turns") as each:
                taken = cost.latencies(task, timed, lambda: each(0))
        return {
            **facts,
            "bytes_before": artifact.size()["bytes"],
            **after,
            **({f"{metric}_before": before[metric]} if metric in before else {}),
            **cost.timed(taken),
        }
    with work.doing(f"writing {format}"):
        library = _folder(artifact, format, out)
        _limit_tokenizer(out)
        use.write_use(out, _script_of(artifact, library, out))
    facts = {"bytes": _bytes(out), "library": library}
    with work.doing("reading it back"):
        same = cost.plain(artifact.built) and cost.same_weights(_bare(artifact.built.module), out)
    if not known and metric:
        with contextlib.suppress(TypeError), work.doing("scoring the weights", len(artifact.judge(task).test)) as each:
            known = cost.score(artifact, task, each)
    facts |= {k: v for k, v in known.items() if isinstance(v, float)}
    if same:
        facts["note"] = "read back: every weight is as it was made, so metric and speed are those of the run"
    return facts


def _teachers(restored: Restored, place: Path, work: _Work, write: Any) -> dict[str, NetworkArtifact]:
    """The run's teacher in torch, and written as a graph of its own, to be timed.

    Raises:
        ConfigError: there is none, it answers something else, or it cannot be written as a graph.
    """
    bench = restored.bench
    if bench.teacher is None or not isinstance(bench.teacher.module, nn.Module):
        raise ConfigError("--teacher", "the run has no teacher that is a network of torch's", remedy="leave it out")
    own = NetworkArtifact(bench.task, bench.teacher)
    with work.doing("writing the teacher's graph"):
        graph, _ = write(own, place)
    return {"teacher_before": own, "teacher": graph}


def _onnx(
    artifact: NetworkArtifact, out: Path, int8: bool, normalise: Normalise, pixels: Pixels, work: _Work, write: Any
) -> tuple[NetworkArtifact, dict[str, Any]]:
    """The graph with its metadata, its tokenizer and ``use.py``."""
    stack = contextlib.ExitStack()

    def say(what: str) -> None:
        stack.close()
        stack.enter_context(work.doing(what))

    with stack:
        made, facts = write(artifact, out, int8, normalise, pixels, say)
        about = json.loads((out / "student.json").read_text(encoding="utf-8"))
        if about["preprocessing"]["kind"] == "text":
            from limbeck.models.pretrained import quiet

            with quiet():
                artifact.task.tokenizer.save_pretrained(out / about["preprocessing"]["tokenizer"]["folder"])  # type: ignore[attr-defined]
            _limit_tokenizer(out, about)
        schedule = getattr(artifact, "schedule", None)
        if schedule is not None:
            steps = min(artifact.students.steps)  # type: ignore[attr-defined]
            levels = schedule.logsnr(torch.arange(steps, 0, -1, dtype=torch.float64) / steps)
            kind = getattr(artifact.built.module, "mean_type", getattr(artifact.built.module, "kind", "v"))
            shape = list(artifact.shape)  # type: ignore[attr-defined]
            about["onnx"]["sampler"] = {"mean_type": kind, "logsnr": levels.tolist(), "shape": shape}
            use.write_about(out, about)
        use.write_use(out, use.onnx_script(about))
    return made, facts


def _bare(module: Any) -> nn.Module:
    """The network that a library wrote: of a denoiser of diffusers the network in it."""
    merge = getattr(module, "merge_and_unload", None)
    if callable(merge):
        import copy

        return copy.deepcopy(module).merge_and_unload()
    return module.net if type(module).__name__ == "DiffusersDenoiser" else module


def _metric(restored: Restored) -> tuple[str, bool]:
    """What decides of the task's own metrics, and its direction."""
    from limbeck.grammar.evaluator import main_metric
    from limbeck.run.rows import evaluator_of

    evaluator, task = evaluator_of(restored.recipe), restored.bench.task
    if type(evaluator).__name__ == "Direct" or not isinstance(restored.artifact, NetworkArtifact):
        return main_metric(evaluator, task)
    return task.primary, task.higher_is_better  # graphs are evaluated by the task itself


def _known(run_folder: Path | None) -> dict[str, float]:
    """What a finished run's report says of its student."""
    if run_folder is None or not (run_folder / "result.json").is_file():
        return {}
    from limbeck.run import read_result

    found = (read_result(run_folder / "result.json").get("metrics") or {}).get("student") or {}
    return {k: float(v) for k, v in found.items() if isinstance(v, (int, float))}


def _weights(restored: Restored, which: Weights | int | None) -> str:
    """Which weights were exported, in words."""
    if which == "best":
        return f"best on validation, step {restored.step}"
    return f"step {restored.step} of {restored.stage}" if isinstance(which, int) else "the newest checkpoint"


def _folder(artifact: NetworkArtifact, format: str, out: Path) -> str:
    """Write ``safetensors`` or ``hub``; returns the library that opens it."""
    from limbeck.export.hub import library_of, write_hub

    if format == "hub":
        return write_hub(artifact, out)
    artifact.save(out)
    return library_of(out / "student") if (out / "student" / "config.json").is_file() else "limbeck"


def _limit_tokenizer(out: Path, about: dict[str, Any] | None = None) -> None:
    """Rows of an encoder are as long as in training: said in the tokenizer's own file, where pipelines look for it."""
    path = out / "student.json"
    if about is None:
        about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    said = about.get("preprocessing") or {}
    if "tokenizer" not in said or "before" in said:  # a language model goes on beyond the length of training
        return
    config = out / said["tokenizer"]["folder"] / "tokenizer_config.json"
    if config.is_file():
        held = json.loads(config.read_text(encoding="utf-8"))
        held["model_max_length"] = said["tokenizer"]["max_length"]
        atomic_write(config, json.dumps(held, indent=2).encode())


def _script_of(artifact: NetworkArtifact, library: str, out: Path) -> str:
    """``use.py`` of a network's folder."""
    model, task = artifact.built.model, artifact.task
    about = json.loads((out / "student.json").read_text(encoding="utf-8")) if (out / "student.json").is_file() else {}
    if library == "timm":
        return use.timm_script(about)
    if library == "diffusers" and (out / "model_index.json").is_file():
        return use.DIFFUSERS.replace("STEPS", str(min(artifact.students.steps)))  # type: ignore[attr-defined]
    if (out / "sampler.json").is_file():
        empty = getattr(artifact.built.module, "null_condition", None)
        words = isinstance(empty, torch.Tensor)
        if words and getattr(model, "name", None):
            steps = str(min(artifact.students.steps))  # type: ignore[attr-defined]
            return use.PROMPTED.replace("PIPELINE", model.name).replace("STEPS", steps)
        return use.SAMPLER
    place = "." if (out / "config.json").is_file() else "student"
    if library == "transformers":
        pipeline = _pipeline(out / place)
        if pipeline:
            return use.pipeline_script(pipeline, place, about)
        return use.FEATURES.replace("FOLDER", place)
    if type(model).__name__ == "Torchvision" and about.get("task", {}).get("form") == "classes":
        state = (out / "student.safetensors").is_file()
        if state and about["preprocessing"]["kind"] == "image":
            width = len(artifact.built.labels or []) or task.needs.outputs
            return use.torchvision_script(about, model.name, model.options or {}, width)
    if artifact.kind == "scene" or task.needs.form == "scene":
        return use.tensors_script("student.safetensors")
    return use.LOADED


def _pipeline(folder: Path) -> str:
    """The pipeline of transformers that opens a folder; empty where none of ours does."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in config.get("architectures") or ():
        for ending, pipeline in (
            ("ForImageClassification", "image-classification"),
            ("ForSemanticSegmentation", "image-segmentation"),
            ("ForSequenceClassification", "text-classification"),
            ("ForMaskedLM", "fill-mask"),
            ("ForCausalLM", "text-generation"),
            ("LMHeadModel", "text-generation"),
        ):
            if str(name).endswith(ending):
                return pipeline
    return ""


def _script_of_data(format: str, out: Path) -> str:
    scripts = {"images": use.IMAGES, "parquet": use.PARQUET, "csv": use.CSV}
    return scripts.get(format) or use.tensors_script("student.safetensors")


def _card(run_folder: Path, restored: Restored, out: Path, facts: dict[str, Any], weights: str, licence: str) -> None:
    """``README.md`` of a hub folder."""
    from limbeck.export.card import write_card
    from limbeck.recipe.recipe import load_tree
    from limbeck.run import read_result

    path = run_folder / "result.json"
    result = read_result(path) if path.is_file() else {}
    about = json.loads((out / "student.json").read_text(encoding="utf-8"))
    measured = set((result.get("metrics") or {}).get("student") or {}) | {_metric(restored)[0]}
    metrics = {k: v for k, v in facts.items() if k in measured and isinstance(v, float)}
    write_card(out, result, load_tree(run_folder / "config.yaml"), about, facts["library"], metrics, weights, licence)


def _check_artifact(format: str, artifact: Artifact) -> None:
    """Refuse what this kind of artifact cannot be written as, whatever the task's students can."""
    known = artifact.formats
    if format not in known:
        raise ConfigError(
            "--format",
            f"the run made a {artifact.kind}, which is not written so",
            given=format,
            expected=", ".join(known),
        )


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


def _which(run_folder: Path, checkpoint: Weights | Path | int | None) -> Weights | int | None:
    if checkpoint is None or isinstance(checkpoint, int) or checkpoint in ("best", "last"):
        return checkpoint
    digits = Path(checkpoint).name.removeprefix("step-")
    own = Path(checkpoint).parent in (Path(), Path("checkpoints")) or (
        Path(checkpoint).resolve().parent == (run_folder / "checkpoints").resolve()
    )
    if not digits.isdigit() or not own:
        raise ConfigError(
            "--checkpoint",
            given=str(checkpoint),
            expected="best, last, a number, or a folder checkpoints/step-NUMBER of the run",
        )
    return int(digits)


def _bytes(folder: Path) -> int:
    """Bytes of what was written, but for the script and the card."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name not in ("use.py", "README.md"))


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


__all__ = ["FORMATS", "check_format", "export"]
