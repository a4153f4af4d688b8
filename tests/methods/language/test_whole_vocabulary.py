"""No step of any language method writes out the logits of all its tokens: what every operation returns is looked at."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

transformers = pytest.importorskip("transformers")

from limbeck.engine.unaided import Unaided  # noqa: E402
from limbeck.functional import chunked  # noqa: E402
from limbeck.functional.sparse import TopK  # noqa: E402
from limbeck.grammar import heads  # noqa: E402
from limbeck.grammar.method import Method, Setup, Terms  # noqa: E402
from limbeck.grammar.plain import Objectives  # noqa: E402
from limbeck.grammar.signal import Signal  # noqa: E402
from limbeck.methods.language import multi_granularity  # noqa: E402
from limbeck.methods.language.multi_granularity import MultiGranularity  # noqa: E402
from limbeck.methods.language.sinkd import SinkdTokens  # noqa: E402
from limbeck.methods.language.swing import Swing  # noqa: E402
from limbeck.methods.language.taid import Taid  # noqa: E402
from limbeck.methods.language.token_kd import TokenKd  # noqa: E402
from limbeck.objectives import Criterion  # noqa: E402
from limbeck.objectives.output import Divergence, Kl  # noqa: E402
from limbeck.parts import next_tokens  # noqa: E402
from limbeck.tasks import language  # noqa: E402
from tests.parts.texts import setup_of, start  # noqa: E402
from tests.tiny import tiny  # noqa: E402

ROWS = 60
"""Tokens of a batch: 4 texts of 15 that are predicted."""


class Largest(TorchDispatchMode):
    """The most rows that any tensor over the vocabulary has had, and which operation made it."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows, self.by = vocabulary, 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.ndim and x.shape[-1] == self.vocabulary and x.is_floating_point():
                rows = math.prod(x.shape[:-1])
                if rows > self.rows:
                    self.rows, self.by = rows, f"{func} {list(x.shape)}"
        return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """These little batches are large, and a chunk has eight tokens."""
    for module, name in ((heads, "LARGE"), (next_tokens, "LARGE"), (language, "CELLS"), (multi_granularity, "CELLS")):
        monkeypatch.setattr(module, name, 8 * 300)
    monkeypatch.setattr(chunked, "_sizes", lambda chunk, vocabulary, device: (chunk or 8, 4))


