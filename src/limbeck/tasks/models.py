"""Ways to get a classifier: small networks of our own, libraries' models, the user's function, an earlier run."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import ConfigError, DataError, LimbeckError, TeacherMismatch
from limbeck.core.method import Built
from limbeck.core.role import Contract
from limbeck.core.task import Model, Task
from limbeck.tasks.arrays import read_names
from limbeck.tasks.classification import Classification, match_classes
from limbeck.tasks.data import as_path

if TYPE_CHECKING:
    from limbeck.core.optim import Optim
    from limbeck.run import Bench

log = logging.getLogger("limbeck.models")

Activation = Literal["relu", "gelu", "tanh", "silu"]
Head = Literal["auto", "new", "own"]


class Network(Model):
    """Base of the models of this file. A subclass makes the module from the input's shape and the number of outputs.

    The number of outputs is the task's. A checkpoint with another number, or with classes in another order, is matched
    by the names of its classes: from ``labels``, or from what lies beside the checkpoint (``student.json`` of a run,
    ``labels.json``, ``classes.json``).

    Args:
        checkpoint: weights to load, strictly: safetensors, or a torch file without pickled objects.
        labels: file with the checkpoint's class names in its order.
        mean: normalisation of each channel; by default what the model's library says, else the training data's mean.
        std: likewise, the deviation.
    """

    checkpoint: str | None = None
    labels: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    rehearsed = True  # build tries the network on two items

    def _source(
        self,
        checkpoint: str | None,
        labels: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        """Check and keep where weights, names and normalisation come from."""
        if (mean is None) != (std is None):
            raise ValueError("mean and std must be given together")
        if std is not None and any(not s > 0 for s in std):
            raise ValueError("std must be above 0")
        if mean is not None and std is not None and len(mean) != len(std):
            raise ValueError("mean and std must have the same length")
        self.checkpoint, self.labels, self.mean, self.std = checkpoint, labels, mean, std

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The module for inputs [N, *shape] and ``outputs`` values an item."""
        raise TypeError(f"{type(self).__name__} must define make")

    def contract(self, module: nn.Module, task: Classification) -> Contract:
        """What the module expects: by default the data's own channels, normalised by its statistics."""
        mean, std = task.statistics()
        return Contract(mean=mean, std=std, channels=task.shape[0] if len(task.shape) == 3 else None)

    def build(self, task: Task) -> Built:
        """The network for a task, weights loaded, classes matched by name, tried on two items.

        Raises:
            TeacherMismatch: the checkpoint's classes are not the task's.
            CheckpointCorrupt, ShapeError: the checkpoint is not this architecture's.
            ConfigError: the network does not take the task's items.
        """
        if not isinstance(task, Classification):
            raise ConfigError(
                "model",
                f"{type(self).__name__} answers with classes or numbers, and the task is {type(task).__name__}",
                expected="a model of that task",
            )
        task.load()
        about = self._beside()
        module = self.make(task.shape, task.outputs)
        width = task.outputs
        if self.checkpoint is not None:
            from limbeck.core.store import load_foreign, load_strict

            state = load_foreign(as_path(self.checkpoint, "checkpoint"))
            width = outputs_in(state, module, task.outputs)
            if width != task.outputs:
                module = self.make(task.shape, width)
            load_strict(module, state, self.checkpoint)
        contract = self._normalised(self.contract(module, task), about, task)
        check_channels(contract, task)
        names = self._names(about)
        built = Built(module, contract, names, self)
        width = self._kept() or width
        adapt(built, task, width, about, f"checkpoint {self.checkpoint}" if self.checkpoint else type(self).__name__)
        task.rehearse(built)
        return built

    def _kept(self) -> int | None:
        """The number of outputs of a pretrained head that was kept; ``None`` where there is none."""
        return None

    def _beside(self) -> dict[str, Any]:
        """What a run wrote beside the weights, if they are a run's."""
        if self.checkpoint is None:
            return {}
        path = as_path(self.checkpoint, "checkpoint")
        folder = path if path.is_dir() else path.parent
        return read_about(folder / "student.json") if (folder / "student.json").is_file() else {}

    def _names(self, about: Mapping[str, Any]) -> list[str] | None:
        """The class names of the weights, where they can be known."""
        if self.labels is not None:
            return read_names(as_path(self.labels, "labels"))
        if about.get("labels"):
            return [str(n) for n in about["labels"]]
        if self.checkpoint is not None:
            path = as_path(self.checkpoint, "checkpoint")
            folder = path if path.is_dir() else path.parent
            for name in ("labels.json", "classes.json", "labels.txt", "classes.txt"):
                if (folder / name).is_file():
                    return read_names(folder / name)
        return None

    def _normalised(self, contract: Contract, about: Mapping[str, Any], task: Classification) -> Contract:
        if self.mean is not None and self.std is not None:
            return contract.with_(mean=tuple(self.mean), std=tuple(self.std))
        if about:
            return contract_from(about, task)
        return contract


