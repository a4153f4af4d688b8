"""Adapters of recovery from BatchNorm statistics (SRe2L and CDA): loss, priors, rates, soft labels, cut-mix, the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.functional.recovery import crop_floor, image_norm, image_variation
from limbeck.functional.views import View, cutmix_boxes, paste
from limbeck.grammar.optim import Optim
from limbeck.methods.condensation.cda import Cda
from limbeck.parts.recover import StatisticsTap, Weights, recover, recovery_losses
from limbeck.tasks.synthetic_set import Space

TINY = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))  # the loop was recorded in this normalisation


class Net(nn.Module):
    """c1 3->6, b1; c2 6->12 stride 2, b2; residual c3 with b3; mean; fc: as wide as the weights are."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for i, stride in ((1, 1), (2, 2), (3, 1)):
            o, n, k, _ = state[f"c{i}.weight"].shape
            setattr(self, f"c{i}", nn.Conv2d(n, o, k, stride, k // 2, bias=False))
            setattr(self, f"b{i}", nn.BatchNorm2d(o))
        self.fc = nn.Linear(*reversed(state["fc.weight"].shape))
        self.to(state["fc.weight"].dtype).load_state_dict(state)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b1(self.c1(x)).relu()
        x = self.b2(self.c2(x)).relu()
        x = (x + self.b3(self.c3(x))).relu()
        return self.fc(x.mean((2, 3)))


def _net(arrays: Any, hyper: Any) -> Net:
    hyper.prose("net")
    names = [n for n in arrays if n.startswith("param_")]
    return Net({n.removeprefix("param_").replace("__", "."): torch.from_numpy(np.array(arrays[n])) for n in names})


def statistics_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("seed")
    net = _net(arrays, hyper)
    x, y = torch.from_numpy(arrays["x"]).requires_grad_(), torch.from_numpy(arrays["y"])
    w = Weights(float(hyper["r_bn"]), float(hyper["first_bn_multiplier"]), float(hyper["r_var"]))
    seen: list[Tensor] = []

    def answer(images: Tensor) -> Tensor:
        seen.append(net(images))
        return seen[-1]

    with StatisticsTap(net, w.var) as tap:
        found = recovery_losses(answer, tap, x, y, w)
    loss = found.total(w)
    loss.backward()
    out = {
        "logits": seen[0],
        "ce": found.ce.mean(),
        "bn_terms": found.gaps,
        "bn_sum": found.statistics(w),
        "loss": loss,
    }
    assert x.grad is not None
    return {k: v.detach().numpy() for k, v in {**out, "grad_x": x.grad}.items()}


def priors(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    variation, norm = image_variation(x), image_norm(x).mean()
    (by_tv,), (by_l2,) = torch.autograd.grad(variation.l2, x), torch.autograd.grad(norm, x)
    out = {"tv_l1": variation.l1, "tv_l2": variation.l2, "l2": norm, "grad_tv_l2": by_tv, "grad_l2": by_l2}
    return {k: v.detach().numpy() for k, v in out.items()}


def rates(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    total, warm = int(hyper["total"]), int(hyper["warmup"])
    optim = Optim(steps=total, lr=float(hyper["base_lr"]), schedule="cosine", warmup=warm)
    z = torch.from_numpy(arrays["z"])
    out = {"lr": np.array([optim.rate(int(t)) for t in arrays["iters"]])}
    for name in [n for n in hyper if isinstance(hyper.peek(n), Mapping) and "mean" in hyper.peek(n)]:
        space = Space(tuple(hyper[name]["mean"]), tuple(hyper[name]["std"]))
        low, high = (v.to(z.dtype) for v in space.limits(z.dtype))
        out[f"clip_{name}"] = z.clamp(low, high).numpy()
        out[f"denorm_{name}"] = space.leave(z).numpy()
    return out


def soft_labels(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.same("reduction", "batchmean")
    out = {}
    for T in hyper["temperatures"]:
        z = torch.from_numpy(np.array(arrays["student"])).requires_grad_()
        teacher = torch.from_numpy(arrays["teacher"])
        loss = F.kl(z, teacher, temperature=float(T), scale_t2=bool(hyper["T2_factor"])).mean()
        loss.backward()
        assert z.grad is not None
        out |= {f"loss_T{T}": loss.detach().numpy(), f"grad_T{T}": z.grad.numpy()}
    return out


def cutmix(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    lam, centres = torch.from_numpy(arrays["lam"]), torch.tensor(hyper["centres"])
    boxes = cutmix_boxes(lam, centres, tuple(hyper["size"][2:]))
    first_row, first_column, last_row, last_column = hyper["box_of_mixed"]
    box = torch.tensor([[first_row, first_column, last_row, last_column]])
    # as recorded: the box's corners are (1, 2) and (5, 6)
    img, index = torch.from_numpy(arrays["img"]), torch.from_numpy(arrays["index"]).long()
    name = "mixed_box_" + "_".join(str(v) for v in hyper["box_of_mixed"])
    mixed = paste(img, img[index], box.expand(len(img), -1))
    return {"box_and_centre": torch.cat([boxes, centres], 1).numpy(), name: mixed.numpy()}


def curriculum(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    modes, total = list(hyper["modes"]), int(hyper["iterations"])
    hyper.same("row_columns", ["mode index", "milestone", "iteration"])
    rows = [
        [m, share, t, crop_floor(t, total, curriculum=modes[int(m)], milestone=float(share)), 1.0]
        for m, share, t in hyper["rows"]
    ]
    return {"table": np.array(rows, dtype=np.float64)}


def loop(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    net, steps = _net(arrays, hyper), int(hyper["iterations"])
    method = Cda(
        curriculum=hyper["mode"],
        milestone=float(hyper["milestone"]),
        r_bn=float(hyper["r_bn"]),
        first_bn=float(hyper["first_bn_multiplier"]),
        betas=tuple(hyper["adam_betas"]),
        eps=float(hyper["eps"]),
        jitter=int(hyper["jitter"]),
    )
    start = torch.from_numpy(arrays["init"])
    views = []
    for crop, flip, roll in zip(arrays["crops"], arrays["flips"], arrays["offsets"], strict=True):
        views.append(View(tuple(int(v) for v in crop[:4]), bool(flip), tuple(int(v) for v in roll)))
    for floor, crop in zip(method.floors(steps), arrays["crops"], strict=True):
        if abs(floor - crop[4]) > 1e-6:
            hyper.doubt(f"the curriculum's floor is {floor}, and {crop[4]} was recorded")
    if arrays["offsets"].max() > method.jitter:
        hyper.doubt("a recorded roll is above the jitter")
    space = Space(*TINY)
    after: list[Tensor] = []
    found = recover(
        net,
        start,
        torch.arange(len(start)),
        method.optimised(Optim(steps=steps, lr=float(hyper["lr"]))),
        views,
        weights=method.weights,
        limits=space.limits(start.dtype),
        each=lambda _, x: after.append(x.clone()),
    )
    return {"after": torch.stack(after).numpy(), "saved": space.leave(found.images).numpy()}


ADAPTERS = {
    "cda:CDA/recover_cda_in1k.py:lower_crop_bound": curriculum,
    "cda:CDA/recover_cda_tiny.py:get_images": loop,
    "sre2l-bn:CDA/utils.py:BNFeatureHook+CE": statistics_loss,
    "sre2l-bn:SRe2L/recover/utils.py:get_image_prior_losses+loss_l2": priors,
    "sre2l-bn:CDA/utils.py:lr_cosine_policy+clip+denormalize": rates,
    "sre2l-bn:SRe2L/validate/train_FKD.py:soft_label_kl": soft_labels,
    "sre2l-bn:SRe2L/relabel/utils_fkd.py:rand_bbox+cutmix": cutmix,
}
