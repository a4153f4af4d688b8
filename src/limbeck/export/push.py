"""An export sent to the Hugging Face hub, when asked, and never otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from limbeck.errors import ConfigError, StorageError, first_line, human, masked, require

NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def push(
    folder: Path,
    repo: str,
    private: bool = True,
    revision: str | None = None,
    message: str = "",
    data: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Send a folder to a repository of the hub, which is made where it does not exist.

    Who sends is huggingface_hub's to know (``hf auth login``, or ``HF_TOKEN``), and where to is ``HF_ENDPOINT``'s.

    Args:
        folder: an export with a ``README.md``.
        repo: ``NAME`` or ``OWNER/NAME``.
        private: whether a repository that is made is private.
        revision: a branch that exists, in place of the main one.
        message: of the commit.
        data: whether it is a data set.
        say: told what is sent before it is sent.

    Returns:
        The address of what was written.

    Raises:
        ConfigError: the folder or the name cannot be used.
        StorageError: the hub refuses it, or does not answer.
    """
    hub = require("huggingface_hub", "hub", "sending an export to the hub")
    errors = require("huggingface_hub.errors", "hub", "sending an export to the hub")
    if not NAME.fullmatch(repo) or "--" in repo or ".." in repo:
        raise ConfigError("REPO", given=repo, expected="OWNER/NAME, of letters, digits, '-', '_' and '.'")
    folder = Path(folder)
    try:
        if not (folder / "README.md").is_file():
            raise ConfigError(
                "RUN", f"{folder} holds no README.md", expected="an export: limbeck export RUN --format hub writes one"
            )
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    except OSError as error:
        raise ConfigError("RUN", f"{folder} cannot be read: {error.strerror or error}") from None
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    size = human(sum(p.stat().st_size for p in files), "B")
    say(f"sending {len(files)} files ({size}) to {masked(api.endpoint)}/{repo}" + (" (private)" if private else ""))
    kind = "dataset" if data else "model"
    try:
        made = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        found = api.create_commit(  # one commit: all of it, or nothing
            repo_id=made.repo_id,
            operations=[
                hub.CommitOperationAdd(path_in_repo=p.relative_to(folder).as_posix(), path_or_fileobj=str(p))
                for p in files
            ],
            repo_type=kind,
            revision=revision,
            commit_message=message or "Student distilled with limbeck",
        )
    except errors.LocalTokenNotFoundError:
        raise ConfigError(
            "REPO", "nobody is logged in to the hub", given=repo, remedy="type hf auth login, or set HF_TOKEN"
        ) from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        raise StorageError(repo, f"could not be sent: {type(error).__name__}: {masked(first_line(error))}") from None
    return str(found.commit_url)


__all__ = ["push"]
