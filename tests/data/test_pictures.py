"""Images of every kind become the same three channels, upright, with their values kept; the unreadable are named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.listing import File
from limbeck.data.pictures import Blob, Unranged, Unreadable, decode, fit, list_pictures, load_pictures
from limbeck.errors import DataError
from tests.data.picture_files import deep_png, encode, noise


def hwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy()


def test_colour_and_grey_keep_their_bytes() -> None:
    rgb = noise(0, 5, 7, 3)
    assert np.array_equal(hwc(decode(encode(Image.fromarray(rgb), "PNG"))), rgb)
    grey = noise(1, 5, 7)
    found = hwc(decode(encode(Image.fromarray(grey), "PNG")))
    assert found.dtype == np.uint8 and all(np.array_equal(found[..., c], grey) for c in range(3))
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    assert np.array_equal(hwc(decode(encode(bits, "PNG")))[..., 0], np.where(grey > 127, 255, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_pixels_stay_and_transparent_ones_become_white(mode: str) -> None:
    colour = noise(2, 6, 6, 3)
    alpha = np.full((6, 6), 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    if mode == "LA":
        colour[:] = colour[..., :1]
        image = Image.merge("LA", [Image.fromarray(colour[..., 0]), Image.fromarray(alpha)])
    else:
        image = Image.fromarray(np.dstack([colour, alpha]))
    found = hwc(decode(encode(image, "PNG"))).astype(int)
    assert np.array_equal(found[2:], colour[2:])
    assert (found[0] == 255).all()
    blended = colour[1] * (128 / 255) + 255 * (1 - 128 / 255)
    assert np.abs(found[1] - blended).max() <= 0.5 + 1e-9


def test_palette_is_looked_up_with_and_without_transparency() -> None:
    index = noise(3, 4, 5) % 4
    image = Image.fromarray(index, "P")
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [250, 250, 1]], np.uint8)
    image.putpalette(colours.flatten().tolist())
    assert np.array_equal(hwc(decode(encode(image, "PNG"))), colours[index])
    seen = hwc(decode(encode(image, "PNG", transparency=bytes([255, 0, 255, 255]))))
    wanted = colours[index].copy()
    wanted[index == 1] = 255
    assert np.array_equal(seen, wanted)
    assert np.array_equal(hwc(decode(encode(image, "GIF", transparency=1))), wanted)


def test_a_transparent_colour_of_a_true_colour_png() -> None:
    rgb = noise(4, 4, 4, 3)
    rgb[0, 0] = (1, 2, 3)
    found = hwc(decode(encode(Image.fromarray(rgb), "PNG", transparency=(1, 2, 3))))
    assert (found[0, 0] == 255).all() and np.array_equal(found[1:], rgb[1:])


def test_cmyk_becomes_the_colours_it_prints() -> None:
    inks = np.zeros((1, 5, 4), np.uint8)  # paper, cyan, magenta, yellow, black
    for i in range(4):
        inks[0, i + 1, i] = 255
    wanted = np.array([[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]])
    assert np.array_equal(hwc(decode(encode(Image.fromarray(inks, "CMYK"), "TIFF")))[0], wanted)
    big = Image.fromarray(np.repeat(np.repeat(inks, 16, 0), 16, 1), "CMYK")
    jpeg = hwc(decode(encode(big, "JPEG", quality=95))).astype(int)
    assert np.abs(jpeg[8, 8::16] - wanted).max() < 12


def test_sixteen_bits_are_divided_by_65535() -> None:
    grey = np.array([[0, 1, 255, 256], [32768, 65534, 65535, 1000]], np.uint16)
    wanted = grey / 65535
    for raw in (deep_png(grey), encode(Image.fromarray(grey), "TIFF")):
        found = decode(raw)
        assert found.dtype == torch.float32 and found.shape == (3, 2, 4)
        assert np.abs(found.numpy() - wanted).max() < 1e-7
    big_endian = Image.frombytes("I;16B", (4, 2), grey.astype(">u2").tobytes())
    assert np.abs(decode(encode(big_endian, "TIFF")).numpy() - wanted).max() < 1e-7


def test_sixteen_bits_with_colour_and_transparency() -> None:
    values = np.random.default_rng(5).integers(0, 65536, (4, 5, 4)).astype(np.uint16)
    assert np.abs(hwc(decode(deep_png(values[..., :3]))) - values[..., :3] / 65535).max() < 1e-6
    alpha = values[..., 3:] / 65535
    wanted = values[..., :3] / 65535 * alpha + 1 - alpha
    assert np.abs(hwc(decode(deep_png(values))) - wanted).max() < 1e-6
    grey = values[..., :1] / 65535 * alpha + 1 - alpha
    found = hwc(decode(deep_png(values[..., [0, 3]])))
    # of grey with transparency Pillow keeps the upper 8 bits
    assert found.shape == (4, 5, 3) and np.abs(found / 255 - grey).max() < 2 / 255


def test_floating_pictures_only_where_their_range_is_known() -> None:
    values = np.random.default_rng(6).random((3, 4)).astype(np.float32)
    assert np.abs(decode(encode(Image.fromarray(values), "TIFF")).numpy() - values).max() < 1e-7
    with pytest.raises(Unreadable, match="NaN"):
        decode(encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))
    with pytest.raises(Unranged, match="floating values run from"):
        decode(encode(Image.fromarray(values * 300), "TIFF"))
    found = decode(encode(Image.fromarray(values * 300), "TIFF"), 600.0)
    assert np.abs(found.numpy() - values / 2).max() < 1e-6


UPRIGHT = {
    1: lambda s: s,
    2: lambda s: s[:, ::-1],
    3: lambda s: s[::-1, ::-1],
    4: lambda s: s[::-1],
    5: lambda s: s.swapaxes(0, 1),
    6: lambda s: np.rot90(s, -1),
    7: lambda s: s[::-1, ::-1].swapaxes(0, 1),
    8: lambda s: np.rot90(s, 1),
}
"""What the first stored row and column are when seen, by the EXIF standard's table of orientations."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "P", "I;16", "RGB;16"])
def test_a_camera_s_orientation_is_honoured(orientation: int, mode: str) -> None:
    stored = noise(7, 4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if mode == "P":
        index = noise(8, 4, 6) % 3
        image = Image.fromarray(index, "P")
        colours = np.array([[9, 8, 7], [100, 150, 200], [255, 0, 255]], np.uint8)
        image.putpalette(colours.flatten().tolist())
        stored = colours[index]
        found = hwc(decode(encode(image, "PNG", exif=exif)))
    elif mode == "I;16":
        deep = np.random.default_rng(9).integers(0, 65536, (4, 6)).astype(np.uint16)
        found = hwc(decode(encode(Image.fromarray(deep), "TIFF", exif=exif)))
        stored = np.repeat((deep / 65535).astype(np.float32)[..., None], 3, 2)
    elif mode == "RGB;16":
        deep = np.random.default_rng(9).integers(0, 65536, (4, 6, 3)).astype(np.uint16)
        found = hwc(decode(deep_png(deep, exif.tobytes()[6:])))
        stored = deep.astype(np.float32) / 65535
    else:
        found = hwc(decode(encode(Image.fromarray(stored), "PNG", exif=exif)))
    assert np.array_equal(found, UPRIGHT[orientation](stored))


def test_a_jpeg_is_turned_too() -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encode(Image.fromarray(stored), "JPEG", exif=exif, quality=95))
    assert found.shape == (3, 32, 16) and found[:, :14].float().mean() > 250 and found[:, 18:].float().mean() < 5


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    raw = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert hwc(decode(raw))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "no image"),
        (b"these are words, not pixels", "no image"),
        (encode(Image.fromarray(noise(10, 64, 64, 3)), "JPEG")[:-600], "truncated"),
        (encode(Image.fromarray(noise(10, 64, 64, 3)), "PNG")[:900], "truncated"),
        (deep_png(np.zeros((8, 8, 3), np.uint16))[:-30], "truncated"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 200, "HEIC"),
    ],
)
def test_what_cannot_be_read_says_why(raw: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        decode(raw)


def test_fit_takes_the_middle_of_the_shorter_side() -> None:
    x = torch.zeros(3, 8, 16, dtype=torch.uint8)
    x[:, :, 4:12] = 255
    assert (fit(x, 8) == 255).all() and fit(x, 8).dtype == torch.uint8
    assert fit(x, 4).shape == (3, 4, 4) and (fit(x, 4) > 200).all()
    assert fit(torch.rand(2, 3, 5, 9), 10).shape == (2, 3, 10, 10)
    assert fit(x, None) is x


# ---------------------------------------------------------------------------------------------------------- folders
def test_hidden_files_and_circles_are_survived(tmp_path: Path) -> None:
    raw = encode(Image.fromarray(noise(11, 4, 4, 3)), "PNG")
    for name in ("cats/a.png", "cats/deep/b.PNG", "cats/.hidden.png", ".git/c.png", "cats/notes.txt", "cats/Thumbs.db"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    (tmp_path / "__MACOSX/cats").mkdir(parents=True)
    (tmp_path / "__MACOSX/cats/a.png").write_bytes(raw)
    (tmp_path / "cats/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "cats/itself").symlink_to("itself")
    (tmp_path / "cats/linked.png").symlink_to(tmp_path / "cats/a.png")
    assert [f.name for f in list_pictures(tmp_path).found] == ["cats/a.png", "cats/deep/b.PNG", "cats/linked.png"]


def test_a_tar_archive_is_read_like_a_folder(tmp_path: Path) -> None:
    raw = encode(Image.fromarray(noise(12, 4, 4, 3)), "PNG")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in ("./cats/a.png", "dogs/b.png", "dogs/.c.png", "dogs/readme.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    files = list_pictures(tmp_path / "set.tar").found
    assert [f.name for f in files] == ["cats/a.png", "dogs/b.png"] and files[1].read() == raw
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set.tar", "set.tar")
    with pytest.raises(DataError, match="uncompressed tar"):
        list_pictures(tmp_path / "set.tar.gz")
    with pytest.raises(DataError, match="no such"):
        list_pictures(tmp_path / "absent")


# ------------------------------------------------------------------------------------------------------- whole sets
def blobs(count: int, size: tuple[int, int] = (6, 6)) -> list[Blob]:
    return [Blob(f"{i}.png", encode(Image.fromarray(noise(i, *size, 3)), "PNG")) for i in range(count)]


def test_memory_changes_nothing_but_speed() -> None:
    files, y = blobs(5), torch.tensor([0, 1, 0, 1, 0])
    kept, _, _ = load_pictures(files, y, size=None)
    lazy, _, _ = load_pictures(files, y, size=None, memory_mb=0)
    assert type(kept) is not type(lazy) and kept.fingerprint == lazy.fingerprint
    ids = torch.tensor([3, 0, 3])
    a, b = kept.fetch(ids), lazy.fetch(ids)
    assert torch.equal(a["x"], b["x"]) and torch.equal(a["y"], y[ids])
    assert torch.equal(a["x"][1], torch.from_numpy(noise(0, 6, 6, 3)).permute(2, 0, 1) / 255)
    other, _, _ = load_pictures(blobs(4), y[:4], size=None)
    relabelled, _, _ = load_pictures(files, 1 - y, size=None)
    resized, _, _ = load_pictures(files, y, size=3)
    assert len({kept.fingerprint, other.fingerprint, relabelled.fingerprint, resized.fingerprint}) == 4


def test_deep_and_common_pictures_share_a_batch() -> None:
    deep = np.full((6, 6), 32768, np.uint16)
    files = [*blobs(2), Blob("deep.png", deep_png(deep))]
    data, _, _ = load_pictures(files, torch.tensor([0, 1, 1]), size=None)
    x = data.fetch(torch.arange(3))["x"]
    assert x.shape == (3, 3, 6, 6) and x.dtype == torch.float32
    assert torch.allclose(x[2], torch.tensor(32768 / 65535)) and torch.equal(x[0] * 255, (x[0] * 255).round())


@pytest.mark.parametrize("check", ["full", "quick"])
def test_every_unreadable_file_is_named_at_once(check: str) -> None:
    jpeg = encode(Image.fromarray(noise(1, 40, 40, 3)), "JPEG")
    good = [Blob(f"{i}.jpg", jpeg) for i in range(3)]
    files = [good[0], Blob("cut.jpg", jpeg[:-300]), good[1], Blob("words.jpg", b"words"), good[2]]
    y = torch.arange(5)
    with pytest.raises(DataError, match=r"2 of 5 .*cut\.jpg.*words\.jpg.*bad_files=skip"):
        load_pictures(files, y, size=8, check=check, memory_mb=0)  # type: ignore[arg-type]
    data, kept, notes = load_pictures(files, y, size=8, bad_files="skip", check=check)  # type: ignore[arg-type]
    assert kept.tolist() == [0, 2, 4] and data.y.tolist() == [0, 2, 4]
    assert "cut.jpg" in notes[0] and "words.jpg" in notes[0]
    with pytest.raises(DataError, match="no image can be read"):
        load_pictures(files[3:4], y[:1], size=8, bad_files="skip")


def test_a_file_that_vanishes_later_is_named() -> None:
    files = blobs(2)
    data, _, _ = load_pictures(files, torch.tensor([0, 1]), size=None, memory_mb=0)
    data.files[1] = Blob("1.png", b"gone")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"1\.png.*no longer"):
        data.fetch(torch.tensor([1]))


def test_several_sizes_are_refused_with_the_remedy() -> None:
    files = [*blobs(2), *blobs(1, (6, 9))]
    with pytest.raises(DataError, match=r"6x6.*9x6.*task\.size"):
        load_pictures(files, torch.tensor([0, 1, 1]), size=None)
    assert load_pictures(files, torch.tensor([0, 1, 1]), size=5)[0].shape == (3, 5, 5)


# ------------------------------------------------------------------------------------------------------------- one scale
def counts(*highs: int) -> list[Blob]:
    """32-bit grey images whose largest value is given."""
    made = []
    for i, high in enumerate(highs):
        values = np.linspace(0, high, 16).round().astype(np.int32).reshape(4, 4)
        made.append(Blob(f"{i}.tif", encode(Image.fromarray(values), "TIFF")))
    return made


def load(files: list[Blob], **more: Any) -> tuple[list[float], list[str]]:
    data, _, notes = load_pictures(files, torch.arange(len(files)), size=None, **more)
    return data.fetch(torch.arange(len(files)))["x"].amax((1, 2, 3)).tolist(), notes


def test_the_scale_belongs_to_the_set_and_not_to_the_picture() -> None:
    dim, bright = load(counts(60_000, 30_000))[0]
    assert dim == pytest.approx(60_000 / 65_535) and dim / bright == pytest.approx(2)
    with pytest.raises(DataError, match=r"1 of 2 images hold 32-bit integers.*1\.tif.*task\.data\.scale=120000"):
        load(counts(60_000, 120_000))
    with pytest.raises(DataError, match="32-bit integers"):  # what is skipped is what cannot be read
        load(counts(60_000, 120_000), bad_files="skip")
    found, notes = load(counts(60_000, 120_000), scale=120_000.0)
    assert found == pytest.approx([0.5, 1.0]) and notes == [
        "2 images of more than 8 bits: values up to 120000 divided by 120000"
    ]
    with pytest.raises(DataError, match=r"more than task\.data\.scale=1000"):
        load(counts(60_000), scale=1000.0)
    with pytest.raises(DataError, match="negative values"):
        load(counts(-5))


@pytest.mark.parametrize("memory", [0, 64])
def test_bytes_in_32_bits_are_bytes(memory: int) -> None:
    found, notes = load(counts(200, 100), memory_mb=memory)
    assert found == pytest.approx([200 / 255, 100 / 255]) and "divided by 255" in notes[0]
    assert load(counts(200, 300))[0] == pytest.approx([200 / 65_535, 300 / 65_535])


def test_sixteen_bits_of_which_twelve_are_used() -> None:
    raw = deep_png(np.full((4, 4), 4095, np.uint16))
    colour = deep_png(np.full((4, 4, 3), 4095, np.uint16))
    files = [Blob("a.png", raw), Blob("b.png", colour)]
    found, notes = load(files)
    assert found == pytest.approx([4095 / 65_535] * 2) and "values up to 4095 divided by 65535" in notes[0]
    assert load(files, scale=4095.0)[0] == [1.0, 1.0]
    marks = {load_pictures(files, torch.arange(2), size=None, scale=s)[0].fingerprint for s in (None, 4095.0)}
    assert len(marks) == 2


def test_a_listing_tells_what_it_passed_over(tmp_path: Path) -> None:
    raw = encode(Image.fromarray(noise(11, 4, 4, 3)), "PNG")
    for name in ("a/1.png", ".b/2.png", ".b/c/3.png", "a/.4.png", "a/x.txt", "__MACOSX/a/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "a/up").symlink_to(tmp_path, target_is_directory=True)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in ("a", ".b", "__MACOSX"):
            archive.add(tmp_path / name, name)
    for root in (tmp_path, tmp_path / "set.tar"):
        found = list_pictures(root)
        assert [f.name for f in found.found] == ["a/1.png"] and found.folders == ["a"]
        assert found.passed == {".b": 2, "a/.4.png": 1, "__MACOSX": 1}
    assert (
        list_pictures(tmp_path).circles == ["a/up"]
        and "links to a folder they lie in: a/up" in list_pictures(tmp_path).notes()[0]
    )


def test_pictures_that_do_not_fit_into_memory_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr("limbeck.storage.files._GRAIN", -1.0)
    monkeypatch.setattr("limbeck.storage.files._here", {})
    for i in range(6):
        Image.new("RGB", (5, 4), (i * 40, 10, 20)).save(tmp_path / f"{i}.png")
    files = [File(f"{i}.png", tmp_path / f"{i}.png") for i in range(6)]
    read, real = [], File.read

    def counting(self: File) -> bytes:
        read.append(self.name)
        return real(self)

    monkeypatch.setattr(File, "read", counting)

    def loaded(size: int | None = None) -> str:
        read.clear()
        monkeypatch.setattr("limbeck.storage.files._here", {})  # as in a new process
        items, _, _ = load_pictures(files, torch.zeros(6, dtype=torch.int64), size=size, memory_mb=0)
        return items.fingerprint

    first = loaded()
    assert len(read) == 6 and loaded() == first and read == [], "nothing is read again"
    assert loaded(size=2) != first and len(read) == 6, "another size is another look"
    Image.new("RGB", (5, 4), (9, 9, 9)).save(tmp_path / "3.png")
    assert loaded() != first and read == ["3.png"]
