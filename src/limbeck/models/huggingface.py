"""Models of transformers by Hub id or folder: causal language models, classifiers and segmentation networks of images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from limbeck.errors import ConfigError
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.task import Task
from limbeck.models.adapting import names_by_id
from limbeck.models.forms import meet
from limbeck.models.hf_text import text_model
from limbeck.models.libraries import LibraryModel
from limbeck.models.pretrained import (
    Wanted,
    adapter_alone,
    adapter_in,
    base_of,
    low_rank,
    name_outputs,
    quiet,
    save_pretrained,
    with_adapter,
)
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.plain import check_folder
from limbeck.storage.store import atomic_folder
from limbeck.storage.weights import load_strict
from limbeck.tasks.causal import transformers_library
from limbeck.tasks.tokenizers import load_tokenizer, vocabulary_size

NAMES = {"model": {"hf": "HuggingFace"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

PICTURES = {
    "classes": ("AutoModelForImageClassification", "ForImageClassification", "a classifier of images"),
    "map": ("AutoModelForSemanticSegmentation", "ForSemanticSegmentation", "a segmentation network"),
}
"""Form -> the library's class that opens it, how architectures with such a head are called, and what it is."""


def _lacks_tokenizer(place: str) -> bool:
    """Whether a folder holds a network alone."""
    folder = Path(place)
    return folder.is_dir() and not any(any(folder.glob(f)) for f in ("*token*", "vocab.*", "*.model"))


def _fit(config: Any, tokenizer: Any) -> None:
    """An architecture given an output for every token, where it has too few; and the tokenizer's own special ids."""
    size = vocabulary_size(tokenizer)
    if getattr(config, "vocab_size", size) >= size:
        return
    config.vocab_size = size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))


