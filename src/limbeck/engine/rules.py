"""What a method must keep to, looked at while it runs, where looking costs nothing worth naming.

A term may reach no role that it does not declare: its graph is walked, not differentiated, the first time that a phase of
its kind is seen. A term that has no graph trains nothing. Processes must do the same phases, for they sum what these give.
Items are remembered one by one, so what their work did to a role would be lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import distributed as dist
from limbeck.errors import MethodError
from limbeck.functional.precision import widened
from limbeck.grammar.method import Gather, Share, Terms
from limbeck.grammar.role import Role
from limbeck.storage import store


def leaves(value: Tensor) -> set[int]:
    """The tensors that a value's graph ends in (parameters), by their ``id``. Walks the graph, computes nothing."""
    found: set[int] = set()
    seen: set[object] = set()
    left = [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        left.extend(n for n, _ in node.next_functions)
    return found


class Routing:
    """Watches where the terms of a stage's phases lead.

    Args:
        stage: its name, for messages.
        roles: the method's.
        updated: the parameters an optimiser moves, by role.
    """

    def __init__(self, stage: str, roles: Mapping[str, Role], updated: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.stage, self.roles = stage, roles
        # a split role's graph ends in parameters that are put together for the pass and thrown away
        self._held = {r: {id(p) for p in ps} for r, ps in updated.items() if not roles[r].shard}
        self._known: set[tuple[tuple[str, tuple[str, ...]], ...]] = set()

    def check(
        self, terms: Terms, totals: Mapping[str, Tensor], made: Mapping[int, Sequence[Tensor]] | None = None
    ) -> None:
        """One phase of one micro-batch, before its backward pass.

        Args:
            terms: the phase.
            totals: each term's sum.
            made: by the ``id`` of a tensor in which graphs end, what stands behind it (rows of the whole batch).

        Raises:
            MethodError: a term trains nothing, or reaches a role of this phase that it does not declare.
        """
        for name, term in terms.items():
            total = totals[name]
            if not total.requires_grad and any(r in self._held for r in term.to) and _counts(term.weight, total):
                raise MethodError(
                    f"term {name!r}",
                    f"stage {self.stage!r}: its values have no graph, so it trains nothing",
                    expected=f"values that depend on {_and(term.to)}",
                    remedy="look for torch.no_grad(), .detach() or .item() on their way; what is only shown is a metric: "
                    "Terms({name: (sum, count)}, ...)",
                )
        kind = tuple((name, term.to) for name, term in terms.items())
        if kind in self._known:
            return
        self._known.add(kind)
        touched = {r for term in terms.values() for r in term.to if r in self._held}
        for name, term in terms.items():
            others = touched - set(term.to)
            if not others or not totals[name].requires_grad:
                continue
            mine = set().union(*(self._held.get(r, set()) for r in term.to))
            ends = leaves(totals[name])
            for end in ends & set(made or ()):
                ends |= set().union(*map(leaves, (made or {})[end]))
            reached = ends - mine
            leaks = sorted(r for r in others if reached & self._held[r])
            if leaks:
                raise MethodError(
                    f"term {name!r}",
                    f"stage {self.stage!r}: it is declared for {_and(term.to)} and its gradient also reaches "
                    f"{_and(leaks)}, which this phase updates",
                    remedy=f"detach what comes from {_and(leaks)}, or call it inside ctx.through({leaks[0]!r}); "
                    f"or declare it: Term(..., to={(*term.to, *leaks)})",
                )


def _counts(weight: float | Tensor, total: Tensor) -> bool:
    """Whether a constant term says anything: one of zero, or of weight zero, is a term that rests."""
    return bool(weight != 0) and bool(total.detach() != 0)


def same_phase(stage: str, step: int, found: Sequence[Terms | Share | Gather | None], seen: bool) -> None:
    """Every process must have come to the same phase, before any of them sums anything with the others.

    Args:
        stage, step: for the message.
        found: what each micro-batch of this process yielded; ``None``: its step is over.
        seen: whether the counts of its terms are known only now.

    Raises:
        MethodError: they differ; what each of them came to is told.
    """
    mine = "; ".join(dict.fromkeys(map(_spoken, found))) + (" (counts known after the pass)" if seen else "")
    told = dist.disagreement(mine)
    if told:
        each = " | ".join(f"process {rank}: {text}" for rank, text in enumerate(told))
        raise MethodError(
            f"stage {stage}",
            f"step {step} is not the same in every process: {each}",
            expected="the same phases, terms, roles and Shares, whatever items a process sees",
            remedy="mask values by where=, weight a term by 0, or decide by what all processes share: "
            "ctx.step, ctx.draws with a fixed stream, self.state moved in observe",
        )


def _spoken(phase: Terms | Share | Gather | None) -> str:
    if phase is None:
        return "the step is over"
    if isinstance(phase, Share):
        return "shares " + ", ".join(f"{n} {list(t.shape)} {t.dtype}".replace("torch.", "") for n, t in phase.items())
    if isinstance(phase, Gather):  # each may hold another number of rows
        rows = (f"{n} {['n', *t.shape[1:]]} {t.dtype}{' with a graph' * t.requires_grad}" for n, t in phase.items())
        return "gathers " + ", ".join(rows).replace("torch.", "").replace("'", "")
    said = "updates " + ", ".join(f"{_and(t.to)} by {n}" for n, t in phase.items())
    return said + (f", shows {', '.join(sorted(phase.metrics))}" if phase.metrics else "")


def _and(names: Sequence[str]) -> str:
    return " and ".join(repr(n) for n in names)


@torch.no_grad()
def norms(module: nn.Module) -> dict[str, Tensor]:
    """A norm of every parameter and buffer, by name: enough to tell that one has moved, and cheap where a hash is not."""
    found = {
        k: v if v.is_floating_point() else v.to(torch.float32)
        for k, v in (*module.named_parameters(), *module.named_buffers())
        if v.layout is torch.strided and not v.is_complex()
    }
    return dict(zip(found, torch._foreach_norm(tuple(found.values())), strict=True)) if found else {}


def same_roles(stage: str, roles: Mapping[str, Role]) -> None:
    """Every process must hold the same networks: looked at where they are saved, and where a stage begins.

    Raises:
        MethodError: a role differs; its tensors are named.
    """
    if dist.world() == 1:
        return
    for name, role in roles.items():
        if not isinstance(role.module, nn.Module) or role.shard:
            continue
        known = norms(role.module)
        values = torch.stack([widened(n) for n in known.values()]).tolist() if known else []
        if not dist.disagreement(repr(values)):
            continue
        told = dist.told_by_all(dict(zip(known, map(repr, values), strict=True)))
        names = [k for k in known if len({t.get(k) for t in told}) > 1]
        raise MethodError(
            f"stage {stage}",
            f"role {name!r} is not the same in every process: {_few(names or list(known))}",
            expected="roles that move by terms and in observe, from what all processes share",
            remedy="share what the whole batch must tell: sums = yield Share(...)",
        )


def same_state(stage: str, state: Mapping[str, Any]) -> None:
    """Every process must hold the same adaptive state.

    Raises:
        MethodError: it differs; its entries are named.
    """
    hashes = {k: store.hash_tree(v) for k, v in state.items()}
    if not dist.disagreement(repr(hashes)):
        return
    told = dist.told_by_all(hashes)
    names = sorted(k for k in {k for t in told for k in t} if len({t.get(k) for t in told}) > 1)
    raise MethodError(
        f"stage {stage}",
        f"self.state is not the same in every process: {_few(names)}",
        expected="state that moves in observe alone, from the means it is given",
        remedy="make what it needs a metric, Terms({name: (sum, count)}, ...), or a Share",
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Still:
    """Whether roles are as they were.

    Args:
        roles: the method's.
    """

    def __init__(self, roles: Mapping[str, Role]) -> None:
        self.roles = {n: r.module for n, r in roles.items() if isinstance(r.module, nn.Module)}
        self._then = {n: norms(m) for n, m in self.roles.items()}

    def moved(self) -> dict[str, list[str]]:
        """What has moved since, by role."""
        changed = {
            role: [
                k for k, v in norms(m).items() if k not in self._then[role] or not torch.equal(v, self._then[role][k])
            ]
            for role, m in self.roles.items()
        }
        return {role: names for role, names in changed.items() if names}

    def check(self, stage: str, item: str) -> None:
        """After an item's work.

        Raises:
            MethodError: it has moved a role.
        """
        moved = self.moved()
        if not moved:
            return
        role, names = next(iter(moved.items()))
        raise MethodError(
            f"stage {stage}",
            f"the work of item {item!r} has moved role {role!r} ({_few(names)}): items are remembered one "
            "by one, so what they do to a role is lost when a run goes on, and differs between processes",
            expected="work that returns what it makes, and leaves every role as it was",
            remedy=f"call it in evaluation mode (BatchNorm moves in training mode): with ctx.through({role!r}) as net; "
            "train a copy; and change roles in `finish`",
        )


__all__ = ["Routing", "Still", "leaves", "norms", "same_phase", "same_roles", "same_state"]
