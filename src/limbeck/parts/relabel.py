"""A teacher's answers to written-down views of images (FKD: Shen and Xing 2021, arXiv 2112.01528), and what becomes of pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.artifacts.labelled_set import StoredLabels, Views
from limbeck.errors import ConfigError
from limbeck.functional.packing import Form, pack_logits

Encoding = Literal["png", "jpeg", "float"]


def relabel(
    images: Tensor,
    views: Views,
    answer: Callable[[Tensor], Tensor],
    *,
    form: Form = "fp16",
    k: int = 10,
    batch: int = 256,
) -> StoredLabels:
    """The logits of a teacher for every image in every epoch of some views, packed.

    Args:
        images: [M, C, H, W] where the teacher answers.
        views: of E epochs.
        answer: images to logits [N, classes].
        form, k: see `limbeck.functional.packing.pack_logits`.
        batch: views at a time.
    """
    epochs, count = views.boxes.shape[:2]
    numbers = torch.arange(epochs * count)
    parts, classes = [], 0
    with torch.no_grad():
        for ids in numbers.split(batch):
            z = answer(views.show(images, ids % count, ids // count))
            classes = z.shape[-1]
            parts.append({name: v.cpu() for name, v in pack_logits(z, form, k).items()})
    packed = {name: torch.cat([p[name] for p in parts]).unflatten(0, (epochs, count)) for name in parts[0]}
    return StoredLabels(views, packed, classes)


def as_stored(pixels: Tensor, encoding: Encoding, quality: int = 75) -> Tensor:
    """Pixels [N, C, H, W] in [0, 1] as they come back from files: labels are computed on these.

    Args:
        pixels: of 1 or 3 channels where they go through JPEG.
        encoding: ``png``: rounded to 8 bits; ``jpeg``: as the published code saves them; ``float``: as they are.
        quality: of JPEG.
    """
    if encoding == "float":
        return pixels
    rounded = (255 * pixels).round().to(torch.uint8).cpu()
    if encoding == "jpeg":
        if rounded.shape[1] not in (1, 3):
            raise ConfigError(
                "encoding", f"JPEG holds images of 1 or 3 channels, and these have {rounded.shape[1]}", expected="png"
            )
        rounded = torch.stack([_through_jpeg(x, quality) for x in rounded])
    return rounded.float().to(pixels.device) / 255


def _through_jpeg(x: Tensor, quality: int) -> Tensor:
    from PIL import Image

    array = x[0].numpy() if len(x) == 1 else x.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    back = torch.from_numpy(np.array(Image.open(buffer)))
    return back[None] if len(x) == 1 else back.permute(2, 0, 1)


__all__ = ["Encoding", "as_stored", "relabel"]
