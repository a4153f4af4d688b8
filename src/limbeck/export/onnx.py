"""ONNX graphs with a free batch axis, checked with onnxruntime as they are written; int8 by static quantisation.

The graph takes plain pixels or rows: normalisation lies inside it, unless ``normalise="outside"``. What goes in and what
comes out is said in the file's own metadata, with the class names and all of ``student.json``.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, first_line, require
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal

if TYPE_CHECKING:
    from limbeck.grammar.task import Task

Normalise = Literal["inside", "outside"]
"""Whether a graph normalises its inputs itself, or takes them normalised."""

Pixels = Literal["float", "uint8"]
"""How a graph takes pictures: float32 in [0, 1], or bytes."""

CALIBRATION_ITEMS = 256
TOLERANCE = 1e-4  # largest difference to torch, relative to the largest output


class _Graph(nn.Module):
    """The network as a function of its input tensors, with what comes before and after it.

    Args:
        artifact: the network and its task.
        keys: what its inputs are called in a batch.
        contract: whose mean and std are applied to the contract's tensor; ``None``: it comes normalised.
        pixels: whether that tensor holds bytes.
        units: mean and std that bring standardised numbers into the data's units.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        artifact: NetworkArtifact,
        keys: tuple[str, ...],
        contract: Contract | None,
        pixels: bool,
        units: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__()
        self.module, self.keys, self.task, self.bytes = artifact.built.module, keys, (artifact.task,), pixels
        self.key = contract.key if contract is not None else ""
        shape = (1, -1, 1, 1) if len(artifact.task.needs.inputs) == 3 else (1, -1)
        mean, std = (contract.mean, contract.std) if contract is not None else ((), ())
        self.normalises = bool(mean)
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(shape), persistent=False)
        self.to_units = units is not None
        scale, shift = (units[1], units[0]) if units is not None else (torch.ones(1), torch.zeros(1))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        batch = dict(zip(self.keys, inputs, strict=True))
        if self.key in batch:
            x = batch[self.key]
            if self.bytes:
                x = x.float() / 255.0
            if self.normalises:
                x = (x - self.mean) / self.std
            batch[self.key] = x
        z = Signal(self.task[0].plainly(self.module, batch)).logits
        return z * self.scale + self.shift if self.to_units else z


