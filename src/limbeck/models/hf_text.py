"""Encoders of transformers for text: with a head for classes or for words, or alone where only the encoder is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.role import Contract
from limbeck.grammar.task import Task
from limbeck.models.adapting import adapt, names_by_id
from limbeck.models.pretrained import low_rank
from limbeck.tasks.causal import transformers_library
from limbeck.tasks.tokenized import positions_of
from limbeck.tasks.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from limbeck.models.huggingface import HuggingFace


def text_model(model: HuggingFace, task: Task, needs: Needs) -> Built:
    """The network for a task on tokens; its tokenizer becomes the task's, or must agree with it.

    For masked words a folder that holds no head for words gives its encoder alone: enough for methods that compare what
    is inside. For classes a head that knows every class of the task is kept, and any other replaced.
    """
    transformers = transformers_library("an encoder of transformers")
    text = needs.tokens
    assert text is not None
    model.notes = []
    place = model._place()
    config: Any = _config(model, transformers, place)
    model.tokenizer = load_tokenizer(place, **model._options())
    text.adopt(model.tokenizer, f"hf:{model.name}")
    longest = positions_of(config)
    if longest is not None:
        text.limit(longest, f"hf:{model.name}")
    named = [str(name) for name in config.architectures or ()]
    module: Any
    more: dict[str, Any]
    if needs.form == "hidden-tokens":
        whole = any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in named)
        learns = model.role == "student" and not whole  # whoever is trained alone must tell words
        auto = "AutoModelForMaskedLM" if whole or learns else "AutoModel"
        more = {} if whole else _unpooled(config)
        if learns:  # what the folder holds beyond the encoder is left out, and said
            more = {"is_decoder": False} if model.pretrained else {}
        module = _made(model, transformers, place, auto, "an encoder of text", config, more, learns)
        if learns:
            model.notes.append("it holds no head for words: a new one is put on it")
        elif not whole:
            model.notes.append("it holds no head for words: it is taken as an encoder alone")
        model._checkpoint(module)
        if model.lora is not None:
            module = low_rank(module, model.lora, model.lora_alpha)
        return Built(module, Contract(), None, model, model.notes)
    outputs = needs.outputs
    model.target = needs.target
    given = model._given() or names_by_id(config.id2label)
    has_head = model.pretrained and any("ForSequenceClassification" in name for name in named)
    own = model._keeps([given] if given else [], list(needs.names)) if has_head else None
    unnamed = has_head and given is None and model.head == "auto" and config.num_labels == outputs
    kept = own is not None or unnamed
    model._ready = kept or model.checkpoint is not None
    more = {} if kept else {"num_labels": outputs}
    module = _made(
        model, transformers, place, "AutoModelForSequenceClassification", "a classifier of text", config, more, not kept
    )
    if not kept:
        model._new_head(config.num_labels if has_head else 0, outputs)
    model._checkpoint(module)
    built = Built(module, Contract(), own, model, model.notes)
    adapt(built, needs, int(module.config.num_labels), {}, f"hf:{model.name}")
    if model.lora is not None:
        built.module = low_rank(module, model.lora, model.lora_alpha, task_type="SEQ_CLS")
    task.rehearse(built)
    return built


def _config(model: HuggingFace, transformers: Any, place: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(place, **model._options())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise model._wanted(place, "AutoModel", "an encoder of text").refused(error) from None


def _unpooled(config: Any) -> dict[str, Any]:
    """Without the layer that BERT puts on its first token: nothing here asks it, so that nothing would train it."""
    return {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta", "electra") else {}


def _made(
    model: HuggingFace,
    transformers: Any,
    place: str,
    auto: str,
    what: str,
    config: Any,
    more: dict[str, Any],
    new_head: bool = False,
) -> nn.Module:
    """The module: with the folder's weights, or its architecture with new ones."""
    wanted = model._wanted(place, auto, what)
    if model.pretrained:
        if new_head:
            wanted.head = _new(transformers, auto, config, more)
        elif "add_pooling_layer" in more:
            wanted.head = {"pooler.dense.weight", "pooler.dense.bias"}
        return model._loaded(place, wanted, **more)
    config = type(config).from_dict(
        {**config.to_dict(), **({"num_labels": more["num_labels"]} if "num_labels" in more else {})}
    )
    made: nn.Module = getattr(transformers, auto).from_config(config, **_only(more))
    return made if model.dtype == "auto" else made.to(getattr(torch, model.dtype))


def _only(more: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in more.items() if k != "num_labels"}


def _new(transformers: Any, auto: str, config: Any, more: dict[str, Any]) -> set[str]:
    """Names of all that a classifier has beyond its encoder; the encoder's own pooler is there in most folders."""
    with torch.device("meta"):
        whole = getattr(transformers, auto).from_config(config)
    prefix = f"{whole.base_model_prefix}."
    return {n for n in whole.state_dict() if not n.startswith(prefix) or ".pooler." in n}


__all__ = ["text_model"]
