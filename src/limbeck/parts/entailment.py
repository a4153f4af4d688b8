"""Critics of entailment: how likely one sentence contradicts another, entails it, or says nothing of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from limbeck.data.paraphrases import CONTRADICTION, ENTAILMENT, NEUTRAL
from limbeck.data.text import Document
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.tasks.sentences import RELATIONS
from limbeck.tasks.text_classes import LabelledRows, TextClasses


class Entailment(Protocol):
    """Whoever tells what a premise says of a hypothesis."""

    def score(self, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Probabilities [N, 3]: contradiction, entailment, neutral."""


class Containment:
    """The share of the hypothesis that the premise holds, each word by how rare it is, as the probability of entailment. [ours]

    Words count by their stem of five letters, or runs of characters in their place. What is denied in only one of the two
    is a contradiction as far as it is contained. It knows no synonyms: a stand-in where no model of inference is at hand.

    Args:
        texts: by which rarity is told.
        characters: compare runs of so many characters in place of words; 0 for words.
    """

    def __init__(self, texts: Sequence[str], characters: int = 0) -> None:
        self.characters = characters
        seen = Counter(unit for text in texts for unit in set(self.units(text)))
        self.rarity = {unit: math.log(1 + len(texts) / count) for unit, count in seen.items()}
        self.unseen = math.log(1 + len(texts))

    def units(self, text: str) -> list[str]:
        """What is compared."""
        words = re.findall(r"[a-z0-9]+", text.lower())
        if not self.characters:
            return [w[:5] for w in words]
        joined, n = " ".join(words), self.characters
        return [joined[i : i + n] for i in range(max(1, len(joined) - n + 1))]

    def score(self, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Probabilities [N, 3]."""
        found = np.zeros((len(premises), 3))
        for i, (p, h) in enumerate(zip(premises, hypotheses, strict=True)):
            held, wanted = Counter(self.units(p)), Counter(self.units(h))
            weight = {u: self.rarity.get(u, self.unseen) for u in wanted}
            whole = sum(weight[u] * n for u, n in wanted.items())
            inside = sum(weight[u] * min(n, held[u]) for u, n in wanted.items()) / whole if whole else 0.0
            denied = bool(_DENIAL.search(p.lower())) != bool(_DENIAL.search(h.lower()))
            found[i, CONTRADICTION if denied else ENTAILMENT] = inside
            found[i, NEUTRAL] = 1.0 - inside
        return found


_DENIAL = re.compile(r"\b(?:not|no|never|none|nothing|nobody|cannot|without)\b|n't\b")


class PairClassifier:
    """A text classifier of pairs as a critic; its classes are known by their names, whatever their order.

    Args:
        task: pairs with the three relations.
        module: the classifier.
        contract: of the classifier: its classes in the task's order.
        batch: pairs at a time.

    Raises:
        ConfigError: the task's classes are others.
    """

    def __init__(self, task: TextClasses, module: Any, contract: Contract, batch: int = 256) -> None:
        if sorted(task.labels or []) != sorted(RELATIONS):
            raise ConfigError(
                "participants.critic.labels", given=task.labels, expected=f"the classes {', '.join(RELATIONS)}"
            )
        self.task, self.module, self.contract, self.batch = task, module, contract, batch
        self.columns = [(task.labels or []).index(name) for name in RELATIONS]

    def score(self, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """Probabilities [N, 3]."""
        if not premises:
            return np.zeros((0, 3))
        documents = [Document(h, p) for p, h in zip(premises, hypotheses, strict=True)]
        rows = LabelledRows(self.task, documents, torch.zeros(len(documents), dtype=torch.long))
        device, found = device_of(self.module), []
        with torch.no_grad(), evaluating([self.module]):
            for items in torch.arange(len(documents)).split(self.batch):
                batch = to_device(rows.fetch(items), device)
                out = self.contract.outputs(self.task.feed(self.module, self.contract.feed(batch)))
                found.append(Signal(out).logits.float().softmax(-1)[:, self.columns].cpu())
        return torch.cat(found).double().numpy()


def table(critic: Entailment, texts: Sequence[str], pairs: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """A critic's probabilities [N, N, 3] of premise i and hypothesis j; of ``pairs`` alone, the others 0, where they are given.

    A sentence is not asked about itself: it entails itself.
    """
    n = len(texts)
    found = np.zeros((n, n, 3))
    found[range(n), range(n), ENTAILMENT] = 1.0
    asked = [(i, j) for i in range(n) for j in range(n) if i != j] if pairs is None else list(pairs)
    if asked:
        scores = critic.score([texts[i] for i, _ in asked], [texts[j] for _, j in asked])
        check_scores(scores, len(asked))
        rows, columns = zip(*asked, strict=True)
        found[list(rows), list(columns)] = scores
    return found


def check_scores(scores: np.ndarray, n: int) -> None:
    """Refuse what are no probabilities of the three relations.

    Raises:
        ConfigError: another shape, values outside [0, 1], or rows that do not sum to 1.
    """
    fine = scores.shape == (n, 3) and np.isfinite(scores).all() and (scores >= -1e-6).all()
    if not fine or np.abs(scores.sum(1) - 1).max(initial=0.0) > 1e-3:
        raise ConfigError(
            "critic",
            f"it answered with {list(scores.shape)} values that are no probabilities",
            expected=f"[{n}, 3]: contradiction, entailment, neutral, which sum to 1",
        )


def trial(critic: Entailment, pairs: Sequence[tuple[str, str, int]]) -> dict[str, float]:
    """How well a critic tells made pairs: ``accuracy``, and the mean probability of entailment where it is true and where not.

    Args:
        critic: who is tried.
        pairs: (premise, hypothesis, relation).
    """
    scores = critic.score([p for p, _, _ in pairs], [h for _, h, _ in pairs])
    y = np.array([label for _, _, label in pairs])
    entails = scores[:, ENTAILMENT]
    return {
        "accuracy": float((scores.argmax(1) == y).mean()),
        "entailed": float(entails[y == ENTAILMENT].mean()),
        "others": float(entails[y != ENTAILMENT].mean()),
    }


__all__ = ["Containment", "Entailment", "PairClassifier", "check_scores", "table", "trial"]
