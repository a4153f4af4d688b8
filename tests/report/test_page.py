"""The page: complete, well formed, self-contained, the same bytes every time, and safe with whatever a name holds."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import DataError
from limbeck.report import write_report
from limbeck.report.figures import VARIABLES, Curve, curves, thin
from limbeck.report.page import average, render, typeset

from .conftest import make_comparison, make_result, make_run, png

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Checker(HTMLParser):
    """Checks that every tag is closed in its turn; gathers ids, references and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.pointers: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href") and (value or "").startswith("#"):
                self.pointers.add((value or "")[1:])
            if name == "aria-labelledby":
                self.pointers.update((value or "").split())
            self.pointers.update(re.findall(r"url\(#([^)]+)\)", value or ""))


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert page.startswith("<!doctype html>")
    assert len(checker.ids) == len(set(checker.ids)), "two elements share an id"
    assert checker.pointers <= set(checker.ids), "a reference leads nowhere"
    # nothing from outside, nothing that runs
    for tag, name, value in checker.attributes:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href", "action", "data"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:60])
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    # every placeholder colour became a variable that the page defines
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", page))
    assert used <= set(re.findall(r"(--[a-z0-9]+):", page))
    assert not [colour for colour in VARIABLES if colour in page]
    return checker


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = make_run(tmp_path_factory.mktemp("pages") / "run")
    return folder, render(folder)


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = make_comparison(tmp_path_factory.mktemp("pages") / "comparison", ("kd", "nkd"), seeds=2)
    return folder, render(folder)


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a result alone, quick to render."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "bare"
        folder.mkdir(exist_ok=True)
        result = make_result(**{"calibration": None, "sizes": {}, "latency_ms": {}, **changes})
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


def test_the_page_of_a_run_is_complete(run_page: tuple[Path, str]) -> None:
    checker = check(run_page[1])
    text = " ".join(checker.text)
    for words in (
        "2.4\u00a0points worse than its teacher",
        "n=1: one seed cannot tell this from chance",
        "Results",
        "Accuracy with intervals",
        "Size and quality",
        "Calibration",
        "Stage teacher",
        "Stage distil",
        "negative log-likelihood",
        "of step 350",
        "peak memory",
        "1,000 labelled items",
        "temperature: 4.0",  # the configuration
        '"<b>&amp;"',  # as it was written, not as markup
        "2.14.1",
        "x86_64",
    ):
        assert words in text, words
    assert sum(tag == "svg" for tag, name, _ in checker.attributes if name == "viewbox") >= 5
    roles = [value for tag, name, value in checker.attributes if tag == "svg" and name == "role"]
    assert set(roles) == {"img"} and len(roles) == 6  # five figures and the mark


def test_curves_are_drawn_and_their_numbers_told(run_page: tuple[Path, str]) -> None:
    page = run_page[1]
    svg = page[page.index('aria-labelledby="curves1-title') :]
    svg = svg[: svg.index("</svg>")]
    for quantity in ("ce", "target", "nontarget", "lr", "accuracy (validation) (%)"):
        assert re.search(rf"<text[^>]*>{re.escape(quantity)}</text>", svg), quantity
    longest = max(len(re.findall(r"L ", d)) for d in re.findall(r' d="([^"]+)"', svg))
    assert longest >= 20  # a line of many points
    numbers = page[page.index("<h3>Stage distil") :]
    assert '<tr><th scope="row">nkd</th><td>nontarget</td><td>400</td>' in numbers


def test_the_page_of_a_comparison_is_complete(comparison_page: tuple[Path, str]) -> None:
    text = " ".join(check(comparison_page[1]).text)
    for words in (
        "kd and nkd",
        "The best mean is nkd's",
        "paired over 2\u00a0seeds",
        "Student's t over seeds",
        "Means over seeds",
        "nkd: distil",
    ):
        assert words.replace("\u00a0seeds", " seeds") in text or words in text, words


def test_the_same_folder_gives_the_same_bytes_and_matplotlib_is_left_as_it_was(run_page: tuple[Path, str]) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    folder, page = run_page
    assert write_report(folder).read_text() == page
    assert dict(matplotlib.rcParams) == before


def test_another_process_gives_the_same_bytes(run_page: tuple[Path, str]) -> None:
    import matplotlib

    code = "import sys, pathlib, limbeck.report.page as p; sys.stdout.write(p.render(pathlib.Path(sys.argv[1])))"
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "PYTHONHASHSEED": "17",
        "PYTHONIOENCODING": "utf-8",
        "HOME": "/nonexistent",
    }
    environment["MPLCONFIGDIR"] = matplotlib.get_configdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_page[0])], env=environment, capture_output=True, check=True
    )
    assert done.stdout.decode() == run_page[1]


def test_a_result_alone_is_enough(bare: Callable[..., Path]) -> None:
    page = write_report(bare()).read_text()
    check(page)
    assert "<h2>Training</h2>" not in page and "Calibration" not in page and "Configuration" not in page


