"""The adapters beyond the recorded cases: other settings, shapes and dtypes, against slow references of their own.

Every reference here is written from the published formulas with loops or with torch's own operations in float64, and
shares no line with limbeck. Cases that no adapter can answer must be refused by name.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).parent


def _sibling(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"limbeck_golden_{name}_again", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ADAPTERS = _sibling("adapters").ADAPTERS
NKD = ADAPTERS["nkd-uskd:mmcls/models/dis_losses/nkd.py:NKDLoss.forward"]
USKD = ADAPTERS["nkd-uskd:mmcls/models/dis_losses/uskd.py:USKDLoss.forward"]
TRAINING = ADAPTERS["guided-diffusion:diffusion_distillation/dpm.py:Model.training_losses"]
SAMPLING = ADAPTERS["guided-diffusion:diffusion_distillation/dpm.py:Model.sample_loop"]
MTT = ADAPTERS["mtt:distill.py:mtt_iteration"]
TESLA = ADAPTERS["tesla:distill.py:tesla_iteration"]
FUNCTIONS = ADAPTERS["dsa:utils.py:rand_functions"]
CALLS = ADAPTERS["dsa:utils.py:DiffAugment"]
FYI = ADAPTERS["dsa:MTT/utils.py:DiffAugment_FYI+BatchAug"]
MATCH = ADAPTERS["base-dd:utils.py:match_loss"]
CONVNET = ADAPTERS["base-dd:networks.py:ConvNet.forward"]
DC = ADAPTERS["base-dd:main.py:dc_outer_step"]
DM = ADAPTERS["base-dd:main_DM.py:dm_loss"]
ZCA = ADAPTERS["zca:kornia/enhance/zca.py:ZCAWhitening"]


def taid(name: str) -> Any:
    return ADAPTERS[f"taid:src/distil_losses/{name}"]


def close(got: dict[str, np.ndarray], expected: dict[str, Any], rtol: float = 1e-9, atol: float = 1e-11) -> None:
    for name, value in expected.items():
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        assert got[name].shape == array.shape, name
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=atol, err_msg=name)


def arrays_of(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in tensors.items()}


# ------------------------------------------------------------------------------------------- what cannot be answered


def recorded() -> list[Any]:
    """The first recorded case of every function."""
    firsts: dict[str, Any] = {}
    for file in sorted((HERE / "vectors").glob("*/cases.json")):
        listing = json.loads(file.read_text(encoding="utf-8"))
        for case in listing["cases"]:
            firsts.setdefault(f"{listing['slug']}:{case['function']}", (file.parent, case))
    return [pytest.param(key, *value, id=key) for key, value in firsts.items()]


@pytest.mark.parametrize(("key", "folder", "case"), recorded())
def test_what_an_adapter_does_not_know_is_named(key: str, folder: Path, case: dict[str, Any]) -> None:
    with np.load(folder / case["file"], allow_pickle=False) as stored:
        whole = {name: stored[name] for name in stored.files}
    arrays = {name: whole[name] for name in case["inputs"]}
    hyper = case["hyperparameters"]
    adapter = ADAPTERS[key]
    adapter(arrays, {**hyper, "colour": 3, "side": {"shade": 3}})
    assert adapter.doubts[0] == "hyperparameter 'colour' is unknown"
    assert adapter.doubts[1:] in (["hyperparameter 'side' is unknown"], ["hyperparameter 'side.shade' is unknown"])
    if "sample_loop" not in key:  # its noise may have any name, where it is asked for
        adapter({**arrays, "shade": np.zeros(3)}, hyper)
        assert adapter.doubts == ["array 'shade' is unknown"]
    adapter(whole, hyper)
    assert adapter.doubts == []
    alone, beside = ADAPTERS[key](arrays, hyper), ADAPTERS[key](whole, hyper)
    assert all(np.array_equal(alone[name], beside[name], equal_nan=True) for name in alone)


@pytest.mark.parametrize(
    ("key", "changed", "word"),
    [
        (DC, {"ipc": 3}, "ipc"),
        (DC, {"classes": 5}, "classes"),
        (DC, {"dsa": True}, "dsa"),
        (CONVNET, {"mode": "sleep"}, "mode"),
        (CONVNET, {"channel": 1}, "channel"),
        (CONVNET, {"im_size": [16, 32]}, "im_size"),
        (USKD, {"num_classes": 7}, "num_classes"),
        (MTT, {"param_shapes": [[3]]}, "param_shapes"),
        (MTT, {"lr": 0.3}, "lr"),
        (TESLA, {"soft": True}, "soft"),
        (FUNCTIONS, {"functions": ["rand_noise"]}, "rand_noise"),
        (CALLS, {"seeds": [-1]}, "global generator"),
        (CALLS, {"variant": "XYZ"}, "variant"),
        (TRAINING, {"schedule": "sine"}, "schedule"),
        (TRAINING, {"toy": "f(z)=z"}, "toy"),
        (SAMPLING, {"sampler": "heun"}, "sampler"),
    ],
)
def test_settings_that_contradict_or_are_unknown_are_refused(key: Any, changed: dict[str, Any], word: str) -> None:
    name = next(name for name, adapter in ADAPTERS.items() if adapter is key)
    folder, case = next(p.values[1:] for p in recorded() if p.values[0] == name)
    with np.load(folder / case["file"], allow_pickle=False) as stored:
        arrays = {k: stored[k] for k in case["inputs"]}
    try:
        key(arrays, case["hyperparameters"] | changed)
    except ValueError as error:
        assert word in str(error)
    else:
        assert any(word in doubt for doubt in key.doubts)


# ---------------------------------------------------------------------------------------------------------- nkd, uskd


@pytest.mark.parametrize(
    ("n", "c", "T", "gamma", "soft", "label_type"),
    [
        (1, 2, 4.0, 0.5, False, np.int32),
        (7, 5, 0.5, 2.0, False, np.int64),
        (3, 4, 3.0, 3.5, True, np.float64),
        (4, 6, 1.0, 0.0, True, np.float64),
    ],
)
def test_nkd_by_loops(n: int, c: int, T: float, gamma: float, soft: bool, label_type: Any) -> None:
    rng = np.random.default_rng(n)
    s, t = rng.normal(0, 3, (2, n, c))
    labels = rng.dirichlet(np.ones(c), n) if soft else rng.integers(0, c, n)
    student, total = torch.tensor(s, requires_grad=True), torch.zeros((), dtype=torch.float64)
    for i in range(n):
        y = int(labels[i].argmax()) if soft else int(labels[i])
        rest = [k for k in range(c) if k != y]
        total = total - torch.tensor(t[i]).softmax(0)[y] * student[i].log_softmax(0)[y] / n
        p, log_q = torch.tensor(t[i][rest] / T).softmax(0), (student[i][rest] / T).log_softmax(0)
        total = total - gamma * T * T * (p * log_q).sum() / n
    total.backward()
    arrays = {"in_logit_s": s, "in_logit_t": t, "in_label": labels.astype(label_type)}
    got = NKD(arrays, {"temp": T, "gamma": gamma, "label": "soft" if soft else "hard"})
    close(got, {"out_loss": total, "out_grad_logit_s": student.grad})


@pytest.mark.parametrize(
    ("n", "c", "weights", "kind"),
    [
        (1, 2, (1.0, 0.1, 0.005), "hard"),
        (6, 9, (0.3, 2.0, 0.7), "hard"),
        (5, 4, (1.0, 1.0, 1.0), "soft"),
        (4, 6, (1.0, 0.1, 0.1), "dense"),
        (4, 5, (1.0, 0.5, 0.1), "one hot"),
    ],
)
def test_uskd_by_loops(n: int, c: int, weights: tuple[float, float, float], kind: str) -> None:
    rng = np.random.default_rng(c)
    alpha, beta, mu = weights
    names = {"in_fea_mid": (n, 3), "in_logit_s": (n, c), "in_fc_weight": (c, 3), "in_fc_bias": (c,)}
    arrays = {name: rng.normal(0, 2, shape) for name, shape in names.items()}
    hard = rng.integers(0, c, n)
    table = np.eye(c)[hard]
    if kind == "soft":
        table = 0.6 * table + 0.4 * np.eye(c)[(hard + 1) % c]
    elif kind == "dense":
        table = rng.dirichlet(np.ones(c), n)
    arrays["in_label"] = hard.astype(np.int32) if kind == "hard" else table
    fea, z, w, b = (torch.tensor(arrays[name], requires_grad=True) for name in names)
    weak = fea @ w.T + b

    # two classes of a soft label, in the order of torch's sort: a second of value 0 still leaves the others
    picked = [[int(y)] for y in hard] if kind == "hard" else torch.tensor(table).sort(-1, True)[1][:, :2].tolist()
    own = [[z[i].detach().softmax(0)[y].item() ** 2 for y in picked[i]] for i in range(n)]
    mean = np.mean(own, 0)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        log_p, log_w = z[i].log_softmax(0), weak[i].log_softmax(0)
        p, q = log_p.tolist(), log_w.exp().tolist()
        for k, y in enumerate(picked[i]):
            if table[i, y] != 0:
                loss = loss - alpha * (own[i][k] + table[i, y] - mean[k]) * log_p[y] / n
        smooth = 0.9 * torch.tensor(table[i]) + 0.1 / c
        loss = loss - mu * (smooth * log_w).sum() / n
        q_mass, p_mass = (sum(v[y] for y in picked[i]) for v in (q, p))
        score = [q[j] / (1 - q_mass + 1e-6) + p[j] / (1 - p_mass + 1e-6) for j in range(c)]
        zipf = {j: 1.0 / (1 + sum(s > score[j] for s in score)) for j in range(c) if j not in picked[i]}
        rest = list(zipf)
        log_rest = z[i][rest].log_softmax(0)
        for place, j in enumerate(rest):
            loss = loss - beta * zipf[j] / sum(zipf.values()) * log_rest[place] / n
    loss.backward()
    hyper = dict(zip(("alpha", "beta", "mu"), weights, strict=True)) | {"num_classes": c, "channel": 3, "label": kind}
    grads = {f"out_grad_{name[3:]}": leaf.grad for name, leaf in zip(names, (fea, z, w, b), strict=True)}
    close(USKD(arrays, hyper), {"out_loss": loss, **grads})


# --------------------------------------------------------------------------------------------------------------- taid


def tokens(shape: tuple[int, ...], seed: int = 0) -> tuple[dict[str, np.ndarray], Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {f"{k}_logits": rng.normal(0, 2, shape) for k in ("student", "teacher")}
    arrays["mask"] = (rng.random(shape[:-1]) < 0.7).astype(np.int32)
    arrays["mask"].flat[0] = 1
    s, t, m = (torch.tensor(arrays[k]) for k in ("student_logits", "teacher_logits", "mask"))
    return arrays, s.requires_grad_(True), t, m


TokenLoss = Callable[[Tensor, Tensor, float], Tensor]


def _mixed(p: Tensor, q: Tensor, share: float) -> Tensor:
    """KL(p || share p + (1 - share) q), class by class."""
    return (p * (p / (share * p + (1 - share) * q)).log()).sum()


def _adaptive(q: Tensor, p: Tensor, mu: float) -> Tensor:
    """As released: the head is what ascending sorting leaves at the end, marked at the unsorted places."""
    head, mass = torch.zeros_like(p), 0.0
    for k, value in enumerate(p.sort().values.tolist()):
        mass += value
        head[k] = float(mass >= mu)
    gap = (p - q).abs()
    a, b = (gap * head).sum(), (gap * (1 - head)).sum()
    return (a * -(p * q.log()).sum() + b * (q * (q / p).log()).sum()) / (a + b)


TOKEN_LOSSES: list[tuple[str, str | None, tuple[float, ...], TokenLoss]] = [
    ("fkl.py:ForwardKL", None, (0.0,), lambda q, p, _: -(p * q.log()).sum()),
    ("rkl.py:ReverseKL", None, (0.0,), lambda q, p, _: (q * (q / p).log()).sum()),
    (
        "js.py:JS",
        "teacher_weight",
        (0.1, 0.5, 0.9),
        lambda q, p, a: a * _mixed(p, q, a) + (1 - a) * _mixed(q, p, 1 - a),
    ),
    (
        "skew_fkl.py:SkewForwardKL",
        "target_weight",
        (0.1, 0.6),
        lambda q, p, a: -(p * (a * p + (1 - a) * q).log()).sum(),
    ),
    ("skew_rkl.py:SkewReverseKL", "target_weight", (0.1, 0.6), lambda q, p, a: _mixed(q, p, a)),
    ("tvd.py:TVD", None, (0.0,), lambda q, p, _: 0.5 * (p - q).abs().sum()),
    ("adaptive_kl.py:AdaptiveKL", "head_threshold", (0.2, 0.5, 0.95), _adaptive),
]


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 7), (4, 5)])
@pytest.mark.parametrize(("name", "argument", "values", "formula"), TOKEN_LOSSES, ids=[x[0] for x in TOKEN_LOSSES])
def test_token_losses_by_loops(
    name: str, argument: str | None, values: tuple[float, ...], formula: TokenLoss, shape: tuple[int, ...]
) -> None:
    for value in values:
        arrays, s, t, mask = tokens(shape)
        total = sum(
            formula(s[tuple(at)].softmax(0), t[tuple(at)].softmax(0), value) for at in np.argwhere(arrays["mask"])
        ) / int(mask.sum())
        total.backward()
        got = taid(name)(arrays, {} if argument is None else {argument: value})
        close(got, {"loss": total, "grad_student": s.grad})


@pytest.mark.parametrize("t_now", [0.0, 0.37, 1.0])
def test_taid_by_loops(t_now: float) -> None:
    arrays, s, t, mask = tokens((3, 4, 6), seed=3)
    total = torch.zeros((), dtype=torch.float64)
    for at in np.argwhere(arrays["mask"]):
        a, b = s[tuple(at)], t[tuple(at)]
        total = total - (((1 - t_now) * a.detach() + t_now * b).softmax(0) * a.log_softmax(0)).sum() / mask.sum()
    total.backward()
    close(taid("taid.py:TAID.compute_loss")(arrays, {"t": t_now}), {"loss": total, "grad_student": s.grad})


def test_classes_the_student_rules_out_add_nothing_to_a_cross_entropy() -> None:
    arrays, _, t, _ = tokens((2, 3, 5), seed=5)
    arrays["student_logits"][..., 2] = -np.inf
    left = [0, 1, 3, 4]
    for name, hyper, target in (
        ("fkl.py:ForwardKL", {}, t.softmax(-1)[..., left]),
        ("taid.py:TAID.compute_loss", {"t": 0.5}, None),
    ):
        s = torch.tensor(arrays["student_logits"][..., left], requires_grad=True)
        p = (0.5 * s.detach() + 0.5 * t[..., left]).softmax(-1) if target is None else target
        mask = torch.tensor(arrays["mask"])
        total = -((p * s.log_softmax(-1)).sum(-1) * mask).sum() / mask.sum()
        total.backward()
        got = taid(name)(arrays, hyper)
        grad = np.zeros((2, 3, 5))
        grad[..., left] = s.grad.numpy()
        close(got, {"loss": total, "grad_student": grad})


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("start", [0.0, 0.4])
@pytest.mark.parametrize(
    ("end", "alpha", "beta", "total"), [(1.0, 0.3, 0.0, None), (0.6, 1.0, 0.9, 50), (0.9, 0.0, 0.5, 7)]
)
def test_the_schedule_of_t_by_a_loop(
    start: float, end: float, alpha: float, beta: float, total: int | None, disabled: bool
) -> None:
    losses = np.random.default_rng(1).gamma(3.0, 1.0, 20).astype(np.float32)
    steps = total or len(losses)
    t, m, before = start, 0.0, None
    expected: dict[str, list[float]] = {"t": [], "momentum": [], "delta_t": []}
    for n, loss in enumerate(float(x) for x in losses):
        delta = math.nan
        if before is not None:
            m = beta * m + (1 - beta) * (before - loss) / (before + 1e-15)
            delta = alpha / (1 + math.exp(-m)) * (1 - t)
            line = min(start + (end - start) * n / steps, end)
            t = line if disabled else min(end, max(line, t + delta))
        before = loss
        for name, value in zip(expected, (t, m, delta), strict=True):
            expected[name].append(value)
    hyper: dict[str, Any] = {"t_start": start, "t_end": end, "alpha": alpha, "beta": beta}
    hyper |= {"disable_adaptive": disabled} | ({} if total is None else {"num_train_steps": total})
    close(taid("taid.py:TAID.update_t")({"losses": losses}, hyper), expected)


# --------------------------------------------------------------------------------------------------- guided diffusion

NUMBERS = {"teacher": {"a": 0.8, "b": 0.15, "c": 0.05}, "student": {"a": 0.6, "b": -0.1, "c": 0.3}}


class Diffusion:
    """Scalars and numpy: the cosine schedule, the toy network, and a reading of it."""

    def __init__(self, low: float, high: float, kind: str) -> None:
        self.b = math.atan(math.exp(-high / 2))
        self.a = math.atan(math.exp(-low / 2)) - self.b
        self.kind = kind

    def lam(self, u: float) -> float:
        return -2 * math.log(math.tan(self.a * u + self.b))

    def at(self, u: float) -> tuple[float, float]:
        snr = math.exp(self.lam(u))
        return math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))

    def read(self, z: np.ndarray, u: float, n: dict[str, float], clip: bool = False) -> tuple[np.ndarray, np.ndarray]:
        out = n["a"] * np.tanh(z) + n["b"] * z * self.lam(u) / 20 + n["c"] * np.cos(3 * z)
        alpha, sigma = self.at(u)
        x = {"x": out, "eps": (z - sigma * out) / alpha, "v": alpha * z - sigma * out}[self.kind]
        x = np.clip(x, -1, 1) if clip else x
        return x, (z - alpha * x) / sigma


@pytest.mark.parametrize("weight", ["constant", "snr", "snr_trunc", "v_mse"])
@pytest.mark.parametrize("kind", ["x", "eps", "v"])
@pytest.mark.parametrize(("steps", "low", "high"), [(1, -20, 20), (3, -20, 20), (16, -8, 12)])
def test_two_step_targets_by_scalars(kind: str, weight: str, steps: int, low: float, high: float) -> None:
    rng = np.random.default_rng(steps)
    x, eps = rng.uniform(-1, 1, (4, 2, 3, 1)), rng.normal(size=(4, 2, 3, 1))
    i = rng.integers(0, steps, 4)
    i[0] = 0
    world = Diffusion(low, high, kind)

    def losses(a: float) -> tuple[list[dict[str, Any]], float]:
        rows = []
        for k in range(4):
            u = (i[k] + 1) / steps
            mid, s = u - 0.5 / steps, u - 1 / steps
            alpha, sigma = world.at(u)
            z = alpha * x[k] + sigma * eps[k]
            x1, e1 = world.read(z, u, NUMBERS["teacher"])
            z_mid = world.at(mid)[0] * x1 + world.at(mid)[1] * e1
            x2, e2 = world.read(z_mid, mid, NUMBERS["teacher"])
            a_s, s_s = world.at(max(s, 0.0))
            z_s = a_s * x2 + s_s * e2
            ratio = s_s / sigma
            goal = x2 if i[k] == 0 else (z_s - ratio * z) / (a_s - ratio * alpha)
            noise = (z - alpha * goal) / sigma
            px, pe = world.read(z, u, NUMBERS["student"] | {"a": a})
            dx, de = px - goal, pe - noise
            row = {"x_mse": (dx**2).mean(), "eps_mse": (de**2).mean(), "v_mse": ((alpha * de - sigma * dx) ** 2).mean()}
            row["loss"] = {
                "constant": row["x_mse"],
                "snr": row["eps_mse"],
                "snr_trunc": max(row["x_mse"], row["eps_mse"]),
                "v_mse": row["v_mse"],
            }[weight]
            row |= {"z": z, "z_mid": z_mid, "z_teacher": z_s, "x_target": goal, "eps_target": noise}
            row |= {"v_target": alpha * noise - sigma * goal, "logsnr": world.lam(u), "logsnr_mid": world.lam(mid)}
            rows.append(row)
        return rows, float(np.mean([row["loss"] for row in rows]))

    rows, mean = losses(0.6)
    expected: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {"loss_mean": mean}
    hyper = {"num_steps": steps, "mean_type": kind, "mean_loss_weight_type": weight, **NUMBERS}
    got = TRAINING({"x": x, "eps": eps, "i": i}, hyper | {"schedule": f"cosine logsnr_min={low} logsnr_max={high}"})
    close(got, expected, rtol=1e-6, atol=1e-9)
    slope = (losses(0.6 + 1e-4)[1] - losses(0.6 - 1e-4)[1]) / 2e-4
    np.testing.assert_allclose(got["dloss_da"], slope, rtol=1e-5, atol=1e-9)
    bounds = {"schedule": "cosine", "logsnr_min": low, "logsnr_max": high}
    close(TRAINING({"x": x, "eps": eps, "u": (i + 1) / steps}, hyper | bounds), {"loss": got["loss"]}, rtol=1e-6)


@pytest.mark.parametrize("clip", [True, False, None])
@pytest.mark.parametrize("kind", ["x", "eps", "v"])
@pytest.mark.parametrize(("steps", "shape"), [(1, (1, 2, 2, 3)), (5, (2, 3))])
def test_samplers_by_scalars(kind: str, steps: int, shape: tuple[int, ...], clip: bool | None) -> None:
    rng = np.random.default_rng(steps)
    start, draws = rng.normal(size=shape), rng.normal(size=(steps, *shape))
    world, numbers = Diffusion(-20, 20, kind), NUMBERS["teacher"]
    ends: dict[str, np.ndarray] = {}
    for how in ("ddim", "small", "large", "medium:0.3"):
        z = start
        for n, place in enumerate(range(steps, 0, -1)):
            u, s = place / steps, (place - 1) / steps
            x, eps = world.read(z, u, numbers, clip=clip is not False)
            alpha, sigma = world.at(u)
            a_s, s_s = world.at(s)
            if how == "ddim":
                z = a_s * x + s_s * eps
                continue
            r = math.exp(world.lam(u) - world.lam(s))
            part = {"small": 0.0, "large": 1.0, "medium:0.3": 0.3}[how]
            variance = (1 - r) * sigma ** (2 * part) * s_s ** (2 * (1 - part))
            z = r * a_s / alpha * z + (1 - r) * a_s * x + math.sqrt(variance) * draws[n]
        ends[how] = x
    hyper = {"num_steps": steps, "mean_type": kind, "params": numbers} | ({} if clip is None else {"clip_x": clip})
    close(SAMPLING({"z1": start}, hyper), {"x": ends.pop("ddim")}, rtol=1e-6, atol=1e-8)
    for how, end in ends.items():
        for name in (how, f"fixed_{how}"):
            got = SAMPLING({"z1": start, "noise": draws}, hyper | {"sampler": "noisy", "logvar_type": name})
            close(got, {"x": end}, rtol=1e-6, atol=1e-8)


# ----------------------------------------------------------------------------------------------- dsa as it was published

PARAMS = {"prob_flip": 0.7, "ratio_scale": 1.4, "ratio_rotate": 40.0, "ratio_crop_pad": 0.3, "ratio_cutout": 0.4}
PARAMS |= {"brightness": 0.6, "saturation": 1.5, "contrast": 0.2}
DEFAULTS = {"prob_flip": 0.5, "ratio_scale": 1.2, "ratio_rotate": 15.0, "ratio_crop_pad": 0.125, "ratio_cutout": 0.5}
DEFAULTS |= {"brightness": 1.0, "saturation": 2.0, "contrast": 0.5}


class Published:
    """DSA in the way it was published: one draw per image, global seeding, the first image's number for all."""

    def __init__(self, params: dict[str, float], align: bool, siamese: bool, seed: int) -> None:
        self.p, self.align, self.siamese, self.seed = params, align, siamese, seed
        self.generator = torch.Generator().manual_seed(max(seed, 0))
        self.draws: list[Tensor] = []

    def draw(self, n: int, low: int = 0, high: int = 0) -> Tensor:
        if self.siamese:
            self.generator.manual_seed(self.seed)
            self.seed += 1
        if high:
            values = torch.randint(low, high, (n,), generator=self.generator)
        else:
            values = torch.rand(n, generator=self.generator)
        self.draws.append(values)
        return values[:1].expand(n) if self.siamese else values

    def affine(self, x: Tensor, rows: list[list[Tensor]]) -> Tensor:
        theta = torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1).to(x.dtype)
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=self.align), align_corners=self.align)

    def rand_brightness(self, x: Tensor) -> Tensor:
        return x + ((self.draw(len(x)) - 0.5) * self.p["brightness"])[:, None, None, None]

    def rand_saturation(self, x: Tensor) -> Tensor:
        grey = x.mean(1, keepdim=True)
        return (x - grey) * (self.draw(len(x)) * self.p["saturation"])[:, None, None, None] + grey

    def rand_contrast(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * (self.draw(len(x)) + self.p["contrast"])[:, None, None, None] + mean

    def rand_crop(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        most = [int(side * self.p["ratio_crop_pad"] + 0.5) for side in (h, w)]
        shifts = [self.draw(n, -m, m + 1) for m in most]
        padded = F.pad(x, (most[1], most[1], most[0], most[0]))
        corners = [[int(s[k]) + m for s, m in zip(shifts, most, strict=True)] for k in range(n)]
        return torch.stack([padded[k, :, a : a + h, b : b + w] for k, (a, b) in enumerate(corners)])

    def rand_cutout(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        sizes = [int(side * self.p["ratio_cutout"] + 0.5) for side in (h, w)]
        ends = [self.draw(n, 0, side + 1 - size % 2) for side, size in zip((h, w), sizes, strict=True)]
        keep = torch.ones(n, 1, h, w)
        for k in range(n):
            for i in range(sizes[0]):
                for j in range(sizes[1]):
                    row, column = int(ends[0][k]) - sizes[0] // 2 + i, int(ends[1][k]) - sizes[1] // 2 + j
                    keep[k, 0, min(max(row, 0), h - 1), min(max(column, 0), w - 1)] = 0
        return x * keep

    def rand_flip(self, x: Tensor) -> Tensor:
        return torch.where((self.draw(len(x)) < self.p["prob_flip"])[:, None, None, None], x.flip(3), x)

    def rand_scale(self, x: Tensor) -> Tensor:
        r = self.p["ratio_scale"]
        sx, sy = (self.draw(len(x)) * (r - 1 / r) + 1 / r for _ in range(2))
        zero = torch.zeros_like(sx)
        return self.affine(x, [[sx, zero, zero], [zero, sy, zero]])

    def rand_rotate(self, x: Tensor) -> Tensor:
        turn = (self.draw(len(x)) - 0.5) * 2 * self.p["ratio_rotate"] / 180 * math.pi
        zero = torch.zeros_like(turn)
        return self.affine(x, [[turn.cos(), -turn.sin(), zero], [turn.sin(), turn.cos(), zero]])

    def call(self, x: Tensor, strategy: str, mode: str, flip_first: bool = False) -> Tensor:
        names = strategy.split("_")
        if flip_first:
            x, names = self.rand_flip(x), [name for name in names if name != "flip"]
        if mode == "S":
            names = [names[int(self.draw(1, 0, len(names)))]]
        for name in names:
            for part in ("brightness", "saturation", "contrast") if name == "color" else (name,):
                x = getattr(self, f"rand_{part}")(x)
        return x


# ------------------------------------------------------------------------------------------ networks, mtt, tesla, dc, dm


def convnet(
    x: Tensor,
    weights: list[Tensor],
    depth: int,
    norm: str = "instancenorm",
    act: str = "relu",
    pool: str = "avgpooling",
    buffers: list[tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """(logits, features) by torch's functions, from the parameters in the network's order."""
    queue = list(weights)
    for block in range(depth):
        x = F.conv2d(x, queue.pop(0), queue.pop(0), padding=3 if block == 0 and x.shape[1] == 1 else 1)
        if norm == "batchnorm":
            mean, var = (None, None) if buffers is None else buffers[block]
            x = F.batch_norm(x, mean, var, queue.pop(0), queue.pop(0), training=buffers is None)
        elif norm == "layernorm":
            x = F.layer_norm(x, x.shape[1:], queue.pop(0), queue.pop(0))
        elif norm != "none":
            x = F.group_norm(x, x.shape[1] if norm == "instancenorm" else 4, queue.pop(0), queue.pop(0))
        x = {
            "relu": lambda h: h.clamp_min(0),
            "sigmoid": lambda h: 1 / (1 + (-h).exp()),
            "leakyrelu": lambda h: torch.where(h > 0, h, 0.01 * h),
            "swish": lambda h: h / (1 + (-h).exp()),
        }[act](x)
        if pool != "none":
            x = (F.avg_pool2d if pool == "avgpooling" else F.max_pool2d)(x, 2)
    flat = x.flatten(1)
    return flat @ queue[0].T + queue[1], flat


def parameters(
    channels: int,
    classes: int,
    width: int,
    depth: int,
    im: tuple[int, int],
    norm: str = "instancenorm",
    pool: str = "avgpooling",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random weights under the published names, with running statistics where there are any."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.4, shift: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) * scale + shift

    found: dict[str, Tensor] = {}
    place, before, (h, w) = 0, channels, (s + (4 if channels == 1 else 0) for s in im)
    for _ in range(depth):
        found |= {f"features.{place}.weight": draw(width, before, 3, 3), f"features.{place}.bias": draw(width)}
        if norm != "none":
            shape = (width, h, w) if norm == "layernorm" else (width,)
            place += 1
            found |= {f"features.{place}.weight": draw(*shape, shift=1.0), f"features.{place}.bias": draw(*shape)}
            if norm == "batchnorm":
                found |= {
                    f"features.{place}.running_mean": draw(width),
                    f"features.{place}.running_var": draw(width).abs() + 0.5,
                    f"features.{place}.num_batches_tracked": torch.tensor(3),
                }
        place, before = place + (2 if pool == "none" else 3), width
        h, w = (h, w) if pool == "none" else (h // 2, w // 2)
    return found | {"classifier.weight": draw(classes, width * h * w), "classifier.bias": draw(classes)}


def split(state: dict[str, Tensor]) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Parameters in order, and (mean, variance) of every batch normalisation."""
    weights = [v for k, v in state.items() if k.endswith(("weight", "bias"))]
    means = [v for k, v in state.items() if k.endswith("running_mean")]
    return weights, list(zip(means, [v for k, v in state.items() if k.endswith("running_var")], strict=True))


def stored(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {f"param_{name.replace('.', '__')}": value.numpy() for name, value in state.items()}


NETS = [
    (norm, act, pool, channels, im, mode)
    for norm, act, pool, channels, im, mode in [
        ("instancenorm", "sigmoid", "maxpooling", 1, (8, 8), "train"),
        ("layernorm", "relu", "avgpooling", 3, (8, 12), "train"),
        ("layernorm", "swish", "none", 1, (6, 6), "eval"),
        ("groupnorm", "leakyrelu", "avgpooling", 2, (9, 8), "train"),
        ("none", "swish", "maxpooling", 3, (8, 8), "train"),
        ("batchnorm", "sigmoid", "avgpooling", 3, (8, 8), "train"),
        ("batchnorm", "relu", "avgpooling", 1, (12, 12), "eval"),
    ]
]


@pytest.mark.parametrize(("norm", "act", "pool", "channels", "im", "mode"), NETS)
@pytest.mark.parametrize("batch", [1, 3])
def test_convnets_by_functions(
    norm: str, act: str, pool: str, channels: int, im: tuple[int, int], mode: str, batch: int
) -> None:
    state = parameters(channels, 5, 4, 2, im, norm, pool)
    weights, buffers = split(state)
    x = torch.randn(batch, channels, *im, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits, features = convnet(x, weights, 2, norm, act, pool, buffers if mode == "eval" else None)
    hyper = {"channel": channels, "num_classes": 5, "net_width": 4, "net_depth": 2, "net_act": act, "net_norm": norm}
    hyper |= {"net_pooling": pool, "im_size": list(im), "mode": mode}
    close(CONVNET({"x": x.numpy()} | stored(state), hyper), {"logits": logits, "embed": features})


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
@pytest.mark.parametrize("eps", [1e-6, 0.01])
def test_match_loss_by_loops_where_rows_vanish(metric: str, eps: float) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 3, 3), (3,), (4, 2, 5), (5, 6), (5,)]
    real = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    syn = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_(True) for s in shapes]
    real[0][1] = 0.0
    with torch.no_grad():
        syn[3][2] = 0.0
    if metric == "ours":
        loss = torch.zeros((), dtype=torch.float64)
        for a, b in zip(real, syn, strict=True):
            for k in range(len(a) if a.ndim > 1 else 0):
                p, q = a[k].reshape(-1), b[k].reshape(-1)
                loss = loss + 1 - (p @ q) / (p.norm() * q.norm() + eps)
    else:
        p, q = (torch.cat([t.reshape(-1) for t in side]) for side in (real, syn))
        loss = ((p - q) ** 2).sum() if metric == "mse" else 1 - (p @ q) / (p.norm() * q.norm() + eps)
    grads = torch.autograd.grad(loss, syn, allow_unused=True)
    arrays = arrays_of({f"{n}_{i}": t for n, side in (("real", real), ("syn", syn)) for i, t in enumerate(side)})
    got = MATCH(arrays, {"dis_metric": metric, "eps": eps})
    wanted = [torch.zeros_like(s) if d is None else d for d, s in zip(grads, syn, strict=True)]
    close(got, {"loss": loss, **{f"dloss_dsyn_{i}": d for i, d in enumerate(wanted)}})


def class_batches(seed: int, ipc: int, channels: int, im: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    real = torch.randn(3, 4, channels, im, im, generator=g, dtype=torch.float64)
    return real, torch.randn(3 * ipc, channels, im, im, generator=g, dtype=torch.float64).requires_grad_(True)


@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
@pytest.mark.parametrize(("ipc", "channels", "metric"), [(1, 3, "mse"), (2, 1, "ours"), (3, 3, "cos")])
def test_a_step_of_gradient_matching_by_functions(ipc: int, channels: int, metric: str, norm: str) -> None:
    real, syn = class_batches(ipc, ipc, channels, 8)
    state = parameters(channels, 3, 4, 2, (8, 8), norm)
    weights, buffers = split(state)
    leaves = [w.clone().requires_grad_(True) for w in weights]
    loss = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        slopes = []
        for x in (real[c], syn[c * ipc : (c + 1) * ipc]):
            logits = convnet(x, leaves, 2, norm, buffers=buffers or None)[0]
            nll = -logits.log_softmax(1)[:, c].mean()
            slopes.append(torch.autograd.grad(nll, leaves, create_graph=True))
        a, b = [t.detach() for t in slopes[0]], slopes[1]
        if metric == "ours":
            for p, q in zip(a, b, strict=True):
                if p.ndim > 1:
                    p, q = p.flatten(1), q.flatten(1)
                    loss = loss + (1 - (p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1) + 1e-6)).sum()
        else:
            p, q = (torch.cat([t.reshape(-1) for t in side]) for side in (a, b))
            loss = loss + (((p - q) ** 2).sum() if metric == "mse" else 1 - p @ q / (p.norm() * q.norm() + 1e-6))
    (grad,) = torch.autograd.grad(loss, syn)
    hyper = {"ipc": ipc, "classes": 3, "batch_real": 4, "net_width": 4, "net_depth": 2, "im_size": 8}
    hyper |= {"dis_metric": metric, "net_norm": norm}
    got = DC({"x_real": real.numpy(), "x_syn": syn.detach().numpy()} | stored(state), hyper)
    close(got, {"loss": loss, "grad_x_syn": grad})


@pytest.mark.parametrize("norm", ["instancenorm", "batchnorm"])
@pytest.mark.parametrize(("ipc", "channels"), [(1, 3), (3, 1)])
def test_mean_matching_by_functions(ipc: int, channels: int, norm: str) -> None:
    real, syn = class_batches(9, ipc, channels, 8)
    state = parameters(channels, 3, 4, 2, (8, 8), norm)
    weights, _ = split(state)

    def means(x: Tensor, each: int) -> Tensor:
        whole = norm == "batchnorm"  # its statistics are those of all classes together
        parts = [x] if whole else list(x.split(each))
        features = torch.cat([convnet(p, weights, 2, norm)[1] for p in parts])
        return torch.stack([f.mean(0) for f in features.split(each)])

    loss = ((means(real.flatten(0, 1), 4) - means(syn, ipc)) ** 2).sum()
    (grad,) = torch.autograd.grad(loss, syn)
    hyper = {"ipc": ipc, "classes": 3, "batch_real": 4, "net_width": 4, "net_depth": 2, "im_size": 8, "net_norm": norm}
    got = DM({"x_real": real.numpy(), "x_syn": syn.detach().numpy()} | stored(state), hyper)
    close(got, {"loss": loss, "grad_x_syn": grad})


@pytest.mark.parametrize(
    ("ipc", "T", "batch", "channels", "labels", "dsa"),
    [
        (1, 1, None, 1, "hard", {}),
        (2, 3, None, 3, "soft", {}),
        (2, 5, 4, 3, "int32", {}),
        (1, 4, 2, 1, "soft", {}),
        (2, 2, 3, 3, "teacher", {}),
        (2, 5, 4, 3, "hard", {"dsa": True}),
        (1, 6, None, 1, "soft", {"dsa": True, "strategy": "color_crop_cutout_scale_rotate", "aug_mode": "M"}),
        (
            2,
            3,
            5,
            3,
            "hard",
            {"dsa": True, "align_corners": False, "params": {"ratio_rotate": 40.0, "brightness": 0.5}},
        ),
    ],
)
def test_trajectories_by_functions(
    ipc: int, T: int, batch: int | None, channels: int, labels: str, dsa: dict[str, Any]
) -> None:
    g = torch.Generator().manual_seed(T)
    state = parameters(channels, 3, 4, 2, (8, 8))
    shapes = [w.shape for w in state.values()]
    start = torch.cat([w.reshape(-1) for w in state.values()])
    target = start + 0.05 * torch.randn(start.shape, generator=g, dtype=torch.float64)
    images = torch.randn(3 * ipc, channels, 8, 8, generator=g, dtype=torch.float64)
    label: Tensor = torch.arange(3).repeat_interleave(ipc)
    if labels == "soft":
        label = torch.randn(3 * ipc, 3, generator=g, dtype=torch.float64).softmax(1)
    elif labels == "int32":
        label = label.int()
    size = batch or 3 * ipc
    old = Published(DEFAULTS | dsa.get("params", {}), dsa.get("align_corners", True), False, 9 + 2)
    alpha = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    x_all = images.clone().requires_grad_(True)
    distance = (start - target).square().sum()

    def forward(theta: Tensor, x: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes])
        return convnet(x, [p.view(s) for p, s in zip(parts, shapes, strict=True)], 2)[0]

    y_all = forward(target, images).softmax(1) if labels == "teacher" else label

    def loss_of(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        log_q = forward(theta, x).log_softmax(1)
        rows = [(y[k] * log_q[k]).sum() if y.is_floating_point() else log_q[k, int(y[k])] for k in range(len(y))]
        return -torch.stack(rows).mean()

    theta = start.clone().requires_grad_(True)
    orders: list[Tensor] = []
    waiting: list[Tensor] = []
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(T):
        if not waiting:
            orders.append(torch.randperm(3 * ipc, generator=old.generator))
            waiting = list(orders[-1].split(size))
        index = waiting.pop()
        x = x_all[index]
        if dsa:
            x = old.call(x, dsa.get("strategy", "color_crop_cutout_flip_scale_rotate"), dsa.get("aug_mode", "S"))
        steps.append((theta.detach(), x, y_all[index]))
        (slope,) = torch.autograd.grad(loss_of(theta, x, y_all[index]), theta, create_graph=True)
        theta = theta - alpha * slope
    loss = (theta - target).square().sum() / distance
    by_image, by_lr = torch.autograd.grad(loss, [x_all, alpha], retain_graph=True)
    hyper: dict[str, Any] = {"w": 4, "d": 2, "im": 8, "nc": 3, "ipc": ipc, "T": T, "batch_syn": batch, "lr": 0.07}
    hyper |= {"dsa": False, "seed": 9, "norm_eps": 1e-5, "param_shapes": [list(s) for s in shapes], **dsa}
    hyper |= {"teacher_label": True} if labels == "teacher" else {}
    arrays = arrays_of({"start": start, "target": target, "image_syn": images, "label": label})
    arrays |= {"perms": torch.stack(orders).numpy(), "syn_lr": alpha.detach().numpy()}
    rtol, atol = (1e-5, 1e-7) if dsa else (1e-7, 1e-10)  # published angles and factors are float32
    final = {"student_final": theta, "loss": loss}
    close(MTT(arrays, hyper), {**final, "grad_image": by_image, "grad_lr": by_lr}, rtol=rtol, atol=atol)

    # TESLA's second loop: parameters are constants, and the factor 2 of the square got lost
    slopes, by_image = [], torch.zeros_like(images)
    for point, x, y in steps:
        leaf = point.clone().requires_grad_(True)
        slopes.append(torch.autograd.grad(loss_of(leaf, x, y), leaf, create_graph=True)[0])
    whole = sum(s.detach() for s in slopes)
    a = alpha.item()
    for slope in slopes:
        pulled = (a * (target - start) + a * a * whole) @ slope / distance
        by_image += torch.autograd.grad(pulled, x_all, retain_graph=True)[0]
    by_lr = -2 * (start - a * whole - target) @ whole / distance
    close(TESLA(arrays, hyper), {**final, "grad_image": by_image, "grad_lr": by_lr}, rtol=rtol, atol=atol)


# ---------------------------------------------------------------------------------------------------------------- dsa

ALL_FUNCTIONS = ["rand_brightness", "rand_saturation", "rand_contrast", "rand_crop", "rand_cutout", "rand_flip"]
ALL_FUNCTIONS += ["rand_scale", "rand_rotate"]


def pictures(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("function", ALL_FUNCTIONS)
@pytest.mark.parametrize(
    ("shape", "params"), [((1, 1, 7, 7), DEFAULTS), ((5, 3, 8, 11), PARAMS), ((18, 2, 5, 5), PARAMS)]
)
def test_one_published_function_with_its_draws(
    function: str, shape: tuple[int, ...], params: dict[str, float], siamese: bool, align: bool
) -> None:
    x = pictures(len(function), shape).requires_grad_(True)
    old = Published(params, align, siamese, 11)
    out = getattr(old, function)(x)
    (grad,) = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum(), x)
    kind = "randint" if function in ("rand_crop", "rand_cutout") else "rand"
    arrays = {"x": x.detach().numpy()} | {f"{function}__draw{k}_{kind}": d.numpy() for k, d in enumerate(old.draws)}
    state = {"aug_mode": "S", "latestseed": 12 if siamese else -1, "Siamese": siamese, "batchmode": siamese}
    hyper = {"siamese": siamese, "seed": 11, "params": params | state, "functions": [function], "align_corners": align}
    close(FUNCTIONS(arrays, hyper), {f"{function}__out": out, f"{function}__grad": grad}, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize(
    ("strategy", "variant"),
    [
        ("color_crop_cutout_flip_scale_rotate", "DC"),
        ("color_crop_cutout_flip_scale_rotate", "MTT"),
        ("color_crop_cutout_flip_scale_rotate", "FYI"),
        ("rotate_color", "DC"),
        ("crop_cutout_scale", "MTT"),
        ("scale_flip", "FYI"),
        ("flip", "MTT"),
    ],
)
def test_whole_published_calls(strategy: str, mode: str, variant: str) -> None:
    seeds, align = [0, 5, 99_999], variant != "DC"
    params = PARAMS if mode == "M" else DEFAULTS
    xs = {"x_a": pictures(1, (5, 3, 8, 8)), "x_b": pictures(2, (1, 3, 8, 8)), "x": pictures(3, (17, 1, 9, 6))}
    hyper = {"strategy": strategy, "seeds": seeds, "aug_mode": mode, "variant": variant, "params": params}
    got = CALLS(arrays_of(xs), hyper)
    explicit = CALLS(arrays_of(xs), hyper | {"align_corners": align, "variant": f"as in {variant}"})
    for name, x in xs.items():
        for seed in seeds:
            out = Published(params, align, True, seed).call(x, strategy, mode, variant == "FYI")
            expected = {f"out{name[1:]}_seed{seed}": out}
            close(got, expected, rtol=1e-4, atol=2e-5)
            close(explicit, expected, rtol=1e-4, atol=2e-5)


def test_fyi_calls_and_batches() -> None:
    x, strategy = pictures(4, (3, 1, 6, 6)), "color_crop_flip_rotate"
    hyper = {"strategy": strategy, "seeds": [2, 7], "batchaug_y": [4, 0, 4]}
    got = FYI({"x": x.numpy()}, hyper)
    for seed in (2, 7):
        expected = Published(DEFAULTS, True, True, seed).call(x, strategy, "S", flip_first=True)
        close(got, {f"out_seed{seed}": expected}, rtol=1e-4, atol=2e-5)
    close(got, {"batchaug_img": torch.cat([x, x[..., [5, 4, 3, 2, 1, 0]]]), "batchaug_lab": np.array([4, 0, 4] * 2)})
    assert set(FYI({"x": x.numpy()}, {"strategy": strategy, "seeds": [2]})) == {"out_seed2"}


# ---------------------------------------------------------------------------------------------------------------- zca


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(
    ("n", "shape", "eps", "dim"),
    [
        (40, (1, 3, 3), 0.0, 0),
        (9, (3, 2, 4), 0.1, 0),
        (5, (2, 2, 2), 1e-6, 0),
        (30, (7,), 1e-3, 0),
        (12, (2, 3), 0.1, 1),
    ],
)
def test_whitening_by_singular_values(n: int, shape: tuple[int, ...], eps: float, dim: int, unbiased: bool) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.random((n, *shape)), rng.random((4, *shape))
    flat = x.reshape(n, -1)
    mean = flat.mean(0, keepdims=True)
    u, s, _ = np.linalg.svd((flat - mean).T @ (flat - mean) / (n - unbiased))
    white, back = (u / np.sqrt(s + eps)) @ u.T, (u * np.sqrt(s + eps)) @ u.T
    other = (y.reshape(4, -1) - mean) @ white
    expected = {"mean": mean, "W": white}
    expected["X_white"] = np.moveaxis(((flat - mean) @ white).reshape(x.shape), 0, dim)
    expected["Y_white"] = np.moveaxis(other.reshape(y.shape), 0, dim)
    expected["Y_back"] = np.moveaxis((other @ back + mean).reshape(y.shape), 0, dim)
    hyper = {"eps": eps, "unbiased": unbiased, "compute_inv": True} | ({"dim": dim} if dim else {})
    got = ZCA({"X": np.moveaxis(x, 0, dim), "Y": np.moveaxis(y, 0, dim)}, hyper)
    close(got, expected, rtol=1e-7, atol=1e-7 if eps in (1e-6,) else 1e-9)
