"""The output layer of a language model and a divergence over its vocabulary: time, memory, gradients.

The time floor is four matrix products without any softmax: both projections, and the products that give the gradients of
hidden states and weight. Memory is measured in a process of its own for every line. Peers run on their CPU paths in
torch; on a GPU TRL and Liger have kernels of their own, which are not measured here.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from benchmarks import peers
from benchmarks.harness import Check, Report, Row, Say, cpu_seconds, interleave, peak_growth, quiet, ratios, spread
from limbeck.functional import chunked_divergence

BETA = {"KL": 0.0, "JSD": 0.5}
"""The share of the teacher in the mixture: 0 is KL(teacher || student)."""


@dataclass(frozen=True)
class Settings:
    """Sizes."""

    hidden: int = 256
    vocabulary: int = 32_000
    tokens: int = 256
    rounds: int = 7
    memory_tokens: int = 512
    memory_vocabularies: tuple[int, ...] = (32_000, 128_000)


TOY = Settings(hidden=16, vocabulary=300, tokens=20, rounds=1, memory_tokens=20, memory_vocabularies=(300,))


@dataclass
class Heads:
    """Last hidden states and output weights of both models; the student's want gradients."""

    h_s: Tensor
    w_s: Tensor
    h_t: Tensor
    w_t: Tensor

    def clear(self) -> None:
        """Forget the gradients."""
        self.h_s.grad = self.w_s.grad = None


def heads(tokens: int, hidden: int, vocabulary: int) -> Heads:
    """Random heads whose logits have a deviation of about 2."""
    draw = torch.Generator().manual_seed(0)
    h_s, h_t = (torch.randn(tokens, hidden, generator=draw) for _ in range(2))
    w_s, w_t = (torch.randn(vocabulary, hidden, generator=draw).mul_(2.0 / hidden**0.5) for _ in range(2))
    return Heads(h_s.requires_grad_(True), w_s.requires_grad_(True), h_t, w_t)


Loss = Callable[[Heads], Tensor]
"""The mean over tokens, with its graph."""


def ours(beta: float) -> Loss:
    """limbeck's chunked divergence."""
    kind: dict[str, Any] = {"kind": "jensen_shannon", "beta": beta} if beta else {"kind": "forward"}
    return lambda x: chunked_divergence(x.h_s, x.w_s, x.h_t, x.w_t, **kind).mean()


def textbook(beta: float) -> Loss:
    """All logits at once, torch's own functions."""

    def loss(x: Heads) -> Tensor:
        with torch.no_grad():
            log_p = (x.h_t @ x.w_t.t()).log_softmax(-1)
        log_q = (x.h_s @ x.w_s.t()).log_softmax(-1)
        if not beta:
            return nnf.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        mixed = torch.lerp(log_q.exp(), log_p.exp(), beta).log()
        teacher = nnf.kl_div(mixed, log_p, log_target=True, reduction="batchmean")
        return beta * teacher + (1 - beta) * nnf.kl_div(mixed, log_q, log_target=True, reduction="batchmean")

    return loss


def trl_chunked(beta: float) -> Loss:
    """TRL's chunked divergence (DistillationTrainer), torch path."""
    function = peers.load("trl", "trl.kernels.chunked_divergence").ChunkedDivergenceFunction

    def loss(x: Heads) -> Tensor:
        value: Tensor = function.apply(x.h_s, x.w_s, None, x.h_t, x.w_t, None, beta, 1.0)[0].mean()
        return value

    return loss


def trl_gkd(beta: float) -> Loss:
    """TRL's GKDTrainer, from all logits."""
    function = peers.load("trl", "trl.experimental.gkd").GKDTrainer.generalized_jsd_loss

    def loss(x: Heads) -> Tensor:
        with torch.no_grad():
            z_t = x.h_t @ x.w_t.t()
        value: Tensor = function((x.h_s @ x.w_s.t())[:, None], z_t[:, None], beta=beta)
        return value

    return loss


def liger(beta: float, chunk: int) -> Loss:
    """Liger's chunked distillation loss, not compiled (there is no compiled form that a CPU gains from)."""
    made = peers.load("liger", "liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=chunk
    )

    def loss(x: Heads) -> Tensor:
        labels = torch.zeros(len(x.h_s), dtype=torch.long)
        value: Tensor = made(x.h_s, x.w_s, x.h_t, x.w_t, labels)
        return value

    return loss


LOSSES: dict[str, Callable[[float], Loss]] = {
    "limbeck chunked_divergence": ours,
    "textbook, all logits": textbook,
    "TRL chunked": trl_chunked,
    "TRL GKDTrainer loss": trl_gkd,
    "Liger, chunks of 128": functools.partial(liger, chunk=128),
    "Liger, chunks of 1024": functools.partial(liger, chunk=1024),
}
OURS, TRL = "limbeck chunked_divergence", "TRL chunked"
LARGE = (OURS, TRL, "Liger, chunks of 1024")
"""Whose memory is measured at the larger vocabularies too."""


