"""Documents as token ids: plain texts, prompts with responses, conversations; by a chat template or plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limbeck.data.text import Document
from limbeck.errors import ConfigError
from limbeck.tasks.conversations import Talk, prompts, talks
from limbeck.tasks.offsets import BYTE, Ends, extent, prompt_size
from limbeck.tasks.tokenizers import special_ids

if TYPE_CHECKING:
    from limbeck.tasks.language import Language


@dataclass(frozen=True)
class Spelled:
    """A document's token ids, start and end included.

    Attributes:
        ids: the tokens.
        prompt: how many of them are prompt; of a conversation, what comes before the last answer.
        answers: of a conversation, which tokens are answers (or the last one), their end included.
        ends: where each token ends, in quarters of a byte from the document's beginning, where that was asked for
            (`limbeck.tasks.offsets`).
    """

    ids: list[int]
    prompt: int = 0
    answers: list[bool] | None = None
    ends: list[int] | None = None

    @property
    def begins(self) -> int:
        """Where what is answered begins."""
        if self.answers is None:
            return self.prompt
        return self.answers.index(True) if any(self.answers) else self.prompt

    def cut(self, length: int) -> Spelled:
        """The first ``length`` tokens; of a conversation the prompt is then what comes before the last answer in them."""
        if len(self.ids) <= length:
            return self
        ends = None if self.ends is None else self.ends[:length]
        if self.answers is None:
            return replace(self, ids=self.ids[:length], ends=ends)
        answers = self.answers[:length]
        last = max((i for i, yes in enumerate(answers) if yes and (i == 0 or not answers[i - 1])), default=0)
        return Spelled(self.ids[:length], last, answers, ends)

    def without_beginning(self, length: int, keep: int) -> Spelled:
        """The last ``length`` tokens, the first ``keep`` of which are those that begin every text."""
        gone = len(self.ids) - length
        if gone <= 0:
            return self
        answers = None if self.answers is None else [*self.answers[:keep], *self.answers[keep + gone :]]
        ends = None if self.ends is None else [*self.ends[:keep], *self.ends[keep + gone :]]
        return Spelled([*self.ids[:keep], *self.ids[keep + gone :]], max(keep, self.prompt - gone), answers, ends)

    def with_shorter_prompt(self, length: int, keep: int) -> Spelled:
        """Without so much of the prompt's beginning that the answer fits; half of ``length`` stays prompt at least.

        Args:
            length: tokens that there is room for.
            keep: how many tokens at the start stay (a token that begins every text).
        """
        room = max(length - (len(self.ids) - self.prompt), length // 2)
        if room >= self.prompt:
            return self
        head = [*self.ids[:keep], *self.ids[self.prompt - (room - keep) : self.prompt]]
        ends = self.ends
        if ends is not None:
            ends = [*ends[:keep], *ends[self.prompt - (room - keep) : self.prompt], *ends[self.prompt :]]
        return Spelled([*head, *self.ids[self.prompt :]], len(head), ends=ends)


def spell(task: Language, documents: Sequence[Document], ends: Ends | None = None) -> list[Spelled]:
    """Each document's tokens, in order; with ``ends`` also where each of them ends.

    Raises:
        ConfigError: ends are asked for, and there are conversations.
    """
    chat = _template(task)
    asked = any(document.prompt and not document.turns for document in documents) and task.texts.answers
    talking = [bool(d.turns) or (asked and bool(d.prompt)) for d in documents]
    if ends is not None and any(talking):
        raise ConfigError(
            "method.alignment",
            "conversations are not paired: their templates write them in pieces that have no place in a common text",
            given="bytes",
            remedy="give texts, or prompts with one response each (task.template=plain or chat)",
        )
    conversations = iter(talks(task, [d for d, yes in zip(documents, talking, strict=True) if yes], chat))
    others = iter(_texts(task, [d for d, yes in zip(documents, talking, strict=True) if not yes], chat, ends))
    return [_spelled(next(conversations)) if yes else next(others) for yes in talking]


def _spelled(talk: Talk) -> Spelled:
    return Spelled(talk.ids, talk.last, talk.answers)


def _texts(task: Language, documents: Sequence[Document], chat: bool, ends: Ends | None = None) -> list[Spelled]:
    """Plain texts, and prompts with their responses."""
    tokenizer = task.tokenizer
    asked = [d for d in documents if d.prompt]
    questions = iter(prompts(task, asked) if chat else [d.prompt + "\n" for d in asked])
    before = [
        _without_start(tokenizer, next(questions)) if d.prompt and chat else d.prompt and next(questions)
        for d in documents
    ]
    bos, eos = special_ids(tokenizer)
    if ends is not None:
        return _placed(ends, documents, before, chat, bos, eos)
    heads, texts = _ids(tokenizer, before), _ids(tokenizer, [document.text for document in documents])
    return [Spelled([*bos, *head, *text, *eos], len(bos) + len(head)) for head, text in zip(heads, texts, strict=True)]


def _placed(
    ends: Ends, documents: Sequence[Document], prompts: list[str], chat: bool, bos: list[int], eos: list[int]
) -> list[Spelled]:
    """Documents with ends: a start takes no room, an end one byte; of a template's prompt the last token alone can be shared."""
    made = []
    heads, texts = ends(prompts), ends([document.text for document in documents])
    for document, (head, at), (text, behind) in zip(documents, heads, texts, strict=True):
        begins = prompt_size(document) * BYTE
        first = at.tolist()
        if chat and first:
            first = [ends.odd] * (len(first) - 1) + [begins]
        where = [0] * len(bos) + first + (behind + begins).tolist() + [extent(document) * BYTE] * len(eos)
        made.append(Spelled([*bos, *head, *text, *eos], len(bos) + len(head), ends=where))
    return made


def _template(task: Language) -> bool:
    """Whether prompts are written by the tokenizer's chat template."""
    known = getattr(task.tokenizer, "chat_template", None)
    if task.template == "chat" and not known:
        raise ConfigError("task.template", "the tokenizer has no chat template", remedy="set task.template=plain")
    return task.template == "chat" or (task.template == "auto" and bool(known))


def _without_start(tokenizer: Any, text: str) -> str:
    """A template's text without the start token, where the tokenizer sets one itself: one is enough."""
    return text.removeprefix(tokenizer.bos_token or "") if special_ids(tokenizer)[0] else text


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found
