"""Networks of image libraries by their names there: timm and torchvision, pretrained or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Any, Literal

import torch
from torch import nn

from limbeck.data.classes import match_classes
from limbeck.errors import ConfigError, TeacherMismatch, require
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.task import Task
from limbeck.models.adapting import own_sizes
from limbeck.models.classifier import Normalised
from limbeck.storage.weights import load_strict

NAMES = {"model": {"timm": "Timm", "torchvision": "Torchvision"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Head = Literal["auto", "new", "own"]


_LOADING = frozenset(
    ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "weights", "weights_backbone")
)
"""Arguments of timm and torchvision that load files past limbeck's own reader, which runs nothing of what it reads."""


@settings
class LibraryModel(Normalised):
    """Base of the models of image libraries.

    Args:
        name: as the library calls it.
        head: which last layer pretrained weights keep: ``own`` (the library's classes, matched by name), ``new`` (one
            of the task's size, to be trained), or ``auto``: its own if it has every class of the task.
        size: side length inputs are resized to; by default what the model insists on, else the data's own.
    """

    name: str
    _: KW_ONLY
    head: Head = "auto"
    size: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.own: list[str] | None = None  # names of the pretrained head, once it is kept
        self.whole = False  # whether features come from pretrained weights alone

    @property
    def trained(self) -> bool:
        """Whether the weights answer with the task's classes already; known once the network is built."""
        return self.checkpoint is not None or self.own is not None or self.whole

    def build(self, task: Task) -> Built:
        """The network; with pretrained weights their own head is kept or replaced as ``head`` says."""
        self.own, self.whole = None, False
        self._task_labels = list(task.labels or [])
        return super().build(task)

    def _new_head(self, own: int, outputs: int) -> None:
        """Say that the pretrained last layer was replaced."""
        self.notes.append(
            f"a new last layer of {outputs} outputs is put on {self.name}"
            + (f" in place of its own of {own}" if own else ", which has none")
            + "; it is still to be trained"
        )

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


def _options(options: dict[str, Any]) -> None:
    """Refuse options that load weights."""
    loading = sorted(set(options) & _LOADING)
    if loading:
        raise ValueError(
            f"options may not hold {', '.join(loading)}: weights are named by checkpoint, pretrained or weights, "
            "which check what they load"
        )


@settings
class Timm(LibraryModel):
    """A model of timm by its name, for images; normalised as timm's own configuration says.

    Classifiers; pooled features; the pyramid of an encoder's maps; or, for maps, that pyramid under a small decoder
    (`limbeck.networks.maps.Decoded`), which is always to be trained.

    Args:
        name: as ``timm.list_models()`` calls it.
        pretrained: load timm's pretrained weights (downloaded where they are not cached).
        options: further arguments of the model.
    """

    forms = ("classes", "map", "pyramid", "vector", "keypoints")
    takes = ("pictures",)

    pretrained: bool = False
    _: KW_ONLY
    options: dict[str, Any] | None = None

    def validate(self) -> None:
        """Options load nothing."""
        super().validate()
        _options(self.options or {})

    def make(self, needs: Needs) -> nn.Module:
        """The timm model."""
        timm = require("timm", "dev", "a timm model")
        outputs = needs.outputs
        if not timm.is_model(self.name):
            raise ConfigError.unknown(self.setting("name"), self.name, timm.list_models(), "timm model")
        pretrained = self.pretrained and self.checkpoint is None
        if needs.form in ("map", "pyramid"):
            return self._maps(timm, needs, pretrained)
        if needs.form == "vector" and pretrained:
            self.whole = outputs == 0
            if outputs:
                self.notes.append(
                    f"a new last layer of {outputs} outputs is put on {self.name}; it is still to be trained"
                )
            return self._create(timm, pretrained=True, num_classes=outputs)
        if not pretrained:
            return self._create(timm, num_classes=outputs)
        module = self._create(timm, pretrained=True)
        self.own = self._keeps(self._class_lists(timm, module), self._task_labels)
        if self.own is None:
            self._new_head(module.num_classes, outputs)
            module.reset_classifier(num_classes=outputs)
        return module

    def _maps(self, timm: Any, needs: Needs, pretrained: bool) -> nn.Module:
        """The encoder's pyramid, alone or under a decoder."""
        from limbeck.networks.maps import Decoded, Pyramid

        encoder = self._create(timm, features_only=True, pretrained=pretrained)
        widths = encoder.feature_info.channels()
        if str(getattr(encoder, "output_fmt", "NCHW")).endswith("NHWC"):
            encoder = Pyramid(encoder)
        if needs.form == "pyramid":
            self.whole = pretrained
            return encoder
        if pretrained:
            self.notes.append(
                f"a new decoder with {needs.outputs} outputs is put on {self.name}; it is still to be trained"
            )
        return Decoded(encoder, widths, needs.outputs)

    def _create(self, timm: Any, **arguments: Any) -> Any:
        try:
            return timm.create_model(self.name, **{**arguments, **(self.options or {})})
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

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """Channels and normalisation of timm's configuration; resized only for models of a fixed input size."""
        from timm.data import resolve_model_data_config  # type: ignore[attr-defined]

        while hasattr(module, "encoder"):  # of what we put around it
            module = module.encoder  # type: ignore[assignment]
        found = resolve_model_data_config(module)
        channels, high, wide = found["input_size"]
        size = (self.size, self.size) if self.size else None
        fixed = getattr(module, "pretrained_cfg", {}).get("fixed_input_size", False)
        own = next(iter(own_sizes(module)), (high, wide))  # img_size among the options changes what the library names
        if size is None and fixed and own != task.needs.inputs[1:]:
            size = own
        mean, std = tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
        channels = int((self.options or {}).get("in_chans", channels))
        if len(mean) != channels:
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        return Contract(mean=mean, std=std, size=size, channels=channels)


