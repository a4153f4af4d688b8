"""The language task: what counts in a row, tokenizers that agree or not, models that come back."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from limbeck.core import store  # noqa: E402
from limbeck.core.errors import CheckpointCorrupt, ConfigError, DataError, ShapeError, TeacherMismatch  # noqa: E402
from limbeck.core.method import Built  # noqa: E402
from limbeck.core.signal import Signal  # noqa: E402
from limbeck.tasks.language import (  # noqa: E402
    CausalLm,
    HuggingFace,
    Language,
    byte_pairs,
    make_batch,
    output_size,
    shared_ids,
)
from limbeck.tasks.text import Document, TextSource, deal  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared" / "data"


class Some(TextSource):
    """A few made-up texts, or prompts with responses."""

    def __init__(self, pairs: bool = False, count: int = 60, words: int = 12) -> None:
        self.pairs, self.count, self.words = pairs, count, words

    def read(self) -> dict[str, list[Document]]:
        names = ["red", "blue", "green", "small", "large", "round", "square", "heavy", "light", "old", "new", "warm"]
        texts = [" ".join(names[(i * j + j) % 12] for j in range(1, self.words)) + f" {i}." for i in range(self.count)]
        return {"all": [Document(t, f"question {i}" if self.pairs else "") for i, t in enumerate(texts)]}


def small(**changes: Any) -> Language:
    settings = {"data": Some(), "vocab_size": 280, "length": 16, **changes}
    task = Language(**settings)  # type: ignore[arg-type]
    task.load(0)
    return task


def everything(data: Any) -> dict[str, Tensor]:
    return data.fetch(torch.arange(len(data)))


# ------------------------------------------------------------------------------------------------ rows


def test_every_token_is_predicted_exactly_once() -> None:
    task = small()
    batch = everything(task.train)
    ids = task.tokenizer([d.text for d in task.texts.train], add_special_tokens=False)["input_ids"]
    stream = [t for row in ids for t in [*row, task.tokenizer.eos_token_id]]
    predicted = batch["labels"][:, 1:][batch["where"][:, :-1]]
    assert predicted.tolist() == stream[1:]
    assert int(task.counts(batch)) == len(stream) - 1 == int(batch["where"].sum())
    assert torch.equal(batch["labels"] != -100, batch["attention_mask"].bool())
    size = sum(len(d.text.encode()) for d in task.texts.train)
    assert task.train.tokens_per_byte == len(stream) / size


def test_padded_rows_and_what_counts() -> None:
    for loss_on in ("all", "response"):
        task = small(data=Some(pairs=True, words=5), length=60, loss_on=loss_on)
        assert not task.packed
        batch = task.train.fetch(torch.tensor([0, 3]))
        document, tokenizer = task.texts.train[0], task.tokenizer
        head = tokenizer(document.prompt + "\n", add_special_tokens=False)["input_ids"]
        body = tokenizer(document.text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        row, labels = batch["input_ids"][0], batch["labels"][0]
        assert row[: len(head) + len(body)].tolist() == head + body
        assert int(batch["prompt"][0]) == len(head) and int(batch["attention_mask"][0].sum()) == len(head) + len(body)
        counted = labels[labels != -100].tolist()
        assert counted == (head + body if loss_on == "all" else body)


def test_long_prompts_are_left_out_and_said() -> None:
    task = small(data=Some(pairs=True), length=12)
    assert len(task.train) and any("cut off at the end" in note for note in task.notes)
    task = small(data=Some(pairs=True), length=3)
    with pytest.raises(DataError, match="too little text"):
        len(task.train)
    assert any("left out" in note for note in task.notes)


def test_make_batch_masks_padding_and_prompt() -> None:
    batch = make_batch(torch.arange(1, 11).view(2, 5), torch.tensor([5, 3]), torch.tensor([2, 0]), torch.tensor([2, 0]))
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, 5], [6, 7, 8, -100, -100]]
    assert batch["where"].tolist() == [[False, True, True, True, False], [True, True, False, False, False]]


def test_rows_travel_to_loader_processes_without_the_tokenizer() -> None:
    data = small().train
    copied = pickle.loads(pickle.dumps(data))
    assert copied.task is None and len(copied) == len(data)
    assert all(torch.equal(a, b) for a, b in zip(everything(data).values(), everything(copied).values(), strict=True))


def test_students_documents_are_drawn_by_seed() -> None:
    task = small(student_documents=10)
    first = everything(task.train)["input_ids"]
    assert len(task.train) < len(task.teacher_train)
    task.load(1)
    assert task.train.fingerprint != task.teacher_train.fingerprint and not torch.equal(
        first[:3], everything(task.train)["input_ids"][:3]
    )
    task.load(0)
    assert torch.equal(first, everything(task.train)["input_ids"])
    with pytest.raises(DataError, match="at most"):
        small(student_documents=1000)


def test_fingerprints_tell_tokens_apart() -> None:
    a, b = small().train.fingerprint, small().train.fingerprint
    assert a == b != small(vocab_size=290).train.fingerprint
    pairs = [small(data=Some(pairs=True), length=30, loss_on=on).train.fingerprint for on in ("all", "response")]
    assert pairs[0] != pairs[1]


@pytest.mark.parametrize(
    "wrong",
    [{"vocab_size": 100}, {"length": 1}, {"student_documents": 0}, {"valid_fraction": 0.0}, {"test_fraction": 1.0},
     {"valid_fraction": 0.5, "test_fraction": 0.5}, {"eval_batch": 0}, {"eval_sequences": 0}],
)  # fmt: skip
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Language(**wrong)


def test_chat_templates() -> None:
    task = small(data=Some(pairs=True, words=5), length=90, template="chat")
    with pytest.raises(ConfigError, match="no chat template"):
        len(task.train)
    task = small(data=Some(pairs=True, words=5), length=90)
    task.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [assistant] "
    start = task.tokenizer.decode(task.train.fetch(torch.tensor([0]))["input_ids"][0])
    assert start.startswith(f"[user] {task.texts.train[0].prompt} [assistant] {task.texts.train[0].text}")


# ------------------------------------------------------------------------------------------------ tokenizers


def test_the_trained_tokenizer_spells_everything_and_is_remembered(shared_workspace: Path) -> None:
    texts = small().texts
    one = byte_pairs(texts, 280)
    text = "naïve 東京\n\t🙂 <not> a token"
    assert one.decode(one(text)["input_ids"]) == text
    folders = list(shared_workspace.glob("tokenizer-*"))
    assert folders
    for folder in folders:  # a damaged one is made again
        (folder / "tree.json").write_text("{")
    two = byte_pairs(texts, 280)
    assert one.get_vocab() == two.get_vocab() and one(text)["input_ids"] == two(text)["input_ids"]
    assert all(store.is_complete(f) for f in [next(iter(folders))])


def test_equal_tokenizers_agree() -> None:
    task = small()
    assert shared_ids(task.tokenizer, copy.deepcopy(task.tokenizer), "a", "b") == task.size


def test_a_tokenizer_with_more_tokens_shares_the_rest() -> None:
    task = small()
    larger = copy.deepcopy(task.tokenizer)
    larger.add_tokens(["<|extra|>"], special_tokens=True)
    assert shared_ids(task.tokenizer, larger, "a", "b") == task.size == len(larger.get_vocab()) - 1


def test_other_ids_are_refused_with_a_way_out() -> None:
    one, two = small(), small(data=Some(words=30))
    with pytest.raises(TeacherMismatch) as error:
        shared_ids(one.tokenizer, two.tokenizer, "the student", "the teacher")
    said = str(error.value)
    assert "the student" in said and "id " in said and "task.tokenizer=" in said and "ULD" in said


def test_the_same_tokens_cut_otherwise_are_refused() -> None:
    from tokenizers import normalizers

    task = small()
    other = copy.deepcopy(task.tokenizer)
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TeacherMismatch, match="cut text differently"):
        shared_ids(task.tokenizer, other, "a", "b")


# ------------------------------------------------------------------------------------------------ vocabularies


class Flat(nn.Module):
    """A language model that answers with a constant row of ``size`` logits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.linspace(-1, 1, size))
        self.config = transformers.PretrainedConfig()
        self.config.vocab_size = size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return {"logits": self.row.expand(*input_ids.shape, -1)}


