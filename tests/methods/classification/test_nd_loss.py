"""ND loss: the released loop, the class means, the hosts it attaches to, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.functional.feature import class_directions, class_means, norm_direction
from limbeck.methods.classification.nd_loss import NdLoss
from limbeck.networks.shows import last_linear
from limbeck.objectives import NormDirection
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import Tiny
from tests.tiny import shared_tiny as tiny


def features(n: int = 40, d: int = 6, c: int = 5) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    s, t, m = (torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, n, c))
    return s * torch.linspace(0.2, 3, n)[:, None], t, m, torch.randint(0, c, (n,), generator=g)


def test_values_are_those_of_a_loop_over_items() -> None:
    s, t, m, y = features()
    for part in ("both", "direction", "norm"):
        for below in ("max", "teacher"):
            want = []
            for i in range(len(s)):
                e, own, other = m[y[i]] / m[y[i]].norm(), s[i].norm(), t[i].norm()
                under = other if below == "teacher" else max(own, other)
                want.append(1 - {"both": s[i] @ e / under, "direction": s[i] @ e / own, "norm": own / under}[part])
            got = norm_direction(s, t, class_directions(m, y), part=part, denominator=below)  # type: ignore[arg-type]
            torch.testing.assert_close(got, torch.stack(want))
    # the scale of the means changes nothing; a feature along its class mean and long enough has no loss
    e = class_directions(m, y)
    torch.testing.assert_close(class_directions(7 * m, y), e)
    assert norm_direction(e * 9, t, e).abs().max() < 1e-12
    # a soft label is the mixture of the classes' losses
    soft = torch.nn.functional.one_hot(y, 5).double() * 0.7
    soft[:, 0] += 0.3
    mixed = 0.7 * norm_direction(s, t, e) + 0.3 * norm_direction(s, t, class_directions(m, torch.zeros_like(y)))
    torch.testing.assert_close(norm_direction(s, t, class_directions(m, soft)), mixed)


def test_gradient_lengthens_a_short_feature_and_turns_a_long_one() -> None:
    e = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    short, long = ((torch.tensor([[0.6, 0.8]], dtype=torch.float64) * k).requires_grad_() for k in (1.0, 5.0))
    for s in (short, long):
        norm_direction(s, 2 * e, e).sum().backward()
    assert short.grad is not None and long.grad is not None
    torch.testing.assert_close(short.grad, -e / 2)
    assert (long.grad * long).sum().abs() < 1e-12, "the loss of a long feature does not depend on its length"
    tie = (2 * e).clone().requires_grad_()
    (slope,) = torch.autograd.grad(norm_direction(tie, 2 * e, e).sum(), tie)
    assert slope.abs().max() < 1e-12, "at a tie the student's norm is the denominator"
    zero = torch.zeros(1, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(norm_direction(zero, torch.zeros(1, 2), torch.ones(1, 2)).sum(), zero)
    assert torch.isfinite(slope).all()


def test_a_class_without_a_direction_is_named() -> None:
    with pytest.raises(DataError, match=r"\[1\]"):
        class_directions(torch.tensor([[1.0], [0.0]]), torch.tensor([0, 1]))
    assert class_directions(torch.tensor([[1.0], [0.0]]), torch.tensor([0, 0])).shape == (2, 1)


def means_of(made: Tiny, name: str = "nd") -> torch.Tensor:
    means: torch.Tensor = made.method.roles[f"projector:{name}"].module.means
    return means


def test_class_means_are_those_of_the_training_items(tmp_path: Path) -> None:
    made = tiny("nd-loss", tmp_path).run()
    built, data = made.bench.teacher, made.method.task.train
    assert built is not None
    batch = data.fetch(torch.arange(len(data)))
    path = last_linear(built.module).removesuffix(":in")
    with torch.no_grad():
        layers = list(built.module.children())
        x = built.contract.inputs(batch["x"])
        for layer in layers[:-1]:
            x = layer(x)
    assert dict(built.module.named_modules())[path] is layers[-1]
    want, count = class_means(x.double(), batch["y"], 10)
    assert count.min() > 0
    torch.testing.assert_close(means_of(made).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kd", []),
        ("nkd", []),
        ("bd-kd", ["method.mode=offline", "teach.steps=2"]),
        ("bd-kd", ["objectives.nd.target=item"]),
        ("kd3", ["student.hidden=[16]"]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_attaches_to_other_methods_by_recipe(name: str, words: list[str], tmp_path: Path) -> None:
    made = tiny(name, tmp_path, "objectives.nd=norm-direction", *words, "train.steps=2")
    weights = {k: v.clone() for k, v in made.method.roles["student"].module.state_dict().items()}
    made.run()
    assert bool(means_of(made).any()) == ("objectives.nd.target=item" not in words)
    assert any(not torch.equal(v, weights[k]) for k, v in made.method.roles["student"].module.state_dict().items())


def test_hosts_and_an_adapter_that_learns(tmp_path: Path) -> None:
    for host in ("dkd", "dist"):
        made = tiny("nd-loss", tmp_path / host, f"method.host={host}", "student.hidden=[6]", "train.steps=2")
        made.engine.prepare(made.method)
        adapter = made.method.roles["projector:nd"].module
        before = {n: p.clone() for n, p in adapter.named_parameters()}
        assert len(before) == 4, "batch normalisation and a linear layer"
        made.run()
        after = dict(made.method.roles["projector:nd"].module.named_parameters())
        assert any(not torch.equal(p, before[n]) for n, p in after.items())


def test_warm_up_brings_the_distillation_in_by_epochs() -> None:
    method: Any = NdLoss(warm_up=4, kd=3)
    from limbeck.functional.schedule import warmup

    assert [method.kd * warmup(epoch, method.warm_up) for epoch in (0, 2, 4, 9)] == [0.0, 1.5, 3.0, 3.0]
    assert set(NdLoss(kd=0).objectives) == {"nd"} and set(NdLoss(nd=0).objectives) == {"host"}


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("nd-loss", ["student.hidden=[6]", "method.adapter=never"], "different widths: student 6, teacher 16"),
        ("nd-loss", ["method.teacher_feature=nowhere"], "nowhere"),
        ("bd-kd", ["objectives.nd=norm-direction"], "the teacher learns in this run"),
        ("uskd", ["objectives.nd=norm-direction"], "needs a teacher"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny(name, tmp_path, *words).run()


def test_settings_without_effect_and_tasks_without_classes_are_refused() -> None:
    words = ["objectives.nd={use: norm-direction, part: direction, denominator: teacher}"]
    with pytest.raises(ConfigError, match="changes nothing for part=direction"):
        build(check(load_tree("kd", words)))
    for kind in ("number", "labels"):
        with pytest.raises(ConfigError, match="one class each"):
            NormDirection().accept(SimpleNamespace(kind_of_target=kind))  # type: ignore[arg-type]
