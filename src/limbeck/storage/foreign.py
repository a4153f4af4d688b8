"""Weights of foreign origin: files read without running anything in them, and brought under a network's own names.

What others save is seldom the bare weights: a training checkpoint holds them under an entry, DataParallel, torch.compile
and Lightning put a prefix before every name, averages lie beside the weights they average. All of that is taken off here,
and said, so that what is loaded is what was meant, or nothing is.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import CheckpointCorrupt
from limbeck.storage.disk import StrPath, corrupt, storing
from limbeck.storage.weights import load_state_dict, same_memory, some

_log = logging.getLogger("limbeck")

_INDEXED = ("model.safetensors", "diffusion_pytorch_model.safetensors", "student.safetensors")
_PICKLED = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")

_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "student")
"""Entries of training checkpoints that hold the weights, the likeliest first."""

_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch's wrappers put into names: before all of them, or in the middle where a part alone is wrapped."""

_WRAPS = ("model", "module", "_forward_module", "online_model", "ema", "ema_model", "model_ema", "averaged_model")
"""Parts of names under which a wrapper keeps the whole network: Lightning, DataParallel, Fabric, averages of weights."""

_COUNTERS = ("n_averaged", "initted", "step", "num_updates", "decay")
"""Single numbers that averages of weights keep beside them."""


@dataclass
class Found:
    """Weights as they were found in a file.

    Attributes:
        path: the file.
        state: name -> tensor on the CPU; names that shared a tensor share it.
        of: how many tensors the entry holds, those included that are no part of the network.
        said: what was taken, taken off and left out, in words.
        other: the setting that takes another model that the file holds; empty where it holds one.
    """

    path: Path
    state: dict[str, Tensor]
    of: int
    said: list[str] = field(default_factory=list)
    other: str = ""

    def __str__(self) -> str:
        return "; ".join([f"loaded {len(self.state)} of {self.of} tensors of {self.path}", *self.said])


def load_foreign(
    path: StrPath, *, entry: str | None = None, strip: str = "", say: Callable[[str], None] | None = None
) -> dict[str, Tensor]:
    """Load weights from a file or folder of unknown origin; nothing in it is executed.

    Read are: ``.safetensors``, also sharded (``.index.json``); ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` through
    ``torch.load(weights_only=True)``; a folder with one of them under its usual name. Wrappers such as
    ``{"state_dict": ...}`` and prefixes that every name has (``module.``, ``_orig_mod.``) are taken off, and said so.

    Args:
        path: file or folder.
        entry: the entry of a training checkpoint that holds the weights (``model_ema``); found by itself if not given.
        strip: a prefix to take off (``net.`` of a Lightning module's network); names without it are left out.
        say: called with a sentence for each thing that was taken off; by default the ``limbeck`` logger.

    Returns:
        name -> tensor on the CPU; names that shared a tensor share it.

    Raises:
        CheckpointCorrupt: missing, truncated, or made of pickled objects; the text says how to convert it.

    Example:
        ``load_foreign("resnet18.pth")`` · ``load_foreign("run/last.ckpt", strip="model.")``
    """
    found = find_weights(path, entry=entry, strip=strip)
    for sentence in found.said:
        (say or _log.info)(f"{found.path}: {sentence}")
    return found.state


