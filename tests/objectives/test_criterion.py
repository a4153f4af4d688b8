"""A Criterion in a loop of one's own: its shares, its teacher's mode, its precision, and what it sees of the optimiser."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.grammar.method import Objective, Term
from limbeck.objectives import Criterion, FeatureMatch, Kl, Relation


def net(width: int, norm: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width) if norm else nn.Tanh(), nn.Dropout(0.5 * norm), nn.Linear(width, 3)
    )


def made(**objectives: Objective) -> tuple[nn.Module, nn.Module, Criterion, Tensor]:
    torch.manual_seed(0)
    student, teacher, x = net(4), net(5, norm=True), torch.randn(10, 6)
    return (
        student,
        teacher,
        Criterion(objectives or {"kl": Kl(), "hint": FeatureMatch("1", "1")}, student, teacher, x),
        x,
    )


def gradients(*modules: nn.Module) -> list[Tensor]:
    found = []
    for p in (p for m in modules for p in m.parameters()):
        assert p.grad is not None
        found.append(p.grad)
        p.grad = None
    return found


@pytest.mark.parametrize("sizes", [(5, 5), (1, 7, 2)])
def test_the_shares_of_micro_batches_sum_to_the_whole(sizes: tuple[int, ...]) -> None:
    student, _, criterion, x = made()
    whole = criterion(x)
    whole.backward()
    expected = gradients(student, criterion)
    losses = [criterion(part, count=torch.tensor(10) if len(part) == 1 else 10) for part in x.split(list(sizes))]
    torch.stack(losses).sum().backward()
    assert torch.stack(losses).sum().item() == pytest.approx(whole.item(), rel=1e-6)
    for a, b in zip(gradients(student, criterion), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Tokens(nn.Module):
    """Tokens [N, L] to logits [N, L, 3]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.head = nn.Embedding(9, width), nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.inner(ids))


def test_a_mask_says_what_counts_and_what_is_masked_changes_nothing() -> None:
    torch.manual_seed(0)
    student, teacher = Tokens(4), Tokens(5)
    ids, where = torch.randint(8, (4, 6)), torch.rand(4, 6) > 0.4
    criterion = Criterion({"kl": Kl(), "hint": FeatureMatch("inner", "inner")}, student, teacher, ids)
    whole = criterion(ids, {"where": where})
    parts = [criterion(ids[i], {"where": where[i]}, count=where.sum()) for i in (slice(0, 1), slice(1, 4))]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item(), rel=1e-6)
    other = torch.where(where, ids, 8)
    assert criterion(other, {"where": where}).item() == pytest.approx(whole.item(), rel=1e-6)
    hint = criterion.shown["hint"].item()
    gap = (criterion.projectors["hint"](student.inner(ids)) - teacher.inner(ids)).square().mean(-1)
    assert hint == pytest.approx(gap[where].mean().item(), rel=1e-6)
    nothing = criterion(ids, {"where": torch.zeros_like(where)}, count=0)
    assert nothing.item() == 0


def test_the_teacher_stays_in_evaluation_mode_whoever_owns_it() -> None:
    student, teacher, criterion, x = made()

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion, self.student, self.teacher = criterion, student, teacher

    owner = Owner()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    expected = criterion(x).item()
    for break_it in (owner.train, teacher[1].train):
        break_it()
        assert criterion(x).item() == expected
        assert not any(m.training for m in teacher.modules()) and student.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_making_it_leaves_the_student_s_modes_and_weights() -> None:
    student = net(4, norm=True)
    student[1].eval()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    Criterion({"kl": Kl()}, student, net(5), torch.randn(4, 6))
    assert student.training and not student[1].training and student[2].training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