def outputs_in(state: Mapping[str, Tensor], module: nn.Module, outputs: int) -> int:
    """How many outputs a checkpoint has, if only that differs from the module's shapes; else ``outputs``."""
    mine = module.state_dict()
    found = set()
    for name, value in state.items():
        own = mine.get(name)
        if own is None or own.shape == value.shape:
            continue
        same_rest = own.ndim == value.ndim and own.ndim > 0 and own.shape[1:] == value.shape[1:]
        if not same_rest or own.shape[0] != outputs:
            return outputs
        found.add(int(value.shape[0]))
    return found.pop() if len(found) == 1 else outputs


def read_about(path: Path) -> dict[str, Any]:
    """A run's ``student.json``, with what it says of its task on the same level."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(str(path), f"cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(str(path), "is no description of a student", given=type(found).__name__)
    task = found.get("task")
    return {**(task if isinstance(task, dict) else {}), **found}


def contract_from(about: Mapping[str, Any], task: Classification) -> Contract:
    """The input contract that a run wrote beside its student; pictures of another size are resized to the run's."""
    said = about.get("preprocessing") or {}
    try:
        size = tuple(said["size"]) if said.get("size") else None
        shape = tuple(about.get("input") or ())
        if size is None and len(shape) == 3 and len(task.shape) == 3 and shape[1:] != task.shape[1:]:
            size = shape[1:]
        return Contract(
            mean=tuple(map(float, said.get("mean") or ())),
            std=tuple(map(float, said.get("std") or ())),
            size=(int(size[0]), int(size[1])) if size else None,
            channels=int(said["channels"]) if said.get("channels") else None,
        )
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError("student.json", f"its preprocessing cannot be read: {error}", given=said) from None


def check_channels(contract: Contract, task: Classification) -> None:
    """Refuse pictures whose channels the contract cannot adapt."""
    if len(task.shape) != 3:
        return
    given, wanted = task.shape[0], contract.channels
    if wanted and given != wanted and given != 1 and not (wanted == 1 and given == 3):
        raise DataError("task.data", f"pictures have {given} channels", expected=f"{wanted}, or 1 (grey)")
    channels = wanted or given
    if contract.mean and len(contract.mean) not in (1, channels):
        raise ConfigError("mean", given=list(contract.mean), expected=f"{channels} numbers, one a channel")


def adapt(built: Built, task: Classification, width: int, about: Mapping[str, Any], what: str) -> None:
    """Bring a network's outputs into the task's order and units, in its contract.

    Args:
        built: the network; ``labels`` are the names of its own outputs, or ``None`` where they are not known.
        task: whose classes they must be.
        width: the number of its outputs.
        about: what was written beside it.
        what: what an error calls it.

    Raises:
        TeacherMismatch: classes are missing, or nothing says which output is which class.
    """
    assert task.labels is not None
    trained = built.model is not None and (built.model.trained or about)
    kind = about.get("target")
    if kind is not None and kind != task.kind_of_target:
        raise TeacherMismatch(
            "teacher",
            f"{what} answers with {_KINDS.get(str(kind), kind)}, and the task asks for {_KINDS[task.kind_of_target]}",
            remedy="name another checkpoint, or train one on this data",
        )
    if built.labels is not None and len(built.labels) != width:
        raise TeacherMismatch(
            "teacher.labels", f"{len(built.labels)} names for {width} outputs of {what}", expected="one name an output"
        )
    if built.labels is None:
        if width != task.outputs:
            raise TeacherMismatch(
                "teacher.labels",
                f"{what} has {width} outputs, the task has {task.outputs} classes, and nothing says which is which",
                remedy="name the classes of the checkpoint in order with labels=FILE (a JSON list, or one name a line)",
            )
        if trained and task.outputs > 1:
            log.warning("%s comes without class names: its outputs are taken to be in the task's order", what)
        built.labels = list(task.labels)
    built.contract = built.contract.with_(classes=match_classes(built.labels, task.labels))
    if task.kind_of_target == "number" and about.get("number_std"):
        order = built.contract.classes or range(width)
        scale = torch.tensor([float(about["number_std"][i]) for i in order]) / task.number_std
        shift = (torch.tensor([float(about["number_mean"][i]) for i in order]) - task.number_mean) / task.number_std
        if not (torch.allclose(scale, torch.ones_like(scale)) and torch.allclose(shift, torch.zeros_like(shift))):
            built.contract = built.contract.with_(scale=tuple(scale.tolist()), shift=tuple(shift.tolist()))


