"""The ``rlhf`` command: composing, checking and running configurations."""
