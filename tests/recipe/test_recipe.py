"""Recipes over toy components: every kind of parameter, every kind of mistake, and ten thousand random recipes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import Tensor

from limbeck.errors import ConfigError, LimbeckError, MissingExtra
from limbeck.grammar.card import recipes
from limbeck.grammar.component import Component, Settings
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Method, Objective, Query
from limbeck.grammar.optim import Optim
from limbeck.grammar.task import Model, Task
from limbeck.recipe import names, overrides, recipe, schema
from limbeck.recipe.hints import Mismatch, leaf, typed, words
from limbeck.recipe.recipe import Recipe, RecipeErrors, apply, build, check, describe, dump, load_tree, make
from limbeck.recipe.values import read_yaml, read_yaml_file

# ------------------------------------------------------------------------------------------------ toy components


class Colour(Enum):
    RED = 1
    BLUE = 2


class Source(Component):
    kind = "source"


class Shapes(Source):
    """Geometric shapes.

    Args:
        sizes: side lengths.
        root: where they lie.
        mode: how they are drawn.
    """

    def __init__(
        self, sizes: tuple[int, ...] = (8,), root: Path | None = None, mode: Literal["line", "fill"] = "line"
    ) -> None:
        if any(s < 1 for s in sizes):
            raise ValueError("sizes must be 1 or more")
        self.sizes, self.root, self.mode = sizes, root, mode


class Files(Source):
    """Files of a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path, split: float = 0.1) -> None:
        self.root, self.split = root, split


class Puzzle(Task):
    """A toy task.

    Args:
        data: where the items come from.
        labels: names, or how many.
    """

    def __init__(
        self,
        data: Source = Shapes(sizes=(4, 4)),  # noqa: B008
        names: list[str] | int = 3,
        extra: Source | None = None,
    ) -> None:
        self.data, self.names, self.extra = data, names, extra

    def default_student(self) -> dict[str, Any]:
        return {"use": "net", "width": 8}

    def default_teacher(self) -> dict[str, Any]:
        return {"use": "net", "width": 64}


class Bare(Task):
    """A task that offers no models."""


class Net(Model):
    """A toy network.

    Args:
        arch: which one.
        width, depth: its size.
        checkpoint: weights to load.
    """

    def __init__(
        self,
        arch: str = "plain",
        width: int = 16,
        depth: int = 2,
        checkpoint: Path | None = None,
        options: dict[str, Any] | None = None,
        module: Tensor | None = None,
    ) -> None:
        if width < 1:
            raise ValueError("width must be 1 or more")
        if depth > width:
            raise ValueError("a net deeper than wide is refused")
        self.arch, self.width, self.depth, self.checkpoint = arch, width, depth, checkpoint
        self.options, self.module = options, module


class Team(Model):
    """Several networks.

    Args:
        members: who is in it.
        vote: how they agree.
    """

    def __init__(self, members: Sequence[Model], vote: Literal["mean", "max"] = "mean") -> None:
        if not members:
            raise ValueError("members must not be empty")
        self.members, self.vote = members, vote


class Match(Objective):
    """Matches one thing.

    Args:
        weight: its weight.
    """

    def __init__(self, tap: str | None = None, weight: float = 1.0) -> None:
        if weight < 0:
            raise ValueError("weight must be 0 or more")
        self.tap, self.weight = tap, weight


class Turn(Query):
    """Turns the batch."""

    def __init__(self, degrees: float | Literal["random"] = "random") -> None:
        self.degrees = degrees


class Score(Evaluator):
    """Scores."""


class Inner(Settings):
    """Settings of something inside.

    Args:
        rounds: how many.
    """

    def __init__(self, rounds: int = 2, optim: Optim = Optim(steps=30)) -> None:  # noqa: B008
        if rounds < 1:
            raise ValueError("rounds must be 1 or more")
        self.rounds, self.optim = rounds, optim


