"""What tells two networks, settings, pieces of code and runs apart, and how a difference is said."""

from __future__ import annotations

import enum
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine import identity
from limbeck.errors import ConfigError
from limbeck.evaluators.fresh import Fresh
from limbeck.grammar.component import Component
from limbeck.grammar.method import Built
from limbeck.grammar.optim import Optim
from limbeck.grammar.role import Contract
from limbeck.methods.condensation.mtt import Mtt
from limbeck.methods.condensation.tesla import Tesla
from limbeck.models.imported import ImportedModel
from limbeck.objectives import Kl
from tests.toy import ToyTask, network


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's own modules, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def key(thing: Any) -> str:
    return identity.key({"thing": identity.value(thing)})


# ------------------------------------------------------------------------------------------------------------- networks
def made(*layers: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layer() for layer in layers))


class Scaled(nn.Module):
    """A network whose settings are plain attributes."""

    def __init__(self, scale: Any = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(2, 2), scale

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x) * self.scale


class Choice(enum.StrEnum):
    UP, DOWN = "up", "down"


ALIKE: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "the activation": (lambda: made(nn.ReLU), lambda: made(nn.Sigmoid)),
    "a stride": (lambda: made(lambda: nn.Conv2d(1, 1, 3)), lambda: made(lambda: nn.Conv2d(1, 1, 3, stride=2))),
    "the order": (lambda: made(nn.ReLU, nn.Tanh), lambda: made(nn.Tanh, nn.ReLU)),
    "an attribute": (lambda: Scaled(1.0), lambda: Scaled(2.0)),
    "a function as attribute": (lambda: Scaled(torch.relu), lambda: Scaled(torch.tanh)),
    "a choice": (lambda: Scaled(Choice.UP), lambda: Scaled(Choice.DOWN)),  # a peft network's settings hold such
    "a momentum": (lambda: made(lambda: nn.BatchNorm1d(2)), lambda: made(lambda: nn.BatchNorm1d(2, momentum=0.5))),
}


@pytest.mark.parametrize("what", ALIKE)
def test_networks_of_the_same_weights_differ_by(what: str) -> None:
    one, two = ALIKE[what]
    a, b = one(), two()
    b.load_state_dict(a.state_dict())
    assert (
        identity.network(a) == identity.network(one())
        or what.startswith("an attribute")
        or "function" in what
        or "choice" in what
    )
    assert identity.network(a)["structure"] != identity.network(b)["structure"]


def test_which_parameters_are_trained_is_part_of_a_network() -> None:
    full, half = network(), network()
    half[0].requires_grad_(False)
    a, b = identity.network(full), identity.network(half)
    assert {k for k in a if a[k] != b[k]} == {"trained"}
    assert identity.answers(full) == identity.answers(half)


def test_what_changes_no_answer_changes_no_identity() -> None:
    net, tapped = made(nn.ReLU), made(lambda: nn.ReLU(inplace=True))
    assert identity.network(net) == identity.network(tapped)
    tapped.train()
    net.eval()
    net.register_forward_hook(lambda m, a, out: None)
    assert identity.network(net) == identity.network(tapped)


def test_weights_and_how_inputs_reach_them_are_part_of_it() -> None:
    net = network()
    a = identity.network(net, Contract(mean=(0.5,)))
    assert a["contract"] != identity.network(net, Contract(mean=(0.25,)))["contract"]
    with torch.no_grad():
        net[0].bias[0] += 1
    b = identity.network(net, Contract(mean=(0.5,)))
    assert {k for k in a if a[k] != b[k]} == {"state"}


def test_it_is_the_same_in_another_process() -> None:
    text = (
        "import torch; from torch import nn; from limbeck.engine import identity; torch.manual_seed(0); "
        "net = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.TransformerEncoderLayer(4, 2)); print(identity.network(net))"
    )
    told = {
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=True).stdout
        for _ in range(2)
    }
    assert len(told) == 1 and "structure" in told.pop()


