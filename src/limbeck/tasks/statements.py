"""Statements about concepts: a language model's text, and what critics are taught from: real ones against corrupted ones."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

from limbeck.data.labelled_text import Labelled
from limbeck.data.statements import CORRUPTIONS, Corruption, PythonUses, Statement, StatementSource, corrupted
from limbeck.data.text import Document
from limbeck.engine.inner import fit
from limbeck.errors import DataError
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.evaluator import Bench, Rows
from limbeck.grammar.method import Batch, Built, Term
from limbeck.grammar.signal import Signal
from limbeck.tasks.critics import WithCritics

NAMES = {"task": {"statements": "Statements"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

PARTS = ("validity", "held-out")
"""Two halves of the statements, each beside corrupted ones: the first trains the critic that filters, the second the held-out one."""

LABELS = ["corrupted", "valid"]

Split = Literal["train", "valid", "test"]


class Statements(WithCritics):
    """Short sentences about concepts, one a sequence. A generator writes such; critics tell real ones from corrupted ones.

    No human labelled them: a critic learns which sentences were written by people and which were corrupted, not what is true.
    Its part ``validity`` is one half of the training statements with a corrupted one beside each; ``held-out`` is the other
    half, for a critic that never filters. Both are evaluated on the same test statements.

    Args:
        data: where statements come from.
        tokenizer: a Hub id or local folder; ``null`` takes the models' own, or trains one. Critics have their own.
        vocab_size: size of a trained tokenizer, of the generator's and of a critic's.
        length: tokens in a sequence, at most; ``null``: 128, or as many as the models have positions for, if fewer.
        corruptions: how statements are corrupted, in turn: ``swap`` (what is said of another concept), ``shuffle``,
            ``replace`` (a third of the words), ``cut``, ``repeat``.
        copies: corrupted statements beside each real one that critics learn from, in different ways; the real one stands
            there as often.
        student_documents: statements that the generator's baselines learn from, drawn by the seed; all if ``null``.
        valid_fraction: share of the statements set aside for choosing, where the data names no such split.
        test_fraction: share set aside for evaluation, where the data names no such split.
        eval_batch: sequences at a time in evaluation.
        deal: which division into training, validation and test statements: 0 is the data's own, where it names splits.
    """

    critics = PARTS

    def __init__(
        self,
        data: StatementSource = PythonUses(),  # noqa: B008 (a description of where data lies; nothing is read)
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        length: int | None = None,
        corruptions: list[Corruption] = list(CORRUPTIONS),  # noqa: B006 (copied, never changed)
        copies: int = 1,
        student_documents: int | None = None,
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
            loss_on="all",
            student_documents=student_documents,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            eval_batch=eval_batch,
            deal=deal,
        )
        if not corruptions:
            raise ValueError("corruptions must name at least one way to corrupt a statement")
        if copies < 1:
            raise ValueError("copies must be 1 or more")
        self.corruptions, self.copies = list(corruptions), copies
        self.begin_critics()

    # ------------------------------------------------------------------------------------------------------- statements

    def statements(self, split: Split = "train") -> list[Statement]:
        """The statements of a split.

        Raises:
            DataError: the source gives plain text.
        """
        found = getattr(self.texts, split)
        if any(not isinstance(d, Statement) for d in found):
            raise DataError("task.data", "these are texts, not statements about concepts", expected="glosses:FILE")
        return list(found)

    def concepts(self, split: Split = "train", most: int | None = None) -> list[Statement]:
        """A statement for each different concept of a split, evenly spread ones where there are more than ``most``."""
        each = {s.concept.lower(): s for s in reversed(self.statements(split))}
        found = list(reversed(each.values()))
        if most is None or most >= len(found):
            return found
        return [found[i * len(found) // most] for i in range(most)]

    def labelled(self, part: str) -> Labelled:
        """Statements of a part with labels, 1 for real ones, and a corrupted one beside each."""
        documents: list[Document] = []
        splits: list[str] = []
        y: list[int] = []
        for split in ("train", "valid", "test"):
            own = [s for s in self.statements(split) if split != "train" or self.in_half(s.key, part)]
            if len(own) < 2:
                raise DataError(
                    "task.data", f"its {split} split has {len(own)} statements for critics", expected="2 or more"
                )
            for s in own:
                for k in range(self.copies if split == "train" else 1):
                    how = self.corruptions[(int(s.key[8:16], 16) + k) % len(self.corruptions)]
                    documents += [Document(s.text, "", (), s.source, s.number), Document(corrupted(s, how, own))]
                    splits += [split] * 2
                    y += [1, 0]
        return Labelled(documents, splits, torch.tensor(y), list(LABELS), "label", [])

    # ---------------------------------------------------------------------------------------------------------- evaluation

    def default_evaluator(self) -> dict[str, Any]:
        """A held-out critic of what is written."""
        return {"use": "accepted"}

    def baselines(self, bench: Bench) -> Rows:
        """``alone``: the first generator, which learns from real statements for as many more steps as the rounds took."""
        return {"alone": lambda: NetworkArtifact(self, self.further(bench))}

    def further(self, bench: Bench) -> Built:
        """A copy of the first generator, trained on the real statements by as many steps as the method's rounds."""
        first = bench.teacher or bench.student
        optim = bench.train.with_(steps=max(1, bench.train.steps * int(getattr(bench.method, "rounds", 1))))
        net = copy.deepcopy(first.module).requires_grad_(True)

        def loss(module: nn.Module, batch: Batch, _: Any) -> Term:
            return self.supervised(Signal(self.feed(module, batch)), batch)

        fit(net, self.train, loss, optim, seed=bench.seed, scope="alone", device=bench.device)
        return Built(net, first.contract, first.labels, first.model)


__all__ = ["LABELS", "PARTS", "Split", "Statements"]
