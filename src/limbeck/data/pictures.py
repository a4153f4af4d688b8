"""Pictures as phones and scanners make them, read into three channels with their values kept."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tarfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import ArrayData, Items, digest, to_unit
from limbeck.errors import DataError
from limbeck.grammar.method import Batch

log = logging.getLogger("limbeck.data")

BadFiles = Literal["error", "skip"]
Check = Literal["full", "quick"]

_ENDINGS = "jpg jpeg jpe jfif png bmp dib gif tif tiff webp ppm pgm pbm pnm jp2 j2k tga avif heic heif"
EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Endings that make a file a picture. Other files in a picture folder are left alone."""

_NOT_DATA = frozenset({"__MACOSX", "@eaDir"})  # what archivers and file servers leave beside pictures


class Unreadable(ValueError):
    """One picture cannot be read; the message says why."""


# ------------------------------------------------------------------------------------------------------------ decoding
def decode(raw: bytes) -> Tensor:
    """A picture file as three channels [3, H, W], upright.

    uint8 for the common formats; float32 in [0, 1] for deeper ones (16 bits are divided by 65535). Grey is repeated,
    palettes are looked up, transparent pixels are laid over white, CMYK is converted; the orientation that a camera
    noted (EXIF) is applied; of an animation the first frame counts.

    Raises:
        Unreadable: no picture, truncated, or of a kind whose range of values is unknown.
    """
    from PIL import Image, ImageOps

    if raw[4:8] == b"ftyp":
        _register_heif()
    deep = _deep_png(raw)
    if deep is not None:
        return deep
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            opened.load()
            image: Any = opened
            try:
                image = ImageOps.exif_transpose(opened)
            except Exception as error:  # a damaged note about the orientation does not damage the picture
                log.debug("orientation ignored: %s", error)
            return three_channels(image)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise all kinds
        raise Unreadable(_reason(error)) from None


def three_channels(image: Any) -> Tensor:
    """A PIL image of any mode as [3, H, W]: uint8, or float32 in [0, 1] for deeper ones."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _grey_numbers(np.asarray(image), mode)
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        colour, alpha = rgba[..., :3], rgba[..., 3:]
        pixels = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(
            np.uint8
        )  # opaque pixels stay as they are
    elif mode == "LAB":
        pixels = np.asarray(_from_lab(image))
    else:
        pixels = np.asarray(image if mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _from_lab(image: Any) -> Any:
    from PIL import ImageCms

    return ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


def _grey_numbers(values: np.ndarray[Any, Any], mode: str) -> Tensor:
    """Deep grey pictures: 16-bit and 32-bit integers by their range, floats in [0, 1] as they are."""
    grey = values.astype(np.float64)
    if not np.isfinite(grey).all():
        raise Unreadable("holds NaN or infinity")
    low, high = float(grey.min()), float(grey.max())
    if mode == "F":
        if low < 0 or high > 1:
            raise Unreadable(f"a floating picture with values from {low:g} to {high:g}, of which only [0, 1] is known")
    elif low < 0:
        raise Unreadable(f"a picture of signed integers from {low:g} to {high:g}, whose range is unknown")
    else:
        grey /= 65535.0 if high <= 65535 else 2.0**31 - 1
    return torch.from_numpy(grey.astype(np.float32)).expand(3, -1, -1).contiguous()


def _deep_png(raw: bytes) -> Tensor | None:
    """PNG with 16 bits a channel and colour, which Pillow cuts to its upper 8 bits; ``None`` for all else.

    The lower 8 bits come from a second pass that takes the other byte of each pair, as of a file in the other order.
    """
    kind = raw[25:26]
    if raw[:8] != b"\x89PNG\r\n\x1a\n" or raw[24:25] != b"\x10" or kind not in (b"\x02", b"\x06"):
        return None
    from PIL import Image, ImageOps

    layout = "RGB" if kind == b"\x02" else "RGBA"
    halves = []
    try:
        for order in ("B", "L"):
            with Image.open(io.BytesIO(raw)) as image:
                if len(image.tile) != 1 or image.tile[0][3] != f"{layout};16B" or "transparency" in image.info:
                    return None
                image.tile = [image.tile[0]._replace(args=f"{layout};16{order}")]
                image.load()
                halves.append(np.asarray(ImageOps.exif_transpose(image)).astype(np.float32))
    except Exception as error:
        log.debug(
            "the lower bits of a 16-bit PNG are left out: %s", error
        )  # what is wrong is said by who reads it next
        return None
    values = (halves[0] * 256.0 + halves[1]) / 65535.0
    if layout == "RGBA":
        values = values[..., :3] * values[..., 3:] + (1.0 - values[..., 3:])
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def _register_heif() -> None:
    try:
        import pillow_heif  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        return  # Pillow reads AVIF itself; for HEIC the reason names the package
    pillow_heif.register_heif_opener()


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no picture in a format that is read (for HEIC: pip install pillow-heif)"
    text = " ".join(str(error).split())[:160]
    return f"{text[:1].lower()}{text[1:]}" if text else type(error).__name__


def fit(x: Tensor, size: int | None) -> Tensor:
    """Pictures [..., C, H, W] with the shorter side resized (bilinear, antialiased) and the middle cut out."""
    if size is None or tuple(x.shape[-2:]) == (size, size):
        return x
    if x.dtype == torch.uint16:
        x = to_unit(x)
    high, wide = x.shape[-2:]
    scale = size / min(high, wide)
    new = (size, max(size, round(wide * scale))) if high <= wide else (max(size, round(high * scale)), size)
    if new != (high, wide):
        flat = x if x.ndim == 4 else x[None]
        flat = torch.nn.functional.interpolate(flat, new, mode="bilinear", align_corners=False, antialias=True)
        if x.is_floating_point():
            flat = flat.clamp_(0.0, 1.0)
        x = flat if x.ndim == 4 else flat[0]
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return x[..., top : top + size, left : left + size].contiguous()


# --------------------------------------------------------------------------------------------------------------- files
class Bytes(Protocol):
    """Something that holds one picture file's bytes."""

    @property
    def name(self) -> str:
        """How it is shown in messages."""

    def read(self) -> bytes:
        """All bytes; raises OSError."""


