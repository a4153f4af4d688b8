"""Denoisers that know the camera: a pose goes through a small perceptron and is added to the embedding of time.

e <- e + W_2 silu(W_1 c),     c: the camera's 4x4 matrix [16], or zeros for 'no camera';  W_2 = 0 at first
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.settings import settings
from limbeck.networks.lora import Lora, LoraView

PLACES = ("time", "time_embedding", "timestep_embedder")


def time_embeddings(net: nn.Module) -> list[tuple[nn.Module, int]]:
    """The modules whose output is a denoiser's embedding of time, and its width.

    Raises:
        ConfigError: none was found.
    """
    found = []
    for name, module in net.named_modules():
        linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
        if name.rsplit(".", 1)[-1] in PLACES and linear:
            found.append((module, linear[-1].out_features))
    if not found:
        raise ConfigError(
            "method.phi",
            f"the embedding of time of {type(net).__name__} was not found, so it cannot be told the camera",
            expected=f"a module called {' or '.join(PLACES)}",
            remedy="set method.phi=small",
        )
    return found


class _Add:
    """The hook of one embedding."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __call__(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor | None:
        added = None if self.owner is None else self.owner._added
        return None if added is None else out + added.to(out.dtype)


def _perceptron(width: int) -> nn.Sequential:
    last = nn.Linear(64, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(16, 64), nn.SiLU(), last)


class PosedView(LoraView):
    """A network seen through a low-rank adapter, told the camera.

    Args:
        base: the denoiser.
        lora: the adapter's settings.
    """

    def __init__(self, base: nn.Module, lora: Lora) -> None:
        super().__init__(base, lora)
        places = time_embeddings(base)
        self.camera = _perceptron(places[0][1])
        self._added: Tensor | None = None
        for place, _ in places:
            place.register_forward_hook(_Add(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> LoraView:
        alone = id(self.base) not in memo
        twin = super().__deepcopy__(memo)
        for place, _ in time_embeddings(twin.base) if alone else ():
            place.register_forward_hook(_Add(twin))
        return twin

    def forward(self, *args: Any, camera: Tensor | None = None, **kwargs: Any) -> Any:
        """The denoiser's output with the adapter acting; ``camera`` [N, 16]."""
        self._added = None if camera is None else self.camera(camera)
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._added = None


@settings
class PosedLora(Lora):
    """A low-rank adapter whose view takes the camera beside what the network takes."""

    def view(self, base: nn.Module) -> LoraView:
        """A view that is told the camera."""
        return PosedView(base, self)


class Posed(nn.Module):
    """A denoiser of one's own that is told the camera.

    Args:
        net: the denoiser.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        places = time_embeddings(net)
        self.camera = _perceptron(places[0][1])
        self._added: Tensor | None = None
        for place, _ in places:
            place.register_forward_hook(_Add(self))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)  # what the network says of itself

    def forward(self, *args: Any, camera: Tensor | None = None) -> Any:
        """The denoiser's output."""
        self._added = None if camera is None else self.camera(camera)
        try:
            return self.net(*args)
        finally:
            self._added = None
