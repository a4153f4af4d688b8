"""From somebody's own files to the numbers that were reported: every task, by hand and by the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import limbeck
from limbeck.cli import main
from limbeck.engine.bench import build_model
from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.grammar.artifact import NetworkArtifact
from limbeck.grammar.method import Built
from limbeck.grammar.task import Model, Task
from limbeck.recipe.recipe import make
from limbeck.run import run
from tests.tiny import tree_of

Made = tuple[Any, Built, Path, dict[str, float]]


def made(task: dict[str, Any] | str, model: Any, folder: Path) -> Made:
    """A network with drawn weights, saved as every run saves its student, and its metrics on the test split."""
    one = make(Task, task, "task")
    one.load(0)
    built = build_model(make(Model, model, "student"), one, 0, "student")
    found = one.evaluate(built, one.test)
    artifact = NetworkArtifact(one, built)
    artifact.metrics = dict(found)
    folder.mkdir(parents=True, exist_ok=True)
    artifact.save(folder)
    return one, built, folder, dict(found)


def write(path: Path, x: Tensor) -> str:
    """A image [C, H, W] of bytes as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = x[0] if len(x) == 1 else x.movedim(0, -1)
    Image.fromarray(np.ascontiguousarray(array.numpy())).save(path)
    return str(path)


