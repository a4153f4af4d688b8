"""Image files made from arrays, byte by byte where a library would not write them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type


def deep_png(values: np.ndarray[Any, Any], exif: bytes = b"") -> bytes:
    """A PNG with 16 bits a channel: [H, W] or [H, W, C] of uint16."""
    values = values[..., None] if values.ndim == 2 else values
    high, wide, channels = values.shape
    rows = b"".join(b"\0" + values[i].astype(">u2").tobytes() for i in range(high))
    head = struct.pack(">IIBBBBB", wide, high, 16, PNG_KINDS[channels], 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + (chunk(b"eXIf", exif) if exif else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def write_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
    """PNG files ``root/NAME/i.png``; every class has a colour of its own, with a little noise."""
    for c, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.clip(noise(1000 * c + i, *size, 3) // 8 + 40 * (c + 1), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
