"""What two processes do with sharded roles; started by torchrun from test_sharded. Each case leaves a state or a text."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.engine import distributed as dist
from limbeck.engine import interrupt
from limbeck.engine.step import Stepper
from limbeck.errors import MethodError, NonFinite, Stopped
from limbeck.grammar.method import Batch, Context, Gather, Method, Share, Term, Terms
from limbeck.grammar.role import Role
from limbeck.objectives import FeatureMatch
from limbeck.storage import store
from tests.tiny import StopAfter
from tests.toy import Toy, bound, engine, learnt, network

torch.set_num_threads(1)
root = Path(sys.argv[-1])  # the folder torchrun was given; importing the cases for a comparison needs none


class Idle(Method):
    """Half of the student never gets a gradient; a scalar term, uneven parts, a sum with its own count."""

    def bind(self, setup: Any) -> None:
        super().bind(setup)
        self.roles["student"].module.spare = nn.Linear(2, 2)
        with torch.no_grad():
            self.roles["student"].module.spare.weight.fill_(1.0)
            self.roles["student"].module.spare.bias.fill_(1.0)

    def step(self, batch: Batch, ctx: Context) -> Terms:
        module = self.roles["student"].module
        z = nn.Sequential(*list(module.children())[:5])(batch["x"])
        picked = batch["item"] % 4 == 0
        return Terms(
            item=Term(z.square().sum(1)),
            scalar=Term(z.sum() * 0.1, count=len(z)),
            some=Term(z[picked].square().sum(), count=int(picked.sum())),
            several=Term(z.abs()),
        )


class Contrast(Method):
    """InfoNCE of the student against the teacher and against itself over the whole batch, beside the task's loss."""

    def __init__(self, detached: bool = False) -> None:
        self.detached = detached

    def step(self, batch: Batch, ctx: Context) -> Any:
        e, t = ctx.signal("student", batch).logits, ctx.signal("teacher", batch).logits
        rows = yield Gather(e=e.detach() if self.detached else e, t=t)
        target = rows.numbers("e")
        own = e.new_full((len(e), len(rows["e"])), 0.0).scatter(1, target[:, None], float("-inf"))
        close = e @ rows["e"].T + own  # [n, N]: to every other row
        yield Terms(
            ce=self.task.supervised(ctx.signals["student"], batch),
            contrast=Term(nn.functional.cross_entropy(e @ rows["t"].T, target, reduction="none")),
            spread=Term(close.logsumexp(1), weight=0.3, where=batch["item"] % 3 != 0),
        )


class Tied(nn.Module):
    """Blocks between a first and a last layer that share one weight, and a view of a buffer."""

    def __init__(self, repeat: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first = nn.Linear(6, 6, bias=False)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
            self.last = nn.Linear(6, 6)
            self.last.weight = self.first.weight
            if repeat:
                self.blocks[2] = self.blocks[0]
        self.register_buffer("scale", torch.tensor([1.0, 0.5]))
        self.register_buffer("part", self.scale[1:])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + self.part * block(x)
        return self.last(x)[:, :3]


def hints() -> dict[str, Any]:
    return {"hint": FeatureMatch("2", "2", weight=0.5)}


def sharded(folder: Path | None, stop: int | None = None, evaluate: Any = None, **settings: Any) -> Method:
    method = bound(Toy(), objectives=hints(), clip=0.5)
    run = engine(folder, None if stop is None else StopAfter(stop), evaluate, shard=("student", "teacher"), **settings)
    run.run(method)
    return method


def case_equal() -> Any:
    method = bound(Toy(), objectives=hints(), clip=0.5)
    run = engine(shard=("student", "teacher"))
    seen: list[Any] = []
    take = Stepper.take

    def watched(self: Stepper, step: int, micro: Any) -> Any:
        seen.extend(type(p) for n in ("student", "teacher", "mean") for p in self.method.roles[n].module.parameters())
        return take(self, step, micro)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "take", watched)
        run.run(method)
    assert seen and all(t is DTensor for t in seen), "the roles were not split"
    assert not any(isinstance(p, DTensor) for r in method.roles.values() for p in r.module.parameters())
    assert method.setup.student.module is method.roles["student"].module
    assert method.setup.student.module(torch.zeros(2, 6)).shape == (2, 3)
    return learnt(method)


