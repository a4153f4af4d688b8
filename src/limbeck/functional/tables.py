"""Tables: the likelihood of rows of categories, parity between groups, and how good drawn rows are.

Parity as fairlearn's metrics have it where all rates are defined; alpha-precision, beta-recall and authenticity after Alaa
et al. (2022), density and coverage after Naeem et al. (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError


def column_layout(widths: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Where each column's values lie among all logits: places ``[K, D]`` (D the widest column's) and which are there."""
    width = torch.tensor(list(widths), device=device)
    start = width.cumsum(0) - width
    within = torch.arange(int(width.max()), device=device)
    there = within < width[:, None]
    return torch.where(there, start[:, None] + within, start[:, None]), there


def column_log_probs(logits: Tensor, widths: Sequence[int]) -> Tensor:
    """Log-probabilities ``[..., K, D]`` of every column's values; minus infinity beyond a column's own width.

    Args:
        logits: ``[..., sum of widths]``, column after column.
        widths: the number of values of each of the K columns.

    Raises:
        ShapeError: as many logits as all widths are needed.
    """
    if logits.shape[-1] != sum(widths):
        raise ShapeError("logits", given=list(logits.shape), expected=f"[..., {sum(widths)}]")
    places, there = column_layout(widths, logits.device)
    return logits[..., places].masked_fill(~there, -torch.inf).log_softmax(-1)


def column_cross_entropy(logits: Tensor, codes: Tensor, widths: Sequence[int]) -> Tensor:
    """Cross-entropy of a row's values, summed over its columns: ``[N]``.

    Args:
        logits: ``[N, sum of widths]``, column after column.
        codes: int64 ``[N, K]``, the value of each column.
        widths: the number of values of each column.

    Example:
        >>> round(column_cross_entropy(torch.zeros(1, 5), torch.tensor([[1, 2]]), [2, 3]).item(), 4)  # ln 2 + ln 3
        1.7918
    """
    return -column_log_probs(logits, widths).gather(-1, codes[..., None]).squeeze(-1).sum(-1)


class Rates(NamedTuple):
    """Of each group [S], NaN where it has no item to count: share of positive answers, of the positives found, of false alarms."""

    selection: Tensor
    true_positive: Tensor
    false_positive: Tensor


class Parity(NamedTuple):
    """Ratios (1 is parity) and differences (0 is parity) between groups; NaN where they are not defined.

    Attributes:
        dpr, dpd: demographic parity: the smallest share of positive answers over the largest, and their difference.
        eor, eod: equalised odds: the smaller ratio, and the larger difference, of true and false positive rates.
    """

    dpr: float
    eor: float
    dpd: float
    eod: float


def group_rates(labels: Tensor, answers: Tensor, group: Tensor, *, groups: int | None = None) -> Rates:
    """Rates of each group, in float64.

    Args:
        labels, answers: 0 or 1 ``[N]``.
        group: int64 ``[N]``.
        groups: how many; ``None``: as many as the largest number says.
    """
    count = groups if groups is not None else int(group.max()) + 1
    member = torch.nn.functional.one_hot(group.long(), count).double()  # [N, S]
    y, told = labels.double(), answers.double()

    def rate(among: Tensor) -> Tensor:
        return (told * among) @ member / (among @ member)

    return Rates(rate(torch.ones_like(y)), rate(y), rate(1 - y))


def parity(rates: Rates) -> Parity:
    """Ratios and differences between groups; undefined rates are left out, and 0 / 0 is NaN.

    Example:
        >>> y, s = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> parity(group_rates(y, torch.tensor([1, 1, 0, 1]), s)).dpr
        0.5
    """

    def ends(rate: Tensor) -> tuple[float, float]:
        known = rate[~rate.isnan()]
        return (float(known.min()), float(known.max())) if len(known) else (float("nan"), float("nan"))

    def ratio(rate: Tensor) -> float:
        low, high = ends(rate)
        return low / high if high else float("nan")

    def difference(rate: Tensor) -> float:
        low, high = ends(rate)
        return high - low

    odds = [r for r in (ratio(rates.true_positive), ratio(rates.false_positive)) if r == r]
    gaps = [d for d in (difference(rates.true_positive), difference(rates.false_positive)) if d == d]
    nan = float("nan")
    return Parity(ratio(rates.selection), min(odds, default=nan), difference(rates.selection), max(gaps, default=nan))


