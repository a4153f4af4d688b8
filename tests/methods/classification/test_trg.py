"""TRG: terms against slow loops, which tokens are taken, switches, who is taught, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.context import RunContext
from limbeck.engine.epochs import Epochs
from limbeck.engine.step import Phases
from limbeck.errors import ConfigError, LimbeckError
from limbeck.functional.token_graph import cut_tokens, local_relation, token_graph
from limbeck.grammar.method import Gather, Gathered, Share, Terms
from limbeck.grammar.role import cast
from limbeck.networks.shows import grid_of, last_places
from limbeck.recipe.recipe import build, check, load_tree
from tests.tiny import Tiny
from tests.tiny import shared_tiny as tiny

MIXED = ("student={use: vit, patch: 2, width: 8, depth: 1, heads: 2, token: true}",)


def first_step(made: Tiny, step: int = 0) -> tuple[Terms, dict[str, Any], Any]:
    """The terms of one step, its batch and its context."""
    method: Any = made.method
    made.engine.prepare(method)
    (stage,) = made.engine.stages
    made.engine.epochs = Epochs(stage)
    ctx = RunContext(made.engine, method, stage, made.engine.device).at(step)
    cast(method.roles, tuple(stage.optim))
    ids = torch.arange(6)
    batch = {**method.task.train.fetch(ids), "item": ids, "view": torch.zeros_like(ids)}
    return taken(method, batch, ctx), batch, ctx


def taken(method: Any, batch: dict[str, Any], ctx: Any) -> Terms:
    """What a step yields at the end of its first phase."""
    phases, answer = Phases(method.step, batch, ctx), None
    while (found := phases.send(answer)) is not None:  # type: ignore[func-returns-value]
        if isinstance(found, Terms):
            return found
        answer = Gathered(found) if isinstance(found, Gather) else dict(found) if isinstance(found, Share) else None
    raise AssertionError


def drawn(method: Any, batch: dict[str, Any], ctx: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All tokens of both networks, and those that the step draws, image by image."""
    f_s, f_t = method.read(
        ctx.signal("student", batch, method.student_taps), ctx.signal("teacher", batch, method.teacher_taps), batch
    )
    order = ctx.draws.rand("tokens", batch["item"], (f_s.shape[1],)).argsort(1)[:, : method.tokens]
    picked = [torch.stack([f[i, j] for i in range(len(f)) for j in order[i].tolist()]) for f in (f_s, f_t)]
    return f_s, f_t, *picked


def graph_of(tokens: Tensor, k: int) -> Tensor:
    """The graph by loops over pairs, columns holding the neighbours, the width their mean squared distance."""
    n = len(tokens)
    d = [[float((tokens[i] - tokens[j]).square().sum()) for j in range(n)] for i in range(n)]
    near = [sorted((i for i in range(n) if i != j), key=lambda i: (d[i][j], i))[:k] for j in range(n)]
    sigma = sum(d[i][j] for j in range(n) for i in near[j]) / (n * k)
    a = torch.zeros(n, n)
    for j in range(n):
        for i in near[j]:
            a[i, j] = math.exp(-d[i][j] / (2 * sigma))
    return a


def test_terms_are_the_equations(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path, "method.normalise=false", "method.tau_schedule=constant")
    method: Any = made.method
    terms, batch, ctx = first_step(made)
    f_s, f_t, s, t = drawn(method, batch, ctx)
    n = 6 * 3
    assert f_s.shape == (6, 36, 6) and s.shape == (n, 6)
    a, b = graph_of(s.detach(), 2), graph_of(t, 2)
    want = [float((a[i].softmax(0) * (a[i].log_softmax(0) - b[i].log_softmax(0))).sum()) for i in range(n)]
    torch.testing.assert_close(terms["local"].values.flatten(), torch.tensor(want), rtol=1e-3, atol=1e-7)
    g_s, g_t = (method.roles[f"{r}_projection"].module.weight for r in ("student", "teacher"))
    cosines = nn.functional.cosine_similarity((s @ g_s.T)[:, None], (t @ g_t.T)[None], dim=-1) / 0.5
    want_global = nn.functional.cross_entropy(cosines, torch.arange(n), reduction="none")
    torch.testing.assert_close(terms["global"].values.flatten(), want_global, rtol=1e-4, atol=1e-5)
    for i in range(6):
        own, other = ((f[i] @ f[i].T / math.sqrt(f.shape[2])).softmax(1) for f in (f_s, f_t))
        torch.testing.assert_close(terms["inner"].values[i], (own - other).square().mean())


