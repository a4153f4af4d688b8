"""``limbeck methods``: the catalogue, read from the Cards without importing a method."""

from __future__ import annotations

from typing import Any

from limbeck.commands import _common as common
from limbeck.grammar import card as cards

TEXT = """List the methods: number, names, family, title, year and evidence."""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("methods", TEXT)
    parser.add_argument("--family", metavar="NAME", help="those of one family only")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, _ = parser.read(words)
    broken: cards.Broken = []
    entries = cards.entries(broken=broken)
    families = sorted({e.card.family for e in entries})
    if args.family is not None:
        common.one_of(families, "--family", "family")(args.family)
        entries = [e for e in entries if e.card.family == args.family]
        broken = [(path, why) for path, why in broken if path.parent.name == args.family]
    shown = cards.evidence()
    if args.json:
        unread = [{"slug": path.stem.replace("_", "-"), "file": str(path), "error": why} for path, why in broken]
        common.print_json([*(as_json(e, shown) for e in entries), *unread])
        return 0
    rows = [
        (
            str(e.card.number) if e.card.number is not None else "",
            " ".join(e.card.methods),
            e.card.family,
            e.card.title,
            str(e.card.year),
            shown.get(e.card.slug, {}).get("status", "-"),
        )
        for e in entries
    ]
    rows += [
        ("", path.stem.replace("_", "-"), path.parent.name, f"cannot be read: {why}", "", "-") for path, why in broken
    ]
    common.table(rows, ["no.", "method", "family", "title", "year", "evidence"], right=["no."])
    print(f"{len(entries)} papers. limbeck show NAME tells more; limbeck run NAME runs one.")
    return 0


def as_json(entry: cards.Entry, shown: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One method's facts for other tools."""
    known = shown.get(entry.card.slug, {"status": "none", "said": "none yet", "clauses": {}, "comparisons": []})
    return {**entry.card.as_dict(), "evidence": known, "module": entry.module, "package": entry.package}