def case_tied() -> Any:
    found = {}
    for repeat in (False, True):
        method = bound(Toy(), student=Tied(repeat), clip=0.5)
        student = method.roles["student"]
        run = engine(root / f"tied-{repeat}", shard=("student",))
        run.run(method)
        module: Any = student.module
        assert module.first.weight is module.last.weight and module.part.data_ptr() == module.scale[1:].data_ptr()
        assert (module.blocks[2] is module.blocks[0]) == repeat
        found[str(repeat)] = learnt(method)
    return found


def case_accumulate() -> Any:
    return learnt(sharded(None, accumulate=2))


def case_resume() -> Any:
    try:
        sharded(root / "resume-run", stop=3)
        raise AssertionError("nothing stopped it")
    except Stopped as stopped:
        assert stopped.signum == signal.SIGTERM
    interrupt.clear()
    return learnt(sharded(root / "resume-run"))


def case_restore() -> Any:
    method = bound(Toy(), objectives=hints(), clip=0.5)
    run = engine(root / "resume-run", shard=("student", "teacher"))
    assert run.checkpoints is not None
    found = run.checkpoints.latest()
    assert found is not None
    run.restore(method, found[1])
    return learnt(method)


def case_judged() -> Any:
    from tests.engine.test_engine import best_of

    best, method = best_of(root / "judged-run", ("student", "teacher"))
    assert best.metrics["step"] > 0
    dist.barrier()
    return {"best": store.load_tree(root / "judged-run" / "best"), **learnt(method)}


def case_idle() -> Any:
    method = bound(Idle(), batch_size=5, weight_decay=0.1)
    engine().run(method)
    return learnt(method)


def case_idle_parts() -> Any:
    method = bound(Idle(), batch_size=7, weight_decay=0.1)
    engine(accumulate=2).run(method)
    return learnt(method)


def case_nan() -> Any:
    method = bound(Toy())
    items: Any = method.task.train
    items.x[13] = float("nan")
    where = root / "nan-run"
    try:
        engine(where, shard=("student",)).run(method)
    except NonFinite as error:
        said = str(error)
    assert "term ce" in said and "13" in said, said
    dist.same_everywhere(said, "the error")
    dist.barrier()
    failure = store.load_tree(where / "failure")
    assert any(13 in b["item"].tolist() for b in failure["batches"])
    return {"roles": failure["roles"]}


def case_clock() -> Any:
    """One process finds it time to save; both do."""
    method = bound(Toy())
    run = engine(root / "clock-run", save_minutes=1e-9 if dist.rank() else 1e9)
    saved: list[int] = []
    save = run._save
    run._save = lambda m, i, s, *more: (saved.append(s), save(m, i, s, *more))[1]  # type: ignore[method-assign, assignment, func-returns-value]
    run.run(method)
    assert saved == [1, 2, 3, 4, 5, 6, 7, 0], saved
    return {}


