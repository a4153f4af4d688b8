"""The battery: what every method promises, run over every Card. An exception is declared on the Card with its reason."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.engine.context import RunContext
from limbeck.engine.stages import learners
from limbeck.engine.step import Phases, Stepper, add_ons
from limbeck.engine.unaided import Unaided
from limbeck.errors import NonFinite
from limbeck.grammar.card import read_card, recipe_path
from limbeck.grammar.method import Gather, Gathered, Objective, Share, Terms
from limbeck.grammar.role import cast
from limbeck.models.from_run import FromRun
from limbeck.recipe.overrides import presets_of
from limbeck.recipe.recipe import build, check, dump, load_tree
from limbeck.recipe.values import read_yaml_file
from limbeck.storage import store
from tests.tiny import CARDS, NAMES, Tiny, differences, frozen, run_with_stop, state_of, trained, tree_of
from tests.tiny import shared_tiny as tiny
from tests.two_processes import TwoProcesses

# by method, not by test: what one leaves is made once for all of its tests
pytestmark = [pytest.mark.parametrize("name", NAMES, scope="module"), pytest.mark.usefixtures("plain")]


@pytest.fixture(scope="module")
def plain(name: str, shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """An undisturbed run of a method: made once, and before a test could have its teacher trained in a lower precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        run = tiny(name, tmp_path_factory.mktemp("plain")).run()
    with frozen():
        yield run


def except_for(name: str, row: str) -> None:
    """Leave a row out where the Card says why."""
    reason = CARDS[name].exceptions.get(row)
    if reason:
        pytest.skip(f"declared on the Card: {reason}")


def steps_or_skip(run: Any) -> None:
    """Leave a row out for a method that learns nothing step by step: all of its stages are items."""
    if run.engine.stages and all(stage.items is not None for stage in run.engine.stages):
        pytest.skip("all of its stages are items: there are no terms")


def first_phases(run: Any) -> Iterator[tuple[Terms, RunContext]]:
    """The phases of the first step of every stage of steps, with the graph of each; nothing is updated."""
    engine, method = run.engine, run.method
    engine.prepare(method)
    for index, stage in enumerate(engine.stages):
        ctx = RunContext(engine, method, stage, engine.device)
        if index == 0:
            for objective in add_ons(method).values():
                objective.begin(ctx)
        if stage.setup is not None:
            stage.setup(ctx)
            engine.place(method)
        if stage.items is not None:
            engine.run_items(method, stage, ctx)
            continue
        if stage.begin is not None:
            stage.begin(ctx)
            engine.place(method)
        if callable(stage.data):  # told when the stage begins, from what earlier ones left
            stage = replace(stage, data=stage.data(ctx))
        cast(method.roles, tuple(learners(stage, method.roles)))
        batch = next(iter(engine.batches(stage, 0, 1)))[0]
        micro = ctx.at(0)
        for query in [*method.setup.queries.values(), *stage.queries]:
            batch = query(batch, micro)
        phases = Phases(stage.step or method.step, batch, micro)
        answer: Any = None
        while (found := phases.send(answer)) is not None:
            answer = Gathered(found) if isinstance(found, Gather) else dict(found) if isinstance(found, Share) else None
            if isinstance(found, Terms):
                yield found, micro


def test_card_is_read_as_it_is_written(name: str) -> None:
    import importlib

    from limbeck.grammar.card import find_method

    module, cls, card = find_method(name)
    loaded = importlib.import_module(module)
    assert loaded.CARD == card == CARDS[name]
    assert hasattr(loaded, cls)
    assert read_card(Path(loaded.__file__)) == card
    recipe = read_yaml_file(recipe_path(name))
    assert recipe.get("tiny"), "the recipe must say under 'tiny' how it is shrunk to seconds"


def test_every_preset_is_a_recipe(name: str) -> None:
    for preset in presets_of(name):
        build(check(load_tree(name, preset=preset)))


def weights_of(role: Any) -> dict[str, torch.Tensor]:
    """A role's state without the statistics that batch norm keeps, which a forward pass moves."""
    return {k: v for k, v in role.module.state_dict().items() if "running_" not in k and "num_batches" not in k}


