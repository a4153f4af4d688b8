"""Impossible Distillation: contexts, critics, filters in both kinds of rounds, codes, what is learnt and delivered, refusals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from limbeck.artifacts.corpus import Corpus
from limbeck.cli import main
from limbeck.data.paraphrases import ENTAILMENT, PairFilters, rouge_l
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.random import Draws
from limbeck.methods.corpora import impossible_distillation
from limbeck.methods.corpora.impossible_distillation import CODES, MEDIA, PLACES, ImpossibleDistillation
from limbeck.parts.entailment import Containment, check_scores, table, trial
from limbeck.parts.rounds import Row
from limbeck.tasks.sentences import RELATIONS, Sentences, made_pairs, sentences_of
from tests.tiny import Tiny, tiny

TEXTS = [
    "The council approved the new budget on Monday.",
    "On Monday the council approved its new budget.",
    "The council approved the new budget on Monday!",
    "Rain fell on 12 towns in the north.",
    "In the north rain fell on 14 towns.",
    "In the north rain fell on 12 towns.",
]


@pytest.fixture(scope="module")
def done(shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        return tiny("impossible-distillation", tmp_path_factory.mktemp("done")).run()


def again(run: Tiny, **changes: Any) -> Any:
    """The bound method with other settings, and the run's contexts."""
    made = ImpossibleDistillation(**{"longest": 20, "least": 1, "samples": 4, "ngram": 0, **changes})
    made.bind(run.method.setup)
    found: Any = run.method
    made._cuts, made.state["held"] = found._cuts, found.state["held"]
    return made


def context(run: Tiny, method: Any) -> Any:
    run.engine.prepare(method)
    return RunContext(run.engine, method, run.engine.stages[0], torch.device("cpu"))


def rows_of(texts: list[str], prompt: str, group: str = "0") -> list[Row]:
    return [Row(t, prompt, group) for t in texts]


# --------------------------------------------------------------------------------------------------- sentences, critics


def test_sentences_are_complete_or_not() -> None:
    assert sentences_of("It cost 3.5 pounds! Why? Nobody\nknew. Then") == [
        ("It cost 3.5 pounds!", True),
        ("Why?", True),
        ("Nobody\nknew.", False),
        ("Then", False),
    ]
    assert sentences_of("a. ") == [("a.", False)] and sentences_of(" ") == []
    assert sentences_of('He said "no." And left.')[0] == ('He said "no."', True)


def test_made_pairs_hold_every_relation_and_critics_tell_them(done: Tiny) -> None:
    task: Any = done.bench.task
    assert isinstance(task, Sentences)
    texts = [d.text for d in task.texts.test]
    pairs = made_pairs(texts)
    assert pairs == made_pairs(texts) and Counter(y for _, _, y in pairs) == {
        0: len(texts),
        1: len(texts),
        2: len(texts),
    }
    assert RELATIONS[ENTAILMENT] == "entailment"
    ours, theirs = (set(task.half(p)) for p in ("entailment", "held-out"))
    assert ours and theirs and not ours & theirs
    for critic in (Containment(task.half("entailment")), Containment(task.half("held-out"), characters=4)):
        found = trial(critic, pairs)
        assert found["accuracy"] > 0.8 and found["entailed"] > 0.7 > 0.4 > found["others"]


def test_containment_is_directed_and_knows_denial() -> None:
    critic = Containment(TEXTS)
    scores = critic.score(
        ["The red bird sings loudly.", "A bird.", "The bird sings.", "x"],
        ["A bird.", "The red bird sings loudly.", "The bird never sings.", "..."],
    )
    assert scores[0, ENTAILMENT] > scores[1, ENTAILMENT] and scores[2].argmax() == 0 and scores[3, 2] == 1
    np.testing.assert_allclose(scores.sum(1), 1)


def test_tables_of_all_and_of_some_pairs() -> None:
    critic = Containment(TEXTS)
    whole, some = table(critic, TEXTS[:3]), table(critic, TEXTS[:3], [(0, 1), (1, 0)])
    assert (some[0, 1] == whole[0, 1]).all() and (some[0, 2] == 0).all() and (whole[1, 1] == [0, 1, 0]).all()
    for bad in (np.zeros((2, 3)), np.full((2, 3), np.nan), np.ones((2, 2)) / 2, np.array([[2.0, -1, 0]] * 2)):
        with pytest.raises(ConfigError, match="no probabilities"):
            check_scores(bad, 2)


# -------------------------------------------------------------------------------------------------------------- filters


