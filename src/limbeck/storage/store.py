"""Everything that is written to disk: trees of tensors, checkpoints, state dicts, fingerprints.

A *tree* is what a run consists of: nested dicts, lists and tuples with numbers, texts and tensors. It is stored as one
folder with ``tensors.safetensors`` (readable by any safetensors library), ``tree.json`` (the structure) and
``manifest.json`` (size and SHA-256 of each file). No pickle is written and none is read. What comes back is equal bit
for bit: types, strides and shared tensors included, in memory aligned to 64 bytes as torch itself allocates it; tensors
mapped from a file are not, and some kernels (``dot``) then round differently, which would break an exact resumption.

The disk's own side (atomic files and folders, locks) is `limbeck.storage.disk`; weights of foreign origin are
`limbeck.storage.weights`. Their public names are here too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import CheckpointCorrupt, ConfigError, StorageError
from limbeck.storage.disk import (
    HashingFile,
    HashingReader,
    RunLock,
    StrPath,
    atomic_folder,
    atomic_write,
    check_listing,
    check_writable,
    clean_leftovers,
    corrupt,
    read_manifest,
    remove_folder,
    storage_error,
    verify_folder,
    workspace,
)
from limbeck.storage.foreign import load_foreign
from limbeck.storage.weights import (
    content_digests,
    fingerprint,
    load_metadata,
    load_state_dict,
    load_strict,
    map_tensors,
    plain,
    read_tensors,
    same_memory,
    save_state_dict,
    write_tensors,
)

__all__ = [
    "Checkpoints",
    "RunLock",
    "atomic_folder",
    "atomic_write",
    "check_writable",
    "clean_leftovers",
    "fingerprint",
    "hash_tree",
    "is_complete",
    "load_foreign",
    "load_metadata",
    "load_state_dict",
    "load_strict",
    "load_tree",
    "read_manifest",
    "remembered",
    "safe_name",
    "save_state_dict",
    "save_tree",
    "verify_folder",
]

_log = logging.getLogger("limbeck")
_TREE, _TENSORS = "tree.json", "tensors.safetensors"
_FORMAT, _VERSION = "limbeck-tree", 1
_DEEPEST = 100  # levels of nesting; far above any state, far below the recursion limit
_SAFE_INT = 1 << 53  # larger integers are written as text: not every reader of JSON keeps them
_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}

# What sound hashes around unsound content can cause; RuntimeError stands for torch's refusals and too deep nesting.
_UNSOUND = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
    OverflowError,
    MemoryError,
    struct.error,
)

Put = Callable[[Any, str], Any]
Get = Callable[[Any], Any]


# --------------------------------------------------------------------------------------------------- structure <-> JSON
def _below(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _encode(value: Any, put: Put, where: str = "", depth: int = 0) -> Any:
    """A tree as JSON that tells every type apart. Tensors and arrays go through ``put``, which returns what stands for
    them. Plain JSON stands for itself; anything else is an object with one key that begins with ``$``.
    """
    if depth > _DEEPEST:
        raise ConfigError(where[:80] or "tree", f"is nested more than {_DEEPEST} levels deep, or contains itself")
    if isinstance(value, Tensor | np.ndarray):
        return put(value, where)
    if isinstance(value, np.generic):
        if value.dtype.kind in "VO":
            raise _unsupported(where, value)
        return {"$numpy": [value.dtype.str, value.tobytes().hex()]}
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_SAFE_INT < value < _SAFE_INT else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    if kind is bytes:
        return {"$bytes": value.hex()}
    if kind is list:
        return [_encode(v, put, _below(where, i), depth + 1) for i, v in enumerate(value)]
    if kind in (tuple, torch.Size):
        return {"$tuple": [_encode(v, put, _below(where, i), depth + 1) for i, v in enumerate(value)]}
    if isinstance(value, dict):
        if all(type(k) is str and not k.startswith("$") for k in value):
            return {k: _encode(v, put, _below(where, k), depth + 1) for k, v in value.items()}
        return {
            "$dict": [
                [_encode_key(k, where, depth + 1), _encode(v, put, _below(where, k), depth + 1)]
                for k, v in value.items()
            ]
        }
    raise _unsupported(where, value)


def _encode_key(key: Any, where: str, depth: int) -> Any:
    if key is None or type(key) in (bool, int, float, str, bytes):
        return _encode(key, _no_tensor, where, depth)
    if type(key) is tuple:
        return {"$tuple": [_encode_key(k, where, depth + 1) for k in key]}
    raise ConfigError(
        where or "tree",
        f"has a key of type {type(key).__name__}",
        given=key,
        expected="text, a number, None or a tuple",
    )


def _no_tensor(value: Any, where: str) -> Any:
    raise _unsupported(where, value)


def _unsupported(where: str, value: Any) -> ConfigError:
    return ConfigError(
        where or "tree",
        f"a {type(value).__module__}.{type(value).__qualname__} cannot be saved",
        expected="dict, list, tuple, None, bool, int, float, str, bytes, numpy numbers and arrays, or tensors",
        remedy="keep its parts in a dict",
    )


def _decode(node: Any, get: Get) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return [_decode(n, get) for n in node]
    if len(node) == 1:
        ((tag, body),) = node.items()
        if tag.startswith("$"):
            return _decode_tagged(tag, body, get)
    return {k: _decode(v, get) for k, v in node.items()}


def _decode_tagged(tag: str, body: Any, get: Get) -> Any:
    match tag:
        case "$tensor" | "$array":
            return get(body)
        case "$tuple":
            return tuple(_decode(n, get) for n in body)
        case "$dict":
            return {_decode(k, get): _decode(v, get) for k, v in body}
        case "$int":
            return int(body, 16)
        case "$float":
            return struct.unpack(">d", bytes.fromhex(body))[0]
        case "$bytes":
            return bytes.fromhex(body)
        case "$numpy":
            dtype, data = _numpy_dtype(body[0]), bytes.fromhex(body[1])
            return np.frombuffer(data, dtype)[0] if dtype.itemsize else np.zeros((), dtype)[()]
    raise ValueError(f"it holds the unknown mark {tag!r}")


def _numpy_dtype(text: str) -> np.dtype[Any]:
    if not re.fullmatch(r"[<>|=]?[biufcSUmM?]\d*(\[\w+\])?", text):
        raise ValueError(f"it holds the unknown number type {text!r}")
    return np.dtype(text)


# ---------------------------------------------------------------------------------------------------- tensors of a tree
def _gaps(tensor: Tensor) -> str:
    """How a tensor lies in memory: 'dense' (row after row), 'strided' (no cell twice) or 'overlapping'."""
    if tensor.is_contiguous():
        return "dense"
    reach = 1
    for stride, size in sorted((st, sz) for st, sz in zip(tensor.stride(), tensor.shape, strict=True) if sz > 1):
        if stride < reach:
            return "overlapping"
        reach += stride * (size - 1)
    return "strided"


def _usual_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if all(shape) else 0


class _Pack:
    """Collects the tensors of a tree, each once; index -> how it lies in memory."""

    def __init__(self) -> None:
        self.stored: dict[str, Tensor | np.ndarray[Any, Any]] = {}
        self.index: list[dict[str, Any]] = []
        # The tensors are kept alive until all are written: a freed address is given out again, and would look shared.
        self._seen: dict[Any, tuple[dict[str, int], Any]] = {}

    def put(self, value: Tensor | np.ndarray[Any, Any], where: str) -> dict[str, int]:
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if value.layout is not torch.strided:
            return self._sparse(value, where)
        tensor = plain(value, where)
        known = self._seen.get(key := same_memory(tensor))
        if key is not None and known is not None:
            return known[0]
        entry: dict[str, Any] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        kept = tensor
        lies = _gaps(tensor)
        if tensor.numel() and tensor.stride() != _usual_stride(tensor.shape):
            entry["stride"] = list(tensor.stride())
        if lies == "overlapping" and tensor.numel():  # an expanded or unfolded view: the cells below it are stored once
            entry["overlapping"] = True
            kept = tensor.as_strided((_span(tuple(tensor.shape), tensor.stride()),), (1,))
        ref = {"$tensor": self._store(kept, entry, where)}
        if key is not None:
            self._seen[key] = (ref, value)
        return ref

    def _store(self, kept: Any, entry: dict[str, Any], where: str) -> int:
        name, n = where or "value", 1
        while name in self.stored or name == "__metadata__":
            n += 1
            name = f"{where}#{n}"
        self.stored[name] = kept
        self.index.append({"name": name, **entry})
        return len(self.index) - 1

    def _array(self, value: np.ndarray[Any, Any], where: str) -> dict[str, int]:
        if value.dtype.kind in "VO" or not value.dtype.itemsize:
            raise _unsupported(where, value)
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        kept = np.ascontiguousarray(value.T if fortran else value)
        entry = {"numpy": value.dtype.str, "shape": list(value.shape), "fortran": bool(fortran)}
        raw = kept.reshape(-1).view(np.uint8) if kept.nbytes else np.zeros(0, np.uint8)
        return {"$array": self._store(raw, entry, where)}

    def _sparse(self, value: Tensor, where: str) -> dict[str, int]:
        value = value.detach()
        if value.layout is torch.sparse_coo:
            parts = {"indices": value._indices(), "values": value._values()}
            entry: dict[str, Any] = {"sparse": "coo", "coalesced": value.is_coalesced()}
        elif value.layout is torch.sparse_csr:
            parts = {"crow": value.crow_indices(), "col": value.col_indices(), "values": value.values()}
            entry = {"sparse": "csr"}
        else:
            raise _unsupported(where, value)
        refs = {k: self.put(v, _below(where, k))["$tensor"] for k, v in parts.items()}
        self.index.append({**entry, "shape": list(value.shape), "parts": refs})
        return {"$tensor": len(self.index) - 1}


class _Unpack:
    """Gives back the tensors of a tree; the same index gives the same tensor."""

    def __init__(self, index: list[Any], flat: dict[str, Tensor], device: torch.device | None) -> None:
        self.index, self.flat, self.device = index, flat, device
        self._made: dict[int, Any] = {}

    def get(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < len(self.index):
            raise ValueError(f"it refers to a tensor {number!r} that is not there")
        if number not in self._made:
            self._made[number] = self._make(self.index[number])
        return self._made[number]

    def _make(self, entry: dict[str, Any]) -> Any:
        shape = tuple(int(n) for n in entry["shape"])
        if "sparse" in entry:
            parts = {k: self.get(v) for k, v in entry["parts"].items()}
            with warnings.catch_warnings():
                # once a process torch calls the CSR layout beta, and 2.11 calls for the checks that are asked for here
                warnings.simplefilter("ignore")
                if entry["sparse"] == "coo":
                    made = torch.sparse_coo_tensor(parts["indices"], parts["values"], shape, check_invariants=True)
                    return made._coalesced_(bool(entry["coalesced"]))
                return torch.sparse_csr_tensor(
                    parts["crow"], parts["col"], parts["values"], shape, check_invariants=True
                )
        flat = self.flat[entry["name"]]
        if "numpy" in entry:
            number = _numpy_dtype(entry["numpy"])
            raw = flat.numpy()
            if raw.nbytes != math.prod(shape) * number.itemsize:
                raise ValueError(f"{entry['name']} has {raw.nbytes} bytes, its shape needs another number")
            array = raw.view(number) if raw.size else np.zeros(math.prod(shape), number)
            return array.reshape(shape[::-1]).T if entry["fortran"] else array.reshape(shape)
        dtype, overlapping = _DTYPES[entry["dtype"]], bool(entry.get("overlapping"))
        if flat.dtype is not dtype:  # a type that safetensors lacks was stored as bytes
            if flat.dtype is not torch.uint8 or flat.dim() != 1:
                raise ValueError(f"{entry['name']} is {flat.dtype} and should be {dtype}")
            flat = flat.view(dtype)
            flat = flat if overlapping else flat.reshape(shape)
        if overlapping:
            stride = tuple(int(s) for s in entry["stride"])
            return (flat if self.device is None else flat.to(self.device)).as_strided(shape, stride)
        if tuple(flat.shape) != shape:
            raise ValueError(f"{entry['name']} has shape {tuple(flat.shape)} and should have {shape}")
        if "stride" in entry:
            stride = tuple(int(s) for s in entry["stride"])
            return torch.empty_strided(shape, stride, dtype=dtype, device=self.device).copy_(flat)
        return flat if self.device is None else flat.to(self.device)


def save_tree(folder: StrPath, tree: Any) -> str:
    """Save a tree as a folder that appears complete or not at all; an older one there is replaced.

    Dicts may have text, numbers, None and tuples as keys. Integers of any size, infinities, NaN (with its bits), numpy
    numbers and arrays, tensors of every type, sparse ones in COO and CSR layout, strides, expanded views and shared
    tensors (same address, shape and stride: tied weights) come back as they were. Two different views of one memory
    come back as two tensors. Parameters come back as tensors, on the CPU.

    Args:
        folder: where; missing parents are made.
        tree: what.

    Returns:
        A SHA-256 of the content (of the structure and of every tensor).

    Raises:
        ConfigError: something in the tree cannot be saved; its path is named.
        StorageError: the disk refused; what was there before is untouched.

    Example:
        >>> import tempfile, os
        >>> place = os.path.join(tempfile.mkdtemp(), "state")
        >>> _ = save_tree(place, {"step": 3, "weights": {"w": torch.ones(2)}, ("a", 1): float("inf")})
        >>> load_tree(place)
        {'step': 3, 'weights': {'w': tensor([1., 1.])}, ('a', 1): inf}
    """
    pack = _Pack()
    encoded = _encode(tree, pack.put)
    digests: dict[str, tuple[int, str]] = {}
    with atomic_folder(folder, digests=digests) as temporary:
        with HashingFile(temporary / _TENSORS) as file:
            write_tensors(file, pack.stored, {"format": "pt", "limbeck": f"{_FORMAT} {_VERSION}"}, raw=True)
            digests[_TENSORS] = file.finish()
        whole = {"format": _FORMAT, "version": _VERSION, "tensors": pack.index, "tree": encoded}
        with HashingFile(temporary / _TREE) as file:
            file.write(json.dumps(whole, separators=(",", ":"), allow_nan=False).encode())
            digests[_TREE] = file.finish()
    return hashlib.sha256((digests[_TENSORS][1] + digests[_TREE][1]).encode()).hexdigest()


def load_tree(
    folder: StrPath, verify: bool = True, device: torch.device | str | None = None, mapped: bool = False
) -> Any:
    """Load what `save_tree` saved.

    Args:
        folder: where it is.
        verify: compare every byte with the manifest's SHA-256 (while reading, at little cost).
        device: where tensors shall be; the CPU if not given.
        mapped: map tensors into memory instead of reading them (not for what goes on bit for bit: see above).

    Raises:
        CheckpointCorrupt: a file is missing, foreign, truncated, altered or not ours; file and remedy are named.
        StorageError: it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        clean_leftovers(folder.parent)  # a replacement that was killed half-way puts the old one back
        if not folder.is_dir():
            raise corrupt(folder, "is missing" if not os.path.lexists(folder) else "is not a folder")
    listed = read_manifest(folder)
    if set(listed) != {_TREE, _TENSORS}:
        raise corrupt(folder, f"is not a saved state: it lists {', '.join(sorted(listed)) or 'nothing'}")
    check_listing(folder, listed)
    with HashingReader(folder / _TREE, verify) as file:
        text = file.take(file.size)
        _check(file, listed[_TREE], verify)
    if mapped:
        if verify:
            verify_folder(folder)
        flat = map_tensors(folder / _TENSORS)
    else:
        with HashingReader(folder / _TENSORS, verify) as file:
            flat, _ = read_tensors(file)
            _check(file, listed[_TENSORS], verify)
    try:
        whole = json.loads(text)
        if whole["format"] != _FORMAT:
            raise ValueError(f"its format is {whole['format']!r}")
        if whole["version"] != _VERSION:
            raise corrupt(folder / _TREE, f"has version {whole['version']!r}, this is {_VERSION}", "upgrade limbeck")
        used = {entry["name"] for entry in whole["tensors"] if "name" in entry}
        if used != set(flat):
            raise ValueError(f"it does not fit {_TENSORS}: {', '.join(sorted(used ^ set(flat))[:5])}")
        unpack = _Unpack(whole["tensors"], flat, None if device is None else torch.device(device))
        return _decode(whole["tree"], unpack.get)
    except _UNSOUND as error:
        raise corrupt(
            folder / _TREE, f"is altered or not ours: {(str(error).splitlines() or [''])[0][:200]}"
        ) from error


