"""Add-ons for maps: channel-wise distillation, and crops that move image and mask together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, grid_sample

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.dense import channel_divergence, resized
from limbeck.grammar.method import Batch, Context, Objective, Query, Term
from limbeck.grammar.settings import Natural, NonNegative, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task
from limbeck.networks.shows import channels_first, picture_of
from limbeck.objectives.queries import over_pixels

NAMES = {"objective": {"cwd": "ChannelWise"}, "query": {"map-crop": "MapCrop"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class ChannelWise(Objective):
    """Channel-wise distillation (Shu et al., 2021): where each channel is active, as a distribution over the places.

    ``T^2 / C sum_c KL(softmax_i(t_ic / T) || softmax_i(s_ic / T))`` over the places i, averaged over the items: of maps of
    logits, or of feature maps of the same number of channels. Every place takes part, as in the paper, pixels without a label
    too, unless they are ``masked``.

    Args:
        weight: weight of the term. The paper's codebase takes 5 for logits with temperature 1.
        temperature: softens both distributions.
        student: module whose map is matched; by default the outputs.
        teacher: likewise of the teacher.
        masked: leave places that do not count (``where``) out of the distributions; for maps on the task's grid.
    """

    weight: NonNegative = 5.0
    temperature: Positive = 1.0
    student: str | None = None
    teacher: str | None = None
    masked: bool = False

    def validate(self) -> None:
        """Both features, or neither."""
        if (self.student is None) != (self.teacher is None):
            raise ValueError("student and teacher must be named together")
        self.student_taps = (self.student,) if self.student is not None else ()
        self.teacher_taps = (self.teacher,) if self.teacher is not None else ()

    def _pair(self, student: Signal, teacher: Signal | None, batch: Batch) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        if self.student is None or self.teacher is None:
            s, t = student.logits, teacher.logits
        else:
            picture = picture_of(batch)
            acts = student.acts[self.student].float(), teacher.acts[self.teacher].float()
            s, t = (channels_first(f, picture).movedim(1, -1) if f.ndim == 4 else f for f in acts)
        if s.ndim != 4 or t.ndim != 4 or s.shape[-1] != t.shape[-1]:
            raise ShapeError(
                f"objectives.{self.name}",
                f"the student shows {list(s.shape)}, the teacher {list(t.shape)}",
                expected="maps of the same number of channels, which stand last",
                remedy="name modules that show such maps with student and teacher",
            )
        return s, resized(t, (s.shape[1], s.shape[2]))

    def prepare(self, student: Signal, teacher: Signal | None, batch: Batch) -> None:
        """Check that both show maps of the same channels."""
        self._pair(student, teacher, batch)

    def __call__(self, student: Signal, teacher: Signal | None, batch: Batch, ctx: Context) -> Term:
        """The mean over channels, one value an item."""
        s, t = self._pair(student, teacher, batch)
        where = batch["where"] if self.masked else None
        if where is not None and where.shape != s.shape[:3]:
            raise ShapeError(
                f"objectives.{self.name}.masked",
                f"the map is {list(s.shape)}, and which places count is known on {list(where.shape)}",
                expected="a map on the task's grid",
                remedy="set masked=false, or task.stride to the map's",
            )
        values = channel_divergence(s, t.detach(), temperature=self.temperature, where=where)
        return Term(values.mean(-1), weight=self.weight)


@settings
class MapCrop(Query):
    """Images and masks scaled by a random factor and cut out at a random place, together; what lies outside of an image
    is black and does not count.

    Args:
        sides: [height, width] of what is cut out; by default as large as the images.
        least, most: the factors between which is drawn (mmsegmentation's default: 0.5 and 2).
        views: draws repeat after this many passes (so a cache can hold them); 0: never.
    """

    sides: list[int] | None = None
    least: Positive = 0.5
    most: Positive = 2.0
    views: Natural = 0

    def validate(self) -> None:
        """A range, and two sides."""
        if self.least > self.most:
            raise ValueError("least must be at most most")
        if self.sides is not None and (len(self.sides) != 2 or min(self.sides) < 1):
            raise ValueError("sides must be [height, width]")

    def accept(self, task: Task) -> None:
        """Images with masks alone."""
        example = task.example(1)
        if not isinstance(example.get("x"), Tensor) or not over_pixels(example):
            raise ConfigError(
                "queries.map-crop", f"{type(task).__name__} has no masks", expected="task=dense", remedy="use crop"
            )

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Crops."""
        x = batch["x"]
        n, _, high, wide = x.shape
        new = (high, wide) if self.sides is None else (self.sides[0], self.sides[1])
        view = batch["view"] % self.views if self.views else batch["view"]
        u = ctx.draws.anywhere().rand("map-crop", batch["item"] * 1_000_003 + view, (3,)).to(x)
        factor = torch.exp(torch.lerp(x.new_tensor(self.least).log(), x.new_tensor(self.most).log(), u[:, 0]))
        # share of the image's half sides that the crop covers, and where its middle may lie
        cover = torch.stack([new[1] / (wide * factor), new[0] / (high * factor)], 1)  # [N, 2]: x, y
        middle = (u[:, 1:] * 2 - 1) * (1 - cover).abs()
        theta = torch.zeros(n, 2, 3, dtype=x.dtype, device=x.device)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = cover[:, 0], cover[:, 1], middle
        grid = affine_grid(theta, [n, 1, *new], align_corners=False)
        maps: Batch = {"x": grid_sample(x, grid, mode="bilinear", align_corners=False)}
        valid = batch["valid"] if "valid" in batch else batch["where"]
        both = torch.stack([batch["y"].to(x.dtype), valid.to(x.dtype)], 1)
        both = grid_sample(both, grid, mode="nearest", align_corners=False)  # outside: nought
        maps["y"], kept = both[:, 0].round().long(), both[:, 1] > 0.5
        if "valid" in batch:
            stride = int(getattr(ctx.task, "stride", 1))
            share = adaptive_avg_pool2d(kept.to(x.dtype).unsqueeze(1), (-(-new[0] // stride), -(-new[1] // stride)))
            return {**batch, **maps, "valid": kept, "where": share[:, 0] > 0.5}
        return {**batch, **maps, "where": kept}
