"""Generated pages are what they would be made to, and the site holds together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from docs import build
from limbeck.grammar import card as cards
from limbeck.grammar.card import catalogue


def test_no_page_is_stale() -> None:
    assert build.main(["--check"]) == 0, "make docs"


def test_a_stale_page_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(build.PARTS, "methods", lambda: "another table")
    assert build.main(["--check"]) == 1
    assert "README.md is stale" in capsys.readouterr().err


def test_an_installed_limbeck_knows_of_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cards.evidence()
    monkeypatch.setattr(cards, "_evidence_folder", lambda: None)
    assert cards.evidence() == here


def test_every_card_stands_in_the_readme_and_in_the_gallery() -> None:
    readme, gallery = ((build.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/methods.md"))
    for card in catalogue():
        assert card.title in readme and card.title in gallery
        assert card.claim in gallery
        assert all(f"`{name}`" in readme for name in card.methods)


def test_every_marked_part_is_made() -> None:
    for page in build.pages():
        text = page.read_text(encoding="utf-8")
        kinds = re.findall(r"^<!-- (\w+)", text, re.MULTILINE)
        kinds = [kind for kind in kinds if kind != "api"]  # which Sphinx makes
        assert set(kinds) <= set(build.PARTS), page
        assert len(kinds) == len(re.findall(r"^<!-- /(\w+) -->$", text, re.MULTILINE)), page


@pytest.mark.expensive
@pytest.mark.filterwarnings("default")  # Sphinx's own and its extensions'; what they say of our pages fails the build
def test_the_site_holds_together(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_nb")
    from sphinx.util.inventory import InventoryFile

    # every warning fails the build: dead links, pages in no menu, docstrings that cannot be read. The notebook has a test
    # of its own
    assert build.site(tmp_path, "nb_execution_mode=off") == 0
    assert (tmp_path / "search.html").is_file() and (tmp_path / "searchindex.js").is_file()
    for page in build.DOCS.rglob("*.md"):
        text = (tmp_path / page.relative_to(build.DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert not re.search(r'(?:src=|<link [^>]*href=)"https?:', text), f"{page.name} loads something from elsewhere"
        if page.stem != "index" or page.parent != build.DOCS:
            assert 'class="prev-page"' in text, f"{page.name} has no way back"
    with (tmp_path / "objects.inv").open("rb") as file:
        objects = InventoryFile.load(file, "", lambda base, name: name)
    described = {name for kind, names in objects.items() if kind.startswith("py:") for name in names}
    public = json.loads((build.ROOT / "tests" / "api_surface.json").read_text(encoding="utf-8"))
    for module, names in public.items():
        for name in names:
            if module.startswith("limbeck") and name not in ("__version__", *public["limbeck"]):
                assert f"{module}.{name}" in described, f"the reference lacks {module}.{name}"
    assert {"limbeck.distill", "limbeck.load", "limbeck.Criterion"} <= described


@pytest.mark.expensive
def test_a_wheel_installs_and_starts(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")

    def run(*words: str | Path) -> str:
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, build.ROOT)
    (wheel,) = tmp_path.glob("limbeck-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "fresh")
    run(tmp_path / "fresh" / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    assert "usage: limbeck COMMAND" in run(tmp_path / "fresh" / "bin" / "limbeck", "--help")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {"limbeck/methods/classification/kd.yaml", "limbeck/evidence.json", "limbeck/py.typed"} <= set(inside)
    assert not [name for name in inside if name.startswith(("tests", "docs"))]


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (build.ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (build.ROOT / link).exists(), link