# ------------------------------------------------------------------------------------------------------------- settings
def test_every_setting_of_an_optimiser_counts() -> None:
    base = Optim(steps=40)
    others: dict[str, Any] = {
        "steps": 41, "batch_size": 3, "lr": 0.5, "optimizer": "sgd", "weight_decay": 0.1, "momentum": 0.5,
        "schedule": "linear", "warmup": 2, "clip": 1.0, "options": {"eps": 1e-3}, "keep_statistics": False,
        "milestones": [0.3], "gamma": 0.5, "power": 2.0, "floor": 1e-5, "groups": {"*.bias": {"lr": "x2"}}, "only": ["0.*"],
        "clip_by": "parameter", "weight_decay_end": 0.4, "epochs": 2.0, "decay_vectors": False, "layer_decay": 0.5, "patience": 3,
        "sampling": "balanced",
    }  # fmt: skip
    assert set(others) == set(identity._given(base)), "a setting that this test does not know"
    assert key(base) == key(Optim(steps=40)) == key(Optim(steps=30).with_(steps=40))
    assert len({key(base), *(key(base.with_(**{name: other})) for name, other in others.items())}) == len(others) + 1


def test_components_count_by_class_arguments_and_what_is_in_them() -> None:
    assert key(Kl(temperature=2.0)) == key(Kl(temperature=2.0, weight=1.0)) != key(Kl(temperature=3.0))
    assert key({"a": [Kl()]}) != key({"a": [Kl(weight=2.0)]})
    same: dict[str, Any] = {"step_size": 1.0, "gradient": "exact"}
    assert key(Mtt(**same)) != key(Tesla(**same)), "the class"
    assert key(Fresh(optim=Optim(lr=0.5))) != key(Fresh(optim=Optim(lr=0.25)))


def test_a_revision_makes_it_another_thing() -> None:
    class Base(Component):
        kind = "query"

    class Child(Base):
        def step(self) -> None:
            """Nothing."""

    def parts() -> list[str]:
        return [key(Base()), key(Child()), key(Child().step), key(partial(Child().step))]

    first = parts()
    assert parts() == first and len(set(first)) == 4
    Base.revision = 1  # type: ignore[attr-defined]
    second = parts()
    assert not set(first) & set(second)
    Child.revision = 1  # type: ignore[attr-defined]
    assert parts()[0] == second[0] and not set(parts()[1:]) & set(second)


def test_values_of_many_kinds_and_one_that_nothing_tells_apart() -> None:
    built = Built(network(), Contract(mean=(0.5,)))
    other = Built(network(seed=5), Contract(mean=(0.5,)))
    values = [1, 1.0, "1", None, True, [1], {"a": 1}, {1, 2}, torch.ones(2), torch.zeros(2), network(), network(seed=1)]
    values += [ToyTask().train, torch.relu, torch.float32, Contract(), built]
    assert len({key(v) for v in values}) == len(values) and key(built) == key(other)
    with pytest.raises(ConfigError, match=r"remember.2.a: nothing tells two values of type object apart"):
        identity.value([1, 2, {"a": object()}], "remember")


# ----------------------------------------------------------------------------------------------------------------- code
def test_the_users_code_behind_a_function_a_class_and_what_they_import(here: Path) -> None:
    (here / "own_layers.py").write_text("from torch import nn\nclass Layer(nn.Module):\n    pass\n")
    (here / "own_net.py").write_text("import own_layers\ndef big():\n    return own_layers.Layer()\n")
    module = importlib.import_module("own_net")
    assert set(identity.code([module.big])) == {"own_net.py", "own_layers.py"}
    assert set(identity.network(module.big())["code"]) == {"own_layers.py"}
    model = ImportedModel("own_net:big")
    assert set(identity.network(module.big(), model=model)["code"]) == {"own_net.py", "own_layers.py"}
    assert set(identity.code_of({"student": [model]})) == {"own_net.py", "own_layers.py"}
    assert identity.code([nn.Linear, torch.relu, Kl]) == {} and identity.network(nn.Linear(2, 2))["code"] == {}


def test_a_file_edited_under_a_loaded_module_counts_when_it_is_loaded_anew(here: Path) -> None:
    file = here / "own_loaded.py"
    file.write_text("def act(x): return x\n")
    module = importlib.import_module("own_loaded")
    before = identity.code([module.act])
    file.write_text("def act(x): return -x  # edited\n")
    assert identity.code([module.act]) == before, "the old code is what runs"
    importlib.reload(module)
    after = identity.code([module.act])
    assert after != before and set(after) == set(before)


