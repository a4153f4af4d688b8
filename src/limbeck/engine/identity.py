"""What entered a run: one identity for runs, checkpoints, remembered stages, items and caches.

An identity is a plain tree of fingerprints: of the data's content, of every role's first state, of what the networks are
(classes, settings, which parameters are trained), of the user's own code, of settings. A run and its checkpoints carry
one, and are compared with what is there when they are opened; what differs is named (`differences`). What is remembered
between runs is found by a key that is made of one (`key`), so that something else is made anew.

A class whose mathematics changed raises its integer ``revision``: what was made before is then another thing.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError, StorageError
from limbeck.storage.store import hash_tree
from limbeck.storage.usercode import UserCode, installed, user_code
from limbeck.storage.weights import fingerprint

FORMAT = 2
"""Raised when what is in an identity changes its meaning: no identity of another format is equal to one of this."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_IN_PLACE = re.compile(r",? ?inplace=True")  # a tap takes it off, and the numbers stay
_PLAIN = (bool, int, float, str, type(None))


def key(parts: Mapping[str, Any]) -> str:
    """The name by which something is remembered that was made of ``parts``: 20 hexadecimal digits."""
    return hash_tree({"format": FORMAT, **parts})[:20]


# ------------------------------------------------------------------------------------------------------------ networks
def network(module: Any, contract: Any = None, state: bool = True, model: Any = None) -> dict[str, Any]:
    """What a network is: its modules and their settings, which parameters are trained, its weights, the user's code.

    Args:
        module: the network; or a recorded or remote participant, which has a ``fingerprint`` of its own.
        contract: how its inputs and outputs are adapted (`limbeck.grammar.role.Contract`).
        state: the weights and buffers too.
        model: the component that built it, whose code counts with the network's.
    """
    found: dict[str, Any] = {"contract": hash_tree(_settings(contract))} if contract is not None else {}
    if not isinstance(module, nn.Module):
        return found | {"kind": type(module).__qualname__, "state": state_of(module)}
    found["structure"] = hash_tree([_described(name, child) for name, child in module.named_modules()])
    found["trained"] = hash_tree(sorted(n for n, p in module.named_parameters() if p.requires_grad))
    found["code"] = code({type(child): None for child in module.modules()}) | code_of(model)
    if state:
        found["state"] = state_of(module)
    return found


def answers(module: Any, contract: Any = None, model: Any = None) -> dict[str, Any]:
    """What a network answers by: `network` without which of its parameters are trained."""
    return {k: v for k, v in network(module, contract, model=model).items() if k != "trained"}


def _described(name: str, module: nn.Module) -> list[Any]:
    """A module by its class and the settings that can be seen: what tells ReLU from Sigmoid, or two strides apart."""
    plain = {k: _settings(v) for k, v in vars(module).items() if k[:1] != "_" and k not in ("training", "inplace")}
    said = _IN_PLACE.sub("", _ADDRESS.sub("", module.extra_repr()))
    return [name, _class(type(module)), said, {k: v for k, v in plain.items() if v is not _Unknown}]


class _Unknown:
    """Stands for what cannot be seen in an attribute."""


def _settings(thing: Any, depth: int = 0) -> Any:
    """A plain value, or a small tree of them; a function by its name; anything else is unknown."""
    if isinstance(thing, enum.Enum):  # some are texts as well, and yet nothing that is hashed
        return _settings(thing.value, depth)
    if isinstance(thing, _PLAIN):
        return thing
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type) and thing.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return {f.name: _settings(getattr(thing, f.name), depth + 1) for f in dataclasses.fields(thing)}
    if isinstance(thing, Mapping) and depth < 4 and len(thing) < 256:
        return {str(k): _settings(v, depth + 1) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)) and depth < 4 and len(thing) < 256:
        return [_settings(v, depth + 1) for v in thing]
    if isinstance(thing, type) or inspect.isroutine(thing):
        return _class(thing)
    return _Unknown if depth == 0 else None


def _class(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None) or type(thing).__qualname__
    module = getattr(thing, "__module__", None) or ""
    return name if module == "__main__" else f"{module}.{name}"  # a script is imported under another name


