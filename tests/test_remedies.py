"""What messages tell people to type exists: every setting and every option that a text of the program names."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

import limbeck
from limbeck.grammar.card import catalogue, find_method
from limbeck.recipe.names import tables
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.schema import schema

ROOT = Path(limbeck.__file__).parent

KINDS = {
    "task": "task", "student": "model", "teacher": "model", "evaluator": "evaluator", "queries": "query",
    "objectives": "objective", "participants": "model",
}  # fmt: skip
"""Where components stand in a recipe, and of which kind they are."""

SETTING = re.compile(
    r"(?<![\w./-])(train|teach|engine|task|student|teacher|evaluator|method|participants|stages|queries|objectives)"
    r"((?:\.(?:[A-Za-z_]\w*|\{\}))+)(?==|\b(?!\())"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

NOT_RECIPES = {
    "train.npz",
    "teacher.safetensors",
    "student.safetensors",
    "student.json",
    "teacher.ckpt",
    "task.py",
    "method.py",
}
"""Names of files and of attributes of Python objects that look like settings."""


def texts(path: Path) -> list[tuple[int, str]]:
    """The texts that a file may show, with ``{}`` for what is put in; no docstrings, names of attributes or keys."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            inner |= {id(s.value) for s in node.body if isinstance(s, ast.Expr)}
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(v) for v in node.values}
            parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
            if not isinstance(node, ast.Expr) and id(node) not in inner:
                found.append((node.lineno, "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append((node.lineno, node.value))
    return found


@cache
def parameters(kind: str) -> frozenset[str]:
    """All settings of the components of one kind, the settings in them included."""
    found: set[str] = {"use"}
    if kind == "method":
        classes = [
            getattr(importlib.import_module(m), c) for card in catalogue() for m, c, _ in map(find_method, card.methods)
        ]
        classes += [_load(place) for place in tables().get("method", {}).values()]
    else:
        classes = [_load(place) for place in tables().get(kind, {}).values()]
    for cls in classes:
        params = schema(cls)
        found |= set(params) | {part for p in params.values() for part in _inside(p.base)}
    return frozenset(found)


def _inside(base: object) -> set[str]:
    try:
        return set(schema(base)) if isinstance(base, type) and base.__module__.startswith("limbeck.") else set()
    except TypeError:
        return set()


def _load(place: str) -> type:
    module, name = place.split(":")
    try:
        found: type = getattr(importlib.import_module(module), name)
    except ImportError:  # an extra that is not installed
        return object
    return found


def exists(head: str, rest: list[str]) -> bool:
    """Whether a setting is one of some recipe's; ``{}`` may be anything."""
    if head in ("train", "teach", "engine"):
        base = schema(Recipe)[head].base
        return len(rest) > 2 or rest[0] == "{}" or rest[0] in schema(base)  # type: ignore[arg-type]
    if head == "stages":
        optim = set(schema(schema(Recipe)["train"].base)) | {"steps", "batch_size", "epochs"}  # type: ignore[arg-type]
        return len(rest) < 2 or rest[-1] in optim | {"{}", "ROLE"} or rest[-1].isupper()
    known = parameters("method" if head == "method" else KINDS[head])
    if len(rest) > 1 and rest[0] in ("objectives", "queries"):  # the name is the user's
        rest = [rest[0], *rest[2:]]
    if head in ("queries", "objectives", "participants"):
        rest = rest[1:]
    deep = parameters("source") | parameters("text-source") | parameters("text_source")
    return all(part in ("{}", "NAME") or part.isupper() or part in known | deep for part in rest)


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("folder", sorted({p.relative_to(ROOT).parts[0] for p in FILES}))
def test_settings_that_are_named_exist(folder: str) -> None:
    wrong = []
    for path in (p for p in FILES if p.relative_to(ROOT).parts[0] == folder):
        for line, text in texts(path):
            if " " not in text.strip() and "=" not in text:
                continue  # an argument's name or a key of a mapping: no advice
            for match in SETTING.finditer(text):
                if match[0] in NOT_RECIPES or match[0].rsplit(".", 1)[0] in NOT_RECIPES:
                    continue
                if not exists(match[1], match[2].strip(".").split(".")):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {match[0]}   in {text[:100]!r}")
    assert not wrong, "\n".join(wrong)


def test_options_that_are_named_exist() -> None:
    commands = "".join(p.read_text(encoding="utf-8") for p in [*ROOT.glob("commands/*.py"), ROOT / "cli.py"])
    known = set(OPTION.findall(commands)) | {"--nproc-per-node", "--standalone", "--derive"}  # torchrun's, evidence's
    declared = {f"--{n.replace('_', '-')}" for n in re.findall(r'add_argument\(\s*"--([a-z-]+)"', commands)}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {option}   in {text[:100]!r}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] not in ("commands", "cli.py") and path.name != "figures.py"
        for line, text in texts(path)
        for option in OPTION.findall(text if " " in text else "")
        if option not in known | declared
    ]
    assert not wrong, "\n".join(wrong)


def test_the_audit_can_tell() -> None:
    assert exists("train", ["lr"]) and not exists("train", ["learning_rate"])
    assert exists("teacher", ["checkpoint"]) and not exists("teacher", ["chekpoint"])
    assert [m[0] for m in SETTING.finditer("set train.steps=3, or teacher.strip; see student.json")][:2] == [
        "train.steps", "teacher.strip",
    ]  # fmt: skip
