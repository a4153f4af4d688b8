"""Methods of a module by name, what is done once when a run begins, and a method's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine import interrupt
from limbeck.errors import ConfigError, Stopped, TapError
from limbeck.evaluators.sampler import Sampler
from limbeck.grammar.method import Batch, Context, Setup, Stage, Term, Terms
from limbeck.grammar.role import Contract, Role
from limbeck.networks.lora import Lora
from tests.tiny import StopAfter, differences
from tests.toy import WIDTH, Toy, bound, engine, learnt, within


class Towers(nn.Module):
    """Two towers, asked by name, as contrastive models are."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(4, 3), nn.Sequential(nn.Linear(WIDTH, 3), nn.Dropout(0.5))

    def encode_text(self, words: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.text(words)

    def encode_image(self, x: Tensor) -> Tensor:
        return self.image(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.image(x)


class Named(Toy):
    """A reference with two towers: its text is called, its images are fed through its contract."""

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        torch.manual_seed(5)
        self.roles["towers"] = Role(Towers(), contract=Contract(mean=(1.0,), std=(2.0,), width=10))
        self.new("view", like="towers", adapter=Lora(rank=2, targets="text"))
        self.learners = ("student", "view")
        self.seen: list[Any] = []

    def step(self, batch: Batch, ctx: Context) -> Any:
        words = batch["x"][:, :4]
        towers = self.roles["towers"].module
        t = ctx.call("towers", words, by="encode_text", scale=2.0)
        assert torch.equal(t, 2 * towers.text(words)) and not t.requires_grad
        shown = ctx.signal("towers", batch, taps=("image.0",), by="encode_image")
        torch.testing.assert_close(shown.out, towers.image[0]((batch["x"] - 1) / 2))
        assert torch.equal(shown.acts["image.0"], shown.out) and "towers" not in ctx.signals
        v = ctx.call("view", words, by="encode_text")
        self.seen.append(float((v - t / 2).detach().abs().sum()))
        z = ctx.signal("student", batch).logits
        return Terms(
            pull=Term((z - t - shown.out).square().sum(1)), text=Term((v - z.detach()).square().sum(1), "view")
        )

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        pass


def test_a_method_of_a_module_is_called_as_the_role_is() -> None:
    method: Any = bound(Named())
    engine().run(method)
    assert method.seen[0] == 0.0 and method.seen[-1] > 0.0, "the view acts in its methods too"

    class Wrong(Named):
        def step(self, batch: Batch, ctx: Context) -> Any:
            return ctx.call("towers", batch["x"], by="encode_txt")

    with pytest.raises(ConfigError, match=r"did you mean 'encode_text'.*encode_image, encode_text$"):
        engine().run(bound(Wrong()))


class Begun(Toy):
    """Changes a role and its state once, before items are made."""

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.new("start", like="student")
        self.state |= {"begun": 0}

    def stages(self) -> list[Stage]:
        return [
            Stage("items", items=lambda ctx: ["a"], work=lambda item, ctx: {"n": self.state["begun"]}),
            *super().stages(),
        ]

    def begin(self, ctx: Context) -> None:
        assert ctx.step == 0 and not self.roles["student"].module.training
        self.state["begun"] += 1
        with torch.no_grad():
            self.roles["start"].module[0].bias.add_(float(ctx.draws.rand("u", torch.tensor([0]))[0]))

    def measures(self) -> dict[str, float]:
        return {"adapted": self.state["t"]}


class Log:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def resume(self, stage: str, step: int) -> None: ...

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        self.rows.append(values)


def test_begin_is_done_once_and_stays(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None) -> Any:
        method = bound(Begun())
        made = engine(folder, None if stop is None else StopAfter(stop), log_every=2)
        made.logs = Log()
        made.run(method)
        assert all("adapted" in row for row in made.logs.rows) and made.logs.rows
        return method

    whole = run(tmp_path / "whole")
    assert whole.state["begun"] == 1
    for stop in (1, 4):
        with pytest.raises(Stopped):
            run(tmp_path / str(stop), stop)
        interrupt.clear()
        assert not differences(learnt(whole), learnt(run(tmp_path / str(stop))))


def test_the_metric_of_samplers_is_a_setting() -> None:
    assert (Sampler().primary, Sampler().higher_is_better) == ("endpoint_mse", False)
    chosen = Sampler(guidance=[0.0, 1.5], steps=[2], metric="class_accuracy_w1.5_n2")
    assert (chosen.primary, chosen.higher_is_better) == ("class_accuracy_w1.5_n2", True)
    with pytest.raises(ValueError, match="fid_w0_n2"):
        Sampler(guidance=[0.0], steps=[2], metric="fid_w0_n3")


def test_activations_are_edited_for_one_pass_and_taps_show_it() -> None:
    method = bound()
    run = engine()
    run.prepare(method)
    ctx = within(run, method, run.stages[0])
    batch = method.task.example(4)
    plain = ctx.signal("student", batch, ["2"])
    zero = ctx.signal("student", batch, ["2"], edit={"2": lambda h: h * 0})
    assert float(zero.acts["2"].detach().abs().max()) == 0.0
    bias = method.roles["student"].module[-1].bias
    torch.testing.assert_close(zero.logits, bias.expand_as(zero.logits))
    doubled = ctx.signal("student", batch, edit={"4:in": lambda h: 2 * h}).logits - bias
    torch.testing.assert_close(doubled, 2 * (plain.logits - bias))
    assert torch.equal(ctx.signal("student", batch).logits, plain.logits)  # the model is as it was
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for n, m in method.roles["student"].module.named_modules() if n != "2"
    )
    with pytest.raises(TapError, match="'nowhere'"):
        ctx.signal("student", batch, edit={"nowhere": lambda h: h})
    with pytest.raises(TapError, match="all calls"):
        ctx.signal("student", batch, edit={"2:all": lambda h: h})
    method.roles["student"].compile = True
    with pytest.raises(ConfigError, match=r"engine\.compile=false"):
        ctx.signal("student", batch, edit={"2": lambda h: h})
