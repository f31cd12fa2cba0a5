"""Checkpoints of a run: written whole or not at all, read without trust, and only into the run that they fit."""
