"""CSV, JSON lines and parquet as people write them, with what is wrong named by its line."""

from __future__ import annotations

import json
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.items import Splits
from limbeck.data.tables import HuggingFaceSet, Jsonl, Parquet, Table
from limbeck.errors import DataError
from tests.data.picture_files import encode, noise


def table(tmp_path: Path, text: str | bytes, name: str = "t.csv", target: Any = "auto", **settings: Any) -> Splits:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    kind = {".jsonl": Jsonl, ".json": Jsonl}.get(path.suffix, Table)
    return kind(str(path), **settings).read(target)


def labels_of(found: Splits) -> list[str]:
    return [found.labels[i] for i in found.train.y.tolist()]


# ------------------------------------------------------------------------------------------------------------- csv
def test_quotes_line_breaks_and_blank_lines(tmp_path: Path) -> None:
    text = 'a,label,b\r\n1,"x, ""y""\nz",2\r\n\r\n3,plain,4\r\n   \r\n'
    found = table(tmp_path, text)
    assert labels_of(found) == ['x, "y"\nz', "plain"]
    assert found.train.fetch(torch.arange(2))["x"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_na_is_a_label_and_an_empty_cell_is_none(tmp_path: Path) -> None:
    found = table(tmp_path, "x,label\n1,NA\n2,DE\n3,null\n4,nan\n5,None\n")
    assert labels_of(found) == ["NA", "DE", "null", "nan", "None"]
    with pytest.raises(DataError, match=r"'label' is empty at line 3, line 5"):
        table(tmp_path, "x,label\n1,NA\n2,\n3,DE\n4,  \n")


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-8"])
def test_byte_order_marks(tmp_path: Path, mark: str) -> None:
    found = table(tmp_path, "größe,label\n1,é\n2,漢字\n".encode(mark))
    assert labels_of(found) == ["é", "漢字"] and "größe" in found.notes[0]


def test_other_encodings_are_named_by_line(tmp_path: Path) -> None:
    raw = "x,label\n1,a\n2,é\n".encode("latin-1")
    with pytest.raises(DataError, match=r"line 3.*data\.encoding"):
        table(tmp_path, raw)
    assert labels_of(table(tmp_path, raw, encoding="latin-1")) == ["a", "é"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "x\tlabel\n1\ta,b\n2\tc\n"),
        ("t.csv", "x;label\n1;a,b\n2;c\n"),
        ("t.txt", "x|label\n1|a,b\n2|c\n"),
        ("t.csv", 'x,"label"\n1,"a,b"\n2,c\n'),
    ],
)
def test_delimiters(tmp_path: Path, name: str, text: str) -> None:
    assert labels_of(table(tmp_path, text, name)) == ["a,b", "c"]


def test_whole_numbers_are_classes_and_fractions_are_numbers(tmp_path: Path) -> None:
    found = table(tmp_path, "x,label\n1,10\n2,9\n3,10\n")
    assert found.labels == ["9", "10"] and found.kind == "label"
    found = table(tmp_path, "x,label\n1,1.5\n2,9\n3,10\n")
    assert found.kind == "number" and found.train.y.tolist() == [[1.5], [9.0], [10.0]]
    assert table(tmp_path, "x,label\n1,1.5\n2,9\n3,1e3\n", target="label").labels == ["1.5", "1e3", "9"]
    assert table(tmp_path, "x,label\n1,1\n2,9\n", target="number").kind == "number"
    with pytest.raises(DataError, match=r"no finite number at line 3 \(nine\)"):
        table(tmp_path, "x,label\n1,1\n2,nine\n", target="number")


def test_several_labels_in_a_cell_or_in_columns(tmp_path: Path) -> None:
    found = table(tmp_path, "x,label\n1,red; big\n2,\n3,big\n", delimiter=",", separator=";")
    assert found.kind == "labels" and found.labels == ["big", "red"]
    assert found.train.y.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    found = table(tmp_path, "x,big,red\n1,1,0\n2,0,0\n", label=["big", "red"])
    assert found.kind == "labels" and found.train.y.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    found = table(tmp_path, "x,u,v\n1,1.5,0\n2,0,0\n", label=["u", "v"])
    assert found.kind == "number" and found.labels == ["u", "v"]


