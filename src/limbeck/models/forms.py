"""Which models have the form that a task needs."""

from __future__ import annotations

import importlib

from limbeck.errors import ConfigError
from limbeck.grammar.needs import Form, Items, Needs
from limbeck.grammar.task import Model, Task
from limbeck.recipe.names import table


def meet(model: Model, task: Task) -> Needs:
    """What a task needs, where the model's networks have that form.

    Raises:
        ConfigError: they do not; the models that have it are named.
    """
    needs = task.needs
    if needs.form in model.forms and (not model.takes or needs.items in model.takes):
        return needs
    known = having(needs.form, needs.items)
    if needs.form in model.forms:
        raise ConfigError(
            "model",
            f"{type(model).__name__} reads {' or '.join(_ITEMS[i] for i in model.takes)}, and the items of "
            f"{type(task).__name__} are "
            + (f"rows of {needs.inputs[0]} numbers" if needs.items == "rows" else _ITEMS[needs.items]),
            given=_named(model),
            remedy=f"choose one of {', '.join(known)}" if known else "",
        )
    raise ConfigError(
        "model",
        f"{type(task).__name__} needs {_WORDS[needs.form]}, and {type(model).__name__} makes "
        + (" or ".join(_WORDS[f] for f in model.forms) or "none of the known forms"),
        given=_named(model),
        expected=f"a model of the form {needs.form!r}",
        remedy=f"choose one of {', '.join(known)}" if known else "",
    )


def having(form: Form, items: Items | None = None) -> list[str]:
    """The names of the models that have a form, and take such items; of installed packages too."""
    found = []
    for name, where in table("model").items():
        module, _, cls = where.partition(":")
        try:
            made = getattr(importlib.import_module(module), cls)
        except Exception:  # a package that is not installed has no model to offer
            continue
        if form in made.forms and (items is None or not made.takes or items in made.takes):
            found.append(name)
    return sorted(found)


def _named(model: Model) -> str:
    use = str(model.config.get("use", type(model).__name__))
    name = getattr(model, "name", None)
    return f"{use}:{name}" if isinstance(name, str) and name else use


_WORDS: dict[Form, str] = {
    "classes": "classifiers (one row of values an item)",
    "map": "maps (a row of values at every place)",
    "pyramid": "pyramids of feature maps",
    "vector": "features (one vector an item)",
    "boxes": "detectors",
    "tokens": "language models",
    "hidden-tokens": "encoders of text (a row of values at hidden tokens)",
    "denoiser": "denoisers",
    "scene": "scenes (images from cameras)",
    "keypoints": "points (x and y of each)",
    "poses": "detectors of parts and their joints",
    "graphs": "networks for graphs (one row of values a graph)",
}

_ITEMS: dict[Items, str] = {
    "pictures": "pictures",
    "rows": "rows of numbers",
    "tokens": "texts",
    "table": "rows of a table",
    "clouds": "clouds of points",
}