_KINDS = {"label": "one class", "labels": "several classes", "number": "numbers"}


def _needs_pictures(shape: tuple[int, ...], name: str) -> None:
    if len(shape) != 3:
        raise ConfigError(
            "model", f"{name} takes pictures, and the data are rows of {shape[0]} numbers", remedy="use mlp"
        )


# ------------------------------------------------------------------------------------------ our own
class Mlp(Network):
    """A multi-layer perceptron over the flattened input.

    Args:
        hidden: sizes of the hidden layers.
        activation: ``relu``, ``gelu``, ``tanh`` or ``silu``.
        dropout: share of hidden values dropped while training.
    """

    def __init__(
        self,
        hidden: list[int] = [64],  # noqa: B006 (copied, never changed)
        activation: Activation = "relu",
        dropout: float = 0.0,
        checkpoint: str | None = None,
        labels: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        if any(h < 1 for h in hidden):
            raise ValueError("hidden layers need at least one unit each")
        if not 0 <= dropout < 1:
            raise ValueError("dropout must lie in [0, 1)")
        self.hidden, self.activation, self.dropout = list(hidden), activation, dropout
        self._source(checkpoint, labels, mean, std)

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """``flatten``, then ``fc1``, ``act1``, ``drop1``, ..., ``head``: a plain ``nn.Sequential``."""
        width = math.prod(shape)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        act = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}[self.activation]
        for i, size in enumerate(self.hidden, 1):
            layers[f"fc{i}"] = nn.Linear(width, size)
            layers[f"act{i}"] = act()
            if self.dropout:
                layers[f"drop{i}"] = nn.Dropout(self.dropout)
            width = size
        layers["head"] = nn.Linear(width, outputs)
        return nn.Sequential(layers)