def _check(file: HashingReader, expected: tuple[int, str], verify: bool) -> None:
    if file.size != expected[0]:
        raise corrupt(file.path, f"has {file.size} bytes instead of {expected[0]}")
    if verify and file.digest() != expected[1]:
        raise corrupt(file.path, "is altered: its SHA-256 differs from the manifest's")


# ---------------------------------------------------------------------------------------------------------- checkpoints
class Checkpoints:
    """The checkpoints of one run: a folder of ``step-00000010``, ``step-00000020``, ...

    Args:
        folder: where; made at the first `save`.
        keep: how many of the newest stay. Two, so that a damaged newest one loses little.
        keep_every: steps divisible by this stay for ever; None for none.
        warn: called with a sentence when a damaged checkpoint is passed over or an old one cannot be deleted; by
            default the ``limbeck`` logger.

    Example:
        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp(), keep=2)
        >>> for step in (10, 20, 30):
        ...     _ = checkpoints.save(step, {"w": torch.full((2,), float(step))})
        >>> checkpoints.steps(), checkpoints.latest()
        ([20, 30], (30, {'w': tensor([30., 30.])}))
    """

    _NAME = re.compile(r"step-(\d{8,18})")

    def __init__(
        self,
        folder: StrPath,
        keep: int = 2,
        keep_every: int | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if keep < 1:
            raise ConfigError("keep", given=keep, expected="1 or more")
        if keep_every is not None and keep_every < 1:
            raise ConfigError("keep_every", given=keep_every, expected="1 or more, or None")
        self.folder = Path(folder)
        self.keep = keep
        self.keep_every = keep_every
        self.warn: Callable[[str], None] = warn or _log.warning

    def path(self, step: int) -> Path:
        """The folder of one step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, rising."""
        clean_leftovers(self.folder)
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise storage_error(self.folder, error, "read") from error
        return sorted(int(m[1]) for m in map(self._NAME.fullmatch, names) if m)

    def save(self, step: int, tree: Any) -> Path:
        """Save a checkpoint, then delete those that are no longer kept; returns its folder.

        Checkpoints of later steps are deleted too: they belong to a continuation that was given up, or were damaged.

        Raises:
            StorageError: the disk refused; the earlier checkpoints are untouched.
        """
        if step < 0:
            raise ConfigError("step", given=step, expected="0 or more")
        path = self.path(step)
        save_tree(path, tree)
        steps = self.steps()
        kept = [s for s in steps if s <= step][-self.keep :]
        for other in steps:
            lasting = self.keep_every is not None and other % self.keep_every == 0 and other <= step
            if other not in kept and not lasting:
                try:
                    remove_folder(self.path(other))
                except StorageError as error:
                    self.warn(f"an old checkpoint stays: {error}")
        return path

    def clear(self) -> None:
        """Delete every checkpoint: what they led to is kept elsewhere."""
        for step in self.steps():
            remove_folder(self.path(step))

    def load(self, step: int, device: torch.device | str | None = None) -> Any:
        """The tree of one step.

        Raises:
            CheckpointCorrupt: there is none, or it is damaged.
        """
        return load_tree(self.path(step), device=device)

    def latest(self, device: torch.device | str | None = None) -> tuple[int, Any] | None:
        """The newest complete checkpoint as (step, tree); None when there is none at all.

        A damaged one is passed over, and said so through ``warn``.

        Raises:
            CheckpointCorrupt: there are checkpoints, and every one is damaged.
        """
        broken: dict[int, str] = {}
        while True:
            left = [step for step in self.steps() if step not in broken]
            if not left:
                break
            step = left[-1]
            try:
                tree = load_tree(self.path(step), device=device)
            except (CheckpointCorrupt, StorageError) as error:
                if step not in self.steps():  # a run that is still going has just deleted it
                    continue
                broken[step] = str(error)
                continue
            if broken:
                self.warn(
                    f"going on from step {step}, because newer checkpoints are damaged: {' | '.join(broken.values())}"
                )
            return step, tree
        if broken:
            raise corrupt(
                self.folder,
                f"all {len(broken)} checkpoints are damaged: {' | '.join(broken.values())}",
                f"delete {self.folder} to start from the beginning",
            )
        return None


# --------------------------------------------------------------------------------------------------------------- hashes
def hash_tree(tree: Any) -> str:
    """A SHA-256 of a configuration or of data, equal wherever the values are equal.

    Keys are sorted; tuples count as lists, numpy numbers as Python's, arrays and tensors by type, shape and bytes;
    paths are texts, sets are sorted, dataclasses count by their fields. ``1``, ``1.0``, ``True`` and ``"1"`` differ.

    Raises:
        ConfigError: something in the tree has no such hash; its path is named.

    Example:
        >>> hash_tree({"a": 1, "b": (2, 3)}) == hash_tree({"b": [2, 3], "a": 1}) != hash_tree({"a": 1.0, "b": [2, 3]})
        True
    """
    text = json.dumps(_canonical(tree), separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any, where: str = "", depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ConfigError(where[:80] or "tree", f"is nested more than {_DEEPEST} levels deep, or contains itself")
    if isinstance(value, Tensor):
        tensor = plain(value, where)
        ((_, digest),) = content_digests({"": tensor})
        return {"$tensor": [str(tensor.dtype), list(tensor.shape), digest]}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "VO":
            raise _unsupported(where, value)
        little = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False))
        return {"$array": [little.dtype.str, list(value.shape), hashlib.sha256(little.tobytes()).hexdigest()]}
    if isinstance(value, np.generic) and value.dtype.kind in "biufSU":
        return _canonical(value.item(), where, depth)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        pairs = [
            [_encode_key(k, where, depth + 1), _canonical(v, _below(where, k), depth + 1)] for k, v in value.items()
        ]
        return {"$dict": sorted(pairs, key=lambda pair: json.dumps(pair[0]))}
    if isinstance(value, list | tuple):
        return [_canonical(v, _below(where, i), depth + 1) for i, v in enumerate(value)]
    if isinstance(value, set | frozenset):
        return {"$set": sorted((_canonical(v, where, depth + 1) for v in value), key=json.dumps)}
    return _encode(value, _no_tensor, where, depth)


def is_complete(folder: StrPath) -> bool:
    """Whether a folder was written to its end: it appears under its name only then, manifest included."""
    return (Path(folder) / "manifest.json").is_file()


def remembered(name: str, parts: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What ``make`` returns, kept in the workspace and made once for every run that asks with the same ``parts``.

    Args:
        name: what it is, the beginning of its folder's name.
        parts: everything it depends on, as a tree.
        make: makes it, as a tree (see `save_tree`); called where there is none yet, or a damaged one.
    """
    folder = workspace() / f"{name}-{hash_tree(parts)[:20]}"
    try:
        return load_tree(folder)
    except (CheckpointCorrupt, StorageError):  # not there yet, or damaged
        save_tree(folder, make())
        return load_tree(folder)


def safe_name(text: str) -> str:
    """A text as a folder's name: itself where that is harmless on every system, else a readable part and a hash."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) and not text.endswith("."):
        return text
    part = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:40]
    return f"{part or 'item'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
