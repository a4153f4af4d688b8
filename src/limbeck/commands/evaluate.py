"""``limbeck evaluate``: evaluate a student on labelled data."""

from __future__ import annotations

from limbeck.commands import _common as common

TEXT = """Evaluate a student on its run's own test data, or on other labelled data.

  limbeck evaluate RUN                                the numbers of the report, computed again
  limbeck evaluate RUN task.data=folder:new-photos    other data; all items, if they have no test split
  limbeck evaluate EXPORT task.data=csv:june.csv --out june.json
"""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("evaluate", TEXT, overrides=True)
    parser.add_argument("run", metavar="RUN", help="a run folder, an export folder, or an ONNX file")
    parser.add_argument("--split", metavar="NAME", help="test (default), valid or train")
    parser.add_argument(
        "--checkpoint", metavar="WHICH", help="of a run: last (default), best (on validation), or a checkpoint's number"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:N, mps (default: the best available)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", metavar="FILE", type=common.folder_or_file("--out"), help="write JSON to a file")
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, overrides = parser.read(words)
    import json

    from limbeck.engine import interrupt
    from limbeck.engine.terminal import say
    from limbeck.predict import load
    from limbeck.recipe.trust import trusting
    from limbeck.storage.store import atomic_write, check_writable

    interrupt.install()
    if args.out is not None:
        check_writable(args.out.parent)
    with trusting(args.trust):
        loaded = load(args.run, args.checkpoint, device=args.device)
        metrics = loaded.evaluate(*overrides, split=args.split, progress=True)
    told = {"metrics": metrics, **loaded.judged}
    if args.out is not None:
        atomic_write(args.out, (json.dumps(told, indent=2) + "\n").encode())
    if args.json:
        common.print_json(told)
        return 0
    from limbeck.report.metrics import metric_of  # draws nothing, but its package loads matplotlib

    judged = loaded.judged
    rows = [(metric_of(name).label, metric_of(name).value(value)) for name, value in metrics.items()]
    common.table(rows, ("metric", "value"), f"{judged['items']:,} items ({judged['split']})", right=("value",))
    if args.out is not None:
        say(str(args.out))
    return 0
