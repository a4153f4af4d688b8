"""Everything public in `limbeck.functional`, through all that torch does to functions: right, or refused by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.errors import LimbeckError
from tests.functional import specimens_systems  # noqa: F401 (adds to SPECIMENS)
from tests.functional.specimens import SPECIMENS, Draw

NAMES = sorted(SPECIMENS)
DIFFERENTIABLE = [n for n in NAMES if not SPECIMENS[n].constant]

NO_TENSORS = {
    "adversarial": "switch_mode",
    "augment": "generator_draw keyed_draw seeded_draw strategy_names uniform_draw",
    "diffusion": "check_guidance check_terminal_snr halving_rounds halving_times scale_from_w stochastic_times w_from_scale",
    "dense": "boundary_bands confusion edge_masks mean_iou",
    "matching": "flat_parameters flat_step_loss loops_for syn_batches unflatten",
    "meshes": "edges_of",
    "metrics": "calibration_error frechet_distance frequency_groups perplexity",
    "privacy": "noise_scale",
    "revision": "span_pairs",
    "recovery": "crop_floor",
    "schedule": "constant cosine exponential linear piecewise ramp taid_alpha taid_check taid_update warm_cosine warmup warmup_cosine",
    "splatting": "carry_rows duplicate intrinsics largest_alpha remove split",
    "views": "crop_boxes cutmix_boxes",
    "zca": "fit_zca",
}
"""Functions of numbers, names, networks or finished sums: nothing to differentiate or to transform."""


KEEPING = (
    *("reverse_gradient", "zca.ZCA", "matching.trajectory_gradient", "mixing.mix_pairs", "mixing.partial_shares"),
    *("adversarial.affine_matrices", "adversarial.warp", "adversarial.patch_mix", "adversarial.patch_weights"),
    "attention.divide",
    "attention.relation_logits",
    "contrast.mix_distribution",
    "dense.resized",
    "views.crop_all",
    "views.crop_each",
    "views.paste",
    "views.take_view",
)
"""Functions that answer in the dtype they were given, as images and their gradients are wanted; so do augmentations."""

ROUNDING = (
    *KEEPING,
    "chunked_divergence",
    "chunked_head",
    "matching.gradient_matching",
    "diffusion.ddim_sample",
    "diffusion.encode",
    "diffusion.stochastic_sample",
    "diffusion.ancestral_sample",
    "diffusion.two_step_target",
)
"""Those that run networks, or multiply by an output weight, in the dtype they were given."""

BY_DEFINITION = (
    "reverse_gradient",
    "curriculum_temperature",
    "ctkd",
    "matching.Trajectory",
    "diffusion.carry",
    "diffusion.pull",
)
"""Functions whose gradient is meant to be another than their value's."""

DETACHED = (
    "mix_distribution",
    "taid",
    "taid-probabilities",
    "taid-each",
    "chunked_logits-taid",
    "chunked_divergence-taid",
)
"""Specimens whose target is a constant made of the student; so is USKD's."""


