"""Synthetic data of a large teacher: questions, prompts, what is kept, what the student learns, endpoints, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from limbeck.artifacts.corpus import Corpus
from limbeck.cli import main
from limbeck.data.answers import STATUS
from limbeck.data.chat import Function, Reply, Sampling, collected
from limbeck.data.kinds import KINDS, answered, entities, number_of, target
from limbeck.data.numerals import Numerals, letter_by_letter, roman, value_of
from limbeck.data.text import Document, TextSource
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.signal import Signal
from limbeck.methods.corpora.frontier_synthetic import FrontierSynthetic
from limbeck.models.numeral_rules import Rules
from limbeck.parts.chat import LocalChat, build_synthetic_set, preferred, status_of
from limbeck.tasks.questions import Questions
from tests.cache.chatting import serving
from tests.tiny import Tiny, tiny


@pytest.fixture(scope="module")
def bound(shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        return tiny("frontier-synthetic", tmp_path_factory.mktemp("bound"))


def again(run: Tiny, teacher: Any = None, **changes: Any) -> Any:
    """The bound method with other settings, and another teacher."""
    made = FrontierSynthetic(**{"least": 1, "longest": 60, **changes})
    setup = run.method.setup
    if teacher is not None:
        assert setup.teacher is not None
        setup = replace(setup, teacher=replace(setup.teacher, module=teacher))
    made.bind(setup)
    return made


class Says(Function):
    """A teacher of texts in a role's place."""

    fingerprint = "says"

    def answer(self, batch: Any, taps: Any = ()) -> Any:
        raise AssertionError


def says(fn: Callable[[str, str], str]) -> Says:
    return Says(lambda m, how: fn(m[0]["content"], m[-1]["content"]), "says")


def context(run: Tiny, method: Any) -> Any:
    run.engine.prepare(method)
    return RunContext(run.engine, method, run.engine.stages[0], torch.device("cpu"))


def run_of(run: Tiny, method: Any) -> Any:
    """Its replies written and kept."""
    ctx = context(run, method)
    rows = [row for item in method.pieces(ctx) for row in method.write(0, item, ctx)]
    return method.keep_replies(0, rows, ctx)


# ------------------------------------------------------------------------------------------------ questions and answers


def test_numerals_are_read_and_misread() -> None:
    assert [value_of(roman(n)) for n in range(1, 4000)] == list(range(1, 4000))
    assert roman(3888) == "MMMDCCCLXXXVIII" and letter_by_letter("IX") == 11
    found = Numerals(50).read()["all"]
    assert len({d.prompt for d in found}) == 50 and found == Numerals(60).read()["all"][:50]
    with pytest.raises(ValueError, match="questions must be"):
        Numerals(9)


def test_questions_are_conversations_of_which_the_answer_and_its_end_count(bound: Tiny) -> None:
    task: Any = bound.bench.task
    document = task.train.documents[0]
    assert [r for r, _ in document.turns] == ["system", "user", "assistant"]
    assert int(document.turns[-1][1]) == value_of(document.turns[1][1])  # what stands behind ####, not the working
    batch = task.train.fetch(torch.tensor([0]))
    counted = batch["labels"][0][batch["labels"][0] != -100]
    assert task.tokenizer.decode(counted[:-1]) == document.turns[-1][1] and counted[-1] == task.tokenizer.eos_token_id


class Given(TextSource):
    def __init__(self, **splits: list[Document]) -> None:
        self.splits = splits

    def read(self) -> dict[str, list[Document]]:
        return self.splits


def pairs(a: int, b: int) -> list[Document]:
    return [Document(f"{n}", f"count {n}") for n in range(a, b)]


