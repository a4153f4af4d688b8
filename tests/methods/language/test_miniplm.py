"""MiniPLM: chunks, scores, what is chosen by them, what the student learns from, scores that serve another student."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.artifacts.scored_corpus import ScoredCorpus, write_scores
from limbeck.data.crawled import NOTICES, Crawled, jumbled
from limbeck.data.text import Document
from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.functional.corpora import cut_points, drawn_share, highest_share
from limbeck.grammar.random import Draws
from limbeck.methods.language.miniplm import MiniPlm
from limbeck.parts.corpus_pieces import Held, Streamed, chunked, end_marks
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.running import run
from limbeck.tasks.language import Language
from tests.parts.texts import Some
from tests.tiny import Tiny, tree_of
from tests.tiny import shared_tiny as tiny

parquet = pytest.importorskip("pyarrow.parquet")


# ------------------------------------------------------------------------------------------------------------ mathematics
def test_chunks_end_at_the_last_sentence_that_fits() -> None:
    g = torch.Generator().manual_seed(0)
    for share, length in ((0.2, 7), (0.0, 5), (1.0, 6), (0.05, 9)):
        ends = torch.rand(200, generator=g) < share
        found, start = [], 0
        while start < 200:  # the obvious way
            stop = min(start + length, 200)
            if stop < 200:
                stop = next((i + 1 for i in range(stop - 1, start, -1) if ends[i]), stop)
            found.append((start, stop))
            start = stop
        assert cut_points(ends, length) == found
    assert cut_points(torch.zeros(0, dtype=torch.bool), 4) == []
    with pytest.raises(ConfigError, match="length"):
        cut_points(ends, 1)


def test_a_drawn_share_follows_the_scores() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0])
    u = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    first = torch.cat([drawn_share(scores, 0.34, row) for row in u])
    share = first.bincount(minlength=3) / len(u)
    torch.testing.assert_close(share.float(), scores.softmax(0), atol=0.03, rtol=0)
    assert torch.equal(drawn_share(scores, 0.67, u[0], 1e-3), highest_share(scores, 0.67))
    with pytest.raises(ConfigError, match="temperature"):
        drawn_share(scores, 0.5, u[0], 0.0)


def test_junk_lies_among_training_texts_alone() -> None:
    clean, found = Some().deal(), Crawled(text=Some(), jumbled=0.5, notices=0.25).deal()
    assert [d.key for d in found.test] == [d.key for d in clean.test] and found.valid == clean.valid
    size = sum(len(d.text) for d in clean.train)
    for source, share in (("jumbled", 0.5), ("notice", 0.25)):
        made = [d.text for d in found.train if d.source == source]
        assert abs(sum(map(len, made)) - share * size) <= 1
    assert any(n[:10] in d.text for d in found.train for n in NOTICES)
    text = jumbled("one two  three\n", Draws(0), 0)
    assert [sorted(w) for w in text.split()] == [sorted(w) for w in ("one", "two", "three")]
    assert [c.isspace() for c in text] == [c.isspace() for c in "one two  three\n"]


# --------------------------------------------------------------------------------------------------------------- a corpus
def task_of(length: int = 16) -> Language:
    task = Language(data=Some(), vocab_size=270, length=length)
    task.load(0)
    return task


def test_chunks_hold_the_whole_text_whatever_the_pieces() -> None:
    task = task_of()
    ends = end_marks(task.tokenizer)
    texts = task.train.documents
    rows = chunked(task, texts, ends)
    spelled = [i for d in texts for i in [*task.tokenizer(d.text)["input_ids"], task.tokenizer.eos_token_id]]
    again = [i for row, n in zip(rows["ids"].tolist(), rows["size"].tolist(), strict=True) for i in row[:n]]
    assert again == spelled[: len(again)] and len(spelled) - len(again) <= 1
    cut_short = rows["size"][:-1] < 16
    last = rows["ids"][:-1].gather(1, rows["size"][:-1, None].long() - 1)[:, 0]
    assert bool(cut_short.any()) and bool(ends[last[cut_short].long()].all())
    held = Held(texts, 100)
    assert len(held.pieces()) > 3 and [d for p in held.pieces() for d in held.documents(p)] == texts


@pytest.mark.parametrize("size", [7, 40, 10_000])
def test_files_are_read_whole_whatever_the_pieces(size: int, tmp_path: Path) -> None:
    import pyarrow as pa

    texts = [f"line {i} " + "x" * (i % 9) for i in range(12)]
    lines = "".join(json.dumps({"body": t}) + "\n" for t in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pa.table({"body": texts}), tmp_path / "c.parquet", row_group_size=5)
    found = Streamed(str(tmp_path), size, "body", [Document(texts[3]).key])
    for i, name in enumerate(["a.jsonl", "b.jsonl.gz", "c.parquet"]):
        read = [d.text for p in found.pieces() if p.startswith(f"{i}-") for d in found.documents(p)]
        assert read == texts[:3] + texts[4:], name  # without the text that is evaluated
    plain = "first\nsecond line\n\nthird\nand no end"
    (tmp_path / "t.txt").write_text(plain)
    running = Streamed(str(tmp_path / "t.txt"), size)
    pieces = [d.text for p in running.pieces() for d in running.documents(p)]
    assert "".join(pieces).replace("\n", "") == plain.replace("\n", "")
    assert running.fingerprint == Streamed(str(tmp_path / "t.txt"), size).fingerprint
    (tmp_path / "t.txt").write_text(plain + ".")
    assert running.fingerprint != Streamed(str(tmp_path / "t.txt"), size).fingerprint


# ------------------------------------------------------------------------------------------------------------------ a run
@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Iterator[tuple[Tiny, Path]]:
    folder = tmp_path_factory.mktemp("whole")
    yield tiny("miniplm", folder, "teacher.dropout=0.5", "train.steps=2").run(), folder


def slowly(module: Any, ids: Tensor) -> float:
    """The mean negative log-likelihood of one chunk, alone and in float64."""
    with torch.no_grad():
        z = module.eval()(input_ids=ids[None].long()).logits[0, :-1].double().log_softmax(-1)
    return -float(z.gather(1, ids[1:, None].long()).mean())


def test_scores_are_the_mean_likelihoods_and_the_highest_half_is_kept(whole: tuple[Tiny, Path]) -> None:
    made, _ = whole
    method: Any = made.method
    rows, scores, r, candidates, kept, size = method.chosen
    assert len(made.engine.stages[0].items(None)) > 1  # several pieces
    for place in candidates[::37].tolist():
        ids = rows.fetch(rows.items[place : place + 1])["ids"][0, : int(size[place])]
        both = [slowly(method.roles[n].module, ids) for n in ("teacher", "reference")]
        assert [float(scores[n][place]) for n in ("teacher", "reference")] == pytest.approx(both, abs=1e-4)
        assert float(r[place]) == pytest.approx(both[1] - both[0], abs=2e-4)
    assert len(kept) == len(candidates) // 2 and bool((kept[1:] > kept[:-1]).all())
    others = candidates[~torch.isin(candidates, kept)]
    assert float(r[kept].min()) >= float(r[others].max())
    # the reference's own slice is neither scored nor learnt from
    own, asked, _ = method.parts(len(r))
    assert not bool(torch.isin(own, candidates).any()) and torch.equal(asked, candidates)
    assert bool(r[own].isnan().all())
    data: Any = made.engine.stages[-1].data
    assert torch.equal(data.places, kept)
    batch = data.fetch(torch.tensor([0]))
    assert torch.equal(batch["input_ids"][0], rows.fetch(rows.items[kept[:1]])["ids"][0].long())
    assert int(batch["where"].sum()) == int(size[kept[0]]) - 1
    assert method.measures()["r_kept"] > method.measures()["r_dropped"]


def test_only_what_is_missing_is_scored_again(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[str] = []
    inner = MiniPlm._asked

    # not the stage's own work: that would be code of the user's, of which every file is read for each run
    def counting(self: MiniPlm, piece: str, ctx: Any, which: int) -> Any:
        asked.append(piece)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return inner(self, piece, ctx, which)

    monkeypatch.setattr(MiniPlm, "_asked", counting)
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))  # where no other test's scores are remembered
    with pytest.raises(KeyboardInterrupt):
        tiny("miniplm", tmp_path / "a", "train.steps=1").run()
    first: Any = tiny("miniplm", tmp_path / "a", "train.steps=1").run().method
    pieces = first.source.pieces()
    assert asked == [*pieces[:2], *pieces[1:]]  # the first piece is there
    # another student, seed and ratio take the scores as they are
    other: Any = (
        tiny("miniplm", tmp_path / "b", "train.steps=1", "student.width=8", "method.ratio=0.2", seed=3).run().method
    )
    assert len(asked) == 1 + len(pieces)
    torch.testing.assert_close(first.chosen.scores, other.chosen.scores, equal_nan=True, rtol=0, atol=0)
    assert bool(torch.isin(other.chosen.kept, first.chosen.kept).all())
    tiny("miniplm", tmp_path / "c", "train.steps=1", "stages.reference.steps=1").run()  # another reference
    assert len(asked) == 1 + 2 * len(pieces)


@pytest.mark.parametrize(
    ("settings", "roles"),
    [
        ({"score": "teacher", "select": "drawn"}, {"student", "teacher"}),
        ({"score": "reference", "average": False, "cut": "length"}, {"student", "reference"}),
        ({"select": "random", "distil_ratio": 0.5, "variant": "released"}, {"student", "teacher"}),
        ({"select": "threshold", "threshold": -9}, {"student", "teacher", "reference"}),
        ({"proxy": 0.3}, {"student", "teacher", "reference", "proxy", "guess"}),
    ],
)
def test_switches(settings: dict[str, Any], roles: set[str], tmp_path: Path) -> None:
    made = tiny("miniplm", tmp_path, "train.steps=1", *(f"method.{k}={v}" for k, v in settings.items())).run()
    method: Any = made.method
    assert set(method.roles) == roles
    _, scores, r, candidates, kept, size = method.chosen
    if settings.get("average") is False:
        torch.testing.assert_close(r[kept], (scores["reference"] * (size - 1))[kept])
    if settings.get("select") == "threshold":
        assert torch.equal(kept, candidates)
    if "proxy" in settings:
        known, guessed = scores["teacher"].isfinite(), scores["predicted"].isfinite()
        assert not bool((known & guessed).any()) and torch.equal((known | guessed).nonzero()[:, 0], candidates)
        assert bool(guessed[kept].any()) and 0.2 < float(known.sum() / len(candidates)) < 0.4
        before = method.roles["reference"].module.state_dict()
        after = method.roles["proxy"].module.state_dict()
        assert any(not torch.equal(before[n], after[n]) for n in before)


def test_vanilla_kd_beside_it(tmp_path: Path) -> None:
    for variant in ("paper", "released"):
        made = tiny(
            "miniplm", tmp_path / variant, "train.steps=1", "method.distil_ratio=0.3", f"method.variant={variant}"
        ).run()
        method: Any = made.method
        from limbeck.engine.context import RunContext

        stage = made.engine.stages[-1]
        data: Any = stage.data
        ids = torch.arange(4)
        batch = {**data.fetch(ids), "item": ids, "view": torch.zeros(4)}
        terms = method.step(batch, RunContext(made.engine, method, stage, torch.device("cpu")))
        where = batch["where"][:, :-1]
        q, p = (
            method.roles[n].module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            for n in ("student", "teacher")
        )
        kd = -(p.softmax(-1) * q.log_softmax(-1)).sum(-1) * where
        lm = -q.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * where
        for name, values, weight in (("kd", kd, 0.3), ("lm", lm, 0.7)):
            wanted = values.sum() / where.sum() if variant == "paper" else (values.sum(1) / where.sum(1)).mean()
            term = terms[name]
            assert term.weight == pytest.approx(weight) and term.to == ("student",)
            assert float(term.total().detach()) / float(term.n()) == pytest.approx(float(wanted.detach()), rel=1e-5)
        assert made.engine.stages[-1].shuffle is (variant == "paper")


# ---------------------------------------------------------------------------------------------------------- scores on disk
@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("written") / "run"
    run(tree_of("miniplm", "baselines=[]", "train.steps=1"), folder, quiet=True)
    return folder


def test_the_scores_serve_students_of_any_tokenizer(written: Path, tmp_path: Path) -> None:
    scores = ScoredCorpus(str(written))
    table = parquet.read_table(scores.path).to_pylist()
    assert scores.about["chunks"] == len(table) and sum(row["kept"] for row in table) == len(table) // 2
    same = tiny("miniplm", tmp_path / "same", f"method.scores={written}", "train.steps=1").run()
    method: Any = same.method
    assert set(method.roles) == {"student"} and method.notes == []
    kept = [i for i, row in enumerate(table) if row["kept"]]
    assert method.chosen.kept.tolist() == kept
    row, size = method.chosen.rows.fetch(method.chosen.rows.items[kept[:1]])["ids"][0], method.chosen.size[kept[0]]
    assert row[:size].tolist() == table[kept[0]]["ids"]
    other = tiny(
        "miniplm", tmp_path / "other", f"method.scores={written}", "train.steps=1", "task.vocab_size=270"
    ).run()
    again: Any = other.method
    assert "another tokenizer" in again.notes[0] and bool(torch.isin(again.chosen.kept, method.chosen.kept).any())
    task: Any = other.bench.task
    place = next(i for i in kept if not table[i]["breaks"] and len(table[i]["text"]) > 12)
    ids = again.chosen.rows.fetch(again.chosen.rows.items[place : place + 1])["ids"][0]
    start = task.tokenizer.decode(ids[: int(again.chosen.size[place])])
    assert len(start) > 4 and table[place]["text"].startswith(start)


def test_scores_that_do_not_fit_are_refused(written: Path, tmp_path: Path) -> None:
    source = ScoredCorpus(str(written))
    piece: dict[str, Any] = {"text": ["ab"] * 3, "breaks": [[]] * 3, "ids": [[1, 2]] * 3, "kept": [True] * 3}
    piece |= {"teacher": [1.0, float("nan"), 1.0], "reference": [2.0] * 3, "predicted": [float("nan")] * 3}
    for name, about, said in (
        ("long", {"chunks": 4}, "3 scores for a corpus of 4 chunks"),
        ("nan", {**source.about, "chunks": 3}, "1 of 3 chunks have no finite score"),
    ):
        path = tmp_path / f"{name}.parquet"
        write_scores(path, iter([piece]), about)
        with pytest.raises(DataError, match=said):
            tiny("miniplm", tmp_path / "run", f"method.scores={path}")
    (tmp_path / "text.parquet").write_text("no parquet")
    for path, said in (
        ("text.parquet", "no readable parquet"),
        ("lang.parquet", "did you mean"),
        (".", r"holds no scores.parquet[^?]*$"),
    ):
        with pytest.raises(DataError, match=said):
            tiny("miniplm", tmp_path / "run", f"method.scores={tmp_path / path}")
    parquet.write_table(parquet.read_table(source.path).drop_columns(["teacher"]), tmp_path / "less.parquet")
    with pytest.raises(DataError, match="lacks teacher"):
        tiny("miniplm", tmp_path / "run", f"method.scores={tmp_path / 'less.parquet'}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method.ratio=0"], r"method\.ratio"),
        (["method.ratio=1.2"], r"method\.ratio"),
        (["method.reference_share=1"], r"method\.reference_share"),
        (["method.proxy=0.5", "method.score=teacher"], "predicts differences"),
        (["method.corpus=nowhere"], r"method\.corpus.*no such file"),
        (["method.corpus=x", "method.scores=y"], "leave corpus out"),
        (["method.select=best"], r"method\.select"),
    ],
)
def test_bad_settings_are_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises((LimbeckError, ValueError), match=said):
        tiny("miniplm", tmp_path, *overrides)


def test_what_shows_only_in_the_run_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"method\.threshold.*no chunk"):
        tiny("miniplm", tmp_path / "a", "method.select=threshold", "method.threshold=99").run()
    made = tiny("miniplm", tmp_path / "b", "participants.reference.width=12", "stages.reference.steps=0")
    with torch.no_grad():
        made.method.roles["reference"].module.model.norm.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(LimbeckError, match=r"participants\.reference.*not finite"):
        made.run()
    (tmp_path / "p.jsonl").write_text(
        '{"q": "a", "r": "b"}\n' * 3 + "".join(f'{{"q": "{i}", "r": "c"}}\n' for i in range(30))
    )
    source = f"{{use: text-jsonl, path: {tmp_path / 'p.jsonl'}, prompt: q, response: r}}"
    with pytest.raises(ConfigError, match="prompts with responses"):
        tiny("miniplm", tmp_path / "c", f"task.data={source}")


def test_a_corpus_in_files_and_a_student_that_is_larger(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"Line {i}. And {i * i} more.\n"}) + "\n" for i in range(60))
    )
    made = tiny("miniplm", tmp_path / "run", f"method.corpus={tmp_path / 't.jsonl'}", "method.piece=500", "student.width=32",
                "train.steps=1").run()  # fmt: skip
    method: Any = made.method
    assert len(method.source.pieces()) > 2 and "the student has" in method.notes[0]
    ids = method.chosen.rows.fetch(method.chosen.rows.items)
    text = made.bench.task.tokenizer.batch_decode(ids["ids"][:4])  # type: ignore[attr-defined]
    assert "Line 0" in "".join(text)
    with pytest.raises(DataError, match=r"method\.corpus_field|no field 'body'"):
        tiny("miniplm", tmp_path / "x", f"method.corpus={tmp_path / 't.jsonl'}", "method.corpus_field=body")


def test_the_recipe_and_its_preset() -> None:
    for preset in (None, "paper"):
        recipe = build(check(load_tree("miniplm", [], preset=preset)))
        assert isinstance(recipe.method, MiniPlm) and recipe.method.ratio == 0.5
