"""Where a network shows what papers ask for: its middle, a feature as vectors."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.errors import ConfigError


def pooled(f: Tensor) -> Tensor:
    """A feature as vectors [N, D]: maps are averaged over space, of tokens the class token is taken."""
    if f.ndim == 4:
        return f.mean((2, 3))
    return f[:, 0] if f.ndim == 3 else f


def middle_of(module: nn.Module) -> str:
    """Where the weak head reads when no module is named.

    A ViT's ``blocks`` or ``layers``: index ``int(0.5 depth) - 1``; a staged CNN (``layer1``...): the last stage but one;
    anything else: the activation before the last linear layer.
    """
    names = dict(module.named_modules())
    for name, child in names.items():
        if (
            isinstance(child, (nn.ModuleList, nn.Sequential))
            and name.split(".")[-1] in ("blocks", "layers")
            and len(child) > 1
        ):
            return f"{name}.{max(0, int(0.5 * len(child)) - 1)}"
    stages = sorted(n for n in names if n.rstrip("0123456789") in ("layer", "stage", "stages.") and n[-1:].isdigit())
    if len(stages) > 1:
        return stages[-2]
    linears = [n for n, m in names.items() if isinstance(m, nn.Linear)]
    if linears:
        return f"{linears[-1]}:in"
    raise ConfigError(
        "method.feature",
        "no intermediate feature was found in the student",
        remedy="name a module: method.feature=layer3",
    )


def last_linear(module: nn.Module) -> str:
    """Where a classifier's last linear layer reads: its penultimate feature.

    Raises:
        ConfigError: there is none.
    """
    linears = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise ConfigError(
            "evaluator.feature", "the network has no linear layer", remedy="name a module: evaluator.feature=layer4"
        )
    return f"{linears[-1]}:in"
