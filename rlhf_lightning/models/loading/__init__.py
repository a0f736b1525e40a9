"""Weights, heads, tokenizers and vocabularies: what is read from folders and the hub, whole or refused."""
