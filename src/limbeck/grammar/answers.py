"""What a trained network answers for somebody's own items, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Answer:
    """What is answered for one item.

    Attributes:
        row: plain values: what a line of JSON or a row of a table holds (``label``, ``score``, ``boxes``, ``completion``...).
        tensors: what is too large for one, on the CPU: ``scores`` [C] of all classes, ``mask`` [H, W] of class ids, ``map``
            [H, W], ``picture`` [C, H, W] in [0, 1].
    """

    row: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


__all__ = ["Answer"]
