"""Questions with reference answers: a language model's task in which answers are written, read and graded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limbeck.data.kinds import KINDS, Kind, KindName, parted
from limbeck.data.names import some
from limbeck.data.numerals import Numerals
from limbeck.data.text import Document, Texts, TextSource
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.task import Task
from limbeck.tasks.language import Language
from limbeck.tasks.tokens import TokenData

NAMES = {"task": {"questions": "Questions"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

PARTS = ("teacher", "judge")
"""The same questions for who reads them by a tokenizer of its own."""


class Questions(Language):
    """Questions and reference answers, each a conversation: a short system prompt, the question, the answer.

    Pairs of prompt and response become such; conversations of the data stay as they are, with the system prompt before those
    that have none. What is learnt is the answer and its end.

    Args:
        data: where questions come from: pairs (``prompt`` and ``response``) or conversations.
        kind: what is asked: how a teacher is prompted, how answers are read and graded. ``math``, ``nli``, ``nlu-qa``,
            ``summarization`` or ``conversation``.
        system: the student's system prompt; ``null`` takes the kind's short one, an empty one leaves it out.
        tokenizer: a Hub id or local folder; ``null`` takes the student's own, or trains one. A teacher has its own.
        vocab_size: size of a trained tokenizer.
        length: tokens of a question with its answer; ``null``: 128, or as many as the models have positions for, if fewer.
        template: how turns are written: as the tokenizer's ``chat`` template says, ``plain`` with a line break after each, or
            ``auto``: by the chat template where there is one.
        student_documents: questions that the student learns from, drawn by the seed; all if ``null``.
        teacher_fraction: share of the training questions that a teacher without trained weights learns from, worked through
            where the data show how; the student has the others. 0 lets both have all.
        valid_fraction: share of the questions set aside for choosing, where the data names no such split.
        test_fraction: share set aside for evaluation, where the data names no such split.
        eval_batch: sequences at a time in evaluation.
        deal: which division into training, validation and test questions: 0 is the data's own, where it names splits.
    """

    def __init__(
        self,
        data: TextSource = Numerals(),  # noqa: B008 (a description of where data lies; nothing is read)
        kind: KindName = "math",
        system: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 300,
        length: int | None = None,
        template: str = "auto",
        student_documents: int | None = None,
        teacher_fraction: float = 0.0,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        eval_batch: int = 64,
        deal: int = 0,
    ) -> None:
        super().__init__(
            data=data,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            length=length,
            packing="pad",
            loss_on="response",
            template=template,  # type: ignore[arg-type]
            student_documents=student_documents,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            eval_batch=eval_batch,
            deal=deal,
        )
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        if template not in ("auto", "chat", "plain"):
            raise ValueError("template must be auto, chat or plain")
        if not 0 <= teacher_fraction < 1:
            raise ValueError("teacher_fraction must be 0 or more, and below 1")
        self.asks: Kind = KINDS[kind]
        self.system = self.asks.plain if system is None else system
        self.teacher_fraction = teacher_fraction
        self._parts: dict[str, Questions] = {}
        self._apart: int | None = None
        self._worked: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------------------- questions

    def dealt(self) -> Texts:
        """The documents as conversations.

        Raises:
            DataError: texts that answer nothing; more than half of the questions in the test split too.
        """
        texts = super().dealt()
        self._worked = {}
        for name in ("train", "valid", "test"):
            setattr(texts, name, [self._asked(d) for d in getattr(texts, name)])
        test = {self.question_of(d): d for d in texts.test}
        if texts.test is not texts.train:
            twice = {id(d): d for d in (*texts.train, *texts.valid) if self.question_of(d) in test}
            said = f"{some([repr(self.question_of(d)[-1][1][:60]) for d in twice.values()], 3)}"
            if 2 * len(twice) > len(texts.train) + len(texts.valid):
                raise DataError(
                    "task.data",
                    f"{len(twice)} of {len(texts.train) + len(texts.valid)} questions are in the test split too: {said}",
                    remedy="name splits that share no question",
                )
            if twice:  # with another answer; a question that is in both counts for test alone
                texts.train, texts.valid = ([d for d in x if id(d) not in twice] for x in (texts.train, texts.valid))
                texts.notes.append(f"questions that are in the test split too are left out of training: {said}")
        texts.pairs = True
        return texts

    def _asked(self, document: Document) -> Document:
        if not document.prompt and not document.turns:
            raise DataError(
                "task.data",
                f"{document.place or 'a document'} is a text without a question",
                expected="pairs or conversations",
                remedy="name the fields: task.data.prompt=... task.data.response=..., or task.data.messages=...",
            )
        reason, _ = parted(document.text)
        turns = document.turns or (("user", document.prompt), ("assistant", self.asks.gold(document.text)))
        if self.system and turns[0][0] != "system":
            turns = (("system", self.system), *turns)
        said = [c for r, c in turns if r == "assistant"]
        asked = "\n".join(c for r, c in turns if r != "assistant")
        made = replace(Document("\n".join(said), asked, turns), source=document.source, number=document.number)
        if reason and not document.turns and self.asks.name == "math":
            self._worked[made.key] = reason
        return made

    @staticmethod
    def question_of(document: Document) -> tuple[tuple[str, str], ...]:
        """What is asked: the turns before the last answer, its system prompt left out."""
        last = max(i for i, (role, _) in enumerate(document.turns) if role == "assistant")
        return tuple(t for t in document.turns[:last] if t[0] != "system")

    @staticmethod
    def gold_of(document: Document) -> str:
        """The last answer."""
        return next(c for role, c in reversed(document.turns) if role == "assistant")

    def reason_of(self, document: Document) -> str:
        """How the data work a question through; empty where they do not."""
        return self._worked.get(document.key, "")

    def load(self, seed: int | None = None) -> None:
        """Read the questions; where a teacher is to have some of its own, part them by content."""
        super().load(seed)
        if not self.teacher_fraction or self._apart == self._seed:
            return
        ours = sorted(self.train.documents, key=lambda d: d.key)
        count = max(1, min(len(ours) - 1, round(self.teacher_fraction * len(ours))))
        theirs = set(map(id, ours[:count]))
        self.train = TokenData(self, [d for d in self.train.documents if id(d) not in theirs], "student")
        self.teacher_train = TokenData(self, self.lessons(ours[:count]), "train")
        self.note(
            f"a teacher from scratch learns from {count} of {len(ours)} training questions, the student has the others"
        )
        self._apart = self._seed

    def lessons(self, documents: list[Document]) -> list[Document]:
        """What a teacher from scratch learns from: the answers, and beside each its worked form under the elaborate prompt."""
        found = []
        for d in documents:
            found.append(d)
            reason = self.reason_of(d)
            for style in self.asks.styles if reason else ():
                turns = (*self.framed(d, style)[:-1], ("assistant", self.asks.worked(reason, self.gold_of(d))))
                asked = "\n".join(c for r, c in turns if r != "assistant")
                found.append(Document(turns[-1][1], asked, turns, d.source, d.number))
        return found

    def framed(
        self, document: Document, style: str = "vanilla", examples: list[Document] | None = None
    ) -> tuple[tuple[str, str], ...]:
        """A question as it is asked in a style, up to and with its answers.

        Args:
            document: the question.
            style: ``vanilla`` with the student's own system prompt; ``few-shot`` with examples after it; or one of the
                kind's elaborate prompts in its place.
            examples: whose answers are shown.
        """
        if style == "vanilla":
            return document.turns
        rest = tuple(t for t in document.turns if t[0] != "system")
        head = tuple(t for t in document.turns[:1] if t[0] == "system")
        if style == "few-shot":
            shown = [t for e in examples or [] for t in e.turns if t[0] != "system"]
            return (*head, *shown, *rest)
        if style not in self.asks.styles:
            known = ["vanilla", "few-shot", *self.asks.styles]
            raise ConfigError("method.style", f"questions of the kind {self.asks.name} are not asked so", given=style,
                              expected=f"one of {', '.join(known)}")  # fmt: skip
        return (("system", self.asks.styles[style]), *rest)

    # --------------------------------------------------------------------------------------------------------- the parts

    def part(self, name: str) -> Task:
        """``teacher`` and ``judge``: the same questions, for a model with a tokenizer of its own."""
        if name not in PARTS:
            return super().part(name)
        if name not in self._parts:
            self.load()
            twin = copy.copy(self)
            twin.notes, twin._tokenizer, twin._whose, twin.columns = [], None, "", None
            twin.tokenizer_name, twin._parts = None, {}
            twin.train, twin.valid, twin.test = (
                TokenData(twin, d.documents, d.name) for d in (self.train, self.valid, self.test)
            )
            twin.teacher_train = TokenData(twin, self.teacher_train.documents, "train")
            self._parts[name] = twin
        return self._parts[name]

    # ---------------------------------------------------------------------------------------------------------- evaluation

    @property
    def formats(self) -> tuple[str, ...]:
        """The student's folder with the corpus beside it."""
        return ("safetensors", "hub")

    def default_evaluator(self) -> dict[str, Any]:
        """Answers are written and graded."""
        return {"use": "graded"}

    def default_teacher(self) -> dict[str, Any]:
        """Rules for numerals; other questions need a teacher that is named."""
        return {"use": "numeral-rules"} if isinstance(self.data, Numerals) else super().default_teacher()

    def describe(self) -> dict[str, Any]:
        """Of a language model, and the prompt that it learnt to answer behind."""
        return {**super().describe(), "system": self.system}

    def recall(self, about: Mapping[str, Any], bare: bool = True) -> None:
        """As of a language model."""
        super().recall(about, bare)
        self.system = str(about.get("system") or "")


__all__ = ["PARTS", "Questions"]
