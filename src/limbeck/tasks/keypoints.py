"""Keypoints of one pose a picture: a face's landmarks, a person cut out of a crowd; points that are not labelled left out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, smooth_l1_loss

from limbeck.data.asked import AskedPictures, unfitted
from limbeck.data.figures import DrawnFigures
from limbeck.data.items import Items, Part, Splits, digest, to_unit
from limbeck.data.keypoints import KeypointSource, Posed, PoseItems, Skeleton
from limbeck.data.names import some
from limbeck.data.sources import Source
from limbeck.data.splits import ready
from limbeck.engine.batches import to_device
from limbeck.errors import CacheMismatch, ConfigError, DataError, TeacherMismatch
from limbeck.functional import pose_metrics as P
from limbeck.functional.keypoints import pose_boxes
from limbeck.functional.landmarks import fit_shapes, soft_landmarks
from limbeck.grammar.answers import Answer
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.drawn_poses import Drawn, skeletons, write_rows
from limbeck.tasks.items import OutputTask

if TYPE_CHECKING:
    from limbeck.grammar.evaluator import Bench

NAMES = {"task": {"keypoints": "Keypoints"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

SHOWN = 6
"""Test images that are drawn in the report."""


class Points:
    """Images with one pose each, all parts' joints in a row.

    Args:
        data: images with at most one instance of each part.
        name: of the split, for messages.
    """

    def __init__(self, data: Items, name: str) -> None:
        self.data, self.shape, self.y = data, data.shape, data.y
        self.skeleton, points, where = _joined(data, name)
        self.points, self.where = points, where
        self.sizes = P.pose_sizes(points, where, self.skeleton.pair)

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """``x``; ``points`` [n, K, 2] in pixels, ``where`` bool [n, K], and ``extent`` [n] that errors are measured in."""
        x = self.data.fetch(items)["x"]
        return {"x": x, "points": self.points[items], "where": self.where[items], "extent": self.sizes[items]}

    @property
    def fingerprint(self) -> str:
        """Of the images, the points and what they are measured in."""
        return digest(self.data.fingerprint, self.points, self.where, repr(self.skeleton.pair))


def _joined(data: Items, name: str) -> tuple[Skeleton, Tensor, Tensor]:
    """All parts' joints as one skeleton, with points [N, K, 2] and which are labelled [N, K]."""
    base: Any = data
    while not isinstance(base, PoseItems):
        base = base.data
    points, where = [], []
    for ids in torch.arange(len(data)).split(512):
        batch = data.fetch(ids)
        rows = [(batch[f"pose:{n}"], batch[f"known:{n}"], batch[f"where:{n}"]) for n in base.parts]
        many = torch.stack([w.sum(1) for _, _, w in rows], 1).amax(1) > 1
        if bool(many.any()):
            raise DataError(
                f"task.data ({name})",
                f"{int(many.sum())} images show several poses: items {some([str(int(i)) for i in ids[many]], 5)}",
                expected="one pose an image",
                remedy="cut each out with task.crop=1.25 (and task.size), or find all of them with task=poses",
            )
        points.append(torch.cat([p[:, 0, :, :2] for p, _, _ in rows], 1))
        where.append(torch.cat([k[:, 0, :, 0] & w[:, :1] for _, k, w in rows], 1))
    parts = list(base.parts.values())
    starts = [sum(len(s.joints) for s in parts[:i]) for i in range(len(parts))]
    merged = Skeleton(
        tuple(j for s in parts for j in s.joints),
        tuple((a + o, b + o) for s, o in zip(parts, starts, strict=True) for a, b in s.edges),
        tuple(f + o for s, o in zip(parts, starts, strict=True) for f in s.flip) if all(s.flip for s in parts) else (),
        next(((s.pair[0] + o, s.pair[1] + o) for s, o in zip(parts, starts, strict=True) if s.pair), None),
    )
    return merged, torch.cat(points), torch.cat(where)


ROUNDS = 10
"""How often shapes are fitted anew where points are not labelled."""


