"""One measurement of memory in a process of its own: ``python -m benchmarks.memory MODULE:FUNCTION ARGUMENTS``."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import resource
import sys
from pathlib import Path
from typing import Any


def status(name: str) -> float | None:
    """A field of ``/proc/self/status`` in MB, where there is such a file."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1]) / 2**10
    except OSError:
        pass
    return None


def peak() -> float:
    """The peak of resident memory since it was last reset (Linux), or of the process's life, in MB."""
    seen = status("VmHWM")
    if seen is not None:
        return seen
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def reset() -> float:
    """Give free memory back, reset the peak where the system allows it, and return the present use in MB."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass
    now = status("VmRSS")
    return peak() if now is None else now


def main() -> None:
    """Prepare, reset the peak, work, print the growth."""
    import torch

    from benchmarks import peers

    torch.set_num_threads(1)
    module, name = sys.argv[1].split(":")
    try:
        work: Any = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    except peers.Missing as missing:
        print(json.dumps({"missing": str(missing)}))
        return
    before = reset()
    work()
    print(json.dumps({"mb": max(0.0, peak() - before), "before_mb": before}))


if __name__ == "__main__":
    main()
