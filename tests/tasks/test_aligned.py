"""Two spellings of a text: where tokens end, which positions are pairs, and which tokens are the same text."""

from __future__ import annotations

import inspect
import os
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from limbeck.data.text import Document, TextSource  # noqa: E402
from limbeck.errors import ConfigError, DataError, TeacherMismatch  # noqa: E402
from limbeck.tasks.aligned import AlignedRows  # noqa: E402
from limbeck.tasks.language import Language  # noqa: E402
from limbeck.tasks.offsets import BYTE, Ends, classes_of, token_texts  # noqa: E402
from limbeck.tasks.tokens import Lines  # noqa: E402

_TEXTS: dict[int, dict[int, bytes]] = {}
ODD = "naïve 東京 🙂🏽 café\n\tx  =  1"


@cache
def spelled(kind: str, size: int, seed: int) -> Any:
    """A tokenizer trained on a half of the source of ``textwrap``: ``bytes`` as GPT-2's, ``pieces`` as Llama's."""
    lines = inspect.getsource(textwrap).splitlines(keepends=True)[seed::2]
    ends = {"eos_token": f"<end{seed}>", "pad_token": "<pad>"}
    if kind == "bytes":
        core = tokenizers.Tokenizer(tokenizers.models.BPE())
        core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = tokenizers.decoders.ByteLevel()
        more = {"initial_alphabet": sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())}
    else:
        core = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        core.decoder = tokenizers.decoders.Sequence(
            [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
        )
        more = {}
        ends |= {"bos_token": "<s>", "unk_token": "<unk>"}
    special = [*ends.values(), *([f"<0x{b:02X}>" for b in range(256)] if kind == "pieces" else [])]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size + (256 if kind == "pieces" else 0), special_tokens=special, show_progress=False, **more
    )
    core.train_from_iterator(lines, trainer)
    if kind == "pieces":
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **ends)


class Code(TextSource):
    """Pieces of Python's source with odd characters, alone or as answers."""

    def __init__(self, prompts: bool = False, turns: bool = False, text: str = ODD) -> None:
        self.prompts, self.turns, self.text = prompts, turns, text

    def read(self) -> dict[str, list[Document]]:
        lines = inspect.getsource(textwrap.TextWrapper).splitlines()
        made = []
        for i in range(30):
            text = "\n".join([*lines[6 * i : 6 * i + 6], f"{i} {self.text}"])
            turns = (("user", f"ask {i}"), ("assistant", text), ("user", "more"), ("assistant", f"no {i}."))
            made.append(Document(text, f"tell me {i}" if self.prompts else "", turns if self.turns else ()))
        return {"all": made}


def two(one: Any, other: Any, **more: Any) -> tuple[Language, Language]:
    """A task, and the same as a teacher with another tokenizer has it."""
    task = Language(**{"data": Code(), "length": 24, **more})
    task.load(0)
    task.adopt(one, "one")
    task.mark_ends(1)
    theirs = task.part("teacher")
    assert isinstance(theirs, Language)
    theirs.adopt(other, "other")
    theirs.mark_ends(2)
    return task, theirs


def bytes_read(tokenizer: Any, ids: list[int]) -> bytes:
    """What tokens spell, one after the other."""
    known = _TEXTS.setdefault(id(tokenizer), token_texts(tokenizer))
    return b"".join(known.get(i, b"") for i in ids)


KINDS = [("bytes", "bytes"), ("bytes", "pieces"), ("pieces", "bytes")]