def smoothed(points: Tensor, where: Tensor, variance: float) -> Tensor:
    """Poses [N, K, 2] redrawn from the principal components that keep this share of their variance.

    Every coefficient stays within three standard deviations. Points that are not labelled start at their mean over the
    poses; then they are filled from the fit and fitted again, 10 times. This filling is ours: the paper's poses are complete.

    Args:
        points: of the training poses, in one unit.
        where: bool [N, K], which are labelled.
        variance: share, above 0 and below 1.

    Raises:
        DataError: all poses are the same, or the components reproduce every pose exactly because there are too few poses.
    """
    known = where.unsqueeze(-1)
    x = torch.where(known, points.double(), 0.0)
    x = torch.where(known, x, x.sum(0) / known.sum(0).clamp_min(1))
    if len(x) < 2 or not bool((x - x[:1]).abs().amax() > 0):
        raise DataError("task.data", f"{len(x)} training poses that do not differ", expected="poses of several shapes")
    for _ in range(1 if bool(where.all()) else ROUNDS):
        shapes = fit_shapes(x.flatten(1), variance)
        if (k := len(shapes.variances)) >= len(x) - 1:
            raise DataError(
                "task.data",
                f"{len(x)} training poses need {k} components for {variance:.0%} of the variance: nothing is smoothed",
                expected="more poses than components, by two or more",
                remedy="take more poses, or a smaller method.variance",
            )
        soft = soft_landmarks(x.flatten(1), shapes).view_as(x)
        x = torch.where(known, x, soft)
    return soft.to(points.dtype)


class Cropped:
    """Every instance of a part cut out of its image, with the other parts' poses that lie nearest to it left away.

    Args:
        data: images with poses.
        part: whose instances; the others are not told.
        margin: side of the square that is cut out, in units of the longer side of the instance's box.
        size: side that it is brought to.
    """

    def __init__(self, data: Items, part: str, margin: float, size: int) -> None:
        base: Any = data
        ids = torch.arange(len(data))
        while not isinstance(base, PoseItems):
            ids, base = base.ids[ids], base.data
        found = [c for i in ids.tolist() for c in cut_out(base.found[i], part, margin, size)]
        made = PoseItems(found, {part: base.parts[part]})
        self.data, self.shape, self.y = made, made.shape, made.y

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """As `PoseItems`."""
        return self.data.fetch(items)

    @property
    def fingerprint(self) -> str:
        """Of the images that were cut out."""
        return self.data.fingerprint


def cut_out(one: Posed, part: str, margin: float, size: int) -> list[Posed]:
    """The instances of a part on an image, each in a square about it; what lies outside of the image is black."""
    found = []
    high, wide = one.x.shape[-2:]
    for m in range(len(one.poses[part])):
        pose, known = one.poses[part][m], one.known[part][m]
        if not bool(known[:, 0].any()):
            continue
        box = one.boxes[part][m] if part in one.boxes else pose_boxes(pose[:, :2], 0.1, known[:, 0])
        side = max(2, round(float((box[2:] - box[:2]).max()) * margin))
        left, top = (round(float(v)) for v in (box[:2] + box[2:]) / 2 - side / 2)
        square = one.x.new_zeros(len(one.x), side, side)
        a, b = max(0, left), min(wide, left + side)
        c, d = max(0, top), min(high, top + side)
        if b > a and d > c:
            square[:, c - top : d - top, a - left : b - left] = one.x[:, c:d, a:b]
        given: dict[str, Any] = {"align_corners": False, "antialias": True, "mode": "bilinear"}
        x = interpolate(square[None], (size, size), **given)[0] if side != size else square
        at = (pose[:, :2] - torch.tensor([left, top])) * (size / side)
        moved = torch.cat([torch.where(known[:, :1], at, 0.0), pose[:, 2:]], -1)
        found.append(Posed(x, {part: moved[None]}, {part: known[None]}, frozenset([part])))
    return found


