"""Tasks say what they need, and models which forms they have; what does not fit is refused with names that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.needs import FORMS, Form, Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.signal import classes_last
from limbeck.grammar.task import Model, Task
from limbeck.models.causal_lm import CausalLm
from limbeck.models.encoder import Encoder
from limbeck.models.ensemble import Ensemble
from limbeck.models.forms import having, meet
from limbeck.models.huggingface import HuggingFace
from limbeck.models.libraries import Timm, Torchvision
from limbeck.models.small import MlpModel
from limbeck.models.unet import UNetModel
from limbeck.networks.maps import Pyramid
from limbeck.tasks.classification import Classification
from limbeck.tasks.generation import Generation
from limbeck.tasks.language import Language
from limbeck.tasks.masked_words import MaskedWords
from limbeck.tasks.text_classes import TextClasses


def test_a_form_that_a_model_does_not_have_is_refused_with_the_models_that_have_it() -> None:
    with pytest.raises(
        ConfigError, match=r"Generation needs denoisers, and MlpModel makes classifiers.*denoiser.*"
    ) as e:
        MlpModel().build(Generation())
    assert "denoiser, diffusers" in str(e.value)
    with pytest.raises(ConfigError, match=r"choose one of .*mlp"):
        CausalLm().build(Classification())


@pytest.mark.parametrize(
    "form",
    ["classes", "map", "tokens", "hidden-tokens", "denoiser", "pyramid", "vector", "boxes", "keypoints", "poses"],
)
def test_every_form_has_models(form: str) -> None:
    assert form in FORMS
    assert having(form), form  # type: ignore[arg-type]
    assert "import" in having(form)  # type: ignore[arg-type]


def test_needs_of_today_s_tasks() -> None:
    needs = meet(MlpModel(), Classification())
    assert (needs.form, needs.inputs, needs.outputs) == ("classes", (1, 8, 8), 10)
    assert needs.names == tuple("0123456789") and needs.pictures and not needs.pixels
    assert Generation().needs.form == "denoiser" and Needs((3, 8, 8), 2, "map").pixels


class Grid(nn.Module):
    """[N, 1, h, w] -> {"out": [N, 2, h, w]}, as torchvision's segmentation networks answer."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": torch.cat([x, self.by * x], 1)}


def test_an_ensemble_of_maps_answers_as_its_members_do() -> None:
    x = torch.randn(2, 1, 3, 4)
    made = Ensemble([Grid(2.0), Grid(4.0)], [Contract(), Contract()], [1, 1], "logits", maps=True)
    torch.testing.assert_close(made(x), torch.cat([x, 3 * x], 1))
    turned = Ensemble([Grid(2.0), Grid(2.0)], [Contract(), Contract(classes=(1, 0))], [1, 1], "logits", maps=True)
    torch.testing.assert_close(turned(x), torch.cat([1.5 * x, 1.5 * x], 1))
    sure = Ensemble([Grid(2.0)], [Contract()], [1], maps=True)(x)
    torch.testing.assert_close(sure.softmax(1), Grid(2.0)(x)["out"].softmax(1))


class Any_(Task):
    """A task of a form, with images of 3 x 64 x 64 and three outputs."""

    labels: list[str] | None = ["a", "b", "c"]  # noqa: RUF012

    def __init__(self, form: Form, outputs: int = 3) -> None:
        self.form, self.outputs = form, outputs

    def load(self, seed: int | None = None) -> None:
        pass

    @property
    def needs(self) -> Needs:
        names = ("a", "b", "c") if self.outputs == 3 else ()
        return Needs((3, 64, 64), self.outputs, self.form, names)


X = torch.rand(2, 3, 64, 64)


def fed(model: Model, form: Form, outputs: int = 3) -> Any:
    built = model.build(Any_(form, outputs))
    with torch.no_grad():
        return built.module.eval()(built.contract.inputs(X))


@pytest.mark.parametrize("model", [UNetModel(4, 2), UNetModel(4, 2, stride=4), Timm("test_resnet")])
def test_networks_of_maps(model: Model) -> None:
    z = classes_last(fed(model, "map"))
    assert z.shape[0] == 2 and z.shape[3] == 3 and z.shape[1] == z.shape[2]
    with pytest.raises(ConfigError, match=r"resized to 96x96.*set|task\.size=96"):
        Timm("test_resnet", size=96).build(Any_("map"))


def test_networks_of_maps_of_other_libraries(tmp_path: Path) -> None:
    assert classes_last(fed(Torchvision("lraspp_mobilenet_v3_large"), "map")).shape == (2, 64, 64, 3)
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    model = HuggingFace(str(tmp_path))
    assert classes_last(fed(model, "map")).shape == (2, 16, 16, 3)
    assert not model.trained and "new last layer" in "".join(model.notes)  # its own classes are none of the task's
    with pytest.raises(ConfigError, match="torchvision segmentation network"):
        Torchvision("resnet18").build(Any_("map"))


def test_pyramids_and_features() -> None:
    levels = fed(Timm("test_resnet"), "pyramid", 0)
    assert [f.shape[2] for f in levels] == [32, 16, 8, 4, 2]
    assert fed(Timm("test_resnet"), "vector", 0).shape == (2, 96)
    assert fed(Timm("test_resnet"), "vector", 5).shape == (2, 5)
    assert fed(Torchvision("shufflenet_v2_x0_5"), "vector", 0).shape == (2, 1024)
    turned = Pyramid(lambda x: [x.movedim(1, -1)])  # type: ignore[arg-type]
    assert torch.equal(turned(X)[0], X)


@pytest.mark.expensive
def test_detectors() -> None:
    found = fed(Torchvision("ssdlite320_mobilenet_v3_large"), "boxes")
    assert len(found) == 2 and set(found[0]) == {"boxes", "scores", "labels"}


def test_what_goes_in_is_asked_too() -> None:
    """An encoder of text for images, a perceptron for texts, a decoder for hidden words: one line, with models that do."""
    with pytest.raises(ConfigError, match=r"Encoder reads texts, and the items of Classification are pictures.*mlp"):
        Encoder().build(Classification())
    with pytest.raises(
        ConfigError, match=r"MlpModel reads .*and the items of TextClasses are texts.*choose one of"
    ) as e:
        MlpModel().build(TextClasses())
    assert "encoder" in str(e.value).partition("choose one of")[2] and "timm" not in str(e.value)
    with pytest.raises(ConfigError, match=r"MaskedWords needs encoders of text.*choose one of .*encoder.*hf"):
        CausalLm().build(MaskedWords())
    with pytest.raises(ConfigError, match=r"Language needs language models.*causal-lm"):
        Encoder().build(Language())
