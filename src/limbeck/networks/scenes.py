"""Scenes that are drawn differentiably: free images, Gaussians, a small field, or anything with `render(params, camera)`.

A scene is a module ``(camera [B, 4, 4], K [B, 3, 3], particle [B]) -> images [B, C, H, W]`` in [0, 1]. It holds
``particles`` of its kind side by side, each with parameters of its own: the particle says which one is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import ConfigError, ShapeError, require
from limbeck.functional import meshes, splatting

Init = Literal["blob", "hollow"]
"""``blob``: matter in the middle, seen from outside; ``hollow``: around the cameras, which stand inside."""


class Camera(NamedTuple):
    """Cameras of a batch.

    Attributes:
        view: [B, 4, 4] from the world to the camera: x right, y down, z ahead.
        K: [B, 3, 3] in pixels.
        width, height: of the image.
    """

    view: Tensor
    K: Tensor
    width: int
    height: int


class Scene(nn.Module):
    """What all scenes share.

    Args:
        particles: how many stand side by side.
        shape: of an image, (channels, height, width).
    """

    cameras = True
    """Whether it looks different from different cameras."""

    def __init__(self, particles: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.particles, self.shape = particles, tuple(shape)

    def trace(
        self, camera: Tensor, K: Tensor, particle: Tensor, behind: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Images [B, C, H, W] in [0, 1], and how much of each pixel is covered [B, 1, H, W], where that is known.

        ``behind`` [B, C] is put behind what is drawn, in place of the scene's own background.
        """
        raise TypeError(f"{type(self).__name__} must define trace")

    def forward(self, camera: Tensor, K: Tensor, particle: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1]."""
        return self.trace(camera, K, particle)[0]


class Pictures(Scene):
    """Particles that are pictures: the simplest scene, the same from everywhere.

    Args:
        particles, shape: how many, of which shape.
        spread: standard deviation of the noise they start from, in [-1, 1].
    """

    cameras = False

    def __init__(self, particles: int, shape: tuple[int, ...], spread: float = 0.5) -> None:
        super().__init__(particles, shape)
        self.pixels = nn.Parameter(torch.randn(particles, *shape) * spread)

    def trace(
        self, camera: Tensor, K: Tensor, particle: Tensor, behind: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Images [B, C, H, W]; nothing keeps them within [0, 1] but what they are moved by."""
        return (self.pixels[particle] + 1) / 2, None


