"""DCGLR: a step against plain loops, what its switches do, and what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import limbeck
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.schedule import cosine
from limbeck.grammar.method import Gather, Gathered, Share, Terms
from limbeck.run.running import run
from tests.tiny import Tiny, differences, tiny, tree_of


def first_step(folder: Path, *overrides: str) -> tuple[Tiny, Terms, dict[str, Any], RunContext]:
    """A run that has not begun, the terms of its first step, the batch, and the context."""
    made = tiny("dcglr", folder, *overrides)
    engine, method = made.engine, made.method
    engine.rehearse(method)
    stage = engine.stages[0]
    ctx = RunContext(engine, method, stage, engine.device).at(0)
    batch = next(iter(engine.batches(stage, 0, 1)))[0]
    found: Any = None
    answer: Any = None
    phases: Any = method.step(batch, ctx)
    try:
        while True:
            found = phases.send(answer)
            if isinstance(found, Share):
                answer = dict(found)
            elif isinstance(found, Gather):
                answer = Gathered(found)
            else:
                terms, answer = found, None
    except StopIteration:
        return made, terms, batch, ctx


def answers(
    made: Tiny, batch: dict[str, Any], ctx: RunContext
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Embeddings and logits of teacher and student, view by view, each view alone through the network."""
    method: Any = made.method
    crops = method.views.cut(batch["x"], batch["item"] + (batch["view"] << 40), ctx.draws)
    views = [v for group in (crops.large, *crops.others) for v in group]
    m = {n: r.module for n, r in method.roles.items()}
    z_t = [m["teacher_head"].mlp(m["teacher"](v)) for v in views[:2]]
    z_s = [m["head"].mlp(m["student"](v)) for v in views]
    t = [m["teacher_head"].last_layer(normalize(z, dim=-1)) for z in z_t]
    s = [m["head"].last_layer(normalize(z, dim=-1)) for z in z_s]
    return z_t, t, z_s, s


def test_a_step_is_what_the_formulas_say(tmp_path: Path) -> None:
    made, terms, batch, ctx = first_step(tmp_path, "method.queue=6", "train.batch_size=3")
    method: Any = made.method
    queue, c = normalize(torch.randn(5, 4), dim=1), 0.1 * torch.randn(8)
    method.state.update(queue=queue, centre=c)
    z_t, t, z_s, s = answers(made, batch, ctx)
    steps: Any = method.step(batch, ctx)
    share = next(steps)
    gather = steps.send(dict(share))
    terms = steps.send(Gathered(gather))
    for i in range(3):
        pairs = []
        for q in range(2):
            p = ((t[q][i] - c) / 0.04).softmax(-1)
            pairs += [-(p * (s[v][i] / 0.1).log_softmax(-1)).sum() for v in range(4) if v != q]
        torch.testing.assert_close(terms["distil"].values[i], torch.stack(pairs).mean())
        ways = []
        for a, b in ((0, 1), (1, 0)):
            own = normalize(z_s[a][i], dim=0)
            cosines = [own @ normalize(z_t[b][j], dim=0) for j in range(3)] + [own @ row for row in queue]
            ways.append(torch.logsumexp(torch.stack(cosines) / 0.1, 0) - cosines[i] / 0.1)
        torch.testing.assert_close(terms["contrast"].values[i], torch.stack(ways).mean())
    assert torch.equal(method.state["centre"], c)  # until the step is done
    method.observe({}, ctx)
    torch.testing.assert_close(method.state["centre"], 0.9 * c + 0.1 * torch.stack(t).mean((0, 1)))
    every = torch.cat([queue, *(normalize(z, dim=-1) for z in z_t)])
    torch.testing.assert_close(method.state["queue"], every[-6:])


