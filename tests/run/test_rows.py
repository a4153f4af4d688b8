"""Rows of a report: what a method delivers and adds, participants beyond one teacher, baselines, old names of settings."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck.artifacts.chain import ChainArtifact
from limbeck.data.items import Part
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Term, Terms
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Role
from limbeck.models.chain import LinkSettings
from limbeck.models.from_run import FromRun
from limbeck.models.small import MlpModel
from limbeck.networks.lora import Lora, LoraView
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.recipe.renamed import renamed
from limbeck.run import prepare
from limbeck.run.best import Best
from limbeck.run.planning import plan
from limbeck.run.rows import evaluator_of
from limbeck.run.running import run_recipe
from limbeck.storage import store
from tests.tiny import quiet, tree_of


class TwoTeachers(Method):
    """Learns from two teachers of its own task, one of which looks like the student; a peer is a row of the report."""

    participants = MappingProxyType(
        {
            "teacher": Participant(),
            "second": Participant(like="student"),
            "peer": Participant(like="student", taught=False),
        }
    )
    learners = ("student", "peer")

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z, p = ctx.signal("student", batch).logits, ctx.signal("peer", batch).logits
        both = (ctx.signal("teacher", batch).logits + ctx.signal("second", batch).logits) / 2
        return Terms(kl=Term(F.kl(z, both)), peer=Term(F.kl(p, both), to="peer"))

    def rows(self) -> dict[str, Artifact]:
        return {"peer": self.network("peer")}


class Composed(Method):
    """The student's first layer with a head of its own: the plain student is never trained to answer."""

    learners = ("student", "head")

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.head = MlpModel([])
        self.roles["head"] = Role(self.head.make(Needs((6,), 10)))

    def step(self, batch: Batch, ctx: Context) -> Terms:
        act = ctx.signal("student", batch, taps=("act1",)).acts["act1"]
        return Terms(ce=Term(F.cross_entropy(ctx.call("head", act), batch["y"])))

    def artifact(self) -> ChainArtifact:
        student = self.setup.student
        head = replace(student, module=self.roles["head"].module, model=self.head)
        return ChainArtifact(
            self.task,
            student,
            {
                "trunk": (student, LinkSettings(student.model, until="act1")),
                "head": (head, LinkSettings(self.head, inputs=[6])),
            },
        )


def recipe_of(method: Method, *changes: str) -> Any:
    recipe = build(tree_of("kd", "student=mlp:[6]", *changes))
    recipe.method = method
    return recipe


def test_several_participants_are_taught_rehearsed_and_scored(tmp_path: Path) -> None:
    recipe = recipe_of(TwoTeachers(), "train.steps=4", "teach.steps=30")
    recipe.participants = {"second": MlpModel([6]), "peer": MlpModel([6])}
    result, _ = run_recipe(recipe, tree_of("kd"), tmp_path, quiet=True)
    assert list(result["metrics"]["rows"]) == ["student", "peer", "teacher", "second", "alone"]
    for what in ("sizes", "latency_ms"):
        assert {"student", "teacher", "second"} <= set(result[what]) and result[what]["second"], what
    speed = result["latency_ms"]
    assert speed["student"] == speed["peer"] != speed["teacher"], "networks of one architecture are measured once"
    assert all(t["low"] <= t["one_item"] <= t["high"] and t["rounds"] >= 7 for t in speed.values())
    seconds = result["cost"]["seconds"]
    assert {"teacher", "second", "alone", "distil"} <= set(seconds) and "peer" not in seconds
    peer, student = recipe.method.roles["peer"], recipe.method.roles["student"]
    assert any(
        not torch.equal(a, b) for a, b in zip(peer.module.parameters(), student.module.parameters(), strict=True)
    )
    assert result["sizes"]["peer"] == result["sizes"]["student"]


class Expert(Method):
    """One teacher of the whole task, one of a part of it, and one that answers something else."""

    participants = MappingProxyType(
        {
            "teacher": Participant(),
            "expert": Participant(like="student", task="half"),
            "scorer": Participant(taught=False),
        }
    )

    def step(self, batch: Batch, ctx: Context) -> Terms:
        return Terms(kl=Term(F.kl(ctx.signal("student", batch).logits, ctx.signal("teacher", batch).logits)))


