"""Metrics, and what single test items contributed to them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class Scores(dict[str, float]):
    """Metrics by name, as a task's ``evaluate`` gives them, with the single items' values of those that are means.

    From these an interval is made that covers other test items too (``limbeck.report.inference.over_seeds_and_items``).

    Args:
        metrics: name -> value.
        per_item: of metrics that are means over the test items: name -> values [N], in the split's order; a metric is
            the sum of its values over the sum of the weights.
        weights: [N], how much an item counts (the tokens of a sequence, whose values are sums); 1 each when ``None``.

    Attributes:
        per_item, weights: as given, on the CPU.
    """

    def __init__(
        self, metrics: Mapping[str, float], per_item: Mapping[str, Tensor] | None = None, weights: Tensor | None = None
    ) -> None:
        super().__init__(metrics)
        self.per_item = {name: values.detach().cpu() for name, values in (per_item or {}).items()}
        self.weights = None if weights is None else weights.detach().cpu()


__all__ = ["Scores"]
