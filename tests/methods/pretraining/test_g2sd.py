"""G2SD: both see the same patches, each switch, three tasks, a teacher of transformers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.functional.dense import channel_divergence
from limbeck.functional.pretraining import (
    hidden_state_distance,
    qkv_relation_divergence,
    random_masking,
    supervised_tokens,
    token_distillation,
)
from limbeck.functional.richness import richness_mean, richness_terms
from limbeck.grammar.method import Share, Terms
from limbeck.grammar.role import cast
from limbeck.methods.pretraining.g2sd import G2sd
from limbeck.networks.two_stage import maps_of
from limbeck.networks.vision_transformer import encoder_of
from tests.tiny import Tiny, differences, state_of, tiny

MAPS = (
    "task={use: dense, data: {use: digit-scenes, items: 16, test_items: 6, side: 16, each: 1}}",
    "student.patch=4",
    "student.token=false",
    "teacher.patch=4",
)
BOXES = (
    "task={use: boxes, data: {use: objects-on-photos, items: 8, test_items: 4, side: 32, most: 2}}",
    *MAPS[1:],
    "student.proposals=8",
    "teacher.proposals=8",
    "teacher.head_width=16",
    "method.warm_steps=2",
)


def at(made: Tiny, stage: str, step: int = 0) -> tuple[dict[str, Any], RunContext]:
    """The first batch of a stage, and the context of a step."""
    made.engine.prepare(made.method)
    (found,) = (s for s in made.engine.stages if s.name == stage)
    batch = next(iter(made.engine.batches(found, 0, 1)))[0]
    return batch, RunContext(made.engine, made.method, found, made.engine.device).at(step)


def first(made: Tiny, stage: str) -> Terms:
    batch, ctx = at(made, stage)
    found = getattr(made.method, "step" if stage == "specific" else stage)(batch, ctx)
    assert isinstance(found, Terms)
    return found


def expected(made: Tiny) -> tuple[dict[str, Any], Any, Any]:
    """The generic stage's batch, the images as the student takes them, and the masking, drawn by its own key."""
    batch, ctx = at(made, "generic")
    x = made.method.roles["student"].contract.inputs(batch["x"])
    noise = ctx.draws.rand("masking", batch["item"], (16,))
    return batch, x, random_masking(noise, made.method.mask_ratio)  # type: ignore[attr-defined]


@pytest.mark.parametrize("supervise", ["all", "masked", "visible"])
def test_the_generic_term_is_the_paper_s(supervise: Any, tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path, f"method.supervise={supervise}", "method.target_layer=1")
    term = first(made, "generic")["hidden"]
    roles = made.method.roles
    student, decoder, mae = (roles[n].module for n in ("student", "decoder", "mae"))
    _, x, masking = expected(made)
    with torch.no_grad():
        y = mae.decode(mae.encode(x, masking), masking, 1)  # the teacher's contract is the student's here
        p = decoder(student.encode(x, masking), masking)
    where = supervised_tokens(masking, supervise)
    each = hidden_state_distance(p, y, beta=2.0, where=where)
    torch.testing.assert_close(term.values.mean(), each.sum() / where.sum())
    assert term.to == ("student", "decoder")


def test_every_target_is_what_it_says(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path / "e", "method.target=encoder")
    term = first(made, "generic")["hidden"]
    _, x, masking = expected(made)
    roles = made.method.roles
    with torch.no_grad():
        y = roles["mae"].module.encode(x, masking, norm=False)
        p = roles["predictor"].module(roles["student"].module.encode(x, masking))
    torch.testing.assert_close(term.values, hidden_state_distance(p, y).mean(1))

    made = tiny("g2sd", tmp_path / "r", "method.target=relation", "method.relation_heads=4", "student.depth=1")
    term = first(made, "generic")["relation"]
    _, x, masking = expected(made)
    roles = made.method.roles
    with torch.no_grad():
        s, t = (roles[n].module.projections(x, masking) for n in ("student", "mae"))
    assert len(s) == 1 and len(t) == 2
    torch.testing.assert_close(term.values, qkv_relation_divergence(s[0], t[1], 4))

    made = tiny(
        "g2sd", tmp_path / "p", "method.target=pixels", "method.specific=none", "method.crop=0.5", "method.mirror=true"
    )
    assert not made.bench.others and made.bench.teacher is None  # nobody teaches
    assert [s.name for s in made.method.stages()] == ["generic", "specific"]
    made.run()


