"""The command line from the outside: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import pytest

import limbeck
from benchmarks.start import crowd
from limbeck import cli
from limbeck.commands import doctor
from limbeck.errors import ConfigError, DataError, Stopped
from limbeck.grammar.card import catalogue, recipes
from limbeck.recipe.recipe import check
from limbeck.recipe.values import read_yaml


def no_run(*given: Any, **settings: Any) -> Any:
    """Nothing is opened where nothing is run."""
    raise DataError("RUN", "nothing was run here")


@pytest.fixture
def calls(monkeypatch, tmp_path) -> list[tuple[str, tuple[Any, ...]]]:
    """What lies behind the commands, replaced by a record of calls; a folder of its own to work in."""
    made: list[tuple[str, tuple[Any, ...]]] = []

    def record(name: str, answer: Any):
        def called(*args: Any, **kwargs: Any) -> Any:
            made.append((name, (*args, kwargs) if kwargs else args))
            return answer

        return called

    result = {
        "recipe": "kd",
        "seed": 0,
        "folder": "runs/kd",
        "metrics": {},
        "primary": "accuracy",
        "higher_is_better": True,
    }
    for name, parts in {
        "limbeck.run": {
            "run": result,
            "read_result": {},
            "plan": {"recipe": "kd", "seconds": 3.0, "stages": [{"stage": "distil"}], "advice": ["x"]},
        },
        "limbeck.compare": {"compare": {"rows": {}, "folder": "c", "runs": {"nkd": ["c/nkd-seed0"]}}},
        "limbeck.search": {
            "search": {
                "metric": "accuracy",
                "higher_is_better": True,
                "trials": [],
                "recipe": "best.yaml",
                "folder": "s",
            }
        },
        "limbeck.cache": {"build_cache": {"size_mb": 1.0}},
        "limbeck.export": {"export": Path("student.onnx")},
        "limbeck.export.push": {"push": "https://hub.example/me/x"},
        "limbeck.report": {"write_report": Path("report.html")},
        "limbeck.commands._launch": {"launch": 0},
    }.items():
        module = types.ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        for part, answer in parts.items():
            setattr(module, part, record(part, answer))
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["limbeck.run"].restore = no_run  # type: ignore[attr-defined]
    monkeypatch.setattr("limbeck.commands._common.print_outcome", record("print", None))
    monkeypatch.setattr("limbeck.commands._common.print_tables", lambda *given: None)
    monkeypatch.setattr("limbeck.engine.interrupt.install", lambda: None)
    for name in ("RANK", "LOCAL_RANK", "LIMBECK_STATUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return made


def python(*words: str, code: str = "", timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """A command line, or a piece of Python, in a process of its own."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "limbeck", *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **env},
        cwd=tempfile.gettempdir(),
    )


# ------------------------------------------------------------------------------------------------ what it prints


def test_help_names_every_command_and_each_command_explains_itself(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name}" in text
        assert cli.main([name, "--help"]) == 0
        assert f"limbeck {name}" in capsys.readouterr().out
    assert cli.main([]) == 2


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"limbeck {limbeck.__version__}\n"


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("['--help']", "torch numpy yaml rich argparse"),
        ("['methods']", "torch numpy yaml matplotlib jinja2"),
        ("['methods', '--json']", "torch numpy yaml rich"),
        ("['run']", "torch numpy"),
        ("['run', 'kdd']", "torch numpy"),
        ("['show', 'kd', '--source']", "torch numpy"),
    ],
)
def test_what_must_start_at_once_imports_little(words, absent):
    loaded = f"print('\\nloaded:', *sorted(set('{absent}'.split()) & set(sys.modules)))"
    code = f"import sys; from limbeck import cli; cli.main({words}); {loaded}"
    assert python(code=code).stdout.splitlines()[-1].strip() == "loaded:"


