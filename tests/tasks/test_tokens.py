"""Rows of token ids: what counts in them, and what they are known by."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from limbeck.data.text import Document, TextSource  # noqa: E402
from limbeck.data.text_files import Columns  # noqa: E402
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
    assert int(task.counted(batch).sum()) == len(stream) - 1 == int(batch["where"].sum())
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
    with pytest.raises(DataError, match=r"every prompt of the train split.*raise task\.length.*long_prompts=cut"):
        len(task.train)
    assert any("left out" in note for note in task.notes)


def test_long_prompts_may_be_cut_at_their_left() -> None:
    whole = small(data=Some(pairs=True, words=3), length=60, loss_on="response").train
    task = small(data=Some(pairs=True, words=3), length=6, loss_on="response", long_prompts="cut")
    assert len(task.train) == len(whole) and any("lost the beginning of their prompt" in n for n in task.notes)
    for i in range(5):
        long, short = (data.fetch(torch.tensor([i])) for data in (whole, task.train))
        prompt, kept, ids = int(long["prompt"]), int(short["prompt"]), long["input_ids"][0]
        assert kept == min(prompt, 3) and torch.equal(short["input_ids"][0], ids[prompt - kept : prompt - kept + 6])


class Talks(TextSource):
    """Conversations of two and four turns."""

    def read(self) -> dict[str, list[Document]]:
        asked = [(("user", f"ask {i}"), ("assistant", f"say {i}")) for i in range(20)]
        return {"all": [Columns(messages="m").document({"m": self.rows(a, i)}) for i, a in enumerate(asked)]}

    def rows(self, turns: Any, i: int) -> list[dict[str, str]]:
        more = (("user", "and"), ("assistant", f"more {i}"), ("user", "unanswered")) if i % 2 else ()
        return [{"role": role, "content": text} for role, text in (*turns, *more)]


TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant> {% endif %}"


@pytest.mark.parametrize("template", ["", TEMPLATE, TEMPLATE.replace("{{ eos_token }}", "")])
@pytest.mark.parametrize("loss_on", ["auto", "last", "all"])
def test_what_the_assistant_says_counts_and_its_end(template: str, loss_on: str) -> None:
    task = small(data=Talks(), length=120, loss_on=loss_on)
    task.tokenizer.chat_template = template or None
    end = task.tokenizer.eos_token
    data = task.train
    for row in range(len(data)):
        document = data.documents[row]
        batch = data.fetch(torch.tensor([row]))
        counted = task.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
        said = [text for role, text in document.turns if role == "assistant"]
        every = "eos_token" in template or not template  # else the end token stands after the last answer alone
        answers = [text + (end if every or i == len(said) - 1 else "") for i, text in enumerate(said)]
        whole = task.tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
        assert counted == (whole if loss_on == "all" else "".join(answers[-1:] if loss_on == "last" else answers))
        assert whole.endswith(said[-1] + end) and "unanswered" not in whole  # no turn is begun that nobody writes
        assert task.tokenizer.decode(batch["input_ids"][0][int(batch["prompt"]) :]).startswith(said[-1])


def test_one_start_token_and_a_template_that_rewrites_is_refused() -> None:
    task = small(data=Talks(), length=120)
    task.tokenizer.chat_template = "{% for m in messages %}[{{ loop.length }}] {{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"turn by turn.*task\.template=plain"):
        len(task.train)


def test_conversations_that_are_cut_keep_the_prompt_of_an_answer_that_is_there() -> None:
    task = small(data=Talks(), length=120)
    lengths = task.train.fetch(torch.arange(len(task.train)))["attention_mask"].sum(1)
    short = small(data=Talks(), length=int(lengths.max()) - 4)
    batch = short.train.fetch(torch.arange(len(short.train)))
    counts = batch["labels"] != -100
    at = torch.arange(counts.shape[1])
    assert bool((counts & (at >= batch["prompt"][:, None])).any(1).all())  # an answer is left to be written
    assert any("cut off at the end" in n for n in short.notes)


def test_responses_cannot_count_end_to_end() -> None:
    with pytest.raises(ConfigError, match=r"task\.packing=pad"):
        small(data=Some(pairs=True), packing="pack", loss_on="response")


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
