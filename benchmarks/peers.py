"""Other people's libraries beside us: which versions, how they are installed without touching ours, how they are reached.

They go into a folder of their own (``benchmarks/.peers``) that comes last on the path, each without its dependencies: what
they need (torch, transformers, ...) is ours, and nothing of theirs can replace it. A copy that is installed in the
environment itself is taken first.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / ".peers"


class Missing(Exception):
    """A peer that is not installed, or does not import."""


@dataclass(frozen=True)
class Peer:
    """A distribution, the version compared with, and small packages it needs that we do not have."""

    distribution: str
    version: str
    needs: tuple[str, ...] = ()


PEERS: dict[str, Peer] = {
    "trl": Peer("trl", "1.16.0"),
    "liger": Peer("liger-kernel", "0.8.5"),
    "torchdistill": Peer("torchdistill", "1.1.5"),
    "textbrewer": Peer("textbrewer", "0.2.1.post1", ("tqdm",)),
    "modelopt": Peer("nvidia-modelopt", "0.47.0", ("omegaconf==2.4.0", "antlr4-python3-runtime==4.9.3", "pulp==3.3.2")),
    "torchtune": Peer("torchtune", "0.6.1"),
    "dd-ranking": Peer("ddranking", "0.2.0"),
    "mlxtend": Peer("mlxtend", "0.25.0"),
    "pandas": Peer("pandas", ""),
    "timm": Peer("timm", ""),  # ours anyway: a dependency of limbeck
}


def reach() -> None:
    """Put the peers' folder last on the path."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
        if sys.version_info < (
            3,
            12,
        ):  # setuptools, which a peer imports, would trip over distutils that is loaded already
            os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")


def brief(error: Exception) -> str:
    """An error in a few words, without anybody's paths."""
    said = re.sub(r"\S*/\S*", "...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {said[:90]}"


def load(name: str, path: str) -> Any:
    """A peer's module.

    Raises:
        Missing: it is not installed, or does not import beside our versions.
    """
    reach()
    version(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(path)
    except Exception as error:
        raise Missing(f"does not import here: {brief(error)}") from None


def load_file(name: str, path: str) -> Any:
    """One file of a peer by itself, where the package as a whole does not import.

    Raises:
        Missing: it is not installed, or the file does not import.
    """
    reach()
    version(name)
    for place in map(Path, sys.path):
        file = place / path
        if file.is_file():
            spec = importlib.util.spec_from_file_location(f"_peer_{name}", file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                raise Missing(f"does not import here: {brief(error)}") from None
            return module
    raise Missing(f"has no file {path}")


def version(name: str) -> str:
    """The installed version of a peer.

    Raises:
        Missing: it is not installed.
    """
    reach()
    try:
        return metadata.version(PEERS[name].distribution)
    except metadata.PackageNotFoundError:
        raise Missing("not installed (python -m benchmarks --peers)") from None


def versions() -> dict[str, str]:
    """The versions of the peers that are installed."""
    found = {}
    for name, peer in PEERS.items():
        try:
            found[peer.distribution] = version(name)
        except Missing:
            continue
    return found


def install(say: Callable[[str], None]) -> None:
    """Install what is missing, each by itself; what cannot be had is said, and is no failure."""
    reach()
    for name, peer in PEERS.items():
        try:
            version(name)
            continue
        except Missing:
            pass
        wanted = [f"{peer.distribution}=={peer.version}", *(n for n in peer.needs if not _known(n))]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if importlib.util.find_spec("pip") is None:
            uv = shutil.which("uv")
            if uv is None:
                say("neither pip nor uv is here: peers cannot be installed")
                return
            command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
        done = subprocess.run(
            [*command, "--no-deps", "--target", str(FOLDER), *wanted], capture_output=True, text=True, check=False
        )
        say(f"{peer.distribution} {peer.version}: {'installed' if done.returncode == 0 else 'could not be installed'}")
    importlib.invalidate_caches()
    reach()


def _known(requirement: str) -> bool:
    try:
        metadata.version(requirement.split("==")[0])
    except metadata.PackageNotFoundError:
        return False
    return True


__all__ = ["PEERS", "Missing", "brief", "install", "load", "load_file", "version", "versions"]
