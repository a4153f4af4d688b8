"""An encoder of code with several exits, from scratch, from StarCoder 2's weights, or cut from an earlier run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt, ConfigError
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, Positive, Share, settings
from limbeck.grammar.task import Check, Depth, Model, Task
from limbeck.models.forms import meet
from limbeck.networks.multi_exit import CodeEncoder, MultiExit, Normalise
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.store import save_state_dict
from limbeck.storage.weights import load_strict
from limbeck.tasks.tokenizers import pad_id

NAMES = {"model": {"exit-encoder": "ExitEncoder"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

FRACTIONS = (1 / 9, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Where exits lie by default, as shares of the depth: 4, 9, 18, 27, 36 of 36."""


@settings
class ExitEncoder(Model):
    """A bidirectional encoder of StarCoder 2's blocks with several exits (ModularStarEncoder). It answers a text with a vector.

    Args:
        layers: number of blocks.
        width: size of the hidden states and of embeddings, a multiple of ``2 * heads``.
        heads: attention heads.
        kv_heads: of keys and values (grouped-query attention), a divisor of ``heads``; ``null``: a quarter of them.
        mlp: size of the inner layer; ``null`` for four times the width.
        exits: layers behind which exits lie, counted from 1, ascending; ``null``: at 1/9, 1/4, 1/2, 3/4 and all of the depth.
        heads_shared: one projection for all exits, in place of one each.
        pooling: ``last``: the last real token, which closes every sentence; ``mean``: all real tokens.
        normalise: embeddings of length one (``unit``), or of length at most one (``at_least_one``: divided by max(1, length)).
        theta: base of RoPE's frequencies.
        dropout: while training.
        final_norm: the last block's output is normed; off in a network that was cut behind an earlier exit.
        weights: to begin with: a file or folder of StarCoder 2 in transformers' names (the first ``layers`` of it), or a run's.
        checkpoint: all weights, heads too; those of a run with more layers or exits are cut.
        check: has no effect: there are no labels to try it on.
    """

    paths: ClassVar[tuple[str, ...]] = ("checkpoint", "weights")
    forms = ("vector",)
    takes = ("tokens",)
    own_text = True  # opened with its tokenizer from a run, though transformers does not know it

    layers: Depth = 4
    width: Count = 64
    heads: Count = 4
    kv_heads: Count | None = None
    mlp: Count | None = None
    exits: list[int] | None = None
    heads_shared: bool = False
    pooling: Literal["last", "mean"] = "last"
    normalise: Normalise = "unit"
    theta: Positive = 1e6
    dropout: Share = 0.1
    final_norm: bool = True
    weights: str | None = None
    checkpoint: str | None = None
    check: Check = "on"

    def validate(self) -> None:
        """Heads divide, exits lie within the depth."""
        self.kv = self.kv_heads or max(1, self.heads // 4)
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of twice the heads: {self.width} over 2 x {self.heads} does not go"
            )
        if self.heads % self.kv:
            raise ValueError(f"kv_heads must divide heads: {self.kv} does not divide {self.heads}")
        at = self.exits
        if at is None:
            at = sorted({max(1, round(self.layers * share)) for share in FRACTIONS})
        if not at or sorted(set(at)) != at or at[0] < 1 or at[-1] > self.layers:
            raise ValueError(f"exits must be layers from 1 to {self.layers}, ascending, each once")
        self.at = at

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokenizer: Any = None

    def make(self, needs: Needs) -> MultiExit:
        """The network, for the vocabulary of a task's tokenizer."""
        text = needs.tokens
        assert text is not None
        self.tokenizer = text.tokenizer
        encoder = CodeEncoder(
            text.vocabulary,
            self.width,
            self.layers,
            self.heads,
            self.kv,
            self.mlp or 4 * self.width,
            theta=self.theta,
            dropout=self.dropout,
            normed=self.final_norm,
            pad=pad_id(self.tokenizer),
        )
        return MultiExit(encoder, self.at, self.pooling, self.normalise, self.heads_shared)

    def build(self, task: Task) -> Built:
        """The network with its weights.

        Raises:
            ConfigError: the task needs no vectors of texts.
            CheckpointCorrupt, ShapeError: weights of another shape.
        """
        needs = meet(self, task)
        task.load()
        module, notes = self.make(needs), list[str]()
        if self.weights is not None:
            notes.append(self._begin(module.encoder, self.weights))
        if self.checkpoint is not None:
            path = self._file(self.checkpoint)
            found = find_weights(path, role=self.role)
            own = module.state_dict()
            load_strict(module, {k: v for k, v in found.state.items() if k in own}, str(path), self.role)
            left = len(found.state) - len(own)
            notes.append(f"{found}" + (f"; {left} tensors behind its last exit left out" if left else ""))
        return Built(module, Contract(), None, self, notes)

    def _file(self, name: str) -> Path:
        path = expanded(name)
        return path / "student.safetensors" if (path / "student.safetensors").is_file() else path

    def _begin(self, encoder: CodeEncoder, name: str) -> str:
        """Weights of an encoder of the same width; layers beyond its depth are left out."""
        state = find_weights(self._file(name), role=self.role).state
        prefix = next(
            (p for p in ("", "model.", "encoder.", "model.encoder.") if f"{p}embed_tokens.weight" in state), None
        )
        if prefix is None:
            raise CheckpointCorrupt(
                name, "holds no encoder", expected="names as in Starcoder2Model: embed_tokens.weight"
            )
        own = encoder.state_dict()
        given = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        rows, wanted = len(given["embed_tokens.weight"]), len(own["embed_tokens.weight"])
        if rows != wanted:
            raise ConfigError(
                self.setting("weights"),
                f"they know {rows} token ids, and the task's tokenizer {wanted}",
                given=name,
                remedy="name the tokenizer that they were made with: task.tokenizer=FOLDER",
            )
        load_strict(encoder, {k: v for k, v in given.items() if k in own}, name, self.role)
        return f"began with {sum(k in own for k in given)} of the {len(given)} tensors of {name}"

    def cut(self, exit: int) -> ExitEncoder:
        """The model of a network that was cut behind an exit (`MultiExit.cut`)."""
        return ExitEncoder(
            layers=exit,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv,
            mlp=self.mlp or 4 * self.width,
            exits=[exit],
            heads_shared=self.heads_shared,
            pooling=self.pooling,
            normalise=self.normalise,
            theta=self.theta,
            dropout=self.dropout,
            final_norm=self.final_norm and exit == self.layers,
        ).with_tokenizer(self.tokenizer)

    def with_tokenizer(self, tokenizer: Any) -> ExitEncoder:
        """The same, with the tokenizer that is saved beside it."""
        self.tokenizer = tokenizer
        return self

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """``student.safetensors``, and the tokenizer in ``tokenizer/``."""
        state: dict[str, Tensor] = module.state_dict()
        save_state_dict(Path(folder) / "student.safetensors", {k: torch.clone(v) for k, v in state.items()})
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(Path(folder) / "tokenizer"))
