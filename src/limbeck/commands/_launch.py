"""Several processes on this machine: the same command under torchrun, speaking with one voice."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path

from limbeck.cli import _end


def launch(words: list[str], processes: int) -> int:
    """Run ``limbeck WORDS`` in several processes under ``torch.distributed.run`` and give their exit status back.

    The first process prints; an error is printed once. A signal is passed on to all of them, which save and stop.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they tell every signal and exit in their own words
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    arguments = run.parse_args(["--standalone", "--nproc-per-node", str(processes), "-m", "limbeck", *words])
    if hasattr(arguments, "signals_to_handle"):
        arguments.signals_to_handle = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    if hasattr(arguments, "shutdown_timeout"):
        arguments.shutdown_timeout = 600  # seconds to finish a step and save before processes are killed
    with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
        os.environ["LIMBECK_STATUS"] = folder
        failed, signum = "", 0
        try:
            run.run(arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            failed = f"process {rank} ended with status {failure.exitcode}"
            if failure.exitcode < 0:
                failed = f"process {rank} was killed by signal {-failure.exitcode}"
        except SignalException as error:
            signum = int(error.sigval)
        finally:
            del os.environ["LIMBECK_STATUS"]
        said = _said(Path(folder))
    if signum:
        line = said[0][1] if said and said[0][0] > 128 else f"stopped by signal {signum}"
        return _end(128 + signum, line)
    if not failed:
        return 0
    if said:
        return _end(*said[0])
    return _end(1, f"{failed}; nothing more is known, the log above may tell")


def _said(folder: Path) -> list[tuple[int, str]]:
    """What the processes left: (status, line), the lowest rank first."""
    found = []
    for path in sorted(folder.glob("*.json"), key=lambda p: int(p.stem)):
        with contextlib.suppress(OSError, ValueError):
            left = json.loads(path.read_text(encoding="utf-8"))
            if left["status"]:
                found.append((int(left["status"]), str(left["line"])))
    return found
