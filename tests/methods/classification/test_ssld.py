"""SSLD: which images are mined, that no label is read, the losses, the stages, and the teacher's BatchNorm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import limbeck.functional as F
from limbeck.data.items import ArrayData
from limbeck.engine.context import RunContext
from limbeck.errors import LimbeckError, TeacherMismatch
from limbeck.functional.selection import best_per_class
from limbeck.methods.classification.ssld import Ssld
from limbeck.parts.pool import Inputs, batch_statistics, nearest_cosine
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import shared_tiny as tiny

CONV = ("teacher={use: convnet, width: 4, depth: 1, norm: batch}", "student={use: convnet, width: 4, depth: 1}")


def test_best_per_class_is_the_sorted_list_of_each_class() -> None:
    g = torch.Generator().manual_seed(0)
    score, classes = torch.randn(200, generator=g), torch.randint(0, 9, (200,), generator=g)
    classes[classes == 4] = 3  # a class without items
    for k in (1, 5, 400):
        expected = [
            i for c in range(9) for i in sorted((classes == c).nonzero()[:, 0].tolist(), key=lambda i: -score[i])[:k]
        ]
        assert best_per_class(score, classes, k).nonzero()[:, 0].tolist() == sorted(expected)


def test_nearest_cosine_against_all_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 5, generator=g), torch.randn(11, 5, generator=g)
    expected = torch.stack([nn.functional.cosine_similarity(x[None], b).max() for x in a])
    torch.testing.assert_close(nearest_cosine(a, b), expected)
    assert nearest_cosine(a, b[:0]).tolist() == [-1.0] * 30


def test_inputs_keep_the_order_and_no_labels() -> None:
    x = torch.arange(10.0)[:, None]
    both = Inputs(ArrayData(x[:4], torch.zeros(4)), ArrayData(x[4:], torch.zeros(6)))
    batch = both.fetch(torch.tensor([9, 0, 4, 3]))
    assert list(batch) == ["x"] and batch["x"][:, 0].tolist() == [9, 0, 4, 3]


def test_losses_are_the_equations() -> None:
    g = torch.Generator().manual_seed(0)
    z_s, z_t = (torch.randn(6, 5, generator=g, dtype=torch.float64).mul(3) for _ in range(2))
    p, q = z_s.softmax(1), z_t.softmax(1)
    jeffreys = 0.5 * ((q * (q / p).log()).sum(1) + (p * (p / q).log()).sum(1))
    torch.testing.assert_close(Ssld().divergence(z_s, z_t), jeffreys)
    torch.testing.assert_close(Ssld(eps=1e-10).divergence(z_s, z_t), jeffreys)
    torch.testing.assert_close(Ssld(times_classes=True).divergence(z_s, z_t), 5 * jeffreys)
    m = (p + q) / 2
    jsd = 0.5 * ((q * (q / m).log()).sum(1) + (p * (p / m).log()).sum(1))
    torch.testing.assert_close(Ssld(loss="jsd").divergence(z_s, z_t), jsd)
    assert bool((jsd < math.log(2)).all()) and not torch.allclose(jsd, jeffreys)
    torch.testing.assert_close(Ssld(loss="soft_ce").divergence(z_s, z_t), -(q * p.log()).sum(1))
    torch.testing.assert_close(Ssld(loss="kl").divergence(z_s, z_t), (q * (q / p).log()).sum(1))
    soft = Ssld(temperature=2.0).divergence(z_s, z_t)
    torch.testing.assert_close(soft, 4 * Ssld().divergence(z_s / 2, z_t / 2))


def test_batch_statistics_leave_the_running_ones_and_the_modes() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(16, 3) * 4 + 7
    with batch_statistics(net):
        out = net(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m.training for m in net.modules()) and net[0].track_running_stats
    assert not torch.allclose(net(x), out)


@pytest.mark.parametrize("by", [pytest.param("features", marks=pytest.mark.expensive), "pixels"])
def test_duplicates_go_and_the_rest_is_used_without_labels(by: str, tmp_path: Path) -> None:
    made = tiny("ssld", tmp_path, f"method.duplicates={by}")
    method: Any = made.method
    first = method.stages()[1]
    assert list(first.data.fetch(torch.tensor([0, 250]))) == ["x"]  # one of its own, one of the pool
    made.run()
    own, found = len(method.task.train), method.measures()
    used = method.state["ids"][own:] - own
    assert method.state["ids"][:own].tolist() == list(range(own)) and len(used) == found["mined"]
    # the pool is the training split, of which the validation items are a part: all of them are found
    held = torch.cat([d.fetch(torch.arange(len(d)))["x"] for d in (method.task.valid, method.task.test)]).flatten(1)
    mined = method.pool.fetch(used)["x"].flatten(1)
    assert float(torch.cdist(mined, held).min()) > 0
    assert found["duplicates"] >= len(method.task.valid)
    (picture,) = method.extras()["pictures"]
    assert len(picture["pixels"]) == 2 and "removed as duplicates" in picture["caption"]


@pytest.mark.parametrize("rank", [pytest.param("score", marks=pytest.mark.expensive), "similarity"])
def test_the_best_of_each_class_by_either_rank(rank: str, tmp_path: Path) -> None:
    made = tiny("ssld", tmp_path, "method.per_class=3", f"method.rank={rank}", "method.duplicates=keep", *CONV).run()
    method: Any = made.method
    own, n = len(method.task.train), len(method.pool)
    used = method.state["ids"][own:] - own
    ctx = RunContext(made.engine, method, made.engine.stages[0], made.engine.device)
    rows = ctx.recorded("mine")
    pool = rows.fetch(torch.arange(n))
    if rank == "score":
        value = pool["score"]
    else:
        mine = rows.fetch(torch.arange(len(rows) - own, len(rows)))
        value = torch.stack(
            [
                nn.functional.cosine_similarity(f, mine["f"][mine["class"] == c].mean(0), dim=0)
                if bool((mine["class"] == c).any())
                else torch.tensor(-1.0)
                for f, c in zip(pool["f"], pool["class"], strict=True)
            ]
        )
    for c in pool["class"].unique():
        ids = (pool["class"] == c).nonzero()[:, 0]
        kept = torch.isin(ids, used)
        assert kept.sum() == min(3, len(ids))
        if not bool(kept.all()):
            assert value[ids[kept]].min() >= value[ids[~kept]].max() - 1e-6
    assert any("method.duplicates=keep" in note and "validation" in note for note in method.notes)


def test_the_stages_share_the_steps_and_lower_the_rate(tmp_path: Path) -> None:
    words = ["method.finetune=0.25", "method.fix=0.25", "train.steps=8", "train.warmup=4", *CONV]
    words += ["train.groups={features.*: {lr: 0.001}}"]
    made = tiny("ssld", tmp_path, *words)
    method: Any = made.method
    mine, first, own, fix = method.stages()
    assert (mine.name, [s.steps for s in (first, own, fix)]) == ("mine", [4, 2, 2])
    rates = [s.optim["student"].lr for s in (first, own, fix)]
    assert rates == pytest.approx([3e-3, 3e-5, 3e-5])
    assert own.optim["student"].groups["features.*"]["lr"] == pytest.approx(1e-5)
    assert own.data is fix.data is method.task.train and fix.augmented is False
    body = {n: p.clone() for n, p in method.roles["student"].module.named_parameters()}
    made.run()
    assert any(not torch.equal(p, body[n]) for n, p in method.roles["student"].module.named_parameters())
    assert fix.optim["student"].only == [f"{method.head}.*"]


def test_the_teacher_normalises_by_the_batch_and_does_not_move(tmp_path: Path) -> None:
    terms = {}
    for mode in ("train", "eval"):
        made = tiny("ssld", tmp_path / mode, *CONV, f"method.teacher_bn={mode}", "task.unlabelled=null")
        method: Any = made.method
        made.engine.prepare(method)
        ctx = RunContext(made.engine, method, made.engine.stages[0], made.engine.device)
        teacher = method.roles["teacher"].module
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        terms[mode] = method.step(method.task.example(6), ctx)["js"].values.detach()
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
        assert bool(method.coupled) == (mode == "train")
    assert not torch.allclose(terms["train"], terms["eval"])


def test_without_a_pool_labels_may_be_asked_for(tmp_path: Path) -> None:
    words = ["task.unlabelled=null", "method.label=0.5", "method.finetune=0", "method.loss=soft_ce"]
    made = tiny("ssld", tmp_path, *words)
    method: Any = made.method
    assert [s.name for s in method.stages()] == ["everything"]
    made.engine.prepare(method)
    ctx = RunContext(made.engine, method, made.engine.stages[0], made.engine.device)
    batch = method.task.example(4)
    terms = method.step(batch, ctx)
    assert set(terms) == {"soft_ce", "ce"} and terms["ce"].weight == 0.5
    torch.testing.assert_close(terms["ce"].values, F.cross_entropy(ctx.signals["student"].logits, batch["y"]))


def test_a_teacher_that_answers_with_probabilities_is_refused() -> None:
    z = torch.randn(4, 3)
    assert Ssld().checked(z) is z
    with pytest.raises(TeacherMismatch, match="probabilities"):
        Ssld().checked(z.softmax(1))
    z[1, 2] = math.nan
    with pytest.raises(TeacherMismatch, match=r"not finite.*on 1 of 4"):
        Ssld().checked(z)


def test_a_rate_that_is_not_lowered_is_said(tmp_path: Path) -> None:
    method: Any = tiny("ssld", tmp_path, "method.lr_divisor=1").method
    assert any("method.lr_divisor=1" in note for note in method.notes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.label=1"], r"method\.label.*pool have no labels"),
        (["method.per_class=5000"], r"method\.per_class.*at most the 1097"),
        (["method.duplicate_from=0.0001"], r"method\.duplicate_from.*all 1097.*raise it"),
        (["method.features=nose"], "nose"),
        (["train.batch_size=1", *CONV], r"train\.batch_size.*teacher_bn=eval"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny("ssld", tmp_path, *words).run()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.finetune=0.6", "method.fix=0.4"], "below 1"),
        (["method.loss=kl", "method.eps=1e-10"], "eps"),
        (["method.temperature=0"], "temperature"),
        (["method.lr_divisor=0"], "lr_divisor"),
        (["method.loss=jeffreys"], "loss"),
        (["method.duplicate_from=1"], "duplicate_from"),
    ],
)
def test_settings_outside_their_range(words: list[str], said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        build(check(load_tree("ssld", words)))
