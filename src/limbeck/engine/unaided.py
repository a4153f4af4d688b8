"""Training without a teacher: how a teacher is made, and the baseline every student is measured against."""

from __future__ import annotations

from types import MappingProxyType

from limbeck.grammar.method import Batch, Context, Data, Method, Participant, Stage, Terms


class Unaided(Method):
    """The task's own loss and nothing else.

    Args:
        data: what is trained on; ``None`` takes the student's training data.
        name: the stage's name. The baseline ``alone`` draws as the stage ``distil`` does: the same batches in the same
            order as the student it is compared to.
    """

    participants = MappingProxyType[str, Participant]({})

    def __init__(self, data: Data | None = None, name: str = "alone") -> None:
        self.data, self.name = data, name

    def stages(self) -> list[Stage]:
        """One stage of steps."""
        train = self.setup.train
        scope = "distil" if self.name == "alone" else self.name
        data = self.data if self.data is not None else self.task.train
        return [
            Stage(
                self.name,
                steps=train.steps,
                data=data,
                batch_size=train.batch_size,
                optim={"student": train},
                scope=scope,
                section="train" if self.name == "alone" else "teach",
            )
        ]

    def step(self, batch: Batch, ctx: Context) -> Terms:
        """The supervised loss of the task."""
        return Terms(task=self.task.supervised(ctx.signal("student", batch), batch))
