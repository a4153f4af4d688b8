"""What one forward pass shows: outputs and named activations, captured without editing the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import TapError, nearest


@dataclass
class Signal:
    """The output of one call and the activations that were tapped.

    Attributes:
        out: what the model returned (a tensor, or a library's output object).
        acts: tapped activations, by the path they were asked for.
        meta: anything the source adds (a cache's storage tolerance, a sparse teacher's tail rule).
    """

    out: Any
    acts: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """The output as a tensor of at least float32: itself, its ``logits``, or its ``sample``."""
        out = self.out
        for name in ("logits", "sample"):
            if not isinstance(out, Tensor):
                found = out.get(name) if isinstance(out, dict) else getattr(out, name, None)
                out = found if isinstance(found, Tensor) else out
        if isinstance(out, (tuple, list)) and out and isinstance(out[0], Tensor):
            out = out[0]
        if not isinstance(out, Tensor):
            raise TapError(
                "signal.logits",
                f"the model returned {type(self.out).__name__}, in which no logits were found",
                expected="a tensor, or an object with .logits or .sample",
            )
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out


def module_at(module: nn.Module, path: str) -> nn.Module:
    """The submodule that ``named_modules()`` calls ``path``; TapError with the nearest names otherwise."""
    known = dict(module.named_modules())
    if path in known:
        return known[path]
    names = [n for n in known if n]
    close = nearest(path, names, 5) or [n for n in names if path.split(".")[-1] in n][:5]
    raise TapError(
        f"tap {path!r}",
        f"{type(module).__name__} has no module of that name",
        remedy=f"did you mean {', '.join(map(repr, close))}?" if close else f"known: {', '.join(names[:20])}",
    )


class Tap:
    """Records what named modules see or return during a forward pass.

    Hooks are set once (before any ``torch.compile``); they record only inside ``with tap:``.

    Args:
        module: the model, unedited.
        paths: module names as ``named_modules()`` spells them; ``name:in`` records the first input instead of the
            output. The empty name is the model itself.

    Raises:
        TapError: a path names no module (nearest names are listed), or showed nothing during the pass.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> tap = Tap(net, ["0", "2:in"])
        >>> with tap:
        ...     _ = net(torch.zeros(5, 4))
        >>> tap.acts["0"].shape, tap.acts["2:in"].shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(self, module: nn.Module, paths: Iterable[str]) -> None:
        self.module = module
        self.paths: tuple[str, ...] = ()
        self.acts: dict[str, Tensor] = {}
        self.recording = False
        self._handles: list[Any] = []
        self.add(paths)

    def add(self, paths: Iterable[str]) -> None:
        """Set hooks on further paths; a path that is already tapped is left alone."""
        fresh = [p for p in dict.fromkeys(paths) if p not in self.paths]
        targets = [(p, module_at(self.module, p.removesuffix(":in"))) for p in fresh]
        if fresh:
            # an in-place activation downstream would overwrite what was recorded
            for child in self.module.modules():
                if getattr(child, "inplace", False) is True:
                    child.inplace = False  # type: ignore[assignment]
        for path, target in targets:
            if path.endswith(":in"):
                self._handles.append(target.register_forward_pre_hook(self._input_hook(path), with_kwargs=True))
            else:
                self._handles.append(target.register_forward_hook(self._output_hook(path)))
        self.paths = (*self.paths, *fresh)

    def _output_hook(self, path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            if self.recording:
                self.acts[path] = out[0] if isinstance(out, (tuple, list)) else out

        return hook

    def _input_hook(self, path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.recording:
                self.acts[path] = args[0] if args else next(iter(kwargs.values()))

        return hook

    def __enter__(self) -> Tap:
        self.acts = {}
        self.recording = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.recording = False
        if exc[0] is None:
            missing = [p for p in self.paths if not isinstance(self.acts.get(p), Tensor)]
            if missing:
                raise TapError(
                    f"tap {missing[0]!r}",
                    "the module did not run, or returned no tensor, in this forward pass",
                    remedy="tap a module that the forward pass uses; with torch.compile, tap before compiling",
                )

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.paths = [], ()


@contextmanager
def through(module: nn.Module) -> Iterator[nn.Module]:
    """Graph to the input, parameters frozen, evaluation mode; everything restored afterwards."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    training = {m: m.training for m in module.modules()}
    for p in wanted:
        p.requires_grad_(False)
    module.eval()
    try:
        yield module
    finally:
        for p in wanted:
            p.requires_grad_(True)
        for m, was in training.items():
            m.training = was


@contextmanager
def evaluating(modules: Iterable[Any]) -> Iterator[None]:
    """Evaluation mode for a while; every submodule's own mode is restored. What is no module is left alone."""
    modes = {m: m.training for top in modules if isinstance(top, nn.Module) for m in top.modules()}
    for m in modes:
        m.training = False
    try:
        yield
    finally:
        for m, was in modes.items():
            m.training = was


def device_of(module: Any) -> torch.device:
    """Where a module's first tensor lives; the CPU for what has none."""
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")
