"""Weights as files: safetensors in and out, hashed, loaded strictly. What others wrote is read by `limbeck.storage.foreign`.

The safetensors layout (an 8-byte length, a JSON header, the bytes) is read and written here directly, because both the
hash and the 64-byte alignment come free while the bytes pass, and no file is mapped that could change or shrink
underneath. The tests hold it against the safetensors library in both directions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt, ConfigError, ShapeError, nearest
from limbeck.storage.disk import HashingFile, HashingReader, StrPath, atomic_write, corrupt

_HEADER_LIMIT = 100_000_000  # the safetensors library's own limit

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
_BY_CODE = {code: dtype for dtype, code in _CODES.items()}
_TIED = "limbeck.tied"


# ---------------------------------------------------------------------------------------------------- tensors and bytes
def plain(tensor: Tensor, where: str = "tensor") -> Tensor:
    """The tensor itself, without gradient or subclass; refused when it has no plain memory to save.

    Raises:
        ConfigError: it is distributed, quantised, sparse in an unusual layout, or on the ``meta`` device.
    """
    custom = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if custom or tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        kind = type(tensor).__name__ if custom else f"tensor on {tensor.device}, {tensor.layout}, {tensor.dtype}"
        raise ConfigError(
            where or "tensor",
            f"a {kind} cannot be saved",
            expected="an ordinary dense tensor",
            remedy="save its parts (to_local(), full_tensor(), dequantize(), to_dense())",
        )
    tensor = tensor.detach()
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def same_memory(tensor: Tensor) -> Any:
    """A key that is equal for two living tensors if they are the same cells in the same order; None if empty."""
    if tensor.numel() == 0:
        return None
    signs = tensor.is_conj(), tensor.is_neg()
    return str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), signs


def bytes_of(value: Tensor | np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a tensor or array, row after row; a copy only if it lies otherwise or on another device."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    tensor = value.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    # Not reshape: it keeps the odd stride that a dimension of size one may have.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def _size_of(value: Tensor | np.ndarray[Any, Any]) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else value.numel() * value.element_size()


def write_tensors(
    file: BinaryIO | HashingFile,
    tensors: Mapping[str, Tensor | np.ndarray[Any, Any]],
    metadata: Mapping[str, str],
    raw: bool = False,
) -> None:
    """Write tensors in the safetensors layout.

    Args:
        file: where to.
        tensors: name -> tensor of any strides (written row after row), or array of bytes.
        metadata: texts for the header.
        raw: write types that safetensors lacks as bytes (the caller remembers the type) instead of refusing them.

    Raises:
        ConfigError: a type that safetensors lacks, or too many tensors for one file.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # The library reads a tensor in place, so its start must be divisible by its element's size: widest types first.
    order = sorted(tensors, key=lambda name: -_element(tensors[name]))
    start = 0
    places: dict[str, tuple[int, int]] = {}
    for name in order:
        end = start + _size_of(tensors[name])
        places[name] = (start, end)
        start = end
    for name, value in tensors.items():
        code = "U8" if isinstance(value, np.ndarray) else _CODES.get(value.dtype)
        shape = list(value.shape)
        if code is None:
            if not raw:
                raise ConfigError(
                    name, f"safetensors has no {value.dtype}", remedy="convert it, for example to float32"
                )
            code, shape = "U8", [_size_of(value)]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": list(places[name])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    text += b" " * (-(8 + len(text)) % 64)
    if len(text) > _HEADER_LIMIT:
        raise ConfigError("tensors", f"{len(tensors)} are too many for one file", remedy="stack some of them")
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        file.write(bytes_of(tensors[name]))


def _element(value: Tensor | np.ndarray[Any, Any]) -> int:
    return 1 if isinstance(value, np.ndarray) or value.dtype not in _CODES else value.element_size()


