"""ModularStarEncoder: one encoder of code whose exits are trained together, so that it may be cut behind any of them.

    L = sum_{i in I} alpha_i L_i,   alpha_i = i / n_layers                       not normalised, by the depth and not by |I|
    1. pre-training   L_i = L_MLM + L_ICC      of h_i with a learned embedding of the exit beside it; heads are shared
    2. retrieval      L_i = (CE(s E_q E_k^T) + CE(s E_k E_q^T)) / 2      E_i = normalise(pool(W_i h_i)); a head W_i each

There is no teacher and no term that compares exits: "self-distillation" is that the losses of deeper exits, which weigh more,
flow through the layers that earlier ones stand on.

h_i: hidden states behind layer i [N, T, D];  ICC: are all pieces of a window from one repository;  s: scale, 10
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.data.items import digest
from limbeck.errors import ConfigError
from limbeck.functional.exits import ExitWeights, exit_weights
from limbeck.functional.pooling import pool_tokens
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Gather, Gathered, Method, Setup, Share, Stage, Term, Terms
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, NonNegative, settings
from limbeck.models.exit_encoder import ExitEncoder
from limbeck.networks.multi_exit import MultiExit
from limbeck.tasks.text_pairs import Left, PairRows, TextPairs
from limbeck.tasks.tokenizers import pad_id

CARD = Card(
    number=35,
    slug="modular-starencoder",
    title="One Model to Train them All: Hierarchical Self-Distillation for Enhanced Early Layer Embeddings",
    year=2025,
    venue="AAAI 2026",
    arxiv="2503.03008",
    family="language",
    methods={"modular-starencoder": "ModularStarEncoder"},
    optimised="the encoder's weights, and a head for each exit",
    signals=("pairs that belong together", "hidden words", "whether pieces of code are from one repository"),
    provenance={
        "weights of exits, contrastive loss": "model cards and reading notes; checked against recorded vectors of open_clip's "
        "loss, whose sum over exits is ours. No training code was published",
        "sentences, projection before pooling, embedding of the exit, two outputs of the context head": "the published "
        "configuration and modelling code",
        "pooling by the last token": "secondary: the function of that name in StarEncoder's code",
        "share of hidden words": "0.15, as StarEncoder's; the paper does not state it",
        "form of the head for words, how windows are filled, what is renamed": "reconstructed",
        "next-sentence variant": "reconstructed: two functions, neighbours in a file or not",
        "backbone": "StarCoder 2's blocks, written here; FlashAttention 2 where torch chooses it",
    },
    claim="For the same steps each early exit of the jointly trained encoder ranks code at least as well (MRR, recall) as an "
    "encoder of that depth trained alone, far better than exits read from a network whose last exit alone was trained; and "
    "cost falls with depth.",
    recipe="modular-starencoder",
    exceptions={
        "batch_of_one": "a pair alone has nothing to be told from, and is refused",
        "moves": "a head for words has rows of tokens that a few steps never show",
    },
    notes="Every exit is saved beside the student in a folder of its own (exit-1, ...), laid out as limbeck export "
    "writes one, to predict with; method.deliver names the exit that is the student, and is exported to other formats. "
    "The published networks have 36 layers and exits 4, 9, 18, 27, 36. Clone classification is not here, nor a loss between "
    "exits by default (method.distil is a variant that the paper has not).",
)

HIDDEN_IDS = 4
"""Numbers of an exit's learned embedding."""


class PretrainingHeads(nn.Module):
    """What every exit is pre-trained with: words and context, told from states that have the exit's embedding beside them.

    Args:
        width: of the states.
        vocabulary: number of token ids.
        exits: how many.
        told: whether the heads are told the exit.
    """

    def __init__(self, width: int, vocabulary: int, exits: int, told: bool = True) -> None:
        super().__init__()
        self.exit = nn.Embedding(exits, HIDDEN_IDS) if told else None
        extra = HIDDEN_IDS if told else 0
        self.dense, self.norm = nn.Linear(width + extra, width), nn.LayerNorm(width, 1e-5)
        self.decoder, self.same = nn.Linear(width, vocabulary), nn.Linear(width + extra, 2)
        for part in (self.dense, self.decoder, self.same):
            nn.init.normal_(part.weight, std=0.018)
            nn.init.zeros_(part.bias)

    def beside(self, states: Tensor, exit: int) -> Tensor:
        """States [..., D] with the embedding of the exit, by its place, at their end."""
        if self.exit is None:
            return states
        return torch.cat([states, self.exit.weight[exit].to(states.dtype).expand(*states.shape[:-1], -1)], -1)

    def words(self, states: Tensor, exit: int) -> Tensor:
        """Logits [M, V] of hidden tokens' states [M, D]."""
        out: Tensor = self.decoder(self.norm(nn.functional.gelu(self.dense(self.beside(states, exit)))))
        return out

    def context(self, pooled: Tensor, exit: int) -> Tensor:
        """Logits [N, 2] of pooled states [N, D]: from several repositories, or from one."""
        out: Tensor = self.same(self.beside(pooled, exit))
        return out


