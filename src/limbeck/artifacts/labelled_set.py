"""A synthetic set whose soft labels belong to views: every crop, flip and mix that a network is shown has its own answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.errors import ConfigError
from limbeck.functional.packing import Form, unpack_logits
from limbeck.functional.views import TRIES, crop_boxes, crop_each, cutmix_boxes, paste
from limbeck.grammar.method import Batch, Built, Context, Query
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.storage.store import atomic_write
from limbeck.storage.weights import load_state_dict, save_state_dict
from limbeck.tasks.synthetic_set import SetArtifact

if TYPE_CHECKING:
    from limbeck.tasks.condensation import Condensation

Mix = Literal["cutmix", "mixup", "none"]


@dataclass
class Views:
    """What is shown of each of M images in each of E epochs. An image is mixed with another one's view of that epoch.

    Attributes:
        boxes: crops (top, left, height, width), int16 [E, M, 4].
        flips: whether mirrored, bool [E, M].
        partner: with which image it is mixed, int32 [E, M]; its own number for none.
        pasted: of cut-mix: (first row, first column, last row, last column), int16 [E, M, 4]; empty for none.
        share: of mixup: how much of the image stays, float32 [E, M]; empty for none.
    """

    boxes: Tensor
    flips: Tensor
    partner: Tensor
    pasted: Tensor
    share: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Those that are not empty, by name."""
        return {k: v for k, v in vars(self).items() if v.numel()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Views:
        """From what `tensors` gave."""
        none = torch.zeros(0)
        return cls(*(tensors.get(n, none) for n in ("boxes", "flips", "partner", "pasted", "share")))

    @classmethod
    def joined(cls, parts: list[Views]) -> Views:
        """The epochs of several, one after the other."""
        return cls(*(torch.cat(list(v)) for v in zip(*(vars(p).values() for p in parts), strict=True)))

    def show(self, images: Tensor, items: Tensor, epochs: Tensor) -> Tensor:
        """The views of some images, one of each: ``items`` [N] of ``images`` [M, C, H, W] in ``epochs`` [N]."""
        at = (epochs.cpu(), items.cpu())
        x = self._plain(images, *at)
        other = self.partner[at].long()
        if not self.pasted.numel() and not self.share.numel():
            return x
        y = self._plain(images, at[0], other)
        if self.pasted.numel():
            return paste(x, y, self.pasted[at].to(x.device).long())
        share = self.share[at].to(x.device)[:, None, None, None]
        return share * x + (1 - share) * y

    def _plain(self, images: Tensor, epochs: Tensor, items: Tensor) -> Tensor:
        boxes = self.boxes[epochs, items].to(images.device).long()
        x = crop_each(images[items.to(images.device)], boxes, (images.shape[-2], images.shape[-1]))
        return torch.where(self.flips[epochs, items].to(x.device)[:, None, None, None], x.flip(-1), x)


def draw_views(
    draws: Draws,
    epoch: int,
    count: int,
    size: tuple[int, int],
    *,
    lowest: float = 0.08,
    highest: float = 1.0,
    flip: float = 0.5,
    mix: Mix = "cutmix",
    alpha: float = 1.0,
    batch: int = 1024,
) -> Views:
    """The views of one epoch (E = 1): crops and flips of each image by itself; one mix for each batch of the epoch's order.

    Args:
        draws: keyed randomness; with the epoch it fixes everything.
        epoch: its number.
        count: images.
        size: (height, width).
        lowest, highest: shares of the area that crops have.
        flip: how often images are mirrored.
        mix: ``cutmix``, ``mixup`` or ``none``.
        alpha: of the Beta distribution of the share that stays.
        batch: images that are mixed among each other.
    """
    own = Draws(draws.seed, (*draws.scope, "epoch", epoch))
    boxes = crop_boxes(own.rand("crop", count, (TRIES, 4)), size, lowest=lowest, highest=highest)
    flips = own.rand("flip", count) < flip
    partner, pasted, share = torch.arange(count), torch.zeros(count, 4), torch.ones(count)
    rng = own.numpy("mix")
    for ids in own.permutation("order", count).split(batch) if mix != "none" else ():
        lam = torch.tensor([float(rng.beta(alpha, alpha))])
        partner[ids] = ids[torch.from_numpy(rng.permutation(len(ids)))]
        share[ids] = lam.float()
        centre = torch.tensor([[int(rng.integers(side)) for side in size]])
        pasted[ids] = cutmix_boxes(lam, centre, size).float()
    none = torch.zeros(1, 0)
    return Views(
        boxes.to(torch.int16)[None],
        flips[None],
        partner.to(torch.int32)[None],
        pasted.to(torch.int16)[None] if mix == "cutmix" else none,
        share[None] if mix == "mixup" else none,
    )


class Labels(Protocol):
    """Where the views of a set and their labels come from.

    Attributes:
        epochs: how many epochs there are; ``None`` for as many as are asked for.
    """

    epochs: int | None

    def ask(self, images: Tensor, items: Tensor, epochs: Tensor) -> tuple[Tensor, Tensor]:
        """Views [N, C, H, W] of some images, and the teacher's logits [N, classes] for them."""

    def tensors(self) -> dict[str, Tensor]:
        """What is delivered with the images."""


class StoredLabels:
    """Labels that were computed before, once for each view.

    Args:
        views: of E epochs.
        packed: the logits, as `limbeck.functional.packing.pack_logits` makes them [E, M, ...].
        classes: how many.
    """

    def __init__(self, views: Views, packed: Mapping[str, Tensor], classes: int) -> None:
        self.views, self.packed, self.classes = views, dict(packed), classes
        self.epochs: int | None = len(views.boxes)

    def ask(self, images: Tensor, items: Tensor, epochs: Tensor) -> tuple[Tensor, Tensor]:
        """Views of some images, and what was stored for them."""
        at = (epochs.cpu(), items.cpu())
        z = unpack_logits({k: v[at] for k, v in self.packed.items()}, self.classes)
        return self.views.show(images, items, epochs), z.to(images.device)

    def tensors(self) -> dict[str, Tensor]:
        """Views and packed logits, for a file."""
        return {
            **{f"views.{k}": v for k, v in self.views.tensors().items()},
            **{f"soft.{k}": v for k, v in self.packed.items()},
        }

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], classes: int) -> StoredLabels:
        """From what `tensors` gave."""

        def under(word: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{word}."): v for k, v in tensors.items() if k.startswith(f"{word}.")}

        return cls(Views.of(under("views")), under("soft"), classes)


class AskedLabels:
    """Labels that a teacher gives while a network is trained, for views that are drawn then.

    Args:
        answer: images [N, C, H, W] in the set's space to logits, without a graph.
        draw: an epoch's number to its views.
    """

    epochs: int | None = None

    def __init__(self, answer: Callable[[Tensor], Tensor], draw: Callable[[int], Views]) -> None:
        self.answer, self.draw = answer, draw
        self._drawn: dict[int, Views] = {}

    def ask(self, images: Tensor, items: Tensor, epochs: Tensor) -> tuple[Tensor, Tensor]:
        """Views of some images, and what the teacher says of them."""
        wanted = sorted(set(epochs.tolist()))
        self._drawn = {e: self._drawn.get(e) or self.draw(e) for e in wanted}
        views = Views.joined([self._drawn[e] for e in wanted])
        x = views.show(images, items, epochs - wanted[0])
        return x, self.answer(x)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the teacher is needed."""
        return {}


class _Show(Query):
    """The views that are due, with their labels, in place of whole images: mixed with images that the batch need not hold."""

    coupled = "mixes each image with another one of the set"

    def __init__(self, source: Labels, images: Tensor) -> None:
        self.source, self.images = source, images.detach()

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        self.images = self.images.to(batch["x"].device)  # once
        with torch.no_grad():
            x, z = self.source.ask(self.images, batch["item"], batch["view"])
        return {**batch, "x": x, "logits": z}


class LabelledSet(SetArtifact):
    """A synthetic set with a soft label for each view that networks are shown.

    Networks are trained on it by ``KL(teacher || network)`` at a temperature, without its square. Views are found by image
    and epoch, so batches may have any size; but there are no more epochs than were stored.

    Args:
        task: the task it was made for.
        images: [M, C, H, W] in the synthetic space.
        ids: class ids [M].
        source: views and labels.
        temperature: of both distributions.
        bits: the images hold no more than 8 bits a value, and are written so.
        form: how the labels are stored, for the report.
        networks, scope: see `limbeck.evaluators.fresh.Trains`.
    """

    def __init__(
        self,
        task: Condensation,
        images: Tensor,
        ids: Tensor,
        source: Labels,
        temperature: float = 20.0,
        bits: int | None = 8,
        form: Form = "fp16",
        networks: int | None = None,
        scope: str = "",
    ) -> None:
        super().__init__(task, images, ids, ids, None, networks, scope, self._learn, [_Show(source, images)])
        self.source, self.temperature, self.bits, self.form = source, temperature, bits, form

    def _learn(self, net: nn.Module, batch: Batch, ctx: Any) -> Tensor:
        return F.kl(net(batch["x"]), batch["logits"], temperature=self.temperature, scale_t2=False)

    def train(
        self,
        module: nn.Module,
        optim: Optim,
        seed: int,
        scope: str,
        device: torch.device,
        queries: Sequence[Query] = (),
    ) -> Built:
        """A network trained on the views in the order of the epochs; ``scope`` keys the order of images within one.

        Raises:
            ConfigError: it would need more epochs than have labels; or queries would change what they were given for.
        """
        check_epochs(optim, len(self.images), self.source.epochs)
        if queries:
            raise ConfigError(
                "evaluator.queries",
                "each view of this set has its own label",
                remedy="leave them out, or set method.labels=hard",
            )
        return super().train(module, optim, seed, scope, device)

    def state(self) -> dict[str, Any]:
        """Images (8-bit ``pixels`` where they hold no more), class ids, and the views with their labels."""
        return {**self._pictures(), "ids": self.ids, **self.source.tensors()}

    def _pictures(self) -> dict[str, Tensor]:
        if self.bits != 8:
            return {"images": self.images}
        return {"pixels": (255 * self.task.space.leave(self.images)).round().to(torch.uint8)}

    def export(self, form: str, folder: Path) -> list[Path]:
        """As every synthetic set; beside images lie the views and their labels (``labels.safetensors``)."""
        written = super().export(form, folder)
        labels = self.source.tensors()
        if form != "safetensors" and labels:
            save_state_dict(folder / "labels.safetensors", labels)
            written.append(folder / "labels.safetensors")
        about = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        about["soft_labels"] = {
            "file": "student.safetensors" if form == "safetensors" else "labels.safetensors",
            "form": self.form,
            "epochs": self.source.epochs,
            "temperature": self.temperature,
            "bits": self.bits,
        }
        atomic_write(folder / "student.json", json.dumps(about, indent=2).encode())
        return written

    def opened(self, form: str, folder: Path) -> SetArtifact:
        """An exported set read back, with its views and labels."""
        about = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        kept = about["soft_labels"]
        if form == "safetensors":
            found = load_state_dict(folder / "student.safetensors")
            pixels = found.get("pixels")
            images = found["images"] if pixels is None else self.task.space.enter(pixels.float() / 255)
            ids, labels = found["ids"], found
        else:
            plain = super().opened(form, folder)
            images, ids = plain.images, plain.ids
            file = folder / kept["file"]
            labels = load_state_dict(file) if file.is_file() else {}
        source: Labels = self.source
        if any(k.startswith("views.") for k in labels):
            source = StoredLabels.read(labels, self.task.outputs)
        return LabelledSet(self.task, images, ids, source, kept["temperature"], kept["bits"], kept["form"])

    def size(self) -> dict[str, float]:
        """Items; bytes of the images and of views with their soft labels, and of both."""

        def weigh(tensors: Mapping[str, Tensor]) -> float:
            return float(sum(t.numel() * t.element_size() for t in tensors.values()))

        images, labels = weigh(self._pictures()), weigh(self.source.tensors())
        return {
            "items": float(len(self.images)),
            "image_bytes": images,
            "label_bytes": labels,
            "bytes": images + labels,
        }

    def pictures(self, columns: int = 10) -> dict[str, Any]:
        """Pixels for the report: up to twenty classes, and no more images of each than a page can hold."""
        classes = min(20, self.task.outputs)
        most = max(1, int(400_000 / (classes * self.images[0].numel())))
        shown = super().pictures(min(columns, most))
        return {**shown, "labels": (self.task.labels or [])[:classes], "pixels": shown["pixels"][:classes]}


def check_epochs(optim: Optim, items: int, stored: int | None) -> None:
    """Refuse a training that would see more epochs than have stored labels.

    Raises:
        ConfigError: both numbers, and what to type.
    """
    needed = epochs_of(optim, items)
    if stored is not None and needed > stored:
        raise ConfigError(
            "evaluator.optim.steps",
            f"{optim.steps} steps of {min(optim.batch_size, items)} items are {needed} epochs of the {items} images, and labels "
            f"are stored for {stored}",
            expected=f"at most {stored} epochs",
            remedy=f"set method.label_epochs={needed} (null stores as many as are needed), or train for fewer steps",
        )


def epochs_of(optim: Optim, items: int) -> int:
    """How many epochs of so many items a training begins."""
    return -(-optim.steps * min(optim.batch_size, items) // items)


__all__ = [
    "AskedLabels",
    "LabelledSet",
    "Labels",
    "Mix",
    "StoredLabels",
    "Views",
    "check_epochs",
    "draw_views",
    "epochs_of",
]
