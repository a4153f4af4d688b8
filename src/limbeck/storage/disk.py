"""Writing to disk so that nothing is ever half written: files, folders with a manifest, locks.

Everything is written beside its place, synced, moved into place in one step, and checked by hash when it is read. A
process may be killed between any two system calls: what was complete before stays complete. This module imports no
torch; trees of tensors and checkpoints are in `limbeck.storage.store`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from limbeck.errors import CheckpointCorrupt, StorageError

if sys.platform != "win32":
    import fcntl

MANIFEST = "manifest.json"
_FORMAT = "limbeck-folder"
_VERSION = 1
_CHUNK = 8 << 20  # bytes hashed and written at a time
_MANIFEST_LIMIT = 256 << 20
_OTHER_HOST_DAYS = 7  # leftovers of another machine are removed after this many days: its processes can't be asked

StrPath = str | os.PathLike[str]


def expanded(path: StrPath) -> Path:
    """A path as it was typed, if something lies there; otherwise with a leading ``~`` or ``~user`` as that one's home.

    Example:
        >>> expanded("~nobody-by-this-name/x").as_posix()
        '~nobody-by-this-name/x'
    """
    typed = Path(path)
    if not str(typed).startswith("~") or os.path.lexists(typed):
        return typed
    try:
        return typed.expanduser()
    except RuntimeError:  # there is no such user
        return typed


def workspace() -> Path:
    """Where remembered stages lie: ``$LIMBECK_WORKSPACE``, or ``limbeck`` in the user's cache folder."""
    root = os.environ.get("LIMBECK_WORKSPACE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


# --------------------------------------------------------------------------------------------------- errors of the disk
_REMEDIES: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space is left", "free some space or choose another folder with --out DIR"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another folder with --out DIR"),
    errno.EROFS: ("the file system is read-only", "choose another folder with --out DIR"),
    errno.EACCES: ("permission denied", "make the folder writable or choose another one with --out DIR"),
    errno.EPERM: ("operation not permitted", "make the folder writable or choose another one with --out DIR"),
    errno.EIO: (
        "the disk reports an input/output error",
        "check the disk, then choose a folder on a sound one with --out DIR",
    ),
    errno.ENOTDIR: ("a part of the path is a file", "choose another folder with --out DIR"),
    errno.EISDIR: ("a folder is in the way", "choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
    errno.EMFILE: ("too many files are open", "raise the limit with ulimit -n"),
    errno.EFBIG: ("the file is too large for this file system", "choose a folder on another one with --out DIR"),
}


def storage_error(path: StrPath, error: OSError, doing: str = "written") -> StorageError:
    """The `StorageError` that stands for an operating system's error, with what to do about it."""
    why, remedy = _REMEDIES.get(error.errno or 0, (error.strerror or str(error), "check the folder and the disk"))
    kept = "; what was saved earlier is untouched" if doing == "written" else ""
    return StorageError(str(path), f"could not be {doing}: {why}", remedy=remedy + kept)


