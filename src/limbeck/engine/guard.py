"""What stops a step that is not finite, before it has updated anything, and says what it was.

On a CPU one number is read a step. On a GPU reading would make the host wait for the device at every step; there, where
the optimisers can be told on the device to leave everything as it is (``found_inf``, which torch's fused optimisers heed),
the answer is looked at when it has arrived. Until then no later step updates anything either, and the step, which is a
function of its number, is taken again to be described.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from limbeck.engine import distributed as dist
from limbeck.engine.culprits import Found, Phase, culprits
from limbeck.errors import NonFinite
from limbeck.grammar.method import Method, Stage
from limbeck.storage import store

if TYPE_CHECKING:
    from limbeck.engine.step import Seen

LATE_ON = ("cuda",)
"""Devices on which reading a number waits for everything that was asked before it."""

FREE_ON = ("cpu",)
"""Devices on which reading a number costs less than an operation."""

HEEDING = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
"""Optimisers whose fused form skips its step where ``found_inf`` is set."""


def reading_is_free(device: torch.device) -> bool:
    """Whether a number may be read at every step."""
    return device.type in FREE_ON


class Guard:
    """Stops before a step that is not finite.

    Args:
        method: what is run.
        stage: its stage.
        seed: the run's seed, for the record.
        device: where the numbers are.
        folder: the run's folder; the record of a failure goes to ``failure`` in it.
        optimisers: of the stage. If all of them can be told on the device, a device of ``LATE_ON`` is not waited for.
    """

    def __init__(
        self,
        method: Method,
        stage: Stage,
        seed: int,
        device: torch.device,
        folder: Path | None,
        optimisers: Iterable[torch.optim.Optimizer] = (),
    ) -> None:
        self.method, self.stage, self.seed, self.folder = method, stage, seed, folder
        heeding = all(isinstance(o, HEEDING) and o.defaults.get("fused") for o in optimisers)
        # what moves beside the optimisers would move on a bad step before anybody knew of it
        moving = any(r.of is not None or r.shard for r in method.roles.values())
        watching = type(method).observe is not Method.observe
        # processes would have to agree on the step they take again, and so wait for each other at every step
        alone = dist.world() == 1
        self.late = device.type in LATE_ON and heeding and alone and not moving and not watching
        self._one, self._seen = torch.ones((), device=device), torch.zeros((), device=device)
        self._first = torch.full((), -1, dtype=torch.int64, device=device)  # the first bad step; -1: none so far
        self._arrived: tuple[Tensor, Any] | None = None  # a copy of it on its way to the host

    def check(
        self,
        step: int,
        earlier: int,
        losses: Sequence[Tensor],
        grads: Mapping[str, list[Tensor]],
        norms: Mapping[str, Tensor],
        optimisers: Iterable[torch.optim.Optimizer],
        phase: Phase,
        seen: Seen,
    ) -> None:
        """One phase, between its backward passes and its update.

        Args:
            step: the step's number.
            earlier: phases of this step that have updated something already.
            losses: the loss of each micro-batch.
            grads: the gradients of each role that the phase updates.
            norms: the norms of those that are to be clipped.
            optimisers: theirs.
            phase, seen: for the record.

        Raises:
            NonFinite: the phase is not finite; where the answer comes late, `found` gives it instead.
        """
        values = list(norms.values())
        for r, g in grads.items():
            if r not in norms:
                self._look(g)
        if losses:
            loss = losses[0] if len(losses) == 1 else sum(losses[1:], losses[0])
            values.append(dist.sum_over_ranks(loss))
        if reading_is_free(self._first.device) and not self.late:
            if self._seen.item() or not all(math.isfinite(v.item()) for v in values):
                self._report(step, earlier, grads, phase, seen)
            return
        wrong = torch.stack([self._seen > 0, *(~torch.isfinite(v) for v in values)]).any()
        if self.late:
            bad = (self._first < 0) & wrong
            self._first = torch.where(bad, step, self._first)
            for opt in optimisers:
                opt.found_inf = (self._first >= 0).float()  # type: ignore[attr-defined]
        elif wrong.item():  # one number decides, for reading it waits for the device
            self._report(step, earlier, grads, phase, seen)

    def _look(self, grads: list[Tensor]) -> None:
        """Note in ``_seen`` whether some number in these gradients is not finite; on their device, without waiting.

        By what torch's gradient scalers look with: one operation, however many gradients there are. It also multiplies
        them, by one.
        """
        try:
            torch._amp_foreach_non_finite_check_and_unscale_(grads, self._seen, self._one)
        except (RuntimeError, NotImplementedError):  # complex numbers, or a device that has no such operation
            self._seen += (~torch.isfinite(_norm(grads))).float()

    def found(self, wait: bool = False) -> int | None:
        """The first step that was not finite, as far as it is known without waiting for the device; ``None``: none."""
        if not self.late:
            return None
        if wait or self._first.device.type == "cpu":
            self._arrived = None
            first = int(self._first)
            return first if first >= 0 else None
        if self._arrived is None:
            here = torch.empty((), dtype=torch.int64, pin_memory=True).copy_(self._first, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arrived = (here, event)
            return None
        here, event = self._arrived
        if not event.query():
            return None
        self._arrived = None
        return int(here) if int(here) >= 0 else None

    def again(self) -> None:
        """A step is taken again: its answer is waited for, and what was noted of the first attempt is forgotten."""
        self.late = False
        self._seen.zero_()

    def not_repeated(self, step: int) -> NoReturn:
        """A step that was not finite, and is finite when it is taken again."""
        raise NonFinite(
            f"stage {self.stage.name}",
            f"step {step} was not finite, but is when it is taken again: the device does not repeat itself; "
            "nothing was updated by the first attempt",
            remedy="go on from the last checkpoint, and watch the device's memory",
        )

    def _report(self, step: int, earlier: int, grads: Mapping[str, list[Tensor]], phase: Phase, seen: Seen) -> NoReturn:
        method, stage, batches = self.method, self.stage, phase.batches
        means = seen.means()
        bad_terms = [n for n, v in means.items() if not math.isfinite(v)]
        bad_roles = {
            r: [
                n
                for n, p in method.roles[r].parameters().items()
                if p.grad is not None and not bool(torch.isfinite(p.grad).all())
            ][:5]
            for r in grads
            if not math.isfinite(float(dist.gathered(_norm(grads[r]))))
        }
        states = {
            n: {k: v.clone() for k, v in dist.whole_state(r.module).items()}
            for n, r in method.roles.items()
            if r.learns
        }
        # every process is here, for what decided was summed over them: they tell each other what they hold
        told = dist.told_by_all((bad_terms, culprits(phase)))
        # statistics of the whole batch carry NaN everywhere, so a process whose input is not finite speaks first
        writer = max(
            range(len(told)), key=lambda r: (bool(told[r][1].fields), bool(told[r][1].why), bool(told[r][0]), -r)
        )
        bad_terms = list(dict.fromkeys(n for terms, _ in told for n in terms))
        found = _together([f for _, f in told], told[writer][1])
        where = ""
        if self.folder is not None:
            where = f"; the batch and the weights before it are in {self.folder / 'failure'}"
        if self.folder is not None and dist.rank() == writer:
            store.save_tree(
                self.folder / "failure",
                {
                    "stage": stage.name,
                    "step": step,
                    "earlier_phases": earlier,
                    "seed": self.seed,
                    "terms": means,
                    "gradients": bad_roles,
                    "items": found.items if found.why else [],
                    "batches": [
                        {k: v for k, v in b.items() if isinstance(v, (Tensor, int, float, str))} for b in batches
                    ],
                    "roles": states,
                    "state": method.state,
                },
            )
        said = f"step {step} of stage {stage.name!r} is not finite: "
        said += f"term {', '.join(bad_terms)}" if bad_terms else "the gradient"
        if bad_roles:
            said += "; gradient of " + ", ".join(f"role {r!r} ({', '.join(names)})" for r, names in bad_roles.items())
        if found.fields:
            said += f"; the batch itself is not finite in {found.fields}"
        kept = "nothing was updated"
        if earlier:
            kept += f" by this phase; {earlier} before it in the same step had updated what they may"
        raise NonFinite(
            f"stage {stage.name}",
            f"{said}; {found.line()}; {kept}{where}",
            remedy="look at the inputs of those items, or leave them out of the data"
            if found.why == "input"
            else "look at those items, lower train.lr, or set train.clip=1",
        )


def _norm(grads: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


def _together(told: list[Found], first: Found) -> Found:
    """What the processes know, as one: the items of all that know as much as the first to speak."""
    alike = [f for f in told if f.why == first.why]
    items = sorted({i for f in alike for i in f.items}) if first.why else first.items
    fields = sorted({name for f in alike for name in f.fields})
    return Found(items, first.why, fields, sum(f.of for f in told) if first.why else first.of)


__all__ = ["Guard", "reading_is_free"]
