"""Runs that are killed at a random moment, something changed before they are typed again: refused or anew, never mixed."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.storage import store

STEPS = 12
KINDS = ("nothing", "data", "teacher", "code", "role")


def rows(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(90, 4, generator=g)
    lines = [",".join(f"{v:.4f}" for v in row) + f",{'yes' if row[seed] > 0 else 'no'}" for row in x.tolist()]
    Path("d.csv").write_text("a,b,c,d,label\n" + "\n".join(lines))


def teacher(seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(nn.ModuleDict({"fc1": nn.Linear(4, 8), "head": nn.Linear(8, 2)}).state_dict(), "t.pt")


def code(act: str) -> None:
    layers = f"nn.Flatten(), nn.Linear(4, 5), nn.{act}(), nn.Linear(5, num_classes)"
    Path("own_net.py").write_text(f"from torch import nn\ndef net(num_classes):\n    return nn.Sequential({layers})\n")


def _recipe(out: str) -> None:
    """A run as the command line makes it."""
    from limbeck.recipe.recipe import check, load_tree
    from limbeck.run import run

    given = ["task.data=csv:d.csv", "task.student_items=null", "student=import:own_net:net", "teacher=mlp:[8]"]
    given += ["teacher.checkpoint=t.pt", "teacher.check=off", f"train.steps={STEPS}", "train.batch_size=8"]
    given += ["engine.device=cpu", "engine.save_every=1", "loggers=[]", "baselines=[]"]
    run(check(load_tree("kd", given)), Path(out), quiet=True)


def _engine(out: str) -> None:
    """An engine by itself, whose method has a role that learns nowhere: which one, a file says."""
    from limbeck.grammar.role import Role
    from tests.toy import Toy, bound, engine, network

    class Anchored(Toy):
        def bind(self, setup: Any) -> None:
            super().bind(setup)
            self.roles["anchor"] = Role(network(4, seed=int(Path("role.txt").read_text())))

    method = bound(Anchored(), steps=STEPS)
    engine(Path(out), save_every=1).run(method)
    store.save_tree(Path(out) / "end", {n: dict(r.module.state_dict()) for n, r in method.roles.items()})


def child(work: Callable[[str], None], where: str, workspace: str, out: str) -> None:
    """In a process of its own: exit status 2 and the sentence in a file where the run is refused."""
    from limbeck.errors import LimbeckError

    os.chdir(where)
    os.environ["LIMBECK_WORKSPACE"] = workspace
    sys.path.insert(0, where)
    torch.set_num_threads(1)
    try:
        work(out)
    except LimbeckError as error:
        Path(f"{out}.txt").write_text(str(error))
        os._exit(2)


SAID = {
    "data": "the content of the training data",
    "teacher": "the weights that the teacher begins with",
    "code": "your code in own_net.py",
    "role": "the weights that role 'anchor' begins with",
}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def trial(kind: str, rng: random.Random, where: Path) -> str:
    """One run, killed, changed and typed again; how it ended: ``resumed``, ``refused`` or ``anew``."""
    forks = mp.get_context("forkserver")
    forks.set_forkserver_preload(["limbeck.run", "tests.toy", "torch", "pandas"])
    where.mkdir()
    before = Path.cwd()
    os.chdir(where)
    try:
        rows(0)
        teacher(0)
        code("ReLU")
        Path("role.txt").write_text("3")
        work = _engine if kind == "role" else _recipe

        def started(out: str) -> Any:
            process = forks.Process(target=child, args=(work, str(where), str(where / "workspace"), out))
            process.start()
            return process

        def reached(number: int) -> bool:
            folder = Path("r/checkpoints")
            names = os.listdir(folder) if folder.is_dir() else []
            return any(n.startswith("step-") and int(n[5:]) >= number for n in names)

        stop, process = rng.randrange(0, STEPS - 3), started("r")
        limit = time.monotonic() + 60
        while process.is_alive() and not reached(stop) and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.01)
        process.kill()
        process.join()
        made = reached(0) or process.exitcode == 0
        changes: dict[str, Callable[[], Any]] = {
            "nothing": lambda: None,
            "data": lambda: rows(1),
            "teacher": lambda: teacher(1),
            "code": lambda: code("Sigmoid"),
            "role": lambda: Path("role.txt").write_text("4"),
        }
        changes[kind]()
        left = files(Path("r"))
        again = started("r")
        again.join(120)
        if again.exitcode == 2:
            assert kind != "nothing" and made, Path("r.txt").read_text()
            assert SAID[kind] in Path("r.txt").read_text()
            unchanged = {n: b for n, b in files(Path("r")).items() if n != "run.lock"}
            assert unchanged == {n: b for n, b in left.items() if n in unchanged}, "nothing of it is touched"
            return "refused"
        assert again.exitcode == 0
        fresh = started("fresh")
        fresh.join(120)
        assert fresh.exitcode == 0
        ends = ("end/tensors.safetensors",) if kind == "role" else ("student.safetensors",)
        for name in ends:
            assert Path("r", name).read_bytes() == Path("fresh", name).read_bytes(), "mixed"
        return "resumed" if kind == "nothing" else "anew"
    finally:
        os.chdir(before)
        shutil.rmtree(where, ignore_errors=True)


pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system whose processes can be killed")


@pytest.mark.parametrize("kind", ["data", "role"])
def test_killed_changed_and_typed_again(kind: str, tmp_path: Path) -> None:
    assert trial(kind, random.Random(kind), tmp_path / "w") == "refused"


@pytest.mark.expensive
def test_fifty_killed_changed_and_typed_again(tmp_path: Path) -> None:
    rng, ends = random.Random(0), []
    for number in range(50):
        ends.append(trial(KINDS[1:][number % 4], rng, tmp_path / str(number)))
    assert set(ends) <= {"refused", "anew"} and ends.count("refused") > 25
    assert trial("nothing", rng, tmp_path / "same") == "resumed"
    print({end: ends.count(end) for end in sorted(set(ends))})
