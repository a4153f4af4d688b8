"""KD3: a student from web images, of which every epoch keeps those that teacher and student together are sure of.

    p = (1 - beta) softmax(z_t) + beta softmax(z_s),   c = max_k p_k,   W_e = the items that a rule keeps by c
    L = (1/B) sum_n w_n tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau))   distillation, z_s = h(P(f_s))
      + a (1/B) sum_n w_n || P(f_s) - f_t ||^2 / D_t                         weighted alignment, w = c / mean c
      + b (1/B) sum_n -log exp(q_n k_n / t) / sum_m exp(q_n k_m / t)         q, k = g(f_s) of x and of x~, of length 1
    x~ = sigma~ (x - mu) / sigma + mu~,   mu~ and sigma~ mixed from the channel statistics of several items

f_s, f_t: last features [B, Ds], [B, Dt];  P: projector;  h: the teacher's classifier [C, Dt], which stands still
beta: the student's share, 0 in the first epoch;  g: an embedding head, dropped at the end
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.artifacts.chain import ChainArtifact
from limbeck.data.unlabelled import Unlabelled
from limbeck.errors import ConfigError
from limbeck.functional.contrast import channel_statistics, info_nce, mix_distribution
from limbeck.functional.feature import feature_distance
from limbeck.functional.selection import Score, confidence_weights, select, student_share
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Gather, Gathered, Method, Setup, Share, Stage, Term, Terms
from limbeck.grammar.needs import Needs
from limbeck.grammar.settings import Fraction, NonNegative, Positive, settings
from limbeck.grammar.signal import Signal, module_at
from limbeck.grammar.task import Task
from limbeck.models.chain import LinkSettings
from limbeck.models.linear import LinearModel
from limbeck.networks.shows import last_linear
from limbeck.parts.heads import copied_head
from limbeck.parts.pool import shown_images
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=47,
    slug="kd3",
    title="Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
    year=2023,
    venue="ICCV",
    arxiv="2307.11469",
    family="classification",
    methods={"kd3": "Kd3"},
    optimised="the student's weights and a projector",
    signals=("logits", "features"),
    provenance={
        "selection by both networks, shared classifier, weighted features, contrast with mixed distributions": "abstract, "
        "introduction and a public summary; no code was published",
        "schedule of beta, rules, weights": "reconstructed",
        "MixDistribution": "reconstructed as mixed channel statistics (MixStyle's code, there with probability 1/2)",
        "contrast": "InfoNCE within the batch, both directions; reconstructed",
    },
    claim="From a pool of relevant, shifted and irrelevant images, KD3's student is more accurate than one distilled on the "
    "whole pool, and that one than one distilled on a random part of the selection's size; the selection holds a larger share "
    "of relevant images than the pool.",
    recipe="kd3",
    at_equality={"kd": "value", "align": "value", "contrast": "it compares the student with itself"},
    exceptions={
        "moves": "the student's own classifier is cut off: its features go to the teacher's",
        "at_equality": "networks of other widths have a new projector in between; its own tests look at equal ones",
        "batch_of_one": "the contrast tells the items of a batch apart, and one alone is refused",
    },
    notes="The recipe names the pool: task.unlabelled=folder:PATH. No label of it is used; where its classes are called as the "
    "task's, the report says how many of the selected items belong to them.",
)

HELD = 512 * 2**20
"""Bytes of teacher's features that are kept at hand; of a larger pool the teacher is asked again."""

EARLY = ("layer1", "stages.0", "blocks.0", "block1", "features.0")
"""Where an early feature map is looked for."""


