"""A user's own files, a run trained on them, and what a script beside an export prints for them."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from limbeck.recipe.recipe import check, load_tree
from limbeck.run import run

HUES = {"amber": (200, 150, 40), "moss": (90, 140, 60), "slate": (90, 110, 150), "wine": (150, 50, 90)}


def jpegs(root: Path, train: int = 24, test: int = 20) -> Path:
    """JPEG files 48 x 32: a noisy hue in the middle, at both ends that of another class, which a squashed image shows."""
    rng = np.random.default_rng(0)
    names = list(HUES)
    for split, count in (("train", train), ("test", test)):
        for k, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                x = np.empty((32, 48, 3))
                x[:] = HUES[names[(k + 1 + i % 3) % 4]]
                x[:, 8:40] = HUES[name]
                x += rng.normal(0, 55, (32, 48, 1)) + rng.normal(0, 55, 3)
                image = Image.fromarray(x.clip(0, 255).astype(np.uint8))
                image.save(root / split / name / f"{i:02d}.jpg", quality=92)
    return root


def trained(folder: Path, *settings: str, recipe: str = "kd", **more: Any) -> dict[str, Any]:
    """A short run; its result."""
    tree = check(load_tree(recipe, ["engine.device=cpu", "loggers=[]", "baselines=[]", *settings], 0, tiny=True))
    return run(tree, folder, quiet=True)


def used(folder: Path, *words: Path | str) -> list[str]:
    """What ``use.py`` in a folder prints, a line each."""
    out = io.StringIO()
    before = os.getcwd()
    with mock.patch.object(sys, "argv", ["use.py", *map(str, words)]), contextlib.redirect_stdout(out):
        try:
            runpy.run_path(str(folder / "use.py"), run_name="__main__")
        finally:
            os.chdir(before)
    return out.getvalue().splitlines()


def test_files(data: Path) -> list[Path]:
    """The files of the test split."""
    return sorted((data / "test").rglob("*.jpg"))


test_files.__test__ = False  # type: ignore[attr-defined]


def share_right(lines: list[str], files: list[Path]) -> float:
    """The share of files whose folder's name stands first, or first in quotes, in what was printed of them."""
    assert len(lines) == len(files)
    told = [line.removeprefix(str(f)).replace("'", " ").split() for line, f in zip(lines, files, strict=True)]
    found = [next(word for word in words if word in HUES) for words in told]
    return sum(a == f.parent.name for a, f in zip(found, files, strict=True)) / len(files)