@pytest.mark.parametrize(("kind", "other"), KINDS)
@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_pairs_have_read_the_same_text(kind: str, other: str, packing: str) -> None:
    one, two_ = spelled(kind, 330, 0), spelled(other, 520, 1)
    task, theirs = two(one, two_, packing=packing)
    rows = AlignedRows(task.train, theirs)
    batch = rows.fetch(torch.arange(len(rows)))
    assert batch["teacher_ids"].shape == batch["teacher_mask"].shape == (len(rows), rows.width)
    assert torch.equal(batch["input_ids"], task.train.fetch(torch.arange(len(rows)))["input_ids"])
    seen = 0
    for i in range(len(rows)):
        ids, more, pair = (batch[n][i].tolist() for n in ("input_ids", "teacher_ids", "pair"))
        real = int(batch["attention_mask"][i].sum())
        assert all(p < int(batch["teacher_mask"][i].sum()) for p in pair) and all(p < 0 for p in pair[real:])
        done = -1
        base: tuple[bytes, bytes] | None = None
        for k, p in enumerate(pair):
            if p < 0:
                continue
            assert p > done
            mine, his = bytes_read(one, ids[: k + 1]), bytes_read(two_, more[: p + 1])
            # what a row begins with may differ by part of a token, and by the blank that sentencepiece sets before a text
            if base is None:
                base = mine, his
            short, long = sorted((mine[len(base[0]) :], his[len(base[1]) :]), key=len)
            assert long.replace(b" ", b"") == short.replace(b" ", b"")
            done, seen = p, seen + 1
    assert seen == int((batch["pair"] >= 0).sum()) and 0.3 < rows.paired / rows.counted < 1
    assert f"{rows.paired:,} of {rows.counted:,}" in rows.told()


def test_every_pair_that_there_is_is_found() -> None:
    """Against a loop over prefixes of one document, ends of characters cut in two included."""
    one, other = spelled("bytes", 300, 0), spelled("bytes", 520, 1)
    task, theirs = two(one, other, packing="pad", length=400)
    rows = AlignedRows(task.train, theirs)
    document = task.train.documents[0]
    own, his = (t(document.text, add_special_tokens=False)["input_ids"] for t in (one, other))
    ends = [[len(bytes_read(t, ids[: k + 1])) for k in range(len(ids))] for t, ids in ((one, own), (other, his))]
    wanted = [ends[1].index(e) if e in ends[1] else -1 for e in ends[0]]
    pair = rows.fetch(torch.tensor([0]))["pair"][0].tolist()
    assert pair[: len(own)] == wanted and pair[len(own)] == len(his)  # the end tokens are a pair
    assert -1 in wanted


def test_one_tokenizer_pairs_everything_with_itself() -> None:
    one = spelled("bytes", 330, 0)
    for packing in ("pack", "pad"):
        task, theirs = two(one, one, packing=packing)
        batch = AlignedRows(task.train, theirs).fetch(torch.arange(len(task.train)))
        real = batch["attention_mask"].bool()
        at = torch.arange(24).expand(len(real), -1)
        # a row that the packed text fills to its last token ends where the next text begins, or does not
        assert torch.equal(batch["pair"][real], at[real])
        assert torch.equal(batch["teacher_ids"][:, :24][real], batch["input_ids"][real])


def test_answers_are_paired_whatever_a_template_writes_before_them() -> None:
    one, other = (transformers.PreTrainedTokenizerFast(
        tokenizer_object=t.backend_tokenizer, eos_token=t.eos_token, pad_token="<pad>"
    ) for t in (spelled("bytes", 330, 0), spelled("bytes", 520, 1)))  # fmt: skip
    other.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    task, theirs = two(one, other, data=Code(True), length=400, loss_on="response")
    rows = AlignedRows(task.train, theirs)
    batch = rows.fetch(torch.arange(len(rows)))
    assert rows.paired > 0.5 * rows.counted
    for i in range(len(rows)):
        ids, labels, pair = (batch[n][i].tolist() for n in ("input_ids", "labels", "pair"))
        for k, p in enumerate(pair):
            since = max((j for j in range(k + 1) if labels[j] == -100), default=-1)
            said = bytes_read(one, ids[since + 1 : k + 1])  # of this answer
            if p >= 0 and since < k:
                assert bytes_read(other, batch["teacher_ids"][i, : p + 1].tolist()).endswith(said)
    begins = [(batch["labels"][i] != -100).nonzero()[0, 0].item() - 1 for i in range(len(rows))]
    assert all(int(batch["pair"][i, int(k)]) >= 0 for i, k in enumerate(begins))  # the first answered token has a pair


def test_a_teacher_with_few_positions_sees_what_fits_and_that_is_told() -> None:
    task, theirs = two(spelled("bytes", 520, 1), spelled("bytes", 300, 0), packing="pad")
    theirs.limit(12, "hf:short")
    rows = AlignedRows(task.train, theirs)
    assert rows.width == 13 and rows.cut > 0 and "not seen whole" in rows.told() and task.length == 24
    assert int(rows.pair.max()) < 12


