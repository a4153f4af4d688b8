"""Word-level distillation: every divergence against its function, its mask, its chunks, and what CTKD's temperature does."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

import limbeck.functional as F  # noqa: E402
from limbeck.engine.context import RunContext  # noqa: E402
from limbeck.engine.engine import Engine  # noqa: E402
from limbeck.errors import ConfigError  # noqa: E402
from limbeck.grammar.method import Setup, Terms  # noqa: E402
from limbeck.methods.language.token_kd import Divergence, TokenKd  # noqa: E402
from limbeck.parts.next_tokens import Tokens  # noqa: E402
from limbeck.recipe.recipe import check, load_tree  # noqa: E402
from tests.parts.texts import first, setup_of, start  # noqa: E402

KINDS = get_args(Divergence)


def bound(setup: Setup | None = None, **changes: Any) -> tuple[TokenKd, RunContext, Engine]:
    return start(TokenKd(**changes), setup)


def values(kind: Divergence, tokens: Tokens) -> Tensor:
    method = TokenKd(divergence=kind)
    return tokens.compare(partial(method.dense, raw=torch.ones(())), method.closed_form())


@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence_equals_its_function(kind: Divergence) -> None:
    z_s, z_t = torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    labels, where = torch.randint(0, 11, (2, 5)), torch.rand(2, 5) > 0.3
    raw = torch.ones(())  # as CTKD begins
    expected = {
        "forward": lambda: F.soft_cross_entropy(z_s, z_t),
        "reverse": lambda: F.kl(z_s, z_t, direction="reverse"),
        "js": lambda: F.jensen_shannon(z_s, z_t, beta=0.1),
        "skew-forward": lambda: F.skew_kl(z_s, z_t, direction="forward", mix=0.1),
        "skew-reverse": lambda: F.skew_kl(z_s, z_t, direction="reverse", mix=0.1),
        "tv": lambda: F.total_variation(z_s, z_t),
        "adaptive": lambda: F.adaptive_kl(z_s, z_t, head_threshold=0.5),
        "dkd": lambda: torch.stack(F.dkd(z_s, z_t, labels, alpha=1.0, beta=0.5, temperature=1.0)).sum(0),
        "uld": lambda: F.uld(z_s, z_t),
        "ctkd": lambda: F.ctkd(z_s, z_t, raw, value="cross_entropy"),
    }[kind]()
    found = values(kind, Tokens(z_s, z_t, labels, where))
    assert torch.allclose(found, torch.where(where, expected, torch.zeros(())), atol=1e-5)
    assert bool((found[~where] == 0).all()) and bool((found[where] != 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence_trains_and_reaches_its_roles(kind: Divergence) -> None:
    method, ctx, engine = bound(divergence=kind)
    _, terms = first(method, ctx)
    assert terms["kd"].to == (("student", "temperature") if kind == "ctkd" else ("student",))
    before = {n: [p.clone() for p in r.parameters().values()] for n, r in method.roles.items()}
    engine.run(method)
    for name, role in method.roles.items():
        now = list(role.parameters().values())
        if kind == "ctkd" and name == "temperature":
            assert float(now[0].detach()) != 1.0
        elif name == "student":
            assert all(not torch.equal(a, b) for a, b in zip(now, before[name], strict=True))


def test_the_temperature_of_ctkd_climbs_the_loss_and_the_released_one_descends() -> None:
    signs = {}
    for variant in ("paper", "released"):
        method, ctx, _ = bound(divergence="ctkd", variant=variant)
        late = ctx.at(method.setup.train.steps // 2)
        terms = method.step(method.task.example(4), late)
        assert isinstance(terms, Terms)
        raw = next(method.roles["temperature"].module.parameters())
        (signs[variant],) = torch.autograd.grad(terms["kd"].total(), raw)
    assert signs["paper"] * signs["released"] < 0
    method, ctx, _ = bound(divergence="ctkd")
    assert method.strength(ctx.at(0)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_changes_nothing_bit_for_bit(kind: Divergence) -> None:
    z_s, z_t = torch.randn(2, 6, 9), torch.randn(2, 6, 9)
    labels, where = torch.randint(0, 9, (2, 6)), torch.rand(2, 6) > 0.4
    where[0, 0], where[1, 1] = True, False

    def run(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        leaf = a.clone().requires_grad_()
        total = values(kind, Tokens(leaf, b, y, where)).sum()
        return total.detach(), torch.autograd.grad(total, leaf)[0]

    value, grad = run(z_s, z_t, labels)
    rows = ~where.unsqueeze(-1)
    wild = torch.full_like(z_s, float("nan"))
    spoilt, moved = run(torch.where(rows, wild, z_s), torch.where(rows, wild, z_t), torch.where(where, labels, -100))
    assert torch.equal(value, spoilt) and torch.equal(grad[where], moved[where]) and not moved[~where].any()
    other = z_s.clone()
    other[0, 0] = 2 * other[0, 0].flip(0)  # sorted distances see no reversal
    assert not torch.equal(run(other, z_t, labels)[0], value)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ctkd"])
@pytest.mark.parametrize("pairs", [False, True])
def test_chunks_equal_dense(kind: Divergence, pairs: bool) -> None:
    found = []
    for chunk in (0, 7):
        method, ctx, _ = bound(setup_of(pairs=pairs), divergence=kind, distil_ratio=0.6, chunk=chunk)
        _, terms = first(method, ctx)
        student = method.roles["student"].module
        total = terms["kd"].total() * terms["kd"].weight + terms["lm"].total() * terms["lm"].weight
        found.append((terms["kd"].values, terms["lm"].values, torch.autograd.grad(total, list(student.parameters()))))
    (j0, l0, g0), (j1, l1, g1) = found
    assert torch.allclose(j0, j1, atol=1e-5) and torch.allclose(l0, l1, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(g0, g1, strict=True))


def test_the_papers_form_and_the_one_that_ends_at_zero() -> None:
    z = torch.randn(1, 3, 7)
    tokens = Tokens(z, z.clone(), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))
    entropy = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
    assert torch.allclose(TokenKd().compared(tokens, ctx=None), entropy, atol=1e-5)  # type: ignore[arg-type]
    assert TokenKd(value="kl").compared(tokens, ctx=None).abs().max() < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0.0}, {"mix": 0.0}, {"mix": 1.0}, {"head": 0.0}, {"dkd_alpha": -1.0}, {"divergence": "kl"}],
)
def test_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TokenKd(**wrong)


def test_what_stood_in_taids_place_is_read_as_it_was_meant() -> None:
    found = check(load_tree("taid", ["method.divergence=js", "method.mix=0.2", "method.schedule=linear"]))["method"]
    assert found["use"] == "token-kd" and (found["divergence"], found["mix"]) == ("js", 0.2)
    same = check(load_tree("token-kd", ["method.divergence=js", "method.mix=0.2"]))["method"]
    assert found == same
    old = {
        "use": "taid",
        "divergence": "taid",
        "mix": 0.1,
        "head": 0.5,
        "dkd_alpha": 1.0,
        "dkd_beta": 0.5,
        "variant": "paper",
    }
    assert (
        check({**load_tree("taid"), "method": old})["method"]
        == check({**load_tree("taid"), "method": "taid"})["method"]
    )
    with pytest.raises(ConfigError, match=r"method\.divergence.*'skew-forward'"):
        check(load_tree("taid", ["method.divergence=skewed"]))
