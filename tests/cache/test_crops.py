"""A store of crops on disk: written by ``limbeck cache``, gone on with after a stop, replayed by FerKD and by plain KD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cache import Cache, build_cache
from limbeck.engine.context import RunContext
from limbeck.errors import CacheMismatch, CheckpointCorrupt, ConfigError, Stopped
from limbeck.grammar.method import Stage
from limbeck.parts.stored_crops import CropPlan, Repeated
from limbeck.storage import store
from tests.tiny import shared_tiny as tiny
from tests.tiny import tree_of

KD = ("task.student_items=24", "teacher={use: mlp, hidden: [16]}", "student={use: mlp, hidden: [8]}", "teach.steps=20")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> Path:
    """The tiny recipe's crops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        folder = tmp_path_factory.mktemp("cache") / "crops"
        build_cache(tree_of("ferkd"), folder, yes=True)
    return folder


@pytest.fixture(autouse=True)
def _workspace(monkeypatch: pytest.MonkeyPatch, shared_workspace: Path) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))


def test_every_row_is_what_the_teacher_says_of_that_crop(recorded: Path, tmp_path: Path) -> None:
    made, cache = tiny("ferkd", tmp_path), Cache(recorded)
    assert cache.crops == CropPlan(crops=6, lowest=0.4) or cache.crops.plain() == made.method.store.plain()  # type: ignore[attr-defined,union-attr]
    ids = torch.arange(24 * 6)
    rows = cache.rows(ids // 6, ids % 6)
    ctx = RunContext(made.engine, made.method, Stage("x", steps=0), made.engine.device).at(0)
    batch = {**Repeated(made.bench.task.train, 6).fetch(ids), "item": ids // 6, "view": ids % 6}
    shown = made.method.store.show(batch, ctx)  # type: ignore[attr-defined]
    p = ctx.signal("teacher", shown).logits.softmax(1)
    torch.testing.assert_close(rows["value"].float(), p.topk(5, 1).values, rtol=1e-3, atol=1e-5)
    assert torch.equal((rows["box"] * 8).round().long(), shown["box"]) and torch.equal(rows["flip"], shown["flip"])
    assert cache.about["preprocessing"]["mean"] and cache.about["crops"]["form"] == "marginal_smoothing"
    torch.testing.assert_close(cache.answer(shown).logits.exp(), made.method.store.labels(rows, 10))  # type: ignore[attr-defined]


def test_training_from_it_equals_training_with_crops_labelled_in_the_run(recorded: Path, tmp_path: Path) -> None:
    online = tiny("ferkd", tmp_path / "a").run()
    offline = tiny("ferkd", tmp_path / "b", f"teacher=cached:{recorded}").run()
    assert [s.name for s in offline.engine.stages] == ["mine", "distil"]
    a, b = (m.method.roles["student"].module.state_dict() for m in (online, offline))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert online.method.measures() == offline.method.measures()


def test_plain_distillation_replays_it_by_the_same_queries(recorded: Path, tmp_path: Path) -> None:
    words = (*KD, f"teacher=cached:{recorded}")
    replayed = ("queries.crop={use: resized-crop, lowest: 0.4, views: 6}", "queries.flip={use: flip, views: 6}")
    tiny("kd", tmp_path / "a", *words, *replayed, "train.steps=12").run()  # four passes; every checksum holds
    with pytest.raises(CacheMismatch, match="not those that were recorded"):
        tiny("kd", tmp_path / "b", *words).run()


def test_any_recipe_of_pictures_can_record_crops(tmp_path: Path) -> None:
    told = build_cache(tree_of("kd", *KD), tmp_path / "a", yes=True, crops=3, labels="smoothing", precision="float32")
    assert (told["items"], told["views"]) == (24, 3) and told["labels"] == "smoothing, 1 of 10 classes, float32"
    assert 0 < told["probability that a label keeps"] < 1
    hard = build_cache(tree_of("kd", *KD), tmp_path / "b", yes=True, crops=3, labels="hard")
    assert set(Cache(tmp_path / "b").rows(torch.zeros(1).long(), torch.zeros(1).long())) == {
        "check",
        "box",
        "flip",
        "index",
    }
    assert hard["bytes"] < told["bytes"]
    with pytest.raises(ConfigError, match="--crops N"):
        build_cache(tree_of("kd", *KD), tmp_path / "c", yes=True, labels="hard")
    with pytest.raises(ConfigError, match="--views"):
        build_cache(tree_of("kd", *KD), tmp_path / "c", yes=True, crops=2, views=2)
    with pytest.raises(ConfigError, match="images that have one class"):
        build_cache(tree_of("taid"), tmp_path / "c", yes=True, crops=2)
    with pytest.raises(CacheMismatch, match=r"what differs: .*crops"):
        build_cache(tree_of("kd", *KD), tmp_path / "b", yes=True, crops=3, labels="smoothing")


def test_a_store_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.cache.SHARD_CROPS", 40)  # so that crops of one image lie in two shards
    whole = build_cache(tree_of("ferkd"), tmp_path / "whole", yes=True)
    written = tmp_path / "stopped"
    monkeypatch.setattr("limbeck.engine.interrupt.requested", lambda: 15 if any(written.glob("shard-*")) else None)
    with pytest.raises(Stopped):
        build_cache(tree_of("ferkd"), written, yes=True)
    assert len(list(written.glob("shard-*"))) == 1
    with pytest.raises(CheckpointCorrupt, match="no finished cache"):
        Cache(written)
    monkeypatch.setattr("limbeck.engine.interrupt.requested", lambda: None)
    told: dict[str, Any] = build_cache(tree_of("ferkd"), written, yes=True)
    assert told["probability that a label keeps"] == pytest.approx(whole["probability that a label keeps"], rel=1e-12)
    files = list((tmp_path / "whole").rglob("*.npy"))
    assert len(files) == 4 * 5
    for path in files:
        assert path.read_bytes() == (written / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_store_without_its_teachers_inputs_is_refused(recorded: Path, tmp_path: Path) -> None:
    about = store.load_tree(recorded / "about")
    store.save_tree(tmp_path / "c" / "about", {**about, "preprocessing": None})
    with pytest.raises(CheckpointCorrupt, match="inputs were prepared"):
        Cache(tmp_path / "c")


def test_other_pictures_are_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatch, match="other training items"):
        tiny("ferkd", tmp_path, f"teacher=cached:{recorded}", "task.student_items=25")
