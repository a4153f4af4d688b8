"""The language task: its documents, vocabularies that fit or not, the loss and the metrics."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from limbeck.errors import ConfigError, DataError, ShapeError, TeacherMismatch  # noqa: E402
from limbeck.grammar.method import Built  # noqa: E402
from limbeck.grammar.signal import Signal  # noqa: E402
from limbeck.models.causal_lm import CausalLm  # noqa: E402
from limbeck.models.huggingface import HuggingFace  # noqa: E402
from limbeck.tasks.causal import output_size  # noqa: E402
from limbeck.tasks.language import Language  # noqa: E402
from tests.tasks.texts import Some, everything, small  # noqa: E402


def test_students_documents_are_drawn_by_seed() -> None:
    task = small(student_documents=10)
    first = everything(task.train)["input_ids"]
    assert len(task.train) < len(task.teacher_train)
    task.load(1)
    assert task.train.fingerprint != task.teacher_train.fingerprint and not torch.equal(
        first[:3], everything(task.train)["input_ids"][:3]
    )
    task.load(0)
    assert torch.equal(first, everything(task.train)["input_ids"])
    with pytest.raises(DataError, match="at most"):
        small(student_documents=1000)


@pytest.mark.parametrize(
    "wrong",
    [{"vocab_size": 100}, {"length": 1}, {"student_documents": 0}, {"valid_fraction": 0.0}, {"test_fraction": 1.0},
     {"valid_fraction": 0.5, "test_fraction": 0.5}, {"eval_batch": 0}, {"eval_sequences": 0}],
)  # fmt: skip
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Language(**wrong)


# ------------------------------------------------------------------------------------------------ vocabularies


class Flat(nn.Module):
    """A language model that answers with a constant row of ``size`` logits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.linspace(-1, 1, size))
        self.config = transformers.PretrainedConfig()
        self.config.vocab_size = size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return {"logits": self.row.expand(*input_ids.shape, -1)}


def test_padded_vocabularies_are_cut_to_the_overlap_and_it_is_said() -> None:
    task = small()
    student, teacher = Built(Flat(task.vocabulary + 8)), Built(Flat(task.vocabulary + 40))
    task.match(student, teacher)
    batch = task.example(2)
    for built in (student, teacher):
        assert task.feed(built.module, batch).shape[-1] == task.vocabulary + 8
    assert "cut to the" in task.notes[-1] and str(task.vocabulary + 40) in task.notes[-1]
    found = task.evaluate(student, task.valid, teacher)
    assert math.isfinite(found["kl"]) and found["kl"] > 0


def test_equal_sizes_are_left_alone() -> None:
    task = small()
    task.match(Built(Flat(task.vocabulary + 8)), Built(Flat(task.vocabulary + 8)))
    assert task.columns is None and not any("vocabular" in n for n in task.notes)


def test_tokens_that_one_side_lacks_are_cut() -> None:
    task = small()
    larger = copy.deepcopy(task.tokenizer)
    larger.add_tokens(["<|extra|>"], special_tokens=True)

    class Holder:
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

    student = Built(Flat(task.vocabulary), model=Holder(task.tokenizer))
    task.match(student, Built(Flat(task.vocabulary + 1), model=Holder(larger)))
    assert task.columns == task.vocabulary and "only one of them has" in task.notes[-1]


def test_tokens_beyond_the_models_matter_only_in_the_text() -> None:
    task = small()
    task.tokenizer.add_tokens(["<|never seen|>"], special_tokens=True)
    both = Built(Flat(task.vocabulary - 1)), Built(Flat(task.vocabulary - 1))
    task.match(*both)
    assert task.columns is None
    assert math.isfinite(task.evaluate(both[0], task.valid, both[1])["kl"])


def test_too_few_outputs_are_refused() -> None:
    task = small()
    with pytest.raises(TeacherMismatch, match="resize_token_embeddings"):
        task.match(Built(Flat(task.vocabulary)), Built(Flat(100)))


def test_a_foreign_pretrained_tokenizer_is_refused(tmp_path: Path) -> None:
    other = small(data=Some(words=30))
    model = CausalLm(layers=1, width=8, heads=2)
    model.save(model.build(other).module, tmp_path)
    task = small()
    assert task.tokenizer is not None  # trained on this text before the model came
    with pytest.raises(TeacherMismatch, match=rf"set task\.tokenizer={tmp_path}"):
        HuggingFace(str(tmp_path)).build(task)
    model.save(model.build(task).module, tmp_path / "own")
    both = small()
    HuggingFace(str(tmp_path)).build(both)
    with pytest.raises(TeacherMismatch, match="models of one family"):
        HuggingFace(str(tmp_path / "own")).build(both)


def test_a_student_from_scratch_on_a_named_tokenizer(tmp_path: Path) -> None:
    other = small(data=Some(words=30))
    model = CausalLm(layers=1, width=8, heads=2)
    model.save(model.build(other).module, tmp_path)
    task = small(tokenizer=str(tmp_path / "student"))
    student = CausalLm(layers=1, width=8, heads=2).build(task)
    teacher = HuggingFace(str(tmp_path)).build(task)
    task.match(student, teacher)
    assert task.columns is None and output_size(student.module) == output_size(teacher.module) == other.vocabulary