def pictures_below(root: Path, size: tuple[int, int] = (11, 13)) -> Path:
    """Digits as PNG files that are no squares, in class folders below train and test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i in range(150):
        split = "train" if i < 90 else "test"
        big = Image.fromarray((digits.images[i] * 15).astype(np.uint8)).resize(size)
        place = root / split / f"digit-{digits.target[i]}"
        place.mkdir(parents=True, exist_ok=True)
        big.save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_workspace: Path) -> tuple[Path, Path]:
    """A finished tiny KD run on image files, and these."""
    root = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
        data = pictures_below(root / "digits")
        settings = (f"task.data=folder:{data}", "task.size=8", "task.student_items=null", "train.steps=40")
        run(
            tree_of("kd", *settings, "engine.eval_every=10", "engine.save_every=20", "engine.keep=9"),
            root / "run",
            quiet=True,
        )
    return root / "run", data


def share_right(found: Any) -> float:
    """Of images in class folders."""
    return float(np.mean([Path(row["input"]).parent.name == row["label"] for row in found]))


# ------------------------------------------------------------------------------------------------------ a run, its exports
def test_a_run_answers_about_files_as_its_report_says(finished: tuple[Path, Path]) -> None:
    folder, data = finished
    said = json.loads((folder / "result.json").read_text())["metrics"]["student"]
    student = limbeck.load(folder)
    found = student.predict(str(data / "test"), batch=7)
    assert share_right(found) == said["accuracy"]
    assert found.scores.shape == (60, 10) and torch.allclose(found.scores.sum(1), torch.ones(60))
    assert student.evaluate() == {k: v for k, v in said.items() if k != "agreement"}
    # arrays, channels first or last, PIL images: the same answers
    files = [row["input"] for row in found][:5]
    arrays = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    for given in (
        arrays,
        torch.from_numpy(arrays).movedim(-1, 1),
        arrays.astype(np.float32) / 255,
        [Image.open(f) for f in files],
    ):
        assert student.predict(given).labels == found.labels[:5]


def test_every_export_answers_alike(finished: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = finished
    want = limbeck.load(folder).predict(str(data / "test")).scores
    for form in ("safetensors", "hub", "onnx"):
        if form == "onnx":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
        out = limbeck.load(limbeck_export(folder, form, tmp_path / form))
        got = out.predict(str(data / "test")).scores
        assert torch.allclose(got, want, atol=1e-5), form
        assert out.evaluate(f"task.data=folder:{data}")["accuracy"] == limbeck.load(folder).evaluate()["accuracy"]


def limbeck_export(folder: Path, form: str, out: Path) -> Path:
    from limbeck.export import export

    return export(folder, form, out)


def test_best_last_and_a_number_are_checkpoints(finished: tuple[Path, Path]) -> None:
    folder, data = finished
    last, best, early = (limbeck.load(folder, which) for which in ("last", "best", 20))
    from limbeck.storage import store

    kept = store.load_tree(folder / "best")["state"]["network"]
    assert all(torch.equal(v, best.module.state_dict()[k]) for k, v in kept.items())
    assert torch.equal(last.module.head.weight, limbeck.load(folder, 40).module.head.weight)
    assert not torch.equal(last.module.head.weight, early.module.head.weight)
    assert len(early.predict(str(data / "test"))) == 60
    with pytest.raises(ConfigError, match="one of"):
        limbeck.load(folder, 39)


def test_other_data_are_judged_whole_and_by_all_classes(finished: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = finished
    few = tmp_path / "few"
    few.mkdir()
    for name in ("digit-3", "digit-7"):
        (few / name).symlink_to(data / "test" / name)
    student = limbeck.load(folder)
    got = student.evaluate(f"task.data=folder:{few}")
    answers = student.predict([str(few / "digit-3"), str(few / "digit-7")])
    assert student.judged == {"items": len(answers), "split": "all items"}
    assert got["accuracy"] == pytest.approx(share_right(answers))  # a choice of ten classes, not of two
    (few / "unheard-of").symlink_to(data / "test" / "digit-1")
    with pytest.raises(DataError, match="does not know"):
        student.evaluate(f"task.data=folder:{few}")


def test_the_commands_write_and_draw(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = finished
    out, drawn = tmp_path / "a.csv", tmp_path / "drawn"
    assert (
        main(
            [
                "predict",
                str(folder),
                str(data / "test" / "digit-3"),
                "--out",
                str(out),
                "--top",
                "2",
                "--draw",
                str(drawn),
            ]
        )
        == 0
    )
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert rows and {"input", "label", "score", "label2", "score2", "drawn"} <= set(rows[0])
    assert all(Path(r["drawn"]).is_file() for r in rows)
    assert main(["predict", str(folder), str(data / "test"), "--out", str(tmp_path / "a.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (
        len(lines) == 60
        and share_right(lines) == json.loads((folder / "result.json").read_text())["metrics"]["student"]["accuracy"]
    )
    assert main(["evaluate", str(folder), "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told[told.index("{") :])["items"] == 60


# ------------------------------------------------------------------------------------------------------------- every task
def test_several_labels_and_numbers(tmp_path: Path) -> None:
    task, _, folder, said = made({"use": "classification", "target": "labels"}, "mlp:[8]", tmp_path / "labels")
    batch = task.test.fetch(torch.arange(len(task.test)))
    found = limbeck.load(folder).predict(batch["x"])
    yes = torch.tensor([[n in row["labels"] for n in task.labels] for row in found])
    assert float((yes == (batch["y"] > 0.5)).double().mean()) == said["accuracy"]
    task, _, folder, said = made({"use": "classification", "target": "number"}, "mlp:[8]", tmp_path / "number")
    batch = task.test.fetch(torch.arange(len(task.test)))
    values = limbeck.load(folder).predict(batch["x"]).values
    assert float((values.double() - batch["y"]).abs().mean()) == pytest.approx(said["mae"], rel=1e-6)


def test_rows_of_a_table(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.datasets import load_wine

    frame = load_wine(as_frame=True).frame.rename(columns={"target": "class"})
    frame["class"] = frame["class"].map(lambda c: f"wine {c}")
    frame["split"] = ["test" if i % 3 == 0 else "train" for i in range(len(frame))]
    frame.to_csv(tmp_path / "wine.csv", index=False)
    _, _, folder, said = made(
        {"use": "classification", "data": f"csv:{tmp_path / 'wine.csv'}"}, "mlp:[8]", tmp_path / "w"
    )
    test = frame[frame["split"] == "test"]
    student = limbeck.load(folder)
    found = student.predict(test)
    assert float(np.mean(np.array(found.labels) == test["class"].to_numpy())) == said["accuracy"]
    test.to_csv(tmp_path / "test.csv", index=False)
    assert student.predict(tmp_path / "test.csv").labels == found.labels
    with pytest.raises(LimbeckError):
        student.predict(pandas.DataFrame({"a": [1.0]}))


def test_typed_tables(tmp_path: Path) -> None:
    task, _, folder, said = made("table", "mlp:[8]", tmp_path / "t")
    rows = task.test.fetch(torch.arange(len(task.test)))
    frame = task.raw(rows)
    found = limbeck.load(folder).predict(frame.drop(columns=["mean texture"]))
    assert (
        float(np.mean([n == task.labels[y] for n, y in zip(found.labels, rows["y"].tolist(), strict=True)]))
        == said["accuracy"]
    )


def test_maps(tmp_path: Path) -> None:
    data = {"use": "digit-scenes", "items": 20, "test_items": 6, "side": 16}
    task, _, folder, said = made(
        {"use": "dense", "data": data}, {"use": "unet", "width": 4, "depth": 2}, tmp_path / "d"
    )
    batch = task.test.fetch(torch.arange(len(task.test)))
    files = [write(tmp_path / "x" / f"{i}.png", (x * 255).round().to(torch.uint8)) for i, x in enumerate(batch["x"])]
    found = limbeck.load(folder).predict(files, draw=tmp_path / "drawn")
    mask, valid = found.stacked("mask"), task.counted(batch)
    assert float(((mask == batch["y"]) & valid).sum()) / float(valid.sum()) == said["accuracy"]
    assert all(Path(row["mask"]).is_file() and sum(row["classes"].values()) == pytest.approx(1) for row in found)


def test_boxes_in_the_pixels_of_the_picture(tmp_path: Path) -> None:
    task, built, folder, _ = made(
        {"use": "boxes", "data": {"use": "objects-on-photos", "items": 12, "test_items": 4, "side": 48}},
        "small-detector",
        tmp_path / "b",
    )
    big = (task.test.fetch(torch.tensor([0]))["x"][0] * 255).round().to(torch.uint8)
    wide = torch.nn.functional.interpolate(big[None], (40, 80))[0]  # is brought into a square of 48
    student = limbeck.load(folder)
    found = student.predict(
        [write(tmp_path / "wide.png", wide), write(tmp_path / "own.png", big)], threshold=0.0, draw=tmp_path / "drawn"
    )
    with torch.no_grad():
        own = task.detections(built_in_evaluation(built), {"x": big[None].float() / 255})
    seen = torch.tensor([b["box"] for b in found[1]["boxes"]])
    order = own["scores"][0].argsort(descending=True, stable=True)[: len(seen)]
    assert torch.allclose(seen, own["boxes"][0][order].clamp(0, 48), atol=1e-4)
    boxes = torch.tensor([b["box"] for b in found[0]["boxes"]])
    assert boxes[:, 2].max() > 48 and boxes[:, 2].max() <= 80 and boxes[:, 3].max() <= 40
    assert all(Path(row["drawn"]).is_file() for row in found)


def built_in_evaluation(built: Built) -> Built:
    built.module.eval()
    return built


def test_keypoints_in_the_pixels_of_the_picture(tmp_path: Path) -> None:
    data = {"use": "drawn-figures", "parts": ["body"], "items": 12, "test_items": 6}
    task, _, folder, said = made({"use": "keypoints", "data": data}, {"use": "convnet", "width": 4}, tmp_path / "k")
    batch = task.test.fetch(torch.arange(len(task.test)))
    files = [write(tmp_path / "x" / f"{i}.png", (x * 255).round().to(torch.uint8)) for i, x in enumerate(batch["x"])]
    student = limbeck.load(folder)
    found = student.predict(files, draw=tmp_path / "drawn")
    far = (found.stacked("points") - batch["points"]).norm(dim=-1)
    each = (far * batch["where"]).sum(1) / batch["where"].sum(1)
    assert float(each.mean()) == pytest.approx(said["pixels"], rel=1e-3)  # files hold 8 bits
    wide = torch.nn.functional.pad((batch["x"][0] * 255).round().to(torch.uint8), (0, batch["x"].shape[-1]))
    halved = student.predict(torch.nn.functional.interpolate(wide[None], scale_factor=2)[0])
    assert set(halved[0]["points"]) == set(task.labels)
    found.save(tmp_path / "p.csv")
    assert f"{task.labels[0]} x" in (tmp_path / "p.csv").read_text().splitlines()[0]


def test_poses_in_the_pixels_of_the_picture(tmp_path: Path) -> None:
    data = {"use": "drawn-figures", "items": 12, "test_items": 3, "side": 48}
    anchors = {"body": 2, "hand": 2, "face": 2}
    student_ = {"use": "part-detector", "width": 8, "proposals": 8, "pool": 3, "min_score": 0.0, "anchors": anchors}
    task, built, folder, said = made({"use": "poses", "data": data}, student_, tmp_path / "p")
    x = task.test.fetch(torch.tensor([0]))["x"]
    small = (x[0] * 255).round().to(torch.uint8)
    big = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    student = limbeck.load(folder)
    found = student.predict([write(tmp_path / "a.png", small), write(tmp_path / "b.png", big)], draw=tmp_path / "drawn")
    with torch.no_grad():
        own = task.detections(built_in_evaluation(built), {"x": small[None].float() / 255})
    for p in task.parts:
        seen = [list(b["points"].values()) for b in found[0]["boxes"] if b["label"] == p]
        where = own[f"where:{p}"][0]
        assert len(seen) == int(where.sum()) > 0
        torch.testing.assert_close(torch.tensor(seen), own[f"pose:{p}"][0, where, :, :2], atol=1e-4, rtol=1e-4)
    assert max(v for b in found[1]["boxes"] for v in b["box"]) > 60  # in the pixels of the larger image
    assert len(student.predict(small, threshold=1.0)[0]["boxes"]) == 0
    found.save(tmp_path / "p.csv")
    head = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert "head x" in head and "head Z" in head and "thumb y" in head
    with pytest.raises(DataError, match="parts and joints"):
        student.evaluate("task.data={use: drawn-figures, items: 12, test_items: 3, side: 48, parts: [body]}")
    again = student.evaluate("task.data={use: drawn-figures, items: 12, test_items: 3, side: 48}")
    assert again["pck"] == pytest.approx(said["pck"]) and again["recall"] == pytest.approx(said["recall"])


def test_anomalies(tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    from limbeck.models.chain import ChainOf, LinkSettings
    from limbeck.tasks.anomaly import Anomaly

    task = make(
        Task, {"use": "anomaly", "data": {"use": "textures", "items": 20, "test_items": 12, "side": 32}}, "task"
    )
    assert isinstance(task, Anomaly)
    task.load(0)
    unet = make(Model, {"use": "unet", "width": 4, "depth": 2}, "model")
    chain = ChainOf({"net": LinkSettings(unet, form="map", outputs=1)})
    torch.manual_seed(0)
    built = Built(chain.make(task.needs).eval(), limbeck.Contract(channels=task.shape[0]), None, chain)
    said = task.evaluate(built, task.test)
    artifact = NetworkArtifact(task, built)
    artifact.metrics = dict(said)
    artifact.save(tmp_path)
    batch = task.test.fetch(torch.arange(len(task.test)))
    files = [write(tmp_path / "x" / f"{i}.png", (x * 255).round().to(torch.uint8)) for i, x in enumerate(batch["x"])]
    found = limbeck.load(tmp_path).predict(files)
    assert roc_auc_score(batch["y"].numpy(), found.scores) == pytest.approx(said["image_auroc"])
    above = [row["label"] == "anomalous" for row in found]
    assert np.mean(np.array(above)[batch["y"].numpy() == 1]) == pytest.approx(said["recall"])


def test_graphs(tmp_path: Path) -> None:
    task, _, folder, said = made(
        {"use": "graphs", "data": {"use": "drawn-graphs", "graphs": 40}}, {"use": "gnn", "hidden": 8}, tmp_path / "g"
    )
    graphs = task.graphs(task.test)
    file = tmp_path / "test.npz"
    kinds = {} if graphs.edge_label is None else {"edge_label": graphs.alphabet.edges[graphs.edge_label].numpy()}
    np.savez(
        file, ptr=graphs.ptr.numpy(), node_label=graphs.alphabet.nodes[graphs.label].numpy(),
        edge_index=graphs.global_edges().t().numpy(), y=graphs.y.numpy(), **kinds,
    )  # fmt: skip
    found = limbeck.load(folder).predict(file)
    assert (
        np.mean([n == task.labels[y] for n, y in zip(found.labels, graphs.y.tolist(), strict=True)]) == said["accuracy"]
    )


ENCODER = {"use": "encoder", "layers": 1, "width": 16, "heads": 2}


def test_texts_with_classes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task, _, folder, said = made({"use": "text-classes", "length": 32, "vocab_size": 300}, ENCODER, tmp_path / "c")
    documents = [task.test.data.documents[i] for i in task.test.ids.tolist()]
    student = limbeck.load(folder)
    found = student.predict([d.text for d in documents])
    y = [task.labels[int(c)] for c in task.test.y]
    assert np.mean([a == b for a, b in zip(found.labels, y, strict=True)]) == said["accuracy"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": d.text}) + "\n" for d in documents[:4]))
    (tmp_path / "t.txt").write_text(documents[0].text)
    assert student.predict([str(tmp_path / "t.jsonl"), str(tmp_path / "t.txt")]).labels == [
        *found.labels[:4],
        found.labels[0],
    ]


def test_language_models_judge_and_write(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task, _, folder, said = made(
        {"use": "language", "length": 48, "packing": "pad", "vocab_size": 300, "eval_sequences": None},
        {"use": "causal-lm", "layers": 1, "width": 16, "heads": 2}, tmp_path / "l",
    )  # fmt: skip
    documents = task.texts.test[:20]
    student = limbeck.load(folder)
    found = student.predict([d.text for d in documents], tokens=2)
    twin = task.test.__class__(task, documents, "some")
    want = task.evaluate(built_in_evaluation(student.built), twin)
    spent = sum(row["tokens"] for row in found)
    assert sum(row["cross_entropy"] * row["tokens"] for row in found) / spent == pytest.approx(
        want["cross_entropy"], rel=1e-6
    )
    assert sum(row["accuracy"] * row["tokens"] for row in found) / spent == pytest.approx(want["accuracy"])
    assert all(isinstance(row["completion"], str) for row in found)
    assert said["cross_entropy"] > 0


def test_masked_words_are_filled_and_texts_embedded(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task, _, folder, _ = made({"use": "masked-words", "length": 32, "vocab_size": 300}, ENCODER, tmp_path / "m")
    mask = task.tokenizer.mask_token
    filled, embedded = limbeck.load(folder).predict([f"one {mask} two", "one two"], top=3)
    assert len(filled["fills"][0]) <= 3 and filled["label"] in filled["fills"][0]
    assert len(embedded["vector"]) == 16


# ------------------------------------------------------------------------------------------- what is no network for items
@pytest.mark.expensive
@pytest.mark.parametrize(
    ("recipe", "inputs", "count"),
    [("guided-diffusion", ["3", "7"], 2), ("swiftbrush", 3, 3), ("prolificdreamer", None, 1)],
)
def test_samplers_and_scenes_make_pictures(recipe: str, inputs: Any, count: int, tmp_path: Path) -> None:
    run(tree_of(recipe), tmp_path / "run", quiet=True)
    made_ = limbeck.load(tmp_path / "run")
    found = made_.predict(inputs, draw=tmp_path / "drawn")
    assert len(found) >= count and all(Path(row["drawn"]).is_file() for row in found)


@pytest.mark.expensive
@pytest.mark.parametrize("recipe", ["mtt", "mirage", "fair-data"])
def test_sets_and_tables_answer_nothing(recipe: str, tmp_path: Path) -> None:
    run(tree_of(recipe), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=r"answers nothing|no predictions"):
        limbeck.load(tmp_path / "run").predict(["x.png"])


@pytest.mark.expensive
@pytest.mark.parametrize(
    "recipe", ["kd3", "bpkd", "vild", "fabric-rd", "token-kd", "minilm", "puzzle", "mtt", "guided-diffusion"]
)
def test_a_run_is_judged_again_with_the_numbers_of_its_report(recipe: str, tmp_path: Path) -> None:
    run(tree_of(recipe), tmp_path / "run", quiet=True)
    said = json.loads((tmp_path / "run/result.json").read_text())["metrics"]["student"]
    got = limbeck.load(tmp_path / "run", device="cpu").evaluate()
    told = [k for k in said if k not in ("agreement", "kl", "teacher_entropy") and said[k] == said[k]]
    assert {k: got[k] for k in told} == pytest.approx({k: said[k] for k in told}, rel=1e-6)


@pytest.mark.expensive
@pytest.mark.parametrize("form", ["safetensors", "onnx"])
@pytest.mark.parametrize("recipe", ["kd3", "fabric-rd", "bpkd", "token-kd", "minilm"])
def test_what_is_exported_is_what_was_reported(recipe: str, form: str, tmp_path: Path) -> None:
    run(tree_of(recipe), tmp_path / "run", quiet=True)
    student = limbeck.load(tmp_path / "run", device="cpu")
    exported = limbeck.load(limbeck_export(tmp_path / "run", form, tmp_path / "out"), device="cpu")
    given: Any = (
        ["one two three", "and four more words"]
        if recipe in ("token-kd", "minilm")
        else torch.rand(3, *student.about["input"])
    )
    if recipe == "minilm":
        given = [f"one {student.task.tokenizer.mask_token} three"]
    for mine, theirs in zip(student.predict(given), exported.predict(given), strict=True):
        numbers = {k for k, v in mine.items() if isinstance(v, float)}
        assert {k: theirs[k] for k in numbers} == pytest.approx({k: mine[k] for k in numbers}, rel=1e-4, abs=1e-5)
        assert theirs.get("label") == mine.get("label")


# --------------------------------------------------------------------------------------------------------------- refusals
def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says in the one line with which it ends."""
    assert main(words) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("limbeck: ")]
    assert len(err) == 1
    return err[0]


