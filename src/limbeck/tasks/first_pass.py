"""A network's first pass over a task's items, before anything is trained: what fails there is said in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from limbeck.errors import ConfigError, LimbeckError
from limbeck.grammar.method import Built
from limbeck.grammar.signal import evaluating


@contextlib.contextmanager
def first_pass(built: Built, role: str, fails: str, remedy: str, expected: str = "") -> Iterator[None]:
    """In evaluation mode and without a graph.

    Args:
        built: the network that is called inside.
        role: who it is, as errors name it.
        fails: what is said before the reason: ``"NAME fails on images [2, 3, 32, 32]"``.
        remedy: what to do about it.
        expected: what a network would have to be.

    Raises:
        ConfigError: whatever was raised inside, unless it is one of limbeck's own errors.
    """
    try:
        with torch.no_grad(), evaluating([built.module]):
            yield
    except LimbeckError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(role, f"{fails}: {type(error).__name__}: {text}", expected=expected, remedy=remedy) from None


__all__ = ["first_pass"]
