"""Where data come from: sources that a recipe names, and the items, images, tables and texts they are read into."""

from __future__ import annotations
