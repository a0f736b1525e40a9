"""Rows: files read, layouts recognised, every row brought to one shape, and what can be wrong with it."""
