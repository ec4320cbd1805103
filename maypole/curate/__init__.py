"""Room: choose and clean training data. Knows nothing about how a model is trained on it."""