def read_tensors(file: HashingReader) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file in the safetensors layout into fresh memory, aligned to 64 bytes: (tensors, metadata).

    Raises:
        CheckpointCorrupt: it is truncated, or its header is not sound.
    """
    names, places, metadata = _layout(file)
    read: dict[str, Tensor] = {}
    for _, _, name, dtype, shape in places:
        try:
            tensor = torch.empty(shape, dtype=dtype)
        except (RuntimeError, OverflowError) as error:  # its size was checked: a product that overflows, or no memory
            raise corrupt(file.path, f"has a tensor {name!r} that cannot be made: {str(error)[:200]}") from None
        if tensor.numel():
            file.into(tensor.view(-1).view(torch.uint8).numpy().data)
        read[name] = tensor
    return {name: read[name] for name in names}, metadata


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in the safetensors layout, mapped into memory: nothing is read before it is asked for.

    What is written into them is written nowhere else.

    Raises:
        CheckpointCorrupt: it is truncated, or its header is not sound.
    """
    with HashingReader(path, hashing=False) as file:
        names, places, _ = _layout(file)
        start = file.size - file.left
    read: dict[str, Tensor] = {}
    if any(end > begin for begin, end, *_ in places):
        raw = torch.from_numpy(np.memmap(path, np.uint8, "c", start).view(np.ndarray))
    for begin, end, name, dtype, shape in places:
        read[name] = raw[begin:end].view(dtype).view(shape) if end > begin else torch.empty(shape, dtype=dtype)
    return {name: read[name] for name in names}


_Places = list[tuple[int, int, str, torch.dtype, tuple[int, ...]]]


def _layout(file: HashingReader) -> tuple[list[str], _Places, dict[str, str]]:
    """The head of a file: names in its order, where each tensor lies behind the head, metadata."""
    size = int.from_bytes(file.take(8), "little")
    if size > _HEADER_LIMIT:
        raise corrupt(file.path, f"claims a header of {size} bytes; it is no safetensors file")
    text = file.take(size)
    try:
        header = json.loads(text.decode("utf-8", "surrogatepass"), object_pairs_hook=_no_duplicates)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata are not texts")
        places = sorted((_place(name, entry) for name, entry in header.items()), key=lambda p: (p[0], p[1]))
        due = 0
        for begin, end, name, _, _ in places:
            if begin != due:
                raise ValueError(f"{name!r} begins at {begin} instead of {due}")
            due = end
    except CheckpointCorrupt:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(file.path, f"has an unsound header: {str(error)[:200]}") from None
    if due != file.left:
        raise corrupt(file.path, f"is truncated or has foreign bytes: {file.left} bytes of tensors instead of {due}")
    return list(header), places, metadata


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("it names something twice")
    return made


def _place(name: str, entry: Mapping[str, Any]) -> tuple[int, int, str, torch.dtype, tuple[int, ...]]:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(type(n) is not int or n < 0 for n in (begin, end, *shape)):
        raise ValueError(f"{name!r} has a bad shape or place")
    dtype = _BY_CODE.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{name!r} has the type {entry['dtype']!r}, which is not read")
    size = dtype.itemsize
    for n in shape:
        size *= n
    if end - begin != size:
        raise ValueError(f"{name!r} has {end - begin} bytes, its shape needs {size}")
    return begin, end, name, dtype, shape


