"""A teacher recorded once: memory-mapped shards with a manifest, read back by item number. ``limbeck cache``.

A **dense** cache keeps the outputs of every item in half precision (classifiers); a **top-k** cache keeps, for every
position of a text, the k largest logits, their token ids and the log of the whole sum, so that the mass of the rest is
known (vocabularies). Tapped features may be kept beside either. Everything is recorded at temperature 1.

A store of **crops** (``--crops``, or the recipe of a method that learns from them) keeps of M crops of each image where they
lie, whether they are mirrored, and the teacher's probabilities in a compressed form (`limbeck.parts.stored_crops`).

The manifest holds what the records depend on: the teacher's fingerprint, the data's, preprocessing and class names, the
views of augmentations, the tail rule. Nothing of it has to be repeated when training: ``teacher=cached:FOLDER``. Anything
that does not fit is refused, down to single items: each record keeps a checksum of the input it was made from.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.cache.records import Misfits, Precision, Remaining, checksum, record, rounding, some
from limbeck.engine import identity, interrupt
from limbeck.engine.terminal import say
from limbeck.errors import CacheMismatch, CheckpointCorrupt, ConfigError, Stopped, human
from limbeck.functional.label_forms import Form
from limbeck.functional.sparse import TopK
from limbeck.grammar.heads import answered
from limbeck.grammar.method import Batch, Built, Stage
from limbeck.grammar.random import Draws, own_generators
from limbeck.grammar.settings import settings
from limbeck.grammar.signal import Signal
from limbeck.grammar.task import DENSE_OUTPUTS, Model, Task
from limbeck.parts.stored_crops import CropPlan, Repeated
from limbeck.storage import store
from limbeck.storage.records import Records, mapped_arrays

if TYPE_CHECKING:
    from limbeck.recipe.recipe import Recipe

NAMES = {"model": {"cached": "Cached"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

SHARD_ITEMS = 4096
SHARD_CROPS = 2**18
"""Rows in a shard of crops: of a million images with hundreds of crops each there are some thousands of shards."""

TOKENIZER = "tokenizer"
"""The folder within a cache of a pretrained network's tokenizer, where texts were recorded as that one reads them."""

Tail = Literal["uniform_rest", "renormalise"]


@settings
class Cached(Model):
    """A recorded teacher.

    Args:
        path: a folder that ``limbeck cache`` wrote.
        tail: what becomes of the mass outside the top k: ``uniform_rest`` spreads it over the other tokens,
            ``renormalise`` gives it to the k in proportion. Either is a distribution, as a teacher's answer must be.
        fingerprint: refuse the cache unless its teacher has this fingerprint; ``null`` takes whatever was recorded.
    """

    check = "off"  # it was tried when it was recorded, and knows no other items

    path: str
    tail: Tail = "uniform_rest"
    fingerprint: str | None = None

    @property
    def trained(self) -> bool:
        """A recording needs no training."""
        return True

    @property
    def brings_tokenizer(self) -> bool:
        """Whether a pretrained network's tokenizer lies with the records: the texts were read by it."""
        return (Path(self.path) / TOKENIZER).is_dir()

    def build(self, task: Task) -> Built:
        """The recording, checked against the task's data and classes.

        Raises:
            CacheMismatch: it was made from other data, classes or another teacher.
            CheckpointCorrupt: it is damaged or incomplete.
        """
        task.load()
        cache = Cache(Path(self.path), self.tail)
        cache.spell(task)
        cache.check(task)
        cache.leave_out(task)
        if self.fingerprint is not None and cache.about["teacher"] != self.fingerprint:
            raise CacheMismatch(
                "teacher.fingerprint",
                "the cache was recorded from another teacher",
                given=cache.about["teacher"],
                expected=self.fingerprint,
            )
        return Built(cache, labels=cache.about["labels"], model=self)


