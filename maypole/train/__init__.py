"""Floor 2: all optimisation goes through `fit`. Knows nothing about how text is generated."""
