"""Rows of token ids: what counts in them, and what they are known by."""

from __future__ import annotations

import pickle

import pytest
import torch

transformers = pytest.importorskip("transformers")

from limbeck.errors import ConfigError, DataError  # noqa: E402
from limbeck.tasks.tokens import make_batch  # noqa: E402
from tests.tasks.texts import Some, everything, small  # noqa: E402


def test_every_token_is_predicted_exactly_once() -> None:
    task = small()
    batch = everything(task.train)
    ids = task.tokenizer([d.text for d in task.texts.train], add_special_tokens=False)["input_ids"]
    stream = [t for row in ids for t in [*row, task.tokenizer.eos_token_id]]
    predicted = batch["labels"][:, 1:][batch["where"][:, :-1]]
    assert predicted.tolist() == stream[1:]
    assert int(task.counts(batch)) == len(stream) - 1 == int(batch["where"].sum())
    assert torch.equal(batch["labels"] != -100, batch["attention_mask"].bool())
    size = sum(len(d.text.encode()) for d in task.texts.train)
    assert task.train.tokens_per_byte == len(stream) / size


def test_padded_rows_and_what_counts() -> None:
    for loss_on in ("all", "response"):
        task = small(data=Some(pairs=True, words=5), length=60, loss_on=loss_on)
        assert not task.packed
        batch = task.train.fetch(torch.tensor([0, 3]))
        document, tokenizer = task.texts.train[0], task.tokenizer
        head = tokenizer(document.prompt + "\n", add_special_tokens=False)["input_ids"]
        body = tokenizer(document.text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        row, labels = batch["input_ids"][0], batch["labels"][0]
        assert row[: len(head) + len(body)].tolist() == head + body
        assert int(batch["prompt"][0]) == len(head) and int(batch["attention_mask"][0].sum()) == len(head) + len(body)
        counted = labels[labels != -100].tolist()
        assert counted == (head + body if loss_on == "all" else body)


def test_long_prompts_are_left_out_and_said() -> None:
    task = small(data=Some(pairs=True), length=12)
    assert len(task.train) and any("cut off at the end" in note for note in task.notes)
    task = small(data=Some(pairs=True), length=3)
    with pytest.raises(DataError, match="too little text"):
        len(task.train)
    assert any("left out" in note for note in task.notes)


def test_make_batch_masks_padding_and_prompt() -> None:
    batch = make_batch(torch.arange(1, 11).view(2, 5), torch.tensor([5, 3]), torch.tensor([2, 0]), torch.tensor([2, 0]))
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, 5], [6, 7, 8, -100, -100]]
    assert batch["where"].tolist() == [[False, True, True, True, False], [True, True, False, False, False]]


def test_rows_travel_to_loader_processes_without_the_tokenizer() -> None:
    data = small().train
    copied = pickle.loads(pickle.dumps(data))
    assert copied.task is None and len(copied) == len(data)
    assert all(torch.equal(a, b) for a, b in zip(everything(data).values(), everything(copied).values(), strict=True))


def test_fingerprints_tell_tokens_apart() -> None:
    a, b = small().train.fingerprint, small().train.fingerprint
    assert a == b != small(vocab_size=290).train.fingerprint
    pairs = [small(data=Some(pairs=True), length=30, loss_on=on).train.fingerprint for on in ("all", "response")]
    assert pairs[0] != pairs[1]


def test_chat_templates() -> None:
    task = small(data=Some(pairs=True, words=5), length=90, template="chat")
    with pytest.raises(ConfigError, match="no chat template"):
        len(task.train)
    task = small(data=Some(pairs=True, words=5), length=90)
    task.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [assistant] "
    start = task.tokenizer.decode(task.train.fetch(torch.tensor([0]))["input_ids"][0])
    assert start.startswith(f"[user] {task.texts.train[0].prompt} [assistant] {task.texts.train[0].text}")