def test_many_papers_are_listed_from_their_cards_alone(tmp_path):
    """55 further ones, in a copy of the package: none is imported, and of none more than its Card is parsed."""
    made = crowd(Path(limbeck.__file__).parent, tmp_path, 55)
    code = f"""if True:
        import ast, builtins, sys
        sys.path.insert(0, {str(made.parent)!r})
        parsed = []
        parse = ast.parse
        ast.parse = lambda text, *a, **k: parsed.append(len(text.strip())) or parse(text, *a, **k)
        from limbeck import cli
        assert cli.main(["methods"]) == 0
        assert not {{"torch", "numpy", "yaml"}} & set(sys.modules), sorted(sys.modules)
        assert not [m for m in sys.modules if m.startswith("limbeck.methods.")]
        print(len(parsed), max(parsed) < 4000)
    """
    shown = python(code=code).stdout.splitlines()
    assert sum("BD-KD" in line for line in shown) >= 55
    count, small = shown[-1].split()
    assert int(count) >= 55 and small == "True"


def test_methods_as_a_table_and_as_json(capsys):
    assert cli.main(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["slug"] for m in found] == [c.slug for c in catalogue()]
    assert {"number", "slug", "family", "title", "year", "evidence", "methods", "recipe", "claim"} <= set(found[0])
    assert cli.main(["methods", "--family", "classification"]) == 0
    text = capsys.readouterr().out
    assert "nkd uskd" in text
    assert "condensation" not in text


def test_show_tells_the_facts_the_recipe_and_the_source(capsys):
    assert cli.main(["show", "nkd"]) == 0
    text = capsys.readouterr().out
    for part in ("2303.13005", "claim", "provenance", "gamma", "recipe nkd, complete:", "optimizer: adamw"):
        assert part in text
    assert cli.main(["show", "nkd-uskd", "--source"]) == 0
    assert "CARD = Card(" in capsys.readouterr().out
    assert cli.main(["show", "uskd", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slug"] == "nkd-uskd"
    assert found["config"]["method"]["use"] == "uskd"


def test_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(tmp_path / "w"))
    status = cli.main(["doctor", "--json"])
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert status == (2 if any(r["status"] == "problem" for r in rows.values()) else 0)
    assert rows["limbeck"]["value"].startswith(limbeck.__version__)
    assert {
        "python",
        "torch",
        "threads",
        "devices",
        "torch and torchvision",
        "extra language",
        "workspace",
        "disk",
    } <= set(rows)
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Row("x", "y", "problem", "mend it")])
    assert cli.main(["doctor"]) == 2
    assert "mend it" in capsys.readouterr().out