class OnnxNetwork(nn.Module):
    """An ONNX file that answers as the network does: called as the network is, or asked for a batch (`answer`).

    What goes in, and whether answers are in the data's units, the file says itself.

    Args:
        path: the file.
        names: its inputs; ``None`` for all, in its order.
        contract: what is left to be done with inputs outside of the graph, and how outputs are read.
    """

    def __init__(self, path: Path, names: tuple[str, ...] | None = None, contract: Contract | None = None) -> None:
        super().__init__()
        runtime = require("onnxruntime", "export", "running an ONNX file")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        own = self.session.get_inputs()
        self.names = tuple(i.name for i in own if not names or i.name in names or i.name == "token_type_ids")
        self.bytes = frozenset(i.name for i in own if i.type == "tensor(uint8)")
        self.contract = contract or Contract()
        self.units = _stored_units(self.session.get_modelmeta().custom_metadata_map)
        if "input_ids" in self.names:
            self.config = SimpleNamespace()  # tasks feed whatever has one ids and masks by name

    def run(self, arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """The graph's output."""
        return self.session.run(None, dict(zip(self.names, arrays, strict=True)))[0]

    def arrays(self, batch: Batch) -> list[np.ndarray[Any, Any]]:
        """A batch as the graph takes it: images as bytes where it wants those, masks and segments where none are given."""
        found = []
        for name in self.names:
            value = batch.get(name)
            if value is None:
                ids = batch["input_ids"] if "input_ids" in batch else batch["x"]
                value = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}.get(name, lambda t: t)(
                    ids
                )
            if name in self.bytes and value.is_floating_point():
                value = (value * 255).round().clamp(0, 255).to(torch.uint8)
            found.append((value.long() if value.dtype == torch.bool else value).cpu().numpy())
        return found

    def answer(self, batch: Batch, taps: tuple[str, ...] = ()) -> Signal:
        """What it answers a batch as the task has it, in the task's order of classes."""
        return Signal(self.contract.outputs(self._back(self.run(self.arrays(self.contract.feed(batch))))))

    def forward(
        self,
        *given: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """As the network is called: its inputs in order, or by name."""
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = dict(zip(self.names, given, strict=False)) | {k: v for k, v in named.items() if v is not None}
        return self._back(self.run(self.arrays(batch)))

    def _back(self, array: np.ndarray[Any, Any]) -> Tensor:
        z = torch.from_numpy(array)
        return z if self.units is None else (z - self.units[0]) / self.units[1]


def _stored_units(said: Mapping[str, str]) -> tuple[Tensor, Tensor] | None:
    """Mean and std of a graph's answers where those are in the data's units, as its metadata say."""
    if said.get("limbeck.units") != "data":
        return None
    task = json.loads(said["limbeck.student"])["task"]
    return torch.tensor(task["number_mean"]), torch.tensor(task["number_std"])


def write_onnx(
    artifact: NetworkArtifact,
    out: Path,
    int8: bool = False,
    normalise: Normalise = "inside",
    pixels: Pixels = "float",
    say: Callable[[str], None] = lambda text: None,
) -> tuple[NetworkArtifact, dict[str, Any]]:
    """Write ``student.onnx`` (or ``student.int8.onnx``) and compare it with torch.

    Returns:
        The file as a network that the task's own evaluation takes, and facts: ``bytes``, ``largest_error`` against torch
        relative to the largest output, and what the file takes and gives.

    Raises:
        ConfigError: the network cannot be written as a graph, or the graph disagrees with torch by more than 1e-4
            (float32 only); nothing is left behind.
    """
    from limbeck.export.use import write_about

    for module in ("onnx", "onnxscript"):
        require(module, "export", "writing ONNX")
    task, built = artifact.task, artifact.built
    # the graph is traced on the CPU in evaluation mode; the caller's module stays as it is
    twin = Built(copy.deepcopy(built.module).cpu().eval(), built.contract, built.labels, built.model)
    contract = twin.contract
    if contract.transform is not None:
        raise ConfigError(
            "--format", "its inputs are whitened, which an ONNX graph of it does not do", expected="safetensors"
        )
    pictures = len(task.needs.inputs) == 3 and task.needs.form != "denoiser"
    if pixels == "uint8" and (not pictures or normalise == "outside"):
        why = "bytes are normalised inside the graph" if pictures else "it takes no images"
        raise ConfigError("--input", why, given="uint8", expected="float", remedy="leave it out")
    inside = normalise == "inside" and bool(contract.mean)
    units = _units(task) if normalise == "inside" else None
    before = contract.with_(mean=(), std=()) if inside else contract  # what is left to be done outside
    batch = _bytes(before.feed(task.example(3)), contract.key, pixels)
    names, keys = _inputs(task, batch, twin.module)
    graph = _Graph(
        NetworkArtifact(task, twin), keys, contract if inside or pixels == "uint8" else None, pixels == "uint8", units
    ).eval()
    graph.normalises = inside
    inputs = tuple(batch[k].long() if batch[k].dtype == torch.bool else batch[k] for k in keys)
    plain = out / "student.onnx"
    out.mkdir(parents=True, exist_ok=True)
    plain_twin = NetworkArtifact(task, twin)
    plain_twin.metrics = dict(artifact.metrics)  # a threshold among them
    about = plain_twin.about()
    about["onnx"] = {
        "file": plain.name,
        "normalise": "inside" if inside else "outside" if contract.mean else "none",
        "range": None if not pictures else [0, 255] if pixels == "uint8" else [0.0, 1.0],
        "inputs": [
            {"name": n, "dtype": str(t.dtype).removeprefix("torch."), "shape": _shape(t, _length(task))}
            for n, t in zip(names, inputs, strict=True)
        ],
        "outputs": [{"name": "numbers" if units is not None else "logits", "meaning": _meaning(task, units)}],
    }
    say("writing the graph")
    _trace(graph, inputs, names, about["onnx"]["outputs"][0]["name"], plain, _length(task))
    _describe(plain, about)
    say("comparing it with torch")
    worst = 0.0
    network = OnnxNetwork(plain, contract=before)
    fixed = [i.name for i in network.session.get_inputs() if i.shape and isinstance(i.shape[0], int)]
    if fixed:
        plain.unlink()
        raise ConfigError(
            "--format",
            f"the network's code fixes how many items go in at once ({', '.join(fixed)})",
            given="onnx",
            expected="a network for any number of items",
            remedy="use x.shape[0] in it, where it uses len(x); or export safetensors",
        )
    for n in (1, 2, len(inputs[0])):
        worst = max(worst, _difference(graph, network, [t[:n] for t in inputs]))
    if worst > TOLERANCE:
        plain.unlink()
        raise ConfigError(
            "--format",
            f"onnxruntime and torch disagree by {worst:.2g} of the largest output",
            expected=f"at most {TOLERANCE}",
            remedy="export safetensors, which is exact",
        )
    path = plain
    if int8:
        path = out / "student.int8.onnx"
        about["onnx"]["file"] = path.name
        say(f"calibrating int8 with {min(CALIBRATION_ITEMS, len(task.train))} training items")
        _quantise(plain, path, lambda b: network.arrays(before.feed(b)), task, names)
        plain.unlink()
        _describe(path, about)
        network = OnnxNetwork(path, contract=before)
        worst = _difference(graph, network, list(inputs))
    write_about(out, about)
    for name in (
        "mean_type",
        "kind",
        "null_condition",
        "null_class",
        "guided",
        "guidance",
    ):  # how a denoiser is spoken to
        value = getattr(twin.module, name, None)
        if isinstance(value, (str, int, bool)):
            setattr(network, name, value)
    again = NetworkArtifact(task, Built(network, before, twin.labels, twin.model))
    return again, {"bytes": path.stat().st_size, "largest_error": worst}


def _units(task: Task) -> tuple[Tensor, Tensor] | None:
    """Mean and std of numbers, where the task's network answers with standardised ones."""
    needs = task.needs
    if needs.target != "number" or not needs.mean:
        return None
    return torch.tensor(needs.mean), torch.tensor(needs.std)


def _meaning(task: Task, units: Any) -> str:
    needs = task.needs
    if units is not None:
        return "numbers in the data's units"
    if needs.form == "classes":
        return {
            "label": "logits of the classes: softmax gives probabilities",
            "labels": "logits of the labels: each by its own sigmoid",
            "number": "standardised numbers",
        }[needs.target]
    return {
        "map": "logits of the classes at every place [N, h, w, C]",
        "tokens": "logits of every token [N, T, V]",
        "denoiser": "as sampler.json says (mean_type)",
    }.get(needs.form, "the network's answer")


def _bytes(batch: Batch, key: str, pixels: Pixels) -> Batch:
    if pixels == "float":
        return batch
    return {**batch, key: (batch[key] * 255).round().clamp(0, 255).to(torch.uint8)}


def _inputs(task: Task, batch: Batch, module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The graph's inputs by name, and what they are called in a batch."""
    names = task.onnx_names
    if "w" in names and not getattr(module, "guided", getattr(module, "guidance", False)):
        names = tuple(n for n in names if n != "w")  # a denoiser without that input
    if "token_type_ids" in batch and "input_ids" in names:
        names = (*names, "token_type_ids")
    keys = tuple("x" if n == "input_ids" and n not in batch else n for n in names)
    missing = [n for n, k in zip(names, keys, strict=True) if k not in batch]
    if missing:
        raise ConfigError(
            "--format",
            f"what goes into this network is no plain tensor ({', '.join(missing)})",
            given="onnx",
            expected="safetensors",
        )
    return names, keys


def _length(task: Task) -> int | None:
    """How long a row of tokens may be, where its length is free."""
    return int(task.length) if "input_ids" in task.onnx_names and hasattr(task, "length") else None


def _shape(t: Tensor, length: int | None) -> list[Any]:
    if length is not None:
        return ["batch", "length"]
    return ["batch", *t.shape[1:]]


def _trace(
    graph: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], output: str, path: Path, length: int | None
) -> None:
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=65536)}
    if length is not None:
        axes[1] = torch.export.Dim("length", min=2, max=length)
    try:
        with _calm(), torch.no_grad():
            torch.onnx.export(
                graph,
                inputs,
                str(path),
                input_names=list(names),
                output_names=[output],
                dynamo=True,
                dynamic_shapes=(tuple(axes for _ in names),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.export and its translators raise all kinds
        path.unlink(missing_ok=True)
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {first_line(Exception(str(cause)))[:200]}"
        raise ConfigError(
            "--format",
            f"torch cannot write this network as an ONNX graph: {said}",
            given="onnx",
            expected="safetensors or hub",
        ) from None


def _difference(graph: nn.Module, network: OnnxNetwork, part: list[Tensor]) -> float:
    with torch.no_grad():
        want = graph(*part).numpy()
    got = network.run([t.numpy() for t in part])
    return float(np.abs(got - want).max() / max(1e-12, np.abs(want).max()))


def _describe(path: Path, about: dict[str, Any]) -> None:
    """Write what is known of the graph into the file itself."""
    onnx = require("onnx", "export", "writing ONNX")
    model = onnx.load(str(path))
    said, io = about["preprocessing"], about["onnx"]
    first = io["inputs"][0]["dtype"]
    takes = "uint8" if first == "uint8" else f"{first} [0,1]" if io["range"] else first
    flat = {
        "limbeck.student": json.dumps(about),
        "limbeck.normalise": io["normalise"],
        "limbeck.input": takes,
        "limbeck.units": "data" if io["outputs"][0]["name"] == "numbers" else "standard",
        "labels": json.dumps(about["labels"]),
        "range": json.dumps(io["range"]),
        "mean": json.dumps(said["mean"]),
        "std": json.dumps(said["std"]),
        "output": io["outputs"][0]["meaning"],
    }
    onnx.helper.set_model_props(model, flat)
    onnx.save(model, str(path))


def _quantise(
    plain: Path,
    path: Path,
    arrays: Callable[[Batch], list[np.ndarray[Any, Any]]],
    task: Any,
    names: tuple[str, ...],
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnx = require("onnx", "export", "writing ONNX")
    ids = torch.arange(len(task.train))
    if len(ids) > CALIBRATION_ITEMS:
        ids = ids[torch.linspace(0, len(ids) - 1, CALIBRATION_ITEMS).long()]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(ids.split(32))

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            part = next(self.parts, None)
            if part is None:
                return None
            return dict(zip(names, arrays(task.train.fetch(part)), strict=True))

    ready = path.with_suffix(".prepared.onnx")
    with _calm():
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_before_and_after(onnx.load(str(ready)).graph),
        )
    ready.unlink()


def _before_and_after(graph: Any) -> list[str]:
    """The elementwise nodes between an input and the first layer, and between the last layer and the output.

    They normalise, or bring numbers into their units: in eight bits they would only lose.
    """
    plain = {"Sub", "Div", "Mul", "Add", "Cast"}
    constants = {i.name for i in graph.initializer}
    found: set[str] = set()
    reached = {i.name for i in graph.input} - constants
    for node in graph.node:
        moving = [n for n in node.input if n not in constants]
        if node.op_type in plain and moving and all(n in reached for n in moving):
            found.add(node.name)
            reached.update(node.output)
    wanted = {o.name for o in graph.output}
    for node in reversed(list(graph.node)):
        if not any(o in wanted for o in node.output):
            continue
        if node.op_type in {"Mul", "Add"} and any(n in constants for n in node.input):
            found.add(node.name)
            wanted.update(n for n in node.input if n not in constants)
    return sorted(found)


@contextmanager
def _calm() -> Iterator[None]:
    """Exporters talk of their internals on the log and in warnings; what matters here is checked by numbers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
