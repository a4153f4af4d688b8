"""Where a result was measured: the processor, and the commit of a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from limbeck.run import measures


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a package in it that takes the place of ours."""
    package = tmp_path / "src" / "limbeck"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(measures.limbeck, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(measures, "commit", measures.commit.__wrapped__)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_says_whether_the_sources_have_changed_since(checkout: Path) -> None:
    assert measures.commit() == "" and "commit" not in measures.versions()
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    head = git(checkout, "rev-parse", "HEAD")
    assert measures.commit() == head[:12] and measures.versions()["commit"] == head[:12]
    (checkout / "notes.txt").write_text("no source")
    assert measures.commit() == head[:12]
    (checkout / "src" / "limbeck" / "__init__.py").write_text("x = 2\n")
    assert measures.commit() == head[:12] + "+"


def test_an_installed_package_in_somebody_elses_checkout_has_no_commit(checkout: Path) -> None:
    git(checkout, "init", "-q")
    (checkout / "pyproject.toml").unlink()
    assert measures.commit() == ""


def test_the_processor_has_a_name() -> None:
    assert measures.processor().strip()
