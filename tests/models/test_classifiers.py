"""Where classifiers come from, and that their classes and units become the task's."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.columns import Target
from limbeck.data.items import ArrayData, Kind, Splits
from limbeck.data.sources import Digits, Source
from limbeck.engine.bench import build_model
from limbeck.errors import CheckpointCorrupt, ConfigError, DataError, ShapeError, TeacherMismatch, Untrusted
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.task import Model
from limbeck.models.classifier import Classifier
from limbeck.models.ensemble import Ensemble, EnsembleOf
from limbeck.models.from_run import FromRun
from limbeck.models.imported import ImportedModel
from limbeck.models.libraries import Timm, Torchvision
from limbeck.models.small import CifarResNetModel, ConvNetModel, MlpModel, WideResNetModel
from limbeck.networks import cifar_resnet, wide_resnet
from limbeck.recipe.recipe import check, load_tree, make
from limbeck.storage.store import save_state_dict
from limbeck.tasks.classification import Classification


class Held(Source):
    """A small set with the shape and the names that a test wants."""

    def __init__(
        self, labels: list[str], shape: tuple[int, ...] = (1, 8, 8), kind: Kind = "label", scale: float = 1.0
    ) -> None:
        self.labels, self.shape, self.of, self.scale = labels, shape, kind, scale

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        n, c = 30, len(self.labels)
        x = torch.rand(n, *self.shape, generator=torch.Generator().manual_seed(0))
        y: Tensor = torch.arange(n) % c
        if self.of == "number":
            y = self.scale * torch.randn(n, c, generator=torch.Generator().manual_seed(1)) + 10 * self.scale
        elif self.of == "labels":
            y = (torch.rand(n, c, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        return Splits(ArrayData(x, y), None, None, list(self.labels), self.of)


def task_of(labels: list[str], *args: Any, **more: Any) -> Classification:
    task = Classification(Held(labels, *args, **more))
    task.load()
    return task


def answers(task: Classification, built: Built, n: int = 5) -> Tensor:
    ids = torch.arange(n)
    assert n <= len(task.test)
    built.module.eval()
    with torch.no_grad():
        return task.signal(built, {**task.test.fetch(ids), "item": ids, "view": ids}).logits


ABC = ["ant", "bee", "cow"]


# ---------------------------------------------------------------------------------------------------------- our own
@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_the_resnets_of_cifar_have_their_published_sizes(depth: int, parameters: int) -> None:
    net = cifar_resnet.CifarResNet(depth)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert {n.split(".")[0] for n in net.state_dict()} == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}


@pytest.mark.parametrize(
    ("depth", "widen", "parameters"), [(40, 2, 2_255_156), (40, 1, 569_780), (16, 2, 703_284), (28, 10, 36_536_884)]
)
def test_the_wide_resnets_have_their_published_sizes(depth: int, widen: int, parameters: int) -> None:
    with torch.device("meta"):
        net = wide_resnet.WideResNet(depth, widen, classes=100)
    assert sum(p.numel() for p in net.parameters()) == parameters
    # by hand: 3x3 convolutions, two a block, a shortcut a stage, normalisations, the linear layer
    n, w = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
    convolutions = 9 * 3 * 16 + sum(9 * (a * b + (2 * n - 1) * b * b) for a, b in pairwise(w))
    shortcuts = sum(a * b for i, (a, b) in enumerate(pairwise(w)) if a != b or i)
    norms = 2 * (sum(a + (2 * n - 1) * b for a, b in pairwise(w)) + w[-1])
    assert parameters == convolutions + shortcuts + norms + 101 * w[-1] - w[-1] + 100


@pytest.mark.parametrize(("depth", "parameters"), [(8, 1_233_540), (32, 7_433_860)])
def test_the_resnets_x4_of_repdistiller_have_their_published_sizes(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        net = cifar_resnet.CifarResNet(depth, 100, width=64, stem=32, shortcut="conv")
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_a_wide_block_activates_before_it_convolves() -> None:
    x = torch.randn(2, 3, 6, 6)
    kept = wide_resnet.WideBlock(3, 3, 1).eval()
    nn.init.zeros_(kept.conv2.weight)
    assert torch.equal(kept(x), x) and kept.shortcut is None
    block = wide_resnet.WideBlock(3, 4, 2).eval()
    relu = nn.functional.relu
    active = relu(block.bn1(x))
    assert block.shortcut is not None
    want = block.conv2(relu(block.bn2(block.conv1(active)))) + block.shortcut(active)
    torch.testing.assert_close(block(x), want)
    assert block(x).shape == (2, 4, 3, 3)
    for bad in ({"depth": 41}, {"widen": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            wide_resnet.WideResNet(**bad)  # type: ignore[arg-type]


def test_a_shortcut_with_parameters_and_a_narrower_stem() -> None:
    net = cifar_resnet.CifarResNet(8, 3, width=4, stem=2, shortcut="conv").eval()
    x = net.bn1(net.conv1(torch.rand(1, 3, 8, 8))).relu()
    block = net.layer1[0]
    assert isinstance(block, cifar_resnet.BasicBlock) and block.downsample is not None
    want = (block.downsample(x) + block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))).relu()
    torch.testing.assert_close(block(x), want)
    assert cifar_resnet.CifarResNet(8, 3, width=4, stem=2)(torch.rand(1, 3, 8, 8)).shape == (1, 3)
    with pytest.raises(ConfigError, match="stem"):
        cifar_resnet.CifarResNet(8, width=4, stem=5)


def test_a_shortcut_without_parameters_pads_in_front_and_behind() -> None:
    block = cifar_resnet.BasicBlock(4, 8, 2).eval()
    for m in (block.conv1, block.conv2):
        nn.init.zeros_(m.weight)
    x = torch.rand(1, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2]) and not out[:, [0, 1, 6, 7]].any() and out.shape == (1, 8, 3, 3)
    with pytest.raises(ConfigError, match="6n"):
        cifar_resnet.CifarResNet(21)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (MlpModel([5, 4], dropout=0.1), (1, 8, 8)),
        (MlpModel([]), (7,)),
        (ConvNetModel(8), (3, 16, 16)),
        (CifarResNetModel(8, 4), (1, 12, 12)),
        (CifarResNetModel(8, 4, stem=2, shortcut="conv"), (1, 12, 12)),
        (WideResNetModel(10), (1, 12, 12)),
        (Torchvision("shufflenet_v2_x0_5"), (1, 32, 32)),
        (Timm("test_resnet"), (1, 32, 32)),
    ],
)
def test_networks_answer_with_the_task_s_classes(model: Classifier, shape: tuple[int, ...]) -> None:
    task = task_of(ABC, shape)
    built = model.build(task)
    assert answers(task, built, 2).shape == (2, 3)
    assert built.labels == ABC and built.contract.classes is None and built.model is model and not model.trained


@pytest.mark.parametrize("model", [ConvNetModel(8), CifarResNetModel(8), Timm("test_resnet"), Torchvision("resnet18")])
def test_picture_networks_refuse_rows(model: Classifier) -> None:
    with pytest.raises(ConfigError, match=r"rows of 7 numbers.*mlp"):
        model.build(task_of(ABC, (7,)))


def test_pictures_whose_channels_fit_no_contract() -> None:
    with pytest.raises(DataError, match=r"5 channels.*3, or 1"):
        Timm("test_resnet").build(task_of(ABC, (5, 32, 32)))
    assert ConvNetModel(8).build(task_of(ABC, (5, 16, 16))).contract.channels == 5


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (MlpModel, {"hidden": [0]}, "hidden"),
        (MlpModel, {"dropout": 1.0}, "dropout"),
        (MlpModel, {"mean": [0.5]}, "together"),
        (MlpModel, {"mean": [0.5], "std": [0.0]}, "std"),
        (MlpModel, {"mean": [0.5], "std": [1.0, 1.0]}, "same length"),
        (ConvNetModel, {"width": 0}, "width"),
        (CifarResNetModel, {"depth": 19}, "6n"),
        (CifarResNetModel, {"stem": 17}, "stem must be at most width"),
        (WideResNetModel, {"depth": 20}, "6n"),
        (WideResNetModel, {"widen": 0}, "widen"),
        (Timm, {"name": "x", "size": 0}, "size"),
        (EnsembleOf, {"members": []}, "members"),
        (EnsembleOf, {"members": [MlpModel()], "weights": [0.0]}, "weights"),
        (ImportedModel, {"function": "a:b", "channels": 0}, "channels"),
    ],
)
def test_settings_out_of_range(cls: type[Model], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cls(**settings)


# ------------------------------------------------------------------------------------------------------- checkpoints
def saved(tmp_path: Path, outputs: int = 3, names: list[str] | None = None) -> Path:
    module = MlpModel([5]).make(Needs((1, 8, 8), outputs))
    save_state_dict(tmp_path / "net.safetensors", module.state_dict())
    if names is not None:
        (tmp_path / "names.json").write_text(json.dumps(names))
    return tmp_path / "net.safetensors"


def test_a_checkpoint_is_loaded_strictly(tmp_path: Path) -> None:
    path = saved(tmp_path)
    task = task_of(ABC)
    model = MlpModel([5], checkpoint=str(path), mean=[0.0], std=[1.0])
    assert model.trained
    one, two = answers(task, model.build(task)), answers(task, model.build(task))
    assert torch.equal(one, two)
    with pytest.raises(ShapeError, match="fc1"):
        MlpModel([6], checkpoint=str(path)).build(task)
    with pytest.raises(CheckpointCorrupt, match="fc2"):
        MlpModel([5, 5], checkpoint=str(path)).build(task)
    with pytest.raises(CheckpointCorrupt):
        MlpModel([5], checkpoint=str(tmp_path / "none.safetensors")).build(task)


def test_more_classes_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path, 5, ["dog", "Cow", "elk", "ant", "bee"])
    task = task_of(ABC)
    given = {"checkpoint": str(path), "mean": [0.0], "std": [1.0]}
    built = MlpModel([5], labels=str(tmp_path / "names.json"), **given).build(task)
    assert built.contract.classes == (3, 4, 1) and built.labels == ["dog", "Cow", "elk", "ant", "bee"]
    five = MlpModel([5], **given).build(task_of(["dog", "Cow", "elk", "ant", "bee"]))
    assert torch.equal(answers(task, built), answers(task, five)[:, [3, 4, 1]])
    with pytest.raises(TeacherMismatch, match=r"5 outputs.*3 classes.*labels=FILE"):
        MlpModel([5], **given).build(task)
    with pytest.raises(TeacherMismatch, match="no class 'fox'"):
        MlpModel([5], labels=str(tmp_path / "names.json"), **given).build(task_of([*ABC, "fox"]))
    (tmp_path / "names.json").write_text('["a", "b"]')
    with pytest.raises(TeacherMismatch, match="2 names for 5 outputs"):
        MlpModel([5], labels=str(tmp_path / "names.json"), **given).build(task)


def test_names_beside_the_checkpoint_are_found(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "classes.txt").write_text("cow\nant\nbee\n")
    built = MlpModel([5], checkpoint=str(path)).build(task_of(ABC))
    assert built.contract.classes == (1, 2, 0)


def test_a_checkpoint_without_names_says_so(tmp_path: Path) -> None:
    notes = MlpModel([5], checkpoint=str(saved(tmp_path))).build(task_of(ABC)).notes
    assert notes[0] == f"loaded 4 of 4 tensors of {tmp_path / 'net.safetensors'}"
    assert "without class names" in notes[1] and notes[1].endswith("in the task's order ('ant', 'bee', 'cow')")


def test_the_other_model_of_a_checkpoint_is_the_likely_cause(tmp_path: Path) -> None:
    task = Classification(Digits())
    task.load()
    net = MlpModel([5]).make(Needs(task.shape, 10))
    torch.save(
        {"model": {k: torch.zeros_like(v) for k, v in net.state_dict().items()}, "ema": net.state_dict()},
        tmp_path / "a.pt",
    )
    built = build_model(MlpModel([5], checkpoint=str(tmp_path / "a.pt")), task, 0, "teacher")
    with pytest.raises(
        TeacherMismatch, match=r"it only guesses: .*holds another model.*; set teacher\.entry=ema to take"
    ):
        task.check_teacher(built)


def test_names_are_a_file_or_a_list(tmp_path: Path) -> None:
    path = saved(tmp_path, names=["cow", "ant", "bee"])
    task = task_of(ABC)
    for labels in (str(tmp_path / "names.json"), ["cow", "ant", "bee"]):
        assert MlpModel([5], checkpoint=str(path), labels=labels).build(task).contract.classes == (1, 2, 0)
    for wrong in ([], ["cow", "cow", "bee"]):
        with pytest.raises(ValueError, match="labels must be names that differ"):
            MlpModel([5], checkpoint=str(path), labels=wrong)
    tree = load_tree("kd", [f"teacher.checkpoint={path}", "teacher.labels=[cow,ant,bee]"])
    assert check(tree)["teacher"]["labels"] == ["cow", "ant", "bee"]


# ------------------------------------------------------------------------------------------------------ earlier runs
def run_folder(folder: Path, task: Classification, model: Model) -> Built:
    folder.mkdir(exist_ok=True)
    built = model.build(task)
    NetworkArtifact(task, built).save(folder)
    return built


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (MlpModel([6], "tanh"), (1, 8, 8)),
        (MlpModel([6]), (5,)),
        (ConvNetModel(8, depth=2), (3, 8, 8)),
        (CifarResNetModel(8, 4), (1, 8, 8)),
        (WideResNetModel(10), (1, 8, 8)),
        (Timm("test_resnet"), (1, 32, 32)),
        (Torchvision("shufflenet_v2_x0_5"), (1, 32, 32)),
    ],
)
def test_the_student_of_an_earlier_run(tmp_path: Path, model: Model, shape: tuple[int, ...]) -> None:
    task = task_of(ABC, shape)
    built = run_folder(tmp_path / "run", task, model)
    again = FromRun(str(tmp_path / "run")).build(task)
    assert torch.equal(answers(task, built), answers(task, again))
    assert again.contract.classes is None and FromRun("x").trained
    turned = task_of(["cow", "ant"], shape)
    found = answers(turned, FromRun(str(tmp_path / "run")).build(turned))
    assert found.shape == (5, 2)


def test_a_timm_student_is_opened_by_timm_alone(tmp_path: Path) -> None:
    import timm

    built = run_folder(tmp_path, task_of(ABC, (3, 32, 32)), Timm("test_resnet"))
    alone = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(tmp_path / "student.safetensors"))
    for name, value in built.module.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name])


def test_an_earlier_student_keeps_its_own_normalisation_size_and_order(tmp_path: Path) -> None:
    built = run_folder(tmp_path / "run", task_of(ABC, (1, 8, 8)), MlpModel([6]))
    other = task_of(["cow", "bee", "ant"], (3, 12, 12))
    again = FromRun(str(tmp_path / "run")).build(other)
    assert (again.contract.mean, again.contract.size, again.contract.channels) == (built.contract.mean, (8, 8), 1)
    assert again.contract.classes == (2, 1, 0)
    direct = MlpModel([6], checkpoint=str(tmp_path / "run" / "student.safetensors")).build(
        task_of(["cow", "bee", "ant"])
    )
    assert direct.contract.mean == built.contract.mean and direct.contract.classes == (2, 1, 0)


@pytest.mark.parametrize(("made", "given"), [((2,), (1, 8, 8)), ((1, 8, 8), (64,)), ((2,), (3,))])
def test_a_network_for_other_items_is_refused_by_its_role(
    tmp_path: Path, made: tuple[int, ...], given: tuple[int, ...]
) -> None:
    words = {(2,): "rows of 2 numbers", (3,): "rows of 3 numbers", (64,): "rows of 64 numbers"}
    words[1, 8, 8] = "images of 1 x 8 x 8 (channels, height, width)"
    run_folder(tmp_path / "run", task_of(ABC, made), MlpModel([6]))
    weights = str(tmp_path / "run" / "student.safetensors")
    for role in ("teacher", "student"):
        for model in (FromRun(str(tmp_path / "run")), MlpModel([6], checkpoint=weights)):
            with pytest.raises(TeacherMismatch) as caught:
                build_model(model, task_of(ABC, given), 0, role)
            said = caught.value.line()
            assert said.startswith(f"{role}: ") and "task.data" in said
            assert f"was trained on {words[made]}, and this task gives {words[given]}" in said
    about = json.loads((tmp_path / "run" / "student.json").read_text())
    about["task"]["input"] = "two"
    (tmp_path / "run" / "student.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="input"):
        MlpModel([6], checkpoint=weights).build(task_of(ABC, given))


def test_names_that_contradict_the_run_s_own_are_refused(tmp_path: Path) -> None:
    """They won silently, and a good teacher scored nothing."""
    task = task_of(ABC)
    run_folder(tmp_path, task, MlpModel([6]))
    weights = str(tmp_path / "student.safetensors")
    for labels in (["cow", "bee", "ant"], ["cat", "dog", "elk"], ABC[:2]):
        with pytest.raises(TeacherMismatch) as caught:
            build_model(
                make(Model, {"use": "mlp", "hidden": [6], "checkpoint": weights, "labels": labels}, ""),
                task,
                0,
                "teacher",
            )
        said = caught.value.line()
        assert said.startswith("teacher.labels: ") and "ant, bee, cow" in said and ", ".join(labels) in said
        assert "leave labels out" in said
    assert MlpModel([6], checkpoint=weights, labels=["Ant", "bee", "cow"]).build(task).contract.classes == (0, 1, 2)


def test_numbers_are_brought_into_the_task_s_units(tmp_path: Path) -> None:
    metres = task_of(["height", "width"], (5,), "number", 1.0)
    run_folder(tmp_path / "run", metres, MlpModel([6]))
    inches = task_of(["width", "height"], (5,), "number", 39.37)
    again = FromRun(str(tmp_path / "run")).build(inches)
    mine = answers(metres, FromRun(str(tmp_path / "run")).build(metres)) * metres.number_std + metres.number_mean
    theirs = answers(inches, again) * inches.number_std + inches.number_mean
    assert torch.allclose(theirs, mine[:, [1, 0]], rtol=1e-4, atol=1e-4)  # real values are the network's own
    with pytest.raises(TeacherMismatch, match=r"answers with numbers.*asks for one class"):
        FromRun(str(tmp_path / "run")).build(task_of(["height", "width"], (5,)))


def test_folders_that_hold_no_student(tmp_path: Path) -> None:
    task = task_of(ABC)
    with pytest.raises(ConfigError, match=r"no student\.json"):
        FromRun(str(tmp_path)).build(task)
    run_folder(tmp_path, task, MlpModel([6]))
    about = json.loads((tmp_path / "student.json").read_text())

    def rewritten(**changes: Any) -> None:
        (tmp_path / "student.json").write_text(json.dumps({**about, **changes}))

    rewritten(model=None)
    with pytest.raises(ConfigError, match="does not say how"):
        FromRun(str(tmp_path)).build(task)
    rewritten(model={"use": "import", "function": "os:getcwd"})
    with pytest.raises(Untrusted, match=r"calls os:getcwd\(\)"):
        FromRun(str(tmp_path)).build(task)
    rewritten(model={"use": "no-such-model"})
    with pytest.raises(ConfigError):
        FromRun(str(tmp_path)).build(task)
    rewritten(preprocessing={"mean": "grey"})
    with pytest.raises(DataError, match="preprocessing"):
        FromRun(str(tmp_path)).build(task)
    (tmp_path / "student.json").write_text("[]")
    with pytest.raises(DataError):
        FromRun(str(tmp_path)).build(task)


# -------------------------------------------------------------------------------------------------------- the user's
USER = """
import torch
from torch import nn
class Tuple(nn.Module):
    def __init__(self, n): super().__init__(); self.fc = nn.Linear(64, n)
    def forward(self, x): return {"logits": self.fc(x.flatten(1))}
