"""Shards read as a stream: rows by number, orders by key, and what is set aside is not learnt."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from limbeck.data import shards
from limbeck.data.shards import Shards
from limbeck.data.text_files import TextJsonl
from limbeck.engine.batches import batches
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.method import Stage
from limbeck.grammar.random import Draws, Stream
from limbeck.tasks.language import Language
from tests.tasks.texts import small


def rows(low: int, high: int) -> list[dict[str, Any]]:
    """Conversations told apart by a number."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"ask {i}"},
                {"role": "assistant", "content": f"say {i} " * (1 + i % 3)},
            ]
        }
        for i in range(low, high)
    ]


def written(folder: Path, kind: str, count: int = 90, each: int = 30) -> Path:
    folder.mkdir(exist_ok=True)
    for n, low in enumerate(range(0, count, each)):
        some = rows(low, min(low + each, count))
        file = folder / f"part-{n:03}.{kind}"
        if kind == "jsonl":
            file.write_text("\n\n".join(json.dumps(r) for r in some) + "\n")
        elif kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as parquet

            parquet.write_table(pa.Table.from_pylist(some), file, row_group_size=7)
        else:
            with tarfile.open(file, "w") as archive:
                for i, row in enumerate(some):
                    for name, raw in ((f"{low + i:05}.json", json.dumps(row).encode()), (f"{low + i:05}.cls", b"3")):
                        about = tarfile.TarInfo(name)
                        about.size = len(raw)
                        archive.addfile(about, io.BytesIO(raw))
    return folder


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK", 700)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_every_row_has_a_number_whatever_the_shards_are(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    stream: Any = Shards(str(written(tmp_path / "s", kind)), held_out=5).streaming().train
    wanted = TextJsonl(str(written(tmp_path / "j", "jsonl"))).read()["all"]
    assert len(stream) == 90 and len(stream.blocks) > 6
    assert [stream[n] for n in (89, 0, 44, 31)] == [wanted[n] for n in (89, 0, 44, 31)]
    assert list(stream) == wanted and stream[3:6] == wanted[3:6]
    assert stream[31].place.endswith("row 2") and "part-001" in stream[31].place


def test_an_epoch_goes_through_all_rows_and_is_known_from_any_place(tmp_path: Path) -> None:
    stream: Any = Shards(str(written(tmp_path / "s", "jsonl")), buffer=25).streaming().train
    draws = Draws(0, ("train",))
    whole = stream.order(draws, 0, 0, 90)
    assert torch.equal(whole.sort().values, torch.arange(90)) and not torch.equal(whole, torch.arange(90))
    assert torch.equal(torch.cat([stream.order(draws, 0, a, min(a + 7, 90)) for a in range(0, 90, 7)]), whole)
    assert not torch.equal(stream.order(draws, 1, 0, 90), whole)
    assert not torch.equal(stream.order(Draws(1, ("train",)), 0, 0, 90), whole)
    ours = Stream(90, 8, 0, "train", order=stream.order)
    assert torch.equal(torch.cat([ours.items(step)[0] for step in range(12)])[:90], whole)
    assert ours.items(11)[1].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_memory_is_bounded_by_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.Stream, "KEPT", 0)
    stream: Any = Shards(str(written(tmp_path / "s", "jsonl", 600, 200)), buffer=20).streaming().train
    for n in stream.order(Draws(0, ("x",)), 0, 0, len(stream)).tolist():
        assert stream[n].text
        assert len(stream._blocks) <= 2 + -(-20 // (600 // len(stream.blocks)))
    assert len(stream.blocks) > 30


def task(folder: Path, **more: Any) -> Language:
    return small(data=Shards(str(folder), held_out=6, buffer=25), length=40, **more)


def test_what_is_set_aside_is_not_learnt(tmp_path: Path) -> None:
    ours = task(written(tmp_path / "s", "jsonl"))
    held = {d.key for d in (*ours.texts.valid, *ours.texts.test)}
    assert len(held) == 12 and any("set aside (task.data.held_out=6)" in n for n in ours.notes)
    batch = ours.train.fetch(torch.arange(90))
    texts = [
        ours.tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    asked = [d.prompt for d in (*ours.texts.valid, *ours.texts.test)]
    assert not any(t.startswith(f"{a}\n") for t in texts for a in asked)
    assert torch.equal(batch["input_ids"][17], ours.train.fetch(torch.tensor([17]))["input_ids"][0])


def test_a_row_is_what_it_is_in_memory(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", "jsonl")
    streamed, held = task(folder), small(data=TextJsonl(str(folder)), length=40)
    held._tokenizer = streamed.tokenizer
    stream: Any = streamed.texts.train
    number = next(n for n in range(90) if stream[n].key == held.texts.train[4].key)
    if stream[number].key in stream.held:
        pytest.skip("it is set aside here")
    one, two = streamed.train.fetch(torch.tensor([number])), held.train.fetch(torch.tensor([4]))
    assert all(torch.equal(one[k], two[k]) for k in ("input_ids", "attention_mask", "labels", "where", "prompt"))


def test_files_called_so_are_the_splits(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", "jsonl")
    for n, name in enumerate(("train_sft-0", "train_sft-1", "test_sft-0")):
        (folder / f"part-00{n}.jsonl").rename(folder / f"{name}.jsonl")
    texts = Shards(str(folder), held_out=4).streaming()
    assert len(texts.train) == 60 and len(texts.test) == 30 and len(texts.valid) == 4
    texts = Shards(str(folder / "train*.jsonl"), held_out=4).streaming()
    assert len(texts.train) == 60 and len(texts.test) == len(texts.valid) == 4


def test_content_is_known_by_its_hash(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", "jsonl")
    before = task(folder).train.fingerprint
    assert task(folder).train.fingerprint == before
    file = folder / "part-001.jsonl"
    file.write_text(file.read_text().replace("say 40", "SAY 40"))
    assert task(folder).train.fingerprint != before


def test_what_a_stream_cannot_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", "jsonl")
    with pytest.raises(ConfigError, match=r"task\.packing"):
        task(folder, packing="pack")
    with pytest.raises(ConfigError, match=r"task\.student_documents"):
        task(folder, student_documents=5)
    with pytest.raises(DataError, match="task language alone"):
        Shards(str(folder)).deal()
    with pytest.raises(DataError, match="no file fits the pattern"):
        Shards(str(folder / "*.parquet")).streaming()
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match="packed"):
        Shards(str(tmp_path / "z")).streaming()
    with (folder / "part-002.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
    with pytest.raises(DataError, match=r"part-002\.jsonl row 31: nobody answers.*bad_rows=skip"):
        task(folder)
    skipping = small(data=Shards(str(folder), held_out=6, bad_rows="skip"), length=40)
    assert bool(skipping.train.fetch(torch.tensor([90]))["where"].any())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_stopped_goes_on_with_the_same_batches(tmp_path: Path, workers: int) -> None:
    """Steps 5 to 13 are the same whether or not steps 0 to 4 came before, in whichever process they are read."""
    folder = written(tmp_path / "s", "jsonl")
    whole = list(_batches(folder, 0, 0))
    rest = list(_batches(folder, 5, workers))
    assert len(whole) == 14 and len(rest) == 9
    for one, two in zip(whole[5:], rest, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def _batches(folder: Path, start: int, workers: int) -> Any:
    stage = Stage("distil", steps=14, data=task(folder).train, batch_size=8)
    for (batch,) in batches(stage, 3, start, 14, device=torch.device("cpu"), workers=workers):
        yield batch
