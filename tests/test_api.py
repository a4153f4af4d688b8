"""The Python door: modules, arrays and data sets that the caller holds."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import limbeck
from limbeck.data.items import ArrayData
from limbeck.errors import ConfigError, DataError, LimbeckError, TeacherMismatch


def things() -> tuple[nn.Sequential, nn.Sequential, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x[:300]).float().div(16).reshape(-1, 1, 8, 8)
    torch.manual_seed(0)
    net = lambda h: nn.Sequential(nn.Flatten(), nn.Linear(64, h), nn.ReLU(), nn.Linear(h, 10))  # noqa: E731
    return net(16), net(8), x, torch.tensor(y[:300])


def test_modules_and_arrays(tmp_path: Path) -> None:
    teacher, student, x, y = things()
    before = [p.detach().clone() for p in (*teacher.parameters(), *student.parameters())]
    done = limbeck.distill(teacher, student, (x, y), "nkd", out=tmp_path / "run", steps=5, batch_size=16, quiet=True)
    assert set(done.metrics) == {"teacher", "student", "alone"} and done.report.is_file()
    assert done.rows == {name: done.metrics[name] for name in ("student", "teacher", "alone")}
    assert isinstance(done.student, nn.Module) and not done.student.training
    assert done.student(x[:2]).shape == (2, 10)
    after = (*teacher.parameters(), *student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the caller's modules stay as they were"
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), done.student.parameters(), strict=True))


def test_a_teacher_comes_back_in_its_own_mode(tmp_path: Path) -> None:
    teacher, student, x, y = things()
    first, *others = teacher.parameters()
    first.requires_grad_(False)
    teacher[3].eval()
    limbeck.distill(teacher, student, (x, y), "kd", out=tmp_path / "run", steps=2, batch_size=16, quiet=True)
    assert not first.requires_grad and all(p.requires_grad for p in others)
    assert [m.training for m in teacher.modules()] == [True, True, True, True, False]


def test_a_dataset_with_numbers_and_one_with_several_labels(tmp_path: Path) -> None:
    _, _, x, y = things()
    pairs = torch.utils.data.TensorDataset(x, y.float()[:, None] / 9)
    net = lambda k: nn.Sequential(nn.Flatten(), nn.Linear(64, k))  # noqa: E731
    done = limbeck.distill(net(1), net(1), pairs, "kd", out=tmp_path / "a", steps=3, batch_size=16, quiet=True)
    assert "rmse" in done.metrics["student"]
    several = torch.nn.functional.one_hot(y, 10).float()
    several[::2, 0] = 1.0  # else it would be one class an item
    done = limbeck.distill(net(10), net(10), (x, several), "kd", out=tmp_path / "b", steps=3, batch_size=16, quiet=True)
    assert "f1" in done.metrics["student"]


def test_what_does_not_fit_is_said_before_training() -> None:
    teacher, student, x, y = things()
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        limbeck.distill(teacher, student, (x, y), "kd", stepz=3)
    with pytest.raises(DataError, match="one target an input"):
        limbeck.distill(teacher, student, (x, y[:-1]), "kd", steps=3, quiet=True)
    with pytest.raises(DataError, match="a source's name"):
        limbeck.distill(teacher, student, 7, "kd", steps=3, quiet=True)
    with pytest.raises(LimbeckError):
        limbeck.distill(nn.Linear(3, 10), student, (x, y), "kd", steps=3, quiet=True)
    with pytest.raises(LimbeckError, match="nkdd"):
        limbeck.distill(teacher, student, (x, y), "nkdd")


def test_the_recipe_s_subset_is_not_taken_of_the_caller_s_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.tasks.classification import Classification

    seen: list[int] = []
    load = Classification.load

    def watched(self: Classification, seed: int | None = None) -> None:
        load(self, seed)
        seen.append(len(self.train))

    monkeypatch.setattr(Classification, "load", watched)
    teacher, student, x, y = things()
    given = (x[:250], y[:250], x[250:], y[250:])
    limbeck.distill(teacher, student, given, "kd", steps=1, out=tmp_path / "all", quiet=True)
    assert not (tmp_path / "all" / "config.yaml").read_text().count("no longer applies")  # its teacher was given
    few = {"use": "classification", "student_items": 30}
    limbeck.distill(teacher, student, given, "kd", steps=1, task=few, out=tmp_path / "few", quiet=True)
    assert max(seen) == 225 and min(seen) == 30  # a tenth is set aside to choose by; the recipe's own number is 200


def test_what_the_user_keeps_in_the_folder_stays(tmp_path: Path) -> None:
    teacher, student, x, y = things()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "years.txt").write_text("of work")
    (tmp_path / "students.csv").write_text("a,b")
    for _ in range(2):  # the second replaces the first
        limbeck.distill(teacher, student, (x, y), "kd", steps=1, out=tmp_path, quiet=True)
        assert (tmp_path / "result.json").is_file()
    assert (tmp_path / "thesis" / "years.txt").is_file() and (tmp_path / "students.csv").is_file()


def test_the_caller_s_generators_stay_as_they_were(tmp_path: Path) -> None:
    """Torch's, NumPy's and Python's: after a run, and after one that was refused or that fails on the way."""
    teacher, student, x, y = things()
    spoilt = x.clone()
    spoilt[:, :, 0, 0] = 1e38
    tries = [(x, "kd", {}), (spoilt, "kd", {"lr": 1e30}), (x, "kd", {"stepz": 1})]
    for i, (given, method, settings) in enumerate(tries):
        drawn = []
        for call in (False, True):
            torch.manual_seed(i), np.random.seed(i), random.seed(i)
            if call:
                with contextlib.suppress(LimbeckError):
                    limbeck.distill(
                        teacher, student, (given, y), method, steps=2, out=tmp_path / str(i), quiet=True, **settings
                    )
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
        assert drawn[0] == drawn[1]


