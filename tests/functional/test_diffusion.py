from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.errors import ConfigError, ShapeError
from limbeck.functional import diffusion as D

F64 = torch.float64
KINDS: list[D.Kind] = ["x", "eps", "v", "both"]
SCHEDULES = [
    D.CosineSchedule(),
    D.CosineSchedule(-math.inf, math.inf),
    D.CosineSchedule(-10.0, 8.0),
    D.LinearSchedule(),
    D.LinearSchedule(5.0, 5.0),
    D.DiscreteSchedule.from_alphas_cumprod(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)),
]
quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
levels = st.floats(-12.0, 12.0)


def normal(seed: int, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian_denoiser(mean: float, variance: float) -> D.Predict:
    """The exact posterior mean of data N(mean, variance) per element."""

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        alpha, sigma = (c.reshape(-1, *([1] * (z.ndim - 1))).to(z.dtype) for c in D.alpha_sigma(logsnr))
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (z - alpha * mean)

    return predict


def wavy(z: Tensor, logsnr: Tensor) -> Tensor:
    """A network that depends on everything and is exact nowhere."""
    lam = logsnr.reshape(-1, *([1] * (z.ndim - 1))).to(z.dtype)
    return 0.7 * torch.tanh(z) + 0.1 * z * lam / 20 + 0.05 * torch.cos(3 * z)


# schedules


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedule_is_variance_preserving_and_falls(schedule: D.Schedule) -> None:
    u = torch.linspace(0, 1, 101)
    alpha, sigma, logsnr = schedule.alpha(u), schedule.sigma(u), schedule.logsnr(u)
    assert logsnr.dtype == alpha.dtype == F64
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(101, dtype=F64))
    assert (logsnr.diff() <= 0).all() and logsnr[0] > logsnr[-1]
    inner = slice(1, None)
    torch.testing.assert_close(torch.log(alpha**2 / sigma**2)[inner], logsnr[inner])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_time_inverts_logsnr(schedule: D.Schedule) -> None:
    u = torch.linspace(0.002, 0.999, 57, dtype=F64)
    torch.testing.assert_close(schedule.time(schedule.logsnr(u)), u, rtol=1e-9, atol=1e-9)


def test_unclipped_cosine_is_a_quarter_turn() -> None:
    u = torch.linspace(0.01, 0.99, 20, dtype=F64)
    schedule = D.CosineSchedule(-math.inf, math.inf)
    torch.testing.assert_close(schedule.alpha(u), torch.cos(math.pi * u / 2))
    torch.testing.assert_close(schedule.sigma(u), torch.sin(math.pi * u / 2))
    assert schedule.alpha(0.0) == 1.0 and schedule.sigma(0.0) == 0.0


def test_cosine_bounds_are_reached() -> None:
    schedule = D.CosineSchedule(-15.0, 9.0)
    assert schedule.logsnr(0.0).item() == pytest.approx(9.0)
    assert schedule.logsnr(1.0).item() == pytest.approx(-15.0)


def test_linear_schedule_integrates_beta() -> None:
    u, schedule = torch.linspace(0.05, 1, 7, dtype=F64), D.LinearSchedule(0.2, 12.0)
    expected = [math.exp(-0.25 * t * t * 11.8 - 0.5 * t * 0.2) for t in u.tolist()]
    torch.testing.assert_close(schedule.alpha(u), torch.tensor(expected, dtype=F64))


