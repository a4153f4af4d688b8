"""ONNX graphs with a free batch axis, checked with onnxruntime as they are written; int8 by static quantisation."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, require
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.signal import Signal

if TYPE_CHECKING:
    from limbeck.engine.bench import Bench

CALIBRATION_ITEMS = 256
TOLERANCE = 1e-4  # largest difference to torch, relative to the largest output


class _Graph(nn.Module):
    """The network as a function of its input tensors."""

    def __init__(self, artifact: NetworkArtifact, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names, self.task = artifact.built.module, names, (artifact.task,)

    def forward(self, *inputs: Tensor) -> Tensor:
        return Signal(self.task[0].feed(self.module, dict(zip(self.names, inputs, strict=True)))).logits


class OnnxNetwork:
    """An ONNX file that answers batches like a role.

    Args:
        path: the file.
        names: its inputs, as they are called in a batch.
        contract: what the network expects at its input.
    """

    def __init__(self, path: Path, names: tuple[str, ...], contract: Any) -> None:
        runtime = require("onnxruntime", "export", "running an ONNX file")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names, self.contract = names, contract

    def run(self, arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """The graph's output."""
        return self.session.run(None, dict(zip(self.names, arrays, strict=True)))[0]

    def answer(self, batch: Batch, taps: tuple[str, ...] = ()) -> Signal:
        """The signal of a batch in pixels."""
        fed = {**batch, "x": self.contract.inputs(batch["x"])} if "x" in batch else batch
        out = self.run([fed[n].cpu().numpy() for n in self.names])
        return Signal(self.contract.outputs(torch.from_numpy(out)))


def write_onnx(artifact: NetworkArtifact, bench: Bench, out: Path, int8: bool = False) -> dict[str, Any]:
    """Write ``student.onnx`` (or ``student.int8.onnx``) and compare it with torch.

    Returns:
        ``bytes``, the task's metrics through onnxruntime, ``latency_ms`` of one item, and ``largest_error`` against
        torch relative to the largest output.

    Raises:
        ConfigError: the graph disagrees with torch by more than 1e-4 (float32 only); nothing is left behind.
    """
    from limbeck.export import about

    require("onnx", "export", "writing ONNX")
    require("onnxscript", "export", "writing ONNX")
    task, built = artifact.task, artifact.built
    names = task.onnx_names
    # the graph is traced on the CPU in evaluation mode; the caller's module stays as it is
    twin = Built(copy.deepcopy(built.module).cpu().eval(), built.contract, built.labels, built.model)
    graph = _Graph(NetworkArtifact(task, twin), names).eval()
    batch = _fed(twin, task.example(3))
    inputs = tuple(batch[n] for n in names)
    plain = out / "student.onnx"
    axes = tuple({0: torch.export.Dim("batch", min=1, max=65536)} for _ in names)
    with _calm(), torch.no_grad():
        torch.onnx.export(
            graph,
            inputs,
            str(plain),
            input_names=list(names),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )
    worst = 0.0
    network = OnnxNetwork(plain, names, twin.contract)
    for n in (1, 2, len(inputs[0])):
        part = [t[:n] for t in inputs]
        with torch.no_grad():
            want = graph(*part).numpy()
        got = network.run([t.numpy() for t in part])
        worst = max(worst, float(np.abs(got - want).max() / max(1e-12, np.abs(want).max())))
    if worst > TOLERANCE:
        plain.unlink()
        raise ConfigError(
            "--format",
            f"onnxruntime and torch disagree by {worst:.2g} of the largest output",
            expected=f"at most {TOLERANCE}",
        )
    path = plain
    if int8:
        path = out / "student.int8.onnx"
        _quantise(plain, path, twin, task, names)
        plain.unlink()
        network = OnnxNetwork(path, names, twin.contract)
        worst = 0.0
        with torch.no_grad():
            want = graph(*inputs).numpy()
        worst = float(np.abs(network.run([t.numpy() for t in inputs]) - want).max() / max(1e-12, np.abs(want).max()))
    about(NetworkArtifact(task, twin), out)
    measured = Built(network, twin.contract, twin.labels, twin.model)
    metrics = task.evaluate(measured, task.test, device=torch.device("cpu"))
    one = [t[:1].numpy() for t in inputs]
    times = []
    for _ in range(30):
        began = time.perf_counter()
        network.run(one)
        times.append(time.perf_counter() - began)
    return {
        "bytes": path.stat().st_size,
        **{k: v for k, v in metrics.items() if isinstance(v, float)},
        "latency_ms": 1000.0 * sorted(times)[len(times) // 2],
        "largest_error": worst,
    }


def _fed(built: Built, batch: Batch) -> Batch:
    return built.contract.feed(batch)


def _quantise(plain: Path, path: Path, built: Built, task: Any, names: tuple[str, ...]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

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
            batch = _fed(built, task.train.fetch(part))
            return {n: batch[n].numpy() for n in names}

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
        )
    ready.unlink()


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
