"""What each method needs, measured: `python evidence/needs.py` runs every recipe at its `tiny` size and writes needs.json.

For each stage of steps: how often each network is called in a step and whether it learns, and which parts of a batch
enter the computation (labels among them). The page 'which method should I use' is made from it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from limbeck.engine.step import Stepper  # noqa: E402
from tests.tiny import NAMES, tiny  # noqa: E402

OUT = Path(__file__).resolve().parent / "needs.json"


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors(inner)


class Watch(TorchFunctionMode):
    """Notes which tensors of a batch enter a torch function."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        super().__init__()
        self.key_of = {id(t): key for batch in batches for key, value in batch.items() for t in tensors(value)}
        self.used: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # asking for a shape or a device reads no value; those are getters of properties
        if getattr(func, "__name__", "") not in (
            "__get__",
            "size",
            "dim",
            "numel",
            "is_floating_point",
            "to",
            "__len__",
        ):
            for tensor in tensors([args, kwargs or {}]):
                key = self.key_of.get(id(tensor))
                if key is not None:
                    self.used.add(key)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted(method: Any, calls: Counter[str]) -> Iterator[None]:
    """Calls of whole networks, by role; calls inside one of its own are one."""
    roles = {id(role.module): name for name, role in method.roles.items() if isinstance(role.module, nn.Module)}
    inside: Counter[str] = Counter()

    def before(module: nn.Module, _args: Any) -> None:
        name = roles.get(id(module))
        if name is not None:
            calls[name] += not inside[name]
            inside[name] += 1

    def after(module: nn.Module, _args: Any, _out: Any) -> None:
        name = roles.get(id(module))
        if name is not None:
            inside[name] -= 1

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def needs(name: str, folder: Path) -> dict[str, Any]:
    """What a method's stages of steps call and read."""
    run = tiny(name, folder)
    stages: dict[str, dict[str, Any]] = {}
    plain = Stepper.take

    def take(self: Stepper, step: int, micro: list[Any]) -> Any:
        found = stages.setdefault(
            self.stage.name, {"steps": 0, "calls": Counter(), "reads": set(), "learns": set(), "holds": {}}
        )
        watch = Watch(micro)
        with counted(self.method, found["calls"]), watch:
            seen = plain(self, step, micro)
        found["steps"] += 1
        found["reads"] |= watch.used
        for role, it in self.method.roles.items():
            if isinstance(it.module, nn.Module):
                found["holds"][role] = sum(p.numel() for p in it.module.parameters())
                if it.learns:
                    found["learns"].add(role)
        return seen

    Stepper.take = take  # type: ignore[method-assign]
    try:
        run.run()
    finally:
        Stepper.take = plain  # type: ignore[method-assign]
    participants = run.method.participants
    return {
        "task": run.recipe.task.__class__.__name__,
        "participants": {n: {"needed": p.needed, "given": n in run.method.roles} for n, p in participants.items()},
        "stages": [s.name for s in run.engine.stages],
        "items": [s.name for s in run.engine.stages if s.items is not None],
        "coupled": run.method.coupled,
        "steps": {
            stage: {
                "calls": {role: round(n / found["steps"], 3) for role, n in sorted(found["calls"].items())},
                "learns": sorted(found["learns"]),
                "reads": sorted(found["reads"]),
            }
            for stage, found in stages.items()
        },
    }


def main() -> int:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="methods (all)")
    args = parser.parse_args()
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    torch.set_num_threads(1)
    for name in args.names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LIMBECK_WORKSPACE"] = folder
            known[name] = needs(name, Path(folder) / "run")
        print(name, json.dumps(known[name]["steps"]), flush=True)
    OUT.write_text(json.dumps({n: known[n] for n in NAMES if n in known}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
