"""Recorded vectors of the published implementations, recomputed through limbeck: values and gradients."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent


def _sibling(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"limbeck_golden_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden_dir = _sibling("conftest").golden_dir
ADAPTERS = _sibling("adapters").ADAPTERS


def find_cases(root: Path) -> list[tuple[Path, str, dict[str, Any]]]:
    """(folder, slug, case) of every case under ``root``, which may also be one slug's folder."""
    files = [root / "cases.json"] if (root / "cases.json").is_file() else sorted(root.glob("*/cases.json"))
    found = []
    for file in files:
        listing = json.loads(file.read_text(encoding="utf-8"))
        found += [(file.parent, listing["slug"], case) for case in listing["cases"]]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"folder", "slug", "case"} <= set(metafunc.fixturenames):
        cases = find_cases(golden_dir(metafunc.config))
        ids = [f"{folder.name}-{case['case']}" for folder, _, case in cases]
        metafunc.parametrize(("folder", "slug", "case"), cases, ids=ids)


def run_case(folder: Path, slug: str, case: dict[str, Any], adapters: dict[str, Any]) -> list[str]:
    """What is wrong with one case, in words; empty when it holds."""
    key = f"{slug}:{case['function']}"
    adapter = adapters.get(key)
    if adapter is None:
        known = sorted(name for name in adapters if name.startswith(f"{slug}:"))
        return [f"no adapter for {key!r}; of this slug there are: {', '.join(known) or 'none'}"]
    with np.load(folder / case["file"], allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    hyper = dict(case["hyperparameters"])
    if case.get("side"):
        hyper["side"] = json.loads((folder / case["side"]).read_text(encoding="utf-8"))
    # An adapter sees the inputs alone: it cannot hand back what was recorded.
    got = adapter({name: arrays[name].copy() for name in case["inputs"]}, hyper)
    wrong = []
    for name in case["expected"]:
        if name not in got:
            wrong.append(f"{name}: not returned")
            continue
        expected, value = arrays[name], np.asarray(got[name])
        if value.shape != expected.shape:
            wrong.append(f"{name}: shape {value.shape}, expected {expected.shape}")
        elif not np.allclose(value, expected, rtol=case["rtol"], atol=case["atol"], equal_nan=True):
            with np.errstate(invalid="ignore"):  # infinity minus infinity
                gap = np.abs(value.astype(np.float64) - expected.astype(np.float64))
            error, strange = gap[np.isfinite(gap)].max(initial=0.0), int((~np.isfinite(gap)).sum())
            words = f" and {strange} not comparable" if strange else ""
            wrong.append(f"{name}: off by up to {error:.3g}{words} (rtol {case['rtol']:g}, atol {case['atol']:g})")
    return wrong + (getattr(adapter, "doubts", []) if wrong else [])


def test_case(folder: Path, slug: str, case: dict[str, Any]) -> None:
    wrong = run_case(folder, slug, case, ADAPTERS)
    if folder.parent == HERE / "vectors":  # the open cases are known to the last word
        wrong = wrong or ADAPTERS[f"{slug}:{case['function']}"].doubts
    assert not wrong, f"{slug} {case['case']} ({case['function']}): " + "; ".join(wrong)


def test_folder_holds_cases(pytestconfig: pytest.Config) -> None:
    root = golden_dir(pytestconfig)
    assert find_cases(root), f"no cases.json under {root}"


def test_a_missing_adapter_and_a_wrong_number_are_failures() -> None:
    folder, slug, case = find_cases(HERE / "vectors" / "nkd-uskd")[0]
    missing = f"no adapter for '{slug}:{case['function']}'; of this slug there are: "
    assert run_case(folder, slug, case, {}) == [missing + "none"]
    assert run_case(folder, slug, case, {f"{slug}:other": None, "else:other": None}) == [missing + f"{slug}:other"]

    def bent(arrays: dict[str, np.ndarray], hyper: dict[str, Any]) -> dict[str, np.ndarray]:
        right = ADAPTERS[f"{slug}:{case['function']}"](arrays, hyper)
        return {"out_loss": right["out_loss"] * 1.001}

    wrong = run_case(folder, slug, case, {f"{slug}:{case['function']}": bent})
    assert len(wrong) == 2 and wrong[0].startswith("out_loss: off by") and wrong[1] == "out_grad_logit_s: not returned"


def _tokens(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = {k: rng.normal(0, 2, (2, 4, 7)).astype(np.float32) for k in ("student_logits", "teacher_logits")}
    return logits | {"mask": np.array([[1, 0, 1, 1], [1, 1, 1, 0]]), "labels": rng.integers(0, 7, (2, 4))}


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_adapters_of_baselines_that_were_not_recorded() -> None:
    """TAID also ships DKD and CTKD: their adapters are held to the formulas, without official numbers."""
    arrays = _tokens(0)
    T, alpha, beta = 2.0, 0.7, 3.0
    got = ADAPTERS["taid:src/distil_losses/dkd.py:DKD"](arrays, {"alpha": alpha, "beta": beta, "temperature": T})
    total = 0.0
    for at in np.argwhere(arrays["mask"]):
        y = arrays["labels"][tuple(at)]
        z_q, z_p = (arrays[k][tuple(at)] / T for k in ("student_logits", "teacher_logits"))
        q, p = _softmax(z_q), _softmax(z_p)
        pair_q, pair_p = np.array([q[y], 1 - q[y]]), np.array([p[y], 1 - p[y]])
        rest_q, rest_p = _softmax(np.delete(z_q, y)), _softmax(np.delete(z_p, y))
        total += alpha * (pair_p * np.log(pair_p / pair_q)).sum() + beta * (rest_p * np.log(rest_p / rest_q)).sum()
    np.testing.assert_allclose(got["loss"], T * T * total / arrays["mask"].size, rtol=1e-5)

    hyper = {"epoch": 3, "num_loops": 10, "lambda_max": 1.0, "lambda_min": 0.0, "temp_start": 1.0, "temp_end": 20.0}

    def value(raw: float) -> float:
        T = 1.0 + 20.0 / (1.0 + np.exp(-raw))
        q, p = (_softmax(arrays[k] / T) for k in ("student_logits", "teacher_logits"))
        return float(-T * T * ((p * np.log(q)).sum(-1) * arrays["mask"]).sum() / arrays["mask"].sum())

    got = ADAPTERS["taid:src/distil_losses/ctkd.py:CTKD"](arrays, hyper)
    factor = 0.5 * (1 + np.cos(0.3 * np.pi))
    np.testing.assert_allclose(got["loss"], value(1.0), rtol=1e-5)
    slope = (value(1.0 + 1e-4) - value(1.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(got["grad_temperature"], factor * slope, rtol=1e-4)


def test_no_two_cases_record_the_same_thing() -> None:
    seen: dict[bytes, str] = {}
    for folder, slug, case in find_cases(HERE / "vectors"):
        with np.load(folder / case["file"], allow_pickle=False) as stored:
            numbers = b"".join(stored[name].tobytes() for name in sorted(case["expected"]))
        print_ = slug.encode() + numbers  # short answers of two systems may agree by chance
        name = f"{slug} {case['case']}"
        assert print_ not in seen, f"{name} and {seen[print_]} expect the same numbers"
        seen[print_] = name
