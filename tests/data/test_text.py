"""Text as users have it: encodings, splits, broken rows, hidden files, loops."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.text import Document, PythonHelp, deal, passages
from limbeck.data.text_files import (
    TextFiles,
    TextHuggingFace,
    TextJsonl,
    TextParquet,
)
from limbeck.errors import DataError


def many(n: int, word: str = "text") -> list[Document]:
    return [Document(f"{word} number {i}, some words long") for i in range(n)]


def keys(documents: list[Document]) -> set[str]:
    return {d.key for d in documents}


# ------------------------------------------------------------------------------------------------ dealing


def test_another_deal_draws_other_texts_into_splits_as_long() -> None:
    named = {"train": many(200), "valid": many(20, "chosen"), "test": many(40, "judged")}
    first, again, other = (deal(named, 0.05, 0.1, again=n) for n in (0, 1, 2))
    assert keys(first.test) == keys(named["test"])
    everything = {k for documents in named.values() for k in keys(documents)}
    for texts in (again, other):
        assert keys(texts.train) | keys(texts.valid) | keys(texts.test) == everything
        assert abs(len(texts.test) - 40) <= 2 and abs(len(texts.valid) - 20) <= 2
    assert keys(again.test) != keys(other.test) and keys(again.test) == keys(deal(named, 0.05, 0.1, again=1).test)
    loose = {"all": many(100)}
    assert keys(deal(loose, 0.1, 0.2).test) != keys(deal(loose, 0.1, 0.2, again=1).test)


def test_the_deal_depends_on_content_alone() -> None:
    documents = many(200)
    one = deal({"all": documents}, 0.1, 0.2)
    shuffled = documents[:]
    random.Random(3).shuffle(shuffled)
    two = deal({"all": shuffled}, 0.1, 0.2)
    for split in ("train", "valid", "test"):
        assert keys(getattr(one, split)) == keys(getattr(two, split))
    assert len(one.train) + len(one.valid) + len(one.test) == 200
    assert 30 <= len(one.test) <= 50 and 10 <= len(one.valid) <= 30
    assert one.train == [d for d in documents if d in one.train]  # neighbours stay neighbours


def test_one_more_document_moves_few() -> None:
    one, two = deal({"all": many(300)}, 0.1, 0.2), deal({"all": [*many(300), Document("a new one")]}, 0.1, 0.2)
    assert len(keys(one.test) ^ keys(two.test)) <= 2


def test_splits_share_nothing_and_repeats_go() -> None:
    documents = many(60)
    texts = deal({"all": documents + documents[:10] + [Document("  \n")]}, 0.1, 0.2)
    assert len(texts.train) + len(texts.valid) + len(texts.test) == 60
    assert not keys(texts.train) & keys(texts.test) and not keys(texts.train) & keys(texts.valid)
    assert texts.notes[:2] == ["1 document without text left out", "10 documents that came before left out"]


def test_named_splits_are_kept_and_test_wins_a_repeat() -> None:
    texts = deal({"train": many(30), "valid": many(5, "valid"), "test": [*many(4, "test"), many(1)[0]]}, 0.1, 0.2)
    assert (len(texts.train), len(texts.valid), len(texts.test)) == (29, 5, 5)


def test_a_missing_split_comes_out_of_train() -> None:
    texts = deal({"train": many(100), "test": many(9, "test")}, 0.1, 0.2)
    assert len(texts.test) == 9 and texts.valid and len(texts.train) + len(texts.valid) == 100


def test_one_long_text_is_cut_into_passages() -> None:
    text = "\n\n".join(f"Paragraph {i} says something." for i in range(400))
    texts = deal({"all": [Document(text)]}, 0.05, 0.1)
    assert len(texts.train) > 40 and texts.valid and texts.test
    assert "1 document is too few to be dealt whole: cut at blank lines into 100 passages" in texts.notes[0]


@pytest.mark.parametrize("text", ["a b c. " * 300, "line\n" * 300, "word " * 300, "p\n\n" * 300, "漢字" * 300])
def test_passages_lose_no_character(text: str) -> None:
    pieces = passages(Document(text), 100)
    assert "".join(p.text for p in pieces).rstrip() == text.rstrip() and len(pieces) > 3


def test_nothing_to_deal() -> None:
    with pytest.raises(DataError, match="no text"):
        deal({"all": [Document(" ")]}, 0.1, 0.1)
    with pytest.raises(DataError, match="cannot be dealt"):
        deal({"all": [Document("x")]}, 0.1, 0.1)
    assert passages(Document("x" * 3000), 100) == [Document("x" * 3000)]  # one word


def test_no_word_is_cut_and_too_few_documents_are_refused() -> None:
    words = [f"{w}{i}" for i in range(40) for w in ("wind", "rain", "snow")]
    texts = deal({"all": [Document(" ".join(words))]}, 0.1, 0.1)
    assert "cut at blanks into" in texts.notes[0]
    assert sorted(w for d in (*texts.train, *texts.valid, *texts.test) for w in d.text.split()) == sorted(words)
    notes = [Document(" ".join(words[i : i + 20])) for i in range(0, 120, 15)]
    with pytest.raises(DataError, match=r"8 documents cannot be dealt into train, valid and test.*at least 20"):
        deal({"all": notes}, 0.1, 0.1, long=False)
    assert len(deal({"train": notes, "valid": many(1, "v"), "test": many(1, "t")}, 0.1, 0.1, long=False).train) == 8
    assert len(deal({"all": [Document(f"a {i}", "q") for i in range(7)]}, 0.1, 0.1, long=False).train) == 5


def test_what_is_left_out_is_named_by_its_place(tmp_path: Path) -> None:
    rows = [{"text": f"reading {i}"} for i in range(30)]
    for i, blank in ((3, ""), (8, "  \n"), (15, "\u200b"), (22, "\t")):
        rows[i]["text"] = blank
    rows[25] = rows[24]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    texts = TextJsonl(str(tmp_path / "r.jsonl")).deal()
    assert texts.notes == [
        "4 documents without text left out: r.jsonl line 4, 9, 16, 23",
        "1 document that came before left out: r.jsonl line 26",
        "no test split: 3 of 25 documents set aside for evaluation (task.test_fraction=0.1)",
        "no valid split: 1 of 25 documents set aside for choosing (task.valid_fraction=0.05)",
    ]
    pairs = "".join(json.dumps({"q": f"is {i} even", "a": "yes" * (i % 2)}) + "\n" for i in range(10))
    (tmp_path / "p.jsonl").write_text(pairs)
    assert (
        "5 documents without text left out: p.jsonl line 1"
        in TextJsonl(str(tmp_path / "p.jsonl"), prompt="q", response="a").deal().notes[0]
    )


def test_broken_rows_may_be_left_out(tmp_path: Path) -> None:
    lines = [
        '{"text": "fine"}',
        '{"text": "cut',
        '{"txt": "x"}',
        '{"text": null}',
        *[json.dumps({"text": f"a{i}"}) for i in range(30)],
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"line 2: Unterminated string starting at column 10.*task\.data\.bad_rows=skip"
    ):
        TextJsonl(str(tmp_path / "a.jsonl")).read()
    source = TextJsonl(str(tmp_path / "a.jsonl"), bad_rows="skip")
    assert len(source.read()["all"]) == 31 and source.notes[0].startswith(
        "3 rows of 34 left out: a.jsonl line 2: Unterm"
    )
    assert (
        "line 4: field 'text' holds nothing, not text" in source.notes[0] and source.deal().notes[0] == source.notes[0]
    )


# ------------------------------------------------------------------------------------------------ conversations


def talk(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]}


def test_conversations_are_read(tmp_path: Path) -> None:
    rows = [talk("hi", "hello"), talk("one", "two", "three", "four")]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = TextJsonl(str(tmp_path / "c.jsonl"))
    first, second = source.read()["all"]
    assert source.notes == ["conversations are read from 'messages'"]
    assert second.turns == (("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))
    assert (second.text, second.prompt) == ("two\nfour", "one\nthree") and first.key != second.key
    other = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(other))
    assert TextJsonl(str(tmp_path / "d.jsonl")).read()["all"] == [first]
    parts = {
        "chat": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "hello"},
        ]
    }
    (tmp_path / "e.jsonl").write_text(json.dumps(parts))
    assert TextJsonl(str(tmp_path / "e.jsonl"), messages="chat").read()["all"] == [first]
    with pytest.raises(ValueError, match="whole conversations"):
        TextJsonl("x", messages="chat", field="text")


def test_broken_conversations_are_all_named(tmp_path: Path) -> None:
    rows = [
        talk("hi", "hello"),
        {"messages": []},
        {"message": []},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": 42}]},
        {"messages": [{"content": "q"}]},
        {"messages": ["q"]},
        {"messages": "q"},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError) as error:
        TextJsonl(str(tmp_path / "c.jsonl")).read()
    said = str(error.value)
    assert "6 rows cannot be read" in said and "line 2: nobody answers in 'messages'" in said
    assert "line 3: no field 'messages'; did you mean 'message'?" in said
    assert "line 4: turn 2 of 'messages' has int as content, not text" in said
    assert (
        "line 5: turn 1 of 'messages' has no role" in said and "line 7: field 'messages' holds str, not a conv" in said
    )


def test_fingerprint_follows_content() -> None:
    one, two = (deal({"all": many(40)}, 0.1, 0.1) for _ in range(2))
    other = deal({"all": [*many(39), Document("another")]}, 0.1, 0.1)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_the_embedded_text_leaks_nothing() -> None:
    texts = PythonHelp().deal()
    few, whole = PythonHelp(documents=40).read()["all"], PythonHelp().read()["all"]
    assert len(few) == 40 and few[0] == whole[0] and all(d in whole for d in few)
    assert PythonHelp(documents=10**6).read()["all"] == whole
    assert sum(len(d.text) for d in texts.train) > 200_000 and len(texts.test) >= 10 and len(texts.valid) >= 5

    def paragraphs(documents: list[Document]) -> set[str]:
        return {" ".join(p.split()) for d in documents for p in d.text.split("\n\n") if len(p.split()) > 5}

    assert not paragraphs(texts.train) & paragraphs(texts.test)


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("raw", "encoding", "text"),
    [
        ("naïve\r\nline".encode(), "utf-8", "naïve\nline"),
        ("naïve".encode("utf-8-sig"), "latin-1", "naïve"),
        ("naïve".encode("utf-16"), "utf-8", "naïve"),
        ("naïve".encode("utf-32"), "utf-8", "naïve"),
        ("naïve".encode("latin-1"), "latin-1", "naïve"),
        (b"old\rmac", "utf-8", "old\nmac"),
    ],
)
def test_encodings(tmp_path: Path, raw: bytes, encoding: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    assert TextFiles(str(tmp_path / "a.txt"), encoding=encoding).read() == {"all": [Document(text)]}


def test_unreadable_files_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"zero\0byte")
    (tmp_path / "c.md").write_text("fine")
    with pytest.raises(DataError) as error:
        TextFiles(str(tmp_path)).read()
    assert "a.txt" in str(error.value) and "b.txt" in str(error.value) and "latin-1" in str(error.value)
    source = TextFiles(str(tmp_path), bad_files="skip")
    assert source.read() == {"all": [Document("fine")]} and source.notes == [
        "2 unreadable files left out: a.txt: not utf-8 at byte 3; b.txt: no text: it holds zero bytes"
    ]


def test_folders_hidden_files_loops_and_splits(tmp_path: Path) -> None:
    for name in (
        "train/one.txt",
        "train/deep/two.md",
        "val/three.txt",
        "test/four.rst",
        ".hidden/no.txt",
        "train/.no.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "train" / "picture.png").write_bytes(b"\x89PNG")
    os.symlink(tmp_path, tmp_path / "train" / "loop")
    found = TextFiles(str(tmp_path)).read()
    assert {k: {d.text for d in v} for k, v in found.items()} == {
        "train": {"train/one.txt", "train/deep/two.md"},
        "valid": {"val/three.txt"},
        "test": {"test/four.rst"},
    }


def test_what_a_folder_leaves_out_is_told(tmp_path: Path) -> None:
    for name in ("train_a.txt", "more.txt", ".old/x.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    source = TextFiles(str(tmp_path))
    assert {k: len(v) for k, v in source.read().items()} == {"train": 2}
    assert source.notes == [
        "not read: hidden or a system's own: .old (1 text); no texts by their ending: picture.png",
        "files whose names say no split belong to train: more.txt",
    ]


def test_names_are_splits_only_beside_a_train_file(tmp_path: Path) -> None:
    (tmp_path / "valid.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "test.txt").write_text("plain")
    source = TextFiles(str(tmp_path))
    assert set(source.read()) == {"all"} and "no file is called train" in source.notes[0]


def test_units(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree")
    lines = TextFiles(str(tmp_path), unit="line").read()["all"]
    paragraphs = TextFiles(str(tmp_path), unit="paragraph").read()["all"]
    assert [d.text for d in lines] == ["one", "two", "three"]  # blank lines stand between
    assert [d.place for d in lines] == ["a.txt line 1", "a.txt line 2", "a.txt line 4"]
    assert [d.text for d in paragraphs] == ["one\ntwo", "three"]


def test_wrong_paths_are_answered(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt"):
        TextFiles(str(tmp_path / "note.txt")).read()
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(DataError, match="jsonl:"):
        TextFiles(str(tmp_path / "rows.jsonl")).read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        TextFiles(str(tmp_path / "empty")).read()
    with pytest.raises(ValueError, match="unknown to Python"):
        TextFiles("x", encoding="utf-99")


# ------------------------------------------------------------------------------------------------ rows


def test_jsonl_pairs_nested_and_mark(tmp_path: Path) -> None:
    rows = [{"q": f"ask {i}", "a": [{"out": f"answer {i}"}]} for i in range(3)]
    text = "\r\n".join(json.dumps(r) for r in rows) + "\r\n\r\n"
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-8-sig"))
    found = TextJsonl(str(tmp_path / "a.jsonl"), prompt="q", response="a.0.out").read()["all"]
    assert found == [Document(f"answer {i}", f"ask {i}") for i in range(3)]


def test_jsonl_names_every_broken_line(tmp_path: Path) -> None:
    lines = ['{"text": "fine"}', "{broken", '["a list"]', '{"txt": "x"}', '{"text": 3}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        TextJsonl(str(tmp_path / "a.jsonl")).read()
    said = str(error.value)
    assert "4 rows" in said and all(f"line {n}" in said for n in (2, 3, 4, 5)) and "line 1:" not in said
    assert "did you mean 'txt'" in said and "holds int" in said


def test_the_same_fault_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join('{"body": "x"}' for _ in range(40)))
    with pytest.raises(DataError) as error:
        TextJsonl(str(tmp_path / "a.jsonl")).read()
    assert str(error.value).count("no field") == 1 and "and 35 more" in str(error.value)


def test_prompt_and_response_go_together() -> None:
    with pytest.raises(ValueError, match="go together"):
        TextJsonl("x", prompt="q")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"text": ["one", "two"], "n": [1, 2]}), tmp_path / "train-0.parquet")
    parquet.write_table(pa.table({"text": ["three"], "n": [3]}), tmp_path / "test-0.parquet")
    found = TextParquet(str(tmp_path)).read()
    assert found == {"train": [Document("one"), Document("two")], "test": [Document("three")]}
    with pytest.raises(DataError, match="row 1"):
        TextParquet(str(tmp_path), field="n").read()
    with pytest.raises(DataError, match="did you mean 'text'"):
        TextParquet(str(tmp_path), field="texts").read()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="no readable parquet"):
        TextParquet(str(tmp_path / "bad.parquet")).read()


class _Table(list[dict[str, Any]]):
    def select(self, rows: range) -> list[dict[str, Any]]:
        return [self[i] for i in rows]


def test_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, subset: str | None) -> dict[str, _Table]:
        asked.append((name, subset))
        if name == "gone":
            raise FileNotFoundError("Couldn't find a dataset\nmore lines")
        return {"train": _Table([{"t": f"row {i}"} for i in range(5)]), "validation": _Table([{"t": "held out"}])}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = TextHuggingFace("some/set", "small", field="t", limit=3).read()
    assert found == {"train": [Document(f"row {i}") for i in range(3)], "valid": [Document("held out")]}
    assert asked == [("some/set", "small")]
    with pytest.raises(DataError, match="Couldn't find a dataset"):
        TextHuggingFace("gone").read()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"limbeck\[language\]"):
        TextHuggingFace("some/set").read()
