"""``python -m benchmarks [NAMES] [--out DIR]``: run benchmarks, print their tables, keep one JSON each."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one thread: what is compared is work, not scheduling
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LIMBECK_PROGRESS", "plain")

import argparse  # noqa: E402
import importlib  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks import peers  # noqa: E402
from benchmarks.harness import Report, machine, number, write  # noqa: E402

NAMES = (
    "agree",
    "image",
    "llm-head",
    "trainer",
    "trajectory",
    "cache",
    "mirage",
    "g2sd",
    "puzzle",
    "vild",
    "ferkd",
    "steps",
    "dope",
    "dcglr",
    "splatting",
    "resume",
    "start",
)


def show(report: Report, console: Any) -> None:
    """The table and the promises of a report."""
    from rich.table import Table

    table = Table(title=report.title, title_justify="left", title_style="bold", pad_edge=False)
    columns = list(dict.fromkeys(c for row in report.rows for c in row.cells))
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("", style="dim", overflow="fold")
    for row in sorted(report.rows, key=lambda row: not row.cells):  # what could not be measured comes last
        table.add_row(row.name, *(number(row.cells.get(c)) for c in columns), row.note)
    console.print(table)
    for check in report.checks:
        style = {True: "green", False: "bold red", None: "yellow"}[check.passed]
        console.print(check.said(), style=style, highlight=False, markup=False)
    for note in report.notes:
        console.print(note, style="dim", highlight=False, markup=False)
    console.print()


def main(argv: list[str] | None = None) -> int:
    """The command. Returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed, memory and conventions beside the floor and beside peers."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; all when none is named")
    parser.add_argument(
        "--out", type=Path, default=Path("evidence/benchmarks"), help="where the JSON files go (%(default)s)"
    )
    parser.add_argument(
        "--peers", action="store_true", help="first install the peers that are missing, in benchmarks/.peers"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    args = parser.parse_args(argv)
    wanted = [n for n in NAMES if n in args.names] if args.names and "all" not in args.names else list(NAMES)
    unknown = [n for n in args.names if n not in (*NAMES, "all")]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; known: all, {', '.join(NAMES)}")

    import torch
    from rich.console import Console

    torch.set_num_threads(1)
    console, aside = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=150)
    if args.peers:
        peers.install(lambda text: aside.print(text, style="dim", highlight=False))
    broken = []
    for name in wanted:
        module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
        before, began = machine(), time.perf_counter()
        with tempfile.TemporaryDirectory() as space, aside.status(name) as status:
            os.environ["LIMBECK_WORKSPACE"] = space  # every run is measured from nothing, and leaves nothing
            report = module.run(module.TOY if args.toy else None, lambda text, n=name: status.update(f"{n}: {text}"))
        write(report, args.out, time.perf_counter() - began, before)
        show(report, console)
        if report.passed is False:
            broken.append(name)
    console.print(
        f"{len(wanted)} benchmarks, JSON in {args.out}"
        + (f"; promises broken in {', '.join(broken)}" if broken else ""),
        highlight=False,
    )
    return 1 if broken else 0


if __name__ == "__main__":
    # the notes of tasks and methods would stand between the tables
    logging.getLogger("limbeck").setLevel(logging.ERROR)
    sys.exit(main())
