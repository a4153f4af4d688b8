"""Optional packages, by the extra that brings them."""

from __future__ import annotations

from typing import Final

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "language": ("transformers", "datasets", "peft"),
    "diffusion": ("diffusers", "transformers"),
    "vision": ("torchmetrics", "pycocotools", "skimage"),
    "graph": ("torch_geometric",),
    "molecules": ("rdkit",),
    "tabular": ("fairlearn", "pandas", "pyarrow", "skops"),
    "scene": ("skimage", "trimesh"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "hub": ("huggingface_hub",),
    "tracking": ("accelerate", "wandb", "mlflow", "trackio"),
    "ray": ("ray",),
    "search": ("optuna",),
}
"""Extra -> the modules that are imported from what it brings."""


def extra_of(module: str) -> str | None:
    """The extra that brings a module; ``None`` where none does.

    Example:
        >>> extra_of("transformers")
        'language'
    """
    return next((extra for extra, modules in EXTRAS.items() if module in modules), None)
