"""DOPE: labels that experts give, what is copied on the student's boxes, switches, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.engine.context import RunContext
from limbeck.errors import LimbeckError
from limbeck.functional.keypoints import pose_boxes
from limbeck.grammar.role import cast
from limbeck.methods.pose.dope import Dope
from limbeck.parts.pose_labels import MergedPoses
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def _shared(shared_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))


class Rows:
    """Batches that are there already."""

    fingerprint = "rows"

    def __init__(self, rows: dict[str, Tensor]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def fetch(self, items: Tensor) -> dict[str, Tensor]:
        return {k: v[items].clone() for k, v in self.rows.items()}


def instances(part: str, at: list[list[list[float]]], scores: list[float] | None = None) -> dict[str, Tensor]:
    """Poses of one image in the plane, known everywhere and in space."""
    flat = torch.tensor(at)[None]
    pose = torch.cat([flat, torch.zeros(*flat.shape[:3], 3)], -1)
    made = {
        f"pose:{part}": pose,
        f"box:{part}": pose_boxes(flat),
        f"where:{part}": torch.ones(1, len(at), dtype=torch.bool),
    }
    if scores is None:
        return made | {f"known:{part}": torch.ones(1, len(at), len(at[0]), 2, dtype=torch.bool)}
    return made | {f"score:{part}": torch.tensor([scores])}


HAND = [[10.0, 10], [14, 14]]
FAR = [[40.0, 40], [46, 46]]
BODY = [[11.0, 11], [30, 8], [20, 5]]
LINKS = {"wrists": ["body", 0, 1, "hand", 0], "head": ["body", 2, "face"]}


def merged(**given: Any) -> dict[str, Tensor]:
    real = instances("hand", [HAND]) | instances("body", [BODY])
    real["where:body"][:] = False
    real["labelled"] = torch.tensor([[False, True]])
    found = instances("hand", [HAND, FAR], [0.9, 0.8]) | instances("body", [BODY, [*FAR, [43.0, 50]]], [0.7, 0.4])
    data = MergedPoses(Rows(real), Rows(found), ["body", "hand"], LINKS, **given)
    return data.fetch(torch.tensor([0]))


def test_poses_of_experts_join_those_that_are_annotated() -> None:
    batch = merged(consistency="off")
    assert batch["labelled"].tolist() == [[True, True]]
    assert batch["where:hand"].tolist() == [
        [True, False, True]
    ]  # the hand that is annotated is not found a second time
    assert batch["where:body"].tolist() == [[False, True, False]]  # the other body scores too little
    assert batch["source:hand"][0, :, 0, 0].tolist() == [1, 0, 2]
    assert merged(consistency="off", score_threshold=0.3)["where:body"].tolist() == [[False, True, True]]
    assert bool((batch["pose:body"][0, 1, :, :2] == torch.tensor(BODY)).all()) and bool(batch["known:body"][0, 1].all())


def test_what_experts_say_of_one_part_agrees_with_others() -> None:
    wrists = merged()
    assert wrists["pose:body"][0, 1, 0, :2].tolist() == HAND[0] and wrists["pose:body"][0, 1, 1, :2].tolist() == BODY[1]
    assert wrists["where:hand"].tolist() == [[True, False, True]]
    assert merged(consistency="filter")["where:hand"].tolist() == [[True, False, False]]  # nobody's hand


def test_counts_of_added_poses() -> None:
    real = instances("hand", [HAND, FAR])
    told = {**real, "where:hand": torch.tensor([[True, False]]), "labelled": torch.tensor([[True]])}
    found = instances("hand", [FAR, [[80.0, 80], [90, 90]]], [0.9, 0.8])
    counts = MergedPoses(Rows(told), Rows(found), ["hand"], {}).counts(Rows(real))
    assert counts == {"added_hand": 2.0, "right_hand": 0.5, "covered_hand": 1.0}


def begun(run: Any) -> tuple[Any, Any]:
    """The context of the last stage, after those before it, and a batch of its first images."""
    engine, method = run.engine, run.method
    engine.prepare(method)
    for stage in engine.stages:
        ctx = RunContext(engine, method, stage, engine.device)
        if stage.items is not None:
            engine.run_items(method, stage, ctx)
    data = stage.data(ctx) if callable(stage.data) else stage.data
    ids = torch.arange(4)
    batch = {**data.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    cast(method.roles, ("student",))
    return ctx.at(0), batch


def test_every_part_learns_from_every_picture_as_the_switches_say(tmp_path: Path) -> None:
    method: Any = (run := tiny("dope", tmp_path)).method
    ctx, batch = begun(run)
    base = method.step(batch, ctx)
    parts = ("body", "hand", "face")
    assert {n for n in base if not n.startswith("own.")} == {f"{p}_{k}" for p in parts for k in ("scores", "poses")}
    assert all(int(t.n()) == 4 for t in base.values()) and bool(batch["labelled"].all())
    for name, value, key in (
        ("soft_target", "ce", "body_scores"),
        ("soft_target", "logits_l2", "body_scores"),
        ("reg_weighting", "labelled_anchor", "body_poses"),
        ("relevant", "positives", "body_scores"),
    ):
        before = getattr(method, name)
        setattr(method, name, value)
        other = method.step(batch, ctx)
        setattr(method, name, before)
        assert not torch.equal(base[key].values, other[key].values), (name, value)
        assert torch.equal(base["own.body_class"].values, other["own.body_class"].values)
    told = {**batch, **method.task.train.fetch(torch.arange(4))}  # without the experts' labels
    plain = method.step(told, ctx)
    assert [int(plain[f"own.{p}_class"].n()) for p in parts] == told["labelled"].sum(0).tolist() != [4, 4, 4]
    assert [int(plain[f"{p}_scores"].n()) for p in parts] == told["labelled"].sum(0).tolist()
    method.factors = {"body": 1.0, "hand": 0.0, "face": 3.0}
    terms = method.step(batch, ctx)
    assert terms["face_scores"].weight == 3 and terms["body_scores"].weight == 1 and "hand_scores" not in terms


def test_an_expert_that_is_the_student_is_copied_already(tmp_path: Path) -> None:
    run = tiny("dope", tmp_path, "task.data.parts=[body]", "method.parts=[body]", "student.anchors={body: 2}")
    expert, student = (run.method.roles[n].module for n in ("expert_body", "student"))
    student.load_state_dict(expert.state_dict())
    ctx, batch = begun(run)
    own = list(student.scores.parameters()) + list(student.poses.parameters())
    for target, least in (("kl", 0.0), ("ce", None), ("logits_l2", 0.0)):
        run.method.soft_target = target
        terms = run.method.step(batch, ctx)
        total = terms["body_scores"].total() + terms["body_poses"].total()
        grads = torch.autograd.grad(total, own)
        assert max(float(g.abs().max()) for g in grads) < 1e-5
        assert float(terms["body_poses"].values.detach().abs().max()) < 1e-6
        if least is not None:
            assert float(terms["body_scores"].values.detach().abs().max()) < 1e-6
        else:  # the cross-entropy ends at the expert's entropy
            assert float(terms["body_scores"].values.detach().min()) > 0.1


def test_without_experts_there_are_none() -> None:
    one = Dope(pseudo=False, weight=0.0)
    assert not one.participants
    assert list(Dope(pseudo=False, weight=0.0, lambdas={"hand": 2.0}).participants) == ["expert_hand"]
    assert list(Dope(weight=0.0).participants) == ["expert_body", "expert_hand", "expert_face"]
    for bad, said in (
        ({"lambdas": {"tail": 1.0}}, "tail"),
        ({"parts": ["a", "a"]}, "differ"),
        ({"iou_threshold": 0.0}, "iou"),
    ):
        with pytest.raises((ValueError, LimbeckError), match=said):
            Dope(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.parts=[body, hand]"], r"method.parts.*body.*hand.*face"),
        (
            ["participants.expert_hand={use: part-detector, width: 8, proposals: 8, pool: 3, anchors: {hand: 3}}"],
            "3 anchor poses of 6 joints, the student 2 of 6",
        ),
        (["student.anchors={body: 99}"], "different poses"),
        (["task=keypoints", "task.labelled=null"], "poses"),
        (["queries={flip: flip}"], "flip-poses"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(words: list[str], said: str, tmp_path: Path) -> None:
    if words[0].startswith("task="):
        data = "{use: drawn-figures, items: 6, test_items: 2, parts: [body]}"
        words = [f"task={{use: keypoints, data: {data}}}", "student={use: convnet, width: 4}"]
    with pytest.raises(LimbeckError, match=said):
        tiny("dope", tmp_path, *words)
