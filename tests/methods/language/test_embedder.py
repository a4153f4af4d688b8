"""Sentence embedders: folders in and out, readings, the two distances, the basis, correlation and ranks, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import limbeck
from limbeck.data.sentences import Example, SentenceTable
from limbeck.data.text_pairs import PythonFunctions
from limbeck.errors import CheckpointCorrupt, ConfigError, DataError
from limbeck.export import export
from limbeck.functional.embedding import (
    correlation,
    margin_distance,
    principal_basis,
    ranks_of,
    similarities,
    similarity_distance,
)
from limbeck.grammar.method import Setup
from limbeck.grammar.optim import Optim
from limbeck.methods.language.embedder import Embedder
from limbeck.models.embedder import SmallEmbedder
from limbeck.models.sentence_transformer import SentenceTransformer, spread
from limbeck.models.st_folder import read_layout, write_folder
from limbeck.networks.embedder import POOLS, DenseLayer, pooled
from limbeck.networks.embedder import Embedder as Network
from limbeck.recipe.recipe import build, check, load_tree
from limbeck.run.running import run
from limbeck.tasks.embedding import Embedding, TextRows, names_of, same_similarities
from limbeck.tasks.text_pairs import TextPairs
from tests.parts.texts import start
from tests.tiny import tree_of

WORDS = [
    "red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "fast", "slow",
    "far", "near", "old", "new", "small", "large", "bright", "dark", "warm", "cold",
]  # fmt: skip


def drawn(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Drawn pairs: the score is the share of words that the two have in common."""
    g = torch.Generator().manual_seed(seed)

    def words(k: int) -> list[str]:
        return [WORDS[i] for i in torch.randint(len(WORDS), (k,), generator=g).tolist()]

    rows = []
    for i in range(n):
        same = i % 5
        first = words(4)
        second = [*first[:same], *words(4 - same)]
        rows.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": same / 4})
    return rows


def table(folder: Path, rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> str:
    (folder / name).write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return str(folder / name)


@cache
def folder_of(place: str) -> Path:
    """A folder of sentence-transformers with four layers, a dense layer and lengths of one."""
    torch.manual_seed(0)
    path = Path(place) / "table"
    path.mkdir()
    task = Embedding(SentenceTable(path=table(path, drawn(60))), vocab_size=320, length=16)
    built = SmallEmbedder(layers=4, width=16, heads=2, dimensions=8).build(task)
    built.module.dense[0] = DenseLayer(16, 8, True, "torch.nn.modules.activation.Tanh")
    built.model.save(built.module, Path(place))
    return Path(place) / "student"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(str(tmp_path_factory.mktemp("st")))


def task_on(place: Path, rows: list[dict[str, Any]] | None = None, **more: Any) -> Embedding:
    task = Embedding(SentenceTable(path=table(place, rows or drawn(60))), **{"length": 16, "vocab_size": 320, **more})
    task.load(0)
    return task


# --------------------------------------------------------------------------------------------------------- mathematics
def test_similarities_apart_are_the_loops_and_no_rotation_changes_them() -> None:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(5, d, dtype=torch.float64, generator=g) for d in (3, 7))
    cos = torch.nn.functional.cosine_similarity
    want = [sum(float(cos(s[i], s[j], 0) - cos(t[i], t[j], 0)) ** 2 for j in range(5)) / 5 for i in range(5)]
    torch.testing.assert_close(similarity_distance(s, t), torch.tensor(want, dtype=torch.float64))
    q, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=g))
    assert similarity_distance(3 * t @ q, t).max() < 1e-12 and similarity_distance(t @ q, t, cosine=False).max() < 1e-12
    assert similarity_distance(3 * t @ q, t, cosine=False).min() > 1
    part = similarity_distance(s[:2], t[:2], students=s, teachers=t)
    torch.testing.assert_close(part, similarity_distance(s, t)[:2])
    assert torch.autograd.gradcheck(lambda x: similarity_distance(x, t), s.requires_grad_())


def test_margins_alone_count() -> None:
    x = [torch.randn(6, dtype=torch.float64) for _ in range(4)]
    torch.testing.assert_close(margin_distance(*x), (x[0] - x[1] - x[2] + x[3]) ** 2)
    torch.testing.assert_close(margin_distance(x[0] + 5, x[1] + 5, x[2], x[3]), margin_distance(*x))
    assert torch.autograd.gradcheck(margin_distance, [v.requires_grad_() for v in x])


