"""A teacher behind an address: batches go out as safetensors, signals come back as safetensors. No pickle either way."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.grammar.method import Batch, Built
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import Check, Model, Task
from limbeck.tasks.classification import match_classes

LARGEST = 1 << 30  # bytes of one request or answer


class Remote(Model):
    """A teacher that answers over HTTP (``limbeck.cache.remote.serve``, or anything that speaks the same way).

    Args:
        url: its address, ``http://host:port``.
        timeout: seconds until an answer is given up.
        check: try it on labelled items before anything is trained, and refuse it where it only guesses: ``on`` or ``off``.
    """

    address: ClassVar[str] = "url"

    def __init__(self, url: str, timeout: float = 60.0, check: Check = "on") -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError("url must begin with http:// or https://")
        if not timeout > 0:
            raise ValueError("timeout must be above 0")
        self.url, self.timeout = url.rstrip("/"), timeout
        self.check: Check = check

    @property
    def trained(self) -> bool:
        """It is trained elsewhere."""
        return True

    def build(self, task: Task) -> Built:
        """The endpoint, its classes matched by name.

        Raises:
            ConfigError: it does not answer.
            TeacherMismatch: its classes are others.
        """
        endpoint = Endpoint(self.url, self.timeout)
        about = endpoint.about()
        labels = about.get("labels")
        if labels is not None and task.labels is not None:
            endpoint.classes = match_classes(labels, task.labels)
        return Built(endpoint, labels=task.labels, model=self)


class Endpoint:
    """Answers batches by asking an address.

    Args:
        url: the address.
        timeout: seconds.
    """

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        self.url, self.timeout = url, timeout
        self.classes: tuple[int, ...] | None = None
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> Endpoint:
        """Answers go to this device."""
        self.device = torch.device(device)
        return self

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(
            f"{self.url}{path}", data=body, headers={"Content-Type": "application/octet-stream"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.read(LARGEST)
        except urllib.error.HTTPError as error:
            raise ConfigError(
                "teacher.url", f"{self.url} answered {error.code}: {error.read(300).decode(errors='replace')}"
            ) from None
        except OSError as error:
            raise ConfigError(
                "teacher.url", f"{self.url} does not answer ({error})", remedy="is the teacher being served there?"
            ) from None

    def about(self) -> dict[str, Any]:
        """What the endpoint says of itself: ``labels``."""
        try:
            found = json.loads(self._ask("/about"))
        except ValueError:
            raise ConfigError("teacher.url", f"{self.url}/about answered something that is no JSON") from None
        return found if isinstance(found, dict) else {}

    def answer(self, batch: Batch, taps: Sequence[str] = ()) -> Signal:
        """The endpoint's signal for a batch."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in batch.items() if isinstance(v, Tensor)}
        found = load(self._ask("/answer" + (f"?taps={','.join(taps)}" if taps else ""), save(tensors)))
        logits = found.pop("logits").to(self.device)
        if self.classes is not None:
            logits = logits[..., list(self.classes)]
        return Signal(logits, {k: v.to(self.device) for k, v in found.items()}, {"source": self.url})


def serve(
    answer: Callable[[Batch, tuple[str, ...]], Signal],
    labels: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> ThreadingHTTPServer:
    """Serve a teacher from a background thread; ``server.server_address`` is where, ``server.shutdown()`` ends it.

    Args:
        answer: (batch, taps) -> signal, as a role's ``answer``.
        labels: its class names.
        host, port: where; port 0 takes a free one.
    """
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(json.dumps({"labels": labels}).encode()) if self.path == "/about" else self.send_error(404)

        def do_POST(self) -> None:
            path, _, query = self.path.partition("?")
            size = int(self.headers.get("Content-Length", "0"))
            if path != "/answer" or not 0 < size <= LARGEST:
                self.send_error(400)
                return
            taps = tuple(t for t in query.removeprefix("taps=").split(",") if t)
            try:
                batch: Batch = dict(load(self.rfile.read(size)))
                with turn, torch.no_grad():
                    signal = answer(batch, taps)
                self._send(
                    save(
                        {
                            "logits": signal.logits.cpu().contiguous(),
                            **{k: v.cpu().contiguous() for k, v in signal.acts.items()},
                        }
                    )
                )
            except Exception as error:
                self.send_error(500, explain=f"{type(error).__name__}: {error}"[:200])

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