def test_questions_of_other_forms() -> None:
    talk = Document("x", "y", (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Goodbye")))
    task = Questions(Given(train=[talk, *pairs(0, 30)], test=pairs(30, 40)), kind="conversation", system="Be kind.")
    task.load()
    turns = task.train.documents[0].turns
    assert turns[0] == ("system", "Be kind.") and len(turns) == 5
    assert task.question_of(task.train.documents[0]) == talk.turns[:3] and task.gold_of(talk) == "Goodbye"
    bare = Questions(Given(train=pairs(0, 30), test=pairs(30, 40)), kind="nli", system="")
    bare.load()
    assert bare.train.documents[0].turns[0][0] == "user"
    few = bare.framed(bare.test.documents[0], "few-shot", bare.valid.documents[:1])
    assert [r for r, _ in few] == ["user", "assistant", "user", "assistant"]
    assert bare.framed(bare.test.documents[0], "cot")[0][1].count("answer_choice") == 1


def test_a_teacher_from_scratch_has_questions_of_its_own_and_learns_both_prompts() -> None:
    task = Questions(Numerals(60), teacher_fraction=0.5)
    task.load()
    mine = {task.question_of(d) for d in task.train.documents}
    part: Any = task.part("teacher")
    theirs = {task.question_of(d) for d in part.teacher_train.documents}
    assert mine and theirs and not mine & theirs and abs(len(mine) - len(theirs)) <= 1
    worked = [d for d in part.teacher_train.documents if "JSON" in d.turns[0][1]]
    assert len(worked) == len(theirs)
    answer = KINDS["math"].read("cot", worked[0].text)
    assert answer.status == "kept" and int(answer.text) == value_of(worked[0].turns[1][1])
    assert part.tokenizer is not task.tokenizer


def test_a_question_of_the_test_split_is_not_learnt_with_another_answer() -> None:
    task = Questions(Given(train=[Document("other", "count 33"), *pairs(0, 30)], test=pairs(30, 40)))
    task.load()
    assert all(d.turns[1][1] != "count 33" for d in (*task.train.documents, *task.valid.documents))
    assert any("'count 33'" in note for note in task.notes)
    same = [Document("other", f"count {n}") for n in range(40)]
    with pytest.raises(DataError, match="of 40 questions are in the test split too"):
        Questions(Given(train=same, test=pairs(0, 40))).load()


def test_texts_are_no_questions() -> None:
    with pytest.raises(DataError, match="without a question"):
        Questions(Given(all=[Document(f"a text {i}") for i in range(40)])).load()


@pytest.mark.parametrize("changes", [{"kind": "poems"}, {"teacher_fraction": 1.0}, {"template": "html"}])
def test_task_settings_that_are_none(changes: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Questions(**changes)


# --------------------------------------------------------------------------------------------------- reading and grading


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if "cot" in k.styles])
def test_what_the_prompt_asks_for_is_read_again(kind: Any) -> None:
    assert f'"{kind.key}"' in kind.styles["cot"] and '"reason"' in kind.styles["cot"]
    said = kind.worked("because  so", "neutral")
    answer = kind.read("cot", said)
    assert (answer.status, answer.text) == ("kept", "neutral") and kind.reason(said) == "because so"
    assert kind.read("cot", said, finished=False).status == "not_finished"
    assert kind.read("cot", f"Sure! {said}").status == "unparsable"
    assert kind.read("cot", f"Sure! {said}", tolerant=True).status == "kept"
    assert kind.read("vanilla", " neutral \n").text == "neutral" and kind.read("vanilla", " ").status == "empty"
    assert kind.read("vanilla", "a b c", max_words=2).status == "over_long"


def test_grades() -> None:
    math = KINDS["math"]
    assert math.grade("$1,250.0", "1250")["score"] == 1 and math.grade("1250 apples", "1250")["score"] == 0
    assert number_of("1e400000") is not None and number_of("nan") is None and number_of("") is None
    assert KINDS["nli"].grade("Neutral.", "neutral")["score"] == 1
    made = KINDS["summarization"].grade("It opened in Novi Sad in 2024.", "The bridge opened in 2024.")
    assert made["score"] == made["rouge_l"] > 0 and made["entity_density"] == 2 / 7 and made["words"] == 7
    assert entities("Paris is big. Rain fell on Rome.") == ["Rome"]
    assert KINDS["math"].read("cot", '{"answer": 6}', gold="6.0").status == "kept"  # equal as numbers
    assert KINDS["math"].read("cot", '{"answer": 6}', gold="7").status == "disagrees"
    assert answered(target("so", "6", "reasoning+answer"), "reasoning+answer") == "6"
    assert answered("so it is 6", "reasoning+answer") is None  # cut off before the marker


def test_every_reply_has_one_cause() -> None:
    kind = KINDS["math"]
    good = '{"reason": "r", "answer": 3}'
    said = {
        "kept": Reply(good), "not_finished": Reply(good, "length"), "refused": Reply("", "refused"),
        "malformed": Reply("", "malformed"), "unparsable": Reply("3"), "missing_key": Reply("{}"),
        "empty": Reply('{"answer": ""}'),
    }  # fmt: skip
    assert {c: status_of(kind, "cot", r)[0] for c, r in said.items()} == {c: c for c in said}
    assert status_of(kind, "cot", Reply(good), "reasoning+answer")[2] == "r Answer: 3"
    assert status_of(kind, "cot", Reply('{"answer": 3}'), "reasoning+answer")[0] == "missing_key"
    assert status_of(kind, "cot", Reply(good), gold="4")[0] == "disagrees"


def test_a_set_is_built_of_any_function_and_its_cache_makes_no_call_twice(tmp_path: Path) -> None:
    calls = []

    def fn(messages: list[dict[str, str]], how: Sampling) -> str:
        calls.append(how)
        assert "step by step" in messages[0]["content"]
        return '{"reason": "x", "answer": 6}' if "3" in messages[-1]["content"] else "six"

    given: dict[str, Any] = {"cache": tmp_path / "c.jsonl"}
    made = build_synthetic_set("math", ["3 + 3?", "2 + 4?"], fn, **given)
    assert [m.reason for m in made] == ["kept", "unparsable"]
    assert made[0].messages == (("system", KINDS["math"].plain), ("user", "3 + 3?"), ("assistant", "6"))
    assert set(made[0].row()) == {"messages", "target", "raw", "parsed", "kept", "reason"}
    assert build_synthetic_set("math", ["3 + 3?", "2 + 4?"], fn, **given) == made and len(calls) == 2
    build_synthetic_set("math", ["3 + 3?"], fn, sampling=Sampling(temperature=1.0), **given)
    assert len(calls) == 3
    with pytest.raises(ConfigError, match="did you mean 'math'"):
        build_synthetic_set("maths", [], fn)
    with pytest.raises(ConfigError, match="vanilla, cod"):
        build_synthetic_set("summarization", [], fn, style="cot")
    with pytest.raises(DataError, match="one for each of 1"):
        build_synthetic_set("math", ["a"], fn, gold=[])


def test_a_judge_sees_both_orders() -> None:
    def biased(messages: list[dict[str, str]], how: Sampling) -> str:
        return "A"

    def fair(messages: list[dict[str, str]], how: Sampling) -> str:
        said = messages[-1]["content"]
        if "mute" in said:
            return "A or B"
        return "A" if said.index("good") < said.index("bad") else "B"

    assert preferred(Function(biased), ["q"], ["good"], ["bad"]) == [0.5]
    assert preferred(Function(fair), ["q", "q", "mute"], ["good", "bad", "good"], ["bad", "good", "bad"]) == [
        1,
        0,
        None,
    ]


# ------------------------------------------------------------------------------------------------------ write and keep


def test_what_is_kept_is_counted_cause_by_cause(bound: Tiny) -> None:
    method = again(bound, Rules(0.4, 0.1, 0.1, 0.1))
    kept = run_of(bound, method)
    n = len(method.task.train.documents)
    m = kept.measures
    assert m["replies"] == n and kept.survivors[0].given == n and kept.survivors[-1].left == m["kept"]
    out = sum(m.get(s, 0) for s in (*STATUS[1:], "refused", "malformed"))
    assert m["kept"] + out == n and m["not_finished"] > 0 and m["unparsable"] > 0
    assert m["success"] == pytest.approx(1 - out / n)
    for row in kept.learn:
        document = method.task.train.documents[int(row.group)]
        assert row.text == KINDS["math"].read("cot", row.note).text
        record = method.record(row)
        assert record.turns[:-1] == document.turns[:-1] and record.turns[-1] == ("assistant", row.text)
        assert "JSON" not in record.prompt  # the long prompt is never shown to the student
    right = [int(r.text) == value_of(method.task.train.documents[int(r.group)].turns[1][1]) for r in kept.learn]
    assert m["label_score"] == pytest.approx(sum(right) / len(right)) and 0.7 < m["label_score"] < 1
    assert run_of(bound, again(bound, Rules(0.4, 0.1, 0.1, 0.1))).learn == kept.learn


def test_true_answers_alone_and_better_labels_by_reasoning(bound: Tiny) -> None:
    teacher = Rules(0.5, 0.02, 0.0, 0.0)
    scores = {s: run_of(bound, again(bound, teacher, style=s)).measures["label_score"] for s in ("vanilla", "cot")}
    assert scores["cot"] > scores["vanilla"] + 0.1
    strict = run_of(bound, again(bound, teacher, style="vanilla", gold=True))
    assert strict.measures["label_score"] == 1 and strict.measures["disagrees"] > 0
    assert strict.measures["success"] == 1  # what is wrong was usable all the same


def test_several_replies_and_reasons_and_texts_that_do_not_fit(bound: Tiny) -> None:
    teacher = Rules(0.5, 0.5, 0.0, 0.0)
    kept = run_of(bound, again(bound, teacher, samples=3))
    groups = [r.group for r in kept.learn]
    assert len(set(groups)) < len(groups) == len({(r.group, r.text) for r in kept.learn})
    reasons = again(bound, teacher, keep="reasoning+answer")
    made = run_of(bound, reasons)
    fits = next(s for s in made.survivors if s.filter == "fits")
    assert fits.left < fits.given  # left out and counted, never cut
    reasons.loop.data.fill(made.learn)
    assert int(reasons.loop.data.sizes.max()) <= reasons.task.length
    assert all(" Answer: " in r.text for r in made.learn)


def test_the_student_learns_the_response_alone(bound: Tiny) -> None:
    method = again(bound)
    kept = run_of(bound, method)
    data = method.loop.data
    data.fill(kept.learn[:5])
    batch = {**data.fetch(torch.arange(5)), "item": torch.arange(5), "view": torch.zeros(5, dtype=torch.long)}
    net = method.roles["student"].module
    with torch.no_grad():
        logits = net(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.requires_grad_()
    term = method.task.supervised(Signal(logits), batch)
    loss = term.total() / term.n()
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(loss, wanted)
    (grad,) = torch.autograd.grad(loss, logits)
    silent = torch.cat([batch["labels"][:, 1:] == -100, torch.ones(5, 1, dtype=torch.bool)], 1)
    assert bool((grad[silent] == 0).all()) and bool((grad[~silent] != 0).any(-1).all())
    for i, row in enumerate(kept.learn[:5]):
        ids = batch["labels"][i][batch["labels"][i] != -100]
        assert method.task.tokenizer.decode(ids[:-1]) == row.text and ids[-1] == method.task.tokenizer.eos_token_id


def test_too_many_replies_that_cannot_be_used(bound: Tiny) -> None:
    with pytest.raises(DataError, match=r"not one of its first 64 replies.*'x' \(stop\)") as caught:
        run_of(bound, again(bound, says(lambda system, question: "x")))
    assert "tolerant" in caught.value.remedy
    odd = says(lambda system, question: "x" if len(question) % 2 else '{"answer": 3}')
    with pytest.raises(DataError, match=r"% of its 83 replies can be used: \d+ .*unparsable") as caught:
        run_of(bound, again(bound, odd))
    assert "method.success" in caught.value.expected
    assert run_of(bound, again(bound, odd, success=0.1)).measures["unparsable"] > 0
    fenced = says(lambda system, question: '```json\n{"reason": "r", "answer": 3}\n```')
    assert run_of(bound, again(bound, fenced, tolerant=True)).measures["success"] == 1


def test_the_best_prompt_on_validation_questions_is_taken(bound: Tiny, tmp_path: Path) -> None:
    run = tiny("frontier-synthetic", tmp_path, "teacher.careless=1", "teacher.cut=0", "teacher.broken=0",
               "method.try_styles=[vanilla,cot]", "method.try_temperatures=[0.2,0]", "method.style=vanilla").run()  # fmt: skip
    method: Any = run.method
    assert method.chosen_style == "cot" and len(method.state["tried"]) == 4
    assert method.state["chosen"]["temperature"] == 0.2  # of equals the first
    assert method.measures()["teacher/label_score"] > 0.9
    assert any("best on validation" in n for n in method.notes)
    assert Corpus.unpacked(method.state["corpus"]).rows[0]["messages"][0]["content"] == "Read the numeral."


def test_conversations_learn_every_turn(bound: Tiny) -> None:
    task = Questions(
        Given(all=[Document("a", "q", (("user", f"a{i}"), ("assistant", "x"), ("user", "b"), ("assistant", "y"))) for i in range(40)]),
        kind="conversation", vocab_size=300, length=32,
    )  # fmt: skip
    task.load()
    made = FrontierSynthetic(least=1)
    teacher = replace(bound.method.setup.teacher, module=Says(lambda m, how: f"re {m[-1]['content']}", "says"))  # type: ignore[type-var]
    student = replace(bound.method.setup.student)
    made.bind(replace(bound.method.setup, task=task, teacher=teacher, student=student))
    kept = run_of(bound, made)
    record = made.record(kept.learn[0])
    assert [c for r, c in record.turns if r == "assistant"] == [f"re {record.turns[0][1]}", "re b"]
    made.loop.data.fill(kept.learn)
    batch = made.loop.data.fetch(torch.tensor([0]))
    said = task.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100], skip_special_tokens=True)
    assert said == f"re {record.turns[0][1]}re b"