def test_a_class_of_a_script_counts_by_its_own_source(here: Path) -> None:
    def told(body: str, note: str = "") -> str:
        text = (
            f"{note}\nfrom torch import nn\nfrom limbeck.engine import identity\nclass Net(nn.Module):\n"
            f"    def forward(self, x):\n        return {body}\nprint(identity.network(Net())['code'])\n"
        )
        (here / "script.py").write_text(text)
        run = [sys.executable, "script.py"]
        return subprocess.run(run, capture_output=True, text=True, timeout=120, check=True, cwd=here).stdout

    first = told("x")
    assert "Net of the script" in first
    assert told("x", "# a note elsewhere") == first != told("-x")


# ---------------------------------------------------------------------------------------------------------- differences
def test_each_difference_is_named_once_in_words() -> None:
    role = {"structure": "1", "trained": "1", "code": {"mynet.py": "1"}, "state": "1", "contract": "1"}
    then: dict[str, Any] = {
        "format": 2,
        "recipe": {"train.lr": 0.1, "task.data.path": "a.csv"},
        "data": {"train": {"items": 400, "content": "a"}, "test": {"items": 9, "content": "t"}},
        "roles": {"student": role, "teacher": role, "critic": role, "old": role},
        "revisions": {"Mtt": 0},
        "code": {"mymethod.py": "1"},
    }
    assert identity.differences(then, then) == []
    now = {
        **then,
        "recipe": {"train.lr": 0.2, "task.data.path": "a.csv", "train.clip": 1.0},
        "data": {"train": {"items": 300, "content": "b"}, "test": {"items": 9, "content": "u"}},
        "roles": {
            "student": {**role, "trained": "2"},
            "teacher": {**role, "structure": "2", "state": "2"},
            "critic": {**role, "structure": "2", "code": {"mynet.py": "2"}},
            "extra": role,
        },
        "revisions": {"Mtt": 1},
        "code": {"mymethod.py": "2"},
    }
    assert identity.differences(then, now) == [
        "train.clip (unset then, 1.0 now)",
        "train.lr (0.1 then, 0.2 now)",
        "your code in mymethod.py",
        "the training data (400 items then, 300 now)",
        "the content of the test data",
        "which parameters of the student are trained",
        "the network of the teacher",
        "your code in mynet.py",
        "role 'extra' (was not there then)",
        "role 'old' (is not there now)",
        "the mathematics of Mtt (revision 0 then, 1 now)",
    ]
    assert identity.differences(then, {**now, "format": 3}) == ["the record of what entered it (format 2 then, 3 now)"]


def test_what_follows_from_the_data_is_not_named_beside_them() -> None:
    then: dict[str, Any] = {"format": 2, "data": {"train": {"content": "a"}}, "roles": {"student": {"contract": "1"}}}
    now: dict[str, Any] = {**then, "roles": {"student": {"contract": "2"}}}
    assert identity.differences(then, now) == ["how inputs reach the student"]
    now["data"] = {"train": {"content": "b"}}
    assert identity.differences(then, now) == ["the content of the training data"]


def test_weights_that_are_read_back_must_fit_their_networks_and_nothing_more() -> None:
    role = {"structure": "1", "trained": "1", "code": {}, "state": "1", "contract": "1"}
    then: dict[str, Any] = {"format": 1, "data": {"train": "a"}, "roles": {"student": role, "teacher": role}}
    other = {"structure": "1", "trained": "2", "code": {}, "state": "2", "contract": "2"}
    now: dict[str, Any] = {
        "format": 2,
        "data": {},
        "roles": {"student": other, "teacher": {"structure": "9"}, "new": role},
    }
    assert identity.differences(then, now, reading=True) == []
    now["roles"]["student"] = {**other, "structure": "2"}
    assert identity.differences(then, now, reading=True) == ["the network of the student"]
    now["roles"]["student"] = {**other, "code": {"mynet.py": "2"}}
    assert identity.differences(then, now, reading=True) == ["your code in mynet.py"]
