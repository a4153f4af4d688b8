"""Drawn figures with bodies, hands and faces in the plane and in space: for trying methods without a download."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.data.items import Splits
from limbeck.data.keypoints import BODY13, KeypointSource, Posed, Skeleton, in_square, pose_splits
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, settings

NAMES = {"source": {"drawn-figures": "DrawnFigures"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

HAND = Skeleton(
    ("wrist", "thumb", "index", "middle", "ring", "little"), tuple((0, i) for i in range(1, 6)), tuple(range(6))
)
FACE = Skeleton(
    ("right eye", "left eye", "nose", "right mouth", "left mouth", "chin"), ((0, 2), (1, 2), (3, 4), (3, 5), (4, 5)),
    (1, 0, 2, 4, 3, 5),
)  # fmt: skip
PARTS = {"body": BODY13, "hand": HAND, "face": FACE}

LINKS = {"wrists": ["body", 7, 6, "hand", 0], "head": ["body", 12, "face"]}

_FACE_AT = torch.tensor(
    [
        [-0.24, -0.12, -0.45],
        [0.24, -0.12, -0.45],
        [0.0, 0.08, -0.58],
        [-0.2, 0.27, -0.45],
        [0.2, 0.27, -0.45],
        [0, 0.52, -0.3],
    ]
)
HEAD = 0.58
"""Radius of a head, in units of the torso's length."""


def _turn(angle: Tensor, axis: int) -> Tensor:
    """Rotations [N, 3, 3] about a coordinate axis."""
    c, s, o, e = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {0: (e, o, o, o, c, -s, o, s, c), 1: (c, o, s, o, e, o, -s, o, c), 2: (c, -s, o, s, c, o, o, o, e)}[axis]
    return torch.stack(rows, -1).view(-1, 3, 3)


def skeletons_of(draws: Draws, ids: Tensor) -> dict[str, Tensor]:
    """Poses in space, y down, z away from the viewer, in torso lengths: body [N, 13, 3], hand [N, 2, 6, 3], face [N, 6, 3].

    Limbs have fixed lengths and drawn directions; hands are right and left, in this order.
    """
    n = len(ids)
    u = draws.rand("pose", ids, (24,))
    fixed = {"hip": (0.24, 0.0), "shoulder": (0.42, -1.0)}
    joint: dict[str, Tensor] = {}
    for s, side in enumerate(("right", "left")):
        sign = (-1.0, 1.0)[s]
        for name, (x, y) in fixed.items():
            joint[f"{side} {name}"] = torch.tensor([sign * x, y, 0.0]).expand(n, 3)
        v = u[:, 8 * s : 8 * s + 8]
        arm = (v[:, 0] * 2.4 - 0.9) * sign  # angle from straight down, outwards
        fore = arm + (v[:, 1] * 1.8 - 0.4) * sign
        leg = (v[:, 2] * 0.7 - 0.1) * sign
        shin = leg - v[:, 3] * 0.4 * sign
        depth = (v[:, 4:8] - 0.5) * 0.9

        def along(angle: Tensor, z: Tensor, length: float) -> Tensor:
            flat = torch.stack([angle.sin(), angle.cos(), z], -1)
            return length * flat / flat.norm(dim=-1, keepdim=True)

        joint[f"{side} elbow"] = joint[f"{side} shoulder"] + along(arm, depth[:, 0], 0.6)
        joint[f"{side} wrist"] = joint[f"{side} elbow"] + along(fore, depth[:, 1], 0.55)
        joint[f"{side} knee"] = joint[f"{side} hip"] + along(leg, depth[:, 2], 0.7)
        joint[f"{side} ankle"] = joint[f"{side} knee"] + along(shin, depth[:, 3], 0.65)
        spread = 0.3 + 0.25 * draws.rand(f"spread {side}", ids)
        fan = fore[:, None] + sign * spread[:, None] * torch.tensor([2.6, 0.9, 0.2, -0.5, -1.2])  # thumb first
        length = torch.tensor([0.42, 0.62, 0.66, 0.6, 0.5])
        tips = torch.stack([fan.sin(), fan.cos(), depth[:, 1:2].expand(-1, 5)], -1)
        wrist = joint[f"{side} wrist"]
        joint[f"{side} hand"] = torch.cat([wrist[:, None], wrist[:, None] + length[:, None] * tips], 1)
    head = torch.tensor([0.0, -1.0 - 0.2 - HEAD, 0.0]).expand(n, 3)
    look = _turn((u[:, 16] - 0.5) * 1.0, 1) @ _turn((u[:, 17] - 0.5) * 0.4, 2)
    face = head[:, None] + _FACE_AT @ look.mT
    body = torch.stack([joint[name] if name != "head" else head for name in BODY13.joints], 1)
    hands = torch.stack([joint["right hand"], joint["left hand"]], 1)
    whole = _turn((u[:, 18] - 0.5) * 1.4, 1) @ _turn((u[:, 19] - 0.5) * 0.4, 2)
    return {"body": body @ whole.mT, "hand": hands @ whole.mT[:, None], "face": face @ whole.mT}


def _cover(grid: Tensor, a: Tensor, b: Tensor, width: float) -> Tensor:
    """Coverage [H, W] of lines of so many pixels between points [S, 2] and [S, 2], together."""
    ab, to = b - a, grid[None] - a[:, None, None]  # [S, 2], [S, H, W, 2]
    t = ((to * ab[:, None, None]).sum(-1) / ab.square().sum(-1).clamp_min(1e-6)[:, None, None]).clamp(0, 1)
    gap = (to - t[..., None] * ab[:, None, None]).square().sum(-1).amin(0).sqrt()
    return (width - gap + 0.5).clamp(0, 1)


