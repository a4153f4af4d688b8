"""Run the evidence, one row at a time: `python evidence/run.py NAME:ROW`, or `--next` for the first that is not finished.

A row is one recipe in one comparison of ``list.yaml`` or ``list/*.yaml``, with all its seeds. It is run by ``limbeck
compare`` in the folder ``--work``, where finished seeds are reused and an interrupted one goes on; then the comparison's
JSON beside this file is written with what is finished, and ``summary.json`` with every claim, clause by clause. Without
arguments the rows are listed with what they cost; ``--derive`` writes the JSON files anew from the runs that they hold,
without running any.

A comparison with ``search`` first finds settings for each of its rows, by as many trials on the validation split as for any
other, and runs the row with them; trials and settings are kept in the JSON. With ``recorded`` its rows have one teacher, whose
answers and features are recorded once (``limbeck cache``) in place of its passes.

Data sets that do not come with limbeck lie below ``--data`` (list.yaml says which, and where they are from).
No network is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from limbeck.cache import build_cache
from limbeck.compare import compare
from limbeck.compare.checks import read_checks
from limbeck.compare.claims import conclude
from limbeck.compare.items import keep_items, kept_items, split
from limbeck.engine import interrupt
from limbeck.errors import ConfigError, DataError, LimbeckError, Stopped
from limbeck.recipe.recipe import check, dump, load_tree
from limbeck.report.statistics import t_interval
from limbeck.run.per_item import load_items
from limbeck.search import search
from limbeck.storage.store import atomic_write

HERE = Path(__file__).resolve().parent
DATA = "{data}"
"""What stands in the list for the folder ``--data``."""
RECORDED = "{recorded}"
"""What stands in the list for the folder of the comparison's recorded teacher."""
KEPT = (
    "seed",
    "metrics",
    "measures",
    "sizes",
    "latency_ms",
    "cost",
    "items",
    "wall_seconds",
    "versions",
    "hardware",
)


Record = dict[str, Any]


