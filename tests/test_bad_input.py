"""Wrong data, weights, caches, disks and folders, through the command line: status 2, one line, nothing lost.

What is wrong with the words of a command line or the keys of a recipe is in ``test_cli``; this is what shows only when
data are read, networks built and steps taken.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from limbeck import cli
from limbeck.storage import store

TINY = [
    "train.steps=4",
    "train.batch_size=8",
    "teach.steps=2",
    "teacher.hidden=[8]",
    "student.hidden=[4]",
    "engine.device=cpu",
    "loggers=[]",
]
PLAIN = ["student=null", "teacher=null"]
LM = [
    "task.vocab_size=300",
    "task.length=16",
    "teacher={use: causal-lm, layers: 1, width: 16, heads: 2}",
    "student={use: causal-lm, layers: 1, width: 16, heads: 2}",
    "teach.steps=1",
    "teach.batch_size=2",
    "train.steps=2",
    "train.batch_size=2",
    "engine.device=cpu",
    "loggers=[]",
]

USER_CODE = """
import torch
from torch import nn

def poison(batch, ctx):
    if ctx.step == 2:
        batch["x"][1, 0, 0, 0] = float("nan")
    return batch

def spoil(batch, ctx):
    return batch["x"]

def text(student, teacher, batch, ctx):
    return "no term"

def late(student, teacher, batch, ctx):
    return student.logits.sum(1) * (float("nan") if ctx.step == 2 else 1.0)

def infinite(student, teacher, batch, ctx):
    return student.logits.sum(1) / 0.0

def tuple_out():
    class Two(nn.Module):
        def forward(self, x):
            return {"a": 1}
    return Two()

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12))

def wrong_input():
    return nn.Linear(3, 10)

def not_a_module():
    return 7

def nan_teacher():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(net[1].bias, float("nan"))
    return net

def nan_pixels():
    x = torch.rand(40, 1, 4, 4)
    x[3, 0, 1, 1] = float("nan")
    return x, torch.arange(40) % 2

def far_label():
    return torch.rand(40, 1, 4, 4), torch.arange(40) - 1

def several():
    g = torch.Generator().manual_seed(0)
    return torch.rand(60, 1, 4, 4, generator=g), (torch.rand(60, 3, generator=g) < 0.4).float()

def numbers():
    g = torch.Generator().manual_seed(0)
    return torch.rand(60, 1, 4, 4, generator=g), torch.randn(60, 2, generator=g)

def broken():
    raise ValueError("no disk in drive A")
