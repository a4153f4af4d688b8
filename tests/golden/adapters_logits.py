"""Adapters of the vectors recorded from cls_KD (nkd-uskd) and TAID: losses on logits and the schedule of t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import functional as F
from limbeck.functional import schedule

Arrays = Any  # ``Read`` of the file that loads this one: a mapping that also has ``prose`` and ``same``
Hyper = Any
Results = dict[str, np.ndarray]


def _leaf(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_()


def _numbers(x: Tensor | None) -> np.ndarray:
    assert x is not None
    return x.detach().numpy()


def _labels(arrays: Arrays, hyper: Hyper) -> Tensor:
    """Class ids ``[N]`` or soft labels ``[N, C]``; the case says in words which, and how they were mixed."""
    hyper.prose("label")
    return torch.from_numpy(np.array(arrays["in_label"]))


def nkd(arrays: Arrays, hyper: Hyper) -> Results:
    student = _leaf(arrays["in_logit_s"])
    teacher, labels = torch.from_numpy(np.array(arrays["in_logit_t"])), _labels(arrays, hyper)
    temperature, gamma = float(hyper.get("temp", 1.0)), float(hyper.get("gamma", 1.5))
    parts = F.nkd(student, teacher, labels, temperature=temperature, gamma=gamma)
    loss = parts.target.mean() + parts.nontarget.mean()
    loss.backward()
    return {"out_loss": _numbers(loss), "out_grad_logit_s": _numbers(student.grad)}


def uskd(arrays: Arrays, hyper: Hyper) -> Results:
    student, feature, weight, bias = (
        _leaf(arrays[k]) for k in ("in_logit_s", "in_fea_mid", "in_fc_weight", "in_fc_bias")
    )
    hyper.same("num_classes", student.shape[1])
    hyper.same("channel", feature.shape[1])
    weak = torch.nn.functional.linear(feature, weight, bias)
    parts = F.uskd(
        student,
        _labels(arrays, hyper),
        weak,
        alpha=float(hyper.get("alpha", 1.0)),
        beta=float(hyper.get("beta", 0.1)),
        mu=float(hyper.get("mu", 0.005)),
        variant="released",
    )
    loss = parts.target.mean() + parts.nontarget.mean() + parts.weak.mean()
    loss.backward()
    return {
        "out_loss": _numbers(loss),
        "out_grad_logit_s": _numbers(student.grad),
        "out_grad_fea_mid": _numbers(feature.grad),
        "out_grad_fc_weight": _numbers(weight.grad),
        "out_grad_fc_bias": _numbers(bias.grad),
    }


Loss = Callable[[Tensor, Tensor, Tensor, Hyper], Tensor]


def _tokens(arrays: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    """The student's logits, which ask for a gradient, the teacher's, and which tokens count."""
    arrays.prose("labels")  # the published losses share one signature; DKD alone reads them
    teacher, mask = (torch.from_numpy(np.array(arrays[k])) for k in ("teacher_logits", "mask"))
    return _leaf(arrays["student_logits"]), teacher, mask != 0


def _token_mean(loss: Loss) -> Callable[[Arrays, Hyper], Results]:
    """A loss of (student, teacher, mask) per token, averaged over the mask, with its gradient in the student."""

    def run(arrays: Arrays, hyper: Hyper) -> Results:
        student, teacher, mask = _tokens(arrays)
        value = loss(student, teacher, mask, hyper).sum() / mask.sum()
        value.backward()
        return {"loss": _numbers(value), "grad_student": _numbers(student.grad)}

    return run


def _taid(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    return F.taid(student, teacher, float(hyper["t"]), where=mask)


def _forward(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    # classes the student rules out add nothing in the published code, though the teacher may give them mass
    out = torch.isneginf(student)
    seen = F.soft_cross_entropy(student, teacher.masked_fill(out, -torch.inf), where=mask)
    mass = teacher.to(seen.dtype).softmax(-1).masked_fill(out, 0.0).sum(-1)
    return torch.where(mask, mass, 0.0) * seen


def _reverse(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    return F.kl(student, teacher, direction="reverse", where=mask)


def _jensen_shannon(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    return F.jensen_shannon(student, teacher, beta=float(hyper.get("teacher_weight", 0.1)), where=mask)


def _skew_forward(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    mix = float(hyper.get("target_weight", 0.1))
    # the released forward skew is a cross-entropy: the divergence plus the teacher's entropy
    return F.skew_kl(student, teacher, direction="forward", mix=mix, where=mask) + F.entropy(teacher, where=mask)


def _skew_reverse(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    mix = float(hyper.get("target_weight", 0.1))
    return F.skew_kl(student, teacher, direction="reverse", mix=mix, where=mask)


def _total_variation(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    return F.total_variation(student, teacher, where=mask)


def _adaptive(student: Tensor, teacher: Tensor, mask: Tensor, hyper: Hyper) -> Tensor:
    threshold = float(hyper.get("head_threshold", 0.5))
    return F.adaptive_kl(student, teacher, head_threshold=threshold, variant="released", where=mask)


def dkd(arrays: Arrays, hyper: Hyper) -> Results:
    """TAID's port of DKD: the sum over valid tokens is divided by all tokens."""
    student, teacher, mask = _tokens(arrays)
    parts = F.dkd(
        student,
        teacher,
        torch.from_numpy(np.array(arrays["labels"])),
        alpha=float(hyper.get("alpha", 1.0)),
        beta=float(hyper.get("beta", 0.5)),
        temperature=float(hyper.get("temperature", 1.0)),
        where=mask,
    )
    value = (parts.target + parts.nontarget).sum() / mask.numel()
    value.backward()
    return {"loss": _numbers(value), "grad_student": _numbers(student.grad)}