def test_the_token_learns_what_the_teacher_says(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path, "method.unlabelled=false", "method.smoothing=0.2")
    terms = first(made, "specific")
    batch, _ = at(made, "specific")
    student, teacher = (made.method.roles[n].module for n in ("student", "teacher"))
    x = made.method.roles["student"].contract.inputs(batch["x"])
    found: dict[str, torch.Tensor] = {}
    for name in ("head", "token_head"):
        getattr(student, name).register_forward_hook(lambda m, i, o, n=name: found.__setitem__(n, o))
    with torch.no_grad():
        student(x)
        z_t = teacher.eval()(x)
    soft = torch.nn.functional.one_hot(batch["y"], 10) * 0.8 + 0.02
    whole = token_distillation(found["head"], found["token_head"], z_t, soft)
    torch.testing.assert_close(0.5 * terms["ce"].values + 0.5 * terms["token"].values, whole)
    assert terms["ce"].weight == terms["token"].weight == 0.5


def test_pictures_without_labels_are_asked_about_too(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path / "a")
    method: Any = made.method
    assert len(method.more) == 987 and len(method.task.train) == 24
    batch, ctx = at(made, "specific")
    terms = method.step(batch, ctx)
    part = {k: v[:2] for k, v in batch.items()}
    again = method.step(part, RunContext(made.engine, method, made.engine.stages[-1], made.engine.device).at(0))
    torch.testing.assert_close(terms["token"].values[:2], again["token"].values)  # each item asks for its own
    pool = tiny("g2sd", tmp_path / "b", "task.unlabelled={use: printed, items: 40}")
    assert len(pool.method.images) == 40 == len(pool.method.more)  # type: ignore[attr-defined]
    whole = tiny("g2sd", tmp_path / "c", "task.student_items=null")
    assert whole.method.more is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["soft_kl", "nkd"])
def test_other_terms_for_classes(how: str, tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path, f"method.specific={how}", "student.token=false", "method.unlabelled=false")
    terms = first(made, "specific")
    batch, _ = at(made, "specific")
    roles = made.method.roles
    with torch.no_grad():
        z_s, z_t = (roles[n].module.eval()(roles[n].contract.inputs(batch["x"])) for n in ("student", "teacher"))
    if how == "soft_kl":
        assert set(terms) == {"ce", "kl"}
        torch.testing.assert_close(terms["kl"].values, F.kl(z_s, z_t))
    else:
        assert set(terms) == {"target", "nontarget"}
        torch.testing.assert_close(terms["nontarget"].values, F.nkd(z_s, z_t, batch["y"], gamma=1.0).nontarget)


def test_maps_are_matched_channel_by_channel(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path, *MAPS)
    made.run()
    terms = first(made, "specific")
    batch, ctx = at(made, "specific")
    z_s, z_t = (ctx.signal(n, batch).logits for n in ("student", "teacher"))
    torch.testing.assert_close(terms["cwd"].values, channel_divergence(z_s, z_t).mean(-1))
    assert terms["cwd"].weight == 10
    made.method.variant = "released"  # type: ignore[attr-defined]
    shown = made.method.step(batch, ctx)["cwd"].values  # type: ignore[index]
    torch.testing.assert_close(shown, channel_divergence(z_s, z_t, value="cross_entropy").mean(-1))
    assert float((shown - terms["cwd"].values).detach().min()) > 0


