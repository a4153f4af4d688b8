"""Augmentation policies: keyed, within range, each operation as torchvision has it; presets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.grammar.random import Draws
from limbeck.objectives.policies import Erase, Jitter, RandAugment, TrivialAugment, _kernels
from limbeck.recipe.presets import PRESETS
from limbeck.recipe.recipe import build
from limbeck.run.running import run_recipe
from tests.tiny import tree_of


class Ctx:
    """The draws of a step."""

    draws = Draws(3, ("distil", 0), torch.device("cpu"))


def batch(n: int = 6, channels: int = 3, view: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"x": torch.rand(n, channels, 12, 10), "item": torch.arange(n), "view": torch.full((n,), view)}


@pytest.mark.parametrize("query", [RandAugment(operations=3), TrivialAugment(), Erase(probability=1.0), Jitter()])
@pytest.mark.parametrize("channels", [1, 3])
def test_they_are_keyed_by_item_and_view_and_stay_in_range(query: Any, channels: int) -> None:
    ctx: Any = Ctx()
    given = batch(channels=channels)
    made = query(given, ctx)["x"]
    assert made.shape == given["x"].shape and made.min() >= 0 and made.max() <= 1
    part = {k: v[2:4] for k, v in given.items()}
    torch.testing.assert_close(query(part, ctx)["x"], made[2:4])  # whoever stands beside it
    assert not torch.equal(query(batch(channels=channels, view=1), ctx)["x"], made)
    query.views = 1
    assert torch.equal(query(batch(channels=channels, view=1), ctx)["x"], query(given, ctx)["x"])
    query.views = 0


def test_no_strength_changes_little_and_each_operation_is_drawn() -> None:
    image = batch(1)["x"][0]
    for number, kernel in enumerate(_kernels(False)):
        weak = kernel(image, 0.0, 1.0)
        if number < 12:  # automatic contrast and equalising have no strength
            torch.testing.assert_close(weak, image, atol=1 / 255, rtol=0)
        assert kernel(image, 1.0, -1.0).shape == image.shape
    u = torch.rand(4000, 1, 3)
    for query in (RandAugment(operations=1), TrivialAugment()):
        share = torch.bincount(torch.tensor([row[0][0] for row in query.drawn(u)]), minlength=14) / 4000
        assert (share - 1 / 14).abs().max() < 0.02  # deviation 0.004
    strengths = torch.tensor([row[0][1] for row in TrivialAugment().drawn(u)])
    assert abs(strengths.mean() - 0.5) < 0.03 and {row[0][1] for row in RandAugment().drawn(u)} == {0.3}


def test_operations_are_torchvisions() -> None:
    from torchvision.transforms.v2 import functional as V

    image, kernels = batch(1)["x"][0], _kernels(False)
    torch.testing.assert_close(kernels[5](image, 0.5, -1.0), V.rotate(image, -15.0))
    torch.testing.assert_close(kernels[6](image, 0.5, 1.0), V.adjust_brightness(image, 1.45))
    torch.testing.assert_close(kernels[11](image, 0.25, 1.0), V.solarize(image, 0.75))
    torch.testing.assert_close(kernels[13](image, 0.0, 1.0), V.equalize(image))


def test_what_is_erased_is_a_rectangle_of_the_stated_share() -> None:
    ctx: Any = Ctx()
    given = batch(200)
    changed = (Erase(probability=0.5)(given, ctx)["x"] != given["x"]).any(1)
    touched = changed.flatten(1).any(1)
    assert 0.4 < touched.float().mean() < 0.6
    for mask in changed[touched]:
        rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        inside = mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        assert inside.float().mean() > 0.95  # noise may equal what was there
        assert 1 / 120 <= inside.numel() / 120 <= 0.45


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_run(name: str, tmp_path: Path) -> None:
    tree = tree_of("kd", f"queries={name}", "teacher=convnet:4", "student=convnet:2", "train.steps=2", "baselines=[]")
    assert set(tree["queries"]) == set(PRESETS[name])
    assert run_recipe(build(tree), tree, tmp_path, quiet=True)[0]["metrics"]["student"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("queries=timm-defualt",), "timm-default"),
        (("queries.a={use: rand-augment, magnitude: 31}",), "magnitude: must be at most 30"),
        (("queries.a={use: erase, lowest: 0.5, highest: 0.2}",), "must be above 0"),
        (("queries.a=rand-augment", "task.data=scikit-learn:wine", "task.student_items=null"), "images"),
    ],
)
def test_what_cannot_be_is_refused(settings: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        tree = tree_of("kd", *settings)
        run_recipe(build(tree), tree, tmp_path, quiet=True)


def test_a_preset_is_changed_by_single_settings() -> None:
    words = ("queries=timm-default", "queries.policy.magnitude=5", "queries.erase=null", "queries.mix=mixup")
    found = tree_of("kd", *words, "teacher=convnet:4", "student=convnet:2")["queries"]
    assert list(found) == ["view", "flip", "policy", "mix"]
    assert found["policy"]["magnitude"] == 5 and found["policy"]["operations"] == 2
