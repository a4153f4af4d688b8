"""Data that teaches like more data: matching of training trajectories, of gradients and of feature means.

**Trajectories** (Cazenavette et al. 2022, MTT, arXiv 2203.11932). A student starts at an expert's parameters theta_0
and takes N plain gradient steps on synthetic data; it should arrive where the expert was M epochs later::

    theta_{n+1} = theta_n - alpha g_n,   g_n = grad CE(theta_n; x_n, y_n)
    L = |theta_N - theta*|^2 / |theta_0 - theta*|^2

:func:`trajectory_gradient` gives L with its gradients by images and by alpha, in one of three modes:

``unrolled``
    autograd through all N steps (MTT). Memory grows with N.
``exact``
    the same gradient by the adjoint recursion ``lambda_N = 2 (theta_N - theta*)/D``, ``dx_n = -alpha d<g_n,
    lambda_{n+1}>/dx_n``, ``lambda_n = lambda_{n+1} - alpha H_n lambda_{n+1}``: the graph of one step at a time, and the
    N parameter vectors. This mode is limbeck's own.
``first_order``
    two passes that treat theta_n as a constant (Cui et al. 2023, TESLA, arXiv 2211.10586): the recursion without its
    last line. Constant memory, *not* the same gradient unless N = 1. ``variant="released"`` is half of it by the
    images, for the published code doubles the tuple that holds the gradient instead of the gradient.

**Gradients** (Zhao et al. 2021, DC, arXiv 2006.05929): :func:`match_loss`, :func:`gradient_matching`.
**Feature means** (Zhao and Bilen 2023, DM, arXiv 2110.04181): :func:`mean_matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import ConfigError, DataError, ShapeError

from ._common import statistics_dtype
from ._once import eager, known_gradient

__all__ = [
    "Trajectory",
    "flat_parameters",
    "flat_step_loss",
    "gradient_matching",
    "loops_for",
    "match_loss",
    "mean_matching",
    "syn_batches",
    "trajectory_gradient",
    "unflatten",
]

Mode = Literal["exact", "first_order", "unrolled"]
Variant = Literal["paper", "released"]
Metric = Literal["ours", "mse", "cos"]
StepLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Augment = Callable[[int, Tensor], Tensor]

BY_HAND = "torch.autograd on an inner training that is written out"
DISTANCE = "match_loss of gradients taken with create_graph=True"

MODES: tuple[str, ...] = get_args(Mode)
VARIANTS: tuple[str, ...] = get_args(Variant)
METRICS: tuple[str, ...] = get_args(Metric)


# ------------------------------------------------------------------------------------------------------ flat parameters


def flat_parameters(net: nn.Module) -> Tensor:
    """All parameters as one detached vector ``[P]``, in ``named_parameters()`` order; a copy, never a view.

    Example:
        >>> flat_parameters(nn.Linear(3, 2)).shape
        torch.Size([8])
    """
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def unflatten(flat: Tensor, net: nn.Module) -> dict[str, Tensor]:
    """Views of a flat vector ``[P]`` under the names and shapes of ``net``'s parameters.

    Raises:
        ShapeError: if the vector has another length than the network has parameters.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> torch.equal(unflatten(flat_parameters(net), net)["weight"], net.weight)
        True
    """
    named = list(net.named_parameters())
    total = sum(p.numel() for _, p in named)
    if flat.ndim != 1 or flat.numel() != total:
        raise ShapeError(
            "parameters",
            f"the vector does not fit {type(net).__name__}",
            given=tuple(flat.shape),
            expected=f"[{total}]",
            remedy="was the trajectory recorded with another network?",
        )
    parts = torch.split(flat, [p.numel() for _, p in named])
    return {name: part.view_as(p) for (name, p), part in zip(named, parts, strict=True)}


def flat_step_loss(net: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> StepLoss:
    """``(theta [P], x, y) -> mean loss`` of a network run on a flat parameter vector; ``net`` itself is not changed.

    Labels may be class numbers ``[b]`` or soft ``[b, C]``. The network must answer the same twice: no dropout, and
    batch normalisation only in evaluation mode or without running statistics.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> loss = flat_step_loss(net)(flat_parameters(net), torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
        >>> loss.shape
        torch.Size([])
    """

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return criterion(torch.func.functional_call(net, unflatten(theta, net), (x,)), y)

    return loss


def syn_batches(permute: Callable[[int], Tensor], count: int, steps: int, batch: int | None = None) -> list[Tensor]:
    """Which synthetic images each of the N student steps sees: permutations cut into chunks, the LAST chunk first.

    Args:
        permute: ``permute(k)`` gives the k-th permutation of ``range(count)``, int64 ``[count]``.
        count: number of synthetic images.
        steps: N.
        batch: images per step; all of them by default.

    Returns:
        N index tensors, int64 ``[b]``; where ``batch`` does not divide ``count`` the first of a pass is the short one.

    Raises:
        ConfigError: if ``batch`` exceeds ``count`` or anything is below 1.

    Example:
        >>> [b.tolist() for b in syn_batches(lambda k: torch.arange(5), 5, 4, 2)]
        [[4], [2, 3], [0, 1], [4]]
    """
    batch = count if batch is None else batch
    if steps < 1:
        raise ConfigError("steps", "the student takes at least one step", given=steps, expected=">= 1")
    if not 1 <= batch <= count:
        raise ConfigError(
            "batch_syn",
            "a step cannot see more images than there are",
            given=batch,
            expected=f"between 1 and {count} (classes x images per class)",
        )
    batches: list[Tensor] = []
    passes = 0
    while len(batches) < steps:
        order = permute(passes)
        if order.shape != (count,):
            raise ShapeError("permute", given=tuple(order.shape), expected=f"a permutation [{count}]")
        batches += list(torch.split(order, batch))[::-1]
        passes += 1
    return batches[:steps]


# -------------------------------------------------------------------------------------------------- trajectory matching


class Trajectory(NamedTuple):
    """What :func:`trajectory_gradient` answers; nothing in it has a graph.

    ``loss`` scalar; ``grad_images`` like the images; ``grad_lr`` scalar; ``final`` theta_N ``[P]``; ``grad_labels``
    like the labels, or None.
    """

    loss: Tensor
    grad_images: Tensor
    grad_lr: Tensor
    final: Tensor
    grad_labels: Tensor | None = None

    def surrogate(self, images: Tensor, lr: Tensor, labels: Tensor | None = None) -> Tensor:
        """A scalar whose value is the loss and whose ``backward()`` gives these gradients to images, lr (and labels).

        Example:
            >>> t = Trajectory(torch.tensor(2.0), torch.ones(3), torch.tensor(5.0), torch.zeros(1))
            >>> x, a = torch.zeros(3, requires_grad=True), torch.tensor(0.1, requires_grad=True)
            >>> value = t.surrogate(x, a); value.backward()
            >>> value.item(), x.grad.tolist(), a.grad.item()
            (2.0, [1.0, 1.0, 1.0], 5.0)
        """
        value = self.loss
        for given, slope in ((images, self.grad_images), (lr, self.grad_lr), (labels, self.grad_labels)):
            if given is not None and slope is not None:
                value = value + known_gradient(given, slope, "Trajectory.surrogate", BY_HAND)
        return value


class _Student:
    """The inner training, one step at a time, replayable."""

    def __init__(
        self,
        step_loss: StepLoss,
        images: Tensor,
        labels: Tensor,
        batches: Sequence[Tensor],
        lr: Tensor,
        augment: Augment | None,
    ) -> None:
        self.step_loss, self.images, self.labels = step_loss, images, labels
        self.batches, self.lr, self.augment = batches, lr, augment

    def seen(self, n: int, x: Tensor) -> Tensor:
        return x if self.augment is None else self.augment(n, x)

    def advance(self, n: int, theta: Tensor) -> Tensor:
        """theta_{n+1}, without graph."""
        with torch.no_grad():
            x = self.seen(n, self.images[self.batches[n]])
        theta = theta.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self.step_loss(theta, x, self.labels[self.batches[n]])
            (slope,) = torch.autograd.grad(loss, theta)
        return theta.detach() - self.lr * slope

    def pull(
        self, n: int, theta: Tensor, adjoint: Tensor, through_theta: bool, learn_labels: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """g_n, and the derivatives of ``<g_n, adjoint>`` by x_n, by theta_n and by y_n."""
        x = self.images[self.batches[n]].detach().requires_grad_(True)
        y = self.labels[self.batches[n]].detach().requires_grad_(learn_labels)
        theta = theta.detach().requires_grad_(True)
        wanted = [x] + [theta] * through_theta + [y] * learn_labels
        with torch.enable_grad():
            loss = self.step_loss(theta, self.seen(n, x), y)
            (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
        if slope.requires_grad:
            got = torch.autograd.grad(slope, wanted, grad_outputs=adjoint, materialize_grads=True)
        else:  # a loss linear in theta with a constant slope
            got = tuple(torch.zeros_like(t) for t in wanted)
        pulled = iter(got)
        by_x = next(pulled)
        by_theta = next(pulled) if through_theta else None
        return slope.detach(), by_x, by_theta, next(pulled, None)


@eager(BY_HAND)
def trajectory_gradient(
    step_loss: StepLoss,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    lr: Tensor | float,
    *,
    mode: Mode = "exact",
    variant: Variant = "paper",
    augment: Augment | None = None,
    learn_labels: bool = False,
    segment: int = 1,
) -> Trajectory:
    """The trajectory-matching loss of a synthetic data set, with its gradients (see the module for the three modes).

    Args:
        step_loss: ``(theta [P], x, y) -> scalar``, the mean loss of one inner step, differentiable twice; see
            :func:`flat_step_loss`. Called twice a step by ``exact`` and ``first_order``: it must answer the same both
            times.
        start: theta_0 ``[P]``. target: theta* ``[P]``.
        images: ``[M, ...]`` synthetic data. labels: class numbers ``[M]`` or soft labels ``[M, C]``.
        batches: N index tensors into them, see :func:`syn_batches`.
        lr: the inner learning rate alpha, a positive scalar.
        mode: ``exact``, ``first_order`` or ``unrolled``.
        variant: ``released`` halves the image gradient of ``first_order``, as TESLA's published code does.
        augment: ``augment(n, x) -> x'``, differentiable, and the same for the same n: it is replayed instead of kept.
            Key its draws by n.
        learn_labels: also give the gradient by the (soft) labels.
        segment: ``exact`` keeps every ``segment``-th parameter vector and recomputes the ones between; 1 keeps all N,
            sqrt(N) keeps fewest, at the price of one more forward and backward of each step.

    Returns:
        A :class:`Trajectory`.

    Raises:
        DataError: if start and target are the same (the expert did not move) or not finite.
        ConfigError: for ``lr <= 0``, an unknown mode or variant, or no batches. ShapeError: if sizes do not fit.

    Example:
        >>> net, x = nn.Linear(3, 2), torch.randn(4, 3)
        >>> theta = flat_parameters(net)
        >>> inputs = (flat_step_loss(net), theta, theta + 0.1, x, torch.tensor([0, 1, 0, 1]), [torch.arange(4)] * 3)
        >>> a = trajectory_gradient(*inputs, lr=0.1)
        >>> b = trajectory_gradient(*inputs, lr=0.1, mode="unrolled")
        >>> torch.allclose(a.grad_images, b.grad_images, atol=1e-6)
        True
    """
    rate = _checked(start, target, images, labels, batches, lr, mode, variant, learn_labels, segment)
    start, target = start.detach(), target.detach()
    batches = [b.to(images.device) for b in batches]
    distance = (start - target).square().sum()
    if not bool(distance > 0) or not bool(torch.isfinite(distance)):
        raise DataError(
            "trajectory",
            "the expert did not move: start and target are the same"
            if bool(distance == 0)
            else "the expert's parameters are not finite",
            expected="two different snapshots of one expert",
            remedy="record snapshots as copies (on a CPU, detach().cpu() is a view of the live weights)",
        )
    if mode == "unrolled":
        return _unrolled(step_loss, start, target, images, labels, batches, rate, augment, learn_labels, distance)

    student = _Student(step_loss, images.detach(), labels.detach(), batches, rate, augment)
    exact, steps = mode == "exact", len(batches)
    kept: list[Tensor] = []
    theta = start
    for n in range(steps):
        if exact and n % segment == 0:
            kept.append(theta)
        theta = student.advance(n, theta)
    final = theta
    adjoint = 2.0 * (final - target) / distance
    loss = (final - target).square().sum() / distance

    grad_images = torch.zeros_like(student.images)
    grad_labels = torch.zeros_like(student.labels) if learn_labels else None
    grad_lr = torch.zeros_like(rate)
    walk = _backwards(student, kept, steps, segment) if exact else _forwards(student, start, steps)
    theta = start
    for n, given in walk:
        theta = theta if given is None else given
        slope, by_x, by_theta, by_y = student.pull(n, theta, adjoint, exact and n > 0, learn_labels)
        grad_images.index_add_(0, batches[n], (-rate * by_x).to(grad_images.dtype))
        if grad_labels is not None and by_y is not None:
            grad_labels.index_add_(0, batches[n], (-rate * by_y).to(grad_labels.dtype))
        grad_lr = grad_lr - torch.dot(slope, adjoint)
        if by_theta is not None:
            adjoint = adjoint - rate * by_theta
        if not exact:
            theta = theta - rate * slope
    if not exact and variant == "released":
        grad_images = 0.5 * grad_images
    return Trajectory(loss, grad_images, grad_lr, final, grad_labels)


def _forwards(student: _Student, start: Tensor, steps: int) -> Iterator[tuple[int, Tensor | None]]:
    """First order: the walk is forwards, and theta follows from the slopes that the pull computes anyway."""
    yield 0, start
    for n in range(1, steps):
        yield n, None


def _backwards(student: _Student, kept: list[Tensor], steps: int, segment: int) -> Iterator[tuple[int, Tensor | None]]:
    """Exact: the walk is backwards; what was not kept of theta is recomputed a segment at a time."""
    for low in reversed(range(0, steps, segment)):
        thetas = [kept.pop()]
        for n in range(low, min(low + segment, steps) - 1):
            thetas.append(student.advance(n, thetas[-1]))
        for n in reversed(range(low, low + len(thetas))):
            yield n, thetas.pop()


def _unrolled(
    step_loss: StepLoss,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    rate: Tensor,
    augment: Augment | None,
    learn_labels: bool,
    distance: Tensor,
) -> Trajectory:
    x_all = images.detach().requires_grad_(True)
    y_all = labels.detach().requires_grad_(learn_labels)
    alpha = rate.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        theta = start.detach().clone().requires_grad_(True)
        for n, batch in enumerate(batches):
            x = x_all[batch] if augment is None else augment(n, x_all[batch])
            (slope,) = torch.autograd.grad(step_loss(theta, x, y_all[batch]), theta, create_graph=True)
            theta = theta - alpha * slope
        loss = (theta - target).square().sum() / distance
        wanted = [x_all, alpha] + [y_all] * learn_labels
        grads = torch.autograd.grad(loss, wanted, materialize_grads=True)
    by_y = grads[2] if learn_labels else None
    return Trajectory(loss.detach(), grads[0], grads[1], theta.detach(), by_y)


def _checked(
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    lr: Tensor | float,
    mode: str,
    variant: str,
    learn_labels: bool,
    segment: int,
) -> Tensor:
    if mode not in MODES:
        raise ConfigError.unknown("mode", mode, MODES)
    if variant not in VARIANTS:
        raise ConfigError.unknown("variant", variant, VARIANTS)
    if len(batches) == 0:
        raise ConfigError("batches", "the student takes at least one step", given=0, expected=">= 1")
    if any(len(batch) == 0 for batch in batches):
        raise DataError("batches", "a step of the student sees no images", expected="at least one in each batch")
    if segment < 1:
        raise ConfigError("segment", given=segment, expected=">= 1")
    if start.ndim != 1 or start.shape != target.shape:
        raise ShapeError(
            "target",
            "start and target are flat vectors of the same network",
            given=(tuple(start.shape), tuple(target.shape)),
            expected="[P] and [P]",
        )
    if labels.shape[:1] != images.shape[:1]:
        raise ShapeError("labels", given=tuple(labels.shape), expected=f"[{images.shape[0]}] or [{images.shape[0]}, C]")
    if learn_labels and not labels.is_floating_point():
        raise ConfigError("learn_labels", "class numbers have no gradient", expected="soft labels [M, C]")
    rate = lr.detach() if isinstance(lr, Tensor) else torch.tensor(lr, dtype=start.dtype)
    rate = rate.to(start.device, start.dtype).reshape(())
    if not bool(rate > 0):
        raise ConfigError(
            "lr",
            "the inner learning rate must stay positive",
            given=rate.item(),
            expected="> 0",
            remedy="lower the learning rate of the learning rate",
        )
    return rate


# ---------------------------------------------------------------------------------------------------- gradient matching


def match_loss(real: Iterable[Tensor], syn: Iterable[Tensor], metric: Metric = "ours", eps: float = 1e-6) -> Tensor:
    """Distance between two lists of parameter gradients, a scalar.

    ``ours`` (DC, equation 10): one minus the cosine of every output row, summed over rows and layers; vectors (biases,
    normalisation) count nothing, and a zero row costs exactly 1. ``mse``: squared distance of everything. ``cos``: one
    minus the cosine of everything. The ``eps`` in the denominators is the published one, so equal gradients give about
    ``eps``, not zero.

    Args:
        real, syn: gradients in the same parameter order, tensors of equal shapes.
        metric: which distance.
        eps: added to the product of norms.

    Raises:
        ShapeError: if the lists differ in length or shapes. ConfigError: for an unknown metric.

    Example:
        >>> g = [torch.eye(3), torch.ones(3)]
        >>> match_loss(g, [-t for t in g]).round().item()  # three opposite rows cost 2 each
        6.0
    """
    if metric not in METRICS:
        raise ConfigError.unknown("metric", metric, METRICS)
    real, syn = ([t.to(statistics_dtype(t)) for t in side] for side in (real, syn))
    if [t.shape for t in real] != [t.shape for t in syn]:
        raise ShapeError(
            "syn",
            "both lists hold one gradient per parameter",
            given=[tuple(t.shape) for t in syn],
            expected=str([tuple(t.shape) for t in real]),
        )
    if metric == "ours":
        rows = [(a.flatten(1), b.flatten(1)) for a, b in zip(real, syn, strict=True) if a.ndim > 1]
        if not rows:
            raise ShapeError("real", "no parameter has rows to compare", expected="a matrix or a convolution")
        return torch.stack([_row_distance(a, b, eps).sum() for a, b in rows]).sum()
    a, b = (torch.cat([t.reshape(-1) for t in side]) for side in (real, syn))
    if metric == "mse":
        return (a - b).square().sum()
    return _row_distance(a, b, eps)


def _row_distance(a: Tensor, b: Tensor, eps: float) -> Tensor:
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    cosine: Tensor = (a * b).sum(-1) / (norms + eps)
    return 1.0 - cosine


@eager(DISTANCE)
def gradient_matching(
    net: nn.Module,
    real: tuple[Tensor, Tensor],
    syn: tuple[Tensor, Tensor],
    metric: Metric = "ours",
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """Distance between the parameter gradients of a real and of a synthetic batch: a scalar, differentiable once.

    Only the synthetic images (and soft labels, if they ask for it) get a gradient. It is computed here and carried by
    the result, so no double graph outlives the call: DC calls this once per class and sums, in the memory of one class.
    A second derivative is refused, and so are torch.func's transforms.

    Args:
        net: any network; nothing flows into its parameters.
        real: ``(x [b, ...], y)``. syn: ``(x [s, ...], y)``; labels are class numbers or soft.
        metric: see :func:`match_loss`.
        criterion: the loss, averaged over the batch.

    Raises:
        ConfigError: if no parameter of ``net`` is trainable, or the metric is unknown. DataError: for an empty batch.

    Source: Zhao, Mopuri and Bilen 2021, algorithm 1.

    Example:
        >>> net, x = nn.Linear(3, 2), torch.randn(1, 3, requires_grad=True)
        >>> y = torch.zeros(1, dtype=torch.long)
        >>> gradient_matching(net, (torch.randn(5, 3), y.expand(5)), (x, y)).backward()
        >>> x.grad.shape, net.weight.grad
        (torch.Size([1, 3]), None)
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("net", "no parameter is trainable", remedy="call net.requires_grad_(True) first")
    for name, (x, _) in (("real", real), ("syn", syn)):
        if len(x) == 0:
            raise DataError(name, "the batch is empty", given=list(x.shape), expected="at least one item")
    wanted = [t for t in syn if t.requires_grad and torch.is_grad_enabled()]
    with torch.enable_grad():
        loss = criterion(net(real[0].detach()), real[1].detach())
        g_real = torch.autograd.grad(loss, parameters, materialize_grads=True)
        x, y = (t.detach().requires_grad_(t.requires_grad) for t in syn)
        loss = criterion(net(x), y)
        g_syn = torch.autograd.grad(loss, parameters, create_graph=bool(wanted), materialize_grads=True)
        distance = match_loss(g_real, g_syn, metric)
    value = distance.detach()
    if wanted:
        leaves = [t for t in (x, y) if t.requires_grad]
        for given, slope in zip(wanted, torch.autograd.grad(distance, leaves, materialize_grads=True), strict=True):
            value = value + known_gradient(given, slope, "gradient_matching", DISTANCE)
    return value


_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def loops_for(ipc: int) -> tuple[int, int]:
    """(outer, inner) loop counts of DC and DSA by images per class, as published.

    Raises:
        ConfigError: for an ipc that has no published entry.

    Example:
        >>> loops_for(10)
        (10, 50)
    """
    if ipc not in _LOOPS:
        raise ConfigError(
            "ipc",
            "no loop counts were published for this number of images per class",
            given=ipc,
            expected=", ".join(str(k) for k in _LOOPS),
            remedy="give outer and inner loop counts yourself",
        )
    return _LOOPS[ipc]


# ----------------------------------------------------------------------------------------------------- feature matching


def mean_matching(
    embed: Callable[[Tensor], Tensor],
    real: Sequence[Tensor] | Tensor,
    syn: Sequence[Tensor] | Tensor,
    *,
    together: bool = False,
) -> Tensor:
    """Squared distance of mean embeddings, class by class: ``[C]`` (DM sums them).

    Args:
        embed: ``[b, ...] -> [b, D]`` features of a random network.
        real, syn: one batch per class, ``[b_c, ...]`` each (a tensor ``[C, b, ...]`` will do). Only ``syn`` gets a
            gradient.
        together: one forward for all classes of each side, which batch normalisation needs to see mixed classes.

    Source: Zhao and Bilen 2023, equation 4.

    Example:
        >>> x = torch.randn(2, 5, 3)
        >>> mean_matching(lambda t: t, x, x).tolist()
        [0.0, 0.0]
    """
    if len(real) != len(syn):
        raise ShapeError("syn", "one batch per class on both sides", given=len(syn), expected=f"{len(real)} classes")
    with torch.no_grad():
        means = _means(embed, list(real), together)
    gaps = [(a.detach() - b).square().sum() for a, b in zip(means, _means(embed, list(syn), together), strict=True)]
    return torch.stack(gaps)


def _means(embed: Callable[[Tensor], Tensor], groups: list[Tensor], together: bool) -> list[Tensor]:
    if any(len(g) == 0 for g in groups):
        raise DataError("data", "a class has no images", given=[len(g) for g in groups], expected="at least one each")
    if together:
        features = torch.split(embed(torch.cat(groups)), [len(g) for g in groups])
    else:
        features = tuple(embed(g) for g in groups)
    return [f.to(statistics_dtype(f)).flatten(1).mean(0) for f in features]
