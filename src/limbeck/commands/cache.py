"""``limbeck cache``: record a teacher's answers once."""

from __future__ import annotations

from limbeck.commands import _common as common
from limbeck.commands.run import missing_recipe

FORMS = ("hard", "smoothing", "marginal_smoothing", "marginal_renorm")
"""Of labels of crops, as `limbeck.functional.label_forms` has them; written here, for that imports PyTorch."""

TEXT = """Record the answers of a recipe's teacher, so that later runs need no teacher.

You are shown the estimated size and asked to confirm; --yes skips the question. Repeat the command to continue an
interrupted recording."""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("cache", TEXT, overrides=True)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="name, YAML file or run folder")
    parser.add_argument("--out", metavar="DIR", type=common.folder_or_file("--out"), help="where it is written")
    parser.add_argument("--seed", metavar="N", type=common.whole(0, "--seed"), help="random seed")
    parser.add_argument(
        "--top",
        metavar="K",
        type=common.whole(1, "--top"),
        help="outputs to keep per position (all; 50 for a vocabulary)",
    )
    parser.add_argument(
        "--views", metavar="N", type=common.whole(1, "--views"), default=1, help="augmented views per item (1)"
    )
    parser.add_argument(
        "--crops",
        metavar="M",
        type=common.whole(1, "--crops"),
        help="a store of M crops of each image with their labels (as the method says)",
    )
    parser.add_argument(
        "--labels",
        metavar="FORM",
        choices=FORMS,
        help=f"form of the labels of crops: {', '.join(FORMS)}; --top K classes",
    )
    parser.add_argument(
        "--feature", metavar="MODULE", action="append", default=[], help="a module of the teacher to keep too"
    )
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        choices=("float16", "float32"),
        default="float16",
        help="float16 (default), or float32",
    )
    parser.add_argument(
        "--leave-out", action="store_true", help="leave out items whose answers are not finite or too large"
    )
    parser.add_argument("--yes", action="store_true", help="write it without asking")
    common.add_choices(parser)
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, overrides = parser.read(words)
    if args.recipe is None:
        missing_recipe("cache")
    from limbeck.engine import interrupt
    from limbeck.recipe import recipe
    from limbeck.recipe.trust import trusting

    with trusting(args.trust):
        tree = recipe.check(recipe.load_tree(args.recipe, overrides, args.seed, args.preset, args.tiny))
        from limbeck.cache import build_cache

        interrupt.install()
        found = build_cache(
            tree,
            args.out,
            args.yes,
            args.top,
            args.views,
            args.feature,
            args.dtype,
            args.leave_out,
            args.crops,
            args.labels,
        )
    common.table([(k.replace("_", " "), v) for k, v in found.items()], ["cache", "value"])
    return 0