def _nearest(a: Tensor, b: Tensor, k: int = 1, same: bool = False, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Distance [N] of each row of ``a`` to its k-th nearest of ``b``, and which it is; ``same``: not to itself."""
    far, which = [], []
    for start in range(0, len(a), chunk):
        d = torch.cdist(a[start : start + chunk], b, compute_mode="donot_use_mm_for_euclid_dist")
        if same:
            rows = torch.arange(len(d), device=d.device)
            d[rows, rows + start] = torch.inf
        found = d.topk(k, largest=False)
        far.append(found.values[:, -1])
        which.append(found.indices[:, -1])
    return torch.cat(far), torch.cat(which)


class Fidelity(NamedTuple):
    """Density, coverage, and the radius [N] of each real row."""

    density: float
    coverage: float
    radius: Tensor


def density_coverage(real: Tensor, synthetic: Tensor, *, k: int = 5) -> Fidelity:
    """How many real neighbourhoods a synthetic row lies in (over k), and the share of real rows that have one near.

    Args:
        real: ``[N, d]``.
        synthetic: ``[M, d]``.
        k: a real row's radius is the distance to its k-th nearest other real row; nearer means strictly inside.

    Raises:
        ConfigError: fewer than k + 1 real rows.
    """
    if not 1 <= k < len(real):
        raise ConfigError("k", given=k, expected=f"from 1 to {len(real) - 1}, one less than the real rows")
    radius, _ = _nearest(real, real, k, same=True)
    inside, covered = 0.0, 0
    for x, r in zip(real.split(1024), radius.split(1024), strict=True):
        d = torch.cdist(x, synthetic, compute_mode="donot_use_mm_for_euclid_dist") < r[:, None]
        inside, covered = inside + float(d.sum()), covered + int(d.any(1).sum())
    return Fidelity(inside / (k * len(synthetic)), covered / len(real), radius)


class AlphaPrecision(NamedTuple):
    """Curves [steps], their scores (1 is perfect), and authenticity, the share of rows that are no copies."""

    precision_curve: Tensor
    coverage_curve: Tensor
    precision: float
    coverage: float
    authenticity: float


def alpha_precision(
    real: Tensor, synthetic: Tensor, *, steps: int = 30, variant: Literal["paper", "released"] = "paper"
) -> AlphaPrecision:
    """Alpha-precision, beta-recall (coverage) and authenticity of synthetic rows.

    At each level alpha in linspace(0, 1): the share of synthetic rows within the alpha-quantile of the real rows' distances
    to their mean; the share of real rows whose nearest synthetic row is no farther than their nearest other real row, and
    lies within the alpha-quantile (of those nearest rows) of the distance to the synthetic mean. A score is
    1 - sum |alpha - curve| / sum alpha.

    Args:
        real, synthetic: ``[N, d]`` each.
        steps: levels.
        variant: authenticity compares the distance of real row i to its nearest synthetic one with its distance to its
            nearest real one; ``released`` indexes the latter by the synthetic row's number, as the code does.

    Raises:
        ShapeError: sets of two sizes.
    """
    if real.shape != synthetic.shape:
        raise ShapeError(
            "synthetic", given=list(synthetic.shape), expected=str(list(real.shape)), remedy="draw as many rows"
        )
    alphas = torch.linspace(0, 1, steps, dtype=real.dtype, device=real.device)
    centre, own = real.mean(0), synthetic.mean(0)
    radii = (real - centre).norm(dim=1).quantile(alphas)
    far = (synthetic - centre).norm(dim=1)
    precision = (far[None] <= radii[:, None]).to(real.dtype).mean(1)  # [steps]
    to_real, _ = _nearest(real, real, same=True)
    to_made, which = _nearest(real, synthetic)
    out = (synthetic[which] - own).norm(dim=1)  # [N]
    near = to_made <= to_real
    coverage = (near[None] & (out[None] <= out.quantile(alphas)[:, None])).to(real.dtype).mean(1)

    def score(curve: Tensor) -> float:
        return 1 - float((alphas - curve).abs().sum() / alphas.sum())

    other = to_real[which] if variant == "released" else to_real
    return AlphaPrecision(
        precision, coverage, score(precision), score(coverage), float((other < to_made).double().mean())
    )


__all__ = [
    "AlphaPrecision",
    "Fidelity",
    "Parity",
    "Rates",
    "alpha_precision",
    "column_cross_entropy",
    "column_layout",
    "column_log_probs",
    "density_coverage",
    "group_rates",
    "parity",
]
