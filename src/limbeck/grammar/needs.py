"""What a task must be given by a network, in the form that models build for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from limbeck.functional.diffusion import Schedule

Form = Literal[
    "classes",
    "map",
    "pyramid",
    "vector",
    "boxes",
    "tokens",
    "hidden-tokens",
    "denoiser",
    "graphs",
    "scene",
    "keypoints",
    "poses",
]
"""What a network answers an item with.

- ``classes``: a row of values, ``[N, outputs]``: logits of classes, or numbers.
- ``map``: such a row at every place of a grid, as libraries return it: ``[N, outputs, h, w]``. The task's ``feed`` brings
  the classes last.
- ``pyramid``: a list of feature maps ``[N, D_i, h_i, w_i]``, the finest first.
- ``vector``: a feature ``[N, D]``; D is ``outputs``, or the network's own width where that is 0.
- ``boxes``: detections, as torchvision's detectors return them.
- ``tokens``: a row of values over a vocabulary at every token of a text, told from the tokens before it.
- ``hidden-tokens``: the same at tokens that are hidden, told from the tokens on both sides.
- ``denoiser``: noise, or what it hides, in the shape of the input.
- ``scene``: images ``[N, C, h, w]`` of what it is itself, from the cameras that go in. It has no inputs beside them.
- ``keypoints``: x and y of points as shares of the image about its middle, ``[N, outputs]`` or ``[N, outputs / 2, 2]``.
- ``poses``: instances of parts with their joints, in the plane and in space, see `limbeck.networks.part_detector`.
- ``graphs``: a row of values a graph, ``[N, outputs]``. Graphs are ragged: nodes ``[R, features]`` beside their edges.
"""

FORMS: tuple[Form, ...] = get_args(Form)

IN_PIXELS = ("map", "boxes", "poses")
"""Forms whose targets lie in the pixels of the input: one that is resized no longer fits them."""


Items = Literal["pictures", "rows", "tokens", "table", "clouds"]
"""What goes into a network: images, rows of numbers, token ids, rows of typed columns (beside their numbers), or clouds of
points."""


class Tokens(Protocol):
    """Whose token ids a text is, and how many of them a row has: what a network of texts and its task must agree on.

    Attributes:
        tokenizer_name: the tokenizer that the recipe names; ``None``: that of the first pretrained network, or one that is
            trained on the text.
        length: tokens in a row, at most.
    """

    tokenizer_name: str | None
    length: int

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""

    @property
    def adopted(self) -> bool:
        """Whether the tokenizer is that of a pretrained network: neither named by the recipe nor trained on the text."""

    @property
    def vocabulary(self) -> int:
        """How many token ids there are (the largest and one)."""

    def adopt(self, tokenizer: Any, name: str) -> None:
        """Take a pretrained network's tokenizer, or raise TeacherMismatch where text gets other ids from it."""

    def limit(self, positions: int, name: str) -> None:
        """A network has so many positions: rows become no longer, or ConfigError where a longer one was asked for."""


class Columns(Protocol):
    """A table's columns, for estimators that read them as they are, and its groups.

    Attributes:
        columns: in the order of the table; each has a ``name``, and ``number``: whether it holds numbers.
        groups: names of the values of a protected attribute.
    """

    columns: Sequence[Any]
    groups: Sequence[str]

    def raw(self, batch: dict[str, Any]) -> Any:
        """The rows of a batch as a DataFrame of all columns but the target."""


class Parts(Protocol):
    """The parts of poses, and the poses that a detector of them begins with.

    Attributes:
        joints: name of each part -> how many joints it has.
    """

    joints: Mapping[str, int]

    def anchors(self, part: str, count: int) -> Tensor:
        """So many poses [count, J, 5] that stand for those of the training data: x, y in the unit box, then X, Y, Z."""


@dataclass(frozen=True)
class Needs:
    """What a network is built for.

    Attributes:
        inputs: shape of one item: (channels, height, width) of images, (features,) of rows, (points, 3) of
            clouds.
        outputs: how many values it answers with, at each place where there are several.
        form: see `Form`.
        names: of the outputs (class names), in the task's order; empty where they have none.
        target: what the values mean: ``label`` (logits of one class), ``labels`` (of several at once), ``number``,
            ``token``. What a denoiser is told: ``label`` (a class), or ``prompt`` (a text; ``names`` are the texts).
        key: the tensor of a batch that goes in, and that a network's input contract acts on.
        edges: of graphs: width of the edges' features; 0 where they have none.
        mean, std: of numbers: what the data's own units are brought to 0 and 1 by.
        tokens: of texts: their tokenizer and length.
        table: of tables: their columns.
        schedule: of denoisers: the noise schedule.
        parts: of poses: their parts.
        null: of denoisers that are told embeddings: that of no text at all, [L, D].

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
    tokens: Tokens | None = field(default=None, compare=False)
    table: Columns | None = field(default=None, compare=False)
    schedule: Schedule | None = field(default=None, compare=False)
    null: Tensor | None = field(default=None, compare=False)
    parts: Parts | None = field(default=None, compare=False)

    @property
    def items(self) -> Items:
        """What goes in."""
        if self.tokens is not None:
            return "tokens"
        if self.table is not None:
            return "table"
        if len(self.inputs) == 2:
            return "clouds"
        return "pictures" if self.pictures else "rows"

    @property
    def pixels(self) -> bool:
        """Whether targets lie in the pixels of the input."""
        return self.form in IN_PIXELS

    @property
    def pictures(self) -> bool:
        """Whether items are images."""
        return len(self.inputs) == 3

    def with_(self, **changes: Any) -> Needs:
        """A changed copy."""
        return replace(self, **changes)
