"""Objectives and queries: against plain formulas, attached to a host by recipe, and in a loop of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck.functional as F
from limbeck.errors import ConfigError, ShapeError, TapError
from limbeck.grammar.random import Draws
from limbeck.objectives import (
    AttentionTransfer,
    Criterion,
    Crop,
    Cutmix,
    FeatureMatch,
    Flip,
    Kl,
    Mixup,
    Noise,
    Relation,
    Supervised,
)
from limbeck.objectives.queries import accept_all
from limbeck.recipe.recipe import build
from tests.tiny import tiny, tree_of


class Ctx:
    """Draws, and nothing else."""

    def __init__(self, step: int = 0) -> None:
        self.draws = Draws(0, ("t", step))


def images(n: int = 4) -> dict[str, torch.Tensor]:
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"x": x, "y": torch.arange(n) % 3, "item": torch.arange(n), "view": torch.zeros(n, dtype=torch.long)}


def test_a_query_is_a_function_of_item_and_view() -> None:
    batch = images()
    for query in (Flip(), Crop(2), Noise(0.1)):
        whole = query(batch, Ctx())["x"]
        part = query({k: v[1:3] for k, v in batch.items()}, Ctx())["x"]
        assert torch.equal(whole[1:3], part)
    assert torch.equal(Flip(1.0)(batch, Ctx())["x"], batch["x"].flip(-1))
    assert torch.equal(Flip(0.0)(batch, Ctx())["x"], batch["x"])
    later = {**batch, "view": batch["view"] + 1}
    assert not torch.equal(Crop(2)(batch, Ctx())["x"], Crop(2)(later, Ctx())["x"])
    assert torch.equal(Crop(2, views=1)(batch, Ctx())["x"], Crop(2, views=1)(later, Ctx(5))["x"])


def test_crop_shifts_and_pads_with_zeros() -> None:
    batch = images(1)
    out = Crop(3)(batch, Ctx())["x"][0]
    padded = nn.functional.pad(batch["x"], (3, 3, 3, 3))[0]
    assert any(torch.equal(out, padded[:, r : r + 8, c : c + 8]) for r in range(7) for c in range(7))


def test_mixed_labels_sum_to_one_and_follow_the_area() -> None:
    batch = images()
    for query in (Mixup(1.0, classes=3), Cutmix(1.0, classes=3)):
        out = query(batch, Ctx())
        assert torch.allclose(out["y"].sum(1), torch.ones(4))
    mixed = Cutmix(1.0, classes=3)(batch, Ctx())
    kept = (mixed["x"] == batch["x"]).all(1).float().mean((1, 2))
    own = mixed["y"].gather(1, batch["y"][:, None])[:, 0]
    assert bool((own >= kept - 1e-6).all())


def test_a_number_of_classes_is_the_task_s_or_refused(tmp_path: Path) -> None:
    """What `prepare` asks before a teacher is trained; without a number the task tells it."""
    task = build(tree_of("nkd")).task
    task.load(0)
    for cls in (Mixup, Cutmix):
        with pytest.raises(ConfigError) as caught:
            accept_all({"c": Flip(), "d": cls(classes=3)}, task)
        assert caught.value.line().startswith("queries.d.classes: got 3, expected 10")
        accept_all({"c": cls(classes=10), "d": cls()}, task)
    batch = {**images(), "y": torch.tensor([0, 9, 3, 4])}
    ctx = Ctx()
    with pytest.raises(ConfigError, match=r"queries.mixup.classes.*give the number"):
        Mixup()(batch, ctx)
    ctx.task = task  # type: ignore[attr-defined]
    assert Mixup()(batch, ctx)["y"].shape == (4, 10)
    with pytest.raises(ConfigError, match=r"classes: got 3, expected 10"):
        tiny("nkd", tmp_path, "queries.c=mixup", "queries.c.classes=3")
    for add in ("queries.c=mixup", "queries.c=cutmix"):
        tiny("nkd", tmp_path / add, add, "train.steps=2").run()


@pytest.mark.parametrize(
    ("recipe", "query"), [("taid", "flip"), ("taid", "crop"), ("taid", "mixup"), ("guided-diffusion", "mixup")]
)
def test_a_query_that_a_task_cannot_feed_is_refused_by_the_recipe_s_name(recipe: str, query: str) -> None:
    built = build(tree_of(recipe, f"queries.c={query}"))
    built.task.load(0)
    with pytest.raises(ConfigError) as caught:
        accept_all(built.queries, built.task)
    assert caught.value.line().startswith("queries.c: ") and "leave it out" in caught.value.line()


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = lambda w: nn.Sequential(nn.Conv2d(3, w, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(w * 64, 3))  # noqa: E731
    return net(4), net(6)


def test_criterion_in_a_loop_of_ones_own() -> None:
    student, teacher = pair()
    frozen = {k: v.clone() for k, v in teacher.state_dict().items()}
    criterion = Criterion(
        {
            "kl": Kl(temperature=2),
            "hint": FeatureMatch("1", "1"),
            "look": AttentionTransfer("1", "1"),
            "who": Relation("2", "2"),
        },
        student,
        teacher,
        images()["x"],
    )
    assert [n for n, _ in criterion.named_parameters()] == ["projectors.hint.weight", "projectors.hint.bias"]
    optimiser = torch.optim.SGD([*student.parameters(), *criterion.parameters()], 0.05)
    losses = []
    for _ in range(20):
        loss = criterion(images()["x"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and set(criterion.parts) == {"kl", "hint", "look", "who"}
    assert all(torch.equal(frozen[k], v) for k, v in teacher.state_dict().items()) and not teacher.training


def test_criterion_equals_the_functional() -> None:
    student, teacher = pair()
    x = images()["x"]
    loss = Criterion({"kl": Kl(weight=3.0, temperature=2)}, student, teacher, x)(x)
    assert loss.item() == pytest.approx(3 * F.kl(student(x), teacher(x), temperature=2.0).mean().item(), rel=1e-6)


def test_what_does_not_fit_is_said() -> None:
    student, teacher = pair()
    with pytest.raises(TapError, match="no module of that name"):
        Criterion({"hint": FeatureMatch("9", "1")}, student, teacher, images()["x"])
    with pytest.raises(ShapeError, match="widths"):
        Criterion({"hint": FeatureMatch("1", "1", project="never")}, student, teacher, images()["x"])
    with pytest.raises(ConfigError, match="images"):
        Flip()({"x": torch.zeros(2, 3), "item": torch.arange(2), "view": torch.zeros(2)}, Ctx())


def test_an_add_on_attaches_to_any_host_by_recipe(tmp_path: Path) -> None:
    add = (
        "objectives.hint=feature",
        "objectives.hint.student=act1",
        "objectives.hint.teacher=act1",
        "objectives.hint.weight=0.1",
    )
    run = tiny("nkd", tmp_path, *add)
    run.engine.prepare(run.method)
    before = {k: v.clone() for k, v in run.method.roles["projector:hint"].module.state_dict().items()}
    run.engine.run(run.method)
    after = run.method.roles["projector:hint"].module.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    with pytest.raises(ConfigError, match="no objective is called 'featur'"):
        tree_of("kd", "objectives.hint=featur")


def test_a_relation_of_single_items_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    who = ("objectives.who=relation", "objectives.who.student=act1", "objectives.who.teacher=act1")
    message = r"objectives\.who has a single item to compare: train\.batch_size=3 cut by engine\.accumulate=2"
    with pytest.raises(ConfigError, match=message):
        tiny("kd", tmp_path, *who, "train.batch_size=3", "engine.accumulate=2").run()


def test_a_criterion_refuses_what_only_a_run_can_do() -> None:
    x = images()["x"]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 3))
    with pytest.raises(ConfigError, match=r"criterion\.out"):
        Criterion({"ce": Supervised()}, net, net, x)
    with pytest.raises(ConfigError, match="nothing to match"):
        Criterion({}, net, net, x)


def test_a_criterion_takes_its_teacher_along_and_calls_the_wrapped_student() -> None:
    x = images()["x"].double()
    student, teacher = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 3)) for _ in range(2))
    criterion = Criterion({"kl": Kl()}, student, teacher, x.float()).double()
    assert teacher[1].weight.dtype == torch.float64 and student[1].weight.dtype == torch.float32
    assert not criterion.state_dict()
    student.double()
    calls = []

    class Wrapped(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return student(x)

    assert torch.equal(criterion(x), criterion(x, student=Wrapped())) and calls == [1]
