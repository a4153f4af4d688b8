"""Conversations as token ids: written by the tokenizer's own chat template or plainly, and which tokens of them are answers.

Where a template marks what the model writes (``{% generation %}``), its mask is taken. Elsewhere answers are found by writing
the conversation up to each of them, without and with it: what is added is the answer. That is right only where each of these
is the beginning of the next, which is checked; a template that rewrites what came before is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.data.text import Document, places_of
from limbeck.data.text_rows import messages_of
from limbeck.errors import DataError, first_line
from limbeck.tasks.tokenizers import special_ids

if TYPE_CHECKING:
    from limbeck.tasks.language import Language

MARKED = re.compile(r"\{%[-+]?\s*generation\b")
"""How a template marks what the model writes."""


@dataclass
class Piece:
    """A part of a conversation.

    Attributes:
        text: what is written.
        answer: whether it is an answer.
        ends: whether an end token closes it.
        counts: of an answer: whether it may be learnt from.
    """

    text: str
    answer: bool = False
    ends: bool = False
    counts: bool = True


@dataclass
class Talk:
    """A conversation as token ids.

    Attributes:
        ids: the tokens, up to the end of the last answer.
        last: where the last answer begins.
        answers: which tokens are answers that count.
    """

    ids: list[int] = field(default_factory=list)
    last: int = 0
    answers: list[bool] = field(default_factory=list)


def talks(task: Language, documents: Sequence[Document], template: bool) -> list[Talk]:
    """Each conversation's tokens, in order.

    Raises:
        DataError: the template refuses conversations, rewrites them, or leaves out the calls of tools; all are named.
    """
    tokenizer = task.tokenizer
    if template and MARKED.search(_source(tokenizer)):
        return _each(documents, lambda d: _by_mask(task, d))
    if template and any(_uses_tools(d) for d in documents) and "tools" not in _source(tokenizer):
        task.note("the chat template does not write which tools there are: task.data.tools is not used")
    pieces = _each(documents, lambda d: _by_template(task, d) if template else _plainly(d))
    return _tokens(task, pieces)


class _Refused(Exception):
    """A conversation that cannot be written, and why."""


def _each(documents: Sequence[Document], write: Callable[[Document], Any]) -> list[Any]:
    """What is written of each; all that is refused is named at once, those with the same fault together."""
    made, faults = [], dict[str, list[Document]]()
    for document in documents:
        try:
            made.append(write(document))
        except _Refused as error:
            faults.setdefault(str(error), []).append(document)
    if faults:
        said = []
        for fault, whose in list(faults.items())[:4]:
            places = places_of(whose, 5)
            said.append(f"{len(whose)} of {len(documents)} conversations{f' ({places})' if places else ''}: {fault}")
        raise DataError(
            "task.template",
            f"the chat template fails on {'; '.join(said)}",
            remedy="set task.template=plain, take these conversations out, or name a tokenizer with another template "
            "(task.tokenizer)"
            + (", or learn the last answer alone: task.loss=last" if any(_REWRITES in f for f in faults) else ""),
        )
    return made


_REWRITES = "it does not write them turn by turn, so that it can't be told what is answered"


def _source(tokenizer: Any) -> str:
    """The template's text; of several that a tokenizer has, the one that the library takes."""
    known = tokenizer.chat_template
    return known if isinstance(known, str) else str(tokenizer.get_chat_template())


def _uses_tools(document: Document) -> bool:
    return bool(document.whole) and bool(messages_of(document)[1])


def _asked(document: Document) -> tuple[list[dict[str, Any]], list[Any] | None, list[bool], list[int]]:
    """Messages up to the last answer (what nobody answers teaches nothing), tools, which count, and where answers are."""
    messages, tools, counts = messages_of(document)
    spots = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    return messages[: spots[-1] + 1], tools or None, counts, spots


def written(tokenizer: Any, messages: list[dict[str, Any]], begun: bool, tools: list[Any] | None = None) -> str:
    """Messages as the chat template writes them; ``begun``: with what comes before an answer."""
    more = {"tools": tools} if tools else {}
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begun, **more)
    except Exception as error:  # whatever a template raises: jinja2's errors, TypeError of a text that is none
        raise _Refused(f"it says {first_line(error)!r}") from None
    return text


def prompts(task: Language, documents: Sequence[Document]) -> list[str]:
    """Each document's prompt as the chat template writes a question, with what comes before its answer."""
    return _each(documents, lambda d: written(task.tokenizer, [{"role": "user", "content": d.prompt}], True))


# -------------------------------------------------------------------------------------------------- by the template's mask
def _by_mask(task: Language, document: Document) -> Talk:
    """By what the template marks as written by the model."""
    tokenizer = task.tokenizer
    messages, tools, counts, spots = _asked(document)
    more = {"tools": tools} if tools else {}
    try:
        found = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **more
        )
    except Exception as error:
        raise _Refused(f"it says {first_line(error)!r}") from None
    ids, mask = list(found["input_ids"]), [bool(x) for x in found["assistant_masks"]]
    begins = [i for i, yes in enumerate(mask) if yes and (i == 0 or not mask[i - 1])]
    if not begins:
        raise _Refused("it marks nothing as written by the model ({% generation %})")
    if len(begins) != len(spots) and (task.loss_on == "last" or not all(counts[i] for i in spots)):
        raise _Refused(
            f"it marks {len(begins)} answers of {len(spots)}, so that it can't be told which are to be learnt"
        )
    if len(begins) == len(spots):
        for n, begin in enumerate(begins):
            end = next((i for i in range(begin, len(mask)) if not mask[i]), len(mask))
            learnt = counts[spots[n]] and (n == len(begins) - 1 or task.loss_on != "last")
            mask[begin:end] = [learnt] * (end - begin)
    stop = next((i for i in range(begins[-1], len(mask)) if not found["assistant_masks"][i]), len(mask))
    if ids[stop - 1] not in tokenizer.all_special_ids:
        task.note("the chat template's mask leaves out what ends an answer: when to stop is not learnt")
    bos, _ = special_ids(tokenizer)
    head = 1 if bos and ids[:1] == bos and ids[1:2] == bos else 0  # one start token is enough
    return Talk(ids[head:stop], begins[-1] - head, mask[head:stop])


