"""Adapters of reverse distillation's vectors: the loss and its gradients, anomaly maps, the student's blocks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.functional.anomaly import anomaly_map, pyramid_distance
from limbeck.networks.reverse import SSPCAB, Attention, BottleneckAttention, ConvReluNorm, DecoderBlock


def _levels(arrays: Any, name: str) -> list[Tensor]:
    count = sum(1 for key in arrays if re.fullmatch(rf"{name}\d+", key))
    return [torch.from_numpy(np.array(arrays[f"{name}{i}"])) for i in range(count)]


def loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s, t = _levels(arrays, "fs"), _levels(arrays, "ft")
    hyper.same("levels", len(s))
    for f in s:
        f.requires_grad_()
    value = pyramid_distance(s, t, normalise=bool(hyper.get("norm", True))).sum()  # not divided by the batch
    value.backward()
    grads = {f"grad_fs{i}": f.grad.numpy() for i, f in enumerate(s)}  # type: ignore[union-attr]
    return {"loss": value.detach().numpy(), **grads}


def maps(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s, t = _levels(arrays, "fs"), _levels(arrays, "ft")
    size = hyper["out_size"]
    high, wide = (size, size) if isinstance(size, int) else size
    alone = len(s[0]) == 1  # the published code drops the axis of a single item, and smooths its rows one by one
    found = anomaly_map(
        s,
        t,
        (int(high), int(wide)),
        sigma=float(hyper["sigma"]),
        normalise=bool(hyper.get("norm", True)),
        axes="rows" if alone else "both",
    ).numpy()
    return {"map": found[0] if alone else found}


def blocks(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("dec")
    options = hyper["sspcab"]
    masked = {
        "kernel": int(options["kernel_dim"]),
        "dilation": int(options["dilation"]),
        "reduction": int(options["reduction_ratio"]),
    }
    sized = [
        f"{n}.weight" for n in ("conv1.conv", "conv3.conv", "att.conv1", "att2.conv1", "sspcab.conv1", "dec.conv1")
    ]
    shape = {name: np.array(arrays[name]).shape for name in sized}
    o1, i1 = shape["conv1.conv.weight"][:2]
    o3, i3 = shape["conv3.conv.weight"][:2]
    stride = shape["dec.conv1.weight"][-1] == 2
    dec_in, dec_out = shape["dec.conv1.weight"][:2] if stride else shape["dec.conv1.weight"][1::-1]
    made: dict[str, nn.Module] = {
        "conv1": ConvReluNorm(i1, o1, 1, 2),  # the recorded ones halve the sides
        "conv3": ConvReluNorm(i3, o3, 3),
        "att": Attention(shape["att.conv1.weight"][0]),
        "att2": BottleneckAttention(shape["att2.conv1.weight"][0]),
        "sspcab": SSPCAB(shape["sspcab.conv1.weight"][0], **masked),
        "dec": DecoderBlock(dec_in, dec_out, 2 if stride else 1),
    }
    out = {}
    for name, module in made.items():
        tensors = {k: torch.from_numpy(np.array(arrays[f"{name}.{k}"])) for k in module.state_dict()}
        module.load_state_dict(tensors)
        module.train(hyper["mode"] == "train")
        with torch.no_grad():
            out[f"{name}.out"] = module(torch.from_numpy(np.array(arrays[f"{name}.in"]))).numpy()
    return out


ADAPTERS = {
    "fabric-rd:utils/functions.py:cal_loss": loss,
    "fabric-rd:utils/functions.py:cal_anomaly_maps": maps,
    "fabric-rd:models/utilsModels.py:student_blocks+SSPCAB": blocks,
}