def test_padded_vocabularies_are_cut_to_the_overlap_and_it_is_said() -> None:
    task = small()
    student, teacher = Built(Flat(task.size + 8)), Built(Flat(task.size + 40))
    task.match(student, teacher)
    batch = task.example(2)
    for built in (student, teacher):
        assert task.feed(built.module, batch).shape[-1] == task.size + 8
    assert "cut to the" in task.notes[-1] and str(task.size + 40) in task.notes[-1]
    found = task.evaluate(student, task.valid, teacher)
    assert math.isfinite(found["kl"]) and found["kl"] > 0


def test_equal_sizes_are_left_alone() -> None:
    task = small()
    task.match(Built(Flat(task.size + 8)), Built(Flat(task.size + 8)))
    assert task.columns is None and not task.notes


def test_tokens_that_one_side_lacks_are_cut() -> None:
    task = small()
    larger = copy.deepcopy(task.tokenizer)
    larger.add_tokens(["<|extra|>"], special_tokens=True)

    class Holder:
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

    student = Built(Flat(task.size), model=Holder(task.tokenizer))
    task.match(student, Built(Flat(task.size + 1), model=Holder(larger)))
    assert task.columns == task.size and "only one of them has" in task.notes[-1]


def test_tokens_beyond_the_models_matter_only_in_the_text() -> None:
    task = small()
    task.tokenizer.add_tokens(["<|never seen|>"], special_tokens=True)
    both = Built(Flat(task.size - 1)), Built(Flat(task.size - 1))
    task.match(*both)
    assert task.columns is None
    assert math.isfinite(task.evaluate(both[0], task.valid, both[1])["kl"])


