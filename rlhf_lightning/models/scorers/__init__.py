"""Scorers: models that give a response a number instead of a distribution of tokens."""
