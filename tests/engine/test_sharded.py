"""Two processes (gloo): replicated and sharded roles follow one process, through accumulation, stops and evaluation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine import distributed as dist
from limbeck.storage import store
from tests.engine import sharded as cases
from tests.engine.test_engine import best_of
from tests.tiny import differences
from tests.toy import Toy, bound, engine, learnt, network


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what came of every case."""
    folder = tmp_path_factory.mktemp("sharded")
    root = Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LIMBECK_PROGRESS": "0"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.engine.sharded", str(folder)]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def left(two: Path, name: str) -> Any:
    """What a case left; its traceback where it failed."""
    for rank in (0, 1):
        failed = two / f"{name}-{rank}.txt"
        assert not failed.exists(), failed.read_text()
    return store.load_tree(two / name)


def alone(**settings: Any) -> Any:
    method = bound(Toy(), objectives=cases.hints(), clip=0.5)
    engine(**settings).run(method)
    return learnt(method)


def test_sharded_roles_follow_one_process(two: Path) -> None:
    assert not differences(alone(), left(two, "case_equal"), tolerance=1e-5)


@pytest.mark.parametrize("repeat", [False, True])
def test_tied_weights_and_repeated_blocks_are_split_and_stay_tied(two: Path, repeat: bool) -> None:
    method = bound(Toy(), student=cases.Tied(repeat), clip=0.5)
    engine().run(method)
    assert not differences(learnt(method), left(two, "case_tied")[str(repeat)], tolerance=1e-5)


def test_blocks_are_the_members_of_lists_that_share_nothing_outside() -> None:
    net = cases.Tied()
    assert dist.blocks(net) == list(net.blocks)
    net.blocks[1][0].weight = net.first.weight
    assert dist.blocks(net) == [net.blocks[0], net.blocks[2]]
    assert len(dist.blocks(cases.Tied(repeat=True))) == 2
    assert dist.blocks(nn.Linear(2, 2)) == []
    stages = nn.Sequential(*(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))) for _ in range(2)))
    assert dist.blocks(stages) == [m for stage in stages for m in stage], "a stage is taken apart"

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([nn.Linear(2, 2)])

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[0](x)  # type: ignore[no-any-return]

    class Body(nn.Module):
        _no_split_modules = ("Layer",)

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = Layer(), nn.ParameterList([nn.Parameter(torch.ones(1))])
            self.members = nn.ModuleList([nn.ParameterList([nn.Parameter(torch.ones(1))]), nn.LayerNorm(2)])

    body = Body()
    assert dist.blocks(body) == [body.one, body.members[1]]


def test_a_language_model_is_split_by_its_layers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    assert dist.blocks(model) == list(model.model.layers)


def test_a_residual_network_is_split_by_its_blocks() -> None:
    import timm
    from timm.models.resnet import BasicBlock

    model = timm.create_model("resnet18", num_classes=3)
    assert dist.blocks(model) == [m for m in model.modules() if isinstance(m, BasicBlock)]


def test_sharded_roles_accumulate(two: Path) -> None:
    assert not differences(alone(), left(two, "case_accumulate"), tolerance=1e-5)


def test_rows_are_gathered_over_processes(two: Path) -> None:
    for key, made in left(two, "case_gather").items():
        method = bound(cases.Contrast(), batch_size=int(key[0]), clip=0.5)
        engine().run(method)
        assert not differences(learnt(method), made, tolerance=1e-5), key


def test_a_sharded_run_stops_and_goes_on_bit_for_bit(two: Path) -> None:
    assert not differences(left(two, "case_equal"), left(two, "case_resume"))
    assert not differences(left(two, "case_equal"), left(two, "case_restore"))


def test_a_checkpoint_of_two_processes_is_read_by_one(two: Path) -> None:
    left(two, "case_resume")
    method = bound(Toy(), objectives=cases.hints(), clip=0.5)
    run = engine(two / "resume-run")
    assert run.checkpoints is not None
    found = run.checkpoints.latest()
    assert found is not None
    run.restore(method, found[1])
    assert not differences(left(two, "case_equal"), learnt(method))


def test_the_best_sharded_student_is_whole(two: Path, tmp_path: Path) -> None:
    best, method = best_of(tmp_path, ())
    found = left(two, "case_judged")
    assert not differences(store.load_tree(best.folder), found.pop("best"), tolerance=1e-5)
    assert not differences(learnt(method), found, tolerance=1e-5)


@pytest.mark.parametrize(("name", "size"), [("case_idle", 5), ("case_idle_parts", 7)])
def test_uneven_parts_odd_terms_and_idle_parameters_follow_one_process(two: Path, name: str, size: int) -> None:
    method = bound(cases.Idle(), batch_size=size, weight_decay=0.1)
    engine().run(method)
    found = left(two, name)
    assert not differences(learnt(method), found, tolerance=1e-5)
    assert float(found["roles"]["student"]["spare.weight"].min()) == 1.0, "no gradient anywhere, so no decay"


