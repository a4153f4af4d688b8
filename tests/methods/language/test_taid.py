"""TAID: numbers, the path of t, what is masked, chunks, every baseline, and texts that the student writes."""

from __future__ import annotations

import itertools
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import limbeck.functional as F  # noqa: E402
from limbeck.data.text import Document, TextSource  # noqa: E402
from limbeck.engine.context import RunContext  # noqa: E402
from limbeck.engine.engine import Engine, EngineSettings  # noqa: E402
from limbeck.engine.step import Stepper  # noqa: E402
from limbeck.errors import ConfigError, DataError  # noqa: E402
from limbeck.functional.schedule import linear  # noqa: E402
from limbeck.grammar.method import Built, Setup, Stage, Terms  # noqa: E402
from limbeck.grammar.optim import Optim  # noqa: E402
from limbeck.grammar.random import Draws  # noqa: E402
from limbeck.methods.language.taid import Taid  # noqa: E402
from limbeck.models.causal_lm import CausalLm  # noqa: E402
from limbeck.objectives.sampling import OnPolicy, Replay, _Words  # noqa: E402
from limbeck.objectives.tokens import Kind, Reader, TokenDivergence, Tokens  # noqa: E402
from limbeck.recipe.overrides import presets_of  # noqa: E402
from limbeck.storage import store  # noqa: E402
from limbeck.tasks.language import Language  # noqa: E402
from tests.toy import within  # noqa: E402

KINDS = ["taid", "forward", "reverse", "js", "skew-forward", "skew-reverse", "tv", "adaptive", "dkd", "ctkd"]
Z_S, Z_P = torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[2.0, 1.0, 0.0]]])


class Some(TextSource):
    """A few made-up texts, or prompts with responses."""

    def __init__(self, pairs: bool = False) -> None:
        self.pairs = pairs

    def read(self) -> dict[str, list[Document]]:
        names = ["red", "blue", "green", "small", "large", "round", "square", "heavy", "light", "old", "new", "warm"]
        texts = [" ".join(names[(i * j + j) % 12] for j in range(1, 6)) + f" {i}." for i in range(60)]
        return {"all": [Document(t, f"ask {i}" if self.pairs else "") for i, t in enumerate(texts)]}


