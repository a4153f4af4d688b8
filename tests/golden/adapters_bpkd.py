"""Adapter of BPKD's vectors: masks, edge and body loss, their weighted sum and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from limbeck.functional.dense import edge_masks
from limbeck.methods.dense.bpkd import Bpkd


def bpkd_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    y = torch.from_numpy(np.array(arrays["labels"])).long()
    z_s, z_t = (torch.from_numpy(np.array(arrays[n])).movedim(1, -1) for n in ("student", "teacher"))  # classes last
    z_s = z_s.contiguous().requires_grad_()
    T, width, alpha = float(hyper["T"]), int(hyper["edge_width"]), hyper["alpha"]
    where = y != int(hyper["ignore_index"])
    body_weight, edge_weight = float(hyper["lambda_body"]), float(hyper["lambda_edge"])
    more = {"edge_count": hyper["edge_count"]} if "edge_count" in hyper else {}
    method = Bpkd(  # a weight of 0 would leave its term out
        weight_body=body_weight or 1.0,
        weight_edge=edge_weight or 1.0,
        alpha=[float(a) for a in alpha] if isinstance(alpha, (list, tuple)) else float(alpha),
        edge_width=width,
        temperature_edge=T,
        temperature_body=T,
        **more,
    )
    found = method.matched(z_s, z_t, y, where)
    edge, body = found["edge"].mean(), found["body"].mean()
    loss = body_weight * body + edge_weight * edge
    loss.backward()
    mask, valid = edge_masks(y, z_s.shape[-1], (z_s.shape[1], z_s.shape[2]), width=width, where=where)
    assert z_s.grad is not None
    return {
        "edge_mask": mask.movedim(-1, 1).numpy(),
        "valid_mask": valid.unsqueeze(1).numpy(),
        "loss_edge": edge.detach().numpy(),
        "loss_body": body.detach().numpy(),
        "loss_bpkd": loss.detach().numpy(),
        "grad_student": z_s.grad.movedim(-1, 1).numpy(),
    }


ADAPTERS = {"bpkd:src/distillers/bpkd.py:BPKD.bpkd_loss": bpkd_loss}
