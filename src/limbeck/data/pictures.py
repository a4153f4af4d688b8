"""Images as phones and scanners make them, read into three channels with their values kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import ArrayData, Items, digest, to_unit
from limbeck.data.listing import Listing, list_all
from limbeck.data.names import counted, some
from limbeck.errors import DataError, human
from limbeck.grammar.method import Batch
from limbeck.storage.files import Seen
from limbeck.storage.memory import available, need

log = logging.getLogger("limbeck.data")

BadFiles = Literal["error", "skip"]
Check = Literal["full", "quick"]

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")
_ENDINGS = "jpg jpeg jpe jfif png bmp dib gif tif tiff webp ppm pgm pbm pnm jp2 j2k tga avif heic heif"
EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Endings that make a file an image. Other files in an image folder are left alone."""


class Unreadable(ValueError):
    """One image cannot be read; the message says why."""


class Unranged(ValueError):
    """A image whose values do not tell what is white: a fault of the whole set, for which one scale must be named.

    Args:
        kind: what its values are, in words.
        low, high: the smallest and the largest of them.
        scale: what they were divided by, if that was said.
    """

    def __init__(self, kind: str, low: float, high: float, scale: float | None = None) -> None:
        over = f" and are divided by {scale:g}" if scale is not None else ""
        super().__init__(f"its {kind} run from {low:g} to {high:g}{over}, of which only [0, 1] is known")
        self.kind, self.low, self.high, self.scale = kind, low, high, scale


class Decoded(NamedTuple):
    """A image as it was read.

    Attributes:
        x: [3, H, W].
        high: the largest stored value where more than 8 bits are stored, else 0.
        wide: whether the type of its values says nothing of their range (32 bits).
    """

    x: Tensor
    high: float = 0.0
    wide: bool = False


# ------------------------------------------------------------------------------------------------------------ decoding
LEAST = 256 << 20
"""Bytes that decoding may always take, however little is kept in memory."""


