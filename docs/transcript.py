"""What the commands of a page print, written below them: `python -m docs.transcript docs/jobs/phone.md`.

A page's `console` blocks hold commands, each behind `$ `. They are run one after another by one shell, in an empty
folder, and the lines between them are replaced by what they printed. A `python` block that begins with `# NAME.py` is
first written to that file. Long outputs are cut in the middle, and the cut is marked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RULE = re.compile(" *─+")
"""The line below a table's head."""

PROGRESS = re.compile(r".+  [\d,]+/[\d,]+  +\d+%.*|.+  \d+:\d\d")
"""What is shown while something works, which its last line sums up."""

WIDTH = 120
MOST = 40
"""Lines of one command's output that a page shows."""
HEAD = 12
"""How many of these are the first ones, where lines are left out."""


def split(block: str) -> list[str]:
    """A block's commands as they stand there; one that ends with a backslash goes on in the next line."""
    found: list[str] = []
    more = False
    for line in block.splitlines():
        if more:
            found[-1] += "\n" + line
        elif line.startswith("$ "):
            found.append(line)
        more = (more or line.startswith("$ ")) and line.endswith("\\")
    return found


def commands(page: str) -> list[str]:
    """The commands of a page, in order, as a shell takes them."""
    return [command.removeprefix("$ ") for block in CONSOLE.findall(page) for command in split(block)]


def files(page: str) -> dict[str, str]:
    """The Python files that a page holds."""
    return {name: f"# {name}\n{text}" for name, text in FILE.findall(page)}


def shown(printed: str, folder: Path) -> list[str]:
    """Lines as the page shows them: no colours, no path of this machine, cut in the middle where they are many."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed).replace(f"{folder}/", "").replace(str(Path.home()), "~")
    lines = [line.rpartition("\r")[2].rstrip() for line in plain.split("\n")]
    lines = [line for line in lines if not PROGRESS.fullmatch(line)]
    lines = [part for line in lines for part in wrapped(line)]
    lines = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    while lines and not lines[-1]:
        lines.pop()
    widest = max((len(line) for line in lines if not RULE.fullmatch(line)), default=0)
    lines = [line[:widest] if RULE.fullmatch(line) else line for line in lines]
    if len(lines) > MOST:
        tail = MOST - HEAD - 1
        lines = [*lines[:HEAD], f"[{len(lines) - HEAD - tail} lines left out]", *lines[-tail:]]
    return lines


def wrapped(line: str) -> list[str]:
    """A long sentence over several lines; tables stay as they are."""
    if len(line) <= WIDTH or re.search(r"\S {2,}\S|─", line):
        return [line]
    return textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False)


def run(page: str, folder: Path) -> list[tuple[int, str]]:
    """Exit status and output of each command of a page.

    Args:
        page: its text.
        folder: where to run them.
    """
    for name, text in files(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    mark = "= end of command, status"
    script = "\n".join(f"{command}\necho '{mark}' $?" for command in commands(page))
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "COLUMNS": str(WIDTH),
        "NO_COLOR": "1",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as shell:
        found: list[tuple[int, str]] = []
        printed: list[str] = []
        assert shell.stdout is not None
        try:
            for read in shell.stdout:
                line = read.decode(errors="replace")  # with its carriage returns
                if line.startswith(mark):
                    found.append((int(line.split()[-1]), "".join(printed)))
                    printed = []
                    if len(found) == len(commands(page)):
                        break
                else:
                    printed.append(line)
                    print(line, end="", file=sys.stderr)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)  # what a command left running in the background
    return found


def filled(page: str, results: Sequence[tuple[int, str]], folder: Path) -> str:
    """A page with each command followed by what it printed."""
    rest = iter(results)

    def make(found: re.Match[str]) -> str:
        lines = []
        for command in split(found[1]):
            lines += [command, *shown(next(rest)[1], folder)]
        return "\n".join(["```console", *lines, "```"])

    return CONSOLE.sub(make, page)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="Markdown files")
    args = parser.parse_args(words)
    for path in args.pages:
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place).resolve()
            results = run(page, folder)
            for command, (status, _) in zip(commands(page), results, strict=False):
                if status:
                    print(f"{path}: {shlex.quote(command)} ended with status {status}", file=sys.stderr)
            if len(results) < len(commands(page)) or any(status for status, _ in results):
                return 1
            path.write_text(filled(page, results, folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
