"""A small data set in the place of a large one, evaluated by networks that are trained on it from nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.items import Splits
from limbeck.data.names import some
from limbeck.errors import DataError
from limbeck.functional.augment import strategy_names
from limbeck.functional.zca import fit_zca
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, settings
from limbeck.tasks.classification import Labelled
from limbeck.tasks.synthetic_set import SetArtifact, Space

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"condensation": "Condensation"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

_USES = {"valid": "for choosing", "test": "for evaluation"}

Choice = Literal["random", "kmeans", "herding"]


@settings
class Condensation(Labelled):
    """A data set of a few items per class that teaches like the whole.

    The recipe's ``student`` is the network that the synthetic data are made for; ``train`` and ``teach`` are not used
    to judge: the recipe's ``evaluator`` is, the same for every method and for the baselines (as many real items).

    Args:
        per_class: synthetic items per class.
        strategy: differentiable augmentation during evaluation; leave ``flip`` out for digits, empty for none.
        align_corners: of its rotations and scalings (False in DC, DSA, DM; True in MTT and its descendants).
        zca: whiten the pixels instead of normalising them (fitted on the training items).
    """

    judging = ("eval_batch", "per_class")

    per_class: Count = 1
    strategy: str = "color_crop_cutout_scale_rotate"
    align_corners: bool = True
    zca: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._look()
        self._space: Space | None = None

    def validate(self) -> None:
        """Refuse augmentations that there are not."""
        strategy_names(self.strategy)

    # ---------------------------------------------------------------------------------------------------------- data

    @property
    def formats(self) -> tuple[str, ...]:
        """What a synthetic set can be exported as."""
        return SetArtifact.formats

    def check_splits(self, splits: Splits) -> None:
        """Every class must have as many items as are asked for, and they must be images."""
        super().check_splits(splits)
        shape = splits.train.shape
        if len(shape) != 3:
            raise DataError(
                "task.data", f"the items have shape {list(shape)}", expected="images (channels, height, width)"
            )
        least = min(self.class_sizes["train"])
        if least < self.per_class:
            aside = {split: self.class_sizes[split] for split in ("valid", "test")}
            assert self.labels is not None
            few = [
                f"{label} has {n} to learn from, " + ", ".join(f"{s[i]} {_USES[split]}" for split, s in aside.items())
                for i, (label, n) in enumerate(zip(self.labels, self.class_sizes["train"], strict=True))
                if n < self.per_class
            ]
            remedy = "more images, a test folder or a smaller task.test_fraction leave more of them"
            raise DataError(
                "task.per_class",
                f"there are fewer items: {some(few, 5)}",
                given=self.per_class,
                expected=f"at most {least}",
                remedy=f"set task.per_class={least}, or add items; {remedy}" if least else remedy,
            )

    @property
    def space(self) -> Space:
        """The pixel space of the synthetic items: normalised, or whitened."""
        if self._space is None:
            if self.zca:
                x = self._all(self.teacher_train)
                self._space = Space(whitening=fit_zca(x))
            else:
                mean, std = self.statistics()
                self._space = Space(mean, std)
        return self._space

    def _all(self, data: Any) -> Tensor:
        return torch.cat([data.fetch(ids)["x"] for ids in torch.arange(len(data)).split(1024)])

    def choose_real(self, how: Choice, seed: int) -> tuple[Tensor, Tensor]:
        """``per_class`` real items of each class [M, C, H, W] in the synthetic space, rows grouped by class, and labels [M].

        ``random``; ``kmeans``: the items nearest to the centres of that many clusters; ``herding``: greedily, so that
        the mean of what is chosen follows the mean of the class (Welling 2009). Distances are between pixels.
        """
        y = self.teacher_train.y
        rng = Draws(seed, ("condensation", how)).numpy("choice")
        chosen: list[int] = []
        sizes = torch.bincount(y, minlength=self.outputs).tolist()
        for ids in (part.numpy() for part in y.argsort(stable=True).split(sizes)):
            if how == "random":
                chosen += rng.choice(ids, self.per_class, replace=False).tolist()
                continue
            flat = self.space.enter(self.teacher_train.fetch(torch.as_tensor(ids))["x"]).flatten(1).double().numpy()
            chosen += ids[_central(flat, self.per_class, how, int(rng.integers(2**31)))].tolist()
        picked = torch.tensor(chosen)
        return self.space.enter(self.teacher_train.fetch(picked)["x"]), y[picked].clone()

    # ------------------------------------------------------------------------------------------------------- scoring

    choices = ("random", "kmeans", "herding")
    called = MappingProxyType(
        {"kmeans": "as many real items, chosen by k-means", "herding": "as many real items, chosen by herding"}
    )
    """How real items can be chosen as a baseline."""

    def real(self, how: Choice, seed: int, made: Artifact | None = None) -> SetArtifact:
        """As many real items as there are synthetic ones in every set that is made here, chosen so (`choose_real`)."""
        images, labels = self.choose_real(how, seed)
        return SetArtifact(self, images, labels, labels, None)

    def whole(self) -> SetArtifact:
        """All real items: what one network learns from them is the row of the teacher."""
        data = self.teacher_train
        return SetArtifact(self, self.space.enter(self._all(data)), data.y, data.y, None, networks=1, scope="whole")

    def pool(self) -> dict[str, Callable[[], nn.Module]]:
        """The architectures a synthetic set is also evaluated with."""
        return {name: partial(make, self.shape, self.outputs) for name, make in _pool().items()}

    def default_evaluator(self) -> dict[str, Any]:
        """Fresh networks trained on the set."""
        return {"use": "fresh"}

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """Nothing: a set has no calibration of its own."""
        return {}

    def default_student(self) -> dict[str, Any]:
        """The ConvNet of data set distillation, as deep as the image allows."""
        side = min(self.shape[-2:])
        return {"use": "convnet", "width": 32 if side <= 16 else 128, "depth": 2 if side <= 16 else 3}


class SyntheticSet(nn.Module):
    """The student: images that are learnt, with labels that are given.

    Args:
        images: [M, C, H, W] in the synthetic space, rows grouped by class.
        ids: class ids [M].
        classes: number of classes.
        soft: keep soft labels [M, classes] beside the ids, to be filled in.
    """

    def __init__(self, images: Tensor, ids: Tensor, classes: int, soft: bool = False) -> None:
        super().__init__()
        self.images = nn.Parameter(images.clone())
        self.register_buffer("ids", ids.clone())
        self.soft = soft
        if soft:
            self.register_buffer("soft_labels", nn.functional.one_hot(ids, classes).float())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Images, and class ids [M] or soft labels [M, C]."""
        return self.images, self.soft_labels if self.soft else self.ids  # type: ignore[return-value]


