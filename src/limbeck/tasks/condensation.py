"""A small data set in the place of a large one, judged by networks that are trained on it from nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.data.items import digest
from limbeck.data.names import some
from limbeck.data.sources import Digits, Source
from limbeck.engine.inner import fit
from limbeck.errors import ConfigError, DataError
from limbeck.functional.augment import strategy_names
from limbeck.functional.zca import fit_zca
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.objectives.queries import Augment
from limbeck.tasks.classification import Classification

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

_USES = {"valid": "for choosing", "test": "for judging"}

Choice = Literal["random", "kmeans", "herding"]


class Condensation(Classification):
    """A data set of a few items per class that teaches like the whole.

    The recipe's ``student`` is the network that the synthetic data are made for; ``train`` and ``teach`` are not used
    to judge: the recipe's ``evaluator`` is, the same for every method and for the baselines (as many real items).

    Args:
        data: where the real items come from.
        per_class: synthetic items per class.
        strategy: differentiable augmentation while judging; leave ``flip`` out for digits, empty for none.
        align_corners: of its rotations and scalings (False in DC, DSA, DM; True in MTT and its descendants).
        zca: whiten the pixels instead of normalising them (fitted on the training items).
        valid_fraction, test_fraction: as in classification.
        size: side length that pictures are brought to.
        eval_batch: items at a time when judging.
    """

    def __init__(
        self,
        data: Source = Digits(),  # noqa: B008 (a description of where data lies; nothing is read)
        per_class: int = 1,
        strategy: str = "color_crop_cutout_scale_rotate",
        align_corners: bool = True,
        zca: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        size: int | None = None,
        eval_batch: int = 256,
    ) -> None:
        super().__init__(data, "label", None, valid_fraction, test_fraction, size, eval_batch=eval_batch)
        self.empty_classes = None
        if per_class < 1:
            raise ValueError("per_class must be 1 or more")
        strategy_names(strategy)
        self.per_class, self.strategy, self.align_corners, self.zca = per_class, strategy, align_corners, zca
        self._space: Space | None = None

    # ---------------------------------------------------------------------------------------------------------- data

    @property
    def formats(self) -> tuple[str, ...]:
        """What a synthetic set can be exported as."""
        return SetArtifact.formats

    def load(self, seed: int | None = None) -> None:
        """Read the data; every class must have as many items as are asked for."""
        super().load(seed)
        if len(self.shape) != 3:
            raise DataError(
                "task.data", f"the items have shape {list(self.shape)}", expected="pictures (channels, height, width)"
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
            remedy = "more pictures, a test folder or a smaller task.test_fraction leave more of them"
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
    """How real items can be chosen as a baseline."""

    def real(self, how: Choice, seed: int) -> SetArtifact:
        """As many real items as the synthetic ones, chosen so (`choose_real`)."""
        images, labels = self.choose_real(how, seed)
        return SetArtifact(self, images, labels, labels, None)

    def whole(self) -> SetArtifact:
        """All real items: what one network learns from them is the row of the teacher."""
        data = self.teacher_train
        return SetArtifact(self, self.space.enter(self._all(data)), data.y, data.y, None, networks=1, scope="whole")

    def pool(self) -> dict[str, Callable[[], nn.Module]]:
        """The architectures a synthetic set is also judged with."""
        return {name: partial(make, self.shape, self.outputs) for name, make in _pool().items()}

    def default_evaluator(self) -> dict[str, Any]:
        """Fresh networks trained on the set."""
        return {"use": "fresh"}

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """Nothing: a set has no calibration of its own."""
        return {}

    def default_student(self) -> dict[str, Any]:
        """The ConvNet of data set distillation, as deep as the picture allows."""
        side = min(self.shape[-2:])
        return {"use": "convnet", "width": 32 if side <= 16 else 128, "depth": 2 if side <= 16 else 3}


class Space:
    """How pixels in [0, 1] become what networks see, and back.

    Args:
        mean, std: per channel.
        whitening: a fitted ZCA transform, instead of them.
    """

    def __init__(self, mean: Sequence[float] = (), std: Sequence[float] = (), whitening: Any = None) -> None:
        self.mean, self.std, self.whitening = tuple(mean), tuple(std), whitening

    def contract(self) -> Any:
        """The same as an input contract for real items."""
        from limbeck.grammar.role import Contract

        if self.whitening is not None:
            return Contract(transform=self.whitening.apply)
        return Contract(mean=self.mean, std=self.std)

    def enter(self, x: Tensor) -> Tensor:
        """Pixels [N, C, H, W] in [0, 1] into the space."""
        return self.contract().inputs(x)

    def leave(self, x: Tensor) -> Tensor:
        """Back to pixels, clipped to [0, 1]."""
        if self.whitening is not None:
            return self.whitening.invert(x).clamp(0, 1)
        shape = (1, -1, 1, 1)
        return (x * torch.tensor(self.std).view(shape) + torch.tensor(self.mean).view(shape)).clamp(0, 1)


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


class SetData:
    """A set in memory, as Data.

    Args:
        images: [M, ...] float.
        labels: [M] or [M, C].
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.y = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, items: Tensor) -> Batch:
        """The items."""
        return {"x": self.images[items], "y": self.y[items]}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(self.images, self.y)