def floor(x: Heads) -> None:
    """Four products, nothing else."""
    with torch.no_grad():
        z = x.h_s @ x.w_s.t()
        x.h_t @ x.w_t.t()
        x.h_s.grad, x.w_s.grad = z @ x.w_s, z.t() @ x.h_s


def gradients(loss: Loss, x: Heads) -> tuple[float, Tensor, Tensor]:
    """The value and both gradients."""
    x.clear()
    value = loss(x)
    value.backward()
    assert x.h_s.grad is not None and x.w_s.grad is not None
    return float(value.detach()), x.h_s.grad, x.w_s.grad


def memory_work(name: str, kind: str, tokens: int, hidden: int, vocabulary: int) -> Callable[[], Any]:
    """For ``peak_growth``: one forward and backward pass. A tiny one before warms the libraries up."""
    if name == "floor":
        floor(heads(4, hidden, 100))
        x = heads(tokens, hidden, vocabulary)
        return lambda: floor(x)
    loss = LOSSES[name](BETA[kind])
    gradients(loss, heads(4, hidden, 100))
    x = heads(tokens, hidden, vocabulary)
    return lambda: gradients(loss, x)


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """Time, gradients and memory."""
    settings = settings or Settings()
    report = Report("llm-head", "Language-model head and divergence: CPU time and peak memory", asdict(settings))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    sizes = {"hidden": settings.hidden, "tokens": settings.memory_tokens}
    for kind, beta in BETA.items():
        x = heads(settings.tokens, settings.hidden, settings.vocabulary)
        losses: dict[str, Loss] = {}
        for name, make in LOSSES.items():
            with report.peer(f"{kind}: {name}"):
                losses[name] = make(beta)
        truth = gradients(textbook(beta), x)
        exact = _exact(beta, x)
        worst = 0.0
        for name, loss in losses.items():
            value, dh, dw = gradients(loss, x)
            off = max(float((a - b).norm() / b.norm()) for a, b in ((dh, truth[1]), (dw, truth[2])))
            rows[kind, name] = {"value off": abs(value - exact), "gradient off": off}
            if name in (OURS, TRL):
                worst = max(worst, off)
        report.checks.append(Check(f"{kind}: gradients equal the textbook's (and TRL's), relative", worst, 1e-5))

        variants = {"floor": functools.partial(cpu_seconds, functools.partial(floor, x))}
        variants |= {n: functools.partial(cpu_seconds, functools.partial(gradients, f, x)) for n, f in losses.items()}
        raw = interleave(variants, settings.rounds, say)
        for name, values in raw.items():
            cells = {"ms": 1000 * statistics.median(values), "of the floor": spread(ratios(raw, name, "floor"))}
            rows.setdefault((kind, name), {}).update(cells)
        report.raw[f"{kind} seconds"] = raw
        share = statistics.median(ratios(raw, OURS, TRL)) if TRL in raw else None
        report.checks.append(Check(f"{kind}: time beside TRL's chunked loss", share, 0.4, why="TRL is not installed"))

        for vocabulary in settings.memory_vocabularies:
            grown: dict[str, float] = {}
            first = vocabulary == settings.memory_vocabularies[0]
            for name in ("floor", *losses) if first else [n for n in LARGE if n in losses]:
                say(f"{kind}, memory of {name} at {vocabulary:,} words")
                with report.peer(f"{kind}: {name}"):
                    grown[name] = peak_growth(
                        "benchmarks.llm_head:memory_work", name=name, kind=kind, vocabulary=vocabulary, **sizes
                    )
                    rows[kind, name][f"MB at {vocabulary:,}"] = grown[name]
            report.raw[f"{kind} MB at {vocabulary}"] = grown
            less = grown[OURS] / grown[TRL] if TRL in grown else None
            report.checks.append(
                Check(
                    f"{kind}: memory beside TRL's chunked loss, {vocabulary:,} words",
                    less,
                    0.1 if vocabulary <= 32_000 else 0.25,
                    why="TRL is not installed",
                )
            )
    report.rows[:0] = [Row(f"{kind}: {name}", cells) for (kind, name), cells in rows.items()]
    report.notes.append(
        "memory includes the gradient of the output weight, which every line has to hold: "
        + ", ".join(f"{4 * v * settings.hidden / 2**20:.0f} MB at {v:,} words" for v in settings.memory_vocabularies)
    )
    return report


def _exact(beta: float, x: Heads) -> float:
    """The value in float64, from the definition."""
    with torch.no_grad():
        q = (x.h_s.double() @ x.w_s.double().t()).softmax(-1)
        p = (x.h_t.double() @ x.w_t.double().t()).softmax(-1)
        if not beta:
            return float((p * (p.log() - q.log())).sum(-1).mean())
        m = (1 - beta) * q + beta * p
        parts = beta * p * (p.log() - m.log()) + (1 - beta) * q * (q.log() - m.log())
        return float(parts.sum(-1).mean())


__all__ = ["LOSSES", "TOY", "Settings", "memory_work", "run"]
