"""Models of transformers: every weight from the file or none, adapters over their base, classifiers by their own names."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from limbeck.data.columns import Target  # noqa: E402
from limbeck.data.items import ArrayData, Splits  # noqa: E402
from limbeck.data.sources import Source  # noqa: E402
from limbeck.engine.bench import build_model  # noqa: E402
from limbeck.errors import CheckpointCorrupt, ConfigError, LimbeckError, ShapeError, TeacherMismatch  # noqa: E402
from limbeck.grammar.artifact import NetworkArtifact  # noqa: E402
from limbeck.grammar.method import Built  # noqa: E402
from limbeck.models.causal_lm import CausalLm  # noqa: E402
from limbeck.models.from_run import FromRun  # noqa: E402
from limbeck.models.huggingface import HuggingFace  # noqa: E402
from limbeck.models.pretrained import quiet  # noqa: E402
from limbeck.tasks.classification import Classification  # noqa: E402
from tests.tasks.texts import small  # noqa: E402

State = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------- language models
@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    task = small()
    model = CausalLm(layers=2, width=16, heads=2, tied=False)
    model.save(model.build(task).module, folder)
    return folder / "student"


def changed(folder: Path, out: Path, change: Callable[[State], State]) -> str:
    """A copy of a model's folder with other weights."""
    shutil.copytree(folder, out)
    save_file(
        {k: v.contiguous() for k, v in change(load_file(folder / "model.safetensors")).items()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    return str(out)


def without(state: State, part: str) -> State:
    return {k: v for k, v in state.items() if part not in k}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s, "loaded all 21 tensors of"),
        (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, "21 of 21 .*'_orig_mod.' taken off every name"),
        (lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, "21 of 21 .*prefix 'module.' taken off"),
        (
            lambda s: {f"ema_model.{k}": v for k, v in s.items()} | {"initted": torch.ones(1)},
            "21 of 22 .*initted is left out; prefix 'ema_model.'",
        ),
        (lambda s: {k.replace("mlp.", "mlp._orig_mod."): v for k, v in s.items()}, "21 of 21 .*6 of 21 names"),
    ],
)
def test_wrappings_come_off_a_language_model_and_are_said(
    language: Path, tmp_path: Path, change: Callable[[State], State], said: str
) -> None:
    built = HuggingFace(changed(language, tmp_path / "m", change)).build(small())
    assert len(built.notes) == 1 and re.search(said, built.notes[0]), built.notes
    want = load_file(language / "model.safetensors")
    assert all(torch.equal(v, want[k]) for k, v in built.module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "wrong", "said"),
    [
        (lambda s: without(s, "lm_head"), CheckpointCorrupt, r"missing lm_head\.weight;"),
        (lambda s: without(s, "layers.1.self_attn.q"), CheckpointCorrupt, r"missing model\.layers\.1\.self_attn\.q_proj\.weight;"),
        (lambda s: {**s, "v_head.weight": torch.ones(1)}, CheckpointCorrupt, r"unexpected v_head\.weight; .*save_pretrained"),
        (lambda s: {**s, "model.layers.2.norm": torch.ones(1)}, CheckpointCorrupt, r"unexpected model\.layers\.2\.norm"),
        (lambda s: {**s, "model.norm.weight": torch.ones(8)}, ShapeError, r"model\.norm\.weight is \[8\] and should be \[16\]"),
        (lambda s: {f"policy.{k}": v for k, v in s.items()}, CheckpointCorrupt, r"set teacher\.strip=policy\. to take it off"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_language_model_is_named(
    language: Path, tmp_path: Path, change: Callable[[State], State], wrong: type[Exception], said: str
) -> None:
    with pytest.raises(wrong, match=said):
        build_model(HuggingFace(changed(language, tmp_path / "m", change)), small(), 0, "teacher")


def test_a_prefix_and_an_entry_can_be_named(language: Path, tmp_path: Path) -> None:
    place = changed(
        language, tmp_path / "m", lambda s: {f"policy.{k}": v for k, v in s.items()} | {"value.w": torch.ones(1)}
    )
    built = HuggingFace(place, strip="policy").build(small())
    assert "prefix 'policy.' taken off; left out: value.w" in built.notes[0]
    state = load_file(language / "model.safetensors")
    torch.save({"model": {k: v + 1 for k, v in state.items()}, "ema": state}, tmp_path / "two.pt")
    for model in (HuggingFace(str(language), checkpoint=str(tmp_path / "two.pt"), entry="ema"),
                  CausalLm(layers=2, width=16, heads=2, tied=False, checkpoint=str(tmp_path / "two.pt"), entry="ema")):  # fmt: skip
        built = model.build(small())
        assert all(torch.equal(v, state[k]) for k, v in built.module.state_dict().items())
        assert any("its entry 'ema' is taken" in note for note in built.notes)


# ------------------------------------------------------------------------------------------------------------ adapters
@pytest.fixture(scope="module")
def adapter(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        base = transformers.AutoModelForCausalLM.from_pretrained(language)
        net = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, p in net.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.3)
        net.save_pretrained(folder / "lora")
    return folder / "lora"


def test_an_adapter_teaches_over_its_base(language: Path, adapter: Path) -> None:
    import peft

    task = small(tokenizer=str(language))
    built = build_model(HuggingFace(str(adapter)), task, 0, "teacher")
    assert any(note.startswith(f"the adapter in {adapter} is merged") for note in built.notes)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        want = peft.AutoPeftModelForCausalLM.from_pretrained(str(adapter)).eval()
    batch = task.example(2)
    torch.testing.assert_close(task.feed(built.module.eval(), batch), want(input_ids=batch["input_ids"]).logits)
    plain = HuggingFace(str(language)).build(small())
    assert not torch.allclose(task.feed(built.module, batch), task.feed(plain.module.eval(), batch), atol=1e-3)


def test_an_adapter_alone_is_no_student(language: Path, adapter: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(HuggingFace(str(adapter)), small(tokenizer=str(language)), 0, "student")
    line = caught.value.line()
    assert line.startswith(f"student: {adapter} is an adapter alone (LORA of rank 2 over {language})")
    assert f"student=hf:{language} student.lora=2" in line and "merge_and_unload" in line


def test_an_adapter_that_is_incomplete_or_whose_base_is_gone(language: Path, adapter: Path, tmp_path: Path) -> None:
    task = small(tokenizer=str(language))
    shutil.copytree(adapter, tmp_path / "cut")
    state = load_file(adapter / "adapter_model.safetensors")
    gone = next(k for k in state if "lora_B" in k)
    save_file({k: v for k, v in state.items() if k != gone}, tmp_path / "cut" / "adapter_model.safetensors")
    with pytest.raises(CheckpointCorrupt, match="missing " + gone.replace(".", r"\.")):
        build_model(HuggingFace(str(tmp_path / "cut")), task, 0, "teacher")
    about = json.loads((adapter / "adapter_config.json").read_text())
    # a base that was moved together with its adapter is found beside it
    shutil.copytree(adapter, tmp_path / "moved")
    shutil.copytree(language, tmp_path / "base")
    (tmp_path / "moved" / "adapter_config.json").write_text(
        json.dumps({**about, "base_model_name_or_path": "old/base"})
    )
    build_model(HuggingFace(str(tmp_path / "moved")), task, 0, "teacher")
    (tmp_path / "moved" / "adapter_config.json").write_text(
        json.dumps({**about, "base_model_name_or_path": "/no/such"})
    )
    with pytest.raises(
        ConfigError, match=r"is an adapter, and the model that it was trained on is not there \(/no/such\)"
    ):
        build_model(HuggingFace(str(tmp_path / "moved")), task, 0, "teacher")


# ----------------------------------------------------------------------------------------------- classifiers of images
OWN = ["red", "white", "blue"]
TASK = ["blue", "red", "white"]


class Pictures(Source):
    def __init__(self, labels: list[str], side: int = 12) -> None:
        self.labels, self.side = labels, side

    def read(self, target: Target = "auto", size: int | None = None) -> Splits:
        x = torch.rand(30, 3, self.side, self.side, generator=torch.Generator().manual_seed(0))
        return Splits(ArrayData(x, torch.arange(30) % len(self.labels)), None, None, list(self.labels), "label")


def task_of(labels: list[str] = TASK, side: int = 12) -> Classification:
    task = Classification(Pictures(labels, side))
    task.load()
    return task


def vit(**more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        **more,
    )
    return transformers.ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    with quiet():
        vit(id2label=dict(enumerate(OWN)), label2id={n: i for i, n in enumerate(OWN)}).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.1] * 3, image_std=[0.4] * 3
    )
    processor.save_pretrained(folder)
    return folder


def answers(task: Classification, built: Built) -> Tensor:
    built.module.eval()
    with torch.no_grad():
        return task.signal(built, task.example(5)).logits


def test_a_classifier_answers_by_id2label_and_is_fed_as_its_processor_says(pictures: Path) -> None:
    task = task_of()
    model = HuggingFace(str(pictures))
    built = model.build(task)
    assert model.trained and built.labels == OWN and built.contract.classes == (2, 0, 1)
    assert built.contract.size == (8, 8) and "images of 12x12 are brought to the 8x8" in built.notes[-1]
    x = nn.functional.interpolate(task.example(5)["x"], (8, 8), mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        want = vit(num_labels=3)((x - 0.1) / 0.4).logits[:, [2, 0, 1]]
    torch.testing.assert_close(answers(task, built), want)
    assert HuggingFace(str(pictures), size=8).build(task).contract.size == (8, 8)
    with pytest.raises(ConfigError, match=r"set student\.size=8, the size that the network takes"):
        build_model(HuggingFace(str(pictures), size=9), task, 0, "student")


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [51.0] * 3, "image_std": [255.0] * 3}, 0.2, 1.0),
        ({"rescale_factor": 2 / 255, "image_mean": [0.5] * 3, "image_std": [1.0] * 3}, 0.25, 0.5),
    ],
)
def test_every_way_to_normalise(pictures: Path, tmp_path: Path, settings: Any, mean: float, std: float) -> None:
    shutil.copytree(pictures, tmp_path / "m")
    path = tmp_path / "m" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    contract = HuggingFace(str(tmp_path / "m")).build(task_of()).contract
    assert contract.mean == pytest.approx((mean,) * len(contract.mean))
    assert contract.std == pytest.approx((std,) * len(contract.std))


