"""The list of claims and comparisons, and what was committed of them, agree; a row is run by itself and goes on."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from limbeck.errors import ConfigError, DataError
from limbeck.grammar.card import catalogue
from limbeck.recipe.recipe import check, load_tree

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    """evidence/run.py, which is a script."""
    spec = importlib.util.spec_from_file_location("evidence_run", ROOT / "evidence" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_would_be_derived_from_their_runs(evidence: ModuleType, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in (ROOT / "evidence").rglob("*.*") if p.suffix in (".json", ".safetensors")}
    for path, data in before.items():
        copy = tmp_path / path.relative_to(ROOT / "evidence")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    for path in (ROOT / "evidence").rglob("*.yaml"):
        copy = tmp_path / path.relative_to(ROOT / "evidence")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    evidence.HERE, here = tmp_path, evidence.HERE
    try:
        evidence.derive(*evidence.read_list())
    finally:
        evidence.HERE = here
    for path, data in before.items():
        assert (tmp_path / path.relative_to(ROOT / "evidence")).read_bytes() == data, (
            f"{path}: evidence/run.py --derive"
        )


def test_claims_are_of_cards_and_every_row_is_a_recipe(evidence: ModuleType) -> None:
    listed, rows = evidence.read_list()
    assert set(listed["claims"]) <= {c.slug for c in catalogue()}
    for row in rows:
        recipe, *settings = [
            word.replace(evidence.DATA, "/nowhere").replace(evidence.RECORDED, "/nowhere") for word in row.words
        ]
        check(load_tree(recipe, settings))
        assert len(row.seeds) >= 2


def test_what_stands_in_two_files_of_the_list_is_refused(evidence: ModuleType, small: Path) -> None:
    (small / "list").mkdir()
    (small / "list" / "kd.yaml").write_text("claims: {kd: {clauses: []}}")
    with pytest.raises(ConfigError, match=r"kd of kd\.yaml stands in the list already"):
        evidence.read_list()


def test_no_row_stands_in_the_list_twice(evidence: ModuleType) -> None:
    _, rows = evidence.read_list()
    seen: dict[str, str] = {}
    for row in rows:
        dealt = [row.entry.get("teachers", 1), row.entry.get("redeal", False)]
        for seed in row.seeds:
            key = json.dumps([row.words[0], *sorted(row.words[1:]), *dealt, seed])
            assert key not in seen, f"{row.name}:{row.label} with seed {seed} is {seen[key]}, too"
            seen[key] = f"{row.name}:{row.label}"


def test_what_is_to_do_fits_into_forty_hours_and_every_claim_stands_on_two_data_sets(evidence: ModuleType) -> None:
    listed, rows = evidence.read_list()
    hours = [row.hours(evidence.read_record(row.file)) for row in rows]
    assert sum(h for h, how in hours if how == "planned") <= 40
    assert all(h > 0 for h, _ in hours), "a row without a plan of what it costs"
    data = {
        name: frozenset(w for w in rows_of(rows, name) if w.startswith("task.data")) for name in listed["comparisons"]
    }
    for slug, claim in listed["claims"].items():
        nodes = [node for clause in claim["clauses"] for node in clause.get("checks", [])]
        assert len({data[n["at"]] for n in nodes if n["at"] in data}) >= 2, slug


def rows_of(rows: list[Any], name: str) -> list[str]:
    """All settings of a comparison's rows."""
    return [word for row in rows if row.name == name for word in row.words]


def test_data_that_the_list_names_are_described_and_looked_at_first(evidence: ModuleType, tmp_path: Path) -> None:
    listed, rows = evidence.read_list()
    named = next(row for row in rows if any(evidence.DATA in word for word in row.words))
    for row in rows:
        for word in row.words:
            if evidence.DATA in word:
                found = re.match(r"[\w./-]+", word.split(f"{evidence.DATA}/")[1])
                assert found is not None
                path = found[0]
                files = {file for about in listed["data"].values() for file in about["files"]}
                assert path.split("/")[0].split(".")[0] in listed["data"] or path in files, word
    with pytest.raises(DataError, match="needs it"):
        evidence.check_data(named, listed["data"], tmp_path)
    for file in next(iter(listed["data"].values()))["files"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"other")
    with pytest.raises(DataError, match="other data"):
        evidence.check_data(named, listed["data"], tmp_path)


