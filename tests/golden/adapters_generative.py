"""Adapters from recorded vectors to limbeck, for diffusion and for the distillation of data sets.

Each computes what the published code computed, with the variants that code had, from the arrays and hyperparameters
of any case of its function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.functional import augment, diffusion, matching, zca
from limbeck.networks import ConvNet

Arrays = Mapping[str, np.ndarray]
Adapter = Callable[[Arrays, Mapping[str, Any]], dict[str, Any]]


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def _numpy(results: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in results.items()
    }


# ----------------------------------------------------------------------------------------------------- guided-diffusion


def _schedule(hyper: Mapping[str, Any]) -> diffusion.CosineSchedule:
    """``"cosine logsnr_min=-20 logsnr_max=20"``, or the published default where a case does not say."""
    bounds = dict(part.split("=") for part in str(hyper.get("schedule", "")).split() if "=" in part)
    return diffusion.CosineSchedule(float(bounds.get("logsnr_min", -20)), float(bounds.get("logsnr_max", 20)))


def _toy(params: Mapping[str, Any], kind: str, channel_dim: int = -1) -> diffusion.Predict:
    """The closed-form network of the cases: ``a tanh(z) + b z (lambda/20) + c cos(3z)``."""

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        lam = logsnr.reshape(-1, *([1] * (z.ndim - 1)))
        out = params["a"] * torch.tanh(z) + params["b"] * z * (lam / 20.0) + params["c"] * torch.cos(3.0 * z)
        return torch.cat([out, out], dim=channel_dim) if kind == "both" else out

    return predict


def guided_training_losses(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t, schedule = _tensors(arrays), _schedule(hyper)
    steps, kind, weight = int(hyper["num_steps"]), hyper["mean_type"], hyper["mean_loss_weight_type"]
    times = diffusion.halving_times(t["i"], steps)
    z = diffusion.diffuse(t["x"], t["eps"], schedule.logsnr(times[0]))
    target = diffusion.two_step_target(_toy(hyper["teacher"], kind), z, times, schedule, kind, channel_dim=-1)
    a = torch.tensor(float(hyper["student"]["a"]), dtype=t["x"].dtype, requires_grad=True)
    student = _toy({**hyper["student"], "a": a}, kind)
    out = diffusion.to_x_eps(student(z, target.logsnr), z, target.logsnr, kind, channel_dim=-1)
    errors = diffusion.prediction_errors(out, diffusion.XEps(target.x, target.eps), target.logsnr)
    loss = diffusion.select_error(errors, weight)
    (slope,) = torch.autograd.grad(loss.mean(), a)
    return _numpy(
        {
            "logsnr": target.logsnr,
            "logsnr_mid": target.logsnr_mid,
            "logsnr_s": target.logsnr_s,
            "z": z,
            "z_mid": target.z_mid,
            "z_teacher": target.z_s,
            "x_target": target.x,
            "eps_target": target.eps,
            "v_target": target.v,
            "loss": loss,
            "loss_mean": loss.mean(),
            "dloss_da": slope,
            "x_mse": errors.x,
            "eps_mse": errors.eps,
            "v_mse": errors.v,
        }
    )


def _variance(name: str) -> float:
    """``small``, ``large`` or ``medium:0.3``, with or without ``fixed_`` before it."""
    name, _, part = name.removeprefix("fixed_").partition(":")
    return {"small": 0.0, "large": 1.0}[name] if not part else float(part)


def guided_sample_loop(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t, kind, schedule = _tensors(arrays), hyper["mean_type"], _schedule(hyper)
    predict = _toy(hyper["params"], kind)
    steps, clip_x = int(hyper["num_steps"]), bool(hyper.get("clip_x", True))
    sampler = hyper.get("sampler", "ddim")
    if sampler == "ddim":
        x = diffusion.ddim_sample(predict, t["z1"], steps, schedule, kind, clip_x=clip_x, channel_dim=-1)
    elif sampler == "noisy":
        # the one other input: [steps, B, ...], a standard normal draw per step
        (draws,) = (value for name, value in t.items() if name != "z1")
        x = diffusion.ancestral_sample(
            predict,
            t["z1"],
            steps,
            schedule,
            kind,
            lambda j, shape: draws[j],
            variance=_variance(str(hyper.get("logvar_type", "small"))),
            clip_x=clip_x,
            channel_dim=-1,
        )
    else:
        raise KeyError(f"no sampler {sampler!r} in the published code")
    return _numpy({"x": x})


# --------------------------------------------------------------------------------------------------------- mtt, tesla


def _trajectory(mode: matching.Mode, variant: matching.Variant) -> Adapter:
    def run(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
        t = _tensors(arrays)
        images, labels, steps = t["image_syn"], t["label"], int(hyper["T"])
        channels, im = images.shape[1], tuple(images.shape[2:])
        net = ConvNet(channels, int(hyper["nc"]), int(hyper["w"]), int(hyper["d"]), im_size=im).to(images.dtype)
        if hyper.get("teacher_label"):
            with torch.no_grad():
                target_net = matching.unflatten(t["target"], net)
                labels = torch.func.functional_call(net, target_net, (images,)).softmax(1)
        if labels.is_floating_point():
            labels = labels.to(images.dtype)
        batches = matching.syn_batches(lambda k: t["perms"][k], len(images), steps, hyper.get("batch_syn"))
        got = matching.trajectory_gradient(
            matching.flat_step_loss(net),
            t["start"],
            t["target"],
            images,
            labels,
            batches,
            t["syn_lr"],
            mode=mode,
            variant=variant,
            augment=_recorded_augment(images, batches, hyper) if hyper.get("dsa") else None,
        )
        return _numpy(
            {
                "student_final": got.final,
                "loss": got.loss,
                "grad_image": got.grad_images,
                "grad_lr": got.grad_lr,
            }
        )

    return run


def _recorded_augment(images: Tensor, batches: list[Tensor], hyper: Mapping[str, Any]) -> matching.Augment:
    """DSA as in the published loop: from ``manual_seed(seed + 2)`` on, a permutation a pass, then a step's draws.

    The numbers are drawn once, in that order, and replayed by name.
    """
    torch.manual_seed(int(hyper["seed"]) + 2)
    recorded: list[list[Tensor]] = []
    passes = -(-len(images) // (hyper.get("batch_syn") or len(images)))
    strategy = hyper.get("strategy", "color_crop_cutout_flip_scale_rotate")
    for n, batch in enumerate(batches):
        if n % passes == 0:
            torch.randperm(len(images))
        drawn: list[Tensor] = []
        live = augment.generator_draw()

        def note(
            name: str, shape: tuple[int, ...], high: int | None = None, live: Any = live, drawn: Any = drawn
        ) -> Tensor:
            drawn.append(live(name, shape, high))
            return drawn[-1]

        augment.dsa(images[batch], strategy, note, align_corners=True)
        recorded.append(drawn)

    def replay(n: int, x: Tensor) -> Tensor:
        numbers = iter(recorded[n])
        return augment.dsa(x, strategy, lambda name, shape, high=None: next(numbers), align_corners=True)

    return replay


# ----------------------------------------------------------------------------------------------------------------- dsa


def _params(values: Mapping[str, Any]) -> augment.DSAParams:
    known = augment.DSAParams.__dataclass_fields__
    return augment.DSAParams(**{k: float(v) for k, v in values.items() if k in known})


_ONE_FUNCTION = {
    "rand_crop": "crop",
    "rand_cutout": "cutout",
    "rand_flip": "flip",
    "rand_scale": "scale",
    "rand_rotate": "rotate",
}


def rand_functions(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t, params = _tensors(arrays), _params(hyper["params"])
    siamese, align = bool(hyper["siamese"]), bool(hyper["align_corners"])
    results: dict[str, Any] = {}
    for function in hyper["functions"]:
        drawn = [v for k, v in sorted(t.items()) if k.startswith(f"{function}__draw")]
        # siamese: the published code broadcasts the first image's number
        drawn = [d.reshape(-1)[:1] if siamese else d.reshape(-1) for d in drawn]
        x = t["x"].clone().requires_grad_(True)
        if function in _ONE_FUNCTION:
            waiting = iter(drawn)

            def draw(
                name: str, shape: tuple[int, ...], high: int | None = None, waiting: Any = waiting, x: Tensor = x
            ) -> Tensor:
                # recorded integers are the shifts themselves; dsa adds the lower end of their range to its draw
                number = next(waiting)
                axis = 2 if name.endswith("rows") else 3
                return number + int(x.shape[axis] * params.ratio_crop_pad + 0.5) if name.startswith("crop") else number

            out = augment.dsa(
                x, _ONE_FUNCTION[function], draw, siamese=siamese, mode="M", align_corners=align, params=params
            )
        elif function == "rand_brightness":
            out = augment.brightness(x, drawn[0], params.brightness)
        elif function == "rand_saturation":
            out = augment.saturation(x, drawn[0], params.saturation)
        else:
            out = augment.contrast(x, drawn[0], params.contrast)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        (grad,) = torch.autograd.grad((out * weight).sum(), x)
        results |= {f"{function}__out": out, f"{function}__grad": grad}
    return _numpy(results)


def _published_dsa(x: Tensor, seed: int, hyper: Mapping[str, Any], **more: Any) -> Tensor:
    """One whole call as published: seed -1 reads the global generator, any other is siamese and seeds every draw."""
    siamese = seed != -1
    return augment.dsa(
        x,
        hyper.get("strategy", "color_crop_cutout_flip_scale_rotate"),
        augment.seeded_draw(seed) if siamese else augment.generator_draw(),
        siamese=siamese,
        mode=hyper.get("aug_mode", "S"),
        align_corners=bool(hyper.get("align_corners", True)),
        params=_params(hyper.get("params", {})),
        **more,
    )


def diff_augment(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t = _tensors(arrays)
    fyi = "FYI" in str(hyper.get("variant", ""))
    return _numpy(
        {
            f"out_{side[2:]}_seed{seed}": _published_dsa(t[side], int(seed), hyper, flip_first=fyi)
            for side in t
            if side.startswith("x_")
            for seed in hyper["seeds"]
        }
    )


def diff_augment_fyi(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t = _tensors(arrays)
    results: dict[str, Any] = {
        f"out_seed{seed}": _published_dsa(t["x"], int(seed), hyper, flip_first=True) for seed in hyper["seeds"]
    }
    if "batchaug_y" in hyper:
        labels = torch.tensor(hyper["batchaug_y"])
        results["batchaug_img"], results["batchaug_lab"] = augment.mirror_batch(t["x"], labels)
    return _numpy(results)


# ------------------------------------------------------------------------------------------------------------- base-dd


def _published_net(t: Mapping[str, Tensor], hyper: Mapping[str, Any], channels: int, im: Any) -> ConvNet:
    """The ConvNet of a case with its recorded weights, in the names the cases use for the options."""
    net = ConvNet(
        channels=channels,
        classes=int(hyper.get("num_classes", hyper.get("classes", 10))),
        width=int(hyper["net_width"]),
        depth=int(hyper["net_depth"]),
        activation=hyper.get("net_act", "relu"),
        norm=hyper.get("net_norm", "instancenorm"),
        pooling=hyper.get("net_pooling", "avgpooling"),
        im_size=im,
    )
    weights = {k.removeprefix("param_").replace("__", "."): v for k, v in t.items() if k.startswith("param_")}
    net.to(weights["classifier.weight"].dtype).load_state_dict(weights, strict=True)
    return net.train(hyper.get("mode", "train") == "train")


def match_loss(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t = _tensors(arrays)
    count = sum(name.startswith("real_") for name in t)
    real = [t[f"real_{i}"] for i in range(count)]
    syn = [t[f"syn_{i}"].requires_grad_(True) for i in range(count)]
    loss = matching.match_loss(real, syn, hyper["dis_metric"], float(hyper.get("eps", 1e-6)))
    grads = torch.autograd.grad(loss, syn, materialize_grads=True)
    return _numpy({"loss": loss, **{f"dloss_dsyn_{i}": g for i, g in enumerate(grads)}})


def convnet_forward(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t = _tensors(arrays)
    net = _published_net(t, hyper, int(hyper["channel"]), hyper["im_size"])
    return _numpy({"logits": net(t["x"]), "embed": net.embed(t["x"])})


def _classes(t: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Real images ``[C, B, ...]`` and synthetic ones as ``[C, ipc, ...]`` (rows are grouped by class)."""
    syn = t["x_syn"].requires_grad_(True)
    return t["x_real"], syn.reshape(int(hyper["classes"]), int(hyper["ipc"]), *syn.shape[1:])


