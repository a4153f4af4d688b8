"""What class names mean: tables of text embeddings, a CLIP's text tower, or directions that are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.items import as_path
from limbeck.data.masks import read_classes
from limbeck.data.names import some
from limbeck.errors import DataError, nearest, require
from limbeck.functional.regions import unit
from limbeck.grammar.random import Draws
from limbeck.storage.plain import read_json


def drawn_vocabulary(labels: Sequence[str], dim: int) -> Tensor:
    """A direction for each name, the same wherever that name occurs: float32 [C, dim] of unit length."""
    return unit(torch.cat([Draws(0, ("vocabulary", n)).randn("text", 1, (dim,)) for n in labels]))


def read_vocabulary(
    path: str,
    labels: Sequence[str],
    names: str | Sequence[str] | None,
    prompts: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Tensor, list[str]]:
    """The embeddings of class names, float32 [C, D] of unit length, and what is to be said of them.

    Args:
        path: a table, or the folder of a CLIP of transformers.
        labels: the classes.
        names: of a table's rows: themselves, or a file of them. A name that occurs several times (synonyms) is averaged.
        prompts: sentences for a CLIP.
        synonyms: further names of classes; the embeddings of all names of a class are averaged.

    Raises:
        DataError: it cannot be read, names are missing, or an embedding is zero or not finite: the class is named.
    """
    root = as_path(path, "task.text")
    if not root.exists():
        raise DataError(
            "task.text", "there is no such file", given=path, expected="a table of embeddings, or a CLIP's folder"
        )
    called = [[n, *(s for s in (synonyms or {}).get(n, ()) if _plain(s) != _plain(n))] for n in labels]
    if root.is_dir():
        found = _clip(root, called, prompts)
        more = f", {sum(map(len, called)) - len(called)} synonyms" if synonyms else ""
        return _checked(found, labels, path), [
            f"class names embedded by the text tower of {path} ({len(prompts)} prompts{more})"
        ]
    rows, own = _table(root)
    if names is not None:
        own = list(names) if not isinstance(names, str) else _listed(as_path(names, "task.text_names"))
    if own is None:
        raise DataError("task.text", "its rows have no names", given=path, remedy="name them with task.text_names")
    if len(own) != len(rows):
        raise DataError("task.text_names", given=f"{len(own)} names", expected=f"{len(rows)}, one a row of {path}")
    at: dict[str, list[int]] = {}
    for i, n in enumerate(own):
        at.setdefault(_plain(n), []).append(i)
    if lacking := [all_names[0] for all_names in called if not any(_plain(n) in at for n in all_names)]:
        close = nearest(lacking[0], own, 3)
        raise DataError(
            "task.text",
            f"has no embedding of {some(lacking)}",
            expected="a row for every class",
            remedy=f"nearest to {lacking[0]!r}: {', '.join(close)}" if close else "",
        )
    places = [[i for n in dict.fromkeys(map(_plain, all_names)) for i in at.get(n, ())] for all_names in called]
    said = []
    if synonyms and (unknown := [s for c in called for s in c[1:] if _plain(s) not in at]):
        said.append(f"{path} has no embedding of {len(unknown)} synonyms: {some(unknown)}")
    return _checked(torch.stack([unit(rows[place].float()).mean(0) for place in places]), labels, path), said


def read_synonyms(given: str | Mapping[str, Sequence[str]], labels: Sequence[str]) -> dict[str, list[str]]:
    """Further names of classes: a mapping of class to names, or a JSON file of one, or of COCO's or LVIS's ``categories``
    (a list of ``name`` and ``synonyms``).

    Raises:
        DataError: it cannot be read, or names a class that there is not.
    """
    found: Any = given
    if isinstance(given, str):
        try:
            found = read_json(as_path(given, "task.synonyms"))
        except (OSError, ValueError) as error:
            raise DataError("task.synonyms", f"cannot be read: {error}", given=given) from None
        listed = found.get("categories") if isinstance(found, Mapping) else found
        if isinstance(listed, list) and all(isinstance(c, Mapping) and "name" in c for c in listed):
            found = {str(c["name"]): c.get("synonyms") or [] for c in listed}
            found = {n: s for n, s in found.items() if n in labels}  # a file of a whole data set names more
    good = isinstance(found, Mapping) and all(
        isinstance(s, Sequence) and not isinstance(s, str) and all(isinstance(n, str) for n in s)
        for s in found.values()
    )
    if not good:
        raise DataError(
            "task.synonyms",
            given=str(given)[:80],
            expected="a list of further names for a class: {CLASS: [NAME, NAME]}",
        )
    if strange := [n for n in found if n not in labels]:
        raise DataError("task.synonyms", f"there is no class {some(strange)}", expected=some(list(labels), 20))
    return {str(n): [s.replace("_", " ") for s in names] for n, names in found.items()}


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _checked(rows: Tensor, labels: Sequence[str], path: str) -> Tensor:
    good = torch.isfinite(rows).all(1) & (rows.norm(dim=1) > 1e-8)
    if not bool(good.all()):
        bad = [n for n, g in zip(labels, good.tolist(), strict=True) if not g]
        raise DataError(
            "task.text", f"the embedding of {some(bad)} is zero or not finite: it has no direction", given=path
        )
    return unit(rows.float())


def _listed(path: Path) -> list[str]:
    """Names of a file: a list, or a list of objects with ``name``."""
    if path.suffix.lower() == ".json":
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            raise DataError(str(path), f"cannot be read: {error}") from None
        if isinstance(found, list) and found and isinstance(found[0], dict) and "name" in found[0]:
            return [str(n["name"]) for n in found]
    return read_classes(path)[0]


def _table(path: Path) -> tuple[Tensor, list[str] | None]:
    kind = path.suffix.lower()
    try:
        if kind == ".npy":
            rows, own = np.load(path, allow_pickle=False), None
        elif kind == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                found = {k: stored[k] for k in stored.files}
            wide = [k for k, v in found.items() if v.ndim == 2 and v.dtype.kind == "f"]
            named = [k for k, v in found.items() if v.ndim == 1 and v.dtype.kind in "US"]
            if len(wide) != 1:
                raise ValueError("expected one array [names, width] of embeddings")
            rows, own = found[wide[0]], [str(n) for n in found[named[0]]] if named else None
        elif kind == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
            rows, own = torch.stack([t.flatten() for t in tensors.values()]).float().numpy(), list(tensors)
        elif kind == ".json":
            mapping = read_json(path)
            rows, own = np.asarray(list(mapping.values()), dtype=np.float32), [str(n) for n in mapping]
        else:
            raise ValueError("it is no .npz, .npy, .json or .safetensors")
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2:
            raise ValueError(f"it holds an array {list(rows.shape)}, and not one row a name")
    except Exception as error:
        raise DataError("task.text", f"cannot be read: {' '.join(str(error).split())[:200]}", given=str(path)) from None
    return torch.from_numpy(rows), own


def _clip(folder: Path, called: Sequence[Sequence[str]], prompts: Sequence[str]) -> Tensor:
    transformers = require("transformers", "language", "the text tower of a CLIP")
    try:
        model: Any = transformers.CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise DataError("task.text", f"is no folder of a CLIP: {text}", given=str(folder)) from None
    found = []
    with torch.no_grad():
        for names in called:
            texts = [p.replace("{}", name) for name in names for p in prompts]
            said = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            pooled = model.eval().text_model(said.input_ids, said.attention_mask).pooler_output
            found.append(unit(model.text_projection(pooled).float()).mean(0))
    return torch.stack(found)


__all__ = ["drawn_vocabulary", "read_synonyms", "read_vocabulary"]