@dataclass(frozen=True)
class File:
    """A file, or a member of an uncompressed tar archive.

    Attributes:
        name: as it is shown: the path below what was asked for.
        path: the file, or the archive.
        start, size: where in the archive; ``start`` is -1 for a file.
    """

    name: str
    path: Path
    start: int = -1
    size: int = 0

    def read(self) -> bytes:
        """All bytes."""
        with open(self.path, "rb") as file:
            if self.start < 0:
                return file.read()
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True)
class Blob:
    """A picture file that lies in memory (a table's cell)."""

    name: str
    raw: bytes

    def read(self) -> bytes:
        """All bytes."""
        return self.raw


def list_pictures(root: Path) -> list[File]:
    """The picture files below a folder or in a tar archive, sorted. Hidden ones are left out, symbolic links followed,
    but never in a circle.

    Raises:
        DataError: nothing is there, or a folder cannot be listed.
    """
    return [f for f in list_files(root) if Path(f.name).suffix.lower() in EXTENSIONS]


def list_files(root: Path) -> list[File]:
    """As `list_pictures`, for all files."""
    if root.is_dir():
        found: list[File] = []
        _walk(root, "", frozenset(), found)
        return found
    if not root.exists():
        raise DataError(str(root), "there is no such file or folder", remedy="check the path")

    def hidden(name: str) -> bool:
        return any(part.startswith(".") or part in _NOT_DATA for part in name.removeprefix("./").split("/"))

    try:
        with tarfile.open(root, "r:") as archive:
            members = [
                File(m.name.removeprefix("./"), root, m.offset_data, m.size)
                for m in archive
                if m.isreg() and not hidden(m.name)
            ]
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            str(root),
            f"is neither a folder nor an uncompressed tar archive ({error})",
            remedy="unpack it into a folder",
        ) from None
    return sorted(members, key=lambda f: f.name)


def _walk(folder: Path, below: str, above: frozenset[tuple[int, int]], found: list[File]) -> None:
    try:
        here = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise DataError(str(folder), f"the folder cannot be listed: {error.strerror or error}") from None
    above = above | {(here.st_dev, here.st_ino)}
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _NOT_DATA:
            continue
        try:
            is_folder = entry.is_dir()
            if is_folder and entry.is_symlink():
                target = entry.stat()
                if (target.st_dev, target.st_ino) in above:
                    continue  # a link back to a folder that we are in
        except OSError:
            continue  # a link that leads to itself
        if is_folder:
            _walk(Path(entry.path), f"{below}{entry.name}/", above, found)
        else:
            found.append(File(f"{below}{entry.name}", Path(entry.path)))


# ------------------------------------------------------------------------------------------------------------ data sets
class LazyImages:
    """Pictures that are decoded when they are fetched.

    Args:
        files: where the bytes are.
        y: targets.
        size: side length, or ``None`` for pictures that are all of one size already.
        shape: shape of one picture as fetched.
        fingerprint: hash of contents and targets.
        cache: pictures kept in memory (others are ``None``).
    """

    def __init__(
        self,
        files: Sequence[Bytes],
        y: Tensor,
        size: int | None,
        shape: tuple[int, ...],
        fingerprint: str,
        cache: Sequence[Tensor | None] | None = None,
    ) -> None:
        self.files, self.y, self.size, self.shape = list(files), y, size, shape
        self._fingerprint = fingerprint
        self.cache = list(cache) if cache is not None else [None] * len(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, items: Tensor) -> Batch:
        """The items as one batch, x float32 [n, 3, H, W] in [0, 1]."""
        pictures = [self._one(i) for i in items.tolist()]
        if all(p.dtype == torch.uint8 for p in pictures):
            return {"x": to_unit(torch.stack(pictures)), "y": self.y[items]}
        return {"x": torch.stack([to_unit(p) for p in pictures]), "y": self.y[items]}

    def _one(self, i: int) -> Tensor:
        kept = self.cache[i]
        if kept is not None:
            return kept
        file = self.files[i]
        try:
            return fit(decode(file.read()), self.size)
        except (OSError, Unreadable) as error:
            raise DataError(file.name, f"the picture can no longer be read: {error}") from None

    @property
    def fingerprint(self) -> str:
        """Hash of the files' contents, the size and the targets."""
        return self._fingerprint