@contextlib.contextmanager
def storing(path: StrPath, doing: str = "written") -> Iterator[None]:
    """Turn an operating system's error inside the block into a `StorageError` about ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error, doing) from error


def corrupt(path: StrPath, problem: str, remedy: str = "") -> CheckpointCorrupt:
    """A `CheckpointCorrupt` about a file of ours; of a saved state the whole folder must go."""
    path = Path(path)
    within = path.parent if path.name == "manifest.json" else path
    gone = next((p for p in list(path.parents)[:4] if (p / "manifest.json").is_file()), within)
    return CheckpointCorrupt(
        str(path), problem, remedy=remedy or f"delete {gone} and go on from an earlier checkpoint, or make it again"
    )


# ----------------------------------------------------------------------------------------- who made it, and is it alive
@functools.cache
def _host() -> str:
    """Where process numbers mean the same: the machine, and on Linux the container (its process namespace)."""
    name = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:40] or "host"
    try:
        return name + "n" + re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        return name


def _start_ticks(pid: int) -> str:
    # Tells a process from a later one with the same number; '0' where the system has no /proc.
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError, UnicodeDecodeError):
        return "0"


def _alive(pid: int, ticks: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to somebody else
        return True
    now = _start_ticks(pid)
    return "0" in (now, ticks) or now == ticks


_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old|bin)-(?P<host>\w+)-(?P<pid>\d+)-(?P<ticks>\d+)-[0-9a-f]{8}")
_ACTIVE: set[str] = set()  # the beside-names that this process is using at this moment


def _beside(path: Path, kind: str) -> Path:
    # tmp: being written; old: set aside while its successor moves in; bin: being deleted
    pid = os.getpid()
    name = f".{path.name}.{kind}-{_host()}-{pid}-{_start_ticks(pid)}-{secrets.token_hex(4)}"
    _ACTIVE.add(name)
    return path.with_name(name)


def _abandoned(entry: os.DirEntry[str], match: re.Match[str]) -> bool:
    if match["host"] != _host():
        age = time.time() - entry.stat(follow_symlinks=False).st_mtime
        return age > _OTHER_HOST_DAYS * 86400
    pid = int(match["pid"])
    if pid == os.getpid() and match["ticks"] == _start_ticks(pid):
        return entry.name not in _ACTIVE
    return not _alive(pid, match["ticks"])


def _erase(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def clean_leftovers(folder: StrPath, exclusive: bool = False) -> list[str]:
    """Remove what dead processes left unfinished in ``folder``; put back what they had set aside. Returns their names.

    Never raises: what cannot be removed stays and does no harm, because nothing reads it.

    Args:
        folder: where to look (not below).
        exclusive: nobody else can be writing here, because the caller holds the `RunLock`. Then leftovers of other
            machines and containers, whose processes can't be asked, go too instead of after a week.
    """
    folder = Path(folder)
    done: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            match = _LEFTOVER.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if match is None or not (_abandoned(entry, match) or (exclusive and entry.name not in _ACTIVE)):
                    continue
                place = folder / match["name"]
                if match["kind"] == "old" and not os.path.lexists(place):
                    os.rename(entry.path, place)
                else:
                    _erase(Path(entry.path))
                done.append(entry.name)
    return done


# --------------------------------------------------------------------------------------------------------- single files
def sync_folder(folder: StrPath) -> None:
    """Make the names in ``folder`` durable (``fsync`` of the directory)."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, view: memoryview) -> None:
    while view:
        view = view[os.write(handle, view) :]


