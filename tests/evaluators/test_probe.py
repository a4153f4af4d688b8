"""Probes: frozen features, simple classifiers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import ConfigError, TapError
from limbeck.evaluators.probe import Probe
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.optim import Optim
from limbeck.run.running import run
from limbeck.tasks.classification import Classification
from tests.tiny import tree_of


@pytest.fixture(scope="module")
def bench() -> Any:
    task = Classification()
    task.load(0)
    return SimpleNamespace(task=task, device=torch.device("cpu"), teacher=None, seed=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.mark.parametrize(("how", "least"), [("linear", 0.8), ("svm", 0.8), ("knn", 0.8)])
def test_features_of_an_untrained_network_tell_digits(how: Any, least: float, bench: Any) -> None:
    artifact = NetworkArtifact(bench.task, Built(network()))
    found = Probe(how, items=400).score(artifact, bench)
    assert found["accuracy"] > least and found["width"] == 32
    assert found == Probe(how, items=400).score(artifact, bench)
    deaf = network()
    with torch.no_grad():
        deaf[1].weight.zero_()  # type: ignore[operator]
    assert Probe(how, items=400).score(NetworkArtifact(bench.task, Built(deaf)), bench)["accuracy"] < 0.2


def test_the_feature_is_named_or_refused(bench: Any) -> None:
    artifact = NetworkArtifact(bench.task, Built(network()))
    assert Probe(feature="0", items=200).score(artifact, bench)["width"] == 64
    with pytest.raises(TapError, match="layer9"):
        Probe(feature="layer9").score(artifact, bench)
    with pytest.raises(ConfigError, match=r"evaluator\.feature"):
        Probe().score(NetworkArtifact(bench.task, Built(nn.Flatten())), bench)


def test_a_run_is_scored_by_a_probe(tmp_path: Path) -> None:
    tree = tree_of("kd", "evaluator={use: probe, how: knn, items: 200}")
    result = run(tree, tmp_path, quiet=True)
    assert list(result["metrics"]["rows"]) == ["student", "teacher", "alone", "random"]
    assert result["primary"] == "accuracy" and result["metrics"]["rows"]["random"]["accuracy"] > 0.3


def test_features_that_a_network_answers_with(bench: Any) -> None:
    from limbeck.data.clouds import PictureClouds
    from limbeck.networks.clouds import PointNet
    from limbeck.tasks.clouds import CloudFeatures

    task = CloudFeatures(data=PictureClouds(points=32))
    task.load(0)
    clouds = SimpleNamespace(task=task, device=torch.device("cpu"), teacher=None, seed=0)
    torch.manual_seed(0)
    artifact = NetworkArtifact(task, Built(PointNet(24, [16]), model=None))
    found = Probe("svm", unit=True, strength=[1e-6, 10.0], items=300).score(artifact, clouds)
    assert found["width"] == 24 and found["accuracy"] > 0.3  # the weaker one would tell next to nothing
    weak = Probe("svm", unit=True, strength=1e-6, items=300).score(artifact, clouds)
    assert (
        weak["accuracy"]
        < found["accuracy"]
        == Probe("svm", unit=True, strength=10.0, items=300).score(artifact, clouds)["accuracy"]
    )
    tuned = Probe("fine-tune", optim=Optim(steps=3, batch_size=16, warmup=0), items=60).score(artifact, clouds)
    assert {"accuracy", "nll"} <= set(tuned)
    with pytest.raises(ConfigError, match=r"evaluator\.on.*clouds"):
        Probe(on=bench.task).accept(task)
    with pytest.raises(ValueError, match="strength"):
        Probe(strength=[])


def test_an_untrained_network_normalises_by_the_data() -> None:
    from limbeck.evaluators.probe import settle

    task = Classification()
    task.load(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    settle(Built(net), task, batch_size=100, batches=3)
    with torch.no_grad():
        x = net[1](net[0](task.train.fetch(torch.arange(300))["x"]))
    norm: Any = net[2]
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([part.var(0) for part in x.split(100)]).mean(0))
    assert norm.momentum == 0.1 and not net.training
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
