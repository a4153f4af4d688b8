"""Which files stand behind import:, and that every one of them counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from limbeck.storage.usercode import user_code


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**files: str) -> None:
    for name, text in files.items():
        place = Path(name.replace("__in__", "/") + ".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def names(name: str) -> list[str]:
    return [f.relative_to(Path.cwd()).as_posix() for f in user_code(name).files]


def test_a_module_and_what_it_imports_of_the_users_own() -> None:
    write(mynet="import layers, torch\ndef net():\n    from deep.inner import x\n", layers="import json", other="")
    write(deep__in____init__="", deep__in__inner="", deep__in__unused="")
    assert names("mynet:net") == ["deep/__init__.py", "deep/inner.py", "deep/unused.py", "layers.py", "mynet.py"]


def test_nothing_is_run() -> None:
    write(loud="raise SystemExit('was run')", pack__in____init__="raise SystemExit('was run')", pack__in__mod="")
    assert user_code("loud:f").found and names("pack.mod:f") == ["pack/__init__.py", "pack/mod.py"]
    assert "loud" not in sys.modules and "pack" not in sys.modules


@pytest.mark.parametrize("changed", ["mynet", "layers", "pack__in____init__", "pack__in__part"])
def test_every_file_counts(changed: str) -> None:
    write(mynet="import layers\nimport pack.part", layers="", pack__in____init__="", pack__in__part="", stranger="")
    before = user_code("mynet:net").fingerprint
    write(stranger="changed = 1")
    assert user_code("mynet:net").fingerprint == before
    write(**{changed: "import layers, pack\nchanged = 1"})
    assert user_code("mynet:net").fingerprint != before


def test_the_place_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(mynet="import layers", layers="")
    before = user_code("mynet:net").fingerprint
    (tmp_path / "sub").mkdir()
    for name in ("mynet.py", "layers.py"):
        (tmp_path / name).rename(tmp_path / "sub" / name)
    monkeypatch.chdir(tmp_path / "sub")
    assert user_code("mynet:net").fingerprint == before != ""


def test_a_package_that_is_divided_counts_whole() -> None:
    write(space__in__one="", space__in__two="")  # no __init__: a namespace
    assert names("space.one:f") == ["space/one.py", "space/two.py"]


@pytest.mark.parametrize("name", ["os:system", "math:sqrt", "torch.nn:Linear", "limbeck.networks:FeatureNet"])
def test_installed_code_is_a_name(name: str) -> None:
    code = user_code(name)
    assert code.found and code.files == () and code.fingerprint
    assert user_code("json:loads").fingerprint != code.fingerprint


@pytest.mark.parametrize("name", ["nowhere:f", "", ":", "a b:c", "../x:y", ".x:y", "\0:f", "é\n:f"])
def test_what_is_not_there(name: str) -> None:
    code = user_code(name)
    assert not code.found and code.fingerprint == "" and code.files == ()


def test_code_that_cannot_be_parsed_is_still_hashed() -> None:
    write(broken="def (")
    before = user_code("broken:f")
    write(broken="def ((")
    assert before.found and user_code("broken:f").fingerprint != before.fingerprint
