"""diffusers' networks as denoisers, and its folder layout for what comes out.

A network of diffusers is told a timestep and knows nothing of log-SNR or guidance weights. ``DiffusersDenoiser`` stands
between: it turns the log-SNR into the timestep of the task's schedule, hands over the class as the network wants it, and
brings the guidance weight in, through ``timestep_cond`` where the network has ``time_cond_proj_dim``, else through a
small embedding that is added to every timestep embedding of the network, which itself stays as it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointCorrupt, ConfigError, require
from limbeck.functional import diffusion
from limbeck.functional.diffusion import DiscreteSchedule, Kind, Schedule
from limbeck.grammar.method import Built
from limbeck.grammar.needs import Needs
from limbeck.grammar.task import Check, Model, Task
from limbeck.models.diffusers_files import Files, check_shape, read_about
from limbeck.models.forms import meet
from limbeck.networks.prompt_encoder import encode_prompts
from limbeck.storage.disk import expanded
from limbeck.storage.foreign import find_weights
from limbeck.storage.plain import check_folder
from limbeck.storage.weights import load_state_dict, load_strict, save_state_dict
from limbeck.tasks.sampler import null_said
from limbeck.tasks.schedules import (
    TIMESTEPS,
    read_schedule,
    scheduler_for,
)

NAMES = {"model": {"diffusers": "Diffusers"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

Architecture = Literal["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"]
Guidance = Literal["auto", "time_cond", "module", "none"]


class GuidanceEmbedding(nn.Module):
    """The guidance weight as something to add to a timestep embedding; zero before it is trained.

    Args:
        width: of the timestep embedding.
        features: number of Fourier features.

    Example:
        >>> bool((GuidanceEmbedding(16)(torch.tensor([0.0, 2.0])) == 0).all())
        True
    """

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, w: Tensor) -> Tensor:
        """[N] -> [N, width]."""
        out: Tensor = self.out(nn.functional.silu(self.hidden(embed_w(w, self.features).to(self.hidden.weight.dtype))))
        return out


def embed_w(w: Tensor, dim: int) -> Tensor:
    """Features of w as few-step students of diffusers take them: w = scale - 1, times 1,000, sinusoids."""
    return diffusion.guidance_embedding(w, dim)


class DiffusersDenoiser(nn.Module):
    """A network of diffusers, spoken to as a denoiser: ``(z, logsnr, labels[, w]) -> output``.

    Args:
        net: the network, unedited; ``net.save_pretrained`` writes it alone.
        schedule: of the task; says which timestep a log-SNR is.
        mean_type: what the output means.
        null_condition: the label that stands for 'no condition', or the embedding of the empty prompt [L, D]: then every
            condition is an embedding.
        guidance: ``time_cond``, ``module`` or ``none``.
        prompts: for networks with cross-attention: what each class (and the null condition, last) is told as,
            [K + 1, L, D].
        learn_prompts: train them with the network; those of a text encoder stay as they are.

    Raises:
        ConfigError: guidance is asked for and the network has no way to take it.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        mean_type: Kind,
        null_condition: int | Tensor | None,
        guidance: Literal["time_cond", "module", "none"] = "none",
        prompts: Tensor | None = None,
        learn_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.mean_type: Kind = mean_type
        if isinstance(null_condition, Tensor):
            self.register_buffer("null_condition", null_condition.clone())
        else:
            self.null_condition = null_condition
        self.guided = guidance != "none"
        self.way = guidance
        self.guidance: GuidanceEmbedding | None = None
        self._added: Tensor | None = None
        config: Any = net.config
        if guidance == "time_cond":
            if getattr(config, "time_cond_proj_dim", None) is None:
                raise ConfigError("student", "student has no guidance input (time_cond_proj_dim is None)")
            first: Any = net.time_embedding
            nn.init.zeros_(first.cond_proj.weight)
        elif guidance == "module":
            places = timestep_embeddings(net)
            if not places:
                raise ConfigError(
                    "student",
                    "student has no guidance input (time_cond_proj_dim is None), and its timestep embedding was not found",
                    given=type(net).__name__,
                    expected="a network with a TimestepEmbedding, or UNet2DConditionModel(time_cond_proj_dim=...)",
                )
            self.guidance = GuidanceEmbedding(places[0].linear_2.out_features)
            for place in places:
                # a bound method, so that a deep copy of this module is hooked to its own embedding
                place.register_forward_hook(self._add)
        for child in net.modules():
            if type(child).__name__ == "LabelEmbedding":
                # the network would drop classes by itself while a student is trained; the task does that, when wanted
                child.dropout_prob = 0.0  # type: ignore[assignment]
        self.prompts: Tensor | None
        if prompts is None:
            self.prompts = None
        elif learn_prompts:
            self.prompts = nn.Parameter(prompts.clone())
        else:
            self.register_buffer("prompts", prompts.clone())

    def _add(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out if self._added is None else out + self._added.to(out.dtype)

    def timestep(self, logsnr: Tensor) -> Tensor:
        """The timestep [N] (fractional between whole ones) of a log-SNR."""
        if torch.onnx.is_in_onnx_export():
            u = _time_for_onnx(self.schedule, logsnr)
        else:
            u = self.schedule.time(logsnr)
        count = self.schedule.timesteps if isinstance(self.schedule, DiscreteSchedule) else TIMESTEPS
        return (u * count - 1.0).clamp_min(0.0).float()

    @property
    def conditional(self) -> bool:
        """Whether it is told classes or texts."""
        return condition_count(self.net, 1) != 0

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor, w: Tensor | None = None) -> Tensor:
        """z [N, C, H, W], logsnr [N], labels [N] (or embeddings [N, L, D]), w [N] -> [N, C, H, W]."""
        t = self.timestep(logsnr)
        more: dict[str, Any] = {}
        if self.way == "time_cond" and w is not None:
            more["timestep_cond"] = embed_w(w, self.net.config.time_cond_proj_dim).to(z.dtype)  # type: ignore[union-attr, arg-type]
        if labels.is_floating_point():
            more["encoder_hidden_states"] = labels.to(z.dtype)
        elif self.prompts is not None:
            more["encoder_hidden_states"] = self.prompts[labels].to(z.dtype)
        elif getattr(self.net.config, "num_class_embeds", 0) or type(self.net).__name__ == "DiTTransformer2DModel":
            more["class_labels"] = labels
        if self.guidance is not None and w is not None:
            self._added = self.guidance(w)
        try:
            out: Tensor = self.net(z, t, return_dict=False, **more)[0]
        finally:
            self._added = None
        if out.shape[1] == 2 * z.shape[1] and self.mean_type != "both":
            out = out[:, : z.shape[1]]  # the other half is a learned variance, which DDIM does not use
        return out

    def save_pretrained(self, folder: str | Path) -> None:
        """The network alone, as diffusers writes it."""
        self.net.save_pretrained(folder)  # type: ignore[operator]

    def extra_state_dict(self) -> dict[str, Tensor]:
        """What is not in the network itself: the guidance embedding, learned or encoded prompts."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("net.")}


def _time_for_onnx(schedule: Schedule, logsnr: Tensor) -> Tensor:
    """The schedule's time [N] in operations that an ONNX graph has: no search, no arctangent in double precision."""
    if isinstance(schedule, diffusion.CosineSchedule):
        low, high = (math.atan(math.exp(-0.5 * v)) for v in (schedule.logsnr_max, schedule.logsnr_min))
        return ((torch.atan(torch.exp(-0.5 * logsnr.float())) - low) / (high - low)).clamp(0.0, 1.0)
    if isinstance(schedule, DiscreteSchedule):
        nodes, value = schedule.table.to(logsnr.device), logsnr.to(schedule.table.dtype)
        high_node = (nodes[None, :] > value[:, None]).sum(1).clamp(1, schedule.timesteps - 1)
        above, below = nodes[high_node - 1], nodes[high_node]
        span = below - above
        part = torch.where(span == 0, torch.zeros_like(span), (value - above) / span).clamp(0.0, 1.0)
        return (high_node + part) / schedule.timesteps
    return schedule.time(logsnr)