def test_boxes_are_matched_where_the_teacher_sees_objects(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path, *BOXES, "train.lr=0.005", "stages.pretrain.mae.lr=0.005")
    made.run()
    batch, ctx = at(made, "specific", step=1)
    cast(made.method.roles, ("student", "adapt"))
    method: Any = made.method
    steps = method.detect(batch, ctx)
    share = next(steps)
    assert isinstance(share, Share)
    terms = steps.send(dict(share))
    sides = []
    for name in ("student", "teacher"):
        role = method.roles[name]
        maps = maps_of(role.module, role.contract.inputs(batch["x"]))
        sides.append((list(maps.features.values()), role.module.rpn.head(list(maps.features.values()))[0]))
    (f_s, o_s), (f_t, o_t) = sides
    levels = [richness_terms(*each) for each in zip(method.roles["adapt"].module(f_s), f_t, o_s, o_t, strict=True)]
    for name in ("features", "objectness"):
        want = sum(richness_mean(getattr(level, name), level.weight) for level in levels)
        torch.testing.assert_close(terms[name].values.mean(), want)
    assert terms["features"].weight == 0.0005 and terms["objectness"].weight == 0.05  # half of the warm-up
    assert {n for n in terms if n.startswith("ce.")} >= {"ce.objectness", "ce.class"}
    assert f_s[0].shape[1] == 32 != f_t[0].shape[1]


def test_the_teacher_is_remembered_and_begins_where_it_was_pre_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "space"))

    def made(name: str, *words: str, seed: int = 0) -> tuple[Tiny, set[str]]:
        run = tiny("g2sd", tmp_path / name, "stages.tune.steps=0", *words, seed=seed).run()
        return run, {p.name for p in (tmp_path / "space").rglob("*") if p.name.startswith(("pretrain-", "tune-"))}

    one, first_ = made("1")
    place = encoder_of(one.method.roles["teacher"].module)
    assert place is not None
    mae = one.method.roles["mae"].module.state_dict()
    assert not differences(dict(place[1].state_dict()), {k: mae[k] for k in place[1].state_dict()})
    other, second = made("2", "student.width=12", "student.heads=3")  # another student, the same teacher
    assert first_ == second and len(first_) == 2
    for name in ("mae", "teacher"):
        a, b = (dict(m.method.roles[name].module.state_dict()) for m in (one, other))
        assert not differences(a, b)
    third, all_ = made("3", seed=5)  # another seed has other labels, and the same images
    assert len(all_ - first_) == 1 and (all_ - first_).pop().startswith("tune-")
    assert not differences(mae, dict(third.method.roles["mae"].module.state_dict()))


def test_layers_learn_the_slower_the_deeper_they_lie(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path, "method.layer_decay=0.5", "train.weight_decay=0.1")
    stage = made.method.stages()[-1]
    assert stage.name == "specific"
    named = made.method.roles["student"].parameters()
    groups = stage.optim["student"].build(named).param_groups
    where = {id(p): g for g in groups for p in g["params"]}
    rates = {n: round(where[id(p)]["times"], 4) for n, p in named.items()}
    assert rates["encoder.patch_embed.proj.weight"] == rates["encoder.cls_token"] == 0.125
    assert (rates["encoder.blocks.0.attn.qkv.weight"], rates["encoder.blocks.1.mlp.fc1.bias"]) == (0.25, 0.5)
    assert rates["head.weight"] == rates["dist_token"] == rates["encoder.norm.weight"] == 1
    decayed = {n for n, p in named.items() if where[id(p)]["weight_decay"]}
    assert "head.weight" in decayed and "encoder.blocks.0.attn.qkv.weight" in decayed
    assert not any(n.endswith("bias") or "norm" in n or "token" in n.split(".")[-1] for n in decayed)


