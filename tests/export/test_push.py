"""What is sent to the hub, by huggingface_hub itself, to a local server that stands in for it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.cli import main
from limbeck.errors import ConfigError, StorageError
from limbeck.export.push import push
from limbeck.run import run
from tests.tiny import tree_of

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")


class Hub:
    """What a hub was asked, and what it holds: repository -> file -> bytes."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.tokens: set[str] = set()
        self.refuse = 0


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _send(self, body: Any, status: int = 200) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            held.tokens.add(self.headers.get("Authorization", ""))
            base = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            if held.refuse:
                return self._send({"error": "no"}, held.refuse)
            if self.path == "/api/repos/create":
                told = json.loads(raw)
                owner = told.get("organization") or "me"
                name = f"{owner}/{told['name']}"
                held.files.setdefault(name, {})
                held.private[name] = told.get("private", told.get("visibility") == "private")
                return self._send({"url": f"{base}/{name}", "name": name})
            if "/preupload/" in self.path:
                told = json.loads(raw)["files"]
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in told]
                return self._send({"files": files})
            if "/commit/" in self.path:
                name = self.path.split("/api/models/")[1].split("/commit/")[0]
                for line in raw.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "header":
                        held.messages.append(entry["value"]["summary"])
                    if entry["key"] == "file":
                        held.files[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                return self._send({"commitUrl": f"{base}/{name}/commit/0123", "commitOid": "0123"})
            return self._send({"errors": [], "warnings": []})

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_standin")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield held
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_run_is_sent_with_its_card(standin: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tree_of("kd"), tmp_path / "run", quiet=True)
    assert main(["push", str(tmp_path / "run"), "me/digits-student", "--license", "apache-2.0"]) == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith("/me/digits-student/commit/0123") and "sending 4 files" in said.err
    files = standin.files["me/digits-student"]
    assert set(files) == {"README.md", "student.json", "student.safetensors", "use.py"}
    assert files["student.safetensors"] == (tmp_path / "run" / "export" / "hub" / "student.safetensors").read_bytes()
    assert standin.private == {"me/digits-student": True} and standin.tokens == {"Bearer hf_standin"}
    card = files["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    told = head["model-index"][0]["results"][0]["metrics"][0]
    assert head["license"] == "apache-2.0" and head["library_name"] == "limbeck" and "distillation" in head["tags"]
    assert (told["type"], told["value"]) == ("accuracy", result["metrics"]["student"]["accuracy"])
    accuracy = f"{100 * result['metrics']['student']['accuracy']:.1f} %"
    row = next(line for line in card.splitlines() if line.startswith("| accuracy |"))
    assert accuracy in row and " to " in row, "the interval stands beside the value"
    for part in ("## Results", "## How to use it", "limbeck.load", "## Preprocessing", "## Licence", "teacher `mlp"):
        assert part in card


def test_an_export_is_sent_as_it_lies(standin: Hub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nA student.")
    told: list[str] = []
    address = push(tmp_path, "me/plain", private=False, message="First", say=told.append)
    assert address.endswith("/me/plain/commit/0123") and standin.private == {"me/plain": False}
    assert standin.messages == ["First"] and "sending 1 files" in told[0] and "(private)" not in told[0]


def test_what_cannot_be_sent_is_said_in_one_line(
    standin: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"holds no README\.md"):
        push(tmp_path, "me/plain")
    (tmp_path / "README.md").write_text("A student.")
    with pytest.raises(ConfigError, match=r"REPO: .*expected OWNER/NAME"):
        push(tmp_path, "me/a/b")
    assert main(["push", str(tmp_path), "me/x", "--license", "mit"]) == 2
    assert "--license: is for a run's folder" in capsys.readouterr().err
    standin.refuse = 403
    with pytest.raises(StorageError, match="could not be sent: HfHubHTTPError"):
        push(tmp_path, "me/plain")
    assert standin.files == {}
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match="could not be sent: OfflineModeIsEnabled"):
        push(tmp_path, "me/plain")
