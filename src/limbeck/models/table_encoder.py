"""Encoders of rows of a table into diagonal Gaussians."""

from __future__ import annotations

from typing import ClassVar

from limbeck.errors import ConfigError
from limbeck.grammar.method import Built
from limbeck.grammar.settings import Count, settings
from limbeck.grammar.task import Model, Task
from limbeck.networks.table_vae import TableEncoder

NAMES = {"model": {"table-encoder": "TableEncoderModel"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


@settings
class TableEncoderModel(Model):
    """An encoder of rows, their class and, if it sees it, their protected attribute, into a Gaussian of latents.

    Args:
        hidden: sizes of the hidden layers.
        latent: size of the latents.
        sees_protected: whether the protected attribute is among its inputs.
    """

    latents: ClassVar[bool] = True

    hidden: list[Count] = [64]  # noqa: RUF012 (copied, never changed)
    latent: Count = 8
    sees_protected: bool = True

    def build(self, task: Task) -> Built:
        """The encoder of a table's columns.

        Raises:
            ConfigError: the task is no table.
        """
        task.load()
        needs = task.needs
        if needs.table is None:
            raise ConfigError("model", "encodes rows of tables", given=type(task).__name__, expected="task=table")
        groups = len(needs.table.groups) if self.sees_protected else 0
        return Built(TableEncoder(needs.inputs[0] + needs.outputs, self.latent, groups, self.hidden), model=self)


__all__ = ["TableEncoderModel"]