@settings
class HuggingFace(LibraryModel):
    """A model of the Hugging Face Hub or of a local folder: a causal language model, a classifier of images, or a
    segmentation network (SegFormer, UperNet, MobileViT, ...).

    What it is taken as is the task's to say. A classifier's class names are read from its ``id2label``, and how it is fed
    from its image processor.

    Args:
        name: the Hub id, a folder that ``from_pretrained`` reads, or the folder of a run.
        dtype: of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` as they are stored.
        revision: branch, tag or commit on the Hub.
        gguf_file: name of a GGUF file in the folder or repository, whose weights are unpacked.
        pretrained: off, only the architecture is taken and the weights are drawn anew.
        lora: rank of low-rank adapters that are trained instead of the weights (peft); ``null`` trains the weights.
        lora_alpha: their scale; ``null`` for twice the rank.
        checkpoint: further weights to load, strictly: safetensors, or a torch file without pickled objects.
        labels: class names of a classifier, in the order of its outputs, or a file of them; ``null`` reads ``id2label``.
        size: side length that images are resized to; by default what the model insists on, else the data's own.
    """

    forms = ("classes", "map", "tokens", "hidden-tokens")
    takes = ("pictures", "tokens")
    paths: ClassVar[tuple[str, ...]] = ("name", "checkpoint", "labels")

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    revision: str | None = None
    gguf_file: str | None = None
    pretrained: bool = True
    lora: Count | None = None
    lora_alpha: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokenizer: Any = None
        self._ready = self.pretrained or self.checkpoint is not None
        self._config: Any = None
        self._auto = PICTURES["classes"][0]
        self._steps: dict[str, Any] = {}  # how a file becomes an input
        self.target = "label"

    @property
    def trained(self) -> bool:
        """Whether the weights are already good for something; of a classifier known once it is built."""
        return self._ready

    @property
    def brings_tokenizer(self) -> bool:
        """Of texts it reads its own, whether or not its weights are taken."""
        return True

    @property
    def takes_tokenizer(self) -> bool:
        """A folder without one, or an architecture whose weights are drawn anew."""
        return not self.pretrained or _lacks_tokenizer(self._place())

    def build(self, task: Task) -> Built:
        """The network. No code from the Hub is run, and weights are read as safetensors or with ``weights_only``."""
        self._ready = self.pretrained or self.checkpoint is not None
        needs = meet(self, task)
        task.load()
        if needs.form == "tokens":
            return self._language(needs)
        if needs.tokens is not None:
            return text_model(self, task, needs)
        built = super().build(task)
        self._steps, self.target = task.preprocessing(built.contract), needs.target
        if self.lora is not None:
            head = sorted({n.rpartition(".")[0] for n in self._head(needs)})
            built.module = low_rank(built.module, self.lora, self.lora_alpha, modules_to_save=head)
        return built

    # ----------------------------------------------------------------------------------------------------- where it lies
    def _place(self) -> str:
        folder = expanded(self.name)
        inside = folder / "student"
        if (inside / "config.json").is_file() and not (folder / "config.json").is_file():
            folder = inside
        check_folder(folder, "name")
        return str(folder) if folder.exists() else self.name

    def _options(self) -> dict[str, Any]:
        # named, or the library asks on the terminal whether code from the folder may be run
        options: dict[str, Any] = {"trust_remote_code": False}
        if self.revision:
            options["revision"] = self.revision
        if self.gguf_file is not None:
            options["gguf_file"] = self.gguf_file
        return options

    def _wanted(self, place: str, auto: str, what: str) -> Wanted:
        plain = self.checkpoint is None  # with a further file, entry and prefix are those of that file
        entry, strip = (self.entry, self.strip) if plain else (None, "")
        return Wanted(self.name, place, what, auto, self.dtype, self._options(), entry, strip, self.role)

    def _checkpoint(self, module: nn.Module) -> None:
        if self.checkpoint is None:
            return
        path = expanded(self.checkpoint)
        found = find_weights(path, module.state_dict(), entry=self.entry, strip=self.strip, role=self.role)
        load_strict(module, found.state, self.checkpoint, self.role)
        self.notes.append(str(found))

    def _loaded(self, place: str, wanted: Wanted, **more: Any) -> nn.Module:
        """The weights of a folder, or of an adapter's base with the adapter merged in."""
        about = adapter_in(place)
        if about is None:
            module, notes = wanted.load(**more)
            self.notes += notes
            return module
        base = base_of(place, about)
        if self.role == "student":
            raise adapter_alone(place, about, base, self.role)
        wanted.place = wanted.name = base
        wanted.what += f", on which the adapter in {place} was trained"
        module, notes = wanted.load(**more)
        self.notes += [*notes, f"the adapter in {place} is merged into it"]
        return with_adapter(module, place, self.role)

    # --------------------------------------------------------------------------------------------------------- language
    def _language(self, needs: Needs) -> Built:
        """The network and its tokenizer, which becomes the task's or must agree with it."""
        transformers = transformers_library("models of the Hugging Face Hub")
        text: Any = needs.tokens
        assert text is not None
        if self.gguf_file is not None and importlib.util.find_spec("gguf") is None:
            raise ConfigError(
                "gguf_file",
                "reading GGUF files needs the package 'gguf'",
                given=self.gguf_file,
                remedy="pip install gguf",
            )
        self.notes = []
        place = self._place()
        wanted = self._wanted(place, "AutoModelForCausalLM", "a causal language model")
        about = adapter_in(place)
        texts = place
        if about is not None and not any(Path(place).glob("tokenizer*")):
            texts = base_of(place, about)
        lacking = self.gguf_file is None and _lacks_tokenizer(texts)
        if lacking and (text.tokenizer_name is not None or text.adopted):
            self.tokenizer = text.tokenizer  # weights alone: they are taken to be made with the tokenizer that is there
            whose = "task.tokenizer" if text.tokenizer_name is not None else text.whose
            self.notes.append(f"no tokenizer lies in {texts}: it is taken to know that of {whose}")
        else:
            self.tokenizer = load_tokenizer(texts, **self._options())
            if not self.pretrained and self.checkpoint is None and text.serves(self.tokenizer):
                self.tokenizer = text.tokenizer  # nothing in it knows the tokens of its own
                self.notes.append(f"its weights are drawn anew: it learns the tokens of {text.whose}, not its own")
            else:
                text.adopt(self.tokenizer, self.name)
        module: Any
        if self.pretrained:
            module = self._loaded(place, wanted)
        else:
            try:
                config = transformers.AutoConfig.from_pretrained(place, **self._options())
                _fit(config, self.tokenizer)
                module = transformers.AutoModelForCausalLM.from_config(config)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                raise wanted.refused(error) from None
            module = module if self.dtype == "auto" else module.to(getattr(torch, self.dtype))
        if self.gguf_file is not None:
            # the weights are unpacked now: an ordinary model, which can be trained and saved as one
            module.hf_quantizer, module.is_quantized, module.quantization_method = None, False, None
            if hasattr(module.config, "quantization_config"):
                del module.config.quantization_config
        longest = getattr(module.config, "max_position_embeddings", None)
        if longest is not None:
            text.limit(longest, f"hf:{self.name}")
        self._checkpoint(module)
        if self.lora is not None:
            module = low_rank(module, self.lora, self.lora_alpha, task_type="CAUSAL_LM")
        return Built(module, labels=None, model=self, notes=self.notes)

    # --------------------------------------------------------------------------------------------------------- images
    def make(self, needs: Needs) -> nn.Module:
        """A network of images with so many outputs, or with those of its own head where that is kept."""
        transformers = transformers_library("a network of transformers")
        self._auto, suffix, what = PICTURES[needs.form]
        if self.gguf_file is not None:
            raise ConfigError(
                "gguf_file", "GGUF files hold language models", given=self.gguf_file, remedy="leave it out"
            )
        place = self._place()
        wanted = self._wanted(place, self._auto, what)
        about = adapter_in(place)
        try:
            with quiet():
                self._config = transformers.AutoConfig.from_pretrained(
                    place if about is None else base_of(place, about), **self._options()
                )
                if not self.pretrained or self.checkpoint is not None:
                    self._ready = self.checkpoint is not None
                    return self._fresh(needs)
                wanted.head = self._head(needs)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise wanted.refused(error) from None
        has_head = any(suffix in str(name) for name in self._config.architectures or ())
        given = self._given() or names_by_id(self._config.id2label)
        self.own = self._keeps([given] if given else [], self._task_labels) if has_head else None
        unnamed = has_head and given is None and self.head == "auto" and self._config.num_labels == needs.outputs
        self._ready = self.own is not None or unnamed
        if self._ready:
            wanted.head = ()
            return self._loaded(place, wanted)
        module = self._loaded(place, wanted, num_labels=needs.outputs)
        if has_head:
            for name, module_ in module.named_modules():  # of the same size, it would have been loaded
                if any(n.rpartition(".")[0] == name for n in wanted.head) and hasattr(module_, "reset_parameters"):
                    module_.reset_parameters()
        self._new_head(self._config.num_labels if has_head else 0, needs.outputs)
        return module

    def _fresh(self, needs: Needs) -> nn.Module:
        """The architecture, its weights drawn anew."""
        transformers = transformers_library("a classifier of transformers")
        config = type(self._config).from_dict({**self._config.to_dict(), "num_labels": needs.outputs, "id2label": None})
        made: nn.Module = getattr(transformers, self._auto).from_config(config)
        return made if self.dtype == "auto" else made.to(getattr(torch, self.dtype))

    def _head(self, needs: Needs) -> set[str]:
        """Names of the last layer: what changes its shape with the number of classes."""
        with torch.device("meta"), quiet():
            one, other = (self._fresh(needs.with_(outputs=needs.outputs + n)).state_dict() for n in (0, 1))
        return {k for k, v in one.items() if v.shape != other[k].shape}

    def contract(self, module: nn.Module, task: Task) -> Contract:
        """As the folder's image processor says; the training data's statistics where there is none."""
        contract = super().contract(module, task)
        said = self._processor()
        channels = getattr(self._config, "num_channels", None) or 3
        if said is not None:
            mean, std = said
            channels = max(channels, len(mean))
            contract = contract.with_(mean=mean, std=std)
        elif self.pretrained and self.mean is None:
            self.notes.append(
                "nothing beside it says how images are normalised: the training data's mean and std are taken"
            )
        if contract.mean and len(contract.mean) not in (1, channels):
            grey = sum(contract.mean) / len(contract.mean), sum(contract.std) / len(contract.std)
            contract = contract.with_(mean=(grey[0],) * channels, std=(grey[1],) * channels)
        return contract.with_(size=(self.size, self.size) if self.size else None, channels=channels)

    def _processor(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std of images in [0, 1], as the image processor normalises them."""
        transformers = transformers_library("a classifier of transformers")
        try:
            with quiet():
                said = transformers.AutoImageProcessor.from_pretrained(self._place(), **self._options()).to_dict()
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError):
            return None
        # 255 x factor (less 1 where it is shifted), then less the mean and over the deviation
        factor = 255.0 * float(said.get("rescale_factor") or 1 / 255) if said.get("do_rescale", True) else 255.0
        shift = 1.0 if said.get("rescale_offset") else 0.0
        normalised = said.get("do_normalize", True) and said.get("image_mean") and said.get("image_std")
        mean, std = (said["image_mean"], said["image_std"]) if normalised else ((0.0,), (1.0,))
        return tuple((float(m) + shift) / factor for m in mean), tuple(float(s) / factor for s in std)

    def opened(self, folder: Path, needs: Needs) -> nn.Module:
        """The student that a run left, by the library's own folder."""
        self.name, self.revision = str(folder), None
        transformers = transformers_library("a classifier of transformers")
        self._auto, _, what = PICTURES[needs.form]
        wanted = self._wanted(self._place(), self._auto, what)
        try:
            self._config = transformers.AutoConfig.from_pretrained(self._place(), **self._options())
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise wanted.refused(error) from None
        return self._loaded(self._place(), wanted)

    # ----------------------------------------------------------------------------------------------------------- saving
    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The folder ``student/`` as transformers lays it out; adapters are merged in, and in ``adapter/`` besides."""
        beside = self.tokenizer
        if self._config is not None:
            beside = self._as_processor()
        name_outputs(module.config, labels, self.target)
        save_pretrained(module, beside, Path(folder) / "student")
        if self.lora is not None:
            with atomic_folder(Path(folder) / "adapter") as place:
                module.save_pretrained(place)  # type: ignore[operator]

    def _as_processor(self) -> Any:
        """An image processor that does what the contract does."""
        transformers = transformers_library("a classifier of transformers")
        if not self._steps:  # opened from a run's folder, which has one already
            with quiet():
                return transformers.AutoImageProcessor.from_pretrained(self._place(), **self._options())
        channels, high, wide = self._steps["input"]
        mean, std = (list(v * channels if len(v) == 1 else v) for v in (self._steps["mean"], self._steps["std"]))
        usual = {"resample": 2, "do_normalize": bool(mean), "image_mean": mean or None, "image_std": std or None}
        if self._auto != PICTURES["classes"][0]:  # whose pipeline brings maps back to the image's own size
            return transformers.SegformerImageProcessor(size={"height": high, "width": wide}, **usual)
        if self._steps["resize_mode"] == "cover" and high == wide and channels == 3:
            size, crop = {"shortest_edge": high}, {"height": high, "width": wide}
            return transformers.BitImageProcessor(size=size, crop_size=crop, do_convert_rgb=True, **usual)
        return transformers.ViTImageProcessor(size={"height": high, "width": wide}, **usual)
