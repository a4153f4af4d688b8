"""Documents as token ids: plain texts, prompts with responses, conversations; by a chat template or plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limbeck.data.text import Document
from limbeck.errors import ConfigError, DataError
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
    """

    ids: list[int]
    prompt: int = 0
    answers: list[bool] | None = None

    @property
    def begins(self) -> int:
        """Where what is answered begins."""
        return self.prompt if self.answers is None else self.answers.index(True)

    def cut(self, length: int) -> Spelled:
        """The first ``length`` tokens; of a conversation the prompt is then what comes before the last answer in them."""
        if len(self.ids) <= length:
            return self
        if self.answers is None:
            return replace(self, ids=self.ids[:length])
        answers = self.answers[:length]
        last = max(i for i, yes in enumerate(answers) if yes and (i == 0 or not answers[i - 1]))
        return Spelled(self.ids[:length], last, answers)

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
        return Spelled([*head, *self.ids[self.prompt :]], len(head))


def spell(task: Language, documents: Sequence[Document]) -> list[Spelled]:
    """Each document's tokens, in order."""
    if any(document.turns for document in documents):
        return _conversations(task, documents)
    tokenizer = task.tokenizer
    chat = _template(task)
    prompts = []
    for document in documents:
        if not document.prompt:
            prompts.append("")
        elif chat:
            turn = [{"role": "user", "content": document.prompt}]
            prompts.append(_without_start(tokenizer, _written(tokenizer, turn, True)))
        else:
            prompts.append(document.prompt + "\n")
    bos, eos = special_ids(tokenizer)
    heads, texts = _ids(tokenizer, prompts), _ids(tokenizer, [document.text for document in documents])
    return [Spelled([*bos, *head, *text, *eos], len(bos) + len(head)) for head, text in zip(heads, texts, strict=True)]


def _template(task: Language) -> bool:
    """Whether prompts are written by the tokenizer's chat template."""
    known = getattr(task.tokenizer, "chat_template", None)
    if task.template == "chat" and not known:
        raise ConfigError("task.template", "the tokenizer has no chat template", remedy="set task.template=plain")
    return task.template == "chat" or (task.template == "auto" and bool(known))


def _written(tokenizer: Any, turns: list[dict[str, str]], begun: bool) -> str:
    """Turns as the chat template writes them; ``begun``: with what comes before an answer."""
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun)
    return text


def _without_start(tokenizer: Any, text: str) -> str:
    """A template's text without the start token, where the tokenizer sets one itself: one is enough."""
    return text.removeprefix(tokenizer.bos_token or "") if special_ids(tokenizer)[0] else text


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found


# -------------------------------------------------------------------------------------------------------- conversations
@dataclass
class _Piece:
    """A part of a conversation: its text, whether it is an answer, and whether an end token closes it."""

    text: str
    answer: bool = False
    ends: bool = False


def _conversations(task: Language, documents: Sequence[Document]) -> list[Spelled]:
    tokenizer = task.tokenizer
    write = _by_template if _template(task) else _plainly
    pieces = [write(tokenizer, document) for document in documents]
    flat = iter(_ids(tokenizer, [piece.text for parts in pieces for piece in parts]))
    bos, eos = special_ids(tokenizer)
    made = []
    for parts in pieces:
        ids, answers, last = list(bos), [False] * len(bos), 0
        final = max(i for i, piece in enumerate(parts) if piece.answer)
        for i, piece in enumerate(parts):
            found = [*next(flat), *(eos if piece.ends else [])]
            last = len(ids) if i == final else last
            counts = piece.answer and (i == final or task.loss_on != "last")
            ids += found
            answers += [counts] * len(found)
        made.append(Spelled(ids, last, answers))
    return made


def _plainly(tokenizer: Any, document: Document) -> list[_Piece]:
    """Each turn with a line break after it, each answer with an end token."""
    last = max(i for i, (role, _) in enumerate(document.turns) if role == "assistant")
    return [
        _Piece(text, True, True) if role == "assistant" else _Piece(f"{text}\n")
        for role, text in document.turns[: last + 1]  # what nobody answers teaches nothing
    ]


def _by_template(tokenizer: Any, document: Document) -> list[_Piece]:
    """A conversation as the template writes it, up to the last answer; of an answer counts what is said, and its end."""
    turns = [{"role": role, "content": text} for role, text in document.turns]
    pieces: list[_Piece] = []
    done = ""
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        after = _written(tokenizer, turns[: i + 1], False)
        before = _written(tokenizer, turns[:i], True) if i else after[: after.index(turn["content"])]
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError(
                "task.template",
                f"the chat template does not write {document.place or 'a conversation'} turn by turn, so that it can't be "
                "told what is answered",
                remedy="set task.template=plain",
            )
        said, rest = _to_its_end(tokenizer, after[len(before) :])
        pieces += [_Piece(before[len(done) :]), _Piece(said, True), _Piece(rest)]
        done = after
    pieces[0].text = _without_start(tokenizer, pieces[0].text)
    pieces.pop()  # what follows the last answer
    pieces[-1].ends = not any(pieces[-1].text.endswith(token) for token in tokenizer.all_special_tokens)
    return pieces


def _to_its_end(tokenizer: Any, text: str) -> tuple[str, str]:
    """An answer up to the last special token in it, and the blanks and line ends after it."""
    ends = [text.rindex(token) + len(token) for token in tokenizer.all_special_tokens if token in text]
    at = max(ends, default=len(text.rstrip()))
    return text[:at], text[at:]
