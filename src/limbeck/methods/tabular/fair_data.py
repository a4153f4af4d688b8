"""Fair data: a variational autoencoder with latents independent of a protected attribute, distilled and decoded to a table.

    1. teacher   L = sum_k CE(x_hat_k, x_k) + KL(q(z|x,s) || N(0,1)) + beta V2(z, s),    z = mu + exp(logvar / 2) eps
       V2 = sum_s (n_s / n)^2 [D(all, all) + D(s, s) - 2 D(all, s)],  D(A, B) = mean N(mu_i - mu_j; 0, var_i + var_j)
    2. student   L = w_q mean (mu_S - mu_T)^2 + w_u KL( N(mu_T, var_T) || N(mu_S, var_S) );  no term of fairness
    3. data      z ~ student's posterior of real rows;  columns ~ decoder(z, s'), s' redrawn;  y ~ decoder(z) alone

The teacher's loss is FairDisCo's. The abstract names quality and utility losses and a summary the KL; their exact forms, the
label decoded from z alone, s' drawn from its marginal and the student's size are reconstructed.

mu, logvar: of a posterior [N, z];  s: groups [N];  x: columns one-hot [N, sum of widths];  y: classes [N]
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import limbeck.functional as F
from limbeck.errors import ConfigError
from limbeck.functional.gaussian import distance_covariance, gaussian_kl, mmd, prior_kl
from limbeck.functional.tables import column_cross_entropy, column_log_probs
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Data, Gather, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, NonNegative, Positive, settings
from limbeck.grammar.signal import device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.networks.table_vae import Latent, TableDecoder, TableEncoder
from limbeck.parts.latents import LatentSampler, diffusion_steps, gan_steps
from limbeck.tasks.drawn_table import TableArtifact
from limbeck.tasks.table import Drawn, Table

CARD = Card(
    number=15,
    slug="fair-data",
    title="Generating Synthetic Fair Syntax-agnostic Data by Learning and Distilling Fair Representation",
    year=2024,
    venue="arXiv preprint",
    arxiv="2408.10755",
    family="tabular",
    methods={"fair-data": "FairData"},
    optimised="two encoders and a decoder; the result is a table",
    signals=("latents",),
    provenance={
        "fair autoencoder, distance covariance": "the published code of FairDisCo (KDD 2022), checked against recorded vectors",
        "quality and utility losses": "named by the abstract, the KL by a summary; their forms are reconstructed",
        "label from latents alone, protected attribute redrawn": "reconstructed: fairness needs both",
        "noise as input": "the successor Fair4Free (2410.01423), from summaries",
        "latent GAN and diffusion": "FLDGM (ECAI 2023, the same first author), from its description",
        "sizes, steps, bins by quantiles": "ours; presets have the published ones",
    },
    claim="What is learnt from the distilled generator's table has far more demographic parity on real rows than what is "
    "learnt from real data, about as much as from its teacher's, at an accuracy a few points lower, with a smaller encoder.",
    recipe="fair-data",
    at_equality={"quality": "value", "utility": "value"},
    notes="Parity, not equalised odds: groups whose base rates differ cannot have both. No number here makes a decision fair.",
)

TINY = 1e-10  # what the published code adds to the root of the density's determinant


@settings
class FairData(Method[Table]):
    """A fair autoencoder, its encoder distilled, and the table that is decoded from it.

    Args:
        beta: weight of the distance covariance itself (1e7, not 7): with 8 latents V2 is of the order of 1e-6.
        vae: how the teacher and the decoder are trained.
        hidden: hidden layers of the decoder.
        quality: how latents are matched: ``mse``, ``l1``, ``mmd`` (of the batch) or ``none``.
        quality_on: their means (``mu``), or a ``sample`` with one noise for both.
        bandwidth2: squared bandwidth of ``mmd``; by default the median squared distance of the teacher's rows.
        utility: ``kl`` (teacher || student), ``reverse_kl``, ``label_ce`` (the label decoded from the student's latents) or
            ``none``.
        w_quality, w_utility: their weights.
        input: the student sees the ``data``, or ``noise`` in their place (Fair4Free).
        generator: latents come from the student's ``posterior`` of real rows, from the ``prior``, or from a ``gan`` or
            ``ddpm`` trained on the student's latents.
        latent_train: how that is trained.
        y_from: the label is decoded from ``z`` alone, or from ``z_and_s``, which brings the bias back.
        s_sampling: the protected attribute that is decoded with: of a row drawn for itself (``marginal``), the row's own
            (``copy``), or ``uniform``.
        decode: ``sample`` every column, or take its likeliest value (``argmax``).
        size: rows of the table; by default as many as training rows.
        stratified: every batch of the teacher has all groups in proportion.
        variant: ``released`` as FairDisCo's code: 1e-10 in the density's denominator, beta only where it is above 1.
    """

    beta: NonNegative = 1e7
    vae: Optim = Optim(steps=1000, batch_size=512, lr=1e-3)
    hidden: list[Count] = [64]  # noqa: RUF012 (copied, never changed)
    quality: Literal["mse", "l1", "mmd", "none"] = "mse"
    quality_on: Literal["mu", "sample"] = "mu"
    bandwidth2: Positive | None = None
    utility: Literal["kl", "reverse_kl", "label_ce", "none"] = "kl"
    w_quality: NonNegative = 1.0
    w_utility: NonNegative = 1.0
    input: Literal["data", "noise"] = "data"
    generator: Literal["posterior", "prior", "gan", "ddpm"] = "posterior"
    latent_train: Optim = Optim(steps=1000, batch_size=256, lr=1e-4)
    y_from: Literal["z", "z_and_s"] = "z"
    s_sampling: Literal["marginal", "copy", "uniform"] = "marginal"
    decode: Literal["sample", "argmax"] = "sample"
    size: Count | None = None
    stratified: bool = False
    variant: Literal["paper", "released"] = "paper"

    participants = {"teacher": Participant(taught=False)}  # noqa: RUF012

    def validate(self) -> None:
        """Something must be matched."""
        if (self.quality == "none" or not self.w_quality) and (self.utility == "none" or not self.w_utility):
            raise ValueError("quality and utility are both off: the student would learn nothing")
        if self.utility == "label_ce" and self.y_from == "z_and_s":
            raise ValueError("utility=label_ce decodes the label from latents alone: it needs y_from=z")
        if self.quality == "mmd":
            self.coupled = "the mean discrepancy is of a batch"

    def accept(self, task: Task) -> None:
        """Columns must be coded: every one has a cross-entropy."""
        super().accept(task)
        assert isinstance(task, Table)
        if not task.bins and any(c.number for c in task.columns):
            names = [c.name for c in task.columns if c.number]
            raise ConfigError(
                "task.bins",
                f"the columns {names[:5]} are numbers that are not in bins, and every column has a cross-entropy",
                given=0,
                expected="1 or more",
                remedy="set task.bins=8",
            )

    def bind(self, setup: Setup) -> None:
        """Check the encoders; add the decoder, and what draws latents where something is trained to."""
        super().bind(setup)
        task = self.task
        for name in ("student", "teacher"):
            if not isinstance(self.roles[name].module, TableEncoder):
                raise ConfigError(
                    name,
                    "is no encoder of rows",
                    given=type(self.roles[name].module).__name__,
                    expected="table-encoder",
                    remedy=f"set {name}=table-encoder",
                )
        self.z = self.encoder("teacher").latent
        if self.encoder("student").latent != self.z:
            raise ConfigError(
                "student.latent",
                "teacher and student share a decoder, so their latents must have one size",
                given=self.encoder("student").latent,
                expected=str(self.z),
                remedy=f"set student.latent={self.z}",
            )
        apart = self.y_from == "z"
        widths = task.widths if apart else [*task.widths, task.outputs]
        label = task.outputs if apart else 0
        self.new("decoder", lambda: TableDecoder(self.z, len(task.groups), widths, label, self.hidden))
        if self.generator in ("gan", "ddpm"):
            self.new("sampler", lambda: LatentSampler(self.z, time=self.generator == "ddpm"))
        if self.generator == "gan":
            self.new("critic", lambda: LatentSampler(self.z, outputs=1))
        self.notes = list(self._warned())

    def _warned(self) -> Iterator[str]:
        """What is probably not meant."""
        if 1 < self.beta < 100:
            yield f"method.beta={self.beta:g} is the weight itself: if its exponent was meant, set method.beta=1e{self.beta:g}"
        if self.y_from == "z_and_s" or self.s_sampling == "copy":
            yield "the label or the columns see the row's own protected attribute: the table carries its bias"
        data: Any = self.task.teacher_train
        share = torch.bincount(self.task.groups_of(data), minlength=len(self.task.groups)) / len(data)
        missed = (1 - share).pow(self.vae.batch_size)
        for group, p, m in zip(self.task.groups, share.tolist(), missed.tolist(), strict=True):
            if m > 0.05 and not self.stratified:
                yield (
                    f"the group {group} ({100 * p:.2g} % of the rows) is missing from {100 * m:.0f} % of the batches, which "
                    "tell nothing of it: raise method.vae.batch_size, or set method.stratified=true"
                )

    def encoder(self, role: str) -> TableEncoder:
        """A role's encoder."""
        module = self.roles[role].module
        assert isinstance(module, TableEncoder)
        return module

    # ------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        """The fair autoencoder (remembered), the student, and what draws latents, if anything is trained to."""
        train, data = self.setup.train, self.task.train
        source: Data = Stratified(self.task.teacher_train, self.task) if self.stratified else self.task.teacher_train
        shape = [self.hidden, self.y_from, self.beta, self.variant, self.stratified, self.setup.seed]
        found = [
            Stage(
                "vae",
                steps=self.vae.steps,
                data=source,
                batch_size=self.vae.batch_size,
                section="method.vae",
                optim={"teacher": self.vae, "decoder": self.vae},
                step=self.step_vae,
                judged=False,
                shuffle=not self.stratified,
                remember=shape,
                roles=("teacher", "decoder"),
            ),
            Stage("distil", steps=train.steps, data=data, batch_size=train.batch_size, optim={"student": train}),
        ]
        if self.generator in ("gan", "ddpm"):
            more = self.latent_train
            names = ("sampler", "critic") if self.generator == "gan" else ("sampler",)
            step = self.step_gan if self.generator == "gan" else self.step_ddpm
            found.append(
                Stage(
                    "latents",
                    steps=more.steps,
                    data=data,
                    batch_size=more.batch_size,
                    optim=dict.fromkeys(names, more),
                    step=step,
                    section="method.latent_train",
                )
            )
        return found

    def posterior(self, role: str, x: Tensor, s: Tensor, ctx: Context) -> Latent:
        """A role's posterior of rows."""
        return self.encoder(role).posterior(ctx.call(role, x, s))

    def step_vae(self, batch: Batch, ctx: Context) -> Generator[Terms | Gather, Any, None]:
        """Reconstruction, prior and independence of the teacher."""
        s = batch["s"]
        q = self.posterior("teacher", self.task.seen(batch), s, ctx)
        z = q.at(ctx.draws.randn("eps", batch["item"], (self.z,)))
        logits = ctx.call("decoder", z, s)
        codes = torch.cat([batch["code"], batch["y"][:, None]], -1)
        terms = {
            "reconstruction": Term(
                column_cross_entropy(logits.float(), codes, self.all_widths), ("teacher", "decoder")
            ),
            "prior": Term(prior_kl(q.mean, q.logvar), "teacher"),
        }
        if self.weighs:
            every = yield Gather(mean=q.mean, logvar=q.logvar, s=s)  # pairs are of the whole batch, however it is cut
            v2 = self.dependence(every["mean"], every["logvar"], every["s"], own=every.own["s"])  # [N]
            terms["dependence"] = Term(v2, "teacher", weight=self.beta)
        yield Terms({}, **terms)

    @property
    def all_widths(self) -> list[int]:
        """Values of each column that is decoded, the label last."""
        return [*self.task.widths, self.task.outputs]

    @property
    def weighs(self) -> bool:
        """Whether independence is asked for."""
        return self.beta > (1 if self.variant == "released" else 0)

    def dependence(self, mean: Tensor, logvar: Tensor, s: Tensor, groups: int = 0, own: slice | None = None) -> Tensor:
        """Values [N] whose mean is V2."""
        eps = TINY if self.variant == "released" else 0.0
        return distance_covariance(mean, logvar, s, groups=groups or len(self.task.groups), eps=eps, own=own)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The student's latents against the teacher's."""
        s, x = batch["s"], self.task.seen(batch)
        teacher = self.posterior("teacher", x, s, ctx)
        if self.input == "noise":
            x = ctx.draws.randn("input", batch["item"], (x.shape[1],))
        student = self.posterior("student", x, s, ctx)
        eps = ctx.draws.randn("eps", batch["item"], (self.z,))
        terms = {}
        if self.quality != "none" and self.w_quality:
            value = self.quality_of(student, teacher, eps)
            terms["quality"] = Term(value, weight=self.w_quality, count=None if value.ndim else 1)
        if self.utility == "label_ce" and self.w_utility:
            with ctx.through("decoder") as decoder:
                z = decoder(student.at(eps), s)[:, -self.task.outputs :]
            terms["utility"] = Term(F.cross_entropy(z, batch["y"]), weight=self.w_utility)
        elif self.utility != "none" and self.w_utility:
            terms["utility"] = Term(self.utility_of(student, teacher), weight=self.w_utility)
        return Terms({}, **terms)

    def quality_of(self, student: Latent, teacher: Latent, eps: Tensor) -> Tensor:
        """Distance of latents [N], averaged over z; of ``mmd`` a scalar."""
        a, b = (student.mean, teacher.mean) if self.quality_on == "mu" else (student.at(eps), teacher.at(eps))
        if self.quality == "mmd":
            return mmd(a, b.detach(), bandwidth2=self.bandwidth2)
        gap = a - b.detach()
        return (gap.square() if self.quality == "mse" else gap.abs()).mean(-1)

    def utility_of(self, student: Latent, teacher: Latent) -> Tensor:
        """KL of the posteriors [N], summed over z."""
        way: Literal["forward", "reverse"] = "reverse" if self.utility == "reverse_kl" else "forward"
        return gaussian_kl(*student, teacher.mean.detach(), teacher.logvar.detach(), direction=way)

    # ---------------------------------------------------------------------------------------------------- generation
    def latents(self, batch: Batch, ctx: Context) -> Tensor:
        """Latents of the student for a batch, without a graph."""
        with torch.no_grad():
            q = self.posterior("student", self.task.seen(batch), batch["s"], ctx)
            return q.at(ctx.draws.randn("latent", batch["item"], (self.z,)))

    def step_ddpm(self, batch: Batch, ctx: Context) -> Terms:
        """Denoise the student's latents."""
        return diffusion_steps("sampler", self.latents(batch, ctx), batch, ctx)

    def step_gan(self, batch: Batch, ctx: Context) -> Iterator[Terms]:
        """A critic of latents, and what draws them."""
        yield from gan_steps("sampler", "critic", self.latents(batch, ctx), batch, ctx)

    def draw(self, role: str, k: int = 0, n: int | None = None) -> Drawn:
        """Rows decoded from an encoder's latents: the k-th draw of ``n`` rows."""
        task, data = self.task, self.task.teacher_train
        n = n or self.size or len(data)
        draws = Draws(self.setup.seed, ("fair-data", "draw", role, k))
        order = draws.permutation("rows", len(data))
        ids = order[torch.arange(n) % len(data)]
        decoder, encoder = self.roles["decoder"].module, self.encoder(role)
        device = device_of(decoder)
        found: list[Drawn] = []
        with torch.no_grad(), evaluating([decoder, encoder]):
            for item in torch.arange(n).split(task.eval_batch):
                batch = {name: v.to(device) for name, v in data.fetch(ids[item]).items()}
                z = self.drawn_latents(role, batch, item, draws).to(device)
                s = self.redrawn(batch["s"], item, draws).to(device)
                logits = decoder(z, s).float().cpu()
                found.append(self.decoded(logits, s.cpu(), item, draws))
        return Drawn(*(np.concatenate([getattr(d, name) for d in found]) for name in ("values", "s", "y")))

    def drawn_latents(self, role: str, batch: Batch, item: Tensor, draws: Draws) -> Tensor:
        """Latents [n, z], as the generator has them; the teacher's come from its own posterior wherever the student's do."""
        eps = draws.randn("eps", item, (self.z,)).to(batch["x"].device)
        if self.generator == "prior":
            return eps
        if self.generator in ("gan", "ddpm") and role == "student":
            sampler: Any = self.roles["sampler"].module
            return sampler.sample(eps, draws, item)
        x = self.task.seen(batch)
        if self.input == "noise" and role == "student":
            x = draws.randn("input", item, (x.shape[1],)).to(x.device)
        encoder = self.encoder(role)
        return encoder.posterior(encoder(x, batch["s"])).at(eps)

    def redrawn(self, s: Tensor, item: Tensor, draws: Draws) -> Tensor:
        """The groups [n] that rows are decoded with."""
        if self.s_sampling == "copy":
            return s
        if self.s_sampling == "uniform":
            return draws.randint("s", item, len(self.task.groups))
        every = self.task.groups_of(self.task.teacher_train)
        return every[draws.randint("s", item, len(every))]

    def decoded(self, logits: Tensor, s: Tensor, item: Tensor, draws: Draws) -> Drawn:
        """Rows from logits [n, sum of all widths]: sampled by the Gumbel maximum, or the likeliest; numbers within bins."""
        task, widths = self.task, self.all_widths
        log_p = column_log_probs(logits, widths)  # [n, K + 1, D]
        if self.decode == "sample":
            u = draws.rand("values", item, tuple(log_p.shape[1:])).clamp(1e-7, 1 - 1e-7)
            log_p = log_p - (-u.log()).log()
        codes = log_p.argmax(-1).numpy()
        within = draws.rand("within", item, (len(task.columns),)).double().numpy()
        values = np.stack([c.drawn(codes[:, k], within[:, k]) for k, c in enumerate(task.columns)], 1)
        return Drawn(values, s.numpy(), codes[:, -1])

    def table(self, role: str) -> TableArtifact:
        """The table that is drawn with a role's encoder."""
        sizes = {"parameters": float(sum(p.numel() for p in self.encoder(role).parameters()))}
        return TableArtifact(self.task, lambda k=0, n=None: self.draw(role, k, n), sizes)

    def artifact(self) -> TableArtifact:
        """The table drawn with the student."""
        return self.table("student")

    def rows(self) -> dict[str, Artifact]:
        """The table drawn with the teacher."""
        return {"teacher": self.table("teacher")}


class Stratified:
    """Rows in an order in which every stretch of them holds the groups in proportion.

    Args:
        data: the rows.
        task: whose groups they have.
    """

    def __init__(self, data: Data, task: Table) -> None:
        s = task.groups_of(data)
        place = torch.zeros(len(s), dtype=torch.float64)
        for g in s.unique().tolist():
            mine = (s == g).nonzero()[:, 0]
            shuffled = mine[Draws(0, ("stratified", g)).permutation("order", len(mine))]
            place[shuffled] = (torch.arange(len(mine), dtype=torch.float64) + 0.5) / len(mine)
        self.data, self.ids = data, place.argsort()

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, items: Tensor) -> Batch:
        """Rows by their place in that order."""
        return self.data.fetch(self.ids[items])

    @property
    def fingerprint(self) -> str:
        """Of the rows, with a mark."""
        return f"stratified-{self.data.fingerprint}"
