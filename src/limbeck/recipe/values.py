"""Plain values and their YAML: read safely, written so that they read back the same. Imports no torch.

Only mappings, lists and scalars exist here. Scalars follow the core schema of YAML 1.2: ``true`` and ``false`` are
truth values, ``1e-3`` is a number, ``no``, ``1:30`` and ``2024-01-01`` are text. Tags, anchors, aliases, duplicate
keys, several documents and nesting beyond 32 levels are refused with line and column.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from limbeck.errors import ConfigError, shorten
from limbeck.recipe.scalars import encodable, scalar
from limbeck.storage.plain import read_bytes

DEPTH: Final = 32
"""How deep a recipe may nest."""

LIMIT: Final = 1 << 20
"""How many characters a recipe may have."""

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _refuse(source: str, mark: Any, problem: str, remedy: str = "") -> ConfigError:
    place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark is not None else source
    return ConfigError(place, problem, remedy=remedy)


def read_yaml(text: str, source: str) -> Any:
    """The plain value that a YAML text holds.

    Args:
        text: the YAML.
        source: what it is called in errors (a file, an override's key).

    Raises:
        ConfigError: not YAML, or one of the things that are refused; with line and column.
    """
    if len(text) > LIMIT:
        raise ConfigError(source, f"is {len(text)} characters long", expected=f"at most {LIMIT}")
    if not encodable(text):
        raise ConfigError(source, "holds bytes that are no UTF-8 text")
    try:
        return _assemble(text, source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        raise _refuse(source, mark, f"not valid YAML: {problem}", "check quotes, brackets and indentation") from None


def _assemble(text: str, source: str) -> Any:
    # from events, not by recursion: nothing in a recipe can exhaust the stack
    stack: list[tuple[Any, list[str]]] = []  # (container, the key that waits for its value)
    result: Any = None
    documents = 0
    for event in yaml.parse(text, Loader=_Parser):
        mark = event.start_mark
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _refuse(source, mark, "holds several documents", "keep one, without a second '---'")
            continue
        if isinstance(event, yaml.AliasEvent):
            raise _refuse(source, mark, f"aliases are not read (*{event.anchor})", "write the value out")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            if event.anchor is not None:
                raise _refuse(source, mark, f"anchors are not read (&{event.anchor})", "write the value out")
            if event.tag is not None:
                raise _refuse(source, mark, f"tags are not read ({shorten(event.tag)})", "write a plain value")
        done: Any
        if isinstance(event, yaml.ScalarEvent):
            if stack and isinstance(stack[-1][0], dict) and not stack[-1][1]:
                if event.value in stack[-1][0]:
                    raise _refuse(source, mark, f"the key {shorten(event.value)} is given twice", "keep one of them")
                stack[-1][1].append(event.value)
                continue
            done = scalar(event.value) if event.implicit[0] else event.value
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(stack) >= DEPTH:
                raise _refuse(source, mark, f"nests more than {DEPTH} levels")
            if stack and isinstance(stack[-1][0], dict) and not stack[-1][1]:
                raise _refuse(source, mark, "a key must be text")
            stack.append(({} if isinstance(event, yaml.MappingStartEvent) else [], []))
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            done = stack.pop()[0]
        else:
            continue
        if not stack:
            result = done
        elif isinstance(stack[-1][0], dict):
            stack[-1][0][stack[-1][1].pop()] = done
        else:
            stack[-1][0].append(done)
    return result


def read_yaml_file(path: Path) -> Any:
    """The plain value in a YAML file.

    Raises:
        ConfigError: the file can't be read, is no UTF-8 text, or see `read_yaml`.
    """
    try:
        raw = read_bytes(path, 4 * LIMIT)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror or error}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text (byte {error.start})", remedy="save it as UTF-8") from None
    return read_yaml(text, str(path))


def read_value(text: str, source: str) -> Any:
    """The value of an override ``key=value``: a bare word, or YAML in brackets, braces or quotes.

    A word that merely begins with brackets or quotes (``[best].pt``) is itself.

    Raises:
        ConfigError: brackets, braces or quotes that do not close.

    Example:
        >>> read_value("folder:/data/my birds", "task.data"), read_value("[1, 2]", "sizes"), read_value("[best].pt", "file")
        ('folder:/data/my birds', [1, 2], '[best].pt')
    """
    text = text.strip()
    return read_yaml(text, source) if text[:1] in _CLOSES and _encloses(text) else scalar(text)


_CLOSES: Final = {"[": "]", "{": "}", '"': '"', "'": "'"}


def _encloses(text: str) -> bool:
    """Whether what a text begins with closes at its end, or never: then it is a mistake that YAML can tell."""
    begins, closes = text[0], _CLOSES[text[0]]
    if begins == closes:
        return text[-1] == closes or closes not in text[1:]
    depth = 0
    for i, sign in enumerate(text):
        depth += (sign == begins) - (sign == closes)
        if not depth:
            return i == len(text) - 1
    return True


class _Dumper(_SafeDumper):  # type: ignore[misc]
    """Writes what `read_yaml` reads back the same, and what YAML 1.1 readers read the same too."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: Any, value: str) -> Any:
    # quoted wherever our reader would take it for something else; the library sees to readers of YAML 1.1
    style = '"' if not isinstance(scalar(value), str) or not value.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _write_text)


def write_yaml(value: Any) -> str:
    """A plain value as YAML, keys in their order, that `read_yaml` turns back into the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16)
