"""Every benchmark runs at a toy size and leaves its JSON; nothing is said about time here."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import agree, llm_head, peers, resume, trajectory
from benchmarks.__main__ import NAMES, main
from benchmarks.harness import Check, Report, Row, interleave, machine, number, ratios, write


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peers and no processes of one's own for memory: starting them takes longer than all benchmarks together."""

    def missing(name: str, path: str) -> Any:
        raise peers.Missing("not installed")

    def here(function: str, **arguments: Any) -> float:
        module, name = function.split(":")
        getattr(importlib.import_module(module), name)(**arguments)()
        return 1.0

    monkeypatch.setattr(peers, "load", missing)
    monkeypatch.setattr(peers, "load_file", missing)
    monkeypatch.setattr(llm_head, "peak_growth", here)
    monkeypatch.setattr(trajectory, "peak_growth", here)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "resume"])
def test_runs_and_leaves_its_json(name: str, alone: None, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    report = module.run(module.TOY)
    kept = json.loads(write(report, tmp_path, 0.0, machine()).read_text())
    assert kept["benchmark"] == name and kept["title"]
    assert kept["rows"] and kept["checks"] and kept["settings"] and kept["machine"]["cores"]
    assert kept["versions"]["limbeck"] and kept["versions"]["torch"]
    for check in kept["checks"]:
        assert check["passed"] is not None or "NOT MEASURED" in check["said"]
    measured = [row for row in kept["rows"] if not row["note"].startswith("not installed")]
    assert any("limbeck" in row["name"] or name == "trajectory" for row in measured)
    failed = [row for row in kept["rows"] if "failed:" in row["note"]]
    assert not failed


def test_what_does_not_depend_on_time_holds_at_toy_size_too(alone: None) -> None:
    assert agree.run(agree.TOY).passed
    exact = next(c for c in trajectory.run(trajectory.TOY).checks if "float64" in c.what)
    assert exact.passed


@pytest.mark.parametrize("spoilt", [False, True])
def test_killed_and_typed_again(spoilt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict, with a command that is quick (``limbeck run`` itself is killed in the tests of the command line)."""
    script = tmp_path / "command.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "out, spoilt = pathlib.Path(sys.argv[1]), sys.argv[2] == 'True'\n"
        "out.mkdir(parents=True, exist_ok=True)\n"
        "resumed = (out / 'log.jsonl').exists()\n"
        "for step in range(1, 40):\n"
        "    with open(out / 'log.jsonl', 'a') as log: log.write(json.dumps({'step': step}) + '\\n')\n"
        "    time.sleep(0.01)\n"
        "(out / 'student.safetensors').write_text('other' if spoilt and resumed else 'same')\n"
        "(out / 'result.json').write_text(json.dumps({'metrics': {'student': {'accuracy': 0.5 + (spoilt and resumed)}}}))\n"
    )
    monkeypatch.setattr(
        resume, "command", lambda settings, folder: [sys.executable, str(script), str(folder), str(spoilt)]
    )
    report = resume.run(resume.Settings(kills=(5,)))
    assert report.passed is (not spoilt), [c.said() for c in report.checks]
    assert report.raw["killed"]["killed_at"] == [pytest.approx(5, abs=30)]
    kept = json.loads(write(report, tmp_path, 0.0, machine()).read_text())
    assert kept["benchmark"] == "resume" and [row["name"] for row in kept["rows"]] == ["undisturbed", "killed"]


def test_the_command_prints_tables_and_keeps_files(
    alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["agree", "--toy", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert status == 0 and "PASS" in said and "limbeck kl" in said and "not installed" in said
    assert (tmp_path / "agree.json").is_file()
    with pytest.raises(SystemExit) as stopped:
        main(["nonsense", "--out", str(tmp_path)])
    assert stopped.value.code == 2 and "nonsense" in capsys.readouterr().err


def test_a_missing_or_broken_peer_is_a_row_and_no_failure() -> None:
    report = Report("x", "x")
    with report.peer("absent"):
        raise peers.Missing("not installed")
    with report.peer("broken"):
        raise TypeError("takes 2 arguments (/somebody/else/file.py)")
    assert [row.name for row in report.rows] == ["absent", "broken"]
    assert report.rows[0].note == "not installed"
    assert "TypeError" in report.rows[1].note and "/" not in report.rows[1].note
    assert report.passed is True


def test_a_promise_says_plainly_what_became_of_it() -> None:
    held, broken = Check("time", 0.5, 0.6), Check("reads", 90.0, 100.0, at_least=True)
    unknown = Check("memory", None, 0.4, why="a peer is missing")
    assert held.said().endswith("PASS") and broken.said().endswith("FAIL") and "NOT MEASURED" in unknown.said()
    assert Report("x", "x", checks=[held, unknown]).passed is None
    assert Report("x", "x", checks=[held, unknown, broken]).passed is False
    assert Report("x", "x", checks=[held], rows=[Row("a")]).passed is True


def test_rounds_are_interleaved_and_paired() -> None:
    seen: list[str] = []

    def variant(name: str, seconds: float) -> Any:
        def work() -> float:
            seen.append(name)
            return seconds

        return work

    raw = interleave({"a": variant("a", 2.0), "b": variant("b", 1.0)}, rounds=6, warm=False)
    assert raw == {"a": [2.0] * 6, "b": [1.0] * 6} and ratios(raw, "a", "b") == [2.0] * 6
    pairs = [tuple(seen[i : i + 2]) for i in range(0, 12, 2)]
    assert all(set(pair) == {"a", "b"} for pair in pairs) and len(set(pairs)) == 2


def test_memory_is_that_of_the_work_alone() -> None:
    from benchmarks.harness import peak_growth

    assert 30 < peak_growth("tests.benchmarks.test_benchmarks:allocate", mb=32) < 40


def allocate(mb: int) -> Any:
    """Holds memory before, which does not count, and while it works, which does."""
    import torch

    kept = torch.ones(2 * mb * 2**18)

    def work() -> float:
        return float(torch.ones(mb * 2**18).sum() + kept[0])

    return work


def test_numbers_are_short() -> None:
    assert [number(v) for v in (1.0, 0.98765, 12345.6, 1e-9, None, "x")] == ["1", "0.988", "12,346", "1.0e-09", "", "x"]


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setitem(peers.PEERS, "nobody", peers.Peer("no-such-distribution", "1"))
    with pytest.raises(peers.Missing, match="not installed"):
        peers.load("nobody", "nobody")
    assert "no-such-distribution" not in peers.versions() and "timm" in peers.versions()


def test_the_engine_reads_one_number_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A read waits for the device. On a CPU the losses look at their inputs too; as on a GPU, they do not here."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from benchmarks.image import Case, Pair
    from limbeck.engine import guard
    from limbeck.engine.engine import Engine
    from limbeck.functional import _common, _pair, divergence

    # as on a device that reading waits for
    monkeypatch.setattr(guard, "FREE_ON", ())
    monkeypatch.setattr(divergence, "quick", lambda *rows: None)
    monkeypatch.setattr(_common, "extremes", lambda x: None)
    monkeypatch.setattr(_pair, "extremes", lambda x: None)
    tiny = {"kind": "small", "width": 4}
    pair = Pair(Case("sync", tiny, tiny, 8, 1, 4, 4, steps=12, rounds=1, warm=0), tmp_path)
    reads: list[int] = []

    class Count(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    class Watch:
        def stage(self, *args: Any) -> None: ...

        def advance(self, n: int = 1, **metrics: Any) -> None:
            if n:
                reads.append(mode.count)

        def say(self, text: str) -> None: ...

    import torch

    with Count() as mode:
        Engine(pair.online.engine, 0, None, None, None, Watch()).run(pair.online.method)
    assert len(reads) == 13
    assert {b - a for a, b in itertools.pairwise(reads)} == {1}