# ------------------------------------------------------------------------------------------------- a model in this process


def test_a_local_model_answers_the_same_in_any_company(bound: Tiny) -> None:
    task: Any = bound.bench.task
    one = LocalChat(task, bound.method.roles["student"].module)
    asked = [d.turns[:2] for d in task.train.documents[:6]]
    how = [Sampling(1.0, 1.0, 8, 0)] * 6
    together = collected(one, asked, how)
    assert [collected(one, [a], how[:1])[0] for a in asked] == together
    assert len({r.text for r in together}) > 1
    other = collected(one, asked, [Sampling(1.0, 1.0, 8, 0, number=1)] * 6)
    assert [r.text for r in other] != [r.text for r in together]
    greedy = collected(one, asked, [Sampling(0.0, 1.0, 8, 5)] * 6)
    assert greedy == collected(one, asked, [Sampling(0.0, 1.0, 8, 0)] * 6)
    long = [("user", "M" * 3000)]
    assert collected(one, [long], how[:1]) == [
        Reply("", "length", len(task.tokenizer("M" * 3000 + "\n")["input_ids"]), 0)
    ]


def test_rows_are_graded_in_their_own_style(bound: Tiny) -> None:
    method = again(bound, Rules(1.0, 0.0, 0.0, 0.0))
    documents = method.task.test.documents[:8]
    rows = method.rows()
    assert list(rows) == ["teacher", "teacher, short prompt", "before", "before, long prompt"]
    by = {name: method.answers(row, "test", documents) for name, row in rows.items()}
    gold = [method.task.gold_of(d) for d in documents]
    assert by["teacher"].answers == gold
    assert by["teacher, short prompt"].answers == [str(letter_by_letter(d.turns[1][1])) for d in documents]
    assert sum(by["teacher"].asked) > 3 * sum(by["teacher, short prompt"].asked)
    with pytest.raises(ConfigError, match="logits"):
        Rules().answer({})


