"""Diffusion in one vocabulary: noise schedules, parameterisations, DDIM jumps, guidance, two-step targets, samplers.

Everything here is variance preserving: ``z = alpha x + sigma eps`` with ``alpha^2 + sigma^2 = 1``, so one number per
sample, the log-SNR ``lambda = log(alpha^2 / sigma^2)``, says how noisy ``z`` is. Time ``u`` runs from 0 (clean) to 1
(noise). Tensors are ``[B, ...]`` with any trailing layout; ``u``, ``lambda`` and guidance weights are ``[B]``.

A network is any callable ``predict(z, logsnr) -> out``. What ``out`` means is its ``kind``: ``"eps"`` (the noise),
``"x"`` (the clean sample), ``"v"`` (``alpha eps - sigma x``) or ``"both"`` (x and eps side by side along the channels,
mixed with the weight ``sigma^2``).

Coefficients are computed in float64 (float32 where the device has no float64), divisions by a vanishing ``alpha`` or
``sigma`` too; results come back in the input's dtype, and never below float32.

Sources: Salimans and Ho 2022 (Progressive Distillation, arXiv 2202.00512) for the parameterisations, the two-step
target and the loss weights; Meng et al. 2023 (On Distillation of Guided Diffusion Models, arXiv 2210.03142) for the
guided target, the stochastic sampler and the encoder.
"""

from __future__ import annotations

from .guidance import check_guidance, guidance_embedding, guide, guided_x, scale_from_w, w_from_scale
from .halving import TwoStepTarget, halving_rounds, halving_times, stochastic_times, two_step_target
from .losses import Errors, Weight, loss_weight, prediction_errors, select_error
from .predictions import (
    KINDS as KINDS,
)
from .predictions import (
    Kind,
    Predict,
    XEps,
    ddim_jump,
    diffuse,
    from_x_eps,
    invert_jump,
    renoise,
    to_x_eps,
)
from .samplers import ancestral_sample, ancestral_step, ddim_sample, encode, stochastic_sample
from .schedules import (
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    Schedule,
    alpha_sigma,
    check_terminal_snr,
)
from .scores import Weighting, carry, denoising_error, mixture_eps, normalised_difference, pull, score_difference

__all__ = [
    "CosineSchedule",
    "DiscreteSchedule",
    "Errors",
    "Kind",
    "LinearSchedule",
    "Predict",
    "Schedule",
    "TwoStepTarget",
    "Weight",
    "Weighting",
    "XEps",
    "alpha_sigma",
    "ancestral_sample",
    "ancestral_step",
    "carry",
    "check_guidance",
    "check_terminal_snr",
    "ddim_jump",
    "ddim_sample",
    "denoising_error",
    "diffuse",
    "encode",
    "from_x_eps",
    "guidance_embedding",
    "guide",
    "guided_x",
    "halving_rounds",
    "halving_times",
    "invert_jump",
    "loss_weight",
    "mixture_eps",
    "normalised_difference",
    "prediction_errors",
    "pull",
    "renoise",
    "scale_from_w",
    "score_difference",
    "select_error",
    "stochastic_sample",
    "stochastic_times",
    "to_x_eps",
    "two_step_target",
    "w_from_scale",
]
