"""How much of planted secrets language models know: the exposure of canaries, beside the task's own metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.data.canaries import Canaries
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError
from limbeck.evaluators.direct import Direct
from limbeck.functional.privacy import exposure
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench
from limbeck.grammar.method import Built
from limbeck.grammar.settings import Count, NonNegative, settings
from limbeck.grammar.signal import evaluating
from limbeck.tasks.language import Language
from limbeck.tasks.tokens import make_batch, shifted

NAMES = {"evaluator": {"exposure": "ExposureOfCanaries"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class ExposureOfCanaries(Direct):
    """The task's metrics of a language model, and on the test split the exposure of its data's canaries, in bits.

    ``exposure`` is the mean over all canaries, ``exposure_xN`` over those that the teacher read N times. A canary's rank is
    exact: every code is put into its sentence. An empirical measure: low exposure is no proof of privacy.

    Args:
        least: mean exposure of the most repeated canaries that the teacher itself must have; below, nothing could leak, and
            the comparison is void: it is refused. 0 does not look.
        at_a_time: sentences that a model reads at a time.
    """

    least: NonNegative = 3.0
    at_a_time: Count = 500

    def accept(self, task: Any) -> None:
        """Refuse data without canaries."""
        super().accept(task)
        if not isinstance(task, Language) or not isinstance(task.data, Canaries):
            raise ConfigError(
                "evaluator",
                "exposure is of planted canaries, and the data has none",
                given=type(getattr(task, "data", task)).__name__,
                expected="task=language with data=canaries",
                remedy="set task.data={use: canaries, text: ...}",
            )

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """Metrics on a split.

        Raises:
            DataError: the teacher itself does not know the canaries.
        """
        found = super().score(artifact, bench, split)
        if split != "test" or not isinstance(artifact, NetworkArtifact):
            return found
        task: Any = bench.task
        bits = self.exposures(artifact.built, task, bench.device)
        times = torch.tensor([c.repeats for c in task.data.planted])
        most = float(bits[times == times.max()].mean())
        teacher = bench.teacher
        if teacher is not None and artifact.built.module is teacher.module and most < self.least:
            raise DataError(
                "evaluator",
                f"the teacher itself exposes its most repeated canaries by {most:.2f} bits only: nothing could leak",
                expected=f"{self.least:g} bits or more (evaluator.least)",
                remedy="teach it longer (teach.steps), or repeat canaries more often (task.data.repeats)",
            )
        found["exposure"] = float(bits.mean())
        for n in sorted(set(times.tolist())):
            found[f"exposure_x{n}"] = float(bits[times == n].mean())
        return found

    def exposures(self, built: Built, task: Any, device: torch.device) -> Tensor:
        """Exposure of each canary in bits, float64 ``[K]``."""
        found = []
        for canary in task.data.planted:
            lp = self.log_perplexity(built, task, task.data.sentences(canary.who), device)
            found.append(exposure(lp, torch.tensor([canary.code])).exposure[0])
        return torch.stack(found)

    def log_perplexity(self, built: Built, task: Any, texts: list[str], device: torch.device) -> Tensor:
        """Nats of whole sentences, float64 ``[R]``, given nothing; from the first token that differs between them."""
        rows = [task.tokenizer(text)["input_ids"][: task.length] for text in texts]
        whole = max(len(task.tokenizer(text)["input_ids"]) for text in texts[:1])
        if whole > task.length:
            raise DataError(
                "task.length",
                f"the sentence of a canary has {whole} tokens, and the code would be cut off",
                given=task.length,
                expected=f"{whole} or more",
            )
        length = max(map(len, rows))
        sizes = torch.tensor([len(row) for row in rows])
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        begin = max(1, int((ids == ids[:1]).all(0).long().cumprod(0).sum()))
        none = torch.zeros_like(sizes)
        found = []
        with torch.no_grad(), evaluating([built.module]):
            for part in torch.arange(len(rows)).split(self.at_a_time):
                batch = make_batch(ids[part], sizes[part], none[part], none[part])
                batch |= {"item": part, "view": torch.zeros_like(part)}
                batch = to_device(batch, device)
                logits, labels, where = shifted(task._show(built, batch), batch)
                log_q = logits[:, begin - 1 :]
                log_q = (log_q if isinstance(log_q, Tensor) else log_q.logits).float().log_softmax(-1)
                at = labels[:, begin - 1 :].clamp_min(0).unsqueeze(-1)
                nats = -log_q.gather(-1, at).squeeze(-1).double() * where[:, begin - 1 :]
                found.append(nats.sum(1).cpu())
        return torch.cat(found)
