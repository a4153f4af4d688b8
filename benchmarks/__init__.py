"""Speed, memory and conventions, beside the floor and beside peers. ``python -m benchmarks``."""