def test_linear_schedule_is_finite_at_both_ends() -> None:
    u = torch.tensor([0.0, 1e-9, 1e-6, 1.0], dtype=F64, requires_grad=True)
    for schedule in (D.LinearSchedule(), D.LinearSchedule(1.0, 9000.0)):
        logsnr = schedule.logsnr(u)
        assert logsnr[0].item() == pytest.approx(20.0, abs=1e-6) and logsnr[-1] < -10
        assert torch.isfinite(logsnr).all() and torch.isfinite(torch.autograd.grad(logsnr.sum(), u)[0]).all()
        assert (schedule.alpha(1.0) >= 0) and (schedule.sigma(0.0) > 0)
    # by the definition: log SNR = log(alpha^2 / (1 - alpha^2)) with log alpha^2 = -(4.5 u^2 + u)
    rate = torch.tensor([4.5 * t * t + t for t in (1e-6, 0.3, 1.0)], dtype=F64)
    expected = -rate - torch.log1p(-torch.exp(-rate))
    torch.testing.assert_close(D.LinearSchedule(1.0, 10.0).logsnr(torch.tensor([1e-6, 0.3, 1.0], dtype=F64)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_nothing_is_lost_at_the_ends(schedule: D.Schedule, kind: D.Kind) -> None:
    """At u = 0 and u = 1, where alpha or sigma vanish or nearly do, every function answers with finite numbers."""
    z, noise = normal(0, 2, 4), normal(1, 2, 4)
    predict = lambda z, lam: torch.cat([wavy(z, lam.clamp(-30, 30))] * (1 + (kind == "both")), 1)  # noqa: E731
    ends = schedule.logsnr(torch.tensor([0.0, 1.0]))
    got = D.to_x_eps(predict(z, ends), z, ends, kind)
    for x in (*got, D.diffuse(*got, ends)):
        assert torch.isfinite(x).all()
    if math.isfinite(ends[0]):  # of schedules without bounds more is asked than they know
        for steps in (1, 3):
            for target in D.two_step_target(
                predict, z, D.halving_times(torch.tensor([0, steps - 1]), steps), schedule, kind
            ):
                assert torch.isfinite(target).all()
    assert torch.isfinite(D.encode(predict, z, 2, schedule, kind)).all()
    for variance in (0.0, 0.5, 1.0):
        down = D.ancestral_step(got.x, z, noise, ends[1].expand(2), ends[0].expand(2), variance=variance)
        assert torch.isfinite(down).all()


def test_discrete_schedule_reads_a_scheduler_at_its_timesteps() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    schedule = D.DiscreteSchedule.from_alphas_cumprod(scheduler)
    t = torch.tensor([0, 1, 499, 999])
    u = (t + 1) / schedule.timesteps
    torch.testing.assert_close(schedule.alpha(u) ** 2, scheduler.alphas_cumprod[t].double(), rtol=1e-4, atol=1e-5)
    assert schedule.timestep(u).tolist() == t.tolist()
    torch.testing.assert_close(schedule.logsnr(0.0), schedule.logsnr(1 / 1000))
    with pytest.warns(UserWarning, match=r"0\.068"):
        D.check_terminal_snr(schedule)


def test_zero_terminal_snr_is_floored_and_invertible() -> None:
    schedule = D.DiscreteSchedule.from_alphas_cumprod([0.9, 0.5, 1e-12, 0.0], logsnr_min=-20.0)
    assert schedule.logsnr(1.0).item() == -20.0
    assert torch.isfinite(schedule.time(torch.tensor([-20.0, -25.0, 30.0]))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        D.check_terminal_snr(schedule)


def test_one_timestep_is_a_schedule() -> None:
    schedule = D.DiscreteSchedule.from_alphas_cumprod([0.5])
    assert schedule.logsnr(torch.rand(3)).tolist() == [0.0] * 3 and schedule.time(1.0).item() == 1.0


@pytest.mark.parametrize(
    "bad", [object(), [0.1, 0.5], [0.5, 0.5], [1.2, 0.5], [[0.9], [0.5]], []], ids=lambda b: type(b).__name__
)
def test_unreadable_tables_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match="alphas_cumprod"):
        D.DiscreteSchedule.from_alphas_cumprod(bad)


def test_bad_schedule_bounds() -> None:
    with pytest.raises(ConfigError, match="logsnr_min"):
        D.CosineSchedule(3.0, 3.0)
    with pytest.raises(ConfigError, match="beta_min"):
        D.LinearSchedule(0.0, 1.0)


# parameterisations


@quick
@given(seeds, st.lists(levels, min_size=1, max_size=4), st.sampled_from(KINDS))
def test_parameterisations_round_trip(seed: int, lams: list[float], kind: D.Kind) -> None:
    lam = torch.tensor(lams, dtype=F64)
    x, eps = normal(seed, len(lams), 3, 2), normal(seed + 1, len(lams), 3, 2)
    z = D.diffuse(x, eps, lam)
    got = D.to_x_eps(D.from_x_eps(x, eps, lam, kind), z, lam, kind)
    torch.testing.assert_close(got.x, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.eps, eps, rtol=1e-9, atol=1e-9)


@quick
@given(seeds, levels, st.sampled_from(KINDS), st.booleans())
def test_any_output_is_consistent_with_z(seed: int, level: float, kind: D.Kind, clip: bool) -> None:
    lam, z = torch.tensor([level, -level], dtype=F64), normal(seed, 2, 4)
    out = normal(seed + 1, 2, 8 if kind == "both" else 4)
    x, eps = D.to_x_eps(out, z, lam, kind, clip_x=clip)
    torch.testing.assert_close(D.diffuse(x, eps, lam), z, rtol=1e-9, atol=1e-9)
    assert not clip or (x.abs() <= 1).all()


def test_both_mixes_by_noise_variance() -> None:
    lam, z, out = torch.tensor([0.7], dtype=F64), normal(0, 1, 2, 3), normal(1, 1, 4, 3)
    a2, s2 = 1 / (1 + math.exp(-0.7)), 1 / (1 + math.exp(0.7))
    expected = s2 * out[:, :2] + a2 * (z - math.sqrt(s2) * out[:, 2:]) / math.sqrt(a2)
    torch.testing.assert_close(D.to_x_eps(out, z, lam, "both").x, expected)
    last = D.to_x_eps(out.transpose(1, 2), z.transpose(1, 2), lam, "both", channel_dim=-1)
    torch.testing.assert_close(last.x, expected.transpose(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_an_output_is_differentiable(kind: D.Kind) -> None:
    lam, z = torch.tensor([-1.0, 2.0], dtype=F64), normal(0, 2, 3).requires_grad_(True)
    out = normal(1, 2, 6 if kind == "both" else 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda o, z: tuple(D.to_x_eps(o, z, lam, kind)), (out, z))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_results_are_never_below_float32(dtype: torch.dtype) -> None:
    z, lam = normal(0, 2, 3).to(dtype), torch.zeros(2)
    x, eps = D.to_x_eps(z, z, lam, "eps")
    wanted = torch.promote_types(dtype, torch.float32)
    assert x.dtype == eps.dtype == D.ddim_jump(x, eps, lam).dtype == wanted


def test_eps_in_float32_stays_consistent_where_alpha_vanishes() -> None:
    lam, eps, z = torch.tensor([-18.0]), normal(0, 1, 64, dtype=torch.float32), normal(1, 1, 64, dtype=torch.float32)
    x = D.to_x_eps(eps, z, lam, "eps").x
    exact = D.to_x_eps(eps.double(), z.double(), lam, "eps").x
    torch.testing.assert_close(x.double(), exact, rtol=1e-6, atol=0.0)


def test_shapes_and_names_are_answered_at_the_door() -> None:
    z, lam = torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(ShapeError, match="both"):
        D.to_x_eps(torch.zeros(2, 3), z, lam, "both")
    with pytest.raises(ShapeError, match="logsnr"):
        D.diffuse(z, z, torch.zeros(3))
    with pytest.raises(ConfigError, match="did you mean 'eps'"):
        D.to_x_eps(z, z, lam, "epsi")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="parameterisation"):
        D.from_x_eps(z, z, lam, "score")  # type: ignore[arg-type]


# guidance


@quick
@given(seeds, st.floats(0, 10))
def test_the_two_conventions_agree(seed: int, w: float) -> None:
    c, u = normal(seed, 2, 3), normal(seed + 1, 2, 3)
    by_w, by_scale = D.guide(c, u, w=w), D.guide(c, u, scale=D.scale_from_w(w))
    torch.testing.assert_close(by_w, (1 + w) * c - w * u)
    torch.testing.assert_close(by_w, by_scale)
    assert D.w_from_scale(D.scale_from_w(2.5)) == 2.5


def test_weight_zero_is_the_conditional_prediction_bit_for_bit() -> None:
    c, u = normal(0, 4, 3, dtype=torch.float32), normal(1, 4, 3, dtype=torch.float32)
    assert torch.equal(D.guide(c, u, w=0.0), c) and torch.equal(D.guide(c, u, scale=1.0), c)
    mixed = D.guide(c, u, w=torch.tensor([0.0, 1.0, 0.0, 2.0]))
    assert torch.equal(mixed[0], c[0]) and torch.equal(mixed[2], c[2])


@quick
@given(seeds, st.sampled_from(KINDS), st.floats(0, 4), levels)
def test_guiding_x_guides_every_parameterisation(seed: int, kind: D.Kind, w: float, level: float) -> None:
    lam, z = torch.full((2,), level, dtype=F64), normal(seed, 2, 4)
    shape = (2, 8) if kind == "both" else (2, 4)
    c, u = normal(seed + 1, *shape), normal(seed + 2, *shape)
    x, eps = D.guided_x(c, u, z, lam, kind, w=w)
    torch.testing.assert_close(D.diffuse(x, eps, lam), z, rtol=1e-8, atol=1e-8)
    direct = D.to_x_eps(D.guide(c, u, w=w), z, lam, kind)
    torch.testing.assert_close(x, direct.x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(eps, direct.eps, rtol=1e-8, atol=1e-8)


def test_clipping_the_guided_teacher_is_a_choice() -> None:
    lam, z, c, u = torch.zeros(1, dtype=F64), normal(0, 1, 50), normal(1, 1, 50), normal(2, 1, 50)
    clipped = D.guided_x(c, u, z, lam, "x", w=3.0, clip_x=True)
    torch.testing.assert_close(clipped.x, D.guided_x(c, u, z, lam, "x", w=3.0).x.clamp(-1, 1))
    torch.testing.assert_close(D.diffuse(clipped.x, clipped.eps, lam), z)


def test_guidance_weights_are_checked() -> None:
    z = torch.zeros(1, 2)
    with pytest.raises(ConfigError, match="exactly one"):
        D.guide(z, z)
    with pytest.raises(ConfigError, match="exactly one"):
        D.guide(z, z, w=1.0, scale=2.0)
    with pytest.raises(ConfigError, match=r"w = s - 1"):
        D.check_guidance(torch.tensor([1.0, -0.5]), 0.0, 4.0)
    with pytest.warns(UserWarning, match=r"outside \[0, 4\]"):
        D.check_guidance(7.5, 0.0, 4.0)


def test_guidance_embedding_by_the_letter() -> None:
    w = torch.tensor([0.0, 1.5, 7.0], dtype=F64)
    got = D.guidance_embedding(w, 8)
    for row, value in zip(got.tolist(), w.tolist(), strict=True):
        angles = [1000 * value * math.exp(-math.log(10000) * k / 3) for k in range(4)]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-9)
    assert D.guidance_embedding(w, 9).shape == (3, 9) and (D.guidance_embedding(w, 9)[:, -1] == 0).all()
    with pytest.raises(ConfigError, match="dim"):
        D.guidance_embedding(w, 3)
    with pytest.raises(ShapeError, match="one guidance weight per sample"):
        D.guidance_embedding(w[:, None], 8)


# losses


def test_errors_by_loops() -> None:
    lam = torch.tensor([-3.0, 0.5, 2.0], dtype=F64)
    a, b = D.XEps(normal(0, 3, 2, 2), normal(1, 3, 2, 2)), D.XEps(normal(2, 3, 2, 2), normal(3, 3, 2, 2))
    got = D.prediction_errors(a, b, lam)
    for i, level in enumerate(lam.tolist()):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
        dx = (a.x[i] - b.x[i]).flatten().tolist()
        de = (a.eps[i] - b.eps[i]).flatten().tolist()
        assert got.x[i].item() == pytest.approx(sum(d * d for d in dx) / 4)
        assert got.eps[i].item() == pytest.approx(sum(d * d for d in de) / 4)
        dv = [alpha * e - sigma * x for x, e in zip(dx, de, strict=True)]
        assert got.v[i].item() == pytest.approx(sum(d * d for d in dv) / 4)


@pytest.mark.parametrize("weight", ["constant", "snr", "snr_trunc", "v_mse"])
@quick
@given(seed=seeds, lams=st.lists(levels, min_size=2, max_size=5))
def test_every_loss_is_a_weighted_x_error(weight: D.Weight, seed: int, lams: list[float]) -> None:
    lam, n = torch.tensor(lams, dtype=F64), len(lams)
    z = normal(seed, n, 5)
    a = D.to_x_eps(normal(seed + 1, n, 5), z, lam, "x")
    b = D.to_x_eps(normal(seed + 2, n, 5), z, lam, "x")
    errors = D.prediction_errors(a, b, lam)
    torch.testing.assert_close(D.select_error(errors, weight), D.loss_weight(lam, weight) * errors.x, rtol=1e-7, atol=0)


def test_the_larger_error_is_taken_per_sample() -> None:
    errors = D.Errors(torch.tensor([1.0, 5.0]), torch.tensor([4.0, 2.0]), torch.zeros(2))
    assert D.select_error(errors, "snr_trunc").tolist() == [4.0, 5.0]
    with pytest.raises(ConfigError, match="did you mean 'snr_trunc'"):
        D.select_error(errors, "snr-trunc")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="loss weight"):
        D.loss_weight(torch.zeros(1), "none")  # type: ignore[arg-type]


def test_losses_pass_gradcheck() -> None:
    lam, z = torch.tensor([-2.0, 3.0], dtype=F64), normal(0, 2, 3)
    target = D.to_x_eps(normal(1, 2, 3), z, lam, "x")

    def loss(out: Tensor) -> tuple[Tensor, ...]:
        errors = D.prediction_errors(D.to_x_eps(out, z, lam, "v"), target, lam)
        return tuple(D.select_error(errors, w) for w in ("constant", "snr", "snr_trunc", "v_mse"))

    assert torch.autograd.gradcheck(loss, (normal(2, 2, 3).requires_grad_(True),))


# the two-step target


def test_halving_rounds() -> None:
    assert D.halving_rounds(64) == [32, 16, 8, 4, 2, 1]
    assert D.halving_rounds(12, 3) == [6, 3]
    for start, end in ((6, 1), (1, 1), (4, 8), (8, 0)):
        with pytest.raises(ConfigError, match=f"{start} steps cannot be halved"):
            D.halving_rounds(start, end)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_student_jump_is_two_teacher_jumps(kind: D.Kind, reverse: bool) -> None:
    steps, schedule = 8, D.CosineSchedule()
    predict = (lambda z, lam: torch.cat([wavy(z, lam)] * 2, 1)) if kind == "both" else wavy
    times = D.halving_times(torch.arange(steps), steps, reverse=reverse)
    z = normal(0, steps, 3, 4)
    target = D.two_step_target(predict, z, times, schedule, kind)
    torch.testing.assert_close(D.diffuse(target.x, target.eps, target.logsnr), z, rtol=1e-8, atol=1e-8)
    # at the clean end x itself is the sample; everywhere else the jump must land on the teacher's second z
    inner = slice(None) if reverse else slice(1, None)
    landed = D.ddim_jump(target.x, target.eps, target.logsnr_s)
    torch.testing.assert_close(landed[inner], target.z_s[inner], rtol=1e-8, atol=1e-8)


def test_the_target_by_the_letter() -> None:
    """Algorithm 2 of Progressive Distillation, one sample and one pixel at a time."""
    steps, schedule = 4, D.CosineSchedule()
    i, z = torch.arange(steps), normal(3, steps, 2)
    target = D.two_step_target(wavy, z, D.halving_times(i, steps), schedule, "x")

    def coefficients(u: float) -> tuple[float, float]:
        b = math.atan(math.exp(-10))
        lam = -2 * math.log(math.tan((math.atan(math.exp(10)) - b) * u + b))
        return math.sqrt(1 / (1 + math.exp(-lam))), math.sqrt(1 / (1 + math.exp(lam)))

    def net(value: float, u: float) -> float:
        lam = schedule.logsnr(u).reshape(1)
        return wavy(torch.tensor([[value]], dtype=F64), lam).item()

    for n in range(steps):
        u = (n + 1) / steps
        for p in range(2):
            zt = z[n, p].item()
            (a, s), (am, sm), (as_, ss) = (coefficients(v) for v in (u, u - 0.5 / steps, u - 1 / steps))
            x1 = net(zt, u)
            zm = am * x1 + sm * (zt - a * x1) / s
            x2 = net(zm, u - 0.5 / steps)
            zs = as_ * x2 + ss * (zm - am * x2) / sm
            xt = x2 if n == 0 else (zs - ss / s * zt) / (as_ - ss / s * a)
            assert target.x[n, p].item() == pytest.approx(xt, rel=1e-8)
            assert target.eps[n, p].item() == pytest.approx((zt - a * xt) / s, rel=1e-8)
            assert target.v[n, p].item() == pytest.approx(a * (zt - a * xt) / s - s * xt, rel=1e-8)
            assert target.z_mid[n, p].item() == pytest.approx(zm) and target.z_s[n, p].item() == pytest.approx(zs)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_student_that_hits_every_target_samples_like_its_teacher(steps: int) -> None:
    schedule, z = D.CosineSchedule(), normal(0, 3, 4)

    def student(z: Tensor, logsnr: Tensor) -> Tensor:
        i = (schedule.time(logsnr) * steps).round().long() - 1
        return D.two_step_target(wavy, z, D.halving_times(i, steps), schedule, "x").x

    ours = D.ddim_sample(student, z, steps, schedule, "x")
    theirs = D.ddim_sample(wavy, z, 2 * steps, schedule, "x")
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_student_that_hits_every_reverse_target_encodes_like_its_teacher(steps: int) -> None:
    schedule, x = D.CosineSchedule(), normal(0, 3, 4)

    def student(z: Tensor, logsnr: Tensor) -> Tensor:
        i = (schedule.time(logsnr) * steps).round().long()
        return D.two_step_target(wavy, z, D.halving_times(i, steps, reverse=True), schedule, "eps").eps

    ours = D.encode(student, x, steps, schedule, "eps")
    torch.testing.assert_close(ours, D.encode(wavy, x, 2 * steps, schedule, "eps"), rtol=1e-7, atol=1e-7)


def test_float32_targets_keep_their_digits_at_a_thousand_steps() -> None:
    steps, z = 1024, normal(0, 6, 16)
    i = torch.tensor([0, 1, 3, 500, 900, 1023])
    wide = D.two_step_target(wavy, z, D.halving_times(i, steps), D.CosineSchedule(), "v")
    narrow = D.two_step_target(wavy, z.float(), D.halving_times(i, steps), D.CosineSchedule(), "v")
    assert narrow.x.dtype == torch.float32
    # the network answers in float32, so an error of 6e-8 in z_s - z, over a jump of 1/1024, is what can remain
    torch.testing.assert_close(narrow.v.double(), wide.v, rtol=0, atol=5e-4)


def test_targets_carry_no_graph_and_the_network_sees_its_dtype() -> None:
    seen = []

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        seen.append((z.dtype, logsnr.dtype))
        return weight * z

    weight = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    z = normal(0, 2, 3).bfloat16()
    target = D.two_step_target(predict, z, D.halving_times(torch.tensor([0, 1]), 2), D.CosineSchedule(), "v")
    assert seen == [(torch.bfloat16, torch.float32)] * 2
    assert not target.x.requires_grad and target.x.dtype == torch.float32


def test_stochastic_times_are_double_steps_but_for_the_edge() -> None:
    u, mid, low = D.stochastic_times(torch.arange(4), 4)
    assert u.tolist() == [0.25, 0.5, 0.75, 1.0] and low.tolist() == [0.0, 0.0, 0.25, 0.5]
    torch.testing.assert_close(mid, (u + low) / 2)
    with pytest.raises(ConfigError, match="at least one step"):
        D.stochastic_times(torch.arange(4), 0)


# samplers


@quick
@given(seeds, st.integers(1, 7), st.sampled_from(KINDS))
def test_a_network_that_knows_x_is_believed(seed: int, steps: int, kind: D.Kind) -> None:
    x = normal(seed, 2, 3).clamp(-1, 1)

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        pair = D.to_x_eps(x, z, logsnr, "x")
        return D.from_x_eps(pair.x, pair.eps, logsnr, kind)

    z = normal(seed + 1, 2, 3)
    got = D.ddim_sample(predict, z, steps, D.CosineSchedule(), kind, clip_x=True)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_ddim_converges_to_the_flow_of_gaussian_data() -> None:
    """The exact probability flow of N(mu, var): z keeps its standard score under the marginal."""
    mean, variance, schedule = 0.7, 0.3, D.CosineSchedule()
    z, predict = normal(0, 1, 200), gaussian_denoiser(0.7, 0.3)
    alpha, sigma = D.alpha_sigma(schedule.logsnr(1.0))
    score = (z - alpha * mean) / torch.sqrt(alpha**2 * variance + sigma**2)
    exact = mean + math.sqrt(variance) * score
    errors = [(D.ddim_sample(predict, z, n, schedule, "x") - exact).abs().max().item() for n in (8, 16, 32, 64)]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.4  # first order
    assert errors[-1] < 0.05


def test_encoding_and_sampling_are_inverse_in_the_limit() -> None:
    schedule, x = D.CosineSchedule(), normal(0, 1, 50) * 0.5 + 0.7
    predict = gaussian_denoiser(0.7, 0.25)

    def eps(z: Tensor, logsnr: Tensor) -> Tensor:
        return D.to_x_eps(predict(z, logsnr), z, logsnr, "x").eps

    gaps = []
    for n in (50, 200):
        code = D.encode(eps, x, n, schedule, "eps")
        gaps.append((D.ddim_sample(eps, code, n, schedule, "eps") - x).abs().max().item())
    assert gaps[1] < 0.05 and gaps[1] < 0.4 * gaps[0]


def test_sampling_from_the_middle_and_with_what_is_known() -> None:
    schedule, x = D.CosineSchedule(), normal(0, 2, 6)
    calls: list[float] = []

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        calls.append(schedule.time(logsnr)[0].item())
        return wavy(z, logsnr)

    D.ddim_sample(predict, x, 8, schedule, "x", first=3)
    assert calls == pytest.approx([3 / 8, 2 / 8, 1 / 8])
    known, noise, mask = torch.full((2, 6), 0.25, dtype=F64), normal(1, 2, 6), torch.arange(6) < 3
    seen: list[Tensor] = []

    def fill(z: Tensor, logsnr: Tensor) -> Tensor:
        seen.append(torch.where(mask, D.diffuse(known, noise, logsnr), z))
        return seen[-1]

    D.ddim_sample(lambda z, lam: (seen.append(z), wavy(z, lam))[1], x, 4, schedule, "x", constrain=fill)
    assert len(seen) == 8 and all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    for bad in (0, 9):
        with pytest.raises(ConfigError, match="first"):
            D.ddim_sample(wavy, x, 8, schedule, "x", first=bad)
    with pytest.raises(ConfigError, match="steps"):
        D.ddim_sample(wavy, x, 0, schedule, "x")


def test_renoising_keeps_the_marginal() -> None:
    x, n = torch.full((1, 40_000), 0.5), 40_000
    low, high = torch.tensor([2.0]), torch.tensor([-1.0])
    z = D.renoise(D.diffuse(x, normal(0, 1, n).float(), low), normal(1, 1, n).float(), low, high)
    alpha, sigma = D.alpha_sigma(high)
    assert z.mean().item() == pytest.approx(alpha.item() * 0.5, abs=0.02)
    assert z.std().item() == pytest.approx(sigma.item(), rel=0.02)
    with pytest.raises(ConfigError, match="only be added"):
        D.renoise(x, x, high, low)


def test_stochastic_sampler_calls_the_network_n_times_and_keeps_the_distribution() -> None:
    schedule, n = D.CosineSchedule(), 20_000
    calls: list[float] = []
    exact = gaussian_denoiser(0.7, 0.3)

    def flow(z: Tensor, logsnr: Tensor) -> Tensor:
        """The student that a perfect distillation would give: its double jump is the exact flow."""
        u = schedule.time(logsnr)
        calls.append(u[0].item())
        below = schedule.logsnr((u - 2 / 6).clamp_min(0.0))
        (a, s), (ab, sb) = D.alpha_sigma(logsnr), D.alpha_sigma(below)
        score = (z - a[:, None] * 0.7) / torch.sqrt(a**2 * 0.3 + s**2)[:, None]
        landed = ab[:, None] * 0.7 + torch.sqrt(ab**2 * 0.3 + sb**2)[:, None] * score
        edge = u[0].item() < 1.5 / 6
        return landed / ab[:, None] if edge else D.invert_jump(z, landed, logsnr, below).x

    draws: list[int] = []

    def noise(j: int, shape: torch.Size) -> Tensor:
        draws.append(j)
        return normal(100 + j, *shape)

    z = normal(0, 1, n)
    got = D.stochastic_sample(flow, z, 6, schedule, "x", noise)
    assert calls == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]) and draws == [0, 1, 2, 3, 4]
    assert got.mean().item() == pytest.approx(0.7, abs=0.02)
    assert got.var().item() == pytest.approx(0.3, rel=0.05)
    again = D.stochastic_sample(exact, z, 1, schedule, "x", noise)
    torch.testing.assert_close(again, D.ddim_sample(exact, z, 1, schedule, "x"))


