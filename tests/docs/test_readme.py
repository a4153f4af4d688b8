"""Every Python block of the README and of the docs runs as it stands."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("lightning", "transformers", "onnxruntime")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The page's Python blocks, each with the line it begins at."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, m.start()) + 1}", m[1]) for m in found]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks(page)]


def imported(code: str) -> set[str]:
    """The top-level packages a block imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_every_way_to_use_limbeck_has_an_example() -> None:
    code = "\n".join(code for place, code in BLOCKS if place.startswith(("README", "docs/python.md")))
    for word in ("limbeck.distill(", "limbeck.functional", "Criterion(", "LightningModule", "\nTrainer("):
        assert word in code


@pytest.mark.filterwarnings("ignore:::lightning")  # its advice on loaders and logging is about larger jobs
@pytest.mark.filterwarnings("ignore:::pytorch_lightning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # transformers' Trainer on a CPU
@pytest.mark.parametrize(("place", "code"), BLOCKS, ids=[place for place, _ in BLOCKS])
def test_block_runs(place: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in sorted(imported(code) & set(OPTIONAL)):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, place, "exec", dont_inherit=True), names)
