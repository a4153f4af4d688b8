"""The documentation's examples in other people's loops make the engine's own update, however it is cut and wherever it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.objectives import loops

pytestmark = [
    pytest.mark.filterwarnings("ignore:::lightning"),  # its advice on loaders and logging is about larger jobs
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*find_unused_parameters"),
]


def furthest(one: loops.Learnt, two: loops.Learnt) -> float:
    assert one.keys() == two.keys()
    return max(float((one[k] - two[k]).abs().max()) for k in one)


def test_the_trainer_s_update_is_the_engine_s_however_it_accumulates(tmp_path: Path) -> None:
    """Rows of unequal numbers of predicted tokens; the projector learns too."""
    pytest.importorskip("accelerate")
    whole, loss = loops.by_trainer(8, 1, tmp_path)
    parts, same_loss = loops.by_trainer(2, 4, tmp_path)
    first = dict(loops.language_models()[0].state_dict())
    assert all(not torch.equal(first[k], v) for k, v in whole.items() if k.startswith("criterion"))
    assert furthest(first, whole) > 1e-2
    assert furthest(parts, whole) < 1e-6 and same_loss == pytest.approx(loss, rel=1e-5)
    assert furthest(loops.language_by_engine(), whole) < 1e-6
    assert furthest(loops.language_by_engine(accumulate=4), whole) < 1e-6


def test_in_mixed_precision_too(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    parts, _ = loops.by_trainer(2, 4, tmp_path, bf16=True)
    assert furthest(parts, loops.language_by_engine(precision="bf16")) < 5e-4  # of an update of 3.5e-2


def test_lightning_s_update_is_the_engine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    first = dict(loops.example("LightningModule")["Distilled"](*loops.networks()[:2], torch.zeros(2, 16)).state_dict())
    engine = loops.pictures_by_engine()
    assert furthest(loops.by_lightning(4, 4), engine) < 1e-6
    lower = loops.by_lightning(4, 4, precision="bf16-mixed")
    assert furthest(lower, loops.pictures_by_engine(precision="bf16")) < 2e-2 * furthest(first | engine, first)


def test_two_processes_make_the_engine_s_update(tmp_path: Path) -> None:
    """Each of two processes accumulates two micro-batches: transformers' Trainer, Lightning and a plain loop."""
    pytest.importorskip("accelerate")
    pytest.importorskip("lightning")
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "tests.objectives.loops", str(tmp_path)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    learnt = torch.load(tmp_path / "learnt.pt")
    assert furthest(learnt["trainer"], loops.language_by_engine()) < 1e-6
    assert furthest(learnt["lightning"], loops.pictures_by_engine()) < 1e-6
    assert furthest(learnt["plain"], loops.pictures_by_engine()) < 1e-6
