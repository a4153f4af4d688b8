"""Add-ons: objectives (what is matched) and queries (what is asked) that attach to any method by recipe."""