@dataclass
class Row:
    """One recipe of a comparison.

    Attributes:
        name: the comparison's.
        label: the row's.
        words: the recipe and its settings, those of all rows among them.
        entry: the comparison's entry in the list.
    """

    name: str
    label: str
    words: list[str]
    entry: dict[str, Any]

    @property
    def seeds(self) -> range:
        """The seeds it is run with."""
        first = int(self.entry.get("first_seed", 0))
        return range(first, first + int(self.entry["seeds"]))

    @property
    def file(self) -> Path:
        """The comparison's JSON."""
        return HERE / f"{self.name}.json"

    @property
    def items(self) -> Path:
        """What is kept of single test items, beside the JSON."""
        return HERE / f"{self.name}.items.safetensors"

    @property
    def search(self) -> dict[str, Any] | None:
        """How its settings are found: trials, share of the steps, what is varied; ``None`` where they are the recipe's."""
        asked = self.entry.get("search")
        return None if asked is None else {**asked, "space": list(asked.get("space", {}).get(self.label, []))}

    def tuned(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """The search that a comparison's JSON holds of this very row."""
        found: dict[str, Any] | None = record.get("tuned", {}).get(self.label)
        return found if found is not None and found["search"] == self.search and self.same(record) else None

    def same(self, record: Mapping[str, Any]) -> bool:
        """Whether a comparison's JSON holds the row by these words."""
        known = record.get("rows", {}).get(self.label)
        return known is not None and [known[0], *sorted(known[1:])] == [self.words[0], *sorted(self.words[1:])]

    def finished(self, record: Mapping[str, Any]) -> list[int]:
        """The seeds that a comparison's JSON holds of this very row."""
        if not self.same(record) or (self.search is not None and self.tuned(record) is None):
            return []
        return [r["seed"] for r in record["runs"].get(self.label, []) if r["seed"] in self.seeds]

    def hours(self, record: Mapping[str, Any]) -> tuple[float, str]:
        """CPU hours of all its seeds, and how they are known: ``measured`` where it is finished, else ``planned``."""
        if len(self.finished(record)) == len(self.seeds):
            spent = [r["cost"].get("cpu_seconds") or r.get("wall_seconds", 0.0) for r in record["runs"][self.label]]
            tried = (self.tuned(record) or {}).get("cpu_seconds", 0.0)
            return (sum(spent) + tried) / 3600, "measured"
        each = self.entry.get("seconds", 0.0)
        return len(self.seeds) * float(each[self.label] if isinstance(each, dict) else each) / 3600, "planned"


def read_list() -> tuple[dict[str, Any], list[Row]]:
    """``list.yaml`` with the ``list/SLUG.yaml`` of every Card, and the rows in order."""
    found: dict[str, Any] = {"data": {}, "claims": {}, "comparisons": {}}
    for path in [HERE / "list.yaml", *sorted((HERE / "list").glob("*.yaml"))]:
        for part, entries in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            twice = sorted(set(found[part]) & set(entries))
            if twice:
                raise ConfigError(
                    part, f"{', '.join(twice)} of {path.name} stands in the list already", expected="a new name"
                )
            found[part] |= entries
    rows = []
    for name, entry in found["comparisons"].items():
        for label, (recipe, *own) in entry["rows"].items():
            rows.append(Row(name, label, [recipe, *entry.get("set", []), *own], entry))
    return found, rows


def read_record(path: Path) -> dict[str, Any]:
    """A comparison's JSON; empty where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main(words: list[str]) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", help="NAME:ROW, or NAME where it has one row only")
    parser.add_argument("--next", action="store_true", help="the first row that is not finished")
    parser.add_argument("--derive", action="store_true", help="write the JSON files anew from the runs they hold")
    parser.add_argument("--force", action="store_true", help="run a finished row again")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/evidence"), help="where the runs are kept (%(default)s)"
    )
    data = os.environ.get("LIMBECK_EVIDENCE_DATA", "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="where data sets lie (%(default)s)")
    args = parser.parse_args(words)
    interrupt.install()
    try:
        listed, rows = read_list()
        if args.derive:
            derive(listed, rows)
        elif args.next:
            todo = [r for r in rows if len(r.finished(read_record(r.file))) < len(r.seeds)]
            if not todo:
                print("every row is finished")
                return 0
            run(todo[0], listed, rows, args.work, args.data, args.device)
        elif args.row is None:
            print("\n".join(overview(rows)))
        else:
            row = find(rows, args.row)
            if len(row.finished(read_record(row.file))) == len(row.seeds) and not args.force:
                print(f"{row.name}:{row.label} is finished; --force runs it again")
                return 0
            run(row, listed, rows, args.work, args.data, args.device, args.force)
    except LimbeckError as error:
        print(error.line(), file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("stopped; the same command goes on, finished seeds are kept", file=sys.stderr)
        return 128 + stopped.signum
    return 0


def find(rows: list[Row], asked: str) -> Row:
    """The row that is called NAME:ROW, or the only one of NAME.

    Raises:
        ConfigError: there is none, or NAME has several.
    """
    exact = [r for r in rows if f"{r.name}:{r.label}" == asked]
    named = exact or [r for r in rows if r.name == asked]
    if not named:
        raise ConfigError.unknown("row", asked, [f"{r.name}:{r.label}" for r in rows], "row")
    if len(named) > 1:
        raise ConfigError("row", f"{asked} has several", expected=", ".join(f"{r.name}:{r.label}" for r in named))
    return named[0]


def overview(rows: list[Row]) -> Iterator[str]:
    """A line a row, and the sums."""
    sums = {"measured": 0.0, "planned": 0.0}
    width = max(len(f"{r.name}:{r.label}") for r in rows)
    for row in rows:
        record = read_record(row.file)
        done, (hours, how) = len(row.finished(record)), row.hours(record)
        sums[how] += hours
        yield f"{f'{row.name}:{row.label}':{width}}  {done:2} of {len(row.seeds):2} seeds  {hours:5.2f} CPU hours {how}"
    yield f"finished: {sums['measured']:.1f} CPU hours; to do: {sums['planned']:.1f} CPU hours planned"


def run(
    row: Row, listed: dict[str, Any], rows: list[Row], work: Path, data: Path, device: str, force: bool = False
) -> None:
    """One row with all its seeds, then the JSON files."""
    check_data(row, listed.get("data", {}), data)
    folder = work / row.name / row.label
    folder.mkdir(parents=True, exist_ok=True)
    at = f"engine.device={device}"
    record = read_record(row.file)
    tuned = tune(row, record, folder, [*placed(row, work, data, 0), at], force)
    settings = [at, *(f"{key}={json.dumps(value)}" for key, value in (tuned or {}).get("settings", {}).items())]
    varied: dict[str, Any] = {
        "teachers": int(row.entry.get("teachers", 1)),
        "redeal": bool(row.entry.get("redeal", False)),
    }
    out, first = folder / "runs", row.seeds[0]
    # each seed draws the student's items anew, so that each has a recording of its own
    parts = [range(s, s + 1) for s in row.seeds] if "recorded" in row.entry else [row.seeds]
    found: dict[str, Any] = {}
    for seeds in parts:
        recipe, *own = placed(row, work, data, seeds[0])
        tree = check(load_tree(recipe, [*own, *settings]))
        path = folder / (f"{row.label}.yaml" if seeds[0] == first else f"{row.label}-{seeds[0]}.yaml")
        path.write_text(dump({**tree, "name": row.label}), encoding="utf-8")
        part = compare([str(path)], seeds=len(seeds), first_seed=seeds[0], out=out, force=force, **varied)
        if not found:
            found = part
            continue
        for kind in ("rows", "failed"):
            for label, results in part[kind].items():
                found[kind].setdefault(label, {}).update(results)
    for label, seeds in found["failed"].items():
        for seed, problem in seeds.items():
            print(f"{row.name}:{label}, seed {seed} failed: {problem}", file=sys.stderr)
    results = [kept(r) for r in found["rows"][row.label].values()]
    items = {**kept_items(row.items)}
    items[row.label] = {s: load_items(folder / "runs" / r["folder"]) for s, r in found["rows"][row.label].items()}
    # dealt anew, the seeds have different test items, of which each contributes to the interval over seeds
    keep_items(row.items, items, [] if varied["redeal"] else wanted(listed, row.name))
    record.setdefault("rows", {})[row.label] = row.words
    if tuned is not None:
        record.setdefault("tuned", {})[row.label] = tuned
    record.setdefault("runs", {})[row.label] = results
    # a record says nothing of where it was made
    failed = {s: problem.replace(f"{out}/", "") for s, problem in found["failed"].get(row.label, {}).items()}
    record["failed"] = {**record.get("failed", {}), row.label: failed}
    record |= {k: found[k] for k in ("task", "primary", "higher_is_better")}
    write_record(row, record, rows)
    derive(listed, rows)


def placed(row: Row, work: Path, data: Path, seed: int) -> list[str]:
    """A row's words with the folders of this machine."""
    words = [word.replace(DATA, str(data.resolve())) for word in row.words]
    if any(RECORDED in word for word in words):
        path = str(recorded(row, work, data, seed))
        words = [word.replace(RECORDED, path) for word in words]
    return words


def recorded(row: Row, work: Path, data: Path, seed: int) -> Path:
    """The recorded teacher of a comparison that asks for one: ``words`` is its recipe, ``features`` what else is kept."""
    asked = row.entry["recorded"]
    words = [asked["words"][0], *row.entry.get("set", []), *asked["words"][1:], f"seed={seed}"]
    digest = hashlib.sha256(json.dumps([words, asked]).encode()).hexdigest()[:8]
    out = (work / row.name / f"recorded-{seed}-{digest}").resolve()
    if not (out / "done").is_file():
        recipe, *settings = [word.replace(DATA, str(data.resolve())) for word in words]
        tree = check(load_tree(recipe, settings))
        build_cache(tree, out, yes=True, views=int(asked.get("views", 1)), features=asked.get("features", []))
        atomic_write(out / "done", b"")
    return out


def tune(row: Row, record: Mapping[str, Any], folder: Path, words: list[str], force: bool) -> dict[str, Any] | None:
    """The settings of a row whose comparison asks for a search: those found before, or by trials on the validation split."""
    asked = row.search
    if asked is None:
        return None
    before = None if force else row.tuned(record)
    if before is not None:
        return before
    began = time.process_time()
    path = folder / "searched.yaml"
    path.write_text(dump({**check(load_tree(words[0], words[1:])), "name": row.label}), encoding="utf-8")
    found = search(
        [str(path)],
        space=asked["space"],
        trials=int(asked["trials"]),
        share=float(asked["share"]),
        out=folder / "search",
        prune=False,
        final=False,
    )
    trials = [{k: t[k] for k in ("settings", "state", "score")} for t in found["trials"]]
    # an interrupted search counts what this part of it took
    spent = round(time.process_time() - began, 1)
    return {
        "search": asked,
        "settings": found["best"]["settings"],
        "metric": found["metric"],
        "trials": trials,
        "cpu_seconds": spent,
    }


def kept(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run: every row's metrics once, those beside student, teacher and the first baseline by name."""
    metrics = dict(result["metrics"])
    others = {name: row for name, row in metrics.pop("rows", {}).items() if row not in metrics.values()}
    found = {k: result[k] for k in KEPT if k in result}
    return {**found, "metrics": metrics, **({"baselines": others} if others else {})}


def wanted(listed: Mapping[str, Any], name: str) -> list[tuple[str, str, str]]:
    """(label, part, metric) of the single items that the checks of a comparison read."""
    labels = listed["comparisons"][name]["rows"]
    found = []
    for slug, claim in listed["claims"].items():
        nodes = [node for clause in claim["clauses"] for node in clause.get("checks", [])] + claim.get("beside", [])
        for checked in (c for node in nodes if node["at"] == name for c in read_checks(node, slug)):
            found += [
                (*split(checked.row), checked.metric),
                (*split(checked.over, checked.row, labels), checked.metric),
            ]
    return found


def check_data(row: Row, known: Mapping[str, Any], folder: Path) -> None:
    """The data sets that a row names must be those that the list describes.

    Raises:
        DataError: a file is missing, or has another content.
    """
    for word in row.words:
        if DATA not in word:
            continue
        name = word.split(f"{DATA}/")[1].split("/")[0].split(".")[0]
        for file, digest in known[name]["files"].items():
            path = folder / file
            if not path.is_file():
                raise DataError(str(path), f"{row.name} needs it", remedy=f"{known[name]['from']}; --data says where")
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise DataError(str(path), "holds other data than the list describes", remedy=known[name]["from"])


# ------------------------------------------------------------------------------------------------ what is made of the runs


def derive(listed: dict[str, Any], rows: list[Row]) -> None:
    """Every comparison's JSON anew from its runs, and ``summary.json``."""
    for name in listed["comparisons"]:
        own = [r for r in rows if r.name == name]
        record = read_record(own[0].file)
        if record:
            write_record(own[0], record, rows)
    labels = {name: list(entry["rows"]) for name, entry in listed["comparisons"].items()}
    records = {name: read_record(HERE / f"{name}.json") for name in labels}
    for name, record in records.items():
        record["items"] = kept_items(HERE / f"{name}.items.safetensors")
    for path in sorted((HERE / "benchmarks").glob("*.json")):
        name = f"benchmarks/{path.stem}"
        labels[name], records[name] = benchmark(read_record(path))
    summary = conclude(listed["claims"], labels, records)
    atomic_write(HERE / "summary.json", (json.dumps(finite(summary), indent=1) + "\n").encode())
    for slug, claim in summary["claims"].items():
        print(f"{slug}: {claim['said']}")


def benchmark(report: Mapping[str, Any]) -> tuple[list[str], Record]:
    """A benchmark's lines as rows of a comparison: seconds by round, in place of seeds, and memory, which is measured once."""
    raw = report.get("raw", {})
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in (row["name"] for row in report["rows"]):
        memory = {f"memory_at_{steps}_steps": mb for steps, mb in raw.get("mb", {}).get(line, {}).items()}
        rounds = raw.get("seconds", {}).get(line, [])
        rounds = rounds if isinstance(rounds, list) else []
        runs[line] = [{"seed": i, "metrics": {"student": {**memory, "seconds": s}}} for i, s in enumerate(rounds)]
    return list(runs), {"runs": runs}


def write_record(row: Row, record: dict[str, Any], rows: list[Row]) -> None:
    """A comparison's JSON: what was run, the runs one a line, means and intervals."""
    order = [r.label for r in rows if r.name == row.name]
    runs = {label: record["runs"][label] for label in order if record["runs"].get(label)}
    kind, names = called(row.words)
    about = {
        "name": row.name,
        "say": row.entry["say"],
        "before": row.entry.get("before", ""),
        "made_by": f"python evidence/run.py {row.name}:ROW",
        "rows": {label: record["rows"][label] for label in runs},
        "primary": record["primary"],
        "higher_is_better": record["higher_is_better"],
        "student_is": kind,
        "called": names,
        "teachers": int(row.entry.get("teachers", 1)),
        "redeal": bool(row.entry.get("redeal", False)),
        "seeds": sorted({r["seed"] for results in runs.values() for r in results}),
        "failed": {label: seeds for label, seeds in record.get("failed", {}).items() if seeds},
        "statistics": {label: statistics(results, record["primary"]) for label, results in runs.items()},
    }
    if record.get("tuned"):
        about["tuned"] = {label: record["tuned"][label] for label in runs if label in record["tuned"]}
    text = json.dumps(finite(about), indent=1)[:-2] + ',\n "runs": {\n'
    blocks = []
    for label, results in runs.items():
        lines = ",\n".join(f"   {json.dumps(finite(r))}" for r in results)
        blocks.append(f"  {json.dumps(label)}: [\n{lines}\n  ]")
    row.file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(row.file, (text + ",\n".join(blocks) + "\n }\n}\n").encode())


def called(words: list[str]) -> tuple[str, dict[str, str]]:
    """What the student of a row is, and how it, the baseline and the teacher are called in tables."""
    recipe, *settings = [word.replace(RECORDED, "recorded") for word in words]
    tree = check(load_tree(recipe, settings))
    task = tree["task"]
    if task["use"] == "condensation":
        count = f"{task['per_class']} a class"
        return "dataset", {
            "student": f"synthetic images, {count}",
            "alone": f"random real images, {count}",
            "teacher": "all real images",
        }
    if task["use"] == "generation":
        return "sampler", {
            "student": "student",
            "alone": "DDIM in as many steps",
            "teacher": f"DDIM in {tree['evaluator']['times_more']} times as many steps",
        }
    return "network", {"student": "student", "alone": "student alone, at equal budget", "teacher": "teacher"}


def statistics(results: list[dict[str, Any]], primary: str) -> dict[str, Any]:
    """Means and intervals of the main metric for student, baseline and teacher."""
    found = {}
    for who in ("student", "alone", "teacher"):
        values = [r["metrics"][who][primary] for r in results if primary in r["metrics"].get(who, {})]
        if values:
            e = t_interval(values)
            found[who] = {"mean": e.mean, "low": e.low, "high": e.high, "n": len(values)}
    return found


def finite(tree: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(tree, dict):
        return {k: finite(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [finite(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
