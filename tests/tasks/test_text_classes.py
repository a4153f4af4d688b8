"""Labelled texts from tables and folders, pairs, and classification methods on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.labelled_text import Chapters, LabelledText
from limbeck.errors import ConfigError, DataError
from limbeck.recipe.recipe import check, load_tree
from limbeck.run.running import run
from limbeck.tasks.text_classes import TextClasses

pytest.importorskip("transformers")

ROWS = [(f"a fine film number {i}", "good") if i % 2 else (f"a dull film number {i}", "bad") for i in range(40)]


def csv(folder: Path) -> Path:
    path = folder / "films.csv"
    path.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in ROWS))
    return path


def test_tables_pairs_and_folders_give_the_same_texts(tmp_path: Path) -> None:
    table = LabelledText(str(csv(tmp_path))).read()
    lines = tmp_path / "films.jsonl"
    lines.write_text("\n".join(json.dumps({"sentence": t, "class": y}) for t, y in ROWS))
    rows = LabelledText(str(lines)).read()
    assert [d.text for d in rows.documents] == [d.text for d in table.documents] == [t for t, _ in ROWS]
    assert rows.labels == table.labels == ["bad", "good"] and torch.equal(rows.y, table.y)
    for i, (text, label) in enumerate(ROWS):
        place = tmp_path / "films" / ("train" if i < 30 else "test") / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.txt").write_text(text)
    found = LabelledText(str(tmp_path / "films")).read()
    assert sorted(d.text for d in found.documents) == sorted(t for t, _ in ROWS) and set(found.splits) == {
        "train",
        "test",
    }
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"sentence1": t, "sentence2": "so", "label": y}) for t, y in ROWS))
    task = TextClasses(LabelledText(str(pairs)))
    task.load()
    batch = task.train.fetch(torch.tensor([0, 5]))
    assert set(batch) == {"x", "attention_mask", "token_type_ids", "y"} and bool(batch["token_type_ids"].any())


def test_a_batch_is_as_wide_as_its_longest_row(tmp_path: Path) -> None:
    task = TextClasses(Chapters(chapters=2, each=20), vocab_size=300, length=64)
    task.load()
    batch = task.example(3)
    longest = int(batch["attention_mask"].sum(1).max())
    assert batch["x"].shape[1] == min(64, -(-longest // 8) * 8)
    assert task.needs.outputs == 2 and task.fingerprint


def test_rows_without_text_or_label_are_named(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    path.write_text('{"text": "one", "label": "a"}\n{"text": null, "label": "b"}\n{"text": "two"}\n')
    with pytest.raises(DataError, match=r"row 2: column 'text' holds nothing.*row 3: no label"):
        LabelledText(str(path)).read()
    found = LabelledText(str(path), bad_rows="skip").read()
    assert len(found.documents) == 1 and "left out" in found.notes[-1]
    with pytest.raises(DataError, match="no column 'txt'"):
        LabelledText(str(path), text="txt").read()
    with pytest.raises(ConfigError, match="two classes"):
        TextClasses(Chapters(chapters=3), metric="mcc").load()


@pytest.mark.parametrize("method", ["kd", "nkd", "bd-kd"])
def test_classification_methods_take_texts(method: str, tmp_path: Path) -> None:
    small = ["train.steps=2", "train.batch_size=8", "engine.device=cpu", "loggers=[]"]
    small += [
        "task={use: text-classes, data: {use: pydoc-chapters, chapters: 3, each: 20}, length: 16, vocab_size: 300}"
    ]
    small += ["student={use: encoder, layers: 1, width: 8, heads: 2}", "teacher={use: encoder, layers: 1, width: 16}"]
    small += [] if method == "bd-kd" else ["teach.steps=2", "teach.batch_size=8"]
    found: dict[str, Any] = run(check(load_tree(method, small)), tmp_path / "run", quiet=True)
    assert set(found["metrics"]["student"]) >= {"accuracy", "nll", "ece"}
    assert (tmp_path / "run/student/model.safetensors").is_file()


def test_matthews_correlation_and_f1() -> None:
    task = TextClasses.__new__(TextClasses)
    y = torch.tensor([0, 0, 1, 1, 1])
    z = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 0]), 2).float()
    found = task._judge_label(z, y, None)
    metrics = pytest.importorskip("sklearn.metrics")
    assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(y, z.argmax(-1)))
    assert found["f1"] == pytest.approx(metrics.f1_score(y, z.argmax(-1)))
