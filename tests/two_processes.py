"""Methods' tiny recipes in two processes (gloo): a pair that takes them one after another, as the battery asks for them.

Starting torch twice takes longer than most recipes, so a pair is started once and kept; one that takes too long over a
method, or has died over it, is replaced by a new one for the next.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

MOST = 180.0
"""Seconds for one method, starting the pair included, on a machine that is busy with other things."""

LEAVE = "."
"""What is asked of a pair in place of a method's name."""

IDLE = 300.0
"""Seconds without a question after which a pair leaves: whoever started it may be gone."""


class TwoProcesses:
    """A pair of processes that runs methods.

    Args:
        folder: what it leaves.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.hangs = folder, 0, False
        self.pair: subprocess.Popen[bytes] | None = None
        self.said: IO[bytes] | None = None

    def state(self, name: str, *words: str, most: float = MOST) -> Any:
        """What a method has learnt in two processes; ``words``: settings beside its tiny recipe's."""
        from limbeck.storage import store

        if self.pair is None or self.pair.poll() is not None:
            self._start()
        assert self.pair is not None
        self.asked += 1
        done, place = self.place / f"done{self.asked}", self.place / f"{name}-{self.asked}"
        _write(self.place / f"ask{self.asked}", "\n".join([name, *words]))
        until = time.monotonic() + most
        while not done.exists():
            if self.pair.poll() is not None or time.monotonic() > until:
                self.hangs = self.pair.poll() is None
                why = f"took more than {most:g} s" if self.hangs else "has died"
                self.close()
                raise AssertionError(f"the pair {why} over {name}: {(self.place / 'said.txt').read_text()[-4000:]}")
            time.sleep(0.02)
        failed = sorted(self.place.glob(f"{name}-{self.asked}-*.txt"))
        if failed:
            raise AssertionError(failed[0].read_text())
        return store.load_tree(place / "state")

    def _start(self) -> None:
        self.close()
        self.asked, n = 0, len(list(self.folder.iterdir()))
        self.place = self.folder / f"pair{n}"
        self.place.mkdir()
        root = Path(__file__).parents[1]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "LIMBECK_PROGRESS": "0"}
        env["LIMBECK_WORKSPACE"] = str(self.place / "workspace")
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.two_processes"]
        self.said = open(self.place / "said.txt", "wb")  # noqa: SIM115 (open as long as the pair is)
        self.pair = subprocess.Popen(
            [sys.executable, *launch, str(self.place)],
            env=env,
            cwd=root,
            stdout=self.said,
            stderr=self.said,
        )

    def close(self) -> None:
        """End the pair: asked to leave, or, where it hangs, by the launcher, which ends its processes."""
        if self.pair is not None:
            if self.pair.poll() is None and not self.hangs:
                _write(self.place / f"ask{self.asked + 1}", LEAVE)
            for way, most in ((None, 20.0), (self.pair.terminate, 60.0), (self.pair.kill, 60.0)):
                if way is not None:
                    way()
                elif self.hangs:
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.pair.wait(most)
                    break
        if self.said is not None:
            self.said.close()
        self.pair, self.said, self.hangs = None, None, False


def _write(path: Path, text: str) -> None:
    """Whole or not at all: two processes look for it."""
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def _leave() -> NoReturn:
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort a process that is only leaving


def _work(place: Path) -> None:
    """One of the pair: do what is asked, in order, until nobody asks any more."""
    import torch

    from limbeck.engine import distributed as dist
    from limbeck.storage import store
    from tests.tiny import state_of, tiny

    torch.set_num_threads(1)
    rank, asked = int(os.environ["RANK"]), 1
    while True:
        question, since = place / f"ask{asked}", time.monotonic()
        while not question.exists():
            if time.monotonic() - since > IDLE:
                _leave()
            time.sleep(0.02)
        name, *words = question.read_text().split("\n")
        if name == LEAVE:
            _leave()
        label = f"{name}-{asked}"
        gc.freeze()
        try:
            run = tiny(name, place / label, *words).run()
            state = state_of(run)
            flat = {f"{r}.{k}": v for r, s in state["roles"].items() for k, v in s.items()}
            dist.same_everywhere(store.fingerprint(flat), f"{name}: the weights")
            if rank == 0:
                store.save_tree(place / label / "state", state)
        except Exception:
            (place / f"{label}-{rank}.txt").write_text(traceback.format_exc())
        dist.barrier()
        if rank == 0:
            _write(place / f"done{asked}", name)
        asked += 1


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
