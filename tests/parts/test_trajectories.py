"""Experts that are kept along their way, and inner trainings that are the same when they are gone through again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.functional.matching import flat_parameters
from limbeck.grammar.method import Batch, Term
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.parts import trajectories
from limbeck.parts.trajectories import Experts, cross_entropy, passes, replayed, soften
from tests.tiny import Tiny, tiny

SGD = Optim(lr=0.05, batch_size=256, optimizer="sgd", momentum=0.0, schedule="constant")


@pytest.fixture
def run(tmp_path: Path) -> Tiny:
    return tiny("mtt", tmp_path, "task.strategy=''")


def made(run: Tiny, experts: Experts, stage_optim: Optim = SGD) -> Tensor:
    """The first expert's path."""
    stage = experts.stage()
    stage.optim = {"expert": stage_optim}
    ctx: Any = RunContext(run.engine, run.method, stage, run.engine.device)
    torch.manual_seed(0)  # as the engine does before an item
    return experts.train("expert000", ctx)["snapshots"]


def surrogate(net: nn.Module, batch: Batch, ctx: Any) -> Term:
    """Another direction than the loss's own: here twice its gradient, as a term that shows the loss."""
    value = cross_entropy(net, batch, ctx)
    assert isinstance(value, Tensor)
    slopes = torch.autograd.grad(value.mean(), list(net.parameters()))
    pulled = sum((2 * s.detach() * p).sum() for s, p in zip(slopes, net.parameters(), strict=True))
    return Term(pulled, count=1, show=value.mean())  # type: ignore[arg-type]


def test_experts_follow_the_gradient_that_their_loss_has(run: Tiny) -> None:
    method: Any = run.method
    plain = made(run, Experts(method, 1, 2, SGD))
    twice = made(run, Experts(method, 1, 2, SGD, loss=surrogate))
    faster = made(run, Experts(method, 1, 2, SGD), SGD.with_(lr=0.1))
    assert plain.shape == (3, len(flat_parameters(method.net))) and torch.equal(plain[0], twice[0])
    assert torch.allclose(twice, faster, atol=1e-6) and not torch.allclose(twice[1], plain[1], atol=1e-4)


def test_experts_are_known_by_their_loss_and_what_it_depends_on(run: Tiny) -> None:
    method: Any = run.method

    def key(**given: Any) -> str:
        stage = Experts(method, 1, 2, SGD, **given).stage()
        run.engine.prepare(method)
        run.engine.remembered.keys.clear()
        run.engine.remembered.know(method, stage, {}, [])
        return run.engine.remembered.keys["experts"]

    keys = [key(), key(loss=surrogate), key(loss=surrogate, remember=[0.1]), key(loss=surrogate, remember=[0.2])]
    assert len(set(keys)) == 4 and key() == keys[0]


def test_their_length_is_told_in_epochs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.exp\*\.expert\.steps: .* epochs"):
        tiny("mtt", tmp_path, "stages={exp*: {expert: {steps: 7}}}").run()


def test_few_paths_are_held_at_a_time(run: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "HELD", 2)
    read: list[str] = []

    class Ctx:
        device = torch.device("cpu")

        def artifact(self, stage: str, item: str) -> Any:
            read.append(item)
            return {"snapshots": torch.zeros(3, 1)}

    method: Any = run.method
    experts, ctx = Experts(method, 4, 2, SGD), Ctx()
    for number in (0, 1, 1, 0, 2, 1, 0):
        experts.path(number, ctx)  # type: ignore[arg-type]
    assert read == [f"expert00{i}" for i in (0, 1, 2, 0)]


def test_an_inner_training_is_gone_through_again(run: Tiny, tmp_path: Path) -> None:
    task: Any = run.method.task
    images, draws = torch.rand(6, 1, 8, 8), Draws(0, ("inner", 3), torch.device("cpu"))
    assert replayed(task, draws) is None, "no augmentation was asked for"
    task = tiny("mtt", tmp_path / "augmented").method.task
    augment, again = replayed(task, draws), replayed(task, draws)
    assert augment is not None and again is not None
    assert torch.equal(augment(2, images), again(2, images)) and not torch.equal(augment(2, images), augment(1, images))
    batches = passes(draws, images, 5, 3)
    assert all(torch.equal(a, b) for a, b in zip(batches, passes(draws, images, 5, 3), strict=True))
    assert sorted(torch.cat(batches[:2]).tolist()) == sorted(torch.cat(batches[2:4]).tolist()) == list(range(6))
    assert torch.cat(batches[:2]).tolist() != torch.cat(batches[2:4]).tolist()


def test_labels_of_a_snapshot_are_probabilities_without_a_graph(run: Tiny) -> None:
    net = run.method.net  # type: ignore[attr-defined]
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    soft = soften(net, flat_parameters(net), images)
    assert torch.allclose(soft, net(images).softmax(-1)) and not soft.requires_grad
