"""Relations of tokens: closed-form gradients, padding, the hand example, and equality."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import jensen_shannon, kl
from limbeck.functional.attention import Measure, divide, relation, relation_divergence, relation_logits


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WHERE = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()


@pytest.mark.parametrize("measure", ["kl", "js", "mse"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_the_value_whatever_is_held_at_a_time(measure: Measure, causal: bool) -> None:
    x, y, u = vectors(2, 3, 5, 4), vectors(2, 3, 5, 4, seed=1), vectors(2, 3, 5, 2, seed=2)
    whole = relation_divergence((x, y), (u, u), where=WHERE, measure=measure, causal=causal)
    for cells in (1, 60):
        part = relation_divergence((x, y), (u, u), where=WHERE, measure=measure, causal=causal, cells=cells)
        assert torch.equal(part, whole)

    def values(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return relation_divergence((a, b), (u, u), where=WHERE, measure=measure, causal=causal, cells=60)

    assert torch.autograd.gradcheck(values, (x.requires_grad_(), y.requires_grad_()))
    assert torch.autograd.gradcheck(lambda a: values(a, a), (x,))


def test_values_are_those_of_the_divergences_of_rows() -> None:
    x, u = vectors(2, 3, 5, 4), vectors(2, 3, 5, 2, seed=2)
    z_s, z_t = relation_logits(x, x)[1], relation_logits(u, u)[1]
    for measure, value in (("kl", kl(z_s, z_t)), ("js", jensen_shannon(z_s, z_t))):
        found = relation_divergence((x, x), (u, u), where=WHERE, measure=measure)  # type: ignore[arg-type]
        torch.testing.assert_close(found[1], value.mean(-1))
    gap = relation(x, x)[1] - relation(u, u)[1]
    found = relation_divergence((x, x), (u, u), where=WHERE, measure="mse")
    torch.testing.assert_close(found[1], gap.square().sum(-1).mean(-1))


def test_padding_changes_nothing_and_an_item_of_padding_alone_is_zero() -> None:
    x, u = vectors(2, 3, 5, 4), vectors(2, 3, 5, 2, seed=2)
    short = relation_divergence((x[:1, :, :3],) * 2, (u[:1, :, :3],) * 2)
    spoilt = x.clone()
    spoilt[0, :, 3:] = float("nan")
    spoilt.requires_grad_()
    found = relation_divergence((spoilt, spoilt), (u, u), where=WHERE)
    torch.testing.assert_close(found[:1], short)
    found.sum().backward()
    assert spoilt.grad is not None and bool(spoilt.grad.isfinite().all()) and not bool(spoilt.grad[0, :, 3:].any())
    none = relation_divergence((x, x), (u, u), where=torch.zeros(2, 5))
    assert not bool(none.any())
    assert not bool(relation(x, x, where=WHERE)[0, :, 3:].any())


def test_equal_relations_are_zero_and_so_is_their_gradient() -> None:
    x = vectors(2, 3, 5, 4).requires_grad_()
    for measure in ("kl", "js", "mse"):
        found = relation_divergence((x, x), (x, x), measure=measure)
        (g,) = torch.autograd.grad(found.sum(), x)
        assert float(found.detach().abs().max()) < 1e-12 and float(g.abs().max()) < 1e-12
    half = relation_divergence((x.half(), x.half()), (x.half(), x.half()))
    assert half.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(2, 3, 5, 4)
    with pytest.raises(ShapeError, match="divide"):
        relation_divergence((x, x), (x[:, :2], x[:, :2]))
    with pytest.raises(ShapeError):
        relation_divergence((x, x[..., :2]), (x, x))
    with pytest.raises(ConfigError):
        relation_divergence((x, x), (x, x), measure="l2")  # type: ignore[arg-type]
    with pytest.raises(ShapeError):
        divide(torch.zeros(1, 2, 7), 2)
    y = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(relation_divergence((y, y), (x + 1, x)).sum(), y, create_graph=True)
    with pytest.raises(ConfigError, match="second derivative"):
        g.sum().backward()
