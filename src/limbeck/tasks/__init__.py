"""What students are for: one file per task family, beside the data sources and models that families share."""

from __future__ import annotations