class HashingFile:
    """A new file that is hashed while it is written: ``write`` any buffers, then ``finish`` for its size and SHA-256.

    Large buffers are hashed in a second thread while the first one writes them; nothing is copied.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self.size = 0
        self._sha = hashlib.sha256()
        self._small = bytearray()
        self._pool: ThreadPoolExecutor | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._handle: int | None = os.open(self.path, flags, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data``; returns its length in bytes."""
        view = memoryview(data)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        size = len(view)
        self.size += size
        if size < 1 << 16:
            self._small += view
            if len(self._small) >= 1 << 20:
                self._flush()
            return size
        self._flush()
        for start in range(0, size, _CHUNK):
            self._pour(view[start : start + _CHUNK])
        return size

    def _flush(self) -> None:
        if self._small:
            small, self._small = self._small, bytearray()
            self._pour(memoryview(small))

    def _pour(self, view: memoryview) -> None:
        assert self._handle is not None
        if len(view) < 1 << 20:
            self._sha.update(view)
            _write_all(self._handle, view)
            return
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="limbeck-sha256")
        hashed = self._pool.submit(self._sha.update, view)
        try:
            _write_all(self._handle, view)
        finally:
            hashed.result()

    def finish(self) -> tuple[int, str]:
        """Sync and close the file; returns (size, SHA-256 in hexadecimal)."""
        assert self._handle is not None
        self._flush()
        os.fsync(self._handle)
        self.close()
        return self.size, self._sha.hexdigest()

    def close(self) -> None:
        """Close without syncing (after an error)."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def atomic_write(path: StrPath, data: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that readers see the whole old one or the whole new one, whatever happens in between.

    Args:
        path: where; its folder must exist.
        data: the content (text is written as UTF-8), or a function that writes it to the open binary file it is given.

    Raises:
        StorageError: the disk refused; the old file, if any, is untouched.

    Example:
        >>> import tempfile, os
        >>> place = os.path.join(tempfile.mkdtemp(), "result.json")
        >>> atomic_write(place, '{"top1": 0.9}'); Path(place).read_text()
        '{"top1": 0.9}'
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        with storing(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            handle = os.open(temporary, flags, 0o666)
            try:
                if callable(data):
                    with open(handle, "wb", closefd=False) as file:
                        data(file)
                else:
                    _write_all(handle, memoryview(data.encode() if isinstance(data, str) else data))
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        _ACTIVE.discard(temporary.name)
        with contextlib.suppress(OSError):
            os.unlink(temporary)


# ---------------------------------------------------------------------------------------------- folders with a manifest
def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _walk(folder: Path, below: str = "") -> Iterator[str]:
    """Names of all files under ``folder``, with forward slashes; anything but plain files and folders is refused."""
    with os.scandir(folder / below if below else folder) as entries:
        found = sorted(entries, key=lambda e: e.name)
    for entry in found:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_symlink():
            raise corrupt(folder / name, "is a symbolic link", "only plain files belong here: remove it")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder, name)
        elif entry.is_file(follow_symlinks=False):
            yield name
        else:
            raise corrupt(folder / name, "is neither a file nor a folder", "remove it")


def _hash_file(path: Path, sync: bool = False) -> tuple[int, str]:
    handle = _open_plain(path)
    try:
        sha, size = hashlib.sha256(), 0
        while block := os.read(handle, _CHUNK):
            sha.update(block)
            size += len(block)
        if sync:
            os.fsync(handle)
        return size, sha.hexdigest()
    finally:
        os.close(handle)


def _open_plain(path: Path) -> int:
    """Open a file for reading; links, pipes and devices are refused, also when one takes its place at this moment."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise corrupt(path, "is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise corrupt(path, "is a symbolic link", "only plain files belong here: remove it") from None
        raise storage_error(path, error, "read") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise corrupt(path, "is not a plain file", "remove it")
    return handle


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names in one step where the system can (Linux); False where it can't."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):  # e.g. NFS, FUSE
        return False
    raise OSError(code, os.strerror(code), str(other))


def _install(temporary: Path, path: Path) -> None:
    """Move a finished folder into place; an older one stays until the new one is in."""
    if not os.path.lexists(path):
        os.rename(temporary, path)
        sync_folder(path.parent)
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise StorageError(str(path), "is a file or a link where a folder should be", remedy="move it away")
    if _swap(temporary, path):
        sync_folder(path.parent)
        _erase(temporary)
        return
    old = _beside(path, "old")
    try:
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(old, path)
            raise
        sync_folder(path.parent)
        _erase(old)
    finally:
        _ACTIVE.discard(old.name)