def test_a_participant_is_scored_on_its_own_part_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(Expert(), "train.steps=4", "teach.steps=30")
    whole = type(recipe.task)

    def part(self: Any, name: str) -> Any:
        assert name == "half"
        found = copy.copy(self)
        found.test = Part(self.test, torch.arange(20))
        return found

    monkeypatch.setattr(whole, "part", part)
    monkeypatch.setattr(whole, "baselines", lambda self, bench: {})
    recipe.participants = {"expert": MlpModel([6]), "scorer": MlpModel([5])}
    result, _ = run_recipe(recipe, tree_of("kd"), tmp_path, quiet=True)
    rows = result["metrics"]["rows"]
    assert list(rows) == ["student", "teacher", "expert"]  # the task names no baseline, and the scorer is not evaluated
    assert rows["expert"]["accuracy"] * 20 == pytest.approx(round(rows["expert"]["accuracy"] * 20), abs=1e-9)
    assert "agreement" in rows["student"] and "agreement" not in rows["expert"]
    assert result["sizes"]["scorer"] and "scorer" not in result["latency_ms"]
    assert "expert" in (tmp_path / "report.html").read_text()


def test_a_participant_that_is_like_another_takes_its_model() -> None:
    recipe = recipe_of(TwoTeachers(), "teach.steps=2")
    bench = prepare(recipe, None, say=quiet)
    shapes = [
        {k: v.shape for k, v in bench.built[n].module.state_dict().items()} for n in ("student", "second", "peer")
    ]
    assert shapes[0] == shapes[1] == shapes[2] and recipe.student.role == "student"
    weights = [bench.built[n].module.state_dict() for n in ("student", "second", "peer")]
    assert all(any(not torch.equal(a[k], b[k]) for k in a) for a, b in [weights[:2], weights[1:], weights[::2]])


def test_a_participant_that_is_missing_or_unknown_is_refused() -> None:
    recipe = recipe_of(Expert())
    with pytest.raises(ConfigError, match=r"participants\.scorer"):
        prepare(recipe, None, say=quiet)
    recipe = recipe_of(TwoTeachers())
    recipe.participants = {"second": MlpModel([6]), "peer": MlpModel([6]), "critic": MlpModel([6])}
    with pytest.raises(ConfigError, match="critic"):
        prepare(recipe, None, say=quiet)
    with pytest.raises(ConfigError, match=r"participants\.critic"):
        build(tree_of("kd", "participants.critic=mlp"))


def test_what_is_delivered_is_scored_saved_and_opened(tmp_path: Path) -> None:
    """A composed student, which the plain student network would answer for with chance."""
    recipe = recipe_of(Composed(), "train.steps=150", "train.lr=0.02", "train.batch_size=64", "teach.steps=1")
    result, artifact = run_recipe(recipe, tree_of("kd"), tmp_path, quiet=True)
    accuracy = result["metrics"]["student"]["accuracy"]
    assert accuracy > 0.5
    plain = recipe.task.evaluate(recipe.method.setup.student, recipe.task.test)
    assert plain["accuracy"] < 0.4
    task = build(tree_of("kd")).task
    task.load(0)
    opened = FromRun(str(tmp_path)).build(task)
    assert task.evaluate(opened, task.test)["accuracy"] == accuracy
    parts = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("parts/*/*"))
    assert parts == ["parts/head/student.safetensors", "parts/trunk/student.safetensors"]
    assert (
        isinstance(artifact, ChainArtifact)
        and json.loads((tmp_path / "student.json").read_text())["model"]["use"] == "chain"
    )


def test_the_best_is_what_the_method_would_deliver(tmp_path: Path) -> None:
    """Of a method that makes data: the networks that learn from its set are evaluated, not the network it is made for."""
    recipe = build(tree_of("mtt"))
    bench = prepare(recipe, None, say=quiet)
    best = Best(bench, recipe.method, evaluator_of(recipe), tmp_path)
    found = best.evaluate(3)
    assert found == evaluator_of(recipe).score(recipe.method.artifact(), bench, "valid")
    kept = store.load_tree(tmp_path / "best")
    assert set(kept["state"]) == {"images", "labels", "ids", "step_size"}


def test_baselines_are_chosen(tmp_path: Path) -> None:
    recipe = build(tree_of("kd", "baselines=[]"))
    result, _ = run_recipe(recipe, tree_of("kd"), tmp_path, quiet=True)
    assert list(result["metrics"]["rows"]) == ["student", "teacher"] and result["metrics"]["alone"] == {}
    assert "alone" not in result["cost"]["seconds"]
    assert "alone" not in [p["part"] for p in plan(tree_of("kd", "baselines=[]"), steps=1)["parts"]]
    with pytest.raises(ConfigError, match="random"):
        prepare(build(tree_of("kd", "baselines=[random]")), None, say=quiet)


