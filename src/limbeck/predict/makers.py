"""Students that make something in place of answering: samplers draw samples, scenes views; sets and tables nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.data.names import some
from limbeck.errors import ConfigError, shorten
from limbeck.grammar.answers import Answer

if TYPE_CHECKING:
    from limbeck.predict import Loaded

Parts = tuple[int, Iterator[tuple[str, Answer]]]
"""How many there will be, and each with its name."""


def maker(loaded: Loaded, inputs: Any, batch: int, options: dict[str, Any]) -> Parts | None:
    """What is made in place of answers for items; ``None`` for a network that answers.

    Raises:
        ConfigError: what was distilled is a data set or a table, which answers nothing.
    """
    if loaded.kind == "dataset":
        raise ConfigError(
            "RUN", "a data set was distilled there, which answers nothing", given=str(loaded.path),
            remedy="train a network on it: limbeck export RUN --format images, then limbeck run kd task.data=folder:DIR",
        )  # fmt: skip
    if loaded.kind == "table":
        raise ConfigError(
            "RUN", "a table was made there, which answers nothing", given=str(loaded.path),
            remedy="its rows are in table.csv (pandas.read_csv); train on them with task.data=csv:FILE",
        )  # fmt: skip
    if loaded.kind == "other":
        name = loaded.about.get("use") or "this task"
        raise ConfigError(
            "RUN", f"students of the task {name} give no predictions for single inputs", given=str(loaded.path),
            remedy="limbeck evaluate RUN evaluates one; limbeck export RUN writes its network",
        )  # fmt: skip
    if loaded.kind == "sampler":
        return _samples(loaded, inputs, batch, options)
    if loaded.kind == "scene":
        return _views(loaded, inputs, batch, options)
    return None


def _count(inputs: Any, options: dict[str, Any], default: int) -> int:
    asked = options.get("count")
    if isinstance(inputs, int) and not isinstance(inputs, bool):
        asked = inputs
    count = default if asked is None else int(asked)
    if count < 1:
        raise ConfigError("count", given=count, expected="1 or more")
    return count


def _samples(loaded: Loaded, inputs: Any, batch: int, options: dict[str, Any]) -> Parts:
    made = loaded.made
    known = list(made.labels)
    labels: Any
    if isinstance(inputs, Tensor) and inputs.is_floating_point():  # embeddings of prompts
        count = _count(None, options, len(inputs))
        labels, names = inputs, [str(i) for i in range(count)]
    else:
        words = [] if inputs is None or isinstance(inputs, int) else _words(inputs)
        if _takes_prompts(made):
            raise ConfigError(
                "inputs", "this sampler is asked by embeddings of prompts, which its text encoder makes and this folder "
                "does not hold", given=some(words) or "nothing",
                expected="a tensor [n, L, D]: limbeck.load(RUN).predict(embeddings)",
            )  # fmt: skip
        odd = [w for w in words if w not in known and not (w.isdigit() and int(w) < len(known) and known)]
        if odd:
            raise ConfigError.unknown("inputs", odd[0], known, "class of this sampler")
        each = [known.index(w) if w in known else int(w) for w in words]
        count = _count(inputs if isinstance(inputs, int) else None, options, 1 if words else max(1, len(known)))
        ids = [c for c in each for _ in range(count)] if words else [i % max(1, len(known)) for i in range(count)]
        labels = torch.tensor(ids)
        names = [f"{known[c] if known else c}-{i}" for i, c in enumerate(ids)]
        count = len(ids)
    steps = options.get("steps")
    guidance = options.get("guidance")
    w = max(0.0, made.w_range[0]) if guidance is None else float(guidance)
    seed = int(options.get("seed") or 0)

    def parts() -> Iterator[tuple[str, Answer]]:
        x = made.sample(count, labels, w, None if steps is None else int(steps), seed, batch=batch).cpu()
        for i, picture in enumerate(x):
            row: dict[str, Any] = {"input": names[i]}
            if labels.ndim == 1 and known:
                row["label"] = known[int(labels[i])]
            yield names[i], Answer(row, {"picture": picture})

    return count, parts()


def _takes_prompts(made: Any) -> bool:
    from limbeck.tasks.sampler import reading

    return isinstance(reading(made.built.module).null_condition, Tensor)


def _words(inputs: Any) -> list[str]:
    listed = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if isinstance(inputs, Tensor):
        listed = inputs.tolist()
    odd = [w for w in listed if not isinstance(w, (str, int))]
    if odd:
        raise ConfigError("inputs", given=shorten(odd[0]), expected="class names, or how many samples")
    return [str(w) for w in listed]


def _views(loaded: Loaded, inputs: Any, batch: int, options: dict[str, Any]) -> Parts:
    """Views once around each particle; of images, each particle once."""
    from limbeck.networks.scenes import particles_of

    if inputs is not None and not isinstance(inputs, int) and inputs != [] and inputs != ():
        raise ConfigError(
            "inputs", "a scene is asked for views alone", given=shorten(inputs), remedy="leave it out; --count N views"
        )
    task: Any = loaded.task
    module: Any = loaded.module
    cameras = getattr(module, "cameras", True)
    frames = _count(inputs if isinstance(inputs, int) else None, options, 16) if cameras else 1
    particles = particles_of(module)

    def parts() -> Iterator[tuple[str, Answer]]:
        for p in range(particles):
            for i, picture in enumerate(task.look(module, task.turntable(frames), p, loaded.device).cpu()):
                name = f"scene{p}-view{i}" if cameras else f"picture{p}"
                yield name, Answer({"input": name, "particle": p, "view": i}, {"picture": picture})

    return frames * particles, parts()


__all__ = ["maker"]