def test_placeholder_names_are_no_names(tmp_path: Path) -> None:
    with quiet():
        vit(num_labels=3).save_pretrained(tmp_path)
    model = HuggingFace(str(tmp_path))
    notes = model.build(task_of()).notes
    assert model.trained and any("comes without class names" in n for n in notes)
    assert any("how images are normalised" in n for n in notes)
    named = HuggingFace(str(tmp_path), labels=["white", "blue", "red"]).build(task_of())
    assert named.contract.classes == (1, 2, 0)
    other = HuggingFace(str(tmp_path))
    assert "a new last layer of 2 outputs" in "; ".join(other.build(task_of(["a", "b"])).notes) and not other.trained


def test_a_new_head_is_said_and_all_else_is_strict(pictures: Path, tmp_path: Path) -> None:
    with quiet():
        vit().vit.save_pretrained(tmp_path / "body")
        body = transformers.AutoModel.from_pretrained(tmp_path / "body", add_pooling_layer=False).state_dict()
    for place, own in ((tmp_path / "body", ", which has none"), (pictures, " in place of its own of 3")):
        model = HuggingFace(str(place), head="new")
        built = model.build(task_of(["left", "right"]))
        assert not model.trained and f"outputs is put on {place}{own}; it is still to be trained" in "; ".join(
            built.notes
        )
        assert built.module.classifier.out_features == 2 and "loaded all 22 tensors" in built.notes[0]
        state = built.module.vit.state_dict()
        assert all(torch.equal(v, body[k]) for k, v in state.items())
    # of the same size it is new all the same
    same = HuggingFace(str(pictures), head="new").build(task_of()).module.classifier.weight
    assert not torch.equal(same, load_file(pictures / "model.safetensors")["classifier.weight"])
    cut = changed(pictures, tmp_path / "cut", lambda s: without(s, "intermediate.dense.bias"))
    for head in ("auto", "new"):
        with pytest.raises(LimbeckError, match=r"missing vit\.\S+\.bias;"):
            HuggingFace(cut, head=head).build(task_of())  # type: ignore[arg-type]
    with pytest.raises(TeacherMismatch, match="no class 'left'"):
        HuggingFace(str(pictures), head="own").build(task_of(["left", "right"]))


