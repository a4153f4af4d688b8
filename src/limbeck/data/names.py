"""Names as people write them: one form of Unicode, no blanks around, and which split a name speaks of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from limbeck.errors import DataError

SPLITS: dict[str, str] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""What folders, files and library splits are called, and which split they are."""

SHOWN = 10
"""How many names or places a message lists before it says how many more there are."""


def some(names: Sequence[str], most: int = SHOWN) -> str:
    """A list cut to a readable length.

    Example:
        >>> some(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(n: int, one: str, several: str = "") -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "picture"), counted(1200, "picture"), counted(2, "class", "classes")
        ('1 image', '1,200 images', '2 classes')
    """
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def composed(text: str) -> str:
    """A text with letters and their accents composed (Unicode's form C): a Mac and a PC write one name in two forms."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _unseen(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf")


def plain(text: str) -> str:
    """A name as it is compared: composed, without blanks and invisible characters around it."""
    text = text.strip()
    if text.isascii() and text.isprintable():
        return text
    first, last = 0, len(text)
    while first < last and _unseen(text[first]):
        first += 1
    while last > first and _unseen(text[last - 1]):
        last -= 1
    return composed(text[first:last])


def several_forms(forms: Mapping[str, Collection[str]]) -> list[str]:
    """A sentence about names that were written in several ways and are one: name -> how it was written."""
    twins = [name for name, written in forms.items() if len(set(written)) > 1]
    return [f"written in several ways (Unicode forms, blanks) and taken as one: {some(twins)}"] if twins else []


def is_blank(text: str) -> bool:
    """Whether nothing can be seen of a text: blanks, line ends, zero-width characters, byte order marks.

    Example:
        >>> is_blank(" \\n\\u200b"), is_blank("-")
        (True, False)
    """
    return all(map(_unseen, text))


def split_of(name: str) -> str:
    """The split that a name's first or last word speaks of (``train_sft``, ``my-test``, ``val2017``).

    Empty where neither does, or each of another.

    Example:
        >>> split_of("val2017"), split_of("train_test"), split_of("contest")
        ('valid', '', '')
    """
    words = re.findall(r"[^\W\d_]+", composed(name).lower())
    found = {SPLITS[word] for word in (*words[:1], *words[-1:]) if word in SPLITS}
    return found.pop() if len(found) == 1 else ""


def choose_splits(sizes: Mapping[str, int], asked: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Which splits of a library's data set are train, valid and test: those that are asked for, or whose names say so.

    Args:
        sizes: name -> number of rows.
        asked: split -> name, or ``None``.

    Returns:
        Name -> split, and what was joined or left out.

    Raises:
        DataError: a name that is not there, or no training split.

    Example:
        >>> choose_splits({"train_sft": 6, "train_gen": 5, "extra": 3}, {})
        ({'train_sft': 'train', 'train_gen': 'train'}, ['train is train_sft (6) and train_gen (5)', 'not read: split extra (3)'])
    """
    for split, name in asked.items():
        if name is not None and name not in sizes:
            raise DataError.unknown(f"task.data.{split}", name, sizes, "split")
    exact = {n: SPLITS[n.lower()] for n in sizes if n.lower() in SPLITS}
    found = exact if "train" in exact.values() else {n: s for n in sizes if (s := split_of(n))}
    if any(asked.values()):
        found = {n: s for n, s in found.items() if asked.get(s) is None and n not in asked.values()}
        found |= {n: s for s, n in asked.items() if n is not None}
    if "train" not in found.values():
        raise DataError(
            "task.data.train",
            "none of the data set's splits is called train",
            given=list(sizes),
            remedy="name it: task.data.train=SPLIT, and others with task.data.valid= and task.data.test=",
        )
    groups: dict[str, list[str]] = {}
    for name, split in found.items():
        groups.setdefault(split, []).append(f"{name} ({sizes[name]:,})")
    notes = [f"{split} is {' and '.join(names)}" for split, names in groups.items() if len(names) > 1]
    left = [f"{n} ({sizes[n]:,})" for n in sizes if n not in found]
    if left:
        notes.append(f"not read: split{'s' if len(left) > 1 else ''} {some(left)}")
    return found, notes


def same_letters(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that is written with the same letters, in whichever form of Unicode."""
    wanted = composed(name)
    return next((k for k in known if composed(k) == wanted), None)


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none where it cannot be listed."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def look_up(path: Path, names_in: Callable[[Path], Iterable[str]] = names_in) -> Path:
    """A path whose parts exist in another form of Unicode, as they are on disk; the path itself where they do not.

    Args:
        path: what was typed or stands in a table.
        names_in: the names in a folder.
    """
    if str(path).isascii():
        return path
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        step = found / part
        if not part.isascii() and not step.exists():
            near = same_letters(part, names_in(found))
            step = found / near if near is not None else step
        found = step
    return found
