"""Sphinx's settings: `make docs` builds the site with them."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limbeck import __version__  # noqa: E402

project = "limbeck"
author = "The limbeck authors"
project_copyright = author
version = release = __version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["**.py", "**/.ipynb_checkpoints", "__pycache__"]

# Pages
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_heading_slug_func = "docs.evidence.anchor"

# The notebook runs when the site is built; it is not run again until it changes.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs" / "notebooks")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True

# The API, from signatures and docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"show-inheritance": True}
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

# Looks
html_theme = "furo"
html_title = "limbeck"
html_static_path = ["static"]
html_css_files = ["limbeck.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#8f4112", "color-brand-content": "#8f4112"},
    "dark_css_variables": {"color-brand-primary": "#f0a06a", "color-brand-content": "#f0a06a"},
}
highlight_language = "sh"
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

SECTION = re.compile(r"(Args|Arguments|Attributes|Examples?|Raises|Returns|Yields|Notes?|References|Warns):\s*")
CODE = re.compile(r"((?::\w+:)?(?:``.+?``|`[^`]+`))", re.DOTALL)


def as_text(text: str) -> str:
    """Part of a docstring, in which nothing but backticks is markup."""
    parts = CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"``{part[part.index('`') :].strip('`')}``"  # without the name of a role
        else:
            parts[i] = re.sub(r"([\\*|`]|(?<=\w)_(?!\w))", r"\\\1", part)
    return "".join(parts)


def plain_docstring(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings before napoleon reads them: sentences are plain text, and what is indented outside a section is code."""
    if lines and re.fullmatch(r"Alias for field number \d+", lines[0]):  # Python's own, of a named tuple
        lines.clear()
    made: list[str] = []
    text: list[str] = []

    def flush() -> None:
        made.extend(as_text("\n".join(text)).split("\n") if text else ())
        text.clear()

    section = literal = False
    for i, line in enumerate(lines):
        if line and not line.startswith("    "):
            section, literal = bool(SECTION.fullmatch(line)), False
        elif line and not section and not literal and (i == 0 or not lines[i - 1]):
            flush()
            if not "".join(made[-2:]).endswith("::"):
                made += ["::", ""]
            literal = True
        if literal or line.lstrip().startswith((">>>", "...")) or SECTION.fullmatch(line):
            flush()
            made.append(line)
        else:
            text.append(line)
    flush()
    lines[:] = made


PUBLIC = ROOT / "tests" / "api_surface.json"
"""The public names that a test holds us to: those are what the reference shows."""


def listed(module: str) -> str:
    """The directive that documents a module's public names."""
    public = json.loads(PUBLIC.read_text(encoding="utf-8"))
    found = importlib.import_module(module)
    twice = {} if module == "limbeck" else public["limbeck"]  # shown there
    names = [n for n in public.get(module, ()) if n not in twice and n != "__version__"]
    members = ", ".join(n for n in names if not inspect.ismodule(getattr(found, n)))
    return f"```{{eval-rst}}\n.. automodule:: {module}\n   :members: {members}\n```\n"


def modules_of(package: str) -> str:
    """A section for each public module of a package."""
    found = importlib.import_module(package)
    names = [n for n in found.__all__ if inspect.ismodule(getattr(found, n))]
    return "\n".join(f"## {package}.{name}\n\n{listed(f'{package}.{name}')}" for name in names)


def api(_app: Any, _name: str, source: list[str]) -> None:
    """`<!-- api MODULE -->` in a page becomes the reference of that module; `MODULE.*` of the modules in it."""

    def made(found: re.Match[str]) -> str:
        package = found[1].removesuffix(".*")
        return modules_of(package) if package != found[1] else listed(package)

    source[0] = re.sub(r"^<!-- api (\S+) -->$", made, source[0], flags=re.MULTILINE)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", api)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
