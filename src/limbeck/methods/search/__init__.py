"""Searches for architectures."""
