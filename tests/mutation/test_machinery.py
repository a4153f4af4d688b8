"""The machinery in seconds: every mutant still has its place, a true copy passes, a wrong one is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mutation.machine import ROOT, SOURCE, Mutant, Outcome, package, run
from tests.mutation.mutants import MUTANTS

TEST = """
import limbeck.functional as F
import torch


def test_zero_where_equal():
    z = torch.tensor([[1.0, 2.0, 3.0]])
    assert float(F.kl(z, z)) == 0.0
    assert float(F.kl(2 * z, z, temperature=2.0)) > float(F.kl(2 * z, z, temperature=2.0, scale_t2=False)) > 0
"""


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda i: MUTANTS[i].why)
def test_every_mutant_has_its_place(number: int) -> None:
    mutant = MUTANTS[number]
    text = (SOURCE / mutant.file).read_text(encoding="utf-8")
    compile(mutant.apply(text), mutant.file, "exec")
    for test in mutant.tests:
        assert (ROOT / test).exists(), test


def test_there_are_enough_and_no_two_alike() -> None:
    assert len(MUTANTS) >= 40
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len({m.why for m in MUTANTS}) == len(MUTANTS)
    assert len({m.file for m in MUTANTS}) >= 10


def test_a_place_that_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        Mutant("functional/divergence.py", "no such text", "x", (), "gone").apply("other text")
    with pytest.raises(ValueError, match="occurs 2 times"):
        Mutant("functional/divergence.py", "a", "b", (), "twice").apply("a a")


def test_the_original_is_never_touched() -> None:
    mutant = MUTANTS[0]
    before = (SOURCE / mutant.file).read_bytes()
    with package(mutant) as folder:
        assert (folder / "limbeck" / mutant.file).read_bytes() != before
    assert (SOURCE / mutant.file).read_bytes() == before and not folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each mutant lives in a forked process")
def test_a_true_copy_passes_and_a_wrong_one_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "test_small.py").write_text(TEST)
    tests = ("-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path / "test_small.py"))
    assert run(None, tests) == Outcome("survived", pytest.approx(10, abs=60))  # type: ignore[arg-type]
    dropped = next(m for m in MUTANTS if m.why == "T squared dropped")
    found = run(dropped, tests)
    assert found.noticed and "test_zero_where_equal" in found.by
    swapped = next(m for m in MUTANTS if m.why == "kl: p and q swapped")
    assert run(swapped, tests).verdict == "survived", "this test does not tell the two directions apart"
    assert run(None, [*tests, "-k", "nothing_of_that_name"]).verdict == "broken"