def test_npair_compares_distributions_with_logits(tmp_path: Path) -> None:
    made, terms, batch, ctx = first_step(tmp_path, "method.contrast_form=npair", "train.batch_size=3")
    _, t, _, s = answers(made, batch, ctx)
    for i in range(3):
        found = []
        for q in range(2):
            p = (t[q][i] / 0.04).softmax(-1)
            for v in [v for v in range(4) if v != q]:
                scores = torch.stack([64 * p @ (s[v][j] / 0.1) for j in range(3)])
                found.append(scores.logsumexp(0) - scores[i])
        torch.testing.assert_close(terms["contrast"].values[i], torch.stack(found).mean(), rtol=1e-4, atol=1e-4)
    assert terms["contrast"].weight == 0.01
    whole = tiny("dcglr", tmp_path / "a", "method.contrast_form=npair").run()
    parts = tiny("dcglr", tmp_path / "b", "method.contrast_form=npair", "engine.accumulate=2").run()
    for role in whole.method.roles:
        one, two = (r.method.roles[role].module.state_dict() for r in (whole, parts))
        assert not differences(dict(one), dict(two), tolerance=1e-5)


@pytest.mark.parametrize(
    ("overrides", "names", "learn"),
    [
        (["method.loss=distill"], {"distil"}, {"student", "head"}),
        (["method.loss=contrast"], {"contrast"}, {"student", "head"}),
        (["method.loss=contrast", "method.embedding=projector"], {"contrast"}, {"student", "projector"}),
        (["method.embedding=projector"], {"distil", "contrast"}, {"student", "head", "projector"}),
        (["method.contrast_weight=0"], {"distil"}, {"student", "head"}),
        (["method.centering=false", "method.views.local=0"], {"distil", "contrast"}, {"student", "head"}),
    ],
)
def test_which_terms_there_are_and_who_learns(
    overrides: list[str], names: set[str], learn: set[str], tmp_path: Path
) -> None:
    made = tiny("dcglr", tmp_path, "train.steps=2", *overrides)
    before = {n: copy.deepcopy(r.module.state_dict()) for n, r in made.method.roles.items()}
    made.run()
    assert set(made.method.learners) == learn
    for role in learn:
        assert differences(before[role], dict(made.method.roles[role].module.state_dict()))
        average = "teacher" if role == "student" else f"teacher_{role}"
        assert differences(before[average], dict(made.method.roles[average].module.state_dict()))
    assert set(first_step(tmp_path / "step", *overrides)[1]) == names
    moved = bool(made.method.state["centre"].any())
    assert moved == ("distil" in names and "method.centering=false" not in overrides)


def test_prototypes_stay_for_an_epoch_and_the_teacher_follows(tmp_path: Path) -> None:
    made = tiny(
        "dcglr", tmp_path, "method.freeze=1", "train.steps=4", "method.momentum=0.9"
    )  # 12 items, 4 a step: 3 an epoch
    seen: list[dict[str, Tensor]] = []
    method: Any = made.method
    real = method.observe

    def observe(means: Any, ctx: Any) -> None:
        real(means, ctx)
        roles = ("student", "teacher", "head")
        seen.append(
            {f"{r}.{n}": p.detach().clone() for r in roles for n, p in method.roles[r].module.named_parameters()}
        )

    method.observe = observe
    first = {n: p.detach().clone() for n, p in method.roles["head"].module.named_parameters()}
    made.run()
    assert all(torch.equal(s["head.last_layer.weight_v"], first["last_layer.weight_v"]) for s in seen[:3])
    assert not torch.equal(seen[3]["head.last_layer.weight_v"], first["last_layer.weight_v"])
    name = "layers.1.linear.weight"  # observe comes before the average moves
    for step in range(3):
        m = cosine(step, 4, start=0.9, end=1.0)
        want = m * seen[step][f"teacher.{name}"] + (1 - m) * seen[step][f"student.{name}"]
        torch.testing.assert_close(seen[step + 1][f"teacher.{name}"], want)


