"""A detector taken apart answers as torchvision's own, put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import fastrcnn_loss

from limbeck.networks import two_stage as T
from limbeck.networks.regions import RegionHead

BOXES = torch.tensor([[[4.0, 6, 20, 24], [10, 2, 30, 14]], [[1, 1, 9, 12], [0, 0, 0, 0]]])
WHERE = torch.tensor([[True, True], [True, False]])
LABELS = torch.tensor([[0, 2], [1, 0]])


def small(masks: bool = False, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net: Any = T.small_detector(3, 3, (32, 32), width=8, proposals=12, pool=3, masks=masks)
    for p in net.parameters():
        p.data.mul_(1.5)
    return net


def pictures() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("masks", [False, True])
def test_detections_are_torchvisions(masks: bool) -> None:
    net = small(masks).eval()
    net.roi_heads.score_thresh = 0.05
    with torch.no_grad():
        theirs, ours = net(list(pictures())), T.run_plain(net, pictures(), None)
    for i, found in enumerate(theirs):
        here = ours["where"][i]
        assert int(here.sum()) == len(found["boxes"]) > 0
        torch.testing.assert_close(ours["boxes"][i][here], found["boxes"])
        torch.testing.assert_close(ours["scores"][i][here], found["scores"])
        assert torch.equal(ours["labels"][i][here] + 1, found["labels"])


def test_losses_are_torchvisions_where_its_sample_takes_everything() -> None:
    net = small().train()
    for part in (net.rpn, net.roi_heads):
        part.fg_bg_sampler.batch_size_per_image, part.fg_bg_sampler.positive_fraction = 100_000, 1.0
    x = pictures()[:1]
    maps = T.maps_of(net, x)
    first = T.anchored(net, maps)
    ours = T.proposal_losses(net, first, BOXES[:1], WHERE[:1])
    anchors = [first.anchors]
    labels, matched = net.rpn.assign_targets_to_anchors(anchors, [{"boxes": BOXES[0]}])
    aim = net.rpn.box_coder.encode(matched, anchors)
    theirs = net.rpn.compute_loss(first.logits.view(-1, 1), first.offsets.view(-1, 4), labels, aim)
    torch.testing.assert_close(ours["objectness"].mean(), theirs[0])
    torch.testing.assert_close(ours["rpn_box"].mean(), theirs[1])
    proposals = T.proposals_of(net, maps, first, True)
    out = T.run_plain(net, x, {"boxes": BOXES[:1], "labels": LABELS[:1], "where": WHERE[:1]})["losses"]
    given = [proposals.boxes[0][proposals.where[0]]]
    target = [{"boxes": BOXES[0], "labels": LABELS[0] + 1}]
    regions, _, y, aims = net.roi_heads.select_training_samples(given, target)
    pooled = net.roi_heads.box_roi_pool(maps.features, regions, maps.images.image_sizes)
    z, d = net.roi_heads.box_predictor(net.roi_heads.box_head(pooled))
    scores, boxes = fastrcnn_loss(z, d, y, aims)
    torch.testing.assert_close(out["class"].mean(), scores)
    torch.testing.assert_close(out["box"].mean(), boxes)


def open_detector(two: bool = False, masks: bool = False) -> T.OpenDetector:
    net = small(masks)
    head = RegionHead(8, 3, 6, 3, two=two, convs=1, conv_width=8, fcs=1, width=8, norm="group")
    return T.OpenDetector(net, head, 3)


@pytest.mark.parametrize("two", [False, True])
def test_distilled_boxes_feed_nothing_else_and_padded_ones_change_nothing(two: bool) -> None:
    net = open_detector(two).train()
    targets = {"boxes": BOXES, "labels": LABELS, "where": WHERE}
    regions = torch.tensor([[[1.0, 1, 9, 9], [4, 4, 20, 22]], [[2, 3, 30, 30], [0, 0, 0, 0]]])
    plain, more = net(pictures(), targets), net(pictures(), targets, regions)
    for name, values in plain["losses"].items():
        torch.testing.assert_close(values, more["losses"][name])
    assert more["embedding"].shape == (2, 2, 6)
    torch.testing.assert_close(more["embedding"].norm(dim=-1), torch.ones(2, 2))
    alone = net(pictures(), targets, regions[:, :1])["embedding"]
    torch.testing.assert_close(alone, more["embedding"][:, :1])


def test_a_loss_is_its_pictures_whatever_stands_beside_it() -> None:
    net = open_detector(masks=True).train()
    masks = torch.zeros(2, 2, 32, 32, dtype=torch.bool)
    masks[:, :, 8:20, 8:20] = True
    targets = {"boxes": BOXES, "labels": LABELS, "where": WHERE, "masks": masks}
    whole = net(pictures(), targets)["losses"]
    assert set(whole) == {"objectness", "rpn_box", "class", "box", "mask"}
    for i in range(2):
        one = net(pictures()[i : i + 1], {k: v[i : i + 1] for k, v in targets.items()})["losses"]
        for name, values in whole.items():
            torch.testing.assert_close(values[i : i + 1], one[name], rtol=1e-4, atol=1e-5, msg=name)


def test_classes_are_named_anew_without_training() -> None:
    net = open_detector(True).eval()
    net.head.name_classes(torch.randn(5, 6))
    net.base = torch.ones(5, dtype=torch.bool)
    assert not net.head.text.requires_grad
    found = net(pictures())
    assert found["labels"].max() <= 4 and bool((found["scores"][found["where"]] > 0).all())


@pytest.mark.parametrize("width", [2, 8, 12, 64])
def test_normalised_features_depend_on_the_region(width: int) -> None:
    head = RegionHead(4, 3, 6, 3, convs=0, fcs=1, width=width, norm="group")
    with torch.no_grad():
        assert float(head.text_branch.body(torch.randn(20, 4, 3, 3)).std(0).max()) > 0.01
