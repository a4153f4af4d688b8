"""The table and the headline say what was measured, and no more."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from limbeck.errors import ConfigError, human
from limbeck.report import numbers
from limbeck.report.headline import footnotes, headline
from limbeck.report.metrics import metric_of
from limbeck.report.statistics import binomial_interval, t_interval
from limbeck.report.summary import comparison_of, summarise
from limbeck.report.table import comparison_table, grid, markdown_table, plain_table

from .conftest import make_result

METHODS = ("kd", "nkd", "nd-loss")


def several(seeds: int = 5, methods: tuple[str, ...] = METHODS) -> list[dict[str, Any]]:
    return [make_result(m, s) for m in methods for s in range(seeds)]


def student(result: dict[str, Any], value: float | None) -> dict[str, Any]:
    """The result with another accuracy of the student, or with none."""
    values = {k: v for k, v in result["metrics"]["student"].items() if k != "accuracy"}
    if value is not None:
        values["accuracy"] = value
    return {**result, "metrics": {**result["metrics"], "student": values}}


def without_alone(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "metrics": {**result["metrics"], "alone": {}}}


def shown(data: Any, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(comparison_table(data, width=width))
    return out.getvalue()


def test_a_run_is_one_row_beside_teacher_and_student_alone() -> None:
    s = summarise(make_result("nkd", 3))
    assert [(r.name, r.role) for r in s.rows] == [("teacher", "teacher"), ("student alone", "alone"), ("nkd", "method")]
    result = make_result("nkd", 3)["metrics"]
    assert s.methods[0].score == binomial_interval(result["student"]["accuracy"], 450)
    assert s.methods[0].to_alone is not None and s.methods[0].to_alone.kind == "none"
    assert s.methods[0].to_alone.mean == result["student"]["accuracy"] - result["alone"]["accuracy"]
    assert s.methods[0].seconds == pytest.approx(4.0)  # of distilling alone
    assert s.rows[1].parameters == s.methods[0].parameters  # the same architecture
    joined = make_result("simkd", 3)  # what is delivered has a projector and a borrowed classifier besides
    joined["sizes"] |= {"alone": {"parameters": 700.0, "bytes": 2800.0}}
    s = summarise(joined)
    assert (s.rows[1].parameters, s.rows[1].latency_ms) == (700.0, None) and s.methods[0].parameters == 1210.0


def timed(median: float, architecture: str, spread: float = 0.1) -> dict[str, Any]:
    return {"one_item": median, "low": median - spread, "high": median + spread, "architecture": architecture}


def test_equal_architectures_have_one_latency_whatever_run_measured_them() -> None:
    rows: dict[str, dict[str, Any]] = {}
    for i, label in enumerate(("kd", "nkd", "dist")):
        latency = {"student": timed(1.0 + i, "s"), "teacher": timed(4.0, "t")}
        rows[label] = {"0": make_result(label, 0, latency_ms=latency)}
    s = summarise({"rows": rows, "primary": "accuracy", "higher_is_better": True, "seeds": [0]})
    assert [(r.latency_ms, r.latency_range) for r in s.methods] == [(2.0, (1.9, 2.1))] * 3
    alone, teacher = s.row("alone"), s.row("teacher")
    assert alone is not None and alone.latency_ms == 2.0
    assert teacher is not None and teacher.latency_ms == 4.0 and s.methods[0].faster_than(teacher) == 2.0
    assert "1.90, 2.10" in markdown_table(s)


def test_latencies_that_scatter_into_each_other_are_not_ranked() -> None:
    near = {"student": timed(1.0, "s", 0.3), "teacher": timed(1.5, "t", 0.3)}
    text = " ".join(headline(make_result("nkd", 3, latency_ms=near)))
    assert "times smaller." in text and "faster" not in text
    apart = {**near, "teacher": timed(1.7, "t", 0.3)}
    assert "1.70 times faster" in " ".join(headline(make_result("nkd", 3, latency_ms=apart)))


def test_a_comparison_takes_intervals_over_seeds_and_pairs_them() -> None:
    s = summarise(several())
    nkd = next(r for r in s.methods if r.name == "nkd")
    results = [make_result("nkd", seed)["metrics"] for seed in range(5)]
    assert nkd.score == t_interval([r["student"]["accuracy"] for r in results])
    assert nkd.to_alone == t_interval([r["student"]["accuracy"] - r["alone"]["accuracy"] for r in results])
    plain = [make_result("kd", seed)["metrics"]["student"]["accuracy"] for seed in range(5)]
    assert nkd.to_reference == t_interval([r["student"]["accuracy"] - k for r, k in zip(results, plain, strict=True)])
    assert s.reference == "kd" and s.best() is nkd
    teacher = s.row("teacher")
    assert (
        teacher is not None and teacher.score is not None and teacher.score.kind == "none" and len(teacher.values) == 1
    )


def test_the_headline_of_one_run_says_that_one_seed_proves_nothing() -> None:
    text = " ".join(headline(make_result("nkd", 0)))
    assert "reaches 95.0 % [92.5, 96.6] accuracy, 2.4 points worse than its teacher (97.3 %)" in text
    assert "42 times smaller and 2.2 times faster" in text
    assert "better than the same network trained alone at equal budget, in a single run (n=1" in text
    assert any("n=1" in note for note in footnotes(summarise(make_result())))


def test_no_gain_without_a_baseline() -> None:
    for data in (without_alone(make_result()), [without_alone(r) for r in several()]):
        text = " ".join(headline(data))
        assert "No baseline of equal budget was run" in text
        assert "alone" not in text and "gain of" not in text
        assert "against alone" not in markdown_table(data)


def test_no_gain_over_a_baseline_of_another_budget() -> None:
    budget = {"student": {"steps": 400}, "alone": {"steps": 200}}
    s = summarise(make_result(budget=budget))
    assert s.methods[0].to_alone is None
    assert "another budget" in " ".join(headline(s)) and "better" not in " ".join(headline(s))
    equal = summarise(make_result(budget={"student": {"steps": 400}, "alone": {"steps": 400}}))
    assert equal.methods[0].to_alone is not None
    kd = make_result("kd", budget={"student": {"steps": 400}})
    other = summarise([kd, make_result("nkd", budget={"student": {"steps": 800}})])
    assert next(r for r in other.methods if r.name == "nkd").to_reference is None
    assert any("another budget than kd" in n for n in other.notes)


def test_the_headline_of_a_comparison_is_paired() -> None:
    said = headline(several())
    assert said[0].startswith("The best mean is nkd's: the student reaches 94.7 %") and "over 5 seeds" in said[0]
    assert "paired over 5 seeds" in said[2] and said[3].startswith("It is 1.3 points better than plain kd")


def test_an_interval_across_zero_is_no_difference() -> None:
    results = [
        student(make_result("kd", s), make_result("kd", s)["metrics"]["alone"]["accuracy"] + d)
        for s, d in enumerate((0.01, -0.012))
    ]
    text = " ".join(headline(results))
    assert "no difference shown" in text and "better than the same" not in text
    cell = grid(results).rows[-1][1][1]
    assert cell.tone == "dim"


def test_a_worse_student_is_called_worse() -> None:
    results = [
        student(make_result("kd", s), make_result("kd", s)["metrics"]["alone"]["accuracy"] - 0.02) for s in range(3)
    ]
    assert "2.0 points worse than the same network trained alone" in " ".join(headline(results))
    assert grid(results).rows[-1][1][1].tone == "bad"


def test_lower_may_be_better() -> None:
    def result(method: str, seed: int, value: float, alone: float) -> dict[str, Any]:
        metrics = {"teacher": {"perplexity": 20.0}, "student": {"perplexity": value}, "alone": {"perplexity": alone}}
        return make_result(method, seed, primary="perplexity", higher_is_better=False, metrics=metrics)

    results = [result("kd", s, 25.0 + s, 30.0 + 1.1 * s) for s in range(3)] + [
        result("taid", s, 23.0 + s, 30.0 + 1.1 * s) for s in range(3)
    ]
    s = summarise(results)
    assert s.best() is not None and s.best().name == "taid"  # type: ignore[union-attr]
    text = " ".join(headline(results))
    assert "reaches perplexity 24.00" in text and "4.000 worse than its teacher (20.00)" in text
    assert "7.100 better than the same network trained alone" in text
    assert grid(results).rows[-1][1][1].tone == "good"


def test_a_method_without_a_teacher_and_with_another_artifact() -> None:
    result = make_result(
        "tesla",
        metrics={"teacher": {}, "student": {"accuracy": 0.62}, "alone": {"accuracy": 0.51}},
        artifact="dataset",
        sizes={"student": {"images": 10.0, "bytes": 30720.0}, "teacher": {}},
        latency_ms={"student": {}, "teacher": {}},
        names={"alone": "random real images"},
    )
    s = summarise(result)
    assert [r.name for r in s.rows] == ["random real images", "tesla"]
    assert s.rows[0].parameters is None  # a data set is no architecture
    text = " ".join(headline(s))
    assert "The distilled data set reaches 62.0 %" in text and "better than random real images," in text
    assert "images" in [c.short for c in grid(s).columns] and "params" not in [c.short for c in grid(s).columns]


def test_participants_are_called_what_they_are() -> None:
    metrics = {"teacher": {"accuracy": 0.98}, "student": {"accuracy": 0.87}, "alone": {"accuracy": 0.69}}
    sizes: dict[str, Any] = {"student": {"items": 10.0, "bytes": 2640.0}, "teacher": {}}
    baselines = {"herding": {"accuracy": 0.8}, "kmeans": {"accuracy": 0.82}}
    given = {"artifact": "dataset", "metrics": metrics, "sizes": sizes, "latency_ms": {}}
    s = summarise([make_result("tesla", seed, baselines=baselines, **given) for seed in range(2)])
    assert [r.name for r in s.rows] == ["all real items", "random real items", "herding", "kmeans", "tesla"]
    assert [c.label for c in grid(s).columns][:2] == ["accuracy", "against random real items"]
    text = " ".join(headline(s))
    assert "11.0 points worse than all real items (98.0 %)" in text and "better than as many random real items" in text

    metrics = {"teacher": {"endpoint_mse": 0.01}, "student": {"endpoint_mse": 0.05}, "alone": {"endpoint_mse": 0.08}}
    run = make_result("g", artifact="sampler", primary="endpoint_mse", higher_is_better=False, metrics=metrics)
    text = " ".join(headline(run))
    assert "0.04000 worse than its teacher in many steps" in text
    assert "0.03000 better than its teacher in as few steps" in text
    assert all(r.score is not None and r.score.kind == "none" for r in summarise(run).rows)


def test_a_baseline_is_called_as_its_row_is() -> None:
    metrics: dict[str, Any] = {"teacher": {"dpr": 0.1}, "student": {"accuracy": 0.8}, "alone": {"accuracy": 0.85}}
    for row, called in (("real", "real rows"), ("independent", "independent")):
        rows = {row: metrics["alone"], "teacher": metrics["teacher"], "student": metrics["student"]}
        run = make_result("fair", artifact="table", metrics={**metrics, "rows": rows}, sizes={}, latency_ms={})
        assert [r.name for r in summarise(run).rows] == ["teacher", called, "fair"]
    detector = make_result("rd", artifact="detector", metrics=metrics | {"teacher": {}}, sizes={}, latency_ms={})
    assert "than the pixel statistics of normal images" in " ".join(headline(detector))


def test_a_teacher_that_answers_something_else_is_no_measure_of_size() -> None:
    run = make_result(
        "vild", metrics={"teacher": {"other": 0.9}, "student": {"accuracy": 0.4}, "alone": {"accuracy": 0.2}}
    )
    assert "times" not in " ".join(headline(run))


def test_wilson_is_only_for_shares_of_the_test_items() -> None:
    metrics = {"student": {"f1": 0.8, "accuracy": 0.9}, "alone": {"f1": 0.7}, "teacher": {}}
    s = summarise(make_result(primary="f1", metrics=metrics))
    assert all(e.kind == "none" for r in s.rows for e in r.metrics.values())
    assert summarise(make_result()).methods[0].metrics["ece"].kind == "none"


def test_missing_and_infinite_values_are_named_not_hidden() -> None:
    results = several(2)
    results[0] = student(results[0], None)
    s = summarise(results)
    assert any("kd has no accuracy for seed 0" in n for n in s.notes)
    assert next(r for r in s.methods if r.name == "nkd").to_reference is not None  # over the seed that both have
    nan = summarise(student(make_result(), math.nan))
    assert headline(nan) == ["No run finished with a result."]
    assert "nan" in plain_table(nan)


def test_failed_runs_are_named() -> None:
    comparison = {**comparison_of(several(2)), "failed": {"nkd": {"2": "NonFinite: ce at step 3"}}}
    assert "nkd, seed 2, did not finish: NonFinite: ce at step 3" in summarise(comparison).notes


def test_different_students_alone_are_paired_each_with_its_own() -> None:
    results = several(2, ("kd", "nkd"))
    results[-1]["metrics"]["alone"]["accuracy"] -= 0.1
    s = summarise(results)
    assert any("each method is compared with its own" in n for n in s.notes)
    own = [r["metrics"]["student"]["accuracy"] - r["metrics"]["alone"]["accuracy"] for r in results[2:]]
    assert s.methods[1].to_alone == t_interval(own)
    assert [r.name for r in s.rows if r.role == "alone"] == ["student alone (kd)", "student alone (nkd)"]
    assert s.methods[1].to_reference is not None  # the student is the same


LARGER = {"student": {"parameters": 2778.0, "bytes": 11112.0}, "teacher": {}}


def unlike(seeds: int = 3, **more: Any) -> dict[str, Any]:
    """kd and nkd with one student, uskd with a larger one and without a teacher."""
    results = several(seeds, ("kd", "nkd"))
    for seed in range(seeds):
        result = make_result("uskd", seed, sizes=LARGER)
        for values in (result["metrics"]["student"], result["metrics"]["alone"]):
            values["accuracy"] += 0.05
            del values["agreement"]
        result["metrics"]["teacher"], result["latency_ms"] = {}, {"student": {}, "teacher": {}}
        del result["calibration"]["teacher"]
        results.append(result)
    return {**comparison_of(results), **more}


SETTINGS = {
    "kd": {"student": {"use": "mlp", "hidden": [8], "dropout": 0.0}},
    "nkd": {"student": {"use": "mlp", "hidden": [8], "dropout": 0.0}},
    "uskd": {"student": {"use": "mlp", "hidden": [32, 16], "dropout": 0.0}},
}


def test_only_methods_with_the_same_student_are_compared_with_each_other() -> None:
    s = summarise(unlike())
    assert [r.name for r in s.rows] == [
        "teacher (kd, nkd)", "student alone (kd, nkd)", "student alone (uskd)", "kd", "nkd", "uskd",
    ]  # fmt: skip
    kd, nkd, uskd = s.methods
    assert nkd.to_reference is not None and uskd.to_reference is None
    alone = s.rows[2]
    assert uskd.alone is alone and uskd.teacher is None and alone.parameters == 2778
    # what the table shows is what the difference was taken from
    assert uskd.score is not None and alone.score is not None and uskd.to_alone is not None
    assert uskd.to_alone.mean == pytest.approx(uskd.score.mean - alone.score.mean)
    assert s.best() is None and s.winners() == [nkd] and kd.student == nkd.student != uskd.student
    cells = {r.name: c[2].text for r, c in grid(s).rows}
    assert cells["uskd"] == "–" and cells["kd"] == "" and cells["nkd"].startswith("+")


def test_nothing_is_said_across_students_nor_of_a_teacher_that_is_not_there() -> None:
    said = headline(unlike())
    assert said[0] == (
        "The students differ: kd and nkd have one of 1.21 k parameters; uskd has one of 2.78 k parameters. "
        "Only rows with the same student are compared with each other."
    )
    whole = " ".join(said)
    assert "Of kd and nkd, the best mean is nkd's" in whole and "best mean is uskd's" not in whole
    start = next(i for i, text in enumerate(said) if text.startswith("uskd: the student reaches"))
    own = " ".join(said[start:])
    assert "teacher" not in own and "smaller" not in own and "plain kd" not in own and "trained alone" in own
    assert whole.count("students differ") == 1
    named = headline(unlike(settings=SETTINGS))
    assert "kd and nkd have mlp hidden=[8] (1.21 k parameters); uskd has mlp hidden=[32,16]" in named[0]
    assert named[-1] == "Setting student.hidden=[8] gives every row the student of kd and nkd."
    notes = " ".join(footnotes(summarise(unlike())))
    assert "the same in every run that has one" in notes


def test_settings_tell_students_apart_that_are_of_one_size() -> None:
    settings = {**SETTINGS, "nkd": {"student": {"use": "mlp", "hidden": [8], "dropout": 0.5}}}
    s = summarise(comparison_of(several(2, ("kd", "nkd"))) | {"settings": settings})
    assert s.methods[1].to_reference is None and len([r for r in s.rows if r.role == "alone"]) == 2
    other = summarise([make_result("kd"), make_result("nkd", items={"train": 400, "test": 450})])
    assert other.methods[1].to_reference is None
    assert "400 items to learn from" in headline(other)[0]


def test_a_run_without_a_teacher_says_nothing_of_one() -> None:
    values = {"student": {"accuracy": 0.9}, "alone": {"accuracy": 0.8}, "teacher": {}}
    s = summarise(make_result("uskd", metrics=values, sizes=LARGER, latency_ms={}, notes=[]))
    assert "teacher" not in " ".join([*headline(s), *footnotes(s), *s.notes])
    taught = " ".join(footnotes(summarise(make_result("kd"))))
    assert "The teacher learnt from 1,000 items, the student from 200." in taught


def test_different_teachers_have_rows_of_their_own() -> None:
    results = several(2, ("kd", "nkd"))
    for result in results[2:]:
        result["metrics"]["teacher"] = {"accuracy": 0.95}
        result["sizes"] = {**result["sizes"], "teacher": {"parameters": 2420.0, "bytes": 9680.0}}
    s = summarise(results)
    assert [(r.name, r.parameters) for r in s.rows if r.role == "teacher"] == [
        ("teacher (kd)", 50826),
        ("teacher (nkd)", 2420),
    ]
    text = " ".join(headline(s))
    assert "than its teacher (95.0 %)" in text and "2.0 times smaller" in text


def test_comparisons_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        comparison_of([])
    with pytest.raises(ConfigError, match=r"two results of nkd with seed 0; give them labels"):
        comparison_of([make_result(), make_result()])
    with pytest.raises(ConfigError, match=r"another primary than kd .got 'f1'., expected 'accuracy'"):
        comparison_of([make_result("kd"), make_result("nkd", primary="f1")])
    both = comparison_of([make_result(label="nkd a"), make_result(label="nkd b")])
    assert list(both["rows"]) == ["nkd a", "nkd b"] and both["reference"] is None


@pytest.mark.parametrize("width", [80, 110, 200])
@pytest.mark.parametrize("one", [True, False])
def test_the_terminal_table_is_whole_at_any_width(width: int, one: bool) -> None:
    text = shown(make_result() if one else several(), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for word in ("accuracy", "calib.", "agree", "params", "size", "ms", "FLOPs", "cost", "1.2k", "4.8kB", "101k"):
        assert word in text, word


def test_a_narrow_terminal_is_told_what_is_left_out() -> None:
    text = shown(several(), 60)
    assert "no room for" in text and "FLOPs" in " ".join(text.split()) and "…" not in text


def test_markdown_and_plain_text() -> None:
    lines = markdown_table(several()).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 5
    assert "| nkd | 94.7 [94.5, 94.9] | +2.2 [+2.1, +2.4] | +1.3 [+1.1, +1.4] |" in lines[5]
    plain = plain_table(several()).splitlines()
    assert len(plain) == 6 and plain[4].startswith("nkd") and "94.7 ±0.2" in plain[4]
    assert "a\\|b" in markdown_table(make_result(label="a|b"))


def test_numbers_for_people() -> None:
    assert [human(x) for x in (0, 950, 999.6, 1210, 50826, 123456, 4.5e6, 7e9)] == [
        "0", "950", "1.00 k", "1.21 k", "50.8 k", "123 k", "4.50 M", "7.00 G",
    ]  # fmt: skip
    assert [numbers.brief(x, "B") for x in (12, 999, 1240, 9960, 51e3, 2.2e9)] == [
        "12B",
        "1.0kB",
        "1.2kB",
        "10kB",
        "51kB",
        "2.2GB",
    ]
    assert [numbers.significant(x) for x in (0, 0.012345, 1.5, 12345, 1e-6, 1e8)] == [
        "0",
        "0.01235",
        "1.500",
        "12,345",
        "1.000e-06",
        "1.000e+08",
    ]
    assert [numbers.duration(x) for x in (0.123, 31.4, 250, 240, 7500, 7200, math.inf)] == [
        "0.12 s", "31 s", "4 min 10 s", "4 min", "2 h 5 min", "2 h", "?",
    ]  # fmt: skip
    assert [numbers.ratio(x) for x in (41.9, 4.21, 1.08)] == ["42", "4.2", "1.08"]


def test_metrics_by_name() -> None:
    assert metric_of("valid/accuracy").label == "accuracy (validation)"
    assert metric_of("fid_w1_n4").label == "Fréchet distance (w = 1, 4 steps)"
    assert metric_of("class_accuracy_stochastic_w0.5_n1").label == "of the right class (w = 0.5, 1 step, stochastic)"
    assert metric_of("mlp/accuracy").percent and metric_of("mlp/accuracy").label == "accuracy (mlp)"
    assert metric_of("something_new", False).better(-1.0) == 1
    assert metric_of("agreement").better(0.5) == 0
    assert metric_of("accuracy").difference(-0.0123) == "-1.2 points"
    assert metric_of("nll").difference(-0.5) == "-0.5000"
    assert metric_of("accuracy").value(math.inf) == "not finite"


def test_a_teacher_may_be_given_once_for_all() -> None:
    results = [{**r, "metrics": {**r["metrics"], "teacher": {}}} for r in several(2)]
    comparison = comparison_of(results)
    assert summarise(comparison).row("teacher") is None
    given = {"metrics": {"accuracy": 0.99}, "sizes": {"parameters": 1e6}, "latency_ms": {"one_item": 2.0}}
    teacher = summarise({**comparison, "teacher": given}).row("teacher")
    assert teacher is not None and teacher.score is not None
    assert (teacher.score.mean, teacher.parameters, teacher.latency_ms) == (0.99, 1e6, 2.0)
    own = summarise({**comparison_of(several(2)), "teacher": given}).row("teacher")
    assert own is not None and own.score is not None and own.score.mean == 0.9733 and own.seconds == 21.0
