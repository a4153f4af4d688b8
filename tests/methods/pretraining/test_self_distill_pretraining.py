"""Self-distillation in further pre-training: one step against a plain rewrite, restarts, rounds, texts, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, DataError
from limbeck.functional.pretraining import patches_of, random_masking
from limbeck.grammar.method import Terms
from limbeck.grammar.role import cast
from limbeck.methods.pretraining.self_distill_pretraining import SelfDistillPretraining
from limbeck.networks.vision_transformer import VitClassifier
from tests.tiny import Tiny, differences, state_of, tiny

NAME = "self-distill-pretraining"
PROBE = "evaluator={use: probe, how: knn}"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for text: sentences of two kinds, with labels for the evaluator and without for the method."""
    folder = tmp_path_factory.mktemp("words")
    rows = [(f"{'the cat sat by' if i % 2 else 'a dog ran to'} door number {i}", i % 2) for i in range(60)]
    (folder / "target.txt").write_text("\n".join(text for text, _ in rows))
    (folder / "general.txt").write_text("\n".join(f"some {i} other words stand in line {i * 7}" for i in range(60)))
    (folder / "labelled.csv").write_text("text,label\n" + "\n".join(f"{text},{y}" for text, y in rows))
    labelled = f"{{use: labelled-text, path: {folder / 'labelled.csv'}}}"
    return [
        f"task={{use: masked-words, data: {{use: text, path: {folder / 'target.txt'}, unit: line}}, length: 16, vocab_size: 300}}",
        "student={use: encoder, layers: 1, width: 8, heads: 2, dropout: 0}",
        "method.images=null",
        f"method.texts={{use: text, path: {folder / 'general.txt'}, unit: line}}",
        f"evaluator={{use: probe, how: fine-tune, on: {{use: text-classes, length: 16, data: {labelled}}}, "
        "optim: {steps: 1, batch_size: 4, warmup: 0}}",
    ]


def at(made: Tiny, stage: str) -> tuple[dict[str, Any], RunContext]:
    """The first batch of a stage, and the context of its first step."""
    made.engine.prepare(made.method)
    (found,) = (s for s in made.engine.stages if s.name == stage)
    batch = next(iter(made.engine.batches(found, 0, 1)))[0]
    return batch, RunContext(made.engine, made.method, found, made.engine.device).at(0)


def distilled(made: Tiny, stage: str = "distil") -> tuple[Terms, dict[str, Any], RunContext]:
    """Terms of the first distilling batch, the teacher another network than the student."""
    batch, ctx = at(made, stage)
    teacher: Any = made.method.roles["teacher"].module
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    cast(made.method.roles, ("student", "decoder") if "decoder" in made.method.roles else ("student",))
    return made.method.distil("record", batch, ctx), batch, ctx  # type: ignore[attr-defined]


