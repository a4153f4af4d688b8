from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import augment as A
from limbeck.grammar.random import Draws

F64 = torch.float64
ALL = "color_crop_cutout_flip_scale_rotate"
quick = settings(max_examples=20, deadline=None)
unit = st.floats(0.0, 1.0, exclude_max=True)


def images(seed: int, n: int = 2, c: int = 2, h: int = 5, w: int = 6, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# each function against an obvious reference


@quick
@given(st.integers(0, 100), unit)
def test_colour_functions_by_loops(seed: int, u: float) -> None:
    x, draw = images(seed), torch.tensor([u, 0.25], dtype=F64)
    got = A.brightness(x, draw), A.saturation(x, draw), A.contrast(x, draw)
    for n in range(2):
        number, whole = draw[n].item(), x[n].mean().item()
        for c in range(2):
            for i in range(5):
                for j in range(6):
                    p, grey = x[n, c, i, j].item(), x[n, :, i, j].mean().item()
                    assert got[0][n, c, i, j].item() == pytest.approx(p + number - 0.5)
                    assert got[1][n, c, i, j].item() == pytest.approx((p - grey) * 2 * number + grey, abs=1e-12)
                    expected = (p - whole) * (number + 0.5) + whole
                    assert got[2][n, c, i, j].item() == pytest.approx(expected, abs=1e-12)


@quick
@given(st.integers(0, 100), st.integers(-9, 9), st.integers(-9, 9))
def test_translate_by_loops(seed: int, rows: int, columns: int) -> None:
    x = images(seed)
    got = A.translate(x, torch.tensor([rows, 1]), torch.tensor([columns, 0]))
    for n, (a, b) in enumerate(((rows, columns), (1, 0))):
        for i in range(5):
            for j in range(6):
                inside = 0 <= i + a < 5 and 0 <= j + b < 6
                expected = x[n, :, i + a, j + b] if inside else torch.zeros(2, dtype=F64)
                assert torch.equal(got[n, :, i, j], expected)


@quick
@given(st.integers(0, 5), st.integers(0, 6), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_cutout_by_sets(rows: int, columns: int, ratio: float) -> None:
    x = torch.ones(1, 2, 5, 6)
    got = A.cutout(x, torch.tensor([rows]), torch.tensor([columns]), ratio)
    tall, wide = int(5 * ratio + 0.5), int(6 * ratio + 0.5)
    gone_rows = {min(max(rows - tall // 2 + k, 0), 4) for k in range(tall)}
    gone_columns = {min(max(columns - wide // 2 + k, 0), 5) for k in range(wide)}
    for i in range(5):
        for j in range(6):
            expected = 0.0 if i in gone_rows and j in gone_columns else 1.0
            assert (got[0, :, i, j] == expected).all()


def test_flip_decides_per_image() -> None:
    x = images(0, n=3)
    got = A.flip(x, torch.tensor([0.1, 0.5, 0.49]))
    assert torch.equal(got[0], x[0].flip(2)) and torch.equal(got[1], x[1]) and torch.equal(got[2], x[2].flip(2))


def sample_at(image: Tensor, row: float, column: float) -> float:
    """Bilinear value of a [H, W] image at pixel coordinates; zero outside."""
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j].item()
    return total


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("u", [0.0, 0.3, 0.99])
def test_affine_functions_by_loops(u: float, align: bool) -> None:
    x, draw = images(1, n=1, c=1), torch.tensor([u], dtype=F64)
    angle = (u - 0.5) * 2 * math.radians(15)
    sx, sy = u * (1.2 - 1 / 1.2) + 1 / 1.2, 0.25 * (1.2 - 1 / 1.2) + 1 / 1.2
    turned = A.rotate(x, draw, align_corners=align)
    zoomed = A.scale(x, draw, torch.tensor([0.25]), align_corners=align)
    for i in range(5):
        for j in range(6):
            at = (2 * j / 5 - 1, 2 * i / 4 - 1) if align else ((2 * j + 1) / 6 - 1, (2 * i + 1) / 5 - 1)

            def pixel(across: float, down: float) -> float:
                if align:
                    row, column = (down + 1) * 4 / 2, (across + 1) * 5 / 2
                else:
                    row, column = ((down + 1) * 5 - 1) / 2, ((across + 1) * 6 - 1) / 2
                return sample_at(x[0, 0], row, column)

            across = at[0] * math.cos(angle) - at[1] * math.sin(angle)
            down = at[0] * math.sin(angle) + at[1] * math.cos(angle)
            assert turned[0, 0, i, j].item() == pytest.approx(pixel(across, down), abs=1e-9)
            assert zoomed[0, 0, i, j].item() == pytest.approx(pixel(at[0] * sx, at[1] * sy), abs=1e-9)


def test_affine_functions_agree_with_torch_where_torch_is_exact() -> None:
    x, u = images(2), torch.tensor([0.1, 0.8], dtype=F64)
    angle = (u - 0.5) * 2 * math.radians(15)
    theta = torch.zeros(2, 2, 3, dtype=F64)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos(), -angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos()
    for align in (False, True):
        grid = F.affine_grid(theta, list(x.shape), align_corners=align)
        expected = F.grid_sample(x, grid, align_corners=align)
        torch.testing.assert_close(A.rotate(x, u, align_corners=align), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: A.brightness(x, torch.tensor([0.2, 0.7])),
        lambda x: A.saturation(x, torch.tensor([0.2, 0.7])),
        lambda x: A.contrast(x, torch.tensor([0.2, 0.7])),
        lambda x: A.translate(x, torch.tensor([-1, 2]), torch.tensor([1, 0])),
        lambda x: A.cutout(x, torch.tensor([1, 3]), torch.tensor([0, 4])),
        lambda x: A.flip(x, torch.tensor([0.2, 0.7])),
        lambda x: A.scale(x, torch.tensor([0.2, 0.7]), torch.tensor([0.6, 0.1])),
        lambda x: A.rotate(x, torch.tensor([0.2, 0.7])),
    ],
    ids=["brightness", "saturation", "contrast", "translate", "cutout", "flip", "scale", "rotate"],
)
def test_gradients_reach_the_pixels(function: Callable[[Tensor], Tensor]) -> None:
    x = images(3, h=4, w=4).requires_grad_(True)
    assert torch.autograd.gradcheck(function, (x,))


# whole calls


@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize("seed", range(6))
def test_a_siamese_transform_is_the_same_for_every_batch(seed: int, mode: A.AugMode) -> None:
    big, small = images(4, n=9), images(4, n=9)[3:5]
    for draw in (
        lambda: A.seeded_draw(seed),
        lambda: A.keyed_draw(Draws(seed, ("step", 1))),
        lambda: A.generator_draw(torch.Generator().manual_seed(seed)),
    ):
        a = A.dsa(big, ALL, draw(), siamese=True, mode=mode)
        b = A.dsa(small, ALL, draw(), siamese=True, mode=mode)
        assert torch.equal(a[3:5], b)
        assert mode == "S" or not torch.equal(b, small)  # one function alone may be a flip that does not happen


def test_an_image_keeps_its_transform_wherever_it_sits() -> None:
    x, ids = images(5, n=6), torch.tensor([11, 5, 7, 2, 30, 8])
    draws = Draws(3, ("step", 2))
    whole = A.dsa(x, ALL, A.keyed_draw(draws, ids), mode="M")
    part = A.dsa(x[[4, 1]], ALL, A.keyed_draw(draws, ids[[4, 1]]), mode="M")
    assert torch.equal(whole[[4, 1]], part)
    alone = A.dsa(x[4:5], ALL, A.keyed_draw(draws, ids[4:5]), mode="M")
    assert torch.equal(whole[4:5], alone)
    again = A.dsa(x, ALL, A.keyed_draw(Draws(3, ("step", 2)), ids), mode="M")
    assert torch.equal(whole, again)
    other = A.dsa(x, ALL, A.keyed_draw(Draws(3, ("step", 3)), ids), mode="M")
    assert not torch.equal(whole, other)


def test_images_differ_when_not_siamese() -> None:
    x = images(6, n=1).expand(4, -1, -1, -1)
    out = A.dsa(x, "rotate", A.generator_draw(torch.Generator().manual_seed(0)))
    assert all(not torch.equal(out[0], out[n]) for n in range(1, 4))


def test_mode_m_applies_all_in_turn() -> None:
    x, params = images(7, h=8, w=8), A.DSAParams(ratio_crop_pad=0.25, ratio_rotate=40.0)
    out = A.dsa(x, "crop_color_rotate", A.seeded_draw(5), siamese=True, mode="M", params=params)
    draw = A.seeded_draw(5)
    step = A.translate(x, draw("", (1,), 5) - 2, draw("", (1,), 5) - 2)
    step = A.brightness(step, draw("", (1,)))
    step = A.saturation(step, draw("", (1,)))
    step = A.contrast(step, draw("", (1,)))
    assert torch.equal(out, A.rotate(step, draw("", (1,)), 40.0))


def test_mode_s_applies_one_and_all_of_them_in_time() -> None:
    x = images(8, n=1, h=8, w=8)
    alone = {
        name: A.dsa(x, name, lambda n, shape, high=None: torch.zeros(shape, dtype=torch.long if high else None))
        for name in A.FUNCTIONS
    }
    seen = set()
    for pick in range(6):

        def draw(name: str, shape: tuple[int, ...], high: int | None = None, pick: int = pick) -> Tensor:
            if name == "choice":
                assert high == 6
                return torch.tensor([pick])
            return torch.zeros(shape, dtype=torch.long if high else None)

        out = A.dsa(x, ALL, draw)
        seen |= {name for name, expected in alone.items() if torch.equal(out, expected)}
    assert seen == set(A.FUNCTIONS)


def test_draw_ranges_are_the_published_ones() -> None:
    asked: dict[str, int | None] = {}

    def draw(name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        asked[name] = high
        return torch.zeros(shape, dtype=torch.long if high else None)

    A.dsa(images(0, h=12, w=16), ALL, draw, mode="M")
    # shifts of int(12/8 + .5) = 2 and int(16/8 + .5) = 2; squares of 6 and 8, even, so one more offset
    assert asked == {
        "brightness": None, "saturation": None, "contrast": None, "flip": None, "scale.x": None, "scale.y": None,
        "rotate": None, "crop.rows": 5, "crop.columns": 5, "cutout.rows": 13, "cutout.columns": 17,
    }  # fmt: skip
    A.dsa(images(0, h=10, w=13), "cutout", draw)
    assert (asked["cutout.rows"], asked["cutout.columns"]) == (10, 13)  # squares of 5 and 7, odd


def test_flip_first_takes_flip_out_of_the_choice() -> None:
    x, names = images(9, n=3), []

    def draw(name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        names.append((name, high))
        return torch.zeros(shape, dtype=torch.long if high else None)

    out = A.dsa(x, "cutout_flip_rotate", draw, flip_first=True)
    assert names[:2] == [("flip", None), ("choice", 2)]
    zero = torch.zeros(1, dtype=torch.long)
    assert torch.equal(out, A.cutout(x.flip(3), zero, zero))
    names.clear()
    assert torch.equal(A.dsa(x, "flip", draw, flip_first=True), x.flip(3)) and names == [("flip", None)]


def test_nothing_to_do_is_nothing_done() -> None:
    def never(name: str, shape: tuple[int, ...], high: int | None = None) -> Tensor:
        raise AssertionError("nothing should be drawn")

    x = images(0)
    for strategy in ("", "none", "None"):
        assert torch.equal(A.dsa(x, strategy, never), x)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    A.dsa(images(0), ALL, A.seeded_draw(1), siamese=True, mode="M")
    A.dsa(images(0), ALL, A.keyed_draw(Draws(0), torch.arange(2)), mode="M")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_every_dtype_goes_through(dtype: torch.dtype) -> None:
    x = images(0, h=8, w=8).to(dtype).requires_grad_(True)
    out = A.dsa(x, ALL, A.seeded_draw(3), siamese=True, mode="M")
    out.sum().backward()
    assert out.dtype == dtype and torch.isfinite(out).all() and x.grad is not None and torch.isfinite(x.grad).all()


def test_half_precision_pixels_move_as_float_pixels_do() -> None:
    x, u = images(0, h=16, w=16, dtype=torch.float32).bfloat16(), torch.tensor([0.9])
    assert torch.equal(A.rotate(x, u), A.rotate(x.float(), u).bfloat16())
    assert torch.equal(A.scale(x, u, u), A.scale(x.float(), u, u).bfloat16())


def test_autocast_does_not_move_pixels() -> None:
    x, u = images(0, dtype=torch.float32), torch.tensor([0.9])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = A.rotate(x, u)
    assert torch.equal(inside, A.rotate(x, u))


def test_one_pixel_images() -> None:
    x = torch.ones(2, 1, 1, 1)
    for align in (False, True):
        out = A.dsa(x, "scale_rotate_flip_crop", A.seeded_draw(0), siamese=True, mode="M", align_corners=align)
        assert out.shape == x.shape and torch.isfinite(out).all()


def test_uniform_sources_give_integers_in_range() -> None:
    for u in (0.0, 0.5, 1.0 - 2**-24):
        k = A.uniform_draw(lambda name, shape, u=u: torch.full(shape, u))("x", (3,), 7)
        assert k.dtype == torch.int64 and (k >= 0).all() and (k < 7).all()


def test_mirror_batch_lets_both_halves_reach_a_pixel() -> None:
    x, y = images(0).requires_grad_(True), torch.tensor([[0.1, 0.9], [0.5, 0.5]])
    both, labels = A.mirror_batch(x, y)
    assert torch.equal(both[:2], x) and torch.equal(both[2:], x.flip(3)) and torch.equal(labels, y.repeat(2, 1))
    both.sum().backward()
    assert (x.grad == 2).all()


def test_bad_input_is_answered() -> None:
    x = images(0)
    with pytest.raises(ConfigError, match="did you mean 'cutout'"):
        A.dsa(x, "color_cutoff", A.seeded_draw(0))
    with pytest.raises(ConfigError, match="mode"):
        A.dsa(x, ALL, A.seeded_draw(0), mode="X")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\[N, C, H, W\]"):
        A.dsa(x[0], ALL, A.seeded_draw(0))
    with pytest.raises(ShapeError, match="floats"):
        A.dsa(x.long(), ALL, A.seeded_draw(0))
    with pytest.raises(ShapeError, match="draw"):
        A.brightness(x, torch.rand(3))
    with pytest.raises(ShapeError, match="one id per image"):
        A.dsa(x, "rotate", A.keyed_draw(Draws(0), torch.arange(3)))