def find_weights(
    path: StrPath,
    own: Mapping[str, Tensor] | None = None,
    *,
    entry: str | None = None,
    strip: str = "",
    role: str = "",
) -> Found:
    """The weights in a file or folder of unknown origin that fit a network's names best. See `load_foreign`.

    Args:
        path: file or folder.
        own: the network's own state dict, by which entry and prefix are found; without it, by their usual names.
        entry: the entry that holds the weights; ``None`` finds it.
        strip: a prefix to take off; names without it are left out.
        role: who loads them (``teacher``), so that messages name settings that can be typed.

    Raises:
        CheckpointCorrupt: no file, no weights in it, no such entry or prefix, or more than one choice.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    raw = _read(path)
    names = {k: v.shape for k, v in (own or {}).items() if isinstance(v, Tensor)}
    distinct = len({same_memory(v.detach()) or k for k, v in (own or {}).items() if isinstance(v, Tensor)})
    setting = f"{role}." if role else ""
    found = _entry(path, raw, names, entry, setting)
    lightning = isinstance(raw, Mapping) and "pytorch-lightning_version" in raw
    return _strip(found, names, distinct, strip, setting, lightning)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointCorrupt(str(path), "is missing", remedy="check the path")
    if path.name.endswith(".index.json"):
        return _sharded(path)
    if path.suffix == ".safetensors":
        return load_state_dict(path)
    if path.suffix in _SUFFIXES:
        return _torch_file(path)
    kinds = ", ".join((".safetensors", *_SUFFIXES))
    raise CheckpointCorrupt(
        str(path), "is of an unknown kind", expected=kinds, remedy="save the weights in one of these"
    )


def _in_folder(folder: Path) -> Path:
    for name in _INDEXED:
        for there in (folder / name, folder / f"{name}.index.json"):
            if there.is_file():
                return there
    for name in _PICKLED:
        for there in (folder / name, folder / f"{name}.index.json"):
            if there.is_file():
                return there
    found = sorted(
        p for p in folder.iterdir() if p.suffix in (".safetensors", *_SUFFIXES) and not p.name.startswith(".")
    )
    if len(found) == 1:
        return found[0]
    names = ", ".join(p.name for p in found[:20])
    raise CheckpointCorrupt(
        str(folder),
        f"holds several weight files: {names}" if found else "holds no weights",
        expected=", ".join((*_INDEXED, *_PICKLED)),
        remedy="name the file",
    )


def _sharded(index: Path) -> dict[str, Tensor]:
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(parts.values()))
        outside = [f for f in files if f != os.path.basename(f) or f in ("", ".", "..") or "\\" in f]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(index, f"is no index of weights: {error}", "download it again") from None
    if outside:
        raise corrupt(index, f"names files outside its folder: {', '.join(map(repr, outside))}", "do not use this file")
    state: dict[str, Tensor] = {}
    for name in files:
        part = index.parent / name
        state.update(load_state_dict(part) if part.suffix == ".safetensors" else _torch_file(part))
    missing = sorted(set(parts) - set(state))
    if missing:
        raise corrupt(index, f"lists tensors that its files lack: {some(missing)}", "download it again")
    return {name: state[name] for name in parts}


def _torch_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointCorrupt(str(path), "is missing", remedy="check the path")
    try:
        with warnings.catch_warnings(), storing(path, "read"):
            warnings.simplefilter("ignore")  # about old storage classes; nothing the user could mend
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({wanted[1]})" if wanted else ""
        raise CheckpointCorrupt(
            str(path),
            f"holds pickled objects{what}, which could run any code when loaded, so it is refused",
            remedy="if you trust its origin, convert it where it was made: "
            "python -c \"import torch; m = torch.load('OLD.pt', weights_only=False); "
            "torch.save(getattr(m, 'state_dict', lambda: m)(), 'weights.pt')\"",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        if "TorchScript" in str(error):
            raise CheckpointCorrupt(
                str(path),
                "is a TorchScript program, which would be run when loaded, so it is refused",
                remedy="convert it: torch.save(torch.jit.load('OLD.pt').state_dict(), 'weights.pt')",
            ) from None
        raise CheckpointCorrupt(
            str(path), f"is truncated or no file of torch.save: {first}", remedy="download or save it again"
        ) from None


# ------------------------------------------------------------------------------------------------------------- entries
def _states(value: Any, place: str = "", depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in what a file holds, by its dotted place; the whole itself is ``""``."""
    if not isinstance(value, Mapping) or depth > 3 or not all(isinstance(k, str) for k in value):
        return {}
    tensors = {k: v.detach() for k, v in value.items() if isinstance(v, Tensor)}
    found = {place: tensors} if tensors else {}
    for name, inner in value.items():
        found |= _states(inner, f"{place}.{name}" if place else name, depth + 1)
    return found


