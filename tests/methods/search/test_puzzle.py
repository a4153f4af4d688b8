"""Puzzle: parents rebuilt bit for bit, blocks that learn alone, what is saved opens without limbeck, bad input refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError, LimbeckError
from limbeck.methods.search.puzzle import Puzzle
from limbeck.networks.decoder_blocks import assemble, padded
from limbeck.run.running import run
from tests.test_battery import steps_of
from tests.tiny import differences, run_with_stop, state_of, tiny, tree_of

transformers = pytest.importorskip("transformers")


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 4,
                "num_key_value_heads": 4, "vocab_size": 30, "max_position_embeddings": 32}  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **more})).eval()


def test_a_mixed_decoder_is_written_as_an_ordinary_one_and_its_cache_holds() -> None:
    net = llama()
    spec: list[Any] = [{"attention": "none", "ffn": 6}, {"attention": 2, "ffn": "none"}, {"attention": "none", "ffn": "none"},
                       {"attention": 4, "ffn": 12}]  # fmt: skip
    assemble(net, spec)
    plain: Any = padded(net, spec)
    ids = torch.randint(0, 30, (2, 9))
    torch.testing.assert_close(plain(ids).logits, net(ids).logits)
    assert len(plain.model.layers) == 3
    # a cache gives what running the whole text gives, though the first layer has no attention
    told = [net.generate(ids, max_new_tokens=4, do_sample=False, use_cache=on, pad_token_id=0) for on in (True, False)]
    assert torch.equal(*told)
    with pytest.raises(ConfigError, match="linear"):
        padded(llama(), [{"attention": "linear", "ffn": 12}] * 4)
    with pytest.raises(ConfigError, match="each of 4 layers"):
        assemble(llama(), spec[:2])


def test_the_parents_own_blocks_rebuild_it_and_nothing_passes_the_residual_stream(tmp_path: Path) -> None:
    made = tiny("puzzle", tmp_path, "method.parameters=1.0")
    method: Any = made.run().method
    assert method.layers == [method.pairs[0]] * 2
    ids = made.bench.task.example(4)
    with torch.no_grad():
        whole = made.bench.task.feed(method.parent, ids)
        assert torch.equal(made.bench.task.feed(method.child(method.layers).module, ids), whole)
        bare: Any = method.child([{"attention": "none", "ffn": "none"}] * 2).module
        h = bare.model.embed_tokens(ids["input_ids"])
        torch.testing.assert_close(bare(ids["input_ids"]).logits, bare.lm_head(bare.model.norm(h)))
    scores = [s for s in made.engine.stages if s.name == "scores"]
    assert scores and method.found["mip"]["score"] == 0.0


def test_a_blocks_gradient_reaches_no_other_block(tmp_path: Path) -> None:
    method: Any = tiny("puzzle", tmp_path).run().method
    library: Any = method.roles["library"].module
    library.requires_grad_(True)
    with torch.enable_grad():
        h = torch.randn(1, 5, 16)
        parent = method.parent
        layer = parent.model.layers[1]
        at = parent.model.rotary_emb(h, position_ids=torch.arange(5)[None])
        out = library(1, layer, h, h, {"position_embeddings": at, "attention_mask": None})
        out[0].sum().backward()

    def moved(p: torch.Tensor) -> bool:
        return p.grad is not None and bool(p.grad.any())

    reached = {int(n.split(".")[3]) for n, p in library.named_parameters() if n.startswith("layers.1") and moved(p)}
    assert reached == {library.layers[1].specs.index({"attention": 1, "ffn": 16})}
    assert not [n for n, p in library.named_parameters() if n.startswith("layers.0") and moved(p)]


def test_what_is_saved_opens_without_limbeck_and_with_it(tmp_path: Path) -> None:
    tree = tree_of("puzzle", "train.steps=1")
    result = run(tree, tmp_path / "run", quiet=True)
    folder = tmp_path / "run"
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "student")
    own = json.loads((folder / "student.json").read_text())["model"]
    assert own["use"] == "block-lm"
    table = json.loads((folder / "architecture.json").read_text())
    chosen = next(row for row in table if row["chosen"])
    assert own["layers"] == chosen["layers"]
    budget = 0.8 * result["sizes"]["teacher"]["parameters"]
    assert result["sizes"]["student"]["parameters"] == chosen["costs"]["parameters"] <= budget
    again = tiny("puzzle", tmp_path / "again")
    from limbeck.grammar.task import Model
    from limbeck.recipe.recipe import make

    made = make(Model, {**own, "checkpoint": str(folder)}, "student")
    built = made.build(again.bench.task)
    ids = again.bench.task.example(2)["input_ids"]
    torch.testing.assert_close(plain(ids).logits, built.module.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    assert "per_layer_config" in json.loads((folder / "layers/config.json").read_text())


def test_pairs_that_learn_together_have_blocks_of_their_own(tmp_path: Path) -> None:
    method: Any = tiny("puzzle", tmp_path, "method.bld=coupled", "train.steps=1").run().method
    layer: Any = method.roles["library"].module.layers[0]
    own, pairs = (
        {"attention": 2, "ffn": 16},
        [{"attention": a, "ffn": f} for a in (2, 1, "none") for f in (16, 8, "none")],
    )
    assert layer.specs == [p for p in pairs if p["attention"] == 1 or p["ffn"] == 8]
    one, other = (layer.get({"attention": 1, "ffn": f})["attention"][1] for f in (8, "none"))
    assert not torch.equal(one.v_proj.weight, other.v_proj.weight)  # the same variant, another partner
    assert "ffn" not in layer.get({"attention": 1, "ffn": 16}) and not layer.get(own)
    # in its layer's place a pair gives what the library said of it while it learnt
    h, spec = torch.randn(1, 5, 16), {"attention": 1, "ffn": 8}
    given = {
        "position_embeddings": method.parent.model.rotary_emb(h, position_ids=torch.arange(5)[None]),
        "attention_mask": None,
    }
    with torch.no_grad():
        parent = method.parent.model.layers[0]
        out = layer(parent, h, h + parent.self_attn(parent.input_layernorm(h), **given)[0], given)
        child = method.child([spec, own]).module.model.layers[0](h, **given)
    torch.testing.assert_close(out[layer.specs.index(spec)], child)
    with pytest.raises(ValueError, match="bld=coupled needs scores=block"):
        Puzzle(parameters=5, bld="coupled", scores="subblock")


HYBRID = ("method.bld=hybrid", "method.alpha=0.5")


def test_hybrid_pairs_are_of_the_variants_that_single_blocks_chose(tmp_path: Path) -> None:
    made = tiny("puzzle", tmp_path, *HYBRID).run()
    method: Any = made.method
    names = [s.name for s in made.engine.stages]
    assert names[2:7] == ["library", "scores", "shortlist", "pairs", "pair-scores"]
    assert method.pairs[0] == {"attention": 2, "ffn": 16} and set(map(str, method.layers)) <= set(
        map(str, method.pairs)
    )
    held: Any = method.roles["pairs"].module.layers[0]
    assert held.specs == method.learnt(method.pairs)
    first: Any = method.roles["library"].module.layers[0]
    both = next((p for p in held.specs if p == {"attention": 1, "ffn": 8}), None)
    if both is not None:
        assert not torch.equal(held.get(both)["ffn"][1].up_proj.weight, first.get(both)["ffn"][1].up_proj.weight)
    halves = run_with_stop("puzzle", tmp_path / "halves", steps_of(made) - 2, *HYBRID)  # while the child is distilled
    assert not differences(state_of(made), state_of(halves))


@pytest.mark.expensive
def test_hybrid_goes_on_wherever_it_stopped(tmp_path: Path) -> None:
    plain = tiny("puzzle", tmp_path, *HYBRID).run()
    for stop in range(1, steps_of(plain)):
        assert not differences(
            state_of(plain), state_of(run_with_stop("puzzle", tmp_path / str(stop), stop, *HYBRID))
        ), stop


@pytest.mark.parametrize(
    "settings",
    [["method.attention=[linear]", "method.ffn=[linear]", "method.block_loss=token", "method.score=cosine"],
     ["method.bld=none", "method.kv_init=prune", "method.importance=independent", "method.scores=subblock", "method.search=random"],
     ["method.parameters=null", "method.memory=0.8", "method.score=lm", "method.search=greedy", "method.block_loss=sample"],
     ["method.parameters=null", "method.latency_ms=1e6", "method.score=accuracy", "method.lm=0.5", "method.further=90",
      "method.alpha=0"]],
)  # fmt: skip
def test_switches(settings: list[str], tmp_path: Path) -> None:
    made = tiny("puzzle", tmp_path, *settings).run()
    method: Any = made.method
    assert len(method.layers) == 2
    assert set(method.extras()) == {"architectures", "pictures"}
    if method.further:  # as many as differ everywhere, and no error for want of more
        assert any(f"{n} further architectures" in " ".join(method.notes) for n in range(1, 9))


@pytest.mark.parametrize(
    ("setting", "words"),
    [("method.parameters=0.1", "method.parameters can be met from"), ("method.attention=[3]", "numbers that divide 2"),
     ("method.ffn=[99]", "at most 16 channels"), ("method.parameters=null", "must be given"),
     ("student.width=32", "not made as the teacher"), ("method.ffn=[thin]", "linear or none"),
     ("task={use: classification}", "language")],
)  # fmt: skip
def test_bad_input_is_refused(setting: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError) as caught:
        tiny("puzzle", tmp_path, setting)
    assert words in str(caught.value)


def test_a_throughput_that_cannot_be_met_is_refused_under_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"method\.throughput: no architecture .* at most [\d,]+ tokens a second"):
        tiny("puzzle", tmp_path, "method.parameters=null", "method.throughput=1e12", "teach.steps=0").run()


def test_a_smallest_budget_that_is_named_can_be_met(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError) as caught:
        tiny("puzzle", tmp_path, "method.parameters=100")
    remedy = str(caught.value).split("set method.parameters=")[1].split(",")[0]
    assert tiny("puzzle", tmp_path, f"method.parameters={remedy}").method.roles
    assert Puzzle(parameters=5).parameters == 5
