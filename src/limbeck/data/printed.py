"""A foreign pool that is drawn: printed digits and letters in many faces and styles, and patches of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck.data.columns import Target
from limbeck.data.items import ArrayData, Splits
from limbeck.data.pictures import fit
from limbeck.data.sources import Source
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, settings

NAMES = {"source": {"printed": "Printed"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

DIGITS = "0123456789"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # O and I are digits to most eyes
FACES = (
    "DejaVuSans",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSans-Bold",
    "STIXGeneralItalic",
    "cmtt10",
)
SIDE = 32


@settings
class Printed(Source):
    """Printed digits among letters and patches of photographs: grey images of 32 x 32, a stand-in for what a search finds.

    Nothing of it is a handwritten digit: typefaces that come with matplotlib, turned, stretched, blurred, with noise, some of
    them dark on bright, and patches of the two photographs of scikit-learn. Classes are the digits, the letters and
    ``photograph``. All of it is drawn by the seed; no download.

    Args:
        items: how many images.
        relevant: the share of digits; of the rest, three in five are letters.
        seed: of what is drawn.
    """

    items: Count = 3000
    relevant: Fraction = 0.3
    seed: int = 0

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The images, without a test split."""
        draws, n = Draws(self.seed, ("printed",)), self.items
        glyphs = torch.from_numpy(_glyphs())  # [faces, characters, 32, 32]
        digits = round(self.relevant * n)
        letters = round(0.6 * (n - digits))
        kinds = torch.tensor([0] * digits + [1] * letters + [2] * (n - digits - letters))
        kinds = kinds[draws.permutation("order", n)]
        y = torch.where(
            kinds == 0, draws.randint("digit", n, len(DIGITS)), len(DIGITS) + draws.randint("letter", n, len(LETTERS))
        )
        y = torch.where(kinds == 2, torch.full_like(y, len(DIGITS + LETTERS)), y)
        face = draws.randint("face", n, len(FACES))
        patches = _patches(draws, n)
        x = torch.where((kinds == 2)[:, None, None], patches, glyphs[face, y.clamp_max(len(DIGITS + LETTERS) - 1)])
        x = _styled(x[:, None], draws, kinds == 2)
        names = [*DIGITS, *LETTERS, "photograph"]
        return Splits(ArrayData(fit(x, size), y), None, None, names, "label")


def _glyphs() -> np.ndarray:
    """Every character in every face, bright on dark, filling the height: float32 [faces, characters, 32, 32]."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    made = np.zeros((len(FACES), len(DIGITS + LETTERS), SIDE, SIDE), np.float32)
    for i, face in enumerate(FACES):
        font = ImageFont.truetype(str(folder / f"{face}.ttf"), 2 * SIDE)
        for j, char in enumerate(DIGITS + LETTERS):
            image = Image.new("L", (4 * SIDE, 4 * SIDE), 0)
            ImageDraw.Draw(image).text((2 * SIDE, 2 * SIDE), char, fill=255, font=font, anchor="mm", stroke_width=2)
            cut = image.crop(image.getbbox())
            wide = max(6, min(SIDE - 6, round(cut.width * (SIDE - 4) / cut.height)))
            cut = cut.resize((wide, SIDE - 4), Image.Resampling.BILINEAR)
            made[i, j, 2 : SIDE - 2, (SIDE - wide) // 2 : (SIDE - wide) // 2 + wide] = np.asarray(cut) / 255
    return made


def _patches(draws: Draws, n: int) -> Tensor:
    """Patches of two photographs at half their size, grey: float32 [n, 32, 32]."""
    from sklearn.datasets import load_sample_images

    grey = np.stack([np.asarray(i, np.float32).mean(2) for i in load_sample_images().images]) / 255
    photos = torch.nn.functional.avg_pool2d(torch.from_numpy(grey)[None], 2)[0]  # [2, 213, 320]
    high, wide = photos.shape[1] - SIDE, photos.shape[2] - SIDE
    row = draws.randint("row", n, high)[:, None, None] + torch.arange(SIDE)[:, None]
    column = draws.randint("column", n, wide)[:, None, None] + torch.arange(SIDE)
    return photos[draws.randint("photo", n, 2)[:, None, None], row, column]


def _styled(x: Tensor, draws: Draws, photo: Tensor) -> Tensor:
    """Images [n, 1, 32, 32] turned, stretched, moved, some blurred, with noise, fainter, or (not photographs) inverted."""
    n = len(x)
    turn = draws.randn("turn", n) * 0.15
    shear = draws.randn("shear", n) * 0.15
    wide, high = (draws.rand(name, n, low=0.85, high=1.25) for name in ("wide", "high"))
    move = draws.rand("move", n, (2,), -0.12, 0.12)
    cos, sin = turn.cos(), turn.sin()
    theta = torch.stack([wide * cos, -sin + shear, move[:, 0], sin, high * cos, move[:, 1]], 1).reshape(n, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    style = draws.randint("style", n, 5)[:, None, None, None]  # 0 and 1: as they are
    soft = torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    noisy = x + 0.15 * draws.randn("noise", n, tuple(x.shape[1:]))
    faint = 0.5 * x + 0.1
    x = torch.where(style == 2, soft, torch.where(style == 3, noisy, torch.where(style == 4, faint, x)))
    dark = (draws.rand("dark", n) < 0.15) & ~photo
    x = torch.where(dark[:, None, None, None], 1 - x, x)
    return x.clamp(0, 1)


__all__ = ["Printed"]
