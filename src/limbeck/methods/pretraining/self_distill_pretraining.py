"""Further pre-training with self-distillation: a pre-trained encoder is pre-trained on the target's unlabelled data twice.

    1. teacher    theta_T = argmin L_pre(theta; D^u),  started from theta_0
    2. student    L = L_pre(theta; D^u) + lambda mean_b |f_theta(x_b) - f_T(x_b)|^2,  started from theta_0 again
    3. rounds     the student becomes the teacher, and step 2 is repeated, from theta_0 each time
    4. labels     a new head on the encoder, all weights fine-tuned

L_pre of images is a masked autoencoder's: squared error of the pixels of hidden patches. Of texts it is the cross-entropy of
masked words. f is the encoder's output for the whole input, nothing hidden, behind the last norm: of the class token.

theta_0: weights of the public checkpoint, encoder and decoder (or head for words);  f: features [N, D];  D^u: unlabelled data
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le, Lt
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.data.sources import Source
from limbeck.data.text import TextSource
from limbeck.data.unlabelled import read_unlabelled
from limbeck.errors import ConfigError, LimbeckError
from limbeck.evaluators.probe import Probe
from limbeck.functional.pooling import pool_tokens
from limbeck.functional.pretraining import Masking, random_masking
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.evaluator import Evaluator
from limbeck.grammar.method import Batch, Context, Data, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.settings import Natural, NonNegative, settings
from limbeck.grammar.task import Task
from limbeck.models.vit import Vit
from limbeck.networks.vision_transformer import encoder_of
from limbeck.parts.masked_images import drawn, layer_rates, masked, rebuilt, viewed
from limbeck.tasks.classification import Classification
from limbeck.tasks.masked_words import MaskedWords, TextRows
from limbeck.tasks.tokenized import encode, hidden, trunk

CARD = Card(
    number=32,
    slug="self-distill-pretraining",
    title="Self-Distillation for Further Pre-training of Transformers",
    year=2023,
    venue="ICLR 2023",
    arxiv="2210.02871",
    repository="seanie12/self-distillation",
    family="pretraining",
    methods={"self-distill-pretraining": "SelfDistillPretraining"},
    optimised="the encoder's weights",
    signals=("the encoder's representation of the whole input", "hidden patches", "hidden words", "labels"),
    provenance={
        "one step on images": "the released code, checked against its vectors: autoencoder's loss, both class tokens, squared "
        "distance summed over channels, gradients",
        "rounds": "the paper; the released code has one",
        "texts": "the paper; that the first token's last hidden state is compared is reconstructed, as the released code has "
        "images alone; method.feature=mean and tokens are the other readings",
        "weights in place of the representation": "the paper compares with such regularisers (RecAdam and others); here it is "
        "the plain squared distance to the first weights (L2-SP), without RecAdam's schedule",
        "a network without weights": "ours: pre-trained here on other data, method.images or method.texts",
        "order of the data": "ours: teacher and student see the same batches and masks, so that weight=0 gives the teacher again",
    },
    claim="Fine-tuned on a small labelled target, an encoder further pre-trained with self-distillation is at least as "
    "accurate as one further pre-trained without it, also for twice the steps, and as one fine-tuned directly; and it "
    "stays closer to the original weights.",
    recipe="self-distill-pretraining",
    at_equality={"distil": "value"},
    exceptions={
        "terms": "student and teacher start from the same weights, so that before the first step of the teacher's stage the "
        "distance is 0 and sends no gradient; the method's own tests check both on trained networks"
    },
    notes="student=vit-mae:FOLDER, or student.weights=FILE of a masked autoencoder, takes a public checkpoint. Of texts "
    "(task=masked-words) the evaluator fine-tunes: evaluator={use: probe, how: fine-tune, on: {use: text-classes, ...}}; "
    "--preset words shows it.",
)


@settings
class SelfDistillPretraining(Method):
    """Further pre-training with self-distillation.

    Args:
        weight: lambda, of the distance between representations; 0 leaves plain further pre-training.
        rounds: how often the student is made; after the first, the last student is the teacher. 0: further pre-training
            alone.
        feature: the representation: the ``cls`` token, the ``mean`` over patches or words, or all ``tokens``, of which the
            squared distances are averaged.
        view: what both networks see when representations are compared: the ``full`` input, or what is left by the mask.
        anchor: what the student is held to: the representation of the further pre-trained ``teacher`` or of the ``original``
            network, or the original ``weights`` themselves (squared distance, no representation).
        start: each round starts from the ``original`` weights, as in the paper, or from the ``teacher``'s.
        mask_ratio: share of the patches that is hidden; of words it is task.share.
        normalise: patches are predicted with mean 0 and variance 1 each.
        crop: least share of the area of random crops while pre-training; 1, as in the released code: none.
        mirror: mirror images every other time while pre-training.
        recorded: ask the teacher about each item once and keep its answer, where inputs are always the same; off, it is
            asked in each step.
        compare: also fine-tune what was further pre-trained alone, and the original, on the same batches: rows further and
            direct of the report.
        hold: weight of the squared distance to the original weights while fine-tuning (L2-SP, a baseline).
        images, texts: what the original network is pre-trained on here, where it comes without weights: a source of
            images, or of texts, other than the task's.
    """

    takes_unlabelled = "own"

    participants = {"teacher": Participant(taught=False, judged=False, needed=False)}  # noqa: RUF012 (replaced, never changed)
    stage_names = ("pretrain", "further", "record*", "distil*", "tune")
    called = {  # noqa: RUF012 (as above)
        "further": "the same network, further pre-trained without self-distillation",
        "direct": "the same network, fine-tuned directly",
    }

    weight: NonNegative = 1.0
    rounds: Natural = 1
    feature: Literal["cls", "mean", "tokens"] = "cls"
    view: Literal["full", "masked"] = "full"
    anchor: Literal["teacher", "original", "weights"] = "teacher"
    start: Literal["original", "teacher"] = "original"
    mask_ratio: Annotated[float, Gt(0), Lt(1)] = 0.75
    normalise: bool = True
    crop: Annotated[float, Gt(0), Le(1)] = 1.0
    mirror: bool = False
    recorded: bool = True
    compare: bool = False
    hold: NonNegative = 0.0
    images: Source | None = None
    texts: TextSource | None = None

    def validate(self) -> None:
        """What cannot be together."""
        if self.anchor != "teacher" and self.rounds > 1:
            raise ValueError(
                f"rounds must be 0 or 1 with anchor={self.anchor}, under which every round would be the same: {self.rounds}"
            )
        if self.anchor != "teacher" and not self.rounds:
            raise ValueError(f"anchor must be teacher with rounds=0, which holds the student to nothing: {self.anchor}")
        self.tunes = True

    # ------------------------------------------------------------------------------------------------------- who and what
    def judged_by(self, evaluator: Evaluator) -> None:
        """A probe trains or fine-tunes each row itself; every other evaluator wants a network that knows the classes."""
        self.tunes = not isinstance(evaluator, Probe)

    def accept(self, task: Task) -> None:
        """Images with labels, or text in which words are masked."""
        super().accept(task)
        words = isinstance(task, MaskedWords)
        if not words and not (isinstance(task, Classification) and len(task.needs.inputs) == 3):
            text = "text" in type(task).__name__.lower()
            raise ConfigError(
                "task",
                "an encoder is further pre-trained on images or on text without labels",
                given=type(task).__name__,
                expected="task=classification with images, or task=masked-words",
                remedy="of texts the evaluator fine-tunes: task={use: masked-words, data: ...} evaluator={use: probe, "
                "how: fine-tune, on: {use: text-classes, data: ...}}"
                if text
                else "",
            )
        for name, given, fits in (("images", self.images, not words), ("texts", self.texts, words)):
            if given is not None and not fits:
                other = "texts" if name == "images" else "images"
                raise ConfigError(f"method.{name}", "the task has the other kind of data", remedy=f"set method.{other}")
        if words and self.hold:
            raise ConfigError("method.hold", "of texts the evaluator fine-tunes, not the method", given=self.hold)
        self.words = words

    def bind(self, setup: Setup) -> None:
        """Original, teacher and student of one shape; rows to compare with."""
        super().bind(setup)
        self.state = {"distances": {}}
        self.named = "teacher" in self.roles
        if self.words:
            self._bind_words(setup)
        else:
            self._bind_images(setup)
        if self.named:
            self._check_given(setup)
        else:
            self.new("teacher", like="original")
        for name in ("further", "direct") if self.compare else ():
            self.new(name, like="student")
        self.baseline = "further" if self.compare and self.rounds else ""
        self.notes: list[str] = []
        if self.start == "teacher" and self.rounds:
            self.notes.append(
                "the student starts from the teacher's weights (method.start), not from the original ones"
            )
        if self.data.fingerprint == self.task.test.fingerprint:
            self.notes.append("the unlabelled data are the test items themselves: scores on them say too much")

    def _bind_images(self, setup: Setup) -> None:
        model, place = setup.student.model, encoder_of(setup.student.module)
        if not isinstance(model, Vit) or place is None:
            raise ConfigError(
                "student",
                "a masked autoencoder hides patches, which vision transformers have",
                given=type(model or setup.student.module).__name__,
                expected="student=vit, or vit-mae:FOLDER",
            )
        self.inside, net = place
        random_masking(torch.zeros(1, net.patches), self.mask_ratio)  # refuses one that leaves nothing to be seen
        self.data: Data = getattr(self.task, "unlabelled_items", None) or self.task.teacher_train

        def make() -> nn.Module:
            seed_modules(key_of(0, "init", "mae"), torch.device("cpu"))  # one original for every seed
            return model.autoencoder(self.task.needs.with_(inputs=(net.channels, *net.size)))

        self.new("original", make).contract = setup.student.contract
        self.new("decoder", lambda: model.decoder(net, pixels=net.patch**2 * net.channels))
        self.pretrains = not model.prepared
        if self.pretrains:
            self._general(
                "images", self.images, "student=vit-mae:FOLDER, or student.weights=FILE with encoder and decoder"
            )
        if self.pretrains and self.images is not None:
            try:
                self.general: Data = read_unlabelled(self.images, tuple(self.task.needs.inputs), [])
            except LimbeckError as error:
                error.argument = "method.images"
                raise

    def _bind_words(self, setup: Setup) -> None:
        student, model = setup.student, setup.student.model
        self.inside, self.tunes = "", False
        self.data = self.task.train

        def make() -> nn.Module:
            seed_modules(key_of(0, "init", "words"), torch.device("cpu"))
            made: nn.Module = model.build(self.task).module
            return made

        if not hasattr(student.module, "config"):
            raise ConfigError("student", given=type(student.module).__name__, expected="student=encoder, or hf:FOLDER")
        self.pretrains = not model.trained
        self.roles["student"].feed = self.fed
        original = self.new("original", make) if self.pretrains else self.new("original", like="student")
        original.contract, original.feed = student.contract, self.fed
        if self.named:
            self.roles["teacher"].feed = self.fed
        if self.pretrains:
            self._general("texts", self.texts, "student=hf:FOLDER, or student.checkpoint=FILE")
        if self.pretrains and self.texts is not None:
            assert isinstance(self.task, MaskedWords)
            self.general = TextRows(self.task, self.texts.deal().train, "general")

    def _general(self, name: str, given: Any, instead: str) -> None:
        """Refuse a network without weights that nothing is there to pre-train on."""
        if given is None:
            raise ConfigError(
                "student",
                "further pre-training starts from a pre-trained network, and this one has no weights",
                expected=instead,
                remedy=f"or name other {name} to pre-train it on first: method.{name}=SOURCE",
            )

    def _check_given(self, setup: Setup) -> None:
        """A teacher that is named must have weights, and the student's shape."""
        given: Any = setup.teacher
        ready = given.model.prepared or given.model.trained if isinstance(given.model, Vit) else given.model.trained
        if not ready:
            raise ConfigError(
                "teacher",
                "a teacher that is named has been further pre-trained before, and this one has no weights",
                remedy="leave it out: it is then made here, from the student's own weights",
            )
        if not self.rounds:
            raise ConfigError(
                "method.rounds", "with a teacher that is named, 0 leaves nothing to do", given=0, expected="1"
            )
        own, other = (
            {k: list(v.shape) for k, v in self._encoder(n).state_dict().items()} for n in ("student", "teacher")
        )
        odd = [k for k in own if other.get(k) != own[k]]
        if odd:
            raise ConfigError(
                "teacher",
                f"it has another shape than the student, as in {odd[0]}",
                given=other.get(odd[0], "nothing"),
                expected=str(own[odd[0]]),
                remedy="name the same network with other weights",
            )

    def _encoder(self, role: str) -> nn.Module:
        """The part that is handed on and whose representation is compared."""
        module = self.roles[role].module
        if self.words:
            found: nn.Module = trunk(module)
            return found
        place = encoder_of(module)
        if place is None:
            raise ConfigError(
                role, given=type(module).__name__, expected="a vision transformer: vit, or vit-mae:FOLDER"
            )
        return place[1]

    # ------------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        """Pre-training where there are no weights yet, the teacher, the rounds, and labels where the method fine-tunes."""
        plain, found = self.setup.train.with_(groups=None, only=None), list[Stage]()
        how = [self.mask_ratio, self.normalise, self.crop, self.mirror]
        if self.pretrains:
            step = partial(self.pre, "original")
            found.append(
                self._over("pretrain", step, {"original": plain}, self.general, remember=how, roles=["original"])
            )
        if not self.named and (self.anchor == "teacher" or self.compare or self.start == "teacher"):
            begin = partial(self.hand, "original", "teacher")
            finish = self.first_rows if self.rounds else self.as_student
            step = partial(self.pre, "teacher")
            found.append(self._over("further", step, {"teacher": plain}, begin=begin, finish=finish))
        learn = {"student": plain if self.words else plain.with_(only=[f"{self.inside}.*"])}
        learn |= {} if self.words else {"decoder": plain}
        for i in range(self.rounds):
            after = "" if i == 0 else f"-{i + 1}"
            if self.records:
                record = Stage(
                    f"record{after}", data=self.data, record=self.record, batch_size=128, augmented=False, judged=False
                )
                found.append(record)
            step = partial(self.distil, f"record{after}")
            finish = self.finish_round if i + 1 < self.rounds else self.measure
            found.append(self._over(f"distil{after}", step, learn, begin=self.begin_round, finish=finish))
        if self.tunes:
            train = self.setup.train
            groups = layer_rates(self.setup.student.module, 1.0, train.groups)
            found.append(
                Stage(
                    "tune",
                    steps=train.steps,
                    data=self.task.train,
                    batch_size=train.batch_size,
                    optim=dict.fromkeys(self.tuned, train.with_(groups=groups)),
                    step=self.tune,
                )
            )
        return found

    @property
    def tuned(self) -> list[str]:
        """Roles that are fine-tuned."""
        return ["student", "further", "direct"] if self.compare else ["student"]

    @property
    def records(self) -> bool:
        """Whether the teacher can be asked once for all: its input is always the same, and its answer short."""
        still = self.crop == 1 and not self.mirror and self.view == "full" and self.feature != "tokens"
        return self.recorded and still and self.weight > 0 and self.anchor != "weights"

    def _over(self, name: str, step: Any, optim: dict[str, Optim], data: Data | None = None, **more: Any) -> Stage:
        """A stage over unlabelled data. All stages over the target's have the same batches and masks (one scope)."""
        train = self.setup.train
        return Stage(
            name,
            steps=train.steps,
            data=data or self.data,
            batch_size=train.batch_size,
            optim=optim,
            step=step,
            scope="pretrain" if name == "pretrain" else "further",
            judged=self.words and name.startswith("distil"),
            augmented=False,
            **more,
        )

    def hand(self, source: str, to: str, ctx: Context | None = None) -> None:
        """The weights of one role's encoder into another's; of two equal networks all weights."""
        a, b = self.roles[source].module, self.roles[to].module
        assert isinstance(a, nn.Module) and isinstance(b, nn.Module)
        if a.state_dict().keys() == b.state_dict().keys():
            b.load_state_dict(a.state_dict())
            return
        theirs = self._encoder(source).state_dict()
        names = self._encoder("student").state_dict()  # an autoencoder has its decoder beside these
        self._encoder(to).load_state_dict({k: theirs[k] for k in names}, strict=False)

    def first_rows(self, ctx: Context) -> None:
        """What the student is compared with, where it is wanted: the teacher of the first round, and the original."""
        self.measure(ctx)
        if self.compare:
            self.hand("teacher", "further")
            self.hand("original", "direct")

    def as_student(self, ctx: Context) -> None:
        """Without a round, the further pre-trained network is what is delivered."""
        self.hand("teacher", "student")
        self.first_rows(ctx)

    def begin_round(self, ctx: Context) -> None:
        """Start from the original weights, encoder and decoder."""
        if self.named and ctx.stage == "distil":
            self.first_rows(ctx)
        source = self.start
        self.hand(source, "student")
        if not self.words:
            states = [self.roles[n].module.state_dict() for n in (source, "original")]
            whole = next(s for s in states if "decoder_embed.weight" in s)  # of a named teacher there may be no decoder
            own: Any = self.roles["decoder"].module
            own.load_state_dict({k: whole[k] for k in own.state_dict()})

    def finish_round(self, ctx: Context) -> None:
        """The student is the next round's teacher."""
        self.measure(ctx)
        self.hand("student", "teacher")

    def measure(self, ctx: Context | None = None) -> None:
        """How far student and teacher are from the original weights, kept for the log and the result."""
        for name in ("teacher", "student"):
            self.state["distances"][name] = float(self.distance(name).detach().sqrt())

    def distance(self, role: str) -> Tensor:
        """Squared distance of a role's encoder to the original one's, over all of its parameters: a scalar."""
        first, own = (dict(self._encoder(n).named_parameters()) for n in ("original", role))
        names = [n for n, _ in self._encoder("student").named_parameters()]  # without an autoencoder's decoder
        return torch.stack([(own[n].float() - first[n].detach().float()).square().sum() for n in names]).sum()

    def measures(self) -> dict[str, float]:
        """``distance_teacher`` and ``distance_student``: of the encoders to the original weights, when they were made."""
        return {f"distance_{name}": value for name, value in self.state["distances"].items()}

    # -------------------------------------------------------------------------------------------------------------- steps
    def pre(self, role: str, batch: Batch, ctx: Context) -> Terms:
        """Pre-training as it is: hidden patches or words, by a network with its decoder."""
        if self.words:
            term = self.task.supervised(ctx.signal(role, batch), batch)
            term.to = (role,)
            return Terms(words=term)
        x, masking = self.seen(role, batch, ctx)
        return Terms(pixels=Term(self.error(ctx.call(role, x, masking), x, masking), to=role))

    def seen(self, role: str, batch: Batch, ctx: Context) -> tuple[Tensor, Masking]:
        """Images [N, C, H, W] as a role takes them, and which of their patches are hidden."""
        net: Any = self._encoder("original")
        x = self.roles[role].contract.inputs(viewed(batch, ctx, self.crop, self.mirror))
        return x, masked(batch, ctx, net.patches, self.mask_ratio)

    def error(self, found: Tensor, x: Tensor, masking: Masking) -> Tensor:
        """The masked autoencoder's loss [N]."""
        net: Any = self._encoder("original")
        return rebuilt(found, x, masking, net.patch, self.normalise)

    def distil(self, record: str, batch: Batch, ctx: Context) -> Terms:
        """Pre-training, and what holds the student."""
        latent: Tensor | None = None
        if self.words:
            terms = Terms(words=self.task.supervised(ctx.signal("student", batch), batch))
        else:
            x, masking = self.seen("student", batch, ctx)
            latent = ctx.call("student", x, masking, by="encode")  # [N, 1 + K, D]
            found = ctx.call("decoder", latent, masking)
            terms = Terms(pixels=Term(self.error(found, x, masking), to=("student", "decoder")))
        if not self.weight:
            return terms
        if self.anchor == "weights":
            terms["weights"] = Term(self.distance("student"), weight=self.weight, count=1)
            return terms
        if self.records:
            f_t = ctx.recorded(record).fetch(batch["item"])["f"].to(ctx.device)
        else:
            f_t = self.represent(self.anchor, batch, ctx)
        f_s = self.represent("student", batch, ctx, latent if self.view == "masked" else None)
        gap = F.squared_error(f_s, f_t)  # summed over D, as in the released code: [N], of all tokens [N, T]
        if gap.ndim == 2:
            where = batch["where"] if self.words else torch.ones_like(gap, dtype=torch.bool)
            gap = pool_tokens(gap.unsqueeze(-1), where, check=False)[:, 0]
        terms["distil"] = Term(gap, weight=self.weight)
        return terms

    def record(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """The teacher's representation of each item, kept."""
        return {"f": self.represent(self.anchor, batch, ctx)}

    def represent(self, role: str, batch: Batch, ctx: Context, latent: Tensor | None = None) -> Tensor:
        """f of a batch [N, D], of all tokens [N, T, D].

        Args:
            role: who is asked.
            batch: of the target.
            ctx: of the step.
            latent: the encoder's output where it is there already.
        """
        if self.words:
            tokens, first = ctx.signal(role, {**batch, "represent": self.view}).output, 0
        else:
            if latent is None:
                x, masking = self.seen(role, batch, ctx)
                latent = ctx.call(role, x, masking if self.view == "masked" else None, by="encode")
            assert latent is not None
            tokens, first = latent, 1  # the mean is over patches alone
        if self.feature == "tokens":
            return tokens
        if self.feature == "cls":
            return tokens[:, 0]
        return pool_tokens(tokens, batch["where"], check=False) if self.words else tokens[:, first:].mean(1)

    def fed(self, module: Any, batch: Batch) -> Any:
        """A text as the task feeds it, words hidden; or the encoder's last hidden states [N, T, D] of it."""
        if "represent" not in batch:
            return self.task.feed(module, batch)
        assert isinstance(self.task, MaskedWords)
        ids = self.task.hide(batch)[0] if batch["represent"] == "masked" else batch["input_ids"]
        return hidden(encode(trunk(module), ids, batch))

    def tune(self, batch: Batch, ctx: Context) -> Terms:
        """Labels, for the student and for those it is compared with."""
        terms = Terms()
        for role in self.tuned:
            ce = self.task.supervised(ctx.signal(role, batch), batch)
            ce.to = (role,)
            after = "" if role == "student" else f".{role}"
            terms[f"ce{after}"] = ce
            if self.hold:
                terms[f"hold{after}"] = Term(self.distance(role), to=role, weight=self.hold, count=1)
        return terms

    # ------------------------------------------------------------------------------------------------------------ results
    def rows(self) -> dict[str, Artifact]:
        """``further`` and ``direct``, where they are compared."""
        return {name: self.network(name) for name in ("further", "direct") if self.compare}

    def extras(self) -> dict[str, Any]:
        """Images with hidden patches, and what the original network makes of them."""
        if self.words:
            return {}
        rows = drawn(self.roles["original"], self.task.example(6)["x"], self.mask_ratio, self.normalise)
        caption = "Training images; what is seen of them; and what the original network, not yet further pre-trained, predicts."
        return {"pictures": [{"title": "Hidden patches", "caption": caption, "pixels": rows}]}
