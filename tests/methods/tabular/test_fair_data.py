"""Fair data: independence and its limits, who learns from what, what is decoded from what, and bad tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.tables import Table as Csv
from limbeck.errors import ConfigError, DataError
from limbeck.functional.gaussian import distance_covariance, gaussian_kl, mmd, prior_kl
from limbeck.functional.tables import column_cross_entropy, group_rates, parity
from limbeck.methods.tabular.fair_data import FairData, Stratified
from limbeck.networks.table_vae import LOGVAR, Latent
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.running import run
from limbeck.tasks.table import Table
from tests.tiny import tiny, tree_of

D = torch.float64


def latents(n: int = 9, z: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mean, logvar = (torch.randn(n, z, generator=g, dtype=D).requires_grad_() for _ in range(2))
    return mean, logvar, torch.arange(n) % 3


def test_distance_covariance_by_its_definition_and_its_gradient() -> None:
    mean, logvar, s = latents()
    var, n = logvar.exp(), len(s)
    K = torch.ones(n, n, dtype=D)
    for d in range(mean.shape[1]):
        both = var[:, None, d] + var[None, :, d]
        K = K * torch.exp(-((mean[:, None, d] - mean[None, :, d]) ** 2) / (2 * both)) / (2 * torch.pi * both).sqrt()
    expected = sum(
        ((s == g).sum() / n) ** 2 * (K.mean() + K[s == g][:, s == g].mean() - 2 * K[:, s == g].mean()) for g in range(3)
    )
    torch.testing.assert_close(distance_covariance(mean, logvar, s).mean(), expected)
    torch.testing.assert_close(
        distance_covariance(mean, logvar, s, groups=5).mean(), expected
    )  # empty groups add nothing
    for eps in (0.0, 0.5):
        assert torch.autograd.gradcheck(lambda m, v, e=eps: distance_covariance(m, v, s, eps=e), (mean, logvar))
    halves = [distance_covariance(mean, logvar, s, own=slice(a, b)) for a, b in ((0, 4), (4, 9))]
    torch.testing.assert_close(torch.cat(halves), distance_covariance(mean, logvar, s))


def test_limits_of_the_terms() -> None:
    mean, logvar, s = (v.detach() for v in latents())
    assert float(distance_covariance(mean, logvar, torch.zeros(9, dtype=torch.long), groups=2).mean()) == 0
    same = mean[:1].expand(9, -1), logvar[:1].expand(9, -1)
    assert abs(float(distance_covariance(*same, s).mean())) < 1e-15
    assert float(distance_covariance(mean, logvar, s).mean()) > 0
    assert float(gaussian_kl(mean, logvar, mean, logvar).abs().max()) < 1e-12
    assert float(prior_kl(torch.zeros(1, 2), torch.zeros(1, 2))) == 0 and float(mmd(mean, mean)) == 0
    p, q = (torch.distributions.Normal(m, (v / 2).exp()) for m, v in ((mean, logvar), (mean + 1, logvar * 0.5)))
    forward = torch.distributions.kl_divergence(q, p).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, logvar, mean + 1, logvar * 0.5), forward)
    turned = gaussian_kl(mean, logvar, mean + 1, logvar * 0.5, direction="reverse")
    torch.testing.assert_close(turned, torch.distributions.kl_divergence(p, q).sum(-1))
    logits, codes = torch.randn(4, 5, dtype=D), torch.tensor([[0, 2], [1, 0], [0, 1], [1, 1]])
    by_hand = sum(
        torch.nn.functional.cross_entropy(part, codes[:, k], reduction="none")
        for k, part in enumerate(logits.split([2, 3], 1))
    )
    torch.testing.assert_close(column_cross_entropy(logits, codes, [2, 3]), by_hand)


def test_parity_is_fairlearns_where_it_is_defined() -> None:
    metrics = pytest.importorskip("fairlearn.metrics")
    rng = np.random.default_rng(0)
    for groups in (2, 4):
        y, told, s = (rng.integers(0, k, 200) for k in (2, 2, groups))
        found = parity(group_rates(*map(torch.from_numpy, (y, told, s))))
        for name, theirs in (
            ("dpr", metrics.demographic_parity_ratio),
            ("dpd", metrics.demographic_parity_difference),
            ("eor", metrics.equalized_odds_ratio),
            ("eod", metrics.equalized_odds_difference),
        ):
            assert getattr(found, name) == pytest.approx(theirs(y, told, sensitive_features=s))


def test_quality_and_utility_reach_the_student_alone() -> None:
    student, teacher = (Latent(*latents(seed=i)[:2]) for i in range(2))
    eps = torch.randn(9, 3, dtype=D)
    for settings in ({"quality": "l1"}, {"quality": "mmd"}, {"quality_on": "sample"}, {"utility": "reverse_kl"}):
        method = FairData(**settings)  # type: ignore[arg-type]
        total = method.quality_of(student, teacher, eps).mean() + method.utility_of(student, teacher).mean()
        found = torch.autograd.grad(total, [*student, *teacher], allow_unused=True)
        assert found[0] is not None and found[2] is None and found[3] is None


@pytest.mark.parametrize(
    "words",
    [
        ("method.generator=gan", "method.latent_train.steps=2"),
        ("method.generator=ddpm", "method.latent_train.steps=2", "method.input=noise"),
        ("method.generator=prior", "method.decode=argmax", "method.y_from=z_and_s"),
        ("method.utility=label_ce", "method.quality=none", "method.stratified=true", "student.sees_protected=false"),
        ("method.quality=mmd", "method.variant=released", "method.s_sampling=uniform", "method.size=50"),
    ],
)
def test_every_switch_runs_and_draws(words: tuple[str, ...], tmp_path: Path) -> None:
    made = tiny("fair-data", tmp_path, *words).run()
    rows = made.method.artifact().rows()  # type: ignore[attr-defined]
    assert len(rows.y) == (50 if "method.size=50" in words else len(made.bench.task.teacher_train))
    assert np.isfinite(rows.values).all() and set(rows.s) <= {0, 1}


def test_the_label_does_not_see_the_group_and_rows_are_redrawn(tmp_path: Path) -> None:
    method: Any = tiny("fair-data", tmp_path).method
    z, s = torch.randn(6, method.z), torch.zeros(6, dtype=torch.long)
    decoder = method.roles["decoder"].module
    a, b = decoder(z, s), decoder(z, s + 1)
    k = method.task.outputs
    assert torch.equal(a[:, -k:], b[:, -k:]) and not torch.equal(a[:, :-k], b[:, :-k])
    first, again, other = (method.draw("student", i) for i in (0, 0, 1))
    assert np.array_equal(first.values, again.values) and not np.array_equal(first.values, other.values)
    extreme = method.encoder("student").posterior(torch.full((1, 2 * method.z), 1e4))
    assert float(extreme.logvar.max()) == LOGVAR
    order = Stratified(method.task.teacher_train, method.task)
    share = method.task.groups_of(order)[:20].float().mean() - method.task.groups_of(order).float().mean()
    assert abs(float(share)) <= 0.05


def test_the_table_is_saved_exported_and_read_back(tmp_path: Path) -> None:
    from limbeck.export import export

    result = run(
        tree_of("fair-data", "evaluator.baselines=[real, independent, reweighed]"), tmp_path / "run", quiet=True
    )
    assert list(result["metrics"]["rows"]) == ["student", "teacher", "real", "independent", "reweighed"]
    assert {"dpr", "eor", "auroc", "f1", "density", "alpha_precision"} <= set(result["metrics"]["student"])
    assert (tmp_path / "run" / "columns.png").is_file() and (tmp_path / "run" / "parity.png").is_file()
    about = json.loads((tmp_path / "run" / "student.json").read_text())
    assert about["groups"] == ["above", "below"] and about["favourable"] == "virginica"
    for form in ("csv", "parquet"):
        export(tmp_path / "run", form)
    found = json.loads((tmp_path / "run" / "result.json").read_text())["exports"]
    assert all("every value is as it was made" in found[f]["note"] for f in ("csv", "parquet"))


def table(tmp_path: Path, text: str, **settings: Any) -> Table:
    (tmp_path / "t.csv").write_text(text)
    task = Table(**{"data": Csv(str(tmp_path / "t.csv")), "target": "y", "protected": "s", **settings})
    task.load()
    return task


def rows(n: int = 40, **columns: Any) -> str:
    made = {"a": range(n), "b": ["p", "q"] * n, "s": ["f", "m", "m"] * n, "y": ["no", "yes", "no", "yes", "yes"] * n}
    made |= columns
    lines = zip(*(list(c)[:n] for c in made.values()), strict=True)
    return "\n".join([",".join(made), *(",".join(map(str, line)) for line in lines)])


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"s": ["f"] * 40}, {}, "one value only: 'f'"),
        ({"s": ["f", ""] * 40}, {}, "1 cells are empty|20 cells are empty"),
        ({"s": range(40)}, {}, "40 different values"),
        ({}, {"target": "z"}, "'z'"),
        ({}, {"protected": "sx"}, "task.protected"),
        ({}, {"positive": "maybe"}, "task.positive"),
        ({}, {"categories": ["s"]}, "protected attribute, which is no feature"),
        ({"b": [f"n{i}" for i in range(40)]}, {}, "identifiers or free text"),
        ({"a": ["1"] * 39 + [""]}, {"numbers": ["a"]}, "no finite number at line 41"),
        (
            {"b": ["p", "q"] * 19 + ["p", "new"], "split": ["train"] * 39 + ["test"]},
            {},
            "no training row has, at line 41",
        ),
    ],
)
def test_bad_tables_are_refused(columns: Any, settings: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, ConfigError), match=said):
        table(tmp_path, rows(**columns), **settings)


def test_types_bins_groups_and_leaks(tmp_path: Path) -> None:
    gain = [0] * 32 + list(range(1, 9))
    task = table(tmp_path, rows(copy=["x", "z", "z"] * 40, gain=gain), bins=2)
    kinds = {c.name: (c.number, c.width) for c in task.columns}
    assert kinds == {"a": (True, 2), "b": (False, 2), "copy": (False, 2), "gain": (True, 2)} and task.shape == (8,)
    assert any("copy tells the protected attribute of every row" in n for n in task.notes)
    both = table(tmp_path, rows(), protected=["s", "b"], bins=0)
    assert len(both.groups) == 4 and both.shape == (1,) and "f and p" in both.groups
    with pytest.raises(ConfigError, match=r"task\.bins"):
        FairData().accept(both)
    wide = table(tmp_path, rows(a=[10**i for i in range(8)] * 5), bins=3, binning="width", log=["a"])
    assert wide.columns[0].width == 3
    assert table(tmp_path, rows(), drop=["b"]).order == ["a", "s", "y"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.quality=none", "method.utility=none"], "nothing"),
        (["method.utility=label_ce", "method.y_from=z_and_s"], "y_from"),
        (["method.beta=-1"], "method.beta"),
        (["task.protected=class"], "protected"),
    ],
)
def test_settings_that_cannot_be_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("fair-data", words)))


def test_what_is_refused_or_warned_of_when_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.latent"):
        tiny("fair-data", tmp_path, "student.latent=2")
    with pytest.raises(ConfigError, match="encoder of rows"):
        tiny("fair-data", tmp_path, "student=mlp:[4]")
    notes = tiny("fair-data", tmp_path, "method.beta=7", "method.vae.batch_size=2").method.notes  # type: ignore[attr-defined]
    assert "1e7" in notes[0] and "is missing from" in notes[1]
    with pytest.raises(ConfigError, match="columns with names"):
        tiny("fair-data", tmp_path, "task.data=digits")


def test_a_network_learns_a_table_and_its_parity_is_told(tmp_path: Path) -> None:
    tree = load_tree(
        "kd", ["task={use: table}", "student=mlp:[4]", "teacher=sklearn:tree", "train.steps=5", "loggers=[]"]
    )
    result = run(check(tree), tmp_path, quiet=True)
    assert {"dpr", "eor"} <= set(result["metrics"]["student"]) and result["metrics"]["teacher"]["accuracy"] > 0.8
