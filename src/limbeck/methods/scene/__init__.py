"""Scenes that are made or shrunk, one paper a file."""
