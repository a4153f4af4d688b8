"""A recorded teacher answers as the teacher did, and refuses whatever it was not recorded from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from limbeck.cache import Cache, Tail, build_cache
from limbeck.errors import CacheMismatch, CheckpointCorrupt, ConfigError, Stopped, TeacherMismatch
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run import plan, prepare, run
from tests.tiny import quiet, tiny, tree_of


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> Path:
    """The tiny KD recipe's teacher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        folder = tmp_path_factory.mktemp("cache") / "kd"
        build_cache(tree_of("kd"), folder, yes=True)
    return folder


def cached(folder: Path, *overrides: str) -> dict[str, Any]:
    """The KD recipe with a recorded teacher."""
    words = ["engine.device=cpu", "loggers=[]", f"teacher=cached:{folder}", *overrides]
    return check(load_tree("kd", words, tiny=True))


def test_training_from_it_equals_training_online(recorded: Path, tmp_path: Path) -> None:
    online = tiny("kd", tmp_path / "online").run()
    recipe = build(cached(recorded))
    prepare(recipe, None, say=quiet)
    from limbeck.engine.engine import Engine

    Engine(recipe.engine, recipe.seed).run(recipe.method)
    a, b = (m.roles["student"].module.state_dict() for m in (online.method, recipe.method))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-3)


def test_a_whole_run_reports_the_recorded_teacher(recorded: Path, tmp_path: Path) -> None:
    result = run(cached(recorded), tmp_path / "run", quiet=True)
    assert result["metrics"]["teacher"]["accuracy"] > 0


