"""The model card (``README.md``) of an exported folder: what it is, how well it does, how it is loaded, under which licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import human, masked, without_secrets

PIPELINES = {
    ("image", "classes"): "image-classification",
    ("image", "map"): "image-segmentation",
    ("image", "boxes"): "object-detection",
    ("image", "vector"): "image-feature-extraction",
    ("row", "classes"): "tabular-classification",
    ("text", "classes"): "text-classification",
    ("noise", ""): "unconditional-image-generation",
}
"""(what goes in, what comes out) -> the hub's name of such a task."""


def pipeline_tag(about: Mapping[str, Any], task: str = "") -> str:
    """The hub's name of what a network does; empty where it has none."""
    said, of = about.get("preprocessing") or {}, about.get("task") or {}
    if task == "language":
        return "text-generation"
    if task == "masked-words":
        return "fill-mask"
    kind, form = str(said.get("kind", "")), str(of.get("form", ""))
    if (kind, form) == ("row", "classes") and of.get("target") == "number":
        return "tabular-regression"
    return PIPELINES.get((kind, form), "")


def write_card(
    folder: Path,
    result: Mapping[str, Any],
    recipe: Mapping[str, Any],
    about: Mapping[str, Any],
    library: str,
    metrics: Mapping[str, float],
    weights: str = "",
    licence: str = "",
) -> Path:
    """Write ``README.md`` as the Hugging Face hub reads it.

    Args:
        folder: of the export.
        result: the run's ``result.json``; empty where it is not finished.
        recipe: its resolved recipe.
        about: ``student.json``.
        library: which opens the folder.
        metrics: of what was exported, on the test split.
        weights: which checkpoint they are of, where it is not the last.
        licence: as the hub calls it (``apache-2.0``), or empty: then the card says that none was stated.
    """
    text = _front(result, recipe, about, library, metrics, licence) + _body(
        folder, result, recipe, about, library, metrics, weights, licence
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _name(node: Any) -> str:
    """A recipe's node in a few words, without folders and secrets."""
    if isinstance(node, str):
        use, _, rest = node.partition(":")
        return f"{use}:{Path(rest).name}" if rest else use
    if not isinstance(node, Mapping):
        return ""
    words = [str(node.get("use", ""))]
    for key in ("name", "path"):
        value = node.get(key)
        if isinstance(value, str) and value:
            words.append(value if key == "name" and not value.startswith(("/", "~", ".")) else Path(value).name)
            break
    return masked(without_secrets(":".join(w for w in words if w)))


def _front(
    result: Mapping[str, Any],
    recipe: Mapping[str, Any],
    about: Mapping[str, Any],
    library: str,
    metrics: Mapping[str, float],
    licence: str,
) -> str:
    task, primary = str(result.get("task", "")), str(result.get("primary", ""))
    tag = pipeline_tag(about, task)
    head: dict[str, Any] = {"license": licence or "unknown", "library_name": library}
    if tag:
        head["pipeline_tag"] = tag
    head["tags"] = ["distillation", "limbeck", *([str(result["method"])] if result.get("method") else [])]
    if primary in metrics:
        data = _name((recipe.get("task") or {}).get("data") if isinstance(recipe.get("task"), Mapping) else "")
        entry = {
            "task": {"type": tag or task or "other"},
            "dataset": {"name": data or task, "type": data or task, "split": "test"},
            "metrics": [{"type": primary, "value": float(metrics[primary]), "name": primary}],
        }
        head["metrics"] = [primary]
        head["model-index"] = [{"name": str(result.get("recipe", "student")), "results": [entry]}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def _body(
    folder: Path,
    result: Mapping[str, Any],
    recipe: Mapping[str, Any],
    about: Mapping[str, Any],
    library: str,
    metrics: Mapping[str, float],
    weights: str,
    licence: str,
) -> str:
    task = recipe.get("task")
    data = _name(task.get("data")) if isinstance(task, Mapping) else ""
    teacher, student = _name(recipe.get("teacher")), _name(recipe.get("student"))
    method = str(result.get("method") or _name(recipe.get("method")))
    lines = [f"# {result.get('recipe') or recipe.get('name') or 'student'}", ""]
    said = f"Distilled with [limbeck](https://pypi.org/project/limbeck/) by the method `{method}`"
    said += f" on the task `{_name(task)}`" + (f" from `{data}`." if data else ".")
    lines += [said, ""]
    facts = [("teacher", teacher), ("student", student), ("weights", weights or "the last of the run")]
    sizes = (result.get("sizes") or {}).get("student") or {}
    if sizes.get("parameters"):
        facts.append(("parameters", f"{int(sizes['parameters']):,} ({human(sizes.get('bytes', 0), 'B')})"))
    items = result.get("items") or {}
    if items:
        facts.append(("data", ", ".join(f"{n} {int(items[n]):,}" for n in ("train", "valid", "test") if n in items)))
    if result.get("seed") is not None:
        facts.append(("seed", str(result["seed"])))
    lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts if v), ""]
    lines += ["## Results", "", *_results(result, metrics), ""]
    lines += ["## How to use it", "", *_usage(folder, about, library), ""]
    names = about.get("labels")
    if names:
        shown = ", ".join(map(str, names[:50])) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
        lines += [f"Classes, in the order of the outputs: {shown}.", ""]
    lines += ["## Preprocessing", "", "```json", json.dumps(about.get("preprocessing"), indent=2), "```", ""]
    lines += ["## Licence", ""]
    if licence:
        lines.append(f"`{licence}`, as its maker states.")
    else:
        lines.append("Not stated by its maker (`license: unknown` above). State one before you share this.")
    lines += [
        "The weights were trained on the data and by the teacher named above; what their licences ask applies too:",
        f"teacher `{teacher or 'none'}`: not recorded; data `{data or 'not named'}`: not recorded.",
        "",
    ]
    return "\n".join(lines)