@settings
class Keypoints(OutputTask):
    """Keypoints of one pose an image.

    A batch holds ``points`` [N, K, 2] in pixels and ``where`` [N, K], those that are labelled. A network answers with [N, 2K]
    numbers x1, y1, x2, ... (or [N, K, 2]) in units of the image about its middle, from -0.5 to 0.5: `normalised` and
    `in_pixels` lead from one to the other. What students and teachers show is [N, K, 2].

    Args:
        data: where images and keypoints come from.
        crop: cut every instance of ``instances`` out of its image, in a square of so many times the longer side of its box,
            which is brought to ``size``.
        instances: the part whose instances are cut out; the first by default.
        student_items: size of the student's training set, drawn by the seed; all if ``null``.
        loss: of a labelled point, in the network's units: the mean over x and y of the ``l2`` (squared), ``l1`` or
            ``smooth_l1`` (with ``beta`` 0.01) distance.
        pck: a point is right within this share of the pose's size: the distance of the data's ``pair``, else the longer
            side of its box.
        failure: normalised mean error above which a pose has failed; the area under the curve is taken up to here.
    """

    primary = "nme"
    higher_is_better = False
    judging = ("student_items", "eval_batch", "pck", "failure")

    reads = "keypoints"

    data: Source = DrawnFigures(parts=["body"])
    crop: Positive | None = None
    instances: str | None = None
    student_items: Count | None = None
    loss: Literal["l2", "l1", "smooth_l1"] = "l2"
    pck: Positive = 0.1
    failure: Positive = 0.1

    takes_unlabelled = True

    def validate(self) -> None:
        """What is cut out is brought to one size."""
        if self.crop is not None and self.size is None:
            raise ValueError("crop needs size, the side that what is cut out is brought to")

    # ---------------------------------------------------------------------------------------------------------- data

    def part(self, name: str) -> Task:
        """The same task with smoothed training poses: ``smooth:0.9`` keeps 90 % of their variance (`smoothed`).

        The validation and test poses are the true ones.

        Raises:
            ConfigError: the name is not of this form.
            DataError: the poses cannot be smoothed.
        """
        kind, _, share = name.partition(":")
        try:
            variance = float(share)
        except ValueError:
            variance = 0.0
        if kind != "smooth" or not 0 < variance < 1:
            raise ConfigError("task", f"keypoints has no part {name!r}", expected="smooth:SHARE, such as smooth:0.9")
        pool: Any = self.loaded()
        kept: dict[Any, Task] = self.__dict__.setdefault("_parts", {})
        if (name, self._seed) not in kept:
            one = copy.copy(self)
            one.__dict__.pop("_parts", None)
            soft = copy.copy(pool)
            soft.points = self.in_pixels(smoothed(self.normalised(pool.points), pool.where, variance))
            one._pool = one.teacher_train = soft
            one.train = Part(soft, self.train.ids) if isinstance(self.train, Part) else soft
            one.notes, one.class_sizes = [], {}
            kept[name, self._seed] = one
        return kept[name, self._seed]

    def read(self) -> Splits:
        """Images and points in three splits."""
        splits = read_poses(self.data, None if self.crop is not None else self.size)
        names = list(splits.labels)
        if self.crop is not None:
            assert self.size is not None
            part = self.instances or names[0]
            if part not in names:
                raise ConfigError.unknown("task.instances", part, names, "part")
            for name in ("train", "valid", "test"):
                one = getattr(splits, name)
                if one is not None:
                    setattr(splits, name, Cropped(one, part, self.crop, self.size))
            splits.labels = [part]
        splits = ready(splits, self.valid_fraction, self.test_fraction, "keep", self.deal)
        for name in ("train", "valid", "test"):
            setattr(splits, name, Points(getattr(splits, name), name))
        train: Any = splits.train
        self.skeleton: Skeleton = train.skeleton
        splits.labels = list(self.skeleton.joints)
        seen = train.where.any(0)
        if not bool(seen.all()):
            lost = [n for n, s in zip(splits.labels, seen.tolist(), strict=True) if not s]
            raise DataError(
                "task.data", f"no training image has a label of {some(lost)}", expected="labels of each point"
            )
        if float((train.sizes > 0).float().mean()) < 1:
            splits.notes.append(
                f"{int((train.sizes <= 0).sum())} training poses have no size that errors are measured in"
            )
        pair = self.skeleton.pair
        said = "the longer side of the pose's box"
        if pair is not None:
            said = f"the distance of {splits.labels[pair[0]]} and {splits.labels[pair[1]]}"
        splits.notes.append(f"errors are measured in {said}")
        return splits

    @property
    def needs(self) -> Needs:
        """Two numbers a point."""
        return Needs(self.shape, 2 * self.outputs, "keypoints", target="number")

    def cache_bytes(self) -> float:
        """Four bytes a number: half precision would move a point of a large image."""
        return 8.0 * self.outputs

    def normalised(self, points: Tensor) -> Tensor:
        """Pixels [..., K, 2] as shares of the image about its middle, as networks answer."""
        _, high, wide = self.shape
        return points / points.new_tensor([wide, high]) - 0.5

    def in_pixels(self, answers: Tensor) -> Tensor:
        """What networks answer [..., K, 2] in pixels."""
        _, high, wide = self.shape
        return (answers.float() + 0.5) * answers.new_tensor([wide, high], dtype=torch.float32)

    # ------------------------------------------------------------------------------------------------------ training

    def feed(self, module: Any, batch: Batch) -> Tensor:
        """[N, K, 2]."""
        z = Signal(module(batch["x"])).logits
        return z.unflatten(-1, (-1, 2)) if z.ndim == 2 and z.shape[-1] % 2 == 0 else z

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """The distance of every labelled point [N, K]."""
        z, aim = signal.logits.float(), self.normalised(batch["points"])
        z = torch.where(batch["where"].unsqueeze(-1), z, aim)
        if self.loss == "l2":
            values = (z - aim).square()
        elif self.loss == "l1":
            values = (z - aim).abs()
        else:
            values = smooth_l1_loss(z, aim, beta=0.01, reduction="none")
        return Term(values.mean(-1), where=self.counted(batch))

    def counted(self, batch: Batch) -> Tensor:
        """Which points are labelled."""
        counts: Tensor = batch["where"]
        return counts

    def answer_shape(self, z: Tensor, items: int) -> str:
        """[N, K, 2]."""
        want = [items, self.outputs, 2]
        return "" if list(z.shape) == want else f"[{items}, {2 * self.outputs}] or {want}, x and y of each point"

    def by_name(self, built: Built) -> None:
        """Points are not exchanged: a network for others, or for the same in another order, is refused."""
        if built.labels is not None and list(built.labels) != self.labels:
            raise TeacherMismatch(
                "teacher.labels",
                "its points are not those of the task, or stand in another order",
                given=some(built.labels, 4),
                expected=some(self.labels or [], 4),
            )

    # ------------------------------------------------------------------------------------------------------- answers

    def _recall(self, about: Mapping[str, Any]) -> None:
        super()._recall(about)
        self.skeleton = Skeleton(
            tuple(str(n) for n in about["points"]), tuple((int(a), int(b)) for a, b in about.get("edges") or ())
        )

    def asked(self, given: Any, preprocessing: Mapping[str, Any]) -> Any:
        """Images of one pose each, cut out as those that were trained on."""
        return AskedPictures(given, tuple(self.shape), {**preprocessing, "resize_mode": "contain"})

    def reply(self, built: Built, batch: Batch, asked: Any, items: Tensor, **options: Any) -> list[Answer]:
        """Every point (x, y) in the pixels of each image as it was given."""
        seen = self.in_pixels(self.signal(built, batch).logits).cpu()
        found = []
        for item, points in zip(items.tolist(), seen, strict=True):
            own = unfitted(points, asked.size_of(item), (self.shape[1], self.shape[2]))
            found.append(
                Answer({"points": dict(zip(self.skeleton.joints, own.tolist(), strict=True))}, {"points": own})
            )
        return found

    def picture_of(self, answer: Answer, asked: Any, item: int) -> Tensor:
        """The image with its pose."""
        points = answer.tensors["points"]
        pose = Drawn(points, torch.ones(len(points), dtype=torch.bool), self.skeleton.edges)
        return skeletons(to_unit(asked.original(item)), [pose])

    # ------------------------------------------------------------------------------------------------------- evaluation

    def answers(self, built: Built, data: Data, device: torch.device) -> Tensor:
        """A network's points on some data, in pixels [N, K, 2]."""
        found = []
        for ids in torch.arange(len(data)).split(self.eval_batch):
            batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
            found.append(self.in_pixels(self.signal(built, batch).logits).cpu())
        return torch.cat(found)

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> Scores:
        """Metrics of a network on a split, over labelled points.

        ``nme``: mean over poses of the mean distance in units of the pose's size; ``pck``: share of points within ``pck``
        times that; ``failure``: share of poses with a larger nme than that; ``auc``: area under the cumulative error curve
        up to there; ``pixels``: mean distance. With a teacher ``gap``: the mean distance of its points, in the same units.
        """
        device = device or device_of(built.module)
        whole: Any = data
        batch = whole.fetch(torch.arange(len(whole)))
        true, where, sizes = batch["points"], batch["where"], batch["extent"]
        with torch.no_grad(), evaluating([b.module for b in (built, teacher) if b is not None]):
            z = self.answers(built, data, device)
            try:
                t = None if teacher is None else self.answers(teacher, data, device)
            except CacheMismatch:  # a recorded teacher knows its training items only
                t = None
        measured = where.any(-1) & (sizes > 0)
        z, true, where, sizes = (v[measured] for v in (z, true, where, sizes))
        if not len(z):
            raise DataError("task.data", "no pose to be evaluated has a label and a size", expected="labelled points")
        error = P.nme(z, true, sizes, where)
        hits, count = P.pck(z, true, sizes, alpha=self.pck, where=where)
        far = P.nme(z, true, torch.ones_like(sizes), where)
        per_item = {
            "nme": error,
            "failure": (error > self.failure).float(),
            "auc": P.error_area(error, self.failure),
            "pixels": far,
        }
        found = {k: float(v.double().mean()) for k, v in per_item.items()}
        found["pck"] = float(hits.sum() / count.sum())
        if t is not None:
            found["gap"] = float(P.nme(z, t[measured], sizes, where).double().mean())
        return Scores(found, per_item)

    def try_out(self, teacher: Built, device: torch.device | None = None) -> None:
        """Hold a ready teacher's points against labels, and refuse one that is farther off than the mean pose."""
        place = device or device_of(teacher.module)
        if isinstance(teacher.module, torch.nn.Module):
            teacher.module.to(place)
        n = min(256, len(self.teacher_train))
        ids = torch.arange(n)
        batch = to_device({**self.teacher_train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, place)
        with torch.no_grad(), evaluating([teacher.module]):
            z = self.in_pixels(self.signal(teacher, batch).logits)
        where, true = batch["where"], batch["points"]
        mean = (true * where.unsqueeze(-1)).sum(0) / where.sum(0).clamp_min(1).unsqueeze(-1)
        own = float((z - true).norm(dim=-1)[where].mean())
        chance = float((mean - true).norm(dim=-1)[where].mean())
        told = f"points {own:.2f} pixels off on {n} labelled images (the mean pose: {chance:.2f})"
        setting = teacher.model.setting("check")
        if not own < chance and not teacher.model.held:  # NaN is refused too
            raise TeacherMismatch(
                teacher.model.role or "teacher",
                f"it only guesses: {told}",
                expected="weights for these points, in this order, in shares of the image about its middle",
                remedy=f"check points and units, or set {setting}=off to go on all the same",
            )
        teacher.notes.append(told)

    # --------------------------------------------------------------------------------------------------------- report

    def extras(self, rows: Mapping[str, Artifact], bench: Bench) -> dict[str, Any]:
        """``pictures``: test images with true points, and with those of every network among the rows."""
        networks = {n: r.built for n, r in rows.items() if isinstance(r, NetworkArtifact) and not r.part}
        if bench.folder is None or not networks:
            return {}
        ids = torch.linspace(0, len(self.test) - 1, min(SHOWN, len(self.test))).long()
        batch = to_device({**self.test.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, bench.device)
        x, edges = batch["x"].cpu(), self.skeleton.edges
        where = batch["where"].cpu()

        def line(points: Tensor, seen: Tensor) -> Sequence[Tensor]:
            return [skeletons(x[i], [Drawn(points[i], seen[i], edges)]) for i in range(len(x))]

        lines, shown = [line(batch["points"].cpu(), where)], ["truth"]
        with torch.no_grad(), evaluating([b.module for b in networks.values()]):
            for name, built in networks.items():
                try:
                    z = self.in_pixels(self.signal(built, batch).logits).cpu()
                except CacheMismatch:
                    continue
                lines.append(line(z, torch.ones_like(where)))
                shown.append(name)
        write_rows(lines, bench.folder / "keypoints.png")
        caption = "Test images with true points, and those of each network, row by row: " + ", ".join(shown)
        return {"pictures": [{"title": "Keypoints", "caption": caption, "file": "keypoints.png", "rows": shown}]}

    def describe(self) -> dict[str, Any]:
        """With the names of the points."""
        return super().describe() | {
            "points": list(self.labels or []),
            "edges": [list(e) for e in self.skeleton.edges],
        }

    def default_student(self) -> dict[str, Any]:
        """A small convolutional network."""
        return {"use": "convnet", "width": 16}

    def default_teacher(self) -> dict[str, Any]:
        """A larger one."""
        return {"use": "convnet", "width": 64}


def read_poses(data: Source, size: int | None) -> Splits:
    """A source's images with poses.

    Raises:
        DataError: it has none.
    """
    if not isinstance(data, KeypointSource):
        raise DataError(
            "task.data",
            "its items have no keypoints",
            given=data.config.get("use", type(data).__name__),
            expected="a source of keypoints: keypoints, coco-keypoints or drawn-figures",
        )
    return data.poses(size)


__all__ = ["Cropped", "Keypoints", "Points", "cut_out", "read_poses"]