def test_ancestral_step_is_the_posterior_of_the_diffusion() -> None:
    """q(z_s | z_t, x) by Bayes: the product of two Gaussians in z_s."""
    lam, lam_s = torch.tensor([-1.0], dtype=F64), torch.tensor([0.8], dtype=F64)
    x, z, zero = torch.tensor([[0.4]], dtype=F64), torch.tensor([[1.1]], dtype=F64), torch.zeros(1, 1, dtype=F64)
    (a, s), (b, r) = ([c.item() for c in D.alpha_sigma(level)] for level in (lam, lam_s))
    through, added = a / b, s * s - (a / b) ** 2 * r * r  # z_t = through z_s + N(0, added)
    precision = 1 / (r * r) + through**2 / added
    mean = (b * 0.4 / (r * r) + through * 1.1 / added) / precision
    got = D.ancestral_step(x, z, zero, lam, lam_s)
    assert got.item() == pytest.approx(mean)
    spread = D.ancestral_step(x, z, zero + 1, lam, lam_s) - got
    assert spread.item() == pytest.approx(precision**-0.5)
    large = D.ancestral_step(x, z, zero + 1, lam, lam_s, variance=1.0) - got
    assert large.item() == pytest.approx(math.sqrt(added))
    middle = D.ancestral_step(x, z, zero + 1, lam, lam_s, variance=0.5) - got
    assert middle.item() == pytest.approx(math.sqrt(spread.item() * large.item()))
    with pytest.raises(ConfigError, match="variance"):
        D.ancestral_step(x, z, zero, lam, lam_s, variance=1.5)
    with pytest.raises(ConfigError, match="less noise"):
        D.ancestral_step(x, z, zero, lam_s, lam)


