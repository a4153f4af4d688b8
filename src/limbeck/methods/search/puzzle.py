"""Puzzle: a decoder for a stated budget, each layer's blocks chosen from a library that was distilled block by block.

    library   L_ij = ||o_c - o_p||^2 / ||o_p||^2        child i, j behind the parent's own input; no gradient crosses blocks
    scores    s_ij = mean KL(parent || parent with layer i replaced by variant j)
    search    min sum s_ij x_ij   with   sum_j x_ij = 1,   sum cost_ij x_ij <= budget,   x in {0, 1}
    distil    sum_l (1 - cos(h_c^l, h_p^l)) + KL(p_p || q_c)                     per token, no loss on the text

o: a layer's output [N, T, H];  h^l: hidden states behind layer l;  x: which variant a layer has
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.errors import ConfigError, DataError
from limbeck.functional.blocks import (
    EPS,
    BlockLoss,
    Importance,
    KvInit,
    channel_importance,
    hidden_cosine,
    iterative_channels,
    kv_importance,
    normalized_mse,
)
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Built, Context, Method, Setup, Share, Stage, Term, Terms
from limbeck.grammar.optim import Optim
from limbeck.grammar.settings import Count, NonNegative, Positive, settings
from limbeck.models.block_lm import BlockLm, reads_layers
from limbeck.networks.decoder_blocks import (
    CORES,
    KINDS,
    NORMS,
    Kind,
    Variant,
    assemble,
    put,
    renumber,
    sizes_of,
)
from limbeck.parts.decoder_budgets import DecoderBudgets
from limbeck.parts.decoders import (
    LayerLibrary,
    Scenario,
    Spec,
    attend,
    begin_block,
    drawn_blocks,
    feed,
    layers_of,
    onwards,
    own_of,
    watching,
    whole,
)
from limbeck.parts.search import GAP, Choice, Infeasible, Knapsack
from limbeck.tasks.language import Language
from limbeck.tasks.tokens import shifted

CARD = Card(
    number=21,
    slug="puzzle",
    title="Puzzle: Distillation-Based NAS for Inference-Optimized LLMs",
    year=2024,
    venue="ICML 2025",
    arxiv="2411.19146",
    repository="NVIDIA/Model-Optimizer",
    licence="Apache-2.0",
    family="search",
    methods={"puzzle": "Puzzle"},
    optimised="which blocks a decoder has, and their weights",
    signals=("outputs of layers", "hidden states", "logits"),
    provenance={
        "library, scores, search, distillation": "paper; importance, first weights, losses and the search are checked against "
        "vectors recorded from the code",
        "clipping": "the code clips each block's gradient at 1; here stages.library.library.clip clips the library as a whole",
        "greedy, random, uniform": "the paper names them; their form is reconstructed: cheapest swap first, even draws that "
        "leave the rest enough (the middle one of ten by its estimate), the same variant everywhere",
        "scores=subblock": "ours: attention and feed-forward layer scored apart and added up, |A| + |F| passes for |A| |F|",
        "hybrid blockwise distillation": "which variants stay is ours: those of the exact search's five best architectures that "
        "differ from each other",
    },
    claim="At an equal budget of parameters the exact search over replace-one-block scores gives a lower KL to the parent than "
    "greedy, random and uniform choices, before global distillation; blockwise distillation lowers it further, and global "
    "distillation recovers most of the gap.",
    recipe="puzzle",
    exceptions={
        "at_equality": "the child has other blocks than its parent: the two are equal only where the whole budget is given",
        "moves": "query heads that pruning silenced, and biases that a projection does not use",
    },
    notes="Decoders laid out as Llama (Llama, Mistral, Qwen2, Qwen3, SmolLM). Budgets are totals; up to 1 they are shares of "
    "the parent's.",
)

SHARES: tuple[float | str, ...] = (0.87, 0.75, 0.5, 0.25, 0.2, 0.1, "linear", "none")
"""The paper's feed-forward variants beside the parent's."""

SHORTLIST = 5
"""Architectures of single blocks whose variants go on as pairs (``bld=hybrid``)."""

DRAWS = 10
"""Random architectures of which the middle one is shown."""


@settings
class Puzzle(Method[Language]):
    """A search over the blocks of a decoder.

    Args:
        parameters: of the whole child at most; up to 1 a share of the parent's.
        memory: bytes of weights and of the cache of keys and values at most; up to 1 a share.
        latency_ms: milliseconds of one pass at most, as measured here; up to 1 a share.
        throughput: tokens a second of one pass at least.
        attention: KV heads, ``linear`` or ``none`` beside the parent's attention; ``null``: every divisor, linear, none.
        ffn: channels (up to 1 a share of the parent's), ``linear`` or ``none``; ``null`` for the paper's list.
        batch: sequences at once, for memory and latency.
        length: tokens of each, prompt and answer.
        number_bytes: bytes of one number, for memory.
        importance: of channels: ``iterative`` removes a few at a time, ``independent`` looks at each alone.
        kv_init: fewer KV heads begin as the ``average`` or ``first`` of a group, or ``prune`` keeps the most important.
        scale: multiply pruned down-projections by the ratio of widths.
        bld: blockwise distillation: ``decoupled`` (each block beside the parent's other one), ``coupled`` (each pair of
            blocks together), ``hybrid`` (decoupled first, then the pairs of variants that its search chose), or ``none``:
            first weights alone.
        block_loss: the normalised error's means: over the whole ``tensor``, each ``token``, or each ``sample``.
        score: ``kl`` to the parent, loss on the text (``lm``), ``cosine`` of the last hidden states, or next-token ``accuracy``.
        scores: of each pair of blocks (``block``), or of each block alone and added up (``subblock``).
        search: ``mip`` (exact), ``greedy``, ``random``, ``uniform``, or ``max-params``.
        further: how many other architectures are told in the result, each different from all before.
        alpha: share of the layers at most in which these may agree.
        calibration: training sequences that importance is measured on.
        score_items: validation sequences that scores are measured on.
        cosine: weight of the hidden states' term in global distillation.
        kl: of the logits' term.
        lm: of the loss on the text, which the paper found to hurt.
    """

    parameters: Positive | None = None
    memory: Positive | None = None
    latency_ms: Positive | None = None
    throughput: Positive | None = None
    attention: list[int | str] | None = None
    ffn: list[float | str] | None = None
    batch: Count = 1
    length: Count = 512
    number_bytes: Count = 4
    importance: Importance = "iterative"
    kv_init: KvInit = "average"
    scale: bool = False
    bld: Literal["decoupled", "coupled", "hybrid", "none"] = "decoupled"
    block_loss: BlockLoss = "tensor"
    score: Literal["kl", "lm", "cosine", "accuracy"] = "kl"
    scores: Literal["block", "subblock"] = "block"
    search: Literal["mip", "greedy", "random", "uniform", "max-params"] = "mip"
    further: Annotated[int, Ge(0)] = 0
    alpha: Annotated[float, Ge(0)] = 0.8
    calibration: Count = 64
    score_items: Count = 64
    cosine: NonNegative = 1.0
    kl: NonNegative = 1.0
    lm: NonNegative = 0.0

    def validate(self) -> None:
        """Some budget, known variants, and something to distil by."""
        if all(getattr(self, n) is None for n in ("parameters", "memory", "latency_ms", "throughput")):
            raise ValueError("parameters, memory, latency_ms or throughput must be given: what the child may cost")
        for name in ("attention", "ffn"):
            odd = [v for v in getattr(self, name) or () if isinstance(v, str) and v not in ("linear", "none")]
            odd += [v for v in getattr(self, name) or () if not isinstance(v, str) and v <= 0]
            if odd:
                raise ValueError(f"{name} must hold numbers above 0, linear or none, not {', '.join(map(str, odd))}")
        if self.kv_init == "repeat":
            raise ValueError("kv_init must be average, first or prune: repeat makes more heads, not fewer")
        if self.bld == "coupled" and self.scores == "subblock":
            raise ValueError("scores=subblock adds up blocks that learnt apart: bld=coupled needs scores=block")
        if not self.cosine + self.kl + self.lm:
            raise ValueError("cosine, kl and lm cannot all be 0: something must be left to distil by")
        self.notes: list[str] = []
        self.layers: list[Spec] | None = None

    # ------------------------------------------------------------------------------------------------------ what there is
    def bind(self, setup: Setup) -> None:
        """Take the parent apart, lay out the library, and refuse what it cannot be or what cannot be met."""
        super().bind(setup)
        self.notes, self.layers = [], None
        parent = self.parent
        layers = layers_of(parent)
        own, theirs = (dict(self.roles[r].module.state_dict()) for r in ("student", "teacher"))
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in theirs.items()}:
            raise ConfigError(
                "student",
                "it is not made as the teacher, whose blocks it takes: the width of a decoder stays as it is",
                expected="the same model for both",
                remedy="name the same model for student and teacher",
            )
        self.size = sizes_of(layers[0])
        if any(sizes_of(layer) != self.size for layer in layers):
            raise ConfigError("student", "its layers differ already", expected="a decoder whose layers are alike")
        self.variants: dict[Kind, list[Variant]] = {"attention": self._attentions(), "ffn": self._ffns()}
        self.space: list[Spec] = [
            {"attention": a, "ffn": f} for a in self.variants["attention"] for f in self.variants["ffn"]
        ]
        self.pairs = self.space
        own = own_of(layers[0])
        alone: list[Spec] = [{**own, k: v} for k, vs in self.variants.items() for v in vs[1:] if v != "none"]
        held = self.learnt(self.space) if self.bld == "coupled" else alone
        self.new("library", lambda: Library(layers, held))
        if self.bld == "hybrid":
            self.new("pairs", lambda: Library(layers, []))
        limits = {n: getattr(self, n) for n in ("parameters", "memory", "latency_ms", "throughput")}
        scenario = Scenario(self.batch, self.length, self.number_bytes)
        self.budgets = DecoderBudgets(parent, self.variants, self.space, scenario, limits)
        if not self.budgets.timed:
            self.budgets.knapsack(self.budgets.costs({})).exact()  # what cannot be met is said now

    @property
    def parent(self) -> Any:
        """The parent's module."""
        return self.roles["teacher"].module

    def _attentions(self) -> list[Variant]:
        kv = self.size["kv_heads"]
        given: list[int | str] = self.attention if self.attention is not None else [
            *(n for n in range(kv - 1, 0, -1) if kv % n == 0), "linear", "none"
        ]  # fmt: skip
        numbers = [v for v in given if not isinstance(v, str)]
        odd = [v for v in numbers if kv % v]
        if odd:
            raise ConfigError("method.attention", f"the parent has {kv} KV heads", given=odd,
                              expected=f"numbers that divide {kv}, linear or none")  # fmt: skip
        found: list[Variant] = [kv]
        found += [cast(Variant, v) for v in given]
        return list(dict.fromkeys(found))

    def _ffns(self) -> list[Variant]:
        channels = self.size["channels"]
        found: list[Variant] = [channels]
        for v in self.ffn if self.ffn is not None else SHARES:
            number = v if isinstance(v, str) else max(1, round(v * channels)) if v <= 1 else int(v)
            if not isinstance(number, str) and number > channels:
                raise ConfigError("method.ffn", "wider than the parent's feed-forward layer", given=v,
                                  expected=f"at most {channels} channels")  # fmt: skip
            found.append(cast(Variant, number))
        return list(dict.fromkeys(found))

    def learnt(self, pairs: Sequence[Spec]) -> list[Spec]:
        """The pairs of which a block has weights of its own."""
        own = own_of(self.parent.model.layers[0])
        return [p for p in pairs if any(p[k] not in (own[k], "none") for k in KINDS)]

    def blocks(self, i: int, spec: Spec, role: str = "") -> dict[Kind, tuple[nn.Module, nn.Module]]:
        """Norm and core of a layer's two blocks: the library's, the parent's own, or nothing."""
        library: Any = self.roles[role or ("pairs" if self.bld == "hybrid" else "library")].module
        return whole(self.parent.model.layers[i], spec, library.layers[i].get(spec))

    # ---------------------------------------------------------------------------------------------------------- the stages
    def stages(self) -> list[Stage]:
        """Costs, importance, library, scores, search; then the child is distilled as a whole."""
        train, optim = self.setup.train, self.block_optim()
        said = [{k: list(map(str, v)) for k, v in self.variants.items()}, self.kv_init, self.scale, self.importance]
        steps = optim.steps if self.bld != "none" and len(self.roles["library"].parameters()) else 0
        layers = [f"layer{i}" for i in range(len(self.parent.model.layers))]
        learning = Stage(
            "library",
            steps=steps,
            data=self.task.train,
            batch_size=optim.batch_size,
            optim={"library": optim},
            begin=self.begin_library,
            step=self.learn_blocks,
            remember=[*said, self.bld, self.block_loss, self.calibration],
            roles=["library", "teacher"],
            judged=False,
        )
        scoring = Stage(
            "scores",
            items=lambda ctx: layers,
            work=lambda item, ctx: {"score": self.score_layer(int(item[5:]), ctx, "library", self.space)},
            remember=[*said, self.score, self.scores, self.score_items, self.task.valid.fingerprint],
            roles=["library", "teacher"],
        )
        second = [
            Stage("shortlist", items=lambda ctx: ["search"], work=lambda item, ctx: self.shorten(ctx)),
            replace(
                learning,
                name="pairs",
                steps=optim.steps,
                optim={"pairs": optim},
                setup=self.pair_up,
                begin=partial(self.begin_library, role="pairs"),
                step=partial(self.learn_blocks, role="pairs"),
                remember=None,
            ),
            replace(
                scoring,
                name="pair-scores",
                work=lambda item, ctx: {"score": self.score_layer(int(item[5:]), ctx, "pairs", self.pairs)},
                remember=None,
            ),
        ]
        return [
            Stage("costs", items=lambda ctx: ["costs"], work=lambda item, ctx: self.budgets.measure()),
            Stage("importance", items=lambda ctx: ["all"], work=lambda item, ctx: self.calibrate(ctx)),
            learning,
            scoring,
            *(second if self.bld == "hybrid" else []),
            Stage("search", items=lambda ctx: ["search"], work=lambda item, ctx: self.choose(ctx)),
            Stage(
                "distil",
                steps=train.steps,
                data=self.task.train,
                batch_size=train.batch_size,
                optim={"student": train},
                setup=self.lay_out,
                begin=self.fill,
            ),
        ]

    def block_optim(self) -> Optim:
        """How the library learns: as the code does, for as many steps as the child; ``stages.library`` tunes it."""
        train = self.setup.train
        return Optim(
            steps=train.steps,
            batch_size=train.batch_size,
            lr=1e-4,
            weight_decay=0.1,
            warmup=max(0, round(0.05 * train.steps)),
            options={"betas": [0.9, 0.95]},
        )

    # ------------------------------------------------------------------------------------------------------------ importance
    def calibrate(self, ctx: Context) -> dict[str, Tensor]:
        """Importance of each layer's channels ``[L, I]`` and KV heads ``[L, kv]``."""
        layers = self.parent.model.layers
        count = min(self.calibration, len(self.task.train))
        inside: list[list[Tensor]] = [[] for _ in layers]
        heads = [torch.zeros(()) for _ in layers]
        for batch in ctx.over(self.task.train, self.setup.train.batch_size, torch.arange(count)):
            with watching(self.parent, inside=True) as seen:
                ctx.signal("teacher", batch)
            real = batch["attention_mask"].bool()
            for i, layer in enumerate(layers):
                inside[i].append(seen.channels[i][real].float())
                o = layer.self_attn.o_proj.weight.float()
                heads[i] = (
                    heads[i] + kv_importance(o, seen.heads[i][real].float(), kv_heads=self.size["kv_heads"]).cpu()
                )
        found = []
        for layer, xs in zip(layers, inside, strict=True):
            w = layer.mlp.down_proj.weight.float()
            if self.importance == "independent":
                found.append(torch.stack([channel_importance(w, x) for x in xs]).sum(0).cpu())
            else:
                found.append(iterative_channels(w, xs).rank.float().cpu())
        return {"channels": torch.stack(found), "heads": torch.stack(heads)}

    # --------------------------------------------------------------------------------------------------------------- library
    def begin_library(self, ctx: Context, role: str = "library") -> None:
        """First weights of every block, from the parent's."""
        told = ctx.artifact("importance", "all")
        library: Any = self.roles[role].module
        device = next(self.parent.parameters()).device
        for i, layer in enumerate(self.parent.model.layers):
            rank, heads = (told[n][i].to(device) for n in ("channels", "heads"))
            for spec in library.layers[i].specs:
                for kind, block in library.layers[i].get(spec).items():
                    begin_block(layer, kind, spec[kind], block, rank, heads, self.kv_init, self.scale)

    def learn_blocks(self, batch: Batch, ctx: Context, role: str = "library") -> Generator[Terms | Share, Any, None]:
        """Every block or pair against the whole output of the parent's layer, behind the parent's own input."""
        with watching(self.parent) as seen:
            ctx.signal("teacher", batch)
        real: Tensor = batch["attention_mask"].bool()  # [N, T]
        energy = torch.stack([((o.float() - EPS).square().sum(-1) * real).sum() for o in seen.outputs])  # [L]
        if self.block_loss == "tensor":
            sums: Any = yield Share(energy=energy, tokens=real.sum().float())
            energy = sums["energy"] / sums["tokens"]  # the mean token's, over the whole batch
        terms = Terms()
        library: Any = self.roles[role].module
        for i, layer in enumerate(self.parent.model.layers):
            if not library.layers[i].specs:
                continue
            o_p = seen.outputs[i]  # [N, T, H]
            o_c = ctx.call(role, i, layer, seen.inputs[i], seen.middle[i], seen.given[i])  # [V, N, T, H]
            if self.block_loss == "tensor":
                values, where = (o_c.float() - o_p.float()).square().sum(-1) / energy[i], real  # [V, N, T]
            else:
                each = [normalized_mse(o, o_p, mode=self.block_loss, where=real) for o in o_c]
                values, where = torch.stack(each), real if self.block_loss == "token" else real.any(-1)
            terms[f"layer{i}"] = Term(values, role, weight=float(len(o_c)), where=where)
        yield terms

    # ---------------------------------------------------------------------------------------------------------------- scores
    def score_layer(self, i: int, ctx: Context, role: str, pairs: Sequence[Spec]) -> Tensor:
        """What replacing layer i by each pair of blocks costs ``[pairs]``; the first, the parent's own, costs nothing."""
        sums = torch.zeros(len(pairs), dtype=torch.float64)
        count = 0.0
        data = self.task.valid
        for batch in ctx.over(data, self.setup.train.batch_size, torch.arange(min(self.score_items, len(data)))):
            with torch.no_grad(), watching(self.parent) as seen:
                parent = ctx.signal("teacher", batch).logits
            h_p, own = onwards(self.parent, i, seen.outputs[i], seen.given)
            if not torch.allclose(own[..., : parent.shape[-1]].float(), parent.float(), rtol=1e-2, atol=1e-2):
                raise ConfigError("student", "its logits are more than its layers, last norm and output layer say")
            z_p, labels, where = shifted(parent, batch)
            count += float(where.sum())
            told: dict[tuple[Variant, Variant], float] = {}

            def score(a: Variant, f: Variant, seen: Any = seen, told: Any = told, h_p: Tensor = h_p, z_p: Tensor = z_p,
                      labels: Tensor = labels, where: Tensor = where, batch: Batch = batch) -> float:  # fmt: skip
                if (a, f) not in told:
                    with torch.no_grad():
                        block = self.blocks(i, {"attention": a, "ffn": f}, role)
                        h = attend(*block["attention"], seen.inputs[i], seen.given[i])
                        h_c, z = onwards(self.parent, i, feed(*block["ffn"], h), seen.given)
                        z = shifted(z[..., : z_p.shape[-1]], batch)[0]
                        told[a, f] = float(
                            self.distance(z, z_p, h_c[:, :-1], h_p[:, :-1], labels, where).double().sum()
                        )
                return told[a, f]

            a_0, f_0 = self.variants["attention"][0], self.variants["ffn"][0]
            together = self.scores == "block" or role == "pairs"
            for j, pair in enumerate(pairs[1:], 1):
                a, f = pair["attention"], pair["ffn"]
                sums[j] += score(a, f) if together or a_0 == a or f_0 == f else score(a, f_0) + score(a_0, f)
        return sums / max(1.0, count)

    def distance(self, z: Tensor, z_p: Tensor, h: Tensor, h_p: Tensor, labels: Tensor, where: Tensor) -> Tensor:
        """What is lost at each token ``[N, T-1]``, less what the parent loses; 0 where it does not count."""
        if self.score == "kl":
            return F.kl(z, z_p, where=where)
        if self.score == "lm":
            return F.cross_entropy(z, labels, where=where) - F.cross_entropy(z_p, labels, where=where)
        if self.score == "accuracy":
            return ((z_p.argmax(-1) == labels).float() - (z.argmax(-1) == labels).float()) * where
        return hidden_cosine(h, h_p) * where

    # ---------------------------------------------------------------------------------------------------------------- search
    def table(self, ctx: Context, stage: str, pairs: Sequence[Spec]) -> Knapsack:
        """The search's table, from the scores that a stage left."""
        layers = range(len(self.parent.model.layers))
        score = torch.stack([ctx.artifact(stage, f"layer{i}")["score"] for i in layers]).numpy()
        if not np.isfinite(score).all():
            self.notes.append(f"{int((~np.isfinite(score)).sum())} variants have no finite score and are left out")
        return self.budgets.knapsack(self.budgets.costs(ctx.artifact("costs", "costs"), pairs), score)

    def shorten(self, ctx: Context) -> dict[str, Tensor]:
        """Which pairs stay: all of the variants that the best architectures of single blocks have, and the parent's own."""
        table = self.table(ctx, "scores", self.space)
        found = [table.exact()]
        try:
            while len(found) < SHORTLIST:
                found.append(table.exact(found, alpha=self.alpha))
        except Infeasible:
            pass  # no other differs so much
        chosen = [self.space[0], *(self.space[j] for c in found for j in set(c.index.tolist()))]
        kept = {k: {p[k] for p in chosen} for k in KINDS}
        return {"kept": torch.tensor([j for j, p in enumerate(self.space) if all(p[k] in kept[k] for k in KINDS)])}

    def pair_up(self, ctx: Context) -> None:
        """The pairs that stay, each with blocks of its own."""
        kept = ctx.artifact("shortlist", "search")["kept"].tolist()
        self.pairs = [self.space[j] for j in kept]
        library: Any = self.roles["pairs"].module
        specs = self.learnt(self.pairs)
        if library.layers[0].specs != specs:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # what is drawn is written over where the stage begins
                library.layers = Library(self.parent.model.layers, specs).layers
            self.notes.append(f"{len(self.pairs)} of {len(self.space)} pairs of blocks learn together")

    def choose(self, ctx: Context) -> dict[str, Any]:
        """The architecture, and those that it is held against."""
        table = self.table(ctx, "pair-scores" if self.bld == "hybrid" else "scores", self.pairs)
        rng = ctx.draws.numpy("random")
        draws = sorted((table.random(rng) for _ in range(DRAWS)), key=lambda c: c.score)
        found: dict[str, Choice] = {"mip": table.exact(), "greedy": table.greedy(), "random": draws[DRAWS // 2]}
        found["max-params"] = table.largest("parameters")
        try:
            found["uniform"] = table.uniform()
        except DataError:
            if self.search == "uniform":
                raise
        if found["mip"].gap > 2 * GAP:
            self.notes.append(
                f"the search's time was over: another architecture may be better than mip's by {100 * found['mip'].gap:.2g} % of "
                "its score at most"
            )
        further: list[Choice] = []
        for n in range(self.further):
            try:
                further.append(table.exact([found["mip"], *further], alpha=self.alpha))
            except Infeasible:
                self.notes.append(
                    f"{n} further architectures of method.further={self.further}: no other agrees with all before it in at most "
                    f"{self.alpha:g} of the layers (method.alpha)"
                )
                break
        every = {**found, **{f"further{n + 1}": c for n, c in enumerate(further)}}
        return {
            name: {"index": torch.from_numpy(c.index), "score": c.score, "costs": c.costs, "gap": c.gap}
            for name, c in every.items()
        }

    def spec(self, index: Tensor | Sequence[int]) -> list[Spec]:
        """The layers of a choice."""
        return [dict(self.pairs[int(j)]) for j in index]

    # ----------------------------------------------------------------------------------------------------------------- child
    def lay_out(self, ctx: Context) -> None:
        """The student with the blocks that were chosen."""
        found = ctx.artifact("search", "search")
        self.found = found
        layers = self.spec(found[self.search]["index"])
        if self.layers != layers:
            self.layers = layers
            assemble(self.roles["student"].module, layers)
            self.tell()

    def tell(self) -> None:
        """What is to be said of the child."""
        assert self.layers is not None
        chosen, parent = self.found[self.search], self.parent_costs()
        cost = ", ".join(f"{n} {chosen['costs'][n]:,.4g} of the parent's {v:,.4g}" for n, v in parent.items())
        self.notes.append(f"chosen by {self.search}: {cost}; estimated {self.score} {chosen['score']:.4g}")
        if reads_layers(self.roles["student"].module, self.layers) is None:
            self.notes.append(
                "linear blocks cannot be written as a folder of transformers: the student is student.safetensors with student.json"
            )
        elif not reads_layers(self.roles["student"].module, self.layers):
            self.notes.append(
                "the installed transformers reads a per-layer configuration but builds no such layers from it: layers/ holds the "
                "true sizes, and student/, which from_pretrained opens, the same function with every layer as large as the largest"
            )

    def parent_costs(self) -> dict[str, float]:
        """What the parent costs, by budget."""
        return {n: float(t[:, 0].sum()) for n, t in self.budgets.costs({}).items()}

    @torch.no_grad()
    def fill(self, ctx: Context) -> None:
        """The parent's weights and the library's blocks into the student."""
        student: Any = self.roles["student"].module
        assert self.layers is not None
        rest = {k: v for k, v in self.parent.state_dict().items() if not k.startswith("model.layers.")}
        student.load_state_dict(rest, strict=False)
        for i, (layer, spec) in enumerate(zip(student.model.layers, self.layers, strict=True)):
            for kind, (norm, core) in self.blocks(i, spec).items():
                getattr(layer, NORMS[kind]).load_state_dict(norm.state_dict())
                getattr(layer, CORES[kind]).load_state_dict(core.state_dict())

    def child(self, layers: Sequence[Spec]) -> Built:
        """A network of its own with these blocks, as the library has them."""
        module = copy.deepcopy(self.parent)
        for i, spec in enumerate(layers):
            for kind, (norm, core) in self.blocks(i, spec).items():
                put(module.model.layers[i], kind, copy.deepcopy(norm), copy.deepcopy(core))
        renumber(module)
        return replace(self.setup.student, module=module.eval(), model=self.model(layers))

    def model(self, layers: Sequence[Spec]) -> BlockLm:
        """The recipe node of a child."""
        made = BlockLm(self.setup.student.model, [cast(dict[str, int | str], dict(s)) for s in layers])
        made.role = "student"
        return made

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """Hidden states behind every layer, and the logits."""
        taps = [f"model.layers.{i}" for i in range(len(self.parent.model.layers))]
        student, teacher = ctx.signal("student", batch, taps), ctx.signal("teacher", batch, taps)
        z_s, labels, where = shifted(student.logits, batch)
        z_t = shifted(teacher.logits, batch)[0]
        terms = Terms()
        if self.cosine:
            gaps = torch.stack([hidden_cosine(student.acts[t], teacher.acts[t]) for t in taps])  # [L, N, T]
            real = batch["attention_mask"].bool()
            terms["cosine"] = Term(gaps, weight=self.cosine * len(taps), where=real)
        if self.kl:
            terms["kl"] = Term(F.kl(z_s, z_t, where=where), weight=self.kl, where=where)
        if self.lm:
            terms["lm"] = Term(F.cross_entropy(z_s, labels, where=where), weight=self.lm, where=where)
        return terms

    # ------------------------------------------------------------------------------------------------------------- delivered
    def artifact(self) -> Artifact:
        """The child with its table."""
        if self.layers is None:
            return self.network("student")
        from limbeck.artifacts.architecture import Architecture

        built = replace(self.setup.student, module=self.roles["student"].module, model=self.model(self.layers))
        return Architecture(self.task, built, self.told())

    def told(self) -> list[dict[str, Any]]:
        """The table: every architecture that was found, with what it costs."""
        return [
            {"name": name, "layers": self.spec(c["index"]), "estimate": float(c["score"]), "costs": dict(c["costs"]),
             "chosen": name == self.search}
            for name, c in self.found.items()
        ]  # fmt: skip

    def rows(self) -> dict[str, Artifact]:
        """The architectures at the same budget, before global distillation."""
        if self.layers is None:
            return {}
        names = [n for n in ("mip", "greedy", "random", "uniform", "max-params") if n in self.found]
        return {
            f"{name}, blocks only": NetworkArtifact(self.task, self.child(self.spec(self.found[name]["index"])))
            for name in names
        }

    def extras(self) -> dict[str, Any]:
        """The table, and the layers drawn."""
        if self.layers is None:
            return {}
        shown = [self.search, *(n for n in self.found if n != self.search)]
        own: Spec = {kind: variants[0] for kind, variants in self.variants.items()}
        rows = [[drawn_blocks(self.spec(self.found[n]["index"]), own)] for n in shown]
        caption = (
            "Layers from the first (top) to the last; left attention by its KV heads, right feed-forward layer by its channels, "
            "as shares of the parent's. Grey is a linear layer, white nothing. Rows: " + ", ".join(shown) + "."
        )
        pictures = [{"title": "The blocks of each layer", "caption": caption, "pixels": rows, "rows": shown}]
        return {"architectures": self.told(), "pictures": pictures}


class Library(nn.Module):
    """What can stand in the place of each layer.

    Args:
        layers: the parent's.
        specs: the blocks of each entry, the same for all layers.
    """

    def __init__(self, layers: Any, specs: Sequence[Spec]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LayerLibrary(layer, specs) for layer in layers)

    def forward(self, i: int, *args: Any) -> Tensor:
        """One layer with each entry in its place; see `LayerLibrary`."""
        return self.layers[i](*args)