# ------------------------------------------------------------------------------------------------------ our state dicts
def save_state_dict(path: StrPath, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Save a state dict as one safetensors file that any safetensors library reads; tied weights survive.

    Every name is stored, so that ``module.load_state_dict(load_file(path), strict=True)`` holds for tied weights and for
    buffers that are views of others, as it does for all else. Which names are the same memory is in the header, for
    `load_state_dict`.

    Args:
        path: the file.
        state: name -> tensor of any strides, on any device.
        metadata: texts for the header; other values are written as JSON.

    Raises:
        ConfigError: a value is no dense tensor, or of a type that safetensors lacks.
        StorageError: the disk refused; an older file is untouched.
    """
    path = Path(path)
    seen: dict[Any, str] = {}
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ConfigError(name, "a state dict holds tensors only", given=value)
        tensor = plain(value, name)
        key = same_memory(tensor)
        if key is not None and key in seen:
            tied[name] = seen[key]
        else:
            seen[key] = name
        stored[name] = tensor
    header = {"format": "pt"}
    for name, text in (metadata or {}).items():
        header[name] = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    if tied:
        header[_TIED] = json.dumps(tied)
    atomic_write(path, lambda file: write_tensors(file, stored, header))


def load_state_dict(path: StrPath) -> dict[str, Tensor]:
    """Load a safetensors file of `save_state_dict` or of anybody else; tied names get the same tensor.

    Raises:
        CheckpointCorrupt: it is missing, truncated or no safetensors file.
    """
    with _opened(Path(path)) as file:
        tensors, metadata = read_tensors(file)
    try:
        # the library's own convention names those that it left out
        tied = json.loads(metadata[_TIED]) if _TIED in metadata else {k: v for k, v in metadata.items() if v in tensors}
        for name, kept in tied.items():
            if name not in tensors or torch.equal(tensors[name], tensors[kept]):
                tensors[name] = tensors[kept]
    except (ValueError, KeyError, AttributeError) as error:
        raise corrupt(path, f"has an unsound list of tied weights: {error}") from None
    return tensors


def load_metadata(path: StrPath) -> dict[str, str]:
    """The texts in the header of a safetensors file.

    Raises:
        CheckpointCorrupt: as `load_state_dict`.
    """
    with _opened(Path(path)) as file:
        size = int.from_bytes(file.take(8), "little")
        if size > _HEADER_LIMIT:
            raise corrupt(path, f"claims a header of {size} bytes; it is no safetensors file")
        try:
            found = json.loads(file.take(size)).get("__metadata__", {})
            return {str(k): str(v) for k, v in found.items() if k != _TIED}
        except (ValueError, AttributeError, RecursionError) as error:
            raise corrupt(path, f"has an unsound header: {error}") from None


def _opened(path: Path) -> HashingReader:
    # A Hub snapshot consists of links, so what the user names is followed; inside our own folders links are refused.
    if not os.path.lexists(path):
        raise CheckpointCorrupt(str(path), "is missing", remedy="check the path")
    try:
        return HashingReader(path.resolve(), hashing=False)
    except (RuntimeError, OSError) as error:  # a loop of links
        raise CheckpointCorrupt(str(path), f"cannot be found: {error}", remedy="check the path") from None


# ------------------------------------------------------------------------------------------------------- content hashes
def content_digests(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """(name, SHA-256 of the bytes) of each tensor, in the given order; several threads where torch has several."""

    def digest(value: Tensor) -> str:
        return hashlib.sha256(bytes_of(value)).hexdigest()

    threads = min(8, torch.get_num_threads(), len(tensors))
    if threads < 2 or sum(t.numel() for t in tensors.values()) < 1 << 20:
        return [(name, digest(value)) for name, value in tensors.items()]
    with ThreadPoolExecutor(threads, thread_name_prefix="limbeck-sha256") as pool:
        return list(zip(tensors, pool.map(digest, tensors.values()), strict=True))


def fingerprint(of: nn.Module | Mapping[str, Tensor] | Iterable[Tensor]) -> str:
    """A SHA-256 of parameters and persistent buffers: names, types, shapes and bytes. Equal on every device.

    It notices what version counters miss (writes through ``.data``, BatchNorm's statistics). ``torch.compile``'s prefix
    does not count, nor do strides, order, gradients and the training mode. Of a sharded module it is the fingerprint of
    this process's shards.

    Args:
        of: a module, a state dict, or tensors.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint(layer); fingerprint(layer) == before
        True
        >>> layer.weight.data[0, 0] += 1; fingerprint(layer) == before
        False
    """
    if isinstance(of, nn.Module):
        named = {k: v for k, v in of.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    elif isinstance(of, Mapping):
        named = {str(k): v for k, v in of.items()}
    else:
        named = {str(i): v for i, v in enumerate(of)}
    tensors: dict[str, Tensor] = {}
    for name in sorted(named):
        value = named[name]
        local = value.to_local() if hasattr(value, "to_local") else value
        tensors[name.replace("_orig_mod.", "")] = plain(local, name)
    sha = hashlib.sha256()
    for name, digest in content_digests(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape), digest]).encode())
    return sha.hexdigest()


# --------------------------------------------------------------------------------------------------- strict loading
def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str = "checkpoint", role: str = "") -> None:
    """Load weights into a module; unless everything fits, name everything that does not, and change nothing.

    A name that is missing because the file holds only another name of the same tied weight is filled in.

    Args:
        module: the network.
        state: its weights.
        what: how the error calls them (usually the path).
        role: who loads them (``teacher``), so that the error names a setting that can be typed.

    Raises:
        CheckpointCorrupt: names are missing or unexpected (the nearest names are given).
        ShapeError: all names are right and some shapes are not.
    """
    own = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    given = OrderedDict(state)
    if hasattr(state, "_metadata"):  # the versions of its modules, by which torch reads older layouts
        given._metadata = state._metadata  # type: ignore[attr-defined]
    groups: dict[Any, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(same_memory(tensor.detach()), []).append(name)
    for memory, names in groups.items():
        there = next((n for n in names if n in given), None)
        if memory is not None and there is not None:
            for name in names:
                given.setdefault(name, given[there])
    missing = [k for k in own if k not in given]
    known = module.state_dict().keys()
    unexpected = [k for k in given if k not in known]
    shapes = [
        f"{k} is {list(given[k].shape)} and should be {list(v.shape)}"
        for k, v in own.items()
        if k in given and given[k].shape != v.shape
    ]
    backup: dict[str, Tensor] = {}
    if missing or unexpected or shapes:
        if shapes or not _renames(module):
            raise misfit(missing, unexpected, shapes, what, role)
        backup = {k: v.detach().clone() for k, v in own.items()}
    try:
        module.load_state_dict(given, strict=True)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        if not backup:
            raise CheckpointCorrupt(what, " ".join(str(error).split())[:500], remedy="use the matching model") from None
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(backup[name])
        raise misfit(missing, unexpected, shapes, what, role) from None


def _renames(module: nn.Module) -> bool:
    """Whether a part of the module translates older layouts while it loads (BatchNorm's counter, parametrisations)."""
    own_loader = nn.Module._load_from_state_dict
    return any(
        m._load_state_dict_pre_hooks or type(m)._load_from_state_dict is not own_loader for m in module.modules()
    )


def some(names: Iterable[str], limit: int = 60) -> str:
    """Names in a row, cut and counted where they are many."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def misfit(
    missing: list[str], unexpected: list[str], shapes: list[str], what: str, role: str = ""
) -> CheckpointCorrupt | ShapeError:
    """The error that lists every name that does not fit, and what may be meant."""
    remedy = "use the checkpoint of this very model, or the model of this checkpoint"
    if shapes and not (missing or unexpected):
        return ShapeError(what, f"does not fit the model: {some(shapes)}", remedy=remedy)
    parts = []
    if missing:
        shown = []
        for name in missing[:60]:
            close = nearest(name, unexpected, 1) if len(unexpected) <= 2000 else []
            shown.append(f"{name} (did you mean its {close[0]}?)" if close else name)
        parts.append(f"missing {some(shown + missing[60:])}")
    if unexpected:
        parts.append(f"unexpected {some(unexpected)}")
    if shapes:
        parts.append(f"wrong shapes: {some(shapes)}")
    prefix = _common_prefix(missing, unexpected)
    if prefix:
        setting = f"{role}.strip" if role else "strip"
        remedy = f"every name has the prefix {prefix!r}: take it off with {setting}={prefix}"
    return CheckpointCorrupt(what, f"does not fit the model: {'; '.join(parts)}", remedy=remedy)


def _common_prefix(missing: list[str], unexpected: list[str]) -> str:
    """The prefix that turns every missing name into an unexpected one; empty if there is none."""
    if not missing or not unexpected:
        return ""
    there = set(unexpected)
    for name in unexpected:
        if name.endswith("." + missing[0]):
            prefix = name[: -len(missing[0])]
            if all(prefix + m in there for m in missing):
                return prefix
    return ""
