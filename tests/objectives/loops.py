"""One update by the documentation's own examples and by the engine, from the same weights and items: in this process, or as a
script that torchrun starts, where the first process keeps what each example learnt."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from limbeck.engine.engine import Engine
from limbeck.engine.settings import EngineSettings
from limbeck.grammar.method import Batch, Built, Context, Method, Setup, Terms
from limbeck.grammar.optim import Optim
from limbeck.objectives import FeatureMatch, Kl
from limbeck.tasks.language import Language
from limbeck.tasks.tokens import make_batch
from tests.toy import ToyTask

ROOT = Path(__file__).resolve().parents[2]
STEP = Optim(steps=1, batch_size=8, lr=1.0, optimizer="sgd", momentum=0.0, schedule="constant")
Learnt = dict[str, Tensor]


def example(word: str, page: str = "docs/python.md") -> dict[str, Any]:
    """What the page's Python block with this word defines: its imports, functions and classes, and no more."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    tree = ast.parse(next(code for code in found if word in code))
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    tree.body = [node for node in tree.body if isinstance(node, kept)]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(tree, page, "exec", dont_inherit=True), names)
    return names


class Matching(Method):
    """The task's own loss, and what the recipe adds to it."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def step(self, batch: Batch, ctx: Context) -> Terms:
        term = self.task.supervised(ctx.signal("student", batch), batch)
        term.weight = self.weight
        return Terms(task=term)


def by_engine(method: Method, setup: Setup, projector: dict[str, Tensor], **settings: Any) -> Learnt:
    """One step of the engine; the projector begins with the given weights."""
    engine = Engine(EngineSettings(device="cpu", **settings), 0)
    prepare = engine._prepare_objectives  # a run makes the projector by its seed

    def with_given(bound: Method) -> None:
        prepare(bound)
        bound.roles["projector:hint"].module.load_state_dict(projector)

    engine._prepare_objectives = with_given  # type: ignore[method-assign]
    method.bind(setup)
    engine.run(method)
    roles = {"student": "student", "criterion.projectors.hint": "projector:hint"}
    return {f"{to}.{k}": v for to, r in roles.items() for k, v in method.roles[r].module.state_dict().items()}


# ---------------------------------------------------------------------------------------------------- transformers


def language_models() -> tuple[nn.Module, Any]:
    """The page's module on its own two networks, always with the same weights."""
    torch.manual_seed(0)
    names = example("\nTrainer(")
    teacher = names["llama"](32)
    return names["Distilled"](names["llama"](16), teacher), teacher


def rows() -> Batch:
    """Eight rows of twelve tokens, of which unequal numbers count."""
    ids = torch.randint(64, (8, 12), generator=torch.Generator().manual_seed(1))
    sizes, begins = torch.full((8,), 12), torch.arange(8) * 5 % 10
    return make_batch(ids, sizes, begins, begins)


def by_trainer(size: int, accumulate: int, place: Path, bf16: bool = False) -> tuple[Learnt, float]:
    """One update, and the loss that was logged."""
    from transformers import Trainer, TrainingArguments

    model, _ = language_models()
    batch = rows()
    texts = [{k: batch[k][i] for k in ("input_ids", "labels")} for i in range(8)]
    arguments = TrainingArguments(
        str(place),
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        bf16=bf16,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=texts)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return dict(model.state_dict()), float(trainer.state.log_history[0]["loss"])


class Rows:
    """The rows as data."""

    fingerprint = "rows"

    def __len__(self) -> int:
        return 8

    def fetch(self, items: Tensor) -> Batch:
        """The rows."""
        return {k: v[items] for k, v in rows().items()}


class Tokens(ToyTask):
    """Rows of tokens, as the language task feeds and evaluates them."""

    columns = None
    feed, supervised, counted = Language.feed, Language.supervised, Language.counted  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.train = Rows()  # type: ignore[assignment]


def language_by_engine(**settings: Any) -> Learnt:
    """The same update by the engine."""
    model, teacher = language_models()
    objectives = {"kl": Kl(weight=0.5), "hint": FeatureMatch("model.layers.0", "model.layers.0", weight=0.1)}
    setup = Setup(Tokens(), Built(model.student), Built(teacher), STEP, objectives=objectives)  # type: ignore[arg-type]
    projector = {k: v.clone() for k, v in model.criterion.projectors["hint"].state_dict().items()}  # type: ignore[index, union-attr, operator]
    return by_engine(Matching(0.5), setup, projector, **settings)


# ---------------------------------------------------------------------------------------------------- lightning


def networks() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The page's two networks, and sixteen items."""
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(16, w), nn.ReLU(), nn.Linear(w, 10)) for w in (8, 64))
    return student, teacher, torch.randn(16, 16), torch.randint(10, (16,))


def by_lightning(size: int, accumulate: int, devices: int = 1, precision: Any = "32-true") -> Learnt:
    """One update of the page's module."""
    import lightning

    student, teacher, x, y = networks()

    class Plain(example("LightningModule")["Distilled"]):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    model = Plain(student, teacher, torch.zeros(2, 16))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), size, drop_last=True)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=precision,
        **quiet,
    )
    trainer.fit(model, loader)
    return {k: v.detach().float() for k, v in model.state_dict().items()}


def by_plain_loop(parts: list[slice]) -> Learnt:
    """One update by the loop of docs/python.md; in each process of a group its own items."""
    student, teacher, x, y = networks()
    names = example("DistributedDataParallel")
    own = model = names["Distilled"](student, teacher, torch.zeros(2, 16))
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if world > 1:
        model = nn.parallel.DistributedDataParallel(own)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    names["update"](model, optimiser, [(x[p], y[p]) for p in parts], count=len(x), world=world)
    return dict(own.state_dict())


def pictures_by_engine(**settings: Any) -> Learnt:
    """The same update by the engine."""
    student, teacher, x, y = networks()
    task: Any = ToyTask()
    task.train.x, task.train.y = x, y
    model = example("LightningModule")["Distilled"](student, teacher, torch.zeros(2, 16))
    objectives = {"kl": Kl(temperature=4), "hint": FeatureMatch("0", "0")}
    setup = Setup(task, Built(student), Built(teacher), STEP.with_(batch_size=16), objectives=objectives)  # type: ignore[arg-type]
    projector = {k: v.clone() for k, v in model.criterion.projectors["hint"].state_dict().items()}
    return by_engine(Matching(1.0), setup, projector, **settings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    learnt = {"trainer": by_trainer(2, 2, place)[0], "lightning": by_lightning(4, 2, devices=2)}
    cuts = [(slice(0, 7), slice(7, 10)), (slice(10, 11), slice(11, 16))]  # of unequal sizes everywhere
    learnt["plain"] = by_plain_loop(list(cuts[torch.distributed.get_rank()]))
    if torch.distributed.get_rank() == 0:
        torch.save(learnt, place / "learnt.pt")
    torch.distributed.destroy_process_group()
