"""MiniPLM: the teacher chooses, before training, the chunks of a corpus from which the student learns by plain language modelling.

    nll_m(x) = - mean over t of log p_m(x_t | x_<t)                       of each chunk x, under the teacher p and a reference
    r(x)     = nll_ref(x) - nll_T(x) = log( p(x) / p_ref(x) ) / |x|       difference sampling keeps the alpha N highest
    L        = mean over kept x of - log q(x_t | x_<t)                    no teacher runs in training

The reference is small and has briefly learnt from a slice of the corpus that is not scored. What both find likely (easy text)
and what both find unlikely (noise) has a low score. Stages: chunk, reference, score, [proxy, predict], pretrain; the first
ones are done piece by piece, resumed where they were stopped, and remembered: further students take the same scores. They are
written to ``scores.parquet``, from which a student with another tokenizer learns (``method.scores``).

x: a chunk of tokens;  p, p_ref, q: teacher, reference, student;  alpha: ratio;  N: chunks that are scored
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.artifacts.scored_corpus import SCORES, ScoredCorpus, ScoringArtifact, with_breaks, write_scores
from limbeck.engine.batches import to_device
from limbeck.errors import ConfigError, DataError
from limbeck.functional.corpora import difference_scores, drawn_share, highest_share
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.card import Card
from limbeck.grammar.heads import head_of
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Stage, Term, Terms
from limbeck.grammar.random import Draws, key_of, seed_modules
from limbeck.grammar.settings import Count, Fraction, Natural, Positive, Share, settings
from limbeck.parts.corpus_pieces import (
    Chunks,
    Corpus,
    Held,
    Scored,
    Streamed,
    check_plain_text,
    chunked,
    end_marks,
    respelled,
    rows_of,
    tokenizer_hash,
)
from limbeck.parts.next_tokens import Reader
from limbeck.storage.records import Recorded
from limbeck.storage.weights import fingerprint
from limbeck.tasks.language import Language
from limbeck.tasks.tokenized import hidden, trunk
from limbeck.tasks.tokens import make_batch, next_counts

CARD = Card(
    number=22,
    slug="miniplm",
    title="MiniPLM: Knowledge Distillation for Pre-Training Language Models",
    year=2025,
    venue="ICLR 2025",
    arxiv="2410.17215",
    repository="thu-coai/MiniPLM",
    licence="MIT",
    family="language",
    methods={"miniplm": "MiniPlm"},
    optimised="the corpus, and then the student's weights",
    signals=("log-likelihood of chunks",),
    provenance={
        "difference scores, selection, vanilla KD, learning rate": "the code, checked against its vectors",
        "chunks cut back to sentence ends, means per token": "the code; the paper prints log p / log p_ref and means the difference",
        "order": "the code trains in stored order, on a corpus that was shuffled when it was built; here chunks are shuffled, and "
        "variant=released keeps the stored order",
        "vanilla KD beside it": "distil_ratio: mean over all tokens; variant=released means within each chunk first, as the code",
        "proxy": "paper, appendix: a small model is fitted to r on a sample; ours: the reference with a linear layer on its mean "
        "hidden state [reconstructed]",
        "threshold, drawn selection": "ours, as switches",
    },
    claim="With the same number of student steps a student trained on the half of a noisy corpus with the highest scores reaches "
    "lower held-out loss on clean text than one trained on a random half, and than vanilla KD of the same total FLOPs.",
    recipe="miniplm",
    at_equality={"lm": "plain language modelling: the student learns from no distribution it could equal"},
    exceptions={},
    notes="The tokenizer is the teacher's. For a student with another one: run once, and again with method.scores=RUN and the "
    "other student, without a teacher. method.corpus=FOLDER streams a corpus larger than memory; task.data then gives the "
    "tokenizer and the text that is evaluated.",
)

PIECE = 4096
"""Chunks that are read, or written, at a time."""


class Chosen(NamedTuple):
    """What was chosen, and by what.

    Attributes:
        rows: all chunks.
        scores: what the models say of each [N]; NaN where nothing was asked.
        r: what chunks were chosen by [N].
        candidates: places of those among which was chosen, rising.
        kept: places of those that were kept, rising.
        size: tokens of each [N].
    """

    rows: Recorded
    scores: Mapping[str, Tensor]
    r: Tensor
    candidates: Tensor
    kept: Tensor
    size: Tensor


@settings
class MiniPlm(Method[Language]):
    """Difference sampling, then pre-training on what was chosen.

    Args:
        ratio: alpha, the share of the scored chunks that is kept.
        score: ``difference`` of teacher and reference; ``teacher``: what the teacher finds likely; ``reference``: what the
            reference finds unlikely.
        average: scores are means per token; off takes sums, which favour long chunks.
        select: the ``top`` share; everything above a ``threshold``; a share ``drawn`` by score; or a ``random`` share.
        threshold: of r, in nats a token, for ``threshold``.
        temperature: of ``drawn``, in nats a token: small ones come close to ``top``.
        reference_share: share of the chunks from which a reference without weights learns; they are not scored.
        proxy: share of the chunks that teacher and reference score, where a proxy predicts the rest; 0: they score all.
        cut: chunks end at a ``sentence`` or line where there is one, or have the full ``length``.
        corpus: files to learn from, read piece by piece (``.parquet``, ``.jsonl``, text files; one or a folder); ``null``
            takes the task's training text.
        corpus_field: the column or key of ``corpus`` that holds the text.
        piece: characters (of files: bytes) that are in memory at a time while chunks are made.
        scores: the ``scores.parquet`` of an earlier run, or its folder, in place of corpus, teacher and reference.
        distil_ratio: weight of vanilla KD beside plain language modelling, whose weight is 1 less it; 0 runs no teacher.
        chunk: tokens whose logits exist at a time; ``auto`` computes in chunks where logits are large; 0 never does.
        variant: ``released`` keeps chunks in stored order and means within each chunk first, as the published code does.
    """

    paths: ClassVar[tuple[str, ...]] = ("corpus", "scores")
    stage_names = ("chunk", "reference", "score", "proxy", "predict", "pretrain")

    ratio: Annotated[float, Interval(gt=0, le=1)] = 0.5
    score: Literal["difference", "teacher", "reference"] = "difference"
    average: bool = True
    select: Literal["top", "threshold", "drawn", "random"] = "top"
    threshold: float = 0.0
    temperature: Positive = 0.1
    reference_share: Annotated[float, Gt(0), Interval(lt=1)] = 0.1
    proxy: Share = 0.0
    cut: Literal["sentence", "length"] = "sentence"
    corpus: str | None = None
    corpus_field: str = "text"
    piece: Count = 4_000_000
    scores: str | None = None
    distil_ratio: Fraction = 0.0
    chunk: Natural | Literal["auto"] = "auto"
    variant: Literal["paper", "released"] = "paper"

    def validate(self) -> None:
        """Who takes part follows from what is asked of them."""
        if self.scores is not None and self.corpus is not None:
            raise ValueError("scores hold the text that they were made of: leave corpus out")
        if self.proxy and (self.score != "difference" or self.scores is not None or self.select == "random"):
            raise ValueError(
                "proxy predicts differences: it needs score=difference, no scores, and another select than random"
            )
        asks = self.scores is None and self.select != "random"
        self.scorers = [n for n in ("teacher", "reference") if asks and self.score in ("difference", n)]
        teacher = {"teacher": Participant()} if "teacher" in self.scorers or self.distil_ratio else {}
        asked = "reference" in self.scorers  # one that nobody asks may stand in a recipe
        other = Participant(like="student" if asked else "", taught=False, needed=asked, judged=asked)
        self.participants = {**teacher, "reference": other}

    # ------------------------------------------------------------------------------------------------------- who and what
    def accept(self, task: Any) -> None:
        """Plain text; files that are there."""
        super().accept(task)
        check_plain_text(task, "MiniPLM")
        self.source: Corpus
        if self.scores is not None:
            self.source = Scored(ScoredCorpus(self.scores))
        elif self.corpus is not None:
            held = [d.key for d in (*task.texts.valid, *task.texts.test)]
            self.source = Streamed(self.corpus, self.piece, self.corpus_field, held)
        else:
            self.source = Held(task.train.documents, self.piece)

    def bind(self, setup: Setup) -> None:
        """Look at the reference, make a proxy, and say what is probably not meant."""
        super().bind(setup)
        if "reference" not in self.scorers:
            self.roles.pop("reference", None)
        self.accept(self.task)  # the student's documents depend on the seed
        self.reader = Reader(self, self.chunk, "", names=("student", "teacher", "reference"))
        self.notes: list[str] = []
        self.chosen: Chosen | None = None
        model = setup.built["reference"].model if "reference" in self.roles else None
        self.learns = model is not None and not model.trained
        if self.learns:
            assert model is not None
            with torch.random.fork_rng(devices=[]):  # the same for every seed, so that all students share the scores
                seed_modules(key_of(0, "init", "reference"), torch.device("cpu"))
                self.roles["reference"].module.load_state_dict(model.build(self.task).module.state_dict())
        count = {n: sum(p.numel() for p in r.parameters().values()) for n, r in self.roles.items()}
        if count.get("teacher", count["student"]) < count["student"]:
            self.notes.append(f"the student has {count['student']:,} parameters, and its teacher {count['teacher']:,}")
        if count.get("reference", 0) > count.get("teacher", count.get("reference", 0)):
            self.notes.append(
                "the reference is larger than the teacher: the difference of their likelihoods says little"
            )
        if isinstance(self.source, Scored):
            self._open(self.source.scores)
        if self.proxy:
            self._bind_proxy()

    def _open(self, scores: ScoredCorpus) -> None:
        """Refuse scores that do not hold what is chosen by; say whose they are."""
        self.same = scores.about.get("tokenizer") == tokenizer_hash(self.task.tokenizer)
        if not self.same:
            self.notes.append("the scores come from models with another tokenizer: their chunks are spelled anew")
        if scores.about.get("judged") != self._judged():
            self.notes.append(
                "the scored text was dealt otherwise than task.data is now: nobody has looked whether it holds what is evaluated"
            )
        wanted = {"difference": ("teacher", "reference"), "teacher": ("teacher",), "reference": ("reference",)}[
            self.score
        ]
        if self.select != "random":
            found = {n: scores.column(n) for n in SCORES}
            known = torch.stack([found[n].isfinite() for n in wanted]).all(0)
            if self.score == "difference":
                known |= found["predicted"].isfinite()
            if not bool(known.all()):
                bad = (~known).nonzero()[:5, 0].tolist()
                raise DataError(
                    "method.scores",
                    f"{int((~known).sum())} of {len(known)} chunks have no finite score by {' and '.join(wanted)}",
                    given=f"{scores.path}: chunks {', '.join(map(str, bad))}",
                    remedy="score the corpus again, or set method.score to what was scored",
                )

    def _judged(self) -> list[str]:
        """What must not be learnt from, by its content."""
        return sorted(d.key for d in (*self.task.texts.valid, *self.task.texts.test))

    def _bind_proxy(self) -> None:
        reference = self.roles["reference"].module
        if head_of(reference) is None or not hasattr(reference, "base_model"):
            raise ConfigError(
                "method.proxy",
                "the reference shows no hidden states, on which a proxy could be built",
                given=type(reference).__name__,
                remedy="set method.proxy=0, or take a model of transformers",
            )
        width = int(head_of(reference).in_features)  # type: ignore[union-attr]
        self.new("proxy", like="reference").feed = states
        self.new("guess", lambda: nn.Linear(width, 1))

    # ------------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        """Chunks, the reference, scores (all remembered for every seed and student); the student."""
        train = self.setup.train
        plain = train.with_(groups=None, only=None)
        found = [
            Stage(
                "chunk",
                items=lambda ctx: self.source.pieces(),
                work=self.cut_up,
                remember=[self.source.fingerprint, self.cut, self.piece, self.task.length, self._tokens()],
                roles=[],
                judged=False,
            )
        ]
        if self.learns:
            found.append(self._steps("reference", self.teach_reference, self.slice, {"reference": plain}))
        if self.scorers:
            found.append(
                Stage(
                    "score",
                    items=lambda ctx: self.source.pieces(),
                    work=self.score_piece,
                    remember=[self.reference_share if self.learns else 0, self.proxy, self.scorers],
                    roles=self.scorers,
                    judged=False,
                )
            )
        if self.proxy:
            optim = {"proxy": plain, "guess": plain}
            found.append(self._steps("proxy", self.teach_proxy, self.sampled, optim, begin=self.begin_proxy))
            found.append(
                Stage(
                    "predict",
                    items=lambda ctx: self.source.pieces(),
                    work=self.predict_piece,
                    remember=[self.proxy],
                    roles=["proxy", "guess"],
                    judged=False,
                )
            )
        return [
            *found,
            Stage(
                "pretrain",
                steps=train.steps,
                data=lambda ctx: Chunks(recorded(ctx, "chunk"), self.task, self.state["kept"]),
                batch_size=train.batch_size,
                optim={"student": train},
                setup=self.choose,
                shuffle=self.variant == "paper",
            ),
        ]

    def _steps(self, name: str, step: Any, data: Any, optim: Any, **more: Any) -> Stage:
        """A stage that teaches somebody else than the student."""
        train = self.setup.train
        return Stage(
            name,
            steps=train.steps,
            data=data,
            batch_size=train.batch_size,
            optim=optim,
            step=step,
            remember=[self.reference_share, self.proxy, self.variant],
            roles=[*optim, *(["reference"] if name == "proxy" else [])],
            scope=name,
            judged=False,
            augmented=False,
            **more,
        )

    def _tokens(self) -> str:
        return tokenizer_hash(self.task.tokenizer)

    def cut_up(self, piece: str, ctx: Context) -> dict[str, Tensor]:
        """A piece of the corpus as rows of tokens, numbered."""
        if isinstance(self.source, Scored):
            scores, group = self.source.scores, int(piece)
            rows = (
                rows_of([ids[: self.task.length] for ids in scores.ids(group)], self.task)
                if self.same
                else respelled(self.task, scores.texts(group))
            )
        else:
            ends = end_marks(self.task.tokenizer) if self.cut == "sentence" else None
            rows = chunked(self.task, self.source.documents(piece), ends)
        number = self.source.pieces().index(piece)
        return {"item": (number << 32) + torch.arange(len(rows["size"])), **rows}

    def slice(self, ctx: Context) -> Chunks:
        """The chunks from which the reference learns."""
        return Chunks(recorded(ctx, "chunk"), self.task, self.parts(len(recorded(ctx, "chunk")))[0])

    def parts(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Places of the reference's slice, of the chunks that both models score, and of those that a proxy guesses.

        The same for every seed. Each is rising.
        """
        order = Draws(0, ("miniplm",)).permutation("slice", n)
        own = max(1, round(self.reference_share * n)) if self.learns else 0
        asked = n - own if not self.proxy else max(2, round(self.proxy * (n - own)))
        a, b, c = (p.sort().values for p in order.split([own, min(asked, n - own), n - own - min(asked, n - own)]))
        return a, b, c

    def teach_reference(self, batch: Batch, ctx: Context) -> Terms:
        """Plain language modelling."""
        return Terms(lm=Term(self.reader.losses("reference", batch, ctx), "reference", where=next_counts(batch)))

    def _asked(self, piece: str, ctx: Context, which: int) -> Iterator[tuple[Tensor, Batch]]:
        """Batches of a piece's chunks that belong to one of `parts`: numbers, and rows of like length, trimmed."""
        rows, n = ctx.artifact("chunk", piece), len(recorded(ctx, "chunk"))
        places = torch.searchsorted(recorded(ctx, "chunk").items, rows["item"])
        mine = torch.isin(places, self.parts(n)[which]).nonzero()[:, 0]
        mine = mine[rows["size"][mine].argsort(descending=True, stable=True)]
        for at in mine.split(self.task.eval_batch):
            size = rows["size"][at].long()
            if not len(at):
                return
            none = torch.zeros_like(size)
            batch = make_batch(rows["ids"][at, : int(size.max())].long(), size, none, none)
            number = rows["item"][at]
            yield number, to_device({**batch, "item": number, "view": none}, ctx.device)

    def score_piece(self, piece: str, ctx: Context) -> dict[str, Tensor]:
        """Mean negative log-likelihoods [n] of a piece's chunks under those who are asked, nats a token.

        Raises:
            DataError: one is not finite.
        """
        found: dict[str, list[Tensor]] = {"item": [torch.zeros(0, dtype=torch.long)]}
        found |= {n: [torch.zeros(0)] for n in self.scorers}
        for number, batch in self._asked(piece, ctx, 1):
            found["item"].append(number)
            count = next_counts(batch).sum(1)
            for name in self.scorers:
                with torch.no_grad():
                    nll = self.reader.losses(name, batch, ctx).float().sum(1) / count
                if not bool(nll.isfinite().all()):
                    texts = self.task.tokenizer.batch_decode(batch["input_ids"][~nll.isfinite()][:2])
                    raise DataError(
                        name if name == "teacher" else f"participants.{name}",
                        f"its likelihood of {int((~nll.isfinite()).sum())} of {len(nll)} chunks is not finite",
                        given=texts[0][:80],
                        remedy="check its weights; float16 weights overflow: load it in float32",
                    )
                found[name].append(nll.cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}

    # -------------------------------------------------------------------------------------------------------------- proxy
    def sampled(self, ctx: Context) -> Chunks:
        """The scored chunks, with their r in units of its spread."""
        rows = recorded(ctx, "chunk")
        places = self.parts(len(rows))[1]
        scores = self._scored(ctx)
        r = difference_scores(scores["teacher"][places], scores["reference"][places])
        return Chunks(rows, self.task, places, r=(r - r.mean()) / r.std().clamp_min(1e-6))

    def begin_proxy(self, ctx: Context) -> None:
        """The proxy begins as the reference."""
        self.roles["proxy"].module.load_state_dict(self.roles["reference"].module.state_dict())

    def guess(self, batch: Batch, ctx: Context) -> Tensor:
        """The proxy's guess of r [N], in units of its spread: a linear layer on the mean of the hidden states."""
        where = batch["attention_mask"].unsqueeze(-1)
        h = ctx.signal("proxy", batch).out.float()
        out: Tensor = ctx.call("guess", (h * where).sum(1) / where.sum(1)).squeeze(-1)
        return out

    def teach_proxy(self, batch: Batch, ctx: Context) -> Terms:
        """Squared errors of the guess."""
        return Terms(proxy=Term((self.guess(batch, ctx) - batch["r"]).square(), to=("proxy", "guess")))

    def predict_piece(self, piece: str, ctx: Context) -> dict[str, Tensor]:
        """The proxy's guesses [n] of the chunks that were not scored, in nats a token."""
        scores = self._scored(ctx)
        r = difference_scores(*(scores[n][self.parts(len(scores["teacher"]))[1]] for n in ("teacher", "reference")))
        numbers, guesses = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0)]
        for number, batch in self._asked(piece, ctx, 2):
            with torch.no_grad():
                guesses.append((self.guess(batch, ctx) * r.std().clamp_min(1e-6).to(ctx.device) + r.mean()).cpu())
            numbers.append(number)
        return {"item": torch.cat(numbers), "predicted": torch.cat(guesses)}

    # ------------------------------------------------------------------------------------------------------------- choice
    def _scored(self, ctx: Context) -> dict[str, Tensor]:
        """Every score that is known, float32 [N] in the corpus's order; NaN where there is none."""
        if isinstance(self.source, Scored):
            return {n: self.source.scores.column(n) for n in SCORES}
        items = recorded(ctx, "chunk").items
        found = {n: torch.full((len(items),), float("nan")) for n in SCORES}
        for stage in ("score", "predict"):
            if (stage == "predict" and (not self.proxy or ctx.stage in ("proxy", "predict"))) or not self.scorers:
                continue
            rows = recorded(ctx, stage)
            if len(rows):
                for name, values in rows.fetch(rows.items).items():
                    found[name][torch.searchsorted(items, rows.items)] = values
        return found

    def choose(self, ctx: Context) -> None:
        """Difference sampling: which chunks the student learns from, in the corpus's order."""
        rows = recorded(ctx, "chunk")
        size = torch.cat([rows.fetch(i)["size"] for i in rows.items.split(PIECE)])
        scores = self._scored(ctx)
        r, candidates = self.values(scores, size)
        if not len(candidates):
            raise DataError("method.reference_share", "it leaves no chunk to score", given=self.reference_share)
        wanted = r[candidates]
        if self.select == "threshold":
            kept = (wanted >= self.threshold).nonzero()[:, 0]
            if not len(kept):
                raise DataError(
                    "method.threshold",
                    "no chunk has so high a score",
                    given=self.threshold,
                    expected=f"at most {float(wanted.max()):.4g}, the highest",
                )
        else:
            u = ctx.draws.anywhere().rand("miniplm", candidates).cpu()
            if self.select == "drawn":
                kept = drawn_share(wanted, self.ratio, u, self.temperature)
            else:
                kept = highest_share(u if self.select == "random" else wanted, self.ratio)
        self.state["kept"] = candidates[kept]
        self.chosen = Chosen(rows, scores, r, candidates, candidates[kept], size)

    def values(self, scores: Mapping[str, Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """What chunks are chosen by [N], and the places of those among which is chosen (int64, rising)."""
        n = len(size)
        if self.select == "random":
            return torch.zeros(n), torch.arange(n)
        if self.score == "difference":
            known = scores["teacher"].isfinite() & scores["reference"].isfinite()
            r = scores["predicted"].clone()
            r[known] = difference_scores(scores["teacher"][known], scores["reference"][known])
        else:
            r = -scores["teacher"] if self.score == "teacher" else scores["reference"]
        usable = r.isfinite() & (size > 1)  # a chunk that was spelled anew may have one token
        return (r if self.average else r * (size - 1)), usable.nonzero()[:, 0]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """Plain language modelling, and vanilla KD beside it where that is asked for."""
        where = next_counts(batch)
        if not self.distil_ratio:
            return Terms(lm=self._term(self.reader.losses("student", batch, ctx), where, 1.0))
        tokens = self.reader.read(batch, ctx)
        kd = tokens.compare(
            lambda z_s, z_t, labels, counts: F.soft_cross_entropy(z_s, z_t, where=counts),
            {"kind": "soft_cross_entropy"},
        )
        terms = Terms(kd=self._term(kd, where, self.distil_ratio))
        if self.distil_ratio < 1:
            terms["lm"] = self._term(tokens.cross_entropy(), where, 1 - self.distil_ratio)
        return terms

    def _term(self, values: Tensor, where: Tensor, weight: float) -> Term:
        """Over all tokens; released: over chunks, each the mean of its tokens."""
        if self.variant == "paper":
            return Term(values, weight=weight, where=where)
        return Term(values.sum(1) / where.sum(1), weight=weight)

    # ------------------------------------------------------------------------------------------------------------ results
    def measures(self) -> dict[str, float]:
        """Chunks and how many were kept, r of those that were and were not, FLOPs of scoring and of a student's token."""
        if self.chosen is None:
            return {}
        _, scores, r, candidates, kept, size = self.chosen
        dropped = candidates[~torch.isin(candidates, kept)]
        found = {"chunks": float(len(r)), "kept": float(len(kept)), "kept_tokens": float(size[kept].sum())}
        if self.select != "random":
            found["r_kept"] = float(r[kept].mean())
            found |= {"r_dropped": float(r[dropped].mean())} if len(dropped) else {}
        count = {n: sum(p.numel() for p in self.roles[n].parameters().values()) for n in ("student", *self.scorers)}
        found["scoring_flops"] = sum(2.0 * count[n] * float(size[scores[n].isfinite()].sum()) for n in self.scorers)
        found["flops_a_token"] = 6.0 * count["student"]
        return found

    def artifact(self) -> Artifact:
        """The student, and the scores beside it."""
        built = replace(self.setup.student, module=self.roles["student"].module)
        return ScoringArtifact(self.task, built, self._write if self.scorers and self.chosen is not None else None)

    def _write(self, path: Path) -> None:
        """The scores of this run, a row group for every `PIECE` chunks."""
        assert self.chosen is not None
        rows, scores, _, candidates, kept, _ = self.chosen
        models = {n: fingerprint(m) for n in self.scorers if isinstance(m := self.roles[n].module, nn.Module)}
        about = {"chunks": len(candidates), "tokenizer": self._tokens(), "length": self.task.length, "models": models}
        about |= {"corpus": self.source.fingerprint, "judged": self._judged()}
        tokenizer, items = self.task.tokenizer, rows.items

        def pieces() -> Iterator[dict[str, Any]]:
            for at in candidates.split(PIECE):
                found = rows.fetch(items[at])
                ids = [row[:n] for row, n in zip(found["ids"].tolist(), found["size"].tolist(), strict=True)]
                cuts = [with_breaks(tokenizer.batch_decode(documents(row, tokenizer.eos_token_id))) for row in ids]
                yield {
                    "text": [text for text, _ in cuts],
                    "breaks": [breaks for _, breaks in cuts],
                    "ids": ids,
                    "kept": torch.isin(at, kept).tolist(),
                    **{n: scores[n][at].numpy() for n in SCORES},
                }

        write_scores(path, pieces(), about)

    def extras(self) -> dict[str, Any]:
        """Chunks with the highest and the lowest scores."""
        if self.chosen is None or self.select == "random":
            return {}
        chunks, scores, r, candidates, *_ = self.chosen
        order = candidates[r[candidates].argsort(descending=True, stable=True)]
        rows = []
        for place in dict.fromkeys([*order[:5].tolist(), *order[-5:].tolist()]):
            found = chunks.fetch(chunks.items[place : place + 1])
            text = self.task.tokenizer.decode(found["ids"][0, : int(found["size"][0])].tolist())
            both = [round(v, 3) if math.isfinite(v) else "" for v in (float(scores[n][place]) for n in SCORES[:2])]
            rows.append([round(float(r[place]), 3), *both, " ".join(text.split())[:160]])
        head = ["score", "teacher", "reference", "chunk"]
        return {"tables": [{"title": "Chunks with the highest and the lowest scores", "head": head, "rows": rows}]}


def recorded(ctx: Context, stage: str) -> Recorded:
    """The rows that a stage left."""
    return cast(Recorded, ctx.recorded(stage))


def states(module: Any, batch: Batch) -> Tensor:
    """Last hidden states [N, T, H] of a model of transformers, without its output layer."""
    found: Tensor = hidden(
        trunk(module)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    )
    return found


def documents(ids: list[int], end: int | None) -> list[list[int]]:
    """A chunk's tokens, cut at end tokens, which are left out.

    Example:
        >>> documents([5, 6, 0, 7], 0)
        [[5, 6], [7]]
    """
    found: list[list[int]] = [[]]
    for i in ids:
        if i == end:
            found.append([])
        else:
            found[-1].append(i)
    return found if len(found) == 1 or found[-1] else found[:-1]
