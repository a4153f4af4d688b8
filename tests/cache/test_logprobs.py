"""Recorded top-k teachers: of an endpoint with log-probabilities, learnt from as online, read without holding them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from limbeck.cache import build_cache  # noqa: E402
from limbeck.cache.logprobs import Logprobs, LogprobsEndpoint  # noqa: E402
from limbeck.errors import ConfigError  # noqa: E402
from limbeck.functional.sparse import TopK  # noqa: E402
from limbeck.models.causal_lm import CausalLm  # noqa: E402
from tests.tasks.texts import small  # noqa: E402
from tests.tiny import tiny, tree_of  # noqa: E402

FEW = ("task.data.documents=6", "task.student_documents=3", "task.eval_sequences=2")
"""Every text is a question."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little language model's folder, with its tokenizer."""
    task, folder = small(), tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(task).module, folder)
    return folder / "student"


class Server:
    """What `serving` serves, and how it answers.

    Attributes:
        way: ``prompt``, ``echo`` by numbers, or ``words``: echo by spelling.
        odd: what is wrong with an answer.
        asked: the bodies that were sent.
    """

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.way, self.odd, self.asked, self.url = "prompt", "", list[dict[str, Any]](), ""

    def name(self, word: int) -> str:
        return f"token_id:{word}" if self.way == "echo" else self.tokenizer.decode([word])

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        with torch.no_grad():
            log_p = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        if self.odd == "shifted":
            ids = [*ids, 0]
        prompt: list[Any] = [None]
        words: list[Any] = [None]
        for at in range(1, len(ids)):
            top = log_p[at - 1].topk(body.get("prompt_logprobs") or body["logprobs"])
            kept = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            kept[ids[at]] = float(log_p[at - 1, ids[at]])  # the text's own word is told too
            if self.odd == "nan":
                kept[ids[at]] = float("nan")
            if self.odd == "mass":
                kept = dict.fromkeys(kept, -0.1)
            if self.odd == "beyond":
                kept[10**6] = -1.0
            prompt.append({str(w): {"logprob": x, "rank": r} for r, (w, x) in enumerate(kept.items())})
            words.append({self.name(w): x for w, x in kept.items()})
        if self.way == "prompt":
            return {"choices": [{"text": "", "prompt_logprobs": prompt}]}
        tokens = [self.name(i + (self.odd == "other")) for i in ids]
        return {"choices": [{"text": "", "logprobs": {"tokens": tokens, "top_logprobs": words}}]}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    made = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.asked.append({"path": self.path, **body})
            refused = made.odd == "deaf" or ("prompt_logprobs" in body and made.way != "prompt")
            data = b'{"error": "unknown field"}' if refused else json.dumps(made.completion(body)).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def endpoint(server: Server, **changes: Any) -> LogprobsEndpoint:
    settings = Logprobs(server.url, "it", top=12, retries=0, **changes)
    return LogprobsEndpoint(settings, server.tokenizer, server.model.config.vocab_size)


def batch_of(server: Server) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, server.model.config.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("way", ["prompt", "echo", "words"])
def test_an_endpoint_tells_what_its_model_thinks(served: Path, way: str) -> None:
    with serving(served) as server:
        server.way = way
        batch = batch_of(server)
        known = endpoint(server).answer(batch).out
        assert isinstance(known, TopK) and known.indices.shape == (3, 9, 12)
        with torch.no_grad():
            truth = server.model(**batch).logits.log_softmax(-1)
        counts = batch["attention_mask"][:, 1:].bool()
        found, own = known.logits[:, :-1][counts], truth[:, :-1][counts]
        best = own.topk(12)
        if way == "words":  # several tokens may be written alike: these are a part of the rest
            assert float((found.softmax(-1) - own.softmax(-1)).abs().sum(-1).mean()) < 1.0
        else:
            torch.testing.assert_close(found.gather(1, best.indices), best.values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(found)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(known.logits[1, 6].exp(), torch.full((known.classes,), 1 / known.classes))
        sent = [a["prompt"] for a in server.asked if "prompt_logprobs" in a or way != "prompt"]
        assert batch["input_ids"][1, :6].tolist() in sent and all(a["path"] == "/v1/completions" for a in server.asked)


@pytest.mark.parametrize(
    ("way", "odd", "said"),
    [
        ("prompt", "shifted", "for a text of .* tokens"),
        ("prompt", "nan", "as the log-probability"),
        ("prompt", "mass", "sum to"),
        ("prompt", "beyond", "names token 1000000"),
        ("echo", "other", "reads token 0 of a text as"),
        ("echo", "deaf", "status 400"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(served: Path, way: str, odd: str, said: str) -> None:
    with serving(served) as server:
        server.way, server.odd = way, odd
        with pytest.raises(ConfigError, match=said):
            endpoint(server).answer(batch_of(server))


def test_a_recording_of_an_endpoint_teaches_as_its_model_does(served: Path, tmp_path: Path) -> None:
    """And texts are asked about once: the recording needs no endpoint any more."""
    size = 300
    with serving(served) as server:
        size = int(server.model.config.vocab_size)
        given = ("teacher.use=logprobs", f"teacher.url={server.url}", "teacher.model=it", f"teacher.top={size - 1}")
        told = build_cache(
            tree_of("token-kd", *FEW, *given, f"teacher.tokenizer_name={served}"), tmp_path / "cache", yes=True
        )
        assert told["items"] > 0 and len(server.asked) > told["items"]
    recorded = tiny("token-kd", tmp_path / "a", *FEW, f"teacher=cached:{tmp_path / 'cache'}").run()
    online = tiny("token-kd", tmp_path / "b", *FEW, f"teacher=hf:{served}").run()
    a, b = (m.method.roles["student"].module.state_dict() for m in (recorded, online))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-3)


def test_nothing_says_how_the_endpoint_spells(served: Path, tmp_path: Path) -> None:
    with serving(served) as server, pytest.raises(ConfigError, match=r"teacher\.tokenizer_name.*spells"):
        given = ("teacher.use=logprobs", f"teacher.url={server.url}", "teacher.model=it")
        build_cache(tree_of("token-kd", *FEW, *given), tmp_path / "cache", yes=True)


def test_reading_holds_no_more_than_what_is_asked_for(tmp_path: Path) -> None:
    """Shards are mapped: what a batch reads is in the size of its own rows, whatever lies on the disk."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the system does not tell resident memory")
    import gc

    from limbeck.storage import store
    from limbeck.storage.records import mapped_arrays

    rows, length, k = 2048, 64, 48
    for number in range(2):  # 2 x 36 MB
        with store.atomic_folder(tmp_path / f"shard-{number:05d}") as place:
            np.save(place / "logits.npy", np.zeros((rows, length, k), np.float16))
            np.save(place / "index.npy", np.zeros((rows, length, k), np.int32))

    def anonymous() -> float:
        gc.collect()
        line = next(x for x in status.read_text().splitlines() if x.startswith("RssAnon:"))
        return float(line.split()[1]) / 2**10

    before = anonymous()
    shards = [mapped_arrays(tmp_path / f"shard-{n:05d}") for n in range(2)]
    for shard in shards:
        for name in ("logits", "index"):
            assert not shard[name].index_select(0, torch.arange(0, rows, 256)).any()
    assert anonymous() - before < 16
