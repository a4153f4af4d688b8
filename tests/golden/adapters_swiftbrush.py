"""The adapter of SwiftBrush's recorded vectors: one whole step of the method with closed-form networks and recorded draws."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.functional import diffusion
from limbeck.functional.diffusion import DiscreteSchedule
from limbeck.methods.diffusion.swiftbrush import SwiftBrush
from limbeck.parts.denoisers import Denoiser
from limbeck.tasks.sampler import Reading

NET = "eps(x,t,c)=tanh(a*x)+b*mean_{tokens,dim}(c)+d*t/1000"


ARRAYS = (
    *("input_noise", "prompt_embeds", "null_embeds", "alphas_cumprod"),
    *("vsd_noise", "vsd_timesteps", "lora_noise", "lora_timesteps"),
)


class Toy(nn.Module):
    """eps = tanh(a x) + b mean(c) + d t / 1000."""

    def __init__(self, values: Any, schedule: DiscreteSchedule) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([float(values[n]) for n in ("a", "b", "d")], dtype=torch.float64))
        self.schedule = schedule

    def forward(self, z: Tensor, logsnr: Tensor, c: Tensor, *_: Any) -> Tensor:
        t = (self.schedule.time(logsnr) * self.schedule.timesteps - 1).round()
        a, b, d = self.p
        return torch.tanh(a * z) + (b * c.flatten(1).mean(1) + d * t / 1000).view(-1, 1, 1, 1)


class Recorded:
    """Draws that were recorded, by stream."""

    def __init__(self, arrays: dict[str, Tensor], null: bool, hyper: Any) -> None:
        self.arrays, self.null, self.hyper = arrays, null, hyper

    def randn(self, stream: str, ids: Tensor, shape: Any) -> Tensor:
        return self.arrays[{"z": "input_noise", "eps": "vsd_noise", "fake-eps": "lora_noise"}[stream]]

    def randint(self, stream: str, ids: Tensor, high: int, low: int = 0) -> Tensor:
        name = "vsd" if stream == "t" else "lora"
        said = str(self.hyper[f"{name}_t"])
        if re.sub(r"\s", "", said) != f"randint[{low},{high})":
            self.hyper.doubt(f"{name}_t is {said!r}, and the method draws from [{low}, {high})")
        return self.arrays[f"{name}_timesteps"]

    def rand(self, stream: str, ids: Any) -> Tensor:
        return torch.tensor([0.0 if self.null else 1.0])


def _range(text: str) -> tuple[float, float]:
    low, high = re.findall(r"\d+", text)[:2]
    return float(low), float(high)


def step(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    given = {n: torch.from_numpy(np.array(arrays[n])) for n in ARRAYS}
    schedule = DiscreteSchedule.from_alphas_cumprod(given["alphas_cumprod"], logsnr_min=-1e3, logsnr_max=1e3)
    T = schedule.timesteps
    hyper.same("num_train_timesteps", T)
    hyper.same("T", T - 1)
    hyper.same("net", NET)
    delta = dict(re.findall(r"([abd])=(-?[\d.]*\d)", str(hyper["lora_delta"])))
    low, high = _range(str(hyper["vsd_t"]))
    method = SwiftBrush(
        guidance_scale=float(hyper["guidance_scale"]), t_min=low / T, t_max=high / T, p_null=0.5, variant="released"
    )
    method.abar_T = float(hyper["alpha_T2"])
    nets = {"student": Toy(hyper["student"], schedule), "teacher": Toy(hyper["teacher_base"], schedule)}
    lora = Toy(delta, schedule)

    def call(role: str, *args: Any, grad: bool | None = None) -> Tensor:
        out: Tensor = nets["teacher" if role == "fake" else role](*args)
        return out + lora(*args) if role == "fake" else out

    z, null = given["input_noise"], given["null_embeds"]
    if not bool((null == null[:1]).all()):
        hyper.doubt("null_embeds differ between items")
    said = Reading("eps", null[0], False)
    free = method.w > 0
    method.teacher, method.score = (Denoiser(r, said, free=free) for r in ("teacher", "fake"))
    method.student = Denoiser("student", said)
    method.setup = SimpleNamespace(task=SimpleNamespace(schedule=schedule, shape=z.shape[1:]))  # type: ignore[assignment]
    used = bool(np.array(arrays["lora_used_null"]))
    ctx: Any = SimpleNamespace(call=call, draws=Recorded(given, used, hyper), device=z.device)
    ids = torch.arange(len(z))
    c, w = given["prompt_embeds"], torch.full((len(z),), method.w, dtype=z.dtype)
    phases = method.step({"y": c, "item": ids, "view": torch.zeros_like(ids)}, ctx)

    vsd = next(phases)["vsd"]
    vsd.values.mean().backward()
    x_0 = method.generate(ctx, z, c, w).detach()
    logsnr = schedule.logsnr((given["vsd_timesteps"] + 1) / T)
    x_t = diffusion.diffuse(x_0, given["vsd_noise"], logsnr)
    with torch.no_grad():
        p, q = (d.read(ctx, x_t, logsnr, c, w) for d in (method.teacher, method.score))
    fake = next(phases)["fake"].values.mean()
    fake.backward()
    assert vsd.show is not None
    results = {
        "x0": x_0,
        "teacher_pred": p.eps,
        "score_gradient": diffusion.score_difference(p.eps, q.eps, logsnr),
        "loss_vsd": vsd.show.mean(),
        "dloss_dunet": nets["student"].p.grad,
        "loss_lora": fake.detach(),
        "dloss_dlora": lora.p.grad,
    }
    return {name: np.asarray(value) for name, value in results.items()}


ADAPTERS = {"swiftbrush:train_swiftbrush.py:predict_original+vsd_loss+lora_loss": step}