class Budget:
    """Memory that decoding may take at a time, over all threads: who would need more waits for the others.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0
        self._turn = threading.Condition()

    @contextlib.contextmanager
    def taking(self, count: int) -> Iterator[None]:
        """Inside, ``count`` bytes are taken; one who needs more than there are at all must ask beforehand."""
        count = min(count, self.most)
        with self._turn:
            self._turn.wait_for(lambda: self._taken + count <= self.most)
            self._taken += count
        try:
            yield
        finally:
            with self._turn:
                self._taken -= count
                self._turn.notify_all()


_ORDINARY = Budget(1 << 30)


def decode(raw: bytes, scale: float | None = None, size: int | None = None, budget: Budget | None = None) -> Tensor:
    """A image file as three channels [3, H, W], upright.

    uint8 for the common formats; float32 in [0, 1] for deeper ones (integers up to 65535 are divided by that, or by
    ``scale``). Grey is repeated, palettes are looked up, transparent pixels are laid over white, CMYK is converted; the
    orientation that a camera noted (EXIF) is applied; of an animation the first frame counts.

    Args:
        raw: the file's bytes.
        scale: what stored values of more than 8 bits are divided by.
        size: side length that the image will be brought to; one too large for the budget is shrunk as it is read.
        budget: how much memory may be taken; a gigabyte by default.

    Raises:
        Unreadable: no image, truncated, or larger than the budget.
        Unranged: an image of 32 bits whose range of values is unknown.
    """
    return decode_deep(raw, scale, size, budget).x


def decode_deep(
    raw: bytes, scale: float | None = None, size: int | None = None, budget: Budget | None = None
) -> Decoded:
    """As `decode`, with what is known of the values that were stored."""
    from PIL import ImageOps

    budget = budget or _ORDINARY
    if raw[4:8] == b"ftyp":
        _register_heif()
    try:
        with _opened(raw) as head:
            shrink, cost = _plan(head, raw, size, budget)
            with budget.taking(cost):
                deep = _deep_png(raw, scale)
                if deep is not None:
                    return deep
                head.load()
                image: Any = head if shrink == 1 else _shrunk(head, shrink)
                try:
                    image = ImageOps.exif_transpose(image)
                except Exception as error:  # a damaged note about the orientation does not damage the image
                    log.debug("orientation ignored: %s", error)
                return _decoded(image, scale)
    except (Unreadable, Unranged):
        raise
    except Exception as error:  # decoders raise all kinds
        raise Unreadable(_reason(error)) from None


def _opened(raw: bytes) -> Any:
    """The image, its head read; only formats that are images, for others are programs that an interpreter runs."""
    from PIL import Image

    Image.init()
    return Image.open(io.BytesIO(raw), formats=[name for name in _FORMATS if name in Image.OPEN])


def _plan(image: Any, raw: bytes, size: int | None, budget: Budget) -> tuple[int, int]:
    """By how much an image is shrunk as it is read, and how many bytes reading it takes.

    Raises:
        Unreadable: more than there are.
    """
    wide, high = image.size
    cost = wide * high * _bytes_a_pixel(image, raw)
    if cost <= budget.most:
        return 1, cost
    factor = min(wide, high) // (2 * size) if size else 1
    if factor >= 2 and _is_shrinkable(image):
        image.draft(None, (wide // factor, high // factor))  # JPEG alone: eighths of a side are never even unpacked
        left, upright = image.size
        factor = max(1, min(left, upright) // (2 * size)) if size else 1
        pixels = left * upright
        own = 8 if image.mode in ("LA", "RGBA") else 4  # of images with transparency Pillow makes a second one
        cost = own * pixels + pixels // factor**2 * (own + _bytes_a_pixel(image, raw))
        if cost <= budget.most:
            return factor, cost
    said = (
        f"{wide:,} x {high:,} pixels, which take {human(cost, 'B')} to decode, above the {human(budget.most, 'B')} set"
    )
    raise Unreadable(f"{said} by task.data.memory_mb; make it smaller" + ("" if size else ", or name task.size"))


def _shrunk(image: Any, factor: int) -> Any:
    """A image that was read, several times smaller, before it is copied into any other form."""
    from PIL import Image

    wide, high = (-(-side // factor) for side in image.size)
    return image.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _is_shrinkable(image: Any) -> bool:
    return image.mode in ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr") and "transparency" not in image.info


def _bytes_a_pixel(image: Any, raw: bytes) -> int:
    """What a pixel takes at the height of reading: Pillow's own copy, NumPy's, the one that is returned."""
    if _is_deep_png(raw):
        return 96
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return 48
    return 40 if image.mode.startswith("I") or image.mode == "F" else 16


def three_channels(image: Any) -> Tensor:
    """A PIL image of any mode as [3, H, W]: uint8, or float32 in [0, 1] for deeper ones."""
    return _decoded(image, None).x


def _decoded(image: Any, scale: float | None) -> Decoded:
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _grey_numbers(np.asarray(image), mode, scale)
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
    return Decoded(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))


def _from_lab(image: Any) -> Any:
    from PIL import ImageCms

    return ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


def _grey_numbers(values: np.ndarray[Any, Any], mode: str, scale: float | None) -> Decoded:
    """Deep grey pictures: integers divided by 65535, floats as they are, both by ``scale`` if it is given.

    What is divided by never depends on this one image's values: of a set some would be brighter than others.
    """
    grey = values.astype(np.float64)
    if not np.isfinite(grey).all():
        raise Unreadable("holds NaN or infinity")
    low, high = (float(grey.min()), float(grey.max())) if grey.size else (0.0, 0.0)
    by = scale if scale is not None else 1.0 if mode == "F" else 65535.0
    if low < 0 or high > by:
        raise Unranged("floating values" if mode == "F" else "32-bit integers", low, high, scale)
    x = torch.from_numpy((grey / by).astype(np.float32)).expand(3, -1, -1).contiguous()
    return Decoded(x, high, mode == "I")


def _deep_png(raw: bytes, scale: float | None) -> Decoded | None:
    """PNG with 16 bits a channel and colour, which Pillow cuts to its upper 8 bits; ``None`` for all else.

    The lower 8 bits come from a second pass that takes the other byte of each pair, as of a file in the other order.
    """
    if not _is_deep_png(raw):
        return None
    from PIL import ImageOps

    layout = "RGB" if raw[25:26] == b"\x02" else "RGBA"
    halves = []
    try:
        for order in ("B", "L"):
            with _opened(raw) as image:
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
    values = halves[0] * 256.0 + halves[1]
    high = float(values[..., :3].max()) if values.size else 0.0
    if scale is not None and high > scale:
        raise Unranged("16-bit integers", float(values[..., :3].min()), high, scale)
    colour = values[..., :3] / (65535.0 if scale is None else scale)
    if layout == "RGBA":
        alpha = values[..., 3:] / 65535.0
        colour = colour * alpha + (1.0 - alpha)
    return Decoded(torch.from_numpy(np.ascontiguousarray(colour.astype(np.float32).transpose(2, 0, 1))), high)


def _is_deep_png(raw: bytes) -> bool:
    return raw[:8] == b"\x89PNG\r\n\x1a\n" and raw[24:25] == b"\x10" and raw[25:26] in (b"\x02", b"\x06")


def _register_heif() -> None:
    try:
        import pillow_heif  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        return  # Pillow reads AVIF itself; for HEIC the reason names the package
    pillow_heif.register_heif_opener()


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image in a format that is read (for HEIC: pip install pillow-heif)"
    text = " ".join(str(error).split())[:160]
    return f"{text[:1].lower()}{text[1:]}" if text else type(error).__name__


def fit(x: Tensor, size: int | None) -> Tensor:
    """Images [..., C, H, W] with the shorter side resized (bilinear, antialiased) and the middle cut out."""
    if size is None or tuple(x.shape[-2:]) == (size, size):
        return x
    if x.dtype == torch.uint16:
        x = to_unit(x)
    x = _without_ends(x)
    high, wide = x.shape[-2:]
    count = (
        math.prod(x.shape[:-2]) * size * max(size, round(size * max(high, wide) / min(high, wide))) * x.element_size()
    )
    if count > LEAST:
        shown = f"{len(x):,} images" if x.ndim == 4 else "a image"
        need(2 * count, "task.size", f"{shown} of {size:,} x {size:,} pixels", "lower task.size")
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


def _without_ends(x: Tensor) -> Tensor:
    """A strip more than 16 times as long as it is wide, without the ends that are far from the square that is cut out."""
    high, wide = x.shape[-2:]
    short, long = min(high, wide), max(high, wide)
    if long <= 16 * short:
        return x
    start = (long - 4 * short) // 2
    return x.narrow(-1 if wide > high else -2, start, 4 * short)


# --------------------------------------------------------------------------------------------------------------- files
class Bytes(Protocol):
    """Something that holds one image file's bytes."""

    @property
    def name(self) -> str:
        """How it is shown in messages."""

    def read(self) -> bytes:
        """All bytes; raises OSError."""


