"""Where items come from: embedded data, folders, arrays, tables, libraries' data sets, the user's own function."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from limbeck.core.component import Component
from limbeck.tasks.data import ArrayData, Kind, Part, Splits, choose

Target = Literal["auto", "label", "labels", "number"]


class Source(Component):
    """A place that items come from. ``read`` gives splits with class names; what a source lacks the task divides off."""

    kind: ClassVar[str] = "source"

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The data.

        Args:
            target: what the items are answered with, ``auto`` to see it in the data.
            size: side length pictures are brought to (short side resized, centre cropped); ``None`` keeps theirs.

        Raises:
            DataError: nothing there, or something that cannot be read, named.
        """
        raise TypeError(f"{type(self).__name__} must define read")


class Digits(Source):
    """Handwritten digits that come with scikit-learn: 1,797 grey pictures of 8x8 pixels (Alpaydin and Kaynak, 1998).

    700 are the test split, drawn once, in equal shares of the classes. No download.
    """

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        """The digits; ``target="number"`` answers with the digit's value."""
        from sklearn.datasets import load_digits

        found = load_digits()
        x = torch.from_numpy(found.images).to(torch.float32).div_(16.0).unsqueeze(1)  # [N, 1, 8, 8], 17 grey levels
        if size is not None and size != 8:
            x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False).clamp_(0, 1)
        digits = torch.from_numpy(found.target).to(torch.int64)
        test = choose(digits, 700, "digits", "test")
        rest = torch.ones(len(digits), dtype=torch.bool)
        rest[test] = False
        names = [str(d) for d in range(10)]
        kind: Kind = "label" if target == "auto" else target
        y = digits
        if kind == "labels":
            y = torch.nn.functional.one_hot(digits, 10).to(torch.float32)
        elif kind == "number":
            y, names = digits.to(torch.float32).unsqueeze(1), ["digit"]
        data = ArrayData(x, y)
        return Splits(Part(data, rest.nonzero()[:, 0]), None, Part(data, test), names, kind)
