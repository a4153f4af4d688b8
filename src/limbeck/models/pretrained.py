"""transformers' folders and Hub ids: loaded strictly, adapters over their base, and saved as the library lays them out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt, ConfigError, LimbeckError, first_line, require
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.plain import read_json
from limbeck.storage.store import atomic_folder
from limbeck.storage.weights import misfit, same_memory, some
from limbeck.tasks.causal import needs_code, transformers_library


@dataclass
class Wanted:
    """What is to be loaded, and how messages call it.

    Attributes:
        name: as the user wrote it.
        place: the folder or Hub id that the library is given.
        what: in words, what it is to be loaded as.
        auto: the library's class that loads it.
        dtype: of the weights, or ``auto``.
        options: further arguments of ``from_pretrained``.
        entry, strip, role: see `limbeck.storage.foreign.find_weights`.
        head: names of the last layer, where a new one is put in place of what the file holds.
    """

    name: str
    place: str
    what: str
    auto: str
    dtype: Any
    options: dict[str, Any] = field(default_factory=dict)
    entry: str | None = None
    strip: str = ""
    role: str = ""
    head: Collection[str] = ()

    def load(self, **more: Any) -> tuple[nn.Module, list[str]]:
        """The network, with every one of its weights from the file (the new head aside), and what is to be told of it.

        Args:
            **more: settings of the configuration (``num_labels``).

        Raises:
            ConfigError: the library cannot load it.
            CheckpointCorrupt, ShapeError: weights are missing, unexpected or of another shape; all are named.
        """
        transformers = transformers_library("models of the Hugging Face Hub")
        auto = getattr(transformers, self.auto)
        module, info = self._call(auto, self.place, **self.options, **more)
        said: str = ""
        if self.entry is not None or self.strip or (info["missing_keys"] and info["unexpected_keys"]):
            # what a compiled, wrapped or averaged model was saved under, the library takes for other weights altogether
            found = find_weights(
                self._files(transformers), module.state_dict(), entry=self.entry, strip=self.strip, role=self.role
            )
            if found.said:
                module, info = self._call(type(module), None, config=module.config, state_dict=found.state)
                said = str(found)
        self._strictly(info, bool(more))
        notes = [said or f"loaded all {_count(module, self.head)} tensors of {self.name}"]
        if info["unexpected_keys"]:
            notes.append(
                f"left out, for the network has no place for them: {some(sorted(info['unexpected_keys']), 10)}"
            )
        return module, notes

    def _call(self, of: Any, place: str | None, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                made: tuple[nn.Module, dict[str, Any]] = of.from_pretrained(
                    place,
                    dtype=self.dtype if self.dtype == "auto" else getattr(torch, self.dtype),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are named below, with the others
                    **options,
                )
                return made
        except LimbeckError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise self.refused(error) from None

    def refused(self, error: Exception) -> ConfigError:
        """The error for what the library says of a name that it cannot load."""
        if "trust_remote_code" in str(error):
            return needs_code("name", self.name)
        return ConfigError(
            "name",
            f"transformers cannot load it as {self.what}: {first_line(error)}",
            given=self.name,
            remedy="give a Hub id or a folder with config.json; offline, the id must be in the local cache",
        )

    def _files(self, transformers: Any) -> Path:
        """The folder where the weights lie, that of the local cache for a Hub id."""
        if Path(self.place).exists():
            return Path(self.place)
        known = {k: v for k, v in self.options.items() if k == "revision"}
        return Path(transformers.utils.cached_file(self.place, "config.json", **known)).parent

    def _strictly(self, info: Mapping[str, Any], new_head: bool) -> None:
        missing = sorted(k for k in info["missing_keys"] if k not in self.head)
        shapes = sorted(
            f"{k} is {list(a)} and should be {list(b)}" for k, a, b in info["mismatched_keys"] if k not in self.head
        )
        # the body of a model is taken from files that hold other heads besides
        unexpected = [] if new_head else sorted(info["unexpected_keys"])
        if missing or unexpected or shapes:
            error = misfit(missing, unexpected, shapes, self.name, self.role)
            if unexpected and not missing and not shapes:
                error.remedy = (
                    "take the model that it was saved of, or leave them out on purpose: "
                    f"transformers.{self.auto}.from_pretrained({self.place!r}).save_pretrained(FOLDER)"
                )
            raise error


def _count(module: nn.Module, without: Collection[str]) -> int:
    """How many different tensors a state dict holds."""
    named = module.state_dict(keep_vars=True).items()
    state = {k: v for k, v in named if isinstance(v, Tensor) and k not in without}
    return len({same_memory(v.detach()) or k for k, v in state.items()})


# ------------------------------------------------------------------------------------------------------------- adapters
def adapter_in(place: str) -> dict[str, Any] | None:
    """The settings of an adapter that a folder holds in place of a model; ``None`` where it holds none.

    Raises:
        CheckpointCorrupt: they cannot be read.
    """
    path = Path(place) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointCorrupt(str(path), f"cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointCorrupt(str(path), "is no description of an adapter")
    return found


def base_of(place: str, about: Mapping[str, Any]) -> str:
    """The model that an adapter was trained on: as it is named, or beside the adapter's folder.

    Raises:
        ConfigError: it names none, or a folder that is not there.
    """
    base = str(about.get("base_model_name_or_path") or "")
    beside = [expanded(base), Path(place).parent / base, Path(place).parent / Path(base).name]
    found = next((p for p in beside if base and (p / "config.json").is_file()), None)
    if found is not None:
        return str(found)
    if not base or base.startswith((".", "/", "~")) or base.count("/") > 1 or "\\" in base:
        raise ConfigError(
            "name",
            f"it is an adapter, and the model that it was trained on is not there ({base or 'none is named'})",
            given=place,
            remedy=f"put that model's folder at {base}"
            if base
            else "merge it where that model is, and name the result",
        )
    return base


def adapter_alone(place: str, about: Mapping[str, Any], base: str, role: str) -> ConfigError:
    """The error for an adapter that is to be trained as if it were a model."""
    rank = f" of rank {about['r']}" if about.get("r") else ""
    return ConfigError(
        role,
        f"{place} is an adapter alone ({about.get('peft_type', 'of peft')}{rank} over {base}), and no model to train",
        remedy=f"train its base with new adapters ({role}=hf:{base} {role}.lora={about.get('r') or 8}), or merge it first: "
        f'python -c "from peft import AutoPeftModelForCausalLM as A; '
        f"A.from_pretrained({place!r}).merge_and_unload().save_pretrained('MERGED')\" "
        f"and {role}=hf:MERGED task.tokenizer={place}",
    )


def with_adapter(module: nn.Module, place: str, role: str) -> nn.Module:
    """A model with an adapter's weights merged into its own, all of them found.

    Raises:
        CheckpointCorrupt, ShapeError: weights of the adapter are missing, unexpected or of another shape.
    """
    peft = require("peft", "language", "an adapter")
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is compared below
            adapted = peft.PeftModel.from_pretrained(module, place)
            given, own = peft.load_peft_weights(place, device="cpu"), peft.get_peft_model_state_dict(adapted)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointCorrupt(place, f"peft cannot load the adapter: {first_line(error)}") from None
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [
        f"{k} is {list(given[k].shape)} and should be {list(v.shape)}"
        for k, v in own.items()
        if k in given and given[k].shape != v.shape
    ]
    if missing or unexpected or shapes:
        raise misfit(missing, unexpected, shapes, place, role)
    merged: nn.Module = adapted.merge_and_unload()
    return merged.requires_grad_(True)


def low_rank(module: nn.Module, rank: int, alpha: float | None, **more: Any) -> nn.Module:
    """A model whose linear layers carry adapters to be trained in place of its weights."""
    peft = require("peft", "language", "low-rank adapters")
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules="all-linear", **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words that grow old
        try:
            adapted: nn.Module = peft.get_peft_model(module, settings)
        except ValueError as error:
            raise ConfigError("lora", f"peft cannot adapt it: {first_line(error)}", given=rank) from None
    return adapted


# --------------------------------------------------------------------------------------------------------------- saving
def save_pretrained(module: nn.Module, beside: Any, folder: Path) -> None:
    """A transformers model, and its tokenizer or image processor, as one folder: complete or not there at all."""
    merge = getattr(module, "merge_and_unload", None)
    if callable(merge):
        module = copy.deepcopy(module).merge_and_unload()  # type: ignore[operator]
    with atomic_folder(folder) as place, quiet():
        module.save_pretrained(place)  # type: ignore[operator]
        if beside is not None:
            beside.save_pretrained(place)


def name_outputs(config: Any, labels: list[str] | None, target: str) -> None:
    """Write the names of a classifier's outputs and their meaning into its configuration, where pipelines look for them."""
    if labels:
        config.id2label, config.label2id = dict(enumerate(labels)), {n: i for i, n in enumerate(labels)}
    kinds = {"label": "single_label_classification", "labels": "multi_label_classification", "number": "regression"}
    if labels and target in kinds:
        config.problem_type = kinds[target]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own progress bars and reports: ours are those that are shown."""
    logging = transformers_library("models of the Hugging Face Hub").utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


__all__ = [
    "Wanted",
    "adapter_alone",
    "adapter_in",
    "base_of",
    "low_rank",
    "name_outputs",
    "quiet",
    "save_pretrained",
    "some",
    "with_adapter",
]