def test_too_few_outputs_are_refused() -> None:
    task = small()
    with pytest.raises(TeacherMismatch, match="resize_token_embeddings"):
        task.match(Built(Flat(task.size)), Built(Flat(100)))


def test_a_foreign_pretrained_tokenizer_is_refused(tmp_path: Path) -> None:
    other = small(data=Some(words=30))
    model = CausalLm(layers=1, width=8, heads=2)
    model.save(model.build(other).module, tmp_path)
    task = small()
    assert task.tokenizer is not None  # trained on this text before the model came
    with pytest.raises(TeacherMismatch, match=rf"set task\.tokenizer={tmp_path}"):
        HuggingFace(str(tmp_path)).build(task)
    model.save(model.build(task).module, tmp_path / "own")
    both = small()
    HuggingFace(str(tmp_path)).build(both)
    with pytest.raises(TeacherMismatch, match="models of one family"):
        HuggingFace(str(tmp_path / "own")).build(both)


def test_a_student_from_scratch_on_a_named_tokenizer(tmp_path: Path) -> None:
    other = small(data=Some(words=30))
    model = CausalLm(layers=1, width=8, heads=2)
    model.save(model.build(other).module, tmp_path)
    task = small(tokenizer=str(tmp_path / "student"))
    student = CausalLm(layers=1, width=8, heads=2).build(task)
    teacher = HuggingFace(str(tmp_path)).build(task)
    task.match(student, teacher)
    assert task.columns is None and output_size(student.module) == output_size(teacher.module) == other.size


def test_judging_some_sequences() -> None:
    task = small(eval_sequences=2)
    assert len(task.test) == 2 and len(small().test) > 2 and len(task.train) == len(small().train)
    assert task.test.tokens_per_byte == small().test.tokens_per_byte


# ------------------------------------------------------------------------------------------------ loss and metrics


