"""FerKD: a student learns from stored crops, whose labels are sorted by how sure the teacher was.

    label     of every image M crops; p = softmax(z_t / T_t) of each, kept as the k likeliest classes        once
    mine      c = max_k p_k:   c < T_L or c > T_T   discarded, never shown
                               T_L <= c < T_M       1 - eps on the true class, eps / (C - 1) on each other one
                               T_M <= c <= T_T      y = p, the teacher's label
    distil    K crops of each image, drawn without replacement from those that are left; mixed within the picture:
              x = lam x_k + (1 - lam) x_pi(k)   or a box of x_pi(k) in x_k;   y = lam y_k + (1 - lam) y_pi(k)
              L = mean_n -sum_c y[n, c] log softmax(z_s[n] / T)[c]

Thresholds, eps and how it is spread, the partner pi(k) = (k + r) mod K and what happens where too few crops are left are
[reconstructed]: FerKD's training code was not published. Labels, crops, loss and batch-level mixing are FKD's code.

z_s, z_t: logits [K N, C] of student and teacher;  y: labels [K N, C];  lam, r: one of each a step
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.boxes import iou
from limbeck.functional.label_forms import (
    DISCARDED,
    KEPT,
    SOFTENED,
    Shortage,
    softened_labels,
    stored_confidence,
    treat_crops,
)
from limbeck.functional.mixing import mix_pairs
from limbeck.functional.views import cutmix_boxes
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Setup, Stage, Term, Terms
from limbeck.grammar.settings import Count, Fraction, Positive, settings
from limbeck.grammar.task import Task
from limbeck.objectives.queries import Augment, Crop, Flip, ResizedCrop
from limbeck.parts.stored_crops import CropPlan, Repeated, Replay, Shown, StageStore, Store, corners, cropped
from limbeck.tasks.classification import Classification, one_label

CARD = Card(
    number=3,
    slug="ferkd",
    title="FerKD: Surgical Label Adaptation for Efficient Distillation",
    year=2023,
    venue="ICCV",
    arxiv="2312.17473",
    repository="szq0214/FKD",
    licence="MIT",
    family="classification",
    methods={"ferkd": "FerKd"},
    optimised="the student's weights",
    signals=("logits",),
    provenance={
        "stored crops, forms of labels, loss, batch-level mixing": "FKD's released code",
        "discarded, softened and kept crops; mixing within an image": "abstract and a public summary; the code of FerKD was "
        "not published",
        "thresholds 0.1, 0.3, 0.95; smoothing 0.1, spread evenly; shortage; partners": "reconstructed",
        "FKD's last epochs with single crops": "left out: a batch always holds num_crops of each image",
    },
    claim="With stored crops a step costs at most 1.05 of plain supervised training on the same crops, and FerKD's student is "
    "at least as accurate as FKD's, and that one as one trained on hard labels of the same crops.",
    recipe="ferkd",
    at_equality={"soft": "the labels are stored and partly the data's own, and cross-entropy keeps their entropy"},
    notes="limbeck cache ferkd --out FOLDER writes the crops down for many runs; limbeck run ferkd teacher=cached:FOLDER "
    "replays them. Without it a remembered stage labels them.",
)


@settings
class FerKd(Method[Classification]):
    """Stored crops with mined and calibrated labels.

    Args:
        store: which crops are labelled, and how labels are kept. A recording (``teacher=cached:FOLDER``) brings its own.
        num_crops: crops of an image in a step; a batch holds ``train.batch_size / num_crops`` images.
        discard_below: crops of which the teacher is less sure are not shown; 0 turns it off.
        calibrate_below: crops of which it is less sure have a softened hard label; ``discard_below`` or less turns it off.
        discard_above: crops of which it is surer are not shown; 1 turns it off.
        hard_region: what becomes of crops between the first two: ``soften``, keep the ``teacher``'s label, or ``drop`` them.
        smoothing: the share of a softened label that goes to the other classes.
        confidence: the teacher's largest probability (``max``), or that of the true class (``target``).
        shortage: where fewer than ``num_crops`` crops of an image are left: ``relax`` takes back those nearest to a
            threshold and counts them, ``raise`` refuses.
        labels: ``teacher``; or ``hard``: the true class of every crop, none of which is discarded, for comparison.
        temperature: of the student.
        mix: crops of the same image (``self``), of the whole batch (``batch``), or ``none``.
        mixing: ``cutmix`` pastes a box, ``mixup`` takes the mean; ``switch`` draws one of them each step.
        pairing: the partner of a crop within its picture: ``shift`` (the one r places on), or ``overlap`` (the one whose
            box has the largest intersection over union with its own).
        mixup_alpha: of the Beta distribution of the share in ``mixup``.
        cutmix_alpha: likewise in ``cutmix``.
        mix_probability: of mixing a step at all.
        cutmix_share: how often ``switch`` draws ``cutmix``.
    """

    store: CropPlan = CropPlan()
    num_crops: Count = 4
    discard_below: Fraction = 0.1
    calibrate_below: Fraction = 0.3
    discard_above: Fraction = 0.95
    hard_region: Literal["soften", "teacher", "drop"] = "soften"
    smoothing: Fraction = 0.1
    confidence: Literal["max", "target"] = "max"
    shortage: Shortage = "relax"
    labels: Literal["teacher", "hard"] = "teacher"
    temperature: Positive = 1.0
    mix: Literal["self", "batch", "none"] = "self"
    mixing: Literal["switch", "cutmix", "mixup"] = "switch"
    pairing: Literal["shift", "overlap"] = "shift"
    mixup_alpha: Positive = 0.8
    cutmix_alpha: Positive = 1.0
    mix_probability: Fraction = 1.0
    cutmix_share: Fraction = 0.5

    stage_names = ("label", "mine", "distil")

    def validate(self) -> None:
        """Thresholds ascend; crops of one image are mixed where there are several."""
        if self.calibrate_below < self.discard_below and self.calibrate_below:
            raise ValueError(f"calibrate_below must be at least discard_below ({self.discard_below:g}), or 0")
        if max(self.thresholds[:2]) > self.discard_above:
            raise ValueError(
                f"discard_above must be at least discard_below and calibrate_below, {max(self.thresholds[:2]):g}"
            )
        if self.mix == "self" and self.num_crops < 2:
            raise ValueError(
                "num_crops must be 2 or more for mix=self, which mixes the crops of an image (or mix=none)"
            )

    @property
    def thresholds(self) -> tuple[float, float, float]:
        """T_L, T_M and T_T, as the mining applies them."""
        middle = max(self.discard_below, self.calibrate_below)
        return (middle if self.hard_region == "drop" else self.discard_below), middle, self.discard_above

    @property
    def softens(self) -> bool:
        """Whether any crop has a softened hard label."""
        return self.hard_region == "soften" and self.thresholds[1] > self.thresholds[0]

    @property
    def sorts(self) -> bool:
        """Whether any crop is treated by the teacher's confidence."""
        return self.thresholds[1] > 0 or self.discard_above < 1

    def accept(self, task: Task) -> None:
        """Images of which each has one class."""
        super().accept(task)
        one_label(self, task)
        if len(getattr(task, "shape", ())) != 3:
            raise ConfigError(
                "task",
                "FerKD learns from crops of images",
                given=f"items {list(getattr(task, 'shape', ()))}",
                expected="images [channels, height, width]",
            )

    def bind(self, setup: Setup) -> None:
        """Take the networks; find out whether the teacher is a recording, and of what."""
        super().bind(setup)
        assert setup.teacher is not None
        self.classes = len(self.task.labels or [])
        moving = [n for n, q in setup.queries.items() if isinstance(q, (Augment, Crop, Flip, ResizedCrop)) or q.coupled]
        if moving:
            raise ConfigError(
                f"queries.{moving[0]}",
                "a stored label belongs to one crop, which nothing may move, mirror or mix before it is shown",
                remedy=f"leave {', '.join(moving)} out: method.store has crops and mirrors, method.mix mixes",
            )
        module: Any = setup.teacher.module
        self.cache: Store | None = None
        if hasattr(type(module), "answer"):  # a recording, or answers from elsewhere
            plan = getattr(module, "crops", None)
            if plan is not None:
                self.cache = module
            elif hasattr(module, "folder"):
                raise ConfigError(
                    "teacher",
                    f"the recording {module.folder} holds answers to whole images, no crops",
                    expected="a store of crops",
                    remedy="limbeck cache ferkd --out FOLDER writes one",
                )
        self.plan: CropPlan = module.crops if self.cache is not None else self.store
        other = [n for n, v in self.store.plain().items() if v != self.plan.plain()[n]]
        self.notes = (
            [
                f"the crops are those of the recording {module.folder}: "
                + ", ".join(f"{n} {self.plan.plain()[n]} in place of {self.store.plain()[n]}" for n in other)
            ]
            if other
            else []
        )
        if self.plan.form == "hard" and self.sorts and self.labels == "teacher":
            raise ConfigError(
                "method.store.form",
                "hard labels do not keep how sure the teacher was, and crops are sorted by that",
                given="hard",
                expected="smoothing, marginal_smoothing or marginal_renorm",
                remedy="or turn sorting off: method.discard_below=0 method.calibrate_below=0 method.discard_above=1",
            )
        if self.plan.crops < self.num_crops:
            raise ConfigError(
                "method.num_crops",
                "so many different crops of an image are not stored",
                given=self.num_crops,
                expected=f"at most {self.plan.crops}",
                remedy=f"lower it, or store more: method.store.crops={self.num_crops}",
            )
        if self.mix == "batch":
            self.coupled = "mixes each crop with another one of the batch"
        self.state = {"fractions": {}}

    def recorded_bytes(self) -> float:
        """Those of an image's crops."""
        return self.plan.bytes(self.classes)

    # ------------------------------------------------------------------------------------------------ stages
    def stages(self) -> list[Stage]:
        """Crops are labelled unless they are recorded, then sorted, then learnt from."""
        train = self.setup.train
        label = Stage(
            "label",
            data=Repeated(self.task.train, self.plan.crops),
            batch_size=self.task.eval_batch,
            record=self.label,
            remember=[self.plan, self.setup.seed],
            roles=("teacher",),
            judged=False,
            augmented=False,
        )
        mine = Stage(
            "mine",
            items=lambda ctx: [f"{low}-{high}" for low, high in self.chunks()],
            work=self.mine,
            finish=self.count,
            remember=[
                self.plan, *self.thresholds, self.sorts and self.labels == "teacher", self.confidence, self.num_crops, self.hard_region,
                self.shortage, self.setup.seed, self.task.train.fingerprint,
            ],
            roles=("teacher",),
            judged=False,
        )  # fmt: skip
        distil = Stage(
            "distil",
            steps=train.steps,
            data=self.shown,
            batch_size=-(-train.batch_size // self.num_crops),
            optim={"student": train},
            queries=(Replay(),),
            setup=self.compare if self.cache is not None else None,
        )
        return [mine, distil] if self.cache is not None else [label, mine, distil]

    def label(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """The rows of some crops: item ``picture * M + crop``."""
        m, size = self.plan.crops, (batch["x"].shape[-2], batch["x"].shape[-1])
        shown = self.plan.show({**batch, "item": batch["item"] // m, "view": batch["item"] % m}, ctx)
        return self.plan.rows(shown, size, ctx.signal("teacher", shown).logits)

    def rows_of(self, ctx: Context) -> Store:
        """The stored crops."""
        return self.cache if self.cache is not None else StageStore(ctx.recorded("label"), self.plan.crops)

    def chunks(self) -> list[tuple[int, int]]:
        """Images that are sorted together."""
        n, size = len(self.task.train), max(1, 2**18 // self.plan.crops)
        return [(low, min(n, low + size)) for low in range(0, n, size)]

    def mine(self, item: str, ctx: Context) -> dict[str, Tensor]:
        """How each crop of some images is treated, and which were taken back: int8 and bool [n, M]."""
        low, high = map(int, item.split("-"))
        ids, m = torch.arange(low, high), self.plan.crops
        rows = self.rows_of(ctx).rows(ids.repeat_interleave(m), torch.arange(m).repeat(len(ids)))
        self.plan.check(rows, self.classes, getattr(self.cache, "folder", "stage label"))
        if not self.sorts or self.labels == "hard":
            treatment = torch.full((len(ids), m), KEPT, dtype=torch.int8)
            return {"item": ids, "treatment": treatment, "back": torch.zeros_like(treatment, dtype=torch.bool)}
        true = None
        if self.confidence == "target":
            true = self.task.train.y[ids].repeat_interleave(m)
        c = stored_confidence(self.plan.stored(rows), self.classes, self.plan.form, true).clamp(max=1).view(-1, m)
        treatment, back = treat_crops(c, self.thresholds, least=self.num_crops)
        if not self.softens:
            treatment[treatment == SOFTENED] = KEPT
        short = back.any(1).nonzero()[:, 0]
        if self.shortage == "raise" and len(short):
            left = (treatment.ne(DISCARDED) & ~back).sum(1)
            named = ", ".join(f"item {low + i} ({int(left[i])} left)" for i in short[:8].tolist())
            raise ConfigError(
                "method.shortage",
                f"too few of {m} crops are left of {len(short)} of {len(ids)} pictures: {named}",
                given="raise",
                expected=f"{self.num_crops} crops of each image, or method.shortage=relax",
                remedy="widen method.discard_below and method.discard_above, or lower method.num_crops",
            )
        return {"item": ids, "treatment": treatment.to(torch.int8), "back": back}

    def compare(self, ctx: Context) -> None:
        """Make a few crops of a recording again, and refuse it where they are others."""
        cache: Any = self.cache
        ids = torch.linspace(0, len(self.task.train) * self.plan.crops - 1, 64).long()
        pictures, numbers = ids // self.plan.crops, ids % self.plan.crops
        batch = Repeated(self.task.train, self.plan.crops).fetch(ids) | cache.rows(pictures, numbers)
        cache.answer(cropped({**batch, "item": pictures, "view": numbers}))

    def count(self, ctx: Context) -> None:
        """The shares of crops by how they are treated."""
        found = [ctx.artifact("mine", item) for item in ctx.items("mine")]
        treatment = torch.cat([f["treatment"] for f in found])
        back = torch.cat([f["back"] for f in found])
        shares = {"discarded": treatment == DISCARDED, "softened": treatment == SOFTENED, "kept": treatment == KEPT}
        self.state["examples"] = self.examples(ctx, treatment)
        self.state["fractions"] = {n: float(v.double().mean()) for n, v in (shares | {"taken_back": back}).items()}

    def examples(self, ctx: Context, treatment: Tensor, most: int = 16) -> dict[str, list[Tensor]]:
        """Up to so many crops of each kind, of the first pictures: their images' numbers, boxes and mirrors."""
        found = {}
        for name, kind in (("discarded", DISCARDED), ("softened", SOFTENED), ("kept", KEPT)):
            items, crops = (treatment[:256] == kind).nonzero()[:most].T
            if len(items):
                rows = self.rows_of(ctx).rows(items, crops)
                found[name] = [items, rows["box"], rows["flip"]]
        return found

    def shown(self, ctx: Context) -> Shown:
        """Images with the crops that are shown."""
        mined: Any = ctx.recorded("mine")
        return Shown(self.task.train, self.rows_of(ctx), mined, self.plan.crops, self.num_crops, self.setup.seed)

    # ------------------------------------------------------------------------------------------------ a step
    def targets(self, batch: Batch) -> Tensor:
        """The calibrated labels [K N, C] of crops."""
        if self.labels == "hard":
            return softened_labels(batch["y"], self.classes, 0.0)
        y = self.plan.labels(batch, self.classes)
        if not self.softens:
            return y
        soft = softened_labels(batch["y"], self.classes, self.smoothing)
        return torch.where((batch["treatment"] == SOFTENED)[:, None], soft, y)

    def partners(self, batch: Batch, ctx: Context) -> Tensor:
        """Which crop each one is mixed with: int64 [K N], numbers within this part of the batch."""
        total, k = len(batch["x"]), self.num_crops
        n, device = total // k, batch["x"].device
        if self.mix == "batch":
            return ctx.draws.permutation("partners", total).to(device)
        own = torch.arange(total, device=device)
        if self.pairing == "shift":
            r = 1 + int(ctx.draws.numpy("shift").integers(k - 1))
            return (own + r * n) % total
        each = corners(batch["box"].float()).view(k, n, 4).transpose(0, 1)  # [N, K, 4]
        overlap = iou(each, each).masked_fill(torch.eye(k, dtype=torch.bool, device=device), -1.0)
        return overlap.argmax(2).T.flatten() * n + own % n

    def mixed(self, x: Tensor, y: Tensor, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Crops [K N, ...] and labels [K N, C], each with its partner; one share and one box for all."""
        draw = ctx.draws.numpy("mix")
        chance, choice = draw.random(2)
        if self.mix == "none" or chance >= self.mix_probability:
            return x, y
        partner, own = self.partners(batch, ctx), torch.arange(len(x), device=x.device)
        if self.mixing == "mixup" or (self.mixing == "switch" and choice >= self.cutmix_share):
            share = torch.full((len(x),), draw.beta(self.mixup_alpha, self.mixup_alpha), device=x.device)
            return mix_pairs(x, share, own, partner), mix_pairs(y, share, own, partner)
        lam, (h, w) = draw.beta(self.cutmix_alpha, self.cutmix_alpha), x.shape[-2:]
        centre = [int(draw.integers(h)), int(draw.integers(w))]
        box = cutmix_boxes(torch.tensor([lam], dtype=torch.float64), torch.tensor([centre]), (h, w))
        top, left, bottom, right = box[0].tolist()
        mixed = x.clone()
        mixed[..., top:bottom, left:right] = x[partner][..., top:bottom, left:right]
        share = torch.full((len(x),), 1 - (bottom - top) * (right - left) / (h * w), device=x.device)
        return mixed, mix_pairs(y, share, own, partner)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """Cross-entropy to the calibrated labels of the crops shown."""
        x, y = self.mixed(batch["x"], self.targets(batch), batch, ctx)
        student = ctx.signal("student", {**batch, "x": x})
        return Terms(soft=Term(F.cross_entropy(student.logits.float() / self.temperature, y)))

    def measures(self) -> dict[str, float]:
        """The shares of crops that are discarded, softened and kept, and of those that were taken back."""
        return dict(self.state["fractions"])

    def extras(self) -> dict[str, Any]:
        """Images of crops by how they are treated: a row of each kind, of the first images of the data."""
        train, mined = self.task.train, self.state.get("examples", {})
        if self.task.shape[0] not in (1, 3) or not mined:
            return {}
        rows, said = [], []
        for name, (items, box, flip) in mined.items():
            x = cropped({**train.fetch(items), "box": box, "flip": flip})["x"]
            rows.append(x.clamp(0, 1).mul(255).round().long().tolist())
            said.append(name)
        caption = f"Crops of the first images, a row each: {', '.join(said)}."
        return {"pictures": [{"title": "How crops were treated", "caption": caption, "pixels": rows}]}
