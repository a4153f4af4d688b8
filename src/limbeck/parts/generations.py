"""The same architecture trained again and again, each network taught by the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.artifact import Artifact
from limbeck.grammar.method import Context, Data, Method, Setup
from limbeck.grammar.random import key_of, seed_modules
from limbeck.grammar.signal import device_of, evaluating
from limbeck.grammar.task import Task
from limbeck.tasks.classification import Classification, one_label


class Generations(Method[Classification]):
    """Base of methods that train several networks of the student's architecture one after another.

    Roles: ``step1``, ``step2``... and ``student``, the last of them; ``previous``, which holds the network that teaches and
    stands still. All of them stay in memory, so that each has a row in the report.

    Attributes:
        names: the roles that learn, in order.
    """

    participants = {}  # noqa: RUF012 (there is no teacher but an earlier network)
    # it has the steps of one generation, so it is not called a baseline of equal budget
    called = MappingProxyType({"alone": "single training by labels"})
    names: Sequence[str] = ("student",)

    def accept(self, task: Task) -> None:
        """Items have one class each."""
        super().accept(task)
        one_label(self, task)

    def grow(self, setup: Setup, count: int) -> None:
        """Add the roles of ``count`` networks, the student the last of them."""
        self.names = [*(f"step{t}" for t in range(1, count)), "student"]
        for name in self.names[:-1]:
            self.new(name, like="student")
        if count > 1:
            self.new("previous", like="student")

    def afresh(self, role: str, number: int) -> None:
        """Give a role the first weights of the ``number``-th network (from 0); the student's own for 0.

        They are drawn from a key of their own. A network that is loaded (pretrained, or a module of the caller's) begins
        each time with the weights that it is loaded with.
        """
        built, module = self.setup.student, self.roles[role].module
        with torch.random.fork_rng(devices=[]):
            name = f"generation{number}" if number else "student"
            seed_modules(key_of(self.setup.seed, "init", name), torch.device("cpu"))
            fresh = built.model.build(self.task).module
        with torch.no_grad():
            _take(module, fresh)

    def hand_over(self, role: str, source: str) -> None:
        """Copy the weights and statistics of ``source`` into ``role``."""
        _take(self.roles[role].module, self.roles[source].module)

    def answers(self, role: str, data: Data, ctx: Context) -> tuple[Tensor, Tensor]:
        """What a network says of all items of some data, in evaluation mode: logits [m, C] and labels ([m] or [m, C])."""
        z, y = [], []
        with torch.no_grad(), evaluating([self.roles[role].module]):
            for batch in ctx.over(data):
                z.append(ctx.signal(role, batch, grad=False).logits.float())
                y.append(batch["y"])
        return torch.cat(z), torch.cat(y)

    def held_out(self, setting: str) -> Data:
        """The validation items, which must be others than the training items.

        Raises:
            ConfigError: there are none, or they are the training items; ``setting`` needs them.
        """
        valid, train = self.task.valid, self.task.train
        if len(valid) == 0 or valid.fingerprint == train.fingerprint:
            raise ConfigError(
                setting,
                "it is decided on validation items, and these are the training items"
                if len(valid)
                else "there are no validation items to decide it on",
                given=getattr(self, setting.removeprefix("method."), None),
                expected="validation items that the student does not learn from",
                remedy="set task.valid_fraction=0.1, or give the data a validation split",
            )
        return valid

    def steps_as_rows(self, done: int, delivered: str) -> dict[str, Artifact]:
        """A row for each of the first ``done`` networks but the one that is delivered."""
        return {f"step{t}": self.network(n) for t, n in enumerate(self.names[:done], 1) if n != delivered}


def _take(module: nn.Module, source: nn.Module) -> None:
    device = device_of(module)
    module.load_state_dict({k: v.to(device) for k, v in source.state_dict().items()})


__all__ = ["Generations"]
