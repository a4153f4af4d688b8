"""Tables read with all their columns: files, tables of scikit-learn, a DataFrame; images and labels are other readers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limbeck.data.tables import FrameTable, Parquet, ScikitTable, Table
from limbeck.errors import DataError


def test_a_file_a_test_file_and_a_split_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,job,income\n30,cook,0\n41.5,,1\n")
    (tmp_path / "b.csv").write_text("age,job,income\n22,smith,0\n")
    found = Table(str(tmp_path / "a.csv"), test=str(tmp_path / "b.csv")).table()
    assert list(found.columns) == ["age", "job", "income"] and found.splits.tolist() == ["train", "train", "test"]
    assert found.columns["job"][2] == "smith" and found.place(2) == "b.csv line 2"
    (tmp_path / "c.csv").write_text("a,split\n1,train\n2,test\n")
    found = Table(str(tmp_path / "c.csv")).table()
    assert list(found.columns) == ["a"] and found.splits.tolist() == ["train", "test"]


def test_scikit_learn_tables_are_read_both_ways() -> None:
    source = ScikitTable("wine", halves="alcohol")
    found = source.table()
    assert len(found.columns) == 14 and set(found.columns["alcohol"]) == {"above", "below"}
    assert "stand-in" in " ".join(found.notes)
    rows = ScikitTable("breast-cancer").read()
    assert rows.train.shape == (30,) and rows.labels == ["benign", "malignant"]
    with pytest.raises(DataError, match="alcohol"):
        ScikitTable("wine", halves="alcohl").table()


def test_a_data_frame_and_its_parquet_file_hold_the_same(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"n": [1.5, np.nan, 3.0], "t": ["a", None, "b"], "flag": [True, False, True]}, index=[7, 8, 9])
    made = FrameTable(frame, test=frame).table()
    assert made.splits.tolist() == ["train"] * 3 + ["test"] * 3 and list(made.columns["t"][:3]) == ["a", None, "b"]
    assert made.place(4) == "test frame row 8"
    frame.to_parquet(tmp_path / "f.parquet", index=False)
    again = Parquet(str(tmp_path / "f.parquet")).table()
    assert list(again.columns["t"]) == ["a", None, "b"] and np.isnan(again.columns["n"][1])
    with pytest.raises(DataError, match="several columns called flag, n"):
        FrameTable(pd.concat([frame, frame], axis=1)).table()