class SetArtifact(Artifact):
    """A synthetic data set with its labels and step size.

    Args:
        task: the task it was made for.
        images: [M, C, H, W] in the synthetic space.
        labels: class ids [M], or soft labels [M, C].
        ids: class ids [M].
        lr: the learned step size, or ``None``.
        networks, scope: see `limbeck.evaluators.fresh.Trains`.
    """

    kind: ClassVar[str] = "dataset"
    formats = ("safetensors", "images", "parquet")

    def __init__(
        self,
        task: Condensation,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        lr: float | None,
        networks: int | None = None,
        scope: str = "",
    ) -> None:
        self.task, self.lr, self.networks, self.scope = task, lr, networks, scope
        self.images, self.labels, self.ids = images.detach().cpu(), labels.detach().cpu(), ids.cpu()

    def save(self, folder: Path) -> None:
        """``student.safetensors`` (images, labels, ids, step size) and ``student.json`` (names, space)."""
        self.export("safetensors", folder)

    def export(self, form: str, folder: Path) -> list[Path]:
        """Write the set: ``safetensors``; ``images``, a folder of PNG files per class; or ``parquet`` (PNG bytes, label,
        soft label), as image data sets lie on the Hugging Face hub.

        ``student.json`` lies beside each: class names, items per class, the space networks see, the learned step size;
        beside ``images`` also each file's class and soft label, which folders cannot hold.

        Raises:
            ConfigError: an unknown format.
            MissingExtra: pyarrow is not installed.
        """
        from limbeck.storage.store import atomic_write, safe_name, save_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        names = self.task.labels or []
        about = {
            "kind": self.kind,
            "labels": names,
            "per_class": self.task.per_class,
            "step_size": self.lr,
            "space": {"mean": list(self.task.space.mean), "std": list(self.task.space.std), "zca": self.task.zca},
        }
        if form == "safetensors":
            save_state_dict(folder / "student.safetensors", self.state())
            return [folder / "student.safetensors", _write_about(folder, about)]
        if form not in self.formats:
            raise ConfigError.unknown("format", form, self.formats, "format of a data set")
        png = [_png(x) for x in self.task.space.leave(self.images)]
        # what is in the files is no longer in the space: without this nobody could bring it back there
        about["pixels"] = {"bits": 8, "range": [0, 1], "clipped": True}
        soft = self.labels.tolist() if self.labels.is_floating_point() else None
        if form == "images":
            written: list[Path] = []
            files: dict[str, dict[str, Any]] = {}
            for i, (data, c) in enumerate(zip(png, self.ids.tolist(), strict=True)):
                path = folder / safe_name(names[c]) / f"{i:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, data)
                written.append(path)
                files[path.relative_to(folder).as_posix()] = {"label": c} | ({"soft_label": soft[i]} if soft else {})
            # readers of folders number classes by the folders' names in order, which need not be the order of the labels
            about["folders"] = [safe_name(name) for name in names]
            return [*written, _write_about(folder, {**about, "files": files})]
        from limbeck.errors import require

        pa = require("pyarrow", "language", "writing parquet")
        pq = require("pyarrow.parquet", "language", "writing parquet")
        columns: dict[str, Any] = {
            "image": [{"bytes": d, "path": f"{i:05d}.png"} for i, d in enumerate(png)],
            "label": self.ids.tolist(),
        }
        if soft:
            columns["soft_label"] = soft
        table = pa.table(columns).replace_schema_metadata({"limbeck": json.dumps(about)})
        atomic_write(folder / "data.parquet", lambda f: pq.write_table(table, f))
        return [folder / "data.parquet", _write_about(folder, about)]

    def state(self) -> dict[str, Any]:
        """Images, labels, class ids and the step size."""
        step = {} if self.lr is None else {"step_size": torch.tensor(self.lr)}
        return {"images": self.images, "labels": self.labels, "ids": self.ids, **step}

    def train(self, module: nn.Module, optim: Optim, seed: int, scope: str, device: torch.device) -> Built:
        """A network trained on the set by cross-entropy, augmented as the task says; ``scope`` keys its draws."""
        data = SetData(self.images, self.labels)
        optim = optim.with_(batch_size=min(optim.batch_size, len(data)))

        def loss(net: nn.Module, batch: Batch, ctx: Any) -> Tensor:
            return F.cross_entropy(net(batch["x"]), batch["y"])

        queries = [Augment(self.task.strategy, self.task.align_corners)] if self.task.strategy else []
        net = fit(module, data, loss, optim, seed=seed, scope=scope, device=device, queries=queries)
        return Built(net, self.task.space.contract(), self.task.labels)

    def size(self) -> dict[str, float]:
        """Items and bytes: images, labels and step size."""
        tensors = [self.images, self.labels]
        return {"items": float(len(self.images)), "bytes": float(sum(t.numel() * t.element_size() for t in tensors))}

    def pictures(self, columns: int = 10) -> dict[str, Any]:
        """Pixels for the report: up to ten per class."""
        per = min(columns, self.task.per_class)
        rows = [r[:per] for r in self.task.space.leave(self.images).split(self.task.per_class)]
        return {
            "title": "the synthetic set",
            "labels": self.task.labels,
            "pixels": [[(255 * x).round().to(torch.uint8).tolist() for x in r] for r in rows],
        }


def _write_about(folder: Path, about: dict[str, Any]) -> Path:
    from limbeck.storage.store import atomic_write

    atomic_write(folder / "student.json", json.dumps(about, indent=2).encode())
    return folder / "student.json"


def _png(x: Tensor) -> bytes:
    import io

    from PIL import Image

    pixels = (255 * x).round().to(torch.uint8)
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


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
    """The architectures a synthetic set is also judged with: name -> (shape, classes) -> network."""
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
