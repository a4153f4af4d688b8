"""G2SD: a small vision transformer learns from a masked autoencoder twice, without a task first, and then for one.

Generic: the same patches are hidden from both; the student predicts the hidden states of the teacher's decoder.
    L_G = smooth_l1(p, LN(h_T); beta)                                  the mean over tokens and channels, no pixels
Specific: the teacher is by now fine-tuned for the task, and the student's encoder gets a head.
    classes   L = (CE(z_cls, y) + CE(z_dist, argmax z_T)) / 2          z_dist of a distillation token that stands last
    maps      L = CE + 10 / C sum_c KL(softmax_i z_T || softmax_i z_S)              over the places i: channel-wise
    boxes     L = L_task + r sum_levels [0.001 sum M |F_T - A(F_S)|^2 / sum M + 0.1 sum M BCE(o_S, o_T) / sum M]

p: predictions [N, 1 + L, D];  h_T: states behind block `target_layer` of the teacher's decoder, without its norm
z: logits;  F: a detector's pyramid [N, D, h, w];  o: objectness [N, A, h, w];  M = max_A sigmoid(o_T);  A: 3x3 convolutions
r: min(1, step / 500)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le, Lt
from torch import nn

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.dense import channel_divergence
from limbeck.functional.pretraining import Supervise, random_masking
from limbeck.functional.schedule import warmup
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Data, Method, Participant, Setup, Share, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Task
from limbeck.models.vit import Vit, begin_with
from limbeck.networks.vision_transformer import Perceptron, VisionTransformer, VitClassifier, encoder_of
from limbeck.parts.first_stages import TAPS, Adapted, asked, fed, richly, widths_of
from limbeck.parts.masked_images import (
    Target,
    compared,
    drawn,
    hidden_target,
    layer_rates,
    masked,
    rebuilt,
    relations,
    viewed,
)
from limbeck.tasks.boxes import Boxes
from limbeck.tasks.classification import Classification, one_label
from limbeck.tasks.dense import Dense

CARD = Card(
    number=53,
    slug="g2sd",
    title="Generic-to-Specific Distillation of Masked Autoencoders",
    year=2023,
    venue="CVPR 2023",
    arxiv="2302.14771",
    repository="pengzhiliang/G2SD",
    family="pretraining",
    methods={"g2sd": "G2sd"},
    optimised="the student's weights",
    signals=("hidden states of a decoder", "logits", "pyramid and objectness of a detector", "labels"),
    provenance={
        "generic stage, its variants": "the code, checked against its vectors; encoder features and relations, which it has and "
        "does not use, as switches",
        "distillation token, NKD, channel-wise divergence, feature-richness score": "the code, checked against its vectors",
        "value of the channel-wise term": "KL, zero at equality; variant=released shows the code's cross-entropy, whose gradient "
        "is the same",
        "a teacher without weights": "ours: pre-trained as MAE (He et al. 2022) on the same images",
        "images without labels in the specific stage": "ours: the token then learns what the teacher says of them; the paper "
        "has labels for all",
        "heads": "UPerNet and ViTDet's pyramid with group in place of batch normalisation; positions stay fixed",
    },
    claim="With few labels and one fine-tuning budget, a student distilled generically and then specifically is at least as "
    "accurate as one distilled specifically alone, above a fine-tuned small masked autoencoder and above training from "
    "scratch; and it is close to its teacher.",
    recipe="g2sd",
    exceptions={
        "at_equality": "the student predicts standardised states through a perceptron, and one like its teacher has none"
    },
    notes="task.unlabelled names more images; otherwise the images of all training items are used, and labels of "
    "task.student_items alone. teacher=vit-mae:FOLDER takes a masked autoencoder of transformers; stages.pretrain and "
    "stages.tune make one here. Networks are vision transformers (student=vit).",
)


@settings
class G2sd(Method):
    """Generic-to-specific distillation.

    Args:
        phases: ``both`` stages; ``generic``: the encoder alone, for a probe or a later run; ``specific``: for a student that
            begins anew, or with ``student.weights``.
        target: what the generic stage predicts: hidden states of the teacher's ``decoder``; its ``encoder`` features at
            visible patches; ``pixels``, as MAE itself, without a teacher; or the ``relation`` of its queries, keys, values.
        target_layer: block of the decoder behind which the states are taken, from 1; ``null`` is the middle one.
        supervise: tokens that are compared: ``all`` with the class token, or ``masked`` or ``visible`` patches.
        normalise_target: standardise the teacher's states over channels; of pixels, each patch.
        mask_ratio: share of patches that is hidden.
        beta: where smooth L1 turns into a line.
        relation_heads: into which both networks are cut for ``relation``.
        crop: least share of the area of random crops, in the generic stage and while a teacher is pre-trained; 1: none.
        mirror: images every other time, there.
        specific: what the specific stage matches: ``auto`` (by task: hard_token, cwd, frs); ``hard_token``, ``soft_kl`` or
            ``nkd`` of classes; ``cwd`` of maps; ``frs`` of boxes; ``none``: labels alone.
        unlabelled: where there are images without labels, the teacher's answers to these (as many as the batch has) are
            what hard_token and soft_kl match.
        layer_decay: the rate of each block as a share of that of the block above, in the specific stage and in ``tune``.
        smoothing: of labels, in the specific stage.
        temperature: of ``soft_kl`` and ``cwd``.
        gamma: weight of NKD's second term.
        weight_maps: of ``cwd``.
        weight_features, weight_objectness: of ``frs``; features are summed over channels, not averaged.
        warm_steps: over which these two rise from 0.
        variant: ``released`` shows the cross-entropy for ``cwd``, as the published code does; the gradient is that of KL.
    """

    takes_unlabelled = "own"

    stage_names = ("pretrain", "tune", "generic", "specific")

    phases: Literal["both", "generic", "specific"] = "both"
    target: Target = "decoder"
    target_layer: Count | None = None
    supervise: Supervise = "all"
    normalise_target: bool = True
    mask_ratio: Annotated[float, Gt(0), Lt(1)] = 0.75
    beta: Positive = 2.0
    relation_heads: Count = 1
    crop: Annotated[float, Gt(0), Le(1)] = 1.0
    mirror: bool = False
    specific: Literal["auto", "hard_token", "soft_kl", "nkd", "cwd", "frs", "none"] = "auto"
    unlabelled: bool = True
    layer_decay: Annotated[float, Gt(0), Le(1)] = 0.75
    smoothing: Fraction = 0.0
    temperature: Positive = 1.0
    gamma: NonNegative = 1.0
    weight_maps: NonNegative = 10.0
    weight_features: NonNegative = 0.001
    weight_objectness: NonNegative = 0.1
    warm_steps: Natural = 500
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """Who takes part follows from what is matched."""
        if self.phases == "generic" and self.specific not in ("auto", "none"):
            raise ValueError(
                f"specific must be auto or none with phases=generic, which has no such stage: {self.specific}"
            )
        if self.target in ("encoder", "relation") and self.supervise != "all":
            raise ValueError(f"supervise must be all with target={self.target}: hidden patches have no features there")
        self.predicts = self.phases != "specific" and self.target != "pixels"
        self.asks = self.phases != "generic" and self.specific != "none"
        if not (self.predicts or self.asks):
            self.participants = {}
        else:
            teacher = Participant(taught=False, judged=self.asks)
            self.participants = {"teacher": teacher, "mae": Participant(taught=False, judged=False, needed=False)}

    # ------------------------------------------------------------------------------------------------------- who and what
    def accept(self, task: Task) -> None:
        """Classes, maps or boxes, and what goes with them."""
        super().accept(task)
        known = {Classification: ("hard_token", "soft_kl", "nkd"), Dense: ("cwd",), Boxes: ("frs",)}
        own = next((names for kind, names in known.items() if isinstance(task, kind)), None)
        if own is None:
            raise ConfigError(
                "task",
                "G2SD is for classes, maps and boxes of images",
                given=type(task).__name__,
                expected="task=classification, dense or boxes",
            )
        if isinstance(task, Classification):
            one_label(self, task)
        if len(task.needs.inputs) != 3:
            raise ConfigError(
                "task.data", "its items are no images", given=list(task.needs.inputs), expected="[C, H, W]"
            )
        self.matches = own[0] if self.specific == "auto" else self.specific
        if self.matches not in (*own, "none"):
            raise ConfigError(
                "method.specific",
                f"it is not for {type(task).__name__}",
                given=self.specific,
                expected=" or ".join(own),
            )

    def bind(self, setup: Setup) -> None:
        """Find encoders, make decoders, and check that both cut images alike."""
        super().bind(setup)
        self.encoder = self._vit("student", setup.student)[1]
        self.images: Data = getattr(self.task, "unlabelled_items", None) or self.task.teacher_train
        self.more = self.images if self.unlabelled and self.images.fingerprint != self.task.train.fingerprint else None
        random_masking(
            torch.zeros(1, self.encoder.patches), self.mask_ratio
        )  # refuses one that leaves nothing to be seen
        self.tunes = self.pretrains = False
        self.notes = ["the student's head is not trained: evaluate the encoder with evaluator=probe"]
        self.notes = self.notes if self.phases == "generic" else []
        if self.asks:
            self._bind_specific(setup)
        if self.predicts or self.tunes:
            self._bind_teacher(setup)
        if self.phases != "specific":
            self._bind_generic(setup.student.model)

    def _vit(self, role: str, built: Built) -> tuple[Vit, VisionTransformer]:
        place = encoder_of(built.module)
        if not isinstance(built.model, Vit) or place is None:
            raise ConfigError(
                role if role in ("student", "teacher") else f"participants.{role}",
                "G2SD pre-trains vision transformers, of which patches can be hidden",
                given=type(built.model or built.module).__name__,
                expected=f"{role}=vit" + ("" if role == "student" else " or vit-mae:FOLDER"),
                remedy=""
                if role != "teacher"
                else "a fine-tuned teacher of another kind needs participants.mae beside it",
            )
        return built.model, place[1]

    def _bind_specific(self, setup: Setup) -> None:
        student, teacher = setup.student.module, setup.teacher
        assert teacher is not None
        if self.matches == "hard_token" and (not isinstance(student, VitClassifier) or student.token_head is None):
            raise ConfigError(
                "student.token",
                "hard_token is learnt by a distillation token",
                given=False,
                remedy="set student.token=true, or method.specific=soft_kl",
            )
        self.tunes = not teacher.model.trained
        if self.tunes:
            model, _ = self._vit("teacher", teacher)
            with torch.random.fork_rng(devices=[]):  # the same for every seed, so that all share what is tuned
                seed_modules(key_of(0, "init", "teacher"), torch.device("cpu"))
                teacher.module.load_state_dict(model.make(self.task.needs).state_dict())
        if self.matches == "frs":
            before, after = widths_of(self.roles["student"], self.roles["teacher"], self.task.example(2)["x"])
            self.new("adapt", lambda: Adapted(before, after))
            self.roles["teacher"].feed = self.fed

    def _bind_teacher(self, setup: Setup) -> None:
        """The masked autoencoder: with the weights that are named, or to be pre-trained here."""
        given, name = setup.built.get("mae"), "mae"
        if given is None:
            given, name = setup.teacher, "teacher"
        assert given is not None
        model, encoder = self._vit(name, given)

        def make() -> nn.Module:
            seed_modules(key_of(0, "init", "mae"), torch.device("cpu"))
            return model.autoencoder(self.task.needs.with_(inputs=(encoder.channels, *encoder.size)))

        self.new("mae", make).contract = given.contract
        self.pretrains = not model.prepared
        if self.tunes and given is not setup.teacher:
            own, mine = self._vit("teacher", setup.teacher)[1], self.roles["mae"].module.state_dict()  # type: ignore[arg-type]
            if any(mine[k].shape != v.shape for k, v in own.state_dict().items()):
                raise ConfigError(
                    "teacher",
                    "it is to be fine-tuned from participants.mae, and has another shape",
                    remedy="give both the same patch, width, depth and heads, or the teacher a checkpoint",
                )
        if self.predicts and self.encoder.grid != encoder.grid:
            raise ConfigError(
                "student.patch",
                "student and teacher cut images into different patches, so that not the same can be hidden",
                given=f"{self.encoder.patches} patches of {self.encoder.patch} pixels",
                expected=f"the teacher's {encoder.patches} of {encoder.patch}",
                remedy=f"set student.patch={encoder.patch}",
            )

    def _bind_generic(self, model: Vit) -> None:
        """What the student predicts with."""
        if self.target == "pixels":
            values = self.encoder.patch**2 * self.encoder.channels
            self.new("decoder", lambda: model.decoder(self.encoder, pixels=values))
            return
        mae: Any = self.roles["mae"].module
        depth, width = len(mae.decoder_blocks), mae.mask_token.shape[-1]
        self.layer = self.target_layer or (depth + 1) // 2
        if self.layer > depth and self.target == "decoder":
            raise ConfigError(
                "method.target_layer",
                given=self.layer,
                expected=f"1 to {depth}: the teacher's decoder has as many blocks",
            )
        if self.target == "decoder":
            self.new("decoder", lambda: model.decoder(self.encoder, predicts=width))
        elif self.target == "encoder":
            self.new("predictor", lambda: Perceptron(self.encoder.width, mae.width, mae.width))
        elif self.encoder.width % self.relation_heads or mae.width % self.relation_heads:
            raise ConfigError(
                "method.relation_heads",
                given=self.relation_heads,
                expected=f"a divisor of both widths, {self.encoder.width} and {mae.width}",
            )

    # ------------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        """The masked autoencoder, the teacher (both remembered for every seed and student), generic, specific."""
        train, found = self.setup.train, list[Stage]()
        plain = train.with_(groups=None, only=None)
        if self.pretrains:
            how = [self.mask_ratio, self.normalise_target, self.crop, self.mirror]
            found.append(
                self._over_images(
                    "pretrain", self.pretrain, {"mae": plain}, remember=how, roles=["mae"], scope="pretrain"
                )
            )
        if self.tunes:
            optim = plain.with_(groups=layer_rates(self.roles["teacher"].module, self.layer_decay))
            found.append(
                Stage(
                    "tune",
                    steps=train.steps,
                    data=self.task.train,
                    batch_size=train.batch_size,
                    optim={"teacher": optim},
                    step=self.tune,
                    begin=self.begin_tuning,
                    remember=[self.smoothing],
                    roles=["teacher", "mae"],
                    judged=False,
                )
            )
        if self.phases != "specific":
            place = encoder_of(self.setup.student.module)
            assert place is not None
            learn = {"student": plain.with_(only=[f"{place[0]}.*"])}
            learn |= {n: plain for n in ("decoder", "predictor") if n in self.roles}
            found.append(self._over_images("generic", self.generic, learn))
        if self.phases != "generic":
            optim = train.with_(groups=layer_rates(self.setup.student.module, self.layer_decay, train.groups))
            found.append(
                Stage(
                    "specific",
                    steps=train.steps,
                    data=self.task.train,
                    batch_size=train.batch_size,
                    optim={"student": optim, **({"adapt": plain} if "adapt" in self.roles else {})},
                    step=self.detect if "adapt" in self.roles else self.step,
                )
            )
        return found

    def _over_images(self, name: str, step: Any, optim: dict[str, Optim], **more: Any) -> Stage:
        """A stage over images alone. The recipe's queries mix labels, and have nothing to change here."""
        train = self.setup.train
        return Stage(
            name,
            steps=train.steps,
            data=self.images,
            batch_size=train.batch_size,
            optim=optim,
            step=step,
            judged=False,
            augmented=False,
            **more,
        )

    def pretrain(self, batch: Batch, ctx: Context) -> Terms:
        """MAE's own: hidden patches rebuilt."""
        mae = self.roles["mae"]
        net: Any = mae.module
        x = mae.contract.inputs(viewed(batch, ctx, self.crop, self.mirror))
        masking = masked(batch, ctx, net.patches, self.mask_ratio)
        found = ctx.call("mae", x, masking)
        return Terms(pixels=Term(rebuilt(found, x, masking, net.patch, self.normalise_target), to="mae"))

    def begin_tuning(self, ctx: Context) -> None:
        """The teacher's encoder begins where the masked autoencoder's has ended."""
        place, mae = encoder_of(self.roles["teacher"].module), self.roles["mae"].module
        assert place is not None and isinstance(mae, VisionTransformer)
        begin_with(place[1], mae)

    def tune(self, batch: Batch, ctx: Context) -> Terms:
        """The teacher, by labels."""
        batch = self.smoothed(batch)
        ce = self.task.supervised(ctx.signal("teacher", batch), batch)
        ce.to = ("teacher",)
        return Terms(ce=ce)

    def generic(self, batch: Batch, ctx: Context) -> Terms:
        """What the teacher makes of an image of which both see the same few patches, predicted."""
        seen, masking = (
            viewed(batch, ctx, self.crop, self.mirror),
            masked(batch, ctx, self.encoder.patches, self.mask_ratio),
        )
        x = self.roles["student"].contract.inputs(seen)
        if self.target == "pixels":
            found = ctx.call("decoder", ctx.call("student", x, masking, by="encode"), masking)
            values = rebuilt(found, x, masking, self.encoder.patch, self.normalise_target)
            return Terms(pixels=Term(values, to=("student", "decoder")))
        y = hidden_target(ctx, "mae", self.roles["mae"].contract.inputs(seen), masking, self.target, self.layer)
        if self.target == "relation":
            found = ctx.call("student", x, masking, by="projections")
            return Terms(relation=Term(relations(found, y, self.relation_heads)))
        by = "decoder" if self.target == "decoder" else "predictor"
        latent = ctx.call("student", x, masking, by="encode")
        p = (
            ctx.call(by, latent, masking) if by == "decoder" else ctx.call(by, latent)
        )  # [N, 1 + L, D], or [N, 1 + K, D]
        how = {"beta": self.beta, "normalise": self.normalise_target, "whole": by == "decoder"}
        return Terms(hidden=Term(compared(p, y, masking, self.supervise, **how), to=("student", by)))  # type: ignore[arg-type]

    def smoothed(self, batch: Batch) -> Batch:
        """A batch of classes with soft labels."""
        if not self.smoothing or not isinstance(self.task, Classification):
            return batch
        y, classes = batch["y"], self.task.outputs
        soft = y if y.is_floating_point() else nn.functional.one_hot(y, classes).float()
        return {**batch, "y": soft * (1 - self.smoothing) + self.smoothing / classes}

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """Classes, or maps."""
        batch = self.smoothed(batch)
        if self.matches == "none":
            return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))
        if self.matches in ("hard_token", "soft_kl"):
            return self.ask(batch, ctx)
        student, z_t = ctx.signal("student", batch), ctx.signal("teacher", batch).logits
        z_s, y = student.logits, batch["y"]
        if self.matches == "nkd":
            y = y.argmax(-1) if y.is_floating_point() else y
            found = F.nkd(z_s, z_t, y, gamma=self.gamma)
            return Terms(target=Term(found.target), nontarget=Term(found.nontarget))
        value: Literal["kl", "cross_entropy"] = "kl" if self.variant == "paper" else "cross_entropy"
        cwd = channel_divergence(z_s, z_t, temperature=self.temperature, value=value).mean(-1)  # [N]
        return Terms(ce=self.task.supervised(student, batch), cwd=Term(cwd, weight=self.weight_maps))

    def ask(self, batch: Batch, ctx: Context) -> Terms:
        """Half labels, half the teacher's answers: to the batch, or to as many images without labels."""
        token = self.matches == "hard_token"
        taps = ["head", "token_head"] if token else []
        other = {"x": batch["x"], "item": batch["item"], "view": batch["view"]}
        if self.more is not None:
            ids = ctx.draws.randint("unlabelled", batch["item"], len(self.more)).cpu()
            x = self.more.fetch(ids)["x"].to(batch["x"].device)
            other = {"x": x, "item": ids.to(batch["item"]), "view": batch["view"]}
        z_t = ctx.signal("teacher", other).logits
        said = ctx.signal("student", other, taps) if self.more is not None else None
        student = ctx.signal("student", batch, taps)
        said = said or student
        own = self.task.supervised(Signal(student.acts["head"].float()) if token else student, batch)
        own.weight = 0.5
        if token:
            matched = F.cross_entropy(said.acts["token_head"].float(), z_t.argmax(-1))
        else:
            matched = F.kl(said.logits, z_t, temperature=self.temperature)
        return Terms(ce=own, **{"token" if token else "kl": Term(matched, weight=0.5)})

    def fed(self, module: Any, batch: Batch) -> Any:
        """A teacher's first stage alone where that is asked for; as the task feeds it while it is tuned."""
        return fed(module, batch) if "first_stage" in batch else self.task.feed(module, batch)

    def detect(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share]:
        """Boxes: features and objectness where the teacher sees objects."""
        student = ctx.signal("student", batch, TAPS)
        shown = ctx.signal("teacher", asked(batch)).out
        found, M = richly(ctx.call("adapt", list(student.acts[TAPS[0]])), student.acts, shown)
        sums: Any = yield Share(M=M, n=M.new_tensor(float(len(batch["x"]))))
        share = sums["n"] / sums["M"].clamp_min(1e-12)  # [levels]; the engine divides by n
        rise = warmup(ctx.step, self.warm_steps)
        features = Term(share @ found["features"], ("student", "adapt"), self.weight_features * rise)
        objectness = Term(share @ found["objectness"], weight=self.weight_objectness * rise)
        yield Terms(ce=self.task.supervised(student, batch), features=features, objectness=objectness)

    def extras(self) -> dict[str, Any]:
        """Images with hidden patches, and what the teacher, or the student, makes of them."""
        if "mae" not in self.roles:
            return {}
        x = self.task.example(6)["x"]
        rows = drawn(self.roles["mae"], x, self.mask_ratio, self.normalise_target)
        caption = "Training images; what is seen of them; and what the masked autoencoder that teaches makes of that."
        if self.normalise_target:
            caption += " It learns each patch up to brightness and contrast, which are the image's own here."
        return {"pictures": [{"title": "Hidden patches", "caption": caption, "pixels": rows}]}
