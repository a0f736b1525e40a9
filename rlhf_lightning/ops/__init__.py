"""Tensor operations shared by every method: log-probs, segment reductions, KL estimators."""
