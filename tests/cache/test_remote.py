"""Teachers over HTTP: what they answer is checked like a file from elsewhere, and what is secret stays so."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from limbeck import cli
from limbeck.cache.exchange import Asker, Failed
from limbeck.cache.remote import Endpoint, Remote, serve
from limbeck.errors import ConfigError, LimbeckError, ShapeError, TeacherMismatch, masked, shorten
from limbeck.grammar.method import Batch
from limbeck.grammar.signal import Signal
from limbeck.recipe.credentials import part, token
from limbeck.recipe.recipe import check, load_tree

LABELS = [str(i) for i in range(10)]
BATCH = {"x": torch.zeros(4, 1, 8, 8), "y": torch.zeros(4, dtype=torch.int64), "item": torch.tensor([5, 6, 7, 8])}
GOOD = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))


@contextmanager
def serving(handle: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """A server that answers as ``handle`` does; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            handle(self, b"")

        def do_POST(self) -> None:
            handle(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: Any) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": len(body), **headers}.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def answered(body: bytes, url_only: bool = False, **settings: Any) -> Signal:
    with serving(lambda handler, _: send(handler, body)) as url:
        endpoint = Endpoint(url, timeout=5.0, retries=0)
        for name, value in settings.items():
            setattr(endpoint, name, value)
        return endpoint.answer(BATCH)


def with_values(*values: tuple[int, int, float]) -> bytes:
    z = GOOD.clone()
    for i, j, value in values:
        z[i, j] = value
    return save({"logits": z})


# ---------------------------------------------------------------------------------------------------- what is answered
WRONG: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "0 bytes that are no safetensors file"),
    "text": (b"hello", "5 bytes that are no safetensors file"),
    "a page": (b"<html>" * 100, "no safetensors file"),
    "a pickle": (b"\x80\x04cos\nsystem\n", "no safetensors file"),
    "a header without an end": ((1 << 40).to_bytes(8, "little") + b"{", "no safetensors file"),
    "a header that lies": (
        (lambda h: len(h).to_bytes(8, "little") + h)(
            b'{"logits":{"dtype":"F32","shape":[4,10],"data_offsets":[0,160]}}'
        ),
        "no safetensors file",
    ),
    "no tensors": (save({}), "without 'logits'; it holds nothing"),
    "other tensors": (save({"x": GOOD}), "without 'logits'; it holds x"),
    "whole numbers": (save({"logits": GOOD.long()}), "of type int64, expected floating-point numbers"),
    "truth values": (save({"logits": GOOD > 0}), "of type bool"),
    "NaN": (with_values((1, 2, torch.nan)), "not finite for 1 of 4 items: items 6"),
    "infinity": (with_values((0, 0, torch.inf), (3, 9, torch.inf)), "not finite for 2 of 4 items: items 5, 8"),
    "every class ruled out": (with_values(*((2, j, -torch.inf) for j in range(10))), "for 1 of 4 items: items 7"),
}
SHAPES: dict[str, torch.Tensor] = {
    "too few items": GOOD[:3],
    "too many items": GOOD.repeat(2, 1),
    "one item": GOOD[0],
    "a number": torch.zeros(()),
    "other classes": GOOD[:, :9],
    "no classes": GOOD[:, :0],
    "an axis more": GOOD[:, :, None],
    "transposed": GOOD.T,
}


