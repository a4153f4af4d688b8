"""Rows as people have texts: one field, a prompt with its answer, or a conversation with tools; read into documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from limbeck.data.text import Document, grouped
from limbeck.errors import nearest

KNOWN: Final = ("system", "user", "assistant", "tool")
"""Who speaks in a conversation."""

ROLES: Final = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""What other layouts call who speaks."""

CALLS: Final = ("function_call", "tool_call")
"""Roles of ShareGPT's layout whose text is the call of a tool."""

PAIRS: Final = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
)
"""Fields of prompts and their answers, tried in this order where nothing is named."""

MORE: Final = ("input", "context")
"""Fields of what an instruction is about, beside ``instruction``."""


@dataclass(frozen=True)
class Columns:
    """Which fields of a row hold the text, the prompt and the response, or the conversation.

    Attributes:
        text: the field of the text; ``None``: ``text``, or a conversation or a pair where there is one instead.
        prompt, response: the fields of a pair.
        messages: the field of a conversation.
        input: the field of what an instruction is about; it follows the prompt after a blank line.
        system: the field of a system prompt, for rows without one in their conversation.
        tools: the field of the tools that a conversation may call.
        roles: what the data call who speaks -> one of `KNOWN`.
    """

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    input: str | None = None
    system: str | None = None
    tools: str | None = None
    roles: Mapping[str, str] | None = None

    USUAL: ClassVar[tuple[str, ...]] = ("messages", "conversations", "conversation", "chat")

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.response is None):
            raise ValueError("prompt and response go together: name both, or neither")
        if self.messages is not None and (self.prompt is not None or self.text is not None or self.input is not None):
            raise ValueError("messages holds whole conversations: name no field, prompt, response or input beside it")
        if self.text is not None and (self.input is not None or self.system is not None or self.tools is not None):
            raise ValueError("input, system and tools belong to prompts and conversations: name no field beside them")
        if self.input is not None and self.prompt is None:
            raise ValueError("input is what a prompt is about: name prompt and response too")
        for name, role in (self.roles or {}).items():
            if role not in KNOWN:
                raise ValueError(f"roles: {name!r} is to be {role!r}, which is none of {', '.join(KNOWN)}")

    @property
    def tops(self) -> list[str]:
        """The top-level names of what is read."""
        named = [n for n in (self.prompt, self.response, self.messages, self.input) if n is not None]
        if not named and self.text is not None:
            named = [self.text]
        if named == [self.text]:
            return [named[0].split(".")[0]]
        usual = ["text", *self.USUAL, *dict.fromkeys(n for pair in PAIRS for n in pair), *MORE]
        beside = [self.system or "system", self.tools or "tools"]
        return [name.split(".")[0] for name in [*(named or usual), *beside]]

    def settled(self, rows: Sequence[dict[str, Any]]) -> tuple[Columns, list[str]]:
        """The same with a field chosen where none was named, and what is to be said about that."""
        if self.text is not None:
            return self, []
        if self.prompt is not None or self.messages is not None:
            return self._beside(rows), []
        talk = next((n for n in self.USUAL if any(isinstance(row.get(n), list) for row in rows)), None)
        pair = next((p for p in PAIRS if any(all(n in row for n in p) for row in rows)), None)
        if any("text" in row for row in rows):
            other = f"task.data.messages={talk}" if talk else ""
            if pair and not talk:
                other = f"task.data.prompt={pair[0]} task.data.response={pair[1]}"
            return replace(self, text="text", system=None, tools=None), (
                [f"texts are read from 'text'; for what lies beside it set {other}"] if other else []
            )
        if talk is not None:
            return replace(self, messages=talk)._beside(rows), [f"conversations are read from {talk!r}"]
        if pair is not None:
            found = replace(self, prompt=pair[0], response=pair[1])
            more = next((n for n in MORE if pair[0] == "instruction" and any(n in row for row in rows)), None)
            said = f"prompts are read from {pair[0]!r}"
            if more is not None:
                found, said = replace(found, input=more), f"{said} with {more!r} below it"
            return found._beside(rows), [f"{said}, answers from {pair[1]!r}"]
        return replace(self, text="text", system=None, tools=None), []

    def _beside(self, rows: Sequence[dict[str, Any]]) -> Columns:
        """With the usual fields of system prompts and tools, where there are such."""
        system, tools = self.system, self.tools
        if system is None and any(isinstance(row.get("system"), str) for row in rows):
            system = "system"
        if tools is None and any(row.get("tools") for row in rows):
            tools = "tools"
        return replace(self, system=system, tools=tools)

    def document(self, row: dict[str, Any], source: str = "", number: int = 0, known: Sequence[str] = ()) -> Document:
        """The row as a document; ValueError with a sentence if a field is missing or holds no text."""
        if self.messages is not None:
            return self._talk(
                row, _pick(row, self.messages, known, "a conversation", list), self.messages, source, number
            )
        if self.prompt is not None and self.response is not None:
            first = _pick(row, self.prompt, known, "text", (str, list))
            answer = _pick(row, self.response, known, "text", (str, list))
            if isinstance(first, list) or isinstance(answer, list):
                return self._talk(
                    row, [*_listed(first, "user"), *_listed(answer, "assistant")], self.prompt, source, number
                )
            more = _pick(row, self.input, known, "text", (str, type(None))) if self.input is not None else None
            if more and more.strip():
                first = f"{first}\n\n{more}"
            if self.system is not None and str(row.get(self.system) or "").strip():
                turns = [{"role": "user", "content": first}, {"role": "assistant", "content": answer}]
                return self._talk(row, turns, self.prompt, source, number)
            return Document(answer, first, (), source, number)
        return Document(_pick(row, self.text or "text", known), "", (), source, number)

    def _talk(self, row: dict[str, Any], messages: list[Any], field: str, source: str, number: int) -> Document:
        system = row.get(self.system) if self.system is not None else None
        if system is not None and not isinstance(system, str):
            raise ValueError(f"field {self.system!r} holds {type(system).__name__}, not text")
        talk = [turn_of(m, f"turn {i} of {field!r}", self.roles or {}) for i, m in enumerate(messages, 1)]
        if system and system.strip() and not (talk and talk[0]["role"] == "system"):
            talk = [{"role": "system", "content": system}, *talk]
        tools = _tools(row.get(self.tools), self.tools) if self.tools is not None else []
        if not any(turn["role"] == "assistant" for turn in talk):
            raise ValueError(
                f"nobody answers in {field!r}: it {'has no turn of the assistant' if talk else 'is empty'}"
            )
        if not any(turn["role"] == "assistant" and turn.get("counts", True) for turn in talk):
            raise ValueError(f"no turn of the assistant counts in {field!r}: each has weight 0")
        return conversation(talk, tools, source, number)


