"""BPKD: along boundaries every pixel's classes are matched, elsewhere each class's map.

    M_c    = avg(dilate_k(Y_c) - erode_k(Y_c)) valid                    a band along the boundary of class c, in [0, 1]
    phi_i  = T^2 KL(softmax_c(M z_t / T) || softmax_c(M z_s / T))                          the logits are masked first (PrM)
    L_E    = sum_c alpha_c / n_c sum_i phi_i M_ci                          then each class averages over its band (PoM)
    L_B    = T^2 / C sum_c KL(softmax_i(b_t / T) || softmax_i(b_s / T)),   b = (1 - M) valid z, a softmax over the places i
    L      = CE + lambda_B L_B + lambda_E L_E

No training code was published. The form, 20, 50, 2 and 7 are those on which three public reimplementations agree, which
quote the paper; temperatures are reconstructed.

z_s, z_t: logits [N, h, w, C];  y: labels [N, H, W];  M: masks [N, h, w, C];  n_c: places of the item with M_c > 0
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.functional.dense import Count, body_divergence, edge_divergence, edge_masks
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Term, Terms
from limbeck.grammar.settings import NonNegative, Positive, settings
from limbeck.grammar.task import Task
from limbeck.tasks.dense import Dense

CARD = Card(
    number=5,
    slug="bpkd",
    title="BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation",
    year=2023,
    venue="WACV 2024",
    arxiv="2306.08075",
    repository="AkideLiu/BPKD",
    family="dense",
    methods={"bpkd": "Bpkd"},
    optimised="the student's weights",
    signals=("logits", "labels"),
    provenance={
        "masks, edge and body loss, 20 / 50 / 2 / 7": "three public reimplementations that quote the paper; official training "
        "code was announced and never published",
        "temperatures": "reconstructed: 1 (reimplementations have 1, 2 and 4)",
        "mask_sum, pixels, exclude, hard, pixel": "variants of the reimplementations, as switches",
        "without PoM": "reconstructed: the mean over the places that a mask touches",
    },
    claim="In a band along boundaries the student's mean IoU is above that of channel-wise distillation, of pixel-wise KD and of "
    "the student alone, while its overall mean IoU is not worse.",
    recipe="bpkd",
    at_equality={"edge": "value", "body": "value"},
    baseline={"bpkd": ("method.weight_edge=0", "method.weight_body=0")},
    notes="Needs labels to find the boundaries. task.stride is the networks' own stride: masks and losses live on that grid. "
    "With edge_count=pixels weights near 1 suit the edge term.",
)


@settings
class Bpkd(Method[Dense]):
    """Boundary privileged distillation.

    Args:
        weight_body: of the body term (lambda_B); 0 leaves it out.
        weight_edge: of the edge term (lambda_E); 0 leaves it out.
        alpha: factor of the edge term, one number or one a class.
        edge_width: of the bands, in pixels of the labels; odd, 3 or more.
        temperature_edge: softens both distributions over classes.
        temperature_body: softens both distributions over places.
        premask: multiply the logits by the masks before they are compared (PrM).
        postmask: weigh what is compared by the masks (PoM).
        mask: ``soft`` shares of a place, or ``hard``: 1 where a band is touched.
        per_class: a band for each class; off takes the union of them for all.
        edge_count: what a class's band is averaged over: its places (``nonzero``), the sum of its mask (``mask_sum``), or
            the places of all classes' bands (``pixels``).
        body: ``channel`` (where each class is active) or ``pixel`` (the classes at each place).
        exclude: leave places of the band out of the body's distributions, in place of a logit of 0.
    """

    weight_body: NonNegative = 20.0
    weight_edge: NonNegative = 50.0
    alpha: NonNegative | list[NonNegative] = 2.0
    edge_width: Annotated[int, Ge(3)] = 7
    temperature_edge: Positive = 1.0
    temperature_body: Positive = 1.0
    premask: bool = True
    postmask: bool = True
    mask: Literal["soft", "hard"] = "soft"
    per_class: bool = True
    edge_count: Count = "nonzero"
    body: Literal["channel", "pixel"] = "channel"
    exclude: bool = False

    def validate(self) -> None:
        """A window has a middle."""
        if self.edge_width % 2 == 0:
            raise ValueError("edge_width must be odd")

    def accept(self, task: Task) -> None:
        """Bands fit into the images, and there is an alpha for each class."""
        super().accept(task)
        assert isinstance(task, Dense)
        if self.edge_width > min(task.shape[1:]):
            raise ConfigError(
                "method.edge_width",
                given=self.edge_width,
                expected=f"at most the image's {min(task.shape[1:])} pixels",
            )
        if isinstance(self.alpha, list) and len(self.alpha) != task.outputs:
            raise ConfigError(
                "method.alpha", given=f"{len(self.alpha)} numbers", expected=f"1, or {task.outputs}: one a class"
            )

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The supervised term, and what is matched along the boundaries and elsewhere."""
        student = ctx.signal("student", batch)
        terms = Terms(ce=self.task.supervised(student, batch))
        if self.weight_edge or self.weight_body:
            z_t = ctx.signal("teacher", batch).logits  # [N, h, w, C]
            matched = self.matched(student.logits, z_t, batch["y"], self.task.counted(batch))
            for name, weight in (("edge", self.weight_edge), ("body", self.weight_body)):
                if weight:
                    terms[name] = Term(matched[name], weight=weight)
        return terms

    def matched(self, z_s: Tensor, z_t: Tensor, y: Tensor, where: Tensor) -> dict[str, Tensor]:
        """Edge and body term [N]; ``where`` [N, H, W]: pixels that count. What has weight 0 is left out."""
        classes, size = z_s.shape[-1], (z_s.shape[1], z_s.shape[2])
        M, valid = edge_masks(  # [N, h, w, C], [N, h, w]
            y,
            classes,
            size,
            width=self.edge_width,
            where=where,
            hard=self.mask == "hard",
            union=not self.per_class,
            check=False,
        )
        found, z_t = {}, z_t.detach()
        if self.weight_edge:
            alpha = torch.as_tensor(self.alpha, dtype=z_s.dtype, device=z_s.device)
            how = {"premask": self.premask, "postmask": self.postmask, "count": self.edge_count, "valid": valid}
            found["edge"] = edge_divergence(z_s, z_t, M, temperature=self.temperature_edge, alpha=alpha, **how)  # type: ignore[arg-type]
        if self.weight_body:
            T = self.temperature_body
            found["body"] = body_divergence(z_s, z_t, M, valid, temperature=T, kind=self.body, exclude=self.exclude)
        return found