@pytest.mark.parametrize("fused", [False, True])
def test_a_projector_without_an_optimiser_is_told_once(fused: bool) -> None:
    student, _, criterion, x = made(kl=Kl(), hint=FeatureMatch("1", "1"), deep=FeatureMatch("0", "0"))
    optimiser = torch.optim.AdamW(student.parameters(), fused=fused)
    said: list[str] = []
    for _ in range(4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            criterion(x).backward()
            criterion(x).backward()
            optimiser.step()
            optimiser.zero_grad()
        said += [str(w.message) for w in caught]
    assert len(said) == 1 and "projector of 'hint', 'deep' is in no optimiser" in said[0]
    assert "[*student.parameters(), *criterion.parameters()]" in said[0]


def test_projectors_that_are_optimised_are_not_told_of() -> None:
    """By the student's optimiser, or by one of their own that comes after it; nor of a criterion that is gone."""
    student, _, criterion, x = made()
    one = torch.optim.SGD([*student.parameters(), *criterion.parameters()], 0.1)
    student2, _, second, _ = made()
    two, three = torch.optim.SGD(student2.parameters(), 0.1), torch.optim.SGD(second.parameters(), 0.1)
    student3, _, third, _ = made()
    four = torch.optim.SGD(student3.parameters(), 0.1)
    third(x).backward()
    del third
    for _ in range(3):
        for loss, optimisers in ((criterion, (one,)), (second, (two, three))):
            loss(x).backward()
            for optimiser in optimisers:
                optimiser.step()
        four.step()


def test_losses_are_taken_in_full_precision_under_autocast() -> None:
    """The networks and the projector in bfloat16, as asked; what is computed of their answers in float32."""
    student, teacher, criterion, x = made(kl=Kl(), hint=FeatureMatch("1", "1"), who=Relation("1", "1"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = criterion(x)
        z_s, f_s = student(x), student[1](student[0](x))
        z_t, f_t = teacher(x), teacher[1](teacher[0](x))
        f_p = criterion.projectors["hint"](f_s.float())
    assert criterion.out.dtype == f_p.dtype == torch.bfloat16 and got.dtype == torch.float32
    p, q = z_t.float().log_softmax(1), z_s.float().log_softmax(1)
    assert criterion.parts["kl"] == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-5)
    assert criterion.parts["hint"] == pytest.approx((f_p.float() - f_t.float()).square().mean().item(), rel=1e-5)
    a, b = (nn.functional.normalize(f.float() @ f.float().T) for f in (f_s, f_t))
    assert criterion.parts["who"] == pytest.approx(((a - b).square().sum() / 100).item(), rel=1e-4)


def test_a_criterion_in_half_precision_runs() -> None:
    student, _, criterion, x = made()
    student.bfloat16(), criterion.bfloat16()
    loss = criterion(x.bfloat16())
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad is not None for p in criterion.parameters())


def test_every_call_draws_anew() -> None:
    class Drawn(Objective):
        def __call__(self, student: Any, teacher: Any, batch: Any, ctx: Any) -> Term:
            return Term(student.logits.sum(1) * 0 + ctx.draws.rand("u", len(student.logits)))

    _, _, criterion, x = made(drawn=Drawn())
    assert criterion(x).item() != criterion(x).item()


def test_what_would_be_trained_in_both_is_refused() -> None:
    teacher = net(5)
    student = copy.deepcopy(teacher)
    student[3] = teacher[3]
    with pytest.raises(ConfigError, match=r"shares 2 tensors with the teacher: '3\.weight', '3\.bias'"):
        Criterion({"kl": Kl()}, student, teacher, torch.zeros(2, 6))
    student.requires_grad_(False)[0].requires_grad_(True)
    Criterion({"kl": Kl()}, student, teacher, torch.zeros(2, 6))  # frozen weights may be shared


class Net(nn.Module):
    """A network with an activation that works in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(inplace=True), nn.Linear(width, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_tapped_networks_are_pickled_copied_exported_and_compiled_as_before() -> None:
    torch.manual_seed(0)
    student, teacher, x = Net(5), Net(7), torch.randn(6, 4)
    criterion = Criterion({"kl": Kl(), "hint": FeatureMatch("body.0", "body.0")}, student, teacher, x)
    criterion(x).backward()
    for network in (student, teacher):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert network.body[1].inplace  # as its owner set it
        for copied in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
            assert torch.equal(copied(x), network(x))
        buffer = io.BytesIO()
        torch.save(network, buffer)
        assert torch.equal(torch.export.export(network.eval(), (x,)).module()(x), network(x))
        assert torch.equal(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))


def test_a_compiled_student_is_tapped_before_and_after() -> None:
    torch.manual_seed(0)
    student, teacher, x = Net(5), Net(7), torch.randn(6, 4)
    compiled = torch.compile(student, backend="eager")
    compiled(x)
    criterion = Criterion({"kl": Kl(), "hint": FeatureMatch("body.0", "body.0")}, student, teacher, x)
    want = criterion(x).item()
    for _ in range(2):
        assert criterion(x, student=compiled).item() == pytest.approx(want)
        assert torch.allclose(compiled(x), student(x))


def test_a_criterion_is_copied_with_its_networks_and_taps_of_its_own() -> None:
    torch.manual_seed(0)
    student, teacher, x = Net(5), Net(7), torch.randn(6, 4)
    criterion = Criterion({"kl": Kl(), "hint": FeatureMatch("body.0", "body.0")}, student, teacher, x)
    want = criterion(x).item()
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert twin(x).item() == pytest.approx(want)
        assert twin._networks[0] is not student
        with torch.no_grad():
            twin._networks[0].head.weight.mul_(2.0)
        assert twin(x).item() != pytest.approx(want)
    assert criterion(x).item() == pytest.approx(want)