def test_printed_recipes_are_complete_and_run_again(calls, capsys, tmp_path):
    assert cli.main(["run", "kd", "method.temperature=3", "--print-config", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    tree = read_yaml(text, "printed")
    assert (tree["method"]["temperature"], tree["seed"], tree["name"]) == (3.0, 4, "kd")
    (tmp_path / "again.yaml").write_text(text)
    assert cli.main(["run", "again.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == text
    assert calls == []


def test_help_of_a_recipe_explains_every_key(calls, capsys):
    assert cli.main(["run", "kd", "--help", "student.hidden=[5]"]) == 0
    text = capsys.readouterr().out
    for part in (
        "method.temperature=4.0    (number above 0)",
        "student.hidden=[5]",
        "peak learning rate",
        "engine.devices=1",
    ):
        assert part in text
    assert calls == []


# ------------------------------------------------------------------------------------------------ what is called


def test_words_may_stand_in_any_order(calls, capsys):
    assert (
        cli.main(
            [
                "run",
                "method.temperature=2",
                "--out",
                "o",
                "kd",
                "--force",
                "train.steps=5",
                "--seed=3",
                "loggers+=wandb",
            ]
        )
        == 0
    )
    (name, (tree, out, force)), printed = calls
    assert name == "run"
    assert printed[0] == "print"
    assert (out, force) == (Path("o"), True)
    assert tree["method"]["temperature"] == 2.0
    assert tree["train"]["steps"] == 5
    assert tree["seed"] == 3
    assert tree["loggers"][-1] == "wandb"
    assert check(tree) == tree


def test_the_value_of_an_option_is_no_setting(calls):
    assert cli.main(["run", "kd", "--out", "a=b"]) == 0
    assert calls[0][1][1] == Path("a=b")


def test_compare_passes_names_settings_and_options_on(calls, capsys):
    varied = ["--teachers", "4", "--redeal", "--first-seed", "7"]
    assert cli.main(["compare", "kd", "train.steps=3", "nkd", "--seeds", "5", "uskd", "--workers", "2", *varied]) == 0
    name, (names, overrides, options) = calls[0]
    assert name == "compare"
    assert names == ["kd", "nkd", "uskd"]
    assert overrides == ["train.steps=3"]
    assert options == {
        "seeds": 5,
        "out": Path("runs/compare-kd-nkd-uskd"),
        "engine": "process",
        "workers": 2,
        "force": False,
        "first_seed": 7,
        "teachers": 4,
        "redeal": True,
    }


def test_plan_cache_report_and_export(calls, capsys, tmp_path):
    assert cli.main(["plan", "kd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 3.0
    assert cli.main(["plan", "kd"]) == 0
    assert cli.main(["cache", "kd", "--yes", "--out", "c"]) == 0
    assert calls[-1][1][1:3] == (Path("c"), True)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("")
    assert cli.main(["report", "r"]) == 0
    assert cli.main(["export", "r", "--format", "onnx"]) == 0
    *words, options = calls[-1][1]
    assert words == [Path("r"), "onnx", Path("r/export/onnx")] and options["checkpoint"] is None
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "comparison.json").write_text("{}")
    assert cli.main(["report", "c"]) == 0


def test_several_devices_are_several_processes_unless_we_are_one_of_them(calls, monkeypatch):
    assert cli.main(["run", "kd", "engine.devices=2"]) == 0
    assert calls == [("launch", (["run", "kd", "engine.devices=2"], 2))]
    calls.clear()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["run", "kd", "engine.devices=2"]) == 0
    assert [c[0] for c in calls] == ["run"]


# ------------------------------------------------------------------------------------------------ what it refuses

K = "method.temperature"
WRONG: list[tuple[str | list[str], str]] = [
    # commands and options
    ("rum kd", "COMMAND: no command is called 'rum'; did you mean 'run'"),
    ("--verson", "COMMAND: no option is called '--verson'; did you mean '--version'"),
    ("run kd --sed 3", "--sed: is no option of this command; did you mean --seed?"),
    ("run kd --temperature=3", "settings of a recipe have no dashes: temperature=3"),
    ("run kd -x", "-x: is no option"),
    ("run kd --seed", "--seed: expected one argument"),
    ("run kd --seed x", "--seed: got 'x', expected a whole number, 0 or more"),
    ("run kd --seed -1", "--seed: got '-1', expected a whole number, 0 or more"),
    ("run kd --seed=-1", "--seed: got '-1', expected a whole number, 0 or more"),
    ("run kd --seed 1.5", "--seed: got '1.5'"),
    ("run kd --seed true", "--seed: got 'true'"),
    ("run kd --seed " + "9" * 400, "--seed"),
    (["run", "kd", "--out", ""], "--out: got '', expected a folder"),
    ("run kd --out", "--out: expected one argument"),
    ("run kd --force=yes", "--force: ignored explicit argument 'yes'"),
    ("run kd nkd", "nkd: is one word too many, expected key=value"),
    ("run kd temperature", "temperature: is one word too many, expected key=value"),
    ("run", "RECIPE: is missing; limbeck run NAME; shipped: "),
    ("run train.steps=3", "RECIPE: is missing"),
    ("plan", "RECIPE: is missing; limbeck plan NAME"),
    ("cache", "RECIPE: is missing"),
    ("compare", "RECIPE: is missing; name at least one"),
    ("compare kd kd", "RECIPE: kd is named twice"),
    ("compare kd --seeds 0", "--seeds: got '0', expected a whole number, 1 or more"),
    ("compare kd --seeds many", "--seeds: got 'many'"),
    ("compare kd --workers 0", "--workers: got '0'"),
    ("compare kd --engine rai", "--engine: no engine is called 'rai'; did you mean 'ray'"),
    ("compare kd nkdd", "recipe: no recipe is called 'nkdd'; did you mean 'nkd'"),
    (f"compare kd nkd {K}=0", f"{K}: got 0 (int), expected number above 0"),
    ("methods --family classifcation", "--family: no family is called 'classifcation'; did you mean 'classification'"),
    ("methods kd", "kd: is one word too many"),
    ("methods --jsn", "--jsn: is no option of this command; did you mean --json?"),
    ("show", "NAME: is missing"),
    ("show nkdd", "method: no method is called 'nkdd'; did you mean 'nkd'"),
    ("show kd nkd", "nkd: is one word too many"),
    ("report", "RUN: is missing"),
    ("report nowhere", "RUN: there is no folder 'nowhere'; limbeck run makes one"),
    ("report rums/kd-seed0", "RUN: there is no folder 'rums/kd-seed0'"),
    ("report runs/kd-sed0", "did you mean 'runs/kd-seed0'"),
    ("report " + "a" * 5000, "RUN: 'aaa"),
    ("report ~nobody-of-that-name/x", "RUN: "),
    ("run ~nobody-of-that-name/x", "recipe: "),
    ("run kd --out ~nobody-of-that-name/x", "--out: "),
    ("run " + "a" * 5000, "recipe: 'aaa"),
    ("report empty", "RUN: the folder 'empty' holds no config.yaml or comparison.json"),
    ("export empty", "RUN: the folder 'empty' holds no config.yaml"),
    ("export runs/kd-seed0 --format", "--format: expected one argument"),
    ("doctor x", "x: is one word too many"),
    ("demo --seeds 0", "--seeds: got '0'"),
    # recipes
    ("run kdd", "recipe: no recipe is called 'kdd'; did you mean 'kd' or 'nkd'"),
    ("run ./kd", "recipe: there is no file './kd'; did you mean 'kd'"),
    ("run mime.yaml", "recipe: there is no file 'mime.yaml'; did you mean 'mine.yaml'"),
    ("run ./empty", "recipe: the folder './empty' holds no config.yaml, expected a run folder"),
    (["run", ""], "recipe: got ''"),
    (["run", "a\0b"], "command line: got 'a\\x00b', expected UTF-8 text"),
    (["run", "kd", f"{K}=\ud8ff"], "command line"),
    ("run blank.yaml", "blank.yaml: is empty, expected keys such as task: and method:"),
    ("run list.yaml", "list.yaml: holds no settings"),
    ("run twice.yaml", "twice.yaml:2:1: the key 'task' is given twice"),
    ("run alias.yaml", "alias.yaml:1:9: anchors are not read"),
    ("run tag.yaml", "tag.yaml:1:9: tags are not read"),
    ("run deep.yaml", "deep.yaml:1:"),
    ("run broken.yaml", "broken.yaml:2:2: not valid YAML"),
    ("run latin.yaml", "latin.yaml: is not UTF-8 text (byte 6)"),
    ("run methodless.yaml", "method: a recipe needs it; set method=NAME; known: "),
    ("run taskless.yaml", "task: a recipe needs it; set task=NAME; known: "),
    # settings
    ("run kd method=kdd", "method: no method is called 'kdd'; did you mean 'kd'"),
    ("run kd student=tim:resnet18", "student: no model is called 'tim'; did you mean 'timm'"),
    ("run kd student=os.system", "student: no model is called 'os.system'"),
    (["run", "kd", "student={class_path: os.system}"], "student.class_path: mlp has no such key"),
    ("run kd task.data=digit", "task.data: no source is called 'digit'; did you mean 'digits'"),
    (
        "run kd method.temprature=3",
        "method.temprature: kd has no such key; did you mean 'temperature'? known: temperature, alpha",
    ),
    ("run kd temperature=3", "temperature: a recipe has no such key; did you mean 'method.temperature'"),
    ("run kd trian.steps=3", "trian: a recipe has no such key; did you mean 'train'"),
    ("run kd engine.device=many engine.devices=many", "engine.devices: got 'many' (str), expected whole number"),
    (f"run kd {K}=hot", f"{K}: got 'hot' (str), expected number"),
    (f"run kd {K}=", f"{K}: has no value; write {K}=null for nothing"),
    (f"run kd {K}=.nan", f"{K}: got nan (float), expected number (NaN is none)"),
    (f"run kd {K}=null", f"{K}: got null, expected number"),
    (f"run kd {K}=[1,2]", f"{K}: got [1, 2] (list), expected number"),
    (f"run kd {K}=[1,2", f"{K}:2:1: not valid YAML"),
    (f"run kd {K}.x=1", f"{K}: is 4, it has no part 'x'"),
    (f"run kd {K}+=1", f"{K}: is 4, += appends to lists"),
    (f"run kd {K}=0 --print-config", f"{K}: got 0 (int), expected number above 0"),
    ("run kd method..x=1", "method..x: has an empty part"),
    ("run kd method.direction=foward", "did you mean 'forward'"),
    ("run kd method.scale_t2=yes", "method.scale_t2: got 'yes' (str), expected true or false"),
    ("run kd method.alpha=1.5 --print-config", "method.alpha: got 1.5 (float), expected number between 0 and 1"),
    ("run kd train.steps=-1 --print-config", "train.steps: must be 0 or more (got -1)"),
    ("run kd train.optimizer=adamm --print-config", "train.optimizer: 'adamm' is unknown"),
    ("run kd train.schedule=cosin", "did you mean 'cosine'"),
    ("run kd train=3", "train: got 3 (int), expected settings, Optim"),
    ("run kd objectives=kl", "objectives: got 'kl' (str), expected mapping of names to objective"),
    ("run kd queries.q=flipp", "queries.q: no query is called 'flipp'; did you mean 'flip'"),
    ("run kd student.hidden=[0] --print-config", "student.hidden.0: got 0 (int), expected whole number 1 or more"),
    ("run kd student.hidden=wide", "student.hidden"),
    ("run kd method.x=1 train.y=2 z=3", " · "),
]


@pytest.fixture
def files(tmp_path):
    """Files that are no recipes, a run's folder, an empty folder."""
    deep = "task: " + "[" * 100
    for name, text in {
        "mine": "task: classification\nmethod: kd\n",
        "blank": "",
        "list": "- a\n- b\n",
        "twice": "task: a\ntask: b\n",
        "alias": "method: &x kd\ntask: *x\n",
        "tag": "method: !!python/name:os.system ''\n",
        "deep": deep,
        "broken": "task: [a\nb: }",
        "methodless": "task: classification\n",
        "taskless": "method: kd\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "latin.yaml").write_bytes(b"task: \xe9\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "kd-seed0").mkdir(parents=True)
    (tmp_path / "runs" / "kd-seed0" / "config.yaml").write_text("")


@pytest.mark.parametrize(
    ("words", "said"), WRONG, ids=[str(w)[:50].encode("ascii", "replace").decode() for w, _ in WRONG]
)
def test_wrong_invocations_end_with_status_2_and_one_line(words, said, calls, files, capsys):
    status = cli.main(words.split() if isinstance(words, str) else words)
    out, err = capsys.readouterr()
    assert status == 2, out + err
    assert err.startswith("limbeck: ")
    assert err.count("\n") == 1
    assert said in err
    assert "Traceback" not in out + err
    assert calls == [], "nothing may be started by a wrong command"


def test_the_same_from_outside():
    done = python("run", "kd", "method.gama=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"limbeck: method\.gama: kd has no such key; .*\n", done.stderr)


# ------------------------------------------------------------------------------------------------ how it ends


def failing(monkeypatch, error: BaseException) -> None:
    """`limbeck methods` raises an error in a line that counts as limbeck's own."""
    module = types.ModuleType("limbeck.commands.methods")
    module.error = error  # type: ignore[attr-defined]
    own = Path(cli.__file__).parent / "commands" / "methods.py"
    exec(compile("def main(words):\n    raise error", str(own), "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "limbeck.commands.methods", module)


def test_a_defect_leaves_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failing(monkeypatch, RuntimeError("broken\nin two lines"))
    assert cli.main(["methods", "--json"]) == 1
    err = capsys.readouterr().err
    (file,) = tmp_path.glob("limbeck-crash-*.txt")
    assert err == f"limbeck: a defect of limbeck: RuntimeError: broken in two lines; please report it with {file}\n"
    text = file.read_text()
    assert "Traceback" in text
    assert "'methods' '--json'" in text
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert cli.main(["methods"]) == 1
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Stopped(15, "type X"), 143, "stopped by signal 15; type X"),
        (Stopped(2), 130, "stopped by signal 2; everything is saved; type the same command again"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "memory: is exhausted; lower train.batch_size"),
        (OSError(28, "No space left on device", "/x"), 2, "/x: No space left on device; free space"),
        (RuntimeError("operator torchvision::nms does not exist"), 2, "reinstall both from one index"),
        (ConfigError("a", "b"), 2, "a: b"),
        (SystemExit(3), 3, ""),
    ],
    ids=lambda e: type(e).__name__,
)
def test_endings(monkeypatch, capsys, error, status, said):
    failing(monkeypatch, error)
    assert cli.main(["methods"]) == status
    assert said in capsys.readouterr().err


def test_workers_that_die_while_we_stop_are_no_defect(monkeypatch, capsys):
    failing(monkeypatch, RuntimeError("DataLoader worker (pid 3) is killed by signal: Terminated."))
    monkeypatch.setattr("limbeck.engine.interrupt.requested", lambda: int(signal.SIGTERM))
    assert cli.main(["methods"]) == 143
    assert "type the same command again" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_defect():
    code = (
        "import subprocess, sys\n"
        "words = [sys.executable, '-m', 'limbeck', 'methods', '--json']\n"
        "p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.close(); err = p.stderr.read(); print(p.wait(), err)\n"
    )
    assert python(code=code).stdout.strip() in ("141 b''", "-13 b''")


def test_of_several_processes_only_the_first_speaks(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["methods"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["show", "kdd"]) == 2
    assert capsys.readouterr().err.startswith("limbeck (process 1): ")
    monkeypatch.setenv("LIMBECK_STATUS", str(tmp_path))
    assert cli.main(["show", "kdd"]) == 2
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "1.json").read_text())["status"] == 2


def test_nothing_is_sent_anywhere_and_libraries_are_quiet(monkeypatch):
    for name in cli.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    cli.main(["--version"])
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert os.environ["DO_NOT_TRACK"] == "0"  # the user's word counts
    for name in cli.QUIET:
        os.environ.pop(name, None)


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's signals are those of POSIX")
def test_two_processes_speak_with_one_voice_and_pass_their_status_on():
    code = (
        "import sys\n"
        "from limbeck.commands._launch import launch\n"
        "print(launch(['--version'], 2), launch(['show', 'kdd'], 2))\n"
    )
    done = python(code=code, timeout=120)
    assert done.stdout.split("\n")[0] == f"limbeck {limbeck.__version__}", done.stderr
    assert done.stdout.split("\n")[1] == "0 2"
    assert done.stderr.count("limbeck: method: no method is called 'kdd'") == 1
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ the public names


def test_the_package_is_lazy_and_its_names_are_there():
    done = python(code="import sys, limbeck; limbeck.Card, limbeck.catalogue; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"
    assert sorted(limbeck.__all__) == sorted({*limbeck._WHERE, "__version__"})
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
    assert set(limbeck.__all__) <= set(dir(limbeck))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        limbeck.distil  # noqa: B018


# ------------------------------------------------------------------------------------------------ random command lines

SETTINGS = [
    "method.temperature",
    "train.steps",
    "train.lr",
    "student",
    "student.hidden",
    "task.data",
    "method",
    "loggers",
    "seed",
    "x",
]
SETTINGS += [
    "teacher.checkpoint",
    "objectives.a",
    "objectives.a.weight",
    "engine.devices",
    "task.size",
    "train.options",
    "name",
    "a..b",
]
TEXTS = [
    "1",
    "0",
    "-1",
    "1e-3",
    "null",
    "true",
    "abc",
    "",
    "[1]",
    "[",
    "{a: 1}",
    "kd",
    "nkd",
    "mlp",
    "digits",
    "kl",
    "é",
    "\0",
    "\ud800",
]
TEXTS += [
    "timm:resnet18",
    "{use: mlp, hidden: [2]}",
    "nan",
    ".nan",
    "9" * 300,
    "'",
    '"x"',
    "*a",
    "--",
    "%s",
    "../..",
    "a b",
    "\n",
]
WORDS = [
    "kd",
    "nkd",
    "uskd",
    "kdd",
    "mine.yaml",
    "twice.yaml",
    "latin.yaml",
    "runs/kd-seed0",
    "empty",
    ".",
    "/",
    "-",
    "--",
    "-h",
    "",
]
WORDS += [
    "--seed",
    "--seed=3",
    "--seed=x",
    "--out",
    "--out=o",
    "--force",
    "--print-config",
    "--help",
    "--json",
    "--source",
    "--family",
]
WORDS += [
    "--family=classification",
    "--seeds=2",
    "--seeds",
    "--engine=ray",
    "--engine",
    "--workers=2",
    "--yes",
    "--format=onnx",
    "--bogus",
]
WORDS += [
    "--checkpoint=c",
    "-x",
    "3",
    "é",
    "\0",
    "\ud800",
    "a" * 3000,
    "--seed=" + "9" * 100,
    "nkd-uskd",
    "=",
    "a=",
    "=b",
    "@x",
    "~",
]


def random_words(rng: random.Random) -> list[str]:
    """A command line; right, nearly right, or neither."""
    command = rng.choice(
        [*cli.COMMANDS, *cli.COMMANDS, "run", "run", "run", "rum", "", "--help", "--version", "-x", "é"]
    )
    words = [command]
    for _ in range(rng.choice([0, 1, 1, 2, 3, 6])):
        if rng.random() < 0.4:
            words.append(f"{rng.choice(SETTINGS)}{rng.choice(['=', '=', '+='])}{rng.choice(TEXTS)}")
        else:
            words.append(rng.choice(WORDS))
    if command == "run" and rng.random() < 0.7:
        words[1:1] = [rng.choice(["kd", "nkd", "uskd", "mine.yaml"]), *rng.choice([[], ["--print-config"]])]
    return words


def test_random_command_lines_end_well(calls, files, capsys, monkeypatch, tmp_path):
    """LIMBECK_FUZZ=10000 makes the ten thousand of the promise: half recipes (tests/core), half command lines."""
    monkeypatch.setattr(doctor, "examine", list)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("limbeck.commands.show._config", lambda card, name: (None, "not now"))
    rng = random.Random(62)
    printed = 0
    cli.main(["run", "kd", "--print-config"])  # imports are paid for before the clock runs
    capsys.readouterr()
    for i in range(int(os.environ.get("LIMBECK_FUZZ", "2000")) // 2):
        words = random_words(rng)
        began = time.process_time()  # of the processor: others may have the machine
        status = cli.main(words)
        out, err = capsys.readouterr()
        assert status in (0, 2), (i, words, err)
        assert time.process_time() - began < 10.0, (i, words)
        assert "Traceback" not in out + err, (i, words)
        if status == 2 and words != [""]:
            assert err.startswith("limbeck: ") or words == [], (i, words, err)
            assert err.count("\n") == 1, (i, words, err)
        if status == 0 and "--print-config" in words and out.startswith("name:"):
            printed += 1
            tree = read_yaml(out, "printed")
            assert check(tree) == tree, (i, words)
    assert printed
    assert not list(tmp_path.glob("limbeck-crash-*"))
    assert recipes()


def test_json_and_tables_survive_a_terminal_without_their_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.commands import _common as common

    told = {"notes": ["Ahörn → Buche"], "size": 3}
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
        cli._plain_streams()
        common.print_json(told)
        assert json.loads(raw_text(raw, encoding)) == told
        raw.seek(0)
        raw.truncate()
        common.table([["Ahörn", "1.5 ± 0.1 …"]], ["class", "value"])
        shown = raw_text(raw, encoding)
        assert ("1.5 +- 0.1 ..." in shown) == (encoding == "ascii") and "1.5" in shown
        assert ("Ah\\xf6rn" in shown) == (encoding == "ascii")


def raw_text(raw: io.BytesIO, encoding: str) -> str:
    sys.stdout.flush()
    return raw.getvalue().decode(encoding)
