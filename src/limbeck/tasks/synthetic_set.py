"""A synthetic data set as files: written, read back, and evaluated as it lies there."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.data.items import digest
from limbeck.engine.inner import Loss, fit
from limbeck.errors import ConfigError, require
from limbeck.functional.zca import ZCA
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Batch, Built, Context, Query
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Contract
from limbeck.objectives.queries import Augment, soft
from limbeck.storage.store import atomic_write, safe_name
from limbeck.storage.weights import load_state_dict, save_state_dict

if TYPE_CHECKING:
    from limbeck.tasks.condensation import Condensation

LEVEL = 1 / 255
"""A step of an 8-bit pixel. What lies outside of the range by less than half of it is rounded, not cut off."""


class Space:
    """How pixels in [0, 1] become what networks see, and back.

    Args:
        mean, std: per channel.
        whitening: a fitted ZCA transform, instead of them.
    """

    def __init__(self, mean: Sequence[float] = (), std: Sequence[float] = (), whitening: ZCA | None = None) -> None:
        self.mean, self.std, self.whitening = tuple(mean), tuple(std), whitening

    def contract(self) -> Contract:
        """The same as an input contract for real items."""
        if self.whitening is not None:
            return Contract(transform=self.whitening.apply)
        return Contract(mean=self.mean, std=self.std)

    def enter(self, x: Tensor) -> Tensor:
        """Pixels [N, C, H, W] in [0, 1] into the space."""
        return self.contract().inputs(x)

    def pixels(self, x: Tensor) -> Tensor:
        """Back to pixels, which need not lie in [0, 1]."""
        if self.whitening is not None:
            return self.whitening.invert(x)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return x * std + mean

    def limits(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """What black and white are in the space, for each channel [1, C, 1, 1] (not of a whitened one)."""
        mean, std = (torch.tensor(v, dtype=dtype, device=device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return -mean / std, (1 - mean) / std

    def leave(self, x: Tensor) -> Tensor:
        """Back to pixels, clipped to [0, 1]."""
        return self.pixels(x).clamp(0, 1)


class Enter(Query):
    """Real items into the synthetic space, for networks that are trained beside the set: experts, teachers.

    Args:
        task: whose space it is.
    """

    def __init__(self, task: Condensation) -> None:
        self.task = task

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with its pixels in the space."""
        return {**batch, "x": self.task.space.enter(batch["x"])}


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
        labels: class ids [M], or soft labels [M, C]; of any other shape where ``loss`` or ``queries`` know what they are.
        ids: class ids [M].
        lr: the learned step size, or ``None``.
        networks, scope: see `limbeck.evaluators.fresh.Trains`.
        loss: (network, batch, context) -> per-item values: how networks learn from it; by default cross-entropy with the
            labels.
        queries: what changes its batches while they learn (crops, mixtures; keyed by item and view); ``None`` takes the
            task's differentiable augmentation.
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
        loss: Loss | None = None,
        queries: Sequence[Query] | None = None,
    ) -> None:
        self.task, self.lr, self.networks, self.scope = task, lr, networks, scope
        augment = [Augment(task.strategy, task.align_corners)] if task.strategy else []
        self.loss, self.queries = loss or _cross_entropy, augment if queries is None else list(queries)
        self.images, self.labels, self.ids = images.detach().cpu(), labels.detach().cpu(), ids.cpu()

    def state(self) -> dict[str, Any]:
        """Images, labels, class ids and the step size."""
        step = {} if self.lr is None else {"step_size": torch.tensor(self.lr)}
        return {"images": self.images, "labels": self.labels, "ids": self.ids, **step}

    def take(self, state: Mapping[str, Any], where: str = "best") -> None:
        """Images, labels and the step size."""
        super().take(state, where)
        if "step_size" in state:
            self.lr = float(state["step_size"])

    def train(
        self,
        module: nn.Module,
        optim: Optim,
        seed: int,
        scope: str,
        device: torch.device,
        queries: Sequence[Query] = (),
    ) -> Built:
        """A network trained on the set as it asks for; ``scope`` keys the draws, ``queries`` come after its own."""
        labels = soft(self.labels, self.task.outputs) if queries and self.labels.ndim == 1 else self.labels
        data = SetData(self.images, labels)
        optim = optim.with_(batch_size=min(optim.batch_size, len(data)))
        all_queries = [*self.queries, *queries]
        net = fit(module, data, self.loss, optim, seed=seed, scope=scope, device=device, queries=all_queries)
        return Built(net, self.task.space.contract(), self.task.labels)

    def save(self, folder: Path) -> None:
        """``student.safetensors`` (images, labels, ids, step size) and ``student.json`` (names, space)."""
        self.export("safetensors", folder)

    def export(self, form: str, folder: Path) -> list[Path]:
        """Write the set: ``safetensors``, which holds every value as it is; ``images``, a folder of PNG files per class; or
        ``parquet`` (PNG bytes, label, soft label), as image data sets lie on the Hugging Face hub.

        ``student.json`` lies beside each: class names, items per class, the space networks see, the learned step size,
        and how much of the pixels 8 bits could not hold; beside ``images`` also each file's class and soft label, which
        folders cannot hold. Of a whitened set the transform lies beside too (``zca.safetensors``).

        Raises:
            ConfigError: an unknown format.
            MissingExtra: pyarrow is not installed.
        """
        if form not in self.formats:
            raise ConfigError.unknown("format", form, self.formats, "format of a data set")
        channels = self.images.shape[1]
        if form != "safetensors" and channels not in (1, 3, 4):
            raise ConfigError(
                "--format",
                f"PNG files hold images of 1, 3 or 4 channels, and these have {channels}",
                given=form,
                expected="safetensors, which holds any",
            )
        folder.mkdir(parents=True, exist_ok=True)
        space = self.task.space
        about = {
            "kind": self.kind,
            "labels": self.task.labels or [],
            "per_class": self.task.per_class,
            "step_size": self.lr,
            "space": {"mean": list(space.mean), "std": list(space.std), "zca": self.task.zca},
        }
        written: list[Path] = []
        if space.whitening is not None:
            zca = space.whitening
            save_state_dict(
                folder / "zca.safetensors", {"mean": zca.mean, "matrix": zca.matrix, "inverse": zca.inverse}
            )
            written.append(folder / "zca.safetensors")
        if form == "safetensors":
            save_state_dict(folder / "student.safetensors", self.state())
            return [*written, folder / "student.safetensors", _write_about(folder, about)]
        # what is in the files is no longer in the space: without this nobody could bring it back there
        about["pixels"] = {"bits": 8, "range": [0, 1], **self.cut_off()}
        png = [_png(x) for x in space.leave(self.images)]
        if form == "images":
            return [*written, *self._write_images(folder, png, about)]
        return [*written, *self._write_parquet(folder, png, about)]

    def cut_off(self) -> dict[str, float]:
        """What pixels in [0, 1] cannot hold: the share of values outside, ``clipped``, and how far out, ``beyond``."""
        over = (self.task.space.pixels(self.images) - 0.5).abs() - 0.5
        return {"clipped": float((over > LEVEL / 2).float().mean()), "beyond": max(0.0, float(over.max()))}

    def _write_images(self, folder: Path, png: list[bytes], about: dict[str, Any]) -> list[Path]:
        names = [safe_name(name) for name in self.task.labels or []]
        soft = self.labels.tolist() if self.labels.is_floating_point() else None
        written: list[Path] = []
        files: dict[str, dict[str, Any]] = {}
        for i, (data, c) in enumerate(zip(png, self.ids.tolist(), strict=True)):
            path = folder / names[c] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
            written.append(path)
            files[path.relative_to(folder).as_posix()] = {"label": c} | ({"soft_label": soft[i]} if soft else {})
        # readers of folders number classes by the folders' names in order, which need not be the order of the labels
        return [*written, _write_about(folder, {**about, "folders": names, "files": files})]

    def _write_parquet(self, folder: Path, png: list[bytes], about: dict[str, Any]) -> list[Path]:
        pa = require("pyarrow", "language", "writing parquet")
        pq = require("pyarrow.parquet", "language", "writing parquet")
        columns: dict[str, Any] = {
            "image": pa.array([{"bytes": d, "path": f"{i:05d}.png"} for i, d in enumerate(png)]),
            "label": pa.array(self.ids.tolist(), pa.int64()),
        }
        # as the datasets library notes what a column is; limbeck reads it too
        features: dict[str, Any] = {
            "image": {"_type": "Image"},
            "label": {"names": list(self.task.labels or []), "_type": "ClassLabel"},
        }
        if self.labels.is_floating_point():
            columns["soft_label"] = pa.array(self.labels.tolist(), pa.list_(pa.float32()))
            features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
        noted = {"limbeck": json.dumps(about), "huggingface": json.dumps({"info": {"features": features}})}
        table = pa.table(columns).replace_schema_metadata(noted)
        atomic_write(folder / "data.parquet", lambda f: pq.write_table(table, f))
        return [folder / "data.parquet", _write_about(folder, about)]

    def opened(self, form: str, folder: Path) -> SetArtifact:
        """An exported set read back as whoever finds it would read it, with what lies beside it."""
        about = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        if form == "safetensors":
            tensors = load_state_dict(folder / "student.safetensors")
            return SetArtifact(self.task, tensors["images"], tensors["labels"], tensors["ids"], about["step_size"])
        if form == "images":
            named: list[tuple[Any, Mapping[str, Any]]] = [(folder / n, f) for n, f in about["files"].items()]
        else:
            rows = require("pyarrow.parquet", "language", "reading parquet").read_table(folder / "data.parquet")
            named = [(io.BytesIO(row["image"]["bytes"]), row) for row in rows.to_pylist()]
        pixels = torch.stack([_pixels(file) for file, _ in named])
        ids = torch.tensor([facts["label"] for _, facts in named])
        soft = all("soft_label" in facts for _, facts in named)
        labels = torch.tensor([facts["soft_label"] for _, facts in named]) if soft else ids
        return SetArtifact(self.task, self.task.space.enter(pixels), labels, ids, about["step_size"])

    def lost(self, form: str) -> dict[str, Any]:
        """How much of the pixels images of 8 bits cannot hold."""
        found = {} if form == "safetensors" else self.cut_off()
        if not found.get("clipped"):
            return found
        share, beyond = 100 * found["clipped"], found["beyond"]
        note = (
            f"{share:.0f} % of the pixel values lie outside of what images of 8 bits hold, by up to {beyond:.3g} times "
            "their range, and were clipped: --format safetensors holds every value"
        )
        return {**found, "note": note}

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


def _cross_entropy(net: nn.Module, batch: Batch, ctx: Context) -> Tensor:
    return F.cross_entropy(net(batch["x"]), batch["y"])


def _write_about(folder: Path, about: dict[str, Any]) -> Path:
    atomic_write(folder / "student.json", json.dumps(about, indent=2).encode())
    return folder / "student.json"


def _png(x: Tensor) -> bytes:
    from PIL import Image

    pixels = (255 * x).round().to(torch.uint8)
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(file: Any) -> Tensor:
    """A image file as [C, H, W] in [0, 1]."""
    from PIL import Image

    with Image.open(file) as picture:
        array = np.array(picture)
    x = torch.from_numpy(array).float() / 255
    return x[None] if x.ndim == 2 else x.permute(2, 0, 1)


__all__ = ["Enter", "SetArtifact", "SetData", "Space"]
