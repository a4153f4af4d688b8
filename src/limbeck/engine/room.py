"""Memory of the host and of devices: what cannot fit is refused before it is tried, what ran out is told by its setting."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from limbeck.engine import interrupt
from limbeck.errors import OutOfMemory, Stopped, human
from limbeck.grammar.method import Batch
from limbeck.storage.memory import available, exhausted

TENSORS = 50_000
"""How many tensors a network may be made of."""

_MAKERS = frozenset(
    (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.eye, torch.randint)
)


def free_on(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; ``None`` where it does not say."""
    if device.type == "cuda":
        left, _ = torch.cuda.mem_get_info(device)
        return left + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available() if device.type == "cpu" else None


class _Watched(TorchFunctionMode):
    """Looks at each new tensor before it is made."""

    def __init__(self, refuse: Callable[[str], OutOfMemory]) -> None:
        super().__init__()
        self.refuse, self.made = refuse, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _MAKERS:
            self._look(func, args, given)
        return func(*args, **given)

    def _look(self, func: Any, args: Any, given: Mapping[str, Any]) -> None:
        device = torch.device(given.get("device") or "cpu")
        if device.type == "meta":
            return
        asked = interrupt.requested()
        if asked is not None:
            raise Stopped(asked, "nothing was trained yet; type the same command again")
        self.made += 1
        if self.made > TENSORS:
            raise self.refuse(f"is made of more than {TENSORS:,} tensors")
        try:
            like = func(*args, **{**given, "device": "meta", "pin_memory": False})
        except Exception:  # what is wrong with it is said when it is made
            sizes = [n for a in args for n in (a if isinstance(a, (tuple, list, torch.Size)) else [a])]
            if all(isinstance(n, int) for n in sizes) and math.prod(sizes) >= 2**60:
                raise self.refuse(f"needs a tensor of {' x '.join(f'{n:,}' for n in sizes)} values") from None
            return
        count = like.numel() * like.element_size()
        free = free_on(device)
        if free is not None and count > free:
            shape = " x ".join(f"{n:,}" for n in like.shape)
            raise self.refuse(
                f"needs {human(count, 'B')} for a tensor of {shape} values, and {human(free, 'B')} are free"
            )


@contextlib.contextmanager
def within_memory(argument: str, config: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Inside, no tensor is made that is larger than the memory there is: a network is refused while it is built.

    Args:
        argument: what is built (``student``).
        config: its settings; the largest number among them is named.

    Raises:
        OutOfMemory: a tensor is too large, there are too many of them, or memory ran out all the same.
    """
    where = largest(config or {}, argument)

    def refuse(problem: str) -> OutOfMemory:
        return OutOfMemory(where, f"the network {problem}", remedy=f"lower {where}, or choose a smaller {argument}")

    try:
        with _Watched(refuse):
            yield
    except Exception as error:
        if exhausted(error):
            raise refuse("does not fit into memory") from None
        raise


def largest(config: Mapping[str, Any], argument: str) -> str:
    """The setting with the largest number in it: what makes a thing too large.

    Example:
        >>> largest({"use": "mlp", "hidden": [64, 10**9], "dropout": 0.5}, "student")
        'student.hidden'
    """
    found: list[tuple[float, str]] = []
    for name, value in config.items():
        for number in _numbers(value):
            found.append((number, f"{argument}.{name}"))
    most = max(found, default=(0.0, argument))
    return most[1] if most[0] > 1 else argument


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield abs(value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)


@contextlib.contextmanager
def telling(argument: str, remedy: str) -> Iterator[None]:
    """Turn memory that ran out inside into one sentence that names the setting.

    Raises:
        OutOfMemory: it ran out.
    """
    try:
        yield
    except Exception as error:
        if not exhausted(error):
            raise
        where = "the device's memory" if "CUDA" in str(error) else "memory"
        raise OutOfMemory(argument, f"{where} is exhausted", remedy=remedy) from None


def bytes_of(batch: Batch) -> int:
    """Bytes of a batch's tensors."""
    return sum(v.numel() * v.element_size() for v in batch.values() if isinstance(v, Tensor))