class Cell(nn.Module):
    """A causal model without transformers: an embedding, a running mean, a layer."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(size, width), nn.Linear(width, size)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        steps = torch.arange(1, ids.shape[1] + 1, dtype=h.dtype).view(1, -1, 1)
        return self.head(h + h.cumsum(1) / steps)


def setup_of(steps: int = 8, pairs: bool = False, plain: bool = False, batch: int = 4, **optim: Any) -> Setup:
    task = Language(
        data=Some(pairs), vocab_size=270, length=32 if pairs else 16, loss_on="response" if pairs else "all"
    )
    task.load(0)
    torch.manual_seed(0)
    if plain:
        student, teacher = (Built(Cell(task.size, width)) for width in (4, 8))
    else:
        student = CausalLm(layers=1, width=8, heads=2).build(task)
        teacher = CausalLm(layers=1, width=16, heads=2).build(task)
    return Setup(task, student, teacher, Optim(steps=steps, batch_size=batch, lr=1e-2, **optim))


def bound(setup: Setup | None = None, **changes: Any) -> tuple[Taid, RunContext, Engine]:
    method = Taid(**changes)
    method.bind(setup or setup_of())
    engine = Engine(EngineSettings(device="cpu", log_every=1))
    engine.prepare(method)
    return method, within(engine, method, engine.stages[0]), engine


def first(method: Taid, ctx: RunContext, n: int = 4) -> tuple[dict[str, Any], Terms]:
    batch = method.task.example(n)
    terms = method.step(batch, ctx.at(0))
    assert isinstance(terms, Terms)
    return batch, terms


def gradient(term: Any, module: nn.Module) -> list[Tensor]:
    grads = torch.autograd.grad(term.total(), list(module.parameters()), allow_unused=True)
    return [g for g in grads if g is not None]


# ------------------------------------------------------------------------------------------------ the objective


@pytest.mark.parametrize(
    ("t", "loss", "grad"),
    [
        (0.0, 0.832396, [0.0, 0.0, 0.0]),
        (0.5, 1.407606, [-0.243303, -0.088605, 0.331908]),
        (1.0, 1.982816, [-0.575210, 0.0, 0.575210]),
    ],
)
def test_the_papers_objective_on_one_token(t: float, loss: float, grad: list[float]) -> None:
    z = Z_S.clone().requires_grad_()
    tokens = Tokens(z, Z_P, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    value = TokenDivergence("taid")(tokens, t=t)
    assert value.shape == (1, 1) and value.item() == pytest.approx(loss, abs=1e-6)
    (found,) = torch.autograd.grad(value.sum(), z)
    assert torch.allclose(found[0, 0], torch.tensor(grad), atol=1e-6)


def test_at_zero_no_gradient_and_at_one_that_of_forward_kl() -> None:
    method, ctx, _ = bound()
    method.state["t"] = 0.0
    _, terms = first(method, ctx)
    student = method.roles["student"].module
    assert max(float(g.abs().max()) for g in gradient(terms["J"], student)) < 1e-6
    method.state["t"] = 1.0
    batch, terms = first(method, ctx)
    with torch.no_grad():
        z_t = method.task.feed(method.roles["teacher"].module, batch)[:, :-1]
    z_s = method.task.feed(student, batch)[:, :-1]
    kl = F.kl(z_s, z_t, where=batch["where"][:, :-1]).sum()
    theirs = torch.autograd.grad(kl, list(student.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradient(terms["J"], student), theirs, strict=True))


def test_value_kl_has_the_same_gradient_and_is_zero_at_equality() -> None:
    found = {}
    for value in ("cross_entropy", "kl"):
        method, ctx, _ = bound(value=value)
        _, terms = first(method, ctx)
        found[value] = (terms["J"].total().item(), gradient(terms["J"], method.roles["student"].module))
    assert found["cross_entropy"][0] > found["kl"][0] > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found["kl"][1], found["cross_entropy"][1], strict=True))
    z = torch.randn(1, 3, 7)
    tokens = Tokens(z, z.clone(), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))
    assert TokenDivergence("taid", value="kl")(tokens, t=0.3).abs().max() < 1e-6


def test_hard_labels_have_the_rest_of_the_weight() -> None:
    method, ctx, _ = bound(distil_ratio=0.7)
    batch, terms = first(method, ctx)
    assert terms["J"].weight == 0.7 and terms["lm"].weight == pytest.approx(0.3)
    own = method.task.supervised(ctx.at(0).signal("student", batch), batch)
    assert torch.allclose(terms["lm"].total(), own.total(), atol=1e-5)
    method, ctx, _ = bound(distil_ratio=0.0)
    batch, terms = first(method, ctx)
    own = method.task.supervised(ctx.at(0).signal("student", batch), batch)
    assert set(terms) == {"lm"} and torch.equal(terms["lm"].total(), own.total()) and terms["lm"].weight == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence_equals_its_function(kind: Kind) -> None:
    z_s, z_t = torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    labels, where = torch.randint(0, 11, (2, 5)), torch.rand(2, 5) > 0.3
    raw = torch.ones(())
    expected = {
        "taid": lambda: F.taid(z_s, z_t, 0.4),
        "forward": lambda: F.soft_cross_entropy(z_s, z_t),
        "reverse": lambda: F.kl(z_s, z_t, direction="reverse"),
        "js": lambda: F.jensen_shannon(z_s, z_t, beta=0.1),
        "skew-forward": lambda: F.skew_kl(z_s, z_t, direction="forward", mix=0.1),
        "skew-reverse": lambda: F.skew_kl(z_s, z_t, direction="reverse", mix=0.1),
        "tv": lambda: F.total_variation(z_s, z_t),
        "adaptive": lambda: F.adaptive_kl(z_s, z_t, head_threshold=0.5),
        "dkd": lambda: torch.stack(F.dkd(z_s, z_t, labels, alpha=1.0, beta=0.5, temperature=1.0)).sum(0),
        "ctkd": lambda: F.ctkd(z_s, z_t, raw, value="cross_entropy"),
    }[kind]()
    found = TokenDivergence(kind)(Tokens(z_s, z_t, labels, where), t=0.4, raw=raw)
    assert torch.allclose(found, torch.where(where, expected, torch.zeros(())), atol=1e-5)
    assert bool((found[~where] == 0).all()) and bool((found[where] != 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence_trains_and_reaches_its_roles(kind: Kind) -> None:
    method, ctx, engine = bound(divergence=kind)
    _, terms = first(method, ctx)
    assert terms["J"].to == (("student", "temperature") if kind == "ctkd" else ("student",))
    before = {n: [p.clone() for p in r.parameters().values()] for n, r in method.roles.items()}
    engine.run(method)
    for name, role in method.roles.items():
        now = list(role.parameters().values())
        if kind == "ctkd" and name == "temperature":
            assert float(now[0].detach()) != 1.0
        elif name == "student":
            assert all(not torch.equal(a, b) for a, b in zip(now, before[name], strict=True))


def test_the_temperature_of_ctkd_climbs_the_loss_and_the_released_one_descends() -> None:
    signs = {}
    for variant in ("paper", "released"):
        method, ctx, _ = bound(divergence="ctkd", variant=variant)
        late = ctx.at(method.setup.train.steps // 2)
        terms = method.step(method.task.example(4), late)
        assert isinstance(terms, Terms)
        raw = next(method.roles["temperature"].module.parameters())
        (signs[variant],) = torch.autograd.grad(terms["J"].total(), raw)
    assert signs["paper"] * signs["released"] < 0
    method, ctx, _ = bound(divergence="ctkd")
    assert method.strength(ctx.at(0)) == 0.0


def test_interpolating_probabilities_and_the_ablation() -> None:
    plain, ctx, _ = bound()
    other, ctx_2, _ = bound(space="probabilities")
    free, ctx_3, _ = bound(detach_student=False)
    batch, a = first(plain, ctx)
    b, c = (first(m, x)[1]["J"].total() for m, x in ((other, ctx_2), (free, ctx_3)))
    with torch.no_grad():
        z_t = plain.task.feed(plain.roles["teacher"].module, batch)[:, :-1]
        z_s = plain.task.feed(plain.roles["student"].module, batch)[:, :-1]
        target = 0.6 * z_s.softmax(-1) + 0.4 * z_t.softmax(-1)
        expected = -(target * z_s.log_softmax(-1)).sum(-1)[batch["where"][:, :-1]].sum()
    assert torch.allclose(b, expected, rtol=1e-5) and not torch.allclose(a["J"].total(), b, rtol=1e-7)
    assert torch.allclose(a["J"].total(), c, rtol=1e-5)  # the same value, another gradient
    grads = [
        gradient(Terms(J=x)["J"], m.roles["student"].module)
        for x, m in ((a["J"], plain), (first(free, ctx_3)[1]["J"], free))
    ]
    assert any(not torch.allclose(x, y, atol=1e-6) for x, y in zip(*grads, strict=True))


# ------------------------------------------------------------------------------------------------ masks and chunks


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_changes_nothing_bit_for_bit(kind: Kind) -> None:
    z_s, z_t = torch.randn(2, 6, 9), torch.randn(2, 6, 9)
    labels, where = torch.randint(0, 9, (2, 6)), torch.rand(2, 6) > 0.4
    where[0, 0], where[1, 1] = True, False
    raw = torch.ones(())

    def run(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        leaf = a.clone().requires_grad_()
        values = TokenDivergence(kind)(Tokens(leaf, b, y, where), t=0.6, raw=raw)
        return values.sum().detach(), torch.autograd.grad(values.sum(), leaf)[0]

    value, grad = run(z_s, z_t, labels)
    rows = ~where.unsqueeze(-1)
    wild = torch.full_like(z_s, float("nan"))
    spoilt, moved = run(torch.where(rows, wild, z_s), torch.where(rows, wild, z_t), torch.where(where, labels, -100))
    assert torch.equal(value, spoilt) and torch.equal(grad[where], moved[where]) and not moved[~where].any()
    other = z_s.clone()
    other[0, 0] = other[0, 0].flip(0)
    assert not torch.equal(run(other, z_t, labels)[0], value)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ctkd"])
@pytest.mark.parametrize("pairs", [False, True])
def test_chunks_equal_dense(kind: Kind, pairs: bool) -> None:
    found = []
    for chunk in (0, 7):
        method, ctx, _ = bound(setup_of(pairs=pairs), divergence=kind, distil_ratio=0.6, chunk=chunk)
        _, terms = first(method, ctx)
        student = method.roles["student"].module
        total = terms["J"].total() * terms["J"].weight + terms["lm"].total() * terms["lm"].weight
        found.append((terms["J"].values, terms["lm"].values, torch.autograd.grad(total, list(student.parameters()))))
    (j0, l0, g0), (j1, l1, g1) = found
    assert torch.allclose(j0, j1, atol=1e-5) and torch.allclose(l0, l1, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(g0, g1, strict=True))


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
                setup.teacher = Built(Cell(setup.task.size, 8))  # type: ignore[attr-defined]
            setup.task.columns = 260  # type: ignore[attr-defined]
            method, ctx, _ = bound(setup, chunk=chunk)
            _, terms = first(method, ctx)
            found.append((terms["J"].values, gradient(terms["J"], method.roles["student"].module)))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_chunks_are_taken_by_size_and_never_for_a_model_without_a_plain_head(monkeypatch: pytest.MonkeyPatch) -> None:
    import limbeck.objectives.tokens as tokens

    method, ctx, _ = bound()
    batch = method.task.example(4)
    assert isinstance(method.reader.read(batch, ctx.at(0)).student, Tensor)
    monkeypatch.setattr(tokens, "LARGE", 100)
    assert isinstance(method.reader.read(batch, ctx.at(0)).student, tokens.Head)
    method, ctx, engine = bound(setup_of(plain=True), chunk=8)
    assert isinstance(method.reader.read(batch, ctx.at(0)).student, Tensor)
    engine.run(method)
    assert method.state["t"] > 0.4


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


# ------------------------------------------------------------------------------------------------ the path of t


def trace(method: Taid, losses: list[float], total: int) -> list[float]:
    ctx = RunContext(Engine(EngineSettings(device="cpu")), method, Stage("distil", steps=total), torch.device("cpu"))
    path = []
    for step, loss in enumerate(losses):
        method.observe({"J": loss, "tokens": 1.0}, ctx.at(step))
        path.append(method.state["t"])
    return path


def test_the_dossiers_schedule() -> None:
    method, _, _ = bound()
    assert method.state["t"] == 0.4
    path = trace(method, [3.0, 2.7, 2.8, 2.4], 10**9)
    assert path == pytest.approx([0.4, 0.40015007, 0.40030008, 0.40045016], abs=2e-8)
    assert method.state["momentum"] == pytest.approx(0.002042, abs=1e-6)


def test_t_never_falls_and_never_lags_the_line() -> None:
    method, _, _ = bound(alpha=0.2, t_start=0.2, t_end=0.9)
    losses = (torch.rand(60) * 3 + 0.1).tolist()
    path = trace(method, losses, 60)
    assert all(b >= a for a, b in itertools.pairwise(path)) and path[0] >= 0.2 and path[-1] <= 0.9
    assert all(t >= linear(s, 60, start=0.2, end=0.9) - 1e-12 for s, t in enumerate(path))
    assert max(t - linear(s, 60, start=0.2, end=0.9) for s, t in enumerate(path)) > 0.1


def test_linear_and_constant() -> None:
    method, _, _ = bound(schedule="linear", t_start=0.2)
    assert trace(method, [1.0] * 11, 10) == pytest.approx([0.2 + 0.08 * s for s in range(11)])
    method, _, _ = bound(schedule="constant", t_end=0.7)
    assert method.state["t"] == 0.7 and trace(method, [2.0, 1.0], 10) == [0.7, 0.7]


def test_baselines_leave_t_alone() -> None:
    method, _, _ = bound(divergence="reverse")
    assert trace(method, [2.0, 1.0], 10) == [0.4, 0.4]


def test_t_moves_once_a_step_by_the_mean_over_all_micro_batches() -> None:
    states = []
    for accumulate in (1, 2):
        method = Taid(alpha="auto")
        method.bind(setup_of(pairs=True))
        Engine(EngineSettings(device="cpu", accumulate=accumulate)).run(method)
        states.append(dict(method.state))
    assert states[0]["t"] == pytest.approx(states[1]["t"], abs=1e-6) and states[0]["t"] > 0.4
    assert states[0]["previous"] == pytest.approx(states[1]["previous"], rel=1e-5)


def test_short_runs_are_warned_and_auto_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "limbeck"):
        method, _, _ = bound(setup_of(steps=100))
        assert "alpha=auto" in caplog.text and method.notes
        caplog.clear()
        for changes in ({"alpha": "auto"}, {"schedule": "linear"}, {"divergence": "forward"}):
            assert not bound(setup_of(steps=100), **changes)[0].notes
    assert not caplog.text
    assert bound(setup_of(steps=15600), alpha="auto")[0].rate == pytest.approx(5e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"t_start": 1.0}, {"t_end": 0.0}, {"t_start": 0.8, "t_end": 0.5}, {"alpha": 1.5}, {"alpha": -0.1}, {"beta": 1.0},
     {"distil_ratio": 1.1}, {"temperature": 0.0}, {"mix": 0.0}, {"head": 0.0}, {"dkd_alpha": -1.0}, {"chunk": -1}],
)  # fmt: skip
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Taid(**wrong)


def test_an_empty_mask_is_refused() -> None:
    method, ctx, _ = bound()
    with pytest.raises(DataError, match="no token of step 3 counts"):
        method.observe({"J": 0.0, "tokens": 0.0}, ctx.at(3))


def test_another_task_is_refused() -> None:
    from limbeck.grammar.task import Task

    with pytest.raises(ConfigError, match="task=language"):
        Taid().accept(Task())
    Taid().accept(setup_of().task)


# ---------------------------------------------------------------------------------------- texts of the student's own


def test_gumbel_noise_samples_from_the_softmax() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20000, -1)
    ids = torch.zeros(20000, 1, dtype=torch.long)
    words = _Words(Draws(0, ("x", 0)), torch.arange(20000), 1, 1.0, 0, 1.0, None)
    share = torch.bincount(words(ids, scores.clone()).argmax(-1), minlength=4) / 20000
    assert torch.allclose(share, scores[0].softmax(-1), atol=0.015)
    for top_k, top_p, left in ((2, 1.0, 2), (0, 0.7, 2), (0, 1.0, 4)):
        cut = _Words(Draws(0, ("x", 0)), torch.arange(20000), 1, 1.0, top_k, top_p, None)
        assert len(cut(ids, scores.clone()).argmax(-1).unique()) == left
    known = _Words(Draws(0, ("x", 0)), torch.arange(20000), 1, 1.0, 0, 1.0, 3)
    assert int(known(ids, scores.clone()).argmax(-1).max()) == 2


@pytest.mark.parametrize("pairs", [False, True])
def test_the_student_continues_its_prompts(pairs: bool) -> None:
    sampler = OnPolicy(fraction=1.0)
    method, ctx, _ = bound(setup_of(pairs=pairs), sampler=sampler)
    batch = method.task.example(4)
    module = method.roles["student"].module
    module.train()
    made = sampler(batch, ctx.at(0))
    assert module.training
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in batch.items()}
    for i in range(4):
        size = int(batch["attention_mask"][i].sum())
        prompt = int(batch["prompt"][i]) or size // 2
        assert torch.equal(made["input_ids"][i, :prompt], batch["input_ids"][i, :prompt])
        end, new = method.task.tokenizer.eos_token_id, int(made["attention_mask"][i].sum())
        assert new > prompt
        ended = (made["input_ids"][i, prompt:new] == end).nonzero()
        assert new == 32 or new == 16 or int(ended[0]) == new - prompt - 1
        counted = made["labels"][i] != -100
        assert int(counted.sum()) == (new - prompt if pairs else new)
    assert not torch.equal(made["input_ids"], batch["input_ids"])
    again = sampler(batch, ctx.at(0))
    assert all(torch.equal(again[k], made[k]) for k in made)
    alone = sampler({k: v[2:3] for k, v in batch.items()}, ctx.at(0))
    assert torch.equal(alone["input_ids"][0], made["input_ids"][2])  # a micro-batch of one writes the same text
    assert not torch.equal(sampler(batch, ctx.at(1))["input_ids"], made["input_ids"])


def test_greedy_words_are_the_likeliest() -> None:
    sampler = OnPolicy(fraction=1.0, temperature=0.0)
    method, ctx, _ = bound(sampler=sampler)
    made = sampler(method.task.example(2), ctx.at(0))
    logits = method.task.feed(method.roles["student"].module.eval(), made)
    place = int(made["attention_mask"][0].sum()) - 1
    assert int(logits[0, place - 1].argmax()) == int(made["input_ids"][0, place])


def test_the_share_of_mixed_steps() -> None:
    sampler = OnPolicy(fraction=0.3)
    method, ctx, _ = bound(sampler=sampler)
    batch = method.task.example(1)
    sampler.write = lambda b, c: None  # type: ignore[assignment, method-assign, return-value]
    taken = sum(sampler(batch, ctx.at(step)) is None for step in range(400))
    assert 0.2 < taken / 400 < 0.4


def test_replay_fills_samples_and_raises_its_threshold() -> None:
    sampler = Replay(capacity=6, start=0.9, check_every=3, valid_items=2, tolerance=0.0)
    method, _, engine = bound(setup_of(steps=12), sampler=sampler)
    worse = iter(range(1, 100))
    sampler._look = lambda ctx: float(next(worse))  # type: ignore[method-assign]
    engine.run(method)
    state = method.state["replay"]
    assert state["texts"].shape == (6, 3 + 16) and state["threshold"] == 1.0 and state["loss"] == 5.0
    assert state["texts"].dtype == torch.int32 and int(state["texts"][:, 0].max()) <= 16


def test_replay_hands_out_what_it_kept() -> None:
    sampler = Replay(capacity=4, start=1.0, ratio="increasing")
    method, ctx, _ = bound(setup_of(pairs=True), sampler=sampler)
    batch = method.task.example(4)
    made = sampler(batch, ctx.at(0))
    sampler.observe(ctx.at(0))
    kept = sampler(batch, ctx.at(0))  # full, and no new texts at the first step
    rows = {tuple(r.tolist()) for r in made["input_ids"]}
    assert all(tuple(r.tolist()) in rows for r in kept["input_ids"])
    for i in range(4):
        j = next(j for j in range(4) if torch.equal(made["input_ids"][j], kept["input_ids"][i]))
        assert all(torch.equal(kept[k][i], made[k][j]) for k in ("labels", "attention_mask", "where", "prompt"))


def test_a_stopped_run_with_replay_goes_on_exactly(tmp_path: Path) -> None:
    def make() -> Taid:
        method = Taid(alpha="auto", sampler=Replay(capacity=10, start=0.8, check_every=2, valid_items=2, tolerance=0.0))
        method.bind(setup_of(steps=6))
        return method

    whole, parts = make(), make()
    Engine(EngineSettings(device="cpu"), 0, tmp_path / "whole").run(whole)
    settings = EngineSettings(device="cpu", save_every=3)
    engine = Engine(settings, 0, tmp_path / "parts")
    real = Stepper.take

    def broken(self: Stepper, step: int, micro: Any) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return real(self, step, micro)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stepper, "take", broken)
        engine.run(parts)
    again = make()
    Engine(settings, 0, tmp_path / "parts").run(again)
    a, b = (m.roles["student"].module.state_dict() for m in (whole, again))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole.state["t"] == again.state["t"]
    assert torch.equal(whole.state["replay"]["texts"], again.state["replay"]["texts"])
    assert whole.state["replay"]["threshold"] == again.state["replay"]["threshold"]


def test_two_processes_write_and_keep_the_texts_of_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    script = ["tests.methods.language.replay", str(tmp_path / "two")]
    done = subprocess.run(
        [*launch, *script], env=env, cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = replayed(), store.load_tree(tmp_path / "two")
    weights = one.roles["student"].module.state_dict()
    assert all(torch.allclose(weights[k], two["weights"][k], atol=1e-5) for k in weights)
    assert one.state["t"] == pytest.approx(two["state"]["t"], abs=1e-5)
    a, b = one.state["replay"], two["state"]["replay"]
    assert torch.equal(a["texts"], b["texts"]) and a["threshold"] == b["threshold"] and len(a["texts"]) == 6


def replayed() -> Taid:
    """A short run whose student's texts are kept, with batches that two processes cut unevenly."""
    method = Taid(alpha="auto", sampler=Replay(capacity=6, start=0.9, check_every=2, valid_items=2, tolerance=0.0))
    method.bind(setup_of(steps=6, batch=5))
    Engine(EngineSettings(device="cpu")).run(method)
    return method


