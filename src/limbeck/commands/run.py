"""``limbeck run``: a recipe from end to end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from limbeck.commands import _common as common
from limbeck.engine.terminal import say
from limbeck.errors import ConfigError

TEXT = """Run a recipe: teacher, student alone, distillation, evaluation, report.

RECIPE is a shipped recipe (see limbeck methods), a YAML file, or an earlier run's folder. Any of its settings may be
given as key=value with a dotted key, in any order (of one key given twice the last counts): train.steps=200
method.temperature=2 student=timm:resnet18 objectives.hint=feature
objectives.hint.weight=2 loggers+=wandb teacher=null.
Repeat the command to continue an interrupted run."""


def parser() -> common.Parser:
    """The command's options."""
    made = common.Parser("run", TEXT, overrides=True, own_help=True)
    made.add_argument("recipe", metavar="RECIPE", nargs="?", help="name, YAML file or run folder")
    made.add_argument(
        "--out", metavar="DIR", type=common.folder_or_file("--out"), help="the run folder (runs/NAME-seedN)"
    )
    made.add_argument("--seed", metavar="N", type=common.whole(0, "--seed"), help="random seed")
    made.add_argument(
        "--force", action="store_true", help="repeat a finished run, or replace another one in the folder"
    )
    common.add_choices(made)
    made.add_argument("--trust", action="store_true", help=common.TRUST)
    made.add_argument("--print-config", action="store_true", help="print the complete recipe and stop")
    return made


def main(words: list[str]) -> int:
    """Run the command."""
    options = parser()
    args, overrides = options.read(words)
    if args.recipe is None:
        if args.help:
            options.print_help()
            return 0
        missing_recipe("run")
    from limbeck.recipe.trust import trusting

    with trusting(args.trust):
        return _run(args, overrides, options, words)


def _run(args: argparse.Namespace, overrides: list[str], options: common.Parser, words: list[str]) -> int:
    from limbeck.recipe import recipe

    tree = recipe.check(recipe.load_tree(args.recipe, overrides, args.seed, args.preset, args.tiny))
    if args.help:
        explain(tree, options)
        return 0
    if args.print_config:
        recipe.build(tree)  # what a constructor would refuse is refused here too
        recipe.check_places(tree)
        print(recipe.dump(tree), end="")
        return 0
    devices = tree["engine"]["devices"]
    if isinstance(devices, int) and devices > 1 and "LOCAL_RANK" not in os.environ:
        built = recipe.build(tree)  # say what is wrong once, before there are several of us
        from limbeck.commands._launch import launch
        from limbeck.run.fitting import check_processes

        check_processes(built.engine)
        return launch(["run", *words], devices)
    from limbeck.engine import interrupt
    from limbeck.run import run

    interrupt.install()
    result = run(tree, args.out, args.force)
    if os.environ.get("RANK", "0") == "0":
        summarise(result)
    return 0


def missing_recipe(command: str) -> None:
    """Say that the recipe is missing, and which there are.

    Raises:
        ConfigError: always.
    """
    from limbeck.grammar.card import recipes

    raise ConfigError(
        "RECIPE", "is missing", remedy=f"limbeck {command} NAME; shipped: {', '.join(recipes()) or 'none'}"
    )


def explain(tree: Mapping[str, Any], options: common.Parser) -> None:
    """Print every key of a recipe: type, value, what it does."""
    from limbeck.recipe.recipe import describe

    print(" ".join(options.format_usage().split()))
    print(f"\nSettings of {tree['name']}: key=value, and what it takes.\n")
    width = min(common.terminal_width(), 120)
    for row in describe(tree):
        print(f"{row.key}={row.value}    ({row.type})")
        if row.doc:
            print(common.wrap(row.doc.replace("``", ""), width, "      "))


def summarise(result: Mapping[str, Any]) -> None:
    """Print a run's figures: what the teacher knows, what the student knows alone, what it has learnt."""
    told = () if result.get("reused") else result.get("notes", ())
    common.print_outcome(result, f"{result.get('recipe')}, seed {result.get('seed')}", told)
    if not result.get("reused"):
        common.print_tables(result)
    for form, place in (result.get("exports") or {}).items():
        say(f"{form}: {place if isinstance(place, str) else common.figure(place)}")
    folder = result.get("folder")
    if result.get("reused"):
        say(f"This run was finished before: {folder}; --force repeats it.")
    elif folder:
        say(f"{folder}: report.html, result.json, the student, logs ({result.get('wall_seconds', 0.0):.0f} s)")