class Cache:
    """Answers batches from records. Stands in a frozen role.

    Args:
        folder: where the records are.
        tail: see `Cached`.

    Raises:
        CheckpointCorrupt: no cache lies there, or it is incomplete or damaged.
    """

    def __init__(self, folder: Path, tail: Tail = "uniform_rest") -> None:
        self.folder, self.tail = folder, tail
        if not (folder / "about").is_dir():
            raise CheckpointCorrupt(
                str(folder),
                "no finished cache lies here",
                remedy="limbeck cache RECIPE --out FOLDER (it goes on where it stopped)",
            )
        self.about: dict[str, Any] = store.load_tree(folder / "about")
        self.metrics: dict[str, float] = self.about["metrics"]
        self.views: int = self.about["views"]
        self.shard: int = self.about["shard_items"]
        self.items: int = self.about["items"]
        crops = self.about.get("crops")
        self.crops: CropPlan | None = None if crops is None else CropPlan(**crops)
        if self.crops is not None and not isinstance(self.about.get("preprocessing"), dict):
            raise CheckpointCorrupt(str(folder), "it does not say how its teacher's inputs were prepared")
        self.left_out: list[int] = list(self.about.get("left_out") or [])
        kept = np.ones(self.items, dtype=bool)
        kept[self.left_out] = False
        self._places = np.flatnonzero(kept)  # where the items of a run lie that trains without those left out
        self._records = Records(lambda number: mapped_arrays(self.folder / f"shard-{number:05d}"))
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> Cache:
        """Answers go to this device."""
        self.device = torch.device(device)
        return self

    @property
    def fingerprint(self) -> str:
        """What it was recorded from, and how: a run that learns from it knows it by this."""
        return store.hash_tree(self.about)

    def leave_out(self, task: Task) -> None:
        """Take the items that the recording leaves out from the task's training items, once, and note it."""
        if not self.left_out or isinstance(task.train, Remaining):
            return
        whole = len(task.train)
        task.train = Remaining(task.train, self.left_out)
        notes = getattr(task, "notes", None)
        if notes is not None:
            notes.append(
                f"trained without {len(self.left_out)} of {whole} items, whose answers the recorded teacher {self.folder} "
                f"does not hold: {some(self.left_out)}"
            )

    def spell(self, task: Task) -> None:
        """Have texts read as they were when they were recorded: by the same tokenizer, in rows as long.

        Raises:
            TeacherMismatch: the task has another tokenizer already.
        """
        text, folder = task.needs.tokens, self.folder / TOKENIZER
        if text is None:
            return
        if folder.is_dir():
            from limbeck.tasks.tokenizers import load_tokenizer

            text.adopt(load_tokenizer(str(folder)), str(folder))
        if self.about.get("length") is not None and self.about["task"].get("length") is None:
            text.limit(self.about["length"], str(self.folder))

    def check(self, task: Task) -> None:
        """Refuse other data or other classes."""
        about, train = self.about, task.train
        if isinstance(train, Remaining) and list(train.left_out) == list(self.left_out):
            train = train.data
        if about["data"] != train.fingerprint:
            raise CacheMismatch(
                str(self.folder),
                "it was recorded from other training items",
                given=train.fingerprint[:16],
                expected=about["data"][:16],
                remedy="record again for this task and seed, or set task and seed as they were: "
                + json.dumps({"task": about["task"], "seed": about["seed"]}),
            )
        if about["labels"] is not None and task.labels is not None and list(about["labels"]) != list(task.labels):
            raise CacheMismatch(
                str(self.folder),
                "its classes are others, or in another order",
                given=about["labels"],
                expected=str(task.labels),
            )

    def shard_of(self, number: int) -> Mapping[str, Tensor]:
        """A shard's rows, mapped into memory; its hashes are checked when it is first opened."""
        return self._records.part(number)

    def rows(self, items: Tensor, views: Tensor) -> dict[str, Tensor]:
        """The records [N, ...] of items and views, in their order."""
        ids, view = items.cpu().numpy(), views.cpu().numpy() % self.views
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self._places)):
            raise CacheMismatch(
                str(self.folder), f"item {int(ids.max())} is not in it", expected=f"items below {len(self._places)}"
            )
        return self._records.rows(*np.divmod(self._places[ids] * self.views + view, self.shard))

    def answer(self, batch: Batch, taps: Sequence[str] = ()) -> Signal:
        """The recorded signal of a batch.

        Raises:
            CacheMismatch: an item's input is not the one that was recorded, or a feature was not.
        """
        rows = self.rows(batch["item"], batch["view"])
        now = checksum(batch)
        then = rows["check"].to(now.device)
        wrong = ~((now - then).abs() <= 1e-4 * then.abs().clamp_min(1.0))  # so that NaN is wrong too
        if bool(wrong.any()):
            which = batch["item"].cpu()[wrong.cpu()][:8].tolist()
            raise CacheMismatch(
                str(self.folder),
                f"the inputs of items {which} are not those that were recorded",
                remedy="a cache knows the training items as they were: same task, size, augmentations and number of views",
            )
        missing = [t for t in taps if f"feature.{t}" not in rows]
        if missing:
            known = [n.removeprefix("feature.") for n in rows if n.startswith("feature.")]
            raise CacheMismatch(
                str(self.folder), f"the features {missing} were not recorded", expected=f"features among {known}"
            )
        acts = {t: rows[f"feature.{t}"].float().to(self.device) for t in taps}
        meta = {"source": "cache", "stored": self.about["dtype"], "tail": self.tail if "index" in rows else None}
        if self.crops is not None:  # a class of no probability is ruled out as far as a float can say it
            p = self.crops.labels(rows, int(self.about["outputs"]))
            return Signal(p.clamp(min=torch.finfo(p.dtype).tiny).log().to(self.device), acts, {"source": "cache"})
        if "index" in rows:
            return Signal(self._known(rows).to(self.device), acts, meta)
        return Signal(rows["logits"].float().to(self.device), acts, meta)

    def _known(self, rows: Mapping[str, Tensor]) -> TopK:
        """The k likeliest words of each position [N, T], and what becomes of the others."""
        log_p = rows["logits"].float() - rows["total"].float()[..., None]
        return TopK(rows["index"], log_p, int(self.about["outputs"]), self.tail)


