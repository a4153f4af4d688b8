"""A teacher behind an address: batches go out as safetensors, signals come back as safetensors. No pickle either way.

What comes back was made elsewhere and is checked like a file from elsewhere: in full within a time, not larger than it can
be, tensors of the right shape, finite.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from safetensors.torch import load, save
from torch import Tensor

from limbeck.cache.exchange import LARGEST, Asker, Failed
from limbeck.data.classes import match_classes
from limbeck.data.names import some
from limbeck.errors import ConfigError, ShapeError, first_line, shorten
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.settings import Positive, settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Check, Model, Task
from limbeck.recipe.credentials import bare, credentials, part, token
from limbeck.tasks.items import OutputTask
from limbeck.tasks.language import Language

NAMES = {"model": {"remote": "Remote"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

log = logging.getLogger("limbeck.remote")

_ABOUT = 16 << 20  # bytes of what an endpoint says of itself


@settings
class Remote(Model):
    """A teacher that answers over HTTP (``limbeck.cache.remote.serve``, or anything that speaks the same way).

    Args:
        url: its address, ``http://host:port``. A name and password in it (``https://NAME:PASSWORD@host``) are sent, and
            written down nowhere.
        timeout: seconds until an answer must be there, all of it.
        retries: how often a question is asked again where the connection fails or the endpoint is busy.
        token_env: name of an environment variable that holds a bearer token.
        token_file: a file that holds one.
        check: try it on labelled items before anything is trained, and refuse it where it only guesses: ``on`` or ``off``.
    """

    address: ClassVar[str] = "url"
    secrets: ClassVar[tuple[str, ...]] = ("token_env", "token_file")
    paths: ClassVar[tuple[str, ...]] = (*Model.paths, "token_file")

    url: str
    timeout: Positive = 60.0
    retries: Annotated[int, Interval(ge=0, le=100)] = 2
    token_env: str | None = None
    token_file: str | None = None
    check: Check = "on"

    def validate(self) -> None:
        """An address, and one way to be let in."""
        check_address(self.url)
        if self.token_env is not None and self.token_file is not None:
            raise ValueError("token_env and token_file say where the token is: name one of them")
        self.url = part(self.url).rstrip("/")
        if self.url != bare(self.url) and (self.token_env or self.token_file):
            raise ValueError("url holds a name and password, and a token is named too: give one of them")

    @property
    def trained(self) -> bool:
        """It is trained elsewhere."""
        return True

    def build(self, task: Task) -> Built:
        """The endpoint, its classes matched by name, asked for an answer to two items.

        Raises:
            ConfigError: it does not answer, or not in the way that is agreed on.
            TeacherMismatch: its classes are others.
        """
        endpoint = Endpoint(self.url, self.timeout, self.retries, token(self.token_env, self.token_file))
        labels = endpoint.about()["labels"]
        if labels is not None and task.labels is not None:
            endpoint.classes = match_classes(labels, task.labels)
        if isinstance(task, OutputTask):
            endpoint.width = len(labels) if labels is not None else task.outputs
            endpoint.rules_out = task.kind_of_target == "label"
            endpoint.maps = task.needs.form == "map"
        if isinstance(task, (OutputTask, Language)):
            endpoint.answer(task.example(2))  # said now, not at the first step
        return Built(endpoint, labels=task.labels, model=self)


def check_address(url: str) -> None:
    """Refuse what cannot be the address of an endpoint.

    Raises:
        ValueError: and why; credentials are not repeated.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("url must begin with http:// or https://")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        # what is no number behind a colon may be a password
        said = "" if "@" in url else f": {error}"
        raise ValueError(f"url is no address{said}; in a name or password write / ? # @ as %2F %3F %23 %40") from None
    if not host or any(ord(c) < 33 or ord(c) > 126 for c in url):
        raise ValueError("url must be an address of printable ASCII characters, http://host:port")
    if parts.query or parts.fragment or "@" in parts.path:
        raise ValueError("url must be an address alone, http://host:port/path, with nothing behind ? or #")


def check_served_model(url: str, model: str, token_env: str | None, token_file: str | None) -> None:
    """Refuse what cannot name a model behind an address, or names its key twice.

    Raises:
        ValueError: and why.
    """
    check_address(url)
    if not model.strip():
        raise ValueError("model must be the name by which the endpoint knows it")
    if token_env is not None and token_file is not None:
        raise ValueError("token_env and token_file say where the key is: name one of them")