def dc_outer_step(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t = _tensors(arrays)
    real, syn = _classes(t, hyper)
    net = _published_net(t, hyper, real.shape[2], tuple(real.shape[3:]))
    loss = torch.stack(
        [
            matching.gradient_matching(
                net,
                (real[c], torch.full((len(real[c]),), c)),
                (syn[c], torch.full((len(syn[c]),), c)),
                hyper.get("dis_metric", "ours"),
            )
            for c in range(len(real))
        ]
    ).sum()
    (grad,) = torch.autograd.grad(loss, t["x_syn"])
    return _numpy({"loss": loss, "grad_x_syn": grad})


def dm_loss(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t = _tensors(arrays)
    real, syn = _classes(t, hyper)
    net = _published_net(t, hyper, real.shape[2], tuple(real.shape[3:]))
    mixed = "batch" in str(hyper.get("net_norm", ""))
    loss = matching.mean_matching(net.embed, real, syn, together=mixed).sum()
    (grad,) = torch.autograd.grad(loss, t["x_syn"])
    return _numpy({"loss": loss, "grad_x_syn": grad})


def get_loops(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    rows = [matching.loops_for(int(ipc)) for ipc in np.atleast_1d(arrays["ipc"])]
    return {"outer_inner": np.array(rows, dtype=np.int64)}


# ----------------------------------------------------------------------------------------------------------------- zca


def whitening(arrays: Arrays, hyper: Mapping[str, Any]) -> dict[str, np.ndarray]:
    t = _tensors(arrays)
    fitted = zca.fit_zca(t["X"], float(hyper["eps"]), unbiased=bool(hyper.get("unbiased", True)))
    other = fitted.apply(t["Y"])
    return _numpy(
        {
            "X_white": fitted.apply(t["X"]),
            "Y_white": other,
            "Y_back": fitted.invert(other),
            "mean": fitted.mean,
            "W": fitted.matrix,
        }
    )


ADAPTERS: dict[str, Adapter] = {
    "zca:kornia/enhance/zca.py:ZCAWhitening": whitening,
    "dsa:utils.py:rand_functions": rand_functions,
    "dsa:utils.py:DiffAugment": diff_augment,
    "dsa:MTT/utils.py:DiffAugment_FYI+BatchAug": diff_augment_fyi,
    "tesla:distill.py:tesla_iteration": _trajectory("first_order", "released"),
    "mtt:distill.py:mtt_iteration": _trajectory("exact", "paper"),
    "base-dd:utils.py:match_loss": match_loss,
    "base-dd:networks.py:ConvNet.forward": convnet_forward,
    "base-dd:main.py:dc_outer_step": dc_outer_step,
    "base-dd:main_DM.py:dm_loss": dm_loss,
    "base-dd:utils.py:get_loops": get_loops,
    "guided-diffusion:diffusion_distillation/dpm.py:Model.training_losses": guided_training_losses,
    "guided-diffusion:diffusion_distillation/dpm.py:Model.sample_loop": guided_sample_loop,
}
