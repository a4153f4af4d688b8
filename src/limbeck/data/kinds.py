"""Kinds of questions that a teacher answers for a student: how each is asked, how an answer is read, and how it is graded.

Of the distillation of Shirgaonkar et al. 2024 (arXiv 2410.18588) and the public service that carries it out: reasoning step
by step for inference, questions and mathematics, a chain of ever denser summaries, plain prompts for conversations. What
prompts ask for is the service's; their words are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final, Literal

from limbeck.data.answers import Answer, parse_answer, parse_density
from limbeck.data.paraphrases import rouge_l

Style = Literal["vanilla", "few-shot", "cot", "cod"]
"""How the teacher is asked: as the student is, with examples before, to reason step by step, for a chain of summaries."""

KindName = Literal["math", "nli", "nlu-qa", "summarization", "conversation"]

MARKER: Final = "Answer:"
"""What stands between a student's reasoning and its answer, where it learns both."""

_STEPS = (
    "Think step by step in at most 80 words, then answer. Reply with one bare JSON object and nothing else, no markdown, "
    'with the keys "reason" (your steps) and "{key}" ({what}).'
)

_DENSE = (
    "Write a summary of the text, and make it denser three times. The first version has about 80 words, is vague and padded. "
    "Each time name one to three missing entities of the text (relevant, specific, five words or fewer, not yet there, true to "
    "the text), and rewrite the summary at exactly the same length so that it holds them and drops none. Reply with one bare "
    'JSON list of four objects and nothing else, no markdown, with the keys "Missing_Entities" and "Denser_Summary".'
)


def exact(answer: str, gold: str) -> dict[str, float]:
    """``score``: 1 where both are the same but for capitals, white space and a full stop at the end."""
    a, b = (" ".join(x.split()).casefold().rstrip(".") for x in (answer, gold))
    return {"score": float(a == b)}


def number_of(text: str) -> Decimal | None:
    """A text that is one number: with a currency sign before it, commas between thousands, a full stop or % after it.

    Example:
        >>> number_of("$1,250.50."), number_of("6 apples")
        (Decimal('1250.50'), None)
    """
    bare = re.sub(r"(?<=\d),(?=\d{3})", "", text.strip().lstrip("$€£").rstrip("%. "))
    try:
        value = Decimal(bare)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def numeric(answer: str, gold: str) -> dict[str, float]:
    """``score``: 1 where both are the same number, 0 where they differ or the answer is none."""
    a, b = number_of(answer), number_of(gold)
    return {"score": float(a is not None and b is not None and a == b)}


def entities(text: str) -> list[str]:
    """Names and numbers in a text: words with a capital that do not begin a sentence, and numbers, each once. [ours]

    Example:
        >>> entities("The Danube got a bridge in Novi Sad in 2024.")
        ['Danube', 'Novi Sad', '2024']
    """
    found: dict[str, None] = {}
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        rest = re.sub(r"^\W*\w+(['’]\w+)?", "", sentence)
        found |= dict.fromkeys(re.findall(r"\b[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*|\b\d+(?:[.,]\d+)*", rest))
    return list(found)


def summary(answer: str, gold: str) -> dict[str, float]:
    """``score`` and ``rouge_l`` against the reference, ``entity_density`` (entities a word) and ``words``.

    A denser style lowers ROUGE though a summary may be better: read the density, and a judge, beside it.
    """
    words = len(answer.split())
    overlap = rouge_l(gold, answer)
    return {
        "score": overlap,
        "rouge_l": overlap,
        "entity_density": len(entities(answer)) / max(1, words),
        "words": float(words),
    }