class _Source:
    """A recipe's teacher, to be asked for any items in any view.

    Args:
        recipe: built, and used for nothing else.
        features: modules whose outputs are shown too.
        untaught: a teacher that a stage would have to train is only built; `taught` says whether that was so.
        plan: of a store of crops, which takes the place of the recipe's queries.
    """

    def __init__(
        self, recipe: Recipe, features: Sequence[str], untaught: bool = False, plan: CropPlan | None = None
    ) -> None:
        from limbeck.engine.context import RunContext
        from limbeck.engine.engine import Engine
        from limbeck.run import prepare

        self.taught = not untaught or (recipe.teacher is not None and recipe.teacher.trained)
        bench = prepare(recipe, None, say=_say if self.taught else lambda text: None, untaught=untaught)
        assert bench.teacher is not None
        self.task, self.teacher = bench.task, bench.teacher
        self.features = tuple(features)
        self.queries, self.seed = recipe.queries if plan is None else plan.queries(), recipe.seed
        engine = Engine(recipe.engine, recipe.seed)
        engine.place(recipe.method)
        recipe.method.roles["teacher"].taps(self.features)
        self.device = engine.device
        self._ctx = RunContext(engine, recipe.method, Stage("cache", steps=0), engine.device)

    def show(self, ids: Tensor, views: Tensor) -> tuple[Batch, Signal]:
        """The batch of these items [n], each in a view [n], and what the teacher says of it. An item is read once."""
        from limbeck.engine.batches import to_device

        batch = {**Repeated(self.task.train, 1).fetch(ids), "item": ids, "view": views}
        batch = to_device(batch, self.device)
        here = self._ctx.at(0)
        here.draws = Draws(self.seed, (), self.device)
        for query in self.queries.values():
            batch = query(batch, here)
        return batch, here.signal("teacher", batch, self.features)