def test_settings_under_their_old_names() -> None:
    old = {"task": {"use": "condensation", "networks": 2, "evaluation": {"steps": 3}, "per_class": 1}, "method": "mtt"}
    new = renamed(old)
    assert new["task"] == {"use": "condensation", "per_class": 1}
    assert new["evaluator"] == {"networks": 2, "optim": {"steps": 3}}
    assert renamed(new) is new
    tree = tree_of("mtt", "task.architectures=[mlp]")
    assert tree["evaluator"]["architectures"] == ["mlp"] and "architectures" not in tree["task"]
    with pytest.raises(ConfigError, match=r"evaluator\.networks"):
        renamed({**old, "evaluator": {"networks": 3}})


def test_settings_of_a_method_that_its_stages_have_now() -> None:
    """A run's folder or a recipe of then is read as it was meant; who types an old name over a new one is told what to type."""
    expert = {"steps": 1000, "batch_size": 64, "lr": 0.05, "schedule": "linear"}
    given = {"use": "mtt", "steps": 10, "expert": expert, "lr_images": 30.0, "lr_step": 0, "lr_labels": 2.0}
    new = renamed({"method": given, "task": "condensation"})
    assert new["method"] == {"use": "mtt", "steps": 10}
    distil = {"student": {"lr": 30.0}, "step_size": {"lr": 1e-30}}
    assert new["stages"] == {"experts": {"expert": {k: expert[k] for k in expert if k != "steps"}}, "distil": distil}
    assert renamed(new) is new
    learned = renamed({"method": {**given, "use": "tesla", "labels": "learned"}})
    assert learned["stages"]["distil"]["labels"] == {"lr": 2.0}
    for old, type_ in (
        ("method.lr_images=7", r"type stages\.distil\.student\.lr=7"),
        ("method.expert.lr=0.2", r"type stages\.experts\.expert\.lr=0\.2"),
    ):
        with pytest.raises(ConfigError, match=type_):
            check(load_tree("tesla", [old]))


class Copies(Method):
    """A copy of the teacher and a view of it, beside a student of its own normalisation."""

    learners = ("student", "view")

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.new("raw", like="teacher")
        self.new("view", like="teacher", adapter=Lora(rank=2))

    def step(self, batch: Batch, ctx: Context) -> Terms:
        z, v = ctx.signal("student", batch).logits, ctx.signal("view", batch).logits
        return Terms(ce=Term(F.cross_entropy(z, batch["y"])), view=Term(F.cross_entropy(v, batch["y"]), to="view"))

    def artifact(self) -> Artifact:
        return self.network("view")

    def rows(self) -> dict[str, Artifact]:
        return {"raw": self.network("raw")}


def test_copies_and_views_are_delivered_as_what_they_come_from(tmp_path: Path) -> None:
    recipe = recipe_of(Copies(), "train.steps=3", "teach.steps=60", "teacher.mean=[0.5]", "teacher.std=[0.2]")
    result, artifact = run_recipe(recipe, tree_of("kd"), tmp_path, quiet=True)
    rows = result["metrics"]["rows"]
    assert rows["raw"] == {**rows["teacher"], "agreement": 1.0}
    assert result["sizes"]["student"]["parameters"] == result["sizes"]["teacher"]["parameters"]
    task = build(tree_of("kd")).task
    task.load(0)
    opened = FromRun(str(tmp_path)).build(task)
    assert task.evaluate(opened, task.test)["accuracy"] == pytest.approx(rows["student"]["accuracy"])
    assert type(artifact) is NetworkArtifact and not isinstance(artifact.built.module, LoraView)


class Referred(TwoTeachers):
    """A reference that must come ready."""

    participants = MappingProxyType({"teacher": Participant(taught=False, ready=True)})


def test_a_reference_that_is_not_ready_is_refused() -> None:
    with pytest.raises(ConfigError, match="teacher with trained weights"):
        prepare(recipe_of(Referred()), None, say=quiet)


def test_data_that_only_looks_like_a_file_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/proc/self/mem").exists():
        for kind in ("csv", "jsonl"):
            with pytest.raises(DataError, match="/proc/self/mem"):
                prepare(
                    build(tree_of("kd", f"task.data={kind}:/proc/self/mem", "task.student_items=null")), None, say=quiet
                )
    recipe = recipe_of(TwoTeachers())

    def load(seed: int | None = None) -> None:
        raise OSError(5, "Input/output error", "disk")

    monkeypatch.setattr(recipe.task, "load", load)
    with pytest.raises(DataError, match=r"task\.data: cannot be read: Input/output error \(disk\)"):
        prepare(recipe, None, say=quiet)