def test_counts_say_what_each_filter_left() -> None:
    nli = table(Containment(TEXTS), TEXTS)
    told: Counter[str] = Counter()
    filters = PairFilters(entails=0.6, entailed=0.6)
    pairs = filters.mine(TEXTS, nli, told)
    assert told["pairs"] == 15 >= told["length"] >= told["entails"] >= told["entailed"] >= told["one of each"]
    assert told["reworded"] == len(pairs) <= told["numbers"]
    assert [p for p in filters.passing(TEXTS, nli) if p == filters.best(TEXTS, nli)]
    for name in ("entails", "entailed"):
        left = [
            len(PairFilters(**{"entails": 0.0, "entailed": 0.0, name: t}).passing(TEXTS, nli)) for t in (0, 0.5, 0.9, 1)
        ]
        assert left == sorted(left, reverse=True)


def test_pairs_of_one_context_are_mined(done: Tiny) -> None:
    method = again(done, critic="words", entails=0.6, entailed=0.6)
    method._cuts = [["The news:", "x"], ["The weather:", "y"]]
    method._critics["critic"] = Containment(TEXTS)
    rows = [*rows_of(TEXTS[:3], "The news:"), *rows_of([TEXTS[3], TEXTS[5], TEXTS[5]], "The weather:", "1")]
    rows.append(Row("It went on and", "The news:", "0", False))
    kept = method.keep(0, rows, context(done, method))
    found = {(r.prompt, r.text) for r in kept.learn}
    assert (TEXTS[3], TEXTS[5]) in found and all(rouge_l(a, b) <= 0.75 for a, b in found)
    assert all({a, b} <= set(TEXTS[:3]) or {a, b} <= set(TEXTS[3:]) for a, b in found)  # never across contexts
    assert (kept.survivors[0].given, kept.survivors[0].left) == (7, 6)
    assert [s.filter for s in kept.survivors] == [
        "complete", "length", "entails", "entailed", "one of each", "numbers", "reworded", "distinct",
    ]  # fmt: skip
    assert kept.survivors[1].given == 4  # of three and of two different sentences
    assert method.keep(0, [], context(done, method)).learn == []


def test_a_later_round_may_learn_from_the_pairs_of_all(done: Tiny) -> None:
    original, new = "Rain fell on 12 small towns.", "On 12 towns that are small rain fell."
    found = {}
    for pool in ("round", "all"):
        method = again(done, critic="none", pool=pool, overlap=1.0, shortest_ratio=0.1, longest_ratio=10)
        method._cuts = [["c", original]]
        before = method.keep(0, rows_of([original, "It rained on 12 towns."], "c"), context(done, method))
        method.loop.kept = lambda i, ctx, b=before: b
        found[pool] = method.keep(1, rows_of([new], original), context(done, method))
        assert [r.text for r in found[pool].release] == [new] and len(before.learn) == 1
    assert [r.text for r in found["round"].learn] == [new]
    assert [r.text for r in found["all"].learn] == ["It rained on 12 towns.", new]


@pytest.mark.parametrize(("variant", "count"), [("paper", 0), ("released", 1)])
def test_a_number_that_only_the_original_has(done: Tiny, variant: Any, count: int) -> None:
    method = again(done, variant=variant, critic="none")
    method._cuts = [["c", "Rain fell on 12 small towns."]]
    rows = rows_of(["In the small towns rain fell hard."], "Rain fell on 12 small towns.")
    method.loop.kept = lambda i, ctx: method.keep(0, [], ctx)
    assert len(method.keep(1, rows, context(done, method)).learn) == count


def test_later_rounds_take_the_text_with_least_overlap_or_a_random_one(done: Tiny) -> None:
    original = "The council approved the new budget on Monday."
    texts = ["On Monday the new budget was approved by the council.", "On Monday a new budget of the council was approved.",
             "The council approved the new budget on Monday."]  # fmt: skip
    critic = Containment(TEXTS)
    taken = set()
    for choose in ("least-overlap", "random"):
        method = again(done, critic="words", entails=0.5, entailed=0.5, choose=choose)
        method._critics["critic"] = critic
        method._cuts = [["c", original]] * 8
        method.loop.kept = lambda i, ctx, m=method: m.keep(0, [], ctx)
        rows = [r for g in range(8) for r in rows_of(texts, original, str(g))]
        kept = method.keep(1, rows, context(done, method))
        assert original not in [r.text for r in kept.learn]  # identical strings never survive
        if choose == "random":
            taken = {r.text for r in kept.learn}
        else:
            least = min(texts[:2], key=lambda t: rouge_l(original, t))
            assert [r.text for r in kept.learn] == [least]  # once, from whichever group
            assert [s.left for s in kept.survivors][-2:] == [8, 1]
    assert taken <= set(texts[:2]) and len(taken) == 2


