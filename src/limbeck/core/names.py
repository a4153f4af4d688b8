"""Names that a recipe may use, as strings: nothing is imported until it is chosen.

Methods are not listed here: a method's name is read from its Card (``limbeck.core.card``). A name written
``import:package.module:function`` reaches the user's own function and runs their code.
"""

from __future__ import annotations

from typing import Final

TABLES: Final[dict[str, dict[str, str]]] = {
    "method": {  # papers are not listed: their Cards name them
        "objectives": "limbeck.core.plain:Objectives",
    },
    "task": {
        "classification": "limbeck.tasks.classification:Classification",
        "language": "limbeck.tasks.language:Language",
        "generation": "limbeck.tasks.generation:Generation",
        "condensation": "limbeck.tasks.condensation:Condensation",
    },
    "model": {
        "mlp": "limbeck.tasks.models:Mlp",
        "convnet": "limbeck.tasks.models:ConvNetModel",
        "cifar-resnet": "limbeck.tasks.models:CifarResNet",
        "timm": "limbeck.tasks.models:Timm",
        "torchvision": "limbeck.tasks.models:Torchvision",
        "causal-lm": "limbeck.tasks.language:CausalLm",
        "hf": "limbeck.tasks.language:HuggingFace",
        "denoiser": "limbeck.tasks.generation:Denoiser",
        "diffusers": "limbeck.tasks.diffusers_models:Diffusers",
        "run": "limbeck.tasks.models:FromRun",
        "import": "limbeck.tasks.models:Imported",
        "ensemble": "limbeck.tasks.models:EnsembleOf",
        "cached": "limbeck.cache:Cached",
        "remote": "limbeck.cache.remote:Remote",
    },
    "source": {
        "digits": "limbeck.tasks.sources:Digits",
        "folder": "limbeck.tasks.sources:Folder",
        "torchvision": "limbeck.tasks.sources:TorchvisionSet",
        "hf": "limbeck.tasks.tables:HuggingFaceSet",
        "arrays": "limbeck.tasks.sources:Arrays",
        "csv": "limbeck.tasks.tables:Table",
        "jsonl": "limbeck.tasks.tables:Jsonl",
        "parquet": "limbeck.tasks.tables:Parquet",
        "import": "limbeck.tasks.sources:Imported",
        "pydoc": "limbeck.tasks.text:PythonHelp",
        "text": "limbeck.tasks.text:TextFiles",
        "text-jsonl": "limbeck.tasks.text:TextJsonl",
        "text-parquet": "limbeck.tasks.text:TextParquet",
        "text-hf": "limbeck.tasks.text:TextHuggingFace",
    },
    "query": {
        "flip": "limbeck.objectives.queries:Flip",
        "crop": "limbeck.objectives.queries:Crop",
        "mixup": "limbeck.objectives.queries:Mixup",
        "cutmix": "limbeck.objectives.queries:Cutmix",
        "noise": "limbeck.objectives.queries:Noise",
        "dsa": "limbeck.tasks.condensation:Augment",
        "on-policy": "limbeck.objectives.sampling:OnPolicy",
        "replay": "limbeck.objectives.sampling:Replay",
        "import": "limbeck.objectives.queries:Imported",
    },
    "objective": {
        "supervised": "limbeck.objectives.output:Supervised",
        "kl": "limbeck.objectives.output:Kl",
        "divergence": "limbeck.objectives.output:Divergence",
        "feature": "limbeck.objectives.feature:FeatureMatch",
        "attention": "limbeck.objectives.feature:AttentionTransfer",
        "relation": "limbeck.objectives.feature:Relation",
        "import": "limbeck.objectives.output:Imported",
    },
}
