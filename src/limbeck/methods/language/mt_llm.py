"""MT-LLM: a translation encoder stacked under a language model, so that it understands the languages the encoder knows.

    a = pool( LLM(x) ),  adapter off, no gradient;     b = pool( LLM( W e + b0 ) ),  e = MT(x'),  adapter on
    1  adapt     min over W, b0, adapter   mean (b - a)^2,    English texts without labels
    2  task      the language model alone learns the task from English labels: it is the teacher
    3  distil    min over adapter          mean (b - a')^2,   a' the teacher's vectors of the task's texts, recorded once
       then classes by the teacher's head on b, in every language that the encoder reads

x, x': a text as the language model's and as the encoder's tokens, which need not correspond. The released code computes the
encoder under inference_mode; here it is no_grad. It logs the share of variance unexplained, fvu, within the student's batch.

Where no trained translation encoder is named (``student.front.path``), a stage before these trains a small one to bring
translations together (InfoNCE of pooled states); and where no other language model is named (``participants.llm``), the
teacher's own body is the one that is stacked, in both stages. Both are ours: they show the mechanism, not NLLB and Llama.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.pooling import pool_tokens, unexplained_variance
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Gather, Method, Participant, Setup, Share, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.settings import Positive, settings
from limbeck.networks.stacked import PooledLm, StackedEncoder
from limbeck.tasks.crosslingual import CrossLingual

CARD = Card(
    number=42,
    slug="mt-llm",
    title="Self-Distillation for Model Stacking Unlocks Cross-Lingual NLU in 200+ Languages",
    year=2024,
    venue="Findings of EMNLP 2024",
    arxiv="2406.12739",
    repository="fdschmidt93/trident-mt-llm",
    licence="MIT",
    family="language",
    methods={"mt-llm": "MtLlm"},
    optimised="network weights",
    signals=("pooled states",),
    provenance={
        "loss, pooling, fvu, who learns when": "code, checked against recorded vectors",
        "no_grad in place of inference_mode": "the released form fails in float32",
        "training of a small translation encoder": "ours, where none is named: InfoNCE of translations",
        "the teacher's body in both stages": "ours, where no other language model is named",
        "not here": "multiple choice (its mathematics is `limbeck.functional.pooling.pool_choices`), 4-bit weights, the baselines "
        "that translate the test texts",
    },
    claim="With labels in one language alone the stack answers far better in others than the language model itself, and better "
    "than the stack fine-tuned on the labels directly, while in the language of the labels it stays within a few points of the "
    "language model.",
    recipe="mt-llm",
    exceptions={
        "at_equality": "student and teacher are built differently: one cannot take the other's place",
        "moves": "the translation encoder and the language model under the adapter stand still in the last stages",
    },
    notes="A demonstration of the mechanism unless trained models are named by student.front.path, student.lm.path and teacher.lm.path.",
)


@settings
class MtLlm(Method[CrossLingual]):
    """Model stacking by self-distillation.

    Stages are tuned by their names: ``stages.translate.steps``, ``stages.adapt.steps``, ``stages.distil.steps``.

    Args:
        adapt: learn from texts without labels first; off is the ablation.
        objective: ``distil`` follows the teacher's vectors of the task's texts, without labels; ``direct`` fine-tunes the stack
            on the labels, with a head of its own.
        train_proj: the linear layer learns in the last stage too.
        sharpness: of the loss that brings translations together, a temperature.
    """

    adapt: bool = True
    objective: Literal["distil", "direct"] = "distil"
    train_proj: bool = False
    sharpness: Positive = 0.05

    participants = MappingProxyType(
        {"teacher": Participant(), "llm": Participant(needed=False, taught=False, judged=False)}
    )
    stage_names = ("translate", "adapt", "record")

    def bind(self, setup: Setup) -> None:
        """Take the participants; the stack begins with the language model's weights and the teacher's head.

        Raises:
            ConfigError: the student is no stack, or the teacher no pooled language model.
            ShapeError: student.lm is built otherwise than what it begins with.
        """
        super().bind(setup)
        for name, role in self.roles.items():
            wanted, use = (StackedEncoder, "stacked") if name == "student" else (PooledLm, "pooled-lm")
            if not isinstance(role.module, wanted):
                setting = "participants.llm" if name == "llm" else name
                raise ConfigError(
                    setting,
                    "the method stacks a translation encoder under a language model",
                    given=type(role.module).__name__,
                    expected=f"{setting}={use}",
                )
        teacher: Any = self.roles["teacher"].module
        llm: Any = self.roles["llm"].module if "llm" in self.roles else teacher
        stack = self.stack
        stack.take(lm=teacher if self.objective == "distil" else None)  # its head
        stack.take(body=llm.body)
        if hasattr(setup.student.model, "begins"):
            setup.student.model.begins = (
                stack  # whoever is trained alone begins with the same encoder and language model
            )

    @property
    def stack(self) -> StackedEncoder:
        """The student."""
        made: Any = self.roles["student"].module
        return made

    def stages(self) -> list[Stage]:
        """The encoder's own training where it has none, adaptation, the teacher's vectors, the task."""
        train, task, found = self.setup.train, self.task, list[Stage]()
        if getattr(getattr(self.setup.student.model, "front", None), "path", None) is None:
            optim = Optim(lr=2e-3, optimizer="adam", only=["front.*"])
            found.append(
                Stage(
                    "translate",
                    steps=600,
                    data=task.pairs,
                    batch_size=32,
                    optim={"student": optim},
                    step=self.translate_step,
                    remember=["mt-llm", self.sharpness],
                    roles=["student"],
                    judged=False,
                )
            )
        more: dict[str, Any] = {"steps": train.steps, "batch_size": train.batch_size}
        if self.adapt:
            optim = train.with_(only=["lora.*", "proj.*"])
            data = task.plain_texts()
            found.append(
                Stage("adapt", data=data, optim={"student": optim}, step=self.adapt_step, judged=False, **more)
            )
        proj = ["proj.*"] if self.train_proj else []
        if self.objective == "direct":
            optim = train.with_(only=["lora.*", "lm.head.*", *proj])
            return [*found, Stage("distil", data=task.train, optim={"student": optim}, step=self.direct_step, **more)]
        found.append(
            Stage("record", data=task.train, batch_size=128, record=self.record, remember=["mt-llm"], roles=["teacher"])
        )
        optim = train.with_(only=["lora.*", *proj])
        return [*found, Stage("distil", data=task.train, optim={"student": optim}, step=self.distil_step, **more)]

    # ------------------------------------------------------------------------------------------------ steps
    def translate_step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
        """Pooled states of a text close to those of its translation, and far from those of the other ones."""
        one, other = (
            torch.nn.functional.normalize(pool_tokens(ctx.call("student", ids, mask, by="translate"), mask), dim=-1)
            for ids, mask in ((batch["front_x"], batch["front_mask"]), (batch["into_x"], batch["into_mask"]))
        )
        rows: Any = yield Gather(one=one, other=other)
        own = rows.numbers("one")
        there = F.cross_entropy(one @ rows["other"].T / self.sharpness, own)
        back = F.cross_entropy(other @ rows["one"].T / self.sharpness, own)
        yield Terms(translate=Term((there + back) / 2))

    def adapt_step(self, batch: Batch, ctx: Context) -> Terms:
        """The stack's vector of a text beside the language model's own, with the adapter off."""
        a = ctx.call("student", batch["x"], batch["attention_mask"], by="plain", grad=False)
        return self._near("adapt", a, batch, ctx)

    def record(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """The teacher's vectors."""
        return {"vector": ctx.call("teacher", batch["x"], batch["attention_mask"], by="vectors")}

    def distil_step(self, batch: Batch, ctx: Context) -> Terms:
        """The stack's vector beside the recorded one."""
        a = ctx.recorded("record").fetch(batch["item"].cpu())["vector"].to(ctx.device)
        return self._near("distil", a, batch, ctx)

    def _near(self, name: str, a: Tensor, batch: Batch, ctx: Context) -> Terms:
        b = ctx.call("student", batch["front_x"], batch["front_mask"], by="vectors")
        n = len(b)
        fvu = unexplained_variance(b.detach(), a) * n if n > 1 else b.new_zeros(())
        return Terms({"fvu": (fvu, n if n > 1 else 0)}, **{name: Term(F.squared_error(b, a) / b.shape[1])})

    def direct_step(self, batch: Batch, ctx: Context) -> Terms:
        """The task's own loss."""
        return Terms(ce=self.task.supervised(ctx.signal("student", batch), batch))
