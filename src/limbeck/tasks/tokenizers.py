"""Tokenizers: loaded, trained on the text, and whether two of them mean the same by the same ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from limbeck.data.text import Texts
from limbeck.errors import ConfigError, TeacherMismatch, first_line, require
from limbeck.grammar.role import Contract
from limbeck.storage.plain import check_folder
from limbeck.storage.store import remembered
from limbeck.tasks.causal import needs_code, transformers_library


def load_tokenizer(name: str, **options: Any) -> Any:
    """A tokenizer of the Hub or of a local folder, with a readable error where there is none."""
    transformers = transformers_library("tokenizers of the Hugging Face Hub")
    check_folder(name, "task.tokenizer")
    try:
        return transformers.AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **options})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise needs_code("task.tokenizer", name) from None
        raise ConfigError(
            "task.tokenizer",
            f"transformers cannot load it: {first_line(error)}",
            given=name,
            remedy="give a Hub id or a folder with tokenizer.json; offline, the id must be in the local cache",
        ) from None


def byte_pairs(texts: Texts, vocab_size: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) trained on the training split, kept in the workspace.

    It ends documents with ``<|end|>`` (id 0) and pads with ``<|pad|>`` (id 1); every text has a spelling in it.
    """
    transformers = transformers_library("language models")
    tokenizers = require("tokenizers", "language", "training a tokenizer")
    level = tokenizers.pre_tokenizers.ByteLevel

    def train() -> dict[str, str]:
        core = tokenizers.Tokenizer(tokenizers.models.BPE())
        core.pre_tokenizer = level(add_prefix_space=False)
        core.decoder = tokenizers.decoders.ByteLevel()
        spelled = [f"{d.prompt}\n{d.text}" if d.prompt else d.text for d in texts.train]
        # a text has no more pieces than bytes, and the library takes memory for all that it is told
        most = 258 + sum(len(text.encode("utf-8", "replace")) for text in spelled)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=min(vocab_size, most),
            special_tokens=["<|end|>", "<|pad|>"],
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        core.train_from_iterator(spelled, trainer)
        return {"tokenizer": core.to_str()}

    documents = hashlib.blake2b(digest_size=16)
    for document in texts.train:
        documents.update(document.key.encode())
    parts = {"format": 1, "vocab_size": vocab_size, "documents": documents.hexdigest()}
    core = tokenizers.Tokenizer.from_str(remembered("tokenizer", parts, train)["tokenizer"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def text_steps(tokenizer: Any, length: int, contract: Contract) -> dict[str, Any]:
    """How a text becomes a network's input, as plain values; the tokenizer itself lies in ``folder``, where it is written."""
    return {
        "kind": "text",
        "tokenizer": {
            "folder": "student",
            "class": type(tokenizer).__name__,
            "vocabulary": vocabulary_size(tokenizer),
            "max_length": length,
            "truncation": "right",
            "padding": "longest",
            "padding_side": "right",
            "pad_token_id": pad_id(tokenizer),
        },
        **contract.as_config(),
    }


PROBES = (
    "Hello, world! It's 2025; isn't it?",
    "  indented\n\n\tand   spaced  text ",
    'def f(x: int) -> str:\n    return f"{x!r}"  # 1_000.5e-3',
    "naïve café, Straße, 東京, Ω≈3.14, 🙂🏽",
    "https://example.org/a?b=c&d=%20",
)


def shared_ids(one: Any, two: Any, whose: str, other: str, probes: Sequence[str] = ()) -> int:
    """How many token ids two tokenizers share, from 0 on: all, where they are the same; fewer, where one has more.

    Raises:
        TeacherMismatch: an id means two tokens, a token has two ids, or text is cut differently.
    """
    a, b = one.get_vocab(), two.get_vocab()
    names_a, names_b = ({i: t for t, i in v.items()} for v in (a, b))
    clash = next(((i, t, names_b[i]) for i, t in sorted(names_a.items()) if i in names_b and names_b[i] != t), None)
    moved = next(((t, i, b[t]) for t, i in a.items() if t in b and b[t] != i), None)
    if clash is not None or moved is not None:
        if clash is not None:
            said = f"id {clash[0]} is {clash[1]!r} for {whose} and {clash[2]!r} for {other}"
        else:
            assert moved is not None
            said = f"{moved[0]!r} is id {moved[1]} for {whose} and {moved[2]} for {other}"
        raise TeacherMismatch("tokenizer", f"{said} ({len(a)} and {len(b)} tokens)", remedy=_ACROSS)
    for probe in (*PROBES, *probes):
        cut = [t(probe, add_special_tokens=False, verbose=False)["input_ids"] for t in (one, two)]
        if cut[0] != cut[1]:
            raise TeacherMismatch(
                "tokenizer",
                f"{whose} and {other} have the same tokens, but cut text differently "
                f"({one.convert_ids_to_tokens(cut[0])[:6]} and {two.convert_ids_to_tokens(cut[1])[:6]})",
                given=probe[:60],
                remedy=_ACROSS,
            )
    both = names_a.keys() & names_b.keys()
    return next((i for i in range(len(both) + 1) if i not in both), 0) if both else 0


_ACROSS = (
    "token by token they cannot be compared: set method.alignment=bytes (token-kd, taid), which pairs positions by the text "
    "they have read; or take two models of one family, train the student from scratch on the teacher's tokenizer "
    "(task.tokenizer=ID student=causal-lm), or use MiniPLM"
)


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What stands before and after a document: the start token if the tokenizer sets one itself, and the end token."""
    own = tokenizer("", verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    return ([bos] if bos is not None and own[:1] == [bos] and bos != eos else []), ([eos] if eos is not None else [])


def pad_id(tokenizer: Any) -> int:
    """What rows are filled up with: the padding token, else the end token, else 0."""
    return int(next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0))


def vocabulary_size(tokenizer: Any) -> int:
    """How many token ids a tokenizer has: the largest and one."""
    return int(max(tokenizer.get_vocab().values())) + 1


MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""What stands around an encoder's text, fills it up, and takes the place of a hidden word."""


def word_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE for encoders, trained on some texts and kept in the workspace: ``<s> text </s>``, with ``<mask>``."""
    transformers = transformers_library("encoders")
    tokenizers = require("tokenizers", "language", "training a tokenizer")
    level = tokenizers.pre_tokenizers.ByteLevel

    def train() -> dict[str, str]:
        core = tokenizers.Tokenizer(tokenizers.models.BPE())
        core.pre_tokenizer = level(add_prefix_space=True)
        core.decoder = tokenizers.decoders.ByteLevel()
        most = 256 + len(MARKS) + sum(len(text.encode("utf-8", "replace")) for text in texts)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=min(vocab_size, most),
            special_tokens=list(MARKS),
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        ends = [(mark, core.token_to_id(mark)) for mark in ("<s>", "</s>")]
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
        )
        return {"tokenizer": core.to_str()}

    content = hashlib.blake2b(digest_size=16)
    for text in texts:
        content.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    parts = {"format": 1, "vocab_size": vocab_size, "texts": content.hexdigest(), "marks": list(MARKS)}
    core = tokenizers.Tokenizer.from_str(remembered("tokenizer", parts, train)["tokenizer"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )
