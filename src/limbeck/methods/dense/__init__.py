"""Students that answer at every pixel."""
