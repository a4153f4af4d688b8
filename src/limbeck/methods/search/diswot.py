"""DisWOT: the student that will learn best from a teacher, chosen among networks none of which is trained.

    G = Z Z^T, Z = flatten(F),  rows of length 1                 D_r = |G_t - G_s|_F^2 / B^2             relation
    g = d CE / d W,  E_k = g_k g_k^T,  rows of length 1          D_s = sum_k |E_k^t - E_k^s|_F^2 / (C K) semantic
    score = - (D_r + D_s)       of two networks with random weights, on one batch
    search    regularised evolution over the space, within budgets
    distil    (1 - alpha) CE(q, y) + alpha T^2 KL(p_T || q_T)    the network that was found, as usual

F: last map before pooling [B, C, h, w];  W: the classifier's weights [K, C];  g: its Grad-CAM weights of every class
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.artifacts.architecture import Architecture
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.settings import Count, Fraction, Natural, NonEmpty, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Model, Task
from limbeck.parts.evolution import Genes, History, evolve, measured
from limbeck.parts.proxies import Init, Proxy, Reader, Shown, distance, initialise, rank_agreement
from limbeck.parts.student_space import COSTS, Budgets, StudentSpace
from limbeck.recipe.hints import Mismatch
from limbeck.recipe.schema import node_of
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=51,
    slug="diswot",
    title="DisWOT: Student Architecture Search for Distillation WithOut Training",
    year=2023,
    venue="CVPR",
    arxiv="2303.15678",
    repository="lliai/DisWOT-CVPR2023",
    licence="Apache-2.0",
    family="search",
    methods={"diswot": "Diswot"},
    optimised="which network the student is, and its weights",
    signals=("features", "gradients of the classifier", "logits"),
    provenance={
        "both metrics, weights from N(0, 1), evolution (36, 8, 1000)": "code; the metrics are checked against recorded vectors",
        "the loop of the search": "reconstructed: the published script picks parents among the worst of a tournament, checks no "
        "child against the budget, and draws the teacher anew for each network (variant=released does so)",
        "teacher's gradient": "the code lets it add up over the candidates; here each is that of one batch",
        "combine=rank": "ours: D_s is larger than D_r by orders of magnitude, so that their sum follows D_s",
        "truth, rivals": "ours: networks trained here that the score is held against, and what the found one is held against",
        "nwot, synflow": "Mellor et al. 2021 and Tanaka et al. 2020, as the paper compares with",
    },
    claim="The score of untrained networks ranks students as their accuracies after distillation do (Kendall's tau above 0), "
    "better than their number of parameters; the found student is more accurate than the hand-picked one within the same budget; "
    "and the search takes less than 1/180 of the time of training its candidates.",
    recipe="diswot",
    exceptions={
        "at_equality": "the student is another network than its teacher, chosen after the test has made them equal",
    },
    notes="The recipe states the space: method.space for settings of its student, or method.candidates for a list of models. "
    "The teacher's trained weights do not enter the search; the student's own settings are the hand-picked network.",
)

LARGE = 5
"""Networks of the search that are shown, the best first."""

Rival = Literal["hand-picked", "largest", "random"]


@dataclass
class Record:
    """What is known of a candidate.

    Attributes:
        values: its distances, by proxy.
        costs: ``parameters``, and ``operations`` and ``latency_ms`` of one item where there is a budget of them.
        seconds: what it took to build and measure.
    """

    values: dict[str, float]
    costs: dict[str, float]
    seconds: float = 0.0


@settings
class Diswot(Method[Classification]):
    """A search for a student, without training, and the distillation of what was found.

    Args:
        space: settings of the recipe's student with the choices of each: ``{width: [8, 16], blocks: {"0": [1, 3]}}``, where
            ``blocks.0`` is the first entry of a list; ``null`` takes a setting out of a recipe's space.
        candidates: models to choose from, in place of ``space``.
        parameters: of the student at most; up to 1 a share of the teacher's.
        operations: floating-point operations of one item at most (a multiplication with its addition counts two); up to 1 a
            share of the teacher's.
        latency_ms: milliseconds of one item at most, as measured here; up to 1 a share of the teacher's.
        metrics: distances to the teacher, or of the student alone, that the score adds up: ``relation``, ``semantic``, the
            losses ``kd``, ``rkd`` and ``at`` between untrained networks, ``nwot``, ``synflow``, or ``parameters``.
        combine: ``sum``, or the mean of their ``rank`` among the networks that are compared.
        feature: what ``relation`` and ``at`` look at: the last ``map`` before pooling, or the ``pooled`` vector.
        init: weights from N(0, 1) (``gaussian``), or ``kaiming``.
        batch: labelled training items that everything is measured on.
        repeats: how many first weights of each network its distances are averaged over.
        search: ``evolution``, ``random`` (as many as the evolution would see), or ``all``.
        population: networks at a time.
        tournament: how many of them are drawn for a parent.
        cycles: children that are tried.
        minutes: the search ends after these, whatever is left of it.
        variant: ``released`` has the published script's evolution: parents from the worst five of a tournament, children of any
            cost, a teacher drawn anew for each network, the semantic metric alone.
        temperature: of the distillation.
        alpha: weight of the distillation; the labels' loss has 1 - alpha.
        rivals: what is distilled beside: the ``hand-picked`` student of the recipe, the ``largest`` network within the budgets,
            a ``random`` one.
        truth: how many networks of the space are trained by distillation, all of them to rank the proxies by; 0 trains none.
        truth_metrics: proxies that are ranked beside those of ``metrics``.
        truth_repeats: how many first weights of each network are averaged there.
    """

    stage_names = ("truth", "hand-picked", "largest", "random")
    called = MappingProxyType({"alone": "the hand-picked student alone"})

    space: dict[str, Any] | None = None
    candidates: list[Model] | None = None
    parameters: Positive | None = None
    operations: Positive | None = None
    latency_ms: Positive | None = None
    metrics: Annotated[list[Proxy], NonEmpty] = ["relation", "semantic"]  # noqa: RUF012 (copied, never changed)
    combine: Literal["sum", "rank"] = "sum"
    feature: Literal["map", "pooled"] = "map"
    init: Init = "gaussian"
    batch: Annotated[int, Ge(2)] = 64
    repeats: Count = 1
    search: Literal["evolution", "random", "all"] = "evolution"
    population: Count = 36
    tournament: Count = 8
    cycles: Natural = 1000
    minutes: Positive | None = None
    variant: Literal["paper", "released"] = "paper"
    temperature: Positive = 4.0
    alpha: Fraction = 0.9
    rivals: list[Rival] = ["hand-picked", "largest"]  # noqa: RUF012
    truth: Natural = 0
    truth_metrics: list[Proxy] = []  # noqa: RUF012
    truth_repeats: Count = 10

    def validate(self) -> None:
        """One way to state the space, and settings that go together."""
        if (self.space is None) == (self.candidates is None):
            raise ValueError(
                "space or candidates must be given, one of them and not both: which networks are searched, as "
                "method.space={width: [8, 16]} or method.candidates=[timm:resnet18, timm:resnet34]"
            )
        for name in ("metrics", "rivals", "truth_metrics"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"{name} must name each once, not {', '.join(given)}")
        if self.variant == "released" and (
            list(self.metrics) != ["relation", "semantic"] or self.search != "evolution"
        ):
            raise ValueError("variant=released sets metrics and search itself: leave them out")
        if self.feature == "pooled" and "at" in self.proxies:
            raise ValueError("feature=pooled has no places, which metrics=at compares: set feature=map")
        if self.truth == 1 or self.truth == 2:
            raise ValueError("truth must be 3 or more networks, which can be ranked, or 0")
        self.notes: list[str] = []

    @property
    def scored(self) -> list[Proxy]:
        """The proxies that the score adds up."""
        return ["semantic"] if self.variant == "released" else list(self.metrics)

    @property
    def proxies(self) -> list[Proxy]:
        """All that are measured where the proxies are ranked."""
        return list(dict.fromkeys([*self.scored, *self.truth_metrics]))

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    # ------------------------------------------------------------------------------------------------------- the space
    def bind(self, setup: Setup) -> None:
        """Take the networks; build one of every choice, and refuse what cannot be built, compared or met."""
        super().bind(setup)
        self.notes = []
        self.here: dict[str, Genes] = {}  # role -> the network in its place
        self.made: dict[str, Built] = {}
        self.found: dict[str, Any] | None = None  # what the search has left
        self.trials: list[dict[str, Any]] = []  # what was trained to rank it
        self.clock: float | None = None
        self.training: float | None = None  # seconds
        self.students = StudentSpace(setup, self.space, self.candidates)
        assert setup.teacher is not None
        self.teacher_width = self._reader(setup.teacher, "teacher").width
        self.budgets = Budgets(setup, {name: getattr(self, name) for name in COSTS})
        tried: dict[Genes, dict[str, float]] = {}
        for genes, built in self.students.every_choice():  # what cannot be built or met is said now
            self._check_width(built, genes)
            tried[genes] = self.budgets.costs(built)
        self.students.check_smallest(tried, self.budgets)
        for name in self.rivals:
            self.new(name, like="student")
        if len(self.task.train) < 2:
            raise ConfigError(
                "task.data", "networks are compared on a batch", given=f"{len(self.task.train)} training items"
            )

    def _reader(self, built: Built, role: str) -> Reader:
        """A network of one's own to read from."""
        module = built.module
        own = replace(
            built, module=copy.deepcopy(module).to(self.setup.device) if isinstance(module, nn.Module) else module
        )
        return Reader(own, self.task, role, self.feature)

    def _check_width(self, built: Built, genes: Genes) -> None:
        """Refuse a classifier whose gradient cannot be held against the teacher's.

        Raises:
            ConfigError: both widths, and what to do.
        """
        width = self._reader(built, f"candidate {self.students.named(genes)}").width
        if "semantic" in self.proxies and width != self.teacher_width:
            raise ConfigError(
                "method.metrics",
                f"semantic compares the classifiers' gradients channel by channel, and that of {self.students.named(genes)} reads {width} "
                f"channels, the teacher's {self.teacher_width}",
                given="semantic",
                expected=f"candidates whose last layer reads {self.teacher_width} channels",
                remedy="set method.metrics=[relation], or take a teacher of that width",
            )

    # ------------------------------------------------------------------------------------------------------ the stages
    def stages(self) -> list[Stage]:
        """The search; networks to rank it by; what was found is distilled, and then its rivals."""
        train = self.setup.train
        count = min(self.truth, self.students.members.size)
        ranking = Stage(
            "truth",
            items=lambda ctx: [f"network{i}" for i in range(count)],
            work=lambda item, ctx: self.try_truly(int(item[7:]), ctx),
            optim={"network": train},
        )
        return [
            Stage("search", items=lambda ctx: ["search"], work=lambda item, ctx: self.look(ctx)),
            *([ranking] if self.truth else []),
            Stage(
                "distil",
                steps=train.steps,
                data=self.task.train,
                batch_size=train.batch_size,
                optim={"student": train},
                setup=self.lay_out,
                begin=self.start_clock,
                finish=self.stop_clock,
            ),
            *[
                Stage(
                    name,
                    steps=lambda ctx, name=name: 0 if self.same(name) else train.steps,  # type: ignore[misc]
                    data=self.task.train,
                    batch_size=train.batch_size,
                    optim={name: train},
                    setup=partial(self.lay_out_rival, name=name),
                    step=partial(self.learn, role=name),
                    scope="distil",
                    judged=False,
                )
                for name in self.rivals
            ],
        ]

    # ------------------------------------------------------------------------------------------------------ the search
    def sample(self, ctx: Context) -> Batch:
        """The batch that everything is measured on."""
        n = min(self.batch, len(self.task.train))
        ids = torch.from_numpy(
            np.sort(ctx.draws.anywhere().numpy("diswot").choice(len(self.task.train), n, replace=False))
        )
        return next(iter(ctx.over(self.task.train, batch_size=n, items=ids)))

    def untrained(self, reader: Reader, batch: Batch, *key: Any, wanted: Sequence[str]) -> Shown:
        """What a network shows with weights drawn by a key."""
        with torch.random.fork_rng(devices=[reader.device] if reader.device.type == "cuda" else []):
            seed_modules(key_of(self.setup.seed, "untrained", *key), reader.device)
            initialise(reader.module, self.init)
        return reader.read(batch, wanted)

    def measurer(self, batch: Batch, wanted: Sequence[Proxy], repeats: int) -> Any:
        """A function from genes to distances, each averaged over so many first weights; the teacher's are shared."""
        assert self.setup.teacher is not None
        teacher = self._reader(self.setup.teacher, "teacher")
        kept: dict[Any, Shown] = {}

        def shown(*key: Any) -> Shown:
            if self.variant == "released":
                return self.untrained(teacher, batch, "teacher", *key, wanted=())
            if key[-1] not in kept:
                kept[key[-1]] = self.untrained(teacher, batch, "teacher", key[-1], wanted=())
            return kept[key[-1]]

        def measure(genes: Genes, built: Built) -> dict[str, float]:
            self_reader = Reader(built, self.task, f"candidate {self.students.named(genes)}", self.feature)
            total: dict[str, float] = dict.fromkeys(wanted, 0.0)
            for r in range(repeats):
                own = self.untrained(self_reader, batch, self.students.key(genes), r, wanted=wanted)
                for name in wanted:
                    total[name] += distance(name, own, shown(str(genes), r)) / repeats
            return total

        return measure

    def rate(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """The score of each ``[n]``, the larger the better; what is not finite comes last."""
        values = np.array([[r.values[n] for n in self.scored] for r in records], dtype=np.float64).reshape(
            len(records), -1
        )
        if self.combine == "rank":
            from scipy.stats import rankdata

            values = np.stack([rankdata(np.nan_to_num(v, nan=np.inf)) for v in values.T], 1) / len(records)
        return np.nan_to_num(-values.sum(1), nan=-np.inf, posinf=-np.inf)

    def look(self, ctx: Context) -> dict[str, Any]:
        """Search the space, and keep everything that was seen."""
        began = time.perf_counter()
        batch = self.sample(ctx)
        measure = self.measurer(batch, self.scored, self.repeats)
        rng = ctx.draws.numpy("evolution")
        checked, few = self.variant == "paper", getattr(ctx, "few", None)  # ``limbeck plan`` tries a few

        def candidate(genes: Genes) -> Record | None:
            start = time.perf_counter()
            built = self.students.build(genes, self.setup.seed)
            costs = self.budgets.costs(built)
            if checked and self.budgets.over(costs):
                return None
            return Record(measure(genes, built), costs, time.perf_counter() - start)

        def go_on() -> bool:
            return self.minutes is None or time.perf_counter() - began < 60 * self.minutes

        cycles = self.cycles if few is None else 0
        population = self.population if few is None else few
        found: History[Record]
        if self.search == "evolution":
            found = evolve(
                self.students.members, candidate, self.rate, rng, population=population, tournament=self.tournament, cycles=cycles,
                go_on=go_on, worst=0 if checked else 5,
            )  # fmt: skip
        else:
            most = None if self.search == "all" and few is None else population + cycles
            found = measured(self.students.members.shuffled(rng, most), candidate, go_on)
            found.complete = len(found.members) + found.refused == self.students.members.size
        within = [i for i, (_, r) in enumerate(found.members) if not self.budgets.over(r.costs)]
        if not within:
            limits = ", ".join(f"{n} {v:,.4g}" for n, v in self.budgets.most.items())
            raise DataError(
                "method.space",
                f"none of the {found.refused + len(found.members)} networks that were looked at is within the budgets ({limits})",
                remedy="raise the budgets, or put smaller networks into the space",
            )
        score = self.rate([r for _, r in found.members])
        if not np.isfinite(score[within]).any():
            raise DataError(
                "method.metrics",
                "no network of the space has a finite score: without normalisation layers weights from N(0, 1) overflow",
                given=list(self.scored),
                remedy="set method.init=kaiming",
            )
        best = max(within, key=lambda i: score[i])
        picks = {
            "best": found.members[best][0],
            "random": found.members[within[0]][0],
            "largest": self._largest(found, within),
        }
        seconds = [r.seconds for _, r in found.members]
        return {
            "genes": torch.tensor([g for g, _ in found.members]),
            "score": torch.from_numpy(score),
            "values": {n: torch.tensor([r.values[n] for _, r in found.members]) for n in self.scored},
            "costs": {n: torch.tensor([r.costs[n] for _, r in found.members]) for n in found.members[0][1].costs},
            "picks": {n: torch.tensor(g) for n, g in picks.items()},
            "refused": found.refused,
            "complete": found.complete,
            "seconds": time.perf_counter() - began,
            "each": float(np.mean(seconds)),
        }

    def _largest(self, found: History[Record], within: Sequence[int]) -> Genes:
        """The network with most parameters within the budgets: of all, or of those that a search of its own meets."""
        seen = {g: r.costs["parameters"] for g, r in (found.members[i] for i in within)}
        if not found.complete and "largest" in self.rivals:

            def size(genes: Genes) -> float | None:
                costs = self.budgets.costs(self.students.build(genes, self.setup.seed))
                return None if self.budgets.over(costs) else costs["parameters"]

            rng = np.random.default_rng(key_of(self.setup.seed, "largest"))
            history = evolve(
                self.students.members, size, lambda sizes: np.array(sizes), rng, population=self.population,
                tournament=self.tournament, cycles=min(self.cycles, len(found.members)),
            )  # fmt: skip
            seen |= dict(history.members)
        return max(seen, key=lambda g: seen[g])

    # ------------------------------------------------------------------------------------------------------- the truth
    def try_truly(self, number: int, ctx: Context) -> dict[str, Any]:
        """One network of the space measured, and then distilled as what is found will be."""
        count = min(self.truth, self.students.members.size)
        genes = self.students.members.shuffled(np.random.default_rng(key_of(self.setup.seed, "truth")), count)[number]
        start = time.perf_counter()
        values = self.measurer(self.sample(ctx), self.proxies, self.truth_repeats)(
            genes, self.students.build(genes, self.setup.seed)
        )
        scoring = (time.perf_counter() - start) / self.truth_repeats
        built = self.students.build(genes, self.setup.seed)
        costs = self.budgets.costs(built, every=True)
        start = time.perf_counter()

        def loss(module: nn.Module, batch: Batch, inner: Context) -> Tensor:
            out = Signal(built.contract.outputs(self.task.feed(module, built.contract.feed(batch))))
            terms = self.terms(out, ctx.signal("teacher", batch), batch)
            return torch.stack([t.weight * t.values for t in terms.values()]).sum(0)

        queries = list(ctx.queries.values())
        ctx.fit(built.module, self.task.train, loss, ctx.optim["network"], scope="distil", queries=queries)
        seconds = time.perf_counter() - start
        scores = self.task.evaluate(built, self.task.test, device=self.setup.device)
        return {
            "genes": torch.tensor(genes), "values": values, "costs": costs, "accuracy": float(scores["accuracy"]),
            "training": seconds, "scoring": scoring,
        }  # fmt: skip

    # --------------------------------------------------------------------------------------------------- distillation
    def lay_out(self, ctx: Context) -> None:
        """The network that was found in the student's place."""
        self.found = ctx.artifact("search", "search")
        if self.truth:
            self.trials = [ctx.artifact("truth", item) for item in ctx.items("truth")]
        self._take_place("student", _genes(self.found["picks"]["best"]))
        self._check_projectors()
        self.tell()

    def _check_projectors(self) -> None:
        """Refuse add-ons whose projectors were made for the hand-picked student, where the found one shows other widths.

        Raises:
            ConfigError: the add-on, and what to do with it.
        """
        for name, objective in self.setup.objectives.items():
            if objective.projector not in self.roles:
                continue
            shown = [
                self.dry(who, taps)
                for who, taps in (("student", objective.student_taps), ("teacher", objective.teacher_taps))
            ]
            with torch.random.fork_rng(devices=[]):
                anew = objective.prepare(shown[0], shown[1], self.task.example(2))
            own = self.roles[objective.projector].module.state_dict()
            if anew is None or {k: v.shape for k, v in anew.state_dict().items()} != {
                k: v.shape for k, v in own.items()
            }:
                raise ConfigError(
                    f"objectives.{name}",
                    "its projector was made for the hand-picked student, and the one that was found shows features of other widths",
                    remedy=f"leave it out of the search, and give objectives.{name} to a run of kd whose student has the settings "
                    "that architecture.json tells",
                )

    def lay_out_rival(self, ctx: Context, name: str) -> None:
        """A rival's network in its place."""
        if name != "hand-picked":
            assert self.found is not None
            self._take_place(name, _genes(self.found["picks"][name]))

    def _take_place(self, name: str, genes: Genes) -> None:
        if self.here.get(name) == genes:
            return
        self.here[name] = genes
        built = self.made[name] = self.students.build(genes, self.setup.seed)
        role = self.roles[name]
        paths = role.tap.paths if role.tap is not None else ()
        role.untap()
        role.module, role.contract = built.module, built.contract
        if paths:  # what add-ons look at
            role.want(paths)

    def same(self, name: str) -> bool:
        """Whether a rival is the network that was found: it is not distilled twice."""
        if name == "hand-picked":
            model, found = self.setup.student.model, self.made["student"].model
            try:
                return bool(_plain(node_of(model)) == _plain(node_of(found)))
            except (Mismatch, AttributeError):
                return False
        return self.here[name] == self.here["student"]

    def terms(self, student: Signal, teacher: Signal, batch: Batch) -> Terms:
        """Plain distillation."""
        ce = self.task.supervised(student, batch)
        ce.weight = 1.0 - self.alpha
        if not self.alpha:
            return Terms(ce=ce)
        return Terms(
            ce=ce, kl=Term(F.kl(student.logits, teacher.logits, temperature=self.temperature), weight=self.alpha)
        )

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The student's loss."""
        return self.learn(batch, ctx, "student")

    def learn(self, batch: Batch, ctx: Context, role: str) -> Terms:
        """A network's loss: labels and the teacher's softened answers."""
        terms = self.terms(ctx.signal(role, batch), ctx.signal("teacher", batch), batch)
        for term in terms.values():
            term.to = (role,)
        return terms

    def start_clock(self, ctx: Context) -> None:
        """When the student's training begins."""
        self.clock = time.perf_counter()

    def stop_clock(self, ctx: Context) -> None:
        """How long it took, where it was not interrupted."""
        self.training = None if self.clock is None else time.perf_counter() - self.clock

    # ----------------------------------------------------------------------------------------------------- what is told
    def tell(self) -> None:
        """What is to be said of the search."""
        found = self.found
        assert found is not None
        n = len(found["score"])
        beside = f", {found['refused']} more were outside of the budgets" if found["refused"] else ""
        whole = " (all of it)" if found["complete"] else ""
        best, largest = (_genes(found["picks"][k]) for k in ("best", "largest"))
        self.notes = [
            f"search: {n} networks of a space of {self.students.members.size:,}{whole} measured in {found['seconds']:.2g} s, "
            f"{1e3 * found['each']:.3g} ms each{beside}",
            f"found: {self.students.named(best)}"
            + (", which is also the largest within the budgets" if best == largest else ""),
        ]
        if self.budgets.most and "hand-picked" in self.rivals:
            broken = self.budgets.over(
                self.budgets.costs(
                    replace(self.setup.student, module=copy.deepcopy(self.setup.student.module).to(self.setup.device))
                )
            )
            if broken:
                self.notes.append(f"the hand-picked student is itself beyond the budget of {' and '.join(broken)}")

    def ranks(self) -> dict[str, float]:
        """Kendall's tau of every proxy, and of size, with the accuracy after distillation; empty where none was trained.

        ``partial``: of the score, with the number of parameters held fixed.
        """
        trials = self.trials
        if not trials:
            return {}
        accuracy = [t["accuracy"] for t in trials]
        by: dict[str, list[float]] = {
            "score": self.rate([Record(t["values"], t["costs"]) for t in trials]).tolist(),
            **{n: [-float(t["values"][n]) for t in trials] for n in self.proxies},
            "parameters": [t["costs"]["parameters"] for t in trials],
            "operations": [t["costs"]["operations"] for t in trials],
        }
        return rank_agreement(by, accuracy, "score", "parameters")

    def measures(self) -> dict[str, float]:
        """Kendall's tau of the score, of its parts and of the number of parameters; how much longer training takes."""
        found = {f"tau_{n}": v for n, v in self.ranks().items() if math.isfinite(v)}
        if found:
            each = [sum(t[k] for t in self.trials) / len(self.trials) for k in ("training", "scoring")]
            found["speed_up"] = each[0] / each[1]
        return found

    def artifact(self) -> Artifact:
        """The student that was found, with the table of what it was chosen from."""
        if "student" not in self.made:
            return self.network("student")
        role = self.roles["student"]
        return Architecture(
            self.task, replace(self.made["student"], module=role.module, contract=role.contract), self.told()
        )

    def rows(self) -> dict[str, Artifact]:
        """The rivals."""
        if "student" not in self.made:
            return {}
        found: dict[str, Artifact] = {}
        for name in self.rivals:
            who = "student" if self.same(name) else name
            built = self.setup.student if who == "hand-picked" else self.made[who]
            found[name] = NetworkArtifact(self.task, replace(built, module=self.roles[who].module))
        return found

    def _shown(self) -> Iterator[tuple[str, Genes, float, dict[str, float], dict[str, float]]]:
        """The best of the search: name, genes, score, distances, costs."""
        assert self.found is not None
        for i in torch.argsort(self.found["score"], descending=True, stable=True)[:LARGE].tolist():
            genes = _genes(self.found["genes"][i])
            values, costs = ({n: float(v[i]) for n, v in self.found[k].items()} for k in ("values", "costs"))
            yield self.students.named(genes), genes, float(self.found["score"][i]), values, costs

    def told(self) -> list[dict[str, Any]]:
        """The best networks of the search, and which of them was chosen."""
        best = self.here["student"]
        return [
            {
                "name": name,
                "model": self.students.node(genes),
                "estimate": score,
                "costs": costs,
                "chosen": genes == best,
            }
            for name, genes, score, _, costs in self._shown()
        ]

    def extras(self) -> dict[str, Any]:
        """Tables: what was found, how it ranks, and what it cost."""
        if self.found is None:
            return {}
        rows = [
            [name, f"{score:.4g}", *(f"{v:.4g}" for v in values.values()), *(f"{v:,.4g}" for v in costs.values())]
            for name, _, score, values, costs in self._shown()
        ]
        costs = list(self.found["costs"])
        tables = [
            {"title": f"The best of {len(self.found['score'])} networks by the score of untrained ones",
             "head": ["network", "score", *self.scored, *costs], "rows": rows}
        ]  # fmt: skip
        ranks, training = self.ranks(), self.training
        if ranks:
            label = {"partial": "score, parameters held fixed", "score": f"score ({' + '.join(self.scored)})"}
            tables.append(
                {"title": f"Kendall's tau with the accuracy after distillation, {len(self.trials)} networks trained here",
                 "head": ["ranked by", "tau"], "rows": [[label.get(n, n), f"{v:.2f}"] for n, v in ranks.items()]}
            )  # fmt: skip
            tables.append(
                {"title": "Networks trained to rank the score", "head": ["network", "parameters", *self.proxies, "accuracy"],
                 "rows": [[self.students.named(_genes(t["genes"])), f"{t['costs']['parameters']:,.0f}",
                           *(f"{t['values'][n]:.4g}" for n in self.proxies), f"{t['accuracy']:.4f}"]
                          for t in sorted(self.trials, key=lambda t: -t["accuracy"])]}
            )  # fmt: skip
        cost = [
            ["search, all networks", f"{self.found['seconds']:.3g}"],
            ["search, one network", f"{self.found['each']:.3g}"],
        ]
        if ranks:
            training = sum(t["training"] for t in self.trials) / len(self.trials)
            cost[1][1] = f"{sum(t['scoring'] for t in self.trials) / len(self.trials):.3g}"
        if training is not None:
            each = float(cost[1][1])
            cost += [
                ["training one network", f"{training:.3g}"],
                ["training over measuring one", f"{training / each:.3g} times"],
            ]
        tables.append({"title": "Seconds", "head": ["of", "seconds"], "rows": cost})
        return {"tables": tables, "architectures": self.told()}


def _genes(given: Tensor) -> Genes:
    return tuple(int(g) for g in given.tolist())


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", {k: v for k, v in node.items() if v is not None})
