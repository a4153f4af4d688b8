"""ModularStarEncoder: exits and their weights, truncation, contexts, retrieval, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.data.text_pairs import Pair, PairTable, functions_of, renamed
from limbeck.engine.context import RunContext
from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.functional.contrast import paired_info_nce
from limbeck.functional.pooling import pool_tokens
from limbeck.grammar.method import Gather, Gathered, Terms
from limbeck.grammar.role import cast
from limbeck.methods.language.modular_starencoder import ModularStarEncoder, PretrainingHeads, Windows
from limbeck.networks.multi_exit import CodeEncoder, MultiExit
from limbeck.tasks.text_pairs import FOR_TEXT, TextPairs, ranks
from tests.tiny import Tiny, differences, tiny

NAME = "modular-starencoder"


def net(exits: Any = (1, 2, 3), **more: Any) -> MultiExit:
    torch.manual_seed(0)
    return MultiExit(CodeEncoder(40, 16, 3, 4, 2, 24, dropout=0.0), list(exits), **more)


def at(made: Tiny, stage: str) -> tuple[dict[str, Any], RunContext]:
    """The first batch of a stage, and the context of its first step."""
    made.engine.prepare(made.method)
    (found,) = (s for s in made.engine.stages if s.name == stage)
    batch = next(iter(made.engine.batches(found, 0, 1)))[0]
    cast(made.method.roles, tuple(found.optim))
    return batch, RunContext(made.engine, made.method, found, made.engine.device).at(0)


def retrieved(made: Tiny) -> tuple[Terms, dict[str, Any], RunContext]:
    batch, ctx = at(made, "retrieve")
    steps: Any = made.method.step(batch, ctx)
    asked = next(steps)
    assert isinstance(asked, Gather)
    return steps.send(Gathered(asked)), batch, ctx


IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 9, 9, 8]])


def test_the_encoder_is_starcoder_2_without_its_mask() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Starcoder2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5, rope_theta=1e6, max_position_embeddings=64, use_bias=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, sliding_window=None, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    own = net().encoder.eval()
    theirs = transformers.Starcoder2Model(config).eval()
    theirs.load_state_dict(own.state_dict())
    ids = IDS[1:]
    everything = torch.zeros(1, 1, 5, 5)  # added to the scores: nobody is hidden from anybody
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=everything, output_hidden_states=True).hidden_states
        found = own.states(ids, [1, 2, 3])
    for i in (1, 2, 3):
        torch.testing.assert_close(found[i - 1], want[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normalise", ["unit", "at_least_one"])
def test_a_cut_network_answers_as_the_exit_it_was_cut_behind(shared: bool, normalise: Any) -> None:
    whole = net((1, 3), shared=shared, normalise=normalise).eval()
    with torch.no_grad():
        every = whole.every(IDS)
        for e, exit in enumerate((1, 3)):
            part = whole.cut(exit)
            assert torch.equal(part(IDS), every[e]) and len(part.encoder.layers) == exit
            assert len(part.heads) == 1 and part.exits == [exit]
        assert torch.equal(whole(IDS), every[-1])
        part.encoder.embed_tokens.weight.zero_()  # a copy, which leaves the whole as it is
        assert torch.equal(whole.every(IDS), every)
    with pytest.raises(ConfigError, match=r"exit.*got 2.*\[1, 3\]"):
        whole.cut(2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_tokens_are_projected_pooled_and_normalised_in_this_order(pooling: Any) -> None:
    model = net(pooling=pooling).eval()
    with torch.no_grad():
        states = model.states(IDS)
        for e, exit in enumerate(model.exits):
            projected = model.head(exit)(states[e])
            pooled = pool_tokens(projected, IDS != 0, pooling)
            torch.testing.assert_close(model.every(IDS)[e], nn.functional.normalize(pooled, dim=-1))
        padded = nn.functional.pad(IDS, (3, 0))
        torch.testing.assert_close(
            model.every(padded), model.every(IDS), rtol=1e-4, atol=1e-5
        )  # positions are relative
        right = torch.tensor([[5, 6, 7, 0, 0]])
        torch.testing.assert_close(model(right), model(IDS[:1]), rtol=1e-4, atol=1e-5)  # on either side
    short = net(normalise="at_least_one").eval()
    with torch.no_grad():
        for head in short.heads.values():
            head.weight.mul_(0.01)  # type: ignore[operator, union-attr]
        assert float(short(IDS).norm(dim=-1).max()) < 0.9


def test_a_loss_reaches_the_layers_below_its_exit_and_no_other() -> None:
    for detach in (False, True):
        model = net()
        for e, exit in enumerate(model.exits):
            model.zero_grad()
            model.every(IDS, detach)[e].sum().backward()
            for i, layer in enumerate(model.encoder.layers, 1):
                reached = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in layer.parameters())
                assert reached == (i == exit if detach else i <= exit), (detach, exit, i)
            heads = [n for n, h in model.heads.items() if h.weight.grad is not None and bool(h.weight.grad.any())]  # type: ignore[union-attr, operator]
            assert heads == [str(exit)]


@pytest.mark.parametrize("weights", ["depth", "uniform", "last"])
def test_the_retrieval_loss_of_every_exit(weights: str, tmp_path: Path) -> None:
    made = tiny(
        NAME, tmp_path, f"method.weights={weights}", "method.rename=0", "student.layers=4", "student.exits=[1, 3]"
    )
    terms, batch, _ = retrieved(made)
    module: Any = made.method.roles["student"].module
    want = {"depth": [1 / 4, 3 / 4], "uniform": [1, 1], "last": [0, 1]}[weights]
    q, k = module.every(batch["x"]), module.every(batch["key"])
    for e, exit in enumerate((1, 3)):
        if not want[e]:
            assert f"exit{exit}" not in terms
            continue
        torch.testing.assert_close(terms[f"exit{exit}"].values, paired_info_nce(q[e], k[e], scale=10.0))
        assert terms[f"exit{exit}"].weight == want[e]


def test_orthogonal_pairs_have_the_known_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny(NAME, tmp_path, "task.scale=3")
    real = MultiExit.every
    monkeypatch.setattr(
        MultiExit, "every", lambda self, ids, detach=False: 0 * real(self, ids) + torch.eye(16)[: len(ids)]
    )
    terms, _, _ = retrieved(made)
    loss = math.log(1 + 3 * math.exp(-3))
    torch.testing.assert_close(terms["exit1"].values, torch.full((4,), loss))


def test_renamed_code_is_shown_as_often_as_asked(tmp_path: Path) -> None:
    made = tiny(NAME, tmp_path, "method.rename=1", "method.distil=0.5")
    batch, ctx = at(made, "retrieve")
    method: Any = made.method
    shown, other = method.code_of(batch, ctx), batch["renamed"]
    assert shown.shape[1] == max(batch["key"].shape[1], other.shape[1])
    pad = method.task.tokenizer.pad_token_id
    for row, want in zip(shown, other, strict=True):
        assert torch.equal(row[row != pad], want[want != pad])
    method.rename = 0.0
    assert method.code_of(batch, ctx) is batch["key"]
    terms, _, _ = retrieved(made)
    assert terms["distil1"].weight == 0.5 and "distil2" not in terms
    draws = iter([0, 1])
    code = renamed("def f(alpha, beta):\n    return alpha + beta + once", ["x", "y"], lambda n: next(draws))
    assert code == "def f(x, y):\n    return x + y + once"


def test_pre_training_tells_words_and_contexts_at_every_exit(tmp_path: Path) -> None:
    made = tiny(NAME, tmp_path)
    batch, ctx = at(made, "pretrain")
    method: Any = made.method
    terms = method.read(batch, ctx)
    shown, which = method.hide(batch["x"], batch["item"], ctx)
    special = torch.isin(batch["x"], torch.tensor(method.task.tokenizer.all_special_ids))
    assert not (which & special).any() and which.any(1).all() and (shown != batch["x"])[~which].sum() == 0
    heads, module = method.roles["heads"].module, method.roles["student"].module
    states = module.states(shown)
    for e, exit in enumerate((1, 2)):
        beside = torch.cat([states[e], heads.exit.weight[e].expand(*states[e].shape[:2], -1)], -1)
        logits = heads.decoder(heads.norm(nn.functional.gelu(heads.dense(beside))))
        want = nn.functional.cross_entropy(logits[which], batch["x"][which])
        torch.testing.assert_close(terms[f"words{exit}"].values.mean(), want)
        pair = nn.functional.cross_entropy(heads.same(beside[:, -1]), batch["same"])  # [CLS] stands last
        torch.testing.assert_close(terms[f"context{exit}"].values.mean(), pair)
        assert terms[f"words{exit}"].weight == terms[f"context{exit}"].weight == exit / 2
    alone = tiny(NAME, tmp_path / "none", "method.context=none", "method.told=false")
    batch, ctx = at(alone, "pretrain")
    assert set(alone.method.read(batch, ctx)) == {"words1", "words2"}  # type: ignore[attr-defined]
    assert PretrainingHeads(16, 9, 2, told=False).same.in_features == 16
    assert [s.name for s in tiny(NAME, tmp_path / "off", "method.pretrain=false").method.stages()] == ["retrieve"]


def windows(tmp_path: Path, **more: Any) -> tuple[TextPairs, Windows]:
    rows = [
        {"query": f"says {r} {i}", "code": f"{r}{i} " * 4, "group": r, "split": s}
        for s in ("train", "valid", "test")
        for r in ("aa", "bb", "cc")
        for i in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = PairTable(str(tmp_path / "pairs.jsonl"), group="group", split="split")
    task = TextPairs(data, vocab_size=300, length=40, instruct=False)
    task.load()
    return task, Windows(task, **more)


def test_windows_are_of_one_repository_or_of_several(tmp_path: Path) -> None:
    task, found = windows(tmp_path)
    assert len(found) == 24 and 4 <= int(found.same.sum()) <= 20
    batch = found.fetch(torch.arange(24))
    cls, sep = task.marks()
    assert batch["x"].shape == (24, 40) and bool((batch["x"][:, -1] == cls).all())
    for ids, same in zip(batch["x"], batch["same"].tolist(), strict=True):
        pieces = task.tokenizer.decode([i for i in ids.tolist() if i not in (0, 1)]).split("</s>")
        of = {p.strip()[:2] for p in pieces if p.strip()}
        assert (ids == sep).sum() >= 2
        assert (len(of) == 1) == bool(same), pieces
    _, pairs = windows(tmp_path, pair=True)
    assert bool(((pairs.ids == sep).sum(1) == 2).all())
    assert pairs.fingerprint != found.fingerprint


def test_sentences_end_with_cls_and_are_padded_on_the_left(tmp_path: Path) -> None:
    task, _ = windows(tmp_path)
    task.instruct, task.length = True, 200
    cls, sep = task.marks()
    (row,) = task.sentences(["open a file"], [None])
    assert row[0] == sep and row[-1] == cls and row.count(sep) == 2
    assert task.tokenizer.decode(row[1 : row.index(sep, 1)]).strip() == FOR_TEXT
    (code,) = task.sentences(["f()"], ["Go"])
    assert "this Go code" in task.tokenizer.decode(code)
    task.length = 20
    (short,) = task.sentences(["word " * 100], [None])
    assert len(short) == 20 and short[-1] == cls
    batch = task.test.fetch(torch.arange(3))
    assert bool((batch["x"][:, -1] == cls).all()) and set(batch) == {"x", "key", "kind"}


def test_ranks_and_metrics(tmp_path: Path) -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.3, 0.9, 0.1]])
    right = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]]).bool()
    assert ranks(scores, right).tolist() == [1, 2, 2]
    task, _ = windows(tmp_path)

    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(ids, 300).float().sum(1)  # which tokens it holds

    from limbeck.grammar.method import Built

    got = task.evaluate(Built(Known()), task.test)
    data: Any = task.test
    x, k = (nn.functional.normalize(Known()(r.ids.long()), dim=-1) for r in data.rows()[:2])
    z = x @ k.T
    slow = []
    for i in range(len(data)):
        above = sum(bool(z[i, j] > z[i, i]) + 0.5 * bool(z[i, j] == z[i, i]) for j in range(len(data)) if j != i)
        slow.append(1 / (1 + above))
    assert got["mrr"] == pytest.approx(sum(slow) / len(slow))

    class Three:  # as a plan evaluates a few items alone
        fingerprint = ""

        def __len__(self) -> int:
            return 3

        def fetch(self, items: torch.Tensor) -> dict[str, Any]:
            found: dict[str, Any] = data.fetch(items)
            return found

    assert task.evaluate(Built(Known()), Three())["recall5"] == 1
    assert got["recall10"] >= got["recall5"] >= got["recall1"] and got["ndcg10"] <= 1
    assert float(got.per_item["mrr"].mean()) == pytest.approx(got["mrr"])


def test_every_exit_is_judged_saved_and_opened_again(tmp_path: Path) -> None:
    made = tiny(NAME, tmp_path, "student.layers=3", "student.exits=[1, 2, 3]", "method.deliver=2").run()
    assert set(made.method.rows()) == {"exit 1", "exit 3"}
    artifact: Any = made.method.artifact()
    assert artifact.built.module.exits == [2]
    (tmp_path / "out").mkdir()
    artifact.save(tmp_path / "out")
    task: Any = made.method.task
    whole: Any = made.method.roles["student"].module.eval()  # type: ignore[union-attr]
    ids = task.test.fetch(torch.arange(4))["x"]
    import limbeck

    for e, exit in enumerate((1, 2, 3)):
        opened = limbeck.load(tmp_path / "out" / f"exit-{exit}")
        with torch.no_grad():
            assert torch.equal(opened.built.module(ids), whole.every(ids)[e])
    answer = limbeck.load(tmp_path / "out").predict(["add two numbers"])
    assert len(answer[0]["vector"]) == 16
    made.method.deliver = None  # type: ignore[attr-defined]
    (tmp_path / "whole").mkdir()
    made.method.artifact().save(tmp_path / "whole")
    again = (
        f"student.checkpoint={tmp_path / 'whole'}",
        "student.layers=1",
        "student.exits=[1]",
        "student.final_norm=false",
    )
    part: Any = tiny(NAME, tmp_path / "cut", *again).method.roles["student"].module
    with torch.no_grad():
        assert torch.equal(part.eval()(ids), whole.every(ids)[0])
    begun = tiny(NAME, tmp_path / "begun", f"student.weights={tmp_path / 'out/exit-3'}", "student.exits=[1, 2]")
    own = begun.method.roles["student"].module.encoder.state_dict()  # type: ignore[union-attr]
    theirs = whole.encoder.state_dict()
    kept = {k: v for k, v in own.items() if not k.startswith("norm")}  # type: ignore[union-attr]
    assert not differences(kept, {k: theirs[k] for k in kept})


def test_functions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text(
        "class A:\n    def add(self, a, b):\n        '''Add two numbers.\n\n        More.'''\n        return a + b\n"
        "def bare(): return 1\ndef short(x):\n    'Hm.'\n    return x\n"
    )
    (found,) = functions_of(path)
    assert found == Pair("Add two numbers.", "def add(self, a, b):\n    return a + b", "text", ("", "Python"), "one")
    path.write_text("def (")
    assert functions_of(path) == []


def test_tables_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = [f"doc {i},f{i}(),F{i}(),{'train' if i < 4 else 'test' if i < 6 else 'dev'},{int(i != 1)}" for i in range(8)]
    path.write_text("doc,java,cs,split,label\n" + "\n".join(rows))
    table = PairTable(str(path), query="doc", answer="java", other="cs", split="split", label="label", language="Java",
                      other_language="C#")  # fmt: skip
    pairs = table.deal(0.1, 0.1)
    assert (len(pairs.train), len(pairs.valid), len(pairs.test)) == (6, 4, 4)
    assert [p.kind for p in pairs.train[:2]] == ["text", "code"] and pairs.train[1].languages == ("Java", "C#")
    assert any("label is not 1" in n for n in PairTable.read(table)[1])
    for odd, said in (
        ({"query": "docs"}, r"no column 'docs'.*did you mean doc"),
        ({"answer": "code"}, r"no column 'code'"),
    ):
        with pytest.raises(DataError, match=said):
            PairTable(str(path), **{"query": "doc", "answer": "java", **odd}).read()
    path.write_text("query,code\na,\nb,c\n")
    with pytest.raises(DataError, match=r"1 row without query or code.*p.csv row 1.*bad_rows=skip"):
        PairTable(str(path)).read()
    with pytest.raises(DataError, match="fewer than two"):
        PairTable(str(path), bad_rows="skip").deal(0.1, 0.1)
    with pytest.raises(DataError, match="no such file"):
        PairTable(str(tmp_path / "none.csv")).read()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["student.exits=[0, 2]"], r"exits.*1 to 2"),
        (["student.exits=[1, 3]"], r"exits.*1 to 2"),
        (["student.exits=[2, 1]"], r"exits.*ascending"),
        (["student.exits=[1, 1]"], r"exits.*each once"),
        (["train.batch_size=1"], r"train.batch_size.*nothing to be told from"),
        (["method.deliver=3"], r"method.deliver.*\[1, 2\]"),
        (["student={use: encoder}"], r"exit-encoder"),
        (["student.width=18"], r"width.*twice the heads"),
        (["student.heads=4", "student.kv_heads=3"], r"kv_heads"),
        (["task.scale=0"], r"scale.*above 0"),
        (["method.share=1"], r"share.*below 1"),
        (["method.weights=first"], r"weights.*depth"),
        (["task.data={use: pair-table, path: /nowhere.csv}"], r"^task.data.path: .*nowhere"),
        (["task=text-classes"], r"text-pairs"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_what_cannot_be_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tiny(NAME, tmp_path, *options)


def test_contexts_need_repositories(tmp_path: Path) -> None:
    windows(tmp_path)
    table = f"task.data={{use: pair-table, path: {tmp_path / 'pairs.jsonl'}, split: split}}"
    with pytest.raises(ConfigError, match=r"one repository.*group=COLUMN.*context=none"):
        tiny(NAME, tmp_path, table)
    tiny(NAME, tmp_path, table, "method.context=none")


def test_settings_are_the_paper_s() -> None:
    method, task = ModularStarEncoder(), TextPairs()
    assert (method.weights, method.rename, method.share, method.context) == ("depth", 0.3, 0.15, "repository")
    assert task.scale == 10 and method.distil == 0 and not method.detach
