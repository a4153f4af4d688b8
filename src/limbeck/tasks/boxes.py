"""Object detection: images answered with boxes, of classes of which some may have no labels; crops of them, embedded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from limbeck.data.asked import AskedPictures, unfitted
from limbeck.data.boxes import ObjectsOnPhotos
from limbeck.data.items import Items, Splits, choose, digest, renumbered
from limbeck.data.names import some
from limbeck.data.sources import Source
from limbeck.data.splits import ready
from limbeck.data.vocabulary import drawn_vocabulary, read_synonyms, read_vocabulary
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional.labels import cross_entropy
from limbeck.functional.regions import region_logits, unit
from limbeck.grammar.answers import Answer
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Bundle, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.networks.two_stage import OpenDetector, is_two_stage, run_plain
from limbeck.tasks.average_precision import Truth, average_precision, pasted
from limbeck.tasks.drawing import boxed
from limbeck.tasks.first_pass import first_pass
from limbeck.tasks.items import SourceTask, picture_steps

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"boxes": "Boxes"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

log = logging.getLogger("limbeck.data")

SHOWN = 6
"""Test images that are drawn in the report."""

DRAWN_FROM = 0.3
"""Score from which boxes are drawn there."""


class BaseOnly:
    """Images whose boxes of novel classes are not told: they are there, and nobody says so.

    Args:
        data: images with all of their boxes.
        base: bool [C].
        masks: tell masks, where the data have them.
    """

    def __init__(self, data: Items, base: Tensor, masks: bool) -> None:
        self.data, self.base, self.masks = data, base, masks
        self.y, self.shape = data.y * base.float(), data.shape

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """As the data have it, ``where`` of base classes alone."""
        batch = self.data.fetch(items)
        batch["where"] = batch["where"] & self.base[batch["labels"]]
        batch["boxes"] = batch["boxes"] * batch["where"].unsqueeze(-1)
        if not self.masks:
            batch.pop("masks", None)
        return batch

    @property
    def fingerprint(self) -> str:
        """Of the images, and of the classes that are told."""
        return digest(self.data.fingerprint, self.base, self.masks)


@settings
class Boxes(SourceTask):
    """Object detection.

    A batch holds ``boxes`` [N, M, 4] (left, top, right, bottom) in pixels, ``labels`` [N, M] and ``where`` [N, M]: boxes
    that are there. Detectors answer in their own mode: with losses by image while they train, else with detections.

    Args:
        data: where images and boxes come from.
        size: side of the square that images are brought to, the rest left black; ``null`` keeps theirs.
        novel: classes without labels: their boxes are told neither to the student nor to what chooses it, only evaluated.
        text: what class names mean: a table (.npz, .npy, .json, .safetensors), or the folder of a CLIP of transformers;
            ``null`` draws a direction for each name.
        text_names: the names of a table's rows, or a file of them, where it has none itself.
        text_dim: width of drawn directions.
        prompts: sentences for a CLIP, with ``{}`` for the name; their embeddings are averaged.
        synonyms: further names of classes, whose embeddings are averaged with the first: ``{CLASS: [NAME, ...]}``, or a JSON
            file of that, or of LVIS's categories.
        crop: side of the crops that an image tower is shown.
        masks: tell masks too, for detectors with a mask head, and evaluate them.
        student_items: size of the student's training set, drawn by the seed; all if ``null``.
    """

    primary = "ap50"
    higher_is_better = True
    judging = ("student_items", "eval_batch")
    paths = ("text", "text_names", "synonyms")

    data: Source = ObjectsOnPhotos()
    novel: list[str] = []  # noqa: RUF012 (copied by settings)
    text: str | None = None
    text_names: str | list[str] | None = None
    text_dim: Count = 32
    prompts: list[str] = ["a photo of a {}."]  # noqa: RUF012 (copied by settings)
    synonyms: str | dict[str, list[str]] | None = None
    crop: Count = 32
    masks: bool = False
    student_items: Count | None = None
    eval_batch: Count = 32

    def validate(self) -> None:
        """A prompt has a place for the name."""
        if len(set(self.novel)) < len(self.novel):
            raise ValueError("novel must name each class once")
        if not self.prompts or any("{}" not in p for p in self.prompts):
            raise ValueError("prompts must hold {} for the name of a class")

    # ---------------------------------------------------------------------------------------------------------- data

    def read(self) -> Splits:
        """Images and boxes in three splits, novel ones hidden from the first two."""
        boxes: Any = getattr(self.data, "boxes", None)
        if boxes is None:
            raise DataError(
                "task.data",
                "its items have no boxes",
                given=self.data.config.get("use", type(self.data).__name__),
                expected="a source of boxes: coco-boxes, yolo, voc or objects-on-photos",
            )
        splits = ready(boxes(self.size), self.valid_fraction, self.test_fraction, "keep", self.deal)
        if self.recalled.get("classes"):
            splits = renumbered(splits, self.recalled["classes"])
        if lacking := [n for n in self.novel if n not in splits.labels]:
            raise ConfigError("task.novel", f"there is no class {some(lacking)}", expected=some(splits.labels, 20))
        self.base = torch.tensor([n not in self.novel for n in splits.labels])
        if not bool(self.base.any()):
            raise ConfigError("task.novel", "names every class", expected="at least one base class, with labels")
        self.whole: Items = splits.train
        for name in ("train", "valid"):
            setattr(splits, name, BaseOnly(getattr(splits, name), self.base, self.masks))
        if float(splits.train.y.sum()) == 0:
            raise DataError(
                "task.data", "no training image has a box of a base class", expected="boxes of base classes"
            )
        if self.masks and not all(getattr(_source(s), "masked", False) for s in (splits.train, splits.test)):
            raise ConfigError("task.masks", "the data have no masks", remedy="set task.masks=false")
        if self.novel:
            splits.notes.append(
                f"no labels of {some(self.novel, 20)}: {int(self.base.sum())} base, {len(self.novel)} novel classes"
            )
        self.vocabulary, said = self._vocabulary(splits.labels)
        splits.notes += said
        return splits

    def _vocabulary(self, labels: list[str]) -> tuple[Tensor, list[str]]:
        """Embeddings of the class names, float32 [C, D] of unit length, and what is to be said of them."""
        if self.text is None:
            if self.synonyms is not None:
                raise ConfigError(
                    "task.synonyms", "names that stand for drawn directions have no synonyms", remedy="set task.text"
                )
            return drawn_vocabulary(labels, self.text_dim), [
                f"class names stand for drawn directions ({self.text_dim} numbers)"
            ]
        names = self.text_names
        synonyms = None if self.synonyms is None else read_synonyms(self.synonyms, labels)
        return read_vocabulary(self.text, labels, names, self.prompts, synonyms)

    @property
    def needs(self) -> Needs:
        """A detector."""
        return Needs(self.shape, self.outputs, "boxes", tuple(self.labels or ()))

    @property
    def formats(self) -> tuple[str, ...]:
        """Weights: suppression of detections is no graph."""
        return ("safetensors",)

    def preprocessing(self, contract: Contract) -> dict[str, Any]:
        """Images are resized until they fit into the square, and the rest is black."""
        return picture_steps(contract, self.shape, "contain", self.data)

    def part(self, name: str) -> Task:
        """``crops``: what an image tower is for: crops of all boxes, embedded near the names of their classes."""
        if name != "crops":
            return super().part(name)
        if "_crops" not in self.__dict__:
            self._crops = Crops(self)
        return self._crops

    def cache_bytes(self) -> float:
        """Nothing is recorded of a detector."""
        return 0.0

    # ------------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Any:
        """Images into a detector, with what is true of them while it trains; ``regions`` of the batch are embedded."""
        x, own = batch["x"], getattr(module, "_orig_mod", module)
        targets: dict[str, Tensor] = {k: batch[k] for k in ("boxes", "labels", "where", "masks") if k in batch}
        if isinstance(own, OpenDetector):
            return module(x, targets, batch.get("regions"))
        if getattr(own, "finds_boxes", False):
            return module(x)
        if is_two_stage(own):
            return run_plain(own, x, targets)
        return _library(own, x, targets)

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """The detector's losses, each a value for every image [N]."""
        losses = signal.out.get("losses") if isinstance(signal.out, Mapping) else None
        if not losses:
            raise ConfigError("student", "shows no losses", expected="a detector in training mode")
        return Bundle(**{name: Term(values) for name, values in losses.items()})

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two images through a detector.

        Raises:
            ConfigError: it fails on them. ShapeError: it answers with no boxes.
        """
        batch = to_device(self.example(2), device_of(built.module))
        fails = f"{type(built.model).__name__} fails on images {list(batch['x'].shape)}"
        with first_pass(built, role, fails, "set task.size, or choose another detector"):
            out = self.feed(built.module, built.contract.feed(batch))
        if not isinstance(out, Mapping) or not {"boxes", "scores", "labels", "where"} <= set(out):
            raise ShapeError(role, "answers with no detections", expected="boxes, labels and scores")

    # ------------------------------------------------------------------------------------------------------- answers

    def _recall(self, about: Mapping[str, Any]) -> None:
        novel = {str(n) for n in about.get("novel") or ()}
        self.base = torch.tensor([n not in novel for n in about["classes"]], dtype=torch.bool)

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """Boxes (left, top, right, bottom) in the pixels of each image as it was given, with class and score, the surest
        first; those below ``threshold`` (0.3) left out."""
        out = {n: v.cpu() for n, v in self.detections(built, batch).items()}
        least = float(DRAWN_FROM if options.get("threshold") is None else options["threshold"])
        names = self.labels or []
        found = []
        for i, item in enumerate(items.tolist()):
            kept = (out["where"][i] & (out["scores"][i] >= least)).nonzero()[:, 0]
            kept = kept[out["scores"][i][kept].argsort(descending=True, stable=True)]
            boxes = self._back(out["boxes"][i][kept].float(), asked.size_of(item))
            scores, labels = out["scores"][i][kept], out["labels"][i][kept]
            listed = [
                {"label": names[c] if c < len(names) else str(c), "score": s, "box": b}
                for c, s, b in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
            ]
            found.append(Answer({"boxes": listed}, {"boxes": boxes, "scores": scores, "labels": labels}))
        return found

    def _back(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes from the square that the network saw into an image of (height, width)."""
        boxes = unfitted(boxes.unflatten(-1, (2, 2)), size, (self.shape[1], self.shape[2])).flatten(-2)
        most = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        return torch.minimum(boxes.clamp_min(0), most)

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Images, brought into the square that the network was trained on, the rest of which is black."""
        return AskedPictures(given, tuple(self.shape), {**preprocessing, "resize_mode": "contain"})

    def picture_of(self, answer: Answer, asked: Any, item: int) -> Tensor:
        """The image with its boxes."""
        return boxed(asked.original(item), answer.row["boxes"])

    # ------------------------------------------------------------------------------------------------------- evaluation

    def detections(self, built: Built, batch: Batch) -> dict[str, Tensor]:
        """Of a batch, through the network's contract."""
        found: dict[str, Tensor] = self.feed(built.module, built.contract.feed(batch))
        return found

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Average precision on a split, by pycocotools.

        ``ap50`` (overlap of a half) and ``ap`` (the mean from 0.5 to 0.95), over all classes that occur, and likewise
        ``base_...`` and ``novel_...``; with masks ``mask_...`` of each.
        """
        device = device or device_of(built.module)
        found, truths, k = [], [], self.outputs
        kinds = ["bbox"]
        with torch.no_grad(), evaluating([built.module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                out = {n: v.cpu() for n, v in self.detections(built, batch).items()}
                size = tuple(batch["x"].shape[-2:])
                if self.masks and "masks" in out and "masks" in batch:
                    kinds = ["bbox", "segm"]
                    out["masks"] = pasted(out["masks"], out["boxes"], out["where"], (size[0], size[1]))
                for i in range(len(ids)):
                    here, there = out["where"][i], batch["where"][i].cpu()
                    masked = len(kinds) > 1
                    found.append(
                        Truth(
                            out["boxes"][i][here],
                            out["labels"][i][here],
                            out["scores"][i][here],
                            out["masks"][i][here] if masked else None,
                        )
                    )
                    truths.append(
                        Truth(
                            batch["boxes"][i].cpu()[there],
                            batch["labels"][i].cpu()[there],
                            masks=batch["masks"][i].cpu()[there] if masked else None,
                        )
                    )
        metrics: dict[str, float] = {}
        for kind in kinds:
            table = average_precision(found, truths, k, kind)  # [10, C]; NaN where a class does not occur
            prefix = "" if kind == "bbox" else "mask_"
            for name, chosen in (("", torch.ones(k, dtype=torch.bool)), ("base_", self.base), ("novel_", ~self.base)):
                rows = table[:, chosen & table[0].isfinite()]
                if rows.numel() and (name != "novel_" or self.novel) and (name != "base_" or self.novel):
                    metrics[f"{prefix}{name}ap50"] = float(rows[0].mean())
                    metrics[f"{prefix}{name}ap"] = float(rows.mean())
        return Scores(metrics or {"ap50": 0.0, "ap": 0.0})

    # -------------------------------------------------------------------------------------------------------- report

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """``pictures``: test images with true boxes, and with those of every detector among the rows."""
        networks = {n: r.built for n, r in rows.items() if isinstance(r, NetworkArtifact) and not r.part}
        if bench.folder is None or not networks:
            return {}
        ids = torch.linspace(0, len(self.test) - 1, min(SHOWN, len(self.test))).long()
        drawn = self.drawn(networks, ids, bench.device)
        from PIL import Image

        Image.fromarray(drawn.movedim(0, -1).contiguous().numpy()).save(bench.folder / "boxes.png")
        caption = f"Test images with true boxes, and those found with a score of {DRAWN_FROM:g} or more, row by row: "
        caption += ", ".join(["truth", *networks])
        if self.novel:
            caption += ". Boxes of base classes are light blue, of novel ones orange"
        return {"pictures": [{"title": "Boxes", "caption": caption, "file": "boxes.png", "rows": ["truth", *networks]}]}

    def drawn(self, networks: Mapping[str, Built], ids: Tensor, device: torch.device) -> Tensor:
        """True boxes and those of networks on some test images as one image, uint8 [3, rows * H, items * W]."""
        from torchvision.utils import draw_bounding_boxes

        batch = to_device({**self.test.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
        x = batch["x"].cpu()[:, :3]
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        times = max(1, 160 // x.shape[-1])
        big = (x * 255).round().to(torch.uint8).repeat_interleave(times, 2).repeat_interleave(times, 3)
        names = self.labels or []

        def line(boxes: Tensor, labels: Tensor, where: Tensor) -> Tensor:
            cells = []
            for i in range(len(big)):
                here = where[i]
                kept = labels[i][here].tolist()
                colours = ["deepskyblue" if self.base[c] else "orange" for c in kept]
                b = (boxes[i][here] * times).round()
                good = ((b[:, 2:] - b[:, :2]) >= 1).all(1)
                chosen = [n for n, g in enumerate(good.tolist()) if g]
                cells.append(
                    draw_bounding_boxes(
                        big[i], b[good], [names[kept[n]] for n in chosen], [colours[n] for n in chosen], width=2
                    )
                    if chosen
                    else big[i]
                )
            return torch.cat(cells, 2)

        lines = [line(batch["boxes"].cpu(), batch["labels"].cpu(), batch["where"].cpu())]
        with torch.no_grad(), evaluating([b.module for b in networks.values()]):
            for built in networks.values():
                out = {n: v.cpu() for n, v in self.detections(built, batch).items()}
                lines.append(line(out["boxes"], out["labels"], out["where"] & (out["scores"] >= DRAWN_FROM)))
        return torch.cat(lines, 1)

    def default_student(self) -> dict[str, Any]:
        """A small detector of an open vocabulary."""
        return {"use": "open-detector", "dim": self.text_dim}

    def default_teacher(self) -> dict[str, Any]:
        """A wider detector."""
        return {"use": "small-detector", "width": 64}

    def describe(self) -> dict[str, Any]:
        """What must travel with a detector so that its answers can be read elsewhere."""
        return {"form": "boxes", "input": list(self.shape), "outputs": self.outputs, "novel": list(self.novel)}


def _source(items: Any) -> Any:
    """The images that splits are parts of."""
    while hasattr(items, "data"):
        items = items.data
    return items


def _library(net: Any, x: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Any]:
    """Another detector of torchvision, as it is: its losses are means over the batch's images."""
    if net.training and "boxes" in targets:
        listed = [
            {"boxes": b[w], "labels": y[w] + 1}
            for b, y, w in zip(targets["boxes"], targets["labels"], targets["where"], strict=True)
        ]
        losses = net(list(x), listed)
        return {"losses": {n: v.float().expand(len(x)) for n, v in losses.items()}}
    found = net(list(x))
    k = max(1, max(len(f["boxes"]) for f in found))
    out: dict[str, Any] = {
        "boxes": x.new_zeros(len(x), k, 4),
        "scores": x.new_zeros(len(x), k),
        "labels": torch.zeros(len(x), k, dtype=torch.long, device=x.device),
        "where": torch.zeros(len(x), k, dtype=torch.bool, device=x.device),
    }
    for i, f in enumerate(found):
        m = len(f["boxes"])
        out["boxes"][i, :m], out["scores"][i, :m], out["labels"][i, :m] = f["boxes"], f["scores"], f["labels"] - 1
        out["where"][i, :m] = True
    return out


