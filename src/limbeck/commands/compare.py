"""``limbeck compare``: several recipes over several seeds, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.commands import _common as common
from limbeck.engine.terminal import say
from limbeck.errors import ConfigError

TEXT = """Run several recipes over several seeds and put them in one table: means, intervals, paired differences, cost.

key=value settings apply to every recipe. Finished runs are reused. Repeat the command to continue."""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("compare", TEXT, overrides=True)
    parser.add_argument(
        "names",
        metavar="RECIPE",
        nargs="*",
        help='names, YAML files or run folders; with settings of its own: "kd method.temperature=2"',
    )
    parser.add_argument("--seeds", metavar="N", type=common.whole(1, "--seeds"), default=3, help="how many seeds (3)")
    parser.add_argument("--out", metavar="DIR", type=common.folder_or_file("--out"), help="folder (runs/compare-NAMES)")
    engines = common.one_of(["process", "ray"], "--engine", "engine")
    parser.add_argument("--engine", metavar="NAME", type=engines, default="process", help="process or ray")
    parser.add_argument(
        "--workers", metavar="N", type=common.whole(1, "--workers"), default=1, help="runs at a time (1)"
    )
    parser.add_argument(
        "--first-seed", metavar="N", type=common.whole(0, "--first-seed"), default=0, help="the first seed (0)"
    )
    parser.add_argument(
        "--teachers",
        metavar="N",
        type=common.whole(1, "--teachers"),
        default=1,
        help="train N teachers and assign them to the seeds in turn (1: all runs share one)",
    )
    parser.add_argument(
        "--redeal", action="store_true", help="deal the data anew into training and test items for each seed"
    )
    parser.add_argument("--force", action="store_true", help="repeat finished runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, overrides = parser.read(words)
    if not args.names:
        raise ConfigError("RECIPE", "is missing", remedy="name at least one: limbeck compare kd nkd --seeds 5")
    doubled = sorted({n for n in args.names if args.names.count(n) > 1})
    if doubled:
        raise ConfigError("RECIPE", f"{', '.join(doubled)} is named twice", remedy="name each recipe once")
    from limbeck.engine import interrupt
    from limbeck.recipe import recipe
    from limbeck.recipe.overrides import split_recipe
    from limbeck.recipe.trust import trusting

    out = args.out or Path("runs") / ("compare-" + "-".join(Path(split_recipe(n)[0]).stem for n in args.names))
    settings = {
        name: getattr(args, name)
        for name in ("seeds", "engine", "workers", "force", "first_seed", "teachers", "redeal")
    }
    with trusting(args.trust):
        for name in args.names:  # everything that is wrong is said before anything is run
            recipe.build(recipe.load_tree(name, overrides))
        from limbeck.compare import compare

        interrupt.install()
        found = compare(args.names, overrides, out=out, **settings)
    if args.json:
        common.print_json(found)
    else:
        show(found)
    return 0


def show(found: Mapping[str, Any]) -> None:
    """Print a comparison's table and sentences, and where it lies."""
    common.print_outcome(found, "")
    for label, seeds in (found.get("failed") or {}).items():
        for seed, problem in seeds.items():
            say(f"{label}, seed {seed} failed: {problem}")
    for name in ("report", "folder"):
        if found.get(name):
            say(f"{name}: {found[name]}")
