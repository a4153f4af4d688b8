"""What decoders made of other blocks cost, and which of them a budget allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from limbeck.errors import ConfigError
from limbeck.networks.decoder_blocks import KINDS, Kind, Variant, block_of
from limbeck.parts.decoders import Scenario, Spec, attend, block_costs, block_ms, feed
from limbeck.parts.search import Infeasible, Knapsack


class DecoderBudgets:
    """The most that a decoder may cost whose layers are chosen from a space of blocks.

    Args:
        parent: the decoder whose layers are replaced.
        variants: of each kind of block, the parent's own first.
        space: pairs of them, the parent's own first.
        scenario: what the model is to be used for.
        limits: ``parameters``, ``memory`` (bytes) and ``latency_ms`` at most, up to 1 a share of the parent's; ``throughput``
            at least, in tokens a second. ``None`` has no limit.
    """

    def __init__(
        self,
        parent: Any,
        variants: Mapping[Kind, Sequence[Variant]],
        space: Sequence[Spec],
        scenario: Scenario,
        limits: Mapping[str, float | None],
    ) -> None:
        self.parent, self.variants, self.space, self.scenario = parent, variants, space, scenario
        self.limits = {n: v for n, v in limits.items() if v is not None}

    @property
    def timed(self) -> bool:
        """Whether a limit is one of time, so that blocks are measured."""
        return "latency_ms" in self.limits or "throughput" in self.limits

    def measure(self) -> dict[str, float]:
        """Milliseconds of each block, where a limit asks for them, and of all that lies outside of the layers.

        Raises:
            Infeasible, ConfigError: no architecture of the space is as fast.
        """
        found: dict[str, float] = {}
        if self.timed:
            embed = self.parent.model.embed_tokens
            ids = torch.zeros(self.scenario.batch, self.scenario.length, dtype=torch.long, device=embed.weight.device)
            h = embed(ids)
            at = torch.arange(self.scenario.length, device=h.device)[None]
            given = {"position_embeddings": self.parent.model.rotary_emb(h, position_ids=at), "attention_mask": None}
            for kind in KINDS:
                for v in self.variants[kind]:
                    norm, core = block_of(self.parent.model.layers[0], kind, v)
                    if kind == "attention":
                        found[f"{kind}_{v}"] = block_ms(lambda x, n=norm, c=core: attend(n, c, x, given), h)
                    else:
                        found[f"{kind}_{v}"] = block_ms(lambda x, n=norm, c=core: feed(n, c, x), h)
                found[f"{kind}_none"] = 0.0
            found["rest"] = block_ms(lambda x: self.parent.lm_head(self.parent.model.norm(embed(ids))), h)
            table, throughput = self.knapsack(self.costs(found)), self.limits.get("throughput")
            try:
                table.exact()
            except Infeasible as error:
                least = error.least.get("latency_ms")
                if throughput is None or least is None or table.names["latency_ms"] != "method.throughput":
                    raise
                fast = self.scenario.batch * self.scenario.length * 1e3 / least
                raise ConfigError(
                    "method.throughput",
                    f"no architecture of this search space is as fast here: the fastest needs {least:.4g} ms for "
                    f"{self.scenario.batch * self.scenario.length:,} tokens",
                    given=throughput,
                    expected=f"at most {fast:,.0f} tokens a second",
                    remedy="lower it, or add smaller variants",
                ) from None
        return found

    def costs(self, measured: dict[str, float], pairs: Sequence[Spec] | None = None) -> dict[str, np.ndarray]:
        """What each pair costs in each layer ``[L, pairs]``, what lies outside of the layers spread over them."""
        layers = self.parent.model.layers
        each = {
            (kind, v): block_costs(layers[0], kind, v, self.scenario) | {"latency_ms": measured.get(f"{kind}_{v}", 0.0)}
            for kind in KINDS for v in self.variants[kind]
        }  # fmt: skip
        inside = sum(p.numel() for p in layers.parameters())
        rest = float(sum(p.numel() for p in self.parent.parameters()) - inside)
        outside = {
            "parameters": rest, "memory": rest * self.scenario.bytes, "latency_ms": measured.get("rest", 0.0)
        }  # fmt: skip
        names = ["parameters", "memory", *(["latency_ms"] if measured else [])]
        return {
            n: np.tile([each["attention", p["attention"]][n] + each["ffn", p["ffn"]][n] for p in pairs or self.space], (len(layers), 1))
            + outside[n] / len(layers)
            for n in names
        }  # fmt: skip

    def knapsack(self, costs: dict[str, np.ndarray], score: Any = None) -> Knapsack:
        """The search's table within the budgets; budgets up to 1 are shares of the parent's."""
        limits = {}
        for name in ("parameters", "memory", "latency_ms"):
            given = self.limits.get(name)
            if given is not None:
                limits[name] = given * float(costs[name][:, 0].sum()) if given <= 1 else given
        names, throughput = {n: f"method.{n}" for n in limits}, self.limits.get("throughput")
        if throughput is not None:
            fast = 1e3 * self.scenario.batch * self.scenario.length / throughput
            if fast <= limits.get("latency_ms", fast):
                limits["latency_ms"], names["latency_ms"] = fast, "method.throughput"
        score = np.zeros_like(costs["parameters"]) if score is None else score
        return Knapsack(score, costs, limits, names)


__all__ = ["DecoderBudgets"]
