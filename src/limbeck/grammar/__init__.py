"""The words every paper is written in. No loop, no files, no recipe.

- ``method`` (terms, objectives, queries, stages, and the method that joins them), ``role``, ``signal``, ``task``,
  ``artifact``; ``optim`` (how a role is optimised) and ``random`` (keyed draws).
- ``card``: the facts about a paper; ``component``: what a recipe can name. Importing these two imports no torch: the
  catalogue of methods must start at once.
- ``plain``: the method that needs no paper, any mapping of objectives.
"""