def test_flat_parameters_do_not_decay_and_each_is_clipped(tmp_path: Path) -> None:
    made = tiny("dcglr", tmp_path)
    optim = made.method.stages()[0].optim["student"]
    assert optim.clip == 3.0 and optim.clip_by == "parameter" and optim.weight_decay_end == 0.4
    flat = {n for n, p in made.method.roles["student"].module.named_parameters() if p.ndim < 2}
    assert flat and {n for n, g in optim.groups.items() if g == {"weight_decay": 0.0}} == flat
    assert optim.decay(0, 10) == 0.04 and math.isclose(optim.decay(10, 10) or 0, 0.4)


def test_both_networks_are_judged_and_either_is_delivered(tmp_path: Path) -> None:
    result = run(tree_of("dcglr", "method.deliver=teacher", "method.views.resolutions=[8]"), tmp_path, quiet=True)
    assert list(result["metrics"]["rows"]) == ["student", "learner", "alone", "random"]
    assert result["primary"] == "accuracy" and result["pictures"][0]["pixels"]
    from safetensors.torch import load_file

    assert not any("head" in n for n in load_file(tmp_path / "student.safetensors"))
    cloud = np.random.default_rng(0).normal(size=(31, 3))
    np.savetxt(tmp_path / "chair.xyz", cloud)
    found = limbeck.load(tmp_path).predict([str(tmp_path / "chair.xyz"), cloud])
    first, second = (one.tensors["feature"] for one in found.answers)
    assert first.shape == (8,) and torch.allclose(first, second, atol=1e-5)
    with pytest.raises(LimbeckError, match="no rows of x, y, z"):
        limbeck.load(tmp_path).predict(np.zeros((4, 2)))


def test_clouds_without_labels_are_judged_on_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "bare.npy", rng.normal(size=(30, 24, 3)).astype(np.float32))
    bare = [f"task.data=cloud-arrays:{tmp_path / 'bare.npy'}", "task.student_items=null"]
    with pytest.raises(ConfigError, match=r"evaluator\.on"):
        run(tree_of("dcglr", *bare), tmp_path / "a", quiet=True)
    on = "evaluator.on={use: clouds, data: {use: picture-clouds, points: 24}}"
    found = run(tree_of("dcglr", *bare, on), tmp_path / "b", quiet=True)
    assert list(found["metrics"]["rows"]) == ["student", "average", "random"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.batch_size=1"], r"train\.batch_size"),
        (["method.views.local_share=[0.05, 0.5]"], r"local_share"),
        (["method.views.local_share=[0.5, 0.2]"], r"smaller first"),
        (["method.views.resolutions=[99]"], r"resolutions"),
        (["student={use: vit3d, width: 8, heads: 2, depth: 1, patch: 16, norm: layer}"], r"local_points"),
        (["student={use: dgcnn, k: 25}"], "25 or more"),
        (["student={use: mlp}"], "reads"),
        (["method.loss=distill", "method.queue=8"], "queue"),
        (["method.loss=contrast", "method.contrast_weight=0"], "contrast_weight"),
        (["method.contrast_form=npair", "method.queue=8"], "npair"),
        (["task=classification"], "task=cloud-features"),
        (["evaluator={use: direct}"], "probe"),
    ],
)
def test_what_cannot_be_is_refused_before_training(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        run(tree_of("dcglr", *overrides), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints").exists()


def test_a_blunt_teacher_is_warned_of(tmp_path: Path) -> None:
    notes = tiny("dcglr", tmp_path, "method.teacher_temperature=0.2", "method.centering=false").method.notes
    assert len(notes) == 2 and "one answer" in notes[0] and "centering" in notes[1]


def test_presets_of_other_encoders_learn(tmp_path: Path) -> None:
    for i, student in enumerate(
        (
            "{use: dgcnn, k: 4, widths: [6], wide: 8, features: 6, norm: layer}",
            "{use: vit3d, width: 8, heads: 2, depth: 1, patch: 6, norm: batch}",
        )
    ):
        made = tiny(
            "dcglr", tmp_path / str(i), f"student={student}", "train.steps=2", "method.teacher_statistics=student"
        )
        before = copy.deepcopy(made.method.roles["student"].module.state_dict())
        made.run()
        assert differences(before, dict(made.method.roles["student"].module.state_dict()))