def one_step(method: Method[Any], setup: Setup | None = None) -> tuple[float, dict[str, Tensor], Largest]:
    """A step's loss, the student's gradients, and what was seen."""
    method, ctx, engine = start(method, setup)
    batch = {**method.task.example(4), "item": torch.arange(4), "view": torch.zeros(4, dtype=torch.long)}
    ctx = ctx.at(0)
    with Largest(method.task.vocabulary) as seen:
        for query in engine.stages[0].queries:
            batch = query(batch, ctx)
        terms = (engine.stages[0].step or method.step)(batch, ctx)
        assert isinstance(terms, Terms)
        for name, objective in method.setup.objectives.items():
            teacher = ctx.signals.get("teacher") or ctx.signal("teacher", batch)
            terms[name] = objective(ctx.signals["student"], teacher, batch, ctx)
        loss = torch.stack([t.weight * t.total() for t in terms.values()]).sum()
        loss.backward()
    grads = {n: p.grad for n, p in method.roles["student"].module.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads, seen


def with_add_ons(method: Method[Any]) -> tuple[Method[Any], Setup]:
    setup = setup_of()
    setup.objectives = {"more": Kl(temperature=2.0), "js": Divergence(divergence="jensen-shannon")}
    setup.objectives |= {"far": Divergence(divergence="binary", weight=0.01)}
    for name, objective in setup.objectives.items():
        objective.name = name
    return method, setup


STEPS: dict[str, Callable[[], Any]] = {
    "token-kd": lambda: TokenKd(distil_ratio=0.7),
    "token-kd adaptive": lambda: TokenKd(divergence="adaptive"),
    "token-kd ctkd": lambda: TokenKd(divergence="ctkd"),
    "token-kd dkd": lambda: TokenKd(divergence="dkd"),
    "token-kd ratio 0": lambda: TokenKd(distil_ratio=0.0),
    "token-kd, add-ons": lambda: with_add_ons(TokenKd()),
    "taid": lambda: Taid(distil_ratio=0.5),
    "taid of probabilities": lambda: Taid(space="probabilities", detach_student=False),
    "sinkd-tokens": lambda: SinkdTokens(group=8, classes=16),
    "sinkd-tokens sample": lambda: SinkdTokens(transport="sample"),
    "swing": lambda: Swing(),
    "multi-granularity": lambda: MultiGranularity(sampler=None, k=8),
    "objectives": lambda: Objectives({"kl": Kl(), "far": Divergence(divergence="squared", weight=0.01)}),
    "alone": lambda: Unaided(),
}
"""Of each the step of a stage that learns from whole texts."""


ALIKE = {"token-kd dkd", "token-kd ratio 0", "taid of probabilities", "sinkd-tokens sample", "objectives"}
"""Steps that go the way of another."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.expensive) if n in ALIKE else n for n in STEPS])
def test_a_step_writes_no_logits_of_all_tokens_and_learns_the_same(name: str, request: pytest.FixtureRequest) -> None:
    def made() -> tuple[Method[Any], Setup]:
        found = STEPS[name]()
        return found if isinstance(found, tuple) else (found, setup_of())

    loss, grads, seen = one_step(*made())
    assert seen.rows >= ROWS, "small ones are written out, or this would see nothing"
    request.getfixturevalue("small")
    other, others, seen = one_step(*made())
    assert seen.rows < ROWS, seen.by
    assert other == pytest.approx(loss, rel=1e-4)
    assert set(grads) == set(others)
    for n in grads:
        torch.testing.assert_close(others[n], grads[n], rtol=1e-3, atol=1e-5)


def test_evaluation_writes_none(request: pytest.FixtureRequest) -> None:
    setup = setup_of()
    task: Any = setup.task
    assert setup.teacher is not None
    whole = task.evaluate(setup.student, task.test, setup.teacher)
    request.getfixturevalue("small")
    with Largest(task.vocabulary) as seen:
        found = task.evaluate(setup.student, task.test, setup.teacher)
    assert seen.rows < ROWS, seen.by
    assert dict(found) == pytest.approx(dict(whole), rel=1e-5)


@pytest.mark.parametrize("tail", ["uniform_rest", "renormalise"])
def test_a_recorded_teacher_stays_sparse(tail: Any, request: pytest.FixtureRequest) -> None:
    class Recording:
        """What a cache shows, of another seed's model."""

        def __init__(self, module: Any, task: Any) -> None:
            self.module, self.task = module, task

        def answer(self, batch: Any, taps: Any = ()) -> Signal:
            with torch.no_grad():
                top = self.task.feed(self.module, batch).log_softmax(-1).topk(12)
            return Signal(TopK(top.indices, top.values, self.task.vocabulary, tail))

    def step() -> tuple[float, dict[str, Tensor], Largest]:
        setup = setup_of()
        assert setup.teacher is not None
        module = setup.teacher.module
        setup.teacher.module = Recording(module, setup.task)
        method = TokenKd()
        method.bind(setup)
        recording = setup.teacher.module
        batch = method.task.example(4)
        known = recording.answer(batch)
        recording.answer = lambda batch, taps=(): known  # type: ignore[method-assign]
        return one_step(TokenKd(distil_ratio=0.7), setup)

    loss, grads, _ = step()
    request.getfixturevalue("small")
    other, others, seen = step()
    assert seen.rows < ROWS, seen.by
    assert other == pytest.approx(loss, rel=1e-4)
    for n in grads:
        torch.testing.assert_close(others[n], grads[n], rtol=1e-3, atol=1e-5)


def test_a_criterion_in_chunks(request: pytest.FixtureRequest) -> None:
    def loss(chunks: bool) -> tuple[float, Tensor, Criterion, Largest]:
        setup = setup_of()
        assert setup.teacher is not None
        batch = setup.task.example(4)
        student, teacher = setup.student.module, setup.teacher.module
        criterion = Criterion({"kl": Kl()}, student, teacher, batch["input_ids"][:1], chunks=chunks)
        with Largest(setup.task.vocabulary) as seen:  # type: ignore[attr-defined]
            value = criterion(batch["input_ids"], {"where": batch["where"]})
            value.backward()
        return float(value.detach()), student.get_output_embeddings().weight.grad, criterion, seen

    value, grad, _, seen = loss(False)
    assert seen.rows >= ROWS
    request.getfixturevalue("small")
    other, others, criterion, seen = loss(True)
    assert seen.rows < ROWS, seen.by
    assert other == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(others, grad, rtol=1e-4, atol=1e-6)
    assert isinstance(criterion.out, heads.Head) and criterion.out.logits.shape == criterion.out.shape


@pytest.mark.expensive
@pytest.mark.parametrize("name", ["taid", "token-kd", "sinkd-tokens", "swing", "miniplm", "multi-granularity"])
def test_a_whole_recipe_writes_none(name: str, small: None, tmp_path: Path) -> None:
    made = tiny(name, tmp_path)
    with Largest(made.bench.task.vocabulary) as seen:
        made.run()
    assert seen.rows < ROWS, seen.by
