"""What every loss on logits shares: precision, temperature, masks, sums that survive minus infinity."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, LimbeckError, ShapeError, TeacherMismatch

Direction = Literal["forward", "reverse"]
Variant = Literal["paper", "released"]
Value = Literal["cross_entropy", "kl"]

NEG_INF = float("-inf")


def choose(argument: str, given: Any, kind: Any, what: str = "choice") -> Any:
    """``given`` if it is one of the ``Literal``'s values, else a ConfigError that names them."""
    known = get_args(kind)
    if given not in known:
        raise ConfigError.unknown(argument, given, known, what)
    return given


def in_range(
    argument: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Refuse a number outside an interval; ``nan`` is outside every interval."""
    ok = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not ok:
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ConfigError(argument, given=value, expected=f"a number in {left}{low:g}, {high:g}{right}")


def extremes(x: Tensor) -> tuple[float, float] | None:
    """Smallest and largest value, or None where looking would cost a synchronisation or a graph break."""
    if x.device.type != "cpu" or x.numel() == 0 or torch.compiler.is_compiling():
        return None
    try:
        low, high = torch.aminmax(x.detach())
        return low.item(), high.item()
    except RuntimeError:  # inside vmap a value has no number
        return None


def statistics_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 when any tensor is float64: losses are never computed in half precision."""
    dtype = torch.float32
    for x in tensors:
        if not x.is_floating_point():
            raise ShapeError("logits", given=str(x.dtype), expected="a floating point tensor")
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def check_pair(student: Tensor, teacher: Tensor) -> None:
    """Student and teacher logits must have the same shape ``[..., C]`` with at least one class."""
    if student.ndim == 0 or student.shape[-1] == 0:
        raise ShapeError("student", given=list(student.shape), expected="logits [..., C] with at least one class")
    if student.shape == teacher.shape:
        return
    if teacher.ndim == 0 or student.shape[-1] != teacher.shape[-1]:
        raise TeacherMismatch(
            "teacher",
            f"the student has {student.shape[-1]} classes and the teacher {teacher.shape[-1] if teacher.ndim else 0}",
            remedy="cut both to the classes they share, or use a method that maps vocabularies or class lists",
        )
    raise ShapeError("teacher", given=list(teacher.shape), expected=f"the student's shape {list(student.shape)}")


def check_classes(logits: Tensor, least: int, why: str) -> None:
    """At least ``least`` classes, else the loss has nothing to compare."""
    if logits.ndim == 0 or logits.shape[-1] < least:
        raise ShapeError("student", given=list(logits.shape), expected=f"logits [..., C] with C >= {least}: {why}")


def check_labels(
    labels: Tensor, shape: tuple[int, ...], where: Tensor | None, argument: str = "labels", soft: bool = True
) -> Tensor:
    """Labels for logits of ``shape`` [..., C]: int64 ``[...]``, or floating ``[..., C]`` where ``soft`` allows them.

    Masked integer labels become 0, so that they can index.

    Raises:
        ShapeError: the labels fit neither form.
        DataError: an integer label lies outside ``0 .. C-1`` (seen on the CPU only; a GPU would have to stop for it).
    """
    classes = shape[-1]
    if soft and labels.is_floating_point() and labels.shape == shape:
        return labels
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != shape[:-1]:
        raise ShapeError(
            argument,
            given=f"{labels.dtype} {list(labels.shape)}",
            expected=f"integer class ids {list(shape[:-1])}" + (f" or soft labels {list(shape)}" if soft else ""),
        )
    labels = labels.long()
    if where is not None:
        labels = torch.where(where, labels, torch.zeros_like(labels))
    seen = extremes(labels)
    if seen is not None:
        low, high = seen
        if low < 0 or high >= classes:
            bad = ((labels < 0) | (labels >= classes)).nonzero()
            raise DataError(
                argument,
                f"{len(bad)} of {labels.numel()} labels lie outside 0..{classes - 1}",
                given=low if low < 0 else high,
                expected=f"class ids below {classes}",
                remedy="mask ignored positions with where=(labels != ignore_index)",
            )
    return labels


def hard_labels(labels: Tensor) -> Tensor:
    """Class ids ``[...]``: integer labels as they are, soft labels by their largest entry."""
    return labels.argmax(-1) if labels.is_floating_point() else labels


def as_mask(where: Tensor | None, items: torch.Size) -> Tensor | None:
    """``where`` as booleans of the items' shape ``[...]``."""
    if where is None:
        return None
    mask = where if where.dtype == torch.bool else where != 0
    try:
        return mask.expand(items)
    except RuntimeError:
        raise ShapeError("where", given=list(where.shape), expected=f"a mask over the items {list(items)}") from None


def keep(values: Tensor, where: Tensor | None) -> Tensor:
    """Values where the mask is true, exact zeros elsewhere."""
    return values if where is None else torch.where(where, values, torch.zeros_like(values))


def hide(x: Tensor, where: Tensor | None) -> Tensor:
    """Rows the mask excludes become zeros *before* anything is computed, so that even NaN there changes nothing."""
    return x if where is None else torch.where(where.unsqueeze(-1), x, torch.zeros_like(x))


def as_temperature(temperature: float | Tensor, items: torch.Size, dtype: torch.dtype) -> float | Tensor:
    """A positive number, or a tensor ``[...]`` that broadcasts over the items."""
    if isinstance(temperature, Tensor):
        seen = extremes(temperature)
        if seen is not None and not seen[0] > 0:
            raise ConfigError("temperature", given=temperature.detach().flatten()[:8].tolist(), expected="numbers > 0")
        temperature = temperature.to(torch.promote_types(dtype, temperature.dtype))
        try:
            temperature.detach().expand(items)
        except RuntimeError:
            raise ShapeError(
                "temperature", given=list(temperature.shape), expected=f"a number or one per item {list(items)}"
            ) from None
        return temperature
    if not 0 < temperature < float("inf"):
        raise ConfigError("temperature", given=temperature, expected="a number > 0")
    return float(temperature)


def cool(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits divided by the temperature (one number, or one per item)."""
    if isinstance(temperature, Tensor):
        return logits / (temperature.unsqueeze(-1) if temperature.ndim else temperature)
    return logits if temperature == 1.0 else logits / temperature


def scaled(values: Tensor, temperature: float | Tensor, scale_t2: bool) -> Tensor:
    """Values times T squared, unless the switch is off."""
    if not scale_t2 or (not isinstance(temperature, Tensor) and temperature == 1.0):
        return values
    return values * (temperature * temperature)


def expect(weight: Tensor, values: Tensor) -> Tensor:
    """``sum_c weight[..., c] * values[..., c]`` where a weight of exactly zero silences even an infinite value."""
    return (weight * torch.where(weight > 0, values, torch.zeros_like(values))).sum(-1)


def not_negative(values: Tensor) -> Tensor:
    """Lift values that rounding pushed below zero to zero; gradients and infinities pass.

    ``values`` are a result made just now, which nothing else holds: they are changed in place, beside the graph.
    """
    values.detach().clamp_min_(0.0)
    return values


__all__ = [
    "NEG_INF",
    "Direction",
    "LimbeckError",
    "Value",
    "Variant",
    "as_mask",
    "as_temperature",
    "check_classes",
    "check_labels",
    "check_pair",
    "choose",
    "cool",
    "expect",
    "extremes",
    "hard_labels",
    "hide",
    "in_range",
    "keep",
    "not_negative",
    "scaled",
    "statistics_dtype",
]
