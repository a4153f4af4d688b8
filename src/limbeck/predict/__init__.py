"""Use what was distilled: open a run or an export, use it on your own files, evaluate it on other data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.engine.batches import to_device
from limbeck.engine.progress import Progress
from limbeck.errors import ConfigError
from limbeck.grammar.answers import Answer
from limbeck.grammar.method import Built
from limbeck.grammar.random import own_generators
from limbeck.grammar.signal import evaluating
from limbeck.grammar.task import Task
from limbeck.predict import opening
from limbeck.predict.answered import Predictions
from limbeck.recipe.trust import trusting


class Loaded:
    """A trained network (or sampler, or scene), ready to answer. Made by `limbeck.load`.

    Attributes:
        path: the folder that it was read from.
        kind: ``network``, ``sampler``, ``scene``; ``dataset`` and ``table`` are no networks and answer nothing.
        about: what its ``student.json`` says: labels, preprocessing, how it is built, its task.
        module: the ``torch.nn.Module``; of an ONNX file what runs it.
        device: where it answers.
        notes: what was assumed while it was opened.
        judged: after `evaluate`, how many items of which split were evaluated.
    """

    def __init__(
        self, place: opening.Place, kind: str, task: Task | None, built: Built, device: torch.device, made: Any = None
    ) -> None:
        self.path, self.about, self.kind, self.device = place.folder, place.about, kind, device
        self.task, self.built, self.notes, self.made = task, built, list(place.notes), made
        self._place = place
        self.judged: dict[str, Any] = {}

    @property
    def module(self) -> Any:
        """The network itself."""
        return self.built.module

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of `Predictions.scores`; empty where there are none."""
        found = (self.task.labels if self.task is not None else None) or self.about.get("labels")
        return [str(n) for n in found or []]

    def to(self, device: str | torch.device) -> Loaded:
        """Move it to a device."""
        self.device = opening.pick(device)
        if isinstance(self.module, nn.Module):
            self.module.to(self.device)
        return self

    def __repr__(self) -> str:
        name = self.task.config.get("use", type(self.task).__name__) if self.task is not None else self.kind
        count = f", {len(self.labels)} classes" if self.labels else ""
        return f"Loaded({str(self.path)!r}: {name}{count}, {type(self.module).__name__} on {self.device})"

    # ---------------------------------------------------------------------------------------------------------- answers
    def predict(
        self,
        inputs: Any,
        *,
        batch: int = 64,
        progress: bool = False,
        draw: str | Path | None = None,
        **options: Any,
    ) -> Predictions:
        """What the network answers, for each item.

        Args:
            inputs: what the network takes, or a list of it: image files or folders of them, arrays ``[N, C, H, W]`` or
                ``[N, H, W, C]`` (bytes, or floats in [0, 1]), PIL images; rows ``[N, F]``, a DataFrame, a csv, jsonl or parquet
                file; texts, pairs of texts, text files; graphs. Of a sampler: class names, or how many samples; of a
                scene: how many views around it. Images are brought to the size of the training images as these were,
                and normalised as the network was trained.
            batch: items at a time.
            progress: show how far it is, on standard error.
            draw: a folder in which every item is drawn with its answer.
            **options: ``top`` (classes, told with their probabilities); ``tokens`` (how many a language model writes);
                ``threshold`` (of the scores of boxes, 0.3); of a sampler ``count``, ``steps``, ``guidance``, ``seed``.

        Returns:
            A sequence of dictionaries; ``.labels``, ``.scores``, ``.to_frame()``, ``.save(path)``.

        Raises:
            DataError: what cannot be read, or is of another kind than the network takes.
            ConfigError: this kind of student answers nothing.
        """
        return Predictions(list(self.stream(inputs, batch=batch, progress=progress, draw=draw, **options)), self.labels)

    def stream(
        self, inputs: Any, *, batch: int = 64, progress: bool = False, draw: str | Path | None = None, **options: Any
    ) -> Iterator[Answer]:
        """As `predict`, one answer after another."""
        if batch < 1:
            raise ConfigError("batch", given=batch, expected="1 or more")
        check_options(options)
        from limbeck.predict.drawings import Drawings
        from limbeck.predict.makers import maker

        drawings = Drawings(draw) if draw is not None else None
        with Progress(enabled=progress) as shown, own_generators():
            make = maker(self, inputs, batch, options)
            if make is not None:
                total, parts = make
                shown.stage("predict", total)
                for name, answer in parts:
                    if drawings is not None:
                        drawings.keep(name, answer, answer.tensors.get("picture"))
                    shown.advance()
                    yield answer
                return
            assert self.task is not None
            asked = self.task.asked(inputs, self.about.get("preprocessing") or {})
            shown.stage("predict", len(asked))
            for ids in torch.arange(len(asked)).split(batch):
                # a caller may train between two answers: modes are set for a batch alone
                with torch.no_grad(), evaluating([self.module]):
                    found = self.task.reply(self.built, to_device(asked.fetch(ids), self.device), asked, ids, **options)
                for i, answer in zip(ids.tolist(), found, strict=True):
                    answer.row = {"input": asked.names[i], **answer.row}
                    if drawings is not None:
                        drawings.keep(asked.names[i], answer, self.task.picture_of(answer, asked, i))
                shown.advance(len(ids))
                yield from found

    # ---------------------------------------------------------------------------------------------------------- evaluation
    def evaluate(self, *overrides: str, split: str | None = None, progress: bool = False) -> dict[str, float]:
        """The task's metrics on a split of labelled data.

        Args:
            *overrides: settings of the task as on the command line, ``task.data=folder:photos``; without any, a run is
                evaluated on its own data.
            split: ``test`` (by default), ``valid`` or ``train``. Where other data name no test split, all of their items
                are evaluated.
            progress: say what is read, on standard error.

        Raises:
            ConfigError: an export was given no data; what was made is no network.
            DataError: data that cannot be read, or have classes that the network does not know.
        """
        from limbeck.predict.judging import judge

        return judge(self, overrides, split, progress)


