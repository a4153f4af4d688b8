"""Estimators as teachers: held in Python, in safe files, fitted by name; pickles are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import limbeck
from limbeck.data.tables import ScikitTable
from limbeck.data.tables import Table as CsvTable
from limbeck.errors import ConfigError, DataError, TeacherMismatch
from limbeck.models.predictor import GivenEstimator, Predictor, PredictorModel, SklearnModel, open_estimator
from limbeck.tasks.classification import Classification
from limbeck.tasks.table import Table


def wine() -> Classification:
    task = Classification(ScikitTable("wine"))
    task.load()
    return task


def rows_of(task: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    batch = task.teacher_train.fetch(torch.arange(len(task.teacher_train)))
    return batch["x"].numpy(), batch["y"].numpy()


def test_a_fitted_estimator_teaches_a_network() -> None:
    from sklearn.ensemble import RandomForestClassifier

    task = wine()
    x, y = rows_of(task)
    forest = RandomForestClassifier(20, random_state=0).fit(x, np.array(task.labels)[y])
    done = limbeck.distill(
        teacher=forest, student="mlp:[8]", data="scikit-learn:wine", method="kd", steps=20, quiet=True
    )
    assert done.metrics["teacher"]["accuracy"] > 0.8 and 0 <= done.metrics["student"]["agreement"] <= 1
    z = GivenEstimator(forest).build(task).module.answer(task.example(5)).logits
    torch.testing.assert_close(z.exp().double(), torch.from_numpy(forest.predict_proba(x[:5])), atol=1e-6, rtol=0)


def test_classes_are_matched_by_name_in_whatever_order() -> None:
    from sklearn.tree import DecisionTreeClassifier

    task = wine()
    x, y = rows_of(task)
    names = np.array([f"z{n}" if n == "class_0" else n for n in task.labels])
    tree = DecisionTreeClassifier().fit(x, names[y])
    with pytest.raises(TeacherMismatch, match="class_0"):
        GivenEstimator(tree).build(task)
    given = [{"zclass_0": "class_0"}.get(str(c), str(c)) for c in tree.classes_]
    z = GivenEstimator(tree, given).build(task).module.answer(task.example(9)).logits
    assert (z.argmax(1).numpy() == y[:9]).all()


def test_numbers_and_several_labels() -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.neighbors import KNeighborsClassifier

    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = (2 * x[:, 0] - x[:, 1] + 5).astype(np.float32)
    fitted = LinearRegression().fit(x, y)
    done = limbeck.distill(teacher=fitted, student="mlp:[8]", data=(x, y), method="kd", steps=5, quiet=True)
    assert done.metrics["teacher"]["r2"] > 0.999
    many = np.stack([x[:, 0] > 0, x[:, 1] > 0], 1).astype(np.float32)
    knn = KNeighborsClassifier(3).fit(x, many.astype(int))
    done = limbeck.distill(teacher=knn, student="mlp:[8]", data=(x, many), method="kd", steps=5, quiet=True)
    assert done.metrics["teacher"]["f1"] > 0.7


def test_a_table_of_text_and_numbers_is_asked_in_its_own_columns(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"n": rng.normal(size=120), "job": rng.choice(["cook", "smith"], 120)})
    frame["sex"] = rng.choice(["a", "b"], 120)
    frame["ok"] = np.where(frame.n + (frame.job == "cook") > 0.5, "yes", "no")
    frame.to_csv(tmp_path / "t.csv", index=False)
    hot = make_column_transformer((OneHotEncoder(), ["job"]), remainder="passthrough")
    fitted = make_pipeline(hot, LogisticRegression()).fit(frame[["n", "job"]], frame.ok)
    where = {"use": "table", "data": f"csv:{tmp_path / 't.csv'}", "target": "ok", "protected": "sex"}
    done = limbeck.distill(teacher=fitted, student="mlp:[8]", method="kd", task=where, steps=5, quiet=True)
    assert done.metrics["teacher"]["accuracy"] > 0.8 and "dpr" in done.metrics["student"]
    held = {**where, "data": {"use": "csv", "path": str(tmp_path / "t.csv")}}
    done = limbeck.distill(teacher="sklearn:forest", student="mlp:[8]", method="kd", task=held, steps=5, quiet=True)
    assert done.metrics["teacher"]["accuracy"] > 0.9
    task = Table(CsvTable(str(tmp_path / "t.csv")), target="ok", protected="sex")
    with pytest.raises(TeacherMismatch, match="height"):
        Predictor(LogisticRegression().fit(frame[["n"]].rename(columns={"n": "height"}), frame.ok), task)


def test_files_without_code_and_no_pickle(tmp_path: Path) -> None:
    from sklearn.naive_bayes import GaussianNB

    task = wine()
    x, y = rows_of(task)
    fitted = GaussianNB().fit(x, np.array(task.labels)[y])
    (tmp_path / "m.joblib").write_bytes(pickle.dumps(fitted))
    (tmp_path / "m.skops").write_bytes(pickle.dumps(fitted, protocol=4))
    for name in ("m.joblib", "m.skops"):
        with pytest.raises(ConfigError, match="limbeck opens none"):
            open_estimator(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        open_estimator(tmp_path / "none.skops")
    (tmp_path / "m.txt").write_text("x")
    with pytest.raises(ConfigError, match="no known kind"):
        open_estimator(tmp_path / "m.txt")
    (tmp_path / "m.json").write_text("{}")
    pytest.importorskip("xgboost")
    with pytest.raises(ConfigError, match="no model of XGBoost"):
        open_estimator(tmp_path / "m.json")
    io = pytest.importorskip("skops.io")
    io.dump(fitted, tmp_path / "good.skops")
    z = PredictorModel(str(tmp_path / "good.skops")).build(task).module.answer(task.example(4)).logits
    torch.testing.assert_close(z.exp(), torch.from_numpy(fitted.predict_proba(x[:4])).float(), atol=1e-6, rtol=0)


def test_xgboost_and_onnx(tmp_path: Path) -> None:
    task = wine()
    x, y = rows_of(task)
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(x, y)
    booster.save_model(tmp_path / "b.json")
    names = list(task.labels or [])
    z = PredictorModel(str(tmp_path / "b.json"), labels=names).build(task).module.answer(task.example(30)).logits
    assert (z.argmax(1).numpy() == y[:30]).mean() > 0.9
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("Softmax", ["s"], ["p"], axis=1)
    times = onnx.helper.make_node("MatMul", ["x", "w"], ["s"])
    w = onnx.numpy_helper.from_array(np.zeros((13, 3), dtype=np.float32), "w")
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(n, kind, ["N", d]) for n, d in (("x", 13), ("p", 3))]
    graph = onnx.helper.make_graph([times, node], "g", ends[:1], ends[1:], [w])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "m.onnx",
    )
    z = PredictorModel(str(tmp_path / "m.onnx")).build(task).module.answer(task.example(2)).logits
    torch.testing.assert_close(z.exp(), torch.full((2, 3), 1 / 3))


class _Plain:
    """An estimator that only decides."""

    def predict(self, x: Any) -> Any:
        return x


def test_what_cannot_teach_is_named() -> None:
    from sklearn.naive_bayes import GaussianNB

    task = wine()
    x, y = rows_of(task)
    with pytest.raises(ConfigError, match="predict_proba"):
        GivenEstimator(_Plain()).build(task)
    with pytest.raises(TeacherMismatch, match="fitted on 5 features"):
        GivenEstimator(GaussianNB().fit(x[:, :5], y)).build(task)
    with pytest.raises(ConfigError, match="fitted"):
        GivenEstimator(GaussianNB()).build(task)
    with pytest.raises(ConfigError, match="no activations"):
        SklearnModel("tree").build(task).module.answer(task.example(2), ("fc1",))
    with pytest.raises(ConfigError, match="does not take"):
        SklearnModel("tree", {"trees": 3}).build(task)
