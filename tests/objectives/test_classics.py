"""RKD, CC, PKT, VID, NST, ReviewKD and CRD as objectives: their functions on what the taps show, by recipe and in a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional import contrast, feature, relation
from limbeck.grammar.random import Draws
from limbeck.grammar.signal import Signal
from limbeck.objectives import AttentionTransfer, Congruence, Crd, Criterion, Nst, Pkt, Review, Rkd, Vid
from limbeck.objectives.contrastive import Embeddings
from limbeck.objectives.hints import Fusion
from tests.tiny import differences, run_with_stop, state_of
from tests.tiny import shared_tiny as tiny


def net(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )  # fmt: skip


def test_each_is_its_function_on_what_the_taps_show() -> None:
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    student, teacher = net(4, 0), net(5, 1)
    student(x), teacher(x)
    made = {
        "rkd": Rkd("3", "3", distance=25.0, angle=50.0),
        "distances": Rkd("3", "3", angle=0.0, distance=2.0),
        "cc": Congruence("3", "3"),
        "bilinear": Congruence("3", "3", kernel="bilinear"),
        "pkt": Pkt("3", "3"),
        "itself": Pkt("3", "3", itself=True),
        "nst": Nst("1", "1"),
        "norm": AttentionTransfer("1", "1", distance="norm"),
        "vid": Vid("1", "1", layers=2),
        "review": Review(["1", "3"], ["1", "3"], middle=7),
    }
    criterion = Criterion(made, student, teacher, x)
    assert sorted(criterion.projectors) == ["review", "vid"]
    criterion.eval()  # for the batch norms below to be the same
    loss = criterion(x)
    a, b = [student[:2](x), student[:4](x)], [teacher[:2](x).detach(), teacher[:4](x).detach()]
    fused = criterion.projectors["review"](*a)
    mean, variance = criterion.projectors["vid"](a[0].flatten(2).transpose(1, 2))
    want = {
        "rkd": 25 * relation.distances(a[1], b[1]) + 50 * relation.angles(a[1], b[1]),
        "distances": 2 * relation.distances(a[1], b[1]),
        "cc": relation.congruence(a[1], b[1]),
        "bilinear": relation.congruence(a[1], b[1], kernel="bilinear"),
        "pkt": relation.neighbours(a[1], b[1]),
        "itself": relation.neighbours(a[1], b[1], itself=True),
        "nst": feature.channel_selectivity(a[0], b[0]),
        "norm": feature.attention_transfer(a[0], b[0]).sqrt(),
        "vid": feature.variational(mean.transpose(1, 2), b[0].flatten(2), variance),
        "review": sum(feature.pyramid_distance(s, t) for s, t in zip(fused, b, strict=True)),
    }
    torch.testing.assert_close(variance, torch.full((5,), 5.0))
    for name, values in want.items():
        torch.testing.assert_close(criterion.shown[name], values.mean().detach(), msg=name)  # type: ignore[union-attr]
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in criterion.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    same = Criterion({"norm": AttentionTransfer("1", "1", distance="norm")}, student, teacher, x)
    twin = Signal(None, {"1": a[0].detach().requires_grad_()}), Signal(None, {"1": a[0].detach()})
    term = same.objectives["norm"](*twin, {"x": x}, same)  # type: ignore[arg-type]
    term.total().backward()
    assert float(term.total().detach()) == 0 and not twin[0].acts["1"].grad.any()  # finite where both agree


def test_fusion_is_the_equation() -> None:
    torch.manual_seed(0)
    fusion = Fusion([3, 4, 5], [6, 7, 8], 9).eval()
    maps = [torch.randn(2, c, k, k) for c, k in ((3, 8), (4, 4), (5, 2))]
    got = fusion(*maps)
    deep = fusion.enter[2](maps[2])
    want = [fusion.leave[2](deep)]
    for i in (1, 0):
        x, up = fusion.enter[i](maps[i]), deep.repeat_interleave(2, 2).repeat_interleave(2, 3)
        gate = fusion.attend[i](torch.cat([x, up], 1)).sigmoid()
        deep = x * gate[:, 0:1] + up * gate[:, 1:2]
        want.insert(0, fusion.leave[i](deep))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


class Ctx:
    """What a CRD term asks of its context."""

    def __init__(self, module: Embeddings, step: int = 0) -> None:
        self.module, self.draws = module, Draws(0, ("t", step))
        self.roles = {"projector:crd": self}

    def call(self, role: str, *args: Tensor) -> Any:
        return self.module(*args)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("negatives", ["classes", "items"])
def test_crd_is_the_loops(negatives: Any, variant: Any) -> None:
    torch.manual_seed(0)
    crd = Crd(student="s", teacher="t", width=4, negatives=negatives, count=5, variant=variant)
    crd.name, crd.items = "crd", 12
    s, t = torch.randn(3, 6), torch.randn(3, 7)
    module = crd.prepare(Signal(None, {"s": s}), Signal(None, {"t": t}), {})
    assert isinstance(module, Embeddings) and module.memory_s.shape == (12, 4)
    module.classes = torch.arange(12) % 3
    item = torch.tensor([4, 0, 11])
    before = {k: v.clone() for k, v in module.state_dict().items()}
    ctx = Ctx(module)
    term = crd(Signal(None, {"s": s}), Signal(None, {"t": t}), {"item": item}, ctx)  # type: ignore[arg-type]
    v_s, v_t = (nn.functional.normalize(e(x)) for e, x in ((module.embed_s, s), (module.embed_t, t)))
    drawn = ctx.draws.randint("crd", item, 11, (5,))
    want = torch.zeros(3)
    for v, other, memory in ((v_s, v_t, before["memory_t"]), (v_t, v_s, before["memory_s"])):
        rows = []
        for n, i in enumerate(item.tolist()):
            js = [int(j) + (int(j) >= i) for j in drawn[n]]
            assert i not in js
            own = v[n] @ (other[n] if variant == "paper" else memory[i])
            rows.append(torch.stack([own, *(v[n] @ memory[j] for j in js)]) / 0.07)
        scores = torch.stack(rows)
        log_z = (scores.exp().mean() * 12).log() if variant == "released" else 0.0
        apart = torch.tensor(
            [[(int(j) + (int(j) >= i)) % 3 != i % 3 for j in drawn[n]] for n, i in enumerate(item.tolist())]
        )
        mask = apart if negatives == "classes" else None
        want = want + contrast.contrastive_critic(scores, items=12, own=mask, log_z=log_z)
    torch.testing.assert_close(term.values, want)
    moved = before["memory_s"].clone()
    moved[item] = nn.functional.normalize(0.5 * moved[item] + 0.5 * v_s.detach())
    torch.testing.assert_close(module.memory_s, moved)
    assert term.to == ("student", "projector:crd")
    with torch.no_grad():  # looking changes nothing
        again = module.memory_s.clone()
        crd(Signal(None, {"s": s}), Signal(None, {"t": t}), {"item": item}, ctx)  # type: ignore[arg-type]
    assert torch.equal(module.memory_s, again)
    with pytest.raises(DataError, match=r"objectives\.crd.*item 12.*negatives=batch"):
        crd(Signal(None, {"s": s}), Signal(None, {"t": t}), {"item": torch.tensor([0, 1, 12])}, ctx)  # type: ignore[arg-type]


def test_crd_within_the_batch() -> None:
    torch.manual_seed(0)
    crd = Crd(student="s", teacher="t", width=4, negatives="batch")
    crd.name, crd.items = "crd", 50
    s, t, y = torch.randn(5, 6), torch.randn(5, 7), torch.tensor([0, 1, 0, 2, 1])
    shown = Signal(None, {"s": s}), Signal(None, {"t": t})
    module = crd.prepare(*shown, {})
    got = crd(*shown, {"y": y, "item": torch.arange(5)}, Ctx(module)).values  # type: ignore[arg-type]
    v_s, v_t = (nn.functional.normalize(e(x)) for e, x in ((module.embed_s, s), (module.embed_t, t)))
    want = torch.zeros(5)
    for a, b in ((v_s, v_t), (v_t, v_s)):
        for i in range(5):
            others = [j for j in range(5) if y[j] != y[i]]
            scores = torch.stack([a[i] @ b[i], *(a[i] @ b[j] for j in others)])[None] / 0.07
            want[i] = want[i] + contrast.contrastive_critic(scores, items=50)[0]
    torch.testing.assert_close(got, want)


CONV = (
    "teacher={use: convnet, width: 4, depth: 2, norm: none}",
    "student={use: convnet, width: 3, depth: 2, norm: none}",
)
ALL = (
    "objectives.rkd={use: rkd, student: 'head:in', teacher: 'head:in'}",
    "objectives.cc={use: cc, student: 'head:in', teacher: 'head:in'}",
    "objectives.pkt={use: pkt, student: 'head:in', teacher: 'head:in'}",
    "objectives.crd={use: crd, count: 8, width: 6}",
    "objectives.nst={use: nst, student: LAYER, teacher: LAYER}",
    "objectives.vid={use: vid, student: LAYER, teacher: LAYER}",
    "objectives.review={use: review, student: [LAYER], teacher: [LAYER], middle: 4}",
)


@pytest.mark.parametrize("host", ["kd", "nkd", "dkd", "nd-loss"])
def test_all_attach_by_recipe(host: str, tmp_path: Path) -> None:
    words = [*CONV, "task.student_items=100", "train.steps=3", *(w.replace("LAYER", "LAST") for w in ALL)]
    probe = tiny(host, tmp_path / "a", *words[:4])
    names = [n for n, m in probe.method.roles["student"].module.named_modules() if isinstance(m, nn.ReLU)]
    head = next(n for n, m in probe.method.roles["student"].module.named_modules() if isinstance(m, nn.Linear))
    words = [w.replace("LAST", f"'{names[-1]}'").replace("head:in", f"{head}:in") for w in words]
    run = tiny(host, tmp_path / "b", *words)
    run.engine.prepare(run.method)
    roles = [n for n in run.method.roles if n.startswith("projector:")]
    assert {"projector:crd", "projector:vid", "projector:review"} <= set(roles)
    before = {n: {k: v.clone() for k, v in run.method.roles[n].module.state_dict().items()} for n in roles}
    run.engine.run(run.method)
    for name in ("projector:crd", "projector:vid", "projector:review"):
        after = run.method.roles[name].module.state_dict()
        assert all(
            not torch.equal(before[name][k], v) for k, v in after.items() if v.is_floating_point() and "log_z" not in k
        )
    classes = run.method.roles["projector:crd"].module.classes
    ids = torch.arange(len(run.method.task.train))
    assert torch.equal(classes, run.method.task.train.fetch(ids)["y"])


def test_too_few_items_for_an_angle_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    rkd = "objectives.r={use: rkd, student: act1, teacher: act1}"
    said = r"objectives\.r has fewer than 3 items to compare: train\.batch_size=4 cut by engine\.accumulate=2.*batch_size=6"
    with pytest.raises(ConfigError, match=said):
        tiny("kd", tmp_path / "a", rkd, "train.batch_size=4", "engine.accumulate=2").run()
    tiny(
        "kd", tmp_path / "b", rkd, "objectives.r.angle=0", "train.batch_size=4", "engine.accumulate=2", "train.steps=1"
    ).run()


def test_crd_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ("task.student_items=60", "objectives.crd={use: crd, count: 8, width: 6, variant: released}")
    whole = tiny("kd", tmp_path / "a", *words).run()
    cut = run_with_stop("kd", tmp_path / "b", 3, *words)
    assert not differences(state_of(whole), state_of(cut))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Rkd("a", "b", distance=0.0, angle=0.0), "nothing is compared"),
        (lambda: Rkd("a", "b", angle=-1.0), "angle"),
        (lambda: Congruence("a", "b", gamma=0.0), "gamma"),
        (lambda: Congruence("a", "b", order=0), "order"),
        (lambda: Vid("a", "b", variance=1e-6), "variance must be above least"),
        (lambda: Vid("a", "b", layers=0), "layers"),
        (lambda: Review(["a"], ["b", "c"]), "as many modules as student: 1"),
        (lambda: Review(["a", "a"], ["b", "c"]), "each module once"),
        (lambda: Crd(temperature=0.0), "temperature"),
        (lambda: Crd(momentum=1.0), "momentum"),
        (lambda: Crd(negatives="batch", variant="released"), "remembered embeddings"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_shapes_that_do_not_fit_are_refused() -> None:
    vectors = Signal(None, {"a": torch.randn(4, 3)}), Signal(None, {"a": torch.randn(4, 3)})
    for one in (Nst("a", "a"), Review(["a"], ["a"])):
        one.name = "x"
        with pytest.raises(ShapeError, match=r"objectives\.x.*maps"):
            one.prepare(*vectors, {})
    pair = Signal(None, {"a": torch.randn(2, 3)}), Signal(None, {"a": torch.randn(2, 3)})
    rkd = Rkd("a", "a")
    rkd.name = "r"
    with pytest.raises(ConfigError, match=r"objectives\.r.*2 items.*3 or more"):
        rkd(*pair, {}, None)  # type: ignore[arg-type]
