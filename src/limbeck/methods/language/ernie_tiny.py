"""ERNIE-Tiny: four stages from a pretrained encoder to a small classifier, each of which changes one thing.

    stage                             teacher      text      loss
    gd   general distillation         pretrained   general   L_lat
    ged  general-enhanced             fine-tuned   general   L_lat
    tad  task-adaptive                fine-tuned   task      L_lat
    tsd  task-specific                fine-tuned   task      L_lat + L_soft + L_hard

    L_lat  = sum over l of MSE(A^S_l, A^T_g(l)) + sum over l of MSE(H^S_l W, H^T_g(l))        (`limbeck.parts.latent`)
    L_soft = tau^2 KL( softmax(z_T / tau) || softmax(z_S / tau) ),   L_hard = CE(y, z_S);     of numbers, squared errors

Teacher first, then text, then loss: general text meets the fine-tuned teacher in ged, which has far more text than the task.
Student and W go from stage to stage; every stage has a fresh optimiser. The stages share ``train.steps`` by ``shares``, so that a
plan without one of them takes as many steps. The classifier is neither asked nor trained before the first stage with L_soft or
L_hard.

A, H: attention and hidden states;  g: layer map;  W: projection to the teacher's width;  z: logits;  y: labels
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.data.text import Document, PythonHelp, TextSource
from limbeck.errors import ConfigError, DataError
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Data, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.settings import Natural, NonNegative, Positive, Share, settings
from limbeck.parts.attention import projections
from limbeck.parts.latent import Kind, Latent, first
from limbeck.tasks.masked_words import MaskedWords, TextRows
from limbeck.tasks.text_classes import TextClasses
from limbeck.tasks.tokenized import encode, trunk

CARD = Card(
    number=58,
    slug="ernie-tiny",
    title="ERNIE-Tiny: A Progressive Distillation Framework for Pretrained Transformer Compression",
    year=2021,
    arxiv="2106.02241",
    family="language",
    methods={"ernie-tiny": "ErnieTiny"},
    optimised="network weights",
    signals=("attention scores", "hidden states", "logits", "labels"),
    provenance={
        "stages": "paper, abstract; no code was released",
        "latent loss": "reconstructed from TinyBERT's, whose released code was checked against vectors; means are over real tokens "
        "here, and over padding too with variant=released",
        "soft and hard loss, weights, lengths": "reconstructed; the abstract says that both are added in the last stage",
        "replaced words in tad": "ours; TinyBERT replaces words by BERT's guesses",
        "a teacher from scratch": "ours: masked words on the general text, then labels",
    },
    claim="At equal total steps the four stages give at least the task accuracy of three without the general-enhanced one, that of "
    "general distillation and then labels, and that of labels alone; the enhanced stage gains more the fewer labels there are.",
    recipe="ernie-tiny",
    exceptions={
        "at_equality": "the student's states go through a projection from its own width, which is not the identity at first; a "
        "test holds the latent loss of equal networks to 0",
        "moves": "the encoder that is pretrained here learns words: its pooler and head for classes are not asked, and stand still",
    },
    notes="With teacher=hf:FOLDER of a pretrained encoder the stage tune fine-tunes it; of one that is fine-tuned already, name "
    "the other as participants.pretrained. gd serves every task: method.phases=[gd], then student=hf:RUN/student.",
)

Name = Literal["gd", "ged", "tad", "tsd"]
Who = Literal["pretrained", "finetuned"]
Where = Literal["general", "task"]


@dataclass(frozen=True)
class Phase:
    """One of the four stages.

    Attributes:
        name: which.
        teacher: who is repeated.
        text: what is read.
        latent, soft, hard: weights of the losses.
    """

    name: str
    teacher: Who
    text: Where
    latent: float = 1.0
    soft: float = 0.0
    hard: float = 0.0

    def changed(self, other: Phase) -> list[str]:
        """What differs from another one: teacher, text, loss.

        Example:
            >>> PLAN["gd"].changed(PLAN["ged"])
            ['teacher']
        """
        mine, theirs = ((p.teacher, p.text, (p.latent, p.soft, p.hard)) for p in (self, other))
        return [n for n, a, b in zip(("teacher", "text", "loss"), mine, theirs, strict=True) if a != b]


PLAN: Mapping[str, Phase] = {
    "gd": Phase("gd", "pretrained", "general"),
    "ged": Phase("ged", "finetuned", "general"),
    "tad": Phase("tad", "finetuned", "task"),
    "tsd": Phase("tsd", "finetuned", "task", 1.0, 1.0, 1.0),
}
"""The paper's stages. Without ``ged`` they are TinyBERT's two phases."""

SHARES: Mapping[str, float] = {"gd": 0.4, "ged": 0.2, "tad": 0.2, "tsd": 0.2}
"""Of the steps. [reconstructed]"""


@settings
class ErnieTiny(Method[TextClasses]):
    """Progressive distillation in four stages.

    Args:
        general: text without labels for gd and ged; texts that the task evaluates are taken out of it.
        phases: which stages, in this order.
        shares: parts of ``train.steps`` that the stages take (``{gd: 0.4}``), in proportion; ``null`` is 0.4, 0.2, 0.2, 0.2.
        teachers: who is repeated in a stage, where it is not the paper's (``{ged: pretrained}``).
        texts: what is read in a stage, where it is not the paper's (``{tad: general}``).
        latent: pre-softmax ``scores`` or ``probabilities`` of attention beside hidden states; ``relations`` of the last
            layers' queries, keys and values, for any heads; ``hidden`` states alone. The same in all stages.
        layer_map: which of the teacher's layers, from 1, each of the student's repeats; ``null`` spreads them evenly.
        relation_heads: into which both networks are cut for ``relations``; 0 takes their own.
        projections: one projection of the student's states ``shared`` by all layers, or one a ``layer``.
        temperature: tau of the soft loss.
        latent_weight: of L_lat in tsd; 1 before.
        soft_weight: of L_soft in tsd.
        hard_weight: of L_hard in tsd.
        replaced: share of the tokens of task texts that become tokens of the general text in tad.
        variant: ``released`` means over padding too, as TinyBERT's code does.
    """

    stage_names = ("pretrain", "tune", "gd", "ged", "tad", "tsd")

    general: TextSource = PythonHelp()
    phases: list[Name] | None = None
    shares: dict[Name, Annotated[float, Gt(0)]] | None = None
    teachers: dict[Name, Who] | None = None
    texts: dict[Name, Where] | None = None
    latent: Kind = "scores"
    layer_map: list[int] | None = None
    relation_heads: Natural = 0
    projections: Literal["shared", "layer"] = "shared"
    temperature: Positive = 1.0
    latent_weight: NonNegative = 1.0
    soft_weight: NonNegative = 1.0
    hard_weight: NonNegative = 1.0
    replaced: Share = 0.0
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """The plan; who takes part follows from it."""
        names: Sequence[str] = list(PLAN) if self.phases is None else self.phases
        if not names or len(set(names)) < len(names):
            raise ValueError(f"phases must name at least one stage, each once, of {', '.join(PLAN)}")
        self.plan = [
            Phase(
                n,
                (self.teachers or {}).get(n, PLAN[n].teacher),  # type: ignore[call-overload]
                (self.texts or {}).get(n, PLAN[n].text),  # type: ignore[call-overload]
                *((self.latent_weight, self.soft_weight, self.hard_weight) if n == "tsd" else (1.0, 0.0, 0.0)),
            )
            for n in names
        ]
        last = next((p for p in self.plan if p.name == "tsd"), None)
        if last is not None and not (last.latent or last.soft or last.hard):
            raise ValueError(
                "latent_weight must be above 0 where soft_weight and hard_weight are 0: tsd has nothing to learn"
            )
        if last is not None and last.text == "general" and last.hard:
            raise ValueError("texts must be task for tsd: general text has no labels (or set hard_weight=0)")
        if last is not None and last.teacher == "pretrained" and last.soft:
            raise ValueError(
                "teachers must be finetuned for tsd: a pretrained teacher knows no classes (or set soft_weight=0)"
            )
        self.participants = {
            "teacher": Participant(taught=False, judged=True),
            "pretrained": Participant(taught=False, judged=False, needed=False),
        }

    # ------------------------------------------------------------------------------------------------------- who and what
    def accept(self, task: Any) -> None:
        """Classes, one an item, or numbers."""
        super().accept(task)
        if task.kind_of_target not in ("label", "number"):
            raise ConfigError(
                "task.target", "ERNIE-Tiny is for one class an item, or numbers", given=task.kind_of_target
            )

    def bind(self, setup: Setup) -> None:
        """Find the layers of all networks, read the general text, see who is still to be taught."""
        super().bind(setup)
        teacher = setup.teacher
        assert teacher is not None
        wanted = any(p.teacher == "pretrained" for p in self.plan)
        self.tunes = not teacher.model.trained
        ready = bool(getattr(teacher.model, "pretrained", False))  # an encoder's folder, whose head is new
        given = setup.built.get("pretrained")
        self.pretrains = False
        if self.tunes and isinstance(teacher.module, nn.Module) and not ready:
            with torch.random.fork_rng(devices=[]):  # the same for every seed, so that all share what is taught
                seed_modules(key_of(0, "init", "teacher"), torch.device("cpu"))
                teacher.module.load_state_dict(teacher.model.build(self.task).module.state_dict())
        if given is None and wanted and not self.tunes:
            raise ConfigError(
                "participants.pretrained",
                "the teacher is fine-tuned, and gd repeats one that is not",
                expected="the encoder that it was fine-tuned from",
                remedy="set participants.pretrained=hf:FOLDER, or leave gd out: method.phases=[ged,tad,tsd]",
            )
        if given is not None and not given.model.trained and not getattr(given.model, "pretrained", False):
            raise ConfigError(
                "participants.pretrained",
                "it has no pretrained weights",
                given=type(given.model).__name__,
                remedy="name the folder of a pretrained encoder, or leave it out: one is pretrained here",
            )
        if given is None and self.tunes and not ready:
            self.pretrains = True
        if given is None and (wanted or self.pretrains):
            self.new("pretrained", like="teacher")
        self._bind_latent()
        self.general_rows = self._general(setup.seed)
        if self.pretrains:
            width, size = self.width("pretrained"), self.task.vocabulary
            self.new("words", lambda: nn.Linear(width, size))

    def _bind_latent(self) -> None:
        student = self.roles["student"].module
        if not hasattr(student, "base_model") or trunk(student) is student:
            raise ConfigError(
                "student",
                "it has no encoder below its head",
                given=type(student).__name__,
                remedy="take student=encoder or hf:FOLDER",
            )
        self.matched: dict[str, Latent] = {}
        for name in dict.fromkeys("teacher" if p.teacher == "finetuned" else "pretrained" for p in self.plan):
            self.matched[name] = Latent(
                student,
                self.roles[name].module,
                self.latent,
                self.layer_map,
                self.relation_heads,
                self.variant == "released",
                "teacher" if name == "teacher" else "pretrained teacher",
            )
        widths = {name: self.width(name) for name in self.matched}
        if len(set(widths.values())) > 1:
            raise ConfigError(
                "participants.pretrained",
                "its width is another than the teacher's",
                given=widths,
                expected="equal widths",
            )
        places = len(next(iter(self.matched.values())).hidden[0])
        sides = self.width("student"), next(iter(widths.values()))
        self.names = ["projection"] if self.projections == "shared" else [f"projection:{i}" for i in range(places)]
        for name in self.names:
            self.new(name, lambda: nn.Linear(*sides, bias=False))
        for name in ("student", "teacher", "pretrained"):
            if name in self.roles:
                self.roles[name].feed = self.feeding(name)

    def width(self, role: str) -> int:
        """Columns of a network's hidden states."""
        config: Any = getattr(self.roles[role].module, "config", None)
        return int(getattr(config, "hidden_size", 0) or getattr(config, "dim", 0))

    def _general(self, seed: int) -> TextRows:
        """The general text as rows, in the task's tokenizer and length; what the task evaluates is taken out."""
        task = MaskedWords(self.general, length=self.task.length, packing="pack")
        try:
            task.load(seed)
        except DataError as error:  # a reader of texts knows them as the task's
            error.argument, error.remedy = (
                re.sub(r"(task\.)?\bdata\b", "method.general", x) for x in (error.argument, error.remedy)
            )
            raise
        task.follow(self.task)
        judged = {w for data in (self.task.valid, self.task.test) for w in texts_of(data)}
        kept, cut = apart(task.train.documents, judged)
        self.masked = task
        self.notes = [f"general text: {cut} passages that the task evaluates were taken out"] if cut else []
        return TextRows(task, kept, "general")

    # ------------------------------------------------------------------------------------------------------------- stages
    def steps(self) -> dict[str, int]:
        """How many steps each stage takes: ``train.steps`` in all."""
        part = {p.name: (self.shares or {}).get(p.name, SHARES[p.name]) for p in self.plan}  # type: ignore[call-overload]
        whole, total = sum(part.values()), self.setup.train.steps
        found, done, said = {}, 0.0, 0
        for name, share in part.items():
            done += share
            found[name] = round(total * done / whole) - said
            said += found[name]
        return found

    def stages(self) -> list[Stage]:
        """Who teaches first, where that is still to be made (remembered for every seed and student); then the plan."""
        train, found = self.setup.train, list[Stage]()
        plain = train.with_(groups=None, only=None)
        if self.pretrains:
            body = {"pretrained": plain.with_(only=inside(self.roles["pretrained"].module)), "words": plain}
            found.append(self._made("pretrain", self.pretrain, self.general_rows, body))
        if self.tunes:
            found.append(self._made("tune", self.tune, self.task.teacher_train, {"teacher": plain}, self.begin_tuning))
        for phase, steps in zip(self.plan, self.steps().values(), strict=True):
            last = bool(phase.soft or phase.hard)
            student = train if last else plain.with_(only=inside(self.roles["student"].module))
            learns: dict[str, Optim] = {"student": student}
            if phase.latent:
                learns |= dict.fromkeys(self.names, plain)
            found.append(
                Stage(
                    phase.name,
                    steps=steps,
                    data=self.general_rows if phase.text == "general" else self.task.train,
                    batch_size=train.batch_size,
                    optim={n: self._within(o, steps) for n, o in learns.items()},
                    step=self.stepping(phase),
                    judged=last,
                    augmented=last,
                )
            )
        return found

    def _within(self, optim: Optim, steps: int) -> Optim:
        """The schedule over a stage: the warmup is as large a part of it as of the whole."""
        warm = round(optim.warmup * steps / max(1, self.setup.train.steps))
        return optim.with_(steps=steps, warmup=min(steps, warm))

    def _made(self, name: str, step: Any, data: Data, optim: dict[str, Optim], begin: Any = None) -> Stage:
        """A stage that makes a teacher."""
        train = self.setup.train
        return Stage(
            name,
            steps=train.steps,
            data=data,
            batch_size=train.batch_size,
            optim=optim,
            step=step,
            begin=begin,
            remember=[],
            roles=[n for n in ("pretrained", "words", "teacher") if n in self.roles],
            scope=name,
            judged=False,
            augmented=False,
        )

    def pretrain(self, batch: Batch, ctx: Context) -> Terms:
        """Masked words on the general text."""
        shown, which = self.masked.hide(batch)
        last = projections(self.roles["pretrained"].module, -1).block
        h = first(ctx.signal("pretrained", self.inside({**batch, "input_ids": shown}), [last]).acts[last])
        rows = which.flatten().nonzero()[:, 0]
        z = ctx.call("words", h.flatten(0, 1)[rows])
        values = F.cross_entropy(z, batch["input_ids"].flatten()[rows])
        return Terms(words=Term(values, to=("pretrained", "words")))

    def begin_tuning(self, ctx: Context) -> None:
        """The teacher begins where the encoder that was pretrained here has ended."""
        if self.pretrains:
            body: Any = trunk(self.roles["pretrained"].module)
            trunk(self.roles["teacher"].module).load_state_dict(body.state_dict())

    def tune(self, batch: Batch, ctx: Context) -> Terms:
        """The teacher, by labels."""
        hard = self.task.supervised(ctx.signal("teacher", batch), batch)
        hard.to = ("teacher",)
        return Terms(hard=hard)

    def stepping(self, phase: Phase) -> Any:
        """The step of a stage."""

        def step(batch: Batch, ctx: Context) -> Terms:
            return self.distil(phase, batch, ctx)

        return step

    def distil(self, phase: Phase, batch: Batch, ctx: Context) -> Terms:
        """L_lat; in the last stage L_soft and L_hard too."""
        name = "teacher" if phase.teacher == "finetuned" else "pretrained"
        latent, asks = self.matched[name], bool(phase.soft or phase.hard)
        if phase.name == "tad" and phase.text == "task" and self.replaced:
            batch = self.replace(batch, ctx)
        fed = batch if asks and phase.text == "task" else self.inside(batch, body=not asks)
        taps = [latent.taps(side) if phase.latent else [] for side in (0, 1)]
        student = ctx.signal("student", fed, taps[0])
        teacher = ctx.signal(name, fed, taps[1]) if phase.latent or phase.soft else None
        terms = Terms()
        if phase.latent:
            assert teacher is not None
            acts, where = (student.acts, teacher.acts), fed.get("attention_mask")
            attention = latent.attention(acts, where)
            if attention is not None:
                terms["attention"] = Term(attention, weight=phase.latent)
            values = latent.states(acts, lambda i, h: ctx.call(self.names[min(i, len(self.names) - 1)], h), where)
            terms["hidden"] = Term(values, to=("student", *self.names), weight=phase.latent)
        if phase.soft:
            assert teacher is not None
            terms["soft"] = Term(self.soft(student.logits, teacher.logits), weight=phase.soft)
        if phase.hard:
            hard = self.task.supervised(student, batch)
            hard.weight = phase.hard
            terms["hard"] = hard
        return terms

    def soft(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """L_soft of each item [N]: a divergence of classes, squared errors of numbers."""
        if self.task.kind_of_target == "number":
            return (z_s.float() - z_t.float()).square().flatten(1).mean(1)
        return F.kl(z_s, z_t, temperature=self.temperature)

    def replace(self, batch: Batch, ctx: Context) -> Batch:
        """Task texts in which some tokens are ones that stand in the general text; marks and padding stay."""
        ids: Tensor = batch["x"]
        key = batch["item"] + (batch["view"] << 40)
        special = torch.tensor(sorted(set(self.task.tokenizer.all_special_ids)), device=ids.device)
        words = batch["attention_mask"].bool() & ~torch.isin(ids, special)
        rows = self.general_rows.rows()
        pool = rows.ids.flatten()
        pool = pool[~torch.isin(pool, special.to(pool))].to(ids)
        u = ctx.draws.rand("replaced", key, ids.shape[1:])
        other = pool[ctx.draws.randint("words", key, len(pool), ids.shape[1:])]
        return {**batch, "x": torch.where(words & (u < self.replaced), other, ids)}

    def inside(self, batch: Batch, body: bool = True) -> Batch:
        """A batch of which `fed` asks the encoder alone; general text goes in as the task's does."""
        ids = batch.get("input_ids", batch.get("x"))
        return {**batch, "x": ids, "inside": body}

    def feeding(self, role: str) -> Any:
        """How a role is fed: the encoder alone where a batch says so, so that no head is asked; else as the task does.

        What the encoder shows is read by taps: in the place of answers stand zeros.
        """
        contract = self.roles[role].contract
        columns = contract.width or (1 + max(contract.classes) if contract.classes else self.task.outputs)

        def fed(module: Any, batch: Batch) -> Any:
            if batch.get("inside"):
                encode(trunk(module), batch["x"], batch)
                return torch.zeros(len(batch["x"]), columns, device=batch["x"].device)
            return self.task.feed(module, batch)

        return fed


def inside(module: Any) -> list[str]:
    """Patterns of the parameters of an encoder's layers and embeddings: neither its head nor the pooler below that."""
    name = next(n for n, m in module.named_modules() if m is trunk(module))
    return [
        f"{name}.{child}.*" for child, m in trunk(module).named_children() if child != "pooler" and list(m.parameters())
    ]


def texts_of(data: Any) -> list[str]:
    """The texts of a split of labelled texts, in words with single blanks."""
    while hasattr(data, "data") and not hasattr(data, "documents"):
        ids = data.ids.tolist()
        inner = data.data
        if hasattr(inner, "documents"):
            return [" ".join(t.split()) for i in ids for d in [inner.documents[i]] for t in (d.prompt, d.text) if t]
        data = inner
    return [" ".join(t.split()) for d in getattr(data, "documents", []) for t in (d.prompt, d.text) if t]


_PASSAGES = re.compile(r"\n\s*\n|(?<=[.:!?])\s+(?=[A-Z])")


def apart(documents: Sequence[Document], judged: set[str]) -> tuple[list[Document], int]:
    """Documents without the passages (paragraphs, sentences) that are evaluated, and how many these were.

    Example:
        >>> apart([Document("One here. Two there.")], {"Two there."})[1]
        1
    """
    kept, count = [], 0
    for document in documents:
        pieces = [p for p in _PASSAGES.split(document.text) if p.strip()]
        mine = [p for p in pieces if " ".join(p.split()) not in judged]
        count += len(pieces) - len(mine)
        text = document.text if len(mine) == len(pieces) else " ".join(mine)
        if text.strip():
            kept.append(Document(text, source=document.source, number=document.number))
    return kept, count
