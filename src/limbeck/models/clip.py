"""The image tower of a CLIP, from a folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from limbeck.data.items import as_path
from limbeck.errors import CheckpointCorrupt, ConfigError, first_line
from limbeck.grammar.method import Built
from limbeck.grammar.role import Contract
from limbeck.grammar.settings import settings
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.forms import meet
from limbeck.models.pretrained import quiet
from limbeck.storage.plain import read_json
from limbeck.storage.store import save_state_dict
from limbeck.tasks.causal import transformers_library

NAMES = {"model": {"clip": "Clip"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""


class ImageTower(nn.Module):
    """The vision model of a CLIP with its projection: images [N, 3, h, w] -> embeddings [N, D].

    Args:
        clip: transformers' ``CLIPModel``, of which these two parts are kept.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings, of any length."""
        found: Tensor = self.visual_projection(self.vision_model(pixel_values=x).pooler_output)
        return found


@settings
class Clip(Model):
    """The image tower of a CLIP in a local folder, with its projection and its own normalisation; its weights are ready.

    Args:
        path: the folder, as ``CLIPModel.save_pretrained`` lays it out (config.json, safetensors).
        check: try it before anything is trained.
    """

    forms = ("vector",)
    paths: ClassVar[tuple[str, ...]] = ("path",)
    rehearsed = True

    path: str
    check: Check = "on"

    @property
    def trained(self) -> bool:
        """Its weights come with it."""
        return True

    def build(self, task: Task) -> Built:
        """The tower.

        Raises:
            ConfigError: the folder holds no CLIP. CheckpointCorrupt: weights of the tower are missing.
            ShapeError: its embeddings are not as wide as the task needs them.
        """
        meet(self, task)
        transformers = transformers_library("the image tower of a CLIP")
        folder = as_path(self.path, self.setting("path"))
        if not (folder / "config.json").is_file():
            raise ConfigError(self.setting("path"), given=self.path, expected="a CLIP's folder with config.json")
        try:
            with quiet():  # the whole of it: a tower opened by itself forgets how wide its projection is
                clip, info = transformers.CLIPModel.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
        except Exception as error:
            raise ConfigError(self.setting("path"), f"cannot be opened: {first_line(error)}", given=self.path) from None
        if missing := sorted(info["missing_keys"]):
            raise CheckpointCorrupt(
                str(folder), f"has no {', '.join(missing[:3])}" + ("..." if len(missing) > 3 else "")
            )
        built = Built(ImageTower(clip.float()), self._contract(folder, clip.config.vision_config), None, self)
        built.notes.append(f"the image tower of {self.path}, embeddings of {clip.config.projection_dim} numbers")
        task.rehearse(built, self.role or "teacher")
        return built

    def _contract(self, folder: Path, config: Any) -> Contract:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
        file = folder / "preprocessor_config.json"
        if file.is_file():
            try:
                about = read_json(file)
                mean, std = (tuple(map(float, about.get(n, d))) for n, d in (("image_mean", mean), ("image_std", std)))  # type: ignore[assignment]
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise ConfigError(self.setting("path"), f"{file.name} cannot be read: {error}") from None
        side = int(config.image_size)
        return Contract(mean=mean, std=std, size=(side, side), channels=3)

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """The tower's weights."""
        save_state_dict(Path(folder) / "student.safetensors", module.state_dict())


__all__ = ["Clip", "ImageTower"]