# ------------------------------------------------------------------------------------------------------------------ crops
class CropItems:
    """The boxes of images, each cut out and brought to one size.

    Args:
        data: images with all of their boxes.
        side: of a crop.
    """

    def __init__(self, data: Any, side: int, vocabulary: Tensor) -> None:
        self.data, self.side = data, side
        where = [data.fetch(ids)["where"] for ids in torch.arange(len(data)).split(256)]
        self.picture, self.number = torch.cat(where).nonzero(as_tuple=True)
        labels = torch.cat([data.fetch(ids)["labels"] for ids in torch.arange(len(data)).split(256)])
        self.y = labels[self.picture, self.number]
        self.shape = (data.shape[0], side, side)
        self.fingerprint = digest(data.fingerprint, side, vocabulary)

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, items: Tensor) -> Batch:
        """``x`` float32 [n, C, side, side], ``y`` int64 [n]."""
        batch = self.data.fetch(self.picture[items])
        boxes = batch["boxes"][torch.arange(len(items)), self.number[items]]
        rois = torch.cat([torch.arange(len(items))[:, None].float(), boxes], 1)
        return {"x": roi_align(batch["x"], rois, (self.side, self.side), aligned=True), "y": self.y[items]}


class Crops(Task):
    """What an image tower is for: crops embedded where the names of their classes are.

    It sees all classes, as one does that was trained on the web's images and their captions; a tower that comes with
    trained weights is left as it is.

    Args:
        whole: the detection task.
    """

    primary = "accuracy"
    higher_is_better = True
    judging = ("whole",)
    temperature = 20.0
    eval_batch = 256

    def __init__(self, whole: Boxes) -> None:
        self.whole = whole

    def load(self, seed: int | None = None) -> None:
        """Crops of the detection task's images."""
        self.whole.load(seed)
        if "train" in self.__dict__:
            return
        w = self.whole
        self.labels, self.vocabulary = list(w.labels or []), w.vocabulary
        self.train = self.teacher_train = CropItems(w.whole, w.crop, w.vocabulary)
        self.valid, self.test = (CropItems(s, w.crop, w.vocabulary) for s in (w.valid, w.test))

    @property
    def needs(self) -> Needs:
        """A vector of the vocabulary's width."""
        self.load()
        return Needs(self.train.shape, self.vocabulary.shape[1], "vector")  # type: ignore[attr-defined]

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of crops."""
        x = self.train.fetch(choose(self.train.y, min(512, len(self.train)), "statistics"))["x"].double()  # type: ignore[attr-defined]
        mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3)).clamp_min(1e-3)
        return tuple(mean.float().tolist()), tuple(std.float().tolist())

    def embed(self, built: Built, batch: Batch) -> Tensor:
        """Embeddings [n, D] of unit length."""
        return unit(Signal(self.feed(built.module, built.contract.feed(batch))).logits)

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two crops through it.

        Raises:
            ConfigError: it fails on them. ShapeError: its embeddings are not as wide as those of the texts.
        """
        batch = to_device(self.example(2), device_of(built.module))
        with first_pass(built, role, f"fails on crops {list(batch['x'].shape)}", "set task.crop"):
            e = self.embed(built, batch)
        width = self.vocabulary.shape[1]
        if e.ndim != 2 or e.shape[1] != width:
            raise ShapeError(
                role,
                "its embeddings are not as wide as those of the class names",
                given=list(e.shape),
                expected=f"[n, {width}]",
                remedy="take both from one CLIP (task.text=FOLDER), or a table made by its text tower",
            )

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """Cross-entropy of cosines to the names of the classes [n]."""
        text = self.vocabulary.to(signal.logits.device)
        return Term(cross_entropy(region_logits(signal.logits, text, temperature=self.temperature), batch["y"]))

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """``accuracy`` of the nearest name, of all crops and of those of novel classes."""
        device = device or device_of(built.module)
        right, labels = [], []
        with torch.no_grad(), evaluating([built.module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                z = region_logits(self.embed(built, batch), self.vocabulary.to(device))
                right.append((z.argmax(-1) == batch["y"]).float().cpu())
                labels.append(batch["y"].cpu())
        hit, y = torch.cat(right), torch.cat(labels)
        novel = ~self.whole.base[y]
        found = {"accuracy": float(hit.mean())}
        if bool(novel.any()):
            found["novel_accuracy"] = float(hit[novel].mean())
        return Scores(found, {"accuracy": hit})

    def default_teacher(self) -> dict[str, Any]:
        """A small convolutional network."""
        return {"use": "convnet", "width": 64}


__all__ = ["Boxes", "Crops"]