def timestep_embeddings(net: nn.Module) -> list[Any]:
    """The modules whose output is the timestep embedding that the rest of the network sees (one a block in a DiT)."""
    places = ("time_embedding", "timestep_embedder")
    return [m for n, m in net.named_modules() if type(m).__name__ == "TimestepEmbedding" and n.split(".")[-1] in places]


class Diffusers(Model):
    """A network of diffusers: a folder or Hub id with its weights, or an architecture built from a configuration.

    Args:
        name: folder or Hub id of a network or of a pipeline that holds one; empty to build one.
        architecture: what to build, and what is expected in ``name``.
        config: arguments of the architecture, over a small default for the task's images.
        subfolder: where the network lies in ``name``; found by itself in a pipeline.
        mean_type: ``eps``, ``x``, ``v`` or ``both``; ``null`` takes the prediction type of the scheduler beside ready
            weights, and ``v`` for a network that is built here.
        null_condition: the label that stands for 'no condition'; ``null`` takes the one after the last class, where
            the network has it.
        guidance: how the guidance weight goes in: ``time_cond`` (through ``timestep_cond``), ``module`` (an embedding of
            our own, added to the timestep's), ``none``; ``auto``: as its folder says, else none in a teacher, and in a
            student the first where the network has cross-attention.
        prompt: for a pipeline with a text encoder: how a class is named, ``{}`` for its name.
        checkpoint: weights of this very model or of the network in it, loaded strictly.
        entry: the entry of a training checkpoint that holds them; ``null`` finds it, and says which it took.
        strip: a prefix to take off the names of the weights; those of known wrappers come off by themselves.
        check: try a ready teacher on images before anything is trained: ``on`` or ``off``.
    """

    forms = ("denoiser",)
    paths: ClassVar[tuple[str, ...]] = ("name", "config", "checkpoint")

    def __init__(
        self,
        name: str = "",
        architecture: Architecture = "UNet2DModel",
        config: dict[str, Any] | None = None,
        subfolder: str | None = None,
        mean_type: Kind | None = None,
        null_condition: int | None = None,
        guidance: Guidance = "auto",
        prompt: str = "a image of {}",
        checkpoint: str | None = None,
        entry: str | None = None,
        strip: str = "",
        check: Check = "on",
    ) -> None:
        # written out: the setting "config" has the name of the node that a component was built from
        if "{}" not in prompt:
            raise ValueError("prompt must hold {} where the class name goes")
        if null_condition is not None and null_condition < 0:
            raise ValueError("null_condition must be 0 or more")
        if name and set(config or {}) - {"sample_size"}:
            raise ValueError("config builds a network; of one that is named it may change sample_size alone")
        self.name, self.architecture, self.options = name, architecture, dict(config or {})
        self.subfolder, self.mean_type, self.null_condition = subfolder, mean_type, null_condition
        self.guidance: Guidance = guidance
        self.prompt, self.checkpoint = prompt, checkpoint
        self.entry, self.strip = entry, strip
        self.check: Check = check

    @property
    def trained(self) -> bool:
        """Whether its weights come from somewhere."""
        return bool(self.name) or self.checkpoint is not None

    def build(self, task: Task) -> Built:
        """The network for a task, with the task's schedule.

        Raises:
            ConfigError: nothing to load; a schedule other than the task's; no null condition; no guidance input.
        """
        needs = meet(self, task)
        task.load()
        assert needs.schedule is not None
        require("diffusers", "diffusion", "a denoiser of diffusers")
        where = Path(self.name) if self.name else None
        files = Files(self.name, self.subfolder, self.architecture, role=self.role)
        if self.checkpoint is None:
            files.entry, files.strip = self.entry, self.strip
        found = files.about() if where is not None else {}
        way = self._way(found)
        notes: list[str] = []
        if where is None:
            net = self._make(needs, way)
        else:
            net, notes = files.load(self.options, way == "time_cond")
            check_shape(net, needs.inputs, files)
        kind = self.mean_type or (files.meaning() if where is not None else self._meaning())
        if where is not None:
            notes += files.check_schedule(needs.schedule)
        words = needs.null
        null: int | Tensor | None
        if words is None:
            (null, assumed), (prompts, learnt) = self._null(net, needs, found), self._prompts(net, needs, where)
        else:
            check_width(net, words, self.setting("name"))
            null, assumed, prompts, learnt = words, [], None, False
        module = DiffusersDenoiser(net, needs.schedule, kind, null, way, prompts, learnt)
        extra = self._load_extra(module, where) if where is not None else set()
        if where is not None and learnt and "prompts" not in extra:
            notes.append(self._new_prompts())
        if self.checkpoint is not None:
            notes.append(self._load_checkpoint(module))
        return Built(module, labels=task.labels, model=self, notes=[*notes, *assumed])

    def _meaning(self) -> Kind:
        """What the output of a network means that is built here.

        Raises:
            ConfigError: a checkpoint comes without a word on it.
        """
        if self.checkpoint is None:
            return "v"
        folder = expanded(self.checkpoint).parent
        for about in (folder, folder / "student"):
            said = read_about(about).get("mean_type")
            if said is not None:
                kind: Kind = said
                return kind
        raise ConfigError(
            "mean_type",
            f"nothing beside {self.checkpoint} says what its output means",
            remedy=f"set {self.setting('mean_type')}=eps, v or x: what it was trained to predict",
        )

    def _new_prompts(self) -> str:
        """What is to be told where nothing says how the network is told of a class.

        Raises:
            ConfigError: of a teacher, which would answer to noise.
        """
        if self.role == "teacher":
            raise ConfigError(
                "name",
                "the network is told what to draw in words, and its folder holds neither a text encoder nor its prompts",
                given=self.name,
                remedy="name the folder of its pipeline, with text_encoder/ and tokenizer/ in it",
            )
        return "what it is told for each class is new, and still to be trained: no text encoder lies in its folder"

    def _load_checkpoint(self, module: DiffusersDenoiser) -> str:
        path = expanded(str(self.checkpoint))
        how: dict[str, Any] = {"entry": self.entry, "strip": self.strip, "role": self.role}
        found = find_weights(path, module.state_dict(), **how)
        into: nn.Module = module
        if not found.state.keys() & module.state_dict().keys():  # the network's own, without what stands around it
            found, into = find_weights(path, module.net.state_dict(), **how), module.net
        load_strict(into, found.state, str(self.checkpoint), self.role)
        return str(found)

    def _way(self, found: dict[str, Any]) -> Literal["time_cond", "module", "none"]:
        if self.guidance != "auto":
            return self.guidance
        if "guidance" in found:
            way: Literal["time_cond", "module", "none"] = found["guidance"]
            return way
        if self.role == "teacher":
            return "none"
        return "time_cond" if self.architecture == "UNet2DConditionModel" else "module"

    def _make(self, needs: Needs, way: str) -> nn.Module:
        import diffusers

        config = {**small_config(self.architecture, needs.inputs, needs.outputs), **self.options}
        if needs.null is not None:
            config["cross_attention_dim"] = self.options.get("cross_attention_dim", needs.null.shape[-1])
        if way == "time_cond" and self.architecture == "UNet2DConditionModel":
            config.setdefault("time_cond_proj_dim", 64)
        try:
            made: nn.Module = getattr(diffusers, self.architecture)(**config)
            return made
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError("config", f"{self.architecture} refuses it: {error}", given=self.options) from None

    def _null(self, net: nn.Module, needs: Needs, found: dict[str, Any]) -> tuple[int | None, list[str]]:
        """The label that stands for 'no condition', and what is assumed of it."""
        count = condition_count(net, needs.outputs)
        null = self.null_condition if self.null_condition is not None else found.get("null_condition")
        null = None if isinstance(null, dict) else null  # that of a network that was told embeddings
        if null is None:
            # a network made for more classes than the task has may still keep its null condition last
            null = count - 1 if count is not None and count == needs.outputs + 1 else None
            if null is None and type(net).__name__ == "DiTTransformer2DModel":
                null = count - 1 if count is not None and count > net.config.num_embeds_ada_norm else None  # type: ignore[union-attr, operator]
        assumed = []
        words = type(net).__name__ == "UNet2DConditionModel"  # its null condition is the empty prompt
        if (
            self.name
            and not words
            and null is not None
            and self.null_condition is None
            and "null_condition" not in found
        ):
            assumed.append(f"its last condition ({null}) is taken to stand for 'no condition'")
        if null is not None and count is not None and null >= count:
            raise ConfigError("null_condition", given=null, expected=f"an index below the network's {count} conditions")
        if count is not None and 0 < count < needs.outputs:  # none at all: of all images alike, which nothing can guide
            raise ConfigError("model", f"the network knows {count} conditions and the task has {needs.outputs} classes")
        return null, assumed

    def _prompts(self, net: nn.Module, needs: Needs, where: Path | None) -> tuple[Tensor | None, bool]:
        if type(net).__name__ != "UNet2DConditionModel":
            return None, False
        config: Any = net.config
        if where is not None and (where / "text_encoder").is_dir() and (where / "tokenizer").is_dir():
            names = [self.prompt.format(n) for n in needs.names] + [""]
            return encode_prompts(where, names), False
        width = config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        generator = torch.Generator().manual_seed(0)
        return torch.randn(needs.outputs + 1, 1, width, generator=generator), True

    def _load_extra(self, module: DiffusersDenoiser, where: Path) -> set[str]:
        """The guidance embedding and the prompts that limbeck keeps beside a network; which there were."""
        path = where / "guidance.safetensors"
        if not path.is_file():
            return set()
        extra = load_state_dict(path)
        unknown = sorted(set(extra) - set(module.extra_state_dict()))
        if unknown and module.guided:
            raise CheckpointCorrupt(str(path), f"it holds {unknown}, which the model has not")
        state = module.state_dict()
        for name, value in extra.items():
            if name in state:
                state[name].copy_(value)
        return set(extra)

    def save(self, module: nn.Module, folder: Any, labels: list[str] | None = None) -> None:
        """``student/`` as diffusers lays it out: the network, ``scheduler/``, and, where there is one, the guidance
        embedding (``guidance.safetensors``) and ``denoiser.json``, which say what diffusers has no field for."""
        if not isinstance(module, DiffusersDenoiser):
            raise TypeError(f"a {type(module).__name__} is no network of diffusers")
        place = Path(folder) / "student"
        place.mkdir(parents=True, exist_ok=True)
        module.save_pretrained(place)
        scheduler_for(module.schedule, module.mean_type).save_pretrained(place / "scheduler")
        extra = module.extra_state_dict()
        if extra:
            save_state_dict(place / "guidance.safetensors", extra)
        about = {
            "mean_type": module.mean_type,
            "null_condition": null_said(module.null_condition),
            "guidance": module.way,
            "labels": labels,
        }
        (place / "denoiser.json").write_text(json.dumps(about, indent=2))

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """What ``sampler.json`` must say to open it again."""
        assert isinstance(module, DiffusersDenoiser)
        learnt = isinstance(module.prompts, nn.Parameter)
        prompts = None if module.prompts is None else list(module.prompts.shape)
        return {
            "library": "diffusers",
            "architecture": type(module.net).__name__,
            "guidance": module.way,
            "prompts": prompts,
            "learn_prompts": learnt,
        }