"""


class Evil:
    """Would write a file where unpickled."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch was-executed",))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that can be wrong."""
    root = tmp_path_factory.mktemp("wrong")
    (root / "usercode.py").write_text(USER_CODE)
    (root / "raises.py").write_text("raise RuntimeError('on import')\n")
    mlp = {"fc1.weight": torch.zeros(8, 64), "fc1.bias": torch.zeros(8)}
    ten = {**mlp, "head.weight": torch.zeros(10, 8), "head.bias": torch.zeros(10)}
    twelve = {**mlp, "head.weight": torch.zeros(12, 8), "head.bias": torch.zeros(12)}
    for name, state in {
        "ten": ten,
        "twelve": twelve,
        "other": {"conv.weight": torch.zeros(3, 3)},
        "narrow": {**ten, "fc1.weight": torch.zeros(9, 64), "fc1.bias": torch.zeros(9)},
        "nan": {**ten, "head.bias": torch.full((10,), float("nan"))},
    }.items():
        (root / name).mkdir()
        save_file(state, str(root / name / "w.safetensors"))
    whole = (root / "ten" / "w.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "blank.safetensors").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(root / "picture.png")
    (root / "picture.safetensors").write_bytes((root / "picture.png").read_bytes())
    torch.save(nn.Linear(2, 2), root / "module.pt")
    (root / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": {"x": Evil()}}, root / "evil2.pt")
    (root / "twelve" / "labels.json").write_text(json.dumps([f"c{i}" for i in range(12)]))
    (root / "names.json").write_text(json.dumps([str(i) for i in range(9)]))
    (root / "names-twice.json").write_text(json.dumps([str(i % 9) for i in range(10)]))
    (root / "names-broken.json").write_text('["0", "1"')
    # folders of images
    (root / "nothing").mkdir()
    for folder, classes in {"one-class": 1, "pictures": 2, "corrupt": 2, "sizes": 2, "few": 2}.items():
        for c in range(classes):
            (root / folder / f"c{c}").mkdir(parents=True)
            for i in range(1 if folder == "few" else 8):
                side = 8 if folder != "sizes" or i else 6
                Image.fromarray(np.full((side, side, 3), 20 * i + c, np.uint8)).save(
                    root / folder / f"c{c}" / f"{i}.png"
                )
    (root / "corrupt" / "c1" / "3.png").write_bytes((root / "corrupt" / "c1" / "4.png").read_bytes()[:40])
    (root / "corrupt" / "c0" / "5.jpg").write_text("<html>404</html>")
    # tables
    rows = [f"{i % 7},{i % 3},{'ab'[i % 2]}" for i in range(40)]
    (root / "fine.csv").write_text("p,q,label\n" + "\n".join(rows) + "\n")
    (root / "head.csv").write_text("p,q,label\n")
    (root / "empty.csv").write_text("")
    (root / "ragged.csv").write_text("p,q,label\n1,2,a\n1,2,3,4,b\n")
    (root / "same.csv").write_text("p,q,label\n" + "\n".join("1,2,a" for _ in range(20)) + "\n")
    (root / "gap.csv").write_text("p,q,label\n" + "\n".join([*rows, ",1,a"]) + "\n")
    (root / "lines.jsonl").write_text('{"p": 1, "label": "a"}\n{"p": 2, "label": \n')
    np.savez(root / "objects.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    np.savez(root / "lengths.npz", x=np.zeros((30, 4, 4)), y=np.zeros(20, np.int64))
    (root / "file").write_text("I am no folder")
    (root / "text.txt").write_text("")
    _models(root)
    return root


def _models(root: Path) -> None:
    """Two tiny causal language models as a library saves them, with tokenizers that differ."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    for name, words in {"words-a": "a b c d e f", "words-b": "c a b q r s t"}.items():
        vocabulary = {w: i for i, w in enumerate(["<unk>", "<end>", *words.split()])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
        )
        fast.save_pretrained(root / name)
        config = GPT2Config(vocab_size=len(vocabulary), n_positions=32, n_embd=8, n_layer=1, n_head=2)
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(root / name)


@pytest.fixture(scope="module")
def ready(place: Path, shared_workspace: Path) -> Path:
    """The folder with a finished run and a cache in it."""
    before, os.environ["LIMBECK_WORKSPACE"] = os.environ.get("LIMBECK_WORKSPACE"), str(shared_workspace)
    here = Path.cwd()
    os.chdir(place)
    try:
        assert cli.main(["run", "kd", *TINY, "engine.save_every=1", "--out", "done"]) == 0
        assert cli.main(["cache", "kd", *TINY, "--yes", "--out", "cache"]) == 0
    finally:
        os.chdir(here)
        if before is None:
            del os.environ["LIMBECK_WORKSPACE"]
        else:
            os.environ["LIMBECK_WORKSPACE"] = before
    return place


@pytest.fixture
def here(ready: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In that folder; nothing may be executed there that was only to be read."""
    monkeypatch.chdir(ready)
    monkeypatch.syspath_prepend(str(ready))
    monkeypatch.setattr("limbeck.engine.interrupt.install", lambda: None)
    monkeypatch.setenv("TMPDIR", str(ready))
    for name in ("RANK", "LOCAL_RANK", "LIMBECK_STATUS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield ready
    assert not (ready / "was-executed").exists()


def last_said(words: list[str]) -> list[str]:
    """Without settings of what a later word replaces: a case begins with settings that shrink the recipe's own parts."""
    chosen = [w.partition("=")[0] for w in words]
    return [w for i, w in enumerate(words) if not any(chosen[i].startswith(f"{c}.") for c in chosen[i + 1 :])]


def refused(words: list[str], capsys: Any) -> str:
    """The one line on standard error of a command that must end with status 2."""
    capsys.readouterr()
    status = cli.main(words)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("limbeck: ")]
    assert status == 2, f"status {status}: {out}{err}"
    assert "Traceback" not in out + err
    assert len(lines) == 1 and err.endswith(lines[0] + "\n"), err
    said = lines[0].removeprefix("limbeck: ")
    argument, _, rest = said.partition(": ")
    assert argument and rest, said
    return said