def resumed(name: str, plain: Tiny, folder: Path, stop: int, *then: str) -> None:
    """Stopped after so many steps or items and gone on with, a run must end where the undisturbed one did."""
    halves = run_with_stop(name, folder, stop, then=then)
    assert not differences(state_of(plain), state_of(halves)), f"stopped after {stop}"


def steps_of(run: Tiny) -> int:
    """Steps and items of a whole run."""
    ctx = [RunContext(run.engine, run.method, s, run.engine.device) for s in run.engine.stages]
    stages = zip(run.engine.stages, ctx, strict=True)
    return sum(s.total if s.items is None else len(s.items(c)) for s, c in stages)


def test_resume_equals_uninterrupted(name: str, plain: Tiny, tmp_path: Path) -> None:
    stop = random.Random(name).randrange(1, max(2, steps_of(plain)))
    # another number of loader workers after the stop must change nothing
    resumed(name, plain, tmp_path, stop, "engine.workers=1")


@pytest.mark.expensive
def test_resume_equals_uninterrupted_wherever_it_stopped(name: str, plain: Tiny, tmp_path: Path) -> None:
    for stop in range(1, max(2, steps_of(plain))):
        resumed(name, plain, tmp_path / str(stop), stop)


def test_same_seed_same_weights_other_seed_other_weights(name: str, plain: Tiny, tmp_path: Path) -> None:
    assert not differences(state_of(plain), state_of(tiny(name, tmp_path / "again").run()))
    other = tiny(name, tmp_path / "other", seed=1).run()
    assert differences(state_of(plain)["roles"]["student"], state_of(other)["roles"]["student"])


def test_accumulating_changes_nothing(name: str, plain: Tiny, tmp_path: Path) -> None:
    except_for(name, "accumulation")
    parts = tiny(name, tmp_path, "engine.accumulate=2").run()
    assert not differences(state_of(plain), state_of(parts), tolerance=1e-5)


def test_every_term_reaches_its_roles_and_no_other(name: str, tmp_path: Path) -> None:
    except_for(name, "terms")
    run = tiny(name, tmp_path)
    seen = 0
    for terms, _ in first_phases(run):
        params = trained(run)
        for term_name, term in terms.items():
            seen += 1
            total = term.total()
            assert total.dtype in (torch.float32, torch.float64), term_name
            flat = [p for ps in params.values() for p in ps]
            grads = torch.autograd.grad(total, flat, allow_unused=True, retain_graph=True)
            offset = 0
            for role, ps in params.items():
                mine = grads[offset : offset + len(ps)]
                offset += len(ps)
                reached = any(g is not None and bool(g.abs().sum() > 0) for g in mine)
                if role in term.to:
                    assert reached, f"term {term_name!r} declares role {role!r} and sends it nothing"
                else:
                    assert not reached, f"term {term_name!r} reaches role {role!r}, which it does not declare"
    steps_or_skip(run)
    assert seen


def passed(module: Any, args: Any) -> None:
    """Count passes in training mode; a hook that returned something would put it in the arguments' place."""
    if module.training:
        module.passes.add_(1.0)


def test_items_leave_every_role_alone(name: str, tmp_path: Path) -> None:
    """Every role holds a statistic that a pass in training mode moves, as BatchNorm's are: the engine looks at them."""
    run = tiny(name, tmp_path)
    engine, method = run.engine, run.method
    engine.prepare(method)
    for index, stage in enumerate(engine.stages):
        ctx = RunContext(engine, method, stage, engine.device)
        if index == 0:
            for objective in add_ons(method).values():
                objective.begin(ctx)
        if stage.setup is not None:
            stage.setup(ctx)
            engine.place(method)
        if stage.items is None:
            continue
        for role in method.roles.values():
            if isinstance(role.module, torch.nn.Module) and "passes" not in dict(role.module.named_buffers()):
                role.module.register_buffer("passes", torch.zeros(()), persistent=False)
                role.module.register_forward_pre_hook(passed)
        for item in stage.items(ctx):
            shutil.rmtree(engine.item_folder(method, stage.name, item), ignore_errors=True)  # whoever left it there
        engine.run_items(method, stage, ctx)


