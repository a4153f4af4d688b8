"""Poses of bodies, hands and faces."""