# ----------------------------------------------------------------------------------------------------------- by its pieces
def _plainly(document: Document) -> list[Piece]:
    """Each turn with a line break after it, each answer with an end token."""
    turns = document.turns or (("user", document.prompt), ("assistant", document.text))
    counts = messages_of(document)[2] if document.whole else [True] * len(turns)
    last = max(i for i, (role, _) in enumerate(turns) if role == "assistant")
    return [
        Piece(text, True, True, counts[i]) if role == "assistant" else Piece(f"{text}\n")
        for i, (role, text) in enumerate(turns[: last + 1])
    ]


def _by_template(task: Language, document: Document) -> list[Piece]:
    """A conversation as the template writes it, up to the last answer; of an answer counts what is said, and its end."""
    tokenizer = task.tokenizer
    messages, tools, counts, spots = _asked(document)
    pieces: list[Piece] = []
    done = ""
    for i in spots[-1:] if task.loss_on == "last" else spots:
        after = written(tokenizer, messages[: i + 1], False, tools)
        if i:
            before = written(tokenizer, messages[:i], True, tools)
        else:
            at = after.find(messages[0]["content"].strip())
            before = after[:at] if at >= 0 else "?"
        if not (before.startswith(done) and after.startswith(before)):
            raise _Refused(_REWRITES)
        answer = after[len(before) :]
        lost = [c["function"]["name"] for c in messages[i].get("tool_calls", ()) if c["function"]["name"] not in answer]
        if lost:
            raise _Refused(f"it leaves out that the assistant calls {lost[0]!r}")
        said, rest = _to_its_end(tokenizer, answer)
        pieces += [Piece(before[len(done) :]), Piece(said, True, counts=counts[i]), Piece(rest)]
        done = after
    start = tokenizer.bos_token or ""
    if special_ids(tokenizer)[0]:  # the tokenizer sets a start token itself: one is enough
        pieces[0].text = pieces[0].text.removeprefix(start)
    pieces.pop()  # what follows the last answer
    pieces[-1].ends = not any(pieces[-1].text.endswith(token) for token in tokenizer.all_special_tokens)
    return pieces


def _to_its_end(tokenizer: Any, text: str) -> tuple[str, str]:
    """An answer up to the last special token in it, and the blanks and line ends after it."""
    ends = [text.rindex(token) + len(token) for token in tokenizer.all_special_tokens if token in text]
    at = max(ends, default=len(text.rstrip()))
    return text[:at], text[at:]


def _tokens(task: Language, written: list[list[Piece]]) -> list[Talk]:
    """Pieces as tokens.

    A conversation is cut into tokens as a whole where the beginnings and ends of all answers fall between two tokens, as
    they do at special tokens and line ends. Where one falls into a token, its pieces are cut alone: so it is met when the
    model writes, for what comes before is then cut without the answer.
    """
    tokenizer = task.tokenizer
    bos, eos = special_ids(tokenizer)
    if not written:
        return []
    whole: list[list[list[int]] | None] = [None] * len(written)
    if getattr(tokenizer, "is_fast", False):
        texts = ["".join(piece.text for piece in parts) for parts in written]
        found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        whole = [
            _apart(parts, ids, at)
            for parts, ids, at in zip(written, found["input_ids"], found["offset_mapping"], strict=True)
        ]
    alone = [piece.text for parts, one in zip(written, whole, strict=True) if one is None for piece in parts]
    flat = iter(tokenizer(alone, add_special_tokens=False, verbose=False)["input_ids"] if alone else [])
    made = []
    for parts, one in zip(written, whole, strict=True):
        talk = Talk(list(bos), 0, [False] * len(bos))
        final = max(i for i, piece in enumerate(parts) if piece.answer)
        for i, piece in enumerate(parts):
            ids = [*(next(flat) if one is None else one[i]), *(eos if piece.ends else [])]
            talk.last = len(talk.ids) if i == final else talk.last
            counts = piece.answer and piece.counts and (i == final or task.loss_on != "last")
            talk.ids += ids
            talk.answers += [counts] * len(ids)
        made.append(talk)
    return made


def _apart(parts: list[Piece], ids: list[int], at: list[tuple[int, int]]) -> list[list[int]] | None:
    """The tokens of each piece; ``None`` where a piece ends within a token, or an end token stands inside the text."""
    if any(piece.ends for piece in parts[:-1]):
        return None
    found: list[list[int]] = []
    place = end = 0
    for piece in parts:
        end += len(piece.text)
        first = place
        while place < len(ids) and at[place][1] <= end:
            place += 1
        if place < len(ids) and at[place][0] < end:
            return None
        found.append(ids[first:place])
    return found if place == len(ids) else None


__all__ = ["MARKED", "Talk", "prompts", "talks"]