def flat(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def total(out: Any) -> Tensor:
    """A number in which every entry of an answer counts, each differently."""
    parts = [x if x.is_floating_point() else x.double() for x in flat(out)]
    weights = [torch.linspace(0.5, 1.5, max(1, x.numel()), dtype=x.dtype)[: x.numel()].reshape(x.shape) for x in parts]
    return torch.stack([(x * w).sum() for x, w in zip(parts, weights, strict=True)]).sum()


def made(name: str, n: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    call, tensors = SPECIMENS[name].make(n, Draw(dtype))
    return call, tuple(x.requires_grad_() for x in tensors)


def reached(call: Callable[..., Any], tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those of the tensors to which a gradient flows."""
    tensors = list(tensors)
    slopes = torch.autograd.grad(total(call(*tensors)), tensors, allow_unused=True)
    return [x for x, g in zip(tensors, slopes, strict=True) if g is not None]


def test_every_public_function_has_a_specimen() -> None:
    known = {s.of for s in SPECIMENS.values()}
    missing = []
    for name in F.__all__:
        thing = getattr(F, name)
        if inspect.ismodule(thing):
            module = thing
            names = getattr(module, "__all__", None) or [
                n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__
            ]
            missing += [
                f"{name}.{n}"
                for n in names
                if inspect.isfunction(getattr(module, n))
                and not n.startswith("_")
                and f"{name}.{n}" not in known
                and n not in f"{NO_TENSORS.get(name, '')}".split()
            ]
        elif inspect.isfunction(thing) and name not in known:
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient(name: str) -> None:
    call, tensors = made(name)
    wanted = reached(call, tensors)
    assert wanted
    fixed = {id(x) for x in wanted}

    def of_wanted(*leaves: Tensor) -> Tensor:
        given = iter(leaves)
        return total(call(*(next(given) if id(x) in fixed else x for x in tensors)))

    strange = SPECIMENS[name].of in (*BY_DEFINITION, "uskd") or name in DETACHED
    if not strange:
        assert torch.autograd.gradcheck(of_wanted, wanted, fast_mode=True)
    if "second" in SPECIMENS[name].never:
        slopes = torch.autograd.grad(
            of_wanted(*wanted) + sum(x.square().sum() for x in wanted), wanted, create_graph=True
        )
        with pytest.raises(LimbeckError, match="second derivative"):
            torch.autograd.grad(sum(g.square().sum() for g in slopes), wanted)
    elif not strange:
        assert torch.autograd.gradgradcheck(of_wanted, wanted, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision(name: str, dtype: torch.dtype) -> None:
    """Answers in float32, as of the same numbers held in float64; gradients in the dtype of what they are of."""
    call, tensors = made(name, dtype=dtype)
    exact, wide = SPECIMENS[name].make(3, Draw(rounded=dtype))
    wide = tuple(x.requires_grad_() for x in wide)
    got, want = flat(call(*tensors)), flat(exact(*wide))
    of = SPECIMENS[name].of
    eps = torch.finfo(dtype).eps
    near = 4 * eps if of in ROUNDING or of.startswith("augment.") else 2e-4
    for a, b in zip(got, want, strict=True):
        if a.is_floating_point():
            assert a.dtype in (
                (dtype,) if of in KEEPING or of.startswith("augment.") else (torch.float32, torch.float64)
            )
            torch.testing.assert_close(a.double(), b, rtol=near, atol=near)
    if SPECIMENS[name].constant:
        return
    slopes = torch.autograd.grad(total(got), tensors, allow_unused=True)
    exact_slopes = torch.autograd.grad(total(want), wide, allow_unused=True)
    for x, a, b in zip(tensors, slopes, exact_slopes, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == x.dtype and torch.isfinite(a).all()
            torch.testing.assert_close(
                a.double(), b, rtol=4 * eps, atol=(near + 4 * eps) * float(b.abs().max().clamp_min(1))
            )


@pytest.mark.parametrize("name", NAMES)
def test_no_items(name: str) -> None:
    call, tensors = made(name, 0)
    if "empty" in SPECIMENS[name].never:
        with pytest.raises(LimbeckError):
            call(*tensors)
        return
    out = flat(call(*tensors))
    one = flat(SPECIMENS[name].make(1, Draw())[0](*SPECIMENS[name].make(1, Draw())[1]))
    assert [x.ndim for x in out] == [x.ndim for x in one]
    assert all(torch.isfinite(x).all() for x in out)
    if not SPECIMENS[name].constant:
        total(out).backward()
        assert SPECIMENS[name].whole or all(x.grad is None or not x.grad.any() for x in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_func_transforms(name: str) -> None:
    """vmap over a further dimension is a loop over it; grad and jvp agree with autograd."""
    call, tensors = made(name)
    stacked = tuple(torch.stack([x.detach(), x.detach().flip(-1) * 0.5]) for x in tensors)
    if "func" in SPECIMENS[name].never:
        for transform in (
            lambda: torch.vmap(call)(*stacked),
            lambda: torch.func.grad(lambda *x: total(call(*x)))(*(x[0] for x in stacked)),
        ):
            with pytest.raises(LimbeckError, match=r"torch\.func"):
                transform()
        return
    want = [flat(call(*(x[i] for x in stacked))) for i in (0, 1)]
    for a, *b in zip(flat(torch.vmap(call)(*stacked)), *want, strict=True):
        torch.testing.assert_close(a, torch.stack(b))
    if SPECIMENS[name].constant:
        return
    inputs = tuple(x[0] for x in stacked)
    places = tuple(range(len(inputs)))
    by_func = torch.func.grad(lambda *x: total(call(*x)), argnums=places)(*inputs)
    slopes = torch.autograd.grad(total(call(*tensors)), tensors, materialize_grads=True, allow_unused=True)
    for a, b in zip(by_func, slopes, strict=True):
        torch.testing.assert_close(a, b)


def compiled(name: str, backend: str) -> None:
    graph = "graph" not in SPECIMENS[name].never
    call, tensors = made(name)
    plain = total(call(*tensors))
    wanted = (
        None
        if SPECIMENS[name].constant
        else torch.autograd.grad(plain, tensors, materialize_grads=True, allow_unused=True)
    )
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        if not graph:
            with pytest.raises(Exception, match=r"limbeck\.functional\.\w+ .*fullgraph"):
                torch.compile(call, fullgraph=True, backend=backend)(*tensors)
            torch._dynamo.reset()
        got = total(torch.compile(call, fullgraph=graph, backend=backend)(*tensors))
        torch.testing.assert_close(got, plain)
        if wanted is not None:
            slopes = torch.autograd.grad(got, tensors, materialize_grads=True, allow_unused=True)
            for a, b in zip(slopes, wanted, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.expensive
@pytest.mark.parametrize("name", NAMES)
def test_compiled(name: str) -> None:
    compiled(name, "aot_eager")


def test_a_chunked_loss_is_left_out_of_compiled_graphs() -> None:
    compiled("chunked_logits-forward", "aot_eager")
