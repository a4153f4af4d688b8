"""Networks of diffusers from their folders: loaded strictly, and what the files say of their output and noise schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import CheckpointCorrupt, ConfigError, LimbeckError, first_line
from limbeck.functional.diffusion import DiscreteSchedule, Kind, Schedule
from limbeck.storage.foreign import find_weights
from limbeck.storage.plain import check_folder, read_json
from limbeck.storage.weights import load_strict, misfit, some
from limbeck.tasks.schedules import PREDICTION, describe_schedule, read_scheduler, scheduler_config

TIME_COND = "time_embedding.cond_proj.weight"


@dataclass
class Files:
    """Where a network lies, and how messages call it.

    Attributes:
        name: folder or Hub id of a network, or of a pipeline that holds one.
        subfolder: where it lies in there; found by itself in a pipeline.
        architecture: diffusers' class.
        entry, strip, role: see `limbeck.storage.foreign.find_weights`.
    """

    name: str
    subfolder: str | None
    architecture: str
    entry: str | None = None
    strip: str = ""
    role: str = ""

    def setting(self, name: str) -> str:
        """A setting as it is typed."""
        return f"{self.role}.{name}" if self.role else name

    def locate(self) -> tuple[str, str | None]:
        """The folder, and the subfolder of it: a pipeline keeps its network under ``unet`` or ``transformer``."""
        folder = Path(self.name)
        if self.subfolder is None and folder.is_dir() and not (folder / "config.json").is_file():
            for sub in ("unet", "transformer"):
                if (folder / sub / "config.json").is_file():
                    return self.name, sub
        return self.name, self.subfolder

    def load(self, config: Mapping[str, Any], time_cond: bool = False) -> tuple[nn.Module, list[str]]:
        """The network with all of its weights, and what is to be told of it.

        Args:
            config: settings over those of the file (``sample_size``).
            time_cond: give it an input for the guidance weight where it has none: that weight alone is new.

        Raises:
            ConfigError: diffusers cannot load it, or it is of another architecture.
            CheckpointCorrupt, ShapeError: weights are missing, unexpected or of another shape; all are named.
        """
        import diffusers

        cls = getattr(diffusers, self.architecture)
        check_folder(self.name, "name")
        path, sub = self.locate()
        more: dict[str, Any] = {"subfolder": sub} if sub else {}
        try:
            known = cls.load_config(path, **more)
            said = known.get("_class_name")
            if said not in (None, self.architecture):
                raise ConfigError("architecture", given=self.architecture, expected=f"{said}, as {path} says")
            made, notes = self._weights(cls, path, dict(config), more)
            if time_cond and known.get("time_cond_proj_dim") is None:
                net: nn.Module = cls.from_config({**known, **config, "time_cond_proj_dim": 256})
                load_strict(net, {**made.state_dict(), TIME_COND: net.state_dict()[TIME_COND]}, path, self.role)
                return net, [*notes, "its input for the guidance weight is new, and still to be trained"]
            return made, notes
        except LimbeckError:
            raise
        except Exception as error:  # the library raises whatever its files make it raise
            raise ConfigError(
                "name",
                f"diffusers cannot load a {self.architecture} from it: {first_line(error)}",
                given=self.name,
                expected="a folder with config.json and safetensors weights, or a Hub id",
                remedy=f"check the path, {self.setting('subfolder')} and {self.setting('architecture')}",
            ) from None

    def _weights(
        self, cls: Any, path: str, config: dict[str, Any], more: dict[str, Any]
    ) -> tuple[nn.Module, list[str]]:
        made: nn.Module
        made, info = cls.from_pretrained(
            path,
            **more,
            **config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below, with the others
            low_cpu_mem_usage=False,
        )
        if self.entry is not None or self.strip or (info["missing_keys"] and info["unexpected_keys"]):
            # what a compiled, wrapped or averaged network was saved under, the library takes for other weights altogether
            folder = Path(path) / (more.get("subfolder") or "")
            if folder.is_dir():
                found = find_weights(folder, made.state_dict(), entry=self.entry, strip=self.strip, role=self.role)
                load_strict(made, found.state, str(found.path), self.role)
                return made.eval(), [str(found)]
        shapes = [f"{k} is {list(a)} and should be {list(b)}" for k, a, b in info["mismatched_keys"]]
        if info["missing_keys"] or info["unexpected_keys"] or shapes:
            raise misfit(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), shapes, path, self.role)
        return made, [
            f"loaded all {len(made.state_dict())} tensors of {path}{f'/{self.subfolder}' if self.subfolder else ''}"
        ]

    # ------------------------------------------------------------------------------------------------ what the files say
    def about(self) -> dict[str, Any]:
        """``denoiser.json`` of a folder that limbeck wrote, else nothing."""
        return read_about(Path(self.name))

    def meaning(self) -> Kind:
        """What the network's output means, as ``denoiser.json`` or the scheduler's configuration says.

        Raises:
            ConfigError: nothing says it, or in words that are not known: it must be set.
        """
        said = self.about().get("mean_type")
        if said is not None:
            kind: Kind = said
            return kind
        found = scheduler_config(self.name)
        choose = " or ".join(f"{self.setting('mean_type')}={k}" for k in ("eps", "v", "x"))
        if found is None:
            raise ConfigError(
                "mean_type",
                f"nothing says what the output of {self.name} means: no scheduler lies in its folder or beside it",
                remedy=f"set {choose}: what it was trained to predict (diffusers' own training predicts eps)",
            )
        path, config = found
        prediction = config.get("prediction_type", "epsilon")
        if not {"beta_schedule", "beta_start", "trained_betas"} & config.keys() or prediction not in PREDICTION:
            raise ConfigError(
                "mean_type",
                f"{path} is of a {config.get('_class_name', 'scheduler')} with prediction_type {prediction!r}, which is "
                "no diffusion that limbeck knows",
                expected="a scheduler with betas that predicts epsilon, sample or v_prediction",
                remedy=f"set {choose} if it is one all the same",
            )
        return PREDICTION[prediction]

    def check_schedule(self, schedule: Schedule) -> list[str]:
        """Refuse another noise schedule than the network's; what is assumed where nothing says which it was.

        Raises:
            ConfigError: the network was trained with another schedule than the task's.
        """
        found = scheduler_config(self.name)
        own = None
        if found is not None:
            with contextlib.suppress(ConfigError):
                own = DiscreteSchedule.from_alphas_cumprod(read_scheduler(found[1], False))
        if own is None:
            kind = describe_schedule(schedule)["kind"]
            return [f"nothing says on which noise schedule it was trained: that of the task ({kind}) is taken"]
        u = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
        gap = float((own.alpha(u) - schedule.alpha(u)).abs().max())
        if found is not None and gap > 0.02:
            raise ConfigError(
                "task.schedule",
                f"the network was trained with another noise schedule (alpha differs by up to {gap:.2f})",
                given=describe_schedule(schedule)["kind"],
                remedy=f"set task.schedule={found[0]}"
                if Path(found[0]).exists()
                else "name its scheduler in task.schedule",
            )
        return []


def read_about(where: Path) -> dict[str, Any]:
    """``denoiser.json`` of a folder that limbeck wrote, else nothing."""
    path = where / "denoiser.json"
    if not path.is_file():
        return {}
    try:
        about = read_json(path)
    except (OSError, ValueError):
        raise CheckpointCorrupt(str(path), "it is no JSON") from None
    return about if isinstance(about, dict) else {}


def check_shape(net: nn.Module, shape: tuple[int, ...], files: Files) -> None:
    """Refuse a network that was made for images of other channels or of another size.

    Raises:
        ConfigError: what it takes, what the task gives, and the setting that mends it.
    """
    config: Any = net.config
    channels, own = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
    if channels is not None and channels != shape[0]:
        raise ConfigError(
            "name",
            f"the network takes images of {channels} channel{'s' * (channels != 1)}, and the task's have {shape[0]}",
            given=files.name,
            remedy="choose a network for such images, or other data with task.data",
        )
    sizes = (own, own) if isinstance(own, int) else tuple(own) if own else shape[1:]
    if tuple(sizes) != tuple(shape[1:]):
        own_size, wide = "x".join(map(str, sizes)), "x".join(map(str, shape[1:]))
        raise ConfigError(
            "name",
            f"the network was made for images of {own_size}, and the task's are {wide}",
            given=files.name,
            remedy=f"set task.size={sizes[0]}, or {files.setting('config')}={{sample_size: {shape[1]}}} if it was trained on "
            f"{wide}",
        )


__all__ = ["Files", "check_shape", "read_about", "some"]
