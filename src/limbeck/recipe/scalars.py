"""What a bare word means, in a recipe and on the command line: the core schema of YAML 1.2."""

from __future__ import annotations

import math
import re
from typing import Any, Final

TOKEN = re.compile(r"[A-Za-z_][\w.*?@-]*\+?=", re.ASCII)
"""How an override begins: ``key=`` or ``key+=``."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", re.ASCII)
_WORDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


def scalar(text: str) -> Any:
    """What a bare word means: nothing, a truth value, a number, or itself as text.

    A number too long or too large to be held (400 digits, ``1e999``) stays text.

    Example:
        >>> [scalar(t) for t in ("3", "1e-3", "no", "null", "true", "007")]
        [3, 0.001, 'no', None, True, '007']
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= 64 else text
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else text
    return text


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8 (an argument of the command line may hold stray bytes)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
