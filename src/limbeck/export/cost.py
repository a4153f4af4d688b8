"""What an export costs: size, the task's metric and latency, beside those of the network as it was made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.errors import human
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.signal import evaluating
from limbeck.networks.costs import Timing, in_turns

if TYPE_CHECKING:
    from limbeck.grammar.task import Task

SLOWER = 1.1
"""An export that takes so many times as long is called slower: less is within what timings scatter by."""

POINT = 0.01
"""So much worse (a point of a share, else this part of the value) is a loss worth a warning."""


class Watched:
    """A split whose items are counted as they are fetched; in all else the split itself.

    Args:
        data: the split.
        each: told how many items were fetched.
    """

    def __init__(self, data: Any, each: Callable[[int], None]) -> None:
        self._data, self._each = data, each

    def __len__(self) -> int:
        return len(self._data)

    def fetch(self, items: torch.Tensor) -> Batch:
        """The items as one batch."""
        found: Batch = self._data.fetch(items)
        self._each(len(items))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def score(artifact: NetworkArtifact, task: Task, each: Callable[[int], None] = lambda n: None) -> dict[str, float]:
    """The task's metrics of a network on the test split, on the CPU where it is no network of torch's."""
    judge = artifact.judge(task)
    data: Any = Watched(judge.test, each)
    module = artifact.built.module
    device = None if any(True for _ in module.parameters()) else torch.device("cpu")
    return {k: float(v) for k, v in judge.evaluate(artifact.built, data, device=device).items() if isinstance(v, float)}


def latencies(
    task: Task, networks: Mapping[str, NetworkArtifact], each: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Milliseconds of one item through networks on the CPU, measured in turns and warm.

    Args:
        task: what they answer.
        networks: by name; those of onnxruntime are timed without what brings answers back to torch.
        each: called after every round.
    """

    def ready(artifact: NetworkArtifact) -> Callable[[], Any]:
        built, judge = artifact.built, artifact.judge(task)
        batch = built.contract.feed(judge.example(1))
        network = getattr(built.module, "network", built.module)
        if hasattr(network, "arrays"):
            arrays = network.arrays(batch)
            return lambda: network.run(arrays)
        module: nn.Module = built.module
        if any(t.device.type != "cpu" for t in module.parameters()):
            module = copy.deepcopy(module).cpu()
        return lambda: judge.feed(module, batch)

    with evaluating([n.built.module for n in networks.values()]):
        return in_turns({name: ready(n) for name, n in networks.items()}, torch.device("cpu"), each)


def timed(taken: Mapping[str, Timing]) -> dict[str, Any]:
    """Timings as facts of an export: medians, and quartiles as ranges.

    Args:
        taken: ``now`` of the export and ``before`` of the network in torch; likewise ``teacher`` and ``teacher_before``.
    """
    names = {"now": "latency_ms", "before": "latency_ms_before"}
    names |= {"teacher": "teacher_latency_ms", "teacher_before": "teacher_latency_ms_before"}
    facts: dict[str, Any] = {}
    for name, key in names.items():
        if name in taken:
            facts |= {key: taken[name].median, f"{key}_range": [taken[name].low, taken[name].high]}
    return facts


def is_loss(name: str, before: float, after: float, higher_is_better: bool) -> bool:
    """Whether a metric is worse by more than a point."""
    from limbeck.report.metrics import metric_of

    worse = before - after if higher_is_better else after - before
    return worse > POINT * (1.0 if metric_of(name).percent else max(abs(before), 1e-12))


def told(form: str, facts: Mapping[str, Any], metric: str) -> str:
    """Size, metric and latency of an export in one line, each beside what it was before."""
    from limbeck.report.metrics import metric_of

    def beside(key: str, text: Callable[[float], str]) -> str:
        was = facts.get(f"{key}_before")
        return text(facts[key]) + (f" ({text(was)} before)" if was is not None else "")

    said = [f"size {beside('bytes', lambda x: human(x, 'B'))}"]
    if metric in facts:
        m = metric_of(metric)
        said.append(f"{m.label} {beside(metric, m.value)}")
    if "latency_ms" in facts:
        said.append(f"latency {beside('latency_ms', lambda x: f'{x:.3g} ms')} an item")
    if "teacher_latency_ms" in facts:
        said.append(f"its teacher {beside('teacher_latency_ms', lambda x: f'{x:.3g} ms')}")
    return f"{form}: " + ", ".join(said)


def warnings_of(form: str, facts: Mapping[str, Any], metric: str, higher_is_better: bool) -> list[str]:
    """What of an export is worse than the network that it was made from."""
    from limbeck.report.metrics import metric_of

    found = []
    slow, was = facts.get("latency_ms"), facts.get("latency_ms_before")
    low, high = facts.get("latency_ms_range"), facts.get("latency_ms_before_range")
    apart = not low or not high or low[0] > high[1]  # else it is within what the two scatter by
    if slow is not None and was is not None and slow > SLOWER * was and apart:
        found.append(
            f"{form} is slower here than the network in torch: {slow:.3g} ms an item against {was:.3g} ms; "
            "measure it on the machine where it will run"
        )
    before, after = facts.get(f"{metric}_before"), facts.get(metric)
    if before is not None and after is not None and is_loss(metric, before, after, higher_is_better):
        m = metric_of(metric)
        found.append(
            f"{form} loses {m.amount(after - before)} of {m.label}: {m.value(after)}, and {m.value(before)} before"
        )
    return found


def same_weights(module: nn.Module, folder: Any) -> bool:
    """Whether the safetensors files of a folder hold every tensor of a network under its name, value by value."""
    from pathlib import Path

    from limbeck.storage.weights import load_state_dict

    held: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).rglob("*.safetensors")):
        held |= load_state_dict(path)
    own = {k: v.detach().cpu() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    if not own:
        return False
    kept: dict[int, torch.Tensor] = {own[k].data_ptr(): held[k] for k in own if k in held}
    for name, value in own.items():
        found = held.get(name, kept.get(value.data_ptr()))  # of tied weights a library keeps one name
        if found is None or found.shape != value.shape or not torch.equal(found, value):
            return False
    return True


def plain(built: Built) -> bool:
    """Whether a network is one of torch's."""
    return isinstance(built.module, nn.Module)


__all__ = [
    "POINT",
    "SLOWER",
    "Watched",
    "is_loss",
    "latencies",
    "plain",
    "same_weights",
    "score",
    "timed",
    "told",
    "warnings_of",
]
