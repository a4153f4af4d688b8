"""Students that learn from pictures without labels first."""