class Endpoint:
    """Answers batches by asking an address.

    Args:
        url: the address.
        timeout: seconds until an answer must be there, all of it.
        retries: how often a question is asked again after a failure that may pass.
        token: a bearer token that is sent along.

    Attributes:
        width: how many values an item is answered with, where that is known.
        classes: which of them are the task's classes, in its order; ``None`` takes all.
        rules_out: whether a logit may be minus infinity: a class that is ruled out.
        maps: whether an item is answered with a map [h, w, C] of them.
    """

    def __init__(self, url: str, timeout: float = 60.0, retries: int = 2, token: str | None = None) -> None:
        self.url = part(url).rstrip("/")
        basic = credentials(self.url)
        self.asker = Asker(timeout, retries, token, basic)
        self.width: int | None = None
        self.classes: tuple[int, ...] | None = None
        self.rules_out, self.maps = True, False
        self.device = torch.device("cpu")
        if urllib.parse.urlsplit(self.url).scheme == "http" and (token or basic) and not _here(self.url):
            log.warning("%s is asked over http: whoever is on the way can read the credentials", self.url)

    def to(self, device: torch.device) -> Endpoint:
        """Answers go to this device."""
        self.device = torch.device(device)
        return self

    def _ask(self, path: str, body: bytes | None, limit: int) -> bytes:
        if body is not None and len(body) > LARGEST:
            raise ConfigError("teacher.url", f"a batch of {len(body):,} bytes is too large to send", remedy=_SMALLER)
        try:
            return self.asker.ask(f"{bare(self.url)}{path}", body, limit)
        except Failed as failure:
            remedy = "is the teacher being served there?"
            if failure.status in (401, 403):
                remedy = "name the variable that holds a token by teacher.token_env, or a file by teacher.token_file"
            elif failure.late:
                remedy = f"raise teacher.timeout, or {_SMALLER}"
            elif failure.status is not None:
                remedy = "see what the endpoint's own log says"
            raise ConfigError("teacher.url", f"{self.url} {failure}", remedy=remedy) from None

    def _wrong(self, path: str, problem: str, expected: str = "") -> ConfigError:
        return ConfigError("teacher.url", f"{self.url}{path} {problem}", expected=expected)

    def about(self) -> dict[str, Any]:
        """What the endpoint says of itself: ``labels``, the class names it answers with, ``None`` where it names none.

        Raises:
            ConfigError: it does not answer, or with something else than a mapping with a list of names that differ.
        """
        path = "/about"
        data = self._ask(path, None, _ABOUT)
        try:
            about = json.loads(data)
        except (ValueError, RecursionError):
            raise self._wrong(path, "answered with something that is no JSON", _MAPPING) from None
        if not isinstance(about, dict):
            raise self._wrong(path, f"answered with {_kind(about)}", _MAPPING)
        labels = about.get("labels")
        if labels is None:
            return {**about, "labels": None}
        if not isinstance(labels, list) or not labels:
            raise self._wrong(path, f"has {_kind(labels)} as labels", "a list of class names, or null")
        odd = [name for name in labels if not isinstance(name, str) or not name]
        if odd:
            raise self._wrong(path, f"has a label that is {_kind(odd[0])} ({shorten(odd[0])})", "names that are text")
        twice = next((name for name, count in Counter(labels).items() if count > 1), None)
        if twice is not None:
            raise self._wrong(path, f"names the class {shorten(twice)} twice", "class names that differ")
        return about

    def answer(self, batch: Batch, taps: Sequence[str] = ()) -> Signal:
        """The endpoint's signal for a batch.

        Raises:
            ConfigError: no answer, or one that is no safetensors file, lacks what was asked for, or is not finite.
            ShapeError: an answer of another shape than the batch's items have.
        """
        tensors = {k: v.detach().cpu().contiguous() for k, v in batch.items() if isinstance(v, Tensor)}
        path = "/answer"
        asked = path + (f"?taps={','.join(urllib.parse.quote(t, safe='') for t in taps)}" if taps else "")
        lead = _lead(tensors)
        limit = LARGEST
        if self.width is not None and not taps:
            limit = min(LARGEST, 8 * math.prod(lead) * self.width + (1 << 20))
        data = self._ask(asked, save(tensors), limit)
        try:
            found = load(data)
        except Exception as error:  # the library raises whatever the bytes make it raise
            raise self._wrong(
                path, f"answered with {len(data):,} bytes that are no safetensors file ({first_line(error)})"
            ) from None
        for name in ("logits", *taps):
            if name not in found:
                had = ", ".join(sorted(found)[:8]) or "nothing"
                raise self._wrong(path, f"answered without {shorten(name)}; it holds {had}")
        logits = self._logits(found["logits"], lead, batch)
        acts = {name: self._act(name, found[name], lead[0]) for name in taps}
        if self.classes is not None:
            logits = logits[..., list(self.classes)]
        return Signal(logits, acts, {"source": self.url})

    def _logits(self, z: Tensor, lead: tuple[int, ...], batch: Batch) -> Tensor:
        z = self._floating("logits", z)
        wanted = (*lead, self.width) if self.width is not None else (*lead, "...")
        exact = (self.width is not None and not self.maps) or len(lead) > 1
        fits = tuple(z.shape[: len(lead)]) == lead and (z.ndim == len(lead) + 1 if exact else z.ndim > len(lead))
        if not fits or z.shape[-1] == 0 or (self.width is not None and z.shape[-1] != self.width):
            raise ShapeError(
                "teacher.url",
                f"{self.url}/answer answered with logits of shape {list(z.shape)}",
                expected=f"[{', '.join(map(str, wanted))}], the values of every item of the batch",
            )
        if self.width is None and len(lead) > 1:
            self.width = z.shape[-1]  # a vocabulary: every later answer has as many
        bad = ~torch.isfinite(z)
        if self.rules_out and bad.any():
            bad = torch.isnan(z) | (z == torch.inf) | (z == -torch.inf).all(-1, keepdim=True)
        self._finite("logits", bad, batch)
        return z.to(self.device)

    def _act(self, name: str, z: Tensor, n: int) -> Tensor:
        z = self._floating(name, z)
        if z.ndim == 0 or z.shape[0] != n:
            raise ShapeError(
                "teacher.url",
                f"{self.url}/answer answered with {shorten(name)} of shape {list(z.shape)}",
                expected=f"[{n}, ...], one activation an item of the batch",
            )
        self._finite(name, ~torch.isfinite(z), {})
        return z.to(self.device)

    def _floating(self, name: str, z: Tensor) -> Tensor:
        if not z.is_floating_point():
            kind = str(z.dtype).removeprefix("torch.")
            raise self._wrong("/answer", f"answered with {shorten(name)} of type {kind}", "floating-point numbers")
        return z if z.dtype in (torch.float32, torch.float16, torch.bfloat16) else z.float()

    def _finite(self, name: str, bad: Tensor, batch: Batch) -> None:
        rows = bad[..., None].flatten(1).any(1).nonzero()[:, 0]
        if not len(rows):
            return
        ids = batch.get("item")
        which = f": items {some(list(map(str, (ids.cpu()[rows] if ids is not None else rows).tolist())))}"
        raise self._wrong(
            "/answer", f"answered with {shorten(name)} that are not finite for {len(rows)} of {len(bad)} items{which}"
        )


