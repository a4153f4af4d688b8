"""Prompts alone: what a text-to-image model is asked for, as embeddings of a text encoder; no image is read.

A denoiser is given the embeddings [N, L, D] in the place of classes, and that of the empty prompt [L, D] in the place of the
null condition. Embeddings are computed once: from a text file by a pipeline's own encoder, or before, into one array.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ConfigError, DataError
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import Signal
from limbeck.networks.prompt_encoder import encode_prompts
from limbeck.storage.disk import expanded
from limbeck.storage.memory import need
from limbeck.storage.weights import fingerprint
from limbeck.tasks.generation import Generation
from limbeck.tasks.schedules import make_schedule

NAMES = {"task": {"prompts": "Prompts"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@dataclass(frozen=True)
class PromptItems:
    """Some of an array of embeddings.

    Attributes:
        array: [K, L, D], in memory or mapped from a file.
        ids: which of its rows, int64 [n].
        shape: of one sample that is asked for.
    """

    array: Any
    ids: Tensor
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, items: Tensor) -> Batch:
        """``y`` [n, L, D], float32."""
        return {"y": torch.from_numpy(np.asarray(self.array[self.ids[items].numpy()], dtype=np.float32))}

    @property
    def fingerprint(self) -> str:
        """Of the array's shape and up to 64 of its rows, evenly spaced: an array may be larger than memory."""
        spaced = torch.linspace(0, len(self) - 1, min(64, len(self))).long()
        return fingerprint([torch.tensor([*self.array.shape, len(self)]), self.fetch(spaced)["y"]])


