"""Self-distillation: pairs of crops, the centre, views contrasted, schedules that warm up."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as nf

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.pretraining import (
    cross_view_contrast,
    moved_centre,
    multicrop_cross_entropy,
    n_pair,
    patch_distance,
    patches_of,
    queued,
)
from limbeck.functional.schedule import ramp, warm_cosine


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_crops_are_asked_of_all_others_never_of_themselves() -> None:
    s, t, c = some(5, 4, 6), some(2, 4, 6, seed=1), some(6, seed=2)
    found = multicrop_cross_entropy(s, t, c, student_temperature=0.2, teacher_temperature=0.05)
    pairs = []
    for q in range(2):
        for v in range(5):
            if v != q:
                p = ((t[q] - c) / 0.05).softmax(-1)
                pairs.append(-(p * (s[v] / 0.2).log_softmax(-1)).sum(-1))
    assert len(pairs) == 8
    torch.testing.assert_close(found, torch.stack(pairs).mean(0))
    torch.testing.assert_close(
        multicrop_cross_entropy(s + 3, t + 5, c + 5, student_temperature=0.2, teacher_temperature=0.05), found
    )
    masked = multicrop_cross_entropy(s, t, c, where=torch.tensor([1, 0, 1, 1]).bool())
    assert masked[1] == 0 and bool((masked[[0, 2, 3]] > 0).all())
    assert torch.autograd.gradcheck(
        lambda x: multicrop_cross_entropy(x, t, c, student_temperature=0.5, teacher_temperature=0.3),
        (s.requires_grad_(),),
    )


def test_no_gradient_reaches_the_teacher() -> None:
    s, t, c = (some(*shape).requires_grad_() for shape in ((2, 3, 4), (2, 3, 4), (4,)))
    multicrop_cross_entropy(s, t, c.detach()).sum().backward()
    cross_view_contrast(s, t).sum().backward()
    n_pair(s, t[0].softmax(-1)).sum().backward()
    assert s.grad is not None and t.grad is None
    assert not moved_centre(c.detach(), t).requires_grad


def test_the_centre_is_an_average_of_raw_logits() -> None:
    c, t = some(6), some(2, 4, 6, seed=1)
    torch.testing.assert_close(moved_centre(c, t, 0.9), 0.9 * c + 0.1 * t.flatten(0, 1).mean(0))
    assert torch.equal(moved_centre(c, t, 1.0), c)
    halves = (moved_centre(c, t[:, :2], 0.9) + moved_centre(c, t[:, 2:], 0.9)) / 2  # two processes
    torch.testing.assert_close(halves, moved_centre(c, t, 0.9))


def test_views_name_each_other() -> None:
    s, t, q = some(2, 4, 6), some(2, 4, 6, seed=1), some(3, 6, seed=2)

    def one(a: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        cosines = nf.normalize(a, dim=-1) @ nf.normalize(keys, dim=-1).T / 0.2
        return nf.cross_entropy(cosines, torch.arange(4), reduction="none")

    for queue in (None, q):
        keys = [x if queue is None else torch.cat([x, queue]) for x in t]
        found = cross_view_contrast(s, t, queue, temperature=0.2)
        torch.testing.assert_close(found, (one(s[0], keys[1]) + one(s[1], keys[0])) / 2)
    torch.testing.assert_close(
        cross_view_contrast(3 * s, t / 7, temperature=0.2), cross_view_contrast(s, t, temperature=0.2)
    )
    alike = cross_view_contrast(torch.ones(2, 4, 6), torch.ones(2, 4, 6))
    assert alike.tolist() == pytest.approx([math.log(4)] * 4)
    assert cross_view_contrast(s[:, :1], t[:, :1], q).shape == (1,)
    assert torch.autograd.gradcheck(lambda x: cross_view_contrast(x, t, q, temperature=0.5), (s.requires_grad_(),))


def test_a_part_of_a_batch_is_compared_with_all_of_it() -> None:
    draw = torch.Generator().manual_seed(4)
    s, t = (torch.randn(2, 6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    queue = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    own = torch.tensor([2, 3])
    part = cross_view_contrast(s[:, own], t, queue, own=own)
    torch.testing.assert_close(part, cross_view_contrast(s, t, queue)[own])
    p = t[0].softmax(-1)
    torch.testing.assert_close(n_pair(s, p[own], own=own, scale=4.0), n_pair(s, p, scale=4.0)[own])
    with pytest.raises(ShapeError):
        cross_view_contrast(s[:, own], t)
    with pytest.raises(ShapeError):
        n_pair(s, p[own])


def test_n_pair_is_a_cross_entropy_of_plain_products() -> None:
    s, p = some(3, 4, 6), some(4, 6, seed=1).softmax(-1)
    want = torch.stack([nf.cross_entropy(8 * p @ s[v].T, torch.arange(4), reduction="none") for v in range(3)]).mean(0)
    torch.testing.assert_close(n_pair(s, p, scale=8.0), want)
    assert n_pair(s, p, where=torch.tensor([0, 1, 1, 1]).bool())[0] == 0
    assert torch.autograd.gradcheck(lambda x: n_pair(x, p, scale=4.0), (s.requires_grad_(),))


def test_a_queue_drops_the_oldest() -> None:
    first = queued(None, some(3, 4), 5)
    assert first is not None and first.shape == (3, 4)
    second = queued(first, some(4, 4, seed=1), 5)
    assert second is not None and torch.equal(second[:1], first[2:])
    torch.testing.assert_close(second.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert queued(first, some(3, 4), 0) is None


def test_schedules_that_warm_up_are_linear_and_then_a_cosine() -> None:
    values = [warm_cosine(s, 20, start=2.0, end=0.5, warm=5, first=1.0) for s in range(21)]
    assert values[:5] == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0])
    assert values[5] == 2.0 and values[20] == pytest.approx(0.5)
    assert all(a >= b for a, b in itertools.pairwise(values[5:]))
    assert ramp(0, 1, start=0.3, end=0.7) == 0.3 and ramp(0, 0, start=0.3, end=0.7) == 0.7
    with pytest.raises(ConfigError, match="warm"):
        warm_cosine(0, 5, warm=5)
    with pytest.raises(ConfigError, match="length"):
        ramp(0, -1)


def test_what_does_not_fit_is_refused() -> None:
    s, t, c = torch.zeros(4, 3, 5), torch.zeros(2, 3, 5), torch.zeros(5)
    for kwargs in ({"student_temperature": 0.0}, {"teacher_temperature": -1.0}):
        with pytest.raises(ConfigError, match="temperature"):
            multicrop_cross_entropy(s, t, c, **kwargs)
    with pytest.raises(ShapeError, match="crops first"):
        multicrop_cross_entropy(s[:1], t[:1], c)
    with pytest.raises(ShapeError, match="centre"):
        multicrop_cross_entropy(s, t, torch.zeros(4))
    with pytest.raises(ShapeError, match="teacher"):
        multicrop_cross_entropy(s, t[:, :2], c)
    with pytest.raises(ConfigError, match="momentum"):
        moved_centre(c, t, 1.1)
    with pytest.raises(ShapeError, match="told from"):
        cross_view_contrast(t[:, :1], t[:, :1])
    with pytest.raises(ShapeError, match="two views"):
        cross_view_contrast(s, s)
    with pytest.raises(ShapeError, match="teacher"):
        n_pair(s, torch.zeros(2, 5))


def test_patches_are_cut_row_by_row_and_rebuilt_up_to_their_mean_and_deviation() -> None:
    x, p = some(2, 3, 4, 6), some(2, 6, 12, seed=1).requires_grad_()
    cut = patches_of(x, 2)
    assert cut.shape == (2, 6, 12)
    for n, (row, column) in itertools.product(range(2), itertools.product(range(2), range(3))):
        part = x[n, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(cut[n, 3 * row + column], part.permute(1, 2, 0).flatten())
    raw = patch_distance(p, x, 2, normalise=False)
    torch.testing.assert_close(raw, (p - cut).square().mean(-1))
    for a, b in ((2.0, 3.0), (0.5, -1.0)):  # brightness and contrast of a patch say nothing
        torch.testing.assert_close(patch_distance(p, a * x + b, 2), patch_distance(p, x, 2), atol=1e-4, rtol=1e-4)
    flat = patch_distance(torch.zeros(1, 1, 4), torch.ones(1, 1, 2, 2), 2)
    assert float(flat) == 0  # a patch of one colour divides by no zero
    where = torch.tensor([[1, 0, 1, 0, 1, 0], [0] * 6]).bool()
    assert bool((patch_distance(p, x, 2, where=where)[~where] == 0).all())
    assert torch.autograd.gradcheck(lambda z: patch_distance(z, x, 2), (p,))
    for wrong in (p[:, :5], p[..., :3]):
        with pytest.raises(ShapeError, match="patches"):
            patch_distance(wrong, x, 2)
    with pytest.raises(ShapeError, match="divides"):
        patches_of(x, 4)