@own_generators(0)
def build_cache(
    tree: dict[str, Any],
    out: Path | None = None,
    yes: bool = False,
    k: int | None = None,
    views: int = 1,
    features: Sequence[str] = (),
    precision: Precision = "float16",
    leave_out: bool = False,
    crops: int | None = None,
    labels: Form | None = None,
) -> dict[str, Any]:
    """Record a recipe's teacher over its training items.

    Args:
        tree: the recipe. Its queries are replayed view by view; each must repeat after ``views`` passes.
        out: the cache's folder; ``caches/NAME-seedN`` when not given.
        yes: do not ask whether the predicted size may be spent.
        k: outputs kept a position; ``None``: all up to 2,048 outputs, 50 above.
        views: how many augmented views of each item.
        features: modules of the teacher whose outputs are kept too.
        precision: of outputs and features; ``float32`` holds what exceeds 65,504, in twice the space.
        leave_out: leave out items whose answers are not finite, or too large: a run with this teacher trains without them.
        crops: a store of so many crops of each image; ``None``: as many as the recipe's method says, if it learns from any.
        labels: the form of their labels; ``None``: as the method says. ``k`` is then how many classes a label keeps.

    Returns:
        What was written: folder, items, bytes, the divergence between the teacher and its records (of crops: the mean
        probability that a label keeps).

    Raises:
        ConfigError: the recipe has no teacher, a query cannot be replayed, the size was not agreed to, or answers cannot be
            recorded, which the message names.
        StorageError: too little space, or an unwritable folder.
    """
    from limbeck.recipe.recipe import build

    recipe = build(tree)
    if "teacher" not in recipe.method.participants:
        raise ConfigError("method", f"{recipe.name} has no teacher to record")
    out = Path(out) if out is not None else Path("caches") / f"{recipe.name}-seed{recipe.seed}"
    plan = _plan(recipe, views, crops, labels, k, precision)
    if plan is not None:
        views, precision = plan.crops, plan.precision
    for name, query in recipe.queries.items() if plan is None else ():
        if getattr(query, "views", None) != views:
            raise ConfigError(
                f"queries.{name}",
                "its draws do not repeat, so a recording could not be replayed",
                expected=f"a query with views={views}",
                remedy=f"set queries.{name}.views={views}, or leave it out"
                if hasattr(query, "views")
                else "leave it out, or train without a cache",
            )
    source = _Source(recipe, features, untaught=True, plan=plan)
    task = source.task
    if not task.cache_bytes():  # asked once the models are built: a text's tokenizer is theirs
        raise ConfigError(
            "task", "what its teacher answers depends on fresh draws, so there is nothing to record of an item"
        )
    size = _pictures(task) if plan is not None else (0, 0)
    ids = torch.arange(min(2, len(task.train)))
    probe, signal = source.show(ids, torch.zeros_like(ids))
    shown = answered(signal)
    outputs = shown.shape[-1]
    if plan is not None:
        k = plan.kept(outputs)
    elif isinstance(shown, TopK):  # an endpoint that tells the likeliest words
        told = shown.indices.shape[-1]
        if k is not None and k > told:
            raise ConfigError(
                "--top", given=k, expected=f"at most the {told} words that the teacher tells (teacher.top)"
            )
        k = k or told
    elif k is None and len(shown.shape) == 3:
        k = 50 if outputs > DENSE_OUTPUTS else None
    if plan is None and k is not None and not 1 <= k < outputs:
        raise ConfigError("--top", given=k, expected=f"between 1 and {outputs - 1}")
    store.check_writable(out)
    one = sum(v.nbytes for v in record(probe, signal, k, precision, plan, size).values()) // len(probe["item"])
    _ask(one * len(task.train) * views, len(task.train), views, out, yes)
    store.check_writable(out, one * len(task.train) * views)
    if not source.taught:
        source = _Source(build(tree), features, plan=plan)
    task, teacher = source.task, source.teacher
    about = {
        "format": identity.FORMAT,
        "teacher": identity.state_of(teacher.module),
        "network": store.hash_tree(identity.answers(teacher.module, teacher.contract, teacher.model)),
        "model": _plain(teacher.model),
        "task": _plain(task),
        "seed": recipe.seed,
        "data": task.train.fingerprint,
        "labels": task.labels,
        "preprocessing": teacher.contract.as_config(),
        "queries": {n: q.config for n, q in recipe.queries.items()} if plan is None else {},
        "items": len(task.train),
        "views": views,
        "outputs": outputs,
        "k": k,
        "temperature": 1.0 if plan is None else plan.temperature,
        "dtype": precision,
        "features": list(features),
        "shard_items": SHARD_ITEMS if plan is None else min(SHARD_CROPS, SHARD_ITEMS * plan.crops),
    }
    if plan is not None:
        about["crops"] = plan.plain()
    rows = about["shard_items"]
    key = store.hash_tree(about)[:16]
    with store.RunLock(out):
        if (out / "about").is_dir():
            known = store.load_tree(out / "about")
            other = [n for n in about if known.get(n) != about[n]]
            if other:
                old = f" (of an earlier limbeck: format {known.get('format')})" if "format" in other else ""
                raise CacheMismatch(
                    str(out),
                    f"the folder holds another recording{old}; what differs: {', '.join(other)}",
                    remedy=f"choose another --out, or delete the folder {out}",
                )
            _say(f"limbeck cache: {out} holds this recording already; nothing was written")
            return _told(out, known)
        total = len(task.train) * views
        for number in range(-(-total // rows)):
            folder = out / f"shard-{number:05d}"
            if store.is_complete(folder) and (folder / f"{key}.json").exists():
                continue
            if interrupt.requested() is not None:
                raise Stopped(interrupt.requested() or 15, "type the same command again to go on")
            places = torch.arange(number * rows, min(total, (number + 1) * rows))
            parts: dict[str, list[np.ndarray[Any, Any]]] = {}
            # of crops probabilities are kept, which are never too large
            gap, compared, misfits = 0.0, 0, Misfits(precision if plan is None else "float32")
            for piece in places.split(256):
                batch, signal = source.show(piece // views, piece % views)
                fits = ~misfits.look(batch, signal)
                for name, array in record(batch, signal, k, precision, plan, size).items():
                    kept = np.zeros(array.shape, array.dtype)
                    kept[fits.numpy()] = array[fits.numpy()]
                    parts.setdefault(name, []).append(kept)
                if plan is not None:
                    assert k is not None
                    z = signal.logits[fits.to(signal.logits.device)]
                    gap += float((z.float() / plan.temperature).softmax(-1).topk(k, -1).values.sum())
                    compared += len(z)
                elif k is None:
                    z = signal.logits[fits.to(signal.logits.device)]
                    gap += rounding(z, precision)
                    compared += z[..., 0].numel()
            if misfits.reasons and not leave_out:  # after the whole shard, so that all of them are named at once
                raise misfits.error(int(places[-1]) // views + 1, len(task.train))
            with store.atomic_folder(folder) as place:
                for name, arrays in parts.items():
                    np.save(place / f"{name}.npy", np.concatenate(arrays), allow_pickle=False)
                (place / f"{key}.json").write_text(
                    json.dumps({"gap": gap, "compared": compared, "left_out": sorted(misfits.reasons)})
                )
        # of all shards, also those that an interrupted command left
        found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(out.glob(f"shard-*/{key}.json"))]
        compared = sum(f["compared"] for f in found)
        measured = sum(f["gap"] for f in found) / compared if compared else None
        metrics = task.evaluate(teacher, task.test, device=source.device)
        left_out = sorted({i for f in found for i in f.get("left_out", [])})
        if len(left_out) == len(task.train):
            raise ConfigError("--leave-out", "no item would be left", remedy="look at what the teacher answers")
        said = "divergence" if plan is None else "probability"
        full = {**about, "metrics": metrics, "left_out": left_out, "divergence": None, said: measured}
        text = task.needs.tokens
        if text is not None:
            full["length"] = text.length
            if text.adopted:
                with store.atomic_folder(out / TOKENIZER) as place:
                    text.tokenizer.save_pretrained(place)
        store.save_tree(out / "about", full)
    return _told(out, full)


def _plan(
    recipe: Recipe, views: int, crops: int | None, labels: Form | None, k: int | None, precision: Precision
) -> CropPlan | None:
    """What is recorded of crops: as the method says, or as the command's options do; ``None`` where none are."""
    plan = getattr(recipe.method, "store", None)
    plan = plan if isinstance(plan, CropPlan) else None
    if plan is None and crops is None:
        if labels is not None:
            raise ConfigError("--labels", "it is the form of the labels of crops", remedy="add --crops N")
        return None
    if views != 1:
        raise ConfigError("--views", "crops are views of their own", given=views, remedy="leave it out, or set --crops")
    asked = {"crops": crops, "form": labels, "top": k, "precision": None if precision == "float16" else precision}
    return (plan or CropPlan()).changed(**{n: v for n, v in asked.items() if v is not None})


def _pictures(task: Task) -> tuple[int, int]:
    """Height and width of the images of which crops are recorded.

    Raises:
        ConfigError: the items are no images with one class each.
    """
    shape = tuple(getattr(task, "shape", ()))
    if len(shape) != 3 or getattr(task, "kind_of_target", "") != "label":
        raise ConfigError(
            "--crops",
            "crops are recorded of images that have one class each",
            given=f"{type(task).__name__.lower()} of items {list(shape)}",
            remedy="leave --crops out",
        )
    return shape[-2], shape[-1]


def _say(text: str) -> None:
    say(text, error=True)


def _told(out: Path, about: dict[str, Any]) -> dict[str, Any]:
    parts = [*out.glob("shard-*"), out / "about", *out.glob(TOKENIZER)]
    written = sum(p.stat().st_size for part in parts for p in part.iterdir())
    told = {
        "folder": str(out),
        "items": about["items"],
        "views": about["views"],
        "bytes": written,
        "teacher": about["teacher"][:16],
    }
    if about.get("left_out"):
        told["left out"] = f"{len(about['left_out'])}: {some(about['left_out'])}"
    if about.get("divergence") is not None:
        told["KL(teacher || record)"] = about["divergence"]
    if about.get("crops"):
        told["labels"] = f"{about['crops']['form']}, {about['k']} of {about['outputs']} classes, {about['dtype']}"
        told["bytes a crop"] = round(written / (about["items"] * about["views"]), 1)
        told["probability that a label keeps"] = about["probability"]
    return {**told, "use it with": f"teacher=cached:{out}"}


def _plain(component: Any) -> Any:
    """A component as the recipe wrote it; of one made in Python its class."""
    return getattr(component, "config", None) or {"class": type(component).__qualname__}


def _ask(size: int, items: int, views: int, out: Path, yes: bool) -> None:
    said = f"{human(size, 'B')} for {items:,} items" + (f" x {views} views" if views > 1 else "") + f" in {out}"
    if yes:
        _say(f"limbeck cache: {said}")
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise ConfigError("--yes", f"the recording takes {said}", remedy="add --yes to agree")
    if os.environ.get("CI") or input(f"limbeck cache: {said}. Write it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("cache", "nothing was written: the size was not agreed to")


__all__ = ["Cache", "Cached", "build_cache", "checksum", "rounding"]
