"""A folder of pictures: each item with its answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.grammar.answers import Answer
from limbeck.storage.store import atomic_write, check_writable


class Drawings:
    """Where answers are drawn.

    Args:
        folder: made where it is missing; images in it are called as the items are, and none is written twice.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_writable(self.folder)
        self._taken: set[str] = set()

    def keep(self, name: str, answer: Answer, drawn: Tensor | None) -> None:
        """Write what was drawn, and a mask or map beside it; the file is named in the answer's row."""
        if drawn is None:
            return
        stem = self._stem(name)
        path = self.folder / f"{stem}.png"
        write_png(path, drawn)
        answer.row["drawn"] = str(path)
        mask = answer.tensors.get("mask")
        if mask is not None and int(mask.max()) < 256:
            write_png(self.folder / f"{stem}.mask.png", mask.to(torch.uint8)[None])
            answer.row["mask"] = str(self.folder / f"{stem}.mask.png")

    def _stem(self, name: str) -> str:
        stem = re.sub(r"[^\w.-]+", "_", Path(name).stem or name)[:80] or "item"
        made, number = stem, 1
        while made in self._taken:
            number += 1
            made = f"{stem}-{number}"
        self._taken.add(made)
        return made


def write_png(path: Path, x: Tensor) -> None:
    """A image [C, H, W], uint8 or in [0, 1]."""
    import io

    from PIL import Image

    pixels: Any = x if x.dtype == torch.uint8 else (x.float().clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0] if len(pixels) == 1 else pixels[:3].movedim(0, -1)
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array.cpu().numpy())).save(held, "PNG")
    atomic_write(path, held.getvalue())


__all__ = ["Drawings", "write_png"]
