"""MT-LLM: the stack and its language model, who learns when, what is recorded, languages, what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import limbeck
from limbeck.data.labelled_text import Chapters
from limbeck.data.parallel_text import MadeUpLanguages, ParallelText, letters
from limbeck.engine.engine import Engine
from limbeck.engine.settings import EngineSettings
from limbeck.errors import ConfigError, DataError, LimbeckError, ShapeError
from limbeck.export import export
from limbeck.functional.pooling import pool_tokens, unexplained_variance
from limbeck.grammar.method import Setup
from limbeck.grammar.optim import Optim
from limbeck.methods.language.mt_llm import MtLlm
from limbeck.models.stacked import Front, Lm, PooledLmModel, Stacked
from limbeck.networks.lora import Lora
from limbeck.networks.stacked import PooledLm, StackedEncoder
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.running import run
from limbeck.tasks.crosslingual import CrossLingual
from tests.parts.texts import start
from tests.tiny import tree_of

SMALL: dict[str, Any] = {"layers": 1, "width": 8, "heads": 2}


@cache
def task_of() -> CrossLingual:
    task = CrossLingual(MadeUpLanguages(languages=2, chapters=2, each=20), length=12, vocab_size=300, front_vocab=300)
    task.load(0)
    return task


def bound(lm: dict[str, Any] | None = None, **changes: Any) -> tuple[MtLlm, Any, Any]:
    task, own = task_of(), Lm(**{**SMALL, **(lm or {})})
    torch.manual_seed(0)
    teacher = PooledLmModel(lm=own).build(task)
    student = Stacked(front=Front(**SMALL), lm=own, lora=Lora(rank=2, dropout=0.0)).build(task)
    setup = Setup(task, student, teacher, Optim(steps=2, batch_size=4, lr=1e-2))
    return start(MtLlm(**changes), setup)


def a_batch(n: int = 4) -> dict[str, Any]:
    return task_of().train.fetch(torch.arange(n)) | {"item": torch.arange(n), "view": torch.zeros(n).long()}


def open_adapter(stack: StackedEncoder) -> None:
    with torch.no_grad():
        for up in stack.lora.up.values():
            up.normal_()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_stack_that_reads_the_models_own_embedding_is_the_model(bidirectional: bool) -> None:
    method, _, _ = bound({"bidirectional": bidirectional})
    stack, teacher = method.stack, method.roles["teacher"].module
    body: Any = stack.lm.body

    class Embedding(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return type("Out", (), {"last_hidden_state": body.embed_tokens(input_ids)})

    stack.front = Embedding()
    with torch.no_grad():
        stack.proj.weight.copy_(torch.eye(8))
        stack.proj.bias.zero_()
        batch = a_batch()
        ids, mask = batch["x"], batch["attention_mask"]
        torch.testing.assert_close(stack(ids, mask), teacher(ids, mask))
        torch.testing.assert_close(stack.plain(ids, mask), teacher.vectors(ids, mask))
        before = stack.plain(ids, mask)
        open_adapter(stack)
        assert not torch.allclose(stack.vectors(ids, mask), before, atol=1e-3)
        torch.testing.assert_close(stack.plain(ids, mask), before)  # its adapter is off
        with pytest.raises(LimbeckError):
            stack.plain(ids, torch.zeros_like(mask))
        assert not torch.allclose(stack.vectors(ids, mask), before, atol=1e-3)  # and on again, though that failed


def test_padding_changes_nothing_and_a_decoder_sees_what_is_behind_only_where_it_is_told() -> None:
    for bidirectional in (True, False):
        method, _, _ = bound({"bidirectional": bidirectional})
        teacher: PooledLm = method.roles["teacher"].module
        batch = a_batch(1)
        n = int(batch["attention_mask"].sum())
        ids, ones = batch["x"][:, :n], torch.ones(1, n).long()
        padded = torch.cat([ids, torch.full((1, 3), 5)], 1), torch.cat([ones, torch.zeros(1, 3).long()], 1)
        other = ids.clone()
        other[0, -1] = (ids[0, -1] + 1) % 300
        with torch.no_grad():
            torch.testing.assert_close(teacher(ids, ones), teacher(*padded), rtol=1e-4, atol=1e-5)
            states = [teacher.vectors(x, torch.tensor([[1] * n])) for x in (ids, other)]
            first = PooledLm(teacher.body, 2, "first", bidirectional)
            heads = [first.vectors(x, ones) for x in (ids, other)]
        assert not torch.allclose(*states, atol=1e-6)
        assert torch.allclose(*heads, atol=1e-6) is not bidirectional


def test_each_stage_moves_its_own_part(tmp_path: Path) -> None:
    method, _, _ = bound()
    method.setup.stages = {"translate": {"steps": 2, "batch_size": 4}}
    stages = {s.name: s for s in method.stages()}
    assert list(stages) == ["translate", "adapt", "record", "distil"]
    only = {n: s.optim["student"].only for n, s in stages.items() if s.optim}
    assert only == {"translate": ["front.*"], "adapt": ["lora.*", "proj.*"], "distil": ["lora.*"]}
    assert {s.name for s in bound(adapt=False)[0].stages()} == {"translate", "record", "distil"}
    direct = bound(objective="direct", train_proj=True)[0].stages()[-1]
    assert direct.optim["student"].only == ["lora.*", "lm.head.*", "proj.*"]
    before = {n: t.clone() for n, t in method.stack.state_dict().items()}
    Engine(EngineSettings(device="cpu"), 0, tmp_path).run(method)
    after = method.stack.state_dict()
    moved = {n.split(".")[0] for n in after if not torch.equal(after[n], before[n])}
    assert moved == {"front", "proj", "lora"}
    teacher = method.roles["teacher"].module.state_dict()
    assert all(torch.equal(after[f"lm.{n}"], t) for n, t in teacher.items())


def test_adaptation_is_the_mean_squared_distance_of_pooled_states() -> None:
    method, ctx, _ = bound()
    open_adapter(method.stack)
    batch = a_batch()
    terms = method.adapt_step(batch, ctx.at(0))
    stack = method.stack
    with torch.no_grad():
        a = stack.lm.vectors(batch["x"], batch["attention_mask"])
        e = stack.front(input_ids=batch["front_x"], attention_mask=batch["front_mask"]).last_hidden_state
        with stack.lora.active() as body:
            mask = batch["front_mask"][:, None, None, :].bool().expand(-1, 1, e.shape[1], -1)
            states = body(inputs_embeds=stack.proj(e), attention_mask=mask).last_hidden_state
        b = pool_tokens(states, batch["front_mask"])
    value = terms["adapt"].total() / terms["adapt"].n()
    assert float(value.detach()) == pytest.approx(float((b - a).square().mean()), rel=1e-4)
    fvu, n = terms.metrics["fvu"]
    assert float(fvu) / float(n) == pytest.approx(float(unexplained_variance(b, a)), rel=1e-3)
    found = torch.autograd.grad(value, list(stack.parameters()), allow_unused=True)
    reached = {
        n.split(".")[0] for (n, _), g in zip(stack.named_parameters(), found, strict=True) if g is not None and g.any()
    }
    assert reached <= {"proj", "lora", "lm"} and {"proj", "lora"} <= reached  # the engine holds lm still
    assert "fvu" in terms.metrics and method.adapt_step(a_batch(1), ctx.at(0)).metrics["fvu"][1] == 0


def test_translations_are_brought_together() -> None:
    method, ctx, _ = bound()
    pairs = task_of().pairs
    batch = pairs.fetch(torch.arange(6)) | {"item": torch.arange(6), "view": torch.zeros(6).long()}
    phases = method.translate_step(batch, ctx.at(0))
    given: Any = next(phases)
    rows = type("Rows", (dict,), {"numbers": lambda self, name: torch.arange(6)})(given)
    terms: Any = phases.send(rows)
    one, other = given["one"].detach().double(), given["other"].detach().double()
    table = (one @ other.T / 0.05).softmax(-1).diag().log(), (other @ one.T / 0.05).softmax(-1).diag().log()
    torch.testing.assert_close(
        terms["translate"].values.detach().double(), -(table[0] + table[1]) / 2, rtol=1e-3, atol=1e-4
    )
    assert len(pairs) == 2 * len(task_of().train)


def test_languages_are_read_letter_by_letter_and_translations_share_a_split() -> None:
    found = MadeUpLanguages(languages=2, chapters=2, each=20).read()
    n = len(found.documents) // 3
    assert found.languages[0] == "english" and found.languages[n] == "made-1"
    for i in range(n):
        assert found.documents[i].text.translate(letters(2)) == found.documents[2 * n + i].text
        assert found.splits[i] == found.splits[n + i] and found.groups[i] == found.groups[n + i]
        assert found.y[i] == found.y[n + i]
    assert len(set(letters(1).values())) == 52
    task = task_of()
    assert task.source_language == "english"
    assert {task.language_names[i] for i in task.train.fetch(torch.arange(len(task.train)))["language"].tolist()} == {
        "english"
    }
    assert len(task.test.fetch(torch.arange(len(task.test)))["language"].unique()) == 3


def table(folder: Path, text: str) -> str:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return str(folder / "t.csv")


HEAD = "text,category,lang,index_id,split\n"


def test_a_table_of_languages_is_read(tmp_path: Path) -> None:
    rows = [
        f"{word} {i},{'a' if i % 2 else 'b'},{language},{i},{'test' if i > 7 else 'train'}"
        for language, word in (("en", "word"), ("de", "Wort"))
        for i in range(12)
    ]
    path = table(tmp_path, HEAD + "\n".join(rows))
    task = CrossLingual(ParallelText(path=path), source="de", length=12, vocab_size=300, front_vocab=300)
    task.load(0)
    assert task.source_language == "de" and len(task.test) == 8 and len(task.pairs) == 8
    for words, said in (
        ({"languages": ["fr"]}, "languages"), ({"language": "tongue"}, "language"), ({"split": "lang"}, "splits are called"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            ParallelText(path=path, **words).read()
    with pytest.raises(DataError, match="no text"):
        ParallelText(path=table(tmp_path, HEAD + " ,a,en,1,train")).read()
    with pytest.raises(DataError, match=r"task\.data\.path"):
        ParallelText(path=str(tmp_path / "none.csv")).read()
    with pytest.raises(ConfigError, match=r"task\.source"):
        CrossLingual(MadeUpLanguages(each=20), source="klingon").load(0)
    with pytest.raises(ConfigError, match="which language"):
        CrossLingual(Chapters(each=20)).load(0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="another language"):
        CrossLingual(ParallelText(path=table(tmp_path, HEAD + "\n".join(rows[:12])))).load(0)


def test_a_run_and_what_is_made_of_it(tmp_path: Path) -> None:
    result = run(tree_of("mt-llm", "method.objective=direct", "method.adapt=false"), tmp_path / "run", quiet=True)
    for row in ("student", "teacher", "alone"):
        own = result["metrics"]["rows"][row]
        assert {"accuracy_source", "accuracy_others", "accuracy_made-1"} <= set(own)
    again = limbeck.load(tmp_path / "run")
    said = again.predict(["Statements may be nested.", "A name."])
    assert len(said) == 2
    with pytest.raises(ConfigError, match="onnx"):
        export(tmp_path / "run", "onnx", tmp_path / "out")


def test_who_is_built_otherwise_is_refused() -> None:
    task = task_of()
    optim = Optim(steps=2, batch_size=4)
    teacher, student = (
        PooledLmModel(lm=Lm(**SMALL)).build(task),
        Stacked(front=Front(**SMALL), lm=Lm(**SMALL)).build(task),
    )
    with pytest.raises(ShapeError, match=r"student\.lm"):
        wide = PooledLmModel(lm=Lm(**{**SMALL, "width": 16})).build(task)
        start(MtLlm(), Setup(task, student, wide, optim))
    with pytest.raises(ConfigError, match="student=stacked"):
        start(MtLlm(), Setup(task, teacher, teacher, optim))
    with pytest.raises(ConfigError, match="teacher=pooled-lm"):
        start(MtLlm(), Setup(task, student, student, optim))
    with pytest.raises(ConfigError, match="takes no vectors"):
        PooledLm(torch.nn.Identity(), 2)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("objective", "method.objective=both"), ("sharpness", "method.sharpness=0"), ("width", "student.lm.width=9"),
        ("front_vocab", "task.front_vocab=10"), ("languages", "task.data.languages=0"), ("pooling", "teacher.lm.pooling=max"),
        ("adapter", "method.adapter=true"), ("rank", "student.lora.rank=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(said: str, words: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("mt-llm", [words])))


def test_another_task_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cross-lingual"):
        run(tree_of("mt-llm", "task={use: text-classes}"), tmp_path / "a", quiet=True)
    with pytest.raises(ConfigError, match=r"front\.path"):
        run(tree_of("mt-llm", f"student.front.path={tmp_path}/nothing"), tmp_path / "b", quiet=True)
    with pytest.raises(ConfigError, match=r"^student\.lora\.targets: .*q_proj"):
        run(tree_of("mt-llm", "student.lora.targets=nothing"), tmp_path / "c", quiet=True)
