"""Batches: groups packed into micro-batches, these planned into steps, and loaders that keep their position."""
