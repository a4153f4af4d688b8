"""Systems that make corpora."""
