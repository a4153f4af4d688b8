"""Chunks of a corpus with what two models say of them, as a parquet file that serves any number of students.

| column | is |
|---|---|
| ``text`` | the chunk's text; documents stand one after another |
| ``breaks`` | places in ``text`` where a document ends inside the chunk |
| ``ids`` | its tokens, in the tokenizer of the models that scored it |
| ``teacher``, ``reference`` | mean negative log-likelihood a token, in nats; empty where a model was not asked |
| ``predicted`` | a proxy's guess of ``reference - teacher``; empty where there was none |
| ``kept`` | whether the run that wrote the file chose it |

Row groups are pieces: neither writing nor reading holds more than one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import as_path
from limbeck.errors import DataError, nearest, require
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.storage.disk import atomic_write
from limbeck.storage.plain import check_plain

if TYPE_CHECKING:
    from limbeck.grammar.method import Built
    from limbeck.grammar.task import Task

FILE = "scores.parquet"
"""Its name in a run's folder."""

KEY = b"limbeck.scores"
"""Where the file's own description lies among the metadata of parquet."""

SCORES = ("teacher", "reference", "predicted")
"""Columns of float32 values."""

Piece = Mapping[str, Any]
"""Columns by name, lists or arrays of equal length."""


def write_scores(path: Path, pieces: Iterator[Piece], about: Mapping[str, Any]) -> None:
    """Write a file, a row group for each piece; whole or not at all.

    Args:
        path: where.
        pieces: ``text``, ``breaks``, ``ids``, ``kept`` and the scores, NaN where there is none.
        about: ``chunks``, ``tokenizer`` and what else tells how it was made.
    """
    pa, parquet = (
        require("pyarrow", "language", "writing scores"),
        require("pyarrow.parquet", "language", "writing scores"),
    )
    numbers = pa.list_(pa.int32())
    columns = [("text", pa.string()), ("breaks", numbers), ("ids", numbers)]
    columns += [*((name, pa.float32()) for name in SCORES), ("kept", pa.bool_())]
    schema = pa.schema(columns, metadata={KEY: json.dumps({"format": 1, **about})})

    def write(stream: Any) -> None:
        with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            for piece in pieces:
                scores = {name: pa.array(np.asarray(piece[name], np.float32), from_pandas=True) for name in SCORES}
                writer.write_table(pa.table({**piece, **scores}, schema=schema))

    atomic_write(path, write)


class ScoredCorpus:
    """A file that `write_scores` wrote.

    Args:
        path: the file, or the folder of the run that wrote it.
        argument: the setting that names it, for messages.

    Raises:
        DataError: it is not there, is no such file, or does not hold what it says.
    """

    def __init__(self, path: str, argument: str = "method.scores") -> None:
        place = as_path(path, argument)
        self.path, self.argument = place / FILE if place.is_dir() else place, argument
        if not self.path.is_file():
            beside = place.parent.is_dir() and not place.exists()
            close = nearest(place.name, [p.name for p in place.parent.iterdir()]) if beside else []
            raise DataError(
                argument,
                "there is no such file" if not place.is_dir() else f"the folder holds no {FILE}",
                given=path,
                expected=f"the {FILE} of a run of MiniPLM, or that run's folder",
                remedy=f"did you mean {str(place.parent / close[0])!r}?" if close else "",
            )
        check_plain(self.path)
        parquet = require("pyarrow.parquet", "language", "reading scores")
        try:
            self._file = parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:
            raise DataError(argument, f"{self.path} is no readable parquet file: {error}") from None
        names = set(self._file.schema_arrow.names)
        missing = [n for n in ("text", "breaks", "ids", *SCORES) if n not in names]
        said = (self._file.schema_arrow.metadata or {}).get(KEY)
        if missing or said is None:
            raise DataError(
                argument,
                f"{self.path} lacks {', '.join(missing) if missing else 'the description of how it was made'}",
                expected=f"the {FILE} of a run of MiniPLM",
            )
        self.about: dict[str, Any] = json.loads(said)
        self.groups = int(self._file.num_row_groups)
        if self._file.metadata.num_rows != self.about.get("chunks"):
            raise DataError(
                argument,
                f"{self.path} holds {self._file.metadata.num_rows} scores for a corpus of {self.about.get('chunks')} chunks",
                expected="one score for every chunk",
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the file's bytes."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]

    def column(self, name: str) -> Tensor:
        """One column of scores, float32 ``[N]``; NaN where there is none."""
        found = self._file.read(columns=[name]).column(0).to_numpy()
        return torch.from_numpy(np.array(found, dtype=np.float32))

    def texts(self, group: int) -> list[list[str]]:
        """The texts of the chunks of a row group, cut where documents end."""
        rows = self._file.read_row_group(group, columns=["text", "breaks"])
        return [
            [t[a:b] for a, b in zip([0, *cuts], [*cuts, len(t)], strict=True)]
            for t, cuts in zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True)
        ]

    def ids(self, group: int) -> list[Tensor]:
        """The tokens of the chunks of a row group, int32."""
        found = self._file.read_row_group(group, columns=["ids"]).column(0).to_pylist()
        return [torch.tensor(row, dtype=torch.int32) for row in found]


class ScoringArtifact(NetworkArtifact):
    """A student, and the scores by which its corpus was chosen.

    ``save`` writes ``scores.parquet`` beside the network.

    Args:
        task: what the student is for.
        built: the student.
        write: writes the scores to a path; ``None`` where there are none.
    """

    def __init__(self, task: Task, built: Built, write: Callable[[Path], None] | None = None) -> None:
        super().__init__(task, built)
        self._write = write

    def save(self, folder: Path) -> None:
        """Write everything."""
        super().save(folder)
        if self._write is not None:
            self._write(folder / FILE)


def with_breaks(documents: Sequence[str]) -> tuple[str, list[int]]:
    """Texts as one, and where each but the last ends in it.

    Example:
        >>> with_breaks(["one", "two"])
        ('onetwo', [3])
    """
    cuts, at = [], 0
    for document in documents[:-1]:
        at += len(document)
        cuts.append(at)
    return "".join(documents), cuts


__all__ = ["FILE", "ScoredCorpus", "ScoringArtifact", "with_breaks", "write_scores"]
