"""A teacher's logits in few bytes: half precision, one byte a class, or the likeliest classes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

Form = Literal["fp16", "int8", "top-k"]


def pack_logits(z: Tensor, form: Form = "fp16", k: int = 10) -> dict[str, Tensor]:
    """Logits [..., C] as small tensors; `unpack_logits` brings them back up to a constant, which no softmax sees.

    Args:
        z: logits.
        form: ``fp16``: less their maximum, in half precision (2 bytes a class); ``int8``: in 255 even steps between the
            least and the largest (1 byte a class, 2 an item); ``top-k``: the k largest log-probabilities and their
            classes, and what the rest holds together, which is spread evenly (4 k + 2 bytes an item, 6 k + 2 above
            32,767 classes).
        k: of ``top-k``; all classes where there are fewer.

    Raises:
        ConfigError: an unknown form, or k below 1.

    Example:
        >>> sorted(pack_logits(torch.tensor([[3.0, 1.0]]), "int8"))
        ['levels', 'span']
    """
    z = z.detach().float()
    if form == "fp16":
        # the distances from the maximum are what matters, and large logits do not fit
        return {"logits": (z - z.amax(-1, keepdim=True)).clamp(min=-6.0e4).half()}
    if form == "int8":
        top = z.amax(-1, keepdim=True)
        span = (top - z.amin(-1, keepdim=True)).clamp(max=6.0e4).half()
        step = span.float() / 255
        levels = ((z - top) / step.clamp(min=1e-12) + 255).round().clamp(0, 255).to(torch.uint8)
        return {"levels": levels, "span": span}
    if form == "top-k":
        if k < 1:
            raise ConfigError("k", given=k, expected="1 or more")
        k = min(k, z.shape[-1])
        log_p = z.log_softmax(-1)
        values, classes = log_p.topk(k, -1)
        # of the classes left, for 1 - sum(p) loses all digits where the sum is near 1
        rest = log_p.scatter(-1, classes, -torch.inf).logsumexp(-1, keepdim=True)
        index = torch.int16 if z.shape[-1] <= 2**15 else torch.int32
        return {
            "values": values.clamp(min=-6.0e4).half(),
            "classes": classes.to(index),
            "rest": rest.clamp(min=-6.0e4).half(),
        }
    raise ConfigError.unknown("form", form, ("fp16", "int8", "top-k"), "form of stored labels")


def unpack_logits(packed: Mapping[str, Tensor], classes: int) -> Tensor:
    """What `pack_logits` made, as float32 logits [..., C].

    Example:
        >>> z = torch.tensor([[3.0, 1.0, -2.0]])
        >>> [bool((unpack_logits(pack_logits(z, f), 3).softmax(-1) - z.softmax(-1)).abs().max() < 0.01)
        ...  for f in ("fp16", "int8", "top-k")]
        [True, True, True]
    """
    if "logits" in packed:
        return packed["logits"].float()
    if "levels" in packed:
        return (packed["levels"].float() - 255) / 255 * packed["span"].float()
    values, index, rest = packed["values"].float(), packed["classes"].long(), packed["rest"].float()
    left = classes - index.shape[-1]
    shared = rest - torch.log(torch.tensor(float(max(left, 1)), device=rest.device))
    return shared.expand(*index.shape[:-1], classes).scatter(-1, index, values)


__all__ = ["Form", "pack_logits", "unpack_logits"]
