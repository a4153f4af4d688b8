"""A named participant: a network that learns in some stages and stands still in others, or the average of another."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.temperature import divide_by_std
from limbeck.grammar.signal import Signal, Tap, train_mode


@dataclass(frozen=True)
class Contract:
    """What a model expects at its input and how its outputs are read. Inserted visibly, never inside the model.

    Attributes:
        mean, std: normalisation of each channel of images in [0, 1], or of each column of a table; empty for none.
        size: spatial size (height, width) the input is resized to; ``None`` leaves it.
        channels: number of input channels; grey is repeated, colour averaged to fit.
        classes: for each of the task's classes the model's own output index; ``None`` when they agree.
        width: how many outputs the model has, as its last dimension; ``None`` where that is not known.
        scale, shift: for numbers: what brings the model's outputs into the task's units; empty when they agree.
        by_std: in training, divide the logits by their own standard deviation, ``through`` which gradients flow or that is
            ``detached``; empty leaves them.
        transform: a further input transform, by name for the report (whitening); called last.
        key: the tensor of a batch that it acts on.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None
    classes: tuple[int, ...] | None = None
    width: int | None = None
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    by_std: Literal["", "through", "detached"] = ""
    transform: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    key: str = "x"

    @property
    def idle(self) -> bool:
        """Whether inputs are left as they are."""
        return not (self.mean or self.channels or self.size or self.transform)

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs [N, C, H, W] in [0, 1], or rows [N, F], as the model wants them. Integers pass unchanged."""
        if not x.is_floating_point():
            return x
        if x.ndim == 4:
            if self.channels and x.shape[1] != self.channels:
                x = _channels(x, self.channels)
            if self.size and tuple(x.shape[-2:]) != self.size:
                x = nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        if self.mean and x.ndim >= 2:
            shape = (1, -1, *([1] * (x.ndim - 2)))
            mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(shape)
            std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(shape)
            x = (x - mean) / std
        return self.transform(x) if self.transform is not None else x

    def feed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as the model wants it: its own input, ``batch[key]``, adapted; the same batch where there is nothing to."""
        x = batch.get(self.key)
        return batch if self.idle or not isinstance(x, Tensor) else {**batch, self.key: self.inputs(x)}

    def outputs(self, out: Any) -> Any:
        """Outputs in the task's class order and units; where they differ, an output object becomes its logits.

        Raises:
            ShapeError: the last dimension is not that of the classes.
        """
        if self.width is not None:
            check_classes_last(Signal(out).output, self.width, "output")
        if self.classes is None and not self.scale and not self.by_std:
            return out
        z = out if isinstance(out, Tensor) else Signal(out).logits
        if self.classes is not None:
            z = z[..., list(self.classes)]
        if self.scale:
            scale, shift = (torch.tensor(v, dtype=z.dtype, device=z.device) for v in (self.scale, self.shift))
            z = z * scale + shift
        return divide_by_std(z, detach=self.by_std == "detached") if self.by_std else z

    def describe(self) -> str:
        """The contract in words, for the log: empty when nothing is inserted."""
        said = []
        if self.channels:
            said.append(f"{self.channels} channels")
        if self.size:
            said.append(f"resized to {self.size[0]}x{self.size[1]}")
        if self.mean:
            said.append(f"normalised by mean {list(self.mean)} and std {list(self.std)}")
        if self.classes is not None:
            said.append(f"classes matched by name ({len(self.classes)})")
        if self.scale:
            said.append("numbers brought into the task's units")
        return ", ".join(said)

    def as_config(self) -> dict[str, Any]:
        """The contract as plain values, written beside an exported student."""
        return {
            "range": [0.0, 1.0],
            "mean": list(self.mean),
            "std": list(self.std),
            "size": list(self.size) if self.size else None,
            "channels": self.channels,
        }

    def with_(self, **changes: Any) -> Contract:
        """A changed copy."""
        return replace(self, **changes)


def check_classes_last(z: Tensor, width: int, argument: str) -> None:
    """Refuse outputs whose last dimension is another than that of the classes.

    Raises:
        ShapeError: what was given, and how to bring it into order.
    """
    if z.ndim and z.shape[-1] == width:
        return
    remedy = "check the network's last layer"
    if z.ndim > 2 and width in z.shape:
        remedy = f"let the network, or feed, return z.movedim({z.shape.index(width)}, -1)"
    raise ShapeError(argument, given=list(z.shape), expected=f"[..., {width}], the classes last", remedy=remedy)