class Prompts(Generation):
    """Samples for prompts, by a text-to-image denoiser whose teacher comes ready; no images are read.

    Args:
        path: a text file with a prompt a line, or embeddings of prompts: a ``.npy`` array [K, L, D].
        null: of embeddings: a ``.npy`` array [L, D], that of the empty prompt.
        encoder: of a text file: the folder of a pipeline with ``tokenizer`` and ``text_encoder`` in it.
        shape: of one sample: channels, height, width.
        latent: samples are latents of an autoencoder, of any value; off for images in [-1, 1].
        schedule, zero_terminal_snr: see `generation`.
        valid_fraction, test_fraction: shares of the prompts set aside for choosing and evaluation.
        eval_batch: samples at a time in evaluation.
    """

    def __init__(
        self,
        path: str,
        null: str | None = None,
        encoder: str | None = None,
        shape: list[int] = [4, 64, 64],  # noqa: B006 (copied, never changed)
        latent: bool = True,
        schedule: str = "scaled-linear",
        zero_terminal_snr: bool = False,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.1,
        eval_batch: int = 16,
    ) -> None:
        super().__init__(
            schedule=schedule,
            zero_terminal_snr=zero_terminal_snr,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            eval_batch=eval_batch,
        )
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError("shape must be [channels, height, width]")
        self.path, self.null, self.encoder, self.sample_shape = path, null, encoder, tuple(shape)
        self.latent, self.bounded = latent, not latent
        self._null: Tensor | None = None

    # -- data ---------------------------------------------------------------------------------------------------------

    def load(self, seed: int | None = None) -> None:
        """Read the embeddings, or have them made.

        Raises:
            DataError: no prompts, or arrays that are none or do not fit each other. ConfigError: nothing to encode them.
        """
        if self._null is not None:
            return
        path = expanded(self.path)
        if not path.is_file():
            raise DataError("task.path", "there is no such file", given=self.path)
        array, null = self._arrays(path) if path.suffix == ".npy" else self._encoded(path)
        count = len(array)
        if count < 3:
            raise DataError(
                "task.path", "too few prompts to train, choose and evaluate", given=count, expected="3 or more"
            )
        if null.shape != array.shape[1:]:
            said = "embeddings of the empty prompt and of prompts differ: are they of the same text encoder?"
            raise DataError("task.null", said, given=list(null.shape), expected=f"{list(array.shape[1:])}")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        test, valid = (max(1, round(f * count)) for f in (self.test_fraction, self.valid_fraction))
        parts = order.split([test, valid, count - test - valid])
        self.test, self.valid, self.train = (  # type: ignore[assignment]
            PromptItems(array, ids, self.sample_shape) for ids in parts
        )
        self.teacher_train = self.train
        self.notes = [
            f"{count:,} prompts as embeddings {list(array.shape[1:])}: {len(self.train)} ask the student, "
            f"{valid} choose, {test} evaluate; no image is read"
        ]
        self._schedule = make_schedule(self.schedule_name, self.zero_terminal_snr)
        self._null = null

    def _arrays(self, path: Path) -> tuple[Any, Tensor]:
        found = []
        if self.null is None:
            raise ConfigError(
                "task.null", "embeddings of prompts need that of the empty prompt", expected="a .npy file"
            )
        for name, place, dims in (("task.path", path, 3), ("task.null", expanded(self.null), 2)):
            try:
                array = np.load(place, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(name, f"{place} cannot be read as an array: {error}") from None
            if array.ndim != dims or array.dtype.kind != "f":
                words = "[prompts, tokens, width]" if dims == 3 else "[tokens, width]"
                raise DataError(name, given=f"{array.dtype} {list(array.shape)}", expected=f"numbers {words}")
            found.append(array)
        return found[0], torch.from_numpy(np.array(found[1], dtype=np.float32))

    def _encoded(self, path: Path) -> tuple[Any, Tensor]:
        try:
            texts = [t for t in path.read_text(encoding="utf-8").splitlines() if t.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError("task.path", f"{path} cannot be read as text: {error}") from None
        if not texts:
            raise DataError("task.path", "there are no prompts in it", given=self.path, expected="a prompt a line")
        where = expanded(self.encoder) if self.encoder else None
        if where is None or not all((where / sub).is_dir() for sub in ("tokenizer", "text_encoder")):
            raise ConfigError(
                "task.encoder",
                "prompts are read by a text encoder",
                given=self.encoder,
                expected="the folder of a pipeline with tokenizer/ and text_encoder/",
            )
        null = encode_prompts(where, [""])[0]
        need(4 * null.numel() * len(texts), "task.path", f"embeddings of {len(texts):,} prompts", "make a .npy of them")
        rows = [encode_prompts(where, texts[i : i + 64]) for i in range(0, len(texts), 64)]
        return torch.cat(rows).numpy(), null

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.sample_shape

    @property
    def outputs(self) -> int:
        """No classes."""
        return 0

    @property
    def null_prompt(self) -> Tensor:
        """Embedding of the empty prompt [L, D]."""
        self.load()
        assert self._null is not None
        return self._null

    @property
    def needs(self) -> Needs:
        """A denoiser that is told embeddings."""
        return Needs(self.shape, 0, "denoiser", target="prompt", schedule=self.schedule, null=self.null_prompt)

    @property
    def conditions(self) -> Data:
        """The embeddings."""
        self.load()
        return self.train

    def signed(self, x: Tensor) -> Tensor:
        """Latents as they are."""
        return x if self.latent else super().signed(x)

    def example(self, n: int = 2) -> Batch:
        """A few prompts, and noise."""
        self.load()
        ids = torch.arange(min(n, len(self.train)))
        z = Draws(0, ("example",)).randn("z", ids, self.shape)
        logsnr = self.schedule.logsnr(torch.full((len(ids),), 0.5)).float()
        zero = torch.zeros(len(ids))
        more = {"item": ids, "view": torch.zeros_like(ids), "x": z, "z": z, "logsnr": logsnr, "w": zero}
        return {**self.train.fetch(ids), **more}

    def describe(self) -> dict[str, Any]:
        """See `Generation.describe`."""
        return {**super().describe(), "range": None if self.latent else [-1.0, 1.0]}

    # -- nothing to be learnt or evaluated without images ----------------------------------------------------------------

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Prompts are no examples.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "teacher",
            "prompts alone teach no teacher: it must come with trained weights",
            remedy="name a folder with them: teacher={use: diffusers, name: FOLDER, architecture: UNet2DConditionModel}",
        )

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> dict[str, float]:
        """Nothing: a denoising loss needs images."""
        return {}

    def check_teacher(self, teacher: Built, device: torch.device | None = None) -> None:
        """Refuse one without weights.

        Raises:
            ConfigError: it has none.
        """
        if teacher.model is not None and not teacher.model.trained:
            self.supervised(Signal(None), {})

    def default_student(self) -> dict[str, Any]:
        """A network that takes embeddings."""
        return {"use": "diffusers", "architecture": "UNet2DConditionModel", "guidance": "none"}

    def default_teacher(self) -> dict[str, Any]:
        """The same."""
        return self.default_student()

    def default_evaluator(self) -> dict[str, Any]:
        """Samplers, held against the teacher's own samples."""
        return {"use": "prompted"}


__all__ = ["PromptItems", "Prompts"]
