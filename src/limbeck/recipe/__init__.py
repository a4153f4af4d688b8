"""One YAML and dotted overrides over constructor signatures. Importing this package imports no torch.

``recipe`` (load, check, build), ``overrides`` (files and dotted settings merged), ``schema`` (what a signature says),
``resolving`` (trees along signatures), ``hints``, ``values``, ``scalars`` (leaf values), ``names``, ``imports``, ``extras``;
``trust`` (what a folder that was sent may do).
"""
