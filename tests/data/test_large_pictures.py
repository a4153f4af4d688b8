"""Images that are too large, or say that they are: refused by their heads, or shrunk as they are read."""

from __future__ import annotations

import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.listing import File
from limbeck.data.pictures import Budget, Unreadable, decode, fit
from limbeck.data.sources import Folder
from limbeck.errors import DataError
from tests.data.picture_files import encode


def claimed(high: int, wide: int) -> bytes:
    """A grey PNG of a few bytes that says it has so many pixels."""
    head = struct.pack(">IIBBBBB", wide, high, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + min(wide, 1000)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    )


def waves(high: int, wide: int, mode: str = "RGB") -> Image.Image:
    """Smooth waves, so that shrinking by two ways gives nearly the same."""
    y, x = np.mgrid[:high, :wide]
    planes = [127 + 120 * np.sin(x / wide * (5 + c)) * np.cos(y / high * (3 + c)) for c in range(len(mode))]
    return Image.merge(mode, [Image.fromarray(plane.astype(np.uint8)) for plane in planes])


@pytest.mark.parametrize(
    ("side", "size", "said"),
    [
        (13_000, None, r"13,000 x 13,000 pixels, which take 2\.70 GB to decode, above the 1\.07 GB"),
        (100_000, None, "exceeds limit"),
        (100_000, 16, "exceeds limit"),
    ],
)
def test_a_picture_that_claims_to_be_huge_is_refused_by_its_head(side: int, size: int | None, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable, match=said), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            decode(claimed(side, side), size=size)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_a_picture_above_the_budget_is_shrunk_as_it_is_read(mode: str, form: str) -> None:
    image = waves(900, 900, mode if form != "JPEG" else mode.removesuffix("A"))
    raw = encode(image, form)
    whole = fit(decode(raw), 32).float()
    tight = Budget(900 * 900 * 16 - 1)
    small = decode(raw, size=32, budget=tight)
    assert min(small.shape[1:]) < 900 // 4 and min(small.shape[1:]) >= 64
    assert float((fit(small, 32).float() - whole).abs().max()) <= 4
    with pytest.raises(
        Unreadable, match=r"900 x 900 pixels, which take .* above the .* task\.data\.memory_mb; .* name task\.size"
    ):
        decode(raw, budget=tight)


def test_within_the_budget_nothing_changes() -> None:
    raw = encode(waves(90, 120), "PNG")
    assert torch.equal(decode(raw, size=8), decode(raw))


def test_who_decodes_waits_for_the_others() -> None:
    budget, inside, most = Budget(100), [], []

    def take(count: int) -> None:
        with budget.taking(count):
            inside.append(count)
            most.append(sum(inside))
            time.sleep(0.002)
            inside.remove(count)

    threads = [threading.Thread(target=take, args=(n,)) for n in (60, 50, 40, 30, 1000, 20, 60) * 3]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert len(most) == 21 and max(n for n in most if n < 1000) <= 100 and budget._taken == 0


def test_a_folder_with_a_bomb_names_it(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "a" / "bomb.png").write_bytes(claimed(13_000, 13_000))
    (tmp_path / "b" / "claim.png").write_bytes(claimed(100_000, 100_000))
    with pytest.raises(DataError, match=r"2 of 8 images cannot be read: a/bomb\.png: 13,000 x 13,000 .* b/claim\.png"):
        Folder(str(tmp_path)).read()
    splits = Folder(str(tmp_path), bad_files="skip", size=4).read()
    assert len(splits.train) == 6


def test_a_strip_does_not_become_a_banner() -> None:
    """A strip brought to 64 on its short side would be 64 times 640,000 before its middle is cut out."""
    strip = torch.arange(10_000, dtype=torch.float32).expand(3, 1, -1) / 10_000
    tracemalloc.start()
    found = fit(strip, 64)
    assert found.shape == (3, 64, 64) and found.min() > 0.49 and found.max() < 0.51
    assert torch.equal(fit(strip[..., :16], 4), fit(strip[..., :16].clone(), 4))
    tracemalloc.stop()


def test_programs_are_no_pictures() -> None:
    """Pillow would hand PostScript to an interpreter, whatever the file is called."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(Unreadable, match="no image in a format that is read"):
        decode(postscript)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(OSError, match="more than the 1,073,741,824"):
        File("x.png", tmp_path / "x.png").read()
    with pytest.raises(OSError, match="more than the 1,073,741,824 it may have"):
        File("x.png", tmp_path / "x.tar", 512, 1 << 60).read()
