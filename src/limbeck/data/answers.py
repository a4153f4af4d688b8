"""What a teacher wrote, read as the answer that was asked for, with the reason where there is none.

Of the response-based recipe of Shirgaonkar et al. 2024 (arXiv 2410.18588) and the public distillation service that carries
it out; the strict rules where the service stops at the first bad answer are [reconstructed] in the dossier.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from limbeck.errors import ConfigError

__all__ = ["STATUS", "Answer", "Counts", "parse_answer", "parse_density", "survivors"]

STATUS: Final = ("kept", "not_finished", "unparsable", "missing_key", "empty", "over_long", "disagrees")
"""What became of an answer; the first cause that applies counts."""


@dataclass(frozen=True)
class Answer:
    """An answer that was read.

    Attributes:
        status: one of ``STATUS``.
        text: the answer where it was kept, else empty.
        version: of several versions, which one was taken (and may be too long); -1 where none was.
        fallback: a kept text is not the last version.
    """

    status: str
    text: str = ""
    version: int = -1
    fallback: bool = False


def _read(text: str, finished: bool, ends: str, kind: type, tolerant: bool) -> Answer | Any:
    if not finished:
        return Answer("not_finished")
    cut = text.strip()
    if tolerant:
        first, last = cut.find(ends[0]), cut.rfind(ends[1])
        cut = cut[first : last + 1] if 0 <= first < last else cut
    try:
        found = json.loads(cut)
    except (ValueError, RecursionError):
        return Answer("unparsable")
    return found if isinstance(found, kind) else Answer("unparsable")


def parse_answer(
    text: str, key: str, *, finished: bool = True, tolerant: bool = False, gold: str | None = None
) -> Answer:
    """The value of ``key`` in the JSON object that a teacher was asked to write.

    Strings are taken as they are, other values as their JSON text; runs of white space become one space.

    Args:
        text: what the teacher wrote.
        key: where the answer stands.
        finished: the teacher ended by itself, and was not cut off.
        tolerant: first cut the text from its first ``{`` to its last ``}``.
        gold: the true answer; one that differs from it, apart from capital letters, ``disagrees``.

    Example:
        >>> parse_answer('{"reason": "3 and 3", "answer": 6}', "answer")
        Answer(status='kept', text='6', version=-1, fallback=False)
        >>> parse_answer("The answer is 6.", "answer").status
        'unparsable'
    """
    found = _read(text, finished, "{}", dict, tolerant)
    if isinstance(found, Answer):
        return found
    value = found.get(key)
    if value is None:
        return Answer("missing_key")
    said = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).split())
    if not said:
        return Answer("empty")
    if gold is not None and said.casefold() != " ".join(gold.split()).casefold():
        return Answer("disagrees")
    return Answer("kept", said)


def parse_density(
    text: str,
    *,
    key: str = "Denser_Summary",
    finished: bool = True,
    tolerant: bool = False,
    max_words: int | None = None,
) -> Answer:
    """The last summary of a chain of density: of a JSON list of objects, the last whose ``key`` is a text that is not blank.

    Args:
        text: what the teacher wrote.
        key: where an object's summary stands.
        finished: the teacher ended by itself.
        tolerant: first cut the text from its first ``[`` to its last ``]``.
        max_words: longer summaries are ``over_long``; None sets no limit.

    Example:
        >>> parse_density('[{"Denser_Summary": "a"}, {"Denser_Summary": ""}]')
        Answer(status='kept', text='a', version=0, fallback=True)
    """
    found = _read(text, finished, "[]", list, tolerant)
    if isinstance(found, Answer):
        return found
    if not found:
        return Answer("empty")
    for place in reversed(range(len(found))):
        one = found[place]
        said = one.get(key) if isinstance(one, dict) else None
        if isinstance(said, str) and said.strip():
            said = " ".join(said.split())
            if max_words is not None and len(said.split()) > max_words:
                return Answer("over_long", version=place)
            return Answer("kept", said, place, place != len(found) - 1)
    return Answer("missing_key")


@dataclass(frozen=True)
class Counts:
    """How a set of answers came out.

    Attributes:
        by_status: how many of each status, in the order of ``STATUS``.
        kept: places of those that were kept.
        success_ratio: 1 minus the share of answers that could not be used; those that disagree with the true answer could.
        accepted: the set is good enough to train on.
    """

    by_status: tuple[int, ...]
    kept: tuple[int, ...]
    success_ratio: float
    accepted: bool


def survivors(statuses: Sequence[str], *, min_success_ratio: float = 0.7, min_records: int = 65) -> Counts:
    """Counts of answers, and whether enough of them can be used.

    Args:
        statuses: one of ``STATUS`` for each answer.
        min_success_ratio: refuse sets with a smaller share of usable answers, in [0, 1].
        min_records: refuse sets that keep fewer.

    Raises:
        ConfigError: a status is unknown, or the ratio lies outside [0, 1].

    Example:
        >>> survivors(["kept", "empty"], min_records=1)
        Counts(by_status=(1, 0, 0, 0, 1, 0, 0), kept=(0,), success_ratio=0.5, accepted=False)
    """
    if not 0 <= min_success_ratio <= 1:
        raise ConfigError("min_success_ratio", given=min_success_ratio, expected="a number between 0 and 1")
    for status in statuses:
        if status not in STATUS:
            raise ConfigError("statuses", given=status, expected=f"one of {', '.join(STATUS)}")
    counts = tuple(sum(s == name for s in statuses) for name in STATUS)
    kept = tuple(i for i, status in enumerate(statuses) if status == "kept")
    ratio = 1 - sum(counts[1:6]) / len(statuses) if statuses else 0.0
    return Counts(counts, kept, ratio, ratio >= min_success_ratio and len(kept) >= min_records)
