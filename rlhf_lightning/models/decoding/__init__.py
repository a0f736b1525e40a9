"""Responses drawn token by token: the decode loop, its states, and generation with the live policy."""