def test_each_term_teaches_its_own_roles(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path)
    terms, _, _ = first_step(made)
    own = {r: list(made.method.roles[r].parameters().values()) for r in ("student", "student_projection")}
    own["teacher_projection"] = list(made.method.roles["teacher_projection"].parameters().values())
    for name in ("inner", "local", "global"):
        for role, weights in own.items():
            grads = torch.autograd.grad(terms[name].total(), weights, allow_unused=True, retain_graph=True)
            reached = any(g is not None and bool(g.any()) for g in grads)
            assert reached == (role == "student" or name == "global"), (name, role)
    assert not any(p.requires_grad for p in made.method.roles["teacher"].module.parameters())


def test_losses_begin_at_their_weights_and_keep_the_divisor(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path, "method.alpha=3", "method.beta=0.5")
    terms, _, _ = first_step(made)
    for name, weight in (("inner", 3.0), ("local", 0.5), ("global", 1.0)):
        assert float(terms[name].values.detach().mean()) * float(terms[name].weight) == pytest.approx(weight, rel=1e-4)
    made = tiny("trg", tmp_path / "run").run()
    found = made.method.measures()
    assert all(found[f"first_{n}"] > 0 for n in ("inner", "local", "global"))
    later, _, _ = first_step(made, step=5)
    assert later["local"].weight == pytest.approx(1 / found["first_local"])


def test_temperature_falls_by_epochs(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path, "train.batch_size=100", "train.steps=12")  # 274 items: epochs 0 to 4
    method: Any = made.method
    _, _, ctx = first_step(made)
    taus = [method.tau(ctx.at(step)) for step in range(12)]
    assert taus[0] == taus[1] == 0.5 and taus == sorted(taus, reverse=True)
    e = ctx.at(11).epoch
    assert e == 4 and len(set(taus)) == 5
    assert taus[11] == pytest.approx(0.07 + 0.43 * 0.5 * (1 + math.cos(math.pi * e / (e + 1))))
    method.tau_schedule = "linear"
    assert method.tau(ctx.at(11)) == pytest.approx(0.5 + (0.07 - 0.5) * e / (e + 1))
    method.tau_schedule = "constant"
    assert method.tau(ctx.at(11)) == 0.5


def test_switches(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path, "method.normalise=false")
    method: Any = made.method
    base, batch, ctx = first_step(made)

    def terms(**changes: Any) -> Terms:
        before = {name: getattr(method, name) for name in changes}
        for name, value in changes.items():
            setattr(method, name, value)
        found = taken(method, batch, ctx)
        for name, value in before.items():
            setattr(method, name, value)
        return found

    total = terms(reduction="sum")
    for name in ("local", "global"):
        assert float(total[name].weight) == 18 * float(base[name].weight)  # 6 images, 3 tokens of each
        torch.testing.assert_close(total[name].values, base[name].values)
    words: dict[str, Any] = {"neighbours": "teacher", "direction": "teacher_first", "over": "neighbours", "axis": "row"}
    for word, value in (words | {"unit": True, "sigma": 0.5}).items():
        changed = terms(**{word: value})
        assert not torch.allclose(changed["local"].values, base["local"].values), word
        torch.testing.assert_close(changed["global"].values, base["global"].values)
    assert not torch.allclose(terms(kd_direction="student_first")["kd"].values, base["kd"].values)
    torch.testing.assert_close(terms(scale_t2=False)["kd"].values * 16, base["kd"].values)
    assert set(terms(kd=0.0, weights={"inner": 1.0, "local": 0.0, "global": 1.0})) == {"ce", "inner", "global"}
    shown = terms(
        patch=2, tokens=3, weights={"inner": 1.0, "local": 1.0, "global": 0.0}
    )  # a global term is of other widths
    assert shown["local"].values.shape == (6, 3)


def test_relations_between_whole_images(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path, "method.level=instance")
    terms, _, _ = first_step(made)
    assert set(terms) == {"ce", "kd", "local", "global"} and terms["local"].values.shape == (6, 1)


def test_all_tokens_are_no_draw(tmp_path: Path) -> None:
    few = tiny("trg", tmp_path, "method.normalise=false", "method.patch=3", "method.tokens=4")
    terms, batch, ctx = first_step(few)
    f_s, f_t, *_ = drawn(few.method, batch, ctx)
    assert f_s.shape[1] == 4
    a, b = token_graph(f_s.flatten(0, 1), 2), token_graph(f_t.flatten(0, 1), 2)
    torch.testing.assert_close(terms["local"].values.flatten(), local_relation(a, b))


