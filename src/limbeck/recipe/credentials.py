"""Secrets that go with an address: kept in this process's memory and nowhere else.

``https://name:password@host`` is parted as soon as a recipe is resolved: every later reader, and all that is written,
sees ``https://***@host``; whoever asks the address finds the rest here. Tokens are read from an environment variable or
a file when they are needed, and never stand in a recipe.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from limbeck.errors import MASK, ConfigError
from limbeck.storage.disk import expanded
from limbeck.storage.plain import read_text

_KNOWN: dict[str, tuple[str, str]] = {}
_USERINFO = re.compile(r"^([A-Za-z][\w+.-]*://)([^/?#]*)@", re.ASCII)
_LONGEST = 1 << 16  # bytes of a file that holds a token


def part(address: str) -> str:
    """An address without its credentials; these can be had by `credentials` of what is returned.

    Example:
        >>> part("https://me:secret@host:80/teacher")
        'https://***@host:80/teacher'
        >>> credentials("https://***@host:80/teacher")
        ('me', 'secret')
    """
    match = _USERINFO.match(address)
    if match is None or match[2] == MASK:
        return address
    rest = f"{match[1]}{MASK}@{address[match.end() :]}"
    name, _, word = match[2].partition(":")
    _KNOWN[rest] = (unquote(name), unquote(word))
    return rest


def credentials(address: str) -> tuple[str, str] | None:
    """Name and password of an address that `part` returned; ``None`` where it has none.

    Raises:
        ConfigError: it had some, and they are not known here: an address that was read back from a file.
    """
    match = _USERINFO.match(address)
    if match is None:
        return None
    if address not in _KNOWN:
        raise ConfigError(
            "url",
            "its name and password are written down nowhere",
            given=address,
            remedy="give the whole address again, or put a token into an environment variable and name it by token_env",
        )
    return _KNOWN[address]


def bare(address: str) -> str:
    """An address as it is asked: without any credentials, parted or not."""
    match = _USERINFO.match(address)
    return address if match is None else f"{match[1]}{address[match.end() :]}"


def token(variable: str | None, file: str | None) -> str | None:
    """The token that an environment variable or a file holds; ``None`` where neither is named.

    Raises:
        ConfigError: it is not there, empty, or no token. The text says nothing of what is there instead.
    """
    if variable is not None:
        found = os.environ.get(variable)
        if found is None:
            raise ConfigError(
                "token_env", "there is no such environment variable", given=variable, remedy=f"export {variable}=..."
            )
        where, name = "token_env", f"the environment variable {variable}"
    elif file is not None:
        try:
            found = read_text(expanded(file), "latin-1", _LONGEST)
        except OSError as error:
            raise ConfigError("token_file", f"{file} cannot be read: {error.strerror}") from None
        where, name = "token_file", file
    else:
        return None
    found = found.strip()
    if not found or not re.fullmatch(r"[\x21-\x7e]+", found):
        what = "is empty" if not found else "holds more than one word of printable ASCII characters"
        raise ConfigError(where, f"{name} {what}", expected="a token")
    return found