@dataclass(frozen=True)
class Blob:
    """A image file that lies in memory (a table's cell)."""

    name: str
    raw: bytes

    def read(self) -> bytes:
        """All bytes."""
        return self.raw


def is_picture(name: str) -> bool:
    """Whether a file's ending is an image's."""
    return Path(name).suffix.lower() in EXTENSIONS


def list_pictures(root: Path) -> Listing:
    """What lies below a folder or in a tar archive, image files told from others."""
    return list_all(root, is_picture, "image")


# ------------------------------------------------------------------------------------------------------------ data sets
class LazyImages:
    """Images that are decoded when they are fetched.

    Args:
        files: where the bytes are.
        y: targets.
        size: side length, or ``None`` for images that are all of one size already.
        shape: shape of one image as fetched.
        fingerprint: hash of contents and targets.
        cache: images kept in memory (others are ``None``).
        scale: what stored values of more than 8 bits are divided by.
        budget: how much memory decoding one may take.
    """

    def __init__(
        self,
        files: Sequence[Bytes],
        y: Tensor,
        size: int | None,
        shape: tuple[int, ...],
        fingerprint: str,
        cache: Sequence[Tensor | None] | None = None,
        scale: float | None = None,
        budget: int = 1 << 30,
    ) -> None:
        self.budget = budget
        self.files, self.y, self.size, self.shape, self.scale = list(files), y, size, shape, scale
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
            return fit(decode(file.read(), self.scale, self.size, Budget(self.budget)), self.size)
        except Unranged as error:
            raise unranged([(file.name, error)], file.name) from None
        except (OSError, Unreadable) as error:
            raise DataError(file.name, f"the image can no longer be read: {error}") from None

    @property
    def fingerprint(self) -> str:
        """Hash of the files' contents, the size and the targets."""
        return self._fingerprint


