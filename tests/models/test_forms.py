"""Tasks say what they need, and models which forms they have; what does not fit is refused with names that do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.needs import FORMS, Needs
from limbeck.grammar.role import Contract
from limbeck.models.causal_lm import CausalLm
from limbeck.models.ensemble import Ensemble
from limbeck.models.forms import having, meet
from limbeck.models.small import MlpModel
from limbeck.tasks.classification import Classification
from limbeck.tasks.generation import Generation


def test_a_form_that_a_model_does_not_have_is_refused_with_the_models_that_have_it() -> None:
    with pytest.raises(
        ConfigError, match=r"Generation needs denoisers, and MlpModel makes classifiers.*denoiser.*"
    ) as e:
        MlpModel().build(Generation())
    assert "denoiser, diffusers" in str(e.value)
    with pytest.raises(ConfigError, match=r"choose one of .*mlp"):
        CausalLm().build(Classification())


@pytest.mark.parametrize("form", ["classes", "map", "tokens", "denoiser", "pyramid", "vector", "boxes"])
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
