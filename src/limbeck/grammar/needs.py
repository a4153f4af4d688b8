"""What a task must be given by a network, in the form that models build for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Form = Literal["classes", "map", "pyramid", "vector", "boxes", "tokens", "denoiser", "graphs", "scene"]
"""What a network answers an item with.

- ``classes``: a row of values, ``[N, outputs]``: logits of classes, or numbers.
- ``map``: such a row at every place of a grid, as libraries return it: ``[N, outputs, h, w]``. The task's ``feed`` brings
  the classes last.
- ``pyramid``: a list of feature maps ``[N, D_i, h_i, w_i]``, the finest first.
- ``vector``: a feature ``[N, D]``; D is ``outputs``, or the network's own width where that is 0.
- ``boxes``: detections, as torchvision's detectors return them.
- ``tokens``: a row of values over a vocabulary at every token.
- ``denoiser``: noise, or what it hides, in the shape of the input.
- ``scene``: pictures ``[N, C, h, w]`` of what it is itself, from the cameras that go in. It has no inputs beside them.
- ``graphs``: a row of values a graph, ``[N, outputs]``. Graphs are ragged: nodes ``[R, features]`` beside their edges.
"""

FORMS: tuple[Form, ...] = get_args(Form)

IN_PIXELS = ("map", "boxes")
"""Forms whose targets lie in the pixels of the input: one that is resized no longer fits them."""


@dataclass(frozen=True)
class Needs:
    """What a network is built for.

    Attributes:
        inputs: shape of one item: (channels, height, width) of pictures, (features,) of rows.
        outputs: how many values it answers with, at each place where there are several.
        form: see `Form`.
        names: of the outputs (class names), in the task's order; empty where they have none.
        target: what the values mean: ``label`` (logits of one class), ``labels`` (of several at once), ``number``.
        key: the tensor of a batch that goes in, and that a network's input contract acts on.
        edges: of graphs: width of the edges' features; 0 where they have none.
        mean, std: of numbers: what the data's own units are brought to 0 and 1 by.

    Example:
        >>> Needs((3, 32, 32), 10, "map").pixels
        True
    """

    inputs: tuple[int, ...] = ()
    outputs: int = 0
    form: Form = "classes"
    names: tuple[str, ...] = ()
    target: str = "label"
    key: str = "x"
    edges: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def pixels(self) -> bool:
        """Whether targets lie in the pixels of the input."""
        return self.form in IN_PIXELS

    @property
    def pictures(self) -> bool:
        """Whether items are pictures."""
        return len(self.inputs) == 3

    def with_(self, **changes: Any) -> Needs:
        """A changed copy."""
        return replace(self, **changes)
