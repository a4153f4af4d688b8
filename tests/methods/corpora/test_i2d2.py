"""I2D2: prompts, constraints, what is written and kept, where each round begins, what is delivered, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from limbeck.artifacts.corpus import Corpus
from limbeck.cli import main
from limbeck.data.statements import CORRUPTIONS, Glosses, PythonUses, Statement, corrupted
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.grammar.random import Draws
from limbeck.methods.corpora.i2d2 import Decoding, I2d2, Prompt
from limbeck.parts.constrained import CONNECTIVES, FUNCTION_WORDS
from limbeck.parts.rounds import Row
from tests.tiny import Tiny, differences, tiny


@pytest.fixture(scope="module")
def bound(shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        return tiny("i2d2", tmp_path_factory.mktemp("bound"))


@pytest.fixture(scope="module")
def done(shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        return tiny("i2d2", tmp_path_factory.mktemp("done"), "method.rounds=2").run()


def method_of(run: Tiny) -> Any:
    return run.method


def settings(run: Tiny, **changes: Any) -> Any:
    """The bound method with other settings."""
    made = I2d2(**{"decoding": "sample", **changes})
    made.bind(run.method.setup)
    return made


# ------------------------------------------------------------------------------------------------------------ statements


def test_statements_are_corrupted_the_same_way_every_time_and_never_stay() -> None:
    some: Any = PythonUses(8).read()["all"][:60]
    for how in CORRUPTIONS:
        made = [corrupted(s, how, some) for s in some]
        assert made == [corrupted(s, how, some) for s in some]
        same = sum(a == s.text for a, s in zip(made, some, strict=True))
        assert same <= 2, how  # a word drawn in its own place
        assert all(m.startswith(s.head) and m.endswith(".") for m, s in zip(made, some, strict=True))
    shuffled = corrupted(some[0], "shuffle", some)
    assert sorted(shuffled.rstrip(".").split()) == sorted(some[0].text.rstrip(".").split())


def test_glosses_become_sentences(tmp_path: Path) -> None:
    lines = [
        {"lemma": "otter", "gloss": "an animal (of rivers) that swims; eats fish", "hypernym": "mammal"},
        {"lemma": "fastness", "gloss": "the quality of being fixed", "hypernym": ""},
        {"lemma": "nothing", "gloss": "", "hypernym": ""},
    ]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    source = Glosses(str(tmp_path / "g.jsonl"))
    (found,) = source.read().values()
    assert [d.text for d in found] == ["An otter is an animal that swims.", "Fastness is the quality of being fixed."]
    assert isinstance(found[0], Statement) and found[0].related == "mammal" and found[0].article == "an"
    assert "g.jsonl row 3" in source.notes[-1]
    with pytest.raises(DataError, match="did you mean 'gloss'"):
        Glosses(str(tmp_path / "g.jsonl"), gloss="glos").read()


def test_critic_and_held_out_critic_see_other_training_statements_and_the_same_test_ones(bound: Tiny) -> None:
    task: Any = bound.bench.task
    a, b = task.labelled("validity"), task.labelled("held-out")
    texts = [{d.text for d, s in zip(x.documents, x.splits, strict=True) if s == "train"} for x in (a, b)]
    assert texts[0] and texts[1] and not texts[0] & texts[1]
    tests = [[d.text for d, s in zip(x.documents, x.splits, strict=True) if s == "test"] for x in (a, b)]
    assert tests[0] == tests[1] and int(a.y.sum()) * 2 == len(a.y)


# --------------------------------------------------------------------------------------------------------------- prompts


def test_the_grid_of_prompts(bound: Tiny) -> None:
    method = settings(bound, relations=["can", "is/are"], adverbs=["", "Usually,"], goals=["cook rice"])
    bird = Statement("A bird is an animal.", concept="bird", head="A bird is", article="a")
    texts = [p.text for p in method.grid(bird)]
    assert {"A bird can", "Birds can", "A bird is", "Birds are", "Usually, a bird can", "Usually, birds are"} <= set(
        texts
    )
    assert len(texts) == len(set(texts)) == 2 * 2 * 3  # two adverbs, two numbers, the data's own relation beside these
    name = Statement("send is used to send.", concept="send", head="send is used to", spelt=True)
    assert {p.text for p in method.grid(name)} >= {"send can", "Usually, send is"} and "Sends can" not in texts
    goal = method.about("train")[-1]
    assert [p.text for p in method.grid(goal)] == [
        "In order to cook rice, one should",
        "In order to cook rice, one needs",
    ]


def test_of_each_concept_the_likeliest_prompts_are_taken(bound: Tiny) -> None:
    from limbeck.parts.critics import mean_losses

    method = settings(bound, prompts=3)
    some = method.about("train", 4)
    for statement, kept in zip(some, method.chosen(some), strict=True):
        grid = method.grid(statement)
        loss = mean_losses(method.task, method.roles["teacher"].module, [p.text for p in grid], ended=False)
        best = {grid[i].text for i in loss.argsort()[:3].tolist()}
        assert {p.text for p in kept} == best
    assert [len(g) for g in settings(bound, prompts=0).chosen(some)] == [len(method.grid(s)) for s in some]


# --------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("by", ["sample", "neurologic"])
def test_what_is_written_keeps_the_constraints(bound: Tiny, by: Any) -> None:
    method = settings(bound, longest=12, shortest=1, beam=4, texts=2)
    prompts = [Prompt("send is used to", "send", "is used to"), Prompt("Usually, a list can", "list", "can")]
    net, draws = method.roles["teacher"].module, Draws(0, ("t",))
    count = 40 if by == "sample" else 2
    rows = method.generate(net, prompts, count, draws, 0, Decoding(by, True, 1.0))
    assert len(rows) == count * 2 and rows[0].prompt == prompts[0].text and rows[-1].group == "list"
    for row in rows:
        words = re.findall(r"[\w']+", row.said.lower())
        assert sum(w in FUNCTION_WORDS for w in words) <= 1 and not set(words) & set(CONNECTIVES)
        assert row.group not in words and (row.group != "list" or "can" not in words)
    free = method.generate(net, prompts, count, draws, 0, Decoding(by, False, 1.0))
    assert [r.text for r in free] != [r.text for r in rows]


def test_texts_are_the_same_however_they_are_cut_into_batches(bound: Tiny) -> None:
    method = settings(bound, longest=8, shortest=1)
    prompts = method.chosen(method.about("train", 2))[0]
    net, draws, how = method.roles["teacher"].module, Draws(0, ("t",)), Decoding("sample", True, 0.9)
    whole = [r.text for r in method.generate(net, prompts, 3, draws, 5, how)]
    method.at_once = 2
    assert [r.text for r in method.generate(net, prompts, 3, draws, 5, how)] == whole
    one = [r.text for p, r in enumerate(prompts) for r in method.generate(net, [r], 3, draws, 5 + p, how)]
    assert one == whole


def test_a_related_concept_comes_where_it_can(bound: Tiny) -> None:
    method = settings(bound, decoding="neurologic", related=True, longest=14, shortest=1, beam=8, texts=1)
    asked = Prompt("send is used to", "send", "is used to", "q")
    rows = method.generate(method.roles["teacher"].module, [asked], 1, Draws(0, ("t",)), 0, method.how)
    assert "q" in rows[0].said
    assert len(method.constrained(asked).clauses.number) == 1
    inside = Prompt("artery is", "artery", "is", "temporal artery")  # banned and asked for at once
    assert len(method.constrained(inside).clauses.number) == 0


# ---------------------------------------------------------------------------------------------------------------- rounds


def test_a_round_learns_from_what_the_critic_accepts_and_no_more(bound: Tiny) -> None:
    method = settings(bound, rounds=0, threshold=0.5, release=0.8, cap=1, words=1)

    class Some:
        def prob_valid(self, texts: Any) -> torch.Tensor:
            return torch.tensor([0.9 if "good" in t else 0.6 if "fair" in t else 0.1 for t in texts])

    method.filter_critic = lambda: Some()
    method._classifier = lambda name: Some()
    texts = ["a is good one.", "a is good two.", "a is fair.", "b is bad.", "b is fair.", "b is good"]
    rows = [Row(t, t[:4], t[0], t.endswith(".")) for t in texts]
    kept = method.keep(0, rows, None)
    assert [r.text for r in kept.learn] == ["a is good one.", "b is fair."]
    assert [r.text for r in kept.release] == ["a is good one.", "a is good two."]
    assert [(s.filter, s.left) for s in kept.survivors] == [
        ("complete", 5), ("critic", 4), ("distinct", 4), ("cap", 2), ("complete", 5), ("release", 2), ("distinct", 2),
    ]  # fmt: skip
    assert kept.measures["held_out_accepts"] == pytest.approx(5 / 6) and kept.measures["distinct_accepted"] == 2.5
    method.imitate = "weighted"
    weighted = method.keep(0, rows, None)
    assert len(weighted.learn) == 2 and weighted.weight == pytest.approx([0.9, 0.6])


def test_rounds_run_and_their_figures_stand_in_the_state(done: Tiny) -> None:
    method = method_of(done)
    assert [s.name for s in done.engine.stages] == [
        "prompts", "write0", "keep0", "learn0", "write1", "keep1", "learn1", "write2", "keep2",
    ]  # fmt: skip
    assert len(method.state["measures"]) == 3 and {"round2/held_out_accepts", "critic/auroc"} <= set(method.measures())
    ctx = RunContext(done.engine, method, done.engine.stages[-1], torch.device("cpu"))
    rows = [method.loop.written(r, ctx) for r in range(3)]
    assert all(len(x) == 24 for x in rows) and {r.round for r in rows[2]} == {2}
    assert [r.text for r in rows[0]] != [r.text for r in rows[1]]
    told = method.state["survivors"]
    assert [s["given"] for s in told if s["filter"] == "complete"] == [24] * 6
    corpus = method.artifact().corpus
    released = [s["left"] for r in range(3) for s in [x for x in told if x["round"] == r][-1:]]
    assert len(corpus) == sum(released) == len({" ".join(t.lower().split()) for t in corpus.texts}) > 0
    moved = differences(*(dict(method.roles[n].module.state_dict()) for n in ("student", "teacher")))
    assert moved and len(method.notes) >= 3


def test_each_round_may_begin_with_the_base(bound: Tiny) -> None:
    method = settings(bound, start="base")
    student, teacher = (method.roles[n].module for n in ("student", "teacher"))
    with torch.no_grad():
        next(iter(student.parameters())).add_(1.0)
    assert differences(dict(student.state_dict()), dict(teacher.state_dict()))
    learn = [s for s in method.stages() if s.name.startswith("learn")]
    learn[1].begin(None)  # type: ignore[misc, arg-type]
    assert not differences(dict(student.state_dict()), dict(teacher.state_dict()))
    assert all(s.begin is None for s in settings(bound).stages())


def test_the_term_weighs_texts(bound: Tiny) -> None:
    method = settings(bound)
    method.loop.data.fill([Row("send is used to send.", "send"), Row("list is used to list.", "list")], [1.0, 0.0])
    ids = torch.arange(2)
    batch = {**method.loop.data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}

    class Ctx:
        def signal(self, role: str, b: Any) -> Any:
            from limbeck.grammar.signal import Signal

            return Signal(method.task.feed(method.roles[role].module, b))

    term = method.step(batch, Ctx())["lm"]
    values = term.values.detach()
    assert float(values[1].abs().sum()) == 0.0 and float(values[0].sum()) > 0


def test_what_is_too_much_alike_is_told_or_refused(bound: Tiny) -> None:
    from limbeck.parts.rounds import Kept

    for how in ("warn", "error"):
        method = settings(bound, rounds=3, floor=0.5, on_floor=how)
        found = iter([4.0, 1.0])
        method.loop.kept = lambda r, ctx: Kept([], [], [], {"distinct_accepted": next(found)})  # noqa: B023
        method.tell(0, None)
        if how == "error":
            with pytest.raises(DataError, match=r"round 1: 1.00 distinct.*after 4.00"):
                method.tell(1, None)
        else:
            method.tell(1, None)
            assert "after 4.00" in method.notes[-1]


# ------------------------------------------------------------------------------------------------------------ delivered


def test_a_run_leaves_a_corpus_and_says_what_survived(
    tmp_path: Path, shared_workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
    more = ["engine.device=cpu", "loggers=[]", "evaluator.concepts=2", "evaluator.texts=1"]
    assert main(["run", "i2d2", "--tiny", "--out", str(tmp_path / "run"), *more]) == 0
    said = capsys.readouterr().out
    assert "Survivors of each filter" in said and "Kept texts" in said
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert {"student", "teacher", "nucleus", "alone", "critic", "held-out"} <= set(result["metrics"]["rows"])
    corpus = Corpus.load(tmp_path / "run")
    assert len(corpus) == result["sizes"]["student"]["items"] > 0 and corpus.survivors == [
        dict(s) for s in corpus.survivors
    ]
    assert {"text", "concept", "prompt", "round", "score"} == set(corpus.rows[0])
    page = (tmp_path / "run/report.html").read_text()
    assert "Survivors of each filter" in page
    assert (tmp_path / "run/student/model.safetensors").is_file()


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"longest": 4, "shortest": 5}, "longest"),
        ({"related": True, "decoding": "sample"}, "related"),
        ({"related": True, "constraints": False}, "related"),
        ({"texts": 30, "beam": 20}, "texts"),
        ({"imitate": "weighted", "critic": "none"}, "imitate"),
        ({"threshold": 0.9, "release": 0.5}, "release"),
        ({"adverbs": []}, "adverbs"),
        ({"relations": ["is/are/be"]}, "relations"),
        ({"rounds": -1}, "rounds"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        I2d2(**given)


def test_what_cannot_work_is_refused_before_anything_is_written(bound: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longest"):
        settings(bound, longest=40)
    with pytest.raises(ConfigError, match="single words"):
        settings(bound, connective_list=["as well"])
    with pytest.raises(LimbeckError, match="its own teacher"):
        tiny("i2d2", tmp_path, "teacher={use: causal-lm, layers: 1, width: 8, heads: 2}")
    with pytest.raises(LimbeckError, match=r"evaluator|language"):
        tiny("i2d2", tmp_path, "task={use: language}")


def test_too_few_accepted_texts_stop_the_run_with_their_survivors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0 texts are left.*24 written, complete \d+, critic 0") as caught:
        tiny("i2d2", tmp_path, "method.threshold=1.0", "method.release=1.0").run()
    assert "method.threshold" in str(caught.value)
