"""DisWOT: the score is that of untrained networks, the search keeps to its budgets, what is found is what is delivered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.grammar.task import Model
from limbeck.methods.search.diswot import Diswot, Record
from limbeck.parts.proxies import Reader
from limbeck.recipe.recipe import make
from tests.test_battery import steps_of
from tests.tiny import differences, run_with_stop, state_of
from tests.tiny import shared_tiny as tiny

SPACE = {"blocks": {"0": [1, 2], "1": [1, 2], "2": [1]}}


RESNETS = ("teacher={use: cifar-resnet, width: 4, blocks: [2, 1, 1]}", "student={use: cifar-resnet, width: 4, blocks: [1, 1, 1]}",
           "method.space={blocks: {'0': [1, 2], '1': [1, 2], '2': [1]}}")  # fmt: skip


def searched(folder: Path, *overrides: str) -> Any:
    """A run without training: the search alone."""
    return (
        tiny("diswot", folder, *RESNETS, "train.steps=0", "teach.steps=0", "method.rivals=[]", *overrides).run().method
    )


def test_what_is_found_is_delivered_and_opens_again(tmp_path: Path) -> None:
    made = tiny("diswot", tmp_path, *RESNETS, "student.blocks=[2,2,1]", "train.steps=1", "teach.steps=0")
    method: Any = made.run().method
    method.artifact().save(tmp_path)
    table = json.loads((tmp_path / "architecture.json").read_text())
    chosen = next(row for row in table if row["chosen"])
    assert chosen["estimate"] == max(row["estimate"] for row in table)
    own = json.loads((tmp_path / "student.json").read_text())["model"]
    assert own["use"] == "cifar-resnet" and own["blocks"] == chosen["model"]["blocks"] != [2, 2, 1]
    again = make(Model, {**own, "checkpoint": str(tmp_path / "student.safetensors")}, "student").build(made.bench.task)
    state = dict(again.module.state_dict())
    assert not differences(state, dict(method.roles["student"].module.state_dict()))
    assert sum(p.numel() for p in again.module.parameters()) == chosen["costs"]["parameters"]
    rows = method.rows()
    assert list(rows) == ["hand-picked"] and rows["hand-picked"].built.model is method.setup.student.model
    tables = method.extras()["tables"]
    assert tables[0]["title"].startswith("The best of 4") and tables[-1]["title"] == "Seconds"
    assert dict(tables[-1]["rows"])["training over measuring one"].endswith("times")


def test_scores_belong_to_networks_and_to_no_trained_weight(tmp_path: Path) -> None:
    first = searched(tmp_path / "a")
    assert first.found["complete"] and len(first.found["score"]) == 4
    scores = dict(zip(map(tuple, first.found["genes"].tolist()), first.found["score"].tolist(), strict=True))
    # another order of the search, and another teacher's weights, give the same scores
    other = searched(tmp_path / "b", "method.search=all", "teach.steps=3")
    again = dict(zip(map(tuple, other.found["genes"].tolist()), other.found["score"].tolist(), strict=True))
    assert again == scores
    best = tuple(first.found["picks"]["best"].tolist())
    assert scores[best] == max(scores.values())
    assert first.here["student"] == best
    # and they are what the formula says of freshly drawn weights
    values = first.found["values"]
    torch.testing.assert_close(first.found["score"], -(values["relation"] + values["semantic"]), check_dtype=False)
    assert float(values["semantic"].min()) > 0


def test_repeats_are_averaged_over_first_weights(tmp_path: Path) -> None:
    method = searched(tmp_path, "method.search=random", "method.population=1", "method.cycles=0")
    batch = {"x": torch.rand(8, 1, 8, 8), "y": torch.arange(8)}
    measure = [
        method.measurer(batch, ["relation", "kd"], n)((0, 0, 0), method.students.build((0, 0, 0), 0)) for n in (1, 3)
    ]
    drawn: list[float] = []
    keep = method.untrained

    def one(reader: Reader, batch: Any, *key: Any, wanted: Any) -> Any:
        return keep(reader, batch, *key[:-1], turn, wanted=wanted)

    method.untrained = one
    for turn in range(3):  # noqa: B007 (read by what stands for `untrained`)
        drawn.append(
            method.measurer(batch, ["relation", "kd"], 1)((0, 0, 0), method.students.build((0, 0, 0), 0))["relation"]
        )
    assert measure[0]["relation"] == pytest.approx(drawn[0]) and len(set(drawn)) == 3
    assert measure[1]["relation"] == pytest.approx(sum(drawn) / 3)


def test_rank_averages_where_the_sum_follows_the_larger_metric() -> None:
    records = [Record({"relation": r, "semantic": s}, {}) for r, s in ((0.001, 0.6), (0.002, 0.5), (0.009, 0.4))]
    by_sum = Diswot(space=SPACE).rate(records)
    assert by_sum.argmax() == 2 and by_sum == pytest.approx([-0.601, -0.502, -0.409])
    by_rank = Diswot(space=SPACE, combine="rank").rate(records)
    assert by_rank == pytest.approx([-4 / 3] * 3)
    worst = Diswot(space=SPACE).rate([records[0], Record({"relation": float("nan"), "semantic": 0.1}, {})])
    assert worst.argmax() == 0 and np.isneginf(worst[1])


def test_budgets_hold_and_the_largest_within_them_is_known(tmp_path: Path) -> None:
    method = searched(
        tmp_path, "method.parameters=0.95", "method.operations=1.4e5", "method.latency_ms=1e6", "method.rivals=[largest,random]",
        "teacher.blocks=[2,2,1]",
    )  # fmt: skip
    parent = sum(p.numel() for p in method.roles["teacher"].module.parameters())
    assert method.budgets.most["parameters"] == pytest.approx(0.95 * parent)
    costs = method.found["costs"]
    assert method.found["refused"] >= 1 and float(costs["parameters"].max()) <= 0.95 * parent
    assert float(costs["operations"].max()) <= 1.4e5 and float(costs["latency_ms"].min()) > 0
    built = {n: sum(p.numel() for p in method.roles[n].module.parameters()) for n in ("largest", "random", "student")}
    assert built["largest"] == float(costs["parameters"].max()) and built["random"] in costs["parameters"].tolist()


def test_a_list_of_models(tmp_path: Path) -> None:
    models = "method.candidates=[{use: convnet, width: 4, depth: 1, norm: batch}, {use: mlp, hidden: [7]}, {use: mlp, hidden: [9]}]"
    method = searched(
        tmp_path, "method.space=null", models, "method.metrics=[relation,rkd,nwot]", "method.search=all",
        "student={use: mlp, hidden: [5]}",
    )  # fmt: skip
    assert len(method.found["score"]) == 3
    assert method.setup.student.model is not method.made["student"].model
    assert "use" not in method.students.named((0,)) and method.students.named((0,)).startswith("convnet")


def test_the_released_search(tmp_path: Path) -> None:
    method = searched(tmp_path, "method.variant=released", "method.parameters=0.95", "teacher.blocks=[2,2,1]")
    assert list(method.found["values"]) == ["semantic"] and method.found["refused"] == 0
    assert len(method.found["score"]) == 4  # children of any size are looked at, and none beyond the budget is taken
    assert method.made["student"].module is method.roles["student"].module
    assert sum(p.numel() for p in method.roles["student"].module.parameters()) <= method.budgets.most["parameters"]
    # each network was held against a teacher of its own, where the paper has one for all
    batch = {"x": torch.rand(8, 1, 8, 8), "y": torch.arange(8)}
    keys: list[Any] = []
    keep = method.untrained
    method.untrained = lambda reader, batch, *key, wanted: (keys.append(key), keep(reader, batch, *key, wanted=wanted))[
        1
    ]
    for variant, teachers in (("released", 2), ("paper", 1)):
        method.variant = variant
        keys.clear()
        measure = method.measurer(batch, ["semantic"], 1)
        for genes in ((0, 0, 0), (1, 0, 0)):
            measure(genes, method.students.build(genes, 0))
        assert len({k for k in keys if k[0] == "teacher"}) == teachers


def test_networks_trained_here_rank_the_proxies(tmp_path: Path) -> None:
    from scipy.stats import kendalltau

    made = tiny(
        "diswot", tmp_path, *RESNETS, "method.truth=4", "method.truth_metrics=[kd,at]", "method.truth_repeats=2", "train.steps=2",
        "teach.steps=0",
    ).run()  # fmt: skip
    method: Any = made.method
    assert [s.name for s in made.engine.stages] == ["search", "truth", "distil", "hand-picked"]
    assert sorted(tuple(t["genes"].tolist()) for t in method.trials) == sorted(
        map(tuple, method.found["genes"].tolist())
    )
    measures = method.measures()
    for t, a in zip(method.trials, (0.9, 0.5, 0.7, 0.2), strict=True):
        t["accuracy"] = a
    ranks = method.ranks()
    score = [-(t["values"]["relation"] + t["values"]["semantic"]) for t in method.trials]
    assert ranks["score"] == pytest.approx(kendalltau(score, [0.9, 0.5, 0.7, 0.2]).statistic)
    assert ranks["kd"] == pytest.approx(
        -kendalltau([t["values"]["kd"] for t in method.trials], [0.9, 0.5, 0.7, 0.2]).statistic
    )
    assert {"parameters", "operations", "at", "partial"} <= set(ranks) and measures["speed_up"] > 0
    assert [t["title"].split(",")[0] for t in method.extras()["tables"]][1].startswith("Kendall's tau")


def test_rivals_are_distilled_alike_and_none_twice(tmp_path: Path) -> None:
    one = ("method.space={activation: [relu], norm: [instance]}", "train.steps=2", "teach.steps=0")
    made = tiny("diswot", tmp_path / "a", *one)
    method: Any = made.run().method
    assert method.same("hand-picked") and made.engine.stages[-1].steps == 0  # it is the network that was found
    assert method.rows()["hand-picked"].built.module is method.roles["student"].module
    made = tiny("diswot", tmp_path / "b", *one, "method.rivals=[random]")
    method = made.method
    method.same = lambda name: False  # distilled all the same, it must become what the student has become
    made.run()
    student, rival = (dict(method.roles[n].module.state_dict()) for n in ("student", "random"))
    assert not differences(student, rival) and made.engine.stages[-1].steps == 2


def test_resumes_within_a_rival(tmp_path: Path) -> None:
    more = ("method.rivals=[hand-picked,random]", "method.search=random", "train.steps=2")
    plain = tiny("diswot", tmp_path / "plain", *more).run()
    halves = run_with_stop("diswot", tmp_path / "halves", steps_of(plain) - 1, *more)
    assert not differences(state_of(plain), state_of(halves))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method.space=null"], "which networks are searched"),
        (["method.candidates=[{use: mlp}]"], "one of them and not both"),
        (["method.space={widht: [4, 8]}"], "widht"),
        (["method.space={width: 4}"], "a list of choices"),
        (["method.space={width: [4, 4]}"], "names a choice twice"),
        (["method.space={width: [4, 0]}"], "width"),
        (["method.space={blocks: {'3': [1]}}"], "a place in a list of 3"),
        (["method.space={width: [4, 8]}"], "reads 32 channels, the teacher's 16"),
        (["method.parameters=50"], "set method.parameters="),
        (["method.operations=10"], "set method.operations="),
        (["method.batch=1"], "2 or more"),
        (["method.metrics=[relation,relation]"], "name each once"),
        (["method.metrics=[at]", "method.feature=pooled"], "set feature=map"),
        (["method.variant=released", "method.search=all"], "variant=released sets metrics and search itself"),
        (["method.truth=2"], "3 or more"),
        (["task.target=number"], "one class"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(settings: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError) as caught:
        tiny("diswot", tmp_path, *RESNETS, "teach.steps=0", *settings)
    assert words in str(caught.value)


def test_a_teacher_or_student_that_is_not_at_hand_is_refused(tmp_path: Path) -> None:
    made = tiny("diswot", tmp_path, *RESNETS, "teach.steps=0")
    method: Any = made.method
    method.setup.student.model = None
    with pytest.raises(ConfigError, match="module of your own"):
        method.students.node((0, 0, 0))
    with pytest.raises(DataError, match="no network of the space has a finite score"):
        method.rate = lambda records: np.full(len(records), -np.inf)
        method.setup.student.model = make(Model, {"use": "cifar-resnet", "width": 4, "blocks": [1, 1, 1]}, "student")
        from limbeck.engine.context import RunContext

        made.engine.rehearse(method)
        method.look(RunContext(made.engine, method, made.engine.stages[0], made.engine.device))
