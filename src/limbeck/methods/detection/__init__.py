"""Students that answer with boxes."""
