"""Texts that the student writes: drawn by key, kept and handed out again, the same after a stop and in two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from limbeck.engine.context import RunContext  # noqa: E402
from limbeck.engine.engine import Engine  # noqa: E402
from limbeck.engine.settings import EngineSettings  # noqa: E402
from limbeck.engine.step import Stepper  # noqa: E402
from limbeck.errors import ConfigError  # noqa: E402
from limbeck.grammar.method import Setup  # noqa: E402
from limbeck.grammar.random import Draws  # noqa: E402
from limbeck.methods.language.token_kd import TokenKd  # noqa: E402
from limbeck.parts.writing import OnPolicy, Replay, _Words, written  # noqa: E402
from limbeck.run.running import run  # noqa: E402
from tests.parts.texts import setup_of, start  # noqa: E402
from tests.tiny import differences, state_of, tiny, tree_of  # noqa: E402
from tests.two_processes import TwoProcesses  # noqa: E402


def bound(setup: Setup | None = None, **changes: Any) -> tuple[TokenKd, RunContext, Engine]:
    return start(TokenKd(**changes), setup)


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
    def make() -> TokenKd:
        method = TokenKd(
            divergence="reverse", sampler=Replay(capacity=10, start=0.8, check_every=2, valid_items=2, tolerance=0.0)
        )
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
    assert torch.equal(whole.state["replay"]["texts"], again.state["replay"]["texts"])
    assert whole.state["replay"]["threshold"] == again.state["replay"]["threshold"]


def test_two_processes_write_and_keep_the_texts_of_one(tmp_path: Path, two_processes: TwoProcesses) -> None:
    """Of batches that two processes cut unevenly."""
    sampler = "{use: replay, capacity: 6, start: 0.9, check_every: 2, valid_items: 2, tolerance: 0.0}"
    words = ["method.divergence=reverse", f"method.sampler={sampler}", "train.batch_size=5"]
    one = state_of(tiny("token-kd", tmp_path, *words).run())
    assert len(one["state"]["replay"]["texts"]) == 6
    assert not differences(one, two_processes.state("token-kd", *words), tolerance=1e-5)


def test_samplers_that_cannot_work_are_refused() -> None:
    method, ctx, _ = bound()
    with pytest.raises(ConfigError, match="no method has taken it"):
        Replay()(method.task.example(1), ctx.at(0))
    for sampler in (OnPolicy(fraction=1.0), Replay()):
        with pytest.raises(ConfigError, match="no generate"):
            bound(setup_of(plain=True), sampler=sampler)
    with pytest.raises(ConfigError, match="no generate"):
        written(torch.nn.Identity(), method.task.example(1), ctx.draws)
    with pytest.raises(ValueError, match="at most 1 together"):
        OnPolicy(fraction=0.7, teacher=0.4)
    for wrong in ({"fraction": 2.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"prompt": 1.0}):
        with pytest.raises(ValueError):
            OnPolicy(**wrong)
    for wrong in ({"capacity": 0}, {"start": 2.0}, {"tolerance": -1.0}):
        with pytest.raises(ValueError):
            Replay(**wrong)  # type: ignore[arg-type]


def test_the_teacher_writes_some_of_the_texts() -> None:
    sampler = OnPolicy(fraction=0.0, teacher=1.0, temperature=0.0)
    method, ctx, _ = bound(sampler=sampler)
    batch = method.task.example(3)
    made = sampler(batch, ctx.at(0))
    theirs = written(method.roles["teacher"].module, batch, ctx.at(0).draws, temperature=0.0)
    own = written(method.roles["student"].module, batch, ctx.at(0).draws, temperature=0.0)
    assert torch.equal(made["input_ids"], theirs["input_ids"]) and not torch.equal(made["input_ids"], own["input_ids"])
    third, shares = OnPolicy(fraction=0.3, teacher=0.5), {"student": 0, "teacher": 0}

    def count(batch: Any, ctx: Any, who: str = "student") -> Any:
        shares[who] += 1
        return batch

    third.write = count  # type: ignore[method-assign]
    for step in range(400):
        third(batch, ctx.at(step))
    assert 90 < shares["student"] < 150 and 160 < shares["teacher"] < 240


def test_no_more_words_than_are_asked_for() -> None:
    sampler = OnPolicy(fraction=1.0, tokens=3)
    method, ctx, _ = bound(setup_of(pairs=True), sampler=sampler)
    batch = method.task.example(4)
    made = sampler(batch, ctx.at(0))
    new = made["attention_mask"].sum(1) - batch["prompt"]
    assert bool((new <= 3).all()) and bool((new >= 1).all())
    assert torch.equal(made["labels"].ne(-100).sum(1), new)


def test_a_recording_is_no_teacher_of_new_texts() -> None:
    class Recording:
        def rows(self) -> None: ...

        def answer(self) -> None: ...

    method, _, _ = bound()
    method.roles["teacher"].module = Recording()
    with pytest.raises(ConfigError, match="recorded teacher"):
        OnPolicy().bind(method)


@pytest.mark.parametrize(
    ("name", "query"),
    [("kd", "{use: replay, start: 1, check_every: 2}"), ("taid", "{use: on-policy, fraction: 1, tokens: 4}")],
)
def test_texts_are_written_for_any_method_and_not_for_the_student_alone(name: str, query: str, tmp_path: Path) -> None:
    words = ["method=kd"] if name == "kd" else []
    tree = tree_of("token-kd" if name == "kd" else "taid", *words, f"queries.texts={query}", "baselines=[alone]")
    result = run(tree, tmp_path / "run", quiet=True)
    (table,) = result["tables"]
    assert table["title"] == "texts written in training" and int(table["rows"][0][0]) == 4 * 6
    again = run(tree_of("token-kd", "baselines=[alone]"), tmp_path / "data", quiet=True)
    assert again["metrics"]["alone"] == result["metrics"]["alone"]


def test_a_task_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"queries\.x.*task=language"):
        run(tree_of("kd", "queries.x=on-policy"), tmp_path, quiet=True)


def test_another_model_writes_too() -> None:
    method, ctx, _ = bound()
    batch, teacher = method.task.example(3), method.roles["teacher"].module
    made = written(teacher, batch, ctx.at(0).draws, temperature=0.0)
    again = written(teacher, batch, ctx.at(5).draws, temperature=0.0)
    assert all(torch.equal(made[k], again[k]) for k in made)
    with pytest.raises(ConfigError, match="the scorer"):
        written(torch.nn.Identity(), batch, ctx.draws, name="scorer")
