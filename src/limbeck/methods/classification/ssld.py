"""SSLD: a student that learns from a teacher's probabilities alone, on its own images and on others without any labels.

    L = (1/N) sum_n [ KL(q_n || p_n) + KL(p_n || q_n) ] / 2,     p = softmax(z_s / T),  q = softmax(z_t / T)

The paper calls L a JS divergence. It is half of Jeffreys' divergence; the true Jensen-Shannon divergence is ``loss=jsd``.

1. Mining: the pool without near-duplicates of the validation and test images; of the rest the k images per class that
   the teacher is most certain of.
2. Stage 1: L on the task's own images and on the mined ones. Stage 2: L on the own images alone, lr divided by 100.
3. Optional: only the last linear layer learns, on images without augmentation ("Fix").

z_s, z_t: logits of student and teacher [N, C]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.data.unlabelled import overlap
from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.functional.selection import best_per_class
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.settings import Count, NonNegative, Positive, settings
from limbeck.grammar.signal import module_at
from limbeck.grammar.task import Task
from limbeck.networks.shows import last_linear
from limbeck.parts.pool import Inputs, batch_statistics, nearest_cosine, normalising, shown_images
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=11,
    slug="ssld",
    title="Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
    year=2021,
    arxiv="2103.05959",
    repository="PaddlePaddle/PaddleClas",
    licence="Apache-2.0",
    family="classification",
    methods={"ssld": "Ssld"},
    optimised="the student's weights",
    signals=("logits",),
    provenance={
        "loss, two stages, lr / 100, top-k per class": "paper and released code",
        "eps, the sum over classes": "released code: loss=js with method.eps=1e-10 (later 1e-12), method.times_classes",
        "teacher's BatchNorm": "released code and its documentation: batch statistics; there they also drift, here they do not",
        "near-duplicates": "the paper matches SIFT keypoints; cosine similarity of the teacher's features is ours",
        "rank=similarity": "ours",
        "Fix": "paper; there at a higher resolution, here at the task's",
    },
    claim="Distillation without labels on the student's own and on unlabelled images is more accurate than without the unlabelled "
    "images, and that is no worse than the student alone with labels.",
    recipe="ssld",
    at_equality={"js": "value"},
    notes="No label is read, unless method.label is above 0. Name the pool: task.unlabelled=folder:PATH; without one the student "
    "learns from its own images. Learning rates per layer, for using the result as a backbone, are train.groups.",
)

Loss = Literal["js", "soft_ce", "kl", "jsd"]


@settings
class Ssld(Method[Classification]):
    """Distillation without labels, on own and mined images, in two stages or three.

    Args:
        loss: ``js`` (half of KL in both directions, the paper's), ``soft_ce`` (cross-entropy to the teacher's
            probabilities), ``kl`` (teacher to student), or ``jsd`` (the true Jensen-Shannon divergence).
        temperature: of both distributions.
        eps: added to both sides of the ratios in ``js``, as in the released code (1e-10); 0 is exact.
        times_classes: multiply the loss by the number of classes, as a later option of the released code does.
        label: weight of the cross-entropy to labels, for comparisons; it cannot be used with an unlabelled pool.
        teacher_bn: ``train`` lets the teacher's BatchNorm normalise by the batch, ``eval`` by its running statistics.
            These are never changed.
        per_class: how many images of each class are kept of the pool; ``null`` keeps all.
        rank: which images are kept: those with the highest ``score`` (the teacher's probability), or the highest
            ``similarity`` (cosine of their feature to the mean feature of the own images that the teacher puts in that class).
        duplicates: how images of the pool that are nearly validation or test images are found: by the teacher's
            ``features``, less their mean, or by ``pixels``, less each image's mean; ``keep`` removes none.
        duplicate_from: the cosine similarity from which an image counts as a duplicate. At 0.99 small networks also lose a few
            per cent of images that are merely alike.
        features: the teacher's module whose output is the feature; ``null`` takes the input of its last linear layer.
        finetune: share of ``train.steps`` for stage 2; 0 leaves it out.
        fix: share of ``train.steps`` for the last stage, in which only the last linear layer learns; 0 leaves it out.
        lr_divisor: what stage 2 and the last stage divide ``train.lr`` by.
    """

    takes_unlabelled = "own"

    loss: Loss = "js"
    temperature: Positive = 1.0
    eps: NonNegative = 0.0
    times_classes: bool = False
    label: NonNegative = 0.0
    teacher_bn: Literal["train", "eval"] = "train"
    per_class: Count | None = None
    rank: Literal["score", "similarity"] = "score"
    duplicates: Literal["features", "pixels", "keep"] = "features"
    duplicate_from: Annotated[float, Gt(0), Lt(1)] = 0.99
    features: str | None = None
    finetune: Annotated[float, Ge(0), Lt(1)] = 1 / 12
    fix: Annotated[float, Ge(0), Lt(1)] = 0.0
    lr_divisor: Positive = 100.0

    def validate(self) -> None:
        """Stages 2 and 3 leave something to stage 1; ``eps`` belongs to ``js``."""
        if self.finetune + self.fix >= 1:
            raise ValueError("finetune and fix must leave a share of train.steps to stage 1: together below 1")
        if self.eps and self.loss != "js":
            raise ValueError(f"eps is used by loss=js only, and loss is {self.loss}")

    def accept(self, task: Task) -> None:
        """Items have one class each; a pool is large enough and has no labels to learn from."""
        super().accept(task)
        one_label(self, task)
        assert isinstance(task, Classification)
        pool = task.unlabelled_items
        if pool is None:
            return
        if self.label:
            raise ConfigError(
                "method.label",
                "images of the pool have no labels",
                given=self.label,
                expected="0 where task.unlabelled is set",
                remedy="set method.label=0, or task.unlabelled=null",
            )
        if self.per_class is not None and self.per_class > len(pool):
            raise ConfigError(
                "method.per_class",
                given=self.per_class,
                expected=f"at most the {len(pool)} images of the pool",
                remedy="take fewer, or all with method.per_class=null",
            )

    # ------------------------------------------------------------------------------------------------ networks
    def bind(self, setup: Setup) -> None:
        """Take the networks; find the teacher's feature and the student's last layer; look at the teacher's outputs."""
        super().bind(setup)
        pool, teacher, task = self.task.unlabelled_items, self.roles["teacher"].module, self.task
        self.pool = pool
        own = len(task.train)
        self.tap = ""
        asks = hasattr(type(teacher), "answer")
        if asks and pool is not None:
            raise ConfigError(
                "teacher",
                "SSLD asks the teacher about images of the pool",
                given="recorded answers",
                expected="a network at hand",
            )
        if pool is not None and (self.duplicates == "features" or self.rank == "similarity"):
            self.tap = self._tap(teacher)
        if self.teacher_bn == "train" and normalising(teacher):
            self.coupled = "the teacher's BatchNorm normalises each part of the batch by itself"
            if setup.train.batch_size < 2:
                raise ConfigError(
                    "train.batch_size",
                    "the teacher's BatchNorm has a single image to normalise",
                    given=1,
                    expected="2 or more",
                    remedy="set method.teacher_bn=eval",
                )
        if not asks:
            self.checked(self.dry("teacher", items=min(8, own)).logits)
        self.head = self._head(setup.student.module) if self.fix else ""
        if pool is None:
            self.images: Any = task.train
        else:
            self.images = Inputs(task.train, pool)  # the own images first; no labels
        self.state = {"ids": torch.arange(len(self.images)), "removed": torch.zeros(0, dtype=torch.int64), "seen": {}}
        self.notes = self._warnings()

    def _tap(self, teacher: nn.Module) -> str:
        """The feature by which images are compared: a tap of the teacher."""
        if self.features is not None:
            module_at(teacher, self.features.removesuffix(":in"))
            return self.features
        try:
            return last_linear(teacher)
        except ConfigError:
            raise ConfigError(
                "method.features",
                "the teacher has no linear layer whose input could be the feature",
                remedy="name a module: method.features=layer4; or set method.duplicates=pixels",
            ) from None

    def _head(self, student: Any) -> str:
        """The student's last linear layer, which the last stage trains."""
        try:
            return last_linear(student).removesuffix(":in")
        except ConfigError:
            raise ConfigError(
                "method.fix", "the student has no linear layer", given=self.fix, remedy="set method.fix=0"
            ) from None

    def checked(self, z: Tensor) -> Tensor:
        """The teacher's logits [n, C], as given.

        Raises:
            TeacherMismatch: they are not finite, or are probabilities already.
        """
        if not bool(z.isfinite().all()):
            raise TeacherMismatch(
                "teacher",
                f"its answers are not finite (NaN or infinity) on {int((~z.isfinite()).any(-1).sum())} of {len(z)} images",
                expected="finite logits",
                remedy="check its weights and inputs; float16 weights overflow: load it in float32",
            )
        if z.shape[-1] > 1 and bool((z >= 0).all()) and bool(((z.sum(-1) - 1).abs() < 1e-3).all()):
            raise TeacherMismatch(
                "teacher",
                "its outputs are probabilities: they lie in [0, 1] and sum to 1",
                expected="logits, of which SSLD takes the softmax itself",
                remedy="leave out the teacher's last softmax",
            )
        return z

    def _warnings(self) -> list[str]:
        """What is probably not meant."""
        said = []
        if (self.finetune or self.fix) and self.lr_divisor <= 1:
            said.append(
                f"method.lr_divisor={self.lr_divisor:g}: stage 2 does not lower the learning rate; the paper divides it by 100"
            )
        if self.pool is not None and self.duplicates == "keep":
            for name, items in (("validation", self.task.valid), ("test", self.task.test)):
                same = overlap(self.pool, items)
                if same:
                    said.append(
                        f"the pool holds {same} {name} images, to the last pixel, and method.duplicates=keep leaves them in"
                    )
        return said

    # ------------------------------------------------------------------------------------------------ stages
    def stages(self) -> list[Stage]:
        """Mining, where there is a pool; training on everything; on the own images; the last layer."""
        train, own = self.setup.train, self.task.train
        second, third = (max(1, round(s * train.steps)) if s else 0 for s in (self.finetune, self.fix))
        second = min(second, max(0, train.steps - 1))
        third = min(third, max(0, train.steps - 1 - second))
        first = train.steps - second - third
        found = []
        if self.pool is not None:
            found.append(
                Stage(
                    "mine",
                    data=Inputs(self.pool, self.task.valid, self.task.test, own),
                    record=self.look,
                    batch_size=256,
                    remember=["ssld", self.tap],
                    roles=["teacher"],
                    judged=False,
                )
            )
        everything = Stage(
            "everything",
            steps=first,
            data=self.images,
            batch_size=train.batch_size,
            optim={"student": train.with_(steps=first, warmup=min(train.warmup, first))},
        )
        if self.pool is not None:
            everything.begin, everything.choose = self.mine, lambda ctx: self.state["ids"]
        found.append(everything)
        for name, steps, more in (
            ("own", second, {}),
            ("fix", third, {"only": [f"{self.head}.*" if self.head else "*"]}),
        ):
            if steps:
                optim = train.with_(
                    steps=steps,
                    lr=train.lr / self.lr_divisor,
                    floor=train.floor / self.lr_divisor,
                    warmup=min(steps, round(train.warmup * steps / train.steps)),
                    groups={p: self._lowered(given) for p, given in train.groups.items()},
                    **more,
                )
                found.append(
                    Stage(
                        name,
                        steps=steps,
                        data=own,
                        batch_size=train.batch_size,
                        optim={"student": optim},
                        augmented=name == "own",
                    )
                )
        return found

    def _lowered(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A group's settings with its own learning rate divided too; ``x10`` follows by itself."""
        lr = given.get("lr")
        return {**given, "lr": lr / self.lr_divisor} if isinstance(lr, int | float) else dict(given)

    def look(self, batch: Batch, ctx: Context) -> Mapping[str, Tensor]:
        """The teacher's class and its probability [n], and the feature [n, D], of unaugmented images."""
        shown = ctx.signal("teacher", batch, (self.tap,) if self.tap else ())
        score, named = self.checked(shown.logits).float().softmax(-1).max(-1)
        rows = {"score": score, "class": named}
        if self.tap:
            f = shown.acts[self.tap].float()
            rows["f"] = f.flatten(2).mean(-1) if f.ndim > 2 else f  # maps are averaged over their places
        return rows

    def mine(self, ctx: Context) -> None:
        """Remove near-duplicates of validation and test images from the pool, and keep the best of each class."""
        assert self.pool is not None
        rows, n, own = ctx.recorded("mine"), len(self.pool), len(self.task.train)
        held = torch.arange(n, n + len(self.task.valid) + len(self.task.test))
        parts = [rows.fetch(ids) for ids in torch.arange(n).split(4096)]
        score, named = (torch.cat([p[k] for p in parts]).cpu() for k in ("score", "class"))
        nearest = torch.full((n,), -1.0)
        if self.duplicates == "features":
            kept = rows.fetch(held)["f"].float()
            mean = kept.mean(0)  # features behind a ReLU all point the same way: without their mean they differ
            nearest = torch.cat([nearest_cosine(p["f"].float() - mean, kept - mean) for p in parts]).cpu()
        elif self.duplicates == "pixels":
            seen = Inputs(self.pool, self.task.valid, self.task.test)
            kept = centred(seen.fetch(held)["x"])
            nearest = torch.cat(
                [nearest_cosine(centred(self.pool.fetch(i)["x"]), kept) for i in torch.arange(n).split(1024)]
            )
        left = (nearest < self.duplicate_from).nonzero()[:, 0]
        value = score
        if self.rank == "similarity":
            value = self._similarity(rows.fetch(held[-1] + 1 + torch.arange(own)), parts, named)
        if self.per_class is not None:
            left = left[best_per_class(value[left], named[left], self.per_class)]
        if not len(left):
            at = torch.tensor([0.1, 0.25, 0.5, 0.75])
            told = ", ".join(
                f"{q:.0%} below {v:.4g}" for q, v in zip(at.tolist(), nearest.quantile(at).tolist(), strict=True)
            )
            raise ConfigError(
                "method.duplicate_from",
                f"all {n} images of the pool count as duplicates of validation or test images (similarities: {told})",
                given=self.duplicate_from,
                expected="a pool of other images",
                remedy="raise it, or take another pool",
            )
        self.state["ids"] = torch.cat([torch.arange(own), own + left])
        self.state["removed"] = (nearest >= self.duplicate_from).nonzero()[:, 0]
        found = {
            "mined": float(len(left)),
            "mined_share": len(left) / n,
            "mined_score": score[left].double().mean().item(),
            "mined_classes": float(len(named[left].unique())),
            "duplicates": float(len(self.state["removed"])),
        }
        truth = self.pool.truth
        if truth is not None:
            mine = truth >= 0
            found |= {"pool_purity": mine.double().mean().item(), "purity": mine[left].double().mean().item()}
        self.state["seen"] = found

    def _similarity(self, mine: Mapping[str, Tensor], parts: list[dict[str, Tensor]], named: Tensor) -> Tensor:
        """Cosine of each pool image's feature to the mean feature of the own images of its class; -1 where there is none."""
        f, classes = mine["f"].float().cpu(), mine["class"].cpu()
        means = torch.zeros(self.task.outputs, f.shape[1]).index_add_(0, classes, f)
        theirs = torch.cat([p["f"] for p in parts]).float().cpu()
        cosine = nn.functional.cosine_similarity(theirs, means[named], dim=1)
        return torch.where(means[named].abs().sum(1) > 0, cosine, torch.full_like(cosine, -1.0))

    # ------------------------------------------------------------------------------------------------ a step
    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The divergence from the teacher, on the same view; where it is asked for, the labels."""
        student = ctx.signal("student", batch)
        if self.teacher_bn == "train":
            with batch_statistics(self.roles["teacher"].module):
                z_t = ctx.signal("teacher", batch).logits
        else:
            z_t = ctx.signal("teacher", batch).logits
        terms: dict[str, Any] = {self.loss: Term(self.divergence(student.logits, z_t))}
        if self.label:
            terms["ce"] = self.task.supervised(student, batch)
            terms["ce"].weight = self.label
        return Terms({}, **terms)

    def divergence(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """The loss that is chosen, of logits [N, C]: a value per image [N]."""
        t = self.temperature
        if self.loss == "js":
            values = F.half_jeffreys(z_s, z_t, eps=self.eps, temperature=t)
        elif self.loss == "soft_ce":
            values = F.soft_cross_entropy(z_s, z_t, temperature=t)
        elif self.loss == "kl":
            values = F.kl(z_s, z_t, temperature=t)
        else:
            values = F.jensen_shannon(z_s, z_t, temperature=t)
        return values * z_s.shape[-1] if self.times_classes else values

    # ------------------------------------------------------------------------------------------------ the report
    def measures(self) -> dict[str, float]:
        """How many images were mined and how many duplicates removed; purity where the pool's classes are known."""
        return dict(self.state["seen"])

    def extras(self) -> dict[str, Any]:
        """Images of the pool that are used, evenly spaced, and some that were removed as duplicates."""
        pool = self.pool
        if pool is None or not self.state["seen"]:
            return {}
        used = self.state["ids"].cpu()[len(self.task.train) :] - len(self.task.train)
        several = [
            ids[torch.linspace(0, len(ids) - 1, min(24, len(ids))).long()]
            for ids in (used, self.state["removed"].cpu())
        ]
        rows = [row for row in (shown_images(pool, some) for some in several) if row]
        if not rows:
            return {}
        seen = self.state["seen"]
        caption = f"Upper row: some of the {seen['mined']:.0f} images used of {len(pool)}" + (
            f"; lower row: some of the {seen['duplicates']:.0f} removed as duplicates of validation or test images."
            if len(rows) > 1
            else "; no duplicates were found."
        )
        return {"pictures": [{"title": "What was mined from the pool", "caption": caption, "pixels": rows}]}


def centred(x: Tensor) -> Tensor:
    """Images as rows without their mean value: then the cosine does not depend on brightness and contrast. [n, ...] to [n, D]."""
    rows = x.flatten(1)
    return rows - rows.mean(1, keepdim=True)