# ------------------------------------------------------------------------------------------------------------- endpoints


def test_a_run_against_an_endpoint_that_dies_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "w"))
    words = ["run", "frontier-synthetic", "--tiny", "task.data.questions=40", "baselines=[]", "method.chunk=8",
             "method.teacher_rows=false", "method.zero_shot=false", "teacher.model=m", "teacher.wait=0", "teacher.retries=0",
             "teacher.parallel=1", "teacher.price_in=2", "teacher.price_out=6", "method.least=5"]  # fmt: skip
    with serving(tmp_path, die=13, odd={"2": "cut", "5": "refused", "7": "html"}) as server:
        port = int(server.url.rpartition(":")[2].split("/")[0])
        words += [f"teacher.url={server.url}", "teacher.use=chat", "--out", str(tmp_path / "run")]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "after 12 replies" in said and "run the same again to go on" in said and "Traceback" not in said
    with serving(tmp_path, port=port) as server:
        assert main(words) == 0
        asked = len(server.sent)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    m = {k.removeprefix("teacher/"): v for k, v in result["measures"].items() if k.startswith("teacher/")} \
        if "measures" in result else {}  # fmt: skip
    corpus = Corpus.load(tmp_path / "run")
    total = corpus.survivors[0]["given"]
    # what had come was not asked again: eight questions of the first piece, and four of the second; but a malformed reply
    assert asked == total - 12, (asked, total, m)
    assert any("at most" in n and "stated prices" in n for n in result["notes"])
    assert any("which cost" in n for n in result["notes"])


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"style": "cod"}, "expected one of vanilla, few-shot, cot"),
        ({"try_styles": ["cod"]}, "are not asked so"),
        ({"keep": "reasoning+answer", "style": "vanilla"}, "only style=cot asks for"),
        ({"try_temperatures": [-1.0]}, "0 or more"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"success": 1.1}, "success must be"),
        ({"samples": 0}, "samples must be"),
    ],
)
def test_settings_that_are_none(bound: Tiny, changes: Any, said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        again(bound, **changes)


def test_true_answers_of_summaries_are_none(bound: Tiny) -> None:
    task = Questions(Given(all=pairs(0, 40)), kind="summarization", vocab_size=300, length=32)
    task.load()
    with pytest.raises(ConfigError, match="simply right or wrong"):
        made = FrontierSynthetic(gold=True)
        made.bind(replace(bound.method.setup, task=task))
    with pytest.raises(ConfigError, match="without reasons"):
        made = FrontierSynthetic(keep="reasoning+answer")
        made.bind(replace(bound.method.setup, task=task))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=language"], "is for questions"),
        (["evaluator=accepted"], "about concepts"),
        (["task.data=text-jsonl:/nowhere.jsonl"], "no such file or folder"),
        (["teacher={use: chat, url: 'http://127.0.0.1:9/v1', model: m, price_out: 1e6, budget: 1}"], "teacher.budget"),
        (["task.kind=maths"], "did you mean"),
    ],
)
def test_a_run_that_is_refused(
    words: list[str], said: str, tmp_path: Path, shared_workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "frontier-synthetic", "--tiny", "--out", str(tmp_path / "r"), *words]) == 2
    assert said in capsys.readouterr().err


def test_few_records_are_refused(tmp_path: Path, shared_workspace: Path) -> None:
    with pytest.raises(DataError, match="expected at least 500") as caught:
        tiny("frontier-synthetic", tmp_path / "a", "method.least=500").run()
    assert "task.student_documents" in str(caught.value)