def test_splits_by_column_by_file_and_by_folder(tmp_path: Path) -> None:
    found = table(tmp_path, "x,label,split\n1,a,train\n2,b,train\n3,c,dev\n4,b,TEST\n")
    assert found.labels == ["a", "b", "c"] and found.train.y.tolist() == [0, 1]
    assert found.valid is not None and found.valid.y.tolist() == [2]
    assert found.test is not None and found.test.y.tolist() == [1]
    with pytest.raises(DataError, match=r"line 3 \(later\)"):
        table(tmp_path, "x,label,part\n1,a,train\n2,b,later\n", split="part")
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in (("train-1", "1,b\n"), ("train-2", "2,d\n"), ("test", "9,c\n")):
        (folder / f"{name}.csv").write_text("x,label\n" + rows)
    found = Table(str(folder)).read()
    assert found.labels == ["b", "c", "d"] and found.train.y.tolist() == [0, 2]
    (folder / "test.csv").write_text("y,label\n1,c\n")
    with pytest.raises(DataError, match="lacks the columns x"):
        Table(str(folder)).read()
    found = Table(str(folder / "train-1.csv"), test=str(folder / "train-2.csv")).read()
    assert found.test is not None and found.labels == ["b", "d"] and found.test.y.tolist() == [1]
    (folder / "other_train.csv").write_text("x,label\n1,c\n")
    with pytest.raises(DataError, match="several tables"):
        Table(str(folder)).read()


def test_features(tmp_path: Path) -> None:
    text = "id,size,colour,label\n7,1.5,red,a\n8,2e1,blue,b\n9,3,red,a\n"
    found = table(tmp_path, text)
    assert found.train.shape == (2,) and "colour" in found.notes[1]
    found = table(tmp_path, text, features=["colour", "size"])
    assert found.train.fetch(torch.arange(3))["x"].tolist() == [[0.0, 1.0, 1.5], [1.0, 0.0, 20.0], [0.0, 1.0, 3.0]]
    assert found.notes == ["inputs: colour=blue, colour=red, size"]
    with pytest.raises(DataError, match=r"'size' has no finite number at line 3 \(\?\).*data\.features"):
        table(tmp_path, text.replace("2e1", "?"))
    with pytest.raises(DataError, match=r"did you mean 'colour'"):
        table(tmp_path, text, features=["color"])
    with pytest.raises(DataError, match="no column holds numbers"):
        table(tmp_path, "word,label\na,b\nc,d\n")


