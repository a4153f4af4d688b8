"""What the commands share: a parser that answers in one line, overrides among options, tables, JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from limbeck.engine.terminal import careful
from limbeck.errors import ConfigError, nearest, shorten, visible
from limbeck.recipe.scalars import TOKEN, encodable, scalar
from limbeck.storage.disk import expanded

TRUST = "allow a run folder to run its own code and to contact the servers it names; remembered"
"""What ``--trust`` does, in the help of every command that opens folders."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors, and which takes ``key=value`` words anywhere.

    Args:
        command: the command's name.
        text: what it does.
        overrides: whether it takes ``key=value`` words.
        own_help: the command prints its help itself; ``--help`` is then an ordinary flag.
    """

    def __init__(self, command: str, text: str, overrides: bool = False, own_help: bool = False) -> None:
        super().__init__(
            prog=f"limbeck {command}",
            description=text,
            allow_abbrev=False,
            add_help=not own_help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.overrides = overrides
        if own_help:
            self.add_argument(
                "-h", "--help", action="store_true", help="explain this command, or every key of the recipe"
            )

    def error(self, message: str) -> NoReturn:
        """A ConfigError in place of usage and exit."""
        match = re.match(r"argument ([^:]+): (.*)", message, re.DOTALL)
        if match:
            name = match[1].split("/")[-1].split(",")[-1].strip()
            raise ConfigError(name, match[2], remedy=f"see {self.prog} --help")
        match = re.match(r"the following arguments are required: (.*)", message)
        if match:
            raise ConfigError(match[1], "is missing", expected=self._usage_line())
        raise ConfigError(self.prog, message, remedy=f"see {self.prog} --help")

    def _usage_line(self) -> str:
        return " ".join(self.format_usage().replace("usage: ", "").split())

    def read(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The parsed options and positional words, and the overrides in their order.

        Raises:
            ConfigError: an unknown option (the nearest is named), a missing or wrong value, a word too many.
        """
        for word in words:
            if not encodable(word) or "\0" in word:
                raise ConfigError("command line", given=word, expected="UTF-8 text")
        rest, tokens = self._split(words) if self.overrides else (list(words), [])
        args, extra = self.parse_known_intermixed_args(rest)
        for word in extra:
            if word.startswith("-") and word != "-":
                self._unknown_option(word)
        if extra:
            expected = "key=value" if self.overrides else self._usage_line()
            raise ConfigError(_bare(extra[0]), "is one word too many", expected=expected)
        return args, tokens

    def _split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        rest: list[str] = []
        tokens: list[str] = []
        takes_value = False
        for i, word in enumerate(words):
            if word == "--":
                for later in words[i + 1 :]:
                    (tokens if TOKEN.match(later) else rest).append(later)
                break
            if takes_value:
                rest.append(word)
                takes_value = False
            elif TOKEN.match(word):
                tokens.append(word)
            else:
                rest.append(word)
                action = self._option_string_actions.get(word)
                takes_value = action is not None and action.nargs is None
        return rest, tokens

    def _unknown_option(self, word: str) -> NoReturn:
        name, _, value = word.partition("=")
        known = [o for o in self._option_string_actions if o.startswith("--")]
        close = nearest(name, known, 1)
        remedy = f"did you mean {close[0]}? " if close else ""
        if self.overrides and re.fullmatch(r"--?[A-Za-z_][\w.-]*", name, re.ASCII):
            remedy += f"settings of a recipe have no dashes: {name.lstrip('-')}={value or 'VALUE'}; "
        raise ConfigError(_bare(name), "is no option of this command", remedy=f"{remedy}known: {', '.join(known)}")


def _bare(word: str) -> str:
    """A word as an error's argument: itself, or shortened where it is long or can't be printed."""
    return word if word and len(word) <= 80 and word.isprintable() else shorten(word)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The options that lay settings of the recipe's own over it."""
    parser.add_argument("--preset", metavar="NAME", default="", help="use a named group of settings of the recipe")
    parser.add_argument("--tiny", action="store_true", help="shrink the recipe so that it takes seconds, to try it")


def whole(low: int, name: str) -> Callable[[str], int]:
    """An option's type: a whole number not below ``low``."""

    def read(text: str) -> int:
        value = scalar(text)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
            raise ConfigError(name, given=text, expected=f"a whole number, {low} or more")
        return value

    return read


def one_of(choices: Sequence[str], name: str, what: str) -> Callable[[str], str]:
    """An option's type: one of some names; the nearest is suggested."""

    def read(text: str) -> str:
        if text not in choices:
            raise ConfigError.unknown(name, text, choices, what)
        return text

    return read


def folder_or_file(name: str) -> Callable[[str], Path]:
    """An option's type: a path, which need not exist."""

    def read(text: str) -> Path:
        if not text.strip():
            raise ConfigError(name, given=text, expected="a folder or file")
        try:
            return Path(text) if os.path.lexists(text) else Path(text).expanduser()
        except RuntimeError as error:
            raise ConfigError(name, str(error), given=text) from None

    return read


