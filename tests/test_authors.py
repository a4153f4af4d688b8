"""Who writes a method is told what is wrong with it: in the step, in its taps, in what the battery finds."""

from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck import cli
from limbeck.errors import MethodError, TapError
from limbeck.grammar.method import Batch, Context, Method, Term, Terms
from limbeck.grammar.signal import Signal
from tests.battery_cures import CURES
from tests.toy import bound, engine


class Answers(Method):
    """Its step returns what a test puts there."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def step(self, batch: Batch, ctx: Context) -> Any:
        return self.answer(ctx.signal("student", batch), ctx.signal("teacher", batch))


def loss(s: Signal, t: Signal) -> torch.Tensor:
    return F.kl(s.logits, t.logits)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda s, t: Terms(kl=loss(s, t)), r"term 'kl': is a tensor \[\d+\], expected a Term; write kl=Term"),
        (lambda s, t: Terms(kl=3), "metrics come first"),
        (
            lambda s, t: loss(s, t),
            r"Answers\.step: returned a tensor \[\d+\], expected Terms; end it with `return Terms",
        ),
        (lambda s, t: Term(loss(s, t)), "returned Term, expected Terms"),
        (lambda s, t: {"kl": Term(loss(s, t))}, "returned dict, expected Terms; write Terms"),
        (lambda s, t: None, "returned nothing, expected Terms"),
        (lambda s, t: iter([Terms(kl=Term(loss(s, t))), loss(s, t)]), r"yielded a tensor"),
    ],
)
def test_what_a_step_returns(answer: Any, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        engine().run(bound(Answers(answer)))


def test_a_tap_that_was_not_asked_for() -> None:
    shown = Signal(torch.zeros(2), {"layer1": torch.zeros(2), "layer2": torch.zeros(2)})
    with pytest.raises(
        TapError, match=r"'layer3': was not asked for.*did you mean 'layer.'.*ctx\.signal\(role, batch, \['layer3'\]\)"
    ):
        shown.acts["layer3"]
    assert shown.acts.get("layer3") is None and dict(shown.acts)


def test_every_row_of_the_battery_has_a_cure() -> None:
    tree = ast.parse((Path(__file__).parent / "test_battery.py").read_text())
    tests = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    assert tests == set(CURES)


def test_a_failure_of_the_battery_says_cause_and_cure() -> None:
    from types import SimpleNamespace

    from tests.conftest import pytest_runtest_makereport

    def told(file: str, failed: bool) -> list[tuple[str, str]]:
        item: Any = SimpleNamespace(originalname="test_a_batch_of_one_runs", path=Path(file))
        report = SimpleNamespace(failed=failed, sections=[])
        hook = pytest_runtest_makereport(item, None)  # type: ignore[arg-type]
        next(hook)
        with pytest.raises(StopIteration):
            hook.send(report)  # type: ignore[arg-type]
        return report.sections

    assert "handle one item" in told("tests/test_battery.py", True)[0][1]
    assert not told("tests/test_battery.py", False) and not told("tests/test_other.py", True)


def test_an_error_in_code_of_one_s_own_is_not_called_limbeck_s(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
        import json
        def broken():
            return json.loads(3)
        def calls(f):
            f()
    """)
    )
    space: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    for function, own in ((space["broken"], True), (lambda: space["calls"](lambda: cli._end(None)), False)):  # type: ignore[call-arg, arg-type]
        with pytest.raises(TypeError) as caught:
            function()
        said = cli._crash(caught.value, ["run"])
        assert (f"{path}:4" in said and "your own code" in said) is own
        Path(said.split()[-1].rstrip(")")).unlink(missing_ok=True)


def test_show_lists_taps_of_a_recipe_and_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "kd", "--taps", "student=mlp:[5]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"student", "teacher"}
    fc1 = next(p for p in found["student"] if p["name"] == "fc1")
    assert fc1 == {"name": "fc1", "module": "Linear", "shape": [2, 5], "calls": 1, "parameters": 64 * 5 + 5}
    assert cli.main(["show", "mlp:[7]", "--taps"]) == 0
    text = capsys.readouterr().out
    assert "mlp:[7]" in text and "2x7" in text and "teacher" not in text and "NAME:in" in text
    assert cli.main(["show", "kd", "student=mlp:[5]"]) == 2
    assert "add --taps" in capsys.readouterr().err
