"""A task's own loss of several parts is handled as one term by methods that know nothing of them."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.inner import fit
from limbeck.grammar.method import Bundle, Term, Terms
from limbeck.grammar.optim import Optim


def bundle(scale: float = 1.0) -> Bundle:
    x = torch.arange(6.0).reshape(2, 3)
    return Bundle(box=Term(x * scale, where=x > 2), score=Term(torch.tensor(4.0 * scale), count=2, weight=0.5))


def test_a_bundle_becomes_its_parts() -> None:
    both = bundle()
    both.weight, both.to = 3.0, ("peer",)
    terms = Terms(ce=both, kl=Term(torch.ones(2)))
    assert list(terms) == ["ce.box", "ce.score", "kl"]
    assert (terms["ce.box"].weight, terms["ce.score"].weight) == (3.0, 1.5)
    assert terms["ce.box"].to == terms["ce.score"].to == ("peer",)
    assert int(terms["ce.box"].n()) == 3 and terms["ce.score"].n() == 2
    assert both.terms["box"].weight == 1.0  # asked again, the task's own are as they were
    terms["add"] = bundle()
    assert "add.box" in terms and "add" not in terms
    assert list(Terms({"seen": (1, 1)}, a=bundle())) == ["a.box", "a.score"]


def test_a_bundle_is_one_number_in_an_inner_loop() -> None:
    assert float(bundle().total()) == pytest.approx((3 + 4 + 5) / 3 + 0.5 * 4 / 2)
    with pytest.raises(ValueError, match="at least one"):
        Bundle()

    class Numbers:
        fingerprint = "n"

        def __len__(self) -> int:
            return 4

        def fetch(self, items: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": items[:, None].float()}

    def train(several: bool) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Linear(1, 1)

        def loss(module, batch, ctx):  # type: ignore[no-untyped-def]
            out = module(batch["x"])[:, 0]
            if several:
                return Bundle(a=Term(out.square(), weight=0.5), b=Term(out.square(), weight=0.5))
            return Term(out.square())

        fit(net, Numbers(), loss, Optim(steps=3, batch_size=2, lr=0.01), seed=0, scope="t")
        return net.weight.detach()

    torch.testing.assert_close(train(True), train(False))
