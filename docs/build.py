"""What is generated in the docs, and the site: `python -m docs.build [--check] [--out site]`.

Between `<!-- KIND ARGUMENTS -->` and `<!-- /KIND -->` a page holds what is made here from the Cards, from the JSON files
under evidence/, and from signatures and docstrings; nobody types such a table. `--check` writes nothing, and fails when
a page differs from what would be made.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from docs.evidence import all_comparisons, clauses_table
from docs.markdown import table
from docs.what_helps import leaderboard
from docs.which import families
from limbeck.cli import COMMANDS
from limbeck.grammar.card import Card, catalogue, evidence, recipe_path
from limbeck.recipe.names import tables
from limbeck.recipe.overrides import presets_of
from limbeck.recipe.recipe import show

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src"
PACKAGED = SOURCE / "limbeck" / "evidence.json"
"""What an installed limbeck knows of the evidence."""

SYSTEMS = 62

PART = re.compile(r"<!-- (?P<kind>[a-z]+)(?P<words>(?: [^\s>]+)*) -->\n.*?<!-- /(?P=kind) -->", re.DOTALL)


# --------------------------------------------------------------------------------------------------------- the sources


@lru_cache(maxsize=256)
def parsed(module: str) -> ast.Module:
    """A module of ours, unexecuted."""
    path = SOURCE.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def definition(where: str) -> ast.ClassDef | ast.FunctionDef:
    """What `module:Name` defines."""
    module, _, name = where.partition(":")
    for node in parsed(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node
    raise LookupError(f"{where} is not defined there")


def first_sentence(node: ast.ClassDef | ast.FunctionDef) -> str:
    """The docstring's first line, in Markdown."""
    return (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def arguments(node: ast.ClassDef | ast.FunctionDef) -> dict[str, tuple[str, str]]:
    """Argument -> (default as source, what it does), from the signature and the `Args:` of the docstring."""
    init: Any = node
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not inits:
            return attributes(node)
        init = inits[0]
    given = [*init.args.posonlyargs, *init.args.args]
    defaults: dict[str, ast.expr | None] = dict.fromkeys((a.arg for a in given), None)
    defaults.update(
        zip((a.arg for a in given[len(given) - len(init.args.defaults) :]), init.args.defaults, strict=True)
    )
    defaults.update(zip((a.arg for a in init.args.kwonlyargs), init.args.kw_defaults, strict=True))
    defaults.pop("self", None)
    said = documented(ast.get_docstring(node) or "")
    return {n: ("" if d is None else ast.unparse(d), said.get(n, "")) for n, d in defaults.items()}


def attributes(node: ast.ClassDef) -> dict[str, tuple[str, str]]:
    """The same of a class under `@settings`, whose annotated attributes are its constructor; its own, not inherited ones."""
    if not any(isinstance(d, ast.Name) and d.id == "settings" for d in node.decorator_list):
        return {}
    said = documented(ast.get_docstring(node) or "")
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    return {
        n.target.id: ("" if n.value is None else ast.unparse(n.value), said.get(n.target.id, ""))
        for n in fields
        if isinstance(n.target, ast.Name)
    }


def documented(docstring: str) -> dict[str, str]:
    """The entries of an `Args:` section."""
    found: dict[str, str] = {}
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        return found
    for entry in re.split(r"\n(?=    \S)", section.group(1).rstrip()):
        names, _, text = entry.strip().partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(text.split()).replace("``", "`")
    return found


# ------------------------------------------------------------------------------------------- parts made from the Cards


def paper(card: Card) -> str:
    """The title, with its link where there is one."""
    return f"[{card.title}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.title


def published(card: Card) -> str:
    """Where and when."""
    return card.venue if str(card.year) in card.venue else ", ".join(filter(None, (card.venue, str(card.year))))


def status(card: Card) -> str:
    """What the evidence says of a Card's claim."""
    shown = evidence().get(card.slug)
    return "none yet" if shown is None else str(shown["said"])


def methods_table(*_: str) -> str:
    """One row a paper."""
    cards = catalogue()
    done = sum(card.number is not None for card in cards)
    rows = [
        (
            str(card.number or "–"),
            ", ".join(f"[`{name}`](docs/methods.md#{card.slug})" for name in card.methods),
            f"{paper(card)}, {card.year}",
            card.family,
            card.optimised,
            status(card),
        )
        for card in cards
    ]
    head = ("no.", "methods", "paper", "family", "what is optimised", "evidence")
    base = len(cards) - done
    return (
        f"{table(head, rows)}\n\n{done} of the {SYSTEMS} systems, and {base} that they build on (–). Evidence: what the "
        "comparisons under `evidence/` show of the claim that each paper's Card states, clause by clause in "
        "[docs/methods.md](docs/methods.md)."
    )


def gallery(*_: str) -> str:
    """Everything the Cards say, family by family."""
    cards = catalogue()
    parts = []
    for family in sorted({card.family for card in cards}):
        parts.append(f"## {family.capitalize()}")
        parts += [entry(card) for card in cards if card.family == family]
    return "\n\n".join(parts)


def entry(card: Card) -> str:
    """One paper."""
    names = ", ".join(f"`{name}`" for name in card.methods)
    code = f"[{card.repository}](https://github.com/{card.repository})" if card.repository else "none that we know of"
    lines = [
        f"### {card.slug}",
        f"{paper(card)}. {published(card)}."
        + (f" Number {card.number} of {SYSTEMS}." if card.number else " A base that others build on."),
        "\n".join(
            [
                f"- **Methods**: {names}; `limbeck run {card.recipe}`, `limbeck show {card.slug} --source`",
                f"- **Optimised**: {card.optimised}",
                f"- **Matched**: {', '.join(card.signals)}",
                f"- **Authors' code**: {code}" + (f" ({card.licence})" if card.licence else ""),
                f"- **Presets** (`--preset`): {presets_in_words(card)}",
                f"- **Claim that is checked**: {card.claim}",
                f"- **Evidence**: {status(card)}",
            ]
        ),
    ]
    if card.notes:
        lines.append(card.notes)
    if card.provenance:
        lines.append(table(("part", "where it comes from"), card.provenance.items()))
    if card.exceptions:
        lines.append(table(("row of the battery that does not hold", "why"), card.exceptions.items()))
    lines.append(clauses_table(card.slug))
    return "\n\n".join(filter(None, lines))


def presets_in_words(card: Card) -> str:
    """The settings of the paper that its recipes have by name."""
    found = {
        f"{name} {preset}": values
        for name in card.methods
        if recipe_path(name).is_file()
        for preset, values in presets_of(name).items()
    }
    return settings_in_words({name: flat(values) for name, values in found.items()})


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}.{key}" if path else key
        found.update(flat(value, name) if isinstance(value, Mapping) else {name: value})
    return found


