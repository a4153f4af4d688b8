"""A folder that somebody sent runs nothing and sends nothing; one's own runs are opened without being asked."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck import cli
from limbeck.errors import Untrusted
from limbeck.recipe import trust
from limbeck.recipe.names import tables
from limbeck.recipe.recipe import check, load_tree

SHORT = [
    "train.steps=1",
    "teach.steps=1",
    "train.batch_size=4",
    "teach.batch_size=4",
    "engine.device=cpu",
    "loggers=[]",
]
PLAIN = [*SHORT, "student=mlp:[2]", "teacher=mlp:[2]"]
OWN = "from torch import nn\n\ndef net(num_classes, width=3):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
EVIL = "from pathlib import Path\nPath(__file__).with_name('RAN').touch()\n\ndef net(**options):\n    pass\n"


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made elsewhere: in another workspace."""
    place = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(place / "workspace"))
        assert cli.main(["run", "kd", *PLAIN, "--out", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a workspace of this test's own; what it imported is forgotten afterwards."""
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("evil", "mynet"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("evil.py").write_text(EVIL)
    Path("mynet.py").write_text(OWN)
    return tmp_path / "work"


NODE = {"use": "import", "function": "evil:net", "options": {"a": 1}}
SPELLINGS: dict[str, Any] = {
    "long": NODE,
    "short": {"use": "import:evil:net", "options": {"a": 1}},
    "text": "import:evil:net",
    "in an ensemble": {"use": "ensemble", "members": [NODE]},
    "in an ensemble, as text": {"use": "ensemble", "members": ["mlp", "import:evil:net"]},
    "one member, no list": {"use": "ensemble", "members": "import:evil:net"},
    "in brackets": "ensemble:[mlp, 'import:evil:net']",
    "deep": {"use": "ensemble", "members": [{"use": "ensemble", "members": [NODE]}]},
}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run folder with another configuration."""
    copied = folder / "config.yaml"
    tree = load_tree(copied)
    change(tree)
    copied.write_text(json.dumps(tree))
    return folder


def copied(sent: Path, here: Path) -> Path:
    shutil.copytree(sent, here / "sent")
    return here / "sent"


def refused(words: list[str], capsys: Any) -> str:
    capsys.readouterr()
    status = cli.main(words)
    out, err = capsys.readouterr()
    assert status == 2, (status, out, err)
    assert not Path("RAN").exists()
    assert "evil" not in sys.modules
    return str(err)


@pytest.mark.parametrize("node", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_sent_student_runs_nothing_however_it_is_spelled(node: Any, sent: Path, here: Path, capsys: Any) -> None:
    folder = copied(sent, here)
    about = json.loads((folder / "student.json").read_text())
    about["model"] = node if isinstance(node, dict) else {"use": node}
    (folder / "student.json").write_text(json.dumps(about))
    for words in (["run"], ["plan"], ["cache", "--yes"]):
        said = refused([words[0], "kd", *SHORT, "student=mlp:[2]", f"teacher=run:{folder}", *words[1:]], capsys)
        assert "evil:net" in said and "--trust" in said, said
    said = refused(["run", "kd", *SHORT, f"student=run:{folder}", "teacher=mlp:[2]"], capsys)
    assert "evil:net" in said and "--trust" in said, said


ELSEWHERE: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"student, {name}": lambda tree, node=node: tree.update(student=node) for name, node in SPELLINGS.items()},
    "teacher": lambda tree: tree.update(teacher=NODE),
    "source": lambda tree: tree["task"].update(data="import:evil:net"),
    "query": lambda tree: tree.update(queries={"q": "import:evil:net"}),
    "objective": lambda tree: tree.update(objectives={"o": {"use": "import", "function": "evil:net"}}),
    "objectives of the method": lambda tree: tree.update(
        method={"use": "objectives", "objectives": {"o": "import:evil:net"}}
    ),
    "no student, an objective": lambda tree: tree.update(student=None, objectives={"o": "import:evil:net"}),
    "appended": lambda tree: tree.update(teacher={"use": "ensemble", "members": ["mlp"], "members+": [NODE]}),
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_a_sent_configuration_runs_nothing(
    change: Callable[[dict[str, Any]], None], sent: Path, here: Path, capsys: Any
) -> None:
    folder = str(rewrite(copied(sent, here), change))
    commands = [["run", folder], ["plan", folder], ["compare", folder], ["cache", folder, "--yes"], ["export", folder]]
    commands += [["run", folder, "--print-config"], ["run", folder, "--help"], ["run", f"{folder}/config.yaml"]]
    for words in commands:
        said = refused(words, capsys)
        assert "evil:net" in said and "--trust" in said, said
    assert cli.main(["report", folder]) == 0  # what it writes comes from result.json alone
    assert not Path("RAN").exists()


def test_a_sent_configuration_asks_no_other_machine(sent: Path, here: Path, capsys: Any) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["teacher"] = {"use": "ensemble", "members": ["remote:http://127.0.0.1:9"]}

    said = refused(["run", str(rewrite(copied(sent, here), change))], capsys)
    assert "sends data to http://127.0.0.1:9" in said


def test_the_message_says_what_would_be_done(sent: Path, here: Path, capsys: Any) -> None:
    folder = rewrite(copied(sent, here), lambda tree: tree.update(student=NODE))
    said = refused(["export", str(folder)], capsys)
    assert "student imports evil and calls evil:net(a=1)" in said
    assert "config.yaml" in said and "add --trust" in said and "limbeck.trusting()" in said


def test_trust_is_given_once_and_remembered_until_the_code_changes(sent: Path, here: Path, capsys: Any) -> None:
    node = {"use": "import", "function": "mynet:net", "options": {"width": 3}}
    folder = rewrite(copied(sent, here), lambda tree: tree.update(student=node))
    assert "mynet:net(width=3)" in refused(["plan", str(folder)], capsys)
    assert cli.main(["plan", str(folder), "--trust"]) == 0
    assert not trust.is_trusting()
    assert load_tree(folder)["student"] == node
    Path("mynet.py").write_text(OWN + "# and more\n")
    del sys.modules["mynet"]
    assert "changed since" in refused(["plan", str(folder)], capsys)
    with limbeck.trusting():
        load_tree(folder)
    load_tree(folder)
    # the same function with other arguments is another thing
    rewrite(folder, lambda tree: tree["student"]["options"].update(width=4))
    assert "mynet:net(width=4)" in refused(["plan", str(folder)], capsys)


def test_ones_own_runs_are_opened_without_a_question(here: Path, capsys: Any) -> None:
    node = "student={use: import, function: 'mynet:net', options: {width: 5}}"
    assert cli.main(["run", "kd", *SHORT, node, "teacher=mlp:[2]", "--out", "own"]) == 0
    shutil.move("own", "moved")  # it is the code that is known, not the place
    capsys.readouterr()
    assert cli.main(["export", "moved"]) == 0
    assert cli.main(["report", "moved"]) == 0
    assert (
        cli.main(["run", "kd", *SHORT, "student=run:moved", "teacher=run:moved", "teacher.check=off", "--out", "next"])
        == 0
    )
    # the student of a run that began with another run's says how it is made, not where that one lay
    assert json.loads(Path("next/student.json").read_text())["model"]["function"] == "mynet:net"
    shutil.rmtree("moved")
    assert cli.main(["plan", "kd", *SHORT, "student=mlp:[2]", "teacher=run:next", "teacher.check=off"]) == 0
    Path("mynet.py").write_text(OWN.replace("num_classes))", "num_classes), nn.Identity())"))
    del sys.modules["mynet"]
    said = refused(["plan", "kd", *SHORT, "student=mlp:[2]", "teacher=run:next", "teacher.check=off"], capsys)
    assert "mynet:net(width=5), whose code has changed since it was run here" in said
    assert cli.main(["plan", "kd", *SHORT, "student=mlp:[2]", "teacher=run:next", "teacher.check=off", "--trust"]) == 0


def test_what_is_typed_is_never_asked_about(sent: Path, here: Path, capsys: Any) -> None:
    folder = rewrite(copied(sent, here), lambda tree: tree.update(student=NODE))
    assert cli.main(["plan", str(folder), "student=import:mynet:net"]) == 0
    said = refused(["plan", str(folder), "teacher=import:mynet:net"], capsys)
    assert "evil:net" in said and "mynet" not in said
    recipe = here / "mine.yaml"  # a recipe that the user wrote
    recipe.write_text("task: classification\nmethod: kd\nstudent: import:mynet:net\nteacher: mlp:[2]\n")
    assert cli.main(["plan", str(recipe)]) == 0


def test_code_that_is_not_here_is_said_to_be_missing(sent: Path, here: Path, capsys: Any) -> None:
    folder = rewrite(copied(sent, here), lambda tree: tree.update(student="import:nowhere:net"))
    assert "nowhere:net(), which is not found from here" in refused(["export", str(folder)], capsys)
    assert cli.main(["export", str(folder), "--trust"]) == 2
    assert "no module 'nowhere' is found" in capsys.readouterr().err
    with pytest.raises(Untrusted):
        load_tree(folder)


def test_no_options_are_written_down(sent: Path, here: Path) -> None:
    node = {"use": "import", "function": "mynet:net", "options": {"password": "hunter2"}}
    folder = rewrite(copied(sent, here), lambda tree: tree.update(student=node))
    with limbeck.trusting():
        load_tree(folder)
    kept = list((here.parent / "workspace" / "trusted").iterdir())
    assert len(kept) == 1 and "hunter2" not in kept[0].read_text() and "mynet" in kept[0].read_text()


def test_a_workspace_that_cannot_be_written_costs_no_run(
    sent: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").touch()
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(here / "file"))
    folder = rewrite(copied(sent, here), lambda tree: tree.update(student=NODE))
    with limbeck.trusting():
        assert load_tree(folder)["student"] == NODE


def test_every_component_that_imports_says_so() -> None:
    """Whoever calls `imported` can run code: its class must name the argument, or a sent folder gets past the door."""
    declared, calling = set(), set()
    for names in tables().values():
        for target in names.values():
            module, _, cls = target.partition(":")
            found: Any = getattr(importlib.import_module(module), cls)
            if found.code:
                declared.add((module, cls))
    for path in Path(limbeck.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(n, ast.Call) and getattr(n.func, "id", "") == "imported" for n in ast.walk(node)
            ):
                module = ".".join(path.relative_to(Path(limbeck.__file__).parents[1]).with_suffix("").parts)
                calling.add((module, node.name))
    assert declared == calling and len(calling) >= 4


def test_nothing_is_built_to_see_what_a_tree_names() -> None:
    """The look of `met_in` runs no constructor, whatever a tree says of student and teacher."""
    tree = {"task": "classification", "method": "kd", "objectives": {"o": "import:nowhere:f"}, "student": None}
    assert [p for p, _, _ in trust.met_in(tree)] == ["task.data", "task", "method", "objectives.o"]
    with pytest.raises(limbeck.LimbeckError, match="no such key"):
        check({**tree, "x": 1})
