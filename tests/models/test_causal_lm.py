"""Causal language models: that they come back, that wrong ones are answered."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from limbeck.data.text import deal  # noqa: E402
from limbeck.errors import CheckpointCorrupt, ConfigError, TeacherMismatch  # noqa: E402
from limbeck.models.causal_lm import CausalLm  # noqa: E402
from limbeck.models.huggingface import HuggingFace  # noqa: E402
from limbeck.tasks.causal import output_size  # noqa: E402
from tests.tasks.texts import Some, small  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared" / "data"


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
    assert output_size(built.module) == fresh.vocabulary


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
    writer.add_vocab_size(task.vocabulary)
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


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_not_run_and_not_asked_about(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(small()).module, tmp_path)
    folder = tmp_path / "student"
    about = json.loads((folder / where).read_text())
    about["auto_map"] = {
        "AutoConfig": "theirs.Config",
        "AutoModelForCausalLM": "theirs.Net",
        "AutoTokenizer": ["theirs.Tokenizer", None],
    }
    about |= {"model_type": "theirs"} if where == "config.json" else {"tokenizer_class": "Tokenizer"}
    (folder / where).write_text(json.dumps(about))
    ran = tmp_path / "ran"
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("a script would hang here"))
    with pytest.raises(ConfigError, match="limbeck runs no such code") as caught:
        HuggingFace(str(folder)).build(small())
    assert "trust_remote_code" not in str(caught.value)  # no setting of ours is called so
    assert not ran.exists() and "[y/N]" not in "".join(capfd.readouterr())


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
    from limbeck.grammar.task import Task
    from limbeck.tasks.classification import Classification

    with pytest.raises(ConfigError, match="does not say what it needs"):
        CausalLm().build(Task())
    with pytest.raises(ConfigError, match=r"needs classifiers.*makes language models.*choose one of .*mlp"):
        CausalLm().build(Classification())


def test_a_real_model_of_the_shared_data() -> None:
    folder = SHARED / "weights" / "stories15m"
    if not folder.is_dir():
        pytest.skip("the shared weights are not here")
    task = small(data=Some(count=40), length=24)
    built = HuggingFace(str(folder)).build(task)
    assert task.vocabulary == 32000 == output_size(built.module)
    assert (
        task.train.fetch(torch.tensor([0]))["input_ids"][0, 0] == 1
    )  # its start token stands before the first document
    assert deal(Some().read(), 0.1, 0.1).train
    found = task.evaluate(built, task.valid)
    assert found["cross_entropy"] < math.log(32000)


def _apart(folder: Path, vocab: int) -> None:
    """A tiny model whose tokenizer means other tokens than `small`'s."""
    other = small(data=Some(count=90, words=9), vocab_size=vocab)
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(other).module, folder)


def test_a_folder_without_tokenizer_reads_by_the_teachers(tmp_path: Path) -> None:
    task = small()
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(task).module, tmp_path / "teacher")
    shutil.copytree(tmp_path / "teacher", tmp_path / "bare")
    for file in (tmp_path / "bare" / "student").glob("*token*"):
        file.unlink()
    bare, teacher = HuggingFace(str(tmp_path / "bare")), HuggingFace(str(tmp_path / "teacher"))
    assert bare.takes_tokenizer and not teacher.takes_tokenizer
    fresh = small()
    theirs = teacher.build(fresh).model.tokenizer
    built = bare.build(fresh)
    assert built.model.tokenizer is theirs and any("taken to know that of hf:" in n for n in built.notes)
    bare.save(built.module, tmp_path / "saved")
    assert list((tmp_path / "saved" / "student").glob("tokenizer*"))


def test_an_architecture_drawn_anew_learns_the_teachers_tokens(tmp_path: Path) -> None:
    task = small()
    model = CausalLm(layers=1, width=16, heads=2)
    model.save(model.build(task).module, tmp_path / "teacher")
    _apart(tmp_path / "other", 270)
    fresh = small()
    theirs = HuggingFace(str(tmp_path / "teacher")).build(fresh).model.tokenizer
    anew = HuggingFace(str(tmp_path / "other"), pretrained=False)
    built = anew.build(fresh)
    assert anew.tokenizer is theirs and any("its weights are drawn anew" in n for n in built.notes)
    assert built.module.config.vocab_size >= fresh.vocabulary
    with pytest.raises(TeacherMismatch):  # weights that know other tokens cannot follow
        HuggingFace(str(tmp_path / "other")).build(fresh)


def test_a_chat_template_goes_to_whoever_learns_by_it(tmp_path: Path) -> None:
    task = small(data=Some(pairs=True))
    model = CausalLm(layers=1, width=16, heads=2)
    for name in ("teacher", "base"):
        model.save(model.build(task).module, tmp_path / name)
    fresh = small(data=Some(pairs=True))
    teacher = HuggingFace(str(tmp_path / "teacher")).build(fresh)
    teacher.model.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    base = HuggingFace(str(tmp_path / "base"))
    built = base.build(fresh)
    assert base.tokenizer.chat_template == teacher.model.tokenizer.chat_template
    assert any("has no chat template: it is given that of hf:" in n for n in fresh.notes) and built.module is not None
