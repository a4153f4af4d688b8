"""Ways to get a network that a recipe may name: of our own, a library's, the user's, an earlier run's, several as one.

The networks of our own as plain modules are in ``limbeck.networks``.
"""

from __future__ import annotations