def _entry(path: Path, raw: Any, names: Mapping[str, torch.Size], entry: str | None, setting: str) -> Found:
    """The entry that holds the network's weights."""
    states = _states(raw)
    if entry is not None:
        inside = {p: s for p, s in states.items() if p == entry or p.startswith(f"{entry}.")}
        if not inside:
            raise CheckpointCorrupt.unknown(f"{setting}entry", entry, [p for p in states if p], f"entry of {path}")
        states = inside
    scores = {place: max(_cover(state, names).values(), default=(0, 0)) for place, state in states.items()}
    best = max(scores.values(), default=(0, 0))
    if names and best[0]:
        fitting = [p for p in states if scores[p] == best]
    else:  # nothing to go by but what such entries are usually called
        fitting = [p for p in states if not p or p.split(".")[0] in _ENTRIES] or (
            list(states) if len(states) == 1 else []
        )
    if not fitting and states:
        raise CheckpointCorrupt(
            str(path),
            f"holds several sets of weights: {some([repr(p) for p in states])}",
            remedy=f"choose one with {setting}entry=NAME",
        )
    if not fitting:
        held = type(raw).__name__
        if isinstance(raw, Mapping):
            held = f"a mapping of {some([repr(k) for k in raw])}" if raw else "an empty mapping"
        raise CheckpointCorrupt(
            str(path), f"holds no weights but {held}", remedy="save a state dict: torch.save(model.state_dict(), PATH)"
        )
    place = min(fitting, key=_likelihood)
    said = []
    if place:
        said.append(f"its entry {place!r} is taken")
    # a copy without buffers, as averages of parameters alone are, is another model too
    others = [p for p in states if p != place and 2 * scores[p][0] > best[0]] if names else _besides(states, place)
    other = f"{setting}entry={others[0]}" if others and entry is None else ""
    if other:
        said.append(f"it also holds {some(map(repr, others))}: {other} takes that instead")
    if not place and isinstance(raw, Mapping):
        rest = [str(k) for k, v in raw.items() if not isinstance(v, Tensor)]
        if rest:
            said.append(f"left out, because they are no tensors: {some(rest)}")
    return Found(path, states[place], len(states[place]), said, other)


def _likelihood(place: str) -> tuple[bool, int]:
    """Orders entries that fit equally well: weights before their average, the usual names first."""
    head = place.split(".")[0]
    return "ema" in place.lower(), _ENTRIES.index(head) if head in _ENTRIES else len(_ENTRIES) * bool(place)


def _besides(states: Mapping[str, Mapping[str, Tensor]], place: str) -> list[str]:
    """Entries with the same names as the one that is taken."""
    return [
        p for p, state in states.items() if p != place and len(state.keys() & states[place].keys()) * 2 > len(state)
    ]


# ------------------------------------------------------------------------------------------------------------ prefixes
def _cover(state: Mapping[str, Tensor], names: Mapping[str, torch.Size]) -> dict[str, tuple[int, int]]:
    """Prefix -> how many of a network's names are found under it, and how many of those with the right shape."""
    found: dict[str, tuple[int, int]] = {}
    for name, value in state.items():
        name = _plain(name, names)
        start = 0
        while start >= 0:
            shape = names.get(name[start:])
            if shape is not None:
                count, fits = found.get(name[:start], (0, 0))
                found[name[:start]] = (count + 1, fits + (shape == value.shape))
            start = name.find(".", start) + 1 or -1
    return found


def _plain(name: str, names: Iterable[str]) -> str:
    """A name without what torch's wrappers put into it; as it is where it is the network's own."""
    if name in names:
        return name
    for part in _INFIXES:
        name = name.replace(part, "")
    return name


