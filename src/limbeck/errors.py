"""The errors a user meets. Each says which argument, what was given, what was expected, and what to type next.

All of them end a command with exit status 2 and no traceback. Anything else that escapes is a defect of limbeck
(exit status 1, the traceback in a file).
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

MASK = "***"
"""What stands in the place of a name and password."""

_CREDENTIALS = re.compile(r"(?<=://)[^\s'\"]*@")
_KEYS = re.compile(r"([?&#][^=&\s]*(?:key|token|secret|pass|auth|sig)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """A text for people, without the name and password of any address in it, nor the values of its keys and tokens.

    Example:
        >>> masked("https://me:secret@host does not answer")
        'https://***@host does not answer'
    """
    return _KEYS.sub(rf"\1{MASK}", _CREDENTIALS.sub(f"{MASK}@", text)) if "://" in text else text


class _Repr(reprlib.Repr):
    """Cut to a readable length, and without credentials, which must not be cut in the middle."""

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(masked(x), level)


_repr = _Repr()
_repr.maxstring = 120
_repr.maxother = 120
_repr.maxlist = 8
_repr.maxdict = 8
_repr.maxlevel = 3


class Unset:
    """Marks 'no value was given' where ``None`` is itself a value."""

    def __repr__(self) -> str:
        return "<unset>"


UNSET = Unset()


def shorten(value: Any) -> str:
    """A value as it may stand in a one-line message: its repr, cut to a readable length."""
    try:
        return _repr.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


_SECRETS = re.compile(
    r"""([\w.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|credential|authorization)[\w.-]*["']?\s*[=:]\s*)"""
    r"""(\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*'|[^\s,}\]"']+)|(\bbearer\s+)\S+""",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """As `masked`, and without the values of settings that are called as secrets are: for files that are sent on.

    Example:
        >>> without_secrets("run student.options={user: me, password: x} teacher=remote:http://a:b@host")
        'run student.options={user: me, password: ***} teacher=remote:http://***@host'
    """
    return _SECRETS.sub(lambda m: f"{m[1] or m[3]}{MASK}", masked(text))


# C0 and C1 controls but for tab and line feed, marks that turn the direction of text, separators of lines, lone surrogates
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    """A text for a terminal: what would steer it, or hide or reorder what is shown, stands there as an escape.

    Names of files, classes and columns come from anywhere.

    Example:
        >>> visible("cat\x1b[2J")
        'cat\\x1b[2J'
    """
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def first_line(error: Exception) -> str:
    """What a library's error says first: its later lines speak to developers."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def human(x: float, unit: str = "") -> str:
    """A count with a decimal prefix: ``950``, ``12.3 k``, ``4.56 M``, ``1.2 GB``."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= scale * 0.9995:
            shown = x / scale
            return f"{shown:.{2 if shown < 10 else 1 if shown < 100 else 0}f} {prefix}{unit}"
    return f"{x:.0f} {unit}".rstrip()


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names closest to ``name``, best first; empty when nothing is close."""
    known = [str(k) for k in known]
    found = difflib.get_close_matches(str(name), known, n=count, cutoff=0.6)
    lowered = {k.lower().replace("-", "_"): k for k in known}
    exact = lowered.get(str(name).lower().replace("-", "_"))
    if exact is not None and exact not in found:
        found.insert(0, exact)
    return found[:count]


class LimbeckError(Exception):
    """Base of every error that is the user's to mend.

    Args:
        argument: dotted path or name of what is wrong (``method.gamma``, ``--seed``, a file).
        problem: what is wrong, in words.
        given: the offending value, shown shortened; leave out when ``problem`` says it.
        expected: what would have been right, in words.
        remedy: what to type or do next.
    """

    def __init__(
        self,
        argument: str,
        problem: str = "",
        *,
        given: Any = UNSET,
        expected: str = "",
        remedy: str = "",
    ) -> None:
        self.argument = argument
        self.problem = problem
        self.given = given
        self.expected = expected
        self.remedy = remedy
        super().__init__(self.line())

    def __str__(self) -> str:
        return self.line()  # whoever knows more, the role or a better remedy, adds it on the way up

    def line(self) -> str:
        """The error as one line."""
        said = self.problem
        if self.given is not UNSET:
            said = f"{said} (got {shorten(self.given)})" if said else f"got {shorten(self.given)}"
        parts = [said] if said else []
        if self.expected:
            parts.append(f"expected {self.expected}")
        text = f"{self.argument}: " + ", ".join(parts) if parts else self.argument
        return visible(masked(f"{text}; {self.remedy}" if self.remedy else text))

    @classmethod
    def unknown(cls, argument: str, name: Any, known: Iterable[str], what: str = "name") -> LimbeckError:
        """An unknown name, with the nearest valid ones and the whole list."""
        known = sorted(str(k) for k in known)
        close = nearest(str(name), known)
        shown = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
        remedy = (
            f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        ) + f"known: {shown or 'none'}"
        return cls(argument, f"no {what} is called {shorten(name)}", remedy=remedy)


class ConfigError(LimbeckError):
    """A recipe, an override, a command line or an argument is wrong."""


class DataError(LimbeckError):
    """Data cannot be read, is empty, or does not fit the task."""


class ShapeError(LimbeckError):
    """Two things that must fit have different shapes."""


class TapError(LimbeckError):
    """A tap names no module, or the module showed nothing."""


class TeacherMismatch(LimbeckError):
    """The teacher's classes, vocabulary, tokenizer or input do not fit the student's."""


class MethodError(LimbeckError):
    """A method, or an objective of one, breaks a rule of the grammar: its stage, term and role are named."""


class CacheMismatch(LimbeckError):
    """A recorded teacher does not belong to this teacher, data, preprocessing or view."""


class CheckpointCorrupt(LimbeckError):
    """A checkpoint, cache or artifact is truncated, altered, foreign or unsafe."""


class StorageError(LimbeckError):
    """A folder cannot be written, is in use by another run, or is full."""


class Untrusted(LimbeckError):
    """A folder would run code, or send data to another machine, that this workspace does not know."""

    def __init__(self, place: str, acts: str) -> None:
        super().__init__(
            place,
            f"opening it would do what this workspace has not done before: {acts}",
            remedy="if you trust whoever made it, add --trust (in Python: with limbeck.trusting()); it is remembered",
        )


class OutOfMemory(LimbeckError):
    """Something needs more memory than there is, of the host or of a device."""


class MissingExtra(LimbeckError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            module,
            f"{purpose} needs the package {module!r}, which is not installed",
            remedy=f"pip install 'limbeck[{extra}]'",
        )


class NonFinite(LimbeckError):
    """A value became infinite or NaN; raised before the optimiser takes the step."""


class Stopped(Exception):
    """The run was asked to stop by a signal; everything is saved.

    Args:
        signum: the signal's number; the process should exit with ``128 + signum``.
        resume: what to type to go on.
    """

    def __init__(self, signum: int, resume: str = "") -> None:
        self.signum = signum
        self.resume = resume
        super().__init__(f"stopped by signal {signum}; {resume}" if resume else f"stopped by signal {signum}")


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional dependency, or say which extra brings it.

    Example:
        >>> require("json", "language", "reading text").__name__
        'json'
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtra(module.split(".")[0], extra, purpose) from None