@contextlib.contextmanager
def atomic_folder(path: StrPath, *, digests: dict[str, tuple[int, str]] | None = None) -> Iterator[Path]:
    """A folder that appears complete or not at all.

    Yields a temporary folder beside ``path``; write anything into it (sub-folders too). On leaving the block
    ``manifest.json`` with the size and SHA-256 of every file is added, everything is synced, and the folder is moved to
    ``path``. An existing folder there is replaced, and stays until its successor is in place. When the block raises,
    ``path`` is as it was. Unfinished folders of dead processes are removed on the way.

    Args:
        path: where the folder shall be; missing parents are made.
        digests: sizes and SHA-256 of files which their writer has already hashed and synced (`HashingFile`), filled in
            by the block; these files are not read again.

    Raises:
        StorageError: the disk refused, or a file stands at ``path``.
        CheckpointCorrupt: the block left a symbolic link or a device in the folder.

    Example:
        >>> import tempfile, os
        >>> place = os.path.join(tempfile.mkdtemp(), "student")
        >>> with atomic_folder(place) as folder:
        ...     _ = (folder / "labels.txt").write_text("cat")
        >>> sorted(os.listdir(place)), verify_folder(place)["labels.txt"][0]
        (['labels.txt', 'manifest.json'], 3)
    """
    path = Path(path)
    digests = {} if digests is None else digests
    with storing(path):
        os.makedirs(path.parent, exist_ok=True)
    clean_leftovers(path.parent)
    temporary = _beside(path, "tmp")
    try:
        with storing(path):
            os.mkdir(temporary)
        try:
            yield temporary
        except OSError as error:  # a writer of the block ran out of disk; its other errors are its own
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG):
                raise storage_error(path, error) from error
            raise
        with storing(path):
            files: dict[str, dict[str, Any]] = {}
            folders: set[Path] = set()
            for name in _walk(temporary):
                if name == MANIFEST:
                    raise StorageError(str(path / name), "is the name of the manifest", remedy="choose another name")
                size, sha = digests.get(name) or _hash_file(temporary / name, sync=True)
                files[name] = {"sha256": sha, "size": size}
                folders.update((temporary / name).parents)
            body = {"files": files, "format": _FORMAT, "version": _VERSION}
            with HashingFile(temporary / MANIFEST) as file:
                file.write(_canonical({"body": body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()}))
                file.finish()
            for folder in sorted(folders & set(_folders(temporary)), reverse=True):
                sync_folder(folder)
            sync_folder(temporary)
            _install(temporary, path)
    finally:
        _ACTIVE.discard(temporary.name)
        if os.path.lexists(temporary):
            _erase(temporary)


def _folders(root: Path) -> Iterator[Path]:
    for below, _, _ in os.walk(root):
        yield Path(below)


_BAD_NAME = re.compile(r"(^|/)(\.{0,2})(/|$)|[\\\x00-\x1f]|^[A-Za-z]:")


def read_manifest(folder: StrPath) -> dict[str, tuple[int, str]]:
    """The manifest of a folder made by `atomic_folder`: name -> (size, SHA-256). It is checked against its own hash.

    Raises:
        CheckpointCorrupt: it is missing, altered, or names a file outside the folder.
    """
    path = Path(folder) / MANIFEST
    handle = _open_plain(path)
    try:
        size = os.fstat(handle).st_size
        if size > _MANIFEST_LIMIT:
            raise corrupt(path, f"has {size} bytes, too many for a manifest")
        data = b""
        while block := os.read(handle, _CHUNK):
            data += block
    except OSError as error:
        raise storage_error(path, error, "read") from error
    finally:
        os.close(handle)
    try:
        whole = json.loads(data)
        body, files = whole["body"], whole["body"]["files"]
        if data != _canonical(whole) or whole["sha256"] != hashlib.sha256(_canonical(body)).hexdigest():
            raise ValueError("its hash does not match")
        if body["format"] != _FORMAT:
            raise ValueError(f"its format is {body['format']!r}")
        if body["version"] != _VERSION:
            raise corrupt(path, f"has version {body['version']!r}, this is {_VERSION}", "upgrade limbeck")
        listed = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(path, f"is altered or not ours: {error}") from None
    for name in listed:
        if _BAD_NAME.search(name) or name == MANIFEST:
            raise corrupt(path, f"names {name!r}, which lies outside the folder", "do not use this folder")
    return listed