def _results(result: Mapping[str, Any], metrics: Mapping[str, float]) -> list[str]:
    """A table of the metrics: of the student with intervals, of teacher and baseline beside it."""
    from limbeck.report.metrics import metric_of
    from limbeck.report.statistics import estimate
    from limbeck.report.summary import SHARES

    if not metrics:
        return ["The run has not ended: nothing was measured on the test split."]
    rows = result.get("metrics") or {}
    items = int((result.get("items") or {}).get("test") or 0)
    others = [(n, rows.get(n) or {}) for n in ("teacher", "alone")]
    others = [(n, values) for n, values in others if values]
    head = ["metric (test split)", "this student", "95 % interval"]
    head += ["teacher" if n == "teacher" else "trained without a teacher" for n, _ in others]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    primary = str(result.get("primary", ""))
    for name in sorted(metrics, key=lambda n: (n != primary, n)):
        value = metrics[name]
        metric = metric_of(name)
        e = estimate([value], items, name in SHARES)
        interval = f"{metric.value(e.low, False)} to {metric.value(e.high)}" if e.kind != "none" else ""
        cells = [metric.label, metric.value(value), interval]
        cells += [metric.value(v[name]) if name in v else "" for _, v in others]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Intervals are Wilson's, over the {items:,} test items of this one run; seeds are not covered."]
    return lines


def _usage(folder: Path, about: Mapping[str, Any], library: str) -> list[str]:
    lines = ["`use.py` in this folder goes from your own file to the answer:", "", "```python"]
    script = folder / "use.py"
    lines += script.read_text(encoding="utf-8").rstrip().splitlines() if script.is_file() else []
    lines += ["```", ""]
    if library != "limbeck":
        lines.append(f"It needs {library} alone. With limbeck: `limbeck.load(FOLDER).predict(FILES)`.")
    return lines


__all__ = ["pipeline_tag", "write_card"]
