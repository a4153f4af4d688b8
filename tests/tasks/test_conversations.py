"""Conversations written by chat templates: which tokens are learnt, and templates that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from limbeck.data.text import Document, TextSource
from limbeck.data.text_rows import Columns
from limbeck.errors import ConfigError, DataError
from limbeck.tasks.specimen import marked
from tests.tasks.texts import small

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETS = (  # as templates of reasoning models do: what was thought before an earlier answer is left out
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('|')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LONG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one and one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and one?"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "nobody answers"},
]
CALLING = [
    {"role": "user", "content": "weather in Kyiv?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kyiv"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "12 degrees"},
    {"role": "assistant", "content": "It is 12 degrees."},
]
TOOL = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


class Chats(TextSource):
    """One conversation many times, told apart by a number in its first question."""

    def __init__(self, messages: list[dict[str, Any]], tools: list[Any] | None = None, answers: bool = False) -> None:
        self.messages, self.tools, self.answers = messages, tools, answers

    def read(self) -> dict[str, list[Document]]:
        columns = Columns(messages="m", tools="t" if self.tools else None)
        made = []
        for i in range(12):
            at = next(n for n, m in enumerate(self.messages) if m["role"] == "user")
            talk = [{**m, "content": f"{m['content']} {i}"} if n == at else m for n, m in enumerate(self.messages)]
            made.append(columns.document({"m": talk, "t": self.tools}, "chat.jsonl line", i + 1))
        return {"all": made}


def task_of(template: str | None, messages: list[dict[str, Any]] = LONG, tools: Any = None, **more: Any) -> Any:
    task = small(data=Chats(messages, tools), length=200, **more)
    task.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    task.tokenizer.chat_template = template
    return task


def learnt(task: Any, row: int = 0) -> tuple[str, str]:
    """What is read, and what of it is learnt."""
    batch = task.train.fetch(torch.tensor([row]))
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    return task.tokenizer.decode(ids[batch["attention_mask"][0].bool()]), task.tokenizer.decode(ids[labels != -100])


BOTH = "two<|im_end|>three<|im_end|>"


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(("loss_on", "said"), [("auto", BOTH), ("assistant", BOTH), ("last", "three<|im_end|>")])
def test_prefixes_and_the_templates_own_mask_agree(template: str, loss_on: str, said: str) -> None:
    whole, found = learnt(task_of(template, loss_on=loss_on))
    assert found == said
    assert whole.startswith("<|im_start|>system\nBe brief.<|im_end|>") and whole.endswith("three<|im_end|>")


def test_all_counts_the_whole_and_a_mask_without_end_is_told() -> None:
    whole, found = learnt(task_of(MARKED, loss_on="all"))
    assert whole == found
    endless = task_of(MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"))
    assert learnt(endless)[1] == "twothree" and any("when to stop is not learnt" in n for n in endless.notes)


def test_a_llama_like_template_and_one_start_token() -> None:
    task = task_of(LLAMA, LONG[1:])
    whole, found = learnt(task)
    end = task.tokenizer.eos_token
    assert found.replace(" ", "") == f"two{end}three{end}" and whole.startswith(task.tokenizer.bos_token)


def test_what_a_template_refuses_is_named_by_line() -> None:
    with pytest.raises(
        DataError, match=r"10 of 10 conversations \(chat\.jsonl line \d.*System role not supp.*template=plain"
    ):
        len(task_of(LLAMA).train)


def test_a_template_that_forgets_serves_for_the_last_answer_alone() -> None:
    thinking = [m if m["role"] != "assistant" else {**m, "content": f"hm|{m['content']}"} for m in LONG]
    with pytest.raises(DataError, match=r"turn by turn.*task\.loss=last"):
        len(task_of(FORGETS, thinking).train)
    assert learnt(task_of(FORGETS, thinking, loss_on="last"))[1] == "hm|three<|im_end|>"


def test_tools_are_written_and_their_calls_are_learnt() -> None:
    whole, found = learnt(task_of(TOOLS, CALLING, TOOL))
    assert whole.startswith('TOOLS [{"type": "function"') and "<|im_start|>tool\n12 degrees" in whole
    assert found == '<call>weather {"city": "Kyiv"}</call><|im_end|>It is 12 degrees.<|im_end|>'
    with pytest.raises(DataError, match=r"leaves out that the assistant calls 'weather'"):
        len(task_of(CHATML, CALLING, TOOL).train)
    plain = task_of(None, CALLING, TOOL)
    assert '{"name": "weather", "arguments": {"city": "Kyiv"}}' in learnt(plain)[1]


def test_turns_of_weight_zero_are_read_and_not_learnt() -> None:
    weighed = [{**m, "weight": 0} if m["content"] == "two" else m for m in LONG]
    for template in (CHATML, MARKED, None):
        whole, found = learnt(task_of(template, weighed))
        assert "two" in whole and "two" not in found and found.startswith("three")


def test_an_answer_that_begins_within_a_token_is_cut_as_it_is_when_the_model_writes() -> None:
    """The generation prompt ends in a blank that would belong to the answer's first word."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    task = task_of(template)
    batch = task.train.fetch(torch.tensor([0]))
    begun = batch["input_ids"][0, : int(batch["prompt"])].tolist()
    messages = task.train.documents[0].turns
    asked = [{"role": r, "content": c} for r, c in messages[:-2]]
    written = task.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert task.tokenizer.decode(begun) == written and learnt(task)[1] == "two<|im_end|>three<|im_end|>"


