"""What lies below a folder or in an archive, and what is passed over there."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from limbeck.data.names import counted, some
from limbeck.errors import DataError
from limbeck.storage.plain import NotPlain, check_plain, opened, read_bytes

_NOT_DATA = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "#snapshot",
        "@Recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    }
)  # what archivers, file servers and systems leave beside images


LARGEST = 1 << 30
"""Bytes of one file that is read at once."""


@dataclass(frozen=True)
class File:
    """A file, or a member of an uncompressed tar archive.

    Attributes:
        name: as it is shown: the path below what was asked for.
        path: the file, or the archive.
        start, size: where in the archive; ``start`` is -1 for a file.
    """

    name: str
    path: Path
    start: int = -1
    size: int = 0

    def read(self) -> bytes:
        """All bytes."""
        if self.start < 0:
            return read_bytes(self.path, LARGEST)
        if self.size > LARGEST:
            raise OSError(errno.EFBIG, f"has {self.size:,} bytes, more than the {LARGEST:,} it may have")
        with opened(self.path) as file:
            file.seek(self.start)
            return file.read(self.size)


Wanted = Callable[[str], bool]
"""By its name, whether a file is what is looked for."""


@dataclass
class Listing:
    """What lies below a folder or in an archive.

    Attributes:
        wanted: by its name, whether a file is what is looked for.
        what: what that is called.
        files: all files, sorted by name.
        folders: the folders that were entered, those without files among them.
        passed: what was passed over because it is hidden or a system's own -> how many wanted files lie in it.
        circles: symbolic links that lead back to a folder they lie in.
    """

    wanted: Wanted
    what: str = "file"
    files: list[File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    circles: list[str] = field(default_factory=list)

    @property
    def found(self) -> list[File]:
        """The wanted files."""
        return [f for f in self.files if self.wanted(f.name)]

    def notes(self) -> list[str]:
        """What was passed over, in one sentence; nothing where nothing was."""
        hidden = [name + (f" ({counted(n, self.what)})" if n else "") for name, n in self.passed.items()]
        others = [f.name for f in self.files if not self.wanted(f.name)]
        said = [
            (hidden, "hidden or a system's own"),
            (others, f"no {self.what}s by their ending"),
            (self.circles, "links to a folder they lie in"),
        ]
        parts = [f"{why}: {some(names, 5)}" for names, why in said if names]
        return [f"not read: {'; '.join(parts)}"] if parts else []


def everything(name: str) -> bool:
    """Every file is wanted."""
    return True


def list_all(root: Path, wanted: Wanted = everything, what: str = "file") -> Listing:
    """What lies below a folder or in an uncompressed tar archive. Hidden files and folders are passed over, symbolic links
    followed, but never in a circle.

    Args:
        root: the folder or archive.
        wanted: by its name, whether a file is what is looked for.
        what: what that is called.

    Raises:
        DataError: nothing is there, or a folder cannot be listed.
    """
    found = Listing(wanted, what)
    if root.is_dir():
        _walk(root, "", frozenset(), found)
        return found
    if not root.exists():
        raise DataError(str(root), "there is no such file or folder", remedy="check the path")
    try:
        check_plain(root)
        with tarfile.open(root, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                parts = name.split("/")
                hidden = next((i for i, part in enumerate(parts) if _is_passed(part)), None)
                if hidden is not None and name != ".":
                    top = "/".join(parts[: hidden + 1])
                    found.passed[top] = found.passed.get(top, 0) + (member.isreg() and wanted(name))
                elif member.isdir() and name != ".":
                    found.folders.append(name)
                elif member.isreg():
                    found.files.append(File(name, root, member.offset_data, member.size))
    except NotPlain as error:
        raise DataError(str(root), error.strerror or "", expected="a folder or a tar archive") from None
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            str(root),
            f"is neither a folder nor an uncompressed tar archive ({error})",
            remedy="unpack it into a folder",
        ) from None
    found.files.sort(key=lambda f: f.name)
    return found


def _is_passed(name: str) -> bool:
    return name.startswith(".") or name in _NOT_DATA


def _walk(folder: Path, below: str, above: frozenset[tuple[int, int]], found: Listing) -> None:
    try:
        here = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise DataError(str(folder), f"the folder cannot be listed: {error.strerror or error}") from None
    above = above | {(here.st_dev, here.st_ino)}
    for entry in entries:
        if _is_passed(entry.name):
            found.passed[f"{below}{entry.name}"] = _count(entry, found.wanted)
            continue
        try:
            is_folder = entry.is_dir()
            if is_folder and entry.is_symlink():
                target = entry.stat()
                if (target.st_dev, target.st_ino) in above:
                    found.circles.append(f"{below}{entry.name}")
                    continue
        except OSError:
            found.circles.append(f"{below}{entry.name}")
            continue  # a link that leads to itself
        if is_folder:
            found.folders.append(f"{below}{entry.name}")
            _walk(Path(entry.path), f"{below}{entry.name}/", above, found)
        else:
            found.files.append(File(f"{below}{entry.name}", Path(entry.path)))


def _count(entry: os.DirEntry[str], wanted: Wanted, most: int = 10_000) -> int:
    """How many wanted files lie in what is passed over; no more than ``most`` files are looked at."""
    if not entry.is_dir(follow_symlinks=False):
        return int(wanted(entry.name))
    looked = count = 0
    for _, _, names in os.walk(entry.path):
        count += sum(map(wanted, names[: most - looked]))
        looked += len(names)
        if looked >= most:
            break
    return count
