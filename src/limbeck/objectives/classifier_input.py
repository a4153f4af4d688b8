"""What objectives share that compare the inputs of both classifiers, each one vector an item."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.errors import ConfigError, ShapeError
from limbeck.grammar.method import Batch, Objective
from limbeck.grammar.signal import Signal
from limbeck.networks.shows import last_linear, picture_of, pooled


class OfClassifierInput(Objective):
    """Taps the input of the last linear layer of both networks, where the recipe names no module.

    Attributes:
        student, teacher: the tapped modules; ``None`` until `look` has found them.
    """

    student: str | None
    teacher: str | None

    def tap(self) -> None:
        """Ask for what is named."""
        self.student_taps = (self.student,) if self.student else ()
        self.teacher_taps = (self.teacher,) if self.teacher else ()

    def look(self, student: Any, teacher: Any) -> None:
        """Find the features before the classifier that the recipe does not name.

        Raises:
            ConfigError: a network's modules are not known here.
        """
        for name, module in (("student", student), ("teacher", teacher)):
            if getattr(self, name):
                continue
            if not isinstance(module, nn.Module) or hasattr(type(module), "answer"):
                raise ConfigError(
                    f"objectives.{self.name}.{name}",
                    f"the {name} is recorded or remote, so its modules are not known here",
                    expected="the name of a recorded tap",
                    remedy=f"set objectives.{self.name}.{name}=MODULE:in, as it was recorded",
                )
            setattr(self, name, last_linear(module))
        self.tap()

    def features(self, student: Signal, teacher: Signal | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both features as vectors [N, D] in float32.

        Raises:
            ShapeError: a module gives no vector an item, and nothing that is pooled to one.
        """
        assert teacher is not None and self.student is not None and self.teacher is not None
        found = []
        for name, shown in ((self.student, student), (self.teacher, teacher)):
            f = pooled(shown.acts[name].float(), picture_of(batch))
            if f.ndim != 2:
                raise ShapeError(
                    f"objectives.{self.name}",
                    f"module {name!r} gives {list(shown.acts[name].shape)}",
                    expected="vectors [N, D], maps [N, D, H, W] or tokens [N, L, D]",
                    remedy="name the module before the classifier",
                )
            found.append(f)
        return found[0], found[1]


__all__ = ["OfClassifierInput"]
