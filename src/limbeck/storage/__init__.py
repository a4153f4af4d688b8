"""Everything that lies on disk: ``store`` (trees, checkpoints), ``weights`` (state dicts), ``disk`` (atomic folders, locks)."""