@settings
class Kd3(Method[Classification]):
    """Distillation on a foreign pool, of which it selects.

    Args:
        selection: who says what is kept: ``both``, the ``teacher`` alone, ``random`` (``ratio`` of the pool, the same in
            every epoch), or ``none`` (all of it).
        rule: ``threshold`` keeps items by their score, ``topk`` the best ``ratio`` of the pool, ``topk_per_class`` the best
            ``per_class`` of every class that is named.
        threshold: the least score.
        ratio: the share of the pool that ``topk`` keeps.
        per_class: how many items of each class ``topk_per_class`` keeps.
        require_agreement: drop items for which the two networks name different classes.
        score: ``msp`` (the largest probability), ``energy`` or ``entropy``; weights are by ``msp`` always.
        beta: the student's share in the combined prediction at last.
        ramp: after which part of training it has it.
        pool_share: the share of the pool that is used at all, drawn by the seed.
        classifier: ``shared`` is the teacher's, standing still; ``init`` begins with it and learns; ``own`` is the student's.
        student_classifier, teacher_classifier: the linear layer whose input is the feature; ``null`` takes the last one.
        projector: ``linear``, or ``norm`` (with batch normalisation); features of one width need none.
        temperature: of the distillation.
        kd: weight of the distillation; 0 leaves it out.
        align: weight of the alignment of features.
        weighted: weigh distillation and alignment by confidence.
        normalise_weights: divide the weights by their mean over the batch.
        contrast: weight of the comparison with views of a mixed distribution.
        invariance: compare by ``contrast``, or by plain ``consistency`` (1 - cosine).
        contrast_temperature: of the contrast.
        symmetric: average both directions of the contrast.
        mix: mix the statistics of the ``image``, of an early ``feature`` map, or ``off``, which leaves the contrast out.
        mix_at: the module whose output is that map.
        mix_alpha: of the Beta (or Dirichlet) distribution of the shares.
        ways: how many items are mixed, the item itself included.
    """

    takes_unlabelled = "own"

    selection: Literal["both", "teacher", "random", "none"] = "both"
    rule: Literal["threshold", "topk", "topk_per_class"] = "threshold"
    threshold: float = 0.9
    ratio: Fraction = 0.5
    per_class: Annotated[int, Ge(1)] = 100
    require_agreement: bool = False
    score: Score = "msp"
    beta: Fraction = 0.5
    ramp: Fraction = 0.5
    pool_share: Fraction = 1.0
    classifier: Literal["shared", "init", "own"] = "shared"
    student_classifier: str | None = None
    teacher_classifier: str | None = None
    projector: Literal["linear", "norm"] = "linear"
    temperature: Positive = 4.0
    kd: NonNegative = 1.0
    align: NonNegative = 1.0
    weighted: bool = True
    normalise_weights: bool = True
    contrast: NonNegative = 0.1
    invariance: Literal["contrast", "consistency"] = "contrast"
    contrast_temperature: Positive = 0.1
    symmetric: bool = True
    mix: Literal["image", "feature", "off"] = "image"
    mix_at: str | None = None
    mix_alpha: Positive = 0.1
    ways: Annotated[int, Ge(2)] = 2

    def validate(self) -> None:
        """What is delivered must be taught something."""
        if not self.kd and (self.classifier == "own" or not self.align):
            raise ValueError("kd must be above 0: nothing else teaches what is delivered")
        if self.mix_at and self.mix != "feature":
            raise ValueError("mix_at names a feature map: set mix to feature")
        if self.score != "energy" and not 0 <= self.threshold <= 1:
            raise ValueError("threshold must lie in [0, 1], but for score=energy")
        for name in ("ratio", "pool_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        self.contrasts = bool(self.contrast) and self.mix != "off"

    def accept(self, task: Task) -> None:
        """Items have one class each, and there is a pool."""
        super().accept(task)
        one_label(self, task)
        assert isinstance(task, Classification)
        if task.unlabelled_items is None:
            raise ConfigError(
                "task.unlabelled",
                "KD3 learns from a pool of items without labels",
                given=None,
                expected="a second source",
                remedy="name it: task.unlabelled=folder:PATH",
            )
        if self.contrasts and self.mix == "image" and (len(task.shape) != 3 or math.prod(task.shape[1:]) < 2):
            raise ConfigError(
                "method.mix",
                "only images have statistics of channels",
                given=f"items {list(task.shape)}",
                remedy="set method.mix=off",
            )

    # ------------------------------------------------------------------------------------------------ networks
    def bind(self, setup: Setup) -> None:
        """Take the networks; make the projector, the copied classifier and the embedding head by a dry pass."""
        super().bind(setup)
        pool, teacher = self.task.unlabelled_items, setup.teacher
        assert pool is not None and teacher is not None
        self.pool: Unlabelled = pool.share(self.pool_share, setup.seed)
        if self.contrasts and self.invariance == "contrast" and setup.train.batch_size < 2:
            raise ConfigError("train.batch_size", given=1, expected="2 or more, which the contrast tells apart")
        s_at = self._linear("student", setup.student, self.student_classifier)
        t_at = self._linear("teacher", teacher, self.teacher_classifier)
        self.s_tap, self.t_tap = f"{s_at}:in", f"{t_at}:in"
        self.teacher_taps = (self.t_tap,)
        shown = self.dry("student", [self.s_tap])
        self.widths = tuple(
            self._width(name, act)
            for name, act in (
                ("student", shown.acts[self.s_tap]),
                ("teacher", self.dry("teacher", [self.t_tap]).acts[self.t_tap]),
            )
        )
        head = set(module_at(setup.student.module, s_at).parameters())
        if self.classifier != "own" and not any(
            p.requires_grad and p not in head for p in setup.student.module.parameters()
        ):
            raise ConfigError(
                "student",
                "nothing learns before its classifier",
                expected="a backbone",
                remedy="set method.classifier=own",
            )
        d_s, d_t = self.widths
        learners = ["student"]
        if d_s != d_t and (self.classifier != "own" or self.align):
            self.project = LinearModel(norm=self.projector == "norm")
            self.new("projector", lambda: self.project.make(Needs((d_s,), d_t, "vector")))
            learners.append("projector")
        if self.classifier != "own":
            self.new("classifier", lambda: copied_head(teacher, t_at, self.task.outputs, "method.teacher_classifier"))
            learners += ["classifier"] if self.classifier == "init" else []
        if self.contrasts:
            self.new("embed", lambda: nn.Sequential(nn.Linear(d_s, d_s), nn.ReLU(), nn.Linear(d_s, 128)))
            learners.append("embed")
        self.learners = tuple(learners)
        self.student_taps = (self.s_tap, *self._map(setup.student.module))
        self.state = {
            "kept": torch.arange(len(self.pool)),
            "confidence": torch.ones(len(self.pool)),
            "seen": {},
        }

    def _linear(self, role: str, built: Built, named: str | None) -> str:
        """The name of a network's classifier, which must be a linear layer."""
        setting = f"method.{role}_classifier"
        module = built.module
        if hasattr(type(module), "answer") or not isinstance(module, nn.Module):
            raise ConfigError(
                role, f"KD3 reads the {role}'s features", given="answers alone", expected="a network at hand"
            )
        try:
            path = named or last_linear(module).removesuffix(":in")
        except ConfigError:
            raise ConfigError(
                setting,
                f"the {role} has no linear layer",
                expected="a classifier that is one",
                remedy="take another network",
            ) from None
        layer = module_at(module, path)
        if not isinstance(layer, nn.Linear):
            linears = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
            raise ConfigError(
                setting,
                "only a linear layer can be shared",
                given=f"{path}, a {type(layer).__name__}",
                expected=f"one of {', '.join(linears[-5:]) or 'none'}",
            )
        return path

    def _width(self, role: str, act: Tensor) -> int:
        if act.ndim != 2:
            raise ConfigError(
                f"method.{role}_classifier",
                "its input is no row of features an item",
                given=list(act.shape),
                expected="[N, D]: the last layer after pooling",
                remedy=f"name it: method.{role}_classifier=NAME",
            )
        return act.shape[1]

    def _map(self, student: nn.Module) -> tuple[str, ...]:
        """The module whose map is mixed, where one is."""
        if not self.contrasts or self.mix != "feature":
            return ()
        names = dict(student.named_modules())
        path = self.mix_at or next((n for n in EARLY if n in names), "")
        if not path:
            raise ConfigError(
                "method.mix_at", "no early feature map was found", remedy="name a module: method.mix_at=layer1"
            )
        act = self.dry("student", [path]).acts[path]
        if act.ndim != 4 or act[0, 0].numel() < 2:
            raise ConfigError(
                "method.mix_at",
                given=f"{path}, which shows {list(act.shape)}",
                expected="maps [N, C, H, W] of 2 pixels or more",
            )
        return (path,)

    # ------------------------------------------------------------------------------------------------ the pool
    def stages(self) -> list[Stage]:
        """What the teacher says of the pool, once; then training on what each epoch selects."""
        train = self.setup.train
        answers = Stage(
            "answers",
            data=self.pool,
            record=self.answer,
            batch_size=256,
            remember=["kd3", self.t_tap],
            roles=["teacher"],
            judged=False,
        )
        distil = Stage(
            "distil",
            steps=train.steps,
            data=self.pool,
            batch_size=train.batch_size,
            optim=dict.fromkeys(self.learners, train),
            setup=self.open,
            every={"epoch": self.look},
            choose=lambda ctx: self.state["kept"],
        )
        return [answers, distil]

    def answer(self, batch: Batch, ctx: Context) -> Mapping[str, Tensor]:
        """The teacher's logits [n, C] and features [n, Dt]."""
        teacher = ctx.signal("teacher", batch, self.teacher_taps)
        return {"z": teacher.logits.float(), "f": teacher.acts[self.t_tap].float()}

    def open(self, ctx: Context) -> None:
        """Have what the teacher said at hand; its features as far as they fit."""
        rows = ctx.recorded("answers")
        parts = [rows.fetch(ids) for ids in torch.arange(len(self.pool)).split(4096)]
        self.z_t = torch.cat([p["z"] for p in parts]).to(ctx.device)
        fits = 4 * len(self.pool) * self.widths[1] <= HELD
        # augmented views are other images than those that the teacher was asked about
        self.f_t = torch.cat([p["f"] for p in parts]).to(ctx.device) if fits and not self.setup.queries else None

    def look(self, ctx: Context) -> None:
        """Select what the epoch that begins goes through, from views without augmentation."""
        share = (
            student_share(ctx.step, ctx.total, most=self.beta, ramp=self.ramp) if self.selection != "teacher" else 0.0
        )
        z_s = None
        if share or self.require_agreement:
            with torch.no_grad():
                shown = [self.logits(ctx.signal("student", b, (self.s_tap,)), ctx) for b in ctx.over(self.pool)]
            z_s = torch.cat([z for _, z in shown]).float()
        asked = self.selection in ("both", "teacher")
        found = select(
            self.z_t,
            z_s,
            beta=float(share),
            rule=self.rule if asked else "all",
            threshold=self.threshold,
            ratio=self.ratio,
            per_class=self.per_class,
            require_agreement=asked and self.require_agreement,
            score=self.score,
        )
        kept = found.kept.nonzero()[:, 0].cpu()
        if self.selection == "random":
            count = math.ceil(self.ratio * len(self.pool))
            kept = ctx.draws.anywhere().permutation("random selection", len(self.pool))[:count].sort().values
        classes = found.classes.cpu()
        if len(kept) < 2 or len(classes[kept].unique()) < 2:
            raise self._too_few(kept, len(classes[kept].unique()), found.score.cpu())
        self.state["kept"], self.state["confidence"] = kept, found.confidence.float()
        seen = {"selected": len(kept) / len(self.pool), "confidence": found.confidence.cpu()[kept].mean().item()}
        seen["selected_classes"] = float(len(classes[kept].unique()))
        if z_s is not None:
            seen["teacher_agreement"] = (z_s.argmax(1) == self.z_t.argmax(1)).double().mean().item()
        truth = self.pool.truth
        if truth is not None:
            mine = truth >= 0
            seen["pool_purity"], seen["purity"] = mine.double().mean().item(), mine[kept].double().mean().item()
            if bool(mine[kept].any()):
                right = classes[kept] == truth[kept]
                seen["relevant_named_right"] = right[mine[kept]].double().mean().item()
        self.state["seen"] = seen

    def _too_few(self, kept: Tensor, classes: int, score: Tensor) -> ConfigError:
        """What cannot be learnt from, with how sure the networks are."""
        at = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.double)
        values = (
            score.double()[torch.linspace(0, len(score) - 1, min(len(score), 100_000)).long()].quantile(at).tolist()
        )
        told = ", ".join(f"{q:.0%} below {v:.3g}" for q, v in zip(at.tolist(), values, strict=True))
        setting = {"threshold": "threshold", "topk": "ratio", "topk_per_class": "per_class"}[self.rule]
        return ConfigError(
            "method.ratio" if self.selection == "random" else f"method.{setting}",
            f"of {len(score)} items of the pool {len(kept)} are selected, of {classes} {'class' if classes == 1 else 'classes'} "
            f"(scores of the pool: {told})",
            given=self.ratio if self.selection == "random" else getattr(self, setting),
            expected="items of two classes or more",
            remedy=f"method.threshold={values[2]:.3g} keeps half of the pool; or take the best of each class: "
            "method.rule=topk_per_class",
        )

    # ------------------------------------------------------------------------------------------------ a step
    def logits(self, student: Signal, ctx: Context) -> tuple[Tensor, Tensor]:
        """P(f_s) [n, Dt], or f_s where nothing projects it, and z_s [n, C]."""
        f_s = student.acts[self.s_tap]
        p = ctx.call("projector", f_s) if "projector" in self.roles else f_s
        if self.classifier == "own":
            return p, student.logits
        return p, ctx.call("classifier", p, grad=True)  # it stands still, and lets the gradient through

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
        """Distillation and alignment, weighted; then the comparison with a view of a mixed distribution."""
        student = ctx.signal("student", batch, self.student_taps)
        p, z_s = self.logits(student, ctx)
        if self.f_t is None:
            teacher = ctx.signal("teacher", batch, self.teacher_taps)
            z_t, f_t = teacher.logits, teacher.acts[self.t_tap]  # [N, C], [N, Dt]
        else:
            z_t, f_t = self.z_t[batch["item"]], self.f_t[batch["item"]]
        w = torch.ones(len(z_s), device=z_s.device)
        if self.weighted:
            self.state["confidence"] = self.state["confidence"].to(ctx.device)  # a copy after resuming alone
            c = self.state["confidence"][batch["item"]]  # [N]
            mean = None
            if self.normalise_weights:
                sums: Any = yield Share(c=c.sum(), n=torch.tensor(float(len(c)), device=c.device))
                mean = sums["c"] / sums["n"]
            w = confidence_weights(c, mean)
        to = tuple(n for n in ("student", "projector", "classifier") if n in self.learners)
        terms = {}
        if self.kd:
            mine = tuple(n for n in to if self.classifier != "own" or n == "student")
            terms["kd"] = Term(w * F.kl(z_s, z_t, temperature=self.temperature), mine, weight=self.kd)
        if self.align:
            terms["align"] = Term(w * feature_distance(p, f_t), to[: 1 + ("projector" in to)], weight=self.align)
        if self.contrasts:
            x = batch["x"] if self.mix == "image" else student.acts[self.student_taps[1]]
            mu, sigma = channel_statistics(x)
            everyone: Any = yield Gather(mu=mu, sigma=sigma)
            k = self.mixed(batch, everyone, ctx).acts[self.s_tap]
            ctx.signals["student"] = student  # add-ons see the clean view
            q, k = ctx.call("embed", student.acts[self.s_tap]), ctx.call("embed", k)  # [N, 128]
            if self.invariance == "consistency":
                values = feature_distance(q, k, metric="cosine")
            else:
                rows: Any = yield Gather(q=q, k=k)
                t, own = self.contrast_temperature, rows.numbers("q")
                values = info_nce(q, rows["k"], own, temperature=t)
                if self.symmetric:
                    values = (values + info_nce(k, rows["q"], own, temperature=t)) / 2
            terms["contrast"] = Term(values, ("student", "embed"), weight=self.contrast)
        yield Terms({}, **terms)

    def mixed(self, batch: Batch, everyone: Gathered, ctx: Context) -> Signal:
        """The student's view of the batch with mixed statistics; ``everyone``: those of the whole batch [B, C]."""
        own, n = everyone.numbers("mu"), len(everyone["mu"])
        others = [ctx.draws.permutation(f"partner {i}", n).to(own.device)[own] for i in range(1, self.ways)]
        members = torch.stack([own, *others], 1)  # [N, ways]
        drawn = ctx.draws.numpy("shares").dirichlet([self.mix_alpha] * self.ways, n)
        shares = torch.from_numpy(drawn).float().to(own.device)[own]
        statistics = (everyone["mu"], everyone["sigma"])
        if self.mix == "image":
            view = {**batch, "x": mix_distribution(batch["x"], shares, members, statistics)}
            return ctx.signal("student", view, self.student_taps)

        def change(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
            return mix_distribution(out, shares, members, statistics)

        handle = module_at(self.roles["student"].module, self.student_taps[1]).register_forward_hook(change)
        try:
            return ctx.signal("student", batch, (self.s_tap,))
        finally:
            handle.remove()

    # ------------------------------------------------------------------------------------------------ what is made
    def measures(self) -> dict[str, float]:
        """The selection: its share of the pool, its confidence, and its purity where the pool's classes are known."""
        return dict(self.state["seen"])

    def artifact(self) -> Artifact:
        """Backbone, projector and classifier as one network."""
        if self.classifier == "own":
            return self.network("student")
        student, (d_s, d_t) = self.setup.student, self.widths
        links = {"backbone": (student, LinkSettings(student.model, until=self.s_tap))}
        if "projector" in self.roles:
            made = Built(self.roles["projector"].module, model=self.project)
            links["projector"] = (made, LinkSettings(self.project, inputs=[d_s], outputs=d_t, form="vector"))
        head = LinearModel()
        made = Built(self.roles["classifier"].module, model=head, labels=self.task.labels)
        links["classifier"] = (made, LinkSettings(head, inputs=[d_t]))
        contract = student.contract.with_(classes=None, width=None)
        return ChainArtifact(self.task, replace(student, contract=contract, labels=self.task.labels), links)

    def extras(self) -> dict[str, Any]:
        """Images of what is kept and of what is not, the surest first, and how many of each class are kept."""
        kept = self.state["kept"].cpu()
        confidence = self.state["confidence"].cpu()
        out = torch.ones(len(confidence), dtype=torch.bool)
        out[kept] = False
        rows = []
        for ids in (kept, out.nonzero()[:, 0]):
            best = ids[confidence[ids].sort(descending=True, stable=True).indices[:24]]
            rows.append(shown_images(self.pool, best))
        rows = [row for row in rows if row]
        if not rows:
            return {}
        caption = "Upper row: the surest items of the last epoch's selection" + (
            "; lower row: the surest of those that were left out." if len(rows) > 1 else "; nothing was left out."
        )
        seen = self.state["seen"]
        if "purity" in seen:
            caption += (
                f" Of the selected items {seen['purity']:.0%} are of the task's classes, of the whole pool "
                f"{seen['pool_purity']:.0%}."
            )
        return {"pictures": [{"title": "What was selected of the pool", "caption": caption, "pixels": rows}]}
