"""Bands along boundaries, and what is matched in and out of them, against slow definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import dense
from limbeck.functional.dense import (
    body_divergence,
    boundary_bands,
    channel_divergence,
    confusion,
    edge_divergence,
    edge_masks,
    mean_iou,
    resized,
)

G = torch.Generator().manual_seed(0)
Y = torch.randint(0, 3, (2, 9, 11), generator=G).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :17, :21]
WHERE = torch.rand(Y.shape, generator=G) > 0.1


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


@pytest.mark.parametrize("width", [3, 5, 7])
def test_bands_are_dilation_less_erosion(width: int) -> None:
    band, half = boundary_bands(Y, 3, width=width, where=WHERE), width // 2
    for n, i, j, c in [(0, 0, 0, 0), (1, 8, 10, 1), (0, 16, 20, 2), (1, 3, 17, 0), (0, 9, 4, 2), (1, 12, 0, 1)]:
        window = (slice(max(0, i - half), i + half + 1), slice(max(0, j - half), j + half + 1))
        mine = (Y[n][window] == c) & WHERE[n][window]
        assert bool(band[n, i, j, c]) == (bool(mine.any()) and not bool(mine.all()) and bool(WHERE[n, i, j]))
    assert not band[~WHERE].any()


def test_bands_of_more_classes_than_a_word_holds_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = boundary_bands(Y, 3, width=5, where=WHERE)
    for word in (1, 2):
        monkeypatch.setattr(dense, "WORD", word)
        assert torch.equal(boundary_bands(Y, 3, width=5, where=WHERE), whole)
    monkeypatch.undo()
    many = boundary_bands(torch.where(Y == 2, 149, Y * 61), 150, width=5, where=WHERE)
    assert torch.equal(many[..., [0, 61, 149]], whole) and int(many.sum()) == int(whole.sum())


def test_a_picture_of_one_class_has_no_band_and_borders_are_none() -> None:
    y = torch.ones(1, 8, 8, dtype=torch.long)
    mask, valid = edge_masks(y, 3, (4, 4))
    assert not mask.any() and valid.min() == 1
    z = maps(1, 4, 4, 3).requires_grad_()
    edge = edge_divergence(z, maps(1, 4, 4, 3), mask.double())
    assert float(edge.detach()) == 0.0
    edge.sum().backward()
    assert z.grad is not None and not z.grad.any()  # zero with a graph
    everything, _ = edge_masks(Y, 3, (5, 6), where=torch.zeros_like(Y, dtype=torch.bool))
    assert not everything.any()


def test_masks_of_the_union_and_hard_ones() -> None:
    soft, valid = edge_masks(Y, 3, (5, 6), width=3, where=WHERE)
    union, _ = edge_masks(Y, 3, (5, 6), width=3, where=WHERE, union=True)
    hard, _ = edge_masks(Y, 3, (5, 6), width=3, where=WHERE, hard=True)
    assert torch.equal(union[..., 0], soft.amax(-1)) and torch.equal(hard, (soft > 0).float())
    assert soft.min() >= 0 and soft.max() <= 1 and valid.shape == (2, 5, 6)  # sizes that do not divide


def test_wrong_widths_and_labels_are_named() -> None:
    for width in (1, 4):
        with pytest.raises(ConfigError, match="odd number of 3 or more"):
            boundary_bands(Y, 3, width=width)
    with pytest.raises(ConfigError, match=r"hold 2, which is no class.*0 to 1"):
        boundary_bands(Y, 2)
    assert boundary_bands(torch.where(WHERE, Y, 255), 3, where=WHERE).shape == (*Y.shape, 3)
    with pytest.raises(ShapeError, match="of one shape"):
        channel_divergence(maps(1, 4, 4, 3), maps(1, 4, 4, 2))


def slow_edge(s: Tensor, t: Tensor, m: Tensor, T: float, alpha: list[float], pre: bool, count: str) -> Tensor:
    out = []
    for n in range(len(s)):
        total = 0.0
        a, b = (m[n] * s[n], m[n] * t[n]) if pre else (s[n], t[n])
        p, q = (b / T).softmax(-1), (a / T).log_softmax(-1)
        phi = T * T * (p * (p.log() - q)).sum(-1)
        counts = {
            "nonzero": [(m[n, ..., c] > 0).sum() for c in range(3)],
            "mask_sum": [m[n, ..., c].sum() for c in range(3)],
        }
        every = sum(counts["nonzero"])
        for c in range(3):
            k = every if count == "pixels" else counts[count][c]
            total = total + alpha[c] / k * (phi * m[n, ..., c]).sum()
        out.append(total)
    return torch.stack(out)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", ["nonzero", "mask_sum", "pixels"])
@pytest.mark.parametrize("pre", [True, False])
def test_the_edge_term_is_its_definition(count: str, pre: bool) -> None:
    s, t = maps(2, 5, 6, 3), maps(2, 5, 6, 3)
    m = edge_masks(Y, 3, (5, 6), width=3)[0].double()
    got = edge_divergence(s, t, m, temperature=2.0, alpha=torch.tensor([1.0, 2.0, 3.0]), premask=pre, count=count)  # type: ignore[arg-type]
    torch.testing.assert_close(got, slow_edge(s, t, m, 2.0, [1.0, 2.0, 3.0], pre, count))


def test_without_the_mask_behind_it_is_a_mean_over_the_band() -> None:
    s, t, m = maps(2, 5, 6, 3), maps(2, 5, 6, 3), edge_masks(Y, 3, (5, 6), width=3)[0].double()
    from limbeck import functional as F

    phi, band = F.kl(m * s, m * t), m.amax(-1) > 0
    wanted = torch.stack([2 * p[b].mean() for p, b in zip(phi, band, strict=True)])
    torch.testing.assert_close(edge_divergence(s, t, m, postmask=False), wanted)
    torch.testing.assert_close(edge_divergence(s, t, m, premask=False, postmask=False), 2 * F.kl(s, t).mean((1, 2)))


def test_channels_are_distributions_over_places() -> None:
    s, t, T = maps(2, 3, 4, 5), maps(2, 3, 4, 5), 3.0
    got = channel_divergence(s, t, temperature=T)
    p, q = ((z.flatten(1, 2) / T).softmax(1) for z in (t, s))
    torch.testing.assert_close(got, T * T * (p * (p.log() - q.log())).sum(1))
    torch.testing.assert_close(
        got, channel_divergence(s + 7, t - 3, temperature=T)
    )  # a shift of a channel says nothing
    where = torch.ones(2, 3, 4, dtype=torch.bool)
    where[:, 2], where[1] = False, False
    kept = channel_divergence(s, t, where=where)
    torch.testing.assert_close(kept[0], channel_divergence(s[:1, :2], t[:1, :2])[0])
    assert not kept[1].any() and bool(torch.isfinite(kept).all())


def test_the_body_is_what_the_band_leaves() -> None:
    s, t = maps(2, 5, 6, 3), maps(2, 5, 6, 3)
    m, v = (x.double() for x in edge_masks(Y, 3, (5, 6), width=3, where=WHERE))
    inside = (1 - m) * v.unsqueeze(-1)
    torch.testing.assert_close(body_divergence(s, t, m, v), channel_divergence(inside * s, inside * t).mean(-1))
    none = torch.zeros_like(m)
    torch.testing.assert_close(body_divergence(s, t, none, torch.ones_like(v)), channel_divergence(s, t).mean(-1))
    torch.testing.assert_close(
        body_divergence(s, t, none, torch.ones_like(v), exclude=True), channel_divergence(s, t).mean(-1)
    )
    for kind in ("channel", "pixel"):
        assert float(body_divergence(s, s, m, v, kind=kind).abs().max()) < 1e-12  # type: ignore[arg-type]
        gone = body_divergence(s, t, m, torch.zeros_like(v), kind=kind)  # type: ignore[arg-type]
        assert bool((gone.abs() < 1e-12).all())  # nothing counts: nought, not NaN
    with pytest.raises(ConfigError, match="body"):
        body_divergence(s, t, m, v, kind="both")  # type: ignore[arg-type]


def test_gradients() -> None:
    t, y = maps(1, 3, 3, 2), torch.tensor([[[0, 0, 1], [0, 1, 1], [1, 1, 1]]])
    m, v = (x.double() for x in edge_masks(y, 2, (3, 3), width=3))
    s = maps(1, 3, 3, 2).requires_grad_()
    for call in (
        lambda z: edge_divergence(z, t, m, temperature=2.0),
        lambda z: body_divergence(z, t, m, v, temperature=4.0),
        lambda z: body_divergence(z, t, m, v, exclude=True),
        lambda z: channel_divergence(z, t, temperature=0.5),
    ):
        assert torch.autograd.gradcheck(call, (s,))


def test_metrics_are_those_of_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    guess = torch.randint(0, 3, Y.shape, generator=G)
    table = confusion(guess, Y, 3, WHERE)
    assert int(table.sum()) == int(WHERE.sum()) and int(table[1, 2]) == int(((Y == 1) & (guess == 2) & WHERE).sum())
    theirs = torchmetrics.JaccardIndex(task="multiclass", num_classes=3)(guess[WHERE], Y[WHERE])
    assert mean_iou(table) == pytest.approx(float(theirs), abs=1e-6)
    assert math.isnan(mean_iou(torch.zeros(2, 2)))


def test_maps_are_resized_as_libraries_do() -> None:
    z = maps(1, 4, 6, 2)
    assert resized(z, (4, 6)) is z
    wanted = torch.nn.functional.interpolate(z.movedim(-1, 1), (8, 5), mode="bilinear").movedim(1, -1)
    torch.testing.assert_close(resized(z, (8, 5)), wanted)
