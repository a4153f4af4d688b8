"""The steps of NKD and USKD: weights, temperatures, whom each term updates, statistics of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck.functional as F
from limbeck.grammar.method import Share, Terms
from limbeck.methods.classification.nkd_uskd import Nkd, Uskd
from limbeck.networks.shows import middle_of, pooled
from tests.methods.classification.test_kd import first_step
from tests.toy import bound, engine, learnt, network, within


def test_nkd_is_its_three_parts() -> None:
    batch, terms, z_s, z_t = first_step(bound(Nkd(temperature=2.0, gamma=1.5)))
    target, rest = F.nkd(z_s, z_t, batch["y"], temperature=2.0, gamma=1.5)
    assert set(terms) == {"ce", "target", "nontarget"} and all(t.weight == 1.0 for t in terms.values())
    assert torch.equal(terms["target"].values, target) and torch.equal(terms["nontarget"].values, rest)
    p = z_t.double().softmax(1).gather(1, batch["y"][:, None])[:, 0]
    q = z_s.double().softmax(1).gather(1, batch["y"][:, None])[:, 0]
    assert torch.allclose(target.double(), -p * q.log(), rtol=1e-4), "the target part has temperature 1"
    other, _ = F.nkd(z_s, z_t, batch["y"], temperature=2.0, gamma=1.5, target_weight="one")
    assert torch.allclose(other.double(), -q.log(), rtol=1e-4)


def parts(method: Any, batch: dict[str, Any]) -> tuple[Share, Terms, Tensor]:
    """Both phases of a USKD step, and the student's logits."""
    run = engine()
    run.prepare(method)
    ctx: Any = within(run, method, run.stages[0])
    step = method.step(batch, ctx)
    share = next(step)
    assert isinstance(share, Share)
    return share, step.send(dict(share)), ctx.signals["student"].logits


@pytest.mark.parametrize("square", [True, False])
def test_uskd_centres_on_the_whole_batch(square: bool) -> None:
    method = bound(Uskd(feature="2", alpha=0.7, beta=0.2, mu=0.3, square=square))
    batch = method.task.example(6)
    share, terms, z = parts(method, batch)
    own = z.softmax(1).gather(1, batch["y"][:, None])
    own = own.square() if square else own
    assert torch.allclose(share["own"], own.sum(0)) and float(share["n"]) == 6 and not share["own"].requires_grad
    tap: Any = method.roles["student"].tap
    weak = method.roles["weak"].module(tap.acts["2"])
    expected = F.uskd(z, batch["y"], weak, alpha=0.7, beta=0.2, mu=0.3, square=square, center=own.mean(0).detach())
    for name in ("target", "nontarget", "weak"):
        assert torch.allclose(terms[name].values, getattr(expected, name)), name
    assert terms["weak"].to == ("student", "weak") and terms["target"].to == ("student",)


def test_uskd_is_the_same_however_the_batch_is_cut() -> None:
    found = []
    for accumulate in (1, 2, 4):
        method = bound(Uskd(feature="2"))
        engine(accumulate=accumulate).run(method)
        found.append(learnt(method))
    for other in found[1:]:
        for role, state in found[0]["roles"].items():
            for k, v in state.items():
                assert torch.allclose(v, other["roles"][role][k], atol=1e-5), (role, k)


def test_the_weak_head_learns_and_is_left_out_on_request() -> None:
    method = bound(Uskd(feature="2"))
    before = {k: v.clone() for k, v in method.roles["weak"].module.state_dict().items()}
    engine().run(method)
    assert all(not torch.equal(v, before[k]) for k, v in method.roles["weak"].module.state_dict().items())
    without = bound(Uskd(weak_head=False, rank_source="final"))
    _, terms, _ = parts(without, without.task.example(4))
    assert "weak" not in without.roles and "weak" not in terms


def test_pooling_and_where_the_weak_head_reads() -> None:
    x = torch.arange(24.0)
    assert torch.equal(pooled(x.view(1, 2, 3, 4)), torch.tensor([[5.5, 17.5]]))
    assert torch.equal(pooled(x.view(2, 3, 4)), x.view(2, 3, 4)[:, 0])
    assert torch.equal(pooled(x.view(4, 6)), x.view(4, 6))
    vit = nn.Module()
    vit.blocks = nn.Sequential(*(nn.Linear(1, 1) for _ in range(6)))
    assert middle_of(vit) == "blocks.2"
    cnn = nn.Module()
    for i in range(1, 5):
        setattr(cnn, f"layer{i}", nn.Linear(1, 1))
    assert middle_of(cnn) == "layer3"
    assert middle_of(network()) == "4:in", "what the last linear layer reads"