def case_frozen_split_alone() -> Any:
    """A wide role in several layers of its own, split and joined without a run."""
    torch.manual_seed(0)
    net = nn.Sequential(network(9), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    role = Role(net, shard=True)
    role.split()
    role.split()
    assert role.join() and not role.join()
    assert all(torch.equal(before[k], v) for k, v in role.module.state_dict().items())
    assert all(p.requires_grad for p in role.module.parameters())
    return {}


def case_norm_one_step() -> Any:
    method = bound(Toy(), student=network(norm=True), steps=1)
    engine().run(method)
    return learnt(method)


def case_norm() -> Any:
    method = bound(Toy(), student=network(norm=True))
    engine().run(method)
    return learnt(method)


def case_norm_resume() -> Any:
    for stop in (3, None):
        method = bound(Toy(), student=network(norm=True))
        with contextlib.suppress(Stopped):
            engine(root / "norm-run", None if stop is None else StopAfter(stop)).run(method)
        interrupt.clear()
    return learnt(method)


def over_all(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What `torch.nn.SyncBatchNorm` computes on GPUs: here, by the statistics of all processes, on the CPU."""
    if not self.training:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
    sums = torch.cat([x.sum(0), x.square().sum(0), torch.full((1,), float(len(x)))])
    sums = torch.distributed.nn.functional.all_reduce(sums)
    n, width = sums[-1], x.shape[1]
    mean = sums[:width] / n
    var = sums[width:-1] / n - mean.square()
    with torch.no_grad():
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * n / (n - 1), self.momentum)
        self.num_batches_tracked.add_(1)
    return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


def case_synchronised() -> Any:
    found = {}
    for shard in ((), ("student",)):
        method = bound(Toy(), student=network(norm=True), batch_size=9, optimizer="sgd")
        run = engine(shard=shard)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(run.settings), "synchronises", lambda self, device: True)
            patch.setattr(nn.SyncBatchNorm, "forward", over_all)
            run.run(method)
        module: Any = method.roles["student"].module
        assert type(module[1]) is nn.BatchNorm1d
        found[str(len(shard))] = learnt(method)
    return found


def case_buffers() -> Any:
    """Each process moves some buffers by itself; two of them only after others were found to move."""
    net = nn.Module()
    rank = float(dist.rank())
    given = {"mean": torch.zeros(3), "low": torch.zeros(2, dtype=torch.bfloat16), "count": torch.tensor(0)}
    given |= {"mask": torch.tensor([float("-inf"), 0.1]), "late": torch.tensor([1.0, 3.0]), "replaced": torch.zeros(2)}
    given |= {"flag": torch.tensor(False), "third": torch.tensor([1.0 / 3])}
    for name, value in given.items():
        net.register_buffer(name, value)
    buffers = dist.Buffers([net])
    for _ in range(2):
        net.mean.add_(torch.tensor([1.0, 2.0, 0.0]) * (1 + 2 * rank))
        net.low.add_(rank + 1)
        net.count.add_(1)
        net.flag.fill_(True)
        net.replaced = torch.full((2,), rank)
        buffers.agree()
    net.late[0] = 5.0 + rank
    buffers.agree()
    assert float(net.late[0]) == 5.0 + rank, "it is not looked for at every step"
    buffers.agree(look=True)
    return dict(net.state_dict())


def case_gather() -> Any:
    found = {}
    for size, parts, split in ((8, 1, ()), (7, 1, ()), (7, 2, ()), (7, 2, ("student",))):
        method = bound(Contrast(), batch_size=size, clip=0.5)
        engine(accumulate=parts, shard=split).run(method)
        found[f"{size} {parts} {len(split)}"] = learnt(method)
    return found


class Torn(Method):
    """Processes that do not do the same."""

    def __init__(self, how: str) -> None:
        self.how = how

    def bind(self, setup: Any) -> None:
        super().bind(setup)
        self.roles["other"] = Role(nn.Linear(3, 3))
        self.learners = ("student", "other")
        with torch.no_grad():
            for p in self.roles["other"].module.parameters():
                p.fill_(0.5)
        self.state = {"queue": torch.zeros(2), "n": 0}

    def step(self, batch: Batch, ctx: Context) -> Any:
        odd = dist.rank() == 1
        z = ctx.signal("student", batch).logits
        mine = Term(z.square().sum(1))
        if self.how == "share" and odd:
            yield Share(q=torch.ones(3))
        if self.how == "other share":
            yield Share(q=torch.ones(2 + odd))
        if self.how == "gather":
            yield Gather(q=torch.ones(3, 2 + odd))
        if self.how == "role":
            to = "other" if odd else "student"
            yield Terms(a=Term(ctx.call("other", z.detach()).sum(1) if odd else z.sum(1), to))
            return
        if self.how == "metric":
            yield Terms({"seen": (1.0, 1)} if odd else {}, a=mine)
            return
        if self.how == "mask":
            mine.where = torch.ones(len(z), dtype=torch.bool) if odd else None
        yield Terms(a=mine)
        if self.how == "phase" and odd:
            yield Terms(b=Term(ctx.call("other", z.detach()).sum(1), "other"))

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        if self.how == "state":
            self.state["queue"] = self.state["queue"] + dist.rank()
        if self.how == "weights":
            with torch.no_grad():
                self.roles["other"].module.bias.add_(float(dist.rank()))


def case_torn() -> Any:
    said = {}
    for how in ("share", "other share", "gather", "role", "metric", "mask", "phase", "state", "weights"):
        try:
            engine(root / f"torn-{how}").run(bound(Torn(how), batch_size=8))
        except MethodError as error:
            said[how] = str(error)
        dist.barrier()
    return said


if __name__ == "__main__":
    dist.start(torch.device("cpu"))
    for name, case in list(globals().items()):
        if not name.startswith("case_"):
            continue
        try:
            state = case()
            dist.same_everywhere(store.hash_tree(state), name)
            if dist.rank() == 0:
                store.save_tree(root / name, state)
        except Exception:
            (root / f"{name}-{dist.rank()}.txt").write_text(traceback.format_exc())
        interrupt.clear()
        dist.barrier()
    dist.stop()
    sys.stdout.flush()
    os._exit(0)  # what is to be known is written; gloo's threads sometimes abort a process that is only leaving
