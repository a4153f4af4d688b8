"""A teacher of texts behind any OpenAI-compatible endpoint: what it will cost is told first, what it costs is counted.

Questions are asked side by side, at most so many a minute, and again after failures that may pass. What comes back was made
elsewhere: cut, empty, refused and malformed replies are told apart from those that can be used.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval

from limbeck.cache.exchange import Asker, Failed
from limbeck.cache.remote import _here, check_served_model
from limbeck.data.chat import Messages, Reply, Sampling, as_mappings
from limbeck.errors import ConfigError, shorten
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.settings import Count, NonNegative, Positive, settings
from limbeck.grammar.task import Model, Task
from limbeck.models.forms import meet
from limbeck.recipe.credentials import bare, credentials, part, token

NAMES = {"model": {"chat": "Chat"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

log = logging.getLogger("limbeck.chat")

_LONGEST = 16 << 20  # bytes of one reply
_CHARACTERS = 3.0  # of a token, at least, where a question's tokens are guessed before it is asked


@dataclass(frozen=True)
class Price:
    """What questions will cost, before they are asked.

    Attributes:
        questions: how many.
        asked: tokens of the questions, guessed from their length (three characters a token, which is rather too many).
        tokens: tokens of the replies, at most.
        cost: at the stated prices, at most; 0 where none is stated.
    """

    questions: int
    asked: int
    tokens: int
    cost: float


@settings
class Chat(Model):
    """A teacher of texts behind an endpoint that speaks as OpenAI's chat completions do (vLLM, llama.cpp, Ollama, services).

    Args:
        url: the address before ``/chat/completions``, ``https://host/v1``. A name and password in it are sent, and written
            down nowhere.
        model: the name by which the endpoint knows the model.
        timeout: seconds until a reply must be there, all of it.
        retries: how often a question is asked again where the connection fails or the endpoint is busy.
        wait: seconds before the first of these, doubled every time.
        token_env: name of an environment variable that holds a key.
        token_file: a file that holds one.
        parallel: questions that are asked side by side.
        per_minute: questions a minute, at most; ``null`` for any number.
        price_in: what a million tokens of questions cost, in any currency.
        price_out: the same of replies.
        budget: what the run may cost; more is refused before anything is asked, and nothing is asked beyond it.
    """

    address: ClassVar[str] = "url"
    secrets: ClassVar[tuple[str, ...]] = ("token_env", "token_file")
    paths: ClassVar[tuple[str, ...]] = (*Model.paths, "token_file")
    forms = ("tokens",)

    url: str
    model: str
    timeout: Positive = 120.0
    retries: Annotated[int, Interval(ge=0, le=100)] = 2
    wait: NonNegative = 10.0
    token_env: str | None = None
    token_file: str | None = None
    parallel: Annotated[int, Interval(ge=1, le=256)] = 4
    per_minute: Count | None = None
    price_in: NonNegative = 0.0
    price_out: NonNegative = 0.0
    budget: NonNegative | None = None

    def validate(self) -> None:
        """An address, one way to be let in, and a price where there is a budget."""
        check_served_model(self.url, self.model, self.token_env, self.token_file)
        if self.budget is not None and not (self.price_in or self.price_out):
            raise ValueError("budget needs prices: set price_in and price_out, for a million tokens each")
        self.url = part(self.url).rstrip("/")

    @property
    def trained(self) -> bool:
        """It is trained elsewhere."""
        return True

    def build(self, task: Task) -> Built:
        """The endpoint. Nothing is asked yet: a question may cost money."""
        meet(self, task)
        task.load()
        return Built(ChatEndpoint(self, token(self.token_env, self.token_file)), model=self)


class _Pace:
    """Lets so many through a minute, evenly."""

    def __init__(self, per_minute: int | None) -> None:
        self.each = 60.0 / per_minute if per_minute else 0.0
        self.next, self.lock = 0.0, threading.Lock()

    def __call__(self, over: threading.Event) -> None:
        if not self.each:
            return
        with self.lock:
            now = time.monotonic()
            at = max(now, self.next)
            self.next = at + self.each
        over.wait(max(0.0, at - time.monotonic()))


class ChatEndpoint:
    """Asks an endpoint; see `Chat`.

    Args:
        settings: where and how.
        key: what lets us in.

    Attributes:
        calls: questions that were answered.
        asked, tokens: tokens of questions and replies, as the endpoint counts them.
        spent: what they cost.
    """

    def __init__(self, settings: Chat, key: str | None = None) -> None:
        self.settings = settings
        basic = credentials(settings.url)
        self.asker = Asker(settings.timeout, settings.retries, key, basic, settings.wait, "application/json")
        self.identity = f"chat:{bare(settings.url)}:{settings.model}"
        self.fingerprint = self.identity
        self.pace = _Pace(settings.per_minute)
        self.calls = self.asked = self.tokens = 0
        if urllib.parse.urlsplit(settings.url).scheme == "http" and (key or basic) and not _here(settings.url):
            log.warning("%s is asked over http: whoever is on the way can read the key", settings.url)

    def __deepcopy__(self, memo: dict[int, Any]) -> ChatEndpoint:
        return self  # what was spent is counted once

    def to(self, device: torch.device) -> ChatEndpoint:
        """It is elsewhere."""
        return self

    def answer(self, batch: Batch, taps: Sequence[str] = ()) -> Any:
        """It has no logits.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "teacher",
            "an endpoint that chats answers in text alone, and this method reads logits",
            given=self.settings.url,
            remedy="use a method that learns from text (frontier-synthetic), or a model that is loaded here (hf:NAME)",
        )

    # ------------------------------------------------------------------------------------------------------------ prices

    @property
    def spent(self) -> float:
        """What was spent, at the stated prices."""
        return self._cost(self.asked, self.tokens)

    def _cost(self, asked: float, tokens: float) -> float:
        return (asked * self.settings.price_in + tokens * self.settings.price_out) / 1e6

    def price(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> Price:
        """What questions would cost, at most."""
        size = sum(int(sum(len(c) for _, c in m) / _CHARACTERS) + 8 * len(m) for m in asked)
        tokens = sum(s.longest for s in sampling)
        return Price(len(asked), size, tokens, self._cost(size, tokens))

    def afford(self, price: Price) -> None:
        """Refuse what may cost more than the budget leaves.

        Raises:
            ConfigError: it may.
        """
        budget = self.settings.budget
        if budget is not None and self.spent + price.cost > budget:
            raise ConfigError(
                "teacher.budget",
                f"{price.questions:,} questions may cost up to {price.cost:.4g} ({price.asked:,} tokens asked, at most "
                f"{price.tokens:,} answered)" + (f" after {self.spent:.4g} that are spent" if self.calls else ""),
                given=budget,
                remedy="raise teacher.budget, or lower task.student_documents, method.longest or method.samples",
            )

    # ------------------------------------------------------------------------------------------------------------ asking

    def chat(self, asked: Sequence[Messages], sampling: Sequence[Sampling]) -> Iterator[tuple[int, Reply]]:
        """Replies as they come. A failure that does not pass ends it, after what had come by then.

        Raises:
            ConfigError: the endpoint does not answer, wants another key or knows no such model; or the budget is spent.
        """
        if not asked:
            return
        self.afford(self.price(asked, sampling))
        over, failure = threading.Event(), None
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            waiting: dict[Future[Reply], int] = {}
            left = iter(range(len(asked)))
            try:
                while failure is None or waiting:
                    while (
                        failure is None
                        and len(waiting) < self.settings.parallel
                        and (i := next(left, None)) is not None
                    ):
                        waiting[pool.submit(self._one, asked[i], sampling[i], over)] = i
                    if not waiting:
                        break
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in sorted(done, key=waiting.__getitem__):
                        i = waiting.pop(future)
                        error = future.exception()
                        if isinstance(error, Failed):
                            failure = failure or error
                            over.set()
                        elif error is not None:
                            raise error
                        else:
                            reply = future.result()
                            self.calls += 1
                            self.asked += reply.asked
                            self.tokens += reply.tokens
                            yield i, reply
            finally:
                over.set()
        if failure is not None:
            raise self._failed(failure)

    def _one(self, messages: Messages, how: Sampling, over: threading.Event) -> Reply:
        self.pace(over)
        if over.is_set():
            raise Failed("was not asked any more")
        body = {
            "model": self.settings.model,
            "messages": as_mappings(messages),
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_tokens": how.longest,
            "seed": how.seed + how.number,
        }
        try:
            found = self.asker.ask(f"{bare(self.settings.url)}/chat/completions", json.dumps(body).encode(), _LONGEST)
        except Failed as failure:
            if (
                failure.status == 400
                and "content" in str(failure)
                and ("filter" in str(failure) or "policy" in str(failure))
            ):
                return Reply("", "refused")
            raise
        return read_reply(found)

    def _failed(self, failure: Failed) -> ConfigError:
        remedy = "what was answered is kept: run the same again to go on"
        if failure.status in (401, 403):
            remedy = "name the variable that holds a key by teacher.token_env, or a file by teacher.token_file"
        elif failure.status == 404:
            remedy = (
                f"is {self.settings.url} what stands before /chat/completions, and {self.settings.model!r} known there?"
            )
        elif failure.status == 429:
            remedy = f"set teacher.per_minute; {remedy}"
        elif failure.late:
            remedy = f"raise teacher.timeout; {remedy}"
        said = f"after {self.calls:,} replies: " if self.calls else ""
        return ConfigError("teacher.url", f"{said}{self.settings.url} {failure}", remedy=remedy)


def read_reply(data: bytes) -> Reply:
    """A reply as a chat completion holds it; ``malformed`` where it holds none that can be read.

    Example:
        >>> read_reply(b'{"choices": [{"message": {"content": "6"}, "finish_reason": "stop"}]}')
        Reply(text='6', cause='stop', asked=0, tokens=0)
        >>> read_reply(b"<html>").cause
        'malformed'
    """
    try:
        found = json.loads(data)
        choice = found["choices"][0]
        message = choice["message"]
        text, why = message.get("content"), choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        log.debug("a reply that cannot be read: %s", shorten(data[:200]))
        return Reply("", "malformed")
    usage = found.get("usage")
    counts = [_whole(usage.get(n)) if isinstance(usage, dict) else 0 for n in ("prompt_tokens", "completion_tokens")]
    if message.get("refusal") or why == "content_filter":
        return Reply(text if isinstance(text, str) else "", "refused", *counts)
    if text is None:
        text = ""
    if not isinstance(text, str):
        return Reply("", "malformed", *counts)
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate in JSON is no text
    return Reply(text, "stop" if why == "stop" else "length", *counts)  # without a reason nobody knows


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else 0


__all__ = ["Chat", "ChatEndpoint", "Price", "read_reply"]