def ctkd(arrays: Arrays, hyper: Hyper) -> Results:
    """TAID's port of CTKD: a cross-entropy, and the factor of the temperature's gradient is not negated."""
    student, teacher, mask = _tokens(arrays)
    raw = _leaf(np.asarray(arrays.get("global_temperature", 1.0), dtype=np.float32))
    factor = schedule.cosine(
        float(hyper.get("epoch", 1)),
        float(hyper.get("num_loops", 10)),
        start=float(hyper.get("lambda_max", 1.0)),
        end=float(hyper.get("lambda_min", 0.0)),
    )
    value = F.ctkd(
        student,
        teacher,
        raw,
        strength=-factor,
        start=float(hyper.get("temp_start", 1.0)),
        span=float(hyper.get("temp_end", 20.0)),
        value="cross_entropy",
        where=mask,
    )
    value = value.sum() / mask.sum()
    value.backward()
    return {"loss": _numbers(value), "grad_student": _numbers(student.grad), "grad_temperature": _numbers(raw.grad)}


def update_t(arrays: Arrays, hyper: Hyper) -> Results:
    losses = [float(x) for x in arrays["losses"]]
    t_start, t_end = float(hyper.get("t_start", 0.4)), float(hyper.get("t_end", 1.0))
    alpha, beta = float(hyper.get("alpha", 5e-4)), float(hyper.get("beta", 0.99))
    total = int(hyper.get("num_train_steps", len(losses)))
    adaptive = bool(hyper.get("adaptive", not hyper.get("disable_adaptive", False)))
    state = schedule.TaidState(t=t_start)
    rows = []
    for step, loss in enumerate(losses):
        state = schedule.taid_update(
            state, loss, step, total, t_start=t_start, t_end=t_end, alpha=alpha, beta=beta, adaptive=adaptive
        )
        rows.append((state.t, state.momentum, state.delta))
    t, momentum, delta = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return {"t": t, "momentum": momentum, "delta_t": delta}


ADAPTERS = {
    "nkd-uskd:mmcls/models/dis_losses/nkd.py:NKDLoss.forward": nkd,
    "nkd-uskd:mmcls/models/dis_losses/uskd.py:USKDLoss.forward": uskd,
    "taid:src/distil_losses/taid.py:TAID.compute_loss": _token_mean(_taid),
    "taid:src/distil_losses/taid.py:TAID.update_t": update_t,
    "taid:src/distil_losses/fkl.py:ForwardKL": _token_mean(_forward),
    "taid:src/distil_losses/rkl.py:ReverseKL": _token_mean(_reverse),
    "taid:src/distil_losses/js.py:JS": _token_mean(_jensen_shannon),
    "taid:src/distil_losses/skew_fkl.py:SkewForwardKL": _token_mean(_skew_forward),
    "taid:src/distil_losses/skew_rkl.py:SkewReverseKL": _token_mean(_skew_reverse),
    "taid:src/distil_losses/tvd.py:TVD": _token_mean(_total_variation),
    "taid:src/distil_losses/adaptive_kl.py:AdaptiveKL": _token_mean(_adaptive),
    "taid:src/distil_losses/dkd.py:DKD": dkd,
    "taid:src/distil_losses/ctkd.py:CTKD": ctkd,
}
