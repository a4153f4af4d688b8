"""The folders of sentence-transformers, read and written without that library.

``modules.json`` lists the parts in their order: a transformers model (in the folder itself, or in one of its own), pooling,
dense layers, normalisation. What is written opens in sentence-transformers 2.3 and later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from limbeck.errors import CheckpointCorrupt, ConfigError, first_line
from limbeck.networks.embedder import ACTIVATIONS, POOLS, DenseLayer, Embedder, Pool
from limbeck.storage.foreign import find_weights
from limbeck.storage.plain import read_json
from limbeck.storage.store import atomic_folder, save_state_dict
from limbeck.storage.weights import load_strict

OLD: Final[dict[str, Pool]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The flags of a pooling's configuration, in the order in which several are put behind each other."""

UNPOOLED: Final = ("bert", "roberta", "xlm-roberta", "mpnet")
"""Types of encoders whose layer on the first token is left out: no vector comes of it, and nothing would train it."""


@dataclass
class Layout:
    """What a folder says beside the weights of its encoder.

    Attributes:
        body: where the transformers model lies.
        pooling: see `limbeck.networks.embedder.pooled`.
        dense: layers behind it, with their weights.
        normalise: whether vectors have a length of one.
        length: tokens in a row, at most; ``None``: as many as the tokenizer or the encoder says.
        lower: texts are put into lower case before they are cut into tokens.
        prompt: what stands before each text.
        similarity: ``cosine`` or ``dot``, or what else the folder names.
        notes: what is there and not used.
    """

    body: Path
    pooling: tuple[Pool, ...] = ("mean",)
    dense: list[DenseLayer] = field(default_factory=list)
    normalise: bool = False
    length: int | None = None
    lower: bool = False
    prompt: str = ""
    similarity: str = "cosine"
    notes: list[str] = field(default_factory=list)


def is_folder(place: Path) -> bool:
    """Whether a folder is one of sentence-transformers'."""
    return (place / "modules.json").is_file()


def read_layout(place: Path, role: str = "") -> Layout:
    """The parts of a folder. One that is a transformers model alone is taken with mean pooling, as that library does.

    Raises:
        CheckpointCorrupt: a file of it cannot be read, or weights of a dense layer are missing.
        ConfigError: it has a part that is not known here.
    """
    if not is_folder(place):
        found = Layout(place)
        found.notes.append("no modules.json lies in it: its token vectors are pooled by their mean")
        return found
    modules = _json(place / "modules.json", list)
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules if isinstance(m, Mapping)]
    behind = kinds[kinds.index("Normalize") :] if "Normalize" in kinds else []
    known = kinds[:2] == ["Transformer", "Pooling"] and set(kinds[2:]) <= {"Dense", "Normalize", "Dropout"}
    if not known or "Dense" in behind:
        raise ConfigError(
            "name",
            f"its parts are {', '.join(kinds) or 'none'}",
            given=str(place),
            expected="a Transformer, Pooling, then Dense layers, then Normalize or not",
        )
    paths = [place / str(m.get("path") or "") for m in modules]
    found = Layout(paths[0], normalise="Normalize" in kinds)
    about = _json(paths[0] / "sentence_bert_config.json", dict, {})
    found.length = int(about["max_seq_length"]) if about.get("max_seq_length") else None
    found.lower = bool(about.get("do_lower_case"))
    if about.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise ConfigError("name", "its encoder is called for something else than vectors of tokens", given=str(place))
    found.pooling = _pooling(paths[1] / "config.json")
    for kind, path in zip(kinds, paths, strict=True):
        if kind == "Dense":
            found.dense.append(_dense(path, role))
    said = _json(place / "config_sentence_transformers.json", dict, {})
    found.similarity = str(said.get("similarity_fn_name") or "cosine")
    prompts = {k: v for k, v in (said.get("prompts") or {}).items() if v}
    default = said.get("default_prompt_name")
    if default is not None:
        found.prompt = str(prompts.pop(default, ""))
    if prompts:
        found.notes.append(f"its prompts {', '.join(sorted(prompts))} are put before no text: they are no default")
    return found


