"""What cannot fit is refused before it is tried, and what ran out is told by its setting."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck import cli
from limbeck.engine.room import bytes_of, largest, telling, within_memory
from limbeck.errors import OutOfMemory
from limbeck.storage import memory
from limbeck.storage.memory import available, exhausted, need

GB = 10**9


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a gigabyte left."""
    for place in ("limbeck.storage.memory", "limbeck.engine.room", "limbeck.run.fitting"):
        monkeypatch.setattr(f"{place}.available", lambda: GB)


def test_the_machine_says_what_is_left() -> None:
    free = available()
    assert free is not None and 2**20 < free < 2**50


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("700\n")
    (tmp_path / "stat").write_text("anon 500\ninactive_file 200\n")
    assert memory._container(*(str(tmp_path / n) for n in ("max", "current", "stat"))) == 500
    (tmp_path / "max").write_text("max\n")
    assert memory._container(*(str(tmp_path / n) for n in ("max", "current", "stat"))) is None


def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource; from limbeck.storage.memory import available; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({4 * GB}, {resource.RLIM_INFINITY})); print(available())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0 <= int(said) < 4 * GB


def test_need_names_the_setting(small: None) -> None:
    need(GB, "x", "it", "do less")
    with pytest.raises(OutOfMemory) as caught:
        need(3 * GB, "task.size", "4 images of 9 x 9 pixels", "lower task.size")
    assert caught.value.line() == (
        "task.size: 4 images of 9 x 9 pixels need 3.00 GB, and 1.00 GB are free; lower task.size"
    )


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (OutOfMemory("x", "y"), False),
    ],
)
def test_what_means_that_memory_is_exhausted(error: Exception, is_it: bool) -> None:
    assert exhausted(error) is is_it


def test_memory_that_ran_out_is_told_in_one_line() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^train\.batch_size: memory is exhausted; lower it$"),
        telling("train.batch_size", "lower it"),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(ValueError), telling("a", "b"):
        raise ValueError("another thing")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(10**5, 10**5),
        lambda: nn.Linear(64, 10**10),
        lambda: nn.Linear(64, 10**30),
        lambda: nn.Embedding(10**9, 10),
        lambda: nn.Parameter(torch.zeros(10**9)),
        lambda: torch.randn(10**5, 10**5),
        lambda: torch.empty((10**5, 10**5), dtype=torch.float64),
        lambda: torch.full(size=(10**10,), fill_value=1.0),
        lambda: torch.arange(10**10),
    ],
)
def test_a_network_is_refused_while_it_is_built(make: Any, small: None) -> None:
    with (
        pytest.raises(OutOfMemory, match=r"student\.hidden: the network needs .*; lower student\.hidden, or"),
        within_memory("student", {"use": "mlp", "hidden": [64, 10**9], "dropout": 0.5, "tied": True}),
    ):
        make()


def test_a_network_that_fits_is_built_as_without(small: None) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(5), nn.MultiheadAttention(8, 2)
        )

    with within_memory("student"):
        made = make()
        with torch.device("meta"):
            assert nn.Linear(10**6, 10**6).weight.is_meta  # costs nothing
    for a, b in zip(made.state_dict().values(), make().state_dict().values(), strict=True):
        assert isinstance(a, nn.parameter.UninitializedTensorMixin) or torch.equal(a, b)


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.engine.room.TENSORS", 100)
    with (
        pytest.raises(OutOfMemory, match=r"more than 100 tensors; lower student\.depth"),
        within_memory("student", {"depth": 99}),
    ):
        [nn.Linear(2, 2) for _ in range(99)]


def test_a_signal_is_heard_while_a_network_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.errors import Stopped

    monkeypatch.setattr("limbeck.engine.interrupt.requested", lambda: 15)
    with pytest.raises(Stopped), within_memory("student"):
        nn.Linear(2, 2)


def test_the_largest_number_is_named() -> None:
    assert largest({"use": "x", "a": [1, [2, 30]], "b": {"c": 7}, "d": True, "e": "999"}, "teacher") == "teacher.a"
    assert largest({"use": "x", "dropout": 0.5}, "teacher") == "teacher"


def test_bytes_of_a_batch() -> None:
    assert bytes_of({"x": torch.randn(3, 10), "item": torch.arange(3), "name": "x"}) == 4 * 30 + 8 * 3


SHORT = ["train.steps=1", "teach.steps=1", "student=mlp:[4]", "teacher=mlp:[8]", "engine.device=cpu", "loggers=[]"]
ABSURD: dict[str, tuple[list[str], str]] = {
    "batch": (["train.batch_size=99999999999"], "train.batch_size: 99,999,999,999 items a step need"),
    "batch that nearly fits": (["train.batch_size=20000000"], "lower train.batch_size (to 3,000,000 or less)"),
    "teacher's batch": (["teach.batch_size=99999999999"], "teach.batch_size: 99,999,999,999 items a step need"),
    "student": (["student=mlp:[10000000000]"], "student.hidden: the network needs 2.56 TB"),
    "teacher": (["teacher=mlp:[8, 10000000000]"], "teacher.hidden: the network needs"),
    "wide": (["student=convnet", "student.width=100000"], "train.batch_size: 50 items a step need"),
    "deep": (
        ["student=convnet", "student.depth=999999999"],
        "student.depth: got 999999999 (int), expected whole number between 1 and 10000",
    ),
    "deep resnet": (["student=cifar-resnet", "student.depth=9000000002"], "expected whole number between 8 and 10000"),
    "pictures": (["task.size=1000000"], "task.size: 1,797 images of 1,000,000 x 1,000,000 pixels need"),
    "loaders": (["engine.workers=10000000"], "engine.workers: 10,000,000 further processes need"),
    "processes": (["engine.devices=1000000"], "engine.devices: 999,999 further processes need"),
}


@pytest.mark.parametrize(("words", "said"), ABSURD.values(), ids=ABSURD.keys())
def test_absurd_sizes_are_refused_before_training(
    words: list[str], said: str, small: None, tmp_path: Path, capsys: Any
) -> None:
    assert cli.main(["run", "kd", *SHORT, *words, "--out", str(tmp_path / "o")]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("limbeck: ") == 1 and "training it" not in out + err


def test_a_network_whose_training_does_not_fit(small: None, tmp_path: Path, capsys: Any) -> None:
    """400 MB of weights fit, 400 MB of gradients beside them too; what the forward pass keeps of 500 items does not."""
    words = ["student={use: convnet, width: 512, depth: 1, pooling: none}", "task.size=64", "train.batch_size=500"]
    assert cli.main(["run", "kd", *SHORT, *words, "--out", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert "train.batch_size: 500 items a step need" in err and "raise engine.accumulate" in err


@pytest.mark.parametrize("words", [["--seeds", "99999999999"], ["--workers", "99999999999"]])
def test_absurd_comparisons(words: list[str], small: None, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["compare", "kd", *SHORT, *words, "--out", str(tmp_path / "o")]) == 2
    assert words[0] in capsys.readouterr().err


def test_memory_that_runs_out_in_the_middle_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def out_of_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr("limbeck.engine.engine.Engine._take", out_of_memory)
    assert cli.main(["run", "kd", *SHORT, "--out", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert "teach.batch_size: the device's memory is exhausted; lower it from" in err and "GiB" not in err
    monkeypatch.undo()
    monkeypatch.setattr("limbeck.run.running.prepare", out_of_memory)
    assert cli.main(["run", "kd", *SHORT, "--out", str(tmp_path / "p")]) == 2
    assert "memory: the device's memory is exhausted; lower train.batch_size" in capsys.readouterr().err