def test_summaries_are_shorter_and_entailed_forward_alone(done: Tiny) -> None:
    filters = again(done, what="summary", critic="words").filters
    assert filters.entailed == 0 and filters.longest == 0.75 and filters.entails == 0.75
    original, short = "The council approved the new budget on Monday.", "The council approved it."
    nli = np.zeros((2, 2, 3))
    nli[0, 1, ENTAILMENT] = 0.9
    assert filters.passing([original, short], nli) and not again(done, critic="words").filters.passing(
        [original, short], nli
    )


# ------------------------------------------------------------------------------------------------------ codes, prefixes


def test_codes_are_terciles_of_the_pairs_themselves(done: Tiny) -> None:
    method = again(done, codes=True)
    rows = [Row("w " * (n + 1) + ".", "w w w w w.", str(n)) for n in range(9)]
    coded = method.coded(rows)
    lengths = [r.prompt.split(",")[0] for r in coded]
    assert lengths == ["shorter"] * 3 + ["as long"] * 3 + ["longer"] * 3
    assert all(r.prompt.split(",")[1].split(":")[0].strip() in CODES[1] for r in coded)
    assert again(done).coded(rows) == rows
    with pytest.raises(ValueError, match="set codes=true"):
        ImpossibleDistillation(control="longer, far")
    with pytest.raises(ValueError, match="control must be one of"):
        ImpossibleDistillation(codes=True, control="long")


def test_beginnings_of_each_domain(done: Tiny) -> None:
    news = [again(done, domain="news").beginning(i) for i in range(60)]
    assert all(n.endswith("--") and any(m in n for m in MEDIA) for n in news) and len(set(news)) > 20
    with_city = sum(any(city in n for city, _ in PLACES) for n in news)
    assert 5 <= with_city <= 28  # a quarter
    assert again(done, domain="bio").beginning(3) in ("Abstract:", "Introduction:", "Method:", "Conclusion:")
    method = again(done, prefix=2)
    assert all(len(method.beginning(i).split()) <= 2 for i in range(5))
    assert method.beginning(1, "test") in [" ".join(d.text.split()[:2]) for d in method.task.texts.test]