class Distil(Method):
    """A toy method.

    Args:
        temperature: softens.
        objectives: what is matched.
        chain: several more.
        inner: settings inside.
        colour: a colour.
        betas: two numbers.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        objectives: dict[str, Objective] = {"hint": Match(tap="layer2"), "kl": Match()},  # noqa: B006, B008
        chain: tuple[Objective, ...] = (Match(weight=0.5), Match(weight=0.25)),
        inner: Inner = Inner(rounds=3),  # noqa: B008
        outer: Inner | None = None,
        colour: Colour = Colour.RED,
        betas: tuple[float, float] = (0.9, 0.99),
        on: bool = False,
        anything: Any = None,
        table: dict[str, float] | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError("temperature must be above 0")
        self.temperature, self.objectives, self.chain = temperature, objectives, chain
        self.inner, self.outer, self.colour, self.betas = inner, outer, colour, betas
        self.on, self.anything, self.table = on, anything, table


@dataclass
class Alone(Method):
    """A method without a teacher, as a dataclass.

    Args:
        steps: how many.
    """

    participants = {}  # noqa: RUF012
    steps: int = 5
    sizes: list[int] = field(default_factory=lambda: [1, 2])


class Loose(Model):
    def __init__(self, *args: int) -> None: ...


class Shadow(Model):
    def __init__(self, use: str = "x") -> None: ...


class Dangling(Model):
    def __init__(self, thing: NotAnywhere = None) -> None: ...  # type: ignore[name-defined]  # noqa: F821


TOYS = {
    "task": {"puzzle": "Puzzle", "bare": "Bare"},
    "method": {"distil": "Distil", "alone": "Alone"},
    "model": {"net": "Net", "team": "Team", "loose": "Loose", "shadow": "Shadow", "dangling": "Dangling"},
    "source": {"shapes": "Shapes", "files": "Files"},
    "objective": {"match": "Match"},
    "query": {"turn": "Turn"},
    "evaluator": {"direct": "Score"},
}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    tables = {kind: {name: f"{__name__}:{cls}" for name, cls in table.items()} for kind, table in TOYS.items()}
    tables["model"]["absent"] = "a_package_that_is_not_there.module:Thing"
    tables["model"]["wants"] = "transformers_is_hidden:Thing"
    monkeypatch.setattr(names, "tables", lambda: tables)
    monkeypatch.setattr(schema, "method_names", dict)
    monkeypatch.setattr(schema, "locate_method", lambda name: None)
    monkeypatch.setattr(schema, "entries", list)


BASE: dict[str, Any] = {"task": "puzzle", "method": "distil"}


def resolved(*tokens: str, **tree: Any) -> dict[str, Any]:
    """The base recipe with a tree and tokens over it, checked."""
    merged = {**BASE, **tree}
    merged = read_yaml(dump(merged), "base")
    overrides.merge(merged, tokens)
    return check(merged)


def refused(*tokens: str, **tree: Any) -> str:
    """What is said about the base recipe with a tree and tokens over it."""
    with pytest.raises(ConfigError) as caught:
        build(resolved(*tokens, **tree))
    line = caught.value.line()
    assert "\n" not in line
    return line


# ---------------------------------------------------------------------------------------------- filling in and merging


def test_everything_is_filled_in_and_is_stable():
    found = resolved()
    assert found["method"]["objectives"] == {
        "hint": {"use": "match", "tap": "layer2", "weight": 1.0},
        "kl": {"use": "match", "tap": None, "weight": 1.0},
    }
    assert found["method"]["chain"] == [{"use": "match", "tap": None, "weight": w} for w in (0.5, 0.25)]
    assert found["method"]["inner"]["rounds"] == 3
    assert found["method"]["inner"]["optim"]["steps"] == 30
    assert found["method"]["colour"] == "RED"
    assert found["method"]["betas"] == [0.9, 0.99]
    assert found["task"]["data"] == {"use": "shapes", "sizes": [4, 4], "root": None, "mode": "line"}
    assert found["student"]["width"] == 8
    assert found["teacher"]["width"] == 64
    assert found["train"]["steps"] == 1000
    assert found["loggers"] == ["csv", "jsonl", "tensorboard"]
    assert "module" not in found["student"]  # a tensor can be given in Python only
    assert check(found) == found
    assert read_yaml(dump(found), "x") == found


def test_shorthand_gives_the_rest_to_the_first_parameter():
    assert resolved("student=net:wide:er")["student"]["arch"] == "wide:er"
    assert resolved("student=net:18")["student"]["arch"] == "18"
    assert resolved("task.data=files:/data/my birds")["task"]["data"] == {
        "use": "files",
        "root": "/data/my birds",
        "split": 0.1,
    }
    assert resolved("student=team:net")["student"]["members"][0]["use"] == "net"


def test_a_bare_name_replaces_the_whole_component_wherever_it_is_typed():
    assert resolved("method=distil", method={"use": "distil", "temperature": 2})["method"]["temperature"] == 4.0
    assert resolved("method.temperature=2", "method=distil")["method"]["temperature"] == 2.0
    assert resolved("method=distil", "method.temperature=2")["method"]["temperature"] == 2.0
    assert resolved("method.use=alone", method={"use": "distil", "temperature": 3})["method"] == {
        "use": "alone",
        "steps": 5,
        "sizes": [1, 2],
    }
    assert resolved("student=net:a", "student.width=3")["student"]["width"] == 3
    assert resolved("student=net:a", "student.arch=b")["student"]["arch"] == "b"
    assert resolved("student={use: net, width: 5}", "student={depth: 1}")["student"]["width"] == 8


def test_dotted_keys_reach_into_defaults_without_naming_them():
    assert resolved("task.data.mode=fill")["task"]["data"] == {
        "use": "shapes",
        "sizes": [4, 4],
        "root": None,
        "mode": "fill",
    }
    assert resolved("student.depth=1")["student"] == resolved()["student"] | {"depth": 1}
    assert resolved("teacher.checkpoint=/a/b")["teacher"]["width"] == 64
    assert resolved("method.inner.optim.lr=1")["method"]["inner"]["optim"]["steps"] == 30
    assert resolved("method.outer.rounds=7")["method"]["outer"]["rounds"] == 7
    assert resolved("method.objectives.hint.weight=2")["method"]["objectives"]["hint"] == {
        "use": "match",
        "tap": "layer2",
        "weight": 2.0,
    }
    assert [c["weight"] for c in resolved("method.chain.1.weight=9")["method"]["chain"]] == [0.5, 9.0]
    assert [c["weight"] for c in resolved("method.chain.2=match")["method"]["chain"]] == [0.5, 0.25, 1.0]


def test_null_removes_and_stays_removed():
    found = resolved(
        "method.objectives.hint=null", "method.objectives.new=match", "objectives.more=match", "objectives.more=null"
    )
    assert found["method"]["objectives"]["hint"] is None
    assert found["objectives"] == {}
    assert check(read_yaml(dump(found), "x")) == found
    assert sorted(build(found).method.objectives) == ["kl", "new"]


def test_lists_are_appended_to():
    assert resolved("loggers+=wandb", "loggers+=[mlflow, trackio]")["loggers"][2:] == [
        "tensorboard",
        "wandb",
        "mlflow",
        "trackio",
    ]
    assert resolved("loggers=[csv]", "loggers+=wandb")["loggers"] == ["csv", "wandb"]
    assert resolved("loggers+=wandb", "loggers=[csv]")["loggers"] == ["csv", "wandb"]
    assert resolved("loggers=csv")["loggers"] == ["csv"]
    assert len(resolved("method.chain+=match")["method"]["chain"]) == 3
    assert resolved("loggers.1=wandb", loggers=["csv", "jsonl"])["loggers"] == ["csv", "wandb"]


def test_names_of_overrides_may_be_written_as_yaml():
    found = resolved("method={use: distil, temperature: 1e-1, betas: [0, 1]}")
    assert found["method"]["temperature"] == 0.1
    assert found["method"]["betas"] == [0.0, 1.0]


def test_a_method_without_teacher_gets_none_unless_one_is_named():
    assert resolved(method="alone")["teacher"] is None
    assert resolved("teacher.depth=3", method="alone")["teacher"]["width"] == 64
    assert resolved("teacher=net", method="alone")["teacher"]["width"] == 16


def test_files_run_folders_and_seeds(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: puzzle\nmethod: distil\n")
    tree = load_tree(path, ["method.temperature=3"], seed=5)
    assert (tree["name"], tree["seed"]) == ("mine", 5)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump(check(tree)))
    assert check(load_tree(tmp_path / "run")) == check(tree)
    assert load_tree(str(path))["name"] == "mine"


def test_overrides_may_be_typed_in_any_order():
    first = ["teacher=net", "teacher.width=4", "loggers=[csv]", "loggers+=jsonl", "train.steps=1", "train.steps=2"]
    moved = ["train.steps=1", "loggers+=jsonl", "teacher.width=4", "train.steps=2", "loggers=[csv]", "teacher=net"]
    assert resolved(*first) == resolved(*moved)
    assert (resolved(*moved)["teacher"]["width"], resolved(*moved)["train"]["steps"]) == (4, 2)
    used = resolved("teacher.width=4", "teacher.use=net")
    assert (used["teacher"]["use"], used["teacher"]["width"]) == ("net", 4)


def test_a_shipped_recipes_limits_stay_with_its_own_data(tmp_path):
    for name, limit, other in (("kd", "student_items", "folder:birds"), ("taid", "student_documents", "text:books")):
        assert load_tree(name, ["train.steps=3"])["task"][limit]
        assert limit not in load_tree(name, [f"task.data={other}"])["task"]
        assert load_tree(name, [f"task.{limit}=7", f"task.data.use={other}"])["task"][limit] == 7
    assert load_tree("kd", ["task.data=digits"])["task"]["student_items"] == 200
    mine = tmp_path / "mine.yaml"
    mine.write_text("task: {use: classification, data: digits, student_items: 50}\nmethod: kd\n")
    own = load_tree(mine, ["task.data=folder:birds"])
    assert own["task"]["student_items"] == 50 and "notes" not in own


def test_what_a_recipe_lets_go_with_its_data_is_noted():
    (said,) = load_tree("kd", ["task.data=arrays:birds"])["notes"]
    assert "task.student_items=200 no longer applies" in said and "as does a teacher that is trained here" in said
    (said,) = load_tree("taid", ["task.data=text:books", "notes=[mine]"])["notes"][1:]
    assert "task.student_documents=60" in said
    for given in (["task.data=digits"], ["task.data=folder:birds", "task.student_items=7"], ["train.steps=3"]):
        assert "notes" not in load_tree("kd", given)
    assert not load_tree("uskd", ["task=language"]).get("notes")


# ------------------------------------------------------------------------------------------------ building


def test_objects_are_built_with_their_python_types_and_remember_their_node():
    found = resolved(
        "task.data={use: shapes, sizes: 3, root: ~/x}",
        "method.colour=BLUE",
        "objectives.o=match",
        "queries.q={use: turn, degrees: 3}",
    )
    made = build(found)
    assert isinstance(made, Recipe)
    assert made.task.data.sizes == (3,)
    assert made.task.data.root == Path("~/x").expanduser()
    assert made.method.colour is Colour.BLUE
    assert made.method.betas == (0.9, 0.99)
    assert isinstance(made.method.chain, tuple)
    assert isinstance(made.method.chain[0], Match)
    assert isinstance(made.method.inner.optim, Optim)
    assert made.queries["q"].degrees == 3.0
    assert made.method.config == found["method"]
    assert made.task.data.config == found["task"]["data"]
    assert made.config == found
    assert schema.node_of(made.method) == found["method"]


def test_components_made_in_python_stand_in_a_tree():
    found = check(
        {"task": Puzzle(Shapes((2,)), names=4), "method": Distil(temperature=1.5), "student": Net("x", depth=1)}
    )
    assert found["task"]["data"]["sizes"] == [2]
    assert found["task"]["names"] == 4
    assert found["method"]["temperature"] == 1.5
    assert found["student"]["arch"] == "x"


def test_make_builds_a_single_component():
    assert make(Source, "shapes", "data").sizes == (8,)
    assert make(Source, {"use": "files", "root": "/x"}, "data").root == Path("/x")
    with pytest.raises(ConfigError, match=r"^data\.sizes: must be 1 or more \(got \[0\]\)"):
        make(Source, {"use": "shapes", "sizes": [0]}, "data")
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        make(Source, "shape", "data")


def test_only_the_classes_a_recipe_names_are_imported():
    resolved()
    assert "a_package_that_is_not_there" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        resolved("student=absent")


def test_a_missing_optional_package_names_its_extra(monkeypatch, tmp_path):
    (tmp_path / "transformers_is_hidden.py").write_text("import transformers\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'limbeck\[language\]'"):
        resolved("student=wants")


def test_the_constructors_of_components_are_held_to_the_rules():
    for name, problem in (
        ("loose", "named arguments"),
        ("shadow", "none called use"),
        ("dangling", "must be importable"),
    ):
        with pytest.raises(TypeError, match=problem):
            resolved(f"student={name}")


def test_no_class_path_is_ever_followed(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for tree in (
        {"student": "evil_module.Thing"},
        {"student": "evil_module:Thing"},
        {"student": {"class_path": "evil_module.Thing", "init_args": {}}},
        {"student": {"use": "evil_module.Thing"}},
        {"method": {"use": "distil", "colour": {"class_path": "evil_module.Thing"}}},
        {"method": {"use": "distil", "colour": "evil_module.Thing"}},
        {"student": {"use": "net", "module": "evil_module.Thing"}},
        {"student": {"use": "net", "module": {"class_path": "evil_module.Thing"}}},
    ):
        assert refused(**tree)
    assert "evil_module" not in sys.modules


# ------------------------------------------------------------------------------------------------ mistakes

WRONG = [
    # keys and names, with the nearest
    (["method.temprature=2"], "method.temprature: distil has no such key; did you mean 'temperature'"),
    (["metod=distil"], "metod: a recipe has no such key; did you mean 'method'"),
    (["temperature=2"], "temperature: a recipe has no such key; did you mean 'method.temperature'"),
    (["method=distl"], "method: no method is called 'distl'; did you mean 'distil'"),
    (["student=nett"], "student: no model is called 'nett'; did you mean 'net'"),
    (["task.data=shape"], "task.data: no source is called 'shape'; did you mean 'shapes'"),
    (["task.data.sices=3"], "task.data.sices: shapes has no such key; did you mean 'sizes'"),
    (["train.learning_rate=3"], "train.learning_rate: train has no such key"),
    (["engine.device_s=3"], "did you mean 'devices'"),
    (["objectives.x=mach"], "objectives.x: no objective is called 'mach'; did you mean 'match'"),
    (["method.outer.round=7"], "method.outer.round: method.outer has no such key; did you mean 'rounds'"),
    (["task=distil"], "task: no task is called 'distil'"),
    (["student=import:os.system"], "student: no model is called 'import'"),
    # types
    (["train.lr=abc"], "train.lr: got 'abc' (str), expected number"),
    (["train.lr=true"], "train.lr: got True (bool), expected number"),
    (["train.lr=.nan"], "NaN is none"),
    (["train.lr=null"], "train.lr: got null, expected number"),
    (["train.steps=1.5"], "train.steps: got 1.5 (float), expected whole number"),
    (["train.steps=[1]"], "expected whole number"),
    (["train.steps=" + "9" * 400], "expected whole number"),
    (["train.lr=" + "9" * 400], "expected number"),
    (["train.steps=9223372036854775808"], "64 bits"),
    (["seed=x"], "seed: got 'x' (str), expected whole number"),
    (["method.on=yes"], "method.on: got 'yes' (str), expected true or false"),
    (["method.on=1"], "method.on: got 1 (int), expected true or false"),
    (["student.arch=1.5"], "student.arch: got 1.5 (float), expected text"),
    (["student.arch=true"], "put it in quotes as it was typed"),
    (["student.arch=2e2"], '"WORD" in a file'),
    (["student.arch=[a]"], "expected text"),
    (['student.checkpoint=""'], "student.checkpoint: got '' (str), expected path"),
    (["task.data.mode=lines"], "task.data.mode: got 'lines' (str), expected 'line' or 'fill'; did you mean 'line'"),
    (["method.betas=[1]"], "method.betas: got [1] (list), expected list of 2: number, number"),
    (["method.betas=[1, x]"], "method.betas.1: got 'x' (str), expected number"),
    (["method.colour=GREEN"], "method.colour: got 'GREEN' (str), expected Colour"),
    (["method.table={a: x}"], "method.table.a: got 'x' (str), expected number"),
    (["method.table=3"], "method.table: got 3 (int)"),
    (["method.anything={a: [.nan]}"], "method.anything.a.0"),
    (["task.names={a: 1}"], "task.names"),
    (["student.module=3"], "student.module: net takes it in Python only"),
    (["student.options=3"], "student.options: got 3 (int), expected mapping or null"),
    (["task.data.sizes={a: 1}"], "task.data.sizes"),
    # components where something else stands
    (["student=3"], "student: got 3 (int), expected the name of a model; known: "),
    (["student=[net]"], "student: got ['net'] (list), expected the name of a model"),
    (["student.use=[net]"], "expected the name of a model"),
    (["task=null"], "task: got null, expected task"),
    (["method=null"], "method: got null"),
    (["train=3"], "train: got 3 (int), expected settings, Optim"),
    (["train=adam"], "train: got 'adam' (str), expected settings, Optim"),
    (["train=null"], "train: got null"),
    (["objectives=kl"], "objectives: got 'kl' (str), expected mapping of names to objective"),
    (["objectives=[match]"], "objectives: got ['match']"),
    (["objectives={'a b': match}"], "objectives: got 'a b' (str), expected a name"),
    (["objectives.new.weight=1"], "objectives.new: does not say which objective"),
    (["student=team"], "student.members: team needs it"),
    (["student={use: team, members: []}"], "student.members: must not be empty"),
    (["student={use: team, members: [net, nett]}"], "student.members.1: no model is called 'nett'"),
    (["student={use: team, members: 3}"], "student.members: got 3"),
    (["task.data=files"], "task.data.root: files needs it; set task.data.root=<path>"),
    (["task.data='files:'"], "nothing follows 'files:'"),
    (["task=bare:x"], "bare takes no argument"),
    (["task=bare"], "student: Bare has no default student"),
    (["method.chain.7=match"], "method.chain.7: got '7' (str), expected a position from 0 to 2"),
    (["method.chain.x=match"], "method.chain.x: got 'x' (str), expected a position from 0 to 2"),
    # constructors
    (["method.temperature=0"], "method.temperature: must be above 0 (got 0.0)"),
    (["train.steps=-1"], "train.steps: must be 0 or more (got -1)"),
    (["train.optimizer=adamm"], "train.optimizer"),
    (["student={use: net, width: 2, depth: 3}"], "student: a net deeper than wide is refused"),
    (["method.inner.rounds=0"], "method.inner.rounds: must be 1 or more"),
    (["method.objectives.kl.weight=-1"], "method.objectives.kl.weight: must be 0 or more"),
    (["method.chain.0.weight=-1"], "method.chain.0.weight: must be 0 or more"),
    (["seed=-1"], "seed: must be 0 or more (got -1)"),
    (["name='a/b'"], "name: must be letters"),
    (["engine.devices=0"], "engine.devices: got 0 (int), expected whole number 1 or more"),
    # overrides
    (["train.steps"], "train.steps: is no setting, expected key=value"),
    (["=3"], "is no setting"),
    (["1a=3"], "is no setting"),
    (["train..steps=3"], "has an empty part"),
    (["train.=3"], "has an empty part"),
    (["train.steps="], "train.steps: has no value; write train.steps=null"),
    (["train.steps=  "], "has no value"),
    (["train.steps=[1, 2"], "not valid YAML"),
    (["train.steps='3"], "not valid YAML"),
    (["train.steps={a: &x 1}"], "anchors"),
    (["train.steps={a: !!int 1}"], "tags"),
    (["train.steps={a: 1, a: 2}"], "given twice"),
    (["a" + ".a" * 50 + "=1"], "has 51 parts"),
    (["seed=1", "seed.x=3"], "seed: is 1, it has no part 'x'"),
    (["seed+=1", "train.steps+=1"], "+= appends to lists"),
    (["train={steps: 3}", "train.steps+=1"], "train.steps: is 3, += appends to lists"),
    (["loggers=[csv]", "loggers.5=x"], "loggers.5: the list has 1 entries"),
    (["loggers=[csv]", "loggers.x=x"], "loggers.x: the list has 1 entries"),
    (["seed=\ud800"], "UTF-8"),
]


@pytest.mark.parametrize(
    ("tokens", "said"), WRONG, ids=[" ".join(t)[:40].encode("ascii", "replace").decode() for t, _ in WRONG]
)
def test_mistakes_are_answered_at_the_door(tokens, said):
    assert said in refused(*tokens)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(RecipeErrors) as caught:
        resolved("method.temprature=2", "train.lr=abc", "task.data.sices=3", "foo=1")
    assert [p.argument for p in caught.value.problems] == ["task.data.sices", "method.temprature", "train.lr", "foo"]
    with pytest.raises(RecipeErrors) as caught:
        build(resolved("method.objectives.kl.weight=-1", "method.chain.0.weight=-1", "train.steps=-1"))
    assert len(caught.value.problems) == 3


def test_missing_pieces_are_named():
    with pytest.raises(ConfigError, match=r"task: a recipe needs it; set task=NAME; known: bare, puzzle"):
        check({"method": "distil"})
    with pytest.raises(ConfigError, match="method: a recipe needs it"):
        check({"task": "puzzle"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("- a", "holds no settings"),
        ("3", "holds no settings"),
        ("task: puzzle\ntask: bare", r":2:1: the key 'task' is given twice"),
        ("task: &a puzzle\nmethod: *a", "anchors are not read"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, content, said):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_tree(path)


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"there is no file .*; did you mean 'mine.yaml'"):
        load_tree(tmp_path / "mime.yaml")
    with pytest.raises(ConfigError, match="holds no config"):
        load_tree(tmp_path)
    for wrong in ("", "\0", "\ud800", "x" * 5000 + ".yaml"):
        with pytest.raises(ConfigError):
            load_tree(wrong)


# ------------------------------------------------------------------------------------------------ leaves


@pytest.mark.parametrize(
    ("hint", "value", "plain"),
    [
        (int, 1e3, 1000),
        (int, "7", 7),
        (float, 2, 2.0),
        (float, "1e-3", 1e-3),
        (float | None, None, None),
        (str, 18, "18"),
        (str | int, 18, 18),
        (int | str, "x", "x"),
        (bool, "true", True),
        (Literal["auto", 1], 1, 1),
        (Literal["auto", 1], "1", 1),
        (int | Literal["auto"], "auto", "auto"),
        (list[int], [1, "2"], [1, 2]),
        (tuple[int, ...], (1, 2), [1, 2]),
        (tuple[int, str], [1, 2], [1, "2"]),
        (list, [1, "a"], [1, "a"]),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (dict[int, str], {"3": "x"}, {"3": "x"}),
        (dict[str, Any], {"a": {"b": [1]}}, {"a": {"b": [1]}}),
        (list[list[float]] | None, [[1], [2]], [[1.0], [2.0]]),
        (Path, Path("/x"), "/x"),
        (Colour, "BLUE", "BLUE"),
        (Any, [1, {"a": None}], [1, {"a": None}]),
        (set[int], [1], [1]),
        (bool | float, True, True),
        (bool | float, 1, 1.0),
    ],
    ids=str,
)
def test_values_that_fit(hint, value, plain):
    found = leaf(hint, value)
    assert found == plain
    assert type(found) is type(plain)
    assert leaf(hint, found) == found  # what is printed is read again as it is


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, True),
        (int, 1.5),
        (int, None),
        (float, float("nan")),
        (str, None),
        (list[int], None),
        (dict[int, str], {"a": "x"}),
        (Tensor, 1),
    ],
    ids=str,
)
def test_values_that_do_not(hint, value):
    with pytest.raises(Mismatch):
        leaf(hint, value)


def test_typed_values():
    assert typed(tuple[Path, ...], ["/a"]) == (Path("/a"),)
    assert typed(dict[int, str], {"3": "x"}) == {3: "x"}
    assert typed(set[int], [1, 1]) == {1}
    assert typed(Path | None, None) is None
    assert typed(Colour | None, "RED") is Colour.RED
    assert typed(list[tuple[int, int]], [[1, 2]]) == [(1, 2)]


def test_types_in_words():
    assert words(int | None) == "whole number or null"
    assert words(tuple[float, ...]) == "list of number"
    assert words(dict[str, Any]) == "mapping"
    assert words(Literal["a", 2]) == "'a' or 2"


# ------------------------------------------------------------------------------------------------ explaining


def test_help_has_every_key_its_type_value_and_sentence():
    rows = {r.key: r for r in describe(resolved("method.objectives.hint=null", "method.anything='1e-3'"))}
    assert rows["method"].value == "distil"
    assert rows["method.temperature"].doc == "softens."
    assert rows["method.temperature"].type == "number"
    assert rows["task.data.sizes"].value == "[4, 4]"
    assert rows["student.depth"].doc == "its size."
    assert rows["method.objectives.hint"].value == "null"
    assert rows["method.objectives.kl.weight"].value == "1.0"
    assert rows["method.chain.0.weight"].value == "0.5"
    assert rows["method.inner.optim.steps"].value == "30"
    assert rows["train.lr"].doc == "the peak learning rate."
    assert rows["seed"].type == "whole number"
    assert rows["method.outer"].value == "null"


def test_the_values_that_help_shows_can_be_typed():
    tree = resolved(
        "method.anything='1e-3'", "student.arch='\"true\"'", "method.table={a: 1}", "student.options={x: [1, null]}"
    )
    again = dict(tree)
    for row in describe(tree):
        apply(again, f"{row.key}={row.value}")
    for row in describe(tree):  # names first replaced the components, now their settings are given again
        if row.value not in {name for table in TOYS.values() for name in table}:
            apply(again, f"{row.key}={row.value}")
    assert check(again) == tree


def test_a_recipe_is_read_without_torch():
    code = "import sys; from limbeck.recipe import recipe; recipe.load_tree('kd'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------ random recipes

VALUES = [
    *(
        "1",
        "0",
        "-1",
        "3",
        "1e-3",
        "1e400",
        "nan",
        ".nan",
        ".inf",
        "true",
        "false",
        "null",
        "no",
        "yes",
        "abc",
        "",
        " ",
    ),
    *(
        "[]",
        "{}",
        "[1, 2]",
        "[a]",
        "[[1]]",
        "{a: 1}",
        "{use: net}",
        "{use: match, weight: 2}",
        "{use: nope}",
        "[net, team]",
    ),
    *(
        "net",
        "net:x",
        "net:",
        "team:net",
        "shapes",
        "files:/x",
        "match",
        "turn",
        "distil",
        "alone",
        "puzzle",
        "bare",
        "import:a.b:c",
    ),
    *(
        "'x",
        '"3"',
        "[1",
        "{a",
        "*x",
        "&a b",
        "!!str x",
        "a: b",
        "# c",
        "9" * 400,
        "é",
        "\u2028",
        "\ud800",
        "\x00",
        "%",
        "@",
        "a" * 5000,
    ),
    *(
        "{a: {a: {a: {a: 1}}}}",
        "[" * 50 + "]" * 50,
        "{class_path: os.system}",
        "os:system",
        "line",
        "RED",
        "/tmp/x",
        "0.5",
        "007",
    ),
]


def random_key(rng: random.Random) -> str:
    """A dotted key, mostly sensible."""
    known = [row.key for row in KEYS]
    key = rng.choice(known)
    kind = rng.random()
    if kind < 0.6:
        return key
    if kind < 0.75:  # a slip
        i = rng.randrange(len(key))
        return key[:i] + rng.choice("abcxyz_.-0 =+é") + key[i + rng.randrange(2) :]
    if kind < 0.9:
        return key + "." + rng.choice(["use", "0", "1", "99", "hint", "kl", "new", "x", "weight", "width"])
    return rng.choice(
        ["", ".", "a" * 300, "task", "student.use", "train", "x.y.z", "0", "__class__", "loggers", "name"]
    )


def random_recipe(rng: random.Random) -> tuple[str, list[str]]:
    """A YAML text and overrides; valid, nearly valid, or neither."""
    tree: dict[str, Any] = {"task": "puzzle", "method": rng.choice(["distil", "alone"])}
    for _ in range(rng.randrange(4)):
        value = rng.choice(VALUES)
        try:
            apply(tree, f"{random_key(rng)}={value}")
        except ConfigError:
            continue
    try:
        text = dump(tree)
    except UnicodeError:
        text = "task: puzzle\nmethod: distil\n"
    for _ in range(rng.choice([0, 0, 0, 1, 3])):  # slips in the file itself
        i = rng.randrange(len(text) + 1)
        text = (
            text[:i]
            + rng.choice(["", ":", " ", "\n", "- ", "&a ", "*a", "!!x ", "{", "]", "'", "\t", "\x07", "é", text[:20]])
            + text[i + rng.randrange(3) :]
        )
    tokens = [
        f"{random_key(rng)}{rng.choice(['=', '=', '=', '+=', ''])}{rng.choice(VALUES)}" for _ in range(rng.randrange(4))
    ]
    return text, tokens


def test_random_recipes_are_refused_in_a_line_or_print_and_read_again(tmp_path, monkeypatch):
    """LIMBECK_FUZZ=10000 makes the ten thousand of the promise: half here, half in tests/test_cli.py."""
    count = int(os.environ.get("LIMBECK_FUZZ", "2000")) // 2
    global KEYS
    KEYS = describe(resolved("method.outer.rounds=2", "objectives.o=match", "queries.q=turn", "student=team:net"))
    rng = random.Random(20)
    path = tmp_path / "r.yaml"
    accepted = 0
    slowest = 0.0
    for i in range(count):
        text, tokens = random_recipe(rng)
        in_memory = i % 20 > 0  # the disk is slower than all the rest
        if not in_memory:
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        monkeypatch.setattr(overrides, "read_yaml_file", partial(read_yaml, text) if in_memory else read_yaml_file)
        began = time.process_time()
        try:
            found = check(load_tree(path, tokens, rng.choice([None, 0, 3])))
            build(found)
        except LimbeckError as error:
            assert error.line(), (i, text, tokens)
            assert "\n" not in error.line(), (i, text, tokens)
        else:
            accepted += 1
            printed = dump(found)
            again = read_yaml(printed, "printed")
            assert again == found, (i, text, tokens)
            assert check(again) == found, (i, text, tokens)
            assert dump(check(again)) == printed, (i, text, tokens)
        slowest = max(slowest, time.process_time() - began)
    assert accepted > count // 20
    assert slowest < 10.0


KEYS: list[recipe.Row] = []


# ------------------------------------------------------------------------------------------------ our own recipes


@pytest.mark.parametrize("name", recipes())
def test_every_shipped_recipe_prints_and_reads_again(name, monkeypatch):
    monkeypatch.undo()
    try:
        found = check(load_tree(name))
    except MissingExtra as error:
        pytest.skip(str(error))
    printed = dump(found)
    assert check(read_yaml(printed, name)) == found
    assert found["name"] == name
    build(found)
    missing = [row.key for row in describe(found) if not row.doc]
    assert not missing, f"no sentence in the docstring for {missing}"


# ------------------------------------------------------------------------------------------------- presets and tiny ones


CHOICES = """
task: puzzle
method: {use: distil, temperature: 2, inner: {rounds: 9}}
student: {use: net, name: a}
teacher: {use: net, name: b, depth: 2}
presets:
  large: {method: {temperature: 8}, student: {use: team, members: [net]}}