def settings_in_words(values: Mapping[str, Any]) -> str:
    """Nested settings in one line."""
    said = [
        f"{name} ({settings_in_words(value)})" if isinstance(value, Mapping) else f"`{name}` {value}"
        for name, value in values.items()
    ]
    return "; ".join(said) or "none"


# -------------------------------------------------------------------------------------------- parts made from the code


def names_table(kind: str, *only: str) -> str:
    """What a recipe may name: each with its first argument, its purpose, and its settings."""
    rows = []
    for name, where in tables()[kind].items():
        if only and name not in only:
            continue
        node = definition(where)
        known = {**inherited(where), **arguments(node)}
        settings = ", ".join(f"`{n}`" for n in known)
        rows.append((f"`{name}`", first_sentence(node), settings))
    return table(("`use`", "is", "settings"), rows)


def inherited(where: str) -> dict[str, tuple[str, str]]:
    """Arguments that a class without a constructor of its own takes from its bases, wherever in limbeck these are."""
    node = definition(where)
    if not isinstance(node, ast.ClassDef) or any(
        isinstance(n, ast.FunctionDef) and n.name == "__init__" for n in node.body
    ):
        return {}
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(node.bases):
        place = defined(where.partition(":")[0], ast.unparse(base).partition("[")[0])
        if place is not None:
            found |= {**inherited(place), **arguments(definition(place))}
    return found


