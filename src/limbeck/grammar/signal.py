"""What one forward pass shows: outputs and named activations, captured without editing the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError, TapError, nearest

_NAMES = ("logits", "sample")
"""What libraries call the tensor that a network is for."""


class _Acts(dict[str, Any]):
    """Activations by path; one that was not tapped is told as that."""

    def __missing__(self, path: str) -> Any:
        close = nearest(path, self)
        raise TapError(
            f"tap {path!r}",
            "was not asked for in this pass" + (f"; did you mean {close[0]!r}?" if close else ""),
            given=sorted(self),
            remedy=f"ask for it: ctx.signal(role, batch, [{path!r}]), or in an objective student_taps and teacher_taps; "
            "limbeck show NAME --taps lists them",
        )


@dataclass
class Signal:
    """The output of one call and the activations that were tapped.

    Attributes:
        out: what the model returned (a tensor, or a library's output object).
        acts: tapped activations, by the path they were asked for; of ``path:all`` a tuple of them.
        meta: anything the source adds (a cache's storage tolerance, a sparse teacher's tail rule).
    """

    out: Any
    acts: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.acts, _Acts):
            self.acts = _Acts(self.acts)

    @property
    def output(self) -> Tensor:
        """The output as a tensor: itself, its ``logits``, its ``sample``, or the one tensor of a tuple.

        Raises:
            TapError: there is none, or there are several of which none is called ``logits`` or ``sample``.
        """
        out = self.out
        if isinstance(out, Tensor):
            return out
        for name in _NAMES:
            found = out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)
            if isinstance(found, Tensor):
                return found
        parts = dict(enumerate(out)) if isinstance(out, (tuple, list)) else {}
        parts = dict(out) if isinstance(out, Mapping) else parts
        tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        if len(tensors) == 1 and not isinstance(out, Mapping):
            return next(iter(tensors.values()))
        if tensors:
            shown = ", ".join(f"{name}: {list(x.shape)}" for name, x in tensors.items())
            what = (
                f"{len(tensors)} tensors ({shown}), and none" if len(tensors) > 1 else f"a tensor ({shown}) that is not"
            )
            raise TapError(
                "output",
                f"the model returned {what} called 'logits' or 'sample'",
                expected="one tensor, or its name",
                remedy="return the logits alone, or a dict: {'logits': ..., ...}; a library's model that returns a tuple "
                "does so with return_dict=True",
            )
        raise TapError(
            "output",
            f"the model returned {type(self.out).__name__}, in which no logits were found",
            expected="a tensor, or an object with .logits or .sample",
        )

    @property
    def logits(self) -> Tensor:
        """The output as a tensor (see `output`) of at least float32."""
        out = self.output
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out


def classes_last(out: Any) -> Tensor:
    """A map as libraries return it, ``[N, C, h, w]`` (itself, its ``logits`` or its ``out``), as ``[N, h, w, C]``.

    Raises:
        ShapeError: it is no such map.

    Example:
        >>> classes_last({"out": torch.zeros(2, 5, 8, 6)}).shape
        torch.Size([2, 8, 6, 5])
    """
    named = out.get("out") if isinstance(out, Mapping) else None  # torchvision's name, beside that of an auxiliary head
    z = named if isinstance(named, Tensor) else Signal(out).output
    if z.ndim != 4:
        raise ShapeError("output", given=list(z.shape), expected="a map [N, C, h, w]")
    return z.movedim(1, -1)


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


def parsed(path: str) -> tuple[str, bool, str]:
    """What a tap's path says: the module, whether its input is meant, and which call (``all``, a number, or empty).

    Example:
        >>> parsed("head.0:in:all"), parsed("head")
        (('head.0', True, 'all'), ('head', False, ''))
    """
    rest, _, last = path.rpartition(":")
    which = last if rest and (last == "all" or last.isdecimal()) else ""
    name = rest if which else path
    return name.removesuffix(":in"), name.endswith(":in"), which


def _shown(act: Any) -> bool:
    if isinstance(act, tuple):
        return bool(act) and all(isinstance(a, Tensor) for a in act)
    return isinstance(act, Tensor)


_HELD: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Activations that worked in place -> how many taps keep them from it."""


class _Hook:
    """Tells a tap what a module was given, or returned. A copied network is not tapped by it: it stays the tap's own."""

    def __init__(self, tap: Tap, path: str) -> None:
        _, self.enters, which = parsed(path)
        self.tap, self.path, self.several = tap, path, which != ""

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], more: Any) -> None:
        if not self.tap.recording:
            return
        if self.enters:
            value = args[0] if args else next(iter(more.values()))
        else:
            value = more[0] if isinstance(more, (tuple, list)) else more
        self.tap._record(self.path, value, self.several)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return self


