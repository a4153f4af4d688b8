"""A scene as files: its weights, Gaussians as PLY that other viewers open, a turntable, images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import DataError
from limbeck.functional.splatting import SH0
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.networks.scenes import Gaussians, Mesh, particles_of
from limbeck.storage.store import atomic_write

if TYPE_CHECKING:
    from limbeck.grammar.method import Built
    from limbeck.tasks.views import Views


class SceneArtifact(NetworkArtifact):
    """One or several scenes of a run.

    ``save`` writes ``student.safetensors`` with all particles and ``student.json``; for scenes that cameras see,
    ``turntable_P.gif`` of each particle P; of Gaussians ``point_cloud_P.ply``; of a mesh ``mesh.obj``; of images ``picture_P.png``.

    Args:
        task: what it is for.
        built: the scene.
        frames: of the turntable.
    """

    kind: ClassVar[str] = "scene"
    formats: tuple[str, ...] = ("safetensors",)

    def __init__(self, task: Views, built: Built, frames: int = 16) -> None:
        super().__init__(task, built)
        self.views, self.frames = task, frames

    def save(self, folder: Path) -> None:
        """Write everything."""
        super().save(folder)
        module: Any = self.built.module
        for p in range(particles_of(module)):
            if isinstance(module, Gaussians):
                write_ply(folder / f"point_cloud_{p}.ply", module, p)
            if isinstance(module, Mesh):
                write_obj(folder / "mesh.obj", module)
            if getattr(module, "cameras", True):
                write_gif(folder / f"turntable_{p}.gif", self.turntable(p))
            else:
                write_gif(folder / f"picture_{p}.png", self.turntable(p)[:1])

    def turntable(self, particle: int = 0) -> Tensor:
        """Images [frames, C, H, W] once around a particle, in [0, 1]."""
        return self.views.look(self.built.module, self.views.turntable(self.frames), particle)


def write_gif(path: Path, frames: Tensor, least: int = 128) -> None:
    """Images [n, C, H, W] in [0, 1] as a film (``.gif``), or the first of them as ``.png``, enlarged to ``least`` pixels."""
    import io

    from PIL import Image

    x = (frames.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]
    scale = max(1, -(-least // x.shape[-1]))
    found = [
        Image.fromarray(np.ascontiguousarray(f.permute(1, 2, 0).numpy())).resize(
            (x.shape[-1] * scale, x.shape[-2] * scale), Image.Resampling.NEAREST
        )
        for f in x
    ]
    held = io.BytesIO()
    if path.suffix == ".gif":
        found[0].save(held, "GIF", save_all=True, append_images=found[1:], duration=120, loop=0)
    else:
        found[0].save(held, "PNG")
    atomic_write(path, held.getvalue())


def write_ply(path: Path, scene: Gaussians, particle: int = 0) -> None:
    """A particle's Gaussians in the layout of 3D Gaussian splatting's PLY: raw values, ``f_rest`` channel by channel, w first.

    Grey scenes are written in three equal channels.
    """
    with torch.no_grad():
        sh = scene.sh[particle]  # [N, K, D]
        sh = sh.expand(-1, -1, 3) if sh.shape[-1] == 1 else sh
        n = len(sh)
        rest = sh[:, 1:].mT.reshape(n, -1)
        parts = [
            scene.means[particle],
            torch.zeros(n, 3, device=sh.device),
            sh[:, 0],
            rest,
            scene.logits[particle][:, None],
            scene.log_scales[particle],
            scene.quats[particle],
        ]
        table = torch.cat(parts, 1).float().cpu().numpy()
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
    names += [f"f_rest_{i}" for i in range(rest.shape[1])]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    head += [*(f"property float {name}" for name in names), "end_header"]
    atomic_write(path, ("\n".join(head) + "\n").encode() + table.astype("<f4").tobytes())


def write_obj(path: Path, mesh: Mesh) -> None:
    """A mesh as OBJ, the colour of each corner behind its place."""
    with torch.no_grad():
        colours = mesh.paint.sigmoid()
        colours = colours.expand(-1, 3) if colours.shape[1] == 1 else colours[:, :3]
        rows = torch.cat([mesh.corners(), colours], 1).cpu().tolist()
    faces: Any = mesh.faces
    lines = [" ".join(["v", *(f"{v:.6g}" for v in row)]) for row in rows]
    lines += [" ".join(["f", *(str(i + 1) for i in face)]) for face in faces.tolist()]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def read_ply(path: Path) -> dict[str, Tensor]:
    """A PLY of Gaussians as raw parameters: means [N, 3], log_scales [N, 3], quats [N, 4], logits [N], sh [N, K, 3].

    Raises:
        DataError: it is none.
    """
    raw = Path(path).read_bytes()
    end = raw.find(b"end_header\n")
    lines = raw[: max(end, 0)].decode("ascii", "replace").splitlines()
    names = [line.split()[-1] for line in lines if line.startswith("property float ")]
    count = next((int(line.split()[-1]) for line in lines if line.startswith("element vertex ")), -1)
    body = raw[end + len(b"end_header\n") :]
    wanted = {"x", "opacity", "scale_0", "rot_0", "f_dc_0"}
    if end < 0 or "format binary_little_endian 1.0" not in lines or not wanted <= set(names) or count < 0:
        raise DataError(str(path), "is no binary PLY of Gaussians", expected=f"float properties {sorted(wanted)}...")
    if len(body) != 4 * count * len(names):
        raise DataError(str(path), given=len(body), expected=f"{4 * count * len(names)} bytes for {count} Gaussians")
    table = torch.from_numpy(np.frombuffer(body, "<f4").reshape(count, len(names)).copy())

    def columns(*wanted: str) -> Tensor:
        return table[:, [names.index(w) for w in wanted]]

    rest = sorted((n for n in names if n.startswith("f_rest_")), key=lambda n: int(n[7:]))
    dc = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    higher = columns(*rest).view(count, 3, -1).mT if rest else dc.new_zeros(count, 0, 3)
    return {
        "means": columns("x", "y", "z"),
        "log_scales": columns("scale_0", "scale_1", "scale_2"),
        "quats": columns("rot_0", "rot_1", "rot_2", "rot_3"),
        "logits": columns("opacity")[:, 0],
        "sh": torch.cat([dc, higher], 1),
    }


def colours_of(sh: Tensor) -> Tensor:
    """RGB [N, 3] in [0, 1] of the constant part of harmonics [N, K, 3]."""
    return (sh[:, 0] * SH0 + 0.5).clamp(0, 1)


__all__ = ["SceneArtifact", "colours_of", "read_ply", "write_gif", "write_obj", "write_ply"]
