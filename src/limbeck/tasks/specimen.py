"""One training example as it is learnt: decoded from its tokens, with what the student learns to write marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from limbeck.tasks.language import Language

MOST: Final = 1200
"""Characters of a part that are shown; of a longer one its beginning and its end."""

LOOKED_AT: Final = 64
"""Rows among which one is chosen."""


def specimen(task: Language) -> dict[str, Any] | None:
    """An example of the student's training data: ``title``, and ``parts``, each (text, whether it is learnt).

    Shown are prompts with answers and conversations: of plain text every token is learnt. Of the first rows it is the
    shortest in which something is learnt and something is not.
    """
    if not task.texts.pairs or not len(task.train):
        return None
    batch = task.train.fetch(torch.arange(min(LOOKED_AT, len(task.train))))
    real, learnt = batch["attention_mask"].bool(), batch["labels"] >= 0
    learnt[:, 0] = False  # nothing comes before the first token
    sizes, counts = real.sum(1), learnt.sum(1)
    mixed = (counts > 0) & (counts < sizes - 1)
    order = torch.where(mixed, sizes, sizes + batch["labels"].shape[1])
    row = int(order.argmin())
    size = int(sizes[row])
    ids, marks = batch["input_ids"][row, :size].tolist(), learnt[row, :size].tolist()
    parts: list[tuple[str, bool]] = []
    begin = 0
    for i in range(1, size + 1):
        if i == size or marks[i] != marks[begin]:
            text = task.tokenizer.decode(ids[begin:i], clean_up_tokenization_spaces=False)
            parts.append((_short(text), bool(marks[begin])))
            begin = i
    return {
        "title": f"One training example: the student learns the {int(counts[row])} of its {size} tokens that are marked "
        f"(task.loss={_loss(task)})",
        "parts": parts,
    }


def _loss(task: Language) -> str:
    return "all" if task.counts_prompts else "last" if task.loss_on == "last" else "assistant"


def _short(text: str) -> str:
    if len(text) <= MOST:
        return text
    return f"{text[: MOST // 2]} [... {len(text) - MOST:,} characters ...] {text[-MOST // 2 :]}"


def marked(found: Mapping[str, Any]) -> Iterable[str]:
    """The lines of an example for a terminal, what is learnt between [[ and ]].

    Example:
        >>> list(marked({"title": "One", "parts": [("Hi\\n", False), ("Hello", True)]}))
        ['One, between [[ and ]]:', '  Hi', '  [[Hello]]']
    """
    yield f"{found['title']}, between [[ and ]]:"
    text = "".join(f"[[{part}]]" if learnt else part for part, learnt in found["parts"])
    for line in text.rstrip("\n").split("\n"):
        yield f"  {line}"


__all__ = ["marked", "specimen"]
