"""What students are for, one family a file: data as batches, the supervised loss, metrics, what is made and evaluated."""

from __future__ import annotations
