"""Born-again networks: a network of the same architecture learns from the one before it, generation after generation.

    generation 0:  L = CE(q, y)
    generation k:  L = w CE(q_k, y) + T^2 KL( p_{k-1} || q_k ),        q_k from fresh weights

treatment=confidence (CWTM) weighs each item's CE by how sure the teacher is, max p, over the batch's mean of it, in place of
the KL; treatment=permuted (DKPP) permutes what the teacher says of the classes that are not its first. The ensemble of all
generations (BANE) is a row of the report.

p: the teacher's probabilities [N, C];  q: the student's;  y: labels [N];  w: weight of the labels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Setup, Share, Stage, Term, Terms
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import Count, NonNegative, Positive, settings
from limbeck.models.ensemble import Ensemble
from limbeck.parts.generations import Generations

CARD = Card(
    number=None,
    slug="born-again",
    title="Born-Again Neural Networks",
    year=2018,
    venue="ICML 2018",
    arxiv="1805.04770",
    family="classification",
    methods={"born-again": "BornAgain"},
    optimised="the weights of one network per generation",
    signals=("logits",),
    provenance={
        "generations, labels beside the teacher or without them, ensemble": "paper, sections 3 and 3.1",
        "CWTM, DKPP": "paper, section 3.2",
        "temperature": "ours; the paper has none",
    },
    claim="A second generation of the same architecture is more accurate than the first, and the ensemble of all more accurate than "
    "each.",
    recipe="born-again",
    notes="The student alone has as many steps as one generation. Repeated self-distillation with a weight that is estimated for "
    "each step is guided-self-distillation.",
)


@settings
class BornAgain(Generations):
    """Self-distillation over generations of one architecture.

    Args:
        generations: how many learn from their predecessor; the first network learns from labels alone and is not counted.
        labels: weight of the labels beside the teacher; 0 leaves them out.
        treatment: of what the teacher says: as it is (``none``), ``confidence`` (CWTM) or ``permuted`` (DKPP).
        temperature: softens both distributions.
    """

    generations: Count = 1
    labels: NonNegative = 1.0
    treatment: Literal["none", "confidence", "permuted"] = "none"
    temperature: Positive = 1.0

    def bind(self, setup: Setup) -> None:
        """A network for each generation."""
        super().bind(setup)
        self.grow(setup, self.generations + 1)
        self.state = {"now": 0}

    def stages(self) -> list[Stage]:
        """One training a generation."""
        train = self.setup.train
        return [
            Stage(
                f"generation{k}",
                steps=train.steps,
                data=self.task.train,
                batch_size=train.batch_size,
                optim={role: train},
                begin=partial(self._begin, role, k),
                step=partial(self.learn, role, k),
            )
            for k, role in enumerate(self.names)
        ]

    def _begin(self, role: str, k: int, ctx: Context) -> None:
        """Fresh weights; the generation before teaches."""
        self.state["now"] = k
        self.afresh(role, k)
        if k:
            self.hand_over("previous", self.names[k - 1])

    def learn(self, role: str, k: int, batch: Batch, ctx: Context) -> Iterator[Terms | Share]:
        """The labels' loss and the divergence from the generation before."""
        shown = ctx.signal(role, batch)
        ce = self.task.supervised(shown, batch)
        ce.to = (role,)
        if k == 0:
            yield Terms(ce=ce)
            return
        z_t = ctx.signal("previous", batch).logits  # [N, C]
        if self.treatment == "confidence":
            sure = z_t.softmax(-1).amax(-1)
            sums: Any = yield Share(sure=sure.sum(), n=torch.tensor(float(len(sure)), device=sure.device))
            ce.values = ce.values * (sure / (sums["sure"] / sums["n"]))
            yield Terms(ce=ce)
            return
        if self.treatment == "permuted":
            z_t = self.permuted(z_t, batch, ctx)
        terms = Terms(kl=Term(F.kl(shown.logits, z_t, temperature=self.temperature), role))
        if self.labels:
            ce.weight = self.labels
            terms["ce"] = ce
        yield terms

    @staticmethod
    def permuted(z: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Logits [N, C] whose entries but the largest have changed places, for each item another permutation."""
        draw = ctx.draws.rand("permuted", batch["item"], (z.shape[1],)).to(z.device)
        first = torch.nn.functional.one_hot(z.argmax(-1), z.shape[1]).bool()
        # the largest is sorted first on both sides, the others by value's place and by chance
        places = torch.where(first, -1.0, torch.arange(z.shape[1], device=z.device, dtype=draw.dtype)).argsort(-1)
        chance = torch.where(first, -1.0, draw).argsort(-1)
        return torch.zeros_like(z).scatter(1, places, z.gather(1, chance))

    def artifact(self) -> Artifact:
        """The network of the last generation that was trained."""
        return self.network(self.names[self.state["now"]])

    def rows(self) -> dict[str, Artifact]:
        """The generations before, and all together."""
        now = int(self.state["now"])
        found = {f"generation{k}": self.network(n) for k, n in enumerate(self.names[:now])}
        members = [self.roles[n] for n in self.names[: now + 1]]
        if len(members) > 1:
            joined = Ensemble([r.module for r in members], [r.contract for r in members], [1.0] * len(members))
            built = replace(self.setup.student, module=joined, contract=Contract(), labels=self.task.labels)
            found["ensemble"] = NetworkArtifact(self.task, built)
        return found
