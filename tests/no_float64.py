"""A device without float64, such as Apple's GPUs: shapes and dtypes go through, values there are none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

DEVICE = torch.device("meta")


class _Refuse(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor) and x.dtype == torch.float64 and x.device.type == DEVICE.type:
                raise TypeError("the device has no float64")
        return out


@contextlib.contextmanager
def no_float64() -> Iterator[torch.device]:
    """Within it, tensors on the given device may not be float64."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Refuse():
        yield DEVICE