def test_frozen_stays_trained_moves(name: str, tmp_path: Path) -> None:
    run = tiny(name, tmp_path)
    run.engine.prepare(run.method)
    before = {
        n: copy.deepcopy(r.module.state_dict())
        for n, r in run.method.roles.items()
        if isinstance(r.module, torch.nn.Module)
    }
    run.engine.run(run.method)
    learn = {n for stage in run.engine.stages for n in stage.optim if stage.items is None}
    begun = any(stage.begin is not None for stage in run.engine.stages)
    filled = {o.projector for o in add_ons(run.method).values() if type(o).begin is not Objective.begin}
    for role_name, role in run.method.roles.items():
        if role_name not in before or not isinstance(role.module, torch.nn.Module):
            continue
        if role_name not in learn and role.of is None:
            assert (
                (begun and role_name != "teacher")
                or role_name in filled
                or not differences(before[role_name], dict(role.module.state_dict()))
            )
            assert not role.module.training
            assert all(p.grad is None for p in role.module.parameters())
        if role_name in learn:
            still = [
                n for n, p in role.module.named_parameters() if p.requires_grad and torch.equal(p, before[role_name][n])
            ]
            allowed = CARDS[name].exceptions.get("moves", "")
            assert not still or allowed, f"{role_name}: {still} never moved"


def test_non_finite_stops_before_the_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    except_for(name, "terms")
    run = tiny(name, tmp_path)
    engine, method = run.engine, run.method
    engine.rehearse(method)
    steps_or_skip(run)
    real, calls = Stepper.take, [0]

    def poisoned(self: Stepper, step: int, micro: Any) -> Any:
        m, stage = self.method, self.stage
        calls[0] += 1
        if calls[0] == 3:
            poisoned.before = {n: copy.deepcopy(weights_of(r)) for n, r in m.roles.items() if r.learns}  # type: ignore[attr-defined]
            inner = stage.step or m.step

            def spoilt(batch: Any, c: Any) -> Any:
                answer: Any = None
                phases = Phases(inner, batch, c)
                while (found := phases.send(answer)) is not None:
                    if isinstance(found, Terms):
                        first = next(iter(found.values()))
                        first.values = first.values * float("nan")
                        first.show = None if first.show is None else first.show * float("nan")
                    answer = yield found

            stage.step = spoilt
        return real(self, step, micro)

    monkeypatch.setattr(Stepper, "take", poisoned)
    with pytest.raises(NonFinite) as caught:
        engine.run(method)
    said = str(caught.value)
    assert "step" in said and "term" in said and "role" in said and "item" in said
    now = {n: weights_of(r) for n, r in method.roles.items() if r.learns}
    assert not differences(poisoned.before, now)  # type: ignore[attr-defined]
    failure = store.load_tree(tmp_path / "failure")
    assert failure["batches"] and failure["roles"]


def test_at_equality(name: str, tmp_path: Path) -> None:
    except_for(name, "at_equality")
    declared = CARDS[name].at_equality
    run = tiny(name, tmp_path)
    if run.bench.teacher is None:
        pytest.skip("no teacher")
    if "teacher" not in run.recipe.method.participants or not declared:
        pytest.skip("the Card declares nothing")
    student, teacher = run.method.roles["student"], run.method.roles["teacher"]
    twin = copy.deepcopy(teacher.module)
    student.module, student.contract = twin.requires_grad_(True), teacher.contract
    student.module.eval()
    twin.train = lambda mode=True: twin  # type: ignore[method-assign, assignment]  # no dropout on either side: it would differ
    run.bench.student.module = twin
    for other, who in run.recipe.method.participants.items():
        if who.taught and who.like == "teacher":  # further teachers of the same kind
            role = run.method.roles[other]
            role.module, role.contract = teacher.module, teacher.contract
    for terms, _ in first_phases(run):
        for term_name, term in terms.items():
            promise = declared.get(term_name)
            if promise == "value":
                assert float(term.values.detach().abs().max()) < 1e-6, term_name
            if promise in ("value", "gradient"):
                own = [p for role in term.to for p in run.method.roles[role].module.parameters() if p.requires_grad]
                grads = torch.autograd.grad(term.total(), own, allow_unused=True, retain_graph=True)
                assert max(float(g.abs().max()) for g in grads if g is not None) < 1e-5, term_name