OPTIONS = ("top", "tokens", "threshold", "count", "steps", "guidance", "seed")


def check_options(options: dict[str, Any]) -> None:
    """Refuse an option that nothing knows."""
    for name in options:
        if name not in OPTIONS:
            raise ConfigError.unknown(name, name, OPTIONS, "option of predict")


def load(
    path: str | Path,
    checkpoint: str | int | None = None,
    *,
    device: str | torch.device | None = None,
    trust: bool = False,
    module: nn.Module | None = None,
) -> Loaded:
    """Open what was distilled: the folder of a run, of an export in any format, or an ONNX file.

    Args:
        path: the folder or file.
        checkpoint: of a run: ``last`` (by default), ``best`` (on the validation split), or a checkpoint's number.
        device: where it answers; the best there is by default. ONNX files run on the CPU.
        trust: let the folder run code that it names and that was not run here before.
        module: the network itself, where ``distill`` was given one and the folder cannot say how it is built; its weights
            are replaced by those in the folder.

    Raises:
        ConfigError: there is no trained network; its folder does not say how it is built.
        Untrusted: it names code that was not run here before.
        MissingExtra: an ONNX file, and onnxruntime is not installed.

    Example:
        >>> import limbeck
        >>> student = limbeck.load("runs/birds")  # doctest: +SKIP
        >>> student.predict(["a.jpg", "b.jpg"]).labels  # doctest: +SKIP
        ['wren', 'robin']
    """
    with trusting(trust), own_generators():
        return _load(opening.find(path), checkpoint, device, module)