def test_one_step_is_the_released_code_s(tmp_path: Path) -> None:
    made = tiny(NAME, tmp_path, "method.recorded=false", "method.weight=0.5")
    terms, batch, ctx = distilled(made)
    roles = made.method.roles
    student, decoder, teacher = (roles[n].module for n in ("student", "decoder", "teacher"))
    assert isinstance(student, VitClassifier) and isinstance(decoder, nn.Module) and isinstance(teacher, nn.Module)
    x = roles["student"].contract.inputs(batch["x"])
    masking = random_masking(ctx.draws.rand("masking", batch["item"], (16,)), 0.75)
    found = decoder(student.encoder.encode(x, masking), masking)
    true = patches_of(x, 2)
    true = (true - true.mean(-1, keepdim=True)) / (true.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt()
    error = (found - true).square().mean(-1)
    pixels = torch.stack([e[h].mean() for e, h in zip(error, masking.hidden, strict=True)])
    distance = (student.encoder.encode(x)[:, 0] - teacher.encode(x)[:, 0]).square().sum(-1)
    torch.testing.assert_close(terms["pixels"].values, pixels)
    torch.testing.assert_close(terms["distil"].values, distance)
    assert terms["distil"].weight == 0.5 and float(distance.detach().min()) > 0
    (terms["pixels"].total() + 0.5 * terms["distil"].total()).backward()
    want = [p.grad.clone() for p in student.encoder.parameters() if p.grad is not None]
    own = [p.grad.clone() for p in decoder.parameters() if p.grad is not None]
    assert own and all(p.grad is None for p in [*teacher.parameters(), *student.head.parameters()])
    student.zero_grad()
    (pixels + 0.5 * distance).sum().backward()
    for a, p in zip(want, student.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_the_representation_is_the_one_asked_for(tmp_path: Path) -> None:
    for name, options in {
        "mean": ["method.feature=mean"],
        "tokens": ["method.feature=tokens"],
        "masked": ["method.view=masked"],
        "original": ["method.anchor=original"],
        "weights": ["method.anchor=weights"],
    }.items():
        made = tiny(NAME, tmp_path / name, "method.recorded=false", *options)
        terms, batch, ctx = distilled(made)
        roles = made.method.roles
        student, teacher, original = (roles[n].module for n in ("student", "teacher", "original"))
        x = roles["student"].contract.inputs(batch["x"])
        masking = random_masking(ctx.draws.rand("masking", batch["item"], (16,)), 0.75)
        with torch.no_grad():
            s, t, o = (m.encode(x) for m in (student, teacher, original))  # type: ignore[union-attr]
            sm, tm = (m.encode(x, masking) for m in (student, teacher))  # type: ignore[union-attr]
        want = {
            "mean": (s[:, 1:].mean(1) - t[:, 1:].mean(1)).square().sum(-1),
            "tokens": (s - t).square().sum(-1).mean(1),
            "masked": (sm[:, 0] - tm[:, 0]).square().sum(-1),
            "original": (s[:, 0] - o[:, 0]).square().sum(-1),
        }
        if name == "weights":
            own = dict(original.named_parameters())  # type: ignore[union-attr]
            gap = torch.cat([(p - own[n]).detach().flatten() for n, p in student.encoder.named_parameters()])  # type: ignore[union-attr]
            torch.testing.assert_close(terms["weights"].values.detach(), gap.square().sum())
            assert terms["weights"].count == 1 and "distil" not in terms
        else:
            torch.testing.assert_close(terms["distil"].values.detach(), want[name])


def test_weight_zero_is_further_pre_training_bit_for_bit(tmp_path: Path, words: list[str]) -> None:
    made = tiny(NAME, tmp_path / "images", "method.weight=0", "method.compare=true").run()
    student, teacher, decoder = (made.method.roles[n].module for n in ("student", "teacher", "decoder"))
    assert made.method.state["distances"]["student"] == made.method.state["distances"]["teacher"] > 0
    # fine-tuning has changed the encoder since: the row of further pre-training was fine-tuned on the same batches
    assert not differences(dict(student.state_dict()), dict(made.method.roles["further"].module.state_dict()))  # type: ignore[union-attr]
    theirs = teacher.state_dict()  # type: ignore[union-attr]
    assert not differences(dict(decoder.state_dict()), {k: theirs[k] for k in decoder.state_dict()})  # type: ignore[union-attr]
    text = tiny(NAME, tmp_path / "words", *words, "method.weight=0").run()
    a, b, o = (dict(text.method.roles[n].module.state_dict()) for n in ("student", "teacher", "original"))  # type: ignore[union-attr]
    assert not differences(a, b) and differences(a, o)
    other = tiny(NAME, tmp_path / "held", *words, "train.lr=0.5").run()
    assert differences(
        dict(other.method.roles["student"].module.state_dict()), dict(other.method.roles["teacher"].module.state_dict())
    )  # type: ignore[union-attr]


@pytest.mark.parametrize("start", ["original", "teacher"])
def test_every_round_starts_from_the_original_weights(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    real = SelfDistillPretraining.begin_round

    def spied(self: SelfDistillPretraining, ctx: Any) -> None:
        real(self, ctx)
        seen.append({n: copy.deepcopy(self._encoder(n).state_dict()) for n in ("student", "teacher", "original")})
        seen[-1]["decoder"] = copy.deepcopy(self.roles["decoder"].module.state_dict())

    monkeypatch.setattr(SelfDistillPretraining, "begin_round", spied)
    made = tiny(
        NAME,
        tmp_path,
        "method.rounds=2",
        "method.compare=true",
        f"method.start={start}",
        "stages.tune.steps=0",
        "train.lr=0.3",
    ).run()
    first, second = seen
    source = {k: v for k, v in first[start].items() if k in first["student"]}
    assert not differences(dict(first["student"]), source)
    assert not differences(dict(first["decoder"]), {k: first[start][k] for k in first["decoder"]})
    assert not differences(dict(first["original"]), dict(second["original"]))
    assert differences(dict(first["teacher"]), dict(second["teacher"]))  # the first round's student teaches the second
    again = {k: v for k, v in second[start].items() if k in second["student"]}
    assert not differences(dict(second["student"]), again)
    assert [s.name for s in made.engine.stages] == [
        "pretrain", "further", "record", "distil", "record-2", "distil-2", "tune"
    ]  # fmt: skip
    row = made.method.roles["further"].module
    kept = {k: v for k, v in first["teacher"].items() if k in first["student"]}
    assert isinstance(row, VitClassifier) and not differences(dict(row.encoder.state_dict()), kept)
    head = made.method.roles["student"].module.head.weight  # type: ignore[union-attr]
    assert torch.equal(head, row.head.weight)  # type: ignore[arg-type]


def test_what_the_teacher_says_is_kept(tmp_path: Path) -> None:
    one = tiny(NAME, tmp_path / "1", "train.lr=0.3").run()
    two = tiny(NAME, tmp_path / "2", "train.lr=0.3", "method.recorded=false").run()
    assert not differences(state_of(one), state_of(two), tolerance=1e-5)
    cropped = tiny(NAME, tmp_path / "3", "method.crop=0.5", "method.mirror=true")
    assert [s.name for s in cropped.method.stages()] == ["pretrain", "further", "distil", "tune"]


def test_without_rounds_it_is_further_pre_training(tmp_path: Path) -> None:
    made = tiny(NAME, tmp_path, "method.rounds=0", PROBE, "method.compare=true").run()
    assert [s.name for s in made.engine.stages] == ["pretrain", "further"]
    roles = made.method.roles
    theirs = dict(roles["teacher"].module.state_dict())  # type: ignore[union-attr]
    own = roles["student"].module.encoder.state_dict()  # type: ignore[union-attr]
    assert not differences(dict(own), {k: theirs[k] for k in own})  # type: ignore[arg-type]
    assert set(made.method.rows()) == {"further", "direct"}
    direct = roles["direct"].module.encoder.state_dict()  # type: ignore[union-attr]
    first = dict(roles["original"].module.state_dict())  # type: ignore[union-attr]
    assert not differences(dict(direct), {k: first[k] for k in direct})  # type: ignore[arg-type]


def test_fine_tuning_may_be_held_to_the_original(tmp_path: Path) -> None:
    made = tiny(NAME, tmp_path, "method.hold=0.1", "method.compare=true")
    batch, ctx = at(made, "tune")
    cast(made.method.roles, ("student", "further", "direct"))
    terms = made.method.tune(batch, ctx)  # type: ignore[attr-defined]
    assert set(terms) == {f"{t}{r}" for t in ("ce", "hold") for r in ("", ".further", ".direct")}
    own = dict(made.method.roles["original"].module.named_parameters())  # type: ignore[union-attr]
    encoder: Any = made.method.roles["student"].module.encoder  # type: ignore[union-attr]
    want = sum((p - own[n]).square().sum() for n, p in encoder.named_parameters())
    torch.testing.assert_close(terms["hold"].values, want)
    assert terms["ce.direct"].to == ("direct",) and terms["hold"].weight == 0.1


def test_words(tmp_path: Path, words: list[str]) -> None:
    for name, options in {
        "cls": [],
        "mean": ["method.feature=mean"],
        "tokens": ["method.feature=tokens"],
        "masked": ["method.view=masked"],
    }.items():
        made = tiny(NAME, tmp_path / name, *words, "method.recorded=false", *options)
        terms, batch, _ = distilled(made)
        student, teacher = (made.method.roles[n].module for n in ("student", "teacher"))
        task: Any = made.method.task
        ids = task.hide(batch)[0] if name == "masked" else batch["input_ids"]
        with torch.no_grad():
            s, t = (
                m.bert(input_ids=ids, attention_mask=batch["attention_mask"]).last_hidden_state  # type: ignore[union-attr, operator]
                for m in (student, teacher)
            )
        real = batch["attention_mask"].unsqueeze(-1)
        count = real.sum(1)
        want = {
            "cls": s[:, 0] - t[:, 0],
            "masked": s[:, 0] - t[:, 0],
            "mean": ((s - t) * real).sum(1) / count,
        }
        gap = want[name].square().sum(-1) if name in want else (((s - t) * real).square().sum((1, 2)) / count[:, 0])
        torch.testing.assert_close(terms["distil"].values.detach(), gap)
        torch.testing.assert_close(
            terms["words"].values.detach(),
            task.supervised(_answer(made, batch), batch).values.detach(),
        )
    made = tiny(NAME, tmp_path / "run", *words, "method.rounds=2", "method.compare=true").run()
    assert [s.name for s in made.engine.stages] == ["pretrain", "further", "record", "distil", "record-2", "distil-2"]
    assert set(made.method.measures()) == {"distance_teacher", "distance_student"}
    for row in made.method.rows().values():
        scores = made.recipe.evaluator.score(row, made.bench)  # type: ignore[union-attr]
        assert 0 <= scores["accuracy"] <= 1


def _answer(made: Tiny, batch: dict[str, Any]) -> Any:
    from limbeck.grammar.signal import Signal

    with torch.no_grad():
        return Signal(made.method.task.feed(made.method.roles["student"].module, batch))


def test_a_teacher_may_be_named(tmp_path: Path) -> None:
    made = tiny(NAME, tmp_path / "first", "method.rounds=0", PROBE).run()
    made.method.artifact().save(tmp_path / "first")
    teacher = f"teacher={{use: vit, patch: 2, width: 8, depth: 1, heads: 2, weights: {tmp_path / 'first'}}}"
    later = tiny(NAME, tmp_path / "later", teacher).run()
    assert [s.name for s in later.engine.stages] == ["pretrain", "record", "distil", "tune"]
    own = made.method.roles["student"].module.encoder.state_dict()  # type: ignore[union-attr]
    theirs = later.method.roles["teacher"].module.encoder.state_dict()  # type: ignore[union-attr]
    assert not differences(dict(own), dict(theirs))  # type: ignore[arg-type]
    for words, said in (
        ([teacher.replace("width: 8", "width: 16")], r"teacher"),
        ([teacher, "student.width=16"], r"another shape"),
        ([teacher.split(", weights")[0] + "}"], r"teacher.*no weights.*leave it out"),
        ([teacher, "method.rounds=0"], r"rounds.*nothing to do"),
        ([f"student.weights={tmp_path / 'first'}"], r"weights.*no decoder"),
    ):
        with pytest.raises(Exception, match=said):
            tiny(NAME, tmp_path / "odd", *words)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["method.images=null"], r"starts from a pre-trained network.*vit-mae:FOLDER.*method.images"),
        (["method.images={use: folder, path: /nowhere}"], r"nowhere"),
        (["method.texts={use: pydoc}"], r"method.texts.*other kind"),
        (["method.mask_ratio=1"], r"mask_ratio.*below 1"),
        (["method.mask_ratio=0"], r"mask_ratio.*above 0"),
        (["method.mask_ratio=0.99"], r"leaves one of 16 patches"),
        (["method.weight=-1"], r"weight.*0 or more"),
        (["student.patch=3"], r"patch.*do not fill"),
        (["student=mlp"], r"student.*vision transformers.*student=vit"),
        (["method.rounds=2", "method.anchor=original"], r"rounds.*anchor=original"),
        (["method.rounds=0", "method.anchor=weights"], r"anchor.*rounds=0"),
        (["method.feature=first"], r"feature.*cls"),
        (["task={use: classification, data: {use: scikit-learn, name: wine}}"], r"task|images"),
        (["task=text-classes", "student=encoder", "method.images=null"], r"task=.?\{?use: masked-words"),
        (["task=causal-lm", "student=null"], r"task"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_what_cannot_be_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        tiny(NAME, tmp_path, *options)


def test_words_without_what_they_need_are_refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"no weights.*hf:FOLDER.*method.texts"):
        tiny(NAME, tmp_path, *words, "method.texts=null")
    with pytest.raises(ConfigError, match=r"method.images.*other kind"):
        tiny(NAME, tmp_path, *words, "method.images={use: printed, items: 8}")
    with pytest.raises(ConfigError, match=r"method.hold"):
        tiny(NAME, tmp_path, *words, "method.hold=1")


def test_settings_are_the_paper_s() -> None:
    method = SelfDistillPretraining()
    assert (method.weight, method.rounds, method.mask_ratio, method.feature) == (1.0, 1, 0.75, "cls")
    assert method.normalise and method.start == "original" and method.crop == 1