tiny:
  method: {inner: {rounds: 1}}
  train: {steps: 3}
"""


def test_presets_and_the_tiny_form_lie_below_overrides(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(CHOICES)
    plain = load_tree(file)
    assert not {"presets", "tiny"} & set(plain) and plain["method"]["temperature"] == 2
    large = load_tree(file, ["method.inner.rounds=4"], preset="large", tiny=True)
    assert large["method"] == {"use": "distil", "temperature": 8, "inner": {"rounds": 4}}
    assert large["student"] == {"use": "team", "members": ["net"]}, "another component replaces the recipe's whole"
    assert large["teacher"] == plain["teacher"] and large["train"] == {"steps": 3}
    assert overrides.presets_of(file) == {
        "large": {"method": {"temperature": 8}, "student": {"use": "team", "members": ["net"]}}
    }
    with pytest.raises(ConfigError, match=r"--preset.*'huge'.*large"):
        load_tree(file, preset="huge")
    file.write_text("task: puzzle\nmethod: distil\npresets: [a]\n")
    with pytest.raises(ConfigError, match="presets"):
        load_tree(file)


def test_a_length_goes_with_the_models_it_was_chosen_for() -> None:
    assert load_tree("taid")["task"]["length"] == 64 == load_tree("taid", ["student=causal-lm"])["task"]["length"]
    for named in (["student=hf:little"], ["teacher=hf:big", "student.width=8"]):
        assert "length" not in load_tree("taid", named)["task"]
    assert load_tree("taid", ["student=hf:little", "task.length=32"])["task"]["length"] == 32
