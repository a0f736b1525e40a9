"""Tokens: rows rendered, tokenised, converted to the kind that a method learns from, and kept in flat columns."""