class Gaussians(Scene):
    """Particles that are clouds of Gaussians.

    Args:
        particles, shape: how many, of which images.
        count: Gaussians of each.
        sh_degree: of the colours that depend on the direction; 0 for none.
        radius: of the ball (or of the shell) that they start in.
        init: see `Init`.
        background: what stands behind them, in [0, 1].
    """

    def __init__(
        self,
        particles: int,
        shape: tuple[int, ...],
        count: int = 300,
        sh_degree: int = 0,
        radius: float = 0.5,
        init: Init = "blob",
        background: float = 0.0,
    ) -> None:
        super().__init__(particles, shape)
        self.sh_degree, self.background = sh_degree, background
        way = F.normalize(torch.randn(particles, count, 3), dim=-1)
        far = torch.rand(particles, count, 1)
        # even in the ball; a shell at two to three radii is outside of the cameras
        far = radius * far ** (1 / 3) if init == "blob" else radius * (4 + 2 * far)
        size = radius * (4.2 / max(count, 1)) ** (1 / 3) * 0.5 * (1 if init == "blob" else 5)
        self.means = nn.Parameter(way * far)
        self.log_scales = nn.Parameter(torch.full((particles, count, 3), math.log(size)))
        self.quats = nn.Parameter(torch.randn(particles, count, 4))
        self.logits = nn.Parameter(torch.full((particles, count), math.log(0.1 / 0.9)))
        sh = torch.zeros(particles, count, (sh_degree + 1) ** 2, shape[0])
        sh[:, :, 0] = 0.3 * torch.randn(particles, count, shape[0])
        self.sh = nn.Parameter(sh)

    def part(self, particle: int) -> dict[str, Any]:
        """A particle's Gaussians as `rasterization` takes them."""
        return {
            "means": self.means[particle],
            "quats": self.quats[particle],
            "scales": self.log_scales[particle].exp(),
            "opacities": self.logits[particle].sigmoid(),
            "colors": self.sh[particle],
        }

    def trace(
        self, camera: Tensor, K: Tensor, particle: Tensor, behind: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Images [B, C, H, W], clamped at 1, and their cover."""
        channels, height, width = self.shape
        behind = camera.new_full((len(camera), channels), self.background) if behind is None else behind
        options: dict[str, Any] = {"width": width, "height": height, "sh_degree": self.sh_degree}
        if self.particles == 1:  # all cameras in one call
            made = [splatting.rasterization(**self.part(0), **options, viewmats=camera, Ks=K, backgrounds=behind)]
        else:
            ones = [slice(i, i + 1) for i in range(len(camera))]
            made = [
                splatting.rasterization(**self.part(p), **options, viewmats=camera[i], Ks=K[i], backgrounds=behind[i])
                for i, p in zip(ones, particle.tolist(), strict=True)
            ]
        picture, cover = (torch.cat([(m[0], m[1])[k] for m in made]).permute(0, 3, 1, 2) for k in (0, 1))
        return picture.clamp_max(1.0), cover


class Field(Scene):
    """Particles that are small radiance fields, drawn by marching along rays: the first stage, before a mesh is taken out.

    A perceptron of sines and cosines of the place gives density (softplus, with a bump ``10 (1 - |x| / 0.5)`` in the middle,
    or its opposite where the camera stands inside) and colour; a plain colour stands behind. No hash grid: this is small.

    Args:
        particles, shape: how many, of which images.
        width: of the hidden layers. frequencies: octaves of the place.
        samples: along a ray. bound: the radius in which there is matter.
        init: see `Init`.
    """

    def __init__(
        self,
        particles: int,
        shape: tuple[int, ...],
        width: int = 32,
        frequencies: int = 4,
        samples: int = 24,
        bound: float = 1.0,
        init: Init = "blob",
    ) -> None:
        super().__init__(particles, shape)
        self.frequencies, self.samples, self.bound, self.init = frequencies, samples, bound, init
        features = 3 + 6 * frequencies
        sizes = [(features, width), (width, width), (width, 1 + shape[0])]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(particles, a, b) * math.sqrt((1.0 if b != width else 2.0) / a)) for a, b in sizes
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(particles, 1, b)) for _, b in sizes)
        self.behind = nn.Parameter(torch.zeros(particles, shape[0]))

    def query(self, x: Tensor, particle: Tensor) -> tuple[Tensor, Tensor]:
        """Density [B, M] and colour [B, M, C] at places ``x`` [B, M, 3]."""
        rates = math.pi * 2.0 ** torch.arange(self.frequencies, device=x.device, dtype=x.dtype)
        angle = (x[..., None] * rates).flatten(-2)
        h = torch.cat([x, angle.sin(), angle.cos()], -1)
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(b[particle], h, w[particle])
            h = F.silu(h) if i < 2 else h
        bump = 10 * (1 - x.norm(dim=-1) / (0.5 * self.bound))
        bump = bump if self.init == "blob" else -bump
        return F.softplus(h[..., 0] + bump), h[..., 1:].sigmoid()

    def trace(
        self, camera: Tensor, K: Tensor, particle: Tensor, behind: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Images [B, C, H, W], and how much of each ray was stopped [B, 1, H, W]."""
        channels, height, width = self.shape
        B = len(camera)
        i = torch.arange(width, device=camera.device, dtype=camera.dtype) + 0.5
        j = torch.arange(height, device=camera.device, dtype=camera.dtype) + 0.5
        v, u = torch.meshgrid(j, i, indexing="ij")
        fx, fy, cx, cy = (K[:, a, b, None] for a, b in ((0, 0), (1, 1), (0, 2), (1, 2)))
        a, b = (u.reshape(1, -1) - cx) / fx, (v.reshape(1, -1) - cy) / fy
        local = torch.stack([a, b, torch.ones_like(a)], -1)
        R, t = camera[:, :3, :3], camera[:, :3, 3]
        ways = F.normalize(local @ R, dim=-1)  # [B, P, 3], rows times R: the inverse rotation
        eye = -(R.mT @ t[..., None]).squeeze(-1)  # [B, 3]
        middle = eye.norm(dim=-1)
        near, far = (middle - self.bound).clamp_min(0.05), middle + self.bound
        share = (torch.arange(self.samples, device=camera.device, dtype=camera.dtype) + 0.5) / self.samples
        depth = near[:, None] + (far - near)[:, None] * share  # [B, S]
        step = ((far - near) / self.samples)[:, None, None]
        x = eye[:, None, None] + ways[:, :, None] * depth[:, None, :, None]  # [B, P, S, 3]
        density, colour = self.query(x.flatten(1, 2), particle)
        density = torch.where(x.norm(dim=-1) < self.bound, density.view(B, -1, self.samples), 0.0)
        stopped = density * step  # [B, P, S]
        before = stopped.cumsum(-1) - stopped
        w = torch.exp(-before) * -torch.expm1(-stopped)
        made = (w[..., None] * colour.view(B, -1, self.samples, channels)).sum(2)  # [B, P, C]
        cover = w.sum(-1)
        colour = self.behind[particle].sigmoid() if behind is None else behind
        made = made + (1 - cover)[..., None] * colour[:, None]
        return made.mT.reshape(B, channels, height, width), cover.view(B, 1, height, width)


class Mesh(Scene):
    """One mesh, drawn by a soft rasteriser: the second stage moves its corners, the third paints it.

    Args:
        shape: of the images.
        vertices: [V, 3]. faces: [F, 3].
        colours: [V, C] in [0, 1]; grey without.
        stage: ``geometry`` draws normals (of grey images how far they face the camera) and moves corners; ``texture`` draws
            and learns colours of corners.
        sigma: softness of edges in pixels squared.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        vertices: Tensor,
        faces: Tensor,
        colours: Tensor | None = None,
        stage: Literal["geometry", "texture"] = "geometry",
        sigma: float = 0.3,
    ) -> None:
        super().__init__(1, shape)
        self.stage, self.sigma = stage, sigma
        edges, pairs = meshes.edges_of(faces)
        for name, tensor in (("vertices", vertices), ("faces", faces), ("edges", edges), ("pairs", pairs)):
            self.register_buffer(name, tensor)
        start = torch.full((len(vertices), shape[0]), 0.5) if colours is None else colours.clamp(0.02, 0.98)
        self.offsets = nn.Parameter(torch.zeros_like(vertices), requires_grad=stage == "geometry")
        self.paint = nn.Parameter(torch.logit(start), requires_grad=stage == "texture")

    def corners(self) -> Tensor:
        """Where the corners are [V, 3]."""
        moved: Tensor = self.vertices + self.offsets  # type: ignore[operator]
        return moved

    def trace(
        self, camera: Tensor, K: Tensor, particle: Tensor, behind: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Images [B, C, H, W], and their cover [B, 1, H, W]."""
        channels, height, width = self.shape
        corners, faces = self.corners(), self.faces
        assert isinstance(faces, Tensor)
        pictures, covers = [], []
        normals = meshes.vertex_normals(corners, faces) if self.stage == "geometry" else None
        for i in range(len(camera)):
            if normals is None:
                shown = self.paint.sigmoid()
            else:
                seen = normals @ camera[i, :3, :3].T  # [V, 3] in the camera's axes, -z towards it
                shown = 0.5 - 0.5 * seen[:, 2:] if channels == 1 else 0.5 + 0.5 * seen
            picture, cover = meshes.soft_rasterize(
                *(corners, faces, shown, camera[i], K[i], width, height),
                behind=None if behind is None else behind[i],
                sigma=self.sigma,
            )
            pictures.append(picture)
            covers.append(cover)
        return torch.stack(pictures).permute(0, 3, 1, 2), torch.stack(covers).permute(0, 3, 1, 2)

    def roughness(self) -> tuple[Tensor, Tensor]:
        """How rough the mesh is: mean 1 - cosine between neighbouring faces, and the mean squared Laplacian."""
        corners = self.corners()
        args: Any = (self.faces, self.pairs, self.edges)
        return meshes.normal_consistency(corners, *args[:2]).mean(), meshes.laplacian(corners, args[2]).mean()


def mesh_of(
    density: Callable[[Tensor], Tensor], bound: float, resolution: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Corners [V, 3] and triangles [F, 3] of the surface where a density is ``threshold``, by scikit-image's marching cubes.

    Args:
        density: of places [M, 3]: [M].
        bound: half the side of the cube that is looked at.
        resolution: places along its side.
        threshold: the density of the surface.

    Raises:
        ConfigError: there is no such surface; what the density is.
    """
    measure = require("skimage.measure", "scene", "a mesh out of a field")
    line = torch.linspace(-bound, bound, resolution)
    x = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    with torch.no_grad():
        volume = torch.cat([density(part) for part in x.reshape(-1, 3).split(65536)]).view(x.shape[:-1])
    low, high = (float(v) for v in volume.aminmax())
    if not low < threshold < high:
        raise ConfigError(
            "student.threshold",
            "the density has no such surface",
            given=threshold,
            expected=f"between {low:.3g} and {high:.3g}",
        )
    corners, faces, _, _ = measure.marching_cubes(volume.double().numpy(), threshold)
    corners = torch.from_numpy(corners.copy()).float() * (2 * bound / (resolution - 1)) - bound
    return corners, torch.from_numpy(faces.copy()).long()


class Rendered(Scene):
    """Any scene by the protocol ``render(params, camera) -> [B, C, H, W]``: its parameters, and a function that draws them.

    Args:
        render: gets a mapping of tensors, each with a leading axis of the batch, and a `Camera`.
        params: by name, each [particles, ...].
        shape: of an image.

    Example:
        >>> flat = Rendered(lambda p, c: p["colour"].sigmoid()[:, :, None, None].expand(-1, -1, c.height, c.width),
        ...                 {"colour": torch.zeros(2, 3)}, (3, 4, 4))
        >>> flat(torch.eye(4)[None], torch.eye(3)[None], torch.tensor([1])).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(
        self,
        render: Callable[[Mapping[str, Tensor], Camera], Tensor],
        params: Mapping[str, Tensor],
        shape: tuple[int, ...],
    ) -> None:
        counts = {len(p) for p in params.values()}
        if len(counts) != 1:
            raise ShapeError(
                "params", given={n: list(p.shape) for n, p in params.items()}, expected="[particles, ...] each"
            )
        super().__init__(counts.pop(), shape)
        self.params = nn.ParameterDict({n: nn.Parameter(p) for n, p in params.items()})
        object.__setattr__(self, "render", render)

    def trace(
        self, camera: Tensor, K: Tensor, particle: Tensor, behind: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the function draws."""
        height, width = self.shape[-2:]
        chosen = {n: p[particle] for n, p in self.params.items()}
        made: Tensor = self.render(chosen, Camera(camera, K, width, height))  # type: ignore[operator]
        if list(made.shape) != [len(camera), *self.shape]:
            raise ShapeError("render", given=list(made.shape), expected=str([len(camera), *self.shape]))
        return made, None


def particles_of(module: Any) -> int:
    """How many particles a scene says it has; one where it says nothing."""
    return int(getattr(module, "particles", 1))


def check_scene(made: Any, shape: tuple[int, ...], items: int) -> None:
    """Refuse what a scene has drawn where it is no image in [0, 1].

    Raises:
        ShapeError, ConfigError: what it is, and what is expected.
    """
    if not isinstance(made, Tensor) or list(made.shape) != [items, *shape]:
        given = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ShapeError("student", given=given, expected=f"images {[items, *shape]}")
    low, high = made.detach().aminmax()
    if float(high) > 20 or float(low) < -20:
        raise ConfigError(
            "student",
            f"what it draws runs from {float(low):.3g} to {float(high):.3g}",
            expected="images in [0, 1]",
            remedy="divide by 255",
        )