@settings
class Torchvision(LibraryModel):
    """A network of torchvision by its name: a classifier, its pooled features, a segmentation network or a detector.

    Args:
        name: as ``torchvision.models.list_models()`` calls it.
        weights: pretrained weights: ``DEFAULT``, or a name such as ``IMAGENET1K_V2`` (downloaded where not cached).
        options: further arguments of the model.
    """

    forms = ("classes", "map", "vector", "keypoints", "boxes")
    takes = ("pictures",)

    weights: str | None = None
    _: KW_ONLY
    options: dict[str, Any] | None = None

    def validate(self) -> None:
        """Options load nothing."""
        super().validate()
        _options(self.options or {})

    def _entry(self) -> Any:
        """The pretrained weights' entry, or ``None``."""
        from torchvision import models

        if self.weights is None or self.checkpoint is not None:
            return None
        known = models.get_model_weights(self.name)
        name = self.weights.rsplit(".", 1)[-1]
        if name not in known.__members__:
            raise ConfigError.unknown(
                self.setting("weights"), self.weights, known.__members__, f"set of weights of {self.name}"
            )
        return known[name]

    def make(self, needs: Needs) -> nn.Module:
        """The torchvision model."""
        from torchvision import models

        outputs = needs.outputs
        place, word = {
            "map": (models.segmentation, "segmentation network"),
            "boxes": (models.detection, "detector"),
        }.get(needs.form, (models, "classifier"))
        known = models.list_models(module=place)
        if self.name not in known:
            raise ConfigError.unknown(self.setting("name"), self.name, known, f"torchvision {word}")
        entry = self._entry()
        if needs.form == "vector":
            return self._features(models, needs, entry)
        if needs.form == "boxes":
            return self._detector(models, needs, entry)
        if entry is None:
            return self._create(models, num_classes=outputs)
        own = list(entry.meta.get("categories", []))
        self.own = self._keeps([own], self._task_labels)
        try:
            if self.own is not None:
                return self._create(models, weights=entry)
            state = entry.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise self._unfetched(error) from None
        state = {
            k: v for k, v in state.items() if not k.startswith("aux_classifier.")
        }  # which is there for training alone
        module = self._create(models, num_classes=outputs)
        if hasattr(module, "transform_input"):
            setattr(module, "transform_input", True)  # noqa: B010 (as the library builds it where it loads these weights)
        try:  # what changes its shape with the number of classes is the last layer
            with torch.device("meta"):
                other = self._create(models, num_classes=outputs + 1).state_dict()
        except ConfigError:  # a few compute with tensors while they are made
            other = self._create(models, num_classes=outputs + 1).state_dict()
        head = {k: v for k, v in module.state_dict().items() if v.shape != other[k].shape}
        load_strict(module, {**{k: v for k, v in state.items() if k not in head}, **head}, str(entry), self.role)
        self._new_head(len(own), outputs)
        return module

    def _unfetched(self, error: OSError) -> ConfigError:
        return ConfigError(
            "weights",
            f"{self.name}'s weights cannot be fetched: {error}",
            given=self.weights,
            remedy="name local weights with checkpoint=FILE",
        )

    def _features(self, models: Any, needs: Needs, entry: Any) -> nn.Module:
        """The network without its last linear layer, or with another in its place."""
        try:
            module = self._create(models, weights=entry)
        except OSError as error:
            raise self._unfetched(error) from None
        path, last = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)][-1]
        module.set_submodule(path, nn.Linear(last.in_features, needs.outputs) if needs.outputs else nn.Identity())
        self.whole = entry is not None and not needs.outputs
        return module

    def _detector(self, models: Any, needs: Needs, entry: Any) -> nn.Module:
        """A detector of the task's classes, the background before them; or with the classes of its own weights."""
        if entry is None:
            return self._create(models, num_classes=needs.outputs + 1)
        self.own = [str(n) for n in entry.meta.get("categories", [])][1:]
        try:
            return self._create(models, weights=entry)
        except OSError as error:
            raise self._unfetched(error) from None

    def _create(self, models: Any, **arguments: Any) -> nn.Module:
        if arguments.get("weights") is None and self.name not in models.list_models(module=models):
            arguments["weights_backbone"] = None  # segmentation networks and detectors fetch one by default
        try:
            made: nn.Module = models.get_model(self.name, **{**arguments, **(self.options or {})})
            return made
        except OSError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ConfigError(
                "options" if self.options else "name",
                f"torchvision cannot make {self.name!r}: {type(error).__name__}: {text}",
            ) from None

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """The weights' own normalisation; that of ImageNet where there are none. Vision transformers get their size."""
        entry = self._entry()
        if task.needs.form == "boxes":  # which normalise and resize inside, boxes and all
            return Contract(channels=3)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        if entry is not None:
            transform = entry.transforms()
            mean, std = tuple(transform.mean), tuple(transform.std)
        size = (self.size, self.size) if self.size else next(iter(own_sizes(module)), None)
        size = None if size == task.needs.inputs[1:] and not self.size else size
        return Contract(mean=mean, std=std, size=size, channels=3)
