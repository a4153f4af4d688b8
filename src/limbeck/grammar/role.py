"""A named participant: who is trained, who is frozen, who is the average of another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine import distributed as dist
from limbeck.errors import ConfigError, ShapeError
from limbeck.grammar.signal import Signal, Tap, train_mode

Mode = Literal["trained", "frozen", "averaged"]


@dataclass(frozen=True)
class Contract:
    """What a model expects at its input and how its outputs are read. Inserted visibly, never inside the model.

    Attributes:
        mean, std: normalisation of each channel of images in [0, 1], or of each column of a table; empty for none.
        size: spatial size (height, width) the input is resized to; ``None`` leaves it.
        channels: number of input channels; grey is repeated, colour averaged to fit.
        classes: for each of the task's classes the model's own output index; ``None`` when they agree.
        scale, shift: for numbers: what brings the model's outputs into the task's units; empty when they agree.
        transform: a further input transform, by name for the report (whitening); called last.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None
    classes: tuple[int, ...] | None = None
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    transform: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)

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

    def outputs(self, out: Any) -> Any:
        """Outputs in the task's class order and units; where they differ, an output object becomes its logits."""
        if self.classes is None and not self.scale:
            return out
        z = out if isinstance(out, Tensor) else Signal(out).logits
        if self.classes is not None:
            z = z[..., list(self.classes)]
        if self.scale:
            scale, shift = (torch.tensor(v, dtype=z.dtype, device=z.device) for v in (self.scale, self.shift))
            z = z * scale + shift
        return z

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

    Args:
        module: the network (or the module that holds what is optimised: images, Gaussians, prompts). A frozen role may
            also be any object with ``answer(batch, taps) -> Signal``: a recorded cache, a remote endpoint.
        mode: ``trained`` (graph, train mode, an optimiser), ``frozen`` (no graph, evaluation mode, hashed at both ends
            of each stage) or ``averaged`` (no graph; follows the role named by ``of``).
        of: for ``averaged``: the role that is followed.
        decay: for ``averaged``: the share of the old value kept each step, a number or a function (step, total) -> number.
        contract: how inputs and outputs are adapted to the module.
        batch_stats: a frozen role that nevertheless normalises by the batch's own statistics (some papers want it).
        shard: split the role over processes with ``fully_shard`` (large models).
        feed: how a batch goes in, if not as the task says: (module, batch) -> output.
    """

    def __init__(
        self,
        module: Any,
        mode: Mode = "trained",
        *,
        of: str | None = None,
        decay: float | Callable[[int, int], float] | None = None,
        contract: Contract | None = None,
        batch_stats: bool = False,
        shard: bool = False,
        feed: Callable[[Any, dict[str, Any]], Any] | None = None,
    ) -> None:
        if mode not in ("trained", "frozen", "averaged"):
            raise ConfigError("role.mode", given=mode, expected="'trained', 'frozen' or 'averaged'")
        if mode == "averaged" and (of is None or decay is None):
            raise ConfigError("role.decay", "an averaged role needs of= (whom it follows) and decay=")
        if mode != "frozen" and not isinstance(module, nn.Module):
            raise ConfigError("role.module", given=type(module).__name__, expected="a torch.nn.Module")
        self.module = module
        self.mode: Mode = mode
        self.of, self.decay = of, decay
        self.contract = contract or Contract()
        self.batch_stats = batch_stats
        self.shard = shard
        self.feed = feed
        self.tap: Tap | None = None
        self.wanted: tuple[str, ...] = ()  # what a recorded or remote role is asked to show at every call
        self.changed = False  # a frozen role that a stage's `begin` has changed must be in the checkpoint
        self.keep_statistics = True  # as the optimiser's settings say
        self.compile = False
        self._compiled: tuple[Any, Callable[..., Any]] | None = None
        self._plain: nn.Module | None = None
        self.freeze()

    @property
    def call(self) -> Callable[..., Any]:
        """What is called: the module, compiled where the engine wants it so."""
        if not self.compile or not isinstance(self.module, nn.Module):
            return self.module
        if self._compiled is None or self._compiled[0] is not self.module:
            self._compiled = (self.module, torch.compile(self.module))
        return self._compiled[1]

    def freeze(self) -> None:
        """Bring the module into the state its mode demands."""
        if not isinstance(self.module, nn.Module):
            return
        if self.mode == "trained":
            train_mode(self.module, self.keep_statistics)
        else:
            self.module.requires_grad_(False)
            self.module.train(self.batch_stats)

    def want(self, paths: tuple[str, ...]) -> None:
        """Show these activations at every call: by hooks, or by asking for them where there is no network."""
        if isinstance(self.module, nn.Module):
            self.taps(paths)
        else:
            self.wanted = tuple(dict.fromkeys((*self.wanted, *paths)))

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
        """The parameters an optimiser moves, by name."""
        if self.mode != "trained":
            return {}
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def split(self) -> None:
        """Split the module over the processes (`limbeck.engine.distributed.shard`); `join` undoes it. Done once."""
        if self._plain is None:
            self._plain = hollow(self.module)
            dist.shard(self.module)

    def join(self) -> bool:
        """A split module made whole again, as a plain module in its place; whether there was one."""
        if self._plain is None:
            return False
        state = {k: dist.gathered(v) for k, v in self.module.state_dict().items()}
        wanted = {n: p.requires_grad for n, p in self.module.named_parameters()}
        self._plain.load_state_dict(state, assign=True)
        for n, p in self._plain.named_parameters():
            p.requires_grad_(wanted[n])
        self.module, self._plain = self._plain, None
        if self.tap is not None:
            paths, self.tap = self.tap.paths, None
            self.tap = Tap(self.module, paths)
        self.freeze()
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


def hollow(module: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no values, so that it takes no memory worth naming."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


def averaged(role: Role, of: str, decay: float | Callable[[int, int], float]) -> Role:
    """A fresh averaged copy of a role."""
    return Role(copy.deepcopy(role.module), "averaged", of=of, decay=decay, contract=role.contract, feed=role.feed)
