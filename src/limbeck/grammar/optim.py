"""How a role is optimised: the optimiser, its rate over time, clipping. Plain settings, read from the recipe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.component import Settings

Schedule = Literal["constant", "linear", "cosine", "poly", "step", "drop"]


class Optim(Settings):
    """How a stage is optimised.

    Args:
        steps: number of optimizer steps.
        epochs: passes over the training data, in place of ``steps``, which is then ignored; ``null`` uses ``steps``.
        batch_size: items per optimizer step, in all processes and micro-batches together.
        lr: the peak learning rate.
        sampling: ``all`` goes through all items in a new order each epoch; ``balanced`` draws as many items with
            replacement, each class equally often.
        optimizer: any optimizer of torch.optim, in lower case (``sgd``, ``adam``, ``adamw``, ``rmsprop``, ``nadam``...).
        weight_decay: weight decay, multiplied by the learning rate.
        decay_vectors: weight decay for vectors and scalars too: biases and the weights of normalisation layers; off
            decays matrices and kernels alone, as most training recipes do.
        layer_decay: factor by which the learning rate falls from each layer to the one before it (0.75 is common for
            fine-tuning transformers): the output layer learns at ``lr``, the first layer slowest. Layers are counted by
            the first number in a parameter's name (``blocks.3.mlp.weight``); ``null`` uses one rate for all.
        weight_decay_end: value of the weight decay after the last step, reached along half a cosine; ``null`` keeps it
            constant. Parameters with their own ``weight_decay`` (``groups``) keep it.
        momentum: momentum, for optimizers that have it.
        schedule: ``constant``; ``linear`` or ``cosine`` to zero; ``poly``: (1 - share done) to the power ``power``;
            ``step``: times ``gamma`` at each of the ``milestones``; ``drop``: a tenth after 1/2.
        milestones: for the schedule ``step``: numbers of steps, or shares of the training (below 1).
        gamma: for the schedule ``step``: factor by which each milestone multiplies the learning rate.
        power: exponent of the schedule ``poly``.
        floor: lowest learning rate; ``linear``, ``cosine`` and ``poly`` end there.
        warmup: number of linear warm-up steps.
        clip: largest gradient norm of each role in each phase; ``null`` does not clip.
        clip_by: clip the norm of the whole ``role``, or of each ``parameter`` separately.
        options: further arguments of the optimizer, passed on unchanged.
        groups: other values for some parameters, by patterns of their names (``head.*``, ``*.bias``): ``lr`` (another peak,
            or ``x10`` for ten times the learning rate), ``weight_decay``, or another argument of the optimizer. If several
            patterns match a name, the last one wins.
        only: patterns of the parameters to train; all others of the role are frozen. ``null`` trains all.
        patience: stop training after so many evaluations on the validation split (``engine.eval_every``) without a better
            one; ``null`` trains to the end.
        keep_statistics: frozen layers with running statistics (BatchNorm) keep and use these statistics; if off, they
            normalise by each batch, and their statistics are updated.
    """

    def __init__(
        self,
        steps: int = 1000,
        batch_size: int = 64,
        lr: float = 1e-3,
        optimizer: str = "adamw",
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        schedule: Schedule = "cosine",
        warmup: int = 0,
        clip: float | None = None,
        options: dict[str, Any] | None = None,
        keep_statistics: bool = True,
        milestones: list[float] = [0.5, 0.75],  # noqa: B006 (copied, never changed)
        gamma: float = 0.1,
        power: float = 0.9,
        floor: float = 0.0,
        groups: dict[str, dict[str, Any]] | None = None,
        only: list[str] | None = None,
        weight_decay_end: float | None = None,
        clip_by: Literal["role", "parameter"] = "role",
        epochs: float | None = None,
        decay_vectors: bool = True,
        layer_decay: float | None = None,
        patience: int | None = None,
        sampling: Literal["all", "balanced"] = "all",
    ) -> None:
        if steps < 0:
            raise ValueError("steps must be 0 or more")
        if batch_size < 1:
            raise ValueError("batch_size must be 1 or more")
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError("lr must be a finite number above 0")
        if weight_decay < 0:
            raise ValueError("weight_decay must be 0 or more")
        if weight_decay_end is not None and not 0 <= weight_decay_end < math.inf:
            raise ValueError("weight_decay_end must be 0 or more, or null")
        if warmup < 0 or (steps and epochs is None and warmup > steps):
            raise ValueError(f"warmup must lie between 0 and steps ({steps})")
        if clip is not None and not clip > 0:
            raise ValueError("clip must be above 0, or null for no clipping")
        if optimizer.lower() not in optimizer_names():
            raise ValueError(f"optimizer {optimizer!r} is unknown; known: {', '.join(sorted(optimizer_names()))}")
        if any(not 0 < m < math.inf or (m > 1 and m != int(m)) for m in milestones) or list(milestones) != sorted(
            milestones
        ):
            raise ValueError(
                "milestones must be rising: whole numbers of steps, or shares of the training between 0 and 1"
            )
        if not 0 < gamma <= 1:
            raise ValueError("gamma must be above 0 and at most 1")
        if not 0 < power < math.inf:
            raise ValueError("power must be above 0")
        if not 0 <= floor <= lr:
            raise ValueError(f"floor must lie between 0 and lr ({lr:g})")
        if epochs is not None and not 0 < epochs < math.inf:
            raise ValueError("epochs must be above 0, or null to train for `steps`")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError("layer_decay must be above 0 and at most 1, or null for one learning rate")
        if patience is not None and patience < 1:
            raise ValueError("patience must be 1 or more evaluations, or null to train to the end")
        if only is not None and not only:
            raise ValueError("only must name what learns, as ['head.*']; null lets everything learn")
        self.groups = {str(p): _group(p, given, lr) for p, given in (groups or {}).items()}
        self.only = None if only is None else [str(p) for p in only]
        self.milestones, self.gamma, self.power, self.floor = [*milestones], gamma, power, floor
        self.steps, self.batch_size, self.lr = steps, batch_size, lr
        self.optimizer, self.weight_decay, self.momentum = optimizer.lower(), weight_decay, momentum
        self.schedule: Schedule = schedule
        self.warmup, self.clip, self.options = warmup, clip, dict(options or {})
        self.keep_statistics = keep_statistics
        self.weight_decay_end, self.clip_by = weight_decay_end, clip_by
        self.epochs, self.decay_vectors, self.layer_decay, self.patience = epochs, decay_vectors, layer_decay, patience
        self.sampling = sampling

    neutral = ("epochs", "decay_vectors", "layer_decay", "patience", "sampling")
    """Settings that change nothing at their defaults, and are then left out of identities."""

    def counted(self, items: int) -> Optim:
        """With ``epochs`` as ``steps`` over so many items; itself where there are no ``epochs``.

        Raises:
            ValueError: the warm-up is longer than the training.
        """
        if self.epochs is None:
            return self
        return self.with_(steps=max(1, math.ceil(self.epochs * items / self.batch_size)), epochs=None)

    def rate(self, step: int, total: int | None = None) -> float:
        """The learning rate of step ``step`` (from 0) of ``total``: a pure function, so resuming is exact."""
        total = self.steps if total is None else total
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        x = (step - self.warmup) / max(1, total - self.warmup)
        low = self.floor
        if self.schedule == "linear":
            return low + (self.lr - low) * (1.0 - x)
        if self.schedule == "cosine":
            return low + (self.lr - low) * 0.5 * (1.0 + math.cos(math.pi * x))
        if self.schedule == "poly":
            return low + (self.lr - low) * max(0.0, 1.0 - x) ** self.power
        if self.schedule == "step":
            passed = sum(x >= m if m < 1 else step >= m for m in self.milestones)
            return max(low, self.lr * self.gamma**passed)
        if self.schedule == "drop":
            return max(low, self.lr * (1.0 if x < 0.5 else 0.1))
        return self.lr

    def decay(self, step: int, total: int | None = None) -> float | None:
        """The weight decay of step ``step`` of ``total``; ``None`` where it stays as it is."""
        if self.weight_decay_end is None:
            return None
        x = min(1.0, step / max(1, self.steps if total is None else total))
        return self.weight_decay + (self.weight_decay_end - self.weight_decay) * 0.5 * (1.0 - math.cos(math.pi * x))

    def shorten(self, grads: Sequence[Tensor], norm: Tensor, whole: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        """Gradients made shorter in place where they are longer than ``clip``: all together, or each by itself.

        Args:
            grads: a role's.
            norm: of all together.
            whole: makes a sharded tensor whole.
        """
        if self.clip is None:
            return
        grads = list(grads)
        if self.clip_by == "role":
            torch._foreach_mul_(grads, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        else:
            each = torch.stack([whole(n) for n in torch._foreach_norm(grads)])
            torch._foreach_mul_(grads, list((self.clip / (each + 1e-6)).clamp(max=1.0).unbind()))

    def learning(self, names: Iterable[str]) -> list[str]:
        """Which parameters learn, by their names: all, or those that fit ``only``."""
        return [n for n in names if self.only is None or any(fnmatchcase(n, p) for p in self.only)]

    def unmatched(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """The patterns that fit none of some names: (the setting, the pattern)."""
        names = list(names)
        given = [("only", p) for p in self.only or ()] + [("groups", p) for p in self.groups]
        return [(setting, p) for setting, p in given if not any(fnmatchcase(n, p) for n in names)]

    def build(self, params: Iterable[nn.Parameter] | Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over ``params``; with their names those that ``only`` leaves, divided as ``groups`` says."""
        named = params if isinstance(params, Mapping) else {}
        held = [named[n] for n in self.learning(named)] if isinstance(params, Mapping) else list(params)
        cls = optimizer_names()[self.optimizer]
        known = cls.__init__.__code__.co_varnames
        args: dict[str, Any] = {"lr": self.lr}
        if "weight_decay" in known:
            args["weight_decay"] = self.weight_decay
        if "momentum" in known:
            args["momentum"] = self.momentum
        if "fused" in known and _fusible(held) and not self.options.get("dampening"):
            args["fused"] = True  # one pass over the weights: AdamW on a CPU takes a third of the time
        elif "foreach" in known:
            args["foreach"] = True
        if {"fused", "foreach"} & set(self.options):  # one of them excludes the other
            args = {k: v for k, v in args.items() if k not in ("fused", "foreach")}
        divides = self.groups or self.layer_decay is not None or not self.decay_vectors
        groups = self._divided(named) if named and divides else held
        try:
            made = cls(groups, **{**args, **self.options})
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                "options", f"{self.optimizer} refuses its arguments: {error}", given=self.options
            ) from None
        for pattern, given in self.groups.items():
            for name in given:
                if name != "lr" and name not in made.defaults:
                    known_ = ["lr", *(k for k in made.defaults if k not in ("lr", "fused", "foreach"))]
                    raise ConfigError.unknown(f"groups.{pattern}.{name}", name, known_, f"setting of {self.optimizer}")
        if isinstance(made, torch.optim.SGD) and made.defaults["fused"]:
            _begin_momentum(made)
        return made

    def _divided(self, named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups, those without other values first; ``times``: what the rate is multiplied by."""
        found: dict[str, dict[str, Any]] = {"": {"params": [], "times": 1.0}}
        share = layer_shares(named, self.layer_decay) if self.layer_decay is not None else {}
        for name in self.learning(named):
            own: dict[str, Any] = {}
            if not self.decay_vectors and named[name].ndim < 2:
                own["weight_decay"] = 0.0
            for pattern, given in self.groups.items():
                if fnmatchcase(name, pattern):
                    own |= given
            times = _times(own.get("lr"), self.lr) * share.get(name, 1.0)
            own = {k: v for k, v in own.items() if k != "lr"} | {"times": times}
            if "weight_decay" in own:
                own["own_decay"] = True
            key = "" if own == {"times": 1.0} else repr(sorted(own.items()))
            found.setdefault(key, {"params": [], **own})["params"].append(named[name])
        return [g for g in found.values() if g["params"]]

    def with_(self, **changes: Any) -> Optim:
        """A changed copy."""
        return Optim(**{**settings_of(self), **changes})


def layer_shares(names: Iterable[str], decay: float) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by, where it falls by ``decay`` from a layer to the one before.

    A layer is what shares a name up to its first number, in the order of ``names``, which is that of the network;
    names without a number belong to the first layer when they stand before all numbered ones, else to the last.

    Example:
        >>> layer_shares(["embed.weight", "blocks.0.weight", "blocks.1.weight", "head.weight"], 0.5)
        {'embed.weight': 0.125, 'blocks.0.weight': 0.25, 'blocks.1.weight': 0.5, 'head.weight': 1.0}
    """
    layers: dict[str, int] = {}
    found: dict[str, int | None] = {}
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if number is not None:
            found[name] = layers.setdefault(".".join(parts[: number + 1]), len(layers) + 1)
        else:
            found[name] = None if layers else 0
    if not layers:
        return dict.fromkeys(found, 1.0)
    last = len(layers) + 1
    return {name: decay ** (last - (last if depth is None else depth)) for name, depth in found.items()}


def set_rate(optimizer: torch.optim.Optimizer, rate: float, decay: float | None = None) -> None:
    """The learning rate of a step, in every group its share of it; and its weight decay, where that is not ``None``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["times"] if "times" in group else rate
        if decay is not None and "weight_decay" in group and not group.get("own_decay"):
            group["weight_decay"] = decay


def _group(pattern: str, given: Any, lr: float) -> dict[str, Any]:
    """One of the ``groups``, checked as far as it can be without the optimiser."""
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"groups: {pattern!r} must be a mapping, as {{lr: x10, weight_decay: 0}}")
    found = {str(k): v for k, v in given.items()}
    for name, value in found.items():
        text = isinstance(value, str)
        if name == "lr":
            _times(value, lr)
        elif text:
            raise ValueError(f"groups: {pattern!r}.{name} must be no text, and is {value!r}")
        elif name == "weight_decay" and not 0 <= float(value) < math.inf:
            raise ValueError(f"groups: {pattern!r}.weight_decay must be 0 or more")
    return found


def _times(value: Any, lr: float) -> float:
    """What a group's ``lr`` multiplies the rate by: ``x10`` ten times, a number as its own peak."""
    if value is None:
        return 1.0
    text = value[1:] if isinstance(value, str) and value[:1] in ("x", "×") else None
    try:
        number = float(text if text is not None else value)
    except (TypeError, ValueError):
        number = math.nan
    if not (number > 0 and math.isfinite(number)) or (isinstance(value, str) and text is None):
        raise ValueError(f"groups: lr must be a number above 0, or as x10 a multiple of lr, and is {value!r}")
    return number if text is not None else number / lr


def settings_of(optim: Optim) -> dict[str, Any]:
    """All settings as plain values, defaults included."""
    return {name: getattr(optim, name) for name in inspect.signature(Optim).parameters}


def _fusible(params: list[nn.Parameter]) -> bool:
    """Whether torch's fused optimisers take them: whole, floating, on one device of a kind that has the kernels.

    And lying in memory without gaps, for the kernels walk from the first number to the last and ask no stride.
    """
    kinds = {p.device.type for p in params}
    plain = all(type(p) is nn.Parameter and p.is_floating_point() for p in params)  # a sharded one holds a DTensor
    return plain and len(kinds) == 1 and kinds <= {"cpu", "cuda"} and all(map(_dense, params))


def _dense(p: Tensor) -> bool:
    return torch.empty_like(p, device="meta").stride() == p.stride()  # strides are kept only where there are no gaps


def _begin_momentum(opt: torch.optim.SGD) -> None:
    """Momentum at zero from the start, which is the first step's rule without a case of its own.

    torch's fused form makes it for all parameters or for none, so one that gets its first gradient later than others
    would stop it; and it leaves it unwritten where the first step is skipped.
    """
    for group in opt.param_groups:
        if group["momentum"] and not group["dampening"]:
            for p in group["params"]:
                opt.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)


def lay_out(param: nn.Parameter, grad: Tensor) -> Tensor:
    """The gradient in the parameter's memory layout: fused optimisers walk both in the order they lie in, and ask nothing.

    Autograd lays gradients out so by itself; those that come from elsewhere (other processes) may not be.
    """
    sides = zip(param.shape, param.stride(), grad.stride(), strict=True)
    same = all(a == b for length, a, b in sides if length > 1)
    return grad if same else torch.empty_like(param, requires_grad=False).copy_(grad)


def held_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What an optimiser moves: a list to walk through, where asking the module would search it at every step."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def optimizer_names() -> dict[str, type[torch.optim.Optimizer]]:
    """The optimisers of torch by lower-case name; not those that evaluate the loss themselves or want sparse gradients."""
    found, unfit = {}, (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    for name in dir(torch.optim):
        cls = getattr(torch.optim, name)
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls not in unfit:
            found[name.lower()] = cls
    return found
