"""Critics of texts: how likely a text is one of the valid ones, by a classifier or by a language model's likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError
from limbeck.grammar.heads import Head, cross_entropy
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.tasks.language import Language
from limbeck.tasks.text_classes import TextClasses
from limbeck.tasks.tokenized import Rows
from limbeck.tasks.tokenizers import pad_id, special_ids
from limbeck.tasks.tokens import make_batch, shifted


class Critic(Protocol):
    """Whoever says how likely texts are valid."""

    def prob_valid(self, texts: Sequence[str]) -> Tensor:
        """Probabilities [N], on the CPU."""


class Classifier:
    """A text classifier as a critic.

    Args:
        task: texts with two classes.
        module: the classifier.
        contract: of the classifier: its classes in the task's order.
        valid: the class that texts should be of.
        batch: texts at a time.
    """

    def __init__(
        self, task: TextClasses, module: Any, contract: Contract, valid: str = "valid", batch: int = 256
    ) -> None:
        self.task, self.module, self.contract, self.valid, self.batch = task, module, contract, valid, batch

    def prob_valid(self, texts: Sequence[str]) -> Tensor:
        """The probability of the class ``valid`` [N]."""
        if not texts:
            return torch.zeros(0)
        tokenizer = self.task.tokenizer
        ids = tokenizer(list(texts), truncation=True, max_length=self.task.length, verbose=False)["input_ids"]
        rows = Rows(ids, None, pad_id(tokenizer))
        column = (self.task.labels or []).index(self.valid)
        device, found = device_of(self.module), []
        with torch.no_grad(), evaluating([self.module]):
            # texts of like length together: rows are as wide as the longest of a batch
            order = rows.sizes.argsort(stable=True)
            for items in order.split(self.batch):
                x, real, _ = rows.fetch(items)
                batch = to_device({"x": x, "attention_mask": real}, device)
                out = self.contract.outputs(self.task.feed(self.module, self.contract.feed(batch)))
                found.append(Signal(out).logits.float().softmax(-1)[:, column].cpu())
        return torch.empty(len(texts)).index_copy_(0, order, torch.cat(found))


class Likelihood:
    """A language model as a critic: the share of real texts that it finds less likely, token by token. [ours]

    The paper's baseline ranks statements by a large model's perplexity; as a share of real texts the rank is a
    probability, so that the same thresholds apply.

    Args:
        task: the model's.
        module: the model.
        real: real texts that it did not learn from.
        batch: texts at a time.
    """

    def __init__(self, task: Language, module: Any, real: Sequence[str], batch: int = 64) -> None:
        self.task, self.module, self.batch = task, module, batch
        self.reference = mean_losses(task, module, real, batch).sort().values

    def prob_valid(self, texts: Sequence[str]) -> Tensor:
        """The share of real texts with a loss at least as high [N]."""
        losses = mean_losses(self.task, self.module, texts, self.batch)
        below = torch.searchsorted(self.reference, losses)
        return 1.0 - below.float() / max(1, len(self.reference))


def mean_losses(task: Language, module: Any, texts: Sequence[str], batch: int = 64, ended: bool = True) -> Tensor:
    """A model's mean cross-entropy a token of each text [N], on the CPU.

    Args:
        task: whose tokenizer and outputs the model has.
        module: a causal model.
        texts: plain texts.
        batch: texts at a time.
        ended: whether the end of the text counts too; off for beginnings of texts.
    """
    bos, eos = special_ids(task.tokenizer)
    spelt = task.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    start = bos or eos[:1]  # what a text begins with; without one its first token is not asked for
    rows = Rows([[*start, *ids, *(eos if ended else [])][: task.length] for ids in spelt], None, pad_id(task.tokenizer))
    device, found = device_of(module), torch.zeros(len(rows))
    with torch.no_grad(), evaluating([module]):
        for items in rows.sizes.argsort(stable=True).split(batch):
            ids, _, _ = rows.fetch(items)
            zero = torch.zeros(len(items), dtype=torch.long)
            made = to_device(make_batch(ids, rows.sizes[items], zero, zero), device)
            logits, labels, where = shifted(task.shown(module, made), made)
            if isinstance(logits, Head):
                loss = cross_entropy(logits, labels, where)
            else:
                loss = torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), labels.clamp(min=0).flatten(), reduction="none"
                ).view_as(labels)
            mean = torch.where(where, loss, torch.zeros_like(loss)).sum(1) / where.sum(1).clamp(min=1)
            found[items] = mean.cpu()
    return found


def quality(critic: Critic, real: Sequence[str], bad: Sequence[str], threshold: float) -> dict[str, float]:
    """How well a critic tells real texts from corrupted ones.

    Returns:
        ``auroc``, ``average_precision``, and ``precision`` and ``recall`` at the threshold.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    score = critic.prob_valid([*real, *bad]).double().numpy()
    y = [1] * len(real) + [0] * len(bad)
    kept = score >= threshold
    hits = float(kept[: len(real)].sum())
    return {
        "auroc": float(roc_auc_score(y, score)),
        "average_precision": float(average_precision_score(y, score)),
        "precision": hits / max(1.0, float(kept.sum())),
        "recall": hits / max(1, len(real)),
    }


def refuse_reversed(found: float, name: str, least: float = 0.5) -> None:
    """Refuse a critic that prefers corrupted texts.

    Args:
        found: how often it gives a real text the higher probability (area under the ROC curve).
        name: its role.
        least: below this it is refused.

    Raises:
        ConfigError: its labels are reversed, or it learned nothing.
    """
    if found < least:
        raise ConfigError(
            f"participants.{name}",
            f"it gives corrupted texts the higher probability: of {100 * found:.0f} % of pairs alone the real one",
            expected="a critic that prefers real texts",
            remedy=f"its classes may be reversed: set participants.{name}.labels=[valid, corrupted]; or teach it longer "
            "(teach.steps)",
        )


__all__ = ["Classifier", "Critic", "Likelihood", "mean_losses", "quality", "refuse_reversed"]
