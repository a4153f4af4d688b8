"""Run by torchrun: the short run of ``test_writing.replayed`` in each process; the first one writes what became of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from limbeck.engine import distributed as dist
from limbeck.storage import store
from tests.parts.test_writing import replayed

if __name__ == "__main__":
    torch.set_num_threads(1)
    method = replayed()
    if dist.rank() == 0:
        weights = dict(method.roles["student"].module.state_dict())
        store.save_tree(Path(sys.argv[1]), {"weights": weights, "state": method.state})
    dist.stop()
