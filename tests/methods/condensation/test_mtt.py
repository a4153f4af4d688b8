"""Trajectory matching as a method: which snapshots are matched, and that the surrogate's gradient is the loss's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.parts.trajectories import soften
from tests.tiny import Tiny, differences, tiny
from tests.toy import within


@pytest.fixture(params=["mtt", "tesla"])
def run(request: Any, tmp_path: Path) -> Tiny:
    """A prepared run whose experts are there."""
    made = tiny(request.param, tmp_path, "method.expert_epochs=3", "method.latest_start=2", "method.ahead=2")
    made.engine.prepare(made.method)
    experts = made.engine.stages[0]
    made.engine.run_items(made.method, experts, RunContext(made.engine, made.method, experts, made.engine.device))
    return made


def test_the_target_lies_ahead_of_a_start_that_is_drawn(run: Tiny) -> None:
    method: Any = run.method
    seen = set()
    ctx: Any = RunContext(run.engine, method, run.engine.stages[1], run.engine.device)
    paths = [method.buffer.path(i, ctx) for i in range(method.experts)]
    assert all(len(p) == method.expert_epochs + 1 for p in paths)
    assert not torch.equal(paths[0][0], paths[1][0]), "every expert begins elsewhere"
    for item in range(30):
        start, target = method.buffer.pair(torch.tensor(item), ctx, method.latest_start, method.ahead)
        found = [(e, t) for e, p in enumerate(paths) for t in range(len(p)) if torch.equal(p[t], start)]
        assert len(found) == 1
        expert, t = found[0]
        assert t < method.latest_start and torch.equal(paths[expert][t + method.ahead], target)
        seen.add((expert, t))
    assert len(seen) == 4, "both experts and both starts are drawn"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("method.ahead=99", r"method\.ahead: must be at most expert_epochs \(2\)"),
        ("method.latest_start=3", r"method\.latest_start: must be at most 2"),
        ("method.steps=0", r"method\.steps: .*1 or more"),
        ("method.batch_syn=999", r"method\.batch_syn: .* at most the 10 synthetic images"),
        ("stages.distil.labels.lr=1", r"stages\.distil\.labels: .* known: .*step_size, steps, student"),
        ("stages.distil.student.batch_size=2", r"expected stages\.distil\.batch_size"),
        ("stages.experts.batch_size=2", r"set by stages\.experts\.expert"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(setting: str, said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        made = tiny("mtt", tmp_path, setting)
        made.engine.prepare(made.method)


def test_modes_agree_where_they_must(run: Tiny) -> None:
    method: Any = run.method
    stage = run.engine.stages[1]
    batch = next(iter(run.engine.batches(stage, 0, 1)))[0]
    grads = {}
    for mode in ("unrolled", "exact", "two-pass"):
        method.gradient = mode
        ctx: Any = within(run.engine, method, stage).at(0)
        terms = method.step(batch, ctx)
        term = terms["match"]
        assert set(term.to) == {"student", "step_size"} and len(term.values) == len(batch["item"])
        assert torch.allclose(term.values.detach(), term.show.detach())
        images, rate = method.roles["student"].module.images, method.roles["step_size"].module
        (by_images,) = torch.autograd.grad(term.total(), images, retain_graph=True)
        by_rate = torch.autograd.grad(term.total(), list(rate.parameters()))[0]
        grads[mode] = (by_images, by_rate)
        assert terms.metrics["step_size"][0] == pytest.approx(len(batch["item"]) * float(rate.value.detach()))
    scale = float(grads["unrolled"][0].abs().max())
    assert float((grads["unrolled"][0] - grads["exact"][0]).abs().max()) < 1e-4 * scale
    assert torch.allclose(grads["unrolled"][1], grads["exact"][1], rtol=1e-3)
    assert float((grads["unrolled"][0] - grads["two-pass"][0]).abs().max()) > 1e-4 * scale


def test_images_and_step_size_move_and_the_step_size_keeps_its_floor(run: Tiny) -> None:
    method: Any = run.method
    before = {n: {k: v.clone() for k, v in r.module.state_dict().items()} for n, r in method.roles.items()}
    run.engine.run(method)
    assert differences(before["student"], dict(method.roles["student"].module.state_dict()))
    assert differences(before["step_size"], dict(method.roles["step_size"].module.state_dict()))
    with torch.no_grad():
        method.roles["step_size"].module.value.fill_(-1.0)
    method.observe({}, None)
    assert float(method.roles["step_size"].module.value.detach()) > 0


@pytest.mark.parametrize("labels", ["target", "fixed", "learned"])
def test_soft_labels_are_those_of_an_expert_or_are_learnt(labels: str, tmp_path: Path) -> None:
    made = tiny("mtt", tmp_path, f"method.labels={labels}").run()
    method: Any = made.method
    artifact = method.artifact()
    assert artifact.labels.shape == (10, 10) and torch.allclose(artifact.labels.sum(1), torch.ones(10))
    if labels == "learned":
        assert not torch.allclose(artifact.labels, artifact.labels.max(1).values[0].expand(10, 10))
        return
    ctx: Any = RunContext(made.engine, method, made.engine.stages[1], made.engine.device)
    paths = [method.buffer.path(i, ctx) for i in range(method.experts)]
    known = [soften(method.net, theta, artifact.images) for path in paths for theta in path]
    near = [torch.allclose(artifact.labels, one, atol=1e-6) for one in known]
    assert any(near) == (labels == "target"), "of the last target and the last images, or of those at the start"
