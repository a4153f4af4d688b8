"""gsplat's ``rasterization`` in plain torch; its own kernels where the Gaussians are on a GPU and the package is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import ConfigError, DataError, ShapeError
from .._common import choose
from .._once import eager
from .compositing import composite
from .harmonics import spherical_harmonics
from .projection import covariances, project

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]
Backend = Literal["auto", "torch", "gsplat"]

MOST_PAIRS = 5e9
"""Pairs of a pixel and a Gaussian that a CPU is asked for at most."""


@lru_cache(maxsize=1)
def installed() -> str:
    """The version of gsplat that is here; empty for none."""
    try:
        return importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        return ""


def largest_alpha() -> float:
    """What alpha is cut at: 0.99, and 0.999 where a gsplat below 1.6 is installed, which does so."""
    numbers = installed().split(".")[:2]
    old = len(numbers) == 2 and all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) < (1, 6)
    return 0.999 if old else 0.99


@eager("project and composite")
def rasterization(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: RenderMode = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: RasterizeMode = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    *,
    max_alpha: float | None = None,
    dense: bool = False,
    backend: Backend = "auto",
    **more: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Images of Gaussians from C cameras.

    Args:
        means: ``[N, 3]``.
        quats: ``[N, 4]`` (w, x, y, z), of any length but zero.
        scales: ``[N, 3]`` standard deviations, above 0 (after ``exp``).
        opacities: ``[N]`` in [0, 1] (after ``sigmoid``).
        colors: ``[N, D]`` or ``[C, N, D]``; with ``sh_degree`` coefficients ``[N, K, 3]`` or ``[C, N, K, 3]``.
        viewmats: ``[C, 4, 4]`` from the world to the camera (x right, y down, z ahead). Ks: ``[C, 3, 3]`` in pixels.
        width, height: of the images.
        near_plane, far_plane, radius_clip, eps2d: see `project`.
        sh_degree: colours are spherical harmonics of this degree, ``max(value + 0.5, 0)``; ``None``: as they are.
        tile_size: pixels along a tile's side.
        backgrounds: ``[C, D]`` behind everything; black without. A depth channel may be left out, it is 0.
        render_mode: colours, accumulated depth (``D``), expected depth (``ED``), or colours and a depth as last channel.
        rasterize_mode: ``antialiased`` makes Gaussians fainter by what the blur thickens them.
        camera_model: ``pinhole``.
        covars: ``[N, 3, 3]`` in place of quats and scales.
        max_alpha: alpha is cut there; ``None``: 0.99, or what the installed gsplat does.
        dense: lay every Gaussian over every pixel: the same, slower.
        backend: ``torch``, ``gsplat``, or ``auto``: gsplat on a GPU where it is installed.
        packed, sparse_grad, channel_chunk, distributed, segmented: taken for gsplat's sake; they change no number.

    Returns:
        Images ``[C, H, W, X]``, cover ``[C, H, W, 1]``, and ``meta``: ``means2d`` [C, N, 2] (the very tensor that was
        drawn from: it takes ``retain_grad``), ``radii`` [C, N, 2], ``depths``, ``conics``, ``opacities`` [C, N]...
        as strategies of gsplat read them with ``packed=False``.

    Raises:
        ShapeError, DataError, ConfigError: what does not fit, by name.

    Source: gsplat (Ye et al. 2024, arXiv 2409.06765), from its definitions; Kerbl et al. 2023 (arXiv 2308.04079).

    Example:
        >>> ball = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2)
        >>> view, K = torch.eye(4)[None], torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]])
        >>> image, cover, meta = rasterization(*ball, torch.tensor([0.9]), torch.ones(1, 3), view, K, 8, 8)
        >>> image.shape, bool(cover[0, 4, 4] > cover[0, 0, 0])
        (torch.Size([1, 8, 8, 3]), True)
    """
    choose("render_mode", render_mode, RenderMode, "render mode")
    choose("rasterize_mode", rasterize_mode, RasterizeMode, "mode")
    choose("backend", backend, Backend, "backend")
    unknown = sorted(name for name, value in more.items() if value not in (None, False))
    if absgrad or unknown or camera_model != "pinhole":
        what = ["absgrad"] * absgrad + unknown + ([f"camera_model={camera_model}"] if camera_model != "pinhole" else [])
        if not (backend == "gsplat" or (backend == "auto" and means.is_cuda and installed())):
            raise ConfigError(
                what[0],
                f"only gsplat's own kernels do {', '.join(what)}",
                remedy="leave it out, or pass backend='gsplat'",
            )
    _check(means, quats, scales, opacities, colors, viewmats, Ks, sh_degree, covars)
    if backend == "gsplat" or (backend == "auto" and means.is_cuda):
        done = _by_gsplat(backend == "gsplat", locals(), more)
        if done is not None:
            return done
    if width < 1 or height < 1:
        raise ConfigError("width", given=[width, height], expected="a image of at least one pixel")
    C, N = len(viewmats), len(means)
    if means.device.type == "cpu" and N * width * height > MOST_PAIRS:
        raise ConfigError(
            "width",
            f"{N:,} Gaussians at {width} x {height} pixels are too many for a CPU",
            remedy="draw fewer pixels, or put the scene on a GPU with gsplat installed",
        )
    if covars is None:
        assert quats is not None and scales is not None
        covars = covariances(quats, scales)
    seen = project(
        means,
        covars,
        viewmats,
        Ks,
        width,
        height,
        eps2d=eps2d,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        least_compensation=0.005**2 if rasterize_mode == "antialiased" else 0.0,
    )
    _hints(seen, Ks)
    shown = opacities.expand(C, N)
    if rasterize_mode == "antialiased":
        shown = shown * seen.compensations
    features = None if render_mode in ("D", "ED") else _colours(means, colors, viewmats, sh_degree, C)
    depth = seen.depths[..., None] if render_mode != "RGB" else None
    stack = torch.cat([f for f in (features, depth) if f is not None], -1)  # [C, N, X]
    behind = _behind(backgrounds, features, stack)
    cut = largest_alpha() if max_alpha is None else max_alpha
    pictures, covers = [], []
    for c in range(C):
        picture, cover = composite(
            seen.means2d[c],
            seen.conics[c],
            shown[c],
            stack[c],
            seen.depths[c],
            seen.radii[c],
            width,
            height,
            tile_size=None if dense else tile_size,
            max_alpha=cut,
        )
        if behind is not None:
            picture = picture + (1 - cover) * behind[c]
        if render_mode in ("ED", "RGB+ED"):
            far = picture[..., -1:] / cover.clamp_min(1e-10)
            picture = torch.cat([picture[..., :-1], far], -1)
        pictures.append(picture)
        covers.append(cover)
    meta = {
        "means2d": seen.means2d,
        "radii": seen.radii,
        "depths": seen.depths,
        "conics": seen.conics,
        "opacities": shown,
        "width": width,
        "height": height,
        "n_cameras": C,
        "tile_size": tile_size,
        "gaussian_ids": None,
        "camera_ids": None,
    }
    return torch.stack(pictures), torch.stack(covers), meta


