"""What networks show before any training, and how far a student's is from a teacher's: scores that rank architectures.

    relation    D_r = |G_t - G_s|_F^2 / B^2                     G: Gram matrix of the batch's features, rows of length 1
    semantic    D_s = sum_k |E_k^t - E_k^s|_F^2 / (C K)         E_k = g_k g_k^T, rows of length 1; g = dCE/dW of the classifier
    kd, rkd, at the losses of those methods between the two networks
    nwot        - log |det K|, K_ij = how many ReLUs have items i and j on the same side    of the student alone
    synflow     - log sum_p |theta_p dR/d|theta_p||, R: the sum of outputs for ones, all weights positive, likewise
    parameters  - their number

All are distances: less is better. F: the last map before pooling [B, C, h, w];  W: the classifier's weights [K, C]
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.feature import attention_transfer
from limbeck.functional.relation import channel_correlation, classifier_gradient, distances, gram
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.signal import Signal, Tap, device_of
from limbeck.grammar.task import Task
from limbeck.networks.shows import last_linear

Init = Literal["gaussian", "kaiming"]
Proxy = Literal["relation", "semantic", "kd", "rkd", "at", "nwot", "synflow", "parameters"]

TEMPERATURE = 4.0
"""Of ``kd`` between two untrained networks."""

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def initialise(module: nn.Module, init: Init = "gaussian") -> nn.Module:
    """Draw a network's weights anew, in place: convolutions and linear layers, whose biases become 0; norms become idle.

    Args:
        module: the network; parameters of other layers stay as they are.
        init: ``gaussian`` draws from N(0, 1), whatever the layer's size, as DisWOT does; ``kaiming`` from
            N(0, 2 / inputs).
    """
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, _LAYERS):
                nn.init.normal_(m.weight) if init == "gaussian" else nn.init.kaiming_normal_(m.weight)
                if m.bias is not None:
                    m.bias.zero_()
            elif isinstance(m, _NORMS):
                if m.weight is not None:
                    m.weight.fill_(1.0)
                if getattr(m, "bias", None) is not None:
                    m.bias.zero_()
                if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None:
                    m.reset_running_stats()
    return module


@dataclass
class Shown:
    """What one network shows of a batch.

    Attributes:
        feature: the last map before pooling ``[B, C, h, w]`` (of a transformer ``[B, L, D]``), or ``pooled``.
        pooled: the classifier's input ``[B, D]``.
        logits: ``[B, K]``, in the task's order.
        gradient: of the mean cross-entropy in the classifier's weights ``[K, D]``.
        alone: proxies that need no teacher, by name.
    """

    feature: Tensor
    pooled: Tensor
    logits: Tensor
    gradient: Tensor
    alone: dict[str, float]


class Reader:
    """A network of which features, logits and the classifier's gradient are read.

    Args:
        built: the network; its weights and statistics change, so it is one's own copy.
        task: feeds it.
        role: what errors call it.
        feature: ``map`` for the last map before pooling, ``pooled`` for the classifier's input.

    Raises:
        ConfigError: it has no linear classifier, or answers with something else than that one's output.
    """

    def __init__(self, built: Built, task: Task, role: str, feature: Literal["map", "pooled"] = "map") -> None:
        self.built, self.task, self.role = built, task, role
        self.module: nn.Module = built.module
        if not isinstance(self.module, nn.Module):
            raise ConfigError(
                role,
                "networks are compared before training, and this one is answers alone",
                given=type(self.module).__name__,
                expected="a network at hand",
            )
        for p in self.module.parameters():
            p.requires_grad_(False)
        try:
            self.head = last_linear(self.module).removesuffix(":in")
        except ConfigError:
            raise ConfigError(
                role,
                "it has no linear layer, whose gradient and input are compared",
                given=type(self.module).__name__,
                expected="a classifier that ends in a linear layer",
            ) from None
        self.device = device_of(self.module)
        example = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in task.example(2).items()}
        self.example = example
        self.map = self._last_map(example) if feature == "map" else ""
        shown, acts = self._pass(example)
        if acts[f"{self.head}:in"].ndim != 2 or not torch.allclose(
            self._in_order(acts[self.head]), shown, rtol=1e-3, atol=1e-5, equal_nan=True
        ):
            raise ConfigError(
                role,
                f"its answers are not the output of its last linear layer, {self.head}, for one row of features an item",
                given=type(self.module).__name__,
                expected="a classifier that ends in a linear layer",
            )
        self.width = acts[f"{self.head}:in"].shape[1]

    def _in_order(self, out: Tensor) -> Tensor:
        return Signal(self.built.contract.outputs(out)).logits

    def _forward(self, batch: Batch) -> Any:
        return self.task.feed(self.module, self.built.contract.feed(batch))

    def _last_map(self, batch: Batch) -> str:
        """The module that shows the last features of several places: a map, or tokens; empty where there is none."""
        found, handles = [""], []
        for name, m in self.module.named_modules():

            def look(_m: nn.Module, _args: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor) and (
                    (out.ndim == 4 and out.shape[2] * out.shape[3] > 1) or (out.ndim == 3 and out.shape[1] > 1)
                ):
                    found[0] = name

            if name:
                handles.append(m.register_forward_hook(look))
        try:
            with torch.no_grad():
                self.module.eval()
                self._forward(batch)
        finally:
            for handle in handles:
                handle.remove()
        return found[0]

    def _pass(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        tap = Tap(self.module, [p for p in (f"{self.head}:in", self.head, self.map) if p])
        try:
            with torch.no_grad(), tap:
                out = self._forward(batch)
            return self._in_order(out), {k: v.float() for k, v in tap.acts.items()}
        finally:
            tap.close()

    def read(self, batch: Batch, wanted: Sequence[str] = ()) -> Shown:
        """What it shows of a labelled batch, in training mode: normalised by the batch's own statistics.

        Args:
            batch: with labels ``y``.
            wanted: proxies, of which those that need no teacher are computed here.
        """
        self.module.train()
        states = _Switches() if "nwot" in wanted else None
        with states or contextlib.nullcontext():
            logits, acts = self._pass(batch)
        pooled = acts[f"{self.head}:in"]
        alone: dict[str, float] = {"parameters": -float(sum(p.numel() for p in self.module.parameters()))}
        if states is not None:
            alone["nwot"] = states.value(self.role)
        if "synflow" in wanted:
            alone["synflow"] = self._synflow()
        self.module.eval()
        gradient = classifier_gradient(pooled, logits, batch["y"])
        return Shown(acts[self.map] if self.map else pooled, pooled, logits, gradient, alone)

    def _synflow(self) -> float:
        """Minus the logarithm of the synaptic flow, on a copy whose weights are their absolute values, in float64."""
        twin = copy.deepcopy(self.module).double().eval()
        with torch.no_grad():
            for p in twin.parameters():
                p.abs_()
        twin.requires_grad_(True)
        x = self.built.contract.feed(self.example)
        ones = {k: torch.ones_like(v[:1]).double() if k == self.built.contract.key else v for k, v in x.items()}
        out = Signal(self.task.feed(twin, ones)).output.sum()
        params = list(twin.parameters())
        grads = torch.autograd.grad(out, params, allow_unused=True)
        flow = sum(float((p.detach() * g).sum()) for p, g in zip(params, grads, strict=True) if g is not None)
        return -math.log(flow) if flow > 0 else math.nan


class _Switches(TorchFunctionMode):
    """Which ReLUs are on for which item of a batch, whether they are modules or functions."""

    _relu = (
        torch.relu,
        torch.relu_,
        nn.functional.relu,
        nn.functional.relu_,
        nn.functional.relu6,
        Tensor.relu,
        Tensor.relu_,
    )

    def __init__(self) -> None:
        super().__init__()
        self.same: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self._relu and args and isinstance(args[0], Tensor):
            with torch._C.DisableTorchFunction():
                on = (args[0] > 0).flatten(1).double()
                same = on @ on.T + (1 - on) @ (1 - on).T
                self.same = same if self.same is None else self.same + same
        return func(*args, **(kwargs or {}))

    def value(self, role: str) -> float:
        """Minus the logarithm of the determinant; nan where two items switch alike everywhere."""
        if self.same is None:
            raise ConfigError(
                "method.metrics", f"nwot counts ReLUs, and {role} has none", given="nwot", remedy="leave nwot out"
            )
        sign, value = torch.linalg.slogdet(self.same)
        return -float(value) if float(sign) > 0 else math.nan


def distance(name: Proxy, student: Shown, teacher: Shown) -> float:
    """One proxy; see the head of this file.

    Raises:
        ShapeError: features that cannot be compared so.
    """
    between: dict[str, Callable[[], Tensor]] = {
        "relation": lambda: gram(student.feature.flatten(1), teacher.feature.flatten(1)),
        "semantic": lambda: channel_correlation(student.gradient, teacher.gradient),
        "kd": lambda: F.kl(student.logits, teacher.logits, temperature=TEMPERATURE),
        "rkd": lambda: distances(student.pooled, teacher.pooled),
        "at": lambda: attention_transfer(_map(student.feature), _map(teacher.feature)),
    }
    return float(between[name]().mean()) if name in between else student.alone[name]


def _map(f: Tensor) -> Tensor:
    """Features of several places as [B, C, ...]; of tokens the places last."""
    return f.transpose(1, 2) if f.ndim == 3 else f[..., None] if f.ndim == 2 else f


def rank_agreement(by: Mapping[str, Sequence[float]], truth: Sequence[float], one: str, fixed: str) -> dict[str, float]:
    """Kendall's tau of scores with what they are to foretell, over the same networks.

    Args:
        by: a score of every network ``[n]``, by name.
        truth: such as accuracies after distillation ``[n]``.
        one: the score whose ``partial`` correlation is added, in which ``fixed`` is held fixed.
        fixed: another score, such as the number of parameters.

    Returns:
        By name, from -1 to 1; not a number where all networks have the same score.
    """
    from scipy.stats import kendalltau

    found = {n: float(kendalltau(v, truth).statistic) for n, v in by.items()}
    both = float(kendalltau(by[one], by[fixed]).statistic)
    rest = math.sqrt(max(0.0, (1 - found[fixed] ** 2) * (1 - both**2)))
    found["partial"] = (found[one] - found[fixed] * both) / rest if rest else math.nan
    return found


__all__ = ["Init", "Proxy", "Reader", "Shown", "distance", "initialise", "rank_agreement"]
