"""Rows in the layouts that people have: Alpaca, ShareGPT, OpenAI's messages with tools, prompts with completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.text import Document
from limbeck.data.text_files import TextCsv, TextHuggingFace, TextJsonl, TextParquet
from limbeck.data.text_rows import Columns, messages_of
from limbeck.errors import DataError


def read(tmp_path: Path, rows: Any, **more: Any) -> tuple[TextJsonl, list[Document]]:
    """Rows written as JSON lines (or as one list) and read again."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows) if more.pop("listed", False) else "\n".join(json.dumps(r) for r in rows))
    source = TextJsonl(str(file), **more)
    return source, source.read()["all"]


@pytest.mark.parametrize("listed", [False, True])
def test_alpaca(tmp_path: Path, listed: bool) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello"},
    ]
    source, found = read(tmp_path, rows, listed=listed)
    assert found == [Document("3", "Add.\n\n1 2"), Document("Hello", "Greet.")]
    assert source.answers and source.notes == [
        "prompts are read from 'instruction' with 'input' below it, answers from 'output'"
    ]


@pytest.mark.parametrize(
    ("one", "two"), [("prompt", "completion"), ("question", "answer"), ("instruction", "response")]
)
def test_pairs_by_their_names(tmp_path: Path, one: str, two: str) -> None:
    source, found = read(tmp_path, [{one: "q", two: "a", "id": 3}])
    assert found == [Document("a", "q")] and source.answers
    named, found = read(tmp_path, [{one: "q", two: "a"}], prompt=one, response=two)
    assert found == [Document("a", "q")] and not named.answers  # as before: what is named keeps its meaning


def test_a_system_prompt_beside_a_pair_makes_a_conversation(tmp_path: Path) -> None:
    _, found = read(
        tmp_path, [{"prompt": "q", "completion": "a", "system": "Be kind."}, {"prompt": "q2", "completion": "b"}]
    )
    assert found[0].turns == (("system", "Be kind."), ("user", "q"), ("assistant", "a")) and found[1].turns == ()


def test_prompts_and_completions_of_messages(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
    assert read(tmp_path, [row])[1][0].turns == (("user", "q"), ("assistant", "a"))


def test_share_gpt_with_tools(tmp_path: Path) -> None:
    row = {
        "system": "Use tools.",
        "tools": json.dumps([{"name": "sum", "parameters": {}}]),
        "conversations": [
            {"from": "human", "value": "1+2?"},
            {"from": "function_call", "value": '{"name": "sum", "arguments": {"a": 1, "b": 2, "c": null}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "It is 3."},
        ],
    }
    _, (found,) = read(tmp_path, [row])
    assert [r for r, _ in found.turns] == ["system", "user", "assistant", "tool", "assistant"]
    messages, tools, counts = messages_of(found)
    assert messages[2]["tool_calls"] == [
        {"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": 2}}}
    ]
    assert tools == [{"type": "function", "function": {"name": "sum", "parameters": {}}}] and all(counts)
    assert messages[2]["content"] == "" and found.turns[2][1] == '{"name": "sum", "arguments": {"a": 1, "b": 2}}'


def test_plain_conversations_are_what_they_were() -> None:
    """Their keys, by which they are dealt and remembered, do not change with what others may hold."""
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello", "tool_calls": None, "name": None},
    ]
    found = Columns(messages="m").document({"m": talk})
    assert found.whole == "" and found.key == Document("hello", "hi", (("user", "hi"), ("assistant", "hello"))).key


TALK = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "narrator", "content": "x"}, *TALK], r"role 'narrator'; known: system, user.*roles=\{narrator: user\}"),
        ([], r"nobody answers in 'messages': it is empty"),
        ([TALK[0]], r"nobody answers in 'messages': it has no turn of the assistant"),
        ([{"role": "user", "content": None}, TALK[1]], r"turn 1 of 'messages' has no content"),
        ([TALK[0], {"role": "assistant", "content": None}], r"has no content and calls no tool"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, TALK[1]], r"part of the type 'image_url'"),
        ([{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, TALK[1]], r"user's and calls tools"),
        ([TALK[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], r"is no JSON"),
        ([TALK[0], {**TALK[1], "weight": 0.5}], r"weight 0\.5, which is neither"),
        ([TALK[0], {**TALK[1], "weight": 0}], r"no turn of the assistant counts"),
    ],
)  # fmt: skip
def test_broken_conversations(tmp_path: Path, messages: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"1 row cannot be read: a\.json line 2: .*{said}") as error:
        read(tmp_path, [{"messages": TALK}, {"messages": messages}])
    assert "\n" not in error.value.line()
    source, found = read(tmp_path, [{"messages": TALK}, {"messages": messages}], bad_rows="skip")
    assert len(found) == 1 and "1 row of 2 left out" in source.notes[0] + source.notes[-1]


def test_roles_may_be_named(tmp_path: Path) -> None:
    talk = [{"role": "Pupil", "content": "q"}, {"role": "Tutor", "content": "a"}]
    _, found = read(tmp_path, [{"messages": talk}], roles={"Pupil": "user", "Tutor": "assistant"})
    assert found[0].turns == (("user", "q"), ("assistant", "a"))
    with pytest.raises(ValueError, match="none of system, user, assistant, tool"):
        TextJsonl("x", roles={"Tutor": "teacher"})


def test_text_wins_where_it_is_there_and_what_lies_beside_it_is_told(tmp_path: Path) -> None:
    source, found = read(tmp_path, [{"text": "t", "instruction": "i", "output": "o"}])
    assert found == [Document("t")] and "task.data.prompt=instruction task.data.response=output" in source.notes[0]


def test_one_content_in_every_file_kind(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"instruction": f"do {i}", "input": "" if i % 2 else "it, now", "output": f"done\n{i}"} for i in range(4)]
    wanted = [Document(r["output"], r["instruction"] + (f"\n\n{r['input']}" if r["input"] else "")) for r in rows]
    (tmp_path / "a.csv").write_text(
        "instruction,input,output\n" + "".join(f'{r["instruction"]},"{r["input"]}","{r["output"]}"\n' for r in rows)
    )
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert TextCsv(str(tmp_path / "a.csv")).read()["all"] == wanted
    assert TextParquet(str(tmp_path / "a.parquet")).read()["all"] == wanted
    assert read(tmp_path, rows)[1] == wanted


def test_cells_that_hold_conversations_as_text(tmp_path: Path) -> None:
    cell = json.dumps(TALK).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages\n"{cell}"\n')
    assert TextCsv(str(tmp_path / "a.csv"), messages="messages").read()["all"][0].turns == (
        ("user", "q"),
        ("assistant", "a"),
    )


def test_a_folder_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = {
        n: datasets.Dataset.from_list([{"messages": list(TALK), "prompt": n}])
        for n in ("train_sft", "test_gen", "extra")
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "d"))
    source = TextHuggingFace(str(tmp_path / "d"))
    found = source.read()
    assert set(found) == {"train", "test"} and found["train"][0].turns == (("user", "q"), ("assistant", "a"))
    assert "not read: split extra (1)" in source.notes
    with pytest.raises(DataError, match="did you mean 'train_sft'"):
        TextHuggingFace(str(tmp_path / "d"), train="train_stf").read()
