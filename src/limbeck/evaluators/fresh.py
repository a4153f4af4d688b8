"""Networks trained from nothing on what was made, and evaluated on real items: for data sets, tables, graphs, corpora."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows
from limbeck.grammar.method import Built, Query
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.scores import Scores
from limbeck.grammar.settings import Count, settings
from limbeck.objectives.queries import accept_all

NAMES = {"evaluator": {"fresh": "Fresh"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@runtime_checkable
class Trains(Protocol):
    """An artifact that networks can be trained on.

    Attributes:
        lr: the learning rate that it asks for; ``None`` takes the evaluator's.
        networks: at most so many are trained on it; ``None`` for as many as the evaluator wants.
        scope: keys the order of items and the augmentations.
    """

    lr: float | None
    networks: int | None
    scope: str

    def train(
        self,
        module: nn.Module,
        optim: Optim,
        seed: int,
        scope: str,
        device: torch.device,
        queries: Sequence[Query] = (),
    ) -> Built:
        """The network, trained on it; its batches are changed by ``queries`` after what it asks for itself."""


@settings
class Fresh(Evaluator):
    """Fresh networks, trained on what was made and evaluated on the task's real items.

    Rows: ``teacher`` (the method's, or one network trained on all real items) and each of ``baselines``: as many real
    items. A network is evaluated as it is.

    Args:
        optim: how they are trained (lr is replaced by one that was learned).
        networks: how many of each architecture; their mean and standard deviation are told.
        architectures: further architectures beside the student's, from the task's list (of pictures: ``mlp``, ``convnet``,
            ``lenet``, ``alexnet``, ``vgg11``, ``resnet18``; of tables scikit-learn's: ``logistic``, ``forest``...).
        baselines: which choices of real items are evaluated beside it, from the task's list (of pictures: ``random``,
            ``kmeans``, ``herding``; of tables ``real``, ``independent``, ``reweighed``); the first is the one to be beaten.
        queries: changes to the batches that they learn from, by name, in order, after what the set itself asks for
            (``{mix: mixup}``); the same in every row.
    """

    optim: Optim = Optim(steps=300, batch_size=256, lr=0.01, optimizer="sgd", weight_decay=5e-4, schedule="drop")
    networks: Count = 3
    architectures: list[str] = []  # noqa: RUF012 (copied, never changed)
    baselines: list[str] = ["random"]  # noqa: RUF012
    queries: dict[str, Query] = {}  # noqa: RUF012

    def validate(self) -> None:
        """The first baseline is the one to be beaten."""
        self.baseline = self.baselines[0] if self.baselines else "random"

    def accept(self, task: Any) -> None:
        """Refuse a task that makes no data, architectures and baselines that it does not know, and queries not for it."""
        if not hasattr(task, "pool"):
            raise ConfigError("evaluator", f"fresh networks are trained on data sets, not for {type(task).__name__}")
        accept_all(self.queries, task, "evaluator.queries")
        for name, given, known in (
            ("architectures", self.architectures, list(task.pool())),
            ("baselines", self.baselines, list(task.choices)),
        ):
            for value in given:
                if value not in known:
                    raise ConfigError.unknown(f"evaluator.{name}", value, known, f"choice of {type(task).__name__}")

    def score(self, artifact: Any, bench: Bench, split: str = "test") -> dict[str, float]:
        """The task's metrics: means over the networks; of the main one also ``NAME_std``, and ``ARCH/NAME``."""
        task: Any = bench.task
        own = getattr(
            task, "fresh", None
        )  # a task whose data are no networks' food evaluates with estimators of its own
        if isinstance(artifact, NetworkArtifact):
            return task.evaluate(artifact.built, getattr(task, split), device=bench.device)
        if own is None and not isinstance(artifact, Trains):
            raise TypeError(f"fresh networks are trained on data, and this is a {artifact.kind}")
        more: dict[str, Any] = {"queries": list(self.queries.values())} if self.queries else {}
        found: dict[str, float] = {}
        items: dict[str, Tensor] = {}
        count = min(self.networks, artifact.networks or self.networks)
        for arch in ["", *(self.architectures if artifact.networks is None else ())]:
            scores = []
            for k in range(count):
                if own is not None:
                    scores.append(own(artifact, arch, k, bench.seed, split))
                    continue
                with torch.random.fork_rng(devices=[]):
                    seed_modules(key_of(bench.seed, "judge", arch, k), torch.device("cpu"))
                    module = bench.student_model.build(task).module if not arch else task.pool()[arch]()
                optim = self.optim if artifact.lr is None else self.optim.with_(lr=artifact.lr)
                scope = artifact.scope or f"judge-{arch}-{k}"
                net = artifact.train(module, optim, bench.seed, scope, bench.device, **more)
                scores.append(task.evaluate(net, getattr(task, split), device=bench.device))
            prefix = f"{arch}/" if arch else ""
            for metric in () if arch else ("accuracy", "nll"):
                items[metric] = torch.stack([s.per_item[metric].double() for s in scores if metric in s.per_item]).mean(
                    0
                )
            main = [s[task.primary] for s in scores]
            found[f"{prefix}{task.primary}"] = float(np.mean(main))
            if artifact.networks is None:
                found[f"{prefix}{task.primary}_std"] = float(np.std(main, ddof=1)) if len(main) > 1 else 0.0
            told = sorted(set(scores[0]) - {task.primary}) if not arch else getattr(task, "told", ())
            for metric in told:
                found[f"{prefix}{metric}"] = float(np.mean([s[metric] for s in scores]))
        if hasattr(task, "quality"):
            found.update(task.quality(artifact, bench.seed, split))
        return Scores(found, items)

    def rows(self, bench: Bench) -> Rows:
        """``teacher`` (the method's own, or a network trained on all real items) and the choices of real items.

        Where the task evaluates with estimators of its own, the choices alone: what a teacher makes is the method's row.
        """
        task: Any = bench.task
        found: Rows = {how: partial(task.real, how, bench.seed, bench.made) for how in self.baselines}
        if hasattr(task, "fresh"):
            return found
        own = bench.teacher
        return {"teacher": task.whole if own is None else partial(NetworkArtifact, task, own), **found}

    def extras(self, artifact: Artifact, bench: Bench) -> dict[str, Any]:
        """Images of what was made, where it has some: its own pixels, or files that it draws below the run's folder."""
        draw = getattr(artifact, "draw", None)
        if draw is not None:
            return {} if bench.folder is None else {"pictures": draw(bench.folder)}
        pictures = getattr(artifact, "pictures", None)
        return {} if pictures is None else {"images": pictures()}
