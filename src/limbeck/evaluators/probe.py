"""Classifiers on frozen features: what a representation is worth, whatever it was trained for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows, participants
from limbeck.grammar.method import Built, Data
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.signal import Tap, evaluating
from limbeck.grammar.task import Task
from limbeck.networks.shows import last_linear, picture_of, pooled

NAMES = {"evaluator": {"probe": "Probe"}}


@settings
class Probe(Evaluator):
    """A simple classifier trained on a network's frozen features of the student's training items, judged on the split.

    Rows: the participants, the task's baselines (``alone``: the student trained by the task's own labels) and ``random``
    (the student as it is before training): what the architecture alone shows.

    Args:
        how: ``linear`` (logistic regression), ``svm`` (linear support vectors) or ``knn`` (nearest neighbours by cosine).
        feature: the module whose output is the feature, as ``named_modules()`` spells it (``name:in`` for its input);
            empty takes what the last linear layer reads. Maps are averaged over space, of tokens the first is taken.
        strength: inverse regularisation of ``linear`` and ``svm`` (scikit-learn's C), on standardised features.
        neighbours: of ``knn``.
        items: at most so many training items, at even distances; 0 takes all.
        eval_batch: items at a time.
    """

    how: Literal["linear", "svm", "knn"] = "linear"
    feature: str = ""
    strength: Positive = 1.0
    neighbours: Count = 20
    items: Annotated[int, Ge(0)] = 0
    eval_batch: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.primary, self.higher_is_better = "accuracy", True

    def accept(self, task: Task) -> None:
        """Items have one class each, which the probe is to tell."""
        if getattr(task, "kind_of_target", "") != "label":
            raise ConfigError("evaluator", "a probe tells one class an item", given=type(task).__name__)

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """``accuracy`` of the classifier on the split, and the width of its features."""
        if not isinstance(artifact, NetworkArtifact):
            raise TypeError(f"probes read the features of networks, and this is a {artifact.kind}")
        task: Any = artifact.judge(bench.task)
        train: Data = task.train
        step = max(1, -(-len(train) // self.items)) if self.items else 1
        x, y = self._features(artifact.built, task, train, bench, step)
        judged, truth = self._features(artifact.built, task, getattr(task, split), bench)
        guess = self._classifier(len(x)).fit(x.numpy(), y.numpy()).predict(judged.numpy())
        return {"accuracy": float((torch.from_numpy(guess) == truth).double().mean()), "width": float(x.shape[1])}

    def _classifier(self, items: int) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        if self.how == "knn":
            return KNeighborsClassifier(min(self.neighbours, items), metric="cosine")
        if self.how == "svm":
            return make_pipeline(StandardScaler(), LinearSVC(C=self.strength, random_state=0))
        return make_pipeline(StandardScaler(), LogisticRegression(C=self.strength, max_iter=1000))

    def _features(self, built: Built, task: Task, data: Data, bench: Bench, step: int = 1) -> tuple[Tensor, Tensor]:
        """Features [N, D] and classes [N] of every ``step``-th item."""
        module: nn.Module = built.module
        path = self.feature or last_linear(module)
        tap, found, labels = Tap(module, [path]), [], []
        try:
            with torch.no_grad(), evaluating([module]):
                for ids in torch.arange(0, len(data), step).split(self.eval_batch):
                    batch = {k: v.to(bench.device) if isinstance(v, Tensor) else v for k, v in data.fetch(ids).items()}
                    with tap:
                        task.feed(module, built.contract.feed(batch))
                    found.append(pooled(tap.acts[path], picture_of(batch)).float().cpu())
                    labels.append(batch["y"].cpu())
        finally:
            tap.close()
        return torch.cat(found), torch.cat(labels)

    def rows(self, bench: Bench) -> Rows:
        """Those who take part and are networks, the task's baselines, and ``random``."""
        task = bench.task

        def random() -> NetworkArtifact:
            with torch.random.fork_rng(devices=[]):
                seed_modules(key_of(bench.seed, "init", "student"), torch.device("cpu"))
                built = bench.student_model.build(task)
            built.module.to(bench.device)
            return NetworkArtifact(task, built)

        networks = {n: r for n, r in participants(bench).items() if isinstance(bench.built[n].module, nn.Module)}
        return {**networks, **task.baselines(bench), "random": random}


__all__ = ["Probe"]
