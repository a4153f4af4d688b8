"""BD-KD: who is taught what, by which weights, and that gradients stay with the network they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.functional as F
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError
from limbeck.functional.balance import entropy_gap_weights
from limbeck.methods.classification.bd_kd import BdKd
from limbeck.recipe.recipe import check, load_tree
from limbeck.run.running import run
from tests.tiny import Tiny, tiny, tree_of


def step_of(made: Tiny, n: int = 6) -> list[Any]:
    """The phases of one step on a few items, every learner learning."""
    from limbeck.grammar.role import cast

    method: Any = made.method
    made.engine.prepare(method)
    stage = made.engine.stages[0]
    cast(method.roles, tuple(stage.optim))
    batch = method.task.example(n)
    return list(method.step(batch, RunContext(made.engine, method, stage, made.engine.device)))


def test_the_hand_example() -> None:
    z_t, z_s = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    w = entropy_gap_weights(z_s, z_t, delta=3.0)
    assert (w.forward.item(), w.reverse.item()) == (1.0, 3.0)
    assert w.teacher_entropy.item() == pytest.approx(0.3653, abs=1e-4)
    assert BdKd(delta=3.0).balanced(z_s, z_t).item() == pytest.approx(0.3278 + 3 * 0.4338, abs=1e-3)


def test_weights_depend_on_the_sign_of_the_gap_alone_and_carry_no_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    z_s, z_t = (torch.randn(50, 7, generator=g, dtype=torch.float64).mul(3).requires_grad_() for _ in range(2))
    hard = entropy_gap_weights(z_s, z_t)
    gap = hard.teacher_entropy - hard.student_entropy
    assert torch.equal(hard.forward == 2, gap > 0) and torch.equal(hard.reverse == 2, gap < 0)
    assert not any(w.requires_grad for w in hard)
    swapped = entropy_gap_weights(z_t, z_s)
    assert torch.equal(swapped.forward, hard.reverse) and torch.equal(swapped.reverse, hard.forward)
    soft = entropy_gap_weights(z_s, z_t, rule="soft", sharpness=1e4)
    assert torch.allclose(soft.forward, hard.forward) and torch.allclose(soft.reverse, hard.reverse)
    assert torch.equal(entropy_gap_weights(z_s, z_s, delta=9.0).forward, torch.ones(50, dtype=torch.float64))
    plain = BdKd(delta=1.0).balanced(z_s, z_t)
    torch.testing.assert_close(plain, F.kl(z_s, z_t) + F.kl(z_s, z_t, direction="reverse"))
    torch.testing.assert_close(BdKd(student_divergence="jeffreys").balanced(z_s, z_t), plain)
    # the mean of the batch decides for all
    batch = BdKd(weighting="batch").balanced(z_s, z_t)
    up = bool(gap.mean() > 0)
    torch.testing.assert_close(batch, (1 + up) * F.kl(z_s, z_t) + (2 - up) * F.kl(z_s, z_t, direction="reverse"))


def test_three_networks_each_learn_from_all_others(tmp_path: Path) -> None:
    made = tiny("bd-kd", tmp_path, "method.networks=2", "participants.peer2={use: mlp, hidden: [32]}")
    method: Any = made.method
    assert method.order == ["peer2", "teacher", "student"]
    (terms,) = step_of(made)
    assert set(terms) == {
        *("ce", "ce_teacher", "ce_peer2", "balanced"),
        *("balanced_teacher", "mutual_teacher", "mutual_peer2"),
    }
    assert terms["mutual_peer2"].weight == terms["balanced"].weight == 0.5
    for name, term in terms.items():
        (role,) = term.to
        for other in ("student", "teacher", "peer2"):
            grads = torch.autograd.grad(
                term.total(), list(method.roles[other].parameters().values()), allow_unused=True, retain_graph=True
            )
            assert any(g is not None and bool(g.any()) for g in grads) == (other == role), (name, other)


def test_sequential_updates_show_each_network_what_is_new(tmp_path: Path) -> None:
    made = tiny("bd-kd", tmp_path, "method.updates=sequential")
    phases = step_of(made)
    assert [set(p) for p in phases] == [{"ce_teacher", "mutual_teacher"}, {"ce", "balanced"}]
    made.run()


def test_the_preset_mutual_is_deep_mutual_learning(tmp_path: Path) -> None:
    """Zhang et al. 2018: every network has its labels and the mean of KL(peer || itself) over its peers."""
    preset = load_tree("bd-kd", preset="mutual")["method"]
    words = [
        f"method.{k}={v}" for k, v in preset.items() if k in ("student_divergence", "teacher_divergence", "temperature")
    ]
    assert preset["updates"] == "sequential" and len(words) == 3
    made = tiny("bd-kd", tmp_path, *words, "method.networks=2", "participants.peer2={use: mlp, hidden: [32]}")
    (terms,) = step_of(made)
    x = made.method.task.example(6)["x"]
    nets = {n: made.method.roles[n] for n in ("student", "teacher", "peer2")}
    z = {n: role.module(role.contract.inputs(x)).detach() for n, role in nets.items()}
    for me in z:
        mine = [t for n, t in terms.items() if t.to == (me,) and not n.startswith("ce")]
        got = sum(t.weight * t.values.detach() for t in mine)
        peers = [z[n].softmax(1) for n in z if n != me]
        want = torch.stack([(p * (p.log() - z[me].log_softmax(1))).sum(1) for p in peers]).mean(0)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_offline_the_teacher_stands_still(tmp_path: Path) -> None:
    made = tiny("bd-kd", tmp_path, "method.mode=offline", "teach.steps=2")
    assert made.method.learners == ("student",) and made.method.participants["teacher"].taught
    before = {k: v.clone() for k, v in made.method.roles["teacher"].module.state_dict().items()}
    made.run()
    assert all(torch.equal(v, before[k]) for k, v in made.method.roles["teacher"].module.state_dict().items())


def test_every_network_is_a_row(tmp_path: Path) -> None:
    result = run(tree_of("bd-kd", "method.networks=2"), tmp_path, quiet=True)
    assert list(result["metrics"]["rows"]) == ["student", "peer2", "teacher", "alone"]
    assert "teacher" not in result["cost"]["seconds"], "it is not trained before"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.delta=0.5"], "method.delta: got 0.5"),
        (["method.temperature=0"], "number above 0"),
        (["method.mode=offline", "method.networks=2"], "mode"),
        (["participants.peer7=mlp"], "peer7"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str) -> None:
    from limbeck.recipe.recipe import build

    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("bd-kd", words)))