def check_listing(folder: StrPath, listed: Mapping[str, tuple[int, str]]) -> None:
    """Refuse a folder in which a file is missing, has another size, or is not in the manifest (all named at once).

    Raises:
        CheckpointCorrupt: naming every such file.
    """
    folder = Path(folder)
    try:
        there = set(_walk(folder)) - {MANIFEST}
        missing, foreign = sorted(set(listed) - there), sorted(there - set(listed))
        sizes = {name: os.lstat(folder / name).st_size for name in sorted(there & set(listed))}
    except FileNotFoundError as error:
        raise corrupt(error.filename or folder, "is missing") from None
    except OSError as error:
        raise storage_error(folder, error, "read") from error
    wrong = [f"{n} has {s} bytes instead of {listed[n][0]}" for n, s in sizes.items() if s != listed[n][0]]
    problems = [f"{n} is missing" for n in missing] + [f"{n} does not belong here" for n in foreign] + wrong
    if problems:
        remedy = "remove the foreign files" if foreign and not (missing or wrong) else ""
        raise corrupt(folder, "; ".join(problems), remedy)


def verify_folder(folder: StrPath) -> dict[str, tuple[int, str]]:
    """Check a folder made by `atomic_folder`, every byte of it; returns name -> (size, SHA-256).

    Raises:
        CheckpointCorrupt: a file is missing, foreign, truncated or altered.
        StorageError: it cannot be read.
    """
    folder = Path(folder)
    listed = read_manifest(folder)
    check_listing(folder, listed)
    for name, expected in listed.items():
        with storing(folder / name, "read"):
            if _hash_file(folder / name) != expected:
                raise corrupt(folder / name, "is altered: its SHA-256 differs from the manifest's")
    return listed


class HashingReader:
    """Read a plain file front to back and hash it on the way; a second thread hashes while the first one reads."""

    def __init__(self, path: Path, hashing: bool = True) -> None:
        self.path = path
        self._handle: int | None = _open_plain(path)
        self.size = os.fstat(self._handle).st_size
        self.left = self.size
        self._sha = hashlib.sha256() if hashing else None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()
        if self._pool is not None:
            self._pool.shutdown()
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)

    def _settle(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def into(self, view: memoryview) -> None:
        """Fill ``view`` with the next bytes.

        Raises:
            CheckpointCorrupt: the file ends before.
        """
        assert self._handle is not None
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            done = 0
            while done < len(part):
                with storing(self.path, "read"):
                    got = _read_into(self._handle, part[done:])
                if got == 0:
                    raise corrupt(self.path, f"ends {self.left} bytes too early")
                done += got
                self.left -= got
            if self._sha is None:
                continue
            self._settle()
            if len(part) < 1 << 20:
                self._sha.update(part)
            else:
                self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="limbeck-sha256")
                self._pending = self._pool.submit(self._sha.update, part)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > self.left:
            raise corrupt(self.path, f"is truncated: {size} bytes are due, {self.left} are left")
        data = bytearray(size)
        self.into(memoryview(data))
        return bytes(data)

    def digest(self) -> str:
        """SHA-256 of everything read so far, in hexadecimal."""
        self._settle()
        return "" if self._sha is None else self._sha.hexdigest()


class _ReadInto(Protocol):
    def __call__(self, handle: int, view: memoryview, /) -> int: ...


def _read_copying(handle: int, view: memoryview, /) -> int:
    data = os.read(handle, len(view))
    view[: len(data)] = data
    return len(data)


def _read_direct(handle: int, view: memoryview, /) -> int:
    return os.readv(handle, [view])


_read_into: _ReadInto = _read_direct if hasattr(os, "readv") else _read_copying


def remove_folder(path: StrPath) -> None:
    """Delete a folder so that no reader ever sees half of it: it is renamed first.

    Raises:
        StorageError: the disk refused.
    """
    path = Path(path)
    doomed = _beside(path, "bin")
    try:
        with storing(path, "deleted"):
            os.rename(path, doomed)
        _erase(doomed)
    finally:
        _ACTIVE.discard(doomed.name)