@pytest.fixture
def small(evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of two rows of two seeds, which take seconds."""
    monkeypatch.setattr(evidence, "HERE", tmp_path)
    (tmp_path / "list.yaml").write_text(
        """
        claims:
          kd:
            clauses:
              - {says: It gains., checks: [{at: a/b, row: kd, better: alone, in: accuracy}]}
            beside:
              - {at: a/b, row: nkd, better: kd, in: accuracy}
        comparisons:
          a/b:
            say: Two rows.
            rows: {kd: [kd], nkd: [nkd]}
            set: [train.steps=2, train.batch_size=8, teach.steps=2, "teacher.hidden=[4]", "loggers=[]"]
            first_seed: 5
            seeds: 2
            teachers: 2
            seconds: {kd: 1800, nkd: 3600}
        """
    )
    return tmp_path


def test_one_row_is_run_at_a_time_and_what_is_finished_is_kept(
    evidence: ModuleType, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = ["--work", str(small / "work"), "--device", "cpu"]
    assert evidence.main([]) == 0
    assert "a/b:nkd   0 of  2 seeds   2.00 CPU hours planned" in capsys.readouterr().out
    assert evidence.main(["a/b:kd", *work]) == 0
    record = json.loads((small / "a" / "b.json").read_text())
    assert list(record["runs"]) == ["kd"] and [r["seed"] for r in record["runs"]["kd"]] == [5, 6]
    assert record["teachers"] == 2 and record["runs"]["kd"][0]["hardware"]["cpu"]
    told = json.loads((small / "summary.json").read_text())["claims"]["kd"]
    assert told["clauses"][0]["checks"][0]["n"] == 2 and told["beside"][0]["n"] == 0
    assert told["clauses"][0]["checks"][0]["items"], "single test items were kept beside"
    before = (small / "a" / "b.json").read_bytes()
    capsys.readouterr()
    assert evidence.main(["a/b:kd", *work]) == 0 and "is finished; --force" in capsys.readouterr().out
    assert (small / "a" / "b.json").read_bytes() == before
    metrics: dict[str, Any] = {who: {"accuracy": 0.5} for who in ("student", "alone", "teacher")}
    results = {str(s): {"seed": s, "metrics": metrics, "folder": "none", "cost": {}} for s in (5, 6)}
    told = {"rows": {"nkd": results}, "failed": {}, "task": "t", "primary": "accuracy", "higher_is_better": True}
    asked: list[Any] = []
    monkeypatch.setattr(evidence, "compare", lambda names, **more: asked.append((names, more)) or told)
    assert evidence.main(["--next", *work]) == 0
    ((names, more),) = asked
    assert names == [str(small / "work" / "a" / "b" / "nkd" / "nkd.yaml")] and (more["seeds"], more["first_seed"]) == (
        2,
        5,
    )
    record = json.loads((small / "a" / "b.json").read_text())
    assert list(record["runs"]) == ["kd", "nkd"]
    assert json.loads((small / "summary.json").read_text())["claims"]["kd"]["beside"][0]["n"] == 2
    capsys.readouterr()
    assert evidence.main(["--next", *work]) == 0 and "every row is finished" in capsys.readouterr().out
    # a row that the list has otherwise now is no longer finished
    text = (small / "list.yaml").read_text()
    (small / "list.yaml").write_text(text.replace("train.steps=2", "train.steps=3"))
    assert evidence.main([]) == 0
    assert "a/b:kd    0 of  2 seeds" in capsys.readouterr().out


def test_settings_are_searched_on_validation_and_kept_with_the_row(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(evidence, "HERE", tmp_path)
    (tmp_path / "list.yaml").write_text(
        """
        comparisons:
          a/b:
            say: A recorded teacher, and two trials.
            rows: {kd: [kd, "teacher=cached:{recorded}"]}
            set: [train.steps=4, train.batch_size=8, teach.steps=2, "baselines=[]", "loggers=[]", engine.device=cpu]
            recorded: {words: [kd, "teacher=mlp:[4]"], features: [act1]}
            search: {trials: 2, share: 0.5, space: {kd: [train.lr=1e-4..1e-1, "method.alpha=0.5|0.9"]}}
            first_seed: 1000
            seeds: 2
            seconds: 10
        """
    )
    work = ["--work", str(tmp_path / "work"), "--device", "cpu"]
    assert evidence.main(["a/b:kd", *work]) == 0
    path = tmp_path / "a" / "b.json"
    record = json.loads(path.read_text())
    tuned = record["tuned"]["kd"]
    assert tuned["metric"] == "accuracy" and [t["state"] for t in tuned["trials"]] == ["finished"] * 2
    best = max(tuned["trials"], key=lambda t: t["score"])
    assert tuned["settings"] == best["settings"] and set(best["settings"]) == {"train.lr", "method.alpha"}
    run = yaml.safe_load((tmp_path / "work/a/b/kd/runs/kd-seed1000/config.yaml").read_text())
    assert run["train"]["lr"] == best["settings"]["train.lr"] and run["train"]["steps"] == 4
    assert str(run["teacher"]["path"]).startswith(str(tmp_path / "work/a/b/recorded-1000-"))
    row = evidence.read_list()[1][0]
    assert row.finished(record) == [1000, 1001] and row.hours(record)[0] * 3600 > tuned["cpu_seconds"] > 0
    # seeds that are still to be run take the settings that were found, and do not search again
    record["runs"]["kd"].pop()
    path.write_text(json.dumps(record))
    monkeypatch.setattr(evidence, "search", lambda *_, **__: pytest.fail("it has been searched"))
    assert evidence.main(["a/b:kd", *work]) == 0
    assert row.finished(json.loads(path.read_text())) == [1000, 1001]
    # another search is another row
    row.entry["search"]["trials"] = 3
    assert row.finished(record) == []


def test_a_row_that_is_not_there_is_answered_with_the_nearest(
    evidence: ModuleType, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evidence.main(["a/b:nkdd"]) == 2
    assert "did you mean 'a/b:nkd'" in capsys.readouterr().err
    assert evidence.main(["a/b"]) == 2
    assert "a/b:kd, a/b:nkd" in capsys.readouterr().err


def test_a_benchmark_stands_for_a_comparison_with_rounds_for_seeds(evidence: ModuleType) -> None:
    raw = {"mb": {"one": {"50": 2.0}}, "seconds": {"one": [1.0, 1.5]}}
    labels, found = evidence.benchmark({"rows": [{"name": "one"}, {"name": "two"}], "raw": raw})
    assert labels == ["one", "two"] and found["runs"]["two"] == []
    metrics = [r["metrics"]["student"] for r in found["runs"]["one"]]
    assert metrics == [{"memory_at_50_steps": 2.0, "seconds": s} for s in (1.0, 1.5)]
