"""A corpus that a language model wrote: texts as JSON lines, how many each filter left, and the model beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from limbeck.errors import DataError
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.storage.plain import check_plain
from limbeck.storage.store import atomic_write

if TYPE_CHECKING:
    from limbeck.grammar.method import Built
    from limbeck.grammar.task import Task


@dataclass
class Corpus:
    """Texts with what is known of each.

    Attributes:
        rows: mappings with ``text``, and as it comes ``prompt``, ``concept``, ``round``, ``score``.
        survivors: for each round (and the release) what every filter was given and what it left, in order.

    Example:
        >>> Corpus([{"text": "Birds can fly.", "round": 0}]).texts
        ['Birds can fly.']
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    survivors: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def texts(self) -> list[str]:
        """The texts alone."""
        return [row["text"] for row in self.rows]

    def save(self, folder: Path) -> None:
        """``corpus.jsonl``, a text a line, and ``survivors.json``."""
        atomic_write(folder / "corpus.jsonl", _lines(self.rows))
        atomic_write(folder / "survivors.json", json.dumps(self.survivors, indent=2).encode())

    @classmethod
    def load(cls, folder: Path | str) -> Corpus:
        """What ``save`` wrote, of a run's folder; a corpus without ``survivors.json`` has none.

        Raises:
            DataError: there is no corpus, or a line is no object with a text.
        """
        path = Path(folder) / "corpus.jsonl"
        if not path.is_file():
            raise DataError(str(path), "is not there", expected="the folder of a run that wrote a corpus")
        check_plain(path)
        rows = _parsed(path.read_text(encoding="utf-8"), str(path))
        beside = path.with_name("survivors.json")
        return cls(rows, json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else [])

    def packed(self) -> Tensor:
        """The rows as bytes, uint8 [n], as a checkpoint keeps them."""
        return torch.frombuffer(bytearray(_lines(self.rows) or b"\n"), dtype=torch.uint8).clone()

    @classmethod
    def unpacked(cls, packed: Tensor, survivors: Sequence[Mapping[str, Any]] = ()) -> Corpus:
        """The inverse of ``packed``."""
        text = bytes(packed.cpu().numpy().tobytes()).decode()
        return cls(_parsed(text, "the checkpoint's corpus"), [dict(s) for s in survivors])


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def _parsed(text: str, where: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(where, f"line {number} is no object with a text", given=line[:80])
        rows.append(row)
    return rows


class CorpusArtifact(NetworkArtifact):
    """A corpus, and the generator that the last round left.

    ``save`` writes ``corpus.jsonl``, ``survivors.json``, and the generator as every network is written.

    Args:
        task: what the generator is for.
        built: the generator.
        corpus: the texts.
        decoding: how the generator writes, where a row differs from the run's own way.
    """

    kind: ClassVar[str] = "corpus"
    formats: tuple[str, ...] = ("safetensors", "hub")

    def __init__(self, task: Task, built: Built, corpus: Corpus, decoding: Mapping[str, Any] | None = None) -> None:
        super().__init__(task, built)
        self.corpus, self.decoding = corpus, dict(decoding or {})

    def save(self, folder: Path) -> None:
        """Write everything."""
        super().save(folder)
        self.corpus.save(folder)

    def size(self) -> dict[str, float]:
        """The generator's parameters and bytes, and how many texts there are."""
        return {**super().size(), "items": float(len(self.corpus))}


__all__ = ["Corpus", "CorpusArtifact"]
