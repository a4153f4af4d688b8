"""``limbeck show``: one paper's facts, claim, recipe and source."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from limbeck.commands import _common as common
from limbeck.commands.methods import as_json
from limbeck.errors import LimbeckError
from limbeck.grammar import card as cards

TEXT = """Show one method: the facts of its paper, its presets, the claim that is checked, and its complete recipe."""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("show", TEXT)
    parser.add_argument("name", metavar="NAME", help="a method, or the slug of its paper")
    parser.add_argument("--source", action="store_true", help="print the method's file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, _ = parser.read(words)
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
