"""What is known about a metric by its name: what it is called, how it is written, which way is better."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from limbeck.report.numbers import significant


@dataclass(frozen=True)
class Metric:
    """How a metric is called and written.

    Attributes:
        name: as in ``result.json``.
        label: in words.
        percent: a proportion in [0, 1], shown in per cent; differences in points.
        higher_is_better: its direction; ``None`` when unknown.
    """

    name: str
    label: str
    percent: bool = False
    higher_is_better: bool | None = None

    def value(self, x: float, unit: bool = True) -> str:
        """A value as text."""
        if not math.isfinite(x):
            return "not finite" if unit else f"{x:g}"
        if self.percent:
            return f"{100 * x:.1f}{' %' if unit else ''}"
        return significant(x)

    def difference(self, x: float, unit: bool = True) -> str:
        """A difference as text, with its sign."""
        if not math.isfinite(x):
            return "not finite"
        text = f"{100 * x:+.1f}" if self.percent else f"{'+' if x >= 0 else '-'}{significant(abs(x))}"
        return f"{text} points" if unit and self.percent else text

    def amount(self, x: float) -> str:
        """The size of a difference, without its sign."""
        return self.difference(abs(x)).lstrip("+")

    def better(self, x: float) -> int:
        """+1 when a difference of this sign is an improvement, -1 when it is the opposite, 0 when that is not known."""
        if self.higher_is_better is None or x == 0 or not math.isfinite(x):
            return 0
        return 1 if (x > 0) == self.higher_is_better else -1


_PARTS: Final = re.compile(r"(.+?)(_stochastic)?_w([0-9.e+-]+)_n(\d+)")

_OF_PART: Final = re.compile(r"(.+?)_(pa_mpjpe|mpjpe|pck|nme|recall|precision)")
"""A metric of one part of a pose: ``hand_pck``."""

_IN_LANGUAGE: Final = re.compile(r"accuracy_([a-z]{2,3}_[A-Z][a-z]{3}|[a-z]{2,3})")
"""Accuracy over the texts of one language: ``accuracy_fra_Latn``."""

_METRICS: Final[dict[str, tuple[str, bool, bool | None]]] = {
    "accuracy": ("accuracy", True, True),
    "balanced_accuracy": ("balanced accuracy", True, True),
    "head_accuracy": ("accuracy of frequent classes", True, True),
    "medium_accuracy": ("accuracy of less frequent classes", True, True),
    "tail_accuracy": ("accuracy of rare classes", True, True),
    "mcc": ("Matthews' correlation", False, True),
    "top1": ("accuracy", True, True),
    "top5": ("top-5 accuracy", True, True),
    "exact": ("all labels right", True, True),
    "auc": ("AUC", True, True),
    "f1": ("F1", True, True),
    "f1_micro": ("F1, micro", True, True),
    "agreement": ("agreement with the teacher", True, None),
    "ece": ("calibration error", True, False),
    "nll": ("negative log-likelihood", False, False),
    "brier": ("Brier score", False, False),
    "loss": ("loss", False, False),
    "cross_entropy": ("cross-entropy", False, False),
    "entropy": ("entropy", False, None),
    "teacher_entropy": ("entropy of the teacher", False, None),
    "kl": ("KL from the teacher", False, False),
    "perplexity": ("perplexity", False, False),
    "bits_per_byte": ("bits a byte", False, False),
    "rmse": ("root mean square error", False, False),
    "mae": ("mean absolute error", False, False),
    "mse": ("mean square error", False, False),
    "r2": ("R²", False, True),
    "psnr": ("PSNR", False, True),
    "ssim": ("SSIM", False, True),
    "energy": ("energy distance to real images", False, False),
    "spread": ("mean distance between particles", False, None),
    "diversity": ("diversity (real pictures: 1)", False, True),
    "distinct": ("different nearest real images", True, True),
    "nearest": ("distance to the nearest real image (unseen ones: 1)", False, None),
    "frechet": ("Fréchet distance", False, False),
    "fid": ("Fréchet distance", False, False),
    "fid_floor": ("Fréchet distance, real against real", False, None),
    "endpoint_mse": ("endpoint error", False, False),
    "class_accuracy": ("of the right class", True, True),
    "calls": ("network calls", False, False),
    "accuracy_std": ("deviation of accuracy", True, None),
    "accuracy_as_made": ("accuracy as made", True, True),
    "clipped": ("pixel values clipped", True, False),
    "precision": ("precision", True, True),
    "recall": ("recall", True, True),
    "accuracy_source": ("accuracy in the language of the labels", True, True),
    "accuracy_others": ("mean accuracy over the other languages", True, True),
    "mrr": ("mean reciprocal rank", False, True),
    "mrr_text": ("mean reciprocal rank, queries in words", False, True),
    "mrr_code": ("mean reciprocal rank, queries in code", False, True),
    "recall1": ("answer at rank 1", True, True),
    "recall5": ("answer among the first 5", True, True),
    "recall10": ("answer among the first 10", True, True),
    "ndcg10": ("NDCG of the first 10", False, True),
    "spearman": ("rank correlation with the scores", False, True),
    "pearson": ("correlation with the scores", False, True),
    "teacher_similarity": ("rank correlation of similarities with the teacher's", False, True),
    "auroc": ("area under the ROC curve", True, True),
    "dpr": ("demographic parity ratio", False, True),
    "dpd": ("demographic parity difference", False, False),
    "eor": ("equalised odds ratio", False, True),
    "eod": ("equalised odds difference", False, False),
    "alpha_precision": ("alpha-precision", False, True),
    "beta_recall": ("beta-recall", False, True),
    "authenticity": ("authenticity", True, None),
    "density": ("density", False, None),
    "coverage": ("coverage", True, True),
    "miou": ("mean IoU", True, True),
    "boundary_miou": ("mean IoU along boundaries", True, True),
    "ap50": ("average precision at an overlap of 0.5", True, True),
    "ap": ("average precision", True, True),
    "base_ap50": ("average precision at an overlap of 0.5 of base classes", True, True),
    "base_ap": ("average precision of base classes", True, True),
    "novel_ap50": ("average precision at an overlap of 0.5 of novel classes", True, True),
    "novel_ap": ("average precision of novel classes", True, True),
    "mask_ap50": ("average precision of masks at an overlap of 0.5", True, True),
    "mask_ap": ("average precision of masks", True, True),
    "mask_base_ap50": ("average precision of masks at an overlap of 0.5 of base classes", True, True),
    "mask_base_ap": ("average precision of masks of base classes", True, True),
    "mask_novel_ap50": ("average precision of masks at an overlap of 0.5 of novel classes", True, True),
    "mask_novel_ap": ("average precision of masks of novel classes", True, True),
    "novel_accuracy": ("accuracy on novel classes", True, True),
    "mean_accuracy": ("accuracy, mean over classes", True, True),
    "image_auroc": ("area under the ROC curve of images", True, True),
    "pixel_auroc": ("area under the ROC curve of pixels", True, True),
    "false_alarms": ("normal items above the threshold", True, False),
    "accepted": ("unfiltered texts that the held-out critic accepts", True, True),
    "distinct_accepted": ("distinct accepted texts a prompt", False, True),
    "novel": ("accepted texts that are no training texts", True, None),
    "complete": ("texts that came to their end", True, True),
    "words": ("words a text", False, None),
    "grade": ("grade of the answers", True, True),
    "grade_error": ("standard error of the grade", True, None),
    "unread": ("answers that cannot be read", True, False),
    "asked_tokens": ("tokens of a question with its prompt", False, False),
    "written_tokens": ("tokens written for an answer", False, None),
    "answers_per_second": ("answers a second", False, None),
    "judged": ("preferred to the reference by a judge", True, True),
    "unjudged": ("verdicts that cannot be read", True, False),
    "passed": ("unfiltered texts that pass", True, True),
    "distinct_passed": ("different texts that pass, a written one", True, True),
    "distinct_2": ("different pairs of words", True, None),
    "overlap": ("ROUGE-L with the original", True, None),
    "length_ratio": ("length by the original's", False, None),
    "entails": ("entailed by the original", True, True),
    "entailed": ("entails the original", True, None),
    "rouge_l": ("ROUGE-L", True, True),
    "entity_density": ("entities a word", False, None),
    "average_precision": ("average precision", True, True),
    "pck": ("keypoints found (PCK)", True, True),
    "nme": ("normalised mean error", True, False),
    "mpjpe": ("mean error of joints in space (MPJPE)", False, False),
    "pa_mpjpe": ("MPJPE after alignment", False, False),
    "failure": ("poses that failed", True, False),
    "pixels": ("mean error in pixels", False, False),
    "exposure": ("exposure of canaries, bits", False, False),
    "gap": ("distance to the teacher's points", True, None),
    "beyond": ("furthest outside of the pixels' range", False, False),
}


_REPEATED = re.compile(r"exposure_x(\d+)")


def metric_of(name: str, higher_is_better: bool | None = None) -> Metric:
    """What is known about a metric's name; ``valid/accuracy`` is accuracy on the validation split."""
    split, _, bare = name.rpartition("/")
    parts = _PARTS.fullmatch(bare)
    bare = parts[1] if parts else bare
    own = _OF_PART.fullmatch(bare) if bare not in _METRICS else None
    label, percent, higher = _METRICS.get(own[2] if own else bare, (bare.replace("_", " "), False, None))
    language = _IN_LANGUAGE.fullmatch(bare) if bare not in _METRICS else None
    if language:
        label, percent, higher = f"accuracy, {language[1]}", True, True
    if own:
        label = f"{label} of {own[1].replace('_', ' ')}"
    often = _REPEATED.fullmatch(bare)
    if often:
        label, percent, higher = f"exposure of canaries read {often[1]} times, bits", False, False
    if parts:
        steps = f"{parts[4]} step{'' if parts[4] == '1' else 's'}"
        label = f"{label} (w = {parts[3]}, {steps}{', stochastic' if parts[2] else ''})"
    if split:
        label = f"{label} ({'validation' if split == 'valid' else split.replace('_', ' ')})"
    return Metric(name, label, percent, higher if higher_is_better is None else higher_is_better)
