"""Nothing in the package can execute what it reads: proved on the source, file by file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "limbeck"
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN = {
    ("pickle", "load"), ("pickle", "loads"), ("pickle", "dump"), ("pickle", "dumps"), ("pickle", "Unpickler"),
    ("yaml", "load"), ("yaml", "load_all"), ("yaml", "unsafe_load"), ("yaml", "full_load"),
    ("os", "system"), ("os", "popen"), ("torch", "save"), ("jit", "load"), ("joblib", "load"),
}  # fmt: skip


def offences(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            found += [f"{node.lineno}: import {n}" for n in names if n in ("dill", "cloudpickle", "joblib", "marshal")]
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        match node.func:
            case ast.Name(id=name) if name in FORBIDDEN_CALLS:
                found.append(f"{node.lineno}: {name}()")
            case ast.Attribute(value=ast.Name(id=module) | ast.Attribute(attr=module), attr=name):
                if (module, name) in FORBIDDEN:
                    found.append(f"{node.lineno}: {module}.{name}()")
                if (module, name) == ("torch", "load") and given.get("weights_only") is not True:
                    found.append(f"{node.lineno}: torch.load() without weights_only=True")
                if module in ("np", "numpy") and name == "load" and given.get("allow_pickle") is True:
                    found.append(f"{node.lineno}: numpy.load() of pickles")
        for option in ("trust_remote_code", "shell"):
            if given.get(option) is True:
                found.append(f"{node.lineno}: {option}=True")
    return found


def test_the_files_are_found() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_nothing_that_executes_what_it_reads(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "pickle.loads(b)",
        "yaml.load(f, Loader=L)",
        "torch.save(x, f)",
        "torch.jit.load(f)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "import cloudpickle",
        "from joblib import load",
    ],
)
def test_the_check_would_notice(text: str) -> None:
    assert offences(text)


@pytest.mark.parametrize(
    "text", ["torch.load(f, weights_only=True)", "np.load(f)", "re.compile(x)", "model.eval()", "yaml.safe_load(f)"]
)
def test_the_check_lets_the_rest_pass(text: str) -> None:
    assert not offences(text)


def loaders(text: str) -> list[str]:
    """Calls that make a library's class by what a folder says, and do not tell it to leave the folder's code alone."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr != "from_pretrained" or "Auto" not in ast.unparse(node.func.value):
            continue
        given = [k.arg or ast.unparse(k.value) for k in node.keywords]
        if not any("trust_remote_code" in g or "options" in g for g in given):
            found.append(f"{node.lineno}: {ast.unparse(node.func)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_libraries_are_told_to_run_no_code(path: Path) -> None:
    """Not told, transformers asks on the terminal whether it may."""
    assert loaders(path.read_text(encoding="utf-8")) == []


def test_a_loader_that_is_not_told_would_be_noticed() -> None:
    assert loaders("transformers.AutoConfig.from_pretrained(place)")
    assert not loaders("transformers.AutoConfig.from_pretrained(place, **self._options())")
    assert not loaders("transformers.AutoModel.from_pretrained(place, trust_remote_code=False)")
