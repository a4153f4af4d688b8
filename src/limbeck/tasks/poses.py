"""Poses of any number of bodies, hands and faces on an image, of which each image may be labelled for some parts alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from limbeck.data.asked import AskedPictures, unfitted
from limbeck.data.figures import DrawnFigures
from limbeck.data.items import Items, Part, Splits, to_unit
from limbeck.data.keypoints import Skeleton
from limbeck.data.partial_poses import AnchorPoses, Boxed, OnePart, dealt, source_of
from limbeck.data.sources import Source
from limbeck.data.splits import ready
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch
from limbeck.functional import keypoints as K
from limbeck.functional import pose_metrics as P
from limbeck.functional.boxes import iou
from limbeck.grammar.answers import Answer
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Bundle, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, Fraction, Positive, settings
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.drawn_poses import COLOURS, Drawn, skeletons, write_rows
from limbeck.tasks.first_pass import first_pass
from limbeck.tasks.items import SourceTask
from limbeck.tasks.keypoints import SHOWN, read_poses

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"poses": "Poses"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

log = logging.getLogger("limbeck.data")


@settings
class Poses(SourceTask):
    """Poses of instances of parts, in the plane and in space.

    A batch holds ``labelled`` bool [N, P] and for each part P ``pose:P`` [N, M, J, 5] (x, y in pixels, X, Y, Z about the
    root), ``known:P`` bool [N, M, J, 2] (labelled in the plane, in space), ``where:P`` [N, M] and ``box:P`` [N, M, 4]. A
    image that is not labelled for a part says nothing of it: neither that it is there, nor that it is not.

    Args:
        data: where images and poses come from.
        labelled: ``data`` takes the labels that there are; ``one`` deals the training and validation images to the parts
            and tells each image's labels of that part alone, as three data sets for three parts would (test images keep
            all of theirs).
        missing: what a training image that is not labelled for a part says of it: nothing (``ignore``), or that there is
            none (``background``), which is the mistake that others are held against.
        student_items: size of the student's training set, drawn by the seed; all if ``null``.
        pck: a joint is found within this share of its pose's size: the distance of the part's ``pair``, else the longer side
            of its box.
        meets: overlap of two boxes from which a pose that was found stands for a true one.
        whole: put wrists of bodies where their hands' wrists are, when poses are evaluated and drawn (where the data say which
            joints those are).
    """

    primary = "pck"
    higher_is_better = True
    judging = ("student_items", "eval_batch", "pck", "meets", "whole")
    takes_unlabelled = False

    reads = "keypoints"

    data: Source = DrawnFigures()
    labelled: Literal["data", "one"] = "data"
    missing: Literal["ignore", "background"] = "ignore"
    student_items: Count | None = None
    eval_batch: Count = 16
    pck: Positive = 0.2
    meets: Fraction = 0.3
    whole: bool = True

    # ---------------------------------------------------------------------------------------------------------- data

    def read(self) -> Splits:
        """Images and poses in three splits."""
        splits = ready(read_poses(self.data, self.size), self.valid_fraction, self.test_fraction, "keep", self.deal)
        self.parts: dict[str, Skeleton] = dict(source_of(splits.train).parts)
        self.links: dict[str, Any] = dict(source_of(splits.train).links)
        known = {p: list(s["joints"]) for p, s in (self.recalled.get("parts") or {}).items()}
        if known and known != {p: list(s.joints) for p, s in self.parts.items()}:
            raise DataError(
                "task.data",
                "its parts and joints are not those that the network was made for",
                given={p: len(s.joints) for p, s in self.parts.items()},
                expected=str({p: len(j) for p, j in known.items()}),
            )
        absent = self.missing == "background"
        self.hidden: Items = splits.train  # with every label that the data have
        for name in ("train", "valid", "test"):
            items: Any = getattr(splits, name)
            told = dealt(items, name) if self.labelled == "one" and name != "test" else None
            made = Boxed(items, told, absent and name == "train")
            if name == "train" and (lost := made.flat()):
                splits.notes.append(f"{lost} training poses without extent left out")
            setattr(splits, name, made)
        train: Any = splits.train
        if self.labelled == "one":
            each = ", ".join(f"{p} {int(n)}" for p, n in zip(self.parts, train.y.sum(0).tolist(), strict=True))
            splits.notes.append(f"every training image is labelled for one part alone: {each} images")
        if absent and bool((train.y == 0).any()):
            splits.notes.append(
                "what a training image is not labelled for is taken for absent (task.missing=background)"
            )
        self.poses: Any = AnchorPoses(Boxed(self.hidden, train.told), self.parts)
        return splits

    @property
    def needs(self) -> Needs:
        """A detector of the parts."""
        return Needs(self.shape, self.outputs, "poses", parts=self.poses if self.shape else None)

    @property
    def formats(self) -> tuple[str, ...]:
        """Weights: suppression of poses is no graph."""
        return ("safetensors",)

    def part(self, name: str) -> Task:
        """A part by itself: the images that are labelled for it, and its poses alone."""
        self.loaded()
        if name not in self.parts:
            raise ConfigError.unknown("task", name, self.parts, "part")
        kept: dict[Any, Task] = self.__dict__.setdefault("_parts", {})
        if (name, self._seed) not in kept:
            one = copy.copy(self)
            one.__dict__.pop("_parts", None)
            for split in ("train", "teacher_train", "valid", "test"):
                items: Any = OnePart(getattr(self, split), name)
                if not len(items):
                    raise DataError("task.data", f"no image of the split {split} is labelled for {name}")
                setattr(one, split, items)
            one._pool = one.teacher_train
            one.parts, one.links, one.labels = {name: self.parts[name]}, {}, [name]
            one.poses = _Named(self.poses, name)
            one.notes, one.class_sizes = [], {}
            kept[name, self._seed] = one
        return kept[name, self._seed]

    def truth(self) -> Data | None:
        """The student's training images with every label that the data have, where some of them are not told."""
        if self.labelled != "one":
            return None
        whole = Boxed(self.hidden)
        return Part(whole, self.train.ids) if isinstance(self.train, Part) else whole

    def cache_bytes(self) -> float:
        """Nothing is recorded of a detector."""
        return 0.0

    # ------------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Any:
        """Images into a detector, with what is true of them while it trains."""
        targets = {k: v for k, v in batch.items() if k == "labelled" or ":" in k}
        return module(batch["x"], targets or None)

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """The detector's losses, each a value for every image [N] that tells something of it."""
        losses = signal.out.get("losses") if isinstance(signal.out, Mapping) else None
        if not losses:
            raise ConfigError("student", "shows no losses", expected="a part-detector in training mode")
        counts = signal.out["counts"]
        return Bundle(**{name: Term(values, where=counts[name]) for name, values in losses.items()})

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two images through a detector.

        Raises:
            ConfigError: it fails on them. ShapeError: it answers with other parts or joints.
        """
        batch = to_device(self.example(2), device_of(built.module))
        fails = f"{type(built.model).__name__} fails on images {list(batch['x'].shape)}"
        with first_pass(built, role, fails, "set task.size, or choose another detector"):
            out = self.feed(built.module, built.contract.feed(batch))
        for name, skeleton in self.parts.items():
            found = out.get(f"pose:{name}") if isinstance(out, Mapping) else None
            joints = len(skeleton.joints)
            if found is None or found.shape[-2:] != (joints, 5):
                given = None if found is None else list(found.shape)
                raise ShapeError(
                    role, f"answers with no {name}", given=given, expected=f"pose:{name} [N, D, {joints}, 5]"
                )

    def check_teacher(self, teacher: Built, device: torch.device | None = None) -> None:
        """Refuse an expert with trained weights that finds nothing."""
        if teacher.model is None or not teacher.model.trained or teacher.model.check != "on":
            return
        place = device or device_of(teacher.module)
        teacher.module.to(place)
        found = self.evaluate(teacher, _First(self.teacher_train, 32), device=place)
        told = f"finds {100 * found['pck']:.1f} % of the joints of {min(32, len(self.teacher_train))} labelled images"
        if found["pck"] < 0.02 and not teacher.model.held:
            raise TeacherMismatch(
                teacher.model.role or "teacher",
                f"it only guesses: {told}",
                expected="weights for these parts and joints",
                remedy=f"set {teacher.model.setting('check')}=off to go on all the same",
            )
        teacher.notes.append(told)

    # ------------------------------------------------------------------------------------------------------- answers

    def _recall(self, about: Mapping[str, Any]) -> None:
        self.parts = {
            str(p): Skeleton(tuple(str(j) for j in s["joints"]), tuple((int(a), int(b)) for a, b in s["edges"]))
            for p, s in about["parts"].items()
        }
        self.links = {str(k): list(v) for k, v in about["links"].items()}
        self.poses = Unknown({p: len(s.joints) for p, s in self.parts.items()})

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Images, brought into the square that the network was trained on, the rest of which is black."""
        return AskedPictures(given, tuple(self.shape), {**preprocessing, "resize_mode": "contain"})

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """Poses of all parts, the surest first: ``label`` (the part), ``score``, ``box``, ``points`` (x, y in the pixels of the
        image as it was given) and ``space`` (X, Y, Z about the root) by joint; those below ``threshold`` left out.
        """
        out = {n: v.cpu() for n, v in self.detections(built, batch).items()}
        least = float(options.get("threshold") or 0.0)  # the network leaves out what scores too little for it
        found = []
        for i, item in enumerate(items.tolist()):
            size = asked.size_of(item)
            listed: list[dict[str, Any]] = []
            for p, skeleton in self.parts.items():
                for m in (out[f"where:{p}"][i] & (out[f"score:{p}"][i] >= least)).nonzero()[:, 0].tolist():
                    pose = out[f"pose:{p}"][i, m]
                    own = unfitted(torch.cat([pose[:, :2], out[f"box:{p}"][i, m].view(2, 2)]), size, self._side)
                    one = {"label": p, "score": float(out[f"score:{p}"][i, m]), "box": own[-2:].flatten().tolist()}
                    one["points"] = dict(zip(skeleton.joints, own[:-2].tolist(), strict=True))
                    one["space"] = dict(zip(skeleton.joints, pose[:, 2:].tolist(), strict=True))
                    listed.append(one)
            listed.sort(key=lambda one: -one["score"])
            found.append(Answer({"boxes": listed}, {}))
        return found

    @property
    def _side(self) -> tuple[int, int]:
        return self.shape[1], self.shape[2]

    def picture_of(self, answer: Answer, asked: Any, item: int) -> Tensor:
        """The image with its skeletons."""
        drawn = []
        for one in answer.row["boxes"]:
            c, skeleton = list(self.parts).index(one["label"]), self.parts[one["label"]]
            at = torch.tensor(list(one["points"].values()))
            drawn.append(Drawn(at, torch.ones(len(at), dtype=torch.bool), skeleton.edges, COLOURS[c % len(COLOURS)]))
        return skeletons(to_unit(asked.original(item)), drawn)

    # ------------------------------------------------------------------------------------------------------- evaluation

    def detections(self, built: Built, batch: Batch) -> dict[str, Tensor]:
        """Poses found in a batch's images, through the network's contract; wrists as their hands say."""
        fed = built.contract.feed({"x": batch["x"]})
        found: dict[str, Tensor] = built.module(fed["x"])
        return assembled(found, self.links) if self.whole else found

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a detector on a split, of each part that is labelled, and their means over the parts.

        ``pck``: share of labelled joints that are found within ``task.pck`` times the pose's size; joints of poses that are not
        found are not. ``recall`` and ``precision`` of poses, by boxes. Of the poses found ``nme`` (mean distance in units of
        the size) and in space ``mpjpe`` and ``pa_mpjpe`` (after the best shift, rotation and scale), in the data's units.
        """
        device = device or device_of(built.module)
        sums: dict[str, dict[str, float]] = {p: dict.fromkeys(_SUMS, 0.0) for p in self.parts}
        with torch.no_grad(), evaluating([built.module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                out = {n: v.cpu() for n, v in self.detections(built, batch).items()}
                for i, (p, skeleton) in enumerate(self.parts.items()):
                    for n in batch["labelled"][:, i].nonzero()[:, 0].tolist():
                        here, there = out[f"where:{p}"][n], batch[f"where:{p}"][n].cpu()
                        true, known = (batch[f"{w}:{p}"][n].cpu()[there] for w in ("pose", "known"))
                        pose, box = out[f"pose:{p}"][n][here], out[f"box:{p}"][n][here]
                        self._tally(sums[p], pose, box, true, known, batch[f"box:{p}"][n].cpu()[there], skeleton)
        metrics: dict[str, float] = {}
        for p, s in sums.items():
            if not s["joints"]:
                continue
            found = {
                "pck": s["hits"] / s["joints"],
                "recall": s["met"] / max(1.0, s["true"]),
                "precision": s["met"] / s["found"] if s["found"] else 0.0,
            }
            if s["met"]:
                found["nme"] = s["nme"] / s["met"]
            if s["deep"]:
                found |= {"mpjpe": s["mpjpe"] / s["deep"], "pa_mpjpe": s["aligned"] / s["deep"]}
            metrics |= {f"{p}_{k}" if len(self.parts) > 1 else k: v for k, v in found.items()}
        if len(self.parts) > 1:
            for k in ("pa_mpjpe", "mpjpe", "nme", "precision", "recall", "pck"):
                values = [metrics[f"{p}_{k}"] for p in self.parts if f"{p}_{k}" in metrics]
                if values:
                    metrics = {k: sum(values) / len(values), **metrics}
        return Scores(metrics or {"pck": 0.0})

    def _tally(
        self,
        s: dict[str, float],
        pose: Tensor,
        box: Tensor,
        true: Tensor,
        known: Tensor,
        boxes: Tensor,
        skeleton: Skeleton,
    ) -> None:
        """Add one image's poses, the best first, to the sums of a part."""
        flat, deep = known[..., 0], known[..., 1]
        sizes = P.pose_sizes(true[..., :2], flat, skeleton.pair)
        s["joints"] += float((flat & (sizes > 0).unsqueeze(-1)).sum())
        s["true"], s["found"] = s["true"] + len(true), s["found"] + len(pose)
        if not len(pose) or not len(true):
            return
        overlaps = iou(box, boxes)
        for i in range(len(pose)):
            value, g = overlaps[i].max(0)
            if float(value) < self.meets or float(value) <= 0:
                continue
            overlaps[:, g] = -1.0
            s["met"] += 1
            hits, _ = P.pck(pose[i, :, :2], true[g, :, :2], sizes[g], alpha=self.pck, where=flat[g])
            s["hits"] += float(hits)
            s["nme"] += float(P.nme(pose[i, :, :2], true[g, :, :2], sizes[g], flat[g]))
            if bool(deep[g].any()):
                s["deep"] += 1
                s["mpjpe"] += float(P.mpjpe(pose[i, :, 2:], true[g, :, 2:], deep[g]))
                s["aligned"] += float(P.mpjpe(pose[i, :, 2:], true[g, :, 2:], deep[g], aligned=True))

    # --------------------------------------------------------------------------------------------------------- report

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """``pictures``: test images with the skeletons that are true, and with those of every detector of all parts."""
        networks = {n: r.built for n, r in rows.items() if isinstance(r, NetworkArtifact) and not r.part}
        if bench.folder is None or not networks:
            return {}
        ids = torch.linspace(0, len(self.test) - 1, min(SHOWN, len(self.test))).long()
        batch = to_device({**self.test.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, bench.device)
        x = batch["x"].cpu()

        def line(found: Mapping[str, Tensor], known: bool) -> list[Tensor]:
            drawn = []
            for i in range(len(x)):
                poses = []
                for c, (p, skeleton) in enumerate(self.parts.items()):
                    for m in found[f"where:{p}"][i].nonzero()[:, 0].tolist():
                        at = found[f"pose:{p}"][i, m, :, :2].cpu()
                        seen = found[f"known:{p}"][i, m, :, 0].cpu() if known else torch.ones(len(at), dtype=torch.bool)
                        poses.append(Drawn(at, seen, skeleton.edges, COLOURS[c % len(COLOURS)]))
                drawn.append(skeletons(x[i], poses))
            return drawn

        lines = [line(batch, True)]
        with torch.no_grad(), evaluating([b.module for b in networks.values()]):
            lines += [line(self.detections(built, batch), False) for built in networks.values()]
        write_rows(lines, bench.folder / "poses.png")
        shown = ["truth", *networks]
        caption = "Test images with true skeletons, and those found, row by row: " + ", ".join(shown)
        colours = ", ".join(f"{p} {COLOURS[c % len(COLOURS)]}" for c, p in enumerate(self.parts))
        return {
            "pictures": [{"title": f"Skeletons ({colours})", "caption": caption, "file": "poses.png", "rows": shown}]
        }

    def describe(self) -> dict[str, Any]:
        """What must travel with a detector so that its answers can be read elsewhere."""
        parts = {p: {"joints": list(s.joints), "edges": [list(e) for e in s.edges]} for p, s in self.parts.items()}
        about = {"form": "poses", "input": list(self.shape), "outputs": self.outputs, "classes": list(self.parts)}
        return about | {"parts": parts, "links": {k: list(v) for k, v in self.links.items()}}

    def default_student(self) -> dict[str, Any]:
        """A small detector."""
        return {"use": "part-detector"}

    def default_teacher(self) -> dict[str, Any]:
        """The same."""
        return {"use": "part-detector"}


_SUMS = ("joints", "hits", "true", "found", "met", "nme", "deep", "mpjpe", "aligned")


class Unknown:
    """Parts of a network whose anchor poses are among its weights."""

    def __init__(self, joints: Mapping[str, int]) -> None:
        self.joints = joints

    def anchors(self, part: str, count: int) -> Tensor:
        """Zeros [count, J, 5], which the weights replace."""
        return torch.zeros(count, self.joints[part], 5)


class _Named:
    """One part of anchor poses."""

    def __init__(self, whole: AnchorPoses, part: str) -> None:
        self.whole, self.joints = whole, {part: whole.joints[part]}

    def anchors(self, part: str, count: int) -> Tensor:
        """Those of the whole task's images, so that experts and student have the same."""
        return self.whole.anchors(part, count)


class _First:
    """The first items of a set."""

    def __init__(self, data: Data, count: int) -> None:
        self.data, self.count = data, min(count, len(data))

    def __len__(self) -> int:
        return self.count

    def fetch(self, items: Tensor) -> Batch:
        """As the set has them."""
        return self.data.fetch(items)

    @property
    def fingerprint(self) -> str:
        """The set's."""
        return self.data.fingerprint


def assembled(found: Mapping[str, Tensor], links: Mapping[str, Any], free: Tensor | None = None) -> dict[str, Tensor]:
    """Poses found in images, the wrists of bodies put where the wrists of the hands nearest to them are.

    Args:
        found: ``pose:P`` [N, D, J, 5] and ``where:P`` [N, D].
        links: ``wrists``: [body, its left wrist, its right wrist, hand, the hand's wrist]; nothing is moved without it.
        free: bool [N, B, 2], wrists (left, right) that may be moved; all by default.
    """
    out = dict(found)
    if "wrists" not in links:
        return out
    body, left, right, hand, root = links["wrists"]
    poses = out[f"pose:{body}"].clone()
    for i in range(len(poses)):
        bodies, hands = (out[f"where:{p}"][i].nonzero()[:, 0] for p in (body, hand))
        if len(bodies) and len(hands):
            own, near = poses[i, bodies, :, :2], out[f"pose:{hand}"][i, hands, :, :2]
            pairs = K.hands_of_bodies(own, near, wrists=(left, right), hand_wrist=root)
            if free is not None:
                pairs = torch.where(free[i, bodies], pairs, torch.full_like(pairs, -1))
            poses[i, bodies, :, :2] = K.with_wrists(own, near, pairs, wrists=(left, right), hand_wrist=root)
    out[f"pose:{body}"] = poses
    return out


__all__ = ["Poses", "assembled"]
