"""``python -m tests.mutation [PATTERN] [--out FILE]``: every mutant, a table, the share that was noticed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tests.mutation.machine import ROOT, Mutant, Outcome, run
from tests.mutation.mutants import MUTANTS


def main(words: list[str] | None = None) -> int:
    """Run the mutants whose file or mistake holds a pattern. 0 where at least 95 in 100 were noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="only mutants whose file or description holds it")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args(words)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import numpy  # noqa: F401  (imported once, for all children)
    import torch

    torch.set_num_threads(1)
    chosen = [m for m in MUTANTS if args.pattern in m.file or args.pattern in m.why]
    for tests in dict.fromkeys(m.tests for m in chosen):
        sound = run(None, tests)
        if sound.verdict != "survived":
            print(f"the tests {' '.join(tests)} do not pass on the original: {sound.by}", file=sys.stderr)
            return 2
    rows: list[tuple[Mutant, Outcome]] = []
    for mutant in chosen:
        found = run(mutant, mutant.tests)
        rows.append((mutant, found))
        print(f"{found.verdict:<9}{found.seconds:6.1f} s  {mutant.file:<38} {mutant.why:<60} {found.by}", flush=True)
    noticed = sum(o.noticed for _, o in rows)
    rate = noticed / max(1, len(rows))
    print(f"{noticed} of {len(rows)} noticed ({100 * rate:.1f} %)")
    if args.out is not None:
        told = {
            "mutants": len(rows),
            "noticed": noticed,
            "rate": rate,
            "rows": [
                {"file": m.file, "mistake": m.why, "verdict": o.verdict, "seconds": round(o.seconds, 1), "by": o.by}
                for m, o in rows
            ],
        }
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if rate >= 0.95 else 1


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