def test_bad_input_is_one_line(finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = finished
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    picture = str(next((data / "test").rglob("*.png")))
    cases: list[tuple[list[str], str]] = [
        ([str(folder), str(tmp_path / "broken.png")], "broken.png: cannot be read"),
        ([str(folder), str(tmp_path / "notes.txt")], "is not an image file"),
        ([str(folder), str(tmp_path / "missing.png")], "there is no such file"),
        ([str(folder), str(tmp_path / "empty")], "no images in this folder"),
        ([str(folder)], "FILE: is missing"),
        ([str(tmp_path / "empty"), picture], "holds no student.json"),
        ([str(folder) + "x", picture], "did you mean"),
        ([str(folder), picture, "--checkpoint", "newest"], "best, last, or"),
        ([str(folder), picture, "--out", str(tmp_path / "x.txt")], "ends in .csv or .jsonl"),
        ([str(folder), picture, "--device", "abacus"], "auto, cpu, cuda"),
        ([str(folder), picture, "--out", str(folder / "config.yaml/x.csv")], "is a file"),
    ]
    for words, said in cases:
        assert said in refused(["predict", *words], capsys), words
    assert not list(tmp_path.glob("*.csv"))
    assert "task.data: is missing" in refused(
        ["evaluate", str(limbeck_export(folder, "safetensors", tmp_path / "e"))], capsys
    )
    assert "only settings of the task" in refused(["evaluate", str(folder), "train.steps=3"], capsys)


def test_a_foreign_folder_runs_no_code_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "from torch import nn\ndef net(num_classes: int = 10) -> nn.Module:\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    (tmp_path / "net_of_somebody.py").write_text(code)
    task, _, folder, _ = made("classification", "import:net_of_somebody:net", tmp_path / "sent")
    file = write(tmp_path / "x.png", (task.test.fetch(torch.tensor([0]))["x"][0] * 255).to(torch.uint8))
    assert "net_of_somebody" in refused(["predict", str(folder), file], capsys)
    assert main(["predict", str(folder), file, "--trust"]) == 0
    assert main(["predict", str(folder), file]) == 0  # known from now on


def test_without_onnxruntime_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, folder, _ = made("classification", "mlp:[4]", tmp_path / "o")
    (folder / "student.onnx").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert "pip install 'limbeck[export]'" in refused(["predict", str(folder / "student.onnx"), "x.png"], capsys)


def test_a_module_that_a_program_held_is_handed_over(tmp_path: Path) -> None:
    task = make(Task, "classification", "task")
    task.load(0)
    torch.manual_seed(0)
    net: Callable[[], Any] = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))  # noqa: E731
    from limbeck.given import Given

    first = net()
    built = build_model(Given(first), task, 0, "student")
    NetworkArtifact(task, built).save(tmp_path)
    with pytest.raises(ConfigError, match="module=NET"):
        limbeck.load(tmp_path)
    found = limbeck.load(tmp_path, module=net())
    assert torch.equal(found.module[1].weight, first[1].weight)
