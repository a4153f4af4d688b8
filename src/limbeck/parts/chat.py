"""A language model in this process as a teacher of texts; sets of answers made by any teacher; judges that compare answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.data.answers import STATUS, Answer, survivors
from limbeck.data.chat import (
    Cached,
    Function,
    Messages,
    Reply,
    ReplyCache,
    Sampling,
    Teacher,
    as_mappings,
    collected,
)
from limbeck.data.kinds import KINDS, Kind, target
from limbeck.data.text import Document
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.random import Draws, key_of
from limbeck.grammar.signal import device_of
from limbeck.parts.writing import continued
from limbeck.storage.weights import fingerprint
from limbeck.tasks.language import Language
from limbeck.tasks.spelling import spell
from limbeck.tasks.tokenizers import pad_id


class LocalChat:
    """A causal language model that answers conversations, each word drawn by the key of its question.

    Args:
        task: whose tokenizer and template it has.
        module: the model.
        at_once: conversations side by side.
    """

    def __init__(self, task: Language, module: Any, at_once: int = 64) -> None:
        self.task, self.module, self.at_once = task, module, at_once
        self._identity = ""

    @property
    def identity(self) -> str:
        """Which weights they are."""
        if not self._identity:
            self._identity = f"local:{fingerprint(self.module)}"
        return self._identity

    def chat(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> Iterator[tuple[int, Reply]]:
        """Replies, those with the same sampling side by side. A question that leaves no room for an answer is cut off."""
        tokenizer = self.task.tokenizer
        begun = spell(self.task, [Document("x", "", (*m, ("assistant", "x"))) for m in asked])
        prompts = [s.ids[: s.prompt] or s.ids[:1] for s in begun]
        room = int(getattr(self.module.config, "max_position_embeddings", 0) or 1 << 30)
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for i, how in enumerate(sampling):
            if len(prompts[i]) >= room:
                yield i, Reply("", "length", len(prompts[i]), 0)
            else:
                kinds.setdefault((how.temperature, how.top_p, how.longest, how.seed), []).append(i)
        for (temperature, top_p, longest, seed), places in kinds.items():
            key = torch.tensor(
                [key_of(*(x for turn in asked[i] for x in turn), sampling[i].number) >> 1 for i in places]
            )
            most = min(longest, room - max(len(prompts[i]) for i in places))
            made = continued(
                self.module, [prompts[i] for i in places], Draws(seed, ("reply",), device_of(self.module)), key,
                longest=max(1, most), pad=pad_id(tokenizer), temperature=temperature, top_p=top_p, at_once=self.at_once,
                columns=self.task.columns,
            )  # fmt: skip
            for i, (ids, ended) in zip(places, made, strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                yield i, Reply(text.strip(), "stop" if ended else "length", len(prompts[i]), len(ids) + ended)


# ------------------------------------------------------------------------------------------------------ sets of answers


@dataclass(frozen=True)
class Record:
    """One answer of a teacher, and what became of it.

    Attributes:
        messages: the student's record: its own system prompt, the question, the target; where kept.
        target: what the student learns to write.
        raw: what the teacher wrote.
        parsed: the answer that was read.
        kept: whether it is learnt from.
        reason: why not: one of `limbeck.data.answers.STATUS`, ``refused`` or ``malformed``.
    """

    messages: tuple[tuple[str, str], ...]
    target: str
    raw: str
    parsed: str
    kept: bool
    reason: str

    def row(self) -> dict[str, Any]:
        """As a row of a data set: ``datasets.Dataset.from_list([r.row() for r in records])``."""
        return {
            "messages": as_mappings(self.messages),
            "target": self.target,
            "raw": self.raw,
            "parsed": self.parsed,
            "kept": self.kept,
            "reason": self.reason,
        }


def status_of(
    kind: Kind,
    style: str,
    reply: Reply,
    keep: str = "answer",
    *,
    tolerant: bool = False,
    gold: str | None = None,
    max_words: int | None = None,
) -> tuple[str, Answer, str]:
    """What became of a reply, the answer that was read, and what a student would learn from it (empty where nothing).

    A reply that was refused or came back in no readable form is told apart from one that was cut off.
    """
    if reply.cause in ("refused", "malformed"):
        return reply.cause, Answer("not_finished"), ""
    answer = kind.read(style, reply.text, finished=reply.finished, tolerant=tolerant, gold=gold, max_words=max_words)
    if answer.status != "kept":
        return answer.status, answer, ""
    if keep == "answer":
        return "kept", answer, answer.text
    reason = kind.reason(reply.text, tolerant)
    return ("kept", answer, target(reason, answer.text, keep)) if reason else ("missing_key", Answer("missing_key"), "")


def accepted(statuses: Sequence[str], least_ratio: float, least: int) -> tuple[float, bool]:
    """The share of usable replies, and whether a set may be trained on.

    What was refused or malformed counts as not finished.
    """
    known = [s if s in STATUS else "not_finished" for s in statuses]
    found = survivors(known, min_success_ratio=least_ratio, min_records=least)
    return found.success_ratio, found.accepted


def build_synthetic_set(
    kind: str,
    questions: Sequence[str],
    teacher: Teacher | Callable[[list[dict[str, str]], Sampling], str],
    *,
    style: str = "cot",
    keep: str = "answer",
    sampling: Sampling | None = None,
    system: str | None = None,
    gold: Sequence[str] | None = None,
    tolerant: bool = False,
    max_words: int | None = None,
    cache: Path | str | None = None,
) -> list[Record]:
    """A teacher's answers to questions as records that a student learns from, without a recipe.

    Args:
        kind: one of `limbeck.data.kinds.KINDS`.
        questions: the user's turns.
        teacher: whoever has ``identity`` and ``chat``, or a function (messages, sampling) -> text.
        style: how it is asked.
        keep: ``answer``, or ``reasoning+answer``.
        sampling: how replies are drawn; by default the service's, as long as the kind needs.
        system: the student's system prompt; ``None`` for the kind's own.
        gold: true answers: what differs from them is left out.
        tolerant: cut replies to their JSON first.
        max_words: longer answers are left out.
        cache: a file of replies: what stands in it is not asked again.

    Raises:
        ConfigError: an unknown kind or style.
        DataError: not as many true answers as questions.

    Example:
        >>> made = build_synthetic_set("math", ["3 + 3?"], lambda m, s: '{"reason": "count", "answer": 6}')
        >>> made[0].target, made[0].messages[-1]
        ('6', ('assistant', '6'))
    """
    if kind not in KINDS:
        raise ConfigError.unknown("kind", kind, KINDS, "kind of questions")
    asks = KINDS[kind]
    if style not in ("vanilla", *asks.styles):
        raise ConfigError("style", given=style, expected=f"one of {', '.join(['vanilla', *asks.styles])}")
    if gold is not None and len(gold) != len(questions):
        raise DataError("gold", given=f"{len(gold)} answers", expected=f"one for each of {len(questions)} questions")
    how = sampling or Sampling(longest=asks.longest)
    own = asks.plain if system is None else system
    said = asks.styles.get(style, own)
    whoever: Teacher = teacher if isinstance(teacher, Teacher) else Function(teacher)
    if cache is not None:
        whoever = Cached(whoever, ReplyCache(Path(cache)))

    def head(text: str) -> list[tuple[str, str]]:
        return [("system", text)] if text else []

    asked = [[*head(said), ("user", q)] for q in questions]
    made = []
    for i, reply in enumerate(collected(whoever, asked, [how] * len(asked))):
        right = None if gold is None else gold[i]
        status, answer, wanted = status_of(asks, style, reply, keep, tolerant=tolerant, gold=right, max_words=max_words)
        turns = (*head(own), ("user", questions[i]), ("assistant", wanted)) if wanted else ()
        made.append(Record(turns, wanted, reply.text, answer.text, status == "kept", status))
    return made


# --------------------------------------------------------------------------------------------------------------- judges

_JUDGE = (
    "Two answers to the same request follow. Say which one is better: helpful, correct, to the point. Reply with A, B or TIE "
    "alone."
)


def preferred(
    judge: Teacher, questions: Sequence[str], first: Sequence[str], second: Sequence[str], seed: int = 0
) -> list[float | None]:
    """How a judge likes the first answers beside the second, each pair shown in both orders.

    1 where it prefers the first both times, 0 the second, 0.5 where it says they are equal or changes its mind with the
    order; ``None`` where a verdict cannot be read.

    Args:
        judge: a teacher of texts.
        questions: what was asked.
        first, second: answers.
        seed: of the judge's draws.
    """
    asked, how = [], Sampling(0.0, 1.0, 16, seed)
    for q, a, b in zip(questions, first, second, strict=True):
        for x, y in ((a, b), (b, a)):
            asked.append([("system", _JUDGE), ("user", f"Request:\n{q}\n\nAnswer A:\n{x}\n\nAnswer B:\n{y}")])
    verdicts = [_verdict(reply) for reply in collected(judge, asked, [how] * len(asked))]
    found: list[float | None] = []
    for one, other in zip(verdicts[::2], verdicts[1::2], strict=True):
        if one is None or other is None:
            found.append(None)
        else:
            back = {"A": "B", "B": "A", "TIE": "TIE"}[other]
            found.append({"A": 1.0, "B": 0.0, "TIE": 0.5}[one] if one == back else 0.5)
    return found


def _verdict(reply: Reply) -> str | None:
    found = re.findall(r"\b(A|B|TIE)\b", reply.text.upper()) if reply.finished else []
    return found[0] if len(set(found)) == 1 else None


__all__ = ["LocalChat", "Record", "accepted", "build_synthetic_set", "preferred", "status_of"]
