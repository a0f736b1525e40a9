"""Critics: actors that also say what a response is expected to bring."""