def test_a_transformer_beside_a_convnet(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path, *MIXED)
    method: Any = made.method
    _, batch, ctx = first_step(made)
    f_s, f_t, *_ = drawn(method, batch, ctx)
    assert f_s.shape == (6, 16, 8) and f_t.shape == (6, 16, 6)  # 4 x 4 patches; the map of 6 x 6 is pooled
    shown = ctx.signal("student", batch, method.student_taps).acts[method.taps["student"]]
    torch.testing.assert_close(f_s, shown[:, 1:17])  # neither the class token nor the distillation token behind
    maps = ctx.signal("teacher", batch, method.teacher_taps).acts[method.taps["teacher"]]
    torch.testing.assert_close(f_t, nn.functional.adaptive_avg_pool2d(maps, 4).flatten(2).transpose(1, 2))
    made.run()


def test_where_tokens_are_found() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert last_places(net, lambda: net(torch.zeros(2, 1, 8, 8))) == "1"
    rows = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    assert last_places(rows, lambda: rows(torch.zeros(2, 4))) == "" and not any(m._forward_hooks for m in rows)
    assert [grid_of(n, (32, 32)) for n in (64, 65, 66, 3)] == [(8, 8), (8, 8), (8, 8), (1, 1)]
    assert grid_of(33, (32, 64)) == (4, 8) and grid_of(1, (32, 64)) == (0, 0)


def test_patches_of_a_map() -> None:
    x = torch.randn(2, 3, 4, 6)
    found = cut_tokens(x, 2)
    for i in range(2):
        for j in range(3):
            patch = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            torch.testing.assert_close(found[:, :, i, j], patch.flatten(1))
    with pytest.raises(LimbeckError, match="divisor"):
        cut_tokens(x, 4)
    other = token_graph(torch.randn(5, 2), 2)
    kept = token_graph(torch.randn(5, 3), 2, neighbours=other.neighbours)
    assert torch.equal(kept.neighbours, other.neighbours) and bool((kept.adjacency[~other.neighbours] == 0).all())
    with pytest.raises(LimbeckError, match="neighbours"):
        token_graph(torch.randn(4, 3), 2, neighbours=other.neighbours)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.patch=2", "method.tokens=10"], "more tokens are to be drawn.*10.*1 to 9"),
        (["method.k=24"], "as many neighbours.*24 drawn tokens: 8 images, 3 of each"),
        (["method.patch=4"], "patches must divide the (student|teacher)'s map"),
        (["student={use: mlp, hidden: [8]}"], "no module of the student shows a map"),
        (["method.student_tokens=nowhere"], "nowhere"),
        (["method.student_tokens=classifier"], "shows \\[2, 10\\].*a map"),
        ([*MIXED, "method.student_prefix=3"], "student_prefix.*at most 2 class tokens before 4 x 4"),
        (["method.level=instance", "train.batch_size=1", "method.beta=0"], "nothing beside it"),
    ],
    ids=lambda x: "" if isinstance(x, str) else x[-1][:24],
)
def test_what_does_not_fit_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=f"(?s){said}"):
        tiny("trg", tmp_path, *words)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method={use: trg, reduction: sum}", "reduction: changes nothing"),
        ("method={use: trg, level: instance, patch: 2}", "patch: cuts maps"),
        ("method={use: trg, sigma: -1}", "sigma"),
    ],
)
def test_settings_that_do_not_go_together(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("trg", [word])))


def test_one_place_has_no_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = tiny("trg", tmp_path, "method.patch=6", "method.tokens=1", "method.k=1")
    assert "contextual loss is always 0" in caplog.text
    assert "inner" not in first_step(made)[0]


def test_classes_are_judged_by_groups(tmp_path: Path) -> None:
    made = tiny("trg", tmp_path)
    task: Any = made.method.task
    found = task.evaluate(made.method.setup.teacher, task.test)
    shares = task.shares()
    assert [v.tolist() for v in shares.values()] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    batch = task.test.fetch(torch.arange(len(task.test)))
    guess = task.signal(made.method.setup.teacher, batch).logits.argmax(1)
    for name, classes in shares.items():
        recalls = [float((guess[batch["y"] == c] == c).double().mean()) for c in classes.tolist()]
        assert found[f"{name}_accuracy"] == pytest.approx(sum(recalls) / len(recalls))
