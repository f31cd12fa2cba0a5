"""Masked discrete diffusion over action tokens: torch only, knows nothing of robots or RL.

Shape letters: B decisions, S views, L action-token positions, V action vocabulary, K denoising steps.
"""
