"""A student composed of several networks, as one artifact: scored, saved and exported as what it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.task import Task
from limbeck.models.chain import ChainOf, LinkSettings
from limbeck.networks.chain import Chain


class ChainArtifact(NetworkArtifact):
    """Networks run one after the other: a trunk up to one of its modules, a projector, somebody else's head.

    It is saved as one network (``student.safetensors`` and ``student.json``, which says how it is joined), and each of its
    networks by itself in its own format under ``parts/NAME``, so that a library's opens there without limbeck.

    Args:
        task: what it is for.
        built: whose input contract and labels it has (the first network's contract, the last one's labels).
        links: name -> (a network, how the chain takes part of it), in order.

    Example:
        >>> ChainArtifact(task, setup.student, {
        ...     "trunk": (setup.student, LinkSettings(setup.student.model, until="act1")),
        ...     "head": (setup.teacher, LinkSettings(setup.teacher.model, part="head")),
        ... })  # doctest: +SKIP
    """

    def __init__(self, task: Task, built: Built, links: Mapping[str, tuple[Built, LinkSettings]]) -> None:
        self.parts = {name: part for name, (part, _) in links.items()}
        module = Chain({name: link.take(part.module) for name, (part, link) in links.items()})
        model = ChainOf({name: link for name, (_, link) in links.items()})
        super().__init__(task, replace(built, module=module, model=model))

    def save(self, folder: Path) -> None:
        """The chain as one network, and each of its networks by itself."""
        super().save(folder)
        for name, part in self.parts.items():
            if part.model is not None:
                place = folder / "parts" / name
                place.mkdir(parents=True, exist_ok=True)
                part.model.save(part.module, place, part.labels)
