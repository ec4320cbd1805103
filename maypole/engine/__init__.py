"""Floor 2: all inference (generate, score, embed) goes through here. Knows nothing about training or methods."""
