"""DKD's step against its formula, its warm-up, and what it has in common with plain KD."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.grammar.method import Terms
from limbeck.methods.classification.dkd import Dkd
from limbeck.methods.classification.kd import Kd
from tests.methods.classification.test_kd import Other, first_step
from tests.toy import bound, engine, within


def test_the_parts_are_the_papers() -> None:
    T = 3.0
    batch, terms, z_s, z_t = first_step(bound(Dkd(0.7, 2.5, T)))
    values = {n: terms[n].values.detach() for n in ("target", "nontarget")}
    p, q, y = (z_t.double() / T).softmax(1), (z_s.detach().double() / T).softmax(1), batch["y"]
    for i, row in enumerate(y.tolist()):  # item by item, with no function of ours
        rest = [c for c in range(p.shape[1]) if c != row]
        b_t, b_s = torch.stack([p[i, row], p[i, rest].sum()]), torch.stack([q[i, row], q[i, rest].sum()])
        r_t, r_s = p[i, rest] / p[i, rest].sum(), q[i, rest] / q[i, rest].sum()
        target, nontarget = (T * T * (a * (a / b).log()).sum() for a, b in ((b_t, b_s), (r_t, r_s)))
        assert float(values["target"][i]) == pytest.approx(float(target), rel=1e-4, abs=1e-5)
        assert float(values["nontarget"][i]) == pytest.approx(float(nontarget), rel=1e-4, abs=1e-5)
    assert (terms["ce"].weight, terms["target"].weight, terms["nontarget"].weight) == (1.0, 0.7, 2.5)
    assert terms["target"].to == terms["nontarget"].to == ("student",) and not z_t.requires_grad


def test_with_the_teachers_doubt_as_beta_it_is_plain_kd() -> None:
    _, terms, _, z_t = first_step(bound(Dkd(1.0, 1.0, 2.0)))
    batch, plain, _, _ = first_step(bound(Kd(2.0, 1.0)))
    doubt = 1 - (z_t / 2.0).softmax(1).gather(1, batch["y"][:, None])[:, 0]
    torch.testing.assert_close(terms["target"].values + doubt * terms["nontarget"].values, plain["kl"].values)


def test_both_parts_rise_over_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    method = bound(Dkd(alpha=1.0, beta=4.0, warmup=4))
    run = engine()
    run.prepare(method)
    ctx: Any = within(run, method, run.stages[0])
    for epoch, share in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        monkeypatch.setattr(type(ctx), "epoch", epoch)
        terms = method.step(method.task.example(4), ctx)
        assert isinstance(terms, Terms)
        assert (terms["target"].weight, terms["nontarget"].weight) == (share, 4 * share)


def test_without_weights_the_teacher_is_not_asked() -> None:
    _, terms, _, _ = first_step(bound(Dkd(0.0, 0.0)))
    assert list(terms) == ["ce"]


@pytest.mark.parametrize("kind", ["labels", "number"])
def test_items_have_one_class_each(kind: str) -> None:
    with pytest.raises(ConfigError):
        Dkd().accept(Other(kind))


@pytest.mark.parametrize("settings", [{"alpha": -1}, {"beta": -1}, {"temperature": 0}, {"warmup": -1}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Dkd(**settings)