class ConvNetModel(Network):
    """The ConvNet of data set distillation: blocks of 3x3 convolution, normalisation, activation, pooling.

    Args:
        width: channels of every convolution.
        depth: number of blocks; by default as many as bring the picture down to about 4 pixels.
        norm: ``instance``, ``group``, ``layer``, ``batch`` or ``none``.
        activation: ``relu``, ``leakyrelu``, ``sigmoid`` or ``swish``.
        pooling: ``avg``, ``max`` or ``none``.
    """

    def __init__(
        self,
        width: int = 128,
        depth: int | None = None,
        norm: Literal["instance", "group", "layer", "batch", "none"] = "instance",
        activation: Literal["relu", "leakyrelu", "sigmoid", "swish"] = "relu",
        pooling: Literal["avg", "max", "none"] = "avg",
        checkpoint: str | None = None,
        labels: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        if width < 1:
            raise ValueError("width must be 1 or more")
        if depth is not None and depth < 1:
            raise ValueError("depth must be 1 or more, or null")
        self.width, self.depth, self.norm, self.activation, self.pooling = width, depth, norm, activation, pooling
        self._source(checkpoint, labels, mean, std)

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A ``limbeck.models.convnet.ConvNet`` for pictures of this size."""
        from limbeck.models.convnet import ConvNet

        _needs_pictures(shape, "convnet")
        depth = self.depth or max(1, round(math.log2(min(shape[1:]))) - 2)
        return ConvNet(
            channels=shape[0],
            classes=outputs,
            width=self.width,
            depth=depth,
            activation=self.activation,
            norm=self.norm,
            pooling=self.pooling,
            im_size=(shape[1], shape[2]),
        )


class CifarResNet(Network):
    """The ResNet of CIFAR with shortcuts without parameters (He et al., 2016): ResNet-20, 32, 44, 56, 110.

    Args:
        depth: 6n + 2.
        width: channels of the first stage.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        checkpoint: str | None = None,
        labels: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError("depth must be 6n + 2, as 20, 32, 44, 56 or 110")
        if width < 1:
            raise ValueError("width must be 1 or more")
        self.depth, self.width = depth, width
        self._source(checkpoint, labels, mean, std)

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A ``limbeck.models.cifar_resnet.CifarResNet``."""
        from limbeck.models.cifar_resnet import CifarResNet as Net

        _needs_pictures(shape, "cifar-resnet")
        return Net(self.depth, outputs, shape[0], self.width)


# ------------------------------------------------------------------------------------------ libraries
class _Library(Network):
    """What models of picture libraries share.

    Args:
        name: as the library calls it.
        head: which last layer pretrained weights keep: ``own`` (the library's classes, matched by name), ``new`` (one
            of the task's size, to be trained), or ``auto``: its own if it has every class of the task.
        size: side length inputs are resized to; by default what the model insists on, else the data's own.
        options: further arguments of the model.
    """

    name: str
    head: Head = "auto"
    size: int | None = None
    options: dict[str, Any]

    def _library(self, name: str, head: Head, size: int | None, options: dict[str, Any] | None) -> None:
        if size is not None and size < 1:
            raise ValueError("size must be 1 or more, or null")
        self.name, self.head, self.size, self.options = name, head, size, dict(options or {})
        self.own: list[str] | None = None  # names of the pretrained head, once it is kept

    @property
    def trained(self) -> bool:
        """Whether the weights answer with the task's classes already; known once the network is built."""
        return self.checkpoint is not None or self.own is not None

    def _names(self, about: Mapping[str, Any]) -> list[str] | None:
        return self.own if self.own is not None else super()._names(about)

    def _kept(self) -> int | None:
        return len(self.own) if self.own is not None else None

    def _keeps(self, lists: Sequence[list[str]], task_labels: Sequence[str]) -> list[str] | None:
        """The list of class names under which every class of the task is found; ``None`` for a new head.

        Raises:
            TeacherMismatch: ``head=own`` and classes are missing.
        """
        if self.head == "new":
            return None
        failed: TeacherMismatch | None = None
        for names in lists:
            try:
                match_classes(names, task_labels)
                return names
            except TeacherMismatch as error:
                failed = failed or error
        if self.head == "own":
            raise failed or TeacherMismatch(
                "head", f"the weights of {self.name} come without class names", remedy="use head=new"
            )
        return None


class Timm(_Library):
    """A model of timm by its name, for pictures; normalised as timm's own configuration says.

    Args:
        name: as ``timm.list_models()`` calls it.
        pretrained: load timm's pretrained weights (downloaded where they are not cached).
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        checkpoint: str | None = None,
        labels: str | None = None,
        head: Head = "auto",
        size: int | None = None,
        options: dict[str, Any] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        self.pretrained = pretrained
        self._library(name, head, size, options)
        self._source(checkpoint, labels, mean, std)

    def build(self, task: Task) -> Built:
        """The network; with pretrained weights their own head is kept or replaced as ``head`` says."""
        self.own = None
        self._task_labels = list(task.labels or [])
        return super().build(task)

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The timm model."""
        timm = _timm()
        _needs_pictures(shape, f"timm:{self.name}")
        if not timm.is_model(self.name):
            raise ConfigError.unknown("name", self.name, timm.list_models(), "timm model")
        pretrained = self.pretrained and self.checkpoint is None
        if not pretrained:
            return self._create(timm, num_classes=outputs)
        module = self._create(timm, pretrained=True)
        self.own = self._keeps(self._class_lists(timm, module), self._task_labels)
        if self.own is None:
            module.reset_classifier(num_classes=outputs)
        return module

    def _create(self, timm: Any, **arguments: Any) -> Any:
        try:
            return timm.create_model(self.name, **{**arguments, **self.options})
        except Exception as error:  # wrong options, or weights that cannot be fetched
            text = " ".join(str(error).split())[:300]
            raise ConfigError(
                "options" if self.options else "name",
                f"timm cannot make {self.name!r}: {type(error).__name__}: {text}",
                remedy="name local weights with checkpoint=FILE" if arguments.get("pretrained") else "",
            ) from None

    @staticmethod
    def _class_lists(timm: Any, module: Any) -> list[list[str]]:
        """The pretrained classes: as descriptions and as WordNet ids."""
        from timm.data import ImageNetInfo, infer_imagenet_subset  # type: ignore[attr-defined]

        if module.pretrained_cfg.get("label_names"):
            return [list(module.pretrained_cfg["label_names"])]
        subset = infer_imagenet_subset(module)
        if subset is None:
            return []
        info = ImageNetInfo(subset)
        return [info.label_descriptions(detailed=False), info.label_names()]

    def contract(self, module: nn.Module, task: Classification) -> Contract:
        """Channels and normalisation of timm's configuration; resized only for models of a fixed input size."""
        from timm.data import resolve_model_data_config  # type: ignore[attr-defined]

        found = resolve_model_data_config(module)
        channels, high, wide = found["input_size"]
        size = (self.size, self.size) if self.size else None
        fixed = getattr(module, "pretrained_cfg", {}).get("fixed_input_size", False)
        if size is None and fixed and (high, wide) != task.shape[1:]:
            size = (high, wide)
        mean, std = tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
        channels = int(self.options.get("in_chans", channels))
        if len(mean) != channels:
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        return Contract(mean=mean, std=std, size=size, channels=channels)


def _timm() -> Any:
    from limbeck.core.errors import require

    return require("timm", "dev", "a timm model")


class Torchvision(_Library):
    """A classifier of torchvision by its name.

    Args:
        name: as ``torchvision.models.list_models()`` calls it.
        weights: pretrained weights: ``DEFAULT``, or a name such as ``IMAGENET1K_V2`` (downloaded where not cached).
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        checkpoint: str | None = None,
        labels: str | None = None,
        head: Head = "auto",
        size: int | None = None,
        options: dict[str, Any] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        self.weights = weights
        self._library(name, head, size, options)
        self._source(checkpoint, labels, mean, std)

    def build(self, task: Task) -> Built:
        """The network; with pretrained weights their own head is kept or replaced as ``head`` says."""
        self.own = None
        self._task_labels = list(task.labels or [])
        return super().build(task)

    def _entry(self) -> Any:
        """The pretrained weights' entry, or ``None``."""
        from torchvision import models

        if self.weights is None or self.checkpoint is not None:
            return None
        known = models.get_model_weights(self.name)
        name = self.weights.rsplit(".", 1)[-1]
        if name not in known.__members__:
            raise ConfigError.unknown("weights", self.weights, known.__members__, f"set of weights of {self.name}")
        return known[name]

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The torchvision model."""
        from torchvision import models

        _needs_pictures(shape, f"torchvision:{self.name}")
        known = models.list_models(module=models)
        if self.name not in known:
            raise ConfigError.unknown("name", self.name, known, "torchvision classifier")
        entry = self._entry()
        if entry is None:
            return self._create(models, num_classes=outputs)
        self.own = self._keeps([list(entry.meta.get("categories", []))], self._task_labels)
        try:
            if self.own is not None:
                return self._create(models, weights=entry)
            module = self._create(models, num_classes=outputs)
            state = entry.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise ConfigError(
                "weights",
                f"{self.name}'s weights cannot be fetched: {error}",
                given=self.weights,
                remedy="name local weights with checkpoint=FILE",
            ) from None
        mine = module.state_dict()
        module.load_state_dict({k: v if v.shape == mine[k].shape else mine[k] for k, v in state.items() if k in mine})
        return module

    def _create(self, models: Any, **arguments: Any) -> nn.Module:
        try:
            made: nn.Module = models.get_model(self.name, **{**arguments, **self.options})
            return made
        except OSError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ConfigError(
                "options" if self.options else "name",
                f"torchvision cannot make {self.name!r}: {type(error).__name__}: {text}",
            ) from None

    def contract(self, module: nn.Module, task: Classification) -> Contract:
        """The weights' own normalisation; that of ImageNet where there are none. Vision transformers get their size."""
        entry = self._entry()
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        if entry is not None:
            transform = entry.transforms()
            mean, std = tuple(transform.mean), tuple(transform.std)
        fixed = getattr(module, "image_size", None)
        size = (self.size, self.size) if self.size else None
        if size is None and isinstance(fixed, int) and task.shape[1:] != (fixed, fixed):
            size = (fixed, fixed)
        return Contract(mean=mean, std=std, size=size, channels=3)


# ------------------------------------------------------------------------------------------ the user's
class Imported(Network):
    """The user's own network: a function that returns a ``torch.nn.Module``. Naming it runs its code.

    The function gets ``options``, and the number of outputs and the input's shape where its signature has parameters
    called ``num_classes`` (``classes``, ``outputs``) and ``shape`` (``input_shape``).

    Args:
        function: ``package.module:function``, or a class.
        options: arguments of the function.
        ready: the function returns trained weights, so that a teacher is not trained again.
        size: side length inputs are resized to; ``null`` keeps the data's.
        channels: channels the network takes; ``null`` keeps the data's.
        normalise: normalise by the training data's statistics where no mean and std are given.
    """

    def __init__(
        self,
        function: str,
        options: dict[str, Any] | None = None,
        ready: bool = False,
        checkpoint: str | None = None,
        labels: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        size: int | None = None,
        channels: int | None = None,
        normalise: bool = True,
    ) -> None:
        if size is not None and size < 1:
            raise ValueError("size must be 1 or more, or null")
        if channels is not None and channels < 1:
            raise ValueError("channels must be 1 or more, or null")
        self.function, self.options, self.ready = function, dict(options or {}), ready
        self.size, self.channels, self.normalise = size, channels, normalise
        self._source(checkpoint, labels, mean, std)

    @property
    def trained(self) -> bool:
        """Whether the function, or the checkpoint, brings trained weights."""
        return self.ready or self.checkpoint is not None

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """What the function returns."""
        from limbeck.core.imports import imported

        function = imported(self.function, "function")
        arguments = dict(self.options)
        try:
            accepted = set(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            accepted = set()
        for names, value in ((("num_classes", "classes", "outputs"), outputs), (("shape", "input_shape"), shape)):
            for name in names:
                if name in accepted:
                    arguments.setdefault(name, value)
                    break
        try:
            module = function(**arguments)
        except LimbeckError:
            raise
        except Exception as error:
            raise ConfigError("function", f"{self.function} failed: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError("function", given=type(module).__name__, expected="a torch.nn.Module")
        return module

    def build(self, task: Task) -> Built:
        """The network; its own number of outputs is matched to the task's classes by name."""
        if isinstance(task, Classification) and self.checkpoint is None and self.labels is not None:
            task.load()
            module = self.make(task.shape, task.outputs)
            names = read_names(as_path(self.labels, "labels"))
            contract = self._normalised(self.contract(module, task), {}, task)
            check_channels(contract, task)
            built = Built(module, contract, names, self)
            adapt(built, task, len(names), {}, self.function)
            task.rehearse(built)
            return built
        return super().build(task)

    def contract(self, module: nn.Module, task: Classification) -> Contract:
        """The data's statistics, and the channels and size that were asked for."""
        contract = super().contract(module, task) if self.normalise else Contract()
        size = (self.size, self.size) if self.size else None
        if self.channels and contract.mean and len(contract.mean) != self.channels:
            mean, std = sum(contract.mean) / len(contract.mean), sum(contract.std) / len(contract.std)
            contract = contract.with_(mean=(mean,) * self.channels, std=(std,) * self.channels)
        return contract.with_(size=size, channels=self.channels or contract.channels)


class FromRun(Network):
    """The student of an earlier run, with the class names and the input contract it was saved with.

    Args:
        path: the run folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.checkpoint = path

    def build(self, task: Task) -> Built:
        """The student, rebuilt from ``student.json`` and ``student.safetensors``.

        Raises:
            ConfigError: the folder holds no student that can be rebuilt.
            TeacherMismatch: its classes are not the task's.
        """
        from limbeck.core.recipe import make
        from limbeck.core.store import load_foreign, load_strict

        if not isinstance(task, Classification):
            raise ConfigError("path", f"a classifier is no model for {type(task).__name__}", given=self.path)
        folder = as_path(self.path, "path")
        if not (folder / "student.json").is_file():
            raise ConfigError("path", "the folder holds no student.json", given=self.path, expected="a finished run")
        task.load()
        about = read_about(folder / "student.json")
        node = about.get("model")
        if not isinstance(node, dict) or not about.get("input") or not about.get("outputs"):
            raise ConfigError(
                "path",
                f"{folder / 'student.json'} does not say how its network is built",
                remedy="name the network yourself, with checkpoint=" + str(folder / "student.safetensors"),
            )
        if node.get("use") == "import":  # a folder that somebody sent must not run code
            raise ConfigError(
                "path",
                f"the student was made by {node.get('function')}, which is not run unasked",
                remedy=f"use import:{node.get('function')} with checkpoint={folder / 'student.safetensors'}",
            )
        bare = {"checkpoint": None, "labels": None, "pretrained": False, "weights": None}
        model = make(Model, {k: bare.get(k, v) for k, v in node.items()}, "student.json")
        if not isinstance(model, Network):
            raise ConfigError("path", f"the student is a {node.get('use')}, no classifier", given=self.path)
        names = [str(n) for n in about.get("labels") or []] or None
        width = len(names) if names else int(about["outputs"])
        module = model.make(tuple(int(s) for s in about["input"]), width)
        load_strict(module, load_foreign(folder / "student.safetensors"), str(folder))
        built = Built(module, contract_from(about, task), names, self)
        check_channels(built.contract, task)
        adapt(built, task, width, about, f"the student of {folder}")
        task.rehearse(built)
        return built


# ------------------------------------------------------------------------------------------ together
class Ensemble(nn.Module):
    """Several networks that answer as one, each through its own contract.

    Args:
        members: the networks.
        contracts: their contracts; the ensemble itself takes the task's items as they are.
        weights: of each member, positive; they are brought to a sum of 1.
        average: ``probabilities`` (the output is the logarithm, or log-odds, of their mean) or ``logits``.
        kind: ``label``, ``labels`` or ``number`` (whose outputs are simply averaged).
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        contracts: Sequence[Contract],
        weights: Sequence[float],
        average: Literal["probabilities", "logits"] = "probabilities",
        kind: str = "label",
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.contracts = list(contracts)
        self.weights = [w / sum(weights) for w in weights]
        self.average, self.kind = average, kind

    def forward(self, x: Tensor) -> Tensor:
        """Logits (or numbers) [N, C] in the task's order."""
        from limbeck.core.signal import Signal

        outs = []
        for member, contract in zip(self.members, self.contracts, strict=True):
            outs.append(Signal(contract.outputs(member(contract.inputs(x)))).logits)
        z = torch.stack(outs)  # [members, N, C]
        w = torch.tensor(self.weights, dtype=z.dtype, device=z.device)[:, None, None]
        if self.average == "logits" or self.kind == "number":
            return (w * z).sum(0)
        if self.kind == "labels":
            log_yes = (nn.functional.logsigmoid(z) + w.log()).logsumexp(0)
            log_no = (nn.functional.logsigmoid(-z) + w.log()).logsumexp(0)
            return log_yes - log_no
        return (z.log_softmax(-1) + w.log()).logsumexp(0)


class EnsembleOf(Model):
    """Several models as one teacher: each through its own normalisation and classes, their answers averaged.

    Members without trained weights are trained one by one from different seeds, each a remembered stage.

    Args:
        members: the models.
        weights: of each member; equal by default.
        average: ``probabilities``, or ``logits``.
    """

    def __init__(
        self,
        members: list[Model],
        weights: list[float] | None = None,
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        if not members:
            raise ValueError("members must name at least one model")
        if weights is not None and (len(weights) != len(members) or any(not w > 0 for w in weights)):
            raise ValueError("weights must be one number above 0 for each member")
        self.members, self.weights, self.average = members, weights, average

    @property
    def trained(self) -> bool:
        """Whether every member is."""
        return all(m.trained for m in self.members)

    def build(self, task: Task) -> Built:
        """All members, joined."""
        return self._join([m.build(task) for m in self.members], task)

    def teach(self, bench: Bench, optim: Optim) -> Built:
        """Each member that is not trained yet, trained by itself from its own seed."""
        made = []
        for i, member in enumerate(self.members):
            if member.trained:
                made.append(member.build(bench.task))
            else:
                made.append(bench.train_network(member, bench.task.teacher_train, optim, "teacher", seed=i))
        return self._join(made, bench.task)

    def _join(self, made: Sequence[Built], task: Task) -> Built:
        if not isinstance(task, Classification):
            raise ConfigError("members", f"an ensemble of classifiers is no model for {type(task).__name__}")
        weights = self.weights or [1.0] * len(made)
        module = Ensemble(
            [b.module for b in made], [b.contract for b in made], weights, self.average, task.kind_of_target
        )
        return Built(module, Contract(), list(task.labels or []), self)