def test_the_basis_keeps_more_of_the_dot_products_than_others() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, dtype=torch.float64, generator=g) * torch.tensor([5.0, 1, 3, 0.1, 2, 0.5]) + 1

    def lost(basis: Tensor) -> float:
        return float((x @ x.T - x @ basis.T @ basis @ x.T).norm())

    found = principal_basis(x.T @ x, 3)
    torch.testing.assert_close(found @ found.T, torch.eye(3, dtype=torch.float64))
    for _ in range(20):
        other = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64, generator=g))[0].T
        assert lost(found) < lost(other)
    values = torch.linalg.svdvals(x)
    assert lost(found) == pytest.approx(float(values[3:].square().norm()), rel=1e-6)


def test_correlations_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(2)
    x, y = torch.randint(5, (30,), generator=g).float(), torch.randn(30, generator=g)
    assert ranks_of(x).tolist() == stats.rankdata(x.numpy()).tolist()
    assert correlation(x, y, ranked=True) == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic)
    assert correlation(x, y) == pytest.approx(stats.pearsonr(x.numpy(), y.numpy()).statistic, abs=1e-6)
    assert correlation(torch.ones(4), y[:4]) == 0


@pytest.mark.parametrize("how", POOLS)
def test_pooling_does_not_see_padding(how: Any) -> None:
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    alone, both = pooled(states[:1, :3], mask[:1, :3], how), pooled(states, mask, how)
    torch.testing.assert_close(both[:1], alone)
    left = pooled(states[:1].roll(2, 1), mask[:1].roll(2, 1), how)
    torch.testing.assert_close(left, alone)