@pytest.mark.parametrize(("body", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_answers_are_named(body: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        answered(body, width=10)
    assert said in str(caught.value) and "http://127.0.0.1" in str(caught.value)


@pytest.mark.parametrize("logits", SHAPES.values(), ids=SHAPES.keys())
def test_wrong_shapes_are_named(logits: torch.Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        answered(save({"logits": logits.contiguous()}), width=10)
    assert str(list(logits.shape)) in str(caught.value) and "[4, 10]" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_right_answers_are_taken(dtype: torch.dtype) -> None:
    got = answered(save({"logits": GOOD.to(dtype), "unasked": GOOD.clone()}), width=10)
    assert got.logits.dtype == torch.float32 and torch.equal(got.logits, GOOD.to(dtype).float())
    assert got.acts == {}


def test_a_class_may_be_ruled_out() -> None:
    got = answered(with_values((0, 3, -torch.inf)), width=10)
    assert got.logits[0, 3] == -torch.inf
    with pytest.raises(ConfigError, match="not finite"):
        answered(with_values((0, 3, -torch.inf)), width=10, rules_out=False)  # numbers are not


def test_classes_are_put_in_the_tasks_order() -> None:
    got = answered(save({"logits": GOOD}), width=10, classes=[2, 0])
    assert torch.equal(got.logits, GOOD[:, [2, 0]])


def test_texts_have_an_answer_at_every_position() -> None:
    ids = torch.zeros(2, 6, dtype=torch.int64)
    sizes = iter([11, 11, 12])
    with serving(lambda handler, _: send(handler, save({"logits": torch.zeros(2, 6, next(sizes))}))) as url:
        endpoint = Endpoint(url, retries=0)
        assert endpoint.answer({"input_ids": ids}).logits.shape == (2, 6, 11)
        endpoint.answer({"input_ids": ids})
        with pytest.raises(ShapeError, match=r"\[2, 6, 12\].*\[2, 6, 11\]"):
            endpoint.answer({"input_ids": ids})
    with (
        pytest.raises(ShapeError, match=r"\[4, 10\]"),
        serving(lambda handler, _: send(handler, save({"logits": GOOD}))) as url,
    ):
        Endpoint(url, retries=0).answer({"input_ids": ids})


TAPS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "missing": ({}, "without 'a/b'; it holds logits"),
    "of too few items": ({"a/b": torch.zeros(3, 2)}, "of shape [3, 2], expected [4, ...]"),
    "not finite": ({"a/b": torch.full((4, 2), torch.nan)}, "not finite for 4 of 4 items"),
    "whole numbers": ({"a/b": torch.zeros(4, 2, dtype=torch.int32)}, "of type int32"),
}


@pytest.mark.parametrize(("acts", "said"), TAPS.values(), ids=TAPS.keys())
def test_wrong_activations_are_named(acts: dict[str, torch.Tensor], said: str) -> None:
    with (
        serving(lambda handler, _: send(handler, save({"logits": GOOD, **acts}))) as url,
        pytest.raises(LimbeckError) as caught,
    ):
        Endpoint(url, retries=0).answer(BATCH, ["a/b"])
    assert said in str(caught.value)


ABOUT: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"hello", "is no JSON"),
    "no text": (b"\xff\xfe\x00", "is no JSON"),
    "too deep": (b"[" * 100_000, "is no JSON"),
    "a list": (b'["a"]', "answered with a list"),
    "a number": (b"5", "answered with a number"),
    "null": (b"null", "answered with nothing"),
    "labels are a number": (b'{"labels": 5}', "has a number as labels"),
    "labels are a text": (b'{"labels": "cat"}', "has a text as labels"),
    "labels are a mapping": (b'{"labels": {"0": "cat"}}', "has a mapping as labels"),
    "no labels": (b'{"labels": []}', "has an empty list as labels"),
    "labels are numbers": (b'{"labels": [1, 2]}', "a label that is a number (1)"),
    "a label is null": (b'{"labels": ["a", null]}', "a label that is nothing (None)"),
    "a label is empty": (b'{"labels": ["a", ""]}', "a label that is a text ('')"),
    "a label twice": (b'{"labels": ["a", "b", "a"]}', "names the class 'a' twice"),
}


@pytest.mark.parametrize(("body", "said"), ABOUT.values(), ids=ABOUT.keys())
def test_what_an_endpoint_says_of_itself(body: bytes, said: str) -> None:
    with serving(lambda handler, _: send(handler, body)) as url, pytest.raises(ConfigError) as caught:
        Endpoint(url, retries=0).about()
    assert said in str(caught.value) and f"{url}/about" in str(caught.value)


@pytest.mark.parametrize("body", [b"{}", b'{"labels": null}', b'{"name": "big"}'])
def test_an_endpoint_need_not_name_classes(body: bytes) -> None:
    with serving(lambda handler, _: send(handler, body)) as url:
        assert Endpoint(url).about()["labels"] is None


# ---------------------------------------------------------------------------------------------- time, size, second tries
def drip_body(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\0")
        handler.wfile.flush()
        time.sleep(0.02)


def drip_headers(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.02)


def drip_error(handler: Any) -> None:
    handler.send_response(400)
    handler.end_headers()
    while True:
        handler.wfile.write(b"e")
        handler.wfile.flush()
        time.sleep(0.02)


def say_nothing(handler: Any) -> None:
    time.sleep(3)


@pytest.mark.parametrize("how", [drip_body, drip_headers, drip_error, say_nothing])
def test_time_is_limited_for_the_whole_answer(how: Callable[[Any], None]) -> None:
    with serving(lambda handler, _: how(handler)) as url:
        began = time.monotonic()
        with pytest.raises(ConfigError, match=r"whole answer within 0\.3 seconds; raise teacher\.timeout"):
            Endpoint(url, timeout=0.3, retries=3).about()  # and is not spent four times
        assert time.monotonic() - began < 2.0


def test_size_is_limited() -> None:
    def endless(handler: Any, _: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"\0" * 65536)

    def announced(handler: Any, _: bytes) -> None:
        send(handler, b"", Content_Length=1 << 40)

    for how, said in ((endless, "sends more than the"), (announced, "announces 1,099,511,627,776 bytes")):
        with serving(how) as url:
            endpoint = Endpoint(url, timeout=20.0, retries=0)
            endpoint.width = 10
            with pytest.raises(ConfigError, match=said):
                endpoint.answer(BATCH)


@pytest.mark.parametrize(("status", "times"), [(429, 3), (502, 3), (503, 3), (504, 3), (400, 1), (404, 1), (500, 1)])
def test_who_is_busy_is_asked_again(status: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("limbeck.cache.exchange.time.sleep", waits.append)
    asked: list[int] = []

    def handle(handler: Any, _: bytes) -> None:
        asked.append(1)
        send(handler, b"too \x1b[31mmany", status)

    with serving(handle) as url, pytest.raises(ConfigError, match=f"answered with status {status}") as caught:
        Endpoint(url, retries=2).about()
    assert len(asked) == times and ("3 times" in str(caught.value)) == (times == 3)
    assert waits == [0.25, 0.5][: times - 1]


def test_a_second_try_may_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("limbeck.cache.exchange.time.sleep", waits.append)
    turns = iter(["busy", "broken off", "well"])

    def handle(handler: Any, _: bytes) -> None:
        match next(turns):
            case "busy":
                send(handler, b"", 503, Retry_After=7)
            case "broken off":
                send(handler, b"{", Content_Length=100)
            case _:
                send(handler, b'{"labels": ["a"]}')

    with serving(handle) as url:
        assert Endpoint(url, retries=2).about()["labels"] == ["a"]
    assert waits == [7.0, 0.5]


def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.cache.exchange.time.sleep", lambda seconds: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, and nobody listens
        with pytest.raises(ConfigError, match=r"does not answer \(Connection refused\), 3 times; is the teacher being"):
            Endpoint(url, retries=2).about()


def test_no_redirection_is_followed() -> None:
    reached: list[str] = []
    with serving(lambda handler, _: reached.append(handler.headers["Authorization"])) as other:

        def handle(handler: Any, _: bytes) -> None:
            send(handler, b"", 302, Location=f"{other}/about")

        with serving(handle) as url, pytest.raises(ConfigError, match=f"sends us on to {other}/about"):
            Endpoint(url, token="hunter2").about()
    assert reached == []


# -------------------------------------------------------------------------------------------------------------- secrets
def test_credentials_are_sent() -> None:
    got: list[str] = []

    def handle(handler: Any, _: bytes) -> None:
        got.append(handler.headers["Authorization"])
        send(handler, b"{}")

    with serving(handle) as url:
        Endpoint(url, token="hunter2").about()
        Endpoint(url.replace("//", "//me:hunter%2F2@")).about()
        Endpoint(url).about()
    assert got == ["Bearer hunter2", "Basic bWU6aHVudGVyLzI=", None]


def test_serving_asks_for_the_token() -> None:
    server = serve(lambda batch, taps: Signal(GOOD), LABELS, token="hunter2")
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert torch.equal(Endpoint(url, token="hunter2").answer(BATCH).logits, GOOD)
        for wrong in (None, "hunter3"):
            with pytest.raises(ConfigError, match=r"other credentials \(status 401\).*teacher\.token_env"):
                Endpoint(url, token=wrong).about()
    finally:
        server.shutdown()
        server.server_close()


def test_tokens_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_TOKEN", " hunter2\n")
    (tmp_path / "token").write_text("hunter2\n")
    assert token("TEACHER_TOKEN", None) == token(None, str(tmp_path / "token")) == "hunter2"
    assert token(None, None) is None
    with pytest.raises(ConfigError, match="token_env: there is no such environment variable"):
        token("NOT_THERE", None)
    for text, said in (("", "is empty"), ("two words", "more than one word"), ("schlüssel", "printable ASCII")):
        monkeypatch.setenv("TEACHER_TOKEN", text)
        (tmp_path / "token").write_text(text)
        for where in (("TEACHER_TOKEN", None), (None, str(tmp_path / "token"))):
            with pytest.raises(ConfigError, match=said) as caught:
                token(*where)
            assert not text or text not in str(caught.value)
    for path in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(LimbeckError, match="token_file"):
            token(None, str(path))


def test_a_server_that_repeats_secrets_is_not_quoted() -> None:
    def handle(handler: Any, _: bytes) -> None:
        send(handler, f"you sent {handler.headers['Authorization']}".encode(), 400)

    with serving(handle) as url, pytest.raises(ConfigError, match=r"you sent Bearer \*\*\*"):
        Endpoint(url, token="hunter2", retries=0).about()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://me:hunter2@host/x", "https://***@host/x"),
        ("see http://hunter2@host and https://a:b@c.", "see http://***@host and https://***@c."),
        ("http://me:hun/ter2@host", "http://***@host"),
        ("http://me:p@ss@host", "http://***@host"),
        ("https://host/x", "https://host/x"),
        ("mail me@host", "mail me@host"),
        ("https://host/x?api_key=hunter2&n=3", "https://host/x?api_key=***&n=3"),
    ],
)
def test_texts_are_masked(text: str, said: str) -> None:
    assert masked(text) == said


def test_a_long_value_is_masked_before_it_is_cut() -> None:
    for value in (f"http://me:{'hunter2' * 40}@host", [f"http://me:{'hunter2' * 40}@host"]):
        assert "hunter2" not in shorten(value)


ADDRESSES: dict[str, str] = {
    "ftp://host": "must begin with http",
    "http://": "must be an address",
    "http://host:port": "is no address",
    "http://host:99999": "is no address",
    "http://me:hunter/2@host": "as %2F",
    "http://ho st": "printable",
    "http://hóst": "printable",
    "http://host?key=hunter2": "behind [?]",
    "http://host#part": "behind [?] or #",
    "http://[::1": "is no address",
}


@pytest.mark.parametrize(("url", "said"), ADDRESSES.items())
def test_what_is_no_address(url: str, said: str, capsys: Any) -> None:
    assert cli.main(["run", "kd", f"teacher=remote:{url}"]) == 2
    err = capsys.readouterr().err
    import re

    assert re.search(said, err) and err.startswith("limbeck: teacher.url: ") and "hunter" not in err


def test_an_address_is_parted_as_soon_as_a_recipe_is_resolved(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "task: classification\nmethod: kd\nteacher: {use: ensemble, members: ['remote:http://me:hunter2@host']}\n"
    )
    tree = check(load_tree(mine))
    assert tree["teacher"]["members"][0]["url"] == "http://***@host" and "hunter2" not in json.dumps(tree)
    assert check(tree) == tree
    assert Remote("http://me:hunter2@host").url == "http://***@host"


def test_an_address_that_was_read_back_asks_for_its_credentials() -> None:
    with pytest.raises(ConfigError, match=r"written down nowhere.*give the whole address again"):
        Endpoint("http://***@never-seen")


@pytest.mark.parametrize("way", ["token_env", "token_file", "url"])
def test_no_secret_is_written_anywhere(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hunter2hunter2"
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("TEACHER_TOKEN", secret)
    (tmp_path / "secret").write_text(secret)
    asked: list[str] = []

    def handle(handler: Any, body: bytes) -> None:
        asked.append(handler.headers["Authorization"])
        if not body:
            send(handler, json.dumps({"labels": LABELS}).encode())
        elif "x" in asked:
            send(handler, f"no more for {asked[-1]}".encode(), 400)
        else:
            send(handler, save({"logits": torch.zeros(len(load(body)["x"]), 10)}))

    short = ["student=mlp:[2]", "teacher.check=off", "train.steps=2", "train.batch_size=4", "engine.device=cpu"]
    with serving(handle) as url:
        if way == "url":
            given = [f"teacher=remote:{url.replace('//', f'//me:{secret}@')}"]
        else:
            given = [
                f"teacher=remote:{url}",
                f"teacher.{way}={'TEACHER_TOKEN' if way == 'token_env' else tmp_path / 'secret'}",
            ]
        assert cli.main(["run", "kd", *given, *short, "--out", str(tmp_path / "o")]) == 0
        assert len(asked) >= 3 and None not in asked
        assert cli.main(["run", "kd", *given, *short, "--out", str(tmp_path / "o")]) == 0  # finished before
        assert cli.main(["run", "kd", *given, *short, "--print-config"]) == 0
        assert cli.main(["run", "kd", *given, "--help"]) == 0
        asked.append("x")
        assert cli.main(["run", "kd", *given, *short, "--force", "--out", str(tmp_path / "o2")]) == 2
    out, err = capfd.readouterr()
    assert secret not in out + err and "no more for" in err
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != tmp_path / "secret":
            assert secret.encode() not in path.read_bytes(), path
    assert "TEACHER_TOKEN" in (tmp_path / "o" / "config.yaml").read_text() or way != "token_env"


# ------------------------------------------------------------------------------------------------------------- as a whole
def test_a_teacher_that_fails_is_said_before_anything_is_trained(tmp_path: Path, capsys: Any) -> None:
    def handle(handler: Any, body: bytes) -> None:
        send(handler, b'{"labels": null}' if not body else save({"logits": torch.zeros(2, 7)}))

    with serving(handle) as url:
        status = cli.main(["run", "kd", f"teacher=remote:{url}", "teacher.retries=0", "--out", str(tmp_path / "o")])
    out, err = capsys.readouterr()
    assert status == 2 and "[2, 7], expected [2, 10]" in err and "training" not in out + err


def test_classes_by_another_name_are_refused(tmp_path: Path) -> None:
    tree = check(load_tree("kd", ["teacher=remote:http://127.0.0.1:9"]))
    from limbeck.recipe.recipe import build

    task = build(tree).task
    task.load()
    with (
        serving(lambda handler, _: send(handler, b'{"labels": ["zero", "one"]}')) as url,
        pytest.raises(TeacherMismatch, match="labels"),
    ):
        Remote(url).build(task)


def test_tls_is_watched_too() -> None:
    """A connection that never becomes one over TLS ends in time."""

    class Mute(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            time.sleep(2)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mute) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(Failed, match="within"):
            Asker(timeout=0.3).ask(f"https://127.0.0.1:{server.server_address[1]}/about")
        assert time.monotonic() - began < 1.5
        server.shutdown()


def test_parting_keeps_the_rest() -> None:
    assert part("https://me:hunter2@host:8/a/b") == "https://***@host:8/a/b"
    assert part("https://host/a@b") == "https://host/a@b"
    batch: Batch = {"x": torch.zeros(0, 1)}
    with serving(lambda handler, _: send(handler, save({"logits": torch.zeros(0, 3)}))) as url:
        assert Endpoint(url).answer(batch).logits.shape == (0, 3)