class Tap:
    """Records what named modules see or return during a forward pass.

    Hooks are set once (before any ``torch.compile``); they record only inside ``with tap:``. With ``lasting=False`` they are
    there only while it records: between two passes the network has none, so it can be pickled, copied and exported.

    Args:
        module: the model, unedited.
        paths: module names as ``named_modules()`` spells them; ``name:in`` records the first input instead of the
            output. The empty name is the model itself. Of a module that runs several times in a pass (a head over the
            maps of a pyramid, a block that is used again) the last call counts; ``name:0`` (or ``name:in:0``) is the
            first, ``name:all`` a tuple of all, in order.
        lasting: keep the hooks between passes.

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

    def __init__(self, module: nn.Module, paths: Iterable[str], lasting: bool = True) -> None:
        self.module, self.lasting = module, lasting
        self.paths: tuple[str, ...] = ()
        self.acts: dict[str, Any] = {}
        self.calls: dict[str, list[Any]] = {}
        self.recording = False
        self._handles: list[Any] = []
        self._set: list[tuple[nn.Module, Any, bool]] = []  # module, hook, whether it sees the input
        self._inplace: list[nn.Module] = []
        self.add(paths)

    def add(self, paths: Iterable[str]) -> None:
        """Set hooks on further paths; a path that is already tapped is left alone."""
        fresh = [p for p in dict.fromkeys(paths) if p not in self.paths]
        targets = [(p, module_at(self.module, parsed(p)[0])) for p in fresh]
        for path, target in targets:
            enters = parsed(path)[1]
            self._set.append((target, _Hook(self, path), enters))
        self.paths = (*self.paths, *fresh)
        if self.lasting:
            self._attach()

    def _attach(self) -> None:
        """Set the hooks that are not set."""
        if self._set and not self._inplace:
            # an in-place activation downstream would overwrite what was recorded
            for child in self.module.modules():
                if getattr(child, "inplace", False) is True or child in _HELD:
                    child.inplace = False  # type: ignore[assignment]
                    _HELD[child] = _HELD.get(child, 0) + 1
                    self._inplace.append(child)
        for target, hook, enters in self._set[len(self._handles) :]:
            if enters:
                self._handles.append(target.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(target.register_forward_hook(hook))

    def _detach(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for child in self._inplace:
            _HELD[child] = _HELD.get(child, 1) - 1
            if _HELD[child] < 1:
                child.inplace = True  # type: ignore[assignment]
                del _HELD[child]
        self._inplace = []

    def _record(self, path: str, value: Any, several: bool) -> None:
        if several:
            self.calls.setdefault(path, []).append(value)
        else:
            self.acts[path] = value

    def __getstate__(self) -> dict[str, Any]:
        left = {"acts": {}, "calls": {}, "recording": False, "_handles": [], "_set": [], "_inplace": []}
        return {**self.__dict__, **left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        paths = state["paths"]
        self.__dict__.update(state, paths=())
        self.add(paths)  # hooks of its own, on the copied network

    def __enter__(self) -> Tap:
        if not self.lasting:
            self._attach()
        self.acts, self.calls = {}, {}
        self.recording = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.recording = False
        if not self.lasting:
            self._detach()
        if exc[0] is None:
            for path, shown in self.calls.items():
                which = parsed(path)[2]
                if which == "all":
                    self.acts[path] = tuple(shown)
                elif int(which) < len(shown):
                    self.acts[path] = shown[int(which)]
                else:
                    raise TapError(
                        f"tap {path!r}",
                        f"the module ran {len(shown)} time{'s' if len(shown) > 1 else ''} in this forward pass",
                        expected=f"a number up to {len(shown) - 1}, or all",
                    )
            self.calls = {}
            missing = [p for p in self.paths if not _shown(self.acts.get(p))]
            if missing:
                raise TapError(
                    f"tap {missing[0]!r}",
                    "the module did not run, or returned no tensor, in this forward pass",
                    remedy="tap a module that the forward pass uses; with torch.compile, tap before compiling",
                )

    def close(self) -> None:
        """Remove the hooks, and let activations work in place again that did."""
        self._detach()
        self._set, self._inplace, self.paths = [], [], ()


Edit = Callable[[Tensor], Tensor]
"""What is put in the place of an activation."""


@contextmanager
def edited(module: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """For a while named modules return something else, or see something else (``name:in``); the model itself stays as it is.

    Args:
        module: the model.
        edits: path -> function of the output (of a tuple its first tensor), or of the first input. Taps show what it returns.

    Raises:
        TapError: a path names no module, or a module shows no tensor there.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Identity())
        >>> with edited(net, {"0": torch.zeros_like}):
        ...     float(net(torch.ones(1, 2)).abs().sum())
        0.0
    """

    def changed(path: str, value: Any) -> Any:
        first = value[0] if isinstance(value, (tuple, list)) else value
        if not isinstance(first, Tensor):
            raise TapError(f"edit {path!r}", "the module shows no tensor there", given=type(first).__name__)
        new = edits[path](first)
        return type(value)((new, *value[1:])) if isinstance(value, (tuple, list)) else new

    handles: list[Any] = []
    try:
        for path in edits:
            name, inward, which = parsed(path)
            if which:
                raise TapError(f"edit {path!r}", "all calls of a module are edited alike", remedy=f"write {name!r}")
            target = module_at(module, name)
            if inward:
                hook: Any = lambda _module, args, path=path: changed(path, args)  # noqa: E731
                handles.append(target.register_forward_pre_hook(hook, prepend=True))
            else:
                hook = lambda _module, _args, out, path=path: changed(path, out)  # noqa: E731
                handles.append(target.register_forward_hook(hook, prepend=True))  # so that taps see what it makes
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def frozen_statistics(module: nn.Module) -> list[nn.Module]:
    """The submodules that keep running statistics (BatchNorm and its like) and whose weights are frozen.

    Asked are their own weights; of layers without any, those of the nearest module around them that has some.
    """
    found: list[nn.Module] = []

    def look(part: nn.Module, frozen: bool) -> None:
        wanted = [p.requires_grad for p in part.parameters()]
        frozen = not any(wanted) if wanted else frozen
        if frozen and isinstance(getattr(part, "running_mean", None), Tensor):
            found.append(part)
        for child in part.children():
            look(child, frozen)

    look(module, False)
    return found


def train_mode(module: nn.Module, keep_statistics: bool = True) -> None:
    """Training mode; with ``keep_statistics`` what `frozen_statistics` finds stays in evaluation mode."""
    module.train()
    for part in frozen_statistics(module) if keep_statistics else ():
        part.eval()


def shared_tensors(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """What training the student would change in its teacher: (the student's name, the teacher's) of tensors in one memory.

    Frozen weights may be shared: nobody moves them.
    """
    still = set(map(id, frozen_statistics(student)))
    moving: dict[str, Tensor] = {n: p for n, p in student.named_parameters() if p.requires_grad}
    for path, part in student.named_modules():
        if id(part) not in still and isinstance(getattr(part, "running_mean", None), Tensor):
            moving |= {f"{path}.{n}".removeprefix("."): b for n, b in part.named_buffers(recurse=False)}
    theirs: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers()):
        if (extent := _extent(tensor)) is not None:
            theirs.setdefault(extent[0], []).append((*extent[1:], name))
    found = []
    for name, tensor in moving.items():
        if (extent := _extent(tensor)) is not None:
            start, stop = extent[1:]
            found += [(name, other) for a, b, other in theirs.get(extent[0], ()) if a < stop and start < b]
    return found


def _extent(tensor: Tensor) -> tuple[int, int, int] | None:
    """Which storage a tensor lies in, and from which byte to which; ``None`` where it lies in no memory of its own."""
    if tensor.device.type == "meta" or not tensor.numel() or type(tensor.data) is not Tensor:
        return None
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return tensor.untyped_storage().data_ptr(), start, start + (last + 1) * tensor.element_size()


def refuse_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher in whose memory training would move both.

    Raises:
        ConfigError: what is shared, and how to copy it.
    """
    found = shared_tensors(student, teacher)
    if not found:
        return
    if student is teacher:
        what = f"it is the same object as the teacher ({len(found)} tensors)"
    else:
        named = [f"{a!r}" if a == b else f"{a!r} is the teacher's {b!r}" for a, b in found[:5]]
        rest = f" and {len(found) - 5} more" if len(found) > 5 else ""
        what = (
            f"it shares {len(found)} tensor{'s' if len(found) > 1 else ''} with the teacher: {', '.join(named)}{rest}"
        )
    raise ConfigError(
        "student",
        f"{what}, so training it would change its teacher",
        expected="a network with weights of its own",
        remedy="give a copy, student=copy.deepcopy(net)"
        + ("" if student is teacher else ", or freeze what both use: requires_grad_(False)"),
    )


def device_of(module: Any) -> torch.device:
    """Where a module's first tensor lives; the CPU for what has none."""
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")