def test_supervised_equals_transformers_own_loss() -> None:
    task = small(data=Some(pairs=True), length=40, loss_on="response")
    module = CausalLm(layers=1, width=16, heads=2).build(task).module
    batch = task.train.fetch(torch.arange(4))
    term = task.supervised(Signal(task.feed(module, batch)), batch)
    own = module(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert torch.allclose(term.total() / term.n(), own, atol=1e-6)
    assert int(term.n()) == int(task.counts(batch))


def test_what_is_masked_changes_nothing_bit_for_bit() -> None:
    task = small(data=Some(pairs=True), length=40, loss_on="response")
    batch = task.train.fetch(torch.arange(3))
    logits = torch.randn(3, 40, task.size)
    term = task.supervised(Signal(logits), batch)
    spoilt = torch.where(batch["where"].unsqueeze(-1), logits, torch.tensor(float("nan")))
    assert torch.equal(task.supervised(Signal(spoilt), batch).total(), term.total())
    at = tuple(batch["where"].nonzero()[0].tolist())
    moved = logits.clone()
    moved[at] = torch.randn(task.size)
    assert not torch.equal(task.supervised(Signal(moved), batch).total(), term.total())


def test_an_image_model_is_refused() -> None:
    task = small()
    with pytest.raises(ShapeError, match="no language model"):
        task.supervised(Signal(torch.zeros(2, 10)), task.example(2))


def test_metrics_of_a_uniform_model() -> None:
    task = small()
    flat = Flat(task.size)
    flat.row.data.zero_()
    found = task.evaluate(Built(flat), task.test, Built(flat))
    nats = math.log(task.size)
    assert found["cross_entropy"] == pytest.approx(nats, rel=1e-6) == found["entropy"]
    assert found["perplexity"] == pytest.approx(task.size, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) * task.test.tokens_per_byte, rel=1e-6)
    assert found["kl"] == 0 and found["agreement"] == 1


def test_metrics_do_not_depend_on_the_batch_and_restore_modes() -> None:
    task = small(data=Some(pairs=True), length=40, loss_on="response")
    built = CausalLm(layers=1, width=16, heads=2, dropout=0.5).build(task)
    other = CausalLm(layers=1, width=16, heads=2).build(task)
    built.module.train()
    one = task.evaluate(built, task.valid, other)
    task.eval_batch = 1
    two = task.evaluate(built, task.valid, other)
    assert built.module.training and all(one[k] == pytest.approx(two[k], rel=1e-5) for k in one)
    assert 0 <= one["accuracy"] <= 1 and one["kl"] > 0


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_student_comes_back_with_transformers_alone(tmp_path: Path, tied: bool) -> None:
    task = small()
    model = CausalLm(layers=2, width=16, heads=4, kv_heads=2, tied=tied)
    built = model.build(task)
    model.save(built.module, tmp_path)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    batch = task.example(2)
    assert torch.equal(task.feed(again.eval(), batch), task.feed(built.module.eval(), batch))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer("two words")["input_ids"] == task.tokenizer("two words")["input_ids"]
    assert not list(tmp_path.rglob("*.bin"))
    # the folder serves as a checkpoint of the same architecture, and as a model of its own
    loaded = CausalLm(layers=2, width=16, heads=4, kv_heads=2, tied=tied, checkpoint=str(tmp_path)).build(task)
    assert torch.equal(task.feed(loaded.module.eval(), batch), task.feed(again, batch))
    fresh = small()
    found = HuggingFace(str(tmp_path)).build(fresh)
    assert HuggingFace(str(tmp_path)).trained and fresh.tokenizer is found.model.tokenizer
    assert torch.equal(fresh.feed(found.module.eval(), batch), task.feed(again, batch))
    with pytest.raises(CheckpointCorrupt):
        CausalLm(layers=1, width=16, heads=4, kv_heads=2, tied=tied, checkpoint=str(tmp_path)).build(task)


def test_from_scratch_of_the_hub_architecture(tmp_path: Path) -> None:
    task = small()
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(task).module, tmp_path)
    anew = HuggingFace(str(tmp_path), pretrained=False)
    assert not anew.trained
    fresh = small()
    a, b = anew.build(fresh).module, HuggingFace(str(tmp_path)).build(fresh).module
    assert [p.shape for p in a.parameters()] == [p.shape for p in b.parameters()]
    assert not torch.equal(next(a.parameters()), next(b.parameters()))
    assert next(HuggingFace(str(tmp_path), dtype="bfloat16").build(fresh).module.parameters()).dtype == torch.bfloat16