def test_judging_some_sequences() -> None:
    task = small(eval_sequences=2)
    assert len(task.test) == 2 and len(small().test) > 2 and len(task.train) == len(small().train)
    assert task.test.tokens_per_byte == small().test.tokens_per_byte


# ------------------------------------------------------------------------------------------------ loss and metrics


def test_supervised_equals_transformers_own_loss() -> None:
    task = small(data=Some(pairs=True), length=40, loss_on="response")
    module = CausalLm(layers=1, width=16, heads=2).build(task).module
    batch = task.train.fetch(torch.arange(4))
    term = task.supervised(Signal(task.feed(module, batch)), batch)
    own = module(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert torch.allclose(term.total() / term.n(), own, atol=1e-6)
    assert int(term.n()) == int(task.counted(batch).sum())


def test_what_is_masked_changes_nothing_bit_for_bit() -> None:
    task = small(data=Some(pairs=True), length=40, loss_on="response")
    batch = task.train.fetch(torch.arange(3))
    logits = torch.randn(3, 40, task.vocabulary)
    term = task.supervised(Signal(logits), batch)
    spoilt = torch.where(batch["where"].unsqueeze(-1), logits, torch.tensor(float("nan")))
    assert torch.equal(task.supervised(Signal(spoilt), batch).total(), term.total())
    at = tuple(batch["where"].nonzero()[0].tolist())
    moved = logits.clone()
    moved[at] = torch.randn(task.vocabulary)
    assert not torch.equal(task.supervised(Signal(moved), batch).total(), term.total())


def test_an_image_model_is_refused() -> None:
    task = small()
    with pytest.raises(ShapeError, match="no language model"):
        task.supervised(Signal(torch.zeros(2, 10)), task.example(2))


def test_metrics_of_a_uniform_model() -> None:
    task = small()
    flat = Flat(task.vocabulary)
    flat.row.data.zero_()
    found = task.evaluate(Built(flat), task.test, Built(flat))
    nats = math.log(task.vocabulary)
    assert found["cross_entropy"] == pytest.approx(nats, rel=1e-6) == found["entropy"]
    assert found["perplexity"] == pytest.approx(task.vocabulary, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) * task.test.tokens_per_byte, rel=1e-6)
    assert found["kl"] == 0 and found["agreement"] == 1


def test_metrics_do_not_depend_on_the_batch_and_restore_modes() -> None:
    task = small(data=Some(pairs=True), length=40, loss_on="response")
    built = CausalLm(layers=1, width=16, heads=2, dropout=0.5).build(task)
    other = CausalLm(layers=1, width=16, heads=2).build(task)
    built.module.train()
    one = task.evaluate(built, task.valid, other)
    task.eval_batch = 1
    two = task.evaluate(built, task.valid, other)
    assert built.module.training and all(one[k] == pytest.approx(two[k], rel=1e-5) for k in one)
    assert 0 <= one["accuracy"] <= 1 and one["kl"] > 0
    # each sequence's own sum over its tokens: of uneven number, in the split's order, whatever the batch
    sums, tokens = one.per_item["cross_entropy"], one.weights
    assert tokens is not None and len(tokens) == len(task.valid) and len(tokens.unique()) > 1
    assert (sums.sum() / tokens.sum()).item() == pytest.approx(one["cross_entropy"], rel=1e-6)
    assert two.per_item["cross_entropy"].tolist() == pytest.approx(sums.tolist(), rel=1e-4)
    assert two.weights is not None and two.weights.tolist() == tokens.tolist()


def test_a_length_that_nobody_gave_is_the_models() -> None:
    task = small(length=None)
    assert task.length == 128 and len(task.train)
    task.limit(1024, "hf:big")
    assert task.length == 128 and "hf:big has positions for 1,024" in task.notes[-1]
    rows = task.train.fetch(torch.tensor([0]))["input_ids"]
    mark = task.train.fingerprint
    task.limit(24, "hf:little")
    assert task.length == 24 and rows.shape[1] == 128 and task.train.fingerprint != mark
    assert task.train.fetch(torch.tensor([0]))["input_ids"].shape[1] == 24
    assert [n for n in task.notes if "sequences" in n] == [
        "sequences of 24 tokens, as many as hf:little has positions (task.length)"
    ]
    with pytest.raises(ConfigError, match=r"task\.length.*at most the 24 positions of hf:little.*task\.length=24"):
        small(length=25).limit(24, "hf:little")


def test_words_that_the_tokenizer_does_not_know_are_told() -> None:
    task = small()
    task.tokenizer.unk_token_id = task.tokenizer.convert_tokens_to_ids("a")
    task.tokenizer.unk_token = "a"
    len(task.train)
    assert any(n.startswith("train: ") and "% of the tokens are a, words that the tokenizer" in n for n in task.notes)