def _channels(x: Tensor, wanted: int) -> Tensor:
    if x.shape[1] == 1:
        return x.expand(-1, wanted, -1, -1)
    if wanted == 1:
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device)  # ITU-R BT.601 luma
        if x.shape[1] == 3:
            return (x * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)
        return x.mean(1, keepdim=True)
    raise ShapeError("contract.channels", given=tuple(x.shape), expected=f"images with 1 or {wanted} channels")


class Role:
    """A participant of a method.

    Who learns is said by the stages alone: a role that a stage's ``optim`` names learns in it (a graph, training mode),
    and stands still in every other (no graph, evaluation mode, compared by hash at both ends of the stage).

    Args:
        module: the network (or the module that holds what is optimised: images, Gaussians, prompts). A role that never
            learns may also be any object with ``answer(batch, taps) -> Signal``: a recorded cache, a remote endpoint.
        of: this role is an average: the role that it follows, in the stages in which that one learns.
        decay: of an average: the share of the old value kept each step, a number or a function (step, total) -> number.
        contract: how inputs and outputs are adapted to the module.
        batch_stats: standing still, it normalises by the batch's own statistics all the same (some papers want it).
        shard: split the role over processes with ``fully_shard`` (large models).
        feed: how a batch goes in, if not as the task says: (module, batch) -> output.

    Attributes:
        learns: whether it learns in the present stage; set by the engine.
    """

    def __init__(
        self,
        module: Any,
        *,
        of: str | None = None,
        decay: float | Callable[[int, int], float] | None = None,
        contract: Contract | None = None,
        batch_stats: bool = False,
        shard: bool = False,
        feed: Callable[[Any, dict[str, Any]], Any] | None = None,
    ) -> None:
        if (of is None) != (decay is None):
            raise ConfigError("role.decay", "an average needs both of= (the role it follows) and decay=")
        if not isinstance(module, nn.Module) and (of is not None or not hasattr(module, "answer")):
            raise ConfigError(
                "role.module",
                given=type(module).__name__,
                expected="a torch.nn.Module" + (", or an object with answer(batch, taps)" if of is None else ""),
            )
        self.module = module
        self.of, self.decay = of, decay
        self.contract = contract or Contract()
        self.batch_stats = batch_stats
        self.shard = shard
        self.feed = feed
        self.tap: Tap | None = None
        self.wanted: tuple[str, ...] = ()  # what a recorded or remote role is asked to show at every call
        self.learns = False
        self.keep_statistics = True  # as the optimiser's settings say
        self.compile = False
        self._compiled: tuple[Any, Callable[..., Any]] | None = None
        self._plain: nn.Module | None = None
        self._alone: list[tuple[nn.Module, str, nn.Module]] = []  # BatchNorm layers that stand-ins replace
        self._trained: frozenset[str] = frozenset()  # the parameters that move when it learns
        self._still: nn.Module | None = None  # the module that was told to stand still
        if of is not None:
            module.requires_grad_(False)

    @property
    def call(self) -> Callable[..., Any]:
        """What is called: the module, compiled where the engine wants it so."""
        if not self.compile or not isinstance(self.module, nn.Module):
            return self.module
        if self._compiled is None or self._compiled[0] is not self.module:
            self._compiled = (self.module, compiled(self.module))
        return self._compiled[1]

    def called(self, by: str) -> Callable[..., Any]:
        """The module, or one of its methods by name.

        Raises:
            ConfigError: it has no such method.
        """
        if not by:
            return self.call
        method = getattr(self.module, by, None)
        if not callable(method) or by.startswith("_"):
            known = [n for n in dir(self.module) if n not in dir(nn.Module) and n[0] != "_"]
            known = [n for n in known if callable(getattr(self.module, n, None)) and n not in self.module._modules]
            raise ConfigError.unknown("by", by, known, f"method of {type(self.module).__name__}")
        view = getattr(type(self.module), "method_of", None)  # of a view, with the adapter acting
        if self.shard and dist.world() > 1:
            dist.also_forward(self.module, by)
        return view(self.module, by) if view is not None else method

    def _note(self) -> None:
        """Keep in mind which parameters its maker left trainable, while the module itself says so."""
        if isinstance(self.module, nn.Module) and self._still is not self.module:
            self._trained = frozenset(n for n, p in self.module.named_parameters() if p.requires_grad)

    def _stand(self) -> None:
        self.learns = False
        if isinstance(self.module, nn.Module):
            self.module.requires_grad_(False)
            self.module.train(self.batch_stats)
            self._still = self.module

    def _wake(self) -> None:
        if isinstance(self.module, nn.Module) and self._still is self.module:
            for name, p in self.module.named_parameters():
                p.requires_grad_(name in self._trained)
        self._still = None

    def narrow(self, learning: Collection[str]) -> dict[str, nn.Parameter]:
        """Of a role that learns, only these parameters, until it rests: the others are returned, and stand still."""
        still = {n: p for n, p in self.parameters().items() if n not in learning}
        if still:
            for p in still.values():
                p.requires_grad_(False)
            self._still = self.module
            train_mode(self.module, self.keep_statistics)
        return still

    def rest(self) -> None:
        """As it was made, between stages and when a run is over: in evaluation mode, what is trainable marked so."""
        self._wake()
        self.learns = False
        if isinstance(self.module, nn.Module):
            self.module.eval()

    def want(self, paths: tuple[str, ...]) -> None:
        """Show these activations at every call: by hooks, or by asking for them where there is no network."""
        if isinstance(self.module, nn.Module):
            self.taps(paths)
        else:
            self.wanted = tuple(dict.fromkeys((*self.wanted, *paths)))

    def untap(self) -> None:
        """Take the hooks off the network again: its owner may pickle, copy, export and compile it as before."""
        if self.tap is not None:
            self.tap.close()
            self.tap = None

    def taps(self, paths: tuple[str, ...]) -> Tap | None:
        """The role's tap, with hooks on ``paths``; ``None`` when nothing is tapped."""
        if not paths and self.tap is None:
            return None
        if self.tap is None:
            self.tap = Tap(self.module, paths)
        else:
            self.tap.add(paths)
        return self.tap

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that an optimiser moves where the role learns, by name; none of an average."""
        if self.of is not None or not isinstance(self.module, nn.Module):
            return {}
        self._note()
        return {n: p for n, p in self.module.named_parameters() if n in self._trained}

    def split(self, synchronised: bool = False) -> None:
        """Split the module over the processes (`limbeck.engine.distributed.shard`); `join` undoes it. Done once."""
        if self._plain is None:
            self._plain = hollow(self.module)
            if synchronised:
                dist.synchronise(self.module)
            dist.shard(self.module)

    def synchronise(self) -> None:
        """BatchNorm that normalises over all processes, in place of each; `join` puts back what was there."""
        if isinstance(self.module, nn.Module) and self._plain is None:
            self._alone += dist.synchronise(self.module)

    def join(self) -> bool:
        """A split module made whole again, as a plain module in its place; whether there was one."""
        dist.part(self._alone)
        self._alone = []
        if self._plain is None:
            return False
        dist.unshard_into(self._plain, self.module)
        self.module, self._plain = self._plain, None
        if self.tap is not None:
            paths, self.tap = self.tap.paths, None
            self.tap = Tap(self.module, paths)
        return True

    @property
    def device(self) -> torch.device:
        """Where the role lives."""
        if isinstance(self.module, nn.Module):
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                return tensor.device
        return torch.device("cpu")

    def follow(self, other: Role, step: int, total: int) -> None:
        """Move an averaged role towards the role it follows: one fused interpolation, buffers copied."""
        decay = self.decay(step, total) if callable(self.decay) else float(self.decay or 0.0)
        with torch.no_grad():
            mine, theirs = list(self.module.parameters()), list(other.module.parameters())
            torch._foreach_lerp_(mine, theirs, 1.0 - decay)
            for a, b in zip(self.module.buffers(), other.module.buffers(), strict=True):
                a.copy_(b)


def cast(roles: Mapping[str, Role], learners: Collection[str]) -> None:
    """Let some roles learn and all others stand still.

    Modules that two roles share follow the one that learns.
    """
    for role in roles.values():
        role._note()
    for name, role in roles.items():
        if name not in learners:
            role._stand()
    for name in learners:
        role = roles[name]
        role._still = role.module  # what it shares with one that stands was frozen just now
        role._wake()
        role.learns = True
        train_mode(role.module, role.keep_statistics)


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The module compiled for itself: torch keeps graphs by code, and by default looks at no hooks before it takes one.

    A network of the same class without taps (the baseline, an average) would lend its graph, which records nothing.
    """
    given: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        given["isolate_recompiles"] = True
    else:  # before torch had that argument
        torch._dynamo.config.skip_nnmodule_hook_guards = False
    made: Callable[..., Any] = torch.compile(module, **given)
    return made


def hollow(module: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no values, and whose buffers are the module's own: it takes no memory."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()
    }
    memo |= {id(b): b for b in module.buffers()}
    return copy.deepcopy(module, memo)


def averaged(role: Role, of: str, decay: float | Callable[[int, int], float]) -> Role:
    """A fresh averaged copy of a role."""
    return Role(copy.deepcopy(role.module), of=of, decay=decay, contract=role.contract, feed=role.feed)
