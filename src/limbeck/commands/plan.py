"""``limbeck plan``: what a recipe will cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.commands import _common as common
from limbeck.commands.run import missing_recipe
from limbeck.engine.terminal import say

TEXT = """Estimate what a recipe will cost by running a few steps: parameters, memory, time of each part, size of a cache.

RECIPE and key=value are those of limbeck run."""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("plan", TEXT, overrides=True)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="name, YAML file or run folder")
    parser.add_argument("--seed", metavar="N", type=common.whole(0, "--seed"), help="random seed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_choices(parser)
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, overrides = parser.read(words)
    if args.recipe is None:
        missing_recipe("plan")
    from limbeck.engine import interrupt
    from limbeck.recipe import recipe
    from limbeck.recipe.trust import trusting

    with trusting(args.trust):
        tree = recipe.check(recipe.load_tree(args.recipe, overrides, args.seed, args.preset, args.tiny))
        from limbeck.run import plan

        interrupt.install()
        found = plan(tree)
    if args.json:
        common.print_json(found)
        return 0
    parts = found.get("parts", [])
    if parts:
        common.table(_parts(found), list(_COLUMNS), f"plan of {tree['name']}", right=_COLUMNS[1:5])
    common.table(_rows(found), ["what", "value"], "" if parts else f"plan of {tree['name']}")
    if "example" in found:
        from limbeck.tasks.specimen import marked

        for line in marked(found["example"]):
            say(line)
    for line in (*found.get("notes", []), *found.get("advice", [])):
        say(line)
    return 0


_COLUMNS = ("part", "steps", "seconds a step", "seconds", "memory", "note")
# in the first table, or below both, or in a row of its own
_TOLD = ("parts", "stages", "teacher_stage", "seconds", "without", "advice", "memory_mb", "device_memory", "cache_mb")


def _parts(found: Mapping[str, Any]) -> list[list[str]]:
    from limbeck.errors import human
    from limbeck.report.numbers import duration

    rows = []
    for p in found["parts"]:
        memory = human(p["memory"]["peak"], "B") if p["memory"] else "-"
        rows.append(
            [p["part"], *(common.figure(p[k]) for k in ("steps", "seconds_a_step", "seconds")), memory, p["note"]]
        )
    without = "; without " + ", ".join(found["without"]) if found["without"] else ""
    return [*rows, ["total", "", "", common.figure(found["seconds"]), "", f"{duration(found['seconds'])}{without}"]]


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        label = name.replace("_", " ")
        if (
            value is None
            or value == {}
            or name in ("notes", "advice", "example")
            or (name in _TOLD and "parts" in found)
        ):
            continue
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            rows += [(label if i == 0 else "", common.figure(entry)) for i, entry in enumerate(value)]
        else:
            rows.append((label, common.figure(value)))
    return rows + (_memory(found) if "parts" in found else [])


def _memory(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    from limbeck.errors import human

    rows = []
    held = found.get("device_memory")
    if held:
        kinds = ("parameters", "gradients", "optimiser", "activations", "outputs")
        each = f", on each of {found['devices']} devices" if found["devices"] > 1 else ""
        shapes = ", ".join(f"{n} {' x '.join(f'{d:,}' for d in shape)}" for n, shape in held["shown"].items())
        rows.append(
            (
                "device memory",
                f"{human(held['peak'], 'B')} at once in {held['part']}{each}: "
                + ", ".join(f"{kind} {human(held[kind], 'B')}" for kind in kinds)
                + (f" ({shapes})" if shapes else ""),
            )
        )
    rows.append(("host memory", f"{human(found['memory_mb'] * 2**20, 'B')}, taken by this plan"))
    if found["cache_mb"]:
        rows.append(("recorded teacher", human(found["cache_mb"] * 2**20, "B")))
    return rows
