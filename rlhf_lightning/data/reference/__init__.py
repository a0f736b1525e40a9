"""Reference log-probs of rows, kept on disk."""
