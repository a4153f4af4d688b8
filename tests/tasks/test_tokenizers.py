"""Tokenizers that are trained, and that agree or not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")

from limbeck.errors import TeacherMismatch  # noqa: E402
from limbeck.storage import store  # noqa: E402
from limbeck.tasks.tokenizers import byte_pairs, shared_ids  # noqa: E402
from tests.tasks.texts import Some, small  # noqa: E402


def test_the_trained_tokenizer_spells_everything_and_is_remembered(shared_workspace: Path) -> None:
    texts = small().texts
    one = byte_pairs(texts, 280)
    text = "naïve 東京\n\t🙂 <not> a token"
    assert one.decode(one(text)["input_ids"]) == text
    folders = list(shared_workspace.glob("tokenizer-*"))
    assert folders
    for folder in folders:  # a damaged one is made again
        (folder / "tree.json").write_text("{")
    two = byte_pairs(texts, 280)
    assert one.get_vocab() == two.get_vocab() and one(text)["input_ids"] == two(text)["input_ids"]
    assert all(store.is_complete(f) for f in [next(iter(folders))])


def test_equal_tokenizers_agree() -> None:
    task = small()
    assert shared_ids(task.tokenizer, copy.deepcopy(task.tokenizer), "a", "b") == task.vocabulary


def test_a_tokenizer_with_more_tokens_shares_the_rest() -> None:
    task = small()
    larger = copy.deepcopy(task.tokenizer)
    larger.add_tokens(["<|extra|>"], special_tokens=True)
    assert shared_ids(task.tokenizer, larger, "a", "b") == task.vocabulary == len(larger.get_vocab()) - 1


def test_other_ids_are_refused_with_a_way_out() -> None:
    one, two = small(), small(data=Some(words=30))
    with pytest.raises(TeacherMismatch) as error:
        shared_ids(one.tokenizer, two.tokenizer, "the student", "the teacher")
    said = str(error.value)
    assert "the student" in said and "id " in said and "task.tokenizer=" in said and "method.alignment=bytes" in said


def test_the_same_tokens_cut_otherwise_are_refused() -> None:
    from tokenizers import normalizers

    task = small()
    other = copy.deepcopy(task.tokenizer)
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TeacherMismatch, match="cut text differently"):
        shared_ids(task.tokenizer, other, "a", "b")