def test_other_items_are_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatch, match="other training items"):
        prepare(build(cached(recorded, "seed=5")), None, say=quiet)
    recipe = build(cached(recorded))
    bench = prepare(recipe, None, say=quiet)
    cache = Cache(recorded)
    ids = torch.arange(4)
    with pytest.raises(CacheMismatch, match="not those that were recorded"):
        cache.answer({**bench.task.test.fetch(ids), "item": ids, "view": torch.zeros_like(ids)})
    with pytest.raises(CacheMismatch, match="not in it"):
        cache.answer({**bench.task.train.fetch(ids), "item": ids + 10_000, "view": torch.zeros_like(ids)})
    with pytest.raises(CacheMismatch, match="were not recorded"):
        cache.answer({**bench.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, ["0"])
    with pytest.raises(CacheMismatch, match="another teacher"):
        prepare(build(cached(recorded, "teacher.fingerprint=abc")), None, say=quiet)


def test_bit_flips_are_detected(recorded: Path, tmp_path: Path) -> None:
    import shutil

    rng = random.Random(0)
    files = [p for p in sorted(recorded.rglob("*")) if p.is_file() and p.suffix in (".npy", ".json", ".safetensors")]
    for attempt in range(60):
        copy = tmp_path / f"c{attempt}"
        shutil.copytree(recorded, copy)
        victim = copy / rng.choice(files).relative_to(recorded)
        data = bytearray(victim.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(bytes(data))
        with pytest.raises((CheckpointCorrupt, CacheMismatch)):
            Cache(copy).shard_of(0)
        shutil.rmtree(copy)


def test_size_is_asked_for_and_a_second_time_nothing_is_done(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--yes"):
        build_cache(tree_of("kd"), tmp_path / "new")
    before = {p: p.stat().st_mtime_ns for p in recorded.rglob("*.npy")}
    told = build_cache(tree_of("kd"), recorded, yes=True)
    assert told["items"] == 200 and told["KL(teacher || record)"] < 1e-5
    assert before == {p: p.stat().st_mtime_ns for p in recorded.rglob("*.npy")}
    with pytest.raises(CacheMismatch, match="another recording"):
        build_cache(tree_of("kd", "teacher.hidden=[17]"), recorded, yes=True)


def test_the_size_is_agreed_to_before_a_teacher_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.grammar.task.Model.teach", lambda *args: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match="kB for 200 items"):
        build_cache(tree_of("kd", "teacher.hidden=[19]"), tmp_path / "new")


def test_a_recording_that_was_stopped_ends_as_one_that_was_not(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_workspace: Path
) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
    monkeypatch.setattr("limbeck.cache.SHARD_ITEMS", 64)
    whole = build_cache(tree_of("kd"), tmp_path / "whole", yes=True)
    written = tmp_path / "stopped"
    monkeypatch.setattr("limbeck.engine.interrupt.requested", lambda: 15 if any(written.glob("shard-*")) else None)
    with pytest.raises(Stopped):
        build_cache(tree_of("kd"), tmp_path / "stopped", yes=True)
    monkeypatch.setattr("limbeck.engine.interrupt.requested", lambda: None)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "stopped").rglob("*.npy")}
    assert kept
    told = build_cache(tree_of("kd"), tmp_path / "stopped", yes=True)
    assert all(p.stat().st_mtime_ns == at for p, at in kept.items())
    told_of = "KL(teacher || record)"
    assert told[told_of] == pytest.approx(whole[told_of], rel=1e-9, abs=1e-15)
    for path in (tmp_path / "whole").rglob("*.npy"):
        assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_what_depends_on_fresh_noise_is_refused_before_a_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.engine.bench.Bench.train_network", lambda *args, **more: pytest.fail("it went on"))
    with pytest.raises(ConfigError, match="nothing to record"):
        build_cache(tree_of("guided-diffusion"), tmp_path / "new", yes=True)


@pytest.mark.parametrize("name", ["kd", "taid"])
def test_the_size_a_plan_tells_is_what_is_written(name: str, tmp_path: Path) -> None:
    told = build_cache(tree_of(name), tmp_path / "new", yes=True)
    planned = plan(tree_of(name), steps=1)
    assert planned["cache_mb"] * 2**20 == pytest.approx(told["bytes"], rel=0.6 if name == "kd" else 0.02)
    assert any("limbeck cache" in said for said in planned["advice"])


def test_a_plan_advises_no_cache_where_none_can_be(tmp_path: Path) -> None:
    for name in ("guided-diffusion", "uskd"):
        planned = plan(tree_of(name), steps=1)
        assert planned["cache_mb"] == 0 and not any("limbeck cache" in said for said in planned["advice"])


def test_a_plan_advises_no_cache_of_a_recording(recorded: Path) -> None:
    planned = plan(cached(recorded), steps=1)
    assert planned["cache_mb"] == 0 and not any("limbeck cache" in said for said in planned["advice"])


def test_pretrained_language_models_are_recorded_as_they_are_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from limbeck.models.causal_lm import CausalLm
    from tests.tasks.texts import small

    task = small()
    for name, width in (("big", 16), ("little", 8)):
        model = CausalLm(layers=1, width=width, heads=2)
        model.save(model.build(task).module, tmp_path / name)
    models = (f"teacher=hf:{tmp_path / 'big' / 'student'}", f"student=hf:{tmp_path / 'little' / 'student'}")
    told = build_cache(tree_of("taid", *models), tmp_path / "cache", yes=True)
    assert told["items"] > 0
    assert tiny("taid", tmp_path / "run", models[1], f"teacher=cached:{tmp_path / 'cache'}").run()


def test_a_recording_brings_the_tokenizer_of_its_teacher(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from limbeck.models.causal_lm import CausalLm
    from limbeck.tasks.tokenizers import word_tokenizer
    from tests.tasks.texts import small

    task = small()
    for name, words in (("one", "a b c d e f the of"), ("two", "of the f e d c b a x y z")):
        task._tokenizer, task._whose = word_tokenizer([words] * 3, 300), "hf:it"
        model = CausalLm(layers=1, width=16, heads=2)
        model.save(model.build(task).module, tmp_path / name)
    one, two = (str(tmp_path / name / "student") for name in ("one", "two"))
    folder = tmp_path / "cache"
    assert (
        build_cache(tree_of("taid", f"teacher=hf:{one}"), folder, yes=True)["items"] > 0
    )  # the student is from scratch
    made = tiny("taid", tmp_path / "run", f"teacher=cached:{folder}")
    given = transformers.AutoTokenizer.from_pretrained(one)
    assert made.bench.task.tokenizer.get_vocab() == given.get_vocab()
    assert made.run()
    tiny("taid", tmp_path / "same", f"teacher=cached:{folder}", f"student=hf:{one}")
    with pytest.raises(TeacherMismatch):
        tiny("taid", tmp_path / "other", f"teacher=cached:{folder}", f"student=hf:{two}")
    with pytest.raises((TeacherMismatch, CacheMismatch)):
        tiny("taid", tmp_path / "named", f"teacher=cached:{folder}", f"task.tokenizer={two}")
    # a pretrained student's tokenizer is that of a teacher from scratch, too
    mine = tiny("taid", tmp_path / "mine", f"student=hf:{two}")
    assert mine.bench.task.tokenizer.get_vocab() == transformers.AutoTokenizer.from_pretrained(two).get_vocab()


def test_no_cache_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match="no finished cache"):
        Cache(tmp_path)


def test_augmentations_are_replayed_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not repeat"):
        build_cache(tree_of("kd", "queries.shift=crop", "queries.shift.pad=1"), tmp_path / "a", yes=True)
    folder = tmp_path / "b"
    views = ("queries.shift=crop", "queries.shift.pad=1", "queries.shift.views=2")
    build_cache(tree_of("kd", *views), folder, yes=True, views=2)
    recipe = build(cached(folder, *views, "train.steps=60", "train.batch_size=16"))
    prepare(recipe, None, say=quiet)
    from limbeck.engine.engine import Engine

    Engine(recipe.engine, recipe.seed).run(recipe.method)  # several epochs: every view is met, every checksum holds


def test_top_k_spreads_the_rest(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "lm"
    build_cache(tree_of("taid"), folder, yes=True, k=20)
    online = tiny("taid", tmp_path / "online")
    ids = torch.arange(2)
    batch = {**online.bench.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    cache = Cache(folder)
    z = cache.answer(batch).logits
    assert torch.allclose(z.logsumexp(-1), torch.zeros(z.shape[:-1]), atol=2e-3)
    from limbeck.engine.context import RunContext
    from limbeck.grammar.method import Stage

    ctx = RunContext(online.engine, online.method, Stage("x", steps=0), online.engine.device)
    truth = ctx.signal("teacher", batch).logits.log_softmax(-1)
    top = truth.topk(20).indices
    assert torch.allclose(z.gather(-1, top), truth.gather(-1, top), atol=5e-3)


def test_each_tail_rule_is_a_distribution_of_its_own() -> None:
    z = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    top = z.topk(3)
    rows = {
        "index": top.indices,
        "logits": top.values.half(),
        "total": z.logsumexp(-1),
    }
    p = z.softmax(-1)
    known = torch.zeros_like(p, dtype=torch.bool).scatter(-1, top.indices, True)
    mass = torch.where(known, p, 0.0).sum(-1, keepdim=True)
    want = {
        "uniform_rest": torch.where(known, p, (1 - mass) / 5),
        "renormalise": torch.where(known, p / mass, 0.0),
    }
    for tail in get_args(Tail):
        cache = Cache.__new__(Cache)
        cache.tail, cache.about = tail, {"outputs": 8}
        torch.testing.assert_close(cache._known(rows).logits.softmax(-1), want.pop(tail), rtol=2e-3, atol=1e-3)
    assert not want
    with pytest.raises(ConfigError, match=r"tail.*'drop'.*uniform_rest.*renormalise"):
        check(load_tree("taid", ["teacher.use=cached", "teacher.path=x", "teacher.tail=drop"]))


def test_a_remote_teacher_answers_like_the_module(tmp_path: Path) -> None:
    from limbeck.cache.remote import Endpoint, serve
    from limbeck.grammar.signal import Signal

    run_ = tiny("kd", tmp_path)
    built = run_.bench.teacher
    assert built is not None
    task = run_.bench.task
    server = serve(
        lambda batch, taps: Signal(task.feed(built.module, {**batch, "x": built.contract.inputs(batch["x"])})),
        task.labels,
    )
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        ids = torch.arange(3)
        batch = {**task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
        want = task.feed(built.module, {**batch, "x": built.contract.inputs(batch["x"])})
        assert torch.equal(Endpoint(url).answer(batch).logits, want)
        from limbeck.cache.remote import Remote

        assert Remote(url).build(task).labels == task.labels
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ConfigError, match="does not answer"):
        Endpoint("http://127.0.0.1:9", 0.5).about()
