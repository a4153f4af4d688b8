"""Distillation from a teacher with another tokenizer: every divergence, chunks, spans, and what is refused."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from limbeck.engine.engine import Engine  # noqa: E402
from limbeck.engine.settings import EngineSettings  # noqa: E402
from limbeck.errors import ConfigError, TeacherMismatch  # noqa: E402
from limbeck.grammar.method import Batch, Built, Setup, Terms  # noqa: E402
from limbeck.grammar.optim import Optim  # noqa: E402
from limbeck.methods.language.taid import Taid  # noqa: E402
from limbeck.methods.language.token_kd import Divergence, TokenKd  # noqa: E402
from limbeck.parts.across_tokenizers import AcrossTokenizers  # noqa: E402
from limbeck.parts.writing import Replay  # noqa: E402
from limbeck.tasks.language import Language  # noqa: E402
from tests.tasks.test_aligned import Code, spelled  # noqa: E402
from tests.toy import within  # noqa: E402

KINDS = get_args(Divergence)


def llama(tokenizer: Any, width: int, extra: int = 0) -> Built:
    torch.manual_seed(width)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + extra,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    module = transformers.LlamaForCausalLM(config)
    return Built(module, labels=None, model=SimpleNamespace(tokenizer=tokenizer))  # type: ignore[arg-type]


def start(method: AcrossTokenizers, one: Any = None, other: Any = None, extra: int = 0, pairs: bool = False) -> Any:
    """A method bound to a student and a teacher; the engine that would run it, and the context of its stage."""
    one, other = one or spelled("bytes", 330, 0), other or spelled("bytes", 520, 1)
    task = Language(data=Code(pairs), length=24, loss_on="response" if pairs else "all")
    task.load(0)
    method.accept(task)
    theirs = task.part("teacher")
    assert isinstance(theirs, Language)
    theirs.adopt(other, "other")
    task.adopt(one, "one")
    setup = Setup(task, llama(one, 8, extra), llama(other, 16, extra), Optim(steps=3, batch_size=4, lr=1e-2))
    method.bind(setup)
    engine = Engine(EngineSettings(device="cpu", log_every=1))
    engine.prepare(method)
    return method, within(engine, method, engine.stages[0]), engine


def first(method: AcrossTokenizers, ctx: Any, n: int = 6) -> tuple[Batch, Terms]:
    ids = torch.arange(n)
    batch = {**method.stages()[0].data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}  # type: ignore[union-attr]
    terms = method.step(batch, ctx.at(1))
    assert isinstance(terms, Terms)
    return batch, terms


def of(kind: str, **more: Any) -> AcrossTokenizers:
    given = {"alignment": "bytes", "distil_ratio": 0.6, **more}
    return Taid(**given) if kind == "taid" else TokenKd(divergence=kind, **given)


QUICK = ("reverse", "dkd", "ctkd", "uld", "taid")
OFTEN = [k if k in QUICK else pytest.param(k, marks=pytest.mark.expensive) for k in (*KINDS, "taid")]


@pytest.mark.parametrize("kind", OFTEN)
def test_every_divergence_learns_from_another_tokenizer_and_chunks_change_nothing(kind: str) -> None:
    found = []
    for chunk in (0, 7):
        method, ctx, _ = start(of(kind, chunk=chunk, temperature=2.0), extra=3)
        batch, terms = first(method, ctx)
        (J,) = (term for name, term in terms.items() if name != "lm")
        assert J.where is not None and 0 < int(J.where.sum()) < int(terms["lm"].where.sum())  # type: ignore[union-attr]
        assert not (J.where & (batch["pair"][:, :-1] < 0)).any() and not J.values[~J.where].any()
        total = J.total() * J.weight + terms["lm"].total() * terms["lm"].weight
        grads = torch.autograd.grad(total, list(method.roles["student"].module.parameters()))
        assert float(sum(g.abs().sum() for g in grads)) > 0
        found.append((J.values, grads))
    (a, one), (b, two) = found
    assert torch.allclose(a, b, atol=1e-5)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(one, two, strict=True))
    notes = method.task.notes
    assert sum("end" in n and n.startswith("alignment: ") for n in notes) == 1
    assert sum("padding" in n for n in notes) == 2  # of both, each once


def slow(method: TokenKd, batch: Batch, z_s: Tensor, z_t: Tensor) -> Tensor:
    """Position by position: probabilities of both added up over the classes, by a loop."""
    values = torch.zeros(batch["labels"].shape[0], batch["labels"].shape[1] - 1)
    classes = method.classes
    assert classes is not None
    for i, k in (batch["labels"][:, 1:] != -100).nonzero().tolist():
        at = int(batch["pair"][i, k])
        if at < 0:
            continue
        q, p = z_s[i, k].softmax(-1), z_t[i, at].softmax(-1)
        sums = []
        for probs, groups in ((q, classes.student), (p, classes.teacher)):
            kept = [float(probs[: len(groups)][groups == c].sum()) for c in range(classes.count)]
            sums.append(torch.tensor(kept) / sum(kept))
        values[i, k] = float((sums[1] * (sums[1] / sums[0]).log()).sum())
    return values


@pytest.mark.parametrize(("rule", "pairs"), [("prefix", False), ("other", True), ("drop", False)])
def test_the_comparison_against_a_loop(rule: Any, pairs: bool) -> None:
    other = spelled("pieces", 330, 1)
    method, ctx, _ = start(TokenKd(value="kl", alignment="bytes", unshared=rule), other=other, pairs=pairs)
    batch, terms = first(method, ctx, 3)
    with torch.no_grad():
        z_s = method.roles["student"].module(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        z_t = method.roles["teacher"].module(batch["teacher_ids"], attention_mask=batch["teacher_mask"]).logits
    assert torch.allclose(terms["kd"].values, slow(method, batch, z_s, z_t), atol=1e-4)


@pytest.mark.parametrize("kind", ["forward", "dkd", "uld", "taid"])
def test_one_tokenizer_gives_the_plain_divergence(kind: str) -> None:
    one = spelled("bytes", 330, 0)
    aligned, ctx, _ = start(of(kind), other=one)
    _batch, terms = first(aligned, ctx)
    plain = of(kind, alignment="ids")
    task = aligned.task
    plain.bind(Setup(task, aligned.setup.student, aligned.setup.teacher, aligned.setup.train))
    engine = Engine(EngineSettings(device="cpu"))
    engine.prepare(plain)
    ids = torch.arange(6)
    want = plain.step(
        {**task.train.fetch(ids), "item": ids, "view": ids * 0}, within(engine, plain, engine.stages[0]).at(1)
    )
    assert isinstance(want, Terms)
    name = plain.term
    assert torch.allclose(terms[name].values, want[name].values, atol=1e-6)
    # what stands at the end of one text and the beginning of the next is the same byte: all else is paired
    assert bool((terms[name].where == want[name].where).all())  # type: ignore[union-attr]


def test_spans_are_multiplied_by_the_chain_rule() -> None:
    """Against a loop over pairs: the probability of the text up to the next one, as a class of its own."""
    other = spelled("bytes", 520, 1)
    found = []
    for chunk in (0, 7):
        method, ctx, _ = start(TokenKd(value="kl", alignment="bytes", spans="merged", chunk=chunk), other=other)
        batch, terms = first(method, ctx, 3)
        found.append(terms["kd"])
        assert torch.autograd.grad(terms["kd"].total(), list(method.roles["student"].module.parameters()))
    assert torch.allclose(found[0].values, found[1].values, atol=1e-5)
    with torch.no_grad():
        z_s = method.roles["student"].module(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        z_t = method.roles["teacher"].module(batch["teacher_ids"], attention_mask=batch["teacher_mask"]).logits
    several = 0
    plain = slow(method, batch, z_s, z_t)
    for i, pair in enumerate(batch["pair"].tolist()):
        anchors = [k for k, p in enumerate(pair) if p >= 0]
        for k, after in itertools.pairwise(anchors):
            chances = []
            for z, ids, a, b in (
                (z_s, batch["input_ids"], k, after),
                (z_t, batch["teacher_ids"], pair[k], pair[after]),
            ):
                logs = z[i].log_softmax(-1)
                chances.append(float(sum(logs[j, ids[i, j + 1]] for j in range(a, b))))
            q, p = (torch.tensor([c]).exp().item() for c in chances)
            value = float(found[0].values[i, k].detach())
            if after - k == 1 and pair[after] - pair[k] == 1:
                assert value == pytest.approx(float(plain[i, k]), abs=1e-4)
            elif bool(found[0].where[i, k]):  # type: ignore[index]
                want = p * (chances[1] - chances[0]) + (1 - p) * torch.tensor((1 - p) / (1 - q)).log().item()
                assert value == pytest.approx(want, abs=1e-5)
                several += 1
    assert several > 10


def test_a_whole_run_leaves_a_student_and_what_was_aligned() -> None:
    method, _, engine = start(of("forward"))
    before = [p.clone() for p in method.roles["student"].parameters().values()]
    engine.run(method)
    now = method.roles["student"].parameters().values()
    assert all(not torch.equal(a, b) for a, b in zip(before, now, strict=True))
    about = method.extras()["alignment"]
    assert 0 < about["paired"] < about["positions"] and 0 < about["classes"] <= about["same_tokens"]
    assert method.task.primary == "bits_per_byte"


def test_a_tokenizer_with_more_tokens_and_padded_outputs_need_no_setting() -> None:
    """As Qwen's 151,936 outputs for 151,665 tokens, and as a student whose vocabulary was extended."""
    one = spelled("bytes", 330, 0)
    more = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(one.backend_tokenizer).from_str(one.backend_tokenizer.to_str()),
        eos_token=one.eos_token,
        pad_token="<pad>",
    )
    more.add_tokens(["TextWrapper", "width"])
    method, ctx, _ = start(of("reverse"), one=more, other=one, extra=11)
    _, terms = first(method, ctx)
    assert bool(torch.isfinite(terms["kd"].values).all()) and method.rows_aligned.paired
    assert method.classes is not None and method.classes.same == len(one)
    more = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(one.backend_tokenizer).from_str(one.backend_tokenizer.to_str()),
        eos_token=one.eos_token,
        pad_token="<pad>",
        extra_special_tokens=["<|tool|>", "<|think|>"],
    )
    task = Language(data=Code(), length=24)
    task.load(0)
    task.adopt(one, "teacher")
    student, teacher = llama(more, 8), llama(one, 8, extra=11)
    task.adopt(more, "student")
    task.match(student, teacher)  # under alignment=ids
    assert task.columns == len(one) and sum("vocabularies cut" in n for n in task.notes) == 1


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ValueError, match="sampler"):
        TokenKd(alignment="bytes", sampler=Replay())
    with pytest.raises(TeacherMismatch, match="recorded"):
        method = of("forward")
        _check(method, SimpleNamespace(answer=lambda batch, taps: None), "x")
    with pytest.raises(TeacherMismatch, match="which tokenizer"):
        _check(of("forward"), nn.Linear(2, 2), None)
    task = Language(data=Code(), length=24)
    task.load(0)
    task.adopt(spelled("bytes", 330, 0), "one")
    with pytest.raises(TeacherMismatch, match=r"method\.alignment=bytes"):
        task.adopt(spelled("bytes", 520, 1), "two")
    method, _, _ = start(of("forward"))
    setup = method.setup
    setup.objectives = {"hint": object()}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="alignment=bytes"):
        method._addons(setup)


def _check(method: AcrossTokenizers, module: Any, tokenizer: Any) -> None:
    built = Built(module, labels=None, model=SimpleNamespace(tokenizer=tokenizer))  # type: ignore[arg-type]
    method._check(SimpleNamespace(teacher=built))  # type: ignore[arg-type]


def test_without_alignment_the_teacher_reads_the_students_tokens() -> None:
    assert TokenKd().participants["teacher"].task == "" and TokenKd(alignment="bytes").participants["teacher"].task
    assert {"alignment", "unshared", "spans"} <= set(TokenKd.neutral)  # recorded runs keep their identity
