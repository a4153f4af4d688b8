"""CDA: images recovered from a network's BatchNorm statistics, whole images first and small crops later.

SRe2L's three stages after a network f is trained ("squeeze"), and CDA's change of the first:

    recover   x from noise:  min CE(f(A_t(x)), y) + r_bn sum_l k_l (||var*_l - var_l||_2 + ||mean*_l - mean_l||_2),  k_0 = 10
              A_t: one random resized crop of a share of the area in [c_t, 1], flip and roll for the whole batch
              c_t = .08 + .92 (1 + cos(pi t / m)) / 2 for t < m = milestone * I, then .08    (SRe2L: c_t = .08 throughout)
    relabel   z = f(view) for every image in every epoch, crops and cut-mix written down with it
    validate  fresh networks by KL(softmax(z / T) || softmax(z_s / T)), T = 20, without T squared

x: images [B, C, H, W] of one block of classes;  mean*, var*: running statistics;  c_t: least share of the area of a crop
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from limbeck.artifacts.labelled_set import (
    AskedLabels,
    LabelledSet,
    Labels,
    Mix,
    StoredLabels,
    Views,
    check_epochs,
    draw_views,
    epochs_of,
)
from limbeck.errors import ConfigError
from limbeck.functional.packing import Form
from limbeck.functional.recovery import Curriculum, Direction, crop_floor
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Context, Method, Setup, Stage
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.role import Role
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, Positive, Share, settings
from limbeck.grammar.signal import Signal, device_of, evaluating
from limbeck.parts.recover import Weights, batch_norms, plan_views, recover, refuse_without_statistics
from limbeck.parts.relabel import Encoding, as_stored, relabel
from limbeck.tasks.condensation import Condensation, SyntheticSet
from limbeck.tasks.synthetic_set import SetArtifact, Space

CARD = Card(
    number=12,
    slug="cda",
    title="Dataset Distillation via Curriculum Data Synthesis in Large Data Era",
    year=2024,
    venue="TMLR 2024",
    arxiv="2311.18838",
    repository="VILA-Lab/SRe2L",
    licence="none stated",
    family="condensation",
    methods={"cda": "Cda"},
    optimised="images",
    signals=("logits", "BatchNorm statistics"),
    provenance={
        "statistics loss, curriculum, loop, limits of pixels": "code, checked against recorded vectors",
        "milestone": "the published commands' 1; the code's own default is 0, which is no curriculum",
        "local-to-global": "reconstructed: the paper compares it, its exact form is from memory",
        "stored labels": "code; found by image and epoch here, so that batches may have any size; int8 and top-k are ours",
        "PNG": "ours: the code saves JPEG before it labels (encoding=jpeg)",
        "first layer": "the first that a batch passes; the code takes the first as modules are listed",
    },
    claim="With the same teacher, iterations and labels, networks trained on images recovered by the curriculum are at least as "
    "accurate as by SRe2L's constant range.",
    recipe="cda",
    exceptions={"at_equality": "the student is a data set: there is no teacher network it could equal"},
    notes="SRe2L is method.curriculum=none (--preset sre2l). Few recovered images are worse than as many real ones with the "
    "same labels: the row random-soft shows by how much.",
)

AreaShare = Annotated[float, Gt(0), Interval(le=1)]
CHUNK = 20
"""Epochs of labels in one item of the relabelling."""


@settings
class Cda(Method[Condensation]):
    """Curriculum data synthesis; ``train`` sets iterations, learning rate and classes of a block.

    Args:
        curriculum: of the crops' least area: ``cosine``, ``linear``, ``step``, or ``none`` (SRe2L).
        milestone: share of the iterations in which it moves; 0 is SRe2L too.
        min_crop: least share of the area that a crop ever has.
        max_crop: greatest share.
        direction: ``global-to-local`` as published, or the reverse.
        r_bn: weight of the statistics; 0 needs no BatchNorm.
        first_bn: further weight of the first layer's.
        r_var: weight of a layer's variance beside its mean.
        r_tv: weight of the total variation (0 in the published commands).
        r_l2: weight of the images' norm (likewise).
        jitter: greatest roll in pixels.
        flip: how often views are mirrored; 0 where a mirrored image is another class.
        initial: images start as ``noise``, or as random ``real`` ones.
        betas: of Adam.
        eps: of Adam.
        encoding: how the images are kept before they are labelled: ``png`` (8 bits), ``jpeg`` (as the code does), ``float``.
        labels: ``stored``: the teacher's logits for each view; ``fly``: asked while networks train; ``hard``: class ids.
        form: of stored logits: ``fp16``, ``int8`` or ``top-k``.
        top_k: how many classes ``top-k`` keeps.
        label_epochs: epochs of views that are stored; ``null`` for as many as the evaluator trains.
        label_batch: images that are mixed among each other.
        label_crop: least share of the area of a labelled view's crop.
        mix: of labelled views: ``cutmix``, ``mixup`` or ``none``.
        alpha: of the Beta distribution of the mix.
        temperature: at which networks learn from the labels.
    """

    curriculum: Curriculum = "cosine"
    milestone: Fraction = 1.0
    min_crop: AreaShare = 0.08
    max_crop: AreaShare = 1.0
    direction: Direction = "global-to-local"
    r_bn: NonNegative = 0.01
    first_bn: NonNegative = 10.0
    r_var: NonNegative = 1.0
    r_tv: NonNegative = 0.0
    r_l2: NonNegative = 0.0
    jitter: Natural = 4
    flip: Fraction = 0.5
    initial: Literal["noise", "real"] = "noise"
    betas: tuple[Share, Share] = (0.5, 0.9)
    eps: Positive = 1e-8
    encoding: Encoding = "png"
    labels: Literal["stored", "fly", "hard"] = "stored"
    form: Form = "fp16"
    top_k: Count = 10
    label_epochs: Count | None = None
    label_batch: Count = 1024
    label_crop: AreaShare = 0.08
    mix: Mix = "cutmix"
    alpha: Positive = 1.0
    temperature: Positive = 20.0

    def validate(self) -> None:
        """The greatest crop is no smaller than the least."""
        if self.min_crop > self.max_crop:
            raise ValueError(f"min_crop ({self.min_crop}) must not exceed max_crop ({self.max_crop})")

    # ------------------------------------------------------------------------------------------------ what takes part

    def judged_by(self, evaluator: Evaluator) -> None:
        """Networks are trained so long on the set: so many epochs of labels are needed."""
        self.trained_for: Optim | None = getattr(evaluator, "optim", None)

    def bind(self, setup: Setup) -> None:
        """Take the teacher, and check that images can be recovered from it and labels be stored for them."""
        super().bind(setup)
        task, teacher = self.task, setup.built["teacher"]
        if not isinstance(teacher.module, nn.Module):
            raise ConfigError("teacher", "images are recovered through a network", given=type(teacher.module).__name__)
        refuse_without_statistics(teacher.module, self.r_bn)
        if teacher.contract.transform is not None:
            raise ConfigError(
                "teacher",
                "its inputs are transformed in a way in which black and white are not known, so the images have no limits",
                expected="a network with a mean and a deviation for each channel",
                remedy="name them: teacher.mean=[...] and teacher.std=[...]",
            )
        if task.zca:
            raise ConfigError(
                "task.zca",
                "images are recovered as pixels, whose limits are known",
                given=True,
                remedy="set task.zca=false",
            )
        if setup.train.batch_size > task.outputs:
            raise ConfigError(
                "train.batch_size",
                f"a block has each class once, and there are {task.outputs}",
                given=setup.train.batch_size,
                expected=f"at most {task.outputs}",
                remedy=f"set train.batch_size={task.outputs}",
            )
        if self.jitter >= min(task.shape[-2:]):
            raise ConfigError(
                "method.jitter", given=self.jitter, expected=f"less than the side of {min(task.shape[-2:])} pixels"
            )
        if self.encoding == "jpeg" and task.shape[0] not in (1, 3):
            raise ConfigError(
                "method.encoding", given="jpeg", expected="png, for images that are neither grey nor colour"
            )
        if self.labels == "stored" and self.label_epochs is not None and self.trained_for is not None:
            check_epochs(self.trained_for, self.count, self.label_epochs)
        if any(layer.training for layer in batch_norms(teacher.module).values()):
            self.notes = [
                "the teacher came in training mode; it was put into evaluation mode, or its statistics would move"
            ]
        self.space = self._space()
        start, ids = task.choose_real("random", setup.seed)  # rows grouped by class
        start = self.space.enter(task.space.pixels(start))
        if self.initial == "noise":
            start = Draws(setup.seed, ("recover",)).randn("start", len(start), start.shape[1:])
        # the student is the set as it begins; what becomes of it is in the items, and in the state once all are there
        self.roles["student"] = Role(SyntheticSet(start, ids, task.outputs))

    def _space(self) -> Space:
        """Where images are optimised: in the teacher's normalisation, or in pixels where it has none."""
        contract, channels = self.setup.built["teacher"].contract, self.task.shape[0]
        mean, std = contract.mean or (0.0,), contract.std or (1.0,)
        if len(mean) != channels:  # grey images for a teacher of colours, or the other way round
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        return Space(mean, std)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.task.shape[-2], self.task.shape[-1]

    @property
    def count(self) -> int:
        """Images of the set."""
        return self.task.per_class * self.task.outputs

    @property
    def weights(self) -> Weights:
        """Of the terms."""
        return Weights(self.r_bn, self.first_bn, self.r_var, self.r_tv, self.r_l2)

    def optimised(self, train: Optim) -> Optim:
        """How the images of a block are."""
        options = {"betas": tuple(self.betas), "eps": self.eps}
        return train.with_(optimizer="adam", schedule="cosine", warmup=0, weight_decay=0.0, options=options)

    def floors(self, steps: int) -> list[float]:
        """The least share of the area of a crop, for each iteration."""
        ends = {"lowest": self.min_crop, "highest": self.max_crop}
        how = {"curriculum": self.curriculum, "direction": self.direction}
        return [crop_floor(t, steps, milestone=self.milestone, **ends, **how) for t in range(steps)]  # type: ignore[arg-type]

    # --------------------------------------------------------------------------------------------------------- stages

    def stages(self) -> list[Stage]:
        """Recovery, a block of classes an item; then labels, some epochs an item. Both are remembered."""
        train, seed, per_class = self.setup.train, self.setup.seed, self.task.per_class
        curriculum = [self.curriculum, self.milestone, self.min_crop, self.max_crop, self.direction]
        real = per_class if self.initial == "real" else None  # which real ones depends on how many
        self.blocks = list(torch.arange(self.task.outputs).split(train.batch_size))
        found = [
            Stage(
                "recover",
                items=lambda ctx: [
                    f"ipc{k:03d}-block{b:03d}" for k in range(per_class) for b in range(len(self.blocks))
                ],
                work=self.recover,
                finish=self.collect,
                optim={"images": self.optimised(train)},
                remember=[*curriculum, list(self.weights), self.jitter, self.flip, self.initial, real, seed],
                roles=("teacher",),
            )
        ]
        if self.labels == "stored":
            stored = [self.form, self.top_k, self.label_batch, self.label_crop, self.mix, self.alpha, self.flip]
            found.append(
                Stage(
                    "relabel",
                    items=lambda ctx: [f"epochs{e:04d}" for e in range(0, self.epochs, CHUNK)],
                    work=self.relabel,
                    finish=self.gather,
                    remember=[*stored, self.encoding, per_class, self.epochs, seed],
                    roles=("teacher",),
                )
            )
        return found

    def recover(self, item: str, ctx: Context) -> dict[str, Tensor]:
        """One block: an image of each of its classes, as pixels [B, C, H, W]; and the terms of each iteration."""
        k, b = (int(word[-3:]) for word in item.split("-"))
        classes, optim = self.blocks[b], ctx.optim["images"]
        draws = Draws(self.setup.seed, ("recover", item), ctx.device)
        start = self.roles["student"].module.images.detach().cpu()[classes * self.task.per_class + k]
        views = plan_views(
            draws,
            self.floors(optim.steps),
            self.size,
            highest=self.max_crop,
            flip=self.flip,
            jitter=self.jitter,
        )
        low, high = self.space.limits(start.dtype, ctx.device)
        with ctx.through("teacher") as net:
            made = recover(
                net,
                start.to(ctx.device),
                classes.to(ctx.device),
                optim,
                views,
                weights=self.weights,
                limits=(low, high),
                answer=self.answer,
                what=f"recover/{item}",
            )
        return {"pixels": self.space.leave(made.images).cpu(), "trace": made.trace.cpu()}

    def answer(self, x: Tensor) -> Tensor:
        """The teacher's logits [N, classes] for images [N, C, H, W] in the space in which they are optimised."""
        role = self.roles["teacher"]
        direct = role.contract.size is None and len(role.contract.mean or x[0]) == x.shape[1]
        if not direct or role.contract.channels not in (None, x.shape[1]):
            x = role.contract.inputs(self.space.pixels(x))
        out = role.contract.outputs((role.feed or self.task.feed)(role.module, {"x": x}))
        return Signal(out).logits.float()

    def collect(self, ctx: Context) -> None:
        """The blocks as one set, rows grouped by class: pixels [M, C, H, W] as files hold them."""
        blocks = [ctx.artifact("recover", item) for item in ctx.items("recover")]
        per_copy = torch.cat([b["pixels"] for b in blocks]).unflatten(0, (self.task.per_class, self.task.outputs))
        self.state["pixels"] = as_stored(per_copy.transpose(0, 1).flatten(0, 1).contiguous(), self.encoding)
        self.state["trace"] = torch.stack([b["trace"] for b in blocks]).mean(0)

    def images(self) -> Tensor:
        """The set [M, C, H, W] in the space that fresh networks see; before it is recovered, where it begins."""
        if "pixels" not in self.state:
            pixels = self.space.leave(self.roles["student"].module.images.detach().cpu())
            return self.task.space.enter(as_stored(pixels, self.encoding))
        return self.task.space.enter(self.state["pixels"])

    # --------------------------------------------------------------------------------------------------------- labels

    @property
    def epochs(self) -> int:
        """How many epochs of views have stored labels."""
        if self.label_epochs is None and self.trained_for is None:
            raise ConfigError(
                "method.label_epochs", "this evaluator does not say how long it trains", expected="a number"
            )
        return self.label_epochs or epochs_of(self.trained_for, self.count)  # type: ignore[arg-type]

    def views(self, epoch: int) -> Views:
        """What is shown in an epoch."""
        draws = Draws(self.setup.seed, ("relabel",))
        how = {"lowest": self.label_crop, "flip": self.flip, "alpha": self.alpha}
        return draw_views(draws, epoch, self.count, self.size, mix=self.mix, batch=self.label_batch, **how)

    def ask(self, x: Tensor) -> Tensor:
        """The teacher's logits for images in the space of the set, without a graph."""
        teacher = self.roles["teacher"].module
        with torch.no_grad(), evaluating([teacher]):
            x = self.space.enter(self.task.space.pixels(x)).to(device_of(teacher))
            return self.answer(x).to(x.device)

    def relabel(self, item: str, ctx: Context) -> dict[str, Any]:
        """Some epochs of views, and the teacher's logits for them."""
        first = int(item.removeprefix("epochs"))
        return self.labelled(self.images().to(ctx.device), range(first, min(first + CHUNK, self.epochs))).tensors()

    def labelled(self, images: Tensor, epochs: range) -> StoredLabels:
        """Labels of some images for some epochs, packed."""
        views = Views.joined([self.views(e) for e in epochs])
        return relabel(images, views, self.ask, form=self.form, k=self.top_k)

    def gather(self, ctx: Context) -> None:
        """All epochs, one after the other."""
        parts = [ctx.artifact("relabel", item) for item in ctx.items("relabel")]
        self.state["labels"] = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}

    # ------------------------------------------------------------------------------------------------ what is delivered

    def artifact(self) -> SetArtifact:
        """The set, with the labels that it has by now."""
        student, images = self.roles["student"].module, self.images()
        if self.labels == "hard":
            return SetArtifact(self.task, images, student.ids, student.ids, None)
        if self.labels == "stored" and "labels" in self.state:
            return self.set_of(images, StoredLabels.read(self.state["labels"], self.task.outputs))
        return self.set_of(images, AskedLabels(self.ask, self.views))

    def set_of(self, images: Tensor, source: Labels) -> LabelledSet:
        """Images of the classes of this set with labels of their views."""
        bits = None if self.encoding == "float" else 8
        return LabelledSet(
            self.task, images, self.roles["student"].module.ids, source, self.temperature, bits, self.form
        )

    called = MappingProxyType({"random-soft": "as many random real images with the same soft labels"})

    @property
    def baseline(self) -> str:  # type: ignore[override]
        """The same labels on real images, where there are such labels: that shows what the images are worth."""
        return "" if self.labels == "hard" else "random-soft"

    def rows(self) -> dict[str, Artifact]:
        """``random-soft``: as many random real images, labelled in the same way."""
        if self.labels == "hard":
            return {}
        real, _ = self.task.choose_real("random", self.setup.seed)
        images = self.task.space.enter(as_stored(self.task.space.leave(real), self.encoding))
        stored = self.labels == "stored"
        source = self.labelled(images, range(self.epochs)) if stored else AskedLabels(self.ask, self.views)
        return {"random-soft": self.set_of(images, source)}