# -------------------------------------------------------------------------------------------------------------- folders
def test_a_folder_opens_in_sentence_transformers_with_the_same_vectors(folder: Path, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    theirs = st.SentenceTransformer(str(folder), device="cpu")
    task = task_on(tmp_path)
    built = SentenceTransformer(str(folder)).build(task)
    mine = task.vectors(built, task.test)
    for k in range(2):
        want = theirs.encode([e.texts[k] for e in task.test.examples], convert_to_tensor=True)
        torch.testing.assert_close(mine[:, k], want, atol=1e-5, rtol=1e-4)
    assert theirs.max_seq_length == 16 and theirs.get_embedding_dimension() == 8


@pytest.mark.parametrize("how", POOLS)
def test_every_pooling_is_that_of_sentence_transformers(folder: Path, tmp_path: Path, how: Any) -> None:
    st = pytest.importorskip("sentence_transformers")
    task = task_on(tmp_path)
    built = SentenceTransformer(str(folder)).build(task)
    net: Network = built.module
    net.pooling, net.normalise = (how, "mean") if how == "max" else (how,), False
    net.dense = torch.nn.ModuleList()
    model: Any = built.model
    write_folder(net, model.read_by, tmp_path / "out", 16, "dot", prompt="say: ")
    said = read_layout(tmp_path / "out")
    assert said.pooling == net.pooling and not said.normalise and said.similarity == "dot" and said.prompt == "say: "
    theirs = st.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    texts = [e.texts[0] for e in task.test.examples]
    again = SentenceTransformer(str(tmp_path / "out")).build(task)
    mine = task.vectors(again, TextRows(task, [Example((t,)) for t in texts]))[:, 0]
    torch.testing.assert_close(mine, theirs.encode(texts, convert_to_tensor=True), atol=1e-5, rtol=1e-4)
    assert theirs.similarity_fn_name == "dot"


def test_fewer_layers_fewer_dimensions_and_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    task = task_on(tmp_path)
    whole = SentenceTransformer(str(folder)).build(task)
    model = SentenceTransformer(str(folder), layers=2, dimensions=4, tokenizer="trained")
    assert whole.model.trained and not model.trained
    torch.manual_seed(0)
    small = model.build(task)
    net, config = small.module, small.module.body.config
    assert config.num_hidden_layers == len(net.body.encoder.layer) == 2 and net.dimensions == 4
    for mine, theirs in zip((0, 1), (1, 3), strict=True):
        torch.testing.assert_close(
            net.body.encoder.layer[mine].state_dict(), whole.module.body.encoder.layer[theirs].state_dict()
        )
    model.save(net, tmp_path / "run")
    again = SentenceTransformer(str(tmp_path / "run")).build(task)
    torch.testing.assert_close(task.vectors(again, task.test), task.vectors(small, task.test))
    assert spread(3, 6) == [1, 3, 5] and spread(4, 4) == [0, 1, 2, 3]


def test_tokens_of_another_tokenizer_begin_where_they_are_spelt(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": w} for w in WORDS] * 3
    task = task_on(tmp_path, rows, vocab_size=310)
    own = SentenceTransformer(str(folder)).build(task)
    other = SentenceTransformer(str(folder), tokenizer="trained").build(task)
    a, b = own.model.read_by, other.model.read_by  # type: ignore[union-attr]
    assert a.get_vocab() != b.get_vocab() and own.module.reads != other.module.reads
    old, new = (m.module.body.get_input_embeddings().weight for m in (own, other))
    for i in range(len(b)):
        spelt = a(b.decode([i]), add_special_tokens=False)["input_ids"]
        if i not in b.all_special_ids and b.decode([i]).strip() and spelt:
            torch.testing.assert_close(new[i], old[spelt].mean(0))
    torch.testing.assert_close(new[b.pad_token_id], old[a.pad_token_id])


def change(place: Path, file: str, **values: Any) -> None:
    about = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps({**about, **values}))


def test_folders_that_cannot_be_read_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    task = task_on(tmp_path)

    def broken(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    with pytest.raises(ConfigError, match="Hub id"):
        SentenceTransformer(str(tmp_path / "nothing")).build(task)
    one = broken("a")
    (one / "modules.json").write_text(
        json.dumps([{"type": "x.Transformer", "path": ""}, {"type": "x.CNN", "path": "1"}])
    )
    with pytest.raises(ConfigError, match="CNN"):
        SentenceTransformer(str(one)).build(task)
    one = broken("b")
    change(one, "1_Pooling/config.json", pooling_mode="median")
    with pytest.raises(ConfigError, match="median"):
        SentenceTransformer(str(one)).build(task)
    one = broken("c")
    change(one, "2_Dense/config.json", activation_function="os.system")
    with pytest.raises(ConfigError, match=r"os\.system"):
        SentenceTransformer(str(one)).build(task)
    one = broken("d")
    (one / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match="weights"):
        SentenceTransformer(str(one)).build(task)
    one = broken("e")
    (one / "modules.json").write_text("[")
    with pytest.raises(CheckpointCorrupt, match=r"modules\.json"):
        SentenceTransformer(str(one)).build(task)
    with pytest.raises(ConfigError, match="at most as many"):
        SentenceTransformer(str(folder), layers=5).build(task)
    with pytest.raises(ConfigError, match="0 to 3"):
        SentenceTransformer(str(folder), keep=[1, 4]).build(task)


# ----------------------------------------------------------------------------------------------------------------- task
def test_each_network_reads_for_itself(folder: Path, tmp_path: Path) -> None:
    task = task_on(tmp_path)
    teacher = SentenceTransformer(str(folder)).build(task)
    student = SmallEmbedder(layers=1, width=8, heads=2, tokenizer="trained").build(task)
    same = SmallEmbedder(layers=1, width=8, heads=2).build(task)  # by the teacher's, as it names none
    assert (teacher.module.reads, student.module.reads, same.module.reads) == (
        0,
        0,
        0,
    )  # the folder's was trained here too
    other = task_on(tmp_path, vocab_size=310)
    one, two = SentenceTransformer(str(folder)).build(other), SmallEmbedder(width=8, tokenizer="trained").build(other)
    assert (one.module.reads, two.module.reads) == (0, 1)
    batch = other.train.fetch(torch.arange(3))
    assert {n for r in (0, 1) for k in (0, 1) for n in names_of(r, k)} | {"score"} == set(batch)
    ids = batch[names_of(1, 1)[0]]
    text = other.train.examples[0].texts[1]
    own = two.model.read_by(text)["input_ids"]  # type: ignore[union-attr]
    assert ids[0, : len(own)].tolist() == own


def test_scores_and_matches_are_evaluated(tmp_path: Path) -> None:
    rows = [
        {"query": f"{a} {b}", "answer": f"{b} {a}", "label": i % 2}
        for i, (a, b) in enumerate(zip(WORDS, WORDS[3:], strict=False))
    ]
    task = task_on(tmp_path, rows * 2, test_fraction=0.4)
    assert task.primary == "spearman" and task.matches
    built = SmallEmbedder(layers=1, width=8, heads=2).build(task)
    found = task.evaluate(built, task.test, built)
    v = task.vectors(built, task.test).double()
    cosine = torch.nn.functional.cosine_similarity(v[:, 0], v[:, 1])
    truth = torch.tensor([e.score for e in task.test.examples])
    assert found["spearman"] == pytest.approx(correlation(cosine, truth, ranked=True), abs=1e-6)
    texts = list(dict.fromkeys(e.texts[1] for e in task.test.examples))
    table_ = {e.texts[1]: v[i, 1] for i, e in enumerate(task.test.examples)}
    scores = similarities(v[:, 0], torch.stack([table_[t] for t in texts]))
    want = []
    for i, e in enumerate(task.test.examples):
        if e.score:
            own = scores[i, texts.index(e.texts[1])]
            want.append(1 / (1 + int((scores[i] > own + 1e-9).sum())))
    assert found["mrr"] == pytest.approx(sum(want) / len(want), rel=1e-6)
    assert found["teacher_similarity"] == pytest.approx(1.0)
    assert task_on(tmp_path, rows * 2, metric="mrr").primary == "mrr"
    graded = task_on(tmp_path, drawn(40))
    assert graded.primary == "spearman" and not graded.matches
    with pytest.raises(ConfigError, match=r"task\.metric"):
        task_on(tmp_path, drawn(40), metric="mrr")
    singles = task_on(tmp_path, [{"text": f"{w} {i}"} for i, w in enumerate(WORDS)])
    assert singles.primary == "teacher_similarity" and singles.texts_each == 1


def test_a_rotated_teacher_has_the_same_similarities() -> None:
    x = torch.randn(20, 6)
    q, _ = torch.linalg.qr(torch.randn(6, 6))
    assert same_similarities(2 * x @ q, x) == pytest.approx(1.0, abs=1e-3)
    assert same_similarities(torch.randn(20, 6), x) < 0.5


def test_tables_are_read_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 3, 5"):
        SentenceTable(
            path=table(tmp_path, [{**r, **({"sentence2": " "} if i in (2, 4) else {})} for i, r in enumerate(drawn(9))])
        ).read()
    with pytest.raises(DataError, match="no number"):
        SentenceTable(path=table(tmp_path, [{**r, "score": "high"} for r in drawn(4)])).read()
    with pytest.raises(DataError, match="did you mean 'sentence1'"):
        SentenceTable(path=table(tmp_path, drawn(4)), first="sentence_1").read()
    with pytest.raises(DataError, match="fewer than two"):
        SentenceTable(path=table(tmp_path, drawn(4))).deal(0.1, 0.2)
    triples = [{"query": "a", "positive": "b", "negative": "c", "split": s} for s in ("train", "dev", "test")]
    found, _ = SentenceTable(path=table(tmp_path, triples), split="split").read()
    assert {k: v[0].texts for k, v in found.items()} == dict.fromkeys(("train", "valid", "test"), ("a", "b", "c"))
    grouped = [{**r, "doc": i % 7} for i, r in enumerate(drawn(70))]
    dealt = SentenceTable(path=table(tmp_path, grouped), group="doc").deal(0.1, 0.2)
    parts = [{e.group for e in part} for part in (dealt.train, dealt.valid, dealt.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


# --------------------------------------------------------------------------------------------------------------- method
def bound(folder: Path, place: Path, student: dict[str, Any] | None = None, **changes: Any) -> tuple[Embedder, Any]:
    task = task_on(place)
    torch.manual_seed(0)
    teacher = SentenceTransformer(str(folder)).build(task)
    made = SmallEmbedder(**{"layers": 1, "width": 8, "heads": 2, **(student or {})}).build(task)
    method, ctx, _ = start(Embedder(**changes), Setup(task, made, teacher, Optim(steps=2, batch_size=4, lr=1e-2)))
    return method, ctx


def first_terms(method: Embedder, ctx: Any, t: Tensor, n: int = 4) -> tuple[Any, Tensor]:
    """The terms of a step beside recorded vectors, and the student's own."""
    method.targets = lambda ctx, items: t  # type: ignore[method-assign]
    batch = method.task.train.fetch(torch.arange(n)) | {"item": torch.arange(n), "view": torch.zeros(n).long()}
    phases = method.step(batch, ctx.at(0))
    found: Any = next(phases)
    s = found["s"].detach()
    return phases.send(type("Rows", (dict,), {})(found)), s


def test_the_terms_are_the_distances(folder: Path, tmp_path: Path) -> None:
    method, ctx = bound(folder, tmp_path, {"dimensions": 3})
    t = torch.nn.functional.normalize(torch.randn(4, 2, 8), dim=-1)
    method.basis = torch.linalg.qr(torch.randn(8, 3))[0].T
    terms, s = first_terms(method, ctx, t)
    kept = torch.nn.functional.normalize(t @ method.basis.T, dim=-1)
    torch.testing.assert_close(terms["vectors"].values.detach(), (s - kept).square().sum(-1).mean(1))
    flat_s, flat_t = s.flatten(0, 1), t.flatten(0, 1)
    torch.testing.assert_close(
        terms["similarities"].values.detach(), similarity_distance(flat_s, flat_t).view(4, 2).mean(1)
    )


def test_a_learned_projection_takes_any_dimensions(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.dimensions"):
        bound(folder, tmp_path, {"dimensions": 12})
    method, ctx = bound(folder, tmp_path, {"dimensions": 12}, reduce="learned", similarities=0.0)
    batch = method.task.train.fetch(torch.arange(4)) | {"item": torch.arange(4), "view": torch.zeros(4).long()}
    t = torch.nn.functional.normalize(torch.randn(4, 2, 8), dim=-1)
    method.targets = lambda ctx, items: t  # type: ignore[method-assign]
    terms: Any = next(method.step(batch, ctx.at(0)))
    assert list(terms) == ["vectors"] and set(terms["vectors"].to) == {"student", "projector"}
    assert [s.name for s in method.stages()] == ["record", "distil"]


def test_a_run_on_drawn_pairs_comes_near_its_teacher_and_out_as_a_folder(folder: Path, tmp_path: Path) -> None:
    path = table(tmp_path, drawn(120))
    tree = tree_of(
        "embedder", f"teacher=st:{folder}", f"student=st:{folder}", "student.layers=2", "student.dimensions=4",
        f"task.data=sentence-table:{path}", "task.vocab_size=310", "train.steps=30", "train.batch_size=16", "train.lr=0.01",
    )  # fmt: skip
    result = run(tree, tmp_path / "run", quiet=True)
    rows = result["metrics"]["rows"]
    assert {"spearman", "pearson"} <= set(rows["teacher"]) and set(rows) == {"student", "teacher", "alone"}
    assert rows["student"]["teacher_similarity"] > max(0.6, rows["alone"]["teacher_similarity"])
    again = limbeck.load(tmp_path / "run")
    one = again.predict(["red cat", "blue bird"])
    assert len(one) == 2
    export(tmp_path / "run", "safetensors", tmp_path / "out")
    st = pytest.importorskip("sentence_transformers")
    theirs = st.SentenceTransformer(str(tmp_path / "out" / "student"), device="cpu").encode(["red cat"])
    assert torch.allclose(torch.tensor(theirs[0]), torch.tensor(one[0]["vector"]), atol=1e-5)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("reduce", "method.reduce=pca"), ("vectors", "method.vectors=-1"), ("similarity", "task.similarity=l2"),
        ("scale", "task.scale=0"), ("metric", "task.metric=map"), ("dimensions", "student.dimensions=0"),
        ("pooling", "student.pooling=median"), ("heads", "student.heads=3"), ("student_items", "task.student_items=1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(said: str, words: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(check(load_tree("embedder", [words])))
    with pytest.raises(ConfigError, match="all 0"):
        build(check(load_tree("embedder", ["method={use: embedder, vectors: 0, similarities: 0}"])))


def test_another_task_and_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task=embedding"):
        SmallEmbedder().build(TextPairs(PythonFunctions(files=6), length=16))
    task = task_on(tmp_path)
    built = SmallEmbedder(layers=1, width=8, heads=2).build(task)
    task.match(built, built)
    other = replace(built, module=torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"^teacher: is no sentence embedder"):
        task.match(built, other)