_SMALLER = "lower train.batch_size, or record the teacher once where it is: limbeck cache"
_MAPPING = 'a mapping such as {"labels": [...]}'


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, (list, dict)) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'mapping'}"
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), type(value).__name__)


def _lead(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """The axes that an answer shares with the batch: items, and positions of a text."""
    if "input_ids" in tensors:
        return tuple(tensors["input_ids"].shape)
    return (next((len(v) for k, v in tensors.items() if v.ndim), 0),)


def _here(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urllib.parse.urlsplit(bare(url)).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def serve(
    answer: Callable[[Batch, tuple[str, ...]], Signal],
    labels: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
) -> ThreadingHTTPServer:
    """Serve a teacher from a background thread; ``server.server_address`` is where, ``server.shutdown()`` ends it.

    Args:
        answer: (batch, taps) -> signal, as a role's ``answer``.
        labels: its class names.
        host, port: where; port 0 takes a free one.
        token: answer only those who send this bearer token.
    """
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 60.0  # seconds that a read of a question may take

        def do_GET(self) -> None:
            if self._known():
                self._send(json.dumps({"labels": labels}).encode()) if self.path == "/about" else self.send_error(404)

        def do_POST(self) -> None:
            path, _, query = self.path.partition("?")
            length = self.headers.get("Content-Length", "")
            size = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0
            if not self._known():
                return
            if path != "/answer" or not 0 < size <= LARGEST:
                self.send_error(400)
                return
            taps = tuple(urllib.parse.unquote(t) for t in query.removeprefix("taps=").split(",") if t)
            try:
                batch: Batch = dict(load(self.rfile.read(size)))
                with turn, torch.no_grad():
                    signal = answer(batch, taps)
                status, tensors = 200, {"logits": signal.logits, **signal.acts}
                body = save({k: v.cpu().contiguous() for k, v in tensors.items()})
            except Exception as error:
                status, body = 500, " ".join(f"{type(error).__name__}: {error}".split())[:200].encode()
            self._send(body, status)

        def _known(self) -> bool:
            given = self.headers.get("Authorization", "")
            if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return True
            self.send_error(401)
            return False

        def _send(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
