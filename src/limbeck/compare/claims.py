"""Claims and their clauses: what the checks of ``limbeck.compare.checks`` come to.

A **claim** (a Card's sentence) consists of clauses. A clause has checks, or says why it is not checked (``unchecked``), or
what makes it true without a measurement (``by_construction``); its ``premise`` is what must be so before its checks mean
anything. Checks ``beside`` the clauses belong to none of them, and are shown all the same. The list of claims and
comparisons is ``evidence/list.yaml``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from limbeck.compare.checks import Check, judge, measure, read_checks
from limbeck.errors import ConfigError

Rows = Mapping[str, Collection[str]]
"""Each comparison's rows by their labels, whether they have been run or not."""

Records = Mapping[str, Mapping[str, Any]]
"""What was measured: name of a comparison -> ``runs`` (label -> results), ``primary``, ``higher_is_better``, and ``items``
where single test items were recorded."""

CLAUSE = {"says", "checks", "premise", "unchecked", "by_construction"}


def conclude(claims: Mapping[str, Any], rows: Rows, records: Records) -> dict[str, Any]:
    """Every claim with its clauses, checks and status, tested together.

    Args:
        claims: slug -> ``{"clauses": [...], "beside": [...]}``, as the list has them.
        rows: the labels of each comparison's rows.
        records: what was measured; the checks of a row that is not there have not been made yet and count for nothing.

    Returns:
        ``checks``: how many different checks are tested together; ``claims``: slug -> ``status``, ``said``, ``clauses``
        (``says``, ``status``, ``why``, ``checks``), ``beside`` (checks), ``comparisons`` (their names).

    Raises:
        ConfigError: an entry that is none, a row or a metric that is not there.
    """
    measured: list[dict[str, Any]] = []
    places: list[list[dict[str, Any]]] = []

    def take(nodes: Any, where: str) -> list[dict[str, Any]]:
        """The checks of a list; filled in once all of them are known."""
        place: list[dict[str, Any]] = []
        for check in _checks(nodes, where):
            place.append(_measured(check, rows, records, where))
        measured.extend(place)
        places.append(place)
        return place

    found: dict[str, dict[str, Any]] = {}
    for slug, claim in claims.items():
        clauses = []
        for i, clause in enumerate(claim["clauses"]):
            where = f"claims.{slug}.clauses.{i}"
            _look_at(clause, where)
            at = f"{where}.premise"
            premise = [_measured(c, rows, records, at) for c in _checks(clause.get("premise"), at)]
            clauses.append({**clause, "premise": premise, "checks": take(clause.get("checks"), where)})
        found[slug] = {"clauses": clauses, "beside": take(claim.get("beside"), f"claims.{slug}.beside")}
    judged = iter(judge(measured))
    for place in places:
        place[:] = [next(judged) for _ in place]
    for claim in found.values():
        claim["clauses"] = [_concluded(clause) for clause in claim["clauses"]]
        claim["status"], claim["said"] = status_of_claim([c["status"] for c in claim["clauses"]])
        own = [m for c in claim["clauses"] for m in c["checks"]]
        waiting = len({tuple(m["check"].values()) for m in own if not m["n"]})
        if waiting and len(own) > waiting:
            claim["said"] += f"; {waiting} check{'s' if waiting > 1 else ''} still to be run"
        everything = own + claim["beside"]
        claim["comparisons"] = list(dict.fromkeys(m["check"]["at"] for m in everything if m["n"]))
    together = {tuple(m["check"].values()) for m in measured if m["p"] is not None}
    return {"checks": len(together), "claims": found}


def _checks(nodes: Any, where: str) -> Iterator[Check]:
    for i, node in enumerate(nodes or []):
        yield from read_checks(node, f"{where}.{i}")