@settings
class DrawnFigures(KeypointSource):
    """Figures drawn by a fixed draw, with big heads and hands: bodies of 13 joints, hands of 6, faces of 6, in the plane
    and in space. They are no photographs: what is learnt of them says that a method works, not how well it does on people.

    Args:
        items: training images.
        test_items: test images.
        side: of an image in pixels.
        most: figures on an image are one up to so many.
        parts: which parts are told.
        space: tell poses in space too.
    """

    items: Count = 600
    test_items: Count = 150
    side: Annotated[int, Ge(32)] = 64
    most: Count = 1
    parts: list[str] = ["body", "hand", "face"]  # noqa: RUF012 (copied by settings)
    space: bool = True

    def validate(self) -> None:
        """Parts are among those that are drawn."""
        if not self.parts or any(p not in PARTS for p in self.parts) or len(set(self.parts)) < len(self.parts):
            raise ValueError("parts must be some of body, hand and face, each once")

    def poses(self, size: int | None = None) -> Splits:
        """The images."""
        found, split = [], []
        for name, n in (("train", self.items), ("test", self.test_items)):
            found += [in_square(one, size) for one in self._drawn(n, name)]
            split += [name] * n
        parts = {n: PARTS[n] for n in self.parts}
        links = {k: v for k, v in LINKS.items() if {v[0], v[-2] if k == "wrists" else v[-1]} <= set(parts)}
        return pose_splits(found, split, parts, ["figures drawn by a fixed draw, no photographs"], **links)

    def _drawn(self, n: int, name: str) -> list[Posed]:
        draws = Draws(0, ("drawn-figures", name))
        ids = torch.arange(n * self.most)
        space = skeletons_of(draws, ids)
        many = draws.randint("many", torch.arange(n), self.most, ()) + 1
        grow, at = draws.rand("grow", ids), draws.rand("at", ids, (2,))
        colour, ground = draws.rand("colour", ids, (4, 3)), draws.rand("ground", torch.arange(n), (3, 4, 4))
        side = self.side
        y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
        grid = torch.stack([x, y], -1)
        made = []
        for i in range(n):
            picture = torch.nn.functional.interpolate(ground[i][None] * 0.5, (side, side), mode="bicubic")[0].clamp(
                0, 1
            )
            poses: dict[str, list[Tensor]] = {p: [] for p in PARTS}
            count = int(many[i])
            for j in range(count):
                f = i * self.most + j
                own = {"body": space["body"][f][None], "hand": space["hand"][f], "face": space["face"][f][None]}
                flat = torch.cat([v.flatten(0, 1) for v in own.values()])[:, :2]
                low, high = flat.amin(0) - HEAD, flat.amax(0) + 0.35
                lane = side / count  # several figures stand side by side
                room = torch.tensor([lane, side * 0.98])
                scale = float((room / (high - low)).min()) * (0.75 + 0.25 * float(grow[f]))
                free = room - scale * (high - low)
                shift = at[f] * free + torch.tensor([lane * j, 0.01 * side]) - scale * low
                flat_of = {p: scale * v[..., :2] + shift for p, v in own.items()}
                picture = self._ink(picture, grid, flat_of, scale, colour[f])
                for p, v in own.items():
                    root = (v[:, 4:5] + v[:, 5:6]) / 2 if p == "body" else v[:, :1] if p == "hand" else v[:, 2:3]
                    poses[p].append(torch.cat([flat_of[p], v - root], -1))
            joined = {p: torch.cat(v) for p, v in poses.items() if p in self.parts}
            known = {p: torch.ones(*v.shape[:2], 2, dtype=torch.bool) for p, v in joined.items()}
            if not self.space:
                joined = {p: torch.cat([v[..., :2], torch.zeros_like(v[..., 2:])], -1) for p, v in joined.items()}
                known = {p: torch.stack([k[..., 0], ~k[..., 1]], -1) for p, k in known.items()}
            x8 = (picture * 255).round().clamp(0, 255).to(torch.uint8)
            made.append(Posed(x8, joined, known, frozenset(self.parts)))
        return made

    def _ink(self, picture: Tensor, grid: Tensor, at: dict[str, Tensor], scale: float, colour: Tensor) -> Tensor:
        """One figure over an image [3, H, W]."""
        skin, shirt, dark = 0.6 + 0.35 * colour[0], 0.25 + 0.7 * colour[1], torch.zeros(3)
        legs, width = 0.25 + 0.7 * colour[2], max(0.6, 0.12 * scale)

        def over(cover: Tensor, ink: Tensor) -> None:
            nonlocal picture
            picture = picture * (1 - cover) + ink[:, None, None] * cover

        body, face, hands = at["body"][0], at["face"][0], at["hand"]
        edges = torch.tensor(BODY13.edges)
        low = edges.amax(1) < 6
        for which, ink in ((low, legs), (~low, shirt)):
            a, b = edges[which].unbind(1)
            over(_cover(grid, body[a], body[b], width), ink)
        over(
            _cover(
                grid, hands[:, :1].expand(-1, 5, -1).flatten(0, 1), hands[:, 1:].flatten(0, 1), max(0.4, 0.05 * scale)
            ),
            skin,
        )
        over(_cover(grid, body[12:], body[12:], HEAD * scale), skin)
        over(_cover(grid, face[:2], face[:2], max(0.6, 0.08 * scale)), dark)
        over(_cover(grid, face[3:4], face[4:5], max(0.3, 0.04 * scale)), torch.tensor([0.6, 0.05, 0.05]))
        over(_cover(grid, face[2:3], face[2:3], max(0.4, 0.06 * scale)), 0.6 * skin)
        return picture


__all__ = ["DrawnFigures", "skeletons_of"]
