"""What a folder that somebody sent may have done: nothing that runs code or sends data, unless it is known here.

A run's folder is data: weights, JSON, a configuration. The configuration may name code of the user's own (``import:``)
or another machine (``remote:``). Where the same code, unchanged, was run from this workspace before, that is one's own
run and nothing is asked; otherwise the folder is refused until the user says ``--trust``, which is remembered too. What
is asked about is what the configuration resolves to, class by class, however it is spelled.

A name that the user types (an override, an argument in Python, a recipe of their own) is theirs, and is never asked about.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import StorageError, Untrusted, shorten
from limbeck.grammar.component import Component
from limbeck.recipe.overrides import split_override
from limbeck.recipe.resolving import Checker
from limbeck.storage.disk import atomic_write, workspace
from limbeck.storage.usercode import UserCode, user_code

_TRUSTING: ContextVar[bool] = ContextVar("limbeck_trusting", default=False)


@contextlib.contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Inside, the folders of runs may run the code they name and send data where they say; what ``--trust`` does.

    What was trusted once is remembered, with a fingerprint of its code, and needs no trust again until that changes.

    Args:
        trust: off, nothing is trusted that was not before.

    Example:
        >>> import limbeck
        >>> with limbeck.trusting():
        ...     pass  # limbeck.distill(teacher="run:sent-by-a-colleague", ...)
    """
    token = _TRUSTING.set(_TRUSTING.get() or trust)
    try:
        yield
    finally:
        _TRUSTING.reset(token)


def is_trusting() -> bool:
    """Whether folders are trusted at this moment."""
    return _TRUSTING.get()


@dataclass(frozen=True)
class Act:
    """What opening a component does beyond computing with what lies in the folder.

    Attributes:
        path: where the component stands in the recipe.
        kind: of the component: the same function may be called with other arguments as another kind.
        name: the function, or the address.
        options: what the function is called with, or where the secrets come from that an address gets.
        code: the user's code that is run; ``None`` for an address.
    """

    path: str
    kind: str
    name: str
    options: Mapping[str, Any]
    code: UserCode | None

    @property
    def known(self) -> bool:
        """Whether this workspace has done the same before, with the same code."""
        return self._place().is_file()

    @property
    def known_otherwise(self) -> bool:
        """Whether this workspace has done it with code that has changed since."""
        return any(self._folder().glob(f"{self._key()}-*.json"))

    def remember(self) -> None:
        """Note that the user has had it done. Names and fingerprints are kept, no options: they may hold secrets."""
        if self.code is not None and not self.code.found:
            return
        about = {
            "name": self.name,
            "files": [str(f) for f in self.code.files] if self.code else [],
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(StorageError, OSError):  # then it is asked about once more: no reason to fail a run
            self._folder().mkdir(parents=True, exist_ok=True)
            if not self.known:
                atomic_write(self._place(), json.dumps(about, indent=1))

    def said(self) -> str:
        """The act in words."""
        if self.code is None:
            with_it = "".join(f", with the secret that {k} reads from {shorten(v)}" for k, v in self.options.items())
            return f"{self.path} sends data to {self.name}{with_it}"
        arguments = ", ".join(f"{k}={shorten(v)}" for k, v in self.options.items())
        words = f"{self.path} imports {self.name.partition(':')[0]} and calls {self.name}({arguments})"
        if not self.code.found:
            return f"{words}, which is not found from here (run limbeck from the folder of that code)"
        return f"{words}, whose code has changed since it was run here" if self.known_otherwise else words

    def _key(self) -> str:
        what = json.dumps([self.kind, self.name, _sorted(self.options)], default=repr)
        return hashlib.sha256(what.encode()).hexdigest()[:32]

    def _folder(self) -> Path:
        return workspace() / "trusted"

    def _place(self) -> Path:
        code = self.code.fingerprint[:32] if self.code is not None else "address"
        return self._folder() / f"{self._key()}-{code}.json"


def acts_of(met: Iterable[tuple[str, type[Component], Mapping[str, Any]]]) -> list[Act]:
    """What resolved components would do: (path, class, node) of each, as `Checker.met` holds them."""
    found = []
    for path, cls, node in met:
        if cls.code:
            name = str(node.get(cls.code))
            options = node.get("options")
            found.append(Act(path, cls.kind, name, dict(options or {}), user_code(name)))
        elif cls.address:
            secrets = {name: node[name] for name in cls.secrets if node.get(name)}
            found.append(Act(path, cls.kind, str(node.get(cls.address)), secrets, None))
    return list({(a.path, a.name): a for a in found}.values())


def met_in(tree: Mapping[str, Any]) -> list[tuple[str, type[Component], dict[str, Any]]]:
    """Every component that a recipe's tree names, resolved without running any constructor."""
    from limbeck.recipe.recipe import Recipe

    checker = Checker(build=False)
    checker.recipe(Recipe, tree)
    return checker.met


def remember(tree: Mapping[str, Any]) -> None:
    """Note what the user's own run does, so that its folder is opened again without asking."""
    for act in acts_of(met_in(tree)):
        act.remember()


def admit_tree(tree: Mapping[str, Any], file: Path, typed: Iterable[str]) -> None:
    """Refuse a run's configuration that would do what the user neither typed, nor trusts, nor has had done before.

    Args:
        tree: the configuration, with the user's overrides in it.
        file: where it lies.
        typed: the overrides: what they name is the user's own.

    Raises:
        Untrusted: naming every such thing.
    """
    own = {text for token in typed for text in _texts(split_override(token)[2])}
    own |= {text.partition(":")[2] for text in own}
    admit([act for act in acts_of(met_in(tree)) if act.name not in own], str(file))


def admit(acts: Iterable[Act], place: str) -> None:
    """Refuse what is not known here, unless the user trusts the folder; then it is known from now on.

    Raises:
        Untrusted: naming every such thing.
    """
    strange = [act for act in acts if not act.known]
    if strange and not is_trusting():
        raise Untrusted(place, "; ".join(act.said() for act in strange))
    for act in strange:
        act.remember()


def _sorted(value: Any) -> Any:
    """A plain value in which the order of keys, and whether they are numbers or text, plays no part."""
    if isinstance(value, Mapping):
        return [[k, _sorted(v)] for k, v in sorted(((str(k), v) for k, v in value.items()), key=lambda pair: pair[0])]
    return [_sorted(v) for v in value] if isinstance(value, (list, tuple)) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