def state_of(module: Any) -> str:
    """A participant's state as one fingerprint: weights and buffers; of one that has none, its own."""
    return fingerprint(module) if isinstance(module, nn.Module) else str(getattr(module, "fingerprint", ""))


# ------------------------------------------------------------------------------------------------------------ settings
def value(thing: Any, where: str = "") -> Any:
    """Anything that a stage may be remembered by, as a tree that can be hashed.

    Numbers and texts, tensors and arrays, containers of these; components and settings with all of their arguments,
    defaults included; a network with its weights; a model as it was built (`limbeck.grammar.method.Built`) without them;
    functions with their code; whatever has a ``fingerprint``.

    Raises:
        ConfigError: nothing tells two such values apart.
    """
    from limbeck.grammar.component import Component, Settings
    from limbeck.grammar.method import Built

    if isinstance(thing, (*_PLAIN, Tensor, np.ndarray, np.generic)):
        return thing
    if isinstance(thing, Component):
        return component(thing)
    if isinstance(thing, Settings):
        found = {name: getattr(thing, name, given) for name, given in _given(thing).items()}
        return {name: value(given, f"{where}.{name}") for name, given in _telling(thing, found).items()}
    if isinstance(thing, Built):
        return network(thing.module, thing.contract, False, thing.model) | {"labels": thing.labels}
    if isinstance(thing, nn.Module):
        return network(thing)
    if isinstance(getattr(thing, "fingerprint", None), str):
        return thing.fingerprint
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: value(getattr(thing, f.name), f"{where}.{f.name}") for f in dataclasses.fields(thing)}
    if isinstance(thing, Mapping):
        return {str(k): value(v, f"{where}.{k}") for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [value(v, f"{where}.{i}") for i, v in enumerate(thing)]
    if isinstance(thing, (set, frozenset)):
        return sorted((hash_tree(value(v, where)) for v in thing), key=str)
    if isinstance(thing, torch.dtype | torch.device):
        return str(thing)
    if callable(thing):
        return function(thing)
    raise ConfigError(
        where or "value",
        f"nothing tells two values of type {type(thing).__name__} apart",
        expected="numbers, texts, tensors, components, networks, functions, or something with a fingerprint",
    )


def _given(thing: Any) -> dict[str, Any]:
    """The arguments that a component or settings were made with, defaults included."""
    init: Any = type(thing).__init__
    if init is object.__init__:
        return {}
    bound = inspect.signature(init).bind(None, *thing.given[0], **thing.given[1])
    for made in dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ():
        if made.default_factory is not dataclasses.MISSING:  # a list or mapping, whose signature holds a stand-in
            bound.arguments.setdefault(made.name, made.default_factory())
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


def _telling(thing: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Without the settings that change nothing at their defaults (``neutral``), and are there."""
    known = inspect.signature(type(thing).__init__).parameters
    neutral = {n for n in getattr(thing, "neutral", ()) if n in given and given[n] == known[n].default}
    return {n: v for n, v in given.items() if n not in neutral}


def component(thing: Any) -> dict[str, Any]:
    """A component: its class and that class's revision, its arguments, and the user's own code in it."""
    cls = type(thing)
    found: dict[str, Any] = {"class": _class(cls), "revision": revision(cls)}
    found["settings"] = {name: value(given, name) for name, given in _telling(thing, _given(thing)).items()}
    named = [str(getattr(thing, cls.code))] if cls.code else []
    return found | {"code": code([cls]) | named_code(named)}


def revision(cls: type) -> int:
    """How often the mathematics of a class has changed, its bases included."""
    return sum(int(base.__dict__.get("revision", 0)) for base in cls.__mro__)


def revisions(thing: Any) -> dict[str, int]:
    """The revision of each class among components, and the components in them, whose mathematics has ever changed."""
    from limbeck.grammar.component import Component

    if isinstance(thing, Mapping):
        thing = list(thing.values())
    if isinstance(thing, (list, tuple)):
        return {k: v for t in thing for k, v in revisions(t).items()}
    if not isinstance(thing, Component):
        return {}
    own = {_class(type(thing)): revision(type(thing))} if revision(type(thing)) else {}
    return own | revisions([*thing.given[0], *thing.given[1].values()])


def function(thing: Callable[..., Any]) -> dict[str, Any]:
    """A function or method by its name, the revision of the class that defines it, and the user's own code."""
    if isinstance(thing, functools.partial):
        return {"of": function(thing.func), "args": value(thing.args), "named": value(thing.keywords)}
    inner = getattr(thing, "__func__", thing)
    owner = getattr(thing, "__self__", None)
    defining = next((c for c in type(owner).__mro__ if inner in vars(c).values()), None) if owner is not None else None
    return {
        "name": _class(inner),
        "revision": revision(defining) if defining is not None else 0,
        "code": code([inner]),
    }


# ---------------------------------------------------------------------------------------------------------------- code
def code(things: Iterable[Any]) -> dict[str, str]:
    """The user's own files that define classes or functions, and what these import of the user's: a hash of each.

    Of a module that is loaded it is the file as it was when it was first looked at: editing a file changes nothing in a
    process that goes on with what it has imported. What a script or a notebook defines is known by its own source.
    """
    modules: set[str] = set()
    found: dict[str, str] = {}
    for thing in things:
        name = getattr(thing, "__module__", None) or ""
        if name == "__main__":
            found[f"{thing.__qualname__} of the script"] = _source(thing)
        elif name not in modules and not _theirs(name):
            modules.add(name)
    return found | named_code(modules)


def named_code(names: Iterable[str]) -> dict[str, str]:
    """The user's own files behind modules, or behind ``module:function``, and a hash of each."""
    found: dict[str, str] = {}
    for name in sorted(names):
        known = user_code(name)
        if known.files:
            found |= _as_loaded(known)
    return found


def code_of(component: Any) -> dict[str, str]:
    """The user's own code that a component brings in: its class, what it imports by name, and the components in it."""
    from limbeck.grammar.component import Component

    if isinstance(component, Mapping):
        component = list(component.values())
    if isinstance(component, (list, tuple)):
        return {k: v for c in component for k, v in code_of(c).items()}
    if not isinstance(component, Component):
        return {}
    cls = type(component)
    imported = named_code([str(getattr(component, cls.code))]) if cls.code else {}
    return code([cls]) | imported | code_of([*component.given[0], *component.given[1].values()])


def _theirs(module: str) -> bool:
    """Whether a module is an installed package's."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or installed(Path(file))


_LOADED: dict[str, tuple[Any, str]] = {}  # by file: the specification it was loaded by, and its hash at that time


def without_code(parts: Any) -> tuple[Any, dict[str, str]]:
    """What something is remembered by, without what follows from the user's code; and that code by its files."""
    files: dict[str, str] = {}

    def walk(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return [walk(v) for v in node] if isinstance(node, list) else node
        own = node.get("code")
        if isinstance(own, Mapping):
            files.update(own)
        follows = ("structure", "state", "trained") if own else ()  # of a network of the user's own
        return {k: walk(v) for k, v in node.items() if k != "code" and k not in follows}

    return walk(parts), files


def _as_loaded(known: UserCode) -> dict[str, str]:
    loaded = {}
    for module in list(sys.modules.values()):
        own = module.__dict__ if isinstance(module, ModuleType) else {}
        if isinstance(own.get("__file__"), str):
            loaded[own["__file__"]] = own.get("__spec__")  # a new one where it was loaded anew
    found = {}
    for file, (place, now) in zip(known.files, known.hashes.items(), strict=True):
        spec = loaded.get(str(file))
        then = _LOADED.get(str(file))
        if spec is not None and (then is None or then[0] is not spec):
            _LOADED[str(file)] = then = (spec, now)
        found[place] = then[1] if spec is not None and then is not None else now
    return found


def _source(thing: Any) -> str:
    """What a class or function of a script says; where nobody knows its source, what it was compiled to."""
    try:
        return hash_tree(inspect.getsource(thing))
    except (OSError, TypeError):
        members = vars(thing).values() if isinstance(thing, type) else [thing]
        return hash_tree([_compiled(m.__code__) for m in members if hasattr(m, "__code__")])


def _compiled(thing: CodeType) -> list[Any]:
    constants = [_compiled(c) if isinstance(c, CodeType) else repr(c) for c in thing.co_consts]
    return [
        thing.co_code.hex(),
        list(thing.co_names),
        [_ADDRESS.sub("", c) if isinstance(c, str) else c for c in constants],
    ]


# ----------------------------------------------------------------------------------------------------- runs and stages
def of_run(method: Any, stages: Sequence[Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """What enters a run, as its engine sees it when it begins.

    Args:
        method: bound, with its roles in their first state.
        stages: what it does. Data that a stage makes for a later one are not known yet, and follow from the rest.
        about: further sections, of whoever made the engine: ``recipe``, ``data``.
    """
    data = {f"stage {s.name!r}": of_data(s.data) for s in stages if hasattr(s.data, "fetch")}
    setup = method.setup
    components = [method, method.task, setup.objectives, setup.queries]
    models = {id(b.module): b.model for b in setup.built.values()}
    return {
        "format": FORMAT,
        "limbeck": _version(),
        **about,
        "roles": {n: network(r.module, r.contract, model=models.get(id(r.module))) for n, r in method.roles.items()},
        "data": {**about.get("data", {}), **data},
        "revisions": revisions(components),
        "code": code_of(components),
    }


def of_data(data: Any) -> dict[str, Any]:
    """Data by their number of items and their content."""
    return {"items": len(data), "content": data.fingerprint}


def _version() -> str:
    import limbeck

    return limbeck.__version__


def refusal(
    folder: str, changed: Sequence[str], said: str = "the run in it was made from something else"
) -> StorageError:
    """What is said of a folder whose run was made from something else."""
    more = f" and {len(changed) - _MOST} more" if len(changed) > _MOST else ""
    return StorageError(
        folder,
        f"{said}: {'; '.join(changed[:_MOST])}{more}",
        remedy="choose another folder with --out, or replace the run with --force",
    )


_MOST = 6  # differences that are named in one message


def of_stage(
    method: Any, stage: Any, roles: Mapping[str, Mapping[str, Any]], earlier: Mapping[str, str]
) -> dict[str, Any]:
    """What a remembered stage depends on: who it starts from, the task, its data, its settings, the values it names.

    Args:
        method: bound to its participants.
        stage: its data and steps known.
        roles: what each role that it depends on is, its present state included.
        earlier: the keys of the remembered stages before it.
    """
    task, setup = method.task, method.setup
    given = [stage.data] if stage.data is not None else [task.train, task.teacher_train]
    found: dict[str, Any] = {
        "stage": stage.name,
        "scope": stage.scope,
        "roles": {n: dict(r) for n, r in roles.items()},
        "task": of_task(task),
        "data": [of_data(d) for d in given],
        "optim": {n: value(o) for n, o in stage.optim.items()},
        "remember": value(list(stage.remember or ()), f"stage {stage.name!r}.remember"),
        "state": hash_tree(method.state),
        "earlier": dict(earlier),
    }
    if stage.items is not None:
        recorded = (
            {}
            if stage.record is None
            else {"record": function(stage.record), "queries": list(map(value, stage.queries))}
        )
        return found | {"work": function(stage.work)} | recorded
    functions = (stage.step or method.step, stage.begin, method.observe, stage.choose, *stage.every.values())
    return found | {
        "steps": stage.steps,
        "batch_size": stage.batch_size,
        "shuffle": stage.shuffle,
        "keep": list(stage.keep),
        "queries": [value(q) for q in (*(setup.queries.values() if stage.augmented else ()), *stage.queries)],
        "objectives": {n: value(o) for n, o in setup.objectives.items()},
        "functions": [function(f) for f in functions if f is not None],
    }


def of_task(task: Any) -> dict[str, Any]:
    """A task as those who are taught see it: without where its data lie, and without what only evaluates."""
    left_out = ("data", "unlabelled", *task.judging)
    given = _telling(task, _given(task))
    settings = {name: value(one, name) for name, one in given.items() if name not in left_out}
    return {
        "class": _class(type(task)),
        "revision": revision(type(task)),
        "settings": settings,
        "code": code([type(task)]),
    }


# --------------------------------------------------------------------------------------------------------- comparisons
def differences(then: Mapping[str, Any], now: Mapping[str, Any], reading: bool = False) -> list[str]:
    """What differs between two identities, each thing named once, in words.

    Args:
        then, now: the identities.
        reading: weights are only to be read back: what learnt from what, and from which weights it began, is no matter.

    Example:
        >>> differences({"data": {"train": {"items": 4, "content": "a"}}}, {"data": {"train": {"items": 3, "content": "b"}}})
        ['the training data (4 items then, 3 now)']
    """
    if not reading and then.get("format") != now.get("format"):
        return [f"the record of what entered it (format {then.get('format')} then, {now.get('format')} now)"]
    found: list[str] = []
    if reading:
        then, now = ({s: i.get(s, {}) for s in ("code", "roles")} for i in (then, now))
        kept = {n: {k: v for k, v in r.items() if k in ("structure", "code")} for n, r in now["roles"].items()}
        now = now | {"roles": {n: r for n, r in kept.items() if n in then["roles"] and n != "teacher"}}
        then = then | {"roles": {n: {k: then["roles"][n].get(k) for k in r} for n, r in now["roles"].items()}}
    for section, say in _SECTIONS.items():
        before, after = then.get(section) or {}, now.get(section) or {}
        if section == "roles" and then.get("data") != now.get("data"):  # by which inputs are normalised
            before, after = ({n: _without(r, "contract") for n, r in roles.items()} for roles in (before, after))
        changed = [n for n in sorted({*before, *after}, key=_rank) if before.get(n) != after.get(n)]
        found += [say(name, before.get(name), after.get(name)) for name in changed]
    return list(dict.fromkeys(found))


def _rank(name: str) -> tuple[int, str]:
    first = ("train", "teacher_train", "valid", "test", "student", "teacher")
    return first.index(name) if name in first else len(first), str(name)


def _without(part: Any, name: str) -> Any:
    return {k: v for k, v in part.items() if k != name} if isinstance(part, Mapping) else part


def _said_setting(name: str, then: Any, now: Any) -> str:
    return f"{name} ({_short(then)} then, {_short(now)} now)"


def _said_data(name: str, then: Any, now: Any) -> str:
    what = {
        "train": "the training data",
        "teacher_train": "the teacher's training data",
        "valid": "the validation data",
        "test": "the test data",
    }.get(name, f"the data of {name}")
    then, now = (d if isinstance(d, Mapping) else {"content": d} for d in (then, now))
    if then.get("items") != now.get("items"):
        return f"{what} ({then.get('items', 'no')} items then, {now.get('items', 'no')} now)"
    return f"the content of {what}"


def _said_role(name: str, then: Any, now: Any) -> str:
    who = f"the {name}" if name in ("teacher", "student") else f"role {name!r}"
    if not then or not now:
        return f"{who} ({'was not there then' if not then else 'is not there now'})"
    changed = [part for part in sorted({*then, *now}) if then.get(part) != now.get(part)]
    words = {
        "code": f"your code in {', '.join(_files(then.get('code'), now.get('code')))}",  # the cause before what follows
        "kind": f"what {who} is",
        "structure": f"the network of {who}",
        "contract": f"how inputs reach {who}",
        "trained": f"which parameters of {who} are trained",
        "state": f"the weights that {who} begins with",
    }
    return next((words[p] for p in words if p in changed), who)


def _said_code(name: str, then: Any, now: Any) -> str:
    return f"your code in {name}"


def _said_class(name: str, then: Any, now: Any) -> str:
    return f"the mathematics of {name} (revision {then or 0} then, {now or 0} now)"


def _files(then: Any, now: Any) -> list[str]:
    then, now = then or {}, now or {}
    return sorted(f for f in {*then, *now} if then.get(f) != now.get(f))


def _short(thing: Any) -> str:
    text = "unset" if thing is None else str(thing)
    return text if len(text) <= 60 else text[:57] + "..."


_SECTIONS: dict[str, Callable[[str, Any, Any], str]] = {
    "recipe": _said_setting,
    "code": _said_code,
    "data": _said_data,
    "roles": _said_role,
    "revisions": _said_class,
}
