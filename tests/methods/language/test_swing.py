"""Swing: scores of the right tokens, targets, controls, what it refuses; canaries and their exposure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import limbeck.functional as F
from limbeck.data.canaries import Canaries
from limbeck.data.text import Document, TextSource
from limbeck.errors import ConfigError, DataError
from limbeck.evaluators.exposure import ExposureOfCanaries
from limbeck.functional.privacy import per_token_temperature
from limbeck.grammar.method import Built
from limbeck.methods.language.swing import Swing
from limbeck.parts.next_tokens import Tokens
from limbeck.parts.privacy import Patterns, Pieces, TokenClassifier
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.running import run
from limbeck.tasks.language import Language
from limbeck.tasks.tokens import shifted
from tests.parts.texts import Some, first, setup_of, start
from tests.tiny import tree_of


def test_patterns_find_the_digits_of_a_text_and_no_others() -> None:
    task = Language(data=Some(), vocab_size=270, length=32)
    task.load(0)
    pieces = Pieces(task.tokenizer)
    text = "call 4 8 1 5 or anna@mail.org now"
    ids = torch.tensor([task.tokenizer(text)["input_ids"] + [task.tokenizer.pad_token_id] * 3])
    texts, offsets = pieces.read(ids)
    assert texts == [text]
    score = Patterns().score(texts, offsets)[0]
    for token, s in zip(ids[0].tolist(), score.tolist(), strict=True):
        written = pieces.texts[token]
        if any(c.isdigit() for c in written) or "@" in written:
            assert s == 1
    flagged = "".join(pieces.texts[i] for i, s in zip(ids[0].tolist(), score.tolist(), strict=True) if s)
    assert "4 8 1 5" in flagged and "anna@mail.org" in flagged and "call" not in flagged and "now" not in flagged
    assert not Patterns(kinds=[]).score(texts, offsets).any()
    named = Patterns(kinds=[], also=["call"], probability=0.3).score(texts, offsets)
    assert named.max().item() == pytest.approx(0.3)


def test_a_token_classifier_scores_by_its_private_classes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "anna": 1, "says": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]").save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=3, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        id2label={0: "O", 1: "NAME"}, label2id={"O": 0, "NAME": 1},
    )  # fmt: skip
    model = transformers.BertForTokenClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(tmp_path)
    scorer = TokenClassifier(path=str(tmp_path))
    offsets = torch.tensor([[[0, 4], [4, 5], [5, 9], [0, 0]]])
    p = float(torch.tensor([0.0, 1.0]).softmax(0)[1])
    assert scorer.score(["anna says"], offsets)[0].tolist() == pytest.approx([p, 0, p, 0])
    with pytest.raises(ConfigError, match=r"method\.scorer\.private"):
        TokenClassifier(path=str(tmp_path), private="PLACE").score(["anna"], offsets)
    with pytest.raises(ConfigError, match=r"method\.scorer\.path"):
        TokenClassifier(path=str(tmp_path / "none")).score(["anna"], offsets)


def parts_of(method: Swing, ctx: Any) -> tuple[Tokens, Tensor, Tensor, dict[str, Any]]:
    batch = method.task.example(4)
    tokens = method.reader.read(batch, ctx)
    s = method.privacy(tokens, batch, ctx)
    return tokens, s, per_token_temperature(s, t_min=method.t_min, t_max=method.t_max), batch


def test_without_noise_and_heat_it_is_ordinary_distillation() -> None:
    method, ctx, engine = start(Swing(t_max=1.0, sigma=0.0), setup_of())
    batch, terms = first(method, ctx)
    tokens = method.reader.read(batch, ctx)
    torch.testing.assert_close(
        terms["swing"].values, F.kl(tokens.student, tokens.teacher, where=tokens.where), rtol=1e-4, atol=1e-5
    )
    zero, ctx0, _ = start(Swing(scores="none"), setup_of())  # noise tied to scores of 0 is none
    torch.testing.assert_close(first(zero, ctx0)[1]["swing"].values, terms["swing"].values, rtol=1e-4, atol=1e-5)
    engine.run(method)


def test_private_tokens_have_flat_noised_targets_and_public_ones_the_teachers() -> None:
    method, ctx, _ = start(Swing(sigma=2.0), setup_of())
    tokens, s, T, batch = parts_of(method, ctx)
    assert bool((s > 0).any()) and bool((s[tokens.where] == 0).any())
    assert T[s == 1].eq(10).all() and T[s == 0].eq(1).all()
    target = method.target(tokens.teacher, T, s, batch, ctx)  # type: ignore[arg-type]
    again = method.target(tokens.teacher, T, s, batch, ctx)  # type: ignore[arg-type]
    assert torch.equal(target, again), "the same step draws the same noise"
    other = method.target(tokens.teacher, T, s, batch, ctx.at(1))  # type: ignore[arg-type]
    assert not torch.equal(target[s > 0], other[s > 0])
    theirs = tokens.teacher.log_softmax(-1)  # type: ignore[union-attr]
    torch.testing.assert_close(target[s == 0], theirs[s == 0])
    torch.testing.assert_close(target.exp().sum(-1), torch.ones(s.shape))
    texts, _ = method.pieces.read(batch["input_ids"])  # type: ignore[union-attr]
    digits = [any(c.isdigit() for c in method.pieces.texts[i]) for i in batch["input_ids"][:, 1:].flatten().tolist()]  # type: ignore[union-attr]
    found = (s.flatten() > 0) & tokens.where.flatten()
    assert torch.equal(found, torch.tensor(digits) & tokens.where.flatten()), texts


@pytest.mark.parametrize(
    "words", [{"epsilon": 4.0}, {"space": "probability"}, {"noise": "laplace"}, {"tied": False}, {"shape": "exp"}]
)
def test_every_kind_of_noise_has_targets_that_are_distributions(words: dict[str, Any]) -> None:
    method, ctx, _ = start(Swing(**words), setup_of())
    tokens, s, T, batch = parts_of(method, ctx)
    target = method.target(tokens.teacher, T, s, batch, ctx)  # type: ignore[arg-type]
    torch.testing.assert_close(target.exp().sum(-1), torch.ones(s.shape))
    _, terms = first(method, ctx)
    assert bool(terms["swing"].total().isfinite())


def test_hard_labels_of_private_tokens_can_be_left_out_and_scores_shuffled() -> None:
    method, ctx, _ = start(Swing(drop_hard_on_private=True), setup_of())
    _, terms = first(method, ctx)
    tokens, s, _, _ = parts_of(method, ctx)
    assert torch.equal(terms["lm"].where, tokens.where & (s < 0.5))
    mixed, ctx, _ = start(Swing(scores="shuffled"), setup_of())
    tokens, moved, _, _ = parts_of(mixed, ctx)
    torch.testing.assert_close(moved.sum(1), s.sum(1))
    assert not torch.equal(moved, s)


def test_a_reference_model_scores_what_the_teacher_has_memorised() -> None:
    import copy

    setup = setup_of()
    assert setup.teacher is not None
    setup.others["reference"] = Built(copy.deepcopy(setup.student.module), setup.student.contract)
    method, ctx, _ = start(Swing(memorisation=True, scorer=None, width=0.01, offset=0.0), setup)
    assert method.participants["reference"].data == "train"
    tokens, s, _, batch = parts_of(method, ctx)
    at = tokens.labels.clamp_min(0).unsqueeze(-1)
    theirs = shifted(ctx.signal("reference", batch).logits, batch)[0]
    gap = [z.log_softmax(-1).gather(-1, at).squeeze(-1) for z in (tokens.teacher, theirs)]  # type: ignore[union-attr]
    want = torch.sigmoid((gap[0] - gap[1]) / 0.01)
    torch.testing.assert_close(s[tokens.where], want[tokens.where], rtol=1e-3, atol=1e-3)


def test_canaries_stand_in_the_teachers_texts_and_decoys_in_the_students() -> None:
    source = Canaries(text=Some(), digits=2, each=2, repeats=[1, 3], decoys=4)
    task = Language(data=source, vocab_size=270, length=32)
    task.load(0)
    theirs, mine = ([d.text for d in data.documents] for data in (task.teacher_train, task.train))
    assert len(source.planted) == 4 and [c.repeats for c in source.planted] == [1, 1, 3, 3]
    for canary in source.planted:
        said = source.sentence(canary.who, canary.code)
        assert theirs.count(said) == canary.repeats and said not in mine
        assert sum(f"of {canary.who} is" in text for text in mine) == 4
        assert source.sentences(canary.who)[canary.code] == said
    assert sum("secret" in d.text for data in (task.valid, task.test) for d in data.documents) == 0
    assert [c.code for c in Canaries(text=Some(), draw=1).planted] != [c.code for c in Canaries(text=Some()).planted]
    with pytest.raises(DataError, match="prompts"):
        Canaries(text=Some(pairs=True)).deal()


def test_a_model_that_knows_a_canary_exposes_it_wholly() -> None:
    source = Canaries(text=Some(), digits=2, each=1, repeats=[5], decoys=0)
    task = Language(data=source, vocab_size=270, length=48)
    task.load(0)
    ids = task.tokenizer(source.sentence(source.planted[0].who, source.planted[0].code))["input_ids"]

    class Knows(torch.nn.Module):
        """Expects the next token of the sentence at each place."""

        def forward(self, given: Tensor) -> Tensor:
            z = torch.zeros(*given.shape, task.vocabulary)
            for t in range(min(given.shape[1], len(ids) - 1)):
                z[:, t, ids[t + 1]] = 9.0
            return z

    setup = setup_of()
    built = Built(Knows(), setup.student.contract)
    evaluator = ExposureOfCanaries(at_a_time=7)
    assert evaluator.exposures(built, task, torch.device("cpu")).tolist() == pytest.approx(
        [torch.tensor(100.0).log2().item()]
    )
    texts = source.sentences("Anna")
    lp = evaluator.log_perplexity(built, task, texts, torch.device("cpu"))
    assert len(lp) == 100 and int(lp.argmin()) == source.planted[0].code
    short = Language(data=source, vocab_size=270, length=8)
    short.load(0)
    with pytest.raises(DataError, match="cut off"):
        evaluator.exposures(built, short, torch.device("cpu"))


def test_a_run_reports_exposure_and_a_void_one_is_refused(tmp_path: Path) -> None:
    result = run(tree_of("swing"), tmp_path / "a", quiet=True)
    rows = result["metrics"]["rows"]
    for name in ("student", "teacher", "alone"):
        assert {"exposure", "exposure_x2", "cross_entropy"} <= set(rows[name])
    json.dumps(result["metrics"])
    with pytest.raises(DataError, match="nothing could leak"):
        run(tree_of("swing", "evaluator.least=9"), tmp_path / "b", quiet=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.t_max=0.5"], "t_max"),
        (["method.sigma=-1"], "sigma"),
        (["method.epsilon=0"], "epsilon"),
        (["method.scorer=null"], "scorer"),
        (["method.scorer={use: patterns, kinds: [names]}"], "kinds"),
        (["method.scorer={use: patterns, also: ['(']}"], "also"),
        (["task.data.digits=9"], "digits"),
        (["task.data.carrier=hello"], "carrier"),
        (["task.data.repeats=[0]"], "repeats"),
        (["task.data.each=20"], "canaries"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("swing", words)))


def test_data_without_canaries_have_no_exposure() -> None:
    class Plain(TextSource):
        def read(self) -> dict[str, list[Document]]:
            return {}

    with pytest.raises(ConfigError, match="canaries"):
        ExposureOfCanaries().accept(Language(data=Plain()))
