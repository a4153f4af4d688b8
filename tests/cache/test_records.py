"""What a recording can keep, what it names when it cannot, and runs that go without what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.cache import Cache, build_cache
from limbeck.cache.records import Misfits, Remaining, rounding
from limbeck.data.items import ArrayData
from limbeck.errors import CacheMismatch, ConfigError
from limbeck.grammar.signal import Signal
from limbeck.recipe.recipe import build
from limbeck.run import prepare, run
from tests.tiny import quiet, tree_of


class Sensor(nn.Module):
    """Answers that are odd for images whose ink is a multiple of 23."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(64, 10, bias=False)
        nn.init.normal_(self.layer.weight, std=0.3, generator=torch.Generator().manual_seed(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x.flatten(1))
        odd = self.odd(x)[:, None]
        if self.kind == "nan":
            return torch.where(odd, torch.nan, out)
        if self.kind == "large":
            return torch.where(odd, out + torch.linspace(0, 8e4, 10), out)
        if self.kind == "never":
            return torch.where(odd & (torch.arange(10) == 3), -torch.inf, out)
        return torch.where(odd, -torch.inf, out)  # every class ruled out

    @staticmethod
    def odd(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1).sum(1) * 16).round().long() % 23 == 9


def sensor(kind: str) -> nn.Module:
    return Sensor(kind)


def tree(kind: str, *more: str) -> dict[str, Any]:
    teacher = ("teacher=import:tests.cache.test_records:sensor", f"teacher.options.kind={kind}", "teacher.ready=true")
    return tree_of("kd", *teacher, "teacher.normalise=false", "teacher.check=off", *more)


def odd_items() -> list[int]:
    task = build(tree_of("kd")).task
    task.load(0)
    x = task.train.fetch(torch.arange(len(task.train)))["x"]
    return Sensor.odd(x).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nan", "the answers are NaN or infinite: items {}; --leave-out"),
        ("nothing", "the answers are NaN or infinite: items {}; --leave-out"),
        (
            "large",
            "the answers reach 80,00.*, where float16 holds no more than 65,504: items {}; --dtype float32 holds",
        ),
    ],
)
def test_items_that_cannot_be_recorded_are_named(kind: str, said: str, tmp_path: Path) -> None:
    odd = odd_items()
    assert 1 < len(odd) <= 16
    with pytest.raises(ConfigError, match=said.format(", ".join(map(str, odd)))):
        build_cache(tree(kind), tmp_path / "c", yes=True)


def test_a_class_ruled_out_is_recorded_as_it_is(tmp_path: Path) -> None:
    told = build_cache(tree("never"), tmp_path, yes=True)
    assert 0 <= told["KL(teacher || record)"] < 1e-6 and "left out" not in told
    task = prepare(build(tree("never")), None, say=quiet).task
    batch = {**task.train.fetch(torch.tensor(odd_items())), "item": torch.tensor(odd_items())}
    z = Cache(tmp_path).answer({**batch, "view": torch.zeros_like(batch["item"])}).logits
    assert torch.equal(z.isinf(), (torch.arange(10) == 3).expand_as(z))


def test_float32_holds_large_answers(tmp_path: Path) -> None:
    told = build_cache(tree("large"), tmp_path, yes=True, precision="float32")
    assert told["KL(teacher || record)"] == 0
    bench = prepare(build(tree("large")), None, say=quiet)
    ids = torch.tensor([0, *odd_items()])
    batch = {**bench.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    assert bench.teacher is not None
    assert torch.equal(Cache(tmp_path).answer(batch).logits, bench.teacher.module(batch["x"]))


def test_a_run_goes_without_what_was_left_out_and_says_so(tmp_path: Path) -> None:
    """Student and baseline alike; every answer is that of its own item."""
    odd = odd_items()
    told = build_cache(tree("nan"), tmp_path / "c", yes=True, leave_out=True)
    assert told["left out"] == f"{len(odd)}: items {', '.join(map(str, odd))}"
    cached = tree_of("kd", f"teacher=cached:{tmp_path / 'c'}")
    cached["teacher"] = {"use": "cached", "path": str(tmp_path / "c")}
    recipe = build(cached)
    bench = prepare(recipe, None, say=quiet)
    whole = build(tree("nan")).task
    whole.load(0)
    assert len(bench.task.train) == len(whole.train) - len(odd)
    ids = torch.arange(len(bench.task.train))
    batch = {**bench.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    assert not Sensor.odd(batch["x"]).any()
    assert bench.teacher is not None
    expected = Sensor("nan")(batch["x"])
    torch.testing.assert_close(bench.teacher.module.answer(batch).logits, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(CacheMismatch, match="items below"):
        bench.teacher.module.answer({**batch, "item": ids + 1})
    result = run(cached, tmp_path / "run", quiet=True)
    assert result["items"]["train"] == len(ids)
    assert any(f"without {len(odd)} of {len(whole.train)} items" in note for note in result["notes"])


def test_nothing_left_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sensor, "odd", staticmethod(lambda x: torch.ones(len(x), dtype=torch.bool)))
    with pytest.raises(ConfigError, match="no item would be left"):
        build_cache(tree("nan"), tmp_path, yes=True, leave_out=True)


def test_misfits_by_kind() -> None:
    """Input, answer and size are told apart; positions that do not count may hold anything; features are looked at too."""
    z = torch.zeros(5, 3, 4)
    z[0, 1, 2], z[1, 2], z[2, 0, 0], z[3, 0, 1] = torch.nan, torch.nan, 7e4, -torch.inf
    where = torch.ones(5, 3, dtype=torch.bool)
    where[1, 2] = False
    batch = {"x": torch.zeros(5, 2), "item": torch.arange(10, 15), "where": where}
    batch["x"][4] = torch.inf
    looked = Misfits("float16")
    assert looked.look(batch, Signal(z)).tolist() == [True, False, True, False, True]
    assert (looked.of("answer"), looked.of("large"), looked.of("input")) == ([10], [12], [14])
    wide = Misfits("float32")
    assert wide.look(batch, Signal(z)).tolist() == [True, False, False, False, True]
    feature = torch.zeros(5, 2)
    feature[3] = -torch.inf
    assert Misfits("float32").look(batch, Signal(torch.zeros(5, 4), {"f": feature})).tolist() == [0, 0, 0, 1, 1]
    said = looked.error(5, 90).line()
    assert "3 of the first 5 of 90 items" in said and "inputs are not finite: items 14" in said


def test_rounding_of_a_class_ruled_out_is_nothing() -> None:
    z = torch.tensor([[1.0, 2.0, -torch.inf]])
    assert 0 <= rounding(z) < 1e-6 and rounding(z, "float32") == 0


def test_remaining_items_are_renumbered() -> None:
    data = ArrayData(torch.arange(6.0)[:, None], torch.arange(6))
    rest = Remaining(data, [4, 1])
    assert rest.fetch(torch.arange(len(rest)))["x"][:, 0].tolist() == [0, 2, 3, 5] == rest.y.tolist()
    assert rest.fingerprint != data.fingerprint and rest.fingerprint == Remaining(data, [1, 4]).fingerprint
    assert rest.shape == (1,)