def test_a_later_run_goes_on_from_a_generic_student(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path / "generic", "method.phases=generic", "evaluator={use: probe, how: knn}").run()
    made.method.artifact().save(tmp_path / "generic")
    later = tiny("g2sd", tmp_path / "later", "method.phases=specific", f"student.weights={tmp_path / 'generic'}")
    place = encoder_of(later.method.roles["student"].module)
    own = made.method.roles["student"].module.encoder.state_dict()
    assert place is not None and not differences(dict(place[1].state_dict()), dict(own))
    assert [s.name for s in later.method.stages()] == ["pretrain", "tune", "specific"]
    maps = tiny(
        "g2sd",
        tmp_path / "maps",
        *MAPS[:1],
        *MAPS[2:3],
        "method.phases=specific",
        f"student.weights={tmp_path / 'generic'}",
    )
    found = encoder_of(maps.method.roles["student"].module)
    assert found is not None and found[1].grid == (8, 8)  # positions of another grid are interpolated
    assert torch.equal(found[1].blocks[0].attn.qkv.weight, own["blocks.0.attn.qkv.weight"])  # type: ignore[union-attr]


def test_the_report_shows_hidden_patches(tmp_path: Path) -> None:
    made = tiny("g2sd", tmp_path)
    (image,) = made.method.extras()["pictures"]
    rows = torch.tensor(image["pixels"])
    assert rows.shape == (3, 6, 1, 8, 8)
    true = (255 * made.method.task.example(6)["x"]).round()
    assert float((rows[0] - true).abs().max()) <= 1
    seen = rows[1] != rows[1].flatten().mode().values  # what is hidden has one shade of grey
    assert 0.2 < float(seen.float().mean()) <= 0.25
    assert torch.equal(rows[2][seen], rows[0][seen]) and torch.equal(rows[1][seen], rows[0][seen])
    assert not torch.equal(rows[2], rows[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.patch=4"], r"student.patch.*4 patches of 4 pixels.*16 of 2"),
        (["student.patch=3"], r"student.patch.*do not fill images of 8 x 8.*task.size"),
        (["method.target_layer=3"], r"target_layer.*3.*1 to 2"),
        (["method.mask_ratio=1"], r"mask_ratio.*below 1"),
        (["method.mask_ratio=0.99"], r"leaves one of 16 patches"),
        (["student.token=false"], r"student.token.*distillation token.*soft_kl"),
        (["method.specific=cwd"], r"specific.*not for Classification.*hard_token"),
        (["method.specific=nkd", "method.phases=generic"], "specific"),
        (["method.target=encoder", "method.supervise=masked"], "supervise"),
        (["method.target=relation", "method.relation_heads=3"], r"relation_heads.*divisor of both widths, 8 and 16"),
        (["student=mlp"], r"student.*vision transformers.*student=vit"),
        (["teacher=mlp"], r"teacher.*participants.mae"),
        (["student.width=10"], "multiple of 4 and of heads"),
        (["teacher.decoder_width=6"], "decoder_width"),
        (["task={use: classification, data: {use: scikit-learn, name: wine}}"], r"(takes|no) images"),
        (["task=table"], r"task"),
        ([*BOXES, "student.levels=1"], r"pyramids and anchors differ"),
        ([*BOXES, "student.patch=2", "method.phases=specific", "student.levels=5"], r"student.levels.*stride of 64"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny("g2sd", tmp_path, *words)


def test_settings_are_the_paper_s() -> None:
    method = G2sd()
    assert (method.mask_ratio, method.beta, method.layer_decay) == (0.75, 2.0, 0.75)
    assert (method.weight_features, method.weight_objectness, method.warm_steps) == (0.001, 0.1, 500)


@pytest.mark.expensive
def test_cutting_a_batch_of_boxes_changes_nothing(tmp_path: Path) -> None:
    plain = ("train.optimizer=sgd", "train.lr=0.005", "stages.pretrain.mae.lr=0.005")
    one = tiny("g2sd", tmp_path / "1", *BOXES, *plain).run()
    two = tiny("g2sd", tmp_path / "2", *BOXES, *plain, "engine.accumulate=2").run()
    assert not differences(state_of(one), state_of(two), tolerance=1e-5)
