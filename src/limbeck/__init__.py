"""limbeck distils anything in PyTorch: a network, a language model, a sampler, a data set."""

from __future__ import annotations

__version__ = "0.1.0"
