"""Text with parts that critics are taught from: what statements and sentences share."""

from __future__ import annotations

from typing import Any, ClassVar

from limbeck.data.columns import Target
from limbeck.data.labelled_text import Labelled, LabelledSource
from limbeck.grammar.task import Task
from limbeck.tasks.language import Language
from limbeck.tasks.text_classes import TextClasses


class WithCritics(Language):
    """Short texts, one a sequence; two halves of the training texts teach a critic each, with labels that the task makes.

    The first part is for the critic that filters, the second for the one that measures.

    Attributes:
        critics: the names of the two parts.
    """

    critics: ClassVar[tuple[str, str]]

    def begin_critics(self) -> None:
        """Called at the end of the constructor.

        Raises:
            ValueError: the tokenizers of critics would have no room.
        """
        if self.vocab_size < 300:
            raise ValueError("vocab_size must be 300 or more: a critic's has the 256 bytes and what marks a row")
        self._parts: dict[str, TextClasses] = {}

    def in_half(self, key: str, part: str) -> bool:
        """Whether a training text belongs to a part, told by its content (`Document.key`)."""
        return int(key[:8], 16) % 2 == self.critics.index(part)

    def labelled(self, part: str) -> Labelled:
        """The labelled texts of a part."""
        raise TypeError(f"{type(self).__name__} must define labelled")

    def part(self, name: str) -> Task:
        """One of ``critics``: its labelled texts, as text with classes."""
        if name not in self.critics:
            return super().part(name)
        if name not in self._parts:
            source = MadeLabels(self, name)
            self._parts[name] = TextClasses(source, vocab_size=self.vocab_size, eval_batch=self.eval_batch, deal=0)
        return self._parts[name]

    @property
    def formats(self) -> tuple[str, ...]:
        """The folder of what writes, with the corpus beside it."""
        return ("safetensors", "hub")

    def default_teacher(self) -> dict[str, Any]:
        """As the student, which learns from texts of its own."""
        return self.default_student()


class MadeLabels(LabelledSource):
    """The labelled texts that a task makes for one of its critics."""

    def __init__(self, task: WithCritics, part: str) -> None:
        self.task, self.part = task, part

    def read(self, target: Target = "auto") -> Labelled:
        """All of them."""
        return self.task.labelled(self.part)


__all__ = ["MadeLabels", "WithCritics"]