def conversation(
    talk: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), source: str = "", number: int = 0
) -> Document:
    """Turns as `turn_of` gives them, as a document.

    Example:
        >>> conversation([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]).turns
        (('user', 'Hi'), ('assistant', 'Hello'))
    """
    turns = tuple((turn["role"], spoken(turn)) for turn in talk)
    answered = "\n".join(content for role, content in turns if role == "assistant")
    asked = "\n".join(content for role, content in turns if role != "assistant")
    more = tools or any(len(turn) > 2 for turn in talk)  # what turns of role and content cannot hold
    whole = json.dumps({"messages": list(talk), "tools": list(tools)}, ensure_ascii=False) if more else ""
    return Document(answered, asked, turns, source, number, whole=whole)


def spoken(turn: Mapping[str, Any]) -> str:
    """What is said in a turn, with the tools that it calls as JSON, a line each: for whoever knows no tools."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return "\n".join([*([turn["content"]] if turn["content"] else []), *calls])


def messages_of(document: Document) -> tuple[list[dict[str, Any]], list[Any], list[bool]]:
    """A document's messages as chat templates take them, its tools, and of each message whether it may be learnt from.

    Example:
        >>> messages_of(Document("Hello", "Hi"))[0]
        [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    if document.whole:
        found = json.loads(document.whole)
        counts = [bool(turn.pop("counts", True)) for turn in found["messages"]]
        return found["messages"], found["tools"], counts
    turns = document.turns or (("user", document.prompt), ("assistant", document.text))
    return [{"role": role, "content": text} for role, text in turns], [], [True] * len(turns)


def turn_of(message: Any, where: str, roles: Mapping[str, str]) -> dict[str, Any]:
    """A message as chat templates take it: ``role``, ``content`` (a text), and where there are such ``tool_calls``,
    ``tool_call_id``, ``name``, ``reasoning_content``; ``counts`` is false where its data say that nobody learns it.

    Args:
        message: with role and content (or from and value).
        where: how messages call it.
        roles: what the data call who speaks -> one of `KNOWN`, beside `ROLES`.

    Raises:
        ValueError: no such message, with a sentence.
    """
    if not isinstance(message, dict):
        raise ValueError(f"{where} is no object with role and content")
    given: Any = next((message[k] for k in ("role", "from") if message.get(k) is not None), None)
    content: Any = next((message[k] for k in ("content", "value") if message.get(k) is not None), None)
    if given is None:
        raise ValueError(f"{where} has no role")
    if not isinstance(given, str):
        raise ValueError(f"{where} has {type(given).__name__} as role, not text")
    low = given.lower()
    role = roles.get(given) or ROLES.get(low, low)
    if role not in KNOWN:
        raise ValueError(
            f"{where} has the role {given!r}; known: {', '.join(KNOWN)} (say which it is with "
            f"task.data.roles={{{given}: user}})"
        )
    if isinstance(content, list):
        content = _parts(content, where)
    calls = _calls(message.get("tool_calls"), where)
    if low in CALLS and isinstance(content, str):
        calls, content = _calls(_json(content, where, "the call of a tool"), where), ""
    if calls and role != "assistant":
        raise ValueError(f"{where} is the {role}'s and calls tools, which only the assistant does")
    if content is None and calls:
        content = ""
    if content is None:
        raise ValueError(f"{where} has no content" + (" and calls no tool" if role == "assistant" else ""))
    if not isinstance(content, str):
        raise ValueError(f"{where} has {type(content).__name__} as content, not text")
    turn: dict[str, Any] = {"role": role, "content": content}
    if calls:
        turn["tool_calls"] = calls
    for name in ("tool_call_id", "name", "reasoning_content"):
        if isinstance(message.get(name), str) and message[name]:
            turn[name] = message[name]
    weight = message.get("weight") if message.get("weight") is not None else message.get("train")
    if weight is not None and weight not in (0, 1):
        raise ValueError(f"{where} has the weight {weight!r}, which is neither 0 nor 1")
    if weight is not None and not weight:
        turn["counts"] = False
    return turn


def _listed(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _parts(parts: list[Any], where: str) -> str:
    """The texts of a message's parts."""
    for part in parts:
        if isinstance(part, dict) and not isinstance(part.get("text"), str):
            kind = part.get("type", "unknown")
            raise ValueError(f"{where} holds a part of the type {kind!r}: language models are given text alone")
        if not isinstance(part, (dict, str)):
            raise ValueError(f"{where} has a list with {type(part).__name__} as content, not text")
    return "".join(part if isinstance(part, str) else part["text"] for part in parts)


def _json(text: str, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} holds {what} that is no JSON") from None


def _calls(found: Any, where: str) -> list[dict[str, Any]]:
    """Calls of tools as templates take them: ``{"type": "function", "function": {"name", "arguments": {...}}}``."""
    if not found:
        return []
    calls = []
    for call in found if isinstance(found, list) else [found]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise ValueError(f"{where} calls a tool without a name")
        arguments = inner.get("arguments", inner.get("parameters"))
        if isinstance(arguments, str):  # the API's layout; templates write JSON themselves
            arguments = _json(arguments, where, f"arguments of {inner['name']!r}") if arguments.strip() else {}
        if not isinstance(arguments, (dict, type(None))):
            raise ValueError(
                f"{where} calls {inner['name']!r} with {type(arguments).__name__} as arguments, not an object"
            )
        made: dict[str, Any] = {
            "type": "function",
            "function": {"name": inner["name"], "arguments": filled(arguments or {})},
        }
        if isinstance(call.get("id"), str) and call["id"]:
            made["id"] = call["id"]
        calls.append(made)
    return calls


def filled(value: Any) -> Any:
    """Without what is empty: tables give every object the keys of all, with nothing in those that it had not.

    Example:
        >>> filled({"city": "Kyiv", "unit": None, "days": [{"n": 1, "m": None}]})
        {'city': 'Kyiv', 'days': [{'n': 1}]}
    """
    if isinstance(value, dict):
        return {k: filled(v) for k, v in value.items() if v is not None}
    return [filled(v) for v in value] if isinstance(value, list) else value


def _tools(found: Any, field: str | None) -> list[Any]:
    """The tools of a row: a list of JSON schemas, or such a list as a text."""
    if isinstance(found, str):
        found = _json(found, f"field {field!r}", "a list of tools") if found.strip() else None
    if found is None:
        return []
    tools = found if isinstance(found, list) else [found]
    if not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"field {field!r} holds no list of tools (JSON objects)")
    return [filled(tool if "function" in tool else {"type": "function", "function": tool}) for tool in tools]


def _pick(
    row: dict[str, Any], path: str, known: Sequence[str], what: str = "text", kind: type | tuple[type, ...] = str
) -> Any:
    value: Any = row
    for part in [path] if path in row else path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            names = list(known) or list(row)
            close = nearest(path, names)
            hint = f"did you mean {close[0]!r}?" if close else f"fields: {', '.join(map(str, names[:12]))}"
            raise ValueError(f"no field {path!r}; {hint}")
    if kind is list and isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _json(value, f"field {path!r}", what)  # a cell of a table
    if not isinstance(value, kind):
        raise ValueError(f"field {path!r} holds {'nothing' if value is None else type(value).__name__}, not {what}")
    return value


def by_fault(bad: Sequence[tuple[str, int, str]]) -> str:
    """Offending rows (source, number, fault), those with the same fault together."""
    faults: dict[str, list[tuple[str, int]]] = {}
    for source, number, fault in bad:
        faults.setdefault(fault, []).append((source, number))
    said = [f"{grouped(places, 5)}: {fault}" for fault, places in list(faults.items())[:8]]
    return "; ".join(said) + ("; ..." if len(faults) > 8 else "")


__all__ = ["KNOWN", "Columns", "by_fault", "conversation", "messages_of", "spoken", "turn_of"]
