"""Open-vocabulary regions and boxes: by hand, by properties, by slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from limbeck.errors import ShapeError
from limbeck.functional import boxes as B
from limbeck.functional import regions as R


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_boxes(*shape: int, seed: int = 0) -> Tensor:
    u = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 20
    return torch.cat([torch.minimum(u[..., :2], u[..., 2:]), torch.maximum(u[..., :2], u[..., 2:]) + 1], -1)


def test_masking_by_zero_leaves_a_one_in_the_denominator_for_each_novel_class() -> None:
    z = torch.tensor([[2.0, 1.0, 5.0]])
    trained, y = torch.tensor([True, True, False]), torch.tensor([1])
    zero = R.region_cross_entropy(z, y, trained)
    assert zero.item() == pytest.approx(math.log(math.e**2 + math.e + 1) - 1, abs=1e-5)
    gone = R.region_cross_entropy(z, y, trained, "remove")
    assert gone.item() == pytest.approx(math.log(math.e**2 + math.e) - 1, abs=1e-5)
    torch.testing.assert_close(R.region_cross_entropy(z, y, trained, "none"), R.region_cross_entropy(z, y))
    z.requires_grad_()
    R.region_cross_entropy(z, y, trained).sum().backward()
    assert z.grad is not None and z.grad[0, 2] == 0 and bool(z.grad[0, :2].any())


def test_embeddings_match_at_equality_and_the_teachers_length_does_not_matter() -> None:
    s, f = R.unit(drawn(4, 5, 8)), drawn(4, 5, 8, seed=1)
    assert float(R.embedding_distance(s, 7 * s).max()) < 1e-12
    torch.testing.assert_close(R.embedding_distance(s, f), R.embedding_distance(s, 9 * f))
    by_hand = (s - f / f.norm(dim=-1, keepdim=True)).abs().sum(-1)
    torch.testing.assert_close(R.embedding_distance(s, f), by_hand)
    assert bool((R.embedding_distance(s, f, power=2) <= by_hand**2).all())
    with pytest.raises(ShapeError):
        R.embedding_distance(s, f[..., :4])


def test_a_vector_of_no_length_stays_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    R.unit(x).sum().backward()
    assert bool((R.unit(x) == 0).all()) and x.grad is not None and bool(torch.isfinite(x.grad).all())


def test_gradients() -> None:
    e, t, b = (drawn(*s, seed=i).requires_grad_() for i, s in enumerate([(3, 4), (5, 4), (4,)]))
    assert torch.autograd.gradcheck(lambda *a: R.region_logits(*a, temperature=3.0), (e, t, b))
    y, trained = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 1, 0, 0, 1])
    for masking in ("zero", "remove", "none"):
        assert torch.autograd.gradcheck(
            lambda a, m=masking: R.region_cross_entropy(R.region_logits(a, t, b), y, trained, m), (e,)
        )
    assert torch.autograd.gradcheck(lambda a: R.embedding_distance(R.unit(a), drawn(3, 4, seed=9)), (e,))
    assert torch.autograd.gradcheck(
        lambda a, c: R.joint_scores(a, c, torch.tensor([1, 0])),
        (drawn(2, 3).requires_grad_(), drawn(2, 2).requires_grad_()),
    )


def test_joined_scores_are_what_the_heads_agree_on() -> None:
    z = drawn(3, 6)
    base = torch.tensor([1, 1, 0, 0, 1])
    p = z.softmax(-1)[:, 1:]
    alike = (p / p.sum(-1, keepdim=True)).log()
    plain = R.joint_scores(z, alike, base, share=1.0)
    torch.testing.assert_close(plain[:, base.bool()], p[:, base.bool()])
    torch.testing.assert_close(plain[:, ~base.bool()], alike.exp()[:, ~base.bool()])
    half = R.joint_scores(z, alike, base, share=0.5)
    torch.testing.assert_close(half, (p * alike.exp()).sqrt())


def test_widths_that_differ_are_named() -> None:
    with pytest.raises(ShapeError, match="one width"):
        R.region_logits(drawn(2, 3), drawn(4, 5))


def test_boxes_are_coded_and_matched_as_torchvision_does() -> None:
    a, b = some_boxes(30), some_boxes(7, seed=1)
    torch.testing.assert_close(B.iou(a, b), box_iou(a, b))
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    ours = B.encode(a[:7], b, (10, 10, 5, 5))
    torch.testing.assert_close(ours, coder.encode_single(a[:7], b))
    torch.testing.assert_close(B.decode(ours, b, (10, 10, 5, 5)), a[:7])
    for high, low, best in ((0.5, 0.5, False), (0.6, 0.2, False), (0.6, 0.2, True)):
        found = B.assign(B.iou(a, b)[None], torch.ones(1, 7, dtype=torch.bool), high=high, low=low, best=best)
        theirs = Matcher(high, low, allow_low_quality_matches=best)(box_iou(b, a))
        assert torch.equal(found.positive[0], theirs >= 0) and torch.equal(found.negative[0], theirs == -1)
        assert torch.equal(found.target[0][theirs >= 0], theirs[theirs >= 0])


def test_padded_true_boxes_stand_for_nothing() -> None:
    a, b = some_boxes(2, 9), some_boxes(2, 4, seed=2)
    where = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    found = B.assign(B.iou(a, b), where, high=0.3, low=0.3, best=True)
    short = B.assign(B.iou(a[:1], b[:1, :2]), where[:1, :2], high=0.3, low=0.3, best=True)
    assert torch.equal(found.positive[0], short.positive[0]) and bool(found.negative[1].all())
    assert bool(B.assign(B.iou(a, b[:, :0]), where[:, :0]).negative.all())


def test_sampling_weights_are_the_chances_of_a_balanced_sample() -> None:
    positive, negative = torch.zeros(1, 10).bool(), torch.zeros(1, 10).bool()
    positive[0, :4], negative[0, 4:9] = True, True
    w = B.sampling_weights(positive, negative, 4, 0.5)
    assert w[0].tolist() == pytest.approx([0.5] * 4 + [0.4] * 5 + [0.0])
    assert float(B.sampling_weights(positive, negative, 100, 0.5).sum()) == 9


def test_grown_boxes_stay_in_the_picture() -> None:
    g = B.grown(some_boxes(5), 1.5, (16, 12))
    assert float(g.min()) >= 0 and float(g[:, 2].max()) <= 12 and float(g[:, 3].max()) <= 16
