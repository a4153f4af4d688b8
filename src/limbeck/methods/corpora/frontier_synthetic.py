"""Synthetic data of a large teacher: it answers under an elaborate prompt, and a student learns the answers under a short one.

    a = parse(teacher(elaborate prompt, x)),  kept where the reply is whole, readable, not empty (and true, where that is known)
    D = { (short prompt, x) -> a }
    L = - sum over response tokens of log q(y_t | short prompt, x, y_<t) / number of response tokens in the batch

Nothing of the teacher but its text is seen: it may be a model in this process or any OpenAI-compatible endpoint, with a
tokenizer of its own. The reasoning raises the quality of the answers and is not imitated, unless ``keep`` says so.

x: question;  a: answer;  y: answer and end token, of reasoning and answer with keep=reasoning+answer;  q: student
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Interval

from limbeck.artifacts.corpus import Corpus, CorpusArtifact
from limbeck.data.chat import (
    Cached,
    Messages,
    Reply,
    ReplyCache,
    Sampling,
    Teacher,
    collected,
    conversation,
    numbered,
    replaced,
)
from limbeck.data.kinds import Kind, Style, answered
from limbeck.data.text import Document
from limbeck.errors import ConfigError, DataError
from limbeck.evaluators.graded import Written
from limbeck.grammar.artifact import Artifact, NetworkArtifact
from limbeck.grammar.card import Card
from limbeck.grammar.method import Batch, Context, Method, Participant, Setup, Stage, Terms
from limbeck.grammar.settings import Count, Fraction, NonNegative, settings
from limbeck.parts.chat import LocalChat, accepted, preferred, status_of
from limbeck.parts.rounds import Filter, Kept, KeptTexts, Rounds, Row, sift
from limbeck.storage.disk import workspace
from limbeck.tasks.questions import Questions
from limbeck.tasks.spelling import spell

CARD = Card(
    number=36,
    slug="frontier-synthetic",
    title="Knowledge Distillation Using Frontier Open-source LLMs: Generalizability and the Role of Synthetic Data",
    year=2024,
    arxiv="2410.18588",
    repository="Azure/azureml-assets",
    licence="MIT",
    family="corpora",
    methods={"frontier-synthetic": "FrontierSynthetic"},
    optimised="a corpus of answers, and the language model that learns them",
    signals=("text",),
    provenance={
        "kinds of questions, what prompts ask for, keys, sampling, success ratio and least records": "from the code of the "
        "same company's distillation service; the paper names none of its own",
        "selection of prompts and sampling on validation questions, rows that are compared": "public summaries of the paper",
        "parsing where the service stops at the first bad reply, the filter by true answers, learning reasons too": "reconstructed",
        "gates on kept records": "reconstructed: the service counts its input",
        "numerals, the teacher of rules, entities by capitals, the judge's words": "ours",
    },
    claim="With the short prompt a student that learns labels from the reasoning prompt is at least as accurate as one that "
    "learns labels from the plain prompt, both are better than before learning, and a question takes fewer tokens.",
    recipe="frontier-synthetic",
    at_equality={"sft": "the likelihood of the teacher's text: the student learns from no distribution it could equal"},
    exceptions={"at_equality": "its teacher answers in text and has no weights that a student could take"},
    notes="A large teacher: teacher={use: chat, url: https://HOST/v1, model: NAME, token_env: KEY, price_in: 1, price_out: 3, "
    "budget: 5}. limbeck plan says the price before anything is asked; replies are kept, so that a run that stopped pays no "
    "question twice. corpus.jsonl is the set, survivors.json what was left out and why.",
)

_SAID = {
    "not_finished": "not cut off",
    "refused": "not refused",
    "malformed": "readable",
    "unparsable": "parsed",
    "missing_key": "with an answer",
    "empty": "not empty",
    "over_long": "not too long",
    "disagrees": "true",
}
"""What a filter lets through, by what it takes out."""

EXAMPLES = 3
"""Validation questions whose answers a few-shot prompt shows. [reconstructed]"""


@settings
class FrontierSynthetic(Method[Questions]):
    """The teacher answers the training questions; the student learns what is kept by ``train``.

    Args:
        style: how the teacher is asked: ``cot`` (step by step; mathematics, inference, questions), ``cod`` (a chain of
            denser summaries), ``few-shot``, or ``vanilla``, as the student is; ``auto`` takes the kind's elaborate prompt.
        keep: what the student learns to write: the ``answer``, or ``reasoning+answer``.
        temperature: of the teacher's words; 0 takes the likeliest.
        top_p: only the likeliest words that make up this mass.
        longest: tokens of a reply, at most; ``null`` takes the kind's: 128, of summaries 1024.
        samples: replies to each question; all that are kept and differ are learnt.
        tolerant: cut a reply to its JSON before it is read.
        gold: leave out answers that differ from the data's own.
        max_words: longer answers are left out; ``null`` for any length.
        success: share of the replies that must be usable (a true answer is not needed for that).
        least: records that must be kept; ``null`` takes the kind's: 65, of mathematics 40.
        student_prompt: the student is asked with the short prompt (``vanilla``), or as the teacher (``teacher``).
        try_styles: styles among which the teacher's answers to validation questions choose; none asks in ``style``.
        try_temperatures: temperatures, likewise.
        try_questions: so many validation questions are asked for that.
        zero_shot: also grade the student before it learns, with the short prompt and with the teacher's.
        teacher_rows: also grade the teacher, with both.
        chunk: questions that are asked in one piece of work.
    """

    style: Literal["auto", "vanilla", "few-shot", "cot", "cod"] = "auto"
    keep: Literal["answer", "reasoning+answer"] = "answer"
    temperature: NonNegative = 0.2
    top_p: Annotated[float, Interval(gt=0, le=1)] = 0.1
    longest: Count | None = None
    samples: Count = 1
    tolerant: bool = False
    gold: bool = False
    max_words: Count | None = None
    success: Fraction = 0.7
    least: Count | None = None
    student_prompt: Literal["vanilla", "teacher"] = "vanilla"
    try_styles: list[Style] = []  # noqa: RUF012 (copied, never changed)
    try_temperatures: list[float] = []  # noqa: RUF012
    try_questions: Count = 50
    zero_shot: bool = True
    teacher_rows: bool = True
    chunk: Count = 64

    baseline = "alone"
    called = MappingProxyType(
        {
            "teacher": "the teacher with its own prompt",
            "teacher, short prompt": "the teacher with the student's prompt",
            "before": "the student before it learns",
            "before, long prompt": "the student before it learns, with the teacher's prompt",
            "alone": "the same student trained on the data's own answers",
        }
    )

    def validate(self) -> None:
        """Settings that go together."""
        if self.keep == "reasoning+answer" and self.style not in ("auto", "cot"):
            raise ValueError("keep=reasoning+answer needs reasons, which only style=cot asks for")
        if self.keep == "reasoning+answer" and any(s != "cot" for s in self.try_styles):
            raise ValueError("try_styles must be [cot] with keep=reasoning+answer: no other style gives reasons")
        if any(t < 0 for t in self.try_temperatures):
            raise ValueError("try_temperatures must be 0 or more each")
        self.participants = MappingProxyType(
            {
                "teacher": Participant(task="teacher", judged=False),
                "judge": Participant(task="judge", taught=False, needed=False, judged=False),
            }
        )

    # --------------------------------------------------------------------------------------------------- who takes part

    def bind(self, setup: Setup) -> None:
        """The teacher and the judge by how they answer; what the teacher will cost is said, or refused.

        Raises:
            ConfigError: a style that the kind does not have; true answers asked for where there are none; a budget that
                does not do; a student that cannot write.
        """
        super().bind(setup)
        task, kind = self.task, self.asks
        if not callable(getattr(self.roles["student"].module, "generate", None)):
            raise ConfigError(
                "student",
                f"{type(self.roles['student'].module).__name__} has no generate method",
                remedy="use a transformers model (causal-lm, hf)",
            )
        elaborate = next(iter(kind.styles), "vanilla")
        self.asked_style: str = elaborate if self.style == "auto" else self.style
        for style in (self.asked_style, *self.try_styles):
            task.framed(task.train.documents[0], style)
        if self.keep != "answer" and self.asked_style != "cot":
            raise ConfigError("method.keep", f"questions of the kind {kind.name} come without reasons", given=self.keep,
                              expected="answer")  # fmt: skip
        if self.gold and not kind.exact:
            raise ConfigError("method.gold", f"answers of the kind {kind.name} are not simply right or wrong",
                              given=True, expected="math, nli or nlu-qa", remedy="set method.gold=false")  # fmt: skip
        if self.zero_shot:
            self.new("start", like="student")
        self._caches: dict[str, Cached] = {}
        self.state = {"survivors": [], "measures": {}, "chosen": {}, "shown": [], "tried": []}
        for said in (self._price(), self._same_judge()):
            if said:
                task.note(said)  # read before anything is asked, in a plan too
        self.loop = Rounds(
            1,
            KeptTexts(task, document=self.record),
            self.pieces,
            self.write,
            self.keep_replies,
            self.step,
            setup.train,
            finish=self.tell,
            least=kind.least if self.least is None else self.least,
            again=False,
            remedy="ask more questions (task.student_documents), lower method.least, or look at what was left out",
        )

    @property
    def asks(self) -> Kind:
        """What is asked."""
        return self.task.asks

    def chats(self, name: str) -> Teacher:
        """A participant as a teacher of texts; what an endpoint answers is kept in the workspace."""
        module: Any = self.roles[name].module
        if not hasattr(module, "chat"):
            part: Any = self.task.part(self.participants[name].task) if name in self.participants else self.task
            return LocalChat(part, module)
        if not hasattr(module, "price"):
            found: Teacher = module
            return found
        if name not in self._caches:
            known = hashlib.blake2b(module.identity.encode(), digest_size=12).hexdigest()
            self._caches[name] = Cached(module, ReplyCache(workspace() / "replies" / f"{known}.jsonl"))
        return self._caches[name]

    def _price(self) -> str:
        """What the teacher's answers will cost, in a sentence; nothing for one in this process.

        Raises:
            ConfigError: more than its budget.
        """
        endpoint: Any = self.roles["teacher"].module
        if not hasattr(endpoint, "price"):
            return ""
        documents = self.task.train.documents
        asked = [m for d in documents for m in [self.question(d, self.asked_style)] * self.samples]
        how = numbered(self.sampling(), self.samples) * len(documents)
        teacher: Any = self.chats("teacher")
        new = teacher.missing(asked, how)
        price = endpoint.price([asked[i] for i in new], [how[i] for i in new])
        endpoint.afford(price)
        known = f"; {len(asked) - len(new):,} of {len(asked):,} are known already" if len(new) < len(asked) else ""
        if not endpoint.settings.price_in and not endpoint.settings.price_out:
            cost = "no price is stated (teacher.price_in, teacher.price_out, for a million tokens)"
        else:
            cost = f"at most {price.cost:.4g} at the stated prices"
        return (
            f"{endpoint.settings.model} is to be asked {price.questions:,} questions: about {price.asked:,} tokens, and "
            f"at most {price.tokens:,} in reply; {cost}{known}. Trying prompts and grading the teacher come on top"
        )

    def _same_judge(self) -> str:
        if "judge" not in self.roles or self.chats("judge").identity != self.chats("teacher").identity:
            return ""
        return "the judge is the teacher: models like their own answers better"

    # ----------------------------------------------------------------------------------------------------------- asking

    def sampling(self) -> Sampling:
        """How replies are drawn, as it was chosen."""
        chosen = self.state.get("chosen", {})
        return Sampling(
            float(chosen.get("temperature", self.temperature)),
            self.top_p,
            self.longest or self.asks.longest,
            self.setup.seed,
        )

    def shots(self) -> list[Document]:
        """Validation questions that a few-shot prompt shows."""
        return self.task.valid.documents[:EXAMPLES]

    def question(self, document: Document, style: str) -> Messages:
        """A question as the teacher is asked it: without its answers; a conversation with them, to be replaced."""
        turns = self.task.framed(document, style, self.shots())
        if self.asks.name == "conversation":
            return turns
        last = max(i for i, (role, _) in enumerate(turns) if role == "assistant")
        return turns[:last]

    def replies(self, documents: Sequence[Document], style: str, how: Sequence[Sampling]) -> list[Reply]:
        """The teacher's replies; of conversations all turns of one, with a record separator between them."""
        asked = [self.question(d, style) for d in documents]
        teacher = self.chats("teacher")
        if self.asks.name != "conversation":
            return collected(teacher, asked, how)
        found = []
        for turns, said in zip(asked, conversation(teacher, asked, how), strict=True):
            wanted = sum(role == "assistant" for role, _ in turns)
            last = said[-1] if said else Reply("", "malformed")
            cause = last.cause if len(said) == wanted or last.cause != "stop" else "stop"
            text = _TURN.join(r.text for r in said) if len(said) == wanted and all(r.text.strip() for r in said) else ""
            found.append(Reply(text, cause, sum(r.asked for r in said), sum(r.tokens for r in said)))
        return found

    # ----------------------------------------------------------------------------------------------------------- stages

    def stages(self) -> list[Stage]:
        """Prompts and sampling are chosen where there is a choice; then write, keep, learn, once."""
        choice = [Stage("choose", items=self.candidates, work=self.attempt, finish=self.choose)] if self._tries else []
        return [*choice, *self.loop.stages()]

    @property
    def _tries(self) -> bool:
        return bool(self.try_styles or self.try_temperatures)

    def candidates(self, ctx: Context) -> list[str]:
        """Every style with every temperature."""
        styles = dict.fromkeys(map(str, self.try_styles) if self.try_styles else [self.asked_style])
        return [f"{s}@{t:g}" for s in styles for t in dict.fromkeys(self.try_temperatures or [self.temperature])]

    def attempt(self, item: str, ctx: Context) -> dict[str, float]:
        """The teacher's mean grade on validation questions in a style at a temperature; what is no answer counts as 0."""
        style, _, temperature = item.partition("@")
        how = replace(self.sampling(), temperature=float(temperature))
        documents = self.task.valid.documents[EXAMPLES:][: self.try_questions] or self.task.valid.documents
        grades = []
        for d, reply in zip(documents, self.replies(documents, style, [how] * len(documents)), strict=True):
            status, answer, _ = self.judged(reply, d, style)
            grades.append(self.asks.grade(answer.text, self.task.gold_of(d))["score"] if status == "kept" else 0.0)
        return {"score": sum(grades) / len(grades), "questions": float(len(grades))}

    def choose(self, ctx: Context) -> None:
        """The best of them is asked; of equals the first."""
        found = {item: ctx.artifact("choose", item)["score"] for item in ctx.items("choose")}
        best = max(found, key=lambda item: found[item])
        style, _, temperature = best.partition("@")
        self.state["chosen"] = {"style": style, "temperature": float(temperature)}
        self.state["tried"] = [[*item.split("@"), score] for item, score in found.items()]

    def pieces(self, ctx: Context) -> list[str]:
        """So many questions are asked at a time."""
        return [f"{a:07d}" for a in range(0, len(self.task.train.documents), self.chunk)]

    def write(self, r: int, item: str, ctx: Context) -> list[Row]:
        """The teacher's replies to some questions, ``samples`` each.

        Raises:
            DataError: of the first piece not one reply is usable.
        """
        a = int(item)
        documents = [d for d in self.task.train.documents[a : a + self.chunk] for _ in range(self.samples)]
        style = self.chosen_style
        how = numbered(self.sampling(), self.samples) * (len(documents) // self.samples)
        made = self.replies(documents, style, how)
        rows = [
            Row(x.text, "", str(a + k // self.samples), x.finished, note=x.cause, asked=x.asked, tokens=x.tokens)
            for k, x in enumerate(made)
        ]
        if (
            a == 0
            and rows
            and all(
                self.judged(_reply(row), d, style)[0] not in _USABLE for row, d in zip(rows, documents, strict=True)
            )
        ):
            raise DataError(
                "teacher",
                f"not one of its first {len(rows)} replies can be used: {_examples(rows)}",
                expected=f"replies as style={style} asks for",
                remedy="method.tolerant=true cuts replies to their JSON; method.longest lets them be longer; or set "
                "method.style=vanilla",
            )
        return rows

    @property
    def chosen_style(self) -> str:
        """In which the teacher is asked."""
        return str(self.state["chosen"].get("style", self.asked_style))

    def judged(self, reply: Reply, document: Document, style: str) -> tuple[str, Any, str]:
        """What became of a reply, the answer, and what is learnt from it."""
        gold = self.task.gold_of(document) if self.gold else None
        if self.asks.name == "conversation" and reply.text:
            read = status_of(
                self.asks, "vanilla", replace(reply, text=reply.text.replace(_TURN, " ")), max_words=self.max_words
            )
            return read[0], read[1], reply.text if read[0] == "kept" else ""
        return status_of(
            self.asks, style, reply, self.keep, tolerant=self.tolerant, gold=gold, max_words=self.max_words
        )

    def record(self, row: Row) -> Document:
        """What the student learns of a kept row: its own prompt, the question, the target."""
        document = self.task.train.documents[int(row.group)]
        turns = (
            document.turns
            if self.student_prompt == "vanilla"
            else self.task.framed(document, self.chosen_style, self.shots())
        )
        if self.asks.name == "conversation":
            turns = replaced(turns, row.text.split(_TURN))
        else:
            last = max(i for i, (role, _) in enumerate(turns) if role == "assistant")
            turns = (*turns[:last], ("assistant", row.text))
        said = "\n".join(c for role, c in turns if role == "assistant")
        return Document(said, "\n".join(c for role, c in turns if role != "assistant"), tuple(turns))

    def keep_replies(self, r: int, rows: list[Row], ctx: Context) -> Kept:
        """Replies read one by one: what each cause takes out, what fits into the student's sequences, what differs.

        Raises:
            DataError: too few can be used.
        """
        documents, style = self.task.train.documents, self.chosen_style
        read = [self.judged(_reply(row), documents[int(row.group)], style) for row in rows]
        statuses = [status for status, _, _ in read]
        status = {id(row): s for row, s in zip(rows, statuses, strict=True)}
        ratio, fine = accepted(statuses, self.success, 0)
        if not fine:
            bad = [row for row, s in zip(rows, statuses, strict=True) if s not in _USABLE]
            raise DataError(
                "teacher",
                f"{100 * ratio:.0f} % of its {len(rows)} replies can be used: {_shares(statuses)}; {_examples(bad)}",
                expected=f"at least {100 * self.success:.0f} % (method.success)",
                remedy="method.tolerant=true cuts replies to their JSON; method.longest lets them be longer",
            )
        wanted = {id(row): text for row, (_, _, text) in zip(rows, read, strict=True)}
        causes = [c for c in _SAID if c in statuses or c in ("not_finished", "unparsable", "empty")]

        def lets_through(cause: str) -> Filter:
            return Filter(_SAID[cause], lambda some: [status[id(x)] != cause for x in some])

        filters = [lets_through(c) for c in causes]
        kept, told = sift(rows, filters)
        learn = [replace(row, text=wanted[id(row)], note=row.text) for row in kept]
        sizes = [len(s.ids) for s in spell(self.task, [self.record(row) for row in learn])]
        fits = {id(row): size <= self.task.length for row, size in zip(learn, sizes, strict=True)}
        learn, more = sift(
            learn, [Filter("fits", lambda some: [fits[id(x)] for x in some]), Filter("different", _different)]
        )
        right = [self.asks.grade(row.text if self.keep == "answer" else answered(row.text, self.keep) or "",
                                 self.task.gold_of(documents[int(row.group)]))["score"] for row in learn]  # fmt: skip
        measures = {
            "replies": float(len(rows)),
            "success": ratio,
            "kept": float(len(learn)),
            "label_score": sum(right) / max(1, len(right)),
            "asked_tokens": float(sum(row.asked for row in rows)),
            "written_tokens": float(sum(row.tokens for row in rows)),
            **{s: float(n) for s, n in Counter(statuses).items() if s != "kept"},
        }
        teacher: Any = self.roles["teacher"].module
        if hasattr(teacher, "price"):
            measures["cost"] = teacher._cost(measures["asked_tokens"], measures["written_tokens"])
        return Kept(learn, learn, [*told, *more], measures)

    def tell(self, r: int, ctx: Context) -> None:
        """The replies are read: counts, and the corpus."""
        kept = self.loop.kept(r, ctx)
        self.state["survivors"] = [
            {"round": r, "filter": s.filter, "given": s.given, "left": s.left} for s in kept.survivors
        ]
        self.state["measures"] = dict(kept.measures)
        self.state["shown"] = [[self.record(x).prompt[-80:], x.text[:160]] for x in kept.learn[:4]]
        rows = [
            {"text": x.text, "messages": [{"role": a, "content": b} for a, b in self.record(x).turns], "raw": x.note}
            for x in kept.release
        ]
        self.state["corpus"] = Corpus(rows).packed()

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The likelihood of what is answered, a mean over the response tokens of the batch."""
        return Terms(sft=self.task.supervised(ctx.signal("student", batch), batch))

    # ---------------------------------------------------------------------------------------------- what is delivered

    def answers(self, artifact: NetworkArtifact, split: str, documents: Sequence[Document]) -> Written:
        """Questions answered by a row's network in the row's style, greedily (an endpoint: as the data were made)."""
        who = getattr(artifact, "who", "student")
        style = getattr(artifact, "style", "vanilla" if self.student_prompt == "vanilla" else self.chosen_style)
        keep = getattr(
            artifact, "keep", "answer" if artifact.built.module is not self.roles["student"].module else self.keep
        )
        began = time.perf_counter()
        if who == "teacher":
            made = self.replies(documents, style, [self.sampling()] * len(documents))
            read: list[str | None] = []
            for reply in made:
                status, answer, _ = status_of(self.asks, style, reply, tolerant=self.tolerant)
                read.append(answer.text if status == "kept" else None)
        else:
            how = replace(self.sampling(), temperature=0.0, top_p=1.0)
            asked = [_last_question(self.task.framed(d, style, self.shots())) for d in documents]
            made = collected(LocalChat(self.task, artifact.built.module), asked, [how] * len(asked))
            read = []
            for reply in made:
                if style in ("cot", "cod"):
                    status, answer, _ = status_of(self.asks, style, reply, tolerant=self.tolerant)
                    read.append(answer.text if status == "kept" else None)
                else:
                    read.append(answered(reply.text, keep) if reply.finished else None)
        seconds = time.perf_counter() - began
        judged: list[float | None] = []
        if "judge" in self.roles:
            asked_ = ["\n".join(c for _, c in self.task.question_of(d)) for d in documents]
            judged = preferred(
                self.chats("judge"), asked_, [a or "" for a in read], [self.task.gold_of(d) for d in documents]
            )
        return Written(read, [x.asked for x in made], [x.tokens for x in made], seconds, judged)

    @property
    def notes(self) -> list[str]:
        """The price, what was left out and why, what was tried."""
        if not hasattr(self, "state"):
            return []
        found = []
        m: Mapping[str, float] = self.state.get("measures", {})
        if m:
            left = [f"{s['filter']} {s['left']}" for s in self.state["survivors"]]
            cost = f", which cost {m['cost']:.4g}" if m.get("cost") else ""
            found.append(f"{m['replies']:.0f} replies; left after {', '.join(left)}")
            found.append(
                f"the teacher read {m['asked_tokens']:,.0f} tokens and wrote {m['written_tokens']:,.0f}{cost}; against the "
                f"data's own answers the kept ones score {100 * m['label_score']:.1f} %"
            )
        if self.state.get("chosen"):
            c = self.state["chosen"]
            found.append(
                f"asked in the style {c['style']} at a temperature of {c['temperature']:g}, the best on validation"
            )
        return found

    def measures(self) -> dict[str, float]:
        """How many replies were left out, by cause; tokens; how right the kept answers are."""
        return {f"teacher/{n}": v for n, v in self.state["measures"].items()}

    def artifact(self) -> Artifact:
        """The set of answers, and the student that learnt them."""
        packed, survivors = self.state.get("corpus"), self.state["survivors"]
        corpus = Corpus(survivors=list(survivors)) if packed is None else Corpus.unpacked(packed, survivors)
        return CorpusArtifact(self.task, replace(self.setup.student, module=self.roles["student"].module), corpus)

    def rows(self) -> dict[str, Artifact]:
        """The teacher with its prompt and with the short one; the student before it learnt, likewise."""
        found: dict[str, Artifact] = {}
        elaborate = self.chosen_style
        if self.teacher_rows:
            built = replace(self.setup.built["teacher"], module=self.roles["teacher"].module)
            found["teacher"] = _Row(self.task, built, "teacher", elaborate)
            if elaborate != "vanilla":
                found["teacher, short prompt"] = _Row(self.task, built, "teacher", "vanilla")
        if self.zero_shot:
            built = replace(self.setup.student, module=self.roles["start"].module)
            found["before"] = _Row(self.task, built, "before", "vanilla")
            if elaborate != "vanilla":
                found["before, long prompt"] = _Row(self.task, built, "before", elaborate)
        return found

    def extras(self) -> dict[str, Any]:
        """Tables for the report."""
        survivors = [[s["filter"], s["given"], s["left"]] for s in self.state["survivors"]]
        tables = [
            {"title": "What was left of the teacher's replies", "head": ["filter", "given", "left"], "rows": survivors},
            {"title": "What the student learnt", "head": ["question", "answer"], "rows": self.state["shown"]},
        ]
        if self.state["tried"]:
            tables.append({"title": "Prompts on validation questions", "head": ["style", "temperature", "score"],
                           "rows": self.state["tried"]})  # fmt: skip
        return {"tables": tables}


class _Row(NetworkArtifact):
    """Somebody who answers in a style."""

    def __init__(self, task: Any, built: Any, who: str, style: str) -> None:
        super().__init__(task, built)
        self.who, self.style, self.keep = who, style, "answer"


_TURN = "\x1e"
"""Between the answers of one conversation, in a row's text."""

_USABLE = ("kept", "disagrees")


def _reply(row: Row) -> Reply:
    return Reply(row.text, row.note, row.asked, row.tokens)


def _different(rows: Sequence[Row]) -> list[bool]:
    """Of equal answers to a question the first."""
    seen: set[tuple[str, str]] = set()
    found = []
    for row in rows:
        found.append((row.group, row.same) not in seen)
        seen.add((row.group, row.same))
    return found


def _last_question(turns: Sequence[tuple[str, str]]) -> Messages:
    last = max(i for i, (role, _) in enumerate(turns) if role == "assistant")
    return turns[:last]


def _shares(statuses: Sequence[str]) -> str:
    return ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in Counter(statuses).most_common())


def _examples(rows: Sequence[Row]) -> str:
    return "; ".join(f"{' '.join(row.text.split())[:100]!r} ({row.note})" for row in rows[:3])


__all__ = ["FrontierSynthetic"]
