"""Adapters from recorded vectors to limbeck, for diffusion and for the distillation of data sets.

Each computes what the published code computed, with the variants that code had, from the arrays and hyperparameters
of any case of its function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.functional import augment, diffusion, matching, zca
from limbeck.networks import ConvNet

Arrays = Mapping[str, np.ndarray]
Results = dict[str, np.ndarray]
Hyper = Any  # ``Read`` of the file that loads this one: a mapping with ``prose`` and ``same``
Adapter = Callable[[Arrays, Hyper], Results]


class _Tensors(Mapping[str, Tensor]):
    """The arrays as tensors, each made when it is first asked for."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = torch.from_numpy(np.array(self._arrays[name]))
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _numpy(results: Mapping[str, Any]) -> Results:
    return {
        name: value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in results.items()
    }


def _choice(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    if value not in known:
        raise ValueError(f"hyperparameter {name!r} is {value!r}; the adapter knows {', '.join(known)}")
    return known[value]


# ----------------------------------------------------------------------------------------------------- guided-diffusion

_SCHEDULES = {"cosine": diffusion.CosineSchedule, "vp_linear": diffusion.LinearSchedule}
_TOY = "a*tanh(z)+b*z*(logsnr/20)+c*cos(3z)"


def _schedule(hyper: Hyper) -> diffusion.Schedule:
    """``"cosine logsnr_min=-20 logsnr_max=20"``, the published default where a case does not say."""
    name, *bounds = str(hyper.get("schedule", "cosine")).split()
    values = {key: float(value) for key, value in (part.split("=") for part in bounds)}
    values |= {key: float(hyper[key]) for key in ("logsnr_min", "logsnr_max") if key in hyper}
    schedule: diffusion.Schedule = _choice("schedule", name, _SCHEDULES)(**values)
    return schedule


def _toy(hyper: Hyper, who: str, kind: str) -> Callable[..., Tensor]:
    """The closed-form network of the cases: ``a tanh(z) + b z (lambda/20) + c cos(3z)``, on the last axis as channels.

    ``"both"``, which no open case has, is that output twice.
    """
    text = str(hyper.get("toy", "as above"))
    if not text.startswith("as ") and _TOY not in text.replace(" ", ""):
        hyper.doubt(f"hyperparameter 'toy' is {text!r}; the adapter knows {_TOY}")
    numbers = {key: float(hyper[who][key]) for key in "abc"}

    def predict(z: Tensor, logsnr: Tensor, a: Tensor | float = numbers["a"]) -> Tensor:
        lam = logsnr.reshape(-1, *([1] * (z.ndim - 1)))
        out = a * torch.tanh(z) + numbers["b"] * z * (lam / 20.0) + numbers["c"] * torch.cos(3.0 * z)
        return torch.cat([out, out], dim=-1) if kind == "both" else out

    return predict


def _step_index(t: Mapping[str, Tensor], steps: int) -> Tensor:
    """``i`` of ``u = (i + 1) / N``; a case may give either or both."""
    if "u" not in t:
        return t["i"]
    i = t["u"] * steps - 1.0
    if "i" in t and not torch.allclose(i, t["i"].to(i.dtype), atol=1e-5):
        raise ValueError("array 'u' is not (i + 1) / num_steps")
    return t.get("i", i)


def guided_training_losses(arrays: Arrays, hyper: Hyper) -> Results:
    t, schedule = _Tensors(arrays), _schedule(hyper)
    steps, kind, weight = int(hyper["num_steps"]), hyper["mean_type"], hyper["mean_loss_weight_type"]
    hyper.prose("logvar_type")  # of the noisy sampler alone
    times = diffusion.halving_times(_step_index(t, steps), steps)
    z = diffusion.diffuse(t["x"], t["eps"], schedule.logsnr(times[0]))
    target = diffusion.two_step_target(
        _toy(hyper, "teacher", kind),
        z,
        times,
        schedule,
        kind,
        clip_x=bool(hyper.get("clip_x", False)),
        channel_dim=-1,
    )
    a = torch.tensor(float(hyper["student"]["a"]), dtype=t["x"].dtype, requires_grad=True)
    out = _toy(hyper, "student", kind)(z, target.logsnr, a)
    predicted = diffusion.to_x_eps(out, z, target.logsnr, kind, channel_dim=-1)
    errors = diffusion.prediction_errors(predicted, diffusion.XEps(target.x, target.eps), target.logsnr)
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
    if name == "medium":
        return float(part)
    return float(_choice("logvar_type", name, {"small": 0.0, "large": 1.0}))


def guided_sample_loop(arrays: Arrays, hyper: Hyper) -> Results:
    t, kind, schedule = _Tensors(arrays), hyper["mean_type"], _schedule(hyper)
    predict = _toy(hyper, "params", kind)
    steps, clip_x = int(hyper["num_steps"]), bool(hyper.get("clip_x", True))
    noisy = _choice("sampler", hyper.get("sampler", "ddim"), {"ddim": False, "noisy": True})
    variance = _variance(str(hyper.get("logvar_type", "small")))
    if not noisy:
        x = diffusion.ddim_sample(predict, t["z1"], steps, schedule, kind, clip_x=clip_x, channel_dim=-1)
        return _numpy({"x": x})
    # the one other input: [steps, B, ...], a standard normal draw per step
    (draws,) = (t[name] for name in t if name not in ("z1", "x"))
    x = diffusion.ancestral_sample(
        predict,
        t["z1"],
        steps,
        schedule,
        kind,
        lambda j, shape: draws[j],
        variance=variance,
        clip_x=clip_x,
        channel_dim=-1,
    )
    return _numpy({"x": x})


# --------------------------------------------------------------------------------------------------------- mtt, tesla


def _student(t: Mapping[str, Tensor], hyper: Hyper) -> ConvNet:
    """The ConvNet of a trajectory case, whose weights are the flat vectors."""
    images = t["image_syn"]
    im = tuple(images.shape[2:])
    net = ConvNet(
        channels=images.shape[1],
        classes=int(hyper["nc"]),
        width=int(hyper["w"]),
        depth=int(hyper["d"]),
        activation=hyper.get("net_act", "relu"),
        norm=hyper.get("net_norm", "instancenorm"),
        pooling=hyper.get("net_pooling", "avgpooling"),
        im_size=im,
    ).to(images.dtype)
    for module in net.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.eps = float(hyper.get("norm_eps", 1e-5))
    hyper.prose("param_names", "seed")
    hyper.same("param_shapes", [list(p.shape) for p in net.parameters()])
    hyper.same("im", im[0] if im[0] == im[1] else list(im))
    hyper.same("ipc", len(images) // int(hyper["nc"]))
    hyper.same("dtype", str(images.dtype))
    hyper.same("lr", float(t["syn_lr"]))
    return net


def _trajectory(mode: matching.Mode, variant: matching.Variant) -> Adapter:
    def run(arrays: Arrays, hyper: Hyper) -> Results:
        t = _Tensors(arrays)
        net = _student(t, hyper)
        images, labels, steps, batch = t["image_syn"], t["label"], int(hyper["T"]), hyper.get("batch_syn")
        if hyper.get("teacher_label"):
            with torch.no_grad():
                target_net = matching.unflatten(t["target"], net)
                labels = torch.func.functional_call(net, target_net, (images,)).softmax(1)
        hyper.prose("label", "labels")
        for name in ("soft", "soft_label", "soft_labels", "label_soft"):
            if name in hyper and bool(hyper[name]) != labels.is_floating_point():
                hyper.doubt(f"hyperparameter {name!r} is {hyper[name]!r}, but the labels are {labels.dtype}")
        labels = labels.to(images.dtype) if labels.is_floating_point() else labels.long()
        batches = matching.syn_batches(lambda k: t["perms"][k].long(), len(images), steps, batch)
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
                "grad_lr": got.grad_lr.reshape(t["syn_lr"].shape),
            }
        )

    return run