def test_samplers_that_cannot_work_are_refused() -> None:
    from limbeck.grammar.method import Query

    with pytest.raises(ValueError, match="sampler"):
        Taid(sampler=Query())
    method, ctx, _ = bound()
    with pytest.raises(ConfigError, match=r"method\.sampler"):
        Replay()(method.task.example(1), ctx.at(0))
    method, ctx, _ = bound(setup_of(plain=True), sampler=OnPolicy(1.0))
    with pytest.raises(ConfigError, match="no generate"):
        OnPolicy(1.0)(method.task.example(1), ctx.at(0))
    for wrong in ({"fraction": 2.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"prompt": 1.0}):
        with pytest.raises(ValueError):
            OnPolicy(**wrong)
    for wrong in ({"capacity": 0}, {"start": 2.0}, {"tolerance": -1.0}):
        with pytest.raises(ValueError):
            Replay(**wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the Card


def test_a_preset_tells_the_papers_defaults() -> None:
    method = Taid()
    paper = presets_of("taid")["phi3-tinyllama"]["method"]
    assert (method.t_start, method.t_end, method.alpha, method.beta) == tuple(
        paper[k] for k in ("t_start", "t_end", "alpha", "beta")
    )
    assert (
        method.distil_ratio == 1.0
        and method.divergence.value == "cross_entropy"
        and math.isclose(method.divergence.mix, 0.1)
    )
    assert isinstance(Reader(bound()[0], 0).taps, dict)
