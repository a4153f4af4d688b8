"""Students that learn from images without labels first."""
