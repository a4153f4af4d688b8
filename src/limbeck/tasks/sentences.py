"""Sentences: a language model's text, and made pairs of them from which a critic of entailment is taught."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import torch

from limbeck.data.labelled_text import Labelled
from limbeck.data.statements import PythonUses
from limbeck.data.text import Document, TextSource
from limbeck.errors import DataError
from limbeck.grammar.random import key_of
from limbeck.tasks.critics import WithCritics

NAMES = {"task": {"sentences": "Sentences"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

RELATIONS = ["contradiction", "entailment", "neutral"]
"""What a first sentence says of a second, in the order of `limbeck.data.paraphrases`."""

PARTS = ("entailment", "held-out")
"""Pairs of the one half of the training sentences, for the critic that filters, and of the other, for the one that measures."""

_END = re.compile(r"""(?:(?<=[.?!])|(?<=[.?!]["')\]]))\s+""")


def sentences_of(text: str) -> list[tuple[str, bool]]:
    """A text's sentences, each with whether it is complete: three characters or more, an end of . ? or !, no line break.

    Example:
        >>> sentences_of("It rained. Then the sun")
        [('It rained.', True), ('Then the sun', False)]
    """
    pieces = [piece.strip() for piece in _END.split(text.strip())]
    return [(p, len(p) >= 3 and p.rstrip("\"')]")[-1:] in tuple(".?!") and "\n" not in p) for p in pieces if p]


class Sentences(WithCritics):
    """Text of short documents, one a sequence. A generator writes sentences; critics say which of them entail which.

    Nobody labelled pairs: a critic without trained weights is taught from made ones (`made_pairs`). A real one is named as a
    participant: ``participants.critic=hf:NAME``, its classes called contradiction, entailment and neutral.

    Args:
        data: where texts come from.
        tokenizer: a Hub id or local folder; ``null`` takes the models' own, or trains one. Critics have their own.
        vocab_size: size of a trained tokenizer, of the generator's and of a critic's.
        length: tokens in a sequence, at most; ``null``: 128, or as many as the models have positions for, if fewer.
        student_documents: texts that baselines learn from, drawn by the seed; all if ``null``.
        valid_fraction: share of the texts set aside for choosing, where the data names no such split.
        test_fraction: share set aside for evaluation, where the data names no such split.
        eval_batch: sequences at a time in evaluation.
        deal: which division into training, validation and test texts: 0 is the data's own, where it names splits.
    """

    critics = PARTS

    def __init__(
        self,
        data: TextSource = PythonUses(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        length: int | None = None,
        student_documents: int | None = None,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.1,
        eval_batch: int = 64,
        deal: int = 0,
    ) -> None:
        super().__init__(
            data=data,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            length=length,
            packing="pad",
            loss_on="all",
            student_documents=student_documents,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            eval_batch=eval_batch,
            deal=deal,
        )
        self.begin_critics()

    def half(self, part: str) -> list[str]:
        """The training texts of a part, those of both apart by content."""
        return [d.text for d in self.texts.train if self.in_half(d.key, part)]

    def labelled(self, part: str) -> Labelled:
        """Made pairs of a part's sentences.

        Raises:
            DataError: too few.
        """
        documents: list[Document] = []
        splits: list[str] = []
        y: list[int] = []
        for split in ("train", "valid", "test"):
            texts = self.half(part) if split == "train" else [d.text for d in getattr(self.texts, split)]
            if len(texts) < 2:
                raise DataError(
                    "task.data", f"its {split} split has {len(texts)} texts for critics", expected="2 or more"
                )
            for first, second, label in made_pairs(texts):
                documents.append(Document(second, first))
                splits.append(split)
                y.append(label)
        return Labelled(documents, splits, torch.tensor(y), list(RELATIONS), "label", [])

    def default_evaluator(self) -> dict[str, Any]:
        """Paraphrases are written and measured."""
        return {"use": "paraphrased"}


def made_pairs(texts: Sequence[str]) -> list[tuple[str, str, int]]:
    """Three pairs a sentence, with the relation: it entails itself without a word or two; contradicts itself denied; another
    sentence is neutral. [ours]

    A poor stand-in for people's labels: who learns from them knows overlap and denial.
    """
    found = []
    for i, text in enumerate(texts):
        draw = random.Random(key_of("pair", text))
        words = text.split()
        less = list(words)
        for _ in range(min(draw.choice((1, 1, 2)), max(0, len(words) - 3))):
            del less[draw.randrange(1, len(less))]
        if draw.random() < 0.5 and len(less) > 3:  # the same words in another order of two neighbours
            k = draw.randrange(len(less) - 1)
            less[k], less[k + 1] = less[k + 1], less[k]
        at = draw.randrange(1, len(words)) if len(words) > 1 else 0
        other = texts[(i + 1 + draw.randrange(len(texts) - 1)) % len(texts)] if len(texts) > 1 else text
        found += [
            (text, " ".join(less), 1),
            (text, " ".join([*words[:at], "not", *words[at:]]), 0),
            (text, other, 2),
        ]
    return found


__all__ = ["PARTS", "RELATIONS", "Sentences", "made_pairs", "sentences_of"]
