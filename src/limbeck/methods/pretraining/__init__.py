"""Students that learn without labels first."""
