"""A decoder whose layers differ: what a search over blocks leaves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from limbeck.grammar.method import Built
from limbeck.grammar.settings import settings
from limbeck.grammar.task import Model, Task
from limbeck.models.forms import meet
from limbeck.models.pretrained import save_pretrained
from limbeck.networks.decoder_blocks import KINDS, Variant, assemble, padded, per_layer_config
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.store import atomic_write
from limbeck.storage.weights import load_strict, save_state_dict

NAMES = {"model": {"block-lm": "BlockLm"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class BlockLm(Model):
    """A decoder made as another one, with blocks of other sizes in its layers.

    Args:
        base: the decoder that it is made from.
        layers: of each layer ``{attention: KV heads, ffn: channels}``, either of them ``linear`` or ``none``.
        checkpoint: the weights, strictly: a run's folder, or a file of safetensors.
        entry: the entry of a training checkpoint that holds them.
        strip: a prefix to take off the names of the weights.
    """

    forms = ("tokens",)

    base: Model
    layers: list[dict[str, int | str]]
    checkpoint: str | None = None
    entry: str | None = None
    strip: str = ""

    def validate(self) -> None:
        """Every layer says both."""
        for i, layer in enumerate(self.layers):
            odd = set(layer) ^ set(KINDS) or {
                v for v in layer.values() if isinstance(v, str) and v not in ("linear", "none")
            }
            if odd:
                raise ValueError(
                    f"layers must give attention and ffn of each layer, a number, linear or none; layer {i} has {layer}"
                )

    @property
    def tokenizer(self) -> Any:
        """The base's."""
        return getattr(self.base, "tokenizer", None)

    @property
    def spec(self) -> list[dict[str, Variant]]:
        """The layers, typed."""
        return cast("list[dict[str, Variant]]", self.layers)

    def build(self, task: Task) -> Built:
        """The network; without a checkpoint blocks of the base's size have its weights, and others new ones."""
        meet(self, task)
        self.base.role = self.role
        built = self.base.build(task)
        assemble(built.module, self.spec)
        notes = list(built.notes)
        if self.checkpoint is not None:
            path = expanded(self.checkpoint)
            if (path / "layers/model.safetensors").is_file():
                path = path / "layers/model.safetensors"
            elif path.is_dir():
                path = path / "student.safetensors"
            found = find_weights(path, built.module.state_dict(), entry=self.entry, strip=self.strip, role=self.role)
            load_strict(built.module, found.state, str(path), self.role)
            notes.append(str(found))
        return Built(built.module, labels=None, model=self, notes=notes)

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """``student/``, an ordinary folder of transformers of the same function, its layers as large as the largest; and
        ``layers/``, the true sizes by transformers' per-layer configuration.

        Linear blocks can be written as neither: then there are ``student.safetensors`` and ``student.json`` alone.
        """
        place = Path(folder)
        # tied weights are one tensor, and a file holds each by its own name
        state = {k: v.detach().clone() for k, v in module.state_dict().items()}
        told = per_layer_config(module.config, self.spec)
        if told is None:
            save_state_dict(place / "student.safetensors", state)
            return
        save_pretrained(padded(module, self.spec), self.tokenizer, place / "student")
        (place / "layers").mkdir(exist_ok=True)
        config: Any = module.config
        about = {**config.to_dict(), "architectures": [type(module).__name__], "per_layer_config": told}
        atomic_write(place / "layers/config.json", json.dumps(about, indent=2, default=str).encode())
        save_state_dict(place / "layers/model.safetensors", state)


def reads_layers(module: Any, spec: list[dict[str, Variant]]) -> bool | None:
    """Whether the transformers that is installed builds such layers from its per-layer configuration; ``None``: it cannot be said so."""
    told = per_layer_config(module.config, spec)
    if told is None:
        return None
    try:
        config = copy.deepcopy(module.config)
        config.per_layer_config = told
        with torch.device("meta"):
            made = type(module)(config)
    except Exception:  # it refuses in words and types of its own
        return False
    shapes = {k: v.shape for k, v in made.state_dict().items()}
    return shapes == {k: v.shape for k, v in module.state_dict().items()}


__all__ = ["BlockLm", "reads_layers"]
