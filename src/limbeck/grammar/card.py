"""The facts about a paper, at the top of its method file, readable without importing it.

A method file begins with one literal call, ``CARD = Card(number=..., slug=..., ...)``. The catalogue reads it with
``ast``: no torch, no import, nothing to keep in step. What is not a literal is refused with its file and line.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from limbeck.errors import ConfigError, nearest, shorten

GROUP = "limbeck.methods"
"""The entry-point group in which an installed package offers methods: ``slug = package.module``."""

ROWS = {
    "accumulation": "a batch that is cut into micro-batches gives the same update",
    "at_equality": "a student that equals the teacher gives the terms that `at_equality` promises",
    "batch_of_one": "a batch of one item runs",
    "moves": "every parameter that is trained moves",
    "precision": "terms stay finite when networks run in bfloat16",
    "processes": "two processes give the same update as one",
    "terms": "every term reaches the roles it declares and no other",
}
"""Rows of the test battery from which a Card may except its methods, with what each says."""

_TEXTS = ("slug", "title", "family", "venue", "arxiv", "repository", "licence", "optimised", "claim", "recipe", "notes")
_BEGINS = re.compile(r"^CARD\b.*=.*\($", re.MULTILINE)
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Card:
    """What is known about one paper and its place here.

    Attributes:
        number: its number among the sixty-two systems; left out for a base that they build on, and for any other paper.
        slug: the file's stem with ``-`` for ``_``.
        title: the paper's title.
        year: of publication.
        family: the folder it lies in.
        methods: the names a recipe may use and the class of each, ``{"nkd": "Nkd", "uskd": "Uskd"}``.
        venue: where it was published.
        arxiv: its arXiv identifier, ``2303.13005``.
        repository: the authors' code on GitHub, ``OWNER/NAME``; empty where there is none.
        licence: of that code.
        optimised: what the optimiser moves: network weights, images, a scene.
        signals: what is matched: logits, features, relations, gradients.
        provenance: for each part whether it is taken from code, from the paper, or reconstructed.
        claim: the sentence that the evidence checks.
        recipe: the shipped recipe that shows it.
        at_equality: for each term what happens when the student is the teacher: ``value`` (its values are 0),
            ``gradient`` (its gradient is), or a sentence that says why neither.
        baseline: for each method the overrides that turn it into the student alone, bit for bit.
        exceptions: rows of the test battery (`ROWS`) that do not hold, with the reason.
        notes: anything a user should know first.

    Raises:
        TypeError, ValueError: a value has the wrong type or form.
    """

    slug: str
    title: str
    year: int
    family: str
    methods: Mapping[str, str]
    number: int | None = None
    venue: str = ""
    arxiv: str = ""
    repository: str = ""
    licence: str = ""
    optimised: str = ""
    signals: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    claim: str = ""
    recipe: str = ""
    at_equality: Mapping[str, str] = field(default_factory=dict)
    baseline: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exceptions: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        if self.number is not None and (isinstance(self.number, bool) or not isinstance(self.number, int)):
            raise TypeError("number must be a whole number or None")
        if isinstance(self.year, bool) or not isinstance(self.year, int):
            raise TypeError("year must be a whole number")
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be text")
        for name in ("slug", "title", "family"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if not _SLUG.fullmatch(self.slug):
            raise ValueError("slug must be lower-case letters and digits joined by '-'")
        if "://" in self.repository:
            raise ValueError("repository must be OWNER/NAME, without https://github.com/")
        if not isinstance(self.signals, tuple) or not all(isinstance(s, str) for s in self.signals):
            raise TypeError("signals must be a tuple of texts")
        if not isinstance(self.baseline, Mapping) or not all(isinstance(v, tuple) for v in self.baseline.values()):
            raise TypeError("baseline must map methods to tuples of overrides")
        for name in ("methods", "provenance", "at_equality", "exceptions"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(x, str) for pair in value.items() for x in pair):
                raise TypeError(f"{name} must map texts to texts")
        for row in self.exceptions:
            if row not in ROWS:
                close = nearest(row, ROWS, 1)
                raise ValueError(
                    f"exceptions: no row of the battery is called {row!r}"
                    + (f"; did you mean {close[0]!r}?" if close else "")
                    + f" Rows: {', '.join(ROWS)}"
                )
        if not self.methods:
            raise ValueError("methods must name at least one class")
        for name in self.methods:
            if not _SLUG.fullmatch(name):
                raise ValueError("the names in methods must be lower-case letters and digits joined by '-'")

    def as_dict(self) -> dict[str, Any]:
        """The Card as plain values, for JSON."""
        return {**asdict(self), "signals": list(self.signals)}


def read_card(path: Path | str) -> Card:
    """The Card at the top of a method file, read without importing the file.

    Args:
        path: a Python file with one top-level ``CARD = Card(keyword=literal, ...)``.

    Raises:
        ConfigError: no Card, a value that is not a literal, an unknown or missing keyword; with file and line.
    """
    card = _read(Path(path))
    if card is None:
        raise ConfigError(
            str(path), "has no Card", remedy="begin the method file with CARD = Card(number=..., slug=..., ...)"
        )
    return card


def _read(path: Path) -> Card | None:
    """The Card of a file, ``None`` where the file has none."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None
    return _parse(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _parse(name: str, _changed: int, _size: int) -> Card | None:
    try:
        text = Path(name).read_text(encoding="utf-8")
        tree = _piece(text, name) or ast.parse(text, name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(name, f"cannot be read: {error}") from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(f"{name}:{line}" if line else name, f"is not Python: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if any(isinstance(t, ast.Name) and t.id == "CARD" for t in targets):
            return _card(name, value)
    return None


def _piece(text: str, name: str) -> ast.Module | None:
    """The statement of the Card alone, in its place, where a file has just one: most of a file need not be parsed."""
    begins = [m.start() for m in _BEGINS.finditer(text)]
    end = text.find("\n)", begins[0]) if len(begins) == 1 else -1
    if end < 0:
        return None
    try:
        return ast.parse("\n" * text.count("\n", 0, begins[0]) + text[begins[0] : end + 2], name)
    except (SyntaxError, ValueError):
        return None  # the whole file will tell


def _card(name: str, call: ast.expr) -> Card:
    where = f"{name}:{call.lineno}"
    function = call.func if isinstance(call, ast.Call) else None
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    if not isinstance(call, ast.Call) or called != "Card":
        raise ConfigError(where, "CARD must be a call of Card", remedy="write CARD = Card(number=..., slug=..., ...)")
    if call.args:
        raise ConfigError(f"{name}:{call.args[0].lineno}", "a Card takes keywords only")
    known = [f.name for f in fields(Card)]
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        place = f"{name}:{keyword.value.lineno}"
        if keyword.arg is None:
            raise ConfigError(place, "a Card takes literal keywords, no ** expansion")
        if keyword.arg not in known:
            close = nearest(keyword.arg, known)
            remedy = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(place, f"a Card has no {keyword.arg!r}", remedy=remedy)
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ConfigError(
                place, f"{keyword.arg} is not a literal", expected="text, numbers, tuples, lists or dicts of them"
            ) from None
    missing = [
        f.name for f in fields(Card) if f.default is MISSING and f.default_factory is MISSING and f.name not in values
    ]
    if missing:
        raise ConfigError(where, f"the Card lacks {', '.join(missing)}")
    try:
        return Card(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(where, str(error)) from None


@dataclass(frozen=True)
class Entry:
    """Where a Card was found.

    Attributes:
        card: the Card.
        file: the method file.
        module: its dotted module path.
        package: the distribution that offers it; ``limbeck`` for our own.
    """

    card: Card
    file: Path
    module: str
    package: str = "limbeck"


def methods_folder() -> Path:
    """The folder of our method files."""
    return Path(__file__).resolve().parent.parent / "methods"


def _files() -> list[Path]:
    return sorted(p for p in methods_folder().rglob("*.py") if not p.name.startswith(("_", ".")))


def _module(path: Path) -> str:
    parts = path.relative_to(methods_folder()).with_suffix("").parts
    return ".".join(("limbeck", "methods", *parts))


Broken = list[tuple[Path, str]]
"""Files whose Cards cannot be read, each with what is wrong."""


def _own(broken: Broken | None = None) -> Iterator[Entry]:
    for path in _files():
        try:
            card = _read(path)
            found = None if card is None else _entry(card, path, _module(path), "limbeck")
        except ConfigError as error:
            if broken is None:
                raise
            broken.append((path, error.line()))
            continue
        if found is not None:
            yield found


def _entry(card: Card, path: Path, module: str, package: str) -> Entry:
    if package == "limbeck" and card.slug != path.stem.replace("_", "-"):
        raise ConfigError(
            str(path), f"the Card's slug is {card.slug!r}", expected=f"the file's stem, {path.stem.replace('_', '-')!r}"
        )
    return Entry(card, path, module, package)


def _plugins(name: str | None = None, broken: Broken | None = None) -> Iterator[Entry]:
    """Cards that installed packages offer. Their parent packages are imported, their method files are not."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        try:
            found = _offered(point, name)
        except ConfigError as error:
            if broken is None or point.name == name:
                raise
            broken.append((Path(point.name), error.line()))
            continue
        if found is not None:
            yield found


def _offered(point: Any, name: str | None) -> Entry | None:
    """What one entry point offers, where that is what is looked for."""
    module = point.value.split(":")[0].strip()
    offered = f"entry point {GROUP}: {point.name}"
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:
        raise ConfigError(
            offered, f"{module} cannot be found: {error}", remedy="update or uninstall that package"
        ) from None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(offered, f"{module} is no Python file", remedy="update or uninstall that package")
    card = read_card(spec.origin)
    if name is not None and name not in card.methods and name != card.slug:
        return None
    package = point.dist.name if point.dist is not None else module.split(".")[0]
    return Entry(card, Path(spec.origin), module, package)


def _order(entry: Entry) -> tuple[bool, int, str]:
    number = entry.card.number
    return (number is None, number or 0, entry.card.slug)


def entries(plugins: bool = True, broken: Broken | None = None) -> list[Entry]:
    """Every Card with its place, by number; those without a number last.

    Args:
        plugins: those of installed packages too.
        broken: files whose Cards cannot be read are appended here, and left out; without it they are refused.

    Raises:
        ConfigError: two Cards claim the same slug or method name, or a Card can't be read.
    """
    found = sorted(_own(broken), key=_order)
    if plugins:
        found += sorted(_plugins(broken=broken), key=_order)
    slugs: dict[str, Entry] = {}
    names: dict[str, Entry] = {}
    for entry in found:
        for table, keys, what in ((slugs, [entry.card.slug], "slug"), (names, list(entry.card.methods), "method")):
            for key in keys:
                if key in table and broken is not None:
                    broken.append((entry.file, f"{entry.file}: the {what} {key!r} is taken by {table[key].file}"))
                elif key in table:
                    raise ConfigError(str(entry.file), f"the {what} {key!r} is taken by {table[key].file}")
                table.setdefault(key, entry)
    return found


def catalogue() -> list[Card]:
    """Every Card: ours by number, then those that installed packages offer. Imports no method file.

    Raises:
        ConfigError: a Card can't be read, or two claim the same name.

    Example:
        >>> all(isinstance(card, Card) for card in catalogue())
        True
    """
    return [entry.card for entry in entries()]


def method_names() -> dict[str, str]:
    """Every method's name with its Card's slug."""
    return {name: entry.card.slug for entry in entries(broken=[]) for name in entry.card.methods}


def _locate(name: str, in_methods: bool) -> Entry | None:
    """The Card that names a method (or, with ``in_methods=False``, has the slug), reading as few files as can be."""

    def holds(card: Card) -> bool:
        return name in card.methods if in_methods else card.slug == name

    files = _files()
    stem = name.replace("-", "_")
    for path in files:
        if path.stem == stem:
            card = _read(path)
            if card is not None and holds(card):
                return _entry(card, path, _module(path), "limbeck")
    if in_methods:
        # a Card may name several methods: parse only the files in which the name stands as a text
        quoted = (f'"{name}"', f"'{name}'")
        for path in files:
            text = path.read_text(encoding="utf-8", errors="replace")
            if any(q in text for q in quoted):
                try:
                    card = _read(path)
                except ConfigError:  # a half-written file is its author's alone
                    continue
                if card is not None and holds(card):
                    return _entry(card, path, _module(path), "limbeck")
    return next((entry for entry in _plugins(name, broken=[]) if holds(entry.card)), None)


def locate_method(name: str) -> Entry | None:
    """The Card that names a method, with its place; ``None`` where no Card does."""
    return _locate(name, in_methods=True) if isinstance(name, str) and _SLUG.fullmatch(name) else None


def find_method(name: str) -> tuple[str, str, Card]:
    """Where a method lives: (module path, class name, Card).

    Raises:
        ConfigError: no Card names such a method; the nearest names are listed.
    """
    entry = locate_method(name)
    if entry is None:
        raise ConfigError.unknown("method", name, method_names(), "method")
    return entry.module, entry.card.methods[name], entry.card


def find_card(name: str) -> Entry:
    """The Card of a slug or of a method's name, with its place.

    Raises:
        ConfigError: nothing is called so; the nearest names are listed.
    """
    entry = None
    if _SLUG.fullmatch(name):
        entry = _locate(name, in_methods=True) or _locate(name, in_methods=False)
    if entry is None:
        known = {n for e in entries(broken=[]) for n in (e.card.slug, *e.card.methods)}
        raise ConfigError.unknown("method", name, known, "method")
    return entry


def recipes() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted({p.stem for p in methods_folder().rglob("*.yaml") if not p.name.startswith((".", "_"))})


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe.

    Args:
        name: its file stem; or the slug of a Card, whose recipe is meant; or a method that has no recipe of its own.

    Raises:
        ConfigError: there is no such recipe; the nearest names are listed.
    """
    files = {p.stem: p for p in methods_folder().rglob("*.yaml") if not p.name.startswith((".", "_"))}
    if name in files:
        return files[name]
    if _SLUG.fullmatch(name):
        entry = _locate(name, in_methods=False)
        if entry is not None:
            beside = entry.file.parent / f"{entry.card.recipe}.yaml"
            if entry.card.recipe and beside.is_file():
                return beside
        method = _locate(name, in_methods=True)
        if method is not None:
            other = method.card.recipe
            beside = method.file.parent / f"{name}.yaml"
            if beside.is_file():
                return beside
            raise ConfigError(
                name,
                "is a method without a recipe of its own",
                remedy=f"run {other} with method={name}" if other else f"write a recipe with 'method: {name}' in it",
            )
    raise ConfigError.unknown("recipe", name, files, "recipe")


def _evidence_folder() -> Path | None:
    """``evidence/`` of the checkout this package is run from."""
    root = Path(__file__).resolve().parents[3]
    folder = root / "evidence"
    return folder if folder.is_dir() and (root / "pyproject.toml").is_file() else None


def evidence() -> dict[str, dict[str, Any]]:
    """What has been shown for each Card: ``{slug: {"status": a word, "said": in words, "clauses": {says: status},
    "comparisons": [names]}}``.

    Read from ``evidence/summary.json`` of the checkout where there is one, else from what was packaged. The status follows
    from the claim's clauses: ``confirmed``, ``contradicted``, ``partly``, ``not shown`` or ``not checked``.
    """
    folder = _evidence_folder()
    if folder is None:
        packaged = Path(__file__).resolve().parent.parent / "evidence.json"
        if not packaged.is_file():
            return {}
        found = json.loads(packaged.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    path = folder / "summary.json"
    if not path.is_file():
        return {}
    try:
        claims = json.loads(path.read_text(encoding="utf-8"))["claims"]
        return {
            slug: {
                **{k: claims[slug][k] for k in ("status", "said", "comparisons")},
                "clauses": {c["says"]: c["status"] for c in claims[slug]["clauses"]},
            }
            for slug in sorted(claims)
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            str(path),
            f"is no summary of the evidence: {error}",
            remedy="python evidence/run.py --derive writes it anew",
        ) from None


def describe_value(value: Any) -> str:
    """A value of a Card as it may stand in a table."""
    if isinstance(value, dict):
        plain = [f"{k} {describe_value(v)}" for k, v in value.items() if not isinstance(v, dict)]
        nested = [f"on {k}: {describe_value(v)}" for k, v in value.items() if isinstance(v, dict)]
        return "; ".join([", ".join(plain), *nested] if plain else nested)
    return "null" if value is None else value if isinstance(value, str) else shorten(value)
