"""Encoders of clouds: any number of points in any order; edge convolutions against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.networks.clouds import CloudHead, Dgcnn, PointNet, PointTransformer


def clouds(points: int = 20) -> Tensor:
    return torch.randn(3, points, 3, generator=torch.Generator().manual_seed(points))


def test_any_number_of_points_in_any_order() -> None:
    torch.manual_seed(0)
    nets = PointNet(8, [6]), Dgcnn(8, 4, [6, 5], 7), PointTransformer(8, 1, 2, patch=5, channels=4)
    for net in nets:
        net.eval()
        for points in (20, 33):
            x = clouds(points)
            assert net(x).shape == (3, 8)
            shuffled = torch.randperm(points - 1) + 1  # the first point is the transformer's first centre
            torch.testing.assert_close(
                net(x[:, torch.cat([torch.tensor([0]), shuffled])]), net(x), atol=1e-5, rtol=1e-4
            )
        with pytest.raises(ShapeError, match="transpose"):
            net(clouds().transpose(1, 2))
        net.train()(clouds()).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_an_edge_convolution_is_a_loop_over_neighbours() -> None:
    torch.manual_seed(0)
    net = Dgcnn(3, 4, [5, 6], 7, norm="none")
    x = clouds()[:1]
    found = []
    y = x[0]
    for layer in net.edges:
        rows = []
        for i in range(len(y)):
            near = (y - y[i]).norm(dim=1).argsort()[:4]
            rows.append(torch.stack([layer(torch.cat([y[j] - y[i], y[i]])[None])[0] for j in near]).amax(0))
        y = torch.stack(rows)
        found.append(y)
    wide = net.wide(torch.cat(found, 1))
    torch.testing.assert_close(net(x)[0], net.last(torch.cat([wide.amax(0), wide.mean(0)])), atol=1e-5, rtol=1e-4)


def test_too_few_points_and_odd_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="20 or more"):
        Dgcnn(8)(clouds(19))
    with pytest.raises(ShapeError, match="32 or more"):
        PointTransformer()(clouds(31))
    with pytest.raises(ConfigError, match="heads"):
        PointTransformer(10, heads=4)
    with pytest.raises(ConfigError, match="widths"):
        PointNet(8, [])
    with pytest.raises(ShapeError, match="one feature"):
        CloudHead(torch.nn.Identity(), 3, 2)(clouds())