def plain(num_classes, width=4): return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))
def shaped(input_shape, outputs): return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] ** 2, outputs))
def ready(): return Tuple(4)
def text(): return "no module"
def fails(): raise ValueError("no memory")
def wide(): return Tuple(7)
"""


@pytest.fixture()
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_model_module.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_model_module", raising=False)
    return "user_model_module"


def test_the_user_s_own_network(user: str, tmp_path: Path) -> None:
    task = task_of(ABC)
    assert answers(task, ImportedModel(f"{user}:plain", {"width": 9}).build(task)).shape == (5, 3)
    assert answers(task, ImportedModel(f"{user}:shaped", normalise=False).build(task)).shape == (5, 3)
    (tmp_path / "four.txt").write_text("elk\ncow\nbee\nant\n")
    model = ImportedModel(f"{user}:ready", ready=True, labels=str(tmp_path / "four.txt"))
    built = model.build(task)
    assert model.trained and built.contract.classes == (3, 2, 1) and answers(task, built).shape == (5, 3)
    state = ImportedModel(f"{user}:plain").make(Needs((1, 8, 8), 3)).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "net.pt")
    assert ImportedModel(f"{user}:plain", checkpoint=str(tmp_path / "net.pt")).build(task).labels == ABC


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("text", ConfigError, r"torch\.nn\.Module"),
        ("fails", ConfigError, "no memory"),
        ("wide", ShapeError, r"\[2, 7\]"),
        ("plan", ConfigError, "did you mean 'plain'"),
    ],
)
def test_functions_that_give_no_network(user: str, name: str, wrong: type[Exception], said: str) -> None:
    with pytest.raises(wrong, match=said):
        ImportedModel(f"{user}:{name}").build(task_of(ABC))


# --------------------------------------------------------------------------------------------------------- libraries
def test_pretrained_classes_are_kept_where_they_are_the_task_s(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        return real(name, **more)

    monkeypatch.setattr(timm, "create_model", offline)
    birds = task_of(["goldfish", "tench"], (3, 32, 32))
    model = Timm("test_resnet", pretrained=True)
    built = model.build(birds)
    assert model.trained and built.labels is not None and len(built.labels) == 1000 and built.contract.classes == (1, 0)
    ids = task_of(["n01443537", "n01440764"], (3, 32, 32))
    assert Timm("test_resnet", pretrained=True).build(ids).contract.classes == (1, 0)
    other = task_of(["my left shoe", "my right shoe"], (3, 32, 32))
    built = model.build(other)
    assert not model.trained and built.labels == other.labels and built.module.num_classes == 2
    assert Timm("test_resnet", pretrained=True, head="new").build(birds).contract.classes is None
    with pytest.raises(TeacherMismatch, match="my left shoe"):
        Timm("test_resnet", pretrained=True, head="own").build(other)


def test_torchvision_weights_by_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    state = models.get_model("shufflenet_v2_x0_5", weights=None).state_dict()
    entry = models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, *args, **more: dict(state))
    fish = task_of(["goldfish", "tench"], (3, 32, 32))
    model = Torchvision("shufflenet_v2_x0_5", weights="DEFAULT")
    built = model.build(fish)
    assert model.trained and built.contract.classes == (1, 0) and built.contract.mean == (0.485, 0.456, 0.406)
    assert torch.equal(built.module.conv1[0].weight, state["conv1.0.weight"])
    other = task_of(["left", "right"], (3, 32, 32))
    built = model.build(other)
    assert not model.trained and built.module.fc.out_features == 2
    assert torch.equal(built.module.conv1[0].weight, state["conv1.0.weight"])
    with pytest.raises(ConfigError, match="did you mean 'IMAGENET1K_V1'"):
        Torchvision("shufflenet_v2_x0_5", weights="IMAGENET1K_V2").build(fish)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_of_torchvision_s_weights_the_last_layer_alone_is_new_and_said(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Tensors of another shape, and names that the network lacks, were passed over without a word."""
    from torchvision import models

    state = models.get_model(name, weights=None).state_dict()
    entry = models.get_model_weights(name).DEFAULT
    given = [state]
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, *args, **more: dict(given[0]))
    task = task_of(["left", "right"], (3, 32, 32))
    built = Torchvision(name, weights="DEFAULT").build(task)
    assert f"a new last layer of 2 outputs is put on {name} in place of its own of 1000" in built.notes[0]
    mine = built.module.state_dict()
    assert {k for k in state if not torch.equal(mine[k], state[k])} == {"fc.weight", "fc.bias"}
    first = next(k for k in state if k.endswith("weight"))
    for change, said in (
        ({first: torch.ones(2)}, r"is \[2\] and should be"),
        ({"more.weight": torch.ones(1)}, "unexpected more"),
    ):
        given[0] = {**state, **change}
        with pytest.raises((ShapeError, CheckpointCorrupt), match=said):
            Torchvision(name, weights="DEFAULT").build(task)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Timm("test_resnett"), "did you mean 'test_resnet'"),
        (Timm("test_resnet", options={"colour": 1}), "colour"),
        (Torchvision("resnet19"), "did you mean 'resnet18'"),
        (Torchvision("shufflenet_v2_x0_5", options={"colour": 1}), "colour"),
    ],
)
def test_names_and_options_that_a_library_does_not_know(model: Model, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model.build(task_of(ABC, (3, 32, 32)))


@pytest.mark.parametrize(
    ("library", "name"),
    [
        (Timm, "checkpoint_path"),  # some versions unpickle it
        (Timm, "pretrained_cfg"),
        (Timm, "pretrained_cfg_overlay"),
        (Torchvision, "weights"),
    ],
)
def test_weights_do_not_come_in_by_the_side_door(library: type[Model], name: str) -> None:
    with pytest.raises(ValueError, match=f"options may not hold {name}: weights are named by checkpoint"):
        library("resnet18", options={name: "sent.pth"})  # type: ignore[call-arg]


def test_a_transformer_of_fixed_size_gets_its_size() -> None:
    built = Timm("test_vit").build(task_of(ABC, (1, 32, 32)))
    assert built.contract.size == (160, 160) and built.contract.channels == 3
    assert Timm("test_resnet", size=48).build(task_of(ABC, (1, 32, 32))).contract.size == (48, 48)


# ---------------------------------------------------------------------------------------------------------- together
class Says(nn.Module):
    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def forward(self, x: Tensor) -> Tensor:
        return self.z + x.mean() * 0


def test_an_ensemble_averages_probabilities_in_the_task_s_order() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    turned = Contract(classes=(2, 0, 1))
    x = torch.zeros(4, 1, 2, 2)
    out = Ensemble([Says(a), Says(b)], [Contract(), turned], [1.0, 3.0])(x)
    assert torch.allclose(out.exp(), 0.25 * a.softmax(-1) + 0.75 * b[:, [2, 0, 1]].softmax(-1), atol=1e-6)
    out = Ensemble([Says(a), Says(b)], [Contract(), turned], [1.0, 3.0], "logits")(x)
    assert torch.allclose(out, 0.25 * a + 0.75 * b[:, [2, 0, 1]], atol=1e-6)
    out = Ensemble([Says(a), Says(b)], [Contract(), Contract()], [1.0, 1.0], kind="labels")(x)
    assert torch.allclose(out.sigmoid(), (a.sigmoid() + b.sigmoid()) / 2, atol=1e-6)
    out = Ensemble([Says(a), Says(b)], [Contract(), Contract()], [1.0, 1.0], kind="number")(x)
    assert torch.allclose(out, (a + b) / 2)


def test_an_ensemble_of_models(tmp_path: Path) -> None:
    task = task_of(ABC)
    run_folder(tmp_path / "a", task, MlpModel([6]))
    run_folder(tmp_path / "b", task_of(["cow", "elk", "bee", "ant"]), MlpModel([4]))
    members: list[Model] = [FromRun(str(tmp_path / n)) for n in "ab"]
    ensemble = EnsembleOf(members)
    built = ensemble.build(task)
    assert ensemble.trained and built.labels == ABC
    wanted = torch.stack([answers(task, m.build(task)).softmax(-1) for m in members]).mean(0)
    assert torch.allclose(answers(task, built).exp(), wanted, atol=1e-6)
    assert not EnsembleOf([*members, MlpModel([4])]).trained


def test_members_without_weights_are_trained_one_by_one() -> None:
    task = task_of(ABC)

    class Bench:
        task: Classification
        seeds: list[int]
        name = "teacher"
        teacher_seed = 0

        def train_network(self, model: Model, data: Any, optim: Any, name: str, seed: int = 0) -> Built:
            self.seeds.append(seed)
            assert data is task.teacher_train
            return model.build(task)

    bench = Bench()
    bench.task, bench.seeds = task, []
    built = EnsembleOf([MlpModel([4]), MlpModel([4])]).teach(bench, None)  # type: ignore[arg-type]
    assert bench.seeds == [0, 1] and answers(task, built).shape == (5, 3)
    bench.teacher_seed = 2  # the third ensemble shares no member with the first two
    EnsembleOf([MlpModel([4]), MlpModel([4])]).teach(bench, None)  # type: ignore[arg-type]
    assert bench.seeds == [0, 1, 4, 5]


def test_models_by_their_names_in_recipes() -> None:
    node = {"use": "ensemble", "members": ["mlp:[3]", {"use": "cifar-resnet", "depth": 8}], "average": "logits"}
    made = make(Model, node, "teacher")
    assert isinstance(made, EnsembleOf) and isinstance(made.members[1], CifarResNetModel)
    assert isinstance(made.members[0], MlpModel) and made.members[0].hidden == [3]


def test_a_run_that_made_no_classifier_says_how_its_network_is_named(tmp_path: Path) -> None:
    from limbeck.models.from_run import FromRun
    from tests.tasks.texts import small

    (tmp_path / "student.json").write_text(
        json.dumps({"model": {"use": "denoiser", "width": 8, "guided": True, "checkpoint": None}})
    )
    (tmp_path / "student.safetensors").touch()
    with pytest.raises(ConfigError, match=r"Language wants another kind.*name its network: ") as caught:
        FromRun(str(tmp_path)).build(small())
    words = str(caught.value).split("name its network: ")[1].split()
    role = words[0].split("=")[0]
    assert words == [
        f"{role}=denoiser", f"{role}.width=8", f"{role}.guided=true", f"{role}.checkpoint={tmp_path / 'student.safetensors'}"
    ]  # fmt: skip
    (tmp_path / "student.safetensors").unlink()
    (tmp_path / "student").mkdir()
    with pytest.raises(ConfigError, match=rf"name its network: \w+=hf:{tmp_path / 'student'}$"):
        FromRun(str(tmp_path)).build(small())
