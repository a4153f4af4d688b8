"""Students that write."""
