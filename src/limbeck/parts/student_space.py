"""Networks to choose a student from, and what each may cost.

The space is stated as settings of the recipe's student with the choices of each, or as a list of models. A network is told by
its genes (`limbeck.parts.evolution`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.grammar.method import Built, Setup
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.task import Model
from limbeck.networks.costs import milliseconds, operations
from limbeck.parts.evolution import Genes, Space
from limbeck.recipe.hints import Mismatch
from limbeck.recipe.recipe import make
from limbeck.recipe.schema import node_of

COSTS = ("parameters", "operations", "latency_ms")
"""What a budget may be of: ``parameters``, and ``operations`` and ``latency_ms`` of one item."""


class Budgets:
    """The most that a student may cost.

    Args:
        setup: whose task is fed, on whose device.
        given: by cost (`COSTS`) a number, up to 1 a share of the teacher's; ``None`` has no limit.

    Attributes:
        most: every limit as an absolute number.
    """

    def __init__(self, setup: Setup, given: Mapping[str, float | None]) -> None:
        assert setup.teacher is not None
        self.setup, limits = setup, {n: v for n, v in given.items() if v is not None}
        self.most: dict[str, float] = limits
        whole = self.costs(setup.teacher) if any(v <= 1 for v in limits.values()) else {}
        self.most = {n: v * whole[n] if v <= 1 else float(v) for n, v in limits.items()}

    def costs(self, built: Built, every: bool = False) -> dict[str, float]:
        """What a network costs: its parameters, and what has a budget; its operations too where ``every`` is asked for."""
        module = built.module.eval()
        batch = {
            k: v.to(self.setup.device) if isinstance(v, Tensor) else v for k, v in self.setup.task.example(1).items()
        }
        batch = built.contract.feed(batch)

        def call() -> Any:
            return self.setup.task.feed(module, batch)

        found = {"parameters": float(sum(p.numel() for p in module.parameters()))}
        if every or "operations" in self.most:  # counting them takes as long as measuring the network
            found["operations"] = float(operations(call))
        if "latency_ms" in self.most:
            found["latency_ms"] = milliseconds(call, self.setup.device)
        return found

    def over(self, costs: Mapping[str, float]) -> list[str]:
        """The budgets that a network breaks."""
        return [n for n, most in self.most.items() if costs[n] > most]


class StudentSpace:
    """The networks that a student is chosen from.

    Args:
        setup: whose task they are built for; whose student, by default, has the settings that the space leaves alone.
        settings: of the recipe's student with the choices of each (``method.space``): ``{width: [8, 16], blocks: {"0": [1, 3]}}``,
            where ``blocks.0`` is the first entry of a list; ``None`` takes a setting out.
        candidates: models to choose from in its place (``method.candidates``).

    Attributes:
        members: the space by the paths of its settings.

    Raises:
        ConfigError: the space holds nothing, or says what is no list of choices.
    """

    def __init__(self, setup: Setup, settings: Mapping[str, Any] | None, candidates: Sequence[Model] | None) -> None:
        self.setup, self.candidates = setup, candidates
        if candidates is None:
            self.members = _space(settings)
        elif not candidates:
            raise ConfigError("method.candidates", given=[], expected="one model or more")
        else:
            self.members = Space({"model": list(range(len(candidates)))})

    def node(self, genes: Genes) -> dict[str, Any]:
        """A candidate as the recipe would state it."""
        if self.candidates is not None:
            return node_of(self.candidates[genes[0]])
        try:
            node = node_of(self.setup.student.model)
        except (Mismatch, AttributeError):
            raise ConfigError(
                "method.space",
                "its settings are those of the recipe's student, which is a module of your own here",
                remedy="name a model that limbeck builds as student, or a list of them as method.candidates",
            ) from None
        for path, value in self.members.values(genes).items():
            _put(node, path, value)
        return node

    def key(self, genes: Genes) -> str:
        """What a candidate's random numbers are drawn by: its settings, without those that change nothing at their defaults.

        A setting that a model gains later leaves the search as it was.
        """
        node = self.node(genes)
        model = make(Model, self.node(genes), self._place(genes))
        known = inspect.signature(type(model).__init__).parameters
        silent = {n for n in getattr(model, "neutral", ()) if n in node and node[n] == known[n].default}
        return str({n: v for n, v in node.items() if n not in silent})

    def _place(self, genes: Genes) -> str:
        """Where the recipe names a candidate."""
        return f"method.candidates.{genes[0]}" if self.candidates is not None else "student"

    def named(self, genes: Genes) -> str:
        """A candidate in a few words."""
        if self.candidates is not None:
            node = self.node(genes)
            return ", ".join(f"{v}" if k == "use" else f"{k} {v}" for k, v in node.items())
        lists: dict[str, list[Any]] = {}
        for path, value in self.members.values(genes).items():
            head, _, last = path.rpartition(".")
            lists.setdefault(head if last.isdecimal() else path, []).append(value)
        return ", ".join(f"{k} {'-'.join(map(str, v))}" for k, v in lists.items())

    def build(self, genes: Genes, seed: int) -> Built:
        """A candidate with first weights of a seed, as the recipe's student would be built."""
        with torch.random.fork_rng(devices=[]):
            seed_modules(key_of(seed, "init", "student"), torch.device("cpu"))
            model: Model = make(Model, self.node(genes), self._place(genes))
            model.role = "student"
            built = model.build(self.setup.task)
        built.model = built.model or model
        assert self.setup.teacher is not None
        self.setup.task.match(built, replace(self.setup.teacher, notes=[]))
        built.module.to(self.setup.device)
        return built

    def every_choice(self) -> Iterator[tuple[Genes, Built]]:
        """A network of every choice, the others at their first, with its first weights.

        Raises:
            ConfigError: it cannot be built; told of the setting that has the choice.
        """
        first, seen = tuple(0 for _ in self.members.choices), set[Genes]()
        for i, (path, choices) in enumerate(self.members.choices.items()):
            for g in range(len(choices)):
                genes = (*first[:i], g, *first[i + 1 :])
                if genes in seen:
                    continue
                try:
                    built = self.build(genes, self.setup.seed)
                except ConfigError as error:
                    if self.candidates is not None:
                        raise
                    raise self._unbuilt(error, path, choices[g]) from None
                seen.add(genes)
                yield genes, built

    def check_smallest(self, tried: Mapping[Genes, Mapping[str, float]], budgets: Budgets) -> None:
        """Refuse budgets that the smallest network breaks, as far as the costs of every choice tell.

        Args:
            tried: the costs of `every_choice`.
            budgets: the limits; of milliseconds, which are measured, none is checked.

        Raises:
            ConfigError: the budget, and what it would have to be.
        """
        first = tuple(0 for _ in self.members.choices)
        for cost in [n for n in budgets.most if n != "latency_ms"]:
            smallest = tuple(
                min(range(len(c)), key=lambda g, i=i: tried[(*first[:i], g, *first[i + 1 :])][cost])  # type: ignore[misc]
                for i, c in enumerate(self.members.choices.values())
            )
            value = (
                tried[smallest][cost]
                if smallest in tried
                else budgets.costs(self.build(smallest, self.setup.seed))[cost]
            )
            if value > budgets.most[cost]:
                raise ConfigError(
                    f"method.{cost}",
                    f"the smallest network of the space, {self.named(smallest)}, has {value:,.0f} {cost}",
                    given=f"{budgets.most[cost]:,.0f}",
                    expected=f"{value:,.0f} or more",
                    remedy=f"set method.{cost}={math.ceil(value)}, or put smaller networks into the space",
                )

    def _unbuilt(self, error: ConfigError, path: str, choice: Any) -> ConfigError:
        """What is wrong with a choice: told of the setting that the model refuses, where it names one of the space."""
        named = error.argument.removeprefix("student.").split(".")[0]
        if named != path.split(".")[0] and any(named == p.split(".")[0] for p in self.members.choices):
            return ConfigError(f"method.space.{named}", f"no such student can be built: {error}")
        return ConfigError(f"method.space.{path}", f"no such student can be built: {error}", given=choice)


