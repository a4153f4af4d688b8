"""How `limbeck.distill` is typed: mypy reads this file with the package, and nothing runs it.

What is wrong carries ``type: ignore``; if it were let pass, mypy would call that comment unused and fail.
"""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor, nn

import limbeck
from limbeck.api import Distilled, TrainSettings
from limbeck.grammar.signal import Signal
from limbeck.objectives import Kl


def gap(student: Signal, teacher: Signal) -> Tensor:
    """A loss of the caller's own."""
    return (student.logits - teacher.logits).square().mean(-1)


def calls(net: nn.Module, data: tuple[Tensor, Tensor], train: TrainSettings) -> None:
    """What may be written, and what may not."""
    done = limbeck.distill(net, net, data, "nkd", epochs=3, batch_size=64, lr=1e-3, schedule="linear", clip=None)
    assert_type(done, Distilled)
    assert_type(done.table, str)
    limbeck.distill(lambda x: net(x), "mlp:[8]", data, device=torch.device("cpu"), export="onnx", **train)
    limbeck.distill(
        [net, "mlp:[8]"], {"use": "mlp"}, data, export=["onnx", "hub"], teach={"steps": 5}, engine={"workers": 2}
    )
    limbeck.distill(net, net, data, objectives={"gap": gap, "kl": Kl(), "sp": {"use": "relation"}, "none": None})
    limbeck.distill(net, net, data, queries="small-images", average=0.999, baselines=[], preset="cifar100")

    limbeck.distill(net, net, data, stepz=3)  # type: ignore[call-arg]
    limbeck.distill(net, net, data, steps="many")  # type: ignore[arg-type]
    limbeck.distill(net, net, data, schedule="cosin")  # type: ignore[arg-type]
    limbeck.distill(net, net, data, export="onx")  # type: ignore[arg-type]
    limbeck.distill(net, gap, data)  # type: ignore[arg-type]
    limbeck.distill(net, net, data, method=gap)  # type: ignore[arg-type]
    limbeck.distill(net, net, data, teach={"stepz": 3})  # type: ignore[arg-type]
    limbeck.distill(net, net, data, engine={"worker": 3})  # type: ignore[arg-type]
    print(done.metricz)  # type: ignore[attr-defined]