class Windows:
    """Functions laid end to end until a row is full: all from one repository, or from several, half of the time each.

    The i-th window begins with the i-th function. Each piece takes at most half a row, so that there are two at least where
    the repository has as many. A batch holds ``x`` [n, length], padded on the left, and ``same`` [n].

    Args:
        task: whose training pairs' code is taken.
        key: of the draws.
        pair: two functions alone, which are neighbours or not (next-sentence prediction).
    """

    def __init__(self, task: TextPairs, key: int = 0, pair: bool = False) -> None:
        rows = task.train
        assert isinstance(rows, PairRows)
        cls, sep = task.marks()
        codes = list(dict.fromkeys((p.code, p.group) for p in rows.pairs))
        pieces = [ids[: (task.length - 3) // 2] for ids in task.plain_ids([c for c, _ in codes])]
        of: dict[str, list[int]] = {}
        for i, (_, group) in enumerate(codes):
            of.setdefault(group, []).append(i)
        draws, made, same = Draws(key, ("windows",)).numpy("fill"), list[list[int]](), list[int]()
        for i, (_, group) in enumerate(codes):
            one = bool(draws.random() < 0.5) and len(of[group]) > 1
            if pair:
                own = of[group]
                at = own.index(i)
                next_ = own[(at + 1) % len(own)] if one else int(draws.integers(len(codes)))
                chosen: list[int] = [i, next_]
            elif one:
                others = [j for j in of[group] if j != i]
                chosen = [i, *(others[int(j)] for j in draws.permutation(len(others)))]
            else:
                chosen = [i]
                for j in draws.integers(len(codes), size=64).tolist():
                    if codes[j][1] != group:
                        chosen.append(j)
            row: list[int] = []
            for j in chosen:
                if len(row) + 2 > task.length - 1:
                    break
                row += [sep, *pieces[j]]
            made.append([*row[: task.length - 1], cls])
            same.append(int(one))
        pad = pad_id(task.tokenizer)
        self.ids, self.same = torch.full((len(made), task.length), pad, dtype=torch.int32), torch.tensor(same)
        self.ids[:, task.length - max(map(len, made)) :] = Left(made, pad).ids

    def __len__(self) -> int:
        return len(self.same)

    def fetch(self, items: Tensor) -> Batch:
        """The windows as one batch; all rows are as long, so that what is hidden does not depend on the batch."""
        return {"x": self.ids[items].long(), "same": self.same[items]}

    @property
    def fingerprint(self) -> str:
        """A content hash."""
        return digest(self.ids, self.same)


class ExitsArtifact(NetworkArtifact):
    """A network, and beside it a folder for each exit that it can be cut behind.

    Args:
        task, built: as of a `NetworkArtifact`.
        whole: the network with all exits, and its model.
        exits: those that get a folder.
    """

    def __init__(self, task: Any, built: Any, whole: Any, exits: Sequence[int]) -> None:
        super().__init__(task, built)
        self.whole, self.exits = whole, list(exits)

    def save(self, folder: Path) -> None:
        """The student, and ``exit-I/`` with the weights, the tokenizer and student.json of each."""
        super().save(folder)
        for exit in self.exits:
            place = folder / f"exit-{exit}"
            place.mkdir(exist_ok=True)
            NetworkArtifact(self.task, cut(self.whole, exit)).save(place)


def cut(built: Any, exit: int) -> Any:
    """A `Built` network that ends behind an exit."""
    return replace(built, module=built.module.cut(exit), model=built.model.cut(exit))


@settings
class ModularStarEncoder(Method[TextPairs]):
    """A multi-exit encoder of code.

    Args:
        weights: of the exits' losses: by ``depth`` (i / layers), ``uniform`` (1 each), or ``last`` (the deepest alone).
        pretrain: pre-train on hidden words and context before the pairs.
        context: what pre-training asks beside words: whether all code of a window is of one ``repository``, whether the second
            of a ``pair`` of functions follows the first (next-sentence prediction), or ``none``.
        share: of the tokens that are hidden in pre-training: of ten such eight become the mask, one another token, one stays.
        told: pre-training heads are told the exit by a learned embedding.
        rename: how often code is shown with other names for what occurs in it repeatedly.
        detach: cut the graph behind each exit, so that deeper losses do not reach the layers below: an ablation that takes the
            paper's effect away.
        distil: weight of a further term, 1 - the cosine of each exit's embedding and the deepest's: not the paper's.
        deliver: the exit whose network is the student; ``null``: the deepest.
        folders: save each exit's network as a folder of its own.
    """

    participants = {}  # noqa: RUF012 (nobody teaches)
    stage_names = ("pretrain", "retrieve")

    weights: ExitWeights = "depth"
    pretrain: bool = True
    context: Literal["repository", "pair", "none"] = "repository"
    share: Annotated[float, Gt(0), Lt(1)] = 0.15
    told: bool = True
    rename: Fraction = 0.3
    detach: bool = False
    distil: NonNegative = 0.0
    deliver: Count | None = None
    folders: bool = True

    def bind(self, setup: Setup) -> None:
        """Check exits and data; make the heads of pre-training."""
        super().bind(setup)
        module = setup.student.module
        if not isinstance(module, MultiExit) or not isinstance(setup.student.model, ExitEncoder):
            raise ConfigError(
                "student", "its layers have no exits", given=type(module).__name__, expected="student=exit-encoder"
            )
        self.exits, depth = module.exits, len(module.encoder.layers)
        self.alpha = exit_weights(self.exits, depth, self.weights).tolist()
        if self.deliver is not None and self.deliver not in self.exits:
            raise ConfigError(
                "method.deliver", given=self.deliver, expected=f"one of the student's exits, {self.exits}"
            )
        if setup.train.batch_size < 2:
            raise ConfigError(
                "train.batch_size",
                "one pair has nothing to be told from",
                given=1,
                expected="2 or more: every other pair is a negative",
            )
        if self.pretrain and self.context != "none":
            groups = {p.group for p in self.task.train.pairs}
            if len(groups) < 2 or "" in groups:
                raise ConfigError(
                    "task.data",
                    "pre-training asks whether code is of one repository, and that is not known here",
                    given=f"{len(groups - {''})} repositories",
                    expected="pairs that name their repository or file (task.data.group=COLUMN), two at least",
                    remedy="or set method.context=none, or method.pretrain=false",
                )
        if self.pretrain:
            if self.task.tokenizer.mask_token_id is None:
                raise ConfigError(
                    "task.tokenizer",
                    "it has no mask token, so no word can be hidden",
                    remedy="or set method.pretrain=false",
                )
            vocabulary = self.task.vocabulary
            self.new("heads", lambda: PretrainingHeads(module.encoder.width, vocabulary, len(self.exits), self.told))

    # ------------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        """Words and context, then pairs."""
        train, found = self.setup.train, list[Stage]()
        if self.pretrain:
            plain = train.with_(groups=None, only=None)
            first = Stage(
                "pretrain",
                steps=train.steps,
                data=Windows(self.task, self.setup.seed, self.context == "pair"),
                batch_size=train.batch_size,
                optim={"student": plain.with_(only=["encoder.*"]), "heads": plain},
                step=self.read,
                judged=False,
                augmented=False,
            )
            found.append(first)
        pairs = Stage(
            "retrieve",
            steps=train.steps,
            data=self.task.train,
            batch_size=train.batch_size,
            optim={"student": train},
            scope="distil",  # the batches that the baseline has
        )
        return [*found, pairs]

    def read(self, batch: Batch, ctx: Context) -> Terms:
        """Pre-training: at every exit hidden words, and whether the pieces belong together."""
        ids: Tensor = batch["x"]
        shown, which = self.hide(ids, batch["item"], ctx)
        states = ctx.call("student", shown, self.detach, by="states")
        terms, where = Terms(), ids != pad_id(self.task.tokenizer)
        for e, (exit, alpha) in enumerate(zip(self.exits, self.alpha, strict=True)):
            if not alpha:
                continue
            # at hidden places alone, one exit after the other: the vocabulary is what costs
            z = ctx.call("heads", states[e][which], e, by="words")
            terms[f"words{exit}"] = Term(F.cross_entropy(z, ids[which]), ("student", "heads"), alpha)
            if self.context != "none":
                z = ctx.call("heads", pool_tokens(states[e], where, "last", check=False), e, by="context")
                terms[f"context{exit}"] = Term(F.cross_entropy(z, batch["same"]), ("student", "heads"), alpha)
        return terms

    def hide(self, ids: Tensor, items: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Ids [N, T] with some hidden, and which these are: one a row at least, and none of [CLS], [SEP] and padding."""
        tokenizer = self.task.tokenizer
        special = torch.tensor(sorted(set(tokenizer.all_special_ids)), device=ids.device)
        words = ~torch.isin(ids, special)
        u = ctx.draws.rand("which", items, ids.shape[1:]).masked_fill(~words, 2.0)
        which = (u < self.share) | ((u == u.amin(1, keepdim=True)) & words)
        how = ctx.draws.rand("how", items, ids.shape[1:])
        other = ctx.draws.randint("other", items, self.task.vocabulary, ids.shape[1:])
        shown = torch.where(which & (how < 0.8), torch.full_like(ids, tokenizer.mask_token_id), ids)
        return torch.where(which & (how >= 0.9), other, shown), which

    def step(self, batch: Batch, ctx: Context) -> Iterator[Terms | Share | Gather]:
        """Retrieval: at every exit each query names its code among the whole batch's, and each code its query."""
        q = ctx.call("student", batch["x"], self.detach, by="every").transpose(0, 1)  # [N, E, D]
        k = ctx.call("student", self.code_of(batch, ctx), self.detach, by="every").transpose(0, 1)
        rows: Any = yield Gather(q=q, k=k)
        assert isinstance(rows, Gathered)
        all_q, all_k, own = rows["q"], rows["k"], rows.numbers("q")
        terms = Terms()
        for e, (exit, alpha) in enumerate(zip(self.exits, self.alpha, strict=True)):
            if alpha:
                there = F.cross_entropy(self.task.scale * q[:, e] @ all_k[:, e].T, own)
                back = F.cross_entropy(self.task.scale * k[:, e] @ all_q[:, e].T, own)
                terms[f"exit{exit}"] = Term((there + back) / 2, weight=alpha)
            if self.distil and exit != self.exits[-1]:
                far = [1 - torch.cosine_similarity(x[:, e], x[:, -1].detach(), dim=-1) for x in (q, k)]
                terms[f"distil{exit}"] = Term((far[0] + far[1]) / 2, weight=self.distil)
        yield terms

    def code_of(self, batch: Batch, ctx: Context) -> Tensor:
        """The batch's code, some of it with other names: ids [N, T]."""
        key, other = batch["key"], batch.get("renamed")
        if other is None or not self.rename:
            return key
        pad, width = pad_id(self.task.tokenizer), max(key.shape[1], other.shape[1])
        key, other = (nn.functional.pad(x, (width - x.shape[1], 0), value=pad) for x in (key, other))
        return torch.where((ctx.draws.rand("rename", batch["item"]) < self.rename)[:, None], other, key)

    # ------------------------------------------------------------------------------------------------------------ results
    def artifact(self) -> Artifact:
        """The network of the exit that is delivered, and every exit's beside it."""
        whole = replace(self._origin("student"), module=self.roles["student"].module)
        built = whole if self.deliver is None else cut(whole, self.deliver)
        return ExitsArtifact(self.task, built, whole, self.exits if self.folders else [])

    def rows(self) -> dict[str, Artifact]:
        """Every other exit's network, each cut from the whole."""
        whole = replace(self._origin("student"), module=self.roles["student"].module)
        last = self.deliver or self.exits[-1]
        return {f"exit {i}": NetworkArtifact(self.task, cut(whole, i)) for i in self.exits if i != last}
