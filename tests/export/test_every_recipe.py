"""Every shipped recipe in every format: written with a script that runs, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.errors import ConfigError
from limbeck.export import FORMATS, export
from limbeck.run import run
from tests.export.files import used
from tests.tiny import NAMES, tree_of

WORDS = {
    "masked-words": ["the <mask> of it"],
    "language": ["def f"],
    "generation": ["3"],
}
"""What is typed behind use.py, by task; an image where nothing else is said of a task of images."""

IMAGES = ("classification", "dense", "anomaly", "boxes")


@pytest.mark.expensive
@pytest.mark.parametrize("name", NAMES)
def test_every_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    result = run(tree_of(name), tmp_path / "run", quiet=True)
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(image)
    words = [str(image)] if result["task"] in IMAGES else WORDS.get(result["task"])
    monkeypatch.chdir(tmp_path)
    written = []
    for form in FORMATS:
        try:
            out = export(tmp_path / "run", form, tmp_path / form)
        except ConfigError as error:
            assert "\n" not in error.line() and not list((tmp_path / form).glob("*.onnx"))
            continue
        written.append(form)
        compile((out / "use.py").read_text(), "use.py", "exec")
        assert len((out / "use.py").read_text().splitlines()) <= 30
        if words is not None or result["artifact"] in ("dataset", "table", "scene"):
            assert used(out, *(words or []))
    assert written
