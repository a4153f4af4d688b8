"""Labels and numbers as tables have them: what is recognised, what is said of it, and what is refused because it may be two things."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.cells import Coded, coded, decimal_comma, joined_cells, numbers_of, taken, thousands_comma
from limbeck.data.columns import BadRows, read_features
from limbeck.data.targets import likely_separator, read_targets
from limbeck.errors import DataError


def targets(cells: Any, asked: Any = "auto", **more: Any) -> tuple[list[Any], list[str], str, list[str]]:
    notes: list[str] = []
    y, labels, kind = read_targets({"kind": cells}, asked, "line {}".format, notes=notes, **more)
    return y.tolist(), labels, kind, notes


def features(columns: dict[str, Any], asked: list[str] | None = None, **more: Any) -> tuple[list[Any], list[str]]:
    n = len(next(iter(columns.values())))
    x, _, notes = read_features(columns, asked, np.ones(n, bool), "line {}".format, **more)
    return x.tolist(), notes


# --------------------------------------------------------------------------------------------------------------- cells
def test_cells_are_held_in_three_ways_and_read_the_same() -> None:
    texts = ["3", "x", "3", "", "2e39", "1_0"]
    for cells in (texts, coded(texts)):
        found = numbers_of(cells)
        assert found[[0, 2]].tolist() == [3.0, 3.0] and np.isnan(found[[1, 3, 4, 5]]).all()
    assert np.isnan(numbers_of(np.array([1.0, np.inf, -4e38]))[1:]).all()
    one, two = coded(["b", "a", "b"]), coded(["c", "a"])
    together = joined_cells([one, two])
    assert isinstance(together, Coded) and list(together) == ["b", "a", "b", "c", "a"] and len(together.values) == 3
    left = taken(together, np.array([1, 3]))
    assert isinstance(left, Coded) and list(left) == ["a", "c"] and sorted(left.values) == ["a", "c"]
    assert joined_cells([np.array([1.0]), np.array([2.0])]).tolist() == [1.0, 2.0]  # type: ignore[union-attr]
    assert list(joined_cells([["a"], coded(["b"])])) == ["a", "b"]
    assert [*map(type, coded([1, True, 1.0]).values)] == [int, bool, float]


# -------------------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    ("cells", "asked", "labels", "kind"),
    [
        (["1.0", "2.0"], "label", ["1", "2"], "label"),
        (["1.0", "1", "2"], "label", ["1", "2"], "label"),  # one program writes 1, the next one 1.0
        (["01", "1", "2"], "auto", ["01", "1", "2"], "label"),
        ([0, 1, 0], "auto", ["0", "1"], "label"),
        ([0, 1, 0], "labels", ["kind"], "labels"),
        ([True, False], "labels", ["kind"], "labels"),
        (["no", "yes"], "auto", ["no", "yes"], "label"),
        (["A\u030angelholm", "\u00c5ngelholm", "Malm\u00f6"], "auto", ["Malmö", "Ångelholm"], "label"),
        (["cat\u200b", " cat", "dog"], "auto", ["cat", "dog"], "label"),
        ([0.5, 1.0, 0.5], "auto", ["kind"], "number"),
        ([1.0, 2.0], "number", ["kind"], "number"),
        ([-1, 1], "label", ["-1", "1"], "label"),
        (["3,5", "2,25"], "auto", ["kind"], "number"),
        ([[1, 0, 0], [0, 1, 0]], "auto", ["kind[0]", "kind[1]", "kind[2]"], "label"),
        ([[1, 0, 1], [0, 1, 0]], "auto", ["kind[0]", "kind[1]", "kind[2]"], "labels"),
        ([[0, 2], [1]], "auto", ["0", "1", "2"], "labels"),
    ],
)
def test_labels_that_are_recognised(cells: list[Any], asked: str, labels: list[str], kind: str) -> None:
    assert targets(cells, asked)[1:3] == (labels, kind)


def test_one_column_of_yes_and_no_has_one_output() -> None:
    assert targets(["1", "0", "true"], "labels")[0] == [[1.0], [0.0], [1.0]]


def test_one_hot_columns_are_one_class_a_row_and_it_is_said() -> None:
    notes: list[str] = []
    columns = {"ant": [1, 0, 0], "bee": [0, 0, 1], "cow": [0, 1, 0]}
    y, labels, kind = read_targets(columns, "auto", str, notes=notes)
    assert (y.tolist(), labels, kind) == ([0, 2, 1], ["ant", "bee", "cow"], "label") and "task.target=labels" in notes[
        0
    ]
    assert read_targets(columns, "labels", str)[2] == "labels"
    assert read_targets(columns | {"cow": [0, 1, 1]}, "auto", str)[2] == "labels"
    with pytest.raises(DataError, match="exactly one 1"):
        read_targets(columns | {"cow": [0, 1, 1]}, "label", str)


def test_what_was_decided_is_said() -> None:
    assert targets([1.5, 2.0])[3] == [
        "the target kind is a number from 1.5 to 2 (regression); for classes set task.target=label"
    ]
    assert targets(list(range(150)))[2] == "number" and "regression" in targets(list(range(150)))[3][0]
    assert "NA, None" in targets(["NA", "None", "cat"])[3][0]
    assert targets(["cat", "dog"])[3] == []
    assert targets(["A\u030a", "\u00c5", " b", "b"])[3] == [
        "written in several ways (Unicode forms, blanks) and taken as one: Å"
    ]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([0.0, 1.0, 2.0], r"stored as fractions \(0\.0, 1\.0, 2\.0\).*task\.target=label.*task\.target=number"),
        (["0.0", "1.0"], r"task\.target=label.*task\.target=number"),
        ([1.0, None, 2.0], r"task\.target=label"),
        ([0, 1, -1], r"negative labels: -1 at line 2.*bad_rows=skip"),
        ([-2, -1, 0], r"negative labels: -2, -1.*task\.target=label"),
        (["a", "", "b"], r"empty at line 1"),
        (["a", "\u200b", "b"], r"empty at line 1"),
        (["a", None, float("nan")], r"empty at line 1, line 2"),
        ([["a", None], ["b"]], r"empty entries at line 0"),
        (["rain", "wind", "rain|wind"], r"'rain\|wind'.*separator.*\|.*task\.target=label"),
        (["red", "", "red;blue", "blue"], r"'red;blue' \(first at line 2\).*task\.data\.separator=';'"),
        (['["a", "b"]', '["a"]'], r"look like several labels"),
        (["1,2", "1", "2"], r"separator=.*task\.data\.decimal=','"),
    ],
)
def test_labels_that_may_be_two_things_are_refused(cells: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        targets(cells)


def test_only_what_stands_for_unknown_may_be_left_out() -> None:
    with pytest.raises(BadRows) as unknown:
        targets([0, -1, 1, -1])
    assert unknown.value.rows == [1, 3]
    with pytest.raises(BadRows) as scale:
        targets([-2, -1, 0, 1])
    assert scale.value.rows == [] and "bad_rows" not in str(scale.value)
    with pytest.raises(BadRows) as named:
        targets([0, -1, 1], known=["a", "b"])
    assert named.value.rows == [1]


@pytest.mark.parametrize(
    ("texts", "separator"),
    [
        (["rain", "wind", "rain|wind"], "|"),
        (["a;b", "b;c"], ";"),
        (["a,b", "b,c", "c,a"], ","),
        (["clear", "haze", "clear haze", "haze clear"], " "),
        (["salt/pepper", "salt", "pepper"], "/"),
        (["New York, NY", "Albany, NY", "Salem, OR"], None),
        (["polar bear", "brown bear", "polar fox", "bear"], None),
        (["AC/DC", "rock"], None),
        (["x|y", "z"], None),
        (["cat", "dog"], None),
        ([], None),
    ],
)
def test_separators(texts: list[str], separator: str | None) -> None:
    assert likely_separator(texts) == separator


# ------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("text", "comma", "thousands"),
    [
        ("3,14", 3.14, None),
        ("-0,5", -0.5, None),
        (",5", 0.5, None),
        ("1.234,5", 1234.5, None),
        ("1 234,5", 1234.5, None),
        ("1\u202f234\u202f567", 1234567.0, None),
        ("1,234", 1.234, 1234.0),
        ("0,123", 0.123, None),
        ("1,234,567.8", None, 1234567.8),
        ("12,34,56", None, None),
        ("12", 12.0, None),
        ("1.5", None, None),
        ("a,b", None, None),
    ],
)
def test_commas_in_numbers(text: str, comma: float | None, thousands: float | None) -> None:
    assert (decimal_comma(text), thousands_comma(text)) == (comma, thousands)


def test_columns_with_commas() -> None:
    x, notes = features({"height": ["2,5", "3", "10,75"], "price": ["1,234.5", "999", "12,000"]})
    assert x == [[2.5, 1234.5], [3.0, 999.0], [10.75, 12000.0]]
    assert "height: the comma is read as the decimal sign (2,5 is 2.5)" in notes[1] and "thousands" in notes[2]
    with pytest.raises(DataError, match=r"'n'.*two ways: 1,234, 5,678.*decimal=','.*decimal='\.'"):
        features({"n": ["1,234", "5,678", "9"]})
    assert [round(row[0], 3) for row in features({"n": ["1,234", "5,678", "9"]}, decimal=",")[0]] == [1.234, 5.678, 9.0]
    assert features({"n": ["1,234", "5,678", "9"]}, decimal=".")[0] == [[1234.0], [5678.0], [9.0]]
    with pytest.raises(BadRows, match=r"line 1 \(\?\)"):
        features({"height": ["2,5", "?", "3,5"]})


def test_bad_cells_of_all_columns_are_named_at_once() -> None:
    columns = {"p": ["1", "inf", "4e38", "2", "3"], "w": ["1", "2", "", "4", "x"], "v": np.array([1, 2, 3, 4, np.nan])}
    with pytest.raises(BadRows) as error:
        features(columns)
    said = str(error.value)
    assert "'p' has no finite number at line 1 (inf), line 2 (4e38)" in said
    assert "'w' has no finite number at line 2 (empty), line 4 (x)" in said and "'v'" in said
    assert error.value.rows == [1, 2, 4] and "bad_rows=skip" in said


def test_columns_that_are_no_input_say_why() -> None:
    n = 10
    columns = {
        "size": [i * i for i in range(n)],
        "note": [f"seen {i}" for i in range(n)],
        "sparse": ["1", "2", *[""] * 8],
        "void": [None] * n,
        "box": [{"x": 1}] * n,
    }
    x, notes = features(columns)
    assert len(x[0]) == 1
    assert notes[1].startswith(
        "columns not used: note (no numbers, such as 'seen 0'), sparse (8 of 10 cells are empty), void"
    )


def test_a_column_that_counts_the_rows_is_told() -> None:
    columns = {"id": list(range(100, 112)), "size": [i * i for i in range(12)]}
    assert features(columns)[1][1] == "id counts the rows and is an input; task.data.features=[...] leaves it out"
    assert len(features(columns, ["id", "size"])[1]) == 1 == len(features({"id": [1, 2, 3]})[1])


def test_a_text_column_of_many_values_is_no_category() -> None:
    with pytest.raises(DataError, match="30 different values in 30 training rows"):
        features({"words": [f"word {i}" for i in range(30)]}, ["words"])
    x, _ = features({"colour": ["red", "blue", "red"]}, ["colour"])
    assert x == [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


def test_inputs_are_held_once_in_the_precision_of_models() -> None:
    x, names, _ = read_features({"a": np.arange(3.0), "b": [[1, 2]] * 3}, None, np.ones(3, bool), str)
    assert x.dtype == torch.float32 and names == ["a", "b[0]", "b[1]"] and x.tolist()[2] == [2.0, 1.0, 2.0]
