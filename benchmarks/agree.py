"""The same knob means different things: one pair of logits, T = 4, 'full knowledge distillation', library by library.

Every row is the loss a library computes from the same logits, its value and the norm of its gradient in the student's
logits, and the factor by which a user has to multiply that library's weight to get the gradient of ours
(mean over items, sum over classes, T squared multiplied in).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

import limbeck.functional as F
from benchmarks import peers
from benchmarks.harness import Check, Report, Row, Say, quiet

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student's logits [N, C], teacher's logits [N, C], labels [N]) -> scalar."""


@dataclass(frozen=True)
class Settings:
    """Sizes."""

    items: int = 64
    classes: int = 100
    temperature: float = 4.0


TOY = Settings()
MIXED = "Liger JSD beta=0, default weights"
"""The one row that is no distillation loss alone: it is left out where gradients are compared."""


def oracle(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    """T squared times KL(teacher || student), mean over items, in float64, from the definition."""
    p, q = (z_t.double() / temperature).softmax(1), (z_s.double() / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


def formulas(T: float) -> dict[str, tuple[Loss, float | None, str]]:
    """Losses written down from what a project's code computes; for projects that are no packages, or do not import here.

    By name: the loss, the factor to ours (``None``: another function), and what it is.
    """

    def kl(z_s: Tensor, z_t: Tensor) -> Tensor:
        return nnf.kl_div((z_s / T).log_softmax(1), (z_t / T).softmax(1), reduction="batchmean")

    def squared(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
        return T * T * nnf.mse_loss((z_t / T).softmax(1), (z_s / T).softmax(1))

    def no_logs(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
        q, p = (z_t / T).softmax(1), (z_s / T).softmax(1)
        return T * T * nnf.kl_div(q, p, reduction="sum") / q.numel()  # its reduction: over classes too

    return {
        "RepDistiller, mdistiller": (lambda s, t, y: T * T * kl(s, t), 1.0, "T^2 KL"),
        "DistillKit dense kernel": (lambda s, t, y: kl(s, t), T * T, "KL without T^2"),
        "KD-Lib VanillaKD, default": (squared, None, "squared error of probabilities: not KD as cited"),
        "KD-Lib VanillaKD with nn.KLDivLoss()": (no_logs, None, "probabilities where log-probabilities belong"),
    }


def torchdistill(T: float, alpha: float) -> Loss:
    """torchdistill's KDLoss with the weight ``alpha`` on the labels."""
    made = peers.load("torchdistill", "torchdistill.losses.mid_level").KDLoss(
        ".", "output", ".", "output", temperature=T, alpha=alpha
    )
    return lambda s, t, y: made({".": {"output": s}}, {".": {"output": t}}, y)


def trl_gkd(T: float) -> Loss:
    """TRL's GKDTrainer."""
    trainer = peers.load("trl", "trl.experimental.gkd").GKDTrainer
    return lambda s, t, y: trainer.generalized_jsd_loss(s[:, None], t[:, None], beta=0, temperature=T)


def trl_chunked(T: float) -> Loss:
    """TRL's chunked divergence, with the identity as output layer."""
    function = peers.load("trl", "trl.kernels.chunked_divergence").ChunkedDivergenceFunction

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        eye = torch.eye(s.shape[1])
        value: Tensor = function.apply(s, eye, None, t, eye, None, 0.0, T)[0].mean()
        return value

    return loss


def liger(T: float, hard: float, soft: float) -> Loss:
    """Liger's chunked JSD with beta 0, with the identity as output layer."""
    made = peers.load("liger", "liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=hard, weight_soft_loss=soft, beta=0.0, temperature=T, compiled=False
    )

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        eye = torch.eye(s.shape[1])
        value: Tensor = made(s, eye, t, eye, y)
        return value

    return loss


def modelopt(T: float, **settings: Any) -> Loss:
    """NVIDIA Model Optimizer's LogitsDistillationLoss."""
    made = peers.load("modelopt", "modelopt.torch.distill").LogitsDistillationLoss(temperature=T, **settings)
    return lambda s, t, y: made(s, t)


def textbrewer(T: float) -> Loss:
    """TextBrewer's kd_ce_loss."""
    function = peers.load("textbrewer", "textbrewer.losses").kd_ce_loss
    return lambda s, t, y: function(s, t, temperature=T)


def torchtune(T: float) -> Loss:
    """torchtune's ForwardKLLoss, which has no temperature: it is given softened logits."""
    made = peers.load_file("torchtune", "torchtune/modules/loss/kd_losses.py").ForwardKLLoss()
    return lambda s, t, y: made(s / T, t / T, y)


def dd_ranking(T: float) -> Loss:
    """DD-Ranking's KLDivergenceLoss."""
    made = peers.load_file("dd-ranking", "dd_ranking/loss/kl.py").KLDivergenceLoss(temperature=T)
    return lambda s, t, y: made(s, t)


def libraries(T: float, classes: int) -> dict[str, tuple[Callable[[], Loss], float | None, str]]:
    """Losses of installed libraries, made when asked for."""
    return {
        "torchdistill KDLoss(alpha=1e-9)": (lambda: torchdistill(T, 1e-9), 1.0, "T^2 KL"),
        "torchdistill KDLoss(alpha=0)": (lambda: torchdistill(T, 0.0), T * T, "T^2 silently dropped"),
        "TRL GKDTrainer": (lambda: trl_gkd(T), T * T, "KL without T^2"),
        "TRL chunked divergence": (lambda: trl_chunked(T), T * T, "KL without T^2"),
        "Liger JSD beta=0, soft loss alone": (lambda: liger(T, 0.0, 1.0), T * T, "KL without T^2"),
        MIXED: (lambda: liger(T, 0.5, 0.5), None, "half KL, half cross-entropy not at T"),
        "modelopt LogitsDistillationLoss(batchmean)": (lambda: modelopt(T, reduction="batchmean"), 1.0, "T^2 KL"),
        "modelopt LogitsDistillationLoss, default": (
            lambda: modelopt(T),
            float(classes),
            "divided by the number of classes",
        ),
        "TextBrewer kd_ce_loss": (lambda: textbrewer(T), T * T, "cross-entropy without T^2: never reaches 0"),
        "torchtune ForwardKLLoss": (lambda: torchtune(T), T * T, "cross-entropy without T^2: never reaches 0"),
        "DD-Ranking KLDivergenceLoss": (lambda: dd_ranking(T), T * T, "KL without T^2"),
    }


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """The table of conventions."""
    settings = settings or Settings()
    T = settings.temperature
    report = Report("agree", "What 'KL distillation at T = 4' means, library by library", asdict(settings))
    draw = torch.Generator().manual_seed(0)
    z_s, z_t = (3.0 * torch.randn(settings.items, settings.classes, generator=draw) for _ in range(2))
    y = torch.randint(settings.classes, (settings.items,), generator=draw)

    def measure(loss: Loss) -> tuple[float, Tensor]:
        leaf = z_s.clone().requires_grad_(True)
        value = loss(leaf, z_t, y)
        (slope,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), slope

    exact = z_s.double().requires_grad_(True)
    truth = oracle(exact, z_t, T)
    (slope,) = torch.autograd.grad(truth, exact)
    report.rows.append(_row("definition, float64", float(truth.detach()), slope, slope, 1.0, "T^2 KL"))
    ours: dict[str, Loss] = {
        "limbeck kl": lambda s, t, y: F.kl(s, t, temperature=T).mean(),
        "limbeck kl, scale_t2=False": lambda s, t, y: F.kl(s, t, temperature=T, scale_t2=False).mean(),
        "limbeck chunked_logits": lambda s, t, y: F.chunked_logits(s, t, temperature=T).mean(),
    }
    errors, norms, strays = [], [], []
    for name, loss in ours.items():
        value, found = measure(loss)
        factor = T * T if "False" in name else 1.0
        errors += [
            abs(value * factor / float(truth.detach()) - 1),
            float((found * factor - slope).norm() / slope.norm()),
        ]
        report.rows.append(_row(name, value, found, slope, factor, "T^2 KL" if factor == 1 else "KL"))
    report.checks.append(Check("ours equals the definition, value and gradient, relative", max(errors), 1e-6))

    for name, (make, factor_, what) in libraries(T, settings.classes).items():
        say(name)
        with report.peer(name):
            value, found = measure(make())
            report.rows.append(_row(name, value, found, slope, factor_, what))
    for name, (loss, factor_, what) in formulas(T).items():
        value, found = measure(loss)
        report.rows.append(_row(name, value, found, slope, factor_, f"formula of its code: {what}"))
    for row in report.rows:
        if "gradient" in row.cells and row.name != MIXED:
            norms.append(row.cells["gradient"])
        if row.cells.get("off") is not None and not row.name.startswith(("limbeck", "definition")):
            strays.append(row.cells["off"])
    report.checks.append(Check("every convertible peer times its factor equals ours, relative", max(strays), 1e-5))
    report.settings["gradients_span"] = max(norms) / min(norms)
    report.notes.append(f"gradient norms of 'the same' loss span a factor of {max(norms) / min(norms):,.0f}")
    return report


def _row(name: str, value: float, found: Tensor, slope: Tensor, factor: float | None, what: str) -> Row:
    off = None if factor is None else float((found.double() * factor - slope).norm() / slope.norm())
    return Row(name, {"value": value, "gradient": float(found.norm()), "factor to ours": factor, "off": off}, what)