def _space(settings: Mapping[str, Any] | None) -> Space:
    """The space by the paths of its settings."""
    found: dict[str, list[Any]] = {}

    def walk(node: Mapping[str, Any], path: str) -> None:
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if isinstance(value, Mapping):
                walk(value, here)
            elif value is None:  # taken out of a recipe's space
                continue
            elif not isinstance(value, list) or not value:
                raise ConfigError(f"method.space.{here}", given=value, expected="a list of choices")
            elif len({repr(v) for v in value}) < len(value):
                raise ConfigError(f"method.space.{here}", "names a choice twice", given=value)
            else:
                found[here] = list(value)

    walk(settings or {}, "")
    if not found:
        raise ConfigError("method.space", given=settings, expected="settings of the student with choices of each")
    return Space(found)


def _put(node: dict[str, Any], path: str, value: Any) -> None:
    """A value into a recipe node: ``blocks.0`` is the first entry of a list.

    Raises:
        ConfigError: there is no such list, or it is shorter.
    """
    *above, last = path.split(".")
    place: Any = node
    for i, key in enumerate([*above, last]):
        end = i == len(above)
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                raise ConfigError(
                    f"method.space.{path}", given=key, expected=f"a place in a list of {len(place)}, counted from 0"
                )
            if end:
                place[int(key)] = value
            else:
                place = place[int(key)]
        elif isinstance(place, dict):
            if end:
                place[key] = value
            elif key not in place and above[i + 1 : i + 2] == [] and last.isdecimal():
                raise ConfigError(
                    f"method.space.{path}",
                    f"the student has no list {key!r} yet, of which this is an entry",
                    remedy=f"give it one: student.{key}=[...]",
                )
            else:
                place = place.setdefault(key, {})
        else:
            raise ConfigError(f"method.space.{path}", given=key, expected="a setting of the student")


__all__ = ["COSTS", "Budgets", "StudentSpace"]
