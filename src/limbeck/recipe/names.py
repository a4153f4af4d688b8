"""Names that a recipe may use, as strings: nothing is imported until it is chosen.

Methods are not listed here: a method's name is read from its Card (``limbeck.grammar.card``). A name written
``import:package.module:function`` reaches the user's own function and runs their code.
"""

from __future__ import annotations

from typing import Final

TABLES: Final[dict[str, dict[str, str]]] = {
    "method": {  # papers are not listed: their Cards name them
        "objectives": "limbeck.grammar.plain:Objectives",
    },
    "task": {
        "classification": "limbeck.tasks.classification:Classification",
        "language": "limbeck.tasks.language:Language",
        "generation": "limbeck.tasks.generation:Generation",
        "condensation": "limbeck.tasks.condensation:Condensation",
    },
    "model": {
        "mlp": "limbeck.models.small:MlpModel",
        "convnet": "limbeck.models.small:ConvNetModel",
        "cifar-resnet": "limbeck.models.small:CifarResNetModel",
        "timm": "limbeck.models.libraries:Timm",
        "torchvision": "limbeck.models.libraries:Torchvision",
        "causal-lm": "limbeck.models.causal_lm:CausalLm",
        "hf": "limbeck.models.huggingface:HuggingFace",
        "denoiser": "limbeck.models.denoiser:Denoiser",
        "diffusers": "limbeck.models.diffusers_denoiser:Diffusers",
        "run": "limbeck.models.from_run:FromRun",
        "import": "limbeck.models.imported:ImportedModel",
        "ensemble": "limbeck.models.ensemble:EnsembleOf",
        "chain": "limbeck.models.chain:ChainOf",
        "cached": "limbeck.cache:Cached",
        "remote": "limbeck.cache.remote:Remote",
    },
    "source": {
        "digits": "limbeck.data.sources:Digits",
        "folder": "limbeck.data.sources:Folder",
        "torchvision": "limbeck.data.sources:TorchvisionSet",
        "hf": "limbeck.data.tables:HuggingFaceSet",
        "arrays": "limbeck.data.sources:Arrays",
        "csv": "limbeck.data.tables:Table",
        "jsonl": "limbeck.data.tables:Jsonl",
        "parquet": "limbeck.data.tables:Parquet",
        "import": "limbeck.data.sources:ImportedSource",
        "pydoc": "limbeck.data.text:PythonHelp",
        "text": "limbeck.data.text_files:TextFiles",
        "text-jsonl": "limbeck.data.text_files:TextJsonl",
        "text-parquet": "limbeck.data.text_files:TextParquet",
        "text-hf": "limbeck.data.text_files:TextHuggingFace",
    },
    "evaluator": {
        "direct": "limbeck.evaluators.direct:Direct",
        "fresh": "limbeck.evaluators.fresh:Fresh",
        "sampler": "limbeck.evaluators.sampler:Sampler",
    },
    "query": {
        "flip": "limbeck.objectives.queries:Flip",
        "crop": "limbeck.objectives.queries:Crop",
        "mixup": "limbeck.objectives.queries:Mixup",
        "cutmix": "limbeck.objectives.queries:Cutmix",
        "noise": "limbeck.objectives.queries:Noise",
        "dsa": "limbeck.objectives.queries:Augment",
        "on-policy": "limbeck.objectives.sampling:OnPolicy",
        "replay": "limbeck.objectives.sampling:Replay",
        "import": "limbeck.objectives.queries:ImportedQuery",
    },
    "objective": {
        "supervised": "limbeck.objectives.output:Supervised",
        "kl": "limbeck.objectives.output:Kl",
        "divergence": "limbeck.objectives.output:Divergence",
        "feature": "limbeck.objectives.feature:FeatureMatch",
        "attention": "limbeck.objectives.feature:AttentionTransfer",
        "relation": "limbeck.objectives.feature:Relation",
        "import": "limbeck.objectives.output:ImportedObjective",
    },
}
