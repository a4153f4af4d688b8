"""Students that classify."""