def test_a_value_that_only_the_test_rows_have_is_no_column(tmp_path: Path) -> None:
    text = "colour,label,split\nred,a,train\nblue,b,train\npink,a,test\n"
    found = table(tmp_path, text, features=["colour"])
    assert found.train.shape == (2,) and found.test is not None
    assert found.test.fetch(torch.tensor([0]))["x"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("x,label\n", "no rows"),
        ("x,label\n1,a\n2,b,c\n3\n", r"line 3 \(3\), line 4 \(1\)"),
        ('x,label\n1,"a\n', "line 2"),
        ("x,x,label\n1,2,a\n", "same name: x"),
        ("x,kind\n1,a\n", r"data\.label"),
        ("x,label\n1,a\0\n", "line 2.*null"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        table(tmp_path, text)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.label.*did you mean 'label'"):
        table(tmp_path, "x,label\n1,a\n", label="labl")
    with pytest.raises(DataError, match="no such file"):
        Table(str(tmp_path / "none.csv")).read()


def test_names_of_class_ids(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["ant", "bee", "cow"]')
    found = table(tmp_path, "x,label\n1,2\n2,0\n", classes=str(tmp_path / "classes.json"))
    assert labels_of(found) == ["cow", "ant"] and len(found.labels) == 3
    with pytest.raises(DataError, match=r"line 2 \(7\)"):
        table(tmp_path, "x,label\n1,7\n2,0\n", classes=str(tmp_path / "classes.json"))


# -------------------------------------------------------------------------------------------------- images in tables
def test_pictures_by_path(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for i in range(3):
        Image.fromarray(noise(i, 4, 4, 3)).save(tmp_path / "img" / f"{i}.png")
    text = "file,label\nimg/0.png,a\nimg/1.png,b\nimg/2.png,a\n"
    found = table(tmp_path, text)
    assert found.train.shape == (3, 4, 4) and labels_of(found) == ["a", "b", "a"]
    short = text.replace("img/", "")
    assert table(tmp_path, short, root=str(tmp_path / "img")).train.fingerprint == found.train.fingerprint
    with pytest.raises(DataError, match=r"1 of 3 .*img/9\.png: no such file"):
        table(tmp_path, text.replace("2.png", "9.png"))
    assert labels_of(table(tmp_path, text.replace("2.png", "9.png"), bad_files="skip")) == ["a", "b"]
    with pytest.raises(DataError, match="names no image at line 3"):
        table(tmp_path, "pic,label\nimg/0.png,a\n,b\n", image="pic")
    with pytest.raises(DataError, match=r"data\.root"):
        table(tmp_path, text, root=str(tmp_path / "nowhere"))


# ----------------------------------------------------------------------------------------------------------- jsonl
def test_json_lines(tmp_path: Path) -> None:
    lines = [{"x": [1, 2.5], "label": "a"}, {"x": [3, 4], "label": "b", "more": None}]
    text = "\ufeff" + "\n\n".join(json.dumps(line) for line in lines) + "\n"
    found = table(tmp_path, text, "t.jsonl")
    assert labels_of(found) == ["a", "b"] and found.train.fetch(torch.arange(2))["x"].tolist() == [[1, 2.5], [3, 4]]
    assert labels_of(table(tmp_path, json.dumps(lines), "t.json")) == ["a", "b"]
    found = table(tmp_path, '{"x": 1, "label": ["u", "v"]}\n{"x": 2, "label": []}\n', "t.jsonl")
    assert found.kind == "labels" and found.train.y.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    found = table(tmp_path, '{"x": 1, "label": [0.5, 1]}\n{"x": 2, "label": [1, 2]}\n', "t.jsonl")
    assert found.kind == "number" and found.labels == ["label[0]", "label[1]"]
    assert table(tmp_path, '{"x": 1, "label": true}\n{"x": 2, "label": false}\n', "t.jsonl").labels == ["false", "true"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"x": 1, "label": "a"}\n{"x": 2,\n[3]\n', "2 lines.*line 2: .*line 3: not an object"),
        ('{"x": 1, "label": "a"}\n{"x": 2}\n', "'label' is empty at line 2"),
        ('{"x": [1, 2], "label": "a"}\n{"x": [3], "label": "b"}\n', "'x' has not 2 finite numbers at line 2"),
        ('{"x": NaN, "label": "a"}\n{"x": 3, "label": "b"}\n{"x": 3, "label": "b"}\n', "line 1"),
    ],
)
def test_json_lines_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        table(tmp_path, text, "t.jsonl")


# --------------------------------------------------------------------------------------------------------- parquet
def test_parquet_with_pictures_and_names(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": encode(Image.fromarray(noise(i, 4, 4, 3)), "PNG"), "path": f"{i}.png"} for i in range(4)]
    noted = {
        "info": {"features": {"pic": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}}
    }
    rows = pa.table({"pic": cells, "kind": [2, 0, 2, 0], "row": [1, 2, 3, 4]})
    pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(noted)}), tmp_path / "train.parquet")
    pq.write_table(rows.slice(0, 2), tmp_path / "test.parquet")
    found = Parquet(str(tmp_path)).read()
    assert found.labels == ["a", "b", "c"] and labels_of(found) == ["c", "a", "c", "a"] and len(found.test or []) == 2
    assert torch.equal(
        found.train.fetch(torch.tensor([1]))["x"][0] * 255, torch.from_numpy(noise(1, 4, 4, 3)).permute(2, 0, 1)
    )
    pq.write_table(pa.table({"x": [1.0, 2.0], "label": ["u", None]}), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match="'label' is empty at row 1"):
        Parquet(str(tmp_path / "numbers.parquet")).read()
    (tmp_path / "words.parquet").write_text("words")
    with pytest.raises(DataError, match="cannot be read"):
        Parquet(str(tmp_path / "words.parquet")).read()


def test_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "t.csv").write_text("x,label\n1,a\n2,NA\n")
    assert HuggingFaceSet(str(tmp_path / "t.csv")).read().labels == ["NA", "a"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["z", "y"])})
    made = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(noise(i, 4, 4, 3)) for i in range(3)], "label": [0, 1, 0]}, features=features
    )
    datasets.DatasetDict({"train": made, "validation": made, "extra": made}).save_to_disk(str(tmp_path / "saved"))
    found = HuggingFaceSet(str(tmp_path / "saved")).read()
    assert found.labels == ["z", "y"] and found.train.y.tolist() == [0, 1, 0] and found.train.shape == (3, 4, 4)
    assert any("extra" in n for n in found.notes) and len(found.test or []) == 3
    wanted = torch.from_numpy(np.ascontiguousarray(noise(2, 4, 4, 3))).permute(2, 0, 1) / 255
    assert torch.equal(found.train.fetch(torch.tensor([2]))["x"][0], wanted)
    with pytest.raises(DataError, match=r"data\.name"):
        HuggingFaceSet("no-such-owner/no-such-set").read()


