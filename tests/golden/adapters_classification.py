"""Adapters of classification systems: stored labels, weights of teachers, graphs of tokens, searches, landmarks, ridges."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import functional as F
from limbeck.functional.kernel_ridge import self_distilled_ridge
from limbeck.functional.label_forms import compress_labels, recover_labels
from limbeck.functional.landmarks import assistive_values, fit_shapes, main_values, soft_landmarks
from limbeck.functional.mixing import mix_pairs
from limbeck.functional.relation import channel_correlation, gram
from limbeck.functional.schedule import constant, cosine, linear
from limbeck.functional.token_graph import context_distance, global_relation, local_relation, token_graph
from limbeck.functional.trilateral import trilateral_state, wls_weight
from limbeck.functional.views import cutmix_boxes, paste


def _tensor(arrays: Any, name: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[name]))


def _grad(x: Tensor) -> np.ndarray:
    assert x.grad is not None
    return np.asarray(x.grad.numpy())


def _out(**found: Tensor) -> dict[str, np.ndarray]:
    return {f"out_{name}": x.detach().numpy() for name, x in found.items()}


# --------------------------------------------------------------------------------------------------------------- FerKD


def stored_labels(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    prob, logits = _tensor(arrays, "in_prob"), _tensor(arrays, "in_logits").requires_grad_()
    name, k = str(hyper["label_type_generate"]), 5
    if "_k" in name:
        name, k = name.rsplit("_k", 1)[0], int(name.rsplit("_k", 1)[1])
    assert str(hyper["label_type_train"]).startswith(name)
    stored = compress_labels(prob, name, k)  # type: ignore[arg-type]
    labels = recover_labels(stored, int(hyper["n_classes"]), name)  # type: ignore[arg-type]
    temperature = float(hyper["temp"])
    loss = F.cross_entropy(logits / temperature, labels).mean()
    loss.backward()
    return _out(quantized=stored, recovered=labels, loss=loss) | {"out_grad_logits": _grad(logits)}


def batch_mixing(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    x, soft, perm = (_tensor(arrays, f"in_{n}") for n in ("images", "soft", "perm"))
    draw = np.random.RandomState(int(hyper["numpy_seed"]))  # the released code draws from numpy's global generator
    draw.rand(2)  # whether to mix, and which of the two
    own = torch.arange(len(x))
    if hyper["mode"] == "mixup":
        share = torch.full((len(x),), draw.beta(0.8, 0.8))
        mixed = mix_pairs(x, share, own, perm)
    else:
        lam = draw.beta(1.0, 1.0)
        centre = [draw.randint(x.shape[2]), draw.randint(x.shape[3])]
        boxes = cutmix_boxes(
            torch.full((len(x),), lam, dtype=torch.float64), torch.tensor([centre] * len(x)), (x.shape[2], x.shape[3])
        )
        mixed = paste(x, x[perm], boxes)
        first, left, last, right = boxes[0].tolist()
        share = torch.full((len(x),), 1 - (last - first) * (right - left) / (x.shape[2] * x.shape[3]))
    return _out(mixed=mixed, soft_mixed=mix_pairs(soft, share, own, perm))


# ---------------------------------------------------------------------------------------------------------------- SSLD


def ssld(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    student, teacher = _tensor(arrays, "in_s"), _tensor(arrays, "in_t")
    hyper.same("class_num", student.shape[1])
    temperature, classes = float(hyper["temperature"]), student.shape[1]
    found = {}
    for name, eps, times in (("js_old", "eps_old", 1), ("dml", "eps_new", 1), ("dml_sum", "eps_new", classes)):
        z = student.clone().requires_grad_()
        values = F.half_jeffreys(z, teacher, eps=float(hyper[eps]), temperature=temperature, scale_t2=False)
        loss = times * values.mean()
        loss.backward()
        found |= {f"out_{name}": loss.detach().numpy(), f"out_grad_{name}": _grad(z)}
    z = student.clone().requires_grad_()
    loss = F.soft_cross_entropy(z, teacher).mean()
    loss.backward()
    return found | {"out_soft_ce": loss.detach().numpy(), "out_grad_soft_ce": _grad(z)}


# ------------------------------------------------------------------------------------------- guided self-distillation


def ridge(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("kernel")
    x, y, there = (_tensor(arrays, f"in_{n}") for n in ("x_train", "y_train", "x_eval"))

    def kernel(a: Tensor) -> Tensor:
        return (-float(hyper["rbf_gamma"]) * torch.cdist(a, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2).exp()

    found = self_distilled_ridge(
        kernel(x), y, ridge=float(hyper["lambd"]), weight=float(hyper["alpha"]), steps=int(hyper["steps"])
    )
    other = kernel(there)
    return _out(
        pred=(other @ found.coefficients)[..., 0],
        pred_inf=(other @ found.limit)[:, 0],
        y_distill=found.fitted[..., 0],
        b_diag=found.diagonals.flip(1),
        b_inf=found.limit_diagonal.flip(0),
    )


def deep_step(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("model")
    x, y = _tensor(arrays, "in_x"), _tensor(arrays, "in_y_onehot")
    weight, bias = (_tensor(arrays, f"in_{n}").requires_grad_() for n in ("weight", "bias"))
    alpha, rho = float(hyper["alpha"]), float(hyper["reg_coef"])

    def gap(target: Tensor) -> Tensor:
        prob = nn.functional.linear(x, weight, bias).softmax(1)
        return F.squared_error(prob, target).mean() / y.shape[1]

    if hyper["distill"]:
        with torch.no_grad():
            teacher = nn.functional.linear(
                x, _tensor(arrays, "in_teacher_weight"), _tensor(arrays, "in_teacher_bias")
            ).softmax(1)
        loss = alpha * gap(y) + (1 - alpha) * gap(teacher)
    else:
        arrays.get("in_teacher_weight"), arrays.get("in_teacher_bias")
        loss = gap(y)
    loss = loss + rho * (weight.norm() + bias.norm())
    loss.backward()
    return _out(loss=loss) | {"out_grad_weight": _grad(weight), "out_grad_bias": _grad(bias)}


# ------------------------------------------------------------------------------------------------------------- TGeo-KD


def trilateral(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("activation", "hidden")
    z_s, z_t, labels = (
        _tensor(arrays, "in_z_s").requires_grad_(),
        _tensor(arrays, "in_z_t"),
        _tensor(arrays, "in_labels"),
    )
    classes, temperature = int(hyper["num_classes"]), float(hyper["temperature"])
    s, t, g = (_tensor(arrays, f"in_{n}") for n in ("student_prob", "teacher_prob", "onehot"))
    assert g.shape[1] == classes
    means = torch.stack(
        [t[labels == c].mean(0) if (labels == c).any() else t.new_zeros(classes) for c in range(classes)]
    )
    state = trilateral_state(s, t, g, means[labels])
    hidden = state
    for i in (1, 2, 3):
        hidden = nn.functional.linear(hidden, _tensor(arrays, f"in_w{i}"), _tensor(arrays, f"in_b{i}"))
        hidden = nn.functional.leaky_relu(hidden, 0.01) if i < 3 else hidden.sigmoid()
    alpha = hidden[:, 0]
    kd = F.kl(z_s, z_t, temperature=temperature, scale_t2=False)
    gt = F.cross_entropy(z_s.softmax(1), labels)  # of probabilities, as released
    loss = (alpha * temperature**2 * kd + (1 - alpha) * gt).mean()
    loss.backward()
    return _out(state=state, alpha=alpha, kd=kd, gt=gt, loss=loss) | {"out_grad_z_s": _grad(z_s)}


def wls(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s, t, labels = (_tensor(arrays, f"in_{n}") for n in ("student_prob", "teacher_prob", "labels"))
    return _out(alpha_wls=wls_weight(s, t, labels))


# ----------------------------------------------------------------------------------------------------------------- TRG


def _sigma(hyper: Any) -> Any:
    given = hyper["sigma"]
    return given if isinstance(given, str) else float(given)


def graph(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    found = token_graph(_tensor(arrays, "in_tokens"), int(hyper["k"]), sigma=_sigma(hyper), axis=hyper["knn_axis"])
    return _out(sigma=found.sigma, neighbours=found.neighbours.long(), adjacency=found.adjacency)


def _reduced(values: Tensor, how: str) -> Tensor:
    return {"mean": values.mean, "sum": values.sum}[how]()


def local_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    tokens = _tensor(arrays, "in_tokens_s").requires_grad_()
    settings: dict[str, Any] = {"k": int(hyper["k"]), "sigma": _sigma(hyper), "axis": hyper["knn_axis"]}
    s, t = token_graph(tokens, **settings), token_graph(_tensor(arrays, "in_tokens_t"), **settings)
    over: Any = hyper.get("softmax_over", "all")
    loss = _reduced(local_relation(s, t, direction=hyper["direction"], over=over), hyper["reduction"])
    loss.backward()
    return _out(adjacency_s=s.adjacency, adjacency_t=t.adjacency, loss=loss) | {"out_grad_tokens_s": _grad(tokens)}


def global_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    tokens, w_s, w_t = (_tensor(arrays, f"in_{n}").requires_grad_() for n in ("tokens_s", "weight_s", "weight_t"))
    s, t = tokens @ w_s.T, _tensor(arrays, "in_tokens_t") @ w_t.T
    loss = _reduced(global_relation(s, t, temperature=float(hyper["tau"])), hyper["reduction"])
    loss.backward()
    similarity = nn.functional.cosine_similarity(s[:, None], t[None], dim=-1)
    found = {"out_grad_tokens_s": _grad(tokens), "out_grad_weight_s": _grad(w_s), "out_grad_weight_t": _grad(w_t)}
    return _out(similarity=similarity, loss=loss) | found


def context_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s, t = _tensor(arrays, "in_features_s").requires_grad_(), _tensor(arrays, "in_features_t")
    loss = context_distance(s, t).mean()
    loss.backward()
    contexts = {n: (x @ x.transpose(1, 2) / x.shape[-1] ** 0.5).softmax(-1) for n, x in (("s", s), ("t", t))}
    found = _out(context_s=contexts["s"], context_t=contexts["t"], loss=loss)
    return found | {"out_grad_features_s": _grad(s)}


def temperatures(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    start, end, total = (float(hyper[n]) for n in ("tau_start", "tau_end", "epochs"))
    how = hyper["schedule"]
    if how == "constant":
        return {"out_tau": np.array([constant(e, total, value=start) for e in np.array(arrays["in_epoch"]).tolist()])}
    call = {"cosine": cosine, "linear": linear}[how]
    return {"out_tau": np.array([call(e, total, start=start, end=end) for e in np.array(arrays["in_epoch"]).tolist()])}


# -------------------------------------------------------------------------------------------------------------- DisWOT


def similarity(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s = _tensor(arrays, "in_f_s").requires_grad_()
    loss = gram(s.flatten(1), _tensor(arrays, "in_f_t").flatten(1)).mean()
    loss.backward()
    return {"out_loss_sp": loss.detach().numpy()[None], "out_grad_f_s": _grad(s)}


def correlation(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    s = _tensor(arrays, "in_f_s").requires_grad_()
    loss = channel_correlation(s, _tensor(arrays, "in_f_t")).mean()
    loss.backward()
    return {"out_loss_ickd": loss.detach().numpy(), "out_grad_f_s": _grad(s)}


def score(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("teacher_depth", "student_depth", "num_classes", "init")  # of networks that the arrays come from
    sp = gram(_tensor(arrays, "in_feat_s").flatten(1), _tensor(arrays, "in_feat_t").flatten(1)).mean()
    ickd = channel_correlation(_tensor(arrays, "in_gradw_s"), _tensor(arrays, "in_gradw_t")).mean()
    return {"out_loss_sp": sp.numpy()[None], "out_loss_ickd": ickd.numpy(), "out_score": -(sp + ickd).numpy()[None]}


# ---------------------------------------------------------------------------------------------------------- landmarks


def landmark_loss(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    p = _tensor(arrays, "in_x_pr").requires_grad_()
    g, tough, tolerant = (_tensor(arrays, f"in_x_{n}") for n in ("gt", "tough", "tol"))
    boundary = float(hyper["boundary"])

    def assist(teacher: Tensor, far: str, near: str) -> Tensor:
        return assistive_values(p, g, teacher, far=float(hyper[far]), near=float(hyper[near]), boundary=boundary).mean()

    terms = {
        "main": main_values(p, g, tolerant, slope=float(hyper["linear_slope"])).mean(),
        "tough": assist(tough, "alpha_tough", "alpha_mi_tough"),
        "tol": assist(tolerant, "alpha_tol", "alpha_mi_tol"),
    }
    terms = {name: float(hyper[f"{name}_loss_weight"]) * x for name, x in terms.items()}  # recorded with their weights
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    return _out(loss=loss, **{f"loss_{n}": x for n, x in terms.items()}) | {"out_grad_x_pr": _grad(p)}


def shapes(arrays: Any, hyper: Any) -> dict[str, np.ndarray]:
    hyper.prose("clip")
    assert hyper["correction"]
    model = fit_shapes(_tensor(arrays, "in_landmarks_train"), float(hyper["variance_percent"]) / 100)
    soft = soft_landmarks(_tensor(arrays, "in_landmarks"), model)
    return _out(soft=soft) | {"out_n_components": np.array(len(model.variances))}


ADAPTERS = {
    "ferkd:FKD/utils_FKD.py:label_quantization+Recover_soft_label+Soft_CrossEntropy": stored_labels,
    "ferkd:FKD/utils_FKD.py:mixup_cutmix": batch_mixing,
    "ssld:ppcls/loss:JSDivLoss+DMLLoss+CELoss": ssld,
    "guided-self-distillation:toy_example.ipynb:SelfDistill.distill+get_B": ridge,
    "guided-self-distillation:self_distiller.py:LitResnet.training_step": deep_step,
    "tgeo-kd:src/fusion_ratio_bilevel.py:state_design+Controller+student_loss": trilateral,
    "tgeo-kd:src/baseline_WLS.py:alpha": wls,
    "trg:trg:token_graph": graph,
    "trg:trg:local_relation_loss": local_loss,
    "trg:trg:global_relation_loss": global_loss,
    "trg:trg:contextual_loss": context_loss,
    "trg:trg:temperature_schedule": temperatures,
    "diswot:distiller_zoo/SP.py:Similarity.similarity_loss": similarity,
    "diswot:distiller_zoo/ICKD.py:ICKDLoss.batch_loss": correlation,
    "diswot:exps/parse_nb201_distill.py:compute_diswot_procedure": score,
    "landmark-kd:custom_Losses.py:Custom_losses.kd_loss": landmark_loss,
    "landmark-kd:pca_utility.py:calculate_b_vector": shapes,
}
