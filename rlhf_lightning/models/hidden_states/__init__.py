"""Hidden states: actors that read them, the directions in them, and steering along these."""
