"""Classifiers on frozen features: what a representation is worth, whatever it was trained for."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from limbeck.data.items import Part
from limbeck.engine.batches import to_device
from limbeck.engine.inner import fit
from limbeck.errors import ConfigError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.evaluator import Bench, Evaluator, Rows, participants
from limbeck.grammar.method import Batch, Built, Data, Term
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.settings import Count, Positive, settings
from limbeck.grammar.signal import Signal, Tap, evaluating
from limbeck.grammar.task import Task
from limbeck.networks.shows import last_linear, picture_of, pooled
from limbeck.tasks.tokenized import Tokenized, encode, hidden, trunk

NAMES = {"evaluator": {"probe": "Probe"}}


@settings
class Probe(Evaluator):
    """A simple classifier trained on a network's frozen features of labelled training items, evaluated on the split; or the
    network itself, fine-tuned on them.

    Rows: the participants, the task's baselines (``alone``: the student trained by the task's own labels) and ``random``
    (the student as it is before training, its batch norm with the statistics of training items): what the architecture alone
    shows.

    Args:
        how: ``linear`` (logistic regression), ``svm`` (linear support vectors) or ``knn`` (nearest neighbours by cosine) on
            frozen features; ``fine-tune`` trains a copy of the whole network with a new last layer.
        on: the task with the labelled items; ``null`` takes the run's own. An encoder that has learnt from text is evaluated
            on text classes, with its own tokenizer.
        optim: how a network is fine-tuned.
        pool: the feature of a text: of its ``first`` token, or the ``mean`` of all.
        whose: which rows are judged: ``all``, or ``students``: without those who only teach, of which large ones take
            long to fine-tune.
        feature: the module whose output is the feature, as ``named_modules()`` spells it (``name:in`` for its input);
            empty takes what the last linear layer reads, of a text's encoder its last hidden states, of a network that
            answers with features these. Maps are averaged over
            space, of tokens the first is taken.
        strength: inverse regularisation of ``linear`` and ``svm`` (scikit-learn's C); of several the one that is best on the
            validation split.
        unit: scale each item's feature to length one; off, each column is brought to mean 0 and deviation 1 (but for
            ``knn``).
        neighbours: of ``knn``.
        items: at most so many training items, at even distances; 0 takes all.
        eval_batch: items at a time.
    """

    how: Literal["linear", "svm", "knn", "fine-tune"] = "linear"
    on: Task | None = None
    optim: Optim = Optim(steps=300, batch_size=32, lr=1e-3, weight_decay=0.01, schedule="linear", warmup=30)
    pool: Literal["first", "mean"] = "first"
    whose: Literal["all", "students"] = "all"
    feature: str = ""
    strength: Positive | list[Positive] = 1.0
    unit: bool = False
    neighbours: Count = 20
    items: Annotated[int, Ge(0)] = 0
    eval_batch: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.strength, list) and not self.strength:
            raise ValueError("strength must be a number above 0, or several")
        self.primary, self.higher_is_better = "accuracy", True

    def accept(self, task: Task) -> None:
        """Items have one class each, which the probe is to tell; texts of both tasks have one tokenizer."""
        on: Any = self.on or task
        if self.on is not None:
            on.load()
            if isinstance(on, Tokenized) != isinstance(task, Tokenized):
                raise ConfigError(
                    "evaluator.on",
                    "items of the two tasks are of different kinds: one has texts",
                    given=type(on).__name__,
                    expected="text-classes for encoders of text, classification for networks of images",
                )
            if not isinstance(on, Tokenized) and on.needs.items != task.needs.items:
                raise ConfigError(
                    "evaluator.on",
                    f"its items are {on.needs.items}, and those that are learnt from are {task.needs.items}",
                    given=type(on).__name__,
                    expected=f"labelled {task.needs.items}",
                )
        if getattr(on, "kind_of_target", "") != "label":
            raise ConfigError(
                "evaluator" if self.on is None else "evaluator.on",
                "a probe tells one class an item",
                given=type(on).__name__,
                remedy="name a task with labelled items: evaluator.on={use: text-classes, data: labelled-text:FILE}"
                if isinstance(task, Tokenized)
                else "name a task with labelled items: evaluator.on={use: ..., data: ...}",
            )
        self.primary, self.higher_is_better = on.primary if self.how == "fine-tune" else "accuracy", True

    def score(self, artifact: Artifact, bench: Bench, split: str = "test") -> dict[str, float]:
        """``accuracy`` of the classifier on the split, and the width of its features; of a network that was fine-tuned the
        labelled task's own metrics."""
        if not isinstance(artifact, NetworkArtifact):
            raise TypeError(f"probes read the features of networks, and this is a {artifact.kind}")
        task: Any = self.on or artifact.judge(bench.task)
        if isinstance(task, Tokenized) and isinstance(bench.task, Tokenized) and task is not bench.task:
            task.follow(bench.task, getattr(artifact.built.module, "config", None))
        vector = artifact.task.needs.form == "vector" and not self.feature
        if self.how == "fine-tune":
            return self._tuned(artifact.built, task, bench, split, vector)
        train: Data = task.train
        x, y = self._features(artifact.built, task, train, bench, self._step(train), vector)
        judged, truth = self._features(artifact.built, task, getattr(task, split), bench, vector=vector)
        strengths = self.strength if isinstance(self.strength, list) else [self.strength]
        best = strengths[0]
        if len(strengths) > 1 and self.how in ("linear", "svm"):
            chosen, known = self._features(artifact.built, task, task.valid, bench, vector=vector)
            right = [self._accuracy(x, y, chosen, known, c) for c in strengths]
            best = strengths[max(range(len(right)), key=right.__getitem__)]
        return {"accuracy": self._accuracy(x, y, judged, truth, best), "width": float(x.shape[1])}

    def _accuracy(self, x: Tensor, y: Tensor, judged: Tensor, truth: Tensor, strength: float) -> float:
        """Of the classifier trained on x [N, D] with classes y, on other features with theirs."""
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # features that are not separable take many rounds
            guess = self._classifier(len(x), strength).fit(x.numpy(), y.numpy()).predict(judged.numpy())
        return float((torch.from_numpy(guess) == truth).double().mean())

    def judges(self, task: Task) -> Task:
        """``on``, where one is named."""
        return self.on or task

    def _step(self, data: Data) -> int:
        return max(1, -(-len(data) // self.items)) if self.items else 1

    def _tuned(self, built: Built, task: Any, bench: Bench, split: str, vector: bool = False) -> dict[str, float]:
        """A copy of the network with a new last layer, trained on the labelled items, as the task evaluates it."""
        task = task.labelled() if hasattr(task, "labelled") else task
        net = copy.deepcopy(built.module).requires_grad_(True)
        seed = key_of(bench.seed, "probe")
        with torch.random.fork_rng(devices=[]):
            seed_modules(seed, torch.device("cpu"))
            texts = isinstance(task, Tokenized)
            if vector:
                width = self._features(built, task, Part(task.train, torch.arange(1)), bench, vector=True)[0].shape[1]
                tuned: nn.Module = nn.Sequential(net, nn.Linear(width, task.outputs).to(bench.device))
            else:
                tuned = TextClassifier(net, int(task.outputs), self.pool) if texts else with_head(net, task.outputs)
        contract = built.contract.with_(classes=None, width=None)
        few = Part(task.train, torch.arange(0, len(task.train), self._step(task.train)))

        def loss(module: nn.Module, batch: Batch, _: Any) -> Term:
            found: Term = task.supervised(Signal(task.feed(module, contract.feed(batch))), batch)
            return found

        fit(tuned, few, loss, self.optim, seed=bench.seed, scope="probe", device=bench.device)
        scores: dict[str, float] = task.evaluate(Built(tuned, contract), getattr(task, split), device=bench.device)
        return scores

    def _classifier(self, items: int, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer, StandardScaler
        from sklearn.svm import LinearSVC

        if self.how == "knn":
            return KNeighborsClassifier(min(self.neighbours, items), metric="cosine")
        scaler = Normalizer() if self.unit else StandardScaler()
        if self.how == "svm":
            return make_pipeline(scaler, LinearSVC(C=strength, random_state=0))
        return make_pipeline(scaler, LogisticRegression(C=strength, max_iter=1000))

    def _features(
        self, built: Built, task: Task, data: Data, bench: Bench, step: int = 1, vector: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Features [N, D] and classes [N] of every ``step``-th item; ``vector``: they are what the network answers."""
        module: nn.Module = built.module
        whole = isinstance(task, Tokenized) and not self.feature  # of a text: the encoder's last hidden states
        path = "" if whole or vector else self.feature or last_linear(module)
        tap, found, labels = Tap(module, [path] if path else []), [], []
        try:
            with torch.no_grad(), evaluating([module]):
                for ids in torch.arange(0, len(data), step).split(self.eval_batch):
                    batch = {k: v.to(bench.device) if isinstance(v, Tensor) else v for k, v in data.fetch(ids).items()}
                    if whole:
                        states = hidden(encode(trunk(module), batch["x"], batch))
                        found.append(of_text(states, batch.get("attention_mask"), self.pool).float().cpu())
                        labels.append(batch["y"].cpu())
                        continue
                    with tap:
                        out = Signal(task.feed(module, built.contract.feed(batch))).output
                    found.append(pooled(tap.acts[path] if path else out, picture_of(batch)).float().cpu())
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
            settle(built, task, self.eval_batch)
            return NetworkArtifact(task, built)

        networks = {
            n: r
            for n, r in participants(bench).items()
            if isinstance(bench.built[n].module, nn.Module) and self.whose == "all"
        }
        return {**networks, **task.baselines(bench), "random": random}


def settle(built: Built, task: Task, batch_size: int = 256, batches: int = 8) -> None:
    """Give the batch norm of an untrained network the mean statistics of some training items; no weight changes.

    Without them it would normalise by nothing, and a trained network would look better for that alone.
    """
    norms = [
        m for m in built.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    kept = [m.momentum for m in norms]
    device, data = next(built.module.parameters()).device, task.train
    try:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # the plain mean over batches
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            built.module.train()
            for ids in itertools.islice(torch.arange(len(data)).split(batch_size), batches):
                if len(ids) > 1 or len(data) == 1:
                    batch = to_device({**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}, device)
                    task.feed(built.module, built.contract.feed(batch))
    finally:
        for m, momentum in zip(norms, kept, strict=True):
            m.momentum = momentum
        built.module.eval()


class TextClassifier(nn.Module):
    """An encoder of text with a new linear layer on its feature.

    Args:
        net: the encoder, alone or with a head, which is left off.
        outputs: how many classes.
        pool: the feature: the ``first`` token's last hidden state, or the ``mean`` of all.
        dropout: of the feature, while training.
    """

    def __init__(self, net: nn.Module, outputs: int, pool: str = "first", dropout: float = 0.1) -> None:
        super().__init__()
        self.net = trunk(net)
        config: Any = net.config
        self.config = config
        self.pool, self.dropout = pool, nn.Dropout(dropout)
        self.head = nn.Linear(int(config.hidden_size), outputs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits [N, K] of rows of ids [N, T]."""
        batch = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        states = hidden(encode(self.net, input_ids, {k: v for k, v in batch.items() if v is not None}))
        logits: Tensor = self.head(self.dropout(of_text(states, attention_mask, self.pool)))
        return logits


def of_text(states: Tensor, mask: Tensor | None, pool: str) -> Tensor:
    """The feature [N, D] of hidden states [N, T, D]."""
    if pool == "first":
        return states[:, 0]
    if mask is None:
        return states.mean(1)
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def with_head(net: nn.Module, outputs: int) -> nn.Module:
    """The network with a new last linear layer, in place."""
    path = last_linear(net).removesuffix(":in")
    old: Any = net.get_submodule(path)
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, nn.Linear(old.in_features, outputs))
    return net


__all__ = ["Probe", "TextClassifier", "settle"]
