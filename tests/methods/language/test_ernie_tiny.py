"""ERNIE-Tiny: what neighbouring stages change, what they hand on, the latent loss, who is asked and trained, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.data.text import Document
from limbeck.engine.context import RunContext
from limbeck.errors import LimbeckError
from limbeck.functional.attention import score_distance
from limbeck.methods.language.ernie_tiny import PLAN, ErnieTiny, apart
from limbeck.parts.latent import Latent, uniform_map
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import Tiny
from tests.tiny import shared_tiny as tiny

transformers = pytest.importorskip("transformers")


# ------------------------------------------------------------------------------------------------------------------- plan
def test_neighbouring_stages_change_one_thing() -> None:
    method = ErnieTiny()
    assert [p.name for p in method.plan] == ["gd", "ged", "tad", "tsd"]
    changes = [a.changed(b) for a, b in zip(method.plan, method.plan[1:], strict=False)]
    assert changes == [["teacher"], ["text"], ["loss"]]
    assert PLAN["gd"].changed(PLAN["tad"]) == ["teacher", "text"]  # what TinyBERT changes at once
    short = ErnieTiny(phases=["gd", "tad", "tsd"], teachers={"gd": "finetuned"}, texts={"tad": "general"})
    assert [(p.teacher, p.text) for p in short.plan] == [
        ("finetuned", "general"), ("finetuned", "general"), ("finetuned", "task")]  # fmt: skip
    assert uniform_map(2, 6) == [3, 6] and uniform_map(4, 4) == [1, 2, 3, 4]


def test_every_plan_takes_as_many_steps(tmp_path: Path) -> None:
    for phases in ("[gd,ged,tad,tsd]", "[gd,tad,tsd]", "[tsd]"):
        made = tiny(
            "ernie-tiny", tmp_path / phases, f"method.phases={phases}", "train.steps=13", "method.shares={tad: 0.7}"
        )
        method: Any = made.method
        assert sum(method.steps().values()) == 13
        assert [s.name for s in method.stages() if s.name in PLAN] == list(method.steps())


def test_judged_passages_leave_the_general_text() -> None:
    documents = [Document("First one. Second  one.\n\nThird."), Document("Second one.")]
    kept, count = apart(documents, {"Second one."})
    assert count == 2 and [d.text for d in kept] == ["First one. Third."]
    assert apart(documents, set())[0][0].text == documents[0].text


# ------------------------------------------------------------------------------------------------------------ latent loss
def bert(layers: int, width: int, heads: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=16,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return transformers.BertForSequenceClassification(config).eval()


def shown(model: nn.Module, taps: list[str], ids: Tensor, mask: Tensor) -> dict[str, Any]:
    from limbeck.grammar.signal import Tap

    tap = Tap(model, taps)
    with tap:
        model(input_ids=ids, attention_mask=mask)
    return dict(tap.acts)


IDS = torch.arange(24).view(3, 8) + 1
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 3 + [0] * 5])


@pytest.mark.parametrize("kind", ["scores", "probabilities"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_latent_loss_is_that_of_the_models_own_maps(kind: Any, whole: bool) -> None:
    small, large = bert(2, 8, 2), bert(4, 16, 2, 1)
    latent = Latent(small, large, kind, whole=whole)
    assert latent.map == [2, 4]
    acts = [shown(m, latent.taps(i), IDS, MASK) for i, m in enumerate((small, large))]
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    out = [
        m(input_ids=IDS, attention_mask=MASK, output_attentions=True, output_hidden_states=True) for m in (small, large)
    ]
    hid, att = torch.zeros(3), torch.zeros(3)
    for n in range(3):  # one item after another, its real tokens alone (or all of them)
        t = 8 if whole else int(MASK[n].sum())
        for a, b in ((0, 0), (1, 2), (2, 4)):
            hid[n] += (out[0].hidden_states[a][n, :t] @ w - out[1].hidden_states[b][n, :t]).square().mean()
        if kind == "probabilities":
            for a, b in ((0, 1), (1, 3)):
                att[n] += (out[0].attentions[a][n, :, :t, :t] - out[1].attentions[b][n, :, :t, :t]).square().mean()
    torch.testing.assert_close(latent.states(acts, lambda _, h: h @ w, MASK), hid)
    found = latent.attention(acts, MASK)
    assert found is not None
    if kind == "probabilities":
        torch.testing.assert_close(found, att)
    else:  # the softmax of the scores is the model's own attention
        from limbeck.parts.latent import scores_of

        z = scores_of(latent.pairs[1][0].read(acts[0], small), MASK)
        torch.testing.assert_close(z.softmax(-1), out[0].attentions[1])
        other = scores_of(latent.pairs[1][1].read(acts[1], large), MASK)
        one = score_distance(z, other, where=None if whole else MASK).mean(-1)
        assert bool((found >= one).all())
    if not whole:  # padding changes nothing
        cut = [shown(m, latent.taps(i), IDS[:, :5], MASK[:, :5]) for i, m in enumerate((small, large))]
        torch.testing.assert_close(latent.attention(cut, MASK[:, :5])[1:], found[1:])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["scores", "probabilities", "relations", "hidden"])
def test_an_equal_student_has_nothing_to_learn(kind: Any) -> None:
    model = bert(2, 8, 2)
    latent = Latent(model, bert(2, 8, 2), kind)
    acts = [shown(model, latent.taps(i), IDS, MASK) for i in (0, 1)]
    assert float(latent.states(acts, lambda _, h: h, MASK).detach().abs().max()) == 0
    found = latent.attention(acts, MASK)
    assert (found is None) == (kind == "hidden")
    assert found is None or float(found.detach().abs().max()) < 1e-6


def test_scores_of_padding_count_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 6, 6, generator=g) for _ in range(2))
    where = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    wanted = torch.stack(
        [(x[0, :, :4, :4] - y[0, :, :4, :4]).square().mean((1, 2)), (x[1] - y[1]).square().mean((1, 2))]
    )
    torch.testing.assert_close(score_distance(x, y, where=where), wanted)
    torch.testing.assert_close(score_distance(x, y), (x - y).square().mean((2, 3)))


# ------------------------------------------------------------------------------------------------------------------ a run
@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Tiny:
    # a seed of its own: a stage that another test has left remembered in the workspace would not begin here
    return tiny("ernie-tiny", tmp_path_factory.mktemp("plan"), "method.replaced=0.5", "train.steps=8", seed=58)


def test_stages_hand_over_student_and_projection(made: Tiny) -> None:
    """Each stage begins where the one before it has ended; the classifier moves in the last stage alone, W in every stage."""
    seen: list[tuple[str, dict[str, Tensor]]] = []
    method: Any = made.method
    stages = method.stages

    def watched() -> list[Any]:
        found = stages()
        for stage in found:
            stage.begin = watching(stage.name, stage.begin)
            stage.finish = watching(f"{stage.name} ends", stage.finish)
        return found

    def watching(name: str, inner: Any) -> Any:
        def look(ctx: Any) -> None:
            if inner is not None:
                inner(ctx)
            states = {f"{n}.{k}": v.clone() for n, r in method.roles.items() for k, v in r.module.state_dict().items()}
            seen.append((name, states))

        return look

    method.stages = watched
    made.run()
    by = dict(seen)
    assert [n for n, _ in seen if "ends" not in n] == ["pretrain", "tune", "gd", "ged", "tad", "tsd"]
    order = ["gd", "ged", "tad", "tsd"]
    for a, b in itertools.pairwise(order):
        assert all(torch.equal(v, by[b][k]) for k, v in by[f"{a} ends"].items())
    for name in order:
        before, after = by[name], by[f"{name} ends"]
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        assert "projection.weight" in moved and any(k.startswith("student.bert.encoder") for k in moved)
        assert any(k.startswith("student.classifier") for k in moved) is (name == "tsd")
        assert not any(k.startswith(("teacher.", "pretrained.")) for k in moved)
    # the teacher was fine-tuned from the encoder that learnt masked words, which then stood still
    begun = by["tune"]
    assert all(torch.equal(begun[f"pretrained.{k}"], begun[f"teacher.{k}"]) for k in
               (n.removeprefix("teacher.") for n in begun if n.startswith("teacher.bert.")))  # fmt: skip


def test_the_last_stage_adds_soft_and_hard(made: Tiny) -> None:
    method: Any = made.method
    stage = made.engine.stages[-1]
    task: Any = made.bench.task
    ids = torch.arange(4)
    batch = {**task.train.fetch(ids), "item": ids, "view": torch.zeros(4, dtype=torch.long)}
    ctx = RunContext(made.engine, method, stage, torch.device("cpu"))
    method.temperature = 2.0
    terms = method.distil(method.plan[-1], batch, ctx)
    assert set(terms) == {"attention", "hidden", "soft", "hard"}
    z_s, z_t = (
        method.roles[n].module.eval()(input_ids=batch["x"], attention_mask=batch["attention_mask"]).logits
        for n in ("student", "teacher")
    )
    p = (z_t / 2).softmax(-1)
    kl = 4 * (p * (p.log() - (z_s / 2).log_softmax(-1))).sum(-1)
    torch.testing.assert_close(terms["soft"].values, kl, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(terms["hard"].values, F.cross_entropy(z_s, batch["y"]), atol=1e-5, rtol=1e-4)
    method.temperature = 1.0
    for phase in method.plan[:-1]:
        rows = method.general_rows.fetch(ids) if phase.text == "general" else task.train.fetch(ids)
        assert set(method.distil(phase, {**rows, "item": ids, "view": torch.zeros(4, dtype=torch.long)}, ctx)) == {
            "attention", "hidden"}  # fmt: skip
    # words are replaced in tad alone, marks and padding stay
    other = method.replace(batch, ctx)
    changed = other["x"] != batch["x"]
    special = torch.isin(batch["x"], torch.tensor(task.tokenizer.all_special_ids))
    assert bool(changed.any()) and not bool((changed & special).any())


@pytest.mark.parametrize(
    "settings",
    [
        ["method.latent=relations", "student.heads=3", "method.relation_heads=6"],
        ["method.latent=hidden", "method.projections=layer", "student.heads=3"],
        ["method.variant=released", "method.layer_map=[1]", "method.latent=probabilities"],
        ["method.phases=[gd]"],
        ["method.phases=[tsd]", "method.latent_weight=0", "method.temperature=3"],
    ],
)
def test_switches(settings: list[str], tmp_path: Path) -> None:
    found = tiny("ernie-tiny", tmp_path, "train.steps=4", *settings)
    before = {n: p.clone() for n, p in found.method.roles["student"].module.named_parameters()}  # type: ignore[union-attr]
    found.run()
    after = dict(found.method.roles["student"].module.named_parameters())  # type: ignore[union-attr]
    assert any(not torch.equal(before[n], p) for n, p in after.items())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student.heads=3"], r"student\.heads.*latent=relations"),
        (["teacher.layers=3", "student.layers=2"], r"student\.layers.*1, 3"),
        (["method.layer_map=[3]"], r"method\.layer_map"),
        (["method.phases=[]"], r"method\.phases"),
        (["method.phases=[gd,gd]"], r"method\.phases"),
        (["method.phases=[gdx]"], r"method\.phases"),
        (["method.teachers={tsd: pretrained}"], r"method\.teachers"),
        (["method.texts={tsd: general}"], r"method\.texts"),
        (["method.soft_weight=0", "method.hard_weight=0", "method.latent_weight=0"], r"method\.latent_weight"),
        (["participants.pretrained={use: encoder, layers: 2, width: 24}"], "has no pretrained weights"),
        (["method.general=text:nowhere"], r"method\.general.*no such file"),
        (["task={use: masked-words}"], "task=text-classes"),
    ],
)
def test_bad_settings_are_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises((LimbeckError, ValueError), match=said):
        tiny("ernie-tiny", tmp_path, *overrides)


def test_a_real_folder_is_fine_tuned_and_a_finetuned_one_wants_its_origin(tmp_path: Path) -> None:
    """``hf:`` of an encoder: it is gd's teacher as it comes, and is tuned; of a classifier, the other must be named."""
    from limbeck.tasks.tokenizers import word_tokenizer

    tokenizer = word_tokenizer(["a text of some words"], 300)
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "plain")
    config.num_labels = 3
    config.id2label = {0: "compound", 1: "specialnames", 2: "types"}
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "tuned")
    for name in ("plain", "tuned"):
        tokenizer.save_pretrained(tmp_path / name)
    found = tiny("ernie-tiny", tmp_path / "a", f"teacher=hf:{tmp_path / 'plain'}", "train.steps=4")
    assert [s.name for s in found.method.stages()] == ["tune", "gd", "ged", "tad", "tsd"]
    with pytest.raises(LimbeckError, match=r"participants\.pretrained.*fine-tuned"):
        tiny("ernie-tiny", tmp_path / "b", f"teacher=hf:{tmp_path / 'tuned'}", "teacher.check=off")
    found = tiny(
        "ernie-tiny", tmp_path / "c", f"teacher=hf:{tmp_path / 'tuned'}", "teacher.check=off",
        f"participants.pretrained=hf:{tmp_path / 'plain'}", "train.steps=4",
    )  # fmt: skip
    found.run()
    assert [s.name for s in found.engine.stages] == ["gd", "ged", "tad", "tsd"]


def test_presets_are_recipes() -> None:
    for preset in (None, "tinybert", "sst2"):
        recipe = build(check(load_tree("ernie-tiny", [], preset=preset)))
        assert isinstance(recipe.method, ErnieTiny)