def test_what_is_not_finite_in_one_process_is_named_by_all(two: Path) -> None:
    assert set(left(two, "case_nan")["roles"]) == {"student"}


def test_one_clock_saves_for_all(two: Path) -> None:
    left(two, "case_clock")


def test_splitting_and_joining_a_role(two: Path) -> None:
    left(two, "case_frozen_split_alone")


def test_statistics_of_a_batch_agree_in_every_process_and_go_on_bit_for_bit(two: Path) -> None:
    method = bound(Toy(), student=network(norm=True), steps=1)
    engine().run(method)
    one, both = learnt(method)["roles"], left(two, "case_norm_one_step")["roles"]
    for role in ("student", "mean"):
        # the mean over two equal parts is the mean of the whole; the variance within parts is not that of the whole
        assert not differences(one[role]["1.running_mean"], both[role]["1.running_mean"], tolerance=1e-6)
        assert differences(one[role]["1.running_var"], both[role]["1.running_var"], tolerance=1e-6)
        assert int(both[role]["1.num_batches_tracked"]) == 1
    # (that processes agree is asserted there, of every case)
    assert not differences(left(two, "case_norm"), left(two, "case_norm_resume"))


@pytest.mark.parametrize("shard", [0, 1])
def test_synchronised_normalisation_is_that_of_the_whole_batch(two: Path, shard: int) -> None:
    method = bound(Toy(), student=network(norm=True), batch_size=9, optimizer="sgd")
    engine().run(method)
    assert not differences(learnt(method), left(two, "case_synchronised")[str(shard)], tolerance=1e-5)


def test_synchronised_layers_are_stand_ins_and_are_put_back() -> None:
    import timm

    net = timm.create_model("resnet18", num_classes=3)
    net.bn2 = net.layer1[0].bn1  # one layer in two places
    layers = {n: m for n, m in net.named_modules(remove_duplicate=False) if isinstance(m, nn.BatchNorm2d)}
    seen: list[Any] = []
    net.bn1.register_forward_hook(lambda m, args, out: seen.append(out))
    x = torch.randn(2, 3, 32, 32)
    before = net.eval()(x)
    replaced = dist.synchronise(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert all(isinstance(net.get_submodule(n), nn.SyncBatchNorm) for n in layers)
    assert net.bn2 is net.layer1[0].bn1
    assert torch.equal(net(x), before) and len(seen) == 2, "hooks stay"
    with torch.no_grad():
        net.bn1.running_mean.add_(1.0)
        net.bn1.weight.add_(1.0)
    moved = net(x)
    dist.part(replaced)
    assert {n: m for n, m in net.named_modules(remove_duplicate=False) if isinstance(m, nn.BatchNorm2d)} == layers
    assert torch.equal(net(x), moved)

    class Own(nn.BatchNorm1d):
        pass

    assert dist.synchronise(nn.Sequential(Own(2))) == []


def test_buffers_that_move_are_averaged_and_others_are_left_alone(two: Path) -> None:
    found = left(two, "case_buffers")
    assert found["mean"].tolist() == [4.0, 8.0, 0.0]  # (1 + 3) / 2 a step, and twice that
    assert found["low"].tolist() == [3.0, 3.0]
    assert int(found["count"]) == 2 and bool(found["flag"])
    assert found["mask"].tolist() == [float("-inf"), pytest.approx(0.1)]
    assert found["late"].tolist() == [5.5, 3.0]
    assert found["replaced"].tolist() == [0.5, 0.5]
    assert float(found["third"]) == float(torch.tensor(1.0 / 3))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("share", "process 0: updates 'student' by a | process 1: shares q [3] float32"),
        ("other share", "process 0: shares q [2] float32 | process 1: shares q [3] float32"),
        ("gather", "process 0: gathers q [n, 2] float32 | process 1: gathers q [n, 3] float32"),
        ("role", "process 0: updates 'student' by a | process 1: updates 'other' by a"),
        ("metric", "process 1: updates 'student' by a, shows seen"),
        ("mask", ""),
        ("phase", "process 0: the step is over | process 1: updates 'other' by b"),
        ("state", "self.state is not the same in every process: queue, expected state that moves in observe alone"),
        ("weights", "role 'other' is not the same in every process: bias"),
    ],
)
def test_processes_that_disagree_are_told_apart_and_none_hangs(two: Path, how: str, said: str) -> None:
    found = left(two, "case_torn")
    if not said:
        assert how not in found, "a mask in one process alone changes nothing that processes must share"
    else:
        assert said.replace(" by a", " by a (counts known after the pass)") in found[how] or said in found[how]