class _Seen(NamedTuple):
    """What was found of one image file: a hash, the shape, the image itself if it is kept; or why it is unreadable."""

    mark: bytes = b""
    shape: tuple[int, ...] | None = None
    x: Tensor | None = None
    fault: str = ""
    unranged: Unranged | None = None
    high: float = 0.0
    wide: bool = False


def load_pictures(
    files: Sequence[Bytes],
    y: Tensor,
    *,
    size: int | None,
    bad_files: BadFiles = "error",
    check: Check = "full",
    memory_mb: int = 1024,
    argument: str = "data",
    scale: float | None = None,
) -> tuple[Items, Tensor, list[str]]:
    """Read every image once: name the unreadable, keep what fits into memory.

    Args:
        files: where the bytes are.
        y: their targets.
        size: side length that they are brought to; ``None`` keeps theirs.
        bad_files: ``error`` names all unreadable files at once; ``skip`` leaves them out.
        check: ``full`` decodes every file; ``quick`` looks at its head and its end, and decodes what fits into memory.
        memory_mb: how much may be kept decoded.
        argument: what an error is about.
        scale: what stored values of more than 8 bits are divided by; ``None``: 65535 (255 if none is larger).

    Returns:
        The images, the position of each in ``files`` (int64, increasing), and notes.

    Raises:
        DataError: unreadable files, images of several sizes, or of values whose scale is unknown.
    """
    from PIL import Image

    # what is too large is measured against the budget, and told in our words
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    budget = memory_mb * 2**20
    decoding = Budget(min(max(LEAST, budget), available() or budget))
    spent, lock = 0, threading.Lock()

    # what is found of an image that is not kept: the same as long as the file is
    what = f"image, size {size}, scale {scale}, {check}"

    def glance(file: Bytes) -> list[Any]:
        raw = file.read()
        mark = hashlib.blake2b(raw, digest_size=16).hexdigest()
        if check == "quick":
            return [mark, _quick(raw, size, decoding), 0.0, False]
        found = decode_deep(raw, scale, size, decoding)
        return [mark, list(fit(found.x, size).shape), found.high, found.wide]

    def look(file: Bytes) -> _Seen:
        nonlocal spent
        place = getattr(file, "path", None)
        try:
            if spent >= budget:
                which = f"{what}, from byte {getattr(file, 'start', -1)}"  # of an archive
                answer = known.ask(place, which, partial(glance, file)) if place else glance(file)
                mark, shape, high, wide = answer
                return _Seen(bytes.fromhex(mark), shape and tuple(shape), None, "", None, high, wide)
            raw = file.read()
            content = hashlib.blake2b(raw, digest_size=16).digest()
            found = decode_deep(raw, scale, size, decoding)
            x = fit(found.x, size)
        except OSError as error:
            return _Seen(fault=(error.strerror or str(error)).lower())
        except Unreadable as error:
            return _Seen(fault=str(error))
        except Unranged as error:
            return _Seen(unranged=error)
        with lock:
            spent += x.numel() * x.element_size()
            keep = spent <= budget
        return _Seen(content, tuple(x.shape), x if keep else None, "", None, found.high, found.wide)

    if len(files) > 5000:
        log.info("reading %d images", len(files))
    with Seen() as known, ThreadPoolExecutor(min(8, os.cpu_count() or 1), "limbeck-pictures") as pool:
        seen = list(pool.map(look, files))
    odd = [(f.name, s.unranged) for f, s in zip(files, seen, strict=True) if s.unranged is not None]
    if odd:
        raise unranged(odd, argument, len(files))
    bad = [(f.name, s.fault) for f, s in zip(files, seen, strict=True) if s.fault]
    notes = []
    if bad:
        reasons: dict[str, list[str]] = {}
        for name, reason in bad:
            reasons.setdefault(reason, []).append(name)
        said = "; ".join(f"{some(names, 50)}: {reason}" for reason, names in list(reasons.items())[:20])
        if bad_files == "error":
            raise DataError(
                argument,
                f"{len(bad)} of {len(files)} images cannot be read: {said}",
                remedy="mend or remove them, or leave them out with task.data.bad_files=skip",
            )
        notes.append(f"{counted(len(bad), 'unreadable image')} of {len(files)} left out: {said}")
    good = torch.tensor([i for i, s in enumerate(seen) if not s.fault], dtype=torch.int64)
    if len(good) == 0:
        raise DataError(argument, "no image can be read", expected="at least one item of each class")
    chosen = [seen[i] for i in good.tolist()]
    shapes: dict[tuple[int, ...], str] = {}
    for i in good.tolist():
        shapes.setdefault(seen[i].shape or (), files[i].name)
    if len(shapes) > 1:
        shown = ", ".join(f"{s[2]}x{s[1]} ({name})" for s, name in list(shapes.items())[:4])
        raise DataError(
            argument,
            f"the images have {len(shapes)} different sizes: {shown}",
            expected="one size",
            remedy="bring them to one with task.size=64 (or another number)",
        )
    deep = [s for s in chosen if s.high > 0]
    high = max((s.high for s in deep), default=0.0)
    if scale is None and deep and all(s.wide for s in deep) and high <= 255:
        # a byte's values in 32 bits; what they are divided by is known only when all of them were seen
        return load_pictures(files, y, size=size, bad_files=bad_files, check=check, memory_mb=memory_mb,
                             argument=argument, scale=255.0)  # fmt: skip
    if deep and high > 1:
        by = 65535.0 if scale is None else scale
        notes.append(f"{counted(len(deep), 'image')} of more than 8 bits: values up to {high:g} divided by {by:g}")
    y = y[good]
    mark = digest("pictures", size, b"".join(s.mark for s in chosen), y, *([] if scale is None else [scale]))
    pictures = [s.x for s in chosen]
    kept = [p for p in pictures if p is not None]
    if len(kept) == len(pictures) and len({p.dtype for p in kept}) == 1:
        return ArrayData(torch.stack(kept), y, fingerprint=mark), good, notes
    shape = tuple(chosen[0].shape or ())
    lazy = LazyImages([files[i] for i in good.tolist()], y, size, shape, mark, pictures, scale, decoding.most)
    return lazy, good, notes


