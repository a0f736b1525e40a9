"""Papers' claims, our miniatures of them in the tiny world, and the board that compares the two (``rlhf claims``)."""
