"""Add-ons: objectives (what is matched) and queries (what is asked) that attach to any method by recipe.

In a loop of your own: ``limbeck.objectives.Criterion``.
"""

from __future__ import annotations

from limbeck.objectives.contrastive import Crd
from limbeck.objectives.correlation import ChannelCorrelation, Semantic
from limbeck.objectives.criterion import Criterion
from limbeck.objectives.decoupled import Dist, Dkd
from limbeck.objectives.feature import AttentionTransfer, FeatureMatch, Relation
from limbeck.objectives.hints import Nst, Review, Vid
from limbeck.objectives.labels import LabelSmoothing, WrongLabels
from limbeck.objectives.mixing import PartialMixup
from limbeck.objectives.norm_direction import NormDirection
from limbeck.objectives.output import Divergence, Kl, Supervised
from limbeck.objectives.queries import Augment, Crop, Cutmix, Flip, Mixup, Noise
from limbeck.objectives.relations import Congruence, Pkt, Rkd

__all__ = [
    "AttentionTransfer",
    "Augment",
    "ChannelCorrelation",
    "Congruence",
    "Crd",
    "Criterion",
    "Crop",
    "Cutmix",
    "Dist",
    "Divergence",
    "Dkd",
    "FeatureMatch",
    "Flip",
    "Kl",
    "LabelSmoothing",
    "Mixup",
    "Noise",
    "NormDirection",
    "Nst",
    "PartialMixup",
    "Pkt",
    "Relation",
    "Review",
    "Rkd",
    "Semantic",
    "Supervised",
    "Vid",
    "WrongLabels",
]
