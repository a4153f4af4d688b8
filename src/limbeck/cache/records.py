"""What a recording keeps of a teacher's answers, which answers it cannot keep, and items that were left out."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import digest
from limbeck.errors import ConfigError
from limbeck.functional.precision import widest
from limbeck.functional.sparse import TopK
from limbeck.grammar.heads import LARGE, Head, Logits, answered, rows_of
from limbeck.grammar.method import Batch, Data
from limbeck.grammar.signal import Signal
from limbeck.parts.stored_crops import CropPlan

Precision = Literal["float16", "float32"]
"""How a recording keeps outputs and features."""

NAMED = 16
"""So many items are named in a message."""


@functools.lru_cache(maxsize=8)
def _weights(count: int, device: torch.device) -> Tensor:
    """Rising weights, so that the order matters and not the sum alone; kept, since every step asks for the same."""
    return torch.linspace(1.0, 2.0, count, dtype=torch.float64, device=device)


def checksum(batch: Batch) -> Tensor:
    """One number per item that changes with its input: float64 [N], made where the input lies."""
    for name in ("x", "input_ids"):
        if isinstance(batch.get(name), Tensor):
            flat = batch[name].detach().flatten(1)
            if widest(flat.device) != torch.float64:
                flat = flat.cpu()
            return flat.double() @ _weights(flat.shape[1], flat.device)
    raise ConfigError("cache", f"a batch of {sorted(batch)} has no input to know it by", expected="x or input_ids")


def record(
    batch: Batch,
    signal: Signal,
    k: int | None,
    precision: Precision,
    plan: CropPlan | None = None,
    size: tuple[int, int] = (0, 0),
) -> dict[str, np.ndarray[Any, Any]]:
    """One batch's records: [N, ...] arrays, whatever they hold (`Misfits` looks at that).

    With ``plan`` they are those of crops of images of some height and width.
    """
    kept = getattr(torch, precision)
    found: dict[str, np.ndarray[Any, Any]] = {"check": checksum(batch).cpu().numpy()}
    if plan is not None:
        rows = plan.rows(batch, size, signal.logits.float())
        found |= {name: column.cpu().numpy() for name, column in rows.items()}
    elif k is None:
        found["logits"] = signal.logits.float().to(kept).cpu().numpy()
    else:
        values, indices, total = likeliest(answered(signal), k)
        found["logits"] = values.to(kept).cpu().numpy()
        found["index"] = indices.to(torch.int32).cpu().numpy()
        found["total"] = total.cpu().numpy()
    for path, feature in signal.acts.items():
        if not isinstance(feature, Tensor):
            raise ConfigError(
                f"tap {path!r}",
                f"it shows {len(feature)} tensors, one a call, and a recording keeps one",
                remedy=f"record the calls by their numbers: {path.removesuffix(':all')}:0",
            )
        found[f"feature.{path}"] = feature.to(kept).cpu().numpy()
    return found


def likeliest(z: Logits, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits of each position, their words [..., k], and the log of the sum over all words [...]."""
    if isinstance(z, TopK):
        best = z.values.float().topk(k, dim=-1)
        return best.values, z.indices.gather(-1, best.indices), torch.zeros_like(best.values[..., 0])
    if isinstance(z, Tensor):
        best = z.float().topk(k, dim=-1)
        return best.values, best.indices, z.float().logsumexp(-1)
    parts = [likeliest(rows_of(z, at), k) for at in _some(z)]
    values, indices, total = (torch.cat(part).unflatten(0, z.shape[:-1]) for part in zip(*parts, strict=True))
    return values, indices, total


