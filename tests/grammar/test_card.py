from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from limbeck.errors import ConfigError
from limbeck.grammar import card as cards
from limbeck.grammar.card import Card, catalogue, find_card, find_method, read_card, recipe_path, recipes

LITERAL = """
'''A method.'''
from limbeck.grammar.card import Card

CARD = Card(
    number=7,
    slug="toy-method",
    title="A "
    "Toy",
    year=2024,
    family="toys",
    methods={"toy": "Toy", "toy-two": "ToyTwo"},
    signals=("logits",),
    provenance={"alpha": "paper"},
    recipe="toy",
)
raise RuntimeError("a catalogue imports nothing")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of method files in place of ours."""
    root = tmp_path / "methods"
    (root / "toys").mkdir(parents=True)
    monkeypatch.setattr(cards, "methods_folder", lambda: root)
    return root / "toys"


def write(folder, text=LITERAL, name="toy_method.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_card_is_read_without_running_its_file(folder):
    card = read_card(write(folder))
    assert card.number == 7
    assert card.title == "A Toy"
    assert card.provenance == {"alpha": "paper"}
    assert card.exceptions == {}
    assert card.as_dict()["signals"] == ["logits"]


BROKEN = [
    ('number=7, slug="a"', "number=7", "lacks slug"),
    ("year=2024", "year=2020 + 4", r":10: year is not a literal"),
    ('family="toys"', "family=FAMILY", r":11: family is not a literal"),
    ("number=7", "numbre=7", "no 'numbre'; did you mean 'number'"),
    ("number=7", "**FACTS", r"no \*\* expansion"),
    ("number=7", "7", "keywords only"),
    ("CARD = Card(", "CARD = dict(", "must be a call of Card"),
    ("CARD = Card(", "CARD = (", "is not Python"),
    ("year=2024", "year='2024'", "year must be a whole number"),
    ("number=7", "number=True", "number must be a whole number"),
    ('slug="toy-method"', 'slug="Toy Method"', "slug must be lower-case"),
    ('methods={"toy": "Toy", "toy-two": "ToyTwo"}', "methods={}", "at least one class"),
    ('methods={"toy": "Toy", "toy-two": "ToyTwo"}', 'methods={"Toy!": "Toy"}', "names in methods"),
    ('methods={"toy": "Toy", "toy-two": "ToyTwo"}', 'methods={"toy": 3}', "methods must map"),
    ('signals=("logits",)', 'signals=["logits"]', "signals must be a tuple"),
    ('title="A "\n    "Toy"', "title=''", "title must not be empty"),
    ("provenance={", "notes=3, provenance={", "notes must be text"),
    ('provenance={"alpha": "paper"}', "provenance=[]", "provenance must map texts"),
]


@pytest.mark.parametrize(("old", "new", "problem"), BROKEN, ids=[b[2] for b in BROKEN])
def test_a_wrong_card_is_refused_with_its_file(folder, old, new, problem):
    text = (
        LITERAL.replace('number=7,\n    slug="toy-method"', "number=7")
        if "lacks" in problem
        else LITERAL.replace(old, new)
    )
    assert text != LITERAL
    path = write(folder, text)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_card(path)
    assert caught.value.argument.startswith(str(path))


def test_a_file_without_a_card(folder):
    with pytest.raises(ConfigError, match="has no Card"):
        read_card(write(folder, "x = 1\n"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_card(folder / "missing.py")
    write(folder)
    write(folder, "x = 1\n", "helper.py")
    write(folder, "CARD = 3\n", "_private.py")
    assert [c.slug for c in catalogue()] == ["toy-method"]


def test_methods_are_found_by_name_and_only_the_files_that_may_hold_them_are_parsed(folder):
    write(folder)
    write(folder, "def (", "broken.py")
    module, name, card = find_method("toy-two")
    assert (module, name, card.slug) == ("limbeck.methods.toys.toy_method", "ToyTwo", "toy-method")
    assert find_card("toy-method").card.slug == "toy-method"
    with pytest.raises(ConfigError, match="is not Python"):
        catalogue()


def test_a_changed_file_is_read_again(folder):
    path = write(folder)
    assert read_card(path).number == 7
    write(folder, LITERAL.replace("number=7", "number=123"))
    assert read_card(path).number == 123


def test_unknown_methods_are_answered_with_the_nearest(folder):
    write(folder)
    for wrong in ("toy-tow", "Toy-two", "toy_two"):
        with pytest.raises(ConfigError, match="did you mean 'toy-two'"):
            find_method(wrong)
    for wrong in ("", "../toy", "os.system", "a" * 10_000):
        with pytest.raises(ConfigError, match="known: toy, toy-two"):
            find_method(wrong)


def test_slug_and_file_must_agree_and_names_are_taken_once(folder):
    write(folder, LITERAL, "other.py")
    with pytest.raises(ConfigError, match="'other'"):
        catalogue()
    (folder / "other.py").unlink()
    write(folder)
    write(folder, LITERAL.replace("toy-method", "twin"), "twin.py")
    with pytest.raises(ConfigError, match="method 'toy' is taken"):
        catalogue()


def test_recipes_are_found_by_name_slug_or_explained(folder):
    write(folder)
    (folder / "toy.yaml").write_text("method: toy\n")
    assert recipes() == ["toy"]
    assert recipe_path("toy").name == "toy.yaml"
    assert recipe_path("toy-method").name == "toy.yaml"
    with pytest.raises(ConfigError, match="run toy with method=toy-two"):
        recipe_path("toy-two")
    with pytest.raises(ConfigError, match="did you mean 'toy'"):
        recipe_path("toyy")


def test_installed_packages_offer_methods_by_an_entry_point(folder, tmp_path, monkeypatch):
    package = tmp_path / "site" / "toy_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "toy_method.py").write_text(LITERAL)
    meta = tmp_path / "site" / "toy_package-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[limbeck.methods]\ntoy-method = toy_package.toy_method\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_method("toy")[:2] == ("toy_package.toy_method", "Toy")
    assert [(e.card.slug, e.package) for e in cards.entries()] == [("toy-method", "toy-package")]
    assert "toy_package.toy_method" not in sys.modules
    (meta / "entry_points.txt").write_text("[limbeck.methods]\ngone = toy_package.gone\n")
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"limbeck\.methods: gone"):
        cards.entries()


def test_evidence_is_read_from_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "_evidence_folder", lambda: tmp_path)
    assert cards.evidence() == {}
    known = {"status": "partly", "said": "1 of 2 clauses confirmed, 1 not checked", "comparisons": ["kd/digits"]}
    clause = {"says": "It gains.", "status": "confirmed", "checks": []}
    (tmp_path / "summary.json").write_text(json.dumps({"claims": {"kd": {**known, "clauses": [clause], "beside": []}}}))
    assert cards.evidence() == {"kd": {**known, "clauses": {"It gains.": "confirmed"}}}
    for text in ("{", "[]", '{"claims": {"kd": {}}}'):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(ConfigError, match="is no summary of the evidence"):
            cards.evidence()


def test_cards_are_frozen_values():
    card = Card(number=None, slug="a", title="A", year=2000, family="f", methods={"a": "A"})
    assert replace(card, notes="x") != card
    with pytest.raises(AttributeError):
        card.year = 3  # type: ignore[misc]


def test_our_own_catalogue_is_read_without_torch():
    loaded = "print(*sorted({'torch', 'numpy', 'yaml', 'rich'} & set(sys.modules)))"
    code = f"import sys; from limbeck.grammar.card import catalogue; catalogue(); {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_our_own_cards_are_whole():
    for entry in cards.entries(plugins=False):
        assert entry.card.family == entry.file.parent.name
        assert entry.card.recipe in recipes(), f"{entry.card.slug} names the recipe {entry.card.recipe!r}"
        assert entry.card.claim
        assert entry.card.provenance


def test_a_number_is_optional_and_rows_that_are_excepted_exist(folder):
    assert read_card(write(folder, LITERAL.replace("    number=7,\n", ""))).number is None
    row = 'recipe="toy",\n    exceptions={"at_equalty": "why"},'
    with pytest.raises(
        ConfigError, match=r"toy_method\.py:5.*'at_equalty'; did you mean 'at_equality'\? Rows: accum.*terms"
    ):
        read_card(write(folder, LITERAL.replace('recipe="toy",', row)))


def test_every_row_of_the_battery_is_known():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "test_battery.py").read_text()
    asked = set(re.findall(r'(?:except_for\(name, |exceptions\.get\()"(\w+)"', text))
    assert asked == set(cards.ROWS)


@pytest.mark.parametrize(
    "text",
    [
        LITERAL.replace('title="A "', "title=").replace('"Toy",\n', "", 1),
        LITERAL + "\ndef (",
        "CARD = Card(slug='half')",
    ],
)
def test_a_half_written_file_breaks_its_own_entry_alone(folder, text, capsys):
    from limbeck import cli

    write(folder)
    half = write(folder, text.replace("toy", "half").replace("CARD = Card(\n", "CARD = Card(  # soon\n"), "half.py")
    broken: list = []
    found = cards.entries(plugins=False, broken=broken)
    assert [e.card.slug for e in found if e.card.slug == "toy-method"] == ["toy-method"]
    assert [path for path, _ in broken] == [half]
    assert cards.find_method("toy")[1] == "Toy" and "toy" in cards.method_names()
    with pytest.raises(ConfigError, match=r"half\.py"):
        find_card("half")
    assert cli.main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert "toy toy-two" in shown and "cannot be read" in shown
    assert cli.main(["methods", "--json"]) == 0
    told = {m["slug"]: m for m in json.loads(capsys.readouterr().out)}
    assert "half.py" in told["half"]["error"] and "error" not in told["toy-method"]