def unranged(odd: Sequence[tuple[str, Unranged]], argument: str, of: int = 1) -> DataError:
    """What to say of images whose scale is unknown: one must be named for the whole set."""
    low, high = min(e.low for _, e in odd), max(e.high for _, e in odd)
    name, first = odd[0]
    if low < 0:
        remedy = "shift and divide them so that they lie in [0, 1]; negative values have no brightness"
    else:
        remedy = f"say what all of them are divided by, for example task.data.scale={high:g}, the largest"
    over = "" if first.scale is None else f", more than task.data.scale={first.scale:g}"
    return DataError(
        argument,
        f"{len(odd)} of {of} images hold {first.kind} from {low:g} to {high:g}{over}, such as {name}",
        expected="8 or 16 bits, or floats in [0, 1]",
        remedy=remedy,
    )


def _quick(raw: bytes, size: int | None, budget: Budget) -> tuple[int, ...]:
    """Shape of an image from its head alone, after a look at its end."""
    try:
        with _opened(raw) as image:
            wide, high = image.size
            _plan(image, raw, size, budget)
            if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
                wide, high = high, wide
            kind = image.format
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_reason(error)) from None
    tail = raw[-4096:]
    if (kind in ("JPEG", "MPO") and b"\xff\xd9" not in tail) or (kind == "PNG" and b"IEND" not in tail):
        raise Unreadable("image file is truncated")
    return (3, high, wide) if size is None else (3, size, size)
