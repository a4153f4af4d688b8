"""A moving average of the student, switched on by recipe at any host: its weights, its row, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.grammar.average import Average
from limbeck.recipe.recipe import build
from limbeck.run.restoring import restore
from limbeck.run.running import run
from tests.tiny import Tiny, differences, run_with_stop, state_of, tree_of
from tests.tiny import shared_tiny as tiny

HOSTS = ["kd", "nkd", "dkd", "nd-loss", "mixup-kd"]
ON = ("average.decay=0.6", "average.warmup=false")


class Watch:
    """Takes the student's weights down after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        self.made: Tiny | None = None

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """A stage begins."""

    def advance(self, n: int = 1, **metrics: Any) -> None:
        if n and self.made is not None:
            self.seen.append({k: v.clone() for k, v in self.made.method.roles["student"].module.state_dict().items()})

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("host", HOSTS)
def test_it_follows_the_student_of_any_host(host: str, tmp_path: Path) -> None:
    watch = Watch()
    made = tiny(host, tmp_path / "a", *ON, progress=watch)
    first = {k: v.clone() for k, v in made.method.roles["student"].module.state_dict().items()}
    watch.made = made
    made.run()
    assert len(watch.seen) == 6
    mean = first
    for now in watch.seen:
        mean = {k: 0.6 * mean[k] + 0.4 * v for k, v in now.items()}
    found = made.method.roles["average"].module.state_dict()
    for name, value in mean.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in made.method.roles["average"].module.parameters())
    plain = tiny(host, tmp_path / "b").run()  # the student does not know of it
    assert not differences(state_of(plain)["roles"]["student"], state_of(made)["roles"]["student"])


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = tiny("nkd", tmp_path / "a", "average.decay=0.9").run()
    cut = run_with_stop("nkd", tmp_path / "b", 3, "average.decay=0.9")
    assert not differences(state_of(whole), state_of(cut))


@pytest.mark.parametrize("deliver", [False, True])
def test_it_has_a_row_and_may_be_what_is_delivered(deliver: bool, tmp_path: Path) -> None:
    tree = tree_of("kd", *ON, f"average.deliver={str(deliver).lower()}", "baselines=[]")
    result = run(tree, tmp_path / "run", quiet=True)
    other = "learner" if deliver else "average"
    assert list(result["metrics"]["rows"])[:2] == ["student", other] and other in result["sizes"]
    back: Any = restore(tmp_path / "run").artifact
    state = {k: v.cpu() for k, v in back.built.module.state_dict().items()}
    roles = tiny("kd", tmp_path / "again", *ON).run().method.roles
    wanted, rest = ("average", "student") if deliver else ("student", "average")
    assert not differences(state, dict(roles[wanted].module.state_dict()))
    assert differences(state, dict(roles[rest].module.state_dict()))


def test_the_share_rises() -> None:
    one = Average(decay=0.9)
    assert [one.kept(s, 9) for s in (0, 9, 10_000)] == pytest.approx([0.1, 10 / 19, 0.9])
    assert Average(decay=0.9, warmup=False).kept(0, 9) == 0.9


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("mean-teacher", "delivers a moving average already"),
        ("guided-self-distillation", "puts its result together by itself"),
        ("kd3", "puts its result together by itself"),
    ],
)
def test_what_has_no_student_to_average_is_refused(host: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"average: the method {said}.*average=null"):
        tiny(host, tmp_path, "average.decay=0.9")


@pytest.mark.parametrize("decay", ["1", "-0.1", "1.5"])
def test_a_share_that_is_none_is_refused(decay: str) -> None:
    with pytest.raises(ConfigError, match=r"average\.decay: must be 0 or more and below 1"):
        build(tree_of("kd", f"average.decay={decay}"))
