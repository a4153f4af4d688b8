"""Clouds of points: answered with one class each, or with a feature that is learnt without labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.clouds import AskedClouds, PictureClouds
from limbeck.data.items import ArrayData, Items, Part, Splits
from limbeck.data.sources import Source
from limbeck.errors import ConfigError, DataError
from limbeck.functional.points import in_unit_sphere
from limbeck.grammar.answers import Answer
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Data
from limbeck.grammar.needs import Form, Needs
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings
from limbeck.tasks.classification import Labelled

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench, Rows

NAMES = {"task": {"clouds": "Clouds", "cloud-features": "CloudFeatures"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

WIDE = 10.0
"""Coordinates that reach farther than this are probably in other units than changes of a few hundredths mean."""


@settings
class Clouds(Labelled):
    """Clouds of points [P, 3], answered with one class each.

    Args:
        data: where the clouds come from: cloud-arrays, cloud-folder, cloud-import, picture-clouds.
        student_items: size of the student's training set, each class in proportion, drawn by the seed; all if ``null``.
        normalise: move every cloud to the origin and scale it to a radius of 1.
        size: of pictures: how many points clouds have is ``data.points``.

    Attributes:
        answers: the form of a network's answer.
    """

    judging = ("student_items", "eval_batch")
    takes_unlabelled = False
    answers: ClassVar[Form] = "classes"
    names: ClassVar[str] = "cloud-arrays, cloud-folder, cloud-import or picture-clouds"

    data: Source = PictureClouds()
    student_items: Count | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._look()

    def validate(self) -> None:
        """Clouds have no sides."""
        if self.size is not None:
            raise ValueError("size is a side of pictures: how many points clouds have is task.data.points")

    def read(self) -> Splits:
        """The clouds in three splits."""
        splits = super().read()
        moved: dict[int, ArrayData] = {}
        reach = 0.0
        for name in ("train", "valid", "test"):
            items: Items = getattr(splits, name)
            base = items.data if isinstance(items, Part) else items
            if not isinstance(base, ArrayData) or len(base.shape) != 2 or base.shape[1] != 3:
                raise DataError(
                    "task.data",
                    "its items are no clouds of points",
                    given=list(items.shape),
                    expected=f"[P, 3], as {self.names} give them",
                )
            reach = max(reach, float(base.x.abs().max()))
            if self.normalise:
                if id(base) not in moved:
                    moved[id(base)] = ArrayData(torch.cat([in_unit_sphere(x) for x in base.x.split(1024)]), base.y)
                base = moved[id(base)]
                setattr(splits, name, Part(base, items.ids) if isinstance(items, Part) else base)
        if reach > WIDE and not self.normalise:
            splits.notes.append(
                f"coordinates reach {reach:.4g}: changes of a few hundredths (method.views.jitter) mean nothing there; "
                "task.normalise=true scales every cloud to a radius of 1"
            )
        return splits

    def check_splits(self, splits: Splits) -> None:
        """Refuse clouds without labels where they are to be told apart."""
        super().check_splits(splits)
        if self.answers == "classes" and not splits.labelled:
            raise DataError(
                "task.data",
                "the clouds have no labels, and this task is to tell their classes",
                remedy="learn features of them: task=cloud-features",
            )

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Nothing: coordinates are normalised cloud by cloud."""
        return (), ()

    def describe(self) -> dict[str, Any]:
        """And whether clouds are normalised."""
        return {**super().describe(), "normalise": self.normalise}

    def _recall(self, about: Mapping[str, Any]) -> None:
        super()._recall(about)
        self.normalise = bool(about.get("normalise", True))

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Clouds: files of one each, folders of such, arrays [P, 3] or [N, P, 3], or a list of these; brought to the length and
        place of those that the network learnt from."""
        shape = tuple(self.recalled.get("input") or self.shape)
        return AskedClouds(given, shape[0], self.normalise)

    def labelled(self) -> Clouds:
        """The same items, answered with classes."""
        made = copy.copy(self)
        made.answers = "classes"  # type: ignore[misc]  # of this copy alone
        return made

    def default_student(self) -> dict[str, Any]:
        """A PointNet."""
        return {"use": "pointnet"}

    def default_teacher(self) -> dict[str, Any]:
        """A DGCNN."""
        return {"use": "dgcnn"}


@settings
class CloudFeatures(Clouds):
    """Clouds of points, of which an encoder is learnt without labels; labels, where there are any, only judge it.

    A network answers with a feature [N, D] of its own width. It is judged by a linear classifier on frozen features; clouds
    without labels are judged on others that have some: ``evaluator.on={use: clouds, data: ...}``.
    """

    answers: ClassVar[Form] = "vector"

    @property
    def needs(self) -> Needs:
        """A feature; for the baseline that learns from labels, their classes."""
        return Needs(self.shape, 0, "vector") if self.answers == "vector" else super().needs

    def check_splits(self, splits: Splits) -> None:
        """Note whether there are labels."""
        super().check_splits(splits)
        if not splits.labelled:
            self.kind_of_target: Any = "none"

    def answer_shape(self, z: Tensor, items: int) -> str:
        """One feature an item."""
        if self.answers != "vector":
            return super().answer_shape(z, items)
        return "" if z.ndim == 2 and len(z) == items else f"[{items}, D], one feature a cloud of {list(self.shape)}"

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """The feature of each cloud."""
        if self.answers != "vector":
            return super().reply(built, batch, asked, items, **options)
        features = self.signal(built, batch).logits.float().cpu()
        return [Answer({"feature": row.tolist()}, {"feature": row}) for row in features]

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Of a network with classes, its metrics: features have none of their own.

        Raises:
            ConfigError: how features are evaluated.
        """
        if self.answers == "vector":
            raise ConfigError(
                "evaluator",
                "features say nothing of classes by themselves",
                expected="a classifier on them",
                remedy="set evaluator=probe, or leave it out",
            )
        return super().evaluate(built, data, teacher, device)

    def default_evaluator(self) -> dict[str, Any]:
        """Linear support vectors on frozen features of length one, how strictly chosen on validation clouds."""
        return {"use": "probe", "how": "svm", "unit": True, "strength": [0.1, 1.0, 10.0, 100.0]}

    def baselines(self, bench: Bench) -> Rows:
        """``alone``: the encoder with a linear layer, trained on the labels with the student's budget; needs some."""
        if self.kind_of_target != "label":
            return {}
        task = self.labelled()

        def alone() -> Artifact:
            made: Any = copy.copy(bench)
            made.task = task
            return NetworkArtifact(task, made.alone())

        return {"alone": alone}

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """Nothing: features have no calibration."""
        return {}


__all__ = ["CloudFeatures", "Clouds"]
