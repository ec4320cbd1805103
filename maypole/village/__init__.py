"""Floor 4: the embedded world whose truth is known, and its zoo of small checkpoints. No room imports it."""
