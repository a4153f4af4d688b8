"""The Triton kernels: equal to torch in the interpreter, compilable for GPUs, chosen only where they can run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck import functional as F
from limbeck.errors import ConfigError
from limbeck.functional._closed_forms import Kind, make_loss
from limbeck.functional.chunked import _kernels

HERE = Path(__file__)
CUDA = torch.device("cuda")


def test_in_the_interpreter() -> None:
    """kernels_interpreted.py, in a process of its own: triton reads the variable when it is imported."""
    pytest.importorskip("triton", "3.8", reason="triton 3.8 is not installed; older interpreters fail beside NumPy 2.4")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE.with_name("kernels_interpreted.py")],
        cwd=HERE.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("kind", "capability", "everything"),
    [("forward", 80, False), ("jensen_shannon", 90, False), ("taid", 90, True), ("cross_entropy", 80, False)],
)
def test_compiles_for_gpus(
    kind: Kind, capability: int, everything: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import mangle_type

    from limbeck.functional import _kernels as kernels

    if kernels.INTERPRETED:
        pytest.skip("triton interprets here")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    n, words = 2, 32_000
    logits, ids = torch.empty(n, words, dtype=torch.bfloat16), torch.arange(n)
    bias = torch.zeros(words)
    side = kernels.Logits(logits, ids, bias, 1.0, 30.0) if everything else kernels.Logits(logits)
    loss = make_loss(kind, 0.5, 0.1, 0.4, "kl", True, 1.0, 0.5 if everything else 0.0)
    given: dict[str, Any] = kernels.arguments(
        loss,
        side,
        None if kind == "cross_entropy" else side,
        logits,
        ids if loss.hard else None,
        2.0 if everything else 1.0,
        torch.ones(n) if everything else None,
        True,
    )[1]
    fixed = {p.name: given[p.name] for p in kernels._kernel.params if p.is_constexpr or given[p.name] is None}
    signature = {name: "constexpr" if name in fixed else mangle_type(given[name]) for name in kernels._kernel.arg_names}
    made = triton.compile(
        ASTSource(kernels._kernel, signature, fixed), target=GPUTarget("cuda", capability, 32), options={"num_warps": 8}
    )
    assert f".target sm_{capability}" in made.asm["ptx"] and len(made.asm["cubin"]) > 1000


def test_auto_takes_the_kernels_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    made = _kernels("auto", CUDA, torch.float32)
    assert made is not None and made is _kernels("triton", CUDA, torch.float32)
    assert _kernels("torch", CUDA, torch.float32) is None
    assert _kernels("auto", CUDA, torch.float64) is None
    assert _kernels("auto", torch.device("cpu"), torch.float32) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert _kernels("auto", CUDA, torch.float32) is None


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "limbeck.functional._kernels", None)
    monkeypatch.delattr(sys.modules["limbeck.functional"], "_kernels", raising=False)
    assert _kernels("auto", CUDA, torch.float32) is None
    with pytest.raises(ConfigError, match=r"backend: Triton is not installed.*pip install triton"):
        _kernels("triton", CUDA, torch.float32)


def test_errors_say_what_to_do() -> None:
    a, b, w = torch.randn(2, 5), torch.randn(2, 5), torch.randn(7, 5)
    with pytest.raises(ConfigError, match=r"no choice is called 'tritton'.*did you mean 'triton'"):
        F.chunked_logits(a, b, backend="tritton")  # type: ignore[arg-type]
    pytest.importorskip("triton", reason="triton is not installed")
    for call in (
        lambda: F.chunked_logits(a, b, backend="triton"),
        lambda: F.chunked_divergence(a, w, b, w, backend="triton"),
    ):
        with pytest.raises(ConfigError, match=r"need a CUDA device.*tensors on cpu.*backend='auto'"):
            call()


def test_triton_is_imported_only_where_it_is_used() -> None:
    code = (
        "import sys; import limbeck.functional as F; import torch; F.chunked_logits(torch.ones(1, 3), torch.ones(1, 3))"
    )
    code += "; sys.exit('limbeck.functional._kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