def test_ancestral_sampling_finds_gaussian_data() -> None:
    predict, z = gaussian_denoiser(0.7, 0.3), normal(0, 1, 20_000)
    got = D.ancestral_sample(
        predict, z, 60, D.CosineSchedule(), "x", lambda j, shape: normal(200 + j, *shape), variance=1.0
    )
    assert got.mean().item() == pytest.approx(0.7, abs=0.03)
    assert got.var().item() == pytest.approx(0.3, rel=0.15)


def test_samplers_carry_gradients_when_the_network_does() -> None:
    weight = torch.tensor(0.3, dtype=F64, requires_grad=True)
    z = normal(0, 2, 3)

    def sample(weight: Tensor) -> Tensor:
        return D.ddim_sample(lambda z, lam: weight * torch.tanh(z), z, 3, D.CosineSchedule(), "v")

    assert torch.autograd.gradcheck(sample, (weight,))


@pytest.mark.parametrize("shape", [(2,), (2, 5), (2, 3, 4), (2, 1, 2, 3, 2)])
def test_any_trailing_layout(shape: tuple[int, ...]) -> None:
    z = normal(0, *shape)
    target = D.two_step_target(wavy, z, D.halving_times(torch.tensor([0, 1]), 2), D.CosineSchedule(), "v")
    assert target.x.shape == z.shape
    flat = D.two_step_target(wavy, z.reshape(2, -1), D.halving_times(torch.tensor([0, 1]), 2), D.CosineSchedule(), "v")
    torch.testing.assert_close(target.v.reshape(2, -1), flat.v)
