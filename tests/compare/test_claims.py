"""Status follows from clauses, clauses from checks; what is not checked says so."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.compare.claims import conclude, status_of_claim, status_of_clause
from limbeck.errors import ConfigError


def record(student: float, alone: float, teacher: float = 0.95) -> dict[str, Any]:
    """A comparison of one row over four seeds."""
    shakes = (0.0, 0.001, -0.001, 0.0005)
    metrics = [
        {"student": {"accuracy": student + s}, "alone": {"accuracy": alone}, "teacher": {"accuracy": teacher}}
        for s in shakes
    ]
    runs = {"kd": [{"seed": i, "metrics": m} for i, m in enumerate(metrics)]}
    return {"primary": "accuracy", "higher_is_better": True, "runs": runs}


CHECK = {"row": "kd", "better": "alone", "in": "accuracy"}


def claim(*clauses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a list of one claim comes to."""
    rows = {"good": ["kd"], "bad": ["kd"], "later": ["kd"]}
    records = {"good": record(0.9, 0.8), "bad": record(0.8, 0.9)}
    found: dict[str, Any] = conclude({"kd": {"clauses": list(clauses), **more}}, rows, records)
    return found


def test_a_claim_with_a_clause_that_is_not_checked_is_not_confirmed() -> None:
    gains = {"says": "It gains.", "checks": [{"at": "good", **CHECK}]}
    whole = claim(gains)["claims"]["kd"]
    assert (whole["status"], whole["said"], whole["comparisons"]) == ("confirmed", "confirmed", ["good"])
    part = claim(gains, {"says": "It is small.", "unchecked": "memory is not measured."})["claims"]["kd"]
    assert (part["status"], part["said"]) == ("partly", "1 of 2 clauses confirmed, 1 not checked")
    assert part["clauses"][1]["why"] == "memory is not measured."
    built = claim(gains, {"says": "It is one network.", "by_construction": "it takes w."})["claims"]["kd"]
    assert (built["status"], built["said"]) == ("confirmed", "1 of 2 clauses confirmed, 1 by construction")


def test_contradicted_is_shown_as_such() -> None:
    loses = {"says": "It gains there.", "checks": [{"at": "bad", **CHECK}]}
    gains = {"says": "It gains.", "checks": [{"at": "good", **CHECK}]}
    assert claim(loses)["claims"]["kd"]["status"] == "contradicted"
    both = claim(gains, loses)["claims"]["kd"]
    assert (both["status"], both["said"]) == ("contradicted in part", "1 of 2 clauses confirmed, 1 contradicted")
    mixed = claim({"says": "It gains.", "checks": [{"at": "good", **CHECK}, {"at": "bad", **CHECK}]})["claims"]["kd"]
    assert mixed["clauses"][0]["status"] == "contradicted in part"


def test_checks_that_have_not_been_run_count_for_nothing_yet() -> None:
    later = {"at": "later", **CHECK}
    found = claim({"says": "It gains.", "checks": [{"at": "good", **CHECK}, later]})
    assert found["claims"]["kd"]["status"] == "confirmed" and found["checks"] == 1
    assert found["claims"]["kd"]["said"] == "confirmed; 1 check still to be run"
    found = claim({"says": "It gains.", "checks": [later]})["claims"]["kd"]
    assert found["status"] == "not checked" and "later has not been run yet" in found["clauses"][0]["why"]
    assert found["comparisons"] == []


def test_a_premise_that_does_not_hold_leaves_the_clause_unchecked() -> None:
    good = {"says": "It gains from a better teacher.", "checks": [{"at": "good", **CHECK}]}
    holds = {**good, "premise": [{"at": "good", "row": "kd:teacher", "better": "kd:alone", "in": "accuracy"}]}
    fails = {**good, "premise": [{"at": "good", "row": "kd:alone", "better": "kd:teacher", "in": "accuracy"}]}
    assert claim(holds)["claims"]["kd"]["clauses"][0]["status"] == "confirmed"
    found = claim(fails)["claims"]["kd"]["clauses"][0]
    assert found["status"] == "not checked" and "premise does not hold" in found["why"]
    assert "0.8 against 0.95" in found["why"]


def test_checks_beside_the_claim_are_judged_but_do_not_count_for_it() -> None:
    gains = {"says": "It gains.", "checks": [{"at": "good", **CHECK}]}
    found = claim(gains, beside=[{"at": "bad", **CHECK}])
    assert found["claims"]["kd"]["status"] == "confirmed" and found["checks"] == 2
    assert found["claims"]["kd"]["beside"][0]["verdict"] == "contradicted"
    assert found["claims"]["kd"]["comparisons"] == ["good", "bad"]


def test_what_is_wrong_in_the_list_is_refused() -> None:
    for clause, problem in (
        ({"checks": [{"at": "good", **CHECK}]}, "lacks says"),
        ({"says": "x"}, "has no checks"),
        ({"says": "x", "check": []}, "does not take check"),
        ({"says": "x", "checks": [{"at": "goood", **CHECK}]}, "did you mean 'good'"),
    ):
        with pytest.raises(ConfigError, match=problem):
            claim(clause)


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        (["confirmed", "confirmed"], "confirmed"),
        (["confirmed", "not shown"], "confirmed in part"),
        (["contradicted", "not shown"], "contradicted"),
        (["contradicted", "confirmed"], "contradicted in part"),
        (["not shown", "n=1"], "not shown"),
        ([], "not shown"),
    ],
)
def test_a_clause_from_its_verdicts(verdicts: list[str], status: str) -> None:
    assert status_of_clause(verdicts) == status


def test_words_for_claims() -> None:
    assert status_of_claim(["not checked", "not checked"]) == ("not checked", "2 of 2 clauses not checked")
    assert status_of_claim(["not shown", "not checked"])[0] == "not shown"
    assert status_of_claim(["confirmed in part"]) == ("partly", "confirmed in part")
    assert status_of_claim(["by construction"]) == ("not checked", "by construction")
