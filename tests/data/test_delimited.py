"""CSV by pyarrow and by the csv module: the same cells, and what is odd goes to the one that names it by its line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data import delimited
from limbeck.data.cells import Coded, Rows
from limbeck.data.delimited import read_delimited
from limbeck.errors import DataError

FILES = {
    "plain": "a,b,label\n1,2.5,x\n3,4e2,01\n",
    "no end": "a,b,label\n1,2.5,x\n3,4,NA",
    "crlf": "a,b,label\r\n1,2.5,x\r\n3,4,y\r\n",
    "blank lines": "\n\na,b,label\n1,2,x\n\n3,4,y\n\n",
    "quotes": 'a,"b, c",label\n1,"2","x, ""y""\nz"\n"3",4,"""q"""\n5,6,""\n',
    "line breaks in the header": 'a,"b\nc",label\n1,2,x\n',
    "empty cells": "a,b,label\n1,,x\n,4,\n",
    "late text": "a,b,label\n" + "1,2,x\n" * 5000 + "1,?,x\n",
    "not finite": "a,b,label\n1,inf,x\n2,nan,y\n3,1e400,z\n",
    "identifiers": "a,b,label\n1_0,007,x\n2,008,y\n",
    "other letters": "größe,b,label\n1,é,x\n2,漢字,\u0041\u030a\n",
    "no name": ",b,label\n0,1,x\n1,2,y\n",
    "semicolons": "a;b;label\n1;2,5;x\n3;4,5;y\n",
    "mark": '\ufeff"a",b,label\n1,2,x\n',
    "no rows": "a,b,label\n",
}


def texts(names: Any) -> set[str]:
    return {"label"}


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Rows, Rows]:
    monkeypatch.setattr(delimited, "FAST", 0)
    fast = read_delimited(path, "utf-8", None, texts)
    monkeypatch.setattr(delimited, "FAST", 1 << 40)
    return fast, read_delimited(path, "utf-8", None, texts)


def cells(rows: Rows) -> dict[str, list[Any]]:
    """All cells as text, numbers as numbers."""

    def cell(value: Any) -> Any:
        try:
            return "nan" if float(value) != float(value) else float(value)
        except ValueError:
            return value if value else "nan"  # an empty cell in a column of numbers is none

    return {n: list(column) if n == "label" else [cell(v) for v in column] for n, column in rows.columns.items()}


@pytest.mark.parametrize("name", FILES)
def test_both_read_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_bytes(FILES[name].encode())
    fast, slow = both(tmp_path / "t.csv", monkeypatch)
    assert cells(fast) == cells(slow) and fast.n == slow.n and fast.notes == slow.notes
    assert [fast.where(i) for i in range(fast.n)][-3:] == [slow.where(i) for i in range(slow.n)][-3:]


@pytest.mark.parametrize("seed", range(30))
def test_both_read_the_same_of_made_up_tables(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    rng = random.Random(seed)
    parts = ["1", "2.5", "", "x", '"', ",", "\n", "\r\n", " ", '"a"', '"b,c"', '"d""e"', '"f\ng"', "\t", "é"]
    body = "".join(rng.choice(parts) for _ in range(40))
    (tmp_path / "t.csv").write_bytes(f"a,b,label\n{body}".encode())
    found = []
    for size in (0, 1 << 40):
        monkeypatch.setattr(delimited, "FAST", size)
        try:
            found.append(cells(read_delimited(tmp_path / "t.csv", "utf-8", None, texts, skip=bool(seed % 2))))
        except DataError as error:
            found.append({"error": [str(error)]})
    assert found[0] == found[1]


def test_pyarrow_is_asked_where_it_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    asked = []
    real = delimited._by_pyarrow
    monkeypatch.setattr(delimited, "_by_pyarrow", lambda *a: asked.append(1) or real(*a))
    monkeypatch.setattr(delimited, "FAST", 0)
    for text, expected in ((FILES["quotes"], 1), ('a,label\n1,5" disk\n', 0), ('a,label\n1,"x"y\n', 0), ("a\n1\n", 0)):
        asked.clear()
        (tmp_path / "t.csv").write_text(text)
        try:
            read_delimited(tmp_path / "t.csv", "utf-8", None, texts)
        except DataError:
            assert expected == 0
        assert len(asked) == expected, text


def test_without_pyarrow_numbers_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "FAST", 0)
    monkeypatch.setattr(delimited.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    (tmp_path / "t.csv").write_text(FILES["plain"])
    rows = read_delimited(tmp_path / "t.csv", "utf-8", None, texts)
    assert isinstance(rows.columns["b"], np.ndarray) and isinstance(rows.columns["label"], Coded)
    assert rows.columns["b"].tolist() == [2.5, 400.0] and list(rows.columns["label"]) == ["x", "01"]


def test_rows_of_another_width(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y,z\n3\n4,y\n")
    with pytest.raises(
        DataError, match=r"2 fields, separated by ',', but not line 3 \(3\), line 4 \(1\).*bad_rows=skip"
    ):
        read_delimited(tmp_path / "t.csv", "utf-8", None, texts)
    rows = read_delimited(tmp_path / "t.csv", "utf-8", None, texts, skip=True)
    assert list(rows.columns["label"]) == ["x", "y"] and rows.where(1) == "line 5"
    assert rows.notes == ["2 rows left out without 2 fields: line 3 (3), line 4 (1)"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("größe,label\n1,é\n".encode(encoding))
    rows = read_delimited(tmp_path / "t.csv", encoding, None, texts)
    assert list(rows.columns["label"]) == ["é"] and rows.names == ["größe", "label"]
