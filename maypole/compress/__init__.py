"""Room: make a model smaller and cheaper. Knows nothing about the data it will serve."""
