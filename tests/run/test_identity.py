"""A run folder goes on, or is answered from, only where the same entered it: what differs is named, nothing is mixed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import limbeck
from limbeck.engine import interrupt
from limbeck.engine.progress import Progress
from limbeck.errors import Stopped, StorageError
from limbeck.recipe.recipe import check, load_tree
from limbeck.run import restore, run

SHORT = (
    "train.steps=6",
    "teach.steps=3",
    "train.batch_size=8",
    "teacher.hidden=[8]",
    "engine.device=cpu",
    "loggers=[]",
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    interrupt.clear()
    yield
    interrupt.clear()
    for name in ("own_net", "own_method"):
        sys.modules.pop(name, None)


def rows(seed: int = 0, n: int = 120) -> None:
    """A table whose classes depend on its seed."""
    x = np.random.default_rng(seed).normal(size=(n, 4))
    y = x[:, 0] > (0 if seed == 0 else x[:, 1])
    lines = [",".join(f"{v:.4f}" for v in row) + f",{'yes' if k else 'no'}" for row, k in zip(x, y, strict=True)]
    Path("d.csv").write_text("a,b,c,d,label\n" + "\n".join(lines))


def net(act: str = "ReLU") -> None:
    """A network of the user's own."""
    layers = f"Flatten(), torch.nn.Linear(4, 5), torch.nn.{act}(), torch.nn.Linear(5, num_classes)"
    text = f"import torch\ndef net(num_classes):\n    return torch.nn.Sequential(torch.nn.{layers})\n"
    Path("own_net.py").write_text(text)
    sys.modules.pop("own_net", None)


def tree(*overrides: str) -> dict[str, Any]:
    return check(load_tree("kd", ["task.data=csv:d.csv", "task.student_items=null", *SHORT, *overrides]))


def stopped(monkeypatch: pytest.MonkeyPatch, *overrides: str, after: int = 3) -> None:
    """A run in the folder ``r`` that a signal stops in the middle of distilling."""
    stage, advance, seen = Progress.stage, Progress.advance, [""]

    def begins(self: Progress, name: str, total: Any, done: int = 0) -> None:
        stage(self, name, total, done)
        seen[0] = name

    def counting(self: Progress, n: int = 1, **metrics: Any) -> None:
        advance(self, n, **metrics)
        seen.append(seen[0])
        if n and seen.count("distil") == 1 + after:
            interrupt.request(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "stage", begins)
        patched.setattr(Progress, "advance", counting)
        with pytest.raises(Stopped):
            run(tree(*overrides), Path("r"), quiet=True)
    interrupt.clear()
    assert list(Path("r/checkpoints").glob("step-*")) and not Path("r/result.json").exists()


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    named = {"fc1": nn.Linear(4, 8), "head": nn.Linear(8, 2)}
    return nn.ModuleDict(named).state_dict()


CHANGES: dict[str, tuple[Any, str]] = {
    "data": (lambda: rows(1), "the content of the training data; .*test data"),
    "fewer rows": (lambda: rows(0, 100), r"the training data \(\d+ items then, \d+ now\)"),
    "code": (lambda: net("Tanh"), "your code in own_net.py"),
    "teacher": (lambda: torch.save(weights(1), "t.pt"), "the weights that the teacher begins with"),
}


@pytest.fixture
def made() -> tuple[str, ...]:
    rows()
    net()
    torch.save(weights(0), "t.pt")
    return ("student=import:own_net:net", "teacher=mlp:[8]", "teacher.checkpoint=t.pt", "teacher.check=off")


