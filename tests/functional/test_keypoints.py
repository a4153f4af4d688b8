"""Poses of parts: coding, labels, merging and losses by slow references, by properties, by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from limbeck.errors import ConfigError, LimbeckError, ShapeError, TeacherMismatch
from limbeck.functional import keypoints as kp

R, K, J = 7, 3, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_boxes(n: int, seed: int = 0, size: float = 40.0) -> Tensor:
    corner = (drawn(n, 2, seed=seed).abs() * size / 4).round()
    return torch.cat([corner, corner + 5 + (drawn(n, 2, seed=seed + 90).abs() * size / 3).round()], -1)


def smooth_l1(gap: float, beta: float) -> float:
    gap = abs(gap)
    return gap * gap / (2 * beta) if gap < beta else gap - beta / 2


# ------------------------------------------------------------------------------------------------ coding, boxes


@pytest.mark.parametrize("weights", [(5.0, 5.0), (1.0, 8.0)])
def test_decoding_undoes_encoding_and_zero_is_the_anchor(weights: tuple[float, float]) -> None:
    boxes, anchors = some_boxes(R), drawn(K, J, 5)
    pose2d, pose3d = drawn(R, K, J, 2, seed=1) * 30, drawn(R, K, J, 3, seed=2)
    codes = kp.encode_poses(boxes[:, None].expand(R, K, 4), anchors.expand(R, K, J, 5), pose2d, pose3d, weights)
    for given in (codes, codes.flatten(-2)):
        made = kp.decode_poses(given, anchors, boxes, weights)
        torch.testing.assert_close(made.pose2d, pose2d)
        torch.testing.assert_close(made.pose3d, pose3d)
    still = kp.decode_poses(torch.zeros_like(codes), anchors, boxes, weights)
    assert torch.equal(still.pose3d, anchors[..., 2:].expand(R, K, J, 3))
    for r, k, j in itertools.product(range(R), range(K), range(J)):
        x1, y1, x2, y2 = boxes[r].tolist()
        x, y = anchors[k, j, :2].tolist()
        assert still.pose2d[r, k, j].tolist() == pytest.approx([x1 + x * (x2 - x1), y1 + y * (y2 - y1)])


def test_the_plane_stands_before_space_joint_by_joint() -> None:
    code = torch.arange(1.0, 5 * J + 1).view(1, 1, -1)
    made = kp.decode_poses(code, torch.zeros(1, J, 5), torch.tensor([[0.0, 0, 1, 1]]), (1.0, 1.0))
    assert made.pose2d[0, 0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert made.pose3d[0, 0, 0].tolist() == [9, 10, 11] and made.pose3d[0, 0, -1].tolist() == [18, 19, 20]


def test_an_empty_box_gives_finite_codes() -> None:
    code = kp.encode_poses(torch.zeros(1, 4), drawn(1, J, 5).float(), torch.ones(1, J, 2), torch.ones(1, J, 3))
    assert bool(torch.isfinite(code).all())


def test_boxes_of_poses_count_labelled_joints_and_move_with_them() -> None:
    pose, where = drawn(5, J, 2) * 9, torch.ones(5, J, dtype=torch.bool)
    where[0, 1:], where[1] = False, False
    hidden = pose.masked_fill(~where.unsqueeze(-1), float("nan"))
    boxes = kp.pose_boxes(hidden, 0.1, where)
    assert boxes[0].tolist() == pose[0, 0].tolist() * 2 and boxes[1].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(boxes[2:], kp.pose_boxes(pose[2:]))
    moved = kp.pose_boxes(3 * pose + 7)
    torch.testing.assert_close(moved, 3 * kp.pose_boxes(pose) + 7)
    tight = kp.pose_boxes(pose, 0.0)
    assert torch.equal(tight, torch.cat([pose.amin(1), pose.amax(1)], -1))
    grown = kp.pose_boxes(pose, 0.25)
    torch.testing.assert_close(grown[:, 2:] - grown[:, :2], 1.5 * (tight[:, 2:] - tight[:, :2]))


def test_suppression_by_a_slow_reference() -> None:
    n = 30
    scores, pose = drawn(n, K + 1).softmax(-1), drawn(n, 1, 1, 2, seed=3) * 40 + drawn(n, K, J, 2, seed=4) * 8
    for least, overlap, margin in ((0.3, 0.1, 0.1), (0.5, 0.4, 0.0), (0.0, 0.9, 0.3), (1.0, 0.1, 0.1)):
        best = {i: int(scores[i, 1:].argmax()) for i in range(n)}
        order = sorted(range(n), key=lambda i: -float(scores[i, best[i] + 1]))
        kept: list[int] = []
        for i in order:
            boxes = kp.pose_boxes(torch.stack([pose[m, best[m]] for m in [*kept, i]]), margin)
            free = not kept or float(box_iou(boxes[-1:], boxes[:-1]).max()) <= overlap
            kept += [i] if float(scores[i, best[i] + 1]) >= least and free else []
        left = kp.suppress_poses(scores, pose, min_score=least, iou_threshold=overlap, margin=margin)
        assert left.region.tolist() == kept and left.anchor.tolist() == [best[i] for i in kept]
        assert left.score.tolist() == [float(scores[i, best[i] + 1]) for i in kept]
    assert len(kp.suppress_poses(scores[:0], pose[:0]).region) == 0


# ------------------------------------------------------------------------------------------------ association


def test_association_by_slow_references() -> None:
    found = 0
    for seed in range(12):
        body, hand, face = (drawn(n, j, 2, seed=seed + n) * 9 for n, j in ((4, 13), (5, 6), (3, 5)))
        hands, faces = kp.hands_of_bodies(body, hand, reach=0.5), kp.faces_of_bodies(body, face)
        for b, (side, wrist) in itertools.product(range(4), enumerate((7, 6))):
            gap = torch.tensor([[float((body[i, wrist] - hand[h, 0]).norm()) for h in range(5)] for i in range(4)])
            h = int(gap[b].argmin())
            span = hand[h].amax(0) - hand[h].amin(0)
            good = int(gap[:, h].argmin()) == b and float(gap[b, h]) <= 0.5 * 1.2 * float(span.max())
            assert int(hands[b, side]) == (h if good else -1)
            found += good
        box = kp.pose_boxes(face)
        holds = [[bool((p >= q[:2]).all() and (p <= q[2:]).all()) for q in box] for p in body[:, 12]]
        for b in range(4):
            f = holds[b].index(True) if sum(holds[b]) == 1 else -1
            assert int(faces[b]) == (f if f >= 0 and sum(row[f] for row in holds) == 1 else -1)
            found += f >= 0
        moved = kp.with_wrists(body, hand, hands)
        for b, (side, wrist) in itertools.product(range(4), enumerate((7, 6))):
            h = int(hands[b, side])
            assert torch.equal(moved[b, wrist], hand[h, 0] if h >= 0 else body[b, wrist])
        others = [j for j in range(13) if j not in (6, 7)]
        assert torch.equal(moved[:, others], body[:, others])
        batch = kp.hands_of_bodies(torch.stack([body, body + 1]), torch.stack([hand, hand + 1]), reach=0.5)
        assert torch.equal(batch[0], hands) and torch.equal(batch[1], hands)
    assert found > 10


def test_association_with_nobody() -> None:
    body, hand = drawn(2, 13, 2), drawn(3, 6, 2)
    assert kp.hands_of_bodies(body, hand[:0]).tolist() == [[-1, -1]] * 2
    assert kp.hands_of_bodies(body[:0], hand).shape == (0, 2)
    assert kp.faces_of_bodies(body, hand[:0]).tolist() == [-1, -1] and kp.faces_of_bodies(body[:0], hand).shape == (0,)
    assert torch.equal(kp.with_wrists(body, hand[:0], torch.full((2, 2), -1)), body)


# ------------------------------------------------------------------------------------------------ labels


def test_labels_by_a_slow_reference() -> None:
    positives = 0
    for seed in range(10):
        anchors, g = drawn(K, J, 5, seed=seed), 3
        proposals, boxes = some_boxes(12, seed), some_boxes(g, seed + 7)
        pose2d = boxes[:, None, :2] + drawn(g, J, 2, seed=seed + 1) * (boxes[:, None, 2:] - boxes[:, None, :2])
        pose3d, where2d, where3d = drawn(g, J, 3, seed=seed + 2), drawn(g, J) > -0.5, drawn(g, J, seed=seed + 3) > 0.3
        where2d[:, 0], where3d[seed % 3] = True, False
        hidden = pose3d.masked_fill(~where3d.unsqueeze(-1), float("nan"))
        nearest = kp.nearest_anchors(boxes, pose2d, hidden, where2d, where3d, anchors)
        for i in range(g):
            seen = where3d[i] if where3d[i].any() else where2d[i]
            unit = (pose2d[i] - boxes[i, :2]) / (boxes[i, 2:] - boxes[i, :2])
            means = []
            for a in anchors:
                own, of = (pose3d[i], a[:, 2:]) if where3d[i].any() else (unit, a[:, :2])
                gaps = [float((own[j] - of[j]).norm()) for j in range(J) if seen[j]]
                means.append(sum(gaps) / len(gaps))
            assert int(nearest[i]) == means.index(min(means))
        made = kp.label_regions(proposals, boxes, nearest, iou_threshold=0.3)
        overlaps = box_iou(proposals, boxes)
        for r in range(12):
            best = int(overlaps[r].argmax())
            met = float(overlaps[r, best]) >= 0.3
            assert int(made.target[r]) == (best if met else -1)
            assert int(made.label[r]) == (int(nearest[best]) + 1 if met else 0)
            positives += met
    assert positives > 10


def test_batches_of_pictures_labelled_for_different_parts() -> None:
    proposals, boxes = (
        torch.stack([some_boxes(6, s) for s in (0, 1, 2)]),
        torch.stack([some_boxes(2, s) for s in (0, 1, 2)]),
    )
    nearest = torch.tensor([[0, 1], [2, 0], [1, -1]])
    labelled, where = torch.tensor([True, False, True]), torch.tensor([[True, True], [True, True], [False, True]])
    made = kp.label_regions(proposals, boxes, nearest, labelled=labelled, where=where)
    assert made.label[0, :2].tolist() == [1, 2] and made.target[0, :2].tolist() == [0, 1]
    assert bool((made.label[1] == -1).all()) and bool((made.target[1] == -1).all())
    assert made.label[2, 1] == -1 and made.target[2, 1] == 1  # an instance of which no joint is known
    nobody = kp.label_regions(proposals, boxes[:, :0], nearest[:, :0], labelled=labelled)
    assert nobody.label[:, 0].tolist() == [0, -1, 0]


def test_the_lowest_of_equal_anchors_and_a_pose_of_nothing() -> None:
    anchors = drawn(1, J, 5).expand(K, J, 5)
    where = torch.tensor([[True] * J, [False] * J])
    got = kp.nearest_anchors(some_boxes(2), drawn(2, J, 2), drawn(2, J, 3), where, where & False, anchors)
    assert got.tolist() == [0, -1]


def _merged(seed: int, a: int, d: int, **settings: Any) -> tuple[kp.Merged, dict[str, Tensor]]:
    given = {"real_boxes": some_boxes(a, seed), "real_pose": drawn(a, J, 5, seed=seed)}
    given["real_mask"] = drawn(a, J, 5, seed=seed + 1) > 0
    near = some_boxes(a, seed)[: d // 2] + 1.0
    given["boxes"] = torch.cat([near, some_boxes(d - len(near), seed + 5)])
    given["scores"], given["pose"] = drawn(d, seed=seed + 2).sigmoid(), drawn(d, J, 5, seed=seed + 3)
    return kp.merge_pseudo_labels(**given, **settings), given


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize(("a", "d"), [(3, 6), (0, 4), (2, 0), (4, 5)])
def test_merging_by_a_slow_reference(a: int, d: int, fill: bool) -> None:
    for seed in range(8):
        made, g = _merged(seed, a, d, score_threshold=0.4, iou_threshold=0.3, fill_missing=fill)
        overlaps = box_iou(g["real_boxes"], g["boxes"])
        for i in range(a):
            hosts = [n for n in range(d) if float(g["scores"][n]) >= 0.4 and float(overlaps[i, n]) >= 0.3]
            host = max(hosts, key=lambda n: float(overlaps[i, n])) if hosts and fill else None
            for j, v in itertools.product(range(J), range(5)):
                if g["real_mask"][i, j, v]:
                    expected = (1, float(g["real_pose"][i, j, v]))
                else:
                    expected = (0, 0.0) if host is None else (2, float(g["pose"][host, j, v]))
                assert (int(made.source[i, j, v]), float(made.pose[i, j, v])) == expected
        for n in range(d):
            keep = float(g["scores"][n]) >= 0.4 and all(float(overlaps[i, n]) < 0.3 for i in range(a))
            assert bool(made.where[a + n]) == keep
            assert bool((made.source[a + n] == 2 * keep).all())
            assert torch.equal(made.pose[a + n], g["pose"][n] * keep)
        assert made.pseudo.tolist() == [False] * a + [True] * d and bool(made.where[:a].all())


def test_merging_leaves_padding_out() -> None:
    made, g = _merged(1, 3, 6, score_threshold=0.2)
    pad = {n: torch.cat([x, x.new_zeros(2, *x.shape[1:])]) for n, x in g.items()}
    pad["scores"][-2:] = 1.0
    real_where, where = torch.arange(5) < 3, torch.arange(8) < 6
    more = kp.merge_pseudo_labels(**pad, score_threshold=0.2, real_where=real_where, where=where)
    for name in ("boxes", "pose", "source"):
        assert torch.equal(getattr(more, name)[more.where], getattr(made, name)[made.where])
    batch = kp.merge_pseudo_labels(**{n: torch.stack([x, x]) for n, x in g.items()}, score_threshold=0.2)
    assert torch.equal(batch.pose[1], made.pose) and torch.equal(batch.where[0], made.where)


# ------------------------------------------------------------------------------------------------ losses


def case(seed: int = 0) -> dict[str, Tensor]:
    label = torch.tensor([1, 0, -1, 3, 2, 0, -1])
    return {
        "logits": drawn(R, K + 1, seed=seed),
        "regressions": drawn(R, K, 5 * J, seed=seed + 1) * 2,
        "label": label,
        "targets": drawn(R, 5 * J, seed=seed + 2),
        "where": drawn(R, 5 * J, seed=seed + 3) > 0,
    }


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_loss_of_labels_by_a_slow_reference(beta: float) -> None:
    c = case()
    c["where"][3] = False  # a positive of which nothing is known
    loss = kp.pose_loss(**c, beta=beta)
    for r in range(R):
        y = int(c["label"][r])
        if y < 0:
            assert loss.classification[r] == 0 and loss.regression[r] == 0
            continue
        assert loss.classification[r].item() == pytest.approx(-float(c["logits"][r].log_softmax(0)[y]))
        seen = [v for v in range(5 * J) if c["where"][r, v]] if y else []
        gaps = [smooth_l1(float(c["regressions"][r, y - 1, v] - c["targets"][r, v]), beta) for v in seen]
        assert loss.regression[r].item() == pytest.approx(sum(gaps) / len(gaps) if gaps else 0.0)
    mean = kp.labelled_mean(loss, c["label"] >= 0)
    assert mean.regression.item() == pytest.approx(float(loss.regression.sum()) / 5)


@pytest.mark.parametrize("soft", ["kl", "ce", "logits_l2"])
@pytest.mark.parametrize("weighting", ["expert_score", "labelled_anchor"])
def test_distillation_by_a_slow_reference(soft: Any, weighting: Any) -> None:
    c, e, relevant = case(), case(50), torch.tensor([1, 1, 0, 1, 1, 0, 0]).bool()
    own, of = (c["logits"], c["regressions"]), (e["logits"], e["regressions"])
    settings: dict[str, Any] = {"soft_target": soft, "reg_weighting": weighting, "label": c["label"], "beta": 0.7}
    loss = kp.pose_distillation(*own, *of, **settings, where=relevant)
    for r in range(R):
        if not relevant[r]:
            assert loss.classification[r] == 0 and loss.regression[r] == 0
            continue
        q, log_p = of[0][r].softmax(0), own[0][r].log_softmax(0)
        first = {
            "kl": sum(float(q[k] * (q[k].log() - log_p[k])) for k in range(K + 1)),
            "ce": -sum(float(q[k] * log_p[k]) for k in range(K + 1)),
            "logits_l2": sum(float(own[0][r, k] - of[0][r, k]) ** 2 for k in range(K + 1)) / (K + 1),
        }[soft]
        second = 0.0
        for k in range(K):
            w = float(q[k + 1]) if weighting == "expert_score" else float(c["label"][r] == k + 1)
            second += w * sum(smooth_l1(float(own[1][r, k, v] - of[1][r, k, v]), 0.7) for v in range(5 * J)) / (5 * J)
        assert loss.classification[r].item() == pytest.approx(first)
        assert loss.regression[r].item() == pytest.approx(second)


def test_a_student_that_is_its_expert_has_the_least_loss() -> None:
    c = case()
    z, r = c["logits"].requires_grad_(), c["regressions"].requires_grad_()
    for soft in ("kl", "ce", "logits_l2"):
        loss = kp.pose_distillation(z, r, z, r, soft_target=soft)  # type: ignore[arg-type]
        entropy = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
        least = entropy if soft == "ce" else torch.zeros_like(entropy)
        torch.testing.assert_close(loss.classification, least, rtol=0, atol=1e-12)
        assert bool((loss.regression == 0).all())
        slopes = torch.autograd.grad((loss.classification + loss.regression).sum(), (z, r))  # none to the expert
        assert max(float(s.abs().max()) for s in slopes) < 1e-12


def test_what_the_expert_calls_background_regresses_nothing() -> None:
    z, r, e = drawn(1, K + 1), drawn(1, K, 5 * J), torch.tensor([[60.0, 0, 0, 0]], dtype=torch.float64)
    assert kp.pose_distillation(z, r, e, r + 9).regression.item() < 1e-20


def test_left_out_regions_may_hold_anything_and_get_no_gradient() -> None:
    c, e, where = case(), case(50), torch.tensor([1, 1, 0, 1, 1, 1, 0]).bool()
    hole = ~where
    z, r = (c[n].clone() for n in ("logits", "regressions"))
    ez, er, t = (x.clone() for x in (e["logits"], e["regressions"], c["targets"]))
    for x in (z, r, ez, er, t):
        x[hole] = float("nan")
    z.requires_grad_(), r.requires_grad_()
    hard = kp.labelled_mean(kp.pose_loss(z, r, c["label"], t, c["where"]), where)
    soft = kp.labelled_mean(kp.pose_distillation(z, r, ez, er, where=where), where)
    whole = kp.parts_total({"body": sum(hard)}, {"body": sum(soft)})  # type: ignore[dict-item]
    slopes = torch.autograd.grad(whole, (z, r))
    assert bool(torch.isfinite(whole)) and all(bool(torch.isfinite(s).all()) for s in slopes)
    assert all(bool((s[hole] == 0).all()) for s in slopes)


def test_a_part_without_labels_is_silent_until_its_expert_speaks() -> None:
    c, e = case(), case(50)
    z, r = c["logits"].requires_grad_(), c["regressions"].requires_grad_()
    ignored, here = torch.full((R,), -1), torch.ones(R, dtype=torch.bool)
    hard = kp.labelled_mean(kp.pose_loss(z, r, ignored, c["targets"], c["where"]), ignored >= 0)
    assert hard.classification.item() == 0 and hard.regression.item() == 0
    slopes = torch.autograd.grad(hard.classification + hard.regression, (z, r), retain_graph=True)
    assert all(bool((s == 0).all()) for s in slopes)
    silent = kp.pose_distillation(z, r, e["logits"], e["regressions"], where=~here)
    slopes = torch.autograd.grad(sum(kp.labelled_mean(silent, ~here), z.new_zeros(())), (z, r))
    assert all(bool((s == 0).all()) for s in slopes)
    soft = kp.labelled_mean(kp.pose_distillation(z, r, e["logits"], e["regressions"], where=here), here)
    slopes = torch.autograd.grad(soft.classification + soft.regression, (z, r))
    assert all(bool((s != 0).all()) for s in slopes)


def test_gradients() -> None:
    c, e = ({n: x[:4] for n, x in case(seed).items()} for seed in (0, 50))
    z, r = c["logits"].requires_grad_(), c["regressions"].requires_grad_()
    rest = (c["label"], c["targets"], c["where"])
    assert torch.autograd.gradcheck(lambda *a: tuple(kp.pose_loss(*a, *rest)), (z, r))
    for soft, weighting in itertools.product(("kl", "ce", "logits_l2"), ("expert_score", "labelled_anchor")):
        settings: dict[str, Any] = {"soft_target": soft, "reg_weighting": weighting, "label": c["label"]}
        of = (e["logits"], e["regressions"])
        assert torch.autograd.gradcheck(lambda *a: tuple(kp.pose_distillation(*a, *of, **settings)), (z, r))  # noqa: B023
    boxes, anchors = some_boxes(2).requires_grad_(), drawn(K, J, 5)
    code = drawn(2, K, 5 * J).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: tuple(kp.decode_poses(a, anchors, b)), (code, boxes))
    poses = (drawn(2, J, 2).requires_grad_(), drawn(2, J, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda b, *p: kp.encode_poses(b, anchors[:2], *p), (boxes, *poses))


def test_half_precision_is_computed_in_single() -> None:
    c, e = case(), case(50)
    z, r, t = (c[n].bfloat16() for n in ("logits", "regressions", "targets"))
    hard = kp.pose_loss(z, r, c["label"], t, c["where"])
    soft = kp.pose_distillation(z, r, e["logits"].bfloat16(), e["regressions"].bfloat16())
    assert {x.dtype for x in (*hard, *soft)} == {torch.float32}
    want = kp.pose_loss(z.double(), r.double(), c["label"], t.double(), c["where"])
    torch.testing.assert_close(hard.regression.double(), want.regression, rtol=1e-5, atol=1e-6)


def test_totals_weigh_parts() -> None:
    hard, soft = (
        {n: torch.tensor(float(v)) for n, v in zip("abc", row, strict=True)} for row in ((1, 2, 3), (4, 5, 6))
    )
    assert kp.parts_total(hard, soft).item() == 21
    assert kp.parts_total(hard, soft, 0.0).item() == 6
    assert kp.parts_total(hard, soft, {"a": 1.0, "b": 0.5, "c": 2.0}).item() == 6 + 4 + 2.5 + 12
    assert kp.parts_total({"a": hard["a"]}, {"b": soft["b"]}, 2.0).item() == 11
    for lambdas, word in (({"a": 1.0}, "b"), ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, "d"), (-1.0, "-1")):
        with pytest.raises(ConfigError, match=word):
            kp.parts_total(hard, soft, lambdas)
    with pytest.raises(ConfigError, match="labelled"):
        kp.parts_total({}, {})


def test_what_does_not_fit_is_refused_by_name() -> None:
    c = case()
    z, r = c["logits"], c["regressions"]
    with pytest.raises(TeacherMismatch, match=r"expert of hand has 2 anchors of 4 joints, the student 3 of 4"):
        kp.pose_distillation(z, r, z[:, :-1], r[:, :-1], part="hand")
    wrong: list[tuple[type[LimbeckError], str, Any]] = [
        (ConfigError, "soft_target", lambda: kp.pose_distillation(z, r, z, r, soft_target="mse")),  # type: ignore[arg-type]
        (ConfigError, "label", lambda: kp.pose_distillation(z, r, z, r, reg_weighting="labelled_anchor")),
        (ConfigError, "beta", lambda: kp.pose_distillation(z, r, z, r, beta=-1.0)),
        (ShapeError, "regressions", lambda: kp.pose_distillation(z[:, 1:], r, z[:, 1:], r)),
        (ShapeError, "targets", lambda: kp.pose_loss(z, r, c["label"], c["targets"][:, 1:], c["where"][:, 1:])),
        (ShapeError, "regressions", lambda: kp.decode_poses(r, drawn(K, J + 1, 5), some_boxes(R))),
        (ShapeError, "anchors", lambda: kp.decode_poses(r, drawn(K, J, 4), some_boxes(R))),
        (ShapeError, "anchors", lambda: kp.encode_poses(some_boxes(2), drawn(2, 3, 5), drawn(2, 4, 2), drawn(2, 4, 3))),
        (ShapeError, "scores", lambda: kp.suppress_poses(drawn(5, 3), drawn(5, 3, J, 2))),
        (ConfigError, "score_threshold", lambda: _merged(0, 2, 2, score_threshold=2.0)),
        (ConfigError, "iou_threshold", lambda: _merged(0, 2, 2, iou_threshold=0.0)),
        (ConfigError, "margin", lambda: kp.pose_boxes(drawn(2, J, 2), -0.1)),
        (ShapeError, "pose2d", lambda: kp.pose_boxes(drawn(2, J, 3))),
    ]
    for kind, word, call in wrong:
        with pytest.raises(kind, match=word):
            call()
