"""``pytest tests/golden --golden-dir DIR`` runs the vectors of another folder of the same layout."""

from __future__ import annotations

from pathlib import Path

import pytest

VECTORS = Path(__file__).parent / "vectors"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Heard when this folder (or a file in it) is named on the command line; otherwise the default holds."""
    parser.addoption(
        "--golden-dir",
        default=None,
        metavar="DIR",
        help="folder of recorded vectors, SLUG/cases.json and arrays (default: the copies in the repository)",
    )


def golden_dir(config: pytest.Config) -> Path:
    """Where the vectors are; outside this folder's own command line the option does not exist."""
    given = config.getoption("--golden-dir", default=None)
    return VECTORS if given is None else Path(given).expanduser()
