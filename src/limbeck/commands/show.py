"""``limbeck show``: one paper's facts, claim, recipe and source."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from limbeck.commands import _common as common
from limbeck.commands.methods import as_json
from limbeck.errors import ConfigError, LimbeckError
from limbeck.grammar import card as cards

TEXT = """Show one method: the facts of its paper, its presets, the claim that is checked, and its complete recipe.

limbeck show NAME --taps [key=value...] lists what a tap may name instead: the modules of the student and the teacher of a
recipe, or of one model (limbeck show timm:resnet18 --taps), each with the shape it shows for two items of the data. Of a model
alone the data are those of the recipe kd, or of --recipe NAME."""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("show", TEXT, overrides=True)
    parser.add_argument("name", metavar="NAME", help="a method, or the slug of its paper; with --taps also a model")
    parser.add_argument("--taps", action="store_true", help="list the modules that a tap may name, with their shapes")
    parser.add_argument("--recipe", metavar="NAME", help="with --taps: whose task and data a model is built for")
    parser.add_argument("--source", action="store_true", help="print the method's file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, tokens = parser.read(words)
    if args.taps:
        return _taps(args.name, tokens, args.recipe, args.json)
    if tokens or args.recipe:
        raise ConfigError(tokens[0] if tokens else "--recipe", "is about --taps", remedy="add --taps, or leave it out")
    entry = cards.find_card(args.name)
    source = entry.file.read_text(encoding="utf-8")
    if args.source and not args.json:
        _print_source(source)
        return 0
    if args.json:
        found = as_json(entry, cards.evidence())
        found["config"], found["config_error"] = _config(entry.card, args.name)
        if args.source:
            found["source"] = source
        common.print_json(found)
        return 0
    _print_card(entry)
    return 0


def _taps(name: str, tokens: list[str], task: str | None, as_json: bool) -> int:
    """List the modules of a recipe's networks, or of one model's."""
    from limbeck.errors import human
    from limbeck.recipe.names import table
    from limbeck.recipe.recipe import build, check, load_tree

    known = set(table("model"))
    head = name.split(":", 1)[0]
    alone = head in known and cards.locate_method(name) is None and name not in cards.recipes()
    base = task or (_usual_task(head) if alone else name)
    recipe = build(check(load_tree(base, [*([f"student={name}"] if alone else []), *tokens])))
    from limbeck.run.taps import networks, places

    found = {role: places(*one) for role, one in networks(recipe, ["student"] if alone else ()).items()}
    if as_json:
        common.print_json({role: [vars(p) for p in rows] for role, rows in found.items()})
        return 0
    for role, rows in found.items():
        if not rows:
            print(f"{role}: no network of torch's, and no taps\n")
            continue
        cells = [
            (
                p.name,
                p.module,
                "x".join(map(str, p.shape)) or ("-" if p.calls else "does not run"),
                str(p.calls) if p.calls > 1 else "",
                human(p.parameters) if p.parameters else "",
            )
            for p in rows
        ]
        title = name if alone else f"{role} of {name}"
        common.table(cells, ["tap", "module", "shows", "calls", "parameters"], title, right=["calls", "parameters"])
    print(
        "NAME:in is the first input instead; of what runs several times NAME is the last call, NAME:0 the first, NAME:all a tuple."
    )
    return 0


def _usual_task(model: str) -> str:
    """The recipe whose task a kind of model is built for, where none is named."""
    from limbeck.grammar.task import Model
    from limbeck.recipe.schema import find_class

    usual = {"classes": "kd", "tokens": "taid", "map": "bpkd", "denoiser": "guided-diffusion", "boxes": "vild"}
    forms = getattr(find_class(Model, model, "NAME"), "forms", ())
    return next((recipe for form, recipe in usual.items() if form in forms), "kd")


def _recipe_name(card: cards.Card, name: str) -> str:
    return name if name in cards.recipes() else card.recipe


def _config(card: cards.Card, name: str) -> tuple[dict[str, Any] | None, str]:
    """The complete recipe; or why it can't be had here (a package that is not installed)."""
    from limbeck.recipe import recipe

    try:
        return recipe.check(recipe.load_tree(_recipe_name(card, name))), ""
    except LimbeckError as error:
        return None, error.line()


def _evidence(found: Mapping[str, Any]) -> str:
    seen = ", ".join(found["comparisons"])
    return f"{found['said']} ({seen})" if seen else found["said"]


def _presets(card: cards.Card) -> list[str]:
    """The presets of a Card's recipes, a line each."""
    from limbeck.recipe.overrides import presets_of

    return [
        f"limbeck run {name} --preset {preset}: {cards.describe_value(values)}"
        for name in card.methods
        if name in cards.recipes()
        for preset, values in presets_of(name).items()
    ]


def _print_card(entry: cards.Entry) -> None:
    card = entry.card
    evidence = cards.evidence().get(card.slug)
    facts = [
        ("number", str(card.number) if card.number is not None else ""),
        ("methods", ", ".join(card.methods)),
        ("family", card.family),
        (
            "published",
            card.venue if str(card.year) in card.venue else ", ".join(filter(None, (card.venue, str(card.year)))),
        ),
        ("arXiv", card.arxiv),
        ("official code", card.repository + (f" ({card.licence})" if card.licence else "")),
        ("optimised", card.optimised),
        ("signals", ", ".join(card.signals)),
        *(("presets" if i == 0 else "", text) for i, text in enumerate(_presets(card))),
        *(("provenance" if i == 0 else "", f"{k}: {v}") for i, (k, v) in enumerate(card.provenance.items())),
        ("claim", card.claim),
        ("evidence", _evidence(evidence) if evidence else "none yet"),
        *(("", f"{status}: {says}") for says, status in (evidence["clauses"] if evidence else {}).items()),
        *(("exception" if i == 0 else "", f"{k}: {v}") for i, (k, v) in enumerate(card.exceptions.items())),
        ("notes", card.notes),
        ("file", str(entry.file)),
        ("package", entry.package if entry.package != "limbeck" else ""),
    ]
    common.table([(a, b) for a, b in facts if b], ["", card.title])
    names = [n for n in dict.fromkeys((card.recipe, *card.methods)) if n in cards.recipes()]
    for name in names:
        print(f"recipe {name} (limbeck run {name}):\n")
        print(cards.recipe_path(name).read_text(encoding="utf-8"))
    if names:
        sys.stdout.flush()
        tree, why = _config(card, names[0])
        if tree is None:
            print(f"Its complete form can't be shown here: {why}")
        else:
            from limbeck.recipe.recipe import dump

            print(f"recipe {names[0]}, complete:\n")
            print(dump(tree), end="")


def _print_source(text: str) -> None:
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.syntax import Syntax

    common.console().print(Syntax(text, "python", background_color="default"))
