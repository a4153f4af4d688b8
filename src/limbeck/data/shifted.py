"""Images on a black margin, of which the test images are shifted: does a student know what moves are?"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.columns import Target
from limbeck.data.items import Items, Splits
from limbeck.data.sources import Digits, Source
from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, settings
from limbeck.storage import store

NAMES = {"source": {"shifted": "Shifted"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Padded:
    """Images of other items on a margin of ``pixels``, moved by up to as many where ``moved``."""

    def __init__(self, items: Items, pixels: int, moved: bool) -> None:
        channels, h, w = items.shape
        self.items, self.pixels, self.moved = items, pixels, moved
        self.y = items.y
        self.shape: tuple[int, ...] = (channels, h + 2 * pixels, w + 2 * pixels)

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, items: Tensor) -> Batch:
        """The images; an item is moved by the same offset each time."""
        batch = self.items.fetch(items)
        p = self.pixels
        x = torch.nn.functional.pad(batch["x"], (p,) * 4)
        if self.moved:
            by = Draws(0, ("shifted",)).randint("offset", items, 2 * p + 1, (2,)) - p
            n, _, h, w = x.shape
            rows = (torch.arange(h) + by[:, :1]) % h  # what leaves on one side is margin on the other
            columns = (torch.arange(w) + by[:, 1:]) % w
            each = torch.arange(n)[:, None, None]
            x = x.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return {**batch, "x": x}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return store.hash_tree({"of": self.items.fingerprint, "pixels": self.pixels, "moved": self.moved})


@settings
class Shifted(Source):
    """Another source's images on a black margin; test images are moved by up to the margin, all others are centred.

    Args:
        source: where the images come from; it must have a test split of its own.
        pixels: the margin, and the largest shift to each side.
        moved: whether the test images are shifted; off, they are centred as the others.
    """

    source: Source = Digits()
    pixels: Count = 2
    moved: bool = True

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The source's splits, padded."""
        found = self.source.read(target, size)
        if found.test is None or len(found.train.shape) != 3:
            raise ConfigError(
                "task.data.source",
                given="no test split" if found.test is None else f"items {list(found.train.shape)}",
                expected="a source of images with a test split",
            )
        p = self.pixels
        found.train = Padded(found.train, p, False)
        found.valid = None if found.valid is None else Padded(found.valid, p, False)
        found.test = Padded(found.test, p, self.moved)
        found.notes = [*found.notes, f"images have a margin of {p} pixels" + (", test images are shifted" * self.moved)]
        return found


__all__ = ["Padded", "Shifted"]
