"""A generic step of G2SD beside the bare floor, and beside a loop whose teacher is transformers' ViTMAE as it is called.

The floor is the teacher's encoder on visible patches and its decoder up to the target block, without graph; the student's
encoder, decoder and predictor, forward and backward; and the optimizer in its fastest form, on the same batches. Ours runs as
``limbeck run`` runs it, with guard, logs and progress. ViTMAE has no switch that stops its decoder on the way, so that a loop
around it runs all blocks and the pixel head too.
"""

from __future__ import annotations

import copy
import importlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, smooth_l1_loss

from benchmarks.harness import Check, Report, Row, Say, engine_seconds, interleave, loop_seconds, quiet, ratios, spread
from limbeck.functional.pretraining import random_masking
from limbeck.networks.masked_autoencoder import MaskedAutoencoder
from limbeck.recipe.recipe import build, check
from limbeck.run import prepare
from limbeck.storage.store import save_state_dict


@dataclass(frozen=True)
class Settings:
    """Sizes of images and of teacher and student: (width, depth, heads, width of the decoder, its depth)."""

    size: int = 64
    patch: int = 8
    teacher: tuple[int, int, int, int, int] = (192, 6, 4, 128, 4)
    student: tuple[int, int, int, int, int] = (96, 4, 4, 64, 2)
    layer: int = 2
    batch: int = 32
    steps: int = 8
    rounds: int = 9
    warm: int = 3


TOY = Settings(16, 4, (16, 1, 2, 8, 2), (8, 1, 2, 8, 1), 1, 4, steps=2, rounds=1, warm=1)


class Pair:
    """Teacher and student as the recipe builds them; every variant works on copies of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        width, depth, heads, decoder, blocks = settings.teacher
        torch.manual_seed(0)
        mae = MaskedAutoencoder(settings.size, settings.patch, 3, width, depth, heads, decoder, blocks, heads)
        save_state_dict(folder / "mae.safetensors", mae.state_dict())
        self.recipe = build(check(self.tree()))
        bench = prepare(self.recipe, None, say=quiet)
        roles = self.recipe.method.roles
        self.modules = {n: copy.deepcopy(roles[n].module) for n in ("mae", "student", "decoder")}
        self.x = bench.task.train.fetch(torch.arange(8 * settings.batch))["x"]

    def tree(self) -> dict[str, Any]:
        """The recipe, as a user would write it."""
        s = self.settings

        def vit(shape: tuple[int, int, int, int, int]) -> dict[str, Any]:
            width, depth, heads, decoder, blocks = shape
            return {
                "use": "vit",
                "patch": s.patch,
                "width": width,
                "depth": depth,
                "heads": heads,
                "decoder_width": decoder,
                "decoder_depth": blocks,
                "decoder_heads": heads,
                "mean": [0.0] * 3,
                "std": [1.0] * 3,
            }

        size = {"items": 8 * s.batch, "size": s.size, "channels": 3, "classes": 4}
        optimizer = {"lr": 1e-3, "optimizer": "adamw", "schedule": "constant", "batch_size": s.batch}
        return {
            "name": "bench-g2sd",
            "task": {
                "use": "classification",
                "data": {"use": "import", "function": "benchmarks.pictures:pictures", "options": size},
            },
            "teacher": {**vit(s.teacher), "weights": str(self.folder / "mae.safetensors")},
            "student": vit(s.student),
            "method": {"use": "g2sd", "phases": "generic", "target_layer": s.layer},
            "train": {"steps": s.warm + s.steps + 1, **optimizer},
            "engine": {"device": "cpu"},
        }

    def batches(self) -> Iterator[Tensor]:
        """Shuffled batches without end."""
        draw = torch.Generator().manual_seed(0)
        while True:
            for ids in torch.randperm(len(self.x), generator=draw).split(self.settings.batch):
                yield self.x[ids]

    def loop(self, step: Callable[[Tensor], Any]) -> Callable[[], float]:
        """CPU seconds of a step, in somebody's own loop."""
        return loop_seconds(step, self.batches(), self.settings.warm, self.settings.steps)

    def engine(self) -> float:
        """CPU seconds of a step, in our engine."""
        return engine_seconds(self.recipe, self.folder, self.settings.warm, self.settings.steps)

    def step(self, target: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], None]:
        """A bare step whose target is what ``target`` says of images and noise."""
        student, decoder = (copy.deepcopy(self.modules[n]).train().requires_grad_(True) for n in ("student", "decoder"))
        params = [*student.encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0, fused=True)

        def step(x: Tensor) -> None:
            noise = torch.rand(len(x), student.encoder.patches)
            masking = random_masking(noise, 0.75)
            with torch.no_grad():
                y = target(x, noise)
                y = layer_norm(y, y.shape[-1:], eps=1e-6)
            loss = smooth_l1_loss(decoder(student.encode(x, masking), masking), y, beta=2.0)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step

    def floor(self) -> Callable[[Tensor], None]:
        """Of the teacher nothing is run but what the target takes."""
        mae: Any = copy.deepcopy(self.modules["mae"]).eval().requires_grad_(False)
        return self.step(lambda x, noise: mae.hidden(x, random_masking(noise, 0.75), self.settings.layer))

    def vitmae(self) -> Callable[[Tensor], None]:
        """transformers' ViTMAE as teacher, its block's output read by a hook."""
        transformers = importlib.import_module("transformers")
        s = self.settings
        width, depth, heads, decoder, blocks = s.teacher
        config = transformers.ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            image_size=s.size,
            patch_size=s.patch,
            decoder_hidden_size=decoder,
            decoder_num_hidden_layers=blocks,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=4 * decoder,
        )
        net = transformers.ViTMAEForPreTraining(config).eval().requires_grad_(False)
        shown: list[Tensor] = []
        block = net.decoder.decoder_layers[s.layer - 1]
        block.register_forward_hook(lambda m, i, o: shown.append(o[0] if isinstance(o, tuple) else o))

        def target(x: Tensor, noise: Tensor) -> Tensor:
            shown.clear()
            net(x, noise=noise)
            return shown[0]

        return self.step(target)


def run(settings: Settings | None = None, say: Say = quiet) -> Report:
    """The generic step beside its floor."""
    settings = settings or Settings()
    report = Report("g2sd", "A generic step of G2SD beside the bare floor (CPU time)", asdict(settings))
    with tempfile.TemporaryDirectory() as place:
        pair = Pair(settings, Path(place))
        variants = {"floor": pair.loop(pair.floor()), "limbeck": pair.engine}
        with report.peer("transformers' ViTMAE as teacher"):
            step = pair.vitmae()
            step(next(pair.batches()))
            variants["transformers' ViTMAE as teacher"] = pair.loop(step)
        raw = interleave(variants, settings.rounds, say)
    report.raw["step"] = raw
    for name, values in raw.items():
        cells = {"ms": 1000 * statistics.median(values), "of the floor": spread(ratios(raw, name, "floor"))}
        report.rows.append(Row(name, cells))
    report.checks.append(Check("generic step over the floor", statistics.median(ratios(raw, "limbeck", "floor")), 1.05))
    return report


__all__ = ["TOY", "Settings", "run"]
