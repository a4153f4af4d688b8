"""The engine room. Importing this package imports no torch: the catalogue of methods must start at once.

- The grammar that papers are written in: ``method``, ``role``, ``signal``, ``task``, ``artifact``; ``optim`` and
  ``random`` (keyed draws). Methods that need no paper: ``plain`` (any objectives), ``unaided`` (no teacher).
- The loop: ``engine`` (stages), ``step``, ``batches``, ``context`` (what a step may ask), ``guard`` (what is not finite),
  ``inner`` (the loop in memory), ``distributed``, ``interrupt``.
- Recipes: ``recipe``, ``overrides``, ``schema``, ``resolving``; below them ``component``, ``names``, ``card``, ``hints``,
  ``values``, ``scalars``, ``imports``, ``extras``.
- Runs: ``bench`` (the participants, and what is trained on labels alone), ``turns`` (who makes what runs share), ``logs``,
  ``trackers``, ``progress``.
- Storage: ``store`` (trees, checkpoints), ``weights`` (state dicts), ``disk`` (atomic folders, locks).
- ``errors``: what a user's mistake ends in.
"""