def _some(z: Head) -> Iterator[slice]:
    """The flattened positions, so many at a time that their logits are no more than `LARGE`."""
    n, size = math.prod(z.shape[:-1]), max(1, LARGE // z.shape[-1])
    return (slice(start, start + size) for start in range(0, n, size))


def rounding(logits: Tensor, precision: Precision = "float16") -> float:
    """How far logits [..., C] are from what a dense cache keeps of them: KL(teacher || record), summed over the items."""
    z, kept = logits.cpu().double(), logits.to(getattr(torch, precision)).cpu().double()
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    # a class that the teacher rules out, at minus infinity, adds nothing
    return float(torch.where(p > 0, p * (log_p - kept.log_softmax(-1)), 0.0).sum())


def _looked(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits [..., V]: whether they are no answer [...], and the largest size among those that are finite."""
    z = z.float()
    none = z == -torch.inf
    wrong = (~torch.isfinite(z) & ~none).any(-1) | none.all(-1)
    return wrong, z.abs().where(torch.isfinite(z), 0.0).amax(-1)


class Misfits:
    """The items whose answers a recording cannot keep: NaN, infinite, or too large for its precision.

    A class at minus infinity is an answer like any other: the teacher rules it out.

    Args:
        precision: of the recording.
    """

    def __init__(self, precision: Precision) -> None:
        self.precision: Precision = precision
        self.most = torch.finfo(getattr(torch, precision)).max
        self.reasons: dict[int, str] = {}  # item -> ``input``, ``answer`` or ``large``
        self.largest = 0.0

    def look(self, batch: Batch, signal: Signal) -> Tensor:
        """Whether each item of a batch is one: bool [N], on the CPU. Only positions that count are asked for."""
        z = answered(signal)
        if isinstance(z, Head):
            found = [_looked(rows_of(z, at)) for at in _some(z)]
            wrong, large = (torch.cat(part).unflatten(0, z.shape[:-1]) for part in zip(*found, strict=True))
        else:
            wrong, large = _looked(z.values if isinstance(z, TopK) else z)
        where = batch.get("where")
        if isinstance(where, Tensor) and where.shape == wrong.shape:
            wrong, large = wrong & where, large * where
        n = len(wrong)
        rows = [wrong.reshape(n, -1).any(1)]
        sizes = [large.reshape(n, -1).amax(1)]
        for feature in signal.acts.values():
            flat = feature.float().flatten(1)
            rows.append(~torch.isfinite(flat).all(1))
            sizes.append(flat.abs().where(torch.isfinite(flat), 0.0).amax(1))
        answer = torch.stack(rows).any(0).cpu()
        size = torch.stack(sizes).amax(0).cpu()
        unknown = ~torch.isfinite(checksum(batch)).cpu()
        beyond = size > self.most
        if bool(beyond.any()):
            self.largest = max(self.largest, float(size.max()))
        for kind, bad in (("large", beyond), ("answer", answer), ("input", unknown)):
            self.reasons.update(dict.fromkeys(batch["item"].cpu()[bad].tolist(), kind))
        return beyond | answer | unknown

    def of(self, kind: str) -> list[int]:
        """The items of one kind, in order."""
        return sorted(i for i, k in self.reasons.items() if k == kind)

    def error(self, looked: int, items: int) -> ConfigError:
        """What is wrong with them, which they are, and what can be done.

        Args:
            looked: how many items have been looked at.
            items: how many there are to record.
        """
        said, remedies = [], []
        if self.of("input"):
            said.append(f"their inputs are not finite: {some(self.of('input'))}")
        if self.of("answer"):
            said.append(f"the answers are NaN or infinite: {some(self.of('answer'))}")
        if self.of("large"):
            said.append(
                f"the answers reach {self.largest:,.6g}, where {self.precision} holds no more than {self.most:,.6g}: "
                f"{some(self.of('large'))}"
            )
            if self.precision == "float16":
                remedies.append("--dtype float32 holds the large ones")
        remedies.append("--leave-out leaves these items out of the recording, and out of training from it")
        of = f"{items:,} items" if looked >= items else f"the first {looked:,} of {items:,} items"
        return ConfigError(
            "teacher",
            f"{len(self.reasons)} of {of} cannot be recorded; {'; '.join(said)}",
            remedy="; ".join(remedies),
        )


def some(items: Sequence[int]) -> str:
    """Items by number, the first of them where they are many."""
    shown = ", ".join(map(str, items[:NAMED]))
    return f"items {shown}" + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


class Remaining:
    """Data without some of its items, renumbered from 0.

    Args:
        data: the whole.
        left_out: the numbers of the items that are left out.
    """

    def __init__(self, data: Data, left_out: Sequence[int]) -> None:
        self.data, self.left_out = data, tuple(sorted(left_out))
        kept = torch.ones(len(data), dtype=torch.bool)
        kept[list(self.left_out)] = False
        self.ids = kept.nonzero()[:, 0]
        if isinstance(getattr(data, "y", None), Tensor):
            self.y = data.y[self.ids]  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "data" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch."""
        return self.data.fetch(self.ids.index_select(0, items))

    @property
    def fingerprint(self) -> str:
        """Hash of the whole and of what is left out."""
        return digest(self.data.fingerprint, "without", *self.left_out)
