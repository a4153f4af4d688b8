"""``limbeck report``: write a run's report again."""

from __future__ import annotations

from limbeck.commands import _common as common
from limbeck.engine.terminal import say

TEXT = """Write report.html of a run, or of a comparison, again from what its folder holds."""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("report", TEXT)
    parser.add_argument("run", metavar="RUN", help="a run's or a comparison's folder")
    args, _ = parser.read(words)
    folder = common.run_folder(args.run, comparisons=True)
    from limbeck.report import write_report

    say(write_report(folder))
    return 0