def test_contexts_are_cut_before_each_complete_sentence(done: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    method = again(done)
    monkeypatch.setattr(method, "continuations_of", lambda *a: ["went out. It rained. And"])
    assert method.cut(["He"], Draws(0, ("t",)), torch.zeros(1)) == [["He", "went out."], ["He went out.", "It rained."]]
    cuts = done.method._cuts  # type: ignore[attr-defined]
    assert len({tuple(x) for x in cuts}) == len(cuts) > 0 and all(sentences_of(y)[0][1] for _, y in cuts)


def test_no_line_break_is_written_and_writing_stops_at_a_sentence(done: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    method = again(done, top_p=1.0)
    rows = method.ids(["send is used to"]) * 30
    made = method.continuations_of(method.roles["teacher"].module, rows, Draws(0, ("t",)), torch.arange(30), 2.0, 20)
    assert not any("\n" in t for t in made) and any(t.rstrip().endswith((".", "?", "!")) for t in made)
    monkeypatch.setattr(impossible_distillation, "continued", lambda *a, **k: [(method.ids(["in 2 0 1 9."])[0], True)])
    assert again(done, domain="bio").continuations_of(
        method.roles["teacher"].module, rows[:1], Draws(0, ("t",)), torch.arange(1), 1.0, 5
    ) == ["in 2019."]


# --------------------------------------------------------------------------------------------------- learn and deliver


def test_the_new_sentence_is_learnt_behind_its_original(done: Tiny) -> None:
    method = again(done)
    data = method.loop.data
    data.fill([Row("In a town rain fell.", "Rain fell in a town.")])
    batch = data.fetch(torch.tensor([0]))
    counted = batch["labels"][0][batch["labels"][0] != -100]
    tokenizer = method.task.tokenizer
    assert tokenizer.decode(counted[:-1]) == "In a town rain fell." and counted[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).startswith("Rain fell in a town.\n")


def test_a_run_leaves_a_corpus_and_figures_of_every_round(done: Tiny, tmp_path: Path) -> None:
    method: Any = done.method
    measures = method.measures()
    assert {"round0/pairs", "round1/pairs", "critic/accuracy", "held-out/accuracy"} <= set(measures)
    artifact = method.artifact()
    artifact.save(tmp_path)
    corpus = Corpus.load(tmp_path)
    assert len(corpus) > 0 and {"text", "original", "context", "round"} <= set(corpus.rows[0])
    keys = [(r["original"].lower(), r["text"].lower()) for r in corpus.rows]
    assert len(set(keys)) == len(keys) and corpus.survivors
    assert [n for n in method.notes if n.startswith("round 1:")]
    assert len(method.extras()["tables"]) == 3
    student, first, teacher = (method.roles[n].module.state_dict() for n in ("student", "first", "teacher"))
    assert any(not torch.equal(student[k], first[k]) for k in student)
    assert any(not torch.equal(teacher[k], first[k]) for k in student)


def test_rows_are_measured_by_the_held_out_critic(done: Tiny) -> None:
    method: Any = done.method
    raw = method.rows()["teacher"]
    made = method.rewritten(raw, "test", 5, 2, Draws(0, ("x",)))
    assert len(made.texts) == len(made.originals) == len(made.passed) == 10 or len(method.state["held"]["test"]) < 5
    one = method.rewritten(method.artifact(), "test", 5, 2, Draws(0, ("x",)))
    assert one.originals == made.originals and one.texts != made.texts
    critic = method.critic_of("held-out")
    np.testing.assert_allclose(made.entails, critic.score(made.originals, made.texts)[:, ENTAILMENT])
    assert method.rewritten(raw, "train", 5, 2, Draws(0, ("x",))).texts == []


def test_the_student_may_begin_again_each_round(done: Tiny) -> None:
    method = again(done, continue_from="first")
    ctx = context(done, method)
    student = method.roles["student"].module
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    method.begin_round(1, ctx)
    theirs = method.roles["teacher"].module.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in student.state_dict().items())
    assert not all(torch.equal(v, theirs[k]) for k, v in method.roles["first"].module.state_dict().items())
    own = again(done, start="own", continue_from="first")
    with pytest.raises(ConfigError, match="not kept with start=own"):
        own.begin_round(1, context(done, own))


def test_a_network_of_inference_takes_part_and_its_classes_are_known_by_name(
    shared_workspace: Path, tmp_path: Path
) -> None:
    run = tiny("impossible-distillation", tmp_path, "method.critic=nli", "method.entails=0", "method.entailed=0",
               "participants={critic: {use: ngrams, buckets: 64}, held-out: {use: ngrams, buckets: 64}}")  # fmt: skip
    method: Any = run.method
    critic = method.critic_of("critic")
    scores = critic.score(["a b c d", "x y"], ["a b c", "y"])
    check_scores(scores, 2)
    critic.columns = [2, 1, 0]
    np.testing.assert_allclose(critic.score(["a b c d"], ["a b c"])[0], scores[0][::-1], rtol=1e-5)
    assert critic.score([], []).shape == (0, 3)
    assert set(method.participants) == {"teacher", "critic", "held-out"}


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 1}, "samples must be"),
        ({"entails": 1.5}, "entails must be"),
        ({"overlap": -0.1}, "overlap must be"),
        ({"shortest_ratio": 2.0}, "no more than longest_ratio"),
        ({"pair_temperature": 0.0}, "pair_temperature must be"),
        ({"rounds": 0}, "rounds must be"),
    ],
)
def test_settings_that_are_none(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImpossibleDistillation(**changes)


def test_texts_that_do_not_fit_and_teachers_that_write_nothing(done: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"less than task\.length"):
        again(done, longest=500)
    method = again(done)

    class Nothing:
        def items(self, stage: str) -> list[str]:
            return ["train-000000"]

        def artifact(self, stage: str, item: str) -> list[Any]:
            return []

    with pytest.raises(DataError, match="no complete sentence"):
        method.hold(Nothing())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=language"], "is for sentences"),
        (["method.least=999"], "expected at least 999"),
        (["teacher={use: causal-lm, layers: 2, width: 16, heads: 2}", "teach.steps=1"], "built differently"),
        (["method.critic=bert"], "method.critic"),
    ],
)
def test_a_run_that_is_refused(
    words: list[str], said: str, tmp_path: Path, shared_workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "impossible-distillation", "--tiny", "--out", str(tmp_path / "r"), *words]) == 2
    assert said in capsys.readouterr().err