def test_low_rank_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    task = small()
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(task).module, tmp_path / "base")
    fresh = small()
    adapted = HuggingFace(str(tmp_path / "base"), lora=2)
    built = adapted.build(fresh)
    trainable = [n for n, p in built.module.named_parameters() if p.requires_grad]
    assert trainable and all("lora" in n for n in trainable)
    for name, p in built.module.named_parameters():
        if "lora_B" in name:
            p.data.normal_()
    batch = fresh.example(2)
    want = fresh.feed(built.module.eval(), batch)
    adapted.save(built.module, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "student")
    assert torch.allclose(fresh.feed(again.eval(), batch), want, atol=1e-5)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert output_size(built.module) == fresh.size


def test_gguf_files_are_unpacked(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    task = small()
    module = CausalLm(layers=1, width=32, heads=2, tied=False).build(task).module
    core = json.loads(task.tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(module.config.intermediate_size)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(module.config.rms_norm_eps)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(task.size)
    writer.add_tokenizer_model("gpt2")
    names = [t for t, _ in sorted(core["vocab"].items(), key=lambda pair: pair[1])]
    writer.add_token_list(names)
    writer.add_token_types([3 if t.startswith("<|") else 1 for t in names])
    writer.add_token_merges([" ".join(m) for m in core["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_pad_token_id(1)
    block = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    block |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    block |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    place = {f"model.layers.0.{k}.weight": f"blk.0.{v}.weight" for k, v in block.items()}
    place |= {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    place |= {"lm_head.weight": "output.weight"}
    for name, tensor in module.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # the format pairs neighbouring dimensions for the rotation
            tensor = tensor.view(2, 2, 8, 32).transpose(1, 2).reshape(32, 32)
        writer.add_tensor(place[name], tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fresh = small()
    found = HuggingFace(str(tmp_path), gguf_file="m.gguf").build(fresh)
    batch = task.example(2)
    assert torch.equal(fresh.feed(found.module.eval(), batch), task.feed(module.eval(), batch))
    assert fresh.tokenizer("red blue")["input_ids"] == task.tokenizer("red blue")["input_ids"]
    fresh.match(found, found)
    found.model.save(found.module, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "student")
    assert torch.equal(fresh.feed(again.eval(), batch), task.feed(module, batch))


def test_a_missing_gguf_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install gguf"):
        HuggingFace(str(tmp_path), gguf_file="m.gguf").build(small())


def test_wrong_names_are_answered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        HuggingFace(str(tmp_path)).build(small())
    with pytest.raises(ConfigError, match=r"task\.tokenizer"):
        len(small(tokenizer=str(tmp_path)).train)


def test_positions_are_checked(tmp_path: Path) -> None:
    task = small()
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(task).module, tmp_path)
    with pytest.raises(ConfigError, match=r"task\.length"):
        HuggingFace(str(tmp_path)).build(small(length=600))


@pytest.mark.parametrize(
    "wrong",
    [{"width": 10}, {"width": 12}, {"layers": 0}, {"kv_heads": 3}, {"mlp": 0}, {"dropout": 1.0}],
)  # fmt: skip
def test_architectures_that_do_not_go(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        CausalLm(**wrong)


def test_another_task_is_refused() -> None:
    from limbeck.core.task import Task

    with pytest.raises(ConfigError, match="task=language"):
        CausalLm().build(Task())


# ------------------------------------------------------------------------------------------------ real models and texts


def test_a_real_model_of_the_shared_data() -> None:
    folder = SHARED / "weights" / "stories15m"
    if not folder.is_dir():
        pytest.skip("the shared weights are not here")
    task = small(data=Some(count=40), length=24)
    built = HuggingFace(str(folder)).build(task)
    assert task.size == 32000 == output_size(built.module)
    assert (
        task.train.fetch(torch.tensor([0]))["input_ids"][0, 0] == 1
    )  # its start token stands before the first document
    assert deal(Some().read(), 0.1, 0.1).train
    found = task.evaluate(built, task.valid)
    assert found["cross_entropy"] < math.log(32000)
