"""``import:package.module:function``: the one door through which a recipe reaches the user's own code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from limbeck.errors import ConfigError, nearest


def imported(path: str, argument: str = "import") -> Any:
    """The object that ``package.module:name`` names. The current folder is on the search path, as for ``python -m``.

    Raises:
        ConfigError: the text is malformed, the module is not found, or has no such name.
    """
    module_name, _, name = path.partition(":")
    if (
        not module_name
        or not name
        or not all(part.isidentifier() for part in (*module_name.split("."), *name.split(".")))
    ):
        raise ConfigError(argument, given=path, expected="package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            argument, f"no module {error.name!r} is found", given=path, remedy="run from its folder, or install it"
        ) from None
    except Exception as error:
        raise ConfigError(
            argument, f"importing {module_name!r} failed: {type(error).__name__}: {error}", given=path
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            close = nearest(part, [n for n in dir(found) if not n.startswith("_")])
            raise ConfigError(
                argument,
                f"{module_name!r} has no {part!r}",
                remedy=f"did you mean {', '.join(map(repr, close))}?" if close else "",
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(argument, f"{path!r} is not callable", given=type(found).__name__)
    return found
