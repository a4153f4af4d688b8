"""Systems for graphs."""
