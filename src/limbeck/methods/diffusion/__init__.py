"""Distillation of diffusion models, one paper a file."""
