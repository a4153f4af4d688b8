"""Start and stop `tests.cache.chat_server` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("chat_server.py")


@dataclass
class Serving:
    """A server that runs.

    Attributes:
        url: where.
        log: a file with a line for every question it was sent.
        process: the process.
    """

    url: str
    log: Path
    process: subprocess.Popen[str]

    @property
    def sent(self) -> list[dict[str, Any]]:
        """What it was asked, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.is_file() else []


@contextmanager
def serving(folder: Path, **rules: Any) -> Iterator[Serving]:
    """A server by rules; it is ended afterwards."""
    log = folder / "asked.jsonl"
    log.unlink(missing_ok=True)
    text = json.dumps({"log": str(log), **rules})
    process = subprocess.Popen([sys.executable, "-S", "-E", str(SERVER), text], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Serving(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log, process)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
