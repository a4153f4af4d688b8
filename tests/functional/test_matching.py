from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import ConfigError, DataError, ShapeError
from limbeck.functional import augment, matching
from limbeck.grammar.random import Draws
from limbeck.networks import ConvNet

F64 = torch.float64
quick = settings(max_examples=10, deadline=None)


class Problem:
    """A small trajectory to match, with every part that a real one has."""

    def __init__(
        self,
        steps: int = 3,
        ipc: int = 2,
        batch: int | None = None,
        soft: bool = False,
        dsa: bool = False,
        seed: int = 0,
        dtype: torch.dtype = F64,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.net = ConvNet(channels=1, classes=3, width=4, depth=2, activation="swish", im_size=6).to(dtype)
        self.start = matching.flat_parameters(self.net)
        self.target = self.start + 0.1 * torch.randn(self.start.shape, generator=generator, dtype=dtype)
        self.images = torch.randn(3 * ipc, 1, 6, 6, generator=generator, dtype=dtype)
        hard = torch.arange(3).repeat_interleave(ipc)
        noise = torch.randn(3 * ipc, 3, generator=generator, dtype=dtype)
        self.labels = (noise + 2 * F.one_hot(hard, 3)).softmax(1) if soft else hard
        self.batches = matching.syn_batches(
            lambda k: torch.randperm(3 * ipc, generator=generator), 3 * ipc, steps, batch
        )
        self.lr = torch.tensor(0.3, dtype=dtype)
        self.augment = self._dsa if dsa else None

    def _dsa(self, n: int, x: Tensor) -> Tensor:
        draw = augment.keyed_draw(Draws(7, ("inner", n)), torch.arange(len(x)))
        return augment.dsa(x, "color_crop_cutout_flip_scale_rotate", draw, align_corners=True)

    def __call__(self, mode: matching.Mode, **more: Any) -> matching.Trajectory:
        return matching.trajectory_gradient(
            more.pop("step_loss", matching.flat_step_loss(self.net)),
            self.start,
            self.target,
            self.images,
            self.labels,
            self.batches,
            more.pop("lr", self.lr),
            mode=mode,
            augment=more.pop("augment", self.augment),
            **more,
        )

    def reference(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Written out: a plain loop over named parameters, one backward through everything."""
        images, lr = self.images.clone().requires_grad_(True), self.lr.clone().requires_grad_(True)
        soft = self.labels.is_floating_point()
        labels = self.labels.clone().requires_grad_(soft)
        weights = {k: v.detach().clone().requires_grad_(True) for k, v in self.net.named_parameters()}
        for n, batch in enumerate(self.batches):
            x = images[batch]
            x = x if self.augment is None else self.augment(n, x)
            logits = torch.func.functional_call(self.net, weights, (x,))
            picked = labels[batch] if soft else F.one_hot(labels[batch], 3).to(x.dtype)
            loss = -(picked * F.log_softmax(logits, 1)).sum(1).mean()
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {k: w - lr * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
        theta = torch.cat([w.reshape(-1) for w in weights.values()])
        loss = (theta - self.target).square().sum() / (self.start - self.target).square().sum()
        by = torch.autograd.grad(loss, [images, lr] + [labels] * soft)
        return loss.detach(), by[0], by[1], by[2] if soft else None


def close(a: Tensor, b: Tensor, rel: float) -> None:
    assert (a - b).norm() <= rel * b.norm(), f"relative error {((a - b).norm() / b.norm()).item():.2e}"


@quick
@given(
    steps=st.integers(1, 6),
    ipc=st.integers(1, 3),
    whole=st.booleans(),
    soft=st.booleans(),
    dsa=st.booleans(),
    segment=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_exact_and_unrolled_are_the_gradient(
    steps: int, ipc: int, whole: bool, soft: bool, dsa: bool, segment: int, seed: int
) -> None:
    problem = Problem(steps, ipc, None if whole else 2, soft, dsa, seed)
    loss, by_images, by_lr, by_labels = problem.reference()
    for mode, more in (("exact", {"segment": segment}), ("unrolled", {})):
        got = problem(mode, learn_labels=soft, **more)
        torch.testing.assert_close(got.loss, loss)
        close(got.grad_images, by_images, 1e-9)
        close(got.grad_lr, by_lr, 1e-9)
        if by_labels is not None:
            assert got.grad_labels is not None
            close(got.grad_labels, by_labels, 1e-9)
        else:
            assert got.grad_labels is None


@pytest.mark.parametrize("dsa", [False, True])
def test_exact_agrees_with_finite_differences(dsa: bool) -> None:
    problem = Problem(steps=3, dsa=dsa)
    got, h = problem("exact"), 1e-5
    direction = torch.randn(problem.images.shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    start = problem.images
    losses = []
    for sign in (1, -1):
        problem.images = start + sign * h * direction
        losses.append(problem("exact").loss.item())
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx((got.grad_images * direction).sum().item(), rel=1e-5)
    problem.images = start
    up, down = (problem("exact", lr=0.3 + s * h).loss.item() for s in (1, -1))
    assert (up - down) / (2 * h) == pytest.approx(got.grad_lr.item(), rel=1e-5)


def test_float32_is_sane() -> None:
    wide, narrow = Problem(steps=6, dsa=True), Problem(steps=6, dsa=True, dtype=torch.float32)
    narrow.batches = wide.batches
    for name in ("start", "target", "images"):
        setattr(narrow, name, getattr(wide, name).float())
    exact = narrow("exact")
    assert exact.grad_images.dtype == torch.float32
    close(exact.grad_images.double(), wide("unrolled").grad_images, 1e-4)
    close(exact.grad_images, narrow("unrolled").grad_images, 1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_one_step_leaves_nothing_to_drop(soft: bool) -> None:
    problem = Problem(steps=1, soft=soft, dsa=True)
    full, first = problem("unrolled"), problem("first_order")
    close(first.grad_images, full.grad_images, 1e-12)
    close(first.grad_lr, full.grad_lr, 1e-12)
    close(problem("first_order", variant="released").grad_images, 0.5 * full.grad_images, 1e-12)


@pytest.mark.parametrize("dsa", [False, True])
def test_first_order_by_its_definition(dsa: bool) -> None:
    """TESLA, expanded: 2 alpha (theta* - theta_0)^T G + alpha^2 |G|^2 with every theta_n a constant."""
    problem = Problem(steps=4, soft=True, dsa=dsa)
    images, lr = problem.images.clone().requires_grad_(True), problem.lr.clone().requires_grad_(True)
    loss_of, theta = matching.flat_step_loss(problem.net), problem.start.clone()
    total: Tensor = torch.zeros_like(theta)
    for n, batch in enumerate(problem.batches):
        theta = theta.detach().requires_grad_(True)
        x = images[batch] if problem.augment is None else problem.augment(n, images[batch])
        (slope,) = torch.autograd.grad(loss_of(theta, x, problem.labels[batch]), theta, create_graph=True)
        total = total + slope
        theta = theta - problem.lr * slope.detach()
    distance = (problem.start - problem.target).square().sum()
    expanded = (2 * lr * (problem.target - problem.start).dot(total) + lr**2 * total.dot(total) + distance) / distance
    by_images, by_lr = torch.autograd.grad(expanded, [images, lr])
    got = problem("first_order")
    torch.testing.assert_close(got.loss, expanded.detach())
    close(got.grad_images, by_images, 1e-10)
    close(got.grad_lr, by_lr, 1e-10)
    released = problem("first_order", variant="released")
    assert torch.equal(released.grad_images, 0.5 * got.grad_images) and torch.equal(released.grad_lr, got.grad_lr)


def test_first_order_is_another_gradient_when_there_are_steps_to_drop() -> None:
    problem = Problem(steps=5)
    full, first = (problem(m, lr=0.05).grad_images.flatten() for m in ("exact", "first_order"))
    cosine = F.cosine_similarity(full, first, dim=0).item()
    assert 0.8 < cosine < 0.9999


def test_variants_do_not_touch_the_other_modes() -> None:
    problem = Problem(steps=2)
    for mode in ("exact", "unrolled"):
        assert torch.equal(problem(mode).grad_images, problem(mode, variant="released").grad_images)


def test_final_parameters_are_plain_gradient_descent() -> None:
    problem = Problem(steps=4, batch=4)
    net = ConvNet(**problem.net.config).double()
    net.load_state_dict(matching.unflatten(problem.start, net))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
    for batch in problem.batches:
        optimiser.zero_grad()
        F.cross_entropy(net(problem.images[batch]), problem.labels[batch]).backward()
        optimiser.step()
    for mode in matching.MODES:
        torch.testing.assert_close(problem(mode).final, matching.flat_parameters(net))  # type: ignore[arg-type]


# what it keeps


class Meter:
    """Bytes of tensors held alive for a backward, now and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Any:
        meter, size = self, tensor.numel() * tensor.element_size()

        class Held:
            def __init__(self) -> None:
                self.tensor = tensor
                meter.now += size
                meter.peak = max(meter.peak, meter.now)

            def __del__(self) -> None:
                meter.now -= size

        return Held()

    def measure(self, run: Callable[[], Any]) -> int:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda held: held.tensor):
            run()
        return self.peak


@pytest.mark.parametrize(("mode", "flat"), [("exact", True), ("first_order", True), ("unrolled", False)])
def test_memory_of_the_graph_over_the_steps(mode: matching.Mode, flat: bool) -> None:
    few, many = (Meter().measure(lambda n=n: Problem(n, dsa=True)(mode)) for n in (4, 24))
    assert many <= 1.15 * few if flat else many > 4 * few


def test_first_pass_has_no_graph_and_augmentation_is_replayed() -> None:
    problem, seen = Problem(steps=3, dsa=True), []
    inner = problem.augment
    assert inner is not None

    def watched(n: int, x: Tensor) -> Tensor:
        out = inner(n, x)
        seen.append((n, x.requires_grad, out.requires_grad, out.detach().clone()))
        return out

    for mode, order in (("exact", [0, 1, 2, 2, 1, 0]), ("first_order", [0, 1, 2, 0, 1, 2])):
        seen.clear()
        got = problem(mode, augment=watched)
        assert [n for n, *_ in seen] == order
        assert not any(grad or out for _, grad, out, _ in seen[:3]) and all(g and o for _, g, o, _ in seen[3:])
        for n in range(3):
            first, second = (pixels for m, _, _, pixels in seen if m == n)
            assert torch.equal(first, second)
        assert not any(t.requires_grad for t in got if t is not None)


def test_segments_trade_steps_for_parameter_vectors() -> None:
    problem, calls = Problem(steps=6), []
    loss_of = matching.flat_step_loss(problem.net)

    def counted(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        calls.append(x.requires_grad)
        return loss_of(theta, x, y)

    whole = problem("exact", step_loss=counted)
    assert len(calls) == 12
    calls.clear()
    cut = problem("exact", step_loss=counted, segment=3)
    assert len(calls) == 16 and sum(calls) == 6
    torch.testing.assert_close(cut.grad_images, whole.grad_images)


def test_inputs_are_left_alone_under_any_gradient_mode() -> None:
    problem = Problem(steps=2)
    problem.images.requires_grad_(True)
    before = [t.detach().clone() for t in (problem.start, problem.target, problem.images)]
    with torch.no_grad():
        got = problem("exact")
    other = problem("unrolled")
    close(got.grad_images, other.grad_images, 1e-10)
    assert problem.images.grad is None and all(p.grad is None for p in problem.net.parameters())
    for was, now in zip(before, (problem.start, problem.target, problem.images), strict=True):
        assert torch.equal(was, now.detach())


def test_images_drawn_twice_and_never_drawn() -> None:
    problem = Problem(steps=2)
    problem.batches = [torch.tensor([0, 0, 2]), torch.tensor([2, 0, 3])]
    _, by_images, by_lr, _ = problem.reference()
    got = problem("exact")
    close(got.grad_images, by_images, 1e-10)
    close(got.grad_lr, by_lr, 1e-10)
    assert (got.grad_images[[1, 4, 5]] == 0).all()


def test_a_loss_with_a_constant_slope_has_zero_gradient_by_images() -> None:
    start = torch.zeros(2)
    got = matching.trajectory_gradient(
        lambda theta, x, y: theta.sum(),
        start,
        torch.ones(2),
        torch.zeros(2, 1),
        torch.zeros(2),
        [torch.arange(2)] * 3,
        0.1,
    )
    assert got.final.tolist() == pytest.approx([-0.3, -0.3]) and (got.grad_images == 0).all()
    assert got.grad_lr.item() == pytest.approx(2 * 1.3 * 3)  # L = (1 + 3 alpha)^2


def test_surrogate_hands_the_gradients_to_an_optimiser() -> None:
    problem = Problem(steps=2, soft=True)
    got = problem("exact", learn_labels=True)
    x, a, y = (t.clone().requires_grad_(True) for t in (problem.images, problem.lr, problem.labels))
    value = got.surrogate(x, a, y)
    value.backward()
    assert value.item() == got.loss.item()
    assert torch.equal(x.grad, got.grad_images) and torch.equal(a.grad, got.grad_lr)
    assert torch.equal(y.grad, got.grad_labels)


# the door


def test_an_expert_that_did_not_move_is_named() -> None:
    problem = Problem()
    problem.target = problem.start.clone()
    for mode in matching.MODES:
        with pytest.raises(DataError, match="expert did not move"):
            problem(mode)  # type: ignore[arg-type]
    problem.target = problem.start / 0.0
    with pytest.raises(DataError, match="not finite"):
        problem("exact")


def test_bad_arguments_are_named() -> None:
    problem = Problem()
    for lr in (0.0, -0.1, math.nan):
        with pytest.raises(ConfigError, match="must stay positive"):
            problem("exact", lr=lr)
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        problem("exacts")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="variant"):
        problem("exact", variant="official")
    with pytest.raises(ConfigError, match="segment"):
        problem("exact", segment=0)
    with pytest.raises(ConfigError, match="soft labels"):
        problem("exact", learn_labels=True)
    problem.labels = problem.labels[:-1]
    with pytest.raises(ShapeError, match="labels"):
        problem("exact")
    problem = Problem()
    problem.batches = []
    with pytest.raises(ConfigError, match="batches"):
        problem("exact")
    problem = Problem()
    problem.target = problem.target[:-1]
    with pytest.raises(ShapeError, match="target"):
        problem("exact")


def test_batches_are_passes_cut_into_chunks_last_first() -> None:
    orders = [torch.tensor([4, 2, 0, 1, 3]), torch.tensor([0, 1, 2, 3, 4])]
    got = matching.syn_batches(lambda k: orders[k], 5, 5, 2)
    assert [b.tolist() for b in got] == [[3], [0, 1], [4, 2], [4], [2, 3]]
    assert [b.tolist() for b in matching.syn_batches(lambda k: orders[k], 5, 1)] == [[4, 2, 0, 1, 3]]
    with pytest.raises(ConfigError, match="batch_syn"):
        matching.syn_batches(lambda k: orders[k], 5, 5, 6)
    with pytest.raises(ConfigError, match="at least one step"):
        matching.syn_batches(lambda k: orders[k], 5, 0)
    with pytest.raises(ShapeError, match="permutation"):
        matching.syn_batches(lambda k: orders[k][:3], 5, 1)


def test_flat_parameters_are_a_copy_that_fits_back() -> None:
    net = ConvNet(channels=1, classes=3, width=4, depth=1, im_size=6)
    flat = matching.flat_parameters(net)
    before = flat.clone()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    assert torch.equal(flat, before)
    net.load_state_dict(matching.unflatten(flat, net))
    assert torch.equal(matching.flat_parameters(net), flat)
    with pytest.raises(ShapeError, match="recorded with another network"):
        matching.unflatten(flat[:-1], net)


# gradients and means


def slow_match(real: list[Tensor], syn: list[Tensor]) -> float:
    total = 0.0
    for a, b in zip(real, syn, strict=True):
        if a.ndim < 2:
            continue
        for u, v in zip(a.reshape(len(a), -1).tolist(), b.reshape(len(b), -1).tolist(), strict=True):
            dot = sum(p * q for p, q in zip(u, v, strict=True))
            norms = math.sqrt(sum(p * p for p in u)) * math.sqrt(sum(q * q for q in v))
            total += 1 - dot / (norms + 1e-6)
    return total


@quick
@given(st.integers(0, 1000))
def test_match_loss_by_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2, 3, 3), (3,), (2, 4, 5), (4, 6), (4,)]
    real, syn = ([torch.randn(s, generator=generator, dtype=F64) for s in shapes] for _ in range(2))
    assert matching.match_loss(real, syn).item() == pytest.approx(slow_match(real, syn))
    a, b = (torch.cat([t.flatten() for t in side]) for side in (real, syn))
    assert matching.match_loss(real, syn, "mse").item() == pytest.approx(((a - b) ** 2).sum().item())
    cosine = F.cosine_similarity(a, b, dim=0).item()
    assert matching.match_loss(real, syn, "cos").item() == pytest.approx(1 - cosine, abs=1e-6)


