"""What a run or a comparison is worth: on a page, in the terminal, in Markdown."""

from __future__ import annotations

from pathlib import Path


def write_report(run_folder: Path) -> Path:
    """Write a self-contained ``report.html`` for a run folder or a comparison folder.

    Reads ``result.json`` (with ``config.yaml`` and ``log.jsonl``, where they are) or ``comparison.json``; both are
    described in :mod:`limbeck.report.summary`. The page has no script and refers to nothing outside itself. The same
    folder gives the same bytes.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder holds no finished result, or one that cannot be read.
        StorageError: the page cannot be written.
    """
    from limbeck.report.page import write

    return write(Path(run_folder))


__all__ = ["write_report"]