def _colours(means: Tensor, colors: Tensor, viewmats: Tensor, degree: int | None, C: int) -> Tensor:
    if degree is None:
        return colors.expand(C, *colors.shape) if colors.ndim == 2 else colors
    centres = torch.linalg.inv(viewmats)[:, :3, 3]  # [C, 3]
    dirs = means[None] - centres[:, None]  # [C, N, 3]
    coeffs = colors.expand(C, *colors.shape) if colors.ndim == 3 else colors
    return (spherical_harmonics(degree, dirs, coeffs) + 0.5).clamp_min(0.0)


def _behind(backgrounds: Tensor | None, features: Tensor | None, stack: Tensor) -> Tensor | None:
    """What stands behind each image [C, X], the depth 0."""
    if backgrounds is None or features is None:
        return None
    C, X, D = len(stack), stack.shape[-1], features.shape[-1]
    if backgrounds.ndim != 2 or len(backgrounds) != C or backgrounds.shape[1] not in (D, X):
        raise ShapeError("backgrounds", given=list(backgrounds.shape), expected=f"[{C}, {D}]")
    missing = X - backgrounds.shape[1]
    return torch.cat([backgrounds, backgrounds.new_zeros(C, missing)], 1) if missing else backgrounds


def _check(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    degree: int | None,
    covars: Tensor | None,
) -> None:
    N, C = len(means), len(viewmats) if viewmats.ndim else 0
    if covars is None and (quats is None or scales is None):
        raise ConfigError("quats", "a Gaussian has a shape", expected="quats and scales, or covars")
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "means": (means, (N, 3)),
        "quats": (quats, (N, 4)),
        "scales": (scales, (N, 3)),
        "covars": (covars, (N, 3, 3)),
        "opacities": (opacities, (N,)),
        "viewmats": (viewmats, (C, 4, 4)),
        "Ks": (Ks, (C, 3, 3)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ShapeError(name, given=list(tensor.shape), expected=str(list(shape)))
        if not tensor.is_floating_point():
            raise DataError(name, given=str(tensor.dtype), expected="floating point")
    lead = colors.shape[:-1] if degree is None else colors.shape[:-2]
    if tuple(lead) not in ((N,), (C, N)):
        last = "D" if degree is None else "K, 3"
        raise ShapeError("colors", given=list(colors.shape), expected=f"[{N}, {last}] or [{C}, {N}, {last}]")
    if degree is not None and colors.shape[-2] < (degree + 1) ** 2:
        raise ShapeError(
            "colors",
            given=list(colors.shape),
            expected=f"at least {(degree + 1) ** 2} coefficients for sh_degree={degree}",
        )
    if not N:
        return
    with torch.no_grad():  # one look at the values: four facts at once
        fine = [
            ((opacities >= 0) & (opacities <= 1)).all(),
            torch.stack([Ks[:, 0, 0].min(), Ks[:, 1, 1].min()]).min() >= 2,
        ]
        if covars is None:
            assert quats is not None and scales is not None
            fine += [(scales >= 0).all(), (quats != 0).any(-1).all()]
        opaque, focal, *form = torch.stack(fine).tolist()
    if not opaque:
        raise DataError("opacities", "they lie outside [0, 1]", remedy="pass torch.sigmoid of logits")
    if not focal:
        raise DataError(
            "Ks", "a focal length below 2 pixels", expected="camera matrices in pixels, not in parts of the image"
        )
    if form and not form[0]:
        raise DataError("scales", "some are negative", remedy="pass torch.exp of their logarithms")
    if form and not form[1]:
        raise DataError("quats", "some are all zero", expected="quaternions w, x, y, z of a length above 0")


def _hints(seen: Any, Ks: Tensor) -> None:
    """Say what an empty image probably comes from."""
    with torch.no_grad():
        if not seen.depths.numel():
            return
        none, behind = torch.stack([~(seen.radii > 0).any(), (seen.depths < 0).all()]).tolist()
    if none:
        why = (
            "all lie behind the cameras: an OpenGL camera has y and z of the other sign"
            if behind
            else "viewmats go from the world to the camera; an inverse may be missing"
        )
        warnings.warn(f"viewmats: no Gaussian is seen by any camera; {why}", UserWarning, stacklevel=4)


def _by_gsplat(
    insist: bool, given: dict[str, Any], more: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]] | None:
    """The same call by gsplat; ``None`` where it cannot and need not."""
    if importlib.util.find_spec("gsplat") is None:
        if insist:
            raise ConfigError("backend", "gsplat is not installed", remedy="pip install gsplat, or backend=torch")
        return None
    gsplat = importlib.import_module("gsplat")
    ours = {"max_alpha", "dense", "backend", "more"}
    call = {k: v for k, v in given.items() if k not in ours}
    try:
        made: tuple[Tensor, Tensor, dict[str, Any]] = gsplat.rasterization(**call, **more)
        return made
    except ImportError as error:  # its kernels are compiled at the first call
        if insist:
            raise ConfigError("backend", f"gsplat's kernels cannot be used here: {error}", given="gsplat") from None
        warnings.warn(
            f"gsplat's kernels cannot be used here ({error}): drawn by plain torch", UserWarning, stacklevel=3
        )
        return None
