"""Generated pages are what they would be made to, and the site holds together."""

from __future__ import annotations

import re
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
        assert set(kinds) <= set(build.PARTS), page
        assert len(kinds) == len(re.findall(r"^<!-- /(\w+) -->$", text, re.MULTILINE)), page


def test_the_site_has_no_dead_links_and_asks_for_nothing_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("markdown_it")
    build.site(tmp_path)
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) == len(build.PAGES) + 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "<!-- " not in text
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if not link.startswith(("https://", "#")):
                name, _, anchor = link.partition("#")
                assert (tmp_path / name).is_file(), f"{page.name}: {link}"
                if anchor:
                    assert f'id="{anchor}"' in (tmp_path / name).read_text(encoding="utf-8"), f"{page.name}: {link}"


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (build.ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (build.ROOT / link).exists(), link