def test_the_smallest_result_is_shown(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(
        json.dumps(
            {
                "primary": "score",
                "higher_is_better": True,
                "metrics": {"student": {"score": 3.5}},
                "method": "mine",
                "seed": 1,
            }
        )
    )
    text = " ".join(check(render(tmp_path)).text)
    assert "The student reaches score 3.500." in text
    assert "No baseline of equal budget was run" in text and "better" not in text.replace("is better", "")


def test_names_are_text_never_markup(bare: Callable[..., Path]) -> None:
    nasty = "a</title></svg><script>alert(1)</script>$x_1$&amp;"
    page = render(bare(label=nasty, recipe=nasty, notes=[nasty], names={"alone": nasty}, versions={nasty: nasty}))
    checker = check(page)
    assert "<script" not in page
    assert nasty in "".join(checker.text)


def test_pictures_are_inlined_and_foreign_files_are_not(bare: Callable[..., Path]) -> None:
    images = [
        {"title": "digits", "file": "samples/a.png", "caption": "ten of them"},
        {"title": "out", "file": "../secret.png"},
        {"title": "text", "file": "result.json"},
        {"title": "gone", "file": "gone.png"},
    ]
    folder = bare(images=images)
    (folder / "samples").mkdir()
    (folder / "samples" / "a.png").write_bytes(png())
    (folder.parent / "secret.png").write_bytes(png(seed=1))
    page = render(folder)
    checker = check(page)
    sources = [value for tag, name, value in checker.attributes if tag == "img" and name == "src"]
    assert len(sources) == 1
    assert page.count("is not shown") == 3
    assert [value for tag, name, value in checker.attributes if tag == "img" and name == "alt"] == ["digits"]


def test_pictures_may_be_numbers(bare: Callable[..., Path]) -> None:
    from PIL import Image

    grey = [[[[0, 255], [255, 0]]] for _ in range(3)]  # three images of 1 x 2 x 2, a row each
    colour = [[[[[255]], [[0]], [[0]]], [[[0]], [[255]], [[0]]]]]  # a red and a green pixel in a row
    images = {"title": "the set", "labels": ["a", "b", "c"], "pixels": [[p] for p in grey]}
    broken = {"title": "bad", "pixels": [[[[300]]]]}
    page = render(bare(images=images, pictures=[{"title": "colours", "pixels": colour}, broken]))
    checker = check(page)
    sources = [value for tag, name, value in checker.attributes if tag == "img" and name == "src"]
    first, second = (Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in sources)
    assert first.size == (5, 3) and first.getpixel((1, 1)) == (255, 0, 0) and first.getpixel((3, 1)) == (0, 255, 0)
    assert second.size == (10, 4)  # laid down: one row of three
    assert [second.getpixel((x, 1)) for x in (1, 2, 4, 5)] == [0, 255, 0, 255]
    assert "From left to right: a; b; c" in page and page.count("is not shown") == 1


def test_samplers_are_shown_by_their_number_of_steps(bare: Callable[..., Path]) -> None:
    def judged(scale: float) -> dict[str, float]:
        found = {"endpoint_mse": scale, "fid_floor": 5.0}
        for w in (0, 1):
            for n in (1, 2, 4):
                found[f"fid_w{w}_n{n}"] = 10 + scale / n
                found[f"endpoint_mse_w{w}_n{n}"] = 0.0 if n == 4 and scale < 0.01 else scale / n
        return found

    metrics = {"teacher": judged(0.001), "student": judged(0.1), "alone": judged(0.3)}
    given = {"artifact": "sampler", "primary": "endpoint_mse", "higher_is_better": False, "metrics": metrics}
    page = render(bare(**given))
    check(page)
    assert "Quality by number of steps" in page and "nothing can be told below it" in page
    assert '<th scope="row">nkd</th><td>Fréchet distance</td><td>1</td><td>4</td><td>10.03</td>' in page


def test_many_methods_keep_to_the_page(tmp_path: Path) -> None:
    rows = {f"method-{i}": {"0": make_result("kd", i, calibration=None)} for i in range(30)}
    comparison = {"task": "t", "primary": "accuracy", "higher_is_better": True, "seeds": [0], "rows": rows}
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    checker = check(render(tmp_path))
    assert "30 methods" in "".join(checker.text)


def test_values_that_are_not_finite_are_drawn_as_gaps(bare: Callable[..., Path]) -> None:
    folder = bare()
    lines = [{"stage": "distil", "step": i, "kd": "nan" if i == 5 else 1.0 / (1 + i), "big": "inf"} for i in range(10)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "dis')
    page = render(folder)
    check(page)
    assert "Stage distil" in page and "not finite" in page


def test_what_cannot_be_shown_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no result here"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DataError, match="not a result that can be read"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DataError, match="lacks primary, higher_is_better, metrics"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_exports_are_listed(bare: Callable[..., Path]) -> None:
    page = render(
        bare(exports={"onnx": {"path": "export/onnx", "bytes": 5120, "accuracy": 0.944}, "safetensors": "export/st"})
    )
    text = " ".join(check(page).text)
    for words in ("onnx", "5.12\u00a0kB", "94.4\u00a0%", "export/st"):
        assert words in text or words.replace("\u00a0", " ") in text, words


def test_long_curves_are_thinned_by_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    thinned = thin(points)
    assert len(thinned) == 240 and all(0.4 < y < 0.6 for _, y in thinned)
    assert thin(points[:240]) == points[:240]
    picture = curves({"kd": [Curve("run", points)]}, "c", "t", "")
    assert picture is not None and len(picture.svg) < 20_000
    assert curves({"kd": [Curve("run", points[:1])]}, "c", "t", "") is None


def test_curves_are_averaged_over_the_steps_they_share() -> None:
    assert average([[(1, 1.0), (2, 2.0)], [(2, 4.0), (3, 1.0)]]) == [(2, 3.0)]


def test_typesetting_leaves_names_alone() -> None:
    assert typeset("-2.6 points [-3.0, -2.2]") == "\u22122.6\u00a0points [\u22123.0,\u00a0\u22122.2]"
    assert typeset("nd-loss2 resnet-18 1e-05 97.3 %") == "nd-loss2 resnet-18 1e-05 97.3\u00a0%"
