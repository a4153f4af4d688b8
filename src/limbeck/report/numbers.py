"""Numbers as people read them."""

from __future__ import annotations

import math


def significant(x: float, digits: int = 4) -> str:
    """A number in a few significant digits: ``0.01234``, ``12.34``, ``12,340``, ``1.2e-07``."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    if 1e-4 <= abs(x) < 10**digits:
        return f"{x:.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}"
    return f"{x:,.0f}" if 10**digits <= abs(x) < 1e7 else f"{x:.{digits - 1}e}"


def duration(seconds: float) -> str:
    """A duration: ``0.42 s``, ``31 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def brief(x: float, unit: str = "") -> str:
    """A count in few letters: ``950``, ``12k``, ``4.6M``, ``1.2GB``."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= scale * 0.995:
            return f"{x / scale:.{1 if x / scale < 9.95 else 0}f}{prefix}{unit}"
    return f"{x:.0f}{unit}"


def brief_duration(seconds: float) -> str:
    """A duration in few letters: ``0.4s``, ``31s``, ``4.2min``, ``2.1h``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 120:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f}s"
    return f"{seconds / 60:.1f}min" if seconds < 7200 else f"{seconds / 3600:.1f}h"


def ratio(x: float) -> str:
    """A factor: ``23``, ``4.2``, ``1.08``."""
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}" if x >= 2 else f"{x:.2f}"
