"""A teacher of texts behind an OpenAI-compatible endpoint that tells how likely words are: the k likeliest at every position.

A text goes to ``/completions`` as token ids, and nothing is written behind it: what is asked for are the log-probabilities of the
text itself. Servers know two ways: ``prompt_logprobs`` (vLLM), by token id, and ``echo`` with ``logprobs`` (OpenAI's older
form), by token id where the server can, by the words' spelling otherwise. A run may learn from it directly; ``limbeck cache``
asks once and keeps the answers.
"""

from __future__ import annotations

import json
import logging
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from limbeck.cache.exchange import Asker, Failed
from limbeck.cache.remote import _here, check_served_model
from limbeck.errors import ConfigError, shorten
from limbeck.functional.sparse import TopK
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.settings import NonNegative, Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.forms import meet
from limbeck.recipe.credentials import bare, credentials, part, token

NAMES = {"model": {"logprobs": "Logprobs"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

log = logging.getLogger("limbeck.logprobs")

_LONGEST = 256 << 20  # bytes of one answer
_NUMBERED = "token_id:"

Asked = Literal["auto", "prompt", "echo"]


@settings
class Logprobs(Model):
    """A language model behind an endpoint that answers with log-probabilities (vLLM and others).

    It is asked with token ids, so the text must be read by its own tokenizer: name it here, or as ``task.tokenizer``.

    Args:
        url: the address before ``/completions``, ``https://host/v1``. A name and password in it are sent, and written down
            nowhere.
        model: the name by which the endpoint knows the model.
        tokenizer_name: a Hub id or folder with its tokenizer; ``null`` where ``task.tokenizer`` or the student brings it.
        top: how many of the likeliest words it is asked for at every position (servers allow 5 to 20, or as they are started).
        ask: by ``prompt`` log-probabilities, by ``echo``, or whichever of the two it answers (``auto``).
        tail: what becomes of the mass of the other words: ``uniform_rest`` spreads it over them, ``renormalise`` gives it to
            those that are told.
        timeout: seconds until an answer must be there, all of it.
        retries: how often a question is asked again where the connection fails or the endpoint is busy.
        wait: seconds before the first of these, doubled every time.
        token_env: name of an environment variable that holds a key.
        token_file: a file that holds one.
        parallel: texts that are asked about side by side.
        check: try it on the text before anything is trained, and refuse it where it only guesses: ``on`` or ``off``.
    """

    address: ClassVar[str] = "url"
    secrets: ClassVar[tuple[str, ...]] = ("token_env", "token_file")
    paths: ClassVar[tuple[str, ...]] = (*Model.paths, "token_file", "tokenizer_name")
    forms = ("tokens",)

    url: str
    model: str
    tokenizer_name: str | None = None
    top: Annotated[int, Interval(ge=1, le=4096)] = 20
    ask: Asked = "auto"
    tail: Literal["uniform_rest", "renormalise"] = "uniform_rest"
    timeout: Positive = 120.0
    retries: Annotated[int, Interval(ge=0, le=100)] = 2
    wait: NonNegative = 1.0
    token_env: str | None = None
    token_file: str | None = None
    parallel: Annotated[int, Interval(ge=1, le=256)] = 4
    check: Check = "on"

    def validate(self) -> None:
        """An address, and one way to be let in."""
        check_served_model(self.url, self.model, self.token_env, self.token_file)
        self.url = part(self.url).rstrip("/")
        self.tokenizer: Any = None

    @property
    def trained(self) -> bool:
        """It is trained elsewhere."""
        return True

    @property
    def brings_tokenizer(self) -> bool:
        """Where one is named."""
        return self.tokenizer_name is not None

    def build(self, task: Task) -> Built:
        """The endpoint, asked about two texts.

        Raises:
            ConfigError: nobody has named its tokenizer; or it does not answer, or not with log-probabilities.
            TeacherMismatch: the task has another tokenizer already.
        """
        meet(self, task)
        task.load()
        text: Any = task.needs.tokens
        if self.tokenizer_name is not None:
            from limbeck.tasks.tokenizers import load_tokenizer

            self.tokenizer = load_tokenizer(self.tokenizer_name)
            text.adopt(self.tokenizer, self.tokenizer_name)
        elif text.tokenizer_name is None and not text.adopted:
            raise ConfigError(
                "teacher.tokenizer_name",
                "nothing says how the model behind the endpoint spells texts, and one trained here it does not know",
                given=None,
                expected="a Hub id, or a folder with its tokenizer",
            )
        endpoint = LogprobsEndpoint(self, text.tokenizer, text.vocabulary, token(self.token_env, self.token_file))
        endpoint.answer(task.example(2))  # said now, not at the first step
        return Built(endpoint, model=self)


class LogprobsEndpoint:
    """Answers batches of texts with the k likeliest words of every position; see `Logprobs`.

    Args:
        settings: where and how.
        tokenizer: with which texts are read.
        vocabulary: how many token ids there are.
        key: what lets us in.
    """

    def __init__(self, settings: Logprobs, tokenizer: Any, vocabulary: int, key: str | None = None) -> None:
        self.settings, self.tokenizer, self.vocabulary = settings, tokenizer, vocabulary
        basic = credentials(settings.url)
        self.asker = Asker(settings.timeout, settings.retries, key, basic, settings.wait, "application/json")
        self.ask: Asked = settings.ask
        self.top = min(settings.top, vocabulary)
        self.fingerprint = f"logprobs:{bare(settings.url)}:{settings.model}:{self.top}:{settings.tail}"
        self.device = torch.device("cpu")
        self._ids: dict[str, int] = {}
        if urllib.parse.urlsplit(settings.url).scheme == "http" and (key or basic) and not _here(settings.url):
            log.warning("%s is asked over http: whoever is on the way can read the key", settings.url)

    def __deepcopy__(self, memo: dict[int, Any]) -> LogprobsEndpoint:
        return self

    def to(self, device: torch.device) -> LogprobsEndpoint:
        """Answers go to this device."""
        self.device = torch.device(device)
        return self

    def answer(self, batch: Batch, taps: Sequence[str] = ()) -> Signal:
        """What is known of the next token at every position [N, T]; behind a text's last token but one nothing is: there all
        words are equally likely, and no loss looks.

        Raises:
            ConfigError: no answer, or none that can be read.
        """
        if taps:
            raise ConfigError("teacher", f"an endpoint shows no activations, and {taps[0]!r} is asked for")
        ids, sizes = batch["input_ids"].cpu(), batch["attention_mask"].sum(1).cpu()
        texts = [row[:n].tolist() for row, n in zip(ids, sizes.tolist(), strict=True)]
        if self.ask == "auto" and texts:
            self.ask = self._way(texts[0])
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            found = list(pool.map(self._one, texts))
        index = torch.arange(self.top).repeat(*ids.shape, 1)
        values = torch.full(index.shape, -math.log(self.vocabulary))
        for i, (own, likely) in enumerate(found):
            index[i, : len(own)], values[i, : len(own)] = own, likely
        known = TopK(index, values, self.vocabulary, self.settings.tail)
        return Signal(known.to(self.device), {}, {"source": self.settings.url})

    # ------------------------------------------------------------------------------------------------------------ asking
    def _way(self, ids: list[int]) -> Asked:
        """Which of the two ways it answers."""
        try:
            choice = self._choice(self._asked(ids, "prompt"))
            if isinstance(choice.get("prompt_logprobs"), list):
                return "prompt"
        except ConfigError as error:
            log.debug("no log-probabilities of prompts: %s", error)
        return "echo"

    def _asked(self, ids: list[int], way: Asked) -> bytes:
        body: dict[str, Any] = {"model": self.settings.model, "prompt": ids, "temperature": 0}
        if way == "prompt":
            body |= {"max_tokens": 1, "prompt_logprobs": self.top}
        else:
            body |= {"max_tokens": 0, "echo": True, "logprobs": self.top, "return_tokens_as_token_ids": True}
        try:
            return self.asker.ask(f"{bare(self.settings.url)}/completions", json.dumps(body).encode(), _LONGEST)
        except Failed as failure:
            raise self._failed(failure) from None

    def _choice(self, data: bytes) -> Mapping[str, Any]:
        try:
            choice = json.loads(data)["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise self._wrong(f"answered with no completion ({shorten(data[:80])})") from None
        if not isinstance(choice, Mapping):
            raise self._wrong("answered with no completion")
        return choice

    def _one(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Of one text of n tokens: ids and log-probabilities [n-1, k]."""
        if len(ids) < 2:
            return torch.zeros(0, self.top, dtype=torch.long), torch.zeros(0, self.top)
        choice = self._choice(self._asked(ids, self.ask))
        if self.ask == "prompt":
            rows = self._list(choice.get("prompt_logprobs"), "prompt_logprobs", ids, exact=True)
        else:
            told = choice.get("logprobs")
            told = told if isinstance(told, Mapping) else {}
            rows = self._list(told.get("top_logprobs"), "logprobs.top_logprobs", ids)
            tokens = self._list(told.get("tokens"), "logprobs.tokens", ids)
            for at, (said, sent) in enumerate(zip(tokens, ids, strict=False)):
                if (heard := self._id(said)) not in (None, sent):
                    raise self._wrong(f"reads token {at} of a text as {heard}, where {sent} was sent", _OTHER)
        told_rows = [self._row(row, at) for at, row in enumerate(rows[1 : len(ids)], 1)]
        index, values = zip(*told_rows, strict=True)
        return torch.tensor(index), torch.tensor(values)

    def _list(self, found: Any, name: str, ids: list[int], exact: bool = False) -> list[Any]:
        if not isinstance(found, list):
            raise self._wrong(f"answered without {name}", _UNABLE)
        if len(found) < len(ids) or (exact and len(found) > len(ids)):
            raise self._wrong(f"answered with {len(found)} {name} for a text of {len(ids)} tokens", _OTHER)
        return found

    def _row(self, row: Any, at: int) -> tuple[list[int], list[float]]:
        """The k likeliest words of one position, the likeliest first, and their log-probabilities."""
        if not isinstance(row, Mapping) or not row:
            raise self._wrong(f"says nothing of position {at} of a text", _UNABLE)
        known: dict[int, float] = {}
        for name, value in row.items():
            number = value.get("logprob") if isinstance(value, Mapping) else value
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not -math.inf <= number <= 1e-3:
                raise self._wrong(f"answered with {shorten(number)} as the log-probability of a word")
            word = int(name) if self.ask == "prompt" and str(name).isdecimal() else self._id(str(name))
            if word is None:
                continue  # a spelling that several tokens share, or none has: a part of the rest
            if not 0 <= word < self.vocabulary:
                raise self._wrong(f"names token {word}, and the tokenizer has {self.vocabulary}", _OTHER)
            if number > -1e4:
                known[word] = min(float(number), 0.0)
        best = sorted(known, key=lambda word: (-known[word], word))[: self.top]
        mass = math.fsum(math.exp(known[word]) for word in best)
        if mass > 1 + 1e-2:
            raise self._wrong(f"answered with probabilities that sum to {mass:.4g}")
        if len(best) < self.top:  # words of the rest, each with its part of that
            each = math.log(max(1 - mass, 1e-9) / max(1, self.vocabulary - len(best)))
            more = (word for word in range(self.vocabulary) if word not in known)
            for word in (next(more) for _ in range(self.top - len(best))):
                known[word] = each
                best.append(word)
        return best, [known[word] for word in best]

    def _id(self, said: Any) -> int | None:
        """The token that a spelling means; ``None`` where several have it, or none."""
        if isinstance(said, str) and said.startswith(_NUMBERED) and said[len(_NUMBERED) :].isdecimal():
            return int(said[len(_NUMBERED) :])
        if not self._ids:
            seen: dict[str, int] = {}
            for word in range(self.vocabulary):
                # as the tokenizer stores it, and as it reads
                for text in {self.tokenizer.convert_ids_to_tokens(word), self.tokenizer.decode([word])} - {None}:
                    seen[text] = word if text not in seen else -1
            self._ids = {text: word for text, word in seen.items() if word >= 0}
        return self._ids.get(said) if isinstance(said, str) else None

    # ------------------------------------------------------------------------------------------------------------ refusals
    def _wrong(self, problem: str, remedy: str = "") -> ConfigError:
        return ConfigError("teacher.url", f"{self.settings.url}/completions {problem}", remedy=remedy)

    def _failed(self, failure: Failed) -> ConfigError:
        remedy = "is the model being served there?"
        if failure.status in (401, 403):
            remedy = "name the variable that holds a key by teacher.token_env, or a file by teacher.token_file"
        elif failure.status == 404:
            remedy = f"is {self.settings.url} what stands before /completions, and {self.settings.model!r} known there?"
        elif failure.status == 400:
            remedy = f"{_UNABLE}; teacher.top may be more than it allows"
        elif failure.late:
            remedy = "raise teacher.timeout"
        return ConfigError("teacher.url", f"{self.settings.url}/completions {failure}", remedy=remedy)


_UNABLE = "the server must tell log-probabilities of a prompt: vLLM does, by prompt_logprobs"
_OTHER = "name the tokenizer of the model that is served: teacher.tokenizer_name"

__all__ = ["Logprobs", "LogprobsEndpoint"]
