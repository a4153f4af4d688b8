"""Multi-granularity: repairs against a slow reference, who gets gradients, each switch, chunks, what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")


import limbeck.functional as F
from limbeck.errors import ConfigError, DataError
from limbeck.functional.revision import clip_thresholds, clipped_kl, span_pairs, span_relation
from limbeck.methods.language.multi_granularity import ClipNet, MultiGranularity
from limbeck.parts.privacy import Pieces
from limbeck.parts.spans import Chunker, ImportedChunker, Ngrams, Phrases, Sentences, neighbours
from limbeck.parts.writing import OnPolicy, Replay, kept_prompts, written
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.running import run
from limbeck.tasks.tokens import shifted
from tests.parts.texts import setup_of, start
from tests.tiny import tree_of


@cache
def setup(pairs: bool) -> Any:
    """Made once: nothing here trains its networks."""
    return setup_of(pairs=pairs)


def bound(pairs: bool = False, **changes: Any) -> tuple[MultiGranularity, Any, Any]:
    return start(MultiGranularity(**{"k": 8, "hidden": 4, **changes}), setup(pairs))


def gradient(term: Any, module: Any) -> list[Tensor]:
    found = torch.autograd.grad(term.total(), list(module.parameters()), allow_unused=True, retain_graph=True)
    return [g for g in found if g is not None]


def asked(method: MultiGranularity, ctx: Any, step: int = 0, n: int = 4) -> Any:
    batch = method.task.example(n)
    for query in method.stages()[0].queries:
        batch = query(batch, ctx.at(step))
    return batch


def terms_of(method: MultiGranularity, ctx: Any, step: int = 0) -> Any:
    return method.step(asked(method, ctx, step), ctx.at(step))


def show(method: MultiGranularity, role: str, batch: Any) -> Tensor:
    with torch.no_grad():
        return method.task.feed(method.roles[role].module.eval(), batch)


@pytest.mark.parametrize("pairs", [False, True])
def test_the_worst_token_is_the_teachers_and_the_student_goes_on(pairs: bool) -> None:
    method, ctx, _ = bound(pairs, teacher_token="argmax")
    batch = method.task.example(4)
    draws, prompts = ctx.at(0).draws, kept_prompts(batch)
    raw = written(method.roles["student"].module, batch, draws, prompts=prompts)
    limit = torch.full_like(prompts, raw["input_ids"].shape[1])
    fixed = method.corrected(raw, prompts, limit, draws, lambda role, b: show(method, role, b))
    z = {role: shifted(show(method, role, raw), raw)[0] for role in ("student", "teacher")}
    assert bool(fixed["repaired"].any())
    for i in range(4):
        size, begun = int(raw["attention_mask"][i].sum()), int(prompts[i])
        p, q = (z[role][i].double().log_softmax(-1) for role in ("teacher", "student"))
        worst, at = -1.0, -1
        for t in range(begun, size):  # the token at t is predicted at t - 1
            d = float((p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum())
            if int(p[t - 1].argmax()) != int(raw["input_ids"][i, t]) and d > worst:
                worst, at = d, t
        said = -sum(float(p[t - 1, raw["input_ids"][i, t]]) for t in range(begun, size))
        assert float(fixed["raw"][i]) == pytest.approx(said, rel=1e-4)
        assert int(fixed["raw_tokens"][i]) == size - begun
        if at < 0:
            assert torch.equal(fixed["input_ids"][i, :size], raw["input_ids"][i, :size])
            continue
        assert torch.equal(fixed["input_ids"][i, :at], raw["input_ids"][i, :at])
        assert int(fixed["input_ids"][i, at]) == int(p[at - 1].argmax())
        new = int(fixed["attention_mask"][i].sum())
        assert new > at and bool(fixed["attention_mask"][i, :new].all())
        counted = (fixed["labels"][i] != -100).nonzero().squeeze(1)
        assert int(counted[-1]) == new - 1 and int(counted[0]) == (begun if pairs else 0)
        if at + 1 < new and int(fixed["input_ids"][i, at]) != method.task.tokenizer.eos_token_id:
            sub = {k: v[i : i + 1] for k, v in fixed.items() if isinstance(v, Tensor)}
            again = written(method.roles["student"].module, sub, draws.at("correct", 0), prompts=torch.tensor([at + 1]))
            assert torch.equal(again["input_ids"][0, :new], fixed["input_ids"][i, :new]), (
                "the student's, not the teacher's"
            )


def test_corrections_are_keyed_and_cut_batches_get_the_same() -> None:
    method, ctx, _ = bound()
    whole = asked(method, ctx)
    assert len(whole["item"]) == 8 and whole["truth"].tolist() == [True] * 4 + [False] * 4
    batch = method.task.example(4)
    (query,) = method.stages()[0].queries
    half = query({k: v[2:] for k, v in batch.items()}, ctx.at(0))
    assert torch.equal(half["input_ids"][2:], whole["input_ids"][6:])
    assert torch.equal(half["input_ids"][:2], batch["input_ids"][2:])
    assert not torch.equal(asked(method, ctx, 1)["input_ids"][4:], whole["input_ids"][4:])


def test_sampled_tokens_follow_the_teacher() -> None:
    method, ctx, _ = bound()
    z = torch.tensor([2.0, 0.5, -1.0, 0.0])
    n = 4000
    sub = {
        "input_ids": torch.full((n, 2), 3), "attention_mask": torch.ones(n, 2).long(), "labels": torch.full((n, 2), 3),
        "item": torch.arange(n), "view": torch.zeros(n).long(),
    }  # fmt: skip
    flat = torch.zeros(n, 2, 4)
    prompts = torch.ones(n).long()
    found, _, _ = method._located(sub, prompts, ctx.at(0).draws, lambda role, b: flat + (z if role == "teacher" else 0))
    theirs = found.prefix[:, 0]
    share = torch.bincount(theirs, minlength=4) / n
    assert torch.allclose(share, z.softmax(-1), atol=0.03)


def test_rounds_and_errors_choose_the_place() -> None:
    texts = {}
    for name, words in {
        "none": {"rounds": 0}, "one": {}, "three": {"rounds": 3}, "random": {"error": "random"},
        "confidence": {"error": "confidence"},
    }.items():  # fmt: skip
        method, ctx, _ = bound(**words)
        texts[name] = asked(method, ctx)["input_ids"][4:]
    for name in ("none", "three", "random", "confidence"):
        assert not torch.equal(texts[name], texts["one"]), name
    method, ctx, _ = bound(rounds=0)
    raw = written(method.roles["student"].module, method.task.example(4), ctx.at(0).draws)
    assert torch.equal(raw["input_ids"], texts["none"])


def test_every_term_equals_its_function_and_reaches_its_roles() -> None:
    method, ctx, _ = bound(min_mass=0.3, span=2.0)
    batch = asked(method, ctx)
    terms = method.step(batch, ctx.at(0))
    z_s, z_t = (shifted(show(method, role, batch), batch)[0] for role in ("student", "teacher"))
    on = batch["labels"][:, 1:] != -100
    levels = [torch.full(on.shape, x) for x in (0.99, 0.1)]  # as the net begins
    cut = clip_thresholds(z_t.softmax(-1), *levels, k=8)
    want = clipped_kl(z_s, z_t, cut.lower, cut.upper, tau=0.05, min_mass=0.3, where=on)
    torch.testing.assert_close(terms["dac"].values, want.values, rtol=1e-4, atol=1e-6)
    kept, n = terms.metrics["kept_mass"]
    assert float(kept) / float(n) == pytest.approx(float(want.kept_mass[on].mean()), rel=1e-4)
    pieces, expected, total = Pieces(method.task.tokenizer), 0.0, 0
    texts, offsets = pieces.read(batch["input_ids"])
    for i in range(8):
        spans = Phrases().ranges(texts[i], offsets[i]) - 1
        pairs = span_pairs(spans.clamp(0, on.shape[1]), on[i])
        expected += float(span_relation(z_s[i], z_t[i], pairs).sum())
        total += len(pairs)
    assert int(terms["span"].n()) == total > 0 and terms["span"].weight == 2.0
    assert float(terms["span"].total().detach()) == pytest.approx(expected, rel=1e-4)
    truth = F.cross_entropy(z_s[:4], batch["labels"][:4, 1:], where=on[:4])
    assert float(terms["sft"].total().detach()) == pytest.approx(float(truth.sum()), rel=1e-5)
    assert int(terms["sft"].n()) == int(on[:4].sum())
    student, clip = (method.roles[n].module for n in ("student", "clip"))
    assert gradient(terms["dac"], student) and any(bool(g.any()) for g in gradient(terms["dac"], clip))
    assert gradient(terms["span"], student) and not gradient(terms["span"], clip)
    assert all(p.grad is None and not p.requires_grad for p in method.roles["teacher"].module.parameters())


def test_a_mask_of_one_everywhere_is_forward_kl_and_chunks_change_nothing() -> None:
    found = []
    for words in ({"min_mass": 1.0, "clip": "fixed"}, {"divergence": "forward"}):
        method, ctx, _ = bound(**words)
        found.append(terms_of(method, ctx)["dac"].values)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    made = []
    for chunk in (0, 7):
        method, ctx, _ = bound(pairs=True, chunk=chunk, min_mass=0.4)
        terms = terms_of(method, ctx)
        params = [p for n in ("student", "clip") for p in method.roles[n].module.parameters()]
        total = sum(t.total() * t.weight for t in terms.values())
        made.append((terms["dac"].values, terms["span"].values, torch.autograd.grad(total, params)))
    torch.testing.assert_close(made[0][:2], made[1][:2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made[0][2], made[1][2], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "words",
    [
        {"divergence": "reverse"}, {"divergence": "symmetric"}, {"divergence": "js"}, {"divergence": "tv"},
        {"divergence": "skew-forward"}, {"divergence": "skew-reverse"}, {"clip": "fixed", "mask": "hard"},
        {"renormalise": False}, {"level": "fraction_of_max"}, {"keep_target": False, "min_mass": 0.2},
        {"relation": "cosine"}, {"relation": "outer", "norm": "l2"}, {"norm": "l1"}, {"chunker": Ngrams(n=3)},
        {"chunker": Sentences()}, {"sampler": None}, {"compare_on": "written"}, {"sft": 0.0}, {"dac": 0.0}, {"span": 0.0},
    ],
    ids=lambda words: "-".join(words),
)  # fmt: skip
def test_every_switch_trains(words: dict[str, Any]) -> None:
    method, ctx, _ = bound(**words)
    terms = terms_of(method, ctx)
    assert set(terms) == {n for n in ("sft", "dac", "span") if getattr(method, n) > 0}
    for name, term in terms.items():
        assert bool(term.total().isfinite()) and int(term.n()) > 0, name
        assert any(bool(g.any()) for g in gradient(term, method.roles["student"].module)), name
    if words.get("compare_on") == "written":
        assert not terms["dac"].where[:4].any() and terms["dac"].where[4:].any()
    if words.get("sampler", 1) is None:
        assert terms["dac"].where.shape[0] == 4


def test_the_clip_network_begins_where_it_is_told_and_the_mask_narrows() -> None:
    net = ClipNet(8, 4, 0.1, 0.99, 100)
    low, high = net(torch.randn(5, 8), torch.full((5, 8), float("-inf")))
    torch.testing.assert_close(low, torch.full((5,), 0.1))
    torch.testing.assert_close(high, torch.full((5,), 0.99))
    method, ctx, _ = bound()
    widths = [method.width(ctx.at(step)) for step in range(8)]
    assert widths[0] == 0.05 and widths[4] == pytest.approx(0.001) == widths[7]
    assert sorted(widths[:5], reverse=True) == widths[:5] and len(set(widths[:5])) == 5


def test_all_of_the_clip_network_learns_once_its_last_layer_has_moved() -> None:
    method, ctx, _ = bound(tau=0.002)
    clip = method.roles["clip"].module
    before = clip.net[2].weight.detach().clone()
    with torch.no_grad():
        clip.net[2].weight.fill_(0.1)
    terms = terms_of(method, ctx)
    found = torch.autograd.grad(terms["dac"].total(), list(clip.parameters()))
    with torch.no_grad():
        clip.net[2].weight.copy_(before)
    assert all(bool(g.any()) for g in found) and not before.any()


def test_what_replay_keeps_is_corrected() -> None:
    sampler = Replay(capacity=8, start=1.0, ratio="increasing")
    method, ctx, _ = bound(sampler=sampler)
    made = asked(method, ctx)
    method.observe({"tokens": 1.0}, ctx.at(0))
    kept = {tuple(row[3:].tolist()) for row in method.state["replay"]["texts"]}
    assert kept == {tuple(row.tolist()) for row in made["input_ids"][4:]}
    assert bool(made["repaired"][4:].any())


def test_phrases_begin_with_function_words_and_end_at_punctuation() -> None:
    text = "The old value of an attribute is returned, and it can be changed by the user.\nA new line"
    said = [text[a:b] for a, b in Phrases().spans(text)]
    assert said == [
        "The old value", "of an attribute", "is returned", "it", "can be changed", "by the user", "A new line",
    ]  # fmt: skip
    assert list(Sentences().spans("A b. C d!")) == [(0, 4), (5, 9)]
    assert Ngrams(n=2).ranges("", torch.zeros(5, 2).long()).tolist() == [[0, 2], [2, 4], [4, 5]]
    offsets = torch.tensor([[0, 3], [3, 7], [7, 13], [13, 16], [0, 0]])
    assert Phrases().ranges("The old value of", offsets).tolist() == [
        [0, 3],
        [3, 5],
    ]  # padding behind the end counts nowhere


def words(text: str) -> list[tuple[int, int]]:
    """For `ImportedChunker`."""
    return [(0, len(text))]


def beyond(text: str) -> list[tuple[int, int]]:
    """For `ImportedChunker`."""
    return [(0, len(text) + 1)]


def test_neighbours_lie_in_one_phrase_and_in_the_response() -> None:
    method, _, _ = bound()
    batch = method.task.example(2)
    pieces = Pieces(method.task.tokenizer)
    whole = ImportedChunker(function="tests.methods.language.test_multi_granularity:words")
    where = torch.ones(2, batch["input_ids"].shape[1] - 1, dtype=torch.bool)
    where[0, :5] = False
    found = neighbours(whole, pieces, batch["input_ids"], where)
    assert torch.equal(found[:, :-1], where[:, :-1] & where[:, 1:]) and not found[:, -1].any()
    with pytest.raises(DataError, match="outside the text"):
        bad = ImportedChunker(function="tests.methods.language.test_multi_granularity:beyond")
        neighbours(bad, pieces, batch["input_ids"], where)
    with pytest.raises(TypeError, match="spans"):
        Chunker().spans("")


def test_a_run_tells_what_correcting_does(tmp_path: Path) -> None:
    result = run(tree_of("multi-granularity", "method.rounds=2"), tmp_path, quiet=True)
    rows, measures = result["metrics"]["rows"], result["measures"]
    assert set(measures) == {"nats_raw", "nats_corrected"} and all(v > 0 for v in measures.values())
    assert rows["raw texts"]["cross_entropy"] > 0 and rows["corrected texts"]["cross_entropy"] > 0
    assert any(t["title"] == "texts written in training" for t in result["tables"])
    assert (tmp_path / "student").is_dir()


@pytest.mark.parametrize(
    ("said", "settings"),
    [
        ("sft, dac and span", ["sft=0", "dac=0", "span=0"]), ("sampler", ["sampler=flip"]), ("rounds", ["rounds=-1"]),
        ("lower", ["lower=0.9", "upper=0.2"]), ("mask", ["mask=hard"]), ("tau", ["tau=0"]), ("error", ["error=worst"]),
        ("min_mass", ["min_mass=2"]), ("norm", ["norm=l1", "relation=outer"]), ("chunker", ["chunker=words"]),
        ("compare_on", ["compare_on=written", "sampler=null"]), ("mix", ["divergence=js", "mix=1"]),
        ("function", ["chunker={use: import, function: nowhere.at:all}"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(said: str, settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("multi-granularity", [f"method.{s}" for s in settings])))


def test_who_cannot_write_and_who_writes_the_same_is_told() -> None:
    with pytest.raises(ConfigError, match="no generate"):
        start(MultiGranularity(), setup_of(plain=True))
    method, _, _ = bound(sampler=OnPolicy(fraction=1.0, temperature=0.0), teacher_token="argmax")
    assert "same texts" in method.notes[0]