def _load(
    place: opening.Place, checkpoint: str | int | None, device: str | torch.device | None, module: nn.Module | None
) -> Loaded:
    number = _number(checkpoint)
    if number is not None and not place.run:
        raise ConfigError(
            "--checkpoint",
            f"{place.folder} is an export, which holds one student",
            given=checkpoint,
            remedy="name the run",
        )
    if (isinstance(number, int) or (place.run and not place.about)) and number != "best":
        return _restored(place, number if isinstance(number, int) else None, device)
    kind = str(place.about.get("kind") or ("sampler" if (place.folder / "sampler.json").is_file() else "network"))
    if (place.folder / "sampler.json").is_file() and place.onnx is None:
        kind = "sampler"
    where = torch.device("cpu") if place.onnx is not None else opening.pick(device)
    if kind in ("dataset", "table"):
        return Loaded(place, kind, None, Built(None), where)
    if kind == "sampler":
        if place.onnx is not None:
            raise ConfigError(
                "RUN", "an ONNX file of a sampler is its network alone, which draws nothing by itself",
                given=str(place.onnx), remedy="name the run, or its export as safetensors",
            )  # fmt: skip
        from limbeck.tasks.sampler import SamplerArtifact

        made = SamplerArtifact.load(place.folder)
        loaded = Loaded(place, kind, None, made.built, where, made)
    else:
        task = opening.task_of(place)
        if kind != "scene" and type(task).reply is Task.reply:  # what it makes is evaluated, and answers nothing
            return Loaded(place, "other", None, Built(None), where)
        task.recall(place.about)
        loaded = Loaded(place, kind, task, opening.network(place, task, module), where)
    if number == "best":
        _best(loaded)
    for group in _modules(loaded):
        group.to(where)
    return loaded


def _number(checkpoint: str | int | None) -> str | int | None:
    """``best``, a number, or ``None`` for the last.

    Raises:
        ConfigError: something else.
    """
    if checkpoint is None or checkpoint == "last":
        return None
    if checkpoint == "best" or (isinstance(checkpoint, int) and not isinstance(checkpoint, bool)):
        return checkpoint
    text = Path(str(checkpoint)).name.removeprefix("step-")
    if text.isascii() and text.isdigit():
        return int(text)
    raise ConfigError("--checkpoint", given=str(checkpoint), expected="best, last, or a checkpoint's number")


def _modules(loaded: Loaded) -> list[nn.Module]:
    students = getattr(loaded.made, "students", None)
    found = [loaded.module]
    if students is not None:
        found += [m for g in (students.steps, students.stochastic, students.encoders) for m in g.values()]
    return [m for m in found if isinstance(m, nn.Module)]


def _best(loaded: Loaded) -> None:
    """The best student's weights in the place of the last one's."""
    from limbeck.grammar.artifact import NetworkArtifact
    from limbeck.run.restoring import best_of

    made = loaded.made
    if made is None:
        assert loaded.task is not None
        made = NetworkArtifact(loaded.task, loaded.built)
    made.take(best_of(loaded.path)["state"], str(loaded.path / "best"))


def _restored(place: opening.Place, number: int | None, device: str | torch.device | None) -> Loaded:
    """What a run had made at one of its checkpoints, which takes its data: networks are built as they were."""
    from limbeck.grammar.artifact import NetworkArtifact
    from limbeck.run import restore

    found = restore(place.folder, number)
    made, bench = found.artifact, found.bench
    place.notes.append(f"checkpoint of stage {found.stage}, step {found.step}")
    where = opening.pick(device)
    if not isinstance(made, NetworkArtifact):
        return Loaded(place, made.kind, None, Built(None), where, made)
    made.built.module.to(where).eval()
    about = made.about()
    place.about = {**about["task"], **about}
    task = bench.task
    if made.kind not in ("sampler", "scene"):
        task = copy.copy(task)
        task.recall(place.about)
    return Loaded(place, made.kind, task, made.built, where, made if made.kind in ("sampler", "scene") else None)


def evaluate(
    path: str | Path, *overrides: str, checkpoint: str | int | None = None, device: str | None = None,
    split: str | None = None, trust: bool = False,
) -> dict[str, float]:  # fmt: skip
    """`load` and `Loaded.evaluate` in one."""
    with trusting(trust):
        return load(path, checkpoint, device=device).evaluate(*overrides, split=split)


__all__ = ["Loaded", "Predictions", "check_options", "evaluate", "load"]
