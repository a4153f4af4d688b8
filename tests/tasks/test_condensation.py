"""How synthetic sets and real items are judged: by fresh networks, item by item."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.evaluators.fresh import Fresh
from limbeck.functional.matching import flat_parameters
from limbeck.grammar.optim import Optim
from limbeck.grammar.scores import Scores
from limbeck.models.small import ConvNetModel
from limbeck.objectives.queries import Mixup
from limbeck.recipe.recipe import build
from limbeck.tasks.condensation import Condensation, _central
from limbeck.tasks.synthetic_set import SetArtifact
from tests.tiny import tree_of


@pytest.fixture
def task() -> Condensation:
    made = Condensation(strategy="", per_class=2)
    made.load(0)
    return made


def test_single_items_are_the_mean_over_the_networks(task: Condensation) -> None:
    model = ConvNetModel(width=2, depth=1)
    bench: Any = SimpleNamespace(
        task=task, seed=0, student_model=model, device=torch.device("cpu"), teacher=None, made=None
    )
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


def test_a_set_says_how_networks_learn_from_it(task: Condensation) -> None:
    """Its loss, its batches and its labels are its own; without them it is cross-entropy with the classes, as it was."""
    images, ids = task.choose_real("random", 0)
    optim = Optim(steps=3, batch_size=8, lr=0.01, optimizer="sgd")
    seen: list[tuple[int, ...]] = []

    def soft_loss(net: torch.nn.Module, batch: Any, ctx: Any) -> torch.Tensor:
        seen.append(tuple(batch["y"].shape))
        return F.kl(net(batch["x"]), batch["y"], temperature=4.0)

    def view(batch: Any, ctx: Any) -> Any:
        """The label of the view that is shown."""
        at = batch["view"] % batch["y"].shape[1]
        return {**batch, "y": batch["y"][torch.arange(len(at)), at]}

    def weights(artifact: SetArtifact, **more: Any) -> torch.Tensor:
        torch.manual_seed(0)
        module = ConvNetModel(width=2, depth=1).build(task).module
        built = artifact.train(module, optim, 0, "judge", torch.device("cpu"), **more)
        return flat_parameters(built.module)

    plain = SetArtifact(task, images, ids, ids, None)
    stored = SetArtifact(task, images, torch.randn(20, 2, 10), ids, None, loss=soft_loss, queries=[view])  # type: ignore[list-item]
    assert torch.equal(weights(plain), weights(plain)) and not torch.equal(weights(plain), weights(stored))
    assert seen == [(8, 10)] * 3
    mixed = weights(plain, queries=[Mixup()])
    assert torch.isfinite(mixed).all() and not torch.equal(weights(plain), mixed)


def test_a_network_that_is_there_is_judged_as_it_is(task: Condensation) -> None:
    built = ConvNetModel(width=2, depth=1).build(task)
    bench: Any = SimpleNamespace(
        task=task, seed=0, student_model=None, device=torch.device("cpu"), teacher=built, made=None
    )
    evaluator = Fresh(baselines=[])
    (row,) = evaluator.rows(bench).values()
    made: Any = row()
    assert evaluator.score(made, bench) == task.evaluate(built, task.test)


def test_queries_of_the_evaluator_are_checked_and_change_every_row(task: Condensation) -> None:
    tree = tree_of("mtt", "evaluator.queries={mix: mixup}", "evaluator.optim.steps=2")
    evaluator: Any = build(tree).evaluator
    assert list(evaluator.queries) == ["mix"]
    model = ConvNetModel(width=2, depth=1)
    bench: Any = SimpleNamespace(
        task=task, seed=0, student_model=model, device=torch.device("cpu"), teacher=None, made=None
    )
    real = task.real("random", 0)
    plain = Fresh(evaluator.optim, networks=1).score(real, bench)
    assert Fresh(evaluator.optim, networks=1, queries=evaluator.queries).score(real, bench)["nll"] != plain["nll"]
    with pytest.raises(ConfigError, match=r"evaluator\.queries\.mix\.classes"):
        Fresh(queries={"mix": Mixup(classes=3)}).accept(task)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"per_class": 0}, "per_class must be 1 or more"),
        ({"eval_batch": 0}, "eval_batch must be 1 or more"),
        ({"deal": -1}, "deal must be 0 or more"),
        ({"test_fraction": 1.5}, "test_fraction"),
        ({"strategy": "blur"}, "no augmentation is called 'blur'"),
    ],
)
def test_settings_out_of_range_are_refused(given: Any, said: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=said):
        Condensation(**given)


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