@pytest.mark.parametrize("metric", matching.METRICS)
def test_match_loss_gradcheck(metric: matching.Metric) -> None:
    generator = torch.Generator().manual_seed(0)
    real = [torch.randn(3, 4, generator=generator, dtype=F64), torch.randn(3, generator=generator, dtype=F64)]
    syn = [torch.randn_like(t).requires_grad_(True) for t in real]
    assert torch.autograd.gradcheck(lambda *s: matching.match_loss(real, s, metric), syn)


def test_match_loss_corners() -> None:
    g = [torch.eye(3), torch.ones(3)]
    assert matching.match_loss(g, g).item() == pytest.approx(0.0, abs=1e-5)
    zero = [torch.zeros(3, 3, requires_grad=True), torch.zeros(3)]
    loss = matching.match_loss(g, zero)
    assert loss.item() == 3.0
    (grad,) = torch.autograd.grad(loss, zero[0])
    assert torch.isfinite(grad).all()
    with pytest.raises(ConfigError, match="metric"):
        matching.match_loss(g, g, "l2")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="one gradient per parameter"):
        matching.match_loss(g, g[:1])
    with pytest.raises(ShapeError, match="no parameter has rows"):
        matching.match_loss(g[1:], g[1:])


def test_gradient_matching_reaches_the_synthetic_batch_alone() -> None:
    torch.manual_seed(0)
    net = ConvNet(channels=1, classes=3, width=4, depth=1, im_size=6).double()
    real = torch.randn(5, 1, 6, 6, dtype=F64, requires_grad=True)
    syn = torch.randn(2, 1, 6, 6, dtype=F64, requires_grad=True)
    y_real, y_syn = torch.zeros(5, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    loss = matching.gradient_matching(net, (real, y_real), (syn, y_syn))
    loss.backward()
    assert real.grad is None and syn.grad is not None and all(p.grad is None for p in net.parameters())
    direction = torch.randn(syn.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        up, down = (
            matching.gradient_matching(net, (real, y_real), (syn + h * direction, y_syn)).item() for h in (1e-5, -1e-5)
        )
    assert (up - down) / 2e-5 == pytest.approx((syn.grad * direction).sum().item(), rel=1e-5)
    same = matching.gradient_matching(net, (real, y_real), (real, y_real))
    assert abs(same.item()) < 1e-2  # the eps in the denominators
    with pytest.raises(ConfigError, match="trainable"):
        matching.gradient_matching(net.requires_grad_(False), (real, y_real), (syn, y_syn))


def test_soft_labels_of_one_hot_rows_are_class_numbers() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.randn(6, 4, dtype=F64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    soft = F.one_hot(y, 3).double()
    a = matching.gradient_matching(net, (x, y), (x[:3], y[:3]))
    b = matching.gradient_matching(net, (x, soft), (x[:3], soft[:3]))
    torch.testing.assert_close(a, b)


def test_mean_matching_by_loops_with_uneven_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    real = [torch.randn(n, 5, generator=generator, dtype=F64) for n in (4, 7)]
    syn = [torch.randn(n, 5, generator=generator, dtype=F64).requires_grad_(True) for n in (2, 1)]

    def embed(x: Tensor) -> Tensor:
        return torch.tanh(x[:, :3] * x[:, 2:])

    got = matching.mean_matching(embed, real, syn)
    for c in range(2):
        a, b = embed(real[c]).mean(0).tolist(), embed(syn[c]).mean(0).tolist()
        assert got[c].item() == pytest.approx(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))
    torch.testing.assert_close(matching.mean_matching(embed, real, syn, together=True), got)
    assert torch.autograd.gradcheck(lambda *s: matching.mean_matching(embed, real, s), syn)


def test_mean_matching_of_batch_normalised_features_sees_mixed_classes() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, affine=False).double()
    real, syn = torch.randn(2, 6, 3, dtype=F64), torch.randn(2, 4, 3, dtype=F64)
    real[1] += 5.0
    apart = matching.mean_matching(norm, real, syn)
    assert apart.max() < 1e-20  # each class normalised to mean zero: nothing to match
    assert matching.mean_matching(norm, real, syn, together=True).min() > 0.1


def test_mean_matching_at_the_door() -> None:
    x = [torch.zeros(2, 3), torch.zeros(2, 3)]
    with pytest.raises(ShapeError, match="2 classes"):
        matching.mean_matching(lambda t: t, x, x[:1])
    with pytest.raises(DataError, match="no images"):
        matching.mean_matching(lambda t: t, x, [x[0], x[1][:0]])


def test_published_loop_counts() -> None:
    assert [matching.loops_for(k) for k in (1, 10, 20, 30, 40, 50)] == [
        (1, 1), (10, 50), (20, 25), (30, 20), (40, 15), (50, 10)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="outer and inner"):
        matching.loops_for(5)