# ---------------------------------------------------------------------------------------------- what is left out is told
def test_rows_without_a_label_or_a_number_are_named_or_left_out(tmp_path: Path) -> None:
    text = "x,label\n1,a\n,b\n3,\n4,b\ninf,a\n6,a\n"
    with pytest.raises(DataError) as error:
        table(tmp_path, text)
    said = str(error.value)  # labels and inputs at once
    assert "'label' is empty at line 4" in said and "no finite number at line 3 (empty), line 6 (inf)" in said
    found = table(tmp_path, text, bad_rows="skip")
    assert labels_of(found) == ["a", "b", "a"] and found.train.fetch(torch.arange(3))["x"].flatten().tolist() == [
        1,
        4,
        6,
    ]
    assert any(n.startswith("3 rows left out: ") and "line 4" in n and "line 6 (inf)" in n for n in found.notes)
    with pytest.raises(DataError, match="is empty at"):
        table(tmp_path, "x,label\n1,\n2,\n", bad_rows="skip")  # nothing would be left
    lines = '{"x": 1, "label": "a"}\n{"x": 2, "la\n{"x": 3, "label": "b"}\n'
    found = table(tmp_path, lines, "t.jsonl", bad_rows="skip")
    assert (
        labels_of(found) == ["a", "b"]
        and "1 line left out that cannot be read: line 2: Unterminated" in found.notes[-1]
    )


def test_a_place_names_its_file_where_there_are_several(tmp_path: Path) -> None:
    (tmp_path / "later.csv").write_text("x,label\n1,a\n?,b\n3,b\n")
    with pytest.raises(DataError, match=r"at later\.csv line 3 \(\?\)"):
        table(tmp_path, "x,label\n1,a\n2,b\n", test=str(tmp_path / "later.csv"))