@pytest.mark.parametrize("lora", [None, 2])
def test_a_student_is_read_back_by_the_library_and_by_limbeck(pictures: Path, tmp_path: Path, lora: int | None) -> None:
    if lora:
        pytest.importorskip("peft")
    task = task_of(["left", "right"])
    model = HuggingFace(str(pictures), lora=lora)
    built = model.build(task)
    trained = [n for n, p in built.module.named_parameters() if p.requires_grad]
    assert any("classifier" in n for n in trained)
    assert lora is None or all("lora" in n or "classifier" in n for n in trained)
    for p in built.module.parameters():
        p.data.add_(0.05 * torch.randn_like(p) if p.requires_grad else 0)
    want = answers(task, built)
    NetworkArtifact(task, built).save(tmp_path)
    with quiet():
        alone = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "student").eval()
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "student")
    assert alone.config.id2label == {0: "left", 1: "right"}
    assert (processor.crop_size["height"], list(processor.image_mean)) == (8, [0.1] * 3)
    x = built.contract.inputs(task.example(5)["x"])
    torch.testing.assert_close(alone(x).logits, want, rtol=1e-4, atol=1e-5)
    again = FromRun(str(tmp_path)).build(task_of(["right", "left"]))
    torch.testing.assert_close(answers(task, again), want[:, [1, 0]], rtol=1e-4, atol=1e-5)
    NetworkArtifact(task, again).save(tmp_path / "again")
    assert (tmp_path / "again" / "student" / "preprocessor_config.json").is_file()


def test_what_is_no_classifier_of_pictures(language: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load it as a classifier of images"):
        HuggingFace(str(language)).build(task_of())
    with pytest.raises(ConfigError, match=r"cannot load it as a causal language model|cannot load it"):
        HuggingFace(str(pictures)).build(small(tokenizer=str(language)))