def _look_at(clause: Mapping[str, Any], where: str) -> None:
    unknown = sorted(set(clause) - CLAUSE)
    if unknown or "says" not in clause:
        problem = f"does not take {', '.join(unknown)}" if unknown else "lacks says"
        raise ConfigError(where, problem, expected=", ".join(sorted(CLAUSE)))
    if not {"checks", "unchecked", "by_construction"} & set(clause):
        raise ConfigError(where, "has no checks", remedy="say why it has none: unchecked or by_construction")


def _measured(check: Check, rows: Rows, records: Records, where: str) -> dict[str, Any]:
    if check.at not in rows:
        raise ConfigError.unknown(f"{where}.at", check.at, rows, "comparison")
    record = records.get(check.at, {})
    runs = record.get("runs", {})
    results = {label: runs.get(label, []) for label in rows[check.at]}
    direction = record.get("higher_is_better") if check.metric == record.get("primary") else None
    return measure(check, results, direction, record.get("items"))


def _concluded(clause: Mapping[str, Any]) -> dict[str, Any]:
    """A clause with its status, and why it has none where it has none."""
    checks, premise = clause["checks"], clause["premise"]
    run = [m["verdict"] for m in checks if m["n"]]
    failed = [m for m in premise if m["n"] and not m["holds"]]
    why = str(clause.get("by_construction") or clause.get("unchecked") or "")
    if failed:
        told = "; ".join(f"{m['said']}: no ({m['row_mean']:.4g} against {m['over_mean']:.4g})" for m in failed)
        why = f"its premise does not hold: {told}" + (f". {why[:1].upper()}{why[1:]}" if why else "")
        status = "not checked"
    elif run:
        status = status_of_clause(run)
    elif "by_construction" in clause:
        status = "by construction"
    else:
        status = "not checked"
        why = why or f"{', '.join(dict.fromkeys(m['check']['at'] for m in checks))} has not been run yet"
    return {"says": clause["says"], "status": status, "why": why, "premise": premise, "checks": checks}


def status_of_clause(verdicts: Sequence[str]) -> str:
    """A clause's status from the verdicts of its checks: ``confirmed`` where all are; ``contradicted`` where one is and
    none is confirmed; ``contradicted in part`` and ``confirmed in part`` between; else ``not shown``."""
    if verdicts and all(v == "confirmed" for v in verdicts):
        return "confirmed"
    confirmed = "confirmed" in verdicts
    if "contradicted" in verdicts:
        return "contradicted in part" if confirmed else "contradicted"
    return "confirmed in part" if confirmed else "not shown"


def status_of_claim(clauses: Sequence[str]) -> tuple[str, str]:
    """A claim's status in a word, and in words, from its clauses'.

    The word is ``confirmed`` where every clause is confirmed or holds by construction, ``contradicted`` where every one is
    contradicted and ``contradicted in part`` where one is, be it in part; ``partly`` where at least one is confirmed, else
    ``not shown``, or ``not checked`` where nothing was tried.

    Example:
        >>> status_of_claim(["confirmed", "not checked"])
        ('partly', '1 of 2 clauses confirmed, 1 not checked')
    """
    good = [c for c in clauses if c in ("confirmed", "by construction")]
    if clauses and len(good) == len(clauses) and "confirmed" in clauses:
        word = "confirmed"
    elif any(c.startswith("contradicted") for c in clauses):
        word = "contradicted" if all(c == "contradicted" for c in clauses) else "contradicted in part"
    elif any(c.startswith("confirmed") for c in clauses):
        word = "partly"
    else:
        word = "not shown" if "not shown" in clauses else "not checked"
    order = (
        "confirmed",
        "confirmed in part",
        "contradicted",
        "contradicted in part",
        "not shown",
        "by construction",
        "not checked",
    )
    counts = [(name, clauses.count(name)) for name in order if name in clauses]
    if len(clauses) == 1:
        return word, clauses[0]
    said = []
    for i, (name, count) in enumerate(counts):
        said.append(f"{count} of {len(clauses)} clauses {name}" if i == 0 else f"{count} {name}")
    return word, ", ".join(said)


__all__ = ["conclude", "status_of_claim", "status_of_clause"]
