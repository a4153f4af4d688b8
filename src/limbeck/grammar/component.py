"""What a recipe can name: a constructor signature is the schema, its docstring is the help."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self

from limbeck.grammar.settings import Checked


class _Recorded(Checked):
    """Remembers the arguments an instance was made with, so that it can be written as a recipe node again."""

    given: tuple[tuple[Any, ...], dict[str, Any]]
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        signature = inspect.signature(cls.__init__)  # else help() would show that of __new__
        cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "given", (args, kwargs))
        return self


class Component(_Recorded):
    """Base of every exchangeable part: task, method, model, data source, query, objective.

    A subclass is found by a name in ``limbeck.recipe.names`` and built from a recipe node ``{use: name, **arguments}``.
    Its constructor takes typed keyword arguments with defaults, no ``*args`` or ``**kwargs``; checks ranges and raises
    ``ValueError`` with a sentence, which the recipe turns into an error that names the path. The ``Args:`` section of the
    class docstring is what ``--help`` prints.

    Attributes:
        kind: which table of names the class belongs to (``task``, ``method``, ``model``, ``source``, ``query``,
            ``objective``).
        paths: arguments that may name a file or folder of this machine. A relative one that exists is written into the
            resolved recipe whole, so that it means the same from wherever that is run again.
        code: the argument that names the user's own code, which is run when the component is built or used; none by
            default. A folder that somebody sent may not have it run unasked: see ``limbeck.recipe.trust``.
        address: likewise the argument that names another machine, to which data are sent. Name and password in it are
            taken out as soon as the recipe is resolved: see ``limbeck.recipe.credentials``.
        secrets: arguments that say where what is sent along is read from.
        given: the positional and named arguments of the constructor, as they came.
        config: the resolved recipe node from which the instance was built, set by the recipe; ``{}`` when built by hand.
    """

    kind: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ()
    code: ClassVar[str] = ""
    address: ClassVar[str] = ""
    secrets: ClassVar[tuple[str, ...]] = ()
    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.config = {}


class Settings(_Recorded):
    """Base of a plain group of settings in a recipe (no ``use`` key: there is only one class it can be)."""

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.config = {}
