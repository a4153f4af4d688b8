"""Make the evidence again: `python evidence/run.py [NAME ...] [--device cuda] [--work DIR]`.

Every comparison of ``list.yaml`` (or those named) is run by ``limbeck compare`` and condensed to one JSON beside this file:
seeds, versions, hardware, every run's metrics and cost, means, 95 % intervals over seeds, paired differences, and whether
each claim holds. Finished runs are reused, so an interrupted list goes on. No network is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import yaml

from limbeck.compare import compare
from limbeck.errors import LimbeckError
from limbeck.recipe.recipe import check, dump, load_tree
from limbeck.report.statistics import paired, t_interval
from limbeck.storage.store import atomic_write

HERE = Path(__file__).resolve().parent
KEPT = (
    "seed",
    "metrics",
    "baselines",
    "table",
    "sizes",
    "latency_ms",
    "cost",
    "items",
    "wall_seconds",
    "versions",
    "hardware",
)


def main(words: list[str]) -> int:
    """Run what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="entries of list.yaml; all when none is named")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, help="another number of seeds")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="where the runs are kept")
    args = parser.parse_args(words)
    entries: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "list.yaml").read_text())
    unknown = [n for n in args.names if n not in entries]
    if unknown:
        print(f"no such evidence: {', '.join(unknown)}; known: {', '.join(entries)}", file=sys.stderr)
        return 2
    worst = 0
    for name in args.names or list(entries):
        try:
            one(name, entries[name], args.work, args.device, args.seeds)
        except LimbeckError as error:
            print(f"{name}: {error.line()}", file=sys.stderr)
            worst = 2
    for slug in {n.split("/")[0] for n in entries}:
        summarise(HERE / slug)
    return worst


def one(name: str, entry: dict[str, Any], work: Path, device: str, seeds: int | None) -> None:
    """One comparison, run and condensed."""
    folder = work / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for label, (recipe, *overrides) in entry["rows"].items():
        tree = check(load_tree(recipe, [*overrides, f"engine.device={device}"]))
        path = folder / f"{label}.yaml"
        path.write_text(dump({**tree, "name": label}))
        paths.append(str(path))
    found = compare(paths, seeds=seeds or int(entry["seeds"]), out=folder / "runs")
    rows = {label: list(row.values()) for label, row in found["rows"].items()}
    primary, higher = found["primary"], found["higher_is_better"]
    record: dict[str, Any] = {
        "name": name,
        "say": entry["say"],
        "made_by": f"python evidence/run.py {name}",
        "rows": entry["rows"],
        "primary": primary,
        "higher_is_better": higher,
        "seeds": found["seeds"],
        "statistics": {label: statistics(results, primary) for label, results in rows.items() if results},
        "checks": [verdict(rows, *c, primary=primary, higher=higher) for c in entry["check"]],
        "failed": found["failed"],
        "runs": {label: [{k: r[k] for k in KEPT if k in r} for r in results] for label, results in rows.items()},
    }
    target = HERE / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, (json.dumps(finite(record), indent=1) + "\n").encode())
    for c in record["checks"]:
        print(f"{name}: {c['said']}")


def statistics(results: list[dict[str, Any]], primary: str) -> dict[str, Any]:
    """Means and intervals of the main metric for student, alone and teacher, and the student's difference to alone."""
    found = {}
    for who in ("student", "alone", "teacher"):
        values = [r["metrics"][who][primary] for r in results if primary in r["metrics"].get(who, {})]
        if values:
            e = t_interval(values)
            found[who] = {"mean": e.mean, "low": e.low, "high": e.high, "n": len(values)}
    return found


def verdict(
    rows: dict[str, list[dict[str, Any]]], row: str, over: str, metric: str, *, primary: str, higher: bool
) -> dict[str, Any]:
    """Whether a row is better than another, paired by seed."""
    name = primary if metric == "primary" else metric
    better_is_higher = (
        higher if metric == "primary" else metric not in ("cross_entropy", "nll", "ece", "perplexity", "kl", "rmse")
    )
    one_ = {str(r["seed"]): r["metrics"]["student"][name] for r in rows[row]}
    if over == "alone":
        other = {str(r["seed"]): r["metrics"]["alone"][name] for r in rows[row]}
    else:
        other = {str(r["seed"]): r["metrics"]["student"][name] for r in rows[over]}
    e = paired(one_, other)
    if e is None:
        return {"row": row, "over": over, "metric": name, "holds": None, "said": f"{row} over {over}: no common seed"}
    sign = 1 if better_is_higher else -1
    low, high = sorted((sign * e.low, sign * e.high))
    holds = "n=1" if e.n < 2 else "confirmed" if low > 0 else "contradicted" if high < 0 else "not shown"
    said = f"{row} better than {over} in {name}: {holds} ({e.mean:+.4g} [{e.low:+.4g}, {e.high:+.4g}], {e.n} seeds)"
    return {
        "row": row,
        "over": over,
        "metric": name,
        "mean": e.mean,
        "low": e.low,
        "high": e.high,
        "n": e.n,
        "holds": holds,
        "said": said,
    }


def summarise(folder: Path) -> None:
    """``summary.json``: the verdict over every check below a slug."""
    checks = []
    for path in sorted(folder.glob("*.json")):
        if path.name != "summary.json":
            checks += json.loads(path.read_text()).get("checks", [])
    if not checks:
        return
    held = [c["holds"] == "confirmed" for c in checks]
    status = "confirmed" if all(held) else "partly" if any(held) else "not reproduced"
    atomic_write(
        folder / "summary.json",
        (json.dumps({"status": status, "checks": [c["said"] for c in checks]}, indent=1) + "\n").encode(),
    )


def finite(tree: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(tree, dict):
        return {k: finite(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [finite(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
