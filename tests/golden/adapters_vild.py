"""Adapters of ViLD's vectors: class and distillation loss, the region head in its modes, joined scores."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.functional.regions import embedding_distance, joint_scores, region_cross_entropy
from limbeck.networks.regions import RegionBranch, RegionHead


def _tensor(a: Any) -> Tensor:
    return torch.from_numpy(np.array(a))


def losses(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    logits, s = _tensor(arrays["logits"]).requires_grad_(), _tensor(arrays["student_feat"]).requires_grad_()
    f, boxes = _tensor(arrays["teacher_feat"]), _tensor(arrays["roi_boxes"])
    hyper.same("feat_dim", f.shape[-1])
    valid = boxes.amax(-1) > 0  # padded boxes are all zero
    hyper.same("invalid_rois", int((~valid[0]).sum()))
    masking = "zero" if hyper["mask_rare"] else "none"
    loss = region_cross_entropy(logits, _tensor(arrays["labels"]).long(), _tensor(arrays["base_mask"]), masking).mean()  # type: ignore[arg-type]
    loss.backward()
    gap = embedding_distance(s, f)
    matched = torch.where(valid, gap, 0.0).sum() / valid.sum().clamp_min(1)
    matched.backward()
    assert logits.grad is not None and s.grad is not None
    return {
        "class_loss": loss.detach().numpy(),
        "grad_logits": logits.grad.numpy(),
        "distill_loss": matched.detach().numpy(),
        "grad_student": s.grad.numpy(),
    }


def _fill(branch: RegionBranch, given: dict[str, Tensor], channels: int, size: int) -> None:
    """Weights as TensorFlow keeps them: (in, out), images with channels last."""
    order = sorted(given, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)])
    inner = [n for n in order if "predict" not in n and "project" not in n]
    layers = [m for m in branch.body if isinstance(m, (nn.Conv2d, nn.Linear))]
    kernels = [n for n in inner if n.endswith("/kernel") and given[n].ndim == 4]
    kernels += [n for n in inner if n.endswith("/kernel") and given[n].ndim == 2]
    norms = [m for m in branch.body if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    first = True
    for layer, name in zip(layers, kernels, strict=True):
        w = given[name]
        if w.ndim == 4:
            w, channels = w.permute(3, 2, 0, 1), w.shape[3]
        else:
            if first:
                w = w.view(size, size, channels, -1).permute(2, 0, 1, 3).reshape(w.shape)
                first = False
            w = w.T
        layer.weight.data.copy_(w)
        bias = given.get(name.removesuffix("kernel") + "bias")
        if layer.bias is not None:
            layer.bias.data.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
    for k, norm in enumerate(norms):
        for ours, theirs in (
            ("weight", "gamma"),
            ("bias", "beta"),
            ("running_mean", "moving_mean"),
            ("running_var", "moving_variance"),
        ):
            found = [n for n in inner if n.endswith(f"/{theirs}")]
            if len(found) == len(norms):
                getattr(norm, ours).data.copy_(given[found[k]])
    project = next(n for n in order if "project" in n and n.endswith("/kernel"))
    branch.project.weight.data.copy_(given[project].T)
    bias = given.get(project.removesuffix("kernel") + "bias")
    branch.project.bias.data.copy_(torch.zeros_like(branch.project.bias) if bias is None else bias)


def head(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    roi = _tensor(arrays["roi"])  # [B, R, h, w, c]
    n, r, size, _, channels = roi.shape
    given = {name[4:]: _tensor(arrays[name]) for name in arrays if name.startswith("var:")}
    classifier = [k for k in given if "predict" in k]
    two = str(hyper["mode"]) != "vanilla"
    further = re.compile(r"distill|image|(?:_\d)/|^(?!fc\d|project-to-clip|conv)")  # names of the second branch
    second = {k: v for k, v in given.items() if two and k not in classifier and further.search(k)}
    one = {k: v for k, v in given.items() if k not in second}
    training, agnostic = bool(hyper["is_training"]), bool(hyper["class_agnostic_bbox_pred"])
    convs, fcs, batch_norm = int(hyper["num_convs"]), int(hyper["num_fcs"]), bool(hyper["use_batch_norm"])
    text = given[next(k for k in classifier if k.endswith("class-predict/kernel") and "background" not in k)]
    background = given[next(k for k in classifier if "background" in k)]
    box = next(k for k in classifier if "box" in k and k.endswith("kernel"))
    conv_width = next((v.shape[3] for k, v in one.items() if v.ndim == 4), 1)
    width = next(v.shape[1] for k, v in one.items() if v.ndim == 2 and k not in classifier and "project" not in k)
    made = RegionHead(
        channels,
        size,
        text.shape[0],
        text.shape[1],
        two=two,
        convs=convs,
        conv_width=conv_width,
        fcs=fcs,
        width=width,
        norm="batch" if batch_norm else "none",
        temperature=float(hyper["temperature"]),
    )
    _fill(made.text_branch, one, channels, size)
    if made.image_branch is not None:
        _fill(made.image_branch, second, channels, size)
    made.name_classes(text.T)
    made.background.data.copy_(background.flatten())
    if not agnostic:  # boxes of every class: a wider layer of the same kind
        made.box = nn.Linear(made.box.in_features, given[box].shape[1])
    made.box.weight.data.copy_(given[box].T)
    made.box.bias.data.copy_(given[box.removesuffix("kernel") + "bias"])
    made.train(training and batch_norm)
    k = int(hyper["max_distill_rois"]) if training else 0
    x = roi.permute(0, 1, 4, 2, 3)
    own = x[:, : r - k]
    with torch.no_grad():
        found = made(own.flatten(0, 1))
        results = {
            "class_outputs": made.logits(found.embedding).view(n, r - k, -1),
            "box_outputs": found.offsets.view(n, r - k, -1),
        }
        if k:
            results["distill_feat"] = made.embed(x[:, r - k :].flatten(0, 1)).view(n, k, -1)
        elif two:
            e = made.embed(x.flatten(0, 1))
            results["distill_feat"] = e.view(n, r, -1)
            results["distill_class"] = made.image_logits(e).view(n, r, -1)
            results["distill_class_outputs"] = results["distill_class"]
    if not training:
        hyper.prose("max_distill_rois")
    return {name: value.numpy() for name, value in results.items()}


def ensemble(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("mask")
    z_text, z_image, base = (_tensor(arrays[n]) for n in ("class_logits", "distill_logits", "base_mask"))
    return {"scores": joint_scores(z_text, z_image, base).numpy()}


ADAPTERS = {
    "vild:modeling/vild_losses.py:FastrcnnClassLoss+distill_loss": losses,
    "vild:modeling/vild_head.py:ViLDFastrcnnHead.call": head,
    "vild:ops/postprocess_ops.py:GenericDetectionGenerator.ensemble": ensemble,
}