def test_which_column_is_what_is_recognised_or_asked(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for i in range(2):
        Image.fromarray(noise(i, 4, 4, 3)).save(tmp_path / "img" / f"{i}.png")
    found = table(tmp_path, "width,Aufnahme,label\n4,img/0.png,a\n4,img/1.png,b\n")
    assert found.train.shape == (3, 4, 4) and found.notes == [
        "inputs: the images that column 'Aufnahme' names",
        "columns not used (beside the images): width",
    ]
    both = "left,right,label\nimg/0.png,img/1.png,a\nimg/1.png,img/0.png,b\n"
    with pytest.raises(DataError, match=r"which column holds the pictures: left or right\?.*task\.data\.image=COLUMN"):
        table(tmp_path, both)
    assert table(tmp_path, both, image="right").train.shape == (3, 4, 4)
    with pytest.raises(DataError, match=r"which column is the label: label or target\?"):
        table(tmp_path, "x,label,target\n1,a,0\n2,b,1\n")
    assert table(tmp_path, "x,y,label\n1,5,a\n2,6,b\n").notes[0] == "inputs: x, y"
    found = table(tmp_path, "x,subset,label\n1,train,a\n2,train,b\n3,test,a\n")
    assert found.test is not None and "column 'subset' says which split a row belongs to" in found.notes
    assert table(tmp_path, "x,subset,label\n1,train,a\n2,bus,b\n").test is None  # a means of transport
    assert "1 column without a name in the header left out" in table(tmp_path, ",x,label\n0,1,a\n1,2,b\n").notes


def test_row_numbers_and_missing_headers(tmp_path: Path) -> None:
    found = table(tmp_path, "Unnamed: 0,x,label\n0,5,a\n1,6,b\n")
    assert found.notes == ["inputs: x", "columns not used (class names, images or row numbers): Unnamed: 0"]
    assert table(tmp_path, "Unnamed: 0,x,label\n0,5,a\n1,6,b\n", features=["Unnamed: 0"]).train.shape == (1,)
    with pytest.raises(DataError, match="the first line holds numbers where the columns should be named"):
        table(tmp_path, "5.1,3.5,1.4,setosa\n4.9,3.0,1.4,setosa\n")


def test_paths_as_windows_and_a_mac_write_them(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Malmö")
    (tmp_path / "img" / apart).mkdir(parents=True)
    for i in range(2):
        Image.fromarray(noise(i, 4, 4, 3)).save(tmp_path / "img" / apart / f"{i}.png")
    found = table(tmp_path, "file,label\nimg\\Malmö\\0.png,a\nimg/Malmö/1.png,b\n")
    assert labels_of(found) == ["a", "b"] and "1 path with backslashes read as folders" in found.notes[1]
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "img", "img")
    other = table(tmp_path, "file,label\nimg\\Malmö\\0.png,a\n1.png,b\n", root=str(tmp_path / "all.tar"))
    assert other.train.fingerprint == found.train.fingerprint
    with pytest.raises(DataError) as error:
        table(tmp_path, "file,label\npics\\0.png,a\npics\\1.png,b\n")
    said = str(error.value)
    assert (
        "none of the 2 images" in said and str(tmp_path) in said and "backslashes" in said and "task.data.root" in said
    )


def test_a_folder_tells_which_tables_it_did_not_read(tmp_path: Path) -> None:
    for name in ("train_a", "test_a", "all"):
        (tmp_path / f"{name}.csv").write_text("x,label\n1,a\n2,b\n")
    (tmp_path / "readme.md").write_text("words")
    found = Table(str(tmp_path)).read()
    assert found.test is not None and found.notes[0] == f"files in {tmp_path} that were not read: all.csv, readme.md"


def test_splits_of_the_datasets_library_by_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"x": datasets.Value("float32"), "label": datasets.ClassLabel(names=["z", "y"])})
    made = {
        name: datasets.Dataset.from_dict({"x": [1.0] * n, "label": [i % 2 for i in range(n)]}, features=features)
        for name, n in (("train_a", 4), ("train_b", 3), ("test_a", 2), ("rest", 5))
    }
    made["test_b"] = datasets.Dataset.from_dict({"x": [1.0, 2.0], "label": [-1, -1]}, features=features)
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"negative labels: -1 at test_b row 0, test_b row 1"):
        HuggingFaceSet(str(tmp_path / "saved")).read()
    found = HuggingFaceSet(str(tmp_path / "saved"), bad_rows="skip").read()
    assert (len(found.train), len(found.test or [])) == (7, 2) and found.notes[:3] == [
        "train is train_a (4) and train_b (3)",
        "test is test_a (2) and test_b (2)",
        "not read: split rest (5)",
    ]
    found = HuggingFaceSet(str(tmp_path / "saved"), train="rest", test="test_a").read()
    assert (len(found.train), len(found.test or [])) == (5, 2)