def test_the_inner_loop_leaves_the_caller_s_generators() -> None:
    _, student, x, y = things()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    loss = lambda net, batch, ctx: nn.functional.cross_entropy(net(batch["x"]), batch["y"])  # noqa: E731
    limbeck.fit(student, ArrayData(x, y), loss, limbeck.Optim(steps=2, batch_size=8), seed=0, scope="mine")
    assert torch.equal(torch.rand(1), expected)


def test_one_object_as_teacher_and_student_is_refused_with_the_copy_to_make() -> None:
    teacher, _, x, y = things()
    with pytest.raises(ConfigError, match=r"same object as the teacher \(4 tensors\).*student=copy\.deepcopy"):
        limbeck.distill(teacher, teacher, (x, y), "kd", steps=1, quiet=True)
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), teacher[3])
    with pytest.raises(ConfigError, match=r"shares 2 tensors with the teacher: '3\.weight', '3\.bias'"):
        limbeck.distill(teacher, mixed, (x, y), "kd", steps=1, quiet=True)


def test_a_frozen_body_may_be_shared_and_keeps_its_statistics(tmp_path: Path) -> None:
    """BatchNorm of frozen weights stands still, unless the setting lets it follow the data."""
    _, _, x, y = things()
    body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False))
    body.requires_grad_(False)
    teacher = nn.Sequential(body, nn.Linear(8, 10))
    student = nn.Sequential(body, nn.BatchNorm1d(8), nn.Linear(8, 10))
    first = {k: v.clone() for k, v in student.state_dict().items()}
    moved = {}
    for keep in (True, False):
        done = limbeck.distill(
            teacher, student, (x, y), "kd", steps=3, keep_statistics=keep, out=tmp_path / str(keep), quiet=True
        )
        moved[keep] = {k for k, v in done.student.state_dict().items() if not torch.equal(v, first[k])}
        assert any("2 layers with frozen weights keep" in n for n in done.result["notes"]) is keep
    own = {f"1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert moved[True] == own | {"2.weight", "2.bias"}
    stats = {f"0.{i}.{k}" for i in (1, 3) for k in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved[False] == moved[True] | stats
    assert all(torch.equal(v, first[k]) for k, v in student.state_dict().items())


def test_a_student_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    teacher, student, x, y = things()
    with pytest.raises(ConfigError, match=r"all of its parameters are frozen.*requires_grad_\(True\)"):
        limbeck.distill(teacher, student.requires_grad_(False), (x, y), "kd", steps=1, out=tmp_path, quiet=True)


def test_a_teacher_s_own_order_of_classes(tmp_path: Path) -> None:
    teacher, student, x, y = things()
    opt = torch.optim.Adam(teacher.parameters(), 0.02)
    for _ in range(60):  # its outputs count down
        opt.zero_grad()
        nn.functional.cross_entropy(teacher(x), 9 - y).backward()
        opt.step()

    def run(name: str, **how: Any) -> limbeck.api.Distilled:
        given = {"out": tmp_path / name, "steps": 2, "batch_size": 16, "quiet": True, **how}
        return limbeck.distill(teacher, student, (x, y), "kd", **given)

    with pytest.raises(TeacherMismatch, match=r"set teacher_labels=\[9,8,7,6,5,4,3,2,1,0\], or check=off"):
        run("refused")
    done = run("named", teacher_labels=list("9876543210"))
    assert done.metrics["teacher"]["accuracy"] > 0.8
    assert any(note.startswith("teacher: right on ") for note in done.result["notes"])
    assert run("unchecked", check="off").metrics["teacher"]["accuracy"] < 0.2


def test_the_student_that_comes_back_carries_no_hooks(tmp_path: Path) -> None:
    import copy
    import pickle

    done = limbeck.distill(
        teacher="mlp:[8]", student="mlp:[6]", data="digits", steps=2, quiet=True, out=tmp_path / "run",
        overrides=["objectives={hint: {use: feature, student: fc1, teacher: fc1}}"],
    )  # fmt: skip
    assert not any(m._forward_hooks for m in done.student.modules())
    assert len(pickle.dumps(done.student)) and copy.deepcopy(done.student)


def flat(n: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n))


def short(tmp_path: Path, *what: Any, **how: Any) -> limbeck.api.Distilled:
    """A run of two steps that prints nothing and tries no teacher."""
    given = {"out": tmp_path / "run", "steps": 2, "batch_size": 16, "quiet": True, "check": "off", **how}
    if "epochs" in how and "steps" in how:
        del given["steps"]
    return limbeck.distill(*what, **given)


def test_settings_are_explicit_and_those_of_the_classes_they_stand_for() -> None:
    """Editors complete them; the tables of types may not fall behind."""
    import inspect

    from limbeck.api import EngineOptions, TrainSettings

    for table, cls in ((TrainSettings, limbeck.Optim), (EngineOptions, limbeck.EngineSettings)):
        assert list(table.__annotations__) == list(inspect.signature(cls).parameters)
    known = set(inspect.signature(limbeck.distill).parameters)
    assert {"objectives", "queries", "device", "export", "task", "teach", "engine", "preset"} <= known


def test_what_a_recipe_says_may_be_said_by_arguments(tmp_path: Path) -> None:
    _, _, x, y = things()
    done = short(
        tmp_path, flat(), flat(), {"x": x, "y": y}, "nkd", steps=None, epochs=1, device=torch.device("cpu"), average=0.5,
        export="safetensors", engine={"eval_every": 5}, baselines=[], queries={"blur": lambda b: {**b, "x": b["x"] * 0.5}},
        objectives={"gap": lambda s, t: (s.logits - t.logits).square().mean(-1)},
    )  # fmt: skip
    from limbeck.engine.logs import read_log

    rows = [r for r in read_log(done.folder) if r["stage"] == "distil"]
    assert rows and all("gap" in r for r in rows if "ce" in r)
    assert {"student", "teacher", "average"} <= set(done.rows) and "alone" not in done.rows
    assert done.result["hardware"]["device"] == "cpu" and "best" in done.metrics
    assert (done.folder / "export" / "safetensors" / "student.safetensors").is_file()
    settings = (done.folder / "config.yaml").read_text()
    assert "epochs: 1" in settings and "lambda" in settings and "eval_every: 5" in settings


def test_a_function_or_several_networks_teach(tmp_path: Path) -> None:
    _, _, x, y = things()
    one, two = flat(), flat()
    data = (x[:250], y[:250], x[250:], y[250:])
    alone = short(tmp_path, one, flat(), data).metrics["teacher"]
    for function in (lambda x: one(x), lambda x: one(x).detach().numpy()):
        assert short(tmp_path, function, flat(), data).metrics["teacher"] == alone
    both = short(tmp_path, [one, lambda x: two(x)], flat(), data).metrics["teacher"]
    z = (one(x[250:]).softmax(-1) + two(x[250:]).softmax(-1)).argmax(-1)
    assert both["accuracy"] == pytest.approx((z == y[250:]).float().mean().item())
    assert one.training and all(p.requires_grad for p in one.parameters())


def test_two_functions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By what they answer: the weights that they hold cannot be seen."""
    from limbeck.errors import StorageError

    _, _, x, y = things()

    def teacher(net: nn.Module) -> Any:
        return lambda x: net(x)

    first = teacher(flat())
    student = flat()
    short(tmp_path, first, student, (x, y), force=False)
    assert short(tmp_path, first, student, (x, y), force=False).result["reused"]
    with pytest.raises(StorageError, match="teacher"):
        short(tmp_path, teacher(flat()), student, (x, y), force=False)


def forms() -> dict[str, Any]:
    _, _, x, y = things()
    held = torch.utils.data.TensorDataset(x, y)
    pairs = [(a, int(b)) for a, b in zip(x, y, strict=True)]
    return {
        "a list of pairs": pairs,
        "a list of mappings": [{"image": a.numpy(), "label": b} for a, b in pairs],
        "arrays by name": {"x": x.numpy(), "y": y.numpy(), "x_test": x[:50].numpy(), "y_test": y[:50].numpy()},
        "splits by name": {"train": (x, y), "validation": pairs[:40], "test": held},
        "two data sets": (held, held),
        "nested lists": (x.tolist(), y.tolist()),
        "a loader": torch.utils.data.DataLoader(held, 16, shuffle=True),
        "channels last": (np.repeat(x.numpy().transpose(0, 2, 3, 1), 3, 3), y.numpy()),
    }


@pytest.mark.parametrize("name", forms())
def test_data_come_as_people_have_them(name: str, tmp_path: Path) -> None:
    given = forms()[name]
    colour = name == "channels last"
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)) if colour else flat()
    done = short(tmp_path, net, nn.Sequential(*map(_again, net)), given, baselines=[])
    items = done.result["items"]
    assert items["train"] + items["valid"] + items["test"] >= 300
    said = " ".join(done.result["notes"])
    assert ("3 channels (last)" in said) is colour
    assert ("of the DataLoader its data set is used" in said) is (name == "a loader")


def _again(layer: nn.Module) -> nn.Module:
    return nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else nn.Flatten()


def test_columns_rows_and_labels_beside_a_frame_are_tables() -> None:
    pandas = pytest.importorskip("pandas")
    from limbeck.given import source_of

    frame = pandas.DataFrame({"a": np.arange(6.0), "b": list("xyxyxy")})
    labels = pandas.Series([0, 1, 0, 1, 0, 1])
    expected = frame.assign(label=labels)
    for given in (
        (frame, labels),
        expected.to_dict("list"),
        expected.to_dict("records"),
        {"train": expected, "test": expected},
        (expected, expected),
    ):
        source: Any = source_of(given)
        assert source.frames["train"].equals(expected)
    with pytest.raises(DataError, match="6 rows and 5 targets"):
        source_of((frame, labels[:-1]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"student": nn.Linear}, r"student: Linear is a class.*student=Linear\(\.\.\.\)"),
        ({"student": lambda: flat()}, r"a function has no weights to train.*call it: student=make\(\)"),
        ({"teacher": nn.Linear}, r"teacher: Linear is a class"),
        ({"teacher": 7}, "a function from inputs to logits"),
        ({"teacher": lambda x: x.nothing}, "the function fails on a batch of the data: AttributeError"),
        ({"method": lambda s, t: 0}, r"limbeck methods lists them.*objectives=\{\"mine\": function\}"),
        ({"method": limbeck.Method}, "Method is a class"),
        ({"objectives": {"mine": 3}}, r"objectives\.mine: got 'int'"),
        ({"objectives": lambda s, t: 0}, "a mapping by name"),
        (
            {"objectives": {"mine": lambda s, t: (s.logits - t.logits).mean()}},
            "one number for a batch.*leave out the mean",
        ),
        ({"queries": {"mine": lambda batch: batch["x"]}}, "returns Tensor, expected the batch"),
        ({"epochs": 1}, "steps and epochs are both given"),
        ({"teach": {"step": 1}}, r"teach\.step: .*did you mean 'steps'"),
        ({"export": "onx"}, "did you mean 'onnx'"),
        ({"data": torch.zeros(4, 64)}, r"inputs alone.*data=\(x, y\)"),
        ({"data": (i for i in range(3))}, r"empty after one pass: data=list"),
        ({"data": (["a text", "another"], [0, 1])}, r"labelled-text:reviews\.csv"),
        ({"data": {"x": [1, 2], "z": [[1], [2]]}}, "columns of one length"),
        ({"data": {"train": (torch.zeros(2, 4), [0, 1]), "test": 3}}, "a list of"),
    ],
)
def test_what_makes_no_sense_is_told_with_the_cure(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    _, _, x, y = things()
    whole = {"teacher": flat(), "student": flat(), "data": (x, y), **given}
    with pytest.raises(LimbeckError, match=said):
        short(tmp_path, **whole)
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_the_result_shows_itself(tmp_path: Path) -> None:
    _, _, x, y = things()
    done = short(tmp_path, flat(), flat(), (x, y), out=tmp_path / "<b>run")
    assert (
        len(repr(done)) < 300 and "\n" not in repr(done) and repr(done).startswith("<Distilled kd: accuracy: teacher ")
    )
    accuracy = f"{100 * done.metrics['student']['accuracy']:.1f}"
    assert f"student {accuracy} %" in repr(done) and "650 parameters" in repr(done).replace("\u202f", " ")
    assert [line.split("  ")[0] for line in done.table.splitlines()[1:4]] == ["teacher", "student alone", "kd"]
    assert str(done).startswith(done.table) and "The student reaches" in str(done)
    page = done._repr_html_()
    assert page.count("<tr>") == 4 and accuracy in page and "report.html" in page and "<b>" not in page


def test_a_method_of_one_s_own(tmp_path: Path) -> None:
    import limbeck.functional as F

    class Mine(limbeck.Method):
        def step(self, batch: Any, ctx: Any) -> limbeck.Terms:
            s, t = ctx.signal("student", batch).logits, ctx.signal("teacher", batch).logits
            return limbeck.Terms(mine=limbeck.Term(F.kl(s, t)))

    from limbeck.engine.logs import read_log

    _, _, x, y = things()
    done = short(tmp_path, flat(), flat(), (x, y), Mine())
    assert any("mine" in row for row in read_log(done.folder)) and done.result["method"] == "Mine"
