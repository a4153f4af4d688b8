"""Impossible Distillation: a corpus of paraphrases, and a model that writes them, out of a raw language model that cannot.

    contexts   c ~ p_T, cut at sentences;  y_orig: the sentence that follows c
    round 0    y_1..y_n ~ p_T( . | c), first sentences;  pairs (y_i, y_j), i < j
               kept: length, entails both ways, one of each that say the same, the same numbers, ROUGE-L <= tau
    learn      min_theta - sum over pairs of log q_theta(y_new | y_orig)
    round t    y_1..y_m ~ q_theta( . | y_orig);  the same filters; of those that pass the one with least overlap; learn again

Many continuations of one context tend to say the same: what is kept is not imitated from anybody who could do the task. The
student is the teacher's own architecture and begins with its weights: a decoder that reads the original as a prompt, where
the paper has an encoder beside one (T5). The paper's syntax-controlled paraphrases are not here.

p_T: the raw model;  c: context;  q_theta: the student;  entails: a critic's P(entailment)
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval

from limbeck.artifacts.corpus import Corpus, CorpusArtifact
from limbeck.data.paraphrases import ENTAILMENT, Pair, PairFilters, joined_digits, rouge_l
from limbeck.data.text import Document
from limbeck.errors import ConfigError, DataError
from limbeck.evaluators.paraphrased import Rewritten
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Stage, Terms
from limbeck.grammar.random import Draws, key_of
from limbeck.grammar.settings import Count, Fraction, Natural, Positive, settings
from limbeck.parts.constrained import token_texts
from limbeck.parts.entailment import Containment, Entailment, PairClassifier, table, trial
from limbeck.parts.rounds import Kept, KeptTexts, Rounds, Row, Survivors, distinct, sift
from limbeck.parts.writing import can_write, continued
from limbeck.tasks.causal import output_size
from limbeck.tasks.sentences import Sentences, made_pairs, sentences_of
from limbeck.tasks.spelling import spell
from limbeck.tasks.tokenizers import pad_id, special_ids

CARD = Card(
    number=28,
    slug="impossible-distillation",
    title="Impossible Distillation: from Low-Quality Model to High-Quality Dataset & Model for Summarization and Paraphrasing",
    year=2024,
    venue="NAACL 2024",
    arxiv="2305.16635",
    repository="jaehunjung1/impossible-distillation",
    family="corpora",
    methods={"impossible-distillation": "ImpossibleDistillation"},
    optimised="a corpus of pairs, and the language model that learns them",
    signals=("accepted text",),
    provenance={
        "contexts, prefixes, sampling, filters and their order, thresholds, choice by least overlap": "from the code",
        "rounds of learning": "from the paper; its training settings are not known",
        "numbers of the original too": "the paper; variant=released does as the code, in which they may be missing",
        "summaries: forward entailment alone, a limit of length": "from the paper, its numbers reconstructed",
        "control codes": "from the paper, their boundaries reconstructed: terciles of the data",
        "lists of cities, countries and media": "reconstructed",
        "critic of contained words, the held-out one of characters, made pairs": "ours: stand-ins for a model of inference",
        "a decoder in place of T5": "ours",
    },
    claim="More of the student's unfiltered paraphrases pass a held-out critic than of the raw teacher's samples; "
    "self-distillation raises the share again; different texts do not become rare.",
    recipe="impossible-distillation",
    at_equality={"pairs": "the likelihood of kept pairs: the student learns from no distribution it could equal"},
    notes="Without a pretrained language model and a real critic (participants.critic=hf:NAME with method.critic=nli) it shows "
    "the mechanism alone. corpus.jsonl is the corpus of pairs, survivors.json what each filter left.",
)

NEWS = (("({media}) --", 0.5), ("{country} ({media}) --", 0.25), ("{city}, {country} ({media}) --", 0.25))
"""How news begins, and how often."""

BIO = ("Abstract:", "Introduction:", "Method:", "Conclusion:")
"""How biomedical texts begin."""

PLACES = (
    ("London", "England"), ("Paris", "France"), ("Berlin", "Germany"), ("Madrid", "Spain"), ("Rome", "Italy"),
    ("Cairo", "Egypt"), ("Nairobi", "Kenya"), ("Delhi", "India"), ("Tokyo", "Japan"), ("Seoul", "South Korea"),
    ("Ottawa", "Canada"), ("Lima", "Peru"),
)  # fmt: skip
MEDIA = ("Reuters", "AP", "AFP", "BBC", "CNN")

CODES = (("shorter", "as long", "longer"), ("near", "apart", "far"))
"""Words of a control code: terciles of length by the original's, and of 1 - ROUGE-L."""