def checkpoint_of(text: object) -> Any:
    """A checkpoint as it is typed: ``best``, ``last``, a number, or a folder; ``None`` where none is."""
    said = str(text) if text is not None else None
    return said if said in ("best", "last") else int(said) if said and said.isdigit() else text


def between(progress: Any, say: Callable[[str], None]) -> Callable[[str], None]:
    """``say`` between the lines of a progress display, whose present line is ended first."""

    def told(text: str) -> None:
        progress.close()
        say(text)

    return told


def run_folder(text: str, comparisons: bool = False) -> Path:
    """A finished or unfinished run's folder; a comparison's too where that is meant.

    Raises:
        ConfigError: it is none; the nearest names beside it are listed.
    """
    marks = ("config.yaml", "comparison.json") if comparisons else ("config.yaml",)
    try:
        return _run_folder(text, marks)
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be read, a home that is unknown
        raise ConfigError("RUN", f"{shorten(text)} cannot be read: {error}", expected="a run folder") from None


def _run_folder(text: str, marks: Sequence[str]) -> Path:
    path = expanded(text)
    if path.is_file() and path.name in (*marks, "result.json"):
        path = path.parent
    if not path.is_dir():
        beside: list[str] = []
        if path.parent.is_dir():
            beside = [p.name for p in path.parent.iterdir() if any((p / m).is_file() for m in marks)]
        close = nearest(path.name, beside)
        remedy = (
            f"did you mean {' or '.join(repr(str(path.parent / c)) for c in close)}?"
            if close
            else "limbeck run makes one"
        )
        raise ConfigError("RUN", f"there is no folder {shorten(text)}", remedy=remedy)
    if not any((path / m).is_file() for m in marks):
        raise ConfigError("RUN", f"the folder {shorten(text)} holds no {' or '.join(marks)}", expected="a run folder")
    return path


def console() -> Any:
    """Rich's console on standard output; wide where it is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else max(120, int(os.environ.get("COLUMNS", "0") or 0))
    return careful(Console(width=width, highlight=False, soft_wrap=False))


def table(rows: Iterable[Sequence[Any]], columns: Sequence[str], title: str = "", right: Sequence[str] = ()) -> None:
    """Print a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell if isinstance(cell, str) else figure(cell)) for cell in row))
    console().print(made)


def figure(value: Any) -> str:
    """A value as it stands in a table: numbers to four figures, nothing as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(figure, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {figure(v)}" for k, v in value.items())
    return str(value)


def print_outcome(data: Mapping[str, Any], title: str, told: Collection[str] = ()) -> None:
    """Print the table of a run or a comparison, what it amounts to, and what its intervals cover.

    Args:
        data: a result or a comparison.
        title: of the table.
        told: notes that were said before.
    """
    from limbeck.engine.logs import read_log
    from limbeck.report.advice import advice
    from limbeck.report.headline import footnotes, headline
    from limbeck.report.summary import summarise
    from limbeck.report.table import comparison_table

    summary = summarise(data)
    out = console()
    out.print(comparison_table(summary, title, out.width))
    for line in (*headline(summary), *footnotes(summary), *(n for n in summary.notes if n not in told)):
        out.print(line, markup=False, emoji=False)
    if "metrics" in data:  # a run
        log = read_log(Path(str(data["folder"]))) if data.get("folder") else []
        for line in advice(data, log):
            out.print(f"Next: {line}", markup=False, emoji=False)


def print_tables(data: Mapping[str, Any], most: int = 24) -> None:
    """Print the small tables that a method adds to its result (survivors of filters, texts), so many rows of each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from limbeck.report.page import tables_of

    for table in tables_of(data, most):
        shown = Table(title=Text(table["title"]), title_justify="left", box=box.SIMPLE_HEAD)
        for name in table["head"]:
            shown.add_column(Text(name))
        for row in table["rows"]:
            shown.add_row(*(Text(visible(cell)) for cell in row))
        console().print(shown)


def print_json(value: Any) -> None:
    """Print a value as JSON that every reader takes: no NaN, no infinity."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = encoding.lower().replace("-", "") != "utf8"  # an escape of JSON's own, not of the terminal's
    text = json.dumps(_finite(value), indent=2, ensure_ascii=escaped, default=str)
    print(re.sub("[^\n\x20-\x7e]", _as_json, text))


def _as_json(found: re.Match[str]) -> str:
    """A character that a terminal would obey, as JSON escapes it; others as they are."""
    return found[0] if visible(found[0]) == found[0] else json.dumps(found[0])[1:-1]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def terminal_width() -> int:
    """Columns of the terminal, 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def wrap(text: str, width: int, indent: str) -> str:
    """A paragraph in lines of a width."""
    import textwrap

    return textwrap.fill(text, max(40, width), initial_indent=indent, subsequent_indent=indent)
