"""Continuous actions <-> action tokens: normalisation to [-1, 1], then binning."""
