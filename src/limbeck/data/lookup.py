"""The files that a table names: below a folder or in an archive, however the path was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from limbeck.data.listing import File, list_all
from limbeck.data.names import composed, counted, look_up, names_in
from limbeck.errors import DataError


class Lookup:
    """Paths of a table as files.

    A path that does not exist as it stands is tried with its backslashes as folders, and in the other form of Unicode.

    Args:
        root: a folder, or an uncompressed tar archive.
        argument: what an error is about.
    """

    def __init__(self, root: Path, argument: str = "task.data.root") -> None:
        self.root = root
        self.archive: dict[str, File] | None = None
        self.short: dict[str, list[File]] = {}
        self.listed: dict[Path, list[str]] = {}
        self.backslashes = 0
        self.missing: list[str] = []
        self.asked = 0
        if root.is_file():
            self.archive = {composed(f.name): f for f in list_all(root).files}
            for file in self.archive.values():  # a table often leaves the split's folder out of the name
                self.short.setdefault(composed(file.name).rsplit("/", 1)[-1], []).append(file)
        elif not root.is_dir():
            raise DataError(argument, "there is no such folder or archive", given=str(root))

    def __call__(self, path: str) -> File:
        """The file of a path; one that does not exist where there is none, so that it is told when it is read."""
        self.asked += 1
        path = path.strip()
        return self._member(path) if self.archive is not None else self._file(path)

    def _file(self, path: str) -> File:
        place = self.root / path
        if place.exists():
            return File(path, place)
        for form in dict.fromkeys((path, PureWindowsPath(path).as_posix())):
            found = look_up(self.root / form, self._names)
            if found.exists():
                self.backslashes += form != path
                return File(form, found)
        self.missing.append(path)
        return File(path, place)

    def _names(self, folder: Path) -> Sequence[str]:
        if folder not in self.listed:
            self.listed[folder] = names_in(folder)
        return self.listed[folder]

    def _member(self, path: str) -> File:
        assert self.archive is not None
        for form in dict.fromkeys((path, PureWindowsPath(path).as_posix())):
            name = composed(form).removeprefix("./")
            near = self.short.get(name.rsplit("/", 1)[-1], [])
            found = self.archive.get(name) or (near[0] if len(near) == 1 else None)
            if found is not None:
                self.backslashes += form != path
                return found
        self.missing.append(path)
        return File(f"{self.root.name}:{path}", self.root / path)

    def notes(self) -> list[str]:
        """What was done to find them.

        Raises:
            DataError: none of them is there.
        """
        if self.asked and len(self.missing) == self.asked:
            example = self.missing[0]
            said = f"none of the {counted(self.asked, 'image')} that the table names is there, such as {example}"
            if "\\" in example:
                said += " (its backslashes were tried as folders, too)"
            raise DataError(
                "task.data.root",
                f"{said}; searched in {self.root}",
                expected="the folder or archive where the table's paths start",
                remedy="set task.data.root=FOLDER",
            )
        if self.backslashes:
            return [f"{counted(self.backslashes, 'path')} with backslashes read as folders, as Windows writes them"]
        return []
