"""How synthetic sets and real items are judged: by fresh networks, item by item."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limbeck.evaluators.fresh import Fresh
from limbeck.grammar.optim import Optim
from limbeck.grammar.scores import Scores
from limbeck.models.small import ConvNetModel
from limbeck.tasks.condensation import Condensation, _central


@pytest.fixture
def task() -> Condensation:
    made = Condensation(strategy="", per_class=2)
    made.load(0)
    return made


def test_single_items_are_the_mean_over_the_networks(task: Condensation) -> None:
    model = ConvNetModel(width=2, depth=1)
    bench: Any = SimpleNamespace(task=task, seed=0, student_model=model, device=torch.device("cpu"))
    evaluator = Fresh(Optim(steps=2, batch_size=16, lr=0.01, optimizer="sgd"), networks=2)
    rows: Any = evaluator.rows(bench)
    scored = {name: evaluator.score(rows[name](), bench) for name in ("random", "teacher")}
    for found in scored.values():
        assert isinstance(found, Scores) and set(found.per_item) == {"accuracy", "nll"}
        for name, values in found.per_item.items():
            assert len(values) == len(task.test)
            assert values.double().mean().item() == pytest.approx(found[name], rel=1e-6)
    shares = scored["random"].per_item["accuracy"].unique().tolist()  # type: ignore[attr-defined]
    assert set(shares) <= {0.0, 0.5, 1.0} and len(shares) > 1


def test_herding_follows_the_mean_of_the_class_and_kmeans_its_clusters() -> None:
    flat = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0], [11.0], [5.6]]).double().numpy()
    # the mean is 5.51: first the item nearest to it, then the one that brings the mean of both nearest to it
    assert _central(flat, 1, "herding", 0) == [6]
    taken: list[int] = []
    for k in range(1, 4):  # the definition, item by item
        best = min(
            (i for i in range(len(flat)) if i not in taken),
            key=lambda i: abs((flat[taken].sum() + flat[i, 0]) / k - flat.mean()),
        )
        taken.append(best)
        assert _central(flat, k, "herding", 0) == taken
    assert sorted(_central(flat[:6], 2, "kmeans", 0)) == [1, 4]


def test_baselines_are_real_items_of_each_class_in_turn(task: Condensation) -> None:
    whole = task.space.enter(task._all(task.teacher_train))
    for how in ("random", "kmeans", "herding"):
        images, labels = task.choose_real(how, 0)  # type: ignore[arg-type]
        assert labels.tolist() == [c for c in range(10) for _ in range(2)]
        ids = [int((whole - image).flatten(1).abs().sum(1).argmin()) for image in images]
        assert len(set(ids)) == 20 and torch.equal(task.teacher_train.y[ids], labels)
        again, _ = task.choose_real(how, 0)  # type: ignore[arg-type]
        assert torch.equal(images, again)
    assert not torch.equal(task.choose_real("random", 0)[0], task.choose_real("random", 1)[0])