def test_pairs_told_by_their_fields_are_conversations() -> None:
    task = task_of(CHATML)
    task._texts.train = [Document("yes", f"ask {i}") for i in range(8)]
    task._texts.answers = True
    task.train.documents = task._texts.train
    task.train.forget()
    assert learnt(task)[1] == "yes<|im_end|>"


@pytest.mark.parametrize("how", ["cut-right", "cut-left", "drop", "refuse"])
def test_texts_that_do_not_fit(how: str) -> None:
    messages = [{"role": "user", "content": "short"}, {"role": "assistant", "content": "yes"}]

    class Mixed(Chats):
        def read(self) -> dict[str, list[Document]]:
            many = super().read()["all"]
            long = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "a b c d e f g h " * 9}]
            return {"train": [*many, Columns(messages="m").document({"m": long}, "chat.jsonl line", 99)],
                    "valid": [Document("x", "valid")], "test": [Document("y", "test")]}  # fmt: skip

    task = small(data=Mixed(messages), length=40, too_long=how)
    if how == "refuse":
        with pytest.raises(DataError, match=r"1 of 13 .*\(chat\.jsonl line 99\); the longest has .*too_long=cut-right"):
            len(task.train)
        return
    assert len(task.train) == (12 if how == "drop" else 13)
    note = next(n for n in task.notes if n.startswith("train: 1 of 13"))
    assert f"task.too_long={how}; the longest has" in note
    if how != "drop":
        ids = task.train.fetch(torch.tensor([12]))["input_ids"][0]
        text = task.tokenizer.decode(ids)
        assert text.startswith("go") == (how == "cut-right")
        assert text.endswith(task.tokenizer.eos_token) == (how == "cut-left")


def test_what_is_packed_is_never_too_long() -> None:
    with pytest.raises(ConfigError, match=r"task\.packing=pad"):
        small(too_long="drop")


def test_an_example_is_shown_with_its_mask() -> None:
    shown = task_of(CHATML).specimen()
    text = "\n".join(marked(shown))
    assert "[[two<|im_end|>]]" in text and "  <|im_start|>user" in text and "task.loss=assistant" in text
    assert json.loads(json.dumps(shown))["parts"][1] == ["two<|im_end|>", True]
    assert small().specimen() is None  # of plain text every token is learnt
