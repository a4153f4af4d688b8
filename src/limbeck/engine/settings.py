"""Where and how the loop runs."""

from __future__ import annotations

import copy
from typing import Literal

import torch

from limbeck.grammar.component import Settings
from limbeck.grammar.settings import Count, Natural, Positive, settings

Precision = Literal["fp32", "bf16"]


@settings
class EngineSettings(Settings):
    """Where and how the loop runs. None of these settings changes the result, apart from rounding and from layers that depend
    on the whole batch (see ``accumulate``).

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        devices: number of processes on this machine; above 1 the command restarts itself with torchrun. Each batch is split
            over the processes, as ``accumulate`` splits it.
        accumulate: number of micro-batches per optimizer step. Losses and gradients are those of the whole batch; layers
            that normalise over a batch (BatchNorm) or use random numbers (dropout) work on each micro-batch separately.
        precision: ``fp32``, or ``bf16`` for the forward passes (losses and statistics stay in float32).
        workers: number of data loader processes; 0 loads in the training process. The batches are the same for any number.
        compile: compile the networks with torch.compile.
        save_every: steps between checkpoints; 0 uses ``save_minutes`` only.
        save_minutes: minutes between checkpoints.
        keep: number of checkpoints to keep.
        log_every: steps between log lines.
        eval_every: steps between evaluations on the validation split; 0 evaluates only at the end.
        guard: stop before an update with a value that is not finite.
        shard: roles (``student``, ``teacher``, ...) whose parameters, gradients and optimizer state are split over the
            processes, for networks that are too large for one device. With one process, nothing is split.
        sync_batchnorm: on several GPUs, BatchNorm normalises by the whole batch (``torch.nn.SyncBatchNorm``). Otherwise each
            process normalises its own part, and running statistics are averaged after every step.
    """

    device: str = "auto"
    devices: Count = 1
    accumulate: Count = 1
    precision: Precision = "fp32"
    workers: Natural = 0
    compile: bool = False
    save_every: Natural = 0
    save_minutes: Positive = 5.0
    keep: Count = 2
    log_every: Count = 20
    eval_every: Natural = 0
    guard: bool = True
    shard: tuple[str, ...] = ()
    sync_batchnorm: bool = True

    def synchronises(self, device: torch.device) -> bool:
        """Whether several processes on such a device normalise together."""
        return self.sync_batchnorm and device.type == "cuda"  # torch has it for CUDA alone

    def of_network(self, role: str) -> EngineSettings:
        """The settings under which a network is trained by itself that plays ``role`` in a method: there it is the student."""
        made = copy.copy(self)
        made.shard = ("student",) if role in self.shard else ()
        return made


__all__ = ["EngineSettings", "Precision"]