class LearnedLabels(nn.Module):
    """Soft labels that are learnt, as logits.

    Args:
        ids: class ids [M] they start from.
        classes: number of classes.
        sharpness: the class's own logit at the start; the others are 0.
    """

    def __init__(self, ids: Tensor, classes: int, sharpness: float = 4.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(sharpness * nn.functional.one_hot(ids, classes).float())

    def forward(self) -> Tensor:
        """Soft labels [M, C]."""
        return self.logits.softmax(-1)


class StepSize(nn.Module):
    """The learned step size of the networks trained on the set.

    Args:
        value: where it starts.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self) -> Tensor:
        """The step size."""
        return self.value


def _central(flat: np.ndarray[Any, Any], count: int, how: Choice, seed: int) -> list[int]:
    if how == "kmeans":
        from sklearn.cluster import KMeans

        fitted = KMeans(count, n_init=4, random_state=seed).fit(flat)
        chosen: list[int] = []
        for centre in fitted.cluster_centers_:
            order = np.argsort(((flat - centre) ** 2).sum(1))
            chosen.append(int(next(i for i in order if i not in chosen)))
        return chosen
    taken: list[int] = []
    mean, total = flat.mean(0), np.zeros(flat.shape[1])
    for k in range(count):
        gap = ((mean * (k + 1) - total - flat) ** 2).sum(1)
        gap[taken] = np.inf
        taken.append(int(gap.argmin()))
        total += flat[taken[-1]]
    return taken


def _pool() -> dict[str, Any]:
    """The architectures a synthetic set is also evaluated with: name -> (shape, classes) -> network."""
    from limbeck.networks import convnet as nets

    def depth(shape: tuple[int, ...]) -> int:
        return 2 if min(shape[-2:]) <= 16 else 3

    return {
        "mlp": lambda s, k: nets.MLP(s[0], k, im_size=s[-2:]),
        "convnet": lambda s, k: nets.ConvNet(s[0], k, 64, depth(s), im_size=s[-2:]),
        "lenet": lambda s, k: nets.LeNet(s[0], k, im_size=s[-2:]),
        "alexnet": lambda s, k: nets.AlexNet(s[0], k, im_size=s[-2:]),
        "vgg11": lambda s, k: nets.VGG11(s[0], k, im_size=s[-2:]),
        "resnet18": lambda s, k: nets.ResNet18(s[0], k, im_size=s[-2:]),
    }