def _json(path: Path, kind: type, missing: Any = None) -> Any:
    if missing is not None and not path.is_file():
        return missing
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointCorrupt(str(path), f"cannot be read: {first_line(error)}") from None
    if not isinstance(found, kind):
        raise CheckpointCorrupt(str(path), f"is no {'list of parts' if kind is list else 'mapping'}")
    return found


def _pooling(path: Path) -> tuple[Pool, ...]:
    about = _json(path, dict)
    said = about.get("pooling_mode", [how for flag, how in OLD.items() if about.get(flag)])
    modes = tuple([said] if isinstance(said, str) else said) or ("mean",)
    odd = [m for m in modes if m not in POOLS]
    if odd or about.get("include_prompt") is False:
        raise ConfigError(
            "name",
            f"{path} pools " + (f"by {', '.join(map(str, odd))}" if odd else "without the tokens of a prompt"),
            expected=f"one or more of {', '.join(POOLS)}, over all tokens",
        )
    return modes


def _dense(path: Path, role: str) -> DenseLayer:
    about = _json(path / "config.json", dict)
    act = str(about.get("activation_function") or next(iter(ACTIVATIONS)))
    if act not in ACTIVATIONS or about.get("use_residual"):
        raise ConfigError(
            "name",
            f"{path / 'config.json'} has "
            + ("a residual path" if about.get("use_residual") else f"the activation {act}"),
            expected=f"one of {', '.join(a.rpartition('.')[2] for a in ACTIVATIONS)}, without residual path",
        )
    try:
        layer = DenseLayer(int(about["in_features"]), int(about["out_features"]), bool(about.get("bias", True)), act)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointCorrupt(str(path / "config.json"), f"does not say its sizes: {first_line(error)}") from None
    file = next((path / n for n in ("model.safetensors", "pytorch_model.bin") if (path / n).is_file()), None)
    if file is None:
        raise CheckpointCorrupt(str(path), "holds no weights", expected="model.safetensors or pytorch_model.bin")
    load_strict(layer, find_weights(file, layer.state_dict(), role=role).state, str(file), role)
    return layer


def write_folder(
    module: Embedder, tokenizer: Any, folder: Path, length: int, similarity: str, lower: bool = False, prompt: str = ""
) -> None:
    """An embedder as a folder of sentence-transformers: complete or not there at all.

    Args:
        module: the network.
        tokenizer: its own.
        folder: where to.
        length: tokens in a row, at most.
        similarity: ``cosine`` or ``dot``.
        lower, prompt: see `Layout`.
    """
    kinds = ["Transformer", "Pooling", *["Dense"] * len(module.dense), *["Normalize"] * module.normalise]
    parts = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    config: Any = module.body.config
    pooling = {flag: how in module.pooling for flag, how in OLD.items()}
    with atomic_folder(folder) as place:
        module.body.save_pretrained(place)  # type: ignore[operator]
        tokenizer.save_pretrained(place)
        _write(place / "modules.json", parts)
        about: dict[str, Any] = {"max_seq_length": length, "do_lower_case": lower}
        if config.model_type in UNPOOLED:
            about["model_args"] = {"add_pooling_layer": False}  # or the library says that weights are missing
        _write(place / "sentence_bert_config.json", about)
        prompts = {"default": prompt} if prompt else {}
        _write(
            place / "config_sentence_transformers.json",
            {
                "prompts": prompts,
                "default_prompt_name": "default" if prompt else None,
                "similarity_fn_name": similarity,
            },
        )
        (place / "1_Pooling").mkdir()
        width = int(config.hidden_size)
        _write(place / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
        for i, layer in enumerate(module.dense, 2):
            assert isinstance(layer, DenseLayer)
            at = place / f"{i}_Dense"
            at.mkdir()
            about = {"in_features": layer.linear.in_features, "out_features": layer.linear.out_features}
            about |= {"bias": layer.linear.bias is not None, "activation_function": layer.activation}
            _write(at / "config.json", about)
            save_state_dict(at / "model.safetensors", layer.state_dict())


def _write(path: Path, what: Any) -> None:
    path.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")


__all__ = ["UNPOOLED", "Layout", "is_folder", "read_layout", "write_folder"]
