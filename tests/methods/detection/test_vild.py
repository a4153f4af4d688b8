"""ViLD: what is trained against what, which classes are told, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.grammar.method import Bundle
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run import prepare
from tests.tiny import quiet, tiny, tree_of


def kinds(run: Any) -> set[str]:
    batch = run.method.task.example(4)
    student = run.method.roles["student"].module.train()
    from limbeck.grammar.signal import Signal

    bundle = run.method.task.supervised(Signal(run.method.task.feed(student, batch)), batch)
    assert isinstance(bundle, Bundle)
    return set(bundle.terms)


@pytest.fixture(autouse=True)
def _shared(shared_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))


def test_novel_boxes_are_told_to_nobody_who_learns_and_judged_all_the_same(tmp_path: Path) -> None:
    run = tiny("vild", tmp_path)
    task: Any = run.method.task
    whole = torch.arange(len(task.train))
    batch = task.train.fetch(whole)
    told = batch["labels"][batch["where"]]
    assert bool(task.base[told].all()) and not bool(task.base.all())
    assert bool((batch["boxes"][~batch["where"]] == 0).all())
    assert not bool(task.base[task.test.fetch(torch.arange(len(task.test)))["labels"]].all())
    seen = task.whole.fetch(whole)["where"].sum()
    assert seen > batch["where"].sum()


def test_what_is_kept_is_what_the_tower_says_of_the_crops(tmp_path: Path) -> None:
    from limbeck.parts.detector import embed_crops

    run = tiny("vild", tmp_path).run()
    method: Any = run.method
    ctx = run.engine
    from limbeck.engine.context import RunContext

    stage = run.engine.stages[-1]
    kept = RunContext(ctx, method, stage, run.engine.device).recorded("embeddings").fetch(torch.tensor([2, 0]))
    assert kept["embedding"].dtype == torch.float16 and kept["regions"].shape == (2, 8, 4)
    x = method.task.train.fetch(torch.tensor([2, 0]))["x"]
    tower = method.roles["teacher"]
    f = embed_crops(tower.module.eval(), x, kept["regions"], side=16, contract=tower.contract)
    valid = kept["regions"].amax(-1) > 0
    torch.testing.assert_close(kept["embedding"].float()[valid], f[valid].detach(), rtol=0, atol=2e-3)
    assert bool((kept["embedding"][~valid] == 0).all())


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        (["method.mode=text"], {"objectness", "rpn_box", "class", "box"}),
        (["method.mode=image"], {"objectness", "rpn_box", "box"}),
        (["method.mode=ensemble", "student.heads=two"], {"objectness", "rpn_box", "class", "box"}),
        (["task.masks=true", "student.masks=true"], {"objectness", "rpn_box", "class", "box", "mask"}),
    ],
)
def test_every_mode_trains_and_has_its_terms(words: list[str], terms: set[str], tmp_path: Path) -> None:
    run = tiny("vild", tmp_path, *words, "train.steps=1")
    assert kinds(run) == terms
    before = run.method.roles["student"].module.head.text.clone()
    run.run()
    head = run.method.roles["student"].module.head
    assert torch.equal(head.text, before), "texts stand still"
    task: Any = run.method.task
    found = task.evaluate(run.bench.student, task.test)
    assert {"ap50", "base_ap50", "novel_ap50"} <= set(found)
    assert ("mask_ap50" in found) == task.masks


def test_variant_says_what_novel_classes_do_in_the_softmax(tmp_path: Path) -> None:
    for words, masking in (([], "remove"), (["method.variant=released"], "zero"), (["method.masking=none"], "none")):
        run = tiny("vild", tmp_path / masking, *words)
        assert run.method.roles["student"].module.masking == masking


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.dim=12"], "student.dim 12, embeddings of the class names 8, embeddings of the teacher 8"),
        (["method.mode=ensemble"], "student.heads=two"),
        (["student=small-detector"], "student=open-detector"),
        (["task.novel=[eleven]"], "no class.*eleven"),
        (["task.novel=['0','1','2','3','4','5','6','7','8','9']"], "names every class"),
        (["task.data=digits"], "no boxes"),
        (["task.text=/nowhere.npz"], "no such file"),
        (["student.body=retinanet_resnet50_fpn"], "has one stage"),
        (["student.body=nope"], r"(student|proposer)\.body: no body of a detector is called 'nope'"),
        (["task.masks=true"], "student.masks=true"),
        (["student=mlp"], "detectors"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        recipe = build(check(tree_of("vild", *words)))
        prepare(recipe, tmp_path, say=quiet)


def test_presets_are_recipes() -> None:
    made = build(check(load_tree("vild", preset="lvis-ensemble")))
    assert made.student is not None and made.student.config["heads"] == "two"
