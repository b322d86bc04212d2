"""Tiny checkpoints of model families, one file each, with random weights and the family's real processor."""