def test_weight_zero_is_the_student_alone(name: str, tmp_path: Path) -> None:
    overrides = CARDS[name].baseline.get(name)
    if not overrides:
        pytest.skip("the Card declares no setting that turns it into the baseline")
    run = tiny(name, tmp_path / "zero", *overrides).run()
    base = tiny(name, tmp_path / "base", *overrides)
    alone = Unaided()
    alone.bind(base.method.setup)
    base.engine.run(alone)
    assert not differences(
        dict(run.method.roles["student"].module.state_dict()), dict(alone.roles["student"].module.state_dict())
    )


def test_low_precision_keeps_terms_in_float32(name: str, tmp_path: Path) -> None:
    except_for(name, "precision")
    run = tiny(name, tmp_path, "engine.precision=bf16").run()
    for state in state_of(run)["roles"].values():
        for tensor_name, tensor in state.items():
            assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), tensor_name


def test_a_batch_of_one_runs(name: str, tmp_path: Path) -> None:
    except_for(name, "batch_of_one")
    tiny(name, tmp_path, "train.batch_size=1").run()


def test_recipe_round_trip(name: str, tmp_path: Path) -> None:
    tree = tree_of(name)
    path = tmp_path / "again.yaml"
    path.write_text(dump(tree))
    assert check(load_tree(path)) == tree


def test_whole_run_and_its_folder(name: str, tmp_path: Path) -> None:
    from limbeck.recipe.recipe import build
    from limbeck.run import run as run_all

    tree = tree_of(name, "loggers=[jsonl, csv]")
    result = run_all(tree, tmp_path / "run", quiet=True)
    folder = tmp_path / "run"
    written = json.loads((folder / "result.json").read_text())
    for key in ("recipe", "method", "seed", "versions", "hardware", "wall_seconds", "primary", "metrics"):
        assert key in written, key
    primary = written["primary"]
    assert primary in written["metrics"]["student"] and primary in written["metrics"]["alone"]
    assert (
        (folder / "report.html").is_file() and (folder / "config.yaml").is_file() and (folder / "log.jsonl").is_file()
    )
    assert check(load_tree(folder)) == tree
    again = run_all(tree, folder, quiet=True)
    assert again["reused"] and again["metrics"] == result["metrics"]
    no_pickle = [
        p
        for p in folder.rglob("*")
        if p.is_file() and (p.suffix in (".pt", ".pth", ".pkl", ".bin") or p.read_bytes()[:2] == b"\x80\x04")
    ]
    assert not no_pickle
    if (folder / "student.safetensors").is_file() and written["artifact"] == "network":
        # the file alone must fit the plain architecture, strictly
        state = load_file(folder / "student.safetensors")
        recipe = build(tree)
        recipe.task.load(0)
        assert recipe.student is not None
        if json.loads((folder / "student.json").read_text())["model"]["use"] == "chain":  # composed: the file says how
            made = FromRun(str(folder)).build(recipe.task).module
        else:
            made = recipe.student.build(recipe.task).module
        made.load_state_dict(state, strict=True)


def test_no_add_on_is_there_unasked(name: str, tmp_path: Path) -> None:
    run = tiny(name, tmp_path)
    assert not run.method.setup.objectives and not run.method.setup.queries
    assert not any(n.startswith("projector:") for n in run.method.roles)
    assert isinstance(add_ons(run.method), dict)


def test_two_processes_follow_one(name: str, plain: Tiny, two_processes: TwoProcesses) -> None:
    except_for(name, "processes")
    assert not differences(state_of(plain), two_processes.state(name), tolerance=1e-5)
