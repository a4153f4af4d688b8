"""Labels that experts on parts give to images without: poses found, joined with those that are annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.functional import boxes as B
from limbeck.functional import keypoints as K
from limbeck.grammar.method import Batch, Data
from limbeck.tasks.poses import assembled

Consistency = Literal["off", "wrists", "filter"]
"""What an expert's poses of one part owe to those of others; see `MergedPoses`."""


class MergedPoses:
    """Images whose annotated poses are joined with those that experts found; all of them count as labelled.

    Args:
        data: images with annotated poses, of which ``labelled`` says which parts are told.
        found: of each image by its number, what the experts found: ``pose:P`` [n, D, J, 5], ``box:P``, ``score:P``, ``where:P``.
        parts: the parts that experts have.
        links: see `limbeck.tasks.poses.assembled`.
        score_threshold, iou_threshold, fill_missing: see `limbeck.functional.keypoints.merge_pseudo_labels`.
        consistency: ``wrists`` puts wrists of bodies that an expert told where the hands nearest to them have theirs;
            ``filter`` also drops an expert's hands and faces that belong to no body; ``off`` leaves all as they are.
    """

    def __init__(
        self,
        data: Data,
        found: Data,
        parts: Sequence[str],
        links: Mapping[str, Any],
        *,
        score_threshold: float = 0.5,
        iou_threshold: float = 0.5,
        fill_missing: bool = True,
        consistency: Consistency = "wrists",
    ) -> None:
        self.data, self.found, self.parts = data, found, list(parts)
        self.links = {n: v for n, v in links.items() if {x for x in v if isinstance(x, str)} <= set(parts)}
        self.given: dict[str, Any] = {
            "score_threshold": score_threshold, "iou_threshold": iou_threshold, "fill_missing": fill_missing
        }  # fmt: skip
        self.consistency = consistency

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, items: Tensor) -> Batch:
        """As the data have it, with more instances of each part, and ``source:P`` int64 [n, M, J, 5]: 1 annotated, 2 an expert's."""
        batch = dict(self.data.fetch(items))
        found = self.found.fetch(items)
        batch["labelled"] = torch.ones_like(batch["labelled"])
        for p in self.parts:
            known, where = batch[f"known:{p}"], batch[f"where:{p}"]
            mask = torch.cat(
                [known[..., :1].expand(*known.shape[:-1], 2), known[..., 1:].expand(*known.shape[:-1], 3)], -1
            )
            made = K.merge_pseudo_labels(
                batch[f"box:{p}"],
                batch[f"pose:{p}"],
                mask,
                found[f"box:{p}"],
                found[f"score:{p}"],
                found[f"pose:{p}"],
                real_where=where,
                where=found[f"where:{p}"],
                **self.given,
            )
            at = torch.stack([(made.source[..., :2] > 0).all(-1), (made.source[..., 2:] > 0).all(-1)], -1)
            batch |= {
                f"pose:{p}": made.pose,
                f"known:{p}": at & made.where[..., None, None],
                f"where:{p}": made.where,
                f"box:{p}": made.boxes * made.where.unsqueeze(-1),
                f"source:{p}": made.source * made.where[..., None, None],
            }
        return batch if self.consistency == "off" else self.consistent(batch)

    def consistent(self, batch: Batch) -> Batch:
        """Bodies that an expert told agree with hands, and what belongs to nobody is dropped."""
        if "wrists" in self.links:
            body, left, right, hand, root = self.links["wrists"]
            guessed = batch[f"source:{body}"][:, :, [left, right], 0] == 2
            batch = assembled(batch, self.links, free=guessed)
            if self.consistency == "filter":
                self._drop(
                    batch, body, hand, lambda b, h: K.hands_of_bodies(b, h, wrists=(left, right), hand_wrist=root)
                )
        if "head" in self.links and self.consistency == "filter":
            body, head, face = self.links["head"]
            self._drop(batch, body, face, lambda b, f: K.faces_of_bodies(b, f, head=head))
        return batch

    def _drop(self, batch: Batch, body: str, part: str, owners: Any) -> None:
        """An expert's instances of a part that no body owns; annotated ones stay."""
        own = (batch[f"source:{part}"] == 1).flatten(2).any(-1)
        kept = own.clone()
        for i in range(len(kept)):
            bodies, others = (batch[f"where:{p}"][i].nonzero()[:, 0] for p in (body, part))
            if len(bodies) and len(others):
                numbers = owners(
                    batch[f"pose:{body}"][i, bodies, :, :2], batch[f"pose:{part}"][i, others, :, :2]
                ).flatten()
                kept[i, others[numbers[numbers >= 0]]] = True
        batch[f"where:{part}"] = batch[f"where:{part}"] & kept
        batch[f"known:{part}"] = batch[f"known:{part}"] & kept[..., None, None]

    @property
    def fingerprint(self) -> str:
        """Of both, and of how they are joined."""
        told = repr((self.parts, sorted(self.links), self.given, self.consistency))
        return f"{self.data.fingerprint}+{self.found.fingerprint}+{told}"

    def counts(self, truth: Data | None = None) -> dict[str, float]:
        """Of each part, ``added_P``: poses that experts added, an image; where the labels that were not told are known
        (``truth``), ``right_P``: the share of added poses that overlap one of these by half, and ``covered_P``: the share of
        these that an added one overlaps.
        """
        sums: dict[str, list[float]] = {p: [0.0] * 4 for p in self.parts}
        for ids in torch.arange(len(self)).split(256):
            batch, told = self.fetch(ids), self.data.fetch(ids)
            real = truth.fetch(ids) if truth is not None else None
            for p, s in sums.items():
                a = told[f"where:{p}"].shape[1]
                added, boxes = batch[f"where:{p}"][:, a:], batch[f"box:{p}"][:, a:]
                s[0] += float(added.sum())
                if real is not None:
                    hidden = real[f"where:{p}"] & ~told[f"where:{p}"]
                    near = (B.iou(boxes, real[f"box:{p}"]) >= 0.5) & hidden.unsqueeze(1) & added.unsqueeze(2)
                    s[1] += float(near.any(2).sum())
                    s[2] += float(near.any(1).sum())
                    s[3] += float(hidden.sum())
        found = {}
        for p, (added, right, covered, hidden) in sums.items():
            found[f"added_{p}"] = added / max(1, len(self))
            if truth is not None and hidden:
                found |= {f"right_{p}": right / max(1.0, added), f"covered_{p}": covered / hidden}
        return found


__all__ = ["Consistency", "MergedPoses"]