def overlap(answer: str, gold: str) -> dict[str, float]:
    """``score``: ROUGE-L against the reference, where no judge is asked."""
    return {"score": rouge_l(gold, answer)}


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Attributes:
        name: in recipes.
        plain: the short system prompt: the student's, and the teacher's where it is asked plainly.
        styles: the elaborate ones that this kind has.
        key: where the answer stands in the JSON that these ask for.
        grade: (answer, reference) -> numbers, ``score`` among them.
        exact: whether the score is 1 or 0, so that it has a binomial error.
        least: records below which a set is refused.
        longest: tokens of a teacher's reply, at most.
    """

    name: str
    plain: str
    styles: Mapping[str, str] = field(default_factory=dict)
    key: str = "answer_choice"
    grade: Callable[[str, str], dict[str, float]] = exact
    exact: bool = True
    least: int = 65
    longest: int = 128

    def gold(self, text: str) -> str:
        """The reference answer in what the data hold; of mathematics, what stands after ``####`` where there is such a mark.

        Example:
            >>> KINDS["math"].gold("3 + 3 = 6. #### 6"), KINDS["nli"].gold("neutral")
            ('6', 'neutral')
        """
        return parted(text)[1] if self.name == "math" else text

    def read(
        self,
        style: str,
        text: str,
        *,
        finished: bool = True,
        tolerant: bool = False,
        gold: str | None = None,
        max_words: int | None = None,
    ) -> Answer:
        """What a teacher wrote as an answer, or why there is none (`limbeck.data.answers.STATUS`).

        Args:
            style: how it was asked.
            text: what it wrote.
            finished: it ended by itself.
            tolerant: first cut the text to its JSON.
            gold: the true answer, where one that differs is filtered.
            max_words: longer answers are ``over_long``.
        """
        if style == "cod":
            answer = parse_density(text, finished=finished, tolerant=tolerant, max_words=max_words)
        elif style == "cot":
            answer = parse_answer(text, self.key, finished=finished, tolerant=tolerant)
        else:
            said = " ".join(text.split())
            answer = Answer("not_finished") if not finished else Answer("kept", said) if said else Answer("empty")
        if answer.status == "kept" and max_words is not None and len(answer.text.split()) > max_words:
            answer = Answer("over_long", version=answer.version)
        if answer.status == "kept" and gold is not None and not self.agrees(answer.text, gold):
            answer = Answer("disagrees", version=answer.version)
        return answer

    def agrees(self, answer: str, gold: str) -> bool:
        """Whether an answer is the true one."""
        return self.grade(answer, gold)["score"] >= 1.0

    def reason(self, text: str, tolerant: bool = False) -> str:
        """The steps in a teacher's JSON; empty where there are none."""
        cut = text.strip()
        if tolerant and 0 <= cut.find("{") < cut.rfind("}"):
            cut = cut[cut.find("{") : cut.rfind("}") + 1]
        try:
            found = json.loads(cut)
        except (ValueError, RecursionError):
            return ""
        said = found.get("reason") if isinstance(found, dict) else None
        return " ".join(said.split()) if isinstance(said, str) else ""

    def worked(self, reason: str, answer: str) -> str:
        """A reasoned answer as the elaborate prompt asks for it.

        Example:
            >>> KINDS["math"].worked("3 + 3", "6")
            '{"reason": "3 + 3", "answer": 6}'
        """
        value = (
            answer if self.key != "answer" or number_of(answer) is None else int(answer) if answer.isdigit() else answer
        )
        return json.dumps({"reason": reason, self.key: value}, ensure_ascii=False)


def parted(text: str) -> tuple[str, str]:
    """Reasoning and answer of a worked solution that ends with ``#### answer``; no reasoning where there is no mark."""
    reason, mark, answer = text.rpartition("####")
    return (" ".join(re.sub(r"<<[^>]*>>", "", reason).split()), answer.strip()) if mark else ("", text)


def answered(text: str, keep: str) -> str | None:
    """The answer in what a student wrote: all of it, or what stands behind the last marker; ``None`` where there is none.

    Example:
        >>> answered("3 and 3. Answer: 6", "reasoning+answer"), answered("6", "answer"), answered(" ", "answer")
        ('6', '6', None)
    """
    if keep != "answer":
        _, mark, text = text.rpartition(MARKER)
        text = text if mark else ""
    return " ".join(text.split()) or None


def target(reason: str, answer: str, keep: str) -> str:
    """What a student learns to write.

    Example:
        >>> target("3 and 3.", "6", "reasoning+answer")
        '3 and 3. Answer: 6'
    """
    return answer if keep == "answer" else f"{reason} {MARKER} {answer}"


def _steps(key: str, what: str) -> Mapping[str, str]:
    return {"cot": _STEPS.format(key=key, what=what)}


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("math", "Solve the problem. Reply with the number alone.", _steps("answer", "the plain number"), "answer",
             numeric, least=40),
        Kind("nli", "Does the first sentence entail the second? Reply with entailment, contradiction or neutral alone.",
             _steps("answer_choice", "entailment, contradiction or neutral")),
        Kind("nlu-qa", "Answer the question. Reply with the right choice alone.",
             _steps("answer_choice", "the right choice")),
        Kind("summarization", "Summarise the text.", {"cod": _DENSE}, grade=summary, exact=False, longest=1024),
        Kind("conversation", "", grade=overlap, exact=False, longest=512),
    )
}  # fmt: skip
"""Kinds by name. At least 65 records are wanted, of mathematics 40, as the service has it."""

__all__ = [
    "KINDS",
    "MARKER",
    "Kind",
    "KindName",
    "Style",
    "answered",
    "entities",
    "exact",
    "number_of",
    "numeric",
    "parted",
    "summary",
    "target",
]
