"""Rows that a stage leaves, read back by the number of their item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.engine import interrupt
from limbeck.errors import CheckpointCorrupt, ConfigError, MethodError, Stopped
from limbeck.grammar import method as grammar
from limbeck.grammar.method import Batch, Context, Stage, Term, Terms
from limbeck.storage import store
from limbeck.storage.records import Recorded
from tests.tiny import StopAfter, differences
from tests.toy import CLASSES, Toy, bound, engine, learnt


class Keeping(Toy):
    """What the teacher says of every item is recorded; the student learns from the records, and from scores of a choice."""

    def stages(self) -> list[Stage]:
        data = self.task.train
        (stage,) = super().stages()
        return [
            Stage("answers", data=data, batch_size=16, record=self.answer),
            Stage("scores", items=lambda ctx: ["low", "high"], work=self.score),
            stage,
        ]

    def answer(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        z = ctx.signal("teacher", batch).logits
        assert not z.requires_grad
        return {"z": z, "half": z.to(torch.bfloat16), "likeliest": z.argmax(1)}

    def score(self, item: str, ctx: Context) -> dict[str, Any]:
        ids = torch.arange(20, 40).flip(0) if item == "high" else torch.arange(20)
        return {"item": ids, "score": ids.float() / 10, "all": torch.ones(3), "name": item}

    def step(self, batch: Batch, ctx: Context) -> Any:
        rows = ctx.recorded("answers").fetch(batch["item"])
        score = ctx.recorded("scores").fetch(batch["item"])["score"]
        assert torch.allclose(score, batch["item"].float() / 10)
        torch.testing.assert_close(rows["z"], ctx.signal("teacher", batch).logits)
        assert rows["half"].dtype == torch.bfloat16 and torch.equal(rows["likeliest"], rows["z"].argmax(1))
        z = ctx.signal("student", batch).logits
        return Terms(pull=Term((z - rows["z"]).square().sum(1) * score))

    def observe(self, seen: dict[str, float], ctx: Context) -> None:
        pass


def run(folder: Path, stop: int | None = None, **settings: Any) -> Any:
    method = bound(Keeping())
    engine(folder, None if stop is None else StopAfter(stop), **settings).run(method)
    return learnt(method)


def test_rows_are_read_by_the_number_of_their_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(
            grammar, "RECORDED", 7
        )  # pieces that no batch respects, and batches of other sizes round otherwise
        assert not differences(whole, run(tmp_path / "pieces"), tolerance=1e-5)
    assert len(list((tmp_path / "pieces" / "items" / "answers").iterdir())) >= 6
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", 7)
    interrupt.clear()
    assert not differences(whole, run(tmp_path / "stopped"))
    assert not differences(whole, run(tmp_path / "cut", accumulate=2), tolerance=1e-5)


def test_records_are_mapped_checked_and_refuse_what_they_do_not_hold(tmp_path: Path) -> None:
    store.save_tree(tmp_path / "a", {"item": torch.tensor([5, 3]), "x": torch.arange(4.0).view(2, 2)})
    store.save_tree(tmp_path / "b", {"item": torch.tensor([9]), "x": torch.full((1, 2), 7.0)})
    found = Recorded("kept", {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert len(found) == 3 and found.items.tolist() == [3, 5, 9]
    rows = found.fetch(torch.tensor([9, 3, 3, 5]))["x"]
    assert rows.tolist() == [[7.0, 7.0], [2.0, 3.0], [2.0, 3.0], [0.0, 1.0]]
    rows.zero_()
    assert found.fetch(torch.tensor([5]))["x"].tolist() == [[0.0, 1.0]], "what is fetched is a copy"
    with pytest.raises(MethodError, match="no row for 2 of 3 items: 4, 10"):
        found.fetch(torch.tensor([4, 5, 10]))
    again = Recorded("kept", {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert again.fingerprint == found.fingerprint
    with pytest.raises(MethodError, match="two of its items have left row 3"):
        Recorded("kept", {"a": tmp_path / "a", "b": tmp_path / "a"})
    file = tmp_path / "a" / "tensors.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointCorrupt, match="SHA-256"):
        Recorded("kept", {"a": tmp_path / "a"}).fetch(torch.tensor([3]))


def test_items_that_are_numbers_leave_one_row_each(tmp_path: Path) -> None:
    for n in (4, 11):
        store.save_tree(tmp_path / str(n), {"z": torch.full((CLASSES,), float(n)), "loss": torch.tensor(n / 2)})
    rows = Recorded("s", {str(n): tmp_path / str(n) for n in (4, 11)}).fetch(torch.tensor([11, 4]))
    assert rows["z"][:, 0].tolist() == [11.0, 4.0] and rows["loss"].tolist() == [5.5, 2.0]
    store.save_tree(tmp_path / "x", {"z": torch.ones(2)})
    with pytest.raises(MethodError, match="'x' has left no rows"):
        Recorded("s", {"x": tmp_path / "x"})
    assert len(Recorded("s", {})) == 0


def test_what_is_mapped_is_what_is_read(tmp_path: Path) -> None:
    tree = {
        "bf": torch.randn(3, 5).to(torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "strided": torch.randn(4, 6).t(),
        "whole": torch.arange(7),
        "deep": {"x": [torch.randn(2)]},
    }
    store.save_tree(tmp_path / "t", tree)
    assert not differences(store.load_tree(tmp_path / "t"), store.load_tree(tmp_path / "t", mapped=True))
    store.save_tree(tmp_path / "empty", {"none": torch.zeros(0)})
    assert store.load_tree(tmp_path / "empty", mapped=True)["none"].numel() == 0


def test_stages_that_are_not_there_and_rows_that_are_none_are_refused(tmp_path: Path) -> None:
    class Early(Keeping):
        def stages(self) -> list[Stage]:
            answers, scores, distil = super().stages()
            return [distil, answers, scores]

    with pytest.raises(MethodError, match="a stage that came before"):
        engine(tmp_path / "early").run(bound(Early()))

    class Unknown(Keeping):
        def step(self, batch: Batch, ctx: Context) -> Any:
            return ctx.recorded("anwsers")

    with pytest.raises(ConfigError, match="answers"):
        engine(tmp_path / "unknown").run(bound(Unknown()))

    class Short(Keeping):
        def answer(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
            return {"z": torch.ones(1)}

    with pytest.raises(MethodError, match=r"record.*'z'.*\[16, \.\.\.\]"):
        engine(tmp_path / "short").run(bound(Short()))
    with pytest.raises(ValueError, match="no data to record"):
        Stage("s", record=lambda b, c: {})