CLASSIFY = "task={use: classification, data: '%s'}"
CHECKPOINT = "teacher={use: mlp, hidden: [8], checkpoint: %s}"


def data(text: str, *more: str) -> list[str]:
    """A recipe on other data."""
    return ["kd", *TINY, CLASSIFY % text, *more]


WRONG: dict[str, tuple[list[str], list[str]]] = {
    # taps and objectives
    "tap of the student": (
        ["kd", *TINY, "objectives.hint={use: feature, student: act9, teacher: act1}"],
        ["tap 'act9'", "did you mean", "'act1'"],
    ),
    "tap of the teacher": (
        ["kd", *TINY, "objectives.hint={use: feature, student: act1, teacher: layer4}"],
        ["tap 'layer4'", "no module of that name", "fc1"],
    ),
    "tap of a method": (["uskd", *TINY, "teacher=null", "method.feature=stage3"], ["tap 'stage3'"]),
    "widths that differ": (
        ["kd", *TINY, "objectives.hint={use: feature, student: act1, teacher: act1, project: never}"],
        ["objectives.hint", "widths 4 and 8 differ", "project=auto"],
    ),
    "add-on named like a term": (["kd", *TINY, "objectives.kl=kl"], ["objectives.kl", "already has a term"]),
    "add-on without a teacher": (
        ["uskd", *TINY, "teacher=null", "objectives.x=kl"],
        ["objectives.x", "needs a teacher"],
    ),
    "objective that returns text": (
        ["kd", *TINY, "objectives.mine=import:usercode:text"],
        ["objectives.mine", "got 'str'", "a Term"],
    ),
    "objective that is infinite": (
        ["kd", *TINY, "objectives.mine=import:usercode:infinite"],
        ["step 0", "term mine", "nothing was updated"],
    ),
    # the user's own code
    "query that returns no batch": (["kd", *TINY, "queries.q=import:usercode:spoil"], ["queries", "got 'Tensor'"]),
    "query of no module": (
        ["kd", *TINY, "queries.q=import:nowhere:q"],
        ["queries.q.function", "no module 'nowhere' is found"],
    ),
    "query of no name": (["kd", *TINY, "queries.q=import:usercode:poisn"], ["queries.q", "did you mean 'poison'"]),
    "query whose module raises": (
        ["kd", *TINY, "queries.q=import:raises:q"],
        ["importing 'raises' failed", "on import"],
    ),
    "query for images on rows": (
        data("csv:fine.csv", "queries.q=flip"),
        ["queries.q", "expected batches of images"],
    ),
    "student that is no module": (["kd", *TINY, "student=import:usercode:not_a_module"], ["student.function", "int"]),
    "student for another input": (
        ["kd", *TINY, "student=import:usercode:wrong_input"],
        ["fails on the task's items", "[2, 1, 8, 8]"],
    ),
    "student with other outputs": (["kd", *TINY, "student=import:usercode:wide"], ["12", "10"]),
    "student that answers a mapping": (["kd", *TINY, "student=import:usercode:tuple_out"], ["logits"]),
    "source that raises": (data("import:usercode:broken"), ["data", "no disk in drive A"]),
    # weights
    "no checkpoint": (["kd", *TINY, CHECKPOINT % "gone.safetensors"], ["gone.safetensors"]),
    "folder as a checkpoint": (["kd", *TINY, CHECKPOINT % "nothing"], ["nothing"]),
    "truncated checkpoint": (["kd", *TINY, CHECKPOINT % "cut.safetensors"], ["cut.safetensors"]),
    "blank checkpoint": (["kd", *TINY, CHECKPOINT % "blank.safetensors"], ["blank.safetensors"]),
    "image as a checkpoint": (["kd", *TINY, CHECKPOINT % "picture.safetensors"], ["picture.safetensors"]),
    "pickled module": (["kd", *TINY, CHECKPOINT % "module.pt"], ["module.pt"]),
    "pickled attack": (["kd", *TINY, CHECKPOINT % "evil.pt"], ["evil.pt"]),
    "pickled attack inside": (["kd", *TINY, CHECKPOINT % "evil2.pt"], ["evil2.pt"]),
    "another architecture": (
        ["kd", *TINY, CHECKPOINT % "other/w.safetensors"],
        ["other/w.safetensors", "fc1.weight", "conv.weight"],
    ),
    "another width": (["kd", *TINY, CHECKPOINT % "narrow/w.safetensors"], ["narrow/w.safetensors", "fc1"]),
    "teacher that is NaN": (["kd", *TINY, CHECKPOINT % "nan/w.safetensors"], ["teacher", "not finite", "NaN"]),
    "teacher that is NaN, not tried": (
        ["kd", *TINY, CHECKPOINT % "nan/w.safetensors", "teacher.check=off"],
        ["term kl", "step 0"],
    ),
    # classes
    "teacher with more classes": (
        ["kd", *TINY, CHECKPOINT % "twelve/w.safetensors"],
        ["c0"],
    ),
    "fewer names than outputs": (
        ["kd", *TINY, "teacher={use: mlp, hidden: [8], checkpoint: ten/w.safetensors, labels: names.json}"],
        ["teacher.labels", "9 names for 10 outputs"],
    ),
    "names twice": (
        ["kd", *TINY, "teacher={use: mlp, hidden: [8], checkpoint: ten/w.safetensors, labels: names-twice.json}"],
        ["named twice: 0"],
    ),
    "names that are no JSON": (
        ["kd", *TINY, "teacher={use: mlp, hidden: [8], checkpoint: ten/w.safetensors, labels: names-broken.json}"],
        ["names-broken.json"],
    ),
    "run of other classes as teacher": (data("folder:pictures", "teacher=run:done"), ["classes"]),
    # data
    "no folder": (data("folder:gone"), ["gone"]),
    "empty folder": (data("folder:nothing"), ["nothing"]),
    "one class": (data("folder:one-class"), ["one class", "'c0'", "at least two classes"]),
    "one item a class": (data("folder:few"), ["divided"]),
    "corrupt images": (data("folder:corrupt"), ["3.png", "5.jpg", "bad_files=skip"]),
    "images of two sizes": (data("folder:sizes"), ["size"]),
    "NaN pixels": (data("import:usercode:nan_pixels"), ["NaN", "items 0"]),
    "negative class": (data("import:usercode:far_label"), ["-1"]),
    "no table": (data("csv:gone.csv"), ["gone.csv"]),
    "empty table": (data("csv:empty.csv"), ["empty.csv"]),
    "table of a header": (data("csv:head.csv"), ["head.csv"]),
    "ragged table": (data("csv:ragged.csv"), ["ragged.csv", "3"]),
    "table of one class": (data("csv:same.csv"), ["one class"]),
    "table with a gap": (data("csv:gap.csv"), ["p"]),
    "no such column": (
        ["kd", *TINY, "task={use: classification, data: {use: csv, path: fine.csv, label: lable}}"],
        ["lable", "label"],
    ),
    "line that is no JSON": (data("jsonl:lines.jsonl"), ["lines.jsonl", "2"]),
    "arrays of objects": (data("arrays:objects.npz"), ["objects.npz"]),
    "arrays of two lengths": (data("arrays:lengths.npz"), ["30", "20"]),
    "no such torchvision set": (data("torchvision:CIFAR11"), ["CIFAR11", "CIFAR10"]),
    "torchvision set that is not there": (data("torchvision:CIFAR10"), ["CIFAR10"]),
    "more items than there are": (["kd", *TINY, "task.student_items=5000"], ["task.student_items", "5000"]),
    # methods and what they are for
    "several labels with NKD": (
        ["nkd", *TINY, CLASSIFY % "import:usercode:several"],
        ["method", "one label per item", "method=kd"],
    ),
    "numbers with NKD": (["nkd", *TINY, CLASSIFY % "import:usercode:numbers"], ["method", "one label per item"]),
    "numbers with USKD": (
        ["uskd", *TINY, "teacher=null", CLASSIFY % "import:usercode:numbers"],
        ["method", "one label per item"],
    ),
    "TAID on images": (["taid", *TINY, *PLAIN, "task=classification"], ["for language", "task=language"]),
    "MTT on text": (
        ["mtt", "task={use: language, vocab_size: 300, length: 16}", "student=causal-lm", "engine.device=cpu"],
        ["task", "condensation"],
    ),
    "mlp for text": (["taid", *LM, "student=mlp"], ["student: Language needs language models", "causal-lm"]),
    "text for a classifier": (
        ["kd", *TINY, PLAIN[0], "student=causal-lm"],
        ["student: Classification needs classifiers", "mlp"],
    ),
    # language
    "tokenizers that differ": (
        ["taid", *LM, "teacher=hf:words-a", "student=hf:words-b", "task.tokenizer=words-b"],
        ["tokenizer"],
    ),
    "vocabularies that differ": (["taid", *LM, "teacher=hf:words-a", "student=hf:words-b"], ["words-a", "words-b"]),
    "no such model": (["taid", *LM, "teacher=hf:nowhere/at-all"], ["nowhere/at-all"]),
    "no text": (["taid", *LM, "task.data=text:text.txt"], ["text"]),
    "no text file": (["taid", *LM, "task.data=text:gone.txt"], ["gone.txt"]),
    # caches
    "no cache": (["kd", *TINY, "teacher=cached:gone"], ["gone", "no finished cache", "limbeck cache"]),
    "cache of another seed": (["kd", *TINY, "teacher=cached:cache", "--seed", "3"], ["cache", "other training items"]),
    "cache of other data": (data("csv:fine.csv", "teacher=cached:cache"), ["cache", "other training items"]),
    "cache of another teacher": (
        ["kd", *TINY, "teacher={use: cached, path: cache, fingerprint: abc}"],
        ["teacher.fingerprint", "another teacher"],
    ),
    "cache under augmentation": (
        ["kd", *TINY, "teacher=cached:cache", "queries.q=flip"],
        ["cache", "not those that were recorded"],
    ),
    "feature that was not recorded": (
        ["kd", *TINY, "teacher=cached:cache", "objectives.h={use: feature, student: act1, teacher: act1}"],
        ["cache", "act1", "not recorded"],
    ),
    # settings that meet the machine
    "batch smaller than its parts": (
        ["kd", *TINY, "engine.accumulate=9"],
        ["train.batch_size", "8 items", "at least 9"],
    ),
    "unknown option of an optimiser": (["kd", *TINY, "train.options={bets: [0.9, 0.99]}"], ["options", "bets"]),
    "option out of range": (["kd", *TINY, "train.options={eps: -1}"], ["options", "eps"]),
    "optimiser that needs more": (["kd", *TINY, "train.optimizer=lbfgs"], ["train.optimizer", "'lbfgs' is unknown"]),
    "no such device": (["kd", *TINY, "engine.device=banana"], ["engine.device", "'banana'"]),
    "role that is not there": (["kd", *TINY, "engine.shard=[techer]"], ["engine.shard", "did you mean 'teacher'"]),
    "no such timm model": (["kd", *TINY, "student=timm:resnet81"], ["resnet81"]),
    "no such torchvision model": (["kd", *TINY, "student=torchvision:resnet81"], ["resnet81"]),
    "unknown logger": (["kd", *TINY, "loggers=[cvs]"], ["cvs", "csv"]),
    "unknown export": (["kd", *TINY, "export=[onxx]"], ["onxx", "onnx"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_in_one_line(case: str, here: Path, tmp_path: Path, capsys: Any) -> None:
    words, parts = WRONG[case]
    if any("cuda" in w for w in words) and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    said = refused(["run", *last_said(words), "--out", str(tmp_path / "out")], capsys)
    for part in parts:
        assert part in said, said
    assert not (tmp_path / "out" / "result.json").exists()
    assert not list((tmp_path / "out").glob("student*"))


def test_no_cuda_is_said(here: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = refused(["run", "kd", *TINY, "engine.device=cuda", "--out", str(tmp_path / "o")], capsys)
    assert "engine.device: torch sees no CUDA device" in said and "engine.device=cpu" in said


def test_classes_in_another_order_are_matched_by_name(here: Path, tmp_path: Path, capsys: Any) -> None:
    state = store.load_foreign(here / "done" / "student.safetensors")
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    turned = {k: v[order].clone() if k.startswith("head") else v.clone() for k, v in state.items()}
    (tmp_path / "turned").mkdir()
    save_file(turned, str(tmp_path / "turned" / "w.safetensors"))
    about = json.loads((here / "done" / "student.json").read_text())
    about["labels"] = [about["labels"][i] for i in order]
    (tmp_path / "turned" / "student.json").write_text(json.dumps(about))
    scores = []
    for i, path in enumerate((here / "done" / "student.safetensors", tmp_path / "turned" / "w.safetensors")):
        teacher = f"teacher={{use: mlp, hidden: [4], checkpoint: {path}, check: off}}"
        assert cli.main(["run", "kd", *last_said([*TINY, teacher]), "--out", str(tmp_path / f"o{i}")]) == 0
        scores.append(json.loads((tmp_path / f"o{i}" / "result.json").read_text())["metrics"])
    for who in ("teacher", "student"):  # rows in another order may be summed in another order
        assert scores[0][who] == pytest.approx(scores[1][who], rel=1e-5)


# ------------------------------------------------------------------------------------------------ NaN in the middle
def test_nan_at_a_step_names_it_and_loses_nothing(here: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "o"
    words = ["run", "kd", *TINY, "objectives.o=import:usercode:late", "engine.save_every=1", "--out", str(out)]
    said = refused(words, capsys)
    for part in ("stage distil", "step 2", "term o;", "role 'student'", "items", "train.lr", str(out / "failure")):
        assert part in said, said
    kept = store.load_tree(out / "failure")
    assert kept["step"] == 2 and len(kept["batches"][0]["x"]) == 8
    assert store.Checkpoints(out / "checkpoints").latest()[0] == 2  # type: ignore[index]
    assert "step 2" in refused(words, capsys), "the same command goes on from there and meets it again"


def test_nan_in_a_query_is_met_at_its_step(here: Path, tmp_path: Path, capsys: Any) -> None:
    said = refused(["run", "kd", *TINY, "queries.q=import:usercode:poison", "--out", str(tmp_path / "o")], capsys)
    for part in ("stage distil", "step 2", "term ce", "the batch itself is not finite in ['x']", "failure"):
        assert part in said, said


# ----------------------------------------------------------------------------------------------- checkpoints and runs
def copied(ready: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(ready / "done", tmp_path / "run"))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(bytes(raw))


def test_every_checkpoint_damaged(here: Path, tmp_path: Path, capsys: Any) -> None:
    run = copied(here, tmp_path)
    (run / "result.json").unlink()
    for step in (run / "checkpoints").iterdir():
        flip(step / "tensors.safetensors")
    words = ["run", "kd", *TINY, "engine.save_every=1", "--out", str(run)]
    said = refused(words, capsys)
    assert "altered" in said and f"delete {run / 'checkpoints'}" in said
    said = refused(["export", str(run)], capsys)
    assert "checkpoints" in said


def test_the_newest_checkpoint_damaged_is_passed_over(here: Path, tmp_path: Path, capsys: Any) -> None:
    run = copied(here, tmp_path)
    (run / "result.json").unlink()
    steps = sorted((run / "checkpoints").iterdir())
    flip(steps[-1] / "tensors.safetensors")
    assert cli.main(["run", "kd", *TINY, "engine.save_every=1", "--out", str(run)]) == 0
    mine, first = (store.load_foreign(r / "student.safetensors") for r in (run, here / "done"))
    assert all(torch.equal(mine[k], first[k]) for k in first)


@pytest.mark.parametrize("command", ["run", "report", "export"])
def test_a_damaged_result(command: str, here: Path, tmp_path: Path, capsys: Any) -> None:
    run = copied(here, tmp_path)
    (run / "result.json").write_text('{"recipe": "kd", "metr')
    words = ["run", "kd", *TINY, "engine.save_every=1", "--out", str(run)] if command == "run" else [command, str(run)]
    assert "result.json" in refused(words, capsys)


def test_a_damaged_configuration(here: Path, tmp_path: Path, capsys: Any) -> None:
    run = copied(here, tmp_path)
    (run / "config.yaml").write_text("task: {use: classification\n")
    assert "config.yaml" in refused(["export", str(run)], capsys)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--format", "onxx"], ["--format", "did you mean 'onnx'"]),
        (["--format", "images"], ["--format", "the task classification"]),
        (["--checkpoint", "99"], ["--checkpoint", "99", "one of"]),
        (["--checkpoint", "latest"], ["--checkpoint", "'latest'"]),
        (["--checkpoint", "elsewhere/checkpoints/step-00000004"], ["--checkpoint", "elsewhere"]),
        (["--out", "file"], ["file", "is a file"]),
        (["--out", "file/below"], ["file/below"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_exports_refused(options: list[str], parts: list[str], here: Path, capsys: Any) -> None:
    said = refused(["export", "done", *options], capsys)
    for part in parts:
        assert part in said, said


def test_a_run_without_a_checkpoint(here: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_bytes((here / "done" / "config.yaml").read_bytes())
    assert "no checkpoint yet" in refused(["export", str(tmp_path / "r")], capsys)
    assert "result.json" in refused(["report", str(tmp_path / "r")], capsys)


# -------------------------------------------------------------------------------------------------------------- caches
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["kd", *TINY], ["--yes", "kB"]),
        (["kd", *TINY, "--yes", "--top", "10"], ["--top", "10", "between 1 and 9"]),
        (["uskd", *TINY, "--yes"], ["no teacher to record"]),
        (["kd", *TINY, "--yes", "queries.q=noise"], ["queries.q", "leave it out"]),
        (["kd", *TINY, "--yes", "queries.q=flip", "--views", "2"], ["queries.q.views=2"]),
        (["kd", *TINY, "--yes", "--feature", "act7"], ["tap 'act7'", "act1"]),
        (["kd", *TINY, "--yes", "teacher=import:usercode:nan_teacher"], ["teacher", "not finite"]),
        (["kd", *TINY, "--yes", "task.student_items=50", "--out", "cache"], ["cache", "another recording"]),
        (["kd", *TINY, "--yes", "--out", "file"], ["file", "is a file"]),
    ],
    ids=lambda v: " ".join(v).replace(" ".join(TINY), "") if isinstance(v, list) else None,
)
def test_recordings_refused(words: list[str], parts: list[str], here: Path, tmp_path: Path, capsys: Any) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "c")]
    said = refused(["cache", *last_said(words), *out], capsys)
    for part in parts:
        assert part in said, said
    assert not (tmp_path / "c" / "about").exists()


def test_a_recorded_feature_serves_an_add_on(here: Path, tmp_path: Path, capsys: Any) -> None:
    """The counterpart of those refused: what was recorded is found by whoever asks for it."""
    cache = str(tmp_path / "c")
    assert cli.main(["cache", "kd", *TINY, "--yes", "--feature", "act1", "--out", cache]) == 0
    hint = "objectives.h={use: feature, student: act1, teacher: act1}"
    ends = []
    for name, teacher in (("online", []), ("recorded", [f"teacher=cached:{cache}"])):
        assert cli.main(["run", "kd", *last_said([*TINY, hint, *teacher]), "--out", str(tmp_path / name)]) == 0
        ends.append(store.load_foreign(tmp_path / name / "student.safetensors"))
    for k, v in ends[0].items():
        assert torch.allclose(v, ends[1][k], atol=1e-3), k


@pytest.mark.parametrize("how", ["shard", "about", "missing", "unfinished"])
def test_damaged_recordings(how: str, here: Path, tmp_path: Path, capsys: Any) -> None:
    import shutil

    cache = Path(shutil.copytree(here / "cache", tmp_path / "cache"))
    shard = next(cache.glob("shard-*"))
    if how == "shard":
        flip(shard / "logits.npy")
    elif how == "about":
        flip(cache / "about" / "tree.json")
    elif how == "missing":
        shutil.rmtree(shard)
    else:
        shutil.rmtree(cache / "about")
    said = refused(["run", "kd", *TINY, f"teacher=cached:{cache}", "--out", str(tmp_path / "o")], capsys)
    assert "cache" in said


# ------------------------------------------------------------------------------------------------- disks and folders
def test_a_full_disk_keeps_the_earlier_checkpoint(
    here: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    words = ["run", "kd", *TINY, "engine.save_every=1", "--out", str(out)]
    real, calls = store.save_tree, [0]

    def full(folder: Any, tree: Any) -> str:
        if "checkpoints" in str(folder):
            calls[0] += 1
            if calls[0] == 3:
                raise store.StorageError(str(folder), "No space left on device", remedy="free some space")
        return real(folder, tree)

    monkeypatch.setattr("limbeck.storage.store.save_tree", full)
    said = refused(words, capsys)
    assert "No space left on device" in said and "free some space" in said
    assert store.Checkpoints(out / "checkpoints").steps() == [1, 2]
    monkeypatch.setattr("limbeck.storage.store.save_tree", real)
    assert cli.main(words) == 0
    mine, whole = (store.load_foreign(r / "student.safetensors") for r in (out, here / "done"))
    assert all(torch.equal(mine[k], whole[k]) for k in whole)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "is read-only"),
        (errno.EIO, "input/output error"),
    ],
)
def test_a_disk_that_refuses(
    number: int, text: str, here: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls = [0]

    def fails(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 12:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fails)
    said = refused(["run", "kd", *TINY, "engine.save_every=1", "--out", str(tmp_path / "o")], capsys)
    assert text in said and "--out DIR" in said


def test_a_full_disk_under_the_log(here: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Any, *rest: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr("limbeck.report.write_report", full)
    said = refused(["run", "kd", *TINY, "--out", str(tmp_path / "o")], capsys)
    assert "No space left" in said and "--out" in said
    assert (tmp_path / "o" / "student.safetensors").is_file(), "what was made stays"


@pytest.mark.parametrize("out", ["file", "file/below", "/dev/null/x", "/proc/limbeck"])
def test_folders_that_cannot_be(out: str, here: Path, capsys: Any) -> None:
    assert out in refused(["run", "kd", *TINY, "--out", out], capsys)


def test_a_workspace_that_cannot_be(here: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(here / "file"))
    assert str(here / "file") in refused(["run", "kd", *TINY, "--out", str(tmp_path / "o")], capsys)


def test_another_run_in_the_folder(here: Path, tmp_path: Path, capsys: Any) -> None:
    said = refused(["run", "kd", *TINY, "method.temperature=2", "--out", "done"], capsys)
    assert "another configuration" in said and "--force" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all my work")
    said = refused(["run", "kd", *TINY, "--out", str(tmp_path / "mine")], capsys)
    assert "not empty" in said and (tmp_path / "mine" / "thesis.tex").read_text() == "all my work"


def test_two_runs_into_one_folder(here: Path, tmp_path: Path, capsys: Any) -> None:
    code = (
        "import sys, time\nfrom limbeck.storage.store import RunLock\n"
        "RunLock(sys.argv[1]).acquire()\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "o")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for words in (["run", "kd", *TINY, "--force"], ["cache", "kd", *TINY, "--yes"], ["compare", "kd", *TINY]):
            said = refused([*words, "--out", str(tmp_path / "o")], capsys)
            assert str(holder.pid) in said, said
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------------- comparisons
def test_comparisons_refused(here: Path, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "c"), "--seeds", "1"]
    said = refused(["compare", "kd", "taid", *out], capsys)
    assert "not on the same task" in said and "task.data" in said
    said = refused(["compare", "kd", *TINY, "task.student_items=5000", *out], capsys)
    assert "no run finished" in said and "5000" in said
    assert not (tmp_path / "c" / "comparison.json").exists()


def test_plans_refused(here: Path, capsys: Any) -> None:
    assert "gone.csv" in refused(["plan", *data("csv:gone.csv")], capsys)
    assert "options" in refused(["plan", "kd", *TINY, "train.options={bets: 1}"], capsys)
    assert "tap" in refused(["plan", "kd", *TINY, "objectives.h={use: feature, student: x, teacher: act1}"], capsys)
