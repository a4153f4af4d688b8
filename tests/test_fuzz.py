"""Random recipes over absurd sizes, special files and hostile folders are refused in a line, or are ready to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_absurd_sizes_special_files_and_hostile_folders(tmp_path: Path) -> None:
    """LIMBECK_FUZZ=10000 tries a thousand."""
    count = max(15, int(os.environ.get("LIMBECK_FUZZ", "0")) // 10)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "62", str(count), str(tmp_path)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120 + 10 * count,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
