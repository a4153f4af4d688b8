"""SIGKILL at random moments, checkpoint writing included: the run that goes on ends bit-identical to one never interrupted."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from limbeck.storage import store
from tests.tiny import NAMES, differences, frozen, state_of
from tests.tiny import shared_tiny as tiny

KILLS = 50

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: a process of its own for each attempt")


def attempt(name: str, folder: Path, overrides: tuple[str, ...]) -> int:
    """Start the run in a forked child; its process id. The child writes its final state and leaves."""
    child = os.fork()
    if child:
        return child
    try:
        state = state_of(tiny(name, folder, *overrides).run())
        store.save_tree(folder / "end", state)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_random_moments_ends_the_same(name: str, tmp_path: Path) -> None:
    overrides = ("engine.save_every=1",)
    with frozen():
        _kill(name, tmp_path, overrides)


def _kill(name: str, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    whole = state_of(tiny(name, tmp_path / "whole", *overrides).run())
    began = time.perf_counter()  # the first run also imported things and trained the teacher
    tiny(name, tmp_path / "again", *overrides).run()
    longest = time.perf_counter() - began
    rng = random.Random(name)
    folder = tmp_path / "killed"
    for _ in range(math.ceil(KILLS / len(NAMES))):
        child = attempt(name, folder, overrides)
        time.sleep(rng.random() * longest)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "an attempt failed before it was killed"
    child = attempt(name, folder, overrides)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    assert not differences(whole, store.load_tree(folder / "end"))