# ------------------------------------------------------------------------------------------- before and during training
def check_writable(folder: StrPath, need_bytes: int = 0) -> None:
    """Make ``folder`` if need be, and prove before any training that it can hold what will be written.

    Raises:
        StorageError: it is a file, cannot be made or written, or has less than ``need_bytes`` free.
    """
    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise StorageError(str(folder), "is a file", expected="a folder", remedy="choose another one with --out DIR")
    probe = folder / f".probe-{secrets.token_hex(4)}"
    with storing(folder):
        os.makedirs(folder, exist_ok=True)
        try:
            with HashingFile(probe) as file:
                file.write(b"limbeck")
                file.finish()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(probe)
        free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise StorageError(
            str(folder),
            "has too little space",
            given=f"{free / 1e6:.1f} MB free",
            expected=f"{need_bytes / 1e6:.1f} MB",
            remedy="free some space or choose another folder with --out DIR",
        )


_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """Holds a folder for one run at a time; use as a context manager, or `acquire` and `release`.

    The lock is ``fcntl.flock`` on ``run.lock``, which the system gives up when the process dies, however it dies; the
    file tells a second run who holds it. Where the file system has no such lock, the process number in the file
    decides. Processes forked from the holder (data loader workers) do not hold it.

    Args:
        folder: the run's folder; made if need be.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with RunLock(folder):
        ...     try:
        ...         RunLock(folder).acquire()
        ...     except StorageError:
        ...         print("in use")
        in use
    """

    NAME = "run.lock"

    def __init__(self, folder: StrPath) -> None:
        self.folder = Path(folder)
        self.path = self.folder / self.NAME
        self._handle: int | None = None

    def acquire(self) -> Self:
        """Take the folder.

        Raises:
            StorageError: another run has it (its process, host and start are named), or the disk refused.
        """
        if self._handle is not None:
            return self
        with storing(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            while self._handle is None:
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
                handle = os.open(self.path, flags, 0o666)
                try:
                    if self._take(handle):
                        self._handle, handle = handle, -1
                finally:
                    if handle >= 0:
                        os.close(handle)
            _HELD.add(self)
            pid = os.getpid()
            owner = {
                "host": socket.gethostname(),
                "pid": pid,
                "place": _host(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "ticks": _start_ticks(pid),
            }
            try:
                os.ftruncate(self._handle, 0)
                os.lseek(self._handle, 0, os.SEEK_SET)
                _write_all(self._handle, memoryview(json.dumps(owner).encode()))
            except BaseException:
                self.release()
                raise
        return self

    def _take(self, handle: int) -> bool:
        """Lock the open file; False when it is no longer the one of that name (its holder left just now)."""
        locked = sys.platform != "win32"
        if sys.platform != "win32":
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise self._in_use(self._owner(handle)) from None
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL):
                    raise
                locked = False
        try:
            here, there = os.fstat(handle), os.stat(self.path)
        except FileNotFoundError:
            return False
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            return False
        owner = self._owner(handle)
        if not locked and owner and (owner["place"] != _host() or _alive(owner["pid"], owner["ticks"])):
            raise self._in_use(owner)
        return True

    @staticmethod
    def _owner(handle: int) -> dict[str, Any]:
        try:
            os.lseek(handle, 0, os.SEEK_SET)
            owner = json.loads(os.read(handle, 4096))
            return {
                "host": str(owner["host"]),
                "pid": int(owner["pid"]),
                "place": str(owner["place"]),
                "since": str(owner["since"]),
                "ticks": str(owner["ticks"]),
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _in_use(self, owner: Mapping[str, Any]) -> StorageError:
        who = "by process {pid} on {host} since {since}".format(**owner) if owner else "by another process"
        return StorageError(
            str(self.folder),
            f"is in use {who}",
            remedy="wait for that run or stop it, or choose another folder with --out DIR",
        )

    def release(self) -> None:
        """Give the folder back."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        _HELD.discard(self)
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # while it is still locked, so that nobody else's file can be meant
        os.close(handle)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _let_go_in_child() -> None:
    # A forked worker that outlives a killed parent must not keep the folder locked; closing a copy unlocks nothing.
    for lock in list(_HELD):
        if lock._handle is not None:
            with contextlib.suppress(OSError):
                os.close(lock._handle)
            lock._handle = None
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