def test_ends_never_fall_and_meet_the_text() -> None:
    for kind in ("bytes", "pieces"):
        tokenizer = spelled(kind, 330, 0)
        for (ids, ends), text in zip(Ends(tokenizer, "x", 1)([ODD, "", "a"]), [ODD, "", "a"], strict=True):
            assert len(ids) == len(ends) and bool((ends[1:] >= ends[:-1]).all())
            assert not text or ends[-1] == BYTE * len(text.encode())
    task, theirs = two(spelled("pieces", 330, 0), spelled("bytes", 330, 1), data=Code(True))
    for t in (task, theirs):
        from limbeck.tasks.spelling import spell

        lines = Lines(t.train.documents, spell(t, t.train.documents, t.ends))
        assert bool((lines.ends[1:] >= lines.ends[:-1]).all())


def test_classes_are_tokens_of_the_same_text() -> None:
    one, other = spelled("bytes", 330, 0), spelled("pieces", 330, 1)
    mine, his = token_texts(one), token_texts(other)
    sizes = (len(one), len(other))
    drop, rest, prefix = (classes_of(one, other, sizes, r) for r in ("drop", "other", "prefix"))  # type: ignore[arg-type]
    assert drop.count == drop.same == rest.count - 1 and prefix.same == drop.same
    assert drop.student[one.eos_token_id] == drop.teacher[other.eos_token_id] >= 0
    partner = {int(c): j for j, c in enumerate(drop.teacher) if c >= 0}
    for i, c in enumerate(drop.student.tolist()):
        if c >= 0 and i in mine:
            assert mine[i] == his[partner[c]]
        elif c < 0 and i in mine:
            assert rest.student[i] == drop.count and mine[i] not in set(his.values())
    # by prefix nothing that is text is left out, every class has tokens of both, and they begin alike
    assert all(prefix.student[i] >= 0 for i in mine) and all(prefix.teacher[j] >= 0 for j in his)
    for c in range(prefix.count):
        a = [mine.get(i, b"") for i in (prefix.student == c).nonzero()[:, 0].tolist()]
        b = [his.get(j, b"") for j in (prefix.teacher == c).nonzero()[:, 0].tolist()]
        assert a and b and len({t[:1] for t in (*a, *b)}) == 1
    alone = classes_of(one, one, (len(one), len(one)), "drop")
    assert alone.same == len(one) and alone.plain


def test_outputs_that_no_token_has_are_in_no_class() -> None:
    one, other = spelled("bytes", 330, 0), spelled("bytes", 420, 1)
    found = classes_of(one, other, (len(one) + 7, len(other) + 100), "prefix")
    assert not (found.student[len(one) :] >= 0).any() and not (found.teacher[len(other) :] >= 0).any()


def test_tokenizers_without_places_and_texts_without_pairs_are_refused() -> None:
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(TeacherMismatch, match=r"tokenizer\.json"):
        Ends(slow, "the teacher", 2)
    task, theirs = two(spelled("bytes", 330, 0), spelled("bytes", 330, 1))
    theirs.train.documents[:] = [Document("?") for _ in theirs.train.documents]
    rows = AlignedRows(task.train, theirs)  # the student's documents are what is spelled
    assert rows.paired
    with pytest.raises(ConfigError, match="conversations"):
        AlignedRows(
            *(lambda t: (t[0].train, t[1]))(
                two(spelled("bytes", 330, 0), spelled("bytes", 330, 1), data=Code(turns=True))
            )
        )
    theirs.positions = 0
    with pytest.raises(DataError, match="end at the same byte"):
        AlignedRows(task.train, theirs)


def test_a_published_sentencepiece_tokenizer_beside_a_byte_level_one() -> None:
    """Llama's, as real stories are spelled in it, where the shared data are."""
    root = Path(os.environ.get("LIMBECK_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    folder = root / "weights" / "stories15m"
    if not folder.is_dir():
        pytest.skip(f"stories15m is not in {root}: name the folder with LIMBECK_SHARED_DATA")
    llama = transformers.AutoTokenizer.from_pretrained(folder)
    rows = AlignedRows(*(lambda t: (t[0].train, t[1]))(two(spelled("bytes", 520, 0), llama, packing="pad", length=200)))
    assert rows.paired > 0.4 * rows.counted
    found = classes_of(spelled("bytes", 520, 0), llama, (522, 32000), "prefix")
    assert found.same > 400 and not (found.teacher[3:] < 0).any()
