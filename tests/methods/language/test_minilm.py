"""MiniLM: v1 and v2, any width, what is saved opens in transformers, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError, TeacherMismatch
from limbeck.methods.language.minilm import MiniLm, copied, relation_values, shared_heads
from limbeck.parts.attention import Qkv
from limbeck.recipe.recipe import check, load_tree
from limbeck.run.running import run
from tests.tiny import tiny, tree_of

transformers = pytest.importorskip("transformers")


def vectors(width: int, heads: int, seed: int) -> Qkv:
    g = torch.Generator().manual_seed(seed)
    return Qkv(*(torch.randn(2, heads, 6, width // heads, generator=g, dtype=torch.float64) for _ in range(3)))


def test_v1_is_v2_with_the_models_own_heads() -> None:
    s, t = vectors(12, 3, 0), vectors(24, 3, 1)
    where = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    own = relation_values(s, t, {"qk": 1, "vv": 1}, where=where)
    cut = relation_values(s, t, {"qk": 1, "vv": 1}, where=where, heads=3)
    for name, values in own.items():
        torch.testing.assert_close(values, cut[name])
    swapped = relation_values(
        Qkv(*(x.flip(0) for x in s)), Qkv(*(x.flip(0) for x in t)), {"qk": 1}, where=where.flip(0)
    )
    torch.testing.assert_close(swapped["qk"].flip(0), own["qk"])
    other = relation_values(s, vectors(24, 4, 1), {"qq": 1}, heads=6)
    assert other["qq"].shape == (2, 6)


@pytest.mark.parametrize(
    "settings", [{"version": "v2", "relation_heads": 6}, {"values": "hidden"}, {"values": "mse", "measure": "js"},
                 {"layers": "uniform", "measure": "mse"}, {"values": "off", "variant": "released"}],
)  # fmt: skip
def test_switches_reach_the_student(settings: dict[str, Any], tmp_path: Path) -> None:
    made = tiny("minilm", tmp_path, *(f"method.{k}={v}" for k, v in settings.items()), "train.steps=1")
    before = {n: p.clone() for n, p in made.method.roles["student"].module.named_parameters()}
    made.run()
    after = dict(made.method.roles["student"].module.named_parameters())
    assert any(not torch.equal(before[n], p) for n, p in after.items())


def test_an_assistant_is_taught_first(tmp_path: Path) -> None:
    made = tiny(
        "minilm", tmp_path, "method.assistant=true", "participants.assistant={use: encoder, layers: 2, width: 12}"
    )
    made.run()
    assert [s.name for s in made.engine.stages] == ["assist", "distil"]
    assert set(made.method.roles) == {"student", "teacher", "assistant"}


def test_the_student_opens_without_limbeck_and_seeds_hide_the_same_words(tmp_path: Path) -> None:
    tree = tree_of("minilm", "baselines=[]", "evaluator.how=linear")
    run(tree, tmp_path / "run", quiet=True)
    folder = tmp_path / "run" / "student"
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = model(**tokenizer(["two words"], return_tensors="pt"))
    assert found.last_hidden_state.shape[-1] == 12
    made = tiny("minilm", tmp_path / "again")
    task: Any = made.bench.task
    batch = task.example(4)
    shown, which = task.hide(batch)
    again = task.hide({**batch, "input_ids": batch["input_ids"].clone()})
    assert torch.equal(shown, again[0]) and torch.equal(which, again[1])
    later = task.hide({**batch, "input_ids": batch["input_ids"].clone(), "view": batch["view"] + 1})
    assert not torch.equal(which, later[1])
    assert bool(which.any(1).all()) and not bool((which & ~batch["where"]).any())


def test_layers_are_copied_where_widths_agree() -> None:
    kw = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    large = transformers.BertModel(transformers.BertConfig(num_hidden_layers=4, **kw))
    small = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2, **kw))
    copied(small, large)
    own, theirs = small.state_dict(), large.state_dict()
    name = "encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(own[name.format(0)], theirs[name.format(1)])
    assert torch.equal(own[name.format(1)], theirs[name.format(3)])
    narrow = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, **{**kw, "hidden_size": 4}))
    with pytest.raises(ConfigError, match="initial"):
        copied(narrow, large)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="relation_heads=12"):
        tiny("minilm", tmp_path, "student.heads=3")
    with pytest.raises(ConfigError, match="cannot be cut"):
        tiny("minilm", tmp_path, "method.version=v2")
    with pytest.raises(ConfigError, match=r"method\.layer"):
        tiny("minilm", tmp_path, "method.layer=7")
    for wrong in ({"relations": {"qx": 1.0}}, {"attention": False, "values": "off"}, {"layers": "uniform", "layer": 0}):
        with pytest.raises(ValueError):
            MiniLm(**wrong)  # type: ignore[arg-type]
    assert shared_heads(768, 384) == 48
    with pytest.raises(ConfigError):
        check(load_tree("minilm", ["method.measure=l2"]))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from limbeck.tasks.tokenizers import word_tokenizer

    folder, other = tmp_path / "encoder", tmp_path / "other"
    texts = {
        folder: "other words than those of the reference",
        other: "the reference of those than words other and more",
    }
    config = transformers.BertConfig(
        vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8
    )
    for place, text in texts.items():
        word_tokenizer([text] * 3, 300).save_pretrained(place)
        transformers.BertModel(config).save_pretrained(place)
    with pytest.raises(TeacherMismatch):
        tiny("minilm", tmp_path, f"teacher=hf:{folder}", f"student=hf:{other}")
    with pytest.raises(TeacherMismatch):
        tiny("minilm", tmp_path, f"teacher=hf:{folder}", f"task.tokenizer={other}")
    served: Any = tiny(
        "minilm", tmp_path, f"teacher=hf:{folder}"
    ).bench.task  # a student from scratch learns its tokens
    assert served.tokenizer.get_vocab() == transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    made = tiny("minilm", tmp_path, f"teacher={{use: hf, name: {folder}}}", f"task.tokenizer={folder}")
    assert "encoder alone" in " ".join(made.bench.notes)
