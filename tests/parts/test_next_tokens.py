"""Next tokens of two models side by side: weights, masks, chunks, and what forbids them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from limbeck.engine.context import RunContext  # noqa: E402
from limbeck.engine.engine import Engine  # noqa: E402
from limbeck.errors import ConfigError, DataError  # noqa: E402
from limbeck.grammar.method import Built, Query, Setup  # noqa: E402
from limbeck.methods.language.token_kd import TokenKd  # noqa: E402
from tests.parts.texts import Cell, first, gradient, setup_of, start  # noqa: E402


def bound(setup: Setup | None = None, **changes: Any) -> tuple[TokenKd, RunContext, Engine]:
    return start(TokenKd(**changes), setup)


def test_hard_labels_have_the_rest_of_the_weight() -> None:
    method, ctx, _ = bound(distil_ratio=0.7)
    batch, terms = first(method, ctx)
    assert terms["kd"].weight == 0.7 and terms["lm"].weight == pytest.approx(0.3)
    own = method.task.supervised(ctx.at(0).signal("student", batch), batch)
    assert torch.allclose(terms["lm"].total(), own.total(), atol=1e-5)
    method, ctx, _ = bound(distil_ratio=0.0)
    batch, terms = first(method, ctx)
    own = method.task.supervised(ctx.at(0).signal("student", batch), batch)
    assert set(terms) == {"lm"} and torch.equal(terms["lm"].total(), own.total()) and terms["lm"].weight == 1.0


@pytest.mark.parametrize("chunk", [0, 7])
def test_the_backend_reaches_the_loss(chunk: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    method, ctx, _ = bound(chunk=chunk, backend="triton")
    with pytest.raises(ConfigError, match=r"Triton's kernels need a CUDA device"):
        first(method, ctx)
    first(*bound(chunk=chunk, backend="torch")[:2])


def test_chunks_with_a_cut_vocabulary_and_a_dense_teacher() -> None:
    for dense_teacher in (False, True):
        found = []
        for chunk in (0, 5):
            setup = setup_of()
            torch.manual_seed(1)
            if dense_teacher:
                setup.teacher = Built(Cell(setup.task.vocabulary, 8))  # type: ignore[attr-defined]
            setup.task.columns = 260  # type: ignore[attr-defined]
            method, ctx, _ = bound(setup, chunk=chunk)
            _, terms = first(method, ctx)
            found.append((terms["kd"].values, gradient(terms["kd"], method.roles["student"].module)))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_chunks_are_taken_by_size_and_never_for_a_model_without_a_plain_head(monkeypatch: pytest.MonkeyPatch) -> None:
    import limbeck.parts.next_tokens as tokens

    method, ctx, _ = bound()
    batch = method.task.example(4)
    assert isinstance(method.reader.read(batch, ctx.at(0)).student, Tensor)
    monkeypatch.setattr(tokens, "LARGE", 100)
    assert isinstance(method.reader.read(batch, ctx.at(0)).student, tokens.Head)
    method, ctx, engine = bound(setup_of(plain=True), chunk=8)
    assert isinstance(method.reader.read(batch, ctx.at(0)).student, Tensor)
    engine.run(method)


def test_the_tap_leaves_the_model_as_it_was() -> None:
    method, ctx, _ = bound(chunk=8)
    module, batch = method.roles["student"].module, method.task.example(3)
    before = method.task.feed(module, batch)
    first(method, ctx)
    assert torch.equal(method.task.feed(module, batch), before)


def test_logits_that_the_head_does_not_tell_are_noticed() -> None:
    setup = setup_of()
    setup.student.module.config.logit_scale = 3.0  # what the model does not do
    method, ctx, _ = bound(setup, chunk=8)
    with pytest.raises(ConfigError, match=r"method\.chunk=0"):
        first(method, ctx)


def test_add_on_objectives_see_logits() -> None:
    from limbeck.objectives.output import Kl

    setup = setup_of()
    setup.objectives = {"extra": Kl()}
    method, ctx, engine = bound(setup, chunk=8)
    assert isinstance(method.reader.read(method.task.example(2), ctx.at(0)).student, Tensor)
    engine.run(method)


def test_an_empty_mask_is_refused() -> None:
    method, ctx, _ = bound()
    with pytest.raises(DataError, match="no token of step 3 counts"):
        method.observe({"kd": 0.0, "tokens": 0.0}, ctx.at(3))


def test_another_query_is_no_sampler() -> None:
    with pytest.raises(ValueError, match="sampler"):
        TokenKd(sampler=Query())