def open_diffusers(folder: Path, about: dict[str, Any]) -> nn.Module:
    """A saved student of a sampler's folder."""
    diffusers = require("diffusers", "diffusion", "opening a student of diffusers")
    model = about["model"]
    if model["architecture"] not in ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"):
        raise CheckpointCorrupt(str(folder), "unknown architecture", given=model["architecture"])
    place = folder / "student"
    check_folder(place, "student")
    net = getattr(diffusers, model["architecture"]).from_pretrained(str(place), use_safetensors=True)
    prompts = None if model["prompts"] is None else torch.zeros(model["prompts"])
    null = about["null_condition"]
    null = torch.zeros(null["shape"]) if isinstance(null, dict) else null
    module = DiffusersDenoiser(
        net,
        read_schedule(about["schedule"]),
        about["mean_type"],
        null,
        model["guidance"],
        prompts,
        model["learn_prompts"],
    )
    weights = {
        f"net.{k}": v for k, v in type(net).from_pretrained(str(place), use_safetensors=True).state_dict().items()
    }
    extra = place / "guidance.safetensors"
    load_strict(module, {**weights, **(load_state_dict(extra) if extra.is_file() else {})}, str(place))
    return module.eval()


# ----------------------------------------------------------------------------------------------------------- libraries


def check_width(net: nn.Module, words: Tensor, setting: str) -> None:
    """Refuse a network that cannot be told these embeddings [L, D].

    Raises:
        ConfigError: it takes none, or those of another text encoder; both widths are named.
    """
    config: Any = net.config
    width = getattr(config, "cross_attention_dim", None)
    if type(net).__name__ != "UNet2DConditionModel" or width is None:
        raise ConfigError(
            setting,
            "it cannot be told prompts",
            given=type(net).__name__,
            expected="architecture: UNet2DConditionModel",
        )
    width = width if isinstance(width, int) else width[0]
    if width != words.shape[-1]:
        raise ConfigError(
            setting,
            f"it is told embeddings of width {width}, and those of the prompts have {words.shape[-1]}",
            expected="embeddings of the network's own text encoder",
        )