def _strip(
    found: Found, names: Mapping[str, torch.Size], distinct: int, strip: str, setting: str, lightning: bool
) -> Found:
    """The names of what was found brought to the network's own."""
    state = _without_infixes(found, names)
    inside = any(k.split(".")[-1] == "n_averaged" or k == "initted" for k in state)
    counters = [
        k
        for k, v in state.items()
        if inside and k.split(".")[-1] in _COUNTERS and v.numel() == 1 and not _known(k, names)
    ]
    if counters:
        found.said.append(f"it is an average of weights, whose {some(counters)} is left out")
        state = {k: v for k, v in state.items() if k not in counters}
    copies: list[str] = []
    if strip:
        prefix = strip if strip.endswith(".") else f"{strip}."
        if not any(k.startswith(prefix) for k in state):
            heads = dict.fromkeys(k.split(".")[0] + "." for k in state if "." in k)
            expected = some(heads, 20) if heads else "no prefix: its names have none"
            raise CheckpointCorrupt(
                f"{setting}strip", f"no name in {found.path} begins with it", given=strip, expected=expected
            )
    elif names:
        prefix, copies = _prefix(found.path, state, names, distinct, setting, lightning)
    else:
        prefix = ""
        while state and all(k.startswith(f"{prefix}module.") for k in state):
            prefix += "module."
    if prefix:
        found.said.append(f"prefix {prefix!r} taken off")
    for copy in copies:
        found.said.append(f"it also holds them under {copy!r}: {setting}strip={copy} takes those instead")
        found.other = found.other or f"{setting}strip={copy}"
    beside = [k for k in state if not k.startswith(prefix)]
    copied = [k for k in state if k not in names and any(k.startswith(c) for c in copies)]
    # a Lightning module holds its losses and metrics beside the network; anywhere else a name too many is a misfit
    left = [k for k in beside if k not in copied] if strip or lightning else []
    if left:
        found.said.append(f"left out: {some(left, 10)}")
    gone = {*left, *copied}
    found.state = {(k[len(prefix) :] if k.startswith(prefix) else k): v for k, v in state.items() if k not in gone}
    return found


def _without_infixes(found: Found, names: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    state = found.state
    bare = {k: _plain(k, names) for k in state}
    if len(set(bare.values())) < len(bare):  # with and without: not one network, so let the misfit be told as it is
        return state
    for part in _INFIXES:
        inside = sum(part in k and bare[k] != k for k in state)
        if inside:
            which = "every name" if inside == len(state) else f"{inside} of {len(state)} names"
            found.said.append(f"{part!r} taken off {which}")
    return {bare[k]: v for k, v in state.items()}


def _known(name: str, names: Mapping[str, torch.Size]) -> bool:
    """Whether a name is one of the network's, under whatever prefix."""
    parts = name.split(".")
    return any(".".join(parts[i:]) in names for i in range(len(parts)))


def _prefix(
    path: Path,
    state: Mapping[str, Tensor],
    names: Mapping[str, torch.Size],
    distinct: int,
    setting: str,
    lightning: bool,
) -> tuple[str, list[str]]:
    """The prefix under which the network is found, and those of further copies of it.

    Raises:
        CheckpointCorrupt: the network is there under a prefix that is no known wrapper's: the user says whether it is it.
    """
    cover = _cover(state, names)
    best = max(cover.values(), default=(0, 0))
    fitting = [p for p in cover if cover[p] == best]
    whole = best[0] >= distinct  # tied weights may lie under one of their names alone
    if not fitting or "" in fitting:
        prefix = ""
    else:
        wraps = [p for p in fitting if all(part in _WRAPS for part in p.split(".")[:-1])]
        if not wraps and 2 * best[0] > distinct and not (lightning and whole and len(fitting) == 1):
            own = next(name for name in names if fitting[0] + name in state)
            raise CheckpointCorrupt(
                str(path),
                f"has {some(map(repr, fitting), 8)} before the network's names ({fitting[0]}{own} for {own})",
                remedy=f"set {' or '.join(f'{setting}strip={p}' for p in fitting[:8])} to take it off",
            )
        prefix = min(wraps, key=lambda p: "ema" in p) if wraps else fitting[0] if whole else ""
    rest = {k: v for k, v in state.items() if not (k.startswith(prefix) and k[len(prefix) :] in names)}
    copies = [p for p, (count, _) in _cover(rest, names).items() if 2 * count > best[0] and p != prefix]
    return prefix, copies