@settings
class ImpossibleDistillation(Method[Sentences]):
    """Contexts, pairs mined among the teacher's samples, then rounds in which the student writes, is filtered and learns.

    Args:
        rounds: how often the student learns: once from the teacher's pairs, then from its own.
        what: ``paraphrase``, or ``summary``: entailed forward alone, and shorter than ``ratio``.
        domain: how texts begin: as the ``data`` do, as ``news``, or as ``bio`` (digits that stand apart are joined there).
        prefix: words of a training text that the teacher goes on from, with domain=data.
        prefixes: texts that are begun.
        continuations: of each beginning, to cut contexts from.
        held: beginnings of the validation and of the test texts, each gone on from once, on which results are measured.
        contexts: of these, so many are sampled from in round 0; ``null`` for all.
        originals: sentences that the student rewrites in each later round; ``null`` for all.
        samples: continuations of each context.
        outputs: texts of the student for each original.
        temperature: of the contexts' words.
        pair_temperature: of the samples: a low one lets them say the same.
        own_temperature: of the student's words.
        top_p: only the likeliest words that make up this mass, of all of these.
        ngram: runs of tokens that no sample has twice; 0 allows them.
        context_tokens: of a text that contexts are cut from, at most.
        longest: tokens of a sample or of a student's text, at most.
        critic: ``words`` (contained words, no network), ``nli`` (the participant ``critic``), or ``none``.
        entails: least probability that the original entails the new sentence.
        entailed: least probability that the new sentence entails the original; not asked for summaries.
        shortest_ratio: least length of the new sentence, as a share of the original's characters.
        longest_ratio: greatest length.
        ratio: greatest length of summaries. [reconstructed]
        overlap: greatest ROUGE-L of both.
        variant: ``paper``: numbers must be the same; ``released``: those of the original may be missing.
        choose: of a student's texts that pass the one with ``least-overlap``, or a ``random`` one.
        codes: put words in front of the original that say how long and how different the new sentence is.
        control: what is put there where the student is measured: ``LENGTH, DIFFERENCE``; empty takes the middle ones.
        start: the student begins as the ``teacher``, or with its ``own`` first weights.
        continue_from: each later round learns on from the ``previous`` student, or from the ``first`` weights again.
        pool: learn from the pairs of this ``round``, or of ``all`` so far. [ours: a small student's own are few]
        least: pairs below which a round is refused.
        chunk: contexts or originals in one piece of work.
        at_once: texts that are sampled side by side.
    """

    rounds: Count = 2
    what: Literal["paraphrase", "summary"] = "paraphrase"
    domain: Literal["data", "news", "bio"] = "data"
    prefix: Count = 4
    prefixes: Count = 100
    continuations: Count = 100
    held: Count = 100
    contexts: Count | None = None
    originals: Count | None = None
    samples: Annotated[int, Interval(ge=2)] = 100
    outputs: Count = 10
    temperature: Positive = 1.0
    pair_temperature: Positive = 0.5
    own_temperature: Positive = 0.7
    top_p: Annotated[float, Interval(gt=0, le=1)] = 0.9
    ngram: Natural = 3
    context_tokens: Count = 150
    longest: Count = 100
    critic: Literal["words", "nli", "none"] = "words"
    entails: Fraction = 0.75
    entailed: Fraction = 0.75
    shortest_ratio: Positive = 0.8
    longest_ratio: Positive = 1.5
    ratio: Fraction = 0.75
    overlap: Fraction = 0.75
    variant: Literal["paper", "released"] = "paper"
    choose: Literal["least-overlap", "random"] = "least-overlap"
    codes: bool = False
    control: str = ""
    start: Literal["teacher", "own"] = "teacher"
    continue_from: Literal["previous", "first"] = "previous"
    pool: Literal["round", "all"] = "round"
    least: Count = 20
    chunk: Count = 8
    at_once: Count = 256

    called = MappingProxyType(
        {
            "teacher": "the raw teacher's samples of the same context",
            "first": "the student after its first round",
            "alone": "the same network trained on texts alone",
        }
    )

    def validate(self) -> None:
        """Settings that go together; real critics take part where they are asked."""
        if self.shortest_ratio > self.longest_ratio:
            raise ValueError(
                f"shortest_ratio ({self.shortest_ratio}) must be no more than longest_ratio ({self.longest_ratio})"
            )
        if self.control and not self.codes:
            raise ValueError("control is what codes=true puts before an original: set codes=true")
        words = [w.strip() for w in self.control.split(",")] if self.control else []
        if self.control and (len(words) != 2 or words[0] not in CODES[0] or words[1] not in CODES[1]):
            raise ValueError(f"control must be one of {', '.join(CODES[0])}, a comma, and one of {', '.join(CODES[1])}")
        found = {"teacher": Participant(like="student", judged=False)}
        if self.critic == "nli":
            found |= {"critic": Participant(task="entailment"), "held-out": Participant(task="held-out", needed=False)}
        self.participants = MappingProxyType(found)

    # --------------------------------------------------------------------------------------------------- who takes part

    def bind(self, setup: Setup) -> None:
        """The student begins as the teacher; a copy stands for its state after the first round.

        Raises:
            ConfigError: two architectures where one begins as the other; a network that cannot write; texts that do not fit.
        """
        super().bind(setup)
        mine, theirs = (self.roles[n].module for n in ("student", "teacher"))
        for name in ("student", "teacher"):
            can_write(self.roles[name].module, name, name)
        if self.start == "teacher":
            shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    "teacher",
                    "the student begins with the teacher's weights, and these two are built differently",
                    given=type(theirs).__name__,
                    expected="the student's architecture",
                    remedy="set method.start=own, or leave the teacher out, and it is built as the student is",
                )
            mine.load_state_dict(theirs.state_dict())
        if self.longest >= self.task.length:
            raise ConfigError(
                "method.longest",
                "a pair would not fit into the student's sequences",
                given=self.longest,
                expected=f"less than task.length, {self.task.length}",
            )
        pieces = token_texts(self.task.tokenizer, output_size(theirs))
        self.no_breaks = _Never([i for i, t in enumerate(pieces) if re.search(r"[\r\n]", t)])
        own = self.task.tokenizer.eos_token_id
        self.stops = [i for i, t in enumerate(pieces) if t.strip() in (".", "?", "!")] + ([] if own is None else [own])
        self.new("first", like="student")
        self._cuts: list[list[str]] | None = None
        self.state = {"held": {}, "survivors": [], "measures": [], "critic": {}, "samples": []}
        self._critics: dict[str, Entailment | None] = {}
        self.loop = Rounds(
            self.rounds,
            KeptTexts(self.task, document=self.record),
            self.pieces,
            self.write,
            self.keep,
            self.step,
            setup.train,
            begin=self.begin_round,
            finish=self.tell,
            least=self.least,
            again=False,
            remedy="sample more (method.samples, method.prefixes), or lower method.entails and method.entailed",
        )

    @property
    def filters(self) -> PairFilters:
        """As the settings say."""
        summary = self.what == "summary"
        off = self.critic == "none"
        return PairFilters(
            shortest=1e-9 if summary else self.shortest_ratio,
            longest=self.ratio if summary else self.longest_ratio,
            entails=0.0 if off else self.entails,
            entailed=0.0 if off or summary else self.entailed,
            most_overlap=self.overlap,
            strict_numbers=self.variant == "paper",
        )

    def critic_of(self, name: str) -> Entailment:
        """``critic`` filters; ``held-out`` measures: another participant, or the one of characters."""
        found = self._critics.get(name)
        if found is None:
            if name in self.roles:
                part: Any = self.task.part(self.participants[name].task)
                found = PairClassifier(part, self.roles[name].module, self.roles[name].contract)
            elif name == "critic":
                found = Containment(self.task.half("entailment"))
            else:
                found = Containment(self.task.half("held-out"), characters=4)
            self._critics[name] = found
        return found

    def begin(self, ctx: Context) -> None:
        """How well both critics tell made pairs of test sentences.

        Raises:
            ConfigError: one finds what is true less likely than what is not.
        """
        pairs = made_pairs([d.text for d in self.task.texts.test][:100])
        for name in ("critic", "held-out"):
            found = trial(self.critic_of(name), pairs)
            if name in self.participants and found["entailed"] < found["others"]:
                raise ConfigError(
                    f"participants.{name}",
                    f"it finds what a sentence entails less likely ({found['entailed']:.2f}) than anything else "
                    f"({found['others']:.2f})",
                    expected="a critic of entailment",
                    remedy=f"its classes may be in another order: set participants.{name}.labels to their names in its order",
                )
            self.state["critic"][name] = found

    # -------------------------------------------------------------------------------------------------------- contexts

    def beginning(self, i: int, split: str = "train") -> str:
        """How the text of a number begins, drawn by its number."""
        draw = np.random.default_rng(key_of(self.setup.seed, "prefix", split, i))
        if self.domain == "bio":
            return BIO[int(draw.integers(len(BIO)))]
        if self.domain == "news":
            form = NEWS[int(draw.choice(len(NEWS), p=[p for _, p in NEWS]))][0]
            city, country = PLACES[int(draw.integers(len(PLACES)))]
            return form.format(city=city, country=country, media=MEDIA[int(draw.integers(len(MEDIA)))])
        documents = getattr(self.task.texts, split)
        return " ".join(documents[i % len(documents)].text.split()[: self.prefix])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Beginnings as tokens."""
        tokenizer = self.task.tokenizer
        bos, eos = special_ids(tokenizer)
        found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [[*(bos or eos[:1] if not x else bos), *x] for x in found]

    def continuations_of(
        self,
        module: Any,
        rows: Sequence[Sequence[int]],
        draws: Draws,
        key: torch.Tensor,
        temperature: float,
        longest: int,
        one: bool = True,
    ) -> list[str]:
        """Texts behind rows of tokens, without line breaks and repeated runs.

        Where only the first sentence counts (``one``), writing stops at a token that ends one. [ours]
        """
        from transformers import NoRepeatNGramLogitsProcessor

        more = [NoRepeatNGramLogitsProcessor(self.ngram)] if self.ngram else []
        room = int(getattr(module.config, "max_position_embeddings", 0) or 1 << 30)
        made = continued(
            module, rows, draws, key, longest=max(1, min(longest, room - max(map(len, rows)))), temperature=temperature,
            top_p=self.top_p, at_once=self.at_once, pad=pad_id(self.task.tokenizer), keep_end=True,
            processors=[*more, self.no_breaks], ends=self.stops if one else self.stops[:0],
        )  # fmt: skip
        found = [
            self.task.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids, _ in made
        ]
        return [joined_digits(t) for t in found] if self.domain == "bio" else found

    def cut(self, beginnings: Sequence[str], draws: Draws, key: torch.Tensor) -> list[list[str]]:
        """Contexts with the sentence that follows each, [context, sentence], from the teacher's continuations."""
        module = self.roles["teacher"].module
        found = []
        for text, more in zip(
            beginnings,
            self.continuations_of(
                module, self.ids(beginnings), draws, key, self.temperature, self.context_tokens, False
            ),
            strict=True,
        ):
            before = text
            for sentence, whole in sentences_of(more):
                if whole and before:
                    found.append([before, sentence])
                before = f"{before} {sentence}".strip()
        return found

    def stages(self) -> list[Stage]:
        """Contexts, then the rounds."""
        return [
            Stage("contexts", items=self.cuts, work=self.make_contexts, finish=self.hold, roles=["teacher"]),
            *self.loop.stages(),
        ]

    def cuts(self, ctx: Context) -> list[str]:
        """Pieces of the training beginnings, and those that are held out."""
        return [*(f"train-{a:06d}" for a in range(0, self.prefixes, self.chunk)), "valid-000000", "test-000000"]

    def make_contexts(self, item: str, ctx: Context) -> list[list[str]]:
        """Contexts of a piece of work."""
        split, _, first = item.partition("-")
        a = int(first)
        count = min(self.chunk, self.prefixes - a) if split == "train" else self.held
        n = self.continuations if split == "train" else 1
        begun = [self.beginning(a + i, split) for i in range(count) for _ in range(n)]
        key = torch.arange(a * n, a * n + len(begun)) + key_of("contexts", split) % (1 << 40)
        return self.cut(begun, ctx.draws, key)

    def hold(self, ctx: Context) -> None:
        """Held-out sentences are what results are measured on.

        Raises:
            DataError: the teacher wrote no complete sentence.
        """
        for split in ("valid", "test"):
            self.state["held"][split] = _once(ctx.artifact("contexts", f"{split}-000000"))
        for name, found in {"train": self.all_contexts(ctx), **self.state["held"]}.items():
            if not found:
                raise DataError(
                    "method.context_tokens",
                    f"the teacher wrote no complete sentence behind the {name} beginnings",
                    given=self.context_tokens,
                    remedy="train it longer (teach.steps), raise method.context_tokens or method.prefixes",
                )

    # ---------------------------------------------------------------------------------------------------------- rounds

    def all_contexts(self, ctx: Context) -> list[list[str]]:
        """Contexts of the training beginnings with the sentence that follows each, once."""
        if self._cuts is None:
            items = [i for i in ctx.items("contexts") if i.startswith("train")]
            self._cuts = _once([x for i in items for x in ctx.artifact("contexts", i)])
        return self._cuts

    def todo(self, r: int, ctx: Context) -> list[list[str]]:
        """Of the first round the contexts, of later ones the originals, evenly spread."""
        found = self.all_contexts(ctx)
        most = self.contexts if r == 0 else self.originals
        return found if most is None or most >= len(found) else [found[i * len(found) // most] for i in range(most)]

    def pieces(self, ctx: Context) -> list[str]:
        """So many contexts or originals at a time."""
        n = max(len(self.todo(0, ctx)), len(self.todo(1, ctx)) if self.rounds > 1 else 0)
        return [f"{a:07d}" for a in range(0, n, self.chunk)]

    def write(self, r: int, item: str, ctx: Context) -> list[Row]:
        """Samples of the teacher behind contexts; then the student's texts for originals."""
        a = int(item)
        some = self.todo(r, ctx)[a : a + self.chunk]
        if not some:
            return []
        n = self.samples if r == 0 else self.outputs
        key = torch.arange(a * n, (a + len(some)) * n)
        if r == 0:
            rows = [x for x in self.ids([c for c, _ in some]) for _ in range(n)]
            texts = self.continuations_of(
                self.roles["teacher"].module, rows, ctx.draws, key, self.pair_temperature, self.longest
            )
        else:
            module = self.roles["student"].module
            texts = self.rewrite(module, [y for _, y in some for _ in range(n)], ctx.draws, key)
        made = []
        for k, text in enumerate(texts):
            sentence, whole = next(iter(sentences_of(text)), ("", False))
            context, original = some[k // n]
            made.append(Row(sentence, context if r == 0 else original, str(a + k // n), whole))
        return made

    def rewrite(self, module: Any, originals: Sequence[str], draws: Draws, key: torch.Tensor) -> list[str]:
        """What a student writes for originals, with the code that is asked for."""
        code = self.control or f"{CODES[0][1]}, {CODES[1][1]}"
        prompts = [f"{code}: {y}" if self.codes else y for y in originals]
        rows = [s.ids[: s.prompt] for s in spell(self.task, [Document("x", p) for p in prompts])]
        return self.continuations_of(module, rows, draws, key, self.own_temperature, self.longest)

    def keep(self, r: int, rows: list[Row], ctx: Context) -> Kept:
        """Complete sentences, pair by pair through the filters."""
        critic = None if self.critic == "none" else self.critic_of("critic")
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row.complete:
                groups.setdefault(row.group, []).append(row)
        told: Counter[str] = Counter()
        made = []
        for number, some in groups.items():
            texts = list(dict.fromkeys(row.text for row in some))
            context = self.todo(r, ctx)[int(number)][0]
            if r == 0:
                for p in self.mined(texts, critic, told) if len(texts) > 1 else []:
                    made.append(Row(texts[p.new], texts[p.original], number, score=p.entailed, note=context))
            else:
                best = self.best_of([some[0].prompt, *texts], critic, told, number)
                if best is not None:
                    made.append(Row(texts[best.new - 1], some[0].prompt, number, score=best.entailed, note=context))
        order = ("pairs", "length", "entails", "entailed", *(("one of each",) if r == 0 else ()), "numbers", "reworded")
        survivors = [Survivors("complete", len(rows), sum(row.complete for row in rows))]
        survivors += [Survivors(b, told[a], told[b]) for a, b in itertools.pairwise(order)]
        if r:
            survivors.append(Survivors("chosen", told["reworded"], len(made)))
        keyed = [replace(row, text=f"{row.prompt}\n{row.text}") for row in made]
        _, (unique,) = sift(keyed, [distinct()])
        same: set[str] = set()
        learn = [row for row, k in zip(made, keyed, strict=True) if not (k.same in same or same.add(k.same))]  # type: ignore[func-returns-value]
        survivors.append(replace(unique, left=len(learn)))
        measures = {
            "written": float(len(rows)),
            "complete": sum(row.complete for row in rows) / max(1, len(rows)),
            "pairs": float(len(learn)),
            "passing": told["reworded"] / max(1, told["pairs"]),
            "overlap": sum(rouge_l(x.prompt, x.text) for x in learn) / max(1, len(learn)),
        }
        gone = {k.same for i in range(r) for k in self._keyed(self.loop.kept(i, ctx).release)}
        release = [row for row, k in zip(learn, self._keyed(learn), strict=True) if k.same not in gone]
        old = [x for i in range(r) for x in self.loop.kept(i, ctx).release] if self.pool == "all" else []
        return Kept(self.coded([*old, *release] if old else learn), release, survivors, measures)

    @staticmethod
    def _keyed(rows: Sequence[Row]) -> list[Row]:
        return [replace(row, text=f"{row.prompt}\n{row.text}") for row in rows]

    def mined(self, texts: Sequence[str], critic: Entailment | None, told: Counter[str]) -> list[Pair]:
        """Pairs among samples of one context; a critic is asked about all of them, for it also says which say the same."""
        nli = np.zeros((len(texts), len(texts), 3)) if critic is None else table(critic, texts)
        return self.filters.mine(texts, nli, told)

    def best_of(self, texts: Sequence[str], critic: Entailment | None, told: Counter[str], number: str) -> Pair | None:
        """The student's text for ``texts[0]`` that is taken."""
        n = len(texts)
        asked = [p for j in range(1, n) for p in ((0, j), (j, 0))]
        nli = np.zeros((n, n, 3)) if critic is None else table(critic, texts, asked)
        found = self.filters.passing(texts, nli, told)
        if self.choose == "random" and found:
            return found[key_of(self.setup.seed, "choose", number) % len(found)]
        return min(found, key=lambda p: p.overlap, default=None)

    def coded(self, rows: list[Row]) -> list[Row]:
        """With ``codes``: each original behind words for its pair, by terciles of these very pairs."""
        if not self.codes or not rows:
            return rows
        values = np.array([[len(x.text) / len(x.prompt), 1 - rouge_l(x.prompt, x.text)] for x in rows])
        cuts = np.quantile(values, [1 / 3, 2 / 3], axis=0)  # [2 cuts, 2 attributes]
        places = (values[:, None] > cuts[None]).sum(1)  # [N, 2], each 0 to 2
        return [
            replace(x, prompt=f"{CODES[0][a]}, {CODES[1][b]}: {x.prompt}")
            for x, (a, b) in zip(rows, places.tolist(), strict=True)
        ]

    def record(self, row: Row) -> Document:
        """A pair as it is learnt: the original is the prompt."""
        return Document(row.text, row.prompt)

    def begin_round(self, r: int, ctx: Context) -> None:
        """Before the second learning what the first left is kept beside; with ``first`` the student begins again."""
        student, first = self.roles["student"].module, self.roles["first"].module
        if r == 1:
            first.load_state_dict(student.state_dict())
        if r and self.continue_from == "first":
            if self.start != "teacher":
                raise ConfigError(
                    "method.continue_from", "its first weights are not kept with start=own", given="first"
                )
            student.load_state_dict(self.roles["teacher"].module.state_dict())

    def tell(self, r: int, ctx: Context) -> None:
        """A round is kept: figures, a few pairs, and after the last one the corpus."""
        kept = self.loop.kept(r, ctx)
        self.state["survivors"] += [
            {"round": r, "filter": s.filter, "given": s.given, "left": s.left} for s in kept.survivors
        ]
        self.state["measures"].append(dict(kept.measures))
        some = kept.release[:: max(1, len(kept.release) // 3)][:3]
        self.state["samples"].append([[x.prompt, x.text] for x in some])
        if r == self.rounds - 1:
            rows = [x for i in range(r + 1) for x in self.loop.kept(i, ctx).release]
            known = [
                {
                    "text": x.text,
                    "original": x.prompt,
                    "context": x.note,
                    "round": x.round,
                    "entailed": round(x.score, 6),
                }
                for x in rows
            ]
            self.state["corpus"] = Corpus(known).packed()

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The likelihood of the new sentence behind its original."""
        return Terms(pairs=self.task.supervised(ctx.signal("student", batch), batch))

    # ---------------------------------------------------------------------------------------------- what is delivered

    def rewritten(self, artifact: NetworkArtifact, split: str, sentences: int, texts: int, draws: Draws) -> Rewritten:
        """A student's texts for held-out sentences, or the raw teacher's samples behind their contexts; nothing filtered."""
        held = self.state["held"].get(split) or []
        some = held[:sentences]
        if not some:
            return Rewritten([], [], [], [], [])
        key = torch.arange(len(some) * texts)
        originals = [y for _, y in some for _ in range(texts)]
        module = artifact.built.module
        if getattr(artifact, "decoding", {}).get("raw"):
            rows = [x for x in self.ids([c for c, _ in some]) for _ in range(texts)]
            made = self.continuations_of(module, rows, draws, key, self.pair_temperature, self.longest)
        else:
            made = self.rewrite(module, originals, draws, key)
        first = [next(iter(sentences_of(t)), ("", False)) for t in made]
        said = [t for t, _ in first]
        critic = self.critic_of("held-out")
        there, back = (critic.score(a, b)[:, ENTAILMENT] for a, b in ((originals, said), (said, originals)))
        passed = []
        for original, (text, whole), p, q in zip(originals, first, there, back, strict=True):
            nli = np.zeros((2, 2, 3))
            nli[0, 1, ENTAILMENT], nli[1, 0, ENTAILMENT] = p, q
            passed.append(whole and bool(self.measuring.passing([original, text], nli)))
        return Rewritten(originals, said, passed, there.tolist(), back.tolist())

    @property
    def measuring(self) -> PairFilters:
        """The filters by which results are measured, whatever was left out in training."""
        summary = self.what == "summary"
        return PairFilters(
            shortest=1e-9 if summary else self.shortest_ratio,
            longest=self.ratio if summary else self.longest_ratio,
            entails=self.entails,
            entailed=0.0 if summary else self.entailed,
            most_overlap=self.overlap,
        )

    @property
    def notes(self) -> list[str]:
        """What each round's filters left."""
        lines: dict[int, list[str]] = {}
        for s in getattr(self, "state", {}).get("survivors", []):
            lines.setdefault(s["round"], []).append(f"{s['filter']} {s['left']} of {s['given']}")
        return [f"round {r}: {', '.join(found)}" for r, found in lines.items()]

    def measures(self) -> dict[str, float]:
        """Of each round what was written and kept; how good both critics are."""
        found = {f"round{r}/{n}": v for r, m in enumerate(self.state["measures"]) for n, v in m.items()}
        return found | {f"{who}/{n}": v for who, m in self.state["critic"].items() for n, v in m.items()}

    def artifact(self) -> Artifact:
        """The corpus of pairs and the last student."""
        packed, survivors = self.state.get("corpus"), self.state["survivors"]
        corpus = Corpus(survivors=list(survivors)) if packed is None else Corpus.unpacked(packed, survivors)
        return CorpusArtifact(self.task, replace(self.setup.student, module=self.roles["student"].module), corpus)

    def rows(self) -> dict[str, Artifact]:
        """``teacher``: raw samples; ``first``: the student before it learnt from itself."""
        teacher = replace(self.setup.built["teacher"], module=self.roles["teacher"].module)
        found: dict[str, Artifact] = {"teacher": CorpusArtifact(self.task, teacher, Corpus(), {"raw": True})}
        if self.rounds > 1:
            first = replace(self.setup.student, module=self.roles["first"].module)
            found["first"] = CorpusArtifact(self.task, first, Corpus())
        return found

    def extras(self) -> dict[str, Any]:
        """Tables for the report."""
        survivors = [[s["round"], s["filter"], s["given"], s["left"]] for s in self.state["survivors"]]
        pairs = [[r, a, b] for r, found in enumerate(self.state["samples"]) for a, b in found]
        critics = [[who, *(round(v, 3) for v in m.values())] for who, m in self.state["critic"].items()]
        told: Mapping[str, float] = next(iter(self.state["critic"].values()), {})
        return {
            "tables": [
                {"title": "Survivors of each filter", "head": ["round", "filter", "given", "left"], "rows": survivors},
                {"title": "Critics on made pairs of test sentences", "head": ["who", *told], "rows": critics},
                {"title": "Kept pairs", "head": ["round", "original", "new"], "rows": pairs},
            ]
        }


class _Never:
    """A logits processor that never writes some tokens."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = torch.tensor(list(tokens), dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores with minus infinity at these."""
        return scores.index_fill(1, self.tokens.to(scores.device), float("-inf")) if len(self.tokens) else scores


def _once(pairs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each context and sentence once, in order."""
    return [list(p) for p in dict.fromkeys((c, y) for c, y in pairs)]


__all__ = ["ImpossibleDistillation"]
