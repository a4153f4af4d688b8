"""Pages of jobs: their commands are run by a program, and what stands below them is what was printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from docs import transcript
from limbeck.cli import COMMANDS
from limbeck.recipe.recipe import check, load_tree

JOBS = sorted((Path(transcript.__file__).parent / "jobs").glob("*.md"))

PAGE = """Text.

```python
# hello.py
print("hello", *range(3))
```

```console
$ python hello.py
old output
$ echo one \\
    two; printf 'a  1/2  50%%  9 s left\\nb\\n'
$ for i in $(seq 100); do echo line $i; done
```
"""


def test_commands_are_run_in_order_and_their_output_replaces_what_was_there(tmp_path: Path) -> None:
    assert len(transcript.commands(PAGE)) == 3
    results = transcript.run(PAGE, tmp_path)
    assert [status for status, _ in results] == [0, 0, 0]
    page = transcript.filled(PAGE, results, tmp_path)
    assert "$ python hello.py\nhello 0 1 2\n$ echo" in page and "old output" not in page
    assert "    two; printf" in page and "\none two\nb\n$ for" in page, "a continued command, and no progress"
    assert "line 1\n" in page and "line 100\n" in page and "line 50\n" not in page and "lines left out]" in page
    # and again: the same page
    assert transcript.filled(page, results, tmp_path) == page


def test_a_command_that_fails_leaves_the_page_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```console\n$ false\n```\n", encoding="utf-8")
    assert transcript.main([str(path)]) == 1
    assert path.read_text(encoding="utf-8") == "```console\n$ false\n```\n"


def test_tables_stay_and_long_sentences_are_wrapped(tmp_path: Path) -> None:
    table = "  a   b" + " " * 120 + "c"
    assert transcript.shown(table, tmp_path) == [table]
    assert all(len(line) <= transcript.WIDTH for line in transcript.shown("word " * 60, tmp_path))
    assert transcript.shown(f"{tmp_path}/runs/x: done", tmp_path) == ["runs/x: done"]


@pytest.mark.parametrize("page", JOBS, ids=lambda p: p.stem)
def test_jobs_use_commands_and_settings_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = [shlex.split(c.replace("\\\n", " ")) for c in transcript.commands(text)]
    ours = [c for c in commands if c[0] == "limbeck"]
    assert ours
    for _, command, *words in ours:
        assert command in COMMANDS
        if command in ("run", "plan", "cache"):
            name, *rest = words
            preset = rest[rest.index("--preset") + 1] if "--preset" in rest else ""
            settings = [w for w in rest if re.match(r"[\w.]+=", w)]
            check(load_tree(name, settings, preset=preset))
    blocks = transcript.CONSOLE.findall(text)
    for block in blocks:
        lines = block.splitlines()
        if any(line.startswith("$ limbeck") for line in lines):
            assert len(lines) > len([line for line in lines if line.startswith(("$ ", "    "))]), "was it run?"


@pytest.mark.expensive
def test_a_job_can_be_done_again(tmp_path: Path) -> None:
    page = (JOBS[0].parent / "endpoint.md").read_text(encoding="utf-8")
    results = transcript.run(page, tmp_path)
    assert [status for status, _ in results] == [0] * len(transcript.commands(page)), results[-1][1]
