"""Sources: where rows come from, alone or mixed."""
