"""Adapters of MiniLM's vectors: v2's relations on padded batches, and v1's two losses, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.functional.attention import divide
from limbeck.methods.language.minilm import relation_values
from limbeck.parts.attention import Qkv

Arrays = Mapping[str, np.ndarray]
Hyper = Mapping[str, Any]

LETTERS = {1: "q", 2: "k", 3: "v"}
NAMES = ("query", "key", "value")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def _v2(arrays: Arrays, hyper: Hyper) -> dict[str, np.ndarray]:
    where = _tensor(arrays["attention_mask"]).bool()
    heads = int(hyper["A_r"])
    relations = {LETTERS[int(a)] + LETTERS[int(b)]: float(w) for a, b, w in hyper["relations"]}
    hidden = _tensor(arrays["student_hidden"]).requires_grad_()
    made = [
        nn.functional.linear(hidden, _tensor(arrays[f"student_W_{n}"]), _tensor(arrays[f"student_b_{n}"]))
        for n in NAMES
    ]
    for name, x in zip(NAMES, made, strict=True):  # recorded beside their own inputs
        assert np.allclose(arrays[f"student_{name}"], x.detach().numpy(), atol=1e-4)
    student = Qkv(*(divide(x, 1) for x in made))
    teacher = Qkv(*(divide(_tensor(arrays[f"teacher_{n}"]), 1) for n in NAMES))
    values = relation_values(student, teacher, relations, where=where, heads=heads)
    loss = torch.stack([weight * values[name].mean() for name, weight in relations.items()]).sum()
    (grad,) = torch.autograd.grad(loss, hidden)
    return {"loss": loss.detach().numpy(), "grad_student_hidden": grad.numpy()}


def _v1(arrays: Arrays, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("combination")
    where = _tensor(arrays["mask"]).bool()
    mine = [_tensor(arrays[f"student_{n}"]).requires_grad_() for n in "qkv"]
    teacher = Qkv(*(_tensor(arrays[f"teacher_{n}"]) for n in "qkv"))
    values = relation_values(Qkv(*mine), teacher, {"qk": 1.0, "vv": 1.0}, where=where)
    losses = {name: v.mean() for name, v in values.items()}
    grads = torch.autograd.grad(losses["qk"] + losses["vv"], mine)
    found = {"loss_attention": losses["qk"].detach().numpy(), "loss_value": losses["vv"].detach().numpy()}
    return found | {f"grad_{n}": g.numpy() for n, g in zip("qkv", grads, strict=True)}


ADAPTERS: dict[str, Callable[[Arrays, Hyper], dict[str, np.ndarray]]] = {
    "minilm:minilmv2/minilmv2.py:MiniLM.forward": _v2,
    "minilm:xdpx/losses/minilm.py:MiniLMLoss.attention_kl_loss": _v1,
}