def test_an_interrupted_run_does_not_go_on_with_something_else(
    made: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(monkeypatch, *made)
    files = {p: p.read_bytes() for p in Path("r").rglob("*") if p.is_file()}
    for change, said in CHANGES.values():
        change()
        with pytest.raises(StorageError, match=f"^r: the run in it was made from something else: .*{said}.*--force"):
            run(tree(*made), Path("r"), quiet=True)
        assert {p: p.read_bytes() for p in Path("r").rglob("*") if p.is_file()} == files, "nothing of it is touched"
    fresh = run(tree(*made), Path("fresh"), quiet=True)
    forced = run(tree(*made), Path("r"), force=True, quiet=True)
    assert forced["metrics"]["student"] == fresh["metrics"]["student"], "anew, and nothing of the old one in it"


def test_a_finished_run_is_not_the_answer_for_something_else(made: tuple[str, ...]) -> None:
    first = run(tree(*made), Path("r"), quiet=True)
    for what, (change, said) in CHANGES.items():
        assert run(tree(*made), Path("r"), quiet=True)["reused"]
        change()
        with pytest.raises(StorageError, match=said):
            run(tree(*made), Path("r"), quiet=True)
        if what == "code":
            with pytest.raises(StorageError, match=r"your code in own_net\.py"):
                restore(Path("r"))
        rows()
        net()
        torch.save(weights(0), "t.pt")
    again = run(tree(*made), Path("r"), quiet=True)
    assert again["reused"] and again["metrics"] == first["metrics"], "what was changed back is the same again"


def test_other_settings_are_named_and_those_that_change_nothing_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    rows()
    stopped(monkeypatch)
    with pytest.raises(
        StorageError, match=r"another configuration: method.alpha \(0.9 then, 0.5 now\); train.lr \(.*, 0.5 now\)"
    ):
        run(tree("train.lr=0.5", "method.alpha=0.5"), Path("r"), quiet=True)
    free = ("engine.workers=1", "engine.save_every=2", "engine.log_every=1", "engine.keep=1", "loggers=[jsonl]")
    halves = run(tree(*free), Path("r"), quiet=True)
    whole = run(tree(), Path("whole"), quiet=True)
    assert halves["metrics"]["student"] == whole["metrics"]["student"] and not halves["reused"]


def test_what_failed_before_it_made_anything_is_begun_anew() -> None:
    rows()
    run(tree(), Path("r"), quiet=True)
    for name in ("result.json", "report.html", "student.json", "student.safetensors", "per_item.safetensors"):
        Path("r", name).unlink()
    import shutil

    shutil.rmtree("r/checkpoints")
    rows(1)
    assert not run(tree("train.lr=0.5"), Path("r"), quiet=True)["reused"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_before_there_was_a_record(finished: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows()
    if finished:
        run(tree(), Path("r"), quiet=True)
    else:
        stopped(monkeypatch)
    Path("r/identity.json").unlink()
    if finished:
        assert run(tree(), Path("r"), quiet=True)["reused"]
    else:
        with pytest.raises(StorageError, match=r"of an earlier limbeck, which kept no record.*--force"):
            run(tree(), Path("r"), quiet=True)
    Path("r/identity.json").write_text("{")
    with pytest.raises(limbeck.LimbeckError, match=r"identity\.json: cannot be read"):
        run(tree(), Path("r"), quiet=True)


# ------------------------------------------------------------------------------------------------------------ in Python
def module(seed: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), act(), nn.Linear(6, 3))


def arrays(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(60, 1, 4, 4, generator=g), torch.randint(0, 3, (60,), generator=g)


def distilled(**changes: Any) -> Any:
    given: dict[str, Any] = {"teacher": module(1), "student": module(2), "data": arrays(0), **changes}
    return limbeck.distill(method="kd", out="d", quiet=True, steps=4, force=False, check="off", **given)


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"teacher": module(5)}, "the weights that the teacher begins with"),
    ({"student": module(5)}, "the weights that the student begins with"),
    ({"data": arrays(1)}, "the content of the training data"),
    ({"student": module(2, nn.Tanh)}, "the network of the student"),
    ({"teacher": module(1, nn.Sigmoid)}, "the network of the teacher"),
]


def test_the_door_of_python_answers_for_what_it_is_given() -> None:
    first = distilled()
    again = distilled()
    assert again.result["reused"] and again.metrics == first.metrics
    assert isinstance(again.student, nn.Module) and not again.student.training
    for name, value in first.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name]), "the student of the finished run"
    for changes, said in OTHERS:
        with pytest.raises(StorageError, match=said):
            distilled(**changes)


def test_which_parameters_are_trained_is_another_run() -> None:
    first, half = distilled(), module(2)
    half[1].requires_grad_(False)  # type: ignore[index, operator]
    with pytest.raises(StorageError, match="which parameters of the student are trained"):
        distilled(student=half)
    fresh = limbeck.distill(teacher=module(1), student=half, data=arrays(0), steps=4, quiet=True, check="off")
    assert fresh.metrics["alone"] != first.metrics["alone"], "nor is the baseline of the full one its own"


def test_the_record_is_readable(tmp_path: Path) -> None:
    rows()
    run(tree(), Path("r"), quiet=True)
    record = json.loads(Path("r/identity.json").read_text())
    assert record["data"]["train"]["items"] == 86 and record["recipe"]["train.steps"] == 6
    assert set(record["roles"]) == {"student", "teacher"}


def test_a_run_of_an_earlier_limbeck_lacks_settings_that_came_later() -> None:
    """They stand at their defaults; a setting that no longer enters a run is passed over."""
    rows()
    run(tree(), Path("r"), quiet=True)
    place = Path("r/identity.json")
    record = json.loads(place.read_text())
    recipe = {**record["recipe"], "notes": ["once"]}
    del recipe["train.patience"]
    place.write_text(json.dumps({**record, "recipe": recipe}))
    assert run(tree(), Path("r"), quiet=True)["reused"]
    place.write_text(json.dumps({**record, "recipe": {**recipe, "train.lr": 0.5}}))
    with pytest.raises(StorageError, match=r"train\.lr"):
        run(tree(), Path("r"), quiet=True)
