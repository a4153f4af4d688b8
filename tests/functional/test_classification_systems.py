"""Stored labels, ridges that learn from themselves, graphs of tokens, states of three corners, landmarks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.errors import ConfigError, ShapeError
from limbeck.functional.kernel_ridge import optimal_weight, self_distilled_ridge
from limbeck.functional.label_forms import compress_labels, recover_labels, softened_labels, treat_crops
from limbeck.functional.landmarks import assistive_values, fit_shapes, main_values, soft_landmarks
from limbeck.functional.relation import channel_correlation
from limbeck.functional.token_graph import context_distance, global_relation, local_relation, token_graph
from limbeck.functional.trilateral import adaptive_weight, trilateral_state, wls_weight


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------- stored labels


@pytest.mark.parametrize("form", ["hard", "smoothing", "marginal_smoothing", "marginal_renorm"])
def test_recovered_labels_are_distributions_that_keep_what_was_stored(form: str) -> None:
    p = draw(6, 9).softmax(1)
    stored = compress_labels(p, form, 3)  # type: ignore[arg-type]
    found = recover_labels(stored, 9, form).to(p.dtype)  # type: ignore[arg-type]
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=p.dtype))
    assert torch.equal(found.argmax(1), p.argmax(1))
    if form == "marginal_smoothing":
        top = p.topk(3, 1).indices
        torch.testing.assert_close(found.gather(1, top), p.gather(1, top))
        full = recover_labels(compress_labels(p, form, 9), 9, form)  # type: ignore[arg-type]
        torch.testing.assert_close(full, p)


def test_labels_of_another_form_are_rejected() -> None:
    p = draw(2, 4).softmax(1)
    with pytest.raises(ShapeError, match="form smoothing"):
        recover_labels(compress_labels(p, k=2), 4, "smoothing")
    with pytest.raises(ShapeError, match="form marginal"):
        recover_labels(compress_labels(p, "hard"), 4)
    with pytest.raises(ConfigError, match="class id, 3"):
        recover_labels(torch.tensor([[[3.0], [0.5]]]), 3)
    with pytest.raises(ConfigError, match="k"):
        compress_labels(p, k=5)
    with pytest.raises(ConfigError, match="every class id"):
        compress_labels(torch.zeros(1, 5000, dtype=torch.float16), k=5)


def test_crops_are_discarded_softened_or_kept() -> None:
    c = torch.tensor([[0.05, 0.2, 0.5, 0.99], [0.01, 0.02, 0.97, 0.99]])
    treatment, back = treat_crops(c)
    assert treatment.tolist() == [[0, 1, 2, 0], [0, 0, 2, 0]]  # the crop nearest to a threshold came back
    assert back.tolist() == [[False] * 4, [False, False, True, False]]
    with pytest.raises(ConfigError, match="images 1"):
        treat_crops(c, shortage="raise")
    assert treat_crops(c, (0.0, 0.0, 1.0))[0].eq(2).all()
    for bad in ((0.3, 0.1, 0.9), (-0.1, 0.1, 0.9)):
        with pytest.raises(ConfigError, match="thresholds"):
            treat_crops(c, bad)
    with pytest.raises(ConfigError, match="confidence"):
        treat_crops(c, least=5)
    rows = softened_labels(torch.tensor([0, 2]), 4, 0.1)
    torch.testing.assert_close(rows.sum(1), torch.ones(2))
    torch.testing.assert_close(rows[0], torch.tensor([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]))


# -------------------------------------------------------------------------------------------------------------- ridges


def problem(n: int = 12, k: int = 2) -> tuple[Tensor, Tensor]:
    x = draw(n, 3)
    return (-0.5 * torch.cdist(x, x) ** 2).exp(), draw(n, k, seed=1)


def test_each_step_is_a_ridge_regression_of_the_mixed_targets() -> None:
    kernel, y = problem()
    found = self_distilled_ridge(kernel, y, ridge=0.3, weight=0.4, steps=4)
    inverse = torch.linalg.inv(kernel + 0.3 * torch.eye(12, dtype=kernel.dtype))
    previous = y
    for step in range(4):
        target = 0.4 * y + 0.6 * previous if step else y
        torch.testing.assert_close(found.coefficients[step], inverse @ target)
        previous = kernel @ inverse @ target
        torch.testing.assert_close(found.fitted[step + 1], previous)


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
def test_the_limit_is_a_ridge_regression_with_a_larger_penalty(weight: float) -> None:
    kernel, y = problem()
    found = self_distilled_ridge(kernel, y, ridge=0.3, weight=weight, steps=400)
    torch.testing.assert_close(found.coefficients[-1], found.limit, rtol=1e-8, atol=1e-8)
    plain = torch.linalg.solve(kernel + 0.3 / weight * torch.eye(12, dtype=kernel.dtype), y)
    torch.testing.assert_close(found.limit, plain)
    torch.testing.assert_close(found.diagonals[-1], found.limit_diagonal)


def test_without_targets_it_collapses_and_the_chosen_weight_beats_a_grid() -> None:
    kernel, y = problem()
    gone = self_distilled_ridge(kernel, y, ridge=0.3, weight=0.0, steps=3)
    assert gone.limit.abs().max() == 0 and gone.fitted[-1].norm() < gone.fitted[1].norm()
    other, truth = kernel[:5] + 0.1 * draw(5, 12, seed=2), draw(5, 2, seed=3)
    best = self_distilled_ridge(kernel, y, ridge=0.3, weight=None, steps=2, held_out=(other, truth))

    def wrong(weight: float) -> Tensor:
        made = self_distilled_ridge(kernel, y, ridge=0.3, weight=weight, steps=2)
        return (other @ made.coefficients[1] - truth).square().sum()

    own = (other @ best.coefficients[1] - truth).square().sum()
    assert own <= min(wrong(i / 50) for i in range(51)) + 1e-9
    assert optimal_weight(truth, truth, truth) is None


def test_ridges_reject_what_they_cannot_use() -> None:
    kernel, y = problem()
    for settings, name in (
        ({"ridge": 0.0}, "ridge"),
        ({"weight": 1.5}, "weight"),
        ({"steps": 0}, "steps"),
        ({"weight": None}, "held_out"),
    ):
        with pytest.raises(ConfigError, match=name):
            self_distilled_ridge(kernel, y, **{"ridge": 1.0, "weight": 0.5, "steps": 2, **settings})
    with pytest.raises(ShapeError, match="kernel"):
        self_distilled_ridge(kernel[:5], y, ridge=1.0, weight=0.5, steps=2)


# ------------------------------------------------------------------------------------------------------ token graphs


@pytest.mark.parametrize("axis", ["column", "row"])
def test_token_graphs_against_a_loop(axis: str) -> None:
    x = draw(7, 3)
    found = token_graph(x, 2, sigma=0.7, axis=axis)  # type: ignore[arg-type]
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for j in range(7):
        gaps = [(float((x[i] - x[j]).square().sum()), i) for i in range(7) if i != j]
        for far, i in sorted(gaps)[:2]:
            at = (i, j) if axis == "column" else (j, i)
            expected[at] = torch.tensor(-far / 1.4).exp()
    torch.testing.assert_close(found.adjacency, expected)
    assert found.neighbours.sum() == 14 and not found.neighbours.diagonal().any()


@pytest.mark.parametrize("over", ["all", "neighbours"])
@pytest.mark.parametrize("direction", ["student_first", "teacher_first"])
def test_local_relation(over: str, direction: str) -> None:
    s, t = draw(6, 3), draw(6, 4, seed=1)
    graphs = [token_graph(x, 2) for x in (s, t)]
    settings: dict[str, str] = {"over": over, "direction": direction}
    assert local_relation(graphs[0], graphs[0], **settings).abs().max() < 1e-12  # type: ignore[arg-type]
    values = local_relation(*graphs, **settings)  # type: ignore[arg-type]
    assert values.shape == (6,) and values.min() > -1e-12 and values.max() > 0
    shuffled = torch.tensor([3, 1, 5, 0, 2, 4])
    again = local_relation(*(token_graph(x[shuffled], 2) for x in (s, t)), **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(again, values[shuffled])
    fixed = token_graph(t, 2, sigma=1.0)
    own = s.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: local_relation(token_graph(x, 2, sigma=1.0), fixed, **settings),
        own,  # type: ignore[arg-type]
    )


def test_global_relation_and_context() -> None:
    s, t = draw(5, 3), draw(5, 3, seed=1)
    cosines = torch.nn.functional.cosine_similarity(s[:, None], t[None], dim=-1)
    expected = torch.nn.functional.cross_entropy(cosines / 0.2, torch.arange(5), reduction="none")
    torch.testing.assert_close(global_relation(s, t, temperature=0.2), expected)
    a, b = draw(2, 4, 3), draw(2, 4, 5, seed=1)
    assert context_distance(a, a).abs().max() == 0
    assert torch.autograd.gradcheck(lambda x: context_distance(x, b), a.requires_grad_())
    with pytest.raises(ShapeError, match="pool the larger"):
        context_distance(a.detach(), b[:, :3])
    for bad in ({"k": 0}, {"k": 5}, {"k": 2, "sigma": 0.0}):
        with pytest.raises(ConfigError):
            token_graph(s, **bad)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ the rest


def test_the_state_of_three_corners() -> None:
    s, t, o = (draw(3, 4, seed=i).softmax(1) for i in range(3))
    g = torch.eye(4, dtype=s.dtype)[:3]
    state = trilateral_state(s, t, g, o)
    assert state.shape == (3, 36)
    torch.testing.assert_close(state[:, 16:20], (o - s).square())
    torch.testing.assert_close(state[:, 32:], (o - g).square())
    widths = {e: trilateral_state(s, t, g, o, e).shape[1] for e in ("intra", "vertices", "edges")}  # type: ignore[arg-type]
    assert widths == {"intra": 24, "vertices": 16, "edges": 20}
    assert trilateral_state(g, g, g, g)[:, 16:].abs().max() == 0
    with pytest.raises(ShapeError, match="mean"):
        trilateral_state(s, t, g, o[:2])
    labels = torch.tensor([0, 1, 2])
    assert adaptive_weight(g, labels).tolist() == [1, 1, 1]
    weights = wls_weight(draw(3, 4), draw(3, 4, seed=5), labels)
    assert weights.min() > 0 and weights.max() < 1


def test_half_jeffreys_is_no_jensen_shannon() -> None:
    s, t = draw(4, 5).requires_grad_(), draw(4, 5, seed=1)
    torch.testing.assert_close(F.half_jeffreys(s, t), (F.kl(s, t) + F.kl(s, t, direction="reverse")) / 2)
    torch.testing.assert_close(F.half_jeffreys(s, t, eps=1e-12), F.half_jeffreys(s, t))
    assert (F.half_jeffreys(s, t) > F.jensen_shannon(s, t)).all()
    assert torch.autograd.gradcheck(lambda x: F.half_jeffreys(x, t, eps=1e-6, temperature=2.0), s)


def test_channel_correlation_of_rank_one_maps_has_a_closed_form() -> None:
    g, h = draw(3, 5), draw(3, 5, seed=1)
    cosine = torch.nn.functional.cosine_similarity(g, h)
    expected = 2 * (1 - cosine * (g.sign() * h.sign()).mean(1))
    torch.testing.assert_close(channel_correlation(g, h), expected)
    assert torch.autograd.gradcheck(lambda x: channel_correlation(x, h), g.requires_grad_())
    with pytest.raises(ShapeError):
        channel_correlation(g.detach(), h[:, :4])


@pytest.mark.parametrize("ramp", [False, True])
def test_assistance_always_pushes_towards_the_truth(ramp: bool) -> None:
    g, t = torch.zeros(201, dtype=torch.float64), torch.full((201,), 0.3, dtype=torch.float64)
    p = torch.linspace(-1, 1, 201, dtype=torch.float64).requires_grad_()
    values = assistive_values(p, g, t, far=1.9, near=-0.45, ramp=ramp)
    (slope,) = torch.autograd.grad(values.sum(), p)
    assert (slope * p.detach().sign()).min() >= 0  # towards 0 from either side
    torch.testing.assert_close(values[p.detach() > 0.31], 1.9 * (p.detach()[p.detach() > 0.31] - 0.3))
    assert values.min() < 0  # between boundary and teacher
    near = p.detach().abs() < 0.15 * 0.3 - 1e-9
    assert ramp or values[near].abs().max() == 0
    main = main_values(p, g, t)
    torch.testing.assert_close(main[100 - 30], torch.tensor(0.9, dtype=torch.float64))
    torch.testing.assert_close(main[0], torch.tensor(1 + 0.9 - 0.09, dtype=torch.float64))
    with pytest.raises(ShapeError, match="teacher"):
        assistive_values(p, g, t[:5], far=1, near=-1)
    with pytest.raises(ConfigError, match="boundary"):
        assistive_values(p, g, t, far=1, near=-1, boundary=2)


def test_soft_landmarks_have_few_components_within_three_deviations() -> None:
    x = draw(40, 3) @ draw(3, 10, seed=1) + 0.01 * draw(40, 10, seed=2)
    shapes = fit_shapes(x, 0.9)
    assert 1 <= len(shapes.variances) <= 3
    soft = soft_landmarks(3 * x, shapes)
    b = (soft - shapes.mean) @ shapes.components.T
    assert (b.abs() <= 3 * shapes.variances.sqrt() + 1e-9).all()
    assert torch.linalg.matrix_rank(soft - shapes.mean) <= len(shapes.variances)
    full = fit_shapes(x, 0.999999)
    torch.testing.assert_close(soft_landmarks(x, full, deviations=99), x, rtol=1e-3, atol=1e-2)
    for bad in (0.0, 1.0):
        with pytest.raises(ConfigError, match="variance"):
            fit_shapes(x, bad)
    with pytest.raises(ShapeError, match="two or more"):
        fit_shapes(x[:1], 0.9)