_STRATEGY = "color_crop_cutout_flip_scale_rotate"


def _recorded_augment(images: Tensor, batches: list[Tensor], hyper: Hyper) -> matching.Augment:
    """DSA as in the published loop: from ``manual_seed(seed + 2)`` on, a permutation a pass, then a step's draws.

    The numbers are drawn once, in that order, and replayed by name.
    """
    generator = torch.Generator().manual_seed(int(hyper["seed"]) + 2)
    live = augment.generator_draw(generator)
    recorded: list[list[Tensor]] = []
    passes = -(-len(images) // (hyper.get("batch_syn") or len(images)))
    strategy, params = hyper.get("strategy", _STRATEGY), _params(hyper.get("params", {}))
    mode, align = hyper.get("aug_mode", "S"), bool(hyper.get("align_corners", True))

    def change(x: Tensor, draw: augment.Draw) -> Tensor:
        return augment.dsa(x, strategy, draw, mode=mode, align_corners=align, params=params)

    for n, batch in enumerate(batches):
        if n % passes == 0:
            torch.randperm(len(images), generator=generator)
        drawn: list[Tensor] = []

        def note(name: str, shape: tuple[int, ...], high: int | None = None, drawn: Any = drawn) -> Tensor:
            drawn.append(live(name, shape, high))
            return drawn[-1]

        change(images[batch], note)
        recorded.append(drawn)

    def replay(n: int, x: Tensor) -> Tensor:
        numbers = iter(recorded[n])
        return change(x, lambda name, shape, high=None: next(numbers))

    return replay


# ----------------------------------------------------------------------------------------------------------------- dsa


def _params(values: Any, siamese: bool = False) -> augment.DSAParams:
    """Strengths by their published names; the state of a call (its seed, its mode) comes from elsewhere."""
    known = augment.DSAParams.__dataclass_fields__
    params = augment.DSAParams(**{name: float(values[name]) for name in known if name in values})
    if values:
        # noise is a strength of the older, not differentiable augmentation
        values.prose("aug_mode", "latestseed", "batchmode", "ratio_noise")
        values.same("Siamese", siamese)
    return params


def _by_name(function: str, x: Tensor, numbers: list[Tensor], params: augment.DSAParams, align: bool) -> Tensor:
    """One published function with its recorded draws; recorded integers are the shifts and offsets themselves."""
    calls: dict[str, Callable[..., Tensor]] = {
        "rand_brightness": lambda u: augment.brightness(x, u, params.brightness),
        "rand_saturation": lambda u: augment.saturation(x, u, params.saturation),
        "rand_contrast": lambda u: augment.contrast(x, u, params.contrast),
        "rand_crop": lambda rows, columns: augment.translate(x, rows, columns),
        "rand_cutout": lambda rows, columns: augment.cutout(x, rows, columns, params.ratio_cutout),
        "rand_flip": lambda u: augment.flip(x, u, params.prob_flip),
        "rand_scale": lambda u_x, u_y: augment.scale(x, u_x, u_y, params.ratio_scale, align_corners=align),
        "rand_rotate": lambda u: augment.rotate(x, u, params.ratio_rotate, align_corners=align),
    }
    out: Tensor = _choice("functions", function, calls)(*numbers)
    return out


def rand_functions(arrays: Arrays, hyper: Hyper) -> Results:
    t, siamese, align = _Tensors(arrays), bool(hyper["siamese"]), bool(hyper["align_corners"])
    params = _params(hyper.get("params", {}), siamese)
    hyper.prose("seed")  # it made the draws, which the case holds
    results: dict[str, Any] = {}
    for function in hyper["functions"]:
        drawn = [t[name].reshape(-1) for name in sorted(t) if name.startswith(f"{function}__draw")]
        if siamese:  # the published code broadcasts the first image's number
            drawn = [d[:1] for d in drawn]
        x = t["x"].clone().requires_grad_(True)
        out = _by_name(function, x, drawn, params, align)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        (grad,) = torch.autograd.grad((out * weight).sum(), x)
        results |= {f"{function}__out": out, f"{function}__grad": grad}
    return _numpy(results)


_ALIGNED = {"DC": False, "DSA": False, "DM": False, "MTT": True, "FTD": True, "TESLA": True, "FYI": True}


def _published_calls(t: Mapping[str, Tensor], hyper: Hyper, default: str) -> dict[str, Tensor]:
    """Whole calls as published, siamese, one a seed: ``out_a_seed3`` of the array ``x_a``, ``out_seed3`` of ``x``.

    ``variant`` names the code, or several of a kind (``"MTT/FTD"``): FYI flips first, the others differ in alignment.
    """
    strategy, mode = hyper.get("strategy", _STRATEGY), hyper.get("aug_mode", "S")
    variant = str(hyper.get("variant", default))
    codes = [code for code in _ALIGNED if code in re.findall(r"\w+", variant.upper())]
    if not codes:
        _choice("variant", variant, _ALIGNED)
    align = bool(hyper["align_corners"]) if "align_corners" in hyper else _ALIGNED[codes[0]]
    params = _params(hyper.get("params", {}), siamese=True)
    hyper.prose("chosen_by_torch_rng")  # follows from the seeds
    if any(int(seed) < 0 for seed in hyper["seeds"]):
        raise ValueError("a seed of -1 reads the global generator, whose state no case gives")
    return {
        f"out{name.removeprefix('x')}_seed{seed}": augment.dsa(
            t[name],
            strategy,
            augment.seeded_draw(int(seed)),
            siamese=True,
            mode=mode,
            align_corners=align,
            flip_first="FYI" in codes,
            params=params,
        )
        for name in t
        if name == "x" or name.startswith("x_")
        for seed in hyper["seeds"]
    }


def diff_augment(arrays: Arrays, hyper: Hyper) -> Results:
    return _numpy(_published_calls(_Tensors(arrays), hyper, "DC"))


def diff_augment_fyi(arrays: Arrays, hyper: Hyper) -> Results:
    t = _Tensors(arrays)
    results = _published_calls(t, hyper, "FYI")
    if "batchaug_y" in hyper:
        labels = torch.tensor(hyper["batchaug_y"])
        results["batchaug_img"], results["batchaug_lab"] = augment.mirror_batch(t["x"], labels)
    return _numpy(results)


# ------------------------------------------------------------------------------------------------------------- base-dd


def _published_net(t: Mapping[str, Tensor], hyper: Hyper, images: Tensor) -> ConvNet:
    """The ConvNet of a case with its recorded weights, in the names the cases use for the options."""
    weights = {k.removeprefix("param_").replace("__", "."): t[k] for k in t if k.startswith("param_")}
    classes, im = len(weights["classifier.bias"]), list(images.shape[2:])
    net = ConvNet(
        channels=images.shape[1],
        classes=classes,
        width=int(hyper["net_width"]),
        depth=int(hyper["net_depth"]),
        activation=hyper.get("net_act", "relu"),
        norm=hyper.get("net_norm", "instancenorm"),
        pooling=hyper.get("net_pooling", "avgpooling"),
        im_size=im,
    )
    hyper.same("channel", images.shape[1])
    hyper.same("num_classes", classes)
    hyper.same("classes", classes)
    hyper.same("im_size", im if isinstance(hyper.get("im_size"), list) else im[0])
    net.to(weights["classifier.weight"].dtype).load_state_dict(weights, strict=True)
    return net.train(_choice("mode", hyper.get("mode", "train"), {"train": True, "eval": False}))


def match_loss(arrays: Arrays, hyper: Hyper) -> Results:
    t = _Tensors(arrays)
    count = sum(name.startswith("real_") for name in t)
    real = [t[f"real_{i}"] for i in range(count)]
    syn = [t[f"syn_{i}"].requires_grad_(True) for i in range(count)]
    loss = matching.match_loss(real, syn, hyper.get("dis_metric", "ours"), float(hyper.get("eps", 1e-6)))
    grads = torch.autograd.grad(loss, syn, materialize_grads=True)
    return _numpy({"loss": loss, **{f"dloss_dsyn_{i}": g for i, g in enumerate(grads)}})


def convnet_forward(arrays: Arrays, hyper: Hyper) -> Results:
    t = _Tensors(arrays)
    net = _published_net(t, hyper, t["x"])
    return _numpy({"logits": net(t["x"]), "embed": net.embed(t["x"])})


def _classes(t: Mapping[str, Tensor], hyper: Hyper) -> tuple[Tensor, Tensor]:
    """Real images ``[C, B, ...]`` and synthetic ones as ``[C, ipc, ...]`` (rows are grouped by class)."""
    real, syn = t["x_real"], t["x_syn"].requires_grad_(True)
    hyper.same("batch_real", real.shape[1])
    hyper.same("ipc", len(syn) // len(real))
    return real, syn.reshape(len(real), -1, *syn.shape[1:])


def dc_outer_step(arrays: Arrays, hyper: Hyper) -> Results:
    t = _Tensors(arrays)
    real, syn = _classes(t, hyper)
    net = _published_net(t, hyper, real[0])
    for module in net.modules():  # as published: their statistics are taken beforehand, and held
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    metric = hyper.get("dis_metric", "ours")
    loss = torch.stack(
        [
            matching.gradient_matching(
                net,
                (real[c], torch.full((len(real[c]),), c)),
                (syn[c], torch.full((len(syn[c]),), c)),
                metric,
            )
            for c in range(len(real))
        ]
    ).sum()
    (grad,) = torch.autograd.grad(loss, t["x_syn"])
    return _numpy({"loss": loss, "grad_x_syn": grad})


def dm_loss(arrays: Arrays, hyper: Hyper) -> Results:
    t = _Tensors(arrays)
    real, syn = _classes(t, hyper)
    net = _published_net(t, hyper, real[0])
    mixed = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    loss = matching.mean_matching(net.embed, real, syn, together=mixed).sum()
    (grad,) = torch.autograd.grad(loss, t["x_syn"])
    return _numpy({"loss": loss, "grad_x_syn": grad})


def get_loops(arrays: Arrays, hyper: Hyper) -> Results:
    rows = [matching.loops_for(int(ipc)) for ipc in np.atleast_1d(arrays["ipc"])]
    return {"outer_inner": np.array(rows, dtype=np.int64)}


# ----------------------------------------------------------------------------------------------------------------- zca


def whitening(arrays: Arrays, hyper: Hyper) -> Results:
    """Items lie along ``dim`` (0 by default); what comes back has the shape of what was given."""
    t, dim = _Tensors(arrays), int(hyper.get("dim", 0))
    hyper.prose("compute_inv")  # always computed here
    fit = t["X"].movedim(dim, 0)
    fitted = zca.fit_zca(fit, float(hyper["eps"]), unbiased=bool(hyper.get("unbiased", True)))
    other = fitted.apply(t["Y"].movedim(dim, 0))
    return _numpy(
        {
            "X_white": fitted.apply(fit).movedim(0, dim),
            "Y_white": other.movedim(0, dim),
            "Y_back": fitted.invert(other).movedim(0, dim),
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