def defined(module: str, name: str) -> str | None:
    """Where a module has a class of limbeck's from, as `module:Name`: itself, or what it imports."""
    for node in parsed(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return f"{module}:{name}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck."):
            for given in node.names:
                if (given.asname or given.name) == name:
                    return defined(str(node.module), given.name)
    return None


def settings_table(where: str, *_: str) -> str:
    """The settings of a class."""
    rows = [(f"`{n}`", default_of(n, d), text) for n, (d, text) in arguments(definition(where)).items()]
    return table(("setting", "default", "is"), rows)


def default_of(name: str, source: str) -> str:
    """A Python default as a recipe writes it."""
    if not source:
        return "" if name in GROUPS else "required"
    try:
        value = ast.literal_eval(source)
    except ValueError:
        return f"`{source}`"
    return f"`{show(list(value) if isinstance(value, tuple) else value)}`"


GROUPS = ("train", "teach", "engine", "objectives", "queries")
"""Parts of a recipe that have defaults of their own."""


def commands_table(*_: str) -> str:
    """The commands."""
    return table(("command", "does"), ((f"`limbeck {name}`", text) for name, text in COMMANDS.items()))


def functions_table(*modules: str) -> str:
    """Public functions of modules, with the first line of what they are."""
    rows = []
    for module in modules:
        for node in parsed(module).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                rows.append((f"`{node.name}`", first_sentence(node)))
    return table(("function", "is"), rows)


def errors_table(*_: str) -> str:
    """The family of errors."""
    rows = [
        (f"`{node.name}`", first_sentence(node))
        for node in parsed("limbeck.errors").body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "LimbeckError" for b in node.bases)
    ]
    return table(("error", "means"), rows)


PARTS: dict[str, Callable[..., str]] = {
    "methods": methods_table,
    "gallery": gallery,
    "evidence": all_comparisons,
    "leaderboard": leaderboard,
    "names": names_table,
    "settings": settings_table,
    "commands": commands_table,
    "functions": functions_table,
    "which": families,
    "errors": errors_table,
}


def filled(text: str) -> str:
    """A page with its generated parts made anew."""

    def make(found: re.Match[str]) -> str:
        kind, words = found["kind"], found["words"]
        if kind not in PARTS:
            return found[0]
        return f"<!-- {kind}{words} -->\n\n{PARTS[kind](*words.split())}\n\n<!-- /{kind} -->"

    return PART.sub(make, text)


def pages() -> Iterator[Path]:
    """The files that may hold generated parts."""
    yield ROOT / "README.md"
    yield from sorted(DOCS.rglob("*.md"))


def made() -> Iterator[tuple[Path, str]]:
    """Every generated file with what it ought to hold."""
    for page in pages():
        yield page, filled(page.read_text(encoding="utf-8"))
    yield PACKAGED, json.dumps(evidence(), indent=1, sort_keys=True) + "\n"


def stale() -> dict[Path, str]:
    """Files that differ from what would be made."""
    return {file: text for file, text in made() if not file.is_file() or file.read_text(encoding="utf-8") != text}


# -------------------------------------------------------------------------------------------------------------- a site


def site(out: Path, *settings: str) -> int:
    """Build the HTML with Sphinx, every warning an error; its exit status.

    Args:
        out: the folder of the pages.
        settings: of ``conf.py``, ``name=value``.
    """
    from sphinx.cmd.build import build_main

    more = [word for setting in settings for word in ("-D", setting)]
    doctrees = str(ROOT / "build" / "docs" / "doctrees")
    return build_main(["-W", "--keep-going", "-E", "-q", "-b", "html", "-d", doctrees, *more, str(DOCS), str(out)])


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="where the HTML goes (site)")
    args = parser.parse_args(words)
    behind = stale()
    if args.check:
        for page in behind:
            print(f"{page.relative_to(ROOT)} is stale: make docs", file=sys.stderr)
        return 1 if behind else 0
    for page, text in behind.items():
        page.write_text(text, encoding="utf-8")
        print(page.relative_to(ROOT))
    status = site(args.out)
    if not status:
        print(f"{args.out}/index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
