from __future__ import annotations

import doctest
import math
from pathlib import Path

import pytest
import yaml

from limbeck.errors import ConfigError
from limbeck.recipe import hints, scalars, values
from limbeck.recipe.scalars import scalar
from limbeck.recipe.values import read_value, read_yaml, read_yaml_file, write_yaml


@pytest.mark.parametrize("module", [values, scalars, hints], ids=lambda m: m.__name__)
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("+3", 3),
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("007", "007"),  # an identifier, not seven
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),  # YAML 1.1 makes 90 of it
        ("no", "no"),  # YAML 1.1 makes false of it
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("null", None),
        ("~", None),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("1e999", "1e999"),  # no float holds it
        ("9" * 400, "9" * 400),
        ("٣", "٣"),  # digits of other scripts are text
        ("1e", "1e"),
    ],
)
def test_bare_words(text, value):
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


REFUSED = [
    ("a: 1\na: 2", "given twice"),
    ("a: {b: 1, b: 2}", "given twice"),
    ("a: &x 1\nb: 2", "anchors"),
    ("a: &x [1]\nb: *x", "anchors"),
    ("a: *x", "aliases"),
    ("a: &x [*x]", "anchors"),
    ("a: !!binary aGk=", "tags"),
    ("a: !!set {1, 2}", "tags"),
    ("a: !!python/object/apply:os.system ['true']", "tags"),
    ("!x {a: 1}", "tags"),
    ("a: 1\n---\nb: 2", "several documents"),
    ("? [1, 2]\n: 3", "a key must be text"),
    ("[" * 3000 + "]" * 3000, "nest"),
    ("{a: " * 3000, "nest"),
    ("a: [1, 2", "not valid YAML"),
    ("a: 'x", "not valid YAML"),
    ("a:\n\t- b", "not valid YAML"),
    ("a: \x07", "not valid YAML"),
    ("a: \ud800", "UTF-8"),
    ("a" * (1 << 21), "characters long"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_recipe_may_not_hold(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        read_yaml(text, "r.yaml")
    assert caught.value.argument.startswith("r.yaml")
    assert "\n" not in caught.value.line()


def test_a_refusal_names_line_and_column():
    with pytest.raises(ConfigError, match=r"r\.yaml:3:3: the key 'lr' is given twice"):
        read_yaml("train:\n  lr: 1\n  lr: 2\n", "r.yaml")


def test_files_are_read_as_text_with_or_without_a_mark(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: \xc3\xa9")
    assert read_yaml_file(tmp_path / "a.yaml") == {"a": "é"}
    (tmp_path / "b.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_yaml_file(tmp_path / "b.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml_file(tmp_path)


AWKWARD = [
    *("", " ", " a ", "no", "yes", "~", "null", "3", "007", "1e-3", "1:30", "0x1F", "1_000", "2024-01-01", ".5", "1."),
    *("x: y", "# a", "-", "- a", "?", "@a", "*x", "&x", "!t", "=", "<<", "[", "{", "'", '"', "'\"", "%", "|", ">", "`"),
    *("a\nb", "\t", "\x85", "\u2028", "\x00x", "\x07", "é", "😀", "\ufeff", "a " * 300, "nan", ".nan", "inf"),
]


@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_texts_survive_writing_and_reading_and_other_readers_agree(text):
    tree = {"k": text, "list": [text], "in": {"deep": [{"x": text}]}}
    written = write_yaml(tree)
    assert read_yaml(written, "x") == tree
    assert yaml.safe_load(written) == tree


@pytest.mark.parametrize(
    "value", [1e-5, 1e22, 0.1, math.inf, -math.inf, 1e16, -0.0, 123456789.125, -5, 10**50, True, None, [], {}]
)
def test_numbers_survive_writing_and_reading_bit_for_bit(value):
    written = write_yaml({"k": value})
    assert repr(read_yaml(written, "x")["k"]) == repr(value)
    assert repr(yaml.safe_load(written)["k"]) == repr(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("folder:/data/my birds", "folder:/data/my birds"),
        (" 3 ", 3),
        ("*.txt", "*.txt"),
        ("a: b # c", "a: b # c"),
        ("[1, no, 1e-3]", [1, "no", 0.001]),
        ("{use: nkd, gamma: 2}", {"use": "nkd", "gamma": 2}),
        ('"3"', "3"),
        ("'null'", "null"),
    ],
)
def test_the_value_of_an_override(text, value):
    assert read_value(text, "k") == value


def test_brackets_that_do_not_close():
    with pytest.raises(ConfigError, match=r"^k:\d+:\d+: not valid YAML"):
        read_value("[1, 2", "k")


@pytest.mark.parametrize(
    "text", ["[best].pt", "[a][b]", "[old] x/b.csv", "{a}b", "~draft", "~/x", '"a" b', "'a' or 'b"]
)
def test_a_word_that_begins_like_yaml_is_itself(text: str) -> None:
    assert read_value(text, "key") == text


@pytest.mark.parametrize(
    ("text", "value"), [("[[1], 2]", [[1], 2]), ("'it''s'", "it's"), ("{a: [1]}", {"a": [1]}), ("~", None)]
)
def test_what_closes_at_its_end_is_yaml(text: str, value: object) -> None:
    assert read_value(text, "key") == value


def test_a_file_whose_name_begins_with_a_tilde_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.storage.disk import expanded

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "~backup.csv").touch()
    assert expanded("~backup.csv") == Path("~backup.csv")
    assert expanded("~/birds") == tmp_path / "home" / "birds"
    assert expanded("a/~b") == Path("a/~b")
