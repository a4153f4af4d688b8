"""The poses task: what is told of which image, anchor poses, the detector's losses, its metrics, mirror images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.figures import DrawnFigures
from limbeck.data.partial_poses import anchor_poses
from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional.keypoints import decode_poses, pose_boxes
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built, Bundle
from limbeck.grammar.signal import Signal
from limbeck.models.part_detector import PartDetectorModel
from limbeck.objectives.poses import FlipPoses, mirrored
from limbeck.objectives.queries import Crop, Flip
from limbeck.tasks.poses import Poses, assembled

SMALL: dict[str, Any] = {"width": 8, "proposals": 8, "pool": 3, "anchors": {"body": 3, "hand": 2, "face": 2}}


@pytest.fixture(scope="module")
def task() -> Poses:
    made = Poses(data=DrawnFigures(items=24, test_items=6, side=48), labelled="one", valid_fraction=0.25)
    made.load(0)
    return made


@pytest.fixture(scope="module")
def built(task: Poses) -> Built:
    torch.manual_seed(0)
    return PartDetectorModel(**SMALL).build(task)


class Told(nn.Module):
    """Finds what it was given, whatever it sees."""

    def __init__(self, found: dict[str, Tensor]) -> None:
        super().__init__()
        self.found, self.at = found, 0
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, targets: Any = None) -> dict[str, Tensor]:
        rows = slice(self.at, self.at + len(x))
        self.at += len(x)
        return {k: v[rows] for k, v in self.found.items()}


def truth(task: Poses, n: int) -> dict[str, Tensor]:
    batch = task.test.fetch(torch.arange(n))
    found = {k: v.clone() for k, v in batch.items() if k.split(":")[0] in ("pose", "where", "box")}
    return found | {f"score:{p}": batch[f"where:{p}"].float() for p in task.parts}


def test_each_picture_tells_of_one_part(task: Poses) -> None:
    batch = task.train.fetch(torch.arange(len(task.train)))
    assert bool((batch["labelled"].sum(1) == 1).all()) and len(task.train) == 18
    for i, p in enumerate(task.parts):
        assert bool((batch[f"where:{p}"].any(1) == batch["labelled"][:, i]).all())
        assert bool((batch[f"pose:{p}"][~batch[f"where:{p}"]] == 0).all())
        one = task.part(p)
        assert len(one.train) == int(batch["labelled"][:, i].sum()) == 6
        own = one.train.fetch(torch.arange(6))
        assert bool(own["labelled"].all()) and own["labelled"].shape == (6, 1)
        assert {k.split(":")[1] for k in own if ":" in k} == {p}
        assert torch.equal(own[f"pose:{p}"], batch[f"pose:{p}"][batch["labelled"][:, i]])
        assert one.labels == [p] and torch.equal(one.needs.parts.anchors(p, 2), task.needs.parts.anchors(p, 2))  # type: ignore[union-attr]
    assert bool(task.test.fetch(torch.arange(6))["labelled"].all())
    whole: Any = task.truth()
    assert bool(whole.fetch(torch.arange(18))["labelled"].all())
    absent = Poses(data=task.data, labelled="one", missing="background", valid_fraction=0.25)
    absent.load(0)
    seen = absent.train.fetch(torch.arange(18))
    assert bool(seen["labelled"].all()) and torch.equal(seen["where:hand"], batch["where:hand"])
    assert not bool(absent.valid.fetch(torch.arange(4))["labelled"].all())
    with pytest.raises(ConfigError, match="body"):
        task.part("bodie")


def test_anchor_poses_are_means_of_what_is_known() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 4)
    pose = torch.zeros(4, 2, 5)
    pose[:2, 0, :2], pose[2:, 0, :2] = torch.tensor([2.0, 4]), torch.tensor([8.0, 4])
    pose[:2, :, 2:], pose[2:, :, 2:] = 1.0, -1.0
    known = torch.ones(4, 2, 2, dtype=torch.bool)
    known[1, 0], pose[1, 0] = False, 99.0  # may hold anything
    made = anchor_poses(pose, known, boxes, 2)
    made = made[made[:, 0, 2].argsort()]
    torch.testing.assert_close(made[:, 0], torch.tensor([[0.8, 0.4, -1, -1, -1], [0.2, 0.4, 1, 1, 1]]))
    flat = anchor_poses(pose, known & torch.tensor([True, False]), boxes, 2)
    assert sorted(flat[:, 0, 0].tolist()) == pytest.approx([0.2, 0.8]) and bool((flat[..., 2:] == 0).all())
    with pytest.raises(ConfigError, match="different poses"):
        anchor_poses(pose, known, boxes, 4)


def test_a_part_that_is_not_labelled_gets_no_gradient(task: Poses, built: Built) -> None:
    net = built.module.train()
    ids = (task.train.fetch(torch.arange(18))["labelled"][:, 1]).nonzero()[:2, 0]  # hands alone
    batch = task.train.fetch(ids)
    bundle = task.supervised(Signal(task.feed(net, batch)), batch)
    assert isinstance(bundle, Bundle) and set(bundle.terms) == {
        "objectness", "rpn_box", *(f"{p}_{k}" for p in task.parts for k in ("class", "pose"))
    }  # fmt: skip
    assert [int(bundle.terms[f"{p}_class"].n()) for p in task.parts] == [0, 2, 0]
    net.zero_grad()
    bundle.total().backward()
    moved = [any(bool((q.grad != 0).any()) for q in net.scores[i].parameters()) for i in range(3)]
    assert moved == [False, True, False]
    batch["labelled"] = torch.ones_like(batch["labelled"])  # now they say that there is no body and no face
    net.zero_grad()
    task.supervised(Signal(task.feed(net, batch)), batch).total().backward()
    assert all(bool((q.grad != 0).any()) for i in range(3) for q in net.scores[i].parameters())
    net.eval()


def test_losses_are_those_of_the_functions(task: Poses, built: Built) -> None:
    """Labels, targets and losses of the sampled regions, one region after the other."""
    from limbeck.functional import boxes as B
    from limbeck.functional import keypoints as K

    net, batch = built.module.train(), task.part("body").example(2)
    batch = {**batch, **{k: v for k, v in task.train.fetch(torch.arange(2)).items() if ":" not in k}}
    batch = task.example(2)
    batch["labelled"] = torch.ones_like(batch["labelled"])
    out = task.feed(net, batch)
    for p in task.parts:
        z, s = out["answers"][p]
        anchors = net.anchors(p)
        for n in range(2):
            total = torch.zeros(2)
            for r, box in enumerate(out["regions"][n]):
                w, label = float(out["weights"][n, r]), int(out["labels"][p][n, r])
                if not w or label < 0:
                    continue
                there = batch[f"where:{p}"][n].nonzero()[:, 0].tolist()
                over = [float(B.iou(box[None], batch[f"box:{p}"][n, m][None])) for m in there]
                best = max(range(len(there)), key=lambda m: over[m]) if there else -1
                assert (label > 0) == (bool(there) and over[best] >= 0.5)
                loss = -z[n, r].log_softmax(-1)[label]
                total = total + w * torch.tensor([float(loss.detach()), 0.0])
                if label > 0:
                    pose = batch[f"pose:{p}"][n, there[best]]
                    near = (anchors[..., 2:] - pose[:, 2:]).norm(dim=-1).mean(-1).argmin()
                    assert label == int(near) + 1
                    aim = K.encode_poses(box, anchors[label - 1], pose[:, :2], pose[:, 2:])
                    gap = torch.nn.functional.smooth_l1_loss(s[n, r, label - 1], aim, beta=1.0)
                    total = total + w * torch.tensor([0.0, float(gap.detach())])
            weights = float((out["weights"][n] * (out["labels"][p][n] >= 0)).sum())
            assert float(out["losses"][f"{p}_class"][n].detach()) == pytest.approx(float(total[0]) / weights, rel=1e-4)
            assert float(out["losses"][f"{p}_pose"][n].detach()) == pytest.approx(
                float(total[1]) / weights, rel=1e-4, abs=1e-7
            )
    net.eval()


def test_what_is_found_is_decoded_from_its_region(task: Poses, built: Built) -> None:
    net, x = built.module.eval(), task.example(2)["x"]
    with torch.no_grad():
        found = net(x, lowest=0.0)
        regions = torch.tensor([[[4.0, 6, 30, 40]]]).expand(2, 1, 4)
        answer = net(x, regions=regions)["answers"]["hand"]
    poses = decode_poses(answer.regressions, net.anchors("hand"), regions)
    assert poses.pose2d.shape == (2, 1, 2, 6, 2)
    for p in task.parts:
        assert found[f"pose:{p}"].shape == (2, 10, len(task.parts[p].joints), 5)
        where = found[f"where:{p}"]
        assert bool(where.any()) and bool((found[f"score:{p}"].diff(dim=1) <= 0)[where[:, 1:]].all())
        torch.testing.assert_close(found[f"box:{p}"][where], pose_boxes(found[f"pose:{p}"][where][..., :2]))


def test_metrics(task: Poses) -> None:
    right = task.evaluate(Built(Told(truth(task, 6))), task.test)
    assert right["pck"] == 1 and right["recall"] == right["precision"] == 1
    assert right["mpjpe"] < 1e-6 and right["hand_nme"] < 1e-6
    off = truth(task, 6)
    off["pose:body"][..., 2:] += torch.tensor([0.0, 3.0, 4.0])
    off["where:hand"][:, 0] = False  # one of two hands is not found
    off["where:face"][:] = False
    found = task.evaluate(Built(Told(off)), task.test)
    assert found["body_mpjpe"] == pytest.approx(5.0, rel=1e-5) and found["body_pa_mpjpe"] < 1e-5
    assert found["hand_pck"] == found["hand_recall"] == 0.5 and found["hand_precision"] == 1
    assert found["face_pck"] == found["face_recall"] == found["face_precision"] == 0
    assert found["pck"] == pytest.approx((1 + 0.5 + 0) / 3)
    doubled = {k: torch.cat([v, v], 1) for k, v in truth(task, 6).items()}
    twice = task.evaluate(Built(Told(doubled)), task.test)
    assert twice["pck"] == 1 and twice["precision"] == 0.5


def test_wrists_follow_their_hands(task: Poses) -> None:
    found = truth(task, 4)
    moved = found["pose:body"].clone()
    moved[..., 6:8, :2] += 2.0
    out = assembled(found | {"pose:body": moved}, task.links)
    torch.testing.assert_close(out["pose:body"][..., 6:8, :2], found["pose:body"][..., 6:8, :2])
    torch.testing.assert_close(out["pose:body"][..., 8:, :], found["pose:body"][..., 8:, :])
    kept = assembled(found | {"pose:body": moved}, task.links, free=torch.zeros(4, 1, 2, dtype=torch.bool))
    assert torch.equal(kept["pose:body"], moved) and assembled(found, {}) == found


def test_mirror_images(task: Poses) -> None:
    batch = task.test.fetch(torch.arange(3))
    flips = {n: s.flip for n, s in task.parts.items()}
    turned = torch.tensor([True, False, True])
    once = mirrored(batch, turned, flips)
    assert torch.equal(once["x"][0], batch["x"][0].flip(-1)) and torch.equal(
        once["pose:body"][1], batch["pose:body"][1]
    )
    torch.testing.assert_close(once["pose:body"][0, 0, 6, 0], 48 - batch["pose:body"][0, 0, 7, 0])
    torch.testing.assert_close(once["pose:body"][0, 0, 6, 2], -batch["pose:body"][0, 0, 7, 2])
    for p in task.parts:
        where = once[f"where:{p}"]
        torch.testing.assert_close(once[f"box:{p}"][where], pose_boxes(once[f"pose:{p}"][where][..., :2]))
    again = mirrored(once, turned, flips)
    torch.testing.assert_close(again, batch)
    FlipPoses().accept(task)
    for query in (Flip(), Crop()):
        with pytest.raises(ConfigError, match="leaves their pose"):
            query.accept(task)
    from limbeck.tasks.classification import Classification

    with pytest.raises(ConfigError, match="keypoints or poses"):
        FlipPoses().accept(Classification())


def test_detectors_that_do_not_fit(task: Poses, built: Built) -> None:
    with pytest.raises(ShapeError, match="no hand"):
        task.rehearse(Built(PartDetectorModel(**SMALL).make(task.part("body").needs), model=built.model))
    with pytest.raises(ConfigError, match="resnet18"):
        PartDetectorModel(body="resnet19", anchors=SMALL["anchors"]).build(task)
    with pytest.raises(DataError, match="labelled for"):
        Poses(data=DrawnFigures(items=8, test_items=2, side=32), labelled="one").part("face")
    for bad in ({"anchors": {"body": 0}}, {"min_score": 2.0}, {"side": 3}, {"width": 0}):
        with pytest.raises((ValueError, ConfigError), match=r"anchors|min_score|side|width"):
            PartDetectorModel(**bad)  # type: ignore[arg-type]


@pytest.mark.expensive
def test_on_a_resnet(task: Poses) -> None:
    built = PartDetectorModel(body="resnet18", proposals=8, anchors={"body": 2, "hand": 2, "face": 2}).build(task)
    out = task.feed(built.module.train(), task.example(2))
    assert (
        bool(torch.isfinite(out["losses"]["body_class"]).all())
        and built.module.head(torch.rand(2, 256, 7, 7)).shape[1] == 512
    )


def test_the_picture(task: Poses, built: Built, tmp_path: Path) -> None:
    class Here:
        folder, device = tmp_path, torch.device("cpu")

    row = NetworkArtifact(task, Built(Told(truth(task, 6)), model=built.model))
    (entry,) = task.extras({"student": row}, Here())["pictures"]  # type: ignore[arg-type]
    from PIL import Image

    with Image.open(tmp_path / entry["file"]) as image:
        assert image.size == (6 * 192, 2 * 192)
        top, low = image.crop((0, 0, 1152, 192)).tobytes(), image.crop((0, 192, 1152, 384)).tobytes()
    assert top == low and entry["rows"] == ["truth", "student"]