def load_pictures(
    files: Sequence[Bytes],
    y: Tensor,
    *,
    size: int | None,
    bad_files: BadFiles = "error",
    check: Check = "full",
    memory_mb: int = 1024,
    argument: str = "data",
) -> tuple[Items, Tensor, list[str]]:
    """Read every picture once: name the unreadable, keep what fits into memory.

    Args:
        files: where the bytes are.
        y: their targets.
        size: side length that they are brought to; ``None`` keeps theirs.
        bad_files: ``error`` names all unreadable files at once; ``skip`` leaves them out.
        check: ``full`` decodes every file; ``quick`` looks at its head and its end, and decodes what fits into memory.
        memory_mb: how much may be kept decoded.
        argument: what an error is about.

    Returns:
        The pictures, the position of each in ``files`` (int64, increasing), and notes.

    Raises:
        DataError: unreadable files, pictures of several sizes.
    """
    budget = memory_mb * 2**20
    spent, lock = 0, threading.Lock()

    def look(file: Bytes) -> tuple[bytes, tuple[int, ...] | None, Tensor | None, str]:
        nonlocal spent
        try:
            raw = file.read()
            mark = hashlib.blake2b(raw, digest_size=16).digest()
            if check == "quick" and spent >= budget:
                return mark, _quick(raw, size), None, ""
            x = fit(decode(raw), size)
        except OSError as error:
            return b"", None, None, (error.strerror or str(error)).lower()
        except Unreadable as error:
            return b"", None, None, str(error)
        with lock:
            spent += x.numel() * x.element_size()
            keep = spent <= budget
        return mark, tuple(x.shape), x if keep else None, ""

    if len(files) > 5000:
        log.info("reading %d pictures", len(files))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="limbeck-pictures") as pool:
        seen = list(pool.map(look, files))
    bad = [(f.name, s[3]) for f, s in zip(files, seen, strict=True) if s[3]]
    notes = []
    if bad:
        said = "; ".join(f"{name}: {reason}" for name, reason in bad[:100]) + ("; ..." if len(bad) > 100 else "")
        if bad_files == "error":
            raise DataError(
                argument,
                f"{len(bad)} of {len(files)} pictures cannot be read: {said}",
                remedy="mend or remove them, or leave them out with task.data.bad_files=skip",
            )
        notes.append(f"{len(bad)} unreadable pictures were left out: {said}")
    good = torch.tensor([i for i, s in enumerate(seen) if not s[3]], dtype=torch.int64)
    if len(good) == 0:
        raise DataError(argument, "no picture can be read", expected="at least one item of each class")
    chosen = [seen[i] for i in good.tolist()]
    shapes: dict[tuple[int, ...], str] = {}
    for i in good.tolist():
        shapes.setdefault(seen[i][1] or (), files[i].name)
    if len(shapes) > 1:
        shown = ", ".join(f"{s[2]}x{s[1]} ({name})" for s, name in list(shapes.items())[:4])
        raise DataError(
            argument,
            f"the pictures have {len(shapes)} different sizes: {shown}",
            expected="one size",
            remedy="bring them to one with task.size=64 (or another number)",
        )
    y = y[good]
    mark = digest("pictures", size, b"".join(s[0] for s in chosen), y)
    pictures = [s[2] for s in chosen]
    kept = [p for p in pictures if p is not None]
    if len(kept) == len(pictures) and len({p.dtype for p in kept}) == 1:
        return ArrayData(torch.stack(kept), y, fingerprint=mark), good, notes
    shape = tuple(chosen[0][1] or ())
    return LazyImages([files[i] for i in good.tolist()], y, size, shape, mark, pictures), good, notes


def _quick(raw: bytes, size: int | None) -> tuple[int, ...]:
    """Shape of a picture from its head alone, after a look at its end."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            wide, high = image.size
            if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
                wide, high = high, wide
            kind = image.format
    except Exception as error:
        raise Unreadable(_reason(error)) from None
    tail = raw[-4096:]
    if (kind in ("JPEG", "MPO") and b"\xff\xd9" not in tail) or (kind == "PNG" and b"IEND" not in tail):
        raise Unreadable("image file is truncated")
    return (3, high, wide) if size is None else (3, size, size)
