"""SinKD: its terms by their formulas, rows of the whole batch, groups of tokens, annealing, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import limbeck.functional as F
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.transport import sinkhorn, sinkhorn_classes
from limbeck.grammar.method import Gather, Gathered
from limbeck.grammar.role import cast
from limbeck.methods.language.sinkd import Sinkd, SinkdTokens
from limbeck.parts.next_tokens import Tokens
from limbeck.recipe.recipe import build, check, load_tree
from tests.parts.texts import first, setup_of, start
from tests.tiny import shared_tiny


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def terms_of(made: Any, n: int = 4, **changes: Any) -> tuple[Any, Tensor, Tensor]:
    """The terms of one step, and both logits."""
    method = made.method
    for name, value in changes.items():
        setattr(method, name, value)
    made.engine.prepare(method)
    stage = made.engine.stages[0]
    cast(method.roles, tuple(stage.optim))
    ctx = RunContext(made.engine, method, stage, made.engine.device)
    batch = method.task.example(n)
    steps = method.step(batch, ctx)
    found = next(steps)
    if isinstance(found, Gather):
        found = steps.send(Gathered(found))
    return found, ctx.signals["student"].logits, ctx.signals["teacher"].logits


def test_terms_are_the_formulas(tmp_path: Path) -> None:
    made = shared_tiny("sinkd", tmp_path)
    terms, z_s, z_t = terms_of(made)
    assert (terms["ce"].weight, terms["kd"].weight) == (pytest.approx(0.1), 0.9)
    torch.testing.assert_close(terms["kd"].values, F.soft_cross_entropy(z_s, z_t, temperature=2.0, scale_t2=False))
    whole = terms["sinkhorn"].weight * terms["sinkhorn"].values.mean()  # the engine's mean makes the paper's sum of it
    torch.testing.assert_close(whole, 0.8 * 1e-3 * sinkhorn(z_s, z_t).sum())
    mean, z_s, z_t = terms_of(made, reduction="batchmean")
    assert mean["sinkhorn"].weight == pytest.approx(0.8e-3)
    sample, z_s, z_t = terms_of(made, transport="sample", divergence="js")
    torch.testing.assert_close(sample["sinkhorn"].values, sinkhorn_classes(z_s, z_t))
    torch.testing.assert_close(sample["kd"].values, F.jensen_shannon(z_s, z_t, temperature=2.0, scale_t2=False))
    off, _, _ = terms_of(made, transport="off")
    assert set(off) == {"ce", "kd"}
    only, _, _ = terms_of(made, transport="batch", alpha=0.0)
    assert set(only) == {"ce", "sinkhorn"}


def test_every_divergence_of_the_comparison() -> None:
    z_s, z_t = draw(5, 4), draw(5, 4, seed=1)
    want = {
        "kl": F.kl(z_s, z_t),
        "reverse": F.kl(z_s, z_t, direction="reverse"),
        "js": F.jensen_shannon(z_s, z_t),
        "tv": F.total_variation(z_s, z_t),
    }
    for name, values in want.items():
        torch.testing.assert_close(Sinkd(divergence=name).soft(z_s, z_t, 1.0), values)  # type: ignore[arg-type]


def test_the_temperature_falls_to_one_over_the_epochs() -> None:
    class At:
        def __init__(self, epoch: int) -> None:
            self.epoch, self.total = epoch, 8

        def at(self, step: int) -> At:
            return At(step)

    method: Any = Sinkd(kd_temperature=4.0, anneal=True)
    assert [round(method.heat(At(e)), 4) for e in range(8)] == [round(4 - 3 * e / 7, 4) for e in range(8)]
    assert Sinkd(kd_temperature=4.0).heat(At(7)) == 4.0  # type: ignore[arg-type]


def test_tokens_are_matched_inside_their_group_alone() -> None:
    method = SinkdTokens(group=3, classes=0, reduction="batchmean")
    z_s, z_t = draw(2, 7, 5), draw(2, 7, 5, seed=1)
    where = torch.ones(2, 7, dtype=torch.bool)
    where[1, 4:] = False
    labels = torch.zeros(2, 7, dtype=torch.long)
    got = method.carried(Tokens(z_s, z_t, labels, where))
    for n in range(2):
        for begin in (0, 3, 6):
            at = slice(begin, min(7, begin + 3))
            m = where[n, at]
            alone = sinkhorn(z_s[n, at][m], z_t[n, at][m]) if bool(m.any()) else z_s.new_zeros(0)
            torch.testing.assert_close(got[n, at][m], alone)
            assert not got[n, at][~m].any()
    summed = SinkdTokens(group=3, classes=0).carried(Tokens(z_s, z_t, labels, where))
    torch.testing.assert_close(summed[0, :3], 3 * got[0, :3])
    torch.testing.assert_close(summed[1, 3], got[1, 3])  # alone in its group


def test_tokens_train_and_the_student_alone_is_distil_ratio_zero() -> None:
    method, ctx, engine = start(SinkdTokens(group=8, classes=16), setup_of())
    _, terms = first(method, ctx)
    assert set(terms) == {"kd", "lm", "sinkhorn"} and bool((terms["sinkhorn"].values > 0).any())
    engine.run(method)
    method, ctx, _ = start(SinkdTokens(distil_ratio=0.0), setup_of())
    assert set(first(method, ctx)[1]) == {"lm"}
    method, ctx, _ = start(SinkdTokens(transport="sample"), setup_of())
    assert not method.dense_only() and set(first(method, ctx)[1]) == {"kd", "lm", "sinkhorn"}
    method, ctx, _ = start(SinkdTokens(transport="off", divergence="js"), setup_of())
    assert set(first(method, ctx)[1]) == {"kd", "lm"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.eps=0"], "method.eps"),
        (["method.iterations=0"], "method.iterations"),
        (["method.kd_temperature=0.5"], "method.kd_temperature"),
        (["method.transport=rows"], "batch"),
        (["method.scale=-1"], "method.scale"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("sinkd", words)))


def test_numbers_are_refused() -> None:
    class Numbers:
        kind_of_target = "number"

    with pytest.raises(LimbeckError):
        Sinkd().accept(Numbers())  # type: ignore[arg-type]


def test_a_batch_of_one_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        shared_tiny("sinkd", tmp_path, "train.batch_size=1")
    assert "batch_size is 1" in caplog.text
