"""Students that are data sets."""
