"""``limbeck search``: settings and methods, chosen on the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.commands import _common as common
from limbeck.engine.terminal import say
from limbeck.errors import ConfigError

TEXT = """Search settings, and methods where several recipes are named, on the validation split; then run the best in full.

Every trial trains a student with other settings. Trials that fall behind are stopped early. Only the final run is scored on
the test split. key=value settings apply to every recipe. Repeat the command to continue.

  limbeck search kd --trials 20
  limbeck search kd nkd dkd --minutes 30 --share 0.25
  limbeck search kd --space train.lr=1e-4..1e-2 --space "method.alpha=0.5|0.9|1"
"""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("search", TEXT, overrides=True)
    parser.add_argument(
        "names", metavar="RECIPE", nargs="*", help='names, YAML files or run folders; with settings: "kd train.lr=0.01"'
    )
    parser.add_argument(
        "--trials", metavar="N", type=common.whole(1, "--trials"), default=40, help="how many trials in all (40)"
    )
    parser.add_argument("--minutes", metavar="M", type=_number("--minutes"), help="start no new trial after M minutes")
    parser.add_argument(
        "--share", metavar="S", type=_number("--share"), default=1.0, help="share of the recipe's steps in a trial (1)"
    )
    parser.add_argument(
        "--space", metavar="KEY=VALUES", action="append", default=[], help="a setting to vary: LOW..HIGH or A|B|C"
    )
    parser.add_argument(
        "--seed", metavar="N", type=common.whole(0, "--seed"), default=0, help="random seed of the search (0)"
    )
    parser.add_argument("--out", metavar="DIR", type=common.folder_or_file("--out"), help="folder (runs/search-NAMES)")
    parser.add_argument("--all-to-the-end", action="store_true", help="stop no trial early")
    parser.add_argument("--no-final", action="store_true", help="do not run the best settings in full")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, overrides = parser.read(words)
    if not args.names:
        raise ConfigError("RECIPE", "is missing", remedy="name at least one: limbeck search kd --trials 20")
    from limbeck.engine import interrupt
    from limbeck.recipe.overrides import split_recipe
    from limbeck.recipe.trust import trusting
    from limbeck.search import search

    out = args.out or Path("runs") / ("search-" + "-".join(Path(split_recipe(n)[0]).stem for n in args.names))
    with trusting(args.trust):
        interrupt.install()
        found = search(
            args.names,
            overrides,
            space=args.space,
            trials=args.trials,
            minutes=args.minutes,
            share=args.share,
            seed=args.seed,
            out=out,
            prune=not args.all_to_the_end,
            final=not args.no_final,
            say=lambda text: say(text, error=args.json),
        )
    if args.json:
        common.print_json(found)
    else:
        show(found)
    return 0


def show(found: Mapping[str, Any], most: int = 12) -> None:
    """Print the best trials, the final run, and how to repeat it."""
    higher = found["higher_is_better"]
    scored = sorted(
        (t for t in found["trials"] if t["score"] is not None), key=lambda t: -t["score"] if higher else t["score"]
    )
    rows = [
        [str(t["number"]), t["recipe"], "  ".join(f"{k}={common.figure(v)}" for k, v in t["settings"].items()),
         f"{t['score']:.5g}"]
        for t in scored[:most]
    ]  # fmt: skip
    early = sum(t["state"] == "stopped early" for t in found["trials"])
    failed = sum(t["state"] == "failed" for t in found["trials"])
    counts = (
        f"{len(scored)} finished"
        + (f", {early} stopped early" if early else "")
        + (f", {failed} failed" if failed else "")
    )
    metric = f"{found['metric']} on validation"
    common.table(rows, ("trial", "recipe", "settings", metric), f"trials: {counts}", right=(metric,))
    if "result" in found:
        common.print_outcome(found["result"], "the best settings, run in full")
    say(
        f"The settings were chosen on validation among {len(found['trials'])} trials. The baselines use them too and were "
        "not searched by themselves."
    )
    say(f"recipe: {found['recipe']}")
    say(f"folder: {found['folder']}")


def _number(name: str) -> Any:
    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(name, given=text, expected="a number") from None

    return read
