"""Reinforcement-learning maths as pure functions of tensors: advantages, clipped losses, KL estimators."""
