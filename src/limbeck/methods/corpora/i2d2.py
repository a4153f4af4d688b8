"""I2D2: a language model writes statements under constraints, a critic keeps some, and it learns from what was kept.

    prompts    {none, Generally, ...} x {a bird, birds} x {can, is, has ...}; of each concept the K of lowest perplexity
    write      x ~ p_theta( . | prompt)  such that  #function words <= 1, #connectives = 0, neither concept nor relation again
    keep       D_r = { x : prob_valid(x) >= tau }, distinct, at most M a concept
    learn      min_theta  - sum over D_r of log p_theta(x);   write, keep, learn again, R times;  then write once more

The generator is its own teacher. The critic is fixed; a second one, held out, was trained on other statements and filters nothing:
it measures what is written, before any filter, in each round.

theta: the generator's weights;  tau: threshold;  R: rounds;  M: cap
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Interval
from torch import Tensor

from limbeck.artifacts.corpus import Corpus, CorpusArtifact
from limbeck.data.statements import ADVERBS, Statement, StatementSource, begun
from limbeck.errors import ConfigError, DataError
from limbeck.evaluators.accepted import Unfiltered
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Stage, Terms
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Count, Fraction, Natural, NonNegative, settings
from limbeck.parts.constrained import (
    CONNECTIVES,
    FUNCTION_WORDS,
    Constraints,
    constrained_beams,
    constrained_samples,
    end_tokens,
    token_texts,
)
from limbeck.parts.critics import Classifier, Critic, Likelihood, mean_losses, quality, refuse_reversed
from limbeck.parts.rounds import Kept, KeptTexts, Rounds, Row, capped, complete, distinct, scored, sift
from limbeck.tasks.causal import output_size
from limbeck.tasks.statements import LABELS, Statements
from limbeck.tasks.tokenizers import special_ids

CARD = Card(
    number=61,
    slug="i2d2",
    title="I2D2: Inductive Knowledge Distillation with NeuroLogic and Self-Imitation",
    year=2023,
    venue="ACL 2023",
    arxiv="2212.09246",
    family="corpora",
    methods={"i2d2": "I2d2"},
    optimised="a corpus, and the language model that writes it",
    signals=("accepted text",),
    provenance={
        "clauses, beam selection": "NeuroLogic's released engine, checked against recorded vectors",
        "constraints, rounds, ten prompts a concept": "public notes on the paper",
        "word lists, prompt grid, thresholds, learning on all tokens from the last generator": "reconstructed",
        "counts of words": "reconstructed: the released engine has none",
        "critic": "real against corrupted statements; the paper's was trained on human labels, which do not exist here",
        "cap, floor, held-out critic, release over all rounds, sampling under constraints": "ours",
    },
    claim="The share of unfiltered texts that a fixed critic accepts rises with each round, while distinct accepted statements a "
    "prompt do not fall by more than a third; constrained decoding is accepted more often than nucleus sampling.",
    recipe="i2d2",
    at_equality={"lm": "the likelihood of kept texts: the generator learns from no distribution it could equal"},
    notes="Accepted means: taken for a sentence that a person wrote rather than a corrupted one. Whether it is true nobody has "
    "checked. corpus.jsonl is the corpus, survivors.json what each filter left.",
)

RELATIONS = (
    "can",
    "can be",
    "is/are",
    "has/have",
    "is used for/are used for",
    "is known for/are known for",
    "requires/require",
    "is found in/are found in",
)
"""What is said of a concept, singular/plural where they differ. [reconstructed]"""

MOST = 300
"""Real statements, evenly spread, on which critics are compared, and by which perplexity is ranked: a large generator is slow."""

GOALS = ("should", "needs")
"""How a prompt about a goal ends: ``In order to cook rice, one should``. [reconstructed]"""


@dataclass(frozen=True)
class Prompt:
    """A beginning of statements: its text, the concept and relation that must not come again, a concept that must come."""

    text: str
    concept: str
    relation: str
    related: str = ""


@dataclass(frozen=True)
class Decoding:
    """How a generator writes: by ``neurologic`` beams or by ``sample``; with or without constraints."""

    by: Literal["neurologic", "sample"]
    constraints: bool
    top_p: float


@settings
class I2d2(Method[Statements]):
    """Rounds of write, keep, learn; ``train`` sets the steps of each round's learning.

    Args:
        rounds: how often the generator learns from what it wrote; 0 only writes and keeps.
        decoding: ``neurologic`` beams, or ``sample``: far cheaper, under the same bans and counts.
        constraints: off decodes by plain beam search, or samples freely.
        function_words: prepositions that may stand behind a prompt, at most; ``null`` for any number.
        connectives: words that join sentences, likewise.
        function_word_list: which words the first are.
        connective_list: and the second.
        ban_concept: the concept must not come again.
        ban_relation: nor the relation.
        related: where the data name a related concept it must come (``neurologic`` alone can see to that).
        adverbs: what a prompt may begin with.
        relations: what is said of a concept, ``singular/plural``; ``null`` takes the data's own relation beside the
            paper's grid; ``[]`` the data's own alone.
        numbers: concepts in the ``singular`` with an article, in the ``plural``, or ``both``.
        goals: short activities, written about like concepts: ``In order to GOAL, one should``.
        prompts: of each concept, those with the lowest perplexity under the first generator; 0 for all.
        concepts: training concepts that are written about, evenly spread; ``null`` for all.
        texts: written for each prompt.
        shortest: tokens before a text may end.
        longest: tokens of a text at most, its prompt not counted.
        beam: beams that are followed.
        ngram: runs of tokens that no beam has twice; 0 allows them.
        penalty: power of the length that a beam's score is divided by.
        prune: dense rank from which a token is no candidate.
        tolerance: satisfied clauses fewer than the most that are still followed.
        beta: weight of the bonus for started phrases.
        early_stop: multiple of the beam within which an end ends a satisfied text.
        temperature: of sampled words; 0 takes the likeliest.
        top_p: sampled are only the likeliest words that make up this mass.
        critic: a ``classifier``; ``perplexity``, the share of held-back real statements that the first generator finds
            less likely; or ``none``.
        threshold: probability from which a text is used for training.
        release: probability from which it goes into the corpus.
        words: behind the prompt, at least.
        cap: texts of a concept used for training, at most; ``null`` for any number.
        imitate: learn from ``accepted`` texts, or from all complete and distinct ones, ``weighted`` by the critic.
        pool: learn from the texts of this ``round``, or of ``all`` so far.
        start: each round goes on with the ``previous`` generator, or begins with the ``base`` one.
        loss_on: ``all`` tokens, or the ``statement`` behind the prompt.
        least: accepted texts below which a round is refused.
        floor: distinct accepted texts a prompt may fall to this share of the last round's.
        on_floor: ``warn``, or stop with an ``error``.
        chunk: concepts that are written about in one piece of work.
        at_once: texts that are sampled side by side.
    """

    rounds: Natural = 2
    decoding: Literal["neurologic", "sample"] = "neurologic"
    constraints: bool = True
    function_words: Natural | None = 1
    connectives: Natural | None = 0
    function_word_list: list[str] = list(FUNCTION_WORDS)  # noqa: RUF012 (copied, never changed)
    connective_list: list[str] = list(CONNECTIVES)  # noqa: RUF012
    ban_concept: bool = True
    ban_relation: bool = True
    related: bool = False
    adverbs: list[str] = list(ADVERBS)  # noqa: RUF012
    relations: list[str] | None = None
    numbers: Literal["both", "singular", "plural"] = "both"
    goals: list[str] = []  # noqa: RUF012
    prompts: Natural = 10
    concepts: Count | None = None
    texts: Count = 10
    shortest: Natural = 5
    longest: Count = 32
    beam: Count = 20
    ngram: Natural = 3
    penalty: NonNegative = 0.2
    prune: Annotated[float, Gt(1)] = 5e5
    tolerance: Natural = 2
    beta: NonNegative = 1.25
    early_stop: NonNegative | None = 10.0
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 0.9
    critic: Literal["classifier", "perplexity", "none"] = "classifier"
    threshold: Fraction = 0.5
    release: Fraction = 0.9
    words: Count = 2
    cap: Count | None = 20
    imitate: Literal["accepted", "weighted"] = "accepted"
    pool: Literal["round", "all"] = "round"
    start: Literal["previous", "base"] = "previous"
    loss_on: Literal["all", "statement"] = "all"
    least: Count = 20
    floor: Fraction = 0.667
    on_floor: Literal["warn", "error"] = "warn"
    chunk: Count = 8
    at_once: Count = 256

    def validate(self) -> None:
        """Settings that go together; the critic takes part where it is a classifier."""
        if self.longest <= self.shortest:
            raise ValueError(f"longest ({self.longest}) must be more than shortest ({self.shortest})")
        if self.related and (self.decoding != "neurologic" or not self.constraints):
            raise ValueError("related asks for a word, which only decoding=neurologic with constraints=true writes")
        if self.decoding == "neurologic" and self.texts > self.beam:
            raise ValueError(
                f"texts ({self.texts}) must be no more than the beam ({self.beam}) that they are taken from"
            )
        if self.imitate == "weighted" and self.critic == "none":
            raise ValueError("imitate=weighted weighs by a critic: set critic=classifier or critic=perplexity")
        if self.release < self.threshold:
            raise ValueError(f"release ({self.release}) must be no less than threshold ({self.threshold})")
        if not self.adverbs:
            raise ValueError("adverbs must hold at least the empty one")
        odd = [r for r in self.relations or () if not r.strip("/ ") or r.count("/") > 1]
        if odd:
            raise ValueError(f"relations must be written singular/plural or once for both, not {odd[0]!r}")
        classifier = {"critic": Participant(task="validity")} if self.critic == "classifier" else {}
        self.participants = MappingProxyType(
            {"teacher": Participant(like="student"), **classifier, "held-out": Participant(task="held-out")}
        )

    # ----------------------------------------------------------------------------------------------- who takes part

    def bind(self, setup: Setup) -> None:
        """The student begins as the teacher; what must be known of the tokenizer is looked up once.

        Raises:
            ConfigError: student and teacher differ in their architecture, or cannot write; constraints that contradict each
                other; texts that do not fit.
        """
        super().bind(setup)
        mine, theirs = (self.roles[n].module for n in ("student", "teacher"))
        shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                "teacher",
                "the generator is its own teacher, and these two are built differently",
                given=type(theirs).__name__,
                expected="the student's architecture",
                remedy="leave the teacher out, and it is the student's first self",
            )
        for name in ("student", "teacher"):
            if not callable(getattr(self.roles[name].module, "generate", None)):
                raise ConfigError(
                    name,
                    f"{type(self.roles[name].module).__name__} has no generate method",
                    remedy="use a transformers model (causal-lm, hf)",
                )
        mine.load_state_dict(theirs.state_dict())
        task = self.task
        self.state = {"survivors": [], "measures": [], "warnings": [], "critic": {}, "samples": []}
        self.pieces = token_texts(task.tokenizer, output_size(theirs))  # computed once: a vocabulary is large
        self.ends = end_tokens(self.pieces, task.tokenizer.eos_token_id)
        limits = {
            "function_words": (self.function_word_list, self.function_words),
            "connectives": (self.connective_list, self.connectives),
        }
        classes = {n: (words, most) for n, (words, most) in limits.items() if most is not None}
        self.everywhere = Constraints.from_words(task.tokenizer, at_most=classes, texts=self.pieces)
        if self.longest >= task.length:
            raise ConfigError(
                "method.longest",
                "texts would not fit into the generator's sequences",
                given=self.longest,
                expected=f"less than task.length, {task.length}",
            )
        if not self.about("train"):
            raise DataError("task.data", "there is no concept to write about")
        self.loop = Rounds(
            self.rounds,
            KeptTexts(task, self.loss_on),
            self.pieces_of_work,
            self.write,
            self.keep,
            self.step,
            setup.train,
            begin=self.begin_again if self.start == "base" else None,
            finish=self.tell,
            least=self.least,
        )

    def filter_critic(self) -> Critic | None:
        """Who filters."""
        if self.critic == "none":
            return None
        if self.critic == "perplexity":
            return self._perplexity()
        return self._classifier("critic")

    def _perplexity(self) -> Likelihood:
        real = [s.text for s in self.task.statements("valid")]
        return Likelihood(self.task, self.roles["teacher"].module, real[:: -(-len(real) // MOST)])

    def _classifier(self, name: str) -> Classifier:
        part: Any = self.task.part(self.participants[name].task)
        return Classifier(part, self.roles[name].module, self.roles[name].contract, LABELS[1])

    def begin(self, ctx: Context) -> None:
        """How well both critics tell real test statements from corrupted ones.

        Raises:
            ConfigError: one of them prefers corrupted ones.
        """
        made = self.task.labelled("validity")
        test = [i for i, split in enumerate(made.splits) if split == "test"]
        both = [[made.documents[i].text for i in test if int(made.y[i]) == y] for y in (1, 0)]
        real, bad = (texts[:: -(-len(texts) // MOST)] for texts in both)
        critics: dict[str, Critic | None] = {"critic": self.filter_critic(), "held-out": self._classifier("held-out")}
        critics["perplexity"] = self._perplexity()
        by_chance = 3 * (1 / 6 / max(1, len(real))) ** 0.5  # three deviations of a guesser's area
        for name, critic in critics.items():
            if critic is None:
                continue
            found = quality(critic, real, bad, self.threshold)
            if name in self.participants:
                refuse_reversed(found["auroc"], name, 0.5 - by_chance)
            self.state["critic"][name] = found

    # ------------------------------------------------------------------------------------------------------ prompts

    def about(self, split: str, most: int | None = None) -> list[Statement]:
        """The concepts of a split, and of the training split the goals."""
        most = most or (self.concepts if split == "train" else None)
        found = self.task.concepts(split, most)  # type: ignore[arg-type]
        return found + ([Statement(g, concept=g, source="goal") for g in self.goals] if split == "train" else [])

    def grid(self, statement: Statement) -> list[Prompt]:
        """Every prompt about a concept."""
        concept = statement.concept
        if statement.source == "goal":
            return [Prompt(f"In order to {concept}, one {end}", concept, end) for end in GOALS]
        source = self.task.data
        own = tuple(source.relations) if isinstance(source, StatementSource) else ()
        wanted = [*own, *(RELATIONS if self.relations is None else self.relations)]
        related = statement.related if self.related else ""
        found: dict[str, Prompt] = {}
        for relation in wanted:
            one, _, many = relation.partition("/")
            subjects = [(f"{statement.article} {concept}".strip(), one)]
            if statement.article:  # what is not counted has no plural
                forms = {"singular": subjects, "plural": [(plural(concept), many or one)]}
                subjects = [*forms["singular"], *forms["plural"]] if self.numbers == "both" else forms[self.numbers]
            for adverb in self.adverbs:
                for subject, said in subjects:
                    text = begun(adverb, subject, said, statement.spelt)
                    found.setdefault(text, Prompt(text, concept, said, related))
        return list(found.values())

    def chosen(self, statements: Sequence[Statement]) -> list[list[Prompt]]:
        """Of each concept the prompts that the first generator finds likeliest, in their order in the grid."""
        grids = [self.grid(s) for s in statements]
        if not self.prompts or all(len(g) <= self.prompts for g in grids):
            return grids
        loss = mean_losses(self.task, self.roles["teacher"].module, [p.text for g in grids for p in g], ended=False)
        found = []
        for grid, losses in zip(grids, loss.split([len(g) for g in grids]), strict=True):
            best = losses.argsort(stable=True)[: self.prompts].sort().values
            found.append([grid[i] for i in best.tolist()])
        return found

    # ------------------------------------------------------------------------------------------------------ writing

    def constrained(self, prompt: Prompt) -> Constraints:
        """What holds for a text behind a prompt.

        Raises:
            ConfigError: constraints contradict each other.
        """
        concept = {prompt.concept.lower(), plural(prompt.concept).lower()} if self.ban_concept else set()
        ban = sorted(concept | ({prompt.relation.lower()} if self.ban_relation else set()))
        # a related concept that holds the concept itself (temporal artery of artery) cannot be asked for
        free = prompt.related and not set(prompt.related.lower().split()) & {w for b in ban for w in b.split()}
        must = [[prompt.related]] if free else []
        own = Constraints.from_words(self.task.tokenizer, must=must, ban=ban, texts=self.pieces)
        return Constraints(own.clauses, self.everywhere.classes + own.classes)

    def generate(
        self, module: Any, prompts: Sequence[Prompt], texts: int, draws: Draws, first: int, how: Decoding
    ) -> list[Row]:
        """Texts behind prompts, ``texts`` each, in order.

        Args:
            module: the generator.
            prompts: what is continued.
            texts: so many of each.
            draws: where sampled words are drawn from.
            first: the number of the first prompt: with the text's own it is the key of its draws.
            how: decoding.
        """
        tokenizer = self.task.tokenizer
        start = special_ids(tokenizer)[0]
        ids = [
            [*start, *x]
            for x in tokenizer([p.text for p in prompts], add_special_tokens=False, verbose=False)["input_ids"]
        ]
        limits: dict[tuple[str, str, str], Constraints] = {}
        for p in prompts:
            key = (p.concept, p.relation, p.related)
            if key not in limits:
                limits[key] = self.constrained(p) if how.constraints else Constraints()
        own = [limits[p.concept, p.relation, p.related] for p in prompts]
        device = draws.device
        rows: list[Row] = []
        if how.by == "neurologic":
            for p, x, limit in zip(prompts, ids, own, strict=True):
                found = constrained_beams(
                    module, torch.tensor(x, device=device), limit, ends=self.ends, beam=max(self.beam, texts),
                    shortest=self.shortest, longest=self.longest, ngram=self.ngram, penalty=self.penalty, prune=self.prune,
                    tolerance=self.tolerance, beta=self.beta, early_stop=self.early_stop,
                )  # fmt: skip
                rows += [self.row(p, x, b.ids.tolist(), b.complete) for b in found[:texts]]
            return rows
        width = max(map(len, ids))
        left = torch.tensor([[0] * (width - len(x)) + x for x in ids], device=device).repeat_interleave(texts, 0)
        mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in ids], device=device).repeat_interleave(
            texts, 0
        )
        key_ = (torch.arange(len(ids) * texts, device=device) + first * texts).long()
        for part in torch.arange(len(left)).split(self.at_once):
            made = constrained_samples(
                module, left[part], mask[part], [own[i // texts] for i in part.tolist()], draws, key_[part],
                ends=self.ends, shortest=self.shortest, longest=self.longest, temperature=self.temperature, top_p=how.top_p,
            )  # fmt: skip
            for i, new in zip(part.tolist(), made.tolist(), strict=True):
                stop = next((k for k, t in enumerate(new) if t in self.ends), None)
                p, x = prompts[i // texts], ids[i // texts]
                rows.append(self.row(p, x, new if stop is None else new[: stop + 1], stop is not None))
        return rows

    def row(self, prompt: Prompt, ids: list[int], new: list[int], ended: bool) -> Row:
        """A text as it reads, with a full stop where it came to its end."""
        text = self.task.tokenizer.decode([*ids, *new], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = " ".join(text.split())
        if ended and not text.endswith("."):
            text += "."
        return Row(text, prompt.text, prompt.concept, ended)

    @property
    def how(self) -> Decoding:
        """As the settings say."""
        return Decoding(self.decoding, self.constraints, self.top_p)

    def unfiltered(self, artifact: NetworkArtifact, split: str, concepts: int, texts: int, draws: Draws) -> Unfiltered:
        """What a generator writes about concepts of a split, evaluated by the held-out critic."""
        how = replace(self.how, **getattr(artifact, "decoding", {}))
        prompts = [p for group in self.chosen(self.about(split, concepts)) for p in group]
        rows = self.generate(artifact.built.module, prompts, texts, draws, 0, how)
        said = [r.text for r in rows]
        return Unfiltered(said, [r.complete for r in rows], len(prompts), self._classifier("held-out").prob_valid(said))

    # -------------------------------------------------------------------------------------------------------- rounds

    def stages(self) -> list[Stage]:
        """Prompts are chosen once; then the rounds."""
        return [Stage("prompts", items=lambda ctx: ["prompts"], work=self.choose), *self.loop.stages()]

    def choose(self, item: str, ctx: Context) -> list[list[list[str]]]:
        """Every concept's prompts."""
        return [[[p.text, p.concept, p.relation, p.related] for p in g] for g in self.chosen(self.about("train"))]

    def pieces_of_work(self, ctx: Context) -> list[str]:
        """So many concepts are written about at a time."""
        return [f"{a:06d}" for a in range(0, len(self.about("train")), self.chunk)]

    def write(self, r: int, item: str, ctx: Context) -> list[Row]:
        """The texts about some concepts: of the first round by the teacher, then by the student."""
        groups = [[Prompt(*p) for p in g] for g in ctx.artifact("prompts", "prompts")]
        a = int(item)
        prompts = [p for g in groups[a : a + self.chunk] for p in g]
        module = self.roles["student" if r else "teacher"].module
        return self.generate(module, prompts, self.texts, ctx.draws, sum(map(len, groups[:a])), self.how)

    def keep(self, r: int, rows: list[Row], ctx: Context) -> Kept:
        """Filters in their order; those of the release beside them; and what the held-out critic says of all that was written."""
        critic = self.filter_critic()
        said = [row.text for row in rows]
        if critic is not None:
            for row, score in zip(rows, critic.prob_valid(said).tolist(), strict=True):
                row.score = score
        held_out = self._classifier("held-out").prob_valid(said) >= self.threshold
        before = [self.loop.kept(i, ctx) for i in range(r)]
        whole = complete(self.words)
        accepted = [] if self.imitate == "weighted" else [scored("critic", self.threshold)]
        cap = [] if self.cap is None else [capped(self.cap)]
        old = before[-1].learn if before and self.pool == "all" else []
        learn, survivors = sift(rows, [whole, *accepted, distinct([x.text for x in old]), *cap])
        gone = [x.text for k in before for x in k.release]
        release, more = sift(rows, [whole, scored("release", self.release), distinct(gone)])
        prompts = len({row.prompt for row in rows})
        # both critics are told of the same: every text that was written, before any filter
        hits = {"held_out": held_out.tolist(), "critic": [not row.score < self.threshold for row in rows]}
        measures = {f"{n}_accepts": sum(h) / max(1, len(rows)) for n, h in hits.items()}
        ours = {row.same for row, hit in zip(rows, hits["held_out"], strict=True) if hit}
        measures |= {
            "distinct_accepted": len(ours) / max(1, prompts),
            "words": sum(len(row.text.split()) for row in rows) / max(1, len(rows)),
            "complete": sum(row.complete for row in rows) / max(1, len(rows)),
        }
        learn = [*old, *learn]
        weight = [row.score for row in learn] if self.imitate == "weighted" else None
        return Kept(learn, release, [*survivors, *more], measures, weight)

    def tell(self, r: int, ctx: Context) -> None:
        """A round is kept: its figures, a few texts, and after the last round the corpus.

        Raises:
            DataError: with ``on_floor=error``, what is accepted has become too much alike.
        """
        kept = self.loop.kept(r, ctx)
        told_ = [{"round": r, "filter": s.filter, "given": s.given, "left": s.left} for s in kept.survivors]
        self.state["survivors"] += told_
        self.state["measures"].append(dict(kept.measures))
        best = sorted(kept.learn, key=lambda row: -row.score)
        self.state["samples"].append([row.text for row in best[:: max(1, len(best) // 4)]][:4])
        now, last = (self.state["measures"][i]["distinct_accepted"] for i in (r, max(0, r - 1)))
        if now < self.floor * last:
            said = f"round {r}: {now:.2f} distinct accepted texts a prompt, after {last:.2f} in the round before"
            if self.on_floor == "error":
                raise DataError(
                    "method.floor", said, given=self.floor, remedy="lower train.steps or train.lr, or method.cap"
                )
            self.state["warnings"].append(f"{said} (method.floor={self.floor:g})")
        if r == self.rounds:
            rows = [row for i in range(r + 1) for row in self.loop.kept(i, ctx).release]
            known = [
                {"text": x.text, "concept": x.group, "prompt": x.prompt, "round": x.round}
                | ({"score": round(x.score, 6)} if x.score == x.score else {})
                for x in rows
            ]
            self.state["corpus"] = Corpus(known).packed()

    def begin_again(self, r: int, ctx: Context) -> None:
        """With ``start=base``: the student is the first generator again."""
        self.roles["student"].module.load_state_dict(self.roles["teacher"].module.state_dict())

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The likelihood of kept texts, each by its weight."""
        term = self.task.supervised(ctx.signal("student", batch), batch)  # [N, T-1]
        weight: Tensor = batch["weight"]
        term.values = term.values * weight.unsqueeze(1)
        return Terms(lm=term)

    # ---------------------------------------------------------------------------------------------- what is delivered

    @property
    def notes(self) -> list[str]:
        """What each round's filters left, and warnings."""
        lines: dict[int, list[str]] = {}
        for s in self.state.get("survivors", []):
            lines.setdefault(s["round"], []).append(f"{s['filter']} {s['left']}")
        written = {s["round"]: s["given"] for s in reversed(self.state.get("survivors", []))}
        said = [f"round {r}: {written[r]} written; left after {', '.join(found)}" for r, found in lines.items()]
        return [*said, *self.state.get("warnings", [])]

    def measures(self) -> dict[str, float]:
        """Of each round what both critics accept before any filter, and more; and how good both are."""
        found = {f"round{r}/{n}": v for r, m in enumerate(self.state["measures"]) for n, v in m.items()}
        return found | {f"{who}/{n}": v for who, m in self.state["critic"].items() for n, v in m.items()}

    def artifact(self) -> Artifact:
        """The corpus and the last generator."""
        packed = self.state.get("corpus")
        told_ = self.state["survivors"]
        corpus = Corpus(survivors=list(told_)) if packed is None else Corpus.unpacked(packed, told_)
        built = replace(self.setup.student, module=self.roles["student"].module)
        return CorpusArtifact(self.task, built, corpus)

    def rows(self) -> dict[str, Artifact]:
        """``teacher``: the first generator, under the same constraints; ``nucleus``: the same without any, sampled."""
        first = replace(self.setup.built["teacher"], module=self.roles["teacher"].module)
        free = {"by": "sample", "constraints": False, "top_p": 0.9}
        made: Mapping[str, Any] = {"teacher": {}, "nucleus": free}
        return {name: CorpusArtifact(self.task, first, Corpus(), how) for name, how in made.items()}

    def extras(self) -> dict[str, Any]:
        """Tables for the report: what each filter left, what critics say, a few texts of each round."""
        survivors = [[s["round"], s["filter"], s["given"], s["left"]] for s in self.state["survivors"]]
        names = list(self.state["measures"][0]) if self.state["measures"] else []
        rounds = [[r, *(round(m[n], 3) for n in names)] for r, m in enumerate(self.state["measures"])]
        texts = [[r, text] for r, found in enumerate(self.state["samples"]) for text in found]
        critics = [[who, *(round(v, 3) for v in m.values())] for who, m in self.state["critic"].items()]
        told_: Mapping[str, float] = next(iter(self.state["critic"].values()), {})
        return {
            "tables": [
                {"title": "Survivors of each filter", "head": ["round", "filter", "given", "left"], "rows": survivors},
                {"title": "Before any filter, round by round", "head": ["round", *names], "rows": rounds},
                {"title": "Critics on real and corrupted test statements", "head": ["who", *told_], "rows": critics},
                {"title": "Kept texts", "head": ["round", "text"], "rows": texts},
            ]
        }


def plural(concept: str) -> str:
    """A noun's plural by the rules of English spelling; irregular ones come out wrong.

    Example:
        >>> [plural(w) for w in ("bird", "savings bank", "fox", "baby", "day")]
        ['birds', 'savings banks', 'foxes', 'babies', 'days']
    """
    if concept.endswith(("s", "x", "z", "ch", "sh")):
        return concept + "es"
    if len(concept) > 1 and concept.endswith("y") and concept[-2] not in "aeiou":
        return concept[:-1] + "ies"
    return concept + "s"


__all__ = ["Decoding", "I2d2", "Prompt", "plural"]