def condition_count(net: nn.Module, classes: int) -> int | None:
    """How many conditions a network knows, the null condition included; ``None`` where it takes text."""
    config: Any = net.config
    if type(net).__name__ == "DiTTransformer2DModel":
        for child in net.modules():
            if type(child).__name__ == "LabelEmbedding":
                table: Any = child.embedding_table
                return int(table.num_embeddings)
        return None
    if type(net).__name__ == "UNet2DConditionModel":
        return classes + 1
    count = getattr(config, "num_class_embeds", None)
    return int(count) if count else 0


def small_config(architecture: str, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """A small network for images of this shape, with a place for the null condition."""
    channels, side, across = shape
    if side != across:
        raise ConfigError(
            "task.size", "diffusers networks take square images", given=(side, across), remedy="set task.size"
        )
    halvings = 1 if side < 16 else 2 if side < 64 else 3
    if architecture == "DiTTransformer2DModel":
        patch = 2 if side % 2 == 0 and side <= 16 else 4 if side % 4 == 0 else 1
        return {
            "sample_size": side,
            "in_channels": channels,
            "out_channels": channels,
            "patch_size": patch,
            "num_layers": 4,
            "num_attention_heads": 4,
            "attention_head_dim": 16 if side <= 8 else 32,
            "norm_num_groups": 8,
            "num_embeds_ada_norm": classes,
        }
    widths = tuple(32 * 2**i for i in range(halvings + 1))
    common: dict[str, Any] = {
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": widths,
        "norm_num_groups": 8,
    }
    if architecture == "UNet2DConditionModel":
        return {
            **common,
            "down_block_types": ("DownBlock2D",) * halvings + ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",) + ("UpBlock2D",) * halvings,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
        }
    return {
        **common,
        "down_block_types": ("DownBlock2D",) * halvings + ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * halvings,
        "attention_head_dim": 8,
        "num_class_embeds": classes + 1,
    }
