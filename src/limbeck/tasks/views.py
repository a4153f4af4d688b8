"""Scenes that are seen by cameras: cameras are the items, drawing the scene is the feed.

What a scene should look like is told by a diffusion model of images (`Views.part("pictures")` is the task that this model
is for), or by photographs with known cameras, or both. Cameras stand on a sphere and look at its middle; matrices go from
the world to the camera (x right, y down, z ahead). Images are [C, H, W] in [0, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.items import as_path, digest
from limbeck.data.sources import Digits, Source
from limbeck.errors import ConfigError, DataError
from limbeck.functional import splatting
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.needs import Needs
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.networks.scenes import check_scene, particles_of
from limbeck.tasks.generation import Generation
from limbeck.tasks.prompted import PLAIN, Prompted, side_of

NAMES = {"task": {"views": "Views"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class Drawn:
    """Cameras drawn from a key: the i-th is the same whatever is fetched beside it.

    Args:
        key: of the draws.
        count: how many.
        size: (height, width) of the images.
        fovy: least and greatest vertical opening angle in degrees.
        radius: least and greatest distance from the middle.
        elevation: least and greatest height above the horizon in degrees.
    """

    def __init__(
        self,
        key: str,
        count: int,
        size: tuple[int, int],
        fovy: tuple[float, float],
        radius: tuple[float, float],
        elevation: tuple[float, float],
    ) -> None:
        self.key, self.count, self.size = key, count, size
        self.ranges = (fovy, radius, elevation)

    def __len__(self) -> int:
        return self.count

    def fetch(self, items: Tensor) -> Batch:
        """``camera`` [n, 4, 4] and ``K`` [n, 3, 3]."""
        height, width = self.size
        u = Draws(0, ("cameras", self.key)).rand("place", items, (4,)).cpu()
        fovy, radius, up = (low + (high - low) * u[:, i] for i, (low, high) in enumerate(self.ranges))
        return around(u[:, 3] * 360, up, radius, fovy, width, height)

    @property
    def fingerprint(self) -> str:
        """What the cameras are."""
        return digest(
            torch.tensor(self.ranges), torch.tensor([*self.size, self.count]), torch.tensor(list(self.key.encode()))
        )


def around(turn: Tensor, up: Tensor, radius: Tensor, fovy: Tensor, width: int, height: int) -> Batch:
    """Cameras on a sphere: angles in degrees [n] around and above the horizon, distances [n], opening angles [n]."""
    a, e = turn * (math.pi / 180), up * (math.pi / 180)
    eye = radius[:, None] * torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    return {"camera": splatting.look_at(eye, torch.zeros(3)), "K": splatting.intrinsics(fovy, width, height)}


class Photos:
    """Photographs with their cameras.

    Args:
        pictures: [N, C, H, W] in [0, 1]. cameras: [N, 4, 4] from the world to the camera. Ks: [N, 3, 3] in pixels.
    """

    def __init__(self, pictures: Tensor, cameras: Tensor, Ks: Tensor) -> None:
        if (
            list(cameras.shape[1:]) != [4, 4]
            or list(Ks.shape[1:]) != [3, 3]
            or not len(pictures) == len(cameras) == len(Ks)
        ):
            raise DataError(
                "photos",
                given=[list(t.shape) for t in (pictures, cameras, Ks)],
                expected="[N, C, H, W], [N, 4, 4], [N, 3, 3]",
            )
        self.pictures, self.cameras, self.Ks = pictures, cameras, Ks

    def __len__(self) -> int:
        return len(self.pictures)

    def fetch(self, items: Tensor) -> Batch:
        """``camera``, ``K``, and the photograph ``x``."""
        return {"camera": self.cameras[items], "K": self.Ks[items], "x": self.pictures[items]}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(self.pictures, self.cameras, self.Ks)


def read_photos(folder: str, split: str, size: int | None = None, background: float = 1.0) -> Photos | None:
    """The photographs of a split in NeRF's layout: ``transforms_SPLIT.json`` beside PNG files; ``None`` where it is missing.

    Args:
        folder: where.
        split: ``train``, ``val`` or ``test``.
        size: side length the images are brought to.
        background: what stands behind transparent pixels.

    Raises:
        DataError: something cannot be read; it is named.
    """
    from PIL import Image

    root = as_path(folder, "task.photos")
    path = root / f"transforms_{split}.json"
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        angle, frames = float(told["camera_angle_x"]), list(told["frames"])
        poses = torch.tensor([f["transform_matrix"] for f in frames], dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(str(path), f"is no list of cameras: {error!r}", expected="camera_angle_x, frames") from None
    if list(poses.shape[1:]) != [4, 4]:
        raise DataError(str(path), given=list(poses.shape), expected="a transform_matrix [4, 4] for each frame")
    pictures = []
    for frame in frames:
        file = root / str(frame["file_path"])
        file = file if file.suffix else file.with_suffix(".png")
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGBA")
        except OSError as error:
            raise DataError(str(file), f"cannot be read: {error}") from None
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BOX)
        rgba = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 4)
        rgba = rgba.permute(2, 0, 1).float() / 255
        pictures.append(rgba[:3] * rgba[3:] + background * (1 - rgba[3:]))
    shapes = sorted({tuple(p.shape) for p in pictures})
    if len(shapes) != 1:
        raise DataError(
            "task.photos", f"photographs of {split} differ in size", given=shapes, remedy="set task.size=64"
        )
    height, width = shapes[0][1:]
    poses = poses @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))  # OpenGL's camera looks backwards and up
    f = 0.5 * width / math.tan(0.5 * angle)
    K = torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]).expand(len(poses), 3, 3)
    return Photos(torch.stack(pictures), torch.linalg.inv(poses), K)


@settings
class Views(Task):
    """Scenes seen by cameras.

    Args:
        data: images with classes, which a diffusion teacher learns.
        label: the class that is drawn, by its name: what a text prompt is to a model of texts.
        size: side length of the images; ``null`` keeps theirs.
        schedule: of the diffusion teacher; see the task ``generation``.
        prompt: what is drawn, in words, for a teacher of texts (``stable-diffusion``); then no images are read.
        latents: channels of such a teacher's latents, and by what their side is smaller than the images'.
        photos: a folder of photographs with cameras in NeRF's layout (``transforms_train.json``); ``null`` for none.
        cameras: how many are drawn for training.
        fovy: least and greatest vertical opening angle in degrees.
        radius: least and greatest distance from the middle.
        elevation: least and greatest height above the horizon in degrees.
        judged_views: test cameras, where there are no photographs.
        eval_batch: images at a time.
    """

    data: Source = Digits()
    label: str | None = None
    size: Count | None = None
    schedule: str = "cosine"
    prompt: str | None = None
    latents: tuple[Count, Count] = (4, 8)
    photos: str | None = None
    cameras: Count = 4096
    fovy: tuple[Positive, Positive] = (40.0, 70.0)
    radius: tuple[Positive, Positive] = (1.0, 1.5)
    elevation: tuple[float, float] = (-10.0, 60.0)
    judged_views: Count = 8
    eval_batch: Count = 64

    primary: ClassVar[str] = "psnr"  # type: ignore[misc]
    higher_is_better: ClassVar[bool] = True  # type: ignore[misc]
    onnx_names: ClassVar[tuple[str, ...]] = ("camera", "K", "particle")  # type: ignore[misc]
    judging: ClassVar[tuple[str, ...]] = ("judged_views", "eval_batch")  # type: ignore[misc]

    def validate(self) -> None:
        """Ranges go upwards."""
        for name in ("fovy", "radius", "elevation"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must not fall: {low:g} to {high:g}")
        if self.fovy[1] >= 180:
            raise ValueError("fovy must be below 180 degrees")
        if self.prompt is not None and (self.size or 64) % self.latents[1]:
            raise ValueError(f"size must be a multiple of {self.latents[1]}, by which latents are smaller")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is None:
            self.pictures = Generation(data=self.data, schedule=self.schedule, size=self.size)
        else:
            side = (self.size or 64) // self.latents[1]
            self.pictures = Prompted(self.prompt, (self.latents[0], side, side), self.schedule)
        self._loaded = False

    def part(self, name: str) -> Task:
        """``pictures``: what a diffusion teacher is for."""
        if name == "pictures":
            return self.pictures
        return super().part(name)

    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """The shape of images; cameras are those of the settings."""
        if bare:
            self.shape, self.wanted, self.notes = tuple(int(n) for n in about["shape"]), 0, []
            self.has_photos, self._loaded = True, True

    def load(self, seed: int | None = None) -> None:
        """Read images or photographs, and place the cameras.

        Raises:
            DataError: they cannot be read. ConfigError: the class is unknown.
        """
        if self._loaded:
            return
        self.has_photos = self.photos is not None
        if self.photos is not None:
            found = {split: read_photos(self.photos, split, self.size) for split in ("train", "val", "test")}
            train, test = found["train"], found["test"] or found["val"]
            if train is None or test is None:
                raise DataError(
                    "task.photos", given=self.photos, expected="transforms_train.json and transforms_test.json"
                )
            self.give(train, found["val"] or test, test)
        else:
            self.pictures.load(seed)
            self.shape = tuple(self.pictures.shape) if self.prompt is None else (3, self.size or 64, self.size or 64)
            self.labels = list(self.pictures.labels or [])
            self.wanted = self._class()
            size = (self.shape[1], self.shape[2])
            where = (self.fovy, self.radius, self.elevation)
            self.train: Data = Drawn("train", self.cameras, size, *where)
            self.valid: Data = Drawn("valid", self.judged_views, size, *where)
            self.test: Data = Drawn("test", self.judged_views, size, *where)
            self.teacher_train: Data = self.train
            self.notes = list(self.pictures.notes)
        self._loaded = True

    def give(self, train: Photos, valid: Photos, test: Photos) -> None:
        """Photographs in place of those of a folder."""
        self.has_photos, self._loaded = True, True
        self.shape, self.wanted, self.notes = tuple(train.pictures.shape[1:]), 0, []
        self.train = self.teacher_train = train
        self.valid, self.test = valid, test

    def _class(self) -> int:
        """The number of the class that is drawn.

        Raises:
            ConfigError: no class has this name.
        """
        labels = self.labels or []
        if self.prompt is not None:
            return PLAIN
        if self.label is None:
            return 0
        if self.label not in labels:
            raise ConfigError.unknown("task.label", self.label, labels, "class")
        return labels.index(self.label)

    @property
    def needs(self) -> Needs:
        """A scene that is drawn in images of this shape."""
        self.load()
        return Needs(self.shape, 0, "scene", key="camera")

    def conditions(self, camera: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher, and what the model of the scene, are told of views [B, 4, 4]: int64 [B] each."""
        plain = torch.full((len(camera),), self.wanted, device=camera.device)
        return (plain if self.prompt is None else side_of(camera)), plain

    def signed(self, x: Tensor) -> Tensor:
        """Images in [0, 1] as noise is added to them: [-1, 1]."""
        return x * 2.0 - 1.0

    def feed(self, module: Any, batch: Batch) -> Any:
        """The scene drawn: images [n, C, H, W]. A batch without ``particle`` goes through the particles in turn."""
        particle = batch["particle"] if "particle" in batch else batch["item"] % particles_of(module)
        return module(batch["camera"], batch["K"], particle)

    def rehearse(self, built: Built, role: str = "model") -> None:
        """Two images of a scene just built."""
        batch = self.example(2)
        device = device_of(built.module)
        with torch.no_grad(), evaluating([built.module]):
            made = self.feed(built.module, {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
        check_scene(made, self.shape, 2)

    def supervised(self, signal: Signal, batch: Batch) -> Term:
        """0.8 |x - photograph| + 0.2 (1 - SSIM), one value an image.

        Raises:
            DataError: there are no photographs.
        """
        if "x" not in batch:
            raise DataError(
                "task.photos", "a scene is fitted to photographs, and there are none", remedy="set task.photos"
            )
        return Term(splatting.l1_dssim(signal.out, batch["x"]))

    def look(self, module: Any, data: Data, particle: int = 0, device: torch.device | None = None) -> Tensor:
        """A particle from all cameras of some data [n, C, H, W], in [0, 1]."""
        device = device or device_of(module)
        parts = []
        with torch.no_grad(), evaluating([module]):
            for ids in torch.arange(len(data)).split(self.eval_batch):
                batch = {k: v.to(device) for k, v in data.fetch(ids).items()}
                parts.append(self.feed(module, {**batch, "particle": torch.full_like(ids, particle, device=device)}))
        return torch.cat(parts).clamp(0, 1)

    def turntable(self, frames: int = 16) -> Data:
        """Cameras once around the scene, at the middle of the ranges."""
        up, radius, fovy = (torch.full((frames,), sum(r) / 2) for r in (self.elevation, self.radius, self.fovy))
        turn = torch.arange(frames) * (360.0 / frames)
        batch = around(turn, up, radius, fovy, self.shape[2], self.shape[1])
        return Circle(batch)

    def evaluate(
        self, built: Built, data: Data, teacher: Built | None = None, device: torch.device | None = None
    ) -> dict[str, float]:
        """``psnr`` and ``ssim`` of the first particle against photographs that it has not seen."""
        if not self.has_photos:
            return {}
        made = self.look(built.module, data, 0, device).cpu()
        real = data.fetch(torch.arange(len(data)))["x"]
        ssim = splatting.ssim_map(made, real).mean()
        return {"psnr": float(splatting.psnr(made, real).mean()), "ssim": float(ssim)}

    def default_student(self) -> dict[str, Any]:
        """Free images; Gaussians where there are photographs."""
        return {"use": "pictures" if self.photos is None and self.prompt is None else "gaussians"}

    def default_teacher(self) -> dict[str, Any]:
        """A denoiser of the images; one of texts must be named."""
        return self.pictures.default_teacher()

    def default_evaluator(self) -> dict[str, Any]:
        """Unseen photographs, or the spread of the particles."""
        metric = "psnr" if self.photos is not None else "energy" if self.prompt is None else "spread"
        return {"use": "scenes", "metric": metric}

    def cache_bytes(self) -> float:
        """Nothing can be recorded once for each item."""
        return 0.0

    def describe(self) -> dict[str, Any]:
        """The shape of an image, and the class that is drawn."""
        return {
            "shape": list(self.shape),
            "range": [0.0, 1.0],
            "class": None if self.has_photos else (self.labels or [])[self.wanted],
        }


class Circle:
    """Given cameras as data.

    Args:
        batch: ``camera`` [n, 4, 4] and ``K`` [n, 3, 3].
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["camera"])

    def fetch(self, items: Tensor) -> Batch:
        """Some of them."""
        return {k: v[items] for k, v in self.batch.items()}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(self.batch["camera"], self.batch["K"])


__all__ = ["Drawn", "Photos", "Views", "around", "read_photos"]
